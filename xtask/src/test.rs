//! What CI runs, in one go; a failing step does not hide the ones behind it.
use crate::run::{cargo, loud};
use anyhow::Result;
use std::time::Instant;

/// Runs the verb; false if a step failed.
///
/// # Errors
/// None of its own: failures are in the summary.
pub fn run() -> Result<bool> {
    type Step = (&'static str, fn() -> Result<bool>);
    let steps: &[Step] = &[
        ("setup", || crate::setup::run().map(|()| true)),
        ("format", || {
            loud(cargo().args(["fmt", "--all", "--check"])).map(|()| true)
        }),
        ("lints", || {
            let lints = [
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ];
            loud(cargo().args(lints)).map(|()| true)
        }),
        ("tests", || {
            loud(cargo().args(["test", "--workspace", "--no-fail-fast"])).map(|()| true)
        }),
        ("tidy", crate::tidy::run),
    ];
    let mut summary = Vec::new();
    for (name, step) in steps {
        println!("== {name}");
        let start = Instant::now();
        let done = step();
        if let Err(e) = &done {
            eprintln!("{name}: {e:#}");
        }
        summary.push((*name, matches!(done, Ok(true)), start.elapsed()));
    }
    println!("== summary");
    for (name, ok, took) in &summary {
        let word = if *ok { "ok" } else { "FAILED" };
        println!("{name:<8} {word:<7} {:>7.1} s", took.as_secs_f64());
    }
    Ok(summary.iter().all(|s| s.1))
}
