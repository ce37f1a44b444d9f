//! Closing an epoch: wait for running programs, then evict what is left in every CPU's caches.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use aya::{
    Ebpf,
    programs::{ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use flowlog_ebpf::abi::{Cpu, SWEEP_CHUNK, busy, sweep};
use flowlog_model::sweep::{Cursor, Scope, Swept};
use rustix::thread::{MembarrierCommand, membarrier};

use super::{
    KernelError,
    cpus::{CpuCount, CpuList},
    mapping::MappedArray,
    programs::Programs,
    sizes::Sizes,
};

/// How often a CPU that was in the middle of a program is tried again before the sweep gives up on it. It was
/// interrupted for microseconds; a thousand tries mean something is broken.
const BUSY_TRIES_MAX: u32 = 1_000;

/// Waits until every program that might still use the old epoch has ended (an RCU grace period).
pub fn wait_for_programs() {
    if membarrier(MembarrierCommand::Global).is_err() {
        // Refused with nohz_full: a program runs with preemption or BH off, so 20 ms are ages for it.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Empties the caches of all CPUs.
///
/// A CPU that is off keeps what it has counted, and nothing can run there to evict it. Its caches are swept on this CPU, while they are held: see
/// [`Held`].
pub struct Sweeper {
    sizes: Sizes,
    /// What programs and we know of each possible CPU ([`Cpu`]), at its number.
    states: MappedArray,
    numbers: u32,
    /// CPUs that are not plugged in any more, and their clocks when all that they had counted was evicted.
    emptied: BTreeMap<u32, u64>,
}

impl Sweeper {
    pub(super) fn open(ebpf: &Ebpf, sizes: Sizes, cpus: CpuCount) -> Result<Self, KernelError> {
        let new =
            Self { sizes, states: MappedArray::new(ebpf, "CPU")?, numbers: cpus.numbers, emptied: BTreeMap::new() };
        for holder in (0..new.numbers).filter_map(|cpu| new.holder(cpu)) {
            // An agent was killed while it held them. Programs never write that, so none is at work there.
            let _ = holder.compare_exchange(busy::AGENT, busy::FREE, Ordering::SeqCst, Ordering::SeqCst);
        }
        Ok(new)
    }

    /// [`Cpu::busy`] of a CPU.
    fn holder(&self, cpu: u32) -> Option<&AtomicU64> {
        self.states.word64(cpu, offset_of!(Cpu, busy) / 8)
    }

    /// When a hook ran last on a CPU, to the tick; 0: never.
    fn clock(&self, cpu: u32) -> u64 {
        self.states.word64(cpu, offset_of!(Cpu, tick_ns) / 8).map_or(0, |ns| ns.load(Ordering::SeqCst))
    }

    /// CPUs that may have something in their caches, and those that are plugged in. Many machines could have more CPUs than they ever do.
    fn to_sweep(&self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        // Without that list all that there could be are swept, which takes longer.
        let present = CpuList::Present.read().unwrap_or_else(|_| (0..self.numbers).collect());
        let has_run = |cpu: &u32| self.clock(*cpu) != self.emptied.get(cpu).copied().unwrap_or_default();
        let gone = (0..self.numbers).filter(|cpu| !present.contains(cpu) && has_run(cpu));
        (present.iter().copied().chain(gone).collect(), present)
    }

    /// Evicts records, from `from` on, until all is clean or the ring is full.
    ///
    /// If `is_short` says so, it stops behind a chunk as if the ring were full: what is swept leaves room for those who count.
    ///
    /// # Errors
    /// If the kernel refuses, or a CPU's caches stay busy.
    pub fn sweep(
        &mut self,
        programs: &Programs,
        scope: Scope,
        from: Cursor,
        is_short: impl Fn() -> bool,
    ) -> Result<Swept, KernelError> {
        let program = programs.sweeper()?;
        let (cpus, present) = self.to_sweep();
        let mut at = from;
        for &cpu in cpus.range(from.cpu..) {
            if at.cpu != cpu {
                at = Cursor { cpu, ..Cursor::default() };
            }
            let (begun, clock) = (at, self.clock(cpu));
            let mut held = None;
            let mut was_off = false;
            while at.cache <= sweep::BLOCKS {
                let slots = match at.cache {
                    sweep::PASSED4 | sweep::PASSED6 => self.sizes.passed_slots,
                    sweep::BLOCKS => 1,
                    _ => self.sizes.refused_slots,
                };
                while at.slot < slots {
                    let swept = self.chunk(program, at, scope, &mut held)?;
                    was_off |= held.is_some() && at == Cursor { cpu, ..Cursor::default() };
                    if swept == sweep::RING_FULL {
                        let is_elsewhere = held.is_some();
                        release(program, cpu, held)?;
                        // What was held is in the block of a CPU whose turn may have been: all have theirs once more.
                        return Ok(Swept::RingFull(if is_elsewhere { Cursor::default() } else { at }));
                    }
                    at.slot += SWEEP_CHUNK;
                    if is_short() {
                        release(program, cpu, held)?;
                        return Ok(Swept::RingFull(at));
                    }
                }
                at = Cursor { cpu, cache: at.cache + 1, slot: 0 };
            }
            release(program, cpu, held)?;
            if !present.contains(&cpu) && was_off && begun == (Cursor { cpu, ..Cursor::default() }) {
                self.emptied.insert(cpu, clock);
            }
        }
        Ok(Swept::Done)
    }

    /// Sweeps a chunk, on its CPU if that runs.
    fn chunk<'a>(
        &'a self,
        program: &RawTracePoint,
        at: Cursor,
        scope: Scope,
        held: &mut Option<Held<'a>>,
    ) -> Result<u32, KernelError> {
        let scope = match scope {
            Scope::Closed => sweep::CLOSED,
            Scope::All => sweep::ALL,
            Scope::Observed => sweep::OBSERVED,
        };
        for _ in 0..BUSY_TRIES_MAX {
            // What is off counts nothing more: all that it has can go.
            let (on, scope, of) = if held.is_none() {
                (Some(at.cpu), scope, sweep::HERE)
            } else {
                (None, sweep::ALL, u64::from(at.cpu) + 1)
            };
            let mut args = [0u64; 12];
            args[..4].copy_from_slice(&[u64::from(at.slot), at.cache, scope, of]);
            match program.test_run(RawTracePointRunOptions { args, cpu: on }) {
                Ok(run) if run.return_value != sweep::BUSY => return Ok(run.return_value),
                Ok(_) => {}
                Err(error) if is_not_there(&error) => *held = self.hold(program, at.cpu)?,
                Err(error) => return Err(refused(&error)),
            }
        }
        Err(KernelError::Refused {
            action: format!("sweep CPU {}", at.cpu),
            problem: format!("its caches stayed busy for {BUSY_TRIES_MAX} tries"),
        })
    }

    /// Takes the caches of a CPU that is off. `None`: it is not, or no longer, or a program has them.
    fn hold(&self, program: &RawTracePoint, cpu: u32) -> Result<Option<Held<'_>>, KernelError> {
        let Some(held) = self.holder(cpu).and_then(Held::take) else { return Ok(None) };
        // Who comes back now finds them taken: it runs nothing before the kernel says that it is there, and we ask after we have taken them.
        fence(Ordering::SeqCst);
        Ok(is_off(program, cpu)?.then_some(held))
    }
}

/// The caches of a CPU that is off are ours: its hooks, if it comes back, send records of their own meanwhile.
struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    fn take(holder: &'a AtomicU64) -> Option<Self> {
        let taken = holder.compare_exchange(busy::FREE, busy::AGENT, Ordering::SeqCst, Ordering::SeqCst);
        taken.is_ok().then_some(Self(holder))
    }
}

/// Gives the caches of a CPU back, if they were taken.
fn release(program: &RawTracePoint, cpu: u32, held: Option<Held<'_>>) -> Result<(), KernelError> {
    let Some(held) = held else { return Ok(()) };
    if !is_off(program, cpu)? {
        // It is back. What its programs have read ahead of the flag is from before we had taken it: not everywhere does a load wait for that.
        wait_for_programs();
    }
    drop(held);
    Ok(())
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // A program that had read the flag before we took it may have written over it, and gives back what is its own.
        let _ = self.0.compare_exchange(busy::AGENT, busy::FREE, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// Whether a CPU is off, by what the kernel says of a program that is to run there. (The sweeper does nothing while the CPU is held.)
fn is_off(program: &RawTracePoint, cpu: u32) -> Result<bool, KernelError> {
    match program.test_run(RawTracePointRunOptions { args: [0; 12], cpu: Some(cpu) }) {
        Ok(_) => Ok(false),
        Err(error) if is_not_there(&error) => Ok(true),
        Err(error) => Err(refused(&error)),
    }
}

/// Whether a program was not run because the CPU it was to run on is off (`bpf_prog_test_run_raw_tp`).
fn is_not_there(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::ENXIO))
}

fn refused(e: &ProgramError) -> KernelError {
    KernelError::from_chain("run the sweeper", e)
}
