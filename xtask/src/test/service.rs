//! The agent under test as its systemd unit runs it: a user of its own, the unit's capabilities, its filter of system calls; all of it is
//! read from the unit. A script stands in for the agent, and `integration/src/bin/filtered.rs` for what systemd does last.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::util::{output, root, target};

/// The unit.
const UNIT: &str = "flowlog-agent/package/flowlog.service";
/// A user that nobody else is.
const USER: u32 = 61_234;

/// Drop-ins for it.
const DROP_INS: &str = "flowlog-agent/package/examples/systemd";

/// Writes the script, and returns its path; with what a drop-in adds to the unit, if one is named.
pub(super) fn script(drop_in: Option<&str>) -> anyhow::Result<PathBuf> {
    let mut unit = fs::read_to_string(root().join(UNIT)).context(UNIT)?;
    if let Some(name) = drop_in {
        unit += &fs::read_to_string(root().join(DROP_INS).join(name)).with_context(|| name.to_owned())?;
    }
    let dir = target().join("as-service");
    fs::create_dir_all(&dir)?;
    let calls = dir.join("system-calls");
    fs::write(&calls, Vec::from_iter(system_calls(&unit)?).join("\n"))?;
    let capabilities = capabilities(&unit)?;
    let script = dir.join("flowlog");
    fs::write(&script, text(&calls, &capabilities))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// Commands that an operator types stay the operator's. The directories of a test become the user's, as systemd makes those of the unit.
fn text(calls: &Path, capabilities: &str) -> String {
    let debug = target().join("debug").display().to_string();
    let temporary = env::temp_dir().display().to_string();
    let calls = calls.display();
    format!(
        "#!/bin/sh\n\
         case $1 in run|detach) ;; *) exec {debug}/flowlog \"$@\" ;; esac\n\
         for arg; do\n\
         case $arg in {temporary}/*) below=${{arg#{temporary}/}}; chown -hR {USER}:{USER} \"{temporary}/${{below%%/*}}\" ;; esac\n\
         done\n\
         exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --bounding-set=-all,{capabilities} \
         --inh-caps=-all,{capabilities} --ambient-caps=-all,{capabilities} {debug}/filtered {calls} {debug}/flowlog \"$@\"\n"
    )
}

/// Values of a key of the unit, in the order of its lines.
fn values<'a>(unit: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    unit.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='))
}

/// As `setpriv` takes them: `+bpf,+net_admin`.
fn capabilities(unit: &str) -> anyhow::Result<String> {
    let names = values(unit, "AmbientCapabilities").flat_map(str::split_whitespace);
    let names: Vec<String> = names.map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
    ensure!(!names.is_empty(), "the unit names no capabilities");
    Ok(names.join(","))
}

/// Names of the calls that the unit allows: a line adds, with `~` it takes away, and `@` is a set that systemd knows.
fn system_calls(unit: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut allowed = BTreeSet::new();
    for line in values(unit, "SystemCallFilter") {
        let (is_taken, names) = line.strip_prefix('~').map_or((false, line), |rest| (true, rest));
        for name in names.split_whitespace() {
            for call in members(name)? {
                if is_taken {
                    allowed.remove(&call);
                } else {
                    allowed.insert(call);
                }
            }
        }
    }
    ensure!(!allowed.is_empty(), "the unit has no filter");
    Ok(allowed)
}

/// A call, or those of a set and of the sets in it.
fn members(name: &str) -> anyhow::Result<Vec<String>> {
    if !name.starts_with('@') {
        return Ok(vec![name.to_owned()]);
    }
    let listed = output(Command::new("systemd-analyze").args(["syscall-filter", name]))?;
    // The set's name, and a sentence; then one name a line.
    let names = listed.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(names.map(members).collect::<anyhow::Result<Vec<_>>>()?.concat())
}
