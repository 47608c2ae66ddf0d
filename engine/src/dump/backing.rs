//! Files behind memory, and those that are a program or a folder: they have no slot.
use super::Dumping;
use super::files::fs_type;
use super::mapped::{self, Copied};
use super::mm;
use super::task::Task;
use crate::error::{Error, Result};
use crate::kinds::{packet, regular, shmem};
use stasis_kernel::fds;
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::{MapsLine, VmFlags};
use stasis_proto::pb;
use std::collections::btree_map;
use std::os::fd::{AsFd, OwnedFd};

/// Magic number of hugetlbfs.
const HUGETLBFS: i64 = 0x9584_58f6;
/// How the engine reads shared anonymous memory.
pub(super) enum Shared {
    Open(OwnedFd),
    Copied(Copied),
}

impl Dumping<'_> {
    /// The file behind a mapping: its entry's id, whether it is a memfd, and the flags it must be opened with. `None`: it cannot
    /// be had.
    pub fn mapped_file(
        &mut self,
        t: &Task,
        m: &MapsLine,
        flags: VmFlags,
    ) -> Result<Option<(u32, bool, u32)>> {
        let open = super::open_flags_of(m, flags);
        // neighbouring mappings are usually of one file: it is looked at once
        let key = (
            u64::from(m.dev.0) << 32 | u64::from(m.dev.1),
            m.ino,
            open,
            m.path.clone(),
        );
        if let Some((id, memfd)) = self.mapped.get(&key) {
            return Ok(Some((*id, *memfd, open)));
        }
        let Some(fd) = mapped::open(t, m)? else {
            return Ok(None);
        };
        let link = t.proc.map_file_link(m)?;
        let id = self.describe(
            t,
            &fd,
            &link,
            open,
            &format!("mapping {m} of task {}", t.pid.0),
        )?;
        let memfd = self
            .cx
            .entries
            .iter()
            .rev()
            .find(|e| e.id == id)
            .is_some_and(|e| e.r#type == pb::FdTypes::Memfd as i32);
        self.mapped.insert(key, (id, memfd));
        Ok(Some((id, memfd, open)))
    }
    /// The socket whose rings are mapped: the id of its entry.
    pub fn mapped_socket(&mut self, t: &Task, m: &MapsLine) -> Result<u32> {
        let refuse = |why: &str, advice: &str| Err(mm::refuse(t, m, why, advice));
        let pidfd = fds::pidfd_open(t.pid, 0)?;
        let all = t.proc.fds()?.into_iter();
        let mut same = all.filter(|slot| t.proc.fd_link(*slot).is_ok_and(|l| l == m.path));
        let Some(slot) = same.next() else {
            return refuse(
                "the task has closed the socket whose rings it shows",
                "have the program keep the socket open, or unmap the rings",
            );
        };
        let id = self.slot(t, pidfd.as_fd(), slot, None)?.id;
        let entry = self.cx.entries.iter().find(|e| e.id == id);
        let rings = entry.and_then(|e| Some(packet::rings(e.psk.as_deref()?)));
        // the kernel maps the rings of a socket only as a whole
        match rings {
            Some(len) if len == m.len() && m.offset == 0 => Ok(id),
            Some(_) => refuse(
                "it shows a part of a packet socket's rings, or its parts differ in protection",
                "have the program map the rings as a whole",
            ),
            None => refuse(
                "it shows memory of a socket that is no packet socket",
                "have the program close the socket before the dump",
            ),
        }
    }
    fn describe(
        &mut self,
        t: &Task,
        fd: &OwnedFd,
        link: &[u8],
        open: u32,
        what: &str,
    ) -> Result<u32> {
        regular::describe(&mut self.cx, t.pid, fd.as_fd(), link, open, what)
    }
    /// The program's own file.
    pub fn exe(&mut self, t: &Task) -> Result<u32> {
        let (fd, link) = (t.proc.open_exe()?, t.proc.exe()?);
        self.describe(
            t,
            &fd,
            &link,
            libc::O_RDONLY as u32,
            &format!("the program of task {}", t.pid.0),
        )
    }
    /// Working or root directory.
    pub fn place(&mut self, t: &Task, which: &str) -> Result<u32> {
        let (fd, link) = if which == "cwd" {
            (t.proc.open_cwd()?, t.proc.cwd()?)
        } else {
            (t.proc.open_root()?, t.proc.root()?)
        };
        let what = format!("the {which} directory of task {}", t.pid.0);
        self.describe(
            t,
            &fd,
            &link,
            (libc::O_RDONLY | libc::O_DIRECTORY) as u32,
            &what,
        )
    }
    /// Shared anonymous memory: its identity; contents are saved once, when all who map it are known.
    pub fn shared_memory(&mut self, t: &Task, m: &MapsLine) -> Result<u64> {
        let end = m.offset + m.len();
        let e = match self.files.shared.entry(m.ino) {
            btree_map::Entry::Occupied(e) => e.into_mut(),
            btree_map::Entry::Vacant(e) => {
                let shared = match t.proc.open_map_file(m, libc::O_RDONLY) {
                    Ok(fd) => Shared::Open(fd),
                    // huge pages of the pool are not copied: they would take as many again
                    Err(e) if mapped::is_denied(&e) && m.path == b"/anon_hugepage" => {
                        return Err(mapped::nowhere(t, m));
                    }
                    Err(e) if mapped::is_denied(&e) => Shared::Copied(Copied::new()?),
                    Err(e) => return Err(e.into()),
                };
                e.insert((shared, end))
            }
        };
        e.1 = end.max(e.1);
        if let Shared::Copied(c) = &mut e.0 {
            c.add(t, m)?;
        }
        Ok(m.ino)
    }
    /// Contents of all shared anonymous memory. What nobody maps any more at its end stays behind: whoever restores makes
    /// it as large as the mappings tell.
    pub fn shared_contents(&mut self) -> Result<()> {
        for (ino, (shared, end)) in std::mem::take(&mut self.files.shared) {
            let fd = match shared {
                Shared::Open(fd) => fd,
                Shared::Copied(c) => c.finish(end)?,
            };
            let st = fds::fstat(fd.as_fd())?;
            let size = (st.st_size as u64).min(end);
            // in huge pages of the pool (MAP_HUGETLB)
            let huge = huge(&fd, &st);
            shmem::dump_contents(&mut self.cx, fd.as_fd(), ino, size, huge)?;
        }
        Ok(())
    }
    /// SysV shared memory of the host's IPC namespace.
    pub fn sysv_memory(&mut self, t: &Task, m: &MapsLine) -> Result<u64> {
        // those of an IPC namespace of the tree's own are described with it
        if self.places.is_owned_by(&t.proc, Ns::Ipc)? {
            return Ok(m.ino);
        }
        let fd = match t.proc.open_map_file(m, libc::O_RDONLY) {
            Err(e) if mapped::is_denied(&e) => {
                let mut copy = Copied::new()?;
                copy.add(t, m)?;
                copy.finish(m.offset + m.len())?
            }
            r => r?,
        };
        let id = u32::try_from(m.ino).map_err(|_| Error::bug("a segment id of 64 bits"))?;
        crate::kinds::sysv::dump(&mut self.cx, id, fd.as_fd())?;
        Ok(m.ino)
    }
}

/// The size of a file's pages, if those are huge pages of the pool.
pub(super) fn huge(fd: &OwnedFd, st: &libc::stat) -> Option<u64> {
    (fs_type(fd) == HUGETLBFS).then_some(st.st_blksize as u64)
}
