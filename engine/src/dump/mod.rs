//! The story of a dump: look from outside, write down, seal, let go. Long because the story and what it looks at in a task
//! stand together.
mod facts;
mod family;
mod files;
mod memory;
pub mod mm;
mod preflight;
mod process;
mod ready;
pub mod seize;
mod task;
mod thread;

pub use preflight::preflight;

use crate::error::{Blame, Error, Result};
use crate::kinds::{DumpCx, Undo};
use crate::options::{After, Options};
use crate::phase::Phase;
use crate::report::DumpReport;
use facts::Facts;
use files::OpenFiles;
use process::{Asked, GadgetCache};
use ready::Ready;
use stasis_kernel::fds::{self, Kcmp};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{MapsLine, ProcDir, Status, VmFlags};
use stasis_proto::{ImageDir, Kind, pb};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Instant;
use task::Task;
use tracing::{debug, info, warn};

/// Dumps the tree under `o.pid` into `o.images`.
///
/// On any error the tree runs on as it was and the folder holds no inventory.
pub fn dump(o: &Options) -> Result<DumpReport> {
    stasis_kernel::limits::raise_nofile();
    // a tracer of its own: whatever happens, the end of this thread lets go of every task, also of one that was asked
    // to stop and never did (kernel/ptrace.c, exit_ptrace)
    let log = tracing::dispatcher::get_default(Clone::clone);
    let told = std::thread::scope(|s| {
        s.spawn(|| tracing::dispatcher::with_default(&log, || dump_here(o)))
            .join()
    });
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn dump_here(o: &Options) -> Result<DumpReport> {
    let dir = prepare(o).map_err(|e| e.at(Phase::Prepare))?;
    let ready = Ready::make(HostPid(o.pid), &dir);
    let begun = Instant::now();
    let mut report = DumpReport::default();
    let mut held = Vec::new();
    let seized = seize::tree(HostPid(o.pid), 0, begun + o.timeout, &mut held)
        .map_err(|e| e.at(Phase::Seize));
    report.freezing_us = micros(begun);
    let written = seized.and_then(|()| write(o, &dir, ready, &mut held, &mut report));
    let sealed = written.and_then(|(inventory, undo)| {
        let sealed = dir
            .commit_inventory(&inventory)
            .map_err(|e| Error::from(e).at(Phase::Seal));
        if sealed.is_err() || o.after != After::Default {
            take_back(&undo)?;
        }
        sealed
    });
    crate::kill_point();
    let after = if sealed.is_ok() {
        o.after
    } else {
        After::Running
    };
    let released = release(held, after).map_err(|e| e.at(Phase::Release));
    report.frozen_us = micros(begun);
    if sealed.is_err() {
        let _ = dir.invalidate();
    }
    sealed?;
    released?;
    info!(
        "dumped {} tasks with {} threads, {} pages",
        report.tasks, report.threads, report.pages_written
    );
    Ok(report)
}

/// Checks what can be checked before anything is touched.
fn prepare(o: &Options) -> Result<ImageDir> {
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
    session(o)?;
    let dir = ImageDir::create(&o.images)?;
    dir.invalidate()?;
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
    held: &mut [Task],
    report: &mut DumpReport,
) -> Result<(pb::InventoryEntry, Vec<Undo>)> {
    let tree = |e: Error| e.at(Phase::Tree);
    let mut pids = BTreeMap::new();
    let mut status = Vec::new();
    for t in held.iter() {
        let st = t.proc.status()?;
        pids.insert(t.pid, *st.ns_tgid.last().unwrap_or(&t.pid.0) as u32);
        status.push(st);
    }
    family::check(o, held, &status).map_err(tree)?;
    let mut d = Dumping::new(o, dir, &pids, ready);
    let written = std::thread::scope(|scope| {
        let facts = facts::gather_all(scope, held);
        for t in held.iter_mut() {
            for th in &mut t.threads {
                thread::look(th, t.pid).map_err(tree)?;
            }
        }
        for (t, st) in held.iter().zip(&status) {
            match t.zombie {
                Some(code) => d.zombie(t, st, code)?,
                None => {
                    let gone = |_| Error::bug("the reader of /proc has ended early");
                    d.task(t, &facts.recv().map_err(gone)?.map_err(tree)?)?;
                }
            }
        }
        d.finish(held, report)
    });
    let undo = std::mem::take(&mut d.cx.undo);
    match written {
        Ok(inventory) => Ok((inventory, undo)),
        Err(e) => {
            if let Err(also) = take_back(&undo) {
                warn!("{also}");
            }
            Err(e)
        }
    }
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

/// Lets the tree go: run on, stay stopped, or die.
fn release(held: Vec<Task>, after: After) -> Result<()> {
    match after {
        After::Running => seize::let_go(held),
        After::Stopped => {
            for t in held.iter().filter(|t| t.zombie.is_none()) {
                stasis_kernel::ptrace::kill(t.pid.0, libc::SIGSTOP)?;
            }
            seize::let_go(held)
        }
        After::Default => {
            // children first: a parent that saw its child die could react before it is killed itself
            for t in held.iter().rev().filter(|t| t.zombie.is_none()) {
                stasis_kernel::ptrace::kill(t.pid.0, libc::SIGKILL)?;
            }
            for t in held.iter().rev().filter(|t| t.zombie.is_none()) {
                // KERNEL: a tracer can wait for a leader only when it has waited for all other threads (delay_group_leader())
                for th in t.threads.iter().rev() {
                    let _ = th.tracee.wait_gone();
                }
            }
            Ok(())
        }
    }
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

/// Device, inode number, open flags and path of a mapped file.
type MappedKey = (u64, u64, u32, Vec<u8>);

/// A dump under way.
pub struct Dumping<'a> {
    dir: &'a ImageDir,
    /// What kinds see.
    pub cx: DumpCx<'a>,
    files: OpenFiles,
    gadgets: GadgetCache,
    /// Pages images that are there already.
    room: BTreeMap<HostPid, (u32, std::fs::File)>,
    pstree: Vec<pb::PstreeEntry>,
    /// Per sort of object, its number and a task that has it, in the order of kcmp.
    objects: [Vec<(u32, HostPid)>; 4],
    /// Address spaces whose pages are still to be written.
    memory: Vec<(HostPid, String, Vec<mm::Run>)>,
    own_ns: Vec<(&'static str, u64)>,
    /// The tree's time namespace, which may be another than the engine's.
    time_ns: Option<u64>,
    mapped: BTreeMap<MappedKey, (u32, bool)>,
    seccomp: Vec<pb::SeccompFilter>,
}

impl<'a> Dumping<'a> {
    fn new(
        o: &'a Options,
        dir: &'a ImageDir,
        pids: &'a BTreeMap<HostPid, u32>,
        ready: Ready,
    ) -> Self {
        let mut cx = DumpCx::new(o, dir, pids);
        // these numbers are taken
        for _ in &ready.room {
            cx.new_pages_id();
        }
        Self {
            dir,
            cx,
            files: OpenFiles::default(),
            gadgets: ready.gadgets,
            room: ready.room,
            pstree: Vec::new(),
            objects: Default::default(),
            seccomp: Vec::new(),
            memory: Vec::new(),
            own_ns: Vec::new(),
            time_ns: None,
            mapped: BTreeMap::new(),
        }
    }
    /// A task's place in the tree; gives its own pid.
    fn entry(&mut self, t: &Task, st: &Status, threads: Vec<u32>) -> u32 {
        crate::kill_point();
        let pid = self.cx.pids[&t.pid];
        let own = |v: &[i32]| v.last().copied().unwrap_or(0) as u32;
        let parent = t.parent.and_then(|p| self.cx.pids.get(&p));
        self.pstree.push(pb::PstreeEntry {
            pid,
            ppid: parent.copied().unwrap_or(0),
            pgid: own(&st.ns_pgid),
            sid: own(&st.ns_sid),
            threads,
        });
        pid
    }
    /// Describes one live task: tree entry, core, mm, files.
    fn task(&mut self, t: &Task, f: &Facts) -> Result<()> {
        let st = &f.threads[0].0;
        let own = |st: &Status| st.ns_pid.last().copied().unwrap_or(0) as u32;
        let pid = self.entry(t, st, f.threads.iter().map(|(st, _)| own(st)).collect());
        let on = |e: Error| {
            e.on(format!(
                "task {} ({})",
                t.pid.0,
                String::from_utf8_lossy(&st.name)
            ))
            .at(Phase::Tree)
        };
        self.same_namespaces(&f.namespaces).map_err(on)?;
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
        let maps: Vec<MapsLine> = f.smaps.iter().map(|s| s.map.clone()).collect();
        if f.threads.iter().any(|(st, _)| st.seccomp != 0) {
            for th in &t.threads {
                th.tracee.set_options(
                    stasis_kernel::ptrace::TRACESYSGOOD | stasis_kernel::ptrace::SUSPEND_SECCOMP,
                )?;
            }
        }
        let ids = self.ids(t)?;
        self.dir.write_one(&Kind::Ids.file_of(pid), &ids)?;
        // pages are listed before the excursion, which touches dead stack
        let new_mm = self.objects[0].contains(&(ids.vm_id, t.pid));
        let memory = new_mm
            .then(|| mm::describe(self, t, &f.stat, st, &f.smaps))
            .transpose();
        let memory = memory.map_err(|e| e.at(Phase::Memory))?;
        let asked = process::ask(t, f, &maps, &mut self.gadgets).map_err(on)?;
        self.cores(t, f, &asked).map_err(on)?;
        if let Some((mut mm, runs)) = memory {
            mm.mm_brk = asked.brk;
            mm.dumpable = Some(asked.dumpable);
            self.dir.write_one(&Kind::Mm.file_of(pid), &mm)?;
            self.memory.push((t.pid, Kind::Pagemap.file_of(pid), runs));
        }
        self.fs(t, pid, st)?;
        self.descriptors(t, ids.files_id)
            .map_err(|e| e.at(Phase::Files))
    }
    fn zombie(&mut self, t: &Task, st: &Status, code: i32) -> Result<()> {
        let pid = self.entry(t, st, vec![self.cx.pids[&t.pid]]);
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
        Ok(self.dir.write_one(&Kind::Core.file_of(pid), &core)?)
    }
    fn cores(&mut self, t: &Task, f: &Facts, asked: &Asked) -> Result<()> {
        let all = t.threads.iter().zip(&asked.threads).zip(&f.threads);
        for (i, ((th, told), (st, slack))) in all.enumerate() {
            let mut core = thread::core(th, st, told, *slack)?;
            if i == 0 {
                core.tc = Some(process::core(t, f, asked)?);
            }
            self.seccomp(th, st, &mut core)?;
            let tid = st.ns_pid.last().copied().unwrap_or(th.tid.0) as u32;
            self.dir.write_one(&Kind::Core.file_of(tid), &core)?;
        }
        Ok(())
    }
    fn seccomp(&mut self, th: &task::Thread, st: &Status, core: &mut pb::CoreEntry) -> Result<()> {
        if st.seccomp != 2 {
            return Ok(());
        }
        // the image wants the oldest first, each naming its predecessor
        // KERNEL: get_nth_filter() (kernel/seccomp.c) numbers from the oldest, whatever ptrace(2) says
        let mut filters = Vec::new();
        while let Some(f) = th.tracee.seccomp_filter(filters.len())? {
            filters.push(f);
        }
        let mut prev = None;
        for (filter, flags) in filters {
            prev = Some(self.filter(filter, flags as u32, prev));
        }
        if let Some(tc) = &mut core.thread_core {
            tc.seccomp_filter = prev;
        }
        Ok(())
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
    fn ids(&mut self, t: &Task) -> Result<pb::TaskKobjIdsEntry> {
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
        Ok(pb::TaskKobjIdsEntry {
            vm_id: id(0, Kcmp::Vm)?,
            files_id: id(1, Kcmp::Files)?,
            fs_id: id(2, Kcmp::Fs)?,
            sighand_id: id(3, Kcmp::Sighand)?,
            time_ns_id: Some(self.time_ns_id()),
            ..root_ids()
        })
    }
    /// The image's number of the tree's time namespace: the engine's, or one of its own.
    fn time_ns_id(&self) -> u32 {
        let engines = self.own_ns.iter().find(|(n, _)| *n == "time");
        match (engines, self.time_ns) {
            (Some((_, engines)), Some(tree)) if *engines != tree => 9,
            _ => root_ids().time_ns_id(),
        }
    }
    fn same_namespaces(&mut self, theirs: &[(&'static str, u64)]) -> Result<()> {
        if self.own_ns.is_empty() {
            self.own_ns = ProcDir::open(HostPid::own())?.ns_links()?;
        }
        for (name, ino) in theirs {
            // a tree that CRIU restored has a time namespace of its own, in which all of it lives; the root is looked at first
            let time = name
                .starts_with("time")
                .then(|| *self.time_ns.get_or_insert(*ino));
            let of = self.own_ns.iter().find(|(n, _)| n == name);
            if let Some(must) = time.or(of.map(|o| o.1))
                && must != *ino
            {
                let whose = if time.is_some() { "root" } else { "engine" };
                return Err(Error::new(
                    "E4011",
                    Blame::Container,
                    format!("its {name} namespace is another than the {whose}'s"),
                )
                .why("containers with namespaces of their own are not supported by this version")
                .advice(format!(
                    "run stasis inside the namespace (nsenter --{name})"
                )));
            }
        }
        Ok(())
    }
    fn fs(&mut self, t: &Task, pid: u32, st: &Status) -> Result<()> {
        let cwd_id = self.place(t, "cwd")?;
        let root_id = self.place(t, "root")?;
        Ok(self.dir.write_one(
            &Kind::Fs.file_of(pid),
            &pb::FsEntry {
                cwd_id,
                root_id,
                umask: st.umask,
            },
        )?)
    }
    /// Pages, shared images and the inventory.
    fn finish(&mut self, held: &[Task], report: &mut DumpReport) -> Result<pb::InventoryEntry> {
        self.late_files().map_err(|e| e.at(Phase::Files))?;
        self.shared_contents().map_err(|e| e.at(Phase::Memory))?;
        crate::kill_point();
        let begun = Instant::now();
        let memory = std::mem::take(&mut self.memory);
        for (pid, image, runs) in &memory {
            let (pages_id, file) = match self.room.remove(pid) {
                Some(r) => r,
                None => {
                    let id = self.cx.new_pages_id();
                    (id, self.dir.create_raw(&Kind::Pages.file_of(id))?)
                }
            };
            let n = memory::write(self.dir, *pid, image, (pages_id, file), runs)
                .map_err(|e| e.on(format!("memory of task {}", pid.0)).at(Phase::Memory))?;
            report.pages_written += n;
            report.pages_scanned += n;
            crate::kill_point();
        }
        report.memdump_us = micros(begun);
        report.memwrite_us = report.memdump_us;
        self.dir.write_all(&Kind::Pstree.file(), &self.pstree)?;
        crate::kinds::finish(&mut self.cx)?;
        self.dir.write_one(
            &Kind::Seccomp.file(),
            &pb::SeccompEntry {
                seccomp_filters: std::mem::take(&mut self.seccomp),
            },
        )?;
        self.dir.write_all(&Kind::Files.file(), &self.cx.entries)?;
        let (of, root) = (self.time_ns_id(), held[0].pid);
        let clocks = crate::clocks::seen_by(root)?;
        let id = if of == root_ids().time_ns_id() { 0 } else { of };
        self.dir.write_one(&Kind::Timens.file_of(id), &clocks)?;
        self.cx.finish_writers()?;
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
                ..root_ids()
            }),
            ns_per_id: Some(true),
            root_cg_set: Some(1),
            lsmtype: Some(pb::Lsmtype::NoLsm as i32),
            network_lock_method: Some(3),
            ..Default::default()
        })
    }
}

/// Namespaces are the engine's own.
fn root_ids() -> pb::TaskKobjIdsEntry {
    pb::TaskKobjIdsEntry {
        pid_ns_id: Some(1),
        net_ns_id: Some(2),
        ipc_ns_id: Some(3),
        uts_ns_id: Some(4),
        time_ns_id: Some(5),
        mnt_ns_id: Some(6),
        user_ns_id: Some(7),
        cgroup_ns_id: Some(8),
        ..Default::default()
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
