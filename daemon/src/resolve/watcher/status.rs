//! What the watcher says of itself.

use super::Watcher;
use crate::resolve::directory::Entry;
use netskoop_api::SourceStatus;
use std::time::Instant;

impl Watcher {
    /// State of the sources of identity.
    pub fn status(&self) -> Vec<SourceStatus> {
        let health = self.health().clone();
        let directory = self.directory();
        let named = |source: &str| {
            let by = |entry: &&Entry| entry.namespace.identity.source == source;
            u32::try_from(directory.entries().filter(by).count()).unwrap_or(u32::MAX)
        };
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed().as_secs());
        let status = |name: &str, state: String, at: Option<Instant>, entities: u32| SourceStatus {
            name: name.into(),
            state,
            last_event_seconds: ago(at),
            entities,
        };
        let processes = match &health.error {
            Some(error) => format!("failed: {error}"),
            None if health.hidden > 0 => {
                format!("{} processes cannot be looked at: CAP_SYS_PTRACE is missing", health.hidden)
            }
            None => "scanned".into(),
        };
        let mounts = if health.watching { "watching" } else { "absent until `ip netns` is first used" };
        let hooks =
            if health.hooked { "watching" } else { "absent: /proc is scanned every 5 s and at each scrape" };
        vec![
            status("processes", processes, health.last_scan, named("process") + named("process 1")),
            status("cgroup", "from the processes".into(), health.last_scan, named("cgroup")),
            status("/run/netns", mounts.into(), health.last_mount_event, named("/run/netns")),
            status("kernel hooks", hooks.into(), health.last_kernel_event, 0),
        ]
    }
}
