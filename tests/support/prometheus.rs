//! A real Prometheus that scrapes a daemon.

use super::{Daemon, Dir, get, skip, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// Its own port; the test has a network of its own.
const PORT: u16 = 9090;

/// Labels of a series, its name among them as `__name__`.
pub(crate) type Labels = BTreeMap<String, String>;

/// A running server; killed when dropped, its log shown if the test fails.
pub(crate) struct Prometheus {
    child: Child,
    dir: Dir,
}

impl Prometheus {
    /// Lets it scrape each path of the daemon as a job of its own, every so many seconds. `None` if it is not installed.
    pub(crate) fn start(daemon: &Daemon, seconds: u32, jobs: &[(&str, &str)]) -> Option<Prometheus> {
        let dir = Dir::new();
        let mut config =
            format!("global: {{scrape_interval: {seconds}s, scrape_timeout: {seconds}s}}\nscrape_configs:\n");
        for (job, params) in jobs {
            config.push_str(&format!(
                "- {{job_name: {job}, params: {params}, static_configs: [{{targets: ['127.0.0.1:{}']}}]}}\n",
                daemon.port
            ));
        }
        std::fs::write(dir.0.join("prometheus.yml"), config).unwrap();
        let log = File::create(dir.0.join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.0.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.0.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .current_dir(&dir.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let Ok(child) = child else {
            skip("prometheus is not installed (package prometheus)");
            return None;
        };
        let mut server = Prometheus { child, dir };
        until("Prometheus is ready", || {
            assert_eq!(server.child.try_wait().unwrap(), None, "Prometheus ended:\n{}", server.log());
            let stream = TcpStream::connect(("127.0.0.1", PORT)).ok()?;
            (get(stream, "/-/ready").status == 200).then_some(())
        });
        Some(server)
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.0.join("log")).unwrap()
    }

    /// What it says of itself.
    pub(crate) fn own_metrics(&self) -> String {
        get(TcpStream::connect(("127.0.0.1", PORT)).unwrap(), "/metrics").text()
    }

    /// The data of an answer of its API.
    #[track_caller]
    pub(crate) fn api(&self, path: &str, key: &str, value: &str) -> Value {
        let path = format!("/api/v1/{path}?{}={}", encode(key), encode(value));
        let answer = get(TcpStream::connect(("127.0.0.1", PORT)).unwrap(), &path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let mut found: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(found.get("warnings").is_none(), "{path}: {found}");
        found["data"].take()
    }

    /// What a query finds now.
    #[track_caller]
    pub(crate) fn query(&self, query: &str) -> BTreeMap<Labels, f64> {
        let found = self.api("query", "query", query);
        let series = found["result"].as_array().unwrap().iter();
        let pair = |series: &Value| {
            let labels = serde_json::from_value(series["metric"].clone()).unwrap();
            (labels, series["value"][1].as_str().unwrap().parse().unwrap())
        };
        series.map(pair).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("Prometheus' log:\n{}", self.log());
        }
    }
}

/// As in a query of a URL.
fn encode(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}
