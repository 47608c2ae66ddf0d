//! [`ProcDir`]: one open directory of /proc, and the questions that can be asked of it.
//!
//! Long because every file of the folder has its reader here, next to the others.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::*;
use super::{maps, text};
use crate::error::{ParseError, Result, SysError, SysResult, check};
use crate::ids::{HostPid, RemoteFd};
use crate::vm::Mem;

/// First size of the read buffer. seq_file hands out about a page per read(2) whatever the buffer is, so a larger one
/// would not save calls.
const CHUNK: usize = 8192;

/// An open directory /proc/PID or /proc/PID/task/TID.
///
/// It keeps no buffer: a dump holds one for each task of a tree.
#[derive(Debug)]
pub struct ProcDir {
    dir: OwnedFd,
    pid: HostPid,
    /// `/proc/42` or `/proc/42/task/43`, for errors.
    path: String,
}

impl ProcDir {
    /// Opens `/proc/PID`. A thread id works too (its directory is hidden but there) and shows that thread.
    pub fn open(pid: HostPid) -> SysResult<Self> {
        Self::open_at(None, format!("/proc/{pid}"), pid)
    }

    /// Opens `/proc/PID/task/TID`; [`ProcDir::pid`] of the result is the TID. Each one costs a descriptor: with thousands of
    /// threads, prefer [`ProcDir::task_status`] and its like.
    pub fn task(&self, tid: HostPid) -> SysResult<Self> {
        Self::open_at(
            Some(self.dir.as_fd()),
            format!("{}/task/{tid}", self.path),
            tid,
        )
    }

    fn open_at(base: Option<BorrowedFd<'_>>, path: String, pid: HostPid) -> SysResult<Self> {
        let (base, relative) = match base {
            Some(fd) => (fd.as_raw_fd(), format!("task/{pid}")),
            None => (libc::AT_FDCWD, path.clone()),
        };
        let name = CString::new(relative).expect("numbers hold no NUL");
        // SAFETY: `name` is NUL-terminated and lives through the call.
        let fd = unsafe {
            libc::openat(
                base,
                name.as_ptr(),
                libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
            )
        };
        check(fd.into(), "openat", || path.as_str())?;
        // SAFETY: a fresh descriptor that nobody else knows.
        let dir = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(ProcDir { dir, pid, path })
    }

    /// Writes a file of the folder in one write(2).
    pub fn write(&self, name: &str, text: &[u8]) -> SysResult<()> {
        let fd = self.open_file(name, libc::O_WRONLY)?;
        nix::unistd::write(&fd, text)
            .map(drop)
            .map_err(|e| SysError::new("write", e, format!("/proc/{}/{name}", self.pid().0)))
    }
    /// The number it was opened by.
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    /// The directory, for openat(2) and setns-like calls (O_PATH).
    pub fn as_dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The path of a file in it, for messages.
    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// Opens a file in it by relative path (`mem`, `fd/7`, `root`), adding O_CLOEXEC. Links such as `exe`, `cwd`,
    /// `fd/7` and `map_files/...` are followed to what they stand for, not to a path.
    pub fn open_file(&self, name: &str, flags: i32) -> SysResult<OwnedFd> {
        let c = CString::new(name)
            .map_err(|_| SysError::new("openat", Errno::EINVAL, self.name(name)))?;
        // SAFETY: `c` is NUL-terminated and lives through the call; no O_CREAT, so no mode argument is read.
        let fd = unsafe { libc::openat(self.dir.as_raw_fd(), c.as_ptr(), flags | libc::O_CLOEXEC) };
        check(fd.into(), "openat", || self.name(name))?;
        // SAFETY: a fresh descriptor that nobody else knows.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Reads a whole file and hands it to `f` together with its full name.
    fn with<T>(&self, name: &str, f: impl FnOnce(&str, &[u8]) -> Result<T>) -> Result<T> {
        self.read_with(name, false, f)
    }

    /// [`ProcDir::with`] for a file that the kernel gives in one piece: a read that does not fill the buffer was the last.
    ///
    /// KERNEL: seq files of one record (`single_open()`, fs/seq_file.c) and files that are one number.
    fn with_one<T>(&self, name: &str, f: impl FnOnce(&str, &[u8]) -> Result<T>) -> Result<T> {
        self.read_with(name, true, f)
    }

    fn read_with<T>(
        &self,
        name: &str,
        one: bool,
        f: impl FnOnce(&str, &[u8]) -> Result<T>,
    ) -> Result<T> {
        let fd = self.open_file(name, libc::O_RDONLY)?;
        let mut buf = vec![0; CHUNK];
        let len = self.fill(&fd, name, one, &mut buf)?;
        f(&self.name(name), &buf[..len])
    }

    fn fill(&self, fd: &OwnedFd, name: &str, one: bool, buf: &mut Vec<u8>) -> SysResult<usize> {
        let mut len = 0;
        loop {
            if buf.len() - len < CHUNK / 2 {
                buf.resize(buf.len() * 2, 0);
            }
            match nix::unistd::read(fd, &mut buf[len..]) {
                Ok(0) => return Ok(len),
                Ok(n) => {
                    len += n;
                    if one && len < buf.len() {
                        return Ok(len);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(SysError::new("read", errno, self.name(name))),
            }
        }
    }

    /// Reads a file line by line, holding no more than a chunk and one line of it in memory.
    fn each_line(
        &self,
        name: &str,
        mut f: impl FnMut(&[u8]) -> Result<(), &'static str>,
    ) -> Result<usize> {
        let fd = self.open_file(name, libc::O_RDONLY)?;
        let mut buf = vec![0; CHUNK];
        let mut have = 0; // bytes in buf
        let mut n = 0; // lines
        loop {
            if buf.len() - have < CHUNK / 2 {
                buf.resize(buf.len() * 2, 0);
            }
            let got = match nix::unistd::read(&fd, &mut buf[have..]) {
                Ok(got) => got,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(SysError::new("read", errno, self.name(name)).into()),
            };
            have += got;
            let whole = match buf[..have].iter().rposition(|b| *b == b'\n') {
                Some(at) => at + 1,
                None if got == 0 => have,
                None => continue,
            };
            for (_, line) in text::lines(&buf[..whole]) {
                n += 1;
                f(line).map_err(|why| ParseError::new(self.name(name), n, why))?;
            }
            buf.copy_within(whole..have, 0);
            have -= whole;
            if got == 0 && have == 0 {
                return Ok(n);
            }
        }
    }

    /// The bytes of a file, as they are: `wchan`, `cmdline`, `environ`.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.with(name, |_, b| Ok(b.to_vec()))
    }

    fn number<T: text::Num>(&self, name: &str, radix: u32) -> Result<T> {
        self.with_one(name, |file, b| {
            text::number(b.trim_ascii(), radix)
                .ok_or_else(|| ParseError::new(file, 1, "not a number").into())
        })
    }

    /// Numbers that are names of entries of a directory, sorted; others (`.`, `..`) are left out.
    fn numbers(&self, name: &str) -> Result<Vec<i32>> {
        let fd = self.open_file(name, libc::O_RDONLY | libc::O_DIRECTORY)?;
        read_numbers(&fd, &mut vec![0; CHUNK])
            .map_err(|errno| SysError::new("getdents64", errno, self.name(name)).into())
    }

    /// Mappings, lowest address first. Needs PTRACE_MODE_READ.
    pub fn maps(&self) -> Result<Vec<MapsLine>> {
        let mut out = Vec::new();
        self.each_line("maps", |l| maps::maps_line(l).map(|m| out.push(m)))?;
        Ok(out)
    }

    /// Mappings with flags and sizes. Expensive: walks the page tables (18 ms per GiB of small pages).
    pub fn smaps(&self) -> Result<Vec<SmapsEntry>> {
        let mut b = maps::SmapsBuilder::default();
        let n = self.each_line("smaps", |l| b.line(l))?;
        b.finish()
            .map_err(|why| ParseError::new(self.name("smaps"), n, why).into())
    }

    /// The numbers of stat.
    pub fn stat(&self) -> Result<Stat> {
        self.with_one("stat", parse_stat)
    }

    /// Identity, credentials, signals.
    pub fn status(&self) -> Result<Status> {
        self.with_one("status", parse_status)
    }

    /// [`ProcDir::stat`] of one thread, without opening a directory for it.
    pub fn task_stat(&self, tid: HostPid) -> Result<Stat> {
        self.with_one(&format!("task/{tid}/stat"), parse_stat)
    }

    /// [`ProcDir::status`] of one thread, without opening a directory for it.
    pub fn task_status(&self, tid: HostPid) -> Result<Status> {
        self.with_one(&format!("task/{tid}/status"), parse_status)
    }

    /// [`ProcDir::comm`] of one thread, without opening a directory for it.
    pub fn task_comm(&self, tid: HostPid) -> Result<Vec<u8>> {
        self.with(&format!("task/{tid}/comm"), |_, b| {
            Ok(b.strip_suffix(b"\n").unwrap_or(b).to_vec())
        })
    }

    /// Ids of the threads, sorted.
    pub fn tasks(&self) -> Result<Vec<HostPid>> {
        Ok(self.numbers("task")?.into_iter().map(HostPid).collect())
    }

    /// Ids of the children of all threads, sorted.
    ///
    /// Complete only while this process and its children are frozen (a child that exits during the read may hide its
    /// sibling). KERNEL(!CONFIG_PROC_CHILDREN): falls back to reading stat of every process.
    pub fn children(&self) -> Result<Vec<HostPid>> {
        self.children_of(self.tasks()?)
    }

    /// [`ProcDir::children`] where the threads are known and stand still.
    pub fn children_of(&self, threads: impl IntoIterator<Item = HostPid>) -> Result<Vec<HostPid>> {
        let mut out = Vec::new();
        for tid in threads {
            let found = self.with(&format!("task/{tid}/children"), |file, b| {
                for w in text::words(b.trim_ascii_end()) {
                    let pid =
                        text::number(w, 10).ok_or_else(|| ParseError::new(file, 1, "not a pid"))?;
                    out.push(HostPid(pid));
                }
                Ok(())
            });
            match found {
                Ok(()) => {}
                // Either the thread has exited, whose children were given to another one, or there is no such file.
                Err(e) if e.is_gone() => {
                    if self.open_file(&format!("task/{tid}"), libc::O_PATH).is_ok() {
                        return self.children_by_scan();
                    }
                }
                Err(e) => return Err(e),
            }
        }
        out.sort_unstable();
        out.dedup();
        Ok(out)
    }

    /// Children found by the parent id in stat of every process of the system, sorted.
    pub fn children_by_scan(&self) -> Result<Vec<HostPid>> {
        let mut out = Vec::new();
        for pid in all_pids()? {
            match ProcDir::open(pid)
                .map_err(Into::into)
                .and_then(|p| p.stat())
            {
                Ok(s) if s.ppid == self.pid => out.push(pid),
                Ok(_) => {}
                Err(e) if e.is_gone() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Numbers of the open slots, sorted.
    pub fn fds(&self) -> Result<Vec<RemoteFd>> {
        Ok(self.numbers("fd")?.into_iter().map(RemoteFd).collect())
    }

    /// How many slots are open. 0 before Linux 6.2, which does not tell.
    ///
    /// # Errors
    /// The task is gone.
    pub fn count_of_fds(&self) -> SysResult<u64> {
        let failed = |e| SysError::new("fstatat", e, self.name("fd"));
        let flags = nix::fcntl::AtFlags::empty();
        let stat = nix::sys::stat::fstatat(&self.dir, "fd", flags).map_err(failed)?;
        Ok(stat.st_size as u64)
    }

    /// What the link `fd/N` says: a path, `pipe:[123]`, `/tmp/x (deleted)`.
    pub fn fd_link(&self, fd: RemoteFd) -> SysResult<Vec<u8>> {
        self.link(&format!("fd/{fd}"))
    }

    /// What the kernel tells of slot `fd`.
    pub fn fdinfo(&self, fd: RemoteFd) -> Result<FdInfo> {
        self.with_one(&format!("fdinfo/{fd}"), parse_fdinfo)
    }

    /// The target of a link in the directory, as readlink(2) gives it.
    pub fn link(&self, name: &str) -> SysResult<Vec<u8>> {
        let c = CString::new(name)
            .map_err(|_| SysError::new("readlinkat", Errno::EINVAL, self.name(name)))?;
        // proc_fd_link and friends build the path in one page, so it cannot be longer.
        let mut out = vec![0u8; libc::PATH_MAX as usize];
        // SAFETY: `c` is NUL-terminated, `out` has the length that is passed.
        let n = unsafe {
            libc::readlinkat(
                self.dir.as_raw_fd(),
                c.as_ptr(),
                out.as_mut_ptr().cast(),
                out.len(),
            )
        };
        let n = check(n as libc::c_long, "readlinkat", || self.name(name))?;
        out.truncate(n as usize);
        out.shrink_to_fit();
        Ok(out)
    }

    /// Current directory, as a path in the reader's view.
    pub fn cwd(&self) -> SysResult<Vec<u8>> {
        self.link("cwd")
    }

    /// Root directory, as a path in the reader's view.
    pub fn root(&self) -> SysResult<Vec<u8>> {
        self.link("root")
    }

    /// Executable, as a path in the reader's view; ENOENT for kernel threads and zombies.
    pub fn exe(&self) -> SysResult<Vec<u8>> {
        self.link("exe")
    }

    /// Opens the current directory itself, also when it was removed.
    pub fn open_cwd(&self) -> SysResult<OwnedFd> {
        self.open_file("cwd", libc::O_PATH | libc::O_DIRECTORY)
    }

    /// Opens the root directory itself.
    pub fn open_root(&self) -> SysResult<OwnedFd> {
        self.open_file("root", libc::O_PATH | libc::O_DIRECTORY)
    }

    /// Opens the executable itself with O_PATH, also when it was deleted.
    pub fn open_exe(&self) -> SysResult<OwnedFd> {
        self.open_file("exe", libc::O_PATH)
    }

    /// The file behind a mapping: what the link in `map_files` says. The range must be that of maps.
    pub fn map_file_link(&self, m: &MapsLine) -> SysResult<Vec<u8>> {
        self.link(&format!("map_files/{:x}-{:x}", m.start, m.end))
    }

    /// Opens the file behind a mapping. Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the initial user namespace.
    pub fn open_map_file(&self, m: &MapsLine, flags: i32) -> SysResult<OwnedFd> {
        self.open_file(&format!("map_files/{:x}-{:x}", m.start, m.end), flags)
    }

    /// Opens `mem` for reading and writing.
    pub fn mem(&self) -> SysResult<Mem> {
        Ok(Mem::new(
            File::from(self.open_file("mem", libc::O_RDWR)?),
            self.pid,
        ))
    }

    /// The auxiliary vector of a 64-bit program. Empty for kernel threads and zombies.
    pub fn auxv(&self) -> Result<Vec<(u64, u64)>> {
        self.with_one("auxv", |_, b| Ok(parse_auxv(b)))
    }

    /// POSIX timers, in the kernel's order.
    pub fn timers(&self) -> Result<Vec<Timer>> {
        self.with("timers", parse_timers)
    }

    /// Resource limits, indexed by RLIMIT_*.
    pub fn limits(&self) -> Result<[Limit; 16]> {
        self.with_one("limits", parse_limits)
    }

    /// Audit login uid; 4294967295 when unset. `None` without CONFIG_AUDIT.
    pub fn loginuid(&self) -> Result<Option<u32>> {
        absent(self.number("loginuid", 10))
    }

    /// -1000..=1000.
    pub fn oom_score_adj(&self) -> Result<i32> {
        self.number("oom_score_adj", 10)
    }

    /// Slack of the timers of one thread, in nanoseconds. For another than the caller needs CAP_SYS_NICE.
    pub fn timerslack_ns(&self) -> Result<u64> {
        self.number("timerslack_ns", 10)
    }

    /// personality(2).
    pub fn personality(&self) -> Result<u32> {
        self.number("personality", 16)
    }

    /// coredump_filter; `None` for a task without memory, whose file is empty.
    pub fn coredump_filter(&self) -> Result<Option<u32>> {
        self.with_one("coredump_filter", |file, b| match b.trim_ascii() {
            b"" => Ok(None),
            v => Ok(Some(
                text::number(v, 16).ok_or_else(|| ParseError::new(file, 1, "not a number"))?,
            )),
        })
    }

    /// Name of the thread, up to 15 bytes of anything but NUL.
    pub fn comm(&self) -> Result<Vec<u8>> {
        self.with("comm", |_, b| {
            Ok(b.strip_suffix(b"\n").unwrap_or(b).to_vec())
        })
    }

    /// Place in each cgroup hierarchy.
    pub fn cgroup(&self) -> Result<Vec<CgroupLine>> {
        self.with("cgroup", parse_cgroup)
    }

    /// What the task is doing. Needs PTRACE_MODE_ATTACH.
    pub fn syscall(&self) -> Result<InSyscall> {
        self.with("syscall", parse_syscall)
    }

    /// Mounts of the task's mount namespace, seen from its root.
    pub fn mountinfo(&self) -> Result<Vec<MountInfo>> {
        self.with("mountinfo", parse_mountinfo)
    }

    /// Inode number of the namespace `name` (`mnt`, `pid_for_children`). ENOENT also when the kernel lacks the kind or
    /// the task has exited.
    pub fn ns(&self, name: &str) -> Result<u64> {
        let link = self.link(&format!("ns/{name}"))?;
        parse_ns_link(&link).ok_or_else(|| {
            ParseError::new(self.name(&format!("ns/{name}")), 1, "no inode number").into()
        })
    }

    /// All namespaces by name, sorted; kinds the kernel lacks are left out.
    pub fn ns_links(&self) -> Result<Vec<(&'static str, u64)>> {
        let mut out = Vec::new();
        for name in [
            "cgroup",
            "ipc",
            "mnt",
            "net",
            "pid",
            "pid_for_children",
            "time",
            "time_for_children",
            "user",
            "uts",
        ] {
            match self.ns(name) {
                Ok(ino) => out.push((name, ino)),
                // pid_for_children points nowhere after unshare(CLONE_NEWPID) until the first fork.
                Err(e) if e.errno() == Some(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }
}

fn absent<T>(r: Result<T>) -> Result<Option<T>> {
    match r {
        Ok(v) => Ok(Some(v)),
        Err(e) if e.errno() == Some(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
