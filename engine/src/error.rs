//! Every error is for a person: what, where, why, what to do, with a stable code.
use crate::phase::Phase;
use std::fmt;

/// Who can mend it; exit codes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The kernel lacks something or refuses it.
    Kernel,
    /// The processes hold something that cannot be carried, or moved while being frozen.
    Container,
    /// The image is damaged, hostile or of another format.
    Image,
    /// The machine: disk, memory, rights, names already taken.
    Host,
    /// The caller's options.
    Caller,
    /// A fault of stasis itself.
    Engine,
}

impl Blame {
    /// Exit code of the program: 1 is left to unexpected ends, 2 to the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            Blame::Caller => 2,
            Blame::Kernel => 3,
            Blame::Container => 4,
            Blame::Image => 5,
            Blame::Host => 6,
            Blame::Engine => 70,
        }
    }
    /// One lower-case word.
    pub fn word(self) -> &'static str {
        match self {
            Blame::Kernel => "kernel",
            Blame::Container => "container",
            Blame::Image => "image",
            Blame::Host => "host",
            Blame::Caller => "caller",
            Blame::Engine => "engine",
        }
    }
}

/// An error with its place. The code is stable; the words are not.
#[derive(Debug, Clone)]
pub struct Error {
    /// `E` and four digits; `docs/errors.md` lists them.
    pub code: &'static str,
    /// Who can mend it.
    pub blame: Blame,
    /// What could not be done, on what: "cannot dump fd 7 of task 42".
    pub what: String,
    /// Why, if that is more than `what` says.
    pub why: String,
    /// What to do about it: one sentence.
    pub advice: String,
    /// In which phase; set once by the driver.
    pub phase: Option<Phase>,
    /// Which kind; set once by the driver.
    pub kind: Option<&'static str>,
}

/// Results of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A new error without place or advice.
    pub fn new(code: &'static str, blame: Blame, what: impl Into<String>) -> Self {
        Self {
            code,
            blame,
            what: what.into(),
            why: String::new(),
            advice: String::new(),
            phase: None,
            kind: None,
        }
    }
    /// Adds the reason.
    pub fn why(mut self, why: impl fmt::Display) -> Self {
        self.why = why.to_string();
        self
    }
    /// Adds what to do.
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }
    /// Says the phase, unless it is known.
    pub fn at(mut self, phase: Phase) -> Self {
        self.phase.get_or_insert(phase);
        self
    }
    /// Says the kind, unless it is known.
    pub fn of(mut self, kind: &'static str) -> Self {
        self.kind.get_or_insert(kind);
        self
    }
    /// Puts a place before `what`: "task 42: ...".
    pub fn on(mut self, place: impl fmt::Display) -> Self {
        self.what = format!("{place}: {}", self.what);
        self
    }
    /// An assertion of the engine's own that did not hold.
    pub fn bug(what: impl Into<String>) -> Self {
        Self::new("E9001", Blame::Engine, what).advice("please report this with the log")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        match (self.phase, self.kind) {
            (Some(p), Some(k)) => write!(f, "\n  phase {p:?}, kind {k}")?,
            (Some(p), None) => write!(f, "\n  phase {p:?}")?,
            (None, Some(k)) => write!(f, "\n  kind {k}")?,
            (None, None) => {}
        }
        write!(f, "\n  blame: {}", self.blame.word())?;
        if !self.advice.is_empty() {
            write!(f, "    advice: {}", self.advice)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<stasis_kernel::error::SysError> for Error {
    fn from(e: stasis_kernel::error::SysError) -> Self {
        use nix::errno::Errno;
        let (code, blame, advice) = match e.errno {
            Errno::ENOSPC | Errno::EDQUOT => {
                ("E6001", Blame::Host, "make room where the images go")
            }
            Errno::EROFS => ("E6002", Blame::Host, "choose a folder that can be written"),
            Errno::EPERM | Errno::EACCES => (
                "E6003",
                Blame::Host,
                "run as root, or with the capabilities `stasis check` names",
            ),
            Errno::ENOMEM => (
                "E6004",
                Blame::Host,
                "free memory or raise the memory limit",
            ),
            Errno::EMFILE | Errno::ENFILE => (
                "E6005",
                Blame::Host,
                "raise the limit of open files (ulimit -n)",
            ),
            Errno::ESRCH => (
                "E4001",
                Blame::Container,
                "a task ended meanwhile: try again",
            ),
            Errno::ENOSYS => (
                "E3001",
                Blame::Kernel,
                "run `stasis check` to see what this kernel lacks",
            ),
            _ => (
                "E3002",
                Blame::Kernel,
                "run `stasis check`; the log has the calls before this one",
            ),
        };
        Error::new(code, blame, e.to_string()).advice(advice)
    }
}

impl From<stasis_proto::ImageError> for Error {
    fn from(e: stasis_proto::ImageError) -> Self {
        // the machine's fault, not the image's: a full disk, a read-only folder, no rights
        if let stasis_proto::Problem::Io { source, .. } = &e.problem
            && let Some(errno) = source.raw_os_error()
            && matches!(
                errno,
                libc::ENOSPC
                    | libc::EDQUOT
                    | libc::EROFS
                    | libc::EACCES
                    | libc::EPERM
                    | libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOMEM
            )
        {
            let of = stasis_kernel::error::SysError::new(
                "image",
                nix::errno::Errno::from_raw(errno),
                e.to_string(),
            );
            let like = Error::from(of);
            return Error {
                what: e.to_string(),
                why: source.to_string(),
                ..like
            };
        }
        let why = match &e.problem {
            stasis_proto::Problem::Io { source, .. } => source.to_string(),
            _ => String::new(),
        };
        Error::new(e.code(), Blame::Image, e.to_string())
            .why(why)
            .advice("dump again, or copy the folder again if it was copied")
    }
}

impl From<stasis_kernel::error::Error> for Error {
    fn from(e: stasis_kernel::error::Error) -> Self {
        match e {
            stasis_kernel::error::Error::Sys(e) => e.into(),
            e => Error::new("E3003", Blame::Kernel, e.to_string()).advice(
                "this kernel writes /proc in a form stasis does not know: please report it",
            ),
        }
    }
}

impl From<stasis_cgroups::Error> for Error {
    fn from(e: stasis_cgroups::Error) -> Self {
        use stasis_cgroups::Side;
        match e {
            stasis_cgroups::Error::Kernel(e) => e.into(),
            stasis_cgroups::Error::Named(n) => {
                let blame = match n.side {
                    Side::Container => Blame::Container,
                    Side::Image => Blame::Image,
                    Side::Host => Blame::Host,
                    Side::Caller => Blame::Caller,
                };
                Error::new(n.code, blame, n.what)
                    .why(n.why)
                    .advice(n.advice)
            }
        }
    }
}
