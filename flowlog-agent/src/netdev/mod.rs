//! What the system says about an interface. Reads sysfs, asks netlink; changes nothing.

pub mod links;
pub mod xdp;

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// `ARPHRD_*` of devices whose frames start with an Ethernet header (`include/uapi/linux/if_arp.h`).
const LINK_HEADER_TYPES: [u32; 2] = [1, 772];

/// An interface as found at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDev {
    /// Name.
    pub name: String,
    /// Index, unique within the network namespace.
    pub index: u32,
    /// Frames start with an Ethernet header.
    pub link_header: bool,
    /// It is a bridge.
    pub bridge: bool,
    /// Index of the device stacked on it (bridge, VLAN, bond), 0 if none.
    pub upper: u32,
}

/// Frames and bytes an interface has counted, by direction (ingress, egress).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames.
    pub packets: [u64; 2],
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum NetDevError {
    /// No such interface.
    #[error("interface `{name}`: no such interface in this network namespace; there are: {others}")]
    NotFound {
        /// Name asked for.
        name: String,
        /// Names that exist.
        others: String,
    },
    /// Sysfs did not answer as expected.
    #[error("interface `{name}`: cannot read `{}`: {source}; is /sys mounted for this network namespace?", path.display())]
    Unreadable {
        /// Name asked for.
        name: String,
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn class(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn number(name: &str, file: &str) -> Result<u64, NetDevError> {
    let path = class(name).join(file);
    let unreadable = |source| NetDevError::Unreadable { name: name.to_owned(), path: path.clone(), source };
    let text = fs::read_to_string(&path).map_err(unreadable)?;
    text.trim().parse().map_err(|e| unreadable(io::Error::new(io::ErrorKind::InvalidData, e)))
}

/// Names of all interfaces of this namespace, sorted.
#[must_use]
pub fn names() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().join("ifindex").exists())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Looks an interface up by name.
///
/// # Errors
/// [`NetDevError::NotFound`] lists what there is instead.
pub fn find(name: &str) -> Result<NetDev, NetDevError> {
    // A name is one path component; anything else cannot be an interface.
    let plausible = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    if !plausible || !class(name).join("ifindex").exists() {
        return Err(NetDevError::NotFound { name: name.to_owned(), others: names().join(", ") });
    }
    let small = |n: u64| u32::try_from(n).unwrap_or(0);
    Ok(NetDev {
        name: name.to_owned(),
        index: small(number(name, "ifindex")?),
        link_header: LINK_HEADER_TYPES.contains(&small(number(name, "type")?)),
        bridge: class(name).join("bridge").exists(),
        upper: upper(name),
    })
}

/// Index of the device stacked on an interface, 0 if none. With several (VLANs on one port), the lowest index.
#[must_use]
pub fn upper(name: &str) -> u32 {
    let entries = fs::read_dir(class(name)).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_name().to_string_lossy().starts_with("upper_"))
        .filter_map(|e| fs::read_to_string(e.path().join("ifindex")).ok()?.trim().parse().ok())
        .min()
        .unwrap_or(0)
}

/// The interface's own counters: a witness our programs do not own.
///
/// # Errors
/// [`NetDevError::Unreadable`] if it is gone.
pub fn counters(name: &str) -> Result<Counters, NetDevError> {
    Ok(Counters { packets: [number(name, "statistics/rx_packets")?, number(name, "statistics/tx_packets")?] })
}

/// Inode number of the network namespace we are in.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn netns_inum() -> io::Result<u32> {
    let inode = fs::metadata("/proc/thread-self/ns/net")?.ino();
    u32::try_from(inode).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_and_others_are_refused_by_name() {
        let lo = find("lo").expect("lo");
        assert!(lo.index == 1 && lo.link_header && !lo.bridge);
        for bad in ["no-such-if0", "", "..", "../net/lo"] {
            let error = find(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("`{bad}`")) && error.contains("lo"), "{error}");
        }
    }
}
