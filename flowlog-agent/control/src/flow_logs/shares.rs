//! Who has how much of what is remembered. When there is too much of it, the oldest of whoever has the most is forgotten: a flood of one
//! contract pushes out its own history, and no other's.

use std::collections::{BTreeMap, VecDeque};

use crate::inventory::Contract;

/// Numbers of what is remembered, by contract, oldest first.
#[derive(Debug, Default)]
pub(super) struct Shares {
    by_contract: BTreeMap<Contract, VecDeque<u64>>,
    total: usize,
}

impl Shares {
    /// Numbers of what is remembered of a contract, the newest first.
    pub(super) fn newest(&self, contract: &Contract) -> impl Iterator<Item = u64> {
        self.by_contract.get(contract).into_iter().flat_map(|numbers| numbers.iter().rev().copied())
    }

    /// One more, with a higher number than all of its contract.
    pub(super) fn push(&mut self, contract: &Contract, number: u64) {
        self.by_contract.entry(contract.clone()).or_default().push_back(number);
        self.total += 1;
    }

    /// Forgets one; `None` if there is nothing.
    pub(super) fn forget(&mut self) -> Option<(Contract, u64)> {
        let (contract, numbers) = self.by_contract.iter_mut().max_by_key(|(_, numbers)| numbers.len())?;
        let contract = contract.clone();
        let oldest = numbers.pop_front()?;
        if numbers.is_empty() {
            self.by_contract.remove(&contract);
        }
        self.total -= 1;
        Some((contract, oldest))
    }

    /// Forgets until there are no more than `most`; returns what, in that order.
    pub(super) fn forget_past(&mut self, most: usize) -> Vec<(Contract, u64)> {
        (most..self.total).filter_map(|_| self.forget()).collect()
    }

    /// Takes the last [`push`](Self::push) of a contract back.
    pub(super) fn undo_push(&mut self, contract: &Contract) {
        if let Some(numbers) = self.by_contract.get_mut(contract)
            && numbers.pop_back().is_some()
        {
            self.total -= 1;
        }
    }

    /// Takes the last [`forget`](Self::forget) back.
    pub(super) fn undo_forget(&mut self, contract: Contract, number: u64) {
        self.by_contract.entry(contract).or_default().push_front(number);
        self.total += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_pushes_out_its_own_and_what_is_taken_back_is_as_before() {
        let contract = |n: u32| n.to_string().parse::<Contract>().expect("a contract");
        let quiet = contract(1);
        let loud = contract(2);
        let mut shares = Shares::default();
        for number in 0..10 {
            shares.push(&quiet, number);
        }
        for number in 10..1_000 {
            shares.push(&loud, number);
            assert!(shares.forget_past(30).iter().all(|(whose, _)| *whose == loud));
        }
        assert_eq!(shares.by_contract[&quiet], (0..10).collect::<VecDeque<_>>());
        assert_eq!(shares.by_contract[&loud], (980..1_000).collect::<VecDeque<_>>());
        shares.push(&quiet, 1_000);
        let (whose, number) = shares.forget().expect("there are some");
        shares.undo_forget(whose, number);
        shares.undo_push(&quiet);
        assert_eq!(
            (shares.total, shares.by_contract[&quiet].back(), shares.by_contract[&loud].front()),
            (30, Some(&9), Some(&980))
        );
    }
}
