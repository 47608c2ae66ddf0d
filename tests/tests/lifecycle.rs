//! The contract: whatever happens to the engine, the tree is unharmed, and a restore is all or nothing.
//!
//! By default every test takes a sample; `STASIS_LONG=1` takes every point and hundreds of rounds. Each test says how
//! many points it tried (`--nocapture` shows it).
use stasis_tests::case::{Scenario, expect};
use stasis_tests::guests::find;
use stasis_tests::life::Trial;
use std::path::Path;

const BOX: &str = env!("CARGO_BIN_EXE_stasis-box");

fn long() -> bool {
    std::env::var_os("STASIS_LONG").is_some()
}

fn stride(n: usize) -> usize {
    if long() { 1 } else { n }
}

fn rounds(n: u32) -> u32 {
    if long() { n * 10 } else { n }
}

fn live(name: &str, trial: Trial) {
    let guest = find(name).unwrap_or_else(|| panic!("no guest {name} in the table"));
    expect(Path::new(BOX), guest, &Scenario::Life(trial));
}

macro_rules! killed {
    ($($name:ident: $stride:literal, $rounds:literal;)*) => {
        mod dump_killed_at_each_step {
            $(#[test] fn $name() {
                super::live(stringify!($name), super::Trial::KillDump { stride: super::stride($stride) });
            })*
        }
        mod dump_killed_at_random {
            $(#[test] fn $name() {
                super::live(stringify!($name), super::Trial::KillDumpRandom(super::rounds($rounds)));
            })*
        }
        mod restore_killed_at_each_step {
            $(#[test] fn $name() {
                super::live(stringify!($name), super::Trial::KillRestore { stride: super::stride($stride) });
            })*
        }
        mod restore_killed_at_random {
            $(#[test] fn $name() {
                super::live(stringify!($name), super::Trial::KillRestoreRandom(super::rounds($rounds)));
            })*
        }
    };
}

killed! {
    plain: 5, 20;
    restart: 23, 20;
    registers: 11, 20;
    threads: 97, 10;
    tree: 31, 20;
    sigpending: 13, 20;
    posix_timers: 13, 20;
    itimers: 13, 20;
    seccomp_filter: 17, 20;
    seccomp_strict: 17, 20;
    epoll: 13, 20;
    ghost: 13, 20;
    stopped: 13, 20;
    rseq: 13, 20;
}
