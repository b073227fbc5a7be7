//! The numbers that a network namespace has for others (`RTM_GETNSID` of rtnetlink(7)): in messages from all namespaces
//! they tell which one it was.

use super::message::{attribute, messages, put, u32_at};
use super::{Family, Netlink, NetlinkError, PIECE};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netlink::SocketAddrNetlink;

const NEW: u16 = 88;
const DELETE: u16 = 89;
const GET: u16 = 90;
/// Length of `struct rtgenmsg` with what it is filled up with.
const HEAD: usize = 4;
/// `NETNSA_NSID` and `NETNSA_FD`.
const NUMBER: u16 = 1;
const FILE: u16 = 3;
/// `RTNLGRP_NSID`, as a bit.
const GROUP: u32 = 1 << 27;

/// The numbers that the calling thread's namespace has given.
pub struct Numbers {
    questions: Netlink,
    news: OwnedFd,
    bytes: Vec<u8>,
}

/// What is not as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The namespace with this number is gone, and the number is free for another.
    Gone(i32),
    /// There was more than found room.
    Lost,
}

impl Numbers {
    /// Asks, and listens for what changes.
    pub fn open() -> Result<Numbers, Errno> {
        let news = super::socket(Family::Route)?;
        rustix::net::bind(&news, &SocketAddrNetlink::new(0, GROUP))?;
        Ok(Numbers { questions: Netlink::open(Family::Route)?, news, bytes: vec![] })
    }

    /// The number of a namespace, if it has one.
    pub fn of(&mut self, namespace: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
        let body = question(namespace, None);
        let ask = self.questions.ask(GET, &body, &mut self.bytes, None, |found, message| {
            if message.kind == NEW {
                *found = number(message.body);
            }
        });
        Ok(ask?.filter(|number| *number >= 0))
    }

    /// The number of a namespace, which gets one if it has none. It keeps it until it ends, which it does as before.
    pub fn give(&mut self, namespace: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
        if let Some(known) = self.of(namespace)? {
            return Ok(Some(known));
        }
        let body = question(namespace, Some(-1));
        match self.questions.ask(NEW, &body, &mut self.bytes, (), |(), _| ()) {
            // Somebody was faster.
            Ok(()) | Err(NetlinkError::Refused(Errno::EXIST)) => self.of(namespace),
            Err(error) => Err(error),
        }
    }

    /// Calls `each` with what has changed since the last call.
    pub fn news(&mut self, mut each: impl FnMut(News)) {
        self.bytes.resize(PIECE, 0);
        // More than this in one go, and the next call goes on.
        for _ in 0..4096 {
            match rustix::net::recv(&self.news, &mut self.bytes[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    let whole = messages(self.bytes.get(..length).unwrap_or_default());
                    let gone = whole.flatten().filter(|message| message.kind == DELETE);
                    gone.filter_map(|message| number(message.body)).for_each(|gone| each(News::Gone(gone)));
                }
                Err(Errno::NOBUFS) => each(News::Lost),
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Numbers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

fn question(namespace: BorrowedFd<'_>, number: Option<i32>) -> Vec<u8> {
    let mut body = vec![0; HEAD];
    put(&mut body, FILE, &namespace.as_raw_fd().to_ne_bytes());
    if let Some(number) = number {
        put(&mut body, NUMBER, &number.to_ne_bytes());
    }
    body
}

fn number(body: &[u8]) -> Option<i32> {
    u32_at(attribute(body.get(HEAD..)?, NUMBER)?, 0).map(u32::cast_signed)
}
