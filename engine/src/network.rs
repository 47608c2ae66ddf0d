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
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use tracing::debug;

/// Nobody wants to keep connections, or the caller says that nobody sends.
fn needless(o: &Options) -> bool {
    !o.network.tcp_established || o.network.tcp_close || o.network.lock == NetworkLock::Skip
}

/// The locks of a dump.
#[derive(Debug, Default)]
pub struct Locks {
    /// Upon the tree's network namespace.
    pub own: Option<Lock>,
    /// Upon the engine's, if that is another one. Runtimes throw a container's namespace away when it was checkpointed, and
    /// bring up a new one before they ask for the restore: who sends meanwhile would be told that nobody is there (RST).
    pub crossing: Option<Lock>,
}

impl Locks {
    /// Is anything to be held?
    pub fn are_some(&self) -> bool {
        self.own.is_some() || self.crossing.is_some()
    }
}

/// Makes locks ready that hold nothing yet.
///
/// # Errors
/// The means that was asked for is not allowed, or none is.
pub fn prepare(o: &Options) -> Result<Locks> {
    if needless(o) {
        return Ok(Locks::default());
    }
    let root = HostPid(o.pid);
    let theirs = ProcDir::open(root)?.ns("net")?;
    let ours = theirs == ProcDir::open(HostPid::own())?.ns("net")?;
    let external = &o.namespaces.external;
    let shared = ours
        || external
            .iter()
            .any(|(n, ino, _)| n == "net" && *ino == theirs);
    let scope = match shared {
        true => Scope::Connections,
        false => Scope::WholeNamespace,
    };
    let crossing = match !ours && o.after == After::Default {
        // without it the peers' packets are lost or answered, as they were before there was such a lock
        true => netlock::prepare_crossing().unwrap_or_else(|e| {
            debug!("connections that cross this network namespace are not held in it: {e}");
            None
        }),
        false => None,
    };
    Ok(Locks {
        own: netlock::prepare(o, root, scope)?,
        crossing,
    })
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
    // the tree is away: what is in place soonest is best
    let quick = match o.network.lock {
        NetworkLock::Auto => Some(NetworkLock::Nftables),
        _ => None,
    };
    let try_with = |means| -> Result<Option<Lock>> {
        let mut lock = netlock::prepare_in(means, place.as_fd(), Scope::Connections)?;
        if let Some(lock) = &mut lock {
            close(lock, &all)?;
        }
        Ok(lock)
    };
    match quick.map(try_with) {
        Some(Ok(lock)) => Ok(lock),
        _ => try_with(o.network.lock),
    }
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
