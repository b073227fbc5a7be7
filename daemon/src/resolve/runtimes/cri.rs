//! CRI, the interface between a kubelet and its runtime, in version 1: pods and containers with addresses and annotations.
//! For CRI-O and cri-dockerd; containerd is asked through its own API, unless this is what was configured.
//!
//! A list costs two requests. Processes and files of namespaces are in the verbose status, which is asked once for what is
//! new and again when its state changes.

mod status;

use super::grpc::{self, LIMIT, LIMIT_OF_LISTS};
use super::{Context, SourceError};
use crate::resolve::book::{MAX_WORKLOADS, Reporter, Wanted};
use crate::resolve::workload::{Pod, Workload};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ContainerFilter, ContainerState, ContainerStatusRequest, GetEventsRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PodSandboxState,
    PodSandboxStatusRequest, VersionRequest, VersionResponse,
};
use rustc_hash::{FxHashMap, FxHashSet};
use status::Details;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How often a runtime without events is asked for its lists.
const POLL: Duration = Duration::from_secs(10);
/// How often one with events is: they may have been lost, and it may be stuck.
const POLL_WITH_EVENTS: Duration = Duration::from_secs(60);
/// How long a full list may take in all.
const LIMIT_OF_RESYNC: Duration = Duration::from_secs(120);
/// Ids with events that wait at most. More are left to the next list: a runtime may wait for its slowest listener.
const MAX_WAITING: usize = 1024;
/// Ids with events that are looked at together.
const BATCH: usize = 256;

/// Keeps the page current until the runtime is lost.
pub(super) async fn run(context: &mut Context) -> Result<Infallible, SourceError> {
    let Context { path, reporter, questions, .. } = context;
    let channel = grpc::connect(path).await?;
    let client = RuntimeServiceClient::new(channel).max_decoding_message_size(grpc::LARGEST);
    let mut cri = Cri { client, reporter, known: FxHashMap::default() };
    let version = cri.version(path).await?;
    let mut has_events = sends_events_to_all(&version);
    let (sender, mut events) = mpsc::channel(MAX_WAITING);
    let mut reader = JoinSet::new();
    if has_events {
        reader.spawn(read_events(cri.client.clone(), sender));
    }
    cri.list().await?;
    let (name, number) = (&version.runtime_name, &version.runtime_version);
    reporter.connected(&grpc::one_line(&format!("{name} {}", number.strip_prefix('v').unwrap_or(number))));

    let mut poll = every(if has_events { POLL_WITH_EVENTS } else { POLL });
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = events.recv_many(&mut batch, BATCH), if has_events => {
                if count > 0 {
                    cri.follow(&mut batch).await?;
                } else {
                    // It has none after all, as most CRI-O, or the connection is lost: then this fails.
                    cri.list().await?;
                    has_events = false;
                    poll = every(POLL);
                }
            }
            Some(wanted) = questions.recv() => cri.answer(&wanted).await?,
            _ = poll.tick() => cri.list().await?,
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Whether its events may be listened to. containerd before 2.0 gives each event to one of its listeners only, so that a
/// kubelet would miss those that we got (containerd#7318).
fn sends_events_to_all(version: &VersionResponse) -> bool {
    let number = version.runtime_version.trim_start_matches('v');
    let is_old = number.starts_with("0.") || number.starts_with("1.");
    version.runtime_name != "containerd" || !is_old
}

/// Hands on the ids of containers and sandboxes with which something happened, until there are no more.
async fn read_events(mut client: RuntimeServiceClient<Channel>, sender: mpsc::Sender<String>) {
    // No time limit: the answer begins with the first event.
    let Ok(answer) = client.get_container_events(GetEventsRequest::default()).await else { return };
    let mut stream = answer.into_inner();
    while let Ok(Some(event)) = stream.message().await {
        // One that finds no room is left to the next list.
        let _ = sender.try_send(event.container_id);
    }
}

/// A connection, and whose page is written.
struct Cri<'a> {
    client: RuntimeServiceClient<Channel>,
    reporter: &'a Reporter,
    /// State of what is on the page; none if its status has to be asked again.
    known: FxHashMap<String, Option<i32>>,
}

impl Cri<'_> {
    async fn version(&mut self, path: &Path) -> Result<VersionResponse, SourceError> {
        let answer = grpc::within(LIMIT, self.client.version(VersionRequest::default())).await;
        answer.map_err(|status| match status.code() {
            Code::Unimplemented => SourceError(format!(
                "{} does not speak version 1 of CRI: its runtime is too old, or its CRI is switched off",
                path.display()
            )),
            _ => grpc::failed("asking the runtime for its version", &status),
        })
    }

    /// Brings the whole page up to date.
    async fn list(&mut self) -> Result<(), SourceError> {
        let listing = timeout(LIMIT_OF_RESYNC, self.list_all()).await;
        listing.map_err(|_| SourceError(format!("no full list within {} s", LIMIT_OF_RESYNC.as_secs())))?
    }

    async fn list_all(&mut self) -> Result<(), SourceError> {
        // What is left of an earlier connection is replaced by the first list.
        let is_first = self.known.is_empty();
        let sandboxes = self.sandboxes(None).await?;
        let containers = self.containers(None).await?;
        let pods: FxHashMap<String, Pod> = sandboxes
            .iter()
            .filter_map(|s| Some((s.id.clone(), status::pod(s.metadata.as_ref()?))))
            .collect();
        let ids = sandboxes.iter().map(|s| &s.id).chain(containers.iter().map(|c| &c.id));
        let listed: FxHashSet<String> = ids.take(MAX_WORKLOADS).cloned().collect();
        let mut all = Vec::new();
        for sandbox in sandboxes.into_iter().filter(|sandbox| listed.contains(&sandbox.id)) {
            if self.known.get(&sandbox.id) != Some(&Some(sandbox.state)) {
                all.extend(self.sandbox(sandbox).await?);
            }
        }
        for container in containers.into_iter().filter(|container| listed.contains(&container.id)) {
            if self.known.get(&container.id) != Some(&Some(container.state)) {
                let pod = pods.get(&container.pod_sandbox_id).cloned();
                all.extend(self.container(container, pod).await?);
            }
        }
        if is_first {
            self.reporter.replace(all);
            return Ok(());
        }
        all.into_iter().for_each(|workload| self.reporter.put(workload));
        let gone = self.known.keys().filter(|id| !listed.contains(*id)).cloned().collect::<Vec<_>>();
        gone.iter().for_each(|id| self.forget(id));
        Ok(())
    }

    /// Looks at what had events, at each once.
    async fn follow(&mut self, batch: &mut Vec<String>) -> Result<(), SourceError> {
        let mut ids = FxHashSet::default();
        for id in batch.drain(..) {
            self.reporter.event();
            ids.insert(id);
        }
        for id in ids {
            self.look(&id).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, wanted: &Wanted) -> Result<(), SourceError> {
        match wanted {
            Wanted::Container(id) if self.reporter.known(id).is_none_or(|known| known.pid.is_none()) => {
                self.look(id).await
            }
            _ => Ok(()),
        }
    }

    /// Brings one sandbox or container up to date.
    async fn look(&mut self, id: &str) -> Result<(), SourceError> {
        let sandbox = self.sandboxes(Some(id)).await?.into_iter().find(|sandbox| sandbox.id == id);
        let told = match sandbox {
            Some(sandbox) => self.sandbox(sandbox).await?,
            None => match self.containers(Some(id)).await?.into_iter().find(|container| container.id == id) {
                Some(container) => {
                    let sandbox = self.reporter.known(&container.pod_sandbox_id);
                    self.container(container, sandbox.and_then(|sandbox| sandbox.pod.clone())).await?
                }
                None => None,
            },
        };
        match told {
            Some(workload) => self.reporter.put(workload),
            None => self.forget(id),
        }
        Ok(())
    }

    fn forget(&mut self, id: &str) {
        self.known.remove(id);
        self.reporter.remove(id);
    }

    /// All sandboxes, or the one with this id.
    async fn sandboxes(&mut self, id: Option<&str>) -> Result<Vec<PodSandbox>, SourceError> {
        let filter = id.map(|id| PodSandboxFilter { id: id.to_owned(), ..PodSandboxFilter::default() });
        let list = self.client.list_pod_sandbox(ListPodSandboxRequest { filter });
        let list = grpc::within(LIMIT_OF_LISTS, list).await;
        Ok(list.map_err(|status| grpc::failed("listing the pods of the runtime", &status))?.items)
    }

    /// All containers, or the one with this id.
    async fn containers(&mut self, id: Option<&str>) -> Result<Vec<Container>, SourceError> {
        let filter = id.map(|id| ContainerFilter { id: id.to_owned(), ..ContainerFilter::default() });
        let list = self.client.list_containers(ListContainersRequest { filter });
        let list = grpc::within(LIMIT_OF_LISTS, list).await;
        Ok(list.map_err(|status| grpc::failed("listing the containers of the runtime", &status))?.containers)
    }

    /// What is to be said of a sandbox; nothing if it has just gone.
    async fn sandbox(&mut self, sandbox: PodSandbox) -> Result<Option<Workload>, SourceError> {
        let mut details = Ok(Details::default());
        if sandbox.state() == PodSandboxState::SandboxReady {
            let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: true };
            let answer = grpc::within(LIMIT, self.client.pod_sandbox_status(request)).await;
            details = answer.map(|answer| Details::of_sandbox(&answer));
        }
        let details = self.remember(&sandbox.id, sandbox.state, details)?;
        Ok(details.map(|details| status::sandbox(sandbox, details)))
    }

    /// What is to be said of a container; nothing if it has just gone.
    async fn container(
        &mut self,
        container: Container,
        pod: Option<Pod>,
    ) -> Result<Option<Workload>, SourceError> {
        let mut details = Ok(Details::default());
        if matches!(container.state(), ContainerState::ContainerCreated | ContainerState::ContainerRunning) {
            let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
            let answer = grpc::within(LIMIT, self.client.container_status(request)).await;
            details = answer.map(|answer| Details::of_container(&answer));
        }
        let details = self.remember(&container.id, container.state, details)?;
        Ok(details.map(|details| status::container(container, pod, details)))
    }

    /// Notes what has been asked. Without a status there is still what the list says, and it is asked again.
    fn remember(
        &mut self,
        id: &str,
        state: i32,
        details: Result<Details, Status>,
    ) -> Result<Option<Details>, SourceError> {
        let sentence = |status: &Status| grpc::failed("asking the runtime for a status", status);
        match details {
            Ok(details) => {
                self.known.insert(id.to_owned(), Some(state));
                Ok(Some(details))
            }
            Err(status) if grpc::is_not_found(&status) => Ok(None),
            Err(status) if matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable) => {
                Err(sentence(&status))
            }
            Err(status) => {
                self.reporter.stumbled(&sentence(&status).0);
                self.known.insert(id.to_owned(), None);
                Ok(Some(Details::default()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_not_taken_away_from_a_kubelet() {
        let of = |name: &str, version: &str| {
            let (runtime_name, runtime_version) = (name.to_owned(), version.to_owned());
            sends_events_to_all(&VersionResponse {
                runtime_name,
                runtime_version,
                ..VersionResponse::default()
            })
        };
        assert!(!of("containerd", "v1.7.24") && !of("containerd", "1.6.20~ds1"));
        assert!(of("containerd", "v2.1.0") && of("containerd", "10.0") && of("cri-o", "1.28.1"));
    }
}
