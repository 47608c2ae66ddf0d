//! The story of a dump: look from outside, write down, seal, let go. Long because the story and what it looks at in a task
//! stand together.
mod backing;
mod backlog;
mod drain;
mod facts;
mod family;
mod files;
mod mapped;
mod marks;
mod memory;
pub mod mm;
mod once;
mod pidspaces;
mod places;
mod pre;
mod preflight;
mod process;
mod ready;
pub mod seize;
pub(crate) mod shared;
mod sink;
mod snapshot;
mod strangers;
pub(crate) mod task;
mod thread;
mod tracking;
mod undo;
mod userspaces;

pub(crate) use pidspaces::Level;
pub(crate) use places::{is_nested, is_own};
pub use pre::pre_dump;
pub use preflight::preflight;
pub(crate) use ready::own_memory;
pub(crate) use tracking::untrack;

use crate::error::{Blame, Error, Result};
use crate::events::Moment;
use crate::kinds::{DumpCx, Undo};
use crate::namespaces::user::Ids;
use crate::options::{After, Options};
use crate::phase::Phase;
use crate::remote::Client;
use crate::report::DumpReport;
use backlog::{Backlog, Wrote};
use facts::{Facts, Seccomp};
use files::OpenFiles;
pub(crate) use memory::Left;
use pidspaces::PidSpaces;
use places::Places;
use process::{Asking, GadgetCache, Tapes};
use ready::Ready;
use sink::Sink;
use snapshot::Snapshot;
use stasis_cgroups::{Collector, Freezer};
use stasis_kernel::fds::{self, Kcmp};
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::{MapsLine, ProcDir, Status, VmFlags};
use stasis_proto::archive::Out;
use stasis_proto::{ImageDir, Kind, pb};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use task::Task;
use thread::Told;
use tracing::{debug, info, warn};
use tracking::Tracking;
use userspaces::UserSpaces;

/// Dumps the tree under `o.pid` into `o.images`.
///
/// On any error the tree runs on as it was and the folder holds no inventory.
pub fn dump(o: &Options) -> Result<DumpReport> {
    stasis_kernel::limits::raise_nofile();
    as_tracer(|| match dump_here(o)? {
        Done::Whole(report) => Ok(report),
        Done::Lost(why) => {
            let said = format!("the tree was stopped for the whole dump: {why}");
            info!("{said}");
            let mut o = o.clone();
            o.memory.snapshot = false;
            match dump_here(&o)? {
                Done::Whole(mut report) => {
                    report.warnings.push(said);
                    Ok(report)
                }
                Done::Lost(_) => Err(Error::bug("a dump without a snapshot has lost one")),
            }
        }
    })
}

/// How a dump ended.
enum Done {
    /// It is complete.
    Whole(DumpReport),
    /// Memory of the instant is gone, and why. The tree runs, and there are no images.
    Lost(String),
}

/// Runs what traces tasks in a thread of its own.
fn as_tracer(f: impl FnOnce() -> Result<DumpReport> + Send) -> Result<DumpReport> {
    // a tracer of its own: whatever happens, the end of this thread lets go of every task, also of one that was asked
    // to stop and never did (kernel/ptrace.c, exit_ptrace)
    let log = tracing::dispatcher::get_default(Clone::clone);
    let told = std::thread::scope(|s| {
        s.spawn(|| tracing::dispatcher::with_default(&log, f))
            .join()
    });
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn dump_here(o: &Options) -> Result<Done> {
    let dir = prepare(o).map_err(|e| e.at(Phase::Prepare))?;
    let m = &o.memory;
    let elsewhere = m.page_server.is_some() || m.stream.is_some() || m.counter.is_some();
    let staged = o.archive.is_some() || !o.recipients.is_empty();
    let whole = m.parent.is_none() && !elsewhere && !staged && m.compress.is_none();
    let mut ready = Ready::make(HostPid(o.pid), &dir, whole);
    let census = ready.census();
    ready.locks = crate::network::prepare(o, std::mem::take(&mut ready.tasks));
    // what is killed then need not be tracked
    let on = o.memory.track && o.after != After::Default;
    let mut tracking = Tracking::prepare(o, on, &dir).map_err(|e| e.at(Phase::Prepare))?;
    o.events
        .tell(Moment::PreDump)
        .map_err(|e| e.at(Phase::Prepare))?;
    let mut snapshot = match o.memory.snapshot {
        true => Some(Snapshot::prepare(o, &mut ready.gadgets).map_err(|e| e.at(Phase::Memory))?),
        false => None,
    };
    let mut paused_devices = crate::plugins::pause(o).map_err(|e| e.at(Phase::Prepare))?;
    ready.counts(census);
    let begun = Instant::now();
    let mut report = DumpReport::default();
    let mut held = Vec::new();
    let deadline = begun + o.timeout;
    let mut freezer = freeze(o, deadline).map_err(|e| e.at(Phase::Seize))?;
    let seized = seize::tree(HostPid(o.pid), 0, deadline, &mut held)
        .and_then(|()| Ok(freezer.iter_mut().try_for_each(Freezer::thaw)?))
        .map_err(|e| e.at(Phase::Seize));
    report.freezing_us = micros(begun);
    if let Some(s) = &mut snapshot {
        s.still();
    }
    let mut locked = false;
    let written = seized.and_then(|()| {
        locked = true;
        o.events.tell(Moment::NetworkLock)?;
        tracking.take(&held)?;
        let o = o.events.with_external(o)?;
        let with = (freezer.as_ref(), snapshot.as_ref());
        write(&o, &dir, ready, with, &mut tracking, &mut held, &mut report)
    });
    let written = written.and_then(|w| {
        snapshot.as_mut().map_or(Ok(()), |s| s.ready(&dir))?;
        Ok(w)
    });
    let mut made = Vec::new();
    let mut later = None;
    // whoever is told that the images are complete may count on a frozen tree
    let alone = o.after == After::Running && !on && o.events.0.is_empty();
    let sealed = written.and_then(|(inventory, undo, left)| {
        let sealed = match snapshot.is_some() || alone {
            // sealed when the tree runs again: all of its memory is there, and the disk was waited for
            true => {
                later = Some((inventory, left));
                Ok(())
            }
            false => seal(o, &dir, (&inventory, &left), &mut report).and_then(|()| tracking.stay()),
        };
        let sealed = sealed.map_err(|e| e.at(Phase::Seal));
        if sealed.is_err() || o.after != After::Default {
            take_back(&undo)?;
        }
        made = undo;
        sealed
    });
    if sealed.is_ok() && o.memory.stream.is_some() {
        forfeit(&held);
    }
    crate::kill_point();
    let after = if sealed.is_ok() {
        o.after
    } else {
        After::Running
    };
    if locked && after != After::Default {
        // whoever objects comes too late: the tree must not stay cut off
        if let Err(e) = o.events.tell(Moment::NetworkUnlock) {
            warn!("{e}");
        }
    }
    // before anybody is let go: who was paused by the caller does not run
    let killed = after == After::Default;
    let paused = freezer.map_or(Ok(()), |f| f.put_back(killed));
    let released = release(held, after).map_err(|e| e.at(Phase::Release));
    // from here on nothing of it is stopped any more: it runs, or is dead
    paused_devices.over = after == After::Default;
    drop(paused_devices);
    report.frozen_us = micros(begun);
    let drained: Result<_> = later.map_or(Ok(None), |(inventory, left)| {
        let lost = match snapshot.as_mut() {
            Some(s) => {
                report.frozen_us += s.stopped.as_micros() as u64;
                let begun = Instant::now();
                let r = s.drain(&dir).map_err(|e| e.at(Phase::Memory));
                report.memdump_us = micros(begun);
                r?
            }
            None => None,
        };
        if lost.is_none() {
            let sealed = seal(o, &dir, (&inventory, &left), &mut report);
            sealed.map_err(|e| e.at(Phase::Seal))?;
        }
        Ok(lost)
    });
    // the tree is let go of it before anything else is waited for
    drop(snapshot);
    for m in made.iter_mut().filter(|_| killed) {
        if let Err(e) = m.outlive() {
            warn!("{e}");
        }
    }
    let released = released.map(|killed| gone(&killed));
    for m in made.into_iter().filter(|_| killed) {
        if let Err(e) = m.bury() {
            warn!("{e}");
        }
    }
    if sealed.is_err() || !matches!(drained, Ok(None)) {
        if let Some(place) = &o.archive {
            place.give_up();
        }
        let _ = dir.invalidate();
    }
    sealed?;
    if let Some(why) = drained? {
        return Ok(Done::Lost(why));
    }
    released?;
    paused.map_err(|e| Error::from(e).at(Phase::Release))?;
    if o.memory.auto_dedup
        && dir.parent().is_some()
        && let Err(e) = crate::dedup(&dir)
    {
        report.warnings.push(e.to_string());
    }
    info!(
        "dumped {} tasks with {} threads, {} pages",
        report.tasks, report.threads, report.pages_written
    );
    crate::report::tell_peak();
    Ok(Done::Whole(report))
}

/// The images are complete: they are made durable, and whoever wants to know is told.
fn seal(
    o: &Options,
    dir: &ImageDir,
    (inventory, left): (&pb::InventoryEntry, &[Left]),
    report: &mut DumpReport,
) -> Result<()> {
    dir.commit_inventory(inventory)?;
    if let Some(place) = &o.archive {
        place.end()?;
    }
    hand_out(o, left, report)
}

/// Stops the control group the caller named. One of cgroup v1 runs from here on: its tasks cannot be stopped while it does not.
fn freeze(o: &Options, deadline: Instant) -> Result<Option<Freezer>> {
    let Some(group) = &o.cgroups.freeze else {
        return Ok(None);
    };
    let mut f = Freezer::freeze(group, deadline)?;
    if f.is_v1() {
        f.thaw()?;
    }
    Ok(Some(f))
}

/// Checks what can be checked before anything is touched.
fn prepare(o: &Options) -> Result<ImageDir> {
    exists(o)?;
    session(o)?;
    folder(o)
}

/// There is such a task.
fn exists(o: &Options) -> Result<()> {
    let root = HostPid(o.pid);
    if o.pid <= 0 || o.pid == HostPid::own().0 {
        return Err(Error::new(
            "E2001",
            Blame::Caller,
            format!("pid {} cannot be dumped", o.pid),
        )
        .advice("name another process than the engine itself"));
    }
    let proc = ProcDir::open(root).map_err(|_| {
        Error::new("E4001", Blame::Container, format!("no task {}", root.0))
            .why("it does not exist")
            .advice("check the pid (as this pid namespace sees it)")
    })?;
    drop(proc);
    // whoever stops its own parent's tree stops itself
    let mut up = HostPid::own();
    // an ancestor may end meanwhile, or be hidden from us
    while let Ok(proc) = ProcDir::open(up)
        && let Ok(stat) = proc.stat()
        && stat.ppid.0 > 1
    {
        up = stat.ppid;
        if up == root {
            return Err(Error::new(
                "E2001",
                Blame::Caller,
                format!("pid {} cannot be dumped", o.pid),
            )
            .why("the engine itself is in that tree")
            .advice("start the engine outside of it: a daemon's child, or criu service"));
        }
    }
    Ok(())
}

/// The folder of the images, which from now on looks incomplete, with the folder before, if there is one.
fn folder(o: &Options) -> Result<ImageDir> {
    let mut dir = match &o.archive {
        Some(place) => place.begin()?,
        None => ImageDir::create(&o.images)?,
    };
    if o.no_sync {
        dir = dir.volatile();
    }
    dir.invalidate()?;
    // an older dump's, which would be taken for this one's
    for name in dir.list()? {
        if name.starts_with("packed-") || name.starts_with("marks-") {
            dir.remove(&name)?;
        }
    }
    crate::vault::seal(&mut dir, o)?;
    let Some(parent) = &o.memory.parent else {
        dir.unlink_parent()?;
        return Ok(dir);
    };
    let dir = dir.with_parents(Some(parent)).map_err(|e| {
        Error::from(e).advice("--prev-images-dir is relative to the folder of the images")
    })?;
    dir.link_parent(parent)?;
    Ok(dir)
}

/// The root's session must be its own, unless the caller says that it is not.
fn session(o: &Options) -> Result<()> {
    let stat = ProcDir::open(HostPid(o.pid))?.stat()?;
    let sid = stat.session.0;
    if o.shell_job || sid == o.pid {
        return Ok(());
    }
    Err(Error::new("E4010", Blame::Container, format!("task {} is not a session leader", o.pid))
        .why(format!("its session is that of process {sid}, which is outside the tree"))
        .advice("dump the session leader, or pass --shell-job to restore into the session of whoever restores"))
}

/// Everything between freeze and release.
fn write(
    o: &Options,
    dir: &ImageDir,
    ready: Ready,
    (freezer, snapshot): (Option<&Freezer>, Option<&Snapshot>),
    tracking: &mut Tracking,
    held: &mut [Task],
    report: &mut DumpReport,
) -> Result<(pb::InventoryEntry, Vec<Undo>, Vec<Left>)> {
    let tree = |e: Error| e.at(Phase::Tree);
    let mut pids = BTreeMap::new();
    let mut status = Vec::new();
    for t in held.iter() {
        let st = t.proc.status()?;
        let level = Level::of(status.first().unwrap_or(&st));
        pids.insert(t.pid, level.number(&st.ns_tgid));
        status.push(st);
    }
    family::check(o, held, &status).map_err(tree)?;
    let mut d = Dumping::new(o, dir, &pids, ready, tracking)?;
    d.snapshot = snapshot;
    d.cgroups = crate::cgroups::collector(&o.cgroups, freezer, held).map_err(tree)?;
    d.survey(held, &status).map_err(tree)?;
    let groups = d.cgroups.as_ref().is_some_and(Collector::is_by_thread);
    let written = std::thread::scope(|scope| {
        let facts = facts::gather_all(scope, held, &status, snapshot, groups);
        let (own, theirs) = (HostPid::own(), held.first().map(|t| t.pid));
        let strangers = theirs.map(|root| {
            let members = pids.keys().copied().collect();
            let mut spaces: BTreeSet<u64> = d.spaces.inodes().collect();
            scope.spawn(move || -> Result<()> {
                let of = |pid| {
                    ProcDir::open(pid)
                        .map_err(Error::from)?
                        .ns("pid")
                        .map_err(Error::from)
                };
                let ns = of(root)?;
                spaces.extend((ns != of(own)?).then_some(ns));
                match spaces.is_empty() {
                    true => Ok(()),
                    false => strangers::none_in(&spaces, &members),
                }
            })
        });
        for t in held.iter_mut() {
            thread::look(&mut t.threads, t.pid).map_err(tree)?;
        }
        let mut asked = VecDeque::new();
        for (t, st) in held.iter().zip(&status) {
            match t.zombie {
                Some(code) => d.zombie(t, st, code)?,
                None => {
                    let gone = |_| Error::bug("the reader of /proc has ended early");
                    let f = facts.recv().map_err(gone)?.map_err(tree)?;
                    let begun = d.begin(t, f, &mut asked)?;
                    asked.push_back(begun);
                    if asked.len() > ASKED_AT_ONCE {
                        d.next_of(&mut asked)?;
                    }
                }
            }
        }
        while !asked.is_empty() {
            d.next_of(&mut asked)?;
        }
        if let Some(found) = strangers {
            found
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(tree)?;
        }
        d.finish(held, report)
    });
    let undo = std::mem::take(&mut d.cx.undo);
    match written {
        Ok(inventory) => Ok((inventory, undo, d.left)),
        Err(e) => {
            if let Err(also) = take_back(&undo) {
                warn!("{also}");
            }
            Err(e)
        }
    }
}

/// Others are told that the images are complete; pages that stayed with the stopped tree go to who asks for them.
fn hand_out(o: &Options, left: &[Left], report: &mut DumpReport) -> Result<()> {
    let complete = || o.events.tell(Moment::PostDump);
    let Some(counter) = &o.memory.counter else {
        return complete();
    };
    let runs = left.iter().flat_map(|l| &l.runs).filter(|r| !r.unwritten);
    let sum: u64 = runs.map(|r| r.len).sum();
    report.pages_lazy = sum / crate::pages::PAGE;
    let served = match counter.serve_during(left, complete) {
        Some(served) => served?,
        None => {
            complete()?;
            o.events.tell(Moment::StatusReady)?;
            counter.serve(left)?
        }
    };
    info!("{served} pages were asked for, of {}", report.pages_lazy);
    Ok(())
}

/// What the dump changed is changed back: the tree lives on.
///
/// # Errors
/// The first of all that failed; the others were tried nevertheless.
fn take_back(undo: &[Undo]) -> Result<()> {
    let mut first = Ok(());
    for u in undo.iter().rev() {
        first = first.and(u.perform());
    }
    first
}

/// The tree runs at another host: here it must not run any more, also if this engine is killed now.
fn forfeit(held: &[Task]) {
    use stasis_kernel::ptrace::{EXITKILL, TRACESYSGOOD};
    for th in held.iter().flat_map(|t| &t.threads) {
        if let Err(e) = th.tracee.set_options(EXITKILL | TRACESYSGOOD) {
            // one that is killed as it should be soon, or was before
            debug!("{e}");
        }
    }
}

/// Lets the tree go: run on, stay stopped, or die. Gives those whose end is still to be waited for.
fn release(held: Vec<Task>, after: After) -> Result<Vec<Task>> {
    match after {
        After::Running => seize::let_go(held).map(|()| Vec::new()),
        After::Stopped => {
            for t in held.iter().filter(|t| t.zombie.is_none()) {
                stasis_kernel::ptrace::kill(t.pid.0, libc::SIGSTOP)?;
            }
            seize::let_go(held).map(|()| Vec::new())
        }
        After::Default => {
            // children first: a parent that saw its child die could react before it is killed itself
            for t in held.iter().rev().filter(|t| t.zombie.is_none()) {
                stasis_kernel::ptrace::kill(t.pid.0, libc::SIGKILL)?;
            }
            Ok(held)
        }
    }
}

/// Waits until killed tasks are gone, so that their numbers are free when the dump is over.
fn gone(killed: &[Task]) {
    let live = killed.iter().rev().filter(|t| t.zombie.is_none());
    let threads = live.flat_map(|t| t.threads.iter().rev().map(|th| th.tracee.tid));
    stasis_kernel::ptrace::wait_all_gone(threads);
}

/// While it is traced, a task's own rules do not judge the calls it plays: unless the kernel refuses that to us.
fn suspend_seccomp(
    t: &Task,
    threads: impl IntoIterator<Item = Seccomp>,
    o: &Options,
) -> Result<facts::Rules> {
    use stasis_kernel::ptrace::{SUSPEND_SECCOMP, TRACESYSGOOD};
    let mut rules = facts::Rules::default();
    if threads.into_iter().all(|s| s.mode == 0) {
        return Ok(rules);
    }
    for th in &t.threads {
        match th.tracee.set_options(TRACESYSGOOD | SUSPEND_SECCOMP) {
            // KERNEL: CAP_SYS_ADMIN in the first user namespace is needed (kernel/ptrace.c, check_ptrace_options())
            Err(e) if e.errno == nix::errno::Errno::EPERM => {
                th.tracee.set_options(TRACESYSGOOD)?;
                rules.judge = true;
            }
            r => r?,
        }
    }
    if rules.judge {
        rules.given = o.namespaces.seccomp.as_deref().map(Into::into);
    }
    Ok(rules)
}

/// The filters of a thread and their flags, the oldest first. Where the kernel does not let the engine read them, the one that
/// the caller knows of (`given`).
///
/// # Errors
/// E4013: they cannot be known.
fn filters_of(
    th: &task::Thread,
    seccomp: Seccomp,
    given: Option<&[u8]>,
) -> Result<Vec<(Vec<u8>, u64)>> {
    // the image wants the oldest first, each naming its predecessor
    // KERNEL: get_nth_filter() (kernel/seccomp.c) numbers from the oldest, whatever ptrace(2) says
    let mut filters = Vec::new();
    loop {
        match th.tracee.seccomp_filter(filters.len()) {
            Ok(Some(f)) => filters.push(f),
            Ok(None) => return Ok(filters),
            Err(e) if filters.is_empty() && mapped::is_denied(&e) => break,
            Err(e) => return Err(e.into()),
        }
    }
    let unknown = |why: String| {
        Error::new(
            "E4013",
            Blame::Container,
            format!("the seccomp filters of thread {} cannot be read", th.tid.0),
        )
        .why(why)
        .advice("dump as root; or as the container's owner with its config.json in the work folder or beside the images; or run it with seccomp=unconfined")
    };
    match (given, seccomp.filters) {
        (Some(f), Some(1)) => Ok(vec![(f.to_vec(), 0)]),
        (Some(_), n) => Err(unknown(format!(
            "only root may, and it has {} where the runtime installed one",
            n.map_or("an unknown number".into(), |n| n.to_string())
        ))),
        (None, _) => Err(unknown(
            "only root may, and nobody says what the runtime installed".into(),
        )),
    }
}

/// A run of pages, for tests of other modules.
#[cfg(test)]
pub(crate) fn mm_run(start: u64, len: u64) -> mm::Run {
    mm::Run::at(start, len)
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

/// Device, inode number, open flags and path of a mapped file.
type MappedKey = (u64, u64, u32, Vec<u8>);

/// How many tasks are out to be asked while others are looked at.
const ASKED_AT_ONCE: usize = 3;

/// A live task whose description has begun.
struct Begun<'t> {
    task: &'t Task,
    facts: Facts,
    pid: u32,
    maps: Vec<MapsLine>,
    files_id: u32,
    memory: Option<(pb::MmEntry, Vec<mm::Run>)>,
    asking: Asking<'t>,
}

fn on_task(t: &Task, st: &Status, e: Error) -> Error {
    let name = String::from_utf8_lossy(&st.name);
    e.on(format!("task {} ({name})", t.pid.0)).at(Phase::Tree)
}

/// A thread, for the thread that writes.
struct Portrait {
    of: thread::Portrait,
    /// Of a leader, its process.
    process: Option<pb::TaskCoreEntry>,
    /// Its newest seccomp filter.
    filter: Option<u32>,
    cg_set: u32,
    ids: Ids,
    /// Its security label.
    label: Option<String>,
    /// As it sees itself.
    tid: u32,
    shown: HostPid,
}

impl Portrait {
    fn write(self, dir: &ImageDir) -> Result<()> {
        let on = |e: Error| e.on(format!("thread {}", self.shown.0)).at(Phase::Tree);
        let mut core = self.of.core().map_err(on)?;
        core.tc = self.process;
        if let Some(tc) = &mut core.tc {
            tc.loginuid = tc.loginuid.map(|l| self.ids.uid(l));
        }
        if let Some(tc) = &mut core.thread_core {
            tc.cg_set = Some(self.cg_set);
            tc.creds = tc.creds.take().map(|c| self.ids.creds(c));
            if let Some(c) = &mut tc.creds {
                c.lsm_profile = self.label;
            }
            tc.seccomp_filter = self.filter;
        }
        Ok(dir.write_one(&Kind::Core.file_of(self.tid), &core)?)
    }
}

/// Portraits that go to the writer together: it is woken once for them.
#[derive(Default)]
struct Portraits {
    all: Vec<Portrait>,
    /// Not less than their bytes in memory.
    weight: usize,
}

/// How many bytes of portraits are handed over at once.
const TOGETHER: usize = 128 << 10;

impl Portraits {
    fn add(&mut self, p: Portrait) {
        self.weight += p.of.weight();
        self.all.push(p);
    }
    fn written(self, backlog: &mut Backlog) -> Result<()> {
        backlog.add_weighed(self.weight, move |dir| {
            self.all.into_iter().try_for_each(|p| p.write(dir))?;
            Ok(Wrote::default())
        })
    }
}

/// A dump under way.
pub struct Dumping<'a> {
    dir: &'a ImageDir,
    /// What kinds see.
    pub cx: DumpCx<'a>,
    files: OpenFiles,
    gadgets: GadgetCache,
    tapes: Tapes,
    /// Pages images that are there already.
    room: BTreeMap<HostPid, (u32, std::fs::File)>,
    pstree: Vec<pb::PstreeEntry>,
    /// Per sort of object, its number and a task that has it, in the order of kcmp: address spaces, descriptor tables, folders.
    objects: [Vec<(u32, HostPid)>; 3],
    /// Signal actions by the number of the address space, the same way, in the order they were met.
    hands: BTreeMap<u32, Vec<(u32, HostPid)>>,
    /// The last number given to them.
    last_hands: u32,
    /// What is written behind the tracer's back.
    backlog: Backlog,
    places: Places,
    spaces: PidSpaces,
    users: UserSpaces,
    /// Tasks' directories, and the user namespace of who has them.
    directories: BTreeMap<u32, u32>,
    mapped: BTreeMap<MappedKey, (u32, bool)>,
    /// Control groups, unless they are none of our business.
    cgroups: Option<Collector>,
    /// What SEM_UNDO would undo, by task.
    undo: BTreeMap<HostPid, Vec<pb::StasisSemUndo>>,
    /// Which module gives labels to tasks.
    lsm: pb::Lsmtype,
    seccomp: Vec<pb::SeccompFilter>,
    /// Pages that several tasks share, if those are written once.
    once: Option<once::Once>,
    /// Pages that stay with their tasks.
    left: Vec<Left>,
    /// Where pages go instead of into the folder.
    server: Option<Arc<Mutex<Client>>>,
    /// What was written since the dump before, and from this one on.
    pub tracking: &'a mut Tracking,
    /// Memory that is saved when the tree runs again.
    pub snapshot: Option<&'a Snapshot>,
}

impl<'a> Dumping<'a> {
    fn new(
        o: &'a Options,
        dir: &'a ImageDir,
        pids: &'a BTreeMap<HostPid, u32>,
        ready: Ready,
        tracking: &'a mut Tracking,
    ) -> Result<Self> {
        let mut cx = DumpCx::new(o, dir, pids);
        // these numbers are taken
        cx.locks = ready.locks;
        for _ in &ready.room {
            cx.new_pages_id();
        }
        Ok(Self {
            dir,
            cx,
            files: OpenFiles::with(ready.census),
            gadgets: ready.gadgets,
            tapes: Tapes::new(),
            room: ready.room,
            pstree: Vec::new(),
            objects: Default::default(),
            hands: BTreeMap::new(),
            last_hands: 1,
            seccomp: Vec::new(),
            backlog: Backlog::start(dir)?,
            places: Places::new()?,
            spaces: PidSpaces::default(),
            users: UserSpaces::default(),
            directories: BTreeMap::new(),
            mapped: BTreeMap::new(),
            cgroups: None,
            undo: BTreeMap::new(),
            once: o.memory.once.then(once::Once::default),
            left: Vec::new(),
            server: match &o.memory.page_server {
                Some(s) => Some(Arc::new(Mutex::new(Client::connect(s)?))),
                None => None,
            },
            lsm: crate::lsm::of_host("/".as_ref()),
            tracking,
            snapshot: None,
        })
    }
    /// Mounts, before all files: those are found through mounts. Which networks there are, before all sockets. And what only a look
    /// at all tasks at once tells.
    fn survey(&mut self, held: &[Task], status: &[Status]) -> Result<()> {
        self.spaces = PidSpaces::look(held, status, &mut self.places)?;
        self.cx.level = self.spaces.level();
        for t in held.iter().filter(|t| t.zombie.is_none()) {
            for ns in [Ns::User, Ns::Mnt, Ns::Net] {
                let there = t.proc.ns(ns.name())?;
                self.places
                    .space(t.pid, ns, there)
                    .map_err(|e| e.on(format!("task {}", t.pid.0)))?;
            }
        }
        if let Some(root) = held.first() {
            self.users = UserSpaces::look(&mut self.places, root.pid)?;
        }
        self.cx.namespaces = self.places.by_inode();
        self.undo = undo::of(held, &mut self.cx)?;
        crate::namespaces::mnt::dump(&mut self.cx, &self.places.mounts())
    }
    /// A task's place in the tree; gives its own pid.
    ///
    /// `threads`: their numbers, from the one each is known by inwards. `children`: see [`PidSpaces::extension`].
    fn entry(
        &mut self,
        t: &Task,
        st: &Status,
        threads: &[Vec<u32>],
        children: Option<u64>,
    ) -> Result<u32> {
        crate::kill_point();
        let pid = self.cx.pids[&t.pid];
        let level = self.cx.level;
        let parent = t.parent.and_then(|p| self.cx.pids.get(&p));
        self.pstree.push(pb::PstreeEntry {
            pid,
            ppid: parent.copied().unwrap_or(0),
            pgid: level.number(&st.ns_pgid),
            sid: level.number(&st.ns_sid),
            threads: threads.iter().filter_map(|t| t.first()).copied().collect(),
            stasis: self.spaces.extension(t.pid, threads, st, children)?,
        });
        Ok(pid)
    }
    /// Describes the next of the tasks that are being asked.
    fn next_of(&mut self, asked: &mut VecDeque<Begun>) -> Result<()> {
        asked.pop_front().map_or(Ok(()), |b| self.complete(b))
    }
    /// Begins to describe a live task: tree entry, identities, memory; its leader is sent out to be asked.
    ///
    /// `asked` are those that are out. One that shares memory with any of them waits until all are back, and until that memory
    /// is written: they use the same dead stack.
    fn begin<'t>(
        &mut self,
        t: &'t Task,
        mut f: Facts,
        asked: &mut VecDeque<Begun<'t>>,
    ) -> Result<Begun<'t>> {
        f.rules = suspend_seccomp(t, f.threads.iter().map(|s| s.seccomp), self.cx.options)?;
        let st = &f.leader;
        let on = |e: Error| on_task(t, st, e);
        let numbers: Vec<_> = f.threads.iter().map(facts::OfThread::numbers).collect();
        let pid = self
            .entry(t, st, &numbers, pidspaces::births(&f.namespaces))
            .map_err(on)?;
        let known = self.places.meet(t.pid, &f.namespaces, pid).map_err(on)?;
        self.cx.namespaces = self.places.by_inode();
        if t.parent.is_none() && self.places.is_own(Ns::User) {
            self.cx.ids = Ids::of(t.pid).map_err(on)?;
        }
        if st.thread_features.iter().any(|f| f == b"shstk") {
            return Err(Error::new(
                "E4009",
                Blame::Container,
                format!("task {} uses shadow stacks", t.pid.0),
            )
            .why("their contents cannot be rebuilt by this version")
            .advice("start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off")
            .at(Phase::Tree));
        }
        let ids = self.ids(t, known)?;
        self.inside(pid, &ids, &f).map_err(on)?;
        self.backlog.one(Kind::Ids, pid, ids)?;
        // pages are listed before the excursion, which touches dead stack
        let new_mm = self.objects[0].contains(&(ids.vm_id, t.pid));
        let memory = new_mm.then(|| {
            let watch = self.tracking.watch(t, &f, &mut self.gadgets)?;
            mm::describe(self, t, &f, &watch)
        });
        let memory = memory.transpose().map_err(|e| e.at(Phase::Memory))?;
        if !new_mm {
            while !asked.is_empty() {
                self.next_of(asked)?;
            }
            self.backlog.settle()?;
        }
        // of tens of thousands of mappings no more is remembered than the rest needs
        let maps: Vec<MapsLine> = std::mem::take(&mut f.smaps)
            .into_iter()
            .map(|s| s.map)
            .collect();
        let asking = process::ask(t, &f, &maps, &mut self.gadgets, &self.tapes);
        let asking = asking.map_err(|e| on_task(t, &f.leader, e))?;
        Ok(Begun {
            task: t,
            facts: f,
            pid,
            maps,
            files_id: ids.files_id,
            memory,
            asking,
        })
    }
    /// Core, mm, files of a task whose leader is on its way back.
    fn complete(&mut self, b: Begun) -> Result<()> {
        let (t, f, pid, st) = (b.task, &b.facts, b.pid, &b.facts.leader);
        let on = |e: Error| on_task(t, st, e);
        let sets = self.cgroup_sets(t, f).map_err(on)?;
        let mut some = Portraits::default();
        let mut listen = |i: usize, told: Told, xstate: &[u8]| {
            some.add(self.portrait(t, f, i, &told, xstate, sets[i])?);
            match some.weight < TOGETHER {
                true => Ok(()),
                false => std::mem::take(&mut some).written(&mut self.backlog),
            }
        };
        let asked = b.asking.end(f, &b.maps, &mut listen).map_err(on)?;
        let mut leader = self.portrait(t, f, 0, &asked.leader, &asked.xstate, sets[0])?;
        let mut process = process::core(t, f, &asked).map_err(on)?;
        if let (Some(s), Some(undo)) = (&mut process.stasis, self.undo.remove(&t.pid)) {
            s.undo = undo;
        }
        leader.process = Some(process);
        some.add(leader);
        some.written(&mut self.backlog).map_err(on)?;
        if let Some((mut mm, runs)) = b.memory {
            mm.mm_brk = asked.brk;
            mm.dumpable = Some(asked.dumpable);
            self.backlog.one(Kind::Mm, pid, mm)?;
            self.memory(t.pid, pid, runs)?;
        }
        self.fs(t, pid, st)?;
        self.descriptors(t, b.files_id)
            .map_err(|e| e.at(Phase::Files))
    }
    /// Has the pages of a task written.
    fn memory(&mut self, host: HostPid, pid: u32, runs: Vec<mm::Run>) -> Result<()> {
        let runs = match &mut self.once {
            Some(o) => o.sort(host, pid, runs)?,
            None => runs,
        };
        let room = self.room.remove(&host);
        let id = match &room {
            Some(r) => r.0,
            None => self.cx.new_pages_id(),
        };
        if let Some(server) = self.server.clone() {
            return self.backlog.add(move |_| {
                let space = memory::Space {
                    pid: host,
                    before: &[],
                    running: false,
                    keep_lazy: false,
                };
                let mut to = server
                    .lock()
                    .map_err(|_| Error::bug("a writer has panicked"))?;
                let w = memory::send(&mut to, &space, pid, &runs)
                    .map_err(|e| e.on(format!("memory of task {}", host.0)).at(Phase::Memory))?;
                Ok(Wrote {
                    pages: w.pages,
                    skipped: 0,
                })
            });
        }
        let image = Kind::Pagemap.file_of(pid);
        let before = self.tracking.before(self.dir, host, &image);
        let options = self.cx.options.memory.clone();
        let hand = self.snapshot.map(Snapshot::hand);
        let keep_lazy = options.counter.is_some();
        if keep_lazy {
            let lazy = runs.iter().copied().filter(|r| r.lazy);
            self.left.push(Left {
                own: pid,
                host,
                runs: lazy.collect(),
            });
        }
        self.backlog.add(move |dir| {
            let to = match room {
                Some(r) => Sink::Plain(Out::File(r.1)),
                None => Sink::create(dir, id, &options)?,
            };
            let space = memory::Space {
                pid: host,
                before: &before,
                running: false,
                keep_lazy,
            };
            let written = memory::write_now(dir, &space, &image, (id, to), &runs);
            let (w, to, late) = written
                .map_err(|e| e.on(format!("memory of task {}", host.0)).at(Phase::Memory))?;
            let len = w.pages * crate::pages::PAGE;
            match hand {
                Some(hand) => hand(host, id, to, late, len),
                None => to.finish(dir, id, len)?,
            }
            crate::kill_point();
            Ok(Wrote {
                pages: w.pages,
                skipped: w.skipped,
            })
        })
    }
    fn zombie(&mut self, t: &Task, st: &Status, code: i32) -> Result<()> {
        let pid = self.entry(t, st, &[PidSpaces::numbers(self.cx.level, st)], None)?;
        let stat = t.proc.stat()?;
        let core = pb::CoreEntry {
            mtype: pb::core_entry::March::X8664 as i32,
            tc: Some(pb::TaskCoreEntry {
                task_state: process::DEAD,
                exit_code: code as u32,
                comm: st.name.clone(),
                flags: stat.flags,
                stasis: (stat.exit_signal != libc::SIGCHLD).then(|| pb::StasisTaskEntry {
                    exit_signal: Some(stat.exit_signal as u32),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        debug!("task {pid} is a zombie");
        self.backlog.one(Kind::Core, pid, core)
    }
    /// All that is known of a thread.
    fn portrait(
        &mut self,
        t: &Task,
        f: &Facts,
        i: usize,
        told: &Told,
        xstate: &[u8],
        cg_set: u32,
    ) -> Result<Portrait> {
        let (th, st) = (&t.threads[i], &f.threads[i]);
        Ok(Portrait {
            of: thread::Portrait::of(th, st, told, xstate)?,
            process: None,
            filter: self.seccomp(th, st.seccomp, f)?,
            cg_set,
            ids: self.cx.ids.clone(),
            label: crate::lsm::label(self.lsm, th.tid)?,
            tid: st.own,
            shown: th.tid,
        })
    }
    /// The set of control groups of each thread.
    fn cgroup_sets(&mut self, t: &Task, f: &Facts) -> Result<Vec<u32>> {
        let Some(c) = &mut self.cgroups else {
            return Ok(vec![Collector::OWN; t.threads.len()]);
        };
        let is = |n: &&(&'static str, u64)| n.0 == Ns::Cgroup.name();
        let ns = f.namespaces.iter().find(is).map(|n| n.1);
        let ns = ns.filter(|_| self.places.is_own(Ns::Cgroup));
        let leaders = c.set_of(&t.proc, ns)?;
        let mut all = vec![leaders];
        let differ = t.threads.len() > 1 && c.may_differ(&t.proc)?;
        for (i, th) in t.threads.iter().enumerate().skip(1) {
            let same = !differ || f.in_leaders_groups.get(i) == Some(&true);
            all.push(match same {
                true => leaders,
                false => c.set_of(&t.proc.task(th.tid)?, ns)?,
            });
        }
        Ok(all)
    }
    /// The index of a thread's newest filter in seccomp.img.
    fn seccomp(&mut self, th: &task::Thread, seccomp: Seccomp, f: &Facts) -> Result<Option<u32>> {
        if seccomp.mode != 2 {
            return Ok(None);
        }
        let filters = filters_of(th, seccomp, f.rules.given.as_deref())?;
        let mut prev = None;
        for (filter, flags) in filters {
            prev = Some(self.filter(filter, flags as u32, prev));
        }
        Ok(prev)
    }
    /// The index of a filter in seccomp.img; equal chains are stored once.
    fn filter(&mut self, filter: Vec<u8>, flags: u32, prev: Option<u32>) -> u32 {
        let f = pb::SeccompFilter {
            filter,
            prev,
            flags: (flags != 0).then_some(flags),
        };
        let at = self
            .seccomp
            .iter()
            .position(|x| *x == f)
            .unwrap_or_else(|| {
                self.seccomp.push(f);
                self.seccomp.len() - 1
            });
        at as u32
    }
    /// Which kernel objects tasks share: equal numbers mean the same object. Number 1 is the engine's own.
    fn ids(&mut self, t: &Task, spaces: pb::TaskKobjIdsEntry) -> Result<pb::TaskKobjIdsEntry> {
        let mut id = |which: usize, what: Kcmp| -> Result<u32> {
            // kcmp(2) tells an order, so a new object is found among n in log n calls
            let seen = &mut self.objects[which];
            let mut failed = None;
            let at = seen.binary_search_by(|(_, other)| {
                fds::kcmp(*other, t.pid, what).unwrap_or_else(|e| {
                    failed.get_or_insert(e);
                    Ordering::Equal
                })
            });
            match (failed, at) {
                (Some(e), _) => Err(e.into()),
                (None, Ok(at)) => Ok(seen[at].0),
                (None, Err(at)) => {
                    let id = seen.len() as u32 + 2;
                    seen.insert(at, (id, t.pid));
                    Ok(id)
                }
            }
        };
        let (vm_id, files_id, fs_id) = (id(0, Kcmp::Vm)?, id(1, Kcmp::Files)?, id(2, Kcmp::Fs)?);
        // KERNEL: signal actions are shared only where memory is (clone(2), CLONE_SIGHAND), and execve(2) parts both
        let same_memory = self.hands.entry(vm_id).or_default();
        let mut sighand_id = None;
        for (id, other) in same_memory.iter() {
            if fds::kcmp(*other, t.pid, Kcmp::Sighand)? == Ordering::Equal {
                sighand_id = Some(*id);
                break;
            }
        }
        let sighand_id = sighand_id.unwrap_or_else(|| {
            self.last_hands += 1;
            same_memory.push((self.last_hands, t.pid));
            self.last_hands
        });
        Ok(pb::TaskKobjIdsEntry {
            vm_id,
            files_id,
            fs_id,
            sighand_id,
            ..spaces
        })
    }
    /// What a task in a user namespace below the tree's must not have.
    ///
    /// # Errors
    /// E4016.
    fn inside(&mut self, pid: u32, ids: &pb::TaskKobjIdsEntry, f: &Facts) -> Result<()> {
        let own = ids.user_ns_id.unwrap_or(0);
        let other = self.directories.insert(ids.fs_id, own);
        if let (true, Some(first)) = (self.users.has(own), f.threads.first()) {
            let creds = self.cx.ids.creds(thread::creds(&first.creds, 0));
            self.users.settle(pid, own, creds);
        }
        let is_inside = |id| self.users.has(id);
        if other.is_some_and(|o| is_inside(o) || is_inside(own)) {
            return Err(userspaces::shares_directories());
        }
        let who = |th: &facts::OfThread| (th.creds.uid, th.creds.gid, th.creds.groups.clone());
        let first = f.threads.first().map(who);
        let alike = f.threads.iter().all(|th| Some(who(th)) == first);
        userspaces::threads_are_alike(alike || !is_inside(own))
    }
    fn fs(&mut self, t: &Task, pid: u32, st: &Status) -> Result<()> {
        let cwd_id = self.place(t, "cwd")?;
        let root_id = self.place(t, "root")?;
        let umask = st.umask;
        let fs = pb::FsEntry {
            cwd_id,
            root_id,
            umask,
        };
        self.backlog.one(Kind::Fs, pid, fs)
    }
    /// Pages, shared images and the inventory.
    fn finish(&mut self, held: &[Task], report: &mut DumpReport) -> Result<pb::InventoryEntry> {
        self.queues().map_err(|e| e.at(Phase::Files))?;
        self.late_files().map_err(|e| e.at(Phase::Files))?;
        self.shared_contents().map_err(|e| e.at(Phase::Memory))?;
        crate::kill_point();
        self.dir.write_all(&Kind::Pstree.file(), &self.pstree)?;
        let root = self.places.id(Ns::Pid);
        self.users.belongings(&mut self.places)?;
        let mut namespaces = self.spaces.entries(&self.pstree, root, &self.users)?;
        namespaces.extend(self.users.write(self.dir)?);
        match namespaces.is_empty() {
            true => self.dir.remove(&Kind::Namespaces.file())?,
            false => self.dir.write_all(&Kind::Namespaces.file(), &namespaces)?,
        }
        crate::kinds::finish(&mut self.cx)?;
        for t in held.iter().filter(|t| t.zombie.is_none()) {
            let own = self.cx.pids.get(&t.pid).copied().unwrap_or(t.pid.0 as u32);
            crate::plugins::devices(&mut self.cx, t.pid, own)?;
        }
        self.dir.write_one(
            &Kind::Seccomp.file(),
            &pb::SeccompEntry {
                seccomp_filters: std::mem::take(&mut self.seccomp),
            },
        )?;
        self.dir.write_all(&Kind::Files.file(), &self.cx.entries)?;
        let root = held[0].pid;
        for ns in Ns::ALL.into_iter().filter(|n| *n != Ns::Mnt) {
            self.places.dump(&mut self.cx, ns).map_err(|e| {
                e.on(format!("a {} namespace of the tree", ns.name()))
                    .at(Phase::Tree)
            })?;
        }
        crate::namespaces::mqueues::finish(&mut self.cx)?;
        let plugins = Kind::Plugins.file();
        match self.cx.plugged.is_empty() {
            true => self.dir.remove(&plugins)?,
            false => self.dir.write_all(&plugins, &self.cx.plugged)?,
        }
        let mut clocks = self.places.clocks();
        if !self.places.is_own(Ns::Time) {
            clocks.push((0, root));
        }
        for (id, task) in clocks {
            let seen = crate::clocks::seen_by(task)?;
            self.dir.write_one(&Kind::Timens.file_of(id), &seen)?;
        }
        if let Some(c) = &self.cgroups {
            crate::cgroups::write(c, self.dir).map_err(|e| e.at(Phase::Tree))?;
        }
        self.cx.finish_writers()?;
        let written = self.backlog.end()?;
        report.pages_written = written.pages;
        report.pages_skipped_parent = written.skipped;
        report.pages_scanned = written.pages + written.skipped;
        report.add_shared(&self.cx.shared);
        if let Some(server) = &self.server {
            let mut to = server
                .lock()
                .map_err(|_| Error::bug("a writer has panicked"))?;
            to.close().map_err(|e| e.at(Phase::Memory))?;
        }
        self.tracking.keep().map_err(|e| e.at(Phase::Memory))?;
        self.tracking.write(self.dir, &BTreeMap::new())?;
        report.memdump_us = written.copying.as_micros() as u64;
        report.memwrite_us = report.memdump_us;
        report.tasks = held.len() as u32;
        report.threads = held.iter().map(|t| t.threads.len() as u32).sum();
        report.warnings.append(&mut self.cx.warnings);
        for w in &report.warnings {
            warn!("{w}");
        }
        Ok(pb::InventoryEntry {
            img_version: 2,
            fdinfo_per_id: Some(true),
            root_ids: Some(pb::TaskKobjIdsEntry {
                vm_id: 1,
                files_id: 1,
                fs_id: 1,
                sighand_id: 1,
                ..places::of_engine()
            }),
            ns_per_id: Some(true),
            root_cg_set: Some(Collector::OWN),
            lsmtype: Some(self.lsm as i32),
            network_lock_method: Some(3),
            stasis_memory: memory::announce(self.cx.options),
            stasis_nested_pids: self
                .pstree
                .iter()
                .any(|t| t.stasis.is_some())
                .then_some(true),
            stasis_nested_users: (!self.users.are_none()).then_some(true),
            plugins_entry: {
                let plugins = crate::plugins::used(&self.cx);
                (!plugins.is_empty()).then_some(pb::PluginsEntry { plugins })
            },
            tcp_close: self.cx.options.network.tcp_close.then_some(true),
            stasis_network_lock: self.cx.locked[0].take(),
            stasis_crossing_lock: self.cx.locked[1].take(),
            ..Default::default()
        })
    }
}

/// Open flags a mapping needs of its file.
pub fn open_flags_of(m: &MapsLine, flags: VmFlags) -> u32 {
    // KERNEL: a shared mapping that may become writable was made from a file opened for writing (mm/mmap.c, VM_MAYWRITE)
    if m.shared && flags.contains(VmFlags::MAY_WRITE) {
        libc::O_RDWR as u32
    } else {
        libc::O_RDONLY as u32
    }
}
