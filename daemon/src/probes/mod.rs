//! All probes. A new one is one file here (and one `.bpf.c` if it has hooks) and one line below.

use crate::declare::Probe;

pub mod packetloss;
pub mod tcpreset;

/// Every probe, in the order in which they are listed.
pub static PROBES: &[&Probe] = &[&tcpreset::PROBE, &packetloss::PROBE];
