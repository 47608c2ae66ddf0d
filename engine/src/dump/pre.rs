//! A pre-dump: memory only, of a tree that runs on, so that the dump after it has less to do.
//!
//! The tree is stopped while its pages are listed and write-protected; they are read when it runs again. What it writes
//! meanwhile counts as changed, so a page that is read half old and half new does no harm: the next dump has it again.
use super::facts::Facts;
use super::memory::{self, Space};
use super::process::GadgetCache;
use super::ready::Ready;
use super::sink::Sink;
use super::task::Task;
use super::tracking::{Range, Tracking};
use super::{facts, folder, micros, mm, seize, thread};
use crate::error::{Error, Result};
use crate::kinds::shmem;
use crate::options::Options;
use crate::phase::Phase;
use crate::remote::Client;
use crate::report::DumpReport;
use stasis_kernel::fds::{self, Kcmp};
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_kernel::pagemap::Scanner;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::{ImageDir, Kind, pb};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;
use tracing::info;

/// Writes the memory of the tree under `o.pid` into `o.images`, and tracks changes from then on.
///
/// # Errors
/// The tree runs on as it was, the folder holds no inventory, and nothing is tracked.
pub fn pre_dump(o: &Options) -> Result<DumpReport> {
    stasis_kernel::limits::raise_nofile();
    super::as_tracer(|| pre_dump_here(o))
}

/// Shared memory that is listed, by its device and inode.
type SharedMemory = BTreeMap<(u64, u64), SharedObject>;

/// What of it is known.
struct SharedObject {
    file: File,
    /// The number of its pagemap.
    shmid: u64,
    size: u64,
    /// The size of its pages, if those are huge pages of the pool.
    huge: Option<u64>,
}

/// Opens the shared memory that a stopped task maps or has open. What cannot be had is left to the last dump.
fn shared_memory(t: &Task, f: &Facts, met: &mut SharedMemory) -> Result<()> {
    let ours = ProcDir::open(HostPid::own())?.ns(Ns::Ipc.name())?;
    let at_home = t.proc.ns(Ns::Ipc.name())? == ours;
    let mut add = |file: OwnedFd, segment: Option<u32>| -> Result<()> {
        let st = fds::fstat(file.as_fd())?;
        met.entry((st.st_dev, st.st_ino)).or_insert(SharedObject {
            huge: super::backing::huge(&file, &st),
            file: file.into(),
            // as the last dump numbers it, if that is no namespace below the root's
            shmid: segment.map_or(st.st_ino, crate::kinds::sysv::contents_id),
            size: st.st_size as u64,
        });
        Ok(())
    };
    for m in f.smaps.iter().map(|s| &s.map).filter(|m| m.shared) {
        if crate::migrate::is_memory(&m.path)
            && let Ok(file) = t.proc.open_map_file(m, libc::O_RDONLY)
        {
            let segment = m.path.starts_with(b"/SYSV") && at_home;
            add(file, segment.then_some(m.ino as u32))?;
        }
    }
    for fd in t.proc.fds()? {
        if t.proc.fd_link(fd).is_ok_and(|l| l.starts_with(b"/memfd:"))
            && let Ok(file) = t.proc.open_file(&format!("fd/{}", fd.0), libc::O_RDONLY)
        {
            add(file, None)?;
        }
    }
    Ok(())
}

/// An address space that is listed.
struct Listed {
    pid: HostPid,
    /// In its own pid namespace.
    own: u32,
    image: String,
    runs: Vec<mm::Run>,
}

fn pre_dump_here(o: &Options) -> Result<DumpReport> {
    let prepared = || {
        super::exists(o)?;
        let dir = folder(o)?;
        let tracking = Tracking::prepare(o, true, &dir)?;
        Ok((dir, tracking))
    };
    let (dir, mut tracking) = prepared().map_err(|e: Error| e.at(Phase::Prepare))?;
    let ready = Ready::make(HostPid(o.pid), &dir, false);
    let begun = Instant::now();
    let mut report = DumpReport::default();
    let mut held = Vec::new();
    let seized = seize::tree(HostPid(o.pid), 0, begun + o.timeout, &mut held)
        .map_err(|e| e.at(Phase::Seize));
    report.freezing_us = micros(begun);
    let listed = seized.and_then(|()| {
        list(o, &mut held, &mut tracking, ready.gadgets).map_err(|e| e.at(Phase::Memory))
    });
    report.tasks = held.len() as u32;
    report.threads = held.iter().map(|t| t.threads.len() as u32).sum();
    crate::kill_point();
    let released = seize::let_go(held).map_err(|e| e.at(Phase::Release));
    report.frozen_us = micros(begun);
    let sealed = listed.and_then(|(l, shared)| {
        released?;
        seal(o, &dir, &tracking, (&l, &shared), &mut report)?;
        tracking.stay()
    });
    if let Err(e) = sealed {
        let _ = dir.invalidate();
        return Err(e);
    }
    if o.memory.auto_dedup
        && dir.parent().is_some()
        && let Err(e) = crate::dedup(&dir)
    {
        report.warnings.push(e.to_string());
    }
    info!(
        "pre-dumped {} tasks, {} pages, {} unchanged",
        report.tasks, report.pages_written, report.pages_skipped_parent
    );
    Ok(report)
}

/// Lists and protects all address spaces of the stopped tree.
fn list(
    o: &Options,
    held: &mut [Task],
    tracking: &mut Tracking,
    mut gadgets: GadgetCache,
) -> Result<(Vec<Listed>, SharedMemory)> {
    tracking.take(held)?;
    let mut shared = SharedMemory::new();
    let mut listed: Vec<Listed> = Vec::new();
    let status: Vec<_> = held
        .iter()
        .map(|t| t.proc.status())
        .collect::<std::result::Result<_, _>>()?;
    std::thread::scope(|scope| {
        let facts = facts::gather_all(scope, held, &status, None, false);
        for t in held.iter_mut().filter(|t| t.zombie.is_none()) {
            let gone = |_| Error::bug("the reader of /proc has ended early");
            let mut f = facts.recv().map_err(gone)??;
            f.rules = super::suspend_seccomp(t, f.threads.iter().map(|s| s.seccomp), o)?;
            let same =
                |l: &Listed| fds::kcmp(l.pid, t.pid, Kcmp::Vm).is_ok_and(|o| o == Ordering::Equal);
            if listed.iter().any(same) {
                continue;
            }
            let one = one(t, &f, tracking, &mut gadgets);
            listed.push(one.map_err(|e| e.on(format!("task {}", t.pid.0)))?);
            // a page server gets none of it
            if o.memory.page_server.is_none() {
                shared_memory(t, &f, &mut shared)?;
            }
            crate::kill_point();
        }
        Ok(())
    })
    .and_then(|()| tracking.keep())
    .map(|()| (listed, shared))
}

fn one(
    t: &mut Task,
    f: &Facts,
    tracking: &mut Tracking,
    gadgets: &mut GadgetCache,
) -> Result<Listed> {
    let pid = t.pid;
    thread::look(&mut t.threads[..1], pid)?;
    let watch = tracking.watch(t, f, gadgets)?;
    let mut scanner = Scanner::of(&t.proc)?;
    let mut runs = Vec::new();
    for s in f.smaps.iter().filter(|s| super::tracking::trackable(s)) {
        mm::pages(&mut scanner, s, &watch, &mut runs)?;
        watch.protect(&mut scanner, s)?;
    }
    watch.begin()?;
    let own = f.threads[0].own;
    Ok(Listed {
        pid,
        own,
        image: Kind::Pagemap.file_of(own),
        runs,
    })
}

/// Reads and writes the pages of the running tree.
fn seal(
    o: &Options,
    dir: &ImageDir,
    tracking: &Tracking,
    (listed, shared): (&[Listed], &SharedMemory),
    report: &mut DumpReport,
) -> Result<()> {
    let begun = Instant::now();
    let mut lost: BTreeMap<HostPid, Vec<Range>> = BTreeMap::new();
    let mut server = match o.memory.page_server.as_ref() {
        Some(s) => Some(Client::connect(s)?),
        None => None,
    };
    for (l, id) in listed.iter().zip(1..) {
        let on = |e: Error| {
            e.on(format!("memory of task {}", l.pid.0))
                .at(Phase::Memory)
        };
        let before = tracking.before(dir, l.pid, &l.image);
        let space = Space {
            pid: l.pid,
            before: &before,
            running: true,
            keep_lazy: false,
        };
        let w = match &mut server {
            Some(to) => memory::send(to, &space, l.own, &l.runs),
            None => {
                let to = Sink::create(dir, id, &o.memory)?;
                memory::write(dir, &space, &l.image, (id, to), &l.runs)
            }
        };
        let w = w.map_err(on)?;
        report.pages_written += w.pages;
        report.pages_skipped_parent += w.skipped;
        report.pages_scanned += w.pages + w.skipped;
        lost.insert(l.pid, w.lost);
        crate::kill_point();
    }
    for (s, id) in shared.values().zip(listed.len() as u32 + 1..) {
        let how = (s.size, s.huge);
        let saved = shmem::save(dir, &s.file, s.shmid, id, how, &o.memory, true);
        let on = |e: Error| e.on(format!("shared memory {}", s.shmid)).at(Phase::Memory);
        report.add_shared(&saved.map_err(on)?);
        crate::kill_point();
    }
    if let Some(to) = &mut server {
        to.close().map_err(|e| e.at(Phase::Memory))?;
    }
    report.memdump_us = micros(begun);
    report.memwrite_us = report.memdump_us;
    tracking
        .write(dir, &lost)
        .map_err(|e| e.at(Phase::Memory))?;
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let uptime = uptime.map_or(0, |t| {
        t.tv_sec() as u64 * 1_000_000 + t.tv_nsec() as u64 / 1000
    });
    let inventory = pb::InventoryEntry {
        img_version: 2,
        dump_uptime: Some(uptime),
        // what criu calls "read": pages are taken from the running tree
        pre_dump_mode: Some(2),
        stasis_memory: memory::announce(o),
        ..Default::default()
    };
    dir.commit_inventory(&inventory)
        .map_err(|e| Error::from(e).at(Phase::Seal))
}
