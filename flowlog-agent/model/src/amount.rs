//! Amounts as people read and write them: numbers, bytes, lengths of time.

use std::time::Duration;

/// Units of a length of time with the milliseconds they have, the largest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// What is said of a length of time that is none.
const HOW: &str = "use a length of time such as `90`, `30s`, `5m` or `1h30m`; a number alone is seconds";

/// Why this is no length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{HOW}")]
pub struct NoDuration;

/// Reads a length of time: a number of seconds, or numbers with their units, the largest first (`1h30m`, `500ms`).
///
/// # Errors
/// [`NoDuration`], with how it is written.
pub fn parse_duration(text: &str) -> Result<Duration, NoDuration> {
    if let Ok(secs) = digits(text) {
        return Ok(Duration::from_secs(secs));
    }
    let mut sum_ms = 0u64;
    let mut rest = text;
    let mut units = UNITS.iter();
    while !rest.is_empty() || text.is_empty() {
        let number = &rest[..rest.find(|c: char| !c.is_ascii_digit()).ok_or(NoDuration)?];
        let behind = &rest[number.len()..];
        let unit = &behind[..behind.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(behind.len())];
        // Each once, and none behind a smaller one.
        let (_, unit_ms) = units.find(|(name, _)| *name == unit).ok_or(NoDuration)?;
        let added = digits(number)?.checked_mul(*unit_ms).ok_or(NoDuration)?;
        sum_ms = sum_ms.checked_add(added).ok_or(NoDuration)?;
        rest = &behind[unit.len()..];
    }
    Ok(Duration::from_millis(sum_ms))
}

/// A number of digits alone, without a sign.
fn digits(text: &str) -> Result<u64, NoDuration> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number).ok_or(NoDuration)
}

/// A length of time, to one unit.
#[must_use]
pub fn duration(secs: i64) -> String {
    match secs {
        ..=119 => format!("{secs} s"),
        120..=7_199 => format!("{} min", secs / 60),
        7_200..=172_799 => format!("{} h", secs / 3_600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// A number with its thousands apart.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes, to three digits.
#[must_use]
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut whole = n;
    let mut rest = 0;
    let mut unit = 0;
    while whole >= 1_024 && unit + 1 < units.len() {
        rest = whole % 1_024;
        whole /= 1_024;
        unit += 1;
    }
    let tenth = rest * 10 / 1_024;
    if unit > 0 && whole < 10 { format!("{whole}.{tenth} {}", units[unit]) } else { format!("{whole} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_bytes_and_times_are_as_people_read_them() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1_023, 1_024, 1_536, 20 << 20].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "20 MiB"]);
        assert_eq!([5, 119, 120, 7_200, 200_000].map(duration), ["5 s", "119 s", "2 min", "2 h", "2 d"]);
    }

    #[test]
    fn a_number_alone_is_seconds_and_units_go_from_large_to_small() {
        for (text, ms) in [
            ("0", 0),
            ("10", 10_000),
            ("90s", 90_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("2s500ms", 2_500),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "",
            "s",
            "-1",
            "+1",
            "1.5m",
            "5 m",
            "1h30",
            "30m1h",
            "1m1m",
            "1w",
            "1S",
            "m5",
            "99999999999999999999h",
            "ü",
        ] {
            assert_eq!(parse_duration(bad), Err(NoDuration), "{bad}");
        }
    }
}
