//! A real etcd: Debian's, one member or three, with TLS, and what can happen to them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal};

use crate::net::Netns;

/// How long a cluster may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ports of members for clients and for each other, in a namespace of their own: the first, and then upwards.
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2479;

struct Member {
    child: Option<Child>,
    number: u16,
}

/// Members of one cluster in a namespace, with their data in a directory. They talk to each other over its loopback; clients reach them on
/// every address of the namespace, over TLS.
pub struct Cluster {
    members: Vec<Member>,
    count: u16,
    /// In memory, where there is such a place: members that wait for a busy disk elect each other away.
    dir: tempfile::TempDir,
    ns: String,
    /// Which cluster this is: another one after it was restored.
    token: u32,
    more: Vec<String>,
}

impl Cluster {
    /// Starts one of `count` members in `ns`, whose certificate is good for these addresses. `more` are further arguments.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn start(ns: &Netns, count: u16, addresses: &[String], more: &[&str]) -> anyhow::Result<Self> {
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let made = made?;
        let dir = made.path();
        let names: Vec<String> =
            addresses.iter().cloned().chain(["127.0.0.1".to_owned(), "localhost".to_owned()]).collect();
        let signed = rcgen::generate_simple_self_signed(names)?;
        fs::write(dir.join("ca.crt"), signed.cert.pem())?;
        fs::write(dir.join("tls.key"), signed.signing_key.serialize_pem())?;
        fs::set_permissions(dir.join("tls.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let members = (0..count).map(|number| Member { child: None, number }).collect();
        let more = more.iter().map(|m| (*m).to_owned()).collect();
        let mut cluster = Self { members, count, dir: made, ns: ns.name().to_owned(), token: 0, more };
        (0..count).try_for_each(|n| cluster.begin(n))?;
        cluster.wait()?;
        Ok(cluster)
    }

    /// What clients must trust.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Its members, as clients reach them at an address of the namespace.
    #[must_use]
    pub fn urls(&self, address: &str) -> Vec<String> {
        self.members.iter().map(|m| format!("https://{address}:{}", CLIENTS + m.number)).collect()
    }

    /// The key of the certificate.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("tls.key")
    }

    /// From now on clients must have a certificate: all members are ended, and begin again.
    ///
    /// # Errors
    /// If they do not answer.
    pub fn wants_certificates(&mut self) -> anyhow::Result<()> {
        self.kill_all();
        self.more.extend(["--client-cert-auth".to_owned(), format!("--trusted-ca-file={}", self.ca().display())]);
        (0..self.count).try_for_each(|n| self.begin(n))?;
        self.wait()
    }

    fn data(&self, n: u16) -> PathBuf {
        self.dir.path().join(format!("member-{n}"))
    }

    fn initial(&self) -> String {
        let one = |m: &Member| format!("m{}=http://127.0.0.1:{}", m.number, PEERS + m.number);
        self.members.iter().map(one).collect::<Vec<_>>().join(",")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.ns, program]);
        command
    }

    /// Starts a member, or starts it again.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn begin(&mut self, n: u16) -> anyhow::Result<()> {
        let peer = format!("http://127.0.0.1:{}", PEERS + n);
        let client = format!("https://127.0.0.1:{}", CLIENTS + n);
        let log = fs::File::create(self.dir.path().join(format!("member-{n}.log")))?;
        let mut command = self.command("etcd");
        command
            .args(["--name", &format!("m{n}"), "--data-dir"])
            .arg(self.data(n))
            .args([
                "--listen-client-urls",
                &format!("https://0.0.0.0:{}", CLIENTS + n),
                "--advertise-client-urls",
                &client,
            ])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.initial(), "--initial-cluster-token", &format!("t{}", self.token)])
            .arg("--cert-file")
            .arg(self.ca())
            .arg("--key-file")
            .arg(self.key())
            .args(["--heartbeat-interval", "200", "--election-timeout", "2000"])
            .args(&self.more)
            .stdout(Stdio::null())
            .stderr(log);
        self.members[usize::from(n)].child = Some(command.spawn().context("etcd: `cargo xtask setup` installs it")?);
        Ok(())
    }

    /// Runs `etcdctl` against one member; returns what it prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn ctl(&self, n: u16, args: &[&str]) -> anyhow::Result<String> {
        let out = self
            .command("etcdctl")
            .args(["--endpoints", &format!("https://127.0.0.1:{}", CLIENTS + n), "--cacert"])
            .arg(self.ca())
            .arg("--cert")
            .arg(self.ca())
            .arg("--key")
            .arg(self.key())
            .args(args)
            .env("ETCDCTL_API", "3")
            .output()?;
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        ensure!(out.status.success(), "etcdctl {args:?}: {}", text(&out.stderr));
        Ok(text(&out.stdout))
    }

    /// Waits until it takes changes.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let living = self.members.iter().find(|m| m.child.is_some()).context("a member")?;
            match self.ctl(living.number, &["put", "/test/is-up", "yes"]) {
                Ok(_) => return Ok(()),
                Err(error) => ensure!(begun.elapsed() < PATIENCE, "etcd does not answer: {error:#}"),
            }
        }
    }

    /// The store's revision.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn revision(&self) -> anyhow::Result<i64> {
        let json: serde_json::Value = serde_json::from_str(&self.ctl(0, &["get", "/none", "-w", "json"])?)?;
        json["header"]["revision"].as_i64().context("a revision")
    }

    /// Ends a member as `kill -9` does.
    pub fn kill(&mut self, n: u16) {
        if let Some(mut child) = self.members[usize::from(n)].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends all of them.
    pub fn kill_all(&mut self) {
        (0..self.count).for_each(|n| self.kill(n));
    }

    /// Stops all members where they are, or has them go on: who asks is not answered, and not refused.
    pub fn freeze(&self, is_frozen: bool) {
        let signal = if is_frozen { Signal::STOP } else { Signal::CONT };
        for child in self.members.iter().filter_map(|m| m.child.as_ref()) {
            rustix::process::kill_process(Pid::from_child(child), signal).expect("our own child");
        }
    }

    /// Writes all of it down.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn save(&self, file: &Path) -> anyhow::Result<()> {
        self.ctl(0, &["snapshot", "save", file.to_str().context("a path")?]).map(drop)
    }

    /// Makes the cluster what it was when it was saved: all members are ended and begin from the file.
    ///
    /// # Errors
    /// If they do not answer.
    pub fn restore(&mut self, file: &Path) -> anyhow::Result<()> {
        self.kill_all();
        for n in 0..self.count {
            fs::remove_dir_all(self.data(n))?;
            let data = self.data(n);
            let args = [
                "snapshot",
                "restore",
                file.to_str().context("a path")?,
                "--name",
                &format!("m{n}"),
                "--data-dir",
                data.to_str().context("a path")?,
                "--initial-cluster",
                &self.initial(),
                "--initial-cluster-token",
                &format!("t{}", self.token),
                "--initial-advertise-peer-urls",
                &format!("http://127.0.0.1:{}", PEERS + n),
            ];
            self.ctl(n, &args)?;
            self.begin(n)?;
        }
        self.wait()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.freeze(false);
        self.kill_all();
    }
}
