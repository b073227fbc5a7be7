//! The labels on series, rendered once per change of a name.

use super::directory::Namespace;
use super::extra::{About, Extra, Shown};
use super::identity::Identity;
use super::workload::cut;
use crate::table::escape;
use netskoop_api::{Entity, EntityRef, Kind};
use std::collections::HashSet;

/// Longest value of a label, in bytes.
const MAX_VALUE: usize = 512;
/// Labels of the pod that `netskoop_entity_info` shows, the longest value of one, and all of its labels together.
const MAX_POD_LABELS: usize = 32;
const MAX_POD_VALUE: usize = 256;
const MAX_INFO: usize = 4096;

/// Names that the labels of entities have in any generation: no other label may be called so.
pub const ENTITY_LABELS: [&str; 12] = [
    "kind",
    "name",
    "namespace",
    "pod",
    "node",
    "netns",
    "k8s_node",
    "k8s_namespace",
    "k8s_pod",
    "target_node",
    "target_namespace",
    "target_pod",
];

/// Name of what the kernel counted without telling a namespace.
pub(super) const UNATTRIBUTED: &str = "unattributed";
/// Name and kind of what found no room under its own name.
pub(super) const OTHER: &str = "other";

/// What labels are made with, beside the names.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// Name of the node, for the older generations.
    pub node: String,
    /// Labels of the configuration.
    pub extra: Extra,
    /// Whether this is another one than for the picture before.
    pub changed: bool,
}

/// The pod in the older generations' labels: what is no pod shows its name there.
pub(super) fn pod_name(identity: &Identity) -> &str {
    identity.pod.as_deref().unwrap_or(&identity.name)
}

/// Labels in the three generations. `is_only` says that no newer namespace has the same pod.
pub(super) fn render(
    id: &EntityRef,
    ns: &Namespace,
    is_only: bool,
    with: &Labels,
    extra: &[Shown],
) -> [Box<str>; 3] {
    let (host, node) = (ns.facts.host, with.node.as_str());
    let native = native(id);
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
    [native, second, first].map(|pairs| pairs.and(&with.extra, extra).finish())
}

fn native(id: &EntityRef) -> Pairs {
    let mut pairs = Pairs::default();
    pairs.add("kind", id.kind.as_str());
    pairs.add("name", &id.name);
    if let (Some(namespace), Some(pod)) = (&id.namespace, &id.pod) {
        pairs.add("namespace", namespace);
        pairs.add("pod", pod);
    }
    pairs
}

/// Labels of what lives in the node's own namespace, for what is known by process: under its own name, in the older
/// generations as well. `pod` is what these call it.
pub(super) fn of_tenant(id: &EntityRef, pod: &str, with: &Labels, extra: &[Shown]) -> [Box<str>; 3] {
    let (namespace, node) = (id.namespace.as_deref().unwrap_or_default(), with.node.as_str());
    let of = |all: &[(&str, &str)]| {
        let mut pairs = Pairs::default();
        all.iter().for_each(|(name, value)| pairs.add(name, value));
        pairs
    };
    let second = of(&[("k8s_node", node), ("k8s_namespace", namespace), ("k8s_pod", pod)]);
    let first = of(&[("namespace", namespace), ("pod", pod), ("node", node), ("netns", "ns0")]);
    [native(id), second, first].map(|pairs| pairs.and(&with.extra, extra).finish())
}

/// Labels of series that belong to no namespace.
#[derive(Debug, Default)]
pub(super) struct Nobodys {
    /// Of what the kernel counted without telling a namespace.
    pub(super) unattributed: [Box<str>; 3],
    /// Of what found no room under its own name.
    pub(super) other: [Box<str>; 3],
}

impl Nobodys {
    pub(super) fn new(with: &Labels) -> Nobodys {
        Nobodys {
            unattributed: nobodys(Kind::Unknown.as_str(), UNATTRIBUTED, with),
            other: nobodys(OTHER, OTHER, with),
        }
    }
}

fn nobodys(kind: &str, name: &str, with: &Labels) -> [Box<str>; 3] {
    let id = EntityRef { kind: Kind::Unknown, name: name.into(), namespace: None, pod: None, netns: 0 };
    let node = with.node.as_str();
    let entity = Entity::of(id);
    let extra = with.extra.of_nobody(&About { entity: &entity, claims: &[], node });
    let of = |pairs: &[(&str, &str)]| {
        let mut out = Pairs::default();
        pairs.iter().for_each(|(name, value)| out.add(name, value));
        out.and(&with.extra, &extra).finish()
    };
    [
        of(&[("kind", kind), ("name", name)]),
        of(&[("k8s_node", node), ("k8s_namespace", ""), ("k8s_pod", name)]),
        of(&[("namespace", ""), ("pod", name), ("node", node), ("netns", "")]),
    ]
}

/// Writes the inspector's labels as its release 0.1 had them: Prometheus overwrites `node`, `namespace` and `pod` with its
/// own, so it added them once more under other names. It had no `netns`; `netns` says that it is needed, because another
/// namespace has the same pod. The labels of the configuration follow.
pub fn write_target(out: &mut Vec<u8>, inspector: &str, netns: bool) {
    let mut rest = inspector;
    let [namespace, pod, node, inode] = [(); 4].map(|()| {
        let (pair, after) = rest.split_at(end_of_pair(rest));
        rest = after.strip_prefix(',').unwrap_or(after);
        pair
    });
    for (prefix, pair) in [
        ("target_", node),
        (",target_", namespace),
        (",target_", pod),
        (",", node),
        (",", namespace),
        (",", pod),
    ] {
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(pair.as_bytes());
    }
    for pair in [if netns { inode } else { "" }, rest].into_iter().filter(|pair| !pair.is_empty()) {
        out.push(b',');
        out.extend_from_slice(pair.as_bytes());
    }
}

/// Length of the pair `name="value"` at the beginning.
fn end_of_pair(text: &str) -> usize {
    let Some(start) = text.find("=\"") else { return text.len() };
    let mut escaped = false;
    let end = text.as_bytes()[start + 2..].iter().position(|byte| {
        let is_end = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        is_end
    });
    end.map_or(text.len(), |end| start + 2 + end + 1)
}

/// Labels of `netskoop_entity_info`: everything that is known and fits. What comes first matters most.
pub(super) fn info(entity: &Entity) -> Box<str> {
    let mut out = Pairs::default();
    out.add("kind", entity.id.kind.as_str());
    out.add("name", &entity.id.name);
    for (name, value) in [("namespace", &entity.id.namespace), ("pod", &entity.id.pod), ("uid", &entity.uid)]
    {
        out.maybe(name, value.as_deref().unwrap_or_default());
    }
    out.add("netns", &entity.id.netns.to_string());
    out.add("host_network", if entity.host_network { "true" } else { "false" });
    out.maybe("source", entity.sources.first().map(String::as_str).unwrap_or_default());
    out.maybe("ips", &joined(entity.addresses.iter().map(String::as_str)));
    let inner = || entity.containers.iter().filter(|container| !container.sandbox);
    let alone = || entity.container_id.as_deref().filter(|_| entity.containers.is_empty());
    out.maybe("containers", &joined(inner().map(|c| c.name.as_str())));
    out.maybe("container_ids", &joined(inner().map(|c| c.id.as_str()).chain(alone())));
    out.maybe("images", &joined(inner().map(|c| c.image.as_str())));
    out.maybe("units", &joined(entity.units.iter().map(String::as_str)));
    out.maybe("description", entity.description.as_deref().unwrap_or_default());
    if entity.id.pod.is_some() {
        pod_labels(&mut out, entity);
    }
    out.finish()
}

/// The pod's labels as kube-state-metrics names them. Of several that become the same name the first is shown.
fn pod_labels(out: &mut Pairs, entity: &Entity) {
    let mut names = HashSet::new();
    for (name, value) in &entity.labels {
        let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = "label_".chars().chain(name.chars().map(legal)).collect();
        let mut value = value.clone();
        cut(&mut value, MAX_POD_VALUE);
        if names.len() < MAX_POD_LABELS && names.insert(name.clone()) {
            out.maybe(&name, &value);
        }
    }
}

/// As many of the words as fit, without empty ones and without half ones.
fn joined<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::new();
    for word in words.filter(|word| !word.is_empty()) {
        if out.len() + 1 + word.len() > MAX_VALUE {
            break;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(word);
    }
    out
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

    /// Leaves an empty value out, which means the same for Prometheus, and what would make the line too long.
    fn maybe(&mut self, name: &str, value: &str) {
        let before = self.0.len();
        if !value.is_empty() {
            self.add(name, value);
        }
        if self.0.len() > MAX_INFO {
            self.0.truncate(before);
        }
    }

    /// Adds the labels of the configuration.
    fn and(mut self, extra: &Extra, values: &[Shown]) -> Pairs {
        extra.pairs(values).for_each(|(name, value)| self.add(name, value));
        self
    }

    fn finish(self) -> Box<str> {
        String::from_utf8(self.0).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn pod(labels: BTreeMap<String, String>) -> Entity {
        let id = EntityRef {
            kind: Kind::Pod,
            name: "shop/cart".into(),
            namespace: Some("shop".into()),
            pod: Some("cart".into()),
            netns: 7,
        };
        Entity { labels, ..Entity::of(id) }
    }

    #[test]
    fn the_labels_of_release_0_1_are_made_of_the_inspectors() {
        let of = |text: &str, netns| {
            let mut out = Vec::new();
            write_target(&mut out, text, netns);
            String::from_utf8(out).unwrap()
        };
        let plain = r#"namespace="shop",pod="cart",node="w",netns="ns7""#;
        let expected = r#"target_node="w",target_namespace="shop",target_pod="cart",node="w",namespace="shop",pod="cart""#;
        assert_eq!(of(plain, false), expected);
        assert_eq!(of(plain, true), format!(r#"{expected},netns="ns7""#));
        let weird = r#"namespace="",pod="a\"b\\",node="w,\\\"",netns="ns7",app="x,y",tier="""#;
        let expected = r#"target_node="w,\\\"",target_namespace="",target_pod="a\"b\\",node="w,\\\"",namespace="",pod="a\"b\\",app="x,y",tier="""#;
        assert_eq!(of(weird, false), expected);
    }

    #[test]
    fn an_info_has_what_is_known() {
        let labels = [("app.kubernetes.io/name", "cart"), ("app_kubernetes_io_name", "second"), ("tier", "")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let entity = Entity { addresses: vec!["10.0.0.9".into(), "fd00::9".into()], ..pod(labels) };
        let expected = "kind=\"pod\",name=\"shop/cart\",namespace=\"shop\",pod=\"cart\",netns=\"7\",\
                        host_network=\"false\",ips=\"10.0.0.9,fd00::9\",label_app_kubernetes_io_name=\"cart\"";
        assert_eq!(&*info(&entity), expected);
        let mut alone = entity;
        alone.id.pod = None;
        assert!(!info(&alone).contains("label_"), "only a pod's labels are its own");
    }

    #[test]
    fn hostile_labels_are_escaped_and_cut() {
        let labels = (0..1000).map(|i| (format!("k\n\"{i}"), "\"\\\né".repeat(2_000))).collect();
        let hostile = Entity { description: Some("x".repeat(10_000)), ..pod(labels) };
        let line = info(&hostile);
        assert!(line.len() <= MAX_INFO && !line.contains('\n'), "{}", line.len());
        assert!(line.contains(",label_k__0=\"\\\"\\\\\\né"), "{line}");
        // Every quote that is not escaped opens or closes a value.
        let plain = line.replace("\\\\", "").replace("\\\"", "");
        assert_eq!(plain.matches('"').count(), 2 * plain.matches("=\"").count());
    }

    #[test]
    fn a_list_is_whole_words() {
        assert_eq!(joined(["a", "", "b"].into_iter()), "a,b");
        let long = "x".repeat(300);
        assert_eq!(joined([long.as_str(), &long].into_iter()), long);
    }
}
