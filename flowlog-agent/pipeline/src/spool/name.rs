//! Names in the spool, bounded whatever they stand for.
//!
//! A name is what it stands for, with `/` and `%` percent-encoded, so that a person can read it. What is too long for a file
//! name is called by its digest, `%~` and hexadecimal; then the file begins with a line that says what it is.

use std::io::{self, Read};

use flowlog_model::{
    ids::hex,
    rule::{Location, Target},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Longest file name that Linux file systems take (`NAME_MAX` of `include/uapi/linux/limits.h`).
const NAME_BYTES_MAX: usize = 255;
/// Room for what is put behind a name while its file is on its way.
const SUFFIX_BYTES_MAX: usize = 8;
/// No escaped name begins like this: behind `%` there are only `25` and `2F`.
const DIGEST: &str = "%~";
/// Longest first line: a path of 4,096 bytes and a key, each byte escaped.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// What a file is, in its first line; only where its names do not say so.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileHead {
    pub location: String,
    pub key: String,
}

/// The name of something.
pub(super) fn name(of: &str) -> String {
    let escaped = of.replace('%', "%25").replace('/', "%2F");
    if escaped.len() + SUFFIX_BYTES_MAX <= NAME_BYTES_MAX {
        return escaped;
    }
    format!("{DIGEST}{}", hex(&Sha256::digest(of.as_bytes())))
}

/// What has this name; `None`: it is a digest.
pub(super) fn meant(name: &str) -> Option<String> {
    (!is_digest(name)).then(|| name.replace("%2F", "/").replace("%25", "%"))
}

pub(super) fn is_digest(name: &str) -> bool {
    name.starts_with(DIGEST)
}

/// The name of a location's directory.
pub(super) fn of_location(location: &Location) -> String {
    name(&location.to_string())
}

/// The location that was written so.
pub(super) fn location(text: &str) -> Option<Location> {
    text.parse::<Target>().ok().filter(|t| t.prefix.is_none()).map(|t| t.location)
}

/// The first line of an object's file; empty where the names say it all.
pub(super) fn head(place: &Location, key: &str) -> Vec<u8> {
    let location = place.to_string();
    if !is_digest(&name(&location)) && !is_digest(&name(key)) {
        return Vec::new();
    }
    let head = FileHead { location, key: key.to_owned() };
    let mut line = serde_json::to_vec(&head).expect("two strings are JSON");
    line.push(b'\n');
    line
}

/// Reads the first line of a file that has one.
pub(super) fn read_head(file: &mut dyn Read) -> io::Result<FileHead> {
    let mut line = Vec::new();
    for byte in io::BufReader::new(file.take(HEAD_BYTES_MAX as u64)).bytes() {
        match byte? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    serde_json::from_slice(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_stands_for_or_is_a_digest_and_always_fits() {
        for of in ["web/year=2026/a_1.parquet", "s3://flows", "file:///var/flow%logs/%2F", "%~x"] {
            assert_eq!(meant(&name(of)).as_deref(), Some(of));
        }
        // 244 bytes and the two of each further slash.
        let fits = "k".repeat(247);
        let long = "k".repeat(248);
        assert_eq!(meant(&name(&fits)), Some(fits));
        assert!(is_digest(&name(&long)) && meant(&name(&long)).is_none());
        assert!(name(&"/".repeat(5_000)).len() + SUFFIX_BYTES_MAX <= NAME_BYTES_MAX);
        assert_ne!(name(&long), name(&format!("{long}k")));
    }

    #[test]
    fn the_first_line_says_what_a_digest_cannot() {
        let bucket = Location::Bucket("flows".to_owned());
        assert!(head(&bucket, "web/a.parquet").is_empty());
        let key = format!("{}\n\"/a", "k".repeat(300));
        let line = head(&bucket, &key);
        let mut file = [&line[..], b"PAR1\n"].concat();
        assert_eq!(line.split(|b| *b == b'\n').count(), 2, "one line");
        assert_eq!(read_head(&mut &file[..]).expect("a head"), FileHead { location: "s3://flows".to_owned(), key });
        file.remove(0);
        assert!(read_head(&mut &file[..]).is_err(), "no head");
    }
}
