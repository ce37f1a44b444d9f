//! The CPUs of this machine, by number. Numbers may have gaps, and CPUs come and go.

use std::{collections::BTreeSet, fs, io};

use super::KernelError;

/// Sets of CPUs as the kernel tells them apart (`Documentation/admin-guide/cputopology.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CpuList {
    /// All that there may ever be until the next boot.
    Possible,
    /// Those that are plugged in.
    Present,
    /// Those that run.
    Online,
}

impl CpuList {
    /// Reads it, as it is now.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub(super) fn read(self) -> Result<BTreeSet<u32>, KernelError> {
        let file = match self {
            Self::Possible => "/sys/devices/system/cpu/possible",
            Self::Present => "/sys/devices/system/cpu/present",
            Self::Online => "/sys/devices/system/cpu/online",
        };
        let cpus = fs::read_to_string(file).and_then(|text| parse(&text));
        cpus.map_err(|error| KernelError::from_chain(format!("read `{file}`"), &error))
    }
}

/// How long maps are that have something for each CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCount {
    /// Values of an element of a per-CPU map: one for each possible CPU.
    pub values: u32,
    /// Elements of an array by CPU number: the highest number, plus one.
    pub numbers: u32,
}

impl CpuCount {
    /// That of this machine.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn here() -> Result<Self, KernelError> {
        CpuList::Possible.read().map(|possible| Self::of(&possible))
    }

    fn of(possible: &BTreeSet<u32>) -> Self {
        let count = u32::try_from(possible.len()).unwrap_or(u32::MAX);
        Self { values: count.max(1), numbers: possible.last().map_or(1, |last| last.saturating_add(1)) }
    }

    /// That of a machine whose CPUs have numbers without gaps.
    #[must_use]
    pub const fn without_gaps(cpus: u32) -> Self {
        Self { values: cpus, numbers: cpus }
    }
}

/// A list of numbers and ranges, `0-3,8`: as `bitmap_print_to_pagebuf` writes it.
fn parse(text: &str) -> io::Result<BTreeSet<u32>> {
    let number = |text: &str| {
        text.parse::<u32>().map_err(|error| io::Error::other(format!("`{text}` is no CPU's number: {error}")))
    };
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(number(first)?..=number(last)?);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_gaps_make_arrays_longer_than_there_are_cpus() {
        for (text, values, numbers) in
            [("0\n", 1, 1), ("0-3\n", 4, 4), ("0,2-3\n", 3, 4), ("0-1,126-127\n", 4, 128), ("\n", 1, 1)]
        {
            assert_eq!(CpuCount::of(&parse(text).expect("a list")), CpuCount { values, numbers }, "{text}");
        }
        assert_eq!(parse("0-1,4").expect("a list"), BTreeSet::from([0, 1, 4]));
        assert!(parse("0-x").is_err());
    }

    #[test]
    fn online_cpus_are_present_and_present_ones_possible() {
        let [possible, present, online] =
            [CpuList::Possible, CpuList::Present, CpuList::Online].map(|set| set.read().expect("Linux says it"));
        assert!(!online.is_empty() && online.is_subset(&present) && present.is_subset(&possible));
    }
}
