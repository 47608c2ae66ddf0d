//! Memory that is saved while the tree runs on: the pages of the instant at which it stood still.
//!
//! A *space* is one address space whose large private mappings are write-protected. Whoever writes there waits until the pages
//! around are copied and free again; everybody else is not disturbed. One thread reads what the kernel tells of all spaces,
//! others save pages in order. Nothing lasts that needs a living engine: when the last descriptor closes, the kernel lifts all
//! protection and wakes who waits (fs/userfaultfd.c, userfaultfd_release()).
//!
//! What is saved is what was there at that instant, or the drain says that it is lost:
//! - Pages are copied, then asked whether they are protected still, then freed. What is not protected came after the instant,
//!   where nothing was: zeroes stand for it.
//! - Whoever saves pages holds the space's gate for reading, and events are read with it held for writing. KERNEL: while an event
//!   waits to be read, UFFDIO_WRITEPROTECT is EAGAIN (mm/userfaultfd.c, mmap_changing): a copy that met a munmap(2) or
//!   mremap(2) is thrown away.
//! - madvise(2) is told before it acts, so the pages it gives up are saved first. Nothing can be freed while it waits, so nothing
//!   shows that no munmap(2) is among what waits too: when such a one is told later, what was saved so is lost after all.
//! - munmap(2), execve(2) and exit are told when the pages are gone: what was not saved by then is lost.
//!
//! It ends: each unit is saved once, or the snapshot is lost. Where [`PATIENCE`] has passed and not one could be freed between
//! all that waits to be told, it is lost too, and the tree is dumped standing still.
//!
//! Long because the thread that reads, those that save, and what they share are one protocol, which is to be read at once.
use super::memory;
use super::sink::Sink;
use crate::error::{Blame, Error, Result};
use crate::pages::PAGE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use stasis_kernel::error::SysError;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::pagemap::{Categories, Query, Scanner};
use stasis_kernel::procfs::ProcDir;
use stasis_kernel::uffd::{self, Event};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// What the kernel must tell.
pub const FEATURES: u64 = uffd::FEATURE_WP
    | uffd::FEATURE_EVENT_REMAP
    | uffd::FEATURE_EVENT_REMOVE
    | uffd::FEATURE_EVENT_UNMAP;

/// Saved at a time: a huge page stays one.
pub const UNIT: u64 = 2 << 20;
/// Freed at a time before the instant.
const WINDOW: u64 = 256 * 1024;
/// Buffers of one unit each: what is copied and not written yet.
const BUFFERS: usize = 8;
/// Longest wait for something to happen.
const MOMENT_MS: u8 = 5;
/// So long a space may tell of so much that nothing of it can be freed.
const PATIENCE: Duration = Duration::from_secs(5);

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a space is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// The tree runs, protection is only made.
    Before,
    /// The tree stands still.
    Still,
    /// It runs, what it had is saved.
    After,
}

/// Pages that are saved together.
struct Unit {
    end: u64,
    /// Address, length, offset in the image: one behind another there.
    runs: Vec<(u64, u64, u64)>,
}

struct State {
    when: When,
    /// Those that nobody has in hand.
    units: BTreeMap<u64, Unit>,
    /// How many are not in the image yet, with those in somebody's hands.
    left: usize,
    /// In which order they are saved.
    order: VecDeque<u64>,
    /// What was saved while it could not be freed (start, end): lost if a munmap(2) there is told later.
    unsure: Vec<(u64, u64)>,
    /// Since when nothing could be freed.
    stalled: Option<Instant>,
    /// Pages as they were before the kernel wrote there while the tree stood still: a thread that plays a tape has its rseq
    /// area written.
    early: BTreeMap<u64, Vec<u8>>,
    /// Where mappings were moved to before the instant.
    moved: Vec<(u64, u64)>,
    lost: Option<String>,
}

/// An address space.
pub struct Space {
    /// A process that has it.
    pub pid: HostPid,
    fd: OwnedFd,
    gate: RwLock<()>,
    state: Mutex<State>,
    image: Mutex<Option<Arc<Sink>>>,
    /// Some of its pages are shared copy-on-write.
    shared: AtomicBool,
    /// Nothing could be freed because an event waits: it must be read, however many faults come before it.
    stuck: AtomicBool,
}

/// Pages to be saved: address, length, offset in the image.
pub type Late = (u64, u64, u64);

impl Space {
    /// A space of which nothing is protected yet.
    pub fn new(pid: HostPid, fd: OwnedFd) -> Self {
        Self {
            pid,
            fd,
            gate: RwLock::default(),
            state: Mutex::new(State {
                when: When::Before,
                units: BTreeMap::new(),
                left: 0,
                order: VecDeque::new(),
                unsure: Vec::new(),
                stalled: None,
                early: BTreeMap::new(),
                moved: Vec::new(),
                lost: None,
            }),
            image: Mutex::default(),
            shared: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        }
    }
    /// Some of its pages are shared with a relative, and reading must not give them copies.
    pub fn is_shared(&self) {
        self.shared.store(true, Ordering::Relaxed);
    }
    /// The userfaultfd.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
    /// The instant: from now on nothing is freed before it is saved. Gives ranges that were moved and may hold protected pages.
    pub fn still(&self) -> Vec<(u64, u64)> {
        let _writer = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = lock(&self.state);
        state.when = When::Still;
        std::mem::take(&mut state.moved)
    }
    /// What is to be saved, in `mappings` (start, end), and where it goes. The small mappings come first: they are likelier to go.
    pub fn begin(&self, to: Sink, late: &[Late], mappings: &[(u64, u64)]) {
        let mut units: BTreeMap<u64, Unit> = BTreeMap::new();
        let mut order: Vec<(u64, u64)> = Vec::new();
        for (addr, len, at) in late {
            let mut done = 0;
            while done < *len {
                let a = addr + done;
                let m = mappings.partition_point(|m| m.1 <= a);
                let (start, end) = mappings.get(m).copied().unwrap_or((a, addr + len));
                let from = (a / UNIT * UNIT).max(start);
                let to = (a / UNIT * UNIT + UNIT).min(end);
                let n = (len - done).min(to - a);
                let unit = units.entry(from).or_insert_with(|| {
                    order.push((end - start, from));
                    Unit {
                        end: to,
                        runs: Vec::new(),
                    }
                });
                unit.runs.push((a, n, at + done));
                done += n;
            }
        }
        order.sort_by_key(|o| o.0);
        let mut state = lock(&self.state);
        state.left = units.len();
        state.units = units;
        state.order = order.into_iter().map(|o| o.1).collect();
        *lock(&self.image) = Some(Arc::new(to));
    }
    /// The tree is about to run.
    pub fn go(&self) {
        lock(&self.state).when = When::After;
    }
    /// The image, when all is in it.
    pub fn image(&self) -> Option<Sink> {
        Arc::into_inner(lock(&self.image).take()?)
    }
    fn lose(&self, why: impl Into<String>) {
        let mut state = lock(&self.state);
        state.lost.get_or_insert(why.into());
        state.units.clear();
        state.left = 0;
    }
    /// Whether there is something that nobody has in hand.
    fn has_units(&self) -> bool {
        !lock(&self.state).units.is_empty()
    }
    /// Whether all is in the image, or lost.
    fn is_over(&self) -> bool {
        lock(&self.state).left == 0
    }
    /// A unit is in the image.
    fn is_kept(&self) {
        let mut state = lock(&self.state);
        state.left = state.left.saturating_sub(1);
    }
    /// A unit goes back to the others: it could not be freed.
    fn put_back(&self, start: u64, unit: Unit) {
        let mut state = lock(&self.state);
        if state.lost.is_some() {
            return;
        }
        state.units.insert(start, unit);
        let since = *state.stalled.get_or_insert_with(Instant::now);
        drop(state);
        if since.elapsed() > PATIENCE {
            self.lose("it gives up memory so fast that nothing could be saved between");
        }
    }
    /// Takes the unit with an address off the list.
    fn take(&self, addr: u64) -> Option<(u64, Unit)> {
        let mut state = lock(&self.state);
        let (start, unit) = state.units.range(..=addr).next_back()?;
        if unit.end <= addr {
            return None;
        }
        let start = *start;
        state.units.remove(&start).map(|u| (start, u))
    }
    fn next(&self) -> Option<(u64, Unit)> {
        let mut state = lock(&self.state);
        while let Some(start) = state.order.pop_front() {
            if let Some(u) = state.units.remove(&start) {
                return Some((start, u));
            }
        }
        state.units.pop_first()
    }
    /// Copies a unit and frees its pages, with the gate held; nothing if that must be tried again, or is lost.
    fn save(&self, start: u64, unit: Unit, scanner: &mut Scanner, buf: &mut Vec<u8>) -> Saved {
        let copied = self.copy(start, &unit, scanner, buf);
        let freed = uffd::write_protect(self.fd.as_fd(), RemotePtr(start), unit.end - start, false);
        // what could not be read may have been moved: that is told then
        match freed.and(copied).map_err(|e| e.errno) {
            Ok(()) => {
                lock(&self.state).stalled = None;
                crate::kill_point();
                Saved::Copied(unit.runs[0].2)
            }
            Err(Errno::EAGAIN) => {
                self.put_back(start, unit);
                self.stuck.store(true, Ordering::Relaxed);
                // who waits there asks again, once what happened is read
                let _ = uffd::wake(self.fd.as_fd(), RemotePtr(start), UNIT);
                std::thread::yield_now();
                Saved::Not
            }
            Err(e) => {
                self.lose(format!(
                    "pages at {start:#x} are gone ({e}): the process ended, or runs another program"
                ));
                Saved::Not
            }
        }
    }
    /// Copies a unit that waits to be given up, and leaves it protected until then.
    fn save_doomed(
        &self,
        start: u64,
        unit: &Unit,
        scanner: &mut Scanner,
        buf: &mut Vec<u8>,
    ) -> Saved {
        if let Err(e) = self.copy(start, unit, scanner, buf) {
            self.lose(format!(
                "pages at {start:#x} were given up before they were saved ({e})"
            ));
            return Saved::Not;
        }
        lock(&self.state).unsure.push((start, unit.end));
        Saved::Copied(unit.runs[0].2)
    }
    /// Copies a unit as it was at the instant, if nothing was given up since.
    fn copy(
        &self,
        start: u64,
        unit: &Unit,
        scanner: &mut Scanner,
        buf: &mut Vec<u8>,
    ) -> std::result::Result<(), SysError> {
        let all: u64 = unit.runs.iter().map(|r| r.1).sum();
        buf.resize(all as usize, 0);
        memory::read_runs(
            self.pid,
            &unit.runs,
            self.shared.load(Ordering::Relaxed),
            buf,
        )?;
        // what is there without protection came after the instant
        let fresh = Query {
            all: Categories::WRITTEN,
            any: Categories::PRESENT | Categories::SWAPPED,
            inverted: Categories::NONE,
            report: Categories::NONE,
        };
        let mut found = Vec::new();
        scanner.scan(RemotePtr(start), RemotePtr(unit.end), &fresh, &mut found)?;
        let state = lock(&self.state);
        let mut at = 0;
        for (addr, len, _) in &unit.runs {
            for f in &found {
                let (a, b) = (f.start.max(*addr), f.end.min(addr + len));
                if a < b {
                    buf[at + (a - addr) as usize..at + (b - addr) as usize].fill(0);
                }
            }
            for (a, page) in state.early.range(*addr..addr + len) {
                let at = at + (a - addr) as usize;
                buf[at..at + page.len()].copy_from_slice(page);
            }
            at += *len as usize;
        }
        Ok(())
    }
    /// Lets somebody write to a page while the tree stands still.
    fn keep_page(&self, addr: u64) {
        let mut page = vec![0; PAGE as usize];
        let runs = [(addr, PAGE, 0)];
        if memory::read_runs(self.pid, &runs, true, &mut page).is_ok() {
            lock(&self.state).early.entry(addr).or_insert(page);
        }
        self.free(addr, PAGE);
    }
    /// Lifts protection where nothing is to be saved.
    fn free(&self, addr: u64, window: u64) {
        let from = addr / window * window;
        let off = |at, len| uffd::write_protect(self.fd.as_fd(), RemotePtr(at), len, false);
        if off(from, window).is_err() && off(addr, PAGE).is_err() {
            self.stuck.store(true, Ordering::Relaxed);
            let _ = uffd::wake(self.fd.as_fd(), RemotePtr(addr), PAGE);
        }
    }
    /// Lifts protection around an address, as far as nothing is to be saved there; with the gate held for writing.
    fn free_around(&self, addr: u64) {
        let (from, to) = {
            let state = lock(&self.state);
            let before = state.units.range(..=addr).next_back();
            let after = state.units.range(addr + 1..).next();
            let window = addr / UNIT * UNIT;
            (
                before.map_or(0, |(_, u)| u.end).clamp(window, addr),
                after.map_or(u64::MAX, |(s, _)| *s).min(window + UNIT),
            )
        };
        let off = uffd::write_protect(self.fd.as_fd(), RemotePtr(from), to - from, false);
        // beyond what is registered
        if off.is_err() {
            self.free(addr, PAGE);
        }
    }
    /// Reads what has happened. `first` saves ranges that are about to be given up, and tells whether there was anything.
    ///
    /// With the gate held nobody is woken, so as many faults as wait now come first.
    fn events(&self, first: &mut dyn FnMut(u64, u64) -> bool) -> Result<Vec<u64>> {
        let _writer = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let pending = uffd::pending_faults(self.fd.as_fd()).unwrap_or(0);
        let stuck = self.stuck.swap(false, Ordering::Relaxed);
        let others = pending == 0 || stuck;
        if others && lock(&self.state).when == When::After {
            // who comes while others are saved is seen, too
            let mut saved = true;
            while saved {
                saved = false;
                for (start, end) in given_up(self.pid) {
                    saved |= first(start, end);
                }
            }
        }
        let (mut faults, mut all) = (Vec::new(), Vec::new());
        let most = pending + usize::from(others);
        loop {
            let before = all.len();
            uffd::events_at_most(self.fd.as_fd(), most - before, &mut all)?;
            if all.len() == before || all.len() >= most {
                break;
            }
        }
        for e in all {
            match e {
                Event::Fault(addr) => faults.push(addr),
                Event::Remap(from, to, len) => self.moved(from, to, len),
                Event::Remove(from, to) => self.gone(from, to, "madvise(2)"),
                Event::Unmap(from, to) => self.gone(from, to, UNMAPPED),
                Event::Fork(_) => {}
            }
        }
        Ok(faults)
    }
    fn gone(&self, from: u64, to: u64, how: &str) {
        let state = lock(&self.state);
        let hit = |u: &Unit| u.runs.iter().any(|r| r.0 < to && r.0 + r.1 > from);
        let unsure = how == UNMAPPED && state.was_unsure(from, to);
        let lost = unsure || state.units.range(..to).any(|(_, u)| hit(u));
        drop(state);
        if lost {
            self.lose(format!(
                "{from:#x}-{to:#x} was given up by {how} before it was saved"
            ));
        }
    }
    fn moved(&self, from: u64, to: u64, len: u64) {
        let mut state = lock(&self.state);
        if state.was_unsure(from, from + len) {
            drop(state);
            return self.gone(from, from + len, UNMAPPED);
        }
        state.moved.push((to, to + len));
        let inside = |s: u64, u: &Unit| s < from + len && u.end > from;
        let hit: Vec<u64> = state
            .units
            .range(..from + len)
            .filter(|(s, u)| inside(**s, u))
            .map(|(s, _)| *s)
            .collect();
        for start in hit {
            let Some(u) = state.units.remove(&start) else {
                continue;
            };
            state.left -= 1;
            let end = u.end;
            // before, in, and behind what was moved
            let parts = [
                (start, from, 0),
                (start.max(from), end.min(from + len), to.wrapping_sub(from)),
                (from + len, end, 0),
            ];
            for (a, b, by) in parts {
                let (a, b) = (a.max(start), b.min(end));
                let runs: Vec<_> = u
                    .runs
                    .iter()
                    .filter_map(|(addr, n, at)| {
                        let (x, y) = ((*addr).max(a), (addr + n).min(b));
                        (x < y).then(|| (x.wrapping_add(by), y - x, at + (x - addr)))
                    })
                    .collect();
                if !runs.is_empty() {
                    let end = b.wrapping_add(by);
                    state.units.insert(a.wrapping_add(by), Unit { end, runs });
                    state.left += 1;
                }
            }
        }
    }
}

/// How memory goes before anybody is told.
const UNMAPPED: &str = "munmap(2) or mremap(2)";

impl State {
    fn was_unsure(&self, from: u64, to: u64) -> bool {
        self.unsure.iter().any(|r| r.0 < to && r.1 > from)
    }
}

enum Saved {
    /// For this offset of the image.
    Copied(u64),
    /// Later, or never.
    Not,
}

/// Ranges that threads of a process wait to give up by madvise(2), as /proc tells of calls that sleep.
fn given_up(pid: HostPid) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let Ok(proc) = ProcDir::open(pid) else {
        return out;
    };
    for tid in proc.tasks().unwrap_or_default() {
        let text = proc.bytes(&format!("task/{tid}/syscall"));
        let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
        let mut words = text.split_whitespace();
        if words.next().and_then(|n| n.parse::<i64>().ok()) != Some(libc::SYS_madvise) {
            continue;
        }
        let mut arg = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        if let (Some(start), Some(len)) = (arg(), arg()) {
            out.push((start, start.saturating_add(len)));
        }
    }
    out
}

/// Bytes of a space for a place of its image.
struct Filled {
    space: Arc<Space>,
    image: Arc<Sink>,
    at: u64,
    bytes: Vec<u8>,
}

/// Copied units on their way into images, and buffers to copy into.
struct Outbox {
    full: Mutex<VecDeque<Filled>>,
    free: Mutex<(Vec<Vec<u8>>, usize)>,
    returned: Condvar,
}

impl Outbox {
    /// A buffer; waits for one as long as others write, unless that is not possible `now`.
    fn buffer(&self, now: bool, space: &Space) -> Vec<u8> {
        let mut free = lock(&self.free);
        loop {
            if let Some(b) = free.0.pop() {
                return b;
            }
            if free.1 < BUFFERS || now || space.is_over() {
                free.1 += 1;
                return Vec::with_capacity(UNIT as usize);
            }
            let moment = Duration::from_millis(MOMENT_MS.into());
            let waited = self.returned.wait_timeout(free, moment);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
    fn give_back(&self, b: Vec<u8>) {
        lock(&self.free).0.push(b);
        self.returned.notify_one();
    }
}

/// The thread that listens to spaces, and what it has come to.
pub struct Listener {
    spaces: Mutex<Vec<Arc<Space>>>,
    over: AtomicBool,
    outbox: Outbox,
    failed: Mutex<Option<Error>>,
}

impl Listener {
    /// Begins to listen; the thread ends with [`Listener::stop`].
    pub fn start() -> (Arc<Self>, std::thread::JoinHandle<()>) {
        let all = Arc::new(Self {
            spaces: Mutex::default(),
            over: AtomicBool::new(false),
            outbox: Outbox {
                full: Mutex::default(),
                free: Mutex::default(),
                returned: Condvar::new(),
            },
            failed: Mutex::default(),
        });
        let own = all.clone();
        let log = tracing::dispatcher::get_default(Clone::clone);
        let thread = std::thread::spawn(move || {
            tracing::dispatcher::with_default(&log, || own.listen());
        });
        (all, thread)
    }
    /// Listens to one more.
    pub fn add(&self, space: Arc<Space>) {
        lock(&self.spaces).push(space);
    }
    /// Ends the thread.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
    /// All spaces.
    pub fn spaces(&self) -> Vec<Arc<Space>> {
        lock(&self.spaces).clone()
    }
    fn fail(&self, e: Error) {
        lock(&self.failed).get_or_insert(e);
    }
    fn listen(&self) {
        let mut scanners: BTreeMap<HostPid, Scanner> = BTreeMap::new();
        while !self.over.load(Ordering::Relaxed) {
            let spaces = self.spaces();
            if spaces.is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            }
            let mut polls: Vec<PollFd> = spaces
                .iter()
                .map(|s| PollFd::new(s.fd.as_fd(), PollFlags::POLLIN))
                .collect();
            match nix::poll::poll(&mut polls, PollTimeout::from(MOMENT_MS)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return self.fail(SysError::new("poll", e, "userfaultfds").into()),
            }
            let ready = polls
                .iter()
                .map(|p| p.revents().is_some_and(|r| r.contains(PollFlags::POLLIN)));
            for (space, ready) in spaces.iter().zip(ready) {
                if let Entry::Vacant(place) = scanners.entry(space.pid) {
                    match Scanner::open(space.pid) {
                        Ok(s) => {
                            place.insert(s);
                        }
                        // it is ending
                        Err(_) => continue,
                    }
                }
                let Some(scanner) = scanners.get_mut(&space.pid) else {
                    continue;
                };
                if !ready {
                    continue;
                }
                if let Err(e) = self.turn(space, scanner) {
                    self.fail(e);
                    space.lose("the kernel does not tell what happens");
                }
            }
        }
    }
    fn turn(&self, space: &Arc<Space>, scanner: &mut Scanner) -> Result<()> {
        let mut first = |start: u64, end: u64| {
            let (mut at, mut any) = (start, false);
            while at < end {
                let unit = lock(&space.state)
                    .units
                    .range(..end)
                    .find(|(_, u)| u.end > at)
                    .map(|(s, u)| (*s, u.end));
                let Some((s, e)) = unit else { break };
                let taken = space.take(s.max(at).min(e - 1));
                at = e;
                if let Some((start, unit)) = taken {
                    any = true;
                    self.keep(space, start, unit, scanner, true);
                }
            }
            any
        };
        for addr in space.events(&mut first)? {
            self.fault(space, addr, scanner);
        }
        Ok(())
    }
    fn fault(&self, space: &Arc<Space>, addr: u64, scanner: &mut Scanner) {
        {
            let _reader = space.gate.read().unwrap_or_else(PoisonError::into_inner);
            let when = lock(&space.state).when;
            match when {
                When::Before => return space.free(addr, WINDOW),
                When::Still => return space.keep_page(addr),
                When::After => {}
            }
            if let Some((start, unit)) = space.take(addr) {
                return self.keep(space, start, unit, scanner, false);
            }
        }
        // in somebody's hands, or nothing to be saved
        let writer = space.gate.write().unwrap_or_else(PoisonError::into_inner);
        let Some((start, unit)) = space.take(addr) else {
            return space.free_around(addr);
        };
        drop(writer);
        let _reader = space.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.keep(space, start, unit, scanner, false);
    }
    /// Copies a unit with the gate held; others write it. `doomed`: its pages are about to go, and stay protected until then; the
    /// gate is held for writing.
    fn keep(
        &self,
        space: &Arc<Space>,
        start: u64,
        unit: Unit,
        scanner: &mut Scanner,
        doomed: bool,
    ) {
        // who writes may wait for the gate
        let mut bytes = self.outbox.buffer(doomed, space);
        let saved = match doomed {
            true => space.save_doomed(start, &unit, scanner, &mut bytes),
            false => space.save(start, unit, scanner, &mut bytes),
        };
        let Saved::Copied(at) = saved else {
            return self.outbox.give_back(bytes);
        };
        let Some(image) = lock(&space.image).clone() else {
            return self.outbox.give_back(bytes);
        };
        lock(&self.outbox.full).push_back(Filled {
            space: space.clone(),
            image,
            at,
            bytes,
        });
    }
    /// Saves everything. `Ok(Some)`: why something is lost.
    ///
    /// # Errors
    /// Those of writing.
    pub fn drain(&self) -> Result<Option<String>> {
        let spaces = self.spaces();
        for s in &spaces {
            s.go();
        }
        crate::kill_point();
        // one processor stays with the tree
        let workers = std::thread::available_parallelism().map_or(1, |n| (n.get() - 1).clamp(1, 4));
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    if let Err(e) = self.work(&spaces) {
                        self.fail(e);
                        for s in &spaces {
                            s.lose("writing failed");
                        }
                    }
                });
            }
        });
        if let Some(e) = lock(&self.failed).take() {
            return Err(e);
        }
        Ok(spaces
            .iter()
            .find_map(|s| Some(format!("task {}: {}", s.pid, lock(&s.state).lost.clone()?))))
    }
    fn work(&self, spaces: &[Arc<Space>]) -> Result<()> {
        let mut scanners: BTreeMap<HostPid, Scanner> = BTreeMap::new();
        let mut room = Vec::new();
        let mut own = Vec::with_capacity(UNIT as usize);
        loop {
            // those that somebody waited for
            let job = lock(&self.outbox.full).pop_front();
            if let Some(f) = job {
                let r = f.image.put(f.at, &f.bytes, &mut room);
                drop(f.image);
                self.outbox.give_back(f.bytes);
                f.space.is_kept();
                r?;
                continue;
            }
            let Some(space) = spaces.iter().find(|s| s.has_units()) else {
                if spaces.iter().all(|s| s.is_over()) {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_micros(200));
                continue;
            };
            if let Entry::Vacant(place) = scanners.entry(space.pid) {
                match Scanner::open(space.pid) {
                    Ok(s) => {
                        place.insert(s);
                    }
                    Err(e) => {
                        space.lose(e.to_string());
                        continue;
                    }
                }
            }
            let Some(scanner) = scanners.get_mut(&space.pid) else {
                continue;
            };
            let saved = {
                let _reader = space.gate.read().unwrap_or_else(PoisonError::into_inner);
                match space.next() {
                    Some((start, unit)) => space.save(start, unit, scanner, &mut own),
                    None => Saved::Not,
                }
            };
            let image = lock(&space.image).clone();
            if let (Saved::Copied(at), Some(image)) = (saved, image) {
                let r = image.put(at, &own, &mut room);
                drop(image);
                space.is_kept();
                r?;
            }
        }
    }
}

/// An error for a space that the kernel does not let us protect.
pub fn refused(pid: HostPid, why: impl std::fmt::Display) -> Error {
    Error::new(
        "E6704",
        Blame::Host,
        format!("memory of task {pid} cannot be saved while it runs"),
    )
    .why(why)
    .advice(
        "dump as root on a kernel with userfaultfd write protection (5.7), or without --snapshot",
    )
}
