//! What takes as long as it is told to. All of it is begun, and ends when that time is over.

use super::super::stage::{Stage, Way};
use super::sockets::{self, Pair, await_it, connect, listen};
use super::{Deed, Rest, Scene, question};
use rustix::event::PollFlags;
use rustix::net::sockopt::set_tcp_cork;
use std::io::{self, Read, Write};

/// Begins it: what is left to do afterwards.
pub(super) fn begin(stage: &mut Stage, scene: Scene) -> io::Result<Rest> {
    match scene.deed {
        Deed::Unread => unread(Pair::new(stage, &scene)?),
        Deed::Unsent => unsent(Pair::new(stage, &scene)?),
        Deed::Unaccepted => unaccepted(stage, scene),
        Deed::Nameless => question::nameless(stage, scene),
        Deed::Slow => slow(stage, scene),
        _ => Err(io::Error::other("it takes no time")),
    }
}

fn unread(mut pair: Pair) -> io::Result<Rest> {
    pair.client.write_all(b"x")?;
    await_it(&pair.server, PollFlags::IN)?;
    Ok(Box::new(move |_| {
        pair.server.read_exact(&mut [0])?;
        Ok(1)
    }))
}

/// The kernel is told that more is to come, and waits for it.
fn unsent(mut pair: Pair) -> io::Result<Rest> {
    set_tcp_cork(&pair.client, true)?;
    pair.client.write_all(b"x")?;
    Ok(Box::new(move |_| {
        set_tcp_cork(&pair.client, false)?;
        await_it(&pair.server, PollFlags::IN)?;
        pair.server.read_exact(&mut [0])?;
        Ok(1)
    }))
}

fn unaccepted(stage: &mut Stage, scene: Scene) -> io::Result<Rest> {
    let listener = listen(stage, scene.to)?;
    let client = connect(stage, scene.from, scene.to)?;
    await_it(&listener, PollFlags::IN)?;
    Ok(Box::new(move |_| Pair::accept(client, &listener).map(|_| 1)))
}

/// Its first segment waits in front of the interface.
fn slow(stage: &mut Stage, scene: Scene) -> io::Result<Rest> {
    let listener = listen(stage, scene.to)?;
    stage.set_way(scene.to.ip(), Way::Held)?;
    let begun = sockets::begin(stage, scene.from, scene.to);
    if begun.is_err() {
        stage.set_way(scene.to.ip(), Way::Open)?;
    }
    let client = begun?;
    Ok(Box::new(move |stage| {
        stage.set_way(scene.to.ip(), Way::Open)?;
        sockets::finish(stage, &client)?;
        let mut pair = Pair::accept(client, &listener)?;
        // A round-trip time is looked at when something comes.
        pair.server.write_all(b"x")?;
        await_it(&pair.client, PollFlags::IN)?;
        pair.client.read_exact(&mut [0])?;
        pair.client.write_all(b"x")?;
        await_it(&pair.server, PollFlags::IN)?;
        pair.server.read_exact(&mut [0])?;
        Ok(1)
    }))
}
