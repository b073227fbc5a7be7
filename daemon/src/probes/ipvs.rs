//! Probe `ipvs`: virtual services of the kernel's load balancer, as kube-proxy uses it in IPVS mode.

use crate::declare::{Cost, Family, Only, OptionDecl, OptionType, Probe, Scope};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native, one};
use crate::sources::ipvs::{IPVS, IPVS_DESTINATIONS, IPVS_SERVICES};

const FACTS: [Fact; 5] = [
    fact(
        "conns",
        "netskoop_ipvs_connections_total",
        "Connections that virtual services of the namespace took (Conns of /proc/net/ip_vs_stats).",
    )
    .old("kubeskoop_ipvs_connections", "inspector_pod_ipvsconnections")
    .core(),
    fact(
        "inpkts",
        "netskoop_ipvs_incoming_packets_total",
        "Packets from clients to virtual services of the namespace (Incoming Packets of /proc/net/ip_vs_stats).",
    )
    .old("kubeskoop_ipvs_incomingpackets", "inspector_pod_ipvsincomingpackets")
    .core(),
    fact(
        "outpkts",
        "netskoop_ipvs_outgoing_packets_total",
        "Packets from virtual services of the namespace to clients (Outgoing Packets of /proc/net/ip_vs_stats).",
    )
    .old("kubeskoop_ipvs_outgoingpackets", "inspector_pod_ipvsoutgoingpackets")
    .core(),
    fact(
        "inbytes",
        "netskoop_ipvs_incoming_bytes_total",
        "Bytes from clients to virtual services of the namespace (Incoming Bytes of /proc/net/ip_vs_stats).",
    )
    .old("kubeskoop_ipvs_incomingbytes", "inspector_pod_ipvsincomingbytes"),
    fact(
        "outbytes",
        "netskoop_ipvs_outgoing_bytes_total",
        "Bytes from virtual services of the namespace to clients (Outgoing Bytes of /proc/net/ip_vs_stats).",
    )
    .old("kubeskoop_ipvs_outgoingbytes", "inspector_pod_ipvsoutgoingbytes"),
];

const SERVICES: [Fact; 5] = [
    fact(
        "conns",
        "netskoop_ipvs_service_connections_total",
        "Connections that the virtual service took (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "inpkts",
        "netskoop_ipvs_service_incoming_packets_total",
        "Packets from clients to the virtual service (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "outpkts",
        "netskoop_ipvs_service_outgoing_packets_total",
        "Packets from the virtual service to clients (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "inbytes",
        "netskoop_ipvs_service_incoming_bytes_total",
        "Bytes from clients to the virtual service (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "outbytes",
        "netskoop_ipvs_service_outgoing_bytes_total",
        "Bytes from the virtual service to clients (IPVS over generic netlink).",
    )
    .core(),
];

const DESTINATIONS: [Fact; 9] = [
    fact(
        "weight",
        "netskoop_ipvs_destination_weight",
        "Weight of the server behind the virtual service; 0 takes no new connections (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "active",
        "netskoop_ipvs_destination_active_connections",
        "Established connections of the virtual service to the server (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "inactive",
        "netskoop_ipvs_destination_inactive_connections",
        "Connections of the virtual service to the server that begin or have ended (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "persistent",
        "netskoop_ipvs_destination_persistent_clients",
        "Clients that the virtual service always sends to the server (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "conns",
        "netskoop_ipvs_destination_connections_total",
        "Connections that the virtual service gave to the server (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "inpkts",
        "netskoop_ipvs_destination_incoming_packets_total",
        "Packets from clients that the virtual service gave to the server (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "outpkts",
        "netskoop_ipvs_destination_outgoing_packets_total",
        "Packets from the server to clients of the virtual service (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "inbytes",
        "netskoop_ipvs_destination_incoming_bytes_total",
        "Bytes from clients that the virtual service gave to the server (IPVS over generic netlink).",
    )
    .core(),
    fact(
        "outbytes",
        "netskoop_ipvs_destination_outgoing_bytes_total",
        "Bytes from the server to clients of the virtual service (IPVS over generic netlink).",
    )
    .core(),
];

const fn by_option<const N: usize>(
    mut families: [Family; N],
    keys: &'static [(&'static str, usize)],
    option: &'static str,
) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].keys(keys).option(option);
        i += 1;
    }
    families
}

/// The older systems knew the host only.
const fn of_the_host<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].scope(Scope::HostOnly);
        i += 1;
    }
    families
}

/// The first exporter added up services.
const fn sum(name: &'static str, help: &'static str, key: &str, protocol: Option<Only>) -> Family {
    let family = Family::inspector(name, help, &IPVS_SERVICES, one(&IPVS_SERVICES, key)).fold();
    Family { only: protocol, ..family }.scope(Scope::HostOnly).option("services")
}

const TCP: Option<Only> = Some(Only { key: 0, values: &["tcp"], include: true });
const UDP: Option<Only> = Some(Only { key: 0, values: &["udp"], include: true });

static CELLS: [Cells; 5] = cells(&IPVS, &FACTS);
static SERVICE_CELLS: [Cells; 5] = cells(&IPVS_SERVICES, &SERVICES);
static DESTINATION_CELLS: [Cells; 9] = cells(&IPVS_DESTINATIONS, &DESTINATIONS);
static NATIVE: [Family; 5] = native(&IPVS, &FACTS, &CELLS);
static NATIVE_SERVICES: [Family; 5] = by_option(
    native(&IPVS_SERVICES, &SERVICES, &SERVICE_CELLS),
    &[("protocol", 0), ("service", 1), ("scheduler", 2)],
    "services",
);
static NATIVE_DESTINATIONS: [Family; 9] = by_option(
    native(&IPVS_DESTINATIONS, &DESTINATIONS, &DESTINATION_CELLS),
    &[("protocol", 0), ("service", 1), ("destination", 2)],
    "destinations",
);
static KUBESKOOP: [Family; 5] = of_the_host(kubeskoop(&IPVS, &FACTS));
static INSPECTOR: [Family; 5] = of_the_host(inspector(&IPVS, &FACTS));
static SUMS: [Family; 11] = [
    sum("inspector_pod_ipvsservicecount", "Virtual services of the host.", "service", None),
    sum("inspector_pod_ipvsservicetcpconncount", "Connections of TCP services of the host.", "conns", TCP),
    sum("inspector_pod_ipvsservicetcpinpacketscount", "Packets to TCP services of the host.", "inpkts", TCP),
    sum(
        "inspector_pod_ipvsservicetcpoutpacketscount",
        "Packets from TCP services of the host.",
        "outpkts",
        TCP,
    ),
    sum("inspector_pod_ipvsservicetcpinbytescount", "Bytes to TCP services of the host.", "inbytes", TCP),
    sum("inspector_pod_ipvsservicetcpoutbytescount", "Bytes from TCP services of the host.", "outbytes", TCP),
    sum("inspector_pod_ipvsserviceudpconncount", "Connections of UDP services of the host.", "conns", UDP),
    sum("inspector_pod_ipvsserviceudpinpacketscount", "Packets to UDP services of the host.", "inpkts", UDP),
    sum(
        "inspector_pod_ipvsserviceudpoutpacketscount",
        "Packets from UDP services of the host.",
        "outpkts",
        UDP,
    ),
    sum("inspector_pod_ipvsserviceudpinbytescount", "Bytes to UDP services of the host.", "inbytes", UDP),
    sum("inspector_pod_ipvsserviceudpoutbytescount", "Bytes from UDP services of the host.", "outbytes", UDP),
];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "ipvs",
    aliases: &["ip_vs"],
    summary: "Connections, packets and bytes of IPVS, the kernel's load balancer; by option of each service and server.",
    when: "When kube-proxy runs in IPVS mode, or the node is a load balancer, and services answer unevenly or not at all.",
    finds: "Services without servers, servers that get no connections, connections that pile up on one of them.",
    cost: Cost::Medium,
    needs: "The module ip_vs, which the daemon does not load.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl {
            name: "services",
            kind: OptionType::Bool { default: false },
            help: "Shows each virtual service, at most 2048 of a namespace.",
        },
        OptionDecl {
            name: "destinations",
            kind: OptionType::Bool { default: false },
            help: "Shows each server behind each virtual service, at most 8192 of a namespace; one question to the kernel for each service.",
        },
    ],
    families: &[&NATIVE, &NATIVE_SERVICES, &NATIVE_DESTINATIONS, &KUBESKOOP, &INSPECTOR, &SUMS],
    events: &[],
    hooks: None,
};
