//! What a folder holds, read once and checked before anything is done. Images are untrusted.
use super::ahead::Ahead;
use super::homes::SORTS;
use super::spaces::Spaces;
use super::users::Users;
use crate::error::{Blame, Error, Result};
use crate::namespaces::user::Ids;
use crate::pages::Pages;
use stasis_kernel::ns::Ns;
use stasis_proto::prost::{Message, Name};
use stasis_proto::{ImageDir, Kind, pb};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// One process of the tree.
pub struct TaskImages {
    /// Its place in the tree.
    pub entry: pb::PstreeEntry,
    /// The process's part of its core.
    pub tc: pb::TaskCoreEntry,
    /// Its threads, the leader first. Empty for zombies.
    pub threads: Vec<ThreadImage>,
    /// What it shares with whom.
    pub ids: pb::TaskKobjIdsEntry,
    /// Its address space; `None` if it shares that of an earlier task, or is a zombie.
    pub mm: Option<pb::MmEntry>,
    /// Its pages.
    pub pages: Option<Pages>,
    /// Directories and umask.
    pub fs: pb::FsEntry,
}

impl TaskImages {
    /// Zombies exist only to be waited for.
    pub fn is_zombie(&self) -> bool {
        matches!(self.tc.task_state, 2 | 6)
    }
}

/// What is remembered of a thread: there may be tens of thousands of them.
pub struct ThreadImage {
    /// Its number as it sees itself.
    pub tid: u32,
    /// The set of control groups it is in; 0: it says none.
    pub cg_set: u32,
    /// Seccomp mode and newest filter.
    pub seccomp: (i32, Option<u32>),
    /// Where it goes on.
    pub ip: u64,
    /// The rest, unless it is read again when it is wanted.
    core: Option<Box<pb::CoreEntry>>,
}

/// So many threads are remembered whole.
const KEPT: usize = 512;

impl ThreadImage {
    /// `process`: that of its leader.
    pub fn new(tid: u32, core: pb::CoreEntry, process: &pb::TaskCoreEntry, leader: bool) -> Self {
        let tc = core.thread_core.as_ref();
        let mode = tc.and_then(|c| c.seccomp_mode);
        let filter = tc.and_then(|c| c.seccomp_filter);
        Self {
            tid,
            cg_set: tc.and_then(|t| t.cg_set).or(process.cg_set).unwrap_or(0),
            seccomp: (
                mode.or(process.old_seccomp_mode.filter(|_| leader))
                    .unwrap_or(0),
                filter.or(process.old_seccomp_filter),
            ),
            ip: core.thread_info.as_ref().map_or(0, |i| i.gpregs.ip),
            core: Some(core.into()),
        }
    }
    /// All that the image has of it, without its process.
    ///
    /// # Errors
    /// It is read again, and damaged or gone by now.
    pub fn core(&self, dir: &ImageDir) -> Result<Cow<'_, pb::CoreEntry>> {
        match &self.core {
            Some(c) => Ok(Cow::Borrowed(c)),
            None => {
                let mut core = one(dir, Kind::Core, self.tid)?;
                of_thread(self.tid, &mut core)?;
                Ok(Cow::Owned(core))
            }
        }
    }
}

/// Checks that a core tells of a thread, and leaves out its process.
fn of_thread(tid: u32, core: &mut pb::CoreEntry) -> Result<()> {
    let process = core.tc.take();
    let (Some(_), Some(tc)) = (&core.thread_info, &mut core.thread_core) else {
        return Err(bad(
            format!("core-{tid}.img"),
            "it has no registers or no thread part",
        ));
    };
    // in old images the mask is the process's
    tc.blk_sigset
        .get_or_insert(process.map_or(0, |t| t.blk_sigset));
    Ok(())
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
    /// Which module gave labels where the tree was dumped.
    pub lsm: pb::Lsmtype,
    /// The set of control groups the engine that dumped was in; 0: it does not say.
    pub cgroups_of_dumper: u32,
    /// The clocks of the tree's time namespace, if it has one of its own.
    pub clocks: Option<pb::TimensEntry>,
    /// Plugins without which it cannot be restored.
    pub plugins: Vec<String>,
    /// What plugins saved of tasks' devices: pid as the task sees it, plugin, data.
    pub devices: Vec<(u32, String, Vec<u8>)>,
    /// Pid namespaces, and the numbers of tasks in them.
    pub spaces: Spaces,
    /// User namespaces below the tree's.
    pub users: Users,
    /// Namespaces that were not those of the engine that dumped, with their ids; without time.
    pub own_namespaces: Vec<(Ns, u32)>,
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
    let mut users = Users::read(dir)?;
    let mut seen = BTreeSet::new();
    let mut spaces = BTreeSet::new();
    let entries: Vec<pb::PstreeEntry> = dir.read_all(&Kind::Pstree.file())?;
    let mut ahead = Ahead::new(dir, &entries);
    let mut kept = 0;
    for (i, entry) in entries.iter().enumerate() {
        let entry = entry.clone();
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
        let mut core = ahead.core(i, 0)?;
        if core.mtype != pb::core_entry::March::X8664 as i32 {
            return Err(unsupported(name(), "it was dumped on another architecture"));
        }
        let tc = core
            .tc
            .as_mut()
            .ok_or_else(|| bad(name(), "its core has no task part"))?;
        let mut t = TaskImages {
            entry,
            tc: std::mem::take(tc),
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
        tc.blk_sigset = t.tc.blk_sigset;
        let own = ahead.own(i)?;
        t.ids = match core.ids {
            Some(ids) => ids,
            None => own.ids?,
        };
        let first = tasks.first().map_or(&t.ids, |r| &r.ids);
        namespaces(&t.ids, first, root_ids.as_ref(), &users).map_err(|e| e.on(name()))?;
        users.settle(&t);
        if t.entry.threads.first() != Some(&pid) {
            return Err(bad(name(), "its first thread is not its leader"));
        }
        let mut first = Some(core);
        for (k, tid) in t.entry.threads.iter().copied().enumerate() {
            if k > 0 && (tid == 0 || tid > i32::MAX as u32 || !seen.insert(tid)) {
                return Err(bad(name(), "a thread id is not one, or is there twice"));
            }
            let mut core = match first.take() {
                Some(c) => c,
                None => ahead.core(i, k)?,
            };
            of_thread(tid, &mut core)?;
            let mut th = ThreadImage::new(tid, core, &t.tc, k == 0);
            kept += 1;
            th.core = th.core.filter(|_| kept <= KEPT);
            t.threads.push(th);
        }
        t.fs = own.fs?;
        if spaces.insert(t.ids.vm_id) {
            let mm = own.mm?;
            vmas(&mm, pid)?;
            t.mm = Some(mm);
            t.pages = Some(own.pages?);
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
        let Some(mut other) = files.insert(f.id, f) else {
            continue;
        };
        // a queue of a tun device is described twice under one number: as what was opened, and as what it is
        match files.get_mut(&other.id) {
            Some(f) if f.tunf.is_some() && other.reg.is_some() => f.reg = other.reg,
            Some(f) if f.reg.is_some() && other.tunf.is_some() => {
                other.reg = f.reg.take();
                *f = other;
            }
            _ => return Err(bad("files.img", "two entries have the same id")),
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
    let spaces = Spaces::of(dir, &entries, tasks[0].ids.pid_ns_id)?;
    for t in tasks.iter().filter(|t| !t.is_zombie()) {
        let below = t.entry.stasis.as_ref().and_then(|s| s.pid_ns);
        let wanted = below.or(tasks[0].ids.pid_ns_id);
        if t.ids.pid_ns_id.is_some_and(|id| Some(id) != wanted) {
            let what = format!("task {} of pstree.img", t.entry.pid);
            return Err(bad(
                what,
                "it is in another pid namespace than its identities say",
            ));
        }
    }
    let mut own_namespaces = own_namespaces(&tasks[0].ids, root_ids.as_ref());
    // the first task enters it last, like others
    own_namespaces.retain(|(ns, id)| *ns != Ns::User || !users.has(*id));
    if let Some((_, id)) = own_namespaces.iter().find(|n| n.0 == Ns::User) {
        // the engine writes it, and has other numbers for the users inside
        let ids = Ids::of_image(&crate::namespaces::user::load(dir, *id)?);
        let outside = |l: u32| (l == u32::MAX).then_some(l).or(ids.uid_outside(l));
        for t in &mut tasks {
            t.tc.loginuid = t.tc.loginuid.and_then(outside);
        }
    }
    Ok(Images {
        lsm: crate::lsm::of_image(&inv),
        plugins: inv.plugins_entry.map(|p| p.plugins).unwrap_or_default(),
        devices: Vec::new(),
        cgroups_of_dumper: inv.root_cg_set.unwrap_or(0),
        own_namespaces,
        spaces,
        users,
        tasks,
        files,
        tables,
        seccomp,
        clocks,
    })
}

impl Images {
    /// Lets go of what the plan of its address spaces was made of.
    pub fn forget_memory(&mut self) {
        for t in &mut self.tasks {
            t.pages = None;
            if let Some(mm) = &mut t.mm {
                mm.vmas = Vec::new();
            }
        }
    }
}

pub(super) fn one<T: Message + Name + Default>(dir: &ImageDir, kind: Kind, id: u32) -> Result<T> {
    Ok(dir.read_one(&kind.file_of(id))?)
}

fn clocks(
    dir: &ImageDir,
    tasks: &[TaskImages],
    engine: Option<&pb::TaskKobjIdsEntry>,
) -> Result<Option<pb::TimensEntry>> {
    let of = |t: &TaskImages| t.ids.time_ns_id;
    match (of(&tasks[0]), engine.and_then(|e| e.time_ns_id)) {
        (Some(tree), Some(engine)) if tree != engine => {
            let e = dir.read_one(&Kind::Timens.file_of(tree))?;
            crate::clocks::check(&e)?;
            Ok(Some(e))
        }
        _ => Ok(None),
    }
}

/// The id of a task's namespace.
pub fn id_of(ids: &pb::TaskKobjIdsEntry, ns: Ns) -> Option<u32> {
    match ns {
        Ns::User => ids.user_ns_id,
        Ns::Pid => ids.pid_ns_id,
        Ns::Mnt => ids.mnt_ns_id,
        Ns::Net => ids.net_ns_id,
        Ns::Ipc => ids.ipc_ns_id,
        Ns::Uts => ids.uts_ns_id,
        Ns::Cgroup => ids.cgroup_ns_id,
        Ns::Time => ids.time_ns_id,
    }
}

/// All tasks must be in the root's namespaces, but for the sorts of which a tree may have several.
fn namespaces(
    ids: &pb::TaskKobjIdsEntry,
    root: &pb::TaskKobjIdsEntry,
    engine: Option<&pb::TaskKobjIdsEntry>,
    users: &Users,
) -> Result<()> {
    // the tree's own is that of the first task, or the engine's
    let below = |ids: &pb::TaskKobjIdsEntry| ids.user_ns_id.is_some_and(|id| users.has(id));
    let tree = match below(root) {
        true => engine.unwrap_or(root),
        false => root,
    };
    for ns in Ns::ALL {
        let root = if ns == Ns::User { tree } else { root };
        let (a, b) = (id_of(ids, ns), id_of(root, ns));
        if ns == Ns::User && below(ids) {
            continue;
        }
        let engines = engine.is_some_and(|e| id_of(e, ns) == a);
        if a.is_some()
            && b.is_some()
            && a != b
            && (engines || !SORTS.contains(&ns) && ns != Ns::Pid)
        {
            return Err(unsupported(
                format!("{} namespace", ns.name()),
                "it has another than the root of the tree",
            ));
        }
    }
    Ok(())
}

/// Namespaces of the tree that were not the engine's when it was dumped.
fn own_namespaces(
    tree: &pb::TaskKobjIdsEntry,
    engine: Option<&pb::TaskKobjIdsEntry>,
) -> Vec<(Ns, u32)> {
    let Some(engine) = engine else {
        return Vec::new();
    };
    let sorts = Ns::ALL.into_iter().filter(|n| *n != Ns::Time);
    let own = |ns: Ns| match (id_of(tree, ns), id_of(engine, ns)) {
        (Some(a), Some(b)) if a != b => Some((ns, a)),
        _ => None,
    };
    sorts.filter_map(own).collect()
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
