use crate::support::containerd::{Containerd, Pod, PodPlan, SOCKET};
use crate::support::sources::Sources;
use crate::support::{Pids, own_node, until};
use netskoopd::resolve::book::{State, Wanted};
use netskoopd::resolve::workload::{self, Role};
use std::path::PathBuf;

fn pod_of(pod: &Pod) -> Option<workload::Pod> {
    let Pod { namespace, name, uid, .. } = pod.clone();
    Some(workload::Pod { namespace, name, uid })
}

/// What containerd must say of a pod, all of it.
#[track_caller]
fn is_known(sources: &Sources, pod: &Pod) {
    let sandbox = sources.until("containerd", &pod.id, |w| w.pid == Some(pod.pid));
    assert_eq!((sandbox.role, &sandbox.pod, &*sandbox.scope), (Role::Sandbox, &pod_of(pod), "k8s.io"));
    for running in &pod.containers {
        let container = sources.until("containerd", &running.id, |w| w.pid == Some(running.pid));
        assert_eq!(
            (container.role, &container.pod, &container.name),
            (Role::Container, &pod_of(pod), &running.name)
        );
    }
}

#[test]
fn containerd_tells_of_pods_as_they_come_and_go() {
    own_node!(Pids::Own);
    let Some(containerd) = Containerd::start() else { return };
    let plan = PodPlan::new("shop", "before").containers(&["web", "side"]).label("app", "shop");
    let before = containerd.run_pod(&plan);
    let sources = Sources::on_node();
    let what = sources.connected("containerd");
    assert!(what.starts_with("containerd ") && what.contains('.'), "{what}");
    is_known(&sources, &before);
    let sandbox = sources.says("containerd", &before.id).unwrap();
    assert_eq!(sandbox.labels.get("app"), Some("shop"));
    assert!(sandbox.labels.iter().all(|(key, _)| !key.starts_with("io.kubernetes.")), "{:?}", sandbox.labels);
    let file = sandbox.netns.unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(file).unwrap()),
        u64::from(before.netns)
    );

    let after = containerd.run_pod(&PodPlan::new("shop", "after").containers(&["one", "two"]));
    is_known(&sources, &after);
    let host = containerd.run_pod(&PodPlan::new("kube-system", "proxy").host_network());
    is_known(&sources, &host);
    assert_eq!(sources.says("containerd", &host.id).unwrap().netns, None);
    containerd.remove_pod(&before);
    sources.until_gone("containerd", &before.id);
    before.containers.iter().for_each(|running| sources.until_gone("containerd", &running.id));
    is_known(&sources, &after);
}

#[test]
fn containerd_s_other_namespaces_are_seen_too() {
    own_node!(Pids::Shared);
    let Some(containerd) = Containerd::start() else { return };
    let sources = Sources::on_node();
    sources.connected("containerd");
    let id = "5e".repeat(32);
    let pid = containerd.run_plain("default", &id, &[("nerdctl/name", "db"), ("tier", "back")]);
    let known = sources.until("containerd", &id, |w| w.pid == Some(pid));
    assert_eq!((&*known.name, &*known.scope, known.role), ("db", "default", Role::Container));
    assert_eq!(known.labels.get("tier"), Some("back"));

    // A namespace that comes later, and a name that is not unique.
    containerd.ctr(&["-n", "late", "images", "import", "/run/test-containerd/image/image.tar"]);
    let late = containerd.run_plain("late", "web", &[]);
    let early = containerd.run_plain("default", "web", &[]);
    let known = sources.until("containerd", "late/web", |w| w.pid == Some(late));
    assert_eq!((&*known.name, &*known.scope), ("web", "late"));
    sources.until("containerd", "default/web", |w| w.pid == Some(early));
    // One that ended, but is not removed, has no process.
    containerd.ctr(&["-n", "late", "tasks", "kill", "-s", "9", "web"]);
    sources.until("containerd", "late/web", |w| w.pid.is_none());
    containerd.remove_plain("late", "web");
    sources.until_gone("containerd", "late/web");
    assert_eq!(sources.says("containerd", "default/web").unwrap().pid, Some(early));
}

#[test]
fn a_restart_of_containerd_loses_nothing() {
    own_node!(Pids::Own);
    let Some(mut containerd) = Containerd::start() else { return };
    let stays = containerd.run_pod(&PodPlan::new("shop", "stays").containers(&["web", "side"]));
    let goes = containerd.run_pod(&PodPlan::new("shop", "goes"));
    // A way to the socket that can be taken away, so that changes are made which nobody tells of.
    let way = PathBuf::from("/run/way.sock");
    std::os::unix::fs::symlink(SOCKET, &way).unwrap();
    let sources = Sources::only("containerd", &way);
    sources.connected("containerd");
    is_known(&sources, &stays);
    is_known(&sources, &goes);
    containerd.kill();
    let reason = sources.failed("containerd");
    assert!(!reason.contains('\n') && reason.len() < 300, "{reason}");
    std::fs::remove_file(&way).unwrap();
    until("the socket is missed", || matches!(sources.state("containerd"), State::Absent(_)).then_some(()));
    is_known(&sources, &stays);
    is_known(&sources, &goes);

    containerd.restart();
    let fresh = containerd.run_pod(&PodPlan::new("shop", "fresh"));
    containerd.remove_pod(&goes);
    std::os::unix::fs::symlink(SOCKET, &way).unwrap();
    sources.connected("containerd");
    is_known(&sources, &stays);
    is_known(&sources, &fresh);
    assert_eq!(sources.says("containerd", &goes.id), None, "the full list has come before it is connected");
    let report = sources.report("containerd");
    assert!(report.health.lists >= 2 && report.health.failures >= 1, "{report:?}");
}

#[test]
fn cri_tells_of_addresses_and_annotations() {
    own_node!(Pids::Own);
    let Some(containerd) = Containerd::start() else { return };
    let plan = PodPlan::new("shop", "before").containers(&["web", "side"]);
    let plan = plan.label("app", "shop").annotation("owner", "team \"x\"\n");
    let before = containerd.run_pod(&plan);
    let sources = Sources::only("cri", SOCKET);
    let what = sources.connected("cri");
    assert!(what.starts_with("containerd "), "{what}");
    let known = sources.says("cri", &before.id).unwrap();
    assert_eq!((known.role, &known.pod, known.pid), (Role::Sandbox, &pod_of(&before), Some(before.pid)));
    assert_eq!((known.addresses.len(), &known.addresses), (2, &before.addresses));
    let inside = containerd.exec(&before.containers[0], &["ip", "addr", "show", "eth0"]);
    assert!(known.addresses.iter().all(|address| inside.contains(&format!("{address}/"))), "{inside}");
    assert_eq!(known.annotations.get("owner"), Some("team \"x\"\n"));
    assert_eq!(known.labels.get("app"), Some("shop"));
    let file = known.netns.unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(file).unwrap()),
        u64::from(before.netns)
    );
    for running in &before.containers {
        let known = sources.says("cri", &running.id).unwrap();
        assert_eq!(
            (&known.name, &known.pod, known.pid),
            (&running.name, &pod_of(&before), Some(running.pid))
        );
    }

    // Found when it is asked for, or by the next poll.
    let after = containerd.run_pod(&PodPlan::new("shop", "after"));
    sources.book.ask(&Wanted::Container(after.id.clone()));
    sources.until("cri", &after.id, |w| w.pid == Some(after.pid) && w.addresses == after.addresses);
    let host = containerd.run_pod(&PodPlan::new("kube-system", "proxy").host_network());
    sources.book.ask(&Wanted::Container(host.id.clone()));
    let known = sources.until("cri", &host.id, |w| w.pid == Some(host.pid));
    assert_eq!((known.netns, known.addresses), (None, vec![]));
    containerd.remove_pod(&before);
    sources.until_gone("cri", &before.id);
    before.containers.iter().for_each(|running| sources.until_gone("cri", &running.id));
}
