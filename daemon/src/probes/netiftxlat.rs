//! How long packets wait in the queue of an interface, and how long its driver takes to send them.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, LATENCY, Only, OptionDecl, OptionType, Points, Probe, TableDecl, column,
    histogram,
};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent, add_up};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::retired::Retired;
use crate::table::Table;
use libbpf_rs::skel::Skel;
use netskoop_api::Value;
use netskoop_bpf::netiftxlat::{NetiftxlatSkel, NetiftxlatSkelBuilder, types};
use netskoop_bpf::plain;
use std::borrow::Cow;
use std::mem::{MaybeUninit, offset_of};
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "netiftxlat",
    aliases: &["netiftxlatency"],
    summary: "How long packets wait in the queue of an interface, and how long its driver takes to send them.",
    when: "Answers are late now and then, and the packets leave this node late.",
    finds: "A shaper or a queue that is too long (qdisc), a network card or its host that does not keep up (qdisc), a tunnel or \
            bridge on whose way out is a slow packet filter (driver).",
    cost: Cost::High,
    needs: "BTF tracepoints net_dev_queue, net_dev_start_xmit and net_dev_xmit.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(100),
            Duration::from_micros(1)..=Duration::from_secs(60),
            "A packet that waits longer in the queue, or that the driver takes longer for, is an event.",
        ),
        OptionDecl {
            name: "per_device",
            kind: OptionType::Bool { default: false },
            help: "Shows each interface on its own under netskoop_netiftxlat_device_*; from when it is set. Of each namespace 128 \
                   interfaces at once, the others together as other; one that has sent nothing for ten minutes makes room, and \
                   begins anew if it sends again.",
        },
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::PROTOCOLS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[NATIVE, KUBESKOOP, INSPECTOR],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

/// Both tables are in one map: each of its values has one `struct latency` for the queue and one for the driver.
static MAPS: [CountersMap; 2] = [
    CountersMap { name: "counters", table: &QDISC, fill: fill_qdisc },
    CountersMap { name: "counters", table: &DRIVER, fill: fill_driver },
];

static QDISC: TableDecl = TableDecl { name: "netiftxlat", keys: &["device"], columns: &LATENCY, node: false };

static DRIVER: TableDecl =
    TableDecl { name: "netiftxlat_driver", keys: &["device"], columns: &LATENCY, node: false };

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 2] = [
    EventDecl {
        name: "NETIFTXLAT_QDISC",
        aliases: &["TXLAT_QDISC_100MS"],
        fields: &["device", "latency_ns"],
        help: "A packet had to wait in the queue of the interface for longer than the option slow.",
    },
    EventDecl {
        name: "NETIFTXLAT_XMIT",
        aliases: &["TXLAT_NETDEV_100MS"],
        fields: &["device", "latency_ns"],
        help: "The driver of the interface took longer than the option slow to send a packet. A tunnel or bridge is a driver \
               too, and all that it does with the packet is in that time.",
    },
];

/// 16, 128 and 512 microseconds, 2, 8, 33, 131 and 524 milliseconds.
static BUCKETS: [Bucket; 8] = histogram::microseconds([3, 6, 8, 10, 12, 14, 16, 18]);

const WAITED: &str = "Time that packets waited in the queue of an interface. Interfaces without a queue are left out, as most of \
                      those of containers are. Of TCP segments that were cut on the way it is the time since TCP sent them.";
const SENT: &str =
    "Time that drivers took to send a packet; of tunnels and bridges with all that they do with it.";

const fn all(name: &'static str, help: &'static str, table: &'static TableDecl) -> Family {
    Family::native(name, help, table, Points::Histogram(&BUCKETS)).decimals(9).core().fold()
}

/// What was counted before each interface was counted on its own has no name, nor has what was counted of those that are gone.
const fn by_device(name: &'static str, help: &'static str, table: &'static TableDecl) -> Family {
    let named = Only { key: 0, values: &[""], include: false };
    Family::native(name, help, table, Points::Histogram(&BUCKETS))
        .decimals(9)
        .core()
        .keys(&[("device", 0)])
        .only(named)
        .option("per_device")
}

const UNMEASURED: &str =
    "Packets of which it is not known how long they waited (stage qdisc) or how long the driver took.";

const UNMEASURED_QDISC: &[(&str, u16)] = &[("stage=\"qdisc\"", column(&QDISC, "unmeasured"))];
const UNMEASURED_DRIVER: &[(&str, u16)] = &[("stage=\"driver\"", column(&DRIVER, "unmeasured"))];

const NATIVE: &[Family] = &[
    all("netskoop_netiftxlat_qdisc_seconds", WAITED, &QDISC),
    all("netskoop_netiftxlat_driver_seconds", SENT, &DRIVER),
    by_device(
        "netskoop_netiftxlat_device_qdisc_seconds",
        "Time that packets waited in the queue of an interface, by interface.",
        &QDISC,
    ),
    by_device(
        "netskoop_netiftxlat_device_driver_seconds",
        "Time that a driver took to send a packet, by interface.",
        &DRIVER,
    ),
    Family::native(
        "netskoop_netiftxlat_unmeasured_packets_total",
        UNMEASURED,
        &QDISC,
        Points::Cells(UNMEASURED_QDISC),
    )
    .fold(),
    Family::native(
        "netskoop_netiftxlat_unmeasured_packets_total",
        UNMEASURED,
        &DRIVER,
        Points::Cells(UNMEASURED_DRIVER),
    )
    .fold(),
    Family::native(
        "netskoop_netiftxlat_skipped_packets_total",
        "Packets that came into a queue and could not be followed, because another one that is still waiting had their place.",
        &QDISC,
        one(&QDISC, "skipped"),
    )
    .fold(),
];

const QDISC_100MS: Points = one(&QDISC, "slow_100ms");
const DRIVER_100MS: Points = one(&DRIVER, "slow_100ms");

const QDISC_100MS_HELP: &str = "Packets that waited 100 ms or longer in the queue of an interface.";
const DRIVER_100MS_HELP: &str = "Packets that a driver took 100 ms or longer for.";

const KUBESKOOP: &[Family] = &[
    Family::kubeskoop("kubeskoop_netiftxlat_qdiscslow100ms", QDISC_100MS_HELP, &QDISC, QDISC_100MS).fold(),
    Family::kubeskoop("kubeskoop_netiftxlat_netdevslow100ms", DRIVER_100MS_HELP, &DRIVER, DRIVER_100MS)
        .fold(),
];

const INSPECTOR: &[Family] = &[
    Family::inspector("inspector_pod_netiftxlat_qdiscslow100ms", QDISC_100MS_HELP, &QDISC, QDISC_100MS)
        .fold(),
    Family::inspector("inspector_pod_netiftxlat_netdevslow100ms", DRIVER_100MS_HELP, &DRIVER, DRIVER_100MS)
        .fold(),
];

fn run(session: Session) -> Result<(), Refused> {
    for name in ["net_dev_queue", "net_dev_start_xmit", "net_dev_xmit"] {
        session.tracepoint(name)?;
    }
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(NetiftxlatSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
    }
    let (mut skel, _links) = session.hook(open, apply)?;
    let sweep = session.sweep(skel.object(), "on_sweep", "counters")?;
    session.ready(skel.object(), "tp_btf", &["counters", "shares"])?;
    session.serve_every(
        |settings| apply(&mut skel, settings),
        || {
            sweep.run_or_say("interfaces that send nothing any more");
            OFTEN
        },
    );
    Ok(())
}

/// From one look for interfaces that send nothing any more to the next.
const OFTEN: Duration = Duration::from_secs(30);

fn apply(skel: &mut NetiftxlatSkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.slow_ns = settings.nanoseconds("slow");
    options.stack = settings.bool("stack").into();
    options.per_device = settings.bool("per_device").into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::netiftxlat_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let device = device(bytes.get(offset_of!(types::netiftxlat_event, device)..)?);
    let fields = vec![
        ("device", Value::Text(String::from_utf8_lossy(device).into_owned())),
        ("latency_ns", Value::Number(event.latency_ns)),
    ];
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(decl, tuple, fields, stack))
}

/// The name of an interface at the beginning of these bytes.
fn device(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.get(..16).unwrap_or(bytes);
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn fill_qdisc(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    fill(counters, 0, table);
}

fn fill_driver(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    fill(counters, 1, table);
}

/// Words of one part of a value.
const WORDS: usize = LATENCY.len();

/// A row for each interface that has numbers in this part of the values. Both parts are read at once, so that it makes no
/// difference which of them is asked for.
fn fill(counters: &Counters<'_>, part: usize, table: &mut Table) {
    counters.memory.own(|read: &mut Retired| {
        read.enter(counters, 2 * WORDS, |_| true);
        let there = read.entries().filter_map(|(bytes, _, value)| {
            let key: types::netiftxlat_key = plain::read(bytes)?;
            Some(((key.netns, key.cookie), name(bytes, &key)?, value))
        });
        let gone = read.sums().map(|(netns, sum)| (netns, "".into(), sum));
        let rows = there.chain(gone).filter_map(|((netns, cookie), name, value)| {
            let value = value.chunks_exact(WORDS * size_of::<u64>()).nth(part)?;
            let counted = value.iter().any(|byte| *byte > 0);
            Some(((counters.subject)(netns, cookie).filter(|_| counted)?, [name], value))
        });
        add_up(table, rows.collect());
    });
}

/// What an interface is shown as.
fn name<'a>(bytes: &'a [u8], key: &types::netiftxlat_key) -> Option<Cow<'a, str>> {
    if key.is_rest != 0 {
        return Some("other".into());
    }
    let device = device(bytes.get(offset_of!(types::netiftxlat_key, device)..)?);
    Some(String::from_utf8_lossy(device))
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

    /// What stands for the interfaces beyond the share; no interface has such a name.
    const REST: &str = "/";

    fn entry(netns: u32, device: &str, queue: u64, driver: u64) -> (Vec<u8>, Vec<u8>) {
        let rest = device == REST;
        let mut key = [netns, rest.into()].map(u32::to_ne_bytes).concat();
        key.extend_from_slice(if rest { b"" } else { device.as_bytes() });
        key.resize(size_of::<types::netiftxlat_key>(), 0);
        // The last word is when something was counted.
        let mut value = vec![0_u64; 2 * LATENCY.len() + 1];
        value[0] = queue;
        value[LATENCY.len()] = driver;
        (key, value.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }

    #[test]
    fn each_part_of_a_value_fills_its_table() {
        let pairs = [entry(7, "eth0", 0, 5), entry(5, "", 1, 2), entry(7, "c1", 3, 4), entry(99, "", 9, 9)];
        let (entries, options, memory) = (Entries::from_pairs(&pairs), Options::new(), Memory::default());
        let subject = |netns, _| (netns < 10).then_some(Subject(netns));
        let counters = Counters::new(&entries, &subject, &options, &memory);
        let filled = |decl, fill: fn(&Counters<'_>, &Known, &mut Table)| {
            let mut table = Table::new(decl, 100);
            fill(&counters, &known(), &mut table);
            let row = |row| (table.subject(row).0, table.key(row, 0).to_vec(), table.cell(row, 0).unwrap());
            (0..table.len()).map(row).collect::<Vec<_>>()
        };
        // An interface without a queue has no row there.
        assert_eq!(filled(&QDISC, fill_qdisc), [(5, vec![], 1), (7, b"c1".to_vec(), 3)]);
        let driver = [(5, vec![], 2), (7, b"c1".to_vec(), 4), (7, b"eth0".to_vec(), 5)];
        assert_eq!(filled(&DRIVER, fill_driver), driver);
    }

    #[test]
    fn the_sum_does_not_fall_with_interfaces_that_are_gone_and_their_series_end() {
        let (options, memory) = (Options::new(), Memory::default());
        let subject = |netns, _| (netns < 10).then_some(Subject(netns));
        let rows = |decl, fill: fn(&Counters<'_>, &Known, &mut Table), pairs: &[_]| {
            let (entries, mut table) = (Entries::from_pairs(pairs), Table::new(decl, 100));
            fill(&Counters::new(&entries, &subject, &options, &memory), &known(), &mut table);
            let text = |row| String::from_utf8(table.key(row, 0).to_vec()).unwrap();
            (0..table.len()).map(|row| (text(row), table.cell(row, 0).unwrap())).collect::<Vec<_>>()
        };
        let driver = |pairs: &[_]| rows(&DRIVER, fill_driver, pairs);
        let row = |device: &str, number| (device.to_owned(), number);
        let eth0 = entry(5, "eth0", 1, 100);
        let all = [eth0.clone(), entry(5, "veth1", 7, 10), entry(5, "veth2", 0, 20), entry(5, REST, 0, 3)];
        let wanted = [row("eth0", 100), row("other", 3), row("veth1", 10), row("veth2", 20)];
        assert_eq!(driver(&all), wanted);
        assert_eq!(driver(&all[..3]), [row("", 3), row("eth0", 100), row("veth1", 10), row("veth2", 20)]);
        // Those that are gone have no series: what has no name is in the sums only.
        assert_eq!(driver(&all[..1]), [row("", 33), row("eth0", 100)]);
        assert_eq!(driver(&[eth0.clone(), entry(5, "veth1", 0, 1)])[..2], [row("", 33), row("eth0", 100)]);
        // It was asked for the first time after they had gone.
        assert_eq!(rows(&QDISC, fill_qdisc, &[eth0]), [row("", 7), row("eth0", 1)]);
        assert!(driver(&[]).iter().map(|(_, number)| number).sum::<u64>() == 134);
    }

    #[test]
    fn short_records_and_unknown_kinds_are_refused() {
        let mut whole = vec![0; size_of::<types::netiftxlat_event>()];
        assert_eq!(decode(&whole, &known()).unwrap().decl.name, "NETIFTXLAT_QDISC");
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known()).is_none(), "{length} bytes");
        }
        let kind = offset_of!(types::event_head, kind);
        whole[kind] = 2;
        assert!(decode(&whole, &known()).is_none());
    }
}
