//! Children for probes.
//!
//! They are made by clone3(2) without an exit signal, so the program that runs the probes gets no SIGCHLD and a
//! SIGCHLD that is ignored does not steal their status. The child of a program with threads may only make system calls
//! (another thread may have held the allocator's lock): what runs there is a plain `fn` without allocation.

use nix::errno::Errno;

use crate::error::SysError;
use crate::ids::HostPid;

/// `struct clone_args` of include/uapi/linux/sched.h, version 2 (88 bytes).
#[repr(C)]
#[derive(Default)]
pub(super) struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

/// A child of ours; killed and waited for when dropped, by its own pid, which cannot be reused before the wait.
#[derive(Debug)]
pub(super) struct Child {
    pub pid: HostPid,
    waited: bool,
}

impl Child {
    /// Makes a child that runs `body` and exits with its result (only the low 8 bits are seen).
    ///
    /// `args.flags` must not share memory (CLONE_VM).
    pub fn spawn(mut args: CloneArgs, body: fn() -> i32) -> Result<Child, SysError> {
        args.exit_signal = 0;
        assert_eq!(args.flags & libc::CLONE_VM as u64, 0);
        // SAFETY: without CLONE_VM this is a fork: the child goes on with a copy of this stack, in which it only makes
        // system calls and never returns from this function. `args` has the layout and size the kernel reads.
        let ret =
            unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        match ret {
            -1 => Err(SysError::last("clone3", "")),
            0 => {
                // SAFETY: prctl with integers; _exit ends the child without running anything of ours.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::_exit(body());
                }
            }
            pid => Ok(Child {
                pid: HostPid(pid as i32),
                waited: false,
            }),
        }
    }

    /// A child that sleeps until it is killed.
    pub fn sleeping() -> Result<Child, SysError> {
        Self::spawn(CloneArgs::default(), sleep_forever)
    }

    /// Waits for the end: exit status, or the signal as an error text.
    pub fn wait(mut self) -> Result<i32, SysError> {
        let status = self.reap()?;
        if libc::WIFSIGNALED(status) {
            let what = format!(
                "probe child killed by {}",
                crate::names::signal(libc::WTERMSIG(status))
            );
            return Err(SysError::new("waitpid", Errno::ECANCELED, what));
        }
        Ok(libc::WEXITSTATUS(status))
    }

    fn reap(&mut self) -> Result<i32, SysError> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is a place for one int. __WALL also finds children without an exit signal.
            let ret = unsafe { libc::waitpid(self.pid.0, &mut status, libc::__WALL) };
            match ret {
                -1 if Errno::last() == Errno::EINTR => {}
                -1 => {
                    let e = SysError::last("waitpid", format!("probe child {}", self.pid));
                    self.waited = true;
                    return Err(e);
                }
                _ if libc::WIFSTOPPED(status) => {}
                _ => {
                    self.waited = true;
                    return Ok(status);
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            // SAFETY: the child was not waited for, so the pid is still its own.
            unsafe { libc::kill(self.pid.0, libc::SIGKILL) };
            let _ = self.reap();
        }
    }
}

/// Only system calls, for children.
pub(super) fn sleep_forever() -> i32 {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}

/// Runs `body` in a child and gives its exit status: by convention 0, or the errno (all fit in 8 bits).
pub(super) fn in_child(body: fn() -> i32) -> Result<i32, SysError> {
    Child::spawn(CloneArgs::default(), body)?.wait()
}

/// This thread's errno as an exit status.
pub(super) fn errno() -> i32 {
    Errno::last_raw()
}
