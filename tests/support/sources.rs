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
        let mut choices: Vec<_> =
            names().filter(|name| *name != source).map(|name| (name, Choice::Off)).collect();
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
