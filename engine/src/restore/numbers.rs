//! Two numbers for each task: the one in the pid namespace of the first task, which is in the image, and the one the engine knows
//! it by.
//!
//! They differ when the tree has a pid namespace of its own. Nothing tells the engine's number at birth (clone3 answers with the
//! caller's view), so it is found among the children of the parent, whose status shows both.
use crate::dump::Level;
use crate::error::{Blame, Error, Result};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::ProcDir;
use std::collections::BTreeMap;

/// Pids and tids of a tree under restore.
pub struct Numbers {
    /// `None`: the tree lives in the engine's pid namespace, and both numbers are the same.
    foreign: Option<BTreeMap<u32, HostPid>>,
    /// Where the tree's number is among those that /proc tells of one of its tasks.
    level: Level,
}

impl Numbers {
    /// No task is born yet.
    pub fn new(foreign: bool) -> Self {
        Self {
            foreign: foreign.then(BTreeMap::new),
            level: Level::default(),
        }
    }
    /// Whether the tree has another pid namespace than the engine.
    pub fn are_foreign(&self) -> bool {
        self.foreign.is_some()
    }
    /// The engine's number of a task or thread, if it is born.
    pub fn host(&self, own: u32) -> Option<HostPid> {
        match &self.foreign {
            None => Some(HostPid(own as i32)),
            Some(known) => known.get(&own).copied(),
        }
    }
    /// The same of a task that must have been born by now.
    ///
    /// # Errors
    /// E4001: it is gone.
    pub fn known(&self, own: u32) -> Result<HostPid> {
        self.host(own).ok_or_else(|| lost(own))
    }
    /// What the birth of the first task told.
    ///
    /// # Errors
    /// It is gone.
    pub fn learn_root(&mut self, own: u32, host: HostPid) -> Result<()> {
        if let Some(known) = &mut self.foreign {
            known.insert(own, host);
            self.level = Level::of(&ProcDir::open(host)?.status()?);
        }
        Ok(())
    }
    /// Finds these tasks among the children of their parents.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn find_children(&mut self, born: &[(u32, u32)]) -> Result<()> {
        let Some(known) = &mut self.foreign else {
            return Ok(());
        };
        let mut seen: std::collections::BTreeSet<HostPid> = known.values().copied().collect();
        for (own, parent) in born {
            if known.contains_key(own) {
                continue;
            }
            let host = known.get(parent).copied().ok_or_else(|| lost(*parent))?;
            for c in ProcDir::open(host)?.children()? {
                if seen.insert(c) {
                    let st = ProcDir::open(c)?.status()?;
                    known.insert(self.level.number(&st.ns_tgid), c);
                }
            }
            if !known.contains_key(own) {
                return Err(lost(*own));
            }
        }
        Ok(())
    }
    /// Finds the threads of a task.
    ///
    /// # Errors
    /// The task is gone.
    pub fn find_threads(&mut self, own: u32) -> Result<()> {
        let Some(known) = &mut self.foreign else {
            return Ok(());
        };
        let host = known.get(&own).copied().ok_or_else(|| lost(own))?;
        let proc = ProcDir::open(host)?;
        for tid in proc.tasks()? {
            let st = proc.task_status(tid)?;
            known.insert(self.level.number(&st.ns_pid), tid);
        }
        Ok(())
    }
}

fn lost(own: u32) -> Error {
    Error::new(
        "E4001",
        Blame::Container,
        format!("task {own} was killed while it was restored"),
    )
    .advice("find out who killed it (out of memory?) and try again")
}
