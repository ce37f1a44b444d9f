//! Sizes that nobody has said: what `check` says of them is what the kernel gets, and what is pinned is gone on with.

use std::time::Duration;

use aya::maps::{MapInfo, MapType};
use flowlog_ebpf::abi::BANK_SLOTS;
use integration::{
    agent::run_to_end,
    node::Node,
    oracle::{Difference, Oracle},
};
use serde_json::Value;

/// A pinned map, as the kernel says it.
fn pinned(node: &Node, name: &str) -> MapInfo {
    let set = std::fs::read_dir(node.pins()).unwrap().next().unwrap().unwrap().path();
    MapInfo::from_pin(set.join(name)).unwrap()
}

/// Slots of each CPU's cache, and bytes of the ring.
fn sizes_of(node: &Node) -> (u32, u32) {
    let cache = pinned(node, "PASSED4");
    // Either the kernel makes a copy for each CPU, or the elements are those of all.
    let each_has_its_own = cache.map_type().unwrap() == MapType::PerCpuArray;
    let cpus = if each_has_its_own { 1 } else { aya::util::nr_cpus().unwrap().get() };
    (cache.max_entries() / cpus * BANK_SLOTS, pinned(node, "RING").max_entries())
}

/// What `check` says of the node's configuration: for people, and of the sizes for programs.
fn checked(node: &Node, more: &[&str]) -> (String, Vec<Value>) {
    let pins = node.pins();
    let mut args = vec!["check", "--pin-dir", pins.to_str().unwrap()];
    args.extend(more);
    let said = |args: &[&str]| run_to_end(&node.pair.a, args, node.dir.path()).unwrap().1;
    let people = said(&args);
    args.extend(["-o", "json"]);
    let answer: Value = serde_json::from_str(&said(&args)).unwrap();
    let effective = answer["effective"].as_array().unwrap();
    let sizes = answer["sizes"].as_array().unwrap().clone();
    for size in &sizes {
        let of_all = effective.iter().find(|s| s["key"] == size["key"]).unwrap();
        let written = of_all["value"].as_str().unwrap().trim_matches('"');
        let why = size["why"].as_str().unwrap();
        let line = people.lines().find(|l| l.contains(size["key"].as_str().unwrap())).unwrap();
        assert!(line.ends_with(&format!("{written}, {why}")), "{line}: {size}");
    }
    (people, sizes)
}

fn is(size: &Value, key: &str, value: u32, from: &str) {
    assert!(size["key"] == key && size["value"] == value && size["from"] == from, "{size}");
}

#[test]
fn what_check_says_is_chosen_is_what_the_kernel_gets() {
    let node = Node::new(&[]).unwrap();
    let (_, sizes) = checked(&node, &[]);
    let [slots, ring] = [&sizes[0], &sizes[1]];
    assert!(slots["from"] == "chosen" && ring["from"] == "chosen", "{sizes:?}");
    node.start().unwrap().end().unwrap();
    let (has_slots, has_ring) = sizes_of(&node);
    assert!(slots["value"] == has_slots && ring["value"] == has_ring, "{has_slots} {has_ring} {sizes:?}");
    node.detach().unwrap();
}

#[test]
fn a_capture_that_is_pinned_keeps_its_sizes_where_nobody_says_any() {
    let node = Node::new(&["--window", "1"]).unwrap();
    let mut agent = node.spawn_with(&["--cache-slots", "512", "--ring-bytes", "1MiB"], &[]).unwrap();
    agent.wait_for("capturing").unwrap();
    let ids = || ["PASSED4", "RING"].map(|map| pinned(&node, map).id());
    let made = ids();
    assert_eq!(sizes_of(&node), (512, 1 << 20));
    let oracle = Oracle::watch(&node.pair, 500, Duration::from_millis(4), |_| {
        agent.kill()?;
        // No key says what they are.
        let mut agent = node.start()?;
        let (status, said, error) = node.command(&["reload"])?;
        anyhow::ensure!(status == Some(0) && said.contains("nothing has changed"), "{status:?} {said} {error}");
        agent.end()
    })
    .unwrap();
    assert_eq!(ids(), made, "the same maps");
    let (people, sizes) = checked(&node, &[]);
    is(&sizes[0], "kernel.cache_slots", 512, "pinned");
    is(&sizes[1], "kernel.ring_bytes", 1 << 20, "pinned");
    assert!(sizes[0]["chosen"].as_u64() > Some(512) && people.contains("512, as what is pinned has it; "), "{people}");
    // Who says another one is told what that takes, as before.
    let (_, sizes) = checked(&node, &["--cache-slots", "1024"]);
    is(&sizes[0], "kernel.cache_slots", 1_024, "configured");
    is(&sizes[1], "kernel.ring_bytes", 1 << 20, "pinned");
    for (more, code, words) in [
        (&["--cache-slots", "1024"][..], 1, "put the old `kernel.cache_slots` back"),
        (&["--interfaces-max", "7"], 1, "put the old `kernel.interfaces_max` back"),
        (&[], 0, "an agent goes on with it"),
    ] {
        let (pins, target) = (node.pins(), node.objects());
        let mut args = vec!["check", "--interface", "eth0", "--target", target.to_str().unwrap()];
        args.extend(["--pin-dir", pins.to_str().unwrap()]);
        args.extend(more);
        let (status, said, error) = node.command(&args).unwrap();
        let line = said.lines().find(|l| l.contains("pinned capture")).unwrap_or_default();
        assert!(status == Some(code) && line.contains(words), "{more:?}: {status:?}\n{said}\n{error}");
        if code != 0 {
            let mut refused = node.spawn_with(more, &[]).unwrap();
            assert_ne!(refused.wait().unwrap(), Some(0));
            assert!(refused.log().contains(words), "{}", refused.log());
        }
    }
    let landed = node.detach().unwrap();
    assert_eq!(oracle.compare(&landed), Difference::default());
}
