//! The contract: whatever happens to the engine, the tree is unharmed, and a restore is all or nothing.
//!
//! By default every test takes a sample; `STASIS_LONG=1` takes every point and hundreds of rounds. Each test says how
//! many points it tried (`--nocapture` shows it).
use stasis_tests::case::{Scenario, expect};
use stasis_tests::guests::find;
use stasis_tests::life::Trial;
use stasis_tests::life::faults::{DumpFault, RestoreFault};
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
    asleep: 31, 20;
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
    forker: 61, 20;
    tcp_opts: 11, 20;
    tcp_states: 13, 20;
    nested_ns: 211, 10;
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
    tcp_opts: 7, 20;
    nested_ns: 101, 10;
}

macro_rules! snapshots {
    ($($name:ident: $stride:literal, $rounds:literal;)*) => {
        mod snapshot_killed_at_each_step {
            $(#[test] fn $name() {
                super::live(stringify!($name), super::Trial::KillSnapshot { stride: super::stride($stride) });
            })*
        }
        mod snapshot_killed_at_random {
            $(#[test] fn $name() {
                super::live(stringify!($name), super::Trial::KillSnapshotRandom(super::rounds($rounds)));
            })*
        }
    };
}

// `instant` writes all the time: no write may wait for an engine that is gone
snapshots! {
    map_anon: 23, 20;
    seccomp_filter: 19, 20;
    instant: 41, 30;
}

macro_rules! fails {
    ($module:ident, $trial:ident: $($test:ident: $guest:literal, $fault:expr;)*) => {
        mod $module {
            use super::*;
            $(#[test] fn $test() { live($guest, Trial::$trial($fault)); })*
        }
    };
}

fails! { dump_fails, FailDump:
    disk_full_at_once: "tree", DumpFault::FullDisk(4);
    disk_full_in_the_middle: "tree", DumpFault::FullDisk(200);
    disk_full_among_the_pages: "map_anon", DumpFault::FullDisk(400);
    folder_read_only: "tree", DumpFault::ReadOnly;
    folder_is_a_file: "plain", DumpFault::NotAFolder;
    engine_of_another_user: "plain", DumpFault::Nobody;
    no_such_task: "plain", DumpFault::NoTask;
    traced_by_somebody: "tree", DumpFault::Traced;
    something_unsupported_in_the_middle: "refused_inside", DumpFault::Unsupported;
    few_files: "files_many", DumpFault::FewFiles(12);
}

fails! { restore_fails, FailRestore:
    a_file_is_gone: "file_reg", RestoreFault::FileGone;
    a_file_has_another_size: "file_reg", RestoreFault::WrongSize;
    the_pid_is_taken: "tree", RestoreFault::PidTaken;
    an_image_is_missing: "plain", RestoreFault::ImageGone;
    pages_are_cut: "tree", RestoreFault::PagesCut;
    few_files: "files_many", RestoreFault::FewFiles(12);
    no_pidfile: "tree", RestoreFault::NoPidfile;
}

macro_rules! redumps {
    ($($name:ident)*) => {
        mod dumped_again {
            $(#[test] fn $name() { super::live(stringify!($name), super::Trial::Redump); })*
        }
    };
}

// Not here: `epoll` (a spent one-shot watch comes back listening for hang-ups), `posix_timers` (a timer that rings between the
// dumps changes the queue of signals), `ghost` and `memfd` (files that must get other names and numbers).
// Nor `registers`: it spins, so its instruction pointer is another at every dump.
redumps! {
    plain tree threads sigpending creds pipe eventfd file_reg map_anon seccomp_filter rseq prctls
}
