//! The sources of identity, and what they have said.

use super::until;
use netskoopd::resolve::book::{Book, SourceReport, State};
use netskoopd::resolve::runtimes::{Choice, Runtimes, Settings, names};
use netskoopd::resolve::workload::Workload;
use std::path::PathBuf;
use std::sync::Arc;

/// Running sources; ended when dropped.
pub(crate) struct Sources {
    pub(crate) book: Arc<Book>,
    _runtimes: Runtimes,
}

impl Sources {
    /// All that are found on this node.
    pub(crate) fn on_node() -> Sources {
        Sources::start(vec![])
    }

    /// One, at this socket, and no other.
    pub(crate) fn only(source: &'static str, socket: impl Into<PathBuf>) -> Sources {
        let mut choices = all_but(source);
        choices.push((source, Choice::Paths(vec![socket.into()])));
        Sources::start(choices)
    }

    fn start(choices: Vec<(&'static str, Choice)>) -> Sources {
        let book = Arc::new(Book::new(|| {}));
        let settings =
            Settings { proc: "/proc".into(), run: "/run".into(), choices: choices.into_iter().collect() };
        let runtimes = Runtimes::start(&settings, &book).unwrap();
        Sources { book, _runtimes: runtimes }
    }

    pub(crate) fn report(&self, source: &str) -> SourceReport {
        self.book.reports().into_iter().find(|report| &*report.name == source).unwrap()
    }

    pub(crate) fn state(&self, source: &str) -> State {
        self.report(source).health.state
    }

    /// Waits until it is connected; what it is.
    #[track_caller]
    pub(crate) fn connected(&self, source: &str) -> String {
        until("the source is connected", || match self.state(source) {
            State::Connected(what) => Some(what),
            _ => None,
        })
    }

    /// Waits until it failed; why.
    #[track_caller]
    pub(crate) fn failed(&self, source: &str) -> String {
        until("the source failed", || match self.state(source) {
            State::Failed(reason) => Some(reason),
            _ => None,
        })
    }

    /// What a source says of an id.
    pub(crate) fn says(&self, source: &str, id: &str) -> Option<Workload> {
        let told = self.book.by_id(id).into_iter().find(|(number, _)| &*self.book.name(*number) == source);
        told.map(|(_, told)| (*told.workload).clone())
    }

    /// Waits until a source says the right thing of an id.
    #[track_caller]
    pub(crate) fn until(&self, source: &str, id: &str, good: impl Fn(&Workload) -> bool) -> Workload {
        until("the right workload", || self.says(source, id).filter(|workload| good(workload)))
    }

    #[track_caller]
    pub(crate) fn until_gone(&self, source: &str, id: &str) {
        until("the workload is gone", || self.says(source, id).is_none().then_some(()));
    }
}

/// These are off.
fn all_but(source: &str) -> Vec<(&'static str, Choice)> {
    names().filter(|name| *name != source).map(|name| (name, Choice::Off)).collect()
}

/// One source and no other, found by itself in its usual places.
pub(crate) struct Reading {
    pub(crate) sources: Sources,
    source: &'static str,
}

impl Reading {
    pub(crate) fn of(source: &'static str) -> Reading {
        Reading { sources: Sources::start(all_but(source)), source }
    }

    pub(crate) fn find(&self, id: &str) -> Option<Workload> {
        self.sources.says(self.source, id)
    }

    /// Waits until what is known of a container is as wanted.
    #[track_caller]
    pub(crate) fn until(&self, id: &str, what: &str, good: impl Fn(&Workload) -> bool) -> Workload {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(what, || self.find(id).filter(|workload| good(workload)))
        }));
        let reports = || self.sources.book.reports();
        found.unwrap_or_else(|_| panic!("in vain: {what}; {:#?}\n{:#?}", self.find(id), reports()))
    }

    #[track_caller]
    pub(crate) fn until_gone(&self, id: &str) {
        self.sources.until_gone(self.source, id);
    }

    /// Waits for a state of the source.
    #[track_caller]
    pub(crate) fn until_state(&self, what: &str, good: impl Fn(&State) -> bool) -> State {
        until(what, || Some(self.sources.state(self.source)).filter(|state| good(state)))
    }

    pub(crate) fn events(&self) -> u64 {
        self.sources.report(self.source).health.events
    }
}
