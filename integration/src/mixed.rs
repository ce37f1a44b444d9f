//! `xdp_mixed` of the test kit, somebody else's XDP program that drops, sends back, redirects, fails at and lets through; what is sent to it;
//! and what landed of that.

use aya::programs::TcAttachType;

use crate::{
    net::{Netns, Pair},
    others::{Other, Place},
    rows::Objects,
    traffic,
};

/// Packets to port 7, which it drops.
pub const DROPPED: usize = 23;
/// To port 9, which it sends back.
pub const SENT_BACK: usize = 17;
/// To port 11, which it redirects.
pub const REDIRECTED: usize = 11;
/// To port 13, at which it fails.
pub const ABORTED: usize = 5;
/// To port 8, which it lets through.
pub const PASSED: usize = 31;

/// Attaches it to the driver of `eth0`.
#[must_use]
pub fn mixed(ns: &Netns) -> Other {
    Other::attach(ns, "xdp_mixed", TcAttachType::Ingress, Place::XdpNative).expect("XDP on a veth")
}

/// The other end must run XDP as well: a veth takes frames only from where it polls.
#[must_use]
pub fn peer(pair: &Pair) -> Other {
    Other::attach(&pair.b, "xdp_drop", TcAttachType::Ingress, Place::XdpNative).expect("XDP on a veth")
}

/// No neighbour discovery among the packets that are counted.
pub fn quiet(pair: &Pair) {
    for ns in [&pair.a, &pair.b] {
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").expect("a switch of the namespace");
    }
}

/// Sends so many packets to a port of `pair.a`.
pub fn send(pair: &Pair, port: u16, packets: usize) {
    pair.b.run(|| traffic::udp(&format!("10.1.0.1:{port}"), packets, 100)).expect("room for packets");
}

/// Sends some of each kind.
pub fn send_all(pair: &Pair) {
    for (port, packets) in [(7, DROPPED), (9, SENT_BACK), (11, REDIRECTED), (13, ABORTED), (8, PASSED)] {
        send(pair, port, packets);
    }
    pair.wait_until_quiet();
}

/// Packets of SKIPDATA rows with a reason.
#[must_use]
pub fn skipped(landed: &Objects, reason: &str) -> u64 {
    landed.sum(|r| r.status == "SKIPDATA" && r.skip == reason).0
}

/// Packets to a port that XDP refused.
#[must_use]
pub fn rejected(landed: &Objects, port: i64) -> u64 {
    landed.sum(|r| r.action == "REJECT" && r.reason == "XDP" && r.dport == port).0
}

/// Packets to a port that were let through.
#[must_use]
pub fn accepted(landed: &Objects, port: i64) -> u64 {
    landed.sum(|r| r.action == "ACCEPT" && r.dport == port).0
}

/// The books of each object close.
pub fn assert_balanced(landed: &Objects) {
    assert!(landed.metadata.iter().all(|m| m["flowlog.balance"].ends_with("difference=0/0")), "{:?}", landed.metadata);
}
