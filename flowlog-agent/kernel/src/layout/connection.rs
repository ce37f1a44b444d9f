//! Where connection tracking keeps what it knows of a packet: what it has on the other side of an address translation.

use flowlog_ebpf::abi::{ConnectionPlace, TUPLE_WORDS};

use super::super::btf::Btf;

/// The module that has connections, where it is one.
pub(super) const MODULE: &str = "nf_conntrack";

pub(crate) type ConnectionWords = [u32; size_of::<ConnectionPlace>() / 4];

/// [`ConnectionPlace`] on this kernel, as words in the order of its members; all 0 if it has no connections, or not (yet) the module.
#[must_use]
pub(crate) fn place(btf: &Btf<'_>) -> ConnectionWords {
    of(btf, btf.module(MODULE).ok().as_ref()).unwrap_or_default()
}

/// `None`: not all is there, or tuples are not as the programs read them.
fn of(kernel: &Btf<'_>, module: Option<&Btf<'_>>) -> Option<ConnectionWords> {
    // A module has what the kernel itself has no use for.
    let offset = |structure, member| {
        kernel.offset(structure, member).or_else(|| module.and_then(|m| m.offset(structure, member)))
    };
    let size = |structure| kernel.size(structure).or_else(|| module.and_then(|m| m.size(structure)));
    let skb = offset("sk_buff", "_nfct")?;
    let status = offset("nf_conn", "status")?;
    let tuples = offset("nf_conn", "tuplehash")? + offset("nf_conntrack_tuple_hash", "tuple")?;
    let stride = size("nf_conntrack_tuple_hash")?;
    let source = ["u3", "u", "l3num"].map(|member| offset("nf_conntrack_man", member));
    let is_known = source == [Some(0), Some(16), Some(18)]
        && offset("nf_conntrack_tuple", "dst") == Some(20)
        && size("nf_conntrack_tuple") == u32::try_from(4 * TUPLE_WORDS).ok();
    is_known.then_some([skb, status, tuples, stride])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_found_on_the_running_kernel() {
        let btf = Btf::vmlinux().expect("this kernel has BTF");
        let [skb, status, tuples, stride] = place(&btf);
        assert!(skb > 0 && status > 0 && tuples > 0, "{skb} {status} {tuples}");
        assert!(stride as usize >= 4 * TUPLE_WORDS, "{stride}");
    }
}
