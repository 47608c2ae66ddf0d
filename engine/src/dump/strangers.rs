//! Processes that live in the tree's own pid namespaces and are not of the tree: what a runtime's `exec` starts.
//!
//! They would die with the first process of the namespace when a dump ends the tree, and would be missing after a restore.
use crate::error::{Blame, Error, Result};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{ProcDir, all_pids};
use std::collections::BTreeSet;

/// Looks for them, while the tree is frozen. `spaces`: inode numbers of the pid namespaces.
///
/// # Errors
/// E4803 names the first that was found.
pub fn none_in(spaces: &BTreeSet<u64>, tree: &BTreeSet<HostPid>) -> Result<()> {
    for pid in all_pids()?.into_iter().filter(|p| !tree.contains(p)) {
        let Ok(proc) = ProcDir::open(pid) else {
            continue;
        };
        if proc.ns("pid").is_ok_and(|n| spaces.contains(&n))
            && proc.stat().is_ok_and(|s| !s.state.is_exited())
        {
            let name = proc.comm().unwrap_or_default();
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(Error::new(
                "E4803",
                Blame::Container,
                format!("process {} ({name}) is in the container, but is no descendant of its first process", pid.0),
            )
            .why("it was started from outside (`exec` of a runtime) and cannot be part of the image")
            .advice("end it, or wait for its end, and try again"));
        }
    }
    Ok(())
}
