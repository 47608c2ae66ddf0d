//! `stasis restore`
use super::dump::Carry;
use super::into::Into;
use super::{folder, place, time};
use clap::Args;
use serde_json::json;
use stasis_engine::{After, Blame, Error, Options, Result};
use std::net::IpAddr;
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
  stasis restore --bundle /srv/web -D /var/tmp/web --detach      an OCI container
  stasis plan /var/tmp/frozen      every call of the restore, run by nobody")]
pub struct Restore {
    /// Folder of the images, or the file that holds them
    #[arg(
        short = 'D',
        long = "images-dir",
        value_name = "DIR",
        required_unless_present = "input"
    )]
    dir: Option<PathBuf>,
    /// The file that holds the images; `-`: standard input
    #[arg(short = 'i', long, value_name = "FILE", conflicts_with = "dir")]
    input: Option<PathBuf>,
    /// File with the age identity that opens encrypted images
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Return once the tree runs
    #[arg(short = 'd', long)]
    detach: bool,
    /// Write the root's pid here; the file must not exist
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Leave the processes stopped (SIGSTOP)
    #[arg(short = 's', long)]
    leave_stopped: bool,
    /// Let the processes run at once; their memory comes when it is touched, and all of it meanwhile; or, with `map`, their
    /// private memory is mapped from the images, which many restores of one folder then share
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "fetch")]
    lazy: Option<Lazy>,
    /// Do not compare permissions of files with those at the dump
    #[arg(long)]
    skip_file_rwx_check: bool,
    /// Sockets that had the local address OLD get NEW
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_moved)]
    tcp_remap: Vec<(IpAddr, IpAddr)>,
    #[command(flatten)]
    into: Into,
    #[command(flatten)]
    carry: Carry,
}

/// How memory comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Lazy {
    /// A process of ours brings it.
    Fetch,
    /// The kernel reads it from the images.
    Map,
}

fn parse_moved(text: &str) -> Result<(IpAddr, IpAddr), String> {
    let both = text.split_once('=').and_then(|(old, new)| {
        let (old, new): (IpAddr, IpAddr) = (old.parse().ok()?, new.parse().ok()?);
        (old.is_ipv4() == new.is_ipv4()).then_some((old, new))
    });
    both.ok_or_else(|| "two addresses of one version of IP with = between them".into())
}

impl Restore {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let place = place(self.dir.as_deref(), self.input.as_deref(), false)?;
        let mut o = Options::new(folder(self.dir.as_deref(), place.as_ref()));
        o.archive = place;
        o.identity = self.identity.clone();
        self.carry.apply(&mut o);
        o.network.addresses = self.tcp_remap.clone();
        o.detach = self.detach;
        o.pidfile = self.pidfile.clone();
        o.memory.lazy = self.lazy == Some(Lazy::Fetch);
        o.memory.map = self.lazy == Some(Lazy::Map);
        o.skip_file_rwx_check = self.skip_file_rwx_check;
        o.kill_at = crate::kill_at()?;
        if self.leave_stopped {
            o.after = After::Stopped;
        }
        self.into.apply(&mut o)?;
        if self.into.is_bundle() {
            crate::oci::inherit_of_folder(&mut o)?;
        }
        free_pidfile(&o)?;
        let r = stasis_engine::restore(&o)?;
        for w in &r.warnings {
            tracing::warn!("{w}");
        }
        if o.archive.is_none() {
            crate::figures::write_restore(&o.images, &r);
        }
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
    fn addresses_that_moved_are_of_one_version() {
        let ok = parse_moved("10.0.0.1=10.0.0.2").unwrap();
        assert_eq!(ok.1.to_string(), "10.0.0.2");
        assert!(parse_moved("::1=fe80::1").is_ok());
        assert!(parse_moved("10.0.0.1=::1").is_err());
        assert!(parse_moved("10.0.0.1").is_err());
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
