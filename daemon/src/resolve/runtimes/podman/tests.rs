//! Trees of files like podman's, with processes that a tree like `/proc` tells of.

use super::*;
use crate::resolve::book::{Book, Wanted};
use crate::resolve::workload::{Role, Workload};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The files.
struct Disk(PathBuf);

struct Tree {
    disk: Disk,
    book: Arc<Book>,
    context: Context,
    wake: Arc<Notify>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.disk.0);
    }
}

fn id(number: u32) -> String {
    format!("{number:064x}")
}

fn write(path: PathBuf, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

impl Disk {
    /// Writes the list beside, and moves it over the old one, as podman does.
    fn list(&self, numbers: impl Iterator<Item = u32>, name: &str) {
        let entry = |number: u32| {
            format!(
                r#"{{"id":"{}","names":["{name}{number}"],"metadata":"{{\"image-name\":\"i\"}}"}}"#,
                id(number)
            )
        };
        let text = format!("[{}]", numbers.map(entry).collect::<Vec<_>>().join(","));
        self.list_text(&text);
    }

    fn list_text(&self, text: &str) {
        let (new, old) = (self.0.join("storage/.tmp"), self.0.join("storage/containers.json"));
        write(new.clone(), text);
        std::fs::rename(new, old).unwrap();
    }

    /// A container starts, as process `pid`.
    fn start(&self, number: u32, pid: i32) {
        let id = id(number);
        write(self.0.join(format!("proc/{pid}/cgroup")), &format!("0::/libpod_parent/libpod-{id}\n"));
        let userdata = format!("run/containers/storage/overlay-containers/{id}/userdata");
        write(self.0.join(userdata).join("pidfile"), &pid.to_string());
    }

    fn end(&self, number: u32, pid: i32) {
        std::fs::remove_dir_all(self.0.join(format!("proc/{pid}"))).unwrap();
        write(self.0.join("run/libpod/exits").join(id(number)), "0");
    }

    fn config(&self, number: u32, text: &str) {
        write(self.0.join("storage").join(id(number)).join("userdata/config.json"), text);
    }
}

impl Tree {
    fn new() -> Tree {
        let name = std::hash::RandomState::new().hash_one(0);
        let root = std::env::temp_dir().join(format!("netskoop-podman-{name:x}"));
        std::fs::create_dir_all(root.join("storage")).unwrap();
        std::fs::create_dir_all(root.join("run")).unwrap();
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        let book = Arc::new(Book::new(move || waker.notify_one()));
        let (reporter, questions) = book.open("podman", true);
        let (path, proc, run) = (root.join("storage"), root.join("proc"), root.join("run"));
        let context = Context { path, proc, run, reporter, questions, unanswered: None };
        Tree { disk: Disk(root), book, context, wake }
    }

    async fn until(&mut self, good: impl Fn(&Book) -> bool) {
        let (book, wake) = (Arc::clone(&self.book), Arc::clone(&self.wake));
        let reached = reached(&book, &wake, good);
        tokio::select! {
            ended = run(&mut self.context) => panic!("{}", ended.unwrap_err()),
            () = reached => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("in vain: {:?}", self.book.reports()),
        }
    }

    async fn fails(&mut self) -> String {
        run(&mut self.context).await.unwrap_err().to_string()
    }

    fn find(&self, number: u32) -> Option<Arc<Workload>> {
        self.book.by_id(&id(number)).first().map(|(_, told)| Arc::clone(&told.workload))
    }
}

fn pid(book: &Book, number: u32) -> Option<i32> {
    book.by_id(&id(number)).first()?.1.workload.pid
}

/// Waits for the page; the state of the source changes without a call.
async fn reached(book: &Book, wake: &Notify, good: impl Fn(&Book) -> bool) {
    while !good(book) {
        let _ = tokio::time::timeout(Duration::from_millis(5), wake.notified()).await;
    }
}

/// What is done to the files, and what the page says then.
type Step = (fn(&Disk), fn(&Book) -> bool);

/// Runs steps, each as soon as the page is as the one before has made it.
async fn steps(tree: &mut Tree, steps: Vec<Step>) {
    let Tree { disk, book, context, wake } = tree;
    let all = async {
        for (number, (act, good)) in steps.into_iter().enumerate() {
            act(disk);
            let reached = tokio::time::timeout(Duration::from_secs(30), reached(book, wake, good));
            assert!(reached.await.is_ok(), "step {number}: {:?}", book.reports());
        }
    };
    tokio::select! {
        ended = run(context) => panic!("{}", ended.unwrap_err()),
        () = all => {}
    }
}

#[tokio::test]
async fn changes_are_seen_as_they_happen() {
    let mut tree = Tree::new();
    let connected: fn(&Book) -> bool = |book| book.reports()[0].health.connected.is_some();
    steps(
        &mut tree,
        vec![
            (|_| {}, connected),
            // Nothing of `/run` is there yet.
            (|disk| disk.list(1..3, "c"), |_| true),
            (|disk| disk.start(1, 101), |book| pid(book, 1) == Some(101)),
            (|disk| disk.start(2, 102), |book| pid(book, 2) == Some(102)),
            (
                |disk| disk.list(1..3, "d"),
                |book| book.by_id(&id(2)).iter().any(|(_, t)| t.workload.name == "d2"),
            ),
            (|disk| disk.end(1, 101), |book| pid(book, 1).is_none()),
            (|disk| disk.start(1, 103), |book| pid(book, 1) == Some(103)),
            (|disk| disk.list(2..3, "d"), |book| pid(book, 1).is_none()),
        ],
    )
    .await;
    assert_eq!(tree.book.reports()[0].workloads, 1);
}

#[tokio::test]
async fn a_process_of_somebody_else_is_nobody() {
    let mut tree = Tree::new();
    tree.disk.list(1..6, "c");
    (1..=4).for_each(|number| tree.disk.start(number, 100 + i32::try_from(number).unwrap()));
    // The number went to another program, to another container, or is none.
    write(tree.disk.0.join("proc/101/cgroup"), "0::/system.slice/a.service\n");
    write(tree.disk.0.join("proc/102/cgroup"), &format!("0::/libpod_parent/libpod-{}\n", id(9)));
    let userdata =
        |number: u32| format!("run/containers/storage/overlay-containers/{}/userdata/pidfile", id(number));
    write(tree.disk.0.join(userdata(3)), "../1\n");
    tree.disk.config(4, "{malformed");
    tree.until(|book| pid(book, 4).is_some()).await;
    assert_eq!(tree.book.reports()[0].workloads, 1);
    tree.book.ask(&Wanted::Container(id(1)));
    tree.book.ask(&Wanted::Container("../../x".into()));
    tree.until(|book| pid(book, 4).is_some()).await;
}

#[tokio::test]
async fn pods_by_their_files() {
    let (mut tree, pod) = (Tree::new(), id(0xb0d));
    tree.disk.list(1..5, "c");
    let cgroup =
        |number| format!(r#""linux":{{"cgroupsPath":"/libpod_parent/{pod}/libpod-{}"}}"#, id(number));
    tree.disk.config(1, &format!(r#"{{"hostname":"shop",{}}}"#, cgroup(1)));
    let annotation = format!(r#""annotations":{{"io.kubernetes.cri-o.SandboxID":"{}","a":"b"}}"#, id(1));
    tree.disk.config(2, &format!("{{{annotation},{}}}", cgroup(2)));
    // Systemd's way, and a sandbox that is not there.
    let slice = format!(r#""linux":{{"cgroupsPath":"machine-libpod_pod_{pod}.slice:libpod:{}"}}"#, id(3));
    tree.disk.config(3, &format!("{{{annotation},{slice}}}"));
    let lost = annotation.replace(&id(1), "../../../etc");
    tree.disk.config(4, &format!(r#"{{{lost},"hostname":"{}",{}}}"#, &id(4)[..12], cgroup(4)));
    (1..=4).for_each(|number| tree.disk.start(number, 100 + i32::try_from(number).unwrap()));
    tree.until(|book| pid(book, 4).is_some()).await;
    let roles: Vec<Role> = (1..=4).map(|number| tree.find(number).unwrap().role).collect();
    assert_eq!(roles, [Role::Sandbox, Role::Container, Role::Container, Role::Container]);
    let pods: Vec<Option<String>> =
        (1..=4).map(|number| tree.find(number).unwrap().pod.as_ref().map(|pod| pod.name.clone())).collect();
    let shop = Some("shop".to_owned());
    assert_eq!(pods, [shop.clone(), shop.clone(), shop, None]);
    let known = tree.find(3).unwrap();
    assert_eq!(known.pod.as_ref().unwrap().uid, pod);
    assert_eq!(known.annotations.iter().collect::<Vec<_>>(), [("a", "b")]);
}

#[tokio::test]
async fn whatever_is_wrong_with_the_files_is_one_sentence() {
    let mut tree = Tree::new();
    tree.disk.list_text("{\"not\": \"a list\"}");
    let error = tree.fails().await;
    assert!(error.contains("storage/containers.json cannot be used: "), "{error}");
    let file = std::fs::File::create(tree.disk.0.join("storage/containers.json")).unwrap();
    file.set_len(33 << 20).unwrap();
    let error = tree.fails().await;
    assert!(error.ends_with("storage/containers.json: it has more than 33554432 bytes"), "{error}");
    tree.disk.list_text(r#"[{"id":"../../etc","names":["x"]},{"id":"short"}]"#);
    tree.until(|book| book.reports()[0].health.connected.is_some()).await;
    assert_eq!(tree.book.reports()[0].workloads, 0);
}

#[tokio::test]
async fn hundreds_of_containers() {
    let mut tree = Tree::new();
    tree.disk.list(0..300, "c");
    (0..300).for_each(|number| tree.disk.start(number, 100 + i32::try_from(number).unwrap()));
    tree.until(|book| book.reports()[0].workloads == 300).await;
}

/// A service that is started while the files are followed is found at the next full look.
#[tokio::test(start_paused = true)]
async fn the_socket_is_preferred_once_somebody_listens() {
    let mut tree = Tree::new();
    let socket = tree.disk.0.join("run/podman/podman.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    tree.until(|book| book.reports()[0].health.connected.is_some()).await;
    std::fs::remove_file(&socket).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = tree.fails().await;
    assert!(error.contains("podman.sock did not answer GET /version"), "{error}");
}
