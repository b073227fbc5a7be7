//! Netlink messages and their attributes (netlink(7)), read from the bytes as the kernel wrote them.

/// What follows the header of a message ends with, or a nested attribute: everything is aligned to 4 bytes.
const ALIGN: usize = 4;
/// Length of a message's header.
pub const HEADER: usize = 16;
/// `NLA_TYPE_MASK`: the type without the bits for nested and network byte order.
const TYPE_MASK: u16 = 0x3fff;

const fn align(length: usize) -> usize {
    length.next_multiple_of(ALIGN)
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The messages in one piece of what the kernel sent; `Err` with what does not fit.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<Message<'_>, &'static str>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut bytes);
        let length = u32_at(whole, 0).map_or(0, |length| length as usize);
        if length < HEADER || length > whole.len() {
            return Some(Err("a message with an impossible length"));
        }
        bytes = whole.get(align(length)..).unwrap_or_default();
        Some(Ok(Message {
            kind: u16_at(whole, 4).unwrap_or(0),
            flags: u16_at(whole, 6).unwrap_or(0),
            sequence: u32_at(whole, 8).unwrap_or(0),
            body: &whole[HEADER..length],
        }))
    })
}

/// The attributes in `bytes`, type and content. It ends where something does not fit, as the kernel's own readers do.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let content = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// The attribute of one type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, content)| content)
}

/// Appends an attribute.
pub fn put(out: &mut Vec<u8>, kind: u16, content: &[u8]) {
    let length = u16::try_from(4 + content.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(content);
    out.resize(align(out.len()), 0);
}

/// A number in the machine's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in the machine's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in the machine's byte order.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in network byte order.
pub fn be16_at(bytes: &[u8], at: usize) -> Option<u16> {
    u16_at(bytes, at).map(u16::from_be)
}

/// A number in network byte order.
pub fn be32_at(bytes: &[u8], at: usize) -> Option<u32> {
    u32_at(bytes, at).map(u32::from_be)
}

/// A number in network byte order.
pub fn be64_at(bytes: &[u8], at: usize) -> Option<u64> {
    u64_at(bytes, at).map(u64::from_be)
}

/// A text with a zero at its end, which is left out.
pub fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(body);
        out.resize(align(out.len()), 0);
        out
    }

    #[test]
    fn messages_follow_each_other_aligned() {
        let bytes = [message(7, b"abcde"), message(8, b"")].concat();
        let found: Vec<_> = messages(&bytes).map(|message| message.map(|m| (m.kind, m.body))).collect();
        assert_eq!(found, [Ok((7, &b"abcde"[..])), Ok((8, &b""[..]))]);
    }

    #[test]
    fn impossible_lengths_end_it() {
        for length in [0_u32, 15, 21, u32::MAX] {
            let mut bytes = message(7, b"abcd");
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let found: Vec<_> = messages(&bytes).collect();
            assert_eq!(found, [Err("a message with an impossible length")], "{length}");
        }
        assert!(messages(&[1, 2, 3]).next().unwrap().is_err());
        for length in [0_u16, 3, 9] {
            let mut bytes = vec![];
            put(&mut bytes, 1, b"abcd");
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attributes(&bytes).count(), 0, "{length}");
        }
    }

    #[test]
    fn attributes_are_found_by_type() {
        let mut bytes = vec![];
        put(&mut bytes, 3, b"eth0\0");
        put(&mut bytes, 0x8000 | 5, &7_u32.to_ne_bytes());
        assert_eq!(attribute(&bytes, 3).map(text), Some(&b"eth0"[..]));
        assert_eq!(attribute(&bytes, 5).and_then(|bytes| u32_at(bytes, 0)), Some(7));
        assert_eq!(attribute(&bytes, 4), None);
    }
}
