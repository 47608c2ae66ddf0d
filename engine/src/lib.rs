//! The story of stasis: [`dump`] and [`restore`] of process trees, and the plan between image and act.
pub mod archive;
mod cgroups;
pub mod check;
mod clocks;
mod dedup;
pub mod dump;
pub mod error;
pub mod events;
pub mod far;
pub mod inherited;
pub mod kinds;
mod lazy;
pub mod lazy_daemon;
mod lazy_views;
mod lsm;
pub mod migrate;
mod namespaces;
pub mod netlock;
pub mod network;
pub mod options;
pub mod packed;
pub mod pages;
pub mod phase;
pub mod plugins;
pub mod remote;
pub mod report;
pub mod restore;
pub mod seccomp;
pub mod tls;
mod vault;
mod workers;

pub use check::{check, probes};
pub use dedup::dedup;
pub use error::{Blame, Error, Result};
pub use events::{EventSink, Moment, Watcher};
pub use options::{After, Options};
pub use phase::Phase;
pub use plugins::Plugin;
pub use report::{DumpReport, RestoreReport};

pub use dump::{dump, pre_dump, preflight};

/// A place where tests kill the engine: the n-th one passed, as `STASIS_KILL_AT` says; costs one relaxed load otherwise.
pub fn kill_point() {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static AT: OnceLock<Option<u32>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    if let Some(at) = AT.get_or_init(|| std::env::var("STASIS_KILL_AT").ok()?.parse().ok())
        && PASSED.fetch_add(1, Ordering::Relaxed) == *at
    {
        stasis_kernel::ptrace::die();
    }
}

pub use restore::folder as open_images;
pub use restore::restore;
pub use restore::show_plan as plan;
#[cfg(target_env = "gnu")]
pub use stasis_kernel::memory::give_back_soon;
