//! Who has how many of a listener's seats. When all are taken, whoever has the most gives one up for somebody who has fewer: a
//! crowd from anywhere takes what is free, and nobody else's share.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flowlog_host::clock;
use flowlog_model::MonoNs;
use tokio::sync::Notify;

use crate::{flow_logs::access::Caller, inventory::Contract};

/// Connections at the same time on each listener.
const SEATS: usize = 256;
/// Of these, from one address or one user of the node: more are closed at once.
const SEATS_EACH: usize = 64;
/// For so long a stranger keeps its seat when all are taken, however few it has: who knows its password has said it by then.
const STRANGERS_STAY_NS: u64 = 2_000_000_000;
/// Seats that strangers can take from those who are known: so many are enough to become known.
const SEATS_OF_STRANGERS: usize = 64;

/// Whose a connection is: of whoever it comes from, and of its contract as soon as that is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    Address(IpAddr),
    /// A user of the node, on its socket.
    User(u32),
    Contract(Contract),
    /// Root of the node, on its socket: is always let in.
    Operator,
}

impl Owner {
    /// An address; of IPv6 its network, since whoever has one address there has them all.
    #[must_use]
    pub(crate) fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }

    fn is_known(&self) -> bool {
        matches!(self, Self::Contract(_) | Self::Operator)
    }
}

/// A connection that has its place.
struct Taken {
    from: Owner,
    owner: Owner,
    since: MonoNs,
    /// Requests that are being answered.
    busy: usize,
    /// Of these, streams that go on; and when somebody last read from one.
    streams: usize,
    read: MonoNs,
    /// It is to end.
    end: Arc<Notify>,
}

#[derive(Default)]
struct Seats {
    taken: BTreeMap<u64, Taken>,
    next: u64,
}

/// See the module's head.
#[derive(Clone, Default)]
pub(crate) struct Room(Arc<Mutex<Seats>>);

/// A seat that is taken; free again when dropped.
pub(crate) struct Seat {
    room: Room,
    number: u64,
    end: Arc<Notify>,
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat; `None`: there is none for this one.
    pub(crate) fn take(&self, from: Owner, now: MonoNs) -> Option<Seat> {
        let mut seats = self.lock();
        if from != Owner::Operator && !seats.make_room(&from, now) {
            return None;
        }
        let number = seats.next;
        let end = Arc::new(Notify::new());
        seats.next += 1;
        let owner = from.clone();
        seats.taken.insert(number, Taken { from, owner, since: now, busy: 0, streams: 0, read: now, end: end.clone() });
        Some(Seat { room: self.clone(), number, end })
    }
}

impl Seats {
    /// Whether one more of these may come; whoever has the most makes room for it.
    fn make_room(&mut self, from: &Owner, now: MonoNs) -> bool {
        let others = || self.taken.iter().filter(|(_, t)| t.owner != Owner::Operator);
        let mine = others().filter(|(_, t)| t.from == *from).count();
        if mine >= SEATS_EACH {
            return false;
        }
        if others().count() < SEATS {
            return true;
        }
        let mut each = BTreeMap::<&Owner, usize>::new();
        let mut strangers = 0;
        for (_, t) in others() {
            *each.entry(&t.owner).or_default() += 1;
            strangers += usize::from(!t.owner.is_known());
        }
        let count = |t: &Taken| each.get(&t.owner).copied().unwrap_or_default();
        let may_go = |t: &Taken| {
            let is_more = count(t) > mine + 1;
            let has_stayed = now.0.saturating_sub(t.since.0) > STRANGERS_STAY_NS;
            if t.owner.is_known() { is_more && strangers < SEATS_OF_STRANGERS } else { is_more || has_stayed }
        };
        // Strangers before those who are known, then of whoever has the most, then what is idle, then the oldest.
        let order = |t: &Taken| (t.owner.is_known(), std::cmp::Reverse(count(t)), t.busy > 0);
        let candidates = others().filter(|(_, t)| may_go(t));
        let Some((number, _)) = candidates.min_by_key(|(number, t)| (order(t), **number)) else { return false };
        let number = *number;
        if let Some(gone) = self.taken.remove(&number) {
            gone.end.notify_one();
        }
        true
    }
}

impl Seat {
    fn change(&self, change: impl FnOnce(&mut Taken)) {
        if let Some(taken) = self.room.lock().taken.get_mut(&self.number) {
            change(taken);
        }
    }

    /// Somebody is known on this connection now.
    pub(crate) fn known_as(&self, caller: &Caller) {
        let owner = caller.contract().map_or(Owner::Operator, |contract| Owner::Contract(contract.clone()));
        self.change(|t| t.owner = owner);
    }

    /// Whether a stream goes on that somebody has read from in so much time.
    pub(crate) fn is_streaming(&self, within_ns: u64, now: MonoNs) -> bool {
        let seats = self.room.lock();
        seats.taken.get(&self.number).is_some_and(|t| t.streams > 0 && now.0.saturating_sub(t.read.0) < within_ns)
    }

    /// Waits until somebody else needs the seat.
    pub(crate) async fn needed(&self) {
        self.end.notified().await;
    }
}

/// A request that is being answered; until it is dropped.
pub(crate) struct Busy(Arc<Seat>);

impl Busy {
    pub(crate) fn new(seat: Arc<Seat>) -> Self {
        seat.change(|t| t.busy += 1);
        Self(seat)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(|t| t.busy = t.busy.saturating_sub(1));
    }
}

/// An answer that goes on; until it is dropped.
pub(crate) struct Streaming(Busy);

impl Streaming {
    pub(crate) fn new(seat: Arc<Seat>) -> Self {
        seat.change(|t| t.streams += 1);
        let streaming = Self(Busy::new(seat));
        streaming.is_read();
        streaming
    }

    /// Somebody has taken what there was.
    pub(crate) fn is_read(&self) {
        let now = clock::now().mono;
        self.0.0.change(|t| t.read = now);
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.0.change(|t| t.streams = t.streams.saturating_sub(1));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.lock().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Owner {
        Owner::at(IpAddr::from([10, 0, 0, n]))
    }

    fn contract(n: u32) -> Owner {
        Owner::Contract(n.to_string().parse().expect("a contract"))
    }

    fn is_open(room: &Room, seat: &Seat) -> bool {
        room.lock().taken.contains_key(&seat.number)
    }

    #[test]
    fn whoever_has_the_most_makes_room_and_has_no_more_than_its_share() {
        let room = Room::default();
        let now = MonoNs(0);
        let fill = |n: u8| (0..SEATS_EACH).map(|_| room.take(address(n), now).expect("a seat")).collect::<Vec<_>>();
        let crowd: Vec<Vec<Seat>> = (1..=4).map(fill).collect();
        assert!(room.take(address(1), now).is_none(), "its share is taken");
        let one = room.take(address(9), now).expect("a seat");
        let gone = crowd.iter().flatten().filter(|p| !is_open(&room, p)).count();
        assert!(gone == 1 && is_open(&room, &one));
        // A crowd that comes back takes its own seats.
        let _more: Vec<Seat> = (0..100).filter_map(|n| room.take(address(1 + n % 4), now)).collect();
        assert!(is_open(&room, &one));
        assert!(room.take(Owner::Operator, now).is_some());
    }

    #[test]
    fn strangers_make_room_before_those_who_are_known_and_a_contract_has_its_share() {
        let room = Room::default();
        let now = MonoNs(0);
        let take = |n: u8, owner: Option<Owner>| {
            let seat = room.take(address(n), now).expect("a seat");
            if let Some(owner) = owner {
                seat.change(|t| t.owner = owner);
            }
            seat
        };
        let loud: Vec<Seat> = (0..191).map(|n: u8| take(n % 4, Some(contract(1)))).collect();
        let quiet = take(7, Some(contract(2)));
        let strangers: Vec<Seat> = (0..64).map(|n: u8| take(100 + n, None)).collect();
        // Strangers are not known better for being many addresses: after a moment they make room.
        assert!(room.take(address(99), now).is_none(), "they have just come");
        let later = MonoNs(2 * STRANGERS_STAY_NS);
        assert!(room.take(address(99), later).is_some());
        assert_eq!(strangers.iter().filter(|p| !is_open(&room, p)).count(), 1);
        drop(strangers);
        let _full: Vec<Seat> = (0..64).map(|n: u8| take(100 + n, Some(contract(1)))).collect();
        let newcomer = room.take(address(99), now).expect("of the loud one");
        assert!(is_open(&room, &quiet) && is_open(&room, &newcomer));
        assert!(room.take(address(98), now).is_some());
        assert_eq!(loud.iter().filter(|p| !is_open(&room, p)).count(), 2);
        assert!(is_open(&room, &quiet));
    }

    #[test]
    fn an_address_of_ipv6_stands_for_its_network() {
        let at = |text: &str| Owner::at(text.parse().expect("an address"));
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:3::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:10.0.0.1"), address(1));
    }
}
