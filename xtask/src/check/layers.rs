//! What may link what, each rule with its reason. What lies in a package of its own cannot reach what it does not link.
//!
//! * [`NAMED_BY`]: who alone may name a package in its manifest, for building, testing or linking, with whatever feature;
//! * [`LINKS_NOT`]: what must not be linked into a package, itself or through others;
//! * [`NOWHERE`]: what no package of the host may have at all.
//!
//! A name stands for its family (`arrow` for `arrow-array` too), unless a longer one is in the same table. ARCHITECTURE.md shows both
//! tables ([`shown`]).

mod shown;

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::util::{cargo, output, root, step};

/// What the tests name a layer for.
const TESTS: &str = "tests it";
/// What is wrong with aya-ebpf on the host.
const MEMCPY: &str = "it exports memcpy and memset and would replace the host's";

/// A package, those of the workspace that alone may name it, each with what for, and why nobody else.
type Owned = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const NAMED_BY: &[Owned] = &[
    (
        "aya",
        &[
            ("flowlog-kernel", "loads and attaches"),
            ("integration", "loads other people's programs beside ours, and the benchmark's"),
        ],
        "what the kernel is asked for is asked in one layer",
    ),
    ("aya-ebpf", &[], MEMCPY),
    ("aya-log", &[("flowlog-kernel", "reads what the tracer's programs log")], "nothing else logs from the kernel"),
    ("aya-log-ebpf", &[], MEMCPY),
    ("argon2", &[("flowlog-control", "hashes passwords")], "credentials are the API's"),
    ("axum", &[("flowlog-control", "serves the API")], "one layer listens"),
    ("maud", &[("flowlog-control", "makes pages")], "one layer has pages"),
    (
        "prometheus-client",
        &[("flowlog-control", "writes figures down"), ("flowlog-catalog", "has its own")],
        "names of a program's metrics are in one place",
    ),
    (
        "iceberg",
        &[("flowlog-catalog", "commits")],
        "its arrow is an older one, and tables are no business of the agent's",
    ),
    ("sqlx", &[("flowlog-catalog", "gives iceberg's SQL catalog a database")], "as iceberg"),
    ("redb", &[("flowlog-control", "keeps flow logs")], "one store of flow logs, with one owner"),
    ("etcd-client", &[("flowlog-control", "has the flow logs of a region")], "as redb"),
    (
        "object_store",
        &[("flowlog-pipeline", "delivers"), ("integration", "asks its S3 server what has landed")],
        "requests to a store have limits, which one layer knows (`upload/http.rs`)",
    ),
    (
        "reqwest",
        &[
            ("flowlog-pipeline", "object_store's client, with those limits"),
            ("flowlog-catalog", "gives the client of REST catalogs TLS"),
        ],
        "as object_store",
    ),
    (
        "arrow",
        &[
            ("flowlog-pipeline", "has the schema"),
            ("flowlog-agent", "`flowlog read` prints columns"),
            ("integration", "the benchmark adds a column up"),
        ],
        "what an object looks like is decided in one layer",
    ),
    (
        "parquet",
        &[
            ("flowlog-pipeline", "writes objects"),
            ("flowlog-agent", "`flowlog read` shows them"),
            ("flowlog-catalog", "reads their footers"),
            ("integration", "reads them"),
        ],
        "as arrow",
    ),
    (
        "flowlog-ebpf",
        &[
            ("flowlog-kernel", "loads what it describes"),
            ("flowlog-pipeline", "reads its records"),
            ("flowlog-agent", "checks sizes against its limits"),
            ("integration", TESTS),
        ],
        "rules, inventory and API know nothing of records",
    ),
    ("flowlog-catalog", &[], "it is a program of its own"),
    ("flowlog-agent", &[], "it plugs the layers into each other: nothing lies above it"),
    (
        "flowlog-kernel",
        &[("flowlog-agent", "plugs it in"), ("integration", TESTS)],
        "the layers beside it reach the kernel through ports",
    ),
    (
        "flowlog-pipeline",
        &[
            ("flowlog-agent", "plugs it in"),
            ("flowlog-catalog", "its columns, its way to buckets"),
            ("integration", TESTS),
        ],
        "the layers beside it reach objects through ports",
    ),
    (
        "flowlog-control",
        &[("flowlog-agent", "plugs it in"), ("integration", TESTS)],
        "the layers beside it get their orders from the main loop",
    ),
];

/// A package, what must not be linked into it, and why.
///
/// Looked at are normal dependencies. What only tests use is in nothing that anybody runs: a large helper of theirs breaks no wall, and
/// whether they reach over one is a matter of what their manifest names, which [`NAMED_BY`] looks at.
type Forbidden = (&'static str, &'static [&'static str], &'static str);

const LINKS_NOT: &[Forbidden] = &[
    (
        "flowlog-model",
        &[
            "flowlog-host",
            "rustix",
            "tokio",
            "jiff",
            "hyper",
            "aya",
            "axum",
            "argon2",
            "redb",
            "etcd-client",
            "object_store",
            "arrow",
            "parquet",
        ],
        "it is pure: no I/O, no clock",
    ),
    (
        "flowlog-host",
        &["tokio", "jiff", "hyper", "aya", "axum", "argon2", "redb", "etcd-client", "object_store", "arrow", "parquet"],
        "every layer links it",
    ),
    (
        "flowlog-kernel",
        &[
            "flowlog-pipeline",
            "flowlog-control",
            "hyper",
            "axum",
            "argon2",
            "redb",
            "etcd-client",
            "object_store",
            "arrow",
            "parquet",
        ],
        "the kernel's side knows nothing of what becomes of its records",
    ),
    (
        "flowlog-pipeline",
        &["flowlog-kernel", "flowlog-control", "aya", "axum", "argon2", "redb", "etcd-client"],
        "the kernel is behind its port; the simulation runs without one",
    ),
    (
        "flowlog-control",
        &["flowlog-kernel", "flowlog-pipeline", "aya", "object_store", "reqwest", "arrow", "parquet"],
        "it gives orders to the agent, and gets answers",
    ),
    (
        "flowlog-catalog",
        &["flowlog-kernel", "flowlog-control", "flowlog-agent", "aya", "axum", "argon2", "redb", "openssl-sys"],
        "it reads what has been delivered, on whatever machine",
    ),
    ("flowlog-agent", &["iceberg", "sqlx"], "tables are a program's of their own; they pull another arrow"),
    ("flowlog-agent", &["datafusion"], "SQL engines belong outside the agent; they pull another arrow"),
    ("flowlog-agent", &["openssl-sys"], "one TLS stack is enough"),
    (
        "flowlog-lab",
        &["flowlog-model", "flowlog-ebpf", "aya", "arrow", "tokio"],
        "the demo, and with it every xtask command, waits for it to build",
    ),
    ("xtask", &["flowlog-model", "flowlog-ebpf", "aya", "arrow", "tokio"], "every command waits for it to build"),
];

/// What is in no tree of any package on the host, not even in what its tests or build scripts use, and why. The target is the host's:
/// the programs are built for another one, on which they may have it.
const NOWHERE: (&str, &str) = ("aya-ebpf", MEMCPY);
/// How a manifest says that something is for the programs only.
const PROGRAMS_ONLY: &str = "cfg(target_arch = \"bpf\")";

/// Looks up all rules, and names everything that breaks one.
pub(crate) fn check() -> anyhow::Result<()> {
    step("dependencies");
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]))?;
    let members = members(&metadata)?;
    let mut broken = named(&members, NAMED_BY);
    for (package, forbidden, why) in LINKS_NOT {
        broken.extend(has(package, "normal", forbidden, why)?);
    }
    let (nowhere, why) = NOWHERE;
    for Member { package, .. } in &members {
        broken.extend(has(package, "normal,build,dev", &[nowhere], why)?);
    }
    let architecture = fs::read_to_string(root().join(shown::FILE)).with_context(|| shown::FILE)?;
    broken.extend(shown::differences(&architecture, &members, NAMED_BY, LINKS_NOT)?);
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// What a package has of these families on this target, by these kinds of edges, though it must not.
fn has(package: &str, edges: &str, forbidden: &[&str], why: &str) -> anyhow::Result<Vec<String>> {
    let tree =
        output(cargo().args(["tree", "-p", package, "--all-features", "-e", edges, "--prefix", "none", "--locked"]))?;
    let words = |name: &&str| {
        format!("{package} has {name}: {why} (`cargo tree -p {package} --all-features -e {edges} -i {name}` shows how)")
    };
    Ok(linked(&tree, forbidden).iter().map(words).collect())
}

/// A package of the workspace, and what its manifest names for the host.
#[derive(Debug)]
struct Member {
    package: String,
    /// From the root, with a `/` at its end.
    folder: String,
    /// Each with the table of the manifest that it is in.
    names: BTreeSet<(String, String)>,
}

/// From what `cargo metadata --no-deps` prints.
fn members(metadata: &str) -> anyhow::Result<Vec<Member>> {
    let metadata: Value = serde_json::from_str(metadata)?;
    let root = metadata["workspace_root"].as_str().context("cargo metadata: no workspace_root")?;
    let packages = metadata["packages"].as_array().context("cargo metadata: no packages")?;
    packages.iter().map(|p| Member::read(p, Path::new(root)).context("cargo metadata: a package")).collect()
}

impl Member {
    fn read(package: &Value, root: &Path) -> Option<Self> {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        let folder = manifest.parent()?.strip_prefix(root).ok()?;
        let mut names = BTreeSet::new();
        for dependency in package["dependencies"].as_array()? {
            if dependency["target"] != PROGRAMS_ONLY {
                let table = dependency["kind"].as_str().map_or_else(String::new, |kind| format!("{kind}-"));
                names.insert((dependency["name"].as_str()?.to_owned(), format!("{table}dependencies")));
            }
        }
        Some(Self { package: package["name"].as_str()?.to_owned(), folder: format!("{}/", folder.display()), names })
    }
}

/// Whether a name belongs to a family.
fn is_of(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Who names what others alone may name; and permissions that nobody uses any more, which would let it come back unseen.
fn named(members: &[Member], rules: &[Owned]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut used = BTreeSet::new();
    for Member { package, names, .. } in members {
        for (name, table) in names {
            let fitting = rules.iter().filter(|(family, ..)| is_of(name, family));
            let Some((family, owners, why)) = fitting.max_by_key(|(family, ..)| family.len()) else { continue };
            if owners.iter().any(|(owner, _)| owner == package) {
                used.insert((*family, package.as_str()));
            } else {
                let owners: Vec<&str> = owners.iter().map(|(owner, _)| *owner).collect();
                let only =
                    if owners.is_empty() { "nobody may".to_owned() } else { format!("only {} may", owners.join(", ")) };
                broken.push(format!("{package} names {name} in its {table}, {only}: {why}"));
            }
        }
    }
    for (family, owners, _) in rules {
        let idle = owners.iter().filter(|(owner, _)| !used.contains(&(*family, *owner)));
        broken.extend(idle.map(|(owner, _)| format!("{owner} does not name {family}: take it out of NAMED_BY")));
    }
    broken
}

/// Packages of the forbidden families that a tree has below its root. Each of its lines begins with a package's name.
fn linked<'a>(tree: &'a str, forbidden: &[&str]) -> BTreeSet<&'a str> {
    let names = tree.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| forbidden.iter().any(|family| is_of(name, family))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "agent v0.1.0 (/somewhere/agent)\nanyhow v1.0.1\naya v0.14.0\naya-obj v0.3.0\nanyhow v1.0.1 (*)";
    const METADATA: &str = r#"{"workspace_root": "/w", "packages": [
        {"name": "low", "manifest_path": "/w/agent/low/Cargo.toml", "dependencies": [
            {"name": "aya", "kind": null, "target": null},
            {"name": "axum-core", "kind": "dev", "target": null}]},
        {"name": "programs", "manifest_path": "/w/programs/Cargo.toml", "dependencies": [
            {"name": "aya-ebpf", "kind": null, "target": "cfg(target_arch = \"bpf\")"}]},
        {"name": "tests", "manifest_path": "/w/tests/Cargo.toml", "dependencies": [
            {"name": "aya-ebpf", "kind": "build", "target": "cfg(unix)"},
            {"name": "aya-obj", "kind": null, "target": null}]}]}"#;

    #[test]
    fn families_below_the_root_are_found() {
        assert_eq!(Vec::from_iter(linked(TREE, &["aya", "anyhow", "axum"])), ["anyhow", "aya", "aya-obj"]);
        assert!(linked(TREE, &["agent", "obj", "any", "aya-ebpf", "v1.0.1"]).is_empty());
        assert!(linked("", &["aya"]).is_empty());
    }

    #[test]
    fn a_name_in_a_manifest_that_is_not_its_own_is_found() {
        let rules: &[Owned] = &[
            ("aya", &[("low", "loads"), ("tests", "look")], "one layer"),
            ("aya-ebpf", &[], "memcpy"),
            ("axum", &[("high", "serves")], "one listens"),
        ];
        let members = members(METADATA).expect("members");
        assert_eq!(members[0].folder, "agent/low/");
        assert_eq!(
            named(&members, rules),
            [
                "low names axum-core in its dev-dependencies, only high may: one listens",
                "tests names aya-ebpf in its build-dependencies, nobody may: memcpy",
                "high does not name axum: take it out of NAMED_BY",
            ]
        );
        assert!(super::members("{}").is_err());
    }

    #[test]
    fn this_repository_keeps_to_its_layers() {
        check().expect("rules and tables");
    }
}
