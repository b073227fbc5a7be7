//! A podman that says of the container in the fixture what a test wants.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The container of `tests/fixtures/healthy`, and its process.
const ID: &str = "5d2f7f0c1b3e4a6988776655443322110ffeeddccbbaa9988776655443322110";
const PID: u32 = 200;

/// A socket on which a podman answers as long as the test runs: the container holds the namespaces of a pod of this name,
/// with these labels (JSON).
pub(crate) fn serve(dir: &Path, pod: &str, labels: &str) -> PathBuf {
    let socket = dir.join("podman.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let network = r#""NetworkSettings":{"Networks":{"podman":{"IPAddress":"10.88.0.5"}}}"#;
    let listed = format!(
        r#"[{{"Id":"{ID}","Names":["infra"],"State":"running","Pid":{PID},"Pod":"p1","PodName":"{pod}","IsInfra":true,"Labels":{labels}}}]"#
    );
    let inspected = format!(
        r#"{{"Id":"{ID}","Name":"infra","State":{{"Pid":{PID}}},"ImageName":"i","Pod":"p1","IsInfra":true,"Config":{{"Labels":{labels}}},{network}}}"#
    );
    let pod = format!(r#"{{"Name":"{pod}"}}"#);
    let answer = move |path: &str| {
        match path {
        "/version" => {
            r#"{"Version":"4.3.1","Components":[{"Name":"Podman Engine","Version":"4.3.1","Details":{"APIVersion":"4.3.1"}}]}"#.into()
        }
        path if path.contains("/containers/json") => listed.clone(),
        path if path.contains("/pods/") => pod.clone(),
        _ => inspected.clone(),
    }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            // The other end may go at any time.
            std::thread::spawn(move || talk(stream, answer));
        }
    });
    socket
}

fn talk(mut stream: UnixStream, answer: impl Fn(&str) -> String) -> Option<()> {
    let mut requests = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut first = String::new();
        requests.read_line(&mut first).ok().filter(|bytes| *bytes > 0)?;
        let mut line = String::new();
        while requests.read_line(&mut line).ok()? > 2 {
            line.clear();
        }
        let path = first.split(' ').nth(1)?;
        if path.starts_with("/events") {
            // Nothing ever happens.
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
            continue;
        }
        let body = answer(path);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).ok()?;
    }
}
