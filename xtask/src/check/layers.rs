//! What a package must never link, one rule a line. What lies in a package of its own cannot reach what it does not link.

use anyhow::ensure;

use crate::util::{cargo, output, step};

/// Package, what must not be linked into it (itself or through others), and why.
const LAYERS: &[(&str, &[&str], &str)] = &[
    (
        "flowlog-model",
        &["flowlog-host", "rustix", "tokio", "aya", "axum", "object_store"],
        "it is pure: no I/O, no clock",
    ),
    ("flowlog-host", &["tokio", "aya", "axum", "object_store", "arrow"], "every layer links it"),
    (
        "flowlog-kernel",
        &["flowlog-pipeline", "flowlog-control", "object_store", "arrow", "axum", "redb"],
        "the kernel's side knows nothing of what becomes of its records",
    ),
    (
        "flowlog-pipeline",
        &["flowlog-kernel", "flowlog-control", "aya", "axum", "argon2", "redb"],
        "the kernel is behind its port; the simulation runs without one",
    ),
    (
        "flowlog-control",
        &["flowlog-kernel", "flowlog-pipeline", "aya", "object_store", "arrow", "parquet"],
        "it gives orders to the agent, and gets answers",
    ),
    ("flowlog-agent", &["aya-ebpf"], "it exports memcpy and memset and would replace the host's"),
    ("flowlog-agent", &["datafusion"], "SQL engines belong outside the agent; they pull another arrow"),
    ("flowlog-agent", &["openssl-sys"], "one TLS stack is enough"),
    (
        "flowlog-lab",
        &["aya", "arrow", "flowlog-agent"],
        "the demo, and with it every xtask command, waits for it to build",
    ),
    ("xtask", &["aya", "arrow", "flowlog-agent"], "every command waits for it to build"),
];

/// Looks up all rules, and names everything that breaks one.
pub(crate) fn check() -> anyhow::Result<()> {
    step("dependencies");
    let mut broken = Vec::new();
    for (package, forbidden, why) in LAYERS {
        let tree = output(cargo().args(["tree", "-p", package, "-e", "normal", "--prefix", "none", "--locked"]))?;
        for name in linked(&tree, forbidden) {
            broken.push(format!(
                "{package} links {name}: {why} (`cargo tree -p {package} -e normal -i {name}` shows how)"
            ));
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// Which of the forbidden packages a tree has below its root. Each of its lines begins with a package's name.
fn linked<'a>(tree: &str, forbidden: &[&'a str]) -> Vec<&'a str> {
    let names: Vec<&str> = tree.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    forbidden.iter().copied().filter(|f| names.contains(f)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "agent v0.1.0 (/somewhere/agent)\nanyhow v1.0.1\naya v0.14.0\naya-obj v0.3.0\nanyhow v1.0.1 (*)";

    #[test]
    fn whole_names_below_the_root_are_found() {
        assert_eq!(linked(TREE, &["aya", "anyhow", "axum"]), ["aya", "anyhow"]);
        assert!(linked(TREE, &["agent", "obj", "aya-ebpf", "v1.0.1"]).is_empty());
        assert!(linked("", &["aya"]).is_empty());
    }
}
