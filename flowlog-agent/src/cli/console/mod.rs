//! `flowlog console`: the agent's console in a browser, for whoever may use its socket. A proxy on loopback, with a secret that only the
//! browser of whoever started it has.

mod proxy;

use std::{
    env, fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use flowlog_control::flow_logs::principals::new_token;
use proxy::Proxy;

use super::{client::ClientArgs, exit::Failure, out::say, run::runtime};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  flowlog console
  flowlog console --listen 127.0.0.1:8080 --no-open")]
pub(super) struct ConsoleArgs {
    #[command(flatten)]
    agent: ClientArgs,
    /// Where to serve it: a loopback address; port 0 is any that is free.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    listen: SocketAddr,
    /// Print the URL, and open no browser.
    #[arg(long)]
    no_open: bool,
}

pub(super) fn run(args: ConsoleArgs) -> anyhow::Result<ExitCode> {
    let ConsoleArgs { agent, listen, no_open } = args;
    if !listen.ip().is_loopback() {
        let words =
            format!("--listen `{listen}`: use a loopback address; for others there is `[api] listen`, with TLS");
        return Err(Failure::Wrong(words).into());
    }
    let client = agent.client();
    // Whether there is an agent that knows this user is said here, not in a page.
    client.get("inventory")?;
    let listener = std::net::TcpListener::bind(listen).with_context(|| format!("--listen `{listen}`"))?;
    listener.set_nonblocking(true)?;
    let (token, _) = new_token();
    let url = format!("http://{}/?token={token}", listener.local_addr()?);
    say!("{url}")?;
    say!("The link works once, in one browser. Ctrl-C ends the console.")?;
    let page = if no_open { None } else { Opened::open(&url) };
    let served = runtime()?.block_on(async {
        let proxy = Proxy::new(client.socket().to_owned(), token);
        tokio::select! {
            served = proxy.serve(listener) => served,
            interrupted = tokio::signal::ctrl_c() => interrupted,
        }
    });
    drop(page);
    served?;
    Ok(ExitCode::SUCCESS)
}

/// A page that leads to the URL, which only this user can read: others see what a command is started with.
struct Opened(PathBuf);

impl Opened {
    /// Opens a browser, where there is a desktop; `None`: there is none.
    fn open(url: &str) -> Option<Self> {
        if ["DISPLAY", "WAYLAND_DISPLAY"].iter().all(|name| env::var_os(name).is_none()) {
            return None;
        }
        let dir = env::var_os("XDG_RUNTIME_DIR").map_or_else(env::temp_dir, PathBuf::from);
        let page = Self::write(&dir, url).ok()?;
        let quiet = Stdio::null;
        // That there is no browser is no failure: the URL has been printed.
        let opening = Command::new("xdg-open").arg(&page.0).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn();
        opening.ok().map(|_| page)
    }

    fn write(dir: &Path, url: &str) -> std::io::Result<Self> {
        let (name, _) = new_token();
        let page = Self(dir.join(format!("flowlog-console-{}.html", &name[..16])));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&page.0)?;
        write!(file, "<!doctype html><title>flowlog</title><meta http-equiv=\"refresh\" content=\"0;url={url}\">")?;
        Ok(page)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
