//! What the programs need to know about the running kernel: struct offsets and drop reasons, by name.

use flowlog_ebpf::abi::{
    KernelOffsets, REASON_BY_PLACE, REASON_REFUSED, REASON_TC_EGRESS, REASON_TC_INGRESS, REASON_XDP, REASONS,
    reason_index,
};

use super::{KernelError, btf::Btf};

/// Drop reasons that are a firewall's or policy's decision, and so make a REJECT row. Everything else (no socket,
/// TTL, checksum, queue full, no memory, protocol state) is the packet's own fate: the row stays ACCEPT.
/// Names as in `include/net/dropreason-core.h`, without the prefix `SKB_DROP_REASON_`.
const REFUSALS: &[(&str, u8)] = &[
    ("NETFILTER_DROP", REASON_REFUSED),
    ("BPF_CGROUP_EGRESS", REASON_REFUSED),
    ("SOCKET_FILTER", REASON_REFUSED),
    ("SECURITY_HOOK", REASON_REFUSED),
    ("XFRM_POLICY", REASON_REFUSED),
    ("IP_RPFILTER", REASON_REFUSED),
    ("TC_INGRESS", REASON_TC_INGRESS),
    ("TC_EGRESS", REASON_TC_EGRESS),
    ("XDP", REASON_XDP),
    // Generic XDP drops with no reason given (net/core/dev.c, bpf_prog_run_generic_xdp's callers): told by the place.
    ("NOT_SPECIFIED", REASON_BY_PLACE),
];
/// Functions whose unexplained drops are generic XDP's.
const XDP_FUNCTIONS: [&str; 2] = ["do_xdp_generic", "netif_receive_generic_xdp"];
/// More text than this in between, and the functions do not lie together.
const RANGE_MAX: u64 = 64 << 10;
const KALLSYMS: &str = "/proc/kallsyms";

const PREFIX: &str = "SKB_DROP_REASON_";

/// Open vSwitch keeps its reasons in its own module, as a subsystem of its own (`enum ovs_drop_reason`).
const OVS_BTF: &str = "/sys/kernel/btf/openvswitch";
const OVS_REFUSALS: &[&str] = &["OVS_DROP_EXPLICIT", "OVS_DROP_EXPLICIT_WITH_ERROR", "OVS_DROP_LAST_ACTION"];

/// Drop reasons of the running kernel.
#[derive(Clone, Debug, Default)]
pub struct Reasons {
    /// Indexed by `abi::reason_index`: 0 or `REASON_*`.
    pub actions: Vec<u8>,
    names: Vec<Option<String>>,
}

impl Reasons {
    /// Resolves names to this kernel's numbers.
    ///
    /// # Errors
    /// [`KernelError::MissingType`] if the kernel has no drop reasons at all (before 5.17).
    pub fn resolve(btf: &Btf) -> Result<Self, KernelError> {
        let mut reasons = Self { actions: vec![0; REASONS as usize], names: vec![None; REASONS as usize] };
        let core = btf
            .enum_members("skb_drop_reason")
            .ok_or(KernelError::MissingType { name: "enum skb_drop_reason".to_owned() })?;
        for (name, value) in core {
            let Some(name) = name.strip_prefix(PREFIX) else { continue };
            let action = REFUSALS.iter().find(|(n, _)| *n == name).map_or(0, |(_, action)| *action);
            reasons.set(value, name, action);
        }
        if let Ok(ovs) = Btf::from_file(std::path::Path::new(OVS_BTF)) {
            for (name, value) in ovs.enum_members("ovs_drop_reason").unwrap_or_default() {
                let action = if OVS_REFUSALS.contains(&name.as_str()) { REASON_REFUSED } else { 0 };
                reasons.set(value, &name, action);
            }
        }
        Ok(reasons)
    }

    fn set(&mut self, value: u32, name: &str, action: u8) {
        // Subsystem masks and the like are members too; they are past what the table holds.
        if value & 0xffff < 0x100 && value >> 16 < 4 {
            let index = reason_index(value) as usize;
            self.actions[index] = action;
            self.names[index] = Some(name.to_owned());
        }
    }

    /// `XDP_PLACE` of the programs: kernel text of generic XDP and the reason to record for a drop there. An empty
    /// range if the symbols cannot be read: such drops are then not seen.
    #[must_use]
    pub fn xdp_place(&self) -> [u64; 3] {
        let reason = self.names.iter().position(|n| n.as_deref() == Some("XDP")).unwrap_or(0);
        let symbols = std::fs::read_to_string(KALLSYMS).unwrap_or_default();
        let (first, last) = text_range(&symbols, &XDP_FUNCTIONS).unwrap_or((1, 0));
        [first, last, reason as u64]
    }

    /// Name of a reason as records carry it (`abi::reason_index`), for the column `reject_reason`.
    #[must_use]
    pub fn name(&self, index: u16) -> Option<&str> {
        self.names.get(usize::from(index))?.as_deref()
    }
}

/// First and last address of the functions, which must lie together: from the first one's start to the start of
/// whatever follows the last one. Symbols are listed in no order.
fn text_range(symbols: &str, functions: &[&str]) -> Option<(u64, u64)> {
    let mut addresses = Vec::new();
    let mut starts = Vec::new();
    for line in symbols.lines() {
        let mut parts = line.split_whitespace();
        let (address, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        let address = u64::from_str_radix(address, 16).ok().filter(|a| *a != 0)?;
        if matches!(kind, "t" | "T") {
            addresses.push(address);
            if functions.contains(&name.split('.').next().unwrap_or(name)) {
                starts.push(address);
            }
        }
    }
    let (first, start_of_last) = (*starts.iter().min()?, *starts.iter().max()?);
    let last = addresses.into_iter().filter(|a| *a > start_of_last).min()? - 1;
    (last - first < RANGE_MAX).then_some((first, last))
}

/// Resolves every offset the programs use.
///
/// # Errors
/// [`KernelError::MissingType`] naming the first member this kernel does not have.
pub fn offsets(btf: &Btf) -> Result<KernelOffsets, KernelError> {
    let of = |structure: &str, member: &str| {
        btf.offset(structure, member)
            .ok_or_else(|| KernelError::MissingType { name: format!("struct {structure}.{member}") })
    };
    let net_inum = of("net", "ns")? + of("ns_common", "inum")?;
    Ok(KernelOffsets {
        skb_dev: of("sk_buff", "dev")?,
        skb_iif: of("sk_buff", "skb_iif")?,
        skb_len: of("sk_buff", "len")?,
        skb_data_len: of("sk_buff", "data_len")?,
        skb_head: of("sk_buff", "head")?,
        skb_data: of("sk_buff", "data")?,
        skb_end: of("sk_buff", "end")?,
        skb_network_header: of("sk_buff", "network_header")?,
        skb_protocol: of("sk_buff", "protocol")?,
        skb_refdst: of("sk_buff", "_skb_refdst")?,
        skb_vlan_tci: of("sk_buff", "vlan_tci")?,
        shinfo_gso_size: of("skb_shared_info", "gso_size")?,
        shinfo_gso_segs: of("skb_shared_info", "gso_segs")?,
        dev_ifindex: of("net_device", "ifindex")?,
        dev_net: of("net_device", "nd_net")?,
        net_inum,
        dst_dev: of("dst_entry", "dev")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_policy_reasons_are_refusals_on_the_running_kernel() {
        let btf = Btf::vmlinux().expect("this kernel has BTF");
        let reasons = Reasons::resolve(&btf).expect("reasons");
        let action = |name: &str| {
            let index = reasons.names.iter().position(|n| n.as_deref() == Some(name)).expect(name);
            reasons.actions[index]
        };
        assert_eq!(action("NETFILTER_DROP"), REASON_REFUSED);
        assert_eq!(action("TC_INGRESS"), REASON_TC_INGRESS);
        assert_eq!(action("NOT_SPECIFIED"), REASON_BY_PLACE);
        for fate in ["NO_SOCKET", "IP_CSUM", "SOCKET_RCVBUFF", "QDISC_DROP", "NOMEM"] {
            assert_eq!(action(fate), 0, "{fate}");
        }
        offsets(&btf).expect("all offsets");
    }
}
