use crate::support::containerd::{Containerd, PodPlan};
use crate::support::{Daemon, Netns, Pids, Setup, own_node, series, until};
use netskoop_api::{EntityMetrics, StateName};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A shell in a namespace, which does something, says so, and then waits for a line. Ended when dropped.
struct Worker(Child);

impl Worker {
    fn start(netns: &Netns, script: &str) -> Worker {
        let script = format!("{script}\necho done; read line");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns.0, "sh", "-c", &script]);
        let mut worker = Worker(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(worker.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
        worker
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it end, and waits for that.
    fn end(mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `/proc/<pid>/io`: of the process, and of its children that it has waited for.
fn io_of(pid: u32) -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let pair = |line: &str| line.split_once(": ").map(|(name, n)| (name.to_owned(), n.parse().unwrap()));
    text.lines().filter_map(pair).collect()
}

/// There may be many other namespaces on the machine: their series are not asked for.
const BOTH: &str = "/metrics?collect[]=io&collect[]=fd";

/// The native metrics of `io` and what they are called in `/proc/<pid>/io`.
const IO: [(&str, &str); 6] = [
    ("netskoop_io_read_calls_total", "syscr"),
    ("netskoop_io_write_calls_total", "syscw"),
    ("netskoop_io_read_bytes_total", "rchar"),
    ("netskoop_io_written_bytes_total", "wchar"),
    ("netskoop_io_disk_read_bytes_total", "read_bytes"),
    ("netskoop_io_disk_written_bytes_total", "write_bytes"),
];

fn io_shown(text: &str, entity: &str) -> BTreeMap<String, f64> {
    let value = |family: &str| series(text, &format!("{family}{{{entity}}}"));
    IO.iter().filter_map(|(family, field)| Some(((*field).to_owned(), value(family)?))).collect()
}

fn netns(name: &str) -> String {
    format!("kind=\"netns\",name=\"{name}\"")
}

#[test]
fn what_processes_read_and_write_stays_when_they_end_and_is_counted_once() {
    own_node!(Pids::Shared);
    let (blue, red) = (Netns::new("blue"), Netns::new("red"));
    let daemon = Setup::on_node().set("probes.io", "enabled = true").start();
    // Three children each, which their parent waits for: what they used is then in its own file too.
    let script = |count: u32| {
        format!("for i in 1 2 3; do dd if=/dev/zero of=/dev/null bs=10 count={count} 2>/dev/null; done")
    };
    let workers = [Worker::start(&blue, &script(1000)), Worker::start(&red, &script(70))];
    let (in_blue, in_red) = (io_of(workers[0].pid()), io_of(workers[1].pid()));
    let text = daemon.scrape("/metrics?collect[]=io");
    same_io(&io_shown(&text, &netns("blue")), &in_blue);
    same_io(&io_shown(&text, &netns("red")), &in_red);
    assert!(in_blue["syscw"] >= 3000.0 && in_blue["wchar"] >= 30_000.0 && in_red["syscw"] < 300.0);
    same_io(&io_shown(&daemon.scrape("/metrics?collect[]=io"), &netns("blue")), &in_blue);
    workers.into_iter().for_each(Worker::end);
    let after = io_shown(&daemon.scrape("/metrics?collect[]=io"), &netns("blue"));
    assert_eq!((after["syscw"], after["wchar"]), (in_blue["syscw"], in_blue["wchar"]), "nobody is left");
    assert!(after["syscr"] > in_blue["syscr"], "it read the line");
    let old = daemon.scrape("/metrics?collect[]=io&names=kubeskoop&names=inspector");
    let blue_is = after["syscw"];
    for name in [
        "kubeskoop_io_writesyscall{k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"blue\"}",
        "kubeskoop_io_iowritesyscall{k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"blue\"}",
    ] {
        assert_eq!(series(&old, name), Some(blue_is), "{name}");
    }
    assert!(old.contains("inspector_pod_ioiowritebyres{namespace=\"hostNetwork\""));
    threads_are_counted_where_they_are(&daemon, &blue, &after);
}

/// What is written is the same. Threads of other daemons on the machine may have looked in and read a little.
fn same_io(shown: &BTreeMap<String, f64>, file: &BTreeMap<String, f64>) {
    for (field, is_read) in [("syscr", true), ("syscw", false), ("rchar", true), ("wchar", false)] {
        let (shown, file) = (shown[field], file[field]);
        assert!(
            shown == file || (is_read && shown > file && shown < file * 1.2),
            "{field}: {shown} is not {file}"
        );
    }
}

/// Four threads of a process that lives in the node's own namespace, at work in another one.
fn threads_are_counted_where_they_are(daemon: &Daemon, blue: &Netns, before: &BTreeMap<String, f64>) {
    let file = daemon.setup.dir.0.join("scratch");
    let work = || {
        let mut file = std::fs::File::create(&file).unwrap();
        (0..500).for_each(|_| file.write_all(b"0123456789").unwrap());
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| blue.enter(work))));
    });
    let shown = io_shown(&daemon.scrape("/metrics?collect[]=io"), &netns("blue"));
    let grown = (shown["syscw"] - before["syscw"], shown["wchar"] - before["wchar"]);
    assert_eq!(grown, (2000.0, 20_000.0));
}

#[test]
fn a_pod_of_the_nodes_network_has_what_is_known_by_process() {
    own_node!(Pids::Shared);
    let Some(containerd) = Containerd::start() else { return };
    let daemon = Setup::on_node().start();
    let proxy = containerd.run_pod(&PodPlan::new("kube-system", "proxy").host_network());
    until("the pod is known", || {
        daemon.entities().entities.into_iter().find(|entity| entity.id.name == "kube-system/proxy")
    });
    let none = daemon.ask("/v1/metrics?entity=kube-system/proxy");
    assert!(
        none.status == 404 && none.text().contains("no probe that counts by process is on"),
        "{}",
        none.text()
    );
    daemon.change("io", r#"{"enabled":true,"runtime":true}"#);
    daemon.scrape(BOTH);
    let labels = "kind=\"pod\",name=\"kube-system/proxy\",namespace=\"kube-system\",pod=\"proxy\"";
    let shown = |labels: &str| io_shown(&daemon.scrape(BOTH), labels).get("syscw").copied();
    let (before, host) = (shown(labels).unwrap_or(0.0), shown("kind=\"host\",name=\"host\"").unwrap());
    containerd.exec(&proxy.containers[0], &["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=100000"]);
    let grown = (shown(labels).unwrap() - before, shown("kind=\"host\",name=\"host\"").unwrap() - host);
    assert!((100_000.0..110_000.0).contains(&grown.0), "{grown:?}");
    assert!(grown.1 < 50_000.0, "{grown:?}");

    let old = daemon.scrape("/metrics?collect[]=io&collect[]=fd&names=kubeskoop&names=inspector");
    for name in [
        "kubeskoop_io_writesyscall{k8s_node=\"node-1\",k8s_namespace=\"kube-system\",k8s_pod=\"proxy\"}",
        "inspector_pod_ioiowritesyscall{namespace=\"kube-system\",pod=\"proxy\",node=\"node-1\",netns=\"ns0\"}",
    ] {
        assert!(series(&old, name).is_some_and(|value| value >= 100_000.0), "{name}: {old}");
    }
    daemon.change("fd", r#"{"enabled":true,"runtime":true}"#);
    let open = open_shown(&daemon.scrape(BOTH), labels);
    let pids = std::iter::once(proxy.pid).chain(proxy.containers.iter().map(|container| container.pid));
    let expected = pids.map(|pid| open_in(u32::try_from(pid).unwrap()).0).sum::<f64>();
    assert_eq!(open, (Some(expected), Some(0.0)));
    let values: EntityMetrics = daemon.json("/v1/metrics?entity=kube-system/proxy");
    assert!(values.values.iter().any(|value| value.metric == "netskoop_io_write_calls_total"));
    assert!(values.values.iter().any(|value| value.metric == "netskoop_fd_open" && value.value == expected));
    assert!(
        values.values.iter().all(|value| ["io", "fd", "limit"].contains(&value.probe.as_str())),
        "{values:#?}"
    );
    containerd.remove_pod(&proxy);
    until("its series are gone", || shown(labels).is_none().then_some(()));
}

/// Descriptors and sockets of a process, as its directory shows them.
fn open_in(pid: u32) -> (f64, f64) {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links: Vec<_> = entries.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap()).collect();
    let sockets = links.iter().filter(|link| link.to_string_lossy().starts_with("socket:["));
    (links.len() as f64, sockets.count() as f64)
}

fn open_shown(text: &str, entity: &str) -> (Option<f64>, Option<f64>) {
    let value = |family: &str| series(text, &format!("{family}{{{entity}}}"));
    (value("netskoop_fd_open"), value("netskoop_fd_sockets"))
}

#[test]
fn descriptors_are_those_that_the_directory_of_each_process_shows() {
    own_node!(Pids::Shared);
    let (blue, red, green) = (Netns::new("blue"), Netns::new("red"), Netns::new("green"));
    let daemon =
        Setup::on_node().pull_only().set("probes.fd", "enabled = true\nmax_descriptors = 10000").start();
    let open = |files: u32, sockets: u32| {
        format!(
            "exec bash -c 'for i in $(seq {files}); do exec {{f}}</dev/null; done; \
             for i in $(seq {sockets}); do exec {{f}}<>/dev/udp/127.0.0.1/9; done; echo done; read line'"
        )
    };
    let small = [Worker::start(&blue, &open(30, 10)), Worker::start(&blue, &open(5, 0))];
    let huge = Worker::start(&red, &open(15_000, 3));
    // One with many threads.
    let threads = Setup::new()
        .pull_only()
        .set("probes.gone", "enabled = false")
        .wrap(&["ip", "netns", "exec", "green"])
        .start();
    let text = daemon.scrape("/metrics?collect[]=fd");
    let expected =
        small.iter().map(|worker| open_in(worker.pid())).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    assert!(expected.0 > 50.0 && expected.1 == 10.0, "{expected:?}");
    assert_eq!(open_shown(&text, &netns("blue")), (Some(expected.0), Some(expected.1)), "{text}");
    assert_eq!(
        open_shown(&text, &netns("red")),
        (Some(open_in(huge.pid()).0), None),
        "too many to be searched"
    );
    let task = std::fs::read_dir(format!("/proc/{}/task", threads.pid())).unwrap();
    assert!(task.count() > 1, "it has several threads");
    // A daemon opens and closes something all the time.
    until("its descriptors are counted once", || {
        let all = open_in(threads.pid());
        let shown = open_shown(&daemon.scrape("/metrics?collect[]=fd"), &netns("green"));
        (shown == (Some(all.0), Some(all.1))).then_some(())
    });
    let old = daemon.scrape("/metrics?collect[]=fd&names=kubeskoop&names=inspector");
    let pod = "k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"blue\"";
    assert_eq!(series(&old, &format!("kubeskoop_fd_openfd{{{pod}}}")), Some(expected.0));
    assert_eq!(series(&old, &format!("kubeskoop_fd_opensocket{{{pod}}}")), Some(10.0));
    let pod = "namespace=\"\",pod=\"blue\",node=\"node-1\"";
    assert!(
        old.contains(&format!("\ninspector_pod_fdopensocket{{{pod},netns=\"ns{}\"}} 10\n", blue.inode()))
    );

    daemon.change("fd", r#"{"options":{"max_descriptors":"100000"},"runtime":true}"#);
    assert_eq!(open_shown(&daemon.scrape("/metrics?collect[]=fd"), &netns("red")).1, Some(3.0));
    daemon.change("fd", r#"{"options":{"sockets":"false"},"runtime":true}"#);
    let text = daemon.scrape("/metrics?collect[]=fd");
    assert_eq!(open_shown(&text, &netns("blue")), (Some(expected.0), None));
    drop((threads, green));
}

/// The directory of a process's cgroup in the hierarchy that has the CPU controller, and whether that is of version 2.
fn cpu_cgroup(pid: i32) -> (PathBuf, bool) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let point = |kind: &str, has: &dyn Fn(&str) -> bool| {
        let line = mounts.lines().find(|line| line.contains(&format!(" - {kind} ")) && has(line))?;
        line.split(' ').nth(4).map(str::to_owned)
    };
    let is_cpu = |words: &str| words.split(',').any(|word| word == "cpu");
    let old = point("cgroup", &|line| is_cpu(line.rsplit(' ').next().unwrap()));
    let path = |has: &dyn Fn(&str) -> bool| {
        let line = groups.lines().find(|line| has(line.split(':').nth(1).unwrap())).unwrap();
        line.splitn(3, ':').nth(2).unwrap().trim_start_matches('/').to_owned()
    };
    match old {
        Some(point) => (Path::new(&point).join(path(&is_cpu)), false),
        None => (Path::new(&point("cgroup2", &|_| true).unwrap()).join(path(&str::is_empty)), true),
    }
}

/// A number of `cpu.stat`.
fn stat_of(cgroup: &Path, names: &[&str]) -> f64 {
    let text = std::fs::read_to_string(cgroup.join("cpu.stat")).unwrap();
    let found = text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        names.contains(&name).then(|| value.parse().unwrap())
    });
    found.unwrap_or_else(|| panic!("{names:?}: {text}"))
}

#[test]
fn throttling_is_that_of_the_containers_cgroup() {
    own_node!(Pids::Shared);
    let Some(containerd) = Containerd::start() else { return };
    let daemon = Setup::on_node().pull_only().set("probes.cpu", "enabled = true").start();
    let cart = containerd.run_pod(&PodPlan::new("shop", "cart"));
    let proxy = containerd.run_pod(&PodPlan::new("kube-system", "proxy").host_network());
    for (pod, labels) in [
        (&cart, "kind=\"pod\",name=\"shop/cart\",namespace=\"shop\",pod=\"cart\""),
        (&proxy, "kind=\"pod\",name=\"kube-system/proxy\",namespace=\"kube-system\",pod=\"proxy\""),
    ] {
        let container = &pod.containers[0];
        let (cgroup, unified) = cpu_cgroup(container.pid);
        match unified {
            true => std::fs::write(cgroup.join("cpu.max"), "10000 100000").unwrap(),
            false => std::fs::write(cgroup.join("cpu.cfs_quota_us"), "10000").unwrap(),
        }
        let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        until("it is throttled", || {
            containerd.exec(container, &["sh", "-c", busy]);
            (stat_of(&cgroup, &["nr_throttled"]) > 2.0).then_some(())
        });
        let value = |text: &str, name: &str| series(text, &format!("netskoop_cpu_{name}{{{labels}}}"));
        let text = until("the numbers of the file", || {
            let text = daemon.scrape("/metrics?collect[]=cpu");
            let throttled = value(&text, "cfs_throttled_periods_total");
            (throttled == Some(stat_of(&cgroup, &["nr_throttled"]))).then_some(text)
        });
        let time = stat_of(&cgroup, &["throttled_usec", "throttled_time"]);
        let time = time / if unified { 1e6 } else { 1e9 };
        let shown = value(&text, "cfs_throttled_seconds_total").unwrap();
        assert!((shown - time).abs() < 1e-6 && time > 0.01, "{shown} {time}");
        assert!(value(&text, "cfs_periods_total") >= value(&text, "cfs_throttled_periods_total"));
        assert!(value(&text, "run_seconds_total") > Some(0.02), "{text}");
    }
    let text = daemon.scrape("/metrics?collect[]=cpu");
    assert!(!text.contains("netskoop_cpu_cfs_periods_total{kind=\"host\""), "it has no quota");
    for pod in [&cart, &proxy] {
        containerd.remove_pod(pod);
    }
}

#[test]
fn time_run_and_waited_is_what_the_scheduler_says() {
    own_node!(Pids::Shared);
    let blue = Netns::new("blue");
    let daemon = Setup::on_node().pull_only().set("probes.cpu", "enabled = true").start();
    let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    // It is the only one there, and sleeps by now.
    let worker = Worker::start(&blue, busy);
    let shown = || {
        let text = daemon.scrape("/metrics?collect[]=cpu");
        let value = |name: &str| series(&text, &format!("netskoop_cpu_{name}{{{}}}", netns("blue")));
        Some((value("run_seconds_total")?, value("wait_seconds_total").unwrap_or(0.0)))
    };
    let expected = || {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", worker.pid())).unwrap();
        let mut fields = text.split(' ').map(|field| field.parse::<f64>().unwrap() / 1e9);
        (fields.next().unwrap(), fields.next().unwrap())
    };
    // Threads of other daemons on the machine may have looked in, for less than a millisecond.
    let near = |shown: f64, expected: f64| shown > expected - 1e-6 && shown < expected * 1.2 + 0.1;
    let near = |a: (f64, f64), b: (f64, f64)| near(a.0, b.0) && near(a.1, b.1);
    until("the numbers of the scheduler", || near(shown()?, expected()).then_some(()));
    let before = expected();
    worker.end();
    let after = shown().unwrap();
    assert!(after.0 >= before.0 && after.1 >= before.1, "{before:?} {after:?}");
}

#[test]
fn without_bpf_descriptors_and_quotas_are_shown_and_the_rest_says_why_not() {
    if !crate::support::is_root() {
        return crate::support::skip("needs root, to give up capabilities");
    }
    let setup =
        Setup::new().pull_only().set("probes.cpu", "enabled = true").set("probes.fd", "enabled = true");
    let daemon = setup.wrap(&["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"]).start();
    let state = daemon.probe("cpu").state;
    assert_eq!((state.state, state.via.as_deref()), (StateName::On, Some("procfs")));
    assert!(state.reason.unwrap().contains("CAP_BPF"));
    let changed = daemon.change("cpu", r#"{"enabled":true,"runtime":true}"#);
    assert_eq!(changed.probe.state.state, StateName::On);
    let refused = daemon.patch("io", r#"{"enabled":true,"runtime":true}"#);
    assert!(refused.status == 409 && refused.text().contains("CAP_BPF"), "{}", refused.text());
    let text = daemon.scrape("/metrics?collect[]=cpu");
    let is_host = text.contains("netskoop_cpu_pressure_seconds_total{kind=\"host\"");
    assert_eq!(is_host, Path::new("/proc/pressure/cpu").exists(), "{text}");
    assert!(!text.contains("netskoop_cpu_run_seconds_total{"));
}
