//! Lazy restore: private memory comes when the tree runs, from a process that stays until all of it is there.
use super::memory;
use crate::error::{Blame, Error, Result};
use crate::far::Far;
use crate::lazy::{self, Space, Start};
use crate::lazy_daemon;
use crate::pages::Store;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::{fds, offspring, uffd};
use stasis_proto::ImageDir;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the pager says why it could not go on, in the folder of the images.
const LOG: &str = "lazy-pages.log";

/// Tasks whose memory comes later.
#[derive(Default)]
pub struct Pager {
    spaces: Vec<Space>,
    stores: Vec<Store>,
    far: Option<Arc<Far>>,
}

/// The connection to a daemon `lazy-pages`. It is told each task of the tree, in any order: four bytes with its number, then its
/// userfaultfd with one byte; of one that lacks nothing only the number, negative. When the tree runs, [`Start::OVER`].
pub struct Daemon(UnixStream);

impl Daemon {
    /// Connects.
    ///
    /// # Errors
    /// E6708.
    pub fn connect(path: &Path) -> Result<Self> {
        let no = |e: std::io::Error| gone(e).on(path.display());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(no)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        UnixStream::connect(lazy_daemon::near(&folder, &name))
            .map(Self)
            .map_err(no)
    }
    /// Hands a task over.
    ///
    /// # Errors
    /// E6702, E6708.
    pub fn add(
        &mut self,
        pid: HostPid,
        own: i32,
        fd: &OwnedFd,
        ranges: &[(u64, u64)],
    ) -> Result<()> {
        register(pid, fd, ranges)?;
        self.0.write_all(&own.to_le_bytes()).map_err(gone)?;
        fds::send_fds(self.0.as_fd(), &[0], &[fd.as_fd()])?;
        Ok(())
    }
    /// Says that there is nothing to bring to a task.
    ///
    /// # Errors
    /// E6708.
    pub fn skip(&mut self, own: i32) -> Result<()> {
        self.0.write_all(&(-own).to_le_bytes()).map_err(gone)
    }
    /// Says that the tree runs.
    ///
    /// # Errors
    /// E6708.
    pub fn over(&mut self) -> Result<()> {
        self.0.write_all(&Start::OVER.to_le_bytes()).map_err(gone)
    }
}

fn gone(e: std::io::Error) -> Error {
    Error::new(
        "E6708",
        Blame::Host,
        "the daemon that brings memory is not there",
    )
    .why(e)
    .advice("start `criu lazy-pages` first, with the same work folder (-W, or -D)")
}

fn register(pid: HostPid, fd: &OwnedFd, ranges: &[(u64, u64)]) -> Result<()> {
    uffd::api(fd.as_fd(), lazy::FEATURES).map_err(|e| no_uffd(pid, &e.to_string()))?;
    for (start, len) in ranges {
        uffd::register(fd.as_fd(), RemotePtr(*start), *len, uffd::MODE_MISSING)
            .map_err(|e| no_uffd(pid, &e.to_string()))?;
    }
    Ok(())
}

impl Pager {
    /// Without tasks; `far` reaches those who kept pages.
    pub fn new(far: Option<&Arc<Far>>) -> Self {
        Self {
            far: far.cloned(),
            ..Self::default()
        }
    }
    /// Takes a task: `fd` is its userfaultfd.
    ///
    /// # Errors
    /// E6702: the kernel does not let us.
    pub fn add(
        &mut self,
        dir: &ImageDir,
        pid: HostPid,
        fd: OwnedFd,
        m: &memory::Plan,
    ) -> Result<()> {
        register(pid, &fd, &m.lazy_ranges)?;
        self.stores
            .push(Store::reaching(dir, &m.sources, self.far.as_ref())?);
        let source = self.stores.len() - 1;
        self.spaces.push(Space::new(pid, fd, source, &m.lazy));
        Ok(())
    }
    /// Starts the process that brings the pages.
    ///
    /// # Errors
    /// fork.
    pub fn start(self, images: &Path) -> Result<()> {
        if self.spaces.is_empty() {
            return self.far.map_or(Ok(()), |f| f.close());
        }
        let log: PathBuf = std::path::absolute(images)
            .unwrap_or_else(|_| images.into())
            .join(LOG);
        let _ = std::fs::remove_file(&log);
        let wards: Vec<HostPid> = self.spaces.iter().map(|s| s.pid).collect();
        let mut keep: Vec<RawFd> = self.spaces.iter().map(|s| s.fd().as_raw_fd()).collect();
        keep.extend(self.stores.iter().flat_map(Store::descriptors));
        keep.sort_unstable();
        keep.dedup();
        let Pager {
            spaces,
            stores,
            far,
        } = self;
        let spaces = spaces.into_iter().map(Arc::new).collect();
        // workers of earlier phases have ended, no other thread of the engine runs now
        offspring::start(&keep, &wards, move || {
            let served = lazy::serve(spaces, &stores, None);
            // who kept the pages may let its tree go
            let served = served.and_then(|()| far.map_or(Ok(()), |f| f.close()));
            match served {
                Ok(()) => 0,
                Err(e) => {
                    let _ = std::fs::write(&log, format!("{e}\n"));
                    1
                }
            }
        })?;
        Ok(())
    }
}

/// What a task without a userfaultfd of the full kind means.
pub fn no_uffd(pid: HostPid, why: &str) -> Error {
    Error::new(
        "E6702",
        Blame::Host,
        format!("memory of task {pid} cannot be restored lazily"),
    )
    .why(format!(
        "faults of system calls need a userfaultfd with CAP_SYS_PTRACE: {why}"
    ))
    .advice("restore as root, or without --lazy")
}
