//! An event as it goes out: on the control socket, and later in files and logs.

use crate::EntityRef;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of [`Event`]; fields are only ever added under one number.
pub const EVENT_SCHEMA: u32 = 1;

/// One anomaly. Absent parts are left out of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// [`EVENT_SCHEMA`].
    pub schema: u32,
    /// Identifies one run of the daemon: `seq` starts again with a new one.
    pub boot: String,
    /// Position in this run's stream, without gaps.
    pub seq: u64,
    /// When it happened (RFC 3339, nanoseconds).
    pub time: String,
    /// Upper-case type name, e.g. `TCP_RESET_NOSOCK`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Probe that saw it.
    pub probe: String,
    /// Name of the node.
    pub node: String,
    /// Whose namespace it happened in; in the node's own, whose socket it was if that is a container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<EntityRef>,
    /// Name of the container whose socket it was, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Whose address is at the other end, when it is one of this node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<EntityRef>,
    /// Addresses of the packet: `src` sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Net>,
    /// Process, only where the kernel context makes it true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Values of this type of event: `reason`, `state`, `location`, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, Value>,
    /// Kernel stack, innermost first, `symbol+0xoffset`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<String>,
    /// How many events of this type and namespace the kernel-side rate limit withheld since the last one delivered.
    pub suppressed: u64,
}

/// A five-tuple, from the packet's point of view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// `tcp`, `udp`, `icmp`, `icmp6`, or the IP protocol's number.
    pub proto: String,
    /// Source address; `*` if it is not known, as that of a UDP socket's peer that is not connected.
    pub src: String,
    /// Source port; 0 where the protocol has none.
    pub sport: u16,
    /// Destination address, or `*` likewise.
    pub dst: String,
    /// Destination port; 0 where the protocol has none.
    pub dport: u16,
}

/// A process, by the node's own pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id (thread group id) in the node's pid namespace.
    pub pid: u32,
    /// Command name, at most 15 bytes.
    pub comm: String,
}

/// Value of an event field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A number.
    Number(u64),
    /// A number below zero.
    Signed(i64),
    /// A number that is not whole.
    Float(f64),
    /// A word.
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Bool(b) => b.fmt(f),
            Value::Number(n) => n.fmt(f),
            Value::Signed(n) => n.fmt(f),
            Value::Float(n) => n.fmt(f),
            Value::Text(t) => t.fmt(f),
        }
    }
}

/// A line of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventLine {
    /// The reader was too slow, or asked for what is no longer kept.
    Missed {
        /// How many events of the stream it did not get.
        missed: u64,
    },
    /// An event.
    Event(Box<Event>),
}
