//! Drop reasons of the running kernel: names to numbers.

use flowlog_ebpf::abi::{REASON_LOST, REASONS, reason_index};

use super::{
    super::{KernelError, btf::Btf},
    known::{CORE, Known, NO_REASONS, OPEN_VSWITCH, QDISC, SUBSYSTEMS},
    moves::{self, Moves},
};

pub(super) const PREFIX: &str = "SKB_DROP_REASON_";
const SUBSYSTEM_PREFIX: &str = "SKB_DROP_REASON_SUBSYS_";
/// The upper half of a reason is its subsystem (`SKB_DROP_REASON_SUBSYS_SHIFT`).
const SUBSYSTEM_SHIFT: u32 = 16;
/// As many subsystems, and reasons of each, as `abi::REASONS` has room for.
const SUBSYSTEMS_MAX: u32 = 4;
const REASONS_MAX: u32 = REASONS / SUBSYSTEMS_MAX;

/// Open vSwitch keeps its reasons in its own module.
const OPEN_VSWITCH_MODULE: &str = "openvswitch";
const OPEN_VSWITCH_ENUM: &str = "ovs_drop_reason";

/// Drop reasons of the running kernel.
#[derive(Clone, Debug, Default)]
pub struct Reasons {
    /// Indexed by `abi::reason_index`: 0 (neither refused nor lost) or `REASON_*`.
    pub actions: Vec<u8>,
    pub(super) names: Vec<Option<String>>,
    unknown: Vec<String>,
    /// Reasons that the operator has moved and this kernel does not have.
    absent: Vec<String>,
}

impl Reasons {
    /// Resolves names to this kernel's numbers.
    ///
    /// # Errors
    /// [`KernelError::MissingType`] if the kernel has no drop reasons at all (before 5.17).
    pub(crate) fn resolve(btf: &Btf<'_>) -> Result<Self, KernelError> {
        let core = btf
            .enum_members("skb_drop_reason")
            .ok_or(KernelError::MissingType { name: "enum skb_drop_reason".to_owned() })?;
        let module = btf.module(OPEN_VSWITCH_MODULE);
        let open_vswitch = btf
            .enum_members(OPEN_VSWITCH_ENUM) // built in
            .or_else(|| module.ok()?.enum_members(OPEN_VSWITCH_ENUM));
        let mut reasons = Self::none();
        reasons.add(core, CORE);
        reasons.add(open_vswitch.unwrap_or_default(), OPEN_VSWITCH);
        reasons.add(btf.enum_members("qdisc_drop_reason").unwrap_or_default(), QDISC);
        reasons.look_at_subsystems(&btf.enum_members("skb_drop_reason_subsys").unwrap_or_default());
        Ok(reasons)
    }

    fn none() -> Self {
        Self {
            actions: vec![0; REASONS as usize],
            names: vec![None; REASONS as usize],
            unknown: Vec::new(),
            absent: Vec::new(),
        }
    }

    fn add(&mut self, members: Vec<(String, u32)>, known: &[Known]) {
        for (name, value) in members {
            let name = name.strip_prefix(PREFIX).unwrap_or(&name);
            if NO_REASONS.contains(&name) {
                continue;
            }
            let known = known.iter().find(|k| k.name == name);
            if known.is_none() {
                self.unknown.push(name.to_owned());
            }
            self.set(value, name, known.map_or(0, |k| k.action));
        }
    }

    fn set(&mut self, value: u32, name: &str, action: u8) {
        let subsystem = value >> SUBSYSTEM_SHIFT;
        let reason = value & ((1 << SUBSYSTEM_SHIFT) - 1);
        if subsystem < SUBSYSTEMS_MAX && reason < REASONS_MAX {
            let index = reason_index(value) as usize;
            self.actions[index] = action;
            self.names[index] = Some(name.to_owned());
        } else if !self.unknown.iter().any(|n| n == name) {
            // Past what the programs can tell apart.
            self.unknown.push(name.to_owned());
        }
    }

    fn look_at_subsystems(&mut self, subsystems: &[(String, u32)]) {
        let names = subsystems.iter().map(|(name, _)| name);
        let unknown = names.filter(|n| n.strip_prefix(SUBSYSTEM_PREFIX).is_none_or(|n| !SUBSYSTEMS.contains(&n)));
        self.unknown.extend(unknown.cloned());
    }

    /// Has reasons count as the operator wants it.
    ///
    /// # Errors
    /// [`KernelError::Setting`] for a name that neither this kernel has nor one that is known.
    pub(crate) fn with(mut self, moves: &Moves) -> Result<Self, KernelError> {
        for (name, action) in moves.actions() {
            if let Some(index) = self.names.iter().position(|n| n.as_deref() == Some(name)) {
                self.actions[index] = action;
            } else if moves::known(name).is_some() {
                self.absent.push(name.to_owned());
            } else {
                return Err(Moves::unheard_of(name, self.names()).into());
            }
        }
        Ok(self)
    }

    /// Reasons that the operator has moved and this kernel does not have, in words; `None`: it has all.
    #[must_use]
    pub fn absent(&self) -> Option<String> {
        (!self.absent.is_empty()).then(|| {
            format!("no drop reasons {}; what `[reasons]` says of them changes nothing here", self.absent.join(", "))
        })
    }

    /// How many reasons mean REJECT, and how many that a packet was lost.
    #[must_use]
    pub(crate) fn counts(&self) -> (usize, usize) {
        let those = |wanted: fn(u8) -> bool| self.actions.iter().map(|a| usize::from(wanted(*a))).sum();
        (those(|a| a != 0 && a != REASON_LOST), those(|a| a == REASON_LOST))
    }

    /// Name of a reason as records carry it (`abi::reason_index`), for `reject_reason` and `lost_reason`.
    #[must_use]
    pub fn name(&self, index: u16) -> Option<&str> {
        self.names.get(usize::from(index))?.as_deref()
    }

    /// All names that this kernel has.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().flatten().map(String::as_str)
    }

    /// The part of the kernel that refuses packets for a reason, for the column `verdict_rule`; `None`: nothing is known of it.
    #[must_use]
    pub fn subsystem(&self, index: u16) -> Option<&'static str> {
        Some(match self.name(index)? {
            "NETFILTER_DROP" => "netfilter",
            "BPF_CGROUP_EGRESS" | "SOCKET_FILTER" => "cgroup",
            "SECURITY_HOOK" => "security",
            "XFRM_POLICY" => "xfrm",
            "IP_RPFILTER" => "rp_filter",
            "TC_INGRESS" | "TC_EGRESS" => "tc",
            "XDP" => "xdp",
            name if name.starts_with("OVS_") => "openvswitch",
            _ => return None,
        })
    }

    /// Reasons of this kernel that this release does not know, in words; `None`: it knows all. They are not refusals.
    #[must_use]
    pub fn unknown(&self) -> Option<String> {
        (!self.unknown.is_empty()).then(|| {
            let names = self.unknown.join(", ");
            format!("drop reasons that this release does not know; packets that die for them are ACCEPT: {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flowlog_ebpf::abi::{REASON_BY_PLACE, REASON_REFUSED};
    use known::all as table;

    use super::{super::known, *};

    const KERNELS: &str = include_str!("kernels.txt");
    const DOCS: &str = include_str!("../../../../docs/reasons.md");

    /// Name and kernels of every reason that a tested kernel has.
    fn of_kernels() -> impl Iterator<Item = (&'static str, &'static str)> {
        KERNELS.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_once(' ').expect("kernels"))
    }

    #[test]
    fn every_reason_of_every_tested_kernel_is_in_the_table_once() {
        let names: Vec<&str> = table().map(|k| k.name).collect();
        let known: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(known.len(), names.len(), "a name is in the table twice");
        assert_eq!(known, of_kernels().map(|(name, _)| name).collect());
    }

    #[test]
    fn the_docs_show_the_table() {
        let kernels: Vec<_> = of_kernels().collect();
        let row = |known: &Known| {
            let verdict = match known.action {
                0 => "ACCEPT",
                REASON_LOST => "ACCEPT, lost",
                REASON_BY_PLACE => "by place",
                _ => "REJECT",
            };
            let (_, linux) = kernels.iter().find(|(name, _)| *name == known.name).expect("a kernel has it");
            format!("| `{}` | {verdict} | {} | {} |", known.name, known.why, linux.replace(' ', ", "))
        };
        let shown: Vec<&str> = DOCS.lines().filter(|l| l.starts_with("| `")).collect();
        assert_eq!(shown, table().map(row).collect::<Vec<_>>(), "docs/reasons.md");
    }

    #[test]
    fn moved_reasons_count_as_the_operator_says_and_names_are_checked_against_the_kernel() {
        let reasons = || {
            let mut reasons = Reasons::none();
            let member = |name: &str, value| (format!("SKB_DROP_REASON_{name}"), value);
            reasons.add(vec![member("NO_SOCKET", 3), member("NOMEM", 4), member("OMINOUS", 5)], CORE);
            reasons
        };
        let lost = |name: &str| Moves::new(&[], &[name.to_owned()], &["NOMEM".to_owned()]).expect("sound");
        assert_eq!(reasons().actions[3..6], [0, REASON_LOST, 0]);
        let moved = reasons().with(&lost("NO_SOCKET")).expect("a reason of this kernel");
        assert_eq!((&moved.actions[3..6], moved.counts(), moved.absent()), (&[REASON_LOST, 0, 0][..], (0, 1), None));
        // One that only this kernel has, and one that only others have.
        assert_eq!(reasons().with(&lost("OMINOUS")).expect("of this kernel").actions[5], REASON_LOST);
        let absent = reasons().with(&lost("TCP_CSUM")).expect("of another kernel").absent().expect("said");
        assert!(absent.starts_with("no drop reasons TCP_CSUM;"), "{absent}");
        let error = reasons().with(&lost("NO_SOKET")).expect_err("of no kernel").to_string();
        assert!(error.starts_with("reasons `NO_SOKET`: no kernel has") && error.contains("`NO_SOCKET`"), "{error}");
    }

    #[test]
    fn the_running_kernel_is_known() {
        let btf = Btf::vmlinux().expect("this kernel has BTF");
        let reasons = Reasons::resolve(&btf).expect("reasons");
        assert_eq!(reasons.unknown(), None, "add to `known.rs`, `kernels.txt` and docs/reasons.md");
    }

    #[test]
    fn what_a_new_kernel_adds_is_said_by_name_and_is_no_refusal() {
        let member = |name: &str, value| (name.to_owned(), value);
        let mut reasons = Reasons::none();
        let core = vec![
            member("SKB_NOT_DROPPED_YET", 0),
            member("SKB_DROP_REASON_NETFILTER_DROP", 8),
            member("SKB_DROP_REASON_OMINOUS", 9),
            member("SKB_DROP_REASON_SUBSYS_MASK", 0xffff_0000),
        ];
        reasons.add(core, CORE);
        reasons.add(vec![member("__OVS_DROP_REASON", 3 << 16), member("OVS_DROP_METER", 3 << 16 | 5)], OPEN_VSWITCH);
        assert_eq!(
            reasons.unknown(),
            Some(
                "drop reasons that this release does not know; packets that die for them are ACCEPT: OMINOUS"
                    .to_owned()
            )
        );
        assert_eq!((reasons.actions[9], reasons.name(9)), (0, Some("OMINOUS")));
        let refusals: Vec<usize> = (0..reasons.actions.len()).filter(|i| reasons.actions[*i] != 0).collect();
        assert_eq!(refusals, [8, 0x305]);
        assert_eq!(reasons.actions[0x305], REASON_REFUSED);

        // A subsystem or reason that the programs' table has no room for, and a subsystem of another name.
        reasons.add(
            vec![member("OVS_DROP_EXPLICIT", 4 << 16 | 3), member("OVS_DROP_IP_TTL", 3 << 16 | 0x100)],
            OPEN_VSWITCH,
        );
        reasons
            .look_at_subsystems(&[member("SKB_DROP_REASON_SUBSYS_CORE", 0), member("SKB_DROP_REASON_SUBSYS_NEW", 4)]);
        let unknown = reasons.unknown().expect("unknown");
        assert!(
            unknown.ends_with("OMINOUS, OVS_DROP_EXPLICIT, OVS_DROP_IP_TTL, SKB_DROP_REASON_SUBSYS_NEW"),
            "{unknown}"
        );
        assert_eq!(reasons.actions.iter().filter(|a| **a != 0).count(), 2);
    }
}
