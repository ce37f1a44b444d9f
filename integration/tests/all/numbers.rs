//! The field of a packet in which hooks number it belongs to others first: promise P4.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use std::process::Command;

use integration::{
    agent::Agent,
    claims::{NONE, PACKETS, PAYLOAD, assert_exact, assert_not_guessed, into, out_of, sum},
    features,
    net::Netns,
    stacks::Routed,
    traffic,
};

/// Port 70 of the router is port 7 of the server, which nobody may reach; port 8 is reached by the first packets only.
const RULES: &str = "table ip n {
 chain p { type nat hook prerouting priority -100; udp dport 70 dnat to 10.3.0.2:7; }
}
table inet t {
 counter refused { }
 counter late { }
 chain c { type filter hook forward priority 0;
  udp dport 7 counter name refused drop;
  udp dport 8 limit rate over 1/hour burst 10 packets counter name late drop;
 }
}
";
const READS: &str = "packets get no numbers";
const READS_NO_MORE: &str = "packets are numbered again";

/// Runs tc(8) in a namespace; what it printed, or its error.
fn tc(ns: &Netns, args: &[&str]) -> Result<String, String> {
    let out = Command::new("tc").args(["-n", ns.name()]).args(args).output().unwrap();
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

/// Counts the packets that leave through `out0` without a number.
const COUNT_UNNUMBERED: [&str; 15] = [
    "filter",
    "add",
    "dev",
    "out0",
    "parent",
    "1:",
    "protocol",
    "ip",
    "prio",
    "1",
    "basic",
    "match",
    "meta(tc_index eq 0)",
    "action",
    "ok",
];

/// Packets that the filter has counted.
fn unnumbered(ns: &Netns) -> u64 {
    let text = tc(ns, &["-s", "filter", "show", "dev", "out0", "parent", "1:"]).unwrap();
    // `Sent 3400 bytes 40 pkt (dropped 0, overlimits 0 requeues 0)`
    let words: Vec<&str> = text.split_whitespace().collect();
    let sent = words.iter().position(|w| *w == "Sent").expect("a filter with an action");
    words[sent + 3].parse().unwrap()
}

#[test]
fn what_a_classifier_reads_is_not_written_and_refusals_are_still_found() {
    let net = Routed::new().unwrap();
    let router = &net.router;
    router.nft(RULES).unwrap();
    let reader = tc(router, &["qdisc", "add", "dev", "out0", "root", "handle", "1:", "prio"])
        .and_then(|_| tc(router, &COUNT_UNNUMBERED));
    if let Err(why) = reader {
        return features::skipped(&format!("this kernel cannot match tc_index: {}", why.trim()));
    }
    tc(router, &["filter", "del", "dev", "out0", "parent", "1:"]).unwrap();
    let mut agent = Agent::start(router, &["in0", "out0"], &[]).unwrap();
    tc(router, &COUNT_UNNUMBERED).unwrap();
    agent.wait_for(READS).unwrap();
    net.client.run(|| {
        for (to, port) in [("10.3.0.2", 7), ("10.3.0.2", 8), ("10.3.0.2", 9), ("10.2.0.1", 70)] {
            traffic::udp(&format!("{to}:{port}"), PACKETS, PAYLOAD).unwrap();
        }
    });
    let late = router.nft_counter("inet t", "late").unwrap();
    let early = (sum(PACKETS).0 - late.0, sum(PACKETS).1 - late.1);
    assert!(early != NONE && late != NONE, "{late:?}");
    assert_eq!(unnumbered(router), PACKETS as u64 + early.0, "what the classifier saw");
    assert_eq!(router.nft_counter("inet t", "refused").unwrap(), sum(2 * PACKETS));
    let landed = agent.stop().unwrap();
    for place in [into("in0"), out_of("out0")] {
        assert_exact(&landed, place, 9, NONE, sum(PACKETS));
        // Of one flow, in buffers that have held packets of it before.
        assert_exact(&landed, place, 8, late, early);
    }
    // Its address and its tuple are those of a note.
    assert_exact(&landed, into("in0"), 7, sum(PACKETS), NONE);
    // Its tuple is another by now: then an address alone shows nothing.
    assert_not_guessed(&landed, into("in0"), 70, sum(PACKETS), sum(PACKETS));
}

#[test]
fn packets_are_numbered_again_once_nobody_reads_the_number() {
    let net = Routed::new().unwrap();
    let router = &net.router;
    let add = ["qdisc", "add", "dev", "out0", "root", "gred", "setup", "DPs", "2", "default", "0"];
    if let Err(why) = tc(router, &add) {
        return features::skipped(&format!("this kernel has no gred: {}", why.trim()));
    }
    let remove = ["qdisc", "del", "dev", "out0", "root"];
    tc(router, &remove).unwrap();
    let mut agent = Agent::start(router, &["in0"], &[]).unwrap();
    tc(router, &add).unwrap();
    agent.wait_for(READS).unwrap();
    tc(router, &remove).unwrap();
    agent.wait_for(READS_NO_MORE).unwrap();
    router.nft(RULES).unwrap();
    net.client.run(|| traffic::udp("10.2.0.1:70", PACKETS, PAYLOAD).unwrap());
    let landed = agent.stop().unwrap();
    // Translated before it was refused: the number says which packet it is.
    assert_exact(&landed, into("in0"), 70, sum(PACKETS), NONE);
}
