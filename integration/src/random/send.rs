//! Sends all flows at once, and keeps a list of what was sent.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Scope, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{
    build::{self, Network},
    flows::{Flow, Proto},
    knobs,
    prng::Prng,
    topology::{Endpoint, Topology},
};
use crate::traffic;

/// How long a SYN may be answered: a local network answers at once, and another SYN would follow after a second.
const SYN_TIME: Duration = Duration::from_millis(2);
/// How long a connection with data may stand still.
const TCP_TIME: Duration = Duration::from_secs(10);
/// How often an answering server looks whether it is over.
const LOOK: Duration = Duration::from_millis(10);
/// Packets in a row before other threads get their turn: fewer than the smallest queue on the way (256) takes.
const BURST: usize = 32;
/// Pause after a burst where receiving is done by a thread, which has to get the CPU first.
const PAUSE: Duration = Duration::from_micros(500);
/// Port that frames are said to come from: not one that a socket gets.
const FRAME_PORT: u16 = 49_000;
/// Time between two echoes of one `ping`, in seconds.
const PING_EVERY: &str = "0.003";
/// How long `ping` waits for late answers, in seconds.
const PING_LINGER: &str = "0.05";

/// Packets sent, by number of the flow.
#[derive(Debug, Default)]
pub struct Sent {
    /// Packets of its sender.
    pub forward: BTreeMap<usize, u64>,
    /// By its receiver, in answer.
    pub reply: BTreeMap<usize, u64>,
}

type Counts = Vec<(usize, u64)>;

/// Tells the servers, when it is dropped, that nothing more comes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends everything; returns when all of it is sent and answered.
///
/// # Errors
/// If something cannot be sent that must be.
pub fn send(net: &Network, t: &Topology, flows: &[Flow], rng: &mut Prng) -> anyhow::Result<Sent> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whatever goes wrong below: the scope waits for the servers, and they for this.
        let end = Over(&over);
        let mut servers = Vec::new();
        for flow in flows {
            servers.extend(serve(scope, net, t, flow, &over)?);
        }
        let pings = flows.iter().filter(|f| f.proto == Proto::Ping).map(|f| Pings::start(net, t, f));
        let pings = pings.collect::<anyhow::Result<Vec<_>>>()?;
        let forward = (|| {
            let mut forward = send_all(net, t, flows, rng)?;
            for pings in pings {
                forward.push((pings.flow.id, pings.finish(net)?));
            }
            anyhow::Ok(forward)
        })();
        // The last answers are on their way.
        net.wait_until_quiet();
        drop(end);
        let mut sent = Sent::default();
        for server in servers {
            let (id, n) = server.join().expect("server")?;
            sent.reply.insert(id, n);
        }
        sent.forward = forward?.into_iter().collect();
        Ok(sent)
    })
}

/// One thread for each end and CPU sends the packets of its flows in random order.
fn send_all(net: &Network, t: &Topology, flows: &[Flow], rng: &mut Prng) -> anyhow::Result<Counts> {
    let mut groups: BTreeMap<(Endpoint, usize, bool), Vec<&Flow>> = BTreeMap::new();
    for flow in flows.iter().filter(|f| f.proto != Proto::Ping) {
        // Whoever waits for answers must not keep the others waiting.
        groups.entry((flow.from, flow.cpu, flow.proto != Proto::Udp)).or_default().push(flow);
    }
    let barrier = Barrier::new(groups.len());
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for ((from, cpu, tcp), group) in groups {
            let mut rng = Prng::new(rng.any());
            let barrier = &barrier;
            threads.push(scope.spawn(move || {
                net.of(from).run(|| {
                    traffic::pin_to_cpu(cpu);
                    barrier.wait();
                    if tcp { connect_all(t, &group) } else { datagrams(t, &group, &mut rng) }
                })
            }));
        }
        let mut sent = Vec::new();
        for thread in threads {
            sent.extend(thread.join().expect("sender")?);
        }
        Ok(sent)
    })
}

fn address(ip: &str, port: u16) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse::<IpAddr>().with_context(|| ip.to_owned())?, port))
}

fn datagrams(t: &Topology, flows: &[&Flow], rng: &mut Prng) -> anyhow::Result<Counts> {
    let any = |f: &Flow| address(if f.v6 { "::" } else { "0.0.0.0" }, 0);
    let mut sockets = Vec::new();
    for flow in flows {
        let from = if flow.big { address(&flow.source(t), 0)? } else { any(flow)? };
        sockets.push((UdpSocket::bind(from)?, address(&flow.target(t), flow.port)?));
    }
    let packet_socket = |f: &Flow| f.linear.map(|_| traffic::Raw::open(&device(t, f))).transpose();
    let paged = flows.iter().map(|f| packet_socket(f)).collect::<io::Result<Vec<_>>>()?;
    let mut order: Vec<usize> = flows.iter().enumerate().flat_map(|(i, f)| vec![i; f.count]).collect();
    rng.shuffle(&mut order);
    for burst in order.chunks(BURST) {
        for &i in burst {
            let payload = vec![0; flows[i].payload];
            let result = if let (Some(raw), Some(linear)) = (&paged[i], flows[i].linear) {
                raw.send_non_linear(&frame(t, flows[i])?, linear).map(|()| 0)
            } else if flows[i].spread {
                UdpSocket::bind(any(flows[i])?)?.send_to(&payload, sockets[i].1)
            } else {
                sockets[i].0.send_to(&payload, sockets[i].1)
            };
            match result {
                Ok(_) => {}
                // The host's own firewall has refused it.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOBUFS)) => {}
                Err(e) => bail!("flow {}: {e}", flows[i].id),
            }
        }
        if t.gro {
            std::thread::sleep(PAUSE);
        } else {
            std::thread::yield_now();
        }
    }
    Ok(flows.iter().map(|f| (f.id, f.count as u64)).collect())
}

fn device(t: &Topology, flow: &Flow) -> String {
    if let Endpoint::Guest(g) = flow.from { t.guest_device(g) } else { String::new() }
}

/// A frame as the guest's own stack would have made it.
fn frame(t: &Topology, flow: &Flow) -> anyhow::Result<Vec<u8>> {
    let Endpoint::Guest(g) = flow.from else { bail!("only guests send frames") };
    let next = if flow.translated.is_some() { Endpoint::Host } else { flow.to };
    let from = (flow.source(t).parse()?, FRAME_PORT);
    Ok(traffic::udp4(build::macs(t, g, next), from, (flow.target(t).parse()?, flow.port), flow.payload))
}

fn connect_all(t: &Topology, flows: &[&Flow]) -> anyhow::Result<Counts> {
    let mut sent = Vec::new();
    for flow in flows {
        let to = address(&flow.target(t), flow.port)?;
        if flow.proto == Proto::TcpSyn {
            for _ in 0..flow.count {
                if TcpStream::connect_timeout(&to, SYN_TIME).is_ok() {
                    bail!("flow {}: somebody listens at {to}", flow.id);
                }
            }
            sent.push((flow.id, flow.count as u64));
            continue;
        }
        let mut stream = TcpStream::connect_timeout(&to, TCP_TIME).with_context(|| format!("flow {}", flow.id))?;
        stream.set_read_timeout(Some(TCP_TIME))?;
        for _ in 0..flow.count {
            stream.write_all(&vec![0; flow.payload])?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).with_context(|| format!("flow {}", flow.id))?;
        sent.push((flow.id, knobs::segments_sent(&stream)?));
    }
    Ok(sent)
}

/// A thread that answers: which flow, and how many packets.
type Server<'scope> = ScopedJoinHandle<'scope, anyhow::Result<(usize, u64)>>;

/// Starts what answers a flow: bound before this returns.
fn serve<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    net: &'env Network,
    t: &Topology,
    flow: &'env Flow,
    over: &'env AtomicBool,
) -> anyhow::Result<Option<Server<'scope>>> {
    let at = address(&flow.receiver(t), flow.translated.unwrap_or(flow.port))?;
    if flow.proto == Proto::TcpData {
        let listener = net.of(flow.to).run(|| TcpListener::bind(at))?;
        listener.set_nonblocking(true)?;
        return Ok(Some(scope.spawn(move || take(&listener, over).map(|n| (flow.id, n)))));
    }
    if !flow.echo && !flow.filtered {
        return Ok(None);
    }
    let socket = net.of(flow.to).run(|| UdpSocket::bind(at))?;
    if flow.filtered {
        knobs::refuse_all(&socket)?;
    }
    socket.set_read_timeout(Some(LOOK))?;
    Ok(Some(scope.spawn(move || answer(&socket, over).map(|n| (flow.id, n)))))
}

fn answer(socket: &UdpSocket, over: &AtomicBool) -> anyhow::Result<u64> {
    let mut buffer = [0; 2_048];
    let mut answered = 0;
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((n, from)) => {
                answered += 1;
                match socket.send_to(&buffer[..n], from) {
                    Err(e) if !matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOBUFS)) => return Err(e.into()),
                    _ => {}
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !over.load(Ordering::Relaxed) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(answered),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Takes one connection and reads it to its end; returns segments sent.
fn take(listener: &TcpListener, over: &AtomicBool) -> anyhow::Result<u64> {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(TCP_TIME))?;
                stream.read_to_end(&mut Vec::new())?;
                stream.shutdown(std::net::Shutdown::Write)?;
                return Ok(knobs::segments_sent(&stream)?);
            }
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e.into()),
            Err(_) if over.load(Ordering::Relaxed) => return Ok(0),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Processes of one flow of echoes.
struct Pings<'a> {
    flow: &'a Flow,
    children: Vec<Child>,
}

/// Table and counter of what a flow's `ping` really sends.
const SENT_TABLE: &str = "inet sent";

impl Pings<'_> {
    fn start<'a>(net: &Network, t: &Topology, flow: &'a Flow) -> anyhow::Result<Pings<'a>> {
        let (ip, icmp) = if flow.v6 { ("ip6", "icmpv6") } else { ("ip", "icmp") };
        let id = flow.id;
        let from = flow.source(t);
        let to = flow.receiver(t);
        // In front of everything that could refuse it.
        net.of(flow.from).nft(&format!(
            "table {SENT_TABLE} {{\n counter p{id} {{}}\n chain p{id} {{\n  type filter hook output priority -500\n  \
             {ip} saddr {from} {ip} daddr {to} {icmp} type echo-request counter name p{id}\n }}\n}}\n"
        ))?;
        let mut children = Vec::new();
        for _ in 0..flow.processes {
            let mut command = net.of(flow.from).command("ping");
            command.args(["-q", "-n", "-i", PING_EVERY, "-c", &flow.count.to_string(), "-W", PING_LINGER, &to]);
            children.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        }
        Ok(Pings { flow, children })
    }

    /// Waits for their end; returns how many echoes they sent. Their own summaries do not say so: an error that an earlier echo
    /// brought back is taken for one of sending.
    fn finish(self, net: &Network) -> anyhow::Result<u64> {
        for mut child in self.children {
            child.wait()?;
        }
        Ok(net.of(self.flow.from).nft_counter(SENT_TABLE, &format!("p{}", self.flow.id))?.0)
    }
}
