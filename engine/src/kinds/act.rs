//! Acts of the engine's own: what a plan has it do between calls.
//!
//! Almost everything is a [`Call`]. The rest cannot be a row, because its data would not fit (contents), because it judges
//! what it saw (checks), or because it must clean up after itself whatever happens (names, credentials). Each of them prints
//! itself like a row, so the whole plan can be read before it is played.
use super::{
    bpfmap, fown, ghost, inet_address, inet_groups, inherit, mqueue, netlink, packet, pidfd,
    sockopts, sysv, tcp_acts, tcp_queue, tty_acts, udp_cork, udp_queue, unixsk_acts,
};
use crate::error::{Blame, Error, Result};
use crate::pages::{Source, Store};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, lseek};
use stasis_kernel::call::{Arg, Call, FdRef};
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
    /// An open file gets another name.
    Rename {
        /// The one it has.
        from: FdRef,
        /// From now on.
        to: FdRef,
    },
    /// Contents from a pages image into a file.
    Fill(Fill),
    /// A pages image is opened for reading.
    Image(FdRef, Source),
    /// Is this the file that was dumped? What it needs besides.
    Check(Box<Check>),
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
    /// An open file of the caller's.
    Adopt(inherit::Adopt),
    /// A terminal pair.
    Pty(tty_acts::Pty),
    /// An open /dev/tty.
    CurrentTty(tty_acts::CurrentTty),
    /// What is queued in a terminal pair.
    Queue(tty_acts::Queue),
    /// A POSIX message queue.
    Mqueue(Box<mqueue::Open>),
    /// A map of eBPF programs.
    BpfMap(Box<bpfmap::Open>),
    /// The port of a netlink socket.
    NetlinkPort(netlink::Port),
    /// The device of an old packet socket.
    BindByName(packet::ByName),
    /// Unix sockets.
    Unix(unixsk_acts::Deeds),
    /// Sizes of a socket's buffers.
    Buffers(sockopts::Buffers),
    /// The address of an internet socket.
    Bind(inet_address::Bind),
    /// A multicast group.
    Join(inet_groups::Join),
    /// A TCP connection.
    Connect(Box<tcp_acts::Connect>),
    /// The end of its repair mode.
    Wake(Box<tcp_acts::Wake>),
    /// Connections that wait to be accepted.
    Lead(Box<tcp_queue::Lead>),
    /// Datagrams that wait.
    Deliver(Box<udp_queue::Deliver>),
    /// Part of a datagram that is held back.
    Cork(Box<udp_cork::Cork>),
}

/// Writes runs of a pages image into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// The file, open for writing; or, if it has no write(2) (hugetlbfs), for reading and writing.
    pub file: FdRef,
    /// The pages images.
    pub sources: Vec<Source>,
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
    /// Place in the images.
    pub from: u64,
    /// Length.
    pub len: u64,
}

/// Compares a freshly opened file with what was dumped, and gives it what open(2) does not. One act, because there may be
/// thousands of files.
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
    /// Status flags to be set (F_SETFL).
    pub flags: Option<u32>,
    /// Its position, if it is not the beginning.
    pub position: Option<u64>,
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
            Act::Rename { from, to } => {
                let fd = on.host.take(*from);
                let fd = fd.ok_or_else(|| Error::bug(format!("file#{} is not open", from.0)))?;
                on.host.insert(*to, fd);
                Ok(())
            }
            Act::Fill(f) => f.perform(on),
            Act::Image(file, source) => {
                let image = source.plain(on.dir)?;
                on.host.insert(*file, image.into());
                Ok(())
            }
            Act::Check(c) => c.perform(on),
            Act::Nameless(n) => n.perform(on),
            Act::Owner(o) => o.perform(on),
            // the engine makes it beforehand where the worker in the tree's namespaces may not
            Act::SharedMemory { file, .. } if on.host.fd(*file).is_some() => Ok(()),
            Act::SharedMemory { file, size } => {
                let fd = stasis_kernel::vm::shared_memory(*size)?;
                on.host.insert(*file, fd);
                Ok(())
            }
            Act::Segment(s) => s.perform(on),
            Act::PidFd(p) => p.perform(on),
            Act::Adopt(a) => a.perform(on),
            Act::Pty(p) => p.perform(on),
            Act::CurrentTty(t) => t.perform(on),
            Act::Queue(q) => q.perform(on),
            Act::Mqueue(q) => q.perform(on),
            Act::BpfMap(m) => m.perform(on.host, on.dir),
            Act::NetlinkPort(p) => p.perform(on),
            Act::BindByName(b) => b.perform(on),
            Act::Unix(d) => d.perform(on),
            Act::Buffers(b) => b.perform(on),
            Act::Bind(b) => b.perform(on),
            Act::Join(j) => j.perform(on),
            Act::Connect(c) => c.perform(on),
            Act::Wake(w) => w.perform(on),
            Act::Lead(l) => l.perform(on),
            Act::Deliver(d) => d.perform(on),
            Act::Cork(c) => c.perform(on),
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
            Act::Rename { from, to } => write!(f, "rename(file#{}) -> file#{}", from.0, to.0),
            Act::Fill(x) => {
                let bytes: u64 = x.runs.iter().map(|r| r.len).sum();
                write!(
                    f,
                    "fill(file#{}, {} bytes of pages-{}.img in {} runs)",
                    x.file.0,
                    bytes,
                    x.sources.first().map_or(0, |s| s.id),
                    x.runs.len()
                )
            }
            Act::Image(file, s) => {
                write!(
                    f,
                    "pages-{}.img, {} dumps before -> file#{}",
                    s.id, s.level, file.0
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
                if let Some(flags) = c.flags {
                    write!(f, ", F_SETFL {}", Arg::OpenFlags(flags.into()))?;
                }
                if let Some(p) = c.position {
                    write!(f, ", SEEK_SET {p}")?;
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
            Act::Adopt(a) => a.fmt(f),
            Act::Pty(p) => p.fmt(f),
            Act::CurrentTty(t) => t.fmt(f),
            Act::Queue(q) => q.fmt(f),
            Act::Mqueue(q) => q.fmt(f),
            Act::BpfMap(m) => m.fmt(f),
            Act::NetlinkPort(p) => p.fmt(f),
            Act::BindByName(b) => b.fmt(f),
            Act::Unix(d) => d.fmt(f),
            Act::Buffers(b) => b.fmt(f),
            Act::Bind(b) => b.fmt(f),
            Act::Join(j) => j.fmt(f),
            Act::Connect(c) => c.fmt(f),
            Act::Wake(w) => w.fmt(f),
            Act::Lead(l) => l.fmt(f),
            Act::Deliver(d) => d.fmt(f),
            Act::Cork(c) => c.fmt(f),
        }
    }
}

impl Fill {
    fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let to = File::from(fds::dup(on.fd(self.file)?)?);
        self.copy(on.dir, |at, piece| match self.huge {
            None => to
                .write_all_at(piece, at)
                .map_err(|e| sys("pwrite64", &e, format!("file#{}", self.file.0))),
            Some(h) => Ok(fds::write_mapped(to.as_fd(), at, piece, h)?),
        })
    }
    /// Hands over the contents piece by piece, with their offsets.
    ///
    /// # Errors
    /// An image that is too short; those of `put`.
    pub fn copy(
        &self,
        dir: &ImageDir,
        mut put: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let image = Store::open(dir, &self.sources)?;
        let mut buf = vec![0u8; STEP];
        for r in &self.runs {
            let mut done = 0;
            while done < r.len {
                // a step must not cross a huge page, each of which is mapped alone
                let room = self.huge.map_or(u64::MAX, |h| h - (r.at + done) % h);
                let n = (r.len - done).min(STEP as u64).min(room) as usize;
                let piece = &mut buf[..n];
                image.read(piece, r.from + done)?;
                put(r.at + done, piece)?;
                done += n as u64;
            }
        }
        Ok(())
    }
}

impl Check {
    fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let file = on.fd(self.file)?;
        self.compare(&fds::fstat(file)?)?;
        let failed = |call, e| SysError::new(call, e, self.name.clone());
        if let Some(flags) = self.flags {
            let f = FcntlArg::F_SETFL(OFlag::from_bits_retain(flags as i32));
            fcntl(file, f).map_err(|e| failed("fcntl(F_SETFL)", e))?;
        }
        if let Some(p) = self.position {
            let there = lseek(file, p as i64, Whence::SeekSet).map_err(|e| failed("lseek", e))?;
            if there as u64 != p {
                return Err(failed("lseek", Errno::EIO).into());
            }
        }
        Ok(())
    }
    fn compare(&self, st: &libc::stat) -> Result<()> {
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
    /// A connection: nothing was changed, but when its program is dead nobody else must hear of it.
    Connection(OwnedFd),
    /// The network lock. Its drop takes it away.
    Lock(Box<std::cell::RefCell<stasis_netlock::Lock>>),
    /// One of a network namespace that ends with its tasks.
    NestedLock(Box<std::cell::RefCell<stasis_netlock::Lock>>),
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
            Undo::Connection(_) => Ok(()),
            // taking it away takes longer, and is done when the tree runs
            Undo::Lock(lock) | Undo::NestedLock(lock) => {
                crate::network::open(&mut lock.borrow_mut())
            }
        }
    }
    /// The tree is being killed, as it was meant to be: what must outlive the engine does so from now on.
    ///
    /// # Errors
    /// The lock cannot be left behind: it goes with the engine.
    pub fn outlive(&mut self) -> Result<()> {
        match self {
            Undo::Lock(lock) => crate::network::keep(lock.get_mut()),
            _ => Ok(()),
        }
    }
    /// The tree is dead, as it was meant to be: its connections end without a word.
    ///
    /// # Errors
    /// setsockopt(2). The connection is closed by the kernel then, with a packet that the lock holds, if there is one.
    pub fn bury(self) -> Result<()> {
        match self {
            Undo::Connection(socket) => Ok(stasis_kernel::repair::silence(socket.as_fd())?),
            _ => Ok(()),
        }
    }
}

/// An error of the standard library as one of a system call.
pub(super) fn sys(call: &'static str, e: &std::io::Error, what: impl Into<String>) -> Error {
    SysError::new(call, Errno::from_raw(e.raw_os_error().unwrap_or(0)), what).into()
}
