//! A small reader for BTF, the kernel's own type information: member offsets, enum values, tracepoint arguments.
//!
//! aya keeps its BTF types private and rustc emits no CO-RE relocations, so offsets are read here and handed to the
//! programs as read-only globals. Format: `Documentation/bpf/btf.rst`.

use std::{collections::HashMap, fs, path::Path};

use super::KernelError;

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;

/// Parsed BTF.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Type id to byte offset; id 0 is `void`.
    types: Vec<usize>,
    /// (kind, name) to type id.
    names: HashMap<(u32, String), u32>,
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

impl Btf {
    /// Where the running kernel shows its BTF.
    pub const VMLINUX: &'static str = "/sys/kernel/btf/vmlinux";

    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    /// [`KernelError::NoBtf`] if there is none or it cannot be parsed.
    pub fn vmlinux() -> Result<Self, KernelError> {
        Self::from_file(Path::new(Self::VMLINUX))
    }

    /// Reads a BTF file.
    ///
    /// # Errors
    /// As [`Btf::vmlinux`].
    pub fn from_file(path: &Path) -> Result<Self, KernelError> {
        let no_btf = |problem: String| KernelError::NoBtf { path: path.to_owned(), problem };
        let data = fs::read(path).map_err(|e| no_btf(e.to_string()))?;
        Self::parse(data).ok_or_else(|| no_btf("not a BTF file of this machine's byte order".to_owned()))
    }

    fn parse(data: Vec<u8>) -> Option<Self> {
        if data.get(..2)? != MAGIC.to_le_bytes() {
            return None;
        }
        let header = word(&data, 4)? as usize;
        if header < HEADER_BYTES {
            return None;
        }
        let first = header + word(&data, 8)? as usize;
        let end = first + word(&data, 12)? as usize;
        let strings = header + word(&data, 16)? as usize;
        let mut btf = Self { data, strings, types: vec![0], names: HashMap::new() };
        let mut at = first;
        while at < end {
            let info = word(&btf.data, at + 4)?;
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let id = u32::try_from(btf.types.len()).ok()?;
            if matches!(kind, KIND_STRUCT | KIND_ENUM | KIND_TYPEDEF) {
                let name = btf.string(word(&btf.data, at)?).to_owned();
                btf.names.entry((kind, name)).or_insert(id);
            }
            btf.types.push(at);
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * members,
                    KIND_ENUM | 13 => 8 * members,
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return None,
                };
        }
        Some(btf)
    }

    fn string(&self, offset: u32) -> &str {
        let bytes = self.data.get(self.strings + offset as usize..).unwrap_or_default();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(0);
        std::str::from_utf8(&bytes[..end]).unwrap_or_default()
    }

    fn id(&self, kind: u32, name: &str) -> Option<u32> {
        self.names.get(&(kind, name.to_owned())).copied()
    }

    fn field(&self, id: u32, index: usize) -> Option<u32> {
        word(&self.data, self.types.get(id as usize)? + 4 * index)
    }

    fn kind(&self, id: u32) -> Option<u32> {
        Some(self.field(id, 1)? >> 24 & 0x1f)
    }

    /// Byte offset of `structure.member`, also through anonymous members.
    #[must_use]
    pub fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.member_bits(self.id(KIND_STRUCT, structure)?, member).map(|bits| bits / 8)
    }

    fn member_bits(&self, id: u32, wanted: &str) -> Option<u32> {
        let info = self.field(id, 1)?;
        let base = self.types.get(id as usize)? + 12;
        for i in 0..(info & 0xffff) as usize {
            let at = base + 12 * i;
            let (name, of, bits) = (word(&self.data, at)?, word(&self.data, at + 4)?, word(&self.data, at + 8)?);
            // With the kind flag set, the upper byte is a bit-field's size.
            let bits = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits };
            if name != 0 {
                if self.string(name) == wanted {
                    return Some(bits);
                }
            } else if matches!(self.kind(of), Some(KIND_STRUCT | KIND_UNION))
                && let Some(inner) = self.member_bits(of, wanted)
            {
                return Some(bits + inner);
            }
        }
        None
    }

    /// Name and value of every member of an enum.
    #[must_use]
    pub fn enum_members(&self, name: &str) -> Option<Vec<(String, u32)>> {
        let id = self.id(KIND_ENUM, name)?;
        let base = self.types.get(id as usize)? + 12;
        let members = (self.field(id, 1)? & 0xffff) as usize;
        (0..members)
            .map(|i| base + 8 * i)
            .map(|at| Some((self.string(word(&self.data, at)?).to_owned(), word(&self.data, at + 4)?)))
            .collect()
    }

    /// How many arguments a program on this tracepoint sees: typedef `btf_trace_X` -> pointer -> prototype, less
    /// the tracepoint's own data pointer.
    #[must_use]
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Option<u32> {
        let pointer = self.field(self.id(KIND_TYPEDEF, &format!("btf_trace_{tracepoint}"))?, 2)?;
        let prototype = self.field(pointer, 2)?;
        Some((self.field(prototype, 1)? & 0xffff).saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_names_its_members_and_reasons() {
        let btf = Btf::vmlinux().expect("this kernel has BTF");
        assert_eq!(btf.offset("iphdr", "daddr"), Some(16), "through the anonymous struct group");
        assert_eq!(btf.offset("sk_buff", "no_such_member"), None);
        assert!(btf.tracepoint_arguments("kfree_skb") >= Some(3));
        let reasons = btf.enum_members("skb_drop_reason").expect("enum");
        assert!(reasons.iter().any(|(name, _)| name == "SKB_DROP_REASON_NETFILTER_DROP"));
    }

    #[test]
    fn a_kernel_without_btf_is_refused_with_the_remedy() {
        let error = Btf::from_file(Path::new("/sys/kernel/btf/none")).err().expect("no such file").to_string();
        assert!(error.contains("`/sys/kernel/btf/none`") && error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }

    #[test]
    fn junk_is_an_error_and_never_a_panic() {
        let good = std::fs::read(Btf::VMLINUX).expect("this kernel has BTF");
        assert!(Btf::parse(vec![]).is_none());
        assert!(Btf::parse(b"\x9f\xeb\x01\x00aaaaaaaaaaaaaaaaaaaaaaaaa".to_vec()).is_none());
        for cut in [25, 100, 1_000, 100_000] {
            // Cut short: either refused or readable without the part that is missing.
            if let Some(btf) = Btf::parse(good[..cut].to_vec()) {
                let _ = btf.offset("sk_buff", "len");
            }
        }
    }
}
