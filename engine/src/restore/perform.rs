//! The only module of a restore that acts: it performs a plan.
//!
//! Until the first detach nothing of the tree runs its own code. Every task dies with the engine: the first stub by
//! PR_SET_PDEATHSIG and PTRACE_O_EXITKILL, its descendants by PR_SET_PDEATHSIG from birth and by EXITKILL once seized.
//!
//! Long because nothing else may act: all phases from Open to Run are here, in order.
#[path = "inside.rs"]
pub(super) mod inside;

use super::family::{self, Deed};
use super::habits::{self, Outside};
use super::images::{Images, TaskImages};
use super::inner::Worker;
use super::numbers::Numbers;
use super::pager::{Daemon, Pager, no_uffd};
use super::plan::{Plan, REEL_OFFSET, REEL_ROOM, TaskPlan, children, thread_birth};
use super::spaces::Name;
use super::{fill, grounds, heirs, inner, memory, vdso};
use crate::dump::seize;
use crate::error::{Blame, Error, Result};
use crate::events::Moment;
use crate::kinds::{Act, HostAct, Stage, Stagehand};
use crate::options::{After, Options};
use crate::phase::Phase;
use crate::report::RestoreReport;
use crate::workers;
use nix::errno::Errno;
use stasis_cgroups::Groups;
use stasis_kernel::call::{Arg, Call, FdRef, answer};
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::ids::{HostPid, RemoteFd};
use stasis_kernel::inner::Way;
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::{MapName, ProcDir, Status};
use stasis_kernel::ptrace::{EXITKILL, SUSPEND_SECCOMP, TRACESYSGOOD, Tracee};
use stasis_kernel::reel::{PlayError, Played, Reel, STUB_SOCKET, spawn_stub};
use stasis_kernel::sched;
use stasis_netlock::Lock;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;
use tracing::{debug, info, warn};

/// A restore under way. Dropping it before [`Performance::run`] has finished kills everything it made.
pub struct Performance<'a> {
    o: &'a Options,
    dir: &'a ImageDir,
    images: &'a Images,
    plan: &'a Plan,
    reel: Reel,
    /// The engine's end of each descriptor table's own socket, by the task that owns the table.
    channels: Vec<Option<OwnedFd>>,
    host: Host,
    /// The first stub; killed when all tasks are born.
    stub: Option<HostPid>,
    /// Seized tasks, by index in the plan; zombies have none.
    leaders: Vec<Option<Tracee>>,
    /// The engine's numbers of all tasks seized so far.
    seized: Vec<i32>,
    /// The engine's numbers of tasks and helpers that are born and not seized yet.
    newborn: Vec<i32>,
    /// The root, from its birth on, by the engine's number.
    root: Option<HostPid>,
    /// The engine's numbers of tasks and threads.
    pids: Numbers,
    /// The worker in each home; none in the first one if that is the engine's.
    workers: Vec<Option<Worker>>,
    /// Control groups: those that were made go when this is dropped, after the tasks in them.
    groups: Option<Groups<'a>>,
    /// Tasks seized while they have no parent to die with, that will be zombies.
    fosterlings: Vec<Tracee>,
    /// Numbers of all tasks and helpers of the family.
    numbers: Vec<Name>,
    /// Threads but for the leaders, in the order of the plan, once they are seized.
    threads: Vec<Tracee>,
    /// All threads once they are seized for the last act: index in the plan, number within the task.
    going: Vec<(usize, usize, Tracee)>,
    /// Where the vDSO and its data are parked.
    parked: Vec<vdso::Special>,
    committed: bool,
    /// What will not be as it was, found on the way.
    warnings: Vec<String>,
    /// Holds packets of its connections.
    lock: Option<Lock>,
    /// Holds packets of its connections where they cross the engine's network namespace.
    crossing: Option<Lock>,
    /// Whether the kernel makes huge pages where nobody asked for them.
    huge: bool,
    /// Who brings memory later, if it is not us.
    daemon: Option<Daemon>,
}

impl Drop for Performance<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        self.workers.clear();
        let mut pids: Vec<i32> = self.stub.iter().map(|s| s.0).collect();
        pids.extend(self.root.map(|r| r.0));
        pids.extend(&self.seized);
        pids.extend(self.fosterlings.iter().map(|t| t.tid));
        if self.stub.is_some() && !self.pids.are_foreign() && !self.o.sibling {
            // not all tasks are seized yet: those that are born die with their parents
            pids.extend(self.born());
        }
        pids.sort_unstable();
        pids.dedup();
        for p in &pids {
            let _ = stasis_kernel::ptrace::kill(*p, libc::SIGKILL);
        }
        let threads = self.going.iter().filter(|g| g.1 > 0).map(|g| &g.2);
        let threads = threads.chain(&self.threads).map(|th| th.tid);
        stasis_kernel::ptrace::wait_all_gone(threads.chain(pids.iter().copied()));
    }
}

impl<'a> Performance<'a> {
    /// Opens files and makes the first stub.
    pub fn begin(
        o: &'a Options,
        dir: &'a ImageDir,
        images: &'a Images,
        plan: &'a Plan,
    ) -> Result<Self> {
        let (_, theirs) = fds::seqpacket_pair()?;
        let reel = Reel::create(
            plan.hole + REEL_OFFSET,
            plan.slots,
            (REEL_ROOM / 2) as usize,
        )?;
        let mut p = Self {
            o,
            dir,
            images,
            plan,
            reel,
            channels: (0..plan.tasks.len()).map(|_| None).collect(),
            host: Host::default(),
            stub: None,
            leaders: (0..plan.tasks.len()).map(|_| None).collect(),
            seized: Vec::new(),
            newborn: Vec::new(),
            root: None,
            pids: Numbers::new(plan.grounds.has(Ns::Pid)),
            workers: Vec::new(),
            groups: None,
            fosterlings: Vec::new(),
            numbers: Vec::new(),
            threads: Vec::new(),
            going: Vec::new(),
            parked: Vec::new(),
            committed: false,
            warnings: Vec::new(),
            lock: hold(o, dir, images, plan)?,
            crossing: crate::network::crossing(o, dir)?,
            huge: std::fs::read("/sys/kernel/mm/transparent_hugepage/enabled")
                .is_ok_and(|t| t.starts_with(b"[always]")),
            daemon: None,
        };
        if plan.grounds.are_simple() {
            p.host = given(plan)?;
            p.open(&[Stage::First, Stage::Second])?;
        }
        // one with a number that the tree needs is in its way; it goes when a better one is found
        let needed = p.needed();
        let mut others = Vec::new();
        let pid = loop {
            let pid = spawn_stub(&p.reel, plan.hole, &theirs, o.sibling)
                .map_err(|e| Error::from(e).at(Phase::Birth))?;
            if o.sibling {
                // it would not die with the engine, whose child it is not
                p.fosterlings.push(Tracee::seize(pid, EXITKILL)?);
            }
            if p.pids.are_foreign()
                || !needed.contains(&(pid as u32))
                || others.len() > needed.len()
            {
                break pid;
            }
            others.push(pid);
        };
        p.stub = Some(HostPid(pid));
        p.numbers = p.numbers();
        for pid in others {
            stasis_kernel::ptrace::kill(pid, libc::SIGKILL)?;
            Tracee { tid: pid }.wait_gone()?;
            p.fosterlings.retain(|t| t.tid != pid);
        }
        Ok(p)
    }
    fn open(&mut self, stages: &[Stage]) -> Result<()> {
        let plan = self.plan;
        for stage in stages {
            for (n, run) in plan.runs(*stage).into_iter().enumerate() {
                let home = run.first().map_or(0, |a| a.home);
                match self.workers.get_mut(home) {
                    Some(Some(w)) => {
                        let task = inner::Task::Open(*stage, n as u32);
                        w.ask(task, &mut self.host, plan.shares())?;
                    }
                    _ => self.act(&run)?,
                }
            }
            if *stage == Stage::First {
                self.all_workers(inner::Task::Late)?;
            }
        }
        Ok(())
    }
    /// Has all workers do something; gives their warnings.
    fn all_workers(&mut self, task: inner::Task) -> Result<Vec<String>> {
        self.each_worker(task, false)
    }
    /// The same; with `share` each knows what was opened before.
    fn each_worker(&mut self, task: inner::Task, share: bool) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for w in self.workers.iter_mut().flatten() {
            warnings.extend(w.ask(task, &mut self.host, share)?);
        }
        Ok(warnings)
    }
    /// The engine itself does these.
    fn act(&mut self, run: &[&HostAct]) -> Result<()> {
        act(&mut self.host, self.dir, run.iter().copied())
    }
    /// Plays one tape in each slot named.
    fn play(&mut self, tapes: &[(usize, &[Call])], phase: Phase) -> Result<Vec<Played>> {
        let tapes: Vec<_> = tapes.iter().filter(|t| !t.1.is_empty()).copied().collect();
        let pids: Vec<i32> = self
            .stub
            .iter()
            .map(|s| s.0)
            .chain(self.leaders.iter().flatten().map(|t| t.tid))
            .chain(self.newborn.iter().copied())
            .collect();
        let mut alive = || {
            pids.iter()
                .find(|p| {
                    ProcDir::open(HostPid(**p))
                        .map(|d| d.stat().map_or(true, |s| s.state.is_exited()))
                        .unwrap_or(true)
                })
                .map(|p| format!("task {p} died"))
        };
        let r = self.reel.play(&tapes, &mut alive);
        crate::kill_point();
        r.map_err(|e| {
            let slot = match &e {
                PlayError::Row { slot, .. } | PlayError::Lost { slot, .. } => *slot,
                PlayError::Full(_) => 0,
            };
            played(&e, &self.owner(slot)).at(phase)
        })
    }
    /// "task 42", "thread 43 of task 42" or "the first stub".
    fn owner(&self, slot: usize) -> String {
        for (t, images) in self.plan.tasks.iter().zip(&self.images.tasks) {
            if t.slot == slot {
                return format!("task {}", t.pid);
            }
            let th = slot.checked_sub(t.slot).and_then(|k| images.threads.get(k));
            if let Some(th) = th {
                return format!("thread {} of task {}", th.tid, t.pid);
            }
        }
        if self.plan.helper_slots.contains(&slot) {
            return "a helper".into();
        }
        "the first stub".into()
    }
    /// All numbers of the tree: of tasks, threads, sessions, groups.
    fn needed(&self) -> BTreeSet<u32> {
        let tasks = self.images.tasks.iter().map(|t| &t.entry);
        tasks
            .flat_map(|e| {
                [e.pid, e.sid, e.pgid]
                    .into_iter()
                    .chain(e.threads.iter().copied())
            })
            .chain(self.plan.spaces.numbers())
            .collect()
    }
    /// Numbers of the whole family. Helpers that may have any get numbers below the first stub's: those were given out
    /// not long ago, so the kernel will not come to them soon.
    fn numbers(&self) -> Vec<Name> {
        let mut used = self.needed();
        let stub = self.stub.map_or(1, |s| s.0 as u32);
        let foreign = self.pids.are_foreign();
        used.extend(self.plan.grounds.workers.iter().map(|w| *w as u32));
        let mut at: Box<dyn Iterator<Item = u32>> = match foreign {
            true => Box::new(2..),
            false => Box::new((300..stub).rev().chain(stub + 100..)),
        };
        self.plan.numbers(|| {
            let free = |n: &u32| {
                !used.contains(n) && (foreign || ProcDir::open(HostPid(*n as i32)).is_err())
            };
            let n = at.find(free).unwrap_or(u32::MAX);
            used.insert(n);
            n
        })
    }
    /// Gives the stub an address space that holds the reel and the parked vDSO, and a table that holds the socket.
    fn tidy_stub(&mut self) -> Result<()> {
        let service = self.plan.service_fd;
        let stub = self.stub.ok_or_else(|| Error::bug("no stub"))?;
        let mut rows = vec![
            Call::new(
                libc::SYS_fcntl,
                vec![
                    Arg::Int(STUB_SOCKET as u64),
                    Arg::Named(0, "F_DUPFD".into()),
                    Arg::Int(service as u64),
                ],
            )
            .must_be(service as u64),
            Call::new(
                libc::SYS_close_range,
                vec![Arg::Int(0), Arg::Int(service as u64 - 1), Arg::Int(0)],
            ),
        ];
        // nothing is ignored: zombies would vanish, and helpers not be waited for. Tasks inherit it, and set only the others
        let signals = (1..=64).filter(|s| !matches!(*s, libc::SIGKILL | libc::SIGSTOP));
        rows.extend(signals.map(|s| {
            let sig = Arg::Named(s as u64, stasis_kernel::names::signal(s));
            let default = Arg::In(vec![0; 32]);
            Call::new(
                libc::SYS_rt_sigaction,
                vec![sig, default, Arg::Null, Arg::Int(8)],
            )
        }));
        self.play(&[(0, &rows)], Phase::Birth)?;
        let mut at = self.plan.hole + (1 << 20);
        let mut rows = Vec::new();
        for m in ProcDir::open(stub)?.maps()? {
            let len = m.len();
            if m.start >= self.reel.addr() && m.end <= self.reel.addr() + self.reel.len() as u64
                || m.name() == MapName::Vsyscall
            {
                continue;
            }
            let kind = match m.name() {
                MapName::Vdso => crate::dump::mm::status::VDSO,
                MapName::Vvar | MapName::VvarVclock => crate::dump::mm::status::VVAR,
                _ => {
                    rows.push(Call::new(
                        libc::SYS_munmap,
                        vec![Arg::Hex(m.start), Arg::Hex(len)],
                    ));
                    continue;
                }
            };
            rows.push(vdso::move_to(m.start, len, at));
            self.parked.push((kind, at, len));
            at += len;
        }
        self.play(&[(0, &rows)], Phase::Birth).map(|_| ())
    }
    /// All tasks are born and filled, wave by wave: heirs when the memory they inherit is in place.
    fn waves(&mut self, report: &mut RestoreReport) -> Result<()> {
        let begun = Instant::now();
        let last = self.plan.tasks.iter().map(|t| t.wave).max().unwrap_or(0);
        for wave in 0..=last {
            self.births(wave).map_err(|e| e.at(Phase::Birth))?;
            if wave == 0 {
                self.inner_mounts().map_err(|e| e.at(Phase::Open))?;
            }
            if wave == 0 {
                report.forking_us = begun.elapsed().as_micros() as u64;
            }
            self.fill(wave, report)?;
        }
        debug!("all tasks are born, in {} waves", last + 1);
        for stage in &self.plan.family.rest {
            self.family(stage).map_err(|e| e.at(Phase::Birth))?;
        }
        Ok(())
    }
    /// Plays one stage of births, sessions, adoptions or groups.
    fn family(&mut self, stage: &[family::Tape]) -> Result<()> {
        let plan = self.plan;
        let mut tapes = Vec::with_capacity(stage.len());
        let mut born = Vec::new();
        let mut bound = false;
        for (by, deeds) in stage {
            for d in deeds {
                match d {
                    Deed::Birth { child, parent, .. } => {
                        let (child, slot) = (&self.numbers[*child], plan.slot_of(*child));
                        let parent = &self.numbers[*parent];
                        let seen = plan.spaces.seen(child.space, parent);
                        self.reel.expect_parent(slot, Some(seen as i32));
                        born.push((child.key(), parent.key()));
                    }
                    // a live task is seized already: it does not outlive the engine while it has no parent to die with
                    Deed::Unbind if plan.tasks[*by].end.is_some() => {
                        let pid = self.pids.known(plan.tasks[*by].pid)?;
                        self.fosterlings.push(seize(pid)?);
                    }
                    Deed::Exit => {
                        let pid = self.pids.known(self.numbers[*by].key())?;
                        self.newborn.retain(|p| *p != pid.0);
                    }
                    Deed::Bind(_) => bound = true,
                    _ => {}
                }
            }
            let rows = plan.deeds(*by, deeds, &self.numbers);
            tapes.push((plan.slot_of(*by), rows));
        }
        let mut all = stage.iter().flat_map(|t| &t.1);
        if all.any(|d| plan.is_alone(d)) {
            for (by, deeds) in stage {
                self.alone(*by, deeds)?;
            }
        } else {
            let tapes: Vec<_> = tapes.iter().map(|(s, t)| (*s, &t[..])).collect();
            self.play(&tapes, Phase::Birth).map_err(taken)?;
        }
        self.pids.find_children(&born)?;
        for (own, _) in &born {
            self.newborn.push(self.pids.known(*own)?.0);
        }
        if bound {
            // their ends are their parents' to see
            for t in std::mem::take(&mut self.fosterlings) {
                t.interrupt()?;
                t.wait_stop()?;
                t.detach(0)?;
            }
        }
        Ok(())
    }
    /// The tasks of one wave are born, with their sessions; then seized.
    fn births(&mut self, wave: usize) -> Result<()> {
        let tasks = &self.plan.tasks;
        for stage in self.plan.births(wave) {
            self.family(&stage)?;
        }
        for (i, t) in tasks.iter().enumerate() {
            if t.end.is_none() && t.wave == wave && self.leaders[i].is_none() {
                let pid = self.pids.known(t.pid)?;
                self.leaders[i] = Some(seize(pid)?);
                self.seized.push(pid.0);
            }
        }
        self.newborn.clear();
        let new: Vec<usize> = (0..tasks.len())
            .filter(|i| tasks[*i].wave == wave && tasks[*i].end.is_none())
            .collect();
        self.connect(&new)?;
        self.go_to_homes(&new)?;
        if let Some(stub) = self.stub.take() {
            stasis_kernel::ptrace::kill(stub.0, libc::SIGKILL)?;
            Tracee { tid: stub.0 }.wait_gone()?;
            self.fosterlings.retain(|t| t.tid != stub.0);
        }
        Ok(())
    }
    /// The stub goes where the tree will live; the root is born there, and what is in its namespaces is made.
    fn found(&mut self) -> Result<()> {
        let (g, o) = (&self.plan.grounds, self.o);
        let stub = self.stub.ok_or_else(|| Error::bug("no stub"))?;
        self.play(&[(0, &g.joining())], Phase::Birth)?;
        if let Some(users) = g.users() {
            self.play(&[(0, &[users])], Phase::Birth)?;
            let id = g.made(Ns::User).unwrap_or(0);
            crate::namespaces::map_users(o, self.dir, id, stub)?;
            self.play(&[(0, &grounds::become_root())], Phase::Birth)?;
        }
        self.user_namespaces(stub)?;
        let groups = crate::cgroups::make(&o.cgroups, &self.plan.cgroups)?;
        let home = self.home(0, 0);
        if g.makes(Ns::Cgroup) {
            groups.place_ns_root(stub, home)?;
        }
        if let Some(making) = g.making() {
            self.play(&[(0, &[making])], Phase::Birth)?;
        }
        self.cgroup_namespaces(&groups, stub)?;
        let groups = self.groups.insert(groups);
        groups.place(stub, home)?;
        groups.set_properties()?;
        let clocks = self.plan.clocks.as_ref();
        if let Some(then) = clocks.filter(|_| !g.has(Ns::Time)) {
            let rows = crate::clocks::rows(then)?;
            self.play(&[(0, &rows)], Phase::Birth)?;
        }
        self.bear_root()?;
        let root = self.pids.known(self.plan.tasks[0].pid)?;
        o.events.tell(Moment::SetupNamespaces(root.0))?;
        if !g.are_simple() {
            self.settle(root)?;
        }
        o.events.tell(Moment::PostSetupNamespaces(root.0))?;
        if !g.are_simple() {
            self.open(&[Stage::First, Stage::Second])
                .map_err(|e| e.at(Phase::Open))?;
        }
        Ok(())
    }
    /// Cgroup namespaces that only tasks below the root have: each is made by a process that is in the group which is its root.
    /// That must be before controllers are enabled for groups below, and before anybody has a worker.
    fn cgroup_namespaces(
        &mut self,
        groups: &stasis_cgroups::Groups<'_>,
        stub: HostPid,
    ) -> Result<()> {
        let g = &self.plan.grounds;
        for home in &g.homes.all {
            let Some(id) = home
                .ids
                .get(&Ns::Cgroup)
                .filter(|_| home.makes.contains(&Ns::Cgroup))
            else {
                continue;
            };
            let who = g.homes.who_is_in(Ns::Cgroup, *id);
            let task = self
                .images
                .tasks
                .iter()
                .position(|t| Some(t.entry.pid) == who);
            let way = self.way_to_users(stub, g.users.owner(Ns::Cgroup, *id))?;
            let maker = stasis_kernel::inner::start(&way, |channel| {
                let mut go = [0; 1];
                let told = nix::unistd::read(&channel, &mut go);
                let made = told.and_then(|_| nix::sched::unshare(Ns::Cgroup.flag()));
                let errno = made.map_or_else(|e| e as i32, |()| 0);
                let _ = nix::unistd::write(&channel, &errno.to_le_bytes());
                // until the engine has its handle
                let _ = nix::unistd::read(&channel, &mut go);
                0
            })?;
            let there = HostPid(maker.worker);
            groups.place_ns_root(there, self.home(task.unwrap_or(0), 0))?;
            let failed = |e| SysError::new("unshare", e, "CLONE_NEWCGROUP");
            let mut errno = [0; 4];
            nix::unistd::write(&maker.channel, b"+").map_err(failed)?;
            nix::unistd::read(&maker.channel, &mut errno).map_err(failed)?;
            match i32::from_le_bytes(errno) {
                0 => self
                    .host
                    .insert(handle_name(Ns::Cgroup, *id), Ns::Cgroup.of(there)?),
                e => return Err(failed(nix::errno::Errno::from_raw(e)).into()),
            }
        }
        Ok(())
    }
    /// Each home gets a worker, which makes what is in its namespaces.
    fn settle(&mut self, root: HostPid) -> Result<()> {
        let (plan, o, g) = (self.plan, self.o, &self.plan.grounds);
        // the root of a user namespace may not be let into the caller's folder
        let held = g.has(Ns::User).then(|| self.dir.held(not_of_tasks));
        let held = held.transpose()?;
        let mut host = given(plan)?;
        if g.has(Ns::User) {
            for a in &plan.host {
                match &a.act {
                    // KERNEL: only the first user namespace's root opens /proc/PID/map_files, which this is made through
                    Act::SharedMemory { file, size } => {
                        host.insert(*file, stasis_kernel::vm::shared_memory(*size)?);
                    }
                    // KERNEL: and only that one may use bpf(2)
                    Act::BpfMap(m) => m.perform(&mut host, self.dir)?,
                    _ => {}
                }
            }
        }
        if let Some(m) = &plan.mounts {
            crate::namespaces::mnt::fetch(self.dir, m, &mut host)?;
        }
        // handles of cgroup namespaces
        let mut before = std::mem::replace(&mut self.host, host);
        for f in before.names().collect::<Vec<_>>() {
            if let Some(fd) = before.take(f) {
                self.host.insert(f, fd);
            }
        }
        for home in 0..g.homes.all.len() {
            if home == 0 && g.are_ours() {
                self.workers.push(None);
                continue;
            }
            self.belongings(home, root)?;
            let (which, join, make) = g.way_to(home);
            let way = Way {
                task: root,
                which: &which,
                join: self.handles(join)?,
                make: &make,
                clocks: self.nested_clocks(home, &make)?,
                number: g.workers.get(home).copied(),
            };
            let work = inner::Work {
                o,
                dir: held.as_ref().unwrap_or(self.dir),
                plan,
                host: self.host.copy()?,
                home,
            };
            let inner = stasis_kernel::inner::start(&way, |channel| inner::serve(work, channel))?;
            let there = HostPid(inner.worker);
            let worker = Worker::new(inner, &self.host);
            for ns in make {
                let id = g.homes.all[home].ids[&ns];
                self.host.insert(handle_name(ns, id), ns.of(there)?);
            }
            self.workers.push(Some(worker));
        }
        for (ns, id) in &g.homes.all[0].ids {
            self.host.insert(handle_name(*ns, *id), ns.of(root)?);
        }
        let share = !g.homes.are_one();
        if g.homes.several_networks() {
            self.each_worker(inner::Task::Devices, share)?;
        }
        let told = self.each_worker(inner::Task::Contents, share)?;
        self.warnings.extend(told);
        match plan.mounts.as_ref().is_some_and(|m| !m.procs.is_empty()) {
            // not everything is mounted yet
            true => Ok(()),
            false => self.share_mounts(),
        }
    }
    /// What is written of the clocks that are made for a home.
    fn nested_clocks(&self, home: usize, make: &[Ns]) -> Result<Option<Vec<u8>>> {
        let id = self.plan.grounds.homes.all[home].ids.get(&Ns::Time);
        let id = id.filter(|_| make.contains(&Ns::Time));
        id.map(|id| crate::clocks::text(&self.plan.nested_clocks[id]))
            .transpose()
    }
    /// Mounts of several namespaces share with each other when all are built; one alone may have done it by then.
    fn share_mounts(&mut self) -> Result<()> {
        let plan = self.plan;
        let Some(m) = plan.mounts.as_ref().filter(|m| !m.shares_at_once()) else {
            return Ok(());
        };
        for (run, (space, _)) in m.sharing.iter().enumerate() {
            let maker = plan.grounds.homes.maker_of_mounts(*space);
            if let Some(Some(w)) = maker.and_then(|home| self.workers.get_mut(home)) {
                let told = w.ask(inner::Task::Share(run as u32), &mut self.host, true)?;
                self.warnings.extend(told);
            }
        }
        Ok(())
    }
    /// Proc file systems of pid namespaces below the root's are made inside of those, which are there now, and mounted with what belongs
    /// in them.
    fn inner_mounts(&mut self) -> Result<()> {
        let plan = self.plan;
        let procs = plan.mounts.as_ref().map_or(&[][..], |m| &m.procs);
        if procs.is_empty() {
            return Ok(());
        }
        let root = self.pids.known(plan.tasks[0].pid)?;
        for (p, n) in procs.iter().zip(0..) {
            let homes = &plan.grounds.homes;
            let home = homes.with_mounts(0, p.space);
            let which: Vec<Ns> = plan.grounds.for_worker();
            let mut join = self.handles(homes.way(0, home))?;
            let first = plan.spaces.first_of_id(p.pid_ns);
            let first = self.pids.known(first.unwrap_or(0))?;
            join.push((Ns::Pid, Ns::Pid.of(first)?));
            let way = Way {
                join,
                ..Way::to(root, &which)
            };
            let work = inner::Work {
                o: self.o,
                dir: self.dir,
                plan,
                host: self.host.copy()?,
                home,
            };
            let inner = stasis_kernel::inner::start(&way, |channel| inner::serve(work, channel))?;
            let mut worker = Worker::new(inner, &self.host);
            worker.ask(inner::Task::Proc(n), &mut self.host, false)?;
            // its number is its own no longer than that: others in the namespace may need it
            worker.inner.end();
        }
        let told = self.each_worker(inner::Task::Inner, true)?;
        self.warnings.extend(told);
        self.share_mounts()
    }
    fn handles(&self, of: Vec<(Ns, u32)>) -> Result<Vec<(Ns, OwnedFd)>> {
        let handle = |(ns, id)| Ok((ns, self.handle(ns, id)?));
        of.into_iter().map(handle).collect()
    }
    /// A handle of a namespace that a worker has made.
    fn handle(&self, ns: Ns, id: u32) -> Result<OwnedFd> {
        match self.host.fd(handle_name(ns, id)) {
            Some(fd) => Ok(fds::dup(fd.as_fd())?),
            None => Err(Error::bug(format!(
                "nobody has made {} namespace {id}",
                ns.name()
            ))),
        }
    }
    /// Tasks that were just born go to their homes.
    fn go_to_homes(&mut self, new: &[usize]) -> Result<()> {
        let plan = self.plan;
        let homes = &plan.grounds.homes;
        if homes.are_one() {
            return Ok(());
        }
        let parents = |i: usize| {
            let parent = self.images.tasks[i].entry.ppid;
            plan.tasks.iter().position(|t| t.pid == parent).unwrap_or(0)
        };
        let born_in = plan.born_in(parents);
        let way = |i: usize| homes.way(born_in[i], homes.of_task(plan.tasks[i].pid));
        let going: Vec<usize> = new
            .iter()
            .copied()
            .filter(|i| !way(*i).is_empty())
            .collect();
        self.deliver(&going, Phase::Birth, |_, i| {
            let way = way(i);
            let mut rows = memory::receive(plan.service_fd, way.len());
            for (n, (ns, _)) in way.iter().enumerate() {
                rows.push(grounds::entering(Arg::Int(n as u64), *ns));
                rows.push(Call::new(libc::SYS_close, vec![Arg::Int(n as u64)]));
            }
            let handles = way.iter().map(|(ns, id)| handle_name(*ns, *id));
            (vec![handles.collect()], Box::new(rows.into_iter()))
        })
    }
    /// The set of control groups of a thread: numbers of its task and in the task.
    fn home(&self, task: usize, thread: usize) -> u32 {
        let th = self.images.tasks[task].threads.get(thread);
        th.map_or(0, |th| th.cg_set)
    }
    /// Moves those to their control groups who are not where they were born.
    fn go_home(&self) -> Result<()> {
        let Some(groups) = &self.groups else {
            return Ok(());
        };
        let born = self.home(0, 0);
        for (i, k, th) in &self.going {
            let (at, leaders) = (self.home(*i, *k), self.home(*i, 0));
            if *k == 0 && at != born {
                groups.place(HostPid(th.tid), at)?;
            }
            if *k > 0 && at != leaders {
                groups.place_thread(HostPid(th.tid), at)?;
            }
        }
        groups.freeze()?;
        Ok(())
    }
    /// The birth of the first task; it is seized at once.
    fn bear_root(&mut self) -> Result<()> {
        let t = &self.plan.tasks[0];
        // in a pid namespace of its own it sees no parent; a sibling's parent is not the engine
        let parent = match (self.o.sibling, self.pids.are_foreign()) {
            (true, _) => None,
            (false, true) => Some(0),
            (false, false) => Some(std::process::id() as i32),
        };
        self.reel.expect_parent(t.slot, parent);
        let birth = [self.plan.birth.clone()];
        let played = self.play(&[(0, &birth)], Phase::Birth).map_err(taken)?;
        let pid = HostPid(played[0].rets[0] as i32);
        self.root = Some(pid);
        self.pids.learn_root(t.pid, pid)?;
        self.leaders[0] = Some(seize(pid)?);
        self.seized.push(pid.0);
        Ok(())
    }
    /// Children of ours that were born but not seized.
    fn born(&self) -> Vec<i32> {
        ProcDir::open(HostPid::own())
            .map(|d| d.children().unwrap_or_default())
            .unwrap_or_default()
            .into_iter()
            .map(|p| p.0)
            .filter(|p| self.plan.tasks.iter().any(|t| t.pid as i32 == *p))
            .collect()
    }
    /// Rows by which a task has a socket to the engine, whose end is number 1.
    fn pair(&self) -> [Call; 3] {
        let service = self.plan.service_fd as u64;
        [
            Call::new(
                libc::SYS_socketpair,
                vec![
                    Arg::Named(libc::AF_UNIX as u64, "AF_UNIX".into()),
                    Arg::Named(libc::SOCK_SEQPACKET as u64, "SOCK_SEQPACKET".into()),
                    Arg::Int(0),
                    Arg::Out(8),
                ],
            )
            .must_be(0),
            Call::new(
                libc::SYS_dup3,
                vec![Arg::Int(0), Arg::Int(service), Arg::Int(0)],
            ),
            Call::new(libc::SYS_close, vec![Arg::Int(0)]),
        ]
    }
    /// Gives every descriptor table among these tasks a socket to the engine of its own, so that all can be served at once.
    ///
    /// A stub's table holds nothing but the service socket it was born with: the pair it makes gets the numbers 0 and 1, and the
    /// engine fetches one end.
    fn connect(&mut self, tasks: &[usize]) -> Result<()> {
        let owners: Vec<usize> = tasks
            .iter()
            .copied()
            .filter(|i| self.plan.tasks[*i].table.is_some())
            .collect();
        let make = self.pair();
        let plan = self.plan;
        let all: Vec<_> = owners
            .iter()
            .map(|i| (plan.tasks[*i].slot, &make[..]))
            .collect();
        self.play(&all, Phase::Birth)?;
        for i in owners {
            let pidfd = fds::pidfd_open(self.pids.known(self.plan.tasks[i].pid)?, 0)?;
            self.channels[i] = Some(fds::pidfd_getfd(pidfd.as_fd(), RemoteFd(1))?);
        }
        // those that are at home and have an address space of their own close it when they fill that
        let close = [Call::new(libc::SYS_close, vec![Arg::Int(1)])];
        let rest = tasks.iter().map(|i| &plan.tasks[*i]);
        let rest =
            rest.filter(|t| t.table.is_some() && !(t.memory.is_some() && self.close_when_filled()));
        let rest: Vec<_> = rest.map(|t| (t.slot, &close[..])).collect();
        self.play(&rest, Phase::Birth).map(|_| ())
    }
    /// Whether the engine's end of a channel may stay open in a task until its memory is made: nothing else is received before.
    fn close_when_filled(&self) -> bool {
        self.plan.grounds.homes.are_one()
    }
    /// The task whose table this task uses.
    fn table_owner(&self, i: usize) -> usize {
        let id = self.images.tasks[i].ids.files_id;
        let same = |j: &usize| {
            self.plan.tasks[*j].table.is_some() && self.images.tasks[*j].ids.files_id == id
        };
        (0..=i).find(same).unwrap_or(i)
    }
    /// Sends each task its files and plays the tape that receives them: all at once, but tasks that share a table one after
    /// another.
    fn deliver(
        &mut self,
        tasks: &[usize],
        phase: Phase,
        what: impl Fn(&Self, usize) -> (Vec<Vec<FdRef>>, Rows<'a>),
    ) -> Result<()> {
        let mut left: Vec<usize> = tasks.to_vec();
        while !left.is_empty() {
            let mut busy = std::collections::BTreeSet::new();
            let (now, later) = left
                .into_iter()
                .partition::<Vec<usize>, _>(|i| busy.insert(self.table_owner(*i)));
            left = later;
            let mut all = Vec::with_capacity(now.len());
            for i in now {
                let (messages, rows) = what(self, i);
                for files in messages {
                    self.ship(self.table_owner(i), &files)?;
                }
                all.push((self.plan.tasks[i].slot, rows.fuse()));
            }
            // a tape may be cut anywhere: no row needs the answer of another
            loop {
                let mut room = ROWS_AT_ONCE;
                let mut tapes = Vec::new();
                for (slot, rows) in &mut all {
                    let some: Vec<Call> = rows.by_ref().take(room).collect();
                    room -= some.len();
                    tapes.extend((!some.is_empty()).then_some((*slot, some)));
                }
                if tapes.is_empty() {
                    break;
                }
                self.play_owned(&tapes, phase)?;
            }
        }
        Ok(())
    }
    fn play_owned(&mut self, tapes: &[(usize, Vec<Call>)], phase: Phase) -> Result<Vec<Played>> {
        let tapes: Vec<_> = tapes.iter().map(|(s, r)| (*s, &r[..])).collect();
        self.play(&tapes, phase)
    }
    /// Plays tapes that are written down one after another: as many at once as memory is given for. What is in one group is played
    /// together; the last of a group is its task's, of which one is played at a time.
    fn play_in_parts(
        &mut self,
        groups: impl Iterator<Item = Result<Vec<(usize, Vec<Call>)>>>,
        phase: Phase,
    ) -> Result<()> {
        let (mut now, mut rows) = (Vec::new(), 0);
        let mut last = None;
        for group in groups {
            let group = group?;
            let more: usize = group.iter().map(|t| t.1.len()).sum();
            let task = group.last().map(|t| t.0);
            if rows + more > ROWS_AT_ONCE || task == last {
                self.play_owned(&now, phase).map_err(taken)?;
                (rows, now) = (0, Vec::new());
            }
            rows += more;
            last = task;
            now.extend(group);
        }
        self.play_owned(&now, phase).map_err(taken).map(|_| ())
    }
    /// Sends open files to a task.
    fn ship(&self, to: usize, files: &[FdRef]) -> Result<()> {
        let socket = self.channels[to].as_ref().ok_or_else(|| {
            Error::bug(format!("task {} has no channel", self.plan.tasks[to].pid))
        })?;
        for part in files.chunks(memory::PER_MESSAGE) {
            let fds: Vec<BorrowedFd> = part
                .iter()
                .map(|f| {
                    self.host
                        .fd(*f)
                        .map(OwnedFd::as_fd)
                        .ok_or_else(|| Error::bug(format!("file#{} was never opened", f.0)))
                })
                .collect::<Result<_>>()?;
            fds::send_fds(socket.as_fd(), &[0], &fds)?;
        }
        Ok(())
    }
    /// Mappings, then contents, of the tasks of a wave.
    fn fill(&mut self, wave: usize, report: &mut RestoreReport) -> Result<()> {
        let plan = self.plan;
        let now = |t: &&TaskPlan| t.wave == wave;
        let some = (0..plan.tasks.len())
            .filter(|i| plan.tasks[*i].wave == wave && plan.tasks[*i].memory.is_some());
        self.deliver(&some.collect::<Vec<_>>(), Phase::Fill, |p, i| {
            let Some(m) = &plan.tasks[i].memory else {
                return (Vec::new(), Box::new(std::iter::empty()));
            };
            let mut rows = Vec::new();
            if plan.tasks[i].table.is_some() && p.close_when_filled() {
                // the engine's end of the new channel
                rows.push(Call::new(libc::SYS_close, vec![Arg::Int(1)]));
            }
            rows.extend(m.settling());
            rows.extend(vdso::rows(&p.vdso_at(m.base), m));
            let rows = rows.into_iter().chain(m.tape(plan.service_fd));
            (vec![m.files.clone()], Box::new(rows))
        })?;
        for (i, t) in plan.tasks.iter().enumerate().filter(|(_, t)| now(t)) {
            for ring in t.memory.iter().flat_map(|m| &m.rings) {
                let made = self.play(&[(t.slot, &[ring.setup()])], Phase::Fill)?;
                let at = made.first().map_or(&[][..], |p| p.out(0, 1));
                let at = at.try_into().map_or(0, u64::from_le_bytes);
                self.ship(self.table_owner(i), &[ring.file])?;
                self.play(&[(t.slot, &ring.rows(at, plan.service_fd))], Phase::Fill)?;
                ring.write(self.pids.known(t.pid)?)?;
            }
        }
        let all = || plan.tasks.iter().filter(now);
        let born_with = all().filter_map(|t| {
            let m = t.memory.as_ref()?;
            let keeps = m.estate.as_ref().is_some_and(heirs::Estate::keeps);
            m.base.filter(|_| keeps)
        });
        let mut bases = BTreeMap::new();
        for b in born_with {
            if let (Entry::Vacant(v), Some(m)) = (bases.entry(b), &plan.tasks[b].memory) {
                v.insert(fill::Base::open(self.dir, m)?);
            }
        }
        let on = |t: &TaskPlan| {
            let what = format!("memory of task {}", t.pid);
            move |e: Error| e.on(what).at(Phase::Fill)
        };
        let (mut small, mut sum) = (Vec::new(), 0);
        for t in all() {
            let Some(m) = &t.memory else { continue };
            let base = m.base.and_then(|b| bases.get(&b));
            let missing = self.missing(t, m)?;
            let f = fill::Filling::new(self.pids.known(t.pid)?, m, base, missing);
            report.pages_restored += f.total / 4096;
            if f.is_much() {
                f.by_many(self.dir).map_err(on(t))?;
                crate::kill_point();
            } else {
                sum += f.total;
                small.push((t, f));
            }
        }
        let dir = self.dir;
        workers::each(sum, &small, fill::Room::new, |(t, f), room| {
            crate::kill_point();
            f.alone(dir, room).map_err(on(t))
        })?;
        for t in all() {
            if let Some((f, m)) = t
                .memory
                .as_ref()
                .and_then(|m| Some((m.foreign.as_ref()?, m)))
            {
                f.connect(self.pids.known(t.pid)?, &self.vdso_at(m.base))?;
            }
        }
        Ok(())
    }
    /// A userfaultfd of the task for what is filled faster that way; nothing where there is none or the kernel refuses.
    fn missing(&mut self, t: &TaskPlan, m: &memory::Plan) -> Result<Option<fill::Missing>> {
        let ranges = m.by_uffd(self.huge);
        if ranges.is_empty() {
            return Ok(None);
        }
        let got = self.userfaultfd(t)?;
        Ok(got.and_then(|fd| fill::Missing::register(fd, &ranges)))
    }
    /// A userfaultfd of the task, which does not have it itself; nothing if it may not make one.
    fn userfaultfd(&mut self, t: &TaskPlan) -> Result<Option<OwnedFd>> {
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let flags = Arg::OpenFlags(flags);
        let open = [Call::new(libc::SYS_userfaultfd, vec![flags]).any()];
        let made = self.play(&[(t.slot, &open)], Phase::Fill)?;
        let Some(fd) = made.first().map(|p| p.rets[0]).filter(|r| *r < 1 << 30) else {
            return Ok(None);
        };
        let pidfd = fds::pidfd_open(self.pids.known(t.pid)?, 0)?;
        let got = fds::pidfd_getfd(pidfd.as_fd(), RemoteFd(fd as i32))?;
        let close = [Call::new(libc::SYS_close, vec![Arg::Int(fd)])];
        self.play(&[(t.slot, &close)], Phase::Fill)?;
        Ok(Some(got))
    }
    /// What comes later is handed to a process that stays.
    fn lazily(&mut self) -> Result<()> {
        let plan = self.plan;
        if let Some(path) = &self.o.memory.lazy_daemon {
            return self.by_daemon(path);
        }
        let mut pager = Pager::new(&self.o.images, self.o.memory.far.as_ref());
        for t in &plan.tasks {
            let Some(m) = t.memory.as_ref().filter(|m| m.comes_later()) else {
                continue;
            };
            let pid = self.pids.known(t.pid)?;
            let fd = self.userfaultfd(t)?;
            let fd = fd.ok_or_else(|| no_uffd(pid, "the kernel refuses one"))?;
            pager.add(self.dir, (pid, t.pid), fd, m)?;
        }
        pager.start(&self.o.images)
    }
    /// What comes later is handed to a daemon, which waits for it.
    fn by_daemon(&mut self, path: &std::path::Path) -> Result<()> {
        let plan = self.plan;
        let mut daemon = Daemon::connect(path)?;
        for t in &plan.tasks {
            let own = t.pid as i32;
            let Some(m) = t.memory.as_ref().filter(|m| m.comes_later()) else {
                daemon.skip(own)?;
                continue;
            };
            let pid = self.pids.known(t.pid)?;
            let fd = self.userfaultfd(t)?;
            let fd = fd.ok_or_else(|| no_uffd(pid, "the kernel refuses one"))?;
            daemon.add(pid, own, &fd, &m.lazy_ranges)?;
        }
        self.daemon = Some(daemon);
        Ok(())
    }
    /// Where the pieces of the vDSO are when a task is born: parked, or where the task whose memory it inherits has them.
    fn vdso_at(&self, base: Option<usize>) -> Vec<vdso::Special> {
        let memory = base.and_then(|b| self.plan.tasks[b].memory.as_ref());
        memory.map_or_else(
            || self.parked.clone(),
            |m| vdso::moved(&self.vdso_at(m.base), m),
        )
    }
    /// Descriptors, working and root directories.
    fn place(&mut self) -> Result<()> {
        self.open(&[Stage::Tasks, Stage::Queues])?;
        let plan = self.plan;
        let mut done = BTreeSet::new();
        let (mut first, mut late) = (Vec::new(), Vec::new());
        for i in (0..plan.tasks.len()).filter(|i| plan.tasks[*i].end.is_none()) {
            let fs = done.insert(self.images.tasks[i].ids.fs_id);
            match (&plan.tasks[i].table, fs) {
                (Some(_), _) => first.push((i, fs)),
                // through the socket in a table of another task, when that has got its own files
                (None, true) => late.push(i),
                (None, false) => {}
            }
        }
        let entering: BTreeSet<usize> = first.iter().filter(|f| f.1).map(|f| f.0).collect();
        let owners: Vec<usize> = first.into_iter().map(|f| f.0).collect();
        self.deliver(&owners, Phase::Place, |p, i| {
            let Some(table) = &plan.tasks[i].table else {
                return (Vec::new(), Box::new(std::iter::empty()));
            };
            let files: Vec<FdRef> = table.iter().map(|s| s.0).collect();
            let rows = memory::receive(plan.service_fd, files.len()).into_iter();
            let rows = rows.chain(memory::place(table));
            let mut messages = vec![files];
            let mut enter = Vec::new();
            if entering.contains(&i) {
                let (two, rows) = p.directories(i);
                messages.push(two);
                enter = rows;
            }
            (messages, Box::new(rows.chain(enter)))
        })?;
        self.deliver(&late, Phase::Place, |p, i| {
            let (two, rows) = p.directories(i);
            (vec![two], Box::new(rows.into_iter()))
        })
    }
    fn directories(&self, i: usize) -> (Vec<FdRef>, Vec<Call>) {
        let i = &self.images.tasks[i];
        let recv = memory::receive(self.plan.service_fd, 2);
        let free: Vec<u64> = {
            let held: std::collections::BTreeSet<i32> = self
                .table_of(i.ids.files_id)
                .into_iter()
                .chain([self.plan.service_fd])
                .collect();
            (0..)
                .filter(|n| !held.contains(n))
                .take(2)
                .map(|n| n as u64)
                .collect()
        };
        let mut rows = vec![recv[0].clone()];
        for (n, chroot) in [(free[0], true), (free[1], false)] {
            rows.push(Call::new(libc::SYS_fchdir, vec![Arg::Int(n)]));
            if chroot && !self.root_is_its_own(i) {
                rows.push(Call::new(libc::SYS_chroot, vec![Arg::Str(b".".to_vec())]));
            }
        }
        rows.push(Call::new(libc::SYS_close, vec![Arg::Int(free[0])]));
        rows.push(Call::new(libc::SYS_close, vec![Arg::Int(free[1])]));
        if let Some(u) = i.fs.umask {
            rows.push(Call::new(libc::SYS_umask, vec![Arg::Int(u64::from(u))]));
        }
        (vec![FdRef(i.fs.root_id), FdRef(i.fs.cwd_id)], rows)
    }
    /// Is its root that of its mount namespace?
    fn root_is_its_own(&self, i: &TaskImages) -> bool {
        let entry = self.images.files.get(&i.fs.root_id);
        let homes = &self.plan.grounds.homes;
        entry.and_then(|f| f.reg.as_ref()).is_some_and(|r| {
            let on = r.mnt_id.and_then(|id| u32::try_from(id).ok());
            let space = on.and_then(|id| self.plan.mounts.as_ref()?.space_of(id));
            let home = homes.all.get(homes.of_task(i.entry.pid));
            r.name == b"/" && (homes.are_one() || space == home.and_then(|h| h.mounts))
        })
    }
    fn table_of(&self, files_id: u32) -> Vec<i32> {
        let owner = self
            .images
            .tasks
            .iter()
            .position(|t| !t.is_zombie() && t.ids.files_id == files_id);
        owner
            .and_then(|i| self.plan.tasks[i].table.as_ref())
            .map_or(Vec::new(), |t| t.iter().map(|s| s.1).collect())
    }
    /// What follows when descriptors are in place, protections and advice, births of threads, habits of all, what is set from
    /// outside.
    fn habits(&mut self, report: &mut RestoreReport) -> Result<()> {
        let plan = self.plan;
        let zombies: Vec<_> = plan
            .tasks
            .iter()
            .filter_map(|t| t.end.as_ref().map(|e| (t.slot, &e[..])))
            .collect();
        self.bury(&zombies)?;
        self.enter_users()?;
        let close = Call::new(libc::SYS_close, vec![Arg::Int(self.plan.service_fd as u64)]);
        let (images, dir) = (self.images, self.dir);
        // stubs have what the engine has; only what differs is set
        let own = Inherited::read()?;
        let mut differs = Vec::new();
        let live = || plan.tasks.iter().enumerate().filter(|t| t.1.end.is_none());
        // threads are born in parts, because tapes take memory
        let parts = live().flat_map(|(i, t)| {
            let n = images.tasks[i].threads.len();
            (0..n.max(1))
                .step_by(AT_ONCE)
                .map(move |from| (i, t, from..n.min(from + AT_ONCE)))
        });
        let groups = parts.map(|(i, t, part)| {
            let all = &images.tasks[i].threads;
            let mut tapes: Vec<(usize, Vec<Call>)> = Vec::with_capacity(part.len());
            let mut rows = Vec::new();
            let mut leaders = Vec::new();
            if part.start == 0 && !plan.is_inside(i) {
                rows.extend_from_slice(&t.placed);
                rows.extend(t.memory.iter().flat_map(|m| m.late.iter().cloned()));
            }
            if part.start == 0 {
                rows.extend(t.table.is_some().then(|| close.clone()));
            }
            let ends = part.end == all.len();
            for k in part {
                let h = plan.habits(t, &images.tasks[i], (k, &*all[k].core(dir)?))?;
                differs.extend(
                    h.outside
                        .into_iter()
                        .filter(|x| !own.has(x))
                        .map(|x| (i, x)),
                );
                if k == 0 {
                    leaders = h.rows;
                    continue;
                }
                // a thread finds its tape when it is born, so it need not be woken for it
                let slot = t.slot + k;
                if !plan.is_inside(i) {
                    rows.push(thread_birth(&plan.spaces.name(all[k].tid), slot));
                }
                tapes.push((slot, h.rows));
            }
            if ends {
                let of = habits::of_process(&images.tasks[i]);
                differs.extend(of.into_iter().filter(|x| !own.has(x)).map(|x| (i, x)));
            }
            rows.append(&mut leaders);
            tapes.push((t.slot, rows));
            Ok(tapes)
        });
        self.play_in_parts(groups, Phase::Habits)?;
        for (i, t) in live() {
            if images.tasks[i].threads.len() > 1 {
                self.pids.find_threads(t.pid)?;
            }
        }
        for (i, x) in &differs {
            outside(plan.tasks[*i].pid, x, &self.pids, report)?;
        }
        Ok(())
    }
    /// Lets zombies end: their tapes do not come back.
    fn bury(&mut self, zombies: &[(usize, &[Call])]) -> Result<()> {
        let pid = |slot: usize| {
            let owner = self.plan.tasks.iter().find(|t| t.slot == slot);
            self.pids.known(owner.map_or(0, |t| t.pid))
        };
        let pids: Vec<HostPid> = zombies.iter().map(|z| pid(z.0)).collect::<Result<_>>()?;
        let mut gone = |i: usize| {
            ProcDir::open(pids[i])
                .map(|d| d.stat().map_or(true, |s| s.state.is_exited()))
                .unwrap_or(true)
        };
        self.reel.play_last(zombies, &mut gone).map_err(|e| {
            let slot = match &e {
                PlayError::Row { slot, .. } | PlayError::Lost { slot, .. } => *slot,
                PlayError::Full(_) => 0,
            };
            played(&e, &self.owner(slot)).at(Phase::Habits)
        })
    }
    /// Timers, credentials, seccomp.
    fn privileges(&mut self) -> Result<()> {
        let plan = self.plan;
        let born_with = self.credentials()?;
        for t in &self.images.tasks {
            for th in t.threads.iter().skip(1) {
                self.threads.push(seize(self.pids.known(th.tid)?)?);
            }
        }
        let mut spaces: BTreeMap<u32, usize> = BTreeMap::new();
        for t in self.images.tasks.iter().filter(|t| !t.is_zombie()) {
            *spaces.entry(t.ids.vm_id).or_default() += t.threads.len().max(1);
        }
        let (images, dir) = (self.images, self.dir);
        let threads = |i: usize| (0..images.tasks[i].threads.len()).map(move |k| (i, k));
        let live = (0..plan.tasks.len()).filter(|i| plan.tasks[*i].end.is_none());
        let mut then = Vec::new();
        let now = live.flat_map(threads).map(|(i, k)| {
            let (t, of) = (&plan.tasks[i], &images.tasks[i]);
            // with nobody else in its address space it need not wait for their change of ids
            let alone = spaces.get(&of.ids.vm_id) == Some(&1);
            let core = of.threads[k].core(dir)?;
            let last = plan.privileges(images, of, (k, &core))?;
            let wanted = core.thread_core.as_ref().and_then(|c| c.creds.as_ref());
            let has = wanted.is_some_and(|c| born_with.as_ref().is_some_and(|b| b.are(c)));
            // what only a change of ids leaves behind
            let has = has && of.mm.as_ref().is_none_or(|m| m.dumpable != Some(2));
            let has = has && !plan.is_inside(i);
            let mut tape = Vec::new();
            if k == 0 {
                tape = children(t.pid, &plan.spaces);
                tape.extend(plan.habits(t, of, (k, &core))?.arm);
                tape.extend_from_slice(&t.arm);
            }
            tape.extend(last.credentials.into_iter().filter(|_| !has));
            match alone {
                true => tape.extend(last.sealing),
                false if last.sealing.is_empty() => {}
                false => then.push((i, k)),
            }
            Ok(vec![(t.slot + k, tape)])
        });
        self.play_in_parts(now, Phase::Privileges)?;
        // what follows a filter in a tape is not subject to it while its thread is traced
        let then = then.into_iter().map(|(i, k)| {
            let of = &images.tasks[i];
            let core = of.threads[k].core(dir)?;
            let last = plan.privileges(images, of, (k, &core))?;
            Ok(vec![(plan.tasks[i].slot + k, last.sealing)])
        });
        self.play_in_parts(then, Phase::Privileges)
    }
    /// The credentials that all tasks were born with; nothing where those of an image are not comparable with them.
    fn credentials(&mut self) -> Result<Option<Born>> {
        if self.plan.grounds.has(Ns::User) {
            return Ok(None);
        }
        let root = &self.plan.tasks[0];
        let ask = [Call::new(
            libc::SYS_prctl,
            vec![Arg::Named(27, "PR_GET_SECUREBITS".into())],
        )];
        let told = self.play(&[(root.slot, &ask)], Phase::Privileges)?;
        let pid = self.pids.known(root.pid)?;
        Ok(Some(Born {
            status: ProcDir::open(pid)?.status()?,
            securebits: told[0].rets[0] as u32,
        }))
    }
    /// The runtime gets the masters of the container's terminals.
    fn hand_over_terminals(&mut self) -> Result<()> {
        for f in &self.plan.orphans {
            let Some(master) = self.host.take(*f) else {
                return Err(Error::bug("the master of a terminal was never opened"));
            };
            if !self.o.events.orphan_pts_master(master.as_fd())? {
                self.warnings
                    .push("nobody takes the container's terminal: it is hung up".into());
            }
        }
        Ok(())
    }
    /// Registers, and off they go.
    fn run(&mut self, pidfile: &mut PidFile) -> Result<i32> {
        let plan = self.plan;
        let mut threads = std::mem::take(&mut self.threads).into_iter();
        for i in 0..plan.tasks.len() {
            let Some(leader) = &self.leaders[i] else {
                continue;
            };
            leader.interrupt()?;
            self.going.push((i, 0, Tracee { tid: leader.tid }));
            let others = 1..self.images.tasks[i].threads.len();
            for (k, th) in others.zip(threads.by_ref()) {
                th.interrupt()?;
                self.going.push((i, k, th));
            }
        }
        for (i, _, th) in &self.going {
            th.wait_stop()?.ok_or_else(|| {
                let pid = self.plan.tasks[*i].pid;
                Error::new(
                    "E4001",
                    Blame::Container,
                    format!("task {pid} was killed while it was restored"),
                )
                .advice("find out who killed it (out of memory?) and try again")
            })?;
        }
        let leaders: Vec<_> = self
            .going
            .iter()
            .filter(|(i, k, _)| *k == 0 && self.plan.tasks[*i].memory.is_some())
            .map(|(i, _, th)| (th, &self.plan.tasks[*i]))
            .collect();
        super::regs::drop_reel(&leaders, &self.reel)?;
        let mut area = Vec::new();
        for (i, k, th) in &self.going {
            let of = &self.images.tasks[*i].threads[*k];
            of.core(self.dir)
                .and_then(|core| super::regs::set(th, &core, &mut area))
                .map_err(|e| e.on(format!("thread {}", of.tid)).at(Phase::Run))?;
        }
        self.go_home()?;
        let root = self.root.map_or(0, |r| r.0);
        for t in &self.images.tasks {
            let own = t.entry.pid;
            if self.images.devices.iter().any(|d| d.0 == own) {
                crate::plugins::resume(self.o, self.images, own, self.pids.known(own)?.0)?;
            }
        }
        self.o.events.tell(Moment::NetworkUnlock)?;
        self.o.events.tell(Moment::PreResume(root))?;
        crate::kill_point();
        // those that are to be stopped find the signal when they are let go, by whomever
        let stop = |i: usize| {
            let all = (self.o.after == After::Stopped).then_some(libc::SIGSTOP);
            all.or(plan.tasks[i].stopped_by)
        };
        let mut stopped = Vec::new();
        for (i, _, th) in self.going.iter().filter(|t| t.1 == 0) {
            if let Some(sig) = stop(*i) {
                stasis_kernel::ptrace::kill(th.tid, sig)?;
                stopped.push(HostPid(th.tid));
            }
        }
        for lock in [&mut self.lock, &mut self.crossing].into_iter().flatten() {
            crate::network::open(lock)?;
        }
        self.open(&[Stage::Commit])?;
        self.all_workers(inner::Task::Keep)?;
        // they must not be seen by the tree, but names that go last are their business
        if !plan.host.iter().any(|h| h.stage == Stage::Last) {
            for w in self.workers.iter_mut().flatten() {
                w.inner.end();
            }
        }
        // From here on a lost engine lets them run. Story of the one place that is not all or nothing:
        // 1. each thread needs a call of its own to lose EXITKILL (0.3 us each), and there is no call for many;
        // 2. an engine killed between two of them leaves those before running, the kernel kills those after;
        // 3. the death signals of the parents cannot stand in: a task's own one must be in place before its seccomp filter.
        // So nothing else is done between them: no allocation, no log, no file.
        for (_, _, th) in &self.going {
            th.set_options(TRACESYSGOOD)?;
        } // the last thing that may fail: until here the drop of this ends the tree
        pidfile.appear()?;
        self.committed = true;
        self.host.keep();
        if let Some(a) = self.groups.take() {
            Groups::keep(a)
        }
        // who was stopped is so again before anybody runs who could look at it or continue it
        let (still, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.going)
            .into_iter()
            .partition(|t| stop(t.0).is_some());
        for (_, _, th) in still {
            th.detach(0)?;
        }
        stopped.into_iter().for_each(seize::settled);
        for (_, _, th) in rest {
            th.detach(0)?;
        }
        Ok(self.root.map_or(0, |r| r.0))
    }
}

/// The name of a handle of a namespace: above those of files and mounts.
pub(super) fn handle_name(ns: Ns, id: u32) -> FdRef {
    FdRef(0x6000_0000 | (ns as u32) << 24 | id & 0xff_ffff)
}

/// The files that the caller brings, for whoever performs the acts of the plan.
fn given(plan: &Plan) -> Result<Host> {
    let mut host = Host::default();
    for (f, number) in &plan.given {
        let fd = crate::inherited::descriptor(*number).map_err(|e| {
            Error::new(
                "E7032",
                Blame::Caller,
                format!("descriptor {number} is to be a file of the tree"),
            )
            .why(e.what)
            .advice("start the restore with this descriptor open")
        })?;
        host.insert(*f, fd);
    }
    Ok(host)
}

/// Images that are about more than a task: what the worker in the tree's namespaces may want.
fn not_of_tasks(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::Core | Kind::Ids | Kind::Mm | Kind::Pagemap | Kind::Fs | Kind::Fdinfo | Kind::Pstree
    )
}

/// Seizes a stub so that it dies with the engine.
pub(super) fn seize(pid: HostPid) -> Result<Tracee> {
    let options = EXITKILL | TRACESYSGOOD;
    let seized = Tracee::seize(pid.0, options | SUSPEND_SECCOMP).or_else(|e| {
        if e.errno == Errno::EPERM {
            Tracee::seize(pid.0, options)
        } else {
            Err(e)
        }
    });
    Ok(seized?)
}

/// The file with the root's pid: written before anything runs, without a name until the tree is let go, so that an engine
/// that is killed before leaves none behind.
enum PidFile<'a> {
    /// None was asked for, or it is there.
    Done,
    /// Written; the name is missing.
    Nameless(std::fs::File, &'a std::path::Path),
    /// On a file system without nameless files (NFS, FUSE): it has its name already.
    Named(&'a std::path::Path),
}

impl<'a> PidFile<'a> {
    /// As CRIU writes it: decimal, no newline; a file that is there already is left alone.
    fn write(o: &'a Options, pid: u32) -> Result<Self> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let Some(path) = o.pidfile.as_deref() else {
            return Ok(Self::Done);
        };
        let fail = |e: std::io::Error| no_pidfile(path, e);
        if path.symlink_metadata().is_ok() {
            return Err(fail(std::io::ErrorKind::AlreadyExists.into()));
        }
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => std::path::Path::new("."),
        };
        let nameless = std::fs::File::options()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o666)
            .open(folder);
        let (mut f, named) = match nameless {
            Ok(f) => (f, false),
            Err(_) => (std::fs::File::create_new(path).map_err(fail)?, true),
        };
        let written = write!(f, "{pid}").map_err(fail);
        let it = if named {
            Self::Named(path)
        } else {
            Self::Nameless(f, path)
        };
        written.map(|()| it)
    }
    /// Gives it its name; it stays.
    fn appear(&mut self) -> Result<()> {
        use nix::fcntl::AtFlags;
        use std::os::fd::AsRawFd;
        if let Self::Nameless(f, path) = self {
            let own = format!("/proc/self/fd/{}", f.as_raw_fd());
            nix::unistd::linkat(
                nix::fcntl::AT_FDCWD,
                own.as_str(),
                nix::fcntl::AT_FDCWD,
                *path,
                AtFlags::AT_SYMLINK_FOLLOW,
            )
            .map_err(|e| no_pidfile(path, e.into()))?;
        }
        *self = Self::Done;
        Ok(())
    }
}

fn no_pidfile(path: &std::path::Path, e: std::io::Error) -> Error {
    let what = format!("cannot write the pidfile {}", path.display());
    Error::new("E6123", Blame::Host, what)
        .why(e)
        .advice("name a file that does not exist, in a folder that can be written")
        .at(Phase::Run)
}

impl Drop for PidFile<'_> {
    fn drop(&mut self) {
        if let Self::Named(p) = self {
            let _ = std::fs::remove_file(p);
        }
    }
}

/// Packets are held before there is any socket. A namespace that is made for the tree has nobody in it who could send.
fn hold(o: &Options, dir: &ImageDir, images: &Images, plan: &Plan) -> Result<Option<Lock>> {
    let g = &plan.grounds;
    if g.makes(Ns::Net) {
        return Ok(None);
    }
    let place = g.joined.iter().find(|j| j.0 == Ns::Net);
    crate::network::hold(o, dir, &images.files, place.map(|j| j.1.as_path()))
}

/// Performs a plan: the tree runs when this returns its root's pid.
pub fn perform(
    o: &Options,
    dir: &ImageDir,
    images: &Images,
    plan: &Plan,
    report: &mut RestoreReport,
) -> Result<i32> {
    let mut p = Performance::begin(o, dir, images, plan).map_err(|e| e.at(Phase::Open))?;
    p.tidy_stub()?;
    p.found().map_err(|e| e.at(Phase::Birth))?;
    p.waves(report)?;
    if !o.plugins.0.is_empty() {
        for t in &images.tasks {
            let pid = p.pids.known(t.entry.pid)?.0;
            crate::plugins::forked(o, pid).map_err(|e| e.at(Phase::Birth))?;
        }
    }
    p.lazily().map_err(|e| e.at(Phase::Fill))?;
    p.place().map_err(|e| e.at(Phase::Place))?;
    p.open(&[Stage::Mapped]).map_err(|e| e.at(Phase::Place))?;
    p.habits(report)?;
    p.privileges()?;
    p.hand_over_terminals()?;
    o.events
        .tell(Moment::PostRestore(p.root.map_or(0, |r| r.0)))
        .map_err(|e| e.at(Phase::Run))?;
    // before anything runs: a caller that cannot be told the pid must not find a running tree
    let mut pidfile = PidFile::write(o, p.root.map_or(0, |r| r.0 as u32))?;
    let pid = p.run(&mut pidfile).map_err(|e| e.at(Phase::Run))?;
    if let Some(Err(e)) = p.daemon.as_mut().map(Daemon::over) {
        tracing::warn!("the tree runs, but: {e}");
    }
    for lock in [p.lock.take(), p.crossing.take()].into_iter().flatten() {
        if let Err(e) = lock.release() {
            tracing::warn!("the tree runs, but what is left of its network lock does not go: {e}");
        }
    }
    if let Err(e) = o.events.tell(Moment::PostResume(pid)) {
        tracing::warn!("the tree runs, but: {e}");
    }
    report.warnings.append(&mut p.warnings);
    if let Err(e) = p.open(&[Stage::Last]) {
        tracing::warn!("the tree runs, but: {e}");
    }
    info!("restored {} tasks, root {pid}", plan.tasks.len());
    Ok(pid)
}

/// Does these acts one after the other, in the namespaces of the caller.
pub(super) fn act<'a>(
    host: &mut Host,
    dir: &ImageDir,
    run: impl Iterator<Item = &'a HostAct>,
) -> Result<()> {
    let known = |pid: u32| Some(HostPid(pid as i32));
    for a in run {
        crate::kill_point();
        let mut on = Stagehand {
            host: &mut *host,
            dir,
            pid: &known,
        };
        a.act
            .perform(&mut on)
            .map_err(|e| opening(&a.act, &a.why, e))?;
    }
    Ok(())
}

fn opening(act: &Act, why: &str, e: Error) -> Error {
    if act.call().is_none() {
        return e.at(Phase::Open);
    }
    let advice = match &e.what {
        w if w.contains("ENOENT") => {
            "the file was removed since the dump: bring it back, or dump again"
        }
        w if w.contains("EACCES") || w.contains("EPERM") => {
            "restore as the user that could open it"
        }
        _ => "see the call; the plan (`stasis plan`) shows what comes before it",
    };
    Error::new(
        "E6100",
        Blame::Host,
        format!("a step of the restore failed: {why}"),
    )
    .why(e.what)
    .advice(advice)
    .at(Phase::Open)
}

fn taken(e: Error) -> Error {
    if e.why.contains("EEXIST") {
        Error { code: "E6101", advice: "a process or thread with this pid runs already: restore in a pid namespace of its own, or end it".into(), blame: Blame::Host, ..e }
    } else {
        e
    }
}

pub(super) fn played(e: &PlayError, who: &str) -> Error {
    match e {
        PlayError::Row {
            row,
            rows,
            shown,
            errno,
            ..
        } => {
            let blame = if matches!(
                *errno,
                libc::EPERM | libc::EACCES | libc::ENOMEM | libc::EEXIST | libc::EAGAIN
            ) {
                Blame::Host
            } else {
                Blame::Kernel
            };
            Error::new(
                "E6102",
                blame,
                format!("{who}: row {row} of {rows} of its tape failed"),
            )
            .why(shown)
            .advice("`stasis plan` shows the whole tape; `stasis check` what this host lacks")
        }
        e => Error::new("E6103", Blame::Host, who.to_string())
            .why(e)
            .advice("the kernel log may say who killed it (out of memory?)"),
    }
}

/// Threads born in one play, at most.
const AT_ONCE: usize = 256;

/// Rows in one play, more or less: they take 300 bytes each in the engine, and half of that in the reel.
const ROWS_AT_ONCE: usize = 2048;

/// Rows of a tape that are made when they are wanted.
type Rows<'a> = Box<dyn Iterator<Item = Call> + 'a>;

/// Credentials of a task that was just born.
struct Born {
    status: Status,
    securebits: u32,
}

impl Born {
    /// Are they these? Then no row is needed for them.
    fn are(&self, c: &pb::CredsEntry) -> bool {
        let s = &self.status;
        let set = |v: &[u32]| {
            let word = |i: usize| u64::from(v.get(i).copied().unwrap_or(0));
            word(0) | word(1) << 32
        };
        let ids = |i: &stasis_kernel::procfs::Ids| [i.real, i.effective, i.saved, i.fs];
        ids(&s.uid) == [c.uid, c.euid, c.suid, c.fsuid]
            && ids(&s.gid) == [c.gid, c.egid, c.sgid, c.fsgid]
            && s.groups == c.groups
            && self.securebits == c.secbits
            && [s.cap_inh, s.cap_prm, s.cap_eff, s.cap_bnd, s.cap_amb]
                == [&c.cap_inh, &c.cap_prm, &c.cap_eff, &c.cap_bnd, &c.cap_amb].map(|v| set(v))
    }
}

/// What every stub has inherited from the engine.
struct Inherited {
    files: BTreeMap<&'static str, String>,
    sched: Vec<u8>,
    nice: i32,
    affinity: Vec<u8>,
    ioprio: u32,
    rlimits: Vec<(u64, u64)>,
}

impl Inherited {
    fn read() -> Result<Self> {
        let own = HostPid::own();
        let proc = ProcDir::open(own)?;
        let text = |f: &'static str| {
            Some((
                f,
                String::from_utf8_lossy(&proc.bytes(f).ok()?)
                    .trim()
                    .to_string(),
            ))
        };
        let a = sched::attr(own)?;
        Ok(Self {
            files: ["oom_score_adj", "loginuid", "coredump_filter"]
                .into_iter()
                .filter_map(text)
                .collect(),
            sched: sched::Attr::bytes(
                a.policy,
                a.flags,
                a.nice,
                a.priority,
                [a.runtime, a.deadline, a.period],
            ),
            nice: sched::nice(own)?,
            affinity: sched::affinity(own)?,
            ioprio: sched::ioprio(own)?,
            rlimits: (0..16)
                .map(|r| sched::rlimit(own, r))
                .collect::<Result<_, _>>()?,
        })
    }
    fn has(&self, x: &Outside) -> bool {
        match x {
            Outside::Proc { file, text, .. } => self
                .files
                .get(file)
                .is_some_and(|t| t == text || same_number(t, text)),
            // under the engine's own policy the nice value is in the structure
            Outside::Sched(_, b) => *b == self.sched,
            Outside::Nice(_, n) => *n == self.nice,
            Outside::Affinity(_, m) => *m == self.affinity,
            Outside::Ioprio(_, p) => *p == self.ioprio,
            Outside::Rlimit(_, r, s, h) => self.rlimits.get(*r as usize) == Some(&(*s, *h)),
        }
    }
}

/// "00000033" and "0x33".
fn same_number(proc: &str, text: &str) -> bool {
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    text.strip_prefix("0x")
        .and_then(hex)
        .is_some_and(|n| hex(proc) == Some(n))
}

fn outside(pid: u32, x: &Outside, pids: &Numbers, report: &mut RestoreReport) -> Result<()> {
    let r = match x {
        Outside::Proc {
            tid, file, text, ..
        } => ProcDir::open(pids.known(*tid)?).and_then(|d| {
            let now = d
                .bytes(file)
                .ok()
                .map(|b| String::from_utf8_lossy(&b).trim().to_string());
            let same = now.as_deref() == Some(text)
                || now.is_some_and(|n| format!("0x{}", n.trim_start_matches('0')) == *text);
            if same {
                Ok(())
            } else {
                d.write(file, text.as_bytes())
            }
        }),
        Outside::Sched(tid, b) => stasis_kernel::sched::set_attr(pids.known(*tid)?, b),
        Outside::Nice(tid, n) => stasis_kernel::sched::set_nice(pids.known(*tid)?, *n),
        Outside::Affinity(tid, m) => stasis_kernel::sched::set_affinity(pids.known(*tid)?, m),
        Outside::Ioprio(tid, p) => stasis_kernel::sched::set_ioprio(pids.known(*tid)?, *p),
        Outside::Rlimit(pid, r, s, h) => {
            stasis_kernel::sched::set_rlimit(pids.known(*pid)?, *r, (*s, *h))
        }
    };
    if let Err(e) = r {
        let w = format!(
            "task {pid}: {x} was not set: {}",
            answer(-(e.errno as i64) as u64)
        );
        warn!("{w}");
        report.warnings.push(w);
    }
    Ok(())
}
