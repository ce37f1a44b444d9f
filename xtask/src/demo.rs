//! `cargo xtask demo`: a small real network, the real agent on it, and what landed.
//!
//! ```text
//!   client ---- wan0 [ host: router, nftables, br0 ] vm0 ---- vm
//! ```
//!
//! The agent watches `vm0` (the VM's NIC on the bridge) and `wan0`. The traffic is made by this same program, started
//! again inside the namespaces with a hidden verb.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::{
    setup,
    util::{agent_binary, cargo, output, run as run_command, step},
};

const VM: &str = "10.80.1.2";
const CLIENT: &str = "10.80.2.2";
/// TCP service of the VM that the firewall lets through, and what it refuses.
const OPEN: u16 = 80;
const DROPPED: u16 = 23;
const REJECTED: u16 = 161;

const RULES: &str = "\
table inet firewall {
  counter dropped { }
  counter rejected { }
  chain forward {
    type filter hook forward priority 0; policy accept;
    tcp dport 23 counter name dropped drop
    udp dport 161 counter name rejected reject
    ip saddr 10.80.1.2 ip daddr 10.80.2.2 icmp type echo-request counter name dropped drop
  }
}
";

/// What must be undone, also after Ctrl-C.
struct Undo {
    namespaces: Vec<String>,
    server: Option<Child>,
    agent: Option<Child>,
    dir: Option<PathBuf>,
}

static UNDO: Mutex<Undo> = Mutex::new(Undo { namespaces: Vec::new(), server: None, agent: None, dir: None });

/// The list of what to undo. A thread that panicked while it held the list has not made it wrong.
fn to_undo() -> MutexGuard<'static, Undo> {
    UNDO.lock().unwrap_or_else(PoisonError::into_inner)
}

fn undo() {
    let mut undo = to_undo();
    for mut child in undo.agent.take().into_iter().chain(undo.server.take()) {
        let _ = child.kill();
        let _ = child.wait();
    }
    for ns in undo.namespaces.drain(..) {
        let _ = Command::new("ip").args(["netns", "del", &ns]).stderr(Stdio::null()).status();
    }
    if let Some(dir) = undo.dir.take() {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Cleans up however the demo ends.
struct Cleanup;

impl Drop for Cleanup {
    fn drop(&mut self) {
        undo();
    }
}

/// One end of the demo's traffic, for which it starts itself again inside a namespace.
#[derive(Clone, Copy, clap::ValueEnum)]
enum End {
    Serve,
    Connect,
}

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, hide = true)]
    end: Option<End>,
}

/// Runs the demo, or one end of its traffic.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match args.end {
        Some(End::Serve) => serve(),
        Some(End::Connect) => connect(),
        None => demo(),
    }
}

fn demo() -> anyhow::Result<()> {
    setup::require_root("demo")?;
    setup::network_tools()?;
    step("building the agent (minutes the first time)");
    run_command(cargo().args(["build", "--locked", "--package", "flowlog-agent"]))?;
    ctrlc::set_handler(|| {
        eprintln!("\n==> interrupted: cleaning up");
        undo();
        std::process::exit(130);
    })?;
    let _cleanup = Cleanup;
    step("making a network: client - router with nftables - VM on a bridge");
    let net = Net::new()?;
    let dir = env::temp_dir().join(format!("flowlog-demo-{}", std::process::id()));
    let objects = dir.join("objects");
    to_undo().dir = Some(dir.clone());
    fs::create_dir_all(&objects)?;
    step("starting the agent on vm0 and wan0");
    start_agent(&net, &dir)?;
    step("traffic: HTTP-like TCP, DNS-like UDP and pings; telnet, SNMP and the VM's own pings are refused");
    net.traffic()?;
    step("stopping the agent: it flushes, delivers and detaches");
    stop_agent()?;
    println!("\nfirewall's own count:\n{}", net.firewall()?);
    println!("what landed in {}:", objects.display());
    run_command(Command::new(agent_binary()).arg("read").arg(&objects))?;
    undo();
    step("cleaned up. Next: flowlog-agent run --interface eth0 --target ./flows");
    Ok(())
}

struct Net {
    client: String,
    host: String,
    vm: String,
}

fn ip(line: &str) -> anyhow::Result<()> {
    output(Command::new("ip").args(line.split_whitespace())).map(drop)
}

impl Net {
    fn new() -> anyhow::Result<Self> {
        let name = |role: &str| format!("flowlog-demo-{}-{role}", std::process::id());
        let net = Self { client: name("client"), host: name("host"), vm: name("vm") };
        for ns in [&net.client, &net.host, &net.vm] {
            to_undo().namespaces.push(ns.clone());
            ip(&format!("netns add {ns}"))?;
            ip(&format!("-n {ns} link set lo up"))?;
        }
        let Self { client, host, vm } = &net;
        ip(&format!("link add wan0 netns {host} type veth peer name eth0 netns {client}"))?;
        ip(&format!("link add vm0 netns {host} type veth peer name eth0 netns {vm}"))?;
        ip(&format!("-n {host} link add br0 type bridge"))?;
        ip(&format!("-n {host} link set vm0 master br0"))?;
        for (ns, dev, address) in [
            (client, "eth0", "10.80.2.2/24"),
            (host, "wan0", "10.80.2.1/24"),
            (host, "br0", "10.80.1.1/24"),
            (vm, "eth0", "10.80.1.2/24"),
        ] {
            ip(&format!("-n {ns} address add {address} dev {dev}"))?;
            ip(&format!("-n {ns} link set {dev} up"))?;
        }
        ip(&format!("-n {host} link set vm0 up"))?;
        ip(&format!("-n {client} route add default via 10.80.2.1"))?;
        ip(&format!("-n {vm} route add default via 10.80.1.1"))?;
        output(Self::inside(host, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]))?;
        let mut nft = Self::inside(host, "nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        nft.stdin.take().context("stdin")?.write_all(RULES.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refused the rules");
        Ok(net)
    }

    fn inside(ns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut c = Command::new("ip");
        c.args(["netns", "exec", ns]).arg(program);
        c
    }

    fn traffic(&self) -> anyhow::Result<()> {
        let me = env::current_exe()?;
        let mut server = Self::inside(&self.vm, &me).args(["demo", "--end", "serve"]).stdout(Stdio::piped()).spawn()?;
        let mut ready = String::new();
        BufReader::new(server.stdout.take().context("stdout")?).read_line(&mut ready)?;
        to_undo().server = Some(server);
        run_command(Self::inside(&self.client, &me).args(["demo", "--end", "connect"]))?;
        output(Self::inside(&self.client, "ping").args(["-c", "5", "-i", "0.2", "-q", VM]))?;
        // Refused: no answer comes, which ping reports as a failure.
        let _ = Self::inside(&self.vm, "ping")
            .args(["-c", "3", "-i", "0.2", "-W", "1", "-q", CLIENT])
            .stdout(Stdio::null())
            .status();
        Ok(())
    }

    fn firewall(&self) -> anyhow::Result<String> {
        output(Self::inside(&self.host, "nft").args(["list", "counters"]))
    }
}

fn start_agent(net: &Net, dir: &Path) -> anyhow::Result<()> {
    let mut agent = Net::inside(&net.host, agent_binary())
        .args(["run", "--interface", "vm0", "--interface", "wan0", "--name", "demo", "--node-id", "demo-node"])
        .arg("--no-pin")
        .arg("--target")
        .arg(dir.join("objects"))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .stderr(Stdio::piped())
        .spawn()?;
    let mut log = BufReader::new(agent.stderr.take().context("stderr")?);
    to_undo().agent = Some(agent);
    let mut line = String::new();
    while log.read_line(&mut line)? > 0 {
        if line.contains("capturing") {
            // Let the rest of its log through.
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::stderr()));
            return Ok(());
        }
        eprint!("    {line}");
        line.clear();
    }
    anyhow::bail!("the agent ended before it captured; see its words above")
}

fn stop_agent() -> anyhow::Result<()> {
    let mut agent = to_undo().agent.take().context("the agent runs")?;
    run_command(Command::new("kill").args(["-TERM", &agent.id().to_string()]))?;
    let status = agent.wait()?;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(())
}

/// The VM's end: echoes TCP and UDP until it is killed.
fn serve() -> anyhow::Result<()> {
    let tcp = TcpListener::bind((VM, OPEN))?;
    let udp = UdpSocket::bind((VM, 53))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..n], from);
        }
    });
    println!("ready");
    for stream in tcp.incoming() {
        let mut stream = stream?;
        let mut request = [0; 64];
        let n = stream.read(&mut request)?;
        stream.write_all(&request[..n])?;
        stream.write_all(&vec![b'x'; 200_000])?;
    }
    Ok(())
}

/// The client's end: some of it is let through, some refused.
fn connect() -> anyhow::Result<()> {
    for _ in 0..3 {
        let mut stream = TcpStream::connect((VM, OPEN))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        std::io::copy(&mut stream, &mut std::io::sink())?;
    }
    let dns = UdpSocket::bind((CLIENT, 0))?;
    for _ in 0..10 {
        dns.send_to(b"name?", (VM, 53))?;
        dns.recv_from(&mut [0; 512])?;
    }
    let snmp = UdpSocket::bind((CLIENT, 0))?;
    for _ in 0..7 {
        snmp.send_to(b"status?", (VM, REJECTED))?;
    }
    let telnet = format!("{VM}:{DROPPED}").parse()?;
    let refused = TcpStream::connect_timeout(&telnet, Duration::from_millis(1_500));
    ensure!(refused.is_err(), "the firewall let telnet through");
    Ok(())
}
