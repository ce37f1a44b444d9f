//! A small reader for BTF, the kernel's own type information: member offsets, enum values, tracepoint arguments.
//!
//! aya keeps its BTF types private (aya-rs/aya#530, open) and rustc emits no CO-RE relocations (rust-lang/rust#160616), so offsets are
//! read here and handed to the programs as read-only globals. Format: `Documentation/bpf/btf.rst`.
//!
//! A module's BTF is *split*: it holds only what the kernel's own (its base) does not. Its type ids go on after the
//! base's, and so do its string offsets after the base's string section.

use std::{collections::HashMap, fs, ops::Range, path::Path};

use super::KernelError;

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;

pub(crate) struct Btf<'b> {
    data: Vec<u8>,
    /// What this one goes on from, if it is a module's.
    base: Option<&'b Btf<'b>>,
    strings: Range<usize>,
    /// Type id, less the base's, to byte offset; id 0 is `void`.
    types: Vec<usize>,
    /// (kind, name) to type id.
    names: HashMap<(u32, String), u32>,
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

impl Btf<'static> {
    /// Where the running kernel shows its BTF.
    pub(crate) const VMLINUX: &'static str = "/sys/kernel/btf/vmlinux";

    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    /// [`KernelError::NoBtf`] if there is none or it cannot be parsed.
    pub(crate) fn vmlinux() -> Result<Self, KernelError> {
        Self::from_file(Path::new(Self::VMLINUX))
    }

    /// Reads a BTF file that needs no other.
    ///
    /// # Errors
    /// As [`Btf::vmlinux`].
    pub(crate) fn from_file(path: &Path) -> Result<Self, KernelError> {
        read(path, None)
    }
}

fn read<'b>(path: &Path, base: Option<&'b Btf<'b>>) -> Result<Btf<'b>, KernelError> {
    let no_btf = |problem: String| KernelError::NoBtf { path: path.to_owned(), problem };
    let data = fs::read(path).map_err(|e| no_btf(e.to_string()))?;
    Btf::parse(data, base).ok_or_else(|| no_btf("not a BTF file of this machine's byte order".to_owned()))
}

impl<'b> Btf<'b> {
    /// Reads the BTF of a module that is loaded.
    ///
    /// # Errors
    /// As [`Btf::vmlinux`]; a module that is not loaded, or built in, has none.
    pub(crate) fn module(&'b self, name: &str) -> Result<Self, KernelError> {
        read(&Path::new("/sys/kernel/btf").join(name), Some(self))
    }

    fn parse(data: Vec<u8>, base: Option<&'b Self>) -> Option<Self> {
        if data.get(..2)? != MAGIC.to_le_bytes() {
            return None;
        }
        let header = word(&data, 4)? as usize;
        if header < HEADER_BYTES {
            return None;
        }
        let first = header + word(&data, 8)? as usize;
        let end = first + word(&data, 12)? as usize;
        let start = header + word(&data, 16)? as usize;
        let strings = start..start + word(&data, 20)? as usize;
        let types = if base.is_some() { vec![] } else { vec![0] };
        let mut btf = Self { data, base, strings, types, names: HashMap::new() };
        let mut at = first;
        while at < end {
            let info = word(&btf.data, at + 4)?;
            let kind = info >> 24 & 0x1f;
            let members = (info & 0xffff) as usize;
            let id = btf.next_id();
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

    /// The id that the type after the last one has.
    fn next_id(&self) -> u32 {
        let own = u32::try_from(self.types.len()).unwrap_or(u32::MAX);
        self.base.map_or(own, |base| base.next_id().saturating_add(own))
    }

    /// Where the string offset is in this one's own section; `Err`: it is in the base's.
    fn own_string(&self, offset: u32) -> Result<u32, &'b Self> {
        let Some(base) = self.base else { return Ok(offset) };
        let before = u32::try_from(base.strings.len()).unwrap_or(u32::MAX);
        offset.checked_sub(before).ok_or(base)
    }

    fn string(&self, offset: u32) -> &str {
        let offset = match self.own_string(offset) {
            Ok(offset) => offset as usize,
            Err(base) => return base.string(offset),
        };
        let bytes = self.data.get(self.strings.clone()).and_then(|s| s.get(offset..)).unwrap_or_default();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(0);
        std::str::from_utf8(&bytes[..end]).unwrap_or_default()
    }

    fn id(&self, kind: u32, name: &str) -> Option<u32> {
        self.names.get(&(kind, name.to_owned())).copied()
    }

    /// Where a type is described: in whose data, and at what byte.
    fn place(&self, id: u32) -> Option<(&[u8], usize)> {
        match (self.base, self.base.map_or(0, Btf::next_id)) {
            (Some(base), first) if id < first => base.place(id),
            (_, first) => Some((&self.data, *self.types.get((id - first) as usize)?)),
        }
    }

    fn field(&self, id: u32, index: usize) -> Option<u32> {
        let (data, at) = self.place(id)?;
        word(data, at + 4 * index)
    }

    fn kind(&self, id: u32) -> Option<u32> {
        Some(self.field(id, 1)? >> 24 & 0x1f)
    }

    /// Byte offset of `structure.member`, also through anonymous members.
    #[must_use]
    pub(crate) fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.member_bits(self.id(KIND_STRUCT, structure)?, member).map(|bits| bits / 8)
    }

    /// Bytes of a struct.
    #[must_use]
    pub(crate) fn size(&self, structure: &str) -> Option<u32> {
        self.field(self.id(KIND_STRUCT, structure)?, 2)
    }

    /// Byte of `structure.member` that holds a bit-field's lowest bit, and which bit of that byte it is.
    #[must_use]
    pub(crate) fn bit_field(&self, structure: &str, member: &str) -> Option<(u32, u32)> {
        self.member_bits(self.id(KIND_STRUCT, structure)?, member).map(|bits| (bits / 8, bits % 8))
    }

    fn member_bits(&self, id: u32, wanted: &str) -> Option<u32> {
        let info = self.field(id, 1)?;
        let (data, at) = self.place(id)?;
        for i in 0..(info & 0xffff) as usize {
            let at = at + 12 + 12 * i;
            let name = word(data, at)?;
            let of = word(data, at + 4)?;
            let bits = word(data, at + 8)?;
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
    pub(crate) fn enum_members(&self, name: &str) -> Option<Vec<(String, u32)>> {
        let id = self.id(KIND_ENUM, name)?;
        let (data, at) = self.place(id)?;
        let members = (self.field(id, 1)? & 0xffff) as usize;
        (0..members)
            .map(|i| at + 12 + 8 * i)
            .map(|at| Some((self.string(word(data, at)?).to_owned(), word(data, at + 4)?)))
            .collect()
    }

    /// How many arguments a program on this tracepoint sees: typedef `btf_trace_X` -> pointer -> prototype, less
    /// the tracepoint's own data pointer.
    #[must_use]
    pub(crate) fn tracepoint_arguments(&self, tracepoint: &str) -> Option<u32> {
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
        let (byte, bit) = btf.bit_field("iphdr", "version").expect("a bit-field");
        assert_eq!((byte, bit), (0, 4), "the upper half of the first byte, on a little-endian machine");
        assert!(btf.tracepoint_arguments("kfree_skb") >= Some(3));
        let reasons = btf.enum_members("skb_drop_reason").expect("enum");
        assert!(reasons.iter().any(|(name, _)| name == "SKB_DROP_REASON_NETFILTER_DROP"));
    }

    #[test]
    fn a_kernel_without_btf_is_refused_with_the_remedy() {
        let error = Btf::from_file(Path::new("/sys/kernel/btf/none")).err().expect("no such file").to_string();
        assert!(error.contains("`/sys/kernel/btf/none`") && error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }

    /// BTF with one enum, whose name and members are given with their string offsets and values.
    fn blob(strings: &str, name: usize, members: &[(usize, u32)]) -> Vec<u8> {
        let word = |n: usize| u32::try_from(n).expect("small").to_le_bytes();
        let types = [name, (KIND_ENUM as usize) << 24 | members.len(), 4];
        let mut types: Vec<u8> = types.into_iter().flat_map(word).collect();
        types.extend(members.iter().flat_map(|(name, value)| [word(*name), value.to_le_bytes()]).flatten());
        let mut all = vec![0x9f, 0xeb, 1, 0];
        all.extend([HEADER_BYTES, 0, types.len(), types.len(), strings.len()].into_iter().flat_map(word));
        all.extend(types);
        all.extend(strings.bytes());
        all
    }

    const BASE: &str = "\0core\0SHARED\0";
    const OWN: &str = "fruit\0APPLE\0";

    /// `enum core { SHARED }`, and a module's `enum fruit { APPLE, SHARED }`, whose second name is in the base.
    fn base_and_module() -> (Vec<u8>, Vec<u8>) {
        let base = blob(BASE, 1, &[(6, 1)]);
        let module = blob(OWN, BASE.len(), &[(BASE.len() + 6, 0x2_0001), (6, 0x2_0002)]);
        (base, module)
    }

    #[test]
    fn a_module_goes_on_where_its_base_ends() {
        let (base, module) = base_and_module();
        let base = Btf::parse(base, None).expect("whole");
        let split = Btf::parse(module.clone(), Some(&base)).expect("split");
        let named = [("APPLE".to_owned(), 0x2_0001), ("SHARED".to_owned(), 0x2_0002)];
        assert_eq!(split.enum_members("fruit").expect("the module's own"), named);
        assert_eq!((base.next_id(), split.next_id(), split.id(KIND_ENUM, "fruit")), (2, 3, Some(2)));
        assert_eq!(split.kind(1), Some(KIND_ENUM), "a type of the base, by its id");
        let whole = Btf::parse(module, None).expect("looks like BTF");
        assert_eq!(whole.enum_members("fruit"), None, "read as if it were whole, its names are elsewhere");
    }

    #[test]
    fn a_module_on_the_running_kernel_is_found_by_name() {
        let base = Btf::vmlinux().expect("this kernel has BTF");
        let end = base.strings.len();
        let data = blob("ovs_drop_reason\0OVS_DROP_METER\0", end, &[(end + 16, 0x2_0005)]);
        let split = Btf::parse(data, Some(&base)).expect("split");
        assert_eq!(split.enum_members("ovs_drop_reason"), Some(vec![("OVS_DROP_METER".to_owned(), 0x2_0005)]));
        assert!(base.module("no_such_module").is_err());
    }

    #[test]
    fn junk_is_an_error_and_never_a_panic() {
        let good = std::fs::read(Btf::VMLINUX).expect("this kernel has BTF");
        assert!(Btf::parse(vec![], None).is_none());
        assert!(Btf::parse(b"\x9f\xeb\x01\x00aaaaaaaaaaaaaaaaaaaaaaaaa".to_vec(), None).is_none());
        for cut in [25, 100, 1_000, 100_000] {
            // Cut short: either refused or readable without the part that is missing.
            if let Some(btf) = Btf::parse(good[..cut].to_vec(), None) {
                let _ = btf.offset("sk_buff", "len");
            }
        }
        let (base, module) = base_and_module();
        let base = Btf::parse(base, None).expect("whole");
        for cut in 0..module.len() {
            if let Some(btf) = Btf::parse(module[..cut].to_vec(), Some(&base)) {
                let _ = btf.enum_members("fruit");
            }
        }
    }
}
