//! A copy of the engine that goes on by itself: it serves restored tasks when the engine has ended.
//!
//! Two processes: the *worker*, and a *guardian* that waits for it. If the worker ends badly, tasks would read zeroes where it
//! owed them pages; so the guardian, which holds the same descriptors, kills them first.
use crate::error::{SysError, SysResult};
use crate::ids::HostPid;
use crate::procfs::ProcDir;
use std::collections::BTreeSet;
use std::os::fd::RawFd;

/// Starts a worker. It keeps the descriptors `keep`, nothing else, and ends with what `work` returns; anything but 0 means
/// death for `wards` and all their descendants.
///
/// Call it while the process has no other threads that may hold locks of the allocator or of the log.
pub fn start(keep: &[RawFd], wards: &[HostPid], work: impl FnOnce() -> i32) -> SysResult<()> {
    let wards: Vec<(HostPid, u64)> = wards.iter().filter_map(|p| Some((*p, born(*p)?))).collect();
    // SAFETY: the child runs our code on a copy of our memory; see above for threads.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(SysError::last("fork", "pager"));
    }
    if pid > 0 {
        crate::ptrace::wait_exit(pid)?;
        return Ok(());
    }
    // SAFETY: as above. From here on only our own copy is concerned, which never returns to the caller.
    unsafe {
        // the first child ends, so that the engine's caller has no child it does not know of
        if libc::fork() != 0 {
            libc::_exit(0);
        }
        detach(keep);
        let worker = libc::fork();
        if worker == 0 {
            libc::prctl(libc::PR_SET_NAME, c"stasis-pager".as_ptr());
            libc::_exit(work());
        }
        libc::prctl(libc::PR_SET_NAME, c"stasis-guard".as_ptr());
        let status = match worker {
            -1 => 1,
            pid => crate::ptrace::wait_exit(pid).unwrap_or(1),
        };
        if status != 0 {
            kill_all(&wards);
        }
        libc::_exit(0)
    }
}

/// Runs `work` in a copy of this process and waits for it; if it ends with anything but 0, however it was ended, `rescue` runs here.
/// Gives what it ended with, 1 for a signal.
///
/// Call it while the process has no other threads.
pub fn guarded(work: impl FnOnce() -> i32, rescue: impl FnOnce()) -> SysResult<i32> {
    // SAFETY: no other thread holds a lock at this moment, says the caller.
    match unsafe { libc::fork() } {
        -1 => Err(SysError::last("fork", "pager")),
        // SAFETY: the child ends here.
        0 => unsafe {
            libc::prctl(libc::PR_SET_NAME, c"stasis-pager".as_ptr());
            libc::_exit(work())
        },
        pid => {
            let status = crate::ptrace::wait_exit(pid)?;
            if status != 0 {
                rescue();
            }
            let code = status >> 8 & 0xff;
            Ok(if status & 0x7f != 0 { 1 } else { code })
        }
    }
}

fn born(pid: HostPid) -> Option<u64> {
    Some(ProcDir::open(pid).ok()?.stat().ok()?.starttime)
}

/// Leaves the session, the folder and the descriptors of whoever started us.
///
/// # Safety
/// Only in a process of our own.
unsafe fn detach(keep: &[RawFd]) {
    // SAFETY: system calls on numbers; nobody else uses descriptors of this process.
    unsafe {
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        let mut keep: Vec<u32> = keep.iter().map(|f| *f as u32).collect();
        keep.sort_unstable();
        let mut from = 0u32;
        for k in keep {
            if k > from {
                libc::syscall(libc::SYS_close_range, from, k - 1, 0);
            }
            from = k + 1;
        }
        libc::syscall(libc::SYS_close_range, from, u32::MAX, 0);
        // standard descriptors are never something else
        while libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) < 2 {}
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Kills a process and all its descendants.
pub fn end(root: HostPid) {
    if let Some(at) = born(root) {
        kill_all(&[(root, at)]);
    }
}

fn kill_all(wards: &[(HostPid, u64)]) {
    let alive = wards.iter().filter(|(p, at)| born(*p) == Some(*at));
    let mut all: BTreeSet<HostPid> = alive.map(|w| w.0).collect();
    let mut todo: Vec<HostPid> = all.iter().copied().collect();
    while let Some(p) = todo.pop() {
        let children = ProcDir::open(p).and_then(|d| {
            d.children_by_scan().map_err(|e| match e {
                crate::error::Error::Sys(e) => e,
                e => SysError::new("read", nix::errno::Errno::EIO, e.to_string()),
            })
        });
        for c in children.unwrap_or_default() {
            if all.insert(c) {
                todo.push(c);
            }
        }
    }
    for p in all {
        let _ = crate::ptrace::kill(p.0, libc::SIGKILL);
    }
}
