//! The network lock of a dump and of a restore: from when on packets of the tree are held, and until when.
//!
//! A dump makes it ready while the tree runs, closes it before the first connection is looked at, and leaves it behind when
//! the tree is dead; its number is in the inventory. It opens again when the dump fails, when the tree runs on, and when the engine
//! dies. A restore takes over the one that is there, or makes one, before there is any socket, and opens it just
//! before connections wake up.
use crate::error::{Blame, Error, Result};
use crate::kinds::inet_address as address;
use crate::kinds::inet_options::state;
use crate::netlock::{self, Lock, Scope, Tuple};
use crate::options::{After, NetworkLock, Options};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;
use tracing::debug;

/// Nobody wants to keep connections, or the caller says that nobody sends.
fn needless(o: &Options) -> bool {
    !o.network.tcp_established || o.network.tcp_close || o.network.lock == NetworkLock::Skip
}

/// The locks of a dump.
#[derive(Debug, Default)]
pub struct Made {
    /// Upon the tree's network namespace.
    pub own: Option<Lock>,
    /// Upon the engine's, if tasks of the tree live in another one. Runtimes throw a container's namespace away when it was
    /// checkpointed, and bring up a new one before they ask for the restore: who sends meanwhile would be told that nobody is
    /// there (RST).
    pub crossing: Option<Lock>,
}

/// The locks of a dump while they are made, by a thread: loading programs takes some milliseconds, and nothing needs them before
/// the first connection is looked at. Dropped, they are taken away.
#[derive(Debug, Default)]
pub struct Locks(Option<JoinHandle<Result<Made>>>);

impl Locks {
    /// Nobody wants to keep connections, or the caller says that nobody sends.
    pub fn are_needless(&self) -> bool {
        self.0.is_none()
    }
    /// They are there, and hold nothing yet.
    ///
    /// # Errors
    /// The means that was asked for is not allowed, or none is.
    pub fn ready(mut self) -> Result<Made> {
        match self.0.take() {
            None => Ok(Made::default()),
            Some(thread) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        }
    }
}

impl Drop for Locks {
    /// They must not come after the end of the dump.
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}

/// Begins to make locks ready for a tree with these tasks.
pub fn prepare(o: &Options, tasks: Vec<HostPid>) -> Locks {
    if needless(o) {
        return Locks::default();
    }
    let o = o.clone();
    let log = tracing::dispatcher::get_default(Clone::clone);
    Locks(Some(std::thread::spawn(move || {
        tracing::dispatcher::with_default(&log, || make(&o, &tasks))
    })))
}

fn make(o: &Options, tasks: &[HostPid]) -> Result<Made> {
    let root = HostPid(o.pid);
    let theirs = ProcDir::open(root)?.ns("net")?;
    let engine = ProcDir::open(HostPid::own())?.ns("net")?;
    let external = &o.namespaces.external;
    let shared = theirs == engine
        || external
            .iter()
            .any(|(n, ino, _)| n == "net" && *ino == theirs);
    let scope = match shared {
        true => Scope::Connections,
        false => Scope::WholeNamespace,
    };
    let elsewhere = |t: &HostPid| {
        let there = ProcDir::open(*t).ok().and_then(|p| p.ns("net").ok());
        there.is_some_and(|n| n != engine)
    };
    let crossing = match o.after == After::Default && tasks.iter().any(elsewhere) {
        // without it the peers' packets are lost or answered, as they were before there was such a lock
        true => netlock::prepare_crossing().unwrap_or_else(|e| {
            debug!("connections that cross this network namespace are not held in it: {e}");
            None
        }),
        false => None,
    };
    Ok(Made {
        own: netlock::prepare(o, root, scope)?,
        crossing,
    })
}

/// A lock for all of a network namespace that tasks below the root have for themselves, closed. The quickest one, since it is met when
/// all stands still. It goes with the engine: so does such a namespace with its tasks.
///
/// # Errors
/// The kernel refuses.
pub fn nested(o: &Options, place: BorrowedFd<'_>) -> Result<Option<Lock>> {
    let mut lock = quickly(o, |means| {
        netlock::prepare_in(means, place, Scope::WholeNamespace)
    })?;
    if let Some(lock) = &mut lock {
        close(lock, &[])?;
    }
    Ok(lock)
}

/// Where nothing was made ready: nftables is in place soonest. Another means only if the caller named it, or where it is refused.
fn quickly(
    o: &Options,
    make: impl Fn(NetworkLock) -> Result<Option<Lock>>,
) -> Result<Option<Lock>> {
    if o.network.lock == NetworkLock::Auto
        && let Ok(lock) = make(NetworkLock::Nftables)
    {
        return Ok(lock);
    }
    make(o.network.lock)
}

/// Closes it.
///
/// # Errors
/// The kernel refuses; nothing is held then.
pub fn close(lock: &mut Lock, tuples: &[Tuple]) -> Result<()> {
    Ok(lock.arm(tuples)?)
}

/// Makes a lock ready for a restore that is to come, in the caller's own network namespace.
///
/// # Errors
/// As for [`prepare`].
pub fn make_ready(o: &Options) -> Result<()> {
    if needless(o) {
        return Ok(());
    }
    let lock = netlock::prepare_in(
        o.network.lock,
        netlock::own_place()?.as_fd(),
        Scope::Connections,
    )?;
    *o.network
        .ready
        .0
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = lock;
    Ok(())
}

/// What must be held of the sockets of an image: connections, and who waits for them.
fn tuples(o: &Options, files: &BTreeMap<u32, pb::FileEntry>) -> Vec<Tuple> {
    let mut all = Vec::new();
    for f in files.values() {
        let Some(e) = f
            .isk
            .as_deref()
            .filter(|e| e.proto == libc::IPPROTO_TCP as u32)
        else {
            continue;
        };
        let at = |w: &[u32], port| address::from_words(f, e.family as i32, w, port).ok();
        let (Some(local), Some(peer)) = (at(&e.src_addr, e.src_port), at(&e.dst_addr, e.dst_port))
        else {
            continue;
        };
        all.extend(tuple(
            e.state,
            address::moved(&o.network.addresses, local),
            address::peer_moved(&o.network.addresses, peer, files),
        ));
    }
    all
}

/// What holds one TCP socket's packets.
pub fn tuple(s: u32, local: SocketAddr, peer: SocketAddr) -> Option<Tuple> {
    match s {
        state::LISTEN => Some(Tuple {
            protocol: libc::IPPROTO_TCP as u8,
            local,
            remote: None,
        }),
        state::CLOSE => None,
        _ => Some(Tuple::tcp(local, peer)),
    }
}

/// Before a restore makes sockets: takes over the lock that the dump left in the namespace, or makes one. `place`: the
/// namespace by a path, or the engine's own.
///
/// # Errors
/// The kernel refuses.
pub fn hold(
    o: &Options,
    dir: &ImageDir,
    files: &BTreeMap<u32, pb::FileEntry>,
    place: Option<&Path>,
) -> Result<Option<Lock>> {
    if needless(o) {
        return Ok(None);
    }
    let elsewhere = place.is_some();
    let place: OwnedFd = match place {
        None => netlock::own_place()?,
        Some(p) => std::fs::File::open(p)
            .map_err(|e| {
                Error::new("E6553", Blame::Host, p.display().to_string())
                    .why(e)
                    .advice("name a file of a network namespace")
            })?
            .into(),
    };
    let inventory: pb::InventoryEntry = dir.read_one(&Kind::Inventory.file())?;
    let left = inventory.stasis_network_lock.as_deref();
    if let Some(id) = left
        && let Some(lock) = netlock::adopt(id, place.as_fd())?
    {
        return Ok(Some(lock));
    }
    if let Some(lock) = netlock::adopt_open(place.as_fd())? {
        return Ok(Some(lock));
    }
    let all = tuples(o, files);
    if !all.iter().any(|t| t.remote.is_some()) {
        return Ok(None);
    }
    if let Some(mut lock) = o.network.ready.take().filter(|_| !elsewhere) {
        close(&mut lock, &all)?;
        return Ok(Some(lock));
    }
    // the tree is away
    quickly(o, |means| {
        let mut lock = netlock::prepare_in(means, place.as_fd(), Scope::Connections)?;
        if let Some(lock) = &mut lock {
            close(lock, &all)?;
        }
        Ok(lock)
    })
}

/// The lock that a dump has left where the tree's connections cross the engine's network namespace. Whoever holds it opens it;
/// dropped, it stays.
///
/// # Errors
/// A damaged inventory.
pub fn crossing(o: &Options, dir: &ImageDir) -> Result<Option<Lock>> {
    if needless(o) {
        return Ok(None);
    }
    let inventory: pb::InventoryEntry = dir.read_one(&Kind::Inventory.file())?;
    match inventory.stasis_crossing_lock {
        Some(id) => netlock::adopt(&id, netlock::own_place()?.as_fd()),
        None => Ok(None),
    }
}

/// Packets flow again.
///
/// # Errors
/// The kernel refuses.
pub fn open(lock: &mut Lock) -> Result<()> {
    Ok(lock.open()?)
}

/// It stays when the engine ends.
///
/// # Errors
/// The kernel refuses.
pub fn keep(lock: &mut Lock) -> Result<()> {
    Ok(lock.keep()?)
}
