//! Where the pages of a pagemap lie: in the pages image of its own folder, or of a dump before it.
//!
//! An incremental dump writes what changed; for the rest its pagemap says "as in the parent". Resolved, a pagemap is a list of
//! runs, each with its *place*: the number of a source (one pages image of one folder) and the offset in it.
use crate::error::{Blame, Error, Result};
use crate::far::Far;
use crate::packed::Packed;
use stasis_proto::archive::In;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// The page size of the format, in bytes.
pub const PAGE: u64 = 4096;

/// `pagemap_entry.flags`: the pages are in the images of the dump before.
pub const IN_PARENT: u32 = 1;
/// May be brought later, after the tree runs.
pub const LAZY: u32 = 2;
/// The pages are in the pages image.
pub const PRESENT: u32 = 4;

/// An extension: another task has the same pages, and they are in its pages image (`pagemap_entry.stasis`).
pub const SAME: u32 = 1 << 8;

/// Bits of a place that are the offset; those above are the source's number.
const OFFSET_BITS: u32 = 47;

/// A run of pages: address (or offset in a shared object), length, place; all in bytes.
pub type Run = (u64, u64, u64);

/// A pages image: how many dumps before, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// 0: the folder itself; 1: its parent; and so on; or [`FAR`].
    pub level: usize,
    /// N of pages-N.img; of a far source, the process.
    pub id: u32,
}

/// The level of pages that were left with whoever dumped them. Their offsets are their addresses then.
pub const FAR: usize = usize::MAX;

impl Source {
    /// The image as a file whose bytes are the pages.
    ///
    /// # Errors
    /// E5002, E5729: there is none; those of opening.
    pub fn plain(self, dir: &ImageDir) -> Result<std::fs::File> {
        match self.open(dir, None)? {
            (Image::Plain(In::File(f)), _) => Ok(f),
            (Image::Plain(In::Pieces(..)), name) => Err(Error::new("E5729", Blame::Image, name)
                .why("its pages lie in pieces of one file, so they cannot be mapped")
                .advice("restore with --lazy, or without it")),
            (Image::Far(..), name) => Err(left_behind(&name)),
            (Image::Packed(_), name) => Err(Error::new("E5729", Blame::Image, name)
                .why("its pages are compressed, so they cannot be mapped")
                .advice("restore with --lazy, or without it")),
        }
    }
    fn open(self, dir: &ImageDir, far: Option<&Arc<Far>>) -> Result<(Image, String)> {
        let name = Kind::Pages.file_of(self.id);
        if self.level == FAR {
            let image = Image::Far(far.cloned(), self.id);
            return Ok((image, format!("pages of process {}", self.id)));
        }
        let folder = dir
            .ancestor(self.level)
            .ok_or_else(|| Error::bug("a parent folder is not open"))?;
        let file = match Packed::open(folder, self.id)? {
            Some(p) => Image::Packed(p),
            None => Image::Plain(folder.open_in(&name)?),
        };
        let name = match self.level {
            0 => name,
            1 => format!("{name} of the dump before"),
            n => format!("{name} of {n} dumps before"),
        };
        Ok((file, name))
    }
}

/// A resolved pagemap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pages {
    /// In order, without overlaps.
    pub runs: Vec<Run>,
    /// What their places lie in.
    pub sources: Vec<Source>,
    /// What may come when the process runs: start, end.
    pub lazy: Vec<(u64, u64)>,
}

/// Offset `at` in source `source`.
fn place(source: usize, at: u64) -> u64 {
    (source as u64) << OFFSET_BITS | at
}

/// The source of a place, and the offset there.
pub fn split(place: u64) -> (usize, u64) {
    (
        (place >> OFFSET_BITS) as usize,
        place & ((1 << OFFSET_BITS) - 1),
    )
}

fn bad(name: &str, why: &str) -> Error {
    Error::new("E5001", Blame::Image, name)
        .why(why)
        .advice("the image is damaged or was made by something else: dump again")
}

/// The entries of a pagemap as they are, checked: in order, without overlaps, lengths and flags filled in; and the number of
/// its pages image.
///
/// # Errors
/// E5001, and those of reading.
pub fn entries(dir: &ImageDir, name: &str) -> Result<(u32, Vec<pb::PagemapEntry>)> {
    let mut r = dir.reader(name)?;
    let head: pb::PagemapHead = r.read()?.ok_or_else(|| bad(name, "it is empty"))?;
    let mut all: Vec<pb::PagemapEntry> = r.read_rest()?;
    let mut end = 0;
    for e in &mut all {
        let n = *e.nr_pages.get_or_insert(u64::from(e.compat_nr_pages));
        // images from before 2016 have no flags and mark only what the parent has
        e.flags = Some(match (e.in_parent, e.flags) {
            (Some(true), f) => f.unwrap_or(0) | IN_PARENT,
            (_, Some(f)) => f,
            (_, None) => PRESENT,
        });
        let next = n
            .checked_mul(PAGE)
            .and_then(|n| n.checked_add(e.vaddr))
            .filter(|n| *n <= u64::MAX >> 1);
        match next {
            Some(n) if e.vaddr >= end && e.vaddr % PAGE == 0 => end = n,
            _ => return Err(bad(name, "its entries overlap or leave the address space")),
        }
    }
    Ok((head.pages_id, all))
}

impl Pages {
    /// Reads a pagemap and finds the place of every page, through all folders before; checks that the images are long enough.
    ///
    /// # Errors
    /// E5001, E5002, E5021, E5701; those of reading.
    pub fn load(dir: &ImageDir, name: &str) -> Result<Self> {
        Self::resolve(dir, name, true)
    }

    /// As [`Pages::load`], but the pages images may lie elsewhere: they are not looked at.
    ///
    /// # Errors
    /// E5001, E5002, E5701; those of reading.
    pub fn map(dir: &ImageDir, name: &str) -> Result<Self> {
        Self::resolve(dir, name, false)
    }

    fn resolve(dir: &ImageDir, name: &str, check: bool) -> Result<Self> {
        let pages = Self::level(dir, dir, name, 0, check)?;
        if pages.sources.len() >= 1 << (63 - OFFSET_BITS) {
            return Err(bad(name, "too many dumps build on each other"));
        }
        Ok(pages)
    }

    fn level(
        base: &ImageDir,
        dir: &ImageDir,
        name: &str,
        level: usize,
        check: bool,
    ) -> Result<Self> {
        let (id, all) = entries(dir, name)?;
        let mut pages = Self::own(base, dir, name, (level, check), (id, &all), false)?;
        // by task: its pages, and the number of its first source
        let mut others: BTreeMap<u32, (Pages, usize)> = BTreeMap::new();
        for e in all.iter().filter(|e| e.flags() & SAME != 0) {
            let (from, len) = (e.stasis.unwrap_or_default(), e.nr_pages() * PAGE);
            let of = from.same_pid();
            let (theirs, first) = match others.entry(of) {
                Entry::Occupied(o) => o.into_mut(),
                Entry::Vacant(v) => {
                    let theirs = Kind::Pagemap.file_of(of);
                    let (id, all) = entries(dir, &theirs)?;
                    let own = (id, &all[..]);
                    let theirs = Self::own(base, dir, &theirs, (level, check), own, true)?;
                    let first = pages.sources.len();
                    pages.sources.extend(&theirs.sources);
                    v.insert((theirs, first))
                }
            };
            let start = from.same_vaddr();
            let found = match start.checked_add(len) {
                Some(_) => theirs.moved(start, len, e.vaddr, *first),
                None => Vec::new(),
            };
            if found.iter().map(|r| r.1).sum::<u64>() != len {
                return Err(bad(name, "pages of another task are not there"));
            }
            pages.runs.extend(found);
        }
        if !others.is_empty() {
            pages.runs.sort_unstable();
        }
        Ok(pages)
    }

    /// What a pagemap with these entries says without the pages of other tasks; `present`: only what lies in its own pages image.
    fn own(
        base: &ImageDir,
        dir: &ImageDir,
        name: &str,
        (level, check): (usize, bool),
        (id, all): (u32, &[pb::PagemapEntry]),
        present: bool,
    ) -> Result<Self> {
        let mut pages = Pages {
            runs: Vec::with_capacity(all.len()),
            sources: vec![Source { level, id }],
            lazy: Vec::new(),
        };
        let mut far = Vec::new();
        let mut before: Option<Pages> = None;
        let mut at = 0;
        for e in all {
            let (len, flags) = (e.nr_pages.unwrap_or(0) * PAGE, e.flags.unwrap_or(0));
            if flags & LAZY != 0 {
                pages.lazy.push((e.vaddr, e.vaddr + len));
            }
            if flags & SAME != 0 || present && flags & PRESENT == 0 {
                continue;
            }
            if flags & IN_PARENT != 0 {
                let before = match &mut before {
                    Some(b) => b,
                    None => before.insert(Self::before(base, dir, name, level, check)?),
                };
                before
                    .take(e.vaddr, len, &mut pages.runs)
                    .ok_or_else(|| gap(name, e.vaddr, level))?;
            } else if flags & PRESENT != 0 {
                if at + len >= 1 << OFFSET_BITS {
                    return Err(bad(name, "it names more pages than a file can hold"));
                }
                pages.runs.push((e.vaddr, len, place(0, at)));
                at += len;
            } else if level == 0 && flags & LAZY != 0 && e.vaddr + len < 1 << OFFSET_BITS {
                far.push(pages.runs.len());
                pages.runs.push((e.vaddr, len, e.vaddr));
            } else {
                return Err(left_behind(name));
            }
        }
        pages
            .sources
            .extend(before.map(|b| b.sources).into_iter().flatten());
        if !far.is_empty() {
            let id = name
                .trim_start_matches("pagemap-")
                .trim_end_matches(".img")
                .parse()
                .map_err(|_| left_behind(name))?;
            for i in far {
                pages.runs[i].2 = place(pages.sources.len(), pages.runs[i].0);
            }
            pages.sources.push(Source { level: FAR, id });
        }
        if at > 0 && check {
            let (image, name) = pages.sources[0].open(base, None)?;
            let size = match image {
                Image::Packed(p) => p.size(),
                Image::Plain(f) => f.size().map_err(|e| bad(&name, &e.to_string()))?,
                Image::Far(..) => at,
            };
            if size < at {
                return Err(Error::new("E5021", Blame::Image, name)
                    .why("it is shorter than its pagemap says")
                    .advice("the image is truncated: copy or dump it again"));
            }
        }
        Ok(pages)
    }

    /// The pagemap of the same name one dump before, its sources numbered from 1.
    fn before(
        base: &ImageDir,
        dir: &ImageDir,
        name: &str,
        level: usize,
        check: bool,
    ) -> Result<Self> {
        let Some(parent) = dir.parent() else {
            return Err(Error::new("E5701", Blame::Image, name)
                .why("some of its pages are in the images of the dump before, and the folder has no link `parent` to them")
                .advice("put the folders of all dumps next to each other again, or name the one before by --prev-images-dir"));
        };
        if !parent.exists(name)? {
            return Err(gap(name, 0, level));
        }
        let mut b = Self::level(base, parent, name, level + 1, check)?;
        for r in &mut b.runs {
            r.2 += place(1, 0);
        }
        Ok(b)
    }

    /// Copies the runs of `start..start+len`; `None` if not all of it is there.
    fn take(&self, start: u64, len: u64, into: &mut Vec<Run>) -> Option<()> {
        let end = start + len;
        let mut at = start;
        let first = self.runs.partition_point(|r| r.0 + r.1 <= start);
        for (a, n, place) in &self.runs[first..] {
            if at >= end {
                break;
            }
            if *a > at {
                return None;
            }
            let stop = end.min(a + n);
            into.push((at, stop - at, place + (at - a)));
            at = stop;
        }
        (at >= end).then_some(())
    }

    /// The runs of `from..from+len`, moved to `to`, with the numbers of sources counted from `first` on.
    pub fn moved(&self, from: u64, len: u64, to: u64, first: usize) -> Vec<Run> {
        let at = self.runs.partition_point(|r| r.0 + r.1 <= from);
        let there = self.runs[at..].iter().take_while(|r| r.0 < from + len);
        there
            .map(|(a, n, p)| {
                let (start, end) = ((*a).max(from), (a + n).min(from + len));
                (
                    start - from + to,
                    end - start,
                    p + (start - a) + place(first, 0),
                )
            })
            .collect()
    }

    /// Whether a run was left with whoever dumped it.
    pub fn is_far(&self, run: &Run) -> bool {
        self.sources
            .get(split(run.2).0)
            .is_some_and(|s| s.level == FAR)
    }

    /// Only what may come when the process runs.
    pub fn only_lazy(&self) -> Vec<Run> {
        let mut out = Vec::new();
        for (start, end) in &self.lazy {
            let first = self.runs.partition_point(|r| r.0 + r.1 <= *start);
            for (a, n, place) in self.runs[first..].iter().take_while(|r| r.0 < *end) {
                let (from, to) = ((*a).max(*start), (a + n).min(*end));
                out.push((from, to - from, place + (from - a)));
            }
        }
        out
    }

    /// Takes the pages out of their images, by holes.
    ///
    /// # Errors
    /// Those of opening; E6701.
    pub fn free(&self, dir: &ImageDir) -> Result<()> {
        for (i, s) in self.sources.iter().enumerate() {
            let own = |r: &&Run| split(r.2).0 == i;
            let holes = self.runs.iter().filter(own).map(|r| (split(r.2).1, r.1));
            let holes: Vec<(u64, u64)> = holes.collect();
            if let Some(folder) = dir.ancestor(s.level).filter(|_| !holes.is_empty()) {
                let file = folder.open_to_change(&Kind::Pages.file_of(s.id))?;
                crate::dedup::free(&file, &holes)?;
            }
        }
        Ok(())
    }

    /// Opens the images.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open(&self, dir: &ImageDir) -> Result<Store> {
        Store::open(dir, &self.sources)
    }
}

fn gap(name: &str, addr: u64, level: usize) -> Error {
    Error::new("E5701", Blame::Image, name)
        .why(format!(
            "it says that pages at {addr:#x} are in the images of the dump before it ({} before the last), and they are not",
            level + 1
        ))
        .advice("name the right folder by --prev-images-dir, or dump again without a parent")
}

/// Open pages images.
pub struct Store(Vec<(Image, String)>);

enum Image {
    Plain(In),
    Packed(Packed),
    /// At another host, if it can be reached: the pages of this process.
    Far(Option<Arc<Far>>, u32),
}

fn left_behind(name: &str) -> Error {
    Error::new("E5002", Blame::Image, name)
        .why("some of its pages were left with a page server (lazy pages), not written")
        .advice("restore with --lazy-pages while the page server runs")
}

impl Store {
    /// Opens the images of these sources.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open(dir: &ImageDir, sources: &[Source]) -> Result<Self> {
        Self::reaching(dir, sources, None)
    }
    /// The same; `far` reaches those who kept pages.
    ///
    /// # Errors
    /// Those of opening.
    pub fn reaching(dir: &ImageDir, sources: &[Source], far: Option<&Arc<Far>>) -> Result<Self> {
        sources
            .iter()
            .map(|p| p.open(dir, far))
            .collect::<Result<_>>()
            .map(Self)
    }
    /// Numbers of the open images.
    pub fn descriptors(&self) -> impl Iterator<Item = i32> {
        use std::os::fd::AsRawFd;
        self.0.iter().flat_map(|(i, _)| match i {
            Image::Plain(f) => vec![f.file().as_raw_fd()],
            Image::Packed(p) => vec![p.file.file().as_raw_fd()],
            Image::Far(far, _) => far.iter().flat_map(|f| f.descriptors()).collect(),
        })
    }
    /// All bytes of the first image, if it is not packed and not longer than `most`.
    ///
    /// # Errors
    /// E5020.
    pub fn whole(&self, most: u64) -> Result<Option<Vec<u8>>> {
        let Some((Image::Plain(file), name)) = self.0.first() else {
            return Ok(None);
        };
        let bad = |e| Error::new("E5020", Blame::Image, name.clone()).why(e);
        let len = file.size().map_err(bad)?;
        if len > most {
            return Ok(None);
        }
        let mut all = vec![0; len as usize];
        file.read_exact_at(&mut all, 0).map_err(bad)?;
        Ok(Some(all))
    }
    /// Reads bytes of one run.
    ///
    /// # Errors
    /// E5020.
    pub fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let (source, at) = split(at);
        let (image, name) = self
            .0
            .get(source)
            .ok_or_else(|| Error::bug("a place in no pages image"))?;
        let file = match image {
            Image::Packed(p) => return p.read(buf, at),
            Image::Plain(f) => f,
            Image::Far(Some(far), pid) => return far.fetch(*pid, at, buf),
            Image::Far(None, _) => return Err(left_behind(name)),
        };
        file.read_exact_at(buf, at)
            .map_err(|e| Error::new("E5020", Blame::Image, name.clone()).why(e))
    }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
