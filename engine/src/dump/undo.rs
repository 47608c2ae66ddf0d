//! What SEM_UNDO (semop(2)) would undo at the end of processes.
//!
//! It lies in the kernel's memory and is told by no call ([`stasis_kernel::undo`]). It is only looked for where the tree sees any
//! System V semaphores at all.
use super::task::Task;
use crate::error::Result;
use crate::kinds::DumpCx;
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ipc::{self, Sort};
use stasis_kernel::ns::{self, Ns};
use stasis_kernel::undo;
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};

/// Numbers of semaphores, by set.
type Sets = BTreeMap<i32, usize>;

/// Of all tasks, by their leaders. The calling thread traces them.
///
/// # Errors
/// A task is gone, or its namespace cannot be entered.
pub fn of(held: &[Task], cx: &mut DumpCx) -> Result<BTreeMap<HostPid, Vec<pb::StasisSemUndo>>> {
    let mut spaces: BTreeMap<u64, Sets> = BTreeMap::new();
    let mut owners = BTreeMap::new();
    for t in held.iter().filter(|t| t.zombie.is_none()) {
        let space = t.proc.ns(Ns::Ipc.name())?;
        if let std::collections::btree_map::Entry::Vacant(v) = spaces.entry(space) {
            v.insert(ns::visit_task(t.pid, &[Ns::Ipc], sets)??);
        }
        owners.extend(t.threads.iter().map(|th| (th.tid.0, (t.pid, space))));
    }
    let mut all: BTreeMap<HostPid, Vec<pb::StasisSemUndo>> = BTreeMap::new();
    if spaces.values().all(BTreeMap::is_empty) {
        return Ok(all);
    }
    let size = |tid, set| spaces.get(&owners.get(&tid)?.1)?.get(&set).copied();
    let lists = match undo::of_traced(size) {
        Ok(l) => l,
        Err(e) => {
            // KERNEL: a task that has ever started a thread has a list, be it empty
            let single = held.iter().filter(|t| t.threads.len() == 1);
            for t in single.filter(|t| fds::has_undo(t.pid).is_ok_and(|has| has)) {
                cx.warn(format!(
                    "task {} has used semaphores with SEM_UNDO: what its end would undo cannot be read and is forgotten: {e}",
                    t.pid.0
                ));
            }
            return Ok(all);
        }
    };
    for list in lists {
        let processes = list.threads.iter().filter_map(|t| Some(owners.get(t)?.0));
        let processes: BTreeSet<HostPid> = processes.collect();
        let Some(first) = processes.first().copied() else {
            continue;
        };
        if processes.len() > 1 {
            cx.warn(format!(
                "tasks {processes:?} share what SEM_UNDO would undo (CLONE_SYSVSEM): from the restore on, it is undone at the end of task {}",
                first.0
            ));
        } else if !list.threads.contains(&first.0) {
            cx.warn(format!(
                "a thread of task {} has a list of its own of what SEM_UNDO would undo: from the restore on, it is undone at the end of the task",
                first.0
            ));
        }
        let entry = |(set, adjust): (i32, Vec<i16>)| pb::StasisSemUndo {
            set: set as u32,
            adjust: adjust.into_iter().map(i32::from).collect(),
        };
        let of_first = all.entry(first).or_default();
        of_first.extend(list.sets.into_iter().map(entry));
    }
    Ok(all)
}

/// Those of the caller's IPC namespace.
fn sets() -> Result<Sets> {
    let size = |id| Some((id, ipc::semaphores(id).ok()?.1.len()));
    Ok(ipc::list(Sort::Semaphores)?
        .into_iter()
        .filter_map(size)
        .collect())
}
