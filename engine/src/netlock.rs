//! The network lock, as dump, restore and the verbs use it: what the caller asked for becomes a lock of `stasis-netlock`.
//!
//! Dump: [`prepare`] while the tree runs, [`Lock::arm`] when it stands still, [`Lock::keep`] before it is killed; its number goes
//! into the inventory. Restore: [`adopt`] takes it over; [`Lock::open`] before connections leave repair, [`Lock::release`] when the
//! tree runs. A lock that is dropped on the way, or whose process dies, is gone.
use crate::error::{Blame, Error, Result};
use crate::options::{NetworkLock, Options};
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
pub use stasis_netlock::{Lock, Means, Owner, PASS_MARK, Report, Scope, Tuple};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tracing::debug;

impl From<stasis_netlock::Error> for Error {
    fn from(e: stasis_netlock::Error) -> Self {
        use stasis_netlock::Error as E;
        match e {
            E::Sys(e) => e.into(),
            E::Proc(e) => e.into(),
            E::Held(pid) => Error::new("E6611", Blame::Host, "the network lock cannot be released")
                .why(format!("process {pid}, which made it, is still at work"))
                .advice("end that process: the lock goes with it"),
            E::Load(_) | E::Object | E::Nothing(..) => {
                Error::new("E6610", Blame::Host, "packets cannot be held")
                    .why(e)
                    .advice("pass --network-lock nftables or skip; with skip nobody may send while the tree is away")
            }
        }
    }
}

/// Puts a lock in place for the tree of a task, if the caller wants one. With eBPF this takes some milliseconds, so it is done
/// while the tree runs. Locks that a dead engine left in the same namespace go at this occasion.
///
/// # Errors
/// The means that the caller named is not there.
pub fn prepare(o: &Options, task: HostPid, scope: Scope) -> Result<Option<Lock>> {
    prepare_in(o.network.lock, Ns::Net.of(task)?.as_fd(), scope)
}

/// [`prepare`] for a namespace by its handle: a fresh one is locked before its devices go up.
///
/// # Errors
/// As for [`prepare`].
pub fn prepare_in(means: NetworkLock, place: BorrowedFd<'_>, scope: Scope) -> Result<Option<Lock>> {
    let means = match means {
        NetworkLock::Auto => Means::Auto,
        NetworkLock::Ebpf => Means::Ebpf,
        NetworkLock::Nftables => Means::Nftables,
        NetworkLock::Skip => return Ok(None),
    };
    match stasis_netlock::sweep(place) {
        Ok(0) => {}
        Ok(n) => debug!("{n} locks of dead engines were taken away"),
        Err(e) => debug!("old locks were not looked for: {e}"),
    }
    Ok(Some(Lock::prepare(place, scope, means)?))
}

/// Puts a lock upon the caller's own network namespace, for connections of others that cross it.
///
/// # Errors
/// nftables is not allowed.
pub fn prepare_crossing() -> Result<Option<Lock>> {
    let place = own_place()?;
    if let Err(e) = stasis_netlock::sweep(place.as_fd()) {
        debug!("old locks were not looked for: {e}");
    }
    Ok(Some(Lock::prepare_crossing(place.as_fd())?))
}

/// The lock of this number that a dump has left on a namespace. `None`: it is gone, because the machine was started anew, or the
/// image comes from another one.
///
/// # Errors
/// The kernel cannot be asked.
pub fn adopt(id: &str, place: BorrowedFd<'_>) -> Result<Option<Lock>> {
    Ok(Lock::adopt(id, place)?)
}

/// A lock on a whole network namespace that was left for whoever restores into it ([`hold`]).
///
/// # Errors
/// The kernel cannot be asked.
pub fn adopt_open(place: BorrowedFd<'_>) -> Result<Option<Lock>> {
    Ok(Lock::adopt_open(place)?)
}

/// Locks a whole network namespace, named by a file of it, until somebody restores into it: before its devices go up, so that no
/// peer finds it without the connections that come back.
///
/// # Errors
/// The file cannot be opened, or neither means is allowed.
pub fn hold(place: &std::path::Path) -> Result<Report> {
    let file = std::fs::File::open(place).map_err(|e| {
        Error::new("E6553", Blame::Host, place.display().to_string())
            .why(e)
            .advice("name a file of a network namespace: /run/netns/NAME, /proc/PID/ns/net")
    })?;
    // all devices, also those that come later
    let made = prepare_in(NetworkLock::Nftables, file.as_fd(), Scope::WholeNamespace)
        .or_else(|_| prepare_in(NetworkLock::Ebpf, file.as_fd(), Scope::WholeNamespace))?;
    let Some(mut lock) = made else {
        return Err(Error::bug("a lock that nobody wants"));
    };
    lock.arm(&[])?;
    lock.keep_for_anyone()?;
    Ok(lock.report())
}

/// The caller's own network namespace.
///
/// # Errors
/// /proc cannot be read.
pub fn own_place() -> Result<OwnedFd> {
    Ok(Ns::Net.of(HostPid::own())?)
}

/// All locks in namespaces that can be reached.
///
/// # Errors
/// /proc cannot be read.
pub fn list() -> Result<Vec<Report>> {
    Ok(stasis_netlock::all()?.iter().map(Lock::report).collect())
}

/// Which locks `stasis netlock release` is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one of this number.
    Id(String),
    /// Those whose owner died without keeping them.
    Orphans,
    /// All but those whose owner is at work.
    All,
}

/// Releases locks; tells which.
///
/// # Errors
/// There is none of that number, or its owner is at work.
pub fn release(which: &Which) -> Result<Vec<Report>> {
    let mut done = Vec::new();
    let mut met = false;
    for lock in stasis_netlock::all()? {
        let report = lock.report();
        let busy = !report.kept && report.owner.lives() != Some(false);
        match which {
            Which::Id(id) if *id != report.id => continue,
            Which::Id(_) if busy => {
                return Err(stasis_netlock::Error::Held(report.owner.pid).into());
            }
            Which::Orphans if !lock.orphaned() => continue,
            Which::All if busy => continue,
            _ => {}
        }
        met = true;
        lock.release()?;
        done.push(report);
    }
    match which {
        Which::Id(id) if !met => {
            Err(
                Error::new("E6612", Blame::Host, format!("no network lock {id}"))
                    .why("none of this number is in a namespace that can be reached")
                    .advice("`stasis netlock list` tells the numbers"),
            )
        }
        _ => Ok(done),
    }
}
