//! The packets that are measured and generated.

use integration::traffic::checksum;

/// Address family and protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// IPv6; otherwise it is IPv4.
    pub v6: bool,
    /// TCP (SYN), else UDP.
    pub tcp: bool,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [
        Self { v6: false, tcp: false },
        Self { v6: false, tcp: true },
        Self { v6: true, tcp: false },
        Self { v6: true, tcp: true },
    ];

    pub(crate) fn name(self) -> &'static str {
        match (self.v6, self.tcp) {
            (false, false) => "IPv4 UDP",
            (false, true) => "IPv4 TCP",
            (true, false) => "IPv6 UDP",
            (true, true) => "IPv6 TCP",
        }
    }

    /// Offset of the IP header's end.
    fn upper(self) -> usize {
        if self.v6 { 54 } else { 34 }
    }

    /// Offset of the last four bytes of the source address.
    fn source(self) -> usize {
        if self.v6 { 34 } else { 26 }
    }

    /// Offset of the word of eight bytes that programs load these four in, and their shift in it.
    pub(crate) fn word(self) -> (usize, u32) {
        if self.v6 { (30, 32) } else { (26, 0) }
    }
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub macs: ([u8; 6], [u8; 6]),
    pub v4: ([u8; 4], [u8; 4]),
    pub v6: ([u8; 16], [u8; 16]),
    pub dport: u16,
}

impl Ends {
    /// For packets that stay inside `BPF_PROG_TEST_RUN`.
    pub(crate) fn nowhere() -> Self {
        let v6 = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, last];
        Self { macs: ([2; 6], [4; 6]), v4: ([10, 0, 0, 1], [10, 1, 0, 1]), v6: (v6(1), v6(2)), dport: 443 }
    }
}

/// Where [`frame`] leaves room for what balances a changed address and port in the checksums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Varied {
    pub address: u32,
    pub address_balance: u32,
    pub port: u32,
    pub port_balance: u32,
}

/// A frame of `bytes` bytes (without frame check sequence) and the places to vary it. Its checksums are right for any
/// address and port, as long as each is balanced by its complement.
pub(crate) fn frame(kind: Kind, ends: &Ends, bytes: usize) -> (Vec<u8>, Varied) {
    let upper = kind.upper();
    let header = if kind.tcp { 20 } else { 8 };
    let bytes = bytes.max(upper + header + 4);
    let l4_len = u16::try_from(bytes - upper).expect("a frame");
    let proto = if kind.tcp { 6 } else { 17 };
    let mut f = Vec::with_capacity(bytes);
    f.extend_from_slice(&ends.macs.1);
    f.extend_from_slice(&ends.macs.0);
    if kind.v6 {
        f.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        f.extend_from_slice(&l4_len.to_be_bytes());
        f.extend_from_slice(&[proto, 64]);
        f.extend_from_slice(&ends.v6.0);
        f.extend_from_slice(&ends.v6.1);
    } else {
        f.extend_from_slice(&[8, 0, 0x45, 0]);
        f.extend_from_slice(&(l4_len + 20).to_be_bytes());
        f.extend_from_slice(&[0, 0, 0, 0, 64, proto, 0, 0]);
        f.extend_from_slice(&ends.v4.0);
        f.extend_from_slice(&ends.v4.1);
    }
    f.extend_from_slice(&0x4000u16.to_be_bytes());
    f.extend_from_slice(&ends.dport.to_be_bytes());
    if kind.tcp {
        f.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    } else {
        f.extend_from_slice(&l4_len.to_be_bytes());
        f.extend_from_slice(&[0, 0]);
    }
    f.resize(bytes, 0);
    let source = kind.source();
    // Two bytes of the source vary, balanced in the IPv4 header by its id, in IPv6 by the payload.
    let place = |at: usize| u32::try_from(at).expect("small");
    let balance = Varied {
        address: place(source + 2),
        address_balance: place(if kind.v6 { upper + header + 2 } else { 18 }),
        port: place(upper),
        port_balance: place(upper + header),
    };
    for (a, b) in [(balance.address, balance.address_balance), (balance.port, balance.port_balance)] {
        let a = a as usize;
        let b = b as usize;
        let complement = !u16::from_be_bytes([f[a], f[a + 1]]);
        f[b..b + 2].copy_from_slice(&complement.to_be_bytes());
    }
    if !kind.v6 {
        let sum = checksum(&[&f[14..34]]);
        f[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    // IPv4 UDP goes without. IPv4 TCP covers the source address too, which its header's id balances, not its payload:
    // such packets die at a firewall, before anybody looks.
    if kind.v6 || kind.tcp {
        let addresses = if kind.v6 { 22..54 } else { 26..34 };
        let pseudo = [&l4_len.to_be_bytes()[..], &[0, proto]].concat();
        let at = upper + if kind.tcp { 16 } else { 6 };
        let sum = checksum(&[&f[addresses], &pseudo, &f[upper..]]);
        f[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    (f, balance)
}
