//! How many records the flow cache leaves a packet: simulated packet by packet, and by formula.
//!
//! A pair of slots is a set of two ways: a flow may be in either. Who has the most packets of a pair stays (while it has had one within a second), so
//! the other slot has whichever other flow came last. With shares p of a CPU's packets, the flows i of a pair, and 1 the busiest of them:
//!
//! ```text
//! misses of a pair = sum over i > 1 of p_i (1 - p_i / (1 - p_1 among the pair's))        the busiest holds its slot
//! ```
//!
//! Where all flows are alike, a pair of k has two of them, whoever chooses: a packet misses with 1 - 2/k. k - 1 others are there by chance (Poisson,
//! twice the flows by the slots), which gives [`uniform`] without a look at any flow.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "counts that are printed; halves of hashes"
)]

use flowlog_ebpf::hash::words2;

use crate::records::Random;

/// As in the programs (`cache.rs`): a record that has had no packet for so long has no claim to its slot.
const QUIET_NS: u64 = 1_000_000_000;
const SEED: u64 = 0x5eed_0bad_cafe_f00d;

/// How often flows have packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// All alike.
    Uniform,
    /// The n-th flow 1/n as often as the first.
    Zipf,
}

impl Mix {
    pub(crate) const ALL: [(Self, &str); 2] = [(Self::Uniform, "uniform"), (Self::Zipf, "Zipf")];

    /// Share of a flow, up to a factor.
    fn weight(self, flow: u32) -> f64 {
        match self {
            Self::Uniform => 1.0,
            Self::Zipf => 1.0 / (f64::from(flow) + 1.0),
        }
    }
}

/// The two words that are hashed of a flow, as the programs have them: addresses, ports and the rest.
fn words(flow: u32) -> (u64, u64) {
    let addresses = u64::from((0x0a00_0000 | flow & 0xff_ffff).to_be()) | 0x0100_010a << 32;
    let ports = 0x01bb_0000_4000 + (u64::from(flow >> 24) << 48);
    (addresses, ports)
}

fn home(flow: u32, slots: u32) -> usize {
    let (addresses, ports) = words(flow);
    // The hash's lower half, as the programs have it.
    (words2(SEED, addresses, ports) as u32 & (slots - 1)) as usize
}

/// The key that the drivers of many cards have (`ETH_RSS_HASH_TOP` by the document that Microsoft wrote on it).
const RSS_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

/// Toeplitz hash of addresses and ports.
fn toeplitz(input: &[u8; 12]) -> u32 {
    let mut hash = 0;
    let mut window = u64::from_be_bytes(*RSS_KEY.first_chunk().expect("a key of 40 bytes"));
    for (at, byte) in input.iter().enumerate() {
        for bit in (0..8).rev() {
            if byte >> bit & 1 == 1 {
                hash ^= (window >> 32) as u32;
            }
            window <<= 1;
        }
        // Eight bits have gone out at the front.
        window |= u64::from(RSS_KEY[at + 8]);
    }
    hash
}

/// Which CPU a card gives a flow to: a table of 128 entries, in turns to the CPUs.
fn cpu_of(flow: u32, cpus: u32) -> u32 {
    let mut input = [0, 0, 0, 0, 10, 1, 0, 1, 0, 0, 1, 0xbb];
    input[..4].copy_from_slice(&(0x0a00_0000 | flow & 0xff_ffff).to_be_bytes());
    input[8..10].copy_from_slice(&(0x4000 + (flow >> 24) as u16).to_be_bytes());
    toeplitz(&input) % cpus.max(128) % cpus
}

/// The flows of one CPU, with their shares of its packets.
#[derive(Default)]
pub(crate) struct Shares {
    flows: Vec<u32>,
    /// Sums up to each flow.
    cumulative: Vec<f64>,
}

impl Shares {
    /// Those of each CPU, of so many flows on the machine, by the hash of a card; and what part of all packets each has.
    pub(crate) fn of(mix: Mix, flows: u32, cpus: u32) -> Vec<(Self, f64)> {
        let mut all = 0.0;
        let mut of_cpus: Vec<Self> = Vec::new();
        of_cpus.resize_with(cpus as usize, Self::default);
        for flow in 0..flows {
            let cpu = if cpus == 1 { 0 } else { cpu_of(flow, cpus) };
            let shares = &mut of_cpus[cpu as usize];
            all += mix.weight(flow);
            shares.cumulative.push(shares.total() + mix.weight(flow));
            shares.flows.push(flow);
        }
        of_cpus
            .into_iter()
            .map(|shares| {
                let part = shares.total() / all;
                (shares, part)
            })
            .collect()
    }

    /// Flows that a cache of so many slots holds when all have had packets.
    pub(crate) fn held(&self, slots: u32) -> f64 {
        let mut pairs = vec![0u8; slots as usize / 2];
        for flow in &self.flows {
            let pair = &mut pairs[home(*flow, slots) / 2];
            *pair = (*pair + 1).min(2);
        }
        pairs.iter().map(|n| f64::from(*n)).sum()
    }

    fn total(&self) -> f64 {
        self.cumulative.last().copied().unwrap_or(0.0)
    }

    /// A packet's flow: its place.
    pub(crate) fn next(&self, random: &mut Random) -> usize {
        let at = random.unit() * self.total();
        self.cumulative.partition_point(|sum| *sum < at).min(self.flows.len() - 1)
    }
}

/// A slot as the programs have it.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// 0: empty; else the flow and one.
    flow: u32,
    packets: u64,
    last_ns: u64,
}

impl Slot {
    /// `cache::worth` of the programs.
    fn worth(&self, now_ns: u64) -> u64 {
        let is_recent = now_ns.saturating_sub(self.last_ns) < QUIET_NS;
        if is_recent { self.packets } else { self.packets & 1 }
    }
}

/// Records a packet of one CPU's cache: `cache::count` of the programs, so many packets of warming up, then as many that are counted.
pub(crate) fn simulated(shares: &Shares, slots: u32, packet_ns: f64, packets: u64) -> f64 {
    if shares.flows.is_empty() {
        return 0.0;
    }
    let homes: Vec<usize> = shares.flows.iter().map(|flow| home(*flow, slots)).collect();
    let mut cache = vec![Slot::default(); slots as usize];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut evicted = 0u64;
    for n in 0..packets * 2 {
        #[allow(clippy::cast_sign_loss, reason = "a time of minutes at most")]
        let now_ns = QUIET_NS + (n as f64 * packet_ns) as u64;
        let place = shares.next(&mut random);
        let flow = shares.flows[place] + 1;
        let at = homes[place];
        let mut index = at;
        if cache[at].flow != flow {
            let is_hit = cache[at ^ 1].flow == flow;
            let is_less = cache[at ^ 1].worth(now_ns) < cache[at].worth(now_ns);
            index = at ^ usize::from(is_hit || is_less);
        }
        let slot = &mut cache[index];
        if slot.flow == flow {
            slot.packets += 1;
            slot.last_ns = now_ns;
        } else {
            evicted += u64::from(slot.flow != 0 && n >= packets);
            *slot = Slot { flow, packets: 1, last_ns: now_ns };
        }
    }
    evicted as f64 / packets as f64
}

/// Records a packet by the formula of the module's head, pair by pair. A busiest flow that has a packet less than once in a second does not hold
/// its slot: then the pair keeps the two that came last.
pub(crate) fn by_pairs(shares: &Shares, slots: u32, packet_ns: f64) -> f64 {
    let total = shares.total();
    let mut pairs: Vec<Vec<f64>> = vec![Vec::new(); slots as usize / 2];
    let mut before = 0.0;
    for (flow, sum) in shares.flows.iter().zip(&shares.cumulative) {
        pairs[home(*flow, slots) / 2].push((sum - before) / total);
        before = *sum;
    }
    let a_sec = 1e9 / packet_ns;
    pairs.iter().filter(|pair| pair.len() > 2).map(|pair| misses(pair, a_sec)).sum()
}

/// Misses of one pair, of all packets of the CPU.
fn misses(pair: &[f64], packets_sec: f64) -> f64 {
    let all: f64 = pair.iter().sum();
    let most = pair.iter().copied().fold(0.0, f64::max);
    let rest = all - most;
    let squares: f64 = pair.iter().map(|p| p * p).sum();
    let held = rest - (squares - most * most) / rest;
    // Two that came last: a packet hits if it is of the flow of the packet before, or of the other flow before that one.
    let last: f64 = pair
        .iter()
        .map(|p| {
            let q = p / all;
            let other: f64 = pair.iter().map(|r| r / all).map(|r| r * q / (1.0 - r)).sum::<f64>() - q * q / (1.0 - q);
            p * (1.0 - q - other)
        })
        .sum();
    let holds = 1.0 - (-most * packets_sec).exp();
    holds * held + (1.0 - holds) * last
}

/// Records a packet where all flows are alike.
pub(crate) fn uniform(flows: f64, slots: u32) -> f64 {
    let others = 2.0 * (flows - 1.0).max(0.0) / f64::from(slots);
    // Where there are many, 1 - 2/k is what it is of the mean, and the sum below would be of nothing.
    let mut chance = (-others).exp();
    if chance < 1e-300 {
        return 1.0 - 2.0 / others;
    }
    let mut sum = 0.0;
    for k in 1..10_000 {
        sum += chance * (1.0 - 2.0 / f64::from(k)).max(0.0);
        chance *= others / f64::from(k);
    }
    sum
}
