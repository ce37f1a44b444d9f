//! Flow logs by selection: one of the configuration covers every NIC, gateway and balancer that it selects, those to come as well. Pure.
//!
//! Each takes one flow log all the same. What a customer has provisioned goes before any of these, and of these the first in the
//! configuration; a draft takes nothing's place.

use std::collections::BTreeSet;

use flowlog_model::{CaptureSpec, HookKind, Labels, interface::Selector, rule::Rule};
use uuid::Uuid;

use super::store::FlowLogStore;
use crate::inventory::{Contract, Inventory, Kind, Resource};

/// Which resources are meant: those of which all of this is so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    pub contract: Option<Contract>,
    pub kind: Option<Kind>,
    pub labels: Labels,
}

impl Select {
    fn selects(&self, resource: &Resource) -> bool {
        self.contract.as_ref().is_none_or(|c| *c == resource.contract)
            && self.kind.is_none_or(|k| k == resource.kind)
            && resource.labels.has(&self.labels)
    }
}

/// A flow log of the configuration that says `select`.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub select: Select,
    pub rule: Rule,
    pub hook: HookKind,
    /// Rows have the other side of address translations; `None`: as the inventory says.
    pub translations: Option<bool>,
}

impl Template {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        self.rule.name.as_str()
    }

    fn captures<'a>(&'a self, resource: &'a Resource) -> impl Iterator<Item = CaptureSpec> + 'a {
        resource.interfaces.iter().map(|i| CaptureSpec {
            interface: i.selector.clone(),
            interface_id: Some(i.id.clone()),
            account_id: Some(resource.contract.as_str().to_owned()),
            hook: self.hook,
            side: resource.side,
            wait: true,
            translations: self.translations.unwrap_or(resource.translations),
            labels: resource.labels.clone(),
            rule: self.rule.clone(),
            called: None,
        })
    }
}

/// All of them, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Templates {
    pub all: Vec<Template>,
    /// Interfaces that the configuration names itself: those have their flow log.
    pub fixed: Vec<Selector>,
}

impl Templates {
    /// The one that covers a resource, if it has no flow log of its own, and those that would as well.
    fn covering(&self, resource: &Resource) -> (Option<&Template>, Vec<&Template>) {
        let is_fixed = resource.interfaces.iter().any(|i| self.fixed.contains(&i.selector));
        let mut selecting = self.all.iter().filter(|t| !is_fixed && t.select.selects(resource));
        (selecting.next(), selecting.collect())
    }

    /// The one that covers a resource; `taken` are those that have a flow log of their own.
    #[must_use]
    pub(crate) fn of(&self, resource: &Resource, taken: &BTreeSet<Uuid>) -> Option<&Template> {
        self.covering(resource).0.filter(|_| !taken.contains(&resource.id))
    }

    /// What is to be captured by selection.
    #[must_use]
    pub fn captures(&self, inventory: &Inventory, taken: &BTreeSet<Uuid>) -> Vec<CaptureSpec> {
        let covered = inventory.resources.values().filter_map(|r| Some((r, self.of(r, taken)?)));
        covered.flat_map(|(resource, template)| template.captures(resource)).collect()
    }

    /// Resources that several select, in words.
    #[must_use]
    pub(crate) fn several(&self, inventory: &Inventory) -> BTreeSet<String> {
        let mut words = BTreeSet::new();
        for resource in inventory.resources.values() {
            if let (Some(first), others) = self.covering(resource) {
                let Resource { kind, id, .. } = resource;
                words.extend(others.iter().map(|other| {
                    format!(
                        "{kind} {id} is selected by flow log {} and by {}: the first in the configuration has it",
                        first.name(),
                        other.name()
                    )
                }));
            }
        }
        words
    }
}

/// Resources that have a flow log of their own, provisioned or about to be.
#[must_use]
pub fn taken(store: &FlowLogStore) -> BTreeSet<Uuid> {
    // One that is being deleted captures no more: what selects its parent has it from the same order on.
    store.flow_logs().values().filter(|f| f.state.captures()).map(|f| f.parent.id).collect()
}

#[cfg(test)]
mod tests {
    use flowlog_model::rule::Side;

    use super::*;
    use crate::inventory::Interface;

    fn labels(all: &[(&str, &str)]) -> Labels {
        let mut labels = Labels::default();
        for (name, value) in all {
            labels.insert(name, value).expect("a label");
        }
        labels
    }

    fn nic(n: u128, contract: &str, all: &[(&str, &str)]) -> Resource {
        Resource {
            id: Uuid::from_u128(n),
            kind: Kind::Nic,
            name: String::new(),
            contract: contract.parse().expect("contract"),
            datacenter: Uuid::from_u128(3),
            server: None,
            side: Side::Guest,
            translations: true,
            labels: labels(all),
            source: None,
            interfaces: vec![Interface { id: n.to_string(), selector: Selector::name(format!("tap{n}")) }],
        }
    }

    fn template(name: &str, select: Select) -> Template {
        let rule = Rule { name: name.parse().expect("a name"), ..Rule::sample(60) };
        Template { select, rule, hook: HookKind::Tc, translations: None }
    }

    fn covered(templates: &Templates, inventory: &Inventory, taken: &[u128]) -> Vec<(String, String)> {
        let taken = taken.iter().map(|n| Uuid::from_u128(*n)).collect();
        let captures = templates.captures(inventory, &taken);
        captures.iter().map(|c| (c.interface.to_string(), c.rule.name.as_str().to_owned())).collect()
    }

    #[test]
    fn each_resource_is_covered_by_the_first_that_selects_it_unless_it_has_a_flow_log_of_its_own() {
        let gateway = Resource { kind: Kind::NatGateway, ..nic(4, "a", &[]) };
        let all = [
            nic(1, "a", &[("env", "prod")]),
            nic(2, "a", &[("env", "test")]),
            nic(3, "b", &[("env", "prod")]),
            gateway,
        ];
        let inventory = Inventory { resources: all.into_iter().map(|r| (r.id, r)).collect(), ..Inventory::default() };
        let contract = Some("a".parse().expect("contract"));
        let templates = Templates {
            all: vec![
                template("prod", Select { labels: labels(&[("env", "prod")]), ..Select::default() }),
                template("nics", Select { contract, kind: Some(Kind::Nic), ..Select::default() }),
            ],
            fixed: Vec::new(),
        };
        let expected = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(i, t)| ((*i).to_owned(), (*t).to_owned())).collect()
        };
        assert_eq!(
            covered(&templates, &inventory, &[]),
            expected(&[("tap1", "prod"), ("tap2", "nics"), ("tap3", "prod")])
        );
        assert_eq!(covered(&templates, &inventory, &[1]), expected(&[("tap2", "nics"), ("tap3", "prod")]));
        let several = templates.several(&inventory);
        assert!(
            several.len() == 1 && several.iter().all(|w| w.contains("by flow log prod and by nics")),
            "{several:?}"
        );
        let fixed = Templates { fixed: vec![Selector::name("tap3")], ..templates };
        assert_eq!(covered(&fixed, &inventory, &[]), expected(&[("tap1", "prod"), ("tap2", "nics")]));
        let everything = Templates { all: vec![template("all", Select::default())], fixed: Vec::new() };
        assert_eq!(covered(&everything, &inventory, &[]).len(), 4);
    }

    #[test]
    fn a_capture_by_selection_has_what_the_inventory_says_of_its_resource() {
        let inventory =
            Inventory { resources: [nic(1, "a", &[("vm", "web")])].map(|r| (r.id, r)).into(), ..Inventory::default() };
        let mut one = template("all", Select::default());
        let of = |t: &Template| {
            Templates { all: vec![t.clone()], fixed: Vec::new() }.captures(&inventory, &BTreeSet::new()).remove(0)
        };
        let capture = of(&one);
        assert_eq!((capture.interface_id.as_deref(), capture.account_id.as_deref()), (Some("1"), Some("a")));
        assert!(capture.wait && capture.translations && capture.labels.get("vm") == Some("web"));
        one.translations = Some(false);
        assert!(!of(&one).translations);
    }
}
