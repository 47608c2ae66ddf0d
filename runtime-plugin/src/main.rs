//! The binary `stasis`: its own verbs, and under the name `criu` the drop-in.
//!
//! Exit codes of `stasis`: 0 done, 2 the command line, 3 kernel, 4 container, 5 image, 6 host, 70 a fault of stasis; as
//! `criu`: 0 or 1.
/// `print!`, but nobody reading is no failure: what was done stays done.
macro_rules! say {
    ($($t:tt)*) => { $crate::say(format_args!($($t)*)) };
}
/// `println!`, likewise.
macro_rules! sayln {
    ($($t:tt)*) => { $crate::say(format_args!("{}\n", format_args!($($t)*))) };
}

mod cpu;
mod criu;
mod figures;
mod hooks;
#[cfg(feature = "libseccomp")]
mod libseccomp;
mod log;
mod oci;
mod profile;
mod verbs;

use clap::{Args, Parser, Subcommand};
use log::Manner;
use stasis_engine::{Blame, Error, Result};
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// glibc's allocator makes the threads of a dump or restore wait for each other, or grows each one's heap by a system call
/// per page: this one takes a fifth less time (docs/performance.md).
#[cfg(target_env = "gnu")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Freezes running processes into a folder of images, and brings them back.
#[derive(Debug, Parser)]
#[command(name = "stasis", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  stasis check                             can this kernel do it?
  stasis dump 4242 -D /var/tmp/frozen      freeze process 4242 and its children; they are gone then
  stasis show /var/tmp/frozen              look at what was frozen
  stasis restore -D /var/tmp/frozen -d     bring them back

Started under the name `criu`, or as `stasis criu ...`, the program takes the command line of criu.";

/// Options of every verb.
#[derive(Debug, Args)]
struct Common {
    /// Say more: -v the story, -vv each thing, -vvv each system call
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Errors (and results, where the verb has any) as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Dump(verbs::dump::Dump),
    Checkpoint(verbs::checkpoint::Checkpoint),
    Restore(verbs::restore::Restore),
    Migrate(verbs::migrate::Migrate),
    Receive(verbs::receive::Receive),
    Dedup(verbs::dedup::Dedup),
    Check(verbs::check::Check),
    Show(verbs::show::Show),
    Plan(verbs::plan::Plan),
    Kinds(verbs::kinds::Kinds),
    Netlock(verbs::netlock::Netlock),
    /// Take the command line of criu
    #[command(disable_help_flag = true)]
    Criu {
        /// Command and options as criu has them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    stasis_engine::give_back_soon();
    let args: Vec<_> = std::env::args_os().collect();
    let named = args.first().map(Path::new).and_then(Path::file_name);
    let criu = match args.get(1) {
        _ if named.is_some_and(|n| n == "criu") => Some(1),
        // not left to clap, which would take `-v4` and `--json` for its own
        Some(w) if w == "criu" => Some(2),
        _ => None,
    };
    if let Some(skip) = criu {
        let words: std::result::Result<Vec<String>, _> = args
            .into_iter()
            .skip(skip)
            .map(std::ffi::OsString::into_string)
            .collect();
        return match words {
            Ok(w) => criu::main(&w),
            Err(w) => {
                eprintln!("Error (criu): not UTF-8: {}", w.display());
                ExitCode::FAILURE
            }
        };
    }
    let cli = Cli::parse_from(args);
    log::start(
        Manner::People,
        2 + u32::from(cli.common.verbose),
        BoxMakeWriter::new(std::io::stderr),
    );
    let json = cli.common.json;
    let done = match cli.verb {
        Verb::Dump(v) => v.run(json),
        Verb::Checkpoint(v) => v.run(json),
        Verb::Restore(v) => v.run(json),
        Verb::Migrate(v) => v.run(json),
        Verb::Receive(v) => v.run(json),
        Verb::Dedup(v) => v.run(json),
        Verb::Check(v) => v.run(json),
        Verb::Show(v) => v.run(json),
        Verb::Plan(v) => v.run(json),
        Verb::Kinds(v) => v.run(json),
        Verb::Netlock(v) => v.run(json),
        Verb::Criu { args } => return criu::main(&args),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            match json {
                true => eprintln!("{}", verbs::error_json(&e)),
                false => eprintln!("{e}"),
            }
            ExitCode::from(e.blame.exit_code())
        }
    }
}

/// Writes a result to standard output.
fn say(text: std::fmt::Arguments) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_fmt(text).and_then(|()| out.flush());
}

/// `STASIS_KILL_AT`: tests ask the engine to die at a numbered point.
fn kill_at() -> Result<Option<u32>> {
    let Some(text) = std::env::var_os("STASIS_KILL_AT") else {
        return Ok(None);
    };
    match text.to_str().and_then(|t| t.parse().ok()) {
        Some(n) => Ok(Some(n)),
        None => Err(Error::new(
            "E2002",
            Blame::Caller,
            format!("STASIS_KILL_AT={}", text.display()),
        )
        .why("not a whole number")
        .advice("unset it: it is for tests only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_each_verb_explains_itself() {
        let mut c = Cli::command();
        c.clone().debug_assert();
        let help = c.render_long_help().to_string();
        for verb in [
            "dump",
            "checkpoint",
            "restore",
            "check",
            "show",
            "plan",
            "kinds",
            "criu",
        ] {
            let line = help
                .lines()
                .find(|l| l.trim_start().starts_with(&format!("{verb} ")));
            let words = line.unwrap_or_default().split_whitespace().count();
            assert!(words > 3, "{verb} is not explained in:\n{help}");
        }
        for sub in c
            .get_subcommands_mut()
            .filter(|s| !["criu", "help"].contains(&s.get_name()))
        {
            let help = sub.render_help().to_string();
            assert!(help.contains("Example"), "{help}");
            assert!(
                sub.get_arguments().all(|a| a.get_help().is_some()),
                "{help}"
            );
        }
    }
}
