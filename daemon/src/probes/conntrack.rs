//! Probe `conntrack`: how full the tables of tracked connections are, and what did not fit.

use crate::declare::{Cost, EventDecl, Family, OptionDecl, OptionType, Probe, Scope};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native, one};
use crate::filter;
use crate::sources::conntrack::{CONNTRACK, CONNTRACK_STATES, DIRECTIONS, TCP_STATES, WALK_LIMIT};

/// What the older systems had, too.
const FACTS: [Fact; 11] = [
    fact("entries", "netskoop_conntrack_entries", "Connections that the namespace tracks now (conntrack -C).")
        .old("kubeskoop_conntrack_entries", "inspector_pod_conntrackentries")
        .core(),
    fact(
        "max_entries",
        "netskoop_conntrack_max_entries",
        "Connections that a namespace may track; 0 means that there is no limit (net.netfilter.nf_conntrack_max, the same for all namespaces, while each is held to it alone).",
    )
    .old("kubeskoop_conntrack_maxentries", "inspector_pod_conntrackmaxentries"),
    fact(
        "found",
        "netskoop_conntrack_found_total",
        "Searches that found an entry by chance, as NAT looks for a free port (found of conntrack -S).",
    )
    .old("kubeskoop_conntrack_found", "inspector_pod_conntrackfound"),
    fact(
        "invalid",
        "netskoop_conntrack_invalid_total",
        "Packets that could not be tracked; rules see them in state INVALID (invalid of conntrack -S).",
    )
    .old("kubeskoop_conntrack_invalid", "inspector_pod_conntrackinvalid"),
    fact(
        "ignore",
        "netskoop_conntrack_ignored_total",
        "Packets that were tracked already or need no tracking (ignore of conntrack -S; kernels since 5.10 do not count it).",
    )
    .old("kubeskoop_conntrack_ignore", "inspector_pod_conntrackignore"),
    fact(
        "insert",
        "netskoop_conntrack_inserted_total",
        "Entries put into the table from user space (insert of conntrack -S; what packets put there is not counted by kernels of today).",
    )
    .old("kubeskoop_conntrack_insert", "inspector_pod_conntrackinsert"),
    fact(
        "insert_failed",
        "netskoop_conntrack_insert_failed_total",
        "Packets dropped because another packet had put the same connection into the table meanwhile (insert_failed of conntrack -S).",
    )
    .old("kubeskoop_conntrack_insertfailed", "inspector_pod_conntrackinsertfailed")
    .core()
    .alarm("packets race for an entry, as DNS queries from one socket do"),
    fact(
        "drop",
        "netskoop_conntrack_dropped_total",
        "Packets dropped because there was no room for a new connection, or because another packet was faster to put it into the table (drop of conntrack -S).",
    )
    .old("kubeskoop_conntrack_drop", "inspector_pod_conntrackdrop")
    .core()
    .alarm("net.netfilter.nf_conntrack_max is reached"),
    fact(
        "early_drop",
        "netskoop_conntrack_early_dropped_total",
        "Connections that were thrown out of a full table to make room for new ones (early_drop of conntrack -S).",
    )
    .old("kubeskoop_conntrack_earlydrop", "inspector_pod_conntrackearlydrop")
    .alarm("net.netfilter.nf_conntrack_max is reached"),
    fact(
        "error",
        "netskoop_conntrack_errors_total",
        "ICMP messages that belong to no connection, and packets too broken to be tracked (error of conntrack -S).",
    )
    .old("kubeskoop_conntrack_error", "inspector_pod_conntrackerror"),
    fact(
        "search_restart",
        "netskoop_conntrack_search_restarts_total",
        "Searches begun again because the table was changed meanwhile (search_restart of conntrack -S).",
    )
    .old("kubeskoop_conntrack_searchrestart", "inspector_pod_conntracksearchrestart"),
];

const MORE: [Fact; 2] = [
    fact(
        "clash_resolve",
        "netskoop_conntrack_clashes_resolved_total",
        "Packets that raced for an entry and went on all the same (clash_resolve of conntrack -S).",
    ),
    fact(
        "chain_toolong",
        "netskoop_conntrack_chain_too_long_total",
        "Connections that found no place because too many others hash to the same one (chaintoolong of conntrack -S, since 5.15).",
    )
    .alarm("the table has too few buckets, or somebody attacks it"),
];

static CELLS: [Cells; 11] = cells(&CONNTRACK, &FACTS);
static MORE_CELLS: [Cells; 2] = cells(&CONNTRACK, &MORE);
static NATIVE: [Family; 11] = native(&CONNTRACK, &FACTS, &CELLS);
static NATIVE_MORE: [Family; 2] = native(&CONNTRACK, &MORE, &MORE_CELLS);
static STATES: [Family; 1] = [Family::native(
    "netskoop_conntrack_entries_by_state",
    "Connections that the namespace tracks now, by protocol and state. What has no states is unreplied, replied (packets were seen both ways) or assured (kept when the table is full); absent where there are none, or more than the option walk_limit allows.",
    &CONNTRACK_STATES,
    one(&CONNTRACK_STATES, "entries"),
)
.keys(&[("protocol", 0), ("state", 1)])
.core()
.option("entries_by_state")];

/// The older systems knew the host only.
const fn of_the_host<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].scope(Scope::HostOnly);
        i += 1;
    }
    families
}

static KUBESKOOP: [Family; 11] = of_the_host(kubeskoop(&CONNTRACK, &FACTS));
static INSPECTOR: [Family; 11] = of_the_host(inspector(&CONNTRACK, &FACTS));

const FIELDS: &[&str] = &[
    "state",
    "status",
    "nat_src",
    "nat_sport",
    "nat_dst",
    "nat_dport",
    "packets",
    "bytes",
    "reply_packets",
    "reply_bytes",
];

static EVENTS: [EventDecl; 3] = [
    EventDecl {
        name: "CONNTRACK_NEW",
        aliases: &["ConntrackNew"],
        fields: FIELDS,
        help: "The first packet of a connection has come through. nat_src and nat_dst are there where its addresses or ports are translated: whom packets seem to come from, and whom they go to in truth.",
    },
    EventDecl {
        name: "CONNTRACK_UPDATE",
        aliases: &["ConntrackUpdate"],
        fields: FIELDS,
        help: "The state of a tracked connection has changed: somebody has answered, it is established, it ends. state is absent for TCP if something else has changed.",
    },
    EventDecl {
        name: "CONNTRACK_DESTROY",
        aliases: &["ConntrackDestroy"],
        fields: FIELDS,
        help: "A connection is not tracked any more; with packets and bytes both ways where they are counted (net.netfilter.nf_conntrack_acct).",
    },
];

fn is_type(word: &str) -> bool {
    matches!(word, "new" | "update" | "destroy")
}

fn is_state(word: &str) -> bool {
    TCP_STATES.contains(&word) || DIRECTIONS.contains(&word)
}

const fn list(
    name: &'static str,
    what: &'static str,
    check: fn(&str) -> bool,
    help: &'static str,
) -> OptionDecl {
    OptionDecl { name, kind: OptionType::List { default: &[], max: 64, what, check }, help }
}

/// The probe.
pub static PROBE: Probe = Probe {
    name: "conntrack",
    aliases: &["nf_conntrack"],
    summary: "Connection tracking in each namespace: entries, the limit, and packets lost to a full table or a race.",
    when: "When new connections fail or DNS answers take seconds, while established connections are fine.",
    finds: "A table that is full; DNS queries lost to a race (insert_failed); packets that firewall rules take for invalid.",
    cost: Cost::Low,
    needs: "The module nf_conntrack_netlink, which the daemon does not load; Linux 5.10 has all but chaintoolong.",
    default_on: true,
    section: None,
    options: &[
        OptionDecl {
            name: "entries_by_state",
            kind: OptionType::Bool { default: false },
            help: "Adds entries by protocol and state; each entry costs two microseconds per scrape.",
        },
        OptionDecl {
            name: "walk_limit",
            kind: OptionType::Integer { default: WALK_LIMIT as u64, min: 1, max: 10_000_000 },
            help: "Namespaces with more entries than this are left out of entries_by_state.",
        },
        OptionDecl {
            name: "events",
            kind: OptionType::Bool { default: false },
            help: "Tells of connections as they come, change and go, within events.rate. To tell which namespace it was, each is given a number (as in ip netns list-id), which it keeps until it ends. Where net.netfilter.nf_conntrack_events is 0 nothing comes; where it is 2, only connections begun since.",
        },
        list("event_types", "new, update or destroy", is_type, "Only these types of events; all if empty."),
        list(
            "event_protocols",
            filter::A_PROTOCOL,
            filter::is_protocol,
            "Only events of connections of these protocols; all if empty.",
        ),
        list(
            "event_states",
            "a state as in entries_by_state",
            is_state,
            "Only events that tell one of these states: a TCP state, or unreplied, replied or assured for other protocols; all if empty.",
        ),
        list(
            "event_entities",
            filter::AN_ENTITY,
            filter::is_entity,
            "Only events of these entities; all if empty. What happens in the node's own namespace is the host's here, even if a pod with hostNetwork does it.",
        ),
    ],
    families: &[&NATIVE, &NATIVE_MORE, &STATES, &KUBESKOOP, &INSPECTOR],
    events: &EVENTS,
    hooks: None,
};
