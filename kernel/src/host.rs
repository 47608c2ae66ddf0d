//! Host tapes: the engine plays rows itself, to open what tasks will be given.
//!
//! The same [`Call`]s as in task tapes, so a plan prints both alike. Files that a call gives are kept under the plan's names.
use crate::call::{self, Arg, Bind, Call, FdRef, Layout};
use crate::error::SysError;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// The files a plan's host tapes have opened so far.
#[derive(Debug, Default)]
pub struct Host {
    fds: BTreeMap<FdRef, OwnedFd>,
    segments: Vec<crate::sysv::Made>,
    names: Vec<MadeName>,
    queues: Vec<crate::mqueue::Made>,
}

/// What a host call brought.
#[derive(Debug)]
pub struct HostAnswer {
    /// The return value (never an errno unless the call accepts any answer).
    pub ret: u64,
    outs: Vec<(usize, Vec<u8>)>,
}

impl HostAnswer {
    /// Bytes of an out argument.
    pub fn out(&self, arg: usize) -> &[u8] {
        self.outs.iter().find(|o| o.0 == arg).map_or(&[], |o| &o.1)
    }
}

/// A name made in a file system: removed again when dropped, unless it is to be kept.
#[derive(Debug)]
pub struct MadeName {
    folder: OwnedFd,
    name: std::ffi::OsString,
    keep: bool,
}

impl MadeName {
    /// The name that was just made at this path, which is looked up from where the caller is.
    ///
    /// # Errors
    /// Its folder cannot be opened.
    pub fn new(path: &Path) -> Result<Self, SysError> {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(folder, flags, Mode::empty())
            .map_err(|e| SysError::new("openat", e, folder.display().to_string()))?;
        Ok(Self {
            folder: fd,
            name: path.file_name().unwrap_or_default().to_os_string(),
            keep: false,
        })
    }
    /// Leaves the name to its users.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for MadeName {
    fn drop(&mut self) {
        if !self.keep {
            let how = nix::unistd::UnlinkatFlags::NoRemoveDir;
            let _ = nix::unistd::unlinkat(&self.folder, self.name.as_os_str(), how);
        }
    }
}

impl Host {
    /// The file of this name.
    pub fn fd(&self, f: FdRef) -> Option<&OwnedFd> {
        self.fds.get(&f)
    }
    /// Names a file that came from elsewhere.
    pub fn insert(&mut self, f: FdRef, fd: OwnedFd) {
        self.fds.insert(f, fd);
    }
    /// The names of all files that are open now.
    pub fn names(&self) -> impl Iterator<Item = FdRef> + '_ {
        self.fds.keys().copied()
    }
    /// The same files under the same names, for somebody else. What must go again stays with this one.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn copy(&self) -> Result<Self, SysError> {
        let mut copy = Self::default();
        for (f, fd) in &self.fds {
            copy.fds.insert(*f, crate::fds::dup(fd.as_fd())?);
        }
        Ok(copy)
    }
    /// Gives a file away.
    pub fn take(&mut self, f: FdRef) -> Option<OwnedFd> {
        self.fds.remove(&f)
    }
    /// Remembers a segment of shared memory that must go again unless [`Host::keep`] is called.
    pub fn made(&mut self, segment: crate::sysv::Made) {
        self.segments.push(segment);
    }
    /// Remembers a name that must go again unless [`Host::keep`] is called.
    pub fn made_name(&mut self, name: MadeName) {
        self.names.push(name);
    }
    /// Remembers a message queue that must go again unless [`Host::keep`] is called.
    pub fn made_queue(&mut self, queue: crate::mqueue::Made) {
        self.queues.push(queue);
    }
    /// What was made outside of the engine belongs to others from now on.
    pub fn keep(&mut self) {
        self.names.drain(..).for_each(MadeName::keep);
        self.queues.drain(..).for_each(crate::mqueue::Made::keep);
        self.segments.drain(..).for_each(crate::sysv::Made::keep);
    }
    /// Plays one row. Only calls that act on descriptors, paths and own memory belong here; the argument memory is ours.
    pub fn play(&mut self, c: &Call) -> Result<HostAnswer, SysError> {
        let missing = std::cell::Cell::new(None);
        // the memory must not move while pointers into it exist
        let fd = |f: FdRef| {
            self.fds.get(&f).map_or_else(
                || {
                    missing.set(Some(f));
                    -1
                },
                AsRawFd::as_raw_fd,
            )
        };
        let mut mem = vec![0u128; c.room().div_ceil(16) + 1];
        let mut lay = Layout::new(mem.as_ptr() as u64);
        let mut w = [0u64; 6];
        for (k, a) in c.args.iter().enumerate() {
            w[k] = lay.arg(a, &fd);
        }
        if let Some(f) = missing.get() {
            return Err(SysError::new(
                "host tape",
                Errno::EBADF,
                format!("{c}: file#{} is not open", f.0),
            ));
        }
        assert!(lay.data.len() <= mem.len() * 16);
        let bytes = mem.as_mut_ptr().cast::<u8>();
        // SAFETY: `mem` is at least as long as the data; the layout's addresses point into it; it is not moved until after the
        // call. The kernel writes only to out arguments, whose memory is reserved in the layout.
        let ret = unsafe {
            std::ptr::copy_nonoverlapping(lay.data.as_ptr(), bytes, lay.data.len());
            let r = libc::syscall(c.nr, w[0], w[1], w[2], w[3], w[4], w[5]);
            if r == -1 {
                -(*libc::__errno_location() as i64) as u64
            } else {
                r as u64
            }
        };
        if !c.accepts(ret) {
            let e = if call::is_errno(ret) {
                Errno::from_raw(-(ret as i64) as i32)
            } else {
                Errno::EPROTO
            };
            return Err(SysError::new("host tape", e, c.with_answer(ret)));
        }
        let mut outs = Vec::new();
        for (k, a) in c.args.iter().enumerate() {
            let n = match a {
                Arg::Out(n) => *n,
                Arg::InOut(b) => b.len(),
                _ => continue,
            };
            let at = lay.offset(w[k]);
            // SAFETY: inside `mem`, see above.
            outs.push((k, unsafe {
                std::slice::from_raw_parts(bytes.add(at), n).to_vec()
            }));
        }
        let a = HostAnswer { ret, outs };
        for (arg, want) in &c.expect_out {
            let got = a.out(*arg);
            if !got.starts_with(want) {
                return Err(SysError::new(
                    "host tape",
                    Errno::EPROTO,
                    format!(
                        "{}: argument {arg} came back as {got:02x?}, not {want:02x?}",
                        c.with_answer(ret)
                    ),
                ));
            }
        }
        if !call::is_errno(ret) {
            for (f, b) in &c.binds {
                let n = match b {
                    Bind::Ret => ret as i32,
                    Bind::Out { arg, offset } => i32::from_le_bytes(
                        a.out(*arg)[*offset..*offset + 4]
                            .try_into()
                            .expect("four bytes"),
                    ),
                };
                // SAFETY: the kernel has just given us this descriptor.
                self.fds.insert(*f, unsafe { OwnedFd::from_raw_fd(n) });
            }
        }
        Ok(a)
    }
}
