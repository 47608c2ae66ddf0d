//! Deduplication of incremental images: pages that a later dump has again are taken out of the folders before it, by holes.
use crate::error::{Blame, Error, Result};
use crate::pages::{self, IN_PARENT, PAGE, PRESENT};
use stasis_proto::{ImageDir, Kind};
use std::fs::File;
use tracing::debug;

/// Takes all pages that the pages images of `dir` hold out of the images of the dumps before. The folder knows those
/// ([`ImageDir::with_parents`]); the link `parent` of each must lead on.
///
/// Afterwards only the last dump can be restored. Gives the number of bytes freed, as far as they took room.
///
/// # Errors
/// E5702: there is no folder before; those of reading the pagemaps; E6701.
pub fn dedup(dir: &ImageDir) -> Result<u64> {
    if dir.parent().is_none() {
        return Err(Error::new("E5702", Blame::Image, "nothing to deduplicate")
            .why("the folder has no link `parent` to the images of a dump before it")
            .advice("name the folder of an incremental dump"));
    }
    let mut freed = 0;
    for name in dir.list()? {
        if !name.starts_with("pagemap-") {
            continue;
        }
        let (_, all) = pages::entries(dir, &name)?;
        let held = all.iter().filter(|e| {
            let flags = e.flags.unwrap_or(0);
            flags & PRESENT != 0 && flags & IN_PARENT == 0
        });
        let held: Vec<(u64, u64)> = held
            .map(|e| (e.vaddr, e.vaddr + e.nr_pages.unwrap_or(0) * PAGE))
            .collect();
        let mut at = dir.parent();
        while let Some(parent) = at {
            if parent.exists(&name)? {
                freed += punch(parent, &name, &held)?;
            }
            at = parent.parent();
        }
    }
    debug!("{freed} bytes of older images are freed");
    Ok(freed)
}

/// Frees the pages in these sorted ranges.
fn punch(dir: &ImageDir, name: &str, ranges: &[(u64, u64)]) -> Result<u64> {
    let (id, all) = pages::entries(dir, name)?;
    let mut holes: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    for e in &all {
        let len = e.nr_pages.unwrap_or(0) * PAGE;
        let flags = e.flags.unwrap_or(0);
        if flags & PRESENT == 0 || flags & IN_PARENT != 0 {
            continue;
        }
        let first = ranges.partition_point(|r| r.1 <= e.vaddr);
        for (a, b) in ranges[first..].iter().take_while(|r| r.0 < e.vaddr + len) {
            let (from, to) = ((*a).max(e.vaddr), (*b).min(e.vaddr + len));
            holes.push((at + (from - e.vaddr), to - from));
        }
        at += len;
    }
    if holes.is_empty() {
        return Ok(0);
    }
    let file = dir.open_to_change(&Kind::Pages.file_of(id))?;
    free(&file, &holes)
}

/// Makes holes (offset, length).
pub(crate) fn free(file: &File, holes: &[(u64, u64)]) -> Result<u64> {
    use nix::fcntl::FallocateFlags;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let blocks = || {
        file.metadata()
            .map_or(0, |m| std::os::unix::fs::MetadataExt::blocks(&m) * 512)
    };
    let before = blocks();
    for (at, len) in holes {
        nix::fcntl::fallocate(file, flags, *at as i64, *len as i64).map_err(|e| {
            Error::new(
                "E6701",
                Blame::Host,
                "pages cannot be taken out of an image",
            )
            .why(e)
            .advice("deduplicate on a file system that knows holes (ext4, xfs, btrfs, tmpfs)")
        })?;
    }
    Ok(before.saturating_sub(blocks()))
}
