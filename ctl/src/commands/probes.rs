//! `netskoopctl probes list|show|enable|disable`.

use super::Context;
use crate::args::{Format, Lasting, ProbesAction};
use crate::client::{Document, encode};
use crate::error::{Error, Exit};
use crate::output::{Screen, report};
use crate::table::Table;
use crate::text::{Line, Style, nanos, span, thousands};
use netskoop_api::{OptionInfo, ProbeChanged, ProbeInfo, ProbePatch, ProbeState, StateName};
use std::collections::BTreeMap;

/// Columns of the words on the left of `probes show`.
const LABEL: usize = 12;

/// Runs one of the actions.
pub(crate) async fn run(context: &mut Context<'_, '_>, action: Option<ProbesAction>) -> Result<(), Error> {
    match action.unwrap_or(ProbesAction::List) {
        ProbesAction::List => {
            let names = |probes: &Vec<ProbeInfo>| probes.iter().map(|probe| probe.name.clone()).collect();
            context.show("/v1/probes", Some(names), |probes, screen| list(probes, screen)).await
        }
        ProbesAction::Show { name } => {
            let names = |probe: &ProbeInfo| vec![probe.name.clone()];
            context.show(&path(&name), Some(names), show).await
        }
        ProbesAction::Enable { names, lasting, set } => {
            change(context, &names, &patch(true, lasting, set)?).await
        }
        ProbesAction::Disable { names, lasting } => {
            change(context, &names, &patch(false, lasting, Vec::new())?).await
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/probes/{}", encode(name))
}

fn patch(enabled: bool, lasting: Lasting, set: Vec<(String, String)>) -> Result<ProbePatch, Error> {
    let mut options = BTreeMap::new();
    for (key, value) in set {
        if options.insert(key.clone(), value).is_some() {
            return Err(Error::Usage(format!("option '{key}' is set twice")));
        }
    }
    Ok(ProbePatch { enabled: Some(enabled), options, lease: lasting.lease, runtime: lasting.runtime })
}

/// Changes one probe after the other. One that cannot be changed does not keep the others from it; the exit code is
/// that of the first failure.
async fn change(context: &mut Context<'_, '_>, names: &[String], patch: &ProbePatch) -> Result<(), Error> {
    context.refuse_names()?;
    let mut failure = None;
    for name in names {
        let changed = match context.client.patch(&path(name), patch).await {
            Ok(document) => say_change(context, &document, patch.enabled == Some(true)),
            Err(error) => Err(error),
        };
        match changed {
            Ok(exit) => failure = failure.or((exit != Exit::Success).then_some(exit)),
            // Without the daemon the others need not be tried, and without a reader nobody wants to know.
            Err(error @ (Error::Unreachable { .. } | Error::Permission { .. } | Error::BrokenPipe)) => {
                return Err(error);
            }
            Err(error) => {
                context.stdout.flush()?;
                report(&error, context.stderr);
                failure = failure.or(Some(error.exit()));
            }
        }
    }
    failure.map_or(Ok(()), |exit| Err(Error::Reported(exit)))
}

/// Says what the daemon did. A probe that is wanted now and does not work is a failure, although the wish is noted.
fn say_change(context: &mut Context<'_, '_>, document: &Document, wanted: bool) -> Result<Exit, Error> {
    let changed: ProbeChanged = document.parse()?;
    if context.format == Format::Json {
        context.stdout.document(&document.call, &document.bytes)?;
    } else {
        context.stdout.text(&changed.message)?;
    }
    let state = &changed.probe.state;
    if !wanted || !matches!(state.state, StateName::Failed | StateName::NotAvailable) {
        return Ok(Exit::Success);
    }
    context.stdout.flush()?;
    let why = state.reason.as_deref().unwrap_or("the daemon does not say why");
    let text = format!("netskoopctl: {} is {}: {why}", changed.probe.name, state.state.as_str());
    context.stderr.notice(&text.into());
    Ok(Exit::Failure)
}

/// The screen of `probes list`.
fn list(probes: &[ProbeInfo], screen: &mut Screen<'_>) -> Result<(), Error> {
    let mut table = Table::new(&["NAME", "STATE", "COST", "VIA", "NOW", "CPU", "SUMMARY"]);
    for probe in probes {
        table.row([
            probe.name.as_str().into(),
            state(&probe.state),
            probe.cost.as_str().into(),
            probe.state.via.as_deref().unwrap_or("-").into(),
            now(&probe.state).into(),
            share(&probe.state).into(),
            summary(probe),
        ]);
    }
    table.render(screen)
}

/// `on  9m57s`: the state, and the rest of a lease.
fn state(state: &ProbeState) -> Line {
    let style = match state.state {
        StateName::On => Style::Good,
        StateName::Off => Style::Plain,
        StateName::Starting | StateName::Paused => Style::Warn,
        StateName::Failed => Style::Bad,
        StateName::NotAvailable => Style::Dim,
    };
    let line = Line::new().styled(style, state.state.as_str());
    match state.lease_seconds {
        Some(seconds) => line.plain(&format!("  {}", span(seconds).replace(' ', ""))),
        None => line,
    }
}

/// The measured cost: of a program each time it runs, or of a collection.
fn now(state: &ProbeState) -> String {
    match (state.event_ns, state.last_collection_ns) {
        (Some(ns), _) => format!("{}/run", nanos(ns)),
        (None, Some(ns)) => format!("{}/read", nanos(ns)),
        (None, None) => "-".into(),
    }
}

/// What its programs took of a CPU when they were looked at.
fn share(state: &ProbeState) -> String {
    state.bpf_cpu_ratio.map_or_else(|| "-".into(), |ratio| format!("{:.2}%", ratio * 100.0))
}

/// Why it does not work matters more than what it would do.
fn summary(probe: &ProbeInfo) -> Line {
    match (&probe.state.reason, probe.state.state) {
        (Some(reason), StateName::On | StateName::Starting | StateName::Off) => {
            Line::from(probe.summary.as_str()).styled(Style::Dim, &format!(" ({reason})"))
        }
        (Some(reason), StateName::Paused) => Line::new().styled(Style::Warn, reason),
        (Some(reason), StateName::Failed) => Line::new().styled(Style::Bad, reason),
        (Some(reason), StateName::NotAvailable) => Line::new().styled(Style::Dim, reason),
        (None, _) => probe.summary.as_str().into(),
    }
}

/// The screen of `probes show`.
fn show(probe: &ProbeInfo, screen: &mut Screen<'_>) -> Result<(), Error> {
    screen.line(&Line::new().styled(Style::Bold, &probe.name).plain(&format!("   {}", probe.summary)))?;
    let mut rows =
        vec![("State", state(&probe.state).plain(&format!("   decided by {}", probe.state.decided_by)))];
    if let Some(reason) = &probe.state.reason {
        let bad = matches!(probe.state.state, StateName::Failed | StateName::NotAvailable);
        rows.push(("Reason", Line::new().styled(if bad { Style::Bad } else { Style::Warn }, reason)));
    }
    rows.push(("When", probe.when.as_str().into()));
    rows.push(("Finds", probe.finds.as_str().into()));
    rows.push(("Needs", probe.needs.as_str().into()));
    rows.push(("Cost", cost(probe).into()));
    if let Some(via) = &probe.state.via {
        rows.push(("Via", format!("{via}{}", programs(&probe.state)).into()));
    }
    rows.push(("Default", if probe.default_on { "on" } else { "off" }.into()));
    if !probe.aliases.is_empty() {
        rows.push(("Older names", probe.aliases.join(", ").into()));
    }
    if let Some(counts) = &probe.state.stream {
        rows.push(("Counts", stream(counts).into()));
    }
    for (label, line) in rows {
        screen.line(&Line::new().pad(2).styled(Style::Bold, label).pad(2 + LABEL).join(line))?;
    }
    options(probe, screen)?;
    metrics(probe, screen)?;
    events(probe, screen)
}

fn cost(probe: &ProbeInfo) -> String {
    let mut text = probe.cost.clone();
    if let Some(ns) = probe.state.last_collection_ns {
        text += &format!(", {} CPU per collection", nanos(ns));
    }
    if let Some(ns) = probe.state.event_ns {
        text += &format!(", {} per run of its programs", nanos(ns));
    }
    if let Some(ratio) = probe.state.bpf_cpu_ratio {
        text += &format!(", {:.2} % of a CPU there", ratio * 100.0);
    }
    text
}

fn programs(state: &ProbeState) -> String {
    let ids: Vec<String> = state.programs.iter().map(u32::to_string).collect();
    match ids.len() {
        0 => String::new(),
        1 => format!(", program {}", ids.concat()),
        _ => format!(", programs {}", ids.join(" ")),
    }
}

fn stream(counts: &netskoop_api::StreamCounts) -> String {
    let parts = [
        (counts.seen, "seen", true),
        (counts.submitted, "submitted", true),
        (counts.suppressed, "suppressed", true),
        (counts.filtered, "filtered", false),
        (counts.ring_full, "lost (ring buffer full)", false),
        (counts.missed, "lost (hook busy)", false),
        (counts.map_full, "not counted or followed (BPF map full)", false),
    ];
    let shown = parts.iter().filter(|(n, _, always)| *always || *n > 0);
    shown.map(|(n, what, _)| format!("{} {what}", thousands(*n))).collect::<Vec<_>>().join(", ")
}

fn section(title: &str, table: &Table, screen: &mut Screen<'_>) -> Result<(), Error> {
    screen.text("")?;
    screen.line(&Line::new().styled(Style::Bold, title))?;
    table.render(screen)
}

fn options(probe: &ProbeInfo, screen: &mut Screen<'_>) -> Result<(), Error> {
    if probe.options.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "VALUE", "DEFAULT", "TYPE", "RANGE", "MEANING"]).indented(2);
    for option in &probe.options {
        let style = if option.value == option.default { Style::Plain } else { Style::Warn };
        table.row([
            option.name.as_str().into(),
            Line::new().styled(style, &or_dash(&option.value.to_string())),
            or_dash(&option.default.to_string()).into(),
            option.kind.as_str().into(),
            or_dash(&option.range).into(),
            option.help.as_str().into(),
        ]);
    }
    section("Options", &table, screen)?;
    probe.options.iter().try_for_each(|option| words(option, screen))
}

/// The words that an option can have on this kernel, as many on a line as fit.
fn words(option: &OptionInfo, screen: &mut Screen<'_>) -> Result<(), Error> {
    const WIDTH: usize = 100;
    if option.words.is_empty() {
        return Ok(());
    }
    screen.text("")?;
    screen.line(&Line::new().styled(Style::Bold, &format!("Words of {} on this kernel", option.name)))?;
    let mut line = String::new();
    for word in &option.words {
        if !line.is_empty() && line.len() + word.len() > WIDTH {
            screen.text(&std::mem::take(&mut line))?;
        }
        line += if line.is_empty() { "  " } else { " " };
        line += word;
    }
    screen.text(&line)
}

fn metrics(probe: &ProbeInfo, screen: &mut Screen<'_>) -> Result<(), Error> {
    if probe.metrics.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "NAMES", "TYPE", "SET", "LABELS", "MEANING"]).indented(2);
    for metric in &probe.metrics {
        table.row([
            metric.name.as_str().into(),
            metric.names.as_str().into(),
            metric.kind.as_str().into(),
            if metric.core { "core" } else { "full" }.into(),
            or_dash(&metric.labels.join(",")).into(),
            metric.help.as_str().into(),
        ]);
    }
    section("Metrics", &table, screen)
}

fn events(probe: &ProbeInfo, screen: &mut Screen<'_>) -> Result<(), Error> {
    if probe.events.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["TYPE", "OLDER NAMES", "FIELDS", "MEANING"]).indented(2);
    for event in &probe.events {
        table.row([
            event.name.as_str().into(),
            or_dash(&event.aliases.join(",")).into(),
            or_dash(&event.fields.join(",")).into(),
            event.help.as_str().into(),
        ]);
    }
    section("Events", &table, screen)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::testing::{PLAIN, ctl, rendered};
    use super::*;
    use crate::fake::{Daemon, json};
    use netskoop_api::{EventInfo, MetricInfo, OptionValue, StreamCounts};

    /// A probe without particulars.
    pub(crate) fn probe(name: &str, state: StateName) -> ProbeInfo {
        ProbeInfo {
            name: name.into(),
            aliases: Vec::new(),
            summary: format!("what {name} does"),
            when: "a connection breaks".into(),
            finds: "who broke it".into(),
            cost: "low".into(),
            needs: "BTF tracepoints".into(),
            default_on: true,
            options: Vec::new(),
            metrics: Vec::new(),
            events: Vec::new(),
            state: ProbeState {
                state,
                reason: None,
                via: None,
                decided_by: "default".into(),
                lease_seconds: None,
                last_collection_ns: None,
                event_ns: None,
                bpf_cpu_ratio: None,
                stream: None,
                programs: Vec::new(),
            },
        }
    }

    fn changed(state: StateName, reason: Option<&str>) -> String {
        let mut probe = probe("tcpreset", state);
        probe.state.reason = reason.map(str::to_owned);
        let changed = ProbeChanged { changed: true, message: "tcpreset is on for 10m".into(), probe };
        serde_json::to_string(&changed).unwrap()
    }

    #[test]
    fn the_list_explains_each_state() {
        let mut tcp = probe("tcp", StateName::On);
        tcp.state.via = Some("procfs".into());
        tcp.state.last_collection_ns = Some(300_000);
        let mut latency = probe("kernellatency", StateName::On);
        latency.state.via = Some("fentry".into());
        latency.state.event_ns = Some(410);
        latency.state.bpf_cpu_ratio = Some(0.0123);
        latency.state.lease_seconds = Some(597);
        let mut missing = probe("virtcmdlatency", StateName::NotAvailable);
        missing.state.reason = Some("needs kprobes".into());
        let mut paused = probe("softirq", StateName::Paused);
        paused.state.reason = Some("switched off for 10 minutes".into());
        let probes = [tcp, latency, probe("socketlatency", StateName::Off), paused, missing];
        let expected = "\
NAME            STATE      COST  VIA     NOW          CPU    SUMMARY
tcp             on         low   procfs  0.3 ms/read  -      what tcp does
kernellatency   on  9m57s  low   fentry  410 ns/run   1.23%  what kernellatency does
socketlatency   off        low   -       -            -      what socketlatency does
softirq         paused     low   -       -            -      switched off for 10 minutes
virtcmdlatency  n/a        low   -       -            -      needs kprobes
";
        assert_eq!(rendered(PLAIN, |screen| list(&probes, screen)), expected);
    }

    #[test]
    fn show_tells_everything() {
        let mut probe = probe("tcpreset", StateName::On);
        probe.aliases = vec!["tcpresets".into()];
        probe.state.via = Some("tp_btf".into());
        probe.state.programs = vec![41, 42];
        probe.state.stream = Some(StreamCounts {
            seen: 9,
            submitted: 7,
            suppressed: 2,
            filtered: 5,
            ..StreamCounts::default()
        });
        probe.options = vec![OptionInfo {
            name: "stack".into(),
            kind: "bool".into(),
            range: String::new(),
            default: OptionValue::Bool(false),
            value: OptionValue::Bool(true),
            help: "Record the kernel stack".into(),
            words: ["A", "B"].map(|letter| letter.repeat(60)).to_vec(),
        }];
        probe.metrics = vec![MetricInfo {
            name: "netskoop_tcpreset_sent_total".into(),
            names: "netskoop".into(),
            kind: "counter".into(),
            labels: vec!["cause".into()],
            core: true,
            help: "Resets sent".into(),
        }];
        probe.events = vec![EventInfo {
            name: "TCP_RESET_NOSOCK".into(),
            aliases: Vec::new(),
            fields: vec!["reason".into(), "state".into()],
            help: "No socket".into(),
        }];
        let expected = "\
tcpreset   what tcpreset does
  State       on   decided by default
  When        a connection breaks
  Finds       who broke it
  Needs       BTF tracepoints
  Cost        low
  Via         tp_btf, programs 41 42
  Default     on
  Older names tcpresets
  Counts      9 seen, 7 submitted, 2 suppressed, 5 filtered

Options
  NAME   VALUE  DEFAULT  TYPE  RANGE  MEANING
  stack  true   false    bool  -      Record the kernel stack

Words of stack on this kernel
  AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
  BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB

Metrics
  NAME                          NAMES     TYPE     SET   LABELS  MEANING
  netskoop_tcpreset_sent_total  netskoop  counter  core  cause   Resets sent

Events
  TYPE              OLDER NAMES  FIELDS        MEANING
  TCP_RESET_NOSOCK  -            reason,state  No socket
";
        assert_eq!(rendered(PLAIN, |screen| show(&probe, screen)), expected);
    }

    #[test]
    fn enabling_sends_what_was_named_and_says_what_was_done() {
        let daemon = Daemon::answering(json(200, &changed(StateName::On, None)));
        let outcome = ctl(&daemon, "probes enable a/b --for 10m -s stack=true --set list=x,y");
        assert_eq!((outcome.code, outcome.out.as_str()), (0, "tcpreset is on for 10m\n"));
        let request = daemon.request();
        assert!(request.starts_with("PATCH /v1/probes/a%2Fb HTTP/1.1\r\n"), "{request}");
        let body = request.split("\r\n\r\n").nth(1).unwrap();
        assert_eq!(
            body,
            r#"{"enabled":true,"options":{"list":"x,y","stack":"true"},"for":"10m","runtime":false}"#
        );
        assert_eq!(ctl(&daemon, "probes enable a -s x=1 -s x=2").code, 2);
        assert_eq!(ctl(&daemon, "probes disable a -o name").code, 2);
    }

    #[test]
    fn one_failure_does_not_hinder_the_others() {
        let refusal = r#"{"error":{"code":"no_such_probe","message":"no probe 'x'. Did you mean 'y'?"}}"#;
        let daemon = Daemon::scripted(vec![json(404, refusal), json(200, &changed(StateName::On, None))]);
        let outcome = ctl(&daemon, "probes enable x tcpreset");
        assert_eq!(outcome.code, 4);
        assert_eq!(outcome.err, "netskoopctl: no probe 'x'. Did you mean 'y'?\n");
        assert_eq!(outcome.out, "tcpreset is on for 10m\n");
    }

    #[test]
    fn a_probe_that_does_not_work_is_a_failure() {
        let daemon = Daemon::answering(json(200, &changed(StateName::Failed, Some("no BTF"))));
        let outcome = ctl(&daemon, "probes enable tcpreset");
        assert_eq!((outcome.code, outcome.err.as_str()), (1, "netskoopctl: tcpreset is failed: no BTF\n"));
        let refusal =
            r#"{"error":{"code":"not_available","message":"tcpreset needs BTF: this kernel has none"}}"#;
        let outcome = ctl(&Daemon::answering(json(409, refusal)), "probes enable tcpreset");
        assert_eq!(outcome.code, 1);
        assert!(outcome.err.starts_with("netskoopctl: tcpreset needs BTF: this kernel has none\n"));
    }

    #[test]
    fn names_are_for_scripts() {
        let probes = vec![probe("tcp", StateName::On), probe("udp", StateName::Off)];
        let daemon = Daemon::answering(json(200, &serde_json::to_string(&probes).unwrap()));
        assert_eq!(ctl(&daemon, "probes -o name").out, "tcp\nudp\n");
        assert_eq!(ctl(&daemon, "probes list --no-headers").out.lines().count(), 2);
    }
}
