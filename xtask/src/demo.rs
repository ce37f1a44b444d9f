//! `cargo xtask demo`: a small real network, the real agent on it, and what landed.
//!
//! ```text
//!   client ---- wan0 [ host: router, nftables, br0 ] vm0 ---- vm
//! ```
//!
//! The agent watches `vm0` (the VM's NIC on the bridge) and `wan0`. The traffic is made by threads of this program inside the
//! namespaces.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use flowlog_lab::{Netns, address, veth};

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

/// What must be undone, also after Ctrl-C; namespaces besides, which their crate remembers.
struct Undo {
    agent: Option<Child>,
    dir: Option<PathBuf>,
}

static UNDO: Mutex<Undo> = Mutex::new(Undo { agent: None, dir: None });

/// The list of what to undo. A thread that panicked while it held the list has not made it wrong.
fn to_undo() -> MutexGuard<'static, Undo> {
    UNDO.lock().unwrap_or_else(PoisonError::into_inner)
}

fn undo() {
    let mut undo = to_undo();
    if let Some(mut agent) = undo.agent.take() {
        let _ = agent.kill();
        let _ = agent.wait();
    }
    flowlog_lab::remove_all();
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

/// Builds, and shows it all.
pub(crate) fn run() -> anyhow::Result<()> {
    setup::require_root("demo")?;
    setup::network_tools()?;
    step("building the agent (minutes the first time)");
    run_command(cargo().args(["build", "--locked", "--package", "flowlog-agent"]))?;
    ctrlc::set_handler(|| {
        eprintln!("\n==> interrupted: cleaning up");
        undo();
        std::process::exit(130);
    })?;
    step("making a network: client - router with nftables - VM on a bridge");
    let net = Net::new()?;
    // Dropped before the network: the agent ends before its interfaces do.
    let _cleanup = Cleanup;
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
    println!("\nfirewall's own count:\n{}", net.host.exec("nft list counters")?.trim_end());
    println!("what landed in {}:", objects.display());
    run_command(Command::new(agent_binary()).arg("read").arg(&objects))?;
    undo();
    step("cleaned up. Next: flowlog run --interface eth0 --target ./flows");
    Ok(())
}

struct Net {
    client: Netns,
    host: Netns,
    vm: Netns,
}

impl Net {
    fn new() -> anyhow::Result<Self> {
        let net = Self { client: Netns::new("client")?, host: Netns::new("host")?, vm: Netns::new("vm")? };
        let Self { client, host, vm } = &net;
        veth((host, "wan0"), (client, "eth0"))?;
        veth((host, "vm0"), (vm, "eth0"))?;
        host.exec("ip link add br0 type bridge")?;
        host.exec("ip link set vm0 master br0")?;
        host.exec("ip link set br0 up")?;
        address(client, "eth0", &format!("{CLIENT}/24"))?;
        address(host, "wan0", "10.80.2.1/24")?;
        address(host, "br0", "10.80.1.1/24")?;
        address(vm, "eth0", &format!("{VM}/24"))?;
        client.exec("ip route add default via 10.80.2.1")?;
        vm.exec("ip route add default via 10.80.1.1")?;
        host.sysctl("net.ipv4.ip_forward", "1")?;
        host.nft(RULES)?;
        Ok(net)
    }

    fn traffic(&self) -> anyhow::Result<()> {
        self.vm.run(serve)?;
        self.client.run(connect)?;
        output(self.client.command("ping").args(["-c", "5", "-i", "0.2", "-q", VM]))?;
        // Refused: no answer comes, which ping reports as a failure.
        let _ = self
            .vm
            .command("ping")
            .args(["-c", "3", "-i", "0.2", "-W", "1", "-q", CLIENT])
            .stdout(Stdio::null())
            .status();
        Ok(())
    }
}

fn start_agent(net: &Net, dir: &Path) -> anyhow::Result<()> {
    let mut agent = net
        .host
        .command(agent_binary())
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
            thread::spawn(move || io::copy(&mut log, &mut io::stderr()));
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

/// The VM's end: echoes TCP and UDP until this program ends. Sockets stay in the namespace they were made in.
fn serve() -> anyhow::Result<()> {
    let tcp = TcpListener::bind((VM, OPEN))?;
    let udp = UdpSocket::bind((VM, 53))?;
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..n], from);
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            if let Err(error) = stream.and_then(answer) {
                eprintln!("    the VM's service: {error}");
            }
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; 64];
    let n = stream.read(&mut request)?;
    stream.write_all(&request[..n])?;
    stream.write_all(&vec![b'x'; 200_000])
}

/// The client's end: some of it is let through, some refused.
fn connect() -> anyhow::Result<()> {
    for _ in 0..3 {
        let mut stream = TcpStream::connect((VM, OPEN))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        io::copy(&mut stream, &mut io::sink())?;
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
