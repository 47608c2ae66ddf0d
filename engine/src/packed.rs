//! Compressed pages images, an extension: packed-N.img holds what pages-N.img would, in blocks that are compressed each for
//! itself, so that any page can be had alone; packed-index-N.img tells where they lie.
//!
//! A block that does not become smaller is stored as it is. Each has a checksum of its contents. CRIU does not know such
//! folders: it finds no pages-N.img.
use crate::error::{Blame, Error, Result};
use stasis_proto::{ImageDir, Kind, pb};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The largest block, unpacked, in bytes.
pub const BLOCK: usize = 256 * 1024;

/// `stasis_packed_entry.algorithm`: LZ4, block format.
const LZ4: u32 = 1;

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4: fast both ways.
    Lz4,
}

impl Compression {
    /// Its name in options and in the inventory.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Lz4 => "lz4",
        }
    }
}

/// A compressed image that is being written, by several threads.
pub struct Packer {
    file: File,
    end: AtomicU64,
    /// Offset of the contents, and where they lie.
    blocks: Mutex<Vec<(u64, pb::StasisPackedBlock)>>,
}

impl Packer {
    /// Begins packed-N.img.
    ///
    /// # Errors
    /// Those of creating it.
    pub fn create(dir: &ImageDir, id: u32) -> Result<Self> {
        Ok(Self {
            file: dir.create_raw(&Kind::Packed.file_of(id))?,
            end: AtomicU64::new(0),
            blocks: Mutex::default(),
        })
    }
    /// Writes the contents at an offset; `room` is anybody's to use.
    ///
    /// # Errors
    /// E6001.
    pub fn put(&self, at: u64, bytes: &[u8], room: &mut Vec<u8>) -> Result<()> {
        room.resize(lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
        let packed = match lz4_flex::block::compress_into(bytes, room) {
            // what saves less than one part in sixteen is not worth the work of restoring it
            Ok(n) if n < bytes.len() / 16 * 15 => &room[..n],
            _ => bytes,
        };
        let to = self.end.fetch_add(packed.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(packed, to).map_err(|e| {
            Error::new("E6001", Blame::Host, "cannot write pages")
                .why(e)
                .advice("make room where the images go")
        })?;
        let block = pb::StasisPackedBlock {
            at: to,
            len: packed.len() as u32,
            unpacked: bytes.len() as u32,
            crc32: crc32fast::hash(bytes),
        };
        let mut all = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((at, block));
        Ok(())
    }
    /// Writes the index. Gives the size of the file.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(self, dir: &ImageDir, id: u32) -> Result<u64> {
        let mut all = self
            .blocks
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        all.sort_unstable_by_key(|b| b.0);
        let entry = pb::StasisPackedEntry {
            algorithm: LZ4,
            blocks: all.into_iter().map(|b| b.1).collect(),
        };
        dir.write_one(&Kind::PackedIndex.file_of(id), &entry)?;
        Ok(self.end.into_inner())
    }
}

struct Block {
    /// Offset of its contents.
    from: u64,
    place: pb::StasisPackedBlock,
}

/// A compressed image that is read, by several threads.
pub struct Packed {
    /// The file.
    pub file: File,
    blocks: Vec<Block>,
    /// Bytes of contents.
    size: u64,
    /// The last block of which only a part was wanted.
    last: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
}

fn bad(why: impl Into<String>) -> Error {
    Error::new("E5720", Blame::Image, "compressed pages")
        .why(why.into())
        .advice("the image is damaged: copy it again or dump again")
}

impl Packed {
    /// Opens packed-N.img, if there is one.
    ///
    /// # Errors
    /// E5720; those of reading.
    pub fn open(dir: &ImageDir, id: u32) -> Result<Option<Self>> {
        let index = Kind::PackedIndex.file_of(id);
        if !dir.exists(&index)? {
            return Ok(None);
        }
        let entry: pb::StasisPackedEntry = dir.read_one(&index)?;
        if entry.algorithm != LZ4 {
            return Err(bad(format!("algorithm {} is not known", entry.algorithm)));
        }
        let file = dir.open_raw(&Kind::Packed.file_of(id))?;
        let len = file.metadata().map_err(|e| bad(e.to_string()))?.len();
        let mut size = 0;
        let mut blocks = Vec::with_capacity(entry.blocks.len());
        for place in entry.blocks {
            let end = place.at.checked_add(place.len.into());
            if end.is_none_or(|e| e > len)
                || place.unpacked == 0
                || place.unpacked as usize > BLOCK
                || place.len > place.unpacked
            {
                return Err(bad("a block lies outside of the file, or is too large"));
            }
            let from = size;
            size += u64::from(place.unpacked);
            blocks.push(Block { from, place });
        }
        Ok(Some(Self {
            file,
            blocks,
            size,
            last: Mutex::default(),
        }))
    }
    /// Bytes of contents.
    pub fn size(&self) -> u64 {
        self.size
    }
    fn unpack(&self, b: &Block, into: &mut [u8]) -> Result<()> {
        let read = |buf: &mut [u8]| {
            self.file
                .read_exact_at(buf, b.place.at)
                .map_err(|e| bad(e.to_string()))
        };
        if b.place.len == b.place.unpacked {
            read(into)?;
        } else {
            let mut packed = vec![0; b.place.len as usize];
            read(&mut packed)?;
            let n =
                lz4_flex::block::decompress_into(&packed, into).map_err(|e| bad(e.to_string()))?;
            if n != into.len() {
                return Err(bad("a block is shorter than it should be"));
            }
        }
        match crc32fast::hash(into) == b.place.crc32 {
            true => Ok(()),
            false => Err(bad("the checksum of a block does not fit")),
        }
    }
    /// Reads contents.
    ///
    /// # Errors
    /// E5720.
    pub fn read(&self, mut buf: &mut [u8], mut at: u64) -> Result<()> {
        while !buf.is_empty() {
            let i = self
                .blocks
                .partition_point(|b| b.from <= at)
                .checked_sub(1)
                .filter(|_| at < self.size)
                .ok_or_else(|| bad("it is shorter than its pagemap says"))?;
            let b = &self.blocks[i];
            let skip = (at - b.from) as usize;
            let n = buf.len().min(b.place.unpacked as usize - skip);
            let (now, rest) = buf.split_at_mut(n);
            if n == b.place.unpacked as usize {
                self.unpack(b, now)?;
            } else {
                now.copy_from_slice(&self.part(i)?[skip..skip + n]);
            }
            buf = rest;
            at += n as u64;
        }
        Ok(())
    }
    fn part(&self, i: usize) -> Result<Arc<Vec<u8>>> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = last().as_ref().filter(|l| l.0 == i) {
            return Ok(bytes.clone());
        }
        let mut bytes = vec![0; self.blocks[i].place.unpacked as usize];
        self.unpack(&self.blocks[i], &mut bytes)?;
        let bytes = Arc::new(bytes);
        *last() = Some((i, bytes.clone()));
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Vec<u8> {
        // a block that packs well, one that does not pack at all, a short one
        let mut all = vec![7u8; BLOCK];
        let mut x = 88172645463325252u64;
        all.extend((0..BLOCK).map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        }));
        all.extend([1; 4096]);
        all
    }

    fn packed(dir: &ImageDir) -> Vec<u8> {
        let all = contents();
        let p = Packer::create(dir, 3).unwrap();
        let mut room = Vec::new();
        // threads may come in any order
        for i in [2, 0, 1] {
            let at = i * BLOCK;
            let end = (at + BLOCK).min(all.len());
            p.put(at as u64, &all[at..end], &mut room).unwrap();
        }
        let size = p.finish(dir, 3).unwrap();
        assert!(size < BLOCK as u64 + 4096 && size > BLOCK as u64);
        all
    }

    #[test]
    fn any_part_can_be_had_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        assert!(Packed::open(&dir, 3).unwrap().is_none());
        let all = packed(&dir);
        let p = Packed::open(&dir, 3).unwrap().unwrap();
        assert_eq!(p.size(), all.len() as u64);
        for (at, n) in [
            (0, all.len()),
            (4096, 4096),
            (BLOCK - 10, 20),
            (all.len() - 1, 1),
            (BLOCK, BLOCK),
        ] {
            let mut b = vec![0; n];
            p.read(&mut b, at as u64).unwrap();
            assert!(b == all[at..at + n], "{at} {n}");
        }
        let e = p.read(&mut [0; 2], all.len() as u64 - 1).unwrap_err();
        assert_eq!(e.code, "E5720");
    }

    #[test]
    fn damage_is_noticed() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let all = packed(&dir);
        let file = std::fs::File::options()
            .write(true)
            .read(true)
            .open(tmp.path().join("packed-3.img"))
            .unwrap();
        let mut b = [0; 1];
        let at = file.metadata().unwrap().len() - 1;
        file.read_exact_at(&mut b, at).unwrap();
        file.write_all_at(&[b[0] ^ 1], at).unwrap();
        let p = Packed::open(&dir, 3).unwrap().unwrap();
        let mut buf = vec![0; all.len()];
        assert_eq!(p.read(&mut buf, 0).unwrap_err().code, "E5720");
        file.set_len(at).unwrap();
        assert_eq!(Packed::open(&dir, 3).err().map(|e| e.code), Some("E5720"));
    }
}
