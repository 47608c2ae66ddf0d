//! Pages: from stopped tasks into pages images, by several threads that never touch ptrace.
//!
//! The engine reads with process_vm_readv into a small buffer that stays in the cache and writes it out; memory use does
//! not depend on the target's size.
use super::drain::Late;
use super::mm::Run;
use super::sink::Sink;
use super::tracking::Range;
use crate::error::Result;
use crate::migrate::stream::Remote;
use crate::options::Options;
use crate::pages::{IN_PARENT, LAZY, PAGE, PRESENT, SAME};
use crate::remote::Client;
use crate::workers;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::vm;
use stasis_proto::{ImageDir, pb};
use std::sync::Mutex;

/// Bytes moved at a time: fits the second-level cache.
const PIECE: u64 = 256 * 1024;

/// What is known of an address space besides its pages.
pub struct Space<'a> {
    /// The process.
    pub pid: HostPid,
    /// Ranges that the images of the dump before hold, sorted: what is unwritten there is left to them.
    pub before: &'a [Range],
    /// It runs while it is read: what cannot be read any more is named, not an error.
    pub running: bool,
    /// Pages that may come later are named, and stay where they are.
    pub keep_lazy: bool,
}

/// Pages of a stopped task that stay with it until somebody asks for them.
#[derive(Debug)]
pub struct Left {
    /// The task's number in its own pid namespace.
    pub own: u32,
    /// The engine's number of it.
    pub host: HostPid,
    /// Sorted.
    pub runs: Vec<Run>,
}

impl Left {
    /// How many of `pages` pages from this address on were left, all in a row; `None` if the first was not.
    pub fn from(&self, addr: u64, pages: u64) -> Option<u64> {
        if !addr.is_multiple_of(PAGE) {
            return None;
        }
        let mut end = addr;
        let wanted = addr.checked_add(pages.checked_mul(PAGE)?)?;
        let first = self.runs.partition_point(|r| r.start + r.len <= addr);
        for r in &self.runs[first..] {
            if r.start > end || end >= wanted {
                break;
            }
            end = wanted.min(r.start + r.len);
        }
        Some((end - addr) / PAGE).filter(|n| *n > 0)
    }
    /// Reads pages of one answer.
    ///
    /// # Errors
    /// The task is gone.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let piece = Piece {
            addr,
            at: 0,
            len: buf.len() as u64,
            // what is shared with a relative must stay so if the dump is taken back
            shared: self.runs.iter().any(|r| r.shared),
        };
        let space = Space {
            pid: self.host,
            before: &[],
            running: false,
            keep_lazy: false,
        };
        read(&space, &[piece], buf, &Mutex::new(Vec::new()))
    }
}

/// What the inventory tells of how pages are stored.
pub fn announce(o: &Options) -> Option<pb::StasisInventoryEntry> {
    let e = pb::StasisInventoryEntry {
        compression: o.memory.compress.map(|c| c.name().into()),
        shared_once: o.memory.once.then_some(true),
        encryption: (!o.recipients.is_empty()).then(|| "age".into()),
    };
    (e != pb::StasisInventoryEntry::default()).then_some(e)
}

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Pages in the pages image.
    pub pages: u64,
    /// Pages left to the dump before.
    pub skipped: u64,
    /// Pages written with another task that has the same.
    pub same: u64,
    /// Pages that could not be read: zeroes stand for them.
    pub lost: Vec<Range>,
}

/// Writes pagemap-ID.img and pages-N.img of one address space.
pub fn write(
    dir: &ImageDir,
    space: &Space,
    image: &str,
    (pages_id, to): (u32, Sink),
    runs: &[Run],
) -> Result<Written> {
    let (written, to, _) = write_now(dir, space, image, (pages_id, to), runs)?;
    to.finish(dir, pages_id, written.pages * PAGE)?;
    Ok(written)
}

/// The same without the pages of runs that are [late](Run::late): gives the image, and where in it they belong.
pub fn write_now(
    dir: &ImageDir,
    space: &Space,
    image: &str,
    (pages_id, to): (u32, Sink),
    runs: &[Run],
) -> Result<(Written, Sink, Vec<Late>)> {
    let mut w = dir.writer(image)?;
    w.write(&pb::PagemapHead { pages_id })?;
    let mut pieces = Vec::new();
    let mut late = Vec::new();
    let mut written = Written::default();
    let mut offset = 0;
    for r in runs {
        if let Some(same) = r.same {
            written.same += r.len / PAGE;
            w.write(&pb::PagemapEntry {
                vaddr: r.start,
                compat_nr_pages: crate::kinds::shmem::compat_pages(r.len / PAGE),
                nr_pages: Some(r.len / PAGE),
                flags: Some(SAME | if r.lazy { LAZY } else { 0 }),
                stasis: Some(pb::StasisPagemapEntry {
                    same_pid: Some(same.pid),
                    same_vaddr: Some(same.addr),
                }),
                ..Default::default()
            })?;
            continue;
        }
        for (start, end, skip) in parts(r, space.before) {
            let pages = (end - start) / PAGE;
            let left = r.lazy && space.keep_lazy;
            let flags = match (skip, left, r.lazy) {
                (true, ..) => IN_PARENT,
                (_, true, _) => LAZY,
                (_, _, true) => PRESENT | LAZY,
                _ => PRESENT,
            };
            w.write(&pb::PagemapEntry {
                vaddr: start,
                compat_nr_pages: crate::kinds::shmem::compat_pages(pages),
                nr_pages: Some(pages),
                flags: Some(flags),
                ..Default::default()
            })?;
            if skip {
                written.skipped += pages;
                continue;
            }
            if left {
                continue;
            }
            if r.late {
                late.push((start, end - start, offset));
                offset += end - start;
                continue;
            }
            cut(&mut pieces, (start, end), &mut offset, r);
        }
    }
    w.finish()?;
    written.pages = offset / PAGE;
    written.lost = copy(space, &to, &pieces)?;
    Ok((written, to, late))
}

/// Reads runs (address, length, anything) of a process into a buffer of their length. `shared`: as [`read`] says.
pub fn read_runs(
    pid: HostPid,
    runs: &[Late],
    shared: bool,
    buf: &mut [u8],
) -> std::result::Result<(), stasis_kernel::error::SysError> {
    let ranges: Vec<_> = runs
        .iter()
        .map(|r| vm::RemoteRange {
            addr: RemotePtr(r.0),
            len: r.1 as usize,
        })
        .collect();
    if !shared && vm::readv(pid, &ranges, buf).is_ok() {
        return Ok(());
    }
    let mem = vm::Mem::open(pid)?;
    let mut rest = buf;
    for r in ranges {
        let (now, then) = rest.split_at_mut(r.len);
        mem.read(r.addr, now)?;
        rest = then;
    }
    Ok(())
}

/// Sends the pages of one address space to a page server; all of them.
pub fn send(to: &mut Client, space: &Space, own_pid: u32, runs: &[Run]) -> Result<Written> {
    to.open(own_pid)?;
    match to.apart() {
        Some(image) => send_apart(to, image, space, own_pid, runs),
        None => send_along(to, space, own_pid, runs),
    }
}

/// Over connections of their own, by several threads.
fn send_apart(
    to: &mut Client,
    image: Remote,
    space: &Space,
    own_pid: u32,
    runs: &[Run],
) -> Result<Written> {
    let (mut pieces, mut offset) = (Vec::new(), 0);
    for r in runs {
        to.add(own_pid, r.start, r.len / PAGE, r.lazy)?;
        cut(&mut pieces, (r.start, r.start + r.len), &mut offset, r);
    }
    let sink = Sink::Remote(image.clone());
    let lost = copy(space, &sink, &pieces)?;
    image.end(offset)?;
    Ok(Written {
        pages: offset / PAGE,
        lost,
        ..Written::default()
    })
}

/// Over the one connection, each after what announces it.
fn send_along(to: &mut Client, space: &Space, own_pid: u32, runs: &[Run]) -> Result<Written> {
    let mut buf = vec![0u8; PIECE as usize];
    let lost = Mutex::new(Vec::new());
    let (mut pieces, mut offset) = (Vec::new(), 0);
    for r in runs {
        to.add(own_pid, r.start, r.len / PAGE, r.lazy)?;
        pieces.clear();
        cut(&mut pieces, (r.start, r.start + r.len), &mut offset, r);
        for p in &pieces {
            let buf = &mut buf[..p.len as usize];
            read(space, std::slice::from_ref(p), buf, &lost)?;
            to.pages(buf)?;
        }
    }
    Ok(Written {
        pages: offset / PAGE,
        lost: lost.into_inner().expect("nobody has panicked"),
        ..Written::default()
    })
}

/// Cuts addresses of a run into pieces that follow each other in the image.
fn cut(pieces: &mut Vec<Piece>, (start, end): (u64, u64), offset: &mut u64, r: &Run) {
    let mut addr = start;
    while addr < end {
        let len = PIECE.min(end - addr);
        pieces.push(Piece {
            addr,
            at: *offset,
            len,
            shared: r.shared,
        });
        addr += len;
        *offset += len;
    }
}

/// A run in pieces (start, end) that the dump before has and need not be written, and others.
fn parts(r: &Run, before: &[Range]) -> Vec<(u64, u64, bool)> {
    let end = r.start + r.len;
    if !r.unwritten {
        return vec![(r.start, end, false)];
    }
    let mut out = Vec::new();
    let mut at = r.start;
    let first = before.partition_point(|b| b.1 <= r.start);
    for (a, b) in &before[first..] {
        if *a >= end {
            break;
        }
        if at < *a {
            out.push((at, *a, false));
        }
        out.push((at.max(*a), end.min(*b), true));
        at = end.min(*b);
    }
    if at < end {
        out.push((at, end, false));
    }
    out
}

/// A piece of work.
struct Piece {
    addr: u64,
    /// Offset in the pages image.
    at: u64,
    len: u64,
    /// Pages shared copy-on-write are among them.
    shared: bool,
}

/// Moves pieces, neighbouring small ones in one call. Gives what could not be read of a running process.
fn copy(space: &Space, to: &Sink, pieces: &[Piece]) -> Result<Vec<Range>> {
    let total: u64 = pieces.iter().map(|p| p.len).sum();
    let groups = group(pieces);
    let lost = Mutex::new(Vec::new());
    workers::each(
        total,
        &groups,
        || (vec![0u8; PIECE as usize], Vec::new()),
        |g, (buf, room)| piece(space, to, &pieces[g.0..g.1], (buf, room), &lost),
    )?;
    let mut lost = lost.into_inner().expect("workers have ended");
    lost.sort_unstable();
    Ok(lost)
}

/// Index ranges of pieces that together fit one buffer and follow each other in the image.
fn group(pieces: &[Piece]) -> Vec<(usize, usize)> {
    let mut groups = Vec::new();
    let (mut from, mut sum) = (0, 0);
    for (i, p) in pieces.iter().enumerate() {
        let follows = i > from && pieces[i - 1].at + pieces[i - 1].len == p.at;
        let full = sum + p.len > PIECE || i - from >= 512;
        if i > from && (!follows || full || p.shared != pieces[from].shared) {
            groups.push((from, i));
            (from, sum) = (i, 0);
        }
        sum += p.len;
    }
    if from < pieces.len() {
        groups.push((from, pieces.len()));
    }
    groups
}

fn piece(
    space: &Space,
    to: &Sink,
    pieces: &[Piece],
    (buf, room): (&mut [u8], &mut Vec<u8>),
    lost: &Mutex<Vec<Range>>,
) -> Result<()> {
    let n: u64 = pieces.iter().map(|p| p.len).sum();
    let buf = &mut buf[..n as usize];
    read(space, pieces, buf, lost)?;
    to.put(pieces[0].at, buf, room)
}

/// Reads pieces into a buffer of their length.
fn read(space: &Space, pieces: &[Piece], buf: &mut [u8], lost: &Mutex<Vec<Range>>) -> Result<()> {
    // KERNEL(>=5.19): process_vm_readv pins pages and so gives the reader's victim a copy of each page it shares with a
    // relative (mm/gup.c, gup_must_unshare): the tree would need its memory twice. /proc/PID/mem does not pin.
    if pieces.iter().any(|p| p.shared) || !fast(space.pid, pieces, buf) {
        // it also reads pages without PROT_READ
        let mem = vm::Mem::open(space.pid);
        let mut at = 0;
        for p in pieces {
            let buf = &mut buf[at..at + p.len as usize];
            at += p.len as usize;
            match (&mem, space.running) {
                (Ok(mem), false) => mem.read(RemotePtr(p.addr), buf)?,
                (Ok(mem), true) if mem.read(RemotePtr(p.addr), buf).is_ok() => {}
                (mem, true) => page_by_page(mem.as_ref().ok(), p.addr, buf, lost),
                (Err(e), false) => return Err(e.clone().into()),
            }
        }
    }
    Ok(())
}

/// What can still be read; zeroes for the rest.
fn page_by_page(mem: Option<&vm::Mem>, addr: u64, buf: &mut [u8], lost: &Mutex<Vec<Range>>) {
    for (at, page) in (addr..)
        .step_by(PAGE as usize)
        .zip(buf.chunks_mut(PAGE as usize))
    {
        if mem.is_none_or(|m| m.read(RemotePtr(at), page).is_err()) {
            page.fill(0);
            let mut lost = lost.lock().expect("no panic while held");
            match lost.last_mut() {
                Some(l) if l.1 == at => l.1 = at + PAGE,
                _ => lost.push((at, at + PAGE)),
            }
        }
    }
}

fn fast(pid: HostPid, pieces: &[Piece], buf: &mut [u8]) -> bool {
    let ranges: Vec<_> = pieces
        .iter()
        .map(|p| vm::RemoteRange {
            addr: RemotePtr(p.addr),
            len: p.len as usize,
        })
        .collect();
    vm::readv(pid, &ranges, buf).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_dump_before_has_is_left_to_it() {
        let mut r = Run {
            unwritten: true,
            ..Run::at(0x1000, 0x9000)
        };
        let before = [
            (0, 0x2000),
            (0x3000, 0x4000),
            (0x4000, 0x5000),
            (0x9000, 0x20000),
        ];
        let all = [
            (0x1000, 0x2000, true),
            (0x2000, 0x3000, false),
            (0x3000, 0x4000, true),
            (0x4000, 0x5000, true),
            (0x5000, 0x9000, false),
            (0x9000, 0xa000, true),
        ];
        assert_eq!(parts(&r, &before), all);
        assert_eq!(parts(&r, &[]), [(0x1000, 0xa000, false)]);
        r.unwritten = false;
        assert_eq!(parts(&r, &before), [(0x1000, 0xa000, false)]);
    }

    #[test]
    fn what_a_running_process_has_unmapped_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let page = vec![7u8; 3 * PAGE as usize];
        let at = (page.as_ptr() as u64).next_multiple_of(PAGE);
        let runs = [Run::at(at, PAGE), Run::at(PAGE, 2 * PAGE)];
        let mut space = Space {
            pid: HostPid::own(),
            before: &[],
            running: true,
            keep_lazy: false,
        };
        let mut go = |running| {
            space.running = running;
            let file = dir.create_out("pages-1.img").unwrap();
            write(&dir, &space, "pagemap-1.img", (1, Sink::Plain(file)), &runs)
        };
        let w = go(true).unwrap();
        assert_eq!((w.pages, w.lost), (3, vec![(PAGE, 3 * PAGE)]));
        let bytes = std::fs::read(tmp.path().join("pages-1.img")).unwrap();
        assert!(bytes[..4096].iter().all(|b| *b == 7) && bytes[4096..].iter().all(|b| *b == 0));
        assert!(go(false).is_err());
    }
}
