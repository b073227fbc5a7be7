//! Probe `rdma`: what RDMA devices count, and what programs hold of them.

use crate::declare::{Cost, Family, Only, Probe};
use crate::facts::one;
use crate::sources::rdma::{RDMA_BY_TYPE, RDMA_COUNTERS, RDMA_RESOURCES};

static NATIVE: [Family; 2] = [
    Family::native(
        "netskoop_rdma_counter_total",
        "What the RDMA device counts, by port and by the name that its driver has for it; a counter of the whole device has no port. Counters that end in _data count four bytes (counters and hw_counters in /sys/class/infiniband).",
        &RDMA_COUNTERS,
        one(&RDMA_COUNTERS, "value"),
    )
    .keys(&[("device", 0), ("port", 1), ("counter", 2)])
    .core(),
    Family::native(
        "netskoop_rdma_resources",
        "Resources of the RDMA device that programs and the kernel hold: qp (queue pairs), cq (completion queues), mr (memory regions), pd (protection domains), cm_id, ctx, srq (rdma resource show).",
        &RDMA_RESOURCES,
        one(&RDMA_RESOURCES, "held"),
    )
    .keys(&[("device", 0), ("resource", 2)])
    .fold()
    .core(),
];

/// KubeSkoop had one metric for each counter that it knew.
const COMMON: &str = "kubeskoop_rdma_";

static RESOURCES: [&str; 7] = [
    "kubeskoop_rdma_cm_id",
    "kubeskoop_rdma_cq",
    "kubeskoop_rdma_ctx",
    "kubeskoop_rdma_mr",
    "kubeskoop_rdma_pd",
    "kubeskoop_rdma_qp",
    "kubeskoop_rdma_srq",
];

static MLX5: [&str; 50] = [
    "kubeskoop_rdma_mlx5_port_rcv_data",
    "kubeskoop_rdma_mlx5_port_rcv_packets",
    "kubeskoop_rdma_mlx5_multicast_rcv_packets",
    "kubeskoop_rdma_mlx5_unicast_rcv_packets",
    "kubeskoop_rdma_mlx5_port_xmit_data",
    "kubeskoop_rdma_mlx5_port_xmit_packets",
    "kubeskoop_rdma_mlx5_port_xmit_packets_64",
    "kubeskoop_rdma_mlx5_port_rcv_switch_relay_errors",
    "kubeskoop_rdma_mlx5_port_rcv_errors",
    "kubeskoop_rdma_mlx5_port_rcv_constraint_errors",
    "kubeskoop_rdma_mlx5_local_link_integrity_errors",
    "kubeskoop_rdma_mlx5_port_xmit_wait",
    "kubeskoop_rdma_mlx5_multicast_xmit_packets",
    "kubeskoop_rdma_mlx5_unicast_xmit_packets",
    "kubeskoop_rdma_mlx5_port_xmit_discards",
    "kubeskoop_rdma_mlx5_port_xmit_constraint_errors",
    "kubeskoop_rdma_mlx5_port_rcv_remote_physical_errors",
    "kubeskoop_rdma_mlx5_symbol_error",
    "kubeskoop_rdma_mlx5_VL15_dropped",
    "kubeskoop_rdma_mlx5_link_error_recovery",
    "kubeskoop_rdma_mlx5_link_downed",
    "kubeskoop_rdma_mlx5_rx_write_requests",
    "kubeskoop_rdma_mlx5_rx_read_requests",
    "kubeskoop_rdma_mlx5_rx_atomic_requests",
    "kubeskoop_rdma_mlx5_out_of_buffer",
    "kubeskoop_rdma_mlx5_out_of_sequence",
    "kubeskoop_rdma_mlx5_duplicate_request",
    "kubeskoop_rdma_mlx5_rnr_nak_retry_err",
    "kubeskoop_rdma_mlx5_packet_seq_err",
    "kubeskoop_rdma_mlx5_implied_nak_seq_err",
    "kubeskoop_rdma_mlx5_local_ack_timeout_err",
    "kubeskoop_rdma_mlx5_rx_dct_connect",
    "kubeskoop_rdma_mlx5_resp_local_length_error",
    "kubeskoop_rdma_mlx5_resp_cqe_error",
    "kubeskoop_rdma_mlx5_req_cqe_error",
    "kubeskoop_rdma_mlx5_req_remote_invalid_request",
    "kubeskoop_rdma_mlx5_req_remote_access_errors",
    "kubeskoop_rdma_mlx5_resp_remote_access_errors",
    "kubeskoop_rdma_mlx5_resp_cqe_flush_error",
    "kubeskoop_rdma_mlx5_req_cqe_flush_error",
    "kubeskoop_rdma_mlx5_roce_adp_retrans",
    "kubeskoop_rdma_mlx5_roce_adp_retrans_to",
    "kubeskoop_rdma_mlx5_roce_slow_restart",
    "kubeskoop_rdma_mlx5_roce_slow_restart_cnps",
    "kubeskoop_rdma_mlx5_roce_slow_restart_trans",
    "kubeskoop_rdma_mlx5_rp_cnp_ignored",
    "kubeskoop_rdma_mlx5_rp_cnp_handled",
    "kubeskoop_rdma_mlx5_np_ecn_marked_roce_packets",
    "kubeskoop_rdma_mlx5_np_cnp_sent",
    "kubeskoop_rdma_mlx5_rx_icrc_encapsulated",
];

static ERDMA: [&str; 55] = [
    "kubeskoop_rdma_erdma_accept_failed_cnt",
    "kubeskoop_rdma_erdma_accept_success_cnt",
    "kubeskoop_rdma_erdma_accept_total_cnt",
    "kubeskoop_rdma_erdma_cmdq_comp_cnt",
    "kubeskoop_rdma_erdma_cmdq_cq_armed_cnt",
    "kubeskoop_rdma_erdma_cmdq_eq_event_cnt",
    "kubeskoop_rdma_erdma_cmdq_eq_notify_cnt",
    "kubeskoop_rdma_erdma_cmdq_submitted_cnt",
    "kubeskoop_rdma_erdma_connect_failed_cnt",
    "kubeskoop_rdma_erdma_connect_reset_cnt",
    "kubeskoop_rdma_erdma_connect_success_cnt",
    "kubeskoop_rdma_erdma_connect_timeout_cnt",
    "kubeskoop_rdma_erdma_connect_total_cnt",
    "kubeskoop_rdma_erdma_erdma_aeq_event_cnt",
    "kubeskoop_rdma_erdma_erdma_aeq_notify_cnt",
    "kubeskoop_rdma_erdma_hw_bps_limit_drop_cnt",
    "kubeskoop_rdma_erdma_hw_disable_drop_cnt",
    "kubeskoop_rdma_erdma_hw_pps_limit_drop_cnt",
    "kubeskoop_rdma_erdma_hw_rx_bps_limit_drop_cnt",
    "kubeskoop_rdma_erdma_hw_rx_bytes_cnt",
    "kubeskoop_rdma_erdma_hw_rx_disable_drop_cnt",
    "kubeskoop_rdma_erdma_hw_rx_packets_cnt",
    "kubeskoop_rdma_erdma_hw_rx_pps_limit_drop_cnt",
    "kubeskoop_rdma_erdma_hw_tx_bytes_cnt",
    "kubeskoop_rdma_erdma_hw_tx_packets_cnt",
    "kubeskoop_rdma_erdma_hw_tx_reqs_cnt",
    "kubeskoop_rdma_erdma_listen_create_cnt",
    "kubeskoop_rdma_erdma_listen_destroy_cnt",
    "kubeskoop_rdma_erdma_listen_failed_cnt",
    "kubeskoop_rdma_erdma_listen_ipv6_cnt",
    "kubeskoop_rdma_erdma_listen_success_cnt",
    "kubeskoop_rdma_erdma_reject_cnt",
    "kubeskoop_rdma_erdma_reject_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_alloc_mr_cnt",
    "kubeskoop_rdma_erdma_verbs_alloc_mr_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_alloc_pd_cnt",
    "kubeskoop_rdma_erdma_verbs_alloc_pd_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_alloc_uctx_cnt",
    "kubeskoop_rdma_erdma_verbs_alloc_uctx_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_create_cq_cnt",
    "kubeskoop_rdma_erdma_verbs_create_cq_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_destroy_cq_cnt",
    "kubeskoop_rdma_erdma_verbs_destroy_cq_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_create_qp_cnt",
    "kubeskoop_rdma_erdma_verbs_create_qp_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_destroy_qp_cnt",
    "kubeskoop_rdma_erdma_verbs_destroy_qp_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_dealloc_pd_cnt",
    "kubeskoop_rdma_erdma_verbs_dealloc_uctx_cnt",
    "kubeskoop_rdma_erdma_verbs_dereg_mr_cnt",
    "kubeskoop_rdma_erdma_verbs_dereg_mr_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_get_dma_mr_cnt",
    "kubeskoop_rdma_erdma_verbs_get_dma_mr_failed_cnt",
    "kubeskoop_rdma_erdma_verbs_reg_usr_mr_cnt",
    "kubeskoop_rdma_erdma_verbs_reg_usr_mr_failed_cnt",
];

/// The row keys that metrics show: their names without what is common to all.
const fn rows<const N: usize>(names: &[&'static str; N]) -> [[&'static str; 1]; N] {
    let mut all = [[""]; N];
    let mut i = 0;
    while i < N {
        all[i] = [names[i].split_at(COMMON.len()).1];
        i += 1;
    }
    all
}

static RESOURCE_ROWS: [[&str; 1]; 7] = rows(&RESOURCES);
static MLX5_ROWS: [[&str; 1]; 50] = rows(&MLX5);
static ERDMA_ROWS: [[&str; 1]; 55] = rows(&ERDMA);

const fn counters<const N: usize>(
    names: &'static [&'static str; N],
    rows: &'static [[&'static str; 1]; N],
    help: &'static str,
) -> [Family; N] {
    let mut all = [Family::kubeskoop("", help, &RDMA_BY_TYPE, one(&RDMA_BY_TYPE, "value")); N];
    let mut i = 0;
    while i < N {
        let only = Only { key: 3, values: &rows[i], include: true };
        let family = Family { name: names[i], ..all[i] }.only(only).fold();
        all[i] = family.keys(&[("device", 0), ("type", 1), ("port", 2)]);
        i += 1;
    }
    all
}

const fn resources<const N: usize>(
    names: &'static [&'static str; N],
    rows: &'static [[&'static str; 1]; N],
) -> [Family; N] {
    const HELP: &str = "Resources of this kind that are held of the RDMA device (rdma resource show).";
    let mut all = [Family::kubeskoop("", HELP, &RDMA_RESOURCES, one(&RDMA_RESOURCES, "held")); N];
    let mut i = 0;
    while i < N {
        let only = Only { key: 2, values: &rows[i], include: true };
        let family = Family { name: names[i], ..all[i] }.only(only).fold();
        all[i] = family.keys(&[("device", 0), ("type", 1)]);
        i += 1;
    }
    all
}

static KUBESKOOP: [Family; 7] = resources(&RESOURCES, &RESOURCE_ROWS);
static KUBESKOOP_MLX5: [Family; 50] = counters(
    &MLX5,
    &MLX5_ROWS,
    "The counter of this name of a device of type mlx5; those that end in _data count four bytes (counters and hw_counters in /sys/class/infiniband).",
);
static KUBESKOOP_ERDMA: [Family; 55] = counters(
    &ERDMA,
    &ERDMA_ROWS,
    "The counter of this name of a device of type erdma (hw_counters in /sys/class/infiniband).",
);

/// The probe.
pub static PROBE: Probe = Probe {
    name: "rdma",
    aliases: &["infiniband"],
    summary: "RDMA devices: every counter that their drivers have, by port, and what programs hold of them.",
    when: "On nodes with RDMA devices, when transfers between them are slow or stop.",
    finds: "Congestion (CNP, ECN), receivers without buffers, retransmissions, broken links, resources that leak.",
    cost: Cost::Low,
    needs: "/sys/class/infiniband, and the module ib_core for resources; devices of the host's namespace.",
    default_on: true,
    section: None,
    options: &[],
    families: &[&NATIVE, &KUBESKOOP, &KUBESKOOP_MLX5, &KUBESKOOP_ERDMA],
    events: &[],
    hooks: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_name_shows_the_counter_it_is_called_after() {
        let shown = |family: &Family| family.only.unwrap().values[0];
        let all = KUBESKOOP.iter().chain(&KUBESKOOP_MLX5).chain(&KUBESKOOP_ERDMA);
        all.for_each(|family| assert_eq!(format!("{COMMON}{}", shown(family)), family.name));
        assert_eq!(shown(&KUBESKOOP_MLX5[0]), "mlx5_port_rcv_data");
    }
}
