//! Everything behind the kernel in one deterministic simulation: the watches, journal, windows, encoder, spool and upload, on a disk
//! that forgets, against a store that lies, on interfaces that come and go, in processes that are killed between any two operations.
//!
//! * [`kernel`]: a model of what the programs promise, and of interfaces; [`source`]: it behind the pipeline's port;
//! * [`world`]: the agent's life, again and again, and what may happen to it;
//! * this file: seeds, and what must hold in the end, whatever happened.
//!
//! A failing seed prints how to run it again.

mod kernel;
mod source;
mod world;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

pub(crate) use self::{
    kernel::{OTHER_ID, SimKernel, name},
    source::SimSource,
};
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::Field,
};
use world::{Life, World};

/// Seeds that every test run tries.
const SEEDS: u64 = 1_000;
/// Runs one seed instead.
const SEED_VARIABLE: &str = "FLOWLOG_SIM_SEED";

/// What landed in the end.
#[derive(Debug, Default)]
struct Landed {
    /// Packets in flow rows, by interface id and source address.
    rows: BTreeMap<(String, String), u64>,
    /// Packets in SKIPDATA rows, by interface id.
    skipped: BTreeMap<String, u64>,
    gaps: usize,
    /// Packets in rows of other people's XDP, by interface id.
    xdp: BTreeMap<String, u64>,
}

fn read(contents: &[(String, bytes::Bytes)]) -> Landed {
    let mut landed = Landed::default();
    for (key, bytes) in contents {
        let reader = SerializedFileReader::new(bytes.clone()).unwrap_or_else(|e| panic!("{key}: {e}"));
        let metadata = reader.metadata().file_metadata().key_value_metadata().expect("ours");
        let books = metadata.iter().find(|kv| kv.key == "flowlog.balance").and_then(|kv| kv.value.clone());
        let books = books.expect("every object has its books");
        assert!(books.ends_with("difference=0/0") || books.ends_with("difference=unknown"), "{key}: {books}");
        for row in reader.get_row_iter(None).expect("rows") {
            let row = row.expect("a row");
            let field = |name: &str| row.get_column_iter().find(|(n, _)| *n == name).map(|(_, f)| f.clone());
            let text = |name: &str| match field(name) {
                Some(Field::Str(s)) => s,
                _ => String::new(),
            };
            let packets = match field("packets") {
                Some(Field::Long(n)) => u64::try_from(n).expect("never negative"),
                _ => 0,
            };
            match text("log_status").as_str() {
                "OK" => *landed.rows.entry((text("interface_id"), text("srcaddr"))).or_default() += packets,
                "SKIPDATA" if text("skip_reason") == "gap" => landed.gaps += 1,
                "SKIPDATA" if text("skip_reason") == "xdp_dropped" => {
                    *landed.xdp.entry(text("interface_id")).or_default() += packets;
                }
                "SKIPDATA" => *landed.skipped.entry(text("interface_id")).or_default() += packets,
                _ => {}
            }
        }
    }
    landed
}

/// Runs one seed and checks its end.
fn run(seed: u64) {
    let Life { sent, contents, power_cuts: cuts, was_restless, was_parting } = World::new(seed).run();
    let landed = read(&contents);
    for (flow, packets) in &landed.rows {
        let sent = sent.all.get(flow).copied().unwrap_or(0);
        assert!(*packets <= sent, "{flow:?}: {packets} delivered, {sent} sent");
    }
    for interface in ["nic-1", "nic-2"] {
        let of = |map: &BTreeMap<(String, String), u64>| -> u64 {
            map.iter().filter(|((i, _), _)| i == interface).map(|(_, n)| n).sum()
        };
        let all = of(&sent.all);
        let safe = of(&sent.safe);
        let found = of(&landed.rows) + landed.skipped.get(interface).copied().unwrap_or(0);
        if cuts == 0 {
            assert_eq!(found, all, "{interface}: found, sent; {landed:?} {sent:?}");
        } else {
            assert!((safe..=all).contains(&found), "{interface}: {found} found, {safe} acknowledged, {all} sent");
        }
    }
    for (interface, packets) in &landed.xdp {
        let dropped = sent.xdp_dropped(interface);
        assert!(*packets <= dropped, "{interface}: {packets} dropped by XDP in rows, {dropped} in all");
    }
    // Of an interface that was not there nothing can be missing.
    assert!(landed.gaps > 0 || cuts == 0 || was_restless, "{cuts} power cuts and no gap");
    assert!(landed.gaps == 0 || cuts > 0 || was_restless || was_parting, "a gap, and no reason for one");
}

#[test]
fn nothing_is_lost_or_doubled_in_a_thousand_simulated_lives() {
    if let Ok(seed) = std::env::var(SEED_VARIABLE) {
        return run(seed.parse().expect("a number"));
    }
    let next = AtomicU64::new(0);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|s| *s < SEEDS) {
                    if let Err(problem) = std::panic::catch_unwind(|| run(seed)) {
                        next.store(SEEDS, Ordering::Relaxed);
                        let again =
                            format!("{SEED_VARIABLE}={seed} cargo test -p flowlog-pipeline --lib simulated_lives");
                        eprintln!("seed {seed} failed; again: {again}");
                        std::panic::resume_unwind(problem);
                    }
                }
            });
        }
    });
}

#[test]
fn what_xdp_programs_drop_is_in_one_window_however_often_the_agent_starts() {
    for seed in 0..20 {
        let Life { sent, contents, .. } = World::calm(seed).run();
        let landed = read(&contents);
        for interface in ["nic-1", "nic-2"] {
            let dropped = sent.xdp_dropped(interface);
            assert!(dropped > 0, "{sent:?}");
            assert_eq!(landed.xdp.get(interface), Some(&dropped), "seed {seed}, {interface}");
        }
    }
}

#[test]
fn a_disk_that_is_full_at_any_write_loses_nothing() {
    // From the first write on that fails until a run in which none does.
    for write in 1.. {
        let world = World::calm(7).with_disk_full_from(write);
        let disk = world.disk.clone();
        let Life { sent, contents, .. } = world.run();
        let landed = read(&contents);
        let found: u64 = landed.rows.values().sum::<u64>() + landed.skipped.values().sum::<u64>();
        assert_eq!(found, sent.all.values().sum::<u64>(), "full at write {write}");
        if disk.writes() < write {
            assert!(write > 50, "the run writes");
            return;
        }
    }
}
