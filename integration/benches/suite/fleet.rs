//! `cargo xtask bench fleet`: many flow logs and many nodes' watches on one etcd. What do they take in memory, how long does a start take, and
//! a change until all of them know?
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use flowlog_control::{
    etcd::{EtcdOptions, PREFIX_DEFAULT},
    fleet::rehearsal,
};
use integration::{
    agent::{Agent, binary},
    http,
    managed::{CONTRACT, DATACENTER},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    report::{Figure, Report, Table},
    wire::usage,
};

/// Changes whose way is measured.
const CHANGES: usize = 30;
/// Flow logs that are taken over at once.
const BATCH: usize = 30;
/// Where etcd listens: on loopback, beside a port for members that it has none of.
const CLIENTS: &str = "http://127.0.0.1:23790";
const PEERS: &str = "http://127.0.0.1:23800";

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Flow logs in etcd
    #[arg(long, default_value_t = 100_000)]
    flow_logs: usize,
    /// Nodes that watch them
    #[arg(long, default_value_t = 1_000)]
    watches: usize,
}

impl Options {
    /// Few of them, to see that everything runs.
    pub(crate) fn quick(self) -> Self {
        Self { flow_logs: self.flow_logs.min(1_000), watches: self.watches.min(20) }
    }
}

/// One member, with its data in a directory.
struct Etcd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Etcd {
    fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", CLIENTS, "--advertise-client-urls", CLIENTS])
            .args(["--listen-peer-urls", PEERS, "--initial-advertise-peer-urls", PEERS])
            .args(["--initial-cluster", &format!("default={PEERS}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("etcd: `cargo xtask setup` installs it")?;
        Ok(Self { child, dir })
    }

    fn file_mib(&self) -> f64 {
        fs::metadata(self.dir.path().join("data/member/snap/db")).map_or(0.0, |m| m.len() as f64 / f64::from(1 << 20))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Measures; adds a table and targets to the report.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let Options { flow_logs, watches } = *options;
    let etcd = Etcd::start()?;
    let dir = tempfile::tempdir()?;
    let d = dir.path().display();
    fs::write(
        dir.path().join("control.toml"),
        format!("node_id = 'control'\n[rules]\netcd = ['{CLIENTS}']\n[api]\nsocket = '{d}/control.sock'\n"),
    )?;
    let mut table = Table::new(
        format!("{flow_logs} flow logs and {watches} watches on one etcd"),
        "one member, on this machine",
        "Each watch has a connection of its own, as a node has.",
        &["seconds", "RSS MiB", "etcd RSS MiB", "etcd file MiB"],
    );
    table.decimals = 3;
    let row = |table: &mut Table, name: &str, secs: f64, rss_mib: f64| -> anyhow::Result<()> {
        let values = [secs, rss_mib, usage(etcd.child.id())?.rss_mib, etcd.file_mib()];
        table.row(name, values.map(|v| Some(Figure::once(v))).to_vec());
        Ok(())
    };
    let control = || -> anyhow::Result<(Agent, f64)> {
        let since = Instant::now();
        let mut command = Command::new(binary());
        command.args(["control", "--config"]).arg(dir.path().join("control.toml"));
        let mut server = Agent::attend(command, tempfile::tempdir()?)?;
        server.wait_for("serving the region")?;
        Ok((server, since.elapsed().as_secs_f64()))
    };
    let (mut server, secs) = control()?;
    row(&mut table, "server: start without flow logs", secs, usage(server.pid())?.rss_mib)?;
    let socket = dir.path().join("control.sock");
    let ask = |method: &str, path: &str, body: &Value| http::unix(&socket, method, path, Some(body));
    let since = Instant::now();
    for first in (0..flow_logs).step_by(BATCH) {
        let all: Vec<Value> = (first..flow_logs.min(first + BATCH)).map(flow_log).collect();
        let answer = ask("POST", "/flowlog/v1/import", &json!({"format": 1, "flow_logs": all}))?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    row(
        &mut table,
        "server: take them over, 30 at a time",
        since.elapsed().as_secs_f64(),
        usage(server.pid())?.rss_mib,
    )?;
    server.kill()?;
    let (server, secs) = control()?;
    row(&mut table, "server: start with all of them", secs, usage(server.pid())?.rss_mib)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let since = Instant::now();
    let read = runtime.block_on(rehearsal::read(reached())).map_err(anyhow::Error::msg)?;
    ensure!(read.flow_logs == flow_logs, "{} of {flow_logs} were read", read.flow_logs);
    let reading = since.elapsed().as_secs_f64();
    row(&mut table, "node: read all of them", reading, read.bytes as f64 / f64::from(1 << 20))?;
    let ways = runtime.block_on(changes(&read, watches, &ask))?;
    let all: Vec<f64> = ways.iter().map(|(_, all)| *all).collect();
    let first: Vec<f64> = ways.iter().map(|(answered, _)| *answered).collect();
    let own = usage(std::process::id())?;
    row(
        &mut table,
        "a change until it is answered (median)",
        Figure::least(&first).median,
        usage(server.pid())?.rss_mib,
    )?;
    row(&mut table, "a change until all watches have it (median)", Figure::least(&all).median, own.rss_mib)?;
    row(
        &mut table,
        "a change until all watches have it (slowest)",
        all.iter().copied().fold(0.0, f64::max),
        own.rss_mib,
    )?;
    report.table(table);
    report.target(
        format!("fleet: a change until {watches} watches have it"),
        Figure::least(&all).median,
        "s",
        1.0,
        true,
    );
    Ok(())
}

fn reached() -> EtcdOptions {
    let prefix = PREFIX_DEFAULT.to_owned();
    EtcdOptions { endpoints: vec![CLIENTS.to_owned()], ca: None, identity: None, credentials: None, prefix }
}

/// Renames one flow log after the other; for each the time until that is answered, and until all watches have it.
async fn changes(
    from: &rehearsal::Rehearsed,
    watches: usize,
    ask: &impl Fn(&str, &str, &Value) -> anyhow::Result<http::Answer>,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let (hear, mut heard) = mpsc::unbounded_channel();
    for _ in 0..watches {
        tokio::spawn(rehearsal::watch(reached(), from.clone(), hear.clone()));
    }
    let mut ways = Vec::new();
    // The first two show that all of them watch.
    for n in 0..CHANGES + 2 {
        tokio::time::sleep(if n < 2 { Duration::from_secs(10) } else { Duration::from_millis(100) }).await;
        let since = Instant::now();
        let path = format!("/flowlog/v1/flowlogs/{}", id(2, n));
        let answer = ask("PATCH", &path, &json!({"name": format!("renamed-{n}")}))?;
        ensure!(answer.status == 200, "{answer:?}");
        let answered = since.elapsed().as_secs_f64();
        let mut last = since;
        for _ in 0..watches {
            let came = tokio::time::timeout(Duration::from_secs(120), heard.recv()).await;
            last = last.max(came.context("some watch does not hear")?.context("a watch")?);
        }
        if n >= 2 {
            ways.push((answered, (last - since).as_secs_f64()));
        }
    }
    Ok(ways)
}

fn id(kind: u8, n: usize) -> String {
    format!("00000000-0000-4000-8{kind:03}-{n:012}")
}

/// A flow log as a customer has it, active, in one of a thousand contracts.
fn flow_log(n: usize) -> Value {
    let made = json!({"by": "ann@example.com", "by_id": id(9, n % 1_000), "at_secs": 1_780_000_000});
    json!({
        "id": id(2, n),
        "contract": format!("{}{:03}", &CONTRACT[..5], n % 1_000),
        "parent": {"kind": "nic", "id": id(1, n), "datacenter": DATACENTER, "server": id(3, n / 4)},
        "properties": {"name": format!("web-{n}"), "direction": "BIDIRECTIONAL", "action": "ALL", "bucket": "flows-of-a-customer/team-a"},
        "settings": {"window_secs": 600, "hook": "Tc", "nodata": true, "subsecond": false, "layout": "hive", "format": "parquet"},
        "state": "active",
        "key_name": format!("web-{n}"),
        "interfaces": [{"id": id(1, n), "selector": {"name": "tap0"}}],
        "problems": [],
        "version": 3,
        "created": made,
        "modified": made,
    })
}
