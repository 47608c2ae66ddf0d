//! Contents of private memory: from the pages image into stubs, by threads that never touch ptrace.
//!
//! Page faults decide the speed. Large mappings of small pages are filled by UFFDIO_COPY, which does not zero pages first and
//! costs no fault (4.5 GB/s a thread); what becomes huge pages, is compared, or is small is written by process_vm_writev.
use super::memory::Plan;
use crate::error::{Blame, Error, Result};
use crate::pages::Store;
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

/// Index ranges of pieces that are done in one go: small ones that follow each other in the image; or those of one page table,
/// 2 MiB, that are copied, because two threads would wait for each other there.
fn groups(pieces: &[Piece]) -> Vec<std::ops::Range<usize>> {
    let mut out: Vec<std::ops::Range<usize>> = Vec::new();
    let mut sum = 0;
    for (i, p) in pieces.iter().enumerate() {
        let joins = i > 0
            && p.how != How::Copy
            && pieces[i - 1].how != How::Copy
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

/// The pages of a task whose memory others inherit.
pub struct Base {
    store: Store,
    /// All of its own pages image, if that is small: every heir is compared with it.
    whole: Option<Vec<u8>>,
}

impl Base {
    /// Pages images up to this size are held in memory.
    const SMALL: u64 = 4 << 20;

    /// Opens the images.
    ///
    /// # Errors
    /// Those of opening and reading.
    pub fn open(dir: &ImageDir, m: &Plan) -> Result<Self> {
        let store = Store::open(dir, &m.sources)?;
        let whole = store.whole(Self::SMALL)?;
        Ok(Self { store, whole })
    }
    /// Bytes of one run; `room` is as long.
    fn read<'b>(&'b self, at: u64, room: &'b mut [u8]) -> Result<&'b [u8]> {
        let end = at.checked_add(room.len() as u64);
        let held = self.whole.as_ref().zip(end);
        if let Some(b) = held.and_then(|(w, end)| w.get(at as usize..end as usize)) {
            return Ok(b);
        }
        self.store.read(room, at)?;
        Ok(room)
    }
}

/// The filling of one task's private memory.
pub struct Filling<'a> {
    pid: HostPid,
    plan: &'a Plan,
    base: Option<&'a Base>,
    missing: Option<Missing>,
    /// How much it is, in bytes.
    pub total: u64,
}

/// What a thread that fills keeps for itself.
pub struct Room {
    own: Vec<u8>,
    other: Vec<u8>,
}

impl Room {
    /// Empty buffers.
    pub fn new() -> Self {
        Self {
            own: vec![0; PIECE as usize + 4096],
            other: vec![0; PIECE as usize],
        }
    }
}

impl<'a> Filling<'a> {
    /// All pages of a plan. `base`: the task whose memory it inherits.
    pub fn new(
        pid: HostPid,
        plan: &'a Plan,
        base: Option<&'a Base>,
        missing: Option<Missing>,
    ) -> Self {
        Self {
            pid,
            plan,
            base,
            missing,
            total: plan.pages.iter().map(|p| p.1).sum(),
        }
    }
    /// Whether so much is filled by several threads; less is not, but several tasks may be filled at once.
    pub fn is_much(&self) -> bool {
        self.total > workers::ALONE
    }
    fn pieces(&self) -> Vec<Piece> {
        let m = self.plan;
        let (write, compare) = match (&m.estate, self.base) {
            (Some(e), Some(_)) if e.keeps() => (&e.write, &e.compare[..]),
            _ => (&m.pages, &[][..]),
        };
        let mut pieces: Vec<Piece> = Vec::new();
        for run in write {
            cut(&mut pieces, *run, None, self.missing.as_ref());
        }
        for (addr, len, at, other) in compare {
            cut(&mut pieces, (*addr, *len, *at), Some(*other), None);
        }
        // in the order of the image: what lies together there is read together
        pieces.sort_by_key(|p| p.at);
        pieces
    }
    /// Writes all pages, by several threads.
    ///
    /// # Errors
    /// Those of opening and reading the images; E5022.
    pub fn by_many(&self, dir: &ImageDir) -> Result<()> {
        let own = Store::open(dir, &self.plan.sources)?;
        let pieces = self.pieces();
        let groups = groups(&pieces);
        workers::each(self.total, &groups, Room::new, |g, room| {
            self.group(&own, &pieces[g.clone()], room)
        })
    }
    /// Writes all pages.
    ///
    /// # Errors
    /// As [`Filling::by_many`].
    pub fn alone(&self, dir: &ImageDir, room: &mut Room) -> Result<()> {
        if self.total == 0 {
            return Ok(());
        }
        let own = Store::open(dir, &self.plan.sources)?;
        let pieces = self.pieces();
        for g in groups(&pieces) {
            self.group(&own, &pieces[g], room)?;
        }
        Ok(())
    }
    fn group(&self, own: &Store, pieces: &[Piece], room: &mut Room) -> Result<()> {
        // KERNEL(<6.6): UFFDIO_COPY wants its source at a page address too
        let shift = room.own.as_ptr().align_offset(4096);
        let buf = &mut room.own[shift..shift + PIECE as usize];
        match &self.missing {
            Some(m) if pieces[0].how == How::Copy => {
                pieces.iter().try_for_each(|p| copy(m, own, *p, buf))
            }
            _ => self.several(own, pieces, buf, &mut room.other),
        }
    }
    /// Pieces that follow each other in the image. Of those that are compared only the pages that the parent has otherwise are
    /// written: the others stay shared with it.
    fn several(
        &self,
        own: &Store,
        pieces: &[Piece],
        buf: &mut [u8],
        other: &mut [u8],
    ) -> Result<()> {
        let first = pieces[0];
        let len: u64 = pieces.iter().map(|p| p.len).sum();
        let buf = &mut buf[..len as usize];
        own.read(buf, first.at)?;
        let mut ranges: Vec<vm::RemoteRange> = Vec::with_capacity(pieces.len());
        // what is written moves together at the front of the buffer
        let mut kept = 0;
        let mut keep = |buf: &mut [u8], addr: u64, from: usize, to: usize| {
            if from != kept {
                buf.copy_within(from..to, kept);
            }
            kept += to - from;
            let (addr, len) = (RemotePtr(addr), to - from);
            match ranges.last_mut() {
                Some(r) if r.addr.0 + r.len as u64 == addr.0 => r.len += len,
                _ => ranges.push(vm::RemoteRange { addr, len }),
            }
        };
        for p in pieces {
            let (from, n) = ((p.at - first.at) as usize, p.len as usize);
            match (p.how, self.base) {
                (How::Compare(at), Some(base)) => {
                    let theirs = base.read(at, &mut other[..n])?;
                    for (x, y) in differences(&buf[from..from + n], theirs) {
                        keep(buf, p.addr + x as u64, from + x, from + y);
                    }
                }
                _ => keep(buf, p.addr, from, from + n),
            }
        }
        if ranges.is_empty() {
            return Ok(());
        }
        vm::writev(self.pid, &ranges, &buf[..kept]).map_err(|e| misplaced(first.addr, e))
    }
}

fn copy(missing: &Missing, own: &Store, p: Piece, buf: &mut [u8]) -> Result<()> {
    let buf = &mut buf[..p.len as usize];
    own.read(buf, p.at)?;
    uffd::copy(missing.fd.as_fd(), RemotePtr(p.addr), buf).map_err(|e| misplaced(p.addr, e))
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
    fn small_pieces_that_follow_each_other_go_together_others_alone() {
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
            p(12288, 4096, How::Compare(0)),
        ];
        assert_eq!(groups(&all), [0..2, 2..4, 4..5, 5..6, 6..8, 8..9]);
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
