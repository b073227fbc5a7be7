//! Network namespaces of the daemon's own. Each is that of a thread and ends with it, however the thread or the daemon ends:
//! nothing of it can stay behind.

#![allow(unsafe_code, reason = "a system call that is marked so for another of its uses")]

use rustix::thread::UnshareFlags;
use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

type Job = Box<dyn FnOnce() + Send>;

/// A namespace, and the thread that lives in it and does there what it is told.
pub struct Room {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Inode number of the namespace.
    pub inode: u32,
    /// Number of the thread among the processes.
    pub id: i32,
}

impl Room {
    /// A new namespace without anything in it. The name is that of the thread.
    pub fn open(name: &str) -> io::Result<Room> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (tell, entered) = mpsc::channel();
        let work = move || {
            let result = enter();
            let is_inside = result.is_ok();
            // Whoever opens it waits for this.
            let _ = tell.send(result);
            if is_inside {
                inbox.into_iter().for_each(|job| job());
            }
        };
        let thread = Builder::new().name(name.to_owned()).spawn(work)?;
        let (inode, id) = entered.recv().map_err(|_| ended())??;
        Ok(Room { jobs: Some(jobs), thread: Some(thread), inode, id })
    }

    /// Does something inside and waits for it. Sockets that are made there belong there for good, wherever they are used.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (reply, done) = mpsc::channel();
        let job = Box::new(move || {
            // The other end waits.
            let _ = reply.send(work());
        });
        self.jobs.as_ref().ok_or_else(ended)?.send(job).map_err(|_| ended())?;
        done.recv().map_err(|_| ended())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to do any more, and ends at once.
            let _ = thread.join();
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread in a namespace of its own has ended")
}

/// Moves the calling thread into a new network namespace: its inode number, and the thread's number.
fn enter() -> io::Result<(u32, i32)> {
    // SAFETY: only the network namespace is changed. What must not be unshared is the table of descriptors, which other
    // threads go on using.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    let inode = rustix::fs::stat("/proc/thread-self/ns/net")?.st_ino;
    let inode = u32::try_from(inode).map_err(io::Error::other)?;
    Ok((inode, rustix::thread::gettid().as_raw_nonzero().get()))
}
