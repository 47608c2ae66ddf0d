//! Reading /proc/PID.
//!
//! [`ProcDir`](crate::procfs::ProcDir) holds an open directory of /proc. As long as it is open, every answer is about the same process: when
//! that one is gone its files give ESRCH or ENOENT, also if the number was given to another process meanwhile.
//!
//! A zombie still has stat, status and comm. What needs its memory (maps, smaps, auxv) is an empty file on older
//! kernels and ESRCH on 6.18 (EACCES without CAP_SYS_PTRACE), so look at the state before concluding from ESRCH that
//! the process is gone.
//!
//! All parsers are pure functions of bytes and can be called without a process.

mod dir;
mod fdinfo;
mod locks;
mod maps;
mod misc;
mod stat;
mod status;
mod text;

#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;

pub use dir::ProcDir;
pub use fdinfo::{
    EpollTarget, EventFd, FanotifyLine, FdInfo, Handle, InotifyWatch, PidFd, TimerFd, parse_fdinfo,
};
pub use locks::{LeaseState, LockKind, LockLine, LockMode, parse_locks};
pub use maps::{MapName, MapsLine, SmapsEntry, VmFlags, parse_maps, parse_smaps};
pub use misc::{
    CgroupLine, InSyscall, Limit, MountInfo, Timer, TimerNotify, parse_auxv, parse_auxv32,
    parse_cgroup, parse_limits, parse_mountinfo, parse_ns_link, parse_syscall, parse_timers,
};
pub use stat::{Stat, TaskState, parse_stat};
pub use status::{Ids, Status, parse_status};

use crate::error::{Result, SysError};
use crate::ids::HostPid;

/// Ids of all processes (not threads) in /proc, sorted.
pub fn all_pids() -> Result<Vec<HostPid>> {
    let fd = nix::fcntl::open(
        "/proc",
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(|e| SysError::new("openat", e, "/proc"))?;
    let all = read_numbers(&fd, &mut vec![0; 32 * 1024])
        .map_err(|e| SysError::new("getdents64", e, "/proc"))?;
    Ok(all.into_iter().map(HostPid).collect())
}

/// All locks of /proc/locks, with owners in the namespace that procfs was mounted for.
pub fn system_locks() -> Result<Vec<LockLine>> {
    let text = std::fs::read("/proc/locks").map_err(|e| {
        SysError::new(
            "read",
            Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            "/proc/locks",
        )
    })?;
    parse_locks("/proc/locks", &text)
}

/// Names of directory entries that are numbers, sorted.
fn read_numbers(fd: &OwnedFd, buf: &mut [u8]) -> std::result::Result<Vec<i32>, Errno> {
    let mut out = Vec::new();
    loop {
        // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
        let n = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                fd.as_raw_fd(),
                buf.as_mut_ptr(),
                buf.len(),
            )
        };
        if n == -1 {
            return Err(Errno::last());
        }
        if n == 0 {
            break;
        }
        // struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, name with NUL.
        let mut rest = &buf[..n as usize];
        while rest.len() > 19 {
            let reclen =
                usize::from(u16::from_ne_bytes([rest[16], rest[17]])).clamp(19, rest.len());
            let name = &rest[19..reclen];
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            if let Some(n) = text::number(name, 10) {
                out.push(n);
            }
            rest = &rest[reclen..];
        }
    }
    // The kernel lists them in order, but nothing promises it.
    out.sort_unstable();
    Ok(out)
}

/// How much of the last ten seconds some task waited for a processor, in percent. `None` on kernels that do not count it
/// (CONFIG_PSI).
pub fn cpu_pressure() -> Option<u32> {
    parse_pressure(&std::fs::read_to_string("/proc/pressure/cpu").ok()?)
}

/// The average over ten seconds of a file of /proc/pressure, in percent.
fn parse_pressure(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|l| l.strip_prefix("some avg10="))?;
    let percent: f64 = some.split_whitespace().next()?.parse().ok()?;
    Some(percent.round() as u32)
}
