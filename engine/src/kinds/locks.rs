//! File locks: flock(2), record locks of processes (F_SETLK), of open files (F_OFD_SETLK), and leases (F_SETLEASE).
//!
//! **What it is.** Not a kind of open file but a property of one: flock, OFD locks and leases belong to the open file and
//! are shared by all slots that hold it; record locks belong to the process (its descriptor table) and the inode, and go when
//! that process closes any of its files of that inode.
//!
//! **Dump.** The kernel lists in /proc/PID/fdinfo/N exactly the locks that this slot's file holds, or that this process holds
//! through it. The driver shows us every slot; what is met again through another slot is not written again. Locks are only
//! carried with `--file-locks`: somebody outside of the tree may take the lock while the tree is away, so the caller must
//! know. Without the option a held lock is an error that names it.
//!
//! **Restore.** OFD locks, which nobody can tell the owner of, are taken by the engine on the file it has opened
//! ([`Stage::Second`]). All others are taken by the task when its slots are filled ([`TaskStage::Placed`]): record locks and
//! leases because they are its own, flock because /proc/locks shows the pid of the one who took it (by the engine: 0, a dead
//! process). No call waits: a lock that somebody else took meanwhile is an error at once.
//!
//! **What does not come back.** A lease that is being broken (somebody waits in open(2) for it), delegations of an NFS
//! server, the order of those who wait for a lock: they are woken by the freeze and ask again. A write lease needs the file to
//! be open nowhere else.
//!
//! Kernel facts: fs/locks.c show_fd_locks filters by open file and by owner; a lease sets the file's owner (F_SETOWN) to the
//! task that takes it unless there is one, and ours is set before.
use super::{DumpCx, PlanCx, Seen, Stage, TaskStage};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::ids::HostPid;
use stasis_kernel::names;
use stasis_kernel::procfs::{FdInfo, LeaseState, LockKind, LockLine, LockMode};
use stasis_proto::pb;
use std::collections::BTreeMap;

const IMAGE: &str = "filelocks.img";
const POSIX: u32 = 1;
const FLOCK: u32 = 2;
const OFD: u32 = 4;
const LEASE: u32 = 8;
const F_SETLK: u64 = libc::F_SETLK as u64;
const F_OFD_SETLK: u64 = 37;
const F_SETLEASE: u64 = 1024;

/// Writes down the locks of one slot: of task `pid`, slot `slot`, with that slot's own `info`, holding open file `id`. To be
/// called for every slot of every descriptor table, also for files met before. `seen` is the open file (of whichever slot).
///
/// # Errors
/// E4110: a lock is held and `--file-locks` was not given. E4100: a lock that cannot be carried.
pub fn dump(
    cx: &mut DumpCx,
    pid: HostPid,
    slot: i32,
    info: &FdInfo,
    id: u32,
    seen: &Seen,
) -> Result<()> {
    let locks = info.locks()?;
    if locks.is_empty() {
        return Ok(());
    }
    let place = || {
        format!(
            "fd {slot} of task {} ({})",
            pid.0,
            String::from_utf8_lossy(seen.link)
        )
    };
    let of_file = cx.first("locks of file", id.into());
    let of_task = cx.first("locks of task", u64::from(id) << 32 | pid.0 as u64);
    for l in locks {
        let fresh = match l.kind {
            LockKind::Posix => of_task,
            _ => of_file,
        };
        if !fresh {
            continue;
        }
        let shown = show(&l);
        if !cx.options.file_locks {
            return Err(Error::new(
                "E4110",
                Blame::Container,
                format!("cannot dump {}: it holds {shown}", place()),
            )
            .why("file locks are carried only if asked for: others could take them meanwhile")
            .advice("pass --file-locks"));
        }
        let refuse = |why: &str, advice: &str| {
            Err(Error::new(
                "E4100",
                Blame::Container,
                format!("cannot dump {}: it holds {shown}", place()),
            )
            .why(why)
            .advice(advice))
        };
        let flag = match l.kind {
            LockKind::Flock => FLOCK,
            LockKind::Posix => POSIX,
            LockKind::Ofd => OFD,
            LockKind::Lease if l.lease == Some(LeaseState::Active) => LEASE,
            LockKind::Lease => {
                return refuse(
                    "the lease is being broken",
                    "try again when it was given up",
                );
            }
            LockKind::Delegation => {
                return refuse(
                    "delegations cannot be carried",
                    "give it up before the dump",
                );
            }
        };
        let Some(owner) = cx.pids.get(&pid) else {
            return Err(Error::bug(format!("task {} has no pid of its own", pid.0)));
        };
        let record = pb::FileLockEntry {
            flag,
            r#type: match l.mode {
                LockMode::Read => libc::F_RDLCK,
                LockMode::Write => libc::F_WRLCK,
                LockMode::Unlock => libc::F_UNLCK,
            } as u32,
            pid: *owner as i32,
            fd: slot,
            start: l.start,
            len: l.end.map_or(0, |e| e - l.start + 1),
        };
        cx.put(IMAGE, &record, &[])?;
    }
    Ok(())
}

/// Plans all locks of the image.
///
/// # Errors
/// E5110: a lock of a slot that is not in the image, or of unknown type.
pub fn plan(cx: &mut PlanCx) -> Result<()> {
    let all = cx.image::<pb::FileLockEntry>(IMAGE)?;
    let slots: BTreeMap<(u32, i32), u32> = match all.is_empty() {
        true => BTreeMap::new(),
        false => cx
            .holders
            .iter()
            .flat_map(|(id, h)| h.iter().map(|s| (*s, *id)))
            .collect(),
    };
    for l in all.iter() {
        let bad = |why: &str| {
            Error::new(
                "E5110",
                Blame::Image,
                format!("a lock of fd {} of task {} in {IMAGE}", l.fd, l.pid),
            )
            .why(why)
            .advice("dump again: the image is damaged")
        };
        let Some(id) = slots.get(&(l.pid as u32, l.fd)) else {
            return Err(bad("the task has no such file"));
        };
        let mode = match l.r#type as i32 {
            libc::F_RDLCK => "F_RDLCK",
            libc::F_WRLCK => "F_WRLCK",
            4..=6 if l.flag == LEASE => {
                return Err(bad("the lease was being broken, which cannot be restored"));
            }
            _ => return Err(bad("its type is neither F_RDLCK nor F_WRLCK")),
        };
        let file = Arg::Fd(cx.file(*id));
        let slot = Arg::Int(l.fd as u64);
        match l.flag {
            FLOCK => {
                let op = match l.r#type as i32 {
                    libc::F_RDLCK => Arg::Named(5, "LOCK_SH|LOCK_NB".into()),
                    _ => Arg::Named(6, "LOCK_EX|LOCK_NB".into()),
                };
                let c = Call::new(libc::SYS_flock, vec![slot, op]);
                cx.task(l.pid as u32, TaskStage::Placed, c);
            }
            OFD => {
                let args = vec![file, fcntl(F_OFD_SETLK), record(l)];
                let c = Call::new(libc::SYS_fcntl, args);
                cx.host_at(Stage::Second, c, "its OFD lock");
            }
            POSIX => {
                let args = vec![slot, fcntl(F_SETLK), record(l)];
                let c = Call::new(libc::SYS_fcntl, args);
                cx.task(l.pid as u32, TaskStage::Placed, c);
            }
            LEASE => {
                let args = vec![
                    slot,
                    fcntl(F_SETLEASE),
                    Arg::Named(l.r#type.into(), mode.into()),
                ];
                let c = Call::new(libc::SYS_fcntl, args);
                cx.task(l.pid as u32, TaskStage::Placed, c);
            }
            _ => return Err(bad("it is neither flock, record lock, OFD lock nor lease")),
        }
    }
    Ok(())
}

/// `struct flock`: type, whence (SEEK_SET), 4 bytes of padding, start, length, pid (0 as OFD locks want it), padding.
fn record(l: &pb::FileLockEntry) -> Arg {
    let mut b = Vec::with_capacity(32);
    b.extend_from_slice(&(l.r#type as u16).to_le_bytes());
    b.extend_from_slice(&[0; 6]);
    b.extend_from_slice(&l.start.to_le_bytes());
    b.extend_from_slice(&l.len.to_le_bytes());
    b.extend_from_slice(&[0; 8]);
    Arg::In(b)
}

fn fcntl(cmd: u64) -> Arg {
    Arg::Named(cmd, names::fcntl(cmd))
}

fn show(l: &LockLine) -> String {
    let mode = match l.mode {
        LockMode::Read => "shared",
        LockMode::Write => "exclusive",
        LockMode::Unlock => "released",
    };
    let range = || match l.end {
        None if l.start == 0 => "of the whole file".to_owned(),
        None => format!("of bytes {} to the end", l.start),
        Some(e) => format!("of bytes {} to {e}", l.start),
    };
    match l.kind {
        LockKind::Flock => format!("an {mode} flock").replace("an shared", "a shared"),
        LockKind::Posix => format!("a record lock (F_SETLK, {mode}) {}", range()),
        LockKind::Ofd => format!("an OFD lock (F_OFD_SETLK, {mode}) {}", range()),
        LockKind::Lease => match l.mode {
            LockMode::Write => "a write lease".to_owned(),
            _ => "a read lease".to_owned(),
        },
        LockKind::Delegation => "a delegation".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{self, dump_with, info};
    use crate::kinds::{FileKind, regular::Regular};
    use nix::fcntl::{FcntlArg, Flock, FlockArg};
    use stasis_kernel::call::FdRef;
    use stasis_kernel::host::Host;
    use stasis_proto::ImageDir;
    use std::fs::File;
    use std::os::fd::{AsFd, AsRawFd};

    fn flock(kind: i32, start: i64, len: i64) -> libc::flock {
        libc::flock {
            l_type: kind as i16,
            l_whence: 0,
            l_start: start,
            l_len: len,
            l_pid: 0,
        }
    }

    /// Three files with one lock of each lasting kind; then dumped, closed, and restored in their slots.
    #[test]
    fn locks_come_back_with_their_owners_and_ranges() {
        let tmp = tempfile::tempdir().unwrap();
        let make = |n: &str| {
            let o = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(tmp.path().join(n));
            o.unwrap()
        };
        let (a, b, c, d) = (make("a"), make("b"), make("c"), make("d"));
        let a = Flock::lock(a, FlockArg::LockSharedNonblock).unwrap();
        nix::fcntl::fcntl(&b, FcntlArg::F_OFD_SETLK(&flock(libc::F_WRLCK, 5, 10))).unwrap();
        nix::fcntl::fcntl(&c, FcntlArg::F_SETLK(&flock(libc::F_RDLCK, 7, 0))).unwrap();
        let lease = vec![
            Arg::Int(d.as_raw_fd() as u64),
            fcntl(F_SETLEASE),
            Arg::Int(1),
        ];
        Host::default()
            .play(&Call::new(libc::SYS_fcntl, lease))
            .unwrap();
        let fds = [a.as_fd(), b.as_fd(), c.as_fd(), d.as_fd()];
        let held: Vec<_> = fds.iter().map(|f| info(f).locks().unwrap()).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1]);

        let mut dumped = dump_with(&Regular, &fds, &[], |o| o.file_locks = true).unwrap();
        let dir = ImageDir::open(dumped.tmp.path()).unwrap();
        let me = HostPid::own();
        let pids = BTreeMap::from([(me, me.0 as u32)]);
        let mut cx = DumpCx::new(&dumped.options, &dir, &pids);
        let all = |cx: &mut DumpCx| {
            for (id, fd) in (1..).zip(&fds) {
                // twice: a second slot of the same file adds nothing
                for _ in 0..2 {
                    testing::see(fd, |s| dump(cx, me, s.slot, s.info, id, s))?;
                }
            }
            Ok::<_, Error>(())
        };
        all(&mut cx).unwrap();
        cx.finish_writers().unwrap();
        let records: Vec<pb::FileLockEntry> = dir.read_all(IMAGE).unwrap();
        let short: Vec<_> = records
            .iter()
            .map(|r| (r.flag, r.r#type, r.start, r.len))
            .collect();
        assert_eq!(
            short,
            [(2, 0, 0, 0), (4, 1, 5, 10), (1, 0, 7, 0), (8, 1, 0, 0)]
        );

        dumped.options.file_locks = false;
        let mut without = DumpCx::new(&dumped.options, &dir, &pids);
        let e = all(&mut without).unwrap_err().to_string();
        assert!(
            e.contains("E4110") && e.contains("a shared flock") && e.contains("--file-locks"),
            "{e}"
        );

        // the new files share nothing with the old ones; those must go first, and without closing what now has their slots
        let slots: Vec<_> = fds.iter().map(|f| f.as_raw_fd()).collect();
        drop((b, c, d));
        drop(a.unlock().unwrap());
        let mut plan = PlanCx::new(&dumped.options, &dir, &dumped.files, &dumped.holders);
        for e in dumped.files.values() {
            Regular.plan(e, &mut plan).unwrap();
        }
        super::plan(&mut plan).unwrap();
        plan.host.sort_by_key(|h| h.stage);
        let mut host = Host::default();
        let mut on = crate::kinds::Stagehand {
            host: &mut host,
            dir: &dir,
            pid: &|p| Some(HostPid(p as i32)),
        };
        for crate::kinds::HostAct { act, .. } in &plan.host {
            act.perform(&mut on).unwrap();
        }
        let fresh: Vec<_> = (1..5).map(|i| host.take(FdRef(i)).unwrap()).collect();
        // a lease also sets O_ASYNC, which has a later row that then changes nothing
        for (_, _, call) in plan.task.iter().filter(|t| t.1 == TaskStage::Placed) {
            // a row of a task names its slot; ours is wherever the file is
            let mut call = call.clone();
            let Arg::Int(slot) = call.args[0] else {
                panic!("{call}")
            };
            let at = slots.iter().position(|s| *s as u64 == slot).unwrap();
            call.args[0] = Arg::Int(fresh[at].as_raw_fd() as u64);
            Host::default().play(&call).unwrap();
        }
        let now: Vec<_> = fresh.iter().map(|f| info(f).locks().unwrap()).collect();
        assert_eq!(now, held);
    }

    #[test]
    fn locks_of_unknown_slots_and_types_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let options = crate::Options::new(tmp.path());
        let (files, holders) = (BTreeMap::new(), BTreeMap::from([(9, vec![(1, 3)])]));
        let good = pb::FileLockEntry {
            flag: FLOCK,
            r#type: 1,
            pid: 1,
            fd: 3,
            ..Default::default()
        };
        let go = |l: pb::FileLockEntry| {
            dir.write_one(IMAGE, &l).unwrap();
            let mut cx = PlanCx::new(&options, &dir, &files, &holders);
            plan(&mut cx).map(|()| cx.host.len() + cx.task.len())
        };
        assert_eq!(go(good).unwrap(), 1);
        assert!(go(pb::FileLockEntry { fd: 4, ..good }).is_err());
        assert!(go(pb::FileLockEntry { r#type: 2, ..good }).is_err());
        assert!(go(pb::FileLockEntry { flag: 3, ..good }).is_err());
        let breaking = go(pb::FileLockEntry {
            flag: LEASE,
            r#type: 5,
            ..good
        });
        assert!(breaking.unwrap_err().to_string().contains("being broken"));
    }
}
