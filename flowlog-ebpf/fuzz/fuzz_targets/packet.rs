//! `cargo +nightly fuzz run packet` in `flowlog-ebpf`: any bytes, any claims about them.
#![no_main]

use flowlog_ebpf::packet::{Frame, check_invariants};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, u16, bool, u32, u32, &[u8])| {
    let (extra, vlan_tci, link_header, gso_size, gso_segs, bytes) = input;
    // A frame is never shorter than the bytes at hand; GSO frames end at 512 KiB (`GSO_MAX_SIZE`), segments at 16 bits.
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_add(extra % (512 << 10));
    let frame = Frame { len, vlan_tci, link_header };
    check_invariants(bytes, frame, gso_size & 0xffff, gso_segs & 0xffff);
});
