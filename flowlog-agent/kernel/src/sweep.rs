//! Closing an epoch: wait for running programs, then evict what is left in every CPU's caches.

use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use flowlog_ebpf::abi::{SWEEP_CHUNK, sweep};
use flowlog_model::sweep::{Cursor, Scope, Swept};
use rustix::thread::{MembarrierCommand, membarrier};

use super::{KernelError, programs::Programs, sizes::Sizes};

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
pub struct Sweeper {
    cpus: Vec<u32>,
    sizes: Sizes,
}

impl Sweeper {
    pub(super) fn new(cpus: Vec<u32>, sizes: Sizes) -> Self {
        Self { cpus, sizes }
    }

    /// Evicts records, from `from` on, until all is clean or the ring is full.
    ///
    /// If `is_short` says so, it stops behind a chunk as if the ring were full: what is swept leaves room for those who count.
    pub fn sweep(
        &self,
        programs: &Programs,
        scope: Scope,
        from: Cursor,
        is_short: impl Fn() -> bool,
    ) -> Result<Swept, KernelError> {
        let mut at = from;
        let program = programs.sweeper()?;
        while let Some(cpu) = self.cpus.get(at.cpu) {
            while at.cache <= sweep::BLOCKS {
                let slots = match at.cache {
                    sweep::PASSED4 | sweep::PASSED6 => self.sizes.passed_slots,
                    sweep::BLOCKS => 1,
                    _ => self.sizes.refused_slots,
                };
                while at.slot < slots {
                    match chunk(program, *cpu, at, scope)? {
                        sweep::RING_FULL => return Ok(Swept::RingFull(at)),
                        _ => at.slot += SWEEP_CHUNK,
                    }
                    if is_short() {
                        return Ok(Swept::RingFull(at));
                    }
                }
                at = Cursor { cpu: at.cpu, cache: at.cache + 1, slot: 0 };
            }
            at = Cursor { cpu: at.cpu + 1, cache: 0, slot: 0 };
        }
        Ok(Swept::Done)
    }
}

fn chunk(program: &RawTracePoint, cpu: u32, at: Cursor, scope: Scope) -> Result<u32, KernelError> {
    let mut args = [0u64; 12];
    args[0] = u64::from(at.slot);
    args[1] = at.cache;
    args[2] = match scope {
        Scope::Closed => sweep::CLOSED,
        Scope::All => sweep::ALL,
        Scope::Observed => sweep::OBSERVED,
    };
    for _ in 0..BUSY_TRIES_MAX {
        let run = program.test_run(RawTracePointRunOptions { args, cpu: Some(cpu) }).map_err(|e| refused(&e))?;
        if run.return_value != sweep::BUSY {
            return Ok(run.return_value);
        }
    }
    Err(KernelError::Refused {
        action: format!("sweep CPU {cpu}"),
        problem: format!("its caches stayed busy for {BUSY_TRIES_MAX} tries"),
    })
}

fn refused(e: &aya::programs::ProgramError) -> KernelError {
    KernelError::from_chain("run the sweeper", e)
}
