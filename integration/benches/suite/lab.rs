//! Programs side by side: flowlog's own, the baselines, and whatever else is to be compared, behind one driver.
#![allow(unsafe_code, reason = "plain-old-data markers for the structs shared with the programs")]

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, ProgramArray, RingBuf},
    programs::{Program, ProgramFd, TestRun as _, TestRunOptions},
};
use flowlog_ebpf::{
    abi::{Iface, WANT_EGRESS, WANT_INGRESS, WANT_REFUSED_INGRESS, WANT_TRANSLATIONS, XDP_INGRESS},
    bench::{Drive, ORDER_ENTRIES, PROGRAMS_MAX},
};
use flowlog_kernel::{Kernel, Ring, Sizes};
use flowlog_model::{
    interface::IfKey,
    sweep::{Cursor, Scope, Swept},
};
use flowlog_pipeline::window::block::Record;
use integration::node::BpfFs;

use crate::{
    frames::{Ends, Kind, frame},
    peer::{Counter, Entries},
};

static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../flowlog-ebpf/prebuilt/bench.bpf.o"));

/// `BPF_PROG_TEST_RUN` presents its packet as one of the loopback device.
const LOOPBACK: u32 = 1;
const INTERFACE: IfKey = IfKey { netns_inum: 1, index: LOOPBACK };
/// What is wanted of it.
const FLAGS: u16 = WANT_INGRESS | WANT_EGRESS;
/// Length of the packets. (IPv6 and TCP alone are 74 bytes.)
const FRAME_BYTES: usize = 74;
/// Packets in one call: no more records than the default ring holds.
pub(crate) const BATCH: u32 = 65_536;

/// [`Drive`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct DrivePod(Drive);
// SAFETY: integers without padding (asserted in `flowlog_ebpf::bench`).
unsafe impl Pod for DrivePod {}

/// Which driver a program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Tc,
    Xdp,
}

/// A program to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub name: String,
    pub hook: Hook,
    slot: u32,
    /// What is wanted of the interface besides [`FLAGS`].
    flags: u16,
}

impl Subject {
    /// The same program on an interface that wants the other side of translations.
    pub(crate) fn with_translations(&self) -> Self {
        Self { name: format!("{}, translations wanted", self.name), flags: WANT_TRANSLATIONS, ..self.clone() }
    }
}

pub(crate) struct Lab {
    bench: Ebpf,
    drive: Array<MapData, DrivePod>,
    order: Array<MapData, u32>,
    tc: ProgramArray<MapData>,
    xdp: ProgramArray<MapData>,
    xdp_fd: OwnedFd,
    slots: u32,
    kernel: Kernel,
    ring: Ring,
    /// Rings of the baselines.
    rings: [RingBuf<MapData>; 2],
    others: Vec<Ebpf>,
    /// What programs of ours need that run others.
    arrays: Vec<OwnedFd>,
}

/// Loads the object and all its programs.
pub(crate) fn load_bench() -> anyhow::Result<Ebpf> {
    let mut bench = EbpfLoader::new().load(OBJECT)?;
    load_all(&mut bench)?;
    Ok(bench)
}

fn load_all(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let btf = aya::Btf::from_sys_fs()?;
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::SchedClassifier(p) => p.load(),
            Program::Xdp(p) => p.load(),
            Program::BtfTracePoint(p) => p.load("kfree_skb", &btf),
            _ => continue,
        }
        .with_context(|| format!("program `{name}`"))?;
    }
    Ok(())
}

impl Lab {
    /// Loads flowlog with its default sizes, and the baselines.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::with(Sizes::default())
    }

    /// As [`new`](Self::new), with other sizes.
    pub(crate) fn with(sizes: Sizes) -> anyhow::Result<Self> {
        let mut bench = load_bench()?;
        let mut kernel = Kernel::load(sizes, 1)?;
        let ring = kernel.take_ring()?;
        kernel.interfaces.watch(INTERFACE, Iface { id: 1, flags: FLAGS, epoch: 1, oldest: 1, by_xdp: 0 })?;
        let mut map = |name: &str| bench.take_map(name).with_context(|| format!("map {name}"));
        let drive = map("DRIVE")?.try_into()?;
        let order = map("ORDER")?.try_into()?;
        let tc = map("TC_PROGRAMS")?.try_into()?;
        let xdp = map("XDP_PROGRAMS")?;
        let Map::ProgramArray(data) = &xdp else { anyhow::bail!("no array of programs") };
        let xdp_fd = data.fd().as_fd().try_clone_to_owned()?;
        let xdp = xdp.try_into()?;
        let mut rules: aya::maps::HashMap<_, u32, u64> = map("RULE_HASH")?.try_into()?;
        rules.insert(&LOOPBACK, &0, 0)?;
        let rings = [map("RECORDS")?.try_into()?, map("EVICTED")?.try_into()?];
        Ok(Self {
            bench,
            rings,
            drive,
            order,
            tc,
            xdp,
            xdp_fd,
            slots: 0,
            kernel,
            ring,
            others: Vec::new(),
            arrays: Vec::new(),
        })
    }

    /// One of flowlog's own hook programs.
    pub(crate) fn ours(&mut self, name: &str, program: &str, hook: Hook) -> anyhow::Result<Subject> {
        let fd = self.kernel.programs.fd(program)?;
        let tc = &mut self.tc;
        let xdp = &mut self.xdp;
        enter(tc, xdp, &mut self.slots, name, fd, hook)
    }

    /// flowlog's hook for interfaces of other network namespaces, behind an entry.
    pub(crate) fn elsewhere(&mut self, name: &str) -> anyhow::Result<Subject> {
        self.kernel.programs.load_all()?;
        let hook = self.kernel.programs.fd("flowlog_elsewhere_ingress")?;
        self.tc.set(PROGRAMS_MAX - 1, hook, 0).context("enter the hook")?;
        self.baseline(name, "tc_entry")
    }

    /// flowlog's program that runs another one, a program of the benchmark.
    pub(crate) fn wrapping(&mut self, name: &str, runs: &str) -> anyhow::Result<Subject> {
        let foreign = self.bench.program(runs).with_context(|| format!("no program `{runs}`"))?.fd()?;
        let slot = self.slots;
        let array = self.kernel.programs.enter_wrapped(self.xdp_fd.as_fd(), slot, foreign.as_fd());
        self.arrays.push(array.map_err(anyhow::Error::msg)?);
        self.slots += 1;
        Ok(Subject { name: name.to_owned(), hook: Hook::Xdp, slot, flags: WANT_REFUSED_INGRESS })
    }

    /// A program of the benchmark's object.
    pub(crate) fn baseline(&mut self, name: &str, program: &str) -> anyhow::Result<Subject> {
        let p = self.bench.program(program).with_context(|| format!("no program `{program}`"))?;
        let hook = if matches!(p, Program::Xdp(_)) { Hook::Xdp } else { Hook::Tc };
        enter(&mut self.tc, &mut self.xdp, &mut self.slots, name, p.fd()?, hook)
    }

    /// A program of anybody's compiled object, with whatever maps it declares but for those whose size is given.
    pub(crate) fn other(&mut self, object: &Path, program: &str, maps: &[Entries]) -> anyhow::Result<Subject> {
        let bytes = std::fs::read(object).with_context(|| object.display().to_string())?;
        let mut loader = EbpfLoader::new();
        // Where maps go whose object wants them pinned; gone with us.
        let pins = BpfFs::new()?;
        loader.default_map_pin_directory(pins.path());
        for Entries { map, entries } in maps {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader.load(&bytes).with_context(|| object.display().to_string())?;
        for Entries { map, .. } in maps {
            ensure!(ebpf.map(map).is_some(), "{}: no map `{map}`", object.display());
        }
        let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        let p = ebpf
            .program_mut(program)
            .with_context(|| format!("{}: no program `{program}`; it has {names:?}", object.display()))?;
        let hook = match p {
            Program::SchedClassifier(p) => p.load().map(|()| Hook::Tc)?,
            Program::Xdp(p) => p.load().map(|()| Hook::Xdp)?,
            _ => anyhow::bail!("`{program}` is neither a TC nor an XDP program"),
        };
        let subject = enter(&mut self.tc, &mut self.xdp, &mut self.slots, program, p.fd()?, hook)?;
        self.others.push(ebpf);
        Ok(subject)
    }

    /// What the object that was [loaded last](Self::other) has counted.
    pub(crate) fn counted(&self, counter: &Counter) -> anyhow::Result<u64> {
        counter.sum(self.others.last().context("no object of somebody else's is loaded")?)
    }

    /// Sets the order flows come in, over and over.
    pub(crate) fn set_order(&mut self, mut next: impl FnMut(u32) -> u32) -> anyhow::Result<()> {
        (0..ORDER_ENTRIES).try_for_each(|i| self.order.set(i, &next(i), 0)).context("set the order of flows")
    }

    fn drive(&mut self, subject: &Subject, kind: Kind, new_flows: bool, cpu_shift: u32) -> anyhow::Result<()> {
        self.kernel.interfaces.set_flags(flowlog_model::IfaceId(1), INTERFACE, FLAGS | subject.flags);
        let (packet, _) = frame(kind, &Ends::nowhere(), FRAME_BYTES);
        let (offset, shift) = kind.word();
        let word = packet.get(offset..offset + 8).and_then(|w| w.try_into().ok()).context("a frame")?;
        // Flow numbers take the place of the last bytes of the source address, below its first one.
        let rest = u64::from_ne_bytes(word) & !(0xffff_ff00 << shift);
        let offset = u32::try_from(offset)?;
        let program = subject.slot;
        let new_flows = u32::from(new_flows);
        let drive = Drive { offset, shift, rest, program, new_flows, cpu_shift, pad: 0 };
        Ok(self.drive.set(0, &DrivePod(drive), 0)?)
    }

    /// Runs `packets` packets; returns ns per packet, driver included.
    pub(crate) fn run(&mut self, subject: &Subject, kind: Kind, packets: u32, new_flows: bool) -> anyhow::Result<f64> {
        self.drive(subject, kind, new_flows, u32::MAX)?;
        let (packet, _) = frame(kind, &Ends::nowhere(), FRAME_BYTES);
        repeat(&self.bench, subject.hook, &packet, packets)
    }

    /// As [`run`](Self::run), on CPUs 0 and 1 at once, on the same flows or on flows of their own. Returns the mean.
    pub(crate) fn run_on_two(
        &mut self,
        subject: &Subject,
        kind: Kind,
        packets: u32,
        same: bool,
    ) -> anyhow::Result<f64> {
        self.drive(subject, kind, false, if same { u32::MAX } else { 20 })?;
        let (packet, _) = frame(kind, &Ends::nowhere(), FRAME_BYTES);
        let barrier = std::sync::Barrier::new(2);
        let bench = &self.bench;
        let results: Vec<anyhow::Result<f64>> = std::thread::scope(|scope| {
            let one = |cpu: usize| {
                let barrier = &barrier;
                let packet = &packet;
                scope.spawn(move || {
                    integration::traffic::pin_to_cpu(cpu);
                    barrier.wait();
                    repeat(bench, subject.hook, packet, packets)
                })
            };
            [one(0), one(1)].map(|t| t.join().expect("a measuring thread")).into_iter().collect()
        });
        let ns = results.into_iter().collect::<anyhow::Result<Vec<f64>>>()?;
        Ok(ns.iter().sum::<f64>() / 2.0)
    }

    /// Empties all rings; returns the number of records.
    pub(crate) fn drain(&mut self) -> usize {
        let ours = integration::ring::take(&mut self.ring).len();
        let theirs = self.rings.iter_mut().map(|ring| std::iter::from_fn(|| ring.next().map(drop)).count());
        ours + theirs.sum::<usize>()
    }

    /// Hands all records of flowlog's own ring to `each`; returns how many.
    pub(crate) fn take(&mut self, mut each: impl FnMut(Record)) -> usize {
        let records = integration::ring::take(&mut self.ring);
        let n = records.len();
        records.into_iter().for_each(&mut each);
        n
    }

    /// Evicts all that is in the caches of the CPUs from this one on; returns how long that took.
    pub(crate) fn sweep(&mut self, first_cpu: u32) -> anyhow::Result<f64> {
        let start = Instant::now();
        let from = Cursor { cpu: first_cpu, ..Cursor::default() };
        let swept = self.kernel.sweeper.sweep(&self.kernel.programs, Scope::All, from, || false)?;
        ensure!(swept == Swept::Done, "the ring is too small for what was in the caches");
        Ok(start.elapsed().as_secs_f64())
    }

    /// Packets flowlog's programs have counted as lost so far.
    pub(crate) fn lost_packets(&self) -> anyhow::Result<u64> {
        let truth = self.kernel.truth.get(flowlog_model::IfaceId(1), flowlog_model::Epoch(1))?;
        Ok(truth.hook.iter().map(|h| h.lost.packets).sum())
    }
}

/// Runs the driver; returns ns per packet.
fn repeat(bench: &Ebpf, hook: Hook, packet: &[u8], packets: u32) -> anyhow::Result<f64> {
    let name = if hook == Hook::Tc { "drive_tc" } else { "drive_xdp" };
    let options = TestRunOptions { data_in: Some(packet), repeat: packets, ..TestRunOptions::default() };
    let start = Instant::now();
    match bench.program(name).context("driver")? {
        Program::SchedClassifier(p) => p.test_run(options)?,
        // The kernel first rewrites its XDP dispatcher, which takes milliseconds: use its own clock, in whole ns.
        Program::Xdp(p) => return Ok(p.test_run(options)?.duration.as_secs_f64() * 1e9),
        _ => anyhow::bail!("the driver has changed its type"),
    };
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(packets))
}

fn enter(
    tc: &mut ProgramArray<MapData>,
    xdp: &mut ProgramArray<MapData>,
    slots: &mut u32,
    name: &str,
    fd: &ProgramFd,
    hook: Hook,
) -> anyhow::Result<Subject> {
    let slot = *slots;
    let array = if hook == Hook::Tc { tc } else { xdp };
    array.set(slot, fd, 0).with_context(|| format!("enter `{name}` into the driver's table"))?;
    *slots += 1;
    let flags = if hook == Hook::Tc { 0 } else { XDP_INGRESS };
    Ok(Subject { name: name.to_owned(), hook, slot, flags })
}
