//! What carries packets of an interface past our hooks: hardware that a driver has taught rules of tc (tc(8), `in_hw`; so do virtual switches with offload), and
//! flow tables of nftables (nft(8), "flags offload").
//!
//! A flow table without that flag is the kernel's own short cut: it is taken behind our hook on the way in, and past no hook on the way out.
//! So it hides nothing from us, and is not said. Not looked for is what switches know of themselves: bridging and routes in hardware.

use std::io;

use flowlog_model::rule::Direction;
use netlink_packet_core::Nla as _;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::{
    rtnetlink::ask_any,
    traffic_control::{hook, kind},
};

/// The hardware has the rule: `TCA_CLS_FLAGS_IN_HW` of `include/uapi/linux/pkt_cls.h`.
const IN_HW: u32 = 1 << 2;
/// Which option of a filter has its flags, by kind (`TCA_*_FLAGS` there).
const FLAGS: [(&str, u16); 4] = [("flower", 22), ("matchall", 3), ("u32", 11), ("bpf", 9)];

/// What carries packets past the hooks of this interface of the namespace we are in, in words: `tc flower in_hw (3 rules)`, `flow table inet f/ft`.
#[must_use]
pub fn of(name: &str, index: u32) -> Vec<String> {
    let mut found = Vec::new();
    for direction in Direction::BOTH {
        // It has none, or has gone meanwhile.
        let filters = filters(index, hook(direction)).unwrap_or_default();
        for (kind, _) in FLAGS {
            let rules = filters.iter().filter(|f| in_hardware(f) == Some(kind)).count();
            if rules > 0 {
                found.push(format!("tc {direction} {kind} in_hw ({rules} rules)"));
            }
        }
    }
    let tables = flow_tables().unwrap_or_default();
    found.extend(tables.into_iter().filter(|t| t.is_offloaded && t.has(name)).map(|t| t.words()));
    found
}

fn filters(index: u32, parent: TcHandle) -> io::Result<Vec<TcMessage>> {
    let mut request = TcMessage::default();
    request.header.index = index.cast_signed();
    request.header.parent = parent;
    let filters = ask_any(RouteNetlinkMessage::GetTrafficFilter(request), true)?.into_iter();
    let filters = filters.filter_map(|m| match m {
        // A chain's head has no handle, and is no filter.
        RouteNetlinkMessage::NewTrafficFilter(f) if f.header.handle != TcHandle::default() => Some(f),
        _ => None,
    });
    Ok(filters.collect())
}

/// The kind of a filter that the hardware has; `None`: it has it not.
fn in_hardware(filter: &TcMessage) -> Option<&'static str> {
    let kind = kind(filter)?;
    let (kind, wanted) = FLAGS.into_iter().find(|(known, _)| *known == kind)?;
    let options = filter.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let flags: &TcOption = options.iter().find(|o| o.kind() & NLA_TYPE_MASK == wanted)?;
    let mut bytes = vec![0; flags.value_len()];
    flags.emit_value(&mut bytes);
    (u32::from_ne_bytes(*bytes.first_chunk()?) & IN_HW != 0).then_some(kind)
}

/// `NLA_TYPE_MASK` of `include/uapi/linux/netlink.h`: without the marks of nested and big-endian attributes.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `NFNL_SUBSYS_NFTABLES` in the upper half, and `NFT_MSG_GETFLOWTABLE` of `include/uapi/linux/netfilter/nf_tables.h`.
const GET_FLOW_TABLE: u16 = 0x0a17;
/// The answer: `NFT_MSG_NEWFLOWTABLE`.
const NEW_FLOW_TABLE: u16 = 0x0a16;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`, and of that and `struct nfgenmsg`.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
/// `NFTA_FLOWTABLE_TABLE`, `_NAME`, `_HOOK`, `_FLAGS`.
const TABLE: u16 = 1;
const NAME: u16 = 2;
const HOOK: u16 = 3;
const TABLE_FLAGS: u16 = 7;
/// `NFTA_FLOWTABLE_HOOK_DEVS`, in it `NFTA_DEVICE_NAME` and, of Linux 6.16, `NFTA_DEVICE_PREFIX`.
const HOOK_DEVICES: u16 = 3;
const DEVICE_NAME: u16 = 1;
const DEVICE_PREFIX: u16 = 2;
/// `NFT_FLOWTABLE_HW_OFFLOAD`.
const HW_OFFLOAD: u32 = 1;
/// More than the kernel puts into one answer.
const ANSWER_BYTES: usize = 64 << 10;

/// A flow table of nftables.
#[derive(Debug, Default, PartialEq, Eq)]
struct FlowTable {
    /// Of its address family: `inet`, `ip`, `ip6`.
    family: u8,
    table: String,
    name: String,
    /// Hardware is to have its flows.
    is_offloaded: bool,
    devices: Vec<String>,
    /// How the names of further devices begin.
    prefixes: Vec<String>,
}

impl FlowTable {
    fn has(&self, device: &str) -> bool {
        self.devices.iter().any(|d| d == device) || self.prefixes.iter().any(|p| device.starts_with(p))
    }

    fn words(&self) -> String {
        let family = match self.family {
            1 => "inet",
            2 => "ip",
            10 => "ip6",
            _ => "other",
        };
        format!("flow table {family} {}/{} with offload", self.table, self.name)
    }
}

/// All of them in the namespace we are in.
fn flow_tables() -> io::Result<Vec<FlowTable>> {
    let protocol = Some(netlink::NETFILTER);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    let mut request = Vec::with_capacity(HEADERS);
    request.extend_from_slice(&20u32.to_ne_bytes());
    request.extend_from_slice(&GET_FLOW_TABLE.to_ne_bytes());
    request.extend_from_slice(&DUMP.to_ne_bytes());
    // Sequence and port; family, version, and nothing in particular.
    request.extend_from_slice(&[0; 12]);
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut found = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES];
    loop {
        let (n, _) = rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
        if read_answer(&answer[..n], &mut found)? {
            return Ok(found);
        }
    }
}

/// Reads the messages of an answer; `true`: it was the last.
fn read_answer(mut rest: &[u8], found: &mut Vec<FlowTable>) -> io::Result<bool> {
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        match kind {
            DONE => return Ok(true),
            // Without nftables in the kernel there are none.
            ERROR => {
                let code = rest.get(HEADER..).and_then(<[u8]>::first_chunk).map_or(0, |c| i32::from_ne_bytes(*c));
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            NEW_FLOW_TABLE => found.extend(rest.get(HEADER..length).and_then(flow_table)),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
    }
    Ok(false)
}

/// What stands behind the header of a message: `struct nfgenmsg`, attributes.
fn flow_table(bytes: &[u8]) -> Option<FlowTable> {
    let mut table = FlowTable { family: *bytes.first()?, ..FlowTable::default() };
    for (kind, value) in attributes(bytes.get(HEADERS - HEADER..)?) {
        match kind {
            TABLE => table.table = text(value),
            NAME => table.name = text(value),
            TABLE_FLAGS => table.is_offloaded = u32::from_be_bytes(*value.first_chunk()?) & HW_OFFLOAD != 0,
            HOOK => {
                for (_, devices) in attributes(value).filter(|(kind, _)| *kind == HOOK_DEVICES) {
                    for (kind, name) in attributes(devices) {
                        match kind {
                            DEVICE_NAME => table.devices.push(text(name)),
                            DEVICE_PREFIX => table.prefixes.push(text(name)),
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Some(table)
}

/// Attributes that follow each other: kind and value.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkDeserializable as _, NetlinkHeader};

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// `RTM_NEWTFILTER` as the kernel writes it: `struct tcmsg`, kind, options.
    fn filter(kind: &str, flags_at: u16, flags: u32) -> TcMessage {
        let mut bytes = vec![0; 20];
        bytes[8] = 1;
        bytes.extend(attribute(1, format!("{kind}\0").as_bytes()));
        bytes.extend(attribute(2, &attribute(flags_at, &flags.to_ne_bytes())));
        let mut header = NetlinkHeader::default();
        header.message_type = 44;
        match RouteNetlinkMessage::deserialize(&header, &bytes).expect("a message") {
            RouteNetlinkMessage::NewTrafficFilter(filter) => filter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_filter_of_any_kind_that_the_hardware_has_is_told_from_one_that_it_has_not() {
        for (kind, at) in FLAGS {
            // skip_sw and in_hw; not_in_hw.
            assert_eq!(in_hardware(&filter(kind, at, 1 << 1 | IN_HW)), Some(kind));
            assert_eq!(in_hardware(&filter(kind, at, 1 << 3)), None, "{kind}");
        }
        assert_eq!(in_hardware(&filter("route", 3, IN_HW)), None, "no hardware takes these");
    }

    fn answer(flags: u32) -> Vec<u8> {
        let devices = [attribute(DEVICE_NAME, b"eth0\0"), attribute(DEVICE_PREFIX, b"tap")].concat();
        let hook = [attribute(1, &[0; 4]), attribute(2, &[0; 4]), attribute(HOOK_DEVICES | 1 << 15, &devices)].concat();
        let body = [
            vec![1, 0, 0, 0],
            attribute(TABLE, b"f\0"),
            attribute(NAME, b"ft\0"),
            attribute(5, &[0; 8]),
            attribute(HOOK | 1 << 15, &hook),
            attribute(TABLE_FLAGS, &flags.to_be_bytes()),
        ]
        .concat();
        let length = u32::try_from(HEADER + body.len()).expect("short").to_ne_bytes();
        let head = [&length[..], &NEW_FLOW_TABLE.to_ne_bytes(), &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
        [head, body].concat()
    }

    #[test]
    fn a_flow_table_with_offload_is_told_from_one_without_and_by_its_devices() {
        let mut found = Vec::new();
        let both = [answer(HW_OFFLOAD), answer(2)].concat();
        assert!(!read_answer(&both, &mut found).expect("an answer"), "more may come");
        assert_eq!(found.iter().map(|t| t.is_offloaded).collect::<Vec<_>>(), [true, false]);
        assert!(found[0].has("eth0") && found[0].has("tap7") && !found[0].has("eth1"), "{found:?}");
        assert_eq!(found[0].words(), "flow table inet f/ft with offload");
    }

    #[test]
    fn whatever_an_answer_holds_reading_it_ends() {
        let whole = answer(HW_OFFLOAD);
        for cut in 0..whole.len() {
            let _ = read_answer(&whole[..cut], &mut Vec::new());
            let mut odd = whole.clone();
            odd[cut] = 0xff;
            let _ = read_answer(&odd, &mut Vec::new());
        }
    }

    #[test]
    fn an_ordinary_interface_is_not_offloaded() {
        assert_eq!(of("lo", 1), Vec::<String>::new());
    }
}
