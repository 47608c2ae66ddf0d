//! Crash safety: engines that are killed or made to fail, and what they leave behind.
//!
//! - [`snapshot`]: what can be seen of a tree from outside; before and after must be equal.
//! - [`stepper`]: an engine under ptrace, killed before any of its own system calls.
//! - [`kills`]: dumps and restores that are killed. [`faults`]: dumps and restores that fail.
//! - [`images`]: the images of two dumps, compared.
pub mod faults;
pub mod images;
pub mod kills;
pub mod snapshot;
pub mod stepper;

use crate::case::Report;
use crate::init::Stage;
use anyhow::Result;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// What happens to the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trial {
    /// A dump is killed before each `stride`-th changing system call, with `--leave-running`; the tree must be as before.
    KillDump {
        /// 1: every call.
        stride: usize,
    },
    /// A dump is killed after random times, this often; the tree must be as before.
    KillDumpRandom(u32),
    /// As [`Trial::KillDump`], of a dump with `--snapshot`.
    KillSnapshot {
        /// 1: every call.
        stride: usize,
    },
    /// As [`Trial::KillDumpRandom`], of dumps with `--snapshot`.
    KillSnapshotRandom(u32),
    /// A restore is killed before each `stride`-th changing system call; nothing may be left.
    KillRestore {
        /// 1: every call.
        stride: usize,
    },
    /// A restore is killed after random times, this often.
    KillRestoreRandom(u32),
    /// A dump fails for this reason; the tree must be as before.
    FailDump(faults::DumpFault),
    /// A restore fails for this reason; nothing may be left, and without the reason it works.
    FailRestore(faults::RestoreFault),
    /// Dump, restore, dump: the images are equal but for the list of what may differ.
    Redump,
    /// Dumped only; the folder stays in the case's folder.
    Images,
}

impl Trial {
    /// How many times the patience of one engine's run a trial may take.
    pub fn rounds(&self) -> u64 {
        match self {
            Trial::KillDump { .. } | Trial::KillSnapshot { .. } | Trial::KillRestore { .. } => {
                if std::env::var_os("STASIS_LONG").is_some() {
                    90
                } else {
                    6
                }
            }
            Trial::KillDumpRandom(n)
            | Trial::KillSnapshotRandom(n)
            | Trial::KillRestoreRandom(n) => 6 + u64::from(*n) / 20,
            _ => 8,
        }
    }
}

impl Stage {
    /// Plays a trial on the ready guest `root`. Gives the root that is to verify itself; `None`: there is none to ask.
    pub(crate) fn live(
        &mut self,
        trial: &Trial,
        root: Pid,
        report: &mut Report,
    ) -> Result<Option<Pid>> {
        match trial {
            Trial::KillDump { stride } => {
                self.kill_dump(root, *stride, report).map(|()| Some(root))
            }
            Trial::KillDumpRandom(n) => {
                self.kill_dump_random(root, *n, report).map(|()| Some(root))
            }
            Trial::KillSnapshot { stride } => {
                self.kill_dump(root, *stride, report).map(|()| Some(root))
            }
            Trial::KillSnapshotRandom(n) => {
                self.kill_dump_random(root, *n, report).map(|()| Some(root))
            }
            Trial::KillRestore { stride } => self.kill_restore(root, *stride, report).map(Some),
            Trial::KillRestoreRandom(n) => self.kill_restore_random(root, *n, report).map(Some),
            Trial::FailDump(f) => self.fail_dump(root, *f, report).map(|()| Some(root)),
            Trial::FailRestore(f) => self.fail_restore(root, *f, report).map(Some),
            Trial::Redump => self.redump(root, report).map(Some),
            Trial::Images => self.only_dump(root, report).map(|()| None),
        }
    }
}
