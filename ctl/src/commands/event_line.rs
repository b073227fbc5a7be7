//! One event as one line.

use crate::text::{Line, Style, nanos, thousands};
use crate::time::Clock;
use netskoop_api::{Event, Net, Value};
use std::net::Ipv6Addr;

/// Spaces between type, entity, addresses and details.
const GAPS: [usize; 3] = [3, 2, 3];

/// A wider cell does not widen its column for all later lines.
const WIDEST: [usize; 3] = [28, 44, 56];

/// Lays out a stream of events. The columns' widths cannot be known in advance; they grow with what comes.
#[derive(Debug)]
pub(crate) struct EventLayout {
    clock: Clock,
    stack: bool,
    widths: [usize; 3],
}

impl EventLayout {
    /// A layout that shows times as `clock` does, and stacks if wanted.
    pub(crate) fn new(clock: Clock, stack: bool) -> Self {
        Self { clock, stack, widths: [16, 20, 34] }
    }

    /// Makes room for these types from the start, so that the first longer one does not shift what follows it.
    pub(crate) fn expect<'t>(&mut self, types: impl IntoIterator<Item = &'t str>) {
        let longest = types.into_iter().map(|kind| Line::from(kind).width()).max().unwrap_or(0);
        self.widths[0] = self.widths[0].max(longest.min(WIDEST[0]));
    }

    /// The event's line, and below it its stack. It is not cut to the terminal's width: what comes last, the reason, is
    /// what the reader wants most.
    pub(crate) fn lines(&mut self, event: &Event) -> Vec<Line> {
        let mut line = Line::new().styled(Style::Dim, &self.clock.precise(&event.time)).plain("  ");
        let cells = [
            Line::new().styled(Style::Bold, &event.kind),
            event.entity.as_ref().map_or("-", |entity| entity.name.as_str()).into(),
            event.net.as_ref().map_or_else(|| "-".to_owned(), addresses).into(),
        ];
        for (at, cell) in cells.into_iter().enumerate() {
            self.widths[at] = self.widths[at].max(cell.width().min(WIDEST[at]));
            let width = self.widths[at].max(cell.width());
            let end = line.width() + width + GAPS[at];
            line = line.join(cell).pad(end);
        }
        line = line.join(details(event));
        if event.suppressed > 0 {
            let text = format!("   (+{} like this)", thousands(event.suppressed));
            line = line.styled(Style::Dim, &text);
        }
        let stack = if self.stack { event.stack.as_slice() } else { &[] };
        let frames = stack.iter().map(|frame| Line::new().pad(14).styled(Style::Dim, frame));
        std::iter::once(line).chain(frames).collect()
    }
}

/// `UDP 10.98.1.2:53 > 10.98.1.1:40000`; TCP, the usual, goes without saying.
fn addresses(net: &Net) -> String {
    let proto = match net.proto.as_str() {
        "tcp" => String::new(),
        proto if proto.bytes().all(|byte| byte.is_ascii_digit()) => format!("proto {proto} "),
        proto => format!("{} ", proto.to_uppercase()),
    };
    format!("{proto}{} > {}", endpoint(&net.src, net.sport), endpoint(&net.dst, net.dport))
}

fn endpoint(address: &str, port: u16) -> String {
    match port {
        0 => address.to_owned(),
        // A port would look like one more group of an IPv6 address.
        _ if address.parse::<Ipv6Addr>().is_ok() => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
    }
}

/// Reason and place, state, everything else, process, container, peer.
fn details(event: &Event) -> Line {
    let field = |name: &str| event.fields.get(name).map(Value::to_string);
    let mut parts = Vec::new();
    match (field("reason"), field("location")) {
        (Some(reason), Some(location)) => {
            parts.push(Line::new().styled(Style::Warn, &reason).plain(&format!(" at {location}")));
        }
        (Some(reason), None) => parts.push(Line::new().styled(Style::Warn, &reason)),
        (None, Some(location)) => parts.push(format!("at {location}").into()),
        (None, None) => {}
    }
    parts.extend(field("state").map(Line::from));
    let others =
        event.fields.iter().filter(|(name, _)| !matches!(name.as_str(), "reason" | "location" | "state"));
    parts.extend(others.map(|(name, value)| other(name, value)));
    parts.extend(event.process.as_ref().map(|process| format!("{}[{}]", process.comm, process.pid).into()));
    parts.extend(event.container.as_ref().map(|container| format!("container={container}").into()));
    parts.extend(event.peer.as_ref().map(|peer| format!("peer={}", peer.name).into()));
    let mut line = Line::new();
    for (at, part) in parts.into_iter().enumerate() {
        line = if at > 0 { line.plain(", ") } else { line }.join(part);
    }
    line
}

/// A field without a place of its own. Names that end in `_ns` are durations; of *the* latency the name says nothing.
fn other(name: &str, value: &Value) -> Line {
    match (name, name.strip_suffix("_ns"), value) {
        ("latency_ns", _, Value::Number(ns)) => Line::new().styled(Style::Warn, &nanos(*ns)),
        (_, Some(name), Value::Number(ns)) => format!("{name}={}", nanos(*ns)).into(),
        _ => format!("{name}={value}").into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use jiff::{civil::date, tz::TimeZone};
    use netskoop_api::{EntityRef, Kind, Process};

    /// An event of the sketch without its particulars.
    pub(crate) fn event(time: &str, kind: &str, entity: &str, net: (&str, &str, u16, &str, u16)) -> Event {
        let (proto, src, sport, dst, dport) = net;
        let entity = EntityRef {
            kind: Kind::Pod,
            name: entity.into(),
            namespace: None,
            pod: None,
            netns: 4_026_532_201,
        };
        Event {
            schema: 1,
            boot: "c0ffee".into(),
            seq: 1,
            time: time.into(),
            kind: kind.into(),
            probe: "p".into(),
            node: "worker-7".into(),
            entity: Some(entity),
            container: None,
            peer: None,
            net: Some(Net { proto: proto.into(), src: src.into(), sport, dst: dst.into(), dport }),
            process: None,
            fields: [].into(),
            stack: Vec::new(),
            suppressed: 0,
        }
    }

    fn text(value: &str) -> Value {
        Value::Text(value.into())
    }

    fn shown(layout: &mut EventLayout, event: &Event) -> String {
        let line = |line: &Line| line.spans().iter().map(|(_, text)| text.as_str()).collect::<String>();
        layout.lines(event).iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn layout(stack: bool) -> EventLayout {
        EventLayout::new(Clock::fixed(TimeZone::UTC, date(2026, 11, 20)), stack)
    }

    #[test]
    fn lines_are_those_of_the_sketch() {
        let mut layout = layout(false);
        let tuple = ("tcp", "10.1.17.113", 6443, "10.1.17.9", 44226);
        let mut one =
            event("2026-11-20T12:01:03.402118044Z", "TCP_RESET_NOSOCK", "kube-system/coredns-abc", tuple);
        one.fields = [("reason".into(), text("NO_SOCKET"))].into();
        assert_eq!(
            shown(&mut layout, &one),
            "12:01:03.402  TCP_RESET_NOSOCK   kube-system/coredns-abc  10.1.17.113:6443 > 10.1.17.9:44226   NO_SOCKET"
        );
        let tuple = ("udp", "10.98.1.2", 53, "10.98.1.1", 40000);
        let mut two = event("2026-11-20T12:01:04.117Z", "PACKET_DROP", "blue", tuple);
        two.fields =
            [("reason".into(), text("SOCKET_RCVBUFF")), ("location".into(), text("udp_queue_rcv_one_skb"))]
                .into();
        two.suppressed = 212;
        assert_eq!(
            shown(&mut layout, &two),
            "12:01:04.117  PACKET_DROP        blue                     UDP 10.98.1.2:53 > 10.98.1.1:40000   \
             SOCKET_RCVBUFF at udp_queue_rcv_one_skb   (+212 like this)"
        );
        let tuple = ("tcp", "10.1.17.9", 44226, "10.1.17.8", 6379);
        let mut three = event("2026-11-20T12:01:05.020Z", "SOCKET_READ_SLOW", "shop/redis-0", tuple);
        three.fields = [("latency_ns".into(), Value::Number(182_000_000))].into();
        three.process = Some(Process { pid: 812, comm: "redis-server".into() });
        assert_eq!(
            shown(&mut layout, &three),
            "12:01:05.020  SOCKET_READ_SLOW   shop/redis-0             10.1.17.9:44226 > 10.1.17.8:6379     \
             182 ms, redis-server[812]"
        );
    }

    #[test]
    fn expected_types_do_not_shift_the_columns() {
        let mut layout = layout(false);
        layout.expect(["X", "CONNECTION_CLOSED_EARLY", "PACKET_DROP"]);
        let tuple = ("tcp", "a", 1, "b", 2);
        let columns = ["PACKET_DROP", "CONNECTION_CLOSED_EARLY", "X"].map(|kind| {
            shown(&mut layout, &event("2026-11-20T12:01:03Z", kind, "blue", tuple)).find("blue").unwrap()
        });
        assert_eq!(columns, [40; 3]);
        layout.expect(["Y".repeat(300).as_str()]);
        assert_eq!(layout.widths[0], WIDEST[0]);
    }

    #[test]
    fn details_come_in_a_fixed_order() {
        let mut event = event("2026-11-20T12:01:05Z", "X", "blue", ("tcp", "::1", 80, "fe80::2", 0));
        event.fields = [
            ("aaa".into(), Value::Number(3)),
            ("wait_ns".into(), Value::Number(410)),
            ("state".into(), text("ESTABLISHED")),
            ("reason".into(), text("R")),
        ]
        .into();
        event.process = Some(Process { pid: 1, comm: "init".into() });
        event.container = Some("app".into());
        event.peer = event.entity.clone();
        let text = shown(&mut layout(false), &event);
        assert!(text.contains("[::1]:80 > fe80::2 "), "{text}");
        assert!(
            text.ends_with("   R, ESTABLISHED, aaa=3, wait=410 ns, init[1], container=app, peer=blue"),
            "{text}"
        );
    }

    #[test]
    fn protocols_and_missing_parts() {
        let net =
            |proto: &str| Net { proto: proto.into(), src: "a".into(), sport: 0, dst: "b".into(), dport: 0 };
        assert_eq!(addresses(&net("icmp6")), "ICMP6 a > b");
        assert_eq!(addresses(&net("132")), "proto 132 a > b");
        let mut event = event("x", "T", "blue", ("tcp", "a", 1, "b", 2));
        (event.net, event.entity) = (None, None);
        assert_eq!(shown(&mut layout(false), &event), format!("x  {:19}{:22}-{}", "T", "-", " ".repeat(36)));
    }

    #[test]
    fn stacks_are_shown_when_wanted() {
        let mut event = event("2026-11-20T12:01:05Z", "X", "blue", ("tcp", "a", 1, "b", 2));
        event.stack = vec!["tcp_v4_send_reset+0x12".into(), "tcp_v4_rcv+0xa3".into()];
        assert_eq!(shown(&mut layout(false), &event).lines().count(), 1);
        let text = shown(&mut layout(true), &event);
        assert!(
            text.ends_with("\n              tcp_v4_send_reset+0x12\n              tcp_v4_rcv+0xa3"),
            "{text}"
        );
    }

    #[test]
    fn hostile_names_do_no_harm_and_long_ones_no_lasting_harm() {
        let mut layout = layout(false);
        let mut event = event("2026-11-20T12:01:05Z", "X", &"n".repeat(300), ("tcp", "a", 1, "b", 2));
        event.process = Some(Process { pid: 1, comm: "a\x1b[2J\n".into() });
        let text = shown(&mut layout, &event);
        assert!(text.ends_with("a\\u{1b}[2J\\n[1]") && !text.contains('\x1b'), "{text}");
        assert_eq!(layout.widths, [16, 44, 34]);
    }
}
