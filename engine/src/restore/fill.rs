//! Contents of private memory: from the pages image into stubs, by threads that never touch ptrace.
use super::memory::Plan;
use crate::error::{Blame, Error, Result};
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::vm;
use stasis_proto::{ImageDir, Kind};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const PIECE: u64 = 256 * 1024;

/// Writes all pages of a plan; gives their number.
pub fn pages(dir: &ImageDir, pid: HostPid, m: &Plan) -> Result<u64> {
    let total: u64 = m.pages.iter().map(|p| p.1).sum();
    if total == 0 {
        return Ok(0);
    }
    let name = Kind::Pages.file_of(m.pages_id);
    let file = dir.open_raw(&name)?;
    let size = file
        .metadata()
        .map_err(|e| Error::new("E5020", Blame::Image, name.clone()).why(e))?
        .len();
    if m.pages.iter().any(|(_, len, at)| at + len > size) {
        return Err(Error::new("E5021", Blame::Image, name)
            .why("it is shorter than its pagemap says")
            .advice("the image is truncated: copy or dump it again"));
    }
    let mut pieces = Vec::new();
    for (addr, len, at) in &m.pages {
        let mut done = 0;
        while done < *len {
            let n = PIECE.min(len - done);
            pieces.push((addr + done, at + done, n));
            done += n;
        }
    }
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let work = || {
        let mut buf = vec![0u8; PIECE as usize];
        while let Some(p) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.lock().expect("no panic while held").is_some() {
                return;
            }
            if let Err(e) = piece(pid, &file, *p, &mut buf) {
                failed.lock().expect("no panic while held").get_or_insert(e);
                return;
            }
        }
    };
    let workers = if total > 8 << 20 {
        std::thread::available_parallelism()
            .map_or(1, |n| n.get())
            .min(4)
    } else {
        1
    };
    if workers == 1 {
        work();
    } else {
        std::thread::scope(|s| {
            for _ in 0..workers {
                s.spawn(work);
            }
        });
    }
    failed
        .into_inner()
        .expect("workers have ended")
        .map_or(Ok(total / 4096), Err)
}

fn piece(pid: HostPid, file: &File, (addr, at, n): (u64, u64, u64), buf: &mut [u8]) -> Result<()> {
    let buf = &mut buf[..n as usize];
    file.read_exact_at(buf, at)
        .map_err(|e| Error::new("E5020", Blame::Image, "pages image").why(e))?;
    vm::write(pid, RemotePtr(addr), buf).map_err(|e| {
        Error::new("E5022", Blame::Image, format!("pages at {addr:#x}"))
            .why(e)
            .advice("the pagemap names pages outside the mappings: dump again")
    })
}
