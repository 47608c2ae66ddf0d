//! Packed pages images, an extension: packed-N.img holds what pages-N.img would, in blocks that are compressed, encrypted, or
//! both, each for itself, so that any page can be had alone; packed-index-N.img tells where they lie.
//!
//! A block that does not become smaller is stored as it is; with `auto` also where writing it so is faster. Each has
//! a checksum of its contents. CRIU does not know such folders: it finds no pages-N.img.
//!
//! Long because writing and reading one format belong together.
use crate::error::{Blame, Error, Result};
use stasis_proto::archive::{In, Out};
use stasis_proto::key::{Key, TAG};
use stasis_proto::{ImageDir, Kind, pb};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The largest block, unpacked, in bytes.
pub const BLOCK: usize = 256 * 1024;

/// `stasis_packed_entry.algorithm`: none.
const STORED: u32 = 0;
/// `stasis_packed_entry.algorithm`: LZ4, block format.
const LZ4: u32 = 1;
/// `stasis_packed_entry.algorithm`: Zstandard.
const ZSTD: u32 = 2;

/// So many blocks in a row that do not become smaller, and most others are not tried.
const STUBBORN: u64 = 4;
/// Of those one in so many is tried; so is, with `auto`, one in so many where compression does not pay.
const SAMPLE: u64 = 16;

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4: fast both ways.
    Lz4,
    /// Zstandard with a level: smaller.
    Zstd(i32),
    /// LZ4 for blocks that are written faster so.
    Auto,
}

impl Compression {
    /// Its name in options and in the inventory.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Lz4 => "lz4",
            Compression::Zstd(_) => "zstd",
            Compression::Auto => "auto",
        }
    }
    /// Reads `lz4`, `zstd`, `zstd:LEVEL`, `auto`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "lz4" => Self::Lz4,
            "auto" => Self::Auto,
            "zstd" => Self::Zstd(1),
            _ => {
                let level: i32 = text.strip_prefix("zstd:")?.parse().ok()?;
                Self::Zstd(Some(level).filter(|l| (-7..=19).contains(l) && *l != 0)?)
            }
        })
    }
    fn algorithm(how: Option<Self>) -> u32 {
        match how {
            None => STORED,
            Some(Compression::Lz4 | Compression::Auto) => LZ4,
            Some(Compression::Zstd(_)) => ZSTD,
        }
    }
}

/// What has been measured: nanoseconds and bytes.
#[derive(Default)]
struct Pace {
    packing: AtomicU64,
    unpacked: AtomicU64,
    packed: AtomicU64,
    writing: AtomicU64,
    written: AtomicU64,
    blocks: AtomicU64,
    stubborn: AtomicU64,
}

impl Pace {
    /// Whether the next block is worth trying.
    fn worth(&self, auto: bool) -> bool {
        let n = self.blocks.fetch_add(1, Ordering::Relaxed);
        if n.is_multiple_of(SAMPLE) {
            return true;
        }
        if self.stubborn.load(Ordering::Relaxed) >= STUBBORN {
            return false;
        }
        let [packing, unpacked, packed, writing, written] = [
            &self.packing,
            &self.unpacked,
            &self.packed,
            &self.writing,
            &self.written,
        ]
        .map(|a| a.load(Ordering::Relaxed) as f64);
        if !auto || unpacked == 0.0 || written == 0.0 {
            return true;
        }
        let byte = writing / written;
        packing / unpacked + byte * packed / unpacked < byte
    }
}

/// A packed image that is being written, by several threads.
pub struct Packer {
    out: Out,
    how: Option<Compression>,
    key: Option<Key>,
    end: AtomicU64,
    pace: Pace,
    /// Offset of the contents, and where they lie.
    blocks: Mutex<Vec<(u64, pb::StasisPackedBlock)>>,
}

fn elapsed(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

impl Packer {
    /// Begins packed-N.img; encrypted if the folder is.
    ///
    /// # Errors
    /// Those of creating it.
    pub fn create(dir: &ImageDir, id: u32, how: Option<Compression>) -> Result<Self> {
        let name = Kind::Packed.file_of(id);
        Ok(Self {
            out: dir.create_out(&name)?,
            how,
            key: dir.key().map(|k| k.of_file(&name)),
            end: AtomicU64::new(0),
            pace: Pace::default(),
            blocks: Mutex::default(),
        })
    }
    /// Compresses into `room`: the method and the length, if it is worth it.
    fn pack(&self, bytes: &[u8], room: &mut Vec<u8>) -> Option<(u32, usize)> {
        let how = self.how?;
        if !self.pace.worth(how == Compression::Auto) {
            return None;
        }
        let begun = Instant::now();
        let (method, n) = match how {
            Compression::Lz4 | Compression::Auto => {
                room.resize(lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
                (LZ4, lz4_flex::block::compress_into(bytes, room).ok()?)
            }
            Compression::Zstd(level) => {
                room.resize(zstd::zstd_safe::compress_bound(bytes.len()), 0);
                let n = zstd::bulk::compress_to_buffer(bytes, room.as_mut_slice(), level);
                (ZSTD, n.ok()?)
            }
        };
        let p = &self.pace;
        p.packing.fetch_add(elapsed(begun), Ordering::Relaxed);
        p.unpacked.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        p.packed.fetch_add(n as u64, Ordering::Relaxed);
        // what saves less than one part in sixteen is not worth the work of restoring it
        if n >= bytes.len() / 16 * 15 {
            p.stubborn.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        p.stubborn.store(0, Ordering::Relaxed);
        Some((method, n))
    }
    /// Writes the contents at an offset; `room` is anybody's to use.
    ///
    /// # Errors
    /// E6001.
    pub fn put(&self, at: u64, bytes: &[u8], room: &mut Vec<u8>) -> Result<()> {
        let packed = self.pack(bytes, room);
        let method = packed.map_or(STORED, |p| p.0);
        let text = match packed {
            Some((_, n)) => &room[..n],
            None => bytes,
        };
        let len = text.len() + self.key.as_ref().map_or(0, |_| TAG);
        let to = self.end.fetch_add(len as u64, Ordering::Relaxed);
        let sealed = match &self.key {
            None => None,
            Some(k) => Some(
                k.seal(to, text)
                    .ok_or_else(|| Error::bug("a block too long to be encrypted"))?,
            ),
        };
        let begun = Instant::now();
        self.out
            .put(to, sealed.as_deref().unwrap_or(text))
            .map_err(|e| {
                Error::new("E6001", Blame::Host, "cannot write pages")
                    .why(e)
                    .advice("make room where the images go")
            })?;
        self.pace
            .writing
            .fetch_add(elapsed(begun), Ordering::Relaxed);
        self.pace.written.fetch_add(len as u64, Ordering::Relaxed);
        let block = pb::StasisPackedBlock {
            at: to,
            len: len as u32,
            unpacked: bytes.len() as u32,
            crc32: crc32fast::hash(bytes),
            // what older versions can read looks as they wrote it
            method: (self.key.is_some() || self.how != Some(Compression::Lz4)).then_some(method),
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
            algorithm: Compression::algorithm(self.how),
            blocks: all.into_iter().map(|b| b.1).collect(),
            encrypted: self.key.is_some().then_some(true),
        };
        dir.write_one(&Kind::PackedIndex.file_of(id), &entry)?;
        Ok(self.end.into_inner())
    }
}

struct Block {
    /// Offset of its contents.
    from: u64,
    place: pb::StasisPackedBlock,
    method: u32,
}

/// A compressed image that is read, by several threads.
pub struct Packed {
    /// The file.
    pub file: In,
    name: String,
    key: Option<Key>,
    blocks: Vec<Block>,
    /// Bytes of contents.
    size: u64,
    /// The last block of which only a part was wanted.
    last: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
}

fn bad(what: &str, why: impl Into<String>) -> Error {
    Error::new("E5720", Blame::Image, what)
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
        let name = Kind::Packed.file_of(id);
        let bad = |why: String| bad(&name, why);
        if entry.algorithm > ZSTD {
            return Err(bad(format!("algorithm {} is not known", entry.algorithm)));
        }
        let key = match entry.encrypted() {
            false => None,
            true => Some(dir.key().ok_or_else(|| locked(&name))?.of_file(&name)),
        };
        let file = dir.open_in(&name)?;
        let len = file.size().map_err(|e| bad(e.to_string()))?;
        let tag = key.as_ref().map_or(0, |_| TAG as u32);
        let mut size = 0;
        let mut blocks = Vec::with_capacity(entry.blocks.len());
        for place in entry.blocks {
            let end = place.at.checked_add(place.len.into());
            let method = place.method.unwrap_or(match place.len == place.unpacked {
                true => STORED,
                false => entry.algorithm,
            });
            let text = place.len.checked_sub(tag);
            if end.is_none_or(|e| e > len)
                || place.unpacked == 0
                || place.unpacked as usize > BLOCK
                || text.is_none_or(|t| t > place.unpacked)
                || method == STORED && text != Some(place.unpacked)
                || method > ZSTD
            {
                return Err(bad(format!(
                    "the block at byte {} lies outside of the file, or is too large",
                    place.at
                )));
            }
            let from = size;
            size += u64::from(place.unpacked);
            blocks.push(Block {
                from,
                place,
                method,
            });
        }
        Ok(Some(Self {
            file,
            name,
            key,
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
        let bad = |why: &str| {
            let at = b.place.at;
            bad(&format!("{}, block at byte {at}", self.name), why)
        };
        let read = |buf: &mut [u8]| {
            self.file
                .read_exact_at(buf, b.place.at)
                .map_err(|e| bad(&e.to_string()))
        };
        let mut n = into.len();
        if b.method == STORED && self.key.is_none() {
            read(into)?;
        } else {
            let mut text = vec![0; b.place.len as usize];
            read(&mut text)?;
            if let Some(k) = &self.key {
                let opened = k.open(b.place.at, &text);
                text = opened.ok_or_else(|| bad("it does not open with the key"))?;
            }
            match b.method {
                STORED if text.len() == into.len() => into.copy_from_slice(&text),
                LZ4 => {
                    n = lz4_flex::block::decompress_into(&text, into)
                        .map_err(|e| bad(&e.to_string()))?;
                }
                ZSTD => {
                    n = zstd::bulk::decompress_to_buffer(&text, into)
                        .map_err(|e| bad(&e.to_string()))?;
                }
                _ => n = 0,
            }
        }
        if n != into.len() {
            return Err(bad("it is shorter than it should be"));
        }
        match crc32fast::hash(into) == b.place.crc32 {
            true => Ok(()),
            false => Err(bad("its checksum does not fit")),
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
                .ok_or_else(|| bad(&self.name, "it is shorter than its pagemap says"))?;
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

/// Encrypted images without a key.
pub fn locked(what: &str) -> Error {
    Error::new("E5722", Blame::Image, what)
        .why("it is encrypted")
        .advice("name the file with the identity that opens it: --identity FILE")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

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

    fn packed(dir: &ImageDir, how: Option<Compression>) -> Vec<u8> {
        let all = contents();
        let p = Packer::create(dir, 3, how).unwrap();
        let mut room = Vec::new();
        // threads may come in any order
        for i in [2, 0, 1] {
            let at = i * BLOCK;
            let end = (at + BLOCK).min(all.len());
            p.put(at as u64, &all[at..end], &mut room).unwrap();
        }
        let size = p.finish(dir, 3).unwrap();
        assert!(how.is_none() || size < BLOCK as u64 + 4096 && size > BLOCK as u64);
        all
    }

    #[test]
    fn any_part_can_be_had_alone() {
        for how in [Some(Compression::Lz4), Some(Compression::Zstd(3)), None] {
            for key in [None, Some(Key::new(&[3; 32]))] {
                parts(how, key);
            }
        }
    }

    fn parts(how: Option<Compression>, key: Option<Key>) {
        let tmp = tempfile::tempdir().unwrap();
        let mut dir = ImageDir::create(tmp.path()).unwrap();
        assert!(Packed::open(&dir, 3).unwrap().is_none());
        if let Some(k) = &key {
            dir.seal(k.clone());
        }
        let all = packed(&dir, how);
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
        let all = packed(&dir, Some(Compression::Lz4));
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
        let e = p.read(&mut buf, 0).unwrap_err();
        assert_eq!(e.code, "E5720");
        assert!(e.what.starts_with("packed-3.img, block at byte "), "{e}");
        file.set_len(at).unwrap();
        assert_eq!(Packed::open(&dir, 3).err().map(|e| e.code), Some("E5720"));
    }

    #[test]
    fn names_of_compressions() {
        let p = Compression::parse;
        assert_eq!(p("lz4"), Some(Compression::Lz4));
        assert_eq!(p("zstd"), Some(Compression::Zstd(1)));
        assert_eq!(p("zstd:-3"), Some(Compression::Zstd(-3)));
        for bad in ["", "zstd:", "zstd:0", "zstd:99", "gzip", "lz4:1"] {
            assert_eq!(p(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_faster_as_it_is_is_not_compressed() {
        let p = Pace::default();
        p.blocks.store(1, Ordering::Relaxed);
        let set = |a: &AtomicU64, v| a.store(v, Ordering::Relaxed);
        set(&p.unpacked, 1000);
        set(&p.packed, 400);
        set(&p.packing, 700);
        set(&p.written, 1000);
        // a disk of one byte in two nanoseconds, and one of five in one
        set(&p.writing, 2000);
        assert!(p.worth(true));
        set(&p.writing, 200);
        assert!(!p.worth(true) && p.worth(false));
        set(&p.stubborn, STUBBORN);
        assert!(!p.worth(false));
    }
}
