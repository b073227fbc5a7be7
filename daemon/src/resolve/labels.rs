//! The labels on series, rendered once per change of a name.

use super::describe;
use super::directory::Namespace;
use super::identity::Identity;
use super::workload::cut;
use crate::table::escape;
use netskoop_api::{Entity, EntityRef, Kind};

/// Longest value of a label of `netskoop_entity_info`, in bytes.
const MAX_VALUE: usize = 1024;

/// What labels are made with, beside the names.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// Name of the node, for the older generations.
    pub node: String,
    /// Whether this is another one than for the picture before.
    pub changed: bool,
}

/// The pod in the older generations' labels: what is no pod shows its name there.
pub(super) fn pod_name(identity: &Identity) -> &str {
    identity.pod.as_deref().unwrap_or(&identity.name)
}

/// Labels in the three generations. `is_only` says that no newer namespace has the same pod.
pub(super) fn render(id: &EntityRef, ns: &Namespace, is_only: bool, with: &Labels) -> [Box<str>; 3] {
    let (host, node) = (ns.facts.host, with.node.as_str());
    let mut native = Pairs::default();
    native.add("kind", id.kind.as_str());
    native.add("name", &id.name);
    if let (Some(namespace), Some(pod)) = (&id.namespace, &id.pod) {
        native.add("namespace", namespace);
        native.add("pod", pod);
    }
    let (namespace, pod) = match &id.pod {
        Some(pod) => (id.namespace.as_deref().unwrap_or_default(), pod.as_str()),
        None => ("", id.name.as_str()),
    };
    let inode = format!("ns{}", id.netns);
    let mut second = Pairs::default();
    second.add("k8s_node", node);
    second.add("k8s_namespace", if host { "" } else { namespace });
    second.add("k8s_pod", if host { "" } else { pod });
    if !is_only {
        second.add("netns", &inode);
    }
    let mut first = Pairs::default();
    let word = |word| if host { "hostNetwork" } else { word };
    first.add("namespace", word(namespace));
    first.add("pod", word(pod));
    first.add("node", node);
    first.add("netns", if host { "ns0" } else { &inode });
    [native.finish(), second.finish(), first.finish()]
}

/// Labels of what the kernel counted without telling a namespace.
pub(super) fn unattributed(with: &Labels) -> [Box<str>; 3] {
    let of = |pairs: &[(&str, &str)]| {
        let mut out = Pairs::default();
        pairs.iter().for_each(|(name, value)| out.add(name, value));
        out.finish()
    };
    let node = with.node.as_str();
    [
        of(&[("kind", Kind::Unknown.as_str()), ("name", "unattributed")]),
        of(&[("k8s_node", node), ("k8s_namespace", ""), ("k8s_pod", "unattributed")]),
        of(&[("namespace", ""), ("pod", "unattributed"), ("node", node), ("netns", "")]),
    ]
}

/// Labels of `netskoop_entity_info` for a namespace.
pub(super) fn info(id: &EntityRef, ns: &Namespace, _with: &Labels) -> Box<str> {
    info_of(&describe::facts(id, ns))
}

/// Labels of `netskoop_entity_info`: everything that is known and fits.
pub(super) fn info_of(entity: &Entity) -> Box<str> {
    let mut out = Pairs::default();
    out.add("kind", entity.id.kind.as_str());
    out.add("name", &entity.id.name);
    for (name, value) in [("namespace", &entity.id.namespace), ("pod", &entity.id.pod), ("uid", &entity.uid)]
    {
        out.maybe(name, value.as_deref().unwrap_or_default());
    }
    out.add("netns", &entity.id.netns.to_string());
    out.add("host_network", if entity.host_network { "true" } else { "false" });
    let inner = || entity.containers.iter().filter(|container| !container.sandbox);
    let joined = |words: Vec<&str>| words.join(",");
    out.maybe("containers", &joined(inner().map(|c| c.name.as_str()).collect()));
    out.maybe("container_ids", &joined(inner().map(|c| c.id.as_str()).collect()));
    out.maybe(
        "images",
        &joined(inner().map(|c| c.image.as_str()).filter(|image| !image.is_empty()).collect()),
    );
    out.maybe("ips", &joined(entity.addresses.iter().map(String::as_str).collect()));
    out.maybe("units", &joined(entity.units.iter().map(String::as_str).collect()));
    out.maybe("source", entity.sources.first().map(String::as_str).unwrap_or_default());
    out.finish()
}

/// Label pairs as they stand between the braces.
#[derive(Default)]
struct Pairs(Vec<u8>);

impl Pairs {
    fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"=\"");
        let mut value = value.to_owned();
        cut(&mut value, MAX_VALUE);
        escape(&mut self.0, value.as_bytes());
        self.0.push(b'"');
    }

    /// Leaves an empty value out: for Prometheus it means the same.
    fn maybe(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.add(name, value);
        }
    }

    fn finish(self) -> Box<str> {
        String::from_utf8(self.0).unwrap_or_default().into()
    }
}
