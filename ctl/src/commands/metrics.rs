//! `netskoopctl metrics ENTITY`: values, and with `-w` rates.

use super::{Context, Interrupt};
use crate::args::{Format, MetricsArgs};
use crate::client::encode;
use crate::error::Error;
use crate::output::{Look, Screen};
use crate::table::Table;
use crate::text::{Line, Style, counted, number};
use crate::time::Clock;
use netskoop_api::{EntityMetrics, Kind, MetricValue};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often `-w` looks.
const EVERY: Duration = Duration::from_secs(1);

/// For so many readings a value that changed stays among the changing ones, so that rows do not jump each second.
const WARM: u64 = 5;

/// Column at which the right part of the heading begins, if the terminal has room.
const RIGHT: usize = 57;

/// Name and labels: what tells two values of an entity apart.
type Key = (String, String);

/// Shows values once, or again and again.
pub(crate) async fn run(context: &mut Context<'_, '_>, args: &MetricsArgs) -> Result<(), Error> {
    let path = format!("/v1/metrics?entity={}", encode(&args.entity));
    if args.watch {
        return watch(context, &path, args.all).await;
    }
    let clock = context.clock.clone();
    context.show(&path, Some(names), |metrics, screen| once(metrics, args.all, &clock, screen)).await
}

/// Names of the metrics in the daemon's order, each once.
fn names(metrics: &EntityMetrics) -> Vec<String> {
    let mut seen = HashSet::new();
    let first = metrics.values.iter().filter(|value| seen.insert(value.metric.as_str()));
    first.map(|value| value.metric.clone()).collect()
}

/// Reads every second until the user has seen enough.
async fn watch(context: &mut Context<'_, '_>, path: &str, all: bool) -> Result<(), Error> {
    context.refuse_names()?;
    let interrupt = Interrupt::new()?;
    let mut history = History::default();
    let result = tokio::select! {
        result = readings(context, path, all, &mut history) => result,
        () = interrupt.wait() => {
            context.stderr.after_interrupt();
            Ok(())
        }
    };
    if result.is_ok() {
        let changed = counted(history.changed.len() as u64, "value");
        context.stderr.notice(&format!("{}, {changed} changed", counted(history.readings, "reading")).into());
    }
    result
}

async fn readings(
    context: &mut Context<'_, '_>,
    path: &str,
    all: bool,
    history: &mut History,
) -> Result<(), Error> {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let document = context.client.get(path).await?;
        if context.format == Format::Json {
            context.stdout.json_line(&document.call, &document.bytes)?;
            context.stdout.flush()?;
            history.readings += 1;
            continue;
        }
        let metrics: EntityMetrics = document.parse()?;
        let first = history.readings == 0;
        history.take(&metrics);
        context.stdout.measure();
        let lines = history.lines(&metrics, all, &context.clock, context.stdout.look());
        context.stdout.redraw(&lines, first)?;
    }
}

/// The screen without rates.
fn once(metrics: &EntityMetrics, all: bool, clock: &Clock, screen: &mut Screen<'_>) -> Result<(), Error> {
    let (mut rows, zeros): (Vec<_>, Vec<_>) = metrics.values.iter().partition(|value| value.value != 0.0);
    let hidden = if all { 0 } else { zeros.len() };
    if all {
        rows.extend(zeros);
    }
    let mut table = Table::new(&["", ">", ""]).indented(2);
    for value in rows {
        // A counter has grown if it is not 0; of a gauge that says nothing.
        let has_grown = value.kind == "counter" && value.value != 0.0;
        let alarm = value.alarm.as_deref().filter(|_| has_grown);
        table.row([
            label(value),
            number(value.value).into(),
            Line::new().styled(Style::Dim, alarm.unwrap_or("")),
        ]);
    }
    let titled = screen.look().headers;
    if titled {
        screen.line(&heading(metrics, &clock.coarse(&metrics.time), screen.look()))?;
    }
    table.render(screen)?;
    if titled && hidden > 0 {
        let verb = if hidden == 1 { "is" } else { "are" };
        let text = format!("  {} {verb} zero; -a shows all", counted(hidden as u64, "value"));
        screen.line(&Line::new().styled(Style::Dim, &text))?;
    }
    Ok(())
}

/// `blue   netns 4026532377`, and on the right what is known of the reading.
fn heading(metrics: &EntityMetrics, right: &str, look: Look) -> Line {
    let entity = &metrics.entity;
    let kind = if entity.kind == Kind::Netns { String::new() } else { format!("{}, ", entity.kind.as_str()) };
    let line =
        Line::new().styled(Style::Bold, &entity.name).plain(&format!("   {kind}netns {}", entity.netns));
    let near = line.width() + 3;
    let width = Line::from(right).width();
    let far = look.size.map_or(RIGHT, |size| RIGHT.min(size.columns.saturating_sub(width)));
    let column = near.max(far);
    line.pad(column).styled(Style::Dim, right)
}

/// `tcp.active_opens`, with labels if it has some.
fn label(value: &MetricValue) -> Line {
    let line = Line::from(format!("{}.{}", value.probe, value.name));
    if value.labels.is_empty() { line } else { line.styled(Style::Dim, &format!("{{{}}}", value.labels)) }
}

/// What earlier readings said.
#[derive(Debug, Default)]
struct History {
    readings: u64,
    monotonic_ns: u64,
    last: HashMap<Key, f64>,
    /// Growth since the reading before: per second for counters, as such for gauges.
    growth: HashMap<Key, f64>,
    /// The reading at which a value changed last.
    changed: HashMap<Key, u64>,
}

impl History {
    /// Notes a reading. The daemon may hand out one reading twice; then nothing is new.
    fn take(&mut self, metrics: &EntityMetrics) {
        self.readings += 1;
        if self.readings > 1 && metrics.monotonic_ns == self.monotonic_ns {
            return;
        }
        // Time that runs backwards is that of another boot: there is nothing to compare with.
        let elapsed = metrics.monotonic_ns.checked_sub(self.monotonic_ns).map(|ns| ns as f64 / 1e9);
        self.monotonic_ns = metrics.monotonic_ns;
        let before = std::mem::take(&mut self.last);
        self.growth.clear();
        for value in &metrics.values {
            let key = key(value);
            if let (Some(old), Some(elapsed)) = (before.get(&key), elapsed) {
                self.compare(&key, value, *old, elapsed);
            }
            self.last.insert(key, value.value);
        }
    }

    fn compare(&mut self, key: &Key, value: &MetricValue, old: f64, elapsed: f64) {
        let difference = value.value - old;
        if difference != 0.0 {
            self.changed.insert(key.clone(), self.readings);
        }
        let counter = value.kind == "counter";
        // A counter that falls was reset; how much it has grown nobody knows.
        if !counter || difference >= 0.0 {
            self.growth.insert(key.clone(), if counter { difference / elapsed } else { difference });
        }
    }

    /// The screen: changing values first, and no more than the terminal holds.
    fn lines(&self, metrics: &EntityMetrics, all: bool, clock: &Clock, look: Look) -> Vec<Line> {
        let values = metrics.values.iter().map(|value| (key(value), value));
        let shown = values.filter(|(key, value)| all || value.value != 0.0 || self.is_warm(key));
        let (mut rows, cold): (Vec<_>, Vec<_>) = shown.partition(|(key, _)| self.is_warm(key));
        rows.extend(cold);
        let mut table = Table::new(&["", ">", ">", ""]).indented(2);
        for (key, value) in &rows {
            table.row(self.row(key, value));
        }
        let mut lines = Vec::new();
        if look.headers {
            let right = format!("every {} s, {}", EVERY.as_secs(), clock.coarse(&metrics.time));
            lines.push(heading(metrics, &right, look));
        }
        lines.extend(table.lines(look));
        fit(&mut lines, look);
        lines
    }

    fn is_warm(&self, key: &Key) -> bool {
        self.changed.get(key).is_some_and(|at| self.readings - at < WARM)
    }

    fn row(&self, key: &Key, value: &MetricValue) -> [Line; 4] {
        let growth = self.growth.get(key).copied();
        let alarm = value.alarm.as_deref().filter(|_| growth.is_some_and(|growth| growth > 0.0));
        let style = if alarm.is_some() { Style::Bad } else { Style::Plain };
        let rate = growth.map(|growth| format!("  {}", rate(growth, value.kind == "counter")));
        let note = alarm.map(|alarm| format!("◀ {alarm}")).unwrap_or_default();
        [
            label(value),
            number(value.value).into(),
            Line::new().styled(style, &rate.unwrap_or_default()),
            Line::new().styled(style, note.trim_end()),
        ]
    }
}

fn key(value: &MetricValue) -> Key {
    (value.metric.clone(), value.labels.clone())
}

/// `+37/s`, `+0.4/s`; of a gauge `+3`.
fn rate(growth: f64, counter: bool) -> String {
    let rounded = if growth.abs() < 10.0 { (growth * 10.0).round() / 10.0 } else { growth.round() };
    let unit = if counter { "/s" } else { "" };
    match rounded {
        // Something happened, and it must not look like nothing.
        0.0 if growth > 0.0 => format!("<0.1{unit}"),
        r if r < 0.0 => format!("{}{unit}", number(r)),
        r => format!("+{}{unit}", number(r)),
    }
}

/// Leaves out what the terminal has no room for, and says so.
fn fit(lines: &mut Vec<Line>, look: Look) {
    // The last line of the terminal is the cursor's.
    let Some(room) = look.size.map(|size| size.rows.saturating_sub(1).max(2)) else { return };
    if lines.len() > room {
        let hidden = lines.len() - (room - 1);
        lines.truncate(room - 1);
        lines.push(Line::new().styled(Style::Dim, &format!("  … {hidden} more")));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{PLAIN, ctl, rendered};
    use super::*;
    use crate::fake::{Daemon, json};
    use crate::output::Size;
    use jiff::{civil::date, tz::TimeZone};
    use netskoop_api::EntityRef;

    fn value(probe: &str, name: &str, value: f64, alarm: Option<&str>) -> MetricValue {
        MetricValue {
            probe: probe.into(),
            metric: format!("netskoop_{probe}_{name}_total"),
            name: name.into(),
            labels: String::new(),
            kind: "counter".into(),
            value,
            alarm: alarm.map(str::to_owned),
        }
    }

    fn reading(seconds: u64, numbers: [f64; 4]) -> EntityMetrics {
        let [opens, retrans, overflows, zero] = numbers;
        let mut gauge = value("sock", "inuse", retrans, Some("sockets leak"));
        gauge.kind = "gauge".into();
        gauge.labels = "proto=\"tcp\"".into();
        EntityMetrics {
            entity: EntityRef {
                kind: Kind::Netns,
                name: "blue".into(),
                namespace: None,
                pod: None,
                netns: 4_026_532_377,
            },
            time: "2026-11-20T12:01:06.5Z".into(),
            monotonic_ns: 1_000_000_000 * seconds,
            values: vec![
                value("tcp", "in_errs", zero, None),
                gauge,
                value("tcp", "active_opens", opens, None),
                value("tcpext", "listen_overflows", overflows, Some("accept queue full")),
            ],
        }
    }

    fn clock() -> Clock {
        Clock::fixed(TimeZone::UTC, date(2026, 11, 20))
    }

    fn shown(lines: &[Line]) -> String {
        rendered(PLAIN, |screen| lines.iter().try_for_each(|line| screen.line(line)))
    }

    #[test]
    fn what_is_not_zero_comes_first() {
        let metrics = reading(1, [1204.0, 12.0, 88.0, 0.0]);
        let few = "\
blue   netns 4026532377                                  12:01:06
  sock.inuse{proto=\"tcp\"}     12
  tcp.active_opens         1,204
  tcpext.listen_overflows     88  accept queue full
  1 value is zero; -a shows all
";
        assert_eq!(rendered(PLAIN, |screen| once(&metrics, false, &clock(), screen)), few);
        let all = rendered(PLAIN, |screen| once(&metrics, true, &clock(), screen));
        assert!(all.ends_with("  tcp.in_errs                  0\n"), "{all}");
        let bare = rendered(Look::default(), |screen| once(&metrics, false, &clock(), screen));
        assert_eq!(bare.lines().count(), 3, "{bare}");
    }

    #[test]
    fn what_changes_comes_first_with_its_rate() {
        let mut history = History::default();
        history.take(&reading(1, [1130.0, 12.0, 0.0, 0.0]));
        let metrics = reading(3, [1204.0, 12.0, 176.0, 0.0]);
        history.take(&metrics);
        let expected = "\
blue   netns 4026532377                                  every 1 s, 12:01:06
  tcp.active_opens         1,204    +37/s
  tcpext.listen_overflows    176    +88/s  ◀ accept queue full
  sock.inuse{proto=\"tcp\"}     12       +0
";
        assert_eq!(shown(&history.lines(&metrics, false, &clock(), PLAIN)), expected);
    }

    #[test]
    fn readings_may_repeat_reset_and_restart() {
        let mut history = History::default();
        let opens = key(&value("tcp", "active_opens", 0.0, None));
        history.take(&reading(1, [10.0; 4]));
        history.take(&reading(2, [15.0; 4]));
        history.take(&reading(2, [15.0; 4]));
        assert_eq!(history.growth.get(&opens), Some(&5.0));
        history.take(&reading(3, [2.0; 4]));
        assert_eq!(history.growth.get(&opens), None);
        assert_eq!(history.growth.len(), 1, "the gauge may fall");
        history.take(&reading(1, [3.0; 4]));
        assert!(history.growth.is_empty());
        assert_eq!(history.readings, 5);
    }

    #[test]
    fn a_value_that_changed_stays_in_front_for_a_while() {
        let mut history = History::default();
        let opens = key(&value("tcp", "active_opens", 0.0, None));
        history.take(&reading(1, [1.0; 4]));
        history.take(&reading(2, [2.0; 4]));
        for second in 3..3 + WARM {
            assert!(history.is_warm(&opens));
            history.take(&reading(second, [2.0; 4]));
        }
        assert!(!history.is_warm(&opens));
    }

    #[test]
    fn the_screen_is_never_higher_than_the_terminal() {
        let metrics = reading(1, [1.0; 4]);
        let look = Look { size: Some(Size { columns: 80, rows: 4 }), ..PLAIN };
        let lines = History::default().lines(&metrics, true, &clock(), look);
        assert_eq!(lines.len(), 3);
        assert!(shown(&lines).ends_with("\n  … 3 more\n"));
    }

    #[test]
    fn rates_are_short() {
        for (growth, text) in
            [(0.0, "+0/s"), (37.2, "+37/s"), (0.44, "+0.4/s"), (0.01, "<0.1/s"), (1500.6, "+1,501/s")]
        {
            assert_eq!(rate(growth, true), text);
        }
        assert_eq!(rate(-3.0, false), "-3");
    }

    #[test]
    fn watching_ends_with_the_daemons_answer() {
        let document = serde_json::to_string(&reading(1, [1.0, 2.0, 3.0, 0.0])).unwrap();
        let gone = r#"{"error":{"code":"no_such_entity","message":"no entity 'blue'"}}"#;
        let daemon = Daemon::scripted(vec![json(200, &document), json(404, gone)]);
        let outcome = ctl(&daemon, "metrics blue -w");
        assert_eq!(outcome.code, 4);
        assert!(outcome.out.contains("tcp.active_opens"), "{}", outcome.out);
        assert_eq!(ctl(&daemon, "metrics blue -w -o name").code, 2);
        let daemon = Daemon::scripted(vec![json(200, &document), json(404, gone)]);
        let outcome = ctl(&daemon, "metrics blue -w -o json");
        assert_eq!(outcome.out, format!("{document}\n"));
        let daemon = Daemon::answering(json(200, &document));
        assert_eq!(ctl(&daemon, "metrics a/b -o name").out.lines().count(), 4);
        assert!(daemon.request().starts_with("GET /v1/metrics?entity=a%2Fb "));
    }
}
