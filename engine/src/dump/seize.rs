//! Stopping a tree that forks, exits and runs while we look.
//!
//! Every thread is seized and interrupted; a process is closed when a listing of its threads shows none we do not hold;
//! the tree is closed when a pass over all children finds none we do not hold. Stopped threads cannot fork, so this ends.
use super::task::{Task, Thread};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::procfs::{InSyscall, ProcDir, TaskState};
use stasis_kernel::ptrace::{Event, TRACESYSGOOD, Tracee};
use stasis_kernel::vm;
use std::time::{Duration, Instant};

/// Stops the tree under `root`, parents before children. On error everything seized so far is let go by the end of the
/// calling thread, and what is in `held` by the caller with [`let_go`].
pub fn tree(root: HostPid, options: usize, deadline: Instant, held: &mut Vec<Task>) -> Result<()> {
    let at = process(root, None, options, deadline)?;
    held.push(at.ok_or_else(|| no_such(root))?);
    loop {
        let before = held.len();
        let mut i = 0;
        while i < held.len() {
            let (pid, children) = (
                held[i].pid,
                held[i].proc.children().map_err(|e| parse(e, held[i].pid))?,
            );
            for c in children {
                if held.iter().any(|t| t.pid == c) {
                    continue;
                }
                if let Some(t) = process(c, Some(pid), options, deadline)? {
                    held.push(t);
                }
            }
            i += 1;
        }
        if held.len() == before {
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

/// Stops one process; `None` if it is gone before it could be seized (and is nobody's zombie).
fn process(
    pid: HostPid,
    parent: Option<HostPid>,
    options: usize,
    deadline: Instant,
) -> Result<Option<Task>> {
    let proc = match ProcDir::open(pid) {
        Ok(p) => p,
        Err(e) if e.is_gone() => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut task = Task::new(pid, parent, proc);
    loop {
        let stat = match task.proc.stat() {
            Ok(s) => s,
            Err(e) if e.is_gone() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if stat.is_kernel_thread() {
            return Err(Error::new(
                "E4002",
                Blame::Container,
                format!("task {} is a kernel thread", pid.0),
            )
            .advice("name a process"));
        }
        let tids = match task.proc.tasks() {
            Ok(t) => t,
            Err(e) if e.is_gone() => Vec::new(),
            Err(e) => return Err(e.into()),
        };
        if stat.state.is_exited() && task.threads.is_empty() {
            if tids.len() > 1 {
                return Err(Error::new("E4003", Blame::Container, format!("task {}", pid.0))
                    .why("its main thread has exited while others run")
                    .advice("this state cannot be rebuilt from outside; let the main thread wait for the others"));
            }
            task.zombie = Some(stat.exit_code);
            return Ok(Some(task));
        }
        let mut new = Vec::new();
        for tid in tids {
            if task.threads.iter().any(|t| t.tid == tid) {
                continue;
            }
            match Tracee::seize(tid.0, options | TRACESYSGOOD) {
                Ok(t) => {
                    t.interrupt().or_else(|e| {
                        if e.errno == Errno::ESRCH {
                            Ok(())
                        } else {
                            Err(e)
                        }
                    })?;
                    new.push((tid, t));
                }
                Err(e) if e.errno == Errno::ESRCH => {}
                Err(e) if e.errno == Errno::EPERM => {
                    // a zombie cannot be seized either; the next pass sees it
                    let tracer = task.proc.status().map(|s| s.tracer.0).unwrap_or(0);
                    if tracer != 0 {
                        return Err(Error::new(
                            "E4004",
                            Blame::Container,
                            format!("task {} is traced by process {tracer}", pid.0),
                        )
                        .why("a task has one tracer at most")
                        .advice("end the debugger or strace first"));
                    }
                    if task.proc.stat().is_ok_and(|s| s.state.is_exited()) {
                        continue;
                    }
                    return Err(Error::from(e).on(format!("task {}", pid.0)));
                }
                Err(e) => return Err(e.into()),
            }
        }
        if new.is_empty() {
            if task.threads.is_empty() {
                // all threads went away between the listing and the seizing
                if Instant::now() > deadline {
                    return Err(late(pid));
                }
                continue;
            }
            task.threads.sort_by_key(|t| (t.tid != pid, t.tid));
            return Ok(Some(task));
        }
        for (tid, t) in new {
            match stop(&t, deadline, &task)? {
                Some(Event::GroupStop(sig)) => {
                    task.stopped_by.get_or_insert(sig);
                    task.threads.push(Thread::new(tid, t));
                }
                Some(_) => task.threads.push(Thread::new(tid, t)),
                None => {}
            }
        }
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
