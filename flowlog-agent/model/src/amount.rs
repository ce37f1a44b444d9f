//! Amounts as people read and write them: numbers, bytes, lengths of time.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

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

/// Units of a size with the bytes they have.
const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Why an amount is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAmount {
    /// It is no length of time.
    #[error("`{0}`: {HOW}")]
    Time(String),
    /// It is one, and not of whole seconds.
    #[error("`{0}`: is not of whole seconds")]
    Parts(String),
    /// It is no number of bytes.
    #[error("`{0}`: use a number of bytes such as `1048576`, `8MiB` or `2GB`; a number alone is bytes")]
    Size(String),
    /// The unit has two meanings.
    #[error("`{0}`: `{unit}` means 1000s to some and 1024s to others; write {binary} or {decimal}", unit = .1.0, binary = .1.1, decimal = .1.2)]
    Ambiguous(String, (String, &'static str, &'static str)),
    /// There are too many.
    #[error("`{0}`: is more than there can be")]
    TooMany(String),
}

/// A length of time in whole seconds, as it stands in a configuration: `600` or `"10m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Secs(pub u64);

impl FromStr for Secs {
    type Err = NoAmount;

    fn from_str(text: &str) -> Result<Self, NoAmount> {
        let time = parse_duration(text).map_err(|_how| NoAmount::Time(text.to_owned()))?;
        if time.subsec_nanos() == 0 { Ok(Self(time.as_secs())) } else { Err(NoAmount::Parts(text.to_owned())) }
    }
}

/// A number of bytes, as it stands in a configuration: `8388608` or `"8MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = NoAmount;

    /// A number of bytes, or one with its unit. Units are read as they are written in standards: `M` alone, or `KB`, is neither.
    fn from_str(text: &str) -> Result<Self, NoAmount> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = &text[..text.len() - unit.len()];
        let unit = unit.strip_prefix(' ').filter(|unit| !unit.is_empty()).unwrap_or(unit);
        let no_size = || NoAmount::Size(text.to_owned());
        let each = match (unit, SIZES.iter().find(|(name, _)| *name == unit)) {
            ("", _) => 1,
            (_, Some((_, each))) => *each,
            (_, None) => {
                let letter = unit.trim_end_matches(['b', 'B', 'i', 'I']);
                let both = match letter.to_ascii_lowercase().as_str() {
                    "k" => ("`KiB`", "`kB`"),
                    "m" => ("`MiB`", "`MB`"),
                    "g" => ("`GiB`", "`GB`"),
                    "t" => ("`TiB`", "`TB`"),
                    _ => return Err(no_size()),
                };
                return Err(NoAmount::Ambiguous(text.to_owned(), (unit.to_owned(), both.0, both.1)));
            }
        };
        if number.is_empty() {
            return Err(no_size());
        }
        let too_many = || NoAmount::TooMany(text.to_owned());
        let number: u64 = number.parse().map_err(|_overflow| too_many())?;
        number.checked_mul(each).map(Self).ok_or_else(too_many)
    }
}

/// Reads a number, or text of this type.
struct NumberOr<T>(fn(u64) -> T);

impl<T: FromStr<Err = NoAmount>> de::Visitor<'_> for NumberOr<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or one with its unit in quotes")
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<T, E> {
        Ok(self.0(n))
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<T, E> {
        u64::try_from(n).map(self.0).map_err(|_negative| E::invalid_value(de::Unexpected::Signed(n), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Secs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberOr(Self))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberOr(Self))
    }
}

/// An amount, and how it was written: whoever is told that it will not do finds that in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written<T> {
    /// What it means.
    pub is: T,
    /// What was written.
    pub text: String,
}

impl<T: FromStr<Err = NoAmount>> de::Visitor<'_> for Written<NumberOr<T>> {
    type Value = Written<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.is.expecting(f)
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Written<T>, E> {
        self.is.visit_u64(n).map(|is| Written { is, text: n.to_string() })
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<Written<T>, E> {
        self.is.visit_i64(n).map(|is| Written { is, text: n.to_string() })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Written<T>, E> {
        self.is.visit_str(text).map(|is| Written { is, text: text.to_owned() })
    }
}

macro_rules! written {
    ($($amount:ident),*) => {$(
        impl<'de> Deserialize<'de> for Written<$amount> {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(Written { is: NumberOr($amount), text: String::new() })
            }
        }
    )*};
}

written!(Secs, Size);

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

    #[test]
    fn sizes_have_the_units_of_standards_and_what_has_two_meanings_is_refused_with_both() {
        for (text, bytes) in [
            ("0", 0),
            ("8388608", 8 << 20),
            ("512B", 512),
            ("16KiB", 16 << 10),
            ("8MiB", 8 << 20),
            ("8 MiB", 8 << 20),
            ("2GiB", 2 << 30),
            ("1TiB", 1 << 40),
            ("8kB", 8_000),
            ("8MB", 8_000_000),
            ("2GB", 2_000_000_000),
            ("3TB", 3_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["8M", "8m", "8Mb", "8mib", "8mb", "1G", "1KB", "1K", "4t"] {
            let error = bad.parse::<Size>().expect_err(bad).to_string();
            assert!(error.contains("1000s to some and 1024s to others") && error.contains("iB` or `"), "{error}");
        }
        for bad in ["", "MiB", "-1", "+1", "1.5GiB", "8  MiB", "MiB8", "8x", "8 ", " 8", "1e3", "0x10"] {
            assert_eq!(bad.parse::<Size>(), Err(NoAmount::Size(bad.to_owned())), "{bad}");
        }
        for bad in ["99999999999999999999", "99999999TiB"] {
            assert_eq!(bad.parse::<Size>(), Err(NoAmount::TooMany(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn a_length_of_time_is_of_whole_seconds_where_it_is_counted_in_them() {
        assert_eq!(
            ["600", "10m", "1d"].map(|text| text.parse().map(|Secs(secs)| secs)),
            [Ok(600), Ok(600), Ok(86_400)]
        );
        assert!(matches!("500ms".parse::<Secs>(), Err(NoAmount::Parts(_))));
        assert!(matches!("soon".parse::<Secs>(), Err(NoAmount::Time(_))));
    }
}
