//! What the package of tables must do: be installed beside the agent's or without it, run confined by the real systemd with the user that
//! its unit makes for it and with the agent's, take every object that the agent delivers, and go without a trace. The witnesses are the
//! files in the target, and what the table's own metadata says of its rows.

use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{REVISION, VERSION, guest::Guest, install::TARGET};
use crate::util::{output, root, step};

/// Where the service keeps its catalog and its tables.
const STATE: &str = "/var/lib/flowlog-catalog";
/// The table of the agent's objects.
const TABLE: &str = "flows";
/// Users that systemd makes for services.
const DYNAMIC_USERS: std::ops::RangeInclusive<u32> = 61_184..=65_519;
/// The newest metadata of a table, out of the catalog: its file's path in the container.
const METADATA: &str = "import sqlite3, sys\n\
                        rows = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True).execute(\n\
                        'select metadata_location from iceberg_tables where table_name = ?', sys.argv[2:])\n\
                        print(rows.fetchone()[0].removeprefix('file://'))";
/// Rows in all objects below a directory; by pyarrow.
const ROWS: &str = "import pathlib, sys, pyarrow.parquet as p\n\
                    print(sum(p.read_metadata(f).num_rows for f in pathlib.Path(sys.argv[1]).rglob('*.parquet')))";

/// Installs it, and starts its unit: as it is, and as it has to be for objects in a local directory of the agent's.
pub(super) fn install(guest: &Guest) -> anyhow::Result<()> {
    step("the package of tables");
    let said = guest.run(&format!("dpkg --install /root/flowlog-catalog_{VERSION}-{REVISION}_*.deb"))?;
    ensure!(said.contains("systemctl enable --now flowlog-catalog"), "it does not say what to do next: {said}");
    // Nobody has said which tables.
    guest.refuse("systemctl is-enabled flowlog-catalog")?;
    guest.refuse("systemctl is-active flowlog-catalog")?;
    guest.run("flowlog-catalog --version; zgrep -q 'REST catalog' /usr/share/man/man1/flowlog-catalog.1.gz")?;
    guest.run("systemd-analyze verify --man=no /usr/lib/systemd/system/flowlog-catalog.service")?;
    configure(guest, "nothing", "/srv")?;
    guest.run("systemctl start flowlog-catalog")?;
    status(guest, "flowlog.nothing: 0 objects")?;
    let process = guest.run("cat /proc/$(systemctl show --property MainPID --value flowlog-catalog)/status")?;
    let user = process.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().next()).context("a user")?;
    ensure!(DYNAMIC_USERS.contains(&user.parse()?), "it is user {user}");
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t1"] {
        ensure!(process.lines().any(|l| l == line), "not {line}: {process}");
    }
    configure(guest, TABLE, TARGET)?;
    guest.run(
        "mkdir -p /etc/systemd/system/flowlog-catalog.service.d
         printf '[Service]\\nDynamicUser=no\\nUser=flowlog\\n' >/etc/systemd/system/flowlog-catalog.service.d/local.conf
         systemctl daemon-reload
         systemctl enable --now flowlog-catalog
         systemctl restart flowlog-catalog",
    )?;
    guest.ensure_confined("flowlog-catalog")
}

/// A table of what is below a directory.
fn configure(guest: &Guest, table: &str, from: &str) -> anyhow::Result<()> {
    let lines = ["every = \"1s\"", "metrics_listen = \"127.0.0.1:9478\"", "[[table]]"].map(str::to_owned);
    let table = [format!("name = \"flowlog.{table}\""), format!("from = [\"{from}\"]")];
    let text = [&lines[..], &table].concat().join("\n") + "\n";
    let path = guest.path("/etc/flowlog-catalog/catalog.toml");
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// Waits until the service says so to systemd.
fn status(guest: &Guest, words: &str) -> anyhow::Result<()> {
    let status = "systemctl show --property StatusText --value flowlog-catalog";
    guest
        .run(&format!(
            "for i in $(seq 150); do {status} | grep -qxF '{words}' && exit; sleep 0.2; done; {status}
             systemctl status --no-pager flowlog-catalog; false"
        ))
        .map(drop)
}

/// The table has every object that has been delivered, and all their rows.
pub(super) fn ensure_complete(guest: &Guest) -> anyhow::Result<()> {
    let objects: u64 = guest.run(&format!("find {TARGET} -name '*.parquet' | wc -l"))?.trim().parse()?;
    ensure!(objects > 0);
    status(guest, &format!("flowlog.{TABLE}: {objects} objects"))?;
    let python = |script: &str| {
        let mut python = Command::new(root().join(".tools/python/bin/python"));
        python.args(["-c", script]);
        python
    };
    let database = guest.path(STATE).join("catalog.db");
    let metadata = output(python(METADATA).arg(database).arg(TABLE))?;
    let metadata: Value = serde_json::from_slice(&std::fs::read(guest.path(&metadata))?)?;
    let newest = metadata["snapshots"].as_array().context("snapshots")?.iter();
    let newest = newest.max_by_key(|snapshot| snapshot["sequence-number"].as_u64()).context("a snapshot")?;
    let total = |name: &str| newest["summary"][name].as_str().map(str::to_owned).unwrap_or_default();
    let rows = output(python(ROWS).arg(guest.path(TARGET)))?;
    step(&format!("{objects} objects with {rows} rows are in the table"));
    ensure!(total("total-data-files") == objects.to_string(), "{newest}");
    ensure!(total("total-records") == rows, "{newest}");
    Ok(())
}

/// What an engine has written into its tables outlives a purge; nothing else does.
pub(super) fn purge(guest: &Guest) -> anyhow::Result<()> {
    let compacted = format!("{STATE}/warehouse/flowlog/{TABLE}/data/compacted.parquet");
    guest.run(&format!("mkdir -p $(dirname {compacted}); touch {compacted}; dpkg --purge flowlog-catalog 2>&1 | grep -q 'they are kept'"))?;
    guest.run(&format!("rm {compacted}; dpkg --install /root/flowlog-catalog_*.deb; dpkg --purge flowlog-catalog"))?;
    guest.refuse("systemctl cat flowlog-catalog.service")
}
