//! Bytes and packets that go through interfaces, by connection or by pair of addresses.

use crate::declare::{
    Cost, Family, OptionDecl, OptionType, Points, Probe, TableDecl, column, counter, is_interface_pattern,
};
use crate::facts::one;
use crate::flows::ledger::{Flow, Ledger, Limits};
use crate::flows::{self, Count, Total};
use crate::hooks::{Counters, CountersMap, Hooks, Known, no_events};
use crate::kernel::bpf::{Entries, Refused, Session, Settings, delete_where, io_error};
use crate::kernel::netlink::{self, Netlink};
use crate::kernel::record;
use crate::kernel::tc::{MAX_DEVICES, Taps};
use crate::table::{Subject, Table};
use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapHandle};
use netskoop_bpf::flow::{FlowSkel, FlowSkelBuilder, types};
use netskoop_bpf::plain;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::iter;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

/// The probe.
pub static PROBE: Probe = Probe {
    name: "flow",
    aliases: &[],
    summary: "Bytes and packets through the node's interfaces, by pair of addresses or by connection, for the largest of them.",
    when: "An interface is busy, and it is not known who talks to whom.",
    finds: "The client or service that takes the bandwidth, traffic that goes where it should not, a backup in the wrong hour.",
    cost: Cost::Medium,
    needs: "Programs on interfaces: tcx (Linux 6.6), else filters of tc (modules sch_ingress and cls_bpf, which are not loaded).",
    default_on: false,
    section: None,
    options: &[
        OptionDecl {
            name: DEVICES,
            kind: OptionType::List {
                default: &[],
                max: 16,
                what: "an interface name or a pattern with *",
                check: is_interface_pattern,
            },
            help: "Interfaces of the node's own namespace that are watched, also those that come later: names, or patterns \
                   with * (at most 512 interfaces). Without any: those of the default routes.",
        },
        OptionDecl {
            name: PORTS,
            kind: OptionType::Bool { default: false },
            help: "Counts by connection (with ports) and not only by pair of addresses.",
        },
        OptionDecl {
            name: flows::MAX_OPTION.name,
            kind: OptionType::Integer { default: 50, min: 1, max: 1000 },
            help: "So many have series of their own, those with the most bytes; the rest is src=\"other\".",
        },
    ],
    families: &[NATIVE, KUBESKOOP],
    events: &[],
    hooks: Some(Hooks { run, decode: no_events, maps: &MAPS, optional: false }),
};

const DEVICES: &str = "devices";
const PORTS: &str = "ports";

static MAPS: [CountersMap; 2] = [
    CountersMap { name: "totals", table: &TABLE, fill },
    CountersMap { name: "totals", table: &TOTALS, fill: fill_totals },
];

static TABLE: TableDecl = TableDecl {
    name: "flow",
    keys: &["device", "direction", "protocol", "src", "sport", "dst", "dport"],
    columns: &[counter("bytes"), counter("packets")],
    node: false,
};

static TOTALS: TableDecl = TableDecl {
    name: "flow_totals",
    keys: &["device", "direction"],
    columns: &[counter("bytes"), counter("packets")],
    node: false,
};

const PEERS: &[(&str, usize)] = &[("device", 0), ("direction", 1), ("protocol", 2), ("src", 3), ("dst", 5)];
const TUPLES: &[(&str, usize)] =
    &[("device", 0), ("direction", 1), ("protocol", 2), ("src", 3), ("sport", 4), ("dst", 5), ("dport", 6)];
const OLD_KEYS: &[(&str, usize)] = &[("protocol", 2), ("src", 3), ("sport", 4), ("dst", 5), ("dport", 6)];

const BYTES_HELP: &str = "Bytes with the headers of the link, of those pairs of addresses (option ports: connections) \
                          with the most. direction: in or out of the device. Each byte is in one series only: a pair that gets one of its \
                          own begins with what came since, what came before stays in src=\"other\".";
const PACKETS_HELP: &str = "Packets as they are on the wire: one that is segmented by the device counts as its segments. The rest as for bytes.";
const OLD_BYTES: &str = "Bytes of the flow, both directions.";
const OLD_PACKETS: &str = "Packets of the flow, both directions.";

const NATIVE: &[Family] = &[
    Family::native("netskoop_flow_bytes_total", BYTES_HELP, &TABLE, one(&TABLE, "bytes"))
        .keys(PEERS)
        .fold()
        .unless(PORTS)
        .core(),
    Family::native("netskoop_flow_bytes_total", BYTES_HELP, &TABLE, one(&TABLE, "bytes"))
        .keys(TUPLES)
        .option(PORTS)
        .core(),
    Family::native("netskoop_flow_packets_total", PACKETS_HELP, &TABLE, one(&TABLE, "packets"))
        .keys(PEERS)
        .fold()
        .unless(PORTS)
        .core(),
    Family::native("netskoop_flow_packets_total", PACKETS_HELP, &TABLE, one(&TABLE, "packets"))
        .keys(TUPLES)
        .option(PORTS)
        .core(),
    Family::native(
        "netskoop_flow_device_bytes_total",
        "Bytes with the headers of the link that went through a device that is watched, all of them, also what is not IP.",
        &TOTALS,
        one(&TOTALS, "bytes"),
    )
    .keys(&[("device", 0), ("direction", 1)])
    .core(),
    Family::native(
        "netskoop_flow_device_packets_total",
        "Packets as they are on the wire that went through a device that is watched, all of them, also what is not IP.",
        &TOTALS,
        one(&TOTALS, "packets"),
    )
    .keys(&[("device", 0), ("direction", 1)])
    .core(),
];

const OLD_BYTES_POINTS: Points = Points::Cells(&[(flows::OLD_LABELS, column(&TABLE, "bytes"))]);
const OLD_PACKETS_POINTS: Points = Points::Cells(&[(flows::OLD_LABELS, column(&TABLE, "packets"))]);

const KUBESKOOP: &[Family] = &[
    Family::kubeskoop("kubeskoop_flow_bytes", OLD_BYTES, &TABLE, OLD_BYTES_POINTS).keys(OLD_KEYS).fold(),
    Family::kubeskoop("kubeskoop_flow_packets", OLD_PACKETS, &TABLE, OLD_PACKETS_POINTS)
        .keys(OLD_KEYS)
        .fold(),
];

/// In the order of `enum direction`.
const DIRECTIONS: [&str; 2] = ["in", "out"];
/// Names of the programs.
const PROGRAMS: [&str; 2] = ["netskoop_in", "netskoop_out"];
/// How soon an interface that comes is watched.
const LOOK: Duration = Duration::from_millis(500);

fn run(session: Session) -> Result<(), Refused> {
    let (proc, netns) = (Path::new("/proc"), session.host_netns());
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(FlowSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.own_netns = netns;
    }
    let skel = session.load(open)?;
    let taps = Taps::new(skel.object(), PROGRAMS, proc)?;
    let mut watch = Watch { taps, skel, netns, proc, patterns: Vec::new(), due: None };
    watch.renew(session.settings());
    watch.look();
    if watch.taps.is_empty() && watch.patterns.is_empty() {
        session.limited("there was no default route at the start; name interfaces with the option devices");
    }
    session.ready(watch.skel.object(), watch.taps.via(), &["counters", "totals"])?;
    let watch = RefCell::new(watch);
    session.serve_every(|settings| watch.borrow_mut().renew(settings), || watch.borrow_mut().look());
    Ok(())
}

/// The programs, on the interfaces that the settings name.
struct Watch<'o> {
    taps: Taps,
    skel: FlowSkel<'o>,
    netns: u32,
    proc: &'o Path,
    patterns: Vec<String>,
    /// When to look at the interfaces even if none has changed.
    due: Option<Instant>,
}

impl Watch<'_> {
    fn renew(&mut self, settings: &Settings) {
        if let Some(data) = self.skel.maps.bss_data.as_deref_mut() {
            data.options.ports = settings.bool(PORTS).into();
        }
        self.patterns = settings.list(DEVICES).to_vec();
        self.due = Some(Instant::now());
    }

    /// Looks at the interfaces if there is a reason to; when to look again.
    fn look(&mut self) -> Duration {
        let now = Instant::now();
        if self.taps.changed() | self.due.is_some_and(|due| due <= now) {
            let again = match self.taps.follow(self.skel.object(), PROGRAMS, &self.patterns, self.proc) {
                Ok(followed) => {
                    self.forget(&followed.gone);
                    followed.again
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot list the interfaces, trying again");
                    Some(LOOK)
                }
            };
            self.due = again.map(|again| now + again);
        }
        self.due.map_or(LOOK, |due| due.saturating_duration_since(now).min(LOOK))
    }

    /// Deletes what was counted of devices. They may come back, as one does that loses its default route for a while: then
    /// they begin anew.
    fn forget(&self, devices: &[u32]) {
        if devices.is_empty() {
            return;
        }
        // First the flows: what is in them and in no total would be shown as grown.
        let is_theirs = |key: &[u8]| {
            plain::read(key).is_some_and(|key: types::flow_traffic_key| devices.contains(&key.device))
        };
        let flows = MapHandle::try_from(&self.skel.maps.counters).map_err(io_error);
        if let Err(error) = flows.and_then(|flows| delete_where(iter::once(&flows), is_theirs)) {
            tracing::warn!(%error, "cannot delete what was counted of interfaces that are gone");
        }
        for key in devices.iter().flat_map(|device| total_keys(self.netns, *device)) {
            // One without any traffic has none.
            let _ = self.skel.maps.totals.delete(&key);
        }
    }
}

/// The keys of both totals of a device.
fn total_keys(netns: u32, device: u32) -> [Vec<u8>; 2] {
    [0, 1].map(|direction| [netns, device, direction, 0, 0, 0].map(u32::to_ne_bytes).concat())
}

/// A device and a direction.
type Way = (u32, u32);

/// What was shown, and under which names.
#[derive(Default)]
struct Shown {
    ledger: Ledger<Way>,
    names: Names,
}

/// Names of interfaces, also of those that are gone.
#[derive(Default)]
struct Names(FxHashMap<u32, String>);

impl Names {
    /// Asks for all of them anew: an interface can be renamed.
    fn renew(&mut self, devices: impl Iterator<Item = u32>) {
        let Ok(netlink) = Netlink::open(netlink::Family::Route) else { return };
        let mut known = FxHashMap::default();
        for index in devices {
            let name = netlink.interface_name(index).map(|name| name.as_str().to_owned());
            known.extend(name.or_else(|| self.0.remove(&index)).map(|name| (index, name)));
        }
        self.0 = known;
    }

    fn get(&self, device: u32) -> &str {
        self.0.get(&device).map_or("gone", String::as_str)
    }
}

fn way_of(key: &types::flow_traffic_key) -> Way {
    (key.device, u32::from(key.tuple.pad))
}

/// Bytes and packets.
fn traffic(bytes: &[u8]) -> Option<Count> {
    let traffic: types::flow_traffic = plain::read(bytes)?;
    Some([traffic.bytes, traffic.packets])
}

/// Totals of the devices: whose, which way, and how much.
fn totals(counters: &Counters<'_>) -> Vec<(Subject, Way, Count)> {
    let total = |(key, value): (&[u8], &[u8])| {
        let key: types::flow_total_key = plain::read(key)?;
        Some(((counters.subject)(key.netns, key.cookie)?, (key.device, key.direction), traffic(value)?))
    };
    let mut all: Vec<_> = counters.entries.iter().filter_map(total).collect();
    all.sort_unstable();
    all
}

fn fill_totals(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    let all = totals(counters);
    let mut names = Names::default();
    names.renew(all.iter().map(|(_, (device, _), _)| *device));
    for (subject, (device, direction), traffic) in all {
        let Some(direction) = DIRECTIONS.get(direction as usize) else { continue };
        if let Some(cells) = table.row(subject, &[names.get(device).as_bytes(), direction.as_bytes()]) {
            cells.copy_from_slice(&traffic);
        }
    }
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    if let Some(flows) = counters.beside.and_then(|beside| beside("counters")) {
        counters.memory.own(|shown: &mut Shown| fill_from(counters, &flows, shown, table));
    }
}

fn fill_from(counters: &Counters<'_>, flows: &Entries, shown: &mut Shown, table: &mut Table) {
    let whose = totals(counters);
    let total =
        |(_, way, count): &(Subject, Way, Count)| Total { group: *way, count: *count, pulse: count[1] };
    let totals: Vec<Total<Way>> = whose.iter().map(total).collect();
    shown.names.renew(whose.iter().map(|(_, (device, _), _)| *device));
    let flows = flows.iter().filter_map(|(key, value)| {
        let group = way_of(&plain::read(key)?);
        Some(Flow { key, group, count: traffic(value)? })
    });
    let limits = Limits { shown: flows::shown(counters), idle: u64::MAX, now: 0 };
    for (flow, count) in shown.ledger.enter(flows, &totals, |_| true, limits).own {
        if let Some(key) = plain::read(flow.key) {
            put(counters, &shown.names, &key, count, table);
        }
    }
    for (subject, way, _) in whose {
        let Some(direction) = DIRECTIONS.get(way.1 as usize) else { continue };
        let head = [shown.names.get(way.0), direction];
        let keys: Vec<&[u8]> = head.into_iter().chain(flows::OTHER).map(str::as_bytes).collect();
        if let Some(cells) = table.row(subject, &keys) {
            cells.copy_from_slice(&shown.ledger.other(way));
        }
    }
}

/// A row of its own.
fn put(counters: &Counters<'_>, names: &Names, key: &types::flow_traffic_key, own: Count, table: &mut Table) {
    let t = key.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    let direction = DIRECTIONS.get(usize::from(t.pad));
    let subject = (counters.subject)(key.netns, key.cookie);
    let (Some(tuple), Some(direction), Some(subject)) = (tuple, direction, subject) else { return };
    let words = flows::words(&tuple);
    let head = [names.get(key.device).as_bytes(), direction.as_bytes()];
    let keys: Vec<&[u8]> = head.into_iter().chain(words.iter().map(String::as_bytes)).collect();
    if let Some(cells) = table.row(subject, &keys) {
        cells.copy_from_slice(&own);
    }
}

// Both ways of each device that may be watched have a total.
const _: () = assert!(2 * MAX_DEVICES <= 2048);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use netskoop_api::OptionValue;

    /// A number that no interface has here.
    const DEVICE: u32 = 4_000_000;

    fn entry(last_byte: u8, direction: u16, bytes: u64) -> (Vec<u8>, Vec<u8>) {
        let mut key = [5, DEVICE].map(u32::to_ne_bytes).concat();
        key.extend([4, 17]);
        key.extend([0, 0, direction].map(u16::to_ne_bytes).concat());
        for address in [[192, 0, 2, 1], [192, 0, 2, last_byte]] {
            key.extend(address);
            key.extend([0; 12]);
        }
        key.extend([0; 8]);
        assert_eq!(key.len(), size_of::<types::flow_traffic_key>());
        (key, [bytes, bytes / 100].map(u64::to_ne_bytes).concat())
    }

    fn total(bytes: u64) -> (Vec<u8>, Vec<u8>) {
        let key = [5, DEVICE, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
        (key, [bytes, bytes / 100].map(u64::to_ne_bytes).concat())
    }

    /// Reads once: the last byte of the address and the bytes of each row, `0` for what has none of its own.
    fn read(shown: &mut Shown, pairs: &[(Vec<u8>, Vec<u8>)], bytes: u64, most: u64) -> Vec<(u8, u64)> {
        let (entries, flows) = (Entries::from_pairs(&[total(bytes)]), Entries::from_pairs(pairs));
        let (options, memory) =
            (Options::from([("max_flows", OptionValue::Integer(most))]), Memory::default());
        let subject = |netns, _| (netns == 5).then_some(Subject(1));
        let counters = Counters::new(&entries, &subject, &options, &memory);
        let mut table = Table::new(&TABLE, 100);
        fill_from(&counters, &flows, shown, &mut table);
        let mut rows: Vec<(u8, u64)> = (0..table.len())
            .map(|row| {
                let to = String::from_utf8_lossy(table.key(row, 5)).into_owned();
                let last = to.rsplit('.').next().and_then(|last| last.parse().ok()).unwrap_or(0);
                (last, table.cell(row, 0).unwrap())
            })
            .collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn each_byte_is_in_one_series_and_none_falls() {
        let mut shown = Shown::default();
        // Nothing has been shown before, so all of it is theirs.
        let rows = read(&mut shown, &[entry(2, 0, 1000), entry(3, 0, 500), entry(4, 0, 300)], 2000, 2);
        assert_eq!(rows, [(0, 500), (2, 1000), (3, 500)]);
        // The fourth overtakes the third: what it had before stays in other, and what the third gets from now on goes there.
        let rows = read(&mut shown, &[entry(2, 0, 1100), entry(3, 0, 550), entry(4, 0, 900)], 2750, 2);
        assert_eq!(rows, [(0, 550), (2, 1100), (4, 600)]);
        // Whoever comes back goes on; so does the one that had to make room in the kernel.
        let rows = read(&mut shown, &[entry(2, 0, 40), entry(3, 0, 1000), entry(4, 0, 900)], 3300, 2);
        assert_eq!(rows, [(0, 610), (2, 1140), (3, 950)]);
        // All of them have left the kernel's map.
        assert_eq!(read(&mut shown, &[], 3400, 2), [(0, 710)]);
    }

    #[test]
    fn a_device_that_is_gone_is_forgotten() {
        let mut shown = Shown::default();
        read(&mut shown, &[entry(2, 0, 10)], 20, 1);
        assert_eq!(shown.ledger.other((DEVICE, 0)), [10, 0]);
        let (entries, options, memory) = (Entries::default(), Options::new(), Memory::default());
        let subject = |_, _| Some(Subject(1));
        let counters = Counters::new(&entries, &subject, &options, &memory);
        let mut table = Table::new(&TABLE, 100);
        fill_from(&counters, &Entries::default(), &mut shown, &mut table);
        assert!(table.is_empty());
        assert_eq!(shown.ledger.other((DEVICE, 0)), [0, 0]);
    }
}
