//! What several kinds do alike: status flags, paths beside an entry, questions to a duplicate.
use super::{DumpCx, PlanCx, Seen, Stage, fown, malformed, regular};
use crate::error::Result;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::host::{Host, HostAnswer};
use stasis_proto::pb;
use std::os::fd::{AsFd, AsRawFd};

/// Status flags that fcntl(F_SETFL) can change and an image may ask for. Not O_ASYNC: it comes with the owner (fown).
pub const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME) as u32;

/// Flags that open(2) of an existing file may be given from an image: nothing that creates, truncates or grabs.
pub const OPENABLE: u32 = SETTABLE | (libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC) as u32;

/// Rows: gives a file exactly the status flags and the owner of the image.
pub fn settle(cx: &mut PlanCx, file: FdRef, flags: u32, owner: &pb::FownEntry) {
    settle_at(Stage::Tasks, cx, file, flags, owner);
}

/// The same; the owner comes at this stage, not earlier than [`Stage::Tasks`].
pub fn settle_at(stage: Stage, cx: &mut PlanCx, file: FdRef, flags: u32, owner: &pb::FownEntry) {
    let f = flags & SETTABLE;
    cx.host(
        Call::new(
            libc::SYS_fcntl,
            vec![
                Arg::Fd(file),
                Arg::Named(libc::F_SETFL as u64, "F_SETFL".into()),
                Arg::Hex(f.into()),
            ],
        ),
        "status flags",
    );
    fown::plan_at(stage, cx, file, owner, flags);
}

/// Row: one more slot for the same open file, under another name.
pub fn dup_row(from: FdRef, to: FdRef) -> Call {
    dup_of(Arg::Fd(from)).binds(to)
}

/// Row: duplicates a descriptor given in any form.
pub fn dup_of(from: Arg) -> Call {
    Call::new(
        libc::SYS_fcntl,
        vec![
            from,
            Arg::Named(libc::F_DUPFD_CLOEXEC as u64, "F_DUPFD_CLOEXEC".into()),
            Arg::Int(0),
        ],
    )
}

/// Row: another open file of the same inode, with these access mode and flags.
pub fn reopen_row(from: FdRef, flags: u32, to: FdRef) -> Call {
    let f = flags & OPENABLE | (libc::O_CLOEXEC | libc::O_NOCTTY) as u32;
    Call::new(
        libc::SYS_openat,
        vec![at_cwd(), Arg::FdPath(from), Arg::Hex(f.into())],
    )
    .binds(to)
}

/// AT_FDCWD as an argument.
pub fn at_cwd() -> Arg {
    Arg::Named(libc::AT_FDCWD as u64, "AT_FDCWD".into())
}

/// Describes the path of a file that is opened by path but is no regular file (fifo, terminal) as the image format
/// wants it: an entry of type REG that no slot has. Gives its id.
pub fn path_entry(seen: &Seen, cx: &mut DumpCx) -> Result<u32> {
    regular::describe(
        cx,
        seen.pid,
        seen.fd,
        seen.link,
        seen.flags,
        &format!("fd {} of task {}", seen.slot, seen.pid.0),
    )
}

/// The entry that [`path_entry`] made.
pub fn path_of<'a>(
    entry: &pb::FileEntry,
    regf_id: Option<u32>,
    cx: &PlanCx<'a>,
) -> Result<&'a pb::RegFileEntry> {
    // In older images both have one id.
    let id = regf_id.unwrap_or(entry.id);
    let reg = cx.files.get(&id).and_then(|e| e.reg.as_deref());
    reg.ok_or_else(|| {
        malformed(
            entry,
            &format!("its path should be in entry {id} of type REG"),
        )
    })
}

/// Asks the kernel about one of our own descriptors: a row played at once. For calls that only look.
pub fn ask(fd: impl AsFd, nr: i64, rest: Vec<Arg>) -> Result<HostAnswer, SysError> {
    let mut args = vec![Arg::Int(fd.as_fd().as_raw_fd() as u64)];
    args.extend(rest);
    Host::default().play(&Call::new(nr, args))
}

/// ioctl(2) that gives `len` bytes.
pub fn ask_ioctl(fd: impl AsFd, request: u64, len: usize) -> Result<Vec<u8>, SysError> {
    let name = stasis_kernel::names::ioctl(request);
    let a = ask(
        fd,
        libc::SYS_ioctl,
        vec![Arg::Named(request, name), Arg::Out(len)],
    )?;
    Ok(a.out(2).to_vec())
}

/// ioctl(2) that gives an `int`.
pub fn ask_int(fd: impl AsFd, request: u64) -> Result<i32, SysError> {
    let b = ask_ioctl(fd, request, 4)?;
    Ok(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Row: ioctl(2).
pub fn ioctl_row(fd: Arg, request: u64, arg: Arg) -> Call {
    let name = stasis_kernel::names::ioctl(request);
    Call::new(libc::SYS_ioctl, vec![fd, Arg::Named(request, name), arg])
}

/// Is this the link of an anonymous inode of this name? Kernels write `anon_inode:[x]` or `anon_inode:x`.
pub fn is_anon(link: &[u8], name: &str) -> bool {
    let Some(rest) = link.strip_prefix(b"anon_inode:") else {
        return false;
    };
    rest == name.as_bytes()
        || rest
            .strip_prefix(b"[")
            .and_then(|r| r.strip_suffix(b"]"))
            .is_some_and(|r| r == name.as_bytes())
}

/// Something that is made when it is needed first, because that takes milliseconds, and kept for what comes behind.
pub fn opened<T>(
    kept: &mut Option<T>,
    make: impl FnOnce() -> Result<T, SysError>,
) -> Result<&T, SysError> {
    let it = match kept.take() {
        Some(it) => it,
        None => make()?,
    };
    Ok(kept.insert(it))
}

/// The box of a kind in a file entry, or an error that says what is missing.
pub fn body<'a, T>(
    entry: &'a pb::FileEntry,
    field: &'a Option<Box<T>>,
    name: &str,
) -> Result<&'a T> {
    field
        .as_deref()
        .ok_or_else(|| malformed(entry, &format!("it has no field {name}")))
}
