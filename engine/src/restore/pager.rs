//! Lazy restore: private memory comes when the tree runs, from a process that stays until all of it is there.
use super::memory;
use crate::error::{Blame, Error, Result};
use crate::lazy::{self, Space};
use crate::pages::Store;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::{offspring, uffd};
use stasis_proto::ImageDir;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// Where the pager says why it could not go on, in the folder of the images.
const LOG: &str = "lazy-pages.log";

/// Tasks whose memory comes later.
#[derive(Default)]
pub struct Pager {
    spaces: Vec<Space>,
    stores: Vec<Store>,
}

impl Pager {
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
        uffd::api(fd.as_fd(), lazy::FEATURES).map_err(|e| no_uffd(pid, &e.to_string()))?;
        for (start, len) in &m.lazy_ranges {
            uffd::register(fd.as_fd(), RemotePtr(*start), *len, uffd::MODE_MISSING)
                .map_err(|e| no_uffd(pid, &e.to_string()))?;
        }
        self.stores.push(Store::open(dir, &m.sources)?);
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
            return Ok(());
        }
        let log: PathBuf = std::path::absolute(images)
            .unwrap_or_else(|_| images.into())
            .join(LOG);
        let _ = std::fs::remove_file(&log);
        let wards: Vec<HostPid> = self.spaces.iter().map(|s| s.pid).collect();
        let mut keep: Vec<RawFd> = self.spaces.iter().map(|s| s.fd().as_raw_fd()).collect();
        keep.extend(self.stores.iter().flat_map(Store::descriptors));
        let Pager { spaces, stores } = self;
        // workers of earlier phases have ended, no other thread of the engine runs now
        offspring::start(&keep, &wards, move || match lazy::serve(spaces, &stores) {
            Ok(()) => 0,
            Err(e) => {
                let _ = std::fs::write(&log, format!("{e}\n"));
                1
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
