//! Namespaces: their handles, and visits to foreign ones.
use crate::error::{SysError, check};
use crate::ids::HostPid;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// A sort of namespace (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ns {
    /// Users.
    User,
    /// Process numbers.
    Pid,
    /// Mounts.
    Mnt,
    /// Networks.
    Net,
    /// System V and POSIX IPC.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Roots of control groups.
    Cgroup,
    /// Clocks.
    Time,
}

impl Ns {
    /// All sorts, in the order in which they are entered: users first, as the rest needs their rights.
    pub const ALL: [Ns; 8] = [
        Ns::User,
        Ns::Pid,
        Ns::Mnt,
        Ns::Net,
        Ns::Ipc,
        Ns::Uts,
        Ns::Cgroup,
        Ns::Time,
    ];
    /// The name in /proc/PID/ns.
    pub fn name(self) -> &'static str {
        match self {
            Ns::User => "user",
            Ns::Pid => "pid",
            Ns::Mnt => "mnt",
            Ns::Net => "net",
            Ns::Ipc => "ipc",
            Ns::Uts => "uts",
            Ns::Cgroup => "cgroup",
            Ns::Time => "time",
        }
    }
    /// The sort with this name.
    pub fn by_name(name: &str) -> Option<Ns> {
        Ns::ALL.into_iter().find(|n| n.name() == name)
    }
    /// `CLONE_NEW...` of clone(2), unshare(2) and setns(2).
    pub fn flag(self) -> CloneFlags {
        match self {
            Ns::User => CloneFlags::CLONE_NEWUSER,
            Ns::Pid => CloneFlags::CLONE_NEWPID,
            Ns::Mnt => CloneFlags::CLONE_NEWNS,
            Ns::Net => CloneFlags::CLONE_NEWNET,
            Ns::Ipc => CloneFlags::CLONE_NEWIPC,
            Ns::Uts => CloneFlags::CLONE_NEWUTS,
            Ns::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            // linux/sched.h; the crate has no name for it
            Ns::Time => CloneFlags::from_bits_retain(0x80),
        }
    }
    /// A handle of the namespace a task is in (/proc/PID/ns/NAME).
    ///
    /// # Errors
    /// As open(2): the task is gone, or may not be looked at.
    pub fn of(self, pid: HostPid) -> Result<OwnedFd, SysError> {
        let path = format!("/proc/{}/ns/{}", pid.0, self.name());
        File::open(&path).map(OwnedFd::from).map_err(|e| {
            SysError::new(
                "openat",
                nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
                path,
            )
        })
    }
}

/// Runs `f` in a thread of its own that has entered these namespaces and ends with the visit. Descriptors are those of the whole
/// process, so what `f` opens there can be used here.
///
/// A thread can enter all sorts but user (setns(2): EINVAL), and pid or time only for children it may have. Entering a mount
/// namespace sets its root and working directory to the root of that namespace. Those it is in already are passed over.
///
/// Where that is refused to a caller who has no rights over the namespaces, but over the user namespace that owns them (a
/// rootless container's, seen by the user who made it), `f` runs in a process that enters that one first: it shares memory and
/// descriptors with this one, so for `f` there is no difference; it must not start threads.
///
/// # Errors
/// setns(2) or unshare(2) refused; `f` did not run then.
pub fn visit<R: Send>(
    places: &[(Ns, BorrowedFd<'_>)],
    f: impl FnOnce() -> R + Send,
) -> Result<R, SysError> {
    let mut places = places.to_vec();
    places.retain(|(ns, fd)| !is_here(*ns, *fd));
    let mut f = Some(f);
    let tried = std::thread::scope(|s| {
        let visitor = s.spawn(|| enter(&places).map(|()| f.take().map(|f| f())));
        visitor
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let owner = match (&tried, places.first()) {
        (Err(e), Some(p)) if e.errno == Errno::EPERM => owner(p.1).ok(),
        _ => None,
    };
    match (tried, owner, f) {
        (Err(_), Some(owner), Some(f)) => through(&owner, &places, f),
        (Ok(Some(r)), ..) => Ok(r),
        (Err(e), ..) => Err(e),
        (Ok(None), ..) => Err(lost()),
    }
}

/// Is the caller in this namespace?
fn is_here(ns: Ns, fd: BorrowedFd<'_>) -> bool {
    let own = std::fs::metadata(format!("/proc/thread-self/ns/{}", ns.name()));
    let that = crate::fds::fstat(fd);
    own.is_ok_and(|o| that.is_ok_and(|t| (o.dev(), o.ino()) == (t.st_dev, t.st_ino)))
}

fn enter(places: &[(Ns, BorrowedFd<'_>)]) -> Result<(), SysError> {
    for (ns, fd) in places {
        if *ns == Ns::Mnt {
            // KERNEL: a mount namespace is entered only with directories that nobody shares (fs/namespace.c, mntns_install)
            unshare(CloneFlags::CLONE_FS).map_err(|e| SysError::new("unshare", e, "CLONE_FS"))?;
        }
        setns(fd, ns.flag())
            .map_err(|e| SysError::new("setns", e, format!("a {} namespace", ns.name())))?;
    }
    Ok(())
}

/// The user namespace that owns a namespace (ioctl_ns(2), NS_GET_USERNS).
///
/// # Errors
/// EPERM: it is above the caller's own.
pub fn owner(ns: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    related(ns, 0xb701, "ioctl(NS_GET_USERNS)")
}

/// The namespace that a pid or user namespace was made in (ioctl_ns(2), NS_GET_PARENT).
///
/// # Errors
/// EPERM: it is above the caller's own; EINVAL: of another sort.
pub fn parent(ns: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    related(ns, 0xb702, "ioctl(NS_GET_PARENT)")
}

fn related(
    ns: BorrowedFd<'_>,
    request: libc::Ioctl,
    name: &'static str,
) -> Result<OwnedFd, SysError> {
    // SAFETY: no argument; it gives a new descriptor.
    let fd = unsafe { libc::ioctl(ns.as_raw_fd(), request) };
    check(fd.into(), name, || "a namespace")?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs `f` in these namespaces, in a process that has entered the user namespace of their owner.
///
/// KERNEL: no thread may enter a user namespace (kernel/user_namespace.c, userns_install()), but a process may that shares its
/// memory and descriptors with us: it is no thread of ours. The caller's thread waits (CLONE_VFORK), as it lends its
/// thread-local memory.
fn through<R>(
    owner: &OwnedFd,
    places: &[(Ns, BorrowedFd<'_>)],
    f: impl FnOnce() -> R,
) -> Result<R, SysError> {
    const STACK: usize = 4 << 20;
    let mut f = Some(f);
    let mut told = None;
    let visitor = || {
        told = Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(
            || {
                let entered = setns(owner, CloneFlags::CLONE_NEWUSER).map_err(|e| {
                    SysError::new("setns", e, "the user namespace of a namespace's owner")
                });
                // a change of credentials made our memory undumpable (no access to our own /proc); it is the caller's as well
                // SAFETY: plain numbers.
                unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
                entered.and_then(|()| enter(places))?;
                Ok(f.take().map(|f| f()))
            },
        )));
        0
    };
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_FILES | CloneFlags::CLONE_VFORK;
    let mut stack = vec![0u8; STACK];
    // SAFETY: the stack is the visitor's alone; what it borrows outlives it, as this thread goes on when it has ended.
    let pid = unsafe { nix::sched::clone(Box::new(visitor), &mut stack, flags, None) }
        .map_err(|e| SysError::new("clone", e, "a visitor of namespaces"))?;
    let wall = nix::sys::wait::WaitPidFlag::__WALL;
    while nix::sys::wait::waitpid(pid, Some(wall)) == Err(Errno::EINTR) {}
    match told {
        Some(Ok(Ok(Some(r)))) => Ok(r),
        Some(Ok(Err(e))) => Err(e),
        Some(Err(panic)) => std::panic::resume_unwind(panic),
        // it was killed
        Some(Ok(Ok(None))) | None => Err(lost()),
    }
}

fn lost() -> SysError {
    SysError::new("clone", Errno::ESRCH, "a visitor of namespaces")
}

/// [`visit`] to namespaces of a task.
///
/// # Errors
/// As for [`Ns::of`] and [`visit`].
pub fn visit_task<R: Send>(
    pid: HostPid,
    which: &[Ns],
    f: impl FnOnce() -> R + Send,
) -> Result<R, SysError> {
    let handles = which
        .iter()
        .map(|n| Ok((*n, n.of(pid)?)))
        .collect::<Result<Vec<_>, SysError>>()?;
    let places: Vec<_> = handles.iter().map(|(n, h)| (*n, h.as_fd())).collect();
    visit(&places, f)
}

/// Host and domain name of the caller's UTS namespace (uname(2)), as bytes without the terminating NUL.
///
/// # Errors
/// uname(2) has none with a good buffer.
pub fn names() -> Result<(Vec<u8>, Vec<u8>), SysError> {
    let u = nix::sys::utsname::uname().map_err(|e| SysError::new("uname", e, ""))?;
    let bytes = |s: &std::ffi::OsStr| s.as_encoded_bytes().to_vec();
    Ok((bytes(u.nodename()), bytes(u.domainname())))
}

/// Sets host and domain name of the caller's UTS namespace (sethostname(2), setdomainname(2)).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in the user namespace it belongs to; EINVAL: longer than 64 bytes.
pub fn set_names(host: &[u8], domain: &[u8]) -> Result<(), SysError> {
    // SAFETY: pointer and length of a slice, which the call only reads.
    let r = unsafe { libc::sethostname(host.as_ptr().cast(), host.len()) };
    crate::error::check(r.into(), "sethostname", || {
        String::from_utf8_lossy(host).into_owned()
    })?;
    // SAFETY: as above.
    let r = unsafe { libc::setdomainname(domain.as_ptr().cast(), domain.len()) };
    crate::error::check(r.into(), "setdomainname", || {
        String::from_utf8_lossy(domain).into_owned()
    })?;
    Ok(())
}
