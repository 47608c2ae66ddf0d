//! The commands of the `criu` command line.
use super::scripts::Script;
use super::settings::Settings;
use crate::{cpu, figures};
use stasis_engine::{Blame, DumpReport, Error, Options, RestoreReport, Result};
use stasis_proto::ImageDir;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

fn folder(s: &Settings) -> Result<ImageDir> {
    Ok(ImageDir::open(&s.options.images)?)
}

fn caller(what: impl Into<String>, advice: &str) -> Error {
    Error::new("E2001", Blame::Caller, what).advice(advice)
}

/// Adds a script of the caller's to those who are told of moments.
pub fn watch_script(s: &mut Settings, script: &Path) -> Result<()> {
    let root = Some(s.options.pid).filter(|p| *p != 0);
    let script = Script::new(script, &s.options.images, s.work_dir(), root)?;
    s.options.events.0.push(Arc::new(script));
    Ok(())
}

/// The engine's options, with whoever wants to be told.
fn options(s: &Settings) -> Result<Options> {
    let mut s = s.clone();
    for script in std::mem::take(&mut s.scripts) {
        watch_script(&mut s, &script)?;
    }
    let mut o = s.engine()?;
    crate::hooks::watch(&mut o, &s.hooks, None)?;
    o.kill_at = crate::kill_at()?;
    Ok(o)
}

/// Dumps, and writes the statistics.
pub fn dump_tree(s: &Settings) -> Result<DumpReport> {
    let images = folder(s)?;
    if s.cpu_cap.asked {
        cpu::dump(&images)?;
    }
    let mut o = options(s)?;
    let found = crate::profile::find(&[s.work_dir(), &o.images.join("..")]);
    o.namespaces.seccomp = crate::profile::if_any(found);
    super::lazy_pages::keep(s, &mut o)?;
    let report = stasis_engine::dump(&o)?;
    for w in &report.warnings {
        tracing::warn!("{w}");
    }
    figures::write_dump(s.work_dir(), &report);
    tracing::info!("Dumping finished successfully");
    Ok(report)
}

/// Dumps memory only, and writes the statistics.
pub fn pre_dump_tree(s: &Settings) -> Result<DumpReport> {
    folder(s)?;
    if s.options.memory.lazy {
        return Err(caller(
            "option --lazy-pages: a pre-dump has nothing to keep",
            "leave it to the dump after it",
        ));
    }
    let report = stasis_engine::pre_dump(&options(s)?)?;
    for w in &report.warnings {
        tracing::warn!("{w}");
    }
    figures::write_dump(s.work_dir(), &report);
    tracing::info!("Pre-dumping finished successfully");
    Ok(report)
}

/// Restores, and writes the statistics.
pub fn restore_tree(s: &Settings) -> Result<RestoreReport> {
    let mut options = options(s)?;
    super::lazy_pages::by_daemon(s, &mut options);
    // a command that takes our place waits for the root itself
    options.detach |= s.exec_cmd;
    crate::verbs::restore::free_pidfile(&options)?;
    let images = folder(s)?;
    if s.cpu_cap.asked && (s.cpu_cap.ins || s.cpu_cap.fpu) {
        cpu::check(&images, s.cpu_cap.ins, s.cpu_cap.fpu)?;
    }
    let report = stasis_engine::restore(&options)?;
    for w in &report.warnings {
        tracing::warn!("{w}");
    }
    figures::write_restore(s.work_dir(), &report);
    tracing::info!("Restore finished successfully. Tasks resumed.");
    Ok(report)
}

/// `criu dump`
pub fn dump(s: &Settings, _: &[String]) -> Result<ExitCode> {
    if s.options.pid == 0 {
        return Err(caller(
            "pid not specified",
            "name the root of the tree: -t PID",
        ));
    }
    let report = dump_tree(s)?;
    if s.display_stats {
        say!("{}", figures::dump_text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

/// `criu pre-dump`
pub fn pre_dump(s: &Settings, _: &[String]) -> Result<ExitCode> {
    if s.options.pid == 0 {
        return Err(caller(
            "pid not specified",
            "name the root of the tree: -t PID",
        ));
    }
    let report = pre_dump_tree(s)?;
    if s.display_stats {
        say!("{}", figures::dump_text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

/// `criu dedup`
pub fn dedup(s: &Settings, _: &[String]) -> Result<ExitCode> {
    let named = s.options.memory.parent.as_deref();
    stasis_engine::dedup(&folder(s)?.with_parents(named)?)?;
    tracing::info!("Deduplicated");
    Ok(ExitCode::SUCCESS)
}

/// `criu restore`
pub fn restore(s: &Settings, rest: &[String]) -> Result<ExitCode> {
    if s.exec_cmd && rest.is_empty() {
        return Err(caller(
            "option --exec-cmd: no command",
            "put the command's words behind --",
        ));
    }
    let report = restore_tree(s)?;
    if s.display_stats {
        say!("{}", figures::restore_text(&report));
    }
    if s.exec_cmd {
        let e = Command::new(&rest[0])
            .args(&rest[1..])
            .current_dir(s.work_dir())
            .exec();
        return Err(caller(
            format!("the tree runs, but {} cannot be executed", rest[0]),
            "name a program that exists",
        )
        .why(e));
    }
    // criu's own status does not tell how the tree ended
    Ok(ExitCode::SUCCESS)
}

/// `criu check`
pub fn check(s: &Settings, _: &[String]) -> Result<ExitCode> {
    crate::verbs::check::criu(&s.features)
}

/// `criu cpuinfo dump`
pub fn cpuinfo_dump(s: &Settings, _: &[String]) -> Result<ExitCode> {
    cpu::dump(&folder(s)?)?;
    Ok(ExitCode::SUCCESS)
}

/// `criu cpuinfo check`
pub fn cpuinfo_check(s: &Settings, _: &[String]) -> Result<ExitCode> {
    let (ins, fpu) = match s.cpu_cap.asked {
        true => (s.cpu_cap.ins, s.cpu_cap.fpu),
        false => (true, true),
    };
    cpu::check(&folder(s)?, ins, fpu)?;
    Ok(ExitCode::SUCCESS)
}
