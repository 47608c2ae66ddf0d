//! Mounts: rows of the mount API (open_tree(2), fsopen(2), move_mount(2), mount_setattr(2)), and the few questions a dump asks.
//!
//! All are there since Linux 5.12, `MOVE_MOUNT_SET_GROUP` since 5.15.
use crate::call::{Arg, Call, FdRef};
use crate::error::SysError;
use crate::fds;
use crate::names;
use nix::errno::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `MOUNT_ATTR_*` of mount_setattr(2) and fsmount(2).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-ID bits do not count.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// All bits that say when access times change; none of them means relatime.
    pub const ATIME: u64 = 0x70;
    /// Access times do not change.
    pub const NOATIME: u64 = 0x10;
    /// Access times always change.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of folders do not change.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

const OPEN_TREE_CLONE: u64 = 1;
const OPEN_TREE_CLOEXEC: u64 = libc::O_CLOEXEC as u64;
/// linux/fcntl.h
const AT_RECURSIVE: u64 = 0x8000;
const RESOLVE_NO_XDEV: u64 = 0x1;
const RESOLVE_NO_MAGICLINKS: u64 = 0x2;
const RESOLVE_NO_SYMLINKS: u64 = 0x4;
const RESOLVE_BENEATH: u64 = 0x8;
const F_EMPTY_PATH: u64 = 0x4;
const T_EMPTY_PATH: u64 = 0x40;
const SET_GROUP: u64 = 0x100;
const FSCONFIG_SET_FLAG: u64 = 0;
const FSCONFIG_SET_STRING: u64 = 1;
const FSCONFIG_CMD_CREATE: u64 = 6;
const FSCONFIG_CMD_RECONFIGURE: u64 = 7;
/// Size of struct mount_attr and struct open_how.
const ATTR_SIZE: usize = 32;
const HOW_SIZE: usize = 24;

fn here() -> Arg {
    Arg::Named(libc::AT_FDCWD as u64, "AT_FDCWD".into())
}
fn text(s: &str) -> Arg {
    Arg::Str(s.as_bytes().to_vec())
}

/// A detached copy of the one mount at an absolute path, from there on downward; `recursive`: and of all that is mounted below.
/// Links in the path are followed: it must come from the caller.
pub fn clone_path(path: &[u8], recursive: bool) -> Call {
    let flags = match recursive {
        false => Arg::Named(
            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC,
            "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC".into(),
        ),
        true => Arg::Named(
            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE,
            "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE".into(),
        ),
    };
    let args = vec![here(), Arg::Str(path.to_vec()), flags];
    Call::new(libc::SYS_open_tree, args)
}

/// A detached copy of the mount that an open file lies on, from that file on downward.
pub fn clone_of(file: FdRef) -> Call {
    let bits = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u64;
    let args = vec![
        Arg::Fd(file),
        text(""),
        Arg::Named(
            bits,
            "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_EMPTY_PATH".into(),
        ),
    ];
    Call::new(libc::SYS_open_tree, args)
}

/// Opens (O_PATH) what lies at a relative path below a folder, without leaving its mount and without following any link.
pub fn beneath(dir: FdRef, path: &str) -> Call {
    opened(dir, path, RESOLVE_NO_XDEV)
}

/// The same in an autofs, where every folder counts as one that something may be mounted on.
pub fn beneath_autofs(dir: FdRef, path: &str) -> Call {
    opened(dir, path, 0)
}

fn opened(dir: FdRef, path: &str, more: u64) -> Call {
    let mut how = Vec::with_capacity(HOW_SIZE);
    for word in [
        (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64,
        0,
        RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | more,
    ] {
        how.extend_from_slice(&word.to_le_bytes());
    }
    let path = if path.is_empty() { "." } else { path };
    let size = Arg::Int(HOW_SIZE as u64);
    Call::new(
        libc::SYS_openat2,
        vec![Arg::Fd(dir), text(path), Arg::In(how), size],
    )
}

/// Opens a path for reading. Links in it are followed: it must not come from an image.
pub fn open_path(path: &'static str) -> Call {
    let flags = Arg::OpenFlags((libc::O_RDONLY | libc::O_CLOEXEC) as u64);
    Call::new(
        libc::SYS_openat,
        vec![here(), text(path), flags, Arg::Int(0)],
    )
}

/// Makes a folder, for its owner alone, in another.
pub fn make_folder(dir: FdRef, name: &str) -> Call {
    let mode = Arg::Named(0o700, "0700".into());
    Call::new(libc::SYS_mkdirat, vec![Arg::Fd(dir), text(name), mode])
}

/// A context for a new mount of a file system type.
pub fn fsopen(fstype: &str) -> Call {
    let args = vec![text(fstype), Arg::Named(1, "FSOPEN_CLOEXEC".into())];
    Call::new(libc::SYS_fsopen, args)
}

/// Sets an option: a word that stands alone if there is no value.
pub fn fsconfig(context: FdRef, key: &str, value: Option<&str>) -> Call {
    let (bits, name) = match value {
        Some(_) => (FSCONFIG_SET_STRING, "FSCONFIG_SET_STRING"),
        None => (FSCONFIG_SET_FLAG, "FSCONFIG_SET_FLAG"),
    };
    let args = vec![
        Arg::Fd(context),
        Arg::Named(bits, name.into()),
        text(key),
        value.map_or(Arg::Null, text),
        Arg::Int(0),
    ];
    Call::new(libc::SYS_fsconfig, args)
}

fn command(context: FdRef, bits: u64, name: &'static str) -> Call {
    let args = vec![
        Arg::Fd(context),
        Arg::Named(bits, name.into()),
        Arg::Null,
        Arg::Null,
        Arg::Int(0),
    ];
    Call::new(libc::SYS_fsconfig, args)
}

/// Makes the file system.
pub fn create(context: FdRef) -> Call {
    command(context, FSCONFIG_CMD_CREATE, "FSCONFIG_CMD_CREATE")
}

/// Applies options to a file system that is there.
pub fn reconfigure(context: FdRef) -> Call {
    command(
        context,
        FSCONFIG_CMD_RECONFIGURE,
        "FSCONFIG_CMD_RECONFIGURE",
    )
}

/// A context to change the options of a mounted file system.
pub fn fspick(mount: FdRef) -> Call {
    let args = vec![
        Arg::Fd(mount),
        text(""),
        // FSPICK_CLOEXEC 1, FSPICK_EMPTY_PATH 8
        Arg::Named(9, "FSPICK_CLOEXEC|FSPICK_EMPTY_PATH".into()),
    ];
    Call::new(libc::SYS_fspick, args)
}

/// A detached mount of a file system just made, with these `MOUNT_ATTR_*`.
pub fn fsmount(context: FdRef, attrs: u64) -> Call {
    let args = vec![
        Arg::Fd(context),
        Arg::Named(1, "FSMOUNT_CLOEXEC".into()),
        Arg::Named(attrs, names::mount_attrs(attrs).into()),
    ];
    Call::new(libc::SYS_fsmount, args)
}

/// Attaches a detached mount at an open file.
pub fn attach(mount: FdRef, at: FdRef) -> Call {
    moved(
        mount,
        at,
        F_EMPTY_PATH | T_EMPTY_PATH,
        "MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH",
    )
}

/// Attaches a detached mount at an absolute path.
pub fn attach_path(mount: FdRef, path: &[u8]) -> Call {
    let args = vec![
        Arg::Fd(mount),
        text(""),
        here(),
        Arg::Str(path.to_vec()),
        Arg::Named(F_EMPTY_PATH, "MOVE_MOUNT_F_EMPTY_PATH".into()),
    ];
    Call::new(libc::SYS_move_mount, args)
}

/// Gives the mount `to` the peer group and the master of `from`.
pub fn set_group(from: FdRef, to: FdRef) -> Call {
    moved(
        from,
        to,
        SET_GROUP | F_EMPTY_PATH | T_EMPTY_PATH,
        "MOVE_MOUNT_SET_GROUP|MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH",
    )
}

fn moved(from: FdRef, to: FdRef, bits: u64, name: &'static str) -> Call {
    let args = vec![
        Arg::Fd(from),
        text(""),
        Arg::Fd(to),
        text(""),
        Arg::Named(bits, name.into()),
    ];
    Call::new(libc::SYS_move_mount, args)
}

/// Sets and clears `MOUNT_ATTR_*` of a mount; `propagation` is one of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0.
pub fn setattr(mount: FdRef, set: u64, clear: u64, propagation: u64) -> Call {
    let mut attr = Vec::with_capacity(ATTR_SIZE);
    for word in [set, clear, propagation, 0] {
        attr.extend_from_slice(&word.to_le_bytes());
    }
    let args = vec![
        Arg::Fd(mount),
        text(""),
        Arg::Named(libc::AT_EMPTY_PATH as u64, "AT_EMPTY_PATH".into()),
        Arg::In(attr),
        Arg::Int(ATTR_SIZE as u64),
    ];
    Call::new(libc::SYS_mount_setattr, args)
}

/// Sets the propagation (`MS_...`) of a mount and of all mounts below it.
pub fn spread(mount: FdRef, propagation: u64) -> Call {
    let mut call = setattr(mount, 0, 0, propagation);
    call.args[2] = Arg::Named(
        libc::AT_EMPTY_PATH as u64 | AT_RECURSIVE,
        "AT_EMPTY_PATH|AT_RECURSIVE".into(),
    );
    call
}

/// Mounts of this namespace, all below the root, stop sharing what is mounted in them.
pub fn all_private() -> Call {
    let bits = libc::MS_REC | libc::MS_PRIVATE;
    let args = vec![
        Arg::Null,
        text("/"),
        Arg::Null,
        Arg::Named(bits, "MS_REC|MS_PRIVATE".into()),
        Arg::Null,
    ];
    Call::new(libc::SYS_mount, args)
}

/// mount(2) of a new file system at an absolute path: for those whose options are too long for fsconfig(2), which takes 255
/// bytes for each.
///
/// `flags` are `MS_...`, with the words that people have for them.
pub fn mount(
    fstype: &str,
    source: &str,
    at: &str,
    (flags, words): (u64, &str),
    options: &str,
) -> Call {
    let flags = Arg::Named(flags, words.to_owned().into());
    let args = vec![text(source), text(at), text(fstype), flags, text(options)];
    Call::new(libc::SYS_mount, args)
}

/// The working directory becomes this folder.
pub fn enter(dir: FdRef) -> Call {
    Call::new(libc::SYS_fchdir, vec![Arg::Fd(dir)])
}

/// The mount whose root is the working directory goes, with all that is mounted in it.
pub fn detach_here() -> Call {
    let bits = libc::MNT_DETACH as u64;
    Call::new(
        libc::SYS_umount2,
        vec![text("."), Arg::Named(bits, "MNT_DETACH".into())],
    )
}

/// The mount whose root is the working directory becomes the root of this mount namespace; the old root is mounted on top of it.
pub fn pivot_here() -> Call {
    Call::new(libc::SYS_pivot_root, vec![text("."), text(".")])
}

/// chdir(2).
pub fn chdir(path: &str) -> Call {
    Call::new(libc::SYS_chdir, vec![text(path)])
}

/// The id of the mount an open file lies on, as in fdinfo and mountinfo.
///
/// # Errors
/// As statx(2); ENOSYS on kernels before 5.8.
pub fn id_of(file: BorrowedFd<'_>) -> Result<u32, SysError> {
    const STATX_MNT_ID: u32 = 0x1000;
    let st = fds::statx(file, c"", libc::AT_EMPTY_PATH, STATX_MNT_ID)?;
    if st.stx_mask & STATX_MNT_ID == 0 {
        return Err(SysError::new("statx", Errno::ENOSYS, "STATX_MNT_ID"));
    }
    Ok(st.stx_mnt_id as u32)
}

/// A number that grows with every mount the machine makes, of the mount an open file lies on. `None` on kernels before 6.8.
pub fn age_of(file: BorrowedFd<'_>) -> Option<u64> {
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    let st = fds::statx(file, c"", libc::AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE).ok()?;
    (st.stx_mask & STATX_MNT_ID_UNIQUE != 0).then_some(st.stx_mnt_id)
}

/// /proc/thread-self/mountinfo of the calling thread, by way of an open /proc of a namespace that sees the thread.
///
/// # Errors
/// As open(2) and read(2).
pub fn own_mountinfo(proc: BorrowedFd<'_>) -> crate::error::Result<Vec<crate::procfs::MountInfo>> {
    const NAME: &str = "thread-self/mountinfo";
    let io = |e: std::io::Error| {
        SysError::new("read", Errno::from_raw(e.raw_os_error().unwrap_or(0)), NAME)
    };
    let fd = nix::fcntl::openat(
        proc,
        NAME,
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(|e| SysError::new("openat", e, NAME))?;
    let mut text = Vec::new();
    File::from(fd).read_to_end(&mut text).map_err(io)?;
    crate::procfs::parse_mountinfo(NAME, &text)
}

/// A tmpfs that is mounted nowhere: it goes with its last open file. In huge pages if the kernel has them.
///
/// # Errors
/// As fsopen(2), fsconfig(2), fsmount(2).
pub fn nameless_tmpfs() -> Result<OwnedFd, SysError> {
    let options = [("mode", "0700"), ("size", "0"), ("huge", "always")];
    tmpfs_aside(&options, attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

/// A tmpfs that is mounted nowhere, with these options and `MOUNT_ATTR_*`: it goes with its last open file.
///
/// # Errors
/// As fsopen(2), fsconfig(2), fsmount(2).
pub fn tmpfs_aside(options: &[(&str, &str)], attrs: u64) -> Result<OwnedFd, SysError> {
    let (context, mount) = (FdRef(0), FdRef(1));
    let mut host = crate::host::Host::default();
    host.play(&fsopen("tmpfs").binds(context))?;
    for (key, value) in options {
        match host.play(&fsconfig(context, key, Some(value))) {
            // EINVAL without CONFIG_TRANSPARENT_HUGEPAGE
            Err(_) if *key == "huge" => {}
            done => drop(done?),
        }
    }
    host.play(&create(context))?;
    host.play(&fsmount(context, attrs).binds(mount))?;
    let fd = host
        .take(mount)
        .ok_or_else(|| SysError::new("fsmount", Errno::EBADF, "tmpfs"))?;
    // KERNEL: what fsmount(2) gives is O_PATH, which takes no folder's listing
    let flags = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    nix::fcntl::openat(&fd, c".", flags, nix::sys::stat::Mode::empty())
        .map_err(|e| SysError::new("openat", e, "tmpfs"))
}

/// A detached copy of all mounts from a path on, but for unbindable ones.
///
/// # Errors
/// As open_tree(2).
pub fn whole_tree(path: &std::ffi::CStr) -> Result<OwnedFd, SysError> {
    open_tree(path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE)
}

fn open_tree(path: &std::ffi::CStr, flags: u64) -> Result<OwnedFd, SysError> {
    // SAFETY: `path` is NUL-terminated; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        let what = path.to_string_lossy().into_owned();
        return Err(SysError::new("open_tree", Errno::last(), what));
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A detached copy of the one mount at a path, read-only, to look into what other mounts hide.
///
/// # Errors
/// As open_tree(2) and mount_setattr(2).
pub fn peek(path: &std::ffi::CStr) -> Result<OwnedFd, SysError> {
    let what = || path.to_string_lossy().into_owned();
    let once = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW as u64;
    let fd = open_tree(path, once)?;
    // nothing is written through a read-only mount, access times neither; those of a user namespace may be locked besides
    let attr: [u64; 4] = [attr::RDONLY, 0, 0, 0];
    // SAFETY: `attr` is a struct mount_attr of the size given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attr.as_ptr(),
            ATTR_SIZE,
        )
    };
    if done < 0 {
        return Err(SysError::new("mount_setattr", Errno::last(), what()));
    }
    Ok(fd)
}
