//! Descriptors: every open file is looked at once, through a duplicate the engine holds.
use super::Dumping;
use super::backing::Shared;
use super::task::Task;
use crate::error::{Error, Result};
use crate::kinds::{
    self, DumpCx, FileKind, IN_FLIGHT, Seen, fown, locks, regular, unixsk, unixsk_diag,
};
use stasis_kernel::census::{Census, Entry};
use stasis_kernel::fds::{self, Kcmp};
use stasis_kernel::ids::{HostPid, RemoteFd};
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::{FdInfo, ProcDir};
use stasis_proto::{Kind, pb};
use std::cmp::Ordering;
use std::collections::btree_map;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// An open file met in some slot.
struct Met {
    pid: HostPid,
    slot: i32,
    fd: OwnedFd,
    ino: u64,
    kind: &'static dyn FileKind,
    id: u32,
    /// What was seen of it, if it is described late.
    looks: Option<Box<Looks>>,
}

/// What was seen of an open file.
struct Looks {
    stat: libc::stat,
    fs_type: i64,
    link: Vec<u8>,
    info: FdInfo,
}

impl Met {
    fn seen<'a>(&'a self, cx: &DumpCx<'_>, l: &'a Looks) -> Result<Seen<'a>> {
        seen(cx, self.pid, self.slot, &self.fd, l, None)
    }
}

/// All open files of the tree so far.
#[derive(Default)]
pub struct OpenFiles {
    /// Tells all files of a task at once, if it is worth it and possible.
    census: Option<Census>,
    met: Vec<Met>,
    /// By device and inode, the open files of it, in the order of kcmp(KCMP_FILE).
    by_inode: BTreeMap<(u64, u64), Vec<usize>>,
    /// Magic numbers of file systems, by mount.
    fs_types: BTreeMap<i32, i64>,
    tables: BTreeSet<u32>,
    late: Vec<usize>,
    /// Shared anonymous memory by inode: any file of it, and the end of what is mapped of it.
    pub(super) shared: BTreeMap<u64, (Shared, u64)>,
}

impl OpenFiles {
    /// None yet.
    pub fn with(census: Option<Census>) -> Self {
        Self {
            census,
            ..Self::default()
        }
    }
    /// The open files of a task by their slots; `None`: they must be asked for one by one.
    fn counted(&self, t: &Task) -> Option<Vec<Entry>> {
        let all = self.census.as_ref()?.of(t.pid).ok()?;
        let count = t.proc.count_of_fds().ok()?;
        (all.len() as u64 == count).then_some(all)
    }
}

impl Dumping<'_> {
    /// Describes the descriptor table of a task, once per table.
    pub fn descriptors(&mut self, t: &Task, files_id: u32) -> Result<()> {
        if !self.files.tables.insert(files_id) {
            return Ok(());
        }
        let pidfd = fds::pidfd_open(t.pid, 0)?;
        let mut table = Vec::new();
        if let Some(all) = self.files.counted(t) {
            for e in all {
                crate::kill_point();
                table.push(self.slot(t, pidfd.as_fd(), RemoteFd(e.slot), Some(&e))?);
            }
        } else {
            for slot in t.proc.fds()? {
                crate::kill_point();
                table.push(self.slot(t, pidfd.as_fd(), slot, None)?);
            }
        }
        self.backlog.all(Kind::Fdinfo, files_id, table)
    }
    /// Describes what a slot holds, if that is new, and the locks it has. `told`: what is known of it.
    pub fn slot(
        &mut self,
        t: &Task,
        pidfd: BorrowedFd<'_>,
        slot: RemoteFd,
        told: Option<&Entry>,
    ) -> Result<pb::FdinfoEntry> {
        let info = match told {
            Some(e) if !e.more => FdInfo::of(e),
            _ => t.proc.fdinfo(slot)?,
        };
        let cloexec = info.cloexec();
        let fd = fds::pidfd_getfd(pidfd, slot)?;
        let locked = info.get("lock").is_some().then(|| info.clone());
        let link = || match told {
            Some(e) if !e.link.is_empty() => Ok(e.link.clone()),
            _ => Ok(t.proc.fd_link(slot)?),
        };
        let RemoteFd(slot) = slot;
        let i = self.meet(t.pid, slot, (fd, told), info, link)?;
        let m = &self.files.met[i];
        if let Some(info) = locked {
            let looks = Looks {
                stat: fds::fstat(m.fd.as_fd())?,
                fs_type: fs_type(&m.fd),
                link: t.proc.fd_link(RemoteFd(slot))?,
                info,
            };
            let info = &looks.info;
            let seen = m.seen(&self.cx, &looks)?;
            locks::dump(&mut self.cx, t.pid, slot, info, m.id, &seen).map_err(|e| e.of("locks"))?;
        }
        self.cx.slots.insert((t.pid, slot), m.id);
        let m = &self.files.met[i];
        Ok(pb::FdinfoEntry {
            id: m.id,
            flags: u32::from(cloexec),
            r#type: m.kind.fd_type() as i32,
            fd: slot as u32,
            xattr_security_selinux: None,
        })
    }
    /// The open file behind a slot: one met before, or a new one.
    fn meet(
        &mut self,
        pid: HostPid,
        slot: i32,
        (fd, told): (OwnedFd, Option<&Entry>),
        info: FdInfo,
        link: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<usize> {
        let stat = fds::fstat(fd.as_fd())?;
        let same = self
            .files
            .by_inode
            .entry((stat.st_dev, stat.st_ino))
            .or_default();
        let mut failed = None;
        let place = same.binary_search_by(|i| {
            let (other, own) = (&self.files.met[*i], HostPid::own());
            fds::kcmp(
                own,
                own,
                Kcmp::File(RemoteFd(other.fd.as_raw_fd()), RemoteFd(fd.as_raw_fd())),
            )
            .unwrap_or_else(|e| {
                failed.get_or_insert(e);
                Ordering::Equal
            })
        });
        if let Some(e) = failed {
            return Err(e.into());
        }
        match place {
            Ok(at) => Ok(same[at]),
            Err(at) => {
                let i = self.files.met.len();
                same.insert(at, i);
                self.new_file(pid, slot, (fd, told), stat, link()?, info)?;
                Ok(i)
            }
        }
    }
    fn new_file(
        &mut self,
        pid: HostPid,
        slot: i32,
        (fd, told): (OwnedFd, Option<&Entry>),
        stat: libc::stat,
        link: Vec<u8>,
        info: FdInfo,
    ) -> Result<()> {
        let id = self.cx.new_id();
        let fs_type = *match self.files.fs_types.entry(info.mnt_id) {
            btree_map::Entry::Occupied(e) => e.into_mut(),
            btree_map::Entry::Vacant(e) => e.insert(fs_type(&fd)),
        };
        let looks = Looks {
            stat,
            fs_type,
            link,
            info,
        };
        let seen = seen(&self.cx, pid, slot, &fd, &looks, told)?;
        let outside = kinds::outside::entry(&seen, id, &self.cx)?;
        let kind = match &outside {
            Some(_) => Some(&regular::Regular as &'static dyn FileKind),
            None => kinds::FILE_KINDS.iter().copied().find(|k| k.claims(&seen)),
        };
        let kind = match kind {
            Some(k) => k,
            None => crate::plugins::file(&seen, id, &mut self.cx)?
                .ok_or_else(|| kinds::unsupported::name(&seen))?,
        };
        let mut late = false;
        if let Some(entry) = outside {
            self.cx.entries.push(entry);
        } else if kind.late() {
            self.files.late.push(self.files.met.len());
            late = true;
        } else {
            let mut entry = kind
                .dump(&seen, id, &mut self.cx)
                .map_err(|e| e.of(kind.name()))?;
            network(&seen, &mut entry, &self.cx).map_err(|e| e.of(kind.name()))?;
            self.cx.entries.push(entry);
        }
        self.files.met.push(Met {
            pid,
            slot,
            fd,
            ino: stat.st_ino,
            kind,
            id,
            looks: late.then(|| Box::new(looks)),
        });
        Ok(())
    }
    /// What is in the queues of unix sockets; files that travel there are described like those in slots, and their queues
    /// are looked into as well.
    pub fn queues(&mut self) -> Result<()> {
        let mut done = 0;
        while done < self.files.met.len() {
            let new = done..self.files.met.len();
            done = new.end;
            let sockets: Vec<usize> = new
                .filter(|i| self.files.met[*i].kind.fd_type() == pb::FdTypes::Unixsk)
                .collect();
            let queued: Vec<_> = sockets
                .iter()
                .map(|i| {
                    let m = &self.files.met[*i];
                    unixsk::Queued {
                        fd: m.fd.as_fd(),
                        place: format!("fd {} of task {}", m.slot, m.pid.0),
                        urgent: self.cx.unix.urgent(m.ino),
                    }
                })
                .collect();
            let found = unixsk::look(&queued).map_err(|e| e.of("unixsk"))?;
            let senders = unixsk::senders(&self.cx, &queued, &found).map_err(|e| e.of("unixsk"))?;
            let mut senders = senders.map(Vec::into_iter);
            for (i, messages) in sockets.into_iter().zip(found) {
                crate::kill_point();
                let (pid, id) = (self.files.met[i].pid, self.files.met[i].id);
                for mut m in messages {
                    let files = std::mem::take(&mut m.files).into_iter();
                    let ids = files
                        .map(|f| self.in_flight(pid, f))
                        .collect::<Result<Vec<u32>>>()?;
                    let sender = senders.as_mut().and_then(Iterator::next);
                    unixsk::put(&mut self.cx, id, &m, ids, sender)?;
                }
            }
        }
        Ok(())
    }
    /// The id of an open file that travels in a queue of a socket of this task.
    fn in_flight(&mut self, holder: HostPid, fd: OwnedFd) -> Result<u32> {
        let own = ProcDir::open(HostPid::own())?;
        let raw = RemoteFd(fd.as_raw_fd());
        let info = own.fdinfo(raw)?;
        let locked = info.get("lock").is_some();
        let before = self.files.met.len();
        let again = info.clone();
        let i = self.meet(
            holder,
            IN_FLIGHT,
            (fd, None),
            info,
            || Ok(own.fd_link(raw)?),
        )?;
        let m = &self.files.met[i];
        if i == before && (locked || m.kind.fd_type() == pb::FdTypes::Eventpoll) {
            let looks = Looks {
                stat: fds::fstat(m.fd.as_fd())?,
                fs_type: fs_type(&m.fd),
                link: own.fd_link(RemoteFd(m.fd.as_raw_fd()))?,
                info: again,
            };
            let seen = m.seen(&self.cx, &looks)?;
            let what = match locked {
                true => "it holds a lock",
                false => "it is an epoll instance",
            };
            return Err(seen.unsupported(
                format!("{what}, and no task has it"),
                "let the receiver take it out of the socket first",
            ));
        }
        Ok(m.id)
    }
    /// Kinds whose entries refer to other files, now that all have ids.
    pub fn late_files(&mut self) -> Result<()> {
        for i in std::mem::take(&mut self.files.late) {
            let m = &mut self.files.met[i];
            let gone = || Error::bug("what was seen of an open file was forgotten");
            let looks = m.looks.take().ok_or_else(gone)?;
            let seen = m.seen(&self.cx, &looks)?;
            let entry = m
                .kind
                .dump(&seen, m.id, &mut self.cx)
                .map_err(|e| e.of(m.kind.name()))?;
            self.cx.entries.push(entry);
        }
        Ok(())
    }
}

fn seen<'a>(
    cx: &DumpCx<'_>,
    pid: HostPid,
    slot: i32,
    fd: &'a OwnedFd,
    looks: &'a Looks,
    told: Option<&'a Entry>,
) -> Result<Seen<'a>, Error> {
    let info = &looks.info;
    let mut fown = match told {
        Some(e) if e.unowned => pb::FownEntry::default(),
        _ => fown::read(fd.as_fd(), info.flags, cx.pids)?,
    };
    if fown.pid != 0 {
        (fown.uid, fown.euid) = (cx.ids.uid(fown.uid), cx.ids.uid(fown.euid));
    }
    Ok(Seen {
        pid,
        slot,
        fd: fd.as_fd(),
        stat: looks.stat,
        fs_type: looks.fs_type,
        link: &looks.link,
        info,
        flags: info.flags & !(libc::O_CLOEXEC as u32),
        fown,
        options: told.and_then(|e| e.options.as_deref()),
    })
}

/// Says of a socket in which of the tree's network namespaces it is.
fn network(seen: &Seen, entry: &mut pb::FileEntry, cx: &DumpCx) -> Result<()> {
    let slot = match entry {
        pb::FileEntry { isk: Some(e), .. } => &mut e.ns_id,
        pb::FileEntry { usk: Some(e), .. } => &mut e.ns_id,
        pb::FileEntry { nlsk: Some(e), .. } => &mut e.ns_id,
        pb::FileEntry { psk: Some(e), .. } => &mut e.ns_id,
        _ => return Ok(()),
    };
    let nets = cx.namespaces.values().filter(|n| n.0 == Ns::Net);
    // KERNEL: SIOCGSKNS wants CAP_NET_ADMIN; without it we are hardly in another namespace
    let there = match nets.clone().count() {
        0 | 1 => None,
        _ => unixsk_diag::namespace(seen.fd),
    };
    *slot = match there {
        None => nets.map(|n| n.1).next(),
        Some(ns) => cx
            .namespaces
            .get(&fds::fstat(ns.as_fd())?.st_ino)
            .map(|n| n.1),
    };
    Ok(())
}

pub(super) fn fs_type(fd: &OwnedFd) -> i64 {
    nix::sys::statfs::fstatfs(fd).map_or(0, |s| s.filesystem_type().0)
}
