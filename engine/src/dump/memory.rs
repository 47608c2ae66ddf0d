//! Pages: from stopped tasks into pages images, by several threads that never touch ptrace.
//!
//! The engine reads with process_vm_readv into a small buffer that stays in the cache and writes it out; memory use does
//! not depend on the target's size.
use super::mm::Run;
use crate::error::{Blame, Error, Result};
use crate::workers;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::vm;
use stasis_proto::{ImageDir, pb};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes moved at a time: fits the second-level cache.
const PIECE: u64 = 256 * 1024;
const PRESENT: u32 = 4;
const LAZY: u32 = 2;

/// Writes pagemap-ID.img and pages-N.img of one address space. Gives the number of pages.
pub fn write(
    dir: &ImageDir,
    pid: HostPid,
    image: &str,
    (pages_id, file): (u32, File),
    runs: &[Run],
) -> Result<u64> {
    let mut w = dir.writer(image)?;
    w.write(&pb::PagemapHead { pages_id })?;
    let mut pieces = Vec::new();
    let mut offset = 0;
    for r in runs {
        w.write(&pb::PagemapEntry {
            vaddr: r.start,
            compat_nr_pages: crate::kinds::shmem::compat_pages(r.len / 4096),
            nr_pages: Some(r.len / 4096),
            flags: Some(PRESENT | if r.lazy { LAZY } else { 0 }),
            in_parent: None,
        })?;
        let mut at = 0;
        while at < r.len {
            let len = PIECE.min(r.len - at);
            pieces.push(Piece {
                addr: r.start + at,
                at: offset + at,
                len,
                shared: r.shared,
            });
            at += len;
        }
        offset += r.len;
    }
    w.finish()?;
    copy(pid, &file, &pieces)?;
    // room made before the freeze was a guess
    file.set_len(offset)
        .map_err(|e| Error::new("E6001", Blame::Host, "cannot write pages").why(e))?;
    Ok(offset / 4096)
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

/// Moves pieces, neighbouring small ones in one call.
fn copy(pid: HostPid, file: &File, pieces: &[Piece]) -> Result<()> {
    let total: u64 = pieces.iter().map(|p| p.len).sum();
    let groups = group(pieces);
    workers::each(
        total,
        &groups,
        || vec![0u8; PIECE as usize],
        |g, buf| piece(pid, file, &pieces[g.0..g.1], buf),
    )
}

/// Index ranges of pieces that together fit one buffer; their file offsets follow each other by construction.
fn group(pieces: &[Piece]) -> Vec<(usize, usize)> {
    let mut groups = Vec::new();
    let (mut from, mut sum) = (0, 0);
    for (i, p) in pieces.iter().enumerate() {
        if i > from && (sum + p.len > PIECE || i - from >= 512 || p.shared != pieces[from].shared) {
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

fn piece(pid: HostPid, file: &File, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
    let n: u64 = pieces.iter().map(|p| p.len).sum();
    let buf = &mut buf[..n as usize];
    // KERNEL(>=5.19): process_vm_readv pins pages and so gives the reader's victim a copy of each page it shares with a
    // relative (mm/gup.c, gup_must_unshare): the tree would need its memory twice. /proc/PID/mem does not pin.
    if pieces.iter().any(|p| p.shared) || !fast(pid, pieces, buf) {
        // it also reads pages without PROT_READ
        let mem = vm::Mem::open(pid)?;
        let mut at = 0;
        for p in pieces {
            mem.read(RemotePtr(p.addr), &mut buf[at..at + p.len as usize])?;
            at += p.len as usize;
        }
    }
    file.write_all_at(buf, pieces[0].at).map_err(|e| {
        let blame = Error::new("E6001", Blame::Host, "cannot write pages").why(e);
        blame.advice("make room where the images go")
    })
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
