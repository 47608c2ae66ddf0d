//! `stasis restore`
use super::dump::Carry;
use super::time;
use clap::Args;
use serde_json::json;
use stasis_engine::{After, Blame, Error, Options, Result};
use std::path::PathBuf;
use std::process::ExitCode;

/// Bring a frozen tree back
///
/// The processes get their old pids, so those must be free. Without --detach the command waits for the root process and
/// ends as it ended.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stasis restore -D /var/tmp/frozen
  stasis restore -D /var/tmp/frozen --detach --pidfile /run/mine.pid
  stasis plan /var/tmp/frozen      every call of the restore, run by nobody")]
pub struct Restore {
    /// Folder of the images
    #[arg(short = 'D', long = "images-dir", value_name = "DIR")]
    dir: PathBuf,
    /// Return once the tree runs
    #[arg(short = 'd', long)]
    detach: bool,
    /// Write the root's pid here; the file must not exist
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Leave the processes stopped (SIGSTOP)
    #[arg(short = 's', long)]
    leave_stopped: bool,
    /// Do not compare permissions of files with those at the dump
    #[arg(long)]
    skip_file_rwx_check: bool,
    #[command(flatten)]
    carry: Carry,
}

impl Restore {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let mut o = Options::new(&self.dir);
        self.carry.apply(&mut o);
        o.detach = self.detach;
        o.pidfile = self.pidfile.clone();
        o.skip_file_rwx_check = self.skip_file_rwx_check;
        o.kill_at = crate::kill_at()?;
        if self.leave_stopped {
            o.after = After::Stopped;
        }
        free_pidfile(&o)?;
        let r = stasis_engine::restore(&o)?;
        for w in &r.warnings {
            tracing::warn!("{w}");
        }
        crate::figures::write_restore(&self.dir, &r);
        match json {
            true => sayln!(
                "{}",
                json!({"pid": r.pid, "restore_us": r.restore_us, "forking_us": r.forking_us,
                    "exit_status": r.exit_status, "warnings": r.warnings})
            ),
            false => eprintln!("restored process {} in {}", r.pid, time(r.restore_us)),
        }
        Ok(r.exit_status.map_or(ExitCode::SUCCESS, ended))
    }
}

/// A pidfile that is there already may tell of a tree that runs.
pub fn free_pidfile(o: &Options) -> Result<()> {
    match &o.pidfile {
        Some(f) if f.symlink_metadata().is_ok() => Err(Error::new(
            "E2003",
            Blame::Caller,
            format!("pidfile {} exists", f.display()),
        )
        .advice("remove it, or name another: it may tell of a tree that runs")),
        _ => Ok(()),
    }
}

/// The exit code that tells how the root ended, as a shell tells it: its own, or 128 and the signal.
fn ended(status: i32) -> ExitCode {
    let signal = status & 0x7f;
    ExitCode::from(match signal {
        0 => (status >> 8) as u8,
        s => 128 + s as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_becomes_a_shells_exit_code() {
        let same =
            |a: ExitCode, b: u8| assert_eq!(format!("{a:?}"), format!("{:?}", ExitCode::from(b)));
        same(ended(3 << 8), 3);
        same(ended(0), 0);
        same(ended(15), 143);
        same(ended(0x80 | 11), 139);
    }

    #[test]
    fn a_pidfile_that_exists_is_refused() {
        let tmp = tempfile::NamedTempFile::new().unwrap();
        let mut o = Options::new(".");
        free_pidfile(&o).unwrap();
        o.pidfile = Some(tmp.path().into());
        assert_eq!(free_pidfile(&o).unwrap_err().code, "E2003");
    }
}
