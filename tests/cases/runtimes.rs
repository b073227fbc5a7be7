use crate::support::grpc::{Asked, FakeServer, Reply, framed, framed_bytes};
use crate::support::sources::Sources;
use crate::support::until;
use bytes::Bytes;
use containerd_client::events::{ContainerCreate, ContainerDelete, ContainerUpdate, TaskExit, TaskStart};
use containerd_client::services::v1::{
    Container, GetContainerRequest, GetContainerResponse, GetRequest, GetResponse, ListContainerMessage,
    ListNamespacesResponse, ListTasksResponse, Namespace, VersionResponse,
};
use containerd_client::types::Envelope;
use containerd_client::types::v1::{Process, Status};
use k8s_cri::v1;
use netskoopd::resolve::book::{State, Wanted};
use prost::{Message, Name};
use prost_types::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

fn id(number: usize) -> String {
    format!("{number:064x}")
}

fn labels(number: usize) -> HashMap<String, String> {
    let pod = format!("pod-{number}");
    let all = [("io.kubernetes.pod.name", &*pod), ("io.kubernetes.pod.namespace", "shop"), ("app", "web")];
    all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn container(number: usize) -> Container {
    let spec = Any { type_url: "Spec".into(), value: vec![b' '; 2_000] };
    Container { id: id(number), labels: labels(number), spec: Some(spec), ..Container::default() }
}

fn pid(number: usize) -> i32 {
    i32::try_from(number).unwrap() + 1000
}

fn process(number: usize) -> Process {
    let pid = u32::try_from(pid(number)).unwrap();
    Process { id: id(number), pid, status: Status::Running.into(), ..Process::default() }
}

/// A containerd with one namespace, of which the test decides what is in it and what happens.
struct FakeContainerd {
    server: FakeServer,
    all: Arc<Mutex<BTreeMap<String, Container>>>,
    events: UnboundedSender<Bytes>,
}

impl FakeContainerd {
    fn start(number: usize) -> FakeContainerd {
        let all: BTreeMap<String, Container> = (0..number).map(|n| (id(n), container(n))).collect();
        let all = Arc::new(Mutex::new(all));
        let (events, inbox) = unbounded_channel();
        let (known, inbox) = (Arc::clone(&all), Mutex::new(Some(inbox)));
        let server = FakeServer::start(move |asked| answer(&asked, &known.lock().unwrap(), &inbox));
        FakeContainerd { server, all, events }
    }

    fn sources(&self) -> Sources {
        Sources::only("containerd", self.server.socket())
    }

    fn tell<E: Message + Name>(&self, event: &E) {
        let event = Any { type_url: E::full_name(), value: event.encode_to_vec() };
        let envelope = Envelope { namespace: "k8s.io".into(), event: Some(event), ..Envelope::default() };
        self.events.send(framed(&envelope)).unwrap();
    }
}

fn answer(
    asked: &Asked,
    all: &BTreeMap<String, Container>,
    events: &Mutex<Option<UnboundedReceiver<Bytes>>>,
) -> Reply {
    let number = |id: &str| usize::from_str_radix(id, 16).unwrap();
    if ["Containers", "Tasks"].contains(&&*asked.service) {
        assert_eq!(asked.namespace, "k8s.io");
    }
    match &*asked.method {
        "Version" => Reply::one(&VersionResponse { version: "v1.7.24".into(), ..VersionResponse::default() }),
        "Subscribe" => events.lock().unwrap().take().map_or(Reply::Never, Reply::Events),
        "List" if asked.service == "Namespaces" => {
            let namespaces = vec![Namespace { name: "k8s.io".into(), ..Namespace::default() }];
            Reply::one(&ListNamespacesResponse { namespaces })
        }
        "List" => {
            Reply::one(&ListTasksResponse { tasks: all.keys().map(|id| process(number(id))).collect() })
        }
        "ListStream" => {
            let one = |c: &Container| framed(&ListContainerMessage { container: Some(c.clone()) });
            Reply::Messages(all.values().map(one).collect())
        }
        // Of a container or of a task: the first field of both requests is the id.
        "Get" => {
            let id = asked.message::<GetContainerRequest>().id;
            match all.get(&id) {
                Some(_) if asked.service == "Tasks" => {
                    assert_eq!(asked.message::<GetRequest>().container_id, id);
                    Reply::one(&GetResponse { process: Some(process(number(&id))) })
                }
                Some(container) => Reply::one(&GetContainerResponse { container: Some(container.clone()) }),
                None => Reply::not_found(),
            }
        }
        _ => Reply::unknown(),
    }
}

#[test]
fn ten_thousand_containers_are_one_list() {
    let containerd = FakeContainerd::start(10_000);
    let sources = containerd.sources();
    assert_eq!(sources.connected("containerd"), "containerd 1.7.24");
    let report = sources.report("containerd");
    assert_eq!((report.workloads, report.health.refused, report.health.lists), (10_000, 0, 1));
    let last = sources.says("containerd", &id(9_999)).unwrap();
    assert_eq!((&*last.pod.unwrap().name, last.pid), ("pod-9999", Some(pid(9_999))));
    assert_eq!((containerd.server.count("ListStream"), containerd.server.count("Get")), (1, 0));
}

#[test]
fn a_burst_of_events_asks_for_each_container_at_most_once() {
    let containerd = FakeContainerd::start(0);
    let sources = containerd.sources();
    sources.connected("containerd");
    containerd.all.lock().unwrap().extend((0..500).map(|n| (id(n), container(n))));
    for n in 0..500 {
        containerd.tell(&ContainerCreate { id: id(n), ..ContainerCreate::default() });
        containerd.tell(&TaskStart { container_id: id(n), pid: process(n).pid });
    }
    // A marker: what is true of it was said last.
    sources.until("containerd", &id(499), |w| w.pid == Some(pid(499)));
    (0..500).for_each(|n| drop(sources.until("containerd", &id(n), |w| w.pid == Some(pid(n)))));
    assert!(containerd.server.count("Get") <= 500, "{}", containerd.server.count("Get"));
    assert_eq!(containerd.server.count("ListStream"), 1);

    let labels = HashMap::from([("nerdctl/name".to_owned(), "db".to_owned())]);
    containerd.tell(&ContainerUpdate { id: id(1), labels, ..ContainerUpdate::default() });
    let told = sources.until("containerd", &id(1), |w| w.name == "db");
    assert_eq!((told.pod, told.pid), (None, Some(pid(1))), "labels change, processes stay");
    assert!(containerd.server.count("Get") <= 500, "the event tells all labels");

    containerd.tell(&TaskExit { container_id: id(0), id: id(0), pid: process(0).pid, ..TaskExit::default() });
    sources.until("containerd", &id(0), |w| w.pid.is_none());
    containerd.tell(&ContainerDelete { id: id(0) });
    sources.until_gone("containerd", &id(0));
    assert_eq!(sources.report("containerd").health.events, 1_003);
}

#[test]
fn a_container_that_was_missed_is_found_when_asked_for() {
    let containerd = FakeContainerd::start(0);
    let sources = containerd.sources();
    sources.connected("containerd");
    containerd.all.lock().unwrap().insert(id(7), container(7));
    sources.book.ask(&Wanted::Container(id(8)));
    sources.book.ask(&Wanted::Unit("nobody.service".into()));
    sources.book.ask(&Wanted::Container(id(7)));
    sources.until("containerd", &id(7), |w| w.pid == Some(pid(7)));
    assert_eq!(sources.says("containerd", &id(8)), None);
}

#[test]
fn the_page_outlives_the_connection() {
    let containerd = FakeContainerd::start(3);
    let sources = containerd.sources();
    sources.connected("containerd");
    drop(containerd);
    let reason = sources.failed("containerd");
    assert!(reason.contains(": following the events of containerd: "), "{reason}");
    assert!(!reason.contains('\n') && reason.len() < 300, "{reason}");
    assert_eq!(sources.report("containerd").workloads, 3);
}

#[test]
fn hostile_answers_are_cut_or_refused_in_a_sentence() {
    let containerd = FakeContainerd::start(0);
    let labels = (0..500).map(|n| (format!("key-{n:04}\n"), "\"}\u{1b}".repeat(5_000))).collect();
    let hostile = Container { id: id(1), labels, image: "x\n".repeat(10_000), ..Container::default() };
    containerd.all.lock().unwrap().insert(id(1), hostile);
    let sources = containerd.sources();
    sources.connected("containerd");
    let told = sources.says("containerd", &id(1)).unwrap();
    assert!(told.labels.len() < 64 && told.image.len() <= 256, "{told:?}");

    // Text that is none, a message that is none, and one that says that it is a gigabyte.
    let text = GetContainerRequest { id: "x".repeat(4) }
        .encode_to_vec()
        .iter()
        .map(|b| b | 0x80)
        .collect::<Vec<_>>();
    let huge: Bytes = [&[0u8][..], &(1u32 << 30).to_be_bytes(), b"x"].concat().into();
    for bad in [framed_bytes(&text), framed_bytes(&[0xff; 100]), huge] {
        let server = FakeServer::start(move |asked| match &*asked.method {
            "Subscribe" => Reply::Never,
            _ => Reply::Messages(vec![bad.clone()]),
        });
        let sources = Sources::only("containerd", server.socket());
        let reason = sources.failed("containerd");
        assert!(reason.contains(": asking containerd for its version: "), "{reason}");
        assert!(!reason.chars().any(char::is_control) && reason.len() < 300, "{reason}");
    }
}

#[test]
fn a_task_list_that_fails_costs_only_the_processes() {
    let containerd = FakeContainerd::start(3);
    let all = Arc::clone(&containerd.all);
    let server = FakeServer::start(move |asked| match (&*asked.method, &*asked.service) {
        ("List", "Tasks") => Reply::Error(4, "context deadline exceeded".into()),
        ("Subscribe", _) => Reply::Never,
        _ => answer(&asked, &all.lock().unwrap(), &Mutex::new(None)),
    });
    let sources = Sources::only("containerd", server.socket());
    sources.connected("containerd");
    let told = sources.says("containerd", &id(2)).unwrap();
    assert_eq!((&*told.pod.unwrap().name, told.pid), ("pod-2", None));
    let error = sources.report("containerd").health.last_error;
    assert_eq!(error.as_deref(), Some("listing the tasks in k8s.io: context deadline exceeded"));
}

/// A CRI-O: pod sandboxes without a process, one container in each.
#[derive(Default)]
struct FakeCri {
    pods: Mutex<Vec<usize>>,
    events: Mutex<Option<UnboundedReceiver<Bytes>>>,
}

impl FakeCri {
    fn answer(&self, asked: &Asked) -> Reply {
        let pods = self.pods.lock().unwrap();
        match &*asked.method {
            "Version" => Reply::one(&v1::VersionResponse {
                runtime_name: "cri-o".into(),
                runtime_version: "1.28.1".into(),
                ..v1::VersionResponse::default()
            }),
            "GetContainerEvents" => match self.events.lock().unwrap().take() {
                Some(events) => Reply::Events(events),
                None => Reply::Messages(vec![]),
            },
            "ListPodSandbox" => {
                let wanted = asked.message::<v1::ListPodSandboxRequest>().filter.unwrap_or_default().id;
                let one = |n| v1::PodSandbox {
                    id: id(n),
                    metadata: Some(v1::PodSandboxMetadata {
                        name: format!("pod-{n}"),
                        namespace: "shop".into(),
                        ..v1::PodSandboxMetadata::default()
                    }),
                    labels: labels(n),
                    ..v1::PodSandbox::default()
                };
                Reply::one(&v1::ListPodSandboxResponse {
                    items: pods
                        .iter()
                        .copied()
                        .filter(|n| wanted.is_empty() || id(*n) == wanted)
                        .map(one)
                        .collect(),
                })
            }
            "ListContainers" => Reply::one(&v1::ListContainersResponse::default()),
            "PodSandboxStatus" => {
                let info = r#"{"pid":0,"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/run/netns/x"}]}}}"#;
                Reply::one(&v1::PodSandboxStatusResponse {
                    status: Some(v1::PodSandboxStatus {
                        network: Some(v1::PodSandboxNetworkStatus {
                            ip: "10.85.0.4".into(),
                            additional_ips: vec![],
                        }),
                        ..v1::PodSandboxStatus::default()
                    }),
                    info: HashMap::from([("info".to_owned(), info.to_owned())]),
                    ..v1::PodSandboxStatusResponse::default()
                })
            }
            _ => Reply::unknown(),
        }
    }
}

#[test]
fn the_events_of_a_cri_o_are_followed() {
    let (events, inbox) = unbounded_channel();
    let cri = Arc::new(FakeCri { events: Mutex::new(Some(inbox)), ..FakeCri::default() });
    cri.pods.lock().unwrap().push(1);
    let answers = Arc::clone(&cri);
    let server = FakeServer::start(move |asked| answers.answer(&asked));
    let sources = Sources::only("cri", server.socket());
    assert_eq!(sources.connected("cri"), "cri-o 1.28.1");
    let told = sources.says("cri", &id(1)).unwrap();
    assert_eq!((&*told.pod.unwrap().name, told.pid), ("pod-1", None));
    assert_eq!((told.netns, told.addresses.len()), (Some("/run/netns/x".into()), 1));

    cri.pods.lock().unwrap().push(2);
    let event = |n| {
        framed(&v1::ContainerEventResponse { container_id: id(n), ..v1::ContainerEventResponse::default() })
    };
    events.send(event(2)).unwrap();
    sources.until("cri", &id(2), |w| w.pod.as_ref().is_some_and(|pod| pod.name == "pod-2"));
    cri.pods.lock().unwrap().retain(|n| *n != 1);
    events.send(event(1)).unwrap();
    sources.until_gone("cri", &id(1));
    assert_eq!(server.count("PodSandboxStatus"), 2, "once for each");
}

#[test]
fn a_cri_o_without_events_is_polled_and_asked_only_for_what_is_new() {
    let cri = Arc::new(FakeCri::default());
    cri.pods.lock().unwrap().extend([1, 2, 3]);
    let answers = Arc::clone(&cri);
    let server = FakeServer::start(move |asked| answers.answer(&asked));
    let sources = Sources::only("cri", server.socket());
    sources.connected("cri");
    // The first list, and the one when its events ended.
    until("a second list", || (server.count("ListContainers") >= 2).then_some(()));
    cri.pods.lock().unwrap().push(4);
    sources.until("cri", &id(4), |w| w.pod.is_some());
    assert_eq!(server.count("PodSandboxStatus"), 4);
    assert!(matches!(sources.state("cri"), State::Connected(_)));
}

#[test]
fn a_runtime_that_is_too_old_is_told_so() {
    let server = FakeServer::start(|_| Reply::unknown());
    let sources = Sources::only("cri", server.socket());
    let reason = sources.failed("cri");
    let path = server.socket().display().to_string();
    assert_eq!(
        reason,
        format!("{path} does not speak version 1 of CRI: its runtime is too old, or its CRI is switched off")
    );
}
