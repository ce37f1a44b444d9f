//! Where the members of kernel structs are that the programs read. One table; the loader fills it in from the running kernel's BTF.

/// Where an offset comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Offset of a member, in bytes.
    Member(&'static str, &'static str),
    /// Offset of a member of a struct inside another: outer struct, its member, inner struct, its member.
    Nested(&'static str, &'static str, &'static str, &'static str),
    /// The byte that holds a bit field.
    BitByte(&'static str, &'static str),
    /// The lowest bit of a bit field in that byte.
    BitShift(&'static str, &'static str),
}

macro_rules! kernel_offsets {
    ($($name:ident: $place:ident($($word:literal),+),)+) => {
        /// Offsets of kernel struct members, resolved from the running kernel's BTF at load time.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct KernelOffsets {
            $(#[doc = stringify!($place($($word),+))] pub $name: u32,)+
        }

        impl KernelOffsets {
            /// Before they are resolved.
            pub const ZERO: Self = Self { $($name: 0,)+ };
            /// Where each comes from, in the order of the members.
            pub const PLACES: [Place; size_of::<Self>() / 4] = [$(Place::$place($($word),+),)+];
        }
    };
}

kernel_offsets! {
    skb_dev: Member("sk_buff", "dev"),
    skb_iif: Member("sk_buff", "skb_iif"),
    skb_len: Member("sk_buff", "len"),
    skb_data_len: Member("sk_buff", "data_len"),
    skb_head: Member("sk_buff", "head"),
    skb_data: Member("sk_buff", "data"),
    skb_end: Member("sk_buff", "end"),
    skb_network_header: Member("sk_buff", "network_header"),
    skb_protocol: Member("sk_buff", "protocol"),
    skb_refdst: Member("sk_buff", "_skb_refdst"),
    skb_vlan_tci: Member("sk_buff", "vlan_tci"),
    shinfo_gso_size: Member("skb_shared_info", "gso_size"),
    shinfo_gso_segs: Member("skb_shared_info", "gso_segs"),
    dev_ifindex: Member("net_device", "ifindex"),
    dev_net: Member("net_device", "nd_net"),
    net_inum: Nested("net", "ns", "ns_common", "inum"),
    dst_dev: Member("dst_entry", "dev"),
    skb_tc_index: Member("sk_buff", "tc_index"),
    skb_cloned: BitByte("sk_buff", "cloned"),
    skb_cloned_shift: BitShift("sk_buff", "cloned"),
    skb_pkt_type: BitByte("sk_buff", "pkt_type"),
    skb_pkt_type_shift: BitShift("sk_buff", "pkt_type"),
    skb_cb: Member("sk_buff", "cb"),
    sk_filter: Member("sock", "sk_filter"),
    dev_mtu: Member("net_device", "mtu"),
    skb_fclone: BitByte("sk_buff", "fclone"),
    skb_fclone_shift: BitShift("sk_buff", "fclone"),
    shinfo_dataref: Member("skb_shared_info", "dataref"),
    rt_is_input: Member("rtable", "rt_is_input"),
    rt_type: Member("rtable", "rt_type"),
    skb_sk: Member("sk_buff", "sk"),
    skb_encapsulation: BitByte("sk_buff", "encapsulation"),
    skb_encapsulation_shift: BitShift("sk_buff", "encapsulation"),
    skb_inner_transport: Member("sk_buff", "inner_transport_header"),
    shinfo_gso_type: Member("skb_shared_info", "gso_type"),
    rt_gw_family: Member("rtable", "rt_gw_family"),
    rt_gw: Member("rtable", "rt_gw4"),
    rt6_gateway: Member("rt6_info", "rt6i_gateway"),
    xdp_data: Member("xdp_buff", "data"),
    xdp_data_end: Member("xdp_buff", "data_end"),
    xdp_flags: Member("xdp_buff", "flags"),
    xdp_rxq: Member("xdp_buff", "rxq"),
    rxq_dev: Member("xdp_rxq_info", "dev"),
}
