//! The story of a restore: read, plan, perform.
mod fill;
mod habits;
mod images;
mod memory;
mod perform;
pub mod plan;
mod privileges;
mod regs;

use crate::error::{Blame, Error, Result};
use crate::options::Options;
use crate::phase::Phase;
use crate::report::RestoreReport;
use stasis_proto::ImageDir;
use std::time::Instant;

/// Brings the tree in `o.images` back.
///
/// On any error no process and no file of it is left.
pub fn restore(o: &Options) -> Result<RestoreReport> {
    let begun = Instant::now();
    stasis_kernel::limits::raise_nofile();
    let dir = ImageDir::open(&o.images)?;
    let images = images::load(&dir).map_err(|e| e.at(Phase::Plan))?;
    let plan = plan::make(o, &dir, &images).map_err(|e| e.at(Phase::Plan))?;
    let mut report = RestoreReport {
        warnings: plan.warnings.clone(),
        ..Default::default()
    };
    report.pid = perform::perform(o, &dir, &images, &plan, &mut report)?;
    report.restore_us = begun.elapsed().as_micros() as u64;
    if !o.detach {
        report.exit_status = Some(stasis_kernel::ptrace::wait_exit(report.pid)?);
    }
    Ok(report)
}

/// A pidfile that goes away again unless the restore succeeds.
struct Pidfile(Option<std::path::PathBuf>);

impl Pidfile {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if let Some(p) = &self.0 {
            let _ = std::fs::remove_file(p);
        }
    }
}

/// Writes the root's pid where the caller wants it; never over a file that is there.
fn pidfile(o: &Options, pid: u32) -> Result<Pidfile> {
    use std::io::Write;
    let Some(path) = &o.pidfile else {
        return Ok(Pidfile(None));
    };
    let failed = |e: std::io::Error| {
        Error::new(
            "E6106",
            Blame::Host,
            format!("cannot write the pidfile {}", path.display()),
        )
        .why(e)
        .advice("remove it, or choose another place")
    };
    let mut f = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    let made = Pidfile(Some(path.clone()));
    write!(f, "{pid}").map_err(failed)?;
    Ok(made)
}

/// Every tape and host call of a restore, for people; nothing is done.
pub fn show_plan(o: &Options) -> Result<String> {
    let dir = ImageDir::open(&o.images)?;
    let images = images::load(&dir).map_err(|e| e.at(Phase::Plan))?;
    Ok(plan::show(
        &plan::make(o, &dir, &images).map_err(|e| e.at(Phase::Plan))?,
    ))
}
