//! What the model says, measured on this machine: records of the real program, its maps' memory, its sweeps, the real agent.
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use flowlog_ebpf::bench::ORDER_ENTRIES;
use flowlog_kernel::{Kernel, Sizes};
use integration::{
    agent::Agent,
    net::{Netns, sh},
};

use super::cache::{Mix, Shares};
use crate::{
    frames::Kind,
    lab::{BATCH, Hook, Lab},
    lane::{Lane, Load, Traffic, node},
    live::leave_first_cpu,
    records::Random,
    wire::usage,
};

const UDP4: Kind = Kind::ALL[0];
/// Room for all that caches of 65,536 slots hold.
const LARGE_RING: u32 = 64 << 20;
/// A window of the agent whose interfaces are many.
const WINDOW_SECS: u64 = 10;

/// Records a packet of the real program, on one CPU, or on each of two that have flows of their own.
pub(super) fn records_a_packet(slots: u32, mix: Mix, flows: u32, cpus: u32) -> anyhow::Result<f64> {
    let mut lab = Lab::with(Sizes { passed_slots: slots, ring_bytes: LARGE_RING, ..Sizes::default() })?;
    let subject = lab.ours("flowlog", "flowlog_tc_ingress", Hook::Tc)?;
    let shares = Shares::of(mix, flows, 1).remove(0).0;
    let mut random = Random(0x1234_5678_9abc_def1);
    lab.set_order(|_| u32::try_from(shares.next(&mut random)).unwrap_or_default())?;
    let once = |lab: &mut Lab| {
        if cpus == 1 { lab.run(&subject, UDP4, BATCH, false) } else { lab.run_on_two(&subject, UDP4, BATCH, false) }
    };
    // Once through all of the order, then once more, counted.
    let batches = ORDER_ENTRIES / BATCH;
    for _ in 0..batches {
        once(&mut lab)?;
        lab.drain();
    }
    let mut evicted = 0;
    for _ in 0..batches {
        once(&mut lab)?;
        evicted += lab.drain();
    }
    Ok(evicted as f64 / f64::from(batches * BATCH * cpus))
}

/// ns of a packet of that program in that order: what the cache's clock sees.
pub(super) const LAB_PACKET_NS: f64 = 60.0;

/// Bytes of each map of ours, as the kernel counts them.
pub(super) fn memory(sizes: Sizes) -> anyhow::Result<f64> {
    let before = charged()?;
    let kernel = Kernel::load(sizes, 1)?;
    let more: u64 = charged()?.iter().filter(|(id, _)| !before.contains_key(id)).map(|(_, bytes)| bytes).sum();
    drop(kernel);
    Ok(more as f64)
}

/// What is charged for each map that this process has open, by the map's id.
fn charged() -> anyhow::Result<BTreeMap<u64, u64>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo")? {
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let of = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
        if let (Some(id), Some(bytes)) = (of("map_id:"), of("memlock:")) {
            all.insert(id, bytes);
        }
    }
    Ok(all)
}

/// Least seconds of a sweep of so many CPUs' caches, with so many flows of one packet in each.
pub(super) fn sweep_secs(slots: u32, cpus: usize, flows: u32, rounds: u32) -> anyhow::Result<(f64, f64)> {
    let mut lab = Lab::with(Sizes { passed_slots: slots, ring_bytes: LARGE_RING, ..Sizes::default() })?;
    let subject = lab.ours("flowlog", "flowlog_tc_ingress", Hook::Tc)?;
    lab.set_order(|i| i)?;
    // Another CPU than our own, as nearly all of many are.
    let first = u32::try_from(2 - cpus)?;
    let (mut least, mut records) = (f64::MAX, 0);
    for _ in 0..rounds {
        if flows > 0 {
            lab.run_on_two(&subject, UDP4, flows, true)?;
        }
        lab.drain();
        least = least.min(lab.sweep(first)?);
        records = lab.drain();
        lab.sweep(0)?;
        lab.drain();
    }
    Ok((least, records as f64))
}

/// Agent CPU for a record that comes through the ring: seconds for all, and how many there were.
pub(super) fn agent_secs(new_flows: u32, ends_window: bool) -> anyhow::Result<f64> {
    let node = node()?;
    let lane = Lane::new(&node, 0)?;
    let mut traffic = Traffic::new()?;
    let window = if ends_window { "10" } else { "86400" };
    let mut agent = Agent::start(&node, &[&lane.interface()], &["--window", window])?;
    leave_first_cpu(agent.pid())?;
    until_second(1);
    let before = usage(agent.pid())?.cpu_secs;
    let load = Load { kind: UDP4, bytes: 64, flows: 1 << 27, frames: new_flows };
    lane.send(&mut traffic, load)?;
    // Below a quarter of the ring it looks by itself, every two seconds.
    std::thread::sleep(Duration::from_secs(3));
    if ends_window {
        // Past the window's end, wherever in it that was.
        until_second(9);
        until_second(5);
    }
    let secs = usage(agent.pid())?.cpu_secs - before;
    agent.end()?;
    Ok(secs)
}

/// Agent CPU of so many windows' ends of that many interfaces without traffic, and resident MiB.
pub(super) fn idle_secs(interfaces: usize, windows: u64) -> anyhow::Result<(f64, f64)> {
    let node = node()?;
    let guests = Netns::new("guests")?;
    let names: Vec<String> = (0..interfaces).map(|n| format!("tap{n}")).collect();
    let mut batch = String::new();
    for (n, name) in names.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(batch, "link add {name} type veth peer name eth{n} netns {}", guests.name());
        let _ = writeln!(batch, "link set {name} up");
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), batch)?;
    sh(&format!("ip -n {} -batch {}", node.name(), file.path().display()))?;
    let window = WINDOW_SECS.to_string();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut agent = Agent::start(&node, &names, &["--window", &window])?;
    until_second(6);
    let before = usage(agent.pid())?.cpu_secs;
    std::thread::sleep(Duration::from_secs(WINDOW_SECS * windows));
    let after = usage(agent.pid())?;
    agent.kill()?;
    Ok((after.cpu_secs - before, after.rss_mib))
}

/// Waits for a second of the next window.
fn until_second(second: u64) {
    let now = flowlog_host::clock::now().wall.secs().rem_euclid(WINDOW_SECS.cast_signed()).unsigned_abs();
    std::thread::sleep(Duration::from_secs((second + WINDOW_SECS - now) % WINDOW_SECS));
}
