//! Wakes a thread that waits for descriptors.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// What one thread polls and others write to.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// Makes one.
    pub fn new() -> io::Result<Arc<Wake>> {
        Ok(Arc::new(Wake(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes the thread, now or when it polls next.
    pub fn wake(&self) {
        // It fails only if it is full, and then the thread will wake anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes note of having been woken.
    pub fn clear(&self) {
        // It fails only if nobody woke.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Threads that follow something.
#[derive(Debug, Default)]
pub struct Followers(Mutex<Vec<Arc<Wake>>>);

impl Followers {
    /// One more, unless it is among them.
    pub fn add(&self, follower: &Arc<Wake>) {
        let mut followers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !followers.iter().any(|known| Arc::ptr_eq(known, follower)) {
            followers.push(Arc::clone(follower));
        }
    }

    /// This one does not follow any more.
    pub fn remove(&self, follower: &Arc<Wake>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| !Arc::ptr_eq(known, follower));
    }

    /// Wakes them all.
    pub fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|follower| follower.wake());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_awake(wake: &Wake) -> bool {
        poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&Timespec::default())) == Ok(1)
    }

    #[test]
    fn those_who_follow_are_woken_and_no_others() {
        let (one, other) = (Wake::new().unwrap(), Wake::new().unwrap());
        let followers = Followers::default();
        for follower in [&one, &one, &other] {
            followers.add(follower);
        }
        followers.remove(&other);
        followers.wake();
        assert_eq!((is_awake(&one), is_awake(&other)), (true, false));
        one.clear();
        assert!(!is_awake(&one));
        followers.remove(&one);
        followers.wake();
        assert!(!is_awake(&one));
    }
}
