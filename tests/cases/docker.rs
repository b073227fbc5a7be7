use crate::support::docker::Docker;
use crate::support::sources::Reading;
use crate::support::{Pids, inside_own_node, test_name};
use netskoopd::resolve::book::{State, Wanted};
use netskoopd::resolve::workload::Role;
use std::net::IpAddr;

pub(crate) fn pid(text: &str) -> Option<i32> {
    Some(text.parse().unwrap())
}

pub(crate) fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn docker_s_containers_are_known_while_they_run() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let reading = Reading::of("docker");
    reading.until_state("Docker is absent", |state| matches!(state, State::Absent(_)));
    let Some(docker) = Docker::start() else { return };
    let before = docker.run("before", &[]);
    let state = reading.until_state("connected", |state| matches!(state, State::Connected(_)));
    let State::Connected(what) = state else { unreachable!() };
    assert!(what.starts_with("Docker "), "{what}");
    reading.until(&before, "one that ran before", |w| w.name == "before" && w.pid.is_some());

    let web = docker.run("web", &["-l", "tier=front", "-l", "odd=a\"b\\c"]);
    let known = reading.until(&web, "a new container", |w| w.pid.is_some());
    assert_eq!((known.name.as_str(), known.image.as_str(), known.role), ("web", "bb:1", Role::Container));
    assert_eq!(known.pid, pid(&docker.inspect("web", "{{.State.Pid}}")));
    let address = docker.inspect("web", "{{.NetworkSettings.Networks.bridge.IPAddress}}");
    assert_eq!(known.addresses, addresses(&[address]));
    assert_eq!(known.labels.iter().collect::<Vec<_>>(), [("odd", "a\"b\\c"), ("tier", "front")]);
    assert_eq!((&known.pod, &*known.scope), (&None, ""));
    // It leads to the namespace of the first process.
    use std::os::unix::fs::MetadataExt;
    let inode = |path: &std::path::Path| std::fs::metadata(path).unwrap().ino();
    let of_process = format!("/proc/{}/ns/net", known.pid.unwrap());
    assert_eq!(inode(known.netns.as_ref().unwrap()), inode(of_process.as_ref()));

    docker.docker(&["rename", "web", "shop"]);
    reading.until(&web, "a new name", |w| w.name == "shop");
    docker.docker(&["network", "create", "back"]);
    docker.docker(&["network", "connect", "back", "shop"]);
    reading.until(&web, "two addresses", |w| w.addresses.len() == 2);
    docker.docker(&["network", "disconnect", "back", "shop"]);
    reading.until(&web, "one address", |w| w.addresses.len() == 1);
    let old = reading.find(&web).unwrap().pid;
    docker.docker(&["restart", "-t", "0", "shop"]);
    let known = reading.until(&web, "another process", |w| w.pid.is_some() && w.pid != old);
    assert_eq!(known.pid, pid(&docker.inspect("shop", "{{.State.Pid}}")));
    docker.docker(&["stop", "-t", "0", "shop"]);
    reading.until_gone(&web);
    docker.docker(&["start", "shop"]);
    reading.until(&web, "it runs again", |w| w.pid.is_some());
    docker.docker(&["rm", "-f", "shop"]);
    reading.until_gone(&web);
    reading.until(&before, "the other is still there", |w| w.name == "before");
}

#[test]
fn docker_s_other_kinds_of_networks() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some(docker) = Docker::start() else { return };
    let reading = Reading::of("docker");
    let host = docker.run("hosted", &["--network", "host"]);
    let known = reading.until(&host, "one in the node's namespace", |w| w.pid.is_some());
    assert!(known.addresses.is_empty());
    let first = docker.run("first", &[]);
    let guest = docker.run("guest", &["--network", "container:first"]);
    let known = reading.until(&guest, "one in another's namespace", |w| w.pid.is_some());
    assert_eq!(known.pid, pid(&docker.inspect("guest", "{{.State.Pid}}")));
    let first = reading.until(&first, "the other", |w| w.pid.is_some());
    let netns = |pid: Option<i32>| std::fs::read_link(format!("/proc/{}/ns/net", pid.unwrap())).unwrap();
    assert_eq!(netns(known.pid), netns(first.pid));
    docker.docker(&["network", "create", "--ipv6", "--subnet", "fd00:9::/64", "six"]);
    let six = docker.run("six", &["--network", "six"]);
    let known = reading.until(&six, "one with two families", |w| w.addresses.len() == 2);
    let format = "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}";
    assert!(known.addresses.contains(&docker.inspect("six", format).parse().unwrap()));
    // The kubelet's containers, as cri-dockerd labels them.
    let labels = |kind: &'static str, name: &'static str| {
        ["pod.name=api-1", "pod.namespace=prod", "pod.uid=u-1", kind, name]
            .iter()
            .flat_map(|label| ["-l".to_owned(), format!("io.kubernetes.{label}")])
            .collect::<Vec<String>>()
    };
    let words = labels("docker.type=podsandbox", "container.name=POD");
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["-l", "annotation.a/b=c"]).collect();
    let sandbox = docker.run("k8s_POD_api-1_prod_u-1_0", &words);
    let known = reading.until(&sandbox, "a sandbox", |w| w.pid.is_some());
    let pod = known.pod.as_ref().unwrap();
    assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("prod", "api-1", "u-1"));
    assert_eq!((known.role, known.annotations.get("a/b")), (Role::Sandbox, Some("c")));
    assert!(known.labels.is_empty(), "{:?}", known.labels);
}

#[test]
fn docker_restarts_and_nothing_is_forgotten() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some(mut docker) = Docker::start() else { return };
    let reading = Reading::of("docker");
    let (stays, ends) = (docker.run("stays", &[]), docker.run("ends", &[]));
    let known = reading.until(&stays, "stays", |w| w.pid.is_some());
    let ending = reading.until(&ends, "ends", |w| w.pid.is_some());
    docker.stop();
    reading.until_state("failed", |state| matches!(state, State::Failed(_) | State::Absent(_)));
    assert_eq!(reading.find(&stays), Some(known.clone()));
    assert_eq!(reading.sources.book.reports()[0].workloads, 2);
    // Nobody tells of this end.
    let pid = rustix::process::Pid::from_raw(ending.pid.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    docker.start_again();
    reading.until_state("connected again", |state| matches!(state, State::Connected(_)));
    reading.until_gone(&ends);
    assert_eq!(reading.find(&stays), Some(known), "not a thing changed");
    let new = docker.run("new", &[]);
    reading.sources.book.ask(&Wanted::Container(new.clone()));
    reading.until(&new, "a new one after the restart", |w| w.name == "new" && w.pid.is_some());
}

/// Containers start and stop as fast as Docker can; at the end the page has those that run and no others.
#[test]
fn docker_under_load() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some(docker) = Docker::start() else { return };
    let reading = Reading::of("docker");
    let ids: Vec<String> = (0..12).map(|i| docker.run(&format!("c{i}"), &["--network", "none"])).collect();
    for round in 0..3 {
        for (i, _) in ids.iter().enumerate().filter(|(i, _)| (i + round) % 2 == 0) {
            docker.docker(&["restart", "-t", "0", &format!("c{i}")]);
        }
    }
    let odd: Vec<String> = (1..ids.len()).step_by(2).map(|i| format!("c{i}")).collect();
    docker.docker(&[&["kill"][..], &odd.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    let last = docker.run("last", &["--network", "none"]);
    reading.until(&last, "the last", |w| w.pid.is_some());
    for (i, id) in ids.iter().enumerate() {
        match i % 2 {
            0 => {
                let right = pid(&docker.inspect(id, "{{.State.Pid}}"));
                reading.until(id, "the present process", |w| w.pid == right);
            }
            _ => reading.until_gone(id),
        }
    }
    assert_eq!(reading.sources.book.reports()[0].workloads, ids.len() / 2 + 1);
    assert!(reading.events() > 50);
}
