//! Probe `netdev`: traffic and drops of the interfaces of each namespace.

use crate::declare::{Cost, Family, Only, OptionDecl, OptionType, Probe, is_interface_pattern};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native};
use crate::sources::columns::{DEV, DEV_SHOWN};

const FACTS: [Fact; 8] = [
    fact(
        "rx.bytes",
        "netskoop_netdev_receive_bytes_total",
        "Bytes received, over all interfaces of the namespace but lo (column bytes of Receive in /proc/net/dev).",
    )
    .old("kubeskoop_netdev_rxbytes", "inspector_pod_netdevrxbytes")
    .core(),
    fact(
        "tx.bytes",
        "netskoop_netdev_transmit_bytes_total",
        "Bytes sent, over all interfaces of the namespace but lo (column bytes of Transmit in /proc/net/dev).",
    )
    .old("kubeskoop_netdev_txbytes", "inspector_pod_netdevtxbytes")
    .core(),
    fact(
        "rx.packets",
        "netskoop_netdev_receive_packets_total",
        "Packets received, over all interfaces of the namespace but lo (column packets of Receive in /proc/net/dev).",
    )
    .old("kubeskoop_netdev_rxpackets", "inspector_pod_netdevrxpackets"),
    fact(
        "tx.packets",
        "netskoop_netdev_transmit_packets_total",
        "Packets sent, over all interfaces of the namespace but lo (column packets of Transmit in /proc/net/dev).",
    )
    .old("kubeskoop_netdev_txpackets", "inspector_pod_netdevtxpackets"),
    fact(
        "rx.errs",
        "netskoop_netdev_receive_errs_total",
        "Packets received with an error, over all interfaces of the namespace but lo (column errs of Receive in /proc/net/dev).",
    )
    .old("kubeskoop_netdev_rxerrors", "inspector_pod_netdevrxerrors")
    .alarm("packets arrive damaged"),
    fact(
        "tx.errs",
        "netskoop_netdev_transmit_errs_total",
        "Packets that could not be sent because of an error, over all interfaces of the namespace but lo (column errs of Transmit in /proc/net/dev).",
    )
    .old("kubeskoop_netdev_txerrors", "inspector_pod_netdevtxerrors")
    .alarm("the interface fails to send"),
    fact(
        "rx.drop",
        "netskoop_netdev_receive_drop_total",
        "Packets dropped on receipt by driver or interface, over all interfaces of the namespace but lo (column drop of Receive in /proc/net/dev).",
    )
    .old("kubeskoop_netdev_rxdropped", "inspector_pod_netdevrxdropped")
    .core()
    .alarm("packets are dropped on receipt"),
    fact(
        "tx.drop",
        "netskoop_netdev_transmit_drop_total",
        "Packets dropped on sending by driver or interface, over all interfaces of the namespace but lo (column drop of Transmit in /proc/net/dev).",
    )
    .old("kubeskoop_netdev_txdropped", "inspector_pod_netdevtxdropped")
    .core()
    .alarm("packets are dropped on sending"),
];

const MORE: [Fact; 8] = [
    fact(
        "rx.fifo",
        "netskoop_netdev_receive_fifo_total",
        "Overruns of the receive ring, over all interfaces of the namespace but lo (column fifo of Receive in /proc/net/dev).",
    )
    .alarm("the receive ring is too small"),
    fact(
        "rx.frame",
        "netskoop_netdev_receive_frame_total",
        "Packets received with a framing error, over all interfaces of the namespace but lo (column frame of Receive in /proc/net/dev).",
    ),
    fact(
        "rx.compressed",
        "netskoop_netdev_receive_compressed_total",
        "Compressed packets received, over all interfaces of the namespace but lo (column compressed of Receive in /proc/net/dev).",
    ),
    fact(
        "rx.multicast",
        "netskoop_netdev_receive_multicast_total",
        "Multicast packets received, over all interfaces of the namespace but lo (column multicast of Receive in /proc/net/dev).",
    ),
    fact(
        "tx.fifo",
        "netskoop_netdev_transmit_fifo_total",
        "Underruns of the transmit ring, over all interfaces of the namespace but lo (column fifo of Transmit in /proc/net/dev).",
    ),
    fact(
        "tx.colls",
        "netskoop_netdev_transmit_colls_total",
        "Collisions on sending, over all interfaces of the namespace but lo (column colls of Transmit in /proc/net/dev).",
    ),
    fact(
        "tx.carrier",
        "netskoop_netdev_transmit_carrier_total",
        "Packets that could not be sent for want of a carrier, over all interfaces of the namespace but lo (column carrier of Transmit in /proc/net/dev).",
    )
    .alarm("the link is down or bad"),
    fact(
        "tx.compressed",
        "netskoop_netdev_transmit_compressed_total",
        "Compressed packets sent, over all interfaces of the namespace but lo (column compressed of Transmit in /proc/net/dev).",
    ),
];

static CELLS: [Cells; 8] = cells(&DEV, &FACTS);
static MORE_CELLS: [Cells; 8] = cells(&DEV, &MORE);

const DEVICE: [Fact; 16] = [
    fact(
        "rx.bytes",
        "netskoop_netdev_device_receive_bytes_total",
        "Bytes received, by interface (column bytes of Receive in /proc/net/dev).",
    )
    .core(),
    fact(
        "tx.bytes",
        "netskoop_netdev_device_transmit_bytes_total",
        "Bytes sent, by interface (column bytes of Transmit in /proc/net/dev).",
    )
    .core(),
    fact(
        "rx.packets",
        "netskoop_netdev_device_receive_packets_total",
        "Packets received, by interface (column packets of Receive in /proc/net/dev).",
    )
    .core(),
    fact(
        "tx.packets",
        "netskoop_netdev_device_transmit_packets_total",
        "Packets sent, by interface (column packets of Transmit in /proc/net/dev).",
    )
    .core(),
    fact(
        "rx.errs",
        "netskoop_netdev_device_receive_errs_total",
        "Packets received with an error, by interface (column errs of Receive in /proc/net/dev).",
    )
    .core()
    .alarm("packets arrive damaged"),
    fact(
        "tx.errs",
        "netskoop_netdev_device_transmit_errs_total",
        "Packets that could not be sent because of an error, by interface (column errs of Transmit in /proc/net/dev).",
    )
    .core()
    .alarm("the interface fails to send"),
    fact(
        "rx.drop",
        "netskoop_netdev_device_receive_drop_total",
        "Packets dropped on receipt by driver or interface, by interface (column drop of Receive in /proc/net/dev).",
    )
    .core()
    .alarm("packets are dropped on receipt"),
    fact(
        "tx.drop",
        "netskoop_netdev_device_transmit_drop_total",
        "Packets dropped on sending by driver or interface, by interface (column drop of Transmit in /proc/net/dev).",
    )
    .core()
    .alarm("packets are dropped on sending"),
    fact(
        "rx.fifo",
        "netskoop_netdev_device_receive_fifo_total",
        "Overruns of the receive ring, by interface (column fifo of Receive in /proc/net/dev).",
    )
    .core()
    .alarm("the receive ring is too small"),
    fact(
        "rx.frame",
        "netskoop_netdev_device_receive_frame_total",
        "Packets received with a framing error, by interface (column frame of Receive in /proc/net/dev).",
    )
    .core(),
    fact(
        "rx.compressed",
        "netskoop_netdev_device_receive_compressed_total",
        "Compressed packets received, by interface (column compressed of Receive in /proc/net/dev).",
    )
    .core(),
    fact(
        "rx.multicast",
        "netskoop_netdev_device_receive_multicast_total",
        "Multicast packets received, by interface (column multicast of Receive in /proc/net/dev).",
    )
    .core(),
    fact(
        "tx.fifo",
        "netskoop_netdev_device_transmit_fifo_total",
        "Underruns of the transmit ring, by interface (column fifo of Transmit in /proc/net/dev).",
    )
    .core(),
    fact(
        "tx.colls",
        "netskoop_netdev_device_transmit_colls_total",
        "Collisions on sending, by interface (column colls of Transmit in /proc/net/dev).",
    )
    .core(),
    fact(
        "tx.carrier",
        "netskoop_netdev_device_transmit_carrier_total",
        "Packets that could not be sent for want of a carrier, by interface (column carrier of Transmit in /proc/net/dev).",
    )
    .core()
    .alarm("the link is down or bad"),
    fact(
        "tx.compressed",
        "netskoop_netdev_device_transmit_compressed_total",
        "Compressed packets sent, by interface (column compressed of Transmit in /proc/net/dev).",
    )
    .core(),
];

static DEVICE_CELLS: [Cells; 16] = cells(&DEV_SHOWN, &DEVICE);

/// Sums over the interfaces of a namespace. `lo` is left out, as the older systems did.
const fn sums<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].fold().only(Only { key: 0, values: &["lo"], include: false });
        i += 1;
    }
    families
}

/// One series per interface, when asked for.
const fn split<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].keys(&[("device", 0)]).option("per_interface");
        i += 1;
    }
    families
}

static NATIVE: [Family; 8] = sums(native(&DEV, &FACTS, &CELLS));
static NATIVE_MORE: [Family; 8] = sums(native(&DEV, &MORE, &MORE_CELLS));
static SPLIT: [Family; 16] = split(native(&DEV_SHOWN, &DEVICE, &DEVICE_CELLS));
static KUBESKOOP: [Family; 8] = sums(kubeskoop(&DEV, &FACTS));
static INSPECTOR: [Family; 8] = sums(inspector(&DEV, &FACTS));

/// The probe.
pub static PROBE: Probe = Probe {
    name: "netdev",
    aliases: &[],
    summary: "Bytes, packets, errors and drops of the interfaces of each namespace.",
    when: "Always: daily traffic, jitter, loss in a driver.",
    finds: "Drops and errors of interfaces, which show as jitter or failed handshakes.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/dev.",
    default_on: true,
    section: None,
    options: &[
        OptionDecl {
            name: "per_interface",
            kind: OptionType::Bool { default: false },
            help: "Shows each interface on its own under netskoop_netdev_device_*, at most 64 per namespace; the rest is device other.",
        },
        OptionDecl {
            name: "interfaces",
            kind: OptionType::List {
                default: &["*"],
                max: 64,
                what: "an interface name or a pattern with *",
                check: is_interface_pattern,
            },
            help: "Which interfaces per_interface shows; lo only if it is named here.",
        },
    ],
    families: &[&NATIVE, &NATIVE_MORE, &SPLIT, &KUBESKOOP, &INSPECTOR],
    events: &[],
    hooks: None,
};
