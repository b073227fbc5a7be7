//! `netskoopctl events`.

use super::event_line::EventLayout;
use super::{Context, Interrupt};
use crate::args::{EventsArgs, Format};
use crate::client::encode;
use crate::error::Error;
use crate::lines::Lines;
use crate::text::{Line, Style, counted, thousands};
use bytes::Bytes;
use netskoop_api::{ErrorBody, ErrorInfo, Event, EventLine, ProbeInfo};
use serde::de::IgnoredAny;
use std::time::Duration;

/// How often a silent stream looks whether anybody still reads it.
const LOOK: Duration = Duration::from_secs(1);

/// What came, for the last line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    events: u64,
    suppressed: u64,
    lost: u64,
    strange: u64,
}

impl Tally {
    /// `3 events, 212 suppressed, 0 lost`.
    fn line(&self) -> Line {
        let style = if self.lost == 0 { Style::Plain } else { Style::Bad };
        let line = Line::from(format!(
            "{}, {} suppressed, ",
            counted(self.events, "event"),
            thousands(self.suppressed)
        ))
        .styled(style, &format!("{} lost", thousands(self.lost)));
        match self.strange {
            0 => line,
            n => line.plain(&format!(", {} not understood", thousands(n))),
        }
    }
}

/// What a line of the stream says.
#[derive(Debug, PartialEq)]
enum Said {
    Event(Box<Event>),
    Missed(u64),
    Refused(ErrorInfo),
    Strange,
}

/// Shows events until the stream or the user ends it, then how many there were.
pub(crate) async fn run(context: &mut Context<'_, '_>, args: &EventsArgs) -> Result<(), Error> {
    context.refuse_names()?;
    let interrupt = Interrupt::new()?;
    let mut tally = Tally::default();
    let result = tokio::select! {
        result = pump(context, args, &mut tally) => result,
        () = interrupt.wait() => {
            context.stderr.after_interrupt();
            Ok(())
        }
    };
    let result = result.and(context.stdout.flush());
    // Without an answer there is nothing to sum up, and without a reader nobody to tell.
    let silent = matches!(result, Err(Error::BrokenPipe)) || (result.is_err() && tally == Tally::default());
    if !silent {
        context.stderr.notice(&tally.line());
    }
    result
}

/// The request. A live stream begins now unless something older is asked for.
fn path(args: &EventsArgs) -> String {
    let mut query = Vec::new();
    if args.follow {
        query.push("follow=1".to_owned());
    }
    match &args.since {
        Some(since) => query.push(format!("since={}", encode(since))),
        None if args.follow && args.limit.is_none() => query.push("since=0s".to_owned()),
        None => {}
    }
    query.extend(args.types.iter().map(|kind| format!("type={}", encode(kind))));
    query.extend(args.entity.iter().map(|entity| format!("entity={}", encode(entity))));
    query.extend(args.limit.map(|limit| format!("limit={limit}")));
    if query.is_empty() { "/v1/events".to_owned() } else { format!("/v1/events?{}", query.join("&")) }
}

/// Shows line after line. A live stream never ends by itself.
async fn pump(context: &mut Context<'_, '_>, args: &EventsArgs, tally: &mut Tally) -> Result<(), Error> {
    let path = path(args);
    let stream = context.client.stream(&path, args.follow);
    let (mut lines, types) = tokio::try_join!(stream, async { Ok(types(context).await) })?;
    let mut layout = EventLayout::new(context.clock.clone(), args.stack);
    layout.expect(types.iter().map(String::as_str));
    while let Some(line) = next(context, &mut lines, args.follow).await? {
        show(context, &mut layout, tally, lines.call(), &line)?;
        if !lines.has_more() {
            context.stdout.flush()?;
        }
    }
    if args.follow { Err(Error::StreamEnded) } else { Ok(()) }
}

/// The types that the daemon knows, for the width of their column; without an answer there are none.
async fn types(context: &Context<'_, '_>) -> Vec<String> {
    if context.format != Format::Table {
        return Vec::new();
    }
    let document = context.client.get("/v1/probes").await;
    let probes: Vec<ProbeInfo> = document.and_then(|document| document.parse()).unwrap_or_default();
    probes.into_iter().flat_map(|probe| probe.events).map(|event| event.name).collect()
}

/// The next line; while a live stream is silent, an eye is kept on the reader of the output.
async fn next(context: &Context<'_, '_>, lines: &mut Lines, follow: bool) -> Result<Option<Bytes>, Error> {
    loop {
        tokio::select! {
            line = lines.next() => return line,
            () = tokio::time::sleep(LOOK), if follow => {
                if context.stdout.reader_gone() {
                    return Err(Error::BrokenPipe);
                }
            }
        }
    }
}

fn show(
    context: &mut Context<'_, '_>,
    layout: &mut EventLayout,
    tally: &mut Tally,
    call: &str,
    line: &[u8],
) -> Result<(), Error> {
    let said = understand(call, line)?;
    if context.format == Format::Json {
        context.stdout.json_line(call, line)?;
    }
    match said {
        Said::Event(event) => {
            tally.events += 1;
            tally.suppressed = tally.suppressed.saturating_add(event.suppressed);
            if context.format == Format::Table {
                layout.lines(&event).iter().try_for_each(|line| context.stdout.line(line))?;
            }
        }
        Said::Missed(missed) => {
            tally.lost = tally.lost.saturating_add(missed);
            let text = format!("{} missed: read too slowly, or no longer kept", counted(missed, "event"));
            notice(context, &text)?;
        }
        Said::Strange => {
            tally.strange += 1;
            if tally.strange == 1 {
                notice(
                    context,
                    "a line of the stream is not understood: is netskoopd newer than netskoopctl?",
                )?;
            }
        }
        Said::Refused(info) => return Err(Error::Api { status: 500, info }),
    }
    Ok(())
}

/// Says something at its place in the stream.
fn notice(context: &mut Context<'_, '_>, text: &str) -> Result<(), Error> {
    context.stdout.flush()?;
    context.stderr.notice(&Line::new().styled(Style::Warn, &format!("-- {text}")));
    Ok(())
}

/// Reads a line. What is JSON and nothing known may be said by newer daemons; what is no JSON is a fault.
fn understand(call: &str, line: &[u8]) -> Result<Said, Error> {
    if let Ok(known) = serde_json::from_slice::<EventLine>(line) {
        return Ok(match known {
            EventLine::Missed { missed } => Said::Missed(missed),
            EventLine::Event(event) => Said::Event(event),
        });
    }
    if let Ok(ErrorBody { error }) = serde_json::from_slice(line) {
        return Ok(Said::Refused(error));
    }
    serde_json::from_slice::<IgnoredAny>(line)
        .map(|_| Said::Strange)
        .map_err(|error| Error::Undecodable { call: call.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::super::event_line::tests::event;
    use super::super::testing::ctl;
    use super::*;
    use crate::fake::{Daemon, chunked, json};
    use netskoop_api::{EventInfo, StateName};

    fn line(suppressed: u64) -> String {
        let tuple = ("tcp", "10.0.0.1", 1, "10.0.0.2", 2);
        let event =
            Event { suppressed, ..event("2026-11-20T12:01:03.402118044Z", "PACKET_DROP", "blue", tuple) };
        format!("{}\n", serde_json::to_string(&event).unwrap())
    }

    #[test]
    fn the_request_names_what_was_asked_for() {
        let args = EventsArgs {
            follow: true,
            since: Some("5m".into()),
            types: vec!["A".into(), "B&C".into()],
            entity: Some("kube-system/x".into()),
            limit: Some(3),
            stack: false,
        };
        assert_eq!(
            path(&args),
            "/v1/events?follow=1&since=5m&type=A&type=B%26C&entity=kube-system%2Fx&limit=3"
        );
        assert_eq!(path(&EventsArgs::default()), "/v1/events");
        let live = EventsArgs { follow: true, ..EventsArgs::default() };
        assert_eq!(path(&live), "/v1/events?follow=1&since=0s");
    }

    #[test]
    fn history_ends_with_its_sum() {
        let missed = "{\"missed\":12}\n";
        let daemon = Daemon::answering(chunked(&[&line(0), &line(212), missed, "\n", &line(0)]));
        let outcome = ctl(&daemon, "events --since 5m");
        assert_eq!((outcome.code, outcome.out.lines().count()), (0, 3));
        assert_eq!(
            outcome.err,
            "-- 12 events missed: read too slowly, or no longer kept\n3 events, 212 suppressed, 12 lost\n"
        );
        assert!(daemon.request().starts_with("GET /v1/events?since=5m "));
    }

    #[test]
    fn the_column_of_types_fits_all_that_the_daemon_knows() {
        let probe = |kind: &str| {
            let mut probe = super::super::probes::tests::probe("p", StateName::Off);
            let name = kind.to_owned();
            probe.events =
                vec![EventInfo { name, aliases: Vec::new(), fields: Vec::new(), help: "Happens".into() }];
            probe
        };
        let known = [probe("PACKET_DROP"), probe("CONNECTION_CLOSED_EARLY")];
        let known = serde_json::to_string(&known).unwrap();
        for (line_of_ctl, follow) in [("events", ""), ("events -f", "?follow=1&since=0s")] {
            let daemon = Daemon::scripted(vec![chunked(&[&line(0)]), json(200, &known)]);
            let outcome = ctl(&daemon, line_of_ctl);
            assert!(outcome.out.contains("  PACKET_DROP               blue  "), "{}", outcome.out);
            assert!(daemon.request().starts_with(&format!("GET /v1/events{follow} ")));
            assert!(daemon.request().starts_with("GET /v1/probes "));
        }
        let daemon = Daemon::scripted(vec![chunked(&[&line(0)]), json(500, "{}")]);
        let outcome = ctl(&daemon, "events");
        assert!(outcome.code == 0 && outcome.out.contains("  PACKET_DROP        blue  "), "{}", outcome.out);
    }

    #[test]
    fn json_lines_pass_unchanged() {
        let all = [line(0), "{\"missed\":1}\n".to_owned(), "{\"new\": 1.50}\n".to_owned()];
        let daemon = Daemon::answering(chunked(&[&all.concat()]));
        let outcome = ctl(&daemon, "events -o json");
        assert_eq!(outcome.out, all.concat().replace("{\"new\": 1.50}", "{\"new\":1.50}"));
        assert!(
            outcome.err.ends_with("1 event, 0 suppressed, 1 lost, 1 not understood\n"),
            "{}",
            outcome.err
        );
    }

    #[test]
    fn a_live_stream_that_ends_is_reported_after_the_sum() {
        let outcome = ctl(&Daemon::answering(chunked(&[&line(0)])), "events -f");
        assert_eq!(outcome.code, 3);
        assert_eq!(
            outcome.err,
            "1 event, 0 suppressed, 0 lost\nnetskoopctl: netskoopd ended the stream\n  \
             Was it stopped or restarted?  systemctl status netskoopd\n"
        );
    }

    #[test]
    fn garbage_and_refusals_are_errors() {
        let outcome = ctl(&Daemon::answering(chunked(&["not json\n"])), "events");
        assert_eq!(outcome.code, 1);
        assert!(outcome.err.starts_with("netskoopctl: cannot understand the answer to GET /v1/events: "));
        let refusal = r#"{"error":{"code":"bad_request","message":"no event type 'X'","hint":"try Y"}}"#;
        let outcome = ctl(&Daemon::answering(json(400, refusal)), "events --type X");
        assert_eq!((outcome.code, outcome.err.as_str()), (1, "netskoopctl: no event type 'X'\n  try Y\n"));
        let within = format!("{}{refusal}\n", line(0));
        let outcome = ctl(&Daemon::answering(chunked(&[&within])), "events");
        assert_eq!(outcome.code, 1);
        assert_eq!(ctl(&Daemon::stale(), "events").code, 3);
        assert_eq!(ctl(&Daemon::stale(), "events -o name").code, 2);
    }
}
