//! A node whose flow logs are managed through the API: a namespace with a guest's tap and the public interfaces of a NAT
//! gateway and two balancers, all on cables to one other host; inventory, principals and buckets in a directory.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use anyhow::Context as _;
use aya::programs::{SchedClassifier, TcAttachType};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flowlog_control::flow_logs::principals::hash_password;
use serde_json::{Value, json};

use crate::{
    agent::{Agent, binary},
    cgroups::Memory,
    files,
    http::{self, Answer},
    net::{Netns, address, sh, veth},
    rows::Objects,
    traffic,
};

/// Ids in the inventory.
pub const NIC: &str = "00000000-0000-4000-8000-000000000001";
pub const NAT: &str = "00000000-0000-4000-8000-000000000002";
pub const NLB: &str = "00000000-0000-4000-8000-000000000003";
pub const ALB: &str = "00000000-0000-4000-8000-000000000004";
/// A NIC of another contract.
pub const OTHERS_NIC: &str = "00000000-0000-4000-8000-000000000005";
/// Its server and data center.
pub const SERVER: &str = "00000000-0000-4000-8000-0000000000a1";
pub const DATACENTER: &str = "00000000-0000-4000-8000-0000000000d1";
/// Contract of all but [`OTHERS_NIC`].
pub const CONTRACT: &str = "31960002";
pub const PASSWORD: &str = "correct horse battery";
/// Where the API is served over TCP, in the node's namespace.
pub const LISTEN: &str = "127.0.0.1:8443";
/// Interfaces of the node, in the order of the ids.
pub const INTERFACES: [&str; 4] = ["tap0", "natgw0", "nlb0", "alb0"];

/// See the module's head.
pub struct Managed {
    pub node: Netns,
    /// The host at the other end of all cables.
    pub far: Netns,
    /// Everything else; removed on drop.
    pub dir: tempfile::TempDir,
}

/// Plugs one of the node's interfaces in: `10.N.0.1` here, `10.N.0.2` there, and both know each other.
///
/// # Errors
/// If a name is taken.
pub fn plug_in(node: &Netns, far: &Netns, interface: &str, n: usize) -> anyhow::Result<()> {
    let peer = format!("eth{n}");
    veth((node, interface), (far, &peer))?;
    for (ns, dev) in [(node, interface), (far, peer.as_str())] {
        ns.sysctl(&format!("net.ipv6.conf.{dev}.disable_ipv6"), "1")?;
    }
    address(node, interface, &format!("10.{n}.0.1/24"))?;
    address(far, &peer, &format!("10.{n}.0.2/24"))?;
    let mac = node.mac(interface)?.map(|b| format!("{b:02x}")).join(":");
    far.exec(&format!("ip neigh replace 10.{n}.0.1 lladdr {mac} dev {peer} nud permanent")).map(drop)
}

impl Managed {
    /// Makes one. `more` is added to its configuration, which keeps nothing in the kernel unless it says so.
    ///
    /// # Errors
    /// Without root.
    pub fn new(more: &str) -> anyhow::Result<Self> {
        let node = Netns::new("node")?;
        let far = Netns::new("far")?;
        let dir = tempfile::tempdir()?;
        for (n, interface) in INTERFACES.iter().enumerate() {
            plug_in(&node, &far, interface, n + 1)?;
        }
        let managed = Self { node, far, dir };
        fs::create_dir_all(managed.bucket("flows"))?;
        for sub in ["inventory.d", "bpf"] {
            fs::create_dir_all(managed.path(sub))?;
        }
        sh(&format!("mount -t bpf bpf {}", managed.path("bpf").display()))?;
        managed.write("inventory.toml", &managed.inventory())?;
        managed.write("principals.toml", &principals())?;
        let d = managed.dir.path().display();
        let config = format!(
            "node_id = 'node'\nstate_dir = '{d}/state'\npin_dir = '{d}/bpf/flowlog'\n{more}\n\
             [inventory]\nfile = '{d}/inventory.toml'\ndir = '{d}/inventory.d'\n\
             [api]\nsocket = '{d}/agent.sock'\nprincipals = '{d}/principals.toml'\nlisten = '{LISTEN}'\n"
        );
        managed.write("flowlog.toml", &config)?;
        Ok(managed)
    }

    /// The inventory: NICs of two contracts, a gateway, two balancers.
    #[must_use]
    pub fn inventory(&self) -> String {
        let place = format!("datacenter = '{DATACENTER}'\ncontract = '{CONTRACT}'\n");
        let gateway = |kind: &str, id: &str, interface: &str| {
            format!("[[{kind}]]\nid = '{id}'\n{place}public_interfaces = [{{ name = '{interface}' }}]\n")
        };
        format!(
            "[buckets]\ndirectory = '{}'\n\
             [[nic]]\nid = '{NIC}'\nserver = '{SERVER}'\n{place}interface = {{ name = 'tap0' }}\n\
             [[nic]]\nid = '{OTHERS_NIC}'\nserver = '{}'\ndatacenter = '{}'\ncontract = '2'\ninterface = {{ name = 'tap9' }}\n\
             {}{}{}",
            self.path("buckets").display(),
            SERVER.replace("a1", "a2"),
            DATACENTER.replace("d1", "d2"),
            gateway("nat_gateway", NAT, "natgw0"),
            gateway("network_load_balancer", NLB, "nlb0"),
            gateway("application_load_balancer", ALB, "alb0"),
        )
    }

    /// Adds a NIC to the inventory, of the contract and server of [`NIC`], and waits until the agent knows it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add_nic(&self, id: &str, interface: &str) -> anyhow::Result<()> {
        let inventory = self.inventory();
        let nic = inventory.split("[[nic]]").nth(1).context("a NIC")?;
        let nic = nic.replace(NIC, id).replace("{ name = 'tap0' }", interface);
        self.write(&format!("inventory.d/{id}.toml"), &format!("[[nic]]{nic}"))?;
        while !self.ask("GET", "/flowlog/v1/inventory", None).body.to_string().contains(id) {
            std::thread::yield_now();
        }
        Ok(())
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

    /// Gives the API a certificate; returns the path of what a client must trust.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn with_tls(&self) -> anyhow::Result<PathBuf> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        self.write("tls.crt", &made.cert.pem())?;
        self.write("tls.key", &made.signing_key.serialize_pem())?;
        fs::set_permissions(self.path("tls.key"), fs::Permissions::from_mode(0o600))?;
        let config = fs::read_to_string(self.path("flowlog.toml"))?;
        let d = self.dir.path().display();
        self.write("flowlog.toml", &format!("{config}tls_certificate = '{d}/tls.crt'\ntls_key = '{d}/tls.key'\n"))?;
        Ok(self.path("tls.crt"))
    }

    /// Starts an agent without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, variables: &[(&str, &str)]) -> anyhow::Result<Agent> {
        let mut command = self.agent();
        command.envs(variables.iter().copied());
        Agent::attend(command, tempfile::tempdir()?)
    }

    fn agent(&self) -> Command {
        let mut command = self.node.command(binary());
        command.args(["run", "--config"]).arg(self.path("flowlog.toml"));
        command
    }

    /// Starts an agent in a control group and waits until it serves.
    ///
    /// # Errors
    /// With its log if it ends instead.
    pub fn start_within(&self, memory: &Memory) -> anyhow::Result<Agent> {
        let mut agent = Agent::attend(memory.admit(&self.agent()), tempfile::tempdir()?)?;
        agent.wait_for("capturing")?;
        Ok(agent)
    }

    /// Starts an agent and waits until it serves.
    ///
    /// # Errors
    /// With its log if it ends instead.
    pub fn start(&self) -> anyhow::Result<Agent> {
        let mut agent = self.spawn(&[])?;
        agent.wait_for("capturing")?;
        Ok(agent)
    }

    /// Sends UDP packets from the far host to port 9 of the node's address on cable `n`, and waits until they are in.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn send(&self, n: usize, interface: &str, packets: usize) -> anyhow::Result<()> {
        let before = self.node.statistic(interface, "rx_packets")?;
        self.far.run(|| traffic::udp(&format!("10.{n}.0.1:9"), packets, 50))?;
        while self.node.statistic(interface, "rx_packets")? < before + packets as u64 {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Asks over the socket, as the operator.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        http::unix(&self.path("agent.sock"), method, path, body).expect("an answer")
    }

    /// Asks over TCP, as somebody with the password of all.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn ask_as(&self, who: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let credentials = format!("Basic {}", STANDARD.encode(format!("{who}:{PASSWORD}")));
        self.node.run(|| http::tcp(LISTEN, Some(&credentials), method, path, body).expect("an answer"))
    }

    /// The same, with more lines in the request's head.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn ask_with(&self, head: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let more = format!("authorization: Basic {}\r\n{head}\r\n", STANDARD.encode(format!("ann:{PASSWORD}")));
        self.node.run(|| http::send(LISTEN, &http::request(method, path, &more, body)).expect("an answer"))
    }

    /// Adds a draft; returns its id.
    ///
    /// # Panics
    /// If it is refused.
    #[must_use]
    pub fn draft(&self, resource: &str, name: &str, bucket: &str) -> String {
        let draft = json!({"resource": resource, "name": name, "direction": "BIDIRECTIONAL", "action": "ALL", "bucket": bucket});
        let made = self.ask("POST", "/flowlog/v1/flowlogs", Some(&draft));
        assert_eq!(made.status, 201, "{made:?}");
        made.body["id"].as_str().expect("id").to_owned()
    }

    /// Waits until a request is over; returns its status and message.
    ///
    /// # Panics
    /// If it never is.
    #[must_use]
    pub fn finish(&self, accepted: &Answer) -> (String, String) {
        assert_eq!(accepted.status, 202, "{accepted:?}");
        let id = accepted.body["id"].as_str().expect("id");
        // Each question is answered when it is over, or after 20 s.
        for _ in 0..3 {
            let status = self.ask("GET", &format!("/flowlog/v1/requests/{id}"), None).body;
            let metadata = &status["metadata"];
            if ["DONE", "FAILED"].contains(&metadata["status"].as_str().unwrap_or_default()) {
                return (metadata["status"].as_str().unwrap_or_default().to_owned(), metadata["message"].to_string());
            }
        }
        panic!("request {id} is never over");
    }

    /// A flow log's summary; `Null` if it is gone.
    #[must_use]
    pub fn summary(&self, id: &str) -> Value {
        let answer = self.ask("GET", &format!("/flowlog/v1/flowlogs/{id}"), None);
        if answer.status == 404 { Value::Null } else { answer.body }
    }

    /// Interfaces of the node that have a program of ours, as the kernel says.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn hooked(&self) -> anyhow::Result<Vec<String>> {
        self.node.run(|| {
            let mut hooked = Vec::new();
            for interface in INTERFACES {
                let name = std::ffi::CString::new(interface)?;
                // Egress: with XDP there is nothing of TC on ingress.
                let (_, programs) = SchedClassifier::query_tcx(name.as_c_str(), TcAttachType::Egress)?;
                if !programs.is_empty() {
                    hooked.push(interface.to_owned());
                }
            }
            Ok(hooked)
        })
    }

    /// Runs the agent's command line; returns exit code, standard output and standard error.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
        let out = Command::new(binary()).args(args).env("FLOWLOG_SOCKET", self.path("agent.sock")).output()?;
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Ok((out.status.code(), text(&out.stdout), text(&out.stderr)))
    }

    /// Has the agent read its configuration again; returns what [`command`](Self::command) does.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn reload(&self) -> anyhow::Result<(Option<i32>, String, String)> {
        let state = self.path("state");
        self.command(&["reload", "--state-dir", state.to_str().context("a path that is not UTF-8")?])
    }

    /// A bucket of [`CONTRACT`]: a directory.
    #[must_use]
    pub fn bucket(&self, name: &str) -> PathBuf {
        self.path(&format!("buckets/{CONTRACT}/{name}"))
    }

    /// What landed in a bucket.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn landed(&self, bucket: &str) -> anyhow::Result<Objects> {
        Objects::below(&self.bucket(bucket)).context("landed")
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = sh(&format!("umount -l {}", self.path("bpf").display()));
    }
}

/// Does something as a user of this machine, on a thread of its own: only that one becomes the user.
///
/// # Panics
/// Without root, or if `work` does.
pub fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            let uid = rustix::fs::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root");
            work()
        });
        working.join().expect("the user's thread")
    })
}

/// Owner, administrator and users of one contract, and an owner of another; all with one password.
///
/// # Panics
/// If a password cannot be hashed.
#[must_use]
pub fn principals() -> String {
    let hash = hash_password(PASSWORD).expect("a hash");
    let one = |n: u32, name: &str, contract: &str, role: &str, privileges: &str| {
        format!(
            "[[principal]]\nid = '00000000-0000-4000-8000-00000000f0{n:02}'\nname = '{name}'\ncontract = '{contract}'\n\
             role = '{role}'\nprivileges = [{privileges}]\npassword_hash = '{hash}'\nuids = [{}]\n",
            60_000 + n
        )
    };
    [
        one(1, "ann", CONTRACT, "owner", ""),
        one(2, "bob", CONTRACT, "administrator", ""),
        one(3, "eve", CONTRACT, "user", ""),
        one(4, "joe", CONTRACT, "user", "'create_flow_logs'"),
        one(5, "kim", CONTRACT, "user", "'create_flow_logs', 'use_object_storage'"),
        one(6, "mal", "2", "owner", ""),
    ]
    .concat()
}
