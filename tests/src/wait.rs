//! Waiting, with the patience of this machine.
use crate::case;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::time::{Duration, Instant};

/// Waits until it is so.
///
/// # Panics
/// It takes too long; `what` is named.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        let patience = Duration::from_secs(case::patience());
        assert!(begun.elapsed() < patience, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// [`until`], for the first process of a namespace, which inherits all orphans.
///
/// # Panics
/// As [`until`].
pub fn until_reaping(what: &str, mut done: impl FnMut() -> bool) {
    until(what, || {
        let so = done();
        reap();
        so
    });
}

/// Reaps all children that have ended.
pub fn reap() {
    while let Ok(s) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if s == WaitStatus::StillAlive {
            break;
        }
    }
}
