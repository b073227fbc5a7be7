//! What is taken from the messages of CRI. Runtimes agree on the messages, not on what their verbose status says: it is
//! read as far as it is understood.

use crate::resolve::runtimes::labels::{Labels, short_id};
use crate::resolve::runtimes::oci::Spec;
use crate::resolve::workload::{Pod, Role, Workload};
use k8s_cri::v1::{
    Container, ContainerStatusResponse, NamespaceMode, PodSandbox, PodSandboxMetadata, PodSandboxStatus,
    PodSandboxStatusResponse,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// What only a verbose status tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Details {
    pid: Option<i32>,
    netns: Option<PathBuf>,
    addresses: Vec<IpAddr>,
}

impl Details {
    pub(super) fn of_sandbox(answer: &PodSandboxStatusResponse) -> Details {
        let addresses = answer.status.as_ref().map(addresses).unwrap_or_default();
        Details { pid: pid(&answer.info), netns: netns(&answer.info), addresses }
    }

    pub(super) fn of_container(answer: &ContainerStatusResponse) -> Details {
        Details { pid: pid(&answer.info), ..Details::default() }
    }
}

/// Addresses of a pod; those of the node are nobody's.
fn addresses(status: &PodSandboxStatus) -> Vec<IpAddr> {
    let options = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()?.options.as_ref());
    if options.is_some_and(|options| options.network() == NamespaceMode::Node) {
        return Vec::new();
    }
    let Some(network) = &status.network else { return Vec::new() };
    let more = network.additional_ips.iter().map(|ip| &ip.ip);
    std::iter::once(&network.ip).chain(more).filter_map(|ip| ip.parse().ok()).collect()
}

/// What containerd and CRI-O write into their verbose status, as JSON.
#[derive(Deserialize)]
struct WithPid {
    pid: Value,
}

/// See [`WithPid`]; apart from it, so that one of them may be strange.
#[derive(Deserialize)]
struct WithSpec {
    #[serde(rename = "runtimeSpec")]
    spec: Spec,
}

fn pid(info: &HashMap<String, String>) -> Option<i32> {
    let inside =
        info.get("info").and_then(|json| serde_json::from_str::<WithPid>(json).ok()).map(|info| info.pid);
    let number = match inside {
        Some(Value::String(text)) => text.parse().ok(),
        Some(value) => value.as_i64(),
        None => info.get("pid").and_then(|text| text.trim_matches('"').parse().ok()),
    };
    number.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
}

fn netns(info: &HashMap<String, String>) -> Option<PathBuf> {
    serde_json::from_str::<WithSpec>(info.get("info")?).ok()?.spec.netns()
}

/// The pod of a sandbox.
pub(super) fn pod(metadata: &PodSandboxMetadata) -> Pod {
    let PodSandboxMetadata { name, uid, namespace, .. } = metadata.clone();
    Pod { namespace, name, uid }
}

pub(super) fn sandbox(sandbox: PodSandbox, details: Details) -> Workload {
    let labels = Labels::read(sandbox.labels);
    let whole = Workload {
        role: Role::Sandbox,
        name: short_id(&sandbox.id).to_owned(),
        pod: sandbox.metadata.as_ref().map(pod).or(labels.pod),
        pid: details.pid,
        netns: details.netns,
        addresses: details.addresses,
        labels: labels.others.into(),
        annotations: sandbox.annotations.into_iter().collect(),
        id: sandbox.id.into(),
        ..Workload::default()
    };
    whole.bounded()
}

/// A container, in the pod of its sandbox, if that is known.
pub(super) fn container(container: Container, pod: Option<Pod>, details: Details) -> Workload {
    let labels = Labels::read(container.labels);
    let name = container.metadata.map(|metadata| metadata.name).filter(|name| !name.is_empty());
    let whole = Workload {
        role: Role::Container,
        name: name.or(labels.name).unwrap_or_else(|| short_id(&container.id).to_owned()),
        pod: pod.or(labels.pod),
        image: container.image.map(|image| image.image).unwrap_or_default(),
        pid: details.pid,
        netns: details.netns,
        addresses: details.addresses,
        labels: labels.others.into(),
        annotations: container.annotations.into_iter().collect(),
        id: container.id.into(),
        ..Workload::default()
    };
    whole.bounded()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::pairs::Pairs;
    use k8s_cri::v1::{
        ContainerMetadata, ImageSpec, LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp,
        PodSandboxNetworkStatus,
    };

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn info(json: &str) -> HashMap<String, String> {
        HashMap::from([("info".to_owned(), json.to_owned())])
    }

    fn read(json: &str) -> (Option<i32>, Option<PathBuf>) {
        (pid(&info(json)), netns(&info(json)))
    }

    #[test]
    fn a_sandbox_as_containerd_tells_it() {
        let json = r#"{"pid":4242,"processStatus":"running","netNamespaceClosed":false,"image":"pause:3.8",
            "snapshotter":"overlayfs","runtimeHandler":"","runtimeType":"io.containerd.runc.v2",
            "config":{"metadata":{"name":"web-1"}},
            "runtimeSpec":{"ociVersion":"1.0.2","linux":{"cgroupsPath":"kubepods-pod1.slice:cri-containerd:0123",
            "namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/cni-8a0d"}]}},
            "cniResult":{"Interfaces":{"eth0":{"IPConfigs":[{"IP":"10.1.2.3"}]}}}}"#;
        assert_eq!(read(json), (Some(4242), Some("/var/run/netns/cni-8a0d".into())));
    }

    /// Fixture: CRI-O cannot be run by the tests.
    #[test]
    fn a_sandbox_as_cri_o_tells_it() {
        let json = r#"{"image":"registry.k8s.io/pause:3.9","pid":3120,
            "runtimeSpec":{"ociVersion":"1.0.2-dev","annotations":{"io.kubernetes.cri-o.IP.0":"10.85.0.4"},
            "linux":{"cgroupsPath":"kubepods-burstable-pod7c.slice:crio:0123",
            "namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/5b7e2f60-2d7c"},
            {"type":"ipc","path":"/var/run/ipcns/5b7e2f60-2d7c"}]}}}"#;
        assert_eq!(read(json), (Some(3120), Some("/var/run/netns/5b7e2f60-2d7c".into())));
        // One without a pause container, as is usual there.
        let json = r#"{"image":"","pid":0,"runtimeSpec":{"linux":{"namespaces":[
            {"type":"network","path":"/var/run/netns/5b7e2f60-2d7c"}]}}}"#;
        assert_eq!(read(json), (None, Some("/var/run/netns/5b7e2f60-2d7c".into())));
        // Versions of long ago.
        let old =
            HashMap::from([("pid".to_owned(), "77".to_owned()), ("sandboxId".to_owned(), ID.to_owned())]);
        assert_eq!((pid(&old), netns(&old)), (Some(77), None));
    }

    /// Fixture: cri-dockerd tells nothing in its verbose status.
    #[test]
    fn what_is_not_told_is_not_known() {
        assert_eq!((pid(&HashMap::new()), netns(&HashMap::new())), (None, None));
        for json in
            ["", "null", "[]", "{}", r#"{"pid":null}"#, r#"{"pid":-1}"#, r#"{"pid":4294967296}"#, "\"\u{7f}"]
        {
            assert_eq!(read(json), (None, None), "{json}");
        }
        assert_eq!(read(r#"{"pid":"12","runtimeSpec":7}"#), (Some(12), None), "as far as it is understood");
        assert_eq!(
            read(r#"{"pid":{},"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/x"}]}}}"#).1,
            Some("/x".into())
        );
    }

    fn network(mode: NamespaceMode) -> PodSandboxStatus {
        let options = NamespaceOption { network: mode.into(), ..NamespaceOption::default() };
        let additional_ips = ["fd00::7", "no address", ""].map(|ip| PodIp { ip: ip.into() }).to_vec();
        PodSandboxStatus {
            network: Some(PodSandboxNetworkStatus { ip: "10.1.2.3".into(), additional_ips }),
            linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(options) }) }),
            ..PodSandboxStatus::default()
        }
    }

    #[test]
    fn addresses_of_both_families_and_none_of_the_node() {
        let both: [IpAddr; 2] = ["10.1.2.3".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(addresses(&network(NamespaceMode::Pod)), both);
        assert!(addresses(&network(NamespaceMode::Node)).is_empty());
        assert!(addresses(&PodSandboxStatus::default()).is_empty());
    }

    #[test]
    fn a_pod_and_its_container() {
        let metadata = PodSandboxMetadata {
            name: "web-1".into(),
            uid: "u-1".into(),
            namespace: "shop".into(),
            attempt: 0,
        };
        let told = sandbox(
            PodSandbox {
                id: ID.into(),
                metadata: Some(metadata.clone()),
                labels: [("io.kubernetes.pod.name", "web-1"), ("app", "web")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                annotations: [("note".to_owned(), "x\n".repeat(5_000))].into(),
                ..PodSandbox::default()
            },
            Details { pid: Some(7), ..Details::default() },
        );
        assert_eq!((told.role, &told.pod, told.pid), (Role::Sandbox, &Some(pod(&metadata)), Some(7)));
        assert_eq!(told.labels, Pairs::from_iter([("app".to_owned(), "web".to_owned())]));
        assert_eq!(told.annotations.get("note").map(str::len), Some(256));

        let told = container(
            Container {
                id: ID.into(),
                metadata: Some(ContainerMetadata { name: "nginx".into(), attempt: 3 }),
                image: Some(ImageSpec { image: "nginx:1".into(), ..ImageSpec::default() }),
                ..Container::default()
            },
            told.pod,
            Details::default(),
        );
        assert_eq!((&*told.name, &*told.image, told.pod), ("nginx", "nginx:1", Some(pod(&metadata))));
        let bare = container(Container { id: ID.into(), ..Container::default() }, None, Details::default());
        assert_eq!((&*bare.name, bare.pod), ("0123456789ab", None));
    }
}
