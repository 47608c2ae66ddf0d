//! Signals, timers, limits, scheduling, registrations: what a task does once and the kernel remembers.
use super::images::TaskImages;
use super::plan::comm;
use super::spaces::Spaces;
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::names;
use stasis_proto::pb;
use std::fmt;

/// What the engine sets from outside, by thread or process.
#[derive(Debug, Clone, PartialEq)]
pub enum Outside {
    /// A file of /proc/PID (or of a thread's folder) is written.
    Proc {
        /// Thread as it sees itself.
        tid: u32,
        /// Name in its folder.
        file: &'static str,
        /// Text.
        text: String,
        /// Whether failing is only worth a warning (needs CAP_SYS_RESOURCE and the like).
        optional: bool,
    },
    /// sched_setattr(2): 48 bytes.
    Sched(u32, Vec<u8>),
    /// setpriority(2).
    Nice(u32, i32),
    /// sched_setaffinity(2).
    Affinity(u32, Vec<u8>),
    /// ioprio_set(2).
    Ioprio(u32, u32),
    /// prlimit(2): process, resource, soft, hard.
    Rlimit(u32, u32, u64, u64),
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outside::Proc {
                tid, file, text, ..
            } => write!(f, "/proc/{tid}/{file} = {text}"),
            Outside::Sched(tid, b) => write!(
                f,
                "sched_setattr({tid}, policy {}, nice {})",
                b[4],
                i32::from_le_bytes([b[16], b[17], b[18], b[19]])
            ),
            Outside::Nice(tid, n) => write!(f, "setpriority({tid}, {n})"),
            Outside::Affinity(tid, m) => write!(f, "sched_setaffinity({tid}, {m:x?})"),
            Outside::Ioprio(tid, p) => write!(f, "ioprio_set({tid}, {p:#x})"),
            Outside::Rlimit(pid, r, s, h) => write!(
                f,
                "prlimit({pid}, {}, {s}, {h})",
                names::rlimit(u64::from(*r))
            ),
        }
    }
}

fn prctl(op: u64, name: &'static str, args: &[u64]) -> Call {
    let mut a = vec![Arg::Named(op, name.into())];
    a.extend(args.iter().map(|v| Arg::Int(*v)));
    Call::new(libc::SYS_prctl, a)
}

fn words(w: &[u64]) -> Vec<u8> {
    w.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn signal(n: u64) -> Arg {
    Arg::Named(n, names::signal(n as i32))
}

/// What a thread does, and what is done to it.
#[derive(Debug, Default)]
pub struct Habits {
    /// Signals, limits, registrations; of a leader, its process's too.
    pub rows: Vec<Call>,
    /// Rows of a leader that come after all habits: they arm timers, or would hinder what follows.
    pub arm: Vec<Call>,
    /// What the engine sets from outside.
    pub outside: Vec<Outside>,
}

/// Those of a thread, by its index in the task. `own_hands`: no earlier task shares its signal actions; `by_id`: the kernel takes
/// timers' numbers.
pub fn plan(
    t: &TaskImages,
    spaces: &Spaces,
    (k, core): (usize, &pb::CoreEntry),
    own_hands: bool,
    by_id: bool,
) -> Result<Habits> {
    let mut h = Habits::default();
    if k == 0 {
        process(t, spaces, own_hands, by_id, &mut h)?;
    }
    thread(t, spaces, t.threads[k].tid, core, &mut h)?;
    Ok(h)
}

fn process(
    t: &TaskImages,
    spaces: &Spaces,
    own_hands: bool,
    by_id: bool,
    h: &mut Habits,
) -> Result<()> {
    let own_pid = spaces.name(t.entry.pid).own();
    let rows = &mut h.rows;
    if own_hands {
        actions(&t.tc, rows)?;
    }
    if t.tc.child_subreaper == Some(true) {
        rows.push(prctl(36, "PR_SET_CHILD_SUBREAPER", &[1, 0, 0, 0]));
    }
    if t.tc.personality != 0 {
        rows.push(Call::new(
            libc::SYS_personality,
            vec![Arg::Hex(u64::from(t.tc.personality))],
        ));
    }
    if t.mm.as_ref().is_some_and(|m| m.thp_disabled == Some(true)) {
        rows.push(prctl(41, "PR_SET_THP_DISABLE", &[1, 0, 0, 0]));
    }
    membarrier(t.tc.membarrier_registration_mask.unwrap_or(0), rows);
    if let Some(s) = &t.tc.stasis {
        own(s, t.entry.pid, h);
    }
    timers(t, spaces, &mut h.rows, &mut h.arm, by_id)?;
    queue(
        t.tc.signals_s.as_ref(),
        |info| {
            Call::new(
                libc::SYS_rt_sigqueueinfo,
                vec![
                    Arg::Int(u64::from(own_pid)),
                    signal(number(info)),
                    Arg::In(info.to_vec()),
                ],
            )
        },
        &mut h.rows,
    )
}

/// What the engine sets of a process when all its threads have what is theirs.
pub fn of_process(t: &TaskImages) -> Vec<Outside> {
    let limits = t.tc.rlimits.iter().flat_map(|r| &r.rlimits).enumerate();
    let limits = limits.map(|(r, l)| Outside::Rlimit(t.entry.pid, r as u32, l.cur, l.max));
    let proc = |file, text: String| Outside::Proc {
        tid: t.entry.pid,
        file,
        text,
        optional: true,
    };
    let oom =
        t.tc.oom_score_adj
            .map(|a| proc("oom_score_adj", a.to_string()));
    let login = t.tc.loginuid.filter(|l| *l != u32::MAX);
    let login = login.map(|l| proc("loginuid", l.to_string()));
    limits.chain(oom).chain(login).collect()
}

fn actions(tc: &pb::TaskCoreEntry, rows: &mut Vec<Call>) -> Result<()> {
    let mut at = tc.sigactions.iter();
    for s in (1..=64u64).filter(|s| !matches!(*s as i32, libc::SIGKILL | libc::SIGSTOP)) {
        let a = match at.next() {
            Some(a) => a,
            None if tc.sigactions.is_empty() => return Ok(()),
            None => {
                return Err(Error::new("E5008", Blame::Image, "signal actions")
                    .why("there are fewer than 62")
                    .advice("dump again"));
            }
        };
        let act = |w: &[u64]| {
            Call::new(
                libc::SYS_rt_sigaction,
                vec![signal(s), Arg::In(words(w)), Arg::Null, Arg::Int(8)],
            )
        };
        if s == libc::SIGCHLD as u64 {
            // KERNEL: ignoring a signal throws pending ones away: those of zombies and helpers of the restore
            rows.push(act(&[1, 0, 0, 0]));
        }
        let words = [a.sigaction, a.flags, a.restorer, a.mask];
        // stubs are born with that
        if words != [0; 4] || s == libc::SIGCHLD as u64 {
            rows.push(act(&words));
        }
    }
    Ok(())
}

/// Registers again what MEMBARRIER_CMD_GET_REGISTRATIONS told.
fn membarrier(mask: u32, rows: &mut Vec<Call>) {
    for bit in (0..32).filter(|b| mask & 1 << b != 0) {
        // KERNEL: the mask has the command that uses a registration's bit, the registration's own is the command to repeat
        rows.push(
            Call::new(
                libc::SYS_membarrier,
                vec![Arg::Hex(1 << bit), Arg::Int(0), Arg::Int(0)],
            )
            .any(),
        );
    }
}

fn own(s: &pb::StasisTaskEntry, pid: u32, h: &mut Habits) {
    let rows = &mut h.rows;
    if let Some(m) = s.mce_kill.filter(|m| *m != 2) {
        rows.push(prctl(33, "PR_MCE_KILL", &[1, u64::from(m), 0, 0]));
    }
    if s.memory_merge == Some(1) {
        rows.push(prctl(67, "PR_SET_MEMORY_MERGE", &[1, 0, 0, 0]));
    }
    if s.io_flusher == Some(1) {
        rows.push(prctl(57, "PR_SET_IO_FLUSHER", &[1, 0, 0, 0]).any());
    }
    if let Some(c) = s.coredump_filter {
        h.outside.push(Outside::Proc {
            tid: pid,
            file: "coredump_filter",
            text: format!("{c:#x}"),
            optional: true,
        });
    }
    // the last two would hinder what follows
    if s.mdwe.is_some_and(|m| m != 0) {
        h.arm.push(prctl(
            65,
            "PR_SET_MDWE",
            &[u64::from(s.mdwe.unwrap_or(0)), 0, 0, 0],
        ));
    }
    if s.tsc == Some(2) {
        h.arm.push(prctl(26, "PR_SET_TSC", &[2, 0, 0, 0]));
    }
}

fn timers(
    t: &TaskImages,
    spaces: &Spaces,
    rows: &mut Vec<Call>,
    arm: &mut Vec<Call>,
    by_id: bool,
) -> Result<()> {
    let Some(timers) = &t.tc.timers else {
        return Ok(());
    };
    for (which, i) in [(0, &timers.real), (1, &timers.virt), (2, &timers.prof)] {
        let w = [i.isec, i.iusec, i.vsec, i.vusec];
        if w[2] != 0 || w[3] != 0 {
            arm.push(Call::new(
                libc::SYS_setitimer,
                vec![Arg::Int(which), Arg::In(words(&w)), Arg::Null],
            ));
        }
    }
    if timers.posix.is_empty() {
        return Ok(());
    }
    // KERNEL(>=6.13): timer_create takes the wanted id; older kernels count up from 0 in every new process
    if by_id {
        rows.push(prctl(77, "PR_TIMER_CREATE_RESTORE_IDS", &[1, 0, 0, 0]));
    }
    let mut all: Vec<_> = timers.posix.iter().collect();
    all.sort_by_key(|x| x.it_id);
    let mut next = 0;
    for x in all {
        if !by_id {
            if x.it_id.saturating_sub(next) > MOST_SKIPPED {
                return Err(Error::new("E3104", Blame::Kernel, format!("POSIX timer {}", x.it_id))
                    .why("this kernel gives timers the next free number, and that one is far away")
                    .advice("restore on Linux 6.13 or newer"));
            }
            (next..x.it_id).for_each(|id| skip(id, rows));
            next = x.it_id + 1;
        }
        // struct sigevent: value, signo, notify, thread id; 64 bytes
        let mut ev = x.sival_ptr.to_le_bytes().to_vec();
        ev.extend_from_slice(&x.si_signo.to_le_bytes());
        ev.extend_from_slice(&x.it_sigev_notify.to_le_bytes());
        let thread = x.notify_thread_id.and_then(|tid| u32::try_from(tid).ok());
        let thread = thread.map_or(0, |tid| spaces.name(tid).own());
        ev.extend_from_slice(&thread.to_le_bytes());
        ev.resize(64, 0);
        let id = x.it_id.to_le_bytes().to_vec();
        rows.push(Call::new(
            libc::SYS_timer_create,
            vec![
                Arg::Named(u64::from(x.clock_id), names::clock(x.clock_id as i32)),
                Arg::In(ev),
                Arg::InOut(id),
            ],
        ));
        let w = [x.isec, x.insec, x.vsec, x.vnsec];
        if w[2] != 0 || w[3] != 0 {
            arm.push(Call::new(
                libc::SYS_timer_settime,
                vec![
                    Arg::Int(u64::from(x.it_id)),
                    Arg::Int(0),
                    Arg::In(words(&w)),
                    Arg::Null,
                ],
            ));
        }
    }
    if by_id {
        rows.push(prctl(77, "PR_TIMER_CREATE_RESTORE_IDS", &[0, 0, 0, 0]));
    }
    Ok(())
}

/// Timers made and deleted on the way to a wanted number, at most.
const MOST_SKIPPED: u32 = 100_000;

/// Uses up a timer number: SIGEV_NONE on CLOCK_MONOTONIC.
fn skip(id: u32, rows: &mut Vec<Call>) {
    const SIGEV_NONE: u32 = 1;
    let mut ev = vec![0u8; 64];
    ev[12..16].copy_from_slice(&SIGEV_NONE.to_le_bytes());
    let clock = Arg::Named(libc::CLOCK_MONOTONIC as u64, "CLOCK_MONOTONIC".into());
    let args = vec![clock, Arg::In(ev), Arg::InOut(vec![0; 4])];
    rows.push(Call::new(libc::SYS_timer_create, args));
    rows.push(Call::new(
        libc::SYS_timer_delete,
        vec![Arg::Int(u64::from(id))],
    ));
}

fn number(info: &[u8]) -> u64 {
    u64::from(u32::from_le_bytes(
        info[..4].try_into().expect("checked by queue"),
    ))
}

fn queue(
    q: Option<&pb::SignalQueueEntry>,
    row: impl Fn(&[u8]) -> Call,
    rows: &mut Vec<Call>,
) -> Result<()> {
    for s in q.iter().flat_map(|q| &q.signals) {
        if s.siginfo.len() != 128 || !(1..=64).contains(&number(&s.siginfo)) {
            return Err(Error::new("E5009", Blame::Image, "a pending signal")
                .why("it is not a siginfo of 128 bytes with a signal number")
                .advice("dump again"));
        }
        rows.push(row(&s.siginfo));
    }
    Ok(())
}

fn thread(
    t: &TaskImages,
    spaces: &Spaces,
    tid: u32,
    core: &pb::CoreEntry,
    h: &mut Habits,
) -> Result<()> {
    let own = |key: u32| u64::from(spaces.name(key).own());
    let (rows, outside) = (&mut h.rows, &mut h.outside);
    let (Some(info), Some(tc)) = (&core.thread_info, &core.thread_core) else {
        return Err(Error::bug("a thread without registers passed the checks"));
    };
    rows.push(comm(tc.comm.as_deref().unwrap_or(&t.tc.comm)));
    rows.push(
        Call::new(
            libc::SYS_set_tid_address,
            vec![Arg::Hex(info.clear_tid_addr)],
        )
        .must_be(own(tid)),
    );
    if tc.futex_rla_len != 0 {
        rows.push(Call::new(
            libc::SYS_set_robust_list,
            vec![
                Arg::Hex(tc.futex_rla),
                Arg::Int(u64::from(tc.futex_rla_len)),
            ],
        ));
    }
    if let Some(s) = &tc.sas {
        let b: Vec<u8> = words(&[s.ss_sp, u64::from(s.ss_flags & !1), s.ss_size]);
        rows.push(Call::new(
            libc::SYS_sigaltstack,
            vec![Arg::In(b), Arg::Null],
        ));
    }
    if let Some(r) = tc.rseq_entry.as_ref().filter(|r| r.rseq_abi_pointer != 0) {
        rows.push(Call::new(
            libc::SYS_rseq,
            vec![
                Arg::Hex(r.rseq_abi_pointer),
                Arg::Int(u64::from(r.rseq_abi_size)),
                Arg::Int(0),
                Arg::Hex(u64::from(r.signature)),
            ],
        ));
    }
    queue(
        tc.signals_p.as_ref(),
        |i| {
            Call::new(
                libc::SYS_rt_tgsigqueueinfo,
                vec![
                    Arg::Int(own(t.entry.pid)),
                    Arg::Int(own(tid)),
                    signal(number(i)),
                    Arg::In(i.to_vec()),
                ],
            )
        },
        rows,
    )?;
    let x = tc.stasis.as_ref();
    let policy = tc.sched_policy.unwrap_or(0);
    let deadline = x.map_or([0; 3], |x| {
        [
            x.sched_runtime.unwrap_or(0),
            x.sched_deadline.unwrap_or(0),
            x.sched_period.unwrap_or(0),
        ]
    });
    let attr = stasis_kernel::sched::Attr::bytes(
        policy,
        x.and_then(|x| x.sched_flags).unwrap_or(0),
        tc.sched_nice.unwrap_or(0),
        tc.sched_prio.unwrap_or(0),
        deadline,
    );
    // a real-time policy has no nice value in the structure, but the thread keeps one
    outside.push(Outside::Nice(tid, tc.sched_nice.unwrap_or(0)));
    outside.push(Outside::Sched(tid, attr));
    if let Some(x) = x {
        if let Some(a) = &x.affinity {
            outside.push(Outside::Affinity(tid, a.clone()));
        }
        if let Some(i) = x.ioprio {
            outside.push(Outside::Ioprio(tid, i));
        }
        if let Some(n) = x.timerslack_ns {
            rows.push(prctl(29, "PR_SET_TIMERSLACK", &[n]));
        }
    }
    Ok(())
}
