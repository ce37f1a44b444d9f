//! What the programs cost the verifier, on this kernel: growth by more than a fifth is a change somebody must have meant; and
//! what they need of the stack, which kernels before 6.13 count for all frames together.

use std::{
    collections::{BTreeMap, HashSet},
    io::Write as _,
    path::{Path, PathBuf},
};

use aya_obj::{Object, generated::bpf_insn};
use flowlog_kernel::{Kernel, Sizes};
use integration::features;

/// `KERNEL PROGRAM INSTRUCTIONS` lines; after a change that is meant: `cargo xtask vm --record`, and
/// `FLOWLOG_RECORD=1 cargo xtask test verified` for the kernel of this machine.
const RECORDED: &str = "verified_instructions.txt";
/// Half of what any kernel allows: verifiers differ by as much as a factor of three.
const INSTRUCTIONS_MAX: u32 = 500_000;
/// `MAX_BPF_STACK`, and the steps in which old verifiers count a frame.
const STACK_MAX: i64 = 512;
const FRAME_STEP: i64 = 32;

fn recorded_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORDED)
}

/// One kernel as the file names it: `6.12-debian`, `6.12-debian-aarch64`. Builds of one series differ by who configured them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Build {
    series: (u32, u32),
    maker: String,
}

impl Build {
    fn running() -> Self {
        let read = |name: &str| std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).unwrap();
        let mut numbers =
            read("osrelease").split(['.', '-']).map_while(|n| n.parse().ok()).collect::<Vec<_>>().into_iter();
        let maker = if read("version").contains("Debian") { "debian" } else { "other" };
        // Linux on another machine verifies the same programs otherwise.
        let machine = if cfg!(target_arch = "x86_64") { "" } else { std::env::consts::ARCH };
        let maker = [maker, machine].join("-");
        Self {
            series: (numbers.next().unwrap(), numbers.next().unwrap()),
            maker: maker.trim_end_matches('-').to_owned(),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let (series, maker) = name.split_once('-')?;
        let (major, minor) = series.split_once('.')?;
        Some(Self { series: (major.parse().ok()?, minor.parse().ok()?), maker: maker.to_owned() })
    }

    /// How unlike another one it is; 0 for itself.
    fn distance(&self, other: &Self) -> u32 {
        let of = |b: &Self| b.series.0 * 100 + b.series.1;
        2 * of(self).abs_diff(of(other)) + u32::from(self.maker != other.maker)
    }
}

impl std::fmt::Display for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}-{}", self.series.0, self.series.1, self.maker)
    }
}

/// Counts by program of the recorded kernel that is nearest to `build`.
fn nearest(build: &Build, file: &str) -> (Build, BTreeMap<String, u32>) {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        Some((Build::parse(words.next()?)?, words.next()?.to_owned(), words.next()?.parse::<u32>().ok()?))
    };
    let all: Vec<_> = file.lines().filter_map(entry).collect();
    let found = all.iter().map(|(b, ..)| b).min_by_key(|b| b.distance(build)).expect("an entry").clone();
    let counts = all.into_iter().filter(|(b, ..)| *b == found).map(|(_, name, count)| (name, count)).collect();
    (found, counts)
}

/// The file with this kernel's lines in the place of older ones.
fn with(build: &Build, lines: &str, file: &str) -> String {
    let prefix = format!("{build} ");
    let kept = file.lines().filter(|l| !l.starts_with(&prefix)).chain(lines.lines());
    let (mut comments, mut entries): (Vec<_>, Vec<_>) = kept.partition(|l| l.starts_with('#'));
    entries.sort_by_key(|l| (l.split_whitespace().next().and_then(Build::parse).map(|b| b.series), *l));
    comments.append(&mut entries);
    comments.join("\n") + "\n"
}

#[test]
fn verified_instructions_do_not_grow_by_more_than_a_fifth() {
    let mut now = Kernel::load(Sizes::default(), 1).unwrap().programs.verified_instructions().unwrap();
    now.sort();
    let build = Build::running();
    let file = std::fs::read_to_string(recorded_file()).unwrap_or_default();
    let lines: String = now.iter().fold(String::new(), |all, (name, n)| all + &format!("{build} {name} {n}\n"));
    let record = std::env::var_os("FLOWLOG_RECORD").is_some();
    if features::guest() {
        // `cargo xtask vm --record` reads these from the console.
        let _ = lines.lines().try_for_each(|l| writeln!(std::io::stderr(), "\nVERIFIED {l}"));
    } else if record {
        std::fs::write(recorded_file(), with(&build, &lines, &file)).unwrap();
    }
    assert!(now.iter().all(|(_, count)| *count <= INSTRUCTIONS_MAX), "of 1,000,000:\n{lines}");
    if record {
        return;
    }
    let (recorded, before) = nearest(&build, &file);
    // Another kernel's verifier prunes differently.
    let allowed = |before: u32| if recorded == build { before + before / 5 } else { before * 3 };
    for (name, count) in &now {
        let before =
            before.get(name).unwrap_or_else(|| panic!("{recorded} {name} is not in {RECORDED}; now:\n{lines}"));
        assert!(
            *count <= allowed(*before),
            "{name}: {count} verified instructions, {before} recorded for {recorded}; now:\n{lines}"
        );
    }
}

#[test]
fn a_kernel_that_is_not_recorded_is_compared_with_the_nearest() {
    let file = "# head\n6.1-debian a 10\n6.12-debian a 20\n6.18-other a 30\n6.18-debian a 40\n";
    let of = |name: &str| nearest(&Build::parse(name).unwrap(), file);
    let count = |name: &str| of(name).1["a"];
    assert_eq!([count("6.1-debian"), count("6.2-other"), count("6.14-debian")], [10, 10, 20]);
    assert_eq!([count("6.18-other"), count("6.18-debian"), count("7.9-debian")], [30, 40, 40]);
    let other = with(&Build::parse("6.12-debian").unwrap(), "6.12-debian a 21\n", file);
    assert_eq!(other, "# head\n6.1-debian a 10\n6.12-debian a 21\n6.18-debian a 40\n6.18-other a 30\n");
}

/// Code of an instruction, and what it is about.
const CLASS_LDX_ST_STX: [u8; 3] = [1, 2, 3];
const MOV64_X: u8 = 0xbf;
const ADD64_K: u8 = 0x07;
const CALL: u8 = 0x85;
const LD_IMM64: u8 = 0x18;
const PSEUDO_CALL: u8 = 1;
const PSEUDO_FUNC: u8 = 4;
const FRAME_POINTER: u8 = 10;

/// Bytes of stack that one function touches.
fn frame(code: &[bpf_insn]) -> i64 {
    let lowest = code.iter().enumerate().filter_map(|(at, i)| {
        let memory = CLASS_LDX_ST_STX.contains(&(i.code & 7));
        let through_frame = if i.code & 7 == 1 { i.src_reg() } else { i.dst_reg() } == FRAME_POINTER;
        let next = code.get(at + 1);
        match next {
            _ if memory && through_frame => Some(i64::from(i.off)),
            // A pointer to something on the stack.
            Some(n)
                if i.code == MOV64_X
                    && i.src_reg() == FRAME_POINTER
                    && n.code == ADD64_K
                    && n.dst_reg() == i.dst_reg() =>
            {
                Some(i64::from(n.imm))
            }
            _ => None,
        }
    });
    -lowest.min().unwrap_or(0)
}

/// Stack of the deepest chain of calls from the function that begins at `start`.
fn stack(code: &[bpf_insn], starts: &[usize], start: usize) -> i64 {
    let end = starts.iter().copied().filter(|s| *s > start).min().unwrap_or(code.len());
    let callees = (start..end).filter_map(|at| callee(code, at));
    let deepest = callees.map(|c| stack(code, starts, c)).max().unwrap_or(0);
    let own = frame(&code[start..end]).max(1);
    (own + FRAME_STEP - 1) / FRAME_STEP * FRAME_STEP + deepest
}

/// The function of ours that an instruction calls, or hands to the kernel to be called.
fn callee(code: &[bpf_insn], at: usize) -> Option<usize> {
    let i = code[at];
    let ours = (i.code == CALL && i.src_reg() == PSEUDO_CALL) || (i.code == LD_IMM64 && i.src_reg() == PSEUDO_FUNC);
    usize::try_from(i64::try_from(at).ok()? + 1 + i64::from(i.imm)).ok().filter(|_| ours)
}

#[test]
fn no_program_needs_more_stack_than_the_oldest_kernel_has() {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flowlog-ebpf/prebuilt/flowlog.bpf.o");
    let mut object = Object::parse(&std::fs::read(object).unwrap()).unwrap();
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).unwrap();
    let mut needs = BTreeMap::new();
    for (name, program) in &object.programs {
        let code = &object.functions[&program.function_key()].instructions;
        let mut starts: Vec<usize> = (0..code.len()).filter_map(|at| callee(code, at)).collect();
        starts.push(0);
        needs.insert(name, stack(code, &starts, 0));
    }
    assert!(needs.len() > 4 && needs.values().any(|n| *n > 64), "{needs:?}");
    eprintln!("{needs:?}");
    assert!(needs.values().all(|n| *n <= STACK_MAX), "{needs:?}");
}
