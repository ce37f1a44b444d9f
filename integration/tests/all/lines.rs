//! What a packet costs in cache lines: the programs that are shipped, instruction by instruction, on an interpreter.

use integration::{
    machine::LINE_BYTES,
    touched::{CountedAt, hit},
    traffic,
};

/// Interface, head of the CPU's scratch state, counters of the hook, the note, the table of banks, the slot.
const TC_LINES: usize = 6;
/// XDP keeps no note.
const XDP_LINES: usize = 5;

/// Lines by what they are of.
fn lines(hook: CountedAt, skew_bytes: u64) -> Vec<(String, usize)> {
    let ends = ("10.0.0.1".parse().unwrap(), 4_000);
    let packet = traffic::udp4(([2; 6], [4; 6]), ends, ("10.0.0.2".parse().unwrap(), 53), 100);
    hit(hook, &packet, skew_bytes).unwrap().lines.into_iter().collect()
}

#[test]
fn a_hit_touches_no_more_cache_lines_than_promised() {
    for (hook, most) in [(CountedAt::TcIngress, TC_LINES), (CountedAt::Xdp, XDP_LINES)] {
        let aligned = lines(hook, 0);
        assert_eq!(aligned.iter().map(|(_, n)| n).sum::<usize>(), most, "{hook:?}: {aligned:?}");
        // Per-CPU memory may begin anywhere: then the slot is in two.
        for skew_bytes in (8..LINE_BYTES).step_by(8) {
            let lines = lines(hook, skew_bytes);
            assert_eq!(lines.iter().map(|(_, n)| n).sum::<usize>(), most + 1, "{hook:?}, {skew_bytes}: {lines:?}");
        }
    }
}
