//! Reading and writing another process's memory.
//!
//! Two doors. `process_vm_readv(2)`/`process_vm_writev(2)` copy straight between address spaces, 12-28 GB/s, but obey
//! the page protections; they need PTRACE_MODE_ATTACH, not a stopped task. `/proc/PID/mem` forces its way
//! through protections (FOLL_FORCE) and so writes into read-only text, at a third of the speed.
//!
//! Neither reads pages of memfd_secret or guard pages: EFAULT here, EIO from `/proc/PID/mem`.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use crate::error::{SysError, SysResult};
use crate::ids::{HostPid, RemotePtr};

/// The kernel takes at most UIO_MAXIOV ranges in one call (include/uapi/linux/uio.h).
const MAX_RANGES: usize = 1024;

/// A range of another process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRange {
    /// First byte.
    pub addr: RemotePtr,
    /// Length in bytes.
    pub len: usize,
}

fn describe(pid: HostPid, addr: RemotePtr, len: usize) -> String {
    format!("pid {pid} {len} bytes at {addr}")
}

/// Reads exactly `buf.len()` bytes at `addr`.
///
/// EFAULT names the first address that could not be read; bytes before it are in `buf` then. A process that died
/// gives ESRCH.
pub fn read(pid: HostPid, addr: RemotePtr, buf: &mut [u8]) -> SysResult<()> {
    let got = read_some(pid, addr, buf)?;
    if got < buf.len() {
        return Err(SysError::new(
            "process_vm_readv",
            Errno::EFAULT,
            describe(pid, addr + got as u64, buf.len() - got),
        ));
    }
    Ok(())
}

/// Reads up to `buf.len()` bytes at `addr` and says how many: fewer when a page on the way cannot be read, 0 when
/// already the first one cannot.
pub fn read_some(pid: HostPid, addr: RemotePtr, buf: &mut [u8]) -> SysResult<usize> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        let local = libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        let remote = libc::iovec {
            iov_base: (addr + done as u64).0 as *mut libc::c_void,
            iov_len: rest.len(),
        };
        // SAFETY: `local` is exactly the rest of `buf`, which is ours alone; the remote address is never followed in
        // our own address space.
        let n = unsafe { libc::process_vm_readv(pid.0, &local, 1, &remote, 1, 0) };
        match n {
            -1 => match Errno::last() {
                Errno::EFAULT => return Ok(done),
                errno => {
                    return Err(SysError::new(
                        "process_vm_readv",
                        errno,
                        describe(pid, addr + done as u64, buf.len() - done),
                    ));
                }
            },
            0 => return Ok(done),
            n => done += n as usize,
        }
    }
    Ok(done)
}

/// Reads one plain value, for example a `u64` or a kernel structure.
///
/// # Safety
/// Every bit pattern must be a valid `T` (integers, `#[repr(C)]` structs of integers), and `T` must have no padding
/// that is read later.
pub unsafe fn read_value<T: Copy>(pid: HostPid, addr: RemotePtr) -> SysResult<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: the slice covers exactly `value`, which is zeroed and so initialised.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    read(pid, addr, bytes)?;
    // SAFETY: all bytes were written; the caller promises that any pattern is a valid T.
    Ok(unsafe { value.assume_init() })
}

/// Reads a little-endian `u64`.
pub fn read_u64(pid: HostPid, addr: RemotePtr) -> SysResult<u64> {
    let mut b = [0; 8];
    read(pid, addr, &mut b)?;
    Ok(u64::from_le_bytes(b))
}

/// Reads a NUL-terminated string of at most `max` bytes, without the NUL; `ENAMETOOLONG` when there is none.
pub fn read_cstr(pid: HostPid, addr: RemotePtr, max: usize) -> SysResult<Vec<u8>> {
    let mut out = Vec::new();
    let mut chunk = [0u8; 256];
    while out.len() < max {
        let at = addr + out.len() as u64;
        // Never ask across a page end for bytes that the string may not need.
        let to_page_end = 4096 - (at.0 % 4096) as usize;
        let want = chunk.len().min(max - out.len()).min(to_page_end);
        read(pid, at, &mut chunk[..want])?;
        if let Some(nul) = chunk[..want].iter().position(|b| *b == 0) {
            out.extend_from_slice(&chunk[..nul]);
            return Ok(out);
        }
        out.extend_from_slice(&chunk[..want]);
    }
    Err(SysError::new(
        "process_vm_readv",
        Errno::ENAMETOOLONG,
        describe(pid, addr, max),
    ))
}

/// Reads many ranges, one behind the other, into `buf`, whose length must be the sum of theirs (else EINVAL).
///
/// One system call per 1024 ranges while all can be read. EFAULT names the address that could not.
pub fn readv(pid: HostPid, ranges: &[RemoteRange], buf: &mut [u8]) -> SysResult<()> {
    let total = ranges
        .iter()
        .try_fold(0usize, |sum, r| sum.checked_add(r.len));
    if total != Some(buf.len()) {
        return Err(SysError::new(
            "process_vm_readv",
            Errno::EINVAL,
            format!("pid {pid}: ranges and buffer differ in size"),
        ));
    }
    let mut iov: Vec<libc::iovec> = Vec::with_capacity(ranges.len().min(MAX_RANGES));
    let mut done = 0; // bytes of buf
    let mut at = 0; // the range we are in
    let mut inside = 0; // bytes of it that are done
    while done < buf.len() {
        iov.clear();
        let mut want = 0;
        for (i, r) in ranges[at..].iter().take(MAX_RANGES).enumerate() {
            let skip = if i == 0 { inside } else { 0 };
            want += r.len - skip;
            iov.push(libc::iovec {
                iov_base: (r.addr + skip as u64).0 as *mut libc::c_void,
                iov_len: r.len - skip,
            });
        }
        let local = libc::iovec {
            iov_base: buf[done..].as_mut_ptr().cast(),
            iov_len: want,
        };
        // SAFETY: `want` bytes from `done` lie inside `buf` (the sum of all ranges is its length); `iov` outlives the
        // call; remote addresses are not followed here.
        let n = unsafe {
            libc::process_vm_readv(
                pid.0,
                &local,
                1,
                iov.as_ptr(),
                iov.len() as libc::c_ulong,
                0,
            )
        };
        let mut n = match n {
            -1 => {
                let errno = Errno::last();
                return Err(SysError::new(
                    "process_vm_readv",
                    errno,
                    describe(pid, first_of(&iov), want),
                ));
            }
            // Only empty ranges in this batch.
            0 if want == 0 => 0,
            0 => {
                return Err(SysError::new(
                    "process_vm_readv",
                    Errno::EFAULT,
                    describe(pid, first_of(&iov), want),
                ));
            }
            n => n as usize,
        };
        done += n;
        // A short answer means that the next byte could not be read; asking again from there gives the errno.
        while at < ranges.len() && n >= ranges[at].len - inside {
            n -= ranges[at].len - inside;
            at += 1;
            inside = 0;
        }
        inside += n;
    }
    Ok(())
}

fn first_of(iov: &[libc::iovec]) -> RemotePtr {
    iov.iter()
        .find(|v| v.iov_len > 0)
        .map_or(RemotePtr::NULL, |v| RemotePtr(v.iov_base as u64))
}

/// Writes all of `data` at `addr`. The pages must be writable for the process; see [`Mem`] where they are not.
///
/// EFAULT names the first address that could not be written; everything before it has been.
pub fn write(pid: HostPid, addr: RemotePtr, data: &[u8]) -> SysResult<()> {
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        let here = addr + done as u64;
        let local = libc::iovec {
            iov_base: rest.as_ptr().cast_mut().cast(),
            iov_len: rest.len(),
        };
        let remote = libc::iovec {
            iov_base: here.0 as *mut libc::c_void,
            iov_len: rest.len(),
        };
        // SAFETY: the kernel only reads `local`, which is the rest of `data`.
        let n = unsafe { libc::process_vm_writev(pid.0, &local, 1, &remote, 1, 0) };
        match n {
            -1 => {
                let errno = Errno::last();
                return Err(SysError::new(
                    "process_vm_writev",
                    errno,
                    describe(pid, here, rest.len()),
                ));
            }
            0 => {
                return Err(SysError::new(
                    "process_vm_writev",
                    Errno::EFAULT,
                    describe(pid, here, rest.len()),
                ));
            }
            n => done += n as usize,
        }
    }
    Ok(())
}

/// Writes `data` into many ranges, one behind the other; their lengths must add up to that of `data` (else EINVAL), and be
/// at most 1024. As [`write`] otherwise.
pub fn writev(pid: HostPid, ranges: &[RemoteRange], data: &[u8]) -> SysResult<()> {
    let total: Option<usize> = ranges
        .iter()
        .try_fold(0usize, |sum, r| sum.checked_add(r.len));
    if total != Some(data.len()) || ranges.len() > MAX_RANGES {
        return Err(SysError::new(
            "process_vm_writev",
            Errno::EINVAL,
            format!("pid {pid}: ranges and data differ in size"),
        ));
    }
    let iov: Vec<libc::iovec> = ranges
        .iter()
        .map(|r| libc::iovec {
            iov_base: r.addr.0 as *mut libc::c_void,
            iov_len: r.len,
        })
        .collect();
    let local = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: the kernel only reads `local`, which is `data`; remote addresses are not followed here.
    let n = unsafe {
        libc::process_vm_writev(
            pid.0,
            &local,
            1,
            iov.as_ptr(),
            iov.len() as libc::c_ulong,
            0,
        )
    };
    if n == data.len() as isize {
        return Ok(());
    }
    // a part was refused: range by range, so that the error names it
    let mut at = 0;
    for r in ranges {
        write(pid, r.addr, &data[at..at + r.len])?;
        at += r.len;
    }
    Ok(())
}

/// `/proc/PID/mem`, open for reading and writing: ignores page protections of private mappings, as a debugger does.
///
/// The file stays bound to the address space it was opened on, also after the process has called execve.
#[derive(Debug)]
pub struct Mem {
    file: File,
    pid: HostPid,
}

impl Mem {
    /// Wraps an open `/proc/PID/mem`; see `ProcDir::mem`.
    pub fn new(file: File, pid: HostPid) -> Self {
        Mem { file, pid }
    }

    /// Opens `/proc/PID/mem` by number.
    pub fn open(pid: HostPid) -> SysResult<Self> {
        let path = format!("/proc/{pid}/mem");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| io(e, "openat", path))?;
        Ok(Mem { file, pid })
    }

    /// Reads exactly `buf.len()` bytes at `addr`; EIO where nothing is mapped.
    pub fn read(&self, addr: RemotePtr, buf: &mut [u8]) -> SysResult<()> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let here = addr + done as u64;
            // SAFETY: `rest` is ours alone for the call.
            let n = unsafe {
                libc::pread64(
                    self.file.as_raw_fd(),
                    rest.as_mut_ptr().cast(),
                    rest.len(),
                    here.0 as i64,
                )
            };
            done += self.advance("pread /proc/PID/mem", n, here, rest.len())?;
        }
        Ok(())
    }

    /// Writes all of `data` at `addr`, copying pages of private mappings first where needed.
    pub fn write(&self, addr: RemotePtr, data: &[u8]) -> SysResult<()> {
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            let here = addr + done as u64;
            // SAFETY: the kernel only reads `rest`.
            let n = unsafe {
                libc::pwrite64(
                    self.file.as_raw_fd(),
                    rest.as_ptr().cast(),
                    rest.len(),
                    here.0 as i64,
                )
            };
            done += self.advance("pwrite /proc/PID/mem", n, here, rest.len())?;
        }
        Ok(())
    }

    fn advance(
        &self,
        call: &'static str,
        n: isize,
        here: RemotePtr,
        len: usize,
    ) -> SysResult<usize> {
        match n {
            -1 => {
                let errno = Errno::last();
                Err(SysError::new(call, errno, describe(self.pid, here, len)))
            }
            // The address space is gone: the process has exited.
            0 => Err(SysError::new(
                call,
                Errno::ESRCH,
                describe(self.pid, here, len),
            )),
            n => Ok(n as usize),
        }
    }
}

fn io(e: std::io::Error, call: &'static str, what: String) -> SysError {
    SysError::new(call, Errno::from_raw(e.raw_os_error().unwrap_or(0)), what)
}

/// Maps the first page of a file without access (mmap(2), PROT_NONE) and calls `f` with the address while it is mapped.
///
/// # Errors
/// The file cannot be mapped.
pub fn with_mapped<T>(file: &File, f: impl FnOnce(u64) -> T) -> SysResult<T> {
    let len = crate::pagemap::PAGE_SIZE as usize;
    let (none, private) = (libc::PROT_NONE, libc::MAP_PRIVATE);
    // SAFETY: the kernel chooses the place; nothing is read or written there, and it is unmapped below.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            none,
            private,
            file.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(SysError::last("mmap", "a file to compare"));
    }
    let r = f(at as u64);
    // SAFETY: the mapping made above, to which nobody has a reference.
    unsafe { libc::munmap(at, len) };
    Ok(r)
}

/// An open file of fresh shared anonymous memory: the same object as mmap(MAP_SHARED|MAP_ANONYMOUS) gives, shown as
/// `/dev/zero (deleted)`. Without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the initial user namespace (map_files) it is a
/// memfd, which behaves alike and is shown as `/memfd:shared (deleted)`.
pub fn shared_memory(size: u64) -> SysResult<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let len = size.max(1).next_multiple_of(4096) as usize;
    // SAFETY: a fresh mapping, unmapped below, never dereferenced.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_NONE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(SysError::last(
            "mmap",
            format!("{size} bytes of shared memory"),
        ));
    }
    let at = at as usize;
    let path = std::ffi::CString::new(format!("/proc/self/map_files/{:x}-{:x}", at, at + len))
        .expect("no NUL");
    // SAFETY: a NUL-terminated path.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let failed = SysError::last("open", path.to_string_lossy());
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(at as *mut libc::c_void, len) };
    if fd < 0 && failed.errno == Errno::EPERM {
        let fd = crate::fds::memfd_create(c"shared", 0)?;
        nix::unistd::ftruncate(&fd, len as i64)
            .map_err(|e| SysError::new("ftruncate", e, "shared memory"))?;
        return Ok(fd);
    }
    if fd < 0 {
        return Err(failed);
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
