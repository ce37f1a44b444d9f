//! A capture: what a flow log asks for on one interface, and what the kernel is told to watch for it.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{
    interface::{Bound, IfKey, Mac, Netns, Selector},
    labels::Labels,
    rule::{Action, Direction, InvalidField, Rule, Side, words},
};

/// How a direction of an interface is hooked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookKind {
    /// TC, as a tcx link (Linux 6.6), else as a clsact filter.
    #[default]
    Tc,
    /// TC, as a tcx link only.
    Tcx,
    /// TC, as a clsact filter only.
    Clsact,
    /// XDP in the driver, else generic. Ingress only.
    Xdp,
}

impl HookKind {
    const ALL: [Self; 4] = [Self::Tc, Self::Tcx, Self::Clsact, Self::Xdp];

    /// As in configuration files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Xdp => "xdp",
        }
    }
}

impl FromStr for HookKind {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|hook| hook.as_str() == s);
        named.ok_or_else(|| InvalidField::new("hook", s, words(&Self::ALL.map(Self::as_str))))
    }
}

/// One rule on one interface.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureSpec {
    /// Which interface is meant.
    pub interface: Selector,
    /// Its id in the cloud's inventory.
    pub interface_id: Option<String>,
    /// Contract of the interface's owner, if one is known.
    pub account_id: Option<String>,
    /// How to hook it.
    pub hook: HookKind,
    /// Which side of its owner's interface it is.
    pub side: Side,
    /// It need not exist at the start: it is captured when it appears.
    pub wait: bool,
    /// Rows have the other side of address translations.
    pub translations: bool,
    /// What its resource is known by: metadata of its objects.
    pub labels: Labels,
    /// What is captured, and where its objects go.
    pub rule: Rule,
    /// What its flow log is called now, if that is not the rule's name.
    pub called: Option<String>,
}

impl CaptureSpec {
    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.called.as_deref().unwrap_or(self.rule.name.as_str())
    }

    /// Id of the interface in records and keys.
    #[must_use]
    pub fn id(&self, node_id: &str) -> String {
        self.interface_id.clone().unwrap_or_else(|| format!("{node_id}-{}", self.interface.in_keys()))
    }
}

/// A watched interface and its rule: all that its windows need to become objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchSpec {
    /// Name of the interface, in the network namespace it is in.
    pub interface: String,
    /// Index of the interface, in the same namespace.
    pub ifindex: u32,
    /// How it is hooked.
    pub hook: HookKind,
    /// What is captured, and where its objects go.
    pub rule: Rule,
    /// Node it is on.
    pub node_id: String,
    /// Contract of its owner.
    pub account_id: Option<String>,
    /// As in records and keys.
    pub interface_id: String,
    /// Which side of its owner's interface it is.
    #[serde(default)]
    pub side: Side,
    /// Network namespace it is in (inode number).
    #[serde(default)]
    pub netns_inum: u32,
    /// What people call that, if it is not the agent's own.
    #[serde(default)]
    pub netns: Option<String>,
    /// Its hardware address: what it is found by in another namespace.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Rows have the other side of address translations.
    #[serde(default)]
    pub translations: bool,
    /// What its resource is known by: metadata of its objects.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl WatchSpec {
    /// Whether packets that a hook of this direction sees are wanted.
    #[must_use]
    pub fn captures(&self, hook: Direction) -> bool {
        self.rule.directions.includes(self.side.owners(hook))
    }

    /// Which interface it is on.
    #[must_use]
    pub fn key(&self) -> IfKey {
        IfKey { netns_inum: self.netns_inum, index: self.ifindex }
    }

    /// The network namespace that is in.
    #[must_use]
    pub fn namespace(&self) -> Netns {
        Netns::at(self.netns_inum, self.netns.as_deref())
    }

    /// What its interface is known by.
    #[must_use]
    pub fn bound(&self) -> Bound<'_> {
        Bound { name: &self.interface, index: self.ifindex, netns_inum: self.netns_inum, mac: self.mac }
    }

    /// Whether both are about one interface, as one node's watch follows another.
    #[must_use]
    pub fn is_on_same(&self, other: &Self) -> bool {
        self.key() == other.key() && self.node_id == other.node_id
    }

    /// Which kind of hook counts what comes in; `None`: nobody does. XDP counts for [`HookKind::Xdp`], where TC only notes.
    #[must_use]
    pub fn counts_ingress_by(&self) -> Option<HookKind> {
        (self.rule.action != Action::Rejected && self.captures(Direction::Ingress)).then_some(self.hook)
    }

    /// How its TC hooks are attached: XDP has some beside it.
    #[must_use]
    pub fn tc_hook(&self) -> HookKind {
        if self.hook == HookKind::Xdp { HookKind::Tc } else { self.hook }
    }

    /// Whether XDP counts what comes in for the one, and TC for the other.
    #[must_use]
    pub fn crosses_xdp(&self, other: &Self) -> bool {
        let by_xdp = |spec: &Self| spec.counts_ingress_by().map(|hook| hook == HookKind::Xdp);
        by_xdp(self).zip(by_xdp(other)).is_some_and(|(one, two)| one != two)
    }

    /// Whether it is the same rule on the same interface, which may have another name, and other labels, by now.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let Self { ifindex, hook, rule, node_id, account_id, interface_id, side, netns_inum, translations, .. } = other;
        (self.ifindex, self.hook, self.side, self.netns_inum) == (*ifindex, *hook, *side, *netns_inum)
            && (&self.rule, &self.node_id, &self.account_id) == (rule, node_id, account_id)
            && (&self.interface_id, self.translations) == (interface_id, *translations)
    }
}
