//! What shells are told when somebody presses tab: commands and flags by clap, names of what is on this node by this file.
//!
//! A shell asks this binary itself, with a variable in its environment. Nothing here says why it knows nothing: whoever presses tab sees.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use clap::Command;
use clap_complete::{
    CompleteEnv,
    engine::{ArgValueCandidates, CompletionCandidate},
    env::Shells,
};
use flowlog_control::{
    api::node::InventoryList,
    flow_logs::{flow_log::FlowLog, summary::Summary},
    inventory::Resource,
};
use flowlog_kernel::netdev;
use flowlog_model::{status::Status, text::printable};
use flowlog_pipeline::reporter::FILE;
use serde::de::DeserializeOwned;

use super::{client, run::runtime};
use crate::config::{SOCKET_DEFAULT, STATE_DIR_DEFAULT};

/// The variable that a shell's script sets.
const VARIABLE: &str = "FLOWLOG_COMPLETE";
/// As the command is called, wherever it is.
const NAME: &str = "flowlog";
/// How long somebody who has pressed tab waits for an agent.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers a shell, if one asks, and ends the process.
pub(super) fn answer(command: fn() -> Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).bin(NAME).completer(NAME).complete();
}

/// The script for a shell; `None`: there is none for it.
pub(super) fn script(shell: &str) -> Option<std::io::Result<String>> {
    let shells = Shells::builtins();
    let shell = shells.completer(shell)?;
    let mut script = Vec::new();
    let written = shell.write_registration(VARIABLE, NAME, NAME, NAME, &mut script);
    Some(written.map(|()| String::from_utf8_lossy(&script).into_owned()))
}

/// The shells that there are scripts for.
pub(super) fn shells() -> Vec<&'static str> {
    Shells::builtins().names().collect()
}

/// Network interfaces of this namespace.
pub(super) fn interfaces() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let all = netdev::all().unwrap_or_default();
        all.iter().filter_map(|device| candidate(&device.name, None)).collect()
    })
}

/// Names of flow logs that can be managed: drafts too, if there is a socket.
pub(super) fn flow_logs() -> ArgValueCandidates {
    ArgValueCandidates::new(|| match asked::<Vec<Summary>>("flowlogs") {
        Some(all) => {
            let named =
                |f: &FlowLog| candidate(&f.properties.name, Some(format!("{}, {}", client::word(&f.state), f.id)));
            all.iter().filter_map(|s| named(&s.flow_log)).collect()
        }
        None => captures(&read()),
    })
}

/// Names of flow logs that have flows: what captures nothing, such as a draft, has none; those of the configuration do.
pub(super) fn captured() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let managed = asked::<Vec<Summary>>("flowlogs").unwrap_or_default();
        let managed = managed.into_iter().filter(|s| !s.captures.is_empty()).map(|s| s.flow_log.properties.name);
        let listed = asked::<InventoryList>("inventory").map(|list| list.resources).unwrap_or_default();
        let by_selection = listed.into_iter().filter_map(|listed| listed.selected_by);
        let written = read().rules.into_iter().map(|r| r.rule);
        let all: BTreeSet<String> = managed.chain(by_selection).chain(written).collect();
        all.iter().filter_map(|name| candidate(name, None)).collect()
    })
}

/// Ids of NICs, NAT gateways and load balancers.
pub(super) fn resources() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let all = asked::<InventoryList>("inventory").map(|list| list.resources).unwrap_or_default();
        let named = |r: &Resource| {
            let interfaces: Vec<String> = r.interfaces.iter().map(|i| i.selector.to_string()).collect();
            candidate(&r.id.to_string(), Some(format!("{} {}", client::word(&r.kind), interfaces.join(", "))))
        };
        all.iter().filter_map(|listed| named(&listed.resource)).collect()
    })
}

/// A word for a shell. What would act on a terminal is none: it could not be typed either.
fn candidate(word: &str, help: Option<String>) -> Option<CompletionCandidate> {
    let can_be_typed = printable(word) == word && !word.contains(char::is_whitespace);
    can_be_typed.then(|| CompletionCandidate::new(word).help(help.map(|words| printable(&words).into_owned().into())))
}

/// What the agent has written down.
fn read() -> Status {
    let status = std::fs::read(Path::new(STATE_DIR_DEFAULT).join(FILE)).unwrap_or_default();
    serde_json::from_slice(&status).unwrap_or_default()
}

/// Rules, each once, with an interface of theirs.
fn captures(status: &Status) -> Vec<CompletionCandidate> {
    let all: BTreeMap<&str, &str> = status.rules.iter().map(|r| (r.rule.as_str(), r.interface.as_str())).collect();
    all.into_iter().filter_map(|(rule, interface)| candidate(rule, Some(interface.to_owned()))).collect()
}

/// What the agent at the usual socket says.
fn asked<T: DeserializeOwned>(path: &str) -> Option<T> {
    let socket = std::env::var_os("FLOWLOG_SOCKET").unwrap_or_else(|| SOCKET_DEFAULT.into());
    let asked = async { tokio::time::timeout(PATIENCE, client::get(Path::new(&socket), path)).await.ok()?.ok() };
    serde_json::from_value(runtime().ok()?.block_on(asked)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_a_script_that_asks_this_command() {
        assert!(["bash", "zsh", "fish"].iter().all(|shell| shells().contains(shell)));
        for shell in shells() {
            let script = script(shell).expect("known").expect("written");
            assert!(script.contains(VARIABLE) && script.contains(NAME), "{shell}: {script}");
        }
        assert!(script("csh").is_none());
    }

    #[test]
    fn what_cannot_be_typed_is_offered_to_nobody() {
        assert!(candidate("web-1", None).is_some());
        assert!(candidate("a\u{1b}[2J", None).is_none() && candidate("two words", None).is_none());
    }
}
