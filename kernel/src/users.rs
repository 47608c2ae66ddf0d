//! User namespaces: made by a process that is where they shall be below, with maps that another one there writes.
//!
//! KERNEL: the maps of a user namespace are written by who is in it or in the one above (kernel/user_namespace.c,
//! proc_uid_map_write()), and only the one above has rights over numbers there. So there are two processes: a *writer* that has
//! entered the one above, and its child, which makes the namespace and ends when there is a handle of it.
use crate::error::SysError;
use crate::fds;
use crate::inner::{Way, start};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::os::fd::{AsFd, OwnedFd};

/// A user namespace to be made.
#[derive(Debug, Default)]
pub struct Users {
    /// Who owns it, as the one above has it.
    pub owner: u32,
    /// Its owner's group; `None`: that of the writer. It must be mapped in the one above.
    pub group: Option<u32>,
    /// Is setgroups(2) denied there for good?
    pub denied: bool,
    /// Lines of uid_map, as user_namespaces(7) has them; none: not mapped.
    pub uid_map: String,
    /// Lines of gid_map.
    pub gid_map: String,
}

/// Makes it below the user namespace that this way leads to; gives a handle.
///
/// # Errors
/// The way cannot be gone, or the kernel refuses: the number of namespaces, the owner, a map.
pub fn make(way: &Way<'_>, users: &Users) -> Result<OwnedFd, SysError> {
    let mut writer = start(way, |channel| match write(users) {
        Ok(handle) => i32::from(fds::send_fds(channel.as_fd(), b"+", &[handle.as_fd()]).is_err()),
        Err((errno, at)) => {
            let mut told = (errno as i32).to_le_bytes().to_vec();
            told.push(at);
            i32::from(nix::unistd::write(&channel, &told).is_err())
        }
    })?;
    let mut told = [0; 8];
    let (n, files) = fds::recv_fds(writer.channel.as_fd(), &mut told)?;
    writer.end();
    match (&told[..n], files.into_iter().next()) {
        ([b'+'], Some(handle)) => Ok(handle),
        ([a, b, c, d, at], _) => Err(SysError::new(
            STEPS[usize::from(*at).min(STEPS.len() - 1)],
            Errno::from_raw(i32::from_le_bytes([*a, *b, *c, *d])),
            format!("a user namespace of user {}", users.owner),
        )),
        _ => Err(SysError::new("clone", Errno::ESRCH, "a user namespace")),
    }
}

/// What may be refused, for people.
const STEPS: [&str; 6] = [
    "fork",
    "unshare(CLONE_NEWUSER)",
    "write(setgroups)",
    "write(gid_map)",
    "write(uid_map)",
    "openat(ns/user)",
];

/// The writer: error and step.
fn write(users: &Users) -> Result<OwnedFd, (Errno, u8)> {
    let (told, tells) = fds::seqpacket_pair().map_err(|e| (e.errno, 0))?;
    // SAFETY: the caller is a copy of the engine with one thread.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err((Errno::last(), 0));
    }
    if child == 0 {
        drop(told);
        let made = settle(users).map_or_else(|e| e as i32, |()| 0);
        let _ = nix::unistd::write(&tells, &made.to_le_bytes());
        // until the writer has its handle, or is gone
        let _ = nix::unistd::read(&tells, &mut [0; 1]);
        // SAFETY: ends this copy without running what the engine registered for its own end.
        unsafe { libc::_exit(0) };
    }
    drop(tells);
    let mut errno = [0; 4];
    let handle = match nix::unistd::read(&told, &mut errno) {
        Ok(4) if errno == [0; 4] => map(users, child),
        Ok(4) => Err((Errno::from_raw(i32::from_le_bytes(errno)), 1)),
        _ => Err((Errno::ECHILD, 1)),
    };
    drop(told);
    let wall = nix::sys::wait::WaitPidFlag::__WALL;
    let pid = nix::unistd::Pid::from_raw(child);
    while nix::sys::wait::waitpid(pid, Some(wall)) == Err(Errno::EINTR) {}
    handle
}

/// The child: it is the owner, and has a namespace of its own.
fn settle(users: &Users) -> Result<(), Errno> {
    const KEEP_CAPS_AND_NO_FIXUP: u64 = 1 << 4 | 1 << 2;
    const SAME: u64 = u32::MAX as u64;
    let group = users.group.map_or(SAME, u64::from);
    let owner = u64::from(users.owner);
    // SAFETY: plain numbers; this process has one thread, so raw calls change all of it.
    let set = unsafe {
        // where only some may make user namespaces, it must not lose what it has
        libc::prctl(libc::PR_SET_SECUREBITS, KEEP_CAPS_AND_NO_FIXUP, 0, 0, 0);
        libc::syscall(libc::SYS_setresgid, group, group, group) == 0
            && libc::syscall(libc::SYS_setresuid, owner, owner, owner) == 0
    };
    if !set {
        return Err(Errno::last());
    }
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // a change of credentials made it undumpable: its files in /proc would be nobody's
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
    Ok(())
}

fn map(users: &Users, child: i32) -> Result<OwnedFd, (Errno, u8)> {
    let at = |name: &str| format!("/proc/{child}/{name}");
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(0));
    let denied = if users.denied { "deny" } else { "" };
    let files = [
        ("setgroups", denied),
        ("gid_map", &users.gid_map),
        ("uid_map", &users.uid_map),
    ];
    for (step, (name, text)) in (2..).zip(files) {
        if !text.is_empty() {
            std::fs::write(at(name), text).map_err(|e| (errno(e), step))?;
        }
    }
    let handle = std::fs::File::open(at("ns/user")).map_err(|e| (errno(e), 5))?;
    Ok(handle.into())
}

/// The user who owns a user namespace (ioctl_ns(2), NS_GET_OWNER_UID), as the caller's has it.
///
/// # Errors
/// EINVAL: of another sort.
pub fn owner(ns: std::os::fd::BorrowedFd<'_>) -> Result<u32, SysError> {
    use std::os::fd::AsRawFd;
    let mut uid: libc::uid_t = 0;
    // SAFETY: the request writes one number.
    let r = unsafe { libc::ioctl(ns.as_raw_fd(), 0xb704, &mut uid) };
    crate::error::check(r.into(), "ioctl(NS_GET_OWNER_UID)", || "a user namespace")?;
    Ok(uid)
}

/// The numbers that the process born next in a pid namespace begins to look for its own at: the last one that was given out
/// (/proc/sys/kernel/ns_last_pid). Whose namespace it is, and whether that may be, is asked of who writes.
///
/// # Errors
/// EROFS: /proc/sys may only be read here; ENOENT: a kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn last_number() -> Result<std::fs::File, SysError> {
    const PATH: &str = "/proc/sys/kernel/ns_last_pid";
    std::fs::OpenOptions::new()
        .write(true)
        .open(PATH)
        .map_err(|e| {
            let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
            SysError::new("openat", errno, PATH)
        })
}

/// The next process of the caller's pid namespace has this number, if it is free and nobody else is born before.
///
/// # Errors
/// EPERM without CAP_CHECKPOINT_RESTORE in the user namespace that the pid namespace belongs to.
pub fn aim(last: std::os::fd::BorrowedFd<'_>, number: u32) -> Result<(), SysError> {
    let before = number.saturating_sub(1).to_string();
    // KERNEL: a sysctl is written from its start (kernel/sysctl.c, sysctl_writes_strict)
    match nix::sys::uio::pwrite(last, before.as_bytes(), 0) {
        Ok(_) => Ok(()),
        Err(e) => Err(SysError::new("pwrite", e, "ns_last_pid")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::HostPid;
    use crate::ns::{self, Ns};

    #[test]
    fn one_below_the_other() {
        let here = Way::to(HostPid::own(), &[]);
        // SAFETY: no arguments.
        if unsafe { libc::geteuid() } != 0 {
            return;
        }
        let outer = Users {
            owner: 1000,
            uid_map: "0 1000 1\n5 2000 10\n".into(),
            gid_map: "0 1000 1\n".into(),
            denied: true,
            group: None,
        };
        let outer = make(&here, &outer).unwrap();
        assert_eq!(owner(outer.as_fd()).unwrap(), 1000);
        let inner = Users {
            owner: 7,
            group: Some(0),
            uid_map: "7 7 1\n".into(),
            ..Users::default()
        };
        let way = Way {
            join: vec![(Ns::User, outer.try_clone().unwrap())],
            ..Way::to(HostPid::own(), &[])
        };
        let made = make(&way, &inner).unwrap();
        assert_eq!(owner(made.as_fd()).unwrap(), 2002);
        let above = ns::parent(made.as_fd()).unwrap();
        let ino = |f: &OwnedFd| fds::fstat(f.as_fd()).unwrap().st_ino;
        assert_eq!(ino(&above), ino(&outer));
        let wider = Users {
            uid_map: "0 3000 1\n".into(),
            ..inner
        };
        let refused = make(&way, &wider).unwrap_err();
        assert_eq!(
            (refused.errno, refused.call),
            (Errno::EPERM, "write(uid_map)")
        );
    }
}
