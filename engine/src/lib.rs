//! The story of stasis: [`dump`] and [`restore`] of process trees, and the plan between image and act.
pub mod check;
pub mod error;
pub mod kinds;
pub mod options;
pub mod phase;
pub mod report;

pub use check::check;
pub use error::{Blame, Error, Result};
pub use options::{After, Options};
pub use phase::Phase;
pub use report::{DumpReport, RestoreReport};

/// Dumps the tree under `o.pid` into `o.images`.
pub fn dump(_o: &Options) -> Result<DumpReport> {
    Err(Error::bug("dump is being built"))
}

/// Brings the tree in `o.images` back.
pub fn restore(_o: &Options) -> Result<RestoreReport> {
    Err(Error::bug("restore is being built"))
}

/// Every tape and host call of a restore, for people; nothing is done.
pub fn plan(_o: &Options) -> Result<String> {
    Err(Error::bug("plan is being built"))
}

/// Walks the tree under `pid` without touching it and names everything that could not be dumped.
pub fn preflight(_o: &Options) -> Result<Vec<Error>> {
    Err(Error::bug("preflight is being built"))
}
