//! Files opened by a path: regular files, folders, devices without state, files of /proc, and whatever O_PATH holds.
//!
//! **What it is.** An open file whose contents live in a file system that is there at restore. Only the way back to it is in
//! the image: path, open flags, position, owner; size and type with permissions to see whether it is still the same file.
//!
//! **Dump.** The path is what /proc/PID/fd shows. It must lead back to the same inode: where it does not, the file was deleted
//! ([`super::ghost`]) or another mount hides it. A path is looked up from the engine's root if the task
//! shares our mount namespace (the kernel shows paths relative to the reader's root), else from the task's root. The size is
//! not noted for O_WRONLY|O_APPEND (a log may grow meanwhile).
//!
//! **Restore.** openat(2) with the flags of old (never O_CREAT, O_TRUNC, O_EXCL) and O_NONBLOCK, so that nothing under the
//! name can hold the restore up; O_NONBLOCK is taken back at once (F_SETFL). Then lseek(2) to the position, then the check of
//! size and permissions. Files of /proc/PID are opened when the tasks have their pids.
//!
//! A file on a mount that another one hides is opened from its mount, if the tree has a mount namespace of its own.
//!
//! **What does not come back.** A deleted file on a mount that is hidden by another one; a character device other than memory devices
//! (its driver has state; O_PATH is fine); /proc/PID of a task that is gone, /proc/PID/task/TID of a thread that is not the
//! leader. O_TMPFILE is lost from the flags (it does nothing after open). Readahead hints (posix_fadvise). Locks are a kind of their own.
//!
//! Kernel facts: O_NOCTTY, O_CREAT, O_EXCL and O_TRUNC never stay in the flags (fs/open.c do_dentry_open), O_CLOEXEC
//! belongs to the slot; O_LARGEFILE is forced for 64-bit openers. An O_PATH file has no position (lseek: EBADF).
//!
//! Guests: file_reg, names, file_shared, files_many, dir, opath, devices, proc_files.
use super::act::{Act, Check, sys};
use super::paths::{self, FileView};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, fown, ghost, malformed, memfd};
use crate::error::{Blame, Error, Result};
use nix::fcntl::OFlag;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{FdInfo, LeaseState, LockKind, LockMode};
use stasis_proto::pb;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const SECRETMEM: i64 = 0x5345_434d;
const ANON_INODE_FS: i64 = 0x0904_1934;
/// The bit that tells O_TMPFILE from O_DIRECTORY.
const TMPFILE_BIT: u32 = 0o20_000_000;
/// Major number of /dev/null, zero, full, random, urandom, kmsg.
const MEM_MAJOR: u32 = 1;

/// Opening must not wait, whatever lies under the name by now: a fifo without a writer, a lease that somebody holds.
const NONBLOCK: u32 = libc::O_NONBLOCK as u32;

/// Files, folders, stateless devices and /proc, by path.
pub struct Regular;

/// Makes an entry in [`DumpCx::entries`] for a file that no slot has: mapped, executable, working directory, root.
///
/// `fd` is any open file of it (O_PATH will do unless it was deleted), `link` its path as /proc shows it, `flags` those a
/// restore should open it with, `what` names it in errors ("the executable of task 42"). Gives the id of the entry: the same
/// one for the same inode, path and flags. Anonymous shared memory that has a descriptor (memfd) gets its own kind of entry.
///
/// # Errors
/// As for files in slots.
pub fn describe(
    cx: &mut DumpCx,
    pid: HostPid,
    fd: BorrowedFd<'_>,
    link: &[u8],
    flags: u32,
    what: &str,
) -> Result<u32> {
    let stat = fds::fstat(fd)?;
    let flags = flags & !(libc::O_CLOEXEC as u32);
    // two names of one inode, or two ways to open it, are two entries
    let mount = match cx.mount_namespaces.is_empty() {
        true => 0,
        false => stasis_kernel::mnt::id_of(fd)?,
    };
    let key = (stat.st_dev, stat.st_ino, flags, mount, link.to_vec());
    if let Some(id) = cx.described.get(&key) {
        return Ok(*id);
    }
    let fs_type = fs_type(fd)?;
    let id = cx.new_id();
    let entry = if memfd::is(&stat, fs_type, link)? {
        memfd::entry(cx, fd, &stat, link, id, flags, 0, pb::FownEntry::default())?
    } else {
        let v = FileView {
            fd,
            stat,
            fs_type,
            link,
            pid,
            place: format!("{what} ({})", String::from_utf8_lossy(link)),
            write_lease: false,
        };
        entry(cx, &v, id, flags, 0, pb::FownEntry::default())?
    };
    cx.entries.push(entry);
    cx.described.insert(key, id);
    Ok(id)
}

/// The error for a number that no entry has.
pub fn no_entry(id: u32) -> Error {
    Error::new(
        "E5105",
        Blame::Image,
        format!("files.img has no entry {id}, which a mapping or a task's folder needs"),
    )
    .advice("dump again: the image is not complete")
}

/// Plans one more open of the file with this entry under another name, with other flags, without position, owner and check:
/// for mappings, executables, working directories.
///
/// # Errors
/// An id without entry, or one that is neither of this kind nor a memfd.
pub fn plan_open(cx: &mut PlanCx, id: u32, flags: u32, bind: FdRef) -> Result<()> {
    let files = cx.files;
    let e = files.get(&id).ok_or_else(|| no_entry(id))?;
    if e.memfd.is_some() {
        return memfd::plan_open(cx, e, flags, bind);
    }
    if e.ext.is_some() {
        return super::inherit::plan_again(e, cx, bind);
    }
    let Some(reg) = e.reg.as_deref() else {
        return Err(malformed(e, "it cannot be mapped, executed or entered"));
    };
    let before = cx.stage();
    cx.enter(stage_of(reg, cx).max(before));
    let home = cx.go_to_mount(mount_id(reg));
    let call = open_call(cx, reg, flags | NONBLOCK);
    if let Ok(c) = &call {
        cx.host(c.clone().binds(bind), shown(reg));
    }
    cx.enter(before);
    cx.home = home;
    call.map(drop)
}

impl FileKind for Regular {
    fn name(&self) -> &'static str {
        "regular"
    }
    fn about(&self) -> &'static str {
        "files, folders, memory devices, /proc and O_PATH come back by their path; deleted files with their contents"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Reg
    }
    fn claims(&self, s: &Seen) -> bool {
        if !s.link.starts_with(b"/") || matches!(s.fs_type, SECRETMEM | ANON_INODE_FS) {
            return false;
        }
        let path_only = s.flags & libc::O_PATH as u32 != 0;
        match s.file_type() {
            libc::S_IFREG => !memfd::is(&s.stat, s.fs_type, s.link).unwrap_or(false),
            libc::S_IFDIR | libc::S_IFLNK | libc::S_IFBLK => true,
            libc::S_IFCHR => path_only || libc::major(s.stat.st_rdev) == MEM_MAJOR,
            _ => path_only,
        }
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, s: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let v = FileView {
            fd: s.fd,
            stat: s.stat,
            fs_type: s.fs_type,
            link: s.link,
            pid: s.pid,
            place: s.place(),
            write_lease: write_lease(s.info)?,
        };
        entry(cx, &v, id, s.flags, s.info.pos as u64, s.fown)
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let reg = entry
            .reg
            .as_deref()
            .ok_or_else(|| malformed(entry, "it has no reg_file_entry"))?;
        if !is_opened(cx, reg)? {
            return Ok(());
        }
        let before = cx.stage();
        cx.enter(stage_of(reg, cx).max(before));
        let home = cx.go_to_mount(mount_id(reg));
        let done = plan_entry(reg, cx);
        cx.enter(before);
        cx.home = home;
        done
    }
}

/// Is the entry opened under its own id? Entries that no slot has are mapped, executed or entered, but some only hold a path
/// for another one: of a fifo or terminal, which its kind opens in its own way (plainly, it might wait for ever), or of the
/// link of a remap.
pub(super) fn is_opened(cx: &mut PlanCx, reg: &pb::RegFileEntry) -> Result<bool> {
    if cx.holders.get(&reg.id).is_some_and(|h| !h.is_empty()) {
        return Ok(true);
    }
    let all = cx.image::<pb::RemapFilePathEntry>("remap-fpath.img")?;
    let link = |r: &pb::RemapFilePathEntry| remap_of(r) == (pb::RemapType::Linked, reg.id);
    let place = match reg.mode.map(|m| m & libc::S_IFMT) {
        Some(libc::S_IFIFO | libc::S_IFSOCK) => true,
        Some(libc::S_IFCHR) => is_tty_path(&reg.name),
        _ => false,
    };
    Ok(!place && !all.iter().any(link))
}

fn is_tty_path(name: &[u8]) -> bool {
    let n = name.strip_prefix(b"/dev/").unwrap_or(name);
    n.starts_with(b"pts/") || n.starts_with(b"tty") || matches!(n, b"console" | b"ptmx")
}

/// The name of an entry, for people.
pub(super) fn shown(reg: &pb::RegFileEntry) -> String {
    String::from_utf8_lossy(&reg.name).into_owned()
}

fn plan_entry(reg: &pb::RegFileEntry, cx: &mut PlanCx) -> Result<()> {
    let file = cx.file(reg.id);
    let mut flags = None;
    match remap(cx, reg)? {
        // its own open is part of the deleted file's act, where it has its old name
        Some(r) => drop(ghost::plan(cx, reg, &r)?),
        None => {
            let c = open_call(cx, reg, reg.flags | NONBLOCK)?;
            cx.host(c.binds(file), "open it by its path");
            if reg.flags & (NONBLOCK | libc::O_PATH as u32) == 0 {
                flags = Some(reg.flags & !(libc::O_ASYNC as u32));
            }
        }
    }
    // a fresh file stands at 0; some devices cannot seek at all
    let seeks = reg.flags & libc::O_PATH as u32 == 0 && reg.pos != 0 && reg.pos != u64::MAX;
    cx.act_at(
        cx.stage(),
        Act::Check(Box::new(Check {
            file,
            name: shown(reg),
            size: reg.size,
            mode: reg.mode,
            skip_rwx: cx.options.skip_file_rwx_check,
            flags,
            position: seeks.then_some(reg.pos),
        })),
        "is it the same file, with its flags and position",
    );
    fown::plan(cx, file, &reg.fown, reg.flags);
    Ok(())
}

/// The call that opens the file of this entry with these flags.
fn open_call(cx: &mut PlanCx, reg: &pb::RegFileEntry, flags: u32) -> Result<Call> {
    if reg.ext() {
        return Err(Error::new(
            "E5103",
            Blame::Image,
            format!("cannot open the external file {}", shown(reg)),
        )
        .why("the dump left it to the caller, and only a descriptor of a task can be brought")
        .advice("dump again without --external for this file"));
    }
    let mut dir = Arg::Named(libc::AT_FDCWD as u64, "AT_FDCWD".into());
    let path = match remap(cx, reg)? {
        Some(r) => Arg::FdPath(ghost::plan(cx, reg, &r)?),
        None => {
            let path = path_of(reg)?.into_os_string().into_encoded_bytes();
            let on = mount_id(reg);
            let mounts = cx.mounts.as_ref();
            match on.and_then(|id| mounts?.hidden(id, &reg.name)) {
                Some((mount, rest)) => {
                    dir = Arg::Fd(mount);
                    Arg::Str(if rest.is_empty() { b".".to_vec() } else { rest })
                }
                None => Arg::Str(path),
            }
        }
    };
    let mut flags = open_flags(flags);
    if matches!(path, Arg::FdPath(_)) {
        // it would stop at the magic link
        flags.remove(OFlag::O_NOFOLLOW);
    }
    let bits = flags.bits() as u64;
    let args = vec![dir, path, Arg::OpenFlags(bits), Arg::Int(0)];
    Ok(Call::new(libc::SYS_openat, args))
}

/// The number of the mount it is on, if that is in the image.
pub(super) fn mount_id(reg: &pb::RegFileEntry) -> Option<u32> {
    reg.mnt_id.and_then(|id| u32::try_from(id).ok())
}

fn remap(cx: &mut PlanCx, reg: &pb::RegFileEntry) -> Result<Option<pb::RemapFilePathEntry>> {
    let all = cx.image::<pb::RemapFilePathEntry>("remap-fpath.img")?;
    let found = all.iter().find(|r| r.orig_id == reg.id).cloned();
    match &found {
        Some(r) if remap_of(r).0 == pb::RemapType::Procfs => {
            Err(
                Error::new("E5102", Blame::Image, format!("cannot open {}", shown(reg)))
                    .why(format!(
                        "task {} was dead when the tree was dumped",
                        r.remap_id
                    ))
                    .advice("a file of a dead task's /proc cannot be restored"),
            )
        }
        _ => Ok(found),
    }
}

/// Type and number of a remap. Old images have no type and mark ghosts by the top bit of the number.
pub(super) fn remap_of(r: &pb::RemapFilePathEntry) -> (pb::RemapType, u32) {
    const GHOST: u32 = 1 << 31;
    match r.remap_type {
        Some(_) => (r.remap_type(), r.remap_id),
        None if r.remap_id & GHOST != 0 => (pb::RemapType::Ghost, r.remap_id & !GHOST),
        None => (pb::RemapType::Linked, r.remap_id),
    }
}

/// The absolute path of an entry.
pub(super) fn path_of(reg: &pb::RegFileEntry) -> Result<PathBuf> {
    if !reg.name.starts_with(b"/") || reg.name.contains(&0) {
        return Err(malformed(
            &stand_in(reg),
            "its name is not an absolute path",
        ));
    }
    Ok(PathBuf::from(OsStr::from_bytes(&reg.name)))
}

/// A file entry around a path entry, for error messages.
pub(super) fn stand_in(reg: &pb::RegFileEntry) -> pb::FileEntry {
    pb::FileEntry {
        r#type: pb::FdTypes::Reg as i32,
        id: reg.id,
        ..Default::default()
    }
}

/// What open(2) is given for the flags in an entry. O_ASYNC does nothing in open(2) and is set later.
pub(super) fn open_flags(flags: u32) -> OFlag {
    let mut f = OFlag::from_bits_retain(flags as i32);
    if flags & TMPFILE_BIT != 0 {
        f.remove(OFlag::O_TMPFILE);
    }
    f.remove(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_TRUNC | OFlag::O_ASYNC);
    f | OFlag::O_CLOEXEC | OFlag::O_NOCTTY
}

/// Files of a task's /proc need the task, and some file systems need one of their pid namespace.
fn stage_of(reg: &pb::RegFileEntry, cx: &PlanCx) -> Stage {
    let inner = |id| cx.mounts.as_ref().is_some_and(|m| m.is_inner(id));
    let of_task = std::str::from_utf8(&reg.name).is_ok_and(|n| proc_pid(n).is_some());
    match of_task || mount_id(reg).is_some_and(inner) {
        true => Stage::Tasks,
        false => Stage::First,
    }
}

/// 42 and the rest for "/proc/42/..." and "/proc/42".
pub(super) fn proc_pid(name: &str) -> Option<(i32, &str)> {
    let rest = name.strip_prefix("/proc/")?;
    let (pid, rest) = rest.split_once('/').unwrap_or((rest, ""));
    Some((pid.parse().ok().filter(|p| *p > 0)?, rest))
}

fn entry(
    cx: &mut DumpCx,
    v: &FileView,
    id: u32,
    flags: u32,
    pos: u64,
    fown: pb::FownEntry,
) -> Result<pb::FileEntry> {
    let name = paths::place(cx, v, id)?;
    let mnt_id = paths::mount_of(cx, v)?;
    let log = flags & (libc::O_ACCMODE | libc::O_APPEND) as u32
        == (libc::O_WRONLY | libc::O_APPEND) as u32;
    let regular = v.stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok(pb::FileEntry {
        r#type: pb::FdTypes::Reg as i32,
        id,
        reg: Some(Box::new(pb::RegFileEntry {
            id,
            flags,
            pos,
            fown,
            name,
            mnt_id,
            size: (regular && !log).then_some(v.stat.st_size as u64),
            mode: Some(v.stat.st_mode),
            ..Default::default()
        })),
        ..Default::default()
    })
}

/// Does the open file hold a write lease?
fn write_lease(info: &FdInfo) -> Result<bool> {
    Ok(info.locks()?.iter().any(|l| {
        l.kind == LockKind::Lease
            && (l.mode == LockMode::Write || l.lease != Some(LeaseState::Active))
    }))
}

/// Filesystem magic of an open file.
pub(super) fn fs_type(fd: BorrowedFd<'_>) -> Result<i64> {
    let s = nix::sys::statfs::fstatfs(fd)
        .map_err(|e| sys("fstatfs", &std::io::Error::from(e), "a mapped file"))?;
    Ok(s.filesystem_type().0)
}

#[cfg(test)]
#[path = "regular_tests.rs"]
mod tests;
