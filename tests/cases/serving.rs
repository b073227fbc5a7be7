use crate::support::{Answer, Daemon, Dir, PULL, Setup, exchange, get, read_answer, run, series, until};
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

fn daemon() -> Daemon {
    Setup::fixture("healthy").pull_only().start()
}

fn with(daemon: &Daemon, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    exchange(daemon.tcp(), method, path, headers, b"")
}

/// Both servers answer as if nothing were.
#[track_caller]
fn serves(daemon: &Daemon) {
    assert_eq!(series(&daemon.scrape("/metrics"), "netskoop_wedged_reads"), Some(0.0));
    assert_eq!(daemon.status().node, "node-1");
}

#[test]
fn a_scrape_is_the_text_format() {
    let daemon = daemon();
    let answer = daemon.http("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(answer.header("content-encoding"), None);
    let text = answer.text();
    let (mut helped, mut typed) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped.push(rest.split(' ').next().unwrap());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            typed.push(rest.split(' ').next().unwrap());
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            // In the right order, and one family in one piece.
            assert_eq!((helped.last(), typed.last()), (Some(&name), Some(&name)), "{line}");
        }
    }
    let mut once = helped.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), helped.len(), "a family is there twice");
    assert!(text.contains("\nnetskoop_tcp_active_opens_total{kind=\"unit\",name=\"nginx.service\"} "));
}

#[test]
fn gzip_when_asked_is_the_same_text() {
    let daemon = daemon();
    let path = format!("/metrics?set=full&{PULL}");
    let plain = daemon.scrape(&path);
    let answer = with(&daemon, "GET", &path, &[("Accept-Encoding", "deflate, gzip;q=0.9")]);
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut text).unwrap();
    // The daemon's own metrics change from scrape to scrape.
    let own = "# HELP netskoop_build_info";
    assert_eq!(text.split(own).next(), plain.split(own).next());
    assert!(text.contains(own));
    let refused = with(&daemon, "GET", &path, &[("Accept-Encoding", "gzip;q=0")]);
    assert_eq!(refused.header("content-encoding"), None);
}

#[test]
fn a_query_that_makes_no_sense_is_explained() {
    let daemon = daemon();
    for (query, says) in [
        ("names=skoop", "known are netskoop, kubeskoop, inspector"),
        ("collect[]=tcpex", "no probe 'tcpex'. Did you mean 'tcpext'?"),
        ("exclude%5B%5D=udpp", "no probe 'udpp'. Did you mean 'udp'?"),
        ("set=all", "it is either core or full"),
        ("labels=old", "it is either default or target"),
        ("labels=target", "only names=inspector have these"),
        ("collect=tcp", "unknown parameter 'collect'; known are names, labels, set, collect[], exclude[]"),
    ] {
        let answer = daemon.http(&format!("/metrics?{query}"));
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.text().contains(says), "{query}: {}", answer.text());
    }
}

#[test]
fn probes_can_be_picked_and_left_out() {
    let daemon = daemon();
    let families = |query: &str| -> Vec<String> {
        let text = daemon.scrape(&format!("/metrics?{query}"));
        let (metrics, _) = text.split_once("# HELP netskoop_build_info").unwrap();
        let names = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        // What is known of the entities is there whatever is picked.
        let names = names.filter(|name| *name != "netskoop_entity_info gauge");
        let mut probes: Vec<_> = names.map(|name| name.split('_').nth(1).unwrap().to_owned()).collect();
        probes.dedup();
        probes
    };
    assert_eq!(families("collect[]=tcp&collect%5B%5D=udp"), ["tcp", "udp"]);
    assert_eq!(families("collect[]=tcp&collect[]=udp&exclude[]=tcp"), ["udp"]);
    assert!(!families("exclude[]=tcp").contains(&"tcp".to_owned()));
    assert!(families("").contains(&"tcp".to_owned()));
}

#[test]
fn the_port_is_for_reading_only() {
    let daemon = daemon();
    for path in ["/metrics", "/", "/v1/reload"] {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let answer = with(&daemon, method, path, &[]);
            assert_eq!(answer.status, 405, "{method} {path}");
            assert!(answer.text().contains("netskoopctl"), "{}", answer.text());
        }
    }
    assert_eq!(with(&daemon, "HEAD", "/metrics", &[]).status, 200);
    let nowhere = daemon.http("/metricz");
    assert_eq!(nowhere.status, 404);
    assert!(nowhere.text().contains("try /metrics, /-/healthy, /-/ready"), "{}", nowhere.text());
    assert_eq!(daemon.http("/v1/status").status, 404, "control is not on the network");
    for path in ["/-/healthy", "/-/ready"] {
        assert_eq!(daemon.http(path).status, 200, "{path}");
    }
    let landing = daemon.http("/");
    assert_eq!(landing.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(landing.text().contains("href=\"/metrics\"") && landing.text().contains("node-1"));
}

#[test]
fn scrapes_within_min_interval_share_a_collection() {
    let mut setup = Setup::fixture_copy("healthy").pull_only().replace("metrics", "min_interval = \"1h\"");
    if crate::support::is_root() {
        // The kernel's news of other tests' namespaces would make it look again.
        setup = setup.wrap(&["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"]);
    }
    let daemon = setup.start();
    let before = daemon.scrape("/metrics?collect[]=tcp");
    // A new collection would miss one namespace.
    std::fs::write(daemon.setup.dir.0.join("proc/100/net/snmp"), "").unwrap();
    let shared = daemon.scrape("/metrics?collect[]=tcp");
    let own = "# HELP netskoop_build_info";
    assert_eq!(before.split(own).next(), shared.split(own).next());
    assert!(before.contains("nginx.service"));
    let more = daemon.scrape("/metrics?set=full&collect[]=tcp");
    let (more, _) = more.split_once("# HELP netskoop_entity_info").unwrap();
    assert!(!more.contains("nginx.service"), "what nobody read before is read now");
}

#[test]
fn a_scraper_in_a_hurry_gets_what_there_is() {
    let setup = Setup::fixture_copy("healthy").pull_only();
    let daemon = setup.replace("metrics", "min_interval = \"0s\"\ntimeout = \"60s\"").start();
    let late = |text: &str| series(text, "netskoop_collection_late_namespaces").unwrap();
    assert_eq!(late(&daemon.scrape("/metrics")), 0.0);
    // Reading this blocks until somebody writes.
    let fifo = daemon.setup.dir.0.join("proc/200/net/netstat");
    std::fs::remove_file(&fifo).unwrap();
    run("mkfifo", &[fifo.to_str().unwrap()]);
    let hurry = [("X-Prometheus-Scrape-Timeout-Seconds", "0.6")];
    let answer = with(&daemon, "GET", "/metrics", &hurry);
    assert_eq!(answer.status, 200);
    // With more time, only the namespace whose read hangs would be late.
    assert!(late(&answer.text()) > 1.0, "{}", late(&answer.text()));
    assert_eq!(late(&daemon.scrape("/metrics")), 1.0, "the next one has time");
}

#[test]
fn idle_clients_hold_nobody_up() {
    let daemon = daemon();
    // Every one of them has a place, and there are more.
    let tcp: Vec<_> = (0..300).map(|_| daemon.tcp()).collect();
    let unix: Vec<_> = (0..100).map(|_| daemon.unix()).collect();
    serves(&daemon);
    drop((tcp, unix));
    serves(&daemon);
}

#[test]
fn half_a_request_and_garbage_hold_nobody_up() {
    let mut daemon = daemon();
    let mut tcp = daemon.tcp();
    tcp.write_all(b"GET /metr").unwrap();
    let mut unix = daemon.unix();
    unix.write_all(b"PATCH /v1/probes/tcp HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"ena").unwrap();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        &[b'a'; 100_000],
    ] {
        for mut stream in [Box::new(daemon.tcp()) as Box<dyn Stream>, Box::new(daemon.unix())] {
            // The daemon may close before it has read all of it.
            let _ = stream.write_all(garbage);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let text = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
        }
    }
    serves(&daemon);
    // The half-sent ones still work when the other half comes.
    tcp.write_all(b"ics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(read_answer(tcp, false).status, 200);
    assert_eq!(daemon.stop(), Some(0), "an open request does not keep it from stopping");
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A client with next to no room for an answer.
fn small_client(port: u16) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 2048).unwrap();
    rustix::net::connect(&socket, &SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    socket.into()
}

#[test]
fn clients_that_do_not_read_cost_little_and_hold_nobody_up() {
    let setup = Setup::fixture("healthy").pull_only().set("http", "max_connections = 64");
    let mut daemon = setup.start();
    serves(&daemon);
    let before = daemon.status().cost.resident_bytes;
    // 40 clients ask for 200 answers of 120 KiB each: together 1 GiB.
    let request = "GET /metrics?set=full HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
    let clients: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut client = small_client(daemon.port);
            client.write_all(request.as_bytes()).unwrap();
            client
        })
        .collect();
    for client in &clients {
        // The beginning of an answer is here: the daemon has begun to write to this one.
        client.set_read_timeout(Some(crate::support::LIMIT)).unwrap();
        assert_eq!(client.peek(&mut [0]).unwrap(), 1);
    }
    serves(&daemon);
    let grown = daemon.status().cost.resident_bytes.saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert_eq!(daemon.stop(), Some(0), "clients that do not read do not keep it from stopping");
    drop(clients);
}

#[test]
fn more_clients_than_places_wait_for_their_turn() {
    let setup = Setup::fixture("healthy").pull_only().set("http", "max_connections = 2");
    let daemon = setup.start();
    let (first, second) = (daemon.tcp(), daemon.tcp());
    let mut third = daemon.tcp();
    third.write_all(b"GET /-/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(daemon.status().node, "node-1", "control has places of its own");
    drop(first);
    assert_eq!(read_answer(third, false).status, 200);
    drop(second);
}

#[test]
fn several_addresses_and_none() {
    let daemon = Setup::fixture("healthy").pull_only().replace("http", "listen = []").start();
    assert_eq!((daemon.port, daemon.status().metrics_urls.len()), (0, 0));
    let daemon = Setup::fixture("healthy")
        .pull_only()
        .replace("http", "listen = [\"127.0.0.1:0\", \"127.0.0.2:0\"]")
        .start();
    let urls = daemon.status().metrics_urls;
    assert_eq!(urls.len(), 2);
    for url in urls {
        let address = url.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/metrics")).unwrap();
        assert_eq!(get(TcpStream::connect(address).unwrap(), "/metrics").status, 200, "{url}");
    }
}

#[test]
fn a_malformed_file_costs_its_own_numbers_only() {
    let daemon = Setup::fixture_copy("healthy").pull_only().start();
    let dir: &Dir = &daemon.setup.dir;
    for rubbish in
        ["", "Tcp: \u{0}\nTcp: x y z\n", "Tcp: RtoAlgorithm ActiveOpens\nTcp: 1 -5 99999999999999999999999\n"]
    {
        std::fs::write(dir.0.join("proc/100/net/snmp"), rubbish).unwrap();
        let text = daemon.scrape("/metrics?set=full");
        let opens = |name: &str| {
            let labels = format!("netskoop_tcp_active_opens_total{{kind=\"{name}");
            text.lines().filter(|line| line.starts_with(&labels)).count()
        };
        assert_eq!((opens("unit\",name=\"nginx"), opens("host")), (0, 1), "{rubbish:?}");
        let bytes = "netskoop_netdev_receive_bytes_total{kind=\"unit\",name=\"nginx.service\"}";
        assert!(
            series(&text, bytes).is_some(),
            "the other files of the namespace are still read: {rubbish:?}"
        );
        assert_eq!(series(&text, "netskoop_probe_success{probe=\"tcp\"}"), Some(0.0), "{rubbish:?}");
        assert_eq!(series(&text, "netskoop_probe_success{probe=\"softnet\"}"), Some(1.0), "{rubbish:?}");
    }
    until("the log says so", || daemon.log().iter().any(|line| line.contains("net/snmp")).then_some(()));
    let said = daemon.log().iter().filter(|line| line.contains("net/snmp")).count();
    assert!(said <= 3, "once per cause, not at every scrape: {said} lines");
}
