//! Translations that were told, joined, kept and asked for.

use std::net::Ipv4Addr;

use flowlog_ebpf::abi::Record4;
use flowlog_model::translation::{Service, Tuple};

use super::*;

fn ip(last: u8) -> Ip4 {
    u32::from_ne_bytes([10, 0, 0, last])
}

/// A record of packets from and to such addresses, with ports of the same numbers.
fn record(direction: u8, class: u8, (src, dst): (u8, u8)) -> Record4 {
    let flags = Meta::pack(direction, class);
    let meta = Meta { sport: src.into(), dport: dst.into(), iface: 1, epoch: 1, proto: 17, flags, ..Meta::default() };
    let stats = Stats { first_ns: 1, last_ns: 2, bytes: 100, packets: 1, ..Stats::default() };
    Record { key: Key { src: ip(src), dst: ip(dst), meta }, stats }
}

fn passed(direction: u8, ends: (u8, u8)) -> Record4 {
    record(direction, class::PASSED, ends)
}

fn told(ends: (u8, u8), (src, dst): (u8, u8)) -> Record4 {
    let side = Side { src: ip(src).wide(), dst: ip(dst).wide(), sport: src.into(), dport: dst.into() };
    Record { stats: side.pack(), ..record(EGRESS, class::TOLD, ends) }
}

fn table(records: &[Record4]) -> FlowTable {
    let mut table = FlowTable::default();
    for record in records {
        table.add4(record);
    }
    table
}

fn sides(table: &FlowTable) -> Vec<Option<OtherSide>> {
    table.flows().map(|f| table.other_side(&f)).collect()
}

fn is(src: u8, dst: u8) -> OtherSide {
    OtherSide::Is(Addresses::V4(ip(src), ip(dst)), src.into(), dst.into())
}

#[test]
fn what_was_told_of_answers_holds_for_what_comes_in_and_in_the_next_window() {
    let mut first = table(&[passed(EGRESS, (1, 9)), told((1, 9), (5, 9)), passed(INGRESS, (9, 1))]);
    let kept = first.join(&Kept::default(), false, KEPT_MAX);
    assert_eq!(sides(&first), [Some(is(5, 9)), Some(is(9, 5))]);
    assert_eq!((first.untold(), kept.len()), (Untold::default(), 1));
    let mut second = table(&[passed(INGRESS, (9, 1))]);
    assert_eq!(second.questions(&kept).tuples, []);
    let kept = second.join(&kept, false, KEPT_MAX);
    assert_eq!((sides(&second), second.untold(), kept.len()), (vec![Some(is(9, 5))], Untold::default(), 1));
    // It has not been heard of for a whole window.
    let kept = table(&[]).join(&kept, false, KEPT_MAX);
    let mut fourth = table(&[passed(INGRESS, (9, 1))]);
    assert_eq!(fourth.questions(&kept).tuples.len(), 1);
    fourth.join(&kept, false, KEPT_MAX);
    assert_eq!((sides(&fourth), fourth.untold().unknown), (vec![None], 1));
}

#[test]
fn what_there_is_no_room_for_is_counted_and_the_latest_is_kept() {
    let mut first = table(&[told((1, 9), (5, 9)), told((2, 9), (6, 9))]);
    let kept = first.join(&Kept::default(), false, 1);
    assert_eq!((kept.len(), first.untold().not_kept), (1, 1));
    let mut second = table(&[passed(INGRESS, (9, 2)), passed(INGRESS, (9, 1))]);
    second.join(&kept, false, KEPT_MAX);
    assert_eq!(sides(&second), [Some(is(9, 6)), None]);
}

#[test]
fn flows_whose_answers_go_out_without_a_word_are_not_translated_unless_words_were_lost() {
    let records = [passed(EGRESS, (1, 9)), passed(INGRESS, (9, 1)), record(INGRESS, class::REFUSED, (9, 3))];
    for (untold, unknown) in [(false, 0), (true, 3)] {
        let mut table = table(&records);
        table.join(&Kept::default(), untold, KEPT_MAX);
        assert_eq!((sides(&table), table.untold().unknown), (vec![None; 3], unknown));
    }
}

#[test]
fn several_connections_in_one_row_are_not_taken_for_one_not_even_after_a_snapshot() {
    let first = table(&[passed(EGRESS, (1, 9)), told((1, 9), (5, 9)), told((1, 9), (6, 9)), told((2, 9), (7, 9))]);
    let mut copy = FlowTable::default();
    first.blocks(1, 1, |block| block::Records::parse(block).expect("a block").for_each(|r| copy.add_all(&[r])));
    for table in [&first, &copy] {
        assert_eq!((sides(table), table.told()), (vec![Some(OtherSide::Several)], 2));
    }
}

#[test]
fn an_answer_of_connection_tracking_is_as_if_it_had_been_told() {
    let mut window = table(&[passed(INGRESS, (9, 1)), passed(INGRESS, (9, 2)), passed(INGRESS, (9, 3))]);
    let questions = window.questions(&Kept::default());
    let asked = questions.tuples[0];
    let inside = Tuple { dst: "10.0.0.5".parse().expect("an address"), dport: 5, ..asked };
    for block in answered((1, 1), &questions, &[Some(inside), Some(questions.tuples[1]), None]) {
        block::Records::parse(&block).expect("a block").for_each(|r| window.add_all(&[r]));
    }
    window.join(&Kept::default(), false, KEPT_MAX);
    assert_eq!((sides(&window), window.untold().unknown), (vec![Some(is(9, 5)), None, None], 1));
}

fn service(last: u8) -> Services {
    let address = Ipv4Addr::from(ip(last).to_ne_bytes()).into();
    Services { at: [Service { proto: 17, address, port: last.into() }].into(), by_mark: false }
}

#[test]
fn a_load_balancers_target_is_known_both_ways_and_what_it_has_forgotten_is_not_guessed() {
    let both = [passed(INGRESS, (9, 1)), passed(EGRESS, (1, 9)), passed(INGRESS, (8, 1)), passed(EGRESS, (1, 8))];
    let mut window = table(&both);
    assert_eq!(window.served(&Kept::default(), &service(2)).tuples, []);
    let questions = window.served(&Kept::default(), &service(1));
    let target = Tuple { dst: "10.0.0.5".parse().expect("an address"), dport: 5, ..questions.tuples[0] };
    for block in answered((1, 1), &questions, &[Some(target), None]) {
        block::Records::parse(&block).expect("a block").for_each(|r| window.add_all(&[r]));
    }
    let mut again = FlowTable::default();
    window.blocks(1, 1, |block| block::Records::parse(block).expect("a block").for_each(|r| again.add_all(&[r])));
    for window in [&mut window, &mut again] {
        assert_eq!(window.questions(&Kept::default()).tuples, []);
        let kept = window.join(&Kept::default(), false, KEPT_MAX);
        assert_eq!(sides(window), [Some(is(9, 5)), Some(is(5, 9)), None, None]);
        assert_eq!((window.untold().unknown, kept.len()), (2, 1));
    }
}
