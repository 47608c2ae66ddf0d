//! What can go wrong with control groups.
use nix::errno::Errno;
use std::fmt;

/// Who can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The processes and their groups are in a state that cannot be carried.
    Container,
    /// The image is damaged or hostile.
    Image,
    /// The machine lacks something, or has something in the way.
    Host,
    /// The caller's options.
    Caller,
}

/// An error of this crate's own, with a stable code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// `E` and four digits.
    pub code: &'static str,
    /// Whose turn it is.
    pub side: Side,
    /// What could not be done.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// One that has a code.
    Named(Box<Named>),
    /// The kernel refused a call, or told something nobody understands.
    Kernel(stasis_kernel::error::Error),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// One with a code.
    pub fn new(
        code: &'static str,
        side: Side,
        what: impl Into<String>,
        why: impl fmt::Display,
        advice: &'static str,
    ) -> Self {
        Error::Named(Box::new(Named {
            code,
            side,
            what: what.into(),
            why: why.to_string(),
            advice,
        }))
    }
    /// The answer of a system call on a file of a group.
    pub(crate) fn call(
        call: &'static str,
        errno: rustix::io::Errno,
        what: impl Into<String>,
    ) -> Self {
        let errno = Errno::from_raw(errno.raw_os_error());
        Error::Kernel(stasis_kernel::error::SysError::new(call, errno, what).into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Named(n) if n.why.is_empty() => write!(f, "{}", n.what),
            Error::Named(n) => write!(f, "{}: {}", n.what, n.why),
            Error::Kernel(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<stasis_kernel::error::Error> for Error {
    fn from(e: stasis_kernel::error::Error) -> Self {
        Error::Kernel(e)
    }
}

impl From<stasis_kernel::error::SysError> for Error {
    fn from(e: stasis_kernel::error::SysError) -> Self {
        Error::Kernel(e.into())
    }
}
