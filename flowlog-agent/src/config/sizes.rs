//! The table `[kernel]` of the file: how large the kernel's half is made.

use flowlog_ebpf::abi::RING_BYTES_MIN;
use flowlog_kernel::Sizes;
use flowlog_model::rule::InvalidField;

use super::RawSizes;

impl RawSizes {
    /// Sizes that can be: what is left out is the default.
    ///
    /// # Errors
    /// Naming the key, its value and the rule.
    pub(super) fn check(&self, interfaces: usize) -> Result<Sizes, InvalidField> {
        let default = Sizes::default();
        let power = |field, value: Option<(u32, String)>, default: u32, min: u32, max: u32| match value {
            None => Ok(default),
            Some((v, _)) if v.is_power_of_two() && (min..=max).contains(&v) => Ok(v),
            Some((_, text)) => {
                Err(InvalidField::new(field, text, format!("must be a power of two from {min} to {max}")))
            }
        };
        let slots = |value: Option<u32>| value.map(|v| (v, v.to_string()));
        let interfaces_max = self.interfaces_max.unwrap_or(default.interfaces_max);
        if interfaces_max == u16::MAX {
            return Err(InvalidField::new(
                "kernel.interfaces_max",
                interfaces_max.to_string(),
                "must be at most 65534",
            ));
        }
        if interfaces > usize::from(interfaces_max) {
            let rule = format!("more than `kernel.interfaces_max` ({interfaces_max}, at most 65534); raise it");
            return Err(InvalidField::new("interface", interfaces.to_string(), rule));
        }
        // What is more than 4 GiB is too much as well.
        let ring_bytes = self.ring_bytes.clone();
        let ring_bytes = ring_bytes.map(|w| (u32::try_from(w.is.0).unwrap_or(u32::MAX), w.text));
        Ok(Sizes {
            // Up to 4 Mi slots: 640 MiB for each CPU.
            passed_slots: power("kernel.cache_slots", slots(self.cache_slots), default.passed_slots, 16, 1 << 22)?,
            refused_slots: power(
                "kernel.refused_slots",
                slots(self.refused_slots),
                default.refused_slots,
                16,
                1 << 22,
            )?,
            ring_bytes: power("kernel.ring_bytes", ring_bytes, default.ring_bytes, RING_BYTES_MIN, 1 << 30)?,
            interfaces_max,
        })
    }
}
