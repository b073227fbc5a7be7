//! The time that a pass spends on walks through the kernel's table of connections. Each walk goes through the connections of
//! all namespaces, so what a pass takes grows with the number of namespaces times that of all connections.

use std::time::{Duration, Instant};

/// What the passes have spent. The jobs of a pass are known by their deadline.
#[derive(Debug, Default)]
pub(super) struct Budget {
    deadline: Option<Instant>,
    /// Number of the pass; the first is 1.
    pass: u32,
    spent: Duration,
    /// Whether a namespace was left out of this pass.
    short: bool,
    /// The same of the one before.
    was_short: bool,
}

impl Budget {
    /// Whether a namespace may be walked through in the pass with this deadline. `walked` is the number of the pass in which it
    /// was last, and becomes that of this one. After a pass that was too short those come first that it left out.
    pub(super) fn allows(&mut self, deadline: Instant, most: Duration, walked: &mut u32) -> bool {
        if self.deadline != Some(deadline) {
            let was_short = self.short;
            *self = Budget {
                deadline: Some(deadline),
                pass: self.pass.wrapping_add(1),
                was_short,
                ..Budget::default()
            };
        }
        let had_its_turn = self.was_short && *walked == self.pass.wrapping_sub(1);
        if self.spent >= most || had_its_turn {
            self.short = true;
            return false;
        }
        *walked = self.pass;
        true
    }

    /// Adds what a walk took.
    pub(super) fn spend(&mut self, time: Duration) {
        self.spent += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks that take 10 ms each, in passes of 30 ms: which of the namespaces were walked through.
    fn pass(budget: &mut Budget, deadline: Instant, walked: &mut [u32]) -> Vec<usize> {
        let mut found = Vec::new();
        for (at, walked) in walked.iter_mut().enumerate() {
            if budget.allows(deadline, Duration::from_millis(30), walked) {
                budget.spend(Duration::from_millis(10));
                found.push(at);
            }
        }
        found
    }

    #[test]
    fn what_a_pass_leaves_out_comes_first_in_the_next() {
        let (mut budget, mut walked, start) = (Budget::default(), [0; 5], Instant::now());
        let mut next =
            |number: u64, walked: &mut [u32]| pass(&mut budget, start + Duration::from_secs(number), walked);
        assert_eq!(next(1, &mut walked), [0, 1, 2]);
        assert_eq!(next(2, &mut walked), [3, 4]);
        assert_eq!(next(3, &mut walked), [0, 1, 2]);
        // As soon as there is time for all of them, each pass has all.
        assert!(next(4, &mut walked[..2]).is_empty());
        assert_eq!((next(5, &mut walked[..2]), next(6, &mut walked[..2])), (vec![0, 1], vec![0, 1]));
    }

    #[test]
    fn the_jobs_of_a_pass_share_its_time() {
        let (mut budget, deadline) = (Budget::default(), Instant::now());
        assert_eq!(pass(&mut budget, deadline, &mut [0; 2]).len(), 2);
        assert_eq!(pass(&mut budget, deadline, &mut [0; 2]).len(), 1);
    }
}
