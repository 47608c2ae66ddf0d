//! For the kinds' unit tests: real files of this process dumped to a folder, and planned and played from it.
#![allow(missing_docs)]
use super::{Act, DumpCx, FileKind, HostAct, PlanCx, Seen, Stage, Stagehand, TaskStage, Undo};
use crate::options::Options;
use stasis_kernel::host::Host;
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{FdInfo, parse_fdinfo};
use stasis_proto::{ImageDir, pb};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// fdinfo of one of our descriptors.
pub fn info(fd: impl AsFd) -> FdInfo {
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    parse_fdinfo(&path, &std::fs::read(&path).unwrap()).unwrap()
}

/// F_GETFL.
pub fn flags(fd: impl AsFd) -> u32 {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).unwrap() as u32
}

/// Looks at one of our descriptors as the dump looks at a task's.
pub fn see<R>(fd: impl AsFd, f: impl FnOnce(&Seen) -> R) -> R {
    let fd = fd.as_fd();
    let slot = fd.as_raw_fd();
    let link = std::fs::read_link(format!("/proc/self/fd/{slot}")).unwrap();
    let link = link.into_os_string().into_vec();
    f(&Seen {
        pid: HostPid(std::process::id() as i32),
        slot,
        fd,
        stat: stasis_kernel::fds::fstat(fd).unwrap(),
        fs_type: nix::sys::statfs::fstatfs(fd).map_or(0, |s| s.filesystem_type().0),
        link: &link,
        info: &info(fd),
        flags: flags(fd),
        fown: super::fown::read(fd, flags(fd), &BTreeMap::new()).unwrap(),
        options: None,
    })
}

/// A dump of some of our descriptors; ids are 1, 2, ... in their order.
pub struct Dumped {
    pub tmp: tempfile::TempDir,
    pub files: BTreeMap<u32, pb::FileEntry>,
    pub holders: BTreeMap<u32, Vec<(u32, i32)>>,
    pub warnings: Vec<String>,
    pub options: Options,
    pub undo: Vec<Undo>,
}

/// Dumps these descriptors, each an open file of its own, all of this kind.
pub fn dump(kind: &dyn FileKind, fds: &[BorrowedFd]) -> crate::Result<Dumped> {
    dump_beside(kind, fds, &[])
}

/// The same; `others` are open files of other kinds, which get the ids behind.
pub fn dump_beside(
    kind: &dyn FileKind,
    fds: &[BorrowedFd],
    others: &[BorrowedFd],
) -> crate::Result<Dumped> {
    dump_with(kind, fds, others, |_| {})
}

/// The same with other options.
pub fn dump_with(
    kind: &dyn FileKind,
    fds: &[BorrowedFd],
    others: &[BorrowedFd],
    set: impl FnOnce(&mut Options),
) -> crate::Result<Dumped> {
    let tmp = tempfile::tempdir().unwrap();
    let mut options = Options::new(tmp.path());
    set(&mut options);
    let dir = ImageDir::create(tmp.path()).unwrap();
    let me = HostPid(std::process::id() as i32);
    let pids = BTreeMap::from([(me, me.0 as u32)]);
    let all: Vec<_> = fds.iter().chain(others).map(|f| f.as_raw_fd()).collect();
    let ids = || (1u32..).zip(&all);
    let mut cx = DumpCx::new(&options, &dir, &pids);
    cx.slots = ids().map(|(id, s)| ((me, *s), id)).collect();
    cx.last_id = all.len() as u32;
    let mut files = BTreeMap::new();
    for (id, fd) in (1..).zip(fds) {
        let e = see(fd, |s| {
            assert!(
                kind.claims(s),
                "{} does not claim {}",
                kind.name(),
                s.place()
            );
            kind.dump(s, id, &mut cx)
        })?;
        assert_eq!((e.id, e.r#type), (id, kind.fd_type() as i32));
        cx.entries.push(e);
    }
    super::finish(&mut cx)?;
    for e in std::mem::take(&mut cx.entries) {
        files.insert(e.id, e);
    }
    cx.finish_writers()?;
    let undo = std::mem::take(&mut cx.undo);
    let warnings = std::mem::take(&mut cx.warnings);
    let holders = ids().map(|(id, s)| (id, vec![(me.0 as u32, *s)])).collect();
    Ok(Dumped {
        tmp,
        files,
        holders,
        warnings,
        options,
        undo,
    })
}

/// What a plan brought, before tasks have it.
pub struct Planned {
    pub host: Host,
    pub task: Vec<(u32, TaskStage, stasis_kernel::call::Call)>,
    pub lent: Vec<(u32, i32, stasis_kernel::call::FdRef)>,
    pub warnings: Vec<String>,
    pub last: Vec<Act>,
}

impl Dumped {
    /// Plans the entries of this kind and plays the host rows.
    pub fn restore(&self, kind: &dyn FileKind) -> crate::Result<Planned> {
        let dir = ImageDir::open(self.tmp.path()).unwrap();
        let mut cx = PlanCx::new(&self.options, &dir, &self.files, &self.holders);
        for e in self.files.values() {
            if e.r#type == kind.fd_type() as i32 {
                cx.enter(kind.stage());
                if !super::inherit::plan(e, &mut cx)? {
                    kind.plan(e, &mut cx)?;
                }
            }
        }
        let mut host = Host::default();
        for (f, number) in &cx.given {
            let from = stasis_kernel::call::Arg::Int(*number as u64);
            host.play(&super::common::dup_of(from).binds(*f)).unwrap();
        }
        let mut on = Stagehand {
            host: &mut host,
            dir: &dir,
            pid: &|p| Some(HostPid(p as i32)),
        };
        for stage in [
            Stage::First,
            Stage::Second,
            Stage::Tasks,
            Stage::Queues,
            Stage::Mapped,
        ] {
            for HostAct { act, why, .. } in cx.host.iter().filter(|h| h.stage == stage) {
                act.perform(&mut on)
                    .map_err(|e| e.on(format!("{act} ({why})")))?;
            }
        }
        let last = cx.host.iter().filter(|h| h.stage == Stage::Last);
        cx.task.sort_by_key(|t| t.1);
        let last = last.map(|h| h.act.clone()).collect();
        Ok(Planned {
            host,
            last,
            task: cx.task,
            lent: cx.lent,
            warnings: cx.warnings,
        })
    }
    /// Files of the entries that the caller brings, by the keys in the options.
    pub fn inherited(&self) -> Vec<OwnedFd> {
        let dir = ImageDir::open(self.tmp.path()).unwrap();
        let mut cx = PlanCx::new(&self.options, &dir, &self.files, &self.holders);
        let mut taken = Vec::new();
        for e in self.files.values() {
            if super::inherit::plan(e, &mut cx).unwrap() {
                taken.push(stasis_kernel::call::FdRef(e.id));
            }
        }
        let mut host = Host::default();
        for (f, n) in &cx.given {
            host.insert(*f, crate::inherited::descriptor(*n).unwrap());
        }
        let mut on = Stagehand {
            host: &mut host,
            dir: &dir,
            pid: &|p| Some(HostPid(p as i32)),
        };
        for HostAct { act, .. } in &cx.host {
            act.perform(&mut on).unwrap();
        }
        taken.iter().map(|f| host.take(*f).unwrap()).collect()
    }
    /// Restores, closes what was temporary, and gives the files in the order of the dump.
    pub fn files(&self, kind: &dyn FileKind) -> Vec<OwnedFd> {
        let mut p = self.restore(kind).unwrap_or_else(|e| panic!("{e}"));
        let ours = self
            .files
            .values()
            .filter(|e| e.r#type == kind.fd_type() as i32 && self.holders.contains_key(&e.id));
        ours.map(|e| {
            p.host
                .take(stasis_kernel::call::FdRef(e.id))
                .unwrap_or_else(|| panic!("file {} was not opened", e.id))
        })
        .collect()
    }
    /// Restores, puts each file in the slot of its original (as the restored task would have it) and plays the rows
    /// for tasks here, in this process.
    pub fn in_place(&self, kind: &dyn FileKind) {
        let mut p = self.restore(kind).unwrap_or_else(|e| panic!("{e}"));
        assert!(p.lent.is_empty(), "cannot lend to this process");
        for (id, holders) in &self.holders {
            if let Some(fd) = p.host.take(stasis_kernel::call::FdRef(*id)) {
                for (_, slot) in holders {
                    // dup2 replaces the original in one step, so no other thread gets the number
                    use stasis_kernel::call::{Arg, Call};
                    let row = Call::new(
                        libc::SYS_dup3,
                        vec![
                            Arg::Int(fd.as_raw_fd() as u64),
                            Arg::Int(*slot as u64),
                            Arg::Int(libc::O_CLOEXEC as u64),
                        ],
                    );
                    Host::default().play(&row).unwrap();
                }
            }
        }
        for (_, _, c) in &p.task {
            Host::default().play(c).unwrap();
        }
    }
}
