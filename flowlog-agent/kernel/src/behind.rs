//! The map `BEHIND`: which next hops are behind which watched ports of bridges.
#![allow(unsafe_code, reason = "a plain-old-data marker for the shared struct")]

use std::collections::BTreeMap;

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData, MapError},
};
use flowlog_ebpf::abi::{BEHIND_MAX, NextHop};

use super::{KernelError, programs::take};

/// [`NextHop`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct NextHopPod(NextHop);
// SAFETY: `NextHop` is `repr(C)`, six `u32` (its size is asserted in `abi`).
unsafe impl Pod for NextHopPod {}

/// See the module's head.
pub(super) struct Behind {
    map: HashMap<MapData, NextHopPod, u32>,
    /// What is in it.
    known: BTreeMap<NextHop, u32>,
}

impl Behind {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map: HashMap<_, NextHopPod, u32> = take(ebpf, "BEHIND")?.try_into().map_err(|e: MapError| refused(&e))?;
        let known = map.iter().map(|entry| entry.map(|(hop, spot)| (hop.0, spot)));
        let known = known.collect::<Result<_, MapError>>().map_err(|e| refused(&e))?;
        Ok(Self { map, known })
    }

    /// Makes it say this; returns how many it has no room for.
    pub(super) fn set(&mut self, wanted: &BTreeMap<NextHop, u32>) -> Result<usize, KernelError> {
        for gone in self.known.keys().filter(|hop| !wanted.contains_key(hop)) {
            // It may have gone by itself with a map that was made anew.
            let _ = self.map.remove(&NextHopPod(*gone));
        }
        self.known.retain(|hop, _| wanted.contains_key(hop));
        for (hop, spot) in wanted {
            let room = self.known.len() < BEHIND_MAX as usize || self.known.contains_key(hop);
            if room && self.known.get(hop) != Some(spot) {
                self.map.insert(&NextHopPod(*hop), spot, 0).map_err(|e| refused(&e))?;
                self.known.insert(*hop, *spot);
            }
        }
        Ok(wanted.len() - self.known.len())
    }
}

fn refused(e: &MapError) -> KernelError {
    KernelError::from_chain("fill map BEHIND", e)
}
