//! Random networks, rules and traffic: REJECT is what the firewall refused, ACCEPT is the rest, on every interface.

use std::time::{Duration, Instant};

use integration::random::{build, features::Features, judge::Figures, scenario::Scenario};

/// Runs seeds one after the other; all failures are shown, the first one with its replay.
fn seeds(seeds: std::ops::Range<u64>) {
    let features = build::supported(&Features::all()).unwrap();
    let mut failed = Vec::new();
    let mut figures = Figures::default();
    for seed in seeds {
        match Scenario::random(seed, &features).run() {
            Ok(f) => figures += f,
            Err(failure) => failed.push((seed, failure.text)),
        }
    }
    eprintln!("{figures}");
    let numbers: Vec<u64> = failed.iter().map(|f| f.0).collect();
    assert!(failed.is_empty(), "seeds {numbers:?} failed; the first one:\n{}", failed[0].1);
}

/// Five tests of ten networks, so that they run side by side.
mod fifty_random_networks_agree_with_the_firewall {
    #[test]
    fn seeds_0_to_9() {
        super::seeds(0..10);
    }

    #[test]
    fn seeds_10_to_19() {
        super::seeds(10..20);
    }

    #[test]
    fn seeds_20_to_29() {
        super::seeds(20..30);
    }

    #[test]
    fn seeds_30_to_39() {
        super::seeds(30..40);
    }

    #[test]
    fn seeds_40_to_49() {
        super::seeds(40..50);
    }
}

/// What `cargo xtask fuzz verdicts` runs: its options are in `FLOWLOG_FUZZ_…`.
#[test]
#[ignore = "as long as one likes: `cargo xtask fuzz verdicts`"]
fn fuzz_verdicts() {
    let option = |name: &str| std::env::var(format!("FLOWLOG_FUZZ_{name}")).ok();
    let number = |name: &str| option(name).map(|v| v.parse::<u64>().unwrap());
    let features = Features::parse(&option("FEATURES").unwrap_or_else(|| "all".to_owned())).unwrap();
    let features = build::supported(&features).unwrap();
    let from = number("SEED");
    let minutes = number("MINUTES");
    // A seed alone is one run; a time alone begins somewhere new each day.
    let count = number("COUNT").or(if minutes.is_some() { None } else { Some(1) });
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let first = from.unwrap_or(now);
    let begun = Instant::now();
    let mut ran = 0;
    let mut failed = Vec::new();
    let mut figures = Figures::default();
    while count.is_none_or(|c| ran < c) && minutes.is_none_or(|m| begun.elapsed() < Duration::from_secs(60 * m)) {
        let seed = first + ran;
        ran += 1;
        let mut scenario = Scenario::random(seed, &features);
        if let Some(flows) = option("FLOWS") {
            scenario.flows.retain(|f| flows.split(',').any(|n| n == f.id.to_string()));
        }
        if let Some(watch) = option("WATCH") {
            scenario.watched = watch.split(',').map(ToOwned::to_owned).collect();
        }
        if option("QUIET").is_some() {
            scenario.noise.clear();
        }
        match scenario.run() {
            Ok(f) => figures += f,
            Err(failure) => {
                eprintln!("--- seed {seed} ---\n{}", failure.text);
                if option("MINIMISE").is_some() && !failure.mismatches.is_empty() {
                    let least = scenario.minimise(&mut |line| eprintln!("{line}"));
                    let text = least.run().map_or_else(|f| f.text, |_| format!("(passed this time)\n{least}"));
                    eprintln!("--- seed {seed}, what is needed ---\n{text}");
                }
                failed.push(seed);
            }
        }
    }
    eprintln!("features {features}: {ran} seeds from {first} in {:.0?}: {figures}", begun.elapsed());
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
}
