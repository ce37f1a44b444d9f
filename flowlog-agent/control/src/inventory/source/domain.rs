//! What is in a status file of libvirt: a running domain and its interfaces. Pure.
//!
//! ```xml
//! <domstatus state='running'>
//!   <domain type='kvm' id='1'>
//!     <name>instance-0000000a</name>
//!     <uuid>…</uuid>
//!     <metadata>
//!       <nova:instance><nova:name>web</nova:name><nova:owner><nova:project uuid='…'>acme</nova:project></nova:owner>
//!         <nova:ports><nova:port uuid='…'/></nova:ports></nova:instance>
//!     </metadata>
//!     <devices>
//!       <interface type='bridge'>
//!         <mac address='…'/><virtualport type='openvswitch'><parameters interfaceid='…'/></virtualport>
//!         <target dev='tap0'/><alias name='net0'/>
//! ```
//!
//! It is read element by element: nothing is expanded, and what is deep or long is refused.

use std::{collections::BTreeMap, str};

use flowlog_model::{interface::Mac, rule::Side, text::quotable};
use quick_xml::{
    Reader,
    events::{BytesRef, BytesStart, Event},
};
use uuid::Uuid;

use super::{FoundNic, Identity};

/// Elements inside each other; libvirt's files have a dozen.
const DEPTH_MAX: usize = 64;
/// Interfaces of one domain; a machine has slots for fewer.
const INTERFACES_MAX: usize = 256;
/// Longest text that is kept, as that of a name.
const TEXT_BYTES_MAX: usize = 1_024;
/// Neutron's taps are called by so much of their port's id.
const PORT_IN_TAP_BYTES: usize = 11;

/// One `<interface>`.
#[derive(Debug, Default)]
struct Card {
    kind: String,
    mac: Option<Mac>,
    target: Option<String>,
    alias: String,
    /// The cloud's id of its port.
    port: Option<String>,
}

/// What is known of a domain so far.
#[derive(Debug, Default)]
struct Domain {
    name: String,
    uuid: String,
    /// Nova's name of it.
    nova_name: String,
    project: Option<String>,
    project_name: String,
    /// Ids of its ports, in Nova's words.
    ports: Vec<String>,
    cards: Vec<Card>,
}

/// The NICs of a domain that have an interface on this node.
///
/// # Errors
/// If it is no status file, or not all of one.
pub(super) fn nics(text: &str) -> Result<Vec<FoundNic>, String> {
    let mut reader = Reader::from_str(text);
    let mut at: Vec<String> = Vec::new();
    let mut domain = Domain::default();
    loop {
        let event = reader.read_event().map_err(|e| format!("at byte {}: {e}", reader.error_position()))?;
        match event {
            Event::Start(element) => {
                if at.len() == DEPTH_MAX {
                    return Err(format!("more than {DEPTH_MAX} elements inside each other"));
                }
                at.push(local_name(&element));
                domain.begin(&at, &element)?;
            }
            Event::Empty(element) => {
                at.push(local_name(&element));
                domain.begin(&at, &element)?;
                at.pop();
            }
            Event::End(_) => drop(at.pop()),
            Event::Text(words) => domain.text(&at, &words.decode().map_err(|e| e.to_string())?),
            Event::CData(words) => domain.text(&at, &words.decode().map_err(|e| e.to_string())?),
            Event::GeneralRef(reference) => domain.text(&at, &character(&reference)?),
            Event::DocType(_) => return Err("has a document type, which libvirt does not write".to_owned()),
            Event::Eof => break,
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
        }
    }
    if let Some(open) = at.last() {
        return Err(format!("ends within <{}>", quotable(open)));
    }
    domain.nics()
}

/// The name of an element without its namespace: Nova's prefix may be any.
fn local_name(element: &BytesStart<'_>) -> String {
    String::from_utf8_lossy(element.local_name().as_ref()).into_owned()
}

/// The five entities that XML has by itself, and characters by number. There are no others without a document type.
fn character(reference: &BytesRef<'_>) -> Result<String, String> {
    if let Some(c) = reference.resolve_char_ref().map_err(|e| e.to_string())? {
        return Ok(c.to_string());
    }
    let name = reference.decode().map_err(|e| e.to_string())?;
    let known = match &*name {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        other => return Err(format!("entity `{}` is not known", quotable(other))),
    };
    Ok(known.to_owned())
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    let Some(found) = element.try_get_attribute(name).map_err(|e| e.to_string())? else { return Ok(None) };
    let raw = str::from_utf8(&found.value).map_err(|e| e.to_string())?;
    let value = quick_xml::escape::unescape(raw).map_err(|e| e.to_string())?;
    if value.len() > TEXT_BYTES_MAX {
        return Err(format!("attribute `{name}` has {} bytes; at most {TEXT_BYTES_MAX} are read", value.len()));
    }
    Ok(Some(value.into_owned()))
}

/// Where an element is within its domain.
fn within(at: &[String]) -> Vec<&str> {
    let below = at.iter().position(|name| name == "domain").map_or(at.len(), |n| n + 1);
    at[below..].iter().map(String::as_str).collect()
}

impl Domain {
    fn begin(&mut self, at: &[String], element: &BytesStart<'_>) -> Result<(), String> {
        match within(at)[..] {
            ["devices", "interface"] => {
                if self.cards.len() == INTERFACES_MAX {
                    return Err(format!("more than {INTERFACES_MAX} interfaces"));
                }
                let kind = attribute(element, "type")?.unwrap_or_default();
                self.cards.push(Card { kind, ..Card::default() });
            }
            ["devices", "interface", ref below @ ..] => {
                if let Some(card) = self.cards.last_mut() {
                    card.begin(below, element)?;
                }
            }
            ["metadata", "instance", "owner", "project"] => self.project = attribute(element, "uuid")?,
            ["metadata", "instance", "ports", "port"] => self.ports.extend(attribute(element, "uuid")?),
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, at: &[String], words: &str) {
        let place = match within(at)[..] {
            ["name"] => &mut self.name,
            ["uuid"] => &mut self.uuid,
            ["metadata", "instance", "name"] => &mut self.nova_name,
            ["metadata", "instance", "owner", "project"] => &mut self.project_name,
            _ => return,
        };
        // What is longer is cut: a name is only shown.
        let room = TEXT_BYTES_MAX.saturating_sub(place.len());
        place.extend(words.char_indices().take_while(|(n, c)| n + c.len_utf8() <= room).map(|(_, c)| c));
    }

    fn nics(self) -> Result<Vec<FoundNic>, String> {
        let uuid = self.uuid.trim();
        let vm: Uuid = uuid.parse().map_err(|_no_uuid| format!("a domain's uuid is `{}`", quotable(uuid)))?;
        let name = if self.nova_name.is_empty() { &self.name } else { &self.nova_name };
        let mut nics = Vec::new();
        // One without a device on this node is the hardware's, or another process's: nothing here sees its packets.
        for (card, target) in self.cards.iter().filter_map(|c| Some((c, c.target.clone()?))) {
            let port = card.port.clone().or_else(|| self.port_of(&target));
            let identity = match (port, card.mac) {
                (Some(port), _) => Identity::of_port(&port),
                (None, Some(mac)) => Identity::VmAndMac(vm, mac),
                (None, None) => continue,
            };
            let mut labels = BTreeMap::from([("vm".into(), name.trim().to_owned())]);
            let more = [("domain", self.name.trim()), ("project_name", self.project_name.trim()), ("nic", &card.alias)];
            let more = more
                .into_iter()
                .filter(|(label, value)| !value.is_empty() && (*label, *value) != ("domain", name.trim()));
            labels.extend(more.map(|(label, value)| (label.into(), value.to_owned())));
            nics.push(FoundNic {
                identity,
                interface: target,
                mac: card.mac,
                server: Some(vm),
                name: name.trim().to_owned(),
                project: self.project.clone(),
                labels,
                groups: BTreeMap::new(),
                // A macvtap is the guest's interface itself: what it sends leaves through it.
                side: (card.kind == "direct").then_some(Side::Host),
            });
        }
        Ok(nics)
    }

    /// Nova's port that a tap is called by.
    fn port_of(&self, target: &str) -> Option<String> {
        let beginning = target.strip_prefix("tap").filter(|rest| rest.len() == PORT_IN_TAP_BYTES)?;
        self.ports.iter().find(|port| port.starts_with(beginning)).cloned()
    }
}

impl Card {
    /// `at` is below the interface; what a network has become is in `<actual>`.
    fn begin(&mut self, at: &[&str], element: &BytesStart<'_>) -> Result<(), String> {
        match at {
            ["mac"] => self.mac = attribute(element, "address")?.and_then(|text| text.parse().ok()),
            ["target"] => self.target = attribute(element, "dev")?.filter(|dev| !dev.is_empty()),
            ["alias"] => self.alias = attribute(element, "name")?.unwrap_or_default(),
            ["actual"] => self.kind = attribute(element, "type")?.unwrap_or_default(),
            ["virtualport" | "actual", .., "parameters"] => {
                let port = attribute(element, "interfaceid")?;
                self.port = port.or(self.port.take());
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE.\n-->\n
<domstatus state='running' reason='booted' pid='7'>
  <monitor path='/x'/>
  <domain type='qemu' id='1'>
    <name>instance-0000000a</name>
    <uuid>7d2b0d3a-4f5e-4a60-8f57-3a1f2f3c0001</uuid>
    <metadata>
      <nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
        <nova:name>web &amp; &#x61;pp</nova:name>
        <nova:owner><nova:user uuid='u'>bob</nova:user><nova:project uuid='0123'>acme</nova:project></nova:owner>
        <nova:ports><nova:port uuid='5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad001'><nova:ip type='fixed' address='10.0.0.1'/></nova:port></nova:ports>
      </nova:instance>
    </metadata>
    <devices>
      <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br'/>
        <virtualport type='openvswitch'><parameters interfaceid='5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad002'/></virtualport>
        <target dev='vnet0'/><alias name='net0'/></interface>
      <interface type='network'><mac address='52:54:00:00:00:02'/>
        <actual type='direct'><source dev='eth0' mode='bridge'/></actual>
        <target dev='macvtap0'/><alias name='net1'/></interface>
      <interface type='bridge'><mac address='52:54:00:00:00:03'/><target dev='tap5c1b7c1e-0a'/><alias name='net2'/></interface>
      <interface type='hostdev'><mac address='52:54:00:00:00:04'/></interface>
    </devices>
  </domain>
</domstatus>";

    #[test]
    fn a_domain_has_its_name_project_and_nics_each_by_its_port_else_by_its_address() {
        let nics = nics(STATUS).expect("a status file");
        let ids: Vec<Identity> = nics.iter().map(|n| n.identity.clone()).collect();
        let vm = "7d2b0d3a-4f5e-4a60-8f57-3a1f2f3c0001".parse().expect("an id");
        let port = |n: u8| Identity::of_port(&format!("5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad00{n}"));
        let by_mac = Identity::VmAndMac(vm, "52:54:00:00:00:02".parse().expect("an address"));
        assert_eq!(ids, [port(2), by_mac, port(1)]);
        let sides: Vec<Option<Side>> = nics.iter().map(|n| n.side).collect();
        assert_eq!(sides, [None, Some(Side::Host), None]);
        assert!(nics.iter().all(|n| n.server == Some(vm) && n.project.as_deref() == Some("0123")));
        let labels: Vec<(&str, &str)> = nics[0].labels.iter().map(|(k, v)| (k.as_ref(), v.as_str())).collect();
        let expected =
            [("domain", "instance-0000000a"), ("nic", "net0"), ("project_name", "acme"), ("vm", "web & app")];
        assert_eq!(labels, expected);
        assert_eq!(nics[2].interface, "tap5c1b7c1e-0a");
    }

    #[test]
    fn what_is_torn_deep_long_or_has_entities_of_its_own_is_refused_in_one_line() {
        for cut in [10, STATUS.len() / 2, STATUS.len() - 3] {
            assert!(nics(&STATUS[..cut]).is_err(), "the first {cut} bytes");
        }
        let deep = format!("{}{}", "<a>".repeat(65), "</a>".repeat(65));
        let many = STATUS
            .replace("<interface type='hostdev'>", &"<interface type='x'/>".repeat(300))
            .replace("<mac address='52:54:00:00:00:04'/></interface>", "");
        let bomb = format!("<!DOCTYPE d [<!ENTITY a 'aaaa'>]>{STATUS}");
        for (bad, words) in [
            (deep.as_str(), "more than 64 elements"),
            (&many, "more than 256 interfaces"),
            (&bomb, "document type"),
            (&STATUS.replace("web &amp;", "web &a;"), "entity `a`"),
            (&STATUS.replace("vnet0", &"v".repeat(2_000)), "attribute `dev`"),
            ("<domstatus><domain><uuid>7</uuid></domain></domstatus>", "uuid is `7`"),
            ("", "uuid is ``"),
            ("<a></b>", "at byte"),
        ] {
            let error = nics(bad).expect_err(words);
            assert!(error.contains(words) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read_and_never_a_panic() {
        let mut seed = 7_u32;
        for _ in 0..2_000 {
            let mut bytes = STATUS.as_bytes().to_vec();
            for _ in 0..4 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = seed as usize % bytes.len();
                bytes[at] = b"<>&'\"/ax\0"[(seed >> 16) as usize % 9];
            }
            let _ = nics(&String::from_utf8_lossy(&bytes));
        }
    }
}
