//! "Did you mean": the closest of the known words.

/// The known word that differs least from `word`, if it differs little enough to be what was meant.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A misspelling changes a letter or two; a longer word leaves room for one more. Long garbage is not compared.
    let limit = match word.chars().count() {
        0..=3 => 1,
        4..=7 => 2,
        8..=64 => 3,
        _ => return None,
    };
    let distances = known.into_iter().map(|candidate| (distance(word, candidate), candidate));
    distances.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, c)| c)
}

/// How many letters must be added, removed or replaced to get from one word to the other, ignoring case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().map(|c| c.to_ascii_lowercase()).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["tcp", "tcpreset", "packetloss", "netdev"];
        assert_eq!(closest("tcpresets", known), Some("tcpreset"));
        assert_eq!(closest("TCP", known), Some("tcp"));
        assert_eq!(closest("paketlos", known), Some("packetloss"));
        assert_eq!(closest("xyz", known), None);
        assert_eq!(closest("", known), None);
        assert_eq!(closest(&"x".repeat(100_000), known), None);
    }
}
