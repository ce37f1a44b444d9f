//! What the programs need to know about the running kernel: struct offsets and drop reasons, by name.

pub(crate) mod connection;
pub(crate) mod known;
mod mark;
mod moves;
mod reasons;

use flowlog_ebpf::abi::{KernelOffsets, Place};

pub(crate) use self::mark::MarkWords;
pub use self::{
    mark::{Mark, MarkFrom},
    moves::Moves,
    reasons::Reasons,
};
use super::{KernelError, btf::Btf};

/// Functions whose unexplained drops are generic XDP's.
const XDP_FUNCTIONS: [&str; 2] = ["do_xdp_generic", "netif_receive_generic_xdp"];
/// More text than this in between, and the functions do not lie together.
const RANGE_MAX: u64 = 64 << 10;
const KALLSYMS: &str = "/proc/kallsyms";

/// The function of unexplained drops by routes to nowhere: `unreachable`, `prohibit` and `blackhole` of IPv4, on a node that forwards.
const ROUTE_FUNCTIONS: [&str; 1] = ["ip_error"];

/// Kernel text whose drops have no reason of their own, and the reason to record for them: first address, last address, reason.
pub(crate) struct Places {
    /// `XDP_PLACE` of the programs.
    pub xdp: [u64; 3],
    /// `ROUTE_PLACE` of the programs.
    pub route: [u64; 3],
}

/// Finds them. An empty range if the symbols cannot be read: such drops are then not seen, which the log says.
#[must_use]
pub(crate) fn places(reasons: &Reasons) -> Places {
    let symbols = symbols();
    let place = |functions: &[&str], reason: &str, what: &str| {
        let text = symbols.as_ref().map_err(Clone::clone).and_then(|symbols| named_range(symbols, functions));
        let (first, last) = text.unwrap_or_else(|problem| {
            tracing::warn!("{what}: {problem}");
            (1, 0)
        });
        let reason = reasons.names.iter().position(|n| n.as_deref() == Some(reason)).unwrap_or(0);
        [first, last, reason as u64]
    };
    Places {
        xdp: place(&XDP_FUNCTIONS, "XDP", "drops by generic XDP programs will count as ACCEPT"),
        route: place(&ROUTE_FUNCTIONS, "IP_INNOROUTES", "drops by routes to nowhere will not count as lost"),
    }
}

pub(crate) fn symbols() -> Result<String, String> {
    std::fs::read_to_string(KALLSYMS).map_err(|e| format!("cannot read {KALLSYMS}: {e}"))
}

fn named_range(symbols: &str, functions: &[&str]) -> Result<(u64, u64), String> {
    text_range(symbols, functions).map_err(|problem| format!("{KALLSYMS}: {problem}"))
}

/// First and last address of the kernel's generic XDP.
///
/// # Errors
/// In words: what is in the way, and what to do.
pub(crate) fn xdp_text() -> Result<(u64, u64), String> {
    symbols().and_then(|symbols| named_range(&symbols, &XDP_FUNCTIONS))
}

/// First and last address of the functions, which must lie together: from the first one's start to the start of
/// whatever follows the last one. Symbols are listed in no order.
fn text_range(symbols: &str, functions: &[&str]) -> Result<(u64, u64), String> {
    let is_wanted = |name: &str| {
        let rest = functions.iter().find_map(|f| name.strip_prefix(f));
        // Compilers add `.isra.0` and the like, and put what is seldom done elsewhere.
        rest.is_some_and(|r| r.is_empty() || (r.starts_with('.') && !r.contains(".cold")))
    };
    let mut is_hidden = true;
    let mut first = u64::MAX;
    let mut start_of_last = 0;
    for (address, name) in text_symbols(symbols) {
        is_hidden = false;
        if is_wanted(name) {
            first = first.min(address);
            start_of_last = start_of_last.max(address);
        }
    }
    if is_hidden {
        let remedy = "run as root or with CAP_SYSLOG, and with the sysctl kernel.kptr_restrict at 0 or 1";
        return Err(format!("addresses are hidden; {remedy}"));
    }
    if start_of_last == 0 {
        return Err(format!("none of {} is there", functions.join(", ")));
    }
    let next = text_symbols(symbols).map(|(address, _)| address).filter(|a| *a > start_of_last).min();
    next.map(|next| (first, next - 1))
        .filter(|(first, last)| last - first < RANGE_MAX)
        .ok_or_else(|| format!("{} do not lie together", functions.join(", ")))
}

/// Functions by address, from `ADDRESS KIND NAME` lines. There are 200,000, and this is a fifth of the agent's start.
pub(crate) fn text_symbols(symbols: &str) -> impl Iterator<Item = (u64, &str)> {
    let symbol = |line| {
        let (address, rest) = str::split_once(line, ' ')?;
        let name = rest.strip_prefix("t ").or_else(|| rest.strip_prefix("T "))?;
        // Per-CPU symbols are at 0 on x86-64 before Linux 6.15; all are where addresses are hidden.
        u64::from_str_radix(address, 16).ok().filter(|a| *a != 0).map(|address| (address, name))
    };
    symbols.lines().filter_map(symbol)
}

/// [`KernelOffsets`], as words in the order of its members.
pub(crate) type OffsetWords = [u32; KernelOffsets::PLACES.len()];

/// Resolves every offset the programs use.
///
/// # Errors
/// [`KernelError::MissingType`] naming the first member this kernel does not have.
pub(crate) fn offsets(btf: &Btf<'_>) -> Result<OffsetWords, KernelError> {
    let mut words = [0; KernelOffsets::PLACES.len()];
    for (word, place) in words.iter_mut().zip(KernelOffsets::PLACES) {
        let found = match place {
            Place::Member(structure, member) => btf.offset(structure, member),
            Place::Nested(outer, member, inner, inner_member) => {
                btf.offset(outer, member).zip(btf.offset(inner, inner_member)).map(|(a, b)| a + b)
            }
            Place::BitByte(structure, member) => btf.bit_field(structure, member).map(|(byte, _)| byte),
            Place::BitShift(structure, member) => btf.bit_field(structure, member).map(|(_, shift)| shift),
        };
        let (Place::Member(structure, member)
        | Place::Nested(structure, member, ..)
        | Place::BitByte(structure, member)
        | Place::BitShift(structure, member)) = place;
        *word = found.ok_or_else(|| KernelError::MissingType { name: format!("struct {structure}.{member}") })?;
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use flowlog_ebpf::abi::{REASON_BY_PLACE, REASON_LOST, REASON_REFUSED, REASON_TC_INGRESS};

    use super::*;

    const SYMBOLS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000100 t netif_receive_generic_xdp
ffffffff81000200 T do_xdp_generic.part.0
ffffffff81000180 t something_between
ffffffff81000300 T the_next
ffffffff81900000 D do_xdp_generic_data
";

    #[test]
    fn symbols_at_zero_are_passed_over_and_the_range_ends_where_the_next_function_begins() {
        let found = text_range(SYMBOLS, &XDP_FUNCTIONS);
        assert_eq!(found, Ok((0xffff_ffff_8100_0100, 0xffff_ffff_8100_02ff)));
    }

    #[test]
    fn symbols_that_are_hidden_missing_or_apart_are_said_in_words() {
        let problem = |symbols: &str| text_range(symbols, &XDP_FUNCTIONS).expect_err("no range");
        let hidden = SYMBOLS.lines().fold(String::new(), |all, l| all + "0000000000000000" + &l[16..] + "\n");
        assert!(problem(&hidden).contains("kptr_restrict"), "{}", problem(&hidden));
        assert!(problem("").contains("hidden"));
        assert!(problem("ffffffff81000000 T _text\n").contains("none of do_xdp_generic"));
        let apart = SYMBOLS.replace("ffffffff81000200", "ffffffff81800200");
        assert!(problem(&apart).contains("do not lie together"), "{}", problem(&apart));
    }

    #[test]
    fn only_policy_reasons_are_refusals_on_the_running_kernel() {
        let btf = Btf::vmlinux().expect("this kernel has BTF");
        let reasons = Reasons::resolve(&btf).expect("reasons");
        let action = |name: &str| {
            let index = reasons.names.iter().position(|n| n.as_deref() == Some(name)).expect(name);
            reasons.actions[index]
        };
        assert_eq!(action("NETFILTER_DROP"), REASON_REFUSED);
        assert_eq!(action("TC_INGRESS"), REASON_TC_INGRESS);
        assert_eq!(action("NOT_SPECIFIED"), REASON_BY_PLACE);
        for lost in ["IP_CSUM", "SOCKET_RCVBUFF", "QDISC_DROP", "NOMEM", "IP_INNOROUTES"] {
            assert_eq!(action(lost), REASON_LOST, "{lost}");
        }
        for fate in ["NO_SOCKET", "OTHERHOST", "TCP_OLD_DATA"] {
            assert_eq!(action(fate), 0, "{fate}");
        }
        offsets(&btf).expect("all offsets");
    }
}
