//! What a configuration names beside itself: buckets, certificates, principals, inventory.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use flowlog_control::{
    certificate::{CertificateFacts, facts},
    flow_logs::principals::Principals,
    inventory::{load::Loader, source::follow::Sources},
};
use flowlog_host::{
    clock,
    trust::{self, Kind},
};
use flowlog_kernel::{
    netdev,
    probe::{Finding, State, finding},
};
use flowlog_model::{
    amount::duration,
    rule::{Location, Rule},
};
use flowlog_pipeline::upload::{Bucket, BucketError};
use tokio::task::JoinSet;

use crate::config::{Config, Manage};

/// A certificate that ends sooner should have been renewed.
const RENEWED_BEFORE_SECS: i64 = 14 * 86_400;

/// Whether objects can be made where each flow log's go. All are asked at the same time; none waits longer than a delivery would.
pub(super) async fn buckets(config: &Config) -> Vec<Finding> {
    let mut places: BTreeMap<(String, String), &Rule> = BTreeMap::new();
    let selecting = config.manage.iter().flat_map(|m| m.templates.all.iter().map(|t| &t.rule));
    for rule in config.captures.iter().map(|c| &c.rule).chain(selecting) {
        places.entry((rule.target.location.to_string(), rule.folder())).or_insert(rule);
    }
    let mut asked = JoinSet::new();
    for (at, ((_, folder), rule)) in places.into_iter().enumerate() {
        let location = rule.target.location.clone();
        let options = config.s3.clone();
        if let Location::Directory(dir) = &location
            && !dir.exists()
        {
            let absent = of_absent(dir);
            asked.spawn(async move { (at, absent) });
            continue;
        }
        asked.spawn(async move {
            let answer = match Bucket::open(&location, &options).map(Arc::new) {
                Ok(bucket) => bucket.probe(&folder).await,
                Err(error) => Err(error),
            };
            (at, of_bucket(&location, &folder, answer))
        });
    }
    let mut all = asked.join_all().await;
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, finding)| finding).collect()
}

fn of_bucket(location: &Location, folder: &str, answer: Result<(), BucketError>) -> Finding {
    let what = format!("target {location}");
    match answer {
        Ok(()) => finding(what, State::Ok, format!("takes objects below {folder}/")),
        Err(error) => finding(what, State::Missing, error.to_string()),
    }
}

/// A directory that is made when there is something for it. It is not made here.
fn of_absent(dir: &Path) -> Finding {
    let what = format!("target {}", dir.display());
    let there = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        Ok(()) => finding(what, State::Ok, "is not there yet, and can be made"),
        Err(error) => {
            finding(what, State::Missing, format!("is not there, and cannot be made in {}: {error}", there.display()))
        }
    }
}

/// Certificate, principals and inventory.
pub(super) fn files(config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    if let Some(file) = &config.s3.credentials_file {
        all.push(of_file("credentials", file, Kind::Secret));
    }
    let Some(manage) = &config.manage else { return all };
    if let Some((certificate, key)) = &manage.api.tls {
        all.push(of_certificate(facts(certificate, key), clock::now().wall.secs()));
    }
    all.extend(manage.principals.as_deref().map(of_principals));
    all.extend(of_inventory(manage));
    all
}

fn of_file(what: &str, path: &Path, kind: Kind) -> Finding {
    match trust::check(path, kind) {
        Ok(()) => finding(what, State::Ok, path.display().to_string()),
        Err(error) => finding(what, State::Missing, format!("{}: {error}", path.display())),
    }
}

fn of_certificate(read: Result<CertificateFacts, String>, now_secs: i64) -> Finding {
    const WHAT: &str = "TLS certificate";
    let facts = match read {
        Ok(facts) => facts,
        Err(problem) => return finding(WHAT, State::Missing, problem),
    };
    let names = if facts.names.is_empty() { "no name".to_owned() } else { facts.names.join(", ") };
    let left = facts.until_secs - now_secs;
    if left <= 0 {
        return finding(WHAT, State::Missing, format!("for {names}; expired {} ago: renew it", duration(-left)));
    }
    if facts.from_secs > now_secs {
        let words = format!("for {names}; good only in {}: is the clock right?", duration(facts.from_secs - now_secs));
        return finding(WHAT, State::Missing, words);
    }
    let words = format!("for {names}; good for {}", duration(left));
    if facts.names.is_empty() {
        return finding(WHAT, State::Limited, format!("{words}; clients look for the name that they have reached"));
    }
    let state = if left < RENEWED_BEFORE_SECS { State::Limited } else { State::Ok };
    finding(WHAT, state, words)
}

fn of_principals(path: &Path) -> Finding {
    match Principals::read(path) {
        Ok(_) => finding("principals", State::Ok, path.display().to_string()),
        Err(problem) => finding("principals", State::Missing, format!("{}: {problem}", path.display())),
    }
}

fn of_inventory(manage: &Manage) -> Vec<Finding> {
    let places = &manage.places;
    let mut all = Vec::new();
    for path in places.file.iter().chain(&places.dir) {
        if let Err(error) = trust::check(path, Kind::Orders) {
            all.push(finding("inventory", State::Missing, format!("{}: {error}", path.display())));
        }
    }
    let is_none = places.file.is_none() && places.dir.is_none() && manage.sources.is_empty();
    if !all.is_empty() || is_none {
        return all;
    }
    // A source that does not answer now may later, and ends no start.
    let names = netdev::all().unwrap_or_default().into_iter().map(|dev| dev.name).collect();
    let sources = Sources::open(manage.sources.clone(), names, None);
    let loaded = Loader::new(places.clone()).with(&sources).load();
    all.extend(loaded.problems.iter().map(|words| finding("inventory", State::Limited, words)));
    let count = loaded.inventory.resources.len();
    all.push(finding("inventory", State::Ok, format!("{count} NICs, gateways and balancers")));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_no_good_now_is_missing_and_one_that_ends_soon_is_said() {
        let facts = |from_secs, until_secs, names: &[&str]| {
            let names = names.iter().map(|n| (*n).to_owned()).collect();
            Ok(CertificateFacts { names, from_secs, until_secs })
        };
        let day = 86_400;
        for (read, state, words) in [
            (facts(0, 100 * day, &["a.example", "127.0.0.1"]), State::Ok, "for a.example, 127.0.0.1; good for 90 d"),
            (facts(0, 20 * day, &["a"]), State::Limited, "good for 10 d"),
            (facts(0, 9 * day, &["a"]), State::Missing, "expired 24 h ago"),
            (facts(11 * day, 99 * day, &["a"]), State::Missing, "is the clock right?"),
            (facts(0, 100 * day, &[]), State::Limited, "for no name"),
            (Err("key: not readable".to_owned()), State::Missing, "key: not readable"),
        ] {
            let found = of_certificate(read, 10 * day);
            assert!(found.state == state && found.detail.contains(words), "{found:?}");
        }
    }
}
