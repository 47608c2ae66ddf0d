//! What can be wrong with an image folder or a file in it.

use crate::wire::WireError;
use std::fmt;
use std::io;

/// A failure with its place: the file, and inside it the record and the byte where that is known.
#[derive(Debug)]
pub struct ImageError {
    /// The name of the file in the folder (the folder's own path for failures of the folder).
    pub file: String,
    /// Number of the record, from 0.
    pub record: Option<u64>,
    /// Byte offset in the file where the record (or what should be one) begins.
    pub offset: Option<u64>,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong; [`ImageError`] says where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A file name with a slash, a NUL, `.`, `..`, or nothing in it.
    #[error("not a plain file name")]
    Name,
    /// The name is none of the table in [`crate::images`].
    #[error("not a name of the image format")]
    UnknownFile,
    /// The system refused.
    #[error("cannot {action}")]
    Io {
        /// What was tried ("open it", "read it").
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The link to the folder of the dump before is not followed.
    #[error("the link to the images of the dump before is not followed: {0}")]
    Parent(&'static str),
    /// A stream of images ([`crate::archive`]) that is none, or is not whole.
    #[error("{0}")]
    Archive(&'static str),
    /// An encrypted image that the key does not open.
    #[error("it does not open: another key, or it was changed")]
    Sealed,
    /// The file is not there.
    #[error("there is no such file")]
    Missing,
    /// A symlink, fifo, device or folder where a regular file belongs.
    #[error("not a regular file")]
    NotRegular,
    /// The file ends inside something.
    #[error("truncated: {what} needs {need} bytes, {have} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes it needs.
        need: u64,
        /// Bytes the file still has.
        have: u64,
    },
    /// The magic at the start is that of another kind of file, or of none.
    #[error("wrong magic: expected {expected} ({expected_value:#010x}), found {} ({found_value:#010x})", found.unwrap_or("no known magic"))]
    Magic {
        /// Name of the expected magic.
        expected: &'static str,
        /// The expected word.
        expected_value: u32,
        /// Name of the magic that is there, when it is a known one.
        found: Option<&'static str>,
        /// The word that is there.
        found_value: u32,
    },
    /// The record's bytes are not the message that belongs there.
    #[error("not a valid {message}")]
    Message {
        /// Name of the message in the schema.
        message: &'static str,
        /// What is wrong with it.
        source: WireError,
    },
    /// A required field is not in the record.
    #[error("required field {message}.{field} is missing")]
    Required {
        /// The message that lacks it.
        message: &'static str,
        /// The name of the field.
        field: &'static str,
    },
    /// Something follows where the file should end.
    #[error("{bytes} bytes follow after the end of the data")]
    Trailing {
        /// How many bytes.
        bytes: u64,
    },
    /// A record or payload larger than this crate holds in memory.
    #[error("{what} of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// One record was expected and none is there.
    #[error("it holds no record")]
    Empty,
    /// The caller asked for a message that this kind of file does not hold.
    #[error("it does not hold messages of type {asked}")]
    WrongMessage {
        /// The message asked for.
        asked: &'static str,
    },
    /// The caller asked for framed records in a raw file, or for all records of a file that mixes them with payload.
    #[error("it cannot be read as a plain list of records")]
    NotRecords,
}

impl Problem {
    /// A code that stays the same over versions: `E02xx`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name => "E0201",
            Self::UnknownFile => "E0202",
            Self::Io { .. } => "E0203",
            Self::Missing => "E0204",
            Self::NotRegular => "E0205",
            Self::Truncated { .. } => "E0206",
            Self::Magic { .. } => "E0207",
            Self::Message { .. } => "E0208",
            Self::Required { .. } => "E0209",
            Self::Trailing { .. } => "E0210",
            Self::TooLong { .. } => "E0211",
            Self::Empty => "E0212",
            Self::WrongMessage { .. } => "E0213",
            Self::NotRecords => "E0214",
            Self::Parent(_) => "E0215",
            Self::Archive(_) => "E0216",
            Self::Sealed => "E0217",
        }
    }

    /// This problem in `file`, place unknown.
    pub(crate) fn of(self, file: &str) -> ImageError {
        ImageError {
            file: file.to_owned(),
            record: None,
            offset: None,
            problem: self,
        }
    }

    /// The problem behind a record that is not a `message`.
    pub(crate) fn wire(message: &'static str, error: WireError) -> Self {
        match error {
            WireError::MissingRequired { message, field } => Self::Required { message, field },
            source => Self::Message { message, source },
        }
    }

    /// What the system said when asked to `action`.
    pub(crate) fn io(action: &'static str, error: impl Into<io::Error>) -> Self {
        let source = error.into();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Io { action, source },
        }
    }
}

impl ImageError {
    /// A code that stays the same over versions: `E02xx`, see [`Problem::code`].
    pub fn code(&self) -> &'static str {
        self.problem.code()
    }

    /// Whether the file is simply not there: for many kinds that means the task has none of the thing.
    pub fn is_missing(&self) -> bool {
        matches!(self.problem, Problem::Missing)
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}", self.file)?;
        if let Some(record) = self.record {
            write!(f, ", record {record}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for ImageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.problem)
    }
}
