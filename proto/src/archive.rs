//! A folder of images as one stream: standard output, a pipe, one file.
//!
//! Pages are written while they are read, by several threads, so their sizes are not known beforehand: the stream is a list of
//! pieces, each with the name of its image and its place in it. The inventory comes last, and then a mark: without it
//! the stream is not whole.
//!
//! ```text
//! "STASISA1"
//! u32 length of the name, u32 0, u64 offset, u64 length; the name; the bytes      (a piece)
//! u32 0, u32 0, u64 0, u64 number of pieces                                       (the mark)
//! ```
//! Numbers are little-endian. A file is read where it lies; of a pipe all is taken into memory first.
use crate::error::{ImageError, Problem};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

const MAGIC: &[u8; 8] = b"STASISA1";
const HEAD: usize = 24;
/// Names are short.
const LONGEST_NAME: usize = 255;
/// No image is larger.
const LARGEST: u64 = 1 << 46;

/// A stream that is being written, by several threads.
#[derive(Debug)]
pub struct Archive(Mutex<(File, u64)>);

impl Archive {
    /// Begins a stream.
    ///
    /// # Errors
    /// Those of writing.
    pub fn begin(mut to: File) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        Ok(Self(Mutex::new((to, 0))))
    }
    /// Writes a piece of an image.
    ///
    /// # Errors
    /// Those of writing.
    pub fn put(&self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() && at > 0 {
            return Ok(());
        }
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        to.0.write_all(&head(name.len(), at, bytes.len() as u64, name))?;
        to.0.write_all(bytes)?;
        to.1 += 1;
        Ok(())
    }
    /// Writes the mark, and waits until a file is on the disk.
    ///
    /// # Errors
    /// Those of writing.
    pub fn end(&self) -> io::Result<()> {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pieces = to.1;
        to.0.write_all(&head(0, 0, pieces, ""))?;
        match to.0.sync_all() {
            // a pipe or socket
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
            r => r,
        }
    }
}

fn head(name_len: usize, at: u64, len: u64, name: &str) -> Vec<u8> {
    let mut h = Vec::with_capacity(HEAD + name.len());
    h.extend((name_len as u32).to_le_bytes());
    h.extend([0; 4]);
    h.extend(at.to_le_bytes());
    h.extend(len.to_le_bytes());
    h.extend(name.as_bytes());
    h
}

/// Where an image goes that others than this crate write: by places, from several threads.
#[derive(Debug)]
pub enum Out {
    /// A file of a folder.
    File(File),
    /// Pieces of a stream, with this name.
    Member(Arc<Archive>, String),
}

impl Out {
    /// Writes bytes at a place.
    ///
    /// # Errors
    /// Those of writing.
    pub fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Out::File(f) => f.write_all_at(bytes, at),
            Out::Member(a, name) => a.put(name, at, bytes),
        }
    }
    /// The file, if it is one of its own.
    pub fn file(&self) -> Option<&File> {
        match self {
            Out::File(f) => Some(f),
            Out::Member(..) => None,
        }
    }
    /// Cuts a file for which too much room was made.
    ///
    /// # Errors
    /// Those of writing.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        match self {
            Out::File(f) => f.set_len(len),
            Out::Member(..) => Ok(()),
        }
    }
}

/// An image that is read by places, from several threads.
#[derive(Debug)]
pub enum In {
    /// A file.
    File(File),
    /// Pieces of a file: by offset in the image, (end, offset in the file).
    Pieces(Arc<File>, BTreeMap<u64, (u64, u64)>),
}

impl In {
    /// Bytes up to the end.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn size(&self) -> io::Result<u64> {
        match self {
            In::File(f) => Ok(f.metadata()?.len()),
            In::Pieces(_, p) => Ok(p.values().next_back().map_or(0, |v| v.0)),
        }
    }
    /// Reads bytes at a place.
    ///
    /// # Errors
    /// UnexpectedEof where there are none; those of reading.
    pub fn read_exact_at(&self, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
        let (file, pieces) = match self {
            In::File(f) => return f.read_exact_at(buf, at),
            In::Pieces(f, p) => (f, p),
        };
        while !buf.is_empty() {
            let piece = pieces.range(..=at).next_back().filter(|p| p.1.0 > at);
            let (start, (end, from)) = piece.ok_or(io::ErrorKind::UnexpectedEof)?;
            let n = buf.len().min((end - at) as usize);
            let (now, rest) = buf.split_at_mut(n);
            file.read_exact_at(now, from + (at - start))?;
            buf = rest;
            at += n as u64;
        }
        Ok(())
    }
    /// The file behind it.
    pub fn file(&self) -> &File {
        match self {
            In::File(f) => f,
            In::Pieces(f, _) => f,
        }
    }
}

/// Where the pieces of a file are: (offset in the archive, length) by their offsets in the file.
pub type Pieces = (Arc<File>, BTreeMap<u64, (u64, u64)>);

/// Images of a stream: those in memory, and those that stay where they lie.
#[derive(Debug, Default)]
pub struct Contents {
    /// Images in memory.
    pub held: BTreeMap<String, File>,
    /// Images in the file.
    pub pieces: BTreeMap<String, Pieces>,
}

fn bad(why: &'static str) -> ImageError {
    Problem::Archive(why).of("the stream of images")
}

fn failed(e: io::Error) -> ImageError {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            bad("it ends early: the dump did not finish, or was cut off")
        }
        _ => Problem::io("read it", e).of("the stream of images"),
    }
}

/// Reads a stream to its mark. `stays`: images that need not be in memory.
///
/// # Errors
/// [`Problem::Archive`]; [`Problem::Io`].
pub fn read(mut from: File, stays: impl Fn(&str) -> bool) -> Result<Contents, ImageError> {
    let of_file = from.metadata().map_err(failed)?.is_file();
    let whole = Arc::new(from.try_clone().map_err(failed)?);
    let mut magic = [0; 8];
    from.read_exact(&mut magic).map_err(failed)?;
    if &magic != MAGIC {
        return Err(bad("it does not begin as one"));
    }
    let size = whole.metadata().map_err(failed)?.len();
    let mut all = Contents::default();
    let (mut pos, mut pieces) = (8u64, 0u64);
    let mut buf = vec![0u8; 256 * 1024];
    loop {
        let mut h = [0; HEAD];
        from.read_exact(&mut h).map_err(failed)?;
        let word = |i: usize| u64::from_le_bytes(h[i..i + 8].try_into().unwrap_or_default());
        let (name_len, at, len) = (word(0) as u32 as usize, word(8), word(16));
        pos += HEAD as u64;
        if name_len == 0 {
            return match len == pieces {
                true => Ok(all),
                false => Err(bad("pieces are missing")),
            };
        }
        if name_len > LONGEST_NAME || at > LARGEST || len > LARGEST {
            return Err(bad("a piece of it has impossible sizes"));
        }
        let mut name = vec![0; name_len];
        from.read_exact(&mut name).map_err(failed)?;
        pos += name_len as u64;
        let name = String::from_utf8(name).map_err(|_| bad("a name in it is not UTF-8"))?;
        pieces += 1;
        if of_file && stays(&name) {
            if len > size.saturating_sub(pos) {
                return Err(bad(
                    "it ends early: the dump did not finish, or was cut off",
                ));
            }
            let image = all
                .pieces
                .entry(name)
                .or_insert_with(|| (whole.clone(), BTreeMap::new()));
            image.1.insert(at, (at + len, pos));
            pos += len;
            use std::io::Seek;
            from.seek(io::SeekFrom::Start(pos)).map_err(failed)?;
            continue;
        }
        let file = match all.held.entry(name) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => {
                e.insert(memory("stasis-image").map_err(failed)?)
            }
        };
        let mut done = 0;
        while done < len {
            let n = buf.len().min((len - done) as usize);
            from.read_exact(&mut buf[..n]).map_err(failed)?;
            file.write_all_at(&buf[..n], at + done).map_err(failed)?;
            done += n as u64;
        }
        pos += len;
    }
}

/// A file in memory.
///
/// # Errors
/// Those of memfd_create(2).
pub fn memory(name: &str) -> io::Result<File> {
    use rustix::fs::MemfdFlags;
    Ok(File::from(rustix::fs::memfd_create(
        name,
        MemfdFlags::CLOEXEC,
    )?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    fn stream() -> File {
        let mut f = tempfile::tempfile().unwrap();
        let a = Archive::begin(f.try_clone().unwrap()).unwrap();
        a.put("pages-1.img", 4096, &[2; 4096]).unwrap();
        a.put("fs-7.img", 0, b"small").unwrap();
        a.put("pages-1.img", 0, &[1; 4096]).unwrap();
        a.end().unwrap();
        f.rewind().unwrap();
        f
    }

    #[test]
    fn pieces_are_found_wherever_they_lie() {
        for stays in [true, false] {
            let c = read(stream(), |n| stays && n.starts_with("pages-")).unwrap();
            let mut b = [0; 8192];
            let pages = match stays {
                true => {
                    let (f, p) = c.pieces["pages-1.img"].clone();
                    In::Pieces(f, p)
                }
                false => In::File(c.held["pages-1.img"].try_clone().unwrap()),
            };
            assert_eq!(pages.size().unwrap(), 8192);
            pages.read_exact_at(&mut b, 0).unwrap();
            assert!(b[..4096].iter().all(|x| *x == 1) && b[4096..].iter().all(|x| *x == 2));
            assert!(pages.read_exact_at(&mut b, 1).is_err());
            let mut small = [0; 5];
            c.held["fs-7.img"].read_exact_at(&mut small, 0).unwrap();
            assert_eq!(&small, b"small");
        }
    }

    #[test]
    fn a_stream_without_its_mark_is_refused() {
        let f = stream();
        let len = f.metadata().unwrap().len();
        for cut in [len - 1, len - HEAD as u64, 40, 8, 3, 0] {
            let mut g = tempfile::tempfile().unwrap();
            let mut all = vec![0; cut as usize];
            f.read_exact_at(&mut all, 0).unwrap();
            g.write_all(&all).unwrap();
            g.rewind().unwrap();
            let e = read(g, |n| n.starts_with("pages-")).unwrap_err();
            assert!(matches!(e.problem, Problem::Archive(_)), "{cut}: {e}");
        }
    }
}
