//! What runs in a guest, and what its console says about it.

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Plan, kernels::Kernel};
use crate::test::Programs;

/// Tests that must pass on every kernel of the matrix, by the beginning of their names: one of each kind of thing that a
/// kernel could do differently. An emulated processor takes ten seconds to start an agent, and CI has ten minutes.
const SMOKE: &[&str] = &[
    "balancers::ipvs",
    "fragments::three_fragments_are_refused_on_the_way_in",
    "hooks::a_kernel_without_tcx",
    "hooks::a_qdisc",
    "hooks::every_hook_kind",
    "hotplug::what_a_cpu_has_counted_before",
    "elsewhere::what_open_vswitch",
    "identity::an_accepted_row",
    "numbers::",
    "packets::every_golden_packet",
    "pins::a_restart_replaces",
    "programs::",
    "stacking::what_a_neighbour",
    "stacking::what_leaves",
    "traced_xdp::what_one_of_two_programs_of_libxdps",
    "traced_xdp::what_a_program_of_libxdps",
    "traced_xdp::what_a_traced_program",
    "verdicts::bridge_forward",
    "verdicts::generic_xdp",
    "verdicts::input_drop",
    "verdicts::output_drop",
];
/// What proves nothing about a kernel: stores, the API, what customers manage. They need servers that an emulated
/// machine is too slow for, and run on every machine that `cargo xtask test` runs on.
const NOT_IN_A_GUEST: &[&str] =
    &["api::", "inventory::", "objects::", "rules::", "stores::", "powercut::", "killed_fifty_times"];
/// Modules that a kernel loads only when somebody names them. What is missing is a reason to skip, not to fail.
const MODULES: [&str; 7] = ["openvswitch", "bonding max_bonds=0", "ipvlan", "macvlan", "vrf", "ip_vs", "ip_vs_rr"];

/// What the console says, so that it cannot be taken for a program's output.
const BOOTED: &str = "VM: booted";
const BEGIN: &str = "VM: begin ";
const END: &str = "VM: end ";
/// The step whose output is the result.
const COUNTED: &str = "instructions";
/// Switches a guest off.
const OFF: &str = "sync; echo o > /proc/sysrq-trigger; read -t 60 < /dev/zero\n";

#[derive(Clone, Debug)]
pub(crate) enum Choice {
    /// What must hold on every kernel.
    Smoke,
    /// Everything that a guest can run.
    All,
    /// The tests whose names contain one of these.
    Named(Vec<String>),
}

/// What a guest is for.
pub(crate) enum Work {
    Tests {
        programs: Programs,
        choice: Choice,
    },
    /// What a packet takes, by this benchmark, on a processor whose clock is what it executes.
    Instructions {
        suite: PathBuf,
    },
}

impl Choice {
    fn arguments(&self) -> Vec<&str> {
        match self {
            Self::Smoke => SMOKE.to_vec(),
            Self::All => NOT_IN_A_GUEST.iter().flat_map(|n| ["--skip", n]).collect(),
            Self::Named(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

/// The guest's first process once it has its root. `modules`: what to put at `/lib/modules`, if it is not there. `ended`: tests
/// that an earlier guest came to the end of.
pub(crate) fn script(kernel: &Kernel, modules: Option<&Path>, plan: &Plan, ended: &[Test]) -> String {
    let Plan { work, tools, record, .. } = plan;
    let bind = modules.map_or_else(String::new, |m| format!("mount --bind {} /lib/modules", m.display()));
    let mut text = format!(
        "#!/bin/bash\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TERM=dumb HOME=/root FLOWLOG_GUEST=1\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run\n\
         mkdir -p /dev/pts /dev/shm /lib/modules; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm\n\
         mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cgroup /sys/fs/cgroup; mount -t tracefs t /sys/kernel/tracing\n\
         {bind}\n{tools}\
         ip link set lo up; dmesg -n 1\n\
         echo \"{BOOTED} {} after $(cut -d' ' -f1 /proc/uptime) s\"\n\
         cd /tmp\n",
        kernel.release,
    );
    if *record {
        text += "export FLOWLOG_RECORD=1\n";
    }
    for module in MODULES {
        let _ = writeln!(text, "modprobe -q {module} || echo 'VM: no module {module}'");
    }
    match work {
        // More rounds than one: what the kernel does once is not what a packet takes.
        Work::Instructions { suite } => {
            step(&mut text, COUNTED, &format!("{} packet --only hits --rounds 3", suite.display()));
        }
        Work::Tests { programs: Programs { agent, tests }, choice } => {
            let (agent, tests) = (agent.display(), tests.display());
            let again = ended.iter().flat_map(|test| ["--skip", &test.name]);
            let arguments = choice.arguments().into_iter().chain(again).map(|a| format!("'{a}'"));
            let arguments = arguments.collect::<Vec<_>>().join(" ");
            step(&mut text, "check", &format!("{agent} check"));
            // One at a time: some change what is the whole kernel's, and an emulated processor is slow enough.
            step(&mut text, "tests", &format!("{tests} --color=never --nocapture --test-threads=1 {arguments}"));
        }
    }
    text += OFF;
    text
}

fn step(text: &mut String, name: &str, command: &str) {
    let _ = writeln!(text, "echo '{BEGIN}{name}'; {command} 2>&1; echo \"{END}{name} $?\"");
}

/// How one test came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pass,
    Fail(String),
    Skip(String),
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub name: String,
    pub outcome: Outcome,
    pub took: Duration,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        match &self.outcome {
            Outcome::Pass => write!(f, "PASS {} {seconds:.1} s", self.name),
            Outcome::Fail(why) if why.is_empty() => write!(f, "FAIL {} {seconds:.1} s", self.name),
            Outcome::Fail(why) => write!(f, "FAIL {} {seconds:.1} s: {why}", self.name),
            Outcome::Skip(why) => write!(f, "SKIP {}: {why}", self.name),
        }
    }
}

/// Reads a console, line by line.
pub(crate) struct Console {
    /// Whether the guest ever came to our script.
    pub booted: bool,
    /// Whether the tests ran to their end.
    pub finished: bool,
    /// The test whose result has not been read.
    running: Option<String>,
    skipped: Option<String>,
    since: Instant,
    /// What the running test said as it panicked.
    panic: Option<String>,
    /// What the verifier needed for the programs, in the lines of `integration/verified_instructions.txt`.
    pub verified: Vec<String>,
    /// What the step [`COUNTED`] has said.
    pub counted: Vec<String>,
    /// Whether that step runs.
    counts: bool,
}

impl Console {
    pub(crate) fn new() -> Self {
        Self {
            booted: false,
            finished: false,
            running: None,
            skipped: None,
            panic: None,
            since: Instant::now(),
            verified: Vec::new(),
            counted: Vec::new(),
            counts: false,
        }
    }

    /// Takes one line in; returns a test that has ended with it.
    pub(crate) fn line(&mut self, line: &str) -> Option<Test> {
        let line = line.trim_end();
        if line.starts_with(BOOTED) {
            self.booted = true;
        } else if let Some(name) = line.strip_prefix(BEGIN) {
            self.since = Instant::now();
            self.counts = name == COUNTED;
        } else if let Some(end) = line.strip_prefix(END) {
            let (name, status) = end.rsplit_once(' ')?;
            self.finished |= name == "tests" || name == COUNTED;
            self.counts = false;
            // What the tests say is read one by one; the rest is one test itself.
            let passed = status == "0";
            if name == "tests" {
                return self
                    .running
                    .take()
                    .map(|n| self.ended(n, Outcome::Fail(format!("ended with status {status}"))));
            }
            let outcome = if passed { Outcome::Pass } else { Outcome::Fail(format!("ended with status {status}")) };
            return Some(self.ended(name.to_owned(), outcome));
        } else if self.counts {
            self.counted.push(line.to_owned());
        } else if let Some(verified) = line.strip_prefix("VERIFIED ") {
            self.verified.push(verified.to_owned());
        } else if let Some(skipped) = line.strip_prefix("SKIPPED ") {
            let why = skipped.split_once(": ").map_or(skipped, |(_, why)| why);
            self.skipped = Some(why.to_owned());
        } else if let Some(rest) = line.strip_prefix("test ") {
            let Some((name, result)) = rest.split_once(" ... ") else {
                self.running = rest.strip_suffix(" ...").map(str::to_owned);
                return None;
            };
            self.running = Some(name.to_owned());
            return self.result(result);
        } else if self.running.is_some() {
            return self.said(line);
        }
        None
    }

    /// A line while a test runs: its result, or its own words.
    fn said(&mut self, line: &str) -> Option<Test> {
        match &mut self.panic {
            Some(words) if words.is_empty() => line.clone_into(words),
            None if line.starts_with("thread '") && line.contains(" panicked at ") => self.panic = Some(String::new()),
            _ => {}
        }
        self.result(line)
    }

    fn result(&mut self, words: &str) -> Option<Test> {
        let outcome = match words.split(' ').next().unwrap_or_default().trim_end_matches(',') {
            "ok" => self.skipped.take().map_or(Outcome::Pass, Outcome::Skip),
            "FAILED" => Outcome::Fail(self.panic.take().unwrap_or_default()),
            "ignored" => Outcome::Skip("is asked for by name only".to_owned()),
            _ => return None,
        };
        let name = self.running.take()?;
        Some(self.ended(name, outcome))
    }

    fn ended(&mut self, name: String, outcome: Outcome) -> Test {
        let took = self.since.elapsed();
        self.since = Instant::now();
        self.skipped = None;
        self.panic = None;
        Test { name, outcome, took }
    }

    /// What there is to say when the guest ends before its tests have: nothing if all is well.
    pub(crate) fn ends(&mut self, why: &str) -> Option<Test> {
        if self.finished {
            return None;
        }
        let name = self.running.take().unwrap_or_else(|| "guest".to_owned());
        Some(self.ended(name, Outcome::Fail(why.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(lines: &str) -> Vec<(String, Outcome)> {
        let mut console = Console::new();
        lines.lines().filter_map(|l| console.line(l)).map(|t| (t.name, t.outcome)).collect()
    }

    #[test]
    fn a_console_is_read_test_by_test() {
        let lines = "\
VM: booted 6.1.0 after 4.0 s\r
VM: begin check\r
ok      kernel\r
VM: end check 0\r
VM: begin tests\r
test hooks::one ... ok\r
test hooks::two ... \r
SKIPPED hooks::two: no tcx links before Linux 6.6\r
ok\r
test hooks::three ... report: 1\r
\r
thread 'hooks::three' (12) panicked at tests/hooks.rs:1:2:\r
no packet\r
FAILED\r
test hooks::four ... ignored\r
VM: end tests 101\r
";
        let skip = |why: &str| Outcome::Skip(why.to_owned());
        let expected = [
            ("check", Outcome::Pass),
            ("hooks::one", Outcome::Pass),
            ("hooks::two", skip("no tcx links before Linux 6.6")),
            ("hooks::three", Outcome::Fail("no packet".to_owned())),
            ("hooks::four", skip("is asked for by name only")),
        ];
        assert_eq!(outcomes(lines), expected.map(|(n, o)| (n.to_owned(), o)));
    }

    #[test]
    fn a_guest_that_dies_fails_the_test_it_ran() {
        let mut console = Console::new();
        assert!(console.line("VM: booted 6.1.0 after 4.0 s").is_none());
        assert!(console.line("test verdicts::one ...").is_none());
        let test = console.ends("the guest died").expect("it was running");
        assert_eq!((test.name.as_str(), test.outcome), ("verdicts::one", Outcome::Fail("the guest died".to_owned())));
    }
}
