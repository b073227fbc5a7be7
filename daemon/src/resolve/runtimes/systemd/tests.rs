//! A private bus with a stand-in for systemd on it. The real one is asked in `tests/cases/systemd.rs`.

#![allow(clippy::disallowed_types, clippy::disallowed_macros, reason = "starts a bus, and says why it skips")]

use super::*;
use crate::resolve::book::{Book, SourceReport};
use crate::resolve::runtimes::{RUNTIMES, supervise};
use crate::resolve::workload::Workload;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zbus::{Connection, ObjectPath, Variant};

/// What has not happened by then does not happen.
const LIMIT: Duration = Duration::from_secs(30);

/// A directory with a bus in it; both end when dropped.
struct PrivateBus {
    dir: PathBuf,
    daemon: Option<Child>,
}

impl PrivateBus {
    /// `None` if the test cannot run.
    fn new(name: &str) -> Option<PrivateBus> {
        if Command::new("dbus-daemon").arg("--version").stdout(Stdio::null()).status().is_err() {
            skip(name, "dbus-daemon is not installed");
            return None;
        }
        let dir = std::env::temp_dir().join(format!("netskoop-bus-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("services")).unwrap();
        let config = format!(
            "<busconfig><listen>unix:path={dir}/bus</listen><auth>EXTERNAL</auth>\
             <servicedir>{dir}/services</servicedir>\
             <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
            dir = dir.display()
        );
        std::fs::write(dir.join("config"), config).unwrap();
        let mut bus = PrivateBus { dir, daemon: None };
        bus.start();
        Some(bus)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("bus")
    }

    fn start(&mut self) {
        let _ = std::fs::remove_file(self.path());
        let mut command = Command::new("dbus-daemon");
        command.arg("--nofork").arg(format!("--config-file={}", self.dir.join("config").display()));
        self.daemon = Some(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let end = std::time::Instant::now() + LIMIT;
        while std::os::unix::net::UnixStream::connect(self.path()).is_err() {
            assert!(std::time::Instant::now() < end, "the bus does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn skip(test: &str, why: &str) {
    use std::io::Write;
    assert!(std::env::var_os("NETSKOOP_NO_SKIP").is_none(), "{test}: {why}");
    eprintln!("SKIP: {test}: {why}");
    if let Some(path) = std::env::var_os("NETSKOOP_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}

/// A unit of the stand-in.
#[derive(Clone)]
struct FakeUnit {
    state: &'static str,
    description: String,
    pid: u32,
    private: bool,
    joins: Vec<String>,
}

fn unit(description: &str) -> FakeUnit {
    FakeUnit { state: "active", description: description.into(), pid: 77, private: true, joins: vec![] }
}

/// What the stand-in does and knows.
#[derive(Default)]
struct Fake {
    units: Mutex<BTreeMap<String, FakeUnit>>,
    calls: AtomicU32,
    hangs: AtomicBool,
    lies: AtomicBool,
    machine_is_gone: AtomicBool,
    changes_meanwhile: AtomicBool,
}

fn object(name: &str) -> String {
    let escape = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => format!("_{:02x}", c as u32),
    };
    let name: String = name.chars().map(escape).collect();
    format!("/org/freedesktop/systemd1/unit/{name}")
}

impl Fake {
    fn with(names: &[&str]) -> Arc<Fake> {
        let fake = Fake::default();
        names.iter().for_each(|name| fake.set(name, unit("first")));
        Arc::new(fake)
    }

    fn set(&self, name: &str, unit: FakeUnit) {
        self.units.lock().unwrap().insert(name.into(), unit);
    }

    fn property(&self, path: &str, property: &str) -> Option<Variant<'static>> {
        if property == "Version" {
            return Some("252.1".into());
        }
        if path == "/org/freedesktop/machine1/box" {
            return match property {
                "Leader" => Some(4711_u32.into()),
                "Class" => Some("container".into()),
                _ => None,
            };
        }
        let units = self.units.lock().unwrap();
        let (name, unit) = units.iter().find(|(name, _)| object(name) == path)?;
        if self.lies.load(Ordering::Relaxed) && property != "ActiveState" {
            return Some(1.5_f64.into());
        }
        Some(match property {
            "Id" => name.clone().into(),
            "ActiveState" => unit.state.into(),
            "Description" => unit.description.clone().into(),
            "JoinsNamespaceOf" => unit.joins.clone().into(),
            "MainPID" => unit.pid.into(),
            "PrivateNetwork" => unit.private.into(),
            "NetworkNamespacePath" => "/run/netns/blue".into(),
            "ControlGroup" => format!("/system.slice/{name}").into(),
            _ => return None,
        })
    }

    async fn answer(&self, connection: &Connection, message: &Message) -> zbus::Result<()> {
        let header = message.header();
        let path = header.path().map(|path| path.as_str().to_owned()).unwrap_or_default();
        match header.member().map(|member| member.as_str().to_owned()).as_deref() {
            Some("Subscribe") => connection.reply(&header, &()).await,
            Some("GetUnit") => {
                let name: String = message.body().deserialize()?;
                if self.units.lock().unwrap().contains_key(&name) {
                    return connection.reply(&header, &ObjectPath::try_from(object(&name))?).await;
                }
                let error = "org.freedesktop.systemd1.NoSuchUnit";
                connection.reply_error(&header, error, &format!("Unit {name} not loaded.")).await
            }
            Some("GetMachine") if self.machine_is_gone.load(Ordering::Relaxed) => {
                let error = "org.freedesktop.machine1.NoSuchMachine";
                connection.reply_error(&header, error, &"No machine 'box' known").await
            }
            Some("GetMachine") => {
                let path = ObjectPath::try_from("/org/freedesktop/machine1/box")?;
                connection.reply(&header, &path).await
            }
            Some("Get") => {
                let (_, property): (String, String) = message.body().deserialize()?;
                if property == "MainPID" && self.changes_meanwhile.swap(false, Ordering::Relaxed) {
                    self.set("a.service", unit("second"));
                    tell(connection, "a.service").await;
                }
                match self.property(&path, &property) {
                    Some(value) => connection.reply(&header, &value).await,
                    None => {
                        let error = "org.freedesktop.DBus.Error.UnknownProperty";
                        connection.reply_error(&header, error, &property).await
                    }
                }
            }
            _ => connection.reply_error(&header, "org.freedesktop.DBus.Error.UnknownMethod", &"").await,
        }
    }

    /// Serves on a bus under a name.
    async fn serve(self: &Arc<Fake>, bus: &Path, name: &str) -> Serving {
        let address = format!("unix:path={}", bus.display());
        let connection = zbus::connection::Builder::address(&*address).build().await.unwrap();
        let mut calls = MessageStream::from(&connection);
        connection.request_name(name.to_owned()).await.unwrap();
        let (fake, replies) = (Arc::clone(self), connection.clone());
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = next(&mut calls).await {
                if message.message_type() != zbus::message::Type::MethodCall {
                    continue;
                }
                fake.calls.fetch_add(1, Ordering::Relaxed);
                if !fake.hangs.load(Ordering::Relaxed) {
                    let _ = fake.answer(&replies, &message).await;
                }
            }
        });
        Serving { connection, task }
    }
}

struct Serving {
    connection: Connection,
    task: tokio::task::JoinHandle<()>,
}

/// Tells of a change of a unit as systemd does.
async fn tell(connection: &Connection, unit: &str) {
    let body = ("org.freedesktop.systemd1.Unit", BTreeMap::<String, Variant<'_>>::new(), vec!["Job"]);
    let interface = "org.freedesktop.DBus.Properties";
    let none = None::<zbus::names::BusName<'_>>;
    connection.emit_signal(none, object(unit), interface, "PropertiesChanged", &body).await.unwrap();
}

impl Serving {
    async fn tell(&self, unit: &str) {
        tell(&self.connection, unit).await;
    }

    /// Tells of the end of a machine as systemd-machined does.
    async fn tell_removed(&self, machine: &str) {
        let body = (machine, ObjectPath::try_from("/org/freedesktop/machine1/box").unwrap());
        let (path, interface) = ("/org/freedesktop/machine1", "org.freedesktop.machine1.Manager");
        let none = None::<zbus::names::BusName<'_>>;
        self.connection.emit_signal(none, path, interface, "MachineRemoved", &body).await.unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The source as the daemon runs it.
struct Asked {
    book: Arc<Book>,
    task: tokio::task::JoinHandle<()>,
}

impl Asked {
    fn start(path: &Path) -> Asked {
        let book = Arc::new(Book::new(|| {}));
        let (reporter, questions) = book.open("systemd", false);
        let context = Context {
            path: PathBuf::new(),
            proc: "/proc".into(),
            run: "/run".into(),
            reporter,
            questions,
            unanswered: None,
        };
        let kind = RUNTIMES.iter().find(|kind| kind.name == "systemd").unwrap();
        let task = tokio::spawn(supervise(kind, vec![path.to_owned()], context));
        Asked { book, task }
    }

    fn ask(&self, unit: &str) {
        self.book.ask(&Wanted::Unit(unit.into()));
    }

    fn report(&self) -> SourceReport {
        self.book.reports().remove(0)
    }

    fn told(&self, id: &str) -> Option<Arc<Workload>> {
        self.book.told(&(0, id.into())).map(|told| told.workload)
    }

    /// Asks about a unit until it is on the page: what is asked while there is no connection is forgotten.
    async fn answered(&self, unit: &str) -> Arc<Workload> {
        self.ask(unit);
        self.until("an answer", || self.told(unit)).await
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < end, "waited in vain for {what}: {:?}", self.report());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn failed(&self) -> String {
        let failed = || (self.report().health.failures > 0).then(|| self.report().health.last_error);
        self.until("a failure", failed).await.unwrap()
    }

    async fn idle(&self) {
        let idle = || matches!(self.report().health.state, State::Idle(_)).then_some(());
        self.until("nothing to do", idle).await;
    }

    /// Asks until there is a connection, since what is asked between two tries is dropped.
    async fn failed_after_question(&self) -> String {
        self.idle().await;
        self.ask("a.service");
        self.failed().await
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn nothing_is_connected_before_a_question_and_changes_are_followed() {
    let Some(bus) = PrivateBus::new("follow") else { return };
    let fake = Fake::with(&["a-b@1.service", "other.service", "marker.service"]);
    let serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    let asked = Asked::start(&bus.path());
    asked.book.ask(&Wanted::Container("0123".into()));
    asked.book.ask(&Wanted::Unit("../../etc/passwd".into()));
    asked.idle().await;
    assert_eq!(fake.calls.load(Ordering::Relaxed), 0);
    fake.set("a-b@1.service", FakeUnit { joins: vec!["other.service".into()], ..unit("A to B") });
    let told = asked.answered("a-b@1.service").await;
    assert_eq!(asked.report().health.state, State::Connected("systemd 252.1".into()));
    assert_eq!((told.role, &*told.name, &*told.description), (Role::Unit, "a-b@1.service", "A to B"));
    assert_eq!((told.pid, told.joins.as_slice()), (Some(77), &["other.service".to_owned()][..]));
    assert_eq!(told.netns.as_deref(), Some(Path::new("/run/netns/blue")));
    assert_eq!(told.labels.get("ControlGroup"), Some("/system.slice/a-b@1.service"));
    assert_eq!(told.labels.get("PrivateNetwork"), Some("yes"));

    fake.set("a-b@1.service", unit("A to C"));
    serving.tell("other.service").await;
    serving.tell("a-b@1.service").await;
    let described = |text: &str| asked.told("a-b@1.service").is_some_and(|w| w.description == text);
    asked.until("the change", || described("A to C").then_some(())).await;
    assert_eq!(asked.report().health.events, 1, "the bus tells only of units that were asked about");

    asked.ask("nobody.service");
    asked.answered("marker.service").await;
    assert!(asked.told("nobody.service").is_none());
    fake.set("a-b@1.service", FakeUnit { state: "inactive", ..unit("A to C") });
    serving.tell("a-b@1.service").await;
    asked.until("its end", || asked.told("a-b@1.service").is_none().then_some(())).await;
    assert_eq!(asked.report().health.last_error, None);
}

#[tokio::test]
async fn a_change_in_the_middle_of_the_first_answer_is_not_missed() {
    let Some(bus) = PrivateBus::new("meanwhile") else { return };
    let fake = Fake::with(&["a.service"]);
    let _serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    fake.changes_meanwhile.store(true, Ordering::Relaxed);
    let asked = Asked::start(&bus.path());
    asked.idle().await;
    asked.answered("a.service").await;
    let renewed = || asked.told("a.service").is_some_and(|told| told.description == "second");
    asked.until("the news", || renewed().then_some(())).await;
}

#[tokio::test]
async fn after_a_restart_of_the_bus_the_page_is_true_again() {
    let Some(mut bus) = PrivateBus::new("restart") else { return };
    let fake = Fake::with(&["stays.service", "goes.service"]);
    let serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    let asked = Asked::start(&bus.path());
    asked.answered("stays.service").await;
    asked.answered("goes.service").await;
    bus.stop();
    drop(serving);
    let error = asked.failed().await;
    assert!(error.contains(": the bus has gone away"), "{error}");
    assert_eq!(asked.report().workloads, 2, "what was said is kept");
    fake.units.lock().unwrap().remove("goes.service");
    fake.set("stays.service", unit("second"));
    bus.start();
    let _serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    asked.until("the end of one", || asked.told("goes.service").is_none().then_some(())).await;
    let renewed = || asked.told("stays.service").is_some_and(|told| told.description == "second");
    asked.until("the news of the other", || renewed().then_some(())).await;
}

#[tokio::test]
async fn systemd_that_starts_again_is_found_again() {
    let Some(bus) = PrivateBus::new("reexec") else { return };
    let fake = Fake::with(&["a.service"]);
    let serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    let asked = Asked::start(&bus.path());
    asked.answered("a.service").await;
    serving.connection.clone().close().await.unwrap();
    let error = asked.failed().await;
    assert!(error.ends_with(": systemd was started again"), "{error}");
    fake.set("a.service", unit("second"));
    let _serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    let renewed = || asked.told("a.service").is_some_and(|told| told.description == "second");
    asked.until("the news", || renewed().then_some(())).await;
}

#[tokio::test]
async fn systemd_that_hangs_is_waited_for_and_asked_again() {
    let Some(bus) = PrivateBus::new("hang") else { return };
    let fake = Fake::with(&["a.service", "b.service"]);
    let _serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    let asked = Asked::start(&bus.path());
    asked.answered("a.service").await;
    fake.hangs.store(true, Ordering::Relaxed);
    asked.ask("b.service");
    let error = asked.until("an error", || asked.report().health.last_error).await;
    assert_eq!(error, "org.freedesktop.systemd1 has not answered GetUnit in 2s");
    fake.hangs.store(false, Ordering::Relaxed);
    asked.until("the answer after all", || asked.told("b.service")).await;
    assert_eq!(asked.report().health.failures, 0);
}

#[tokio::test]
async fn a_bus_without_systemd_is_told_of() {
    let Some(bus) = PrivateBus::new("empty") else { return };
    let asked = Asked::start(&bus.path());
    let error = asked.failed_after_question().await;
    let says = "systemd is not there (nobody has the name org.freedesktop.systemd1), on the bus ";
    assert_eq!(error, format!("{says}{}", bus.path().display()));
}

#[tokio::test]
async fn answers_of_the_wrong_type_and_huge_ones_do_no_harm() {
    let Some(bus) = PrivateBus::new("lies") else { return };
    let fake = Fake::with(&["a.service", "huge.service", "endless.service", "b.service"]);
    let _serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    let asked = Asked::start(&bus.path());
    asked.answered("b.service").await;
    fake.lies.store(true, Ordering::Relaxed);
    asked.ask("a.service");
    let error = asked.until("an error", || asked.report().health.last_error).await;
    assert_eq!(error, "a.service: Id of org.freedesktop.systemd1 is of a type unheard of");
    fake.lies.store(false, Ordering::Relaxed);
    fake.set("huge.service", unit(&"é\n\"".repeat(2_500)));
    assert_eq!(asked.answered("huge.service").await.description.len(), 256);
    fake.set("endless.service", unit(&"x".repeat(2_000_000)));
    asked.ask("endless.service");
    let error = asked.failed().await;
    assert!(error.contains("longer than 1 MiB"), "{error}");
    assert_eq!(asked.report().workloads, 2);
}

#[tokio::test]
async fn machines_are_asked_of_machined_only_if_it_runs() {
    let Some(bus) = PrivateBus::new("machines") else { return };
    let started = bus.dir.join("started");
    let service =
        format!("[D-BUS Service]\nName=org.freedesktop.machine1\nExec=/bin/touch {}\n", started.display());
    std::fs::write(bus.dir.join("services/org.freedesktop.machine1.service"), service).unwrap();
    let fake = Fake::with(&["marker.service"]);
    let _serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    let asked = Asked::start(&bus.path());
    asked.book.ask(&Wanted::Machine("box".into()));
    asked.answered("marker.service").await;
    assert!(!started.exists() && asked.told("box").is_none());
    let machined = fake.serve(&bus.path(), "org.freedesktop.machine1").await;
    asked.book.ask(&Wanted::Machine("box".into()));
    let told = asked.until("the machine", || asked.told("box")).await;
    assert_eq!(
        (told.role, told.pid, told.labels.get("Class")),
        (Role::Machine, Some(4711), Some("container"))
    );
    fake.machine_is_gone.store(true, Ordering::Relaxed);
    machined.tell_removed("box").await;
    asked.until("its end", || asked.told("box").is_none().then_some(())).await;
}

#[tokio::test]
async fn no_more_things_are_remembered_than_the_bus_has_rules_for() {
    let Some(bus) = PrivateBus::new("many") else { return };
    let names: Vec<String> = (0..MAX_THINGS + 30).map(|i| format!("u{i}.service")).collect();
    let fake = Fake::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let _serving = fake.serve(&bus.path(), SYSTEMD.service).await;
    let asked = Asked::start(&bus.path());
    for name in &names {
        asked.answered(name).await;
    }
    assert_eq!((asked.report().workloads, asked.report().health.last_error), (MAX_THINGS, None));
    assert!(asked.told("u0.service").is_none() && asked.told("u30.service").is_some());
}

/// What a bus that is none says when somebody comes.
async fn greeted_with(name: &str, greeting: &'static [u8], endless: bool) -> String {
    let dir = std::env::temp_dir().join(format!("netskoop-nobus-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("bus");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                let mut heard = [0; 256];
                let _ = stream.read(&mut heard).await;
                while stream.write_all(greeting).await.is_ok() && endless {}
                // Holds the connection until the other side gives up.
                while stream.read(&mut heard).await.is_ok_and(|size| size > 0) {}
            });
        }
    });
    let asked = Asked::start(&path);
    let error = asked.failed_after_question().await;
    // It goes on all the same.
    asked.until("another try", || (asked.report().health.failures > 1).then_some(())).await;
    server.abort();
    let _ = std::fs::remove_dir_all(&dir);
    error.replace(&path.display().to_string(), "BUS")
}

#[tokio::test]
async fn what_is_no_bus_is_told_of_in_time() {
    let silent = greeted_with("silent", b"", false).await;
    assert!(silent.contains("has not answered in 2s"), "{silent}");
    let empty = greeted_with("newline", b"\n", false).await;
    assert_eq!(empty, "BUS does not answer as a D-Bus bus does");
    for (name, greeting, endless) in [
        ("http", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], false),
        ("endless", &[b'x'; 4096], true),
        ("refused", b"REJECTED EXTERNAL\r\n", false),
        ("odd", b"OK zzz\r\n", false),
        ("ok", b"OK 1234deadbeef1234deadbeef1234dead\r\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", false),
    ] {
        let error = greeted_with(name, greeting, endless).await;
        assert!(error.starts_with("cannot connect to BUS: "), "{name}: {error}");
    }
}

#[test]
fn names_that_systemd_cannot_have_are_not_asked() {
    let unit = |name: &str| Thing::Unit(name.into()).is_possible();
    assert!(unit("a-b@c\\x2d.service") && unit("x.scope") && unit("dbus.socket"));
    assert!(!unit("user@1000.service/foo.service") && !unit("x.slice") && !unit("") && !unit("é.service"));
    assert!(!unit(&format!("{}.service", "x".repeat(300))));
    let machine = |name: &str| Thing::Machine(name.into()).is_possible();
    assert!(machine("my-box.1") && !machine("a'b") && !machine("a/b"));
}
