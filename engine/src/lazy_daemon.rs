//! The daemon `lazy-pages`: brings memory to a tree that another process restores, this engine or CRIU 4.2.
//!
//! The restore connects to its socket and names every task of the tree: four bytes with its number, then its userfaultfd with a
//! byte; a task that lacks nothing (a zombie) only by a negative number. At the end it says [`Start::OVER`]. The daemon
//! brings the pages that the image marks as lazy, from the images or from who kept them.
use crate::error::{Blame, Error, Result};
use crate::far::Far;
use crate::lazy::{self, Space, Start, early};
use crate::pages::{Pages, Store};
use crate::remote::Server;
use stasis_kernel::ids::HostPid;
use stasis_kernel::{fds, offspring};
use stasis_proto::{ImageDir, Kind, pb};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::{error, info};

/// The name of the socket, in the work folder.
pub const SOCKET: &str = "lazy-pages.socket";

/// Listens in a folder, in place of an older socket.
///
/// # Errors
/// E6706.
pub fn listen(work: &Path) -> Result<UnixListener> {
    // the folder's own path may be too long for a socket's address
    let folder = File::open(work).map_err(|e| {
        Error::new(
            "E6706",
            Blame::Host,
            format!("cannot open {}", work.display()),
        )
        .why(e)
    })?;
    let path = near(&folder, SOCKET);
    let no = |e: std::io::Error| {
        Error::new(
            "E6706",
            Blame::Host,
            format!("cannot listen at {}", path.display()),
        )
        .why(e)
        .advice("name a folder that can be written by -W")
    };
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(no(e)),
        _ => {}
    }
    UnixListener::bind(&path).map_err(no)
}

/// A short path of a name in an open folder.
pub(crate) fn near(folder: &File, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).into()
}

/// Waits for a restore and brings all its memory. Call it while the process has no other threads: the work is done in a copy,
/// and if that ends before its time, tasks that touch what is missing get SIGBUS, where they would read zeroes else.
///
/// # Errors
/// E6705, E6703, E6710; those of reading the images.
pub fn run(dir: &ImageDir, listener: &UnixListener, far: Option<&Server>) -> Result<()> {
    let tasks: Vec<pb::PstreeEntry> = dir.read_all(&Kind::Pstree.file())?;
    let (mut socket, _) = listener.accept().map_err(early)?;
    let far = match far {
        Some(s) => Some(Arc::new(Far::connect(s)?)),
        None => None,
    };
    let (mut spaces, mut stores) = (Vec::new(), Vec::new());
    for _ in &tasks {
        let mut b = [0; 4];
        socket.read_exact(&mut b).map_err(early)?;
        let own = i32::from_le_bytes(b);
        if own < 0 {
            continue;
        }
        if !tasks.iter().any(|t| t.pid == own as u32) {
            return Err(early(format!(
                "it names process {own}, which the image does not have"
            )));
        }
        let fd = descriptor(&socket)?;
        let pages = Pages::load(dir, &Kind::Pagemap.file_of(own as u32))?;
        stores.push(Store::reaching(dir, &pages.sources, far.as_ref())?);
        let runs = pages.only_lazy();
        spaces.push(Arc::new(Space::new(
            HostPid(own),
            fd,
            stores.len() - 1,
            &runs,
        )));
    }
    let sum: u64 = spaces.iter().map(|s| s.lacks()).sum();
    info!("{sum} bytes are to be brought to {} tasks", spaces.len());
    let work = || {
        let mut start = Start::new(socket);
        let served = lazy::serve(spaces.clone(), &stores, Some(&mut start));
        match served.and_then(|()| far.as_ref().map_or(Ok(()), |f| f.close())) {
            Ok(()) => 0,
            Err(e) => {
                error!("{e}");
                1
            }
        }
    };
    let code = offspring::guarded(work, || spaces.iter().for_each(|s| s.give_up()))?;
    match code {
        0 => Ok(()),
        _ => Err(
            Error::new("E6707", Blame::Host, "not all memory could be brought")
                .why("the lines before say what happened")
                .advice("tasks that touch what is missing get SIGBUS: end them, and restore again"),
        ),
    }
}

fn descriptor(socket: &UnixStream) -> Result<std::os::fd::OwnedFd> {
    let (_, mut got) = fds::recv_fds(socket.as_fd(), &mut [0])?;
    match got.len() {
        1 => Ok(got.remove(0)),
        n => Err(early(format!("{n} descriptors in place of one"))),
    }
}
