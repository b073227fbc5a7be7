use crate::docker::{addresses, pid};
use crate::support::podman::Podman;
use crate::support::sources::Reading;
use crate::support::{Pids, inside_own_node, test_name, until};
use netskoopd::resolve::book::State;
use netskoopd::resolve::workload::Role;

/// What files and socket tell alike.
fn containers_come_and_go(podman: &Podman, reading: &Reading) {
    let web = podman.run("web", &[]);
    let known = reading.until(&web, "a new container", |w| w.pid.is_some());
    assert_eq!((known.name.as_str(), known.image.as_str()), ("web", "localhost/bb:1"));
    assert_eq!((known.role, &known.pod), (Role::Container, &None));
    assert_eq!(known.pid, pid(&podman.inspect("web", "{{.State.Pid}}")));
    assert_eq!(known.annotations.len(), 0, "{:?}", known.annotations);
    let netns = known.netns.as_ref().unwrap();
    assert_eq!(netns.to_str().unwrap(), podman.inspect("web", "{{.NetworkSettings.SandboxKey}}"));

    podman.podman(&["rename", "web", "shop"]);
    reading.until(&web, "a new name", |w| w.name == "shop");
    podman.podman(&["stop", "-t", "0", "shop"]);
    reading.until_gone(&web);
    podman.podman(&["start", "shop"]);
    let old = known.pid;
    let known = reading.until(&web, "another process", |w| w.pid.is_some() && w.pid != old);
    assert_eq!(known.pid, pid(&podman.inspect("shop", "{{.State.Pid}}")));
    // Its end without podman's doing.
    let process = rustix::process::Pid::from_raw(known.pid.unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    reading.until_gone(&web);

    let host = podman.run("hosted", &["--network", "host"]);
    let known = reading.until(&host, "one in the node's namespace", |w| w.pid.is_some());
    assert_eq!((known.name.as_str(), known.addresses.len()), ("hosted", 0));

    let pod = podman.pod("api");
    let member = podman.run("app", &["--pod", "api"]);
    let known = reading.until(&member, "a member of a pod", |w| w.pid.is_some());
    let its_pod = known.pod.clone().unwrap();
    assert_eq!((&*its_pod.namespace, &*its_pod.name, &*its_pod.uid), ("", "api", &*pod));
    assert_eq!((known.name.as_str(), known.role), ("app", Role::Container));
    let infra = podman.podman(&["pod", "inspect", "-f", "{{.InfraContainerID}}", "api"]);
    let known = reading.until(&infra, "the pod's sandbox", |w| w.pid.is_some());
    assert_eq!((known.role, &known.pod), (Role::Sandbox, &Some(its_pod)));
    podman.podman(&["pod", "rm", "-f", "-t", "0", "api"]);
    reading.until_gone(&member);
    reading.until_gone(&infra);
    podman.podman(&["rm", "-f", "-t", "0", "hosted"]);
    reading.until_gone(&host);
    assert_eq!(reading.sources.book.reports()[0].workloads, 0);
}

#[test]
fn podman_without_a_socket_is_known_by_its_files() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some(podman) = Podman::start() else { return };
    // Nothing has run since the boot: most directories are still to be made.
    let reading = Reading::of("podman");
    let state = reading.until_state("files", |state| matches!(state, State::Connected(_)));
    let place = "the files in /var/lib/containers/storage/overlay-containers";
    assert_eq!(state, State::Connected(place.into()));
    containers_come_and_go(&podman, &reading);
    // And what ran before.
    drop(reading);
    let before = podman.run("before", &[]);
    podman.podman(&["create", "--name", "never", "bb:1", "/bin/busybox", "true"]);
    let reading = Reading::of("podman");
    reading.until(&before, "one that ran before", |w| w.name == "before" && w.pid.is_some());
    assert_eq!(reading.sources.book.reports()[0].workloads, 1);
}

#[test]
fn podman_with_a_socket_is_asked() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some(mut podman) = Podman::start() else { return };
    podman.serve();
    let before = podman.run("before", &["-l", "a=b"]);
    podman.podman(&["pause", "before"]);
    let reading = Reading::of("podman");
    let state = reading.until_state("connected", |state| matches!(state, State::Connected(_)));
    let State::Connected(what) = state else { unreachable!() };
    assert!(what.starts_with("podman "), "{what}");
    let known = reading.until(&before, "one that ran before", |w| !w.addresses.is_empty());
    assert_eq!(known.labels.get("a"), Some("b"));
    let address = podman.inspect("before", "{{.NetworkSettings.Networks.podman.IPAddress}}");
    assert_eq!(known.addresses, addresses(&[address]));
    podman.podman(&["rm", "-f", "-t", "0", "before"]);
    reading.until_gone(&before);
    containers_come_and_go(&podman, &reading);
}

/// A service that was killed leaves its socket, and the files tell the same.
#[test]
fn podman_s_service_ends() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some(mut podman) = Podman::start() else { return };
    podman.serve();
    let web = podman.run("web", &[]);
    let reading = Reading::of("podman");
    let known = reading.until(&web, "by the socket", |w| w.pid.is_some());
    podman.stop_serving();
    let by_files = |state: &State| matches!(state, State::Connected(what) if what.contains("files"));
    reading.until_state("the files instead", by_files);
    let now = reading.until(&web, "by the files", |w| w.addresses.is_empty());
    assert_eq!((&now.name, now.pid), (&known.name, known.pid));
    until("it is well", || reading.sources.book.reports()[0].health.failures.eq(&1).then_some(()));
}
