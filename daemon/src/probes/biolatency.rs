//! Requests to block devices: how long they took, and whose they were.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, HISTOGRAM, OptionDecl, OptionType, Points, Probe, TableDecl, histogram,
};
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::table::Table;
use netskoop_api::Value;
use netskoop_bpf::biolatency::{BiolatencySkel, BiolatencySkelBuilder, types};
use netskoop_bpf::plain;
use std::mem::MaybeUninit;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "biolatency",
    aliases: &[],
    summary: "How long requests to disks took, by entity, with the process that wanted them.",
    when: "Programs hang although CPU and network are idle, or a log or a database writes late.",
    finds: "A slow or overloaded disk, a neighbour that fills its queue, a cloud disk at its limit.",
    cost: Cost::Medium,
    needs: "BTF tracepoints block_getrq and block_rq_complete, the iterator over tasks, and the statistics of the device \
            (/sys/block/<device>/queue/iostats).",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(10),
            Duration::from_micros(10)..=Duration::from_secs(60),
            "A request that takes longer is an event.",
        ),
        OptionDecl {
            name: "per_device",
            kind: OptionType::Bool { default: false },
            help: "Shows each device on its own under netskoop_biolatency_device_*.",
        },
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[NATIVE],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl =
    TableDecl { name: "biolatency", keys: &["operation", "device"], columns: &HISTOGRAM, node: false };

static EVENTS: [EventDecl; 1] = [EventDecl {
    name: "BLOCK_IO_SLOW",
    aliases: &["BIOLAT_10MS", "BIOLAT_100MS"],
    fields: &["device", "operation", "latency_ns", "bytes"],
    help: "A request to a disk took longer than the option slow. The process is the one that wanted it; there is none where the \
           kernel writes later what somebody has left in memory.",
}];

/// In the order of `enum operation`.
const OPERATIONS: [&str; 3] = ["read", "write", "other"];

/// 64 and 256 microseconds, 1, 4, 16, 65 and 262 milliseconds, 1 second.
static BUCKETS: [Bucket; 8] = histogram::microseconds([5, 7, 9, 11, 13, 15, 17, 19]);

const NATIVE: &[Family] = &[
    Family::native(
        "netskoop_biolatency_request_seconds",
        "Time that requests to disks took, from when they were made to their end, as in the statistics of the device. What the \
         kernel writes later belongs to the cgroup that left it in memory, if there is cgroup v2 with the io controller, else to \
         the host. operation: read, write, or other, as to discard.",
        &TABLE,
        Points::Histogram(&BUCKETS),
    )
    .decimals(9)
    .keys(&[("operation", 0)])
    .fold()
    .core(),
    Family::native(
        "netskoop_biolatency_device_request_seconds",
        "Time that requests to disks took, by device.",
        &TABLE,
        Points::Histogram(&BUCKETS),
    )
    .decimals(9)
    .keys(&[("operation", 0), ("device", 1)])
    .core()
    .option("per_device"),
];

fn run(session: Session) -> Result<(), Refused> {
    session.tracepoint("block_rq_complete")?;
    let arguments = session.tracepoint("block_getrq")?;
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(BiolatencySkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        (rodata.probe, rodata.host_netns) = (session.number(), session.host_netns());
        rodata.daemon = std::process::id();
        rodata.arguments = u8::try_from(arguments).unwrap_or(u8::MAX);
    }
    session.run(open, apply, "tp_btf", &["counters"])
}

fn apply(skel: &mut BiolatencySkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    options.slow_ns = settings.nanoseconds("slow");
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::biolatency_event>(bytes)?;
    let operation = OPERATIONS.get(usize::try_from(event.operation).ok()?)?;
    let fields = vec![
        ("device", Value::Text(record::text(&event.device))),
        ("operation", Value::Text((*operation).to_owned())),
        ("latency_ns", Value::Number(event.latency_ns)),
        ("bytes", Value::Number(event.bytes.into())),
    ];
    Some(head.event(&EVENTS[0], None, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: types::biolatency_key = plain::read(key)?;
        let operation = *OPERATIONS.get(usize::try_from(key.operation).ok()?)?;
        let keys = [operation.into(), record::text(&key.device).into()];
        Some((counters.owner(key.netns, key.tenant, key.cookie)?, keys, value))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::features::Features;
    use std::path::Path;

    #[test]
    fn short_records_and_unknown_operations_are_refused() {
        let known = Known::new(Path::new("/nonexistent"), &Features::default());
        let mut whole = vec![0; size_of::<types::biolatency_event>()];
        assert_eq!(decode(&whole, &known).unwrap().process, None);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known).is_none(), "{length} bytes");
        }
        let at = std::mem::offset_of!(types::biolatency_event, operation);
        whole[at] = 3;
        assert!(decode(&whole, &known).is_none());
    }
}
