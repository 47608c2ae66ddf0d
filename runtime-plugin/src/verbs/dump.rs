//! `stasis dump`
use super::{bytes, folder, place, shown, time};
use crate::criu::size;
use clap::Args;
use serde_json::json;
use stasis_engine::archive::Place;
use stasis_engine::packed::Compression;
use stasis_engine::{After, Options, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Freeze a process and all its children into a folder
///
/// Without --leave-running or --leave-stopped the processes are gone afterwards. A dump that fails leaves them as they
/// were.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stasis dump 4242 -D /var/tmp/frozen
  stasis dump 4242 -D /var/tmp/frozen --leave-running
  stasis dump 4242 -o - | ssh elsewhere stasis restore -i -
  stasis dump 4242 -D 1 --pre && stasis dump 4242 -D 2 --parent ../1
  stasis check --pid 4242          what could not be dumped, without touching anything")]
pub struct Dump {
    /// Root of the tree
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
    /// Folder for the images; made if it does not exist. With a name that ends in .stasis: one file
    #[arg(
        short = 'D',
        long = "images-dir",
        value_name = "DIR",
        required_unless_present = "output"
    )]
    dir: Option<PathBuf>,
    /// One file in place of a folder; `-`: standard output
    #[arg(short = 'o', long, value_name = "FILE", conflicts_with_all = ["dir", "pre", "parent", "track", "auto_dedup"])]
    output: Option<PathBuf>,
    /// Let the processes run on
    #[arg(short = 'R', long, conflicts_with = "leave_stopped")]
    leave_running: bool,
    /// Stop the processes only for a moment: their memory, as it was then, is saved while they run on
    #[arg(long, requires = "leave_running", conflicts_with_all = ["pre", "parent", "track", "auto_dedup"])]
    snapshot: bool,
    /// Leave the processes stopped (SIGSTOP)
    #[arg(short = 's', long)]
    leave_stopped: bool,
    /// Memory only, of processes that run on: the dump after it has less to do
    #[arg(long, conflicts_with_all = ["leave_running", "leave_stopped"])]
    pre: bool,
    /// Folder of the dump before, relative to DIR: only memory that changed since is dumped
    #[arg(long, value_name = "DIR")]
    parent: Option<PathBuf>,
    /// Track changes of memory from this dump on, for the next one to build on it
    #[arg(long)]
    track: bool,
    /// Compress pages, with checksums: lz4, zstd, zstd:LEVEL, or auto (lz4 where that is faster than writing); CRIU cannot read
    /// the folder then
    #[arg(long, value_name = "HOW", value_parser = parse_compression, conflicts_with = "auto_dedup")]
    compress: Option<Compression>,
    /// Write memory that processes share copy-on-write once; CRIU cannot read the folder then
    #[arg(long, conflicts_with_all = ["pre", "snapshot", "auto_dedup"])]
    once: bool,
    /// Encrypt the images for this age recipient (age1...); may be given again
    #[arg(long, value_name = "RECIPIENT", conflicts_with_all = ["pre", "parent", "track", "auto_dedup"])]
    encrypt: Vec<String>,
    /// Take pages out of older images once newer ones have them
    #[arg(long)]
    auto_dedup: bool,
    /// Do not wait until the images are on the disk: if the machine stops soon after, they may be lost
    #[arg(long, conflicts_with = "output")]
    no_sync: bool,
    /// Folder of hooks, in place of /usr/share/stasis/hooks.d and /etc/stasis/hooks.d; may be given again
    #[arg(long, value_name = "DIR")]
    hooks_dir: Vec<PathBuf>,
    #[command(flatten)]
    carry: Carry,
    /// Give up if the tree does not stop in time
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// What is carried besides the usual.
#[derive(Debug, Args)]
pub struct Carry {
    /// Session, group leader or terminal may lie outside of the tree
    #[arg(short = 'j', long)]
    shell_job: bool,
    /// Carry file locks
    #[arg(short = 'l', long)]
    file_locks: bool,
    /// Carry deleted files that still have other names
    #[arg(long)]
    link_remap: bool,
    /// Largest deleted file carried: bytes, or with K, M, G [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    ghost_limit: Option<u64>,
    /// Any path to a device node will do
    #[arg(long)]
    evasive_devices: bool,
    /// Keep TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// TCP connections come back closed
    #[arg(long)]
    tcp_close: bool,
    /// Leave behind TCP connections that the program has not accepted
    #[arg(long)]
    skip_in_flight: bool,
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    Compression::parse(text).ok_or_else(|| "lz4, zstd, zstd:LEVEL (-7 to 19) or auto".into())
}

fn parse_size(text: &str) -> Result<u64, String> {
    size(text).ok_or_else(|| "a number of bytes, with K, M or G behind it".into())
}

impl Carry {
    /// Puts the answers into the engine's options.
    pub fn apply(&self, o: &mut Options) {
        o.shell_job = self.shell_job;
        o.file_locks = self.file_locks;
        o.link_remap = self.link_remap;
        o.ghost_limit = self.ghost_limit;
        o.evasive_devices = self.evasive_devices;
        o.network.tcp_established = self.tcp_established;
        o.network.tcp_close = self.tcp_close;
        o.network.skip_in_flight = self.skip_in_flight;
    }
}

impl Dump {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        // made for the caller's eyes only: the images hold all the memory of the processes
        let place = place(self.dir.as_deref(), self.output.as_deref(), true)?;
        if place.is_none()
            && let Some(dir) = &self.dir
        {
            stasis_proto::ImageDir::create(dir)?;
        }
        let mut o = Options::new(folder(self.dir.as_deref(), place.as_ref()));
        let shown = shown(self.dir.as_deref(), self.output.as_deref());
        o.archive = place;
        o.recipients = self.encrypt.clone();
        o.pid = self.pid;
        o.after = match (self.leave_running, self.leave_stopped) {
            (true, _) => After::Running,
            (_, true) => After::Stopped,
            _ => After::Default,
        };
        o.no_sync = self.no_sync;
        o.timeout = Duration::from_secs(self.timeout);
        o.kill_at = crate::kill_at()?;
        self.carry.apply(&mut o);
        o.memory.parent = self.parent.clone();
        o.memory.compress = self.compress;
        o.memory.once = self.once;
        o.memory.snapshot = self.snapshot;
        o.memory.track = self.track;
        o.memory.auto_dedup = self.auto_dedup;
        crate::hooks::watch(&mut o, &self.hooks_dir, None)?;
        let r = match self.pre {
            true => stasis_engine::pre_dump(&o)?,
            false => stasis_engine::dump(&o)?,
        };
        for w in &r.warnings {
            tracing::warn!("{w}");
        }
        if o.archive.is_none() {
            crate::figures::write_dump(&o.images, &r);
        }
        if matches!(o.archive, Some(Place::Open(_))) {
            return Ok(ExitCode::SUCCESS);
        }
        let written = (r.pages_written + r.shpages_written).saturating_mul(4096);
        if json {
            sayln!(
                "{}",
                json!({"pid": self.pid, "tasks": r.tasks, "threads": r.threads, "bytes_written": written,
                    "bytes_unchanged": r.pages_skipped_parent.saturating_mul(4096),
                    "freezing_us": r.freezing_us, "frozen_us": r.frozen_us, "memdump_us": r.memdump_us,
                    "warnings": r.warnings})
            );
        } else {
            sayln!(
                "dumped {} processes ({} threads), {} of memory, frozen for {}: {}",
                r.tasks,
                r.threads,
                bytes(written),
                time(r.frozen_us),
                shown
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
