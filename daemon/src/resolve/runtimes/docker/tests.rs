//! A server that answers with whatever bytes a test wants, on a real socket.

use super::*;
use crate::resolve::book::{Book, Wanted};
use crate::resolve::workload::{Role, Workload};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};

/// What the server does with a request.
enum Reply {
    /// These bytes, and the connection stays.
    Raw(Vec<u8>),
    /// A head, then what the test sends, chunk by chunk; the connection ends with the sender.
    Stream(mpsc::UnboundedReceiver<String>),
    /// The same, as soon as the test allows.
    Held(Arc<Notify>, Vec<u8>),
    /// Nothing, for ever.
    Hang,
    /// A body without end.
    Endless,
}

type Answers = Box<dyn FnMut(&str) -> Reply + Send>;

struct Fake {
    path: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn new(answers: impl FnMut(&str) -> Reply + Send + 'static) -> Fake {
        use std::hash::BuildHasher;
        let name = std::hash::RandomState::new().hash_one(0);
        let path = std::env::temp_dir().join(format!("netskoop-http-{name:x}"));
        let listener = UnixListener::bind(&path).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answers: Arc<Mutex<Answers>> = Arc::new(Mutex::new(Box::new(answers)));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answers), Arc::clone(&log)));
            }
        });
        Fake { path, asked }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(stream: UnixStream, answers: Arc<Mutex<Answers>>, log: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut path = String::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().unwrap().split('?').next().unwrap().to_owned();
            }
            if line == "\r\n" {
                break;
            }
        }
        log.lock().unwrap().push(path.clone());
        let reply = answers.lock().unwrap()(&path);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        match reply {
            Reply::Raw(bytes) => stream.write_all(&bytes).await.ok()?,
            Reply::Held(allowed, bytes) => {
                allowed.notified().await;
                stream.write_all(&bytes).await.ok()?;
            }
            Reply::Stream(mut chunks) => {
                stream.write_all(head.as_bytes()).await.ok()?;
                while let Some(chunk) = chunks.recv().await {
                    let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
                    stream.write_all(chunk.as_bytes()).await.ok()?;
                }
                return None;
            }
            Reply::Hang => std::future::pending().await,
            Reply::Endless => {
                stream.write_all(head.as_bytes()).await.ok()?;
                let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
                loop {
                    stream.write_all(chunk.as_bytes()).await.ok()?;
                }
            }
        }
    }
}

fn status(status: &str, body: &str) -> Reply {
    Reply::Raw(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

fn json(body: &str) -> Reply {
    status("200 OK", body)
}

fn id(number: u32) -> String {
    format!("{number:064x}")
}

fn listed(number: u32) -> String {
    format!(r#"{{"Id":"{}","Names":["/c{number}"],"Image":"i","Labels":null}}"#, id(number))
}

fn container(number: u32) -> String {
    format!(
        r#"{{"Id":"{}","Name":"/c{number}","State":{{"Running":true,"Pid":{}}},"Config":{{"Image":"i"}}}}"#,
        id(number),
        1000 + number
    )
}

fn happened(action: &str, number: u32) -> String {
    let id = id(number);
    format!(r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"{id}"}}}}"#) + "\n"
}

fn number_in(path: &str) -> u32 {
    let id = path.split('/').find(|part| part.len() == 64).unwrap();
    u32::from_str_radix(&id[56..], 16).unwrap()
}

/// A Docker that knows how to answer; `answers` may know better.
struct Setting {
    fake: Fake,
    book: Arc<Book>,
    context: Context,
    /// Sends events; Docker ends when it is dropped.
    events: mpsc::UnboundedSender<String>,
    wake: Arc<Notify>,
}

impl Setting {
    fn new(mut answers: impl FnMut(&str) -> Option<Reply> + Send + 'static) -> Setting {
        let (events, receiver) = mpsc::unbounded_channel();
        let mut receiver = Some(receiver);
        let fake = Fake::new(move |path| {
            answers(path).unwrap_or_else(|| match path {
                "/version" => json(r#"{"Version":"20.10.24","Components":null}"#),
                "/events" => receiver.take().map_or(Reply::Hang, Reply::Stream),
                "/containers/json" => json("[]"),
                path => json(&container(number_in(path))),
            })
        });
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        let book = Arc::new(Book::new(move || waker.notify_one()));
        let (reporter, questions) = book.open("docker", true);
        let context = Context {
            path: fake.path.clone(),
            proc: "/proc".into(),
            run: "/run".into(),
            reporter,
            questions,
            unanswered: None,
        };
        Setting { fake, book, context, events, wake }
    }

    /// Runs until the page is as wanted, where time only passes while nobody has anything to do.
    async fn until(&mut self, good: impl Fn(&Book) -> bool) {
        self.within(Duration::from_secs(3000), good).await;
    }

    /// The same where time is real.
    async fn until_soon(&mut self, good: impl Fn(&Book) -> bool) {
        self.within(Duration::from_secs(60), good).await;
    }

    async fn within(&mut self, limit: Duration, good: impl Fn(&Book) -> bool) {
        let (book, wake) = (Arc::clone(&self.book), Arc::clone(&self.wake));
        let reached = async {
            while !good(&book) {
                wake.notified().await;
            }
        };
        tokio::select! {
            ended = run(&mut self.context) => panic!("{}", ended.unwrap_err()),
            () = reached => {}
            () = tokio::time::sleep(limit) => panic!("in vain: {:?}", self.book.reports()),
        }
    }

    async fn fails(&mut self) -> String {
        run(&mut self.context).await.unwrap_err().to_string()
    }

    fn asked(&self, part: &str) -> usize {
        self.fake.asked.lock().unwrap().iter().filter(|path| path.contains(part)).count()
    }
}

fn pid(book: &Book, number: u32) -> Option<i32> {
    book.by_id(&id(number)).first()?.1.workload.pid
}

#[tokio::test]
async fn ten_thousand_containers() {
    let list: Vec<String> = (0..10_000).map(listed).collect();
    let list = format!("[{}]", list.join(","));
    let mut setting = Setting::new(move |path| (path == "/containers/json").then(|| json(&list)));
    setting.until_soon(|book| book.reports()[0].workloads == 10_000 && pid(book, 9_999).is_some()).await;
    assert_eq!(setting.asked("/containers/"), 10_001, "the list, and each once");
    assert!((0..10_000).all(|number| pid(&setting.book, number).is_some()));
    let report = setting.book.reports().remove(0);
    assert_eq!((report.health.lists, report.health.refused), (1, 0));
}

#[tokio::test]
async fn a_late_answer_brings_nobody_back() {
    let allowed = Arc::new(Notify::new());
    let hold = Arc::clone(&allowed);
    let mut setting = Setting::new(move |path| {
        let body = container(1);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        path.contains(&id(1)).then(|| Reply::Held(Arc::clone(&hold), answer.into_bytes()))
    });
    setting.events.send(happened("start", 1)).unwrap();
    let (book, asked, events) =
        (Arc::clone(&setting.book), Arc::clone(&setting.fake.asked), setting.events.clone());
    tokio::spawn(async move {
        while !asked.lock().unwrap().iter().any(|path| path.contains(&id(1))) {
            tokio::task::yield_now().await;
        }
        events.send(happened("die", 1)).unwrap();
        events.send(happened("start", 2)).unwrap();
        while book.reports()[0].health.events < 3 {
            tokio::task::yield_now().await;
        }
        allowed.notify_one();
    });
    setting.until_soon(|book| pid(book, 2).is_some()).await;
    assert_eq!(setting.book.by_id(&id(1)).len(), 0);
}

#[tokio::test]
async fn what_happens_during_the_list_outranks_it() {
    let allowed = Arc::new(Notify::new());
    let hold = Arc::clone(&allowed);
    let mut setting = Setting::new(move |path| {
        let body = format!("[{},{}]", listed(1), listed(2));
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        (path == "/containers/json").then(|| Reply::Held(Arc::clone(&hold), answer.into_bytes()))
    });
    // On the page from an earlier connection: one that started again since, one that ended.
    for number in [3, 4] {
        setting.context.reporter.put(Workload { id: id(number).into(), ..Workload::default() });
    }
    let first = |book: &Book| book.by_id(&id(3))[0].1.first;
    let before = first(&setting.book);
    setting.events.send(happened("die", 1) + &happened("start", 3)).unwrap();
    let book = Arc::clone(&setting.book);
    tokio::spawn(async move {
        while book.reports()[0].health.events < 2 {
            tokio::task::yield_now().await;
        }
        allowed.notify_one();
    });
    setting.until_soon(|book| pid(book, 2).is_some() && pid(book, 3).is_some()).await;
    let there: Vec<bool> = (1..=4).map(|number| !setting.book.by_id(&id(number)).is_empty()).collect();
    assert_eq!(there, [false, true, true, false]);
    assert_eq!(first(&setting.book), before, "it was never off the page");
}

#[tokio::test]
async fn questions_are_answered() {
    let mut setting = Setting::new(|path| {
        path.contains(&id(8)).then(|| status("404 Not Found", r#"{"message":"No such container"}"#))
    });
    for number in [8, 9] {
        setting.book.ask(&Wanted::Container(id(number)));
    }
    setting.book.ask(&Wanted::Container("../../etc".into()));
    setting.book.ask(&Wanted::Unit("a.service".into()));
    setting.until_soon(|book| pid(book, 9).is_some()).await;
    assert!(setting.book.by_id(&id(8)).is_empty());
    assert_eq!(setting.book.reports()[0].health.last_error, None, "not to know one is no error");
    assert_eq!(setting.asked("etc"), 0);
}

#[tokio::test]
async fn events_in_any_shape() {
    let mut setting = Setting::new(|_| None);
    let long = format!("{{\"Type\":\"{}\"}}\n", "x".repeat(MAX_EVENT));
    let old = format!("{{\"status\":\"start\",\"id\":\"{}\",\"from\":\"i\",\"time\":1}}\r\n\r\n", id(2));
    let both = happened("start", 3) + &happened("start", 4);
    let (a, b) = both.split_at(50);
    for text in [&happened("start", 1), "{malformed\n", &long, &old, a, b, &happened("start", 5)] {
        setting.events.send(text.to_owned()).unwrap();
    }
    setting.until_soon(|book| (1..=5).all(|number| pid(book, number).is_some())).await;
    let error = setting.book.reports()[0].health.last_error.clone().unwrap();
    assert!(error.contains("an event"), "{error}");
    let before = setting.book.reports()[0].health.events;
    assert_eq!(before, 6, "all but the long one");
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_found_by_the_next_list() {
    let mut lists = 0;
    let mut setting = Setting::new(move |path| {
        lists += u32::from(path == "/containers/json");
        (path == "/containers/json" && lists > 1).then(|| json(&format!("[{}]", listed(1))))
    });
    setting.events.send("{malformed\n".into()).unwrap();
    setting.until(|book| pid(book, 1).is_some()).await;
}

#[tokio::test]
async fn a_container_that_cannot_be_looked_at_stops_nobody() {
    let list = format!("[{},{},{}]", listed(1), listed(2), listed(3));
    let mut setting = Setting::new(move |path| match path {
        "/containers/json" => Some(json(&list)),
        path if path.contains(&id(1)) => Some(status("500 Internal Server Error", "{\"message\":\"a\\nb\"}")),
        path if path.contains(&id(2)) => Some(Reply::Endless),
        _ => None,
    });
    setting.until_soon(|book| pid(book, 3).is_some()).await;
    let names: Vec<String> =
        (1..=3).map(|number| setting.book.by_id(&id(number))[0].1.workload.name.clone()).collect();
    assert_eq!(names, ["c1", "c2", "c3"], "the list told of them");
}

/// What can no longer be looked at keeps its name, but not its process, until it can be looked at again.
#[tokio::test(start_paused = true)]
async fn nothing_old_is_told_of_a_container_that_cannot_be_looked_at() {
    let mut looks = 0;
    let list = format!("[{}]", listed(1));
    let mut setting = Setting::new(move |path| {
        looks += u32::from(path.contains(&id(1)));
        match path {
            "/containers/json" => Some(json(&list)),
            path if path.contains(&id(1)) && looks == 2 => Some(status("500 Internal Server Error", "")),
            _ => None,
        }
    });
    let (book, events) = (Arc::clone(&setting.book), setting.events.clone());
    tokio::spawn(async move {
        while pid(&book, 1).is_none() {
            tokio::task::yield_now().await;
        }
        events.send(happened("rename", 1)).unwrap();
    });
    let failed = std::cell::Cell::new(false);
    setting
        .until(|book| {
            failed.set(
                failed.get() || (pid(book, 1).is_none() && book.reports()[0].health.last_error.is_some()),
            );
            failed.get() && pid(book, 1).is_some()
        })
        .await;
    assert_eq!(setting.asked(&id(1)), 3);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_is_left_out_and_a_server_that_hangs_is_given_up() {
    let list = format!("[{},{}]", listed(1), listed(2));
    let mut setting = Setting::new(move |path| match path {
        "/containers/json" => Some(json(&list)),
        path if path.contains(&id(1)) => Some(Reply::Hang),
        _ => None,
    });
    setting.until(|book| pid(book, 2).is_some()).await;
    let error = setting.book.reports()[0].health.last_error.clone().unwrap();
    assert!(error.contains("did not answer GET /containers/") && error.ends_with("within 5 s"), "{error}");

    let list = format!("[{},{},{},{}]", listed(1), listed(2), listed(3), listed(4));
    let mut setting = Setting::new(move |path| match path {
        "/containers/json" => Some(json(&list)),
        path if path.len() > 64 => Some(Reply::Hang),
        _ => None,
    });
    let error = setting.fails().await;
    assert!(error.contains("did not answer"), "{error}");
    assert_eq!(setting.asked("/containers/0"), 3);
    assert_eq!(setting.book.reports()[0].workloads, 4, "what is known stays");
}

/// What a server answers to everything, and what the sentence says.
#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_is_one_sentence() {
    type Case = (fn() -> Reply, &'static str);
    let cases: [Case; 9] = [
        (
            || status("500 Internal Server Error", r#"{"message":"database is locked"}"#),
            "answers GET /version with 500 Internal Server Error: database is locked",
        ),
        (|| status("503 Service Unavailable", ""), "with 503 Service Unavailable"),
        (
            || status("400 Bad Request", &format!("<p>{}", "x\n\u{1b}[1m".repeat(500))),
            "400 Bad Request: <p>x",
        ),
        (|| json("{"), "with JSON that cannot be used: EOF"),
        (|| json("[1]"), "with JSON that cannot be used: "),
        (|| Reply::Hang, "did not answer GET /version within 5 s"),
        (|| Reply::Endless, "with more than 65536 bytes, which are not read"),
        (|| Reply::Raw(b"SSH-2.0-OpenSSH\r\n".to_vec()), "with what is not HTTP: "),
        (
            || Reply::Raw(format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(1 << 20)).into_bytes()),
            "with what is not HTTP: ",
        ),
    ];
    for (reply, wanted) in cases {
        let mut setting = Setting::new(move |_| Some(reply()));
        let error = setting.fails().await;
        assert!(error.contains(wanted), "{error}");
        assert!(error.len() < 400 && !error.contains(char::is_control), "{error}");
        assert!(error.contains("/netskoop-http-"), "it says where: {error}");
    }
    let mut setting = Setting::new(|path| (path == "/containers/json").then_some(Reply::Endless));
    let error = setting.fails().await;
    assert!(error.contains("GET /containers/json with more than 33554432 bytes"), "{error}");
    let mut setting = Setting::new(|path| (path == "/events").then_some(Reply::Hang));
    assert!(setting.fails().await.contains("did not answer GET /events"));
}

#[tokio::test]
async fn the_end_of_the_stream_and_of_the_server_are_told() {
    let mut setting = Setting::new(|_| None);
    setting.events = mpsc::unbounded_channel().0;
    let error = setting.fails().await;
    assert!(error.contains("broke") || error.contains("ended"), "{error}");
    let mut setting = Setting::new(|_| None);
    setting.context.path = "/nowhere/docker.sock".into();
    let error = setting.fails().await;
    assert_eq!(error, "cannot connect to /nowhere/docker.sock: No such file or directory (os error 2)");
    std::fs::remove_file(&setting.fake.path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&setting.fake.path).unwrap());
    setting.context.path = setting.fake.path.clone();
    assert!(setting.fails().await.ends_with("; nobody listens there"));
}

/// A connection that the server closes between two questions is made again.
#[tokio::test]
async fn a_server_that_closes_after_each_answer() {
    let mut setting = Setting::new(|path| {
        let body = match path {
            "/version" => r#"{"Version":"1"}"#.to_owned(),
            "/containers/json" => format!("[{},{}]", listed(1), listed(2)),
            "/events" => return None,
            path => container(number_in(path)),
        };
        let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        Some(Reply::Raw((head + &body).into_bytes()))
    });
    setting.until_soon(|book| pid(book, 1).is_some() && pid(book, 2).is_some()).await;
}

#[tokio::test]
async fn podman_tells_of_its_pods() {
    let body = |infra: bool| {
        let (number, name) = if infra { (1, "infra") } else { (2, "app") };
        format!(
            r#"{{"Id":"{}","Name":"{name}","State":{{"Pid":9}},"ImageName":"i","Pod":"p1","IsInfra":{infra},"Config":{{"Labels":null}}}}"#,
            id(number)
        )
    };
    let mut setting = Setting::new(move |path| {
        Some(match path {
            "/version" => json(
                r#"{"Version":"4.3.1","Components":[{"Name":"Podman Engine","Version":"4.3.1","Details":{"APIVersion":"4.3.1"}}]}"#,
            ),
            "/v4.3.1/libpod/containers/json" => {
                let ended = listed(3).replace("\"Image\"", "\"State\":\"exited\",\"Image\"");
                let paused = listed(2).replace("\"Image\"", "\"State\":\"paused\",\"Image\"");
                json(&format!("[{},{paused},{ended}]", listed(1)))
            }
            "/v4.3.1/libpod/pods/p1/json" => json(r#"{"Name":"shop"}"#),
            path if path.starts_with("/v4.3.1/libpod/containers/") => json(&body(number_in(path) == 1)),
            _ => return None,
        })
    });
    setting.until_soon(|book| (1..=2).all(|number| pid(book, number).is_some())).await;
    let of = |number| Arc::clone(&setting.book.by_id(&id(number))[0].1.workload);
    assert_eq!((of(1).role, of(2).role), (Role::Sandbox, Role::Container));
    let pod = of(2).pod.clone().unwrap();
    assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("", "shop", "p1"));
    assert_eq!(setting.asked("/pods/"), 1, "a pod is asked for once");
    assert_eq!(setting.book.reports()[0].workloads, 2);
}

#[test]
fn labels_of_any_size_and_names_of_any_kind() {
    let huge = format!(
        r#"[{{"Id":"{}","Names":["/a/b","/web"],"Labels":{{"k":"{}","n":"a\nb\"\u0000"}},"NetworkSettings":null}},{{"Id":"../x"}}]"#,
        id(1),
        "é".repeat(5_000)
    );
    let Containers(all) = serde_json::from_str(&huge).unwrap();
    assert_eq!((all.len(), all[0].name.as_str()), (1, "web"));
    assert!(all[0].labels.get("k").is_some_and(|value| value.len() <= 256));
    assert_eq!(all[0].labels.get("n"), Some("a\nb\"\0"), "escaped where it is written");
}
