//! What a folder holds, read once and checked before anything is done. Images are untrusted.
use crate::error::{Blame, Error, Result};
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::{BTreeMap, BTreeSet};

/// One process of the tree.
pub struct TaskImages {
    /// Its place in the tree.
    pub entry: pb::PstreeEntry,
    /// The process's part of its core.
    pub tc: pb::TaskCoreEntry,
    /// Cores of its threads, the leader first, with their thread ids. Empty for zombies.
    pub threads: Vec<(u32, pb::CoreEntry)>,
    /// What it shares with whom.
    pub ids: pb::TaskKobjIdsEntry,
    /// Its address space; `None` if it shares that of an earlier task, or is a zombie.
    pub mm: Option<pb::MmEntry>,
    /// Pages: the number of the pages image and its map.
    pub pages: Option<(u32, Vec<pb::PagemapEntry>)>,
    /// Directories and umask.
    pub fs: pb::FsEntry,
}

impl TaskImages {
    /// Zombies exist only to be waited for.
    pub fn is_zombie(&self) -> bool {
        matches!(self.tc.task_state, 2 | 6)
    }
}

/// A whole folder.
pub struct Images {
    /// Tasks, parents before children.
    pub tasks: Vec<TaskImages>,
    /// Open files by id.
    pub files: BTreeMap<u32, pb::FileEntry>,
    /// Descriptor tables by id.
    pub tables: BTreeMap<u32, Vec<pb::FdinfoEntry>>,
    /// Seccomp filters.
    pub seccomp: Vec<pb::SeccompFilter>,
    /// The clocks of the tree's time namespace, if it has one of its own.
    pub clocks: Option<pb::TimensEntry>,
}

fn bad(what: impl Into<String>, why: &str) -> Error {
    Error::new("E5001", Blame::Image, what)
        .why(why)
        .advice("the image is damaged or was made by something else: dump again")
}

fn unsupported(what: impl Into<String>, why: &str) -> Error {
    Error::new("E5002", Blame::Image, what)
        .why(why)
        .advice("this version restores process trees in the namespaces of the caller")
}

/// Reads everything but page contents and what kinds read themselves.
pub fn load(dir: &ImageDir) -> Result<Images> {
    let inv: pb::InventoryEntry = dir.read_one(&Kind::Inventory.file()).map_err(|e| {
        if e.is_missing() {
            Error::new("E5003", Blame::Image, "no inventory.img in the folder")
                .why("the dump did not finish, or this is not an image folder")
                .advice("name the folder of a finished dump with -D")
        } else {
            e.into()
        }
    })?;
    if !matches!(inv.img_version, 1 | 2) {
        return Err(unsupported(
            format!("image version {}", inv.img_version),
            "only versions 1 and 2 are known",
        ));
    }
    if inv.fdinfo_per_id != Some(true) {
        return Err(unsupported(
            "inventory.img",
            "images of CRIU before 0.4 have no descriptor table ids",
        ));
    }
    let root_ids = inv.root_ids;
    let mut tasks: Vec<TaskImages> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut spaces = BTreeSet::new();
    let entries: Vec<pb::PstreeEntry> = dir.read_all(&Kind::Pstree.file())?;
    for (i, entry) in entries.into_iter().enumerate() {
        let pid = entry.pid;
        let name = || format!("task {pid} of pstree.img");
        if pid == 0 || pid > i32::MAX as u32 || !seen.insert(pid) {
            return Err(bad(name(), "its pid is not a pid, or is there twice"));
        }
        if i > 0
            && !tasks
                .iter()
                .any(|t| t.entry.pid == entry.ppid && !t.is_zombie())
        {
            return Err(bad(name(), "its parent is not in the tree before it"));
        }
        let core: pb::CoreEntry = dir.read_one(&Kind::Core.file_of(pid))?;
        if core.mtype != pb::core_entry::March::X8664 as i32 {
            return Err(unsupported(name(), "it was dumped on another architecture"));
        }
        let tc = core
            .tc
            .clone()
            .ok_or_else(|| bad(name(), "its core has no task part"))?;
        let mut t = TaskImages {
            entry,
            tc,
            threads: Vec::new(),
            ids: pb::TaskKobjIdsEntry::default(),
            mm: None,
            pages: None,
            fs: pb::FsEntry::default(),
        };
        if t.is_zombie() {
            tasks.push(t);
            continue;
        }
        t.ids = match core.ids {
            Some(ids) => ids,
            None => dir.read_one(&Kind::Ids.file_of(pid))?,
        };
        namespaces(&t.ids, root_ids.as_ref()).map_err(|e| e.on(name()))?;
        if t.entry.threads.first() != Some(&pid) {
            return Err(bad(name(), "its first thread is not its leader"));
        }
        t.threads.push((pid, core));
        for tid in t.entry.threads[1..].iter().copied() {
            if tid == 0 || tid > i32::MAX as u32 || !seen.insert(tid) {
                return Err(bad(name(), "a thread id is not one, or is there twice"));
            }
            t.threads
                .push((tid, dir.read_one(&Kind::Core.file_of(tid))?));
        }
        for (tid, c) in &t.threads {
            if c.thread_info.is_none() || c.thread_core.is_none() {
                return Err(bad(
                    format!("core-{tid}.img"),
                    "it has no registers or no thread part",
                ));
            }
        }
        t.fs = dir.read_one(&Kind::Fs.file_of(pid))?;
        if spaces.insert(t.ids.vm_id) {
            let mm: pb::MmEntry = if dir.exists(&Kind::Vmas.file_of(pid))? {
                let mut mm: pb::MmEntry = dir.read_one(&Kind::Mm.file_of(pid))?;
                mm.vmas = dir.read_all(&Kind::Vmas.file_of(pid))?;
                mm
            } else {
                dir.read_one(&Kind::Mm.file_of(pid))?
            };
            vmas(&mm, pid)?;
            t.mm = Some(mm);
            let map = pagemap(dir, &Kind::Pagemap.file_of(pid))?;
            whole(dir, &map)?;
            t.pages = Some(map);
        }
        tasks.push(t);
    }
    if tasks.is_empty() || tasks[0].is_zombie() {
        return Err(bad("pstree.img", "it has no live root"));
    }
    let mut tables: BTreeMap<u32, Vec<pb::FdinfoEntry>> = BTreeMap::new();
    for t in tasks.iter().filter(|t| !t.is_zombie()) {
        if let std::collections::btree_map::Entry::Vacant(v) = tables.entry(t.ids.files_id) {
            v.insert(dir.read_all(&Kind::Fdinfo.file_of(t.ids.files_id))?);
        }
    }
    let mut files = BTreeMap::new();
    for f in dir.read_all::<pb::FileEntry>(&Kind::Files.file())? {
        if files.insert(f.id, f).is_some() {
            return Err(bad("files.img", "two entries have the same id"));
        }
    }
    for (table, fds) in &tables {
        for fd in fds {
            let f = files.get(&fd.id).ok_or_else(|| {
                bad(
                    format!("fdinfo-{table}.img"),
                    "a slot names a file that files.img does not have",
                )
            })?;
            if f.r#type != fd.r#type {
                return Err(bad(
                    format!("fdinfo-{table}.img"),
                    "a slot and its file have different types",
                ));
            }
            if fd.fd > 1 << 30 {
                return Err(bad(
                    format!("fdinfo-{table}.img"),
                    "a slot number is no descriptor",
                ));
            }
        }
    }
    let seccomp = if dir.exists(&Kind::Seccomp.file())? {
        dir.read_one::<pb::SeccompEntry>(&Kind::Seccomp.file())?
            .seccomp_filters
    } else {
        Vec::new()
    };
    let clocks = clocks(dir, &tasks, root_ids.as_ref())?;
    Ok(Images {
        tasks,
        files,
        tables,
        seccomp,
        clocks,
    })
}

fn clocks(
    dir: &ImageDir,
    tasks: &[TaskImages],
    engine: Option<&pb::TaskKobjIdsEntry>,
) -> Result<Option<pb::TimensEntry>> {
    let of = |t: &TaskImages| t.ids.time_ns_id;
    let mut live = tasks.iter().filter(|t| !t.is_zombie());
    if let Some(t) = live.find(|t| of(t) != of(&tasks[0])) {
        return Err(unsupported(
            format!("task {} of pstree.img", t.entry.pid),
            "it has a time namespace of its own",
        ));
    }
    match (of(&tasks[0]), engine.and_then(|e| e.time_ns_id)) {
        (Some(tree), Some(engine)) if tree != engine => {
            let e = dir.read_one(&Kind::Timens.file_of(tree))?;
            crate::clocks::check(&e)?;
            Ok(Some(e))
        }
        _ => Ok(None),
    }
}

fn namespaces(ids: &pb::TaskKobjIdsEntry, root: Option<&pb::TaskKobjIdsEntry>) -> Result<()> {
    let Some(root) = root else { return Ok(()) };
    for (name, a, b) in [
        ("pid", ids.pid_ns_id, root.pid_ns_id),
        ("net", ids.net_ns_id, root.net_ns_id),
        ("ipc", ids.ipc_ns_id, root.ipc_ns_id),
        ("uts", ids.uts_ns_id, root.uts_ns_id),
        ("mnt", ids.mnt_ns_id, root.mnt_ns_id),
        ("user", ids.user_ns_id, root.user_ns_id),
        ("cgroup", ids.cgroup_ns_id, root.cgroup_ns_id),
    ] {
        if a.is_some() && b.is_some() && a != b {
            return Err(unsupported(
                format!("{name} namespace"),
                "it has one of its own",
            ));
        }
    }
    Ok(())
}

/// Highest address user space may map, exclusive.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

fn vmas(mm: &pb::MmEntry, pid: u32) -> Result<()> {
    let mut end = 0;
    for v in &mm.vmas {
        if v.status & crate::dump::mm::status::VSYSCALL != 0 {
            continue;
        }
        let name = || format!("mapping {:#x}-{:#x} of mm-{pid}.img", v.start, v.end);
        if v.start >= v.end || v.start % 4096 != 0 || v.end % 4096 != 0 || v.end > TASK_SIZE {
            return Err(bad(
                name(),
                "its bounds are not page addresses of user space",
            ));
        }
        if v.status & crate::dump::mm::status::GUARD != 0 {
            continue;
        }
        if v.start < end {
            return Err(bad(name(), "it overlaps the one before it"));
        }
        end = v.end;
    }
    Ok(())
}

/// The pages image must hold all that its map names: known before anything is done.
fn whole(dir: &ImageDir, (pages_id, map): &(u32, Vec<pb::PagemapEntry>)) -> Result<()> {
    let pages: u64 = map.iter().filter_map(|e| e.nr_pages).sum();
    if pages == 0 {
        return Ok(());
    }
    let name = Kind::Pages.file_of(*pages_id);
    let failed = |e: std::io::Error| bad(name.clone(), &e.to_string());
    let size = dir.open_raw(&name)?.metadata().map_err(failed)?.len();
    if pages > size / 4096 {
        return Err(Error::new("E5021", Blame::Image, name)
            .why("it is shorter than its pagemap says")
            .advice("the image is truncated: copy or dump it again"));
    }
    Ok(())
}

/// A pagemap: the number of its pages image and its entries, in order and without overlaps.
pub fn pagemap(dir: &ImageDir, name: &str) -> Result<(u32, Vec<pb::PagemapEntry>)> {
    let mut r = dir.reader(name)?;
    let head: pb::PagemapHead = r.read()?.ok_or_else(|| bad(name, "it is empty"))?;
    let mut all: Vec<pb::PagemapEntry> = r.read_rest()?;
    let mut end = 0;
    for e in &mut all {
        let n = *e.nr_pages.get_or_insert(u64::from(e.compat_nr_pages));
        if e.in_parent == Some(true) || e.flags.unwrap_or(4) & 1 != 0 {
            return Err(unsupported(
                name,
                "it is incremental: pages are in a parent image",
            ));
        }
        if e.flags.is_some_and(|f| f & 4 == 0) {
            return Err(unsupported(
                name,
                "some of its pages were left with a page server (lazy pages), not written",
            ));
        }
        let next = n
            .checked_mul(4096)
            .and_then(|n| n.checked_add(e.vaddr))
            .filter(|n| *n <= u64::MAX >> 1);
        match next {
            Some(n) if e.vaddr >= end && e.vaddr % 4096 == 0 => end = n,
            _ => return Err(bad(name, "its entries overlap or leave the address space")),
        }
    }
    Ok((head.pages_id, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entry: &pb::PagemapEntry) -> Result<(u32, Vec<pb::PagemapEntry>)> {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::open(tmp.path()).unwrap();
        let mut w = dir.writer("pagemap-1.img").unwrap();
        w.write(&pb::PagemapHead { pages_id: 7 }).unwrap();
        w.write(entry).unwrap();
        w.finish().unwrap();
        pagemap(&dir, "pagemap-1.img")
    }

    #[test]
    fn pages_that_are_elsewhere_are_refused() {
        let mut e = pb::PagemapEntry {
            vaddr: 0x1000,
            compat_nr_pages: 2,
            flags: Some(4 | 2),
            ..Default::default()
        };
        let (id, all) = read(&e).unwrap();
        // an old image has the old count only
        assert_eq!((id, all[0].nr_pages), (7, Some(2)));
        for flags in [2, 1, 0] {
            e.flags = Some(flags);
            assert!(read(&e).is_err(), "flags {flags}");
        }
        e.flags = None;
        assert!(read(&e).is_ok());
        e.in_parent = Some(true);
        assert!(read(&e).is_err());
    }
}
