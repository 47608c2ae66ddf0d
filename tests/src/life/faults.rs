//! Dumps and restores that fail: the reason is named, and nothing is left.
use crate::case::Report;
use crate::init::Stage;
use anyhow::{Result, bail};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Why a dump fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpFault {}

/// Why a restore fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreFault {}

impl Stage {
    pub(crate) fn fail_dump(&mut self, _: Pid, f: DumpFault, _: &mut Report) -> Result<()> {
        match f {}
    }
    pub(crate) fn fail_restore(&mut self, _: Pid, f: RestoreFault, _: &mut Report) -> Result<Pid> {
        match f {}
    }
    pub(crate) fn only_dump(&mut self, root: Pid, _: &mut Report) -> Result<()> {
        self.dump_away(root).map(|_| ())
    }
    pub(crate) fn redump(&mut self, _: Pid, _: &mut Report) -> Result<Pid> {
        bail!("not yet")
    }
}
