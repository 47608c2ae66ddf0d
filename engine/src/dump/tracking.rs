//! Change tracking: which pages were written since the dump before.
//!
//! The target's private memory is write-protected in the kernel's own way (userfaultfd, asynchronous: the kernel lets each
//! first write happen and only remembers it), and PAGEMAP_SCAN tells what was written. The userfaultfd is made by the target,
//! fetched by the engine and closed in the target before it runs again; between two dumps a *keeper*
//! ([`stasis_kernel::keeper`]) holds it. Nothing is left in the target: when the keeper goes, the kernel takes the protection
//! back.
//!
//! A page is left to the dump before only if that is proven:
//! - The keeper lives, and has the token of the folder before: nobody began a later round. A round that protects anew ends the
//!   keeper of the one before first, so a round that fails breaks the chain instead of bending it.
//! - The process is the same (pid and start time), and the mapping was registered with our userfaultfd when it was stopped: a
//!   mapping that is new, was moved by mremap(2), belongs to a new program or to a child is not, and counts as written, whatever
//!   is said of its pages.
//! - Nothing writes past the page tables: an address space with an io_uring or an AIO context is not tracked at all, because
//!   registered buffers and requests under way write to pinned pages.
//! - The pages image before really has the page.
//!
//! KERNEL(>=6.7): asynchronous write protection, PAGEMAP_SCAN. Older kernels have soft-dirty marks instead (CONFIG_MEM_SOFT_DIRTY,
//! which Debian has): they are cleared when the pages have been listed, and a page without one was not written since. They
//! belong to the address space and to nobody, so whoever else clears them (another engine that tracks the same process) breaks
//! the chain without being noticed; the keeper then only proves that no dump of ours did. Pages of hugetlbfs have none and
//! count as written. Without either every dump holds all pages.
use super::facts::Facts;
use super::process::{self, GadgetCache};
use super::task::Task;
use crate::error::{Blame, Error, Result};
use crate::options::Options;
use crate::pages::Pages;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::keeper::{self, Keeper, Leash};
use stasis_kernel::pagemap::{self, Categories, Query, Scanner};
use stasis_kernel::procfs::{MapsLine, SmapsEntry, VmFlags};
use stasis_kernel::{fds, uffd};
use stasis_proto::prost::Message;
use stasis_proto::{ImageDir, Kind, pb};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use tracing::{debug, info, warn};

const FEATURES: u64 =
    uffd::FEATURE_WP_ASYNC | uffd::FEATURE_WP_UNPOPULATED | uffd::FEATURE_WP_HUGETLBFS_SHMEM;

/// A range of addresses: start, end.
pub type Range = (u64, u64);

/// What tracks an address space.
#[derive(Debug)]
enum Tracker {
    /// A userfaultfd of it.
    Uffd(OwnedFd),
    /// Its soft-dirty marks: its /proc/PID/clear_refs, open for writing.
    SoftDirty(OwnedFd),
}

impl Tracker {
    fn of(soft_dirty: bool, fd: OwnedFd) -> Self {
        match soft_dirty {
            true => Tracker::SoftDirty(fd),
            false => Tracker::Uffd(fd),
        }
    }
    fn fd(&self) -> &OwnedFd {
        match self {
            Tracker::Uffd(fd) | Tracker::SoftDirty(fd) => fd,
        }
    }
    fn is_soft_dirty(&self) -> bool {
        matches!(self, Tracker::SoftDirty(_))
    }
    fn again(&self) -> Result<Self> {
        Ok(Self::of(self.is_soft_dirty(), fds::dup(self.fd())?))
    }
    fn uffd(&self) -> Option<&OwnedFd> {
        match self {
            Tracker::Uffd(fd) => Some(fd),
            Tracker::SoftDirty(_) => None,
        }
    }
}

/// The tracking of an address space.
struct Space {
    start_time: u64,
    by: Tracker,
    /// Its record tells what was written since the dump before.
    unbroken: bool,
}

/// The tracking of one dump.
#[derive(Default)]
pub struct Tracking {
    /// Changes are tracked from this dump on.
    on: bool,
    /// What the folder before says.
    before: Option<pb::StasisTrackingEntry>,
    keepers: OnceCell<Vec<Keeper>>,
    spaces: BTreeMap<HostPid, Space>,
    /// For the keeper to come.
    next: Vec<(HostPid, u64, Tracker)>,
    token: Vec<u8>,
    started: Option<Leash>,
}

/// The tracking of one address space during a dump.
#[derive(Default)]
pub struct Watch {
    /// What tracks it from now on.
    now: Option<Tracker>,
    /// What did so far.
    old: Option<Tracker>,
}

impl Tracking {
    /// Looks for what earlier dumps left, while the tree still runs. `dir` knows the folder before, if there is one.
    pub fn prepare(o: &Options, on: bool, dir: &ImageDir) -> Result<Self> {
        let mut t = Tracking {
            on,
            token: token()?,
            ..Self::default()
        };
        if let Some(parent) = dir.parent() {
            let name = Kind::Tracking.file();
            match parent.read_one(&name) {
                Ok(e) => t.before = Some(e),
                Err(e) if e.is_missing() => {
                    info!("the folder before has no tracking.img: all memory is dumped")
                }
                Err(e) => warn!("all memory is dumped: {e}"),
            }
        }
        if on || o.memory.parent.is_some() {
            t.keepers();
        }
        Ok(t)
    }

    fn keepers(&self) -> &[Keeper] {
        self.keepers.get_or_init(keeper::all)
    }

    /// Takes over what keepers hold of the stopped tree. If this dump protects anew, they end: from now on nobody can take the
    /// memory for tracked since an earlier dump.
    pub fn take(&mut self, held: &[Task]) -> Result<()> {
        let mut found = BTreeMap::new();
        for k in self.keepers() {
            let Ok(record) = pb::StasisTrackingEntry::decode(&k.record[..]) else {
                continue;
            };
            let ours = self
                .before
                .as_ref()
                .is_some_and(|b| b.token == record.token);
            let mut any = false;
            for (i, s) in record.spaces.iter().enumerate() {
                let pid = HostPid(s.pid as i32);
                let Some(t) = held.iter().find(|t| t.pid == pid && t.zombie.is_none()) else {
                    continue;
                };
                if t.proc.stat()?.starttime != s.start_time {
                    continue;
                }
                any = true;
                match k.take(i) {
                    Ok(fd) => {
                        let space = Space {
                            start_time: s.start_time,
                            by: Tracker::of(s.soft_dirty(), fd),
                            unbroken: ours,
                        };
                        found.insert(pid, space);
                    }
                    Err(e) => warn!("the tracking of task {pid} is not taken over: {e}"),
                }
            }
            if any && self.on {
                k.end()?;
            }
        }
        self.spaces.append(&mut found);
        if self.before.is_some() && !self.spaces.values().any(|s| s.unbroken) {
            info!("nothing tracks changes since the dump before: all memory is dumped");
        }
        Ok(())
    }

    /// Whether a registered mapping is so by one of our keepers.
    pub fn is_ours(&mut self, task: &Task, s: &SmapsEntry) -> bool {
        if !self.spaces.contains_key(&task.pid) && self.take(std::slice::from_ref(task)).is_err() {
            return false;
        }
        let space = self.spaces.get(&task.pid);
        let fd = space.and_then(|s| s.by.uffd());
        fd.is_some_and(|fd| registered(fd, &s.map))
    }

    /// Begins with a task's address space: finds its userfaultfd or makes one.
    ///
    /// # Errors
    /// None for what cannot be tracked: that is only said. Failures of the excursion.
    pub fn watch(&mut self, t: &Task, f: &Facts, g: &mut GadgetCache) -> Result<Watch> {
        if !self.on && self.before.is_none() {
            return Ok(Watch::default());
        }
        let maps: Vec<MapsLine> = f.smaps.iter().map(|s| s.map.clone()).collect();
        if let Some(why) = past_page_tables(t, &maps)? {
            info!("memory of task {} is not tracked: {why}", t.pid);
            self.spaces.remove(&t.pid);
            return Ok(Watch::default());
        }
        // one of a program that was before the execve
        let dead = |s: &Space| {
            let any = f.smaps.iter().find(|s| trackable(s));
            any.zip(s.by.uffd()).is_some_and(|(m, fd)| {
                register(fd, &m.map).is_err_and(|e| e.errno == nix::errno::Errno::ESRCH)
            })
        };
        if self.on && self.spaces.get(&t.pid).is_some_and(dead) {
            self.spaces.remove(&t.pid);
        }
        let mut old = None;
        if let Some(s) = self.spaces.get(&t.pid)
            && s.start_time == f.stat.starttime
        {
            old = Some(t.pid);
        }
        if self.on {
            let by = match old {
                Some(pid) => Some(self.spaces[&pid].by.again()?),
                None => make(t, f, &maps, g)?,
            };
            if let Some(by) = by {
                self.next.push((t.pid, f.stat.starttime, by));
            }
        }
        let own = self.next.last().filter(|n| self.on && n.0 == t.pid);
        let before = old.and_then(|pid| self.spaces.get(&pid));
        Ok(Watch {
            now: own.map(|n| n.2.again()).transpose()?,
            old: before
                .filter(|s| s.unbroken)
                .map(|s| s.by.again())
                .transpose()?,
        })
    }

    /// What the dump before holds of an address space: sorted ranges, without what it could not read. Nothing if its images are
    /// not whole.
    pub fn before(&self, dir: &ImageDir, pid: HostPid, image: &str) -> Vec<Range> {
        let (Some(before), Some(parent)) = (&self.before, dir.parent()) else {
            return Vec::new();
        };
        if !self.spaces.get(&pid).is_some_and(|s| s.unbroken) {
            return Vec::new();
        }
        let held = match Pages::map(parent, image) {
            Ok(p) => p.runs.iter().map(|r| (r.0, r.0 + r.1)).collect(),
            Err(e) => {
                warn!("all memory of task {pid} is dumped: {e}");
                Vec::new()
            }
        };
        let lost = before.spaces.iter().filter(|s| s.pid == pid.0 as u32);
        let mut lost: Vec<Range> = lost
            .flat_map(|s| &s.lost)
            .map(|r| (r.start, r.start.saturating_add(r.len)))
            .collect();
        lost.sort_unstable();
        crate::restore::minus(&held, &lost)
    }

    /// Starts the keeper. The tree may go on then.
    pub fn keep(&mut self) -> Result<()> {
        if self.next.is_empty() {
            return Ok(());
        }
        let record = self.entry(&BTreeMap::new()).encode_to_vec();
        let pidfds = self
            .next
            .iter()
            .map(|n| fds::pidfd_open(n.0, 0))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let held: Vec<OwnedFd> = self
            .next
            .iter()
            .map(|n| fds::dup(n.2.fd()))
            .collect::<std::result::Result<_, _>>()?;
        let keeper = keeper::start(&record, &held, &pidfds)?;
        let pid = keeper.pid;
        self.started = Some(keeper);
        debug!("process {pid} keeps track of {} address spaces", held.len());
        Ok(())
    }

    fn entry(&self, lost: &BTreeMap<HostPid, Vec<Range>>) -> pb::StasisTrackingEntry {
        pb::StasisTrackingEntry {
            token: self.token.clone(),
            spaces: self
                .next
                .iter()
                .map(|(pid, start_time, by)| pb::StasisTrackedEntry {
                    pid: pid.0 as u32,
                    start_time: *start_time,
                    soft_dirty: by.is_soft_dirty().then_some(true),
                    lost: lost
                        .get(pid)
                        .into_iter()
                        .flatten()
                        .map(|(a, b)| pb::StasisRange {
                            start: *a,
                            len: b - a,
                        })
                        .collect(),
                })
                .collect(),
        }
    }

    /// Writes tracking.img. `lost`: pages whose contents the image does not hold.
    pub fn write(&self, dir: &ImageDir, lost: &BTreeMap<HostPid, Vec<Range>>) -> Result<()> {
        match self.started.is_some() {
            true => Ok(dir.write_one(&Kind::Tracking.file(), &self.entry(lost))?),
            false => Ok(dir.remove(&Kind::Tracking.file())?),
        }
    }

    /// The dump is complete: the keeper stays. Without this it goes with the engine.
    pub fn stay(&mut self) -> Result<()> {
        self.started.take().map_or(Ok(()), |k| Ok(k.let_go()?))
    }
}

/// Ends the tracking that began with the dump in this folder or in one next to it: nobody will build on it.
pub fn untrack(folders: &std::path::Path) {
    let tokens: Vec<Vec<u8>> = std::fs::read_dir(folders)
        .into_iter()
        .flatten()
        .filter_map(|f| {
            let dir = ImageDir::open(&f.ok()?.path()).ok()?;
            let e: pb::StasisTrackingEntry = dir.read_one(&Kind::Tracking.file()).ok()?;
            Some(e.token)
        })
        .collect();
    for k in keeper::all() {
        let record = pb::StasisTrackingEntry::decode(&k.record[..]);
        if record.is_ok_and(|r| tokens.contains(&r.token))
            && let Err(e) = k.end()
        {
            warn!("changes are still tracked: {e}");
        }
    }
}

fn token() -> Result<Vec<u8>> {
    use std::io::Read;
    let mut b = [0u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut b))
        .map_err(|e| {
            Error::new("E6700", Blame::Host, "/dev/urandom")
                .why(e)
                .advice("make /dev/urandom readable")
        })?;
    Ok(b.to_vec())
}

/// Who writes into memory without the kernel's page tables knowing.
fn past_page_tables(t: &Task, maps: &[MapsLine]) -> Result<Option<&'static str>> {
    if maps.iter().any(|m| m.path.starts_with(b"/[aio]")) {
        return Ok(Some(
            "it has an AIO context, whose requests write to pinned pages",
        ));
    }
    const URING: &[u8] = b"anon_inode:[io_uring]";
    let mapped = maps.iter().any(|m| m.path.starts_with(URING));
    let open = || -> Result<bool> {
        let fds = t.proc.fds()?;
        Ok(fds
            .into_iter()
            .any(|fd| t.proc.fd_link(fd).is_ok_and(|l| l == URING)))
    };
    if mapped || open()? {
        return Ok(Some("it has an io_uring, whose buffers may be pinned"));
    }
    Ok(None)
}

/// Private memory whose pages dumps hold.
pub fn trackable(s: &SmapsEntry) -> bool {
    use stasis_kernel::procfs::MapName::{Other, Uprobes, Vdso, Vsyscall, Vvar, VvarVclock};
    !s.map.shared
        && !s
            .flags
            .intersects(VmFlags::IO | VmFlags::PFN_MAP | VmFlags::DROPPABLE)
        && !s.map.path.starts_with(b"/[aio]")
        && !matches!(
            s.map.name(),
            Vdso | Vvar | VvarVclock | Vsyscall | Uprobes | Other(_)
        )
}

fn register(
    fd: &OwnedFd,
    m: &MapsLine,
) -> std::result::Result<u64, stasis_kernel::error::SysError> {
    uffd::register(fd.as_fd(), RemotePtr(m.start), m.len(), uffd::MODE_WP)
}

/// KERNEL: registering a mapping again does nothing if it is registered with this userfaultfd, and is EBUSY if with another
/// (fs/userfaultfd.c). For a mapping that is registered, so smaps says.
fn registered(fd: &OwnedFd, m: &MapsLine) -> bool {
    register(fd, m).is_ok()
}

/// What can track the task: a userfaultfd, or soft-dirty marks; `None` where there is neither.
fn make(t: &Task, f: &Facts, maps: &[MapsLine], g: &mut GadgetCache) -> Result<Option<Tracker>> {
    let why = match process::userfaultfd(t, (&f.leader, &f.rules), maps, g, None)? {
        None => "it may not make a userfaultfd".to_string(),
        Some(fd) => match uffd::api(fd.as_fd(), FEATURES) {
            Ok(_) => return Ok(Some(Tracker::Uffd(fd))),
            Err(e) => format!("the kernel has no asynchronous write protection ({e})"),
        },
    };
    if pagemap::soft_dirty_works()? {
        debug!(
            "memory of task {} is tracked by soft-dirty marks: {why}",
            t.pid
        );
        let fd = t.proc.open_file("clear_refs", libc::O_WRONLY)?;
        return Ok(Some(Tracker::SoftDirty(fd)));
    }
    warn!(
        "memory of task {} is not tracked: {why}, and no soft-dirty marks",
        t.pid
    );
    Ok(None)
}

impl Watch {
    /// Whether what the kernel says of writing in this mapping holds since the dump before.
    /// If so, the category of pages that were.
    pub fn believes(&self, scanner: &Scanner, s: &SmapsEntry) -> Option<Categories> {
        match self.old.as_ref()? {
            Tracker::Uffd(fd) => {
                let ours = s.flags.contains(VmFlags::UFFD_WP) && registered(fd, &s.map);
                ours.then_some(Categories::WRITTEN)
            }
            Tracker::SoftDirty(_) => {
                // KERNEL: a mapping that is new, or grew, is soft-dirty as a whole. Pages of zeroes that were only read have no
                // mark, whatever was there before: they must be told from others. Marks of huge pages are not kept (fs/proc/
                // task_mmu.c: clear_refs_pte_range is all there is)
                let new = VmFlags::SOFT_DIRTY | VmFlags::HUGETLB;
                let tells = Categories::SOFT_DIRTY | Categories::PFN_ZERO;
                let marked = !s.flags.intersects(new) && scanner.supported().contains(tells);
                marked.then_some(Categories::SOFT_DIRTY)
            }
        }
    }
    /// All of the address space has been scanned: pages are marked again from here on.
    pub fn begin(&self) -> Result<()> {
        match &self.now {
            Some(Tracker::SoftDirty(fd)) => Ok(pagemap::clear_soft_dirty(fd.as_fd())?),
            _ => Ok(()),
        }
    }
    /// Protects a mapping that has just been scanned. What cannot be is not registered afterwards, and so counts as written.
    pub fn protect(&self, scanner: &mut Scanner, s: &SmapsEntry) -> Result<()> {
        let Some(Tracker::Uffd(fd)) = &self.now else {
            return Ok(());
        };
        if !trackable(s) {
            return Ok(());
        }
        if let Err(e) = register(fd, &s.map) {
            debug!("mapping {} is not tracked: {e}", s.map);
            return Ok(());
        }
        let guard = match scanner.supported().contains(Categories::GUARD) {
            true => Categories::GUARD,
            false => Categories::NONE,
        };
        let query = Query {
            all: guard,
            any: Categories::PRESENT | Categories::SWAPPED,
            inverted: guard,
            report: Categories::NONE,
        };
        let mut all = Vec::new();
        let (start, end) = (RemotePtr(s.map.start), RemotePtr(s.map.end));
        if let Err(e) = scanner.scan_and_protect(start, end, &query, &mut all) {
            // not half protected: nothing of it is believed
            uffd::unregister(fd.as_fd(), start, s.map.len())?;
            debug!("mapping {} is not tracked: {e}", s.map);
        }
        Ok(())
    }
}
