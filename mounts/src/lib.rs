//! Mount trees: what a mount namespace holds, and how it is built again.
//!
//! Pure code first: [`look`] judges what a dump saw in mountinfo, [`Tree`] checks what an image claims, [`plan`] turns a tree
//! into rows of calls that can be printed. Only [`Row::perform`] acts, and [`archive`] reads or writes the contents of a tmpfs.

/// The contents of a tmpfs as a tar.
pub mod archive;
/// autofs.
pub mod autofs;
/// binfmt_misc of a user namespace.
pub mod binfmt;
mod error;
/// The file system types that are known, and what a restore makes of them.
pub mod fstype;
/// Owners as the tree knows them.
pub mod ids;
/// From mountinfo to entries.
pub mod look;
/// Overlays: their layers, and how they are mounted again.
pub mod overlay;
mod perform;
/// From entries to rows.
pub mod plan;
/// Mounts that others hide.
pub mod reach;
mod tree;

pub use error::{Blame, Error, Result};
pub use ids::Ids;
pub use perform::Performer;
pub use plan::{Caller, Plan, Proc, Row, Step, plan};
pub use tree::{Mount, Tree};

/// Flags of mount(2) and the attributes of mount_setattr(2) that mean the same.
pub mod flags;
