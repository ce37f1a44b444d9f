//! Reading kernel memory: the headers of a packet that dies, and what the kernel knows about it.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use flowlog_ebpf::{
    abi::{KernelOffsets, ORIGINAL, REPLY, TUPLE_WORDS},
    packet::{Bytes, ETH_P_8021AD, ETH_P_8021Q, VLAN_TAGS_MAX},
};

use crate::{
    frame::forget,
    maps::{CONNECTION, MARK, OFFSETS},
};

/// Kernel memory that the verifier knows nothing about; a bad address reads as "not there".
#[inline(always)]
fn probe<T>(address: u64) -> Option<T> {
    let mut out = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: `out` has room for T; the helper survives any address and then returns an error.
    unsafe {
        (bpf_probe_read_kernel(out.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _) == 0)
            .then(|| out.assume_init())
    }
}

/// As [`probe`]; a bad address, null included, reads as 0. Without a branch: each would double what the verifier walks.
#[inline(always)]
pub fn probe_or_zero<T>(address: u64) -> T {
    let mut out = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: as `probe`; where the helper fails it fills `out` with zeros, which is a T for the integers used here.
    unsafe {
        bpf_probe_read_kernel(out.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _);
        out.assume_init()
    }
}

/// Headers of a dropped packet, from its network header on.
#[derive(Clone, Copy)]
pub struct Linear {
    address: u64,
    len: usize,
}

impl Linear {
    /// As many bytes, at this address.
    #[inline(always)]
    pub const fn at(address: u64, len: usize) -> Self {
        Self { address, len }
    }

    /// Bytes that there are.
    #[inline(always)]
    pub fn available(&self) -> u32 {
        self.len as u32
    }
}

impl Bytes for Linear {
    #[inline(always)]
    fn forget(&self, offset: u16) -> u16 {
        forget(u32::from(offset)) as u16
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset + N > self.len {
            return None;
        }
        probe(self.address + offset as u64)
    }
}

/// Reads a member through a BTF-typed pointer: a plain load that the verifier checks against the kernel's BTF.
///
/// # Safety
/// `base` must be such a pointer and `offset` the offset of a `T` in its struct.
#[inline(always)]
pub unsafe fn member<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: by the contract above; a fault in a BTF load reads as zero.
    unsafe { base.add(offset as usize).cast::<T>().read_volatile() }
}

/// Segment size and number of segments of a buffer; 0 if it is not GSO.
#[inline(always)]
fn gso(shinfo: u64, o: &KernelOffsets) -> (u32, u32) {
    if o.shinfo_gso_segs == o.shinfo_gso_size + 2 {
        // Side by side, in every kernel so far: one call.
        let both: u32 = probe_or_zero(shinfo + u64::from(o.shinfo_gso_size));
        return (both & 0xffff, both >> 16);
    }
    let one = |offset: u32| u32::from(probe_or_zero::<u16>(shinfo + u64::from(offset)));
    (one(o.shinfo_gso_size), one(o.shinfo_gso_segs))
}

/// The segments are TCP: `SKB_GSO_TCPV4` and `SKB_GSO_TCPV6` of `include/linux/skbuff.h`.
const GSO_TCP: u32 = 1 << 0 | 1 << 4;
/// They are SCTP: `SKB_GSO_SCTP`.
const GSO_SCTP: u32 = 1 << 14;
/// They are UDP: `SKB_GSO_UDP_L4`.
const GSO_UDP: u32 = 1 << 17;

/// What each segment of the GSO packet at `skb` repeats, if it is inside a tunnel's packet: from the outermost IP header to the end of the
/// innermost transport header. 0: it is in none. The kernel adds it up in the same way (`skb_gso_transport_seglen`).
///
/// A function of its own, for hooks and verdicts: few packets come here, and the stack of those that do not is none of its business.
#[inline(never)]
pub fn tunnel_headers(skb: u64) -> u32 {
    let o = &OFFSETS.load();
    let bits: u8 = probe_or_zero(skb + u64::from(o.skb_encapsulation));
    if bits >> (o.skb_encapsulation_shift & 7) & 1 == 0 {
        return 0;
    }
    let head: u64 = probe_or_zero(skb + u64::from(o.skb_head));
    let end: u32 = probe_or_zero(skb + u64::from(o.skb_end));
    let outer: u16 = probe_or_zero(skb + u64::from(o.skb_network_header));
    let inner: u16 = probe_or_zero(skb + u64::from(o.skb_inner_transport));
    let kind: u32 = probe_or_zero(head + u64::from(end) + u64::from(o.shinfo_gso_type));
    // The upper half of a TCP header's byte 12 has its length, in words.
    let tcp: u8 = probe_or_zero(head + u64::from(inner) + 12);
    let upper = if kind & GSO_TCP != 0 {
        u32::from(tcp >> 4) << 2
    } else if kind & GSO_UDP != 0 {
        8
    } else if kind & GSO_SCTP != 0 {
        12
    } else {
        0
    };
    u32::from(inner).wrapping_sub(u32::from(outer)) + upper
}

/// Bits of `skb->_nfct` that are no part of the pointer (`NFCT_INFOMASK` of `include/linux/skbuff.h`).
const NFCT_INFO: u64 = 7;

/// From here on, those bits say that the packet is an answer (`IP_CT_IS_REPLY` of `include/uapi/linux/netfilter/nf_conntrack_common.h`).
const IS_REPLY: u64 = 3;
/// What those bits say of packets that belong to a connection and not to an error about it (`enum ip_conntrack_info` of the same): one
/// that is answered already, and one that is not; and an answer.
const ESTABLISHED: u64 = 0;
const NEW: u64 = 2;
/// Bits of a connection's status: it is to be translated (`IPS_NAT_MASK` of the same).
const STATUS_NAT: u64 = 1 << 4 | 1 << 5;

/// The connection that the packet at this address belongs to, and how, as `skb->_nfct` has it; 0: to none, or that cannot be known.
#[inline(always)]
pub fn connection(skb: u64) -> u64 {
    let place = CONNECTION.load();
    if place.tuples == 0 {
        return 0;
    }
    let pointer: u64 = probe_or_zero(skb + u64::from(place.skb));
    if pointer & !NFCT_INFO == 0 { 0 } else { pointer }
}

/// [`ORIGINAL`], [`REPLY`] or 0, of what [`connection`] has returned.
#[inline(always)]
pub const fn opener(pointer: u64) -> u32 {
    match pointer & NFCT_INFO {
        _ if pointer == 0 => 0,
        ESTABLISHED | NEW => ORIGINAL,
        IS_REPLY => REPLY,
        _ => 0,
    }
}

/// Reads the tuples of what [`connection`] has returned: of packets like this one before any translation, then of the answers to it.
/// `false`: there is none, or none that is translated, and nothing is known of the tuples then.
///
/// # Safety
/// `to` must be a place for both in a map value.
#[inline(always)]
pub unsafe fn translated(pointer: u64, to: *mut [[u32; TUPLE_WORDS]; 2]) -> bool {
    let place = CONNECTION.load();
    let connection = pointer & !NFCT_INFO;
    if connection == 0 {
        return false;
    }
    let status: u64 = probe_or_zero(connection + u64::from(place.status));
    if status & STATUS_NAT == 0 {
        return false;
    }
    let first = connection + u64::from(place.tuples);
    let second = first + u64::from(place.stride);
    let (own, answers) = if pointer & NFCT_INFO >= IS_REPLY { (second, first) } else { (first, second) };
    let bytes = (4 * TUPLE_WORDS) as u32;
    // SAFETY: by the contract there is room for both; the helper survives any address and then fills in zeros.
    unsafe {
        let to = to.cast::<[u32; TUPLE_WORDS]>();
        bpf_probe_read_kernel(to.cast(), bytes, own as *const _);
        bpf_probe_read_kernel(to.add(1).cast(), bytes, answers as *const _);
    }
    true
}

/// The mark of a packet or of its connection, whichever is wanted.
///
/// # Safety
/// `skb` must be the `struct sk_buff *` argument of the tracepoint.
#[inline(always)]
unsafe fn mark(skb: *const u8) -> u32 {
    let place = MARK.load();
    if place.mask == 0 {
        return 0;
    }
    // SAFETY: offsets come from this kernel's BTF for exactly these structs and members.
    let mark = unsafe {
        if place.is_connection == 0 {
            member::<u32>(skb, place.skb)
        } else {
            probe_or_zero((member::<u64>(skb, place.skb) & !NFCT_INFO) + u64::from(place.connection))
        }
    };
    mark & place.mask
}

/// A VLAN tag behind the ethertype that announces it: control information, and the next ethertype (IEEE 802.1Q).
const TAG_BYTES: u64 = 4;
/// Packet type of a broadcast: `PACKET_BROADCAST` of `include/uapi/linux/if_packet.h`.
const PACKET_BROADCAST: u8 = 1;
/// Packet type of a multicast: `PACKET_MULTICAST` of `include/uapi/linux/if_packet.h`.
const PACKET_MULTICAST: u8 = 2;
/// Mask of `fclone`, which has two bits.
const FCLONE: u8 = 3;
/// `fclone` of the clone in a pair of buffers: `SKB_FCLONE_CLONE` of `include/linux/skbuff.h`.
const FCLONE_CLONE: u8 = 2;
/// Half of `dataref` that counts all who share the data (`SKB_DATAREF_SHIFT` there).
const DATAREF: u32 = 0xffff;
/// Packet type of a frame to another host: `PACKET_OTHERHOST` of `include/uapi/linux/if_packet.h`.
const PACKET_OTHERHOST: u8 = 3;
/// Type of a route to this node: `RTN_LOCAL` of `include/uapi/linux/rtnetlink.h`.
const RTN_LOCAL: u16 = 2;
/// Type of a route to a broadcast address: `RTN_BROADCAST` of `include/uapi/linux/rtnetlink.h`.
const RTN_BROADCAST: u16 = 3;
/// Type of a route to a multicast group: `RTN_MULTICAST` of `include/uapi/linux/rtnetlink.h`.
const RTN_MULTICAST: u16 = 5;
/// Address families of gateways (`include/linux/socket.h`).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `pkt_type` has three bits.
const PKT_TYPE: u8 = 7;

/// Whether a socket has a filter of its own (`SO_ATTACH_FILTER`).
///
/// # Safety
/// `sk` must be a `struct sock *` argument of the tracepoint that is not null.
#[inline(always)]
pub unsafe fn has_filter(sk: *const u8) -> bool {
    // SAFETY: the offset comes from this kernel's BTF for exactly this struct and member.
    unsafe { member::<u64>(sk, OFFSETS.load().sk_filter) != 0 }
}

/// The number a hook gave a buffer, 0 if none.
///
/// # Safety
/// `skb` must be the `struct sk_buff *` argument of the tracepoint.
#[inline(always)]
pub unsafe fn number(skb: *const u8) -> u16 {
    // SAFETY: the offset comes from this kernel's BTF for exactly this struct and member.
    unsafe { member(skb, OFFSETS.load().skb_tc_index) }
}

/// Whether a buffer is on a bridge device because the bridge has decided that it is for the host. Its first note to itself
/// (`struct br_input_skb_cb`, `net/bridge/br_private.h`) is the bridge; before that decision it is not written yet.
#[inline(always)]
pub fn is_bridges_own(skb: u64) -> bool {
    let o = &OFFSETS.load();
    let bridge: u64 = probe_or_zero(skb + u64::from(o.skb_cb));
    let dev: u64 = probe_or_zero(skb + u64::from(o.skb_dev));
    bridge == dev && dev != 0
}

/// What an IPv4 route says.
#[derive(Clone, Copy)]
pub struct Route {
    /// It is that of a received packet.
    pub is_input: bool,
    /// `RTN_*`; 0: there is none.
    kind: u16,
}

impl Route {
    /// It is to many.
    #[inline(always)]
    pub fn is_to_many(self) -> bool {
        self.kind == RTN_BROADCAST || self.kind == RTN_MULTICAST
    }

    /// It ends at this node.
    #[inline(always)]
    pub fn is_to_here(self) -> bool {
        self.kind == RTN_LOCAL || self.is_to_many()
    }
}

/// What the verdict program needs from a dropped `sk_buff`.
#[derive(Clone, Copy)]
pub struct Dropped {
    /// `skb->skb_iif`: the interface it came in through, 0 if it was made here.
    pub iif: u32,
    /// Ifindex of `skb->dev`, 0 if none.
    pub dev: u32,
    /// Ifindex of the device of its route, 0 if none.
    pub dst: u32,
    /// Network namespace inode, 0 if the skb has neither device nor route.
    pub netns: u32,
    /// The number a hook gave it (`skb->tc_index`), 0 if none.
    pub number: u16,
    /// Clones of it have been made: some of them may live on.
    pub cloned: bool,
    /// It is itself the clone of a packet that a socket of this node holds until it is acknowledged.
    pub sent_clone: bool,
    /// It was addressed to many (as the interface that received it saw it).
    pub group: bool,
    /// It was addressed to another host (as the interface that received it saw it).
    pub other_host: bool,
    /// A socket of this node owns it.
    pub owned: bool,
    /// Address of its route, 0 if none.
    route: u64,
    /// Address of the device of its route, 0 if none.
    dst_dev: u64,
    /// Address of its `skb_shared_info`.
    shinfo: u64,
    /// Ethertype in host order: `skb->protocol`, or what stands behind the VLAN tags once they are read.
    pub protocol: u16,
    /// VLAN tag control information, 0 if none.
    pub vlan_tci: u16,
    /// Bytes from the network header on.
    pub l3_available: u32,
    /// GSO segment payload size, 0 if not GSO.
    pub gso_size: u32,
    /// GSO segments, 0 if not known.
    pub gso_segs: u32,
    /// The mark that the firewall gave it, as far as it is wanted; 0: none.
    pub mark: u32,
    pub headers: Linear,
}

impl Dropped {
    /// Largest packet that the device of its route takes; 0: not known.
    #[inline(always)]
    pub fn mtu(&self) -> u32 {
        probe_or_zero(self.dst_dev + u64::from(OFFSETS.load().dev_mtu))
    }

    /// Buffers that share its data, itself included.
    #[inline(always)]
    pub fn sharers(&self) -> u32 {
        probe_or_zero::<u32>(self.shinfo + u64::from(OFFSETS.load().shinfo_dataref)) & DATAREF
    }

    /// The gateway of its IPv4 route, 0 if there is none; one that is an IPv6 address in all four words.
    #[inline(always)]
    pub fn gateway4(&self) -> [u32; 4] {
        let o = &OFFSETS.load();
        let family: u8 = probe_or_zero(self.route + u64::from(o.rt_gw_family));
        let gateway: [u32; 4] = probe_or_zero(self.route + u64::from(o.rt_gw));
        match family {
            AF_INET => [gateway[0], 0, 0, 0],
            AF_INET6 => gateway,
            _ => [0; 4],
        }
    }

    /// The gateway of its IPv6 route, 0 if there is none.
    #[inline(always)]
    pub fn gateway6(&self) -> [u32; 4] {
        probe_or_zero(self.route + u64::from(OFFSETS.load().rt6_gateway))
    }

    /// What its IPv4 route says. Of an IPv6 packet it means nothing.
    #[inline(always)]
    pub fn route(&self) -> Route {
        let o = &OFFSETS.load();
        let (kind, is_input) = if o.rt_is_input == o.rt_type + 2 {
            // Side by side, in every kernel so far: one call.
            let both: u32 = probe_or_zero(self.route + u64::from(o.rt_type));
            (both & 0xffff, both >> 16 & 0xff)
        } else {
            let kind: u16 = probe_or_zero(self.route + u64::from(o.rt_type));
            let is_input: u8 = probe_or_zero(self.route + u64::from(o.rt_is_input));
            (u32::from(kind), u32::from(is_input))
        };
        Route { is_input: forget(is_input) != 0, kind: forget(kind) as u16 }
    }

    /// Goes behind the VLAN tags that are in front of the network header. The kernel takes the outermost one out of a frame; behind it,
    /// the buffer has the ethertype of the next tag.
    #[inline(always)]
    pub fn skip_tags(&mut self) {
        for _ in 0..VLAN_TAGS_MAX {
            if self.protocol != ETH_P_8021Q && self.protocol != ETH_P_8021AD {
                return;
            }
            let [t0, t1, p0, p1]: [u8; 4] = probe_or_zero::<u32>(self.headers.address).to_ne_bytes();
            if self.vlan_tci == 0 {
                self.vlan_tci = u16::from_be_bytes([t0, t1]);
            }
            self.protocol = u16::from_be_bytes([p0, p1]);
            self.headers.address += TAG_BYTES;
            self.headers.len = self.headers.len.saturating_sub(TAG_BYTES as usize);
            self.l3_available = self.l3_available.saturating_sub(TAG_BYTES as u32);
        }
    }

    /// Reads the members of `skb`. A function of its own: it fills the stack with offsets.
    ///
    /// # Safety
    /// `skb` must be the `struct sk_buff *` argument of the tracepoint, and `to` a place for what is read.
    #[inline(never)]
    pub unsafe fn read(skb: *const u8, to: *mut Self) {
        let o = &OFFSETS.load();
        // SAFETY: offsets come from this kernel's BTF for exactly these structs and members.
        unsafe {
            let head: u64 = member::<u64>(skb, o.skb_head);
            let data: u64 = member::<u64>(skb, o.skb_data);
            let len: u32 = member(skb, o.skb_len);
            let data_len: u32 = member(skb, o.skb_data_len);
            let network = head + u64::from(member::<u16>(skb, o.skb_network_header));
            // Bytes between the network header and `data`: negative at egress, where `data` is the link header.
            let pulled = data.wrapping_sub(network) as u32;
            let l3_available = len.wrapping_add(pulled);
            let shinfo = head + u64::from(member::<u32>(skb, o.skb_end));
            // The verifier knows the types along this way: plain loads, which read as 0 behind a null pointer.
            let dev = member::<*const u8>(skb, o.skb_dev);
            let mut netns: u32 = member(member::<*const u8>(dev, o.dev_net), o.net_inum);
            let dst = member::<u64>(skb, o.skb_refdst) & !1;
            let mut dst_ifindex = 0;
            let mut dst_dev = 0;
            if dst != 0 {
                dst_dev = probe_or_zero(dst + u64::from(o.dst_dev));
                dst_ifindex = probe_or_zero(dst_dev + u64::from(o.dev_ifindex));
                if netns == 0 {
                    let net: u64 = probe_or_zero(dst_dev + u64::from(o.dev_net));
                    netns = probe_or_zero(net + u64::from(o.net_inum));
                }
            }
            let (gso_size, gso_segs) = gso(shinfo, o);
            let cloned = member::<u8>(skb, o.skb_cloned) >> (o.skb_cloned_shift & 7) & 1;
            let fclone = member::<u8>(skb, o.skb_fclone) >> (o.skb_fclone_shift & 7) & FCLONE;
            let pkt_type = member::<u8>(skb, o.skb_pkt_type) >> (o.skb_pkt_type_shift & 7) & PKT_TYPE;
            to.write(Self {
                number: member(skb, o.skb_tc_index),
                cloned: cloned != 0,
                sent_clone: fclone == FCLONE_CLONE,
                route: dst,
                owned: member::<u64>(skb, o.skb_sk) != 0,
                group: pkt_type == PACKET_BROADCAST || pkt_type == PACKET_MULTICAST,
                other_host: pkt_type == PACKET_OTHERHOST,
                iif: member(skb, o.skb_iif),
                dev: member(dev, o.dev_ifindex),
                dst: forget(dst_ifindex),
                netns: forget(netns),
                dst_dev,
                shinfo,
                protocol: u16::from_be(member(skb, o.skb_protocol)),
                vlan_tci: member(skb, o.skb_vlan_tci),
                l3_available,
                gso_size,
                gso_segs,
                mark: mark(skb),
                headers: Linear { address: network, len: l3_available.wrapping_sub(data_len) as usize },
            });
        }
    }
}
