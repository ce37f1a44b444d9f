//! `flowlog trace` says of single packets what became of them; and is gone when it is gone.
//!
//! The witnesses: what was sent, a named nftables counter in the rule that refuses, the kernel's list of programs and maps.

use std::{net::UdpSocket, time::Instant};

use aya::{maps::loaded_maps, programs::loaded_programs};
use integration::{
    agent::{Agent, run_to_end},
    claims::until,
    features,
    stacks::Routed,
    tracing::Tracing,
    traffic::{self, Raw},
};

const PACKETS: usize = 5;
/// UDP with 100 bytes of payload.
const SIZE: &str = "128 B";

fn lines_with<'a>(lines: &'a [String], words: &[&str]) -> Vec<&'a String> {
    lines.iter().filter(|l| words.iter().all(|w| l.contains(w))).collect()
}

/// Sends to two ports of the router, and to one of them a last packet, which is another by its size; returns the source port of those to
/// port 7, and what was said until the last one had died.
fn traced_to_two_ports(net: &Routed, mut tracing: Tracing) -> (u16, Vec<String>) {
    let port = net.client.run(|| {
        traffic::udp("10.2.0.1:9", PACKETS, 100).unwrap();
        traffic::udp("10.2.0.1:7", PACKETS, 100).unwrap()
    });
    net.client.run(|| traffic::udp("10.2.0.1:7", 1, 101)).unwrap();
    tracing.wait_for(&["died", "129 B"]).unwrap();
    let (lines, _) = tracing.stop().unwrap();
    (port, lines)
}

#[test]
fn an_accepted_packet_is_said_with_its_hook_and_its_note_and_others_are_not() {
    let net = Routed::new().unwrap();
    let mut agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    let tracing = Tracing::start(&net.router, &["-i", "in0", "udp", "dst port 7"]).unwrap();
    let (port, lines) = traced_to_two_ports(&net, tracing);
    let flow = format!("udp 10.2.0.2:{port} > 10.2.0.1:7 {SIZE}");
    let counted = ": hook tcx, counted as ACCEPT in the cache (note 0x";
    let counted = if features::tcx() { counted } else { "this kernel has no tcx" };
    assert_eq!(lines_with(&lines, &["in0 in ", &flow, counted]).len(), PACKETS, "{lines:#?}");
    let dead = lines_with(&lines, &["in0 died", &flow, "no refusal, NO_SOCKET at ", "is its own, noted on in0 in"]);
    assert_eq!(dead.len(), PACKETS, "{lines:#?}");
    assert!(dead.iter().all(|l| l.contains("+0x")), "a place is a function: {dead:#?}");
    assert_eq!(lines.len(), 2 * (PACKETS + 1), "nothing else: {lines:#?}");
    agent.end().unwrap();
}

#[test]
fn a_refused_packet_is_said_with_verdict_reason_and_place() {
    let net = Routed::new().unwrap();
    net.router
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; udp dport 7 counter name refused drop; }\n}")
        .unwrap();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    let mut tracing = Tracing::start(&net.router, &["-i", "in0", "host 10.2.0.2 and udp"]).unwrap();
    net.client.run(|| traffic::udp("10.2.0.1:7", PACKETS, 100)).unwrap();
    net.client.run(|| traffic::udp("10.2.0.1:7", 1, 101)).unwrap();
    tracing.wait_for(&["died", "129 B"]).unwrap();
    let (lines, _) = tracing.stop().unwrap();
    let (refused, _) = net.router.nft_counter("inet t", "refused").unwrap();
    let dead = lines_with(&lines, &["in0 died", "10.2.0.1:7", "REJECT, NETFILTER_DROP at ", "noted on in0 in; in in0"]);
    assert_eq!(dead.len() as u64, refused, "{lines:#?}");
    // The verdict program, which was there first, has done its work; or the tracer was faster.
    assert!(dead.iter().all(|l| l.contains("has its verdict") || l.contains("is its own")), "{dead:#?}");
    let landed = agent.stop();
    let rejected = landed.unwrap().sum(|r| r.dport == 7 && r.action == "REJECT");
    assert_eq!(rejected.0, refused);
}

#[test]
fn what_a_translated_packet_was_and_is_stands_in_its_lines() {
    let net = Routed::new().unwrap();
    net.router
        .nft(
            "table ip n {\n chain d { type nat hook prerouting priority -100; udp dport 70 dnat to 10.3.0.2:7; }\n \
             chain s { type nat hook postrouting priority 100; oifname \"out0\" masquerade; }\n}\n\
             table inet t {\n counter refused { }\n chain c { type filter hook forward priority 0; udp dport 7 counter name refused drop; }\n}",
        )
        .unwrap();
    let mut agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    let mut tracing = Tracing::start(&net.router, &["-i", "in0", "-i", "out0", "port", "70", "or", "9"]).unwrap();
    let refused = net.client.run(|| traffic::udp("10.2.0.1:70", 1, 100)).unwrap();
    let passed = net.client.run(|| traffic::udp("10.3.0.2:9", 1, 100)).unwrap();
    let flow = format!("udp 10.2.0.2:{refused} > 10.2.0.1:70");
    tracing.wait_for(&["in0 in ", &flow]).unwrap();
    let after = format!("udp 10.2.0.2:{refused} > 10.3.0.2:7");
    let died = tracing.wait_for(&["died", &format!("{after} {SIZE}: REJECT, NETFILTER_DROP")]).unwrap();
    assert!(died.contains(&format!("noted on in0 in as {flow}")), "{died}");
    assert!(died.contains(&format!("translated: {flow} is {after}")), "{died}");
    assert_eq!(net.router.nft_counter("inet t", "refused").unwrap().0, 1);
    let left = tracing.wait_for(&["out0 out ", &format!("udp 10.3.0.1:{passed} > 10.3.0.2:9")]).unwrap();
    let both = format!("translated: udp 10.2.0.2:{passed} > 10.3.0.2:9 is udp 10.3.0.1:{passed} > 10.3.0.2:9");
    assert!(left.contains(&both), "{left}");
    tracing.stop().unwrap();
    agent.end().unwrap();
}

#[test]
fn frames_that_are_no_flow_are_said_with_why() {
    let net = Routed::new().unwrap();
    let mut agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    let mut tracing = Tracing::start(&net.router, &["-i", "in0", "not ip and not ip6 and not arp"]).unwrap();
    let macs = (net.client.mac("eth0").unwrap(), net.router.mac("in0").unwrap());
    let frame = |kind: [u8; 2], first: u8| {
        let mut bytes = traffic::udp4(macs, ("10.2.0.2".parse().unwrap(), 1), ("10.2.0.1".parse().unwrap(), 7), 30);
        bytes[12..14].copy_from_slice(&kind);
        bytes[14] = first;
        bytes
    };
    let frames = [frame([0x88, 0xcc], 0x45), frame([8, 0], 0x44), frame([8, 0], 0x65)];
    net.client.run(|| Raw::open("eth0").unwrap().send(&frames)).unwrap();
    if features::tcx() {
        let counted = tracing.wait_for(&["in0 in ", "not IP (Ethertype 0x88cc) 72 B: hook tcx, counted as not IP"]);
        counted.unwrap();
        for why in ["its IPv4 header says that it has fewer than 20 bytes", "its IPv4 header says version 6"] {
            let line = format!("IP that cannot be parsed ({why}) 72 B: hook tcx, counted as malformed");
            tracing.wait_for(&["in0 in ", &line]).unwrap();
        }
    } else {
        tracing.wait_for(&["in0 in ", "not IP (Ethertype 0x88cc)"]).unwrap();
        tracing.wait_for(&["in0 in ", "IP that cannot be parsed"]).unwrap();
    }
    tracing.stop().unwrap();
    agent.end().unwrap();
}

#[test]
fn there_is_one_tracer_at_a_time_and_the_second_is_told_who() {
    let net = Routed::new().unwrap();
    let tracing = Tracing::start(&net.router, &["-i", "in0"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // In another network namespace as well.
    let (code, said, error) = run_to_end(&net.client, &["trace", "-i", "eth0"], dir.path()).unwrap();
    assert_eq!((code, said.as_str()), (Some(75), ""), "{error}");
    assert!(error.contains(&format!("process {}", tracing.pid())), "{error}");
    tracing.stop().unwrap();
}

/// Programs and maps of a tracer that the kernel has.
fn left() -> Vec<String> {
    let programs = loaded_programs().filter_map(Result::ok).filter_map(|p| Some(p.name_as_str()?.to_owned()));
    let maps = loaded_maps().filter_map(Result::ok).filter_map(|m| Some(m.name_as_str()?.to_owned()));
    let of_tracer = |name: &String| name.starts_with("flowlog_see") || name == "AYA_LOGS" || name == "LOOKS";
    programs.chain(maps).filter(of_tracer).collect()
}

#[test]
fn a_tracer_that_is_killed_leaves_nothing_and_bars_nobody() {
    let net = Routed::new().unwrap();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    for _ in 0..2 {
        let mut tracing = Tracing::start(&net.router, &["-i", "in0"]).unwrap();
        assert!(left().len() >= 5, "{:?}", left());
        tracing.kill().unwrap();
        until("nothing is left", || left().is_empty());
    }
    // The agent is as it was.
    net.client.run(|| traffic::udp("10.2.0.1:7", PACKETS, 100)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "ACCEPT").0, PACKETS as u64);
}

#[test]
fn what_is_more_than_the_rate_allows_is_counted() {
    const SENT: usize = 200;
    let net = Routed::new().unwrap();
    let socket = net.router.run(|| UdpSocket::bind("10.2.0.1:7")).unwrap();
    let mut tracing = Tracing::start(&net.router, &["-i", "in0", "--rate", "5", "dst port 7"]).unwrap();
    net.client.run(|| traffic::udp("10.2.0.1:7", SENT, 100)).unwrap();
    tracing.wait_for(&["10.2.0.1:7"]).unwrap();
    // All have come.
    for _ in 0..SENT {
        socket.recv(&mut [0; 200]).unwrap();
    }
    let (lines, notes) = tracing.stop().unwrap();
    let left_out = notes
        .lines()
        .find_map(|l| l.strip_prefix("flowlog: ")?.strip_suffix(" lines more than `--rate` allows were left out"));
    let left_out: usize = left_out.unwrap_or_else(|| panic!("{notes}")).parse().unwrap();
    assert_eq!(lines.len() + left_out, SENT);
    // Five in each second that it took, and one more for each other CPU.
    assert!(lines.len() < SENT / 2, "{}", lines.len());
}

#[test]
fn time_and_count_end_it_and_wrong_words_do_not_begin_it() {
    let net = Routed::new().unwrap();
    let began = Instant::now();
    let (lines, _) = Tracing::start(&net.router, &["-i", "in0", "--for", "1s", "port 7"]).unwrap().wait().unwrap();
    assert!(lines.is_empty() && began.elapsed().as_secs() >= 1);
    let tracing = Tracing::start(&net.router, &["-i", "in0", "--count", "2", "dst port 7"]).unwrap();
    net.client.run(|| traffic::udp("10.2.0.1:7", PACKETS, 100)).unwrap();
    let (lines, _) = tracing.wait().unwrap();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let dir = tempfile::tempdir().unwrap();
    for (args, code, words) in [
        (&["-i", "in0", "port", "ssh"][..], 64, "column 6: `ssh`: a port number is expected"),
        (&["-i", "in0", "--rate", "0"], 64, "--rate"),
        (&["-i", "in0", "--count", "0"], 64, "--count"),
        (&["-i", "in0", "--for", "0"], 64, "use a second at least"),
        (&["-i", "in0", "ip", "host", "fd00::1"], 64, "`fd00::1`: it is of IPv6, and `ip` in front of it means IPv4"),
        (
            &["-i", "in0", "host"],
            64,
            "it ends too early: an IPv4 or IPv6 address is expected (names are not looked up)\n",
        ),
        (&["-i", "nope"], 66, "`nope`: no such interface"),
        (
            &["-i", "in0", "--netns", "no-such"],
            66,
            "no network namespace at /run/netns/no-such; use a name of `ip netns`",
        ),
    ] {
        let (ended, _, error) = run_to_end(&net.router, &[&["trace"], args].concat(), dir.path()).unwrap();
        assert_eq!(ended, Some(code), "{args:?}: {error}");
        assert!(error.contains(words), "{args:?}: {error}");
    }
}

#[test]
fn without_an_agent_there_is_no_hook_and_names_do_nothing_to_a_terminal() {
    let net = Routed::new().unwrap();
    net.router.exec("ip link add name e\u{1b}[31m type veth peer name e1").unwrap();
    net.router.exec("ip link set e\u{1b}[31m up").unwrap();
    net.router.exec("ip link set e1 up").unwrap();
    let mut tracing = Tracing::start(&net.router, &["-i", "e\u{1b}[31m"]).unwrap();
    let frame =
        traffic::udp4(([2; 6], [255; 6]), ("10.9.0.2".parse().unwrap(), 1), ("10.9.0.1".parse().unwrap(), 7), 30);
    net.router.run(|| Raw::open("e1").unwrap().send(&[frame])).unwrap();
    let line = tracing.wait_for(&["udp 10.9.0.2:1 > 10.9.0.1:7"]).unwrap();
    assert!(line.contains("e\\u{1b}[31m in ") && !line.contains('\u{1b}'), "{line}");
    if features::tcx() {
        assert!(line.contains("no hook of flowlog's"), "{line}");
    }
    tracing.stop().unwrap();
}

#[test]
fn a_packet_in_another_namespace_is_traced_from_here() {
    let net = Routed::new().unwrap();
    net.router
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; udp dport 7 counter name refused drop; }\n}")
        .unwrap();
    let mut agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    // From a namespace that has no such interface.
    let args = ["--netns", net.router.name(), "-i", "in0", "udp and dst port 7 or 9"];
    let tracing = Tracing::start(&net.server, &args).unwrap();
    let (port, lines) = traced_to_two_ports(&net, tracing);
    let flow = format!("udp 10.2.0.2:{port} > 10.2.0.1:7 {SIZE}");
    let counted = if features::tcx() { "hook tcx, counted as ACCEPT in the cache" } else { "this kernel has no tcx" };
    assert_eq!(lines_with(&lines, &["in0 in ", &flow, counted]).len(), PACKETS, "{lines:#?}");
    let (refused, _) = net.router.nft_counter("inet t", "refused").unwrap();
    let dead = lines_with(&lines, &["in0 died", "10.2.0.1:7", "REJECT, NETFILTER_DROP at ", "noted on in0 in; in in0"]);
    assert_eq!(dead.len() as u64, refused, "{lines:#?}");
    assert_eq!(lines_with(&lines, &["10.2.0.1:9"]).len(), 2 * PACKETS, "{lines:#?}");
    agent.end().unwrap();
}

#[test]
fn an_interface_that_is_named_twice_is_traced_once_and_one_that_is_renamed_goes_on_under_its_new_name() {
    let net = Routed::new().unwrap();
    let socket = net.router.run(|| UdpSocket::bind("10.2.0.1:7")).unwrap();
    let mut tracing = Tracing::start(&net.router, &["-i", "in0", "-i", "in0", "dst port 7"]).unwrap();
    assert!(tracing.notes.contains("tracing in0 for 30 s"), "{}", tracing.notes);
    net.client.run(|| traffic::udp("10.2.0.1:7", 1, 100)).unwrap();
    tracing.wait_for(&[" in0 in ", SIZE]).unwrap();
    // Not every kernel renames one that is up.
    for change in ["down", "name wan0"] {
        net.router.exec(&format!("ip link set in0 {change}")).unwrap();
    }
    net.router.exec("ip link set wan0 up").unwrap();
    tracing.wait_for_note("interface in0 is called wan0 now").unwrap();
    net.client.run(|| traffic::udp("10.2.0.1:7", 1, 101)).unwrap();
    tracing.wait_for(&[" wan0 in ", "129 B"]).unwrap();
    let (lines, _) = tracing.stop().unwrap();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    drop(socket);
}

#[test]
fn a_tracer_ends_and_says_so_when_an_agent_comes_or_its_interface_goes() {
    let net = Routed::new().unwrap();
    let start = || Tracing::start(&net.router, &["-i", "in0", "--for", "5m"]).unwrap();
    let tracing = start();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    let (code, _, notes) = tracing.ended().unwrap();
    assert_eq!((code, notes.contains("interface in0 is gone, or has other programs")), (Some(75), true), "{notes}");
    let tracing = start();
    assert!(!tracing.notes.contains("no agent"), "{}", tracing.notes);
    net.router.exec("ip link del in0").unwrap();
    let (code, _, notes) = tracing.ended().unwrap();
    assert_eq!((code, notes.contains("interface in0 is gone")), (Some(75), true), "{notes}");
    drop(agent);
}
