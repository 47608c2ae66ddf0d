//! Every guest: alone (the oracle), spoiled (its checks can fail), and frozen and restored by an engine.
//!
//! - `native::GUEST`, `sabotage::GUEST` run always.
//! - `works::GUEST::SCENARIO` run always: the list `with_works!` of what our engine promises.
//! - `matrix::GUEST::SCENARIO` is everything; run it with `--ignored`, on our engine or on `STASIS_ENGINE=/path/to/criu`.

use stasis_tests::case::{Scenario, expect};
use stasis_tests::container::Sort;
use stasis_tests::guests::{Guest, find};
use stasis_tests::{build, with_guests, with_works};
use std::path::Path;

const BOX: &str = env!("CARGO_BIN_EXE_stasis-box");

fn guest(name: &str) -> &'static Guest {
    find(name).unwrap_or_else(|| panic!("no guest {name} in the table"))
}

fn check(name: &str, scenario: Scenario) {
    expect(Path::new(BOX), guest(name), &scenario);
}

macro_rules! native {
    ($($name:ident: [$($o:literal)*] [$($a:literal)*];)*) => {
        mod native {
            $(#[test] fn $name() { super::check(stringify!($name), super::Scenario::Native); })*
        }
        mod sabotage {
            $(#[test] fn $name() { super::sabotage_all(stringify!($name)); })*
        }
        mod matrix {
            $(mod $name {
                use super::super::*;
                #[test] #[ignore = "see with_works!"]
                fn dump_restore() { check(stringify!($name), Scenario::DumpRestore); }
                #[test] #[ignore = "see with_works!"]
                fn leave_running() { check(stringify!($name), Scenario::LeaveRunning); }
                #[test] #[ignore = "see with_works!"]
                fn generations() { check(stringify!($name), Scenario::Generations(in_a_row())); }
                #[test] #[ignore = "see with_works!"]
                fn contained() { check(stringify!($name), Scenario::Contained(Sort::Root, 2)); }
                #[test] #[ignore = "see with_works!"]
                fn contained_user() { check(stringify!($name), Scenario::Contained(Sort::User, 2)); }
            })*
        }
    };
}
with_guests!(native);

macro_rules! works {
    ($($name:ident: $($scenario:ident),+;)*) => {
        mod works {
            $(mod $name {
                $(#[test] fn $scenario() { super::super::promised(stringify!($name), stringify!($scenario)); })+
            })*
        }
    };
}
with_works!(works);

/// How often in a row: three times, or twenty with `STASIS_LONG=1`.
fn in_a_row() -> u32 {
    match std::env::var_os("STASIS_LONG") {
        Some(_) => 20,
        None => 3,
    }
}

#[allow(dead_code, reason = "the list of promises may be empty")]
fn promised(name: &str, scenario: &str) {
    let scenario = match scenario {
        "dump_restore" => Scenario::DumpRestore,
        "leave_running" => Scenario::LeaveRunning,
        "generations" => Scenario::Generations(in_a_row()),
        "lazy" => Scenario::Lazy,
        "lz4" => ours("-D {images} --compress lz4", "-D {images}"),
        "once" => ours("-D {images} --once", "-D {images}"),
        "zstd" => ours("-D {images} --compress zstd:3", "-D {images} --lazy"),
        "auto" => ours("-D {images} --compress auto", "-D {images}"),
        "encrypted" => ours(
            "-D {images} --compress lz4 --encrypt {recipient}",
            "-D {images} --identity {dir}/identity",
        ),
        "one_file" => ours("-o {dir}/all.stasis", "-i {dir}/all.stasis --lazy"),
        "sealed_file" => ours(
            "-D {dir}/all.stasis --encrypt {recipient} --leave-running --snapshot",
            "-D {dir}/all.stasis --identity {dir}/identity",
        ),
        "stream" => ours("-o - --compress zstd", "-i -"),
        "snapshot" => ours("-D {images} --leave-running --snapshot", "-D {images}"),
        "mapped" => ours("-D {images}", "-D {images} --lazy=map"),
        "incremental" => Scenario::Incremental(4),
        "rounds_killed" => Scenario::IncrementalKilled(4),
        "contained" => Scenario::Contained(Sort::Root, 2),
        "contained_user" => Scenario::Contained(Sort::User, 2),
        "generations_20" => Scenario::Generations(20),
        other => panic!("no scenario {other}"),
    };
    check(name, scenario);
}

/// By our own command line.
fn ours(dump: &str, restore: &str) -> Scenario {
    let words = |text: &str| text.split(' ').map(String::from).collect();
    Scenario::Ours {
        dump: words(dump),
        restore: words(restore),
    }
}

fn sabotage_all(name: &str) {
    let spoils = build::spoils(name).expect("source of the guest");
    assert!(
        !spoils.is_empty(),
        "guest {name} has no SPOIL: nothing shows that it can fail"
    );
    for spoil in spoils {
        check(name, Scenario::Sabotage(spoil));
    }
}

/// Every C file is in the table: a guest that nobody runs protects nobody.
#[test]
fn every_source_is_in_the_table() {
    for entry in std::fs::read_dir(build::source_dir()).expect("guests/") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|e| e == "c") {
            guest(path.file_stem().and_then(|s| s.to_str()).expect("name"));
        }
    }
}
