//! Labels that the configuration puts on every series: texts with placeholders for what is known of an entity.

use super::identity::Claimed;
use super::workload::cut;
use netskoop_api::{ContainerInfo, Entity};
use rustc_hash::FxHashSet;
use std::sync::Arc;

/// Extra labels at most: each makes every series longer.
pub const MAX_LABELS: usize = 8;
/// Values that one label has at most, unless the configuration says otherwise.
pub const DEFAULT_VALUES: usize = 1000;
/// What is shown in place of a value beyond that.
pub const OTHER: &str = "__other__";
/// Longest template and longest value, in bytes.
const MAX_TEMPLATE: usize = 256;
const MAX_VALUE: usize = 128;

/// A label of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraLabel {
    /// Its name.
    pub name: String,
    /// What its value is made of.
    pub template: Template,
}

/// A text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder(What, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    PodLabel,
    PodAnnotation,
    Label,
    PodIp,
    Uid,
    Container,
    ContainerId,
    Image,
    Node,
    Netns,
    Unit,
    Description,
}

impl What {
    /// Whether a key follows.
    fn has_key(self) -> bool {
        matches!(self, What::PodLabel | What::PodAnnotation | What::Label)
    }
}

const PLACEHOLDERS: [(&str, What); 12] = [
    ("pod_label", What::PodLabel),
    ("pod_annotation", What::PodAnnotation),
    ("label", What::Label),
    ("pod_ip", What::PodIp),
    ("uid", What::Uid),
    ("container", What::Container),
    ("container_id", What::ContainerId),
    ("image", What::Image),
    ("node", What::Node),
    ("netns", What::Netns),
    ("unit", What::Unit),
    ("description", What::Description),
];

impl Template {
    /// Reads a text with placeholders; the error is a phrase that says what is wrong and what there is.
    pub fn parse(text: &str) -> Result<Template, String> {
        if text.is_empty() {
            return Err("the text is empty; write e.g. \"${pod_label:app}\", or remove the label".to_owned());
        }
        if text.len() > MAX_TEMPLATE {
            return Err(format!("the text is longer than {MAX_TEMPLATE} bytes; shorten it"));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let (inner, tail) = after.split_once('}').ok_or("a placeholder has no end; close it with '}'")?;
            parts.extend((!before.is_empty()).then(|| Part::Text(before.to_owned())));
            parts.push(placeholder(inner)?);
            rest = tail;
        }
        parts.extend((!rest.is_empty()).then(|| Part::Text(rest.to_owned())));
        Ok(Template { text: text.to_owned(), parts })
    }

    /// The label of the pod with this key.
    pub fn pod_label(key: &str) -> Template {
        let parts = vec![Part::Placeholder(What::PodLabel, key.to_owned())];
        Template { text: format!("${{pod_label:{key}}}"), parts }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value for an entity, cut. Empty if it has placeholders and nothing is known for any of them: a text around
    /// nothing would only look like a value.
    fn expand(&self, about: &About<'_>) -> String {
        let mut value = String::new();
        let (mut asked, mut known) = (false, false);
        for part in &self.parts {
            match part {
                Part::Text(text) => value.push_str(text),
                Part::Placeholder(what, key) => {
                    let found = about.find(*what, key);
                    (asked, known) = (true, known || !found.is_empty());
                    value.push_str(&found);
                }
            }
        }
        if asked && !known {
            value.clear();
        }
        cut(&mut value, MAX_VALUE);
        value
    }
}

fn placeholder(inner: &str) -> Result<Part, String> {
    let (name, key) = inner.split_once(':').map_or((inner, None), |(name, key)| (name, Some(key)));
    let what = PLACEHOLDERS.iter().find(|(known, _)| *known == name).map(|(_, what)| *what);
    match (what, key) {
        (Some(what), Some(key)) if what.has_key() && !key.is_empty() => {
            Ok(Part::Placeholder(what, key.to_owned()))
        }
        (Some(what), None) if !what.has_key() => Ok(Part::Placeholder(what, String::new())),
        (Some(what), _) if what.has_key() => {
            Err(format!("'${{{name}}}' needs the key of a label; write e.g. ${{{name}:app}}"))
        }
        (Some(_), _) => Err(format!("'${{{name}}}' takes no key; write ${{{name}}}")),
        (None, _) => {
            let shown: String = name.chars().take(40).flat_map(char::escape_debug).collect();
            Err(format!("'${{{shown}}}' is no placeholder; there are {}", known_placeholders()))
        }
    }
}

/// All placeholders as they are written.
pub fn known_placeholders() -> String {
    let written = |(name, what): &(&str, What)| match what.has_key() {
        true => format!("${{{name}:KEY}}"),
        false => format!("${{{name}}}"),
    };
    PLACEHOLDERS.iter().map(written).collect::<Vec<_>>().join(", ")
}

/// What values are made from.
pub(super) struct About<'a> {
    /// What is known of the entity.
    pub(super) entity: &'a Entity,
    /// What the sources say of it.
    pub(super) claims: &'a [Claimed],
    /// Name of the node.
    pub(super) node: &'a str,
}

impl About<'_> {
    fn find(&self, what: What, key: &str) -> String {
        let entity = self.entity;
        let of = |text: Option<&String>| text.cloned().unwrap_or_default();
        let in_pod = entity.id.pod.is_some();
        let container = || entity.containers.iter().find(|container| !container.sandbox);
        match what {
            What::PodLabel => of(entity.labels.get(key).filter(|_| in_pod)),
            What::PodAnnotation => of(entity.annotations.get(key).filter(|_| in_pod)),
            What::Label => {
                container().and_then(|container| self.label(container, key)).unwrap_or_default().to_owned()
            }
            What::PodIp => self.address(),
            What::Uid => of(entity.uid.as_ref()),
            What::Container => of(container().map(|container| &container.name)),
            What::ContainerId => {
                of(container().map(|container| &container.id).or(entity.container_id.as_ref()))
            }
            What::Image => of(container().map(|container| &container.image)),
            What::Node => self.node.to_owned(),
            What::Netns if entity.id.netns == 0 => String::new(),
            What::Netns => entity.id.netns.to_string(),
            What::Unit => of(entity.units.first()),
            What::Description => of(entity.description.as_ref()),
        }
    }

    fn label(&self, container: &ContainerInfo, key: &str) -> Option<&str> {
        let same = self.claims.iter().map(Claimed::workload).filter(|workload| *workload.id == *container.id);
        same.into_iter().find_map(|workload| workload.labels.get(key))
    }

    /// The address that the runtime gave it, else the first that is configured inside. The node has many and none of them
    /// is the one.
    fn address(&self) -> String {
        if self.entity.id.kind == netskoop_api::Kind::Host {
            return String::new();
        }
        let given = self.claims.iter().find_map(|claimed| claimed.workload().addresses.first());
        let given = given.map(ToString::to_string);
        given.or_else(|| self.entity.addresses.first().cloned()).unwrap_or_default()
    }
}

/// The extra labels of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// The labels, each name once.
    pub labels: Arc<[ExtraLabel]>,
    /// Different values that one label may have.
    pub max_values: usize,
}

impl Default for Extra {
    fn default() -> Extra {
        Extra { labels: Arc::default(), max_values: DEFAULT_VALUES }
    }
}

impl Extra {
    /// The pairs of name and value that are shown.
    pub(super) fn pairs<'a>(&'a self, values: &'a [Shown]) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.labels.iter().zip(values).filter_map(|(label, shown)| match shown {
            Shown::Nothing => None,
            Shown::Value(value) => Some((label.name.as_str(), &**value)),
            Shown::Other => Some((label.name.as_str(), OTHER)),
        })
    }

    /// For series that belong to nobody.
    pub(super) fn of_nobody(&self, about: &About<'_>) -> Vec<Shown> {
        let value = |label: &ExtraLabel| match label.template.expand(about) {
            value if value.is_empty() => Shown::Nothing,
            value => Shown::Value(value.into()),
        };
        self.labels.iter().map(value).collect()
    }
}

/// What an extra label shows for an entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// It has no value.
    Nothing,
    /// Its value.
    Value(Arc<str>),
    /// That there were too many values by then. It stays so while the entity lives: a series must not change its labels
    /// because another entity went away.
    Other,
}

/// Keeps the number of values in bounds, label by label.
pub(super) struct Guard<'a> {
    extra: &'a Extra,
    /// Values of each label; nothing is kept where there is room for all anyway.
    seen: Vec<FxHashSet<Arc<str>>>,
}

impl<'a> Guard<'a> {
    /// Nothing is shown yet, and so many entities want to.
    pub(super) fn new(extra: &'a Extra, entities: usize) -> Guard<'a> {
        let labels = if entities > extra.max_values { extra.labels.len() } else { 0 };
        Guard { extra, seen: vec![FxHashSet::default(); labels] }
    }

    /// Whether there may be too many values.
    pub(super) fn is_needed(&self) -> bool {
        !self.seen.is_empty()
    }

    /// These values are shown already, and stay.
    pub(super) fn keep(&mut self, values: &[Shown]) {
        for (seen, shown) in self.seen.iter_mut().zip(values) {
            if let Shown::Value(value) = shown {
                seen.insert(Arc::clone(value));
            }
        }
    }

    /// The values of an entity; `before` are those that it had.
    pub(super) fn admit(&mut self, about: &About<'_>, before: &[Shown]) -> Box<[Shown]> {
        let labels = self.extra.labels.iter().enumerate();
        labels.map(|(at, label)| self.admit_one(at, label, about, before.get(at))).collect()
    }

    fn admit_one(
        &mut self,
        at: usize,
        label: &ExtraLabel,
        about: &About<'_>,
        before: Option<&Shown>,
    ) -> Shown {
        let value: Arc<str> = label.template.expand(about).into();
        if value.is_empty() {
            return Shown::Nothing;
        }
        if before == Some(&Shown::Other) {
            return Shown::Other;
        }
        let Some(seen) = self.seen.get_mut(at) else { return Shown::Value(value) };
        if seen.len() >= self.extra.max_values && !seen.contains(&value) {
            return Shown::Other;
        }
        seen.insert(Arc::clone(&value));
        Shown::Value(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netskoop_api::{EntityRef, Kind};
    use std::collections::BTreeMap;

    fn pod() -> Entity {
        let id = EntityRef {
            kind: Kind::Pod,
            name: "shop/cart".into(),
            namespace: Some("shop".into()),
            pod: Some("cart".into()),
            netns: 7,
        };
        let container = |id: &str, name: &str, sandbox| ContainerInfo {
            id: id.into(),
            name: name.into(),
            image: "registry/cart:1".into(),
            pid: None,
            sandbox,
        };
        Entity {
            containers: vec![container("s", "", true), container("c", "web", false)],
            labels: BTreeMap::from([("app".into(), "cart".into()), ("a.b/c".into(), "deep".into())]),
            annotations: BTreeMap::from([("sum".into(), "1".into())]),
            addresses: vec!["10.0.0.9".into()],
            uid: Some("u-1".into()),
            ..Entity::of(id)
        }
    }

    fn expand(text: &str, entity: &Entity) -> String {
        Template::parse(text).unwrap().expand(&About { entity, claims: &[], node: "n1" })
    }

    #[test]
    fn placeholders_and_texts() {
        let pod = pod();
        for (template, value) in [
            ("${pod_label:app}", "cart"),
            ("${pod_label:a.b/c}", "deep"),
            ("${pod_annotation:sum}", "1"),
            ("${pod_ip}", "10.0.0.9"),
            ("${uid}", "u-1"),
            ("${container}", "web"),
            ("${container_id}", "c"),
            ("${image}", "registry/cart:1"),
            ("${node}-${netns}", "n1-7"),
            ("x-${pod_label:none}", ""),
            ("x-${pod_label:none}-${node}", "x--n1"),
            ("prod", "prod"),
            ("$5 {a} ${node}", "$5 {a} n1"),
        ] {
            assert_eq!(expand(template, &pod), value, "{template}");
        }
        let alone = Entity { id: EntityRef { pod: None, ..pod.id.clone() }, ..pod.clone() };
        assert_eq!(expand("${pod_label:app}", &alone), "", "no pod, no label of one");
        let long = Entity { uid: Some("é".repeat(5_000)), ..pod };
        assert_eq!(expand("${uid}", &long).len(), MAX_VALUE);
    }

    #[test]
    fn bad_templates_are_explained() {
        let says = |text: &str| Template::parse(text).unwrap_err();
        assert!(
            says("${pod_lable:app}")
                .starts_with("'${pod_lable}' is no placeholder; there are ${pod_label:KEY}, ")
        );
        assert_eq!(
            says("${pod_label}"),
            "'${pod_label}' needs the key of a label; write e.g. ${pod_label:app}"
        );
        assert_eq!(says("${label:}"), "'${label}' needs the key of a label; write e.g. ${label:app}");
        assert_eq!(says("${uid:x}"), "'${uid}' takes no key; write ${uid}");
        assert_eq!(says("a ${uid"), "a placeholder has no end; close it with '}'");
        assert!(says("").starts_with("the text is empty"));
        assert!(says(&"x".repeat(MAX_TEMPLATE + 1)).contains("longer than"));
        assert!(says("${\u{1b}[2J}").contains("\\u{1b}"));
    }

    #[test]
    fn values_beyond_the_limit_are_shown_as_other_and_stay_so() {
        let label = ExtraLabel { name: "id".into(), template: Template::parse("${uid}").unwrap() };
        let extra = Extra { labels: [label].into(), max_values: 2 };
        let entity = |uid: &str| Entity { uid: Some(uid.into()), ..pod() };
        let admit = |guard: &mut Guard<'_>, uid: &str, before: &[Shown]| {
            let entity = entity(uid);
            guard.admit(&About { entity: &entity, claims: &[], node: "" }, before).into_vec().remove(0)
        };
        let mut guard = Guard::new(&extra, 3);
        let a = admit(&mut guard, "a", &[]);
        assert_eq!(a, Shown::Value("a".into()));
        assert_eq!(admit(&mut guard, "b", &[]), Shown::Value("b".into()));
        let c = admit(&mut guard, "c", &[]);
        assert_eq!(c, Shown::Other);
        assert_eq!(admit(&mut guard, "a", &[]), a, "it is there already");
        // In the next picture `b` is gone, and there is room; `c` goes on as it was, and a new one gets the room.
        let mut guard = Guard::new(&extra, 3);
        guard.keep(&[a]);
        assert_eq!(admit(&mut guard, "c", &[c]), Shown::Other);
        assert_eq!(admit(&mut guard, "d", &[]), Shown::Value("d".into()));
        assert_eq!(admit(&mut guard, "", &[Shown::Other]), Shown::Nothing);
        // Two of them cannot have three values; who was without its own stays so.
        let mut guard = Guard::new(&extra, 2);
        assert!(!guard.is_needed());
        assert_eq!(admit(&mut guard, "x", &[]), Shown::Value("x".into()));
        assert_eq!(admit(&mut guard, "y", &[Shown::Other]), Shown::Other);
    }
}
