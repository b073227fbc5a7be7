//! The one place where bytes from the kernel become a structure.
#![allow(unsafe_code, reason = "reads structures that the kernel filled from bytes")]

use crate::{
    biolatency, cpu, dns, flow, io, kernellatency, listen, netanomaly, netiftxlat, netns, packetloss,
    socketlatency, softirq, tasklatency, tcpconnect, tcpreset, tcpretrans, tcprtt, tcptwrcv, virtcmdlatency,
};

/// Structures that any bytes are a valid value of.
///
/// # Safety
/// The type has `repr(C)` and consists of integers and arrays of integers only.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: generated from the C structure with `repr(C)`; its fields are integers and arrays of integers,
            // or other types of this list.
            unsafe impl Plain for $type {}
        )*
    };
}

plain!(
    biolatency::types::biolatency_event,
    biolatency::types::biolatency_key,
    cpu::types::usage,
    cpu::types::owner,
    dns::types::dns_event,
    dns::types::dns_key,
    flow::types::flow_total_key,
    flow::types::flow_traffic,
    flow::types::flow_traffic_key,
    io::types::usage,
    io::types::owner,
    listen::types::event_filter,
    listen::types::listen_event,
    listen::types::listen_key,
    kernellatency::types::event_filter,
    kernellatency::types::kernellatency_event,
    netanomaly::types::netanomaly_event,
    netanomaly::types::netanomaly_key,
    netiftxlat::types::event_filter,
    netiftxlat::types::netiftxlat_event,
    netiftxlat::types::netiftxlat_key,
    netns::types::event_head,
    netns::types::stats,
    netns::types::bucket_key,
    packetloss::types::event_filter,
    packetloss::types::packetloss_event,
    packetloss::types::packetloss_key,
    packetloss::types::packetloss_value,
    socketlatency::types::event_filter,
    socketlatency::types::socketlatency_event,
    socketlatency::types::socketlatency_key,
    socketlatency::types::socketlatency_value,
    softirq::types::softirq_event,
    softirq::types::softirq_key,
    softirq::types::softirq_value,
    tasklatency::types::tasklatency_event,
    tcpreset::types::event_filter,
    tcpreset::types::tcpreset_event,
    tcpreset::types::tcpreset_key,
    tcpconnect::types::histogram_key,
    tcpconnect::types::event_filter,
    tcpconnect::types::tcpconnect_event,
    tcpconnect::types::tcpconnect_key,
    tcprtt::types::event_filter,
    tcprtt::types::tcprtt_event,
    tcptwrcv::types::event_filter,
    tcptwrcv::types::tcptwrcv_event,
    tcptwrcv::types::tcptwrcv_key,
    tcpretrans::types::flow_key,
    tcpretrans::types::flow_value,
    tcpretrans::types::event_filter,
    tcpretrans::types::tcpretrans_event,
    tcpretrans::types::tcpretrans_key,
    tcpretrans::types::tcpretrans_value,
    virtcmdlatency::types::virtcmdlatency_event,
    virtcmdlatency::types::virtcmdlatency_key,
);

/// The structure that `bytes` begin with; `None` if they are too short.
pub fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: there are `size_of::<T>()` bytes to read, `read_unaligned` asks for no alignment, and `Plain` promises
    // that any bytes are a value.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A structure as that of another object: one header declares it, but each object has a type of its own for it.
pub fn same<A: Plain, B: Plain>(from: A) -> B {
    const { assert!(size_of::<A>() == size_of::<B>(), "the two are not one structure") };
    // SAFETY: the sizes are the same, neither has bytes that belong to no field, and `Plain` promises that any bytes are a
    // value.
    unsafe { std::mem::transmute_copy(&from) }
}
