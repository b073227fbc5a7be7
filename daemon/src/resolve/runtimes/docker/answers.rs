//! What Docker and podman answer, as far as it is of use, and the workloads that it makes.

use crate::resolve::book::MAX_WORKLOADS;
use crate::resolve::workload::{Pod, Role, Workload};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// `GET /version`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) version: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) components: Vec<Component>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Component {
    pub(super) name: String,
    pub(super) version: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) details: BTreeMap<String, String>,
}

/// A container in the list; podman names a few things more than Docker.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(deserialize_with = "or_default")]
    names: Vec<String>,
    image: String,
    /// Docker before 1.13 does not tell, and lists only those that run.
    state: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    network_settings: NetworkSettings,
    #[serde(deserialize_with = "or_default")]
    host_config: HostConfig,
    #[serde(deserialize_with = "or_default")]
    pid: i32,
    pod: String,
    pod_name: String,
    is_infra: bool,
}

/// `GET /containers/{id}/json`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: String,
    name: String,
    state: ContainerState,
    config: Config,
    image_name: String,
    #[serde(deserialize_with = "or_default")]
    network_settings: NetworkSettings,
    #[serde(deserialize_with = "or_default")]
    host_config: HostConfig,
    /// Id of podman's pod.
    #[serde(deserialize_with = "or_default")]
    pub(super) pod: String,
    is_infra: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ContainerState {
    pid: i32,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    image: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
}

impl HostConfig {
    /// The container whose namespace this one is in.
    fn joins(&self) -> Vec<String> {
        self.network_mode.strip_prefix("container:").map(str::to_owned).into_iter().collect()
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(deserialize_with = "or_default")]
    networks: BTreeMap<String, Option<Endpoint>>,
    sandbox_key: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "IPAddress")]
    v4: String,
    #[serde(rename = "GlobalIPv6Address")]
    v6: String,
}

/// `GET /libpod/pods/{id}/json`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct PodInspected {
    pub(super) name: String,
}

/// Go writes `null` for an empty list or map.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The running containers of a list. Each is cut to its bounds before the next is looked at.
pub(super) struct Containers(pub(super) Vec<Workload>);

impl<'de> Deserialize<'de> for Containers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Vec<Workload>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of containers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                // One more than there is room for, so that the book counts what it refuses.
                while all.len() <= MAX_WORKLOADS
                    && let Some(listed) = list.next_element::<Listed>()?
                {
                    all.extend(listed.is_running().then(|| listed.workload().bounded()));
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(all)
            }
        }
        from.deserialize_seq(Each).map(Containers)
    }
}

/// Whether this can be a container's id; everything else is kept out of paths.
pub(super) fn is_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Listed {
    fn is_running(&self) -> bool {
        is_id(&self.id) && ["", "running", "paused"].contains(&self.state.as_str())
    }

    fn workload(self) -> Workload {
        // Others are names that linked containers have for it: `/other/alias`.
        let own = self.names.iter().map(|name| bare(name)).find(|name| !name.contains('/'));
        let name = own.unwrap_or_default().to_owned();
        let role = if self.is_infra { Role::Sandbox } else { Role::Container };
        let pod = (!self.pod.is_empty() && !self.pod_name.is_empty()).then(|| Pod {
            namespace: String::new(),
            name: self.pod_name,
            uid: self.pod,
        });
        let workload = Workload {
            id: self.id.into(),
            role,
            name,
            pod,
            image: self.image,
            pid: Some(self.pid).filter(|pid| *pid > 0),
            netns: self.network_settings.netns(),
            addresses: self.network_settings.addresses(),
            joins: self.host_config.joins(),
            ..Workload::default()
        };
        with_kubernetes(workload, self.labels, BTreeMap::new())
    }
}

impl Inspected {
    /// The workload, if it runs: one that does not holds no namespace. `pod_name` is the name of podman's pod.
    pub(super) fn workload(self, pod_name: Option<String>) -> Option<Workload> {
        let pid = Some(self.state.pid).filter(|pid| *pid > 0)?;
        let mut annotations = self.config.annotations;
        annotations.retain(|key, _| !super::is_podman_s_own(key));
        let image = if self.image_name.is_empty() { self.config.image } else { self.image_name };
        let uid = self.pod;
        let workload = Workload {
            id: self.id.into(),
            role: if self.is_infra { Role::Sandbox } else { Role::Container },
            name: bare(&self.name).to_owned(),
            pod: pod_name.map(|name| Pod { namespace: String::new(), name, uid }),
            image,
            pid: Some(pid),
            netns: self.network_settings.netns(),
            addresses: self.network_settings.addresses(),
            joins: self.host_config.joins(),
            ..Workload::default()
        };
        Some(with_kubernetes(workload, self.config.labels, annotations))
    }
}

impl NetworkSettings {
    fn addresses(&self) -> Vec<IpAddr> {
        let endpoints = self.networks.values().flatten();
        endpoints.flat_map(|endpoint| [&endpoint.v4, &endpoint.v6]).filter_map(|a| a.parse().ok()).collect()
    }

    fn netns(&self) -> Option<PathBuf> {
        self.sandbox_key.starts_with('/').then(|| PathBuf::from(&self.sandbox_key))
    }
}

fn bare(name: &str) -> &str {
    name.strip_prefix('/').unwrap_or(name)
}

/// Containers that the kubelet made through cri-dockerd (before: dockershim) say so in their labels; annotations are
/// labels with a prefix. Labels that only look like it, without the one that says what it is, make no pod.
fn with_kubernetes(
    mut workload: Workload,
    mut labels: BTreeMap<String, String>,
    mut annotations: BTreeMap<String, String>,
) -> Workload {
    if labels.contains_key("io.kubernetes.docker.type") {
        read_kubernetes(&mut workload, &mut labels, &mut annotations);
    }
    Workload { labels: labels.into(), annotations: annotations.into(), ..workload }
}

fn read_kubernetes(
    workload: &mut Workload,
    labels: &mut BTreeMap<String, String>,
    annotations: &mut BTreeMap<String, String>,
) {
    let (Some(name), Some(namespace)) =
        (labels.remove("io.kubernetes.pod.name"), labels.remove("io.kubernetes.pod.namespace"))
    else {
        return;
    };
    let uid = labels.remove("io.kubernetes.pod.uid").unwrap_or_default();
    let container = labels.remove("io.kubernetes.container.name");
    let kind = labels.remove("io.kubernetes.docker.type");
    labels.remove("io.kubernetes.sandbox.id");
    (workload.role, workload.name) = match (kind.as_deref(), container) {
        (Some("podsandbox"), _) => (Role::Sandbox, name.clone()),
        (_, Some(container)) => (Role::Container, container),
        (_, None) => (Role::Container, std::mem::take(&mut workload.name)),
    };
    for (key, value) in std::mem::take(labels) {
        match key.strip_prefix("annotation.") {
            Some(key) => annotations.insert(key.to_owned(), value),
            None => labels.insert(key, value),
        };
    }
    workload.pod = Some(Pod { namespace, name, uid });
}

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The container runs, or something about it changed.
    Changed(String),
    /// It has just started. Its name is known before it can be asked about: it may not live that long.
    Started(Box<Workload>),
    /// Something about it changed, if it runs.
    Moved(String),
    /// It does not run any more.
    Gone(String),
    /// Nothing of interest.
    Other,
}

/// An event of `GET /events`, as it is and as it was before Docker 1.10.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Event {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    status: String,
    id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes", deserialize_with = "or_default")]
    attributes: Attributes,
}

/// Labels of the container are among them, so that only some are looked at.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Attributes {
    container: String,
    name: String,
    image: String,
    /// Of a pod, whose name is another.
    #[serde(rename = "io.kubernetes.docker.type")]
    of_pod: Option<IgnoredAny>,
}

impl Attributes {
    fn names_it(&self) -> bool {
        !self.name.is_empty() && self.of_pod.is_none()
    }
}

/// Reads an event.
pub(super) fn event(line: &[u8]) -> serde_json::Result<Said> {
    let event: Event = serde_json::from_slice(line)?;
    let is_new = !event.kind.is_empty();
    let (action, id) = if is_new { (event.action, event.actor.id) } else { (event.status, event.id) };
    let said = match (event.kind.as_str(), action.as_str()) {
        ("container", "start") if is_id(&id) && event.actor.attributes.names_it() => {
            let Attributes { name, image, .. } = event.actor.attributes;
            return Ok(Said::Started(Box::new(Workload {
                id: id.into(),
                name,
                image,
                ..Workload::default()
            })));
        }
        ("container" | "", "start" | "restart" | "restore" | "rename" | "update") => Said::Changed(id),
        // The latter two are podman's.
        ("container" | "", "die" | "destroy" | "died" | "remove") => Said::Gone(id),
        // Podman may clean up after the container has been started again.
        ("container", "cleanup") => Said::Moved(id),
        // Docker's actor is the network, podman's the container.
        ("network", "connect" | "disconnect") if event.actor.attributes.container.is_empty() => {
            Said::Moved(id)
        }
        ("network", "connect" | "disconnect") => Said::Moved(event.actor.attributes.container),
        _ => return Ok(Said::Other),
    };
    let known = match &said {
        Said::Changed(id) | Said::Moved(id) | Said::Gone(id) => is_id(id),
        Said::Started(_) | Said::Other => false,
    };
    Ok(if known { said } else { Said::Other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_joined_another_container_says_so() {
        let (own, other) = ("a".repeat(64), "b".repeat(64));
        for (mode, joined) in
            [("bridge", vec![]), ("host", vec![]), (&*format!("container:{other}"), vec![other.clone()])]
        {
            let host = format!("\"HostConfig\":{{\"NetworkMode\":\"{mode}\"}}");
            let inspected = format!("{{\"Id\":\"{own}\",\"Name\":\"/s2\",\"State\":{{\"Pid\":7}},{host}}}");
            let inspected: Inspected = serde_json::from_str(&inspected).unwrap();
            assert_eq!(inspected.workload(None).unwrap().joins, joined);
            let listed = format!("[{{\"Id\":\"{own}\",\"Names\":[\"/s2\"],\"State\":\"running\",{host}}}]");
            assert_eq!(serde_json::from_str::<Containers>(&listed).unwrap().0[0].joins, joined);
        }
    }
}
