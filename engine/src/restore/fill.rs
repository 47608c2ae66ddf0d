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

/// A pages image, and whether it is long enough for what will be read from it.
struct Image {
    file: File,
    name: String,
}

impl Image {
    fn open(dir: &ImageDir, id: u32, end: u64) -> Result<Self> {
        let name = Kind::Pages.file_of(id);
        let file = dir.open_raw(&name)?;
        let size = file
            .metadata()
            .map_err(|e| Error::new("E5020", Blame::Image, name.clone()).why(e))?
            .len();
        if end > size {
            return Err(Error::new("E5021", Blame::Image, name)
                .why("it is shorter than its pagemap says")
                .advice("the image is truncated: copy or dump it again"));
        }
        Ok(Self { file, name })
    }
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        self.file
            .read_exact_at(buf, at)
            .map_err(|e| Error::new("E5020", Blame::Image, self.name.clone()).why(e))
    }
}

/// A piece of work: address, offset in the own image, offset in the image of the parent it is compared with, length.
type Piece = (u64, u64, Option<u64>, u64);

/// Writes all pages of a plan; gives their number. `base`: the pages image of the task whose memory it inherits.
pub fn pages(dir: &ImageDir, pid: HostPid, m: &Plan, base: Option<u32>) -> Result<u64> {
    let (write, compare) = match &m.estate {
        Some(e) if !e.compare.is_empty() => (&e.write, &e.compare[..]),
        _ => (&m.pages, &[][..]),
    };
    let total: u64 = m.pages.iter().map(|p| p.1).sum();
    if total == 0 {
        return Ok(0);
    }
    let end = |it: &mut dyn Iterator<Item = u64>| it.max().unwrap_or(0);
    let own = Image::open(dir, m.pages_id, end(&mut m.pages.iter().map(|p| p.1 + p.2)))?;
    let theirs = match base.filter(|_| !compare.is_empty()) {
        Some(id) => Some(Image::open(
            dir,
            id,
            end(&mut compare.iter().map(|c| c.3 + c.1)),
        )?),
        None => None,
    };
    let mut pieces: Vec<Piece> = Vec::new();
    let all = write.iter().map(|(a, n, at)| (*a, *n, *at, None));
    for (addr, len, at, other) in
        all.chain(compare.iter().map(|(a, n, x, y)| (*a, *n, *x, Some(*y))))
    {
        let mut done = 0;
        while done < len {
            let n = PIECE.min(len - done);
            pieces.push((addr + done, at + done, other.map(|o| o + done), n));
            done += n;
        }
    }
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let work = || {
        let mut buf = vec![0u8; PIECE as usize];
        let mut other = vec![0u8; if theirs.is_some() { PIECE as usize } else { 0 }];
        while let Some(p) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.lock().expect("no panic while held").is_some() {
                return;
            }
            let r = match (p.2, &theirs) {
                (Some(at), Some(t)) => differing(pid, &own, t, *p, at, &mut buf, &mut other),
                _ => piece(pid, &own, *p, &mut buf),
            };
            if let Err(e) = r {
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

fn piece(pid: HostPid, own: &Image, (addr, at, _, n): Piece, buf: &mut [u8]) -> Result<()> {
    let buf = &mut buf[..n as usize];
    own.read(buf, at)?;
    put(pid, addr, buf)
}

/// Writes only the pages that the parent has otherwise: the others stay shared with it.
fn differing(
    pid: HostPid,
    own: &Image,
    theirs: &Image,
    (addr, at, _, n): Piece,
    their_at: u64,
    buf: &mut [u8],
    other: &mut [u8],
) -> Result<()> {
    let (buf, other) = (&mut buf[..n as usize], &mut other[..n as usize]);
    own.read(buf, at)?;
    theirs.read(other, their_at)?;
    for (from, to) in differences(buf, other) {
        put(pid, addr + from as u64, &buf[from..to])?;
    }
    Ok(())
}

/// Runs of whole pages in which two buffers of equal length differ.
fn differences(a: &[u8], b: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, (x, y)) in a.chunks(4096).zip(b.chunks(4096)).enumerate() {
        if x != y {
            let at = i * 4096;
            match runs.last_mut() {
                Some(r) if r.1 == at => r.1 += x.len(),
                _ => runs.push((at, at + x.len())),
            }
        }
    }
    runs
}

fn put(pid: HostPid, addr: u64, data: &[u8]) -> Result<()> {
    vm::write(pid, RemotePtr(addr), data).map_err(|e| {
        Error::new("E5022", Blame::Image, format!("pages at {addr:#x}"))
            .why(e)
            .advice("the pagemap names pages outside the mappings: dump again")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_pages_are_found_and_joined() {
        let a = vec![1u8; 5 * 4096];
        let mut b = a.clone();
        assert_eq!(differences(&a, &b), []);
        b[4095] = 0;
        b[4096 * 2] = 0;
        b[4096 * 3 + 7] = 0;
        assert_eq!(differences(&a, &b), [(0, 4096), (8192, 16384)]);
    }
}
