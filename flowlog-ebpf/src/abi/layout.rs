//! What the loader tells the programs and those that come after: what drop reasons mean, what maps were made for.

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
    /// The [`ABI_VERSION`](super::ABI_VERSION) of the agent that made the maps.
    pub abi_version: u32,
}

/// Index in the `VERDICTS` array of the program that runs first for every drop.
pub const VERDICT_FIRST: u32 = 0;
/// Index of the program that handles what interrupted the first.
pub const VERDICT_NESTED: u32 = 1;
/// Entries of the `VERDICTS` array.
pub const VERDICTS: u32 = 2;

/// Index in the `ELSEWHERE_TC` array of the hook for packets on their way in, on interfaces of other namespaces.
pub const ELSEWHERE_INGRESS: u32 = 0;
/// The same for packets on their way out.
pub const ELSEWHERE_EGRESS: u32 = 1;
/// Index of the program that entries jump to in the place of the hook for packets on their way in, while another entry is put in front
/// (`flowlog_elsewhere_again_ingress`).
pub const ELSEWHERE_AGAIN_INGRESS: u32 = 2;
/// The same for packets on their way out.
pub const ELSEWHERE_AGAIN_EGRESS: u32 = 3;
/// Index of the hook of our own namespace for packets on their way in: `flowlog_again_ingress` jumps to it.
pub const OWN_INGRESS: u32 = 4;
/// The same for packets on their way out.
pub const OWN_EGRESS: u32 = 5;
/// Entries of the `ELSEWHERE_TC` array.
pub const ELSEWHERE_TC: u32 = 6;
/// Index in the `ELSEWHERE_XDP` array of the hook, and the only one.
pub const ELSEWHERE_XDP_INGRESS: u32 = 0;
/// Entries of the `ELSEWHERE_XDP` array.
pub const ELSEWHERE_XDP: u32 = 1;

/// What the programs that wrap a foreign one find returned if there was none in its place: no `enum xdp_action`.
pub const NOT_RUN: u32 = 0x00f1_0e00;

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

/// The packet was let through, and dies on its way: not refused, but lost ([`class::LOST`](super::class::LOST)).
pub const REASON_LOST: u8 = 7;

/// Where a dying packet has the mark that the firewall gave it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkPlace {
    /// The bits of it that count; 0: none.
    pub mask: u32,
    /// Offset in `struct sk_buff` of the mark, or of what leads to it.
    pub skb: u32,
    /// 0: the mark is there. 1: there is a pointer to `struct nf_conn`, with flags in its lowest bits.
    pub is_connection: u32,
    /// Offset in `struct nf_conn` of the mark.
    pub connection: u32,
}

/// Where connection tracking keeps what it knows of a packet. All zero: this kernel has none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionPlace {
    /// Offset in `struct sk_buff` of the pointer to `struct nf_conn`, with flags in its lowest bits.
    pub skb: u32,
    /// Offset in `struct nf_conn` of its status.
    pub status: u32,
    /// Offset there of the tuple of the packet that began it; 0: there is nothing to be found.
    pub tuples: u32,
    /// Bytes from there to the tuple of the answers.
    pub stride: u32,
}

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

const _: () = assert!(size_of::<Setup>() == 24);
