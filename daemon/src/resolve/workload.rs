//! What the sources of identity say of a container, a pod's sandbox, a unit or a machine. Plain data, cut to bounds as it
//! comes in: everything here was written by somebody else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// Longest name or id that is kept, in bytes: longer than any that Kubernetes, Docker or systemd allow.
const MAX_NAME: usize = 253;
/// Longest value of a label, an image name or a description, in bytes.
const MAX_VALUE: usize = 256;
/// Digits of a container's id that people use.
pub const SHORT_ID: usize = 12;
/// Labels and annotations of one workload, each, in number and bytes together.
const MAX_LABELS: usize = 64;
const MAX_LABEL_BYTES: usize = 2048;
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
    /// the source it is unique.
    pub id: String,
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
    pub scope: String,
    /// Its first process, in the node's pid namespace; `None` while it does not run.
    pub pid: Option<i32>,
    /// A file that leads to its network namespace, where the source names one.
    pub netns: Option<PathBuf>,
    /// Addresses that the runtime gave it.
    pub addresses: Vec<IpAddr>,
    /// Labels, without those that only repeat pod and container.
    pub labels: BTreeMap<String, String>,
    /// Annotations, where the source has them.
    pub annotations: BTreeMap<String, String>,
    /// Whose namespace it joined: units (`JoinsNamespaceOf=`), or the container that was there before (by id).
    pub joins: Vec<String>,
}

impl Workload {
    /// The same, cut to the bounds that memory and metrics can bear.
    pub fn bounded(mut self) -> Workload {
        for name in [&mut self.id, &mut self.name, &mut self.scope] {
            cut(name, MAX_NAME);
        }
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
        self.labels = bounded(std::mem::take(&mut self.labels));
        self.annotations = bounded(std::mem::take(&mut self.annotations));
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
    let whole = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(whole.unwrap_or(0));
    text.shrink_to_fit();
}

/// The first labels in the order of their names that fit; values are cut, names never: half a name is another name.
fn bounded(labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut left = MAX_LABEL_BYTES;
    let mut kept = BTreeMap::new();
    for (name, mut value) in labels {
        cut(&mut value, MAX_VALUE);
        let size = name.len() + value.len();
        if kept.len() < MAX_LABELS && size <= left {
            left -= size;
            kept.insert(name, value);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_is_cut() {
        let labels = (0..1000).map(|i| (format!("key-{i:04}"), "é".repeat(5_000))).collect();
        let huge = Workload { name: "é".repeat(5_000), labels, ..Workload::default() }.bounded();
        assert_eq!(huge.name.len(), 252, "at a whole character");
        let size: usize = huge.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(size <= MAX_LABEL_BYTES && huge.labels.len() > 5, "{size}");
        assert!(huge.labels.contains_key("key-0000"));
    }

    #[test]
    fn what_has_no_name_goes_by_its_id() {
        let pod = Some(Pod::default());
        let bare = Workload { id: "0123456789abcdef".into(), pod, ..Workload::default() }.bounded();
        assert_eq!((bare.name.as_str(), bare.pod), ("0123456789ab", None));
    }

    #[test]
    fn a_name_of_a_label_is_whole_or_not_there() {
        let labels = BTreeMap::from([("k".repeat(3_000), "v".into()), ("z".to_owned(), "w".to_owned())]);
        let kept = Workload { labels, ..Workload::default() }.bounded().labels;
        assert_eq!(kept, BTreeMap::from([("z".to_owned(), "w".to_owned())]));
    }
}
