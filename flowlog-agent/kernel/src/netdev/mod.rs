//! What the kernel says about interfaces. Asks rtnetlink; changes nothing.
//!
//! * [`links`]: tells when one comes, goes or changes;
//! * [`netns`]: other network namespaces;
//! * [`rtnetlink`]: the questions and their answers;
//! * [`traffic_control`]: who else uses the field that our hooks number packets in;
//! * [`xdp`]: whether a driver runs XDP itself;
//! * [`foreign_xdp`]: other people's XDP programs; [`xdp_counters`], [`ethtool`]: what drivers count of XDP.

mod ethtool;
pub mod foreign_xdp;
pub mod links;
pub mod netns;
mod rtnetlink;
pub mod traffic_control;
pub(crate) mod xdp;
mod xdp_counters;

use std::io;

use flowlog_model::interface::{Counters, NetDev, Netns, names};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum NetDevError {
    #[error("interface `{name}`: no such interface in this network namespace; there are: {others}")]
    NotFound { name: String, others: String },
    /// The kernel did not answer as expected.
    #[error("cannot ask the kernel for its interfaces: {0}")]
    Unreadable(#[from] io::Error),
}

/// All interfaces of this namespace.
///
/// # Errors
/// If the kernel does not answer.
pub fn all() -> Result<Vec<NetDev>, NetDevError> {
    Ok(rtnetlink::dump(&netns::own()?)?)
}

/// All interfaces of all other namespaces. One that cannot be entered has none.
#[must_use]
pub fn elsewhere() -> Vec<NetDev> {
    let Ok(own) = netns::own() else { return Vec::new() };
    let inside = |there: Netns| netns::enter(&there, || rtnetlink::dump(&there)).ok()?.ok();
    netns::others(&own).into_iter().filter_map(inside).flatten().collect()
}

/// Looks an interface up by name.
///
/// # Errors
/// [`NetDevError::NotFound`] lists what there is instead.
pub(crate) fn find(name: &str) -> Result<NetDev, NetDevError> {
    let all = all()?;
    let named = all.iter().find(|d| d.name == name);
    named.cloned().ok_or_else(|| NetDevError::NotFound { name: name.to_owned(), others: names(&all) })
}

/// An interface's own counters: a witness our programs do not own.
///
/// # Errors
/// If it is gone.
pub fn counters(of: &Netns, index: u32) -> Result<Counters, NetDevError> {
    Ok(netns::enter(of, || rtnetlink::counters(index)).flatten()?)
}

#[cfg(test)]
mod tests {
    use flowlog_model::interface::Mac;

    use super::*;

    #[test]
    fn the_loopback_device_is_found_and_others_are_refused_by_name() {
        let lo = find("lo").expect("lo");
        assert!(lo.index == 1 && lo.link_header && !lo.bridge && lo.mac == Some(Mac([0; 6])), "{lo:?}");
        let own = netns::own().expect("our namespace");
        assert!(counters(&own, 1).is_ok() && counters(&own, u32::MAX >> 1).is_err());
        for bad in ["no-such-if0", "", "..", "../net/lo"] {
            let error = find(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("`{bad}`")) && error.contains("lo"), "{error}");
        }
    }
}
