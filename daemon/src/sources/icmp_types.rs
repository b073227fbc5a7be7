//! ICMP messages by type, between the file that names them one by one and the table that has a row for each type.

use crate::table::ABSENT;

/// Types that there are.
const TYPES: usize = 256;

/// Messages received and sent of each type.
pub(super) struct Types {
    values: [[u64; 2]; TYPES],
    any: bool,
}

impl Default for Types {
    fn default() -> Types {
        Types { values: [[ABSENT; 2]; TYPES], any: false }
    }
}

impl Types {
    /// A number for `InType8` or `OutType8`, as [`Types::put`] takes it.
    pub(super) fn number(name: &[u8]) -> Option<u16> {
        let (digits, base) = match name.strip_prefix(b"InType") {
            Some(digits) => (digits, 0),
            None => (name.strip_prefix(b"OutType")?, TYPES as u16),
        };
        let number: u8 = std::str::from_utf8(digits).ok()?.parse().ok()?;
        Some(base + u16::from(number))
    }

    /// Keeps a value.
    pub(super) fn put(&mut self, number: u16, value: u64) {
        let number = usize::from(number);
        if let Some(cells) = self.values.get_mut(number % TYPES) {
            cells[usize::from(number >= TYPES)] = value;
            self.any = true;
        }
    }

    /// Hands out every type that was seen with its two values, and forgets them.
    pub(super) fn drain(&mut self, mut row: impl FnMut(u16, [u64; 2])) {
        if !std::mem::take(&mut self.any) {
            return;
        }
        for (number, values) in (0_u16..).zip(&mut self.values) {
            let values = std::mem::replace(values, [ABSENT; 2]);
            if values != [ABSENT; 2] {
                row(number, values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_a_type_are_one_row() {
        let mut types = Types::default();
        for (name, value) in [("InType8", 5), ("InType3", 1), ("OutType8", 7), ("OutType255", 2)] {
            types.put(Types::number(name.as_bytes()).unwrap(), value);
        }
        for _ in 0..2 {
            let mut rows = Vec::new();
            types.drain(|number, values| rows.push((number, values)));
            let expected = [(3, [1, ABSENT]), (8, [5, 7]), (255, [ABSENT, 2])];
            assert!(rows.is_empty() || rows == expected, "{rows:?}");
            assert_eq!(
                rows.is_empty(),
                !types.any && types.values == [[ABSENT; 2]; TYPES] && rows.is_empty()
            );
        }
    }

    #[test]
    fn other_names_are_no_types() {
        for name in ["InType", "InType256", "InTypes8", "InMsgs", "OutType-1", "OutType3x", ""] {
            assert_eq!(Types::number(name.as_bytes()), None, "{name}");
        }
    }
}
