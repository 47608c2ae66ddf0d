//! Files on a mount that was detached (`umount -l`) while they are open: no path leads to them any more.
//!
//! **Dump.** If another mount of the tree shows the same file system, the file is found there, by its handle. A regular file of
//! a tmpfs that nothing else shows is carried as a deleted one is; ghost-file-HEX.img says that it lies aside.
//!
//! **Restore.** Such files lie on a tmpfs that is mounted nowhere, those of one mount on one, under the names they had: /proc
//! shows the same, and they are not deleted. The tmpfs lives as long as they are open. CRIU, which refuses to dump them, brings
//! them back from our images as deleted files.
//!
//! **What does not come back.** The other files of such a tmpfs: nothing leads to them. Where a folder of it is open something
//! may, so that is refused (E4114), as are file systems on disks that nothing else in the tree shows.
use super::nameless::failed;
use super::paths::FileView;
use super::{DumpCx, watched};
use crate::error::Result;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_kernel::mnt;
use stasis_kernel::procfs::{Handle, ProcDir};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

/// statfs(2) `f_type`.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Where a file on a detached mount is.
pub(super) enum Where {
    /// Its mount is not detached.
    Attached,
    /// Here, too.
    Here(Vec<u8>),
    /// Nowhere else: it can be carried, in a tmpfs of this number.
    Aside(u32),
    /// Nowhere else, and it cannot be carried.
    Lost(&'static str),
}

/// Looks for a file whose path does not lead to it.
pub(super) fn look(cx: &mut DumpCx, v: &FileView) -> Result<Where> {
    let id = mnt::id_of(v.fd)?;
    let mounts = |pid: HostPid| ProcDir::open(pid)?.mountinfo();
    let (theirs, ours) = (mounts(v.pid)?, mounts(HostPid::own())?);
    let in_tree = |n: &crate::namespaces::mnt::MntNs| n.all.contains(&id);
    let attached = theirs.iter().chain(&ours).any(|m| m.id as u32 == id);
    if attached || cx.mount_namespaces.values().any(in_tree) {
        return Ok(Where::Attached);
    }
    let dev = (libc::major(v.stat.st_dev), libc::minor(v.stat.st_dev));
    let handle = fds::name_to_handle(v.fd, c"", libc::AT_EMPTY_PATH).ok();
    let handle = handle.map(|(h, _)| Handle {
        kind: h.kind,
        bytes: h.bytes,
    });
    let w = watched::Watched {
        ino: v.stat.st_ino,
        sdev: super::ghost::kernel_dev(v.stat.st_dev),
        handle: handle.as_ref(),
    };
    if let Some(path) = watched::elsewhere(v.pid, &w)? {
        return Ok(Where::Here(path));
    }
    let shown = theirs.iter().chain(&ours).any(|m| m.dev == dev);
    let regular = v.stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok(match v.fs_type {
        TMPFS_MAGIC if regular && !shown => {
            let next = 1 + cx.inodes.keys().filter(|k| k.0 == "aside").count() as u32;
            let key = ("aside", v.stat.st_dev, 0);
            Where::Aside(*cx.inodes.entry(key).or_insert(next))
        }
        TMPFS_MAGIC if !regular => Where::Lost("only regular files of such a mount are carried"),
        _ => Where::Lost("no other mount of the tree leads to it"),
    })
}

/// Makes the tmpfs.
///
/// # Errors
/// E6122.
pub(super) fn make() -> Result<OwnedFd> {
    let top = mnt::tmpfs_aside(&[("mode", "0755")], mnt::attr::NODEV);
    top.map_err(|e| failed(Path::new("/"), "a tmpfs aside", e.errno))
}

/// A tmpfs that is mounted nowhere, whose files are all ours.
pub(super) struct Aside(pub OwnedFd);

impl Aside {
    /// A new regular file, and the folders above it.
    pub(super) fn create(&self, path: &Path) -> Result<File> {
        if !path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        {
            return Err(failed(path, "open", Errno::EINVAL));
        }
        for up in parents(path) {
            match mkdirat(&self.0, up, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(failed(path, "mkdir", e)),
            }
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        self.open(path, flags).map(File::from)
    }
    /// Opens one of its files.
    pub(super) fn open(&self, path: &Path, flags: OFlag) -> Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        openat(
            &self.0,
            relative(path),
            flags,
            Mode::S_IRUSR | Mode::S_IWUSR,
        )
        .map_err(|e| failed(path, "open", e))
    }
    /// Gives a file one more name.
    pub(super) fn link(&self, first: &Path, other: &Path) -> Result<()> {
        // its folders
        self.create(other)?;
        let (from, to) = (relative(first), relative(other));
        unlinkat(&self.0, to, UnlinkatFlags::NoRemoveDir)
            .and_then(|()| linkat(&self.0, from, &self.0, to, AtFlags::empty()))
            .map_err(|e| failed(other, "link", e))
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// The folders above a file, the outermost first.
fn parents(path: &Path) -> Vec<&Path> {
    let all = relative(path).ancestors().skip(1);
    let mut all: Vec<&Path> = all.filter(|p| !p.as_os_str().is_empty()).collect();
    all.reverse();
    all
}
