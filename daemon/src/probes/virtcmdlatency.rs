//! Commands to virtual network devices: how long their driver waited for the answer.

use crate::declare::{
    Bucket, Column, Cost, EventDecl, Family, HISTOGRAM, OptionDecl, OptionType, Points, Probe, TableDecl,
    counter, histogram,
};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::kernel::ways::{self, Way};
use crate::table::Table;
use libbpf_rs::skel::OpenSkel;
use netskoop_api::Value;
use netskoop_bpf::plain;
use netskoop_bpf::virtcmdlatency::{VirtcmdlatencySkel, VirtcmdlatencySkelBuilder, types};
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "virtcmdlatency",
    aliases: &["virtcmdlat", "virtsendcmdlat"],
    summary: "How long commands to virtual network devices (virtio_net) took, during which a CPU does nothing else.",
    when: "On a virtual machine all traffic stops for some milliseconds now and then, mostly when pods come or go.",
    finds: "A host of virtual machines that is slow to answer its guests, or a program that changes addresses, filters or queues too often.",
    cost: Cost::Low,
    needs: "The driver virtio_net, and fentry or kprobes.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(10),
            Duration::from_micros(1)..=Duration::from_secs(60),
            "A command that takes longer is an event.",
        ),
        OptionDecl {
            name: "stack",
            kind: OptionType::Bool { default: false },
            help: "Adds the kernel stack to each event, which costs several microseconds each: what the command was for.",
        },
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[NATIVE, KUBESKOOP, INSPECTOR],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl =
    TableDecl { name: "virtcmdlatency", keys: &["device"], columns: &COLUMNS, node: false };

/// A histogram, and what the older systems counted beside it.
static COLUMNS: [Column; HISTOGRAM.len() + 2] = {
    let mut columns = [counter("slow_100ms"); HISTOGRAM.len() + 2];
    let mut at = 0;
    while at < HISTOGRAM.len() {
        columns[at] = HISTOGRAM[at];
        at += 1;
    }
    columns[at] = counter("slow");
    columns
};

static EVENTS: [EventDecl; 1] = [EventDecl {
    name: "VIRTIO_COMMAND_SLOW",
    aliases: &["VIRTCMDEXCUTE", "VIRTCMDEXCUTE_100MS"],
    fields: &["device", "class", "command", "cpu", "latency_ns"],
    help: "A command to a virtual network device took longer than the option slow. class and command as in the specification of \
           virtio; the process is the one that waited for the answer, with some kernels a thread of the kernel itself.",
}];

/// 16, 64 and 256 microseconds, 1, 8, 33, 131 and 524 milliseconds.
static BUCKETS: [Bucket; 8] = histogram::microseconds([3, 5, 7, 9, 12, 14, 16, 18]);

/// Classes of commands, by their numbers in the specification.
const CLASSES: [&str; 7] = ["rx", "mac", "vlan", "announce", "mq", "guest_offloads", "notf_coal"];

const NATIVE: &[Family] = &[Family::native(
    "netskoop_virtcmdlatency_command_seconds",
    "Time that commands to virtual network devices took, by device, under the name of whoever has the device.",
    &TABLE,
    Points::Histogram(&BUCKETS),
)
.decimals(9)
.keys(&[("device", 0)])
.core()];

const SLOW: Points = one(&TABLE, "slow");
const SLOW_100MS: Points = one(&TABLE, "slow_100ms");
const SLOW_HELP: &str = "Commands to virtual network devices that took 10 ms or longer.";
const SLOW_100MS_HELP: &str = "Commands to virtual network devices that took 100 ms or longer.";
const SLOTS_HELP: &str = "Commands to virtual network devices by the time that they took; le is the binary logarithm of the microseconds.";

const KUBESKOOP: &[Family] = &[
    Family::kubeskoop("kubeskoop_virtcmdlatency_latency", SLOW_HELP, &TABLE, SLOW).fold(),
    Family::kubeskoop("kubeskoop_virtcmdlatency_latency100ms", SLOW_100MS_HELP, &TABLE, SLOW_100MS).fold(),
];

const INSPECTOR: &[Family] = &[
    Family::inspector("inspector_pod_virtcmdlatency", SLOW_HELP, &TABLE, SLOW).fold(),
    Family::inspector("inspector_pod_virtcmdlatency100ms", SLOW_100MS_HELP, &TABLE, SLOW_100MS).fold(),
    Family::inspector("inspector_node_virtcmdlatency", SLOW_HELP, &TABLE, SLOW).fold(),
    Family::inspector("inspector_node_virtcmdlatency100ms", SLOW_100MS_HELP, &TABLE, SLOW_100MS).fold(),
    Family::inspector("inspector_node_virtsendcmdlat", SLOTS_HELP, &TABLE, Points::Slots).fold(),
    Family::inspector("inspector_pod_virtsendcmdlat", SLOTS_HELP, &TABLE, Points::Slots).fold(),
];

/// Since the driver takes answers with data (6.10) all commands go through a function with another name, of which the old
/// one is a part.
static WAYS: [Way; 4] = [
    Way::new("fentry", &["fentry_reply", "fexit_reply"]),
    Way::new("kprobe", &["kprobe_reply", "kretprobe_reply"]),
    Way::new("fentry", &["fentry_command", "fexit_command"]),
    Way::new("kprobe", &["kprobe_command", "kretprobe_command"]),
];

/// Where the kernel shows the driver, loaded or built in.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";

fn run(session: Session) -> Result<(), Refused> {
    if !Path::new(DRIVER).exists() {
        return Err(Refused::NotHere("there is no driver virtio_net here".to_owned()));
    }
    let ways: Vec<&Way> = WAYS.iter().collect();
    let Ok(way) = session.choose::<VirtcmdlatencySkelBuilder>(&ways) else {
        let sentence = "this kernel takes neither fentry nor kprobes in the driver virtio_net, and it has no tracepoints";
        return Err(Refused::NotHere(sentence.to_owned()));
    };
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(VirtcmdlatencySkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
    }
    ways::load_only(open.open_object_mut(), &[way]);
    session.run(open, apply, way.via, &["counters"])
}

fn apply(skel: &mut VirtcmdlatencySkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    options.slow_ns = settings.nanoseconds("slow");
    options.stack = settings.bool("stack").into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::virtcmdlatency_event>(bytes)?;
    let class = CLASSES.get(usize::from(event.class));
    let fields = vec![
        ("device", Value::Text(record::text(&event.device))),
        ("class", Value::Text(class.map_or_else(|| event.class.to_string(), |class| (*class).to_owned()))),
        ("command", Value::Number(event.command.into())),
        ("cpu", Value::Number(event.cpu.into())),
        ("latency_ns", Value::Number(event.latency_ns)),
    ];
    Some(head.event(&EVENTS[0], None, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: types::virtcmdlatency_key = plain::read(key)?;
        Some(((counters.subject)(key.netns, key.cookie)?, [record::text(&key.device).into()], value))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::bpf::Entries;
    use crate::kernel::features::Features;
    use crate::table::Subject;

    // The kernel's values and the columns that show them are alike.
    const _: () = assert!(size_of::<types::virtcmdlatency_value>() == COLUMNS.len() * size_of::<u64>());

    fn known() -> Known {
        Known::new(Path::new("/nonexistent"), &Features::default())
    }

    #[test]
    fn commands_are_by_device_and_the_older_counts_are_the_last_columns() {
        let mut key = [5_u32, 0].map(u32::to_ne_bytes).concat();
        key.extend(b"eth0\0\0\0\0\0\0\0\0\0\0\0\0");
        key.extend(9_u64.to_ne_bytes());
        assert_eq!(key.len(), size_of::<types::virtcmdlatency_key>());
        let mut value = [0_u64; COLUMNS.len()];
        (value[0], value[16], value[COLUMNS.len() - 2], value[COLUMNS.len() - 1]) = (36_000_000, 1, 1, 0);
        let pairs = [(key, value.map(u64::to_ne_bytes).concat())];
        let (entries, memory, options) = (Entries::from_pairs(&pairs), Memory::default(), Options::new());
        let subject = |netns, _| Some(Subject(netns));
        let mut table = Table::new(&TABLE, 10);
        fill(&Counters::new(&entries, &subject, &options, &memory), &known(), &mut table);
        assert_eq!((table.subject(0), table.key(0, 0)), (Subject(5), &b"eth0"[..]));
        let shown = |points: Points| table.cell(0, points.columns().next().unwrap());
        assert_eq!((shown(SLOW), shown(SLOW_100MS)), (Some(1), Some(0)));
        assert_eq!((table.cell(0, 0), table.cell(0, 16)), (Some(36_000_000), Some(1)));
    }

    #[test]
    fn short_records_are_refused_and_unknown_classes_are_numbers() {
        let mut whole = vec![0; size_of::<types::virtcmdlatency_event>()];
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known()).is_none(), "{length} bytes");
        }
        let class = |bytes: &[u8]| decode(bytes, &known()).unwrap().fields[1].1.clone();
        assert_eq!(class(&whole), Value::Text("rx".to_owned()));
        whole[std::mem::offset_of!(types::virtcmdlatency_event, class)] = 8;
        assert_eq!(class(&whole), Value::Text("8".to_owned()));
    }
}
