//! Which capabilities are kept: `capabilities(7)`.

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
    },
};

use super::{ConfineError, Keep, refused};

/// For hooks, maps and programs, as long as there is an agent.
pub(crate) const NEEDED: CapabilitySet =
    CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN).union(CapabilitySet::PERFMON);
/// For entering other network namespaces, and for seeing which one the processes of others are in.
const TO_FOLLOW: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_PTRACE);
/// For descriptors of other people's programs.
const TO_ASK: CapabilitySet = CapabilitySet::SYS_ADMIN;
/// For reading status files of libvirt, which are root's alone; if it is held: else they are not read, which the inventory says.
const TO_READ: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;
/// For hearing of changes there, if it is held: else they are looked into again and again.
const TO_HEAR: CapabilitySet = CapabilitySet::NET_BROADCAST;
/// Until the capture has begun: for the addresses in `/proc/kallsyms`, and for an API on a port below 1024.
const TO_BEGIN: CapabilitySet = CapabilitySet::SYSLOG.union(CapabilitySet::NET_BIND_SERVICE);
/// Capabilities that a kernel may have: a set has 64 bits.
const BITS: u32 = 64;

/// What stays of what is held.
fn kept(held: CapabilitySet, keep: Keep) -> CapabilitySet {
    let mut wanted = NEEDED;
    if keep.asks_for_programs {
        wanted |= TO_ASK;
    }
    if keep.reads_others_files {
        wanted |= TO_READ;
    }
    if keep.enters_namespaces {
        wanted |= TO_FOLLOW | TO_HEAR;
    }
    // Before Linux 5.8 it was needed in the place of these two, and it still does.
    if !held.contains(CapabilitySet::BPF | CapabilitySet::PERFMON) {
        wanted |= CapabilitySet::SYS_ADMIN;
    }
    held & wanted
}

/// Keeps what beginning a capture takes. Nothing more can be had again, not even by `execve`.
pub(super) fn limit_to_begin(keep: Keep) -> Result<(), ConfineError> {
    let held = held()?;
    let missing = TO_FOLLOW - held;
    if keep.enters_namespaces && !missing.is_empty() {
        return Err(ConfineError::CannotFollow { missing: names(missing) });
    }
    let missing = TO_ASK - held;
    if keep.asks_for_programs && !missing.is_empty() {
        return Err(ConfineError::CannotAsk { missing: names(missing) });
    }
    let is_wanted = keep.enters_namespaces || keep.asks_for_programs;
    let kept = kept(held, keep);
    if kept.contains(CapabilitySet::SYS_ADMIN) && !is_wanted {
        tracing::warn!("CAP_SYS_ADMIN is kept in the place of CAP_BPF or CAP_PERFMON: grant these two instead");
    }
    bound(kept)?;
    // What may be inherited and is ambient goes with it.
    hold(kept | (held & TO_BEGIN))
}

/// Keeps what going on with a capture takes.
pub(super) fn limit_to_go_on(keep: Keep) -> Result<(), ConfineError> {
    hold(kept(held()?, keep))
}

fn held() -> Result<CapabilitySet, ConfineError> {
    Ok(capabilities(None).map_err(refused("read the capabilities"))?.permitted)
}

fn hold(kept: CapabilitySet) -> Result<(), ConfineError> {
    clear_ambient_capability_set().map_err(refused("clear the ambient capabilities"))?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(refused("give up capabilities"))
}

/// Removes all others from the bounding set.
fn bound(kept: CapabilitySet) -> Result<(), ConfineError> {
    for capability in (0..BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => {}
            Ok(_) => continue,
            // This kernel has no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(refused("read the bounding set of capabilities")(error)),
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Started by another user than root. As there are no new privileges by `execve`, the set is only for show then.
            Err(Errno::PERM) => {
                tracing::warn!(
                    "cannot empty the bounding set of capabilities without CAP_SETPCAP: set CapabilityBoundingSet= in the unit"
                );
                break;
            }
            Err(error) => return Err(refused("empty the bounding set of capabilities")(error)),
        }
    }
    Ok(())
}

fn names(set: CapabilitySet) -> String {
    let names: Vec<String> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    names.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_but_what_is_needed_and_held() {
        let all = CapabilitySet::all();
        let old = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
        for (held, follow, expected) in [
            (all, false, NEEDED),
            (all, true, NEEDED | TO_FOLLOW | TO_HEAR),
            (NEEDED, false, NEEDED),
            (NEEDED | CapabilitySet::CHOWN | CapabilitySet::SYS_ADMIN, false, NEEDED),
            (old | CapabilitySet::BPF, false, old | CapabilitySet::BPF),
            (old, false, old),
            (CapabilitySet::empty(), true, CapabilitySet::empty()),
        ] {
            let keep = Keep { enters_namespaces: follow, ..Keep::default() };
            assert_eq!(kept(held, keep), expected, "{held:?}, follow {follow}");
        }
        let asks = Keep { asks_for_programs: true, ..Keep::default() };
        assert_eq!(kept(all, asks), NEEDED | CapabilitySet::SYS_ADMIN);
        let reads = Keep { reads_others_files: true, ..Keep::default() };
        assert_eq!((kept(all, reads), kept(NEEDED, reads)), (NEEDED | TO_READ, NEEDED));
        assert_eq!(names(TO_FOLLOW), "CAP_SYS_PTRACE and CAP_SYS_ADMIN");
    }
}
