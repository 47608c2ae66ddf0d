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
//! and effective uid change and the saved one stays, so the way back is always open. O_ASYNC is set last, by a task that has
//! the file ([`TaskStage::Arm`]): the kernel puts the number of the slot through which that was done into each signal
//! (`si_fd`). Set by open(2) it would be a flag without effect.
//!
//! **What does not come back.** Which of several slots of a file that number was: it becomes the first one's. An owner outside the tree: the number is kept only where the tree has no pid namespace of
//! its own. F_GETOWNER_UIDS needs CONFIG_CHECKPOINT_RESTORE.
use super::{Act, PlanCx, Stage, Stagehand, TaskStage};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::ids::HostPid;
use stasis_kernel::names;
use stasis_proto::pb;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;

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
    // thousands of files are asked: no rows
    let (signal, pid_type, pid) = fds::owner(fd)?;
    out.signum = signal as u32;
    let (pid_type, pid) = (pid_type as u32, pid as u32);
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
    let row = vec![
        Arg::Int(fd.as_raw_fd() as u64),
        fcntl(F_GETOWNER_UIDS),
        Arg::Out(8),
    ];
    let a = Host::default().play(&Call::new(libc::SYS_fcntl, row))?;
    (out.uid, out.euid) = (word(a.out(2), 0), word(a.out(2), 4));
    Ok(out)
}

/// Plans signal, owner and O_ASYNC of a file that is open under this name. `flags` are the open flags in its entry.
pub fn plan(cx: &mut PlanCx, file: FdRef, e: &pb::FownEntry, flags: u32) {
    plan_at(Stage::Tasks, cx, file, e, flags);
}

/// The same; the owner comes at this stage, not earlier than [`Stage::Tasks`].
pub fn plan_at(stage: Stage, cx: &mut PlanCx, file: FdRef, e: &pb::FownEntry, flags: u32) {
    if flags & libc::O_PATH as u32 != 0 {
        return;
    }
    let call =
        |cmd: u64, arg: Arg| Call::new(libc::SYS_fcntl, vec![Arg::Fd(file), fcntl(cmd), arg]);
    if e.signum != 0 {
        let sig = Arg::Named(e.signum.into(), names::signal(e.signum as i32));
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
        cx.act_at(stage, Act::Owner(owner), "who gets its signals");
    }
    if flags & libc::O_ASYNC as u32 != 0
        && let Some((pid, slot)) = cx.holders.get(&file.0).and_then(|h| h.first())
    {
        let f = Arg::OpenFlags(flags.into());
        let args = vec![Arg::Int(*slot as u64), fcntl(F_SETFL), f];
        cx.task(*pid, TaskStage::Arm, Call::new(libc::SYS_fcntl, args));
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
    Arg::Named(cmd, names::fcntl(cmd))
}

fn prctl(op: i32) -> Arg {
    Arg::Named(op as u64, names::prctl(op as u64))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::regular::Regular;
    use crate::kinds::testing::dump;
    use stasis_proto::ImageDir;
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};

    fn set(f: &File, cmd: u64, arg: Arg) {
        let c = Call::new(
            libc::SYS_fcntl,
            vec![Arg::Int(f.as_raw_fd() as u64), fcntl(cmd), arg],
        );
        Host::default().play(&c).unwrap();
    }

    fn owner(kind: u32, pid: i32) -> Arg {
        Arg::In([kind.to_le_bytes(), pid.to_le_bytes()].concat())
    }

    #[test]
    fn owner_signal_and_uids_come_back_and_ours_stay() {
        let me = HostPid::own().0;
        let group = nix::unistd::getpgrp().as_raw();
        // a device that knows O_ASYNC
        let random = || {
            File::options()
                .read(true)
                .write(true)
                .open("/dev/random")
                .unwrap()
        };
        let (a, b, c) = (random(), random(), random());
        set(&a, F_SETSIG, Arg::Int(40));
        set(&a, F_SETOWN_EX, owner(1, me));
        set(&b, F_SETOWN_EX, owner(F_OWNER_PGRP, group));
        set(&c, F_SETSIG, Arg::Int(35));
        set(&c, F_SETFL, Arg::Int(libc::O_ASYNC as u64));
        let all: Vec<OwnedFd> = vec![a.into(), b.into(), c.into()];
        let fds: Vec<_> = all.iter().map(|f| f.as_fd()).collect();
        let mut d = dump(&Regular, &fds).unwrap();
        let saved = |d: &crate::kinds::testing::Dumped| {
            let of = |id| d.files[&id].reg.as_ref().unwrap().fown;
            [of(1), of(2), of(3)]
        };
        let want = saved(&d);
        let short = want.each_ref().map(|f| (f.signum, f.pid_type, f.pid));
        assert_eq!(
            short,
            [(40, 1, me as u32), (0, 2, group as u32), (35, 0, 0)]
        );
        // as if an unprivileged process had done it
        let unprivileged = d.files.get_mut(&1).unwrap().reg.as_mut().unwrap();
        (unprivileged.fown.uid, unprivileged.fown.euid) = (1234, 1235);
        let want = saved(&d);
        let pids = BTreeMap::new();
        let planned = d.restore(&Regular).unwrap();
        let [(pid, stage, call)] = &planned.task[..] else {
            panic!("one row for the task: {:?}", planned.task)
        };
        // the slot it had: the third file's
        let slot = Arg::Int(all[2].as_raw_fd() as u64);
        assert_eq!((*pid, *stage), (me as u32, TaskStage::Arm));
        assert_eq!(
            (&call.args[0], call.args[1].to_string()),
            (&slot, "F_SETFL".into())
        );
        let new = d.files(&Regular);
        for (f, w) in new.iter().zip(&want) {
            let fl = crate::kinds::testing::flags(f);
            assert_eq!(read(f.as_fd(), fl, &pids).unwrap(), *w);
        }
        let ids = nix::unistd::getresuid().unwrap();
        assert_eq!((ids.real.as_raw(), ids.effective.as_raw()), (0, 0));
        assert_eq!(nix::sys::prctl::get_dumpable(), Ok(true));
    }

    #[test]
    fn an_owner_that_is_not_there_is_an_error_and_our_uids_stay() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let mut host = Host::default();
        host.insert(FdRef(1), File::open("/dev/random").unwrap().into());
        let mut go = |pid: &dyn Fn(u32) -> Option<HostPid>| {
            let owner = Owner {
                file: FdRef(1),
                pid: 4242,
                pid_type: 1,
                uid: 5,
                euid: 5,
            };
            let mut on = Stagehand {
                host: &mut host,
                dir: &dir,
                pid,
            };
            owner.perform(&mut on).unwrap_err().to_string()
        };
        assert!(go(&|_| None).contains("process 4242"));
        // beyond the largest pid
        assert!(go(&|_| Some(HostPid(i32::MAX))).contains("no such process"));
        assert!(nix::unistd::geteuid().is_root());
    }

    #[test]
    fn an_owner_outside_of_the_trees_namespace_is_an_error() {
        let f = File::open("/dev/random").unwrap();
        set(&f, F_SETOWN_EX, owner(1, HostPid::own().0));
        let pids = BTreeMap::from([(HostPid(i32::MAX), 1)]);
        let e = read(f.as_fd(), 0, &pids).unwrap_err();
        assert_eq!(e.code, "E4120");
        let own = BTreeMap::from([(HostPid::own(), 7)]);
        assert_eq!(read(f.as_fd(), 0, &own).unwrap().pid, 7);
        assert_eq!(
            read(f.as_fd(), libc::O_PATH as u32, &own).unwrap(),
            pb::FownEntry::default()
        );
    }
}
