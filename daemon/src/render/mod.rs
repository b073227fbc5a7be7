//! Texts made from the declarations: pure functions of the list of probes.

pub mod manual;
pub mod metrics_md;
