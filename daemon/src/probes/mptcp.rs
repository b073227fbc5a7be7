//! Probe `mptcp`: what MPTCP counts.

use crate::declare::{Cost, Family, Probe, Section};
use crate::facts::{Cells, Fact, cells, fact, native};
use crate::sources::columns::NETSTAT;

const FACTS: [Fact; 77] = [
    fact(
        "MPTcpExt.MPCapableSYNRX",
        "netskoop_mptcp_capable_syn_received_total",
        "Connections that the other side asked to open with MPTCP (MPTcpExt.MPCapableSYNRX of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPCapableSYNTX",
        "netskoop_mptcp_capable_syn_sent_total",
        "Connections that this side asked to open with MPTCP (MPTcpExt.MPCapableSYNTX of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPCapableSYNACKRX",
        "netskoop_mptcp_capable_synack_received_total",
        "Connections for which the other side agreed to MPTCP (MPTcpExt.MPCapableSYNACKRX of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPCapableACKRX",
        "netskoop_mptcp_capable_ack_received_total",
        "Connections opened from the other side with MPTCP (MPTcpExt.MPCapableACKRX of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPCapableFallbackACK",
        "netskoop_mptcp_capable_fallback_ack_total",
        "Connections from the other side that went back to TCP because the last ACK of the handshake did not speak MPTCP (MPTcpExt.MPCapableFallbackACK of /proc/net/netstat).",
    )
    .alarm("a middlebox strips MPTCP"),
    fact(
        "MPTcpExt.MPCapableFallbackSYNACK",
        "netskoop_mptcp_capable_fallback_synack_total",
        "Connections to the other side that went back to TCP because it does not speak MPTCP (MPTcpExt.MPCapableFallbackSYNACK of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPCapableSYNTXDrop",
        "netskoop_mptcp_capable_syn_dropped_total",
        "Connections that went back to TCP because SYN segments with MPTCP were lost (MPTcpExt.MPCapableSYNTXDrop of /proc/net/netstat).",
    )
    .alarm("a middlebox drops MPTCP"),
    fact(
        "MPTcpExt.MPCapableSYNTXDisabled",
        "netskoop_mptcp_capable_syn_disabled_total",
        "Connections opened without MPTCP because it is disabled for a while after losses (MPTcpExt.MPCapableSYNTXDisabled of /proc/net/netstat).",
    )
    .alarm("a middlebox drops MPTCP"),
    fact(
        "MPTcpExt.MPCapableEndpAttempt",
        "netskoop_mptcp_capable_endpoint_attempts_total",
        "Connections tried to an endpoint that is not the first address (MPTcpExt.MPCapableEndpAttempt of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPFallbackTokenInit",
        "netskoop_mptcp_fallback_token_init_total",
        "Connections that went back to TCP because no token could be made (MPTcpExt.MPFallbackTokenInit of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPTCPRetrans",
        "netskoop_mptcp_retransmitted_segments_total",
        "Segments sent again on the level of MPTCP (MPTcpExt.MPTCPRetrans of /proc/net/netstat).",
    )
    .alarm("a subflow loses packets"),
    fact(
        "MPTcpExt.MPJoinNoTokenFound",
        "netskoop_mptcp_join_no_token_total",
        "Subflows refused because their token belongs to no connection (MPTcpExt.MPJoinNoTokenFound of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynRx",
        "netskoop_mptcp_join_syn_received_total",
        "Subflows that the other side asked for (MPTcpExt.MPJoinSynRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynBackupRx",
        "netskoop_mptcp_join_syn_backup_received_total",
        "Backup subflows that the other side asked for (MPTcpExt.MPJoinSynBackupRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynAckRx",
        "netskoop_mptcp_join_synack_received_total",
        "Subflows to which the other side agreed (MPTcpExt.MPJoinSynAckRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynAckBackupRx",
        "netskoop_mptcp_join_synack_backup_received_total",
        "Backup subflows to which the other side agreed (MPTcpExt.MPJoinSynAckBackupRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynAckHMacFailure",
        "netskoop_mptcp_join_synack_hmac_failures_total",
        "Subflows refused because the other side's proof was wrong (MPTcpExt.MPJoinSynAckHMacFailure of /proc/net/netstat).",
    )
    .alarm("somebody tampers with subflows"),
    fact(
        "MPTcpExt.MPJoinAckRx",
        "netskoop_mptcp_join_ack_received_total",
        "Subflows opened from the other side (MPTcpExt.MPJoinAckRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinAckHMacFailure",
        "netskoop_mptcp_join_ack_hmac_failures_total",
        "Subflows from the other side refused because its proof was wrong (MPTcpExt.MPJoinAckHMacFailure of /proc/net/netstat).",
    )
    .alarm("somebody tampers with subflows"),
    fact(
        "MPTcpExt.MPJoinRejected",
        "netskoop_mptcp_join_rejected_total",
        "Subflows refused by the path manager (MPTcpExt.MPJoinRejected of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynTx",
        "netskoop_mptcp_join_syn_sent_total",
        "Subflows that this side asked for (MPTcpExt.MPJoinSynTx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynTxCreatSkErr",
        "netskoop_mptcp_join_socket_errors_total",
        "Subflows not asked for because no socket could be made (MPTcpExt.MPJoinSynTxCreatSkErr of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynTxBindErr",
        "netskoop_mptcp_join_bind_errors_total",
        "Subflows not asked for because the local address could not be used (MPTcpExt.MPJoinSynTxBindErr of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinSynTxConnectErr",
        "netskoop_mptcp_join_connect_errors_total",
        "Subflows not asked for because the connection could not be begun (MPTcpExt.MPJoinSynTxConnectErr of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.DSSNotMatching",
        "netskoop_mptcp_dss_not_matching_total",
        "Segments whose mapping differs from the one received before (MPTcpExt.DSSNotMatching of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.DSSCorruptionFallback",
        "netskoop_mptcp_dss_corruption_fallbacks_total",
        "Connections that went back to TCP because of a broken mapping (MPTcpExt.DSSCorruptionFallback of /proc/net/netstat).",
    )
    .alarm("a middlebox changes segments"),
    fact(
        "MPTcpExt.DSSCorruptionReset",
        "netskoop_mptcp_dss_corruption_resets_total",
        "Subflows reset because of a broken mapping (MPTcpExt.DSSCorruptionReset of /proc/net/netstat).",
    )
    .alarm("a middlebox changes segments"),
    fact(
        "MPTcpExt.InfiniteMapTx",
        "netskoop_mptcp_infinite_maps_sent_total",
        "Infinite mappings sent, which end MPTCP on a connection (MPTcpExt.InfiniteMapTx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.InfiniteMapRx",
        "netskoop_mptcp_infinite_maps_received_total",
        "Infinite mappings received, which end MPTCP on a connection (MPTcpExt.InfiniteMapRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.DSSNoMatchTCP",
        "netskoop_mptcp_dss_no_match_total",
        "Segments whose sequence number is outside the mapping (MPTcpExt.DSSNoMatchTCP of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.DataCsumErr",
        "netskoop_mptcp_checksum_errors_total",
        "Segments with a bad MPTCP checksum (MPTcpExt.DataCsumErr of /proc/net/netstat).",
    )
    .alarm("a middlebox changes segments"),
    fact(
        "MPTcpExt.OFOQueueTail",
        "netskoop_mptcp_out_of_order_tail_total",
        "Segments put at the end of the out-of-order queue (MPTcpExt.OFOQueueTail of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.OFOQueue",
        "netskoop_mptcp_out_of_order_total",
        "Segments put into the out-of-order queue (MPTcpExt.OFOQueue of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.OFOMerge",
        "netskoop_mptcp_out_of_order_merges_total",
        "Segments merged in the out-of-order queue (MPTcpExt.OFOMerge of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.NoDSSInWindow",
        "netskoop_mptcp_no_dss_in_window_total",
        "Segments in the window without a mapping (MPTcpExt.NoDSSInWindow of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.DuplicateData",
        "netskoop_mptcp_duplicate_segments_total",
        "Segments received twice (MPTcpExt.DuplicateData of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.AddAddr",
        "netskoop_mptcp_add_address_received_total",
        "Addresses that the other side announced (MPTcpExt.AddAddr of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.AddAddrTx",
        "netskoop_mptcp_add_address_sent_total",
        "Addresses announced to the other side (MPTcpExt.AddAddrTx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.AddAddrTxDrop",
        "netskoop_mptcp_add_address_send_drops_total",
        "Addresses that could not be announced (MPTcpExt.AddAddrTxDrop of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.EchoAdd",
        "netskoop_mptcp_add_address_echo_received_total",
        "Announced addresses that the other side confirmed (MPTcpExt.EchoAdd of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.EchoAddTx",
        "netskoop_mptcp_add_address_echo_sent_total",
        "Addresses of the other side that were confirmed (MPTcpExt.EchoAddTx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.EchoAddTxDrop",
        "netskoop_mptcp_add_address_echo_send_drops_total",
        "Addresses of the other side that could not be confirmed (MPTcpExt.EchoAddTxDrop of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.PortAdd",
        "netskoop_mptcp_add_address_port_received_total",
        "Addresses with a port that the other side announced (MPTcpExt.PortAdd of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.AddAddrDrop",
        "netskoop_mptcp_add_address_drops_total",
        "Announced addresses that were not looked at (MPTcpExt.AddAddrDrop of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinPortSynRx",
        "netskoop_mptcp_join_port_syn_received_total",
        "Subflows asked for on an announced port (MPTcpExt.MPJoinPortSynRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinPortSynAckRx",
        "netskoop_mptcp_join_port_synack_received_total",
        "Subflows agreed to on an announced port (MPTcpExt.MPJoinPortSynAckRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPJoinPortAckRx",
        "netskoop_mptcp_join_port_ack_received_total",
        "Subflows opened on an announced port (MPTcpExt.MPJoinPortAckRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MismatchPortSynRx",
        "netskoop_mptcp_mismatch_port_syn_total",
        "Subflows asked for on a port that was not announced (MPTcpExt.MismatchPortSynRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MismatchPortAckRx",
        "netskoop_mptcp_mismatch_port_ack_total",
        "Subflows opened on a port that was not announced (MPTcpExt.MismatchPortAckRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RmAddr",
        "netskoop_mptcp_remove_address_received_total",
        "Addresses that the other side took back (MPTcpExt.RmAddr of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RmAddrDrop",
        "netskoop_mptcp_remove_address_drops_total",
        "Addresses taken back that were not known (MPTcpExt.RmAddrDrop of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RmAddrTx",
        "netskoop_mptcp_remove_address_sent_total",
        "Announced addresses that were taken back (MPTcpExt.RmAddrTx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RmAddrTxDrop",
        "netskoop_mptcp_remove_address_send_drops_total",
        "Announced addresses that could not be taken back (MPTcpExt.RmAddrTxDrop of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RmSubflow",
        "netskoop_mptcp_removed_subflows_total",
        "Subflows removed by the path manager (MPTcpExt.RmSubflow of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPPrioTx",
        "netskoop_mptcp_priority_sent_total",
        "Changes of a subflow's priority sent (MPTcpExt.MPPrioTx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPPrioRx",
        "netskoop_mptcp_priority_received_total",
        "Changes of a subflow's priority received (MPTcpExt.MPPrioRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPFailTx",
        "netskoop_mptcp_fail_sent_total",
        "MP_FAIL options sent: data arrived damaged (MPTcpExt.MPFailTx of /proc/net/netstat).",
    )
    .alarm("a middlebox changes segments"),
    fact(
        "MPTcpExt.MPFailRx",
        "netskoop_mptcp_fail_received_total",
        "MP_FAIL options received: data arrived damaged at the other side (MPTcpExt.MPFailRx of /proc/net/netstat).",
    )
    .alarm("a middlebox changes segments"),
    fact(
        "MPTcpExt.MPFastcloseTx",
        "netskoop_mptcp_fast_close_sent_total",
        "Connections closed at once by this side (MPTcpExt.MPFastcloseTx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPFastcloseRx",
        "netskoop_mptcp_fast_close_received_total",
        "Connections closed at once by the other side (MPTcpExt.MPFastcloseRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPRstTx",
        "netskoop_mptcp_resets_sent_total",
        "MP_TCPRST options sent with a reset (MPTcpExt.MPRstTx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPRstRx",
        "netskoop_mptcp_resets_received_total",
        "MP_TCPRST options received with a reset (MPTcpExt.MPRstRx of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.SubflowStale",
        "netskoop_mptcp_stale_subflows_total",
        "Times that a subflow was given up for a while because it did not answer (MPTcpExt.SubflowStale of /proc/net/netstat).",
    )
    .alarm("a path is dead"),
    fact(
        "MPTcpExt.SubflowRecover",
        "netskoop_mptcp_recovered_subflows_total",
        "Times that such a subflow answered again (MPTcpExt.SubflowRecover of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.SndWndShared",
        "netskoop_mptcp_send_window_shared_total",
        "Segments sent within a window that another subflow told (MPTcpExt.SndWndShared of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RcvWndShared",
        "netskoop_mptcp_receive_window_shared_total",
        "Windows raised because another subflow had told a larger one (MPTcpExt.RcvWndShared of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RcvWndConflictUpdate",
        "netskoop_mptcp_receive_window_conflict_updates_total",
        "Windows raised because of another subflow, at the second look (MPTcpExt.RcvWndConflictUpdate of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RcvWndConflict",
        "netskoop_mptcp_receive_window_conflicts_total",
        "Windows that two subflows raised at once (MPTcpExt.RcvWndConflict of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MPCurrEstab",
        "netskoop_mptcp_connections",
        "MPTCP connections now (MPTcpExt.MPCurrEstab of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.Blackhole",
        "netskoop_mptcp_blackholes_total",
        "Times that MPTCP was disabled for a while because SYN segments with it were lost (MPTcpExt.Blackhole of /proc/net/netstat).",
    )
    .alarm("a middlebox drops MPTCP"),
    fact(
        "MPTcpExt.MPCapableDataFallback",
        "netskoop_mptcp_capable_data_fallbacks_total",
        "Connections that went back to TCP with the first data (MPTcpExt.MPCapableDataFallback of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.MD5SigFallback",
        "netskoop_mptcp_md5_fallbacks_total",
        "Connections that went back to TCP because of an MD5 signature (MPTcpExt.MD5SigFallback of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.DssFallback",
        "netskoop_mptcp_dss_fallbacks_total",
        "Connections that went back to TCP because of a mapping (MPTcpExt.DssFallback of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.SimultConnectFallback",
        "netskoop_mptcp_simultaneous_fallbacks_total",
        "Connections that went back to TCP because both sides opened them at once (MPTcpExt.SimultConnectFallback of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.FallbackFailed",
        "netskoop_mptcp_fallback_failures_total",
        "Connections that could not go back to TCP (MPTcpExt.FallbackFailed of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.WinProbe",
        "netskoop_mptcp_window_probes_total",
        "Window probes sent on the level of MPTCP (MPTcpExt.WinProbe of /proc/net/netstat).",
    ),
    fact(
        "MPTcpExt.RcvPruned",
        "netskoop_mptcp_receive_pruned_total",
        "Segments dropped on the level of MPTCP for want of memory (MPTcpExt.RcvPruned of /proc/net/netstat).",
    )
    .alarm("the receiver is too slow"),
];

static CELLS: [Cells; 77] = cells(&NETSTAT, &FACTS);
static NATIVE: [Family; 77] = native(&NETSTAT, &FACTS, &CELLS);

/// The probe.
pub static PROBE: Probe = Probe {
    name: "mptcp",
    aliases: &[],
    summary: "MPTCP connections and subflows opened, refused, and gone back to TCP.",
    when: "On nodes whose programs use MPTCP.",
    finds: "Middleboxes that drop or strip MPTCP, subflows that are dead or refused, data that arrives damaged.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/netstat of a kernel with MPTCP; it counts IPv4 and IPv6 together.",
    default_on: false,
    section: Some(Section { file: "net/netstat", line: "MPTcpExt:", what: "MPTCP" }),
    options: &[],
    families: &[&NATIVE],
    events: &[],
    hooks: None,
};
