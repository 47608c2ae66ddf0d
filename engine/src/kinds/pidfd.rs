//! pidfds: descriptors that stand for a task.
//!
//! **Dump.** fdinfo tells the pid, and -1 when the task was reaped. A task of the tree, be it a zombie, has a pid after the
//! restore; a reaped one can be given a stand-in.
//!
//! **Restore.** pidfd_open(2) when the tasks exist. For a reaped task a process is made that ends at once, and is reaped when
//! all pidfds of it are open: the image groups them by inode number.
//!
//! **What does not come back.** pidfds of tasks outside the tree and of threads are errors. The exit status that PIDFD_GET_INFO
//! tells of a reaped task is that of the stand-in.
//!
//! KERNEL(>=6.9): pidfds have inodes of their own (pidfs), one per task. Before, all share one, so all reaped tasks become
//! one: nobody can tell.
use super::common::{body, is_anon, settle};
use super::{Act, DumpCx, FileKind, PlanCx, Seen, Stage, Stagehand, malformed};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::FdRef;
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_proto::pb;
use std::fmt;

/// The kind.
pub struct PidFd;

const PID_FS_MAGIC: i64 = 0x5049_4446;
/// PIDFD_THREAD, as a flag of the open file.
const THREAD: u32 = libc::O_EXCL as u32;

/// Opens pidfds of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The task as the tree sees it; `None`: one that was reaped.
    pub pid: Option<u32>,
    /// The files.
    pub files: Vec<FdRef>,
}

impl Open {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let open = |pid: HostPid, on: &mut Stagehand| -> Result<()> {
            for f in &self.files {
                on.host.insert(*f, fds::pidfd_open(pid, 0)?);
            }
            Ok(())
        };
        let Some(pid) = self.pid else {
            return fds::with_stand_in(|pid| open(pid, on))?;
        };
        let host = (on.pid)(pid).ok_or_else(|| {
            Error::new(
                "E5121",
                Blame::Image,
                format!("cannot open a pidfd of task {pid}"),
            )
            .why("it does not exist in the restored tree")
            .advice("dump again: the image is not complete")
        })?;
        open(host, on)
    }
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(p) => write!(f, "pidfd_open({p}, 0)")?,
            None => f.write_str("pidfd_open(<a process that ends>, 0)")?,
        }
        for r in &self.files {
            write!(f, " -> file#{}", r.0)?;
        }
        Ok(())
    }
}

impl FileKind for PidFd {
    fn name(&self) -> &'static str {
        "pidfd"
    }
    fn about(&self) -> &'static str {
        "pidfds of tasks of the tree and of reaped ones"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Pidfd
    }
    fn claims(&self, seen: &Seen) -> bool {
        is_anon(seen.link, "pidfd") || seen.fs_type == PID_FS_MAGIC
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let p = seen.info.pidfd()?;
        if seen.flags & THREAD != 0 {
            return Err(seen.unsupported(
                "it stands for a thread (PIDFD_THREAD)",
                "close it before the dump",
            ));
        }
        let nspid = match (p.pid, cx.pids.get(&HostPid(p.pid))) {
            (-1, _) => -1,
            (_, Some(ns)) => *ns as i32,
            (pid, None) => {
                return Err(seen.unsupported(
                    format!("it stands for task {pid}, which is not part of the tree"),
                    "dump that task as well, or close the pidfd",
                ));
            }
        };
        let pidfd = pb::PidfdEntry {
            id,
            ino: seen.stat.st_ino as u32,
            flags: seen.flags & !(libc::O_RDWR as u32),
            nspid,
            fown: seen.fown,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            pidfd: Some(Box::new(pidfd)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::Tasks
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.pidfd, "pidfd")?;
        let file = cx.file(entry.id);
        match u32::try_from(e.nspid) {
            Ok(0) => return Err(malformed(entry, "a pidfd of task 0")),
            Ok(pid) => {
                let files = vec![file];
                let pid = Some(pid);
                cx.act_at(cx.stage(), Act::PidFd(Open { pid, files }), "pidfd");
            }
            Err(_) => {
                let key = ("reaped task", u64::from(e.ino));
                if let std::collections::btree_map::Entry::Vacant(v) = cx.made.entry(key) {
                    let same = |f: &&pb::FileEntry| {
                        f.pidfd
                            .as_ref()
                            .is_some_and(|p| p.nspid < 0 && p.ino == e.ino)
                    };
                    let files: Vec<_> = cx
                        .files
                        .values()
                        .filter(same)
                        .map(|f| FdRef(f.id))
                        .collect();
                    v.insert(files.clone());
                    let act = Act::PidFd(Open { pid: None, files });
                    cx.act_at(cx.stage(), act, "pidfds of a reaped task");
                }
            }
        }
        settle(cx, file, e.flags, &e.fown);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use std::os::fd::{AsFd, OwnedFd};

    fn over(f: &OwnedFd) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        poll(
            &mut [PollFd::new(f.as_fd(), PollFlags::POLLIN)],
            PollTimeout::ZERO,
        )
        .unwrap()
            == 1
    }

    #[test]
    fn pidfds_of_the_living_and_the_reaped_come_back() {
        let own = fds::pidfd_open(HostPid::own(), libc::O_NONBLOCK as u32).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let kid = || fds::pidfd_open(HostPid(child.id() as i32), 0).unwrap();
        let (a, b) = (kid(), kid());
        child.wait().unwrap();
        let d = testing::dump(&PidFd, &[own.as_fd(), a.as_fd(), b.as_fd()]).unwrap();
        let f = d.files(&PidFd);
        assert_eq!(testing::flags(&f[0]), testing::flags(&own));
        assert_eq!(testing::info(&f[0]).pidfd().unwrap().pid, HostPid::own().0);
        for dead in &f[1..] {
            assert_eq!(testing::info(dead).pidfd().unwrap().pid, -1);
            assert!(over(dead));
        }
        assert!(!over(&f[0]));
        let ino = |f: &OwnedFd| fds::fstat(f.as_fd()).unwrap().st_ino;
        assert_eq!(ino(&f[1]), ino(&f[2]));
    }

    #[test]
    fn a_task_outside_the_tree_is_an_error_that_names_it() {
        let one = fds::pidfd_open(HostPid(1), 0).unwrap();
        let e = testing::dump(&PidFd, &[one.as_fd()]).err().unwrap();
        assert!(e.why.contains("task 1, which is not part"), "{e}");
    }
}
