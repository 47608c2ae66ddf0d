//! System calls on descriptors and pidfds.
//!
//! pidfd_getfd(2) is what lets the engine look at another task's open files from outside: the copy refers to the same
//! open file. Its FD_CLOEXEC is always set and says nothing of the original; that bit is in fdinfo.
//!
//! Long because it is a list: one small function per call.

use std::cmp::Ordering;
use std::ffi::CStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::error::{SysError, SysResult, check};
use crate::ids::{HostPid, RemoteFd};

/// Opens a pidfd; `flags` 0 or `libc::PIDFD_THREAD` (KERNEL(>=6.9), for a thread that is no leader). Always CLOEXEC.
pub fn pidfd_open(pid: HostPid, flags: u32) -> SysResult<OwnedFd> {
    // SAFETY: two integers go in, a descriptor comes out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, flags) };
    check(fd, "pidfd_open", || format!("pid {pid}"))?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Has a part of a file written to the disk from now on, without waiting for it: a hint. Nothing happens where files are only memory.
///
/// sync_file_range(2), SYNC_FILE_RANGE_WRITE.
pub fn start_writing_back(fd: BorrowedFd<'_>, at: u64, len: u64) {
    // SAFETY: four numbers go in; no memory is touched.
    unsafe {
        libc::sync_file_range(
            fd.as_raw_fd(),
            at as i64,
            len as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

/// Has a task used semaphores so that its end would undo something (semop(2), SEM_UNDO)? What, [`crate::undo`] tells,
/// if it may.
///
/// KERNEL: kcmp(2) compares lists, and a task without one equals another without one. Every thread that starts a thread gets a
/// list (ipc/sem.c, copy_semundo()), so the caller throws its own away first; it must not use such semaphores itself.
pub fn has_undo(pid: HostPid) -> SysResult<bool> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_SYSVSEM)
        .map_err(|e| SysError::new("unshare", e, "CLONE_SYSVSEM"))?;
    let own = HostPid(nix::unistd::gettid().as_raw());
    Ok(kcmp(pid, own, Kcmp::Sysvsem)? != Ordering::Equal)
}

/// Makes a process that ends at once, lets `f` use its pid, and reaps it: what `f` opened of it is then of a reaped task.
pub fn with_stand_in<T>(f: impl FnOnce(HostPid) -> T) -> SysResult<T> {
    // SAFETY: the child calls nothing but _exit(2), which is safe also when other threads held locks.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: ends the child; nothing of the parent's runs in it.
        unsafe { libc::_exit(0) }
    }
    check(pid.into(), "fork", || "")?;
    let done = f(HostPid(pid));
    let ret = loop {
        // SAFETY: only the pid and a null pointer go in. The child is ours and was not reaped, so it cannot be another one.
        let r = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        if r != -1 || Errno::last() != Errno::EINTR {
            break r;
        }
    };
    check(ret.into(), "waitpid", || format!("pid {pid}"))?;
    Ok(done)
}

/// Opens /dev/tty as an open file of the terminal behind `tty`, although that is not our controlling terminal: a helper
/// process that shares our descriptors leads a session of its own, takes the terminal, and opens it. The session ends with the
/// helper. EPERM when a session has the terminal already.
pub fn open_current_tty(tty: BorrowedFd<'_>, flags: i32) -> SysResult<OwnedFd> {
    // The place for the new file; the helper puts it there.
    let place = dup(tty)?;
    let (from, to) = (tty.as_raw_fd(), place.as_raw_fd());
    // SAFETY: as fork(2), but with a shared descriptor table; no stack is given, so the child runs on its own copy of ours.
    // The child makes system calls only, and ends by _exit(2).
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::CLONE_FILES | libc::SIGCHLD,
            0,
            0,
            0,
            0,
        )
    };
    if pid == 0 {
        // SAFETY: system calls on integers and a constant string.
        unsafe {
            let done = libc::setsid() >= 0 && libc::ioctl(from, libc::TIOCSCTTY, 0) == 0 && {
                let fd = libc::open(
                    c"/dev/tty".as_ptr(),
                    flags | libc::O_CLOEXEC | libc::O_NOCTTY,
                );
                fd >= 0 && libc::dup3(fd, to, libc::O_CLOEXEC) == to && libc::close(fd) == 0
            };
            libc::_exit(if done { 0 } else { *libc::__errno_location() })
        }
    }
    check(pid, "clone", || "")?;
    let mut status = 0;
    let ret = loop {
        // SAFETY: `status` is a place for an int; the child is ours and was not reaped.
        let r = unsafe { libc::waitpid(pid as i32, &mut status, 0) };
        if r != -1 || Errno::last() != Errno::EINTR {
            break r;
        }
    };
    check(ret.into(), "waitpid", || format!("pid {pid}"))?;
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(place),
        e => Err(SysError::new(
            "open",
            Errno::from_raw(e),
            "/dev/tty in a session of its own",
        )),
    }
}

/// Duplicates slot `fd` of the process behind `pidfd`. Needs PTRACE_MODE_ATTACH; EBADF when the slot is empty.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RemoteFd) -> SysResult<OwnedFd> {
    // SAFETY: integers go in, a descriptor comes out.
    let new = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd.0, 0) };
    check(new, "pidfd_getfd", || format!("fd {fd}"))?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(new as RawFd) })
}

/// Sends a signal to the process behind `pidfd`; signal 0 only asks whether it still exists.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> SysResult<()> {
    // SAFETY: a null siginfo pointer is allowed and means "as kill(2)".
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<u8>(),
            0,
        )
    };
    check(ret, "pidfd_send_signal", || crate::names::signal(signal)).map(drop)
}

/// What kcmp(2) compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kcmp {
    /// The open files in two slots.
    File(RemoteFd, RemoteFd),
    /// Address spaces.
    Vm,
    /// Descriptor tables.
    Files,
    /// Root, cwd and umask.
    Fs,
    /// Signal actions.
    Sighand,
    /// I/O contexts.
    Io,
    /// Undo lists of SysV semaphores.
    Sysvsem,
}

/// Asks whether two tasks share something. `Equal` means shared; the order between others is stable until reboot and
/// otherwise without meaning, good for sorting. Needs PTRACE_MODE_READ on both, and CONFIG_KCMP (else ENOSYS).
pub fn kcmp(a: HostPid, b: HostPid, what: Kcmp) -> SysResult<Ordering> {
    let (ty, i, j, call) = match what {
        Kcmp::File(i, j) => (0, i.0, j.0, "kcmp(FILE)"),
        Kcmp::Vm => (1, 0, 0, "kcmp(VM)"),
        Kcmp::Files => (2, 0, 0, "kcmp(FILES)"),
        Kcmp::Fs => (3, 0, 0, "kcmp(FS)"),
        Kcmp::Sighand => (4, 0, 0, "kcmp(SIGHAND)"),
        Kcmp::Io => (5, 0, 0, "kcmp(IO)"),
        Kcmp::Sysvsem => (6, 0, 0, "kcmp(SYSVSEM)"),
    };
    // SAFETY: integers only.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            a.0,
            b.0,
            ty,
            i as libc::c_ulong,
            j as libc::c_ulong,
        )
    };
    ordering(ret, call, || match what {
        Kcmp::File(i, j) => format!("pid {a} fd {i} with pid {b} fd {j}"),
        _ => format!("pid {a} with pid {b}"),
    })
}

/// `struct kcmp_epoll_slot` of include/uapi/linux/kcmp.h.
#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

/// Compares the open file in slot `fd` of `a` with a target of the epoll instance in slot `epoll` of `b`: the
/// `offset`th (from 0) of those that were added under number `tfd`. ENOENT when there is no such target.
pub fn kcmp_epoll(
    a: HostPid,
    fd: RemoteFd,
    b: HostPid,
    epoll: RemoteFd,
    tfd: i32,
    offset: u32,
) -> SysResult<Ordering> {
    let slot = EpollSlot {
        efd: epoll.0 as u32,
        tfd: tfd as u32,
        toff: offset,
    };
    // SAFETY: `slot` has the layout the kernel reads, and lives through the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            a.0,
            b.0,
            7,
            fd.0 as libc::c_ulong,
            &raw const slot,
        )
    };
    ordering(ret, "kcmp(EPOLL_TFD)", || {
        format!("pid {a} fd {fd} with target {tfd} of pid {b} epoll fd {epoll}")
    })
}

fn ordering(
    ret: libc::c_long,
    call: &'static str,
    what: impl Fn() -> String,
) -> SysResult<Ordering> {
    match check(ret, call, &what)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // 3 is "not equal, order unavailable"; no kernel returns it.
        _ => Err(SysError::new(call, Errno::EOPNOTSUPP, what())),
    }
}

/// fcntl command of [`same_file`].
const F_DUPFD_QUERY: i32 = 1027;

/// Whether two of our own descriptors refer to one open file (fcntl F_DUPFD_QUERY). KERNEL(>=6.10), EINVAL before.
pub fn same_file(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> SysResult<bool> {
    // SAFETY: integers only.
    let ret = unsafe { libc::fcntl(a.as_raw_fd(), F_DUPFD_QUERY, b.as_raw_fd()) };
    check(ret.into(), "fcntl(F_DUPFD_QUERY)", || "").map(|r| r == 1)
}

/// The kernel takes at most SCM_MAX_FD descriptors in one message (include/net/scm.h).
pub const SCM_MAX_FD: usize = 253;

/// Sends `data` (at least one byte, else EINVAL) with up to 253 descriptors over a unix socket, without SIGPIPE.
/// An io_uring descriptor cannot travel this way (EINVAL).
pub fn send_fds(socket: BorrowedFd<'_>, data: &[u8], fds: &[BorrowedFd<'_>]) -> SysResult<usize> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let what = || format!("{} descriptors", fds.len());
    if data.is_empty() || fds.len() > SCM_MAX_FD {
        return Err(SysError::new("sendmsg", Errno::EINVAL, what()));
    }
    let raw: Vec<RawFd> = fds.iter().map(|f| f.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(data)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(n) => return Ok(n),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(SysError::new("sendmsg", e, what())),
        }
    }
}

/// Receives one message into `data` and the descriptors with it (CLOEXEC). 0 bytes mean that the peer closed.
///
/// EMSGSIZE when the kernel cut the descriptors, for example because our table is full; those that came are closed.
pub fn recv_fds(socket: BorrowedFd<'_>, data: &mut [u8]) -> SysResult<(usize, Vec<OwnedFd>)> {
    /// `cmsghdr` wants 8-byte alignment, which `u64` gives.
    const WORDS: usize = (16 + SCM_MAX_FD * 4).div_ceil(8);
    let mut control = [0u64; WORDS];
    let mut iov = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = size_of_val(&control) as _;
    let n = loop {
        // SAFETY: `msg` points to `data` and `control` with their true lengths, both ours alone for the call.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut msg, libc::MSG_CMSG_CLOEXEC) };
        if n >= 0 {
            break n as usize;
        }
        let errno = Errno::last();
        if errno != Errno::EINTR {
            return Err(SysError::new("recvmsg", errno, ""));
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel filled `control` with well-formed headers of `msg_controllen` bytes, which the CMSG macros
    // walk; each descriptor in SCM_RIGHTS is fresh and known to nobody else.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(&msg);
        while !c.is_null() {
            if (*c).cmsg_level == libc::SOL_SOCKET && (*c).cmsg_type == libc::SCM_RIGHTS {
                let first = libc::CMSG_DATA(c).cast::<RawFd>();
                let count =
                    ((*c).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for i in 0..count {
                    fds.push(OwnedFd::from_raw_fd(first.add(i).read_unaligned()));
                }
            }
            c = libc::CMSG_NXTHDR(&msg, c);
        }
    }
    if msg.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(SysError::new(
            "recvmsg",
            Errno::EMSGSIZE,
            format!("only {} descriptors arrived", fds.len()),
        ));
    }
    Ok((n, fds))
}

/// Makes an anonymous file; `flags` are MFD_* (CLOEXEC is added). The name is for people only.
pub fn memfd_create(name: &CStr, flags: u32) -> SysResult<OwnedFd> {
    // SAFETY: `name` is NUL-terminated and lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) };
    check(fd.into(), "memfd_create", || {
        format!(
            "{} {}",
            name.to_bytes().escape_ascii(),
            crate::names::memfd_flags(flags.into())
        )
    })?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// fstat(2).
pub fn fstat(fd: BorrowedFd<'_>) -> SysResult<libc::stat> {
    let mut st = std::mem::MaybeUninit::uninit();
    // SAFETY: `st` is a place for one stat.
    let ret = unsafe { libc::fstat(fd.as_raw_fd(), st.as_mut_ptr()) };
    check(ret.into(), "fstat", || format!("our fd {}", fd.as_raw_fd()))?;
    // SAFETY: the kernel filled it.
    Ok(unsafe { st.assume_init() })
}

/// getsockopt(2) into `value`; gives how long the kernel says the value is.
pub fn getsockopt(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> SysResult<usize> {
    let mut len = value.len() as libc::socklen_t;
    let at = value.as_mut_ptr().cast();
    // SAFETY: `value` has room for `len` bytes, and the kernel writes no more.
    let ret = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &mut len) };
    check(ret.into(), "getsockopt", || {
        format!("our fd {}, level {level}, option {name}", fd.as_raw_fd())
    })?;
    Ok(len as usize)
}

/// Who is told by signals about a file (fcntl(2), F_GETSIG and F_GETOWN_EX): the signal (0: SIGIO), sort and number of the owner.
pub fn owner(fd: BorrowedFd<'_>) -> SysResult<(i32, i32, i32)> {
    const F_GETOWN_EX: i32 = 16;
    const F_GETSIG: i32 = 11;
    let on = || format!("our fd {}", fd.as_raw_fd());
    // SAFETY: integers only.
    let signal = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) };
    check(signal.into(), "fcntl(F_GETSIG)", on)?;
    let mut who = [0i32; 2];
    // SAFETY: a struct f_owner_ex is two ints.
    let ret = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, who.as_mut_ptr()) };
    check(ret.into(), "fcntl(F_GETOWN_EX)", on)?;
    Ok((signal, who[0], who[1]))
}

/// statx(2) of `path` under `dir`; an empty path with AT_EMPTY_PATH asks about `dir` itself. The mask in the answer
/// says which fields were filled.
pub fn statx(dir: BorrowedFd<'_>, path: &CStr, flags: i32, mask: u32) -> SysResult<libc::statx> {
    let mut st = std::mem::MaybeUninit::zeroed();
    // SAFETY: `path` is NUL-terminated, `st` is a place for one statx.
    let ret = unsafe { libc::statx(dir.as_raw_fd(), path.as_ptr(), flags, mask, st.as_mut_ptr()) };
    check(ret.into(), "statx", || {
        path.to_bytes().escape_ascii().to_string()
    })?;
    // SAFETY: zeroed before, filled by the kernel now.
    Ok(unsafe { st.assume_init() })
}

/// Closes all descriptors `first..=last` of this process, or only marks them with `libc::CLOSE_RANGE_CLOEXEC`.
///
/// # Safety
/// Unless it only marks, nothing in this process may own a descriptor in the range any more.
pub unsafe fn close_range(first: u32, last: u32, flags: u32) -> SysResult<()> {
    // SAFETY: the caller answers for the descriptors; no pointers are involved.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(ret, "close_range", || format!("{first}..={last}")).map(drop)
}

/// A file handle and the mount it was made on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHandle {
    /// Type, which the file system defines.
    pub kind: i32,
    /// Up to 128 bytes.
    pub bytes: Vec<u8>,
}

/// `struct file_handle` with room for MAX_HANDLE_SZ bytes.
#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; 128],
}

/// name_to_handle_at(2): the handle of `path` under `dir` (`c""` with AT_EMPTY_PATH for `dir` itself) and the id of
/// the mount. EOPNOTSUPP where the file system has no handles; AT_HANDLE_FID (0x200, KERNEL(>=6.6)) then still gives
/// an identity, which cannot be opened.
pub fn name_to_handle(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: i32,
) -> SysResult<(FileHandle, i32)> {
    let mut h = RawHandle {
        len: 128,
        kind: 0,
        bytes: [0; 128],
    };
    let mut mount = 0i32;
    // SAFETY: `h` says how much room it has; all pointers live through the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw mut h,
            &raw mut mount,
            flags,
        )
    };
    check(ret, "name_to_handle_at", || {
        path.to_bytes().escape_ascii().to_string()
    })?;
    let bytes = h.bytes[..(h.len as usize).min(128)].to_vec();
    Ok((
        FileHandle {
            kind: h.kind,
            bytes,
        },
        mount,
    ))
}

/// open_by_handle_at(2). `mount` is any descriptor (not O_PATH) on the same mounted file system. Needs
/// CAP_DAC_READ_SEARCH; ESTALE when the file is gone or `mount` lies elsewhere.
pub fn open_by_handle(
    mount: BorrowedFd<'_>,
    handle: &FileHandle,
    flags: i32,
) -> SysResult<OwnedFd> {
    let what = || {
        format!(
            "handle type {} of {} bytes",
            handle.kind,
            handle.bytes.len()
        )
    };
    let mut h = RawHandle {
        len: handle.bytes.len() as u32,
        kind: handle.kind,
        bytes: [0; 128],
    };
    match h.bytes.get_mut(..handle.bytes.len()) {
        Some(room) => room.copy_from_slice(&handle.bytes),
        None => return Err(SysError::new("open_by_handle_at", Errno::EINVAL, what())),
    }
    // SAFETY: `h` lives through the call and holds as many bytes as it says.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw const h,
            flags | libc::O_CLOEXEC,
        )
    };
    check(fd, "open_by_handle_at", what)?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A connected pair of unix sockets of type SOCK_SEQPACKET (messages keep their borders), both CLOEXEC.
pub fn seqpacket_pair() -> SysResult<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|e| SysError::new("socketpair", e, "AF_UNIX SOCK_SEQPACKET"))
}

/// Has the kernel give up a TCP connection whose peer answers nothing for so many seconds, also while nothing is said.
pub fn watch_peer(socket: impl AsFd, seconds: u32) -> SysResult<()> {
    let all = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 1.max(seconds / 3)),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1),
        (
            libc::IPPROTO_TCP,
            libc::TCP_KEEPCNT,
            1.max(seconds - seconds / 3),
        ),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, seconds * 1000),
    ];
    for (level, option, value) in all {
        // SAFETY: each of these options reads one int.
        let ret = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                4,
            )
        };
        check(ret.into(), "setsockopt", || "TCP_USER_TIMEOUT")?;
    }
    Ok(())
}

/// Bytes written to a TCP socket that its peer has not acknowledged (SIOCOUTQ of tcp(7)).
pub fn unsent(socket: impl AsFd) -> SysResult<u64> {
    let mut n: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, of the same number, writes one int.
    let ret = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut n) };
    check(ret.into(), "ioctl(SIOCOUTQ)", || "")?;
    Ok(n.max(0) as u64)
}

/// Of a TCP connection, how many segments were sent again so far, and how long the kernel waits at present until it does so, in
/// microseconds.
pub fn sent_again(socket: impl AsFd) -> SysResult<(u32, u32)> {
    // KERNEL: struct tcp_info (include/uapi/linux/tcp.h)
    const RTO: usize = 8;
    const TOTAL_RETRANS: usize = 100;
    let mut info = [0; TOTAL_RETRANS + 4];
    getsockopt(socket.as_fd(), libc::SOL_TCP, libc::TCP_INFO, &mut info)?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    Ok((word(TOTAL_RETRANS), word(RTO)))
}

/// Duplicates one of our descriptors (F_DUPFD_CLOEXEC).
pub fn dup(fd: impl AsFd) -> SysResult<OwnedFd> {
    let raw = fd.as_fd().as_raw_fd();
    fd.as_fd().try_clone_to_owned().map_err(|e| {
        SysError::new(
            "fcntl(F_DUPFD_CLOEXEC)",
            Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            format!("our fd {raw}"),
        )
    })
}

/// Writes `data` at `offset` of a file that has no write(2) but can be mapped (hugetlbfs). The data must lie inside one
/// block of `block` bytes (the size of its huge pages), and inside the file. EINVAL otherwise; ENOMEM when no huge page is
/// free (they are reserved at mmap, so this is no SIGBUS later).
pub fn write_mapped(file: BorrowedFd<'_>, offset: u64, data: &[u8], block: u64) -> SysResult<()> {
    let what = || format!("{} bytes at offset {offset}", data.len());
    let bad = |why: Errno| SysError::new("mmap", why, what());
    let start = offset
        .checked_div(block)
        .ok_or_else(|| bad(Errno::EINVAL))?
        * block;
    let inside = (offset - start) as usize;
    let size = fstat(file)?.st_size as u64;
    if data.len() as u64 > block - inside as u64 || offset + data.len() as u64 > size {
        return Err(bad(Errno::EINVAL));
    }
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            block as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            start as libc::off_t,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(SysError::last("mmap", what()));
    }
    // SAFETY: the mapping is `block` bytes long, the data was checked to fit behind `inside`; the file is as long as was
    // checked and only we have it. The mapping is unmapped once, here.
    unsafe {
        std::ptr::copy_nonoverlapping(data.as_ptr(), at.cast::<u8>().add(inside), data.len());
        libc::munmap(at, block as usize);
    }
    Ok(())
}

#[cfg(test)]
#[path = "fds_tests.rs"]
mod tests;
