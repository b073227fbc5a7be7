//! Not a test: a large containerd for the benchmark, behind a real socket. The benchmark says on standard input what is
//! there and what happens, one command a line, and each is answered with the moment at which it was done:
//!
//!     known NUMBER NAMESPACE PID     a pod that was there before anybody listened
//!     create NUMBER NAMESPACE        the sandbox of a pod is made
//!     start NUMBER PID               its process starts
//!     join NUMBER PID                the pod's container is made and starts
//!     remove NUMBER                  all of it ends
//!     restart                        the stream of events breaks
//!
//! NUMBER is the pod's, NAMESPACE a file below `/run/netns`.

use crate::support::grpc::{Asked, FakeServer, Reply, framed};
use bytes::Bytes;
use containerd_client::events::{
    ContainerCreate, ContainerDelete, TaskCreate, TaskDelete, TaskExit, TaskStart,
};
use containerd_client::services::v1::{
    Container, GetContainerRequest, GetContainerResponse, GetResponse, ListContainerMessage,
    ListNamespacesResponse, ListTasksResponse, Namespace, VersionResponse,
};
use containerd_client::types::Envelope;
use containerd_client::types::v1::{Process, Status};
use prost::{Message, Name};
use prost_types::Any;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Set by the benchmark: without it this does nothing.
const ASKED_FOR: &str = "NETSKOOP_BENCH_RUNTIME";

/// A container and its process.
struct Known {
    container: Container,
    pid: Option<u32>,
}

/// What is there, and who listens.
#[derive(Default)]
struct Node {
    all: BTreeMap<String, Known>,
    events: Option<UnboundedSender<Bytes>>,
}

#[test]
#[ignore = "started by the benchmark"]
fn serve() {
    if std::env::var_os(ASKED_FOR).is_none() {
        return;
    }
    let node = Arc::new(Mutex::new(Node::default()));
    let answers = Arc::clone(&node);
    let server = FakeServer::start(move |asked| answers.lock().unwrap().answer(&asked));
    // The test harness has written something before, without the end of a line.
    println!("\nsocket {}", server.socket().display());
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        node.lock().unwrap().obey(&words);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        println!("done {}.{:09}", now.tv_sec, now.tv_nsec);
        std::io::stdout().flush().unwrap();
    }
}

fn id(pod: usize, is_sandbox: bool) -> String {
    // Spread as real ids are.
    let number =
        (2 * pod as u128 + u128::from(is_sandbox)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    format!("{number:032x}{:032x}", 2 * pod + usize::from(is_sandbox))
}

impl Node {
    fn obey(&mut self, words: &[&str]) {
        let pod = |word: &str| word.parse::<usize>().unwrap();
        match words {
            ["known", number, netns, pid] => {
                let (pod, pid) = (pod(number), Some(pid.parse().unwrap()));
                self.add(container(pod, Some(netns)), pid);
                self.add(container(pod, None), pid);
            }
            ["create", number, netns] => self.create(container(pod(number), Some(netns))),
            ["start", number, pid] => self.start(&id(pod(number), true), pid.parse().unwrap()),
            ["join", number, pid] => {
                self.create(container(pod(number), None));
                self.start(&id(pod(number), false), pid.parse().unwrap());
            }
            ["remove", number] => {
                self.remove(id(pod(number), false));
                self.remove(id(pod(number), true));
            }
            ["restart"] => self.events = None,
            _ => panic!("no command: {words:?}"),
        }
    }

    fn add(&mut self, container: Container, pid: Option<u32>) {
        self.all.insert(container.id.clone(), Known { container, pid });
    }

    fn create(&mut self, container: Container) {
        let (id, image) = (container.id.clone(), container.image.clone());
        self.add(container, None);
        self.tell(&ContainerCreate { id, image, ..ContainerCreate::default() });
    }

    fn start(&mut self, id: &str, pid: u32) {
        self.all.get_mut(id).unwrap().pid = Some(pid);
        let container_id = id.to_owned();
        self.tell(&TaskCreate { container_id: container_id.clone(), pid, ..TaskCreate::default() });
        self.tell(&TaskStart { container_id, pid });
    }

    fn remove(&mut self, id: String) {
        let Some(Known { pid: Some(pid), .. }) = self.all.remove(&id) else { return };
        let container_id = id.clone();
        self.tell(&TaskExit {
            container_id: container_id.clone(),
            id: id.clone(),
            pid,
            ..TaskExit::default()
        });
        self.tell(&TaskDelete { container_id, id: id.clone(), pid, ..TaskDelete::default() });
        self.tell(&ContainerDelete { id });
    }

    fn tell<E: Message + Name>(&self, event: &E) {
        let event = Any { type_url: E::full_name(), value: event.encode_to_vec() };
        let envelope = Envelope { namespace: "k8s.io".into(), event: Some(event), ..Envelope::default() };
        // Nobody may listen at the moment.
        let _ = self.events.as_ref().map(|events| events.send(framed(&envelope)));
    }

    fn answer(&mut self, asked: &Asked) -> Reply {
        match (&*asked.service, &*asked.method) {
            (_, "Version") => {
                Reply::one(&VersionResponse { version: "v1.7.24".into(), ..VersionResponse::default() })
            }
            (_, "Subscribe") => {
                let (events, inbox) = unbounded_channel();
                self.events = Some(events);
                Reply::Events(inbox)
            }
            ("Namespaces", "List") => {
                let namespaces = vec![Namespace { name: "k8s.io".into(), ..Namespace::default() }];
                Reply::one(&ListNamespacesResponse { namespaces })
            }
            ("Tasks", "List") => {
                let tasks = self.all.values().filter_map(process).collect();
                Reply::one(&ListTasksResponse { tasks })
            }
            (_, "ListStream") => {
                let one = |known: &Known| {
                    framed(&ListContainerMessage { container: Some(known.container.clone()) })
                };
                Reply::Messages(self.all.values().map(one).collect())
            }
            // Of a container or of a task: the first field of both requests is the id.
            (service, "Get") => match self.all.get(&asked.message::<GetContainerRequest>().id) {
                Some(known) if service == "Tasks" => Reply::one(&GetResponse { process: process(known) }),
                Some(known) => Reply::one(&GetContainerResponse { container: Some(known.container.clone()) }),
                None => Reply::not_found(),
            },
            _ => Reply::unknown(),
        }
    }
}

fn process(known: &Known) -> Option<Process> {
    let pid = known.pid?;
    Some(Process {
        id: known.container.id.clone(),
        pid,
        status: Status::Running.into(),
        ..Process::default()
    })
}

/// A sandbox if it has a file of its own, else the pod's container.
fn container(pod: usize, netns: Option<&str>) -> Container {
    let name = format!("shop-{pod:05}");
    let kind = if netns.is_some() { "sandbox" } else { "container" };
    let uid = format!("2f1c9f0e-7a55-4d7e-9d0b-{pod:012x}");
    let both = [
        ("io.cri-containerd.kind", kind),
        ("io.kubernetes.pod.name", &name),
        ("io.kubernetes.pod.namespace", "bench"),
        ("io.kubernetes.pod.uid", &uid),
    ];
    // A sandbox has the pod's labels, a container its name and those of its image.
    let own: &[(&str, &str)] = match netns {
        Some(_) => &[
            ("app.kubernetes.io/instance", "shop"),
            ("app.kubernetes.io/name", "web"),
            ("app.kubernetes.io/version", "1.27.3"),
            ("pod-template-hash", "7c5ddbdf54"),
        ],
        None => &[
            ("io.kubernetes.container.name", "web"),
            ("maintainer", "Shop Platform <platform@example.com>"),
            ("org.opencontainers.image.source", "https://git.example.com/shop/web"),
        ],
    };
    let labels: HashMap<String, String> =
        both.iter().chain(own).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: specification(pod, netns).to_string().into_bytes(),
    };
    Container {
        id: id(pod, netns.is_some()),
        labels,
        image: "registry.example.com/shop/web:1.27.3".into(),
        spec: Some(spec),
        ..Container::default()
    }
}

/// About as long as what containerd keeps of a container of Kubernetes: 10 kB.
fn specification(pod: usize, netns: Option<&str>) -> Value {
    let env: Vec<String> =
        (0..40).map(|n| format!("SHOP_SERVICE_{n}_PORT_80_TCP=tcp://10.96.{}.{n}:80", pod % 256)).collect();
    let capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ];
    let mount = |n: usize| {
        json!({
            "destination": format!("/var/lib/volume-{n}"),
            "type": "bind",
            "source": format!("/var/lib/kubelet/pods/2f1c9f0e-7a55-4d7e-9d0b-{pod:012x}/volumes/kubernetes.io~projected/v{n}"),
            "options": ["rbind", "rprivate", "rw"],
        })
    };
    let allowed: Vec<Value> = (0..8)
        .map(|n| json!({"names": [format!("call_{n}"), "epoll_pwait2", "faccessat2", "futex_waitv"], "action": "SCMP_ACT_ALLOW"}))
        .collect();
    let path = netns.map_or_else(|| "/proc/1/ns/net".to_owned(), |name| format!("/run/netns/{name}"));
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "args": ["/usr/bin/web", "--listen", ":80"],
            "env": env,
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "apparmorProfile": "cri-containerd.apparmor.d",
            "oomScoreAdj": 1000,
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": (0..14).map(mount).collect::<Vec<_>>(),
        "annotations": {"io.kubernetes.cri.sandbox-id": id(pod, true), "io.kubernetes.cri.sandbox-namespace": "bench"},
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 2}},
            "cgroupsPath": format!("kubepods-besteffort-pod{pod}.slice:cri-containerd:{}", id(pod, netns.is_some())),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "mount"}, {"type": "network", "path": path}, {"type": "uts"},
            ],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": allowed},
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/sys/firmware"],
        },
    })
}
