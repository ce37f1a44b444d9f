//! Refusals that are decided elsewhere: by a program behind a queue, by Open vSwitch.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use flowlog_kernel::attach::kernel_at_least;
use integration::{
    agent::Agent,
    claims::{NONE, assert_exact, into},
    features,
    net::{Netns, Pair, address, veth},
    rows::Sum,
    sockets::Queue,
    stacks::neighbour,
    traffic,
};

const PACKETS: usize = 40;
/// Payload, and what an IPv4 packet with it has.
const PAYLOAD: usize = 100;
const ALL: Sum = (PACKETS as u64, PACKETS as u64 * 128);
const QUEUE: u16 = 5;

/// Sends UDP to port 7 to a queue; false if neither nftables nor iptables can on this kernel.
fn queued(ns: &Netns) -> bool {
    let table =
        format!("table inet t {{ chain c {{ type filter hook input priority 0; udp dport 7 queue num {QUEUE}; }}\n}}");
    ns.nft(&table).is_ok()
        || ns.exec(&format!("iptables -A INPUT -p udp --dport 7 -j NFQUEUE --queue-num {QUEUE}")).is_ok()
}

/// A packet that a queue's program refuses, or that has no program to decide, is REJECT; or docs/limits.md says that
/// flowlog cannot know (the kernel gives no reason when it frees it), and it is ACCEPT.
#[test]
fn what_a_queue_refuses_is_refused_or_a_known_limit() {
    let limit =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/limits.md")).unwrap().contains("NFQUEUE");
    for listening in [true, false] {
        let pair = Pair::new().unwrap();
        if !queued(&pair.a) {
            return features::skip(
                "what_a_queue_refuses_is_refused_or_a_known_limit",
                "nftables queue, or iptables is missing",
            );
        }
        let queue = listening.then(|| pair.a.run(|| Queue::open(QUEUE)).unwrap());
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        pair.b.run(|| {
            for _ in 0..PACKETS {
                traffic::udp("10.1.0.1:7", 1, PAYLOAD).unwrap();
                traffic::udp("10.1.0.1:9", 1, PAYLOAD).unwrap();
            }
        });
        if let Some(queue) = &queue {
            queue.refuse(QUEUE, PACKETS).unwrap();
        }
        let landed = agent.stop().unwrap();
        // All others found no socket: none of the refused ones got so far.
        assert_eq!(pair.a.snmp("Udp", "NoPorts").unwrap(), PACKETS as u64, "listening {listening}");
        let shown = landed.udp(7, "ingress", "REJECT") != NONE || !limit;
        let [refused, passed] = if shown { [ALL, NONE] } else { [NONE, ALL] };
        assert_exact(&landed, into("eth0"), 7, refused, passed);
        assert_exact(&landed, into("eth0"), 9, NONE, ALL);
    }
}

/// Open vSwitch drops in the kernel, for reasons of its own. Its flows are put there by hand: no daemon is needed.
#[test]
fn what_open_vswitch_drops_is_refused() {
    const TEST: &str = "what_open_vswitch_drops_is_refused";
    if !kernel_at_least(6, 6) {
        return features::skip(TEST, "reasons of Open vSwitch (Linux 6.6)");
    }
    let [switch, one, two] = ["switch", "one", "two"].map(|name| Netns::new(name).unwrap());
    let datapath = |line: &str| switch.exec(&format!("ovs-dpctl {line}"));
    if datapath("add-dp dp0").is_err() {
        return features::skip(TEST, "Open vSwitch, or ovs-dpctl is missing");
    }
    for (ns, n) in [(&one, 1), (&two, 2)] {
        veth((&switch, &format!("p{n}")), (ns, "eth0")).unwrap();
        address(ns, "eth0", &format!("10.4.0.{n}/24")).unwrap();
        datapath(&format!("add-if dp0 p{n}")).unwrap();
    }
    neighbour(&one, "eth0", "10.4.0.2", two.mac("eth0").unwrap()).unwrap();
    neighbour(&two, "eth0", "10.4.0.1", one.mac("eth0").unwrap()).unwrap();
    // Ports have the numbers 1 and 2. Actions that end without an output drop.
    for (port, actions) in [(7, "set(skb_mark(1))"), (9, "2")] {
        let flow = format!("in_port(1),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst={port})");
        datapath(&format!("add-flow dp0 {flow} {actions}")).unwrap();
    }
    let agent = Agent::start(&switch, &["p1"], &[]).unwrap();
    one.run(|| [7, 9].map(|port| traffic::udp(&format!("10.4.0.2:{port}"), PACKETS, PAYLOAD).unwrap()));
    let landed = agent.stop().unwrap();
    assert_exact(&landed, into("p1"), 7, ALL, NONE);
    assert_exact(&landed, into("p1"), 9, NONE, ALL);
}
