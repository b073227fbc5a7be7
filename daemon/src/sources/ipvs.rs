//! Source `ipvs`: what virtual services did in each namespace, from `net/ip_vs_stats`; by option service by service, over
//! generic netlink.

use super::each::{Visit, each};
use super::enter::failed;
use super::{ReadError, Report, Scratch, Source, Want};
use crate::declare::{TableDecl, counter, gauge};
use crate::kernel::netlink::ipvs::{
    ALL_SERVICES, CONTROL, Counters, Destination, Service, Virtual, ask_family, family,
};
use crate::kernel::netlink::{Family, Netlink, NetlinkError};
use crate::kernel::parts::IP_VS;
use crate::kernel::procfs::{Shape, ip_vs_stats, read_whole};
use crate::table::{Subject, Table};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// All services of a namespace together.
pub static IPVS: TableDecl = TableDecl {
    name: "ipvs",
    keys: &[],
    columns: &[
        counter("conns"),
        counter("inpkts"),
        counter("outpkts"),
        counter("inbytes"),
        counter("outbytes"),
    ],
    node: false,
};

/// Service by service. `service` is 1 in each row, so that a sum of rows counts them.
pub static IPVS_SERVICES: TableDecl = TableDecl {
    name: "ipvs_services",
    keys: &["protocol", "service", "scheduler"],
    columns: &[
        counter("conns"),
        counter("inpkts"),
        counter("outpkts"),
        counter("inbytes"),
        counter("outbytes"),
        gauge("service"),
    ],
    node: false,
};

/// Destination by destination.
pub static IPVS_DESTINATIONS: TableDecl = TableDecl {
    name: "ipvs_destinations",
    keys: &["protocol", "service", "destination"],
    columns: &[
        counter("conns"),
        counter("inpkts"),
        counter("outpkts"),
        counter("inbytes"),
        counter("outbytes"),
        gauge("weight"),
        gauge("active"),
        gauge("inactive"),
        gauge("persistent"),
    ],
    node: false,
};

static TABLES: [&TableDecl; 3] = [&IPVS, &IPVS_SERVICES, &IPVS_DESTINATIONS];

/// Services of a namespace that are shown at most.
const MAX_SERVICES: usize = 2048;
/// Destinations of a namespace that are shown at most.
const MAX_DESTINATIONS: usize = 8192;

/// What IPVS counts.
pub struct Ipvs {
    proc: PathBuf,
}

impl Ipvs {
    /// The source; namespaces are entered through `proc`.
    pub fn new(proc: &Path) -> Ipvs {
        Ipvs { proc: proc.to_owned() }
    }

    /// The file of the namespace that the calling thread is in.
    fn stats(&self) -> Result<Vec<u8>, ReadError> {
        let path = self.proc.join("thread-self/net/ip_vs_stats");
        let mut text = Vec::new();
        let read = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| read_whole(file, Shape::OnePiece, &mut text));
        match read {
            Ok(()) => Ok(text),
            Err(Errno::NOENT) => Err(ReadError::Vanished),
            Err(error) => Err(failed("read", "net/ip_vs_stats".into(), error)),
        }
    }
}

/// Reads one namespace; how many services and destinations found no room.
fn visit(visit: Visit<'_>, stats: &[u8], want: &Want<'_>, out: &mut [Table]) -> Result<u32, ReadError> {
    let Visit { target, netlink, bytes } = visit;
    let ([all, services, destinations], [_, by_service, by_destination]) = (out, want.columns) else {
        debug_assert!(false, "tables of another source");
        return Ok(0);
    };
    let counters = ip_vs_stats::parse(stats).map_err(|malformed| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, malformed);
        failed("parse", "net/ip_vs_stats".into(), source)
    })?;
    if let Some(cells) = all.row(target.subject, &[]) {
        cells.copy_from_slice(&counters);
    }
    if by_service.is_empty() && by_destination.is_empty() {
        return Ok(0);
    }
    // Half an answer would look like services and servers that are gone.
    netlink.stop_at(want.deadline);
    let list = |error: NetlinkError| failed("list", "virtual services".into(), error);
    let kind = netlink.ask(CONTROL, &ask_family(), bytes, None, |found, message| *found = family(message));
    // The module may have gone since.
    let Some(kind) = kind.map_err(list)? else { return Ok(0) };
    let (found, mut left_out) = list_services(netlink, kind, bytes).map_err(list)?;
    for service in &found {
        put_service(services, target.subject, service);
    }
    if by_destination.is_empty() {
        return Ok(left_out);
    }
    let mut room = MAX_DESTINATIONS;
    for service in &found {
        let list = |error| failed("list", "destinations of virtual services".into(), error);
        let of_it = list_destinations(netlink, kind, service, bytes).map_err(list)?;
        left_out += u32::try_from(of_it.len().saturating_sub(room)).unwrap_or(u32::MAX);
        for destination in of_it.iter().take(room) {
            put_destination(destinations, target.subject, service, destination);
        }
        room = room.saturating_sub(of_it.len());
    }
    Ok(left_out)
}

fn list_services(
    netlink: &mut Netlink,
    kind: u16,
    bytes: &mut Vec<u8>,
) -> Result<(Vec<Service>, u32), NetlinkError> {
    let start = || (Vec::new(), 0);
    netlink.dump(kind, &ALL_SERVICES, bytes, start, |(found, left_out), message| {
        let Some(service) = Service::parse(message) else { return };
        if found.len() < MAX_SERVICES { found.push(service) } else { *left_out += 1 }
    })
}

fn list_destinations(
    netlink: &mut Netlink,
    kind: u16,
    service: &Service,
    bytes: &mut Vec<u8>,
) -> Result<Vec<Destination>, NetlinkError> {
    let listed = netlink.dump(kind, &service.ask_destinations(), bytes, Vec::new, |found, message| {
        found.extend(Destination::parse(service, message).filter(|_| found.len() < MAX_DESTINATIONS));
    });
    match listed {
        // It was removed since the services were listed.
        Err(NetlinkError::Refused(Errno::SRCH)) => Ok(Vec::new()),
        listed => listed,
    }
}

/// Protocol and place of a service, as labels.
fn labels(what: &Virtual) -> (String, String) {
    match what {
        Virtual::Mark { mark, .. } => ("fwmark".to_owned(), mark.to_string()),
        Virtual::Address { protocol, address, port } => {
            let protocol = match protocol {
                6 => "tcp".to_owned(),
                17 => "udp".to_owned(),
                132 => "sctp".to_owned(),
                other => other.to_string(),
            };
            (protocol, SocketAddr::new(*address, *port).to_string())
        }
    }
}

fn put(cells: &mut [u64], counters: &Counters) {
    for (cell, counter) in cells.iter_mut().zip(counters) {
        if let Some(value) = counter {
            *cell = *value;
        }
    }
}

fn put_service(table: &mut Table, subject: Subject, service: &Service) {
    let (protocol, place) = labels(&service.what);
    let keys = [protocol.as_bytes(), place.as_bytes(), service.scheduler.as_bytes()];
    if let Some(cells) = table.row(subject, &keys) {
        put(cells, &service.counters);
        cells[service.counters.len()] = 1;
    }
}

fn put_destination(table: &mut Table, subject: Subject, service: &Service, destination: &Destination) {
    let (protocol, place) = labels(&service.what);
    let server = SocketAddr::new(destination.address, destination.port).to_string();
    let keys = [protocol.as_bytes(), place.as_bytes(), server.as_bytes()];
    let Some(cells) = table.row(subject, &keys) else { return };
    let (counters, gauges) = cells.split_at_mut(destination.counters.len());
    put(counters, &destination.counters);
    let values = std::iter::once(destination.weight).chain(destination.connections);
    for (cell, value) in gauges.iter_mut().zip(values) {
        if let Some(value) = value {
            *cell = value;
        }
    }
}

impl Source for Ipvs {
    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn via(&self) -> &'static str {
        "netlink"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        // Asked for what is not there, the kernel would load a module.
        if !IP_VS.is_here(&self.proc) {
            return Report { not_here: Some(IP_VS.absence()), ..Report::default() };
        }
        let mut left_out = 0;
        let visit = |inside: Visit<'_>, stats: Vec<u8>, out: &mut [Table]| {
            left_out += visit(inside, &stats, want, out)?;
            Ok(())
        };
        let report = each(&self.proc, Family::Generic, want, scratch, out, || self.stats(), visit);
        Report { over_budget: left_out, ..report }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(what: Virtual) -> Service {
        Service { what, scheduler: "wrr".to_owned(), counters: [Some(5), Some(6), None, Some(8), Some(9)] }
    }

    fn row(table: &Table, row: usize) -> (Vec<String>, Vec<Option<u64>>) {
        let keys = (0..3).map(|at| String::from_utf8_lossy(table.key(row, at)).into_owned()).collect();
        (keys, (0..table.decl().columns.len()).map(|column| table.cell(row, column as u16)).collect())
    }

    #[test]
    fn services_and_destinations_become_rows() {
        let (mut services, mut servers) = (Table::new(&IPVS_SERVICES, 9), Table::new(&IPVS_DESTINATIONS, 9));
        let web = service(Virtual::Address { protocol: 6, address: "fd00::1".parse().unwrap(), port: 80 });
        let marked = service(Virtual::Mark { mark: 7, family: 2 });
        [&web, &marked].iter().for_each(|service| put_service(&mut services, Subject(3), service));
        let counters = vec![Some(5), Some(6), None, Some(8), Some(9), Some(1)];
        let keys = ["tcp", "[fd00::1]:80", "wrr"].map(str::to_owned).to_vec();
        assert_eq!(row(&services, 0), (keys, counters));
        assert_eq!(row(&services, 1).0, ["fwmark", "7", "wrr"]);
        let server = Destination {
            address: "10.0.0.9".parse().unwrap(),
            port: 8080,
            weight: Some(0),
            connections: [Some(4), Some(2), None],
            counters: web.counters,
        };
        put_destination(&mut servers, Subject(3), &web, &server);
        let cells = vec![Some(5), Some(6), None, Some(8), Some(9), Some(0), Some(4), Some(2), None];
        let keys = ["tcp", "[fd00::1]:80", "10.0.0.9:8080"].map(str::to_owned).to_vec();
        assert_eq!(row(&servers, 0), (keys, cells));
    }
}
