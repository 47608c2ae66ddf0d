//! The drop-in: what the binary does when it is started as `criu`, or as `stasis criu ...`.
//!
//! Callers know it by its options, its exit code (0 or 1), its log with `Error` lines, its statistics files and the line
//! `Version: X.Y`. What is not supported yet is refused by name; nothing is silently ignored.
mod background;
mod external;
mod lazy_pages;
mod options;
mod page_server;
mod parse;
mod rpc;
mod scripts;
mod settings;
#[cfg(test)]
mod tests;
mod verbs;

use crate::log::{self, Manner};
use settings::Settings;
pub use settings::size;
use stasis_engine::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// The version whose command line and images these are; runtimes ask for at least 3.16.
pub const VERSION: &str = "4.2";

const USAGE: &str = "\
Usage:
  criu dump -t PID [-D DIR] [<options>]
  criu pre-dump -t PID [-D DIR] [<options>]
  criu restore [-D DIR] [<options>]
  criu dedup [-D DIR]
  criu check [--feature FEAT]
  criu cpuinfo dump|check [-D DIR] [--cpu-cap[=LIST]]
  criu page-server [-D DIR] [--address IP] [--port PORT] [-d] [--pidfile FILE]
  criu lazy-pages [-D DIR] [-W DIR] [--page-server --address IP --port PORT] [-d] [--pidfile FILE]
  criu service [--address PATH] [-d] [--pidfile FILE]
  criu swrk FD

This is stasis under the name of criu: the same options, the same images.

Options of dump and restore:
  -t, --tree PID            root of the tree to dump
  -D, --images-dir DIR      image folder (default: the current one)
  -W, --work-dir DIR        folder of logs, pidfile and statistics (default: the image folder)
  -o, --log-file FILE       log, relative to the work folder (default: standard error)
  -v[N], --verbosity[=N]    0 nothing, 1 errors, 2 warnings, 3 information and times, 4 debug, 5 every call
  -R, --leave-running       after the dump the tree runs on
  -s, --leave-stopped       after the command the tree stays stopped
  -d, --restore-detached    return once the tree is restored
  -S, --restore-sibling     the root becomes a sibling of the caller (with -d)
      --pidfile FILE        write the root's pid; the file must not exist
      --exec-cmd            after a restore execute the words behind --
  -j, --shell-job           session, group leader or terminal lie outside of the tree
  -l, --file-locks          carry file locks
      --link-remap          carry deleted files that still have other names
      --ghost-limit SIZE    largest deleted file carried (K, M, G; default: no limit)
      --timeout SECONDS     limit on stopping the tree (default: 10)
      --evasive-devices     any path to a device will do
      --skip-file-rwx-check do not compare permissions of files
      --file-validation filesize
      --cpu-cap[=LIST]      none, fpu, ins, cpu, all; ^ inverts
      --manage-cgroups=ignore
      --prev-images-dir DIR  folder of the dump before, relative to the image folder: only changes are dumped
      --track-mem           track changes of memory from this dump on
      --page-server         pages go to the page server at --address and --port
      --tls                 connections to page servers and daemons are secured (--tls-cacert, --tls-cacrl, --tls-cert,
                            --tls-key FILE, --tls-no-cn-verify)
      --lazy-pages          dump: memory stays with the tree until it is asked for at --port; restore: the daemon
                            lazy-pages in the work folder brings it
      --auto-dedup          take pages out of older images once newer ones have them
      --display-stats       print statistics
      --close FD            close a descriptor first
      --config FILE         read options from a file
      --no-default-config   not from /etc/criu/default.conf and ~/.criu/default.conf
  -V, --version
  -h, --help

Other options of criu are accepted where they make no difference, or refused with a reason.
";

/// Runs the command line behind the program's name.
pub fn main(args: &[String]) -> ExitCode {
    let start = Instant::now();
    let mut line = match parse::line(args) {
        Ok(l) => l,
        Err(e) => return usage(&e),
    };
    if line.words.first().map(String::as_str) == Some("criu") {
        line.words.remove(0);
    }
    // a request brings its own options, and its own log
    match line.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["swrk", fd] => return rpc::swrk(&line, fd, start),
        ["service-worker"] => return rpc::service::work(&line, start),
        _ => {}
    }
    let settings = match settle(&line) {
        Ok(s) => s,
        Err(e) => return complain(&e),
    };
    if settings.version {
        sayln!("Version: {VERSION}");
        return ExitCode::SUCCESS;
    }
    if settings.help {
        say!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    let verb = match words[..] {
        ["dump"] => verbs::dump,
        ["pre-dump"] => verbs::pre_dump,
        ["dedup"] => verbs::dedup,
        ["restore"] => verbs::restore,
        ["check"] => verbs::check,
        ["cpuinfo", "dump"] => verbs::cpuinfo_dump,
        ["cpuinfo", "check"] => verbs::cpuinfo_check,
        ["service"] => rpc::service::run,
        ["swrk", ..] => return usage("swrk is followed by the number of a socket"),
        [] => return usage("no command is given"),
        ["cpuinfo", ..] => return usage("cpuinfo is followed by dump or check"),
        [
            "dump" | "pre-dump" | "restore" | "check" | "service" | "dedup" | "page-server"
            | "lazy-pages",
            word,
            ..,
        ] => {
            return usage(&format!("'{word}' is no option and no command"));
        }
        ["page-server"] => page_server::run,
        ["page-server-daemon"] => page_server::daemon,
        ["page-server-child"] => page_server::child,
        ["lazy-pages"] => lazy_pages::run,
        [verb, ..] => return usage(&format!("unknown command {verb}")),
    };
    for fd in &settings.close {
        if let Err(e) = nix::unistd::close(*fd) {
            return complain(&format!("option --close {fd}: {e}"));
        }
    }
    let to_file = match open_log(&settings, start) {
        Ok(b) => b,
        Err(e) => return complain(&e),
    };
    tracing::info!("Version: {VERSION} (stasis {})", env!("CARGO_PKG_VERSION"));
    for note in &settings.notes {
        tracing::info!("{note}");
    }
    match verb(&settings, &line.rest) {
        Ok(code) => code,
        Err(e) => {
            fail(words[0], &e, to_file || settings.verbosity == 0);
            ExitCode::FAILURE
        }
    }
}

/// Says an error where readers of logs and people look for it.
fn fail(verb: &str, e: &Error, also_stderr: bool) {
    let what = match verb {
        "dump" => "Dumping FAILED.",
        "pre-dump" => "Pre-dumping FAILED.",
        "restore" => "Restoring FAILED.",
        _ => "",
    };
    tracing::error!("{e}");
    if !what.is_empty() {
        tracing::error!("{what}");
    }
    if also_stderr {
        eprintln!("{e}");
    }
}

fn usage(why: &str) -> ExitCode {
    eprintln!("criu: {why}\n\n{USAGE}");
    ExitCode::FAILURE
}

fn complain(why: &str) -> ExitCode {
    eprintln!("Error (criu): {why}");
    ExitCode::FAILURE
}

/// Files first, then the command line, so that the latter wins.
fn settle(line: &parse::Line) -> Result<Settings, String> {
    let mut s = Settings::default();
    files(&mut s, line)?;
    s.take(&line.given)?;
    if s.options.sibling && !s.options.detach {
        return Err("option --restore-sibling only goes with --restore-detached (-d)".into());
    }
    Ok(s)
}

/// Takes over the files of options that this command line leads to.
fn files(s: &mut Settings, line: &parse::Line) -> Result<(), String> {
    let mut cli = Settings::default();
    cli.take(&line.given)?;
    let env = std::env::var_os("CRIU_CONFIG_FILE").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|h| Path::new(&h).join(".criu/default.conf"));
    if !cli.no_default_config {
        one_file(s, Path::new("/etc/criu/default.conf"), false)?;
        home.map_or(Ok(()), |f| one_file(s, &f, false))?;
    }
    for file in env.iter().chain(cli.config.iter()) {
        one_file(s, file, true)?;
    }
    Ok(())
}

/// Takes over a file of options; one that is not there is an error if it `must` be.
fn one_file(s: &mut Settings, file: &Path, must: bool) -> Result<(), String> {
    let text = match std::fs::read_to_string(file) {
        Ok(t) => t,
        Err(e) if !must && e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(format!("configuration file {}: {e}", file.display())),
    };
    let place = |e| format!("configuration file {}: {e}", file.display());
    s.take(&parse::config(&text).map_err(place)?).map_err(place)
}

/// Starts the log; true if it goes to a file.
fn open_log(s: &Settings, start: Instant) -> Result<bool, String> {
    let manner = Manner::Criu {
        start,
        times: s.verbosity >= 3,
    };
    let to = match &s.log {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(name) if name.as_os_str() == "-" => BoxMakeWriter::new(std::io::stdout),
        Some(name) => {
            let path = s.work_dir().join(name);
            BoxMakeWriter::new(Mutex::new(
                create_log(&path).map_err(|e| format!("log file {}: {e}", path.display()))?,
            ))
        }
    };
    log::start(manner, s.verbosity, to);
    Ok(s.log.is_some())
}

fn create_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}
