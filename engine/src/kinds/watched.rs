//! What inotify and fanotify share: which inode is watched, as a path.
//!
//! **The problem.** fdinfo names a watched inode by device, inode number and file handle. A restore, perhaps on another
//! machine, needs a path. Three ways, in this order:
//! 1. open_by_handle_at(2) on the mounts of that device, and the link of what was opened (ext4, xfs, tmpfs, ...).
//! 2. Paths the task knows: its open files, working directory, root, executable, and the folders above them.
//! 3. A walk through the folders that the caller names ([`Options::scan_paths`](crate::options::Options::scan_paths)),
//!    and then through the mounts of that device, of at most [`WALK`] names (overlayfs, rootless: handles do not open there).
//!
//! Whatever is found is compared with the handle again. A handle can always be had for comparing (AT_HANDLE_FID,
//! KERNEL(>=6.5)), even where it cannot be opened; without one, device and inode number must do.
//!
//! **Restore.** The path is opened with O_PATH, which tells no watcher anything, and the watch is put on /proc/self/fd/N. An
//! image of CRIU may have a handle without path: then the handle is opened on a mount of its device.
use super::common::at_cwd;
use super::{PlanCx, Seen, malformed};
use crate::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::fds::{self, FileHandle};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{Handle, MountInfo, ProcDir, parse_mountinfo};
use stasis_proto::pb;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

/// How many names a search looks at before it gives up.
pub const WALK: usize = 300_000;

const AT_HANDLE_FID: i32 = 0x200;
/// The image format has room for this many words.
const WORDS: usize = 16;

/// A watched inode.
pub struct Watched<'a> {
    /// Inode number as the file system has it.
    pub ino: u64,
    /// Device in the kernel's encoding.
    pub sdev: u32,
    /// Its handle.
    pub handle: Option<&'a Handle>,
}

/// (major, minor) of the kernel's encoding.
fn device(sdev: u32) -> (u32, u32) {
    (sdev >> 20, sdev & 0xf_ffff)
}

impl Watched<'_> {
    /// Is this it?
    fn is(&self, fd: BorrowedFd) -> bool {
        let Ok(st) = fds::fstat(fd) else { return false };
        if let Some(h) = self.handle {
            let mut told = false;
            for flags in [libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH | AT_HANDLE_FID] {
                if let Ok((f, _)) = fds::name_to_handle(fd, c"", flags) {
                    told = true;
                    if f.kind == h.kind && f.bytes == h.bytes {
                        return true;
                    }
                }
            }
            if told {
                return false;
            }
        }
        let dev = (libc::major(st.st_dev), libc::minor(st.st_dev));
        st.st_ino == self.ino && dev == device(self.sdev)
    }
}

/// Where a task's paths are to be looked for.
struct Place {
    root: OwnedFd,
    mounts: Vec<MountInfo>,
    dir: ProcDir,
}

impl Place {
    fn of(pid: HostPid) -> Result<Self> {
        let dir = ProcDir::open(pid)?;
        // In one mount namespace all paths are those that we see, also of a task in a chroot: so /proc shows them to us.
        let ours = ProcDir::open(HostPid::own())?;
        let of = if dir.ns("mnt")? == ours.ns("mnt")? {
            &ours
        } else {
            &dir
        };
        Ok(Self {
            root: of.open_root()?,
            mounts: of.mountinfo()?,
            dir,
        })
    }
    fn open(&self, path: &[u8], flags: OFlag) -> Option<OwnedFd> {
        let path = Path::new(OsStr::from_bytes(path));
        let under = path.strip_prefix("/").unwrap_or(path);
        let under = if under.as_os_str().is_empty() {
            Path::new(".")
        } else {
            under
        };
        openat(&self.root, under, flags | OFlag::O_CLOEXEC, Mode::empty()).ok()
    }
    fn try_path(&self, w: &Watched, path: &[u8]) -> bool {
        self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)
            .is_some_and(|f| w.is(f.as_fd()))
    }
    fn by_handle(&self, w: &Watched) -> Option<Vec<u8>> {
        let h = w.handle?;
        let h = FileHandle {
            kind: h.kind,
            bytes: h.bytes.clone(),
        };
        for m in self.mounts.iter().filter(|m| m.dev == device(w.sdev)) {
            let Some(on) = self.open(
                &m.mountpoint,
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK,
            ) else {
                continue;
            };
            let Ok(f) = fds::open_by_handle(on.as_fd(), &h, libc::O_PATH) else {
                continue;
            };
            let link = std::fs::read_link(format!("/proc/self/fd/{}", f.as_raw_fd())).ok()?;
            let link = link.into_os_string().into_vec();
            // Hidden by another mount, or outside of what is mounted here: then perhaps another mount shows it.
            if self.try_path(w, &link) {
                return Some(link);
            }
        }
        None
    }
    fn by_known(&self, w: &Watched) -> Option<Vec<u8>> {
        let mut known: Vec<Vec<u8>> = [self.dir.cwd(), self.dir.root(), self.dir.exe()]
            .into_iter()
            .flatten()
            .collect();
        for fd in self.dir.fds().unwrap_or_default() {
            known.extend(self.dir.fd_link(fd));
        }
        let mut tried = BTreeSet::new();
        for path in known {
            let mut p = Some(Path::new(OsStr::from_bytes(&path)));
            while let Some(at) = p.filter(|p| p.is_absolute()) {
                if tried.insert(at.to_path_buf()) && self.try_path(w, at.as_os_str().as_bytes()) {
                    return Some(at.as_os_str().as_bytes().to_vec());
                }
                p = at.parent();
            }
        }
        None
    }
    /// Breadth first: what is watched is seldom deep.
    fn by_walk(&self, w: &Watched, named: &[PathBuf]) -> Option<Vec<u8>> {
        let mut left = WALK;
        let named = named.iter().map(|p| p.as_os_str().as_bytes());
        let on_it = |m: &&MountInfo| m.dev == device(w.sdev);
        let mounts = self.mounts.iter().filter(on_it);
        for top in named.chain(mounts.map(|m| &m.mountpoint[..])) {
            let mut next = std::collections::VecDeque::from([top.to_vec()]);
            if self.try_path(w, top) {
                return Some(top.to_vec());
            }
            while let Some(dir) = next.pop_front() {
                let Some(fd) = self.open(
                    &dir,
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW,
                ) else {
                    continue;
                };
                let list = std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                for e in list.into_iter().flatten().flatten() {
                    left = left.checked_sub(1)?;
                    let mut path = dir.clone();
                    if path.last() != Some(&b'/') {
                        path.push(b'/');
                    }
                    path.extend_from_slice(e.file_name().as_bytes());
                    if e.ino() == w.ino && self.try_path(w, &path) {
                        return Some(path);
                    }
                    // not into other file systems
                    let inside = |p: &[u8]| {
                        let f = self.open(p, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
                        let st = fds::fstat(f.as_fd()).ok()?;
                        let top = fds::fstat(fd.as_fd()).ok()?;
                        (st.st_dev == top.st_dev).then_some(())
                    };
                    if e.file_type().is_ok_and(|t| t.is_dir()) && inside(&path).is_some() {
                        next.push_back(path);
                    }
                }
            }
        }
        None
    }
}

/// A path of an inode on another mount than the one it was opened on.
pub(super) fn elsewhere(pid: HostPid, w: &Watched) -> Result<Option<Vec<u8>>> {
    let place = Place::of(pid)?;
    Ok(place.by_handle(w).or_else(|| place.by_walk(w, &[])))
}

/// Finds a path of a watched inode, in these folders first where handles do not open, and gives both as the image has them.
pub fn find(seen: &Seen, w: &Watched, named: &[PathBuf]) -> Result<pb::FhEntry> {
    let place = Place::of(seen.pid)?;
    let path = place
        .by_handle(w)
        .or_else(|| place.by_known(w))
        .or_else(|| place.by_walk(w, named))
        .ok_or_else(|| {
            let (major, minor) = device(w.sdev);
            seen.unsupported(
                format!(
                    "no path leads to inode {} of device {major}:{minor}, which it watches: it was deleted, is hidden by a mount, \
                     or lies behind the first {WALK} names",
                    w.ino
                ),
                "remove the watch before the dump",
            )
        })?;
    // A restorer that cannot use a handle does not look at it, but the fields are required.
    let (kind, bytes) = w.handle.map_or((0, &[][..]), |h| (h.kind, &h.bytes[..]));
    let mut handle = vec![0u64; WORDS];
    for (to, from) in handle.iter_mut().zip(bytes.chunks(8)) {
        let mut b = [0; 8];
        b[..from.len()].copy_from_slice(from);
        *to = u64::from_le_bytes(b);
    }
    Ok(pb::FhEntry {
        bytes: bytes.len() as u32,
        r#type: kind as u32,
        handle,
        path: Some(path),
        mnt_id: None,
    })
}

/// Rows that open a watched inode with O_PATH, under a temporary name.
pub fn open_rows(
    cx: &mut PlanCx,
    entry: &pb::FileEntry,
    fh: &pb::FhEntry,
    sdev: u32,
) -> Result<FdRef> {
    let file = cx.temp();
    let o = (libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
    let flags = Arg::OpenFlags(o);
    if let Some(path) = &fh.path {
        if !path.starts_with(b"/") || path.contains(&0) {
            return Err(malformed(entry, "what it watches has no absolute path"));
        }
        let row = Call::new(
            libc::SYS_openat,
            vec![at_cwd(), Arg::Str(path.clone()), flags],
        );
        cx.host(row.binds(file), "what is watched");
        return Ok(file);
    }
    let (major, minor) = device(sdev);
    let me = "/proc/self/mountinfo";
    let text = std::fs::read(me).map_err(|e| Error::bug(format!("cannot read {me}: {e}")))?;
    let mounts = parse_mountinfo(me, &text)?;
    let on = mounts
        .iter()
        .find(|m| m.dev == (major, minor) && Path::new(OsStr::from_bytes(&m.mountpoint)).is_dir());
    let on = on.ok_or_else(|| {
        malformed(
            entry,
            &format!("it watches an inode of device {major}:{minor} without a path, and that is not mounted"),
        )
    })?;
    let bytes: Vec<u8> = fh.handle.iter().flat_map(|w| w.to_le_bytes()).collect();
    let Some(bytes) = bytes.get(..fh.bytes as usize) else {
        return Err(malformed(entry, "the handle of what it watches is cut"));
    };
    let mut raw = fh.bytes.to_le_bytes().to_vec();
    raw.extend(fh.r#type.to_le_bytes());
    raw.extend(bytes);
    let mount = cx.temp();
    let o = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    let row = Call::new(
        libc::SYS_openat,
        vec![at_cwd(), Arg::Str(on.mountpoint.clone()), Arg::OpenFlags(o)],
    );
    cx.host(row.binds(mount), "the mount of what is watched");
    let row = Call::new(
        libc::SYS_open_by_handle_at,
        vec![Arg::Fd(mount), Arg::In(raw), flags],
    );
    cx.host(row.binds(file), "what is watched, by its handle");
    Ok(file)
}

/// Where a mount is, in the task.
pub fn mountpoint(pid: HostPid, id: i32) -> Result<Option<(PathBuf, u32)>> {
    let mounts = ProcDir::open(pid)?.mountinfo()?;
    Ok(mounts.into_iter().find(|m| m.id == id).map(|m| {
        (
            PathBuf::from(std::ffi::OsString::from_vec(m.mountpoint)),
            m.dev.0 << 20 | m.dev.1,
        )
    }))
}

/// Bytes of events in the queue.
pub fn queued(fd: BorrowedFd) -> Result<i32> {
    Ok(super::common::ask_int(fd, libc::FIONREAD)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use nix::fcntl::open;

    /// What name_to_handle_at says of a path.
    fn handle(p: &Path) -> Handle {
        let f = open(p, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let (h, _) = fds::name_to_handle(f.as_fd(), c"", libc::AT_EMPTY_PATH).unwrap();
        Handle {
            kind: h.kind,
            bytes: h.bytes,
        }
    }
    fn watched<'a>(p: &Path, h: Option<&'a Handle>) -> Watched<'a> {
        use std::os::unix::fs::MetadataExt;
        let m = std::fs::symlink_metadata(p).unwrap();
        Watched {
            ino: m.ino(),
            sdev: libc::major(m.dev()) << 20 | libc::minor(m.dev()),
            handle: h,
        }
    }

    #[test]
    fn each_way_finds_the_path() {
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let deep = tmp.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let file = deep.join("file");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("nowhere", deep.join("link")).unwrap();
        let place = Place::of(HostPid(std::process::id() as i32)).unwrap();
        let path = |p: Option<Vec<u8>>| p.map(|p| PathBuf::from(std::ffi::OsString::from_vec(p)));
        for p in [&deep, &file, &deep.join("link")] {
            let h = handle_nofollow(p);
            let w = watched(p, Some(&h));
            assert_eq!(path(place.by_handle(&w)).as_ref(), Some(p));
            let w = watched(p, None);
            assert_eq!(
                path(place.by_walk(&w, &[])).as_ref(),
                Some(p),
                "on a small file system"
            );
            // in a folder that is named, also if no mount of its device is known
            let mut blind = Place::of(HostPid::own()).unwrap();
            blind.mounts.clear();
            let named = [PathBuf::from("/no/such"), tmp.path().into()];
            assert_eq!(path(blind.by_walk(&w, &[])), None);
            assert_eq!(path(blind.by_walk(&w, &named)).as_ref(), Some(p));
        }
        let _open = std::fs::File::open(&file).unwrap();
        for p in [&file, &deep] {
            assert_eq!(path(place.by_known(&watched(p, None))).as_ref(), Some(p));
        }
        let w = watched(&file, None);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(path(place.by_walk(&w, &[])), None);
    }
    fn handle_nofollow(p: &Path) -> Handle {
        let f = open(
            p,
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        let (h, _) = fds::name_to_handle(f.as_fd(), c"", libc::AT_EMPTY_PATH).unwrap();
        Handle {
            kind: h.kind,
            bytes: h.bytes,
        }
    }

    #[test]
    fn another_inode_with_the_same_number_is_not_taken() {
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = tmp.path().join("file");
        std::fs::write(&file, "").unwrap();
        let mut h = handle(&file);
        h.bytes[4] ^= 1;
        let w = watched(&file, Some(&h));
        let f = std::fs::File::open(&file).unwrap();
        assert!(!w.is(f.as_fd()));
        let e = testing::see(&f, |s| find(s, &w, &[])).err().unwrap();
        assert!(e.why.contains("no path leads to inode"), "{e}");
    }
}
