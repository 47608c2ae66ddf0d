//! Images of pages that are being written, wherever they go.
use crate::error::{Blame, Error, Result};
use crate::migrate::stream::Remote;
use crate::options::MemoryOptions;
use crate::packed::{BLOCK, Packer};
use stasis_kernel::fds;
use stasis_proto::archive::Out;
use stasis_proto::{ImageDir, Kind};
use std::fs::File;
use std::os::fd::AsFd;

/// Where pages go.
pub enum Sink {
    /// pages-N.img
    Plain(Out),
    /// packed-N.img
    Packed(Packer),
    /// pages-N.img at another host.
    Remote(Remote),
}

impl Sink {
    /// A new image of pages, compressed if that is wanted.
    ///
    /// # Errors
    /// Those of creating it.
    pub fn create(dir: &ImageDir, id: u32, o: &MemoryOptions) -> Result<Self> {
        if let Some(to) = &o.stream {
            return Ok(Sink::Remote(to.image(id)));
        }
        Ok(match o.compress {
            None if dir.key().is_none() => Sink::Plain(dir.create_out(&Kind::Pages.file_of(id))?),
            how => Sink::Packed(Packer::create(dir, id, how)?),
        })
    }
    /// Writes the contents at an offset; `room` is anybody's to use.
    ///
    /// # Errors
    /// E6001.
    pub fn put(&self, at: u64, bytes: &[u8], room: &mut Vec<u8>) -> Result<()> {
        match self {
            Sink::Packed(p) => (at..)
                .step_by(BLOCK)
                .zip(bytes.chunks(BLOCK))
                .try_for_each(|(at, b)| p.put(at, b, room)),
            Sink::Remote(r) => r.put(at, bytes),
            Sink::Plain(file) => {
                file.put(at, bytes).map_err(|e| {
                    Error::new("E6001", Blame::Host, "cannot write pages")
                        .why(e)
                        .advice("make room where the images go")
                })?;
                if let Some(f) = file.file() {
                    hurry(f, at, at + bytes.len() as u64);
                }
                Ok(())
            }
        }
    }
    /// All is written: `len` bytes.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(self, dir: &ImageDir, id: u32, len: u64) -> Result<()> {
        match self {
            Sink::Packed(p) => p.finish(dir, id).map(drop),
            Sink::Remote(r) => r.end(len),
            // room made before the freeze was a guess
            Sink::Plain(file) => file
                .set_len(len)
                .map_err(|e| Error::new("E6001", Blame::Host, "cannot write pages").why(e)),
        }
    }
}

/// Written to the disk at once.
const STRIDE: u64 = 4 << 20;

/// The disk begins with what is complete while the rest is copied: the dump waits for it at its end. What was written last may still
/// have gaps that another thread fills, so it stays one stride behind.
fn hurry(file: &File, from: u64, to: u64) {
    let edge = to / STRIDE * STRIDE;
    if edge > from && edge >= 2 * STRIDE {
        fds::start_writing_back(file.as_fd(), edge - 2 * STRIDE, STRIDE);
    }
}
