//! A small process that watches the engine and puts something back if the engine ends before it could do so itself.
//!
//! It is for what outlives a process and no other process of ours looks after: a frozen control group. It does nothing but
//! wait, then write a few bytes to files that were open before. It is in a session of its own and takes no signal but
//! SIGKILL, so what ends the engine (also a signal to its whole process group) does not end it.
use crate::error::{SysError, SysResult};
use crate::fds;
use crate::ids::HostPid;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// A watch. Dropping it without [`Guardian::release`] makes the guardian act, and waits for that.
#[derive(Debug)]
pub struct Guardian {
    pid: i32,
    channel: Option<OwnedFd>,
}

/// `struct clone_args` as of version 0 (64 bytes), all zeroes: a fork without an exit signal.
const PLAIN_FORK: [u64; 8] = [0; 8];

/// Starts a guardian that makes these writes, one call each, in this order, if the engine ends.
///
/// # Errors
/// No process or no descriptor to be had.
pub fn watch(writes: Vec<(OwnedFd, Vec<u8>)>) -> SysResult<Guardian> {
    let engine = fds::pidfd_open(HostPid::own(), 0)?;
    let (theirs, ours) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|e| SysError::new("pipe2", e, "for a guardian"))?;
    let mut keep: Vec<i32> = writes.iter().map(|w| w.0.as_raw_fd()).collect();
    keep.extend([engine.as_raw_fd(), theirs.as_raw_fd()]);
    keep.sort_unstable();
    // SAFETY: without CLONE_VM this is a fork: the child goes on with a copy of this stack, makes system calls only and never
    // returns from here. The array has the layout and size of clone_args, version 0.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            PLAIN_FORK.as_ptr(),
            size_of_val(&PLAIN_FORK),
        )
    };
    match pid {
        -1 => Err(SysError::last("clone3", "a guardian")),
        0 => guard(&writes, &keep, engine.as_raw_fd(), theirs.as_raw_fd()),
        pid => Ok(Guardian {
            pid: pid as i32,
            channel: Some(ours),
        }),
    }
}

/// The guardian's life. No allocation: another thread of the engine may have held the lock when the copy was made.
fn guard(writes: &[(OwnedFd, Vec<u8>)], keep: &[i32], engine: i32, channel: i32) -> ! {
    // SAFETY: system calls on numbers and on memory of this process, which nobody else changes. Descriptors that are closed
    // here are this copy's own; nothing runs afterwards that would use them.
    unsafe {
        let all = [u8::MAX; 8];
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            all.as_ptr(),
            std::ptr::null::<u8>(),
            all.len(),
        );
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"stasis-guardian".as_ptr());
        // a caller waits for the end of the engine's output, sockets and pipes: none may stay open here
        let mut from = 0u32;
        for k in keep {
            if *k as u32 > from {
                libc::syscall(libc::SYS_close_range, from, *k as u32 - 1, 0);
            }
            from = *k as u32 + 1;
        }
        libc::syscall(libc::SYS_close_range, from, u32::MAX, 0);
        let mut on = [engine, channel].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        while libc::poll(on.as_mut_ptr(), 2, -1) <= 0 {}
        // a byte says that all is well; it counts also when the engine has ended since
        let mut byte = 0u8;
        libc::fcntl(channel, libc::F_SETFL, libc::O_NONBLOCK);
        if libc::read(channel, (&raw mut byte).cast(), 1) != 1 {
            for (fd, bytes) in writes {
                libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
            }
        }
        libc::_exit(0)
    }
}

impl Guardian {
    /// Ends the watch: nothing is written.
    pub fn release(mut self) {
        if let Some(c) = &self.channel {
            let _ = nix::unistd::write(c, &[1]);
        }
        self.end();
    }
    fn end(&mut self) {
        self.channel = None;
        let mut status = 0;
        loop {
            // SAFETY: a child of ours that is waited for once; __WALL: it has no exit signal.
            let r = unsafe { libc::waitpid(self.pid, &mut status, libc::__WALL) };
            if r == self.pid || Errno::last() != Errno::EINTR {
                return;
            }
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if self.channel.is_some() {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn file() -> (tempfile::NamedTempFile, OwnedFd) {
        let f = tempfile::NamedTempFile::new().unwrap();
        let w = std::fs::OpenOptions::new().write(true).open(f.path());
        (f, w.unwrap().into())
    }

    fn text(f: &tempfile::NamedTempFile) -> String {
        let mut s = String::new();
        std::fs::File::open(f.path())
            .unwrap()
            .read_to_string(&mut s)
            .unwrap();
        s
    }

    #[test]
    fn a_guardian_that_is_released_writes_nothing() {
        let (f, w) = file();
        watch(vec![(w, b"0".to_vec())]).unwrap().release();
        assert_eq!(text(&f), "");
    }

    #[test]
    fn a_guardian_that_is_dropped_has_written() {
        let (f, w) = file();
        drop(watch(vec![(w, b"0".to_vec())]).unwrap());
        assert_eq!(text(&f), "0");
    }

    /// The end of a process that holds a guardian, by SIGKILL.
    #[test]
    fn a_guardian_writes_when_the_engine_is_killed() {
        let (f, w) = file();
        let (r, mark) = nix::unistd::pipe().unwrap();
        // SAFETY: the child makes system calls and allocates little; the tests' harness holds no lock of the allocator here
        // for long.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let g = watch(vec![(w, b"put back".to_vec())]);
            std::mem::forget(g);
            // SAFETY: the child kills itself.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        // SAFETY: our child.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        // all ends of this pipe are closed when the guardian is the only one left: it must not keep foreign files
        drop(mark);
        assert_eq!(nix::unistd::read(&r, &mut [0]).unwrap(), 0);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while text(&f) != "put back" && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(text(&f), "put back");
    }
}
