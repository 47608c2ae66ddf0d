//! `cargo xtask`: the one door for people. Each verb is a file.
mod bench;
mod bench_chart;
mod bench_load;
mod bench_once;
mod demo;
mod dist;
mod errors_book;
mod kinds_book;
mod lock_object;
mod quirks;
mod repo;
mod run;
mod setup;
mod test;
mod tidy;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Chores of the stasis repository
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the Debian packages that tests and demo need
    Setup,
    /// Freeze a running program and bring it back, before your eyes
    Demo(demo::Demo),
    /// Everything CI runs: setup, format, lints, tests, tidy
    Test,
    /// Check the house rules
    Tidy,
    /// List every place that leans on odd behaviour of the kernel
    Quirks,
    /// Write the book's pages of kinds from the comments in the code
    KindsBook,
    /// Add new error codes to the book's table, drop those that are gone
    ErrorsBook,
    /// Compile the network lock's object that is checked in, for machines without clang
    LockObject,
    /// Build one static binary into target/dist
    Dist,
    /// Run the tests under other kernels, in virtual machines
    VmTest(vm::VmTest),
    /// Measure dump and restore, optionally against another engine
    Bench(bench::Bench),
    /// (internal) run one command and tell its time and memory
    #[command(hide = true)]
    Measure(run::Measure),
}

fn main() -> ExitCode {
    let done: Result<bool> = match Cli::parse().verb {
        Verb::Setup => setup::run().map(|()| true),
        Verb::Demo(d) => d.run().map(|()| true),
        Verb::Test => test::run(),
        Verb::Tidy => tidy::run(),
        Verb::Quirks => quirks::run().map(|()| true),
        Verb::KindsBook => kinds_book::run().map(|()| true),
        Verb::ErrorsBook => errors_book::run().map(|()| true),
        Verb::LockObject => lock_object::run().map(|()| true),
        Verb::Dist => dist::run().map(|()| true),
        Verb::VmTest(v) => v.run(),
        Verb::Bench(b) => b.run().map(|()| true),
        Verb::Measure(m) => m.run().map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}
