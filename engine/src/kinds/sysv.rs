//! System V shared memory (shmget(2), shmat(2)).
//!
//! **Of an IPC namespace of the tree's own** all segments come back ([`crate::namespaces::ipc`]): with their ids, keys, owners and
//! contents, attached or not. Of the host's namespace:
//!
//! **Dump.** Segments a task of the tree has attached: one record each in ipcns-shm-N.img, contents as those of all shared
//! memory ([`super::shmem`]), each under its id with bit 32 set, because ids and inode numbers of other shared memory
//! overlap. Segments nobody of the tree has attached are the host's and stay as they are.
//!
//! **Restore.** A segment that still exists, with the same id, key and size, is attached again: if nobody uses it, its
//! contents are set to those of the dump, else they are left to those who do. One that is gone is made anew with the same id
//! (kernel.shm_next_id), key, size, owner and mode. An id or key taken by another segment is an error: programs keep ids.
//! A removed segment, kept alive by its attachments, is made, attached, and removed again.
//!
//! **What does not come back.** Creator, times, SHM_LOCK. A restore that is killed may leave a segment behind.
//!
//! Kernel facts: the inode number of a mapped segment is its id (ipc/shm.c, newseg). An attached segment answers IPC_STAT
//! also when it was removed; its key is then 0.
use super::act::{Act, Fill, Stagehand};
use super::{DumpCx, PlanCx, Stage, shmem};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::sysv::{self, SHM_DEST};
use stasis_proto::{Kind, pb};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;

/// Number of the IPC namespace in our images: that of the caller.
const IPC_NS: u64 = 3;

/// The number of a segment's contents where other shared memory has its id, and always in the host's namespace.
pub fn contents_id(id: u32) -> u64 {
    1 << 32 | u64::from(id)
}

/// Describes an attached segment, once. `file` is its memory.
///
/// # Errors
/// Failures to look or read.
pub fn dump(cx: &mut DumpCx, id: u32, file: BorrowedFd<'_>) -> Result<()> {
    if !cx.first("SysV shared memory", id.into()) {
        return Ok(());
    }
    let s = sysv::stat(id as i32)?;
    shmem::dump_contents(cx, file, contents_id(id), s.size, None)?;
    let desc = pb::IpcDescEntry {
        key: s.key as u32,
        uid: s.uid,
        gid: s.gid,
        cuid: s.cuid,
        cgid: s.cgid,
        mode: s.mode,
        id,
    };
    let entry = pb::IpcShmEntry {
        desc,
        size: s.size,
        in_pagemaps: Some(true),
        hugetlb_flag: None,
    };
    cx.writer(&Kind::IpcnsShm.file_of(IPC_NS))?.write(&entry)?;
    Ok(())
}

/// A segment to be made or found.
#[derive(Debug, Clone)]
pub struct Segment {
    id: u32,
    key: i32,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    /// Its memory from now on.
    file: FdRef,
    fill: Option<Fill>,
}

/// Plans all segments; gives their sizes by id. `own`: the image's number of the tree's own IPC namespace, if it has one.
///
/// # Errors
/// A damaged image.
pub fn plan(cx: &mut PlanCx, own: Option<u32>) -> Result<BTreeMap<u64, u64>> {
    let mut sizes = BTreeMap::new();
    let name = Kind::IpcnsShm.file_of(own.map_or(IPC_NS, u64::from));
    if !cx.dir.exists(&name)? {
        return Ok(sizes);
    }
    cx.enter(Stage::First);
    for e in cx.dir.reader(&name)?.read_rest::<pb::IpcShmEntry>()? {
        let d = &e.desc;
        // those of an own namespace are made with it
        if own.is_none() {
            let file = cx.temp();
            let segment = Segment {
                id: d.id,
                key: d.key as i32,
                mode: d.mode,
                owner: (d.uid, d.gid),
                size: e.size,
                file,
                fill: shmem::fill(cx.dir, file, contents_id(d.id), e.size, None)?,
            };
            let why = "make or find System V shared memory";
            cx.act_at(Stage::First, Act::Segment(segment), why);
        }
        if d.mode & SHM_DEST != 0 {
            let remove = Call::new(
                libc::SYS_shmctl,
                vec![
                    Arg::Int(d.id.into()),
                    Arg::Named(libc::IPC_RMID as u64, "IPC_RMID".into()),
                    Arg::Null,
                ],
            );
            let why = "it was removed, and lives as long as it is attached";
            cx.act_at(Stage::Mapped, Act::Call(remove), why);
        }
        sizes.insert(d.id.into(), e.size);
    }
    Ok(sizes)
}

impl Segment {
    /// Finds or makes it, and fills it unless others use it.
    ///
    /// # Errors
    /// E6132: another segment has its id or key.
    pub fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let id = self.id as i32;
        let taken = |why: String| {
            Error::new("E6132", Blame::Host, format!("shared memory segment {id}"))
                .why(why)
                .advice("remove the other segment (ipcrm -m), or restore in an IPC namespace of its own")
        };
        let mut used = false;
        match sysv::stat(id) {
            Ok(s) => {
                if (s.key, s.size) != (self.key, self.size) || s.mode & SHM_DEST != 0 {
                    return Err(taken(format!(
                        "another one has this id: key {:#x}, {} bytes, mode {:o}",
                        s.key, s.size, s.mode
                    )));
                }
                used = s.attached > 0;
            }
            Err(_) => {
                let made = sysv::make(id, self.key, self.size, self.mode, self.owner)
                    .map_err(|e| taken(e.to_string()))?;
                on.host.made(made);
            }
        }
        on.host.insert(self.file, sysv::open(id, self.size)?);
        match &self.fill {
            Some(f) if !used => Act::Fill(f.clone()).perform(on),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "segment(id {}, key {:#x}, {} bytes, mode {:o}) -> file#{}",
            self.id, self.key, self.size, self.mode, self.file.0
        )
    }
}
