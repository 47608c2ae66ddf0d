//! Stopping a tree that forks, exits and runs while we look.
//!
//! Every thread is seized and interrupted; a process is closed when a listing of its threads shows none we do not hold;
//! the tree is closed when a pass over all children finds none we do not hold. Stopped threads cannot fork, so this ends.
use super::task::{Task, Thread};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::procfs::{InSyscall, ProcDir, Stat, TaskState};
use stasis_kernel::ptrace::{Event, TRACESYSGOOD, Tracee};
use stasis_kernel::vm;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Stops the tree under `root`, parents before children. On error everything seized so far is let go by the end of the
/// calling thread, and what is in `held` by the caller with [`let_go`].
pub fn tree(root: HostPid, options: usize, deadline: Instant, held: &mut Vec<Task>) -> Result<()> {
    let at = match Seizing::begin(root, None, options, deadline)? {
        Some(s) => s.end()?,
        None => None,
    };
    // a zombie alone is nothing that could come back
    let at = at.filter(|t| t.zombie.is_none());
    held.push(at.ok_or_else(|| no_such(root))?);
    let mut known = BTreeSet::from([root]);
    loop {
        // who has ended may have left children to somebody whose list was read before: then all lists are read once more
        let mut ended = false;
        let mut i = 0;
        while i < held.len() {
            let mut found = Vec::new();
            for t in &held[i..] {
                let children = t.proc.children_of(t.threads.iter().map(|th| th.tid));
                for c in children.map_err(|e| parse(e, t.pid))? {
                    if !known.insert(c) {
                        continue;
                    }
                    // all are told to stop before the first is waited for
                    match Seizing::begin(c, Some(t.pid), options, deadline)? {
                        Some(s) => found.push(s),
                        None => ended = true,
                    }
                }
            }
            i = held.len();
            for s in found {
                match s.end()? {
                    Some(t) => {
                        ended |= t.zombie.is_some();
                        held.push(t);
                    }
                    None => ended = true,
                }
            }
        }
        if !ended {
            return Ok(());
        }
    }
}

fn parse(e: stasis_kernel::error::Error, pid: HostPid) -> Error {
    if e.is_gone() {
        no_such(pid)
    } else {
        Error::from(e)
    }
}

fn no_such(pid: HostPid) -> Error {
    Error::new("E4001", Blame::Container, format!("no task {}", pid.0))
        .why("it does not exist or ended meanwhile")
        .advice("check the pid (as this pid namespace sees it) and try again")
}

/// A process some of whose threads are told to stop.
struct Seizing {
    task: Task,
    stat: Stat,
    told: Vec<(HostPid, Tracee)>,
    options: usize,
    deadline: Instant,
}

impl Seizing {
    /// Tells the threads of a process to stop; `None` if it is gone.
    fn begin(
        pid: HostPid,
        parent: Option<HostPid>,
        options: usize,
        deadline: Instant,
    ) -> Result<Option<Self>> {
        let proc = match ProcDir::open(pid) {
            Ok(p) => p,
            Err(e) if e.is_gone() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let Some(stat) = if_there(proc.stat())? else {
            return Ok(None);
        };
        if stat.is_kernel_thread() {
            return Err(Error::new(
                "E4002",
                Blame::Container,
                format!("task {} is a kernel thread", pid.0),
            )
            .advice("name a process"));
        }
        let mut it = Self {
            task: Task::new(pid, parent, proc),
            stat,
            told: Vec::new(),
            options,
            deadline,
        };
        it.tell()?;
        Ok(Some(it))
    }
    /// Seizes and interrupts all threads that are not held yet.
    fn tell(&mut self) -> Result<()> {
        let pid = self.task.pid;
        let tids = match self.stat.num_threads {
            1 => vec![pid],
            _ => if_there(self.task.proc.tasks())?.unwrap_or_default(),
        };
        if self.stat.state.is_exited() && self.task.threads.is_empty() {
            if tids.len() > 1 {
                return Err(Error::new("E4003", Blame::Container, format!("task {}", pid.0))
                    .why("its main thread has exited while others run")
                    .advice("this state cannot be rebuilt from outside; let the main thread wait for the others"));
            }
            self.task.zombie = Some(self.stat.exit_code);
            return Ok(());
        }
        for tid in tids {
            if self.task.threads.iter().any(|t| t.tid == tid) {
                continue;
            }
            match Tracee::seize(tid.0, self.options | TRACESYSGOOD) {
                Ok(t) => {
                    t.interrupt().or_else(|e| match e.errno {
                        Errno::ESRCH => Ok(()),
                        _ => Err(e),
                    })?;
                    self.told.push((tid, t));
                }
                Err(e) if e.errno == Errno::ESRCH => {}
                Err(e) if e.errno == Errno::EPERM => {
                    // a zombie cannot be seized either; the next pass sees it
                    let tracer = self.task.proc.status().map(|s| s.tracer.0).unwrap_or(0);
                    if tracer != 0 {
                        return Err(Error::new(
                            "E4004",
                            Blame::Container,
                            format!("task {} is traced by process {tracer}", pid.0),
                        )
                        .why("a task has one tracer at most")
                        .advice("end the debugger or strace first"));
                    }
                    if self.task.proc.stat().is_ok_and(|s| s.state.is_exited()) {
                        continue;
                    }
                    return Err(Error::from(e).on(format!("task {}", pid.0)));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
    /// Waits until all threads stand still, those that were born meanwhile too; `None` if the process is gone (and is
    /// nobody's zombie).
    fn end(mut self) -> Result<Option<Task>> {
        loop {
            if self.task.zombie.is_some() {
                return Ok(Some(self.task));
            }
            for (tid, t) in std::mem::take(&mut self.told) {
                match stop(&t, self.deadline, &self.task)? {
                    Some(Event::GroupStop(sig)) => {
                        self.task.stopped_by.get_or_insert(sig);
                        self.task.threads.push(Thread::new(tid, t));
                    }
                    Some(_) => self.task.threads.push(Thread::new(tid, t)),
                    None => {}
                }
            }
            let Some(stat) = if_there(self.task.proc.stat())? else {
                return Ok(None);
            };
            self.stat = stat;
            // a thread that stands still makes no other
            if self.stat.num_threads as usize == self.task.threads.len() {
                return Ok(Some(self.in_order()));
            }
            self.tell()?;
            if self.told.is_empty() && self.task.zombie.is_none() {
                if !self.task.threads.is_empty() {
                    return Ok(Some(self.in_order()));
                }
                // all threads went away between the listing and the seizing
                if Instant::now() > self.deadline {
                    return Err(late(self.task.pid));
                }
            }
        }
    }
    fn in_order(mut self) -> Task {
        let pid = self.task.pid;
        self.task.threads.sort_by_key(|t| (t.tid != pid, t.tid));
        self.task
    }
}

/// Nothing in place of an error that says that the process is gone.
fn if_there<T>(r: stasis_kernel::error::Result<T>) -> Result<Option<T>> {
    match r {
        Ok(v) => Ok(Some(v)),
        Err(e) if e.is_gone() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn late(pid: HostPid) -> Error {
    Error::new(
        "E4005",
        Blame::Container,
        format!("task {} did not stop in time", pid.0),
    )
    .why("it is in an uninterruptible wait of the kernel: for a device, or a file system")
    .advice("try again, or raise --timeout")
}

/// How long a child of vfork() may take to its execve. What is longer is no spawning of a program.
const VFORK_GRACE: Duration = Duration::from_millis(500);

/// Whether a thread waits in vfork(): asleep so that only death wakes it, until its child calls execve or ends.
///
/// KERNEL: wait_for_vfork_done() (kernel/fork.c) sleeps killable: no signal and no ptrace stop gets through, and nobody
/// can read its registers. So it cannot be dumped, only waited for.
fn in_vfork(task: &Task, tid: HostPid) -> bool {
    let look = || {
        let proc = task.proc.task(tid).ok()?;
        if proc.stat().ok()?.state != TaskState::DiskSleep {
            return None;
        }
        let InSyscall::Inside { nr, args, .. } = proc.syscall().ok()? else {
            return None;
        };
        let flags = match nr {
            libc::SYS_vfork => return Some(true),
            libc::SYS_clone => args[0],
            libc::SYS_clone3 => {
                let mut b = [0; 8];
                vm::read(task.pid, RemotePtr(args[0]), &mut b).ok()?;
                u64::from_le_bytes(b)
            }
            _ => return None,
        };
        Some(flags & libc::CLONE_VFORK as u64 != 0)
    };
    look() == Some(true)
}

fn vfork(task: &Task, tid: HostPid) -> Error {
    let children = task.proc.children().unwrap_or_default();
    let children: Vec<String> = children.iter().map(|c| c.0.to_string()).collect();
    Error::new("E4005", Blame::Container, format!("thread {} of task {} cannot be stopped", tid.0, task.pid.0))
        .why(format!(
            "it waits in vfork() for its child (one of {}), which for {} ms has neither called execve nor ended",
            children.join(", "),
            VFORK_GRACE.as_millis()
        ))
        .advice("try again when the child has started its program; a child that never does makes the tree one that cannot be dumped")
}

/// Waits for the stop without ever hanging: a task in an uninterruptible sleep does not answer.
fn stop(t: &Tracee, deadline: Instant, task: &Task) -> Result<Option<Event>> {
    let begun = Instant::now();
    let mut spins = 0u32;
    loop {
        match t.wait(false) {
            Ok(e @ (Event::Interrupted | Event::GroupStop(_))) => return Ok(Some(e)),
            Ok(Event::Signal(s)) => t.cont(s)?,
            Ok(Event::Other(_) | Event::Syscall) => t.cont(0)?,
            Ok(Event::Gone(_)) => return Ok(None),
            Ok(Event::Nothing) => {
                spins += 1;
                if spins > 50 {
                    let now = Instant::now();
                    if now > deadline.min(begun + VFORK_GRACE) && in_vfork(task, HostPid(t.tid)) {
                        return Err(vfork(task, HostPid(t.tid)));
                    }
                    if now > deadline {
                        return Err(late(task.pid));
                    }
                    std::thread::sleep(Duration::from_micros(if spins > 500 { 1000 } else { 20 }));
                } else {
                    std::thread::yield_now();
                }
            }
            Err(e) if matches!(e.errno, Errno::ECHILD | Errno::ESRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Lets every thread go on as it was. Who was stopped is so again before anybody runs who could look at it.
pub fn let_go(tasks: Vec<Task>) -> Result<()> {
    let mut first = Ok(());
    let (stopped, rest): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|t| t.stopped_by.is_some());
    let settling: Vec<_> = stopped.iter().map(|t| t.pid).collect();
    for (tasks, settling) in [(stopped, settling), (rest, Vec::new())] {
        for th in tasks.into_iter().flat_map(|t| t.threads) {
            if let Err(e) = th.tracee.detach(0)
                && first.is_ok()
            {
                first = Err(e.into());
            }
        }
        settling.into_iter().for_each(settled);
    }
    first
}

/// Waits until a detached task with a stop pending has stopped. Not for ever: a SIGCONT may have come from outside.
///
/// KERNEL: a tracee leaves its ptrace stop running, and stops on its way to user mode (`__ptrace_unlink()`).
pub fn settled(pid: HostPid) {
    let deadline = Instant::now() + Duration::from_millis(200);
    let stopped = || {
        ProcDir::open(pid)
            .ok()
            .and_then(|d| d.stat().ok())
            .is_none_or(|s| s.state == TaskState::Stopped || s.state.is_exited())
    };
    while !stopped() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(50));
    }
}
