//! `netskoopctl status`: one glance at the daemon.

use super::Context;
use crate::error::Error;
use crate::output::Screen;
use crate::table::Table;
use crate::text::{Line, Style, bytes, counted, memory, nanos, roughly, span, thousands};
use netskoop_api::{CollectionStatus, EventStatus, KindCount, ProbeCounts, SourceStatus, Status};

/// Columns of the words on the left.
const LABEL: usize = 12;

/// Fetches and shows it.
pub(crate) async fn run(context: &mut Context<'_, '_>) -> Result<(), Error> {
    context.show("/v1/status", None, render).await
}

/// The screen.
fn render(status: &Status, screen: &mut Screen<'_>) -> Result<(), Error> {
    screen.line(&Line::new().styled(Style::Bold, &format!("netskoopd {}", status.version)).plain(
        &format!(
            "   up {}   node {}   kernel {}, {}",
            span(status.uptime_seconds),
            status.node,
            status.kernel,
            status.btf
        ),
    ))?;
    screen.line(&labelled("Entities", entities(&status.entities)))?;
    for (at, line) in sources(&status.sources, screen).into_iter().enumerate() {
        screen.line(&labelled(if at == 0 { "Sources" } else { "" }, line))?;
    }
    screen.line(&labelled("Probes", probes(&status.probes)))?;
    screen.line(&labelled("Collection", collection(&status.collection)))?;
    screen.line(&labelled("Events", events(&status.events)))?;
    screen.line(&labelled(
        "Cost",
        Line::from(format!(
            "{:.2} % of a core, {}",
            status.cost.cpu_percent,
            memory(status.cost.resident_bytes)
        )),
    ))?;
    for (at, url) in status.metrics_urls.iter().enumerate() {
        screen.line(&labelled(if at == 0 { "Metrics" } else { "" }, url.as_str().into()))?;
    }
    troubles(status, screen)
}

/// What is not as it should be, at the end, where the eye rests.
fn troubles(status: &Status, screen: &mut Screen<'_>) -> Result<(), Error> {
    for wedged in &status.wedged {
        let text = format!("{}: {} for {}", wedged.source, wedged.subject, span(wedged.since_seconds));
        screen.line(&labelled("Stuck", Line::new().styled(Style::Bad, &text)))?;
    }
    for warning in &status.warnings {
        screen.line(&labelled("Warning", Line::new().styled(Style::Warn, warning)))?;
    }
    Ok(())
}

fn labelled(label: &str, text: Line) -> Line {
    Line::new().styled(Style::Bold, label).pad(LABEL).join(text)
}

/// `212   187 pods, 14 units, host      0 unknown`.
fn entities(kinds: &[KindCount]) -> Line {
    let total: u64 = kinds.iter().map(|kind| u64::from(kind.count)).sum();
    let unknown = kinds.iter().filter(|kind| kind.kind == "unknown").map(|kind| u64::from(kind.count)).sum();
    let known: Vec<String> =
        kinds.iter().filter(|kind| kind.kind != "unknown" && kind.count > 0).map(kind_count).collect();
    let style = if unknown == 0 { Style::Dim } else { Style::Warn };
    Line::from(format!("{}   {}      ", thousands(total), known.join(", ")))
        .styled(style, &format!("{} unknown", thousands(unknown)))
}

fn kind_count(kind: &KindCount) -> String {
    match kind.kind.as_str() {
        "host" => "host".to_owned(),
        "netns" => format!("{} netns", thousands(kind.count.into())),
        noun => counted(kind.count.into(), noun),
    }
}

/// One line per source, and one more where something went wrong that the state does not say.
fn sources(sources: &[SourceStatus], screen: &Screen<'_>) -> Vec<Line> {
    let mut table = Table::new(&["", "", "", ""]);
    for source in sources {
        let is = |word: &str| source.state.starts_with(word);
        let style = if is("failed") || is("lost") {
            Style::Bad
        } else if is("absent") || is("off") || is("idle") {
            Style::Dim
        } else {
            Style::Plain
        };
        let name = if style == Style::Dim { Style::Dim } else { Style::Plain };
        let last =
            source.last_event_seconds.map(|seconds| format!("last event {} ago", roughly(seconds as f64)));
        let named = if source.entities == 0 { String::new() } else { entities_named(source.entities) };
        table.row([
            Line::new().styled(name, &source.name),
            Line::new().styled(style, &source_state(source)),
            last.unwrap_or_default().into(),
            named.into(),
        ]);
    }
    // The label stands to the left of the table, which may therefore not use the whole width.
    let mut look = screen.look();
    if let Some(size) = &mut look.size {
        size.columns = size.columns.saturating_sub(LABEL);
    }
    let mut lines = Vec::new();
    for (line, source) in table.lines(look).into_iter().zip(sources) {
        lines.push(line);
        let error = source.last_error.as_ref().filter(|error| !source.state.contains(error.as_str()));
        let error =
            error.map(|error| Line::new().pad(2).styled(Style::Warn, &format!("last error: {error}")));
        lines.extend(error.map(|line| look.size.map_or(line.clone(), |size| line.truncate(size.columns))));
    }
    lines
}

/// `connected 3d to containerd 1.7.24`.
fn source_state(source: &SourceStatus) -> String {
    match (source.state.strip_prefix("connected"), source.connected_seconds) {
        (Some(what), Some(seconds)) => format!("connected {}{what}", span(seconds)),
        _ => source.state.clone(),
    }
}

fn entities_named(count: u32) -> String {
    if count == 1 { "1 entity".to_owned() } else { format!("{} entities", thousands(count.into())) }
}

/// `17 on, 9 off, 1 not available (virtcmdlatency)`.
fn probes(counts: &ProbeCounts) -> Line {
    let mut line = Line::from(format!("{} on, {} off", counts.on, counts.off));
    if counts.failed > 0 {
        line = line.plain(", ").styled(Style::Bad, &format!("{} failed", counts.failed));
    }
    if counts.paused > 0 {
        line = line.plain(", ").styled(Style::Warn, &format!("{} paused", counts.paused));
    }
    if !counts.not_available.is_empty() {
        let names = counts.not_available.join(", ");
        line = line.plain(&format!(", {} not available ({names})", counts.not_available.len()));
    }
    line
}

/// `1.2 s ago, 18 ms CPU, 31,204 series, 3.1 MB`.
fn collection(last: &CollectionStatus) -> Line {
    let Some(age) = last.age_seconds else { return "none yet: nobody has asked for metrics".into() };
    let mut line = Line::from(format!(
        "{} ago, {} CPU, {} series, {}",
        roughly(age),
        nanos(last.cpu_ns),
        thousands(last.series),
        bytes(last.bytes)
    ));
    if last.late > 0 {
        let text = format!("{} of {} namespaces late", last.late, last.namespaces);
        line = line.plain(", ").styled(Style::Warn, &text);
    }
    if last.over_budget > 0 {
        let text = format!("{} series beyond metrics.max_series left out", thousands(last.over_budget));
        line = line.plain(", ").styled(Style::Warn, &text);
    }
    line
}

/// `1,204 received, 31 suppressed, 0 lost`.
fn events(events: &EventStatus) -> Line {
    let kernel = &events.kernel;
    let lost = [kernel.ring_full, kernel.missed, events.malformed, events.overrun]
        .into_iter()
        .fold(0, u64::saturating_add);
    let mut line = Line::from(format!(
        "{} received, {} suppressed, ",
        thousands(events.received),
        thousands(kernel.suppressed)
    ));
    let filtered = kernel.filtered.saturating_add(events.filtered_by_entity);
    if filtered > 0 {
        line = line.plain(&format!("{} filtered, ", thousands(filtered)));
    }
    let style = if lost == 0 { Style::Plain } else { Style::Bad };
    line = line.styled(style, &format!("{} lost", thousands(lost)));
    let parts = [
        (kernel.ring_full, "ring buffer full"),
        (kernel.missed, "hook busy"),
        (events.malformed, "malformed"),
        (events.overrun, "daemon too slow"),
    ];
    let why: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{} {why}", thousands(*n))).collect();
    if !why.is_empty() {
        line = line.plain(&format!(" ({})", why.join(", ")));
    }
    if kernel.map_full > 0 {
        let text = format!("{} not counted or followed (BPF map full)", thousands(kernel.map_full));
        line = line.plain(", ").styled(Style::Bad, &text);
    }
    line = line.plain(&format!(
        "    {} kept, {}",
        thousands(events.kept),
        counted(events.followers.into(), "follower")
    ));
    if events.missed_by_followers > 0 {
        let text = format!("{} missed by followers", thousands(events.missed_by_followers));
        line = line.plain(", ").styled(Style::Warn, &text);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::testing::{PLAIN, ctl, rendered};
    use super::*;
    use crate::fake::{Daemon, json};
    use netskoop_api::{CostStatus, StreamCounts, WedgedRead};

    fn kind(kind: &str, count: u32) -> KindCount {
        KindCount { kind: kind.into(), count }
    }

    fn sample() -> Status {
        Status {
            version: "0.1.0".into(),
            boot: "c0ffee".into(),
            pid: 7,
            uptime_seconds: 273_600,
            node: "worker-7".into(),
            kernel: "6.1.0-56-amd64".into(),
            btf: "BTF built in".into(),
            metrics_urls: vec!["http://[::]:9102/metrics".into()],
            entities: vec![kind("host", 1), kind("pod", 187), kind("unit", 1), kind("netns", 6)],
            sources: vec![
                SourceStatus {
                    name: "processes".into(),
                    state: "watching".into(),
                    last_event_seconds: Some(2),
                    entities: 189,
                    ..SourceStatus::default()
                },
                SourceStatus {
                    name: "containerd".into(),
                    state: "connected to containerd 1.7.24".into(),
                    last_event_seconds: Some(3700),
                    entities: 1,
                    connected_seconds: Some(259_200),
                    last_error: Some("the event stream\x1b[31m ended".into()),
                    ..SourceStatus::default()
                },
                SourceStatus {
                    name: "docker".into(),
                    state: "absent: /run/docker.sock does not exist".into(),
                    ..SourceStatus::default()
                },
            ],
            probes: ProbeCounts {
                on: 17,
                off: 9,
                failed: 0,
                paused: 0,
                not_available: vec!["virtcmdlatency".into()],
            },
            collection: CollectionStatus {
                age_seconds: Some(1.2),
                cpu_ns: 18_000_000,
                series: 31_204,
                bytes: 3_100_000,
                ..CollectionStatus::default()
            },
            events: EventStatus {
                received: 1204,
                kept: 1204,
                kernel: StreamCounts { suppressed: 31, ..StreamCounts::default() },
                ..EventStatus::default()
            },
            cost: CostStatus { cpu_seconds: 1.0, cpu_percent: 0.21, resident_bytes: 14 << 20 },
            wedged: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn one_glance() {
        let expected = "\
netskoopd 0.1.0   up 3d 4h   node worker-7   kernel 6.1.0-56-amd64, BTF built in
Entities    195   host, 187 pods, 1 unit, 6 netns      0 unknown
Sources     processes   watching                                 last event 2 s ago  189 entities
            containerd  connected 3d to containerd 1.7.24        last event 1 h ago  1 entity
              last error: the event stream\\u{1b}[31m ended
            docker      absent: /run/docker.sock does not exist
Probes      17 on, 9 off, 1 not available (virtcmdlatency)
Collection  1.2 s ago, 18 ms CPU, 31,204 series, 3.1 MB
Events      1,204 received, 31 suppressed, 0 lost    1,204 kept, 0 followers
Cost        0.21 % of a core, 14 MiB
Metrics     http://[::]:9102/metrics
";
        assert_eq!(rendered(PLAIN, |screen| render(&sample(), screen)), expected);
    }

    #[test]
    fn a_source_that_fails_says_so_once_and_an_absent_one_is_dim() {
        let mut status = sample();
        status.sources[1].state = "failed: connection refused".into();
        status.sources[1].last_error = Some("connection refused".into());
        status.sources[1].connected_seconds = None;
        let look = crate::output::Look { colour: true, ..PLAIN };
        let text = rendered(look, |screen| render(&status, screen));
        assert!(text.contains("\x1b[31mfailed: connection refused\x1b[0m"), "{text}");
        assert!(!text.contains("last error"), "{text}");
        assert!(text.contains("\x1b[2mdocker\x1b[0m") && text.contains("\x1b[2mabsent: "), "{text}");
    }

    /// Sources of a daemon before it told more of them.
    #[test]
    fn an_older_daemon_is_understood() {
        let old = r#"{"name":"processes","state":"watching","last_event_seconds":2,"entities":189}"#;
        let old: SourceStatus = serde_json::from_str(old).unwrap();
        assert_eq!(old, sample().sources[0]);
    }

    #[test]
    fn troubles_are_named() {
        let mut status = sample();
        status.events.kernel.ring_full = 3;
        status.events.malformed = 1;
        status.events.overrun = 2;
        status.events.missed_by_followers = 5;
        status.collection.late = 2;
        status.collection.namespaces = 212;
        status.warnings = vec!["no BTF\x1b[2J".into()];
        status.wedged = vec![WedgedRead {
            source: "procfs".into(),
            subject: "net/snmp of blue".into(),
            since_seconds: 75,
        }];
        let text = rendered(PLAIN, |screen| render(&status, screen));
        for part in [
            "6 lost (3 ring buffer full, 1 malformed, 2 daemon too slow)",
            "5 missed by followers",
            "2 of 212 namespaces late",
            "Stuck       procfs: net/snmp of blue for 1m 15s\n",
            "Warning     no BTF\\u{1b}[2J\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn json_is_the_daemons_document() {
        let daemon = Daemon::answering(json(200, r#"{"version":"9","new_field":1.50}"#));
        let outcome = ctl(&daemon, "status -o json");
        assert_eq!(
            (outcome.code, outcome.out.as_str()),
            (0, "{\n  \"version\": \"9\",\n  \"new_field\": 1.50\n}\n")
        );
        let outcome = ctl(&daemon, "status");
        assert_eq!(outcome.code, 1);
        assert!(
            outcome
                .err
                .starts_with("netskoopctl: cannot understand the answer to GET /v1/status: missing field"),
            "{}",
            outcome.err
        );
        assert_eq!(ctl(&daemon, "status -o name").code, 2);
    }
}
