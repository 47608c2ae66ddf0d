//! What this kernel can do for this user: the probes of the kernel crate, for the doors.
pub use stasis_kernel::probe::{Outcome, Probe, Report};

/// Runs every probe. Takes some milliseconds; makes short-lived children and leaves nothing behind.
pub fn check() -> Vec<Report> {
    stasis_kernel::probe::run()
}

/// The probes themselves, for a caller who asks for one of them only.
pub fn probes() -> &'static [Probe] {
    stasis_kernel::probe::all()
}
