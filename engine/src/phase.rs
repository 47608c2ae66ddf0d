//! The phases of a dump and of a restore, and what holds before and after each.

/// A phase; its name stands in every error and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Dump: options, folder and rights are looked at; nothing is touched.
    Prepare,
    /// Dump: every thread of the tree is stopped. After: nothing forks, exits or runs.
    Seize,
    /// Dump: parents, sessions, groups, threads, credentials, signals, timers are read.
    Tree,
    /// Dump: every open file is looked at once and described.
    Files,
    /// Dump: mappings are described, pages written.
    Memory,
    /// Dump: images are made durable, then the inventory is renamed into place. After: the folder is complete.
    Seal,
    /// Dump: the tree is let go, stopped or killed.
    Release,
    /// Restore: images are read and checked, the plan is made; nothing is touched.
    Plan,
    /// Restore: the engine opens every file of the plan.
    Open,
    /// Restore: tasks are born as stubs with their pids, sessions and groups.
    Birth,
    /// Restore: mappings are made and filled.
    Fill,
    /// Restore: threads are born; every descriptor gets its slot.
    Place,
    /// Restore: signals, timers, limits, scheduling.
    Habits,
    /// Restore: credentials, no_new_privs, seccomp, in that order.
    Privileges,
    /// Restore: registers are set, the reel is dropped, tasks run. The commit point is the first detach.
    Run,
}

impl Phase {
    /// Phases of a dump, in order.
    pub const DUMP: &[Phase] = &[
        Phase::Prepare,
        Phase::Seize,
        Phase::Tree,
        Phase::Files,
        Phase::Memory,
        Phase::Seal,
        Phase::Release,
    ];
    /// Phases of a restore, in order.
    pub const RESTORE: &[Phase] = &[
        Phase::Plan,
        Phase::Open,
        Phase::Birth,
        Phase::Fill,
        Phase::Place,
        Phase::Habits,
        Phase::Privileges,
        Phase::Run,
    ];
    /// What is true before the phase and what it makes true.
    pub fn contract(self) -> (&'static str, &'static str) {
        match self {
            Phase::Prepare => (
                "nothing is known",
                "options make sense, the folder can be written, the root task exists",
            ),
            Phase::Seize => (
                "the tree runs",
                "every thread is in a ptrace stop; the set of tasks is closed",
            ),
            Phase::Tree => (
                "the tree is stopped",
                "each task is described; registers and signal masks are as at the stop",
            ),
            Phase::Files => (
                "tasks are described",
                "each open file has one entry, each slot names one; nothing was read from or moved in a file",
            ),
            Phase::Memory => (
                "files have entries",
                "each mapping has an entry, each page that matters is in a pages image",
            ),
            Phase::Seal => (
                "all images are written",
                "all images are durable, inventory.img exists",
            ),
            Phase::Release => (
                "the folder is complete, or the dump failed",
                "the tree runs, is stopped, or is dead, as asked",
            ),
            Phase::Plan => (
                "a folder",
                "all images parsed; every call of the restore is known",
            ),
            Phase::Open => (
                "nothing of the tree exists",
                "the engine holds every open file of the tree",
            ),
            Phase::Birth => (
                "files are open",
                "every task exists as a stub, dies with the engine, and runs none of its own code",
            ),
            Phase::Fill => (
                "stubs",
                "every address space is as in the image, plus the reel",
            ),
            Phase::Place => (
                "memory is there",
                "every thread exists; every descriptor table is as in the image",
            ),
            Phase::Habits => (
                "descriptors are there",
                "signals, timers, limits and scheduling are as in the image",
            ),
            Phase::Privileges => (
                "habits are there",
                "no task has more rights than in the image",
            ),
            Phase::Run => (
                "only registers are missing",
                "the tree runs (or is stopped, if asked)",
            ),
        }
    }
}
