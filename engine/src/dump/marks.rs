//! What pages of shared memory held when they were saved: by that a later dump knows which it need not save again.
//!
//! Nothing tells all who write shared memory. Write protection does not see write(2) on a descriptor, nor mappings that came and
//! went between two dumps: those of children that have ended, and of strangers. So the memory is read again, and each page's
//! *mark* is compared with that of the dump before. This is slower than asking the kernel (a few GB/s) and faster than sending.
//!
//! A mark is what AES-GCM authenticates a page with, under a key that only the images know: two different pages have the
//! same with a chance below 2^-119, whatever a program writes that does not know the key. Marks lie in marks-shmem-ID.img of the
//! dump that tracks, and count only for pages that its pagemap has.
use crate::error::{Blame, Error, Result};
use crate::pages::{PAGE, Pages};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;

/// A mark, in bytes.
pub const LEN: usize = 16;
/// Marks in a record of the image.
const TOGETHER: usize = 1 << 16;

/// Makes marks.
pub struct Marker {
    key: [u8; 16],
    gcm: LessSafeKey,
}

impl Marker {
    /// With this key.
    fn with(key: [u8; 16]) -> Result<Self> {
        let gcm = UnboundKey::new(&AES_128_GCM, &key);
        let gcm = gcm.map_err(|_| Error::bug("a key of 16 bytes is refused"))?;
        Ok(Self {
            key,
            gcm: LessSafeKey::new(gcm),
        })
    }
    /// With a new key.
    ///
    /// # Errors
    /// E6700.
    pub fn fresh() -> Result<Self> {
        Self::with(crate::migrate::wire::new_token()?)
    }
    /// The mark of a page.
    fn mark(&self, page: &[u8]) -> Result<[u8; LEN]> {
        // one nonce for all: marks are compared, and nothing that is sealed is ever shown. A page is sealed, not only
        // authenticated, because that is what is fast: both are done in one go
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let mut sealed = [0; PAGE as usize];
        let sealed = sealed.get_mut(..page.len());
        let sealed = sealed.ok_or_else(|| Error::bug("a page is too long to be marked"))?;
        sealed.copy_from_slice(page);
        let tag = self
            .gcm
            .seal_in_place_separate_tag(nonce, Aad::empty(), sealed);
        let tag = tag.map_err(|_| Error::bug("a page cannot be marked"))?;
        let mut mark = [0; LEN];
        mark.copy_from_slice(tag.as_ref());
        Ok(mark)
    }
    /// Appends the marks of pages.
    ///
    /// # Errors
    /// None that can happen.
    pub fn marks(&self, pages: &[u8], out: &mut Vec<u8>) -> Result<()> {
        for page in pages.chunks(PAGE as usize) {
            out.extend(self.mark(page)?);
        }
        Ok(())
    }
}

/// The marks of an object in the dump before.
pub struct Before {
    /// Makes marks that can be compared with them.
    pub marker: Marker,
    /// By offset of the first page.
    marks: BTreeMap<u64, Vec<u8>>,
    /// What that dump's pagemap has: start, end.
    held: Vec<(u64, u64)>,
}

impl Before {
    /// Those of an object, if the dump before left some.
    ///
    /// # Errors
    /// E5001: damaged images.
    pub fn find(dir: &ImageDir, shmid: u64) -> Result<Option<Self>> {
        let name = Kind::Marks.file_of(shmid);
        let Some(parent) = dir.parent() else {
            return Ok(None);
        };
        // of a folder that is not complete nothing is sure to be there
        if !parent.exists(&name)? || !parent.exists(&Kind::Inventory.file())? {
            return Ok(None);
        }
        let bad = || {
            Error::new("E5001", Blame::Image, name.clone())
                .why("its marks make no sense")
                .advice("dump without a dump before")
        };
        let mut image = parent.reader(&name)?;
        let head: pb::StasisMarksHead = image.read()?.ok_or_else(bad)?;
        let key = head.key.try_into().map_err(|_| bad())?;
        let all: Vec<pb::StasisMarksEntry> = image.read_rest()?;
        let pages = Pages::map(parent, &Kind::ShmemPagemap.file_of(shmid))?;
        Ok(Some(Self {
            marker: Marker::with(key)?,
            marks: all.into_iter().map(|e| (e.start, e.marks)).collect(),
            held: pages.runs.iter().map(|r| (r.0, r.0 + r.1)).collect(),
        }))
    }
    /// Whether that dump holds the page at an offset with this mark.
    pub fn has(&self, at: u64, mark: &[u8]) -> bool {
        let held = self.held.partition_point(|h| h.1 <= at);
        if self.held.get(held).is_none_or(|h| h.0 > at) {
            return false;
        }
        let Some((start, marks)) = self.marks.range(..=at).next_back() else {
            return false;
        };
        let from = ((at - start) / PAGE) as usize * LEN;
        marks.get(from..from + LEN) == Some(mark)
    }
}

/// Writes marks of pages: their offsets, in order, each with its mark.
///
/// # Errors
/// Those of writing.
pub fn write<'a>(
    dir: &ImageDir,
    shmid: u64,
    marker: &Marker,
    all: impl IntoIterator<Item = (u64, &'a [u8])>,
) -> Result<()> {
    let mut image = dir.writer(&Kind::Marks.file_of(shmid))?;
    let key = marker.key.to_vec();
    image.write(&pb::StasisMarksHead { key })?;
    let mut open: Option<pb::StasisMarksEntry> = None;
    for (at, marks) in all {
        let goes_on = open.as_mut().filter(|e| {
            let n = (e.marks.len() / LEN) as u64;
            e.start + n * PAGE == at && e.marks.len() < TOGETHER * LEN
        });
        if let Some(e) = goes_on {
            e.marks.extend(marks);
            continue;
        }
        let next = pb::StasisMarksEntry {
            start: at,
            marks: marks.to_vec(),
        };
        if let Some(e) = open.replace(next) {
            image.write(&e)?;
        }
    }
    if let Some(e) = open {
        image.write(&e)?;
    }
    Ok(image.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_proto::pb::PagemapEntry;

    #[test]
    fn marks_count_only_for_pages_that_the_dump_before_has() {
        let tmp = tempfile::tempdir().unwrap();
        let parent = ImageDir::create(&tmp.path().join("1")).unwrap();
        let m = Marker::fresh().unwrap();
        let (a, b) = ([1u8; PAGE as usize], [2u8; PAGE as usize]);
        let of = |m: &Marker, page: &[u8]| m.mark(page).unwrap();
        let (of_a, of_b) = (of(&m, &a), of(&m, &b));
        assert_ne!(of_a, of_b);
        assert_eq!(of_a, of(&Marker::with(m.key).unwrap(), &a));
        assert_ne!(of_a, of(&Marker::fresh().unwrap(), &a));
        let two = [of_a, of_b].concat();
        write(
            &parent,
            7,
            &m,
            [(0, &two[..]), (2 * PAGE, &of_a), (9 * PAGE, &of_b)],
        )
        .unwrap();
        let name = Kind::ShmemPagemap.file_of(7u64);
        let mut map = parent.writer(&name).unwrap();
        map.write(&pb::PagemapHead { pages_id: 1 }).unwrap();
        let entry = PagemapEntry {
            vaddr: 0,
            nr_pages: Some(2),
            flags: Some(crate::pages::PRESENT),
            ..Default::default()
        };
        map.write(&entry).unwrap();
        map.finish().unwrap();
        let child = || {
            let dir = ImageDir::create(&tmp.path().join("2")).unwrap();
            dir.with_parents(Some(std::path::Path::new("../1")))
                .unwrap()
        };
        assert!(Before::find(&child(), 7).unwrap().is_none());
        parent
            .commit_inventory(&pb::InventoryEntry::default())
            .unwrap();
        let dir = child();
        assert!(Before::find(&dir, 8).unwrap().is_none());
        let before = Before::find(&dir, 7).unwrap().unwrap();
        assert!(before.has(0, &of_a) && before.has(PAGE, &of_b));
        assert!(!before.has(0, &of_b) && !before.has(PAGE, &of_a));
        // marks without pages
        assert!(!before.has(2 * PAGE, &of_a) && !before.has(9 * PAGE, &of_b));
    }
}
