//! Writing one image file.

use crate::error::{ImageError, Problem};
use crate::images::{Framing, IMG_COMMON_MAGIC, IMG_SERVICE_MAGIC, ImageType};
use crate::reader::MAX_RECORD;
use prost::{Message, Name};
use std::fs::File;
use std::io::{BufWriter, Write};

/// An image being written, buffered. [`ImageWriter::finish`] ends it; a writer dropped without it may have lost its
/// last bytes without anybody hearing of it.
#[derive(Debug)]
#[must_use = "call finish(), else the end of the file may be lost silently"]
pub struct ImageWriter {
    out: BufWriter<File>,
    name: String,
    row: &'static ImageType,
    /// Number of records so far.
    index: u64,
    /// One record with its length word, kept to reuse the memory.
    record: Vec<u8>,
}

impl ImageWriter {
    pub(crate) fn start(
        file: File,
        name: &str,
        row: &'static ImageType,
    ) -> Result<Self, ImageError> {
        let mut writer = Self {
            out: BufWriter::with_capacity(16 << 10, file),
            name: name.to_owned(),
            row,
            index: 0,
            record: Vec::new(),
        };
        match row.framing {
            Framing::Common => writer.raw(&IMG_COMMON_MAGIC.to_le_bytes())?,
            Framing::Service => writer.raw(&IMG_SERVICE_MAGIC.to_le_bytes())?,
            Framing::Own => {}
            Framing::Raw => return Err(Problem::NotRecords.of(name)),
        }
        writer.raw(&row.magic.to_le_bytes())?;
        Ok(writer)
    }

    /// Append one record.
    ///
    /// # Errors
    /// [`Problem::WrongMessage`] when this kind of file does not hold such messages, [`Problem::TooLong`],
    /// [`Problem::Io`].
    pub fn write<M: Message + Name>(&mut self, message: &M) -> Result<(), ImageError> {
        if !self.row.holds(M::NAME) {
            return Err(self.fail(Problem::WrongMessage { asked: M::NAME }));
        }
        let len = message.encoded_len() as u64;
        let word = match u32::try_from(len) {
            Ok(word) if len <= MAX_RECORD => word,
            _ => {
                return Err(self.fail(Problem::TooLong {
                    what: "a record",
                    len,
                    limit: MAX_RECORD,
                }));
            }
        };
        self.record.clear();
        self.record.extend_from_slice(&word.to_le_bytes());
        message.encode_raw(&mut self.record);
        let written = self.out.write_all(&self.record);
        written.map_err(|error| self.fail(Problem::io("write it", error)))?;
        self.index += 1;
        Ok(())
    }

    /// Append payload bytes as they are.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let written = self.out.write_all(bytes);
        written.map_err(|error| self.fail(Problem::io("write it", error)))
    }

    /// Hand the buffer to the kernel and close the file. It is durable only after
    /// [`ImageDir::sync_all`](crate::ImageDir::sync_all).
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn finish(mut self) -> Result<(), ImageError> {
        let flushed = self.out.flush();
        flushed.map_err(|error| self.fail(Problem::io("write it", error)))
    }

    fn fail(&self, problem: Problem) -> ImageError {
        ImageError {
            file: self.name.clone(),
            record: Some(self.index),
            offset: None,
            problem,
        }
    }
}
