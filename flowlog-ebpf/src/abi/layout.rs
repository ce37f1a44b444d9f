//! What the loader tells the programs and those that come after: struct offsets, what drop reasons mean, what maps were made for.

/// Offsets of kernel struct members, resolved from the running kernel's BTF at load time (bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `sk_buff.dev`
    pub skb_dev: u32,
    /// `sk_buff.skb_iif`
    pub skb_iif: u32,
    /// `sk_buff.len`
    pub skb_len: u32,
    /// `sk_buff.data_len`
    pub skb_data_len: u32,
    /// `sk_buff.head`
    pub skb_head: u32,
    /// `sk_buff.data`
    pub skb_data: u32,
    /// `sk_buff.end`
    pub skb_end: u32,
    /// `sk_buff.network_header`
    pub skb_network_header: u32,
    /// `sk_buff.protocol`
    pub skb_protocol: u32,
    /// `sk_buff._skb_refdst`
    pub skb_refdst: u32,
    /// `sk_buff.vlan_tci`
    pub skb_vlan_tci: u32,
    /// `skb_shared_info.gso_size`
    pub shinfo_gso_size: u32,
    /// `skb_shared_info.gso_segs`
    pub shinfo_gso_segs: u32,
    /// `net_device.ifindex`
    pub dev_ifindex: u32,
    /// `net_device.nd_net`
    pub dev_net: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `dst_entry.dev`
    pub dst_dev: u32,
    /// `sk_buff.tc_index`
    pub skb_tc_index: u32,
    /// The byte that holds `sk_buff.cloned`
    pub skb_cloned: u32,
    /// The lowest bit of it there
    pub skb_cloned_shift: u32,
    /// The byte that holds `sk_buff.pkt_type`
    pub skb_pkt_type: u32,
    /// The lowest bit of it there
    pub skb_pkt_type_shift: u32,
    /// `sk_buff.cb`
    pub skb_cb: u32,
    /// `sock.sk_filter`
    pub sk_filter: u32,
    /// `net_device.mtu`
    pub dev_mtu: u32,
    /// The byte that holds `sk_buff.fclone`
    pub skb_fclone: u32,
    /// The lowest bit of it there
    pub skb_fclone_shift: u32,
    /// `skb_shared_info.dataref`
    pub shinfo_dataref: u32,
    /// `rtable.rt_is_input`
    pub rt_is_input: u32,
    /// `rtable.rt_type`
    pub rt_type: u32,
    /// `sk_buff.sk`
    pub skb_sk: u32,
}

/// What a set of maps was made for, written once when it is made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// The programs' hash seed: programs that share maps share it.
    pub seed: u64,
    /// Inode of the network namespace that the agent lives in.
    pub netns_inum: u32,
    /// Slots of the flow cache for each CPU.
    pub passed_slots: u32,
    /// Slots of the refused cache for each CPU.
    pub refused_slots: u32,
    /// [`ABI_VERSION`](super::ABI_VERSION).
    pub abi_version: u32,
}

/// Index in the `VERDICTS` array of the program that runs first for every drop.
pub const VERDICT_FIRST: u32 = 0;
/// Index of the program that handles what interrupted the first.
pub const VERDICT_NESTED: u32 = 1;
/// Entries of the `VERDICTS` array.
pub const VERDICTS: u32 = 2;

/// `REASONS` value of drop reasons that count as REJECT.
pub const REASON_REFUSED: u8 = 1;
/// As [`REASON_REFUSED`], dropped by a tc program on ingress: our hook may or may not have run before it.
pub const REASON_TC_INGRESS: u8 = 2;
/// As [`REASON_REFUSED`], dropped by a tc program on egress: our hook may or may not have run before it.
pub const REASON_TC_EGRESS: u8 = 3;
/// As [`REASON_REFUSED`], dropped by generic XDP, always before the tc hook.
pub const REASON_XDP: u8 = 4;

/// The kernel drops without a reason; refused if the place it was dropped at is generic XDP (as [`REASON_XDP`]).
pub const REASON_BY_PLACE: u8 = 5;

/// As [`REASON_REFUSED`] if a cgroup's program dropped it, and not the filter of the socket that would have got it.
pub const REASON_SOCKET: u8 = 6;

/// Entries of the `REASONS` array (one byte each): 4 subsystems of 256 reasons.
pub const REASONS: u32 = 1_024;

/// Index into the `REASONS` array. `skb_drop_reason` keeps the subsystem in the upper 16 bits
/// (`include/net/dropreason.h`).
#[inline(always)]
#[must_use]
pub const fn reason_index(reason: u32) -> u32 {
    // Subsystems and reasons past what the array holds are none of those that count.
    if reason & !0x0003_00ff != 0 {
        return 0;
    }
    ((reason >> 16) << 8) | (reason & 0xff)
}

const _: () = {
    assert!(size_of::<KernelOffsets>() == 31 * 4);
    assert!(size_of::<Setup>() == 24);
};
