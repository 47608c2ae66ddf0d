//! A look at mounts that others may hide.
use crate::error::{Blame, Error, Result};
use crate::look::Contents;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use stasis_kernel::call::FdRef;
use stasis_kernel::host::Host;
use stasis_kernel::mnt;
use stasis_kernel::ns::{self, Ns};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

type Why<T> = std::result::Result<T, String>;

/// A detached, read-only copy of a mount that shows all of its file system. `namespace` is a handle of its mount namespace,
/// `proc` a /proc that sees the calling thread.
///
/// Three ways, the first that works: a copy of what its path leads to; if others hide it, they are taken off in a copy of the
/// namespace; if that cannot be done, because the namespace belongs to another user namespace and its mounts are locked together
/// in copies, in a copy of its tree within a namespace of ours (which lacks unbindable mounts). The tree itself never changes.
///
/// # Errors
/// E4308: none works.
pub fn copy(namespace: BorrowedFd<'_>, proc: BorrowedFd<'_>, c: &Contents) -> Result<OwnedFd> {
    let hidden = |why: String| {
        let what = format!("cannot dump mount {} ({})", c.mnt_id, c.mountpoint);
        Error::new("E4308", Blame::Container, what)
            .why(format!("another mount hides it: {why}"))
            .advice("unmount what hides it before the dump")
    };
    let text = |e: &dyn std::fmt::Display| hidden(e.to_string());
    let path = CString::new(c.mountpoint.as_str()).map_err(|e| text(&e))?;
    let there = [(Ns::Mnt, namespace)];
    let direct = ns::visit(&there, || in_place(proc, c, &path)).map_err(|e| text(&e))?;
    direct.or_else(|first| {
        copy_beside(namespace, proc, c).map_err(|second| hidden(format!("{first}; {second}")))
    })
}

/// The third way alone.
///
/// # Errors
/// The call that failed.
pub fn copy_beside(
    namespace: BorrowedFd<'_>,
    proc: BorrowedFd<'_>,
    c: &Contents,
) -> Result<OwnedFd, String> {
    let text = |e: stasis_kernel::error::SysError| e.to_string();
    let path = CString::new(c.mountpoint.as_str()).map_err(|e| e.to_string())?;
    let tree = ns::visit(&[(Ns::Mnt, namespace)], || mnt::whole_tree(c"/"));
    let tree = tree.and_then(|t| t).map_err(text)?;
    ns::visit(&[], || beside(proc, c, &path, tree)).map_err(text)?
}

/// In the mount namespace itself, or in a copy of it, where the calling thread goes.
fn in_place(proc: BorrowedFd<'_>, c: &Contents, path: &CStr) -> Why<OwnedFd> {
    // one that is unbindable, or with locked mounts in it, cannot be copied here
    if ends_at(Path::new(&c.mountpoint)).is_ok_and(|(id, whole)| whole && id == c.mnt_id)
        && let Ok(copy) = mnt::peek(path)
    {
        return Ok(copy);
    }
    private_copy()?;
    uncover(proc, c, path)
}

/// In a copy of our own namespace, whose root the thread exchanges for a copy of the tree.
fn beside(proc: BorrowedFd<'_>, c: &Contents, path: &CStr, tree: OwnedFd) -> Why<OwnedFd> {
    private_copy()?;
    let mut host = Host::default();
    let name = FdRef(1);
    host.insert(name, tree);
    for call in [mnt::attach_path(name, b"/"), mnt::enter(name)] {
        host.play(&call).map_err(|e| e.to_string())?;
    }
    nix::unistd::chroot(".").map_err(|e| format!("chroot: {e}"))?;
    all_private()?;
    uncover(proc, c, path)
}

fn private_copy() -> Why<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| format!("unshare: {e}"))?;
    all_private()
}

fn all_private() -> Why<()> {
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(|e| format!("mount: {e}"))
}

/// Takes off what hides the mount, in a namespace that nobody else is in.
fn uncover(proc: BorrowedFd<'_>, c: &Contents, path: &CStr) -> Why<OwnedFd> {
    loop {
        let infos = mnt::own_mountinfo(proc).map_err(|e| e.to_string())?;
        let (id, whole) = ends_at(Path::new(&c.mountpoint)).map_err(|e| format!("openat: {e}"))?;
        let Some(m) = infos.iter().find(|m| m.id as u32 == id) else {
            return Err("it is not in mountinfo".into());
        };
        let dev = m.dev.0 << 20 | m.dev.1 & 0xf_ffff;
        if whole && m.mountpoint == c.mountpoint.as_bytes() && m.root == b"/" && dev == c.dev {
            return mnt::peek(path).map_err(|e| e.to_string());
        }
        // the way to the place ends in this one, so it is on top where it is mounted
        use std::os::unix::ffi::OsStrExt;
        let at = PathBuf::from(std::ffi::OsStr::from_bytes(&m.mountpoint));
        umount2(&at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|e| format!("umount2 of {}: {e}", at.display()))?;
    }
}

/// The mount on which the way along a path ends, and whether it is the whole way.
fn ends_at(path: &Path) -> nix::Result<(u32, bool)> {
    let mut last = Errno::ENOENT;
    for (i, p) in path.ancestors().enumerate() {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match open(p, flags, Mode::empty()) {
            Ok(fd) => return Ok((mnt::id_of(fd.as_fd()).map_err(|e| e.errno)?, i == 0)),
            Err(e @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}
