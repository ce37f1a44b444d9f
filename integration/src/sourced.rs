//! A [`Managed`] node whose inventory has sources, and flow logs by selection.

use std::{
    fs,
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{http, managed::Managed, rows::Objects};

/// Longer than anything takes that is waited for, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a flow log by selection is called in these tests.
pub const TEMPLATE: &str = "all";
/// Contract of what sources find.
pub const OWNER: &str = "7";

/// See the module's head.
pub struct Sourced {
    pub managed: Managed,
}

impl Sourced {
    /// Makes one: `sources` are tables of the configuration, and `select` says what its flow log is for.
    ///
    /// # Errors
    /// Without root.
    pub fn new(more: &str, sources: &str, select: &str) -> anyhow::Result<Self> {
        let managed = Managed::new(more)?;
        let target = managed.path("selected");
        fs::create_dir(&target)?;
        let config = fs::read_to_string(managed.path("flowlog.toml"))?;
        let log = format!("[[flow_log]]\nname = '{TEMPLATE}'\nselect = {select}\ntarget = '{}'\n", target.display());
        managed.write("flowlog.toml", &format!("{config}{sources}\n{log}"))?;
        Ok(Self { managed })
    }

    /// Where objects of the flow log by selection go.
    #[must_use]
    pub fn selected(&self) -> PathBuf {
        self.managed.path("selected")
    }

    /// What has landed there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn landed(&self) -> anyhow::Result<Objects> {
        Objects::below(&self.selected())
    }

    /// The inventory, as the agent has it.
    #[must_use]
    pub fn inventory(&self) -> Value {
        self.managed.ask("GET", "/flowlog/v1/inventory", None).body
    }

    /// The NIC of an interface, if the inventory has one.
    #[must_use]
    pub fn nic(&self, interface: &str) -> Option<Value> {
        let inventory = self.inventory();
        let is_of = |r: &&Value| r["interfaces"][0]["selector"]["name"] == interface;
        inventory["resources"].as_array()?.iter().find(is_of).cloned()
    }

    /// Waits until something is so of the inventory.
    ///
    /// # Panics
    /// If it never is.
    pub fn until<T>(&self, what: &str, is_so: impl Fn(&Self) -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            if let Some(found) = is_so(self) {
                return found;
            }
            assert!(since.elapsed() < PATIENCE, "{what}: {:#}", self.inventory());
            // The inventory has no event: it is asked for.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the inventory has the NIC of an interface.
    ///
    /// # Panics
    /// If it never has.
    #[must_use]
    pub fn found(&self, interface: &str) -> Value {
        self.until(&format!("no NIC of {interface}"), |s| s.nic(interface))
    }

    /// Waits until it has not.
    ///
    /// # Panics
    /// If it always has.
    pub fn lost(&self, interface: &str) {
        self.until(&format!("the NIC of {interface} stays"), |s| s.nic(interface).is_none().then_some(()));
    }

    /// Waits for a problem with these words, or for there to be none.
    ///
    /// # Panics
    /// If it never comes, or never goes.
    pub fn problem(&self, words: Option<&str>) {
        let problems = |s: &Self| s.inventory()["problems"].as_array().cloned().unwrap_or_default();
        match words {
            Some(words) => {
                let has =
                    |s: &Self| problems(s).iter().any(|p| p.as_str().is_some_and(|p| p.contains(words))).then_some(());
                self.until(words, has);
            }
            None => self.until("no problem", |s| problems(s).is_empty().then_some(())),
        }
    }

    /// The console's tree, as the operator sees it.
    ///
    /// # Panics
    /// If there is no page.
    #[must_use]
    pub fn tree(&self) -> String {
        let mut stream = UnixStream::connect(self.managed.path("agent.sock")).expect("the socket");
        let request = http::request("GET", "/", "", None);
        http::exchange_text(&mut stream, &request).expect("a page").2
    }

    /// The figures that are served on an address in its namespace.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn figures(&self, address: &str) -> String {
        let request = http::request("GET", "/metrics", "", None);
        let ask = || http::exchange_text(&mut TcpStream::connect(address).expect("an address"), &request);
        self.managed.node.run(ask).expect("figures").2
    }

    /// Runs the command without an agent: exit code, standard output, standard error.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn import(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.managed.node.command(crate::agent::binary());
        let out = command.args(["inventory", "import"]).args(args).output().expect("the command");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    }
}
