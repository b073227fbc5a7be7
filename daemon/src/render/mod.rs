//! Texts made from the declarations: pure functions of the list of probes.

pub mod metrics_md;
