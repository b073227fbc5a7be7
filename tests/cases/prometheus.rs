use super::golden::lint;
use crate::support::prometheus::{Labels, Prometheus};
use crate::support::{Daemon, LIMIT, Netns, Pids, Setup, own_node, until};
use netskoop_api::{OptionValue, ProbeInfo, StateName};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command};

/// The generations of names; each is a job with the same name.
const NAMES: [&str; 3] = ["netskoop", "kubeskoop", "inspector"];
/// A minute of scrapes.
const SECONDS: u32 = 5;
const SCRAPES: u32 = 12;

fn page(names: &str) -> String {
    format!("/metrics?set=full&names={names}")
}

/// Every probe, with everything that may be switched on in it.
fn switch_everything_on(daemon: &Daemon) {
    let probes: Vec<ProbeInfo> = daemon.json("/v1/probes");
    let mut refused = BTreeSet::new();
    for probe in &probes {
        let switches = probe.options.iter().filter(|option| matches!(option.value, OptionValue::Bool(_)));
        let options: BTreeMap<&str, &str> = switches.map(|option| (&*option.name, "true")).collect();
        let options = serde_json::to_string(&options).unwrap();
        let body = format!("{{\"enabled\":true,\"options\":{options},\"runtime\":true}}");
        let answer = daemon.patch(&probe.name, &body);
        // Some have nothing to look at on this machine, and are refused.
        if answer.text().contains("\"not_available\"") {
            refused.insert(&*probe.name);
        } else {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    until("every probe works or cannot", || {
        // What is not on the machine is found out when it is asked for.
        daemon.scrape(&page("netskoop"));
        let probes: Vec<ProbeInfo> = daemon.json("/v1/probes");
        let settled = |probe: &ProbeInfo| {
            matches!(probe.state.state, StateName::On | StateName::NotAvailable)
                || refused.contains(&*probe.name)
        };
        probes.iter().all(settled).then_some(())
    });
}

/// A process in a namespace, ended when dropped.
struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connections in good order and refused, datagrams that nobody wanted, rules that track connections, a queue with a limit.
/// What it returns stays as long as it is held.
fn trouble(from: &Netns, to: &Netns) -> (Vec<TcpStream>, Vec<TcpListener>, Member) {
    let rules = "add table inet t; add chain inet t in { type filter hook input priority 0; }; \
                 add rule inet t in ct state new counter";
    to.run("nft", &[rules]);
    from.run(
        "tc",
        &["qdisc", "add", "dev", "c1a", "root", "tbf", "rate", "100mbit", "burst", "10k", "limit", "10k"],
    );
    let (mut streams, mut listeners) = (vec![], vec![]);
    for host in ["10.9.1.2", "[fd09::1:2]"] {
        let listener = to.enter(|| TcpListener::bind(format!("{host}:7000")).unwrap());
        from.enter(|| {
            let mut client = TcpStream::connect(format!("{host}:7000")).unwrap();
            client.write_all(b"hello").unwrap();
            streams.push(client);
            assert!(TcpStream::connect(format!("{host}:7001")).is_err());
            let any = if host.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(format!("{host}:7002")).unwrap();
            until("it is refused", || socket.send(b"x").is_err().then_some(()));
        });
        listeners.push(listener);
    }
    let sleep = Command::new("ip").args(["netns", "exec", &to.0, "sleep", "1000"]).spawn().unwrap();
    (streams, listeners, Member(sleep))
}

/// Help and type of every family that has a series, by name.
fn families(text: &str) -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::new();
    let mut help = String::new();
    let mut kind = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            rest.split_once(' ').unwrap().1.clone_into(&mut help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            kind = (name.to_owned(), of.to_owned());
        } else {
            found.entry(kind.0.clone()).or_insert_with(|| (kind.1.clone(), help.clone()));
        }
    }
    found
}

/// The series of one entity with their values. No value of a label has a comma or a quotation mark in it here.
fn of_entity(text: &str, label: &str) -> BTreeMap<Labels, f64> {
    let one = |line: &str| {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        let pairs = labels.split("\",").map(|pair| pair.split_once("=\"").unwrap());
        let pairs = pairs.map(|(key, value)| (key, value.trim_end_matches('"')));
        let mut all: Labels =
            pairs.filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.into(), v.into())).collect();
        all.insert("__name__".into(), name.into());
        Some((all, value.parse().unwrap()))
    };
    text.lines().filter(|line| line.contains(label)).filter_map(one).collect()
}

/// What is known of `names` after all scrapes is what the daemon shows.
fn is_stored(daemon: &Daemon, prometheus: &Prometheus, names: &str, shown_before: &str) {
    let job = format!("{{job=\"{names}\"}}");
    let now = daemon.scrape(&page(names));
    lint(&now, names);
    let (before, now) = (families(shown_before), families(&now));
    // What other tests on this machine make may have come or gone since.
    let expected: BTreeSet<&String> = before.keys().filter(|name| now.contains_key(*name)).collect();
    let stored = prometheus.api("label/__name__/values", "match[]", &job);
    let stored: BTreeSet<String> = serde_json::from_value(stored).unwrap();
    let parts = |name: &str| match now[name].0.as_str() {
        "histogram" => ["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}")).to_vec(),
        _ => vec![name.to_owned()],
    };
    let missing: Vec<_> =
        expected.iter().flat_map(|name| parts(name)).filter(|name| !stored.contains(name)).collect();
    assert!(missing.is_empty(), "{names}: not stored: {missing:?}");
    let mut described = BTreeMap::new();
    for entry in prometheus.api("targets/metadata", "match_target", &job).as_array().unwrap() {
        let word = |key: &str| entry[key].as_str().unwrap().to_owned();
        described.insert(word("metric"), (word("type"), word("help")));
    }
    for name in expected {
        assert_eq!(described.get(name), now.get(name), "{names}: {name}");
    }
}

/// A namespace in which nothing happens is stored as it is shown, each series once, with its labels and its value.
fn is_the_same(daemon: &Daemon, prometheus: &Prometheus, names: &str, label: &str) {
    let query = format!("{{job=\"{names}\",{label}}}");
    let end = std::time::Instant::now() + LIMIT;
    loop {
        let mut shown = of_entity(&daemon.scrape(&page(names)), label);
        let mut stored: BTreeMap<Labels, f64> = BTreeMap::new();
        for (mut labels, value) in prometheus.query(&query) {
            labels.remove("job");
            labels.remove("instance");
            stored.insert(labels, value);
        }
        // The older names repeat for every entity what the kernel counts for the node, which goes on.
        if names != "netskoop" {
            shown.values_mut().chain(stored.values_mut()).for_each(|value| *value = 0.0);
        }
        assert!(shown.len() > 30, "{names}: {shown:?}");
        if shown == stored {
            return;
        }
        if std::time::Instant::now() > end {
            shown.retain(|labels, value| stored.get(labels) != Some(value));
            panic!("{names}: stored otherwise: {shown:?}");
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn a_real_prometheus_stores_every_family_as_what_it_is() {
    own_node!(Pids::Shared);
    let (blue, red, still) = (Netns::new("blue"), Netns::new("red"), Netns::new("still"));
    blue.cable(&red, 1);
    let daemon = Setup::on_node().start();
    switch_everything_on(&daemon);
    daemon.entities_until("the namespace", |now| now.entities.iter().any(|e| e.id.name == still.0));
    let _held = trouble(&blue, &red);
    let before = NAMES.map(|names| daemon.scrape(&page(names)));
    let params = NAMES.map(|names| format!("{{set: [full], names: [{names}]}}"));
    let jobs: Vec<(&str, &str)> = NAMES.into_iter().zip(params.iter().map(String::as_str)).collect();
    let Some(prometheus) = Prometheus::start(&daemon, SECONDS, &jobs) else { return };
    for scrape in 1..=SCRAPES {
        until("one scrape more of each page", || {
            let counts = prometheus.query("count_over_time(up[10m])");
            (counts.len() == 3 && counts.values().all(|count| *count >= f64::from(scrape))).then_some(())
        });
    }
    for (names, before) in NAMES.into_iter().zip(&before) {
        is_stored(&daemon, &prometheus, names, before);
    }
    for (names, label) in NAMES.into_iter().zip(["name=\"still\"", "k8s_pod=\"still\"", "pod=\"still\""]) {
        is_the_same(&daemon, &prometheus, names, label);
    }
    // It was there all the time, and no sample was refused.
    let always = prometheus.query("min_over_time(up[10m])");
    assert!(always.len() == 3 && always.values().all(|up| *up == 1.0), "{always:?}");
    let lost = prometheus.query("max_over_time(scrape_samples_scraped[10m]) != max_over_time(scrape_samples_post_metric_relabeling[10m])");
    assert!(lost.is_empty(), "{lost:?}");
    for line in prometheus.own_metrics().lines() {
        let refused = ["duplicate_timestamp", "out_of_order", "out_of_bounds", "exceeded"];
        let counts =
            refused.iter().any(|word| line.starts_with("prometheus_target_scrape") && line.contains(word));
        assert!(!counts || line.ends_with(" 0"), "{line}");
    }
    let log = prometheus.log();
    let complaints = log.lines().filter(|line| line.contains("level=warn") || line.contains("level=error"));
    assert_eq!(complaints.collect::<Vec<_>>(), [""; 0], "what Prometheus says");
}
