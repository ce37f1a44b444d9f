//! Where the mark is that a firewall gives its packets or connections: what tells its rules apart.

use flowlog_ebpf::abi::MarkPlace;
use flowlog_model::rule::InvalidField;

use super::{
    super::{KernelError, btf::Btf},
    connection::MODULE,
};

/// Which mark of a refused packet is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Whose it is.
    pub from: MarkFrom,
    /// Bits of it that count.
    pub mask: u32,
}

impl Default for Mark {
    fn default() -> Self {
        Self { from: MarkFrom::Packet, mask: u32::MAX }
    }
}

/// Whose mark it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkFrom {
    /// The packet's own (`meta mark` of nftables, `MARK` of iptables).
    Packet,
    /// Its connection's (`ct mark`, `CONNMARK`).
    Connection,
    /// Nobody's: none is recorded.
    Nothing,
}

pub(crate) type MarkWords = [u32; size_of::<MarkPlace>() / 4];

impl Mark {
    /// [`MarkPlace`] on this kernel, as words in the order of its members.
    ///
    /// # Errors
    /// [`KernelError::Setting`] if this kernel's packets or connections have no marks.
    pub(crate) fn place(self, btf: &Btf<'_>) -> Result<MarkWords, KernelError> {
        let missing = |from: &str, remedy: &str| {
            let rule = format!("this kernel's {from}s have no mark; {remedy}");
            KernelError::from(InvalidField::new("rule_mark.from", from, rule))
        };
        match self.from {
            MarkFrom::Nothing => Ok([0; 4]),
            MarkFrom::Packet => {
                let skb = btf.offset("sk_buff", "mark").ok_or_else(|| missing("packet", "use `nothing`"))?;
                Ok([self.mask, skb, 0, 0])
            }
            MarkFrom::Connection => {
                let remedy = "load the module nf_conntrack before flowlog starts, or use `packet`";
                let none = || missing("connection", remedy);
                let skb = btf.offset("sk_buff", "_nfct").ok_or_else(none)?;
                let module = btf.module(MODULE);
                let built_in = btf.offset("nf_conn", "mark");
                let mark = built_in.or_else(|| module.ok()?.offset("nf_conn", "mark")).ok_or_else(none)?;
                Ok([self.mask, skb, 1, mark])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_on_the_running_kernel_and_nothing_is_read_where_none_is_wanted() {
        let btf = Btf::vmlinux().expect("this kernel has BTF");
        let place = |from| Mark { from, mask: 0xff }.place(&btf).expect("a place");
        assert_eq!(place(MarkFrom::Nothing), [0; 4]);
        let packet = place(MarkFrom::Packet);
        assert_eq!((packet[0], packet[2]), (0xff, 0));
        let connection = place(MarkFrom::Connection);
        assert!(packet[1] != connection[1] && connection[2] == 1 && connection[3] > 0, "{packet:?} {connection:?}");
    }
}
