//! The box: reads a [`stasis_tests::case::Spec`] file and runs it in fresh namespaces (see [`stasis_tests::init`]).
//!
//! For machines that have no compiler it also builds all guests beforehand (`--build-guests`), and carries guests from one
//! machine to another (`--pack DIR GUEST...`, `--unpack DIR GUEST...`), answering as a test program does.
use anyhow::{Context, Result, bail};
use stasis_tests::case::{self, Outcome};
use stasis_tests::guests::{GUESTS, find};
use stasis_tests::{build, container};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    stasis_tests::init::main_if_box();
    stasis_tests::runtimes::main_if_runtimes();
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    let done = match &words[..] {
        ["--build-guests"] => build_all().map(|()| true),
        ["--pack", dir, names @ ..] => carry(names, |name| {
            let guest = find(name).context("no such guest")?;
            case::pack(Path::new(&args[0]), guest, &Path::new(dir).join(name))
        }),
        ["--unpack", dir, names @ ..] => carry(names, |name| {
            case::unpack(Path::new(&args[0]), &Path::new(dir).join(name))
        }),
        _ => {
            eprintln!("this program is started by the test harness only");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn build_all() -> Result<()> {
    for g in GUESTS {
        build::guest(g.name)?;
    }
    container::build_init()?;
    let network = build::source_dir().with_file_name("network");
    build::compile("stream", &network.join("stream.c")).map(drop)
}

fn carry(names: &[&str], mut one: impl FnMut(&str) -> Result<Outcome>) -> Result<bool> {
    if names.is_empty() {
        bail!("no guests are named");
    }
    let mut failed = 0;
    for name in names {
        let word = match one(name) {
            Ok(Outcome::Passed) => "ok",
            Ok(Outcome::Skipped(why)) => {
                println!("skipped: {name}: {why}");
                "ok"
            }
            Ok(Outcome::Failed(r)) => {
                println!("---- {name}: {:?} {}\n{}", r.verdict, r.trouble, r.logs);
                failed += 1;
                "FAILED"
            }
            Err(e) => {
                println!("---- {name}: {e:#}");
                failed += 1;
                "FAILED"
            }
        };
        println!("test {name} ... {word}");
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {failed} failed");
    Ok(failed == 0)
}
