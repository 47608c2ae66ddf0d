//! The commands of the `criu` command line.
use super::settings::Settings;
use crate::{cpu, figures};
use stasis_engine::{Blame, Error, Result};
use stasis_proto::ImageDir;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn folder(s: &Settings) -> Result<ImageDir> {
    Ok(ImageDir::open(&s.images)?)
}

fn caller(what: impl Into<String>, advice: &str) -> Error {
    Error::new("E2001", Blame::Caller, what).advice(advice)
}

/// `criu dump`
pub fn dump(s: &Settings, _: &[String]) -> Result<ExitCode> {
    if s.tree.is_none() {
        return Err(caller(
            "pid not specified",
            "name the root of the tree: -t PID",
        ));
    }
    let images = folder(s)?;
    if s.cpu_cap.asked {
        cpu::dump(&images)?;
    }
    let mut options = s.engine();
    options.kill_at = crate::kill_at()?;
    let report = stasis_engine::dump(&options)?;
    for w in &report.warnings {
        tracing::warn!("{w}");
    }
    figures::write_dump(s.work_dir(), &report);
    if s.display_stats {
        say!("{}", figures::dump_text(&report));
    }
    tracing::info!("Dumping finished successfully");
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
    let mut options = s.engine();
    options.kill_at = crate::kill_at()?;
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
    if s.display_stats {
        say!("{}", figures::restore_text(&report));
    }
    tracing::info!("Restore finished successfully. Tasks resumed.");
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
