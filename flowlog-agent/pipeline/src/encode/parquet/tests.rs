use flowlog_ebpf::abi::{Key, Meta, Record4, Record6, Stats, class};
use flowlog_model::{MonoNs, Now, WallNs, rule::Rule};

use super::*;
use crate::{
    encode::rows::CHOSEN as ORDER,
    window::{FlowTable, Settled, WindowClock},
};

/// A window of so many flows, of both families, in both directions, a seventh of them refused.
fn window(flows: u16) -> (ObjectInfo, Settled) {
    let mut table = FlowTable::default();
    for n in 0..flows {
        let of_class = if n % 7 == 0 { class::REFUSED } else { class::PASSED };
        let flags = Meta::pack(u8::from(n % 2 == 0), of_class);
        let meta = Meta { sport: n, dport: 443, proto: 6, flags, reason: 8, ..Meta::default() };
        let stats = Stats { first_ns: u64::from(n), bytes: 100, packets: 1 + u64::from(n % 3), ..Stats::default() };
        if n % 5 == 0 {
            table.add6(&Record6 { key: Key { src: [1, u64::from(n)], dst: [2, 3], meta }, stats });
        } else {
            table.add4(&Record4 { key: Key { src: u32::from(n), dst: 2, meta }, stats });
        }
    }
    table.seal();
    let span = *WindowClock::new(60, Now { mono: MonoNs(0), wall: WallNs(1_800_000_000_000_000_000) }).current();
    let info = ObjectInfo::sample(Rule::sample(60), "n", "n-eth0", span);
    (info, Settled { table, ..Settled::default() })
}

#[test]
fn two_threads_write_the_bytes_that_one_writes() {
    // In one row group; in several; in several that end where a dictionary is long, which one of the threads finds out.
    for (row_group_rows, dictionary_bytes) in [(1 << 20, 1 << 20), (1_000, 1 << 20), (1_000, 2_000)] {
        for flows in [0, 1, 127, 128, 129, 3_000] {
            let (info, settled) = window(flows);
            let rows = Rows::select(&info, &settled, ORDER);
            let profile = Profile { dictionary_bytes, row_group_rows, ..CHOSEN };
            let object = |threads| write_with(&info, &rows, &Names::none(), profile, threads).expect("an object");
            assert!(object(1) == object(2), "{flows} flows, {row_group_rows} rows, {dictionary_bytes} bytes");
        }
    }
}
