//! Where the programs find interfaces: [`flowlog_ebpf::abi::Range`]. What is decided here is in the map `BASES`, so that the programs, and the
//! next agent, know it as well.
#![allow(unsafe_code, reason = "a plain-old-data marker for the shared struct")]

use std::collections::BTreeMap;

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData, MapError},
};
use flowlog_ebpf::abi::{IFINDEX_MAX, RANGE_INDEXES, RANGES_MAX, Range};
use flowlog_model::interface::IfKey;

use super::{KernelError, programs::take};

/// [`Range`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct RangePod(Range);
// SAFETY: `Range` is `repr(C)`, two `u32` (its size is asserted in `abi`).
unsafe impl Pod for RangePod {}

/// See the module's head.
pub(super) struct Spots {
    /// Inode number of our own network namespace: its interfaces are at their indexes.
    own: u32,
    map: HashMap<MapData, RangePod, u32>,
    /// What is in the map.
    bases: BTreeMap<Range, u32>,
}

impl Spots {
    pub(super) fn open(ebpf: &mut Ebpf, own: u32) -> Result<Self, KernelError> {
        let map: HashMap<_, RangePod, u32> = take(ebpf, "BASES")?.try_into().map_err(|e: MapError| refused(&e))?;
        let bases = map.iter().map(|entry| entry.map(|(range, base)| (range.0, base)));
        let bases = bases.collect::<Result<_, MapError>>().map_err(|e| refused(&e))?;
        Ok(Self { own, map, bases })
    }

    /// Whether an interface is in our own namespace.
    pub(super) fn is_own(&self, interface: IfKey) -> bool {
        interface.netns_inum == self.own
    }

    /// The spot of an interface; `None`: it has none.
    pub(super) fn find(&self, interface: IfKey) -> Option<u32> {
        let IfKey { netns_inum, index } = interface;
        if index == 0 || index >= IFINDEX_MAX {
            return None;
        }
        if self.is_own(interface) {
            return Some(index);
        }
        self.bases.get(&Range::of(netns_inum, index)).map(|base| base.wrapping_add(index))
    }

    /// As [`find`](Self::find), and makes room for it; the spot, and what was added to the index.
    pub(super) fn claim(&mut self, interface: IfKey) -> Result<(u32, u32), KernelError> {
        let refuse = |problem: String| {
            let hook = "accounting".to_owned();
            Err(KernelError::Attach { interface: interface.to_string(), hook, problem })
        };
        let IfKey { netns_inum, index } = interface;
        if index == 0 || index >= IFINDEX_MAX {
            return refuse(format!(
                "this build watches indexes below {IFINDEX_MAX}; make the interface with a lower one (`ip link add … index N`), or in a new network namespace"
            ));
        }
        if let Some(spot) = self.find(interface) {
            return Ok((spot, spot.wrapping_sub(index)));
        }
        let range = Range::of(netns_inum, index);
        let taken: Vec<u32> = self.bases.iter().map(|(range, base)| place(*range, *base)).collect();
        let Some(free) = (0..RANGES_MAX).find(|place| !taken.contains(place)) else {
            return refuse(format!(
                "interfaces of {RANGES_MAX} ranges of {RANGE_INDEXES} indexes in other network namespaces are watched: there is no more room"
            ));
        };
        let base = range.base(free);
        self.map.insert(&RangePod(range), &base, 0).map_err(|e| refused(&e))?;
        self.bases.insert(range, base);
        Ok((base.wrapping_add(index), base))
    }

    /// Gives up the ranges of which no spot is in use.
    pub(super) fn release(&mut self, in_use: impl Fn(u32) -> bool) {
        let idle = |range: &Range, base: u32| {
            let first = base.wrapping_add(range.number * RANGE_INDEXES);
            !(first..first + RANGE_INDEXES).any(&in_use)
        };
        let Self { map, bases, .. } = self;
        bases.retain(|range, base| {
            let gone = idle(range, *base) && map.remove(&RangePod(*range)).is_ok();
            !gone
        });
    }
}

/// Which of all ranges has a base: the opposite of [`Range::base`].
fn place(range: Range, base: u32) -> u32 {
    base.wrapping_add(range.number * RANGE_INDEXES).wrapping_sub(IFINDEX_MAX) / RANGE_INDEXES
}

fn refused(e: &MapError) -> KernelError {
    KernelError::from_chain("fill map BASES", e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_range_is_found_from_its_base() {
        for range in [Range::of(7, 3), Range::of(7, 65_535)] {
            for at in [0, 1, 17, RANGES_MAX - 1] {
                assert_eq!(place(range, range.base(at)), at);
            }
        }
    }
}
