//! What this kernel can do for this user: the probes of the kernel crate, for the doors.
pub use stasis_kernel::probe::{Outcome, Report};

/// Runs every probe. Takes some milliseconds; makes short-lived children and leaves nothing behind.
pub fn check() -> Vec<Report> {
    stasis_kernel::probe::run()
}
