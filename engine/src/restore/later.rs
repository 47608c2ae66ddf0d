//! Which shared memory may be brought when the tree runs: see [`crate::lazy_views`].
//!
//! Whoever can see a page must wait for it, or would read zeroes. Faults of mappings wait; read(2) and a mapping that is made
//! later do not. So it is memory to which nothing leads but the mappings of the image: shared anonymous memory, and memfds
//! that nobody has open. A segment of System V shared memory can be attached by its number at any time: it is there before.
//!
//! And every mapping of it must be one that a userfaultfd takes, shows the object up to its end (a mapping may grow, and nothing tells),
//! is not private (pages would be brought into the task's own memory), and not locked (who locks must never wait).
use super::images::Images;
use crate::dump::mm::status;
use crate::error::Result;
use crate::kinds::{PlanCx, memfd, shmem};
use crate::pages::{PAGE, Pages};
use stasis_kernel::probe::{self, Outcome};
use stasis_kernel::uffd;
use stasis_proto::pb::{self, VmaEntry};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::Arc;

/// An object of shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    /// Shared anonymous memory, by its number in the image.
    Anonymous(u64),
    /// A memfd, by its number in memfd.img.
    Memfd(u32),
}

/// One whose contents come later.
#[derive(Debug)]
pub struct Later {
    /// Which.
    pub id: Id,
    /// Bytes, in whole pages.
    pub size: u64,
    /// Its contents, by offset.
    pub pages: Pages,
}

/// A range of a task's addresses that shows it.
#[derive(Debug, Clone)]
pub struct View {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Offset in the object.
    pub offset: u64,
    /// The object.
    pub object: Arc<Later>,
}

type Files = BTreeMap<u32, pb::FileEntry>;

/// Bytes of each object, and the number of its pagemap.
type Sizes = BTreeMap<Id, (u64, u64)>;

/// What a mapping shows, if that may be shared memory that comes later.
fn shown(v: &VmaEntry, files: &Files) -> Option<Id> {
    const OTHER: u32 = status::SYSVIPC | status::AIORING | status::GUARD | status::SOCKET;
    if v.status & OTHER != 0 {
        return None;
    }
    if v.status & status::ANON_SHARED != 0 {
        return Some(Id::Anonymous(v.shmid));
    }
    let file = files.get(&u32::try_from(v.shmid).ok()?)?;
    let of_file = v.status & (status::FILE_PRIVATE | status::FILE_SHARED) != 0;
    file.memfd
        .as_deref()
        .filter(|_| of_file)
        .map(|m| Id::Memfd(m.inode_id))
}

/// Ranges of addresses (start, end, offset) of an address space that show each object; neighbours are one.
fn ranges(vmas: &[VmaEntry], files: &Files) -> Vec<(Id, (u64, u64, u64))> {
    let mut all: Vec<(Id, (u64, u64, u64))> = Vec::new();
    for v in vmas {
        let Some(id) = shown(v, files) else { continue };
        let (start, end, offset) = (v.start, v.end, v.pgoff);
        // what an image says may be nonsense
        let goes_on = |r: &(u64, u64, u64)| {
            let len = r.1.checked_sub(r.0);
            r.1 == start && len.and_then(|n| r.2.checked_add(n)) == Some(offset)
        };
        match all.last_mut() {
            Some((i, r)) if *i == id && goes_on(r) => r.1 = end,
            _ => all.push((id, (start, end, offset))),
        }
    }
    all
}

/// A mapping that cannot wait for pages.
fn cannot_wait(v: &VmaEntry, id: Id) -> bool {
    let flags = libc::MAP_LOCKED | libc::MAP_HUGETLB;
    let only_read = match id {
        Id::Anonymous(_) => false,
        // KERNEL: what can never be written cannot be registered (VM_MAYWRITE; mm/userfaultfd.c)
        Id::Memfd(_) => super::memory::access(v) != libc::O_RDWR as u32,
    };
    v.flags & libc::MAP_SHARED as u32 == 0 || v.flags & flags as u32 != 0 || only_read
}

/// The memfds that somebody has open, or whose contents are needed for something else; and their sizes.
fn memfds(images: &Images, cx: &mut PlanCx) -> Result<(BTreeSet<Id>, Sizes)> {
    let mms = || images.tasks.iter().filter_map(|t| t.mm.as_ref());
    let mapped = mms()
        .flat_map(|m| &m.vmas)
        .filter_map(|v| u32::try_from(v.shmid).ok());
    let mapped: BTreeSet<u32> = mapped.collect();
    let programs: BTreeSet<u32> = mms().map(|m| m.exe_file_id).collect();
    let mut busy = BTreeSet::new();
    let mut any = false;
    for e in images.files.values() {
        let Some(m) = e.memfd.as_deref() else {
            continue;
        };
        any = true;
        let held = cx.holders.get(&e.id).is_some_and(|h| !h.is_empty());
        // one that no mapping names is on its way in a message
        if held || !mapped.contains(&e.id) || programs.contains(&e.id) {
            busy.insert(Id::Memfd(m.inode_id));
        }
    }
    let mut sizes = Sizes::new();
    if any {
        for m in memfd::inodes(cx)?.iter() {
            let Ok(id) = u32::try_from(m.inode_id).map(Id::Memfd) else {
                continue;
            };
            if memfd::may_wait(m) {
                sizes.insert(id, (m.size, m.shmid.into()));
            } else {
                busy.insert(id);
            }
        }
    }
    Ok((busy, sizes))
}

/// Whether shared memory can come later on this host, with these rights; if not, why.
fn possible() -> std::result::Result<(), String> {
    let features = uffd::open(uffd::USER_MODE_ONLY).and_then(|fd| uffd::api(fd.as_fd(), 0));
    // KERNEL(<6.4): huge pages are made of it where pages are missing (mm/khugepaged.c, collapse_file()), which are zeroes then.
    // This feature came with the version that does not.
    if features.map_err(|e| e.to_string())? & uffd::FEATURE_WP_UNPOPULATED == 0 {
        return Err("it needs Linux 6.4".into());
    }
    // the pager opens what tasks have mapped: CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN of the first user namespace (fs/proc/base.c,
    // proc_map_files_get_link())
    let probe = probe::find("map-files").ok_or("no such probe")?;
    match probe.run() {
        Outcome::Present(_) => Ok(()),
        Outcome::Absent(why) | Outcome::Denied(why) => Err(format!("/proc/PID/map_files: {why}")),
    }
}

/// All objects that come later.
///
/// # Errors
/// Damaged images.
pub fn find(images: &Images, cx: &mut PlanCx) -> Result<BTreeMap<Id, Arc<Later>>> {
    let o = &cx.options.memory;
    if !o.lazy || o.lazy_daemon.is_some() {
        return Ok(BTreeMap::new());
    }
    if let Err(e) = possible() {
        tracing::info!("shared memory is brought before anything runs: {e}");
        return Ok(BTreeMap::new());
    }
    let (mut not, mut sizes) = memfds(images, cx)?;
    let mut ends: BTreeMap<Id, BTreeSet<u64>> = BTreeMap::new();
    for mm in images.tasks.iter().filter_map(|t| t.mm.as_ref()) {
        for v in &mm.vmas {
            not.extend(shown(v, cx.files).filter(|id| cannot_wait(v, *id)));
        }
        for (id, (start, end, offset)) in ranges(&mm.vmas, cx.files) {
            // nonsense is refused where mappings are planned
            let end = end
                .checked_sub(start)
                .and_then(|len| offset.checked_add(len));
            match end {
                Some(end) => ends.entry(id).or_default().insert(end),
                None => not.insert(id),
            };
        }
    }
    let mut all = BTreeMap::new();
    for (id, ends) in ends {
        if let (Id::Anonymous(shmid), Some(last)) = (id, ends.last()) {
            sizes.insert(id, (*last, shmid));
        }
        let Some((size, shmid)) = sizes.get(&id).copied() else {
            continue;
        };
        let whole = ends.first().is_some_and(|e| *e >= size);
        if !whole || not.contains(&id) || size == 0 || size >= 1 << 46 {
            continue;
        }
        let pages = shmem::pages(cx.dir, shmid, size)?;
        if !pages.runs.is_empty() {
            let size = size.next_multiple_of(PAGE);
            all.insert(id, Arc::new(Later { id, size, pages }));
        }
    }
    Ok(all)
}

/// Where an address space shows them.
pub fn views(vmas: &[VmaEntry], files: &Files, all: &BTreeMap<Id, Arc<Later>>) -> Vec<View> {
    let ranges = ranges(vmas, files).into_iter();
    let views = ranges.filter_map(|(id, (start, end, offset))| {
        let object = all.get(&id)?.clone();
        // what lies behind its end has no pages
        let end = end.min(start.checked_add(object.size.checked_sub(offset)?)?);
        (start < end).then_some(View {
            start,
            end,
            offset,
            object,
        })
    });
    views.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64, pgoff: u64, shmid: u64) -> VmaEntry {
        VmaEntry {
            start,
            end,
            pgoff,
            shmid,
            flags: libc::MAP_SHARED as u32,
            status: status::ANON_SHARED,
            ..Default::default()
        }
    }

    #[test]
    fn neighbours_that_go_on_are_one_view() {
        let files = Files::new();
        let vmas = [
            vma(0x1000, 0x3000, 0, 5),
            vma(0x3000, 0x4000, 0x2000, 5),
            // the same object again, from its beginning
            vma(0x4000, 0x5000, 0, 5),
            vma(0x5000, 0x6000, 0x1000, 6),
        ];
        let all = ranges(&vmas, &files);
        let (five, six) = (Id::Anonymous(5), Id::Anonymous(6));
        let expected = [
            (five, (0x1000, 0x4000, 0)),
            (five, (0x4000, 0x5000, 0)),
            (six, (0x5000, 0x6000, 0x1000)),
        ];
        assert_eq!(all, expected);
        let later = |id, size| {
            let pages = Pages::default();
            (id, Arc::new(Later { id, size, pages }))
        };
        // a view ends with its object
        let views = views(&vmas, &files, &[later(five, 0x2000)].into());
        let places: Vec<_> = views.iter().map(|v| (v.start, v.end, v.offset)).collect();
        assert_eq!(places, [(0x1000, 0x3000, 0), (0x4000, 0x5000, 0)]);
    }

    #[test]
    fn nonsense_is_no_view() {
        let files = Files::new();
        let id = Id::Anonymous(5);
        let vmas = [
            vma(0x3000, 0x1000, 0, 5),
            vma(0x1000, 0x2000, !0xfff, 5),
            vma(0x2000, 0x3000, 0, 5),
            vma(u64::MAX - 0xfff, u64::MAX, 0, 5),
        ];
        let (size, pages) = (0x2000, Pages::default());
        let all = [(id, Arc::new(Later { id, size, pages }))].into();
        let views = views(&vmas, &files, &all);
        let places: Vec<_> = views.iter().map(|v| (v.start, v.end)).collect();
        assert_eq!(places, [(0x2000, 0x3000)]);
    }

    #[test]
    fn what_is_locked_or_private_cannot_wait() {
        let id = Id::Anonymous(5);
        let mut v = vma(0, 0x1000, 0, 5);
        assert!(!cannot_wait(&v, id));
        // a memfd that was mapped for reading only
        assert!(cannot_wait(&v, Id::Memfd(1)));
        v.fdflags = Some(libc::O_RDWR as u32);
        assert!(!cannot_wait(&v, Id::Memfd(1)));
        v.flags |= libc::MAP_LOCKED as u32;
        assert!(cannot_wait(&v, id));
        v.flags = libc::MAP_PRIVATE as u32;
        assert!(cannot_wait(&v, id));
    }
}
