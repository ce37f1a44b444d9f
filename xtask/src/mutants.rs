//! `cargo xtask mutants [NAME]`: does every promise have a test that can fail? Breaks the sources on purpose, one place at a
//! time and in a copy, and runs the test that must notice.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, bail, ensure};

use crate::{
    build, setup,
    util::{files_below, root, step},
};

mod programs;

/// Folder whose files are in the eBPF objects.
const PROGRAMS: &str = "flowlog-ebpf/src";

/// One way to break flowlog.
struct Mutant {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    /// The test that must fail.
    noticed_by: Test,
}

enum Test {
    /// Of the agent's library.
    Unit(&'static str),
    /// On the real kernel.
    Kernel(&'static str),
}

const FAULTS: &str = "flowlog-agent/faults";
const SIMULATION: Test = Test::Unit("simulated_lives");
const JOURNAL: &str = "flowlog-agent/src/journal/mod.rs";
const BOOKS: &str = "flowlog-agent/src/agent/books.rs";
const SPOOL: &str = "flowlog-agent/src/spool.rs";
const UPLOAD: &str = "flowlog-agent/src/upload/mod.rs";

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "position-before-journal",
        file: BOOKS,
        from: "            journal.block(block, end);\n",
        to: "            journal.block(block, end);\n            source.release(end);\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "position-before-journal-on-the-kernel",
        file: BOOKS,
        from: "            journal.block(block, end);\n",
        to: "            journal.block(block, end);\n            source.release(end);\n",
        noticed_by: Test::Kernel("killed_at_any_step"),
    },
    Mutant {
        name: "journal-not-synced",
        file: JOURNAL,
        from: ".and_then(|()| segment.file.sync())",
        to: "",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "journal-directory-not-synced",
        file: JOURNAL,
        from: "        self.fs.sync_dir(DIR).map_err(failed(\"sync the directory of\"))?;\n",
        to: "",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "failed-sync-believed",
        file: JOURNAL,
        from: "        fault::io(\"journal_sync_error\").and_then(|()| segment.file.sync()).map_err(failed(\"sync\"))?;\n",
        to: "        let _ = segment.file.sync();\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "old-segments-removed-too-early",
        file: JOURNAL,
        from: "        self.pending.insert(key, segment);\n",
        to: "        let _ = (key, segment);\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "torn-entries-believed",
        file: "flowlog-agent/src/journal/entry.rs",
        from: "        if crc.finalize() != word(0)? {\n",
        to: "        if crc.finalize() != word(0)? && payload.is_empty() {\n",
        noticed_by: Test::Unit("a_bit_that_flips_anywhere"),
    },
    Mutant {
        name: "epoch-before-its-record",
        file: BOOKS,
        from: "        if !turns.is_empty() {\n            self.record(&turns)?;\n",
        to: "        if !turns.is_empty() {\n            for &(id, _) in due {\n                if let Some(w) = self.ledger.get(id) {\n                    self.source.set_epoch(id, w.subject.ifindex, w.epoch.next());\n                }\n            }\n            self.record(&turns)?;\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "counters-cleared-before-the-close",
        file: BOOKS,
        from: "        fault::point(\"window_close\");\n        self.record(&events)?;\n",
        to: "        for (id, epoch) in &closing {\n            self.source.clear_truth(*id, *epoch)?;\n        }\n        self.record(&events)?;\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "window-closed-before-its-last-records",
        file: BOOKS,
        from: "        while self.source.position() < end {\n",
        to: "        while false && self.source.position() < end {\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "sweep-left-out",
        file: BOOKS,
        from: "        while let Swept::RingFull(cursor) = self.source.sweep(scope, at)? {\n",
        to: "        while let Some(Swept::RingFull(cursor)) = (scope == Scope::All).then(|| self.source.sweep(scope, at)).transpose()? {\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "spool-not-synced",
        file: SPOOL,
        from: "        file.sync()\n",
        to: "        Ok(())\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "spool-directory-not-synced",
        file: SPOOL,
        from: "        self.fs.sync_dir(&dir).map_err(failed(\"sync the directory of\", &held))?;\n        self.usage",
        to: "        self.usage",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "object-delivered-before-the-journal-knows",
        file: SPOOL,
        from: "        let (partial, held) = (format!(\"{name}{PARTIAL}\"), format!(\"{name}{HELD}\"));\n",
        to: "        let (partial, held) = (format!(\"{name}{PARTIAL}\"), name.clone());\n",
        noticed_by: Test::Unit("finds_every_complete_file"),
    },
    Mutant {
        name: "unlinked-before-the-put",
        file: UPLOAD,
        from: "    fault::point(\"put_sent\");\n",
        to: "    spool.remove(entry).map_err(spooled)?;\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "key-not-a-function-of-the-window",
        file: "flowlog-agent/src/encode/key.rs",
        from: "        info.span.sequence\n",
        to: "        info.span.sequence + crate::types::Now::read().mono.0\n",
        noticed_by: SIMULATION,
    },
    Mutant {
        name: "packets-judged-that-no-hook-has-counted",
        file: "flowlog-agent/src/agent/capture/mod.rs",
        from: "        self.end_accounting(&ids, &self.devices()?);\n        self.books.source.kernel.detach_all()?;\n",
        to: "        self.books.source.kernel.detach_all()?;\n",
        noticed_by: Test::Kernel("begins_and_ends_under_traffic"),
    },
    Mutant {
        name: "hooks-attached-anew-instead-of-in-place",
        file: "flowlog-agent/src/kernel/attach.rs",
        from: "            && let Ok(id) = program.attach_to_link(link)\n        {\n            let link = program.take_link(id).map_err(|e| failed(&e))?;\n            let link = link.try_into().map_err(|e: LinkError| failed(&e))?;\n            self.hold(Some(dev), Held::Link { _link: link }, pin);\n            return Ok(Attached::Tcx);\n",
        to: "            && let Some(path) = &pin\n        {\n            let _ = pins::remove(path);\n            drop(link);\n            std::thread::sleep(std::time::Duration::from_millis(50));\n",
        noticed_by: Test::Kernel("replaces_the_programs_in_place"),
    },
    Mutant {
        name: "other-contracts-are-seen",
        file: "flowlog-agent/src/control/access.rs",
        from: "        if p.contract != *contract {\n            return Access::Hidden;\n        }\n",
        to: "",
        noticed_by: Test::Unit("role_times_privilege"),
    },
    Mutant {
        name: "keys-follow-a-rename",
        file: "flowlog-agent/src/control/captures.rs",
        from: "flow_log.key_name.clone().unwrap_or_else(|| checked.name.clone())",
        to: "checked.name.clone()",
        noticed_by: Test::Unit("keeps_the_name_its_keys_begin_with"),
    },
    Mutant {
        name: "deleting-is-not-written-down",
        file: "flowlog-agent/src/control/worker.rs",
        from: "                f.state = State::Deleting;\n",
        to: "                let _ = f;\n",
        noticed_by: Test::Kernel("captures_nothing_until_it_is_provisioned"),
    },
    Mutant {
        name: "undone-in-the-store-only",
        file: "flowlog-agent/src/control/worker.rs",
        from: "        fault::point(\"rules_undone\");\n        self.order().await;\n",
        to: "",
        noticed_by: Test::Kernel("all_or_none"),
    },
    Mutant {
        name: "refusals-counted-once-more-after-every-look",
        file: "flowlog-agent/src/kernel/attach.rs",
        from: "        if self.hooks.iter().any(|h| h.ifindex == 0) {\n            return Ok(());\n        }\n",
        to: "",
        noticed_by: Test::Kernel("is_renamed"),
    },
    Mutant {
        name: "split-btf-read-whole",
        file: "flowlog-agent/src/kernel/btf.rs",
        from: "        offset.checked_sub(before).ok_or(base)\n",
        to: "        let _ = (base, before);\n        Ok(offset)\n",
        noticed_by: Test::Unit("a_module_goes_on_where_its_base_ends"),
    },
    Mutant {
        name: "new-reason-not-said",
        file: "flowlog-agent/src/kernel/layout/reasons.rs",
        from: "            if known.is_none() {\n",
        to: "            if known.is_none() && false {\n",
        noticed_by: Test::Unit("what_a_new_kernel_adds"),
    },
];

/// Runs all mutants, or those whose name contains `filter`.
pub fn run(filter: &[String]) -> anyhow::Result<()> {
    let copy = root().join("target/mutants/tree");
    let wanted = |m: &&Mutant| filter.is_empty() || filter.iter().any(|f| m.name.contains(f.as_str()));
    let mut survivors = Vec::new();
    let mut tried = 0;
    setup::bpf()?;
    for mutant in MUTANTS.iter().chain(programs::PROGRAMS).filter(wanted) {
        step(&format!("{}: {}", mutant.name, mutant.file));
        fresh_copy(&copy)?;
        let path = copy.join(mutant.file);
        let text = fs::read_to_string(&path)?;
        ensure!(text.matches(mutant.from).count() == 1, "{}: its place is not in {} once", mutant.name, mutant.file);
        fs::write(&path, text.replace(mutant.from, mutant.to))?;
        tried += 1;
        if mutant.file.starts_with(PROGRAMS) {
            let objects = root().join("target/mutants/bpf");
            build::objects_of(&copy, &objects, &copy.join("flowlog-ebpf/prebuilt"))?;
            ensure!(test(&copy, &Test::Kernel(programs::LOADS))?, "{}: its programs do not load", mutant.name);
        }
        if test(&copy, &mutant.noticed_by)? {
            println!("SURVIVED  {}", mutant.name);
            survivors.push(mutant.name);
        } else {
            println!("noticed   {}", mutant.name);
        }
    }
    ensure!(tried > 0, "no mutant has that name");
    if !survivors.is_empty() {
        bail!("{} of {tried} mutants were not noticed: {}", survivors.len(), survivors.join(", "));
    }
    println!("\nall {tried} mutants were noticed");
    Ok(())
}

/// The tracked files of this tree, and no others. Those that are the same are left alone, so that only what changed is built
/// again.
fn fresh_copy(copy: &Path) -> anyhow::Result<()> {
    let out = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output()?;
    let tracked = String::from_utf8(out.stdout)?;
    let names: BTreeSet<&str> = tracked.split('\0').filter(|n| !n.is_empty()).collect();
    if copy.is_dir() {
        for old in files_below(&[copy.to_owned()])? {
            if old.strip_prefix(copy).is_ok_and(|n| !names.contains(&*n.to_string_lossy())) {
                fs::remove_file(old)?;
            }
        }
    }
    for name in names {
        let (from, to) = (root().join(name), copy.join(name));
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).ok().as_ref() != Some(&bytes) {
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::write(&to, bytes)?;
        }
    }
    Ok(())
}

/// Whether the test passes. A mutant that does not build is a mistake in the list.
fn test(copy: &Path, test: &Test) -> anyhow::Result<bool> {
    let cargo = |args: &[&str]| -> anyhow::Result<(bool, String)> {
        let out = Command::new("cargo")
            .args(args)
            .current_dir(copy)
            .env("CARGO_TARGET_DIR", root().join("target/mutants/target"))
            .env("RUST_BACKTRACE", "0")
            .output()?;
        Ok((out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned()))
    };
    let build = |args: &[&str]| -> anyhow::Result<()> {
        let (built, log) = cargo(args)?;
        ensure!(built, "the mutant does not build:\n{log}");
        Ok(())
    };
    let args: &[&str] = match test {
        Test::Unit(name) => &["test", "-q", "-p", "flowlog-agent", "--features", "faults", "--lib", "--", name],
        Test::Kernel(name) => {
            build(&["build", "-q", "-p", "flowlog-agent", "--features", "faults"])?;
            &["test", "-q", "-p", "integration", "--features", FAULTS, "--test", "all", "--", name]
        }
    };
    let before: Vec<&str> = args.iter().copied().take_while(|a| *a != "--").chain(["--no-run"]).collect();
    build(&before)?;
    Ok(cargo(args)?.0)
}
