//! What is still to be asked. One question is under way at a time; events that come meanwhile outrank its answer.

use super::Answer;
use super::answers::{self, Containers, Said};
use crate::resolve::book::{MAX_WORKLOADS, Reporter, Wanted};
use crate::resolve::runtimes::SourceError;
use crate::resolve::runtimes::http::HttpError;
use crate::resolve::workload::Workload;
use rustc_hash::FxHashSet;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// A full list now and then: Docker drops events for who is slow to read them, and does not say so.
const LIST_AGAIN: Duration = Duration::from_secs(600);
/// Time from one full list to the next at least, where something was missed.
const LIST_PAUSE: Duration = Duration::from_secs(10);
/// Time until a container that could not be looked at is looked at again, by way of the list.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A question to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Which containers run?
    List,
    /// What is this one?
    Inspect(String),
}

/// What is to be asked, and what the answer must not undo.
pub(super) struct Work {
    reporter: Reporter,
    queue: VecDeque<String>,
    queued: FxHashSet<String>,
    /// Containers that ended since the present question was asked: its answer may not know that yet.
    ended: FxHashSet<String>,
    /// The container that the present question is about.
    asking: Option<String>,
    list_due: bool,
    list_at: Instant,
    listed_at: Instant,
    lists: u64,
}

impl Work {
    pub(super) fn new(reporter: Reporter) -> Work {
        let now = Instant::now();
        Work {
            reporter,
            queue: VecDeque::new(),
            queued: FxHashSet::default(),
            ended: FxHashSet::default(),
            asking: None,
            list_due: true,
            list_at: now + LIST_AGAIN,
            listed_at: now,
            lists: 0,
        }
    }

    /// What is asked next.
    pub(super) fn next(&mut self) -> Option<Job> {
        self.ended.clear();
        self.asking = None;
        if std::mem::take(&mut self.list_due) {
            self.listed_at = Instant::now();
            self.list_at = self.listed_at + LIST_AGAIN;
            return Some(Job::List);
        }
        let id = self.queue.pop_front()?;
        self.queued.remove(&id);
        self.asking = Some(id.clone());
        Some(Job::Inspect(id))
    }

    /// When the next full list is due.
    pub(super) fn list_at(&self) -> Instant {
        self.list_at
    }

    /// It is time for a full list.
    pub(super) fn list_is_due(&mut self) {
        self.list_due = true;
        self.list_at = Instant::now() + LIST_AGAIN;
    }

    /// Something was said that could not be understood: the next list will tell.
    pub(super) fn missed(&mut self, error: &str) {
        self.reporter.stumbled(error);
        self.list_at = self.list_at.min(self.listed_at + LIST_PAUSE);
    }

    /// An event came.
    pub(super) fn heard(&mut self, line: &[u8]) {
        self.reporter.event();
        match answers::event(line) {
            Ok(Said::Changed(id)) => self.inspect(id),
            Ok(Said::Started(workload)) => {
                let id = workload.id.clone();
                if self.reporter.known(&id).is_none() {
                    self.reporter.put(*workload);
                }
                self.inspect(id.to_string());
            }
            Ok(Said::Moved(id)) => {
                // Before it starts and after it ends, networks are connected, too.
                if self.asking.as_ref() == Some(&id) || self.reporter.known(&id).is_some() {
                    self.inspect(id.to_string());
                }
            }
            Ok(Said::Gone(id)) => self.ended(id),
            Ok(Said::Other) => {}
            Err(error) => self.missed(&format!("an event is not the expected JSON: {error}")),
        }
    }

    /// The watcher wants to know something.
    pub(super) fn asked(&mut self, wanted: &Wanted) {
        if let Wanted::Container(id) = wanted
            && answers::is_id(id)
        {
            self.inspect(id.clone());
        }
    }

    /// News goes before what is left of the list.
    fn inspect(&mut self, id: String) {
        if self.queue.len() >= MAX_WORKLOADS {
            return self.missed(&format!("more than {MAX_WORKLOADS} containers wait to be looked at"));
        }
        if self.queued.insert(id.to_string()) {
            self.queue.push_front(id);
        }
    }

    fn ended(&mut self, id: String) {
        self.reporter.remove(&id);
        if self.queued.remove(&id) {
            self.queue.retain(|queued| *queued != id);
        }
        if self.ended.len() >= MAX_WORKLOADS {
            return self.missed("more containers ended during one question than can be kept in mind");
        }
        self.ended.insert(id);
    }

    /// The answer to a question has come, or will not come.
    pub(super) fn answered(
        &mut self,
        job: &Job,
        answer: Result<Answer, HttpError>,
    ) -> Result<(), SourceError> {
        match (answer, job) {
            (Ok(Answer::All(all)), _) => self.listed(all),
            (Ok(Answer::One(inspected, pod)), Job::Inspect(id)) => {
                self.inspected(id, inspected.workload(pod));
            }
            // It went before it was looked at.
            (Err(HttpError::NotFound(_)), Job::Inspect(id)) => self.inspected(id, None),
            (Err(error), Job::Inspect(id)) => self.unknown(id, &error.to_string()),
            // Nothing is known without a list, so that trying anew is all that is left.
            (Err(error), Job::List) if self.lists == 0 => return Err(error.into()),
            (Err(error), Job::List) => self.missed(&error.to_string()),
            (Ok(Answer::One(..)), Job::List) => {}
        }
        Ok(())
    }

    fn inspected(&self, id: &str, workload: Option<Workload>) {
        if self.ended.contains(id) {
            return;
        }
        match workload.filter(|workload| *workload.id == *id) {
            Some(workload) => self.reporter.put(workload),
            None => self.reporter.remove(id),
        }
    }

    /// A container could not be looked at. Its process may be another by now; its name stays.
    fn unknown(&mut self, id: &str, error: &str) {
        self.reporter.stumbled(error);
        self.list_at = self.list_at.min(Instant::now() + LOOK_AGAIN);
        if let Some(known) = self.reporter.known(id) {
            self.reporter.put(Workload { pid: None, netns: None, ..Workload::clone(&known) });
        }
    }

    fn listed(&mut self, Containers(mut all): Containers) {
        let is_first = self.lists == 0;
        self.lists += 1;
        all.retain(|workload| !self.ended.contains(&*workload.id));
        let mut unsure = Vec::new();
        for workload in &mut all {
            let known = self.reporter.known(&workload.id);
            let differs = known.as_ref().is_none_or(|k| k.name != workload.name || k.pid.is_none());
            if let Some(known) = known {
                // Lists lack what only a look at the container tells.
                let name = std::mem::take(&mut workload.name);
                *workload = Workload { name, ..Workload::clone(&known) };
            }
            if is_first || differs {
                unsure.push(workload.id.clone());
            }
        }
        // What started while the list was made need not be in it.
        let listed: FxHashSet<&str> = all.iter().map(|workload| &*workload.id).collect();
        let news = self.queue.iter().filter(|id| !listed.contains(id.as_str()));
        let news: Vec<Workload> =
            news.filter_map(|id| Some(Workload::clone(&*self.reporter.known(id)?))).collect();
        all.extend(news);
        self.reporter.replace(all);
        for id in unsure {
            if self.queued.insert(id.to_string()) {
                self.queue.push_back(id.to_string());
            }
        }
    }
}
