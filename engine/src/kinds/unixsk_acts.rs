//! What the engine does to bring unix sockets back: deeds that one process of old does together, so that SO_PEERCRED tells
//! of it.
use super::act::{Stagehand, sys};
use super::unixsk::shown;
use super::{ghost, sockopts, unixsk_diag};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Gid, Uid, fchownat};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::host::{Host, MadeName};
use stasis_kernel::names;
use stasis_kernel::unix::{self, Ucred};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Deeds, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Deeds {
    /// Who does them; the engine itself if this is `None`, or if that process cannot be.
    pub by: Option<Ucred>,
    /// What is done.
    pub what: Vec<What>,
}

/// A name a socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// `sun_path`, as getsockname(2) tells it.
    pub path: Vec<u8>,
    /// The working directory a relative path counts from.
    pub dir: Option<PathBuf>,
    /// The root an absolute path counts from.
    pub root: Option<PathBuf>,
    /// Nothing is to be found under the path.
    pub deleted: bool,
    /// Permissions, owner and group of the inode.
    pub perms: Option<(u32, u32, u32)>,
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A socket with a name.
    File(FdRef),
    /// Whoever has this name.
    Name(Vec<u8>),
    /// Nobody any more (AF_UNSPEC).
    Nobody,
}

/// One deed.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// socketpair(2) of this type.
    Pair(i32, FdRef, FdRef),
    /// socket(2) of this type.
    Socket(i32, FdRef),
    /// bind(2).
    Bind(FdRef, Name),
    /// listen(2) with this backlog.
    Listen(FdRef, u32),
    /// connect(2).
    Connect(FdRef, To),
    /// accept4(2) of the first connection that waits.
    Accept(FdRef, FdRef),
    /// A message.
    Send(Send),
    /// shutdown(2).
    Shutdown(FdRef, i32),
    /// Takes a pending error away.
    Clear(FdRef),
    /// As much room to send as the host allows.
    Room(FdRef),
    /// Closes one of the engine's own.
    Close(FdRef),
}

/// A message into a socket's queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Send {
    /// The sender.
    pub from: FdRef,
    /// The receiver, if it is not the sender's peer.
    pub to: Option<FdRef>,
    /// Bytes.
    pub bytes: Vec<u8>,
    /// Open files that travel with it.
    pub files: Vec<FdRef>,
    /// Credentials that travel with it.
    pub cred: Option<Ucred>,
    /// It is an out-of-band byte.
    pub urgent: bool,
}

impl Deeds {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let Some(who) = self.by else {
            return self.all(on.host);
        };
        let host = &mut *on.host;
        match unix::as_process(who, || self.all(host)) {
            Ok(done) => done,
            // the number is taken, is none of this namespace, or may not be chosen: the peers see the engine's
            Err(e) => {
                tracing::warn!(
                    "SO_PEERCRED of sockets will not tell of process {}: {e}",
                    who.pid
                );
                self.all(on.host)
            }
        }
    }
    fn all(&self, host: &mut Host) -> Result<()> {
        for w in &self.what {
            w.perform(host).map_err(|e| e.on(w.to_string()))?;
        }
        Ok(())
    }
}

fn file(host: &Host, f: FdRef) -> Result<BorrowedFd<'_>> {
    match host.fd(f) {
        Some(fd) => Ok(fd.as_fd()),
        None => Err(Error::bug(format!("file#{} is not open", f.0))),
    }
}

/// `sun_path` that leads to a socket, and what must stay open meanwhile.
fn way(to: BorrowedFd<'_>) -> Result<(Vec<u8>, Option<OwnedFd>)> {
    let name = unix::name(to, false)?.unwrap_or_default();
    if name.first() == Some(&0) {
        return Ok((name, None));
    }
    // a path may be relative, deleted, or mean another socket by now: the inode cannot
    match unix::inode(to)? {
        Some(node) => Ok((
            format!("/proc/self/fd/{}\0", node.as_raw_fd()).into_bytes(),
            Some(node),
        )),
        None => Err(Error::new(
            "E5501",
            Blame::Image,
            "a connection to a socket without a name",
        )
        .why("only named sockets can be connected to")
        .advice("dump again")),
    }
}

/// Type bits for socket(2). Not blocking: nothing in an image may hold the engine up.
fn kind(t: i32) -> Arg {
    let flags = t | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    Arg::Named(flags as u64, names::socket_type(t as u64))
}

fn family() -> Arg {
    Arg::Named(libc::AF_UNIX as u64, "AF_UNIX".into())
}

impl What {
    fn perform(&self, host: &mut Host) -> Result<()> {
        let call = match self {
            What::Pair(t, a, b) => {
                let args = vec![family(), kind(*t), Arg::Int(0), Arg::Out(8)];
                let c = Call::new(libc::SYS_socketpair, args);
                c.binds_out(*a, 3, 0).binds_out(*b, 3, 4)
            }
            What::Socket(t, f) => {
                Call::new(libc::SYS_socket, vec![family(), kind(*t), Arg::Int(0)]).binds(*f)
            }
            What::Bind(f, name) => {
                let made = name.bind(file(host, *f)?)?;
                made.into_iter().for_each(|m| host.made_name(m));
                return Ok(());
            }
            What::Listen(f, backlog) => {
                let n = Arg::Int((*backlog).min(i32::MAX as u32).into());
                Call::new(libc::SYS_listen, vec![Arg::Fd(*f), n])
            }
            What::Connect(f, To::File(to)) => {
                let (path, keep) = way(file(host, *to)?)?;
                unix::connect(file(host, *f)?, &path)?;
                drop(keep);
                return Ok(());
            }
            What::Connect(f, To::Name(name)) => return reconnect(file(host, *f)?, name),
            What::Connect(f, To::Nobody) => {
                let nobody = Arg::In((libc::AF_UNSPEC as u16).to_le_bytes().to_vec());
                Call::new(libc::SYS_connect, vec![Arg::Fd(*f), nobody, Arg::Int(2)])
            }
            What::Accept(l, f) => {
                let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                let args = vec![Arg::Fd(*l), Arg::Null, Arg::Null, Arg::Int(flags as u64)];
                Call::new(libc::SYS_accept4, args).binds(*f)
            }
            What::Send(s) => return s.perform(host),
            What::Shutdown(f, how) => {
                Call::new(libc::SYS_shutdown, vec![Arg::Fd(*f), Arg::Int(*how as u64)])
            }
            What::Clear(f) => {
                sockopts::get_int(file(host, *f)?, libc::SOL_SOCKET, libc::SO_ERROR)?;
                return Ok(());
            }
            What::Room(f) => {
                const SO_SNDBUFFORCE: i32 = 32;
                let most = i32::MAX / 2;
                for (o, name) in [
                    (libc::SO_SNDBUF, "SO_SNDBUF"),
                    (SO_SNDBUFFORCE, "SO_SNDBUFFORCE"),
                ] {
                    let row = sockopts::set_int_row(*f, libc::SOL_SOCKET, o, name, most);
                    host.play(&row.any())?;
                }
                return Ok(());
            }
            What::Close(f) => {
                drop(host.take(*f));
                return Ok(());
            }
        };
        host.play(&call)?;
        Ok(())
    }
}

/// Connects to a service outside of the tree.
fn reconnect(socket: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    unix::connect(socket, name).map_err(|e| {
        Error::new(
            "E6501",
            Blame::Host,
            format!("cannot connect to {} again", shown(name)),
        )
        .why(e)
        .advice("start the service before the restore, or hand over a socket with --inherit-fd 'fd[N]:socket:[INODE]'")
    })
}

impl Send {
    fn perform(&self, host: &Host) -> Result<()> {
        let from = file(host, self.from)?;
        let (path, keep) = match self.to {
            Some(to) => {
                let (p, k) = way(file(host, to)?)?;
                (Some(p), k)
            }
            None => (None, None),
        };
        let files = self
            .files
            .iter()
            .map(|f| file(host, *f))
            .collect::<Result<Vec<_>>>()?;
        let flags = if self.urgent { libc::MSG_OOB } else { 0 };
        let send = |cred| unix::send(from, path.as_deref(), &self.bytes, &files, cred, flags);
        let done = match (send(self.cred), self.cred) {
            // no process has this number: one that has it for a moment sends
            (Err(e), Some(c)) if e.errno == Errno::ESRCH => {
                match unix::as_process(c, || send(Some(c))) {
                    Ok(r) => r,
                    Err(e) => {
                        tracing::warn!("credentials of a message in a socket are lost: {e}");
                        send(None)
                    }
                }
            }
            (r, _) => r,
        };
        drop(keep);
        Ok(done?)
    }
}

impl Name {
    /// Binds a socket to the name. Gives what was made in the file system.
    fn bind(&self, socket: BorrowedFd<'_>) -> Result<Option<MadeName>> {
        if self.path.first() == Some(&0) || self.path.is_empty() {
            return match unix::bind(socket, &self.path) {
                // whoever had it is gone, and another has taken it meanwhile
                Err(e) if self.deleted && e.errno == Errno::EADDRINUSE => {
                    tracing::warn!("{e}: a closed socket comes back without its name");
                    Ok(None)
                }
                r => r.map(|()| None).map_err(|e| self.refused(&e)),
            };
        }
        let path = self.path.strip_suffix(b"\0").unwrap_or(&self.path);
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        if self.deleted {
            let cwd = self.dir.clone().unwrap_or_else(|| PathBuf::from("/"));
            // looked up from a root of its own, and unlinked there
            let folder = cwd.join(path).parent().map(Path::to_path_buf);
            let folders: Vec<PathBuf> = folders(&cwd).into_iter().chain(folder).collect();
            unix::in_void(&folders, || -> Result<()> {
                nix::unistd::chdir(&cwd)
                    .map_err(|e| SysError::new("chdir", e, cwd.display().to_string()))?;
                unix::bind(socket, &self.path).map_err(|e| self.refused(&e))?;
                self.own(path)?;
                std::fs::remove_file(path)
                    .map_err(|e| sys("unlink", &e, path.display().to_string()))
            })??;
            return Ok(None);
        }
        let made = unix::in_folder(
            self.root.as_deref(),
            self.dir.as_deref(),
            || -> Result<_> {
                self.make_room(path)?;
                unix::bind(socket, &self.path).map_err(|e| self.refused(&e))?;
                let made = MadeName::new(path)?;
                self.own(path)?;
                Ok(made)
            },
        )??;
        Ok(Some(made))
    }
    fn refused(&self, e: &SysError) -> Error {
        Error::new(
            "E6502",
            Blame::Host,
            format!("cannot bind a socket to {}", shown(&self.path)),
        )
        .why(e)
        .advice("stop whoever has the name, and make the folder if it is missing")
    }
    /// What an ended tree has left under the name goes; what lives there stays, and is an error.
    fn make_room(&self, path: &Path) -> Result<()> {
        let st = match std::fs::symlink_metadata(path) {
            Ok(st) => st,
            Err(_) => return Ok(()),
        };
        let taken = |why: &str| {
            Error::new(
                "E6503",
                Blame::Host,
                format!("{} is taken", shown(&self.path)),
            )
            .why(why)
            .advice("stop the program that has it, or move the file away")
        };
        if !st.file_type().is_socket() {
            return Err(taken("there is a file which is no socket"));
        }
        let key = (ghost::kernel_dev(st.dev()), st.ino() as u32);
        let table = unixsk_diag::table()?;
        if table.values().any(|t| t.bound == Some(key)) {
            return Err(taken("a socket is bound to it"));
        }
        std::fs::remove_file(path).map_err(|e| sys("unlink", &e, shown(&self.path)))
    }
    fn own(&self, path: &Path) -> Result<()> {
        let Some((mode, uid, gid)) = self.perms else {
            return Ok(());
        };
        let failed = |call, e| SysError::new(call, e, path.display().to_string());
        let (u, g) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(AT_FDCWD, path, u, g, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|e| failed("fchownat", e))?;
        let mode = Mode::from_bits_truncate(mode & 0o7777);
        fchmodat(AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink)
            .map_err(|e| failed("fchmodat", e))?;
        Ok(())
    }
}

fn folders(cwd: &Path) -> Option<PathBuf> {
    (cwd != Path::new("/")).then(|| cwd.to_path_buf())
}

impl fmt::Display for Deeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(c) = self.by {
            write!(
                f,
                "as process {} of user {} group {}: ",
                c.pid, c.uid, c.gid
            )?;
        }
        for (i, w) in self.what.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{w}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.path))?;
        if self.deleted {
            f.write_str(" (deleted)")?;
        }
        if let Some(d) = &self.dir {
            write!(f, " in {}", d.display())?;
        }
        if let Some(r) = &self.root {
            write!(f, " under the root {}", r.display())?;
        }
        Ok(())
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = |t: &i32| names::socket_type(*t as u64).to_string();
        match self {
            What::Pair(k, a, b) => {
                write!(f, "socketpair({}) -> file#{}, file#{}", t(k), a.0, b.0)
            }
            What::Socket(k, a) => write!(f, "socket(AF_UNIX, {}) -> file#{}", t(k), a.0),
            What::Bind(a, n) => write!(f, "bind(file#{}, {n})", a.0),
            What::Listen(a, n) => write!(f, "listen(file#{}, {n})", a.0),
            What::Connect(a, To::File(b)) => write!(f, "connect(file#{}, file#{})", a.0, b.0),
            What::Connect(a, To::Name(n)) => write!(f, "connect(file#{}, {})", a.0, shown(n)),
            What::Connect(a, To::Nobody) => write!(f, "connect(file#{}, AF_UNSPEC)", a.0),
            What::Accept(l, a) => write!(f, "accept(file#{}) -> file#{}", l.0, a.0),
            What::Send(s) => {
                write!(f, "sendmsg(file#{}", s.from.0)?;
                if let Some(to) = s.to {
                    write!(f, " to file#{}", to.0)?;
                }
                write!(f, ", {} bytes", s.bytes.len())?;
                for x in &s.files {
                    write!(f, ", file#{}", x.0)?;
                }
                if let Some(c) = s.cred {
                    write!(f, ", of process {} user {} group {}", c.pid, c.uid, c.gid)?;
                }
                f.write_str(")")
            }
            What::Shutdown(a, how) => {
                let how = ["SHUT_RD", "SHUT_WR", "SHUT_RDWR"].get(*how as usize);
                write!(f, "shutdown(file#{}, {})", a.0, how.unwrap_or(&"?"))
            }
            What::Clear(a) => write!(f, "clear_error(file#{})", a.0),
            What::Room(a) => write!(f, "room_to_send(file#{})", a.0),
            What::Close(a) => write!(f, "close(file#{})", a.0),
        }
    }
}
