//! Where objects go: a local directory or an S3 bucket, with an optional prefix.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{InvalidField, NAME_BYTES_MAX, key_part};

/// Beginnings and endings that S3 keeps for itself ("Bucket naming rules" of its user guide).
const RESERVED_STARTS: [&str; 3] = ["xn--", "sthree-", "amzn-s3-demo-"];
const RESERVED_ENDS: [&str; 4] = ["-s3alias", "--ol-s3", ".mrap", "--x-s3"];

/// The store part of a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Location {
    /// A local directory; it must exist, or its parent must.
    Directory(PathBuf),
    /// An S3 bucket of the node's operator.
    Bucket(String),
    /// An S3 bucket of a contract: the inventory says how it is reached.
    OfContract {
        /// Number of the contract.
        contract: String,
        /// Name of the bucket.
        bucket: String,
    },
}

/// A target: location and optional prefix. `file:///dir`, `./dir`, `s3://bucket`, `s3://bucket/prefix`, `s3://contract@bucket`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The bucket or directory.
    pub location: Location,
    /// First part of every key, without slashes.
    pub prefix: Option<String>,
}

impl Target {
    /// The same target with a prefix.
    ///
    /// # Errors
    /// If the prefix is not one key-safe part.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self, InvalidField> {
        self.prefix = Some(key_part("prefix", prefix)?);
        Ok(self)
    }
}

/// Reads a bucket and an optional prefix as the cloud API has them: `bucket[/prefix]`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn bucket_and_prefix(s: &str) -> Result<(String, Option<String>), Vec<InvalidField>> {
    let (bucket, prefix) = s.split_once('/').map_or((s, None), |(b, p)| (b, Some(p)));
    let mut problems = Vec::new();
    if let Err(rule) = bucket_rules(bucket) {
        problems.push(InvalidField::new("bucket", s.escape_debug().to_string(), rule));
    }
    // As `bucket/`: no prefix.
    let prefix = match prefix.filter(|p| !p.is_empty()).map(|p| key_part("prefix", p)).transpose() {
        Ok(prefix) => prefix,
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    if problems.is_empty() { Ok((bucket.to_owned(), prefix)) } else { Err(problems) }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => write!(f, "file://{}", dir.display()),
            Self::Bucket(bucket) => write!(f, "s3://{bucket}"),
            Self::OfContract { contract, bucket } => write!(f, "s3://{contract}@{bucket}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.fmt(f)?;
        self.prefix.as_ref().map_or(Ok(()), |p| write!(f, "/{p}"))
    }
}

impl FromStr for Target {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let invalid = |rule: &str| InvalidField::new("target", s, rule);
        if let Some(rest) = s.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').map_or((rest, ""), |(b, p)| (b, p));
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            let target = Self { location: bucket_of(s, bucket)?, prefix: None };
            return if prefix.is_empty() { Ok(target) } else { target.with_prefix(prefix) };
        }
        let path = match s.split_once("://") {
            None => s,
            Some(("file", path)) if path.starts_with('/') => path,
            Some(("file", _)) => return Err(invalid("write a file target as `file:///absolute/path`")),
            Some(_) => return Err(invalid("use `s3://bucket[/prefix]`, `file:///path` or a local path")),
        };
        if path.is_empty() || path.contains('\0') {
            return Err(invalid("name a directory, or a bucket as `s3://bucket[/prefix]`"));
        }
        Ok(Self { location: Location::Directory(path.into()), prefix: None })
    }
}

/// `bucket`, or `contract@bucket`: a bucket's name has no `@`.
fn bucket_of(target: &str, text: &str) -> Result<Location, InvalidField> {
    let (contract, bucket) = text.split_once('@').map_or((None, text), |(c, b)| (Some(c), b));
    bucket_rules(bucket).map_err(|rule| InvalidField::new("target", target, format!("bucket `{bucket}`: {rule}")))?;
    let bucket = bucket.to_owned();
    Ok(match contract {
        None => Location::Bucket(bucket),
        Some(contract) => Location::OfContract { contract: key_part("target", contract)?, bucket },
    })
}

/// S3's bucket naming rules.
fn bucket_rules(bucket: &str) -> Result<(), &'static str> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let good = (3..=NAME_BYTES_MAX).contains(&bucket.len())
        && edge(bucket.chars().next())
        && edge(bucket.chars().last())
        && bucket.chars().all(inner)
        && !bucket.contains("..")
        && !RESERVED_STARTS.iter().any(|r| bucket.starts_with(r))
        && !RESERVED_ENDS.iter().any(|r| bucket.ends_with(r))
        && bucket.parse::<std::net::Ipv4Addr>().is_err();
    if good {
        return Ok(());
    }
    Err(
        "not a valid bucket name: use 3 to 63 lower-case letters, digits, `-` or `.`, starting and ending with a letter or \
         digit, and none of S3's reserved beginnings and endings",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse_and_print() {
        for (text, printed) in [
            ("s3://flows", "s3://flows"),
            ("s3://flows/", "s3://flows"),
            ("s3://flows/team-a", "s3://flows/team-a"),
            ("s3://31960002@flows/team-a", "s3://31960002@flows/team-a"),
            ("file:///var/flows", "file:///var/flows"),
            ("/var/flows", "file:///var/flows"),
        ] {
            assert_eq!(text.parse::<Target>().expect(text).to_string(), printed);
        }
        let relative = "./flows".parse::<Target>().expect("relative");
        assert_eq!(relative.location, Location::Directory("./flows".into()), "as it is written");
    }

    #[test]
    fn a_bucket_and_its_prefix_are_read_and_everything_wrong_with_them_is_said_at_once() {
        assert_eq!(bucket_and_prefix("flows"), Ok(("flows".to_owned(), None)));
        assert_eq!(bucket_and_prefix("flows/"), Ok(("flows".to_owned(), None)));
        assert_eq!(bucket_and_prefix("flows/team-a"), Ok(("flows".to_owned(), Some("team-a".to_owned()))));
        for bad in
            ["", "ab", "Flows", "xn--flows", "flows-s3alias", "192.168.0.1", "fl\u{1}ows", "flows/a/b", "flows/a%2fb"]
        {
            assert_eq!(bucket_and_prefix(bad).expect_err(bad).len(), 1, "{bad}");
        }
        let both = bucket_and_prefix("Flows/a/b").expect_err("both");
        assert_eq!(both.iter().map(|p| p.field.as_ref()).collect::<Vec<_>>(), ["bucket", "prefix"]);
    }

    #[test]
    fn bad_targets_name_field_value_and_rule() {
        for bad in ["s3://", "s3://ab", "s3://Big", "s3://1.2.3.4", "s3://a..b", "gs://x", "file://rel/x", ""] {
            let error = bad.parse::<Target>().expect_err(bad).to_string();
            assert!(error.starts_with(&format!("target `{bad}`: ")), "{error}");
        }
        for bad in ["s3://flows/a/b", "s3://flows/a%2Fb"] {
            let error = bad.parse::<Target>().expect_err(bad).to_string();
            assert!(error.starts_with("prefix `"), "{error}");
        }
    }
}
