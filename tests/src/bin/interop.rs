//! Who restores whose images: `interop --ours PATH --other PATH [--only GUEST]...`.
//!
//! Runs every guest through dump and restore in the four combinations of two engines and prints a markdown table;
//! a "no" carries the first Error line of the engine that failed, or the guest's own words.

use anyhow::{Context, Result, bail};
use stasis_tests::case::{Outcome, Scenario, run};
use stasis_tests::engine::Engine;
use stasis_tests::guests::{GUESTS, Guest};
use std::io::Write;

fn main() -> Result<()> {
    stasis_tests::init::main_if_box();
    let (mut ours, mut other, mut only) = (None, None, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--ours" => ours = Some(Engine::at(value()?)?),
            "--other" => other = Some(Engine::at(value()?)?),
            "--only" => only.push(value()?),
            _ => bail!("usage: interop --ours PATH --other PATH [--only GUEST]..."),
        }
    }
    let (ours, other) = (
        ours.context("--ours PATH is missing")?,
        other.context("--other PATH is missing")?,
    );
    let boxer = std::env::current_exe()?;
    let ways = [
        (&ours, &ours),
        (&ours, &other),
        (&other, &ours),
        (&other, &other),
    ];
    let mut out = std::io::stdout();
    writeln!(
        out,
        "| kind | ours->ours | ours->other | other->ours | other->other |\n|---|---|---|---|---|"
    )?;
    // each engine would wait for its own lock's end, and all peers are in the tree
    let unlocked = |g: &Guest| -> Guest {
        let mut all = g.options.to_vec();
        if all.contains(&"--tcp-established") {
            all.extend(["--network-lock", "skip"]);
        }
        Guest {
            options: Box::leak(all.into_boxed_slice()),
            ..*g
        }
    };
    let mut yes = [0; 4];
    let mut rows = 0;
    for guest in GUESTS
        .iter()
        .filter(|g| only.is_empty() || only.iter().any(|o| o == g.name))
    {
        let guest = &unlocked(guest);
        write!(out, "| {} |", guest.name)?;
        for (n, (dump, restore)) in ways.iter().enumerate() {
            let cell = match run(&boxer, guest, &Scenario::DumpRestore, Some((dump, restore))) {
                Ok(Outcome::Passed) => {
                    yes[n] += 1;
                    "yes".to_string()
                }
                Ok(Outcome::Skipped(why)) => format!("skipped: {why}"),
                Ok(Outcome::Failed(r)) => format!("no: {}", reason(&r)),
                Err(e) => format!("not run: {e:#}"),
            };
            write!(out, " {} |", cell.replace('|', "\\|").replace('\n', " "))?;
            out.flush()?;
        }
        rows += 1;
        writeln!(out)?;
    }
    writeln!(
        out,
        "| **{rows} guests** | {} | {} | {} | {} |",
        yes[0], yes[1], yes[2], yes[3]
    )?;
    Ok(())
}

/// One line that says why: the verb that failed with the words of its engine's first Error line, or the guest's verdict.
fn reason(r: &stasis_tests::case::Report) -> String {
    let text = if r.verdict.starts_with("FAIL") {
        r.verdict.clone()
    } else {
        let verb = r.trouble.split(' ').next().unwrap_or_default();
        match r.first_error.split_once("): ") {
            // "(time) Error (file:line): words"
            Some((place, words)) if place.contains("Error (") => format!("{verb}: {words}"),
            _ => r.trouble.clone(),
        }
    };
    let line = text.lines().next().unwrap_or_default();
    let line = line.split("; phase ").next().unwrap_or_default();
    line.chars().take(200).collect()
}
