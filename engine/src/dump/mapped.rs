//! The files behind mappings.
//!
//! `/proc/PID/map_files/START-END` opens exactly the file that is mapped, whatever became of its name. Only who has
//! CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the first user namespace may open it (everybody who may trace the task may read
//! the link): a rootless engine may not. For it the file is looked for where it can be had, and taken only if it is the same
//! inode: the program itself, the path that the link tells (below the root of the task, then below the engine's), the
//! descriptors of the task. Shared memory without a name is copied out of the task instead: see [`copy`].
use super::task::Task;
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::procfs::{MapsLine, ProcDir};
use stasis_kernel::vm;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How much is copied at once.
const STEP: usize = 1 << 20;

/// Opens the file behind a mapping: O_PATH, or O_RDONLY for one that is deleted, whose contents are wanted. `None`: the engine
/// may not, and the file is nowhere else to be had.
///
/// # Errors
/// Of open(2), or of looking elsewhere.
pub fn open(t: &Task, m: &MapsLine) -> Result<Option<OwnedFd>> {
    let flags = match m.deleted {
        true => libc::O_RDONLY,
        false => libc::O_PATH,
    };
    match t.proc.open_map_file(m, flags) {
        Err(e) if is_denied(&e) => elsewhere(t, m, flags),
        r => Ok(Some(r?)),
    }
}

/// The right to open it is missing.
pub fn is_denied(e: &SysError) -> bool {
    matches!(e.errno, Errno::EPERM | Errno::EACCES)
}

/// E4209: the file of this mapping is needed, and cannot be had.
pub fn nowhere(t: &Task, m: &MapsLine) -> Error {
    let what = format!(
        "cannot open the file behind mapping {m} of task {}",
        t.pid.0
    );
    Error::new("E4209", Blame::Container, what)
        .why("only a user with CAP_CHECKPOINT_RESTORE opens it through the mapping, and neither its path nor a descriptor of the task leads to it")
        .advice("dump as root; or have the program keep the file open, or restart it if a library was upgraded under it")
}

/// Wherever else the file of this mapping may be had.
fn elsewhere(t: &Task, m: &MapsLine, flags: i32) -> Result<Option<OwnedFd>> {
    let own = ProcDir::open(HostPid::own())?;
    let same = |fd: &OwnedFd| is(&own, fd, m);
    if let Ok(fd) = t.proc.open_file("exe", flags)
        && same(&fd)
    {
        return Ok(Some(fd));
    }
    if !m.deleted {
        let link = t.proc.map_file_link(m)?;
        let roots = [t.proc.open_root(), own.open_root()];
        for root in roots.into_iter().flatten() {
            if let Some(fd) = below(&root, &link, flags)
                && same(&fd)
            {
                return Ok(Some(fd));
            }
        }
    }
    let pidfd = fds::pidfd_open(t.pid, 0)?;
    for slot in t.proc.fds()? {
        if let Ok(fd) = fds::pidfd_getfd(pidfd.as_fd(), slot)
            && same(&fd)
        {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}

/// Opens an absolute path below a root.
fn below(root: &OwnedFd, path: &[u8], flags: i32) -> Option<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how).ok()
}

/// Is this the file of the mapping? Where file systems tell other numbers in maps than in stat(2) (overlayfs, btrfs), the
/// engine maps the candidate itself and compares what maps tells of both.
fn is(own: &ProcDir, fd: &OwnedFd, m: &MapsLine) -> bool {
    let Ok(st) = fds::fstat(fd.as_fd()) else {
        return false;
    };
    if (libc::major(st.st_dev), libc::minor(st.st_dev), st.st_ino) == (m.dev.0, m.dev.1, m.ino) {
        return true;
    }
    if st.st_mode & libc::S_IFMT != libc::S_IFREG {
        return false;
    }
    let again = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let Ok(file) = File::open(again) else {
        return false;
    };
    vm::with_mapped(&file, |at| {
        let maps = own.maps().unwrap_or_default();
        let ours = maps.iter().find(|o| o.start == at);
        ours.is_some_and(|o| (o.dev, o.ino) == (m.dev, m.ino))
    })
    .unwrap_or(false)
}

fn failed(call: &'static str, e: &std::io::Error) -> Error {
    let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
    SysError::new(call, errno, "a copy of shared memory").into()
}

/// Shared memory that cannot be opened, as far as it was copied.
pub struct Copied {
    file: File,
    /// Ranges that are there: (start, end) by offset in the memory.
    done: Vec<(u64, u64)>,
}

impl Copied {
    /// An empty one.
    ///
    /// # Errors
    /// memfd_create(2).
    pub fn new() -> Result<Self> {
        Ok(Self {
            file: fds::memfd_create(c"copied", 0)?.into(),
            done: Vec::new(),
        })
    }
    /// Copies what this mapping shows, unless it was copied before. Pages full of zeroes stay holes.
    ///
    /// # Errors
    /// Failures to read the task's memory.
    pub fn add(&mut self, t: &Task, m: &MapsLine) -> Result<()> {
        let (start, end) = (m.offset, m.offset + m.len());
        if self.done.iter().any(|d| d.0 <= start && end <= d.1) {
            return Ok(());
        }
        let page = stasis_kernel::pagemap::PAGE_SIZE as usize;
        let mem = t.proc.mem()?;
        let mut buf = vec![0u8; STEP];
        for at in (0..m.len()).step_by(STEP) {
            let n = STEP.min((m.len() - at) as usize);
            // KERNEL: also where the mapping has no PROT_READ (fs/proc/base.c, mem_rw(): FOLL_FORCE)
            mem.read(RemotePtr(m.start + at), &mut buf[..n])?;
            for (i, p) in buf[..n].chunks(page).enumerate() {
                if p.iter().any(|b| *b != 0) {
                    let to = start + at + (i * page) as u64;
                    self.file
                        .write_all_at(p, to)
                        .map_err(|e| failed("pwrite", &e))?;
                }
            }
        }
        self.done.push((start, end));
        Ok(())
    }
    /// The copy, `size` bytes long.
    ///
    /// # Errors
    /// ftruncate(2).
    pub fn finish(self, size: u64) -> Result<OwnedFd> {
        self.file
            .set_len(size)
            .map_err(|e| failed("ftruncate", &e))?;
        Ok(self.file.into())
    }
}
