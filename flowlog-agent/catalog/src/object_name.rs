//! What an object's name says: `…/INTERFACE_NODE_20261123T141000Z_0.parquet`. Pure.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use sha2::{Digest as _, Sha256};

/// How objects end that are tables. (`.log.gz` is text, which no table reads.)
pub(crate) const ENDING: &str = ".parquet";

/// Bytes of an address's SHA-256 that stand for it in memory: of 10^9 objects, two are alike with a chance of 10^-21.
const HASH_BYTES: usize = 16;

/// What stands for an object's address in memory.
pub(crate) fn hash(uri: &str) -> u128 {
    let digest = Sha256::digest(uri.as_bytes());
    digest.iter().take(HASH_BYTES).fold(0, |all, byte| all << 8 | u128::from(*byte))
}

/// The begin of an object's window, Unix seconds. `None`: it is none of flowlog's; engines call theirs otherwise.
pub(crate) fn window_start(key: &str) -> Option<i64> {
    let file = key.rsplit('/').next()?.strip_suffix(ENDING)?;
    let mut parts = file.rsplit('_');
    let sequence = parts.next()?;
    let time = parts.next()?;
    let stem = parts.next()?;
    if stem.is_empty() || sequence.is_empty() || !sequence.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let time = DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
    TimeZone::UTC.to_timestamp(time).ok().map(Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objects_name_says_when_its_window_begins() {
        for name in ["n-eth0_20270115T080000Z_0.parquet", "s3://b/p/web/5c1b-01_node_1_20270115T080000Z_599999.parquet"]
        {
            assert_eq!(window_start(name), Some(1_800_000_000), "{name}");
        }
    }

    #[test]
    fn addresses_are_told_apart() {
        assert_ne!(hash("s3://a/b"), hash("s3://a/c"));
        // The first bytes of `sha256sum </dev/null`.
        assert_eq!(hash(""), 0xe3b0_c442_98fc_1c14_9afb_f4c8_996f_b924);
    }

    #[test]
    fn files_of_engines_and_of_people_are_not_taken_for_objects() {
        for name in [
            "data/window_start_hour=2027-01-15-08/00000-5-3f1c2d4e-1111-2222-3333-444455556666-0-00001.parquet",
            "00000-0-3f1c2d4e-1111-2222-3333-444455556666.parquet",
            "compacted.parquet",
            "n-eth0_20270115T080000Z_0.log.gz",
            "n-eth0_20270115T080000Z_0.parquet#1",
            "n-eth0_20270115T080000Z_x.parquet",
            "_20270115T080000Z_0.parquet",
            "n-eth0_20271315T080000Z_0.parquet",
            "",
        ] {
            assert_eq!(window_start(name), None, "{name}");
        }
    }
}
