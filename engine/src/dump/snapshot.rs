//! `--snapshot`: the tree stands still only while its metadata are written; its memory is that of this instant nevertheless.
//!
//! Three steps, because protecting memory takes 10 ms for each GiB of small pages:
//! 1. The tree is stopped for a moment, each address space gets a userfaultfd ([`Snapshot::prepare`]).
//! 2. While it runs, its large private mappings are listed and write-protected. Where it writes, protection is lifted again at
//!    once.
//! 3. The tree is stopped. What was written since, or came, is protected again ([`Snapshot::protect`]): that is little, however
//!    much memory there is. What cannot be protected (memory of files, shared memory, small mappings) is copied now. The tree
//!    goes on and the rest is saved behind its back ([`super::drain`]).
//!
//! VmFlags are read before step 3, because that walks all page tables (18 ms for each GiB), and once more after it: if
//! they differ, nobody knows what they were.
//!
//! Long because what must be undone at each step stands beside the step.
use super::drain::{self, Late, Listener, Space, refused};
use super::facts::Seccomp;
use super::mm::Run;
use super::process::{self, GadgetCache};
use super::sink::Sink;
use super::task::Task;
use super::{seize, suspend_seccomp, thread};
use crate::error::{Error, Result};
use crate::options::Options;
use nix::errno::Errno;
use stasis_kernel::fds::{self, Kcmp};
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::pagemap::{Categories, PageRange, Query, Scanner};
use stasis_kernel::procfs::{MapName, MapsLine, ProcDir, SmapsEntry, Stat, VmFlags};
use stasis_kernel::uffd;
use stasis_proto::ImageDir;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Smaller mappings are copied while the tree stands still.
const LARGE: u64 = 64 * 1024;
/// Protected at a time: nobody may map memory meanwhile.
const STEP: u64 = 64 << 20;
/// Neighbours with a smaller gap are protected in one go.
const GAP: u64 = 128 * 4096;
/// Bits of VmFlags that are ours, or nobody's concern.
const OURS: u64 = VmFlags::UFFD_WP.0 | VmFlags::SOFT_DIRTY.0;

/// An address space on its way.
struct Held {
    space: Arc<Space>,
    /// Pages that were there in step 2, by mapping; sorted.
    listed: Vec<(u64, u64)>,
    /// What of step 3 is protected (start, end).
    mappings: Mutex<Vec<(u64, u64)>>,
    /// Ranges to be scanned wholly.
    moved: Vec<(u64, u64)>,
    /// As it was at the instant.
    stat: Mutex<Option<Stat>>,
    flags: Mutex<Vec<SmapsEntry>>,
}

/// What step 2 has found.
struct Watched {
    /// All mappings.
    entries: Vec<SmapsEntry>,
    /// Pages that are there, of those that are protected.
    listed: Vec<(u64, u64)>,
}

/// An image whose late pages are missing yet.
pub struct Open {
    pid: HostPid,
    id: u32,
    to: Sink,
    late: Vec<Late>,
    len: u64,
}

/// What the instant holds.
pub struct Snapshot {
    held: BTreeMap<HostPid, Held>,
    listener: Arc<Listener>,
    thread: Option<JoinHandle<()>>,
    /// Mappings as they were in step 2.
    early: BTreeMap<HostPid, Vec<SmapsEntry>>,
    open: Arc<Mutex<Vec<Open>>>,
    images: Vec<(HostPid, u32, u64)>,
    /// How long the tree was stopped in step 1.
    pub stopped: Duration,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.release();
        self.listener.stop();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Snapshot {
    /// Steps 1 and 2. A task whose memory cannot be protected is copied while it stands still: that is said.
    ///
    /// # Errors
    /// Those of stopping the tree.
    pub fn prepare(o: &Options, gadgets: &mut GadgetCache) -> Result<Self> {
        let begun = Instant::now();
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd")
            .ok()
            .map(OwnedFd::from);
        let mut held = Vec::new();
        let seized = seize::tree(HostPid(o.pid), 0, begun + o.timeout, &mut held);
        let made = seized.and_then(|()| make_all(o, &mut held, gadgets, device.as_ref()));
        let released = seize::let_go(held);
        let made = made?;
        released?;
        let (listener, thread) = Listener::start();
        let mut s = Self {
            held: BTreeMap::new(),
            listener,
            thread: Some(thread),
            early: BTreeMap::new(),
            open: Arc::default(),
            images: Vec::new(),
            stopped: begun.elapsed(),
        };
        crate::kill_point();
        for (pid, fd) in made {
            let space = Arc::new(Space::new(pid, fd));
            match s.watch(&space) {
                Ok(Watched { entries, listed }) => {
                    s.early.insert(pid, entries);
                    let held = Held {
                        space,
                        listed,
                        mappings: Mutex::default(),
                        moved: Vec::new(),
                        stat: Mutex::default(),
                        flags: Mutex::default(),
                    };
                    s.held.insert(pid, held);
                }
                Err(e) => warn!("{}", refused(pid, e)),
            }
            crate::kill_point();
        }
        Ok(s)
    }
    /// Step 2 for one address space.
    fn watch(&self, space: &Arc<Space>) -> Result<Watched> {
        uffd::api(space.fd().as_fd(), drain::FEATURES)?;
        self.listener.add(space.clone());
        let proc = ProcDir::open(space.pid)?;
        let entries = proc.smaps()?;
        let mut scanner = Scanner::of(&proc)?;
        let mut listed = Vec::new();
        for e in entries.iter().filter(|e| protectable(e)) {
            // what goes away meanwhile is looked at again when the tree stands still
            let (fd, m) = (space.fd().as_fd(), &e.map);
            if uffd::register(fd, RemotePtr(m.start), m.len(), uffd::MODE_WP).is_err() {
                continue;
            }
            let mut at = m.start;
            while at < m.end {
                let n = STEP.min(m.end - at);
                let _ = protect(space, at, n);
                at += n;
            }
            let mut found = Vec::new();
            let (start, end) = (RemotePtr(m.start), RemotePtr(m.end));
            scanner.scan(start, end, &Query::POPULATED, &mut found)?;
            listed.extend(
                found
                    .iter()
                    .filter(|r| !r.categories.contains(Categories::PFN_ZERO))
                    .map(|r| (r.start, r.end)),
            );
        }
        Ok(Watched { entries, listed })
    }
    /// The tree stands still from here on.
    pub fn still(&mut self) {
        for h in self.held.values_mut() {
            h.moved = h.space.still();
        }
    }
    /// The mappings of a stopped task, if they are known well enough; `None`: read smaps.
    pub fn mappings(&self, pid: HostPid) -> Result<Option<Vec<SmapsEntry>>> {
        let (Some(h), Some(early)) = (self.held.get(&pid), self.early.get(&pid)) else {
            return Ok(None);
        };
        let proc = ProcDir::open(pid)?;
        let maps = proc.maps()?;
        *lock(&h.stat) = Some(proc.stat()?);
        let entries = match known(&maps, early) {
            Some(all) => all,
            None => {
                debug!("task {pid} has new mappings: smaps is read again");
                let mut all = proc.smaps()?;
                for e in &mut all {
                    let fd = h.space.fd().as_fd();
                    let register =
                        || uffd::register(fd, RemotePtr(e.map.start), e.map.len(), uffd::MODE_WP);
                    // ours: not the task's own
                    if e.flags.contains(VmFlags::UFFD_WP) && register().is_ok() {
                        e.flags = VmFlags(e.flags.0 & !VmFlags::UFFD_WP.0);
                    }
                }
                all
            }
        };
        *lock(&h.flags) = entries.clone();
        Ok(Some(entries))
    }
    /// Step 3 for one mapping of a stopped task: protects it, lists its pages as [late](Run::late), gives its guard ranges.
    /// `None`: it must be copied now.
    ///
    /// # Errors
    /// Scans that fail.
    pub fn protect(
        &self,
        scanner: &mut Scanner,
        pid: HostPid,
        s: &SmapsEntry,
        runs: &mut Vec<Run>,
    ) -> Result<Option<Vec<PageRange>>> {
        let (Some(h), true) = (self.held.get(&pid), protectable(s)) else {
            return Ok(None);
        };
        let (m, fd) = (&s.map, h.space.fd().as_fd());
        let (start, end) = (RemotePtr(m.start), RemotePtr(m.end));
        if let Err(e) = uffd::register(fd, start, m.len(), uffd::MODE_WP) {
            debug!("mapping {m} is copied at once: {e}");
            return Ok(None);
        }
        let moved = h.moved.iter().any(|r| r.0 < m.end && r.1 > m.start);
        let query = Query {
            all: match moved {
                true => Categories::NONE,
                false => Categories::WRITTEN,
            },
            ..Query::POPULATED
        };
        let mut found = Vec::new();
        scanner.scan(start, end, &query, &mut found)?;
        for (a, b) in joined(&found) {
            if let Err(e) = patiently(|| protect(&h.space, a, b - a)) {
                debug!("mapping {m} is copied at once: {e}");
                return Ok(None);
            }
        }
        let mut guards = Vec::new();
        if scanner.supported().contains(Categories::GUARD) {
            scanner.scan(start, end, &Query::GUARDS, &mut guards)?;
        }
        if s.shared > 0 {
            h.space.is_shared();
        }
        let pages = found
            .iter()
            .filter(|r| !r.categories.contains(Categories::PFN_ZERO))
            .map(|r| (r.start, r.end));
        for (a, b) in united(pages, &h.listed, (m.start, m.end)) {
            Run {
                lazy: !s.flags.intersects(VmFlags::LOCKED),
                late: true,
                ..Run::at(a, b - a)
            }
            .join(runs);
        }
        lock(&h.mappings).push((m.start, m.end));
        Ok(Some(guards))
    }
    /// Takes an image in which late pages are missing.
    pub fn hand(&self) -> impl FnOnce(HostPid, u32, Sink, Vec<Late>, u64) + Send + 'static {
        let open = self.open.clone();
        move |pid, id, to, late, len| {
            lock(&open).push(Open {
                pid,
                id,
                to,
                late,
                len,
            });
        }
    }
    /// All is listed: the tree may run.
    ///
    /// # Errors
    /// Those of finishing an image that lacks nothing.
    pub fn ready(&mut self, dir: &ImageDir) -> Result<()> {
        for o in std::mem::take(&mut *lock(&self.open)) {
            match self.held.get(&o.pid) {
                Some(h) if !o.late.is_empty() => {
                    h.space.begin(o.to, &o.late, &lock(&h.mappings));
                    self.images.push((o.pid, o.id, o.len));
                }
                _ => o.to.finish(dir, o.id, o.len)?,
            }
        }
        Ok(())
    }
    /// Saves what is to be saved of the running tree. `Ok(Some)`: why that is not possible any more.
    ///
    /// # Errors
    /// Those of writing.
    pub fn drain(&mut self, dir: &ImageDir) -> Result<Option<String>> {
        if let Some(why) = self.listener.drain()? {
            return Ok(Some(why));
        }
        for h in self.held.values() {
            if let Some(why) = h.other_since()? {
                return Ok(Some(format!("task {}: {why}", h.space.pid)));
            }
        }
        for (pid, id, len) in std::mem::take(&mut self.images) {
            let image = self.held.get(&pid).and_then(|h| h.space.image());
            let image = image.ok_or_else(|| Error::bug("an image is in use"))?;
            image.finish(dir, id, len)?;
        }
        self.release();
        Ok(None)
    }
    /// Lifts all protection, in steps: closing the descriptor would do it in one, and stop the task for that time.
    fn release(&self) {
        for h in self.held.values() {
            for (start, end) in lock(&h.mappings).iter() {
                let mut at = *start;
                while at < *end {
                    let n = STEP.min(end - at);
                    if uffd::unregister(h.space.fd().as_fd(), RemotePtr(at), n).is_err() {
                        // moved, or gone: closing finds it
                        break;
                    }
                    at += n;
                }
            }
        }
    }
}

impl Held {
    /// Why what was read may be another program's, or described wrongly.
    fn other_since(&self) -> Result<Option<String>> {
        let before = lock(&self.stat).clone();
        let entries = std::mem::take(&mut *lock(&self.flags));
        let pid = self.space.pid;
        let ended = "it has ended, or runs another program".to_owned();
        let Ok(proc) = ProcDir::open(pid) else {
            return Ok(Some(ended));
        };
        let (Ok(now), Some(before)) = (proc.stat(), before) else {
            return Ok(Some(ended));
        };
        // randomized: another program has others
        let mark = |s: &Stat| {
            (
                s.starttime,
                s.start_stack,
                s.start_code,
                s.arg_start,
                s.env_start,
            )
        };
        if mark(&now) != mark(&before) {
            return Ok(Some(ended));
        }
        let after = proc.smaps().unwrap_or_default();
        for e in &entries {
            let same = after.binary_search_by_key(&e.map.start, |a| a.map.start);
            if let Ok(i) = same
                && after[i].map == e.map
                && after[i].flags.0 & !OURS != e.flags.0 & !OURS
            {
                return Ok(Some(format!("it has changed mapping {} meanwhile", e.map)));
            }
        }
        Ok(None)
    }
}

/// Step 1 for all address spaces of a stopped tree.
fn make_all(
    o: &Options,
    held: &mut [Task],
    gadgets: &mut GadgetCache,
    device: Option<&OwnedFd>,
) -> Result<Vec<(HostPid, OwnedFd)>> {
    let mut made: Vec<(HostPid, OwnedFd)> = Vec::new();
    for t in held.iter_mut().filter(|t| t.zombie.is_none()) {
        let same = |m: &(HostPid, OwnedFd)| {
            fds::kcmp(m.0, t.pid, Kcmp::Vm).is_ok_and(|o| o == Ordering::Equal)
        };
        if made.iter().any(same) {
            continue;
        }
        match make(o, t, gadgets, device).map_err(|e| e.on(format!("task {}", t.pid)))? {
            Some(fd) => made.push((t.pid, fd)),
            None => warn!("{}", refused(t.pid, "it may not make a userfaultfd")),
        }
        crate::kill_point();
    }
    Ok(made)
}

fn make(
    o: &Options,
    t: &mut Task,
    gadgets: &mut GadgetCache,
    device: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>> {
    let pid = t.pid;
    thread::look(&mut t.threads[..1], pid)?;
    let leader = t.proc.status()?;
    let mut all = vec![Seccomp::of(&leader)];
    for th in &t.threads[1..] {
        all.push(Seccomp::of(&t.proc.task_status(th.tid)?));
    }
    let rules = suspend_seccomp(t, all, o)?;
    let maps = t.proc.maps()?;
    process::userfaultfd(t, (&leader, &rules), &maps, gadgets, device)
}

/// Large private memory of no file, which the kernel can protect for us.
fn protectable(s: &SmapsEntry) -> bool {
    let not = VmFlags::HUGETLB
        | VmFlags::DROPPABLE
        | VmFlags::IO
        | VmFlags::PFN_MAP
        | VmFlags::UFFD_MISSING
        | VmFlags::UFFD_MINOR
        | VmFlags::UFFD_WP;
    !s.map.shared
        && s.map.ino == 0
        && s.map.len() >= LARGE
        && !s.flags.intersects(not)
        && matches!(
            s.map.name(),
            MapName::Anonymous | MapName::AnonNamed(_) | MapName::Heap
        )
}

fn protect(
    space: &Space,
    start: u64,
    len: u64,
) -> std::result::Result<(), stasis_kernel::error::SysError> {
    uffd::write_protect(space.fd().as_fd(), RemotePtr(start), len, true)
}

/// Tries again while something waits to be told.
fn patiently(
    mut act: impl FnMut() -> std::result::Result<(), stasis_kernel::error::SysError>,
) -> std::result::Result<(), stasis_kernel::error::SysError> {
    let until = Instant::now() + Duration::from_millis(200);
    loop {
        match act() {
            Err(e) if e.errno == Errno::EAGAIN && Instant::now() < until => {
                std::thread::sleep(Duration::from_micros(100));
            }
            r => return r,
        }
    }
}

/// What is found, with small gaps closed.
fn joined(found: &[PageRange]) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for r in found {
        match out.last_mut() {
            Some(l) if r.start - l.1 <= GAP => l.1 = r.end,
            _ => out.push((r.start, r.end)),
        }
    }
    out
}

/// The union of two sorted lists of ranges, within one.
fn united(
    a: impl Iterator<Item = (u64, u64)>,
    listed: &[(u64, u64)],
    (start, end): (u64, u64),
) -> Vec<(u64, u64)> {
    let first = listed.partition_point(|r| r.1 <= start);
    let b = listed[first..].iter().take_while(|r| r.0 < end);
    let mut all: Vec<(u64, u64)> = a.chain(b.copied()).collect();
    all.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (x, y) in all {
        let (x, y) = (x.max(start), y.min(end));
        match out.last_mut() {
            Some(l) if x <= l.1 => l.1 = l.1.max(y),
            _ if x < y => out.push((x, y)),
            _ => {}
        }
    }
    out
}

/// Entries for the mappings of now, made of what smaps said before; `None` if it did not say enough.
///
/// A mapping that has grown or was joined with a neighbour has the flags of its parts: others are not joined.
fn known(maps: &[MapsLine], early: &[SmapsEntry]) -> Option<Vec<SmapsEntry>> {
    let mut out = Vec::with_capacity(maps.len());
    for m in maps {
        let first = early.partition_point(|e| e.map.end <= m.start);
        let mut found: Option<SmapsEntry> = None;
        for e in early[first..].iter().take_while(|e| e.map.start < m.end) {
            let like = e.map.prot == m.prot
                && e.map.shared == m.shared
                && (e.map.dev, e.map.ino, &e.map.path) == (m.dev, m.ino, &m.path)
                && (m.ino == 0 || m.start + e.map.offset == e.map.start + m.offset);
            match &mut found {
                _ if !like => return None,
                None => found = Some(e.clone()),
                Some(f) if f.flags == e.flags => f.shared += e.shared,
                Some(_) => return None,
            }
        }
        let mut f = found?;
        f.map = m.clone();
        out.push(f);
    }
    Some(out)
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
