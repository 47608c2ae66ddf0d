//! Reading one image file, distrusting every length in it.

use crate::error::{ImageError, Problem};
use crate::images::{Framing, IMG_COMMON_MAGIC, IMG_SERVICE_MAGIC, ImageType, magic_name};
use crate::wire;
use prost::{Message, Name};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

/// Longest record, in bytes. The largest real ones are memory maps: 65,530 mappings take about 5 MiB. The limit keeps
/// a sparse file from turning its claimed size into memory.
pub const MAX_RECORD: u64 = 64 << 20;
/// Longest payload that is handed out as one piece of memory, in bytes; larger ones go through
/// [`ImageReader::copy_payload`] or [`ImageReader::into_file`].
pub const MAX_PAYLOAD: u64 = 1 << 30;

/// One undecoded record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in the file, from 0.
    pub index: u64,
    /// Offset of its length word in the file, in bytes.
    pub offset: u64,
    /// The protobuf bytes, without the length word.
    pub bytes: Vec<u8>,
}

/// An image being read, positioned at a record or a payload.
#[derive(Debug)]
pub struct ImageReader {
    file: BufReader<File>,
    name: String,
    row: &'static ImageType,
    /// Offset of the next byte.
    pos: u64,
    /// Size of the file when it was opened; what is appended later is not read.
    len: u64,
    /// Number of the next record.
    index: u64,
    /// The record being decoded, kept to reuse the memory.
    record: Vec<u8>,
}

impl ImageReader {
    pub(crate) fn start(
        (file, len): (File, u64),
        name: &str,
        row: &'static ImageType,
    ) -> Result<Self, ImageError> {
        let mut reader = Self {
            file: BufReader::with_capacity(len.clamp(64, 32 << 10) as usize, file),
            name: name.to_owned(),
            row,
            pos: 0,
            len,
            index: 0,
            record: Vec::new(),
        };
        match row.framing {
            Framing::Common => reader.expect_magic("IMG_COMMON", IMG_COMMON_MAGIC)?,
            Framing::Service => reader.expect_magic("IMG_SERVICE", IMG_SERVICE_MAGIC)?,
            Framing::Own => {}
            Framing::Raw => return Err(Problem::NotRecords.of(name)),
        }
        reader.expect_magic(row.label, row.magic)?;
        Ok(reader)
    }

    /// The row of this kind of file.
    pub fn image_type(&self) -> &'static ImageType {
        self.row
    }

    /// Offset of the next byte in the file.
    pub fn position(&self) -> u64 {
        self.pos
    }

    /// Bytes from here to the end of the file.
    pub fn remaining(&self) -> u64 {
        self.len - self.pos
    }

    /// Read and decode the next record; `None` at the end of the file.
    ///
    /// # Errors
    /// [`Problem::WrongMessage`], [`Problem::Truncated`], [`Problem::TooLong`], [`Problem::Message`],
    /// [`Problem::Required`], [`Problem::Io`].
    pub fn read<T: Message + Name + Default>(&mut self) -> Result<Option<T>, ImageError> {
        if !self.row.holds(T::NAME) {
            let problem = Problem::WrongMessage { asked: T::NAME };
            return Err(self.fail(self.pos, problem));
        }
        let offset = self.pos;
        let mut record = std::mem::take(&mut self.record);
        let found = self.fill(&mut record);
        let decoded = match found {
            Ok(true) => match wire::decode(&record) {
                Ok(message) => Ok(Some(message)),
                Err(error) => Err(self.fail(offset, Problem::wire(T::NAME, error))),
            },
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        self.record = record;
        if let Ok(Some(_)) = decoded {
            self.index += 1;
        }
        decoded
    }

    /// Read and decode all records up to the end of the file (of a pagemap: after its head was read).
    ///
    /// # Errors
    /// As [`ImageReader::read`].
    pub fn read_rest<T: Message + Name + Default>(&mut self) -> Result<Vec<T>, ImageError> {
        let mut all = Vec::new();
        while let Some(message) = self.read()? {
            all.push(message);
        }
        Ok(all)
    }

    /// Read the next record undecoded; `None` at the end of the file.
    ///
    /// # Errors
    /// [`Problem::Truncated`], [`Problem::TooLong`], [`Problem::Io`].
    pub fn read_record(&mut self) -> Result<Option<Record>, ImageError> {
        let (index, offset) = (self.index, self.pos);
        let mut bytes = Vec::new();
        if !self.fill(&mut bytes)? {
            return Ok(None);
        }
        self.index += 1;
        Ok(Some(Record {
            index,
            offset,
            bytes,
        }))
    }

    /// Read `len` payload bytes.
    ///
    /// # Errors
    /// [`Problem::Truncated`], [`Problem::TooLong`] over [`MAX_PAYLOAD`], [`Problem::Io`].
    pub fn payload(&mut self, len: u64) -> Result<Vec<u8>, ImageError> {
        self.expect("the payload", len)?;
        if len > MAX_PAYLOAD {
            let problem = Problem::TooLong {
                what: "a payload",
                len,
                limit: MAX_PAYLOAD,
            };
            return Err(self.fail(self.pos, problem));
        }
        let mut bytes = Vec::new();
        self.read_into(len, &mut bytes)?;
        Ok(bytes)
    }

    /// Read everything up to the end of the file as payload.
    ///
    /// # Errors
    /// As [`ImageReader::payload`].
    pub fn rest(&mut self) -> Result<Vec<u8>, ImageError> {
        self.payload(self.remaining())
    }

    /// Copy `len` payload bytes to `out`, in pieces.
    ///
    /// # Errors
    /// [`Problem::Truncated`]; [`Problem::Io`] for failures of either side.
    pub fn copy_payload(&mut self, len: u64, out: &mut dyn Write) -> Result<(), ImageError> {
        self.expect("the payload", len)?;
        let copied = io::copy(&mut Read::by_ref(&mut self.file).take(len), out);
        let copied =
            copied.map_err(|error| self.fail(self.pos, Problem::io("copy its payload", error)))?;
        self.pos += copied;
        self.expect("the payload", len - copied)
    }

    /// Pass over `len` bytes of payload or padding.
    ///
    /// # Errors
    /// [`Problem::Truncated`], [`Problem::Io`].
    pub fn skip(&mut self, len: u64) -> Result<(), ImageError> {
        self.expect("the payload", len)?;
        let place = SeekFrom::Start(self.pos + len);
        // Through the buffer when the target lies in it, so skipping many small payloads costs no system calls.
        let moved = match i64::try_from(len) {
            Ok(by) => self.file.seek_relative(by),
            Err(_) => self.file.seek(place).map(drop),
        };
        moved.map_err(|error| self.fail(self.pos, Problem::io("seek in it", error)))?;
        self.pos += len;
        Ok(())
    }

    /// Insist that the file ends here.
    ///
    /// # Errors
    /// [`Problem::Trailing`].
    pub fn finish(self) -> Result<(), ImageError> {
        match self.remaining() {
            0 => Ok(()),
            bytes => Err(self.fail(self.pos, Problem::Trailing { bytes })),
        }
    }

    /// Give up reading and hand out the file, positioned at the next byte, for a caller that lets the kernel copy.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn into_file(mut self) -> Result<File, ImageError> {
        let moved = self.file.seek(SeekFrom::Start(self.pos));
        match moved {
            Ok(_) => Ok(self.file.into_inner()),
            Err(error) => Err(self.fail(self.pos, Problem::io("seek in it", error))),
        }
    }

    /// The remaining records as an iterator.
    pub(crate) fn into_records(self) -> Records {
        Records { reader: Some(self) }
    }

    /// The next record's bytes into `record`; false at the end of the file.
    fn fill(&mut self, record: &mut Vec<u8>) -> Result<bool, ImageError> {
        if self.remaining() == 0 {
            return Ok(false);
        }
        let start = self.pos;
        let len = u64::from(self.word("the length of a record")?);
        if len > self.remaining() {
            let problem = Problem::Truncated {
                what: "the record",
                need: len,
                have: self.remaining(),
            };
            return Err(self.fail(start, problem));
        }
        if len > MAX_RECORD {
            let problem = Problem::TooLong {
                what: "a record",
                len,
                limit: MAX_RECORD,
            };
            return Err(self.fail(start, problem));
        }
        record.clear();
        self.read_into(len, record)?;
        Ok(true)
    }

    fn word(&mut self, what: &'static str) -> Result<u32, ImageError> {
        self.expect(what, 4)?;
        let mut word = [0; 4];
        let read = self.file.read_exact(&mut word);
        read.map_err(|error| self.fail(self.pos, Problem::io("read it", error)))?;
        self.pos += 4;
        Ok(u32::from_le_bytes(word))
    }

    fn expect_magic(&mut self, expected: &'static str, value: u32) -> Result<(), ImageError> {
        let offset = self.pos;
        let found = self.word("the magic")?;
        if found == value {
            return Ok(());
        }
        Err(ImageError {
            file: self.name.clone(),
            record: None,
            offset: Some(offset),
            problem: Problem::Magic {
                expected,
                expected_value: value,
                found: magic_name(found),
                found_value: found,
            },
        })
    }

    /// `len` bytes, known to be within the size the file had. It may have shrunk since: then it is truncated.
    fn read_into(&mut self, len: u64, bytes: &mut Vec<u8>) -> Result<(), ImageError> {
        let read = Read::by_ref(&mut self.file).take(len).read_to_end(bytes);
        let read = read.map_err(|error| self.fail(self.pos, Problem::io("read it", error)))? as u64;
        if read < len {
            let problem = Problem::Truncated {
                what: "what it held when it was opened",
                need: len,
                have: read,
            };
            return Err(self.fail(self.pos, problem));
        }
        self.pos += len;
        Ok(())
    }

    fn expect(&self, what: &'static str, need: u64) -> Result<(), ImageError> {
        let have = self.remaining();
        if need <= have {
            return Ok(());
        }
        Err(self.fail(self.pos, Problem::Truncated { what, need, have }))
    }

    fn fail(&self, offset: u64, problem: Problem) -> ImageError {
        ImageError {
            file: self.name.clone(),
            record: Some(self.index),
            offset: Some(offset),
            problem,
        }
    }
}

/// The undecoded records of an image. Ends after the first error.
#[derive(Debug)]
pub struct Records {
    reader: Option<ImageReader>,
}

impl Iterator for Records {
    type Item = Result<Record, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.reader.as_mut()?.read_record().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.reader = None;
        }
        item
    }
}
