//! The story of stasis: dump() and restore().
pub mod error;
pub mod kinds;
pub mod options;
pub mod phase;

pub use error::{Blame, Error, Result};
pub use options::{After, Options};
pub use phase::Phase;
