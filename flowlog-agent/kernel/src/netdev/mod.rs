//! What the kernel says about interfaces, by rtnetlink.
//!
//! * [`elsewhere`]: interfaces of other network namespaces; [`links`]: tells when one comes, goes or changes;
//! * [`below`]: what packets of stacked devices leave through;
//! * [`connections`], [`ipvs`]: what connection tracking and the load balancer know of packets;
//! * [`foreign`]: programs of others at the hooks; [`offload`]: what hardware carries past them;
//! * [`neighbours`]: which are behind which ports of bridges;
//! * [`netns`]: other network namespaces;
//! * [`rtnetlink`]: the questions and their answers;
//! * [`traffic_control`]: who else uses the field that our hooks number packets in;
//! * [`xdp`]: whether a driver runs XDP itself;
//! * [`foreign_xdp`]: other people's XDP programs; [`xdp_counters`], [`ethtool`]: what drivers count of XDP.

mod below;
pub mod connections;
mod elsewhere;
pub(crate) mod ethtool;
pub mod foreign;
pub mod foreign_xdp;
pub mod ipvs;
pub mod links;
pub mod neighbours;
pub mod netns;
pub mod offload;
pub(crate) mod rtnetlink;
pub mod traffic_control;
pub(crate) mod xdp;
mod xdp_counters;

use std::{io, path::PathBuf};

pub use elsewhere::Namespaces;
use flowlog_model::interface::{Counters, NetDev, Netns, NetnsName, names};
use rustix::net::{AddressFamily, SocketType};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum NetDevError {
    #[error("interface `{name}`: no such interface in {netns}; there are: {others}")]
    NotFound {
        name: String,
        /// Where it was looked for, in words.
        netns: String,
        others: String,
    },
    #[error("netns `{name}`: there is no network namespace at {}; {remedy}", path.display())]
    NoNamespace {
        name: NetnsName,
        /// The file that would stand for it.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel did not answer as expected.
    #[error("cannot ask the kernel for its interfaces: {0}")]
    Unreadable(#[from] io::Error),
}

impl NetDevError {
    /// There is no namespace of this name, and what to do about it.
    #[must_use]
    pub fn no_namespace(name: &NetnsName, remedy: &'static str) -> Self {
        Self::NoNamespace { name: name.clone(), path: name.path(), remedy }
    }
}

/// All interfaces of this namespace.
///
/// # Errors
/// If the kernel does not answer.
pub fn all() -> Result<Vec<NetDev>, NetDevError> {
    Ok(rtnetlink::dump(&netns::own()?)?)
}

/// Looks an interface up by name.
///
/// # Errors
/// [`NetDevError::NotFound`] lists what there is instead.
pub(crate) fn find(name: &str) -> Result<NetDev, NetDevError> {
    let all = all()?;
    let named = all.iter().find(|d| d.name == name);
    named.cloned().ok_or_else(|| NetDevError::NotFound {
        name: name.to_owned(),
        netns: "this network namespace".to_owned(),
        others: names(&all),
    })
}

/// An interface's own counters: a witness our programs do not own.
///
/// # Errors
/// If it is gone.
pub fn counters(of: &Netns, index: u32) -> Result<Counters, NetDevError> {
    Ok(netns::enter(of, || rtnetlink::counters(index)).flatten()?)
}

/// What an interface is called.
///
/// # Errors
/// If it is gone.
pub fn name(of: &Netns, index: u32) -> Result<String, NetDevError> {
    let ask = || {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        rustix::net::netdevice::index_to_name(socket, index)
    };
    Ok(netns::enter(of, ask)?.map_err(io::Error::from)?)
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
