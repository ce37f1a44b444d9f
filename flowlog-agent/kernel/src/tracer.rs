//! The tracer: programs of its own, beside those of an agent, that say of single packets what became of them. For whoever asks why a packet
//! was counted as it was; loaded only as long as somebody asks.
//!
//! * [`expression`]: which packets are meant;
//! * [`alone`]: one tracer at a time; [`borrowed`]: what an agent knows;
//! * [`sighting`], [`words`], [`symbols`]: what the programs say, put into words.
//!
//! Nothing is pinned, and what holds the programs in place are links: all of it is gone with the process, however that ends.

mod alone;
mod borrowed;
mod expression;
mod sighting;
mod symbols;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, MapError},
    programs::{BtfTracePoint, ProgramError, SchedClassifier},
};
use aya_log::EbpfLogger;
use flowlog_ebpf::{
    expression::Test,
    sighting::{Budget, TARGETS_MAX, Target},
};
use flowlog_host::clock;
use flowlog_model::{
    interface::{IfKey, NetDev, NetnsName, names},
    rule::Direction,
};

pub use self::expression::ExpressionError;
use self::{borrowed::Borrowed, sighting::Seen, symbols::Symbols, words::Knowledge};
use super::{
    KernelError,
    attach::has_tcx,
    bpf,
    btf::Btf,
    cpus::CpuCount,
    heap,
    layout::{self, Reasons},
    netdev::{self, Namespaces, NetDevError, foreign, netns, rtnetlink},
    notes,
    programs::{program, take},
    ring::Wakeups,
};

/// The checked-in eBPF object; `cargo xtask check` proves that it is what the sources build to.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../flowlog-ebpf/prebuilt/trace.bpf.o"));

/// Lines that wait to be read at most: more than the ring that they come from has room for.
const LINES_MAX: usize = 1_024;

/// Programs at the hooks of an interface, on a kernel with tcx.
const HOOKS: [(&str, Direction); 2] =
    [("flowlog_see_ingress", Direction::Ingress), ("flowlog_see_egress", Direction::Egress)];
/// Tracepoints in their place, on one without.
const TRACEPOINTS: [(&str, &str); 2] =
    [("flowlog_see_received", "netif_receive_skb"), ("flowlog_see_queued", "net_dev_queue")];
/// The program that sees packets die.
const DEATH: &str = "flowlog_see_death";

/// Why nothing is traced.
#[derive(Debug, thiserror::Error)]
pub enum TracerError {
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    #[error(transparent)]
    NetDev(#[from] NetDevError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("somebody traces already: {who}; there is one tracer at a time on a node")]
    InUse {
        /// The process that does, in words.
        who: String,
    },
    #[error("{0} interfaces are too many: {TARGETS_MAX} can be traced at the same time")]
    TooMany(usize),
    #[error("some of these interfaces have link headers and some have none: trace them one after the other")]
    Mixed,
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Names of interfaces.
    pub interfaces: Vec<String>,
    /// The network namespace that they are in; `None`: ours.
    pub netns: Option<NetnsName>,
    /// Which packets, in the words of pcap-filter(7); nothing, for all.
    pub expression: String,
    /// Lines a second.
    pub rate: u32,
}

/// Packets that were meant and of which nothing was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// More than the rate allows.
    pub suppressed: u64,
    /// Said faster than read.
    pub lost: u64,
    /// Packets that died while another one was being looked at on the same CPU, whatever they were.
    pub unseen: u64,
}

/// A tracer that is at work. Dropping it ends that.
pub struct Tracer {
    /// Programs, and the links of those that trace the kernel.
    programs: Ebpf,
    /// Links of those at the hooks.
    _links: Vec<OwnedFd>,
    logger: EbpfLogger<Sink>,
    said: Sink,
    read: u64,
    budget: Array<MapData, [u64; size_of::<Budget>() / 8]>,
    knowledge: Knowledge,
    /// Index, name and programs of each interface that can be asked without privileges.
    hooks: Vec<(u32, String, Vec<u32>)>,
    /// Our own network namespace.
    own_inum: u32,
}

/// Where the log library puts lines.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<String>>>);

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES_MAX {
            lines.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

impl Tracer {
    /// Loads and attaches the programs.
    ///
    /// # Errors
    /// If the question makes no sense, somebody else traces, or the kernel refuses.
    pub fn start(question: &Question) -> Result<Self, TracerError> {
        let tests = expression::parse(&question.expression)?;
        let (devices, others) = devices(question)?;
        let link_header = devices.iter().all(|d| d.link_header);
        if devices.iter().any(|d| d.link_header != link_header) {
            return Err(TracerError::Mixed);
        }
        alone::look()?;
        let has_tcx = has_tcx();
        let mut agent = Borrowed::find(&hooks(&devices));
        let (mut ebpf, reasons) = load(&mut agent, question.rate, link_header)?;
        agent.forget_files();
        verify(&mut ebpf, has_tcx)?;
        let death = ebpf.program(DEATH).and_then(|p| p.info().ok()).map_or(0, |info| info.id());
        alone::loaded(death)?;
        set_expression(&mut ebpf, &tests)?;
        set_targets(&mut ebpf, &devices)?;
        let budget = take_array(&mut ebpf, "BUDGET")?;
        let said = Sink::default();
        let logger = EbpfLogger::init_with_logger(&mut ebpf, said.clone())
            .map_err(|e| KernelError::from_chain("read what the programs log", &e))?;
        let places = layout::places(&reasons);
        let symbols = Symbols::read();
        heap::give_back();
        let links = attach(&mut ebpf, &devices, has_tcx)?;
        let own_inum = netns::own().map_or(0, |own| own.inum);
        let here = devices.iter().filter(|d| d.netns.inum == own_inum);
        let hooks = here.map(|d| (d.index, d.name.clone(), programs_at(d.index))).collect();
        let by_key = |of: Vec<NetDev>| of.into_iter().map(|d| (d.key(), d.name)).collect::<BTreeMap<_, _>>();
        let targets = by_key(devices);
        let knowledge =
            Knowledge { targets, others: by_key(others), agent, reasons, places, symbols, has_tcx, link_header };
        Ok(Self { programs: ebpf, _links: links, logger, said, read: 0, budget, knowledge, hooks, own_inum })
    }

    /// Why no agent is known that what is said could be about; `None`: one is.
    #[must_use]
    pub fn absence(&self) -> Option<&'static str> {
        let agent = &self.knowledge.agent;
        (!agent.is_there()).then(|| agent.absence())
    }

    /// What is not as it was when this began, in words: an agent has come or gone, or an interface has. What is said from then on may not be
    /// true. Of interfaces in another network namespace nothing is known.
    #[must_use]
    pub fn changed(&self) -> Option<String> {
        let (_, name, _) = self.hooks.iter().find(|(index, _, programs)| programs_at(*index) != *programs)?;
        Some(format!(
            "interface {name} is gone, or has other programs than when this began (an agent that has come or gone?)"
        ))
    }

    /// Goes along with the names of interfaces of our own namespace: those that have changed, and what they are now.
    pub fn follow_names(&mut self) -> Vec<(String, String)> {
        let mut renamed = Vec::new();
        for (index, name, _) in &mut self.hooks {
            // One that is gone has changed in another way.
            let Some((now, _)) = rtnetlink::programs(*index).ok().filter(|(now, _)| *now != *name) else { continue };
            let key = IfKey { index: *index, netns_inum: self.own_inum };
            self.knowledge.targets.insert(key, now.clone());
            renamed.push((std::mem::replace(name, now.clone()), now));
        }
        renamed
    }

    /// Tells when there are lines. Needs a running tokio reactor.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn wakeups(&self) -> io::Result<Wakeups> {
        Wakeups::of(self.logger.as_fd())
    }

    /// What there is to say by now: a line for each packet at each place.
    pub fn lines(&mut self) -> Vec<String> {
        self.logger.flush();
        let logged = std::mem::take(&mut *self.said.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.read += logged.len() as u64;
        let now = clock::now();
        let seen = logged.iter().filter_map(|line| Seen::parse(line));
        seen.map(|seen| self.knowledge.line(&seen, now)).collect()
    }

    /// What was left out by now. To be asked when all lines have been read.
    #[must_use]
    pub fn left_out(&self) -> LeftOut {
        let words = self.budget.get(&0, 0).unwrap_or_default();
        let word = |at: usize| words.get(at / 8).copied().unwrap_or(0);
        LeftOut {
            suppressed: word(offset_of!(Budget, suppressed)),
            lost: word(offset_of!(Budget, said)).saturating_sub(self.read),
            unseen: self.unseen().unwrap_or(0),
        }
    }
}

impl Tracer {
    /// As the kernel has counted them: it skips a tracing program that would interrupt itself.
    fn unseen(&self) -> Option<u64> {
        let death = self.programs.program(DEATH)?.fd().ok()?.as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{death}")).ok()?;
        info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
    }
}

/// The interfaces that are asked for, and all others of their namespace.
fn devices(question: &Question) -> Result<(Vec<NetDev>, Vec<NetDev>), TracerError> {
    let wanted: BTreeSet<&String> = question.interfaces.iter().collect();
    if wanted.len() > TARGETS_MAX {
        return Err(TracerError::TooMany(wanted.len()));
    }
    let (all, place) = match &question.netns {
        None => (netdev::all()?, "this network namespace".to_owned()),
        Some(name) => {
            let named = BTreeSet::from([name.clone()]);
            let found = Namespaces::default().interfaces(&named, false);
            if found.namespaces.is_empty() {
                return Err(NetDevError::no_namespace(name, "use a name of `ip netns`, or a path").into());
            }
            let is_own = found.devices.is_empty();
            (if is_own { netdev::all()? } else { found.devices }, format!("network namespace {name}"))
        }
    };
    if let Some(missing) = wanted.iter().find(|name| !all.iter().any(|d| d.name == ***name)) {
        return Err(NetDevError::NotFound { name: (**missing).clone(), netns: place, others: names(&all) }.into());
    }
    Ok(all.into_iter().partition(|d| wanted.contains(&d.name)))
}

/// Ids of all programs at the hooks of these interfaces.
fn hooks(devices: &[NetDev]) -> Vec<u32> {
    let at = |dev: &NetDev| {
        let tc = || Direction::BOTH.into_iter().flat_map(|way| foreign::ids(dev.index, way)).collect::<Vec<_>>();
        let xdp = dev.xdp.iter().map(|(_, id)| *id);
        netns::enter(&dev.netns, tc).unwrap_or_default().into_iter().chain(xdp).collect::<Vec<_>>()
    };
    devices.iter().flat_map(at).collect()
}

/// Ids of the programs at the hooks of an interface of our own network namespace.
fn programs_at(index: u32) -> Vec<u32> {
    Direction::BOTH.into_iter().flat_map(|way| foreign::ids(index, way)).collect()
}

/// Creates the maps. What reading the kernel's type information took is gone when this returns.
fn load(agent: &mut Borrowed, rate: u32, link_header: bool) -> Result<(Ebpf, Reasons), TracerError> {
    let refused = |problem: String| KernelError::Refused { action: "read the agent's notes".to_owned(), problem };
    let notes = agent.notes_file().transpose().map_err(|e| refused(e.to_string()))?;
    let btf = Btf::vmlinux()?;
    let (offsets, connection) = (layout::offsets(&btf)?, layout::connection::place(&btf));
    let reasons = Reasons::resolve(&btf)?;
    drop(btf);
    let cpus = CpuCount::here()?.numbers;
    let (rate, link_header) = (u64::from(rate), u32::from(link_header));
    let sequence_bits = notes::sequence_bits(usize::try_from(cpus).unwrap_or(usize::MAX));
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("CPU", cpus);
    if let Some(path) = notes {
        loader.map_pin_path("CPU", path);
    }
    let ebpf = loader
        .override_global("OFFSETS", &offsets, true)
        .override_global("CONNECTION", &connection, true)
        .override_global("SEQUENCE_BITS", &sequence_bits, true)
        .override_global("RATE", &rate, true)
        .override_global("LINK_HEADER", &link_header, true)
        .load(OBJECT)
        .map_err(|e| KernelError::from_chain("create the eBPF maps", &e))?;
    Ok((ebpf, reasons))
}

/// Has the kernel verify the programs that it can attach.
fn verify(ebpf: &mut Ebpf, has_tcx: bool) -> Result<(), KernelError> {
    let refused =
        |name: &'static str| move |e: ProgramError| KernelError::from_chain(format!("load program `{name}`"), &e);
    let kernel =
        aya::Btf::from_sys_fs().map_err(|e| KernelError::from_chain("read the kernel's type information", &e))?;
    let points = TRACEPOINTS.iter().filter(|_| !has_tcx).chain([&(DEATH, "kfree_skb")]);
    for (name, point) in points {
        program::<BtfTracePoint>(ebpf, name)?.load(point, &kernel).map_err(refused(name))?;
    }
    for (name, _) in HOOKS.iter().filter(|_| has_tcx) {
        program::<SchedClassifier>(ebpf, name)?.load().map_err(refused(name))?;
    }
    Ok(())
}

/// Attaches them: at the hooks last, so that what is seen there is seen to die.
fn attach(ebpf: &mut Ebpf, devices: &[NetDev], has_tcx: bool) -> Result<Vec<OwnedFd>, KernelError> {
    let points = TRACEPOINTS.iter().map(|(name, _)| *name).filter(|_| !has_tcx);
    for name in [DEATH].into_iter().chain(points) {
        let failed = |e: ProgramError| KernelError::from_chain(format!("attach `{name}`"), &e);
        program::<BtfTracePoint>(ebpf, name)?.attach().map_err(failed)?;
    }
    let mut links = Vec::new();
    for dev in devices.iter().filter(|_| has_tcx) {
        for (name, way) in HOOKS {
            let failed = |problem: String| KernelError::Attach {
                interface: dev.name.clone(),
                hook: format!("tcx {way}"),
                problem,
            };
            let program = program::<SchedClassifier>(ebpf, name)?.fd().map_err(|e| failed(e.to_string()))?;
            let link = || bpf::link_behind(program.as_fd(), dev.index, way, foreign::flowlog_hook(dev.index, way));
            let link = netns::enter(&dev.netns, link).flatten();
            links.push(link.map_err(|e| failed(e.to_string()))?);
        }
    }
    Ok(links)
}

fn set_expression(ebpf: &mut Ebpf, tests: &[Test]) -> Result<(), KernelError> {
    let mut map: Array<MapData, [u32; size_of::<Test>() / 4]> = take_array(ebpf, "EXPRESSION")?;
    for (index, test) in (0u32..).zip(tests) {
        let Test { kind, sides, low, high, value, mask } = *test;
        let halves = |a: u16, b: u16| u32::from(a) | u32::from(b) << 16;
        let mut words = [0; size_of::<Test>() / 4];
        words[0] = halves(kind, sides);
        words[1] = halves(low, high);
        words[2..6].copy_from_slice(&value);
        words[6..].copy_from_slice(&mask);
        map.set(index, &words, 0).map_err(|e| KernelError::from_chain("fill map EXPRESSION", &e))?;
    }
    Ok(())
}

fn set_targets(ebpf: &mut Ebpf, devices: &[NetDev]) -> Result<(), KernelError> {
    let mut map: Array<MapData, [u32; size_of::<Target>() / 4]> = take_array(ebpf, "TARGETS")?;
    for (index, dev) in (0u32..).zip(devices) {
        let words = [dev.index, dev.netns.inum];
        map.set(index, &words, 0).map_err(|e| KernelError::from_chain("fill map TARGETS", &e))?;
    }
    Ok(())
}

fn take_array<V: aya::Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Array<MapData, V>, KernelError> {
    let map = take(ebpf, name)?;
    map.try_into().map_err(|e: MapError| KernelError::from_chain(format!("use map {name}"), &e))
}

const _: () = assert!(offset_of!(Test, value) == 8 && offset_of!(Test, mask) == 24);
