//! userfaultfd(2): just what restore, change tracking and the probes need.
//!
//! A descriptor made with [`open`](crate::uffd::open) belongs to the address space of its maker. The engine takes one that a target made
//! (one injected system call, then pidfd_getfd) and does all else, [`api`](crate::uffd::api) included, from outside.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{SysError, SysResult, check};
use crate::ids::RemotePtr;

/// Handles only faults from user mode: what a user without CAP_SYS_PTRACE may have. System calls that touch a missing
/// page then fail with EFAULT; asynchronous write protection is not affected.
pub const USER_MODE_ONLY: i32 = 1;

/// Feature: write protection of anonymous memory.
pub const FEATURE_WP: u64 = 1 << 0;
/// Feature: write protection of hugetlb and shmem. KERNEL(>=5.19)
pub const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Feature: write protection also where no page is yet. KERNEL(>=6.4)
pub const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// Feature: UFFDIO_POISON. KERNEL(>=6.6)
pub const FEATURE_POISON: u64 = 1 << 14;
/// Feature: the kernel resolves write faults itself and only remembers them. KERNEL(>=6.7)
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// Feature: UFFDIO_MOVE. KERNEL(>=6.8)
pub const FEATURE_MOVE: u64 = 1 << 16;

/// Feature: fork(2) of the target is told, with a descriptor for the child.
pub const FEATURE_EVENT_FORK: u64 = 1 << 1;
/// Feature: mremap(2) is told.
pub const FEATURE_EVENT_REMAP: u64 = 1 << 2;
/// Feature: madvise(MADV_DONTNEED, MADV_REMOVE) is told.
pub const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// Feature: munmap(2) is told.
pub const FEATURE_EVENT_UNMAP: u64 = 1 << 6;

/// Register for missing pages.
pub const MODE_MISSING: u64 = 1;
/// Register for write protection.
pub const MODE_WP: u64 = 2;
/// Register for minor faults.
pub const MODE_MINOR: u64 = 4;

const UFFDIO_API: libc::Ioctl = 0xc018_aa3fu32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00u32 as libc::Ioctl;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03u32 as libc::Ioctl;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01u32 as libc::Ioctl;
const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04u32 as libc::Ioctl;
const UFFDIO_POISON: libc::Ioctl = 0xc020_aa08u32 as libc::Ioctl;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02u32 as libc::Ioctl;
/// USERFAULTFD_IOC_NEW of `/dev/userfaultfd`: a descriptor for the caller's address space. KERNEL(>=6.1)
pub const NEW: u32 = 0xaa00;
const USERFAULTFD_IOC_NEW: libc::Ioctl = NEW as libc::Ioctl;
/// KERNEL(>=5.7)
const UFFDIO_WRITEPROTECT: libc::Ioctl = 0xc018_aa06u32 as libc::Ioctl;

/// userfaultfd(2) on our own address space; `flags` 0 or [`USER_MODE_ONLY`]. CLOEXEC and O_NONBLOCK are added.
pub fn open(flags: i32) -> SysResult<OwnedFd> {
    // SAFETY: an integer goes in, a descriptor comes out.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_userfaultfd,
            flags | libc::O_CLOEXEC | libc::O_NONBLOCK,
        )
    };
    check(fd, "userfaultfd", || "")?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The same through an open `/dev/userfaultfd`, whose file mode decides who may.
pub fn open_by_device(device: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    // SAFETY: this ioctl takes flags by value.
    let fd = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            USERFAULTFD_IOC_NEW,
            libc::O_CLOEXEC | libc::O_NONBLOCK,
        )
    };
    check(
        fd.into(),
        "ioctl(USERFAULTFD_IOC_NEW)",
        || "/dev/userfaultfd",
    )?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Shakes hands and asks for `features`; the answer is all that the kernel has. Works once per descriptor; EINVAL when
/// a feature is unknown.
pub fn api(uffd: BorrowedFd<'_>, features: u64) -> SysResult<u64> {
    // struct uffdio_api: version, features, ioctls.
    let mut arg = [0xaa, features, 0];
    // SAFETY: `arg` has the layout and size of struct uffdio_api.
    let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, arg.as_mut_ptr()) };
    check(ret.into(), "ioctl(UFFDIO_API)", || {
        format!("features {features:#x}")
    })?;
    Ok(arg[1])
}

/// Registers whole mappings of the descriptor's address space; the answer is the mask of ioctls possible there.
pub fn register(uffd: BorrowedFd<'_>, start: RemotePtr, len: u64, mode: u64) -> SysResult<u64> {
    // struct uffdio_register: range (start, len), mode, ioctls.
    let mut arg = [start.0, len, mode, 0];
    // SAFETY: `arg` has the layout and size of struct uffdio_register.
    let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, arg.as_mut_ptr()) };
    check(ret.into(), "ioctl(UFFDIO_REGISTER)", || {
        format!("{len} bytes at {start}")
    })?;
    Ok(arg[3])
}

/// Fills missing pages of a registered range with `data`, whole pages at a page address; far faster than writing there,
/// because the pages are not zeroed first. `data` must lie at a page address too. EEXIST where there are pages already.
pub fn copy(uffd: BorrowedFd<'_>, at: RemotePtr, data: &[u8]) -> SysResult<()> {
    copy_some(uffd, at, data).map_err(|(done, e)| {
        let (rest, at) = (data.len() - done, at.0 + done as u64);
        SysError::new("ioctl(UFFDIO_COPY)", e, format!("{rest} bytes at {at:#x}"))
    })
}

/// As [`copy`], but tells how many bytes were copied before an error, and which.
pub fn copy_some(
    uffd: BorrowedFd<'_>,
    at: RemotePtr,
    data: &[u8],
) -> Result<(), (usize, nix::errno::Errno)> {
    use nix::errno::Errno;
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        // struct uffdio_copy: dst, src, len, mode, copied (negative: errno)
        let mut arg = [
            at.0 + done as u64,
            rest.as_ptr() as u64,
            rest.len() as u64,
            0,
            0,
        ];
        // SAFETY: `arg` has the layout and size of struct uffdio_copy; the kernel reads `rest`, which outlives the call.
        let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_COPY, arg.as_mut_ptr()) };
        let errno = Errno::last();
        match arg[4] as i64 {
            n if n > 0 => done += n as usize,
            _ if ret < 0 => return Err((done, errno)),
            _ => return Err((done, Errno::EAGAIN)),
        }
    }
    Ok(())
}

/// Fills missing pages of a registered range with zeroes, and wakes who waits there. EEXIST where there are pages.
pub fn zero(uffd: BorrowedFd<'_>, at: RemotePtr, len: u64) -> SysResult<()> {
    let mut arg = [at.0, len, 0, 0];
    // SAFETY: `arg` has the layout and size of struct uffdio_zeropage.
    let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_ZEROPAGE, arg.as_mut_ptr()) };
    check(ret.into(), "ioctl(UFFDIO_ZEROPAGE)", || {
        format!("{len} bytes at {at}")
    })
    .map(drop)
}

/// Protects the pages of a registered range that are there against writing, or lifts that and wakes who waits. EAGAIN while
/// an event waits to be read, ENOENT where nothing is registered, ESRCH when the address space is gone.
pub fn write_protect(uffd: BorrowedFd<'_>, at: RemotePtr, len: u64, on: bool) -> SysResult<()> {
    // struct uffdio_writeprotect: range (start, len), mode.
    let mut arg = [at.0, len, u64::from(on)];
    // SAFETY: `arg` has the layout and size of struct uffdio_writeprotect.
    let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_WRITEPROTECT, arg.as_mut_ptr()) };
    check(ret.into(), "ioctl(UFFDIO_WRITEPROTECT)", || {
        format!("{len} bytes at {at}")
    })
    .map(drop)
}

/// How many faults wait to be read (/proc/self/fdinfo): what can be read beyond them are other events.
pub fn pending_faults(uffd: BorrowedFd<'_>) -> Option<usize> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", uffd.as_raw_fd())).ok()?;
    let word = text.lines().find_map(|l| l.strip_prefix("pending:"))?;
    word.trim().parse().ok()
}

/// Makes missing pages of a registered range a trap: who touches one gets SIGBUS. Pages that are there stay. KERNEL(>=6.6)
pub fn poison(uffd: BorrowedFd<'_>, at: RemotePtr, len: u64) -> SysResult<()> {
    use nix::errno::Errno;
    const PAGE: u64 = 4096;
    let mut done = 0;
    while done < len {
        let mut arg = [at.0 + done, len - done, 0, 0];
        // SAFETY: `arg` has the layout and size of struct uffdio_poison.
        let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_POISON, arg.as_mut_ptr()) };
        let errno = Errno::last();
        match arg[3] as i64 {
            n if n > 0 => done += n as u64,
            // one that is there, or unmapped
            _ if ret < 0 && matches!(errno, Errno::EEXIST | Errno::ENOENT) => done += PAGE,
            _ if ret < 0 && errno == Errno::EAGAIN => std::thread::yield_now(),
            _ => {
                check(ret.into(), "ioctl(UFFDIO_POISON)", || {
                    format!("{len} bytes at {at}")
                })?;
            }
        }
    }
    Ok(())
}

/// Wakes who waits for a page of the range.
pub fn wake(uffd: BorrowedFd<'_>, at: RemotePtr, len: u64) -> SysResult<()> {
    let mut arg = [at.0, len];
    // SAFETY: `arg` has the layout and size of struct uffdio_range.
    let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_WAKE, arg.as_mut_ptr()) };
    check(ret.into(), "ioctl(UFFDIO_WAKE)", || {
        format!("{len} bytes at {at}")
    })
    .map(drop)
}

/// What a userfaultfd tells: `struct uffd_msg` (include/uapi/linux/userfaultfd.h).
#[derive(Debug)]
pub enum Event {
    /// Somebody waits for the page with this address.
    Fault(u64),
    /// A child was born, with this descriptor for its address space.
    Fork(OwnedFd),
    /// A range was moved: from, to, length.
    Remap(u64, u64, u64),
    /// The pages of a range are given back: start, end. It stays registered.
    Remove(u64, u64),
    /// A range is unmapped: start, end.
    Unmap(u64, u64),
}

/// Appends what has happened, at most 16 events; none if nothing has. Whoever caused an event other than a fault goes on once
/// it is read.
pub fn events(uffd: BorrowedFd<'_>, out: &mut Vec<Event>) -> SysResult<()> {
    events_at_most(uffd, MOST_EVENTS, out)
}

/// Events read at a time.
const MOST_EVENTS: usize = 16;

/// The same, at most `most` of them. KERNEL: faults come before other events (fs/userfaultfd.c, userfaultfd_ctx_read()).
pub fn events_at_most(uffd: BorrowedFd<'_>, most: usize, out: &mut Vec<Event>) -> SysResult<()> {
    const LEN: usize = 32;
    let mut b = [0u64; MOST_EVENTS * LEN / 8];
    let most = most.clamp(1, MOST_EVENTS);
    // SAFETY: the kernel writes at most `most` events, for which `b` has room.
    let n = unsafe { libc::read(uffd.as_raw_fd(), b.as_mut_ptr().cast(), most * LEN) };
    if n < 0 && nix::errno::Errno::last() == nix::errno::Errno::EAGAIN {
        return Ok(());
    }
    check(n as libc::c_long, "read", || "userfaultfd")?;
    for m in b[..n as usize / 8].chunks_exact(LEN / 8) {
        out.push(match m[0] as u8 {
            0x12 => Event::Fault(m[2] & !4095),
            // SAFETY: a fresh descriptor that the kernel made for this message.
            0x13 => Event::Fork(unsafe { OwnedFd::from_raw_fd(m[1] as u32 as RawFd) }),
            0x14 => Event::Remap(m[1], m[2], m[3]),
            0x15 => Event::Remove(m[1], m[2]),
            0x16 => Event::Unmap(m[1], m[2]),
            _ => continue,
        });
    }
    Ok(())
}

/// Takes a range out again; write protection in it is lifted (18-22 ms for each GiB of small pages).
pub fn unregister(uffd: BorrowedFd<'_>, start: RemotePtr, len: u64) -> SysResult<()> {
    let mut arg = [start.0, len];
    // SAFETY: `arg` has the layout and size of struct uffdio_range.
    let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_UNREGISTER, arg.as_mut_ptr()) };
    check(ret.into(), "ioctl(UFFDIO_UNREGISTER)", || {
        format!("{len} bytes at {start}")
    })
    .map(drop)
}

/// A shared mapping of a file in our own address space, registered with a userfaultfd of ours: what is [copied](copy) there lies in
/// the file, for all who map it. Nobody reads or writes there.
#[derive(Debug)]
pub struct Window {
    fd: OwnedFd,
    at: u64,
    len: usize,
}

impl Window {
    /// Maps the first `len` bytes of a file of tmpfs that is open for reading and writing. EPERM without CAP_SYS_PTRACE.
    pub fn open(file: BorrowedFd<'_>, len: u64) -> SysResult<Self> {
        let fd = open(0)?;
        api(fd.as_fd(), 0)?;
        let len = len as usize;
        // SAFETY: the kernel chooses the place; nothing is read or written there, and it is unmapped in drop().
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(SysError::last(
                "mmap",
                format!("{len} bytes of shared memory"),
            ));
        }
        let window = Self {
            fd,
            at: at as u64,
            len,
        };
        register(
            window.fd.as_fd(),
            RemotePtr(window.at),
            len as u64,
            MODE_MISSING,
        )?;
        Ok(window)
    }
    /// The userfaultfd.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
    /// Where it is.
    pub fn at(&self) -> u64 {
        self.at
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping made in open(), to which nobody has a reference.
        unsafe { libc::munmap(self.at as *mut libc::c_void, self.len) };
    }
}
