//! Scheduling and futex facts of other threads: sched_getattr(2), ioprio_get(2), sched_getaffinity(2), get_robust_list(2).
use crate::error::{SysError, SysResult};
use crate::ids::HostPid;

/// struct sched_attr (linux/sched/types.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attr {
    size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// 1 to 99 for SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds; for SCHED_DEADLINE, and the slice of others. KERNEL(>=6.12)
    pub runtime: u64,
    /// Nanoseconds, SCHED_DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, SCHED_DEADLINE.
    pub period: u64,
    util_min: u32,
    util_max: u32,
}

impl Attr {
    /// For sched_setattr(2): the bytes of the structure.
    pub fn bytes(policy: u32, flags: u64, nice: i32, priority: u32, deadline: [u64; 3]) -> Vec<u8> {
        let mut b = Vec::with_capacity(48);
        b.extend_from_slice(&48u32.to_le_bytes());
        b.extend_from_slice(&policy.to_le_bytes());
        b.extend_from_slice(&flags.to_le_bytes());
        b.extend_from_slice(&nice.to_le_bytes());
        b.extend_from_slice(&priority.to_le_bytes());
        for v in deadline {
            b.extend_from_slice(&v.to_le_bytes());
        }
        b
    }
}

/// Policy, nice and priority of a thread.
pub fn attr(tid: HostPid) -> SysResult<Attr> {
    let mut a = Attr::default();
    // SAFETY: the kernel writes at most the size given.
    let r = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid.0,
            &raw mut a,
            size_of::<Attr>(),
            0,
        )
    };
    if r < 0 {
        Err(SysError::last("sched_getattr", format!("task {}", tid.0)))
    } else {
        Ok(a)
    }
}

/// I/O priority: class in bits 13-15, level below.
pub fn ioprio(tid: HostPid) -> SysResult<u32> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: no memory is involved.
    let r = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.0) };
    if r < 0 {
        Err(SysError::last("ioprio_get", format!("task {}", tid.0)))
    } else {
        Ok(r as u32)
    }
}

/// CPUs the thread may run on, as a bit mask in bytes, without trailing zero bytes.
pub fn affinity(tid: HostPid) -> SysResult<Vec<u8>> {
    let mut b = vec![0u8; 1024];
    // SAFETY: the kernel writes at most the length given.
    let r = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid.0, b.len(), b.as_mut_ptr()) };
    if r < 0 {
        return Err(SysError::last(
            "sched_getaffinity",
            format!("task {}", tid.0),
        ));
    }
    b.truncate(r as usize);
    while b.last() == Some(&0) {
        b.pop();
    }
    Ok(b)
}

/// Head and length of the robust futex list.
pub fn robust_list(tid: HostPid) -> SysResult<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: two words the kernel writes.
    let r = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid.0,
            &raw mut head,
            &raw mut len,
        )
    };
    if r < 0 {
        Err(SysError::last("get_robust_list", format!("task {}", tid.0)))
    } else {
        Ok((head, len))
    }
}

/// A resource limit of a process: (soft, hard).
pub fn rlimit(pid: HostPid, resource: u32) -> SysResult<(u64, u64)> {
    let mut l = [0u64; 2];
    // SAFETY: struct rlimit64 is two words.
    let r = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid.0,
            resource,
            std::ptr::null::<u8>(),
            l.as_mut_ptr(),
        )
    };
    if r < 0 {
        Err(SysError::last("prlimit", format!("task {}", pid.0)))
    } else {
        Ok((l[0], l[1]))
    }
}

fn done(r: i64, call: &'static str, pid: HostPid) -> SysResult<()> {
    if r < 0 {
        Err(SysError::last(call, format!("task {}", pid.0)))
    } else {
        Ok(())
    }
}

/// Sets policy, nice and priority; `attr` as from [`Attr::bytes`].
pub fn set_attr(tid: HostPid, attr: &[u8]) -> SysResult<()> {
    // SAFETY: the structure carries its own size, which is the slice's.
    done(
        unsafe { libc::syscall(libc::SYS_sched_setattr, tid.0, attr.as_ptr(), 0) },
        "sched_setattr",
        tid,
    )
}

/// Sets the CPUs a thread may run on.
pub fn set_affinity(tid: HostPid, mask: &[u8]) -> SysResult<()> {
    // SAFETY: the kernel reads the length given.
    done(
        unsafe {
            libc::syscall(
                libc::SYS_sched_setaffinity,
                tid.0,
                mask.len(),
                mask.as_ptr(),
            )
        },
        "sched_setaffinity",
        tid,
    )
}

/// Sets the I/O priority of a thread.
pub fn set_ioprio(tid: HostPid, prio: u32) -> SysResult<()> {
    // SAFETY: no memory is involved.
    done(
        unsafe { libc::syscall(libc::SYS_ioprio_set, 1, tid.0, prio) },
        "ioprio_set",
        tid,
    )
}

/// Sets a resource limit (soft, hard), unless it is that already.
pub fn set_rlimit(pid: HostPid, resource: u32, want: (u64, u64)) -> SysResult<()> {
    if rlimit(pid, resource)? == want {
        return Ok(());
    }
    let l = [want.0, want.1];
    // SAFETY: struct rlimit64 is two words.
    done(
        unsafe {
            libc::syscall(
                libc::SYS_prlimit64,
                pid.0,
                resource,
                l.as_ptr(),
                std::ptr::null::<u8>(),
            )
        },
        "prlimit",
        pid,
    )
}

/// Nice value of a thread, which it keeps also under a real-time policy (getpriority(2)).
pub fn nice(tid: HostPid) -> SysResult<i32> {
    // SAFETY: no memory is involved. The raw call answers 20 - nice, so that no answer looks like an error.
    let r = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid.0) };
    if r < 0 {
        Err(SysError::last("getpriority", format!("task {}", tid.0)))
    } else {
        Ok(20 - r as i32)
    }
}

/// Sets the nice value of a thread.
pub fn set_nice(tid: HostPid, nice: i32) -> SysResult<()> {
    // SAFETY: no memory is involved.
    done(
        unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, tid.0, nice) },
        "setpriority",
        tid,
    )
}
