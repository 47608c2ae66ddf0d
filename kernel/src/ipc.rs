//! System V semaphores and message queues of the caller's IPC namespace, and which objects it has (sysvipc(7)).
//!
//! Shared memory has a module of its own ([`crate::sysv`]). Users and groups are told as the caller's user namespace sees them.
use crate::error::{SysError, SysResult, check};
use crate::sysv;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// A sort of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Segments of shared memory.
    Memory,
    /// Sets of semaphores.
    Semaphores,
    /// Message queues.
    Messages,
}

/// What every object has (`struct ipc_perm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Perm {
    /// Key; 0 is IPC_PRIVATE.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Its group.
    pub cgid: u32,
    /// Permissions.
    pub mode: u32,
}

/// linux/sem.h, linux/msg.h, linux/shm.h: as the calls without `ANY`, but nobody is asked for permission to read.
const SEM_STAT_ANY: i32 = 20;
const MSG_STAT_ANY: i32 = 13;
const SHM_STAT_ANY: i32 = 15;
/// linux/msg.h: gives a copy of the message at an index.
const MSG_COPY: i32 = 0o40000;

/// Room for any of the structures these calls fill, all integers.
type Room = [u64; 32];

impl Sort {
    fn name(self) -> &'static str {
        match self {
            Sort::Memory => "shmctl",
            Sort::Semaphores => "semctl",
            Sort::Messages => "msgctl",
        }
    }
    fn control(self, id: i32, cmd: i32, room: &mut Room) -> i32 {
        let at = room.as_mut_ptr();
        // SAFETY: the room is larger than any of the structures the kernel fills for these commands (256 bytes; the largest,
        // shmid_ds, has 112).
        unsafe {
            match self {
                Sort::Memory => libc::shmctl(id, cmd, at.cast()),
                Sort::Semaphores => libc::semctl(id, 0, cmd, at),
                Sort::Messages => libc::msgctl(id, cmd, at.cast()),
            }
        }
    }
}

/// Ids of all objects of a sort, in the order of their places in the kernel's table.
///
/// # Errors
/// ENOSYS without CONFIG_SYSVIPC.
pub fn list(sort: Sort) -> SysResult<Vec<i32>> {
    const IPC_INFO: i32 = 3;
    let mut room: Room = [0; 32];
    let highest = sort.control(0, IPC_INFO, &mut room);
    if highest < 0 {
        return Err(SysError::last(sort.name(), "IPC_INFO"));
    }
    let any = match sort {
        Sort::Memory => SHM_STAT_ANY,
        Sort::Semaphores => SEM_STAT_ANY,
        Sort::Messages => MSG_STAT_ANY,
    };
    // a place that is not taken answers EINVAL
    let ids = (0..=highest).map(|place| sort.control(place, any, &mut room));
    Ok(ids.filter(|id| *id >= 0).collect())
}

fn perm(p: &libc::ipc_perm) -> Perm {
    Perm {
        key: p.__key,
        uid: p.uid,
        gid: p.gid,
        cuid: p.cuid,
        cgid: p.cgid,
        mode: p.mode.into(),
    }
}

fn sem_ds(id: i32) -> SysResult<libc::semid_ds> {
    // SAFETY: integers only: all zeroes are a value.
    let mut ds: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `ds` is what IPC_STAT fills.
    let r = unsafe { libc::semctl(id, 0, libc::IPC_STAT, &mut ds) };
    check(r.into(), "semctl(IPC_STAT)", || format!("set {id}"))?;
    Ok(ds)
}

/// A set of semaphores: what it has, and the values.
///
/// # Errors
/// EIDRM, EINVAL: no such set. EACCES.
pub fn semaphores(id: i32) -> SysResult<(Perm, Vec<u16>)> {
    let ds = sem_ds(id)?;
    let mut values = vec![0u16; ds.sem_nsems as usize];
    // SAFETY: GETALL fills one value for each semaphore; their number never changes.
    let r = unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) };
    check(r.into(), "semctl(GETALL)", || format!("set {id}"))?;
    Ok((perm(&ds.sem_perm), values))
}

/// Makes a set with this id and these values.
///
/// # Errors
/// EEXIST: id or key is taken. ERANGE: a value above 32767. EINVAL: more than kernel.sem allows.
pub fn make_semaphores(id: i32, p: &Perm, values: &[u16]) -> SysResult<()> {
    let what = || format!("set {id}, key {:#x}, {} semaphores", p.key, values.len());
    sysv::with_id("sem", id, || {
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (p.mode & 0o777) as i32;
        let n = i32::try_from(values.len()).unwrap_or(i32::MAX);
        // SAFETY: integers only.
        let got = unsafe { libc::semget(p.key, n, flags) };
        check(got.into(), "semget", what)
    })?;
    // SAFETY: one value for each semaphore of the set, which SETALL only reads.
    let r = unsafe { libc::semctl(id, 0, libc::SETALL, values.as_ptr()) };
    check(r.into(), "semctl(SETALL)", what)?;
    let mut ds = sem_ds(id)?;
    (ds.sem_perm.uid, ds.sem_perm.gid) = (p.uid, p.gid);
    // SAFETY: a whole semid_ds, which IPC_SET only reads.
    let r = unsafe { libc::semctl(id, 0, libc::IPC_SET, &mut ds) };
    check(r.into(), "semctl(IPC_SET)", what).map(drop)
}

/// A message queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Owner and permissions.
    pub perm: Perm,
    /// Most bytes it holds.
    pub limit: u64,
    /// Messages in it.
    pub messages: u64,
    /// Bytes in it.
    pub bytes: u64,
}

fn msg_ds(id: i32) -> SysResult<libc::msqid_ds> {
    // SAFETY: integers only: all zeroes are a value.
    let mut ds: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `ds` is what IPC_STAT fills.
    let r = unsafe { libc::msgctl(id, libc::IPC_STAT, &mut ds) };
    check(r.into(), "msgctl(IPC_STAT)", || format!("queue {id}"))?;
    Ok(ds)
}

/// Looks at a queue.
///
/// # Errors
/// EIDRM, EINVAL: no such queue. EACCES.
pub fn queue(id: i32) -> SysResult<Queue> {
    let ds = msg_ds(id)?;
    Ok(Queue {
        perm: perm(&ds.msg_perm),
        limit: ds.msg_qbytes,
        messages: ds.msg_qnum,
        bytes: ds.__msg_cbytes,
    })
}

/// A copy of the n-th message of a queue, type and text; it stays there. `longest`: most bytes it can have.
///
/// # Errors
/// ENOMSG: no such message. ENOSYS without CONFIG_CHECKPOINT_RESTORE.
pub fn message(id: i32, n: u64, longest: usize) -> SysResult<(i64, Vec<u8>)> {
    let mut room = vec![0u64; longest.div_ceil(8) + 1];
    let flags = MSG_COPY | libc::IPC_NOWAIT;
    // SAFETY: the room takes the type and `longest` bytes of text.
    let got = unsafe { libc::msgrcv(id, room.as_mut_ptr().cast(), longest, n as i64, flags) };
    let len = check(got as i64, "msgrcv(MSG_COPY)", || {
        format!("message {n} of queue {id}")
    })?;
    let text = room[1..].iter().flat_map(|w| w.to_ne_bytes());
    Ok((room[0] as i64, text.take(len as usize).collect()))
}

/// Makes an empty queue with this id.
///
/// # Errors
/// EEXIST: id or key is taken. EPERM: the limit is above kernel.msgmnb.
pub fn make_queue(id: i32, p: &Perm, limit: u64) -> SysResult<()> {
    let what = || format!("queue {id}, key {:#x}, limit {limit}", p.key);
    sysv::with_id("msg", id, || {
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (p.mode & 0o777) as i32;
        // SAFETY: integers only.
        let got = unsafe { libc::msgget(p.key, flags) };
        check(got.into(), "msgget", what)
    })?;
    let mut ds = msg_ds(id)?;
    (ds.msg_perm.uid, ds.msg_perm.gid, ds.msg_qbytes) = (p.uid, p.gid, limit);
    // SAFETY: a whole msqid_ds, which IPC_SET only reads.
    let r = unsafe { libc::msgctl(id, libc::IPC_SET, &mut ds) };
    check(r.into(), "msgctl(IPC_SET)", what).map(drop)
}

/// Puts a message behind the others.
///
/// # Errors
/// EAGAIN: the queue is full. EINVAL: a type below 1, or longer than kernel.msgmax.
pub fn send(id: i32, kind: i64, text: &[u8]) -> SysResult<()> {
    let mut room = vec![0u64; text.len().div_ceil(8) + 1];
    room[0] = kind as u64;
    for (word, bytes) in room[1..].iter_mut().zip(text.chunks(8)) {
        let mut b = [0; 8];
        b[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(b);
    }
    // SAFETY: the type, and behind it as many bytes as are told.
    let r = unsafe { libc::msgsnd(id, room.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) };
    check(r.into(), "msgsnd", || {
        format!("{} bytes to queue {id}", text.len())
    })
    .map(drop)
}

/// The POSIX message queues (mq_overview(7)) of the caller's IPC namespace, by their names and open for reading, seen through a mount
/// that nobody else sees.
///
/// # Errors
/// ENODEV without CONFIG_POSIX_MQUEUE; EPERM without CAP_SYS_ADMIN over the namespace.
pub fn posix_queues() -> SysResult<Vec<(Vec<u8>, OwnedFd)>> {
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const FSMOUNT_CLOEXEC: u32 = 1;
    // SAFETY: a NUL-terminated name and an integer; the answer is a descriptor of ours alone.
    let fs = unsafe {
        let r = libc::syscall(libc::SYS_fsopen, c"mqueue".as_ptr(), FSOPEN_CLOEXEC);
        own(check(r, "fsopen", || "mqueue")?)
    };
    // SAFETY: integers and null pointers, as this command wants them.
    let r = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fs.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            0usize,
            0usize,
            0,
        )
    };
    check(r, "fsconfig(CMD_CREATE)", || "mqueue")?;
    // SAFETY: integers; the answer is a descriptor of ours alone.
    let at = unsafe {
        let r = libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, 0);
        own(check(r, "fsmount", || "mqueue")?)
    };
    let path = format!("/proc/self/fd/{}", at.as_raw_fd());
    let told = |e: std::io::Error| {
        let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
        SysError::new("openat", errno, "a mount of mqueue")
    };
    let queue = |e: std::io::Result<std::fs::DirEntry>| {
        let e = e?;
        Ok((
            e.file_name().into_vec(),
            std::fs::File::open(e.path())?.into(),
        ))
    };
    let entries = std::fs::read_dir(path).map_err(told)?;
    entries.map(|e| queue(e).map_err(told)).collect()
}

/// # Safety
/// The number must be a fresh descriptor that nobody else owns.
unsafe fn own(fd: i64) -> OwnedFd {
    // SAFETY: the caller's word.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_read_without_taking_anything_out() {
        // SAFETY: integers only.
        let id = unsafe { libc::msgget(libc::IPC_PRIVATE, libc::IPC_CREAT | 0o600) };
        assert!(id >= 0);
        send(id, 5, b"first").unwrap();
        send(id, 6, b"").unwrap();
        let q = queue(id).unwrap();
        assert_eq!((q.messages, q.bytes, q.perm.mode), (2, 5, 0o600));
        for _ in 0..2 {
            assert_eq!(message(id, 0, 5).unwrap(), (5, b"first".to_vec()));
            assert_eq!(message(id, 1, 5).unwrap(), (6, Vec::new()));
        }
        assert!(message(id, 2, 5).is_err());
        assert!(list(Sort::Messages).unwrap().contains(&id));
        // SAFETY: IPC_RMID takes no structure.
        unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
        assert!(!list(Sort::Messages).unwrap().contains(&id));
    }

    #[test]
    fn semaphores_tell_their_values() {
        // SAFETY: integers only.
        let id = unsafe { libc::semget(libc::IPC_PRIVATE, 3, libc::IPC_CREAT | 0o640) };
        assert!(id >= 0);
        let set = [1u16, 0, 9];
        // SAFETY: a value for each semaphore.
        unsafe { libc::semctl(id, 0, libc::SETALL, set.as_ptr()) };
        let (p, values) = semaphores(id).unwrap();
        assert_eq!((p.mode, values), (0o640, set.to_vec()));
        assert!(list(Sort::Semaphores).unwrap().contains(&id));
        // SAFETY: IPC_RMID takes no structure.
        unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
    }
}
