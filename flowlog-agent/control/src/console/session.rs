//! Sessions: who has logged in with which browser. In memory only, so they end with the agent, and with the principals that they were
//! made of: whoever reads that file again asks everybody to log in again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use flowlog_model::{MonoNs, NS_PER_SEC};

use crate::flow_logs::{
    access::Caller,
    principals::{Principals, digest, new_token},
};

/// Sessions at the same time, of everybody: past it, whoever's contract has the most loses the one that was used longest ago.
const SESSIONS_MAX: usize = 1_024;
/// Of these, of one principal: browsers of one person.
const SESSIONS_EACH_MAX: usize = 16;
/// A session that nobody uses ends. What a page asks for by itself is no use.
const IDLE_SECS: i64 = 30 * 60;
/// A session ends, however much it is used: a working day.
const LIFE_SECS: i64 = 12 * 60 * 60;

/// How somebody came in: a session is of no use on another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// With a password, over TCP.
    Password,
    /// As this user of the node, on its socket.
    Socket { uid: u32 },
}

/// What a page needs of a session.
#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    pub caller: Caller,
    pub door: Door,
    /// What each form has in it: another site does not know it.
    pub form_token: String,
}

struct Session {
    visitor: Visitor,
    since: MonoNs,
    used: MonoNs,
    /// The principals that were known when it began.
    principals: Weak<Principals>,
}

/// See the module's head.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<BTreeMap<[u8; 32], Session>>);

fn has_passed(since: MonoNs, secs: i64, now: MonoNs) -> bool {
    now.0.saturating_sub(since.0) >= (secs * NS_PER_SEC).unsigned_abs()
}

impl Session {
    fn is_over(&self, principals: &Arc<Principals>, now: MonoNs) -> bool {
        let is_known =
            std::ptr::eq(self.principals.as_ptr(), Arc::as_ptr(principals)) && self.principals.strong_count() > 0;
        !is_known || has_passed(self.since, LIFE_SECS, now) || has_passed(self.used, IDLE_SECS, now)
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one; returns what the browser is to keep.
    pub(super) fn begin(
        &self,
        caller: Caller,
        door: Door,
        principals: &Arc<Principals>,
        now: MonoNs,
    ) -> (String, Visitor) {
        let mut all = self.lock();
        all.retain(|_, s| !s.is_over(principals, now));
        let id = caller.id();
        while all.values().filter(|s| s.visitor.caller.id() == id).count() >= SESSIONS_EACH_MAX {
            end_oldest(&mut all, |s| s.visitor.caller.id() == id);
        }
        if all.len() >= SESSIONS_MAX {
            let mut each = BTreeMap::<String, usize>::new();
            all.values().for_each(|s| *each.entry(owner(s)).or_default() += 1);
            let most = each.into_iter().max_by_key(|(_, n)| *n).map(|(owner, _)| owner).unwrap_or_default();
            end_oldest(&mut all, |s| owner(s) == most);
        }
        let (token, _) = new_token();
        let (form_token, _) = new_token();
        let visitor = Visitor { caller, door, form_token };
        let principals = Arc::downgrade(principals);
        all.insert(digest(&[&token]), Session { visitor: visitor.clone(), since: now, used: now, principals });
        (token, visitor)
    }

    /// The session that a browser has kept. `is_use`: a person asks, not a page by itself.
    pub(super) fn find(
        &self,
        token: &str,
        door: Door,
        principals: &Arc<Principals>,
        now: MonoNs,
        is_use: bool,
    ) -> Option<Visitor> {
        let mut all = self.lock();
        let key = digest(&[token]);
        let session = all.get_mut(&key)?;
        if session.is_over(principals, now) {
            all.remove(&key);
            return None;
        }
        if session.visitor.door != door {
            return None;
        }
        if is_use {
            session.used = now;
        }
        Some(session.visitor.clone())
    }

    /// Ends one.
    pub(super) fn end(&self, token: &str) {
        self.lock().remove(&digest(&[token]));
    }
}

/// Whose share a session is of.
fn owner(session: &Session) -> String {
    session.visitor.caller.contract().map(ToString::to_string).unwrap_or_default()
}

fn end_oldest(all: &mut BTreeMap<[u8; 32], Session>, of: impl Fn(&Session) -> bool) {
    let oldest = all.iter().filter(|(_, s)| of(s)).min_by_key(|(_, s)| s.used).map(|(key, _)| *key);
    if let Some(key) = oldest {
        all.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::flow_logs::access::{Principal, Role};

    fn caller(n: u128, contract: &str) -> Caller {
        let contract = contract.parse().expect("a contract");
        let id = Uuid::from_u128(n);
        Caller::Principal(Arc::new(Principal {
            id,
            name: n.to_string(),
            contract,
            role: Role::User,
            privileges: vec![],
        }))
    }

    fn at(secs: i64) -> MonoNs {
        MonoNs((secs * NS_PER_SEC).unsigned_abs())
    }

    #[test]
    fn a_session_ends_when_it_is_idle_when_it_is_old_and_when_the_principals_are_read_again() {
        let sessions = Sessions::default();
        let known = Arc::new(Principals::default());
        let door = Door::Password;
        let begin = || sessions.begin(caller(1, "1"), door, &known, at(0)).0;
        let is_there = |token: &str, secs, is_use| sessions.find(token, door, &known, at(secs), is_use).is_some();
        let idle = begin();
        assert!(
            is_there(&idle, 60, false) && is_there(&idle, IDLE_SECS - 1, false) && !is_there(&idle, IDLE_SECS, false)
        );
        let old = begin();
        assert!((1_000..LIFE_SECS).step_by(1_000).all(|secs| is_there(&old, secs, true)));
        assert!(!is_there(&old, LIFE_SECS, true));
        let told = begin();
        let read_again = Arc::new(Principals::default());
        assert!(sessions.find(&told, door, &read_again, at(1), true).is_none());
        assert!(!is_there(&told, 2, true), "it does not come back");
        let out = begin();
        sessions.end(&out);
        assert!(!is_there(&out, 1, true) && !is_there("", 1, true));
    }

    #[test]
    fn a_session_is_of_no_use_on_another_way_in() {
        let sessions = Sessions::default();
        let known = Arc::new(Principals::default());
        let (token, visitor) = sessions.begin(Caller::Operator, Door::Socket { uid: 0 }, &known, at(0));
        let find = |door| sessions.find(&token, door, &known, at(1), true);
        assert!(find(Door::Password).is_none() && find(Door::Socket { uid: 1 }).is_none());
        assert_eq!(find(Door::Socket { uid: 0 }).map(|v| v.form_token), Some(visitor.form_token));
    }

    #[test]
    fn a_crowd_of_one_contract_ends_its_own_sessions() {
        let sessions = Sessions::default();
        let known = Arc::new(Principals::default());
        let door = Door::Password;
        let (quiet, _) = sessions.begin(caller(1, "1"), door, &known, at(0));
        let crowd = (0..2_000).map(|n| sessions.begin(caller(100 + n / 20, "2"), door, &known, at(1)).0).last();
        let is_there = |token: &str| sessions.find(token, door, &known, at(2), true).is_some();
        assert!(is_there(&quiet) && crowd.is_some_and(|last| is_there(&last)));
        assert!(sessions.lock().len() <= SESSIONS_MAX);
        let of_one = |n| sessions.lock().values().filter(|s| s.visitor.caller.id() == Uuid::from_u128(n)).count();
        assert!(of_one(199) <= SESSIONS_EACH_MAX);
    }
}
