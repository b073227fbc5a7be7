//! What all sources of identity have said, kept for the watcher: each source writes its own page, the watcher is told which
//! workloads changed. A source that loses its connection keeps its page: what it said was true, and containers go on
//! running without their runtime. The next full list replaces it.

use super::workload::Workload;
use jiff::Timestamp;
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Workloads of one source at most; more are refused and counted.
pub const MAX_WORKLOADS: usize = 20_000;
/// Questions that wait for one source at most.
const MAX_QUESTIONS: usize = 256;

/// A runtime that was there is expected back within this time: it restarts.
const RETURN: Duration = Duration::from_secs(60);

/// Number of a source, in the order in which they were opened.
pub type SourceId = usize;

/// Something that the watcher met and nobody has told of. The source that knows it answers with a `put`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A container, by its id.
    Container(String),
    /// A unit, by its name.
    Unit(String),
    /// A machine, by its name.
    Machine(String),
}

/// How a source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not here, with the reason; nothing is wrong.
    Absent(String),
    /// Nobody needs it yet.
    Idle(String),
    /// Being connected to.
    Connecting,
    /// It talks to us; with what it is, e.g. `containerd 1.7.24`.
    Connected(String),
    /// It does not work, with the reason; it is tried again.
    Failed(String),
}

/// What is known of a source beside its workloads.
#[derive(Clone, Debug)]
pub struct Health {
    /// How it is doing.
    pub state: State,
    /// Since when it is connected.
    pub connected: Option<Instant>,
    /// When it last said something.
    pub last_event: Option<Instant>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Things it said since it was opened.
    pub events: u64,
    /// Full lists since it was opened.
    pub lists: u64,
    /// Times it failed since it was opened.
    pub failures: u64,
    /// Questions it was asked.
    pub questions: u64,
    /// Workloads that found no room.
    pub refused: u64,
}

/// A workload and when its source told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What was said.
    pub workload: Arc<Workload>,
    /// First and last time that it was said; the last only moves when something changed.
    pub first: Timestamp,
    /// See `first`.
    pub last: Timestamp,
}

struct Page {
    name: Arc<str>,
    health: Health,
    told: FxHashMap<Arc<str>, Told>,
    questions: mpsc::Sender<Wanted>,
    /// Whether it names what nobody else can name.
    names: bool,
    /// When it was last connected.
    attended: Option<Instant>,
    /// Whether its source is not used any more. The numbers of the other pages stay, so it is not removed.
    closed: bool,
}

/// One name of a workload: its source and its id there.
pub type Key = (SourceId, Arc<str>);

#[derive(Default)]
struct Pages {
    pages: Vec<Page>,
    changed: FxHashSet<Key>,
    /// Whether a source has connected that could answer what was asked before.
    connected: bool,
}

/// All pages.
pub struct Book {
    pages: Mutex<Pages>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// State of a source with its name, for the status.
#[derive(Clone, Debug)]
pub struct SourceReport {
    /// Its name.
    pub name: Arc<str>,
    /// How it is doing.
    pub health: Health,
    /// Workloads on its page.
    pub workloads: usize,
}

impl Book {
    /// An empty book; `wake` is called when something was written.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Book {
        Book { pages: Mutex::default(), wake: Box::new(wake) }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a page for a source. The receiver gets what the watcher wants to know. `names` says that it names what nobody
    /// else can name, so that a new namespace without a good name waits a moment for it.
    pub fn open(self: &Arc<Self>, name: &str, names: bool) -> (Reporter, mpsc::Receiver<Wanted>) {
        let (questions, inbox) = mpsc::channel(MAX_QUESTIONS);
        let health = Health {
            state: State::Connecting,
            connected: None,
            last_event: None,
            last_error: None,
            events: 0,
            lists: 0,
            failures: 0,
            questions: 0,
            refused: 0,
        };
        let mut pages = self.pages();
        let (name, told) = (name.into(), FxHashMap::default());
        pages.pages.push(Page { name, health, told, questions, names, attended: None, closed: false });
        let source = pages.pages.len() - 1;
        drop(pages);
        (Reporter { book: Arc::clone(self), source }, inbox)
    }

    /// Takes the keys of all workloads that changed since the last call.
    pub fn take_changed(&self) -> Vec<Key> {
        std::mem::take(&mut self.pages().changed).into_iter().collect()
    }

    /// Whether a source has connected since the last call: what nobody could answer may be asked again.
    pub fn take_connected(&self) -> bool {
        std::mem::take(&mut self.pages().connected)
    }

    /// What a source says of a workload now.
    pub fn told(&self, (source, id): &Key) -> Option<Told> {
        self.pages().pages.get(*source)?.told.get(&**id).cloned()
    }

    /// All that any source says of an id, with the sources' numbers.
    pub fn by_id(&self, id: &str) -> Vec<(SourceId, Told)> {
        let pages = self.pages();
        let told = pages.pages.iter().map(|page| page.told.get(id)).enumerate();
        told.filter_map(|(source, told)| Some((source, told?.clone()))).collect()
    }

    /// Name of a source.
    pub fn name(&self, source: SourceId) -> Arc<str> {
        self.pages().pages.get(source).map_or_else(|| "".into(), |page| Arc::clone(&page.name))
    }

    /// Asks all sources that have not said whether they know it. Never waits: a source that does not keep up with
    /// questions will be asked again when the namespace is looked at the next time.
    pub fn ask(&self, wanted: &Wanted) {
        for page in self.pages().pages.iter_mut().filter(|page| !page.closed) {
            let asked = page.questions.try_send(wanted.clone()).is_ok();
            page.health.questions += u64::from(asked);
        }
    }

    /// Whether it is worth waiting for a name: a source that gives names is connected, or was until a moment ago.
    pub fn is_attended(&self) -> bool {
        let attended = |page: &Page| {
            let lately = page.attended.is_some_and(|at| at.elapsed() < RETURN);
            !page.closed
                && page.names
                && (lately || matches!(page.health.state, State::Connected(_) | State::Connecting))
        };
        self.pages().pages.iter().any(attended)
    }

    /// How the sources are doing.
    pub fn reports(&self) -> Vec<SourceReport> {
        let report = |page: &Page| SourceReport {
            name: Arc::clone(&page.name),
            health: page.health.clone(),
            workloads: page.told.len(),
        };
        self.pages().pages.iter().filter(|page| !page.closed).map(report).collect()
    }
}

impl Pages {
    fn put(&mut self, source: SourceId, workload: Workload) {
        let workload = workload.bounded();
        let now = Timestamp::now();
        let page = &mut self.pages[source];
        // What a source that was stopped says on its way out.
        if page.closed {
            return;
        }
        let old = page.told.get(&workload.id);
        if old.is_some_and(|old| *old.workload == workload) {
            return;
        }
        let (first, is_new) = (old.map_or(now, |old| old.first), old.is_none());
        if is_new && page.told.len() >= MAX_WORKLOADS {
            page.health.refused += 1;
            return;
        }
        let id = workload.id.clone();
        page.told.insert(Arc::clone(&id), Told { workload: Arc::new(workload), first, last: now });
        self.changed.insert((source, id));
    }

    fn remove(&mut self, source: SourceId, id: &str) {
        if let Some((id, _)) = self.pages[source].told.remove_entry(id) {
            self.changed.insert((source, id));
        }
    }
}

/// What a source writes its page with.
#[derive(Clone)]
pub struct Reporter {
    book: Arc<Book>,
    source: SourceId,
}

impl Reporter {
    fn write(&self, action: impl FnOnce(&mut Pages, SourceId)) {
        let mut pages = self.book.pages();
        action(&mut pages, self.source);
        let changed = !pages.changed.is_empty() || pages.connected;
        drop(pages);
        if changed {
            (self.book.wake)();
        }
    }

    fn health(&self, action: impl FnOnce(&mut Health)) {
        self.write(|pages, source| action(&mut pages.pages[source].health));
    }

    /// The source answers; `what` says what it is: `containerd 1.7.24`.
    pub fn connected(&self, what: &str) {
        self.write(|pages, source| {
            let page = &mut pages.pages[source];
            page.health.state = State::Connected(what.to_owned());
            page.health.connected = Some(Instant::now());
            pages.connected = true;
        });
    }

    /// How the source is doing, unless it is connected or failed, for which there are calls of their own.
    pub fn state(&self, state: State) {
        self.health(|health| {
            health.connected = None;
            health.state = state;
        });
    }

    /// The source does not work. Its page stays as it is. Whether it was connected until now.
    pub fn failed(&self, error: &str) -> bool {
        let mut was_connected = false;
        self.write(|pages, source| {
            let Page { health, attended, .. } = &mut pages.pages[source];
            was_connected = health.connected.take().is_some();
            if was_connected {
                *attended = Some(Instant::now());
            }
            health.state = State::Failed(error.to_owned());
            health.last_error = Some(error.to_owned());
            health.failures += 1;
        });
        was_connected
    }

    /// Something went wrong that does not end the connection.
    pub fn stumbled(&self, error: &str) {
        self.health(|health| health.last_error = Some(error.to_owned()));
    }

    /// The source said something by itself.
    pub fn event(&self) {
        self.health(|health| {
            health.events += 1;
            health.last_event = Some(Instant::now());
        });
    }

    /// The source knows this workload, new or changed.
    pub fn put(&self, workload: Workload) {
        self.write(|pages, source| pages.put(source, workload));
    }

    /// The same of several, for which the watcher is woken once.
    pub fn put_all(&self, all: Vec<Workload>) {
        self.write(|pages, source| all.into_iter().for_each(|workload| pages.put(source, workload)));
    }

    /// The source does not know it any more.
    pub fn remove(&self, id: &str) {
        self.write(|pages, source| pages.remove(source, id));
    }

    /// These are all that the source knows. Workloads that changed while the list was made must be put again afterwards.
    pub fn replace(&self, all: Vec<Workload>) {
        self.write(|pages, source| {
            let listed: FxHashSet<&str> = all.iter().map(|workload| &*workload.id).collect();
            let known = pages.pages[source].told.keys();
            let gone: Vec<Arc<str>> = known.filter(|id| !listed.contains(&***id)).cloned().collect();
            gone.iter().for_each(|id| pages.remove(source, id));
            all.into_iter().for_each(|workload| pages.put(source, workload));
            pages.pages[source].health.lists += 1;
        });
    }

    /// The source is not used any more: what it said is forgotten, and what it may still say is not heard.
    pub fn close(&self) {
        self.write(|pages, source| {
            let known: Vec<Arc<str>> = pages.pages[source].told.keys().cloned().collect();
            known.iter().for_each(|id| pages.remove(source, id));
            let page = &mut pages.pages[source];
            (page.closed, page.told) = (true, FxHashMap::default());
        });
    }

    /// All that the source itself has said, before it lost its connection too.
    pub fn page(&self) -> Vec<Arc<Workload>> {
        let pages = self.book.pages();
        pages.pages[self.source].told.values().map(|told| Arc::clone(&told.workload)).collect()
    }

    /// What the source itself has said of an id.
    pub fn known(&self, id: &str) -> Option<Arc<Workload>> {
        let pages = self.book.pages();
        pages.pages[self.source].told.get(id).map(|told| Arc::clone(&told.workload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn workload(id: &str, name: &str) -> Workload {
        Workload { id: id.into(), name: name.into(), ..Workload::default() }
    }

    fn changed(book: &Book) -> Vec<Key> {
        let mut changed = book.take_changed();
        changed.sort();
        changed
    }

    #[test]
    fn a_page_is_written_and_only_changes_are_told() {
        let wakes = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&wakes);
        let book = Arc::new(Book::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let (reporter, _inbox) = book.open("a", true);
        reporter.replace(vec![workload("1", "x"), workload("2", "y")]);
        assert_eq!(changed(&book), [(0, "1".into()), (0, "2".into())]);
        let woken = wakes.load(Ordering::Relaxed);
        reporter.put(workload("1", "x"));
        reporter.event();
        assert_eq!((changed(&book), wakes.load(Ordering::Relaxed)), (vec![], woken), "nothing new");
        reporter.replace(vec![workload("2", "z")]);
        assert_eq!(changed(&book), [(0, "1".into()), (0, "2".into())]);
        assert!(book.told(&(0, "1".into())).is_none() && book.by_id("1").is_empty());
        assert_eq!(book.by_id("2")[0].1.workload.name, "z");
    }

    #[test]
    fn a_lost_connection_forgets_nothing() {
        let book = Arc::new(Book::new(|| {}));
        let (reporter, _inbox) = book.open("a", true);
        reporter.connected("a 1.0");
        reporter.put(workload("1", "x"));
        reporter.failed("gone");
        let report = &book.reports()[0];
        assert_eq!((report.workloads, report.health.failures), (1, 1));
        assert_eq!(report.health.state, State::Failed("gone".into()));
        assert_eq!(report.health.connected, None);
    }

    #[test]
    fn a_closed_page_is_forgotten_and_stays_so() {
        let book = Arc::new(Book::new(|| {}));
        let (closed, mut inbox) = book.open("a", true);
        let (other, _other_inbox) = book.open("b", false);
        closed.connected("a 1.0");
        closed.put(workload("1", "x"));
        other.put(workload("1", "y"));
        changed(&book);
        closed.close();
        assert_eq!(changed(&book), [(0, "1".into())]);
        closed.put(workload("2", "late"));
        closed.replace(vec![workload("3", "later")]);
        closed.connected("a 1.0");
        assert_eq!((changed(&book), book.is_attended()), (vec![], false));
        book.ask(&Wanted::Unit("x".into()));
        assert!(inbox.try_recv().is_err());
        let names: Vec<_> = book.reports().iter().map(|report| report.name.to_string()).collect();
        assert_eq!(names, ["b"]);
        assert_eq!(book.by_id("1")[0].1.workload.name, "y");
    }

    #[test]
    fn a_source_has_room_for_so_many() {
        let book = Arc::new(Book::new(|| {}));
        let (reporter, _inbox) = book.open("a", true);
        reporter.replace((0..MAX_WORKLOADS + 5).map(|i| workload(&i.to_string(), "x")).collect());
        let report = &book.reports()[0];
        assert_eq!((report.workloads, report.health.refused), (MAX_WORKLOADS, 5));
    }

    #[test]
    fn a_name_is_waited_for_where_one_may_come() {
        let book = Arc::new(Book::new(|| {}));
        let (bus, _inbox) = book.open("systemd", false);
        bus.connected("systemd 252");
        assert!(!book.is_attended());
        let (runtime, _inbox) = book.open("containerd", true);
        runtime.state(State::Absent("no socket".into()));
        assert!(!book.is_attended());
        runtime.connected("containerd 1.7");
        runtime.failed("gone");
        assert!(book.is_attended(), "it restarts");
    }

    #[test]
    fn questions_never_wait() {
        let book = Arc::new(Book::new(|| {}));
        let (_reporter, mut inbox) = book.open("a", true);
        (0..2 * MAX_QUESTIONS).for_each(|_| book.ask(&Wanted::Unit("x".into())));
        assert_eq!(inbox.try_recv().unwrap(), Wanted::Unit("x".into()));
        assert_eq!(book.reports()[0].health.questions, MAX_QUESTIONS as u64);
    }
}
