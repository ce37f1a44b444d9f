//! What the programs cost the verifier: growth by more than a fifth is a change somebody must have meant.

use std::path::Path;

use flowlog_agent::kernel::{Kernel, Sizes};

/// `NAME INSTRUCTIONS` lines; after a change that is meant, write what the failing test prints.
const RECORDED: &str = "verified_instructions.txt";

#[test]
fn verified_instructions_do_not_grow_by_more_than_a_fifth() {
    let now = Kernel::load(Sizes::default(), 1).unwrap().verified_instructions().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORDED);
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    let list = now.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join("\n");
    for (name, count) in &now {
        let before = recorded.lines().find_map(|l| l.strip_prefix(name.as_str())?.trim().parse::<u32>().ok());
        let before = before.unwrap_or_else(|| panic!("{name} is not in {RECORDED}; now:\n{list}"));
        assert!(
            *count <= before + before / 5,
            "{name}: {count} verified instructions, {before} recorded; now:\n{list}"
        );
    }
}
