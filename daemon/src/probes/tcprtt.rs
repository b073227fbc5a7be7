//! Round-trip times of TCP connections.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, HISTOGRAM, OptionDecl, OptionType, Points, Probe, TableDecl, histogram,
};
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::table::Table;
use netskoop_api::Value;
use netskoop_bpf::tcprtt::{TcprttSkel, TcprttSkelBuilder, types};
use std::mem::MaybeUninit;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tcprtt",
    aliases: &[],
    summary: "Smoothed round-trip times of TCP connections, as a histogram of each entity.",
    when: "A service is slow for some clients, and it is not known whether the network is.",
    finds: "A far or congested path, a queue that is too long, a peer that answers late.",
    cost: Cost::Medium,
    needs: "BTF tracepoints tcp_probe and inet_sock_set_state.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl {
            name: "interval",
            kind: OptionType::Duration {
                default: Duration::from_millis(100),
                min: Duration::from_millis(1),
                max: Duration::from_secs(60),
            },
            help: "Each connection is looked at so often while segments come, and at its end.",
        },
        OptionDecl::slow(
            Duration::from_millis(500),
            Duration::from_millis(1)..=Duration::from_secs(60),
            "A connection whose smoothed round-trip time is longer is an event.",
        ),
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[&[Family::native(
        "netskoop_tcprtt_smoothed_seconds",
        "Smoothed round-trip times of TCP connections that data came for, looked at every 100 ms (option interval) and at their \
         end.",
        &TABLE,
        Points::Histogram(&BUCKETS),
    )
    .decimals(6)
    .core()]],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl = TableDecl { name: "tcprtt", keys: &[], columns: &HISTOGRAM, node: false };

static EVENTS: [EventDecl; 1] = [EventDecl {
    name: "TCP_RTT_SLOW",
    aliases: &[],
    fields: &["srtt_ns", "min_rtt_ns"],
    help: "The smoothed round-trip time of a connection is longer than the option slow; min_rtt_ns is the shortest one measured \
           lately.",
}];

/// 128 and 512 microseconds, 2, 8, 33, 131 and 524 milliseconds, 2 seconds.
static BUCKETS: [Bucket; 8] = histogram::microseconds([6, 8, 10, 12, 14, 16, 18, 20]);

fn run(session: Session) -> Result<(), Refused> {
    session.tracepoint("tcp_probe")?;
    session.tracepoint("inet_sock_set_state")?;
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(TcprttSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
    }
    session.run(open, apply, "tp_btf", &["counters"])
}

fn apply(skel: &mut TcprttSkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.interval_ns = settings.nanoseconds("interval");
    options.slow_us = settings.nanoseconds("slow") / 1000;
    options.stack = settings.bool("stack").into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::tcprtt_event>(bytes)?;
    let mut fields = vec![("srtt_ns", Value::Number(u64::from(event.srtt_us) * 1000))];
    // All ones stand for nothing measured.
    if event.min_us < u32::MAX {
        fields.push(("min_rtt_ns", Value::Number(u64::from(event.min_us) * 1000)));
    }
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(&EVENTS[0], tuple, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_histograms(&[], table);
}
