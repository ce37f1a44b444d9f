//! Loading the eBPF object: map sizes, constants, programs.

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData},
};
use flowlog_ebpf::abi::{ABI_VERSION, Block4, Setup};
use flowlog_model::interface::IfKey;

use super::{
    KernelError, Ring,
    attach::Hooks,
    btf::Btf,
    cpus::CpuCount,
    each_cpu::{self, Obstacle},
    heap,
    layout::{self, Mark, Moves, Reasons},
    maps::{Interfaces, SetupPod},
    notes,
    pins::{self, Pins},
    programs::{OBJECT, Programs, take},
    sizes::{MapSpec, Sizes},
    sweep::Sweeper,
    truth::TruthTable,
    wrap::Wraps,
};

/// Blocks in the part of the ring in which each block wakes the agent, besides one for each CPU: all of them may see the ring below the mark and
/// then send. Many more would make the packet path pay for wake-ups.
const WAKE_BLOCKS: u32 = 4;

/// What programs are loaded with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// How large the maps are.
    pub sizes: Sizes,
    /// Inode number of the network namespace we are in.
    pub netns_inum: u32,
    /// Drop reasons that count as something else than by default.
    pub moves: Moves,
    /// Which mark of a refused packet is recorded.
    pub mark: Mark,
}

/// Everything of ours in the kernel, by owner. Dropping it detaches everything that is not pinned.
pub struct Kernel {
    pub programs: Programs,
    /// What holds them in place.
    pub hooks: Hooks,
    /// Other people's XDP programs that ours run.
    pub wraps: Wraps,
    /// What they know of interfaces.
    pub interfaces: Interfaces,
    /// What they have counted.
    pub truth: TruthTable,
    /// Who empties their caches.
    pub sweeper: Sweeper,
    sizes: Sizes,
    /// As they are without anybody's wish.
    unmoved: Reasons,
    reasons: Reasons,
    /// What each counts as, for the programs.
    actions: Array<MapData, u8>,
    knows_connections: bool,
}

impl Kernel {
    /// Loads and verifies the programs, to end with this process; attaches nothing.
    ///
    /// `netns_inum` is the inode number of the network namespace we are in.
    pub fn load(sizes: Sizes, netns_inum: u32) -> Result<Self, KernelError> {
        Self::open(&Options { sizes, netns_inum, ..Options::default() }, None)
    }

    /// As [`load`](Self::load); with `pins`, on maps that outlive this process: those that are pinned there if there are any. Programs
    /// that are running on these maps go on running.
    pub fn open(options: &Options, mut pins: Option<Pins>) -> Result<Self, KernelError> {
        let Options { sizes, netns_inum, moves, mark } = options;
        let (sizes, netns_inum) = (*sizes, *netns_inum);
        let Layout { offsets, reasons: unmoved, drop_arguments, mark, connection } = kernel_layout(*mark)?;
        let reasons = unmoved.clone().with(moves)?;
        let cpus = CpuCount::here()?;
        let sequence_bits = notes::sequence_bits(cpus.numbers as usize);
        let tick = flowlog_host::clock::tick_ns();
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
        let layout::Places { xdp, route } = layout::places(&reasons);
        let refused_mask = sizes.refused_slots - 1;
        let wake = u64::from(sizes.ring_bytes / 4);
        let wake_end = wake + u64::from(cpus.numbers.saturating_add(WAKE_BLOCKS)) * size_of::<Block4>() as u64;
        let mut loader = EbpfLoader::new();
        if let Some(pins) = &pins {
            let dir = pins.maps_dir()?;
            for name in pins::map_names() {
                loader.map_pin_path(name, dir.join(name));
            }
        }
        for MapSpec { name, entries, .. } in sizes.maps(cpus) {
            loader.map_max_entries(name, entries);
        }
        let ebpf = loader
            .override_global("OFFSETS", &offsets, true)
            .override_global("REFUSED_MASK", &refused_mask, true)
            .override_global("RING_WAKE_BYTES", &wake, true)
            .override_global("RING_WAKE_END_BYTES", &wake_end, true)
            .override_global("OWN_NETNS", &netns_inum, true)
            .override_global("XDP_PLACE", &xdp, true)
            .override_global("ROUTE_PLACE", &route, true)
            .override_global("MARK", &mark, true)
            .override_global("CONNECTION", &connection, true)
            .override_global("DROP_ARGUMENTS", &drop_arguments, true)
            .override_global("SEQUENCE_BITS", &sequence_bits, true)
            .override_global("TICK_NS", &tick, true)
            .load(OBJECT)
            .map_err(|e| KernelError::from_chain("create the eBPF maps", &e))?;
        // It holds type information of its own, and the next step needs as much again.
        drop(loader);
        heap::give_back();
        // First: if a program is refused, maps that another process goes on with are as they were.
        let mut programs = Programs::load(ebpf)?;
        let maps = programs.maps();
        let mut actions = take(maps, "REASONS")?.try_into().map_err(|e| unfilled(&e))?;
        set_reasons(&mut actions, &reasons)?;
        notes::begin(maps, cpus.numbers, &setup, sizes)?;
        set_setup(maps, setup)?;
        let interfaces = Interfaces::open(maps, netns_inum)?;
        let truth = TruthTable::open(maps, cpus, sizes.interfaces_max)?;
        if let Some(pins) = &mut pins {
            pins.complete()?;
        }
        let knows_connections = connection.iter().any(|word| *word != 0);
        let sweeper = Sweeper::open(maps, sizes, cpus)?;
        let wraps = Wraps::new(pins.as_ref().map(Pins::wraps_dir));
        let hooks = Hooks::new(pins);
        Ok(Self {
            programs,
            hooks,
            wraps,
            interfaces,
            truth,
            sweeper,
            sizes,
            unmoved,
            reasons,
            actions,
            knows_connections,
        })
    }

    /// Whether hooks and maps outlive this process.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.hooks.are_pinned()
    }

    /// Whether XDP can go on counting what comes in through an interface where TC has, and TC where XDP has, each packet once.
    ///
    /// # Errors
    /// Why not.
    pub fn hands_over_xdp(&self, at: IfKey, interface: &str) -> Result<(), Obstacle> {
        if !self.interfaces.is_here(at) {
            return Err(Obstacle::Elsewhere);
        }
        each_cpu::parts_packets(interface, at.index).or_else(each_cpu::obstacle).map_or(Ok(()), Err)
    }

    /// Goes on with what an earlier agent has wrapped, or takes it back: see [`Wraps`].
    ///
    /// # Errors
    /// If an owner's program cannot be put back.
    pub fn inherit_wraps(&mut self, keep: bool) -> Result<(), KernelError> {
        self.wraps.inherit(&self.programs, keep)
    }

    /// Names of the drop reasons in records.
    #[must_use]
    pub fn reasons(&self) -> &Reasons {
        &self.reasons
    }

    /// What they would be with these wishes.
    ///
    /// # Errors
    /// As [`Reasons::with`].
    pub fn reasons_with(&self, moves: &Moves) -> Result<Reasons, KernelError> {
        self.unmoved.clone().with(moves)
    }

    /// From now on packets count by these.
    ///
    /// # Errors
    /// If the kernel does not take them: some may hold then, and others not.
    pub fn set_reasons(&mut self, reasons: Reasons) -> Result<(), KernelError> {
        set_reasons(&mut self.actions, &reasons)?;
        self.reasons = reasons;
        Ok(())
    }

    /// Whether the programs can ask connection tracking for the other side of a translation.
    #[must_use]
    pub fn knows_connections(&self) -> bool {
        self.knows_connections
    }

    /// Sizes it was loaded with.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The reading end of the ring. There is one: a second call is refused.
    pub fn take_ring(&mut self) -> Result<Ring, KernelError> {
        Ring::new(take(self.programs.maps(), "RING")?)
    }
}

/// What the programs must know about this kernel. Its type information (20 MiB) is gone when this returns.
fn kernel_layout(mark: Mark) -> Result<Layout, KernelError> {
    let btf = Btf::vmlinux()?;
    let drop_arguments = btf
        .tracepoint_arguments("kfree_skb")
        .ok_or(KernelError::MissingType { name: "btf_trace_kfree_skb".to_owned() })?;
    let mark = mark.place(&btf)?;
    let connection = layout::connection::place(&btf);
    Ok(Layout { offsets: layout::offsets(&btf)?, reasons: Reasons::resolve(&btf)?, drop_arguments, mark, connection })
}

struct Layout {
    offsets: layout::OffsetWords,
    reasons: Reasons,
    /// Arguments of the tracepoint `kfree_skb`.
    drop_arguments: u32,
    mark: layout::MarkWords,
    connection: layout::connection::ConnectionWords,
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
    map.set(0, &SetupPod(setup), 0).map_err(refused)
}

/// Random enough that nobody can prepare colliding flows.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn unfilled(error: &aya::maps::MapError) -> KernelError {
    KernelError::from_chain("fill map REASONS", error)
}

fn set_reasons(map: &mut Array<MapData, u8>, reasons: &Reasons) -> Result<(), KernelError> {
    (0u32..).zip(&reasons.actions).try_for_each(|(index, action)| map.set(index, action, 0)).map_err(|e| unfilled(&e))
}
