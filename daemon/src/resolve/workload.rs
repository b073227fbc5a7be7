//! What the sources of identity say of a container, a pod's sandbox, a unit or a machine. Plain data, cut to bounds as it
//! comes in: everything here was written by somebody else.

use super::pairs::Pairs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Longest name or id that is kept, in bytes: longer than any that Kubernetes, Docker or systemd allow.
const MAX_NAME: usize = 253;
/// Longest name of an image and longest description, in bytes.
const MAX_VALUE: usize = 256;
/// Digits of a container's id that people use.
pub const SHORT_ID: usize = 12;
/// Addresses, joined units and the like of one workload.
const MAX_LIST: usize = 16;

/// What sort of thing a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A container, in a pod or not.
    #[default]
    Container,
    /// What holds a pod's namespaces: the pause container, or what the runtime has in its place.
    Sandbox,
    /// A systemd unit.
    Unit,
    /// A machine of systemd-machined.
    Machine,
}

/// The pod that a workload belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Kubernetes namespace; empty for a podman pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty if the source does not tell.
    pub uid: String,
}

/// One thing that a source knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// What the source calls it: a container's full id, a unit's name (`nginx.service`), a machine's name. Together with
    /// the source it is unique. Shared by all that find it by its id.
    pub id: Arc<str>,
    /// What it is.
    pub role: Role,
    /// What people call it: the container's name in its pod, Docker's name without the slash, the unit, the machine.
    pub name: String,
    /// Its pod.
    pub pod: Option<Pod>,
    /// Image, as the runtime names it; empty if it has none.
    pub image: String,
    /// One line about it: a unit's `Description=`; empty if there is none.
    pub description: String,
    /// The runtime's own namespace: `k8s.io`, `moby`; empty if it has none.
    pub scope: Arc<str>,
    /// Its first process, in the node's pid namespace; `None` while it does not run.
    pub pid: Option<i32>,
    /// A file that leads to its network namespace, where the source names one.
    pub netns: Option<PathBuf>,
    /// Addresses that the runtime gave it.
    pub addresses: Vec<IpAddr>,
    /// Labels, without those that only repeat pod and container.
    pub labels: Pairs,
    /// Annotations, where the source has them.
    pub annotations: Pairs,
    /// Whose namespace it joined: units (`JoinsNamespaceOf=`), or the container that was there before (by id).
    pub joins: Vec<String>,
}

impl Workload {
    /// The same, cut to the bounds that memory and metrics can bear.
    pub fn bounded(mut self) -> Workload {
        for name in [&mut self.id, &mut self.scope] {
            if name.len() > MAX_NAME {
                *name = whole(name, MAX_NAME).into();
            }
        }
        cut(&mut self.name, MAX_NAME);
        if let Some(pod) = &mut self.pod {
            for name in [&mut pod.namespace, &mut pod.name, &mut pod.uid] {
                cut(name, MAX_NAME);
            }
        }
        // Without names there would be nothing to tell it by.
        if self.name.is_empty() {
            self.name = self.id.chars().take(SHORT_ID).collect();
        }
        self.pod = self.pod.take().filter(|pod| !pod.name.is_empty());
        cut(&mut self.image, MAX_VALUE);
        cut(&mut self.description, MAX_VALUE);
        self.addresses.truncate(MAX_LIST);
        self.addresses.shrink_to_fit();
        self.joins.truncate(MAX_LIST);
        self.joins.iter_mut().for_each(|name| cut(name, MAX_NAME));
        self
    }

    /// Whether it belongs to a pod.
    pub fn in_pod(&self) -> bool {
        self.pod.is_some()
    }
}

/// Cuts a text at the last whole character within `most` bytes, and gives back the rest of its memory.
pub fn cut(text: &mut String, most: usize) {
    text.truncate(whole(text, most).len());
    text.shrink_to_fit();
}

/// As much of the beginning as fits into that many bytes, in whole characters.
fn whole(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_is_cut() {
        let huge =
            Workload { name: "é".repeat(5_000), id: "é".repeat(5_000).into(), ..Workload::default() };
        let huge = huge.bounded();
        assert_eq!((huge.name.len(), huge.id.len()), (252, 252), "at a whole character");
    }

    #[test]
    fn what_has_no_name_goes_by_its_id() {
        let pod = Some(Pod::default());
        let bare = Workload { id: "0123456789abcdef".into(), pod, ..Workload::default() }.bounded();
        assert_eq!((bare.name.as_str(), bare.pod), ("0123456789ab", None));
    }
}
