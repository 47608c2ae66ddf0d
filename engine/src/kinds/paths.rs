//! From an open file to the name by which a restore will find it; see [`super::regular`].
use super::act::Undo;
use super::detached::Where;
use super::regular::proc_pid;
use super::{DumpCx, ghost};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use stasis_kernel::error::SysError;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::ProcDir;
use stasis_kernel::{fds, names};
use stasis_proto::pb;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

const PROC_SUPER: i64 = 0x9fa0;
const DEVPTS_SUPER: i64 = 0x1cd1;
const NFS_SUPER: i64 = 0x6969;
const DELETED: &[u8] = b" (deleted)";

/// A file as the dump of paths needs it, be it in a slot, mapped, executed or a working directory.
pub(super) struct FileView<'a> {
    pub fd: BorrowedFd<'a>,
    pub stat: libc::stat,
    pub fs_type: i64,
    pub link: &'a [u8],
    /// A task that has it.
    pub pid: HostPid,
    /// For messages.
    pub place: String,
    /// The open file behind `fd` holds a write lease: opening the file once more would break it.
    pub write_lease: bool,
}

impl FileView<'_> {
    /// The file for reading, with pread only if `write_lease`.
    pub fn contents(&self) -> Result<File> {
        if self.write_lease {
            return Ok(File::from(fds::dup(self.fd)?));
        }
        let this = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        // our reading is not an access of the application's; only its owner and root may ask for that
        openat(
            AT_FDCWD,
            this.as_str(),
            flags | OFlag::O_NOATIME,
            Mode::empty(),
        )
        .or_else(|_| openat(AT_FDCWD, this.as_str(), flags, Mode::empty()))
        .map(File::from)
        .map_err(|e| SysError::new("openat", e, self.place.clone()).into())
    }
    fn refuse(&self, code: &'static str, why: impl std::fmt::Display, advice: &str) -> Error {
        Error::new(
            code,
            Blame::Container,
            format!("cannot dump {}", self.place),
        )
        .why(why)
        .advice(advice)
    }
}

/// The name by which a restore finds the file; a deleted one is carried, or linked.
///
/// Names are bytes: what people see of them may be in any encoding.
pub(super) fn place(cx: &mut DumpCx, v: &FileView, id: u32) -> Result<Vec<u8>> {
    let full = v.link;
    let bare = full.strip_suffix(b" (deleted)").unwrap_or(full);
    if v.fs_type == PROC_SUPER {
        // all names there are the kernel's
        let name = String::from_utf8_lossy(full);
        return Ok(proc_name(cx, v, &name)?.as_bytes().to_vec());
    }
    if v.fs_type == DEVPTS_SUPER {
        // its files are the kernel's; a terminal whose peer is gone has no name, and none is to be carried
        return Ok(bare.to_owned());
    }
    if v.stat.st_nlink == 0 {
        its_folder_shows(cx, v, bare)?;
        ghost::dump(cx, v, id)?;
        return Ok(bare.to_owned());
    }
    let root = root_of(cx, v)?;
    if v.fs_type == NFS_SUPER && silly(full) {
        // the server keeps this name only until the last close
        link(cx, v, &root, full, id)?;
        return Ok(full.to_owned());
    }
    let found = match look(&root, full) {
        Ok(st) => Some(st),
        Err(Errno::ENOENT) => None,
        Err(e) => return Err(SysError::new("newfstatat", e, v.place.clone()).into()),
    };
    let same = |st: &FileStat| (st.st_dev, st.st_ino) == (v.stat.st_dev, v.stat.st_ino);
    let device = matches!(v.stat.st_mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
    match found {
        Some(st) if same(&st) => Ok(full.to_owned()),
        Some(st)
            if cx.options.evasive_devices
                && device
                && (st.st_rdev, st.st_mode & libc::S_IFMT)
                    == (v.stat.st_rdev, v.stat.st_mode & libc::S_IFMT) =>
        {
            Ok(full.to_owned())
        }
        None | Some(_) if v.link.ends_with(DELETED) => {
            its_folder_shows(cx, v, bare)?;
            if v.stat.st_mode & libc::S_IFMT == libc::S_IFDIR || !link(cx, v, &root, bare, id)? {
                ghost::dump(cx, v, id)?;
            }
            Ok(bare.to_owned())
        }
        // opened from its mount, whatever lies on top of that
        _ if is_hidden(cx, v, &root, full)? => Ok(full.to_owned()),
        _ => no_path(cx, v, found, id),
    }
}

/// What to do with a file that its path does not lead to: its mount may be detached.
fn no_path(cx: &mut DumpCx, v: &FileView, found: Option<FileStat>, id: u32) -> Result<Vec<u8>> {
    let detached = match super::detached::look(cx, v)? {
        Where::Here(path) => return Ok(path),
        Where::Aside(number) => {
            ghost::dump_aside(cx, v, id, number)?;
            return Ok(v.link.to_owned());
        }
        Where::Lost(why) => Some(why),
        Where::Attached => None,
    };
    match (detached, found) {
        (Some(why), _) => Err(v.refuse(
            "E4114",
            format!("its mount was detached (umount -l), and {why}"),
            "close it before the dump",
        )),
        (None, Some(st)) => Err(v.refuse(
            "E4113",
            format!(
                "its path leads to another file now (device {}:{} inode {} instead of {}:{} inode {}): \
                 a mount hides it, or it was replaced",
                libc::major(st.st_dev),
                libc::minor(st.st_dev),
                st.st_ino,
                libc::major(v.stat.st_dev),
                libc::minor(v.stat.st_dev),
                v.stat.st_ino
            ),
            "close it, or unmount what hides it, before the dump",
        )),
        (None, None) => Err(v.refuse(
            "E4114",
            "its path leads nowhere, though it was not deleted: its mount is hidden",
            "close it before the dump",
        )),
    }
}

fn proc_name<'a>(cx: &mut DumpCx, v: &FileView, full: &'a str) -> Result<&'a str> {
    let Some((pid, rest)) = proc_pid(full.strip_suffix(" (deleted)").unwrap_or(full)) else {
        return Ok(full);
    };
    let gone = || {
        v.refuse(
            "E4102",
            format!("it belongs to /proc of task {pid}, which is gone"),
            "close it before the dump",
        )
    };
    if full.ends_with(" (deleted)") {
        return Err(gone());
    }
    let root = root_of(cx, v)?;
    if look(&root, format!("/proc/{pid}").as_bytes()).is_err() {
        return Err(gone());
    }
    let thread = rest
        .strip_prefix("task/")
        .and_then(|r| r.split('/').next())
        .and_then(|t| t.parse::<i32>().ok());
    match thread {
        Some(t) if t != pid => Err(v.refuse(
            "E4103",
            format!(
                "it belongs to /proc of thread {t}, and threads are born after files are opened"
            ),
            "close it before the dump",
        )),
        _ => Ok(full),
    }
}

/// The number of the mount the file lies on, if that is in the image.
pub(super) fn mount_of(cx: &DumpCx, v: &FileView) -> Result<Option<i32>> {
    if cx.mount_namespaces.is_empty() {
        return Ok(None);
    }
    let id = stasis_kernel::mnt::id_of(v.fd)?;
    let known = cx.mount_namespaces.values().any(|n| n.mounts.contains(&id));
    Ok(known.then_some(id as i32))
}

/// Is the file on a mount of the tree to which its path does not lead?
fn is_hidden(cx: &DumpCx, v: &FileView, root: &OwnedFd, path: &[u8]) -> Result<bool> {
    let Some(id) = mount_of(cx, v)? else {
        return Ok(false);
    };
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(root, relative(path), flags, Mode::empty()) {
        Ok(fd) => Ok(stasis_kernel::mnt::id_of(fd.as_fd())? as i32 != id),
        Err(_) => Ok(true),
    }
}

/// A deleted file gets its old name for a moment: that must be on its own mount.
fn its_folder_shows(cx: &mut DumpCx, v: &FileView, path: &[u8]) -> Result<()> {
    let Some(id) = mount_of(cx, v)? else {
        return Ok(());
    };
    let root = root_of(cx, v)?;
    for up in Path::new(OsStr::from_bytes(path)).ancestors().skip(1) {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let up = up.as_os_str().as_bytes();
        let Ok(dir) = openat(&root, relative(up), flags, Mode::empty()) else {
            continue;
        };
        if stasis_kernel::mnt::id_of(dir.as_fd())? as i32 == id {
            return Ok(());
        }
        break;
    }
    Err(v.refuse(
        "E4309",
        "it was deleted, and another mount hides the one it is on",
        "close it, or unmount what hides it, before the dump",
    ))
}

/// An absolute path as openat(2) takes it below a root.
fn relative(path: &[u8]) -> &[u8] {
    let slashes = path.iter().take_while(|b| **b == b'/').count();
    match &path[slashes..] {
        b"" => b".",
        rel => rel,
    }
}

/// The root from which the paths that /proc shows us of this task's files are to be looked up. Asked once per task: it costs
/// as much as all the rest of a file.
fn root_of(cx: &mut DumpCx, v: &FileView) -> Result<Rc<OwnedFd>> {
    const OURS: HostPid = HostPid(0);
    // whoever has it may be in another mount namespace than the file
    if let Some(id) = mount_of(cx, v)? {
        let mut all = cx.mount_namespaces.values();
        if let Some(n) = all.find(|n| n.mounts.contains(&(id as u32))) {
            return Ok(n.root.clone());
        }
    }
    let pid = match cx.has_engines(Ns::Mnt) {
        true => HostPid::own(),
        false => v.pid,
    };
    if let Some(r) = cx.roots.get(&pid) {
        return Ok(r.clone());
    }
    let theirs = ProcDir::open(pid)?;
    let ours = ProcDir::open(HostPid::own())?;
    let theirs_ns = theirs.ns("mnt")?;
    let root = if let Some(ns) = cx.mount_namespaces.get(&theirs_ns) {
        // paths are shown from there, whatever the task's own root is
        ns.root.clone()
    } else if theirs_ns != ours.ns("mnt")? {
        Rc::new(theirs.open_root()?)
    } else if let Some(r) = cx.roots.get(&OURS) {
        r.clone()
    } else {
        let r = Rc::new(ours.open_root()?);
        cx.roots.insert(OURS, r.clone());
        r
    };
    cx.roots.insert(pid, root.clone());
    Ok(root)
}

fn look(root: &OwnedFd, path: &[u8]) -> nix::Result<FileStat> {
    fstatat(root, relative(path), AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Names that NFS clients give to files deleted while open: `.nfs` and 24 hexadecimal digits.
fn silly(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    name.strip_prefix(b".nfs")
        .is_some_and(|n| n.len() >= 24 && n[..24].iter().all(u8::is_ascii_hexdigit))
}

/// Makes a further hard link to a file whose name is gone, beside that name or in the nearest folder above that is still
/// there. False: the file has no names at all in truth (overlayfs).
fn link(cx: &mut DumpCx, v: &FileView, root: &OwnedFd, bare: &[u8], id: u32) -> Result<bool> {
    if !cx.options.link_remap {
        return Err(v.refuse(
            "E4111",
            format!(
                "it was deleted, but has {} other name{} that cannot be found",
                v.stat.st_nlink,
                if v.stat.st_nlink == 1 { "" } else { "s" }
            ),
            "pass --link-remap, which makes a hard link beside it until the restore",
        ));
    }
    let this = format!("/proc/self/fd/{}", v.fd.as_raw_fd());
    let to = cx.new_id();
    let name = format!("link_remap.{to}");
    for up in Path::new(OsStr::from_bytes(bare)).ancestors().skip(1) {
        let rel = up.strip_prefix("/").unwrap_or(up);
        let rel = if rel.as_os_str().is_empty() {
            Path::new(".")
        } else {
            rel
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = match openat(root, rel, flags, Mode::empty()) {
            Ok(d) => d,
            Err(Errno::ENOENT) => continue,
            Err(e) => return Err(SysError::new("openat", e, up.display().to_string()).into()),
        };
        let path = up.join(&name);
        match nix::unistd::linkat(
            AT_FDCWD,
            this.as_str(),
            dir.as_fd(),
            name.as_str(),
            AtFlags::AT_SYMLINK_FOLLOW,
        ) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Ok(false),
            Err(e) => {
                return Err(v.refuse(
                    "E4111",
                    format!("linkat to {}: {}", path.display(), names::errno(e as i32)),
                    "close it before the dump",
                ));
            }
        }
        let shown = path.as_os_str().as_bytes().to_vec();
        cx.undo.push(Undo::Unlink { dir, name, path });
        cx.entries.push(pb::FileEntry {
            r#type: pb::FdTypes::Reg as i32,
            id: to,
            reg: Some(Box::new(pb::RegFileEntry {
                id: to,
                name: shown,
                ..Default::default()
            })),
            ..Default::default()
        });
        let remap = pb::RemapFilePathEntry {
            orig_id: id,
            remap_id: to,
            remap_type: Some(pb::RemapType::Linked as i32),
        };
        cx.put("remap-fpath.img", &remap, &[])?;
        return Ok(true);
    }
    Ok(false)
}
