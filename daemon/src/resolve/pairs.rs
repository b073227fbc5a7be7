//! Labels and annotations of one workload, in as little memory as they can be kept in: a tree of strings needs five times
//! as much, and there are two for every container of the node. Cut to bounds as they are made.

use super::workload::cut;
use std::collections::BTreeMap;

/// Pairs of one workload at most, in number and bytes together.
const MAX_PAIRS: usize = 64;
const MAX_BYTES: usize = 2048;
/// Longest value, in bytes.
const MAX_VALUE: usize = 256;

/// Names with their values, in the order of the names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Each name and after it its value, without anything between them.
    text: Box<str>,
    /// Where each of these ends.
    ends: Box<[u16]>,
}

impl Pairs {
    /// All pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut begin = 0;
        let mut next = move |end: u16| {
            let begin = usize::from(std::mem::replace(&mut begin, end));
            self.text.get(begin..usize::from(end)).unwrap_or_default()
        };
        self.ends.as_chunks().0.iter().map(move |[name, value]| (next(*name), next(*value)))
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.ends.len() / 2
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// The first pairs in the order of their names that fit; values are cut, names never: half a name is another name.
impl From<BTreeMap<String, String>> for Pairs {
    fn from(all: BTreeMap<String, String>) -> Pairs {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for (name, mut value) in all {
            cut(&mut value, MAX_VALUE);
            if ends.len() < 2 * MAX_PAIRS && text.len() + name.len() + value.len() <= MAX_BYTES {
                for word in [name, value] {
                    text.push_str(&word);
                    ends.extend(u16::try_from(text.len()));
                }
            }
        }
        Pairs { text: text.into(), ends: ends.into() }
    }
}

impl FromIterator<(String, String)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Pairs {
        BTreeMap::from_iter(all).into()
    }
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_kept_in_order() {
        let pairs: Pairs =
            [("b", "2"), ("a", ""), ("é", "ü")].map(|(k, v)| (k.into(), v.into())).into_iter().collect();
        assert_eq!(pairs.iter().collect::<Vec<_>>(), [("a", ""), ("b", "2"), ("é", "ü")]);
        assert_eq!(
            (pairs.get("b"), pairs.get("a"), pairs.get("c"), pairs.get("é")),
            (Some("2"), Some(""), None, Some("ü"))
        );
        assert_eq!((pairs.len(), Pairs::default().len(), Pairs::default().iter().count()), (3, 0, 0));
    }

    #[test]
    fn too_many_are_cut() {
        let many: Pairs = (0..1000).map(|i| (format!("key-{i:04}"), "é".repeat(5_000))).collect();
        let size: usize = many.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(size <= MAX_BYTES && many.len() > 5, "{size}");
        assert_eq!(many.get("key-0000").map(str::len), Some(MAX_VALUE));
        let short: Pairs = (0..1000).map(|i| (format!("{i:04}"), "v".into())).collect();
        assert_eq!(short.len(), MAX_PAIRS);
    }

    #[test]
    fn a_name_is_whole_or_not_there() {
        let pairs: Pairs =
            [("k".repeat(3_000), "v".to_owned()), ("z".to_owned(), "w".to_owned())].into_iter().collect();
        assert_eq!(pairs.iter().collect::<Vec<_>>(), [("z", "w")]);
    }
}
