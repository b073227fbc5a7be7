//! The events of containerd, and what they mean for a container.

use super::SourceError;
use super::grpc;
use containerd_client::events::{
    ContainerCreate, ContainerDelete, ContainerUpdate, TaskCreate, TaskDelete, TaskExit, TaskStart,
};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::types::Envelope;
use prost::{Message, Name};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// What is subscribed to. Pulls of images, snapshots and the like are of no use.
const TOPICS: [&str; 7] = [
    "/containers/create",
    "/containers/update",
    "/containers/delete",
    "/tasks/create",
    "/tasks/start",
    "/tasks/exit",
    "/tasks/delete",
];

/// Something happened to a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Its namespace in containerd.
    pub(super) namespace: Arc<str>,
    /// Its id.
    pub(super) id: String,
    /// What happened.
    pub(super) what: What,
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It is new; of its labels nothing is told.
    Made,
    /// These are its labels and image now.
    Described(Box<Description>),
    /// It is gone.
    Gone,
    /// Its first process lives.
    Runs(i32),
    /// A first process of it ended.
    Ended(i32),
}

/// What the event of an update tells, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Description {
    /// All its labels.
    pub(super) labels: HashMap<String, String>,
    /// Its image.
    pub(super) image: String,
}

/// What has happened to a container since it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// It must be asked for.
    pub(super) made: bool,
    /// What is known of it without.
    pub(super) described: Option<Box<Description>>,
    /// It is gone.
    pub(super) gone: bool,
    runs: Option<Option<i32>>,
    ended: Option<i32>,
}

impl Pending {
    /// One more thing happened.
    pub(super) fn add(&mut self, what: What) {
        match what {
            What::Made => (self.made, self.gone) = (true, false),
            What::Described(description) => (self.described, self.gone) = (Some(description), false),
            What::Gone => *self = Pending { gone: true, ..Pending::default() },
            What::Runs(pid) => (self.runs, self.gone) = (Some(Some(pid)), false),
            What::Ended(pid) if self.runs == Some(Some(pid)) => self.runs = Some(None),
            What::Ended(pid) => self.ended = Some(pid),
        }
    }

    /// Its first process now. The end of an earlier one may be told late.
    pub(super) fn pid(&self, before: Option<i32>) -> Option<i32> {
        self.runs.unwrap_or_else(|| before.filter(|pid| self.ended != Some(*pid)))
    }
}

/// Hands on what happens until there is nothing more, with the reason at the end.
pub(super) async fn read(channel: Channel, sender: mpsc::Sender<Result<Change, SourceError>>) {
    let SourceError(sentence) = follow(channel, &sender).await;
    let _ = sender.send(Err(SourceError(sentence))).await;
}

async fn follow(channel: Channel, sender: &mpsc::Sender<Result<Change, SourceError>>) -> SourceError {
    let filters = TOPICS.iter().map(|topic| format!("topic==\"{topic}\"")).collect();
    let mut client = EventsClient::new(channel).max_decoding_message_size(grpc::LARGEST_SINGLE);
    let failed = |status| grpc::failed("following the events of containerd", &status);
    // No time limit: the answer begins with the first event.
    let mut stream = match client.subscribe(SubscribeRequest { filters }).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return failed(status),
    };
    loop {
        match stream.message().await {
            Ok(Some(envelope)) => {
                let Some(change) = decode(envelope) else { continue };
                if sender.send(Ok(change)).await.is_err() {
                    return SourceError("nobody listens".into());
                }
            }
            Ok(None) => return SourceError("containerd ended its stream of events".into()),
            Err(status) => return failed(status),
        }
    }
}

/// What an event says; nothing if it is about something else, or not what its type says.
fn decode(envelope: Envelope) -> Option<Change> {
    let event = envelope.event?;
    // Written without the usual slash by containerd.
    let kind = event.type_url.rsplit('/').next()?;
    let bytes = &*event.value;
    let (id, what) = if kind == TaskStart::full_name() {
        let TaskStart { container_id, pid } = TaskStart::decode(bytes).ok()?;
        (container_id, What::Runs(number(pid)?))
    } else if kind == TaskCreate::full_name() {
        let TaskCreate { container_id, pid, .. } = TaskCreate::decode(bytes).ok()?;
        (container_id, What::Runs(number(pid)?))
    } else if kind == TaskExit::full_name() {
        let TaskExit { container_id, id, pid, .. } = TaskExit::decode(bytes).ok()?;
        of_first_process(container_id, &id, pid)?
    } else if kind == TaskDelete::full_name() {
        let TaskDelete { container_id, id, pid, .. } = TaskDelete::decode(bytes).ok()?;
        of_first_process(container_id, &id, pid)?
    } else if kind == ContainerCreate::full_name() {
        (ContainerCreate::decode(bytes).ok()?.id, What::Made)
    } else if kind == ContainerUpdate::full_name() {
        let ContainerUpdate { id, labels, image, .. } = ContainerUpdate::decode(bytes).ok()?;
        (id, What::Described(Box::new(Description { labels, image })))
    } else if kind == ContainerDelete::full_name() {
        (ContainerDelete::decode(bytes).ok()?.id, What::Gone)
    } else {
        return None;
    };
    Some(Change { namespace: envelope.namespace.into(), id, what })
}

/// The end of a container's first process. Those that were started beside it (`exec`) have an id of their own.
fn of_first_process(container: String, id: &str, pid: u32) -> Option<(String, What)> {
    (id.is_empty() || id == container).then_some((container, What::Ended(number(pid)?)))
}

fn number(pid: u32) -> Option<i32> {
    i32::try_from(pid).ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Any;

    fn told<T: Message + Name>(prefix: &str, event: &T) -> Option<(String, What)> {
        let event = Any { type_url: format!("{prefix}{}", T::full_name()), value: event.encode_to_vec() };
        let change =
            decode(Envelope { namespace: "k8s.io".into(), event: Some(event), ..Envelope::default() })?;
        assert_eq!(&*change.namespace, "k8s.io");
        Some((change.id, change.what))
    }

    #[test]
    fn every_event_says_what_it_means() {
        let id = || "c".to_owned();
        let create = TaskCreate { container_id: id(), pid: 7, ..TaskCreate::default() };
        assert_eq!(told("", &create), Some((id(), What::Runs(7))));
        assert_eq!(told("", &TaskStart { container_id: id(), pid: 8 }), Some((id(), What::Runs(8))));
        let exit = TaskExit { container_id: id(), id: id(), pid: 9, ..TaskExit::default() };
        assert_eq!(told("", &exit), Some((id(), What::Ended(9))));
        assert_eq!(told("", &TaskExit { id: "exec-1".into(), ..exit }), None);
        let delete = TaskDelete { container_id: id(), pid: 9, ..TaskDelete::default() };
        assert_eq!(told("", &delete), Some((id(), What::Ended(9))));
        assert_eq!(told("", &TaskDelete { id: "exec-1".into(), ..delete }), None);
        let create = ContainerCreate { id: id(), ..ContainerCreate::default() };
        assert_eq!(told("", &create), Some((id(), What::Made)));
        let update = ContainerUpdate { id: id(), image: "x:1".into(), ..ContainerUpdate::default() };
        let description = Box::new(Description { image: "x:1".into(), ..Description::default() });
        assert_eq!(told("type.googleapis.com/", &update), Some((id(), What::Described(description))));
        assert_eq!(told("", &ContainerDelete { id: id() }), Some((id(), What::Gone)));
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        assert_eq!(decode(Envelope::default()), None);
        let other = Any { type_url: "containerd.events.ImageCreate".into(), value: vec![] };
        assert_eq!(decode(Envelope { event: Some(other), ..Envelope::default() }), None);
        let broken = Any { type_url: TaskStart::full_name(), value: vec![0xff; 100] };
        assert_eq!(decode(Envelope { event: Some(broken), ..Envelope::default() }), None);
        assert_eq!(told("", &TaskStart { container_id: "c".into(), pid: 0 }), None);
        assert_eq!(told("", &TaskStart { container_id: "c".into(), pid: u32::MAX }), None);
    }

    fn after(before: Option<i32>, all: &[What]) -> (Option<i32>, bool, bool) {
        let mut pending = Pending::default();
        all.iter().for_each(|what| pending.add(what.clone()));
        (pending.pid(before), pending.made, pending.gone)
    }

    #[test]
    fn many_events_become_one_state() {
        use What::{Ended, Gone, Made, Runs};
        assert_eq!(after(None, &[Made, Made, Runs(5), Runs(5)]), (Some(5), true, false));
        assert_eq!(after(Some(5), &[Ended(5), Ended(5)]), (None, false, false));
        assert_eq!(after(Some(5), &[Ended(4)]), (Some(5), false, false), "of the one before");
        assert_eq!(after(Some(5), &[Ended(5), Runs(6), Ended(5)]), (Some(6), false, false));
        assert_eq!(after(Some(5), &[Runs(6), Ended(6), Ended(5)]), (None, false, false));
        assert!(after(Some(5), &[Ended(5), Gone]).2);
        assert_eq!(after(None, &[Gone, Made, Runs(6)]), (Some(6), true, false), "made again");
    }
}
