//! What the kernel under test has, for tests that need it. A test that cannot run says so in a line that nothing captures:
//! `SKIPPED name: why`. `cargo xtask vm` counts those.

use std::io::Write as _;

use crate::net::Netns;

/// Set by `cargo xtask vm`: the kernel is the test's alone, and what it changes is gone with it.
pub const GUEST: &str = "FLOWLOG_GUEST";

/// Ends the test, saying why, unless the kernel has what it needs.
#[macro_export]
macro_rules! skip_unless {
    ($has:expr, $why:expr) => {
        if !$has {
            $crate::features::skipped($why);
            return;
        }
    };
}

/// Says that the running test is skipped. Used by [`skip_unless!`](crate::skip_unless).
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    // With one test at a time its name and no line end are already there.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {}: {why}", thread.name().unwrap_or("a test"));
}

/// Whether there are tcx links (Linux 6.6).
#[must_use]
pub fn tcx() -> bool {
    flowlog_kernel::attach::has_tcx()
}

/// The hook that `--hook tc` attaches on this kernel.
#[must_use]
pub fn tc() -> &'static str {
    if tcx() { "tcx" } else { "clsact" }
}

/// Whether nobody else uses this kernel.
#[must_use]
pub fn guest() -> bool {
    std::env::var_os(GUEST).is_some()
}

/// Whether an interface can be made here, by the words of `ip link add name NAME`: `type bond`, `link lo type macvlan`.
#[must_use]
pub fn link(words: &str) -> bool {
    Netns::new("has").and_then(|ns| ns.exec(&format!("ip link add name has0 {words}"))).is_ok()
}

/// Whether drivers say which XDP they have (Linux 6.3).
#[must_use]
pub fn xdp_features() -> bool {
    flowlog_kernel::attach::kernel_at_least(6, 3)
}

/// Says that the running test is skipped because this kernel has no `what`.
pub fn skip(_test: &str, what: &str) {
    skipped(&format!("this kernel has no {what}"));
}

/// Whether this kernel lacks a kind of link (`macvlan`, `vlan`, `bond`, …); says so if it does.
#[must_use]
pub fn missing(test: &str, kind: &str) -> bool {
    let lacks = !match kind {
        "vlan" => link_on("link d0 type vlan id 5"),
        "macvlan" => link_on("link d0 type macvlan mode bridge"),
        "ipvlan" => link_on("link d0 type ipvlan mode l2"),
        "vrf" => link("type vrf table 10"),
        other => link(&format!("type {other}")),
    };
    if lacks {
        skip(test, kind);
    }
    lacks
}

/// As [`link`], with a device `d0` to stack it on.
fn link_on(words: &str) -> bool {
    let made = || -> anyhow::Result<()> {
        let ns = Netns::new("on")?;
        ns.exec("ip link add d0 type veth peer name d1")?;
        ns.exec(&format!("ip link add name has0 {words}")).map(drop)
    };
    made().is_ok()
}
