//! Probe `tcpext`: what TCP counts beyond its MIB.

use crate::declare::{Cost, Family, OptionDecl, OptionType, Probe};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native, one};
use crate::sources::columns::{NETSTAT, TCPEXT_FIELDS};

const FACTS: [Fact; 32] = [
    fact(
        "TcpExt.ListenDrops",
        "netskoop_tcpext_listen_drops_total",
        "Connection requests dropped by a listener for any reason, including a full accept queue (TcpExt.ListenDrops of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_listendrops", "inspector_pod_tcpextlistendrops")
    .core()
    .alarm("new connections are dropped"),
    fact(
        "TcpExt.ListenOverflows",
        "netskoop_tcpext_listen_overflows_total",
        "Connections dropped because the accept queue of the listener was full (TcpExt.ListenOverflows of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_listenoverflows", "inspector_pod_tcpextlistenoverflows")
    .core()
    .alarm("accept queue full"),
    fact(
        "TcpExt.TCPSynRetrans",
        "netskoop_tcpext_syn_retrans_total",
        "SYN and SYN-ACK segments sent again (TcpExt.TCPSynRetrans of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpsynretrans", "inspector_pod_tcpexttcpsynretrans")
    .core()
    .alarm("connections are slow to open"),
    fact(
        "TcpExt.TCPFastRetrans",
        "netskoop_tcpext_fast_retransmits_total",
        "Segments sent again before a timeout, in any state but loss (TcpExt.TCPFastRetrans of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpfastretrans", "inspector_pod_tcpexttcpfastretrans"),
    fact(
        "TcpExt.TCPRetransFail",
        "netskoop_tcpext_retransmit_fails_total",
        "Segments that could not be sent again for another reason than a busy device (TcpExt.TCPRetransFail of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpretransfail", "inspector_pod_tcpexttcpretransfail")
    .alarm("retransmits fail locally"),
    fact(
        "TcpExt.TCPTimeouts",
        "netskoop_tcpext_timeouts_total",
        "Retransmission timeouts outside recovery and loss states, including unanswered SYN segments (TcpExt.TCPTimeouts of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcptimeouts", "inspector_pod_tcpexttcptimeouts")
    .core()
    .alarm("the peer or the path does not answer"),
    fact(
        "TcpExt.TCPAbortOnClose",
        "netskoop_tcpext_abort_on_close_total",
        "Connections reset because they were closed with unread data (TcpExt.TCPAbortOnClose of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpabortonclose", "inspector_pod_tcpexttcpabortonclose")
    .alarm("the application closes without reading"),
    fact(
        "TcpExt.TCPAbortOnMemory",
        "netskoop_tcpext_abort_on_memory_total",
        "Connections reset because TCP memory or the limit of orphans was used up (TcpExt.TCPAbortOnMemory of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpabortonmemory", "inspector_pod_tcpexttcpabortonmemory")
    .alarm("TCP memory used up"),
    fact(
        "TcpExt.TCPAbortOnTimeout",
        "netskoop_tcpext_abort_on_timeout_total",
        "Connections reset because keepalives, window probes or retransmits stayed unanswered (TcpExt.TCPAbortOnTimeout of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpabortontimeout", "inspector_pod_tcpexttcpabortontimeout")
    .core()
    .alarm("peers vanish"),
    fact(
        "TcpExt.TCPAbortOnLinger",
        "netskoop_tcpext_abort_on_linger_total",
        "Connections reset in FIN_WAIT2 because their linger time was over (TcpExt.TCPAbortOnLinger of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpabortonlinger", "inspector_pod_tcpexttcpabortonlinger"),
    fact(
        "TcpExt.TCPAbortOnData",
        "netskoop_tcpext_abort_on_data_total",
        "Connections reset because data came after close, or because linger asked for it (TcpExt.TCPAbortOnData of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpabortondata", "inspector_pod_tcpexttcpabortondata")
    .alarm("connections end with a reset"),
    fact(
        "TcpExt.TCPAbortFailed",
        "netskoop_tcpext_abort_failed_total",
        "Resets that could not be sent for want of memory (TcpExt.TCPAbortFailed of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpabortfailed", "inspector_pod_tcpexttcpabortfailed")
    .alarm("resets cannot be sent"),
    fact(
        "TcpExt.TCPACKSkippedSynRecv",
        "netskoop_tcpext_ack_skipped_syn_recv_total",
        "ACK segments withheld by the rate limit in state SYN_RECV (TcpExt.TCPACKSkippedSynRecv of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpackskippedsynrecv", "inspector_pod_tcpexttcpackskippedsynrecv"),
    fact(
        "TcpExt.TCPACKSkippedPAWS",
        "netskoop_tcpext_ack_skipped_paws_total",
        "ACK segments withheld by the rate limit after a timestamp that was too old (TcpExt.TCPACKSkippedPAWS of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpackskippedpaws", "inspector_pod_tcpexttcpackskippedpaws"),
    fact(
        "TcpExt.TCPACKSkippedSeq",
        "netskoop_tcpext_ack_skipped_seq_total",
        "ACK segments withheld by the rate limit after a sequence number outside the window (TcpExt.TCPACKSkippedSeq of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpackskippedseq", "inspector_pod_tcpexttcpackskippedseq"),
    fact(
        "TcpExt.TCPACKSkippedFinWait2",
        "netskoop_tcpext_ack_skipped_fin_wait2_total",
        "ACK segments withheld by the rate limit in state FIN_WAIT2 (TcpExt.TCPACKSkippedFinWait2 of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpackskippedfinwait2", "inspector_pod_tcpexttcpackskippedfinwait2"),
    fact(
        "TcpExt.TCPACKSkippedTimeWait",
        "netskoop_tcpext_ack_skipped_time_wait_total",
        "ACK segments withheld by the rate limit in state TIME_WAIT (TcpExt.TCPACKSkippedTimeWait of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpackskippedtimewait", "inspector_pod_tcpexttcpackskippedtimewait"),
    fact(
        "TcpExt.TCPACKSkippedChallenge",
        "netskoop_tcpext_ack_skipped_challenge_total",
        "Challenge ACK segments withheld by the rate limit (TcpExt.TCPACKSkippedChallenge of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpackskippedchallenge", "inspector_pod_tcpexttcpackskippedchallenge"),
    fact(
        "TcpExt.TCPRcvQDrop",
        "netskoop_tcpext_receive_queue_drops_total",
        "Segments dropped because the receive queue could not get memory (TcpExt.TCPRcvQDrop of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcprcvqdrop", "inspector_pod_tcpexttcprcvqdrop")
    .alarm("the receiver is too slow or memory is short"),
    fact(
        "TcpExt.TCPMemoryPressures",
        "netskoop_tcpext_memory_pressures_total",
        "Times that TCP came under memory pressure (TcpExt.TCPMemoryPressures of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpmemorypressures", "inspector_pod_tcpexttcpmemorypressures")
    .alarm("net.ipv4.tcp_mem is nearly used up"),
    fact(
        "TcpExt.TCPMemoryPressuresChrono",
        "netskoop_tcpext_memory_pressure_seconds_total",
        "Time that TCP spent under memory pressure, which the kernel counts in milliseconds (TcpExt.TCPMemoryPressuresChrono of /proc/net/netstat).",
    )
    .decimals(3)
    .old("kubeskoop_tcpext_tcpmemorypressureschrono", "inspector_pod_tcpexttcpmemorypressureschrono"),
    fact(
        "TcpExt.PAWSActive",
        "netskoop_tcpext_paws_active_total",
        "Segments dropped in state SYN_SENT because their timestamp was too old (TcpExt.PAWSActive of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_pawsactive", "inspector_pod_tcpextpawsactive"),
    fact(
        "TcpExt.PAWSEstab",
        "netskoop_tcpext_paws_estab_total",
        "Segments dropped on connections because their timestamp was too old (TcpExt.PAWSEstab of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_pawsestab", "inspector_pod_tcpextpawsestab")
    .alarm("NAT mixes the timestamps of clients"),
    fact(
        "TcpExt.EmbryonicRsts",
        "netskoop_tcpext_embryonic_resets_total",
        "Resets received on connections that were not yet established (TcpExt.EmbryonicRsts of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_embryonicrsts", "inspector_pod_tcpextembryonicrsts"),
    fact(
        "TcpExt.TCPWinProbe",
        "netskoop_tcpext_window_probes_total",
        "Window probes sent (TcpExt.TCPWinProbe of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpwinprobe", "inspector_pod_tcpexttcpwinprobe"),
    fact(
        "TcpExt.TCPKeepAlive",
        "netskoop_tcpext_keepalives_total",
        "Keepalive probes sent (TcpExt.TCPKeepAlive of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpkeepalive", "inspector_pod_tcpexttcpkeepalive"),
    fact(
        "TcpExt.TCPMTUPFail",
        "netskoop_tcpext_mtu_probe_fails_total",
        "Probes for a larger path MTU that failed (TcpExt.TCPMTUPFail of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpmtupfail", "inspector_pod_tcpexttcpmtupfail"),
    fact(
        "TcpExt.TCPMTUPSuccess",
        "netskoop_tcpext_mtu_probe_successes_total",
        "Probes for a larger path MTU that succeeded (TcpExt.TCPMTUPSuccess of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpmtupsuccess", "inspector_pod_tcpexttcpmtupsuccess"),
    fact(
        "TcpExt.TCPZeroWindowDrop",
        "netskoop_tcpext_zero_window_drops_total",
        "Segments with data dropped because the receive window was zero (TcpExt.TCPZeroWindowDrop of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpzerowindowdrop", "inspector_pod_tcpexttcpzerowindowdrop")
    .alarm("the receiver is too slow"),
    fact(
        "TcpExt.TCPBacklogDrop",
        "netskoop_tcpext_backlog_drops_total",
        "Segments dropped because the backlog of a busy socket was full (TcpExt.TCPBacklogDrop of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpbacklogdrop", "inspector_pod_tcpexttcpbacklogdrop")
    .core()
    .alarm("the receiver is too slow"),
    fact(
        "TcpExt.PFMemallocDrop",
        "netskoop_tcpext_pfmemalloc_drops_total",
        "Packets dropped because they were in memory reserved for freeing memory (TcpExt.PFMemallocDrop of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_pfmemallocdrop", "inspector_pod_tcpextpfmemallocdrop")
    .alarm("the node is out of memory"),
    fact(
        "TcpExt.TCPWqueueTooBig",
        "netskoop_tcpext_write_queue_too_big_total",
        "Segments not split because the send queue was too large (TcpExt.TCPWqueueTooBig of /proc/net/netstat).",
    )
    .old("kubeskoop_tcpext_tcpwqueuetoobig", "inspector_pod_tcpexttcpwqueuetoobig"),
];

const MORE: [Fact; 55] = [
    fact(
        "TcpExt.TCPReqQFullDrop",
        "netskoop_tcpext_request_queue_full_drops_total",
        "Connection requests dropped because the SYN queue was full and SYN cookies are off (TcpExt.TCPReqQFullDrop of /proc/net/netstat).",
    )
    .alarm("SYN queue full"),
    fact(
        "TcpExt.TCPReqQFullDoCookies",
        "netskoop_tcpext_request_queue_full_cookies_total",
        "Connection requests answered with a SYN cookie because the SYN queue was full (TcpExt.TCPReqQFullDoCookies of /proc/net/netstat).",
    )
    .alarm("SYN queue full"),
    fact(
        "TcpExt.SyncookiesSent",
        "netskoop_tcpext_syncookies_sent_total",
        "SYN cookies sent (TcpExt.SyncookiesSent of /proc/net/netstat).",
    )
    .alarm("SYN queue full or a SYN flood"),
    fact(
        "TcpExt.SyncookiesRecv",
        "netskoop_tcpext_syncookies_received_total",
        "SYN cookies received back that were valid (TcpExt.SyncookiesRecv of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.SyncookiesFailed",
        "netskoop_tcpext_syncookies_failed_total",
        "SYN cookies received back that were not valid (TcpExt.SyncookiesFailed of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPTimeWaitOverflow",
        "netskoop_tcpext_time_wait_overflows_total",
        "Connections closed without TIME_WAIT because there were too many (TcpExt.TCPTimeWaitOverflow of /proc/net/netstat).",
    )
    .alarm("net.ipv4.tcp_max_tw_buckets is used up"),
    fact(
        "TcpExt.TW",
        "netskoop_tcpext_time_wait_total",
        "Connections that ended in TIME_WAIT and waited there to the end (TcpExt.TW of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TWRecycled",
        "netskoop_tcpext_time_wait_recycled_total",
        "TIME_WAIT sockets whose place a new connection took (TcpExt.TWRecycled of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TWKilled",
        "netskoop_tcpext_time_wait_killed_total",
        "TIME_WAIT sockets ended early (TcpExt.TWKilled of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPToZeroWindowAdv",
        "netskoop_tcpext_to_zero_window_total",
        "Times that a receive window went to zero (TcpExt.TCPToZeroWindowAdv of /proc/net/netstat).",
    )
    .core()
    .alarm("the receiver is too slow"),
    fact(
        "TcpExt.TCPFromZeroWindowAdv",
        "netskoop_tcpext_from_zero_window_total",
        "Times that a receive window opened after having been zero (TcpExt.TCPFromZeroWindowAdv of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPWantZeroWindowAdv",
        "netskoop_tcpext_want_zero_window_total",
        "Times that a receive window should have gone to zero and could not (TcpExt.TCPWantZeroWindowAdv of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPOFOQueue",
        "netskoop_tcpext_out_of_order_queued_total",
        "Segments received out of order and queued (TcpExt.TCPOFOQueue of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPOFODrop",
        "netskoop_tcpext_out_of_order_drops_total",
        "Segments received out of order and dropped for want of memory (TcpExt.TCPOFODrop of /proc/net/netstat).",
    )
    .alarm("the receiver is short of memory"),
    fact(
        "TcpExt.TCPOFOMerge",
        "netskoop_tcpext_out_of_order_merges_total",
        "Segments received out of order that overlapped queued ones (TcpExt.TCPOFOMerge of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.OfoPruned",
        "netskoop_tcpext_out_of_order_pruned_total",
        "Segments dropped from the queue of those received out of order, for want of memory (TcpExt.OfoPruned of /proc/net/netstat).",
    )
    .alarm("the receiver is short of memory"),
    fact(
        "TcpExt.PruneCalled",
        "netskoop_tcpext_prunes_total",
        "Times that receive queues were trimmed for want of memory (TcpExt.PruneCalled of /proc/net/netstat).",
    )
    .alarm("the receiver is short of memory"),
    fact(
        "TcpExt.RcvPruned",
        "netskoop_tcpext_receive_pruned_total",
        "Times that trimming a receive queue was not enough and segments were dropped (TcpExt.RcvPruned of /proc/net/netstat).",
    )
    .alarm("the receiver is short of memory"),
    fact(
        "TcpExt.TCPRcvCollapsed",
        "netskoop_tcpext_receive_collapsed_total",
        "Segments merged in a receive queue to save memory (TcpExt.TCPRcvCollapsed of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPSpuriousRTOs",
        "netskoop_tcpext_spurious_timeouts_total",
        "Retransmission timeouts that were found to be unnecessary (TcpExt.TCPSpuriousRTOs of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPLossProbes",
        "netskoop_tcpext_loss_probes_total",
        "Tail loss probes sent (TcpExt.TCPLossProbes of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPLossProbeRecovery",
        "netskoop_tcpext_loss_probe_recoveries_total",
        "Losses repaired by a tail loss probe (TcpExt.TCPLossProbeRecovery of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPLostRetransmit",
        "netskoop_tcpext_lost_retransmits_total",
        "Retransmitted segments that were lost again (TcpExt.TCPLostRetransmit of /proc/net/netstat).",
    )
    .alarm("the path loses much"),
    fact(
        "TcpExt.TCPSlowStartRetrans",
        "netskoop_tcpext_slow_start_retransmits_total",
        "Segments sent again in slow start (TcpExt.TCPSlowStartRetrans of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPSackRecovery",
        "netskoop_tcpext_sack_recoveries_total",
        "Recoveries with selective acknowledgements (TcpExt.TCPSackRecovery of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPRenoRecovery",
        "netskoop_tcpext_reno_recoveries_total",
        "Recoveries without selective acknowledgements (TcpExt.TCPRenoRecovery of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPSackRecoveryFail",
        "netskoop_tcpext_sack_recovery_fails_total",
        "Recoveries with selective acknowledgements that failed (TcpExt.TCPSackRecoveryFail of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPSACKReneging",
        "netskoop_tcpext_sack_reneging_total",
        "Times that a peer took back a selective acknowledgement (TcpExt.TCPSACKReneging of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPSACKReorder",
        "netskoop_tcpext_sack_reorders_total",
        "Reorderings seen by selective acknowledgements (TcpExt.TCPSACKReorder of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPTSReorder",
        "netskoop_tcpext_timestamp_reorders_total",
        "Reorderings seen by timestamps (TcpExt.TCPTSReorder of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPDSACKOldSent",
        "netskoop_tcpext_dsack_old_sent_total",
        "Duplicate acknowledgements sent for old segments (TcpExt.TCPDSACKOldSent of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPDSACKOfoSent",
        "netskoop_tcpext_dsack_out_of_order_sent_total",
        "Duplicate acknowledgements sent for segments out of order (TcpExt.TCPDSACKOfoSent of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPDSACKRecv",
        "netskoop_tcpext_dsack_received_total",
        "Duplicate acknowledgements received for old segments, each a needless retransmit (TcpExt.TCPDSACKRecv of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPDSACKOfoRecv",
        "netskoop_tcpext_dsack_out_of_order_received_total",
        "Duplicate acknowledgements received for segments out of order (TcpExt.TCPDSACKOfoRecv of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPDSACKUndo",
        "netskoop_tcpext_dsack_undos_total",
        "Recoveries undone because of duplicate acknowledgements (TcpExt.TCPDSACKUndo of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPMinTTLDrop",
        "netskoop_tcpext_min_ttl_drops_total",
        "Segments dropped because their time to live was below the limit of the socket (TcpExt.TCPMinTTLDrop of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPDeferAcceptDrop",
        "netskoop_tcpext_defer_accept_drops_total",
        "ACK segments dropped because the listener waits for data (TcpExt.TCPDeferAcceptDrop of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.IPReversePathFilter",
        "netskoop_tcpext_reverse_path_filter_drops_total",
        "Packets dropped by the reverse path filter (TcpExt.IPReversePathFilter of /proc/net/netstat).",
    )
    .alarm("packets come in by an interface that does not route back"),
    fact(
        "TcpExt.TCPChallengeACK",
        "netskoop_tcpext_challenge_acks_total",
        "Challenge ACK segments sent (TcpExt.TCPChallengeACK of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPSYNChallenge",
        "netskoop_tcpext_syn_challenges_total",
        "Challenge ACK segments sent in answer to a SYN on a connection (TcpExt.TCPSYNChallenge of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.OutOfWindowIcmps",
        "netskoop_tcpext_out_of_window_icmps_total",
        "ICMP messages ignored because their sequence number was outside the window (TcpExt.OutOfWindowIcmps of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.LockDroppedIcmps",
        "netskoop_tcpext_lock_dropped_icmps_total",
        "ICMP messages dropped because the socket was busy (TcpExt.LockDroppedIcmps of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPAutoCorking",
        "netskoop_tcpext_auto_corking_total",
        "Segments held back to be sent together with later data (TcpExt.TCPAutoCorking of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPOrigDataSent",
        "netskoop_tcpext_original_data_sent_total",
        "Segments with data sent for the first time (TcpExt.TCPOrigDataSent of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPDelivered",
        "netskoop_tcpext_delivered_total",
        "Segments with data known to have been delivered (TcpExt.TCPDelivered of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPDeliveredCE",
        "netskoop_tcpext_delivered_ce_total",
        "Segments delivered that met congestion on the way (TcpExt.TCPDeliveredCE of /proc/net/netstat).",
    )
    .alarm("a queue on the way is full"),
    fact(
        "TcpExt.TCPSpuriousRtxHostQueues",
        "netskoop_tcpext_spurious_retransmits_host_queues_total",
        "Retransmits withheld because the segment was still in a queue of this host (TcpExt.TCPSpuriousRtxHostQueues of /proc/net/netstat).",
    )
    .alarm("queues of this host are long"),
    fact(
        "TcpExt.TcpTimeoutRehash",
        "netskoop_tcpext_timeout_rehashes_total",
        "Times that a timeout made a connection choose another path (TcpExt.TcpTimeoutRehash of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.DelayedACKs",
        "netskoop_tcpext_delayed_acks_total",
        "Delayed ACK segments sent (TcpExt.DelayedACKs of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.DelayedACKLost",
        "netskoop_tcpext_delayed_acks_lost_total",
        "Delayed ACK segments that came too late for the peer (TcpExt.DelayedACKLost of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPFastOpenActive",
        "netskoop_tcpext_fast_open_active_total",
        "TCP Fast Open connections opened with data (TcpExt.TCPFastOpenActive of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPFastOpenActiveFail",
        "netskoop_tcpext_fast_open_active_fails_total",
        "TCP Fast Open connections whose data was not taken (TcpExt.TCPFastOpenActiveFail of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPFastOpenListenOverflow",
        "netskoop_tcpext_fast_open_listen_overflows_total",
        "TCP Fast Open requests refused because too many were pending (TcpExt.TCPFastOpenListenOverflow of /proc/net/netstat).",
    )
    .alarm("TCP Fast Open queue full"),
    fact(
        "TcpExt.TCPMD5Failure",
        "netskoop_tcpext_md5_failures_total",
        "Segments dropped for a wrong MD5 signature (TcpExt.TCPMD5Failure of /proc/net/netstat).",
    ),
    fact(
        "TcpExt.TCPAOBad",
        "netskoop_tcpext_ao_bad_total",
        "Segments dropped for a wrong authentication option (TcpExt.TCPAOBad of /proc/net/netstat).",
    ),
];

static CELLS: [Cells; 32] = cells(&NETSTAT, &FACTS);
static MORE_CELLS: [Cells; 55] = cells(&NETSTAT, &MORE);
static NATIVE: [Family; 32] = native(&NETSTAT, &FACTS, &CELLS);
static NATIVE_MORE: [Family; 55] = native(&NETSTAT, &MORE, &MORE_CELLS);
static KUBESKOOP: [Family; 32] = kubeskoop(&NETSTAT, &FACTS);
static INSPECTOR: [Family; 32] = inspector(&NETSTAT, &FACTS);

/// A second name of `PAWSEstab`, which the older documentation uses.
static ALIAS: [Family; 1] = [Family::inspector(
    "inspector_pod_tcpextpawsestabrejected",
    "Segments dropped on connections because their timestamp was too old (TcpExt.PAWSEstab of /proc/net/netstat).",
    &NETSTAT,
    one(&NETSTAT, "TcpExt.PAWSEstab"),
)];

/// The newest documentation writes `ListenOverflows` without its last letter.
static HYBRID: [Family; 1] = [Family::kubeskoop(
    "kubeskoop_tcpext_listenoverflow",
    "Connections dropped because the accept queue of the listener was full (TcpExt.ListenOverflows of /proc/net/netstat).",
    &NETSTAT,
    one(&NETSTAT, "TcpExt.ListenOverflows"),
)];

static ALL: [Family; 1] = [Family::native(
    "netskoop_tcpext_field_total",
    "Every field that the running kernel counts in section TcpExt of /proc/net/netstat, by the kernel's own name.",
    &TCPEXT_FIELDS,
    one(&TCPEXT_FIELDS, "value"),
)
.keys(&[("field", 0)])
.core()
.option("all")];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tcpext",
    aliases: &[],
    summary: "Why TCP dropped, delayed, repeated or gave up: queues, memory, timeouts, resets.",
    when: "Always, and first when connections fail, hang or are reset.",
    finds: "Full accept queues, slow receivers, used-up TCP memory, retransmits and resets by cause.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/netstat; it counts IPv4 and IPv6 together.",
    default_on: true,
    section: None,
    options: &[OptionDecl {
        name: "all",
        kind: OptionType::Bool { default: false },
        help: "Shows every field of TcpExt under netskoop_tcpext_field_total, also those this version does not know.",
    }],
    families: &[&NATIVE, &NATIVE_MORE, &KUBESKOOP, &HYBRID, &INSPECTOR, &ALIAS, &ALL],
    events: &[],
    hooks: None,
};
