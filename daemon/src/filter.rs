//! Which events somebody wants: the options of every probe whose events tell of connections. By port and protocol its programs
//! decide, before the rate limit; by entity the event thread does, once it is known whose the event is. What is counted is
//! counted all the same.

use crate::declare::{OptionDecl, OptionType, matches_pattern};
use crate::hooks::Options;
use crate::kernel::bpf::Settings;
use netskoop_api::{EntityRef, OptionValue};
use netskoop_bpf::packetloss::types::event_filter;
use netskoop_bpf::plain::{self, Plain};
use std::ops::RangeInclusive;

/// Ports and ranges of ports in a list at most.
const MAX_PORTS: usize = 64;
/// Patterns of entities in a list at most.
const MAX_ENTITIES: usize = 32;

const fn list(
    name: &'static str,
    max: usize,
    what: &'static str,
    check: fn(&str) -> bool,
    help: &'static str,
) -> OptionDecl {
    OptionDecl { name, kind: OptionType::List { default: &[], max, what, check }, help }
}

const A_PORT: &str = "a port number, or a range like 30000-32767";

/// Only these ports.
pub const PORTS: OptionDecl = list(
    "ports",
    MAX_PORTS,
    A_PORT,
    is_port,
    "Events only of packets and connections with one of these ports at either end; of all if empty. All are counted.",
);

/// All but these ports.
pub const IGNORE_PORTS: OptionDecl = list(
    "ignore_ports",
    MAX_PORTS,
    A_PORT,
    is_port,
    "No events for these ports at either end (health checks that close with a reset); they are still counted.",
);

/// Only these protocols.
pub const PROTOCOLS: OptionDecl = list(
    "protocols",
    64,
    A_PROTOCOL,
    is_protocol,
    "Events only of these protocols; of all if empty. All are counted.",
);

/// What a word for a protocol is.
pub const A_PROTOCOL: &str =
    "a protocol: tcp, udp, icmp, icmp6, sctp, dccp, gre, udplite, or a number up to 255";

/// What a word for entities is.
pub const AN_ENTITY: &str =
    "a name of an entity, or a pattern with *, also with its kind in front: shop/cart-7, pod/shop/*, unit/*";

/// Only these entities.
pub const ENTITIES: OptionDecl = list(
    "entities",
    MAX_ENTITIES,
    AN_ENTITY,
    is_entity,
    "Events only of these entities; of all if empty. Those of whose owner no sure name is known within 0.3 seconds pass as well.",
);

/// All but these entities.
pub const IGNORE_ENTITIES: OptionDecl = list(
    "ignore_entities",
    MAX_ENTITIES,
    AN_ENTITY,
    is_entity,
    "No events of these entities, with the same exception; they are still counted.",
);

/// Protocols that have names here.
const NAMED_PROTOCOLS: [(&str, u8); 8] = [
    ("tcp", 6),
    ("udp", 17),
    ("icmp", 1),
    ("icmp6", 58),
    ("sctp", 132),
    ("dccp", 33),
    ("gre", 47),
    ("udplite", 136),
];

/// The number of a protocol by its name, or by itself.
pub fn protocol_number(word: &str) -> Option<u8> {
    let known = NAMED_PROTOCOLS.iter().find(|(name, _)| *name == word);
    known.map(|(_, number)| *number).or_else(|| word.parse().ok().filter(|_| !word.starts_with('+')))
}

/// Whether a word means a protocol.
pub fn is_protocol(word: &str) -> bool {
    protocol_number(word).is_some()
}

/// Whether a word may mean entities.
pub fn is_entity(word: &str) -> bool {
    (1..=300).contains(&word.len()) && !word.chars().any(char::is_control)
}

/// A port, or several that follow each other.
fn ports(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let port = |word: &str| word.parse().ok().filter(|port| *port != 0 && !word.starts_with('+'));
    let range = port(first)?..=port(last)?;
    (!range.is_empty()).then_some(range)
}

fn is_port(word: &str) -> bool {
    ports(word).is_some()
}

/// Tells programs which events are wanted. Their place for it is the one that `filter.bpf.h` declares; each object has a type of
/// its own for it.
pub fn apply<F: Plain>(place: &mut F, settings: &Settings) {
    *place = plain::same(filter(settings));
}

fn filter(settings: &Settings) -> event_filter {
    let mut filter = event_filter::default();
    let words = |option: &OptionDecl| settings.list(option.name).iter().map(String::as_str);
    for port in words(&PORTS).filter_map(ports).flatten() {
        insert(&mut filter.ports, port.into());
        filter.by_port = 1;
    }
    for port in words(&IGNORE_PORTS).filter_map(ports).flatten() {
        insert(&mut filter.ignore_ports, port.into());
        filter.is_set = 1;
    }
    for protocol in words(&PROTOCOLS).filter_map(protocol_number) {
        insert(&mut filter.protocols, protocol.into());
        filter.by_protocol = 1;
    }
    filter.is_set |= filter.by_port | filter.by_protocol;
    filter
}

/// Puts a number into a set with a bit for each.
fn insert(set: &mut [u64], number: usize) {
    if let Some(word) = set.get_mut(number / 64) {
        *word |= 1 << (number % 64);
    }
}

/// Entities whose events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entities {
    wanted: Vec<String>,
    ignored: Vec<String>,
}

impl Entities {
    /// As a probe's options say.
    pub fn new(options: &Options) -> Entities {
        let words = |name| match options.get(name) {
            Some(OptionValue::List(words)) => words.clone(),
            _ => Vec::new(),
        };
        Entities { wanted: words(ENTITIES.name), ignored: words(IGNORE_ENTITIES.name) }
    }

    /// Only those that fit one of these patterns; all if there is none.
    pub fn only(wanted: Vec<String>) -> Entities {
        Entities { wanted, ignored: Vec::new() }
    }

    /// Whether this number stands for them.
    pub fn is_just(&self, inode: Option<u32>) -> bool {
        inode.is_some_and(|inode| self.wanted.iter().any(|word| word.parse() == Ok(inode)))
    }

    /// Whether all are wanted.
    pub fn are_all(&self) -> bool {
        self.wanted.is_empty() && self.ignored.is_empty()
    }

    /// Whether events of this entity are wanted. `None` is what no entity could be found for, which metrics call so as well.
    pub fn have(&self, entity: Option<&EntityRef>) -> bool {
        let name = entity.map_or("unattributed", |entity| &entity.name);
        let full = format!("{}/{name}", entity.map_or("unknown", |entity| entity.kind.as_str()));
        let pod = entity.and_then(|entity| entity.pod.as_deref());
        let is_meant = |pattern: &String| {
            let mut names = [Some(name), Some(&*full), pod].into_iter().flatten();
            names.any(|name| matches_pattern(pattern.as_bytes(), name.as_bytes()))
        };
        (self.wanted.is_empty() || self.wanted.iter().any(is_meant)) && !self.ignored.iter().any(is_meant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netskoop_api::Kind;

    fn words(words: &[&str]) -> OptionValue {
        OptionValue::List(words.iter().map(|word| (*word).to_owned()).collect())
    }

    fn of(options: &[(&'static str, &[&str])]) -> event_filter {
        let options = options.iter().map(|(name, list)| (*name, words(list))).collect();
        filter(&Settings { options, ..Settings::default() })
    }

    #[test]
    fn ports_are_numbers_and_ranges() {
        assert_eq!((ports("443"), ports("30000-32767")), (Some(443..=443), Some(30_000..=32_767)));
        assert_eq!((ports("7-7"), ports("1-65535")), (Some(7..=7), Some(1..=65_535)));
        for bad in ["", "0", "65536", "https", "9-8", "0-9", "1-", "-1", "1-2-3", "+1", " 1", "1 - 2"] {
            assert!(!is_port(bad), "{bad}");
        }
    }

    #[test]
    fn programs_are_told_what_is_wanted() {
        let none = of(&[]);
        assert_eq!((none.is_set, none.by_port, none.by_protocol), (0, 0, 0));
        assert!(none.ports.iter().chain(&none.ignore_ports).chain(&none.protocols).all(|word| *word == 0));
        let some = of(&[("ports", &["80", "8000-8999"]), ("protocols", &["tcp", "132"])]);
        assert_eq!((some.is_set, some.by_port, some.by_protocol), (1, 1, 1));
        assert_eq!(some.protocols, [1 << 6, 0, 1 << 4, 0]);
        let numbers = |set: &[u64]| {
            (0..set.len() * 64).filter(|bit| set[bit / 64] >> (bit % 64) & 1 == 1).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&some.ports), [80].into_iter().chain(8000..=8999).collect::<Vec<_>>());
        let not = of(&[("ignore_ports", &["65535", "1"])]);
        assert_eq!((numbers(&not.ignore_ports), not.is_set, not.by_port), (vec![1, 65_535], 1, 0));
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        assert_eq!((protocol_number("icmp6"), protocol_number("89")), (Some(58), Some(89)));
        assert!(!is_protocol("TCP") && !is_protocol("+6") && !is_protocol("256") && !is_protocol(""));
    }

    #[test]
    fn entities_are_meant_by_name_kind_and_pod() {
        let cart = EntityRef {
            kind: Kind::Pod,
            name: "shop/cart-7".into(),
            namespace: Some("shop".into()),
            pod: Some("cart-7".into()),
            netns: 5,
        };
        let blue = EntityRef { kind: Kind::Netns, name: "blue".into(), namespace: None, pod: None, netns: 6 };
        let have = |wanted: &[&str], ignored: &[&str], entity| {
            let options = [("entities", words(wanted)), ("ignore_entities", words(ignored))];
            Entities::new(&options.into()).have(entity)
        };
        for pattern in ["shop/cart-7", "cart-7", "pod/shop/cart-7", "pod/*", "shop/*", "*cart*", "*"] {
            assert!(have(&[pattern], &[], Some(&cart)), "{pattern}");
            assert!(!have(&[], &[pattern], Some(&cart)), "{pattern}");
        }
        for pattern in ["shop", "cart", "netns/*", "pod/", "SHOP/*", "shop/cart-7?"] {
            assert!(!have(&[pattern], &[], Some(&cart)), "{pattern}");
            assert!(have(&[], &[pattern], Some(&cart)), "{pattern}");
        }
        assert!(have(&["pod/shop/*", "blue"], &[], Some(&blue)));
        assert!(have(&["*"], &["pod/*"], Some(&blue)) && !have(&["*"], &["pod/*"], Some(&cart)));
        assert!(have(&["unknown/*"], &[], None) && !have(&["pod/*"], &[], None));
        assert!(have(&[], &[], None) && Entities::new(&Options::new()).are_all());
    }
}
