//! A process of the engine's inside the namespaces of a restored tree.
//!
//! It is a copy of the engine (fork), which enters the namespaces of a task and stays there: what it opens, mounts or binds is
//! seen as the tree sees it. Entering a pid namespace takes effect for children only, so there are two forks: the *gate*
//! enters everything and waits, its child does the work. Both die with the engine.
use crate::error::SysError;
use crate::fds;
use crate::ids::HostPid;
use crate::ns::Ns;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The worker, seen from the engine. Dropping it ends it.
#[derive(Debug)]
pub struct Inner {
    gate: i32,
    /// The worker, by the engine's number.
    pub worker: i32,
    /// The engine's end of a SOCK_SEQPACKET pair.
    pub channel: OwnedFd,
}

impl Inner {
    /// Closes the channel and waits until gate and worker are gone.
    pub fn end(&mut self) {
        if self.gate > 0 {
            // the worker ends when it reads the end of the channel; a stuck one must not hold the engine
            let _ = nix::sys::socket::shutdown(
                self.channel.as_raw_fd(),
                nix::sys::socket::Shutdown::Both,
            );
            wait(self.gate);
            self.gate = 0;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.gate > 0 {
            // The worker must be gone, and waited for by the gate, before the first task of its pid namespace is killed:
            // KERNEL: that one waits for all others to be reaped (kernel/pid_namespace.c, zap_pid_ns_processes()), and without
            // the gate a zombie would go to somebody who may never look.
            // SAFETY: a child of our child, which waits for it: the number cannot be another's.
            unsafe { libc::kill(self.worker, libc::SIGKILL) };
            wait(self.gate);
        }
    }
}

fn wait(pid: i32) -> i32 {
    let mut st = 0;
    loop {
        // SAFETY: a child of ours.
        let r = unsafe { libc::waitpid(pid, &mut st, libc::__WALL) };
        if r == pid || Errno::last() != Errno::EINTR {
            return st;
        }
    }
}

/// How a worker comes to where it works.
#[derive(Debug)]
pub struct Way<'a> {
    /// Whose namespaces it enters.
    pub task: HostPid,
    /// Which of them.
    pub which: &'a [Ns],
    /// Others that it enters after that.
    pub join: Vec<(Ns, OwnedFd)>,
    /// Those it makes then.
    pub make: &'a [Ns],
    /// What is written into timens_offsets of the time namespace it makes.
    pub clocks: Option<Vec<u8>>,
    /// Its pid in the innermost pid namespace, if it must have one (clone3(2) set_tid).
    pub number: Option<i32>,
}

impl<'a> Way<'a> {
    /// Into these namespaces of a task, and no further.
    pub fn to(task: HostPid, which: &'a [Ns]) -> Self {
        Self {
            task,
            which,
            join: Vec::new(),
            make: &[],
            clocks: None,
            number: None,
        }
    }
}

/// Starts a worker that goes this way; there it runs `work` with its end of the channel and ends with what that returns.
///
/// With [`Ns::User`] among them the worker is uid and gid 0 of that namespace, with all rights in it.
///
/// Call it while the process has no other threads that may hold locks of the allocator or of the log.
///
/// # Errors
/// fork, or the reason for which the gate could not enter.
pub fn start(way: &Way<'_>, work: impl FnOnce(OwnedFd) -> i32) -> Result<Inner, SysError> {
    let (ours, theirs) = fds::seqpacket_pair()?;
    let pidfd = fds::pidfd_open(way.task, 0)?;
    let engine = std::process::id() as i32;
    // SAFETY: the child runs our code on a copy of our memory; see above for threads.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(SysError::last("fork", "a worker in the tree's namespaces"));
    }
    if pid == 0 {
        drop(ours);
        let code = match enter(&pidfd, way, engine) {
            Ok(()) => {
                drop(pidfd);
                bear(way.number, theirs, work)
            }
            Err(e) => {
                tell(&theirs, e);
                1
            }
        };
        // SAFETY: ends this copy without running what the engine registered for its own end.
        unsafe { libc::_exit(code) };
    }
    drop(theirs);
    let mut inner = Inner {
        gate: pid,
        worker: pid,
        channel: ours,
    };
    let mut first = [0u8; 4];
    let got = loop {
        match nix::unistd::read(&inner.channel, &mut first) {
            Err(Errno::EINTR) => {}
            r => break r,
        }
    };
    let refused = |e: i32| {
        let joined = way.join.iter().map(|j| &j.0);
        let all = way.which.iter().chain(joined).chain(way.make);
        let names: Vec<_> = all.map(|n| n.name()).collect();
        SysError::new(
            "setns",
            Errno::from_raw(e),
            format!("the tree's namespaces ({})", names.join(", ")),
        )
    };
    match got {
        Ok(4) => match i32::from_le_bytes(first) {
            n if n > 0 => {
                inner.worker = n;
                Ok(inner)
            }
            e => Err(refused(-e)),
        },
        _ => Err(refused(libc::ECHILD)),
    }
}

fn tell(to: &OwnedFd, e: Errno) {
    let _ = nix::unistd::write(to, &(-(e as i32)).to_le_bytes());
}

fn die_with_parent(parent: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: no arguments.
    match unsafe { libc::getppid() } == parent {
        true => Ok(()),
        false => Err(Errno::ESRCH),
    }
}

/// After a change of credentials.
///
/// KERNEL: that made us undumpable (no access to our own /proc) and took the death signal away (kernel/cred.c, commit_creds()).
fn stay_bound(parent: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
    die_with_parent(parent)
}

fn enter(pidfd: &OwnedFd, way: &Way<'_>, engine: i32) -> Result<(), Errno> {
    die_with_parent(engine)?;
    let which = way.which;
    // opened where /proc shows us
    let clocks = way.clocks.as_ref().map(|text| {
        let how = (OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
        open("/proc/self/timens_offsets", how.0, how.1).map(|f| (f, text))
    });
    let clocks = clocks.transpose()?;
    let bits = |which: &[Ns]| {
        let flags = which.iter().map(|n| n.flag());
        flags.fold(CloneFlags::empty(), |a, b| a | b)
    };
    let all = bits(which);
    if !all.is_empty() {
        // KERNEL(>=5.8): a pidfd stands for all namespaces of its task
        setns(pidfd.as_fd(), all)?;
    }
    if which.contains(&Ns::User) {
        // SAFETY: plain numbers; this process has one thread, so raw calls change all of it.
        unsafe {
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>());
            libc::syscall(libc::SYS_setresgid, 0, 0, 0);
            libc::syscall(libc::SYS_setresuid, 0, 0, 0);
        }
        stay_bound(engine)?;
    }
    for (ns, handle) in &way.join {
        setns(handle, ns.flag())?;
        if *ns == Ns::User {
            stay_bound(engine)?;
        }
    }
    if !way.make.is_empty() {
        unshare(bits(way.make))?;
    }
    if let Some((file, text)) = clocks {
        nix::unistd::write(&file, text)?;
    }
    Ok(())
}

/// The gate's second half.
fn bear(number: Option<i32>, theirs: OwnedFd, work: impl FnOnce(OwnedFd) -> i32) -> i32 {
    let tid = number.unwrap_or(0);
    // what the worker says first must not come before its number, which only the gate can tell
    let Ok((told, go)) = fds::seqpacket_pair() else {
        tell(&theirs, Errno::last());
        return 1;
    };
    // clone_args of clone3(2), 88 bytes
    let mut args = [0u64; 11];
    args[4] = libc::SIGCHLD as u64;
    if number.is_some() {
        args[8] = (&raw const tid) as u64;
        args[9] = 1;
    }
    // SAFETY: like fork: the child has a copy of everything; `args` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), 88usize) };
    if pid < 0 {
        tell(&theirs, Errno::last());
        return 1;
    }
    if pid == 0 {
        // getppid() would be 0 in a pid namespace of its own, so the gate's end is seen by the channel as well
        // SAFETY: plain numbers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        drop(told);
        let code = match nix::unistd::read(&go, &mut [0; 1]) {
            Ok(1) => {
                drop(go);
                work(theirs)
            }
            _ => 1,
        };
        // SAFETY: as above.
        unsafe { libc::_exit(code) };
    }
    drop(go);
    let number = nix::unistd::write(&theirs, &(pid as i32).to_le_bytes());
    drop(theirs);
    if number != Ok(4) || nix::unistd::write(&told, b"+") != Ok(1) {
        // SAFETY: our own child.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    }
    wait(pid as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_runs_as_a_copy_and_answers() {
        let mut i = start(&Way::to(HostPid::own(), &[]), |s| {
            let mut b = [0u8; 8];
            let n = nix::unistd::read(&s, &mut b).unwrap_or(0);
            let _ = nix::unistd::write(&s, &b[..n]);
            0
        })
        .unwrap();
        nix::unistd::write(&i.channel, b"hello").unwrap();
        let mut b = [0u8; 8];
        assert_eq!(nix::unistd::read(&i.channel, &mut b).unwrap(), 5);
        assert_eq!(&b[..5], b"hello");
        i.end();
    }

    #[test]
    fn what_a_worker_says_at_once_is_not_its_number() {
        for _ in 0..200 {
            let said = 4711i32.to_le_bytes();
            let mut i = start(&Way::to(HostPid::own(), &[]), |s| {
                i32::from(nix::unistd::write(&s, &said) != Ok(4))
            })
            .unwrap();
            let mut b = [0u8; 4];
            assert_eq!(nix::unistd::read(&i.channel, &mut b).unwrap(), 4);
            assert_eq!(b, said);
            i.end();
        }
    }

    #[test]
    fn a_task_that_is_gone_has_no_namespaces() {
        assert!(start(&Way::to(HostPid(i32::MAX - 1), &[Ns::Net]), |_| 0).is_err());
    }
}
