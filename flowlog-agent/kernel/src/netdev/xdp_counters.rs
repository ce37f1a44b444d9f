//! Which of a driver's counters are packets that XDP programs dropped or forwarded. docs/xdp.md has the same table with its
//! sources; a test compares.

use flowlog_model::xdp::{Named, XdpCounters};

use super::ethtool::{self, Statistics};

/// What a driver calls them. In a name, `#` stands for the number of a queue. Where a driver has sums as well as each
/// queue's own, only one of both is here.
pub(crate) struct Names {
    /// As `ethtool -i` says.
    pub driver: &'static str,
    /// Dropped, aborted ones among them; empty: not counted.
    pub dropped: &'static [&'static str],
    /// Sent back (`XDP_TX`) or redirected; empty: not all of them are counted.
    pub forwarded: &'static [&'static str],
}

/// See the module's head.
#[rustfmt::skip]
pub(crate) const DRIVERS: &[Names] = &[
    // What it could not send back is dropped.
    Names { driver: "veth", dropped: &["rx_queue_#_xdp_drops", "rx_queue_#_xdp_tx_errors"], forwarded: &["rx_queue_#_xdp_tx", "rx_queue_#_xdp_redirect"] },
    // Before Linux 6.10 as veth, then shorter.
    Names {
        driver: "virtio_net", dropped: &["rx#_xdp_drops", "rx_queue_#_xdp_drops"],
        forwarded: &["rx#_xdp_tx", "rx#_xdp_redirects", "rx_queue_#_xdp_tx", "rx_queue_#_xdp_redirects"],
    },
    Names { driver: "mlx5_core", dropped: &["rx_xdp_drop"], forwarded: &["rx_xdp_tx_xmit", "rx_xdp_redirect"] },
    Names { driver: "mlx4_en", dropped: &["rx#_xdp_drop"], forwarded: &["rx#_xdp_tx", "rx#_xdp_redirect"] },
    Names {
        driver: "hv_netvsc", dropped: &["rx_queue_#_xdp_drop"],
        forwarded: &["rx_queue_#_xdp_tx", "rx_queue_#_xdp_redirect"],
    },
    Names {
        driver: "ena", dropped: &["queue_#_rx_xdp_drop", "queue_#_rx_xdp_aborted", "queue_#_rx_xdp_invalid"],
        forwarded: &["queue_#_rx_xdp_tx", "queue_#_rx_xdp_redirect"],
    },
    Names {
        driver: "gve", dropped: &["rx_xdp_drop[#]", "rx_xdp_aborted[#]"],
        forwarded: &["rx_xdp_tx[#]", "rx_xdp_redirect[#]"],
    },
    Names { driver: "mana", dropped: &["rx_#_xdp_drop"], forwarded: &["rx_#_xdp_tx", "rx_#_xdp_redirect"] },
    Names {
        driver: "sfc", dropped: &["rx_xdp_drops", "rx_xdp_bad_drops"], forwarded: &["rx_xdp_tx", "rx_xdp_redirect"],
    },
    Names { driver: "mvneta", dropped: &["rx_xdp_drop"], forwarded: &["rx_xdp_tx", "rx_xdp_redirect"] },
    Names { driver: "mvpp2", dropped: &["rx_xdp_drop"], forwarded: &["rx_xdp_tx", "rx_xdp_redirect"] },
    Names { driver: "fec", dropped: &["rx_xdp_drop"], forwarded: &["rx_xdp_tx", "rx_xdp_redirect"] },
    Names { driver: "mtk_soc_eth", dropped: &["rx_xdp_drop"], forwarded: &["rx_xdp_tx", "rx_xdp_redirect"] },
];

fn names(driver: &str) -> Option<&'static Names> {
    DRIVERS.iter().find(|n| n.driver == driver)
}

/// What the driver of an interface of the namespace we are in has counted. One that is gone, or says nothing, counts nothing.
pub(super) fn counters(interface: &str) -> XdpCounters {
    let Ok(Statistics { driver, counters }) = ethtool::statistics(interface, |driver| names(driver).is_some()) else {
        return XdpCounters::default();
    };
    let of = |patterns: &[&str]| -> Option<Named> {
        let wanted = |name: &str| patterns.iter().any(|pattern| matches(pattern, name));
        let found: Named = counters.iter().filter(|(name, _)| wanted(name)).cloned().collect();
        // Names are as in the kernels that were looked at. In another one nothing may be taken for "none".
        (!found.is_empty()).then_some(found)
    };
    let names = names(&driver);
    let dropped = names.and_then(|n| of(n.dropped));
    let forwarded = names.and_then(|n| of(n.forwarded));
    XdpCounters { driver, dropped, forwarded }
}

/// Whether a name is what a pattern says.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('#') {
        None => pattern == name,
        Some((before, after)) => {
            let number = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_any_queue_and_no_other_counter() {
        let veth = "rx_queue_#_xdp_tx";
        assert!(matches(veth, "rx_queue_0_xdp_tx") && matches(veth, "rx_queue_127_xdp_tx"));
        for other in ["rx_queue__xdp_tx", "rx_queue_0_xdp_tx_errors", "tx_queue_0_xdp_tx", "rx_queue_x_xdp_tx"] {
            assert!(!matches(veth, other), "{other}");
        }
        assert!(matches("rx_xdp_drop[#]", "rx_xdp_drop[12]") && !matches("rx_xdp_drop", "rx0_xdp_drop"));
    }

    /// docs/xdp.md, from "| driver |" on: names as `code`.
    #[test]
    fn the_documents_table_is_this_one() {
        let doc = include_str!("../../../../docs/xdp.md");
        let rows: Vec<Vec<&str>> = doc
            .lines()
            .skip_while(|l| !l.starts_with("| driver |"))
            .filter(|l| l.starts_with("| `"))
            .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let code = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        for Names { driver, dropped, forwarded } in DRIVERS {
            let row = rows.iter().find(|cells| code(cells[0]) == [*driver]);
            let row = row.unwrap_or_else(|| panic!("{driver} is not in docs/xdp.md"));
            assert_eq!(code(row[1]), *dropped, "{driver}");
            assert_eq!(code(row[2]), *forwarded, "{driver}");
        }
        assert_eq!(rows.len(), DRIVERS.len(), "drivers in docs/xdp.md that are not here");
    }
}
