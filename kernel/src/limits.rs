//! The engine's own limits.

/// Raises the soft limit of open files to the hard one: the engine holds a duplicate of every open file of the tree.
pub fn raise_nofile() {
    // SAFETY: a plain structure the kernel reads and writes; failure leaves the limit as it was.
    unsafe {
        let mut l: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut l) == 0 {
            l.rlim_cur = l.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &l);
        }
    }
}

/// How many files the engine, and what it starts, may have open.
pub fn nofile() -> u64 {
    // SAFETY: a plain structure the kernel writes.
    unsafe {
        let mut l: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut l) == 0 {
            l.rlim_cur
        } else {
            1024
        }
    }
}

/// Whether this kernel takes the number of a new POSIX timer from its creator (PR_TIMER_CREATE_RESTORE_IDS). KERNEL(>=6.13)
pub fn timer_ids() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: u64 = 2;
    // SAFETY: no memory is involved; asking changes nothing.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}
