//! Loading the object: map sizes, constants, programs.

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, PerCpuArray, ProgramArray},
    programs::{BtfTracePoint, RawTracePoint, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use flowlog_ebpf::abi::{self, ABI_VERSION, EPOCHS, Iface, Setup, VERDICT_FIRST, VERDICT_NESTED};

use super::{
    KernelError, Ring,
    attach::Hook,
    btf::Btf,
    heap,
    layout::{self, Reasons},
    maps::{Mapped, SetupPod, TruthPod},
    notes::{self, Above},
    pins::{self, Pins},
};

/// The checked-in object; `cargo xtask check` proves that it is what the sources build to.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../flowlog-ebpf/prebuilt/flowlog.bpf.o"));

/// A preallocated element of a hash map with key and value of 8 bytes (`struct htab_elem`), and its share of the buckets.
const HASH_ELEMENT_BYTES: u64 = 80;

/// Sizes of the kernel's side. All powers of two but the number of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Slots of the flow cache, for each CPU and address family.
    pub passed_slots: u32,
    /// Slots of the refused cache, for each CPU and address family.
    pub refused_slots: u32,
    /// Bytes of the ring buffer.
    pub ring_bytes: u32,
    /// Watched interfaces at most.
    pub interfaces_max: u16,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            passed_slots: abi::CACHE_SLOTS_DEFAULT,
            refused_slots: abi::REFUSED_SLOTS_DEFAULT,
            ring_bytes: abi::RING_BYTES_DEFAULT,
            interfaces_max: 512,
        }
    }
}

impl Sizes {
    /// Kernel memory these sizes cost on a machine with `cpus` possible CPUs, in bytes.
    #[must_use]
    pub fn memory_bytes(&self, cpus: u64) -> u64 {
        let records = (size_of::<abi::Record4>() + size_of::<abi::Record6>()) as u64;
        let slots = u64::from(banks(self.passed_slots) + banks(self.refused_slots)) * u64::from(abi::BANK_SLOTS);
        let truth = (u64::from(self.interfaces_max) + 1) * u64::from(EPOCHS) * size_of::<abi::Truth>() as u64;
        let scratch = (size_of::<abi::Cpu>() + size_of::<abi::Dying>()) as u64;
        let datagrams = u64::from(abi::DATAGRAMS) * size_of::<abi::Datagram>() as u64;
        let above = u64::from(abi::ABOVE_MAX) * HASH_ELEMENT_BYTES;
        let blocks = (size_of::<abi::Block4>() + size_of::<abi::Block6>()) as u64;
        let shared = u64::from(self.ring_bytes) + u64::from(abi::IFINDEX_MAX) * (size_of::<Iface>() as u64 + 8);
        cpus * (slots * records + truth + scratch + blocks) + shared + datagrams + above
    }
}

/// The loaded programs and their maps. Dropping it detaches everything that is not pinned.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    pub(super) hooks: Vec<Hook>,
    pub(super) ifaces: Mapped,
    pub(super) netns: Mapped,
    pub(super) epochs: Mapped,
    pub(super) truth: PerCpuArray<MapData, TruthPod>,
    pub(super) above: Above,
    pub(super) sizes: Sizes,
    pub(super) cpus: Vec<u32>,
    reasons: Reasons,
    pub(super) pins: Option<Pins>,
}

impl Kernel {
    /// Loads and verifies the programs, to end with this process; attaches nothing.
    ///
    /// `netns_inum` is the inode number of the network namespace we are in.
    pub fn load(sizes: Sizes, netns_inum: u32) -> Result<Self, KernelError> {
        Self::load_with(sizes, netns_inum, None)
    }

    /// As [`load`](Self::load), with maps that outlive this process: those of `pins` if it has any. Programs that are
    /// running on these maps go on running.
    pub fn load_pinned(sizes: Sizes, netns_inum: u32, pins: Pins) -> Result<Self, KernelError> {
        Self::load_with(sizes, netns_inum, Some(pins))
    }

    fn load_with(sizes: Sizes, netns_inum: u32, mut pins: Option<Pins>) -> Result<Self, KernelError> {
        let Layout { offsets, reasons, drop_arguments } = kernel_layout()?;
        let cpus = aya::util::nr_cpus().map_err(unreadable)?;
        let (sequence_bits, tick) = (notes::sequence_bits(cpus), flowlog_host::clock::tick_ns());
        let wanted = Setup {
            seed: rand_seed(),
            netns_inum,
            passed_slots: sizes.passed_slots,
            refused_slots: sizes.refused_slots,
            abi_version: ABI_VERSION,
        };
        let setup = match pins.as_ref().filter(|p| p.adopted()) {
            Some(pins) => found_setup(pins, wanted)?,
            None => wanted,
        };
        let (seed, xdp_place) = (setup.seed, reasons.xdp_place());
        let (passed_mask, refused_mask) = (sizes.passed_slots - 1, sizes.refused_slots - 1);
        let wake = u64::from(sizes.ring_bytes / 4);
        let interfaces = u32::from(sizes.interfaces_max) + 1;
        let mut loader = EbpfLoader::new();
        if let Some(pins) = &pins {
            let dir = pins.maps_dir()?;
            for name in pins::map_names() {
                loader.map_pin_path(name, dir.join(name));
            }
        }
        let mut ebpf = loader
            .override_global("OFFSETS", &offsets, true)
            .override_global("PASSED_MASK", &passed_mask, true)
            .override_global("REFUSED_MASK", &refused_mask, true)
            .override_global("RING_WAKE_BYTES", &wake, true)
            .override_global("SEED", &seed, true)
            .override_global("XDP_PLACE", &xdp_place, true)
            .override_global("DROP_ARGUMENTS", &drop_arguments, true)
            .override_global("SEQUENCE_BITS", &sequence_bits, true)
            .override_global("TICK_NS", &tick, true)
            .map_max_entries("PASSED4", banks(sizes.passed_slots))
            .map_max_entries("PASSED6", banks(sizes.passed_slots))
            .map_max_entries("REFUSED4", banks(sizes.refused_slots))
            .map_max_entries("REFUSED6", banks(sizes.refused_slots))
            .map_max_entries("RING", sizes.ring_bytes)
            .map_max_entries("TRUTH", interfaces * EPOCHS)
            .map_max_entries("EPOCH_OF", interfaces)
            .load(OBJECT)
            .map_err(|e| KernelError::from_chain("create the eBPF maps", &e))?;
        // It holds type information of its own, and the next step needs as much again.
        drop(loader);
        heap::give_back();
        load_programs(&mut ebpf)?;
        let ifaces = Mapped::new(&ebpf, "IFACES")?;
        let netns = Mapped::new(&ebpf, "NETNS_OF")?;
        let epochs = Mapped::new(&ebpf, "EPOCH_OF")?;
        let truth = take(&mut ebpf, "TRUTH")?
            .try_into()
            .map_err(|e: aya::maps::MapError| KernelError::from_chain("open map TRUTH", &e))?;
        set_reasons(&mut ebpf, &reasons)?;
        notes::begin(&mut ebpf, cpus)?;
        let above = Above::open(&mut ebpf)?;
        set_setup(&mut ebpf, setup)?;
        if let Some(pins) = &mut pins {
            pins.complete()?;
        }
        let cpus = aya::util::online_cpus().map_err(unreadable)?;
        Ok(Self { ebpf, hooks: Vec::new(), ifaces, netns, epochs, truth, above, sizes, cpus, reasons, pins })
    }

    /// Whether hooks and maps outlive this process.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// From now on the verdict programs of this process are the ones that run.
    pub(super) fn use_verdicts(&mut self) -> Result<(), KernelError> {
        let refused = |e: aya::maps::MapError| KernelError::from_chain("replace the verdict programs", &e);
        let programs: [(u32, &str); 2] =
            [(VERDICT_FIRST, "flowlog_verdict"), (VERDICT_NESTED, "flowlog_verdict_nested")];
        let mut fds = Vec::new();
        for (index, name) in programs {
            let fd = self.program_fd(name)?.try_clone().map_err(|e| KernelError::Refused {
                action: format!("use program `{name}`"),
                problem: e.to_string(),
            })?;
            fds.push((index, fd));
        }
        let map = self.ebpf.map_mut("VERDICTS").ok_or_else(|| missing("VERDICTS"))?;
        let mut verdicts: ProgramArray<_> = map.try_into().map_err(refused)?;
        fds.iter().try_for_each(|(index, fd)| verdicts.set(*index, fd, 0).map_err(refused))
    }

    /// Names of the drop reasons in records.
    #[must_use]
    pub fn reasons(&self) -> &Reasons {
        &self.reasons
    }

    /// Sizes it was loaded with.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The reading end of the ring. There is one: a second call is refused.
    pub fn take_ring(&mut self) -> Result<Ring, KernelError> {
        Ring::new(take(&mut self.ebpf, "RING")?)
    }

    /// Instructions the verifier walked, by program: the measure of a program's complexity.
    pub fn verified_instructions(&self) -> Result<Vec<(String, u32)>, KernelError> {
        self.ebpf
            .programs()
            .map(|(name, program)| {
                let info = program.info().map_err(|e| KernelError::from_chain("read program info", &e))?;
                Ok((name.to_owned(), info.verified_instruction_count().unwrap_or(0)))
            })
            .collect()
    }

    /// A loaded program, to be measured by `cargo xtask bench` or looked at by tests.
    pub fn program_fd(&self, name: &str) -> Result<&aya::programs::ProgramFd, KernelError> {
        let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
        program.fd().map_err(|e| KernelError::from_chain(format!("use program `{name}`"), &e))
    }

    /// Runs a hook program once on `frame` with `BPF_PROG_TEST_RUN`, as if it had come in on the loopback device
    /// (ifindex 1). `sk_buff` is the `struct __sk_buff` handed to a TC program, `None` for XDP. Returns the
    /// program's verdict.
    pub fn test_run(&mut self, program: &str, frame: &[u8], sk_buff: Option<&[u8]>) -> Result<u32, KernelError> {
        let refused = |e: aya::programs::ProgramError| KernelError::from_chain(format!("run `{program}`"), &e);
        let p = self.ebpf.program(program).ok_or_else(|| missing(program))?;
        let opts = TestRunOptions { data_in: Some(frame), ctx_in: sk_buff, ..Default::default() };
        let result = match p {
            aya::programs::Program::SchedClassifier(p) => p.test_run(opts),
            aya::programs::Program::Xdp(p) => p.test_run(opts),
            _ => return Err(missing(program)),
        };
        Ok(result.map_err(refused)?.return_value)
    }
}

fn unreadable((what, error): (&str, std::io::Error)) -> KernelError {
    KernelError::Refused { action: format!("read {what}"), problem: error.to_string() }
}

/// What the programs must know about this kernel. Its type information (20 MiB) is gone when this returns.
fn kernel_layout() -> Result<Layout, KernelError> {
    let btf = Btf::vmlinux()?;
    let drop_arguments = btf
        .tracepoint_arguments("kfree_skb")
        .ok_or(KernelError::MissingType { name: "btf_trace_kfree_skb".to_owned() })?;
    Ok(Layout { offsets: layout::offsets(&btf)?, reasons: Reasons::resolve(&btf)?, drop_arguments })
}

struct Layout {
    offsets: layout::OffsetWords,
    reasons: Reasons,
    /// Arguments of the tracepoint `kfree_skb`.
    drop_arguments: u32,
}

/// What a set of pins was made for; it must be what we would make one for.
fn found_setup(pins: &Pins, wanted: Setup) -> Result<Setup, KernelError> {
    let found = pins::read_setup(&pins.map("SETUP"))?;
    if (Setup { seed: wanted.seed, ..found }) == wanted {
        return Ok(found);
    }
    Err(KernelError::Refused {
        action: format!("go on with the pins at `{}`", pins.root().display()),
        problem: format!(
            "they were made for {found:?}, and this configuration needs {wanted:?}; put the old `[kernel]` sizes back, \
             start in the same network namespace, or run `flowlog detach` first: that delivers what the maps hold \
             and removes them"
        ),
    })
}

fn set_setup(ebpf: &mut Ebpf, setup: Setup) -> Result<(), KernelError> {
    let refused = |e: aya::maps::MapError| KernelError::from_chain("fill map SETUP", &e);
    let mut map: Array<_, SetupPod> = take(ebpf, "SETUP")?.try_into().map_err(refused)?;
    map.set(0, SetupPod(setup), 0).map_err(refused)
}

/// Map elements for so many slots.
pub(super) fn banks(slots: u32) -> u32 {
    slots.div_ceil(abi::BANK_SLOTS)
}

/// Random enough that nobody can prepare colliding flows.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn missing(name: &str) -> KernelError {
    KernelError::Refused { action: format!("find `{name}`"), problem: "it is not in the embedded object".to_owned() }
}

pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map, KernelError> {
    ebpf.take_map(name).ok_or_else(|| missing(name))
}

/// The program `name` as type `P`.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let p = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    p.try_into().map_err(|e| KernelError::from_chain(format!("use program `{name}`"), &e))
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let refused = |name: &'static str| {
        move |e: aya::programs::ProgramError| KernelError::from_chain(format!("load program `{name}`"), &e)
    };
    {
        let kernel_btf =
            aya::Btf::from_sys_fs().map_err(|e| KernelError::from_chain("read the kernel's type information", &e))?;
        for name in ["flowlog_verdict", "flowlog_verdict_nested", "flowlog_drop", "flowlog_drop_nested"] {
            program::<BtfTracePoint>(ebpf, name)?.load("kfree_skb", &kernel_btf).map_err(refused(name))?;
        }
    }
    for name in ["flowlog_tc_ingress", "flowlog_tc_egress"] {
        program::<SchedClassifier>(ebpf, name)?.load().map_err(refused(name))?;
    }
    program::<Xdp>(ebpf, "flowlog_xdp")?.load().map_err(refused("flowlog_xdp"))?;
    program::<RawTracePoint>(ebpf, "flowlog_sweep")?.load().map_err(refused("flowlog_sweep"))
}

fn set_reasons(ebpf: &mut Ebpf, reasons: &Reasons) -> Result<(), KernelError> {
    let refused = |e: aya::maps::MapError| KernelError::from_chain("fill map REASONS", &e);
    let mut map: Array<_, u8> = take(ebpf, "REASONS")?.try_into().map_err(refused)?;
    for (index, action) in (0u32..).zip(&reasons.actions) {
        map.set(index, *action, 0).map_err(refused)?;
    }
    Ok(())
}
