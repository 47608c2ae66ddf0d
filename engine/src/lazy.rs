//! Memory that is brought while the tree runs: pages are served when they are touched, and all others meanwhile.
//!
//! A *space* is one address space with the pages it still lacks. One thread reads what the kernel tells of all spaces: faults,
//! and what the tasks do with their memory (fork, mremap, munmap, madvise); others bring pages in order. A page is brought at most
//! once, and never after the task has given it up:
//! - Whoever brings pages holds the space's gate for reading, from taking them off the list until they are in place. What is on
//!   no list and in nobody's hands is zeroes, which only the gate's writer decides.
//! - Events are read with the gate held for writing: the task that caused one goes on when it is read, and may then use the
//!   addresses anew.
//! - KERNEL: while an event waits to be read, UFFDIO_COPY is EAGAIN (mm/userfaultfd.c, mmap_changing).
//!
//! Long because who takes pages off a list, brings them and puts them back keeps one promise.
use crate::error::{Blame, Error, Result};
use crate::lazy_views::{View, Views};
use crate::pages::{PAGE, Run, Store};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::uffd::{self, Event};
use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// What the kernel must tell.
pub const FEATURES: u64 = uffd::FEATURE_EVENT_FORK
    | uffd::FEATURE_EVENT_REMAP
    | uffd::FEATURE_EVENT_REMOVE
    | uffd::FEATURE_EVENT_UNMAP;

/// Brought around a page that somebody waits for.
const WINDOW: u64 = 64 * 1024;
/// Brought at a time otherwise: what one page table maps, because two threads would wait for each other there.
const PIECE: u64 = 2 << 20;
/// Read and copied at a time: fits the second-level cache.
const STEP: u64 = 256 * 1024;
/// Windows that are remembered.
const MOST_TOUCHED: usize = 1 << 20;
/// More threads than these fight over the page allocator.
const MOST: usize = 4;

/// Pages that are still to be brought: by first address, (end, place).
type Left = BTreeMap<u64, (u64, u64)>;

/// An address space.
pub struct Space {
    /// The process, for messages.
    pub pid: HostPid,
    fd: OwnedFd,
    source: usize,
    left: Mutex<Left>,
    gate: RwLock<()>,
    /// Its processes have ended.
    gone: AtomicBool,
    /// What other spaces show, and nobody needs once they have ended.
    for_others: bool,
    /// Shared memory that is shown there and brought elsewhere.
    views: Mutex<Views>,
    /// What was touched first the last time, and is brought first: windows.
    order: Mutex<VecDeque<u64>>,
    /// What is touched now, in order: windows.
    touched: Mutex<Vec<u64>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Space {
    /// A space whose ranges are registered with `fd`. `source`: the index of its store.
    pub fn new(pid: HostPid, fd: OwnedFd, source: usize, runs: &[Run]) -> Self {
        Self {
            pid,
            fd,
            source,
            left: Mutex::new(runs.iter().map(|r| (r.0, (r.0 + r.1, r.2))).collect()),
            gate: RwLock::default(),
            gone: AtomicBool::new(false),
            for_others: false,
            views: Mutex::default(),
            order: Mutex::default(),
            touched: Mutex::default(),
        }
    }
    /// One with shared memory that other spaces show.
    pub fn for_others(self) -> Self {
        Self {
            for_others: true,
            ..self
        }
    }
    /// Shared memory that is shown there. Of it too comes first what [`Space::first`] has said.
    pub fn sharing(self, views: impl IntoIterator<Item = (u64, View)>) -> Self {
        let mut known = lock(&self.views);
        known.extend(views);
        lock(&self.order).retain(|window| {
            let shown = known.at(*window);
            if let Some((object, own)) = &shown {
                lock(&object.order).push_back(*own);
            }
            shown.is_none()
        });
        drop(known);
        self
    }
    /// Windows to be brought first: addresses.
    pub fn first(self, windows: impl IntoIterator<Item = u64>) -> Self {
        lock(&self.order).extend(windows);
        self
    }
    /// Windows that were touched, in order.
    pub fn touched(&self) -> Vec<u64> {
        lock(&self.touched).clone()
    }
    /// The userfaultfd.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
    /// Bytes that are still missing.
    pub fn lacks(&self) -> u64 {
        lock(&self.left).iter().map(|(a, (b, _))| b - a).sum()
    }
    /// Makes a trap of what is still missing: tasks that touch it get SIGBUS, where they would read zeroes else.
    pub fn give_up(&self) {
        let shared = lock(&self.views).lacks();
        for (start, end) in self.missing().into_iter().chain(shared) {
            if let Err(e) = uffd::poison(self.fd.as_fd(), RemotePtr(start), end - start) {
                tracing::error!("memory of task {} is lost: {e}", self.pid);
            }
        }
    }
    /// What is still missing: start, end.
    pub fn missing(&self) -> Vec<(u64, u64)> {
        lock(&self.left)
            .iter()
            .map(|(a, (b, _))| (*a, *b))
            .collect()
    }
    /// Brings all that is still missing.
    ///
    /// # Errors
    /// E6703, E5020.
    pub fn settle(&self, stores: &[Store], buf: &mut [u8]) -> Result<()> {
        loop {
            let reader = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            while let Some(run) = self.next() {
                self.bring(run, &stores[self.source], buf)?;
            }
            drop(reader);
            // what was in others' hands is in place, or on the list again
            let _writer = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            if self.is_done() {
                return Ok(());
            }
        }
    }
    /// Whether its processes have ended.
    fn has_ended(&self) -> bool {
        // any page: nothing is protected there, which is told (ENOENT) only as long as there is an address space
        const ANY: RemotePtr = RemotePtr(1 << 32);
        let gone = || {
            let tried = uffd::write_protect(self.fd.as_fd(), ANY, PAGE, false);
            tried.is_err_and(|e| e.errno == Errno::ESRCH)
        };
        if !self.gone.load(Ordering::Relaxed) && gone() {
            self.gone.store(true, Ordering::Relaxed);
        }
        self.gone.load(Ordering::Relaxed)
    }
    fn is_done(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || lock(&self.left).is_empty()
    }
    /// Takes the pages of a window off the list.
    fn take(&self, from: u64, to: u64) -> Option<Run> {
        let mut left = lock(&self.left);
        let (start, (end, _)) = left.range(..to).next_back().map(|(s, v)| (*s, *v))?;
        if end <= from {
            return None;
        }
        // the last run that reaches into the window: what lies before it is taken another time
        let (a, b) = (start.max(from), end.min(to));
        Some(cut_one(&mut left, start, a, b))
    }
    /// Takes pages off the list: those that were touched early the last time, else the first, none behind the end of a page
    /// table.
    fn next(&self) -> Option<Run> {
        while let Some(window) = {
            let mut order = lock(&self.order);
            order.front().copied().inspect(|_| {
                order.pop_front();
            })
        } {
            if let Some(run) = self.take(window, window + WINDOW) {
                // it may have more than one run
                lock(&self.order).push_front(window);
                return Some(run);
            }
        }
        let mut left = lock(&self.left);
        let (start, (end, _)) = left.first_key_value().map(|(s, v)| (*s, *v))?;
        let to = end.min((start + 1).next_multiple_of(PIECE));
        Some(cut_one(&mut left, start, start, to))
    }
    fn put_back(&self, (addr, len, place): Run) {
        lock(&self.left).insert(addr, (addr + len, place));
    }
    /// Brings a run, with the gate held. What cannot be brought now is put back.
    fn bring(&self, run: Run, store: &Store, buf: &mut [u8]) -> Result<()> {
        let (mut addr, end, mut place) = (run.0, run.0 + run.1, run.2);
        // KERNEL(<6.6): UFFDIO_COPY wants its source at a page address too
        let shift = buf.as_ptr().align_offset(PAGE as usize);
        while addr < end {
            let n = STEP.min(end - addr) as usize;
            let buf = &mut buf[shift..shift + n];
            store.read(buf, place)?;
            let did = self.place(addr, buf)?;
            addr += did as u64;
            place += did as u64;
            if did < n {
                if !self.gone.load(Ordering::Relaxed) {
                    self.put_back((addr, end - addr, place));
                    // who waits there asks again, once what happened is read
                    let _ = uffd::wake(self.fd.as_fd(), RemotePtr(addr), end - addr);
                    std::thread::yield_now();
                }
                return Ok(());
            }
        }
        Ok(())
    }
    /// Puts pages in place; gives how many bytes were, or need not be. The others cannot be now.
    fn place(&self, at: u64, pages: &[u8]) -> Result<usize> {
        let (mut did, mut singly) = (0, 0);
        while did < pages.len() {
            let addr = at + did as u64;
            let most = if did < singly {
                PAGE as usize
            } else {
                pages.len()
            };
            let now = &pages[did..pages.len().min(did + most)];
            let (done, errno) = match uffd::copy_some(self.fd.as_fd(), RemotePtr(addr), now) {
                Ok(()) => (now.len(), None),
                Err((done, e)) => (done, Some(e)),
            };
            did += done;
            match errno {
                None => {}
                // KERNEL: also for a range that goes over the border of two mappings (mm/userfaultfd.c, validate_dst_vma)
                Some(Errno::ENOENT) if now.len() - done > PAGE as usize => {
                    singly = did + (now.len() - done);
                }
                // there already, or unmapped: what the task did is told, or was
                Some(Errno::EEXIST | Errno::ENOENT) => {
                    let _ = uffd::wake(self.fd.as_fd(), RemotePtr(at + did as u64), PAGE);
                    did += PAGE as usize;
                }
                Some(Errno::EAGAIN) => return Ok(did),
                Some(Errno::ESRCH) => {
                    self.gone.store(true, Ordering::Relaxed);
                    return Ok(did);
                }
                Some(e) => {
                    let what = format!("cannot bring pages at {addr:#x} to task {}", self.pid);
                    return Err(Error::new("E6703", Blame::Host, what)
                        .why(format!("UFFDIO_COPY: {e}"))
                        .advice("free memory, and restore again"));
                }
            }
        }
        Ok(did)
    }
    /// Remembers what was touched.
    fn note(&self, addr: u64) {
        let shown = lock(&self.views).start(addr);
        // a view may begin in the middle of a window
        let window = (addr / WINDOW * WINDOW).max(shown.unwrap_or(0));
        let mut touched = lock(&self.touched);
        if touched.len() < MOST_TOUCHED && touched.last() != Some(&window) {
            touched.push(window);
        }
    }
    /// Serves a fault.
    fn fault(&self, addr: u64, stores: &[Store], buf: &mut [u8]) -> Result<()> {
        let shown = lock(&self.views).at(addr);
        if let Some((object, own)) = shown {
            self.note(addr);
            object.fault(own, stores, buf)?;
            let _ = uffd::wake(self.fd.as_fd(), RemotePtr(addr), PAGE);
            return Ok(());
        }
        let store = &stores[self.source];
        let reader = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let window = addr / WINDOW * WINDOW;
        // the page itself first
        if let Some(run) = self.take(addr, addr + PAGE) {
            self.note(addr);
            self.bring(run, store, buf)?;
            for _ in 0..WINDOW / PAGE {
                let Some(run) = self.take(window, window + WINDOW) else {
                    break;
                };
                self.bring(run, store, buf)?;
            }
            return Ok(());
        }
        drop(reader);
        // zeroes of one who shows shared memory would be everybody's
        let unknown = lock(&self.views).unknown();
        unknown.iter().try_for_each(|o| o.settle(stores, buf))?;
        let _writer = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = self.take(addr, addr + PAGE) {
            return self.bring(run, store, buf);
        }
        match uffd::zero(self.fd.as_fd(), RemotePtr(addr), PAGE) {
            Err(e) if e.errno == Errno::ESRCH => self.gone.store(true, Ordering::Relaxed),
            Err(_) => {
                let _ = uffd::wake(self.fd.as_fd(), RemotePtr(addr), PAGE);
            }
            Ok(()) => {}
        }
        Ok(())
    }
    /// What a task has given up is nobody's to bring.
    fn forget(&self, from: u64, to: u64) {
        let mut left = lock(&self.left);
        let mut to = to;
        while let Some((start, (end, _))) = left.range(..to).next_back().map(|(s, v)| (*s, *v)) {
            if end <= from {
                return;
            }
            cut_one(&mut left, start, start.max(from), end.min(to));
            to = start.max(from);
            if to == from {
                return;
            }
        }
    }
    fn moved(&self, from: u64, to: u64, len: u64) {
        let mut left = lock(&self.left);
        let mut runs = Vec::new();
        while let Some((start, (end, _))) =
            left.range(..from + len).next_back().map(|(s, v)| (*s, *v))
        {
            if end <= from {
                break;
            }
            let (a, b) = (start.max(from), end.min(from + len));
            runs.push(cut_one(&mut left, start, a, b));
        }
        for (a, n, place) in runs {
            let a = to + (a - from);
            left.insert(a, (a + n, place));
        }
    }
    /// That of a child that was born now.
    fn child(&self, fd: OwnedFd) -> Self {
        Self {
            pid: self.pid,
            fd,
            source: self.source,
            left: Mutex::new(lock(&self.left).clone()),
            gate: RwLock::default(),
            gone: AtomicBool::new(false),
            for_others: self.for_others,
            views: Mutex::new(lock(&self.views).of_child()),
            order: Mutex::default(),
            touched: Mutex::default(),
        }
    }
    /// Reads what has happened. Gives faults, and children.
    fn events(&self, stores: &[Store], buf: &mut [u8]) -> Result<(Vec<u64>, Vec<Space>)> {
        let _writer = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let (mut faults, mut children, mut all) = (Vec::new(), Vec::new(), Vec::new());
        uffd::events(self.fd.as_fd(), &mut all)?;
        // of shared memory all must be there whose addresses are not known any more, before a fault there is served
        let settle = |objects: Vec<Arc<Space>>, buf: &mut [u8]| {
            objects.iter().try_for_each(|o| o.settle(stores, buf))
        };
        for e in all {
            match e {
                Event::Fault(addr) => faults.push(addr),
                Event::Remap(from, to, len) => {
                    self.moved(from, to, len);
                    let objects = lock(&self.views).moved(from, len);
                    settle(objects, buf)?;
                }
                // shared memory is as it was for whoever looks again
                Event::Remove(from, to) => self.forget(from, to),
                Event::Unmap(from, to) => {
                    self.forget(from, to);
                    let objects = lock(&self.views).unmapped(from, to);
                    settle(objects, buf)?;
                }
                Event::Fork(fd) => children.push(self.child(fd)),
            }
        }
        Ok((faults, children))
    }
}

/// Takes `a..b` out of the run that begins at `start`.
fn cut_one(left: &mut Left, start: u64, a: u64, b: u64) -> Run {
    let (end, place) = left.remove(&start).unwrap_or((b, 0));
    if start < a {
        left.insert(start, (a, place));
    }
    if b < end {
        left.insert(b, (end, place + (b - start)));
    }
    (a, b - a, place + (a - start))
}

/// Serves all spaces until none lacks anything, or all have ended. `start`: who says when tasks begin to run; before that nothing
/// is brought that nobody waits for, as mappings may not stand yet.
///
/// # Errors
/// E6703, E5020: pages that cannot be brought. The tasks must not run on then. E6705.
pub fn serve(spaces: Vec<Arc<Space>>, stores: &[Store], start: Option<&mut Start>) -> Result<()> {
    let spaces: Mutex<Vec<Arc<Space>>> = Mutex::new(spaces);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let over = AtomicBool::new(false);
    let begun = AtomicBool::new(start.is_none());
    let mut start = start;
    let fail = |e: Error| {
        lock(&failed).get_or_insert(e);
        over.store(true, Ordering::Relaxed);
    };
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST));
    std::thread::scope(|s| {
        for _ in 0..workers {
            s.spawn(|| {
                let mut buf = vec![0u8; (STEP + PAGE) as usize];
                while !over.load(Ordering::Relaxed) {
                    let todo = match begun.load(Ordering::Relaxed) {
                        true => lock(&spaces).iter().find(|s| !s.is_done()).cloned(),
                        false => None,
                    };
                    let Some(space) = todo else {
                        // something may come back to a list, or a child be born
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        continue;
                    };
                    let _reader = space.gate.read().unwrap_or_else(PoisonError::into_inner);
                    if let Some(run) = space.next()
                        && let Err(e) = space.bring(run, &stores[space.source], &mut buf)
                    {
                        return fail(e);
                    }
                }
            });
        }
        let mut buf = vec![0u8; (STEP + PAGE) as usize];
        while !over.load(Ordering::Relaxed) {
            let all: Vec<Arc<Space>> = lock(&spaces).clone();
            // what is in somebody's hands may come back to the list
            let done = |s: &Arc<Space>| {
                s.is_done() && {
                    let _writer = s.gate.write().unwrap_or_else(PoisonError::into_inner);
                    s.is_done()
                }
            };
            if begun.load(Ordering::Relaxed) && all.iter().all(done) {
                break;
            }
            let waits = start.as_deref_mut().filter(|s| !s.told);
            match turn(&all, &spaces, stores, &mut buf, waits) {
                Ok(true) => begun.store(true, Ordering::Relaxed),
                Ok(false) => {}
                Err(e) => fail(e),
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Some(e) = failed else {
        // everything is in place: who waits is woken, and the kernel forgets the registration, when the descriptors close
        return Ok(());
    };
    for s in lock(&spaces).iter() {
        s.give_up();
    }
    Err(e)
}

/// The connection to a restore, which says when it is over.
pub struct Start {
    socket: UnixStream,
    told: bool,
}

impl Start {
    /// What a restore says when it is over: four bytes, little endian.
    pub const OVER: u32 = 0x5253_5446;
    /// Of a connection.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            told: false,
        }
    }
    fn hear(&mut self) -> Result<()> {
        let mut b = [0; 4];
        self.socket.read_exact(&mut b).map_err(early)?;
        match u32::from_le_bytes(b) {
            Self::OVER => {
                self.told = true;
                Ok(())
            }
            n => Err(early(format!("it says {n:#x}"))),
        }
    }
}

/// The restore has gone, or speaks otherwise than restores do.
pub fn early(why: impl std::fmt::Display) -> Error {
    Error::new(
        "E6705",
        Blame::Host,
        "the restore has failed before its end",
    )
    .why(why)
    .advice("see the log of the restore")
}

/// Gives up what nobody needs, because all who show it have ended.
fn abandon(all: &[Arc<Space>]) {
    if all.iter().filter(|s| !s.for_others).all(|s| s.has_ended()) {
        for s in all {
            s.gone.store(true, Ordering::Relaxed);
        }
    }
}

/// Waits a moment for something to happen, and sees to it; true when the restore says that it is over.
fn turn(
    all: &[Arc<Space>],
    spaces: &Mutex<Vec<Arc<Space>>>,
    stores: &[Store],
    buf: &mut [u8],
    waits: Option<&mut Start>,
) -> Result<bool> {
    const MOMENT_MS: u8 = 5;
    let mut polls: Vec<PollFd> = all
        .iter()
        .map(|s| PollFd::new(s.fd.as_fd(), PollFlags::POLLIN))
        .collect();
    if let Some(w) = &waits {
        polls.push(PollFd::new(w.socket.as_fd(), PollFlags::POLLIN));
    }
    match nix::poll::poll(&mut polls, PollTimeout::from(MOMENT_MS)) {
        // whoever forks lives until that is read
        Ok(0) => abandon(all),
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => {
            return Err(stasis_kernel::error::SysError::new("poll", e, "userfaultfds").into());
        }
    }
    let told = polls.len() > all.len() && polls[all.len()].any().unwrap_or(false);
    let ready: Vec<&Arc<Space>> = polls
        .iter()
        .zip(all)
        .filter(|(p, _)| p.revents().is_some_and(|r| r.contains(PollFlags::POLLIN)))
        .map(|(_, s)| s)
        .collect();
    for s in ready {
        let (faults, children) = s.events(stores, buf)?;
        lock(spaces).extend(children.into_iter().map(Arc::new));
        for addr in faults {
            s.fault(addr, stores, buf)?;
        }
    }
    match waits {
        Some(w) if told => w.hear().map(|()| true),
        _ => Ok(false),
    }
}

#[cfg(test)]
#[path = "lazy_tests.rs"]
mod tests;
