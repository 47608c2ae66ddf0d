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
