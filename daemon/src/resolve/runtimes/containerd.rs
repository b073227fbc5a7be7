//! containerd, through its own API: the containers of all its namespaces with their labels and first processes, kept
//! current by its stream of events. The labels name the pod, so no CRI is needed beside it.

mod changes;

use super::grpc::{self, LIMIT, LIMIT_OF_LISTS};
use super::labels::{Labels, is_unique_id, short_id};
use super::oci::Spec;
use super::{Context, SourceError};
use crate::resolve::book::{MAX_WORKLOADS, Reporter, Wanted};
use crate::resolve::workload::{Role, Workload};
use changes::{Change, Pending};
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{
    Container, GetContainerRequest, GetRequest, ListContainersRequest, ListNamespacesRequest,
    ListTasksRequest,
};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use rustc_hash::FxHashMap;
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long a full list may take in all.
const LIMIT_OF_RESYNC: Duration = Duration::from_secs(120);
/// How often a containerd that says nothing is asked whether it is still there. It may be stopped, or stuck.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Namespaces of containerd at most.
const MAX_NAMESPACES: usize = 256;
/// Events that wait at most; the rest waits in containerd.
const MAX_WAITING: usize = 1024;
/// Events that are looked at together, so that a container with several of them is asked for once.
const BATCH: usize = 256;

/// How long the first of them waits for others: a container that is made and started is told of three times, and a pod has
/// several. Each look wakes two threads and asks containerd, which costs more than the wait: a name may take 100 ms.
const WINDOW: Duration = Duration::from_millis(40);
/// Containers that are asked for at the same time.
const ASKED_AT_ONCE: usize = 32;

/// Keeps the page current until containerd is lost.
pub(super) async fn run(context: &mut Context) -> Result<Infallible, SourceError> {
    let Context { path, reporter, questions, .. } = context;
    let channel = grpc::connect(path).await?;
    // Events come first, so that nothing is missed between the list and them. containerd does not confirm a
    // subscription; it has made it long before it has answered the requests that go before the list of containers.
    let (sender, mut events) = mpsc::channel(MAX_WAITING);
    let mut reader = JoinSet::new();
    reader.spawn(changes::read(channel.clone(), sender));
    let mut containerd = Containerd { channel, reporter, namespaces: BTreeSet::new() };
    let version = containerd.version().await?;
    let listing = timeout(LIMIT_OF_RESYNC, containerd.list_all()).await;
    listing.map_err(|_| SourceError(format!("no full list within {} s", LIMIT_OF_RESYNC.as_secs())))??;
    reporter.connected(&version);

    let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = events.recv_many(&mut batch, BATCH) => {
                others_come().await;
                while batch.len() < BATCH && let Ok(event) = events.try_recv() {
                    batch.push(event);
                }
                containerd.follow(&mut batch).await?;
            }
            Some(wanted) = questions.recv() => containerd.answer(&wanted).await?,
            _ = heartbeat.tick() => drop(containerd.version().await?),
        }
    }
}

/// Waits for other events. It is the thread that sleeps, not this task: with the task alone it would wake for each of them.
/// What belongs to other sources waits as well, for so short a time.
async fn others_come() {
    std::thread::sleep(WINDOW);
    // The connection is read, then its stream, then the channel is filled, each by a task of its own.
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

/// A connection, and whose page is written.
struct Containerd<'a> {
    channel: Channel,
    reporter: &'a Reporter,
    namespaces: BTreeSet<Arc<str>>,
}

impl Containerd<'_> {
    /// What it is: `containerd 1.7.24`.
    async fn version(&self) -> Result<String, SourceError> {
        let mut client = VersionClient::new(self.channel.clone());
        let answer = grpc::within(LIMIT, client.version(())).await;
        let answer = answer.map_err(|status| grpc::failed("asking containerd for its version", &status))?;
        let version = grpc::one_line(&answer.version);
        Ok(format!("containerd {}", version.strip_prefix('v').unwrap_or(&version)))
    }

    /// Writes the page anew.
    async fn list_all(&mut self) -> Result<(), SourceError> {
        let mut client = NamespacesClient::new(self.channel.clone());
        let list = client.list(ListNamespacesRequest::default());
        let list = grpc::within(LIMIT, list).await;
        let list = list.map_err(|status| grpc::failed("listing the namespaces of containerd", &status))?;
        let names = list.namespaces.into_iter().map(|namespace| namespace.name.into());
        self.namespaces = names.take(MAX_NAMESPACES).collect();
        let mut all = Vec::new();
        for namespace in &self.namespaces {
            let pids = self.list_pids(namespace).await;
            let listed = self.list_containers(namespace, &pids, &mut all).await;
            let failed = |status| grpc::failed(&format!("listing the containers in {namespace}"), &status);
            listed.map_err(failed)?;
        }
        self.reporter.replace(all);
        Ok(())
    }

    /// First processes of all containers in a namespace. One shim that hangs makes this fail; the containers are known
    /// without, then, only not by their processes.
    async fn list_pids(&self, namespace: &str) -> FxHashMap<String, i32> {
        let Ok(request) = in_namespace(namespace, ListTasksRequest::default()) else {
            return FxHashMap::default();
        };
        let mut client = TasksClient::new(self.channel.clone()).max_decoding_message_size(grpc::LARGEST);
        match grpc::within(LIMIT_OF_LISTS, client.list(request)).await {
            Ok(list) => {
                let known = |task: Process| Some((running(&task)?, task.id)).map(|(pid, id)| (id, pid));
                list.tasks.into_iter().filter_map(known).collect()
            }
            Err(status) => {
                let SourceError(sentence) =
                    grpc::failed(&format!("listing the tasks in {namespace}"), &status);
                self.reporter.stumbled(&sentence);
                FxHashMap::default()
            }
        }
    }

    /// Appends the containers of a namespace, one by one: each brings a specification of many kilobytes along.
    async fn list_containers(
        &self,
        namespace: &Arc<str>,
        pids: &FxHashMap<String, i32>,
        all: &mut Vec<Workload>,
    ) -> Result<(), Status> {
        let request = in_namespace(namespace, ListContainersRequest::default())?;
        let mut client = containers(self.channel.clone());
        let mut stream = grpc::within(LIMIT_OF_LISTS, client.list_stream(request)).await?;
        while let Some(message) = grpc::next(&mut stream).await? {
            let Some(container) = message.container else { continue };
            if all.len() >= MAX_WORKLOADS {
                let sentence =
                    format!("containerd has more than {MAX_WORKLOADS} containers; the rest is left out");
                self.reporter.stumbled(&sentence);
                break;
            }
            let pid = pids.get(&container.id).copied();
            all.push(workload(container, namespace, pid));
        }
        Ok(())
    }

    /// Brings the page up to date with what happened. No events at all mean that there will be no more.
    async fn follow(&mut self, batch: &mut Vec<Result<Change, SourceError>>) -> Result<(), SourceError> {
        if batch.is_empty() {
            return Err(SourceError("the events of containerd ended".into()));
        }
        let mut touched: FxHashMap<(Arc<str>, String), Pending> = FxHashMap::default();
        for change in batch.drain(..) {
            let Change { namespace, id, what } = change?;
            self.reporter.event();
            if !self.namespaces.contains(&namespace) && self.namespaces.len() < MAX_NAMESPACES {
                self.namespaces.insert(Arc::clone(&namespace));
            }
            // One name for all containers in it.
            let namespace = self.namespaces.get(&namespace).map_or(namespace, Arc::clone);
            touched.entry((namespace, id)).or_default().add(what);
        }
        let mut asked = JoinSet::new();
        for ((namespace, id), pending) in touched {
            if let Some(pid) = self.settle(&namespace, &id, pending) {
                asked.spawn(made(self.channel.clone(), namespace, id, pid));
            }
            if asked.len() >= ASKED_AT_ONCE {
                self.take_made(&mut asked).await?;
            }
        }
        while !asked.is_empty() {
            self.take_made(&mut asked).await?;
        }
        Ok(())
    }

    /// Writes what is known without asking. If it is not enough, says what the first process is.
    fn settle(&self, namespace: &Arc<str>, id: &str, pending: Pending) -> Option<Option<i32>> {
        let key = key(namespace, id);
        if pending.gone {
            self.reporter.remove(&key);
            return None;
        }
        let known = self.reporter.known(&key);
        let pid = pending.pid(known.as_ref().and_then(|known| known.pid));
        let Some(known) = known.filter(|_| !pending.made) else { return Some(pid) };
        let mut workload = Workload { pid, ..(*known).clone() };
        if let Some(told) = pending.described {
            describe(&mut workload, id, told.labels, told.image);
        }
        self.reporter.put(workload);
        None
    }

    /// Writes the answers that are there, at least one.
    async fn take_made(&self, asked: &mut JoinSet<Result<Made, SourceError>>) -> Result<(), SourceError> {
        let mut next = asked.join_next().await;
        let mut found = Vec::new();
        while let Some(made) = next {
            let ended = |error| SourceError(format!("asking containerd for a container: {error}"));
            match made.map_err(ended)?? {
                Ok(workload) => found.push(workload),
                Err(key) => self.reporter.remove(&key),
            }
            next = asked.try_join_next();
        }
        self.reporter.put_all(found);
        Ok(())
    }

    /// Looks for a container in all namespaces.
    async fn answer(&self, wanted: &Wanted) -> Result<(), SourceError> {
        let Wanted::Container(id) = wanted else { return Ok(()) };
        for namespace in &self.namespaces {
            if self.reporter.known(&key(namespace, id)).is_some_and(|known| known.pid.is_some()) {
                return Ok(());
            }
            let Some(container) = container(self.channel.clone(), namespace, id).await? else { continue };
            let pid = self.pid(namespace, id).await?;
            self.reporter.put(workload(container, namespace, pid));
            return Ok(());
        }
        Ok(())
    }

    /// First process of a container.
    async fn pid(&self, namespace: &str, id: &str) -> Result<Option<i32>, SourceError> {
        let mut client = TasksClient::new(self.channel.clone());
        let get = async {
            let request = GetRequest { container_id: id.to_owned(), ..GetRequest::default() };
            grpc::within(LIMIT, client.get(in_namespace(namespace, request)?)).await
        };
        match get.await {
            Ok(answer) => Ok(answer.process.as_ref().and_then(running)),
            Err(status) if grpc::is_not_found(&status) => Ok(None),
            Err(status) => Err(grpc::failed("asking containerd for a task", &status)),
        }
    }
}

/// What containerd answered when it was asked for a container: that, or that there is none with this key.
type Made = Result<Workload, Arc<str>>;

/// Asks for a container of which only the first process is known.
async fn made(
    channel: Channel,
    namespace: Arc<str>,
    id: String,
    pid: Option<i32>,
) -> Result<Made, SourceError> {
    let container = container(channel, &namespace, &id).await?;
    let key = key(&namespace, &id);
    Ok(container.map(|container| workload(container, &namespace, pid)).ok_or(key))
}

async fn container(channel: Channel, namespace: &str, id: &str) -> Result<Option<Container>, SourceError> {
    let get = async {
        let request = in_namespace(namespace, GetContainerRequest { id: id.to_owned() })?;
        grpc::within(LIMIT, containers(channel).get(request)).await
    };
    match get.await {
        Ok(answer) => Ok(answer.container),
        Err(status) if grpc::is_not_found(&status) => Ok(None),
        Err(status) => Err(grpc::failed("asking containerd for a container", &status)),
    }
}

fn containers(channel: Channel) -> ContainersClient<Channel> {
    ContainersClient::new(channel).max_decoding_message_size(grpc::LARGEST_SINGLE)
}

/// A request about a namespace, which is told in a header.
fn in_namespace<T>(namespace: &str, message: T) -> Result<Request<T>, Status> {
    let value = MetadataValue::try_from(namespace);
    let value = value.map_err(|_| Status::invalid_argument("the name of the namespace is none"))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}

/// Number of a task's first process while it lives. A task that ended keeps its number, which may be another's by now.
fn running(task: &Process) -> Option<i32> {
    let lives = task.status() != TaskStatus::Stopped && task.status() != TaskStatus::Unknown;
    i32::try_from(task.pid).ok().filter(|pid| *pid > 0 && lives)
}

/// What a container is known by. Ids that people choose (`ctr run … web`) are unique in their namespace only.
fn key(namespace: &str, id: &str) -> Arc<str> {
    if is_unique_id(id) { id.into() } else { format!("{namespace}/{id}").into() }
}

/// What is kept of a container.
fn workload(container: Container, namespace: &Arc<str>, pid: Option<i32>) -> Workload {
    let mut workload = Workload {
        id: key(namespace, &container.id),
        scope: Arc::clone(namespace),
        pid,
        ..Workload::default()
    };
    describe(&mut workload, &container.id, container.labels, container.image);
    if workload.role == Role::Sandbox {
        // The other containers of a pod are in the same one.
        let spec = container.spec.and_then(|spec| Spec::read(&spec.value));
        workload.netns = spec.and_then(Spec::netns);
    }
    // At once, so that a long list is no larger in memory than the page.
    workload.bounded()
}

/// Sets what may change while a container lives.
fn describe(workload: &mut Workload, id: &str, labels: HashMap<String, String>, image: String) {
    let labels = Labels::read(labels);
    workload.role = labels.role;
    workload.name = labels.name.unwrap_or_else(|| short_id(id).to_owned());
    workload.pod = labels.pod;
    workload.labels = labels.others.into();
    workload.image = image;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::workload::Pod;
    use prost_types::Any;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn container(id: &str, labels: &[(&str, &str)]) -> Container {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let spec = br#"{"linux":{"namespaces":[{"type":"network","path":"/run/netns/cni-1"}]}}"#;
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
            value: spec.to_vec(),
        };
        Container {
            id: id.into(),
            labels,
            image: "docker.io/x:1".into(),
            spec: Some(spec),
            ..Container::default()
        }
    }

    #[test]
    fn a_sandbox_and_a_container_of_its_pod() {
        let pod = [("io.kubernetes.pod.name", "web-1"), ("io.kubernetes.pod.namespace", "shop")];
        let sandbox = [&pod[..], &[("io.cri-containerd.kind", "sandbox"), ("app", "web")]].concat();
        let told = workload(container(ID, &sandbox), &"k8s.io".into(), Some(7));
        let expected = Workload {
            id: ID.into(),
            role: Role::Sandbox,
            name: "0123456789ab".into(),
            pod: Some(Pod { namespace: "shop".into(), name: "web-1".into(), uid: String::new() }),
            image: "docker.io/x:1".into(),
            scope: "k8s.io".into(),
            pid: Some(7),
            netns: Some("/run/netns/cni-1".into()),
            labels: [("app".to_owned(), "web".to_owned())].into_iter().collect(),
            ..Workload::default()
        };
        assert_eq!(told, expected);
        let member =
            [&pod[..], &[("io.cri-containerd.kind", "container"), ("io.kubernetes.container.name", "c")]];
        let told = workload(container(ID, &member.concat()), &"k8s.io".into(), None);
        assert_eq!((told.role, &*told.name, told.netns), (Role::Container, "c", None));
    }

    #[test]
    fn others_are_called_by_what_they_have() {
        let docker = workload(container(ID, &[]), &"moby".into(), Some(7));
        assert_eq!((&*docker.name, &*docker.scope, docker.pod), ("0123456789ab", "moby", None));
        let nerdctl = workload(container(ID, &[("nerdctl/name", "db")]), &"default".into(), None);
        assert_eq!((&*nerdctl.id, &*nerdctl.name), (ID, "db"));
        let ctr = workload(container("web", &[]), &"default".into(), None);
        assert_eq!((&*ctr.id, &*ctr.name), ("default/web", "web"));
    }

    #[test]
    fn hostile_containers_stay_small() {
        let many: Vec<(String, String)> =
            (0..5_000).map(|i| (format!("k{i}"), "\n\"".repeat(5_000))).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(key, value)| (&**key, &**value)).collect();
        let told = workload(container(&"x".repeat(1 << 20), &many), &"n".repeat(1 << 20).into(), None);
        assert!(told.labels.len() <= 64 && told.id.len() <= 253 && told.scope.len() <= 253);
    }

    #[test]
    fn a_task_that_ended_has_no_process() {
        let task = |pid, status: TaskStatus| Process { pid, status: status.into(), ..Process::default() };
        assert_eq!(running(&task(7, TaskStatus::Running)), Some(7));
        assert_eq!(running(&task(7, TaskStatus::Created)), Some(7));
        assert_eq!(running(&task(7, TaskStatus::Stopped)), None);
        assert_eq!(running(&task(0, TaskStatus::Running)), None);
        assert_eq!(running(&task(u32::MAX, TaskStatus::Running)), None);
    }

    #[test]
    fn a_namespace_that_is_none_is_an_error() {
        assert!(in_namespace("k8s.io", ()).is_ok());
        assert!(in_namespace("a\nb", ()).is_err());
    }
}
