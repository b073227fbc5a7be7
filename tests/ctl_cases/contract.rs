//! The contract only grows: an answer recorded once is understood for ever, and nothing that was in it goes away.
//!
//! `tests/api/*.json` holds one instance of every type. A field that is new is added to the file by this test, which then
//! fails once so that the change is seen; a field that is gone or renamed is a broken contract and stays a failure.

use netskoop_api::{
    Claim, CollectionStatus, ContainerInfo, CostStatus, EVENT_SCHEMA, Entities, Entity, EntityMetrics,
    EntityRef, ErrorBody, ErrorInfo, Event, EventInfo, EventLine, EventStatus, Imported, Kind, KindCount,
    MetricInfo, MetricValue, Net, OptionInfo, OptionValue, ProbeChanged, ProbeCounts, ProbeInfo, ProbePatch,
    ProbeState, Process, Reloaded, SelfCheck, SelfEvent, SelfResult, SelfTest, SourceCounts, SourceStatus,
    StateName, Status, StreamCounts, Value, WedgedRead,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/api").join(name)
}

/// What of `old` is not in `new` as it was, by path.
fn lost(old: &Json, new: &Json, at: &str, found: &mut Vec<String>) {
    match (old, new) {
        (Json::Object(old), Json::Object(new)) => {
            for (key, value) in old {
                match new.get(key) {
                    Some(now) => lost(value, now, &format!("{at}.{key}"), found),
                    None => found.push(format!("{at}.{key} is gone")),
                }
            }
        }
        (Json::Array(old), Json::Array(new)) if old.len() <= new.len() => {
            old.iter()
                .zip(new)
                .enumerate()
                .for_each(|(i, (old, new))| lost(old, new, &format!("{at}[{i}]"), found));
        }
        _ if old == new => {}
        _ => found.push(format!("{at} was {old} and is {new}")),
    }
}

/// Compares an instance with the recorded one.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, instance: &T) {
    let now = serde_json::to_value(instance).unwrap();
    let Ok(text) = std::fs::read_to_string(path(name)) else {
        std::fs::create_dir_all(path("")).unwrap();
        std::fs::write(path(name), format!("{now:#}\n")).unwrap();
        panic!("tests/api/{name} is new and has been written; commit it");
    };
    let recorded: Json = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    lost(&recorded, &now, name, &mut found);
    assert!(found.is_empty(), "the contract of API version 1 is broken:\n{}", found.join("\n"));
    let read: T = serde_json::from_value(recorded.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    if recorded != now {
        std::fs::write(path(name), format!("{now:#}\n")).unwrap();
        panic!("tests/api/{name} has new fields and has been written; commit it");
    }
    assert_eq!(read, *instance, "{name}");
    // What a newer daemon adds does not disturb an older client.
    let mut newer = recorded;
    if let Json::Object(fields) = &mut newer {
        fields.insert("field_of_a_later_version".to_owned(), Json::Bool(true));
        let read: T =
            serde_json::from_value(newer).unwrap_or_else(|error| panic!("{name}, extended: {error}"));
        assert_eq!(read, *instance, "{name}, extended");
    }
}

fn entity_ref() -> EntityRef {
    EntityRef {
        kind: Kind::Pod,
        name: "kube-system/coredns-abc".into(),
        namespace: Some("kube-system".into()),
        pod: Some("coredns-abc".into()),
        netns: 4_026_532_201,
    }
}

/// The example of the design.
fn event() -> Event {
    let fields = [("reason", Value::Text("NO_SOCKET".into())), ("state", Value::Text("ESTABLISHED".into()))];
    let mut fields: BTreeMap<String, Value> = fields.map(|(name, value)| (name.to_owned(), value)).into();
    fields.insert("latency_ns".into(), Value::Number(182_000_000));
    Event {
        schema: EVENT_SCHEMA,
        boot: "c0ffee".into(),
        seq: 48_211,
        time: "2026-11-20T12:01:03.402118044Z".into(),
        kind: "TCP_RESET_NOSOCK".into(),
        probe: "tcpreset".into(),
        node: "worker-7".into(),
        entity: Some(entity_ref()),
        container: Some("coredns".into()),
        peer: Some(EntityRef { namespace: None, pod: None, name: "shop/cart-5f".into(), ..entity_ref() }),
        net: Some(Net {
            proto: "tcp".into(),
            src: "10.1.17.113".into(),
            sport: 6443,
            dst: "10.1.17.9".into(),
            dport: 44_226,
        }),
        process: Some(Process { pid: 812, comm: "redis-server".into() }),
        fields,
        stack: vec!["tcp_v4_send_reset+0x12".into(), "tcp_v4_rcv+0xa3".into()],
        suppressed: 0,
    }
}

fn stream() -> StreamCounts {
    StreamCounts { missed: 1, seen: 2, submitted: 3, ring_full: 4, suppressed: 5, map_full: 6, filtered: 7 }
}

fn probe() -> ProbeInfo {
    let option = |name: &str, kind: &str, default, value| OptionInfo {
        name: name.into(),
        kind: kind.into(),
        range: "at most 16".into(),
        default,
        value,
        help: "What it does.".into(),
        words: vec!["NO_SOCKET".into()],
    };
    ProbeInfo {
        name: "tcpreset".into(),
        aliases: vec!["tcp_reset".into()],
        summary: "TCP resets.".into(),
        when: "Connections break.".into(),
        finds: "Who broke them.".into(),
        cost: "low".into(),
        needs: "BTF tracepoints.".into(),
        default_on: true,
        options: vec![
            option("stack", "bool", OptionValue::Bool(false), OptionValue::Bool(true)),
            option("reasons", "integer", OptionValue::Integer(24), OptionValue::Integer(3)),
            option(
                "threshold",
                "duration",
                OptionValue::Text("100ms".into()),
                OptionValue::Text("1s".into()),
            ),
            option("ignore_ports", "list", OptionValue::List(vec![]), OptionValue::List(vec!["80".into()])),
        ],
        metrics: vec![MetricInfo {
            name: "netskoop_tcpreset_resets_total".into(),
            names: "netskoop".into(),
            kind: "counter".into(),
            labels: vec!["cause".into()],
            core: true,
            help: "TCP resets.".into(),
        }],
        events: vec![EventInfo {
            name: "TCP_RESET_NOSOCK".into(),
            aliases: vec!["TCPRESET_NOSOCK".into()],
            fields: vec!["reason".into()],
            help: "A reset was sent.".into(),
        }],
        state: ProbeState {
            state: StateName::On,
            reason: Some("hidden symbols".into()),
            via: Some("tp_btf".into()),
            decided_by: "lease".into(),
            lease_seconds: Some(597),
            last_collection_ns: Some(300_000),
            event_ns: Some(160),
            bpf_cpu_ratio: Some(0.0125),
            stream: Some(stream()),
            programs: vec![41, 42],
        },
    }
}

fn entity() -> Entity {
    Entity {
        id: entity_ref(),
        processes: 4,
        leader: Some(812),
        comm: Some("coredns".into()),
        mounts: vec!["blue".into()],
        container_id: Some("5d2f".into()),
        cgroup: Some("/kubepods.slice/x.scope".into()),
        addresses: vec!["10.244.1.7".into()],
        sources: vec!["cgroup".into(), "process".into()],
        since: "2026-11-20T12:00:00Z".into(),
        uid: Some("8f1c".into()),
        host_network: true,
        containers: vec![ContainerInfo {
            id: "5d2f".into(),
            name: "coredns".into(),
            image: "registry/coredns:1.11".into(),
            pid: Some(812),
            sandbox: true,
        }],
        units: vec!["a.service".into()],
        description: Some("A service".into()),
        labels: BTreeMap::from([("app".into(), "dns".into())]),
        annotations: BTreeMap::from([("checksum".into(), "1".into())]),
        claims: vec![Claim {
            source: "containerd".into(),
            says: "sandbox of kube-system/coredns-abc".into(),
            since: "2026-11-20T12:00:00Z".into(),
            changed: "2026-11-20T12:00:01Z".into(),
        }],
        provisional: true,
    }
}

fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        boot: "c0ffee".into(),
        pid: 7,
        uptime_seconds: 3600,
        node: "worker-7".into(),
        kernel: "6.1.0-56-amd64".into(),
        btf: "BTF built in".into(),
        metrics_urls: vec!["http://localhost:9102/metrics".into()],
        entities: vec![KindCount { kind: "pod".into(), count: 187 }],
        sources: vec![SourceStatus {
            name: "/run/netns".into(),
            state: "watching".into(),
            last_event_seconds: Some(2),
            entities: 6,
            connected_seconds: Some(60),
            last_error: Some("connection refused".into()),
            counts: Some(SourceCounts {
                workloads: 7,
                events: 8,
                lists: 1,
                failures: 2,
                questions: 3,
                refused: 4,
            }),
        }],
        probes: ProbeCounts {
            on: 17,
            off: 9,
            failed: 1,
            paused: 2,
            not_available: vec!["virtcmdlatency".into()],
        },
        collection: CollectionStatus {
            age_seconds: Some(1.25),
            cpu_ns: 18_000_000,
            wall_ns: 9_000_000,
            series: 31_204,
            bytes: 3_100_000,
            namespaces: 212,
            late: 1,
            over_budget: 2,
        },
        events: EventStatus {
            kernel: stream(),
            received: 1,
            malformed: 2,
            overrun: 3,
            delivered: 4,
            filtered_by_entity: 10,
            kept: 5,
            last_seq: 6,
            followers: 7,
            missed_by_followers: 8,
            relabelled: 9,
        },
        cost: CostStatus { cpu_seconds: 1.5, cpu_percent: 0.25, resident_bytes: 14 << 20 },
        wedged: vec![WedgedRead {
            source: "procfs".into(),
            subject: "net/snmp of blue".into(),
            since_seconds: 75,
        }],
        warnings: vec!["kernel symbols are hidden".into()],
    }
}

fn metrics() -> EntityMetrics {
    EntityMetrics {
        entity: entity_ref(),
        time: "2026-11-20T12:00:00Z".into(),
        monotonic_ns: 123_456_789,
        values: vec![MetricValue {
            probe: "udp".into(),
            metric: "netskoop_udp_rcvbuf_errors_total".into(),
            name: "rcvbuf_errors".into(),
            labels: "family=\"ipv4\"".into(),
            kind: "counter".into(),
            value: 4011.0,
            alarm: Some("the socket buffer is full".into()),
        }],
    }
}

#[test]
fn events_keep_their_shape() {
    check("event.json", &event());
    check("event_line_missed.json", &EventLine::Missed { missed: 12 });
    assert_eq!(
        serde_json::from_str::<EventLine>(&serde_json::to_string(&event()).unwrap()).unwrap(),
        EventLine::Event(Box::new(event()))
    );
    // Absent parts are left out.
    let bare = Event {
        entity: None,
        container: None,
        peer: None,
        net: None,
        process: None,
        fields: BTreeMap::new(),
        stack: vec![],
        ..event()
    };
    let keys: Vec<String> =
        serde_json::to_value(bare).unwrap().as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["boot", "node", "probe", "schema", "seq", "suppressed", "time", "type"]);
}

/// The line of the design document; the peer has its `netns` as well, which the design left out, and containers came later.
#[test]
fn the_event_of_the_design_is_an_event() {
    const DESIGN: &str = r#"{"schema":1,"boot":"c0ffee","seq":48211,"time":"2026-11-20T12:01:03.402118044Z","type":"TCP_RESET_NOSOCK","probe":"tcpreset","node":"worker-7",
     "entity":{"kind":"pod","name":"kube-system/coredns-abc","namespace":"kube-system","pod":"coredns-abc","netns":4026532201},
     "peer":{"kind":"pod","name":"shop/cart-5f","netns":4026532201},
     "net":{"proto":"tcp","src":"10.1.17.113","sport":6443,"dst":"10.1.17.9","dport":44226},
     "process":{"pid":812,"comm":"redis-server"},
     "fields":{"reason":"NO_SOCKET","state":"ESTABLISHED","latency_ns":182000000},
     "stack":["tcp_v4_send_reset+0x12","tcp_v4_rcv+0xa3"],"suppressed":0}"#;
    let event = Event { container: None, ..event() };
    assert_eq!(serde_json::from_str::<Event>(DESIGN).unwrap(), event);
    assert_eq!(serde_json::to_value(event).unwrap(), serde_json::from_str::<Json>(DESIGN).unwrap());
}

#[test]
fn answers_keep_their_shape() {
    check("probe.json", &probe());
    check(
        "probe_changed.json",
        &ProbeChanged { changed: true, message: "tcpreset is on for 10m".into(), probe: probe() },
    );
    check("entities.json", &Entities { generation: 9, entities: vec![entity()] });
    check("status.json", &status());
    check("entity_metrics.json", &metrics());
    let imported = Imported { toml: "[metrics]\n".into(), notes: vec!["event.sinks: why".into()] };
    check("imported.json", &imported);
    let self_check = SelfCheck {
        probe: "tcpreset".into(),
        result: SelfResult::Ok,
        says: "TCP_RESET_NOSOCK event in 0.2 ms (v4), attributed, counter +1".into(),
        events: vec![SelfEvent {
            kind: "TCP_RESET_NOSOCK".into(),
            version: "v4".into(),
            seq: 7,
            milliseconds: 0.2,
            entity: "netskoop-selftest-server".into(),
        }],
        metric: Some("netskoop_tcpreset_resets_total{cause=\"no_socket\"}".into()),
        grown: Some(1.0),
        expected: Some(1.0),
        exact: true,
    };
    let others =
        [SelfResult::Failed, SelfResult::Skipped].map(|result| SelfCheck { result, ..self_check.clone() });
    let checks = [self_check].into_iter().chain(others).collect();
    check("selftest.json", &SelfTest { passed: false, seconds: 1.5, checks });
    check("reloaded.json", &Reloaded { changes: vec!["events.history: 1 -> 2".into()] });
    let error = ErrorInfo {
        code: "no_such_probe".into(),
        message: "no probe 'x'".into(),
        hint: Some("netskoopctl probes list shows them".into()),
    };
    check("error.json", &ErrorBody { error });
}

#[test]
fn words_keep_their_spelling() {
    let kinds =
        [Kind::Host, Kind::Pod, Kind::Container, Kind::Unit, Kind::Machine, Kind::Netns, Kind::Unknown];
    check("kinds.json", &kinds.to_vec());
    assert!(kinds.iter().all(|kind| serde_json::to_value(kind).unwrap() == kind.as_str()));
    assert_eq!(serde_json::from_str::<Kind>("\"hypervisor\"").unwrap(), Kind::Unknown);
    let states =
        [StateName::On, StateName::Off, StateName::Starting, StateName::Failed, StateName::NotAvailable];
    check("states.json", &states.to_vec());
    assert!(states.iter().all(|state| serde_json::to_value(state).unwrap() == state.as_str()));
}

/// A request is the other way round: what is misspelt is refused and not ignored.
#[test]
fn requests_refuse_what_they_do_not_know() {
    let patch = ProbePatch {
        enabled: Some(true),
        options: [("stack".to_owned(), "true".to_owned())].into(),
        lease: Some("10m".into()),
        runtime: false,
    };
    let text = serde_json::to_string(&patch).unwrap();
    assert_eq!(text, r#"{"enabled":true,"options":{"stack":"true"},"for":"10m","runtime":false}"#);
    assert_eq!(serde_json::from_str::<ProbePatch>(&text).unwrap(), patch);
    assert_eq!(serde_json::from_str::<ProbePatch>("{}").unwrap(), ProbePatch::default());
    assert!(serde_json::from_str::<ProbePatch>(r#"{"enable":true}"#).is_err());
}

#[test]
fn a_contract_that_shrinks_is_noticed() {
    let old = serde_json::json!({"a": 1, "b": {"c": [1, {"d": 2}]}});
    let mut found = Vec::new();
    lost(&old, &serde_json::json!({"a": 1, "b": {"c": [1, {"d": 2, "e": 3}]}, "f": 4}), "x", &mut found);
    assert!(found.is_empty(), "{found:?}");
    lost(&old, &serde_json::json!({"a": "1", "b": {"c": [1, {}]}}), "x", &mut found);
    assert_eq!(found, ["x.a was 1 and is \"1\"", "x.b.c[1].d is gone"]);
}
