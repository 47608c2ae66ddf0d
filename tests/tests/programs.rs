//! Real programs, dumped and restored several times while they work: they must end as if nothing had happened.
//!
//! `STASIS_ROUNDS` is how often (6), `STASIS_SEED` decides when; `--nocapture` shows a line of the table in
//! docs/programs.md per program. In CI every program must be installed.

use stasis_tests::program::{find, missing, rounds, survive, version};
use stasis_tests::working::Round;
use std::path::Path;

fn survives(name: &str) {
    let program = find(name).expect("in the table");
    if let Some(lacks) = missing(program) {
        assert!(
            std::env::var_os("CI").is_none(),
            "{name}: {lacks} is not installed"
        );
        eprintln!("skipped: {name}: {lacks} is not installed");
        return;
    }
    let rounds = rounds().expect("STASIS_ROUNDS");
    let seed = match std::env::var("STASIS_SEED") {
        Ok(text) => text.parse().expect("STASIS_SEED"),
        Err(_) => u64::from(std::process::id()),
    };
    match survive(
        Path::new(env!("CARGO_BIN_EXE_stasis-box")),
        program,
        rounds,
        seed,
    ) {
        Ok(took) => println!("{}", row(name, &version(program).expect("version"), &took)),
        Err(e) => panic!("{name}, STASIS_SEED={seed}: {e:#}"),
    }
}

/// `| name | version | rounds | MiB | dump | frozen | restore |`, the last three as median and longest in milliseconds.
fn row(name: &str, version: &str, rounds: &[Round]) -> String {
    let column = |f: &dyn Fn(&Round) -> u64| {
        let mut all: Vec<u64> = rounds.iter().map(f).collect();
        all.sort_unstable();
        let ms = |us: u64| us as f64 / 1000.0;
        format!(
            "{:.0} / {:.0}",
            ms(all[all.len() / 2]),
            ms(all[all.len() - 1])
        )
    };
    let most = rounds.iter().map(|r| r.pages).max().unwrap_or(0) / 256;
    format!(
        "| {name} | {version} | {} | {most} | {} | {} | {} |",
        rounds.len(),
        column(&|r| r.dump_us),
        column(&|r| u64::from(r.frozen_us)),
        column(&|r| r.restore_us)
    )
}

macro_rules! programs {
    ($($name:ident)*) => {
        $(#[test] fn $name() { survives(stringify!($name)); })*

        #[test]
        fn every_program_is_run() {
            let run = [$(stringify!($name)),*];
            let all: Vec<_> = stasis_tests::program::PROGRAMS.iter().map(|p| p.name).collect();
            assert_eq!(run[..], all[..]);
        }
    };
}
programs!(shell python make node java data xz);
