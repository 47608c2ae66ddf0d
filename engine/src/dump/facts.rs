//! What /proc tells of a stopped task, gathered by a thread of its own while the tracer asks the tasks.
//!
//! ptrace binds a tracee to one thread of the engine, reading /proc does not. Half of a dump's time is /proc, so a second
//! processor takes that half.
use super::pidspaces::{Level, PidSpaces};
use super::snapshot::Snapshot;
use super::task::Task;
use crate::error::{Error, Result};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{Ids, Limit, ProcDir, SmapsEntry, Stat, Status, Timer};
use std::sync::Arc;
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
    /// status of the leader.
    pub leader: Status,
    /// What status tells of each thread, the leader first.
    pub threads: Vec<OfThread>,
    /// Per thread, whether it is in its leader's control groups; empty if nobody wants to know.
    pub in_leaders_groups: Vec<bool>,
    /// Auxiliary vector.
    pub auxv: Vec<(u64, u64)>,
    /// Resource limits: they are told without CAP_SYS_RESOURCE, also for a task of another user.
    pub limits: [Limit; 16],
    /// personality(2).
    pub personality: u32,
    /// Audit login uid.
    pub loginuid: Option<u32>,
    /// -1000..=1000.
    pub oom_score_adj: i32,
    /// Which mappings a core dump holds.
    pub coredump_filter: Option<u32>,
    /// What its seccomp rules do to calls of a tape.
    pub rules: Rules,
}

/// What status tells of one thread, in a few bytes: there may be tens of thousands of them.
#[derive(Clone)]
pub struct OfThread {
    /// Its number in the pid namespace of the tree's first process.
    pub own: u32,
    /// Those it has in namespaces below that.
    pub inner: Box<[u32]>,
    /// Name.
    pub name: Box<[u8]>,
    /// Pending for this thread.
    pub sig_pnd: u64,
    /// Seccomp.
    pub seccomp: Seccomp,
    /// Credentials; most threads have those of the one before.
    pub creds: Arc<Creds>,
}

/// Whether a thread is under seccomp rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seccomp {
    /// 0 none, 1 strict, 2 filter.
    pub mode: u32,
    /// Filters installed, if the kernel tells.
    pub filters: Option<u32>,
}

impl Seccomp {
    /// That of a thread.
    pub fn of(st: &Status) -> Self {
        Self {
            mode: st.seccomp,
            filters: st.seccomp_filters,
        }
    }
}

/// Credentials of a thread, but for its securebits.
#[derive(PartialEq, Eq)]
pub struct Creds {
    /// User ids.
    pub uid: Ids,
    /// Group ids.
    pub gid: Ids,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub caps: [u64; 5],
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

impl OfThread {
    /// All its numbers, from the one it is known by inwards.
    pub fn numbers(&self) -> Vec<u32> {
        std::iter::once(self.own)
            .chain(self.inner.iter().copied())
            .collect()
    }
    /// `before`: the thread before it.
    pub fn of(st: &Status, before: Option<&Self>, level: Level) -> Self {
        let numbers = PidSpaces::numbers(level, st);
        let creds = Creds {
            uid: st.uid,
            gid: st.gid,
            groups: st.groups.clone(),
            caps: [st.cap_inh, st.cap_prm, st.cap_eff, st.cap_bnd, st.cap_amb],
            no_new_privs: st.no_new_privs,
        };
        Self {
            own: numbers[0],
            inner: numbers[1..].into(),
            name: st.name.clone().into(),
            sig_pnd: st.sig_pnd,
            seccomp: Seccomp::of(st),
            creds: match before {
                Some(b) if *b.creds == creds => b.creds.clone(),
                _ => creds.into(),
            },
        }
    }
}

/// How a task's own seccomp rules meet the calls that it plays.
#[derive(Clone, Default)]
pub struct Rules {
    /// They judge them: the kernel did not let the engine suspend them.
    pub judge: bool,
    /// The only filter, as the caller knows it, for an engine that may not read it.
    pub given: Option<Arc<[u8]>>,
}

/// How many tasks the reader may be ahead: bounds the memory.
const AHEAD: usize = 32;

fn gather(
    pid: HostPid,
    leader: Status,
    others: &[HostPid],
    (snapshot, groups, level): (Option<&Snapshot>, bool, Level),
) -> Result<Facts> {
    let proc = ProcDir::open(pid)?;
    let mut threads = Vec::with_capacity(others.len() + 1);
    threads.push(OfThread::of(&leader, None, level));
    for tid in others {
        let st = proc.task_status(*tid)?;
        threads.push(OfThread::of(&st, threads.last(), level));
    }
    let known = match snapshot {
        Some(s) => s.mappings(pid)?,
        None => None,
    };
    let mut in_leaders_groups = Vec::new();
    if groups && !others.is_empty() {
        let leaders = proc.bytes("cgroup")?;
        in_leaders_groups.push(true);
        for tid in others {
            in_leaders_groups.push(proc.bytes(&format!("task/{}/cgroup", tid.0))? == leaders);
        }
    }
    Ok(Facts {
        smaps: match known {
            Some(m) => m,
            None => proc.smaps()?,
        },
        stat: proc.stat()?,
        timers: proc.timers()?,
        namespaces: proc.ns_links()?,
        leader,
        threads,
        in_leaders_groups,
        auxv: proc.auxv()?,
        limits: proc.limits()?,
        personality: proc.personality()?,
        loginuid: proc.loginuid().ok().map(|l| l.unwrap_or(u32::MAX)),
        oom_score_adj: proc.oom_score_adj()?,
        coredump_filter: proc.coredump_filter().ok().flatten(),
        rules: Rules::default(),
    })
}

/// Starts to gather facts of all live tasks, in their order. `status` is that of their leaders; `snapshot` may know their
/// mappings; `groups`: the control groups of threads are looked at too.
///
/// # Errors
/// Through the channel, in place of the facts: what could not be read.
pub fn gather_all<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    held: &[Task],
    status: &[Status],
    snapshot: Option<&'s Snapshot>,
    groups: bool,
) -> Receiver<Result<Facts>> {
    let all: Vec<(HostPid, Status, Vec<HostPid>)> = held
        .iter()
        .zip(status)
        .filter(|(t, _)| t.zombie.is_none())
        .map(|(t, st)| {
            let others = t.threads.iter().skip(1).map(|th| th.tid);
            (t.pid, st.clone(), others.collect())
        })
        .collect();
    let level = status.first().map(Level::of).unwrap_or_default();
    let (to, from) = sync_channel(AHEAD);
    scope.spawn(move || {
        for (pid, leader, others) in all {
            let facts = gather(pid, leader, &others, (snapshot, groups, level))
                .map_err(|e: Error| e.on(format!("task {}", pid.0)));
            // the dump has ended early: nobody listens
            if to.send(facts).is_err() {
                return;
            }
        }
    });
    from
}
