//! Contents of private memory: from the pages image into stubs, by threads that never touch ptrace.
//!
//! Page faults decide the speed. Large mappings of small pages are filled by UFFDIO_COPY, which does not zero pages first and
//! costs no fault (4.5 GB/s a thread); what becomes huge pages, is compared, or is small is written by process_vm_writev.
use super::memory::Plan;
use crate::error::{Blame, Error, Result};
use crate::pages::{Source, Store};
use crate::workers;
use stasis_kernel::error::SysError;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::{uffd, vm};
use stasis_proto::ImageDir;
use std::os::fd::{AsFd, OwnedFd};

const PIECE: u64 = 256 * 1024;

/// A userfaultfd of the task, with the ranges registered there (start, end).
pub struct Missing {
    fd: OwnedFd,
    ranges: Vec<(u64, u64)>,
}

impl Missing {
    /// Registers ranges (start, length); `None` where the kernel refuses.
    pub fn register(fd: OwnedFd, ranges: &[(u64, u64)]) -> Option<Self> {
        uffd::api(fd.as_fd(), 0).ok()?;
        for (start, len) in ranges {
            uffd::register(fd.as_fd(), RemotePtr(*start), *len, uffd::MODE_MISSING).ok()?;
        }
        let mut ranges: Vec<_> = ranges.iter().map(|(s, n)| (*s, s + n)).collect();
        ranges.sort_unstable();
        Some(Self { fd, ranges })
    }
    /// Whether the address is in a registered range, and where that changes next.
    fn at(&self, addr: u64) -> (bool, u64) {
        let i = self.ranges.partition_point(|r| r.1 <= addr);
        match self.ranges.get(i) {
            Some(r) if r.0 <= addr => (true, r.1),
            Some(r) => (false, r.0),
            None => (false, u64::MAX),
        }
    }
}

/// How a piece is brought into place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// process_vm_writev.
    Write,
    /// UFFDIO_COPY.
    Copy,
    /// Only where it differs from what lies at this offset in the image of the parent.
    Compare(u64),
}

/// A piece of work.
#[derive(Clone, Copy)]
struct Piece {
    addr: u64,
    /// Offset in the own image.
    at: u64,
    len: u64,
    how: How,
}

/// Cuts a run of pages, also where a registered range begins or ends: a write into one would wait for itself for ever.
fn cut(
    pieces: &mut Vec<Piece>,
    (addr, len, at): (u64, u64, u64),
    other: Option<u64>,
    missing: Option<&Missing>,
) {
    let mut done = 0;
    while done < len {
        let (inside, border) = missing.map_or((false, u64::MAX), |m| m.at(addr + done));
        let n = PIECE.min(len - done).min(border - (addr + done));
        let how = match other {
            Some(o) => How::Compare(o + done),
            None if inside => How::Copy,
            None => How::Write,
        };
        let (addr, at) = (addr + done, at + done);
        let piece = Piece {
            addr,
            at,
            len: n,
            how,
        };
        pieces.push(piece);
        done += n;
    }
}

/// Index ranges of pieces that are done in one go: small ones that are written and follow each other in the image; or those
/// of one page table, 2 MiB, that are copied, because two threads would wait for each other there.
fn groups(pieces: &[Piece]) -> Vec<std::ops::Range<usize>> {
    let mut out: Vec<std::ops::Range<usize>> = Vec::new();
    let mut sum = 0;
    for (i, p) in pieces.iter().enumerate() {
        let joins = i > 0
            && p.how == How::Write
            && pieces[i - 1].how == How::Write
            && pieces[i - 1].at + pieces[i - 1].len == p.at
            && sum + p.len <= PIECE;
        let joins = joins
            || i > 0
                && p.how == How::Copy
                && pieces[i - 1].how == How::Copy
                && pieces[i - 1].addr >> 21 == p.addr >> 21;
        match out.last_mut() {
            Some(g) if joins && g.len() < 512 => {
                g.end = i + 1;
                sum += p.len;
            }
            _ => {
                out.push(i..i + 1);
                sum = p.len;
            }
        }
    }
    out
}

/// Writes all pages of a plan; gives their number. `base`: the pages images of the task whose memory it inherits.
pub fn pages(
    dir: &ImageDir,
    pid: HostPid,
    m: &Plan,
    base: Option<&[Source]>,
    missing: Option<&Missing>,
) -> Result<u64> {
    let (write, compare) = match &m.estate {
        Some(e) if !e.compare.is_empty() => (&e.write, &e.compare[..]),
        _ => (&m.pages, &[][..]),
    };
    let total: u64 = m.pages.iter().map(|p| p.1).sum();
    if total == 0 {
        return Ok(0);
    }
    let own = Store::open(dir, &m.sources)?;
    let theirs = match base.filter(|_| !compare.is_empty()) {
        Some(sources) => Some(Store::open(dir, sources)?),
        None => None,
    };
    let mut pieces: Vec<Piece> = Vec::new();
    for run in write {
        cut(&mut pieces, *run, None, missing);
    }
    for (addr, len, at, other) in compare {
        cut(&mut pieces, (*addr, *len, *at), Some(*other), None);
    }
    let groups = groups(&pieces);
    let buffers = || {
        let other = if theirs.is_some() { PIECE as usize } else { 0 };
        (vec![0u8; PIECE as usize + 4096], vec![0u8; other])
    };
    workers::each(total, &groups, buffers, |g, (room, other)| {
        // KERNEL(<6.6): UFFDIO_COPY wants its source at a page address too
        let shift = room.as_ptr().align_offset(4096);
        let buf = &mut room[shift..shift + PIECE as usize];
        let first = pieces[g.start];
        match (first.how, &theirs, missing) {
            (How::Compare(at), Some(t), _) => differing(pid, &own, t, first, at, buf, other),
            (How::Copy, _, Some(m)) => pieces[g.clone()]
                .iter()
                .try_for_each(|p| copy(m, &own, *p, buf)),
            _ => several(pid, &own, &pieces[g.clone()], buf),
        }
    })?;
    Ok(total / 4096)
}

/// Pieces that follow each other in the image.
fn several(pid: HostPid, own: &Store, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
    let len: u64 = pieces.iter().map(|p| p.len).sum();
    let buf = &mut buf[..len as usize];
    own.read(buf, pieces[0].at)?;
    let ranges: Vec<_> = pieces
        .iter()
        .map(|p| vm::RemoteRange {
            addr: RemotePtr(p.addr),
            len: p.len as usize,
        })
        .collect();
    vm::writev(pid, &ranges, buf).map_err(|e| misplaced(pieces[0].addr, e))
}

fn copy(missing: &Missing, own: &Store, p: Piece, buf: &mut [u8]) -> Result<()> {
    let buf = &mut buf[..p.len as usize];
    own.read(buf, p.at)?;
    uffd::copy(missing.fd.as_fd(), RemotePtr(p.addr), buf).map_err(|e| misplaced(p.addr, e))
}

/// Writes only the pages that the parent has otherwise: the others stay shared with it.
fn differing(
    pid: HostPid,
    own: &Store,
    theirs: &Store,
    p: Piece,
    their_at: u64,
    buf: &mut [u8],
    other: &mut [u8],
) -> Result<()> {
    let n = p.len as usize;
    let (buf, other) = (&mut buf[..n], &mut other[..n]);
    own.read(buf, p.at)?;
    theirs.read(other, their_at)?;
    for (from, to) in differences(buf, other) {
        let at = p.addr + from as u64;
        vm::write(pid, RemotePtr(at), &buf[from..to]).map_err(|e| misplaced(at, e))?;
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

fn misplaced(addr: u64, e: SysError) -> Error {
    Error::new("E5022", Blame::Image, format!("pages at {addr:#x}"))
        .why(e)
        .advice("the pagemap names pages outside the mappings: dump again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_written_together_others_alone() {
        let p = |at: u64, len: u64, how| Piece {
            addr: 0,
            at,
            len,
            how,
        };
        let all = [
            p(0, 4096, How::Write),
            p(4096, 8192, How::Write),
            p(12288, PIECE, How::Copy),
            p(12288, PIECE, How::Copy),
            p(12288 + PIECE, PIECE, How::Write),
            p(12288 + 2 * PIECE, 4096, How::Write),
            p(0, 4096, How::Write),
            p(4096, 4096, How::Compare(0)),
        ];
        assert_eq!(groups(&all), [0..2, 2..4, 4..5, 5..6, 6..7, 7..8]);
    }

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
