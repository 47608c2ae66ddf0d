//! The engine's own limits.

/// Raises the soft limit of open files to the hard one, and makes room for them: the engine holds a duplicate of every open file
/// of the tree. To be called while the process has one thread.
pub fn raise_nofile() {
    const ROOM: u64 = 16384;
    // SAFETY: a plain structure the kernel reads and writes; failure leaves the limit as it was. The descriptor that is closed was
    // made here.
    unsafe {
        let mut l: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut l) == 0 {
            l.rlim_cur = l.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &l);
            // KERNEL: a table shared by threads waits for an RCU grace period, 10 to 20 ms, each time it grows
            // (fs/file.c, expand_fdtable)
            let high = l.rlim_cur.min(ROOM) as i32 - 1;
            let fd = libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
            let far = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, high);
            for made in [fd, far] {
                if made >= 0 {
                    libc::close(made);
                }
            }
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

/// The most memory this process ever had at once, in KiB (VmHWM of proc_pid_status(5)): getrusage(2) would tell that of whoever
/// started it, if that was more.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Whether this kernel takes the number of a new POSIX timer from its creator (PR_TIMER_CREATE_RESTORE_IDS). KERNEL(>=6.13)
pub fn timer_ids() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: u64 = 2;
    // SAFETY: no memory is involved; asking changes nothing.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}
