//! What /proc tells of a stopped task, gathered by a thread of its own while the tracer asks the tasks.
//!
//! ptrace binds a tracee to one thread of the engine, reading /proc does not. Half of a dump's time is /proc, so a second
//! processor takes that half.
use super::task::Task;
use crate::error::{Error, Result};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{ProcDir, SmapsEntry, Stat, Status, Timer};
use std::sync::mpsc::{Receiver, sync_channel};

/// Facts of one live process.
pub struct Facts {
    /// Mappings.
    pub smaps: Vec<SmapsEntry>,
    /// stat of the leader.
    pub stat: Stat,
    /// POSIX timers.
    pub timers: Vec<Timer>,
    /// Inode numbers of its namespaces, by name.
    pub namespaces: Vec<(&'static str, u64)>,
    /// Of each thread, the leader first: status and timer slack.
    pub threads: Vec<(Status, Option<u64>)>,
}

/// How many tasks the reader may be ahead: bounds the memory.
const AHEAD: usize = 32;

fn gather(pid: HostPid, tids: &[HostPid]) -> Result<Facts> {
    let proc = ProcDir::open(pid)?;
    let slack = |tid: HostPid| ProcDir::open(tid).ok()?.timerslack_ns().ok();
    let threads = tids
        .iter()
        .map(|tid| Ok((proc.task_status(*tid)?, slack(*tid))))
        .collect::<Result<_>>()?;
    Ok(Facts {
        smaps: proc.smaps()?,
        stat: proc.stat()?,
        timers: proc.timers()?,
        namespaces: proc.ns_links()?,
        threads,
    })
}

/// Starts to gather facts of all live tasks, in their order.
///
/// # Errors
/// Through the channel, in place of the facts: what could not be read.
pub fn gather_all<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    held: &[Task],
) -> Receiver<Result<Facts>> {
    let all: Vec<(HostPid, Vec<HostPid>)> = held
        .iter()
        .filter(|t| t.zombie.is_none())
        .map(|t| (t.pid, t.threads.iter().map(|th| th.tid).collect()))
        .collect();
    let (to, from) = sync_channel(AHEAD);
    scope.spawn(move || {
        for (pid, tids) in all {
            let facts = gather(pid, &tids).map_err(|e: Error| e.on(format!("task {}", pid.0)));
            // the dump has ended early: nobody listens
            if to.send(facts).is_err() {
                return;
            }
        }
    });
    from
}
