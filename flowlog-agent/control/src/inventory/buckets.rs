//! Whose bucket is whose, and how each is reached. Pure.
//!
//! A bucket belongs to the contract whose entry names it best: its very name, else the longest pattern. What a contract's entry does
//! not say is as the contract's own `buckets` say, else as `[buckets]`, else as the agent's configuration.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use flowlog_model::{
    S3Options,
    rule::{Location, bucket_and_prefix},
};
use serde::Deserialize;

use super::Contract;

/// Where buckets are that no entry says more of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BucketPlace {
    /// Where the agent's own configuration says.
    #[default]
    Configured,
    /// At this S3 server.
    S3(S3Options),
    /// Each is a directory below a directory that is called by its contract, below this one.
    Directory(PathBuf),
}

/// How a server is reached, as far as an entry says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reach {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub path_style: Option<bool>,
    pub allow_http: Option<bool>,
    pub credentials_file: Option<PathBuf>,
    pub acl: Option<bool>,
}

impl Reach {
    /// What it says, over what is said elsewhere.
    pub(super) fn over(&self, base: S3Options) -> S3Options {
        S3Options {
            endpoint: self.endpoint.clone().or(base.endpoint),
            region: self.region.clone().or(base.region),
            path_style: self.path_style.unwrap_or(base.path_style),
            allow_http: self.allow_http.unwrap_or(base.allow_http),
            credentials_file: self.credentials_file.clone().or(base.credentials_file),
            acl: self.acl.unwrap_or(base.acl),
        }
    }

    /// Credentials are for one server: another one must not get to see what they sign.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.endpoint.is_some() && self.credentials_file.is_none() {
            return Err("an `endpoint` of its own needs a `credentials_file` of its own beside it".to_owned());
        }
        Ok(())
    }
}

/// The name of a bucket, or how the names of several begin: `flows-a`, `team-a-*`, `*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Pattern {
    Name(String),
    Begins(String),
}

impl Pattern {
    /// How well it names a bucket; `None`: not at all.
    fn matches(&self, bucket: &str) -> Option<usize> {
        match self {
            Self::Name(name) => (name == bucket).then_some(usize::MAX),
            Self::Begins(start) => bucket.starts_with(start.as_str()).then_some(start.len()),
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let Some(start) = s.strip_suffix('*') else {
            return match bucket_and_prefix(s) {
                Ok((name, None)) => Ok(Self::Name(name)),
                _ => Err(format!(
                    "bucket name `{}`: not a valid name of a bucket, nor its beginning and `*`",
                    s.escape_debug()
                )),
            };
        };
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if start.chars().all(allowed) {
            return Ok(Self::Begins(start.to_owned()));
        }
        Err(format!(
            "bucket name `{}`: a pattern is the beginning of a name (lower-case letters, digits, `-`, `.`) and one `*` at its end",
            s.escape_debug()
        ))
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Begins(start) => write!(f, "{start}*"),
        }
    }
}

/// A contract's bucket, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub pattern: Pattern,
    pub contract: Contract,
    pub reach: Reach,
}

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketRegistry {
    pub place: BucketPlace,
    pub(super) contracts: BTreeMap<Contract, Reach>,
    pub(super) owned: Vec<Owned>,
}

impl From<BucketPlace> for BucketRegistry {
    fn from(place: BucketPlace) -> Self {
        Self { place, ..Self::default() }
    }
}

impl BucketRegistry {
    /// Where a bucket of a contract is. Whether the contract has such a bucket is another question: [`BucketRegistry::has`].
    #[must_use]
    pub(crate) fn location(&self, contract: &Contract, bucket: &str) -> Location {
        match &self.place {
            BucketPlace::Directory(root) => Location::Directory(root.join(contract.as_str()).join(bucket)),
            BucketPlace::Configured | BucketPlace::S3(_) => {
                Location::OfContract { contract: contract.as_str().to_owned(), bucket: bucket.to_owned() }
            }
        }
    }

    /// Whether a contract has a bucket of this name.
    #[must_use]
    pub(crate) fn has(&self, contract: &Contract, bucket: &str) -> bool {
        match self.location(contract, bucket) {
            Location::Directory(dir) => dir.is_dir(),
            _ => self.owned(contract.as_str(), bucket).is_some(),
        }
    }

    /// How a bucket is reached: the operator's own as `[buckets]` or the configuration says, a contract's as its entry says. `None`: the
    /// contract has no such bucket (any more).
    #[must_use]
    pub fn options(&self, location: &Location, configured: &S3Options) -> Option<S3Options> {
        let node = match &self.place {
            BucketPlace::S3(options) => options.clone(),
            BucketPlace::Configured | BucketPlace::Directory(_) => configured.clone(),
        };
        let Location::OfContract { contract, bucket } = location else { return Some(node) };
        let owned = self.owned(contract, bucket)?;
        Some(owned.reach.over(match self.contracts.get(&owned.contract) {
            Some(contracts) => contracts.over(node),
            None => node,
        }))
    }

    /// The entry that makes a bucket the contract's.
    fn owned(&self, contract: &str, bucket: &str) -> Option<&Owned> {
        let best = self.owned.iter().filter_map(|o| o.pattern.matches(bucket)).max()?;
        self.owned.iter().find(|o| o.contract.as_str() == contract && o.pattern.matches(bucket) == Some(best))
    }

    /// The server of an entry, as far as the inventory says; `None`: the configuration's.
    fn endpoint<'a>(&'a self, owned: &'a Owned) -> Option<&'a str> {
        let contracts = self.contracts.get(&owned.contract).and_then(|r| r.endpoint.as_deref());
        let nodes = match &self.place {
            BucketPlace::S3(options) => options.endpoint.as_deref(),
            BucketPlace::Configured | BucketPlace::Directory(_) => None,
        };
        owned.reach.endpoint.as_deref().or(contracts).or(nodes)
    }

    /// Takes out what two contracts claim at one server; returns what is wrong in words. Neither has it: nobody's objects go astray.
    pub(super) fn settle_claims(&mut self) -> Vec<String> {
        let rival = |one: &Owned| {
            let same = |o: &&Owned| {
                o.pattern == one.pattern && o.contract != one.contract && self.endpoint(o) == self.endpoint(one)
            };
            self.owned.iter().find(same).map(|o| o.contract.clone())
        };
        let rivals: Vec<Option<Contract>> = self.owned.iter().map(rival).collect();
        let mut problems = Vec::new();
        let mut rivals = rivals.into_iter();
        self.owned.retain(|owned| match rivals.next().flatten() {
            None => true,
            Some(other) => {
                let Owned { pattern, contract, .. } = owned;
                problems.push(format!(
                    "bucket `{pattern}`: contracts {contract} and {other} both have it at one server; it belongs to one"
                ));
                false
            }
        });
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(n: &str) -> Contract {
        n.parse().expect("contract")
    }

    fn owned(pattern: &str, of: &str, reach: Reach) -> Owned {
        Owned { pattern: pattern.parse().expect("pattern"), contract: contract(of), reach }
    }

    fn at(endpoint: &str) -> Reach {
        Reach { endpoint: Some(endpoint.to_owned()), credentials_file: Some("/keys".into()), ..Reach::default() }
    }

    #[test]
    fn a_bucket_is_the_contracts_whose_entry_names_it_best() {
        let all = [("*", "1"), ("team-*", "2"), ("team-a-*", "1"), ("team-a-flows", "3")];
        let buckets = BucketRegistry {
            owned: all.map(|(pattern, of)| owned(pattern, of, Reach::default())).to_vec(),
            ..BucketRegistry::default()
        };
        for (bucket, of) in [("other", "1"), ("team", "1"), ("team-b", "2"), ("team-a-x", "1"), ("team-a-flows", "3")] {
            let has: Vec<&str> =
                ["1", "2", "3", "4"].into_iter().filter(|n| buckets.has(&contract(n), bucket)).collect();
            assert_eq!(has, [of], "{bucket}");
        }
        assert!(!BucketRegistry::default().has(&contract("1"), "flows"), "nobody's is nobody's");
    }

    #[test]
    fn what_an_entry_does_not_say_its_contract_says_and_then_the_node() {
        let node = S3Options { endpoint: Some("https://node".to_owned()), path_style: true, ..S3Options::default() };
        let region = Reach { region: Some("eu".to_owned()), ..Reach::default() };
        let buckets = BucketRegistry {
            place: BucketPlace::S3(node.clone()),
            contracts: BTreeMap::from([(contract("1"), at("https://one"))]),
            owned: vec![owned("a-flows", "1", region), owned("b-flows", "2", Reach::default())],
        };
        let of =
            |n: &str, bucket: &str| buckets.options(&buckets.location(&contract(n), bucket), &S3Options::default());
        let first = of("1", "a-flows").expect("its own");
        assert_eq!(
            (first.endpoint.as_deref(), first.region.as_deref(), first.path_style, first.credentials_file),
            (Some("https://one"), Some("eu"), true, Some("/keys".into()))
        );
        assert_eq!(of("2", "b-flows"), Some(node.clone()));
        assert_eq!((of("2", "a-flows"), of("1", "c-flows")), (None, None));
        let operators = Location::Bucket("a-flows".to_owned());
        assert_eq!(buckets.options(&operators, &S3Options::default()), Some(node));
    }

    #[test]
    fn what_two_contracts_claim_at_one_server_is_nobodys() {
        let claims = |second: Reach| BucketRegistry {
            owned: vec![
                owned("flows", "1", Reach::default()),
                owned("flows", "2", second),
                owned("more", "2", Reach::default()),
            ],
            ..BucketRegistry::default()
        };
        let mut one_server = claims(Reach::default());
        assert_eq!(one_server.settle_claims().len(), 2);
        assert_eq!((one_server.has(&contract("1"), "flows"), one_server.has(&contract("2"), "more")), (false, true));
        let mut two_servers = claims(at("https://other"));
        assert!(two_servers.settle_claims().is_empty());
        assert!(two_servers.has(&contract("1"), "flows") && two_servers.has(&contract("2"), "flows"));
    }

    #[test]
    fn below_a_directory_the_first_level_is_the_contracts() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(dir.path().join("1/flows")).expect("bucket");
        let buckets = BucketRegistry::from(BucketPlace::Directory(dir.path().to_owned()));
        assert_eq!(buckets.location(&contract("1"), "flows"), Location::Directory(dir.path().join("1/flows")));
        assert!(buckets.has(&contract("1"), "flows") && !buckets.has(&contract("2"), "flows"));
    }

    #[test]
    fn names_and_patterns_are_checked() {
        for good in ["flows", "team-a-*", "*"] {
            assert_eq!(good.parse::<Pattern>().expect(good).to_string(), good);
        }
        for bad in ["", "fl", "a/b", "a*b", "**", "Team-*", "flows/*", "f\u{1b}*"] {
            let words = bad.parse::<Pattern>().expect_err(bad);
            assert!(words.starts_with(&format!("bucket name `{}`", bad.escape_debug())), "{words}");
        }
        assert!(at("https://x").check().is_ok());
        assert!(Reach { credentials_file: None, ..at("https://x") }.check().is_err());
    }
}
