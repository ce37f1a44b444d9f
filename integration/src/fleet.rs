//! A region: etcd and `flowlog control` in one namespace, nodes in namespaces of their own, each on a cable to it and with a tap on a cable
//! to one other host. A NIC is where its file is in a node's inventory.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    agent::{Agent, binary},
    etcd::Cluster,
    files,
    http::{self, Answer},
    managed::{CONTRACT, DATACENTER, SERVER, plug_in, principals},
    net::{Netns, address, sh, veth},
    rows::Objects,
    traffic,
};

/// See the module's head.
pub struct Region {
    /// Where etcd and the server run.
    pub hub: Netns,
    /// The host at the other end of all taps.
    pub far: Arc<Netns>,
    pub nodes: Vec<Netns>,
    pub etcd: Cluster,
    pub dir: tempfile::TempDir,
}

/// The id of a NIC.
#[must_use]
pub fn nic(n: u32) -> String {
    format!("00000000-0000-4000-8000-0000000001{n:02}")
}

impl Region {
    /// Makes one with `count` nodes on an etcd of `members`.
    ///
    /// # Errors
    /// Without root, or without etcd.
    pub fn new(count: usize, members: u16) -> anyhow::Result<Self> {
        let (hub, far) = (Netns::new("hub")?, Arc::new(Netns::new("far")?));
        let dir = tempfile::tempdir()?;
        let mut nodes = Vec::new();
        let mut addresses = Vec::new();
        for n in 1..=count {
            let node = Netns::new(&format!("n{n}"))?;
            veth((&hub, &format!("to{n}")), (&node, "up0"))?;
            address(&hub, &format!("to{n}"), &format!("10.99.{n}.1/24"))?;
            address(&node, "up0", &format!("10.99.{n}.2/24"))?;
            plug_in(&node, &far, "tap0", n)?;
            addresses.push(format!("10.99.{n}.1"));
            nodes.push(node);
        }
        let etcd = Cluster::start(&hub, members, &addresses, &[])?;
        let region = Self { hub, far, nodes, etcd, dir };
        fs::create_dir_all(region.bucket())?;
        region.write("principals.toml", &principals())?;
        let buckets = format!("[buckets]\ndirectory = '{}'\n", region.path("buckets").display());
        region.write("buckets.toml", &buckets)?;
        for n in 1..=count {
            fs::create_dir_all(region.path(&format!("n{n}/inventory.d")))?;
            fs::create_dir_all(region.path(&format!("n{n}/bpf")))?;
            sh(&format!("mount -t bpf bpf {}", region.path(&format!("n{n}/bpf")).display()))?;
            region.write(&format!("n{n}/flowlog.toml"), &region.node_config(n))?;
        }
        region.write("control.toml", &region.control_config("control"))?;
        Ok(region)
    }

    fn node_config(&self, n: usize) -> String {
        let (d, urls) = (self.dir.path().display(), self.etcd.urls(&format!("10.99.{n}.1")));
        format!(
            "node_id = 'n{n}'\nstate_dir = '{d}/n{n}/state'\npin_dir = '{d}/n{n}/bpf/flowlog'\n\
             [rules]\netcd = {urls:?}\netcd_ca = '{}'\n\
             [inventory]\nfile = '{d}/buckets.toml'\ndir = '{d}/n{n}/inventory.d'\n\
             [api]\nsocket = '{d}/n{n}/agent.sock'\n",
            self.etcd.ca().display()
        )
    }

    /// The configuration of a server.
    #[must_use]
    pub fn control_config(&self, name: &str) -> String {
        let (d, urls) = (self.dir.path().display(), self.etcd.urls("127.0.0.1"));
        format!(
            "node_id = '{name}'\n[rules]\netcd = {urls:?}\netcd_ca = '{}'\n[inventory]\nfile = '{d}/buckets.toml'\n\
             [api]\nsocket = '{d}/{name}.sock'\nprincipals = '{d}/principals.toml'\n\
             [metrics]\nlisten = '{d}/{name}.metrics'\n[flow_log_defaults]\nwindow = '1d'\n",
            self.etcd.ca().display()
        )
    }

    /// A path in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file there ([`files::replace`]).
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        files::replace(&self.path(name), text)
    }

    /// Starts a server without waiting for it. It is no root: whoever may reach its files and etcd can run one.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_server(&self, name: &str) -> anyhow::Result<Agent> {
        let mut command = self.hub.command(binary());
        command.args(["control", "--config"]).arg(self.path(&format!("{name}.toml")));
        Agent::attend(command, tempfile::tempdir()?)
    }

    /// Starts a server and waits until it serves.
    ///
    /// # Errors
    /// With its log if it ends instead.
    pub fn serve(&self, name: &str) -> anyhow::Result<Agent> {
        let mut server = self.spawn_server(name)?;
        server.wait_for("serving the region")?;
        Ok(server)
    }

    /// Starts the agent of a node and waits until it captures.
    ///
    /// # Errors
    /// With its log if it ends instead.
    pub fn start(&self, n: usize) -> anyhow::Result<Agent> {
        let mut command = self.nodes[n - 1].command(binary());
        command.args(["run", "--config"]).arg(self.path(&format!("n{n}/flowlog.toml")));
        let mut agent = Agent::attend(command, tempfile::tempdir()?)?;
        agent.wait_for("capturing")?;
        Ok(agent)
    }

    /// A NIC is on this node from now on, as `tap0`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn arrive(&self, id: &str, n: usize) -> anyhow::Result<()> {
        let text = format!(
            "[[nic]]\nid = '{id}'\nserver = '{SERVER}'\ndatacenter = '{DATACENTER}'\ncontract = '{CONTRACT}'\n\
             interface = {{ name = 'tap0' }}\n"
        );
        self.write(&format!("n{n}/inventory.d/{id}.toml"), &text)
    }

    /// It is not there any more.
    ///
    /// # Errors
    /// If it was not there.
    pub fn leave(&self, id: &str, n: usize) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.path(&format!("n{n}/inventory.d/{id}.toml")))?)
    }

    /// Asks a server over its socket, as the operator.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn ask(&self, server: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        http::unix(&self.path(&format!("{server}.sock")), method, path, body).expect("an answer")
    }

    /// Asks a node.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn ask_node(&self, n: usize, method: &str, path: &str, body: Option<&Value>) -> Answer {
        http::unix(&self.path(&format!("n{n}/agent.sock")), method, path, body).expect("an answer")
    }

    /// Creates a flow log of a NIC, as the cloud's clients do; the answer.
    #[must_use]
    pub fn create(&self, server: &str, nic: &str, name: &str) -> Answer {
        let path = format!("/cloudapi/v6/datacenters/{DATACENTER}/servers/{SERVER}/nics/{nic}/flowlogs");
        let properties = json!({"name": name, "direction": "BIDIRECTIONAL", "action": "ALL", "bucket": "flows"});
        self.ask(server, "POST", &path, Some(&json!({"properties": properties})))
    }

    /// A flow log as clients of the cloud see it: its state, and what is said.
    #[must_use]
    pub fn state(&self, server: &str, nic: &str, id: &str) -> (String, String) {
        let path = format!("/cloudapi/v6/datacenters/{DATACENTER}/servers/{SERVER}/nics/{nic}/flowlogs/{id}");
        let metadata = self.ask(server, "GET", &path, None).body["metadata"].clone();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&metadata["state"]), text(&metadata["message"]))
    }

    /// Waits until something is so, and fails with what it was instead.
    ///
    /// # Panics
    /// If it is not so in time.
    pub fn until<T: std::fmt::Debug>(&self, what: &str, look: impl Fn() -> T, is_so: impl Fn(&T) -> bool) -> T {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
        let begun = std::time::Instant::now();
        loop {
            let now = look();
            if is_so(&now) {
                return now;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {now:?}");
            std::thread::yield_now();
        }
    }

    /// Waits until the region's inventory has a NIC.
    pub fn known(&self, server: &str, nic: &str) {
        let list = || self.ask(server, "GET", "/flowlog/v1/inventory", None).body.to_string();
        self.until("the NIC is known", list, |text| text.contains(nic));
    }

    /// A flow log as the server sums it up, by its captures: the node, and what is being done there.
    #[must_use]
    pub fn captured(&self, server: &str, id: &str) -> (String, String) {
        let capture = self.ask(server, "GET", &format!("/flowlog/v1/flowlogs/{id}"), None).body["captures"][0].clone();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&capture["node"]), text(&capture["capture"]["state"]))
    }

    fn bucket(&self) -> PathBuf {
        self.path(&format!("buckets/{CONTRACT}/flows"))
    }

    /// What landed.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn landed(&self) -> anyhow::Result<Objects> {
        Objects::below(&self.bucket()).context("landed")
    }

    /// Ends a capture of a node and waits until all of it is delivered.
    ///
    /// # Errors
    /// If it fails.
    pub fn detach(&self, n: usize) -> anyhow::Result<()> {
        let config = self.path(&format!("n{n}/flowlog.toml"));
        let out = self.nodes[n - 1].command(binary()).args(["detach", "--config"]).arg(config).output()?;
        anyhow::ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    /// Traffic to whichever node's tap is said, until it is stopped.
    #[must_use]
    pub fn traffic(&self, n: usize) -> Traffic {
        let (at, stop) = (Arc::new(AtomicUsize::new(n)), Arc::new(AtomicBool::new(false)));
        let (sent_at, stopped) = (at.clone(), stop.clone());
        let far = self.far.clone();
        let thread = std::thread::spawn(move || {
            far.run(|| {
                let mut sent = [0_u64; 10];
                while !stopped.load(Ordering::Acquire) {
                    let n = sent_at.load(Ordering::Acquire);
                    traffic::udp(&format!("10.{n}.0.1:9"), BURST, 50).expect("sent");
                    sent[n] += BURST as u64;
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                sent
            })
        });
        Traffic { at, stop, thread: Some(thread) }
    }
}

/// Packets that are sent between two looks at where to.
const BURST: usize = 5;

/// Packets that are being sent.
pub struct Traffic {
    at: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<[u64; 10]>>,
}

impl Traffic {
    /// From now on it goes through this node's tap.
    pub fn moves_to(&self, n: usize) {
        self.at.store(n, Ordering::Release);
    }

    /// Ends it; how many packets went through which node's tap.
    ///
    /// # Panics
    /// If they could not be sent.
    #[must_use]
    pub fn stop(mut self) -> [u64; 10] {
        self.stop.store(true, Ordering::Release);
        self.thread.take().expect("once").join().expect("sent")
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        for n in 1..=self.nodes.len() {
            let _ = sh(&format!("umount -l {}", self.path(&format!("n{n}/bpf")).display()));
        }
    }
}
