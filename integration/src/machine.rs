//! An interpreter of eBPF programs that writes down which memory they touch: how many cache lines a packet costs cannot be measured from outside.
//!
//! It runs the very instructions of an object, on one CPU, with models of the few maps and helpers that the way of a packet uses (RFC 9669 for the
//! instructions). Anything else is an error, not a guess. What a map's look-up touches besides the value is as in
//! `kernel/bpf/arraymap.c`: nothing for an array, the table of pointers for a per-CPU array.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context as _, bail, ensure};
use aya_obj::{Map, Object, generated::bpf_insn};

/// Bytes of a cache line.
pub const LINE_BYTES: u64 = 64;
/// `enum bpf_map_type`.
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
/// `BPF_F_MMAPABLE`: the values begin with a page.
const MMAPABLE: u32 = 1 << 10;
/// Where in an address the number of its region is.
const REGION_SHIFT: u32 = 40;
/// Bytes of a program's stack, for all its frames together.
const STACK_BYTES: usize = 8 * 512;
/// What is in front of a packet, as in a buffer of the kernel's. (A program may take an address whose lower half is 0 for none.)
const HEADROOM_BYTES: usize = 256;
/// Instructions after which a program is taken to be in a loop.
const STEPS_MAX: u64 = 1_000_000;

/// Memory of one kind.
struct Region {
    name: String,
    bytes: Vec<u8>,
    /// How far behind a line's begin it begins.
    skew: u64,
}

/// A map, by its number as a descriptor.
struct MapModel {
    kind: u32,
    entries: u32,
    stride: u64,
    values: u64,
    /// The table of pointers of a per-CPU array.
    pointers: Option<u64>,
}

/// What a program did with a packet.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// What it returned.
    pub result: u64,
    /// Instructions that it took.
    pub instructions: u64,
    /// Lines that it touched, by what they are of: a map's name, or that with the word `pointers`.
    pub lines: BTreeMap<String, usize>,
}

/// Where a program of this type has the packet's begin and end in its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextKind {
    /// `struct __sk_buff`.
    Skb,
    /// `struct xdp_md`.
    Xdp,
}

impl ContextKind {
    const fn ends(self) -> [u64; 2] {
        match self {
            Self::Skb => [76, 80],
            Self::Xdp => [0, 4],
        }
    }
}

/// See the module's head.
pub struct Machine {
    program: Vec<bpf_insn>,
    kind: ContextKind,
    regions: Vec<Region>,
    maps: Vec<MapModel>,
    names: BTreeMap<String, usize>,
    stack: u64,
    context: u64,
    packet: u64,
    touched: BTreeSet<u64>,
    /// What `jiffies` and the clocks say.
    pub ticks: u64,
}

impl Machine {
    /// A program of an object, with all its maps zeroed. `skew_bytes`: how far behind a line's begin begins what begins anywhere.
    ///
    /// # Errors
    /// If the object cannot be read, or has no such program.
    pub fn new(object: &[u8], program: &str, kind: ContextKind, skew_bytes: u64) -> anyhow::Result<Self> {
        let mut object = Object::parse(object).context("parse the object")?;
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let own = std::mem::take(&mut object.maps);
        let known = own.iter().zip(0..).map(|((name, map), fd)| (name.as_str(), fd, map));
        object.relocate_maps(known, &sections).context("relocate its maps")?;
        object.relocate_calls(&sections).context("relocate its calls")?;
        let found = object.programs.get(program).with_context(|| format!("no program `{program}`"))?;
        let code = object.functions.get(&found.function_key()).context("code of a program")?;
        let mut machine = Self {
            program: code.instructions.clone(),
            kind,
            regions: Vec::new(),
            maps: Vec::new(),
            names: BTreeMap::new(),
            stack: 0,
            context: 0,
            packet: 0,
            touched: BTreeSet::new(),
            ticks: 1,
        };
        // Region 0 is the null pointer's.
        machine.region("null", Vec::new(), 0);
        machine.stack = machine.region("stack", vec![0; STACK_BYTES], 0);
        machine.context = machine.region("context", vec![0; 192], 0);
        machine.packet = machine.region("packet", Vec::new(), 0);
        for (name, map) in &own {
            machine.map(name, map, skew_bytes);
        }
        Ok(machine)
    }

    fn region(&mut self, name: &str, bytes: Vec<u8>, skew: u64) -> u64 {
        self.regions.push(Region { name: name.to_owned(), bytes, skew });
        (self.regions.len() as u64 - 1) << REGION_SHIFT
    }

    fn map(&mut self, name: &str, map: &Map, skew_bytes: u64) {
        let stride = u64::from(map.value_size()).next_multiple_of(8);
        let is_array = matches!(map.map_type(), ARRAY | PERCPU_ARRAY);
        let mut bytes = if is_array { vec![0; to_usize(stride * u64::from(map.max_entries()))] } else { Vec::new() };
        let data = map.data();
        if data.len() <= bytes.len() {
            bytes[..data.len()].copy_from_slice(data);
        }
        let is_page = map.map_type() == ARRAY && map.map_flags() & MMAPABLE != 0;
        let values = self.region(name, bytes, if is_page { 0 } else { skew_bytes });
        let pointers = (map.map_type() == PERCPU_ARRAY).then(|| {
            let table = vec![0; 8 * to_usize(u64::from(map.max_entries()))];
            self.region(&format!("{name}, pointers"), table, skew_bytes)
        });
        self.names.insert(name.to_owned(), self.maps.len());
        self.maps.push(MapModel { kind: map.map_type(), entries: map.max_entries(), stride, values, pointers });
    }

    /// Writes into a value of a map, from its `offset` on.
    ///
    /// # Errors
    /// If there is no such map, or no such value.
    pub fn write(&mut self, map: &str, index: u32, offset: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let number = self.names.get(map).with_context(|| format!("no map `{map}`"))?;
        let model = &self.maps[*number];
        let at = to_usize(u64::from(index) * model.stride) + offset;
        let values = model.values;
        let place = self
            .region_of_mut(values)
            .bytes
            .get_mut(at..at + bytes.len())
            .with_context(|| format!("`{map}` has no {index}"))?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    /// Reads from a value of a map.
    ///
    /// # Errors
    /// If there is no such map, or no such value.
    pub fn read(&self, map: &str, index: u32, offset: usize, len: usize) -> anyhow::Result<&[u8]> {
        let number = self.names.get(map).with_context(|| format!("no map `{map}`"))?;
        let model = &self.maps[*number];
        let at = to_usize(u64::from(index) * model.stride) + offset;
        self.region_of(model.values).bytes.get(at..at + len).with_context(|| format!("`{map}` has no {index}"))
    }

    /// Runs the program on a packet. `context`: 32-bit words of its context, by their offset.
    ///
    /// # Errors
    /// If it does what this machine does not know.
    pub fn run(&mut self, packet: &[u8], context: &[(usize, u32)]) -> anyhow::Result<Run> {
        self.region_of_mut(self.packet).bytes = [&[0; HEADROOM_BYTES], packet].concat();
        let place = &mut self.region_of_mut(self.context).bytes;
        place.fill(0);
        for (at, word) in context {
            place[*at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        self.touched.clear();
        let mut registers = [0u64; 11];
        registers[1] = self.context;
        registers[10] = self.stack + STACK_BYTES as u64;
        let mut frames: Vec<(usize, [u64; 5])> = Vec::new();
        let mut at = 0;
        let mut instructions = 0;
        loop {
            instructions += 1;
            ensure!(instructions < STEPS_MAX, "a loop without an end");
            let insn = *self.program.get(at).context("out of the program")?;
            at += 1;
            match insn.code {
                // Of 64 bits, in two instructions.
                0x18 => {
                    registers[to(insn)] = self.wide(insn, self.program[at].imm)?;
                    at += 1;
                }
                0x95 => match frames.pop() {
                    Some((back, saved)) => {
                        registers[6..].copy_from_slice(&saved);
                        at = back;
                    }
                    None => return Ok(self.ran(registers[0], instructions)),
                },
                0x85 if insn.src_reg() == 1 => {
                    frames.push((at, [registers[6], registers[7], registers[8], registers[9], registers[10]]));
                    registers[10] -= 512;
                    at = at.wrapping_add_signed(insn.imm as isize);
                }
                0x85 => {
                    registers[0] = self.help(insn.imm, &registers)?;
                }
                code if matches!(code & 7, 5 | 6) => {
                    if jumps(insn, &registers)? {
                        at = at.wrapping_add_signed(isize::from(insn.off));
                    }
                }
                code if matches!(code & 7, 4 | 7) => compute(insn, &mut registers)?,
                _ => self.access(insn, &mut registers)?,
            }
        }
    }

    fn ran(&self, result: u64, instructions: u64) -> Run {
        let mut lines: BTreeMap<String, usize> = BTreeMap::new();
        for line in &self.touched {
            let address = line * LINE_BYTES;
            // The packet's own lines somebody has touched before, and will again.
            if ![self.stack, self.context, self.packet].contains(&(address >> REGION_SHIFT << REGION_SHIFT)) {
                *lines.entry(self.region_of(address).name.clone()).or_default() += 1;
            }
        }
        Run { result, instructions, lines }
    }

    fn region_of(&self, address: u64) -> &Region {
        &self.regions[to_usize(address >> REGION_SHIFT)]
    }

    fn region_of_mut(&mut self, address: u64) -> &mut Region {
        &mut self.regions[to_usize(address >> REGION_SHIFT)]
    }

    /// What an instruction of 64 bits loads: a number, a map, or a place in a map's only value.
    fn wide(&self, insn: bpf_insn, upper: i32) -> anyhow::Result<u64> {
        let map = || usize::try_from(insn.imm).ok().and_then(|n| self.maps.get(n)).context("a map");
        Ok(match insn.src_reg() {
            0 => u64::from(insn.imm.cast_unsigned()) | u64::from(upper.cast_unsigned()) << 32,
            1 => u64::from(insn.imm.cast_unsigned()),
            2 => map()?.values + u64::from(upper.cast_unsigned()),
            // A function's address, for loops.
            4 => 0,
            other => bail!("a load of kind {other}"),
        })
    }

    fn help(&mut self, helper: i32, registers: &[u64; 11]) -> anyhow::Result<u64> {
        match helper {
            // bpf_map_lookup_elem
            1 => {
                let index = u32::try_from(self.load(registers[2], 4)?)?;
                let model = self.maps.get(to_usize(registers[1])).context("a map")?;
                ensure!(matches!(model.kind, ARRAY | PERCPU_ARRAY), "a look-up in a map of type {}", model.kind);
                if index >= model.entries {
                    return Ok(0);
                }
                let (value, pointers) = (model.values + u64::from(index) * model.stride, model.pointers);
                if let Some(table) = pointers {
                    self.touch(table + 8 * u64::from(index), 8);
                }
                Ok(value)
            }
            // bpf_ktime_get_ns, bpf_ktime_get_coarse_ns
            5 | 160 => Ok(self.ticks * 4_000_000),
            // bpf_get_smp_processor_id
            8 => Ok(0),
            // bpf_jiffies64
            118 => Ok(self.ticks),
            // bpf_xdp_get_buff_len
            188 => Ok((self.region_of(self.packet).bytes.len() - HEADROOM_BYTES) as u64),
            other => bail!("helper {other}"),
        }
    }

    fn touch(&mut self, address: u64, bytes: u64) {
        let skew = self.region_of(address).skew;
        let first = (address + skew) / LINE_BYTES;
        let last = (address + skew + bytes - 1) / LINE_BYTES;
        self.touched.extend(first..=last);
    }

    fn load(&mut self, address: u64, bytes: u64) -> anyhow::Result<u64> {
        if let Some(end) = self.kind.ends().iter().position(|at| self.context + at == address) {
            let len = self.region_of(self.packet).bytes.len() as u64;
            return Ok(self.packet + if end == 0 { HEADROOM_BYTES as u64 } else { len });
        }
        let place = self.place(address, bytes)?;
        let mut word = [0; 8];
        word[..place.len()].copy_from_slice(place);
        Ok(u64::from_le_bytes(word))
    }

    fn store(&mut self, address: u64, bytes: u64, value: u64) -> anyhow::Result<()> {
        self.place(address, bytes)?.copy_from_slice(&value.to_le_bytes()[..to_usize(bytes)]);
        Ok(())
    }

    fn place(&mut self, address: u64, bytes: u64) -> anyhow::Result<&mut [u8]> {
        let offset = to_usize(address & ((1 << REGION_SHIFT) - 1));
        let number = to_usize(address >> REGION_SHIFT);
        ensure!(number < self.regions.len(), "address {address:#x}");
        self.touch(address, bytes);
        let region = &mut self.regions[number];
        let name = &region.name;
        region.bytes.get_mut(offset..offset + to_usize(bytes)).with_context(|| format!("{offset} is outside of {name}"))
    }

    /// Loads and stores.
    fn access(&mut self, insn: bpf_insn, registers: &mut [u64; 11]) -> anyhow::Result<()> {
        ensure!(insn.code & 0xe0 == 0x60, "instruction {:#x}", insn.code);
        let bytes = match insn.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => 8,
        };
        let base = if insn.code & 7 == 1 { from(insn) } else { to(insn) };
        let address = registers[base].wrapping_add_signed(i64::from(insn.off));
        match insn.code & 7 {
            1 => registers[to(insn)] = self.load(address, bytes)?,
            2 => self.store(address, bytes, i64::from(insn.imm).cast_unsigned())?,
            _ => self.store(address, bytes, registers[from(insn)])?,
        }
        Ok(())
    }
}

fn to(insn: bpf_insn) -> usize {
    usize::from(insn.dst_reg())
}

fn from(insn: bpf_insn) -> usize {
    usize::from(insn.src_reg())
}

/// An address of ours.
fn to_usize(address: u64) -> usize {
    usize::try_from(address).expect("a machine of 64 bits")
}

/// The second operand: a register, or the number in the instruction.
fn operand(insn: bpf_insn, registers: &[u64; 11]) -> u64 {
    if insn.code & 8 == 0 { i64::from(insn.imm).cast_unsigned() } else { registers[from(insn)] }
}

fn jumps(insn: bpf_insn, registers: &[u64; 11]) -> anyhow::Result<bool> {
    let (mut a, mut b) = (registers[to(insn)], operand(insn, registers));
    let is_short = insn.code & 7 == 6;
    if is_short {
        (a, b) = (a & 0xffff_ffff, b & 0xffff_ffff);
    }
    #[allow(clippy::cast_possible_truncation, reason = "the lower half")]
    let signed = |n: u64| if is_short { i64::from((n as u32).cast_signed()) } else { n.cast_signed() };
    Ok(match insn.code & 0xf0 {
        0x00 => true,
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        0x50 => a != b,
        0x60 => signed(a) > signed(b),
        0x70 => signed(a) >= signed(b),
        0xa0 => a < b,
        0xb0 => a <= b,
        0xc0 => signed(a) < signed(b),
        0xd0 => signed(a) <= signed(b),
        other => bail!("jump {other:#x}"),
    })
}

#[allow(clippy::cast_possible_truncation, reason = "the lower half")]
fn compute(insn: bpf_insn, registers: &mut [u64; 11]) -> anyhow::Result<()> {
    let is_short = insn.code & 7 == 4;
    let cut = |n: u64| if is_short { n & 0xffff_ffff } else { n };
    let (a, b) = (cut(registers[to(insn)]), cut(operand(insn, registers)));
    let bits = if is_short { 31 } else { 63 };
    let shift = (b & bits) as u32;
    registers[to(insn)] = cut(match insn.code & 0xf0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b).unwrap_or(0),
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a << shift,
        0x70 => a >> shift,
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(b).unwrap_or(a),
        0xa0 => a ^ b,
        0xb0 => b,
        0xc0 if is_short => u64::from(((a as u32).cast_signed() >> shift).cast_unsigned()),
        0xc0 => (a.cast_signed() >> shift).cast_unsigned(),
        0xd0 if insn.code & 8 != 0 => match insn.imm {
            16 => u64::from((a as u16).swap_bytes()),
            32 => u64::from((a as u32).swap_bytes()),
            _ => registers[to(insn)].swap_bytes(),
        },
        other => bail!("operation {other:#x}"),
    });
    Ok(())
}
