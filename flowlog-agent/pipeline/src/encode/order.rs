//! The order that rows are written in.

use flowlog_model::rule::Direction;
use hashbrown::{HashMap, hash_map::Entry};

use crate::window::{Addresses, Flow};

/// Order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By the time of a flow's first packet.
    Start,
    /// By direction, family, service (protocol and lower port) and the address at the other end: rows of one customer's
    /// interface then differ least from their neighbours.
    Service,
}

impl Order {
    /// For the metadata. Parquet's own field for it knows orders of columns only.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Start => "flows: start",
            Self::Service => "flows: flow_direction, type, protocol, the lower port, the address at the other end",
        }
    }
}

/// What objects are written in.
pub const CHOSEN: Order = Order::Service;

/// Puts flows in the order of their keys, and those with the same key in that of their numbers. Keys are few in their upper half, the service,
/// and many in the lower one, the address: by the upper half flows are put where they belong by counting, and only the flows of one service are
/// sorted, which the cache next to the processor holds.
pub(super) struct Sorter {
    /// By upper half of the key.
    services: HashMap<u32, u16>,
    /// By number of the service: the upper half of its keys, and how many flows it has.
    sizes: Vec<(u32, usize)>,
    /// Lower half of the key and number of the flow, in the order in which they came.
    flows: Vec<u64>,
    /// The service of each.
    of: Vec<u16>,
    /// Flows of services that no number was left for: key and number, in one number, as comparing pairs takes twice as long.
    rest: Vec<u128>,
}

/// As many services have a number.
#[cfg(test)]
const SERVICES_MAX: usize = 1 << u16::BITS;

/// The lower half of a key, and of what it is put together with.
#[inline]
fn lower(n: u64) -> u32 {
    let [lower @ .., _, _, _, _] = n.to_le_bytes();
    u32::from_le_bytes(lower)
}

impl Sorter {
    /// For so many flows.
    pub(super) fn with_room(flows: usize) -> Self {
        let (services, sizes, rest) = (HashMap::new(), Vec::new(), Vec::new());
        Self { services, sizes, flows: Vec::with_capacity(flows), of: Vec::with_capacity(flows), rest }
    }

    /// Adds a flow. Their numbers ascend.
    #[inline]
    pub(super) fn push(&mut self, key: u64, number: u32) {
        let upper = lower(key >> u32::BITS);
        let service = match self.services.entry(upper) {
            Entry::Occupied(found) => *found.get(),
            Entry::Vacant(place) => {
                let Ok(new) = u16::try_from(self.sizes.len()) else {
                    return self.rest.push(u128::from(key) << u32::BITS | u128::from(number));
                };
                self.sizes.push((upper, 0));
                *place.insert(new)
            }
        };
        self.sizes[usize::from(service)].1 += 1;
        self.flows.push(u64::from(lower(key)) << u32::BITS | u64::from(number));
        self.of.push(service);
    }

    /// The numbers of the flows in their order.
    pub(super) fn sorted(mut self) -> Vec<u32> {
        let mut services: Vec<u16> = (0..=u16::MAX).take(self.sizes.len()).collect();
        services.sort_unstable_by_key(|service| self.sizes[usize::from(*service)].0);
        let mut places = vec![0; services.len()];
        let mut next = 0;
        for service in services.iter().map(|service| usize::from(*service)) {
            places[service] = next;
            next += self.sizes[service].1;
        }
        let mut sorted = vec![0; self.flows.len()];
        for (flow, service) in self.flows.iter().zip(&self.of) {
            let place = &mut places[usize::from(*service)];
            sorted[*place] = *flow;
            *place += 1;
        }
        let (mut left, mut spare) = (sorted.as_mut_slice(), self.flows.as_mut_slice());
        for (_, size) in services.iter().map(|service| self.sizes[usize::from(*service)]) {
            sort(left.split_off_mut(..size).unwrap_or_default(), spare.split_off_mut(..size).unwrap_or_default());
        }
        if self.rest.is_empty() { sorted.into_iter().map(lower).collect() } else { self.with_rest(&services, &sorted) }
    }

    /// The sorted flows of these services with those of all others in between.
    #[cold]
    fn with_rest(mut self, services: &[u16], sorted: &[u64]) -> Vec<u32> {
        let mut all = Vec::with_capacity(sorted.len() + self.rest.len());
        let mut left = sorted;
        for (upper, size) in services.iter().map(|service| self.sizes[usize::from(*service)]) {
            let of_it = left.split_off(..size).unwrap_or_default();
            all.extend(of_it.iter().map(|flow| u128::from(upper) << u64::BITS | u128::from(*flow)));
        }
        all.append(&mut self.rest);
        all.sort_unstable();
        all.into_iter().map(|flow| lower(u64::try_from(flow & u128::from(u64::MAX)).unwrap_or_default())).collect()
    }
}

/// Flows below which comparing them is as fast as counting.
const FEW: usize = 256;
/// Bits of a key that are put in order at once: as many as there are places that the nearest cache has lines for.
const DIGIT_BITS: u32 = 8;
const DIGITS: usize = 1 << DIGIT_BITS;
/// Passes that put the half of a key in order that differs among flows of a service.
const PASSES: usize = (u32::BITS / DIGIT_BITS) as usize;

/// The bits of the key that a pass puts in order.
#[inline]
fn digit(flow: u64, pass: usize) -> usize {
    usize::from(flow.to_le_bytes()[size_of::<u32>() + pass])
}

/// Sorts the flows of a service, which are in the order of their numbers: by one digit of the key after the other, the lowest first. `spare` is
/// as long.
fn sort(flows: &mut [u64], spare: &mut [u64]) {
    if flows.len() < FEW {
        return flows.sort_unstable();
    }
    let mut counts = [[0_usize; DIGITS]; PASSES];
    for flow in &*flows {
        for (pass, counts) in counts.iter_mut().enumerate() {
            counts[digit(*flow, pass)] += 1;
        }
    }
    let (mut from, mut to) = (flows, spare);
    let mut is_back = true;
    for (pass, places) in counts.iter_mut().enumerate() {
        // The same in all of them.
        if places.contains(&from.len()) {
            continue;
        }
        let mut next = 0;
        for place in places.iter_mut() {
            next += std::mem::replace(place, next);
        }
        for flow in &*from {
            let place = &mut places[digit(*flow, pass)];
            to[*place] = *flow;
            *place += 1;
        }
        std::mem::swap(&mut from, &mut to);
        is_back = !is_back;
    }
    if !is_back {
        to.copy_from_slice(from);
    }
}

/// [`Order::Service`] in one word: all of an IPv4 address, 32 bits of the first half of an IPv6 address.
pub(super) fn by_service(f: &Flow) -> u64 {
    let egress = f.direction == Direction::Egress;
    let (v6, peer) = match f.addresses {
        Addresses::V4(src, dst) => (false, u32::from_be(if egress { dst } else { src })),
        Addresses::V6(src, dst) => {
            let [hi, lo] = if egress { dst } else { src };
            // A network's hosts differ in the second half, networks in the first.
            let mixed = u64::from_be(hi) ^ u64::from_be(lo).rotate_left(16);
            (true, u32::try_from(mixed & u64::from(u32::MAX)).unwrap_or_default())
        }
    };
    let service = u64::from(f.sport.min(f.dport));
    u64::from(egress) << 57 | u64::from(v6) << 56 | u64::from(f.proto) << 48 | service << 32 | u64::from(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_sorted_by_key_and_number(name: &str, keys: impl Iterator<Item = u64>) {
        let mut sorter = Sorter::with_room(0);
        let mut wanted = Vec::new();
        for (number, key) in (0..).step_by(3).zip(keys) {
            sorter.push(key, number);
            wanted.push((key, number));
        }
        wanted.sort_unstable();
        assert!(sorter.sorted() == wanted.into_iter().map(|(_, number)| number).collect::<Vec<_>>(), "{name}");
    }

    #[test]
    fn flows_are_in_the_order_of_their_keys_and_then_of_their_numbers() {
        let mut state = 7_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ state >> 29
        };
        // Keys that differ in some bits of both halves, in none, and in one digit alone, which no other one makes up for.
        let digits = (0..PASSES).map(|pass| 0xff << (pass * 8) | 1 << 40);
        for mask in [0x0300_00ff_ffff_ffff, 0x0100_0001_0f00_00ff, 0].into_iter().chain(digits) {
            for flows in [0, 1, 2, FEW - 1, FEW, FEW + 1, 10_000] {
                is_sorted_by_key_and_number(
                    &format!("{flows} flows, mask {mask:x}"),
                    (0..flows).map(|_| random() & mask),
                );
            }
        }
        // More services than have a number, each with a few flows.
        let scattered = (0..3 * SERVICES_MAX as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 6 | 3);
        is_sorted_by_key_and_number("many services", scattered);
        let dense = (0..3 * SERVICES_MAX as u64).map(|n| ((n % (SERVICES_MAX as u64 + 99)) << 32) | (n % 7));
        is_sorted_by_key_and_number("a few services too many", dense);
    }
}
