//! Every drop reason of the kernels that flowlog is tested on, by name: whether it makes a packet REJECT or lost, and why.
//!
//! A firewall's or policy's decision is REJECT. Everything else is the packet's own fate: the row stays ACCEPT, and says that the
//! packet was lost if the node was to carry it on or to hand it over and could not.
//! `docs/reasons.md` shows this table; a test compares the two.

use flowlog_ebpf::abi::{
    REASON_BY_PLACE, REASON_LOST, REASON_REFUSED, REASON_SOCKET, REASON_TC_EGRESS, REASON_TC_INGRESS, REASON_XDP,
};

/// What is known about a reason.
pub(crate) struct Known {
    /// As the kernel calls it.
    pub name: &'static str,
    /// `REASON_*`; 0: neither a refusal nor a loss.
    pub action: u8,
    /// One short phrase, for `docs/reasons.md`.
    #[cfg_attr(not(test), allow(dead_code, reason = "the test that compares the document with this table reads it"))]
    pub why: &'static str,
}

/// A loss: the node was to carry the packet on, or to hand it over, and could not.
const fn lost(name: &'static str, why: &'static str) -> Known {
    Known { name, action: REASON_LOST, why }
}

/// Neither a refusal nor a loss: the packet has arrived, or was for nobody here.
const fn fate(name: &'static str, why: &'static str) -> Known {
    Known { name, action: 0, why }
}

/// Members of `enum skb_drop_reason` (`include/net/dropreason-core.h`), without `SKB_DROP_REASON_`.
pub(crate) const CORE: &[Known] = &[
    Known {
        name: "NETFILTER_DROP",
        action: REASON_REFUSED,
        why: "a rule of nftables, iptables or ebtables dropped or rejected it",
    },
    Known { name: "BPF_CGROUP_EGRESS", action: REASON_REFUSED, why: "a cgroup's program refused to let it out" },
    Known {
        name: "SOCKET_FILTER",
        action: REASON_SOCKET,
        why: "a cgroup's program refused it; a socket's own filter does not count, and where the two cannot be told apart the verdict is unknown",
    },
    Known {
        name: "SECURITY_HOOK",
        action: REASON_REFUSED,
        why: "a security module (SELinux, Smack, AppArmor) refused it",
    },
    Known { name: "XFRM_POLICY", action: REASON_REFUSED, why: "an IPsec policy wants it protected or blocked" },
    Known {
        name: "IP_RPFILTER",
        action: REASON_REFUSED,
        why: "the reverse path filter, which the administrator has turned on",
    },
    Known { name: "TC_INGRESS", action: REASON_TC_INGRESS, why: "a tc filter or program dropped it on its way in" },
    Known { name: "TC_EGRESS", action: REASON_TC_EGRESS, why: "a tc filter or program dropped it on its way out" },
    Known { name: "XDP", action: REASON_XDP, why: "a generic XDP program dropped it" },
    Known {
        name: "NOT_SPECIFIED",
        action: REASON_BY_PLACE,
        why: "no reason was given; REJECT only for drops inside generic XDP, which gives none, and IP_INNOROUTES for those of IPv4's routes to nowhere",
    },
    // Nobody there, or nothing to do with this host.
    fate("NO_SOCKET", "no socket listens there"),
    fate("OTHERHOST", "it is for another host's hardware address"),
    fate("UNICAST_IN_L2_MULTICAST", "a unicast address in a group frame"),
    fate("IP_NOPROTO", "no handler for its IP protocol"),
    fate("UNHANDLED_PROTO", "no handler for its Ethernet or tunnel protocol"),
    fate("INVALID_PROTO", "not a message that its protocol allows"),
    fate("IPV6DISABLED", "IPv6 is off on the interface"),
    fate("SOCKET_CLOSE", "its socket was closed"),
    lost("NO_TX_TARGET", "no port to send it on to"),
    // Headers, checksums and sizes that are wrong.
    lost("PKT_TOO_SMALL", "too short for its headers"),
    lost("PKT_TOO_BIG", "larger than the MTU or the protocol's limit"),
    lost("TCP_CSUM", "wrong checksum"),
    lost("UDP_CSUM", "wrong checksum"),
    lost("ICMP_CSUM", "wrong checksum"),
    lost("IP_CSUM", "wrong checksum"),
    lost("SKB_CSUM", "the checksum could not be computed"),
    lost("IP_INHDR", "a wrong IP header, or no hops left: the kernel has one reason for both"),
    lost("IPV6_BAD_EXTHDR", "a wrong extension header"),
    lost("IPV6_TOO_MANY_EXTHDRS", "more extension headers than the kernel follows"),
    lost("HDR_TRUNC", "its headers could not be read"),
    lost("DEV_HDR", "a device's own header is wrong"),
    lost("SKB_GSO_SEG", "it could not be segmented"),
    lost("SKB_BAD_GSO", "its segmentation data are wrong"),
    fate("IPV6_NDISC_FRAG", "a fragment of neighbour discovery"),
    fate("IPV6_NDISC_HOP_LIMIT", "neighbour discovery from beyond the link"),
    fate("IPV6_NDISC_BAD_CODE", "neighbour discovery with a wrong code"),
    fate("IPV6_NDISC_BAD_OPTIONS", "neighbour discovery with wrong options"),
    fate("IPV6_NDISC_NS_OTHERHOST", "a neighbour solicitation for another host"),
    fate("CAN_RX_INVALID_FRAME", "not an IP packet: CAN"),
    fate("CANFD_RX_INVALID_FRAME", "not an IP packet: CAN"),
    fate("CANXL_RX_INVALID_FRAME", "not an IP packet: CAN"),
    // Routes and addresses: no rule is about this packet, there is nowhere to send it.
    lost("IP_OUTNOROUTES", "no route to send it by"),
    lost(
        "IP_INNOROUTES",
        "no route for what came in; IPv4's `unreachable`, `blackhole` and `prohibit` routes give no reason on a node that forwards, and are told by their place",
    ),
    lost("IP_INADDRERRORS", "an address that cannot be reached from here"),
    lost("IP_LOCAL_SOURCE", "its source is this host's own address"),
    lost("IP_INVALID_SOURCE", "a source that no host can have"),
    lost("IP_INVALID_DEST", "a destination that no host can have"),
    lost("IP_LOCALNET", "a loopback address on a wire"),
    lost("NEIGH_CREATEFAIL", "no entry for the next hop could be made"),
    lost("NEIGH_FAILED", "the next hop does not answer"),
    lost("NEIGH_QUEUEFULL", "too many packets wait for the next hop's address"),
    lost("NEIGH_DEAD", "the next hop's entry was removed"),
    lost("NEIGH_HH_FILLFAIL", "the next hop's header could not be written"),
    fate("ARP_PVLAN_DISABLE", "an ARP message between ports of a private VLAN"),
    lost("MAC_INVALID_SOURCE", "a hardware address that cannot be a source"),
    fate("MAC_IEEE_MAC_CONTROL", "a link's own control frame"),
    fate("LOCAL_MAC", "its source is the device's own hardware address"),
    fate("BRIDGE_INGRESS_STP_STATE", "the spanning tree keeps the port shut"),
    lost("RECURSION_LIMIT", "it went through too many stacked devices"),
    // Tunnels.
    lost("VXLAN_INVALID_HDR", "a wrong VXLAN header"),
    lost("VXLAN_VNI_NOT_FOUND", "no VXLAN device for its network identifier"),
    lost("VXLAN_ENTRY_EXISTS", "the VXLAN table has its source elsewhere"),
    lost("IP_TUNNEL_ECN", "congestion marks of its two headers contradict each other"),
    lost("TUNNEL_TXINFO", "a tunnel device was not told where to send it"),
    // Fragments.
    fate("DUP_FRAG", "a fragment that was there already"),
    lost("FRAG_REASM_TIMEOUT", "the other fragments did not come"),
    lost("FRAG_TOO_FAR", "too many other fragments in between"),
    // Protocol state of TCP, and what peers agreed on.
    fate("TCP_AUTH_HDR", "authentication options that contradict each other"),
    fate("TCP_MD5NOTFOUND", "the signature that the peers agreed on is missing"),
    fate("TCP_MD5UNEXPECTED", "a signature that the peers did not agree on"),
    fate("TCP_MD5FAILURE", "a wrong signature"),
    fate("TCP_AONOTFOUND", "the signature that the peers agreed on is missing"),
    fate("TCP_AOUNEXPECTED", "a signature that the peers did not agree on"),
    fate("TCP_AOKEYNOTFOUND", "a signature by an unknown key"),
    fate("TCP_AOFAILURE", "a wrong signature"),
    fate("PSP_INPUT", "not encrypted as its connection demands"),
    lost("PSP_OUTPUT", "could not be encrypted as its connection demands"),
    fate("TCP_MINTTL", "fewer hops left than its socket demands"),
    fate("TCP_FLAGS", "flags that do not go together"),
    fate("TCP_ZEROWINDOW", "the receiver's window is shut"),
    fate("TCP_OLD_DATA", "data that were received before"),
    fate("TCP_OVERWINDOW", "data beyond the receiver's window"),
    fate("TCP_OFOMERGE", "data that are queued already"),
    fate("TCP_RFC7323_PAWS", "its time stamp is too old"),
    fate("TCP_RFC7323_PAWS_ACK", "its time stamp is too old"),
    fate("TCP_RFC7323_TW_PAWS", "its time stamp is too old"),
    fate("TCP_RFC7323_TSECR", "it answers a time stamp that was never sent"),
    fate("TCP_OLD_SEQUENCE", "before the window"),
    fate("TCP_INVALID_SEQUENCE", "outside the window"),
    fate("TCP_INVALID_END_SEQUENCE", "ends outside the window"),
    fate("TCP_INVALID_ACK_SEQUENCE", "acknowledges what cannot be acknowledged"),
    fate("TCP_RESET", "a reset: it has done its work"),
    fate("TCP_INVALID_SYN", "a SYN in an open connection"),
    fate("TCP_CLOSE", "the connection is closed"),
    fate("TCP_FASTOPEN", "its connection is not accepted yet"),
    fate("TCP_OLD_ACK", "an old acknowledgement"),
    fate("TCP_TOO_OLD_ACK", "a very old acknowledgement"),
    fate("TCP_ACK_UNSENT_DATA", "acknowledges what was not sent"),
    lost("TCP_OFO_QUEUE_PRUNE", "out of order, and memory was needed"),
    fate("TCP_OFO_DROP", "out of order, and received before"),
    fate("TCP_ABORT_ON_DATA", "data for a connection whose program has gone"),
    lost("TCP_LISTEN_OVERFLOW", "more connections than the listener's backlog"),
    // Queues and memory that are full.
    lost("SOCKET_RCVBUFF", "the receiving socket's buffer is full"),
    lost("SOCKET_BACKLOG", "the receiving socket's backlog is full"),
    lost("PROTO_MEM", "the protocol's memory is used up"),
    lost("PFMEMALLOC", "it was received in memory kept for swapping"),
    lost("NOMEM", "no memory"),
    lost("FULL_RING", "a ring is full"),
    lost("CPU_BACKLOG", "the CPU's backlog is full"),
    lost("QDISC_DROP", "a qdisc's queue: full, or shortened on purpose"),
    lost("QDISC_OVERLIMIT", "a qdisc's queue is full"),
    lost("QDISC_CONGESTED", "a qdisc signals congestion"),
    lost("QDISC_BURST_DROP", "a qdisc's list for bursts is full"),
    lost("FQ_BAND_LIMIT", "a band of fq is full"),
    lost("FQ_HORIZON_LIMIT", "to be sent too far in the future"),
    lost("FQ_FLOW_LIMIT", "a flow of fq has too much queued"),
    lost("CAKE_FLOOD", "cake shortens the queue of a flow that does not slow down"),
    lost("DUALPI2_STEP_DROP", "dualpi2 signals congestion"),
    lost("MACVLAN_BROADCAST_BACKLOG", "macvlan's queue for group frames is full"),
    lost("IPVLAN_MULTICAST_BACKLOG", "ipvlan's queue for group frames is full"),
    lost("QUEUE_PURGE", "a queue was emptied, as when a device or socket goes"),
    // Devices and their users. The user of a tap decides what it wants to receive; that is not the node's policy.
    lost("DEV_READY", "the device is not up"),
    lost("SKB_UCOPY_FAULT", "a program's memory could not be read"),
    fate("TAP_FILTER", "the program that owns the tap filters what it receives"),
    fate("TAP_TXFILTER", "not for a hardware address that the tap's owner wants"),
    fate("PACKET_SOCK_ERROR", "a packet socket could not take its copy"),
    fate("UNIX_DISCONNECT", "not an IP packet: a Unix socket"),
    fate("UNIX_SKIP_OOB", "not an IP packet: a Unix socket"),
    // Filters that are broken: no rule says so.
    lost("TC_COOKIE_ERROR", "tc's own state could not be kept"),
    lost("TC_CHAIN_NOTFOUND", "a tc filter goes to a chain that is not there"),
    lost("TC_RECLASSIFY_LOOP", "tc filters go round in a circle"),
];

/// Members of `enum ovs_drop_reason` of the module `openvswitch` (Linux 6.6).
pub(crate) const OPEN_VSWITCH: &[Known] = &[
    Known {
        name: "OVS_DROP_LAST_ACTION",
        action: REASON_REFUSED,
        why: "the flow's actions end without an output: how Open vSwitch's rules drop",
    },
    Known { name: "OVS_DROP_EXPLICIT", action: REASON_REFUSED, why: "the flow says drop" },
    Known {
        name: "OVS_DROP_EXPLICIT_WITH_ERROR",
        action: REASON_REFUSED,
        why: "the flow says drop, as its rules could not be translated",
    },
    Known {
        name: "OVS_DROP_METER",
        action: REASON_REFUSED,
        why: "a meter's rate is exceeded; policing by tc is REJECT as well",
    },
    lost("OVS_DROP_ACTION_ERROR", "an action failed"),
    lost("OVS_DROP_RECURSION_LIMIT", "actions call each other too deeply"),
    lost("OVS_DROP_DEFERRED_LIMIT", "too many actions are put off"),
    lost("OVS_DROP_FRAG_L2_TOO_LONG", "its link header is too long to fragment it"),
    lost("OVS_DROP_FRAG_INVALID_PROTO", "not a protocol that can be fragmented"),
    lost("OVS_DROP_CONNTRACK", "connection tracking failed"),
    lost("OVS_DROP_IP_TTL", "no hops left"),
];

/// Members of `enum qdisc_drop_reason` (Linux 7.x).
pub(crate) const QDISC: &[Known] = &[
    lost("QDISC_DROP_GENERIC", "a qdisc's queue: full, or shortened on purpose"),
    lost("QDISC_DROP_OVERLIMIT", "a qdisc's queue is full"),
    lost("QDISC_DROP_CONGESTED", "a qdisc signals congestion"),
    lost("QDISC_DROP_MAXFLOWS", "more flows than the qdisc keeps"),
    lost("QDISC_DROP_FLOOD_PROTECTION", "a flow that does not slow down has its queue shortened"),
    lost("QDISC_DROP_BAND_LIMIT", "a band is full"),
    lost("QDISC_DROP_HORIZON_LIMIT", "to be sent too far in the future"),
    lost("QDISC_DROP_FLOW_LIMIT", "a flow has too much queued"),
    lost("QDISC_DROP_L4S_STEP_NON_ECN", "dualpi2 signals congestion"),
];

/// All reasons that are known.
pub(crate) fn all() -> impl Iterator<Item = &'static Known> {
    [CORE, OPEN_VSWITCH, QDISC].into_iter().flatten()
}

/// Members that are no reasons: marks, bounds, masks, and what is not dropped.
pub(crate) const NO_REASONS: &[&str] = &[
    "SKB_NOT_DROPPED_YET",
    "SKB_CONSUMED",
    "MAX",
    "SUBSYS_MASK",
    "__OVS_DROP_REASON",
    "OVS_DROP_MAX",
    "QDISC_DROP_UNSPEC",
    "__QDISC_DROP_REASON",
    "QDISC_DROP_MAX",
];

/// Subsystems with reasons of their own (`enum skb_drop_reason_subsys`, without `SKB_DROP_REASON_SUBSYS_`). Those of
/// mac80211 are about frames of a radio that have not become packets, and are not looked at.
pub(crate) const SUBSYSTEMS: &[&str] =
    &["CORE", "MAC80211_UNUSABLE", "MAC80211_MONITOR", "OPENVSWITCH", "QDISC", "NUM"];
