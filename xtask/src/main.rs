//! flowlog's development commands: `cargo xtask VERB`. One file per verb; CI and the README call only these.

mod bench;
mod build;
mod check;
mod demo;
mod fuzz;
mod mutants;
mod setup;
mod test;
mod util;
mod vm;

use anyhow::bail;

const USAGE: &str = "\
usage: cargo xtask VERB

  demo            build, make a small network, run the agent on it, show what landed (root)
  test [NAME]     everything: unit, parser, kernel, network and object store tests (root)
  vm [KERNEL]     the tests on Debian's kernels 6.1, 6.12 and the newest, in guests (root); `--all`: more of both
  bench [WHAT]    measure: packet, wire, agent; `cargo xtask bench --help` for options (root)
  fuzz verdicts   random networks, rules and traffic against the firewall's own counters (root)
  check           format, clippy, reproducible eBPF object, dependency and symbol checks
  mutants [NAME]  break the sources on purpose, in a copy: does a test notice? (root, half an hour)
  build           rebuild the eBPF object from source, then the release agent
  build-ebpf      only the object, flowlog-ebpf/prebuilt/flowlog.bpf.o
  setup           install what the verbs above need (each verb does it by itself)";

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let verb = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    match verb.as_str() {
        "setup" => setup::run(),
        "build" => build::run(),
        "build-ebpf" => build::ebpf(),
        "check" => check::run(),
        "test" => test::run(&rest),
        "vm" => vm::run(&rest),
        "bench" => bench::run(&rest),
        "demo" => demo::run(&rest),
        "fuzz" => fuzz::run(&rest),
        "mutants" => mutants::run(&rest),
        "" | "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown verb `{other}`\n{USAGE}"),
    }
}
