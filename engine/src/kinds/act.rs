//! Acts of the engine's own: what a plan has it do between calls.
//!
//! Almost everything is a [`Call`]. The rest cannot be a row, because its data would not fit (contents), because it judges
//! what it saw (checks), or because it must clean up after itself whatever happens (names, credentials). Each of them prints
//! itself like a row, so the whole plan can be read before it is played.
use super::{fown, ghost, pidfd, sysv, tty_acts};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::call::{Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::ids::HostPid;
use stasis_kernel::names;
use stasis_proto::ImageDir;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Contents are moved in steps of this size.
pub const STEP: usize = 1 << 20;

/// One act of the engine during a restore.
#[derive(Debug, Clone)]
pub enum Act {
    /// A system call.
    Call(Call),
    /// Contents from a pages image into a file.
    Fill(Fill),
    /// Is this the file that was dumped?
    Check(Check),
    /// A file without a name.
    Nameless(ghost::Nameless),
    /// A fresh object of shared anonymous memory, as mmap(MAP_SHARED|MAP_ANONYMOUS) makes it.
    SharedMemory {
        /// Its name from now on.
        file: FdRef,
        /// Bytes.
        size: u64,
    },
    /// A segment of System V shared memory.
    Segment(sysv::Segment),
    /// Who is told by signals about a file.
    Owner(fown::Owner),
    /// pidfds of a task.
    PidFd(pidfd::Open),
    /// A terminal pair.
    Pty(tty_acts::Pty),
    /// An open /dev/tty.
    CurrentTty(tty_acts::CurrentTty),
    /// What is queued in a terminal pair.
    Queue(tty_acts::Queue),
}

/// Writes runs of a pages image into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// The file, open for writing; or, if it has no write(2) (hugetlbfs), for reading and writing.
    pub file: FdRef,
    /// Name of the pages image.
    pub image: String,
    /// What goes where, none beyond `size`.
    pub runs: Vec<FillRun>,
    /// Size of the file, which it has already.
    pub size: u64,
    /// The file can only be written through a mapping; its blocks have this size in bytes (huge pages).
    pub huge: Option<u64>,
}

/// A run of a [`Fill`], in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillRun {
    /// Offset in the file.
    pub at: u64,
    /// Offset in the image.
    pub from: u64,
    /// Length.
    pub len: u64,
}

/// Compares a freshly opened file with what was dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The file.
    pub file: FdRef,
    /// Its name in the image.
    pub name: String,
    /// Expected size in bytes.
    pub size: Option<u64>,
    /// Expected type and permissions.
    pub mode: Option<u32>,
    /// Compare the type only (`--skip-file-rwx-check`).
    pub skip_rwx: bool,
}

/// What acts are performed with.
pub struct Stagehand<'a> {
    /// The files opened so far.
    pub host: &'a mut Host,
    /// The image folder.
    pub dir: &'a ImageDir,
    /// The engine's view of a pid of the tree (or of a process group of it), if it exists by now.
    pub pid: &'a dyn Fn(u32) -> Option<HostPid>,
}

impl Stagehand<'_> {
    /// The open file of this name.
    pub fn fd(&self, f: FdRef) -> Result<BorrowedFd<'_>> {
        match self.host.fd(f) {
            Some(fd) => Ok(fd.as_fd()),
            None => Err(Error::bug(format!("file#{} is not open", f.0))),
        }
    }
}

impl Act {
    /// Does it.
    pub fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        match self {
            Act::Call(c) => {
                on.host.play(c)?;
                Ok(())
            }
            Act::Fill(f) => f.perform(on),
            Act::Check(c) => c.perform(on),
            Act::Nameless(n) => n.perform(on),
            Act::Owner(o) => o.perform(on),
            Act::SharedMemory { file, size } => {
                let fd = stasis_kernel::vm::shared_memory(*size)?;
                on.host.insert(*file, fd);
                Ok(())
            }
            Act::Segment(s) => s.perform(on),
            Act::PidFd(p) => p.perform(on),
            Act::Pty(p) => p.perform(on),
            Act::CurrentTty(t) => t.perform(on),
            Act::Queue(q) => q.perform(on),
        }
    }
    /// The call, if it is one.
    pub fn call(&self) -> Option<&Call> {
        match self {
            Act::Call(c) => Some(c),
            _ => None,
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Call(c) => c.fmt(f),
            Act::Fill(x) => {
                let bytes: u64 = x.runs.iter().map(|r| r.len).sum();
                write!(
                    f,
                    "fill(file#{}, {} bytes of {} in {} runs)",
                    x.file.0,
                    bytes,
                    x.image,
                    x.runs.len()
                )
            }
            Act::Check(c) => {
                write!(f, "check(file#{}, {:?}", c.file.0, c.name)?;
                if let Some(s) = c.size {
                    write!(f, ", size {s}")?;
                }
                if let Some(m) = c.mode {
                    write!(f, ", mode {m:#o}")?;
                }
                f.write_str(")")
            }
            Act::Nameless(n) => n.fmt(f),
            Act::Owner(o) => o.fmt(f),
            Act::SharedMemory { file, size } => {
                write!(f, "shared_memory({size} bytes) -> file#{}", file.0)
            }
            Act::Segment(s) => s.fmt(f),
            Act::PidFd(p) => p.fmt(f),
            Act::Pty(p) => p.fmt(f),
            Act::CurrentTty(t) => t.fmt(f),
            Act::Queue(q) => q.fmt(f),
        }
    }
}

impl Fill {
    fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let image = on.dir.open_raw(&self.image)?;
        let to = File::from(fds::dup(on.fd(self.file)?)?);
        let mut buf = vec![0u8; STEP];
        for r in &self.runs {
            let mut done = 0;
            while done < r.len {
                // a step must not cross a huge page, each of which is mapped alone
                let room = self.huge.map_or(u64::MAX, |h| h - (r.at + done) % h);
                let n = (r.len - done).min(STEP as u64).min(room) as usize;
                let piece = &mut buf[..n];
                image.read_exact_at(piece, r.from + done).map_err(|e| {
                    Error::new("E5101", Blame::Image, format!("cannot read {}", self.image))
                        .why(format!("{n} bytes at offset {}: {e}", r.from + done))
                        .advice("the image is shorter than its pagemap says: dump again")
                })?;
                match self.huge {
                    None => to
                        .write_all_at(piece, r.at + done)
                        .map_err(|e| sys("pwrite64", &e, format!("file#{}", self.file.0)))?,
                    Some(h) => fds::write_mapped(to.as_fd(), r.at + done, piece, h)?,
                }
                done += n as u64;
            }
        }
        Ok(())
    }
}

impl Check {
    fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let st = fds::fstat(on.fd(self.file)?)?;
        let other = |why: String, advice: &str| {
            Err(Error::new(
                "E6121",
                Blame::Host,
                format!("{} is not the file that was dumped", self.name),
            )
            .why(why)
            .advice(advice))
        };
        if let Some(size) = self.size
            && st.st_size as u64 != size
        {
            return other(
                format!("it has {} bytes and had {size}", st.st_size),
                "bring the file back as it was when the tree was dumped",
            );
        }
        let Some(mode) = self.mode else {
            return Ok(());
        };
        if (st.st_mode ^ mode) & libc::S_IFMT != 0 {
            let (is, was) = (names::file_type(st.st_mode), names::file_type(mode));
            return other(
                format!("it is a {is} and was a {was}"),
                "bring the file back as it was when the tree was dumped",
            );
        }
        if !self.skip_rwx && (st.st_mode ^ mode) & 0o7777 != 0 {
            return other(
                format!(
                    "its permissions are {:04o} and were {:04o}",
                    st.st_mode & 0o7777,
                    mode & 0o7777
                ),
                "chmod it back, or pass --skip-file-rwx-check",
            );
        }
        Ok(())
    }
}

/// Something a dump made that a failed dump must take back.
#[derive(Debug)]
pub enum Undo {
    /// A name (of a further hard link).
    Unlink {
        /// The folder.
        dir: OwnedFd,
        /// The name in it.
        name: String,
        /// The whole path, for messages.
        path: PathBuf,
    },
    /// What was queued in a terminal.
    Terminal(tty_acts::Taken),
}

impl Undo {
    /// Takes it back.
    pub fn perform(&self) -> Result<()> {
        match self {
            Undo::Unlink { dir, name, path } => {
                match nix::unistd::unlinkat(
                    dir,
                    name.as_str(),
                    nix::unistd::UnlinkatFlags::NoRemoveDir,
                ) {
                    Ok(()) | Err(Errno::ENOENT) => Ok(()),
                    Err(e) => Err(SysError::new("unlinkat", e, path.display().to_string()).into()),
                }
            }
            Undo::Terminal(t) => t.put_back(),
        }
    }
}

/// An error of the standard library as one of a system call.
pub(super) fn sys(call: &'static str, e: &std::io::Error, what: impl Into<String>) -> Error {
    SysError::new(call, Errno::from_raw(e.raw_os_error().unwrap_or(0)), what).into()
}
