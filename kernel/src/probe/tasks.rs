//! Probes of tasks: ptrace, pids, prctl.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::child::{Child, CloneArgs, errno, in_child, sleep_forever};
use super::{Outcome, Tried, failed, ok};
use crate::ids::HostPid;
use crate::names;
use crate::procfs::{ProcDir, TaskState};
use crate::ptrace::Tracee;

/// Seizes and stops a child, asks it, and kills it.
fn with_stopped(body: fn() -> i32, ask: impl FnOnce(&Tracee) -> Tried) -> Tried {
    let child = Child::spawn(CloneArgs::default(), body)?;
    let t = Tracee::seize(child.pid.0, crate::ptrace::EXITKILL)?;
    t.interrupt()?;
    if t.wait_stop()?.is_none() {
        return Err(Outcome::Absent("the probe's child died".into()));
    }
    ask(&t)
}

pub(super) fn seize() -> Tried {
    with_stopped(sleep_forever, |t| {
        t.regs()?;
        Ok(Outcome::OK)
    })
}

pub(super) fn xstate() -> Tried {
    with_stopped(sleep_forever, |t| {
        let x = t.xstate()?;
        // KERNEL: arch/x86/kernel/fpu/regset.c puts XCR0 into the unused bytes 464..472 of the legacy area.
        let xcr0 = x
            .get(464..472)
            .and_then(|b| b.try_into().ok())
            .map(u64::from_le_bytes);
        Ok(Outcome::Present(format!(
            "{} bytes, features {:#x}",
            x.len(),
            xcr0.unwrap_or(3)
        )))
    })
}

pub(super) fn signals() -> Tried {
    with_stopped(sleep_forever, |t| {
        t.sigmask()?;
        t.pending(false)?;
        t.pending(true)?;
        Ok(Outcome::OK)
    })
}

pub(super) fn rseq() -> Tried {
    with_stopped(sleep_forever, |t| {
        t.rseq()?;
        Ok(Outcome::OK)
    })
}

pub(super) fn sud() -> Tried {
    with_stopped(sleep_forever, |t| match t.sud()? {
        Some(c) => {
            t.set_sud(&c)?;
            Ok(Outcome::OK)
        }
        None => Ok(failed(
            "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG",
            Errno::EIO,
        )),
    })
}

pub(super) fn syscall_info() -> Tried {
    with_stopped(sleep_forever, |t| {
        let mut info = [0u8; 128];
        // SAFETY: `info` has the size that is passed.
        let ret = unsafe {
            libc::ptrace(
                libc::PTRACE_GET_SYSCALL_INFO,
                t.tid,
                info.len(),
                info.as_mut_ptr(),
            )
        };
        ok(ret, "PTRACE_GET_SYSCALL_INFO")?;
        Ok(Outcome::OK)
    })
}

/// In the child: a filter that allows everything, then sleep.
fn filtered() -> i32 {
    let mut allow = [libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    let prog = libc::sock_fprog {
        len: 1,
        filter: allow.as_mut_ptr(),
    };
    // SAFETY: `prog` and its one instruction live through the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const prog,
        ) != 0
        {
            return errno();
        }
    }
    sleep_forever()
}

/// Waits until the child has its filter: it sleeps in pause() then.
fn wait_filtered(child: &Child) -> Result<(), Outcome> {
    let dir = ProcDir::open(child.pid)?;
    for _ in 0..2000 {
        let s = dir.status()?;
        if s.seccomp == 2 {
            return Ok(());
        }
        if s.state == TaskState::Zombie {
            return Err(Outcome::Absent(
                "the probe's child could not install a filter".into(),
            ));
        }
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    Err(Outcome::Absent(
        "the probe's child never installed its filter".into(),
    ))
}

pub(super) fn seccomp_filter() -> Tried {
    let child = Child::spawn(CloneArgs::default(), filtered)?;
    wait_filtered(&child)?;
    let t = Tracee::seize(child.pid.0, crate::ptrace::EXITKILL)?;
    t.interrupt()?;
    if t.wait_stop()?.is_none() {
        return Err(Outcome::Absent("the probe's child died".into()));
    }
    match t.seccomp_filter(0)? {
        Some((code, _)) => Ok(Outcome::Present(format!(
            "{} byte filter read back",
            code.len()
        ))),
        None => Ok(failed("PTRACE_SECCOMP_GET_FILTER", Errno::ENOENT)),
    }
}

pub(super) fn suspend_seccomp() -> Tried {
    let child = Child::sleeping()?;
    Tracee::seize(child.pid.0, crate::ptrace::SUSPEND_SECCOMP)?;
    Ok(Outcome::OK)
}

pub(super) fn set_mm_map() -> Tried {
    let mut size = 0u32;
    // SAFETY: PR_SET_MM_MAP_SIZE writes one u32.
    let ret = unsafe { libc::prctl(libc::PR_SET_MM, 15, &raw mut size, 0, 0) };
    ok(ret.into(), "prctl(PR_SET_MM_MAP_SIZE)")?;
    Ok(Outcome::Present(format!("{size} byte structure")))
}

pub(super) fn map_vdso() -> Tried {
    // In a child: should the kernel map a second one, it goes away with it.
    let errno = in_child(|| {
        const ARCH_MAP_VDSO_64: i32 = 0x2003;
        // SAFETY: at worst maps a vDSO at a place of the kernel's choice.
        match unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_MAP_VDSO_64, 0) } {
            -1 => errno(),
            _ => 0,
        }
    })?;
    match Errno::from_raw(errno) {
        // EEXIST: would have, but there is one.
        Errno::EEXIST | Errno::UnknownErrno => Ok(Outcome::OK),
        e => Ok(failed("arch_prctl(ARCH_MAP_VDSO_64)", e)),
    }
}

pub(super) fn robust_list() -> Tried {
    let child = Child::sleeping()?;
    let (mut head, mut len) = (0usize, 0usize);
    // SAFETY: both are places for one word.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            child.pid.0,
            &raw mut head,
            &raw mut len,
        )
    };
    ok(ret, "get_robust_list")?;
    Ok(Outcome::OK)
}

pub(super) fn set_tid() -> Tried {
    let max = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
    let max: i32 = max.and_then(|s| s.trim().parse().ok()).unwrap_or(32768);
    // From the top, where pids are rarely in use; a taken one is skipped.
    for pid in (max - 200..max).rev().filter(|p| *p > 1) {
        let tids = [pid];
        let args = CloneArgs {
            set_tid: tids.as_ptr() as u64,
            set_tid_size: 1,
            ..CloneArgs::default()
        };
        match Child::spawn(args, || 0) {
            Ok(child) => {
                let got = child.pid;
                child.wait()?;
                return match got == HostPid(pid) {
                    true => Ok(Outcome::OK),
                    false => Ok(Outcome::Absent(format!("asked for pid {pid}, got {got}"))),
                };
            }
            Err(e) if e.errno == Errno::EEXIST => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Outcome::Absent("no free pid found near pid_max".into()))
}

pub(super) fn into_cgroup() -> Tried {
    // The C library's constant is an int, into which this bit does not fit.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let dir = super::files::own_cgroup2()?;
    let fd = std::fs::File::open(&dir).map_err(|e| super::files::io("openat", &dir, &e))?;
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        cgroup: fd.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    Child::spawn(args, || 0)?.wait()?;
    Ok(Outcome::OK)
}

pub(super) fn timer_ids() -> Tried {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: i32 = 2;
    // SAFETY: integers only; GET changes nothing.
    let ret = unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) };
    ok(ret.into(), "prctl(PR_TIMER_CREATE_RESTORE_IDS)")?;
    Ok(Outcome::OK)
}

pub(super) fn time_namespace() -> Tried {
    ProcDir::open(HostPid::own())?.ns("time")?;
    Ok(Outcome::OK)
}

pub(super) fn user_namespace() -> Tried {
    ProcDir::open(HostPid::own())?.ns("user")?;
    Ok(Outcome::OK)
}

pub(super) fn cgroup_namespace() -> Tried {
    ProcDir::open(HostPid::own())?.ns("cgroup")?;
    Ok(Outcome::OK)
}

/// In the child: its audit identity set to what it is.
fn same_loginuid() -> i32 {
    // SAFETY: the path ends with NUL, the buffer has the size that is passed.
    unsafe {
        let path = c"/proc/self/loginuid".as_ptr();
        let fd = libc::open(path, libc::O_RDWR);
        let mut text = [0u8; 16];
        let n = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        if fd < 0 || n <= 0 || libc::pwrite(fd, text.as_ptr().cast(), n as usize, 0) != n {
            return errno();
        }
    }
    0
}

pub(super) fn loginuid() -> Tried {
    match in_child(same_loginuid)? {
        0 => Ok(Outcome::OK),
        e => Ok(failed("write of /proc/PID/loginuid", Errno::from_raw(e))),
    }
}

pub(super) fn breakpoints() -> Tried {
    with_stopped(sleep_forever, |t| {
        // KERNEL: u_debugreg[7] of struct user; zero switches nothing on.
        let at = std::mem::offset_of!(libc::user, u_debugreg) + 7 * 8;
        // SAFETY: integers only.
        let ret = unsafe { libc::ptrace(libc::PTRACE_POKEUSER, t.tid, at, 0) };
        ok(ret, "PTRACE_POKEUSER of a debug register")?;
        Ok(Outcome::OK)
    })
}

/// Profiles on top of one another.
pub(super) fn apparmor_stacking() -> Tried {
    let path = "/sys/kernel/security/apparmor/features/domain/stack";
    let text = std::fs::read_to_string(path).map_err(|e| super::files::io("read", path, &e))?;
    match text.trim() {
        "yes" => Ok(Outcome::OK),
        other => Ok(Outcome::Absent(format!("{path} says {other}"))),
    }
}

pub(super) fn proc_children() -> Tried {
    let me = HostPid::own();
    ProcDir::open(me)?.task(me)?.bytes("children")?;
    Ok(Outcome::OK)
}

/// Whether capability `n` is in the effective set of this thread. Says nothing of the initial user namespace: inside a
/// user namespace all are held, and the kernel still refuses what belongs to the host.
pub(super) fn capability(n: u32) -> Tried {
    let tid = HostPid(nix::unistd::gettid().as_raw());
    let status = ProcDir::open(tid)?.status()?;
    if status.cap_eff >> n & 1 == 1 {
        return Ok(Outcome::OK);
    }
    let why = match status.cap_bnd >> n & 1 {
        1 => "not in the effective set",
        _ => "not in the bounding set",
    };
    Ok(Outcome::Denied(format!(
        "{} is {why}",
        names::capability(n)
    )))
}
