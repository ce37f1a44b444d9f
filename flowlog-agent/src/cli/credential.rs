//! `flowlog credential`: secrets for clients, and their hashes for the file of principals.

use std::{io::BufRead as _, process::ExitCode};

use anyhow::Context as _;
use clap::Subcommand;
use flowlog_control::flow_logs::principals::{hash_password, new_token};
use flowlog_kernel::confine;

use super::{exit::Failure, out::say};

const PASSWORD_BYTES_MIN: usize = 12;

#[derive(Subcommand)]
pub(super) enum Credential {
    /// Read a password from standard input; print its `password_hash`.
    Password,
    /// Make a Bearer token; print it, and its entry for `token_hashes`.
    Token,
}

pub(super) fn run(what: &Credential) -> anyhow::Result<ExitCode> {
    confine::no_core_files().context("cannot keep secrets out of core files")?;
    match what {
        Credential::Password => {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).context("cannot read the password")?;
            let password = line.trim_end_matches(['\r', '\n']);
            if password.len() < PASSWORD_BYTES_MIN {
                let words = format!("the password must have at least {PASSWORD_BYTES_MIN} bytes");
                return Err(Failure::Wrong(words).into());
            }
            let hash = hash_password(password).map_err(anyhow::Error::msg).context("cannot hash the password")?;
            say!("password_hash = \"{hash}\"")?;
        }
        Credential::Token => {
            let (token, hash) = new_token();
            say!("token:        {token}")?;
            say!("token_hashes = [\"{hash}\"]")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
