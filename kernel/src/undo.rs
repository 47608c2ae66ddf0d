//! What SEM_UNDO (semop(2)) would undo at the end of processes. No call tells it: it is read out of the kernel's memory
//! ([`crate::inside`]), for tasks that the caller's thread traces.
use crate::btf;
use crate::error::SysResult;
use crate::inside::Inside;
use std::collections::BTreeMap;

/// An undo list: that of a process, or of all who share it (CLONE_SYSVSEM).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UndoList {
    /// Threads that have it, as the caller sees them.
    pub threads: Vec<i32>,
    /// Sets by their ids, with what is added to each semaphore at the end. Sets that would not change are left out.
    pub sets: BTreeMap<i32, Vec<i16>>,
}

/// The undo lists, as far as they would change anything, of tasks that the calling thread traces. `semaphores` tells how many a set
/// has, given the thread and the set's id.
///
/// # Errors
/// EPERM without the rights to read the kernel's memory.
pub fn of_traced(semaphores: impl Fn(i32, i32) -> Option<usize>) -> SysResult<Vec<UndoList>> {
    let inside = Inside::open()?;
    let [
        ptraced,
        entry,
        lists,
        of_process,
        in_process,
        id,
        values,
        size,
    ] = btf::offsets([
        ("task_struct", "ptraced"),
        ("task_struct", "ptrace_entry"),
        ("task_struct", "sysvsem"),
        ("sem_undo_list", "list_proc"),
        ("sem_undo", "list_proc"),
        ("sem_undo", "semid"),
        ("sem_undo", "semadj"),
        ("sem_undo", ""),
    ])?;
    // KERNEL(<6.5): it was a pointer, the last member; since then the values themselves stand there
    let is_pointer = values % 8 == 0 && size == values + 8;
    let mut all: BTreeMap<u64, UndoList> = BTreeMap::new();
    for task in inside.list(inside.own() + ptraced)? {
        let task = task - entry;
        // struct sysv_sem has one member
        let list = inside.word(task + lists)?;
        let pid = inside.pid(task)?;
        // who is dead has neither
        if list == 0 || pid == 0 {
            continue;
        }
        let tid = inside.number(pid)?;
        if let Some(known) = all.get_mut(&list) {
            known.threads.push(tid);
            continue;
        }
        let mut found = UndoList {
            threads: vec![tid],
            ..UndoList::default()
        };
        for undo in inside.list(list + of_process)? {
            let undo = undo - in_process;
            // -1: the set was removed
            let set = inside.int(undo + id)? as i32;
            let Some(n) = semaphores(tid, set).filter(|_| set >= 0) else {
                continue;
            };
            let at = match is_pointer {
                true => inside.word(undo + values)?,
                false => undo + values,
            };
            let bytes = inside.bytes(at, 2 * n)?;
            let pairs = bytes.chunks_exact(2);
            let adjust: Vec<i16> = pairs.map(|b| i16::from_ne_bytes([b[0], b[1]])).collect();
            if adjust.iter().any(|v| *v != 0) {
                found.sets.insert(set, adjust);
            }
        }
        all.insert(list, found);
    }
    Ok(all.into_values().filter(|l| !l.sets.is_empty()).collect())
}
