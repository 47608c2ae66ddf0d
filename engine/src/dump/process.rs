//! What a process is: credentials, signals, timers, limits, mm fields. Half of it is told from outside, half by a tape. Long because
//! a tape and the reading of its answers must be seen side by side.
use super::facts::{Facts, Rules, Seccomp};
use super::task::Task;
use super::thread::Told;
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call, Part};
use stasis_kernel::excursion::{self, Answers, Away, DeadStack, Excursion, Gadgets};
use stasis_kernel::flight::{self, Flight};
use stasis_kernel::ids::{HostPid, RemoteFd, RemotePtr};
use stasis_kernel::procfs::{MapName, MapsLine, Status, Timer, TimerNotify};
use stasis_kernel::{fds, uffd, vm};
use stasis_proto::pb;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// How many XSAVE areas of flying threads are held, 11 KiB each.
const READ_AHEAD: usize = 64;

/// Signals 1 to 64.
pub const NSIG: i32 = 64;

/// What the tapes of a process told.
pub struct Asked {
    /// sigaction of signals 1 to 64: handler, flags, restorer, mask. SIGKILL and SIGSTOP are zero.
    pub actions: Vec<[u64; 4]>,
    /// getitimer: real, virtual, profiling: interval s, us, value s, us.
    pub itimers: Vec<[u64; 4]>,
    /// timer_gettime and timer_getoverrun of each POSIX timer: interval s, ns, value s, ns.
    pub timers: Vec<([u64; 4], u32)>,
    /// brk(0).
    pub brk: u64,
    /// PR_GET_DUMPABLE.
    pub dumpable: i32,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS), 0 if the kernel does not tell.
    pub membarrier: u32,
    /// The extension's fields.
    pub habits: pb::StasisTaskEntry,
    /// What only its leader could tell of itself.
    pub leader: Told,
    /// The leader's XSAVE area.
    pub xstate: Arc<[u8]>,
}

/// Takes what a thread other than the leader told: its index in [`Task::threads`], the answers, its XSAVE area.
pub type Listener<'l> = dyn FnMut(usize, Told, &[u8]) -> Result<()> + 'l;

/// Instruction sequences of files already searched, by (device, inode, offset of the mapping).
#[derive(Default)]
pub struct GadgetCache(BTreeMap<((u32, u32), u64, u64), Gadgets>);

impl GadgetCache {
    /// Finds sequences in the text of a process.
    pub fn find(&mut self, pid: HostPid, maps: &[MapsLine]) -> Gadgets {
        let mut g = Gadgets::default();
        let text = maps.iter().filter(|m| {
            m.prot & libc::PROT_EXEC as u32 != 0 && m.prot & libc::PROT_READ as u32 != 0
        });
        // the C library is likelier than the program to have both; files are searched once
        let mut text: Vec<_> = text.filter(|m| m.name() != MapName::Vsyscall).collect();
        text.sort_by_key(|m| {
            (
                !m.path.windows(4).any(|w| w == b"libc" || w == b"ld-m"),
                m.ino == 0,
            )
        });
        for m in text {
            let found = self.in_mapping(pid, m);
            if g.call_ret == 0 {
                g.call_ret = found.call_ret;
            }
            if g.sigreturn == 0 {
                g.sigreturn = found.sigreturn;
            }
            if g.store == 0 {
                g.store = found.store;
            }
            if g.complete() {
                break;
            }
        }
        g
    }
    fn in_mapping(&mut self, pid: HostPid, m: &MapsLine) -> Gadgets {
        let key = (m.dev, m.ino, m.offset);
        let moved = |a: u64, by: u64| if a == 0 { 0 } else { a.wrapping_add(by) };
        let shift = |g: Gadgets, by: u64| Gadgets {
            call_ret: moved(g.call_ret, by),
            sigreturn: moved(g.sigreturn, by),
            store: moved(g.store, by),
        };
        if m.ino != 0
            && let Some(g) = self.0.get(&key)
        {
            let g = shift(*g, m.start);
            // a private mapping may have been written to
            if g.verify(pid.0) {
                return g;
            }
        }
        let mut g = Gadgets::default();
        let mut at = m.start;
        let mut buf = vec![0u8; 256 * 1024];
        while at < m.end && !g.complete() {
            let n = buf.len().min((m.end - at) as usize);
            if vm::read(pid, RemotePtr(at), &mut buf[..n]).is_err() {
                break;
            }
            g.search(at, &buf[..n]);
            // sequences that straddle two pieces are found from 16 bytes before
            at += if n == buf.len() {
                n as u64 - 16
            } else {
                n as u64
            };
        }
        if m.ino != 0 {
            self.0.insert(key, shift(g, m.start.wrapping_neg()));
        }
        g
    }
}

/// The tape of a whole process: what any one of its threads can ask for all. `timers` are those of /proc/PID/timers.
pub fn tape(timers: &[Timer]) -> Vec<Call> {
    let prctl = |op: u64, name: &'static str, rest: Vec<Arg>| {
        let mut a = vec![Arg::Named(op, name.into())];
        a.extend(rest);
        Call::new(libc::SYS_prctl, a).any()
    };
    let mut t = Vec::new();
    for s in 1..=NSIG {
        let sig = Arg::Named(s as u64, stasis_kernel::names::signal(s));
        // SIGKILL and SIGSTOP may be asked too: their action is always the default
        t.push(Call::new(
            libc::SYS_rt_sigaction,
            vec![sig, Arg::Null, Arg::Out(32), Arg::Int(8)],
        ));
    }
    for which in 0..3 {
        t.push(Call::new(
            libc::SYS_getitimer,
            vec![Arg::Int(which), Arg::Out(32)],
        ));
    }
    for x in timers {
        t.push(Call::new(
            libc::SYS_timer_gettime,
            vec![Arg::Int(x.id as u64), Arg::Out(32)],
        ));
    }
    t.push(prctl(37, "PR_GET_CHILD_SUBREAPER", vec![Arg::Out(4)]));
    t.push(prctl(25, "PR_GET_TSC", vec![Arg::Out(4)]));
    for x in timers {
        t.push(Call::new(libc::SYS_timer_getoverrun, vec![Arg::Int(x.id as u64)]).any());
    }
    t.push(Call::new(libc::SYS_brk, vec![Arg::Int(0)]));
    t.push(prctl(3, "PR_GET_DUMPABLE", vec![]));
    t.push(prctl(66, "PR_GET_MDWE", vec![Arg::Int(0); 4]));
    t.push(prctl(58, "PR_GET_IO_FLUSHER", vec![Arg::Int(0); 4]));
    t.push(prctl(34, "PR_MCE_KILL_GET", vec![Arg::Int(0); 4]));
    t.push(prctl(68, "PR_GET_MEMORY_MERGE", vec![Arg::Int(0); 4]));
    t.push(
        Call::new(
            libc::SYS_membarrier,
            vec![
                Arg::Named(512, "MEMBARRIER_CMD_GET_REGISTRATIONS".into()),
                Arg::Int(0),
                Arg::Int(0),
            ],
        )
        .any(),
    );
    t
}

/// The tape of one thread.
pub fn thread_tape() -> Vec<Call> {
    vec![
        Call::new(libc::SYS_sigaltstack, vec![Arg::Null, Arg::Out(24)]),
        Call::new(
            libc::SYS_prctl,
            vec![Arg::Named(40, "PR_GET_TID_ADDRESS".into()), Arg::Out(8)],
        )
        .any(),
        Call::new(
            libc::SYS_prctl,
            vec![Arg::Named(2, "PR_GET_PDEATHSIG".into()), Arg::Out(4)],
        ),
        Call::new(
            libc::SYS_prctl,
            vec![Arg::Named(27, "PR_GET_SECUREBITS".into())],
        ),
        // /proc/TID/timerslack_ns tells the same, ten times as slowly
        Call::new(
            libc::SYS_prctl,
            vec![Arg::Named(30, "PR_GET_TIMERSLACK".into())],
        )
        .any(),
        // KERNEL: it gives the old setting, and -1 changes nothing (security/keys/keyctl.c)
        Call::new(
            libc::SYS_keyctl,
            vec![
                Arg::Named(14, "KEYCTL_SET_REQKEY_KEYRING".into()),
                Arg::Named(u32::MAX.into(), "KEY_REQKEY_DEFL_NO_CHANGE".into()),
            ],
        )
        .any(),
    ]
}

fn told(a: &Answers, from: usize) -> Told {
    let s = a.words(from, 1);
    Told {
        sas: (s[0], s[1] as u32 & !1, s[2]),
        clear_tid: a.words(from + 1, 1)[0],
        pdeath_sig: u32::from_le_bytes(a.out(from + 2, 1).try_into().expect("four bytes")),
        secbits: a.ret(from + 3) as u32,
        slack: (!stasis_kernel::call::is_errno(a.ret(from + 4))).then(|| a.ret(from + 4)),
        reqkey: (!stasis_kernel::call::is_errno(a.ret(from + 5))).then(|| a.ret(from + 5) as u32),
    }
}

/// Tapes that are the same for most tasks.
pub struct Tapes {
    /// Of a process without POSIX timers, with its leader's own rows at the end.
    whole: Rc<[Call]>,
    /// Of a thread.
    own: Rc<[Call]>,
}

impl Tapes {
    /// Writes them.
    pub fn new() -> Self {
        Self {
            whole: whole(&[]).into(),
            own: thread_tape().into(),
        }
    }
}

fn whole(timers: &[Timer]) -> Vec<Call> {
    let mut t = tape(timers);
    t.extend(thread_tape());
    t
}

/// Has a stopped task make a userfaultfd, fetches it, and has the task close it again; `None` if the task may not.
///
/// With `device`, an open /dev/userfaultfd, it is one that also serves faults of system calls, which a task without
/// CAP_SYS_PTRACE cannot make by itself: the device is lent to it for the call.
///
/// Descriptors are in the task only while it is stopped. An engine lost meanwhile leaves a task that closes them by itself;
/// only a thread whose seccomp rules forbid the calls is left with idle descriptors then.
pub fn userfaultfd(
    task: &Task,
    leader: (&Status, &Rules),
    maps: &[MapsLine],
    cache: &mut GadgetCache,
    device: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>> {
    let mut gadgets = cache.find(task.pid, maps);
    let mut planted = None;
    if !gadgets.enough() || !gadgets.verify(task.pid.0) {
        let (mem, at) = padding(task, maps)?;
        gadgets = Gadgets::plant(&mem, at)?;
        planted = Some((mem, at));
    }
    let taken: std::collections::BTreeSet<i32> =
        task.proc.fds()?.into_iter().map(|fd| fd.0).collect();
    // KERNEL: a new descriptor gets the lowest free number
    let free: Vec<i32> = (0..).filter(|n| !taken.contains(n)).take(4).collect();
    let r = match device {
        None => own_userfaultfd(task, leader, maps, gadgets, free[0]),
        Some(d) => lent_userfaultfd(task, leader, maps, gadgets, &free, d),
    };
    if let Some((mem, at)) = planted {
        Gadgets::unplant(&mem, at)?;
    }
    r
}

/// The leader plays `before`, is looked at, and plays `after`.
fn around<R>(
    task: &Task,
    leader: (&Status, &Rules),
    maps: &[MapsLine],
    gadgets: Gadgets,
    (before, after): (&[Call], &[Call]),
    during: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let dead = dead_stack(task, maps)?;
    let (end, quiet) = end_signal(leader.0);
    let tape: Vec<Call> = before.iter().chain(after).cloned().collect();
    let th = task.leader();
    let away = Away {
        regs: th.regs,
        mask: th.mask,
        xstate: th.tracee.xstate()?.into(),
        gadgets,
        end_signal: end,
        end_is_silent: quiet,
        guarded: guarded((th, Seccomp::of(leader.0)), leader.1, &tape, gadgets, dead)?,
    };
    let mut e = Excursion::begin(&th.tracee, task.pid.0, away, dead)?;
    crate::kill_point();
    let r = e.around(before, during, after);
    crate::kill_point();
    e.finish()?;
    r?
}

fn own_userfaultfd(
    task: &Task,
    leader: (&Status, &Rules),
    maps: &[MapsLine],
    gadgets: Gadgets,
    fd: i32,
) -> Result<Option<OwnedFd>> {
    const LINK: &[u8] = b"anon_inode:[userfaultfd]";
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK | uffd::USER_MODE_ONLY) as u64;
    let make = [Call::new(
        libc::SYS_userfaultfd,
        vec![Arg::Named(
            flags,
            "UFFD_USER_MODE_ONLY|O_CLOEXEC|O_NONBLOCK".into(),
        )],
    )
    .any()];
    let close = [Call::new(libc::SYS_close, vec![Arg::Int(fd as u64)]).any()];
    let fetch = || {
        crate::kill_point();
        let made = task.proc.fd_link(RemoteFd(fd)).is_ok_and(|l| l == LINK);
        if !made {
            return Ok(None);
        }
        let pidfd = fds::pidfd_open(task.pid, 0)?;
        Ok(Some(fds::pidfd_getfd(pidfd.as_fd(), RemoteFd(fd))?))
    };
    around(task, leader, maps, gadgets, (&make, &close), fetch)
}

/// `free`: four numbers. The task makes a pair of sockets; the engine takes a duplicate of one end and sends the device; the
/// task asks it for a userfaultfd and sends that back.
fn lent_userfaultfd(
    task: &Task,
    leader: (&Status, &Rules),
    maps: &[MapsLine],
    gadgets: Gadgets,
    free: &[i32],
    device: &OwnedFd,
) -> Result<Option<OwnedFd>> {
    let [ours, theirs, lent, made] = free[..] else {
        return Err(Error::bug("four descriptors"));
    };
    let int = |n: i32| Arg::Int(n as u64);
    let sort = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let pair = [Call::new(
        libc::SYS_socketpair,
        vec![
            Arg::Named(libc::AF_UNIX as u64, "AF_UNIX".into()),
            Arg::Named(
                sort as u64,
                "SOCK_SEQPACKET|SOCK_CLOEXEC|SOCK_NONBLOCK".into(),
            ),
            Arg::Int(0),
            Arg::Out(8),
        ],
    )
    .any()];
    // struct msghdr around one byte and one descriptor
    let message = |byte: Arg, control: Arg| {
        let iov = Arg::Struct(vec![
            Part::Ptr(byte),
            Part::Bytes(1u64.to_le_bytes().to_vec()),
        ]);
        Arg::Struct(vec![
            Part::Bytes(vec![0; 16]),
            Part::Ptr(iov),
            Part::Bytes(1u64.to_le_bytes().to_vec()),
            Part::Ptr(control),
            Part::Bytes(24u64.to_le_bytes().to_vec()),
            Part::Bytes(vec![0; 8]),
        ])
    };
    let mut rights = 20u64.to_le_bytes().to_vec();
    rights.extend((libc::SOL_SOCKET as u32).to_le_bytes());
    rights.extend((libc::SCM_RIGHTS as u32).to_le_bytes());
    rights.extend(made.to_le_bytes());
    rights.extend([0; 4]);
    let cloexec = Arg::Named(libc::MSG_CMSG_CLOEXEC as u64, "MSG_CMSG_CLOEXEC".into());
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    let mut after = vec![
        Call::new(
            libc::SYS_recvmsg,
            vec![int(ours), message(Arg::Out(8), Arg::Out(24)), cloexec],
        ),
        Call::new(
            libc::SYS_ioctl,
            vec![
                int(lent),
                Arg::Named(uffd::NEW as u64, "USERFAULTFD_IOC_NEW".into()),
                Arg::OpenFlags(flags),
            ],
        ),
        Call::new(
            libc::SYS_sendmsg,
            vec![
                int(ours),
                message(Arg::In(b"+".to_vec()), Arg::In(rights)),
                Arg::Int(0),
            ],
        ),
    ];
    after.extend(
        free.iter()
            .map(|fd| Call::new(libc::SYS_close, vec![int(*fd)])),
    );
    let after: Vec<Call> = after.into_iter().map(Call::any).collect();
    let lend = || -> Result<Option<OwnedFd>> {
        crate::kill_point();
        let made = |fd| {
            let link = task.proc.fd_link(RemoteFd(fd));
            link.is_ok_and(|l| l.starts_with(b"socket:"))
        };
        if !made(ours) || !made(theirs) {
            return Ok(None);
        }
        let pidfd = fds::pidfd_open(task.pid, 0)?;
        let end = fds::pidfd_getfd(pidfd.as_fd(), RemoteFd(theirs))?;
        fds::send_fds(end.as_fd(), b"+", &[device.as_fd()])?;
        crate::kill_point();
        Ok(Some(end))
    };
    let Some(end) = around(task, leader, maps, gadgets, (&pair, &after), lend)? else {
        return Ok(None);
    };
    match fds::recv_fds(end.as_fd(), &mut [0; 8]) {
        Ok((_, mut got)) => Ok(got.pop()),
        Err(_) => Ok(None),
    }
}

/// A signal that ends a chain: ignored by default and not pending; and whether nobody catches it.
fn end_signal(st: &Status) -> (Option<i32>, bool) {
    let free = |s: &&i32| (st.shd_pnd | st.sig_pnd) & (1 << (**s - 1)) == 0;
    let quiet = |s: &&i32| st.sig_cgt & (1 << (**s - 1)) == 0;
    let candidates = [libc::SIGURG, libc::SIGWINCH];
    let end = candidates
        .iter()
        .filter(free)
        .find(quiet)
        .or_else(|| candidates.iter().find(free))
        .copied();
    (end, end.is_some_and(|s| quiet(&&s)))
}

/// A process that is being asked.
pub struct Asking<'a> {
    task: &'a Task,
    whole: Rc<[Call]>,
    own: Rc<[Call]>,
    gadgets: Gadgets,
    /// Where sequences were written that its text lacks.
    planted: Option<(vm::Mem, u64)>,
    dead: DeadStack,
    end: Option<i32>,
    end_is_silent: bool,
    /// The leader, if it can fly.
    flight: Option<Flight<'a>>,
    /// The leader's XSAVE area.
    xstate: Arc<[u8]>,
}

/// Sends the leader of a stopped process out, if it can go alone; [`Asking::end`] asks the rest and waits.
pub fn ask<'a>(
    task: &'a Task,
    f: &Facts,
    maps: &[MapsLine],
    cache: &mut GadgetCache,
    tapes: &Tapes,
) -> Result<Asking<'a>> {
    let pid = task.pid;
    let mut gadgets = cache.find(pid, maps);
    let mut planted = None;
    if !gadgets.enough() || !gadgets.verify(pid.0) {
        let (mem, at) = padding(task, maps)?;
        gadgets = Gadgets::plant(&mem, at)?;
        planted = Some((mem, at));
    }
    let (end, end_is_silent) = end_signal(&f.leader);
    let mut a = Asking {
        task,
        whole: match f.timers.len() {
            0 => tapes.whole.clone(),
            _ => whole(&f.timers).into(),
        },
        own: tapes.own.clone(),
        gadgets,
        planted,
        dead: DeadStack { start: 0, len: 0 },
        end,
        end_is_silent,
        flight: None,
        xstate: task.leader().tracee.xstate()?.into(),
    };
    let out = dead_stack(task, maps).and_then(|dead| {
        a.dead = dead;
        a.depart(f)
    });
    if let Err(e) = out {
        a.unplant()?;
        return Err(e);
    }
    Ok(a)
}

impl<'a> Asking<'a> {
    fn away(&self, f: &Facts, i: usize) -> Result<Away> {
        let th = &self.task.threads[i];
        let who = (th, f.threads[i].seccomp);
        let guarded = guarded(who, &f.rules, &self.whole, self.gadgets, self.dead)?;
        let xstate = match i {
            0 => self.xstate.clone(),
            _ => th.tracee.xstate()?.into(),
        };
        Ok(self.unless(guarded, f, i, xstate))
    }
    /// The signal that ends a thread's chain, if there is one that is not pending.
    fn end_of(&self, f: &Facts, i: usize) -> Option<i32> {
        let pending = if i == 0 { 0 } else { f.threads[i].sig_pnd };
        self.end.filter(|s| pending & (1 << (s - 1)) == 0)
    }
    fn flies(&self, guarded: bool, f: &Facts, i: usize, tape: &[Call]) -> bool {
        let regs = &self.task.threads[i].regs;
        flight::can(regs, self.gadgets, self.end_of(f, i), guarded, tape)
    }
    fn unless(&self, guarded: bool, f: &Facts, i: usize, xstate: Arc<[u8]>) -> Away {
        let th = &self.task.threads[i];
        Away {
            regs: th.regs,
            mask: th.mask,
            xstate,
            gadgets: self.gadgets,
            end_signal: self.end_of(f, i),
            end_is_silent: self.end_is_silent,
            guarded,
        }
    }
    fn depart(&mut self, f: &Facts) -> Result<()> {
        let away = self.away(f, 0)?;
        if !self.flies(away.guarded, f, 0, &self.whole) {
            return Ok(());
        }
        let leader = (&self.task.leader().tracee, away, self.whole.clone());
        let mut leader = std::iter::once(leader).peekable();
        self.flight = match Flight::start(self.task.pid.0, &mut leader, self.dead) {
            Ok(f) => Some(f),
            // no room: row by row
            Err(e) if e.errno == nix::errno::Errno::E2BIG => None,
            Err(e) => return Err(e.into()),
        };
        crate::kill_point();
        Ok(())
    }
    fn unplant(&mut self) -> Result<()> {
        if let Some((mem, at)) = self.planted.take() {
            Gadgets::unplant(&mem, at)?;
        }
        Ok(())
    }
    /// Waits for the leader, and asks all other threads; what they tell goes to `listener` at once, since thousands of them may
    /// not be remembered.
    pub fn end(
        mut self,
        f: &Facts,
        maps: &[MapsLine],
        listener: &mut Listener<'_>,
    ) -> Result<Asked> {
        let r = self.told(f, maps, listener);
        self.unplant()?;
        r
    }
    /// One thread, row by row or as its chain allows.
    fn walk(&self, f: &Facts, i: usize, tape: &[Call]) -> Result<(Answers, Arc<[u8]>)> {
        let away = self.away(f, i)?;
        let xstate = away.xstate.clone();
        let th = &self.task.threads[i];
        let mut e = Excursion::begin(&th.tracee, self.task.pid.0, away, self.dead)?;
        crate::kill_point();
        let r = e.play(tape);
        crate::kill_point();
        e.finish()?;
        Ok((r?, xstate))
    }
    fn told(&mut self, f: &Facts, maps: &[MapsLine], to: &mut Listener<'_>) -> Result<Asked> {
        let timers = &f.timers;
        let w = match self.flight.take() {
            Some(flight) => flight.land()?.pop(),
            None => Some(self.walk(f, 0, &self.whole)?.0),
        };
        crate::kill_point();
        let w = w.ok_or_else(|| Error::bug("a flight without passengers"))?;
        let leader = told(&w, self.whole.len() - self.own.len());
        self.rest(f, to)?;
        let four = |i, a| -> [u64; 4] { w.words(i, a).try_into().expect("32 bytes") };
        let int = |i| i32::from_le_bytes(w.out(i, 1).try_into().expect("four bytes"));
        let n = NSIG as usize;
        let k = timers.len();
        let rets = n + 3 + k + 2;
        let some = |i: usize| (!stasis_kernel::call::is_errno(w.ret(i))).then(|| w.ret(i) as u32);
        Ok(Asked {
            actions: (0..n).map(|i| four(i, 2)).collect(),
            itimers: (0..3).map(|i| four(n + i, 1)).collect(),
            timers: (0..k)
                .map(|i| (four(n + 3 + i, 1), some(rets + i).unwrap_or(0)))
                .collect(),
            subreaper: int(n + 3 + k) != 0,
            brk: w.ret(rets + k),
            dumpable: w.ret(rets + k + 1) as i32,
            membarrier: some(rets + k + 6).unwrap_or(0),
            habits: pb::StasisTaskEntry {
                tsc: Some(int(n + 3 + k + 1) as u32),
                mdwe: some(rets + k + 2),
                io_flusher: some(rets + k + 3),
                mce_kill: some(rets + k + 4),
                memory_merge: some(rets + k + 5),
                coredump_filter: f.coredump_filter,
                exit_signal: None,
                mlock_future: self.mlock_future(f, maps)?,
                undo: Vec::new(),
            },
            leader,
            xstate: self.xstate.clone(),
        })
    }
    /// All threads but the leader: as many at once as the dead stack has room for.
    fn rest(&self, f: &Facts, to: &mut Listener<'_>) -> Result<()> {
        let all = &self.task.threads;
        let mut flying = Vec::new();
        for (i, th) in all.iter().enumerate().skip(1) {
            let who = (th, f.threads[i].seccomp);
            let guarded = guarded(who, &f.rules, &self.whole, self.gadgets, self.dead)?;
            if self.flies(guarded, f, i, &self.own) {
                flying.push(i);
            } else {
                let (a, xstate) = self.walk(f, i, &self.own)?;
                to(i, told(&a, 0), &xstate)?;
            }
        }
        for some in flying.chunks(READ_AHEAD) {
            let mut areas = Vec::with_capacity(some.len());
            for i in some {
                areas.push(Arc::from(all[*i].tracee.xstate()?));
            }
            let mut queue = some
                .iter()
                .zip(&areas)
                .map(|(i, x): (_, &Arc<[u8]>)| {
                    let away = self.unless(false, f, *i, x.clone());
                    (&all[*i].tracee, away, self.own.clone())
                })
                .peekable();
            let mut back = some.iter().zip(&areas);
            while queue.peek().is_some() {
                let flight = Flight::start(self.task.pid.0, &mut queue, self.dead)?;
                crate::kill_point();
                let answers = flight.land()?;
                crate::kill_point();
                for (a, (i, xstate)) in answers.iter().zip(back.by_ref()) {
                    to(*i, told(a, 0), xstate)?;
                }
            }
        }
        Ok(())
    }
    /// Whether new mappings are locked; only tasks that have locked memory are asked.
    fn mlock_future(&self, f: &Facts, maps: &[MapsLine]) -> Result<Option<u32>> {
        let st = &f.leader;
        let Some((at, tape)) = (st.vm_locked > 0 && st.seccomp == 0)
            .then(|| locks_future(maps))
            .flatten()
        else {
            return Ok(None);
        };
        let leader = &self.task.leader().tracee;
        let mut e = Excursion::begin(leader, self.task.pid.0, self.away(f, 0)?, self.dead)?;
        let played = e.play_unbroken(&tape);
        e.finish()?;
        Ok(played.ok().flatten().and_then(|a| future(&a, at)))
    }
}

/// A tape that finds out whether new mappings are locked (mlockall(2), MCL_FUTURE), which nothing shows from outside: a page is
/// mapped for a moment where nothing is. Only for tasks that have locked memory, and only unbroken.
fn locks_future(maps: &[MapsLine]) -> Option<(u64, Vec<Call>)> {
    const LEN: u64 = 4096;
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let at = maps.first()?.start.checked_sub(4 * LEN)?;
    if at < 1 << 17 {
        return None;
    }
    let named = |v: i32, n: &'static str| Arg::Named(v as u64, n.into());
    let tape = vec![
        Call::new(
            libc::SYS_mmap,
            vec![
                Arg::Hex(at),
                Arg::Int(LEN),
                named(libc::PROT_READ | libc::PROT_WRITE, "PROT_READ|PROT_WRITE"),
                named(FLAGS, "MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED_NOREPLACE"),
                Arg::Int(u64::MAX),
                Arg::Int(0),
            ],
        )
        .any(),
        // KERNEL: EBUSY if it is locked (mm/msync.c)
        Call::new(
            libc::SYS_msync,
            vec![
                Arg::Hex(at),
                Arg::Int(LEN),
                named(libc::MS_INVALIDATE, "MS_INVALIDATE"),
            ],
        )
        .any(),
        Call::new(
            libc::SYS_mincore,
            vec![Arg::Hex(at), Arg::Int(LEN), Arg::Out(8)],
        )
        .any(),
        Call::new(libc::SYS_munmap, vec![Arg::Hex(at), Arg::Int(LEN)]).any(),
    ];
    Some((at, tape))
}

/// What that tape told, as flags of mlockall(2).
fn future(a: &Answers, at: u64) -> Option<u32> {
    const MCL_FUTURE: u32 = 2;
    const MCL_ONFAULT: u32 = 4;
    let is = |row: usize, errno: i32| a.ret(row) == -(errno as i64) as u64;
    // EAGAIN: it would be locked, and that is more than RLIMIT_MEMLOCK
    let locked = a.ret(0) == at && is(1, libc::EBUSY) || is(0, libc::EAGAIN);
    let there = a.out(2, 2).first().is_some_and(|b| b & 1 != 0) || is(0, libc::EAGAIN);
    locked.then_some(if there {
        MCL_FUTURE
    } else {
        MCL_FUTURE | MCL_ONFAULT
    })
}

/// Would the seccomp rules of a process's thread harm it for a call of the tape, or for the way home?
///
/// # Errors
/// They would, and are not suspended; or they cannot be known.
fn guarded(
    (th, seccomp): (&super::task::Thread, Seccomp),
    rules: &Rules,
    tape: &[Call],
    gadgets: Gadgets,
    dead: DeadStack,
) -> Result<bool> {
    let harms = match seccomp.mode {
        0 => false,
        2 => {
            let filters = super::filters_of(th, seccomp, rules.given.as_deref())?;
            let filters: Vec<_> = filters.into_iter().map(|f| f.0).collect();
            let also = [libc::SYS_rt_sigreturn, libc::SYS_getpid].map(|n| Call::new(n, vec![]));
            // KERNEL: seccomp_data has the address behind the `syscall` instruction
            let harmless = |c: &Call| {
                stasis_kernel::seccomp::is_harmless(&filters, c, gadgets.call_ret + 2, dead.start)
            };
            !tape.iter().chain(&also).all(harmless)
        }
        _ => true,
    };
    if harms && rules.judge {
        return Err(Error::new(
            "E4013",
            Blame::Container,
            format!("thread {} cannot be asked", th.tid.0),
        )
        .why("its seccomp rules would end it for the calls of a tape, and only root may suspend them")
        .advice("dump as root"));
    }
    Ok(harms)
}

/// Unused executable bytes: the zero padding behind the vDSO image.
fn padding(task: &Task, maps: &[MapsLine]) -> Result<(vm::Mem, u64)> {
    let none = |why: &str| {
        Error::new(
            "E4007",
            Blame::Container,
            format!("task {} cannot be asked", task.pid.0),
        )
        .why(why)
        .advice(
            "its text has no rt_sigreturn trampoline and it has no vDSO: link it with a C library",
        )
    };
    let m = maps
        .iter()
        .find(|m| m.name() == MapName::Vdso)
        .ok_or_else(|| none("no vDSO"))?;
    let mut b = vec![0u8; m.len() as usize];
    vm::read(task.pid, RemotePtr(m.start), &mut b)?;
    let at = b.len() - Gadgets::PLANT_LEN;
    if b[at - 4..].iter().any(|x| *x != 0) {
        return Err(none("the vDSO has no padding"));
    }
    Ok((task.proc.mem()?, m.start + at as u64))
}

/// A part of the initial stack below all that is in use, or failing that, what lies below the red zone of the leader.
fn dead_stack(task: &Task, maps: &[MapsLine]) -> Result<DeadStack> {
    const GUARD: u64 = 4096;
    let low = |m: &MapsLine| {
        let used = task
            .threads
            .iter()
            .map(|t| t.regs.rsp)
            .filter(|sp| (m.start..m.end).contains(sp))
            .min()
            .unwrap_or(m.end);
        let room = used.saturating_sub(GUARD).saturating_sub(m.start);
        let len = (room as usize).min(excursion::NEED + 32 * 1024) & !63;
        // as high as may be: pages that deeper calls have used before are there already
        (len >= excursion::NEED).then(|| DeadStack {
            start: (m.start + room - len as u64) & !63,
            len,
        })
    };
    let writable = |m: &&MapsLine| m.prot & libc::PROT_WRITE as u32 != 0 && !m.shared;
    if let Some(d) = maps
        .iter()
        .filter(writable)
        .find(|m| m.name() == MapName::Stack)
        .and_then(low)
    {
        return Ok(d);
    }
    let sp = task.leader().regs.rsp;
    let below = maps
        .iter()
        .filter(writable)
        .find(|m| (m.start..m.end).contains(&sp))
        .and_then(|m| {
            let room = sp.saturating_sub(1024).saturating_sub(m.start) & !63;
            let len = (room as usize).min(excursion::NEED + 8192);
            (len >= excursion::NEED).then(|| DeadStack {
                start: (sp - 1024 - len as u64) & !63,
                len,
            })
        });
    below.ok_or_else(|| {
        Error::new(
            "E4008",
            Blame::Container,
            format!("task {} has no unused stack", task.pid.0),
        )
        .why(format!(
            "{} bytes below the stack pointer are needed",
            excursion::NEED
        ))
        .advice("try again when the task is less deep in its calls")
    })
}

/// The part of the leader's core entry that stands for the process.
pub fn core(task: &Task, f: &Facts, asked: &Asked) -> Result<pb::TaskCoreEntry> {
    let (st, stat, timers) = (&f.leader, &f.stat, &f.timers);
    let rlimits = f
        .limits
        .iter()
        .map(|l| pb::RlimitEntry {
            cur: l.soft.unwrap_or(u64::MAX),
            max: l.hard.unwrap_or(u64::MAX),
        })
        .collect();
    let it = |v: &[u64; 4]| pb::ItimerEntry {
        isec: v[0],
        iusec: v[1],
        vsec: v[2],
        vusec: v[3],
    };
    let posix = timers
        .iter()
        .zip(&asked.timers)
        .map(|(t, (v, over))| pb::PosixTimerEntry {
            it_id: t.id as u32,
            clock_id: t.clock as u32,
            si_signo: t.signal as u32,
            it_sigev_notify: match (t.notify, t.to_thread) {
                (TimerNotify::Signal, false) => 0,
                (TimerNotify::None, _) => 1,
                (TimerNotify::Thread, _) => 2,
                (TimerNotify::Signal, true) => 4,
            },
            sival_ptr: t.sigval,
            overrun: *over,
            isec: v[0],
            insec: v[1],
            vsec: v[2],
            vnsec: v[3],
            notify_thread_id: t.to_thread.then(|| {
                // /proc tells it as the engine's pid namespace has it
                let at = task.threads.iter().position(|th| th.tid.0 == t.target);
                let own = at.and_then(|i| f.threads.get(i));
                own.map_or(t.target, |th| th.own as _)
            }),
        });
    let actions = asked
        .actions
        .iter()
        .zip(1..)
        .filter(|(_, s)| !matches!(*s, libc::SIGKILL | libc::SIGSTOP))
        .map(|(a, _)| pb::SaEntry {
            sigaction: a[0],
            flags: a[1],
            restorer: a[2],
            mask: a[3],
            compat_sigaction: Some(false),
            mask_extended: None,
        });
    let mut habits = asked.habits.clone();
    if stat.exit_signal != libc::SIGCHLD {
        habits.exit_signal = Some(stat.exit_signal as u32);
    }
    Ok(pb::TaskCoreEntry {
        task_state: if task.stopped_by.is_some() {
            STOPPED
        } else {
            ALIVE
        },
        exit_code: 0,
        personality: f.personality,
        flags: stat.flags,
        blk_sigset: task.leader().mask,
        comm: st.name.clone(),
        timers: Some(pb::TaskTimersEntry {
            real: it(&asked.itimers[0]),
            virt: it(&asked.itimers[1]),
            prof: it(&asked.itimers[2]),
            posix: posix.collect(),
        }),
        rlimits: Some(pb::TaskRlimitsEntry { rlimits }),
        signals_s: Some(super::thread::queue(task.leader().tracee.pending(true)?)),
        loginuid: f.loginuid,
        oom_score_adj: Some(f.oom_score_adj),
        sigactions: actions.collect(),
        child_subreaper: Some(asked.subreaper),
        stop_signo: task.stopped_by.map(|s| s as u32),
        membarrier_registration_mask: (asked.membarrier != 0).then_some(asked.membarrier),
        stasis: Some(habits),
        ..Default::default()
    })
}

/// `task_state` of the format.
pub const ALIVE: u32 = 1;
/// Zombies.
pub const DEAD: u32 = 2;
/// In a group stop.
pub const STOPPED: u32 = 3;
