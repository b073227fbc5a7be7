//! The labels by which Kubernetes and nerdctl say whose a container is.

use crate::resolve::workload::{Pod, Role};
use std::collections::{BTreeMap, HashMap};

const POD: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER: &str = "io.kubernetes.container.name";
const KIND: &str = "io.cri-containerd.kind";
const NERDCTL: &str = "nerdctl/name";

/// What the labels of a container say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    /// Sandbox or container.
    pub(super) role: Role,
    /// Its pod.
    pub(super) pod: Option<Pod>,
    /// Its name, if it has one.
    pub(super) name: Option<String>,
    /// All others.
    pub(super) others: BTreeMap<String, String>,
}

impl Labels {
    /// Takes the labels that mean something out of all.
    pub(super) fn read(mut all: HashMap<String, String>) -> Labels {
        let mut take = |key: &str| all.remove(key).filter(|value| !value.is_empty());
        let is_sandbox = take(KIND).is_some_and(|kind| kind == "sandbox");
        let (pod, namespace, uid) = (take(POD), take(POD_NAMESPACE), take(POD_UID));
        let (in_pod, alone) = (take(CONTAINER), take(NERDCTL));
        let whole = |(name, namespace)| Pod { namespace, name, uid: uid.unwrap_or_default() };
        Labels {
            role: if is_sandbox { Role::Sandbox } else { Role::Container },
            pod: pod.zip(namespace).map(whole),
            name: in_pod.or(alone),
            others: all.into_iter().collect(),
        }
    }
}

/// Whether it is an id that only one container in the world has.
pub(super) fn is_unique_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a container without a name is called: its id, as short as people write it.
pub(super) fn short_id(id: &str) -> &str {
    if is_unique_id(id) { &id[..12] } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> Labels {
        Labels::read(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_repeats_the_pod_is_taken_out() {
        let labels = read(&[
            (POD, "web-1"),
            (POD_NAMESPACE, "shop"),
            (POD_UID, "u-1"),
            (CONTAINER, "nginx"),
            (KIND, "container"),
            ("app", "web"),
        ]);
        let pod = Pod { namespace: "shop".into(), name: "web-1".into(), uid: "u-1".into() };
        assert_eq!(
            (labels.role, labels.pod, labels.name.as_deref()),
            (Role::Container, Some(pod), Some("nginx"))
        );
        assert_eq!(labels.others, BTreeMap::from([("app".into(), "web".into())]));
    }

    #[test]
    fn half_a_pod_is_none_and_hostile_values_are_only_text() {
        assert_eq!(read(&[(POD, "web-1")]).pod, None);
        assert_eq!(read(&[(POD, ""), (POD_NAMESPACE, "shop")]).pod, None);
        assert_eq!(read(&[(NERDCTL, "db"), (KIND, "sandbox\n")]).role, Role::Container);
        let hostile = read(&[(POD, "a\"b\n"), (POD_NAMESPACE, "}\\"), ("", "x")]);
        assert_eq!(hostile.pod.unwrap().name, "a\"b\n", "escaped where it is shown");
    }

    #[test]
    fn ids_are_cut_if_they_are_ids() {
        assert_eq!(short_id(&"0a".repeat(32)), "0a0a0a0a0a0a");
        assert_eq!(short_id("web"), "web");
        assert_eq!(short_id(&"é".repeat(32)).chars().count(), 32);
    }
}
