//! What came of all guests: a line for each kernel, one for all of them, and what is kept.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};

use super::{
    job::{Outcome, Test},
    kernels::Kernel,
};
use crate::util::{root, step};

/// What the verifier needed, by kernel: `integration/tests/all/programs.rs` reads it.
const VERIFIED: &str = "integration/verified_instructions.txt";

#[derive(Clone, Debug)]
pub(crate) struct Result {
    pub kernel: Kernel,
    pub tests: Vec<Test>,
    /// Lines of the file above.
    pub verified: Vec<String>,
}

impl Result {
    fn counts(&self) -> [usize; 3] {
        let count = |is: fn(&Outcome) -> bool| self.tests.iter().filter(|t| is(&t.outcome)).count();
        let passed = count(|o| *o == Outcome::Pass);
        [passed, count(|o| matches!(o, Outcome::Fail(_))), count(|o| matches!(o, Outcome::Skip(_)))]
    }

    /// Instructions that the verifier walked for the largest program.
    fn largest(&self) -> Option<u32> {
        self.verified.iter().filter_map(|l| l.rsplit(' ').next()?.parse().ok()).max()
    }
}

/// Prints it; fails if a test did.
pub(crate) fn print(results: &[Result], took: Duration, logs: &Path) -> anyhow::Result<()> {
    println!();
    let mut sum = [0; 3];
    for result in results {
        let counts = result.counts();
        println!("{:<28} {} passed, {} failed, {} skipped", result.kernel.release, counts[0], counts[1], counts[2]);
        for test in result.tests.iter().filter(|t| matches!(t.outcome, Outcome::Fail(_))) {
            println!("  {test}");
        }
        for (all, one) in sum.iter_mut().zip(counts) {
            *all += one;
        }
    }
    println!("{:.0} s; consoles: {}", took.as_secs_f64(), logs.display());
    println!("vm: {} passed, {} failed, {} skipped", sum[0], sum[1], sum[2]);
    ensure!(sum[1] == 0 && sum[0] > 0, "{} tests failed in guests", sum[1]);
    Ok(())
}

/// Puts what the verifier needed into its file, and prints the table of docs/kernels.md.
pub(crate) fn record(results: &[Result]) -> anyhow::Result<()> {
    let path = root().join(VERIFIED);
    let mut text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for result in results {
        text = with(&text, &result.verified);
    }
    fs::write(&path, text)?;
    step(&format!("{VERIFIED} is written"));
    println!("\n| kernel | passed | skipped | largest program, instructions verified |\n|---|---|---|---|");
    for result in results {
        let [passed, _, skipped] = result.counts();
        let largest = result.largest().map_or_else(|| "not measured".to_owned(), |n| n.to_string());
        println!("| {} | {passed} | {skipped} | {largest} |", result.kernel.release);
    }
    Ok(())
}

/// The file with one kernel's lines in the place of its older ones.
fn with(text: &str, lines: &[String]) -> String {
    let Some(kernel) = lines.first().and_then(|l| l.split(' ').next()) else { return text.to_owned() };
    let kept = text.lines().filter(|l| l.split(' ').next() != Some(kernel)).map(str::to_owned);
    let (comments, mut entries): (Vec<_>, Vec<_>) = kept.chain(lines.iter().cloned()).partition(|l| l.starts_with('#'));
    let numbers = |line: &str| -> Vec<u32> { line.split(['.', '-']).map_while(|n| n.parse().ok()).collect() };
    entries.sort_by(|a, b| numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b)));
    comments.into_iter().chain(entries).fold(String::new(), |all, line| all + &line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_kernel_replace_its_older_ones_and_no_others() {
        let before = "# head\n6.1-debian a 1\n6.12-debian a 2\n6.12-debian gone 3\n";
        let after = with(before, &["6.12-debian a 4".to_owned(), "6.12-debian b 5".to_owned()]);
        assert_eq!(after, "# head\n6.1-debian a 1\n6.12-debian a 4\n6.12-debian b 5\n");
        assert_eq!(with(before, &[]), before);
    }
}
