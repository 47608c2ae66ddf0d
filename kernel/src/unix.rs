//! Unix sockets: messages with what travels beside their bytes, queues looked into without taking anything out, and calls
//! made under another process's number.
//!
//! Long because it is a list: one function per call.
use crate::error::{SysError, SysResult, check};
use crate::fds;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// Process, user and group as a socket tells them (`struct ucred`, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ucred {
    /// Number of the process; 0 where the reader's pid namespace has none for it.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Ucred {
    /// From the bytes of `struct ucred`; `None` if there are fewer than 12.
    pub fn parse(b: &[u8]) -> Option<Self> {
        let w = |at: usize| {
            let b = b.get(at..at + 4)?;
            Some(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        };
        Some(Ucred {
            pid: w(0)? as i32,
            uid: w(4)?,
            gid: w(8)?,
        })
    }
    fn bytes(self) -> [u8; 12] {
        let mut b = [0; 12];
        b[..4].copy_from_slice(&self.pid.to_le_bytes());
        b[4..8].copy_from_slice(&self.uid.to_le_bytes());
        b[8..].copy_from_slice(&self.gid.to_le_bytes());
        b
    }
}

/// A message of a queue.
#[derive(Debug, Default)]
pub struct Message {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Open files that travel with it: further descriptors of them.
    pub files: Vec<OwnedFd>,
    /// Credentials that travel with it; only told by sockets with SO_PASSCRED, or, while the sender lives, with SO_PASSPIDFD.
    pub cred: Option<Ucred>,
    /// `sun_path` of the sender: empty if it has no name.
    pub from: Vec<u8>,
    /// It is longer than the room it was read into; this is its whole length.
    pub cut: Option<usize>,
    /// It is an out-of-band byte (MSG_OOB). A peek does not tell.
    pub urgent: bool,
}

/// linux/socket.h: a pidfd of the sender beside a message. KERNEL(>=6.5)
const SCM_PIDFD: i32 = 4;
/// Bytes of `sun_family`.
const FAMILY: usize = 2;
const SO_PEEK_OFF: i32 = 42;

/// Reads the message at the peek offset of a socket into a buffer of `room` bytes, without taking it out and without
/// waiting. The peek offset, if one is set, moves behind it. `None`: there is none.
///
/// # Errors
/// EMSGSIZE: our table of descriptors is full; else as recvmsg(2). A pending error of a datagram or seqpacket socket is
/// *taken* by this call (KERNEL: sock_error() in __skb_try_recv_datagram()): ask poll(2) for POLLERR before.
pub fn peek(socket: BorrowedFd<'_>, room: usize, flags: i32) -> SysResult<Option<Message>> {
    /// `cmsghdr` wants 8-byte alignment, which `u64` gives. Rights, credentials, a pidfd, a security label.
    const WORDS: usize = (64 + fds::SCM_MAX_FD * 4 + 4096).div_ceil(8);
    let mut control = [0u64; WORDS];
    let mut m = Message {
        bytes: vec![0; room],
        ..Message::default()
    };
    // SAFETY: all zeroes is a valid sockaddr_un and a valid msghdr.
    let (mut addr, mut msg): (libc::sockaddr_un, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut iov = libc::iovec {
        iov_base: m.bytes.as_mut_ptr().cast(),
        iov_len: room,
    };
    msg.msg_name = (&raw mut addr).cast();
    msg.msg_namelen = size_of::<libc::sockaddr_un>() as u32;
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = size_of_val(&control) as _;
    let flags = flags | libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let n = loop {
        // SAFETY: `msg` points to memory of ours with its true lengths.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut msg, flags | libc::MSG_TRUNC) };
        if n >= 0 {
            break n as usize;
        }
        match Errno::last() {
            Errno::EINTR => {}
            Errno::EAGAIN => return Ok(None),
            e => return Err(SysError::new("recvmsg(MSG_PEEK)", e, "")),
        }
    };
    let mut pidfd = None;
    // SAFETY: the kernel filled `control` with well-formed headers of `msg_controllen` bytes, which the CMSG macros
    // walk; descriptors in it are fresh and known to nobody else.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(&msg);
        while !c.is_null() {
            let len = ((*c).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let data = libc::CMSG_DATA(c);
            if (*c).cmsg_level == libc::SOL_SOCKET {
                match (*c).cmsg_type {
                    libc::SCM_RIGHTS => {
                        for i in 0..len / size_of::<RawFd>() {
                            let fd = data.cast::<RawFd>().add(i).read_unaligned();
                            m.files.push(OwnedFd::from_raw_fd(fd));
                        }
                    }
                    SCM_PIDFD if len >= 4 => {
                        let fd = data.cast::<RawFd>().read_unaligned();
                        if fd >= 0 {
                            pidfd = Some(OwnedFd::from_raw_fd(fd));
                        }
                    }
                    libc::SCM_CREDENTIALS => {
                        m.cred = Ucred::parse(std::slice::from_raw_parts(data, len));
                    }
                    _ => {}
                }
            }
            c = libc::CMSG_NXTHDR(&msg, c);
        }
    }
    if msg.msg_flags & libc::MSG_CTRUNC != 0 {
        let what = format!("only {} descriptors arrived", m.files.len());
        return Err(SysError::new("recvmsg(MSG_PEEK)", Errno::EMSGSIZE, what));
    }
    if m.cred.is_none() {
        m.cred = pidfd.and_then(|p| sender(p.as_fd()));
    }
    m.cut = (n > room).then_some(n);
    m.bytes.truncate(n);
    let named = (msg.msg_namelen as usize).min(size_of::<libc::sockaddr_un>());
    let path = named.saturating_sub(FAMILY);
    m.from = addr.sun_path[..path].iter().map(|c| *c as u8).collect();
    Ok(Some(m))
}

/// Who a pidfd beside a message stands for, if that process lives; its number is the one in the caller's pid namespace, also if /proc is
/// of an outer one. Its user and group are those it has now: a socket that is told pidfds only is not told the others.
fn sender(pidfd: BorrowedFd<'_>) -> Option<Ucred> {
    // numbers from the pid namespace of /proc inwards (proc_pid_status(5))
    let numbers = |file: &str| -> Option<Vec<i32>> {
        let told = std::fs::read_to_string(format!("/proc/self/{file}")).ok()?;
        let line = told.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
        line.split_whitespace().map(|w| w.parse().ok()).collect()
    };
    let all = numbers(&format!("fdinfo/{}", pidfd.as_raw_fd()))?;
    let outer = all.first().filter(|p| **p > 0)?;
    let depth = numbers("status")?.len().checked_sub(1)?;
    let m = std::fs::metadata(format!("/proc/{outer}")).ok()?;
    Some(Ucred {
        pid: *all.get(depth)?,
        uid: m.uid(),
        gid: m.gid(),
    })
}

/// `struct sockaddr_un` for this `sun_path`, which is up to 108 bytes.
pub fn address(path: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_le_bytes()[..], path].concat()
}

/// Sends one message without waiting and without SIGPIPE: to `to` (a `sun_path`), or to the peer. `flags`: MSG_OOB.
///
/// # Errors
/// As sendmsg(2); EMSGSIZE if only a part of it was taken.
pub fn send(
    socket: BorrowedFd<'_>,
    to: Option<&[u8]>,
    bytes: &[u8],
    files: &[BorrowedFd<'_>],
    cred: Option<Ucred>,
    flags: i32,
) -> SysResult<()> {
    let what = || format!("{} bytes with {} files", bytes.len(), files.len());
    if files.len() > fds::SCM_MAX_FD {
        return Err(SysError::new("sendmsg", Errno::EINVAL, what()));
    }
    let mut control: Vec<u64> = Vec::new();
    let mut put = |kind: i32, data: &[u8]| {
        let mut b = ((16 + data.len()) as u64).to_le_bytes().to_vec();
        b.extend(libc::SOL_SOCKET.to_le_bytes());
        b.extend(kind.to_le_bytes());
        b.extend_from_slice(data);
        b.resize(b.len().next_multiple_of(8), 0);
        let words = b.chunks_exact(8);
        control.extend(words.map(|c| u64::from_ne_bytes(c.try_into().expect("eight bytes"))));
    };
    if !files.is_empty() {
        let raw: Vec<u8> = files
            .iter()
            .flat_map(|f| f.as_raw_fd().to_le_bytes())
            .collect();
        put(libc::SCM_RIGHTS, &raw);
    }
    if let Some(c) = cred {
        put(libc::SCM_CREDENTIALS, &c.bytes());
    }
    let mut name = to.map(address).unwrap_or_default();
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    if !name.is_empty() {
        msg.msg_name = name.as_mut_ptr().cast();
        msg.msg_namelen = name.len() as u32;
    }
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    if !control.is_empty() {
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = (control.len() * 8) as _;
    }
    let flags = flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    loop {
        // SAFETY: `msg` points to memory of ours with its true lengths; the kernel only reads it.
        let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &msg, flags) };
        if n == bytes.len() as isize {
            return Ok(());
        }
        let e = match n {
            -1 => Errno::last(),
            _ => Errno::EMSGSIZE,
        };
        if e != Errno::EINTR {
            return Err(SysError::new("sendmsg", e, what()));
        }
    }
}

/// bind(2) or connect(2) with a `sun_path`.
fn with_address(nr: i64, call: &'static str, socket: BorrowedFd<'_>, path: &[u8]) -> SysResult<()> {
    let a = address(path);
    // SAFETY: the kernel reads `a`, whose length is given.
    let r = unsafe { libc::syscall(nr, socket.as_raw_fd(), a.as_ptr(), a.len()) };
    check(r, call, || String::from_utf8_lossy(path).replace('\0', "@")).map(|_| ())
}

/// bind(2) to this `sun_path`.
///
/// # Errors
/// As bind(2).
pub fn bind(socket: BorrowedFd<'_>, path: &[u8]) -> SysResult<()> {
    with_address(libc::SYS_bind, "bind", socket, path)
}

/// connect(2) to this `sun_path`.
///
/// # Errors
/// As connect(2).
pub fn connect(socket: BorrowedFd<'_>, path: &[u8]) -> SysResult<()> {
    with_address(libc::SYS_connect, "connect", socket, path)
}

/// `sun_path` of our own name or of the peer's. `None`: there is no peer.
///
/// # Errors
/// As getsockname(2) and getpeername(2).
pub fn name(socket: BorrowedFd<'_>, peer: bool) -> SysResult<Option<Vec<u8>>> {
    let mut b = [0u8; 128];
    let mut len = b.len() as u32;
    let nr = match peer {
        true => libc::SYS_getpeername,
        false => libc::SYS_getsockname,
    };
    // SAFETY: the kernel writes at most `len` bytes.
    let r = unsafe { libc::syscall(nr, socket.as_raw_fd(), b.as_mut_ptr(), &mut len) };
    if r == -1 && Errno::last() == Errno::ENOTCONN {
        return Ok(None);
    }
    check(r, "getsockname", || "")?;
    let end = (len as usize).clamp(FAMILY, b.len());
    Ok(Some(b[FAMILY..end].to_vec()))
}

/// The inode a socket was bound to, also after it was unlinked (SIOCUNIXFILE): an O_PATH file. `None`: none.
///
/// # Errors
/// As ioctl(2).
pub fn inode(socket: BorrowedFd<'_>) -> SysResult<Option<OwnedFd>> {
    // linux/un.h: SIOCPROTOPRIVATE + 0
    const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
    // SAFETY: no argument; the answer is a new descriptor.
    let r = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE as _, 0) };
    if r == -1 && Errno::last() == Errno::ENOENT {
        return Ok(None);
    }
    check(r.into(), "ioctl(SIOCUNIXFILE)", || "")?;
    // SAFETY: the kernel has just given it to us.
    let fd = unsafe { OwnedFd::from_raw_fd(r) };
    Ok(Some(fd))
}

/// Sets the peek offset (SO_PEEK_OFF); -1: peeks begin at the head.
///
/// # Errors
/// As setsockopt(2).
pub fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> SysResult<()> {
    // SAFETY: an int of ours is read.
    let r = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEEK_OFF,
            (&raw const offset).cast(),
            4,
        )
    };
    check(r.into(), "setsockopt(SO_PEEK_OFF)", || "").map(|_| ())
}

/// Runs `f`, which changes peek offsets of these sockets, and sets them back to the given values: also if this process is
/// killed meanwhile.
///
/// A peek offset belongs to the socket, not to the descriptor, so whoever else has the socket would be left with it. A
/// child of ours waits for `f` or for our end, whichever comes first, and sets the offsets back. It shares the
/// descriptors, leads a session of its own and ignores signals of terminals and groups.
///
/// # Errors
/// fork; a child that could not set an offset.
pub fn with_peek_offsets<T>(
    sockets: &[(BorrowedFd<'_>, i32)],
    f: impl FnOnce() -> T,
) -> SysResult<T> {
    let back: Vec<(RawFd, i32)> = sockets.iter().map(|(s, v)| (s.as_raw_fd(), *v)).collect();
    let (hold, wait) = fds::seqpacket_pair()?;
    let (ours, theirs) = (hold.as_raw_fd(), wait.as_raw_fd());
    // SAFETY: the child makes only system calls on numbers and memory prepared before, and ends by _exit(2): safe also when
    // other threads held locks.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            libc::setsid();
            for s in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGQUIT] {
                libc::signal(s, libc::SIG_IGN);
            }
            libc::close(ours);
            let mut b = 0u8;
            while libc::read(theirs, (&raw mut b).cast(), 1) < 0 {}
            let mut failed = 0;
            for (fd, value) in &back {
                let r = libc::setsockopt(
                    *fd,
                    libc::SOL_SOCKET,
                    SO_PEEK_OFF,
                    (value as *const i32).cast(),
                    4,
                );
                failed |= i32::from(r != 0);
            }
            libc::_exit(failed)
        }
    }
    check(pid.into(), "fork", || "a guardian of peek offsets")?;
    drop(wait);
    let done = f();
    drop(hold);
    let status = wait_for(pid)?;
    if status != 0 {
        let what = format!("the guardian ended with status {status:#x}");
        return Err(SysError::new(
            "setsockopt(SO_PEEK_OFF)",
            Errno::ECANCELED,
            what,
        ));
    }
    Ok(done)
}

fn wait_for(pid: i32) -> SysResult<i32> {
    let mut status = 0;
    loop {
        // SAFETY: a child of ours that nobody else waits for.
        let r = unsafe { libc::waitpid(pid, &mut status, libc::__WALL) };
        if r == pid {
            return Ok(status);
        }
        let e = Errno::last();
        if e != Errno::EINTR {
            return Err(SysError::new("waitpid", e, format!("pid {pid}")));
        }
    }
}

/// Runs `f` in a process that has this number, user and group, with our memory and our descriptors: sockets it makes,
/// connects or lets listen tell these credentials to their peers (SO_PEERCRED). The process ends with `f`, its number is
/// free again then; what `f` opened and wrote stays.
///
/// # Errors
/// EEXIST: a process has the number; EPERM: we may not choose numbers. `f` did not run then.
pub fn as_process<T>(who: Ucred, f: impl FnOnce() -> T) -> SysResult<T> {
    struct Work<'a, T> {
        who: Ucred,
        f: Option<Box<dyn FnOnce() -> T + 'a>>,
        done: Option<std::thread::Result<T>>,
        errno: i32,
    }
    extern "C" fn child<T>(at: *mut libc::c_void) -> i32 {
        // SAFETY: the parent thread is suspended (CLONE_VFORK) and its frame, which holds the work, lives.
        let w = unsafe { &mut *at.cast::<Work<'_, T>>() };
        // SAFETY: numbers only; raw calls change this process alone. Capabilities stay, so that paths can be reached.
        let r = unsafe {
            const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
            libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
            let (u, g) = (w.who.uid, w.who.gid);
            let r = libc::syscall(libc::SYS_setresgid, g, g, g);
            if r == 0 {
                libc::syscall(libc::SYS_setresuid, u, u, u)
            } else {
                r
            }
        };
        if r != 0 {
            w.errno = Errno::last_raw();
            return 1;
        }
        if let Some(f) = w.f.take() {
            w.done = Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)));
        }
        0
    }
    let mut work: Work<'_, T> = Work {
        who,
        f: Some(Box::new(f)),
        done: None,
        errno: 0,
    };
    let mut stack = vec![0u128; 64 * 1024];
    let tid = who.pid;
    // clone_args of clone3(2), 88 bytes
    let mut args = [0u64; 11];
    args[0] = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES) as u64;
    args[4] = libc::SIGCHLD as u64;
    args[5] = stack.as_mut_ptr() as u64;
    args[6] = std::mem::size_of_val(&stack[..]) as u64;
    args[8] = (&raw const tid) as u64;
    args[9] = 1;
    // SAFETY: plain numbers.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
    // SAFETY: sigset_t is plain data.
    let (mut all, mut old): (libc::sigset_t, libc::sigset_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut pid = libc::SYS_clone3;
    // SAFETY: CLONE_VFORK suspends this thread until the child has ended, so stack and work outlive it, and the child may use
    // the thread's own storage. The child gets a stack of its own (16-byte aligned at the call) and never returns from here:
    // it runs `child` and exits. Signals are blocked, so that no handler runs in it.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "mov edi, eax",
            "mov eax, 231",
            "syscall",
            "ud2",
            "2:",
            inout("rax") pid,
            in("rdi") args.as_ptr(),
            in("rsi") 88u64,
            in("r12") &raw mut work,
            in("r13") child::<T> as extern "C" fn(*mut libc::c_void) -> i32,
            lateout("rcx") _,
            lateout("r11") _,
        );
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
        // a change of credentials made the shared memory undumpable
        libc::prctl(libc::PR_SET_DUMPABLE, dumpable.min(1));
    }
    let what = || format!("as process {} of user {}", who.pid, who.uid);
    if pid < 0 {
        return Err(SysError::new(
            "clone3",
            Errno::from_raw(-pid as i32),
            what(),
        ));
    }
    wait_for(pid as i32)?;
    match work.done {
        Some(Ok(t)) => Ok(t),
        Some(Err(panic)) => std::panic::resume_unwind(panic),
        None => Err(SysError::new(
            "setresuid",
            Errno::from_raw(work.errno),
            what(),
        )),
    }
}

/// Runs `f` in a thread whose root is a fresh, empty, private file system that nobody else sees and that goes with it, but
/// for what is still open. `folders` are made in it (absolute paths).
///
/// # Errors
/// We may not mount or change our root.
pub fn in_void<T: Send>(
    folders: &[std::path::PathBuf],
    f: impl FnOnce() -> T + Send,
) -> SysResult<T> {
    std::thread::scope(|s| {
        let t = s.spawn(|| {
            let io = |call: &'static str, e: io::Error| {
                let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
                SysError::new(call, errno, "a private tmpfs")
            };
            // SAFETY: strings of ours and numbers; the answers are new descriptors.
            let mount = unsafe {
                let fs = libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 1);
                let fs = check(fs, "fsopen", || "tmpfs")?;
                let fs = OwnedFd::from_raw_fd(fs as RawFd);
                /// linux/mount.h
                const FSCONFIG_CMD_CREATE: u32 = 6;
                let null = std::ptr::null::<u8>();
                let r = libc::syscall(
                    libc::SYS_fsconfig,
                    fs.as_raw_fd(),
                    FSCONFIG_CMD_CREATE,
                    null,
                    null,
                    0,
                );
                check(r, "fsconfig", || "tmpfs")?;
                let m = libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, 0);
                OwnedFd::from_raw_fd(check(m, "fsmount", || "tmpfs")? as RawFd)
            };
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
                .map_err(|e| SysError::new("unshare", e, "CLONE_FS"))?;
            nix::unistd::fchdir(mount.as_fd())
                .map_err(|e| SysError::new("fchdir", e, "a private tmpfs"))?;
            nix::unistd::chroot(".").map_err(|e| SysError::new("chroot", e, "a private tmpfs"))?;
            for p in folders {
                std::fs::create_dir_all(p).map_err(|e| io("mkdir", e))?;
            }
            Ok(f())
        });
        t.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `f` in a thread with this root and, below it, this working directory.
///
/// # Errors
/// As chroot(2) and chdir(2).
pub fn in_folder<T: Send>(
    root: Option<&std::path::Path>,
    cwd: Option<&std::path::Path>,
    f: impl FnOnce() -> T + Send,
) -> SysResult<T> {
    std::thread::scope(|s| {
        let t = s.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
                .map_err(|e| SysError::new("unshare", e, "CLONE_FS"))?;
            let shown = |p: &std::path::Path| p.display().to_string();
            if let Some(r) = root {
                nix::unistd::chdir(r).map_err(|e| SysError::new("chdir", e, shown(r)))?;
                nix::unistd::chroot(".").map_err(|e| SysError::new("chroot", e, shown(r)))?;
            }
            if let Some(d) = cwd {
                nix::unistd::chdir(d).map_err(|e| SysError::new("chdir", e, shown(d)))?;
            }
            Ok(f())
        });
        t.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
#[path = "unix_tests.rs"]
mod tests;
