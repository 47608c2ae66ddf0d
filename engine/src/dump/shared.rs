//! Saving shared memory: its pages into a pages image, or to another host; those that the dump before has are left to it.
use super::marks::{self, Before, LEN, Marker};
use super::sink::Sink;
use crate::error::Result;
use crate::kinds::shmem::{compat_pages, read_padded};
use crate::options::MemoryOptions;
use crate::pages::{IN_PARENT, PAGE, PRESENT};
use crate::workers;
use stasis_proto::archive::Out;
use stasis_proto::{ImageDir, Kind, pb};
use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes moved at a time: fits the second-level cache.
const PIECE: u64 = 256 * 1024;

/// What is saved, and as what.
pub struct Object<'a> {
    /// Open for reading.
    pub file: &'a File,
    /// The number of its pagemap.
    pub shmid: u64,
    /// The number of its pages image.
    pub pages_id: u32,
    /// What of it holds data: start, end; sorted, in whole pages.
    pub runs: &'a [(u64, u64)],
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Saved {
    /// Pages written.
    pub pages: u64,
    /// Pages left to the dump before.
    pub skipped: u64,
    /// How long it took to compare all with the dump before.
    pub comparing: Duration,
}

impl std::ops::AddAssign for Saved {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.skipped += other.skipped;
        self.comparing += other.comparing;
    }
}

/// A piece of the object.
struct Piece {
    at: u64,
    len: u64,
    /// Offset in the pages image.
    to: u64,
    /// Marks of its pages.
    marks: Mutex<Vec<u8>>,
}

fn cut(pieces: &mut Vec<Piece>, (start, end): (u64, u64), offset: &mut u64) {
    let mut at = start;
    while at < end {
        let len = PIECE.min(end - at);
        pieces.push(Piece {
            at,
            len,
            to: *offset,
            marks: Mutex::default(),
        });
        at += len;
        *offset += len;
    }
}

fn marks_of(p: &Piece) -> std::sync::MutexGuard<'_, Vec<u8>> {
    p.marks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads pieces and makes marks; `then` gets what was read.
fn each(
    o: &Object,
    pieces: &[Piece],
    marker: Option<&Marker>,
    then: impl Fn(&Piece, &[u8], &mut Vec<u8>) -> Result<()> + Sync,
) -> Result<()> {
    let total = pieces.iter().map(|p| p.len).sum();
    let state = || (vec![0u8; PIECE as usize], Vec::new());
    workers::each(total, pieces, state, |p, (buf, room)| {
        let buf = &mut buf[..p.len as usize];
        read_padded(o.file, buf, p.at)?;
        if let Some(m) = marker {
            let mut marks = marks_of(p);
            marks.clear();
            m.marks(buf, &mut marks)?;
        }
        then(p, buf, room)
    })
}

/// Runs of pages (start, end) and whether the dump before has them.
fn compared(pieces: &[Piece], before: &Before) -> Vec<(u64, u64, bool)> {
    let mut out: Vec<(u64, u64, bool)> = Vec::new();
    for p in pieces {
        let marks = marks_of(p);
        for (at, mark) in (p.at..).step_by(PAGE as usize).zip(marks.chunks(LEN)) {
            let has = before.has(at, mark);
            match out.last_mut() {
                Some(l) if l.1 == at && l.2 == has => l.1 += PAGE,
                _ => out.push((at, at + PAGE, has)),
            }
        }
    }
    out
}

/// Writes pagemap-shmem-ID.img and the pages. With `track`, marks for a dump to come, too.
///
/// # Errors
/// Those of reading and writing.
pub fn save(dir: &ImageDir, o: &Object, options: &MemoryOptions, track: bool) -> Result<Saved> {
    let before = match options.parent {
        Some(_) => Before::find(dir, o.shmid)?,
        None => None,
    };
    let fresh = match (&before, track) {
        (None, true) => Some(Marker::fresh()?),
        _ => None,
    };
    let (mut all, mut offset) = (Vec::new(), 0);
    for run in o.runs {
        cut(&mut all, *run, &mut offset);
    }
    let mut runs: Vec<(u64, u64, bool)> = o.runs.iter().map(|r| (r.0, r.1, false)).collect();
    let begun = Instant::now();
    if let Some(b) = &before {
        each(o, &all, Some(&b.marker), |_, _, _| Ok(()))?;
        runs = compared(&all, b);
    }
    let comparing = begun.elapsed();
    let mut map = dir.writer(&Kind::ShmemPagemap.file_of(o.shmid))?;
    map.write(&pb::PagemapHead {
        pages_id: o.pages_id,
    })?;
    let (mut pieces, mut len, mut skipped) = (Vec::new(), 0, 0);
    for (start, end, has) in runs {
        map.write(&pb::PagemapEntry {
            vaddr: start,
            compat_nr_pages: compat_pages((end - start) / PAGE),
            flags: Some(if has { IN_PARENT } else { PRESENT }),
            nr_pages: Some((end - start) / PAGE),
            ..Default::default()
        })?;
        match has {
            true => skipped += (end - start) / PAGE,
            false => cut(&mut pieces, (start, end), &mut len),
        }
    }
    map.finish()?;
    let to = match &options.stream {
        Some(s) => Sink::Remote(s.image(o.pages_id)),
        None => Sink::Plain(Out::File(dir.create_raw(&Kind::Pages.file_of(o.pages_id))?)),
    };
    let marker = before.as_ref().map(|b| &b.marker).or(fresh.as_ref());
    // the tree may run: the mark is of what was saved
    each(o, &pieces, marker.filter(|_| track), |p, bytes, room| {
        to.put(p.to, bytes, room)
    })?;
    to.finish(dir, o.pages_id, len)?;
    if let Some(m) = marker.filter(|_| track) {
        keep(dir, o.shmid, m, &all, &pieces)?;
    }
    Ok(Saved {
        pages: len / PAGE,
        skipped,
        comparing,
    })
}

/// Writes the marks of all pages: of those that were saved as they were then, of others as they were compared.
fn keep(dir: &ImageDir, shmid: u64, m: &Marker, all: &[Piece], saved: &[Piece]) -> Result<()> {
    let mut pages = std::collections::BTreeMap::new();
    for p in all.iter().chain(saved) {
        let marks = marks_of(p);
        for (at, mark) in (p.at..).step_by(PAGE as usize).zip(marks.chunks_exact(LEN)) {
            let mut own = [0; LEN];
            own.copy_from_slice(mark);
            pages.insert(at, own);
        }
    }
    marks::write(
        dir,
        shmid,
        m,
        pages.iter().map(|(at, mark)| (*at, &mark[..])),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::Pages;
    use stasis_kernel::fds;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    #[test]
    fn only_what_differs_from_the_dump_before_is_saved_again() {
        const N: u64 = 300;
        let file = File::from(fds::memfd_create(c"object", 0).unwrap());
        let byte = |page: u64, b: u8| file.write_all_at(&[b; PAGE as usize], page * PAGE).unwrap();
        (0..N).filter(|p| *p != 100).for_each(|p| byte(p, p as u8));
        let runs = [(0, 100 * PAGE), (101 * PAGE, N * PAGE)];
        let tmp = tempfile::tempdir().unwrap();
        let round = |n: u64, runs: &[(u64, u64)], track| {
            let dir = ImageDir::create(&tmp.path().join(n.to_string())).unwrap();
            let parent = format!("../{}", n - 1);
            let (dir, parent) = match n {
                1 => (dir, None),
                _ => {
                    let dir = dir.with_parents(Some(Path::new(&parent))).unwrap();
                    dir.link_parent(Path::new(&parent)).unwrap();
                    (dir, Some(parent.into()))
                }
            };
            let options = MemoryOptions {
                parent,
                ..MemoryOptions::default()
            };
            let o = Object {
                file: &file,
                shmid: 5,
                pages_id: 1,
                runs,
            };
            let saved = save(&dir, &o, &options, track).unwrap();
            dir.commit_inventory(&pb::InventoryEntry::default())
                .unwrap();
            // what a reader gets through all folders is what the file holds
            let pages = Pages::load(&dir, &Kind::ShmemPagemap.file_of(5u64)).unwrap();
            let store = pages.open(&dir).unwrap();
            for (at, len, place) in pages.runs {
                let (mut is, mut was) = (vec![0; len as usize], vec![0; len as usize]);
                store.read(&mut is, place).unwrap();
                file.read_exact_at(&mut was, at).unwrap();
                assert!(is == was, "round {n}, offset {at:#x}");
            }
            (saved.pages, saved.skipped)
        };
        assert_eq!(round(1, &runs, true), (N - 1, 0));
        byte(7, 1);
        byte(200, 2);
        byte(100, 3);
        // a page that was written with what it held
        byte(8, 8);
        let runs = [(0, N * PAGE)];
        assert_eq!(round(2, &runs, true), (3, N - 3));
        byte(200, 4);
        byte(7, 7);
        assert_eq!(round(3, &runs, false), (2, N - 2));
        // nothing tells what that one held
        assert_eq!(round(4, &runs, true), (N, 0));
    }
}
