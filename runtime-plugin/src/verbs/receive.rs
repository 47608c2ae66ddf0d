//! `stasis receive`
use super::dump::Carry;
use super::into::Into;
use super::secure::Secure;
use super::{bytes, time};
use crate::oci;
use clap::Args;
use serde_json::json;
use stasis_engine::migrate::{Receiver, Told};
use stasis_engine::{Blame, Error, Options, Result};
use std::path::PathBuf;
use std::process::ExitCode;

/// Take a tree that `stasis migrate` moves here
///
/// Takes one migration and ends when the processes run. Memory lands in a folder in memory, which goes when the processes
/// have all of it. Whoever can connect can start processes here, with the rights of this command: listen where only the other
/// host is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stasis receive --listen 10.0.0.2:7766
  stasis receive --listen 10.0.0.2:7766 --tcp-established --pidfile /run/web.pid
  stasis receive --listen 10.0.0.2:7766 --bundle /srv/web --id web")]
pub struct Receive {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// Folder for the images, in place of memory; it must be empty, and stays
    #[arg(short = 'D', long = "images-dir", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Let the processes run only when all memory is in its place
    #[arg(long)]
    whole: bool,
    /// Write the root's pid here; the file must not exist
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    #[command(flatten)]
    into: Into,
    #[command(flatten)]
    secure: Secure,
    #[command(flatten)]
    carry: Carry,
}

impl Receive {
    fn options(&self) -> Result<Options> {
        let mut o = Options::new(".");
        self.carry.apply(&mut o);
        o.pidfile = self.pidfile.clone();
        o.memory.lazy = !self.whole;
        o.kill_at = crate::kill_at()?;
        self.into.apply(&mut o)?;
        super::restore::free_pidfile(&o)?;
        Ok(o)
    }
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let o = self.options()?;
        let receiver = Receiver::listen(&self.listen, self.dir.clone(), self.secure.load()?)?;
        let at = receiver.address()?;
        match json {
            true => sayln!("{}", json!({"listening": at.to_string()})),
            false => sayln!("listening at {at}"),
        }
        let word = |word: &str, o: &mut Options| match self.into.is_bundle() && !word.is_empty() {
            true => oci::inherit(o, word.as_bytes()).map_err(|e| {
                Error::new("E6721", Blame::Host, "the standard files of the container").why(e)
            }),
            false => Ok(()),
        };
        let r = receiver.take(&o, &word, &|t| match (t, json) {
            (Told::Begins(from), true) => eprintln!("{}", json!({"from": from.to_string()})),
            (Told::Begins(from), false) => eprintln!("a migration from {from}"),
            (Told::Round(n, b), true) => eprintln!("{}", json!({"round": n, "bytes": b})),
            (Told::Round(n, b), false) => eprintln!("round {n}: {} are here", bytes(b)),
        })?;
        for w in &r.warnings {
            tracing::warn!("{w}");
        }
        match json {
            true => sayln!(
                "{}",
                json!({"pid": r.pid, "restore_us": r.restore_us, "warnings": r.warnings})
            ),
            false => sayln!("process {} runs, restored in {}", r.pid, time(r.restore_us)),
        }
        Ok(ExitCode::SUCCESS)
    }
}
