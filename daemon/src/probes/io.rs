//! Probe `io`: what the processes of each entity read and write.

use crate::declare::{Column, Cost, Family, Kind, Probe, TableDecl};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native};
use crate::hooks::{Counters, CountersMap, Hooks, Known, no_events};
use crate::kernel::bpf::{Refused, Session};
use crate::table::Table;
use netskoop_bpf::io::IoSkelBuilder;
use std::mem::MaybeUninit;

const fn counter(key: &'static str) -> Column {
    Column { key, kind: Kind::Counter }
}

/// In the order of the program.
static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl = TableDecl {
    name: "io",
    keys: &[],
    columns: &[
        counter("syscr"),
        counter("syscw"),
        counter("rchar"),
        counter("wchar"),
        counter("read_bytes"),
        counter("write_bytes"),
    ],
    node: false,
};

const FACTS: [Fact; 4] = [
    fact(
        "syscr",
        "netskoop_io_read_calls_total",
        "Calls of read() and the like, by all processes; those that ended while the probe was on stay in it (syscr of /proc/<pid>/io).",
    )
    .old("kubeskoop_io_readsyscall", "inspector_pod_ioioreadsyscall"),
    fact(
        "syscw",
        "netskoop_io_write_calls_total",
        "Calls of write() and the like, by all processes; those that ended while the probe was on stay in it (syscw of /proc/<pid>/io).",
    )
    .old("kubeskoop_io_writesyscall", "inspector_pod_ioiowritesyscall"),
    fact(
        "read_bytes",
        "netskoop_io_disk_read_bytes_total",
        "Bytes that all processes had read from disks; those that ended while the probe was on stay in it (read_bytes of /proc/<pid>/io).",
    )
    .old("kubeskoop_io_readbytes", "inspector_pod_ioioreadbytes"),
    fact(
        "write_bytes",
        "netskoop_io_disk_written_bytes_total",
        "Bytes that all processes had written towards disks; those that ended while the probe was on stay in it (write_bytes of /proc/<pid>/io).",
    )
    .old("kubeskoop_io_writebytes", "inspector_pod_ioiowritebyres"),
];

const MORE: [Fact; 2] = [
    fact(
        "rchar",
        "netskoop_io_read_bytes_total",
        "Bytes that read() and the like gave to all processes, from files, pipes and some sockets alike; those that ended while the probe was on stay in it (rchar of /proc/<pid>/io).",
    ),
    fact(
        "wchar",
        "netskoop_io_written_bytes_total",
        "Bytes that all processes gave to write() and the like, to files, pipes and some sockets alike; those that ended while the probe was on stay in it (wchar of /proc/<pid>/io).",
    ),
];

const fn core<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].core();
        i += 1;
    }
    families
}

const fn hybrid(name: &'static str, of: usize) -> Family {
    let family = kubeskoop(&TABLE, &FACTS)[of];
    Family { name, ..family }
}

static CELLS: [Cells; 4] = cells(&TABLE, &FACTS);
static MORE_CELLS: [Cells; 2] = cells(&TABLE, &MORE);
static NATIVE: [Family; 4] = core(native(&TABLE, &FACTS, &CELLS));
static NATIVE_MORE: [Family; 2] = core(native(&TABLE, &MORE, &MORE_CELLS));
static KUBESKOOP: [Family; 4] = kubeskoop(&TABLE, &FACTS);
/// Names that are in the older system's documents, and that no release of it ever had.
static HYBRID: [Family; 4] = [
    hybrid("kubeskoop_io_ioreadsyscall", 0),
    hybrid("kubeskoop_io_iowritesyscall", 1),
    hybrid("kubeskoop_io_ioreadbytes", 2),
    hybrid("kubeskoop_io_iowritebytes", 3),
];
static INSPECTOR: [Family; 4] = inspector(&TABLE, &FACTS);

/// The probe.
pub static PROBE: Probe = Probe {
    name: "io",
    aliases: &[],
    summary: "Read and write calls and bytes of the processes of each entity, host-network pods among them.",
    when: "When a container is slow and may be busy with files or disks, or writes more than it should.",
    finds: "Processes that read or write all the time, in many small calls or in bulk.",
    cost: Cost::Low,
    needs: "BTF tracepoint sched_process_exit and the iterator over tasks; Linux 5.12.",
    default_on: false,
    section: None,
    options: &[],
    families: &[&NATIVE, &NATIVE_MORE, &KUBESKOOP, &HYBRID, &INSPECTOR],
    events: &[],
    hooks: Some(Hooks { run, decode: no_events, maps: &MAPS, optional: false }),
};

fn run(session: Session) -> Result<(), Refused> {
    session.tracepoint("sched_process_exit")?;
    session.task_storage()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(IoSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        (rodata.probe, rodata.host_netns) = (session.number(), session.host_netns());
        rodata.daemon = std::process::id();
    }
    session.run(open, |_, _| {}, "tp_btf", &["counters"])
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_usage::<6>(table);
}
