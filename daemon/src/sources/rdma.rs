//! Source `rdma`: the counters of RDMA devices from sysfs, whatever names the driver has for them, and what programs hold of
//! the devices, over netlink.

use super::enter::failed;
use super::{ReadError, Report, Scratch, Source, Want};
use crate::declare::{Column, Kind, TableDecl};
use crate::kernel::netlink::rdma::{GET_RESOURCES, resources};
use crate::kernel::netlink::{Family, Netlink, NetlinkError};
use crate::kernel::parts::RDMA;
use crate::table::{Subject, Table};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One row per counter. A counter of the device as a whole has an empty port.
pub static RDMA_COUNTERS: TableDecl = TableDecl {
    name: "rdma_counters",
    keys: &["device", "port", "counter"],
    columns: &[Column { key: "value", kind: Kind::Counter }],
    node: true,
};

/// The same as KubeSkoop has it: `name` is the type and the counter, `mlx5_port_rcv_data`.
pub static RDMA_BY_TYPE: TableDecl = TableDecl {
    name: "rdma_by_type",
    keys: &["device", "type", "port", "name"],
    columns: &[Column { key: "value", kind: Kind::Counter }],
    node: true,
};

/// What programs hold.
pub static RDMA_RESOURCES: TableDecl = TableDecl {
    name: "rdma_resources",
    keys: &["device", "type", "resource"],
    columns: &[Column { key: "held", kind: Kind::Gauge }],
    node: true,
};

static TABLES: [&TableDecl; 3] = [&RDMA_COUNTERS, &RDMA_BY_TYPE, &RDMA_RESOURCES];

/// Devices that are read at most.
const MAX_DEVICES: usize = 64;
/// Ports of a device that are read at most.
const MAX_PORTS: usize = 64;
/// Counters of a port, or of a device, at most.
const MAX_COUNTERS: usize = 256;
/// A number has no more digits than that.
const MAX_TEXT: u64 = 32;
/// A setting that stands among the counters: how old they may be.
const NO_COUNTER: &str = "lifespan";

/// Counters of one device by port and name.
type Counters = BTreeMap<(String, String), u64>;

/// RDMA devices.
pub struct Rdma {
    proc: PathBuf,
    devices: PathBuf,
}

impl Rdma {
    /// The devices of a sysfs; what is asked over netlink is asked of the running kernel.
    pub fn new(proc: &Path, sys: &Path) -> Rdma {
        Rdma { proc: proc.to_owned(), devices: sys.join("class/infiniband") }
    }

    /// Reads one device; how many counters found no room.
    fn device(&self, name: &str, want: &Want<'_>, counters: &mut Counters) -> u32 {
        let device = self.devices.join(name);
        let mut left_out = self.directory(&device.join("hw_counters"), "", want, counters);
        let (ports, more) = names(&device.join("ports"), MAX_PORTS);
        left_out += more;
        for port in ports {
            for kind in ["counters", "hw_counters"] {
                let directory = device.join("ports").join(&port).join(kind);
                left_out += self.directory(&directory, &port, want, counters);
            }
        }
        left_out
    }

    fn directory(&self, directory: &Path, port: &str, want: &Want<'_>, counters: &mut Counters) -> u32 {
        let (names, left_out) = names(directory, MAX_COUNTERS);
        for name in names.into_iter().filter(|name| name != NO_COUNTER) {
            want.beacon.enter(Subject::NODE, "class/infiniband");
            // A counter that the device does not have cannot be read.
            if let Some(value) = value(&directory.join(&name)) {
                counters.insert((port.to_owned(), name), value);
            }
        }
        left_out
    }

    /// What programs hold, in one answer for all devices.
    fn resources(&self, table: &mut Table, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
        // Asked for what is not there, the kernel would load a module.
        if !RDMA.is_here(&self.proc) {
            return Ok(());
        }
        let mut netlink =
            Netlink::open(Family::Rdma).map_err(|error| failed("open", "a netlink socket".into(), error))?;
        let found = list(&mut netlink, bytes)
            .map_err(|error| failed("list", "resources of RDMA devices".into(), error))?;
        for (device, resource, held) in found {
            let kind = self.kind(&device);
            let keys = [device.as_bytes(), kind.as_bytes(), resource.as_bytes()];
            if let Some(cells) = table.row(Subject::NODE, &keys) {
                cells[0] = held;
            }
        }
        Ok(())
    }

    /// The type as KubeSkoop has it: what stands before `_` in the name. Devices may have been renamed, so the driver is asked
    /// as well.
    fn kind(&self, device: &str) -> &'static str {
        let driver = std::fs::read_link(self.devices.join(device).join("device/driver"));
        let driver = driver.ok().and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
        let prefix = device.split('_').next().unwrap_or_default();
        match (prefix, driver.as_deref()) {
            ("mlx5", _) | (_, Some("mlx5_core")) => "mlx5",
            ("erdma", _) | (_, Some("erdma")) => "erdma",
            _ => "unknown",
        }
    }
}

fn list(netlink: &mut Netlink, bytes: &mut Vec<u8>) -> Result<Vec<(String, String, u64)>, NetlinkError> {
    netlink.dump(GET_RESOURCES, &[], bytes, Vec::new, |found, message| {
        resources(&message, |device, name, held| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            if found.len() < MAX_DEVICES * MAX_COUNTERS {
                found.push((text(device), text(name), held));
            }
        });
    })
}

/// What is in a directory, sorted, and how much of it was left out; nothing if it is not there.
fn names(directory: &Path, max: usize) -> (Vec<String>, u32) {
    let Ok(entries) = std::fs::read_dir(directory) else { return (vec![], 0) };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let left_out = names.len().saturating_sub(max);
    names.truncate(max);
    (names, u32::try_from(left_out).unwrap_or(u32::MAX))
}

fn value(path: &Path) -> Option<u64> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_TEXT).read_to_string(&mut text).ok()?;
    text.trim_end().parse().ok()
}

fn put(out: &mut [Table], device: &str, kind: &str, counters: &Counters, want: &Want<'_>) {
    for ((port, name), value) in counters {
        let (device, port) = (device.as_bytes(), port.as_bytes());
        if !want.columns[0].is_empty()
            && let Some(cells) = out[0].row(Subject::NODE, &[device, port, name.as_bytes()])
        {
            cells[0] = *value;
        }
        if !want.columns[1].is_empty() {
            let name = format!("{kind}_{name}");
            if let Some(cells) = out[1].row(Subject::NODE, &[device, kind.as_bytes(), port, name.as_bytes()])
            {
                cells[0] = *value;
            }
        }
    }
}

impl Source for Rdma {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn via(&self) -> &'static str {
        "netlink"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        let (devices, mut left_out) = names(&self.devices, MAX_DEVICES);
        if devices.is_empty() {
            let sentence = format!("there is no RDMA device in {}", self.devices.display());
            return Report { not_here: Some(sentence), ..Report::default() };
        }
        let mut report = Report::default();
        for device in devices {
            if Instant::now() >= want.deadline {
                report.late = 1;
                break;
            }
            if want.columns[0].is_empty() && want.columns[1].is_empty() {
                break;
            }
            let mut counters = Counters::new();
            left_out += self.device(&device, want, &mut counters);
            put(out, &device, self.kind(&device), &counters, want);
        }
        if !want.columns[2].is_empty() {
            want.beacon.enter(Subject::NODE, "netlink");
            let read = self.resources(&mut out[2], &mut scratch.bytes);
            read.unwrap_or_else(|error| report.fail(error));
        }
        want.beacon.leave();
        Report { done: u32::from(report.failed == 0), over_budget: left_out, ..report }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::ColumnSet;
    use crate::sources::Beacon;
    use std::time::Duration;

    /// A sysfs with devices, gone when dropped.
    struct Sys(PathBuf);

    impl Sys {
        fn new(name: &str, files: &[(&str, &str)]) -> Sys {
            let sys = std::env::temp_dir().join(format!("netskoop-rdma-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = sys.join("class/infiniband").join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Sys(sys)
        }
    }

    impl Drop for Sys {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn read(sys: &Path) -> (Report, [Table; 3]) {
        let columns = TABLES.map(|_| {
            let mut set = ColumnSet::default();
            set.insert(0);
            set
        });
        let mut out = TABLES.map(|decl| Table::new(decl, 10_000));
        let deadline = Instant::now() + Duration::from_secs(30);
        let want = Want { targets: &[], columns: &columns, deadline, beacon: &Beacon::default() };
        // No kernel has the symbols of this procfs.
        let source = Rdma::new(Path::new("/nonexistent"), sys);
        let report = source.read(&want, &mut Scratch::default(), &mut out);
        (report, out)
    }

    fn rows(table: &Table) -> Vec<String> {
        let row = |row| {
            let keys = (0..table.decl().keys.len()).map(|at| String::from_utf8_lossy(table.key(row, at)));
            format!("{} = {}", keys.collect::<Vec<_>>().join(" "), table.cell(row, 0).unwrap())
        };
        (0..table.len()).map(row).collect()
    }

    #[test]
    fn counters_have_the_names_that_the_driver_gives_them() {
        let sys = Sys::new(
            "names",
            &[
                ("mlx5_0/ports/1/counters/port_rcv_data", "18446744073709551614\n"),
                ("mlx5_0/ports/1/counters/VL15_dropped", "0\n"),
                ("mlx5_0/ports/1/hw_counters/out_of_buffer", "7\n"),
                ("mlx5_0/ports/1/hw_counters/lifespan", "10\n"),
                ("mlx5_0/ports/1/hw_counters/broken", "N/A (no PMA)\n"),
                ("mlx5_0/ports/2/hw_counters/of_tomorrow", "3\n"),
                ("mlx5_0/hw_counters/of_the_device", "4\n"),
                ("rxe0/ports/1/hw_counters/sent_pkts", "11\n"),
            ],
        );
        let (report, [counters, older, resources]) = read(&sys.0);
        assert_eq!((report.done, report.over_budget, report.not_here), (1, 0, None));
        let wanted = [
            "mlx5_0  of_the_device = 4",
            "mlx5_0 1 VL15_dropped = 0",
            "mlx5_0 1 out_of_buffer = 7",
            "mlx5_0 1 port_rcv_data = 18446744073709551614",
            "mlx5_0 2 of_tomorrow = 3",
            "rxe0 1 sent_pkts = 11",
        ];
        assert_eq!(rows(&counters), wanted);
        assert_eq!(rows(&older)[2], "mlx5_0 mlx5 1 mlx5_out_of_buffer = 7");
        assert_eq!(rows(&older)[5], "rxe0 unknown 1 unknown_sent_pkts = 11");
        assert!(resources.is_empty());
    }

    #[test]
    fn a_renamed_device_has_the_type_of_its_driver() {
        let sys = Sys::new("driver", &[("rocep1s0/ports/1/hw_counters/np_cnp_sent", "1\n")]);
        let device = sys.0.join("class/infiniband/rocep1s0/device");
        std::fs::create_dir_all(&device).unwrap();
        std::os::unix::fs::symlink("../../../bus/pci/drivers/mlx5_core", device.join("driver")).unwrap();
        let (_, [_, older, _]) = read(&sys.0);
        assert_eq!(rows(&older), ["rocep1s0 mlx5 1 mlx5_np_cnp_sent = 1"]);
    }

    #[test]
    fn a_node_without_devices_says_so() {
        let (report, _) = read(Path::new("/nonexistent"));
        let sentence = "there is no RDMA device in /nonexistent/class/infiniband";
        assert_eq!((report.not_here.as_deref(), report.failed), (Some(sentence), 0));
    }

    #[test]
    fn a_driver_with_too_many_counters_is_cut_and_counted() {
        let names: Vec<String> =
            (0..MAX_COUNTERS + 5).map(|at| format!("mlx5_0/ports/1/counters/c{at:04}")).collect();
        let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1\n")).collect();
        let sys = Sys::new("many", &files);
        let (report, [counters, ..]) = read(&sys.0);
        assert_eq!((report.over_budget, counters.len()), (5, MAX_COUNTERS));
    }
}
