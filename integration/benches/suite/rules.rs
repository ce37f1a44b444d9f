//! `cargo xtask bench rules`: many flow logs on one node. How long does it take until all of them capture, and what do they cost
//! when nothing happens?
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::ensure;
use integration::{
    managed::{CONTRACT, DATACENTER, Managed, SERVER},
    net::{Netns, sh},
};
use serde_json::{Value, json};

use crate::{
    report::{Figure, Report, Table},
    wire::usage,
};

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Flow logs, each on an interface of its own
    #[arg(long, default_value_t = 500)]
    rules: usize,
    /// Seconds of doing nothing that are measured
    #[arg(long, default_value_t = 30)]
    idle: u64,
}

impl Options {
    /// Few of them, to see that everything runs.
    pub(crate) fn quick(self) -> Self {
        Self { rules: self.rules.min(20), idle: self.idle.min(5) }
    }
}

/// Measures; adds a table and targets to the report.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let Options { rules, idle } = *options;
    let node = Managed::new("[flow_log_defaults]\nwindow = 60\n")?;
    let guests = Netns::new("guests")?;
    plug_in(&node, &guests, 0..rules)?;
    node.write("inventory.d/guests.toml", &inventory(0..rules))?;
    let mut table = Table::new(
        format!("{rules} flow logs on {rules} interfaces"),
        "one agent",
        "Bidirectional, any action, tcx: two hooks each.",
        &["seconds", "CPU s", "RSS MiB"],
    );
    table.decimals = 2;
    let since = Instant::now();
    let mut agent = node.start()?;
    let empty = usage(agent.pid())?;
    let row = |table: &mut Table, name: &str, secs: f64, cpu: f64, rss: f64| {
        table.row(name, [secs, cpu, rss].map(|v| Some(Figure::once(v))).to_vec());
    };
    row(&mut table, "start without flow logs", since.elapsed().as_secs_f64(), empty.cpu_secs, empty.rss_mib);
    let since = Instant::now();
    for n in 0..rules {
        let _ = node.draft(&id(n), "measure", "flows");
    }
    let drafting = since.elapsed().as_secs_f64();
    let drafted = usage(agent.pid())?;
    row(&mut table, "add drafts, one by one", drafting, drafted.cpu_secs - empty.cpu_secs, drafted.rss_mib);
    let since = Instant::now();
    let (result, message) =
        node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"contract": CONTRACT}))));
    ensure!(result == "DONE", "{message}");
    let provisioned = since.elapsed().as_secs_f64();
    let active = usage(agent.pid())?;
    row(&mut table, "provision all of them", provisioned, active.cpu_secs - drafted.cpu_secs, active.rss_mib);
    // A window is a minute: nothing ends while nothing is measured, and then all windows do.
    until_second(1);
    let before = usage(agent.pid())?;
    std::thread::sleep(Duration::from_secs(idle));
    let after = usage(agent.pid())?;
    row(&mut table, &format!("{idle} s without traffic"), idle as f64, after.cpu_secs - before.cpu_secs, after.rss_mib);
    let cpu = (after.cpu_secs - before.cpu_secs) / idle as f64 * 100.0;
    until_second(58);
    let since = Instant::now();
    let before = usage(agent.pid())?;
    std::thread::sleep(Duration::from_secs(10));
    let turned = usage(agent.pid())?;
    let cpu_secs = turned.cpu_secs - before.cpu_secs;
    row(&mut table, "10 s in which all windows end", since.elapsed().as_secs_f64(), cpu_secs, turned.rss_mib);
    let objects = integration::rows::Objects::below(&node.bucket("flows"))?.keys.len();
    ensure!(objects >= rules, "{objects} objects of {rules} windows");
    let appeared = appear(&node, &guests, &mut agent, rules)?;
    row(&mut table, "an interface appears: until it is watched", appeared, 0.0, usage(agent.pid())?.rss_mib);
    agent.kill()?;
    let since = Instant::now();
    let mut agent = node.start()?;
    let restarted = (since.elapsed().as_secs_f64(), usage(agent.pid())?);
    row(&mut table, "start after kill -9, programs replaced", restarted.0, restarted.1.cpu_secs, restarted.1.rss_mib);
    ensure!(attached(&node) == rules + 1, "{} of {} are attached", attached(&node), rules + 1);
    agent.kill()?;
    report.table(table);
    report.target(format!("rules: CPU of {rules} flow logs when idle"), cpu, "%", 1.0, true);
    report.target("rules: an interface appears until it is watched", appeared, "s", 1.0, true);
    report.target(format!("rules: RSS with {rules} flow logs"), after.peak_mib, "MiB", 128.0, true);
    Ok(())
}

/// Waits for a second of the minute.
fn until_second(second: i64) {
    let now = flowlog_host::clock::now().wall.secs() % 60;
    let secs = (second - now).rem_euclid(60);
    std::thread::sleep(Duration::from_secs(secs.unsigned_abs()));
}

/// A flow log for an interface that is not there, and then is.
fn appear(node: &Managed, guests: &Netns, agent: &mut integration::agent::Agent, n: usize) -> anyhow::Result<f64> {
    node.write("inventory.d/late.toml", &inventory(n..n + 1))?;
    while !node.ask("GET", "/flowlog/v1/inventory", None).body.to_string().contains(&id(n)) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let late = node.draft(&id(n), "late", "flows");
    let (result, message) =
        node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [late]}))));
    ensure!(result == "DONE", "{message}");
    agent.log();
    let since = Instant::now();
    plug_in(node, guests, n..n + 1)?;
    agent.wait_for(&format!("watching interface=\"tap{}\"", n + 100))?;
    Ok(since.elapsed().as_secs_f64())
}

/// Flow logs whose interface is attached, once the agent has said so.
fn attached(node: &Managed) -> usize {
    // The agent says how things are every two seconds.
    std::thread::sleep(Duration::from_secs(3));
    let all = node.ask("GET", "/flowlog/v1/flowlogs", None).body;
    let state = |f: &&Value| f["captures"][0]["capture"]["state"] == "attached";
    all.as_array().into_iter().flatten().filter(state).count()
}

fn id(n: usize) -> String {
    format!("00000000-0000-4000-8000-1{n:011}")
}

/// NICs on `tap100` and so on.
fn inventory(of: std::ops::Range<usize>) -> String {
    of.fold(String::new(), |mut all, n| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            all,
            "[[nic]]\nid = '{}'\nserver = '{SERVER}'\ndatacenter = '{DATACENTER}'\ncontract = '{CONTRACT}'\n\
             interface = {{ name = 'tap{}' }}",
            id(n),
            n + 100
        );
        all
    })
}

fn plug_in(node: &Managed, guests: &Netns, of: std::ops::Range<usize>) -> anyhow::Result<()> {
    let mut batch = String::new();
    for n in of {
        let tap = n + 100;
        let _ = writeln!(batch, "link add tap{tap} type veth peer name eth{tap} netns {}", guests.name());
        let _ = writeln!(batch, "link set tap{tap} up");
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), batch)?;
    sh(&format!("ip -n {} -batch {}", node.node.name(), file.path().display())).map(drop)
}
