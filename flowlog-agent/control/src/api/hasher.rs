//! Passwords, checked on threads of their own. Hashing is slow and large on purpose (Argon2id, 19 MiB each), so there are never more
//! at a time than there are threads, whatever becomes of the connections that asked: a check nobody waits for is not begun.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::flow_logs::{access::Caller, principals::Principals};

/// Passwords that are checked at the same time.
const THREADS: usize = 2;
/// Passwords that wait for it: a second's work.
const WAITING_MAX: usize = 32;
/// Of these, from one address.
const WAITING_EACH_MAX: usize = 8;

/// A name and a password somebody gave.
pub(super) struct Guess {
    pub principals: Arc<Principals>,
    pub address: IpAddr,
    pub name: String,
    pub password: String,
}

struct Job {
    guess: Guess,
    answer: oneshot::Sender<Option<Caller>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    each: HashMap<IpAddr, usize>,
    /// The hasher is gone.
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

/// See the module's head.
pub(super) struct Hasher(Arc<Shared>);

impl Hasher {
    /// Starts the threads. `give_back` returns freed memory to the system; it is called when there is nothing left to do.
    pub(super) fn start(give_back: fn()) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        for _ in 0..THREADS {
            let shared = shared.clone();
            let work = move || shared.work(give_back);
            std::thread::Builder::new().name("hash".to_owned()).spawn(work)?;
        }
        Ok(Self(shared))
    }

    /// Has a password checked; `None`: too many wait already, in all or from this address. When all places are taken, the last one
    /// of whoever has the most is given up for somebody who has fewer.
    pub(super) fn ask(&self, guess: Guess) -> Option<oneshot::Receiver<Option<Caller>>> {
        let mut queue = self.0.lock();
        let Queue { waiting, each, .. } = &mut *queue;
        waiting.retain(|job| {
            let has_gone = job.answer.is_closed();
            if has_gone {
                leave(each, job.guess.address);
            }
            !has_gone
        });
        let mine = each.get(&guess.address).copied().unwrap_or_default();
        if mine >= WAITING_EACH_MAX {
            return None;
        }
        if waiting.len() >= WAITING_MAX {
            let crowd = each.iter().filter(|(_, n)| **n > mine + 1).max_by_key(|(_, n)| **n);
            let most = *crowd?.0;
            let last = waiting.iter().rposition(|job| job.guess.address == most)?;
            waiting.remove(last);
            leave(each, most);
        }
        *each.entry(guess.address).or_default() += 1;
        let (answer, answered) = oneshot::channel();
        waiting.push_back(Job { guess, answer });
        self.0.more.notify_one();
        Some(answered)
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.more.notify_all();
    }
}

/// A job of this address is not waiting any more.
fn leave(each: &mut HashMap<IpAddr, usize>, address: IpAddr) {
    if let Some(n) = each.get_mut(&address) {
        *n = n.saturating_sub(1);
        if *n == 0 {
            each.remove(&address);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, give_back: fn()) {
        while let Some(Job { guess, answer }) = self.next(give_back) {
            if answer.is_closed() {
                continue;
            }
            let Guess { principals, name, password, .. } = guess;
            let _ = answer.send(principals.by_password(&name, &password));
        }
    }

    /// Waits for the next one; `None`: there will be none.
    fn next(&self, give_back: fn()) -> Option<Job> {
        let mut queue = self.lock();
        if queue.waiting.is_empty() {
            drop(queue);
            give_back();
            queue = self.lock();
        }
        loop {
            if queue.is_over {
                return None;
            }
            if let Some(job) = queue.waiting.pop_front() {
                leave(&mut queue.each, job.guess.address);
                return Some(job);
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(address: u8) -> Guess {
        let name = "nobody".to_owned();
        let password = "guess".to_owned();
        Guess { principals: Arc::default(), address: IpAddr::from([10, 0, 0, address]), name, password }
    }

    #[test]
    fn one_address_has_its_share_of_the_places_and_whoever_goes_makes_room() {
        // No threads: nothing is taken from the queue.
        let hasher = Hasher(Arc::default());
        let held: Vec<_> = (0..WAITING_EACH_MAX).map(|_| hasher.ask(guess(1)).expect("a place")).collect();
        assert!(hasher.ask(guess(1)).is_none() && hasher.ask(guess(2)).is_some());
        drop(held);
        assert!(hasher.ask(guess(1)).is_some(), "those who have gone do not count");
        let all: Vec<_> = (3..=255).map_while(|address| hasher.ask(guess(address))).collect();
        assert!(all.len() < 253 && hasher.ask(guess(2)).is_none(), "the queue ends");
    }

    #[test]
    fn a_crowd_makes_room_for_whoever_has_fewer() {
        let hasher = Hasher(Arc::default());
        let crowd = |n: u8| (0..WAITING_EACH_MAX).map(move |_| n);
        let mut held: Vec<_> = (1..=4).flat_map(crowd).map(|n| hasher.ask(guess(n)).expect("a place")).collect();
        let mut one = hasher.ask(guess(9)).expect("of the crowd");
        let closed = Err(oneshot::error::TryRecvError::Closed);
        let gone = held.iter_mut().filter_map(|a| (a.try_recv() == closed).then_some(())).count();
        assert_eq!(gone, 1);
        assert!((0..100).all(|n| hasher.ask(guess(1 + n % 4)).is_none()), "it does not come back for it");
        assert_eq!(one.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }

    #[test]
    fn a_check_is_answered_and_one_that_nobody_waits_for_is_not_begun() {
        let hasher = Hasher::start(|| {}).expect("threads");
        let answered = hasher.ask(guess(1)).expect("a place");
        assert_eq!(answered.blocking_recv().expect("an answer"), None);
        for n in 0..10_000_u32 {
            drop(hasher.ask(guess(n.to_le_bytes()[0])));
        }
        // Hashing them all would take minutes.
        let answered = hasher.ask(guess(1)).expect("a place");
        assert_eq!(answered.blocking_recv().expect("an answer"), None);
    }
}
