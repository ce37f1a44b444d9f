//! `cargo xtask vm`: the agent and its tests on Debian's kernels, in guests that see this machine's files.
//!
//! A guest has this machine's root file system, read-only below a tmpfs: the same `nft`, `ip`, agent and test binary, on
//! another kernel. Nothing is installed into an image, and nothing that a guest does stays.
//!
//! * [`apt`], [`kernels`]: where kernels come from; [`arm`]: a root for guests that cannot use this machine's; [`tools`]:
//!   programs that only guests need;
//! * [`image`]: the first file system; [`job`]: what runs in a guest, and what it says; [`boot`]: QEMU;
//! * [`report`]: what came of it all.

mod apt;
mod arm;
mod boot;
mod image;
mod job;
mod kernels;
mod report;
mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::{
    bench, build, setup, test,
    util::{root, step},
};
use boot::{Accelerator, Boot};
use job::{Choice, Outcome, Test, Work};
use kernels::{Catalogue, Kernel};
use report::Result as Report;

/// The oldest that is promised, the one most nodes run, and what comes. CI boots the first and the last, and arm64 on the one between.
const SMOKE_KERNELS: [&str; 3] = ["6.1", "6.12", "newest"];
/// A guest that takes longer has a problem of its own.
const SMOKE_TIME_MAX: Duration = Duration::from_mins(20);
const ALL_TIME_MAX: Duration = Duration::from_hours(1);

/// Machine of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86_64", alias = "amd64")]
    X86,
    #[value(name = "aarch64", alias = "arm64")]
    Arm,
}

impl Arch {
    /// This machine's.
    pub(crate) const fn here() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm } else { Self::X86 }
    }

    /// As everybody but Debian calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }

    /// As the compiler calls it.
    pub(crate) const fn triple(self) -> &'static str {
        match self {
            Self::X86 => "x86_64-unknown-linux-gnu",
            Self::Arm => arm::TARGET,
        }
    }

    /// What links for it on another machine: the linker's name. `None`: nobody has needed that.
    pub(crate) const fn cross_compiler(self) -> Option<&'static str> {
        match self {
            Self::X86 => None,
            Self::Arm => Some(arm::COMPILER),
        }
    }

    /// A program of binutils that understands its files.
    pub(crate) fn tool(self, name: &str) -> String {
        if self == Self::here() { name.to_owned() } else { format!("{}-linux-gnu-{name}", self.name()) }
    }

    pub(crate) const fn debian(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }

    const fn qemu(self) -> &'static str {
        match self {
            Self::X86 => "qemu-system-x86_64",
            Self::Arm => "qemu-system-aarch64",
        }
    }

    const fn qemu_package(self) -> &'static str {
        match self {
            Self::X86 => "qemu-system-x86",
            Self::Arm => "qemu-system-arm",
        }
    }

    const fn console(self) -> &'static str {
        match self {
            Self::X86 => "ttyS0",
            Self::Arm => "ttyAMA0",
        }
    }
}

#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(crate) struct Args {
    /// A series, such as 6.12, or newest; default: 6.1, 6.12 and newest; with --all every series there is
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// All tests that a guest can run, not the smoke set only
    #[arg(long)]
    all: bool,
    /// Tests whose names contain NAME, instead (can be repeated)
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// Instead of tests, count the instructions that a packet takes in each of the programs
    #[arg(long, conflicts_with_all = ["all", "tests", "record", "arch"])]
    instructions: bool,
    /// Machine of the guests; for aarch64 the tests are cross compiled
    #[arg(long, value_enum, default_value_t = Arch::X86)]
    arch: Arch,
    /// Put what the verifier needed into `integration/verified_instructions.txt`, print a table for docs/kernels.md
    #[arg(long)]
    record: bool,
    /// Keep scripts and images of the guests in target/vm/run
    #[arg(long)]
    keep: bool,
}

impl Args {
    /// Tests to run: names say it best.
    fn choice(&self) -> Choice {
        if !self.tests.is_empty() {
            Choice::Named(self.tests.clone())
        } else if self.all {
            Choice::All
        } else {
            Choice::Smoke
        }
    }

    /// Builds what the guests run.
    fn work(&self) -> anyhow::Result<Work> {
        if self.instructions {
            return Ok(Work::Instructions { suite: bench::suite()? });
        }
        let programs = match self.arch {
            Arch::X86 => test::programs()?,
            Arch::Arm => arm::programs()?,
        };
        Ok(Work::Tests { programs, choice: self.choice() })
    }

    /// Kernels to boot, each once.
    fn kernels(&self, catalogue: &Catalogue, dir: &Path) -> anyhow::Result<Vec<Kernel>> {
        let series = match self.choice() {
            _ if !self.kernels.is_empty() => self.kernels.clone(),
            Choice::All => catalogue.series(),
            _ if self.instructions => vec!["newest".to_owned()],
            _ => SMOKE_KERNELS.map(str::to_owned).to_vec(),
        };
        let mut kernels: Vec<Kernel> = Vec::new();
        for series in series {
            let kernel = catalogue.get(dir, &series)?;
            if !kernels.iter().any(|k| k.release == kernel.release) {
                kernels.push(kernel);
            }
        }
        Ok(kernels)
    }
}

/// Boots the kernels side by side and runs the chosen tests in each.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::require_root("vm")?;
    setup::network_tools()?;
    setup::guests(args.arch.qemu(), args.arch.qemu_package(), boot::file_server().is_some())?;
    boot::ensure_possible(args.arch)?;
    build::ensure_fresh()?;
    let work = args.work()?;
    let dir = root().join("target/vm");
    let catalogue = Catalogue::open(&dir, args.arch)?;
    let kernels = args.kernels(&catalogue, &dir)?;
    let (served, work) = match work {
        Work::Tests { programs, choice } if args.arch == Arch::Arm => {
            let (served, programs) = arm::root(&dir, catalogue.archive(), &programs, &kernels)?;
            (served, Work::Tests { programs, choice })
        }
        work => (PathBuf::from("/"), work),
    };
    let busybox = catalogue.busybox(&dir)?;
    let tools = match args.arch {
        Arch::X86 => tools::exports(&tools::folder(&dir)?),
        Arch::Arm => String::new(),
    };
    let plan = Plan { arch: args.arch, dir, served, busybox, tools, work, record: args.record };
    let began = Instant::now();
    let results = plan.side_by_side(&kernels)?;
    if !args.keep {
        let _ = fs::remove_dir_all(plan.runs());
    }
    if args.record {
        report::record(&results)?;
    }
    report::print(&results, began.elapsed(), &plan.logs())
}

/// What all guests have in common.
struct Plan {
    arch: Arch,
    dir: PathBuf,
    /// The folder that the guest sees as its root.
    served: PathBuf,
    busybox: PathBuf,
    /// Lines of the guest's script that make further programs known.
    tools: String,
    work: Work,
    record: bool,
}

impl Plan {
    /// One more at a time than there are cores: tests wait for packets and timers half of the time.
    fn side_by_side(&self, kernels: &[Kernel]) -> anyhow::Result<Vec<Report>> {
        let slots = (kernels::cores() + 1).min(kernels.len());
        step(&format!("{} kernels, {slots} at a time; consoles in {}", kernels.len(), self.logs().display()));
        fs::create_dir_all(self.logs())?;
        let todo = Mutex::new(kernels.iter());
        let next = || todo.lock().ok()?.next();
        let work = || -> anyhow::Result<Vec<Report>> {
            let mut done = Vec::new();
            while let Some(kernel) = next() {
                done.push(self.boot(kernel)?);
            }
            Ok(done)
        };
        let mut results = thread::scope(|scope| {
            let threads: Vec<_> = (0..slots).map(|_| scope.spawn(work)).collect();
            let done = threads.into_iter().map(|t| t.join().or_else(|_| bail!("a guest's thread panicked"))?);
            done.collect::<anyhow::Result<Vec<_>>>()
        })?
        .concat();
        results.sort_by_key(|r| kernels.iter().position(|k| k.release == r.kernel.release));
        Ok(results)
    }

    fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Where a guest finds its script.
    fn runs(&self) -> PathBuf {
        match self.arch {
            Arch::X86 => self.dir.join("run"),
            Arch::Arm => self.served.join("flowlog/run"),
        }
    }

    /// Boots one kernel; a second time, for what has not passed, if the guest never said that it had booted or QEMU crashed.
    fn boot(&self, kernel: &Kernel) -> anyhow::Result<Report> {
        let run = self.runs().join(&kernel.series);
        fs::create_dir_all(&run)?;
        let script = run.join("guest.sh");
        let initrd = run.join("initrd");
        // An arm64 root has the modules in their place.
        let modules = (self.arch == Arch::X86).then_some(kernel.modules.as_path());
        let there = Path::new("/").join(script.strip_prefix(&self.served)?);
        image::write(kernel, &self.busybox, &there, &initrd)?;
        let boot = |accelerator| Boot {
            kernel,
            arch: self.arch,
            accelerator,
            initrd: &initrd,
            root: &self.served,
            log: self.logs().join(format!("{}-{}.log", kernel.series, self.arch.debian())),
            time_max: if matches!(self.work, Work::Tests { choice: Choice::All, .. }) {
                ALL_TIME_MAX
            } else {
                SMOKE_TIME_MAX
            },
        };
        let first = match self.work {
            Work::Instructions { .. } => Accelerator::Counting,
            _ if self.arch == Arch::X86 && kernels::kvm() => Accelerator::Kvm,
            Work::Tests { .. } => Accelerator::Tcg,
        };
        let second = if first == Accelerator::Kvm { Accelerator::Tcg } else { first };
        let mut tests = Vec::new();
        let mut verified = Vec::new();
        for accelerator in [first, second] {
            fs::write(&script, job::script(kernel, modules, self, &tests))?;
            let ran = boot(accelerator).run(|test| {
                println!("{:<5} {test}", kernel.series);
                tests.push(test);
            })?;
            verified.extend(ran.console.verified);
            // The benchmark calls its clock's unit nanoseconds.
            ran.console
                .counted
                .iter()
                .for_each(|line| println!("{}", line.replace("ns per packet", "instructions per packet")));
            match ran.crash {
                None if ran.console.booted => return Ok(Report { kernel: kernel.clone(), tests, verified }),
                None => step(&format!("{} did not boot", kernel.release)),
                Some(signal) => step(&format!("{}: signal {signal} ended QEMU", kernel.release)),
            }
        }
        let outcome = Outcome::Fail("no guest came to its end, twice".to_owned());
        tests.push(Test { name: "boot".to_owned(), outcome, took: Duration::ZERO });
        Ok(Report { kernel: kernel.clone(), tests, verified })
    }
}
