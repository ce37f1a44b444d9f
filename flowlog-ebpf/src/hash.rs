//! Flow hash: two or five multiplies over the key words, seeded per load.
//!
//! The hash only has to spread flows well over pairs of slots; an attacker who finds collisions gains
//! evictions (more ring records), never wrong counts. The seed is random, so that he cannot prepare them.

const M1: u64 = 0x9e37_79b9_7f4a_7c15;
const M2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const M3: u64 = 0xbf58_476d_1ce4_e5b9;

#[inline(always)]
const fn finish(h: u64) -> u64 {
    let h = (h ^ (h >> 29)).wrapping_mul(M3);
    h ^ (h >> 32)
}

/// Hash of an IPv4 flow: addresses and ports as two words (`ports` carries protocol, interface, VLAN as well).
#[inline(always)]
#[must_use]
pub const fn words2(seed: u64, addresses: u64, ports: u64) -> u64 {
    finish((addresses ^ seed).wrapping_mul(M1) ^ ports.wrapping_mul(M2))
}

/// Hash of an IPv6 flow: four address words and one of ports.
#[inline(always)]
#[must_use]
pub const fn words5(seed: u64, a: u64, b: u64, c: u64, d: u64, ports: u64) -> u64 {
    let src = (a ^ seed).wrapping_mul(M1) ^ b.rotate_left(32).wrapping_mul(M2);
    let dst = (c ^ seed.rotate_left(17)).wrapping_mul(M2) ^ d.rotate_left(32).wrapping_mul(M1);
    finish(src.wrapping_add(dst.rotate_left(23)) ^ ports.wrapping_mul(M3))
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    /// Share of slots used when as many flows as slots are inserted; an ideal hash uses 1 - 1/e = 63 %.
    fn used_percent(hash: impl Fn(u64) -> u64) -> usize {
        let slots = 1 << 14;
        let mut used = vec![false; slots];
        for i in 0..slots as u64 {
            used[hash(i) as usize & (slots - 1)] = true;
        }
        used.iter().filter(|u| **u).count() * 100 / slots
    }

    #[test]
    fn neighbouring_flows_spread_over_the_cache() {
        for seed in [0, 0xdead_beef_0bad_cafe] {
            for shift in [0, 8, 16, 24, 32, 48] {
                let v4 = used_percent(|i| words2(seed, 0x0a00_0001_0a00_0002, i << shift));
                let v4a = used_percent(|i| words2(seed, i << shift, 443));
                let v6 = used_percent(|i| words5(seed, 0x20, 1, 0x20, i << shift, 443));
                let v6s = used_percent(|i| words5(seed, i << shift, 1, 0x20, 3, 443));
                assert!(v4 > 60 && v4a > 60 && v6 > 60 && v6s > 60, "{seed} {shift}: {v4} {v4a} {v6} {v6s}");
            }
        }
    }
}
