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

macro_rules! dumps {
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
    };
}

macro_rules! restores {
    ($($name:ident: $stride:literal, $rounds:literal;)*) => {
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

// Strides are primes, so that repeated patterns of calls are met at different places. A guest must stay as it is by itself:
// not `restart`, whose threads end after a second.
dumps! {
    plain: 3, 20;
    registers: 7, 20;
    threads: 97, 10;
    tree: 31, 20;
    sigpending: 7, 20;
    posix_timers: 7, 20;
    itimers: 7, 20;
    seccomp_filter: 11, 20;
    seccomp_strict: 7, 0;
    epoll: 7, 20;
    ghost: 13, 20;
    rseq: 11, 20;
}

restores! {
    plain: 3, 20;
    restart: 23, 20;
    registers: 7, 20;
    threads: 97, 10;
    tree: 17, 20;
    sigpending: 5, 20;
    posix_timers: 5, 20;
    itimers: 5, 20;
    seccomp_filter: 7, 20;
    seccomp_strict: 11, 20;
    epoll: 7, 20;
    ghost: 3, 20;
    stopped: 11, 20;
    rseq: 7, 20;
}
