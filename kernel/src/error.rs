//! What went wrong: a failed system call, or kernel text that could not be understood.
//!
//! Errors here carry no phase and no kind; the driver adds the place once. They do carry the call's name, the
//! errno's name and what the call was about, because those are lost one level up.

use nix::errno::Errno;

/// A system call that failed: `openat /proc/42/maps: ENOENT (No such file or directory)`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}{sep}{what}: {errno:?} ({desc})", sep = if what.is_empty() { "" } else { " " }, desc = errno.desc())]
pub struct SysError {
    /// Name of the system call, or `call(OPERATION)` for multiplexers: `kcmp(FILE)`.
    pub call: &'static str,
    /// The kernel's answer.
    pub errno: Errno,
    /// The object the call was about: a path, a pid, an address range. May be empty.
    pub what: String,
}

impl SysError {
    /// An error with a known errno.
    pub fn new(call: &'static str, errno: Errno, what: impl Into<String>) -> Self {
        SysError {
            call,
            errno,
            what: what.into(),
        }
    }

    /// An error from this thread's `errno`, which must not have been overwritten since the call.
    pub fn last(call: &'static str, what: impl Into<String>) -> Self {
        // Read errno first: `what.into()` may allocate and so may change it.
        let errno = Errno::last();
        SysError {
            call,
            errno,
            what: what.into(),
        }
    }

    /// The process (or its file in /proc) no longer exists.
    pub fn is_gone(&self) -> bool {
        matches!(self.errno, Errno::ESRCH | Errno::ENOENT)
    }

    /// The caller lacks a privilege.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno, Errno::EPERM | Errno::EACCES)
    }
}

/// Kernel text that does not look as expected: `/proc/42/maps line 7: no '-' between the addresses`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file} line {line}: {why}")]
pub struct ParseError {
    /// The file the text came from, or the name of the format when a parser was called on bare bytes.
    pub file: String,
    /// Line number, counted from 1.
    pub line: usize,
    /// What was expected.
    pub why: &'static str,
}

impl ParseError {
    /// An error at `line` (from 1) of `file`.
    pub fn new(file: impl Into<String>, line: usize, why: &'static str) -> Self {
        ParseError {
            file: file.into(),
            line,
            why,
        }
    }
}

/// Either of the two.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The kernel's text was not understood.
    #[error(transparent)]
    Parse(#[from] ParseError),
}

impl Error {
    /// The errno, when a system call failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Sys(e) => Some(e.errno),
            Error::Parse(_) => None,
        }
    }

    /// The process (or its file in /proc) no longer exists.
    pub fn is_gone(&self) -> bool {
        matches!(self, Error::Sys(e) if e.is_gone())
    }

    /// The caller lacks a privilege.
    pub fn is_denied(&self) -> bool {
        matches!(self, Error::Sys(e) if e.is_denied())
    }
}

/// Result of a wrapper that may also fail to understand the answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Result of a bare system call.
pub type SysResult<T> = std::result::Result<T, SysError>;

/// Turns a libc-style return value (-1 and `errno`) into a [`SysResult`]; `what` is only built on failure.
pub fn check<S: Into<String>>(
    ret: libc::c_long,
    call: &'static str,
    what: impl FnOnce() -> S,
) -> SysResult<libc::c_long> {
    if ret == -1 {
        let errno = Errno::last();
        return Err(SysError::new(call, errno, what()));
    }
    Ok(ret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_errno() {
        let e = SysError::new("openat", Errno::ENOENT, "/proc/42/maps");
        assert_eq!(
            e.to_string(),
            "openat /proc/42/maps: ENOENT (No such file or directory)"
        );
        let e = SysError::new("memfd_create", Errno::EMFILE, "");
        assert_eq!(e.to_string(), "memfd_create: EMFILE (Too many open files)");
        let e = ParseError::new("/proc/42/maps", 7, "no '-' between the addresses");
        assert_eq!(
            e.to_string(),
            "/proc/42/maps line 7: no '-' between the addresses"
        );
    }

    #[test]
    fn check_reads_errno_only_on_minus_one() {
        assert_eq!(check(7, "x", || "y").unwrap(), 7);
        // SAFETY: close of an invalid number touches nothing.
        let ret = unsafe { libc::close(-1) };
        let e = check(ret.into(), "close", || "fd -1").unwrap_err();
        assert_eq!(e.errno, Errno::EBADF);
    }
}
