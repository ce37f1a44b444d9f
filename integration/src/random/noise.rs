//! Sockets that look at all packets, or refuse them for themselves: no verdict may come of it.

use std::os::fd::OwnedFd;

use super::{build::Network, features::Features, knobs, prng::Prng, topology::Endpoint};
use crate::sockets;

/// Most of them at once.
const SOCKETS_MAX: usize = 6;
/// IP protocol numbers of ICMP, TCP, UDP.
const PROTOCOLS: [i32; 3] = [1, 6, 17];

/// One socket that is open while packets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// A raw socket whose filter drops everything.
    Raw {
        on: Endpoint,
        /// IPv6; otherwise it is IPv4.
        v6: bool,
        /// Which packets it gets clones of.
        protocol: i32,
    },
    /// A packet socket on all devices.
    Packet {
        on: Endpoint,
        /// For all protocols, as `tcpdump` has it; else for IP alone.
        all: bool,
        /// With a filter that drops everything.
        filtered: bool,
    },
}

impl Noise {
    #[must_use]
    pub fn random(rng: &mut Prng, features: &Features, guests: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for _ in 0..rng.below(SOCKETS_MAX + 1) {
            let on = if rng.chance(70) { Endpoint::Host } else { Endpoint::Guest(rng.below(guests)) };
            match rng.below(3) {
                0 if features.has("packet") => all.push(Self::Packet { on, all: true, filtered: rng.chance(50) }),
                1 if features.has("protosock") => all.push(Self::Packet { on, all: false, filtered: rng.chance(50) }),
                _ if features.has("noise") => {
                    let v6 = features.has("v6") && rng.chance(30);
                    let protocol = *rng.pick(&PROTOCOLS);
                    all.push(Self::Raw { on, v6, protocol: if v6 && protocol == 1 { 58 } else { protocol } });
                }
                _ => {}
            }
        }
        all
    }

    /// Whether the stack may go on with a clone of a packet that this one got the original of, or what a bridge forwards
    /// has clones that may go on somewhere.
    #[must_use]
    pub fn makes_clones(self) -> bool {
        matches!(self, Self::Packet { .. })
    }

    /// Opens it.
    ///
    /// # Errors
    /// Without root.
    pub fn open(self, net: &Network) -> anyhow::Result<OwnedFd> {
        let (Self::Raw { on, .. } | Self::Packet { on, .. }) = self;
        Ok(net.of(on).run(|| match self {
            Self::Raw { v6, protocol, .. } => {
                let socket = knobs::raw_socket(v6, protocol)?;
                knobs::refuse_all(&socket)?;
                std::io::Result::Ok(socket)
            }
            Self::Packet { all, filtered, .. } => {
                sockets::packets(None, if all { sockets::EVERY_PROTOCOL } else { sockets::IPV4 }, filtered)
            }
        })?)
    }
}
