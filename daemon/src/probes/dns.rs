//! Questions to name servers: how long the answer took, and what it was.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, HISTOGRAM, OptionDecl, OptionType, Points, Probe, TableDecl, counter,
    histogram,
};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::table::Table;
use libbpf_rs::skel::Skel;
use netskoop_api::Value;
use netskoop_bpf::dns::{DnsSkelBuilder, types};
use netskoop_bpf::plain;
use std::cell::Cell;
use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "dns",
    aliases: &[],
    summary: "Questions to name servers over UDP: how long each answer took, failures by kind, and those without an answer.",
    when: "Programs are slow to connect, or say \"temporary failure in name resolution\" or \"no such host\" now and then.",
    finds: "A name server that is slow or does not answer (timeout), one that cannot (servfail, refused), names that do not exist \
            (nxdomain; search lists make many), lost packets: an answer that took 5 seconds was asked for twice.",
    cost: Cost::Low,
    needs: "The root of the unified hierarchy of cgroups (version 2), where programs for packets are attached. DNS over TCP, TLS or \
            HTTPS is not seen.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(500),
            Duration::from_millis(1)..=Duration::from_secs(60),
            "An answer that takes longer is an event.",
        ),
        OptionDecl {
            name: "timeout",
            kind: OptionType::Duration {
                default: Duration::from_secs(5),
                min: Duration::from_millis(100),
                max: Duration::from_secs(60),
            },
            help: "A question without an answer for so long is counted and told as one without; resolvers give up after 5 seconds.",
        },
        OptionDecl {
            name: "ports",
            kind: OptionType::List {
                default: &["53"],
                max: MAX_PORTS,
                what: "a number from 1 to 65535",
                check: is_port,
            },
            help: "Ports of name servers, as their packets have them on the wire.",
        },
        OptionDecl {
            name: "names",
            kind: OptionType::Bool { default: false },
            help: "Events tell the name and type that were asked for; metrics never do.",
        },
        OptionDecl {
            name: "nxdomain",
            kind: OptionType::Bool { default: false },
            help: "The answer that there is no such name is an event too; search lists make many of them.",
        },
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[NATIVE],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

/// As `PORTS` of `dns.bpf.c`.
const MAX_PORTS: usize = 8;

static MAPS: [CountersMap; 2] = [
    CountersMap { name: "counters", table: &RESULTS, fill },
    CountersMap { name: "latencies", table: &LATENCIES, fill: fill_latencies },
];

static RESULTS: TableDecl =
    TableDecl { name: "dns", keys: &["result"], columns: &[counter("questions")], node: false };

static LATENCIES: TableDecl =
    TableDecl { name: "dns_latencies", keys: &[], columns: &HISTOGRAM, node: false };

const FIELDS: &[&str] = &["rcode", "latency_ns", "qname", "qtype"];

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 3] = [
    EventDecl {
        name: "DNS_SLOW",
        aliases: &[],
        fields: FIELDS,
        help: "The answer of a name server, which is the destination, took longer than the option slow.",
    },
    EventDecl {
        name: "DNS_FAILED",
        aliases: &[],
        fields: FIELDS,
        help: "A name server answered that it failed. rcode: formerr, servfail, notimp, refused, other, and nxdomain with the option \
               of that name.",
    },
    EventDecl {
        name: "DNS_TIMEOUT",
        aliases: &[],
        fields: &["latency_ns", "qname", "qtype"],
        help: "A name server gave no answer within the option timeout; what comes later is not looked at.",
    },
];

/// 256 microseconds, 1, 4, 16, 65 and 262 milliseconds, 1 and 4 seconds.
static BUCKETS: [Bucket; 8] = histogram::microseconds([7, 9, 11, 13, 15, 17, 19, 21]);

const NATIVE: &[Family] = &[
    Family::native(
        "netskoop_dns_answer_seconds",
        "Time from a question to the answer of the name server over UDP; one that is asked again counts from the first time.",
        &LATENCIES,
        Points::Histogram(&BUCKETS),
    )
    .decimals(9)
    .core(),
    Family::native(
        "netskoop_dns_questions_total",
        "Questions to name servers over UDP by what came of them. result: noerror, formerr, servfail, nxdomain, notimp, refused, \
         other, timeout (no answer within the option timeout), or unfollowed (2048 questions of the entity's namespace were waiting for \
         an answer already, or there was no room for more of all).",
        &RESULTS,
        one(&RESULTS, "questions"),
    )
    .keys(&[("result", 0)])
    .core(),
];

/// By the codes of answers; those that are not listed are `OTHER`.
const RCODES: [&str; 6] = ["noerror", "formerr", "servfail", "nxdomain", "notimp", "refused"];
const OTHER: &str = "other";
/// As `TIMEOUT` and `UNFOLLOWED` of `dns.bpf.c`: no answer has these codes.
const TIMEOUT: u32 = 16;
const UNFOLLOWED: u32 = 17;

fn result(code: u32) -> &'static str {
    match code {
        TIMEOUT => "timeout",
        UNFOLLOWED => "unfollowed",
        code => usize::try_from(code).ok().and_then(|code| RCODES.get(code).copied()).unwrap_or(OTHER),
    }
}

fn port(word: &str) -> Option<u16> {
    word.parse().ok().filter(|port| *port > 0)
}

fn is_port(word: &str) -> bool {
    port(word).is_some()
}

fn run(session: Session) -> Result<(), Refused> {
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(DnsSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
    }
    let mut skel = session.load(open)?;
    let often = Cell::new(pause(session.settings()));
    apply(skel.maps.bss_data.as_deref_mut(), session.settings());
    let sweep = session.sweep(skel.object(), "on_sweep", "questions")?;
    let _links = session.attach_to_root_cgroup(skel.object())?;
    session.ready(skel.object(), "cgroup_skb", &["counters", "latencies", "shares"])?;
    let changed = |settings: &Settings| {
        often.set(pause(settings));
        apply(skel.maps.bss_data.as_deref_mut(), settings);
    };
    session.serve_every(changed, || {
        sweep.run_or_say("questions without an answer");
        often.get()
    });
    Ok(())
}

/// From one look for questions without an answer to the next.
fn pause(settings: &Settings) -> Duration {
    let timeout = Duration::from_nanos(settings.nanoseconds("timeout"));
    (timeout / 4).clamp(Duration::from_millis(25), Duration::from_secs(1))
}

fn apply(data: Option<&mut types::bss>, settings: &Settings) {
    let Some(options) = data.map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    options.slow_ns = settings.nanoseconds("slow");
    options.timeout_ns = settings.nanoseconds("timeout");
    options.names = settings.bool("names").into();
    options.nxdomain = settings.bool("nxdomain").into();
    let mut ports = settings.list("ports").iter().filter_map(|word| port(word));
    for place in &mut options.ports {
        *place = ports.next().unwrap_or(0);
    }
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::dns_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let mut fields = Vec::with_capacity(4);
    if u32::from(event.result) != TIMEOUT {
        fields.push(("rcode", Value::Text(result(event.result.into()).to_owned())));
    }
    fields.push(("latency_ns", Value::Number(event.latency_ns)));
    if let Some((name, kind)) = event.question.get(..usize::from(event.question_bytes)).and_then(question) {
        fields.push(("qname", Value::Text(name)));
        fields.push(("qtype", Value::Text(kind)));
    }
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(decl, tuple, fields, stack))
}

/// Longest name on the wire (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 255;
/// Longest part of it.
const LONGEST_LABEL: usize = 63;

/// The name and the type of a question as it is on the wire. `None` if it is none: whoever asked may have written anything.
fn question(bytes: &[u8]) -> Option<(String, String)> {
    let (mut name, mut rest) = (String::new(), bytes);
    loop {
        let (length, tail) = rest.split_first()?;
        let length = usize::from(*length);
        // In a question nothing is there yet that a name could point to.
        if length > LONGEST_LABEL || bytes.len() - tail.len() + length > LONGEST_NAME {
            return None;
        }
        let (label, tail) = tail.split_at_checked(length)?;
        rest = tail;
        if label.is_empty() {
            break;
        }
        label.iter().for_each(|byte| push(&mut name, *byte));
        name.push('.');
    }
    if name.is_empty() {
        name.push('.');
    }
    let kind = u16::from_be_bytes(*rest.first_chunk()?);
    Some((name, type_name(kind)))
}

/// As name servers write names: what is not plain is its number (RFC 1035, 5.1).
fn push(name: &mut String, byte: u8) {
    if byte.is_ascii_graphic() && !matches!(byte, b'.' | b'\\' | b'"') {
        name.push(char::from(byte));
    } else {
        // Writing to a string does not fail.
        let _ = write!(name, "\\{byte:03}");
    }
}

fn type_name(kind: u16) -> String {
    let name = match kind {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        43 => "DS",
        48 => "DNSKEY",
        64 => "SVCB",
        65 => "HTTPS",
        255 => "ANY",
        other => return format!("TYPE{other}"),
    };
    name.to_owned()
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    // Several codes are one row.
    counters.fill_rows(table, |key, value| {
        let key: types::dns_key = plain::read(key)?;
        Some(((counters.subject)(key.netns, key.cookie)?, [result(key.result).into()], value))
    });
}

fn fill_latencies(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_histograms(&[], table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::bpf::Entries;
    use crate::kernel::features::Features;
    use crate::table::Subject;
    use std::path::Path;

    fn known() -> Known {
        Known::new(Path::new("/nonexistent"), &Features::default())
    }

    fn wire(labels: &[&[u8]], kind: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in labels {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(*label);
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    fn text(bytes: &[u8]) -> Option<String> {
        question(bytes).map(|(name, kind)| format!("{name} {kind}"))
    }

    #[test]
    fn names_are_written_as_name_servers_do() {
        assert_eq!(text(&wire(&[b"www", b"example", b"org"], 28)).as_deref(), Some("www.example.org. AAAA"));
        assert_eq!(text(&wire(&[], 2)).as_deref(), Some(". NS"));
        assert_eq!(text(&wire(&[b"_sip", b"a-b"], 1234)).as_deref(), Some("_sip.a-b. TYPE1234"));
        let hostile = text(&wire(&[b"a.b\\\"", b"\x1b[2J\n", "ü".as_bytes(), b"\0 "], 1)).unwrap();
        assert_eq!(hostile, "a\\046b\\092\\034.\\027[2J\\010.\\195\\188.\\000\\032. A");
    }

    #[test]
    fn what_is_no_question_has_no_name() {
        let whole = wire(&[b"www", b"example"], 1);
        for length in 0..whole.len() - 2 {
            assert_eq!(text(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(text(&[0xc0, 12, 0, 1, 0, 1]), None, "a pointer");
        assert_eq!(text(&[64; 260]), None, "a label that is too long");
        let long = [b'x'; 63];
        assert_eq!(text(&wire(&[&long, &long, &long, &[b'x'; 61]], 1)).map(|text| text.len()), Some(256));
        assert_eq!(text(&wire(&[&long, &long, &long, &[b'x'; 62]], 1)), None, "a name that is too long");
    }

    #[test]
    fn codes_without_a_name_are_one_row() {
        let entry = |netns: u32, code: u32, count: u64| {
            let key = [netns, code, 0, 0].map(u32::to_ne_bytes).concat();
            (key, count.to_ne_bytes().to_vec())
        };
        let pairs = [entry(6, 3, 5), entry(6, 9, 1), entry(6, 15, 2), entry(5, TIMEOUT, 7), entry(99, 0, 1)];
        let (entries, options, memory) = (Entries::from_pairs(&pairs), Options::new(), Memory::default());
        let subject = |netns, _| (netns < 10).then_some(Subject(netns));
        let mut table = Table::new(&RESULTS, 100);
        fill(&Counters::new(&entries, &subject, &options, &memory), &known(), &mut table);
        let row = |row| (table.subject(row).0, table.key(row, 0), table.cell(row, 0));
        assert_eq!(table.len(), 3);
        assert_eq!(row(0), (5, &b"timeout"[..], Some(7)));
        assert_eq!(row(1), (6, &b"nxdomain"[..], Some(5)));
        assert_eq!(row(2), (6, &b"other"[..], Some(3)));
    }

    #[test]
    fn ports_are_numbers() {
        let good = ["53", "5353", "65535"];
        assert!(good.into_iter().all(is_port));
        assert!(!["0", "65536", "-1", "dns", ""].into_iter().any(is_port));
    }

    #[test]
    fn records_that_are_short_or_lie_are_refused() {
        let whole = vec![0; size_of::<types::dns_event>()];
        assert_eq!(decode(&whole, &known()).unwrap().decl.name, "DNS_SLOW");
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known()).is_none(), "{length} bytes");
        }
        let mut strange = whole;
        let at = std::mem::offset_of!(types::dns_event, question_bytes);
        strange[at..at + 2].copy_from_slice(&u16::MAX.to_ne_bytes());
        let event = decode(&strange, &known()).unwrap();
        assert!(event.fields.iter().all(|(field, _)| *field != "qname"), "{event:?}");
    }
}
