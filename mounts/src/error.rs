//! Errors about mounts, as the engine has them: code, blame, what, why, advice.
use std::fmt;

/// Who can mend it; as in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The kernel lacks something or refuses it.
    Kernel,
    /// The tree has a mount that cannot be carried.
    Container,
    /// The image is damaged or hostile.
    Image,
    /// The machine.
    Host,
    /// The caller did not say what is needed.
    Caller,
}

/// An error about a mount: what, why, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// `E` and four digits; `docs/errors.md` lists them.
    pub code: &'static str,
    /// Who can mend it.
    pub blame: Blame,
    /// What could not be done, on what.
    pub what: String,
    /// Why, if that is more than `what` says.
    pub why: String,
    /// What to do about it.
    pub advice: String,
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A new error without reason or advice.
    pub fn new(code: &'static str, blame: Blame, what: impl Into<String>) -> Self {
        Self {
            code,
            blame,
            what: what.into(),
            why: String::new(),
            advice: String::new(),
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
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
