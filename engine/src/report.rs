//! What a dump or restore tells its caller. Times in microseconds, sizes in pages of 4096 bytes.

/// Figures of a dump, as `stats-dump` holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpReport {
    /// From the first seize until the whole tree was stopped.
    pub freezing_us: u64,
    /// From the first seize until the tree was let go or killed.
    pub frozen_us: u64,
    /// Reading and writing pages.
    pub memdump_us: u64,
    /// Of that, writing.
    pub memwrite_us: u64,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Pages left to the images of the dump before.
    pub pages_skipped_parent: u64,
    /// Pages left with their tasks, for who asks for them.
    pub pages_lazy: u64,
    /// Pages of shared memory looked at and written.
    pub shpages_scanned: u64,
    /// Pages of shared memory written.
    pub shpages_written: u64,
    /// Pages of shared memory left to the images of the dump before.
    pub shpages_skipped_parent: u64,
    /// How long it took to compare shared memory with them.
    pub comparing_us: u64,
    /// Processes and threads of the tree.
    pub tasks: u32,
    /// Threads of all processes.
    pub threads: u32,
    /// What was degraded and how: shown as warnings.
    pub warnings: Vec<String>,
}

impl DumpReport {
    /// Shared memory was saved.
    pub(crate) fn add_shared(&mut self, s: &crate::dump::shared::Saved) {
        self.shpages_written += s.pages;
        self.shpages_skipped_parent += s.skipped;
        self.shpages_scanned += s.pages + s.skipped;
        self.comparing_us += s.comparing.as_micros() as u64;
    }
}

/// Figures of a restore, as `stats-restore` holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// The root of the tree, as the engine's pid namespace sees it.
    pub pid: i32,
    /// Making the processes.
    pub forking_us: u64,
    /// The whole restore.
    pub restore_us: u64,
    /// Pages compared with a parent's for copy-on-write sharing.
    pub pages_compared: u64,
    /// Of those, left shared.
    pub pages_skipped_cow: u64,
    /// Pages written.
    pub pages_restored: u64,
    /// What was degraded and how: shown as warnings.
    pub warnings: Vec<String>,
    /// Exit status of the root as waitpid(2) gives it, when the restore waited for it.
    pub exit_status: Option<i32>,
}

/// Logs what the engine has needed in memory so far.
pub(crate) fn tell_peak() {
    if let Some(kib) = stasis_kernel::limits::peak_memory() {
        tracing::debug!("the engine had at most {kib} KiB of memory");
    }
}
