use flowlog_ebpf::abi::{Key, Meta, Record4, Stats};

use super::*;
use crate::window::block::Record;

/// Records of so many flows in no order, some of them again and again; a tenth is of IPv6, and a tenth refused after it was counted.
fn records(flows: u32) -> Vec<Record> {
    (0..flows * 4)
        .map(|n| {
            let flow = n.wrapping_mul(2_654_435_761) % flows;
            let of_class = if n % 10 == 3 { class::REFUSED_COUNTED } else { class::PASSED };
            let meta = Meta { sport: 7, dport: 8, proto: 6, flags: Meta::pack(0, of_class), ..Meta::default() };
            let stats = Stats { first_ns: 5, last_ns: 9, bytes: 400, packets: 10, ..Stats::default() };
            if flow.is_multiple_of(10) {
                Record::V6(flowlog_ebpf::abi::Record {
                    key: Key { src: [1, u64::from(flow)], dst: [2, 3], meta },
                    stats,
                })
            } else {
                Record::V4(Record4 { key: Key { src: flow, dst: 2, meta }, stats })
            }
        })
        .collect()
}

#[test]
fn records_that_are_added_together_make_the_table_that_they_make_one_by_one() {
    for flows in [1, 2, 63, 64, 65, 10_000] {
        let records = records(flows);
        let (mut together, mut one_by_one) = (FlowTable::default(), FlowTable::default());
        together.add_all(&records);
        for record in &records {
            match record {
                Record::V4(r) => one_by_one.add4(r),
                Record::V6(r) => one_by_one.add6(r),
            }
        }
        assert_eq!(together.flow_count(), one_by_one.flow_count(), "{flows}");
        let all = |table: &FlowTable| table.numbers().map(|n| table.settled(n)).collect::<Vec<_>>();
        assert!(all(&together) == all(&one_by_one), "{flows}");
    }
}
