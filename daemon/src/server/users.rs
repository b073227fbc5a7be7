//! Counts the connections of each user, so that one of them cannot take all places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections that are open, by user id.
#[derive(Clone, Default)]
pub(super) struct Users(Arc<Mutex<HashMap<u32, usize>>>);

/// One of them; it ends with this.
pub(super) struct Counted {
    users: Users,
    user: Option<u32>,
}

impl Users {
    /// Counts one more connection, unless the user has `most` already. Who has no number is not counted.
    pub(super) fn count(&self, user: Option<u32>, most: usize) -> Option<Counted> {
        if let Some(user) = user {
            let mut open = self.open();
            let held = open.get(&user).copied().unwrap_or(0);
            if held >= most {
                return None;
            }
            open.insert(user, held + 1);
        }
        Some(Counted { users: self.clone(), user })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some(user) = self.user else { return };
        let mut open = self.users.open();
        match open.get_mut(&user) {
            Some(held) if *held > 1 => *held -= 1,
            _ => drop(open.remove(&user)),
        }
    }
}
