//! `cargo deny`: licences, duplicate and foreign sources, known advisories. `deny.toml` has the rules.

use std::process::Command;

use anyhow::bail;

use crate::{
    setup,
    util::{root, run as run_command, step},
};

/// What cargo-deny says when it has no advisories to look in.
const NO_DATABASE: &str = "failed to fetch advisory database";

/// All of it, with the pinned program.
pub(crate) fn check() -> anyhow::Result<()> {
    setup::cargo_deny()?;
    step("licences, duplicates, sources (cargo deny)");
    run_command(deny().args(["licenses", "bans", "sources"]))?;
    let looked = deny().arg("advisories").output()?;
    let said = String::from_utf8_lossy(&looked.stderr);
    match verdict(looked.status.success(), &said) {
        Advisories::None => step("no advisory is about what is linked (cargo deny)"),
        // Somebody without a network must be able to work. Where there is one, this line is not seen.
        Advisories::Unknown => step("advisories: NOT checked, their database cannot be fetched"),
        Advisories::Some => {
            bail!("{said}\ncargo deny: update what an advisory is about, or say in deny.toml why it does not apply")
        }
    }
    Ok(())
}

/// What there is to know about advisories.
#[derive(Debug, PartialEq, Eq)]
enum Advisories {
    None,
    Some,
    Unknown,
}

fn verdict(success: bool, said: &str) -> Advisories {
    match success {
        true => Advisories::None,
        false if said.contains(NO_DATABASE) => Advisories::Unknown,
        false => Advisories::Some,
    }
}

fn deny() -> Command {
    let mut command = Command::new(setup::deny());
    // A mirror that wants a password must not stop the check and ask.
    command.current_dir(root()).env("GIT_TERMINAL_PROMPT", "0");
    command.args(["--locked", "--color", "never", "check", "--hide-inclusion-graph"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_database_that_cannot_be_had_is_no_failure() {
        let offline = "[ERROR] failed to fetch advisory database `x` with cli: failed to clone: could not resolve host";
        assert_eq!(verdict(true, ""), Advisories::None);
        assert_eq!(verdict(false, offline), Advisories::Unknown);
        assert_eq!(verdict(false, "error[vulnerability]: use after free\nadvisories FAILED"), Advisories::Some);
        assert_eq!(verdict(false, "failed to parse deny.toml"), Advisories::Some);
    }
}
