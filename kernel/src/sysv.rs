//! System V shared memory of our own IPC namespace: shmget(2), shmctl(2).
use crate::error::{SysError, SysResult, check};
use std::os::fd::{FromRawFd, OwnedFd};

/// `shm_perm.mode`: removed, but still attached somewhere (linux/shm.h).
pub const SHM_DEST: u32 = 0o1000;

/// What IPC_STAT tells about a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Key; 0 is IPC_PRIVATE, also for a removed one.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Its group.
    pub cgid: u32,
    /// Permissions, [`SHM_DEST`], SHM_LOCKED.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Attachments.
    pub attached: u64,
}

fn raw(id: i32) -> SysResult<libc::shmid_ds> {
    // SAFETY: integers and paddings only: all zeroes are a value.
    let mut ds: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `ds` is what IPC_STAT fills.
    let r = unsafe { libc::shmctl(id, libc::IPC_STAT, &mut ds) };
    check(r.into(), "shmctl(IPC_STAT)", || format!("segment {id}"))?;
    Ok(ds)
}

/// Looks at a segment; EINVAL or EIDRM when there is none, EACCES without permission to read it.
pub fn stat(id: i32) -> SysResult<Segment> {
    let ds = raw(id)?;
    Ok(Segment {
        key: ds.shm_perm.__key,
        uid: ds.shm_perm.uid,
        gid: ds.shm_perm.gid,
        cuid: ds.shm_perm.cuid,
        cgid: ds.shm_perm.cgid,
        mode: ds.shm_perm.mode.into(),
        size: ds.shm_segsz as u64,
        attached: ds.shm_nattch as u64,
    })
}

/// A segment made by [`make`]: removed again when dropped, unless it is to be kept.
#[derive(Debug)]
pub struct Made(i32);

impl Made {
    /// Leaves the segment to its users.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = remove(self.0);
    }
}

/// Has the next object made be of this id: `sort` is shm, sem or msg (`/proc/sys/kernel/shm_next_id` and the like; needs
/// CAP_CHECKPOINT_RESTORE in the user namespace of the IPC namespace). `make` gives the id that came.
pub(crate) fn with_id(sort: &str, id: i32, make: impl FnOnce() -> SysResult<i64>) -> SysResult<()> {
    let next = format!("/proc/sys/kernel/{sort}_next_id");
    std::fs::write(&next, id.to_string()).map_err(|e| {
        let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
        SysError::new("write", errno, next.clone())
    })?;
    match make() {
        Ok(got) if got == id.into() => Ok(()),
        Ok(got) => {
            let what = format!("{sort} object {id}: the kernel gave {got}");
            Err(SysError::new("write", nix::errno::Errno::EEXIST, what))
        }
        Err(e) => {
            // the wish is used up by the next object anybody makes: take it back
            let _ = std::fs::write(&next, "-1");
            Err(e)
        }
    }
}

/// Makes a segment that did not exist. `id` is asked for (`/proc/sys/kernel/shm_next_id`, needs CAP_CHECKPOINT_RESTORE in
/// the user namespace of the IPC namespace) and must be what comes; EEXIST when it or the key is taken.
pub fn make(id: i32, key: i32, size: u64, mode: u32, owner: (u32, u32)) -> SysResult<Made> {
    let mut made = None;
    with_id("shm", id, || {
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as i32;
        // SAFETY: integers only.
        let got = unsafe { libc::shmget(key, size as usize, flags) };
        check(got.into(), "shmget", || {
            format!("segment {id}, key {key:#x}, {size} bytes")
        })?;
        made = Some(Made(got));
        Ok(got.into())
    })?;
    let made = made.ok_or_else(|| SysError::new("shmget", nix::errno::Errno::EEXIST, ""))?;
    let mut ds = raw(id)?;
    (ds.shm_perm.uid, ds.shm_perm.gid) = owner;
    // SAFETY: `ds` is a whole shmid_ds; IPC_SET only reads it.
    let r = unsafe { libc::shmctl(id, libc::IPC_SET, &mut ds) };
    check(r.into(), "shmctl(IPC_SET)", || format!("segment {id}"))?;
    Ok(made)
}

/// Removes a segment: its key goes at once, its memory with the last attachment.
pub fn remove(id: i32) -> SysResult<()> {
    // SAFETY: IPC_RMID takes no structure.
    let r = unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    check(r.into(), "shmctl(IPC_RMID)", || format!("segment {id}")).map(drop)
}

/// A segment attached to this process; detached when dropped.
#[derive(Debug)]
pub struct Attached {
    at: *mut libc::c_void,
    len: u64,
}

/// Attaches a segment of which `size` bytes will be used.
pub fn attach(id: i32, size: u64) -> SysResult<Attached> {
    // SAFETY: the kernel chooses a free address.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if at as isize == -1 {
        return Err(SysError::last("shmat", format!("segment {id}")));
    }
    let it = Attached { at, len: size };
    match stat(id)?.size {
        is if is >= size => Ok(it),
        is => {
            let what = format!("segment {id} has {is} bytes, not {size}");
            Err(SysError::new("shmat", nix::errno::Errno::EINVAL, what))
        }
    }
}

impl Attached {
    /// Writes bytes at an offset; EFAULT if they do not fit.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> SysResult<()> {
        if at
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > self.len)
        {
            let what = format!("{} bytes at {at} of a segment of {}", bytes.len(), self.len);
            return Err(SysError::new("memcpy", nix::errno::Errno::EFAULT, what));
        }
        // SAFETY: the range lies in the attachment, which is writable and which nobody here has a reference to.
        unsafe {
            let to = self.at.cast::<u8>().add(at as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: the attachment made above; nobody holds a reference into it.
        unsafe { libc::shmdt(self.at) };
    }
}

/// The memory of a segment as an open file, for reading and writing.
pub fn open(id: i32, size: u64) -> SysResult<OwnedFd> {
    // SAFETY: the kernel chooses a free address.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if at as isize == -1 {
        return Err(SysError::last("shmat", format!("segment {id}")));
    }
    let start = at as u64;
    let end = start + size.next_multiple_of(4096);
    let path =
        std::ffi::CString::new(format!("/proc/self/map_files/{start:x}-{end:x}")).expect("no NUL");
    // SAFETY: a NUL-terminated path.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let failed = SysError::last("openat", path.to_string_lossy());
    // SAFETY: the attachment made above, which nobody else knows.
    unsafe { libc::shmdt(at) };
    if fd < 0 {
        return Err(failed);
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Without a namespace of its own a test must not ask for ids: it only looks at what it made.
    #[test]
    fn a_segment_is_seen_opened_and_removed() {
        // SAFETY: integers only.
        let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 8000, libc::IPC_CREAT | 0o640) };
        assert!(id >= 0);
        let made = Made(id);
        let s = stat(id).unwrap();
        assert_eq!((s.size, s.mode, s.attached, s.key), (8000, 0o640, 0, 0));
        let mut f = std::fs::File::from(open(id, s.size).unwrap());
        f.write_all(b"seen").unwrap();
        let mut again = [0; 4];
        std::fs::File::from(open(id, s.size).unwrap())
            .read_exact(&mut again)
            .unwrap();
        assert_eq!(&again, b"seen");
        let mut a = attach(id, s.size).unwrap();
        a.write(7996, b"last").unwrap();
        assert!(a.write(7997, b"over").is_err() && a.write(u64::MAX, b"x").is_err());
        drop((a, made));
        assert!(stat(id).is_err());
    }
}
