//! Filters on the way into an interface and out of it (`tc filter`, tc-bpf(8)), for kernels that have no better way to count
//! there. Unlike programs they outlive who made them, so they carry a name by which they are found and removed.

use super::message::{Message, attribute, put, text, u32_at};
use super::qdisc::{self, Qdisc};
use super::{Family, Netlink, NetlinkError};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;

/// `RTM_NEWQDISC`, `RTM_DELQDISC`, `RTM_NEWTFILTER`, `RTM_DELTFILTER` and `RTM_GETTFILTER`.
const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
/// `NLM_F_EXCL` and `NLM_F_CREATE`.
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

/// `TC_H_CLSACT` as a parent, and the number that the kernel gives to such a qdisc.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// Both ways, as parents of filters.
const PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// `TCA_KIND` and `TCA_OPTIONS`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// `TCA_BPF_NAME`, inside `TCA_OPTIONS`.
const NAME: u16 = 7;

/// By this name filters of ours are known.
const OURS: &[u8] = b"netskoop";
/// Behind all others, which decide; all packets.
const PRIORITY: u32 = 0xffff;
const ALL_PROTOCOLS: u16 = 3;
/// Number of a filter whose qdisc is ours as well, and of one whose qdisc was there before.
const WITH_QDISC: u32 = 0x6e73_0001;
const ALONE: u32 = 0x6e73_0002;

/// The way that a packet takes through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into it, from the wire.
    In,
    /// Out of it.
    Out,
}

impl Direction {
    fn parent(self) -> u32 {
        match self {
            Direction::In => PARENTS[0],
            Direction::Out => PARENTS[1],
        }
    }
}

/// A filter that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    parent: u32,
    handle: u32,
    info: u32,
    is_ours: bool,
}

/// Hangs two programs on an interface, behind whatever is there. Filters that an earlier daemon left make room.
pub fn add(
    netlink: &mut Netlink,
    interface: u32,
    programs: [(Direction, BorrowedFd<'_>); 2],
) -> Result<(), NetlinkError> {
    remove(netlink, interface)?;
    let mut body = tcmsg(interface, CLSACT_HANDLE, CLSACT, 0);
    put(&mut body, KIND, b"clsact\0");
    let handle = match netlink.change(NEW_QDISC, CREATE | EXCLUSIVE, &body, &mut Vec::new()) {
        Ok(()) => WITH_QDISC,
        Err(NetlinkError::Refused(Errno::EXIST)) => ALONE,
        Err(error) => return Err(error),
    };
    for (direction, program) in programs {
        let added = netlink.change(
            NEW_FILTER,
            CREATE | EXCLUSIVE,
            &filter(interface, direction, (handle, PRIORITY), OURS, program),
            &mut Vec::new(),
        );
        if let Err(error) = added {
            // What is there of the two must not stay.
            let _ = remove(netlink, interface);
            return Err(error);
        }
    }
    Ok(())
}

/// For tests: a filter of somebody else.
#[cfg(test)]
pub(in crate::kernel) fn add_foreign(
    netlink: &mut Netlink,
    interface: u32,
    program: BorrowedFd<'_>,
) -> Result<(), NetlinkError> {
    let body = filter(interface, Direction::In, (1, 5), b"somebody", program);
    netlink.change(NEW_FILTER, CREATE | EXCLUSIVE, &body, &mut Vec::new())
}

/// Removes our filters from an interface, and the qdisc they hang on if it is ours and nobody else uses it.
pub fn remove(netlink: &mut Netlink, interface: u32) -> Result<(), NetlinkError> {
    let mut found = Vec::new();
    for parent in PARENTS {
        found.extend(list(netlink, interface, parent)?);
    }
    let ours = || found.iter().filter(|filter| filter.is_ours);
    for filter in ours() {
        let mut body = tcmsg(interface, filter.handle, filter.parent, filter.info);
        put(&mut body, KIND, b"bpf\0");
        gone(netlink.change(DELETE_FILTER, 0, &body, &mut Vec::new()))?;
    }
    let is_free = found.iter().all(|filter| filter.is_ours);
    let made = ours().any(|filter| filter.handle == WITH_QDISC);
    if is_free && made {
        let body = tcmsg(interface, CLSACT_HANDLE, CLSACT, 0);
        gone(netlink.change(DELETE_QDISC, 0, &body, &mut Vec::new()))?;
    }
    Ok(())
}

/// Removes our filters from every interface of the calling thread's namespace: those that a daemon left which was killed.
/// The interfaces that had some.
pub fn remove_all() -> Result<Vec<u32>, NetlinkError> {
    let mut netlink = Netlink::open(Family::Route).map_err(NetlinkError::Socket)?;
    let interfaces = netlink.dump(qdisc::GET, &qdisc::ALL, &mut Vec::new(), Vec::new, |found, message| {
        let qdisc = Qdisc::parse(&message).filter(|qdisc| qdisc.kind() == b"clsact");
        found.extend(qdisc.map(|qdisc| qdisc.interface));
    })?;
    let mut had = Vec::new();
    for interface in interfaces {
        let mut count = 0;
        for parent in PARENTS {
            count += list(&mut netlink, interface, parent)?.iter().filter(|filter| filter.is_ours).count();
        }
        if count > 0 {
            remove(&mut netlink, interface)?;
            had.push(interface);
        }
    }
    Ok(had)
}

/// Gone already is as good.
fn gone(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(NetlinkError::Refused(Errno::NOENT | Errno::NODEV | Errno::INVAL)) => Ok(()),
        result => result,
    }
}

fn list(netlink: &mut Netlink, interface: u32, parent: u32) -> Result<Vec<Found>, NetlinkError> {
    let body = tcmsg(interface, 0, parent, 0);
    let listed = netlink.dump(GET_FILTER, &body, &mut Vec::new(), Vec::new, |found, message| {
        found.extend(parse(message, parent));
    });
    match listed {
        // An interface that is gone has none.
        Err(NetlinkError::Refused(Errno::NODEV | Errno::INVAL)) => Ok(Vec::new()),
        listed => listed,
    }
}

/// A filter with a number; the kernel also lists the heads of chains, which have none.
fn parse(message: Message<'_>, parent: u32) -> Option<Found> {
    let (head, rest) = message.body.split_at_checked(qdisc::ALL.len())?;
    let (handle, info) = (u32_at(head, 8)?, u32_at(head, 16)?);
    let name = attribute(rest, OPTIONS).and_then(|options| attribute(options, NAME)).map(text);
    let is_bpf = attribute(rest, KIND).map(text) == Some(b"bpf");
    (handle != 0).then(|| Found { parent, handle, info, is_ours: is_bpf && name == Some(OURS) })
}

/// `struct tcmsg`.
fn tcmsg(interface: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, interface, handle, parent, info].map(u32::to_ne_bytes).concat()
}

fn filter(
    interface: u32,
    direction: Direction,
    (handle, priority): (u32, u32),
    name: &[u8],
    program: BorrowedFd<'_>,
) -> Vec<u8> {
    /// `TCA_BPF_FD` and `TCA_BPF_FLAGS`, inside `TCA_OPTIONS`.
    const PROGRAM: u16 = 6;
    const FLAGS: u16 = 8;
    /// `TCA_BPF_FLAG_ACT_DIRECT`: what the program answers is done.
    const DIRECT: u32 = 1;
    let info = priority << 16 | u32::from(ALL_PROTOCOLS.to_be());
    let (mut options, mut out) = (Vec::new(), tcmsg(interface, handle, direction.parent(), info));
    put(&mut options, PROGRAM, &program.as_raw_fd().to_ne_bytes());
    put(&mut options, NAME, &[name, &[0]].concat());
    put(&mut options, FLAGS, &DIRECT.to_ne_bytes());
    put(&mut out, KIND, b"bpf\0");
    put(&mut out, OPTIONS, &options);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(handle: u32, kind: &[u8], name: &[u8]) -> Vec<u8> {
        let (mut options, mut body) = (Vec::new(), tcmsg(3, handle, PARENTS[0], 7));
        put(&mut options, NAME, name);
        put(&mut body, KIND, kind);
        put(&mut body, OPTIONS, &options);
        body
    }

    #[test]
    fn only_filters_with_our_name_are_ours() {
        for (handle, kind, name, ours) in [
            (1, &b"bpf\0"[..], &b"netskoop\0"[..], Some(true)),
            (1, b"bpf\0", b"netskoop_of_somebody\0", Some(false)),
            (1, b"flower\0", b"netskoop\0", Some(false)),
            (0, b"bpf\0", b"netskoop\0", None),
        ] {
            let body = message(handle, kind, name);
            let found = parse(Message { kind: NEW_FILTER, flags: 0, sequence: 0, body: &body }, PARENTS[0]);
            assert_eq!(found.map(|found| found.is_ours), ours, "{name:?}");
        }
    }
}
