//! What a caller may ask of a dump or a restore. Every field is honoured or refused; none is silently ignored.
mod cgroups;
mod memory;
mod mounts;
mod namespaces;
mod network;

pub use cgroups::{CgroupMode, CgroupOptions};
pub use memory::MemoryOptions;
pub use mounts::MountOptions;
pub use namespaces::{IdMap, NamespaceOptions};
pub use network::{NetworkLock, NetworkOptions, ReadyLock};

use crate::archive::Place;
use crate::events::EventSink;
use crate::plugins::Plugins;
use std::path::PathBuf;
use std::time::Duration;

/// What becomes of the tree after a successful dump or restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum After {
    /// Dump: kill it. Restore: run it.
    #[default]
    Default,
    /// Dump: let it run on.
    Running,
    /// Leave it stopped by SIGSTOP.
    Stopped,
}

/// Options of the engine, already checked for contradictions by the door that took them.
#[derive(Debug, Clone)]
pub struct Options {
    /// Image folder.
    pub images: PathBuf,
    /// Root of the tree to dump (host pid).
    pub pid: i32,
    /// What becomes of the tree.
    pub after: After,
    /// A dump does not wait until the images are on the disk (`--no-sync`): if the machine stops soon after, they may be lost.
    pub no_sync: bool,
    /// Session, group leader or terminal may lie outside the tree (`--shell-job`).
    pub shell_job: bool,
    /// Save and restore file locks (`--file-locks`); without it a lock is an error that names it.
    pub file_locks: bool,
    /// Bring back names of deleted files that still have other links (`--link-remap`).
    pub link_remap: bool,
    /// Largest deleted file carried, in bytes; `None`: no limit.
    pub ghost_limit: Option<u64>,
    /// Folders in which watched files are looked for first, where file handles do not open (`--irmap-scan-path`).
    pub scan_paths: Vec<std::path::PathBuf>,
    /// Limit on stopping the tree.
    pub timeout: Duration,
    /// Any path to a device node will do (`--evasive-devices`).
    pub evasive_devices: bool,
    /// Do not compare permissions of files on restore (`--skip-file-rwx-check`).
    pub skip_file_rwx_check: bool,
    /// Restore: return once the tree runs; otherwise wait for its root to exit.
    pub detach: bool,
    /// Restore: the root becomes a sibling of the caller.
    pub sibling: bool,
    /// Restore: write the root's pid (host view) here.
    pub pidfile: Option<PathBuf>,
    /// Orphaned masters of terminals are handed to the caller (`--orphan-pts-master`).
    pub orphan_pts_master: bool,
    /// Mounts.
    pub mounts: MountOptions,
    /// Control groups.
    pub cgroups: CgroupOptions,
    /// Sockets and networks.
    pub network: NetworkOptions,
    /// Memory.
    pub memory: MemoryOptions,
    /// Namespaces and things from outside.
    pub namespaces: NamespaceOptions,
    /// Who is told at each stage: scripts, runtimes, hooks.
    pub events: EventSink,
    /// What carries things the engine does not know: plugins of the program that uses the engine.
    pub plugins: Plugins,
    /// Dump: all goes into one stream in place of the folder. Restore: it comes from one.
    pub archive: Option<Place>,
    /// Dump: images are encrypted for these (age recipients).
    pub recipients: Vec<String>,
    /// Restore: file with the identity that opens encrypted images.
    pub identity: Option<PathBuf>,
    /// Tests only: die by SIGKILL when this point is reached (`STASIS_KILL_AT`, "phase:n").
    pub kill_at: Option<u32>,
}

impl Options {
    /// Defaults for a folder.
    pub fn new(images: impl Into<PathBuf>) -> Self {
        Self {
            images: images.into(),
            pid: 0,
            after: After::Default,
            no_sync: false,
            shell_job: false,
            file_locks: false,
            link_remap: false,
            ghost_limit: None,
            scan_paths: Vec::new(),
            timeout: Duration::from_secs(10),
            evasive_devices: false,
            skip_file_rwx_check: false,
            detach: false,
            sibling: false,
            pidfile: None,
            orphan_pts_master: false,
            mounts: MountOptions::default(),
            cgroups: CgroupOptions::default(),
            network: NetworkOptions::default(),
            memory: MemoryOptions::default(),
            namespaces: NamespaceOptions::default(),
            events: EventSink::default(),
            plugins: Plugins::default(),
            archive: None,
            recipients: Vec::new(),
            identity: None,
            kill_at: None,
        }
    }
}
