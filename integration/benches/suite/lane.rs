//! Lanes: a generator, the node, a sink. The node forwards what comes in; the sink takes it away before it costs much.
//!
//! ```text
//!  generator ns          node ns                sink ns
//!  eth0 ---------------- in<i>   out<i> ------- eth0 (XDP_DROP)
//! ```
//!
//! All lanes are alike, and go through the same node. The agent watches one of them; another has an empty TC program on
//! the same hooks.
#![allow(unsafe_code, reason = "an ioctl, and a plain-old-data marker")]

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, Pod,
    maps::Array,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode,
        tc::TcAttach,
    },
};
use flowlog_ebpf::bench::Generate;
use integration::net::{Netns, address, veth};

use crate::{
    frames::{Ends, Kind, frame},
    lab,
};

/// Frames the kernel handles at a time: a NAPI batch.
const BATCH: u32 = 64;

/// [`Generate`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct GeneratePod(Generate);
// SAFETY: integers without padding (asserted in `flowlog_ebpf::bench`).
unsafe impl Pod for GeneratePod {}

/// One way through the node.
pub(crate) struct Lane {
    pub generator: Netns,
    _sink: Netns,
    number: u8,
    ends: Ends,
    _programs: Ebpf,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub kind: Kind,
    /// Length of a frame.
    pub bytes: usize,
    /// Different flows, in turn; a power of two.
    pub flows: u32,
    pub frames: u32,
}

fn v6(net: u8, lane: u8, host: u16) -> [u8; 16] {
    let [hi, lo] = host.to_be_bytes();
    [0xfd, net, 0, lane, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, hi, lo]
}

/// A node that forwards.
pub(crate) fn node() -> anyhow::Result<Netns> {
    let node = Netns::new("node")?;
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        node.sysctl(key, "1")?;
    }
    for key in ["net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter"] {
        node.sysctl(key, "0")?;
    }
    Ok(node)
}

impl Lane {
    pub(crate) fn new(node: &Netns, number: u8) -> anyhow::Result<Self> {
        let generator = Netns::new("gen")?;
        let sink = Netns::new("sink")?;
        let into = format!("in{number}");
        let out = format!("out{number}");
        veth((&generator, "eth0"), (node, &into))?;
        veth((node, &out), (&sink, "eth0"))?;
        for (ns, name, net, host) in
            [(&generator, "eth0", 20, 1), (node, into.as_str(), 20, 2), (node, &out, 40, 2), (&sink, "eth0", 40, 1)]
        {
            address(ns, name, &format!("10.{}.255.{host}/16", net + number))?;
            address(ns, name, &format!("fd{net}:{number}::{host}/64"))?;
        }
        let gen_mac = generator.mac("eth0")?;
        let in_mac = node.mac(&into)?;
        let sink_mac = sink.mac("eth0")?;
        let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
        // Nobody is asked who has an address: no other packets than those that are counted.
        for (ns, name, ip, mac) in [
            (node, &out, format!("10.{}.255.1", 40 + number), sink_mac),
            (node, &out, format!("fd40:{number}::1"), sink_mac),
            (node, &into, format!("10.{}.255.1", 20 + number), gen_mac),
            (&generator, &"eth0".to_owned(), format!("10.{}.255.2", 20 + number), in_mac),
        ] {
            ns.exec(&format!("ip neigh replace {ip} lladdr {} dev {name} nud permanent", text(mac)))?;
        }
        // A veth takes frames from XDP only if its other end does GRO or runs XDP.
        node.run(|| gro_on(&into))?;
        generator.run(|| gro_on("eth0"))?;
        let mut programs = lab::load_bench()?;
        sink.run(|| -> anyhow::Result<()> {
            let program: &mut Xdp = programs.program_mut("sink").context("sink")?.try_into()?;
            program.attach(c"eth0", XdpMode::Driver)?;
            Ok(())
        })?;
        let ends = Ends {
            macs: (gen_mac, in_mac),
            v4: ([10, 20 + number, 0, 0], [10, 40 + number, 255, 1]),
            v6: (v6(0x20, number, 0), v6(0x40, number, 1)),
            dport: 443,
        };
        Ok(Self { generator, _sink: sink, number, ends, _programs: programs })
    }

    /// Puts empty TC programs on the node's interface: the least that any agent costs. They stay as long as what is
    /// returned.
    pub(crate) fn with_empty_programs(&self, node: &Netns) -> anyhow::Result<Ebpf> {
        let mut programs = lab::load_bench()?;
        node.run(|| -> anyhow::Result<()> {
            let program: &mut SchedClassifier = programs.program_mut("tc_empty").context("tc_empty")?.try_into()?;
            for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                let interface = std::ffi::CString::new(self.interface())?;
                program.attach(interface.as_c_str(), TcAttach::Tcx { attach_type: side, order: LinkOrder::first() })?;
            }
            Ok(())
        })?;
        Ok(programs)
    }

    /// Name of the node's interface that frames come in by.
    pub(crate) fn interface(&self) -> String {
        format!("in{}", self.number)
    }

    /// The node's address on it.
    pub(crate) fn node_address(&self) -> String {
        format!("10.{}.255.2", 20 + self.number)
    }

    /// Sends a load; returns ns per frame, from making it to its end in the sink (all of it happens on this CPU, in
    /// the softirq that follows each batch).
    pub(crate) fn send(&self, traffic: &mut Traffic, load: Load) -> anyhow::Result<f64> {
        self.send_from(traffic, load, 0)
    }

    /// As [`send`](Self::send), beginning with another flow than the first.
    pub(crate) fn send_from(&self, traffic: &mut Traffic, load: Load, first: u64) -> anyhow::Result<f64> {
        let (frame, balance) = frame(load.kind, &self.ends, load.bytes);
        let generate = Generate {
            address: balance.address,
            address_balance: balance.address_balance,
            port: balance.port,
            port_balance: balance.port_balance,
            flows: load.flows,
            pad: 0,
            made: first,
            start: std::array::from_fn(|i| {
                let word = frame[i * 8..].first_chunk().copied().unwrap_or_default();
                u64::from_ne_bytes(word)
            }),
        };
        traffic.settings()?.set(0, &GeneratePod(generate), 0)?;
        let program: &Xdp = traffic.0.program("generate").context("generator")?.try_into()?;
        self.generator.run(|| {
            integration::traffic::pin_to_cpu(0);
            let index = rustix::net::netdevice::name_to_index(
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?,
                "eth0",
            )?;
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            let md: Vec<u8> =
                [0, u32::try_from(frame.len())?, 0, index, 0, 0].iter().flat_map(|w| w.to_ne_bytes()).collect();
            let attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
            let options = TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&md),
                repeat: load.frames,
                attrs,
                ..TestRunOptions::default()
            };
            // The kernel's own clock: setting up and taking down waits for timer ticks.
            Ok(program.test_run(options).context("send live frames")?.duration.as_secs_f64() * 1e9)
        })
    }
}

pub(crate) struct Traffic(Ebpf);

impl Traffic {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(lab::load_bench()?))
    }

    fn settings(&mut self) -> anyhow::Result<Array<&mut aya::maps::MapData, GeneratePod>> {
        Ok(self.0.map_mut("GENERATE").context("generator's map")?.try_into()?)
    }
}

/// Switches generic receive offload on (`ethtool -K NAME gro on`).
fn gro_on(name: &str) -> anyhow::Result<()> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_SGRO: u32 = 0x2c;
    let mut value = Value { command: ETHTOOL_SGRO, data: 1 };
    // SAFETY: all zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(name.len() < libc::IFNAMSIZ, "interface name `{name}`");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from)?;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request and what it points to outlive the call.
    let rc = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), SIOCETHTOOL, &raw mut request) };
    ensure!(rc == 0, "gro on {name}: {}", std::io::Error::last_os_error());
    Ok(())
}
