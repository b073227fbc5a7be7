//! Questions to a name server of the self-test's own.

use super::super::stage::{Role, Stage};
use super::sockets::{await_it, datagrams};
use super::{Rest, Scene, impossible};
use rustix::event::PollFlags;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};

/// Codes of answers (RFC 1035, 4.1.1).
const FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
/// Place of the code, and of what makes an answer of a question.
const CODE: usize = 3;
const FLAGS: usize = 2;
const IS_ANSWER: u8 = 0x80;
/// For the address of a name that nobody has (RFC 2606), by a resolver that wants it found out for it.
const QUESTION: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x08selftest\x07invalid\0\0\x01\0\x01";

/// The answer is that there is none.
pub(super) fn unanswered(stage: &Stage, scene: Scene) -> io::Result<u64> {
    ask(stage, scene)?.answer(FAILURE)
}

/// The answer comes as late as it is told to.
pub(super) fn nameless(stage: &Stage, scene: Scene) -> io::Result<Rest> {
    let asked = ask(stage, scene)?;
    Ok(Box::new(move |_| asked.answer(NO_SUCH_NAME)))
}

/// A question that has reached its server.
struct Asked {
    client: UdpSocket,
    server: UdpSocket,
    question: Vec<u8>,
    by: SocketAddr,
}

fn ask(stage: &Stage, scene: Scene) -> io::Result<Asked> {
    let server = serve(stage, scene.to)?;
    let client = datagrams(stage, Role::Client, scene.from)?;
    client.send_to(QUESTION, scene.to)?;
    await_it(&server, PollFlags::IN)?;
    let mut question = vec![0; QUESTION.len()];
    let (length, by) = server.recv_from(&mut question)?;
    question.truncate(length);
    Ok(Asked { client, server, question, by })
}

impl Asked {
    fn answer(mut self, code: u8) -> io::Result<u64> {
        let short = || io::Error::other("the question came in part");
        *self.question.get_mut(FLAGS).ok_or_else(short)? |= IS_ANSWER;
        *self.question.get_mut(CODE).ok_or_else(short)? = code;
        self.server.send_to(&self.question, self.by)?;
        await_it(&self.client, PollFlags::IN)?;
        self.client.recv(&mut [0; QUESTION.len()])?;
        Ok(1)
    }
}

/// The port may be one that takes a privilege, which the daemon does not have everywhere; in a namespace of its own it can do
/// without.
fn serve(stage: &Stage, at: SocketAddr) -> io::Result<UdpSocket> {
    const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    match datagrams(stage, Role::Server, at) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let freed = stage.room(Role::Server).within(|| std::fs::write(UNPRIVILEGED, "0"))?;
            freed.map_err(|error| {
                let port = at.port();
                impossible(&format!(
                    "the daemon has not the capability CAP_NET_BIND_SERVICE, which port {port} takes, and {UNPRIVILEGED} cannot \
                     be written: {error}"
                ))
            })?;
            datagrams(stage, Role::Server, at)
        }
        result => result,
    }
}
