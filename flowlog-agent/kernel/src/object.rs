//! Programs taken out of the eBPF object to be loaded by hand, on the maps that the others use: those that trace other people's, and those
//! that run them. aya loads a program once.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::{
    Object,
    btf::{Btf, BtfFeature},
    generated::bpf_insn,
};

use super::bpf::{Code, Instruction};

/// The maps of the object, by name.
pub(super) type MapFds = BTreeMap<String, OwnedFd>;

/// What is taken out of the object.
pub(super) struct TakenOut<const N: usize> {
    /// Type information of the object, as the kernel takes it.
    pub(super) types: Vec<u8>,
    pub(super) programs: [Code; N],
}

/// These programs, in this order, with the maps that they use; `instead`: another one in the place of a map of the object. In words what is
/// wrong.
pub(super) fn take<const N: usize>(
    object: &[u8],
    maps: &MapFds,
    instead: Option<(&str, BorrowedFd<'_>)>,
    programs: [&str; N],
) -> Result<TakenOut<N>, String> {
    let mut object = Object::parse(object).map_err(|e| e.to_string())?;
    // The oldest kernel that is promised has all kinds of types; sections without entries are new, and not needed.
    let types = object
        .fixup_and_sanitize_btf(|| Some(|feature| feature != BtfFeature::DataSecZero))
        .map_err(|e| e.to_string())?;
    let types = types.map(Btf::to_bytes).unwrap_or_default();
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let own = std::mem::take(&mut object.maps);
    let fd = |name: &str| match instead {
        Some((other, map)) if other == name => Some(map.as_raw_fd()),
        _ => maps.get(name).map(OwnedFd::as_raw_fd),
    };
    let known = own.iter().filter_map(|(name, map)| Some((name.as_str(), fd(name)?, map)));
    object.relocate_maps(known, &sections).map_err(|e| e.to_string())?;
    object.relocate_calls(&sections).map_err(|e| e.to_string())?;
    let mut found = [const { Code { instructions: Vec::new(), functions: Vec::new(), function_bytes: 0 } }; N];
    for (name, code) in programs.iter().zip(&mut found) {
        let program = object.programs.get(*name).ok_or_else(|| format!("no `{name}`"))?;
        let function = object.functions.get(&program.function_key()).ok_or_else(|| format!("no code of `{name}`"))?;
        code.instructions = function.instructions.iter().copied().map(instruction).collect();
        code.functions = function.func_info.func_info_bytes();
        code.function_bytes = function.func_info_rec_size;
    }
    Ok(TakenOut { types, programs: found })
}

fn instruction(from: bpf_insn) -> Instruction {
    let registers = from.dst_reg() | from.src_reg() << 4;
    Instruction { code: from.code, registers, offset: from.off, immediate: from.imm }
}
