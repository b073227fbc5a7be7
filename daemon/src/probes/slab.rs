//! Probe `slab`: the kernel's caches of sockets.

use crate::declare::{Cost, Family, Only, Probe, Scope};
use crate::facts::{Cells, Fact, cells, fact, native, one};
use crate::sources::columns::SLAB;

const FACTS: [Fact; 5] = [
    fact(
        "active_objs",
        "netskoop_slab_active_objects",
        "Objects of the node in use, by cache (column active_objs of /proc/slabinfo).",
    )
    .alarm("sockets leak"),
    fact(
        "num_objs",
        "netskoop_slab_objects",
        "Objects of the node for which there is memory, by cache (column num_objs of /proc/slabinfo).",
    ),
    fact(
        "objsize",
        "netskoop_slab_object_size_bytes",
        "Bytes of one object, by cache (column objsize of /proc/slabinfo).",
    ),
    fact(
        "objperslab",
        "netskoop_slab_objects_per_slab",
        "Objects in one slab, by cache (column objperslab of /proc/slabinfo).",
    ),
    fact(
        "bytesperslab",
        "netskoop_slab_slab_size_bytes",
        "Bytes of one slab, by cache (column pagesperslab of /proc/slabinfo, which counts pages).",
    ),
];

static CELLS: [Cells; 5] = cells(&SLAB, &FACTS);
static NATIVE: [Family; 5] = by_cache(native(&SLAB, &FACTS, &CELLS));

const fn by_cache<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].keys(&[("cache", 0)]);
        i += 1;
    }
    families
}

/// The first exporter knew the cache of TCP sockets only, and showed the number of the node under every pod.
const fn of_tcp(name: &'static str, help: &'static str, column: &str) -> Family {
    Family::inspector(name, help, &SLAB, one(&SLAB, column))
        .only(Only { key: 0, values: &["TCP"], include: true })
        .fold()
        .scope(Scope::Repeat)
}

static INSPECTOR: [Family; 5] = [
    of_tcp(
        "inspector_pod_slabtcpslabobjperslab",
        "TCP sockets in one slab (column objperslab of /proc/slabinfo).",
        "objperslab",
    ),
    of_tcp(
        "inspector_pod_slabtcpslabpagesperslab",
        "Pages of one slab of TCP sockets (column pagesperslab of /proc/slabinfo).",
        "pagesperslab",
    ),
    of_tcp(
        "inspector_pod_slabtcpslabobjactive",
        "TCP sockets of the node in use (column active_objs of /proc/slabinfo).",
        "active_objs",
    ),
    of_tcp(
        "inspector_pod_slabtcpslabobjnum",
        "TCP sockets of the node for which there is memory (column num_objs of /proc/slabinfo).",
        "num_objs",
    ),
    of_tcp(
        "inspector_pod_slabtcpslabobjsize",
        "Bytes of one TCP socket (column objsize of /proc/slabinfo).",
        "objsize",
    ),
];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "slab",
    aliases: &[],
    summary: "Memory of the kernel for sockets of the node, by cache.",
    when: "When the kernel's memory grows and sockets may be the cause.",
    finds: "Socket leaks that no namespace shows, because their owners are gone.",
    cost: Cost::Medium,
    needs: "/proc/slabinfo, which only root may read and which takes the kernel a millisecond.",
    default_on: false,
    section: None,
    options: &[],
    families: &[&NATIVE, &INSPECTOR],
    events: &[],
    hooks: None,
};
