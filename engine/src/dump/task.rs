//! A task of the tree while it is held.
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::ProcDir;
use stasis_kernel::ptrace::{Regs, RseqConfig, SudConfig, Tracee};

/// A process: alive with stopped threads, or a zombie.
pub struct Task {
    /// In our pid namespace.
    pub pid: HostPid,
    /// The parent within the tree; `None` for the root.
    pub parent: Option<HostPid>,
    /// Its folder in /proc, which never becomes another process's.
    pub proc: ProcDir,
    /// Stopped threads, the leader first.
    pub threads: Vec<Thread>,
    /// Exit code as waitpid(2) gives it, for a zombie.
    pub zombie: Option<i32>,
    /// The signal of its group stop, if it was stopped when we came.
    pub stopped_by: Option<i32>,
}

impl Task {
    /// A task of which only the number is known.
    pub fn new(pid: HostPid, parent: Option<HostPid>, proc: ProcDir) -> Self {
        Self {
            pid,
            parent,
            proc,
            threads: Vec::new(),
            zombie: None,
            stopped_by: None,
        }
    }
    /// The main thread. Zombies have none.
    pub fn leader(&self) -> &Thread {
        &self.threads[0]
    }
}

/// A stopped thread and what ptrace tells of it.
pub struct Thread {
    /// In our pid namespace.
    pub tid: HostPid,
    /// The handle that holds it.
    pub tracee: Tracee,
    /// General registers as they will be when it goes on.
    pub regs: Regs,
    /// Blocked signals.
    pub mask: u64,
    /// Restartable sequence registration.
    pub rseq: RseqConfig,
    /// Syscall user dispatch.
    pub sud: Option<SudConfig>,
}

impl Thread {
    /// A thread just stopped; its state is read later.
    pub fn new(tid: HostPid, tracee: Tracee) -> Self {
        Self {
            tid,
            tracee,
            regs: stasis_kernel::ptrace::no_regs(),
            mask: 0,
            rseq: RseqConfig::default(),
            sud: None,
        }
    }
}
