//! An engine run under ptrace, so that it can be killed before any system call of its own.
//!
//! Why not points written into the engine: nobody can forget one here. Between two system calls an engine changes nothing
//! outside of itself (the reel it shares with the tasks of a restore excepted, which it rings with a futex call), so "before
//! each changing call" and "at the end" are all the states a killed engine can leave behind, apart from how far the others got meanwhile;
//! kills at random times cover that.
use anyhow::{Context, Result, bail};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::process::Command;

/// First argument that makes this binary a program that waits to be traced and becomes another.
pub const TRACED_FLAG: &str = "--stasis-traced";

/// Becomes the program of the remaining arguments, traced by the parent. Only returns an error.
///
/// # Errors
/// When it cannot.
pub fn become_traced(args: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    ptrace::traceme()?;
    let (program, rest) = args.split_first().context("a program")?;
    let mut c = Command::new(program);
    let rest = match rest.split_first() {
        // our own command line
        Some((name, words)) if name == "stasis" => {
            c.arg0(name);
            words
        }
        _ => rest,
    };
    Err(c.args(rest).exec().into())
}

/// A system call that changes something outside of the engine, or waits for it: its number and its first two arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number of the call.
    pub nr: i64,
    /// First argument.
    pub a: u64,
    /// Second argument.
    pub b: u64,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = name(*self).unwrap_or("?");
        write!(f, "{name}({:#x}, {:#x})", self.a, self.b)
    }
}

/// Spares nothing.
pub fn none(_: &[Step]) -> bool {
    false
}

/// The one place of a dump that is not safe, and only for tasks whose own seccomp rules punish a call of the tape (see
/// `Excursion::guarded`): the call's number is exchanged, and the task has not passed its rules.
pub fn guarded(steps: &[Step]) -> bool {
    let is = |s: &Step, op: u32| s.nr == libc::SYS_ptrace && s.a as u32 == op;
    // other threads of the engine write images meanwhile: only what the tracing one does tells where the task is
    let traced = |s: &&Step| matches!(s.nr, libc::SYS_ptrace | libc::SYS_wait4);
    // before the call of another thread: the one the tracing thread is in may have been done
    let underway = steps.last().is_some_and(|s| !traced(&s));
    let steps: Vec<Step> = steps.iter().filter(traced).copied().collect();
    let Some((last, before)) = steps.split_last() else {
        return false;
    };
    let go = match last.nr {
        libc::SYS_wait4 => before.last().is_some_and(|s| is(s, libc::PTRACE_SYSCALL)),
        _ => is(last, libc::PTRACE_SYSCALL),
    };
    let exchanged = underway && is(last, libc::PTRACE_SETREGSET);
    let before = if exchanged { &steps[..] } else { before };
    // the way home, then the exchange, and so on: every second one
    let from = before.iter().rposition(|s| is(s, 0x420b)).unwrap_or(0);
    let set = before[from..]
        .iter()
        .filter(|s| is(s, libc::PTRACE_SETREGSET))
        .count();
    (go || exchanged) && set > 0 && set % 2 == 0
}

/// The name of a call that counts; `None` for one that only looks.
fn name(s: Step) -> Option<&'static str> {
    Some(match s.nr {
        libc::SYS_ptrace => match s.a as u32 {
            libc::PTRACE_SEIZE => "PTRACE_SEIZE",
            libc::PTRACE_INTERRUPT => "PTRACE_INTERRUPT",
            libc::PTRACE_SETREGSET => "PTRACE_SETREGSET",
            0x420b => "PTRACE_SETSIGMASK",
            libc::PTRACE_CONT => "PTRACE_CONT",
            libc::PTRACE_SYSCALL => "PTRACE_SYSCALL",
            libc::PTRACE_DETACH => "PTRACE_DETACH",
            libc::PTRACE_SETOPTIONS => "PTRACE_SETOPTIONS",
            0x4210 => "PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG",
            _ => return None,
        },
        libc::SYS_process_vm_writev => "process_vm_writev",
        libc::SYS_tgkill => "tgkill",
        libc::SYS_kill => "kill",
        libc::SYS_wait4 => "wait4",
        libc::SYS_write => "write",
        libc::SYS_pwrite64 => "pwrite64",
        libc::SYS_writev => "writev",
        libc::SYS_openat => "openat",
        libc::SYS_close => "close",
        libc::SYS_ftruncate => "ftruncate",
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => "rename",
        libc::SYS_unlink | libc::SYS_unlinkat => "unlink",
        libc::SYS_mkdir | libc::SYS_mkdirat => "mkdir",
        libc::SYS_linkat | libc::SYS_link => "link",
        libc::SYS_mknodat | libc::SYS_mknod => "mknod",
        libc::SYS_fsync | libc::SYS_syncfs => "sync",
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_vfork | libc::SYS_fork => "clone",
        libc::SYS_sendmsg => "sendmsg",
        libc::SYS_futex => "futex",
        libc::SYS_prlimit64 => "prlimit64",
        libc::SYS_sched_setattr => "sched_setattr",
        libc::SYS_sched_setaffinity => "sched_setaffinity",
        libc::SYS_ioprio_set => "ioprio_set",
        libc::SYS_fcntl => "fcntl",
        libc::SYS_ioctl => "ioctl",
        libc::SYS_pipe2 => "pipe2",
        libc::SYS_dup3 | libc::SYS_dup2 => "dup",
        libc::SYS_epoll_ctl => "epoll_ctl",
        libc::SYS_timerfd_settime => "timerfd_settime",
        libc::SYS_exit_group => "exit_group",
        _ => return None,
    })
}

/// How a traced run ended.
#[derive(Debug)]
pub struct Run {
    /// The changing calls it made, in order; the last one was not made when it was killed there.
    pub steps: Vec<Step>,
    /// Its end.
    pub end: WaitStatus,
    /// Other children of ours that ended meanwhile.
    pub others: HashMap<Pid, WaitStatus>,
}

/// Runs a command (its program is `--stasis-traced` of this binary) and kills it before its `kill_at`-th changing call.
///
/// # Errors
/// When it cannot be traced.
///
/// A step that `spare` names is not taken for the killing; the next one is.
pub fn run(
    command: &mut Command,
    kill_at: Option<usize>,
    spare: fn(&[Step]) -> bool,
) -> Result<Run> {
    let child = command
        .spawn()
        .context("starting the engine under ptrace")?;
    let engine = Pid::from_raw(i32::try_from(child.id())?);
    let mut others = HashMap::new();
    // the stop of its execve
    match waitpid(engine, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
        s => bail!("the engine did not stop at its start: {s:?}"),
    }
    let good = ptrace::Options::PTRACE_O_TRACESYSGOOD;
    let options = good | ptrace::Options::PTRACE_O_TRACECLONE | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(engine, options)?;
    ptrace::syscall(engine, None)?;
    let mut steps = Vec::new();
    let mut inside: HashSet<Pid> = HashSet::new();
    let mut ours = HashSet::from([engine]);
    loop {
        let status = waitpid(None, Some(WaitPidFlag::__WALL))?;
        match status {
            WaitStatus::Exited(p, _) | WaitStatus::Signaled(p, _, _) => {
                if p == engine {
                    return Ok(Run {
                        steps,
                        end: status,
                        others,
                    });
                }
                if !ours.contains(&p) {
                    others.insert(p, status);
                }
            }
            WaitStatus::PtraceSyscall(p) => {
                // entry and exit alternate
                if inside.insert(p) {
                    if let Ok(r) = ptrace::getregs(p) {
                        let step = Step {
                            nr: r.orig_rax as i64,
                            a: r.rdi,
                            b: r.rsi,
                        };
                        // looking again whether something stopped is one wait, however often it takes
                        let again = step.nr == libc::SYS_wait4
                            && steps.last().is_some_and(|s: &Step| s.nr == libc::SYS_wait4);
                        if name(step).is_some() && !again {
                            steps.push(step);
                            if kill_at.is_some_and(|k| steps.len() > k) && !spare(&steps) {
                                kill(engine, Signal::SIGKILL)?;
                                continue;
                            }
                        }
                    }
                } else {
                    inside.remove(&p);
                }
                go(p, None)?;
            }
            // a new thread stops once before it runs
            WaitStatus::Stopped(p, Signal::SIGSTOP) if ours.insert(p) => go(p, None)?,
            WaitStatus::Stopped(p, s) => go(p, Some(s))?,
            WaitStatus::PtraceEvent(p, _, _) => go(p, None)?,
            _ => {}
        }
    }
}

fn go(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
