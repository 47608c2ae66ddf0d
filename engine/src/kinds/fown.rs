//! Owners of files: who gets SIGIO (fcntl F_SETOWN, F_SETSIG, O_ASYNC).
//!
//! **What it is.** Every open file has an owner (a thread, a process, a process group, or nobody), a signal number (0 means
//! SIGIO), and the real and effective uid of whoever set the owner; the kernel checks those uids each time it signals
//! (`sigio_perm` in fs/fcntl.c).
//!
//! **Dump.** From our duplicate: F_GETSIG, F_GETOWN_EX, F_GETOWNER_UIDS. F_GETOWN_EX translates the pid into the namespace
//! of the asker; the image holds it as the tree sees it. An O_PATH file has none of this (EBADF).
//!
//! **Restore.** F_SETSIG when the file is opened; the owner at [`Stage::Tasks`], because a pid must exist to become an owner.
//! F_SETOWN records the credentials of the caller, so the engine takes the saved uids for the length of that call. Only real
//! and effective uid change and the saved one stays, so the way back is always open. O_ASYNC is set behind the owner: set by
//! open(2) it would be a flag without effect.
//!
//! **What does not come back.** An owner outside the tree: the number is kept only where the tree has no pid namespace of
//! its own. F_GETOWNER_UIDS needs CONFIG_CHECKPOINT_RESTORE.
use super::{Act, PlanCx, Stage, Stagehand};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::host::Host;
use stasis_kernel::ids::HostPid;
use stasis_kernel::names;
use stasis_proto::pb;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

const F_GETSIG: u64 = 11;
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;
const F_GETOWN_EX: u64 = 16;
const F_GETOWNER_UIDS: u64 = 17;
const F_SETFL: u64 = libc::F_SETFL as u64;
const F_OWNER_TID: u32 = 0;
const F_OWNER_PGRP: u32 = 2;

/// Makes a task, a process or a group the owner of a file, under the credentials the first one had who did that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The file.
    pub file: FdRef,
    /// Pid as the tree sees it.
    pub pid: u32,
    /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
    pub pid_type: u32,
    /// Real uid.
    pub uid: u32,
    /// Effective uid.
    pub euid: u32,
}

/// Reads the owner of an open file. `pids` maps the engine's pids of the tree to those in the tree's own namespace.
///
/// # Errors
/// An owner that has no number in the tree's namespace (E4120); failed fcntl calls.
pub fn read(
    fd: BorrowedFd<'_>,
    flags: u32,
    pids: &BTreeMap<HostPid, u32>,
) -> Result<pb::FownEntry> {
    let mut out = pb::FownEntry::default();
    if flags & libc::O_PATH as u32 != 0 {
        return Ok(out);
    }
    let mut host = Host::default();
    let raw = Arg::Int(fd.as_raw_fd() as u64);
    let mut ask = |cmd: u64, arg: Arg| {
        let c = Call::new(libc::SYS_fcntl, vec![raw.clone(), fcntl(cmd), arg]);
        host.play(&c)
    };
    out.signum = ask(F_GETSIG, Arg::Int(0))?.ret as u32;
    let a = ask(F_GETOWN_EX, Arg::Out(8))?;
    let (pid_type, pid) = (word(a.out(2), 0), word(a.out(2), 4));
    if pid == 0 {
        return Ok(out);
    }
    out.pid_type = pid_type;
    out.pid = match pids.get(&HostPid(pid as i32)) {
        Some(p) => *p,
        // a thread, the group of a dead leader, or somebody outside: the same number if there is only one namespace
        None if pids.iter().all(|(h, n)| h.0 as u32 == *n) => pid,
        None => {
            return Err(Error::new(
                "E4120",
                Blame::Container,
                format!("the owner of a file (F_SETOWN, {} {pid}) is not known inside the tree's pid namespace", owner_type(pid_type)),
            )
            .advice("dump the owner together with the tree"));
        }
    };
    let a = ask(F_GETOWNER_UIDS, Arg::Out(8))?;
    (out.uid, out.euid) = (word(a.out(2), 0), word(a.out(2), 4));
    Ok(out)
}

/// Plans signal, owner and O_ASYNC of a file that is open under this name. `flags` are the open flags in its entry.
pub fn plan(cx: &mut PlanCx, file: FdRef, e: &pb::FownEntry, flags: u32) {
    if flags & libc::O_PATH as u32 != 0 {
        return;
    }
    let call =
        |cmd: u64, arg: Arg| Call::new(libc::SYS_fcntl, vec![Arg::Fd(file), fcntl(cmd), arg]);
    if e.signum != 0 {
        let sig = Arg::Named(e.signum.into(), names::signal(e.signum as i32).into_owned());
        cx.host(call(F_SETSIG, sig), "the signal instead of SIGIO");
    }
    if e.pid != 0 {
        let owner = Owner {
            file,
            pid: e.pid,
            pid_type: e.pid_type,
            uid: e.uid,
            euid: e.euid,
        };
        cx.act_at(Stage::Tasks, Act::Owner(owner), "who gets its signals");
    }
    if flags & libc::O_ASYNC as u32 != 0 {
        let f = Arg::Named(flags.into(), names::open_flags(flags.into()));
        cx.host_at(Stage::Tasks, call(F_SETFL, f), "signals on input");
    }
}

impl Owner {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let lost = |why: &str| {
            Error::new(
                "E5120",
                Blame::Image,
                format!(
                    "cannot give a file the owner {} {}",
                    owner_type(self.pid_type),
                    self.pid
                ),
            )
            .why(why)
            .advice("the owner must be part of the tree")
        };
        let pid =
            (on.pid)(self.pid).ok_or_else(|| lost("it does not exist in the restored tree"))?;
        let mut what = self.pid_type.to_le_bytes().to_vec();
        what.extend_from_slice(&pid.0.to_le_bytes());
        let set = Call::new(
            libc::SYS_fcntl,
            vec![Arg::Fd(self.file), fcntl(F_SETOWN_EX), Arg::In(what)],
        );
        let own = nix::unistd::getresuid()
            .map_err(|e| stasis_kernel::error::SysError::new("getresuid", e, ""))?;
        let (r, e, s) = (
            own.real.as_raw(),
            own.effective.as_raw(),
            own.saved.as_raw(),
        );
        if (r, e) == (self.uid, self.euid) {
            on.host.play(&set)?;
            return Ok(());
        }
        // a change of credentials clears the dumpable flag, and with it our rights on our own /proc/self
        let dumpable = on
            .host
            .play(&Call::new(
                libc::SYS_prctl,
                vec![prctl(libc::PR_GET_DUMPABLE)],
            ))?
            .ret;
        // raw system calls: only this thread changes, and it has no others anyway
        on.host.play(&uids(self.uid, self.euid, u32::MAX))?;
        let done = on.host.play(&set);
        on.host.play(&uids(r, e, s))?;
        on.host.play(&Call::new(
            libc::SYS_prctl,
            vec![prctl(libc::PR_SET_DUMPABLE), Arg::Int(dumpable.min(1))],
        ))?;
        match done {
            Ok(_) => Ok(()),
            Err(e) if e.errno == Errno::ESRCH => Err(lost("no such process")),
            Err(e) => Err(e.into()),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fcntl(file#{}, F_SETOWN_EX, {} {}) as uid {} euid {}",
            self.file.0,
            owner_type(self.pid_type),
            self.pid,
            self.uid,
            self.euid
        )
    }
}

fn uids(r: u32, e: u32, s: u32) -> Call {
    let id = |n: u32| Arg::Int(n.into());
    Call::new(libc::SYS_setresuid, vec![id(r), id(e), id(s)])
}

fn fcntl(cmd: u64) -> Arg {
    Arg::Named(cmd, names::fcntl(cmd).into_owned())
}

fn prctl(op: i32) -> Arg {
    Arg::Named(op as u64, names::prctl(op as u64).into_owned())
}

fn owner_type(t: u32) -> &'static str {
    match t {
        F_OWNER_TID => "thread",
        F_OWNER_PGRP => "process group",
        _ => "process",
    }
}

fn word(b: &[u8], at: usize) -> u32 {
    let mut w = [0; 4];
    w.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(w)
}
