//! How large cache and ring are, and why: as somebody has said it, as what is pinned has it, or as is chosen for this machine.
//!
//! What is pinned comes before what would be chosen: more memory or CPUs, or another version's choice, are no reason to end a capture.

use flowlog_kernel::{
    Sizes,
    chosen::{Chosen, Machine, Why},
};
use flowlog_model::amount::bytes;
use serde::Serialize;

use crate::config::RawSizes;

/// Where a size comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SizeFrom {
    Configured,
    Pinned,
    Chosen,
}

/// A size of the kernel's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapSize {
    pub(crate) is: u32,
    pub(crate) from: SizeFrom,
    /// What a new capture would have, if nobody said it.
    pub(crate) chosen: Chosen,
}

/// The same, for people.
#[derive(Clone, Debug)]
pub(crate) struct SizeTold {
    pub(crate) key: &'static str,
    pub(crate) size: MapSize,
    /// As it would be written in the file.
    pub(crate) written: String,
    pub(crate) why: String,
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizing {
    machine: Machine,
    pub(crate) cache_slots: MapSize,
    pub(crate) ring_bytes: MapSize,
}

impl Sizing {
    /// Of what is said, what stands already, and this machine.
    pub(crate) fn new(said: &RawSizes, stands: Option<Sizes>, machine: Machine) -> Self {
        let size = |said: Option<u32>, stands: Option<u32>, chosen: Chosen| {
            let stands = stands.map_or((chosen.is, SizeFrom::Chosen), |is| (is, SizeFrom::Pinned));
            let (is, from) = said.map_or(stands, |is| (is, SizeFrom::Configured));
            MapSize { is, from, chosen }
        };
        let ring = said.ring_bytes.as_ref().map(|written| u32::try_from(written.is.0).unwrap_or(u32::MAX));
        Self {
            machine,
            cache_slots: size(said.cache_slots, stands.map(|s| s.passed_slots), machine.cache_slots()),
            ring_bytes: size(ring, stands.map(|s| s.ring_bytes), machine.ring_bytes()),
        }
    }

    pub(super) fn apply(&self, sizes: &mut Sizes) {
        sizes.passed_slots = self.cache_slots.is;
        sizes.ring_bytes = self.ring_bytes.is;
    }

    /// Each, for people.
    pub(crate) fn told(&self) -> [SizeTold; 2] {
        let (slots, ring) = (self.cache_slots, self.ring_bytes);
        [
            SizeTold {
                key: "kernel.cache_slots",
                size: slots,
                written: slots.is.to_string(),
                why: self.reason(slots, |n| n.to_string()),
            },
            SizeTold {
                key: "kernel.ring_bytes",
                size: ring,
                written: written(ring.is),
                why: self.reason(ring, |n| bytes(n.into())),
            },
        ]
    }

    /// Why a size is what it is, in words.
    fn reason(&self, size: MapSize, word: fn(u32) -> String) -> String {
        let MapSize { is, from, chosen } = size;
        let Machine { cpus, memory_bytes, .. } = self.machine;
        let memory = bytes(memory_bytes);
        let without = if is == chosen.is { String::new() } else { format!("; {} would be chosen", word(chosen.is)) };
        match (from, chosen.why) {
            (SizeFrom::Configured, _) => format!("configured{without}"),
            (SizeFrom::Pinned, _) if is == chosen.is => "as what is pinned has it".to_owned(),
            (SizeFrom::Pinned, _) => {
                format!("as what is pinned has it{without} for a new capture (`flowlog detach` ends this one)")
            }
            (SizeFrom::Chosen, Why::Usual) => format!("chosen: the usual, enough for {}", cpu_words(cpus)),
            (SizeFrom::Chosen, Why::Cpus) => format!("chosen for {} and {memory} of memory", cpu_words(cpus)),
            (SizeFrom::Chosen, Why::Memory { wanted }) => {
                format!("chosen for {memory} of memory; {} could use {}", cpu_words(cpus), word(wanted))
            }
        }
    }
}

fn cpu_words(n: u64) -> String {
    if n == 1 { "1 CPU".to_owned() } else { format!("{n} CPUs") }
}

/// A power of two as it would be written in the file.
fn written(bytes: u32) -> String {
    match bytes {
        n if n % (1 << 20) == 0 => format!("{}MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{}KiB", n >> 10),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine(cpus: u64, memory_bytes: u64) -> Machine {
        Machine { cpus, cpus_possible: cpus, memory_bytes }
    }

    fn said(text: &str) -> RawSizes {
        toml::from_str(text).expect("sizes")
    }

    #[test]
    fn what_is_said_wins_over_what_is_pinned_and_that_over_what_would_be_chosen() {
        let pinned = Sizes { passed_slots: 256, ring_bytes: 1 << 20, ..Sizes::default() };
        for (text, stands, slots, ring) in [
            (
                "",
                None,
                (65_536, "chosen for 128 CPUs and 512 GiB of memory"),
                ("64MiB", "chosen for 128 CPUs and 512 GiB of memory"),
            ),
            (
                "",
                Some(pinned),
                (
                    256,
                    "as what is pinned has it; 65536 would be chosen for a new capture (`flowlog detach` ends this one)",
                ),
                (
                    "1MiB",
                    "as what is pinned has it; 64 MiB would be chosen for a new capture (`flowlog detach` ends this one)",
                ),
            ),
            (
                "cache_slots = 1024\nring_bytes = '16KiB'",
                Some(pinned),
                (1_024, "configured; 65536 would be chosen"),
                ("16KiB", "configured; 64 MiB would be chosen"),
            ),
            (
                "cache_slots = 65536",
                None,
                (65_536, "configured"),
                ("64MiB", "chosen for 128 CPUs and 512 GiB of memory"),
            ),
        ] {
            let sizing = Sizing::new(&said(text), stands, machine(128, 512 * GIB));
            let told = sizing.told();
            let [said, said_of_ring] = &told;
            assert_eq!((said.size.is, said.why.as_str()), slots, "{text} {stands:?}");
            assert_eq!(said.written, slots.0.to_string());
            assert_eq!((said_of_ring.written.as_str(), said_of_ring.why.as_str()), ring, "{text} {stands:?}");
            let mut sizes = Sizes::default();
            sizing.apply(&mut sizes);
            assert_eq!((sizes.passed_slots, sizes.ring_bytes), (said.size.is, sizing.ring_bytes.is));
        }
    }

    #[test]
    fn a_small_machine_is_told_that_it_has_the_usual_and_a_tight_limit_what_it_takes() {
        let reason = |cpus, memory| Sizing::new(&said(""), None, machine(cpus, memory)).told().map(|told| told.why);
        assert_eq!(reason(1, GIB)[0], "chosen: the usual, enough for 1 CPU");
        assert_eq!(reason(128, GIB)[0], "chosen for 1.0 GiB of memory; 128 CPUs could use 65536");
        assert_eq!(reason(128, GIB)[1], "chosen for 1.0 GiB of memory; 128 CPUs could use 64 MiB");
    }
}
