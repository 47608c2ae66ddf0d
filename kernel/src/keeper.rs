//! A keeper: a small process that holds descriptors between two runs of the engine.
//!
//! Write protection lasts as long as its userfaultfd is open somewhere. It must not be open in the target, where it would be
//! seen and inherited, and the engine ends; so a fork of the engine stays behind with nothing but those descriptors. It ends
//! by itself when the processes they belong to have ended, and may be killed at any time: then the kernel takes all
//! protection back.
//!
//! It is known by what lies at its descriptor 0: a memfd of a certain name, with a record that says what the others are.
use crate::error::{SysError, SysResult};
use crate::fds;
use crate::ids::{HostPid, RemoteFd};
use crate::procfs::ProcDir;
use nix::errno::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// The name of the memfd.
const NAME: &std::ffi::CStr = c"stasis-keeper";
/// How /proc shows it.
const LINK: &[u8] = b"/memfd:stasis-keeper (deleted)";

/// Somebody's keeper, alive when it was found.
#[derive(Debug)]
pub struct Keeper {
    /// Its number.
    pub pid: HostPid,
    /// The record it was started with.
    pub record: Vec<u8>,
    pidfd: OwnedFd,
}

/// All keepers of this pid namespace whose descriptors this user may take.
pub fn all() -> Vec<Keeper> {
    let Ok(folder) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = folder.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| look(HostPid(pid))).collect()
}

fn look(pid: HostPid) -> Option<Keeper> {
    let dir = ProcDir::open(pid).ok()?;
    if dir.fd_link(RemoteFd(0)).ok()? != LINK {
        return None;
    }
    let pidfd = fds::pidfd_open(pid, 0).ok()?;
    let file = File::from(fds::pidfd_getfd(pidfd.as_fd(), RemoteFd(0)).ok()?);
    let len = file.metadata().ok()?.len().min(1 << 24) as usize;
    let mut record = vec![0; len];
    file.read_exact_at(&mut record, 0).ok()?;
    Some(Keeper { pid, record, pidfd })
}

impl Keeper {
    /// A duplicate of the descriptor number `index` of those it was started with.
    pub fn take(&self, index: usize) -> SysResult<OwnedFd> {
        fds::pidfd_getfd(self.pidfd.as_fd(), RemoteFd(1 + index as i32))
    }
    /// Ends it. Protection lasts while its descriptors are open elsewhere.
    pub fn end(&self) -> SysResult<()> {
        match fds::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL) {
            Err(e) if e.errno == Errno::ESRCH => Ok(()),
            r => r,
        }
    }
}

/// A keeper that ends when this goes, be it by the engine's death, unless it is told to stay.
#[derive(Debug)]
pub struct Leash {
    /// Its number.
    pub pid: HostPid,
    pipe: File,
}

impl Leash {
    /// From now on the keeper stays without the engine.
    pub fn let_go(mut self) -> SysResult<()> {
        self.pipe
            .write_all(b"+")
            .map_err(|e| io(e, "the keeper's leash"))
    }
}

fn io(e: std::io::Error, what: &str) -> SysError {
    SysError::new(
        "write",
        Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        what,
    )
}

/// Starts a keeper of `fds` that lives as long as any of the processes behind `pidfds`, once it is let go.
pub fn start(record: &[u8], fds: &[OwnedFd], pidfds: &[OwnedFd]) -> SysResult<Leash> {
    let memfd = fds::memfd_create(NAME, 0)?;
    let mut file = File::from(memfd);
    file.write_all(record).map_err(|e| io(e, "memfd"))?;
    let pipe = || {
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| SysError::new("pipe2", e, ""))
    };
    let ((told, tell), (leash, hand)) = (pipe()?, pipe()?);
    let mut sources: Vec<i32> = vec![file.as_raw_fd()];
    sources.extend(fds.iter().chain(pidfds).map(AsRawFd::as_raw_fd));
    sources.extend([leash.as_raw_fd(), tell.as_raw_fd()]);
    let first = 1 + fds.len() as i32;
    // the processes, then the leash
    let mut polls: Vec<libc::pollfd> = (0..=pidfds.len() as i32)
        .map(|i| libc::pollfd {
            fd: first + i,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: the child only makes system calls on memory prepared above, and never returns: locks that other threads hold
    // at the fork do not matter to it.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(SysError::last("fork", "keeper")),
        // SAFETY: as above; a fork of the fork, so that the engine's caller has no child it does not know of.
        0 => unsafe {
            if libc::fork() == 0 {
                keep(&sources, &mut polls);
            }
            libc::_exit(0)
        },
        _ => {}
    }
    drop((tell, leash));
    crate::ptrace::wait_exit(child)?;
    let mut answer = [0; 4];
    let n = File::from(told).read(&mut answer).unwrap_or(0);
    match i32::from_ne_bytes(answer) {
        pid if n == 4 && pid > 0 => Ok(Leash {
            pid: HostPid(pid),
            pipe: File::from(hand),
        }),
        _ => Err(SysError::new(
            "fork",
            Errno::EMFILE,
            "the keeper could not arrange its descriptors",
        )),
    }
}

/// The keeper's life.
///
/// # Safety
/// Only in a process forked for it: all other descriptors are closed, and it ends.
unsafe fn keep(sources: &[i32], polls: &mut [libc::pollfd]) -> ! {
    // SAFETY: system calls on numbers and on memory of our own, in a process that nobody else runs in.
    unsafe {
        let n = sources.len() as i32;
        let high = sources.iter().copied().max().unwrap_or(0).max(n) + 1;
        let close = |from: i32, to: u32| libc::syscall(libc::SYS_close_range, from, to, 0);
        for (i, s) in sources.iter().enumerate() {
            if libc::dup3(*s, high + i as i32, libc::O_CLOEXEC) < 0 {
                libc::_exit(1);
            }
        }
        close(0, (high - 1) as u32);
        for i in 0..n {
            libc::dup3(high + i, i, libc::O_CLOEXEC);
        }
        close(n, u32::MAX);
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        libc::prctl(libc::PR_SET_NAME, c"stasis-keeper".as_ptr());
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        let pid = libc::getpid().to_ne_bytes();
        libc::write(n - 1, pid.as_ptr().cast(), pid.len());
        libc::close(n - 1);
        let mut left = polls.len() - 1;
        while left > 0 {
            if libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) < 0 {
                continue;
            }
            for p in polls.iter_mut().filter(|p| p.fd >= 0 && p.revents != 0) {
                if p.fd == n - 2 {
                    let mut b = 0u8;
                    if libc::read(p.fd, (&raw mut b).cast(), 1) != 1 {
                        libc::_exit(0);
                    }
                    libc::close(p.fd);
                } else {
                    left -= 1;
                }
                p.fd = -1;
            }
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn soon(what: &str, mut f: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !f() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_keeper_is_found_gives_its_descriptors_and_ends_with_its_ward() {
        let mut ward = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = fds::pidfd_open(HostPid(ward.id() as i32), 0).unwrap();
        let (r, w) = nix::unistd::pipe().unwrap();
        let record = format!("record of {}", std::process::id()).into_bytes();
        let leash = start(&record, &[w], &[pidfd]).unwrap();
        let pid = leash.pid;
        leash.let_go().unwrap();
        let ours = || all().into_iter().find(|k| k.pid == pid);
        let k = ours().unwrap();
        assert_eq!(k.record, record);
        // it holds the other end of the pipe, and nothing but what it should
        let w = k.take(0).unwrap();
        nix::unistd::write(&w, b"x").unwrap();
        nix::unistd::read(&r, &mut [0; 1]).unwrap();
        drop(w);
        let held = || ProcDir::open(pid).unwrap().fds().unwrap().len();
        soon("it closes the leash", || held() == 3);
        ward.kill().unwrap();
        ward.wait().unwrap();
        assert_eq!(nix::unistd::read(&r, &mut [0; 1]), Ok(0));
        soon("it ends", || ours().is_none());
    }

    #[test]
    fn a_keeper_can_be_ended() {
        let pidfd = fds::pidfd_open(HostPid::own(), 0).unwrap();
        let (r, w) = nix::unistd::pipe().unwrap();
        let leash = start(b"", &[w], &[pidfd]).unwrap();
        let k = all().into_iter().find(|k| k.pid == leash.pid).unwrap();
        leash.let_go().unwrap();
        k.end().unwrap();
        assert_eq!(nix::unistd::read(&r, &mut [0; 1]), Ok(0));
        k.end().unwrap();
    }

    #[test]
    fn a_keeper_that_was_not_let_go_ends_with_its_maker() {
        let pidfd = fds::pidfd_open(HostPid::own(), 0).unwrap();
        let (r, w) = nix::unistd::pipe().unwrap();
        drop(start(b"", &[w], &[pidfd]).unwrap());
        assert_eq!(nix::unistd::read(&r, &mut [0; 1]), Ok(0));
    }
}
