//! Control groups (cgroups(7)) of a tree of tasks.
//!
//! - [`View`]: the hierarchies that are mounted where we can see them. Others are left alone, at dump and at restore.
//! - [`Collector`]: at dump, which groups the tasks are in, and what is set there (cgroup.img).
//! - [`Freezer`]: stops a group at once, before its tasks are seized one by one; puts it back whatever becomes of us.
//! - [`Plan`] and [`Groups`]: at restore, groups are made, tasks placed, properties set, in the order the kernel wants.
//!
//! Everything below a hierarchy is opened from the descriptor of its mount, never following a link and never leaving it, so
//! what an image or a container calls a group cannot lead elsewhere.
mod dump;
mod error;
mod freeze;
mod props;
mod restore;
mod view;

pub use dump::{Collector, What};
pub use error::{Error, Named, Result, Side};
pub use freeze::Freezer;
pub use props::Props;
pub use restore::{Groups, Mode, Plan, Roots};
pub use view::{Hierarchy, View};
