//! The network lock: between the freeze of a tree and the moment its restored sockets live, no packet of its connections is
//! answered, reset or delivered. Whoever sent it sends it again.
//!
//! [`Lock::prepare`] puts everything in place while the tree runs; [`Lock::arm`] closes it, [`Lock::open`] opens it, both by one
//! word (eBPF) or one netlink message (nftables). A lock goes with its process, however that ends, unless it was kept
//! ([`Lock::keep`]): then it waits for whoever adopts it ([`Lock::adopt`]).
mod clsact;
mod ebpf;
mod nft;
mod state;
mod tuple;

pub use state::{Owner, Scope};
pub use tuple::Tuple;

use nix::errno::Errno;
use stasis_kernel::error::SysError;
use stasis_kernel::ids::HostPid;
use stasis_kernel::netlink::{Messages, Netlink};
use stasis_kernel::ns::{self, Ns};
use state::State;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tracing::{debug, info, warn};

/// Packets of sockets with this mark (SO_MARK) pass every lock.
pub const PASS_MARK: u32 = 0x5741_5353;
/// Putting programs on a device takes the kernel about half a millisecond. With more devices than this the choice of the means, where
/// it is free, falls on nftables.
const DEVICES: usize = 64;

/// How packets are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// eBPF where it is allowed and there are few devices, else nftables.
    Auto,
    /// Programs on devices.
    Ebpf,
    /// Rules of nftables.
    Nftables,
}

/// What went wrong with a lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The kernel refused a program.
    #[error("{0}")]
    Load(String),
    /// The object of the programs is not the one this crate was built for.
    #[error("the lock's object file has another shape")]
    Object,
    /// /proc has another form.
    #[error(transparent)]
    Proc(#[from] stasis_kernel::error::Error),
    /// The owner of the lock lives, so only it may release it.
    #[error("process {0} holds it")]
    Held(i32),
    /// Neither means is there.
    #[error("neither eBPF ({0}) nor nftables ({1})")]
    Nothing(Box<Error>, Box<Error>),
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Error::Sys(SysError::new(
            "dup",
            Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            "",
        ))
    }
}

/// A lock upon a network namespace.
#[derive(Debug)]
pub struct Lock {
    state: State,
    place: OwnedFd,
    bpf: Option<ebpf::Net>,
    nft: Option<nft::Net>,
    released: bool,
}

/// What is known of a lock that holds nothing yet.
fn fresh(place: &OwnedFd, scope: Scope) -> Result<State, Error> {
    Ok(State {
        armed: false,
        scope,
        mark: PASS_MARK,
        kept: false,
        open_to_all: false,
        id: fresh_id()?,
        owner: Owner::own()?,
        place: state::inode(place)?,
    })
}

impl Lock {
    /// Puts a lock in place that holds nothing yet. With eBPF that takes some milliseconds, in which nothing need stand still.
    ///
    /// # Errors
    /// The means that was asked for is not allowed, or none is.
    pub fn prepare(place: BorrowedFd<'_>, scope: Scope, means: Means) -> Result<Self, Error> {
        let place = place.try_clone_to_owned()?;
        let state = fresh(&place, scope)?;
        let (bpf, nft) = ns::visit(&[(Ns::Net, place.as_fd())], || nets(&state, means))??;
        debug!("network lock {:016x}: {:?}", state.id, means_of(&bpf, &nft));
        Ok(Self {
            state,
            place,
            bpf,
            nft,
            released: false,
        })
    }
    /// As [`Lock::prepare`], upon a namespace that connections only cross, over its devices or within one of its bridges: their
    /// ends are elsewhere. Only whole connections are held, by nftables.
    ///
    /// # Errors
    /// nftables is not allowed.
    pub fn prepare_crossing(place: BorrowedFd<'_>) -> Result<Self, Error> {
        let place = place.try_clone_to_owned()?;
        let state = fresh(&place, Scope::Connections)?;
        let nft = ns::visit(&[(Ns::Net, place.as_fd())], || nft::Net::prepare(true))??;
        Ok(Self {
            state,
            place,
            bpf: None,
            nft: Some(nft),
            released: false,
        })
    }
    /// The lock's number: text of 16 digits, as `stasis netlock list` shows it.
    pub fn id(&self) -> String {
        format!("{:016x}", self.state.id)
    }
    /// The mark of sockets whose packets pass.
    pub fn pass_mark(&self) -> u32 {
        self.state.mark
    }
    /// Closes it: from now on packets are held. For [`Scope::Connections`] these are they; for the other scope they do not matter.
    ///
    /// # Errors
    /// The kernel refuses; then nothing is held.
    pub fn arm(&mut self, tuples: &[Tuple]) -> Result<(), Error> {
        let state = State {
            armed: true,
            ..self.state
        };
        if let Some(b) = &mut self.bpf {
            if state.scope == Scope::Connections {
                b.add(tuples)?;
            }
            b.write(&state)?;
        }
        self.state = state;
        let but = self
            .bpf
            .as_ref()
            .map(|b| b.devices.clone())
            .unwrap_or_default();
        if let Some(n) = &mut self.nft {
            let rules = nft::Rules {
                but,
                tuples: tuples.to_vec(),
            };
            if let Err(e) = n.arm(&state, rules) {
                if self.bpf.is_none() {
                    self.state.armed = false;
                    return Err(e);
                }
                // the second net only
                warn!("devices that appear from now on are not held: {e}");
                self.nft = None;
            }
        }
        Ok(())
    }
    /// [`Lock::keep`], for whoever restores into the namespace next.
    ///
    /// # Errors
    /// As for [`Lock::keep`].
    pub fn keep_for_anyone(&mut self) -> Result<(), Error> {
        self.state.open_to_all = true;
        self.keep()
    }
    /// From now on the lock outlives this process: it waits for a restore, or for `stasis netlock release`.
    ///
    /// # Errors
    /// The kernel refuses; the lock then goes with this process as before.
    pub fn keep(&mut self) -> Result<(), Error> {
        let state = State {
            kept: true,
            ..self.state
        };
        if let Some(n) = &mut self.nft {
            n.keep(&state)?;
        }
        if let Some(b) = &mut self.bpf {
            b.write(&state)?;
        }
        self.state = state;
        self.released = true;
        Ok(())
    }
    /// Opens it: packets flow. What is left of it holds nothing and goes with [`Lock::release`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(&mut self) -> Result<(), Error> {
        self.state.armed = false;
        if let Some(b) = &mut self.bpf {
            b.write(&self.state)?;
        }
        match &mut self.nft {
            Some(n) => n.release(self.state.id),
            None => Ok(()),
        }
    }
    /// Opens it and takes everything away. With eBPF that takes a while for each device, so it is done when the tree runs.
    ///
    /// # Errors
    /// The kernel refuses to open it.
    pub fn release(mut self) -> Result<(), Error> {
        self.undo()
    }
    fn undo(&mut self) -> Result<(), Error> {
        self.released = true;
        let opened = self.open();
        if let Some(b) = &mut self.bpf {
            ns::visit(&[(Ns::Net, self.place.as_fd())], || b.detach())?;
        }
        opened
    }
    /// Takes over the lock of this number that a dump has kept on a namespace. `None`: it is not there (any more).
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn adopt(id: &str, place: BorrowedFd<'_>) -> Result<Option<Self>, Error> {
        Self::adopt_first(place, |l| l.id() == id)
    }
    /// Takes over a lock that was kept for anyone ([`Lock::keep_for_anyone`]).
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn adopt_open(place: BorrowedFd<'_>) -> Result<Option<Self>, Error> {
        Self::adopt_first(place, |l| l.state.kept && l.state.open_to_all)
    }
    fn adopt_first(
        place: BorrowedFd<'_>,
        which: impl Fn(&Self) -> bool,
    ) -> Result<Option<Self>, Error> {
        let mut found = all_in(place)?;
        let at = found.iter().position(which);
        Ok(at.map(|at| {
            let mut l = found.swap_remove(at);
            l.released = true;
            l
        }))
    }
}

impl Drop for Lock {
    /// The emergency brake: a lock that nobody kept does not stay.
    fn drop(&mut self) {
        if !self.released
            && let Err(e) = self.undo()
        {
            warn!("network lock {}: {e}", self.id());
        }
    }
}

/// Makes both nets, in the namespace.
#[allow(clippy::type_complexity)]
fn nets(state: &State, means: Means) -> Result<(Option<ebpf::Net>, Option<nft::Net>), Error> {
    let nft = nft::Net::prepare(false);
    if means == Means::Nftables {
        return Ok((None, Some(nft?)));
    }
    let devices = devices()?;
    if means == Means::Auto && devices.len() > DEVICES && nft.is_ok() {
        return Ok((None, nft.ok()));
    }
    match (ebpf::Net::prepare(state, &devices), nft) {
        (Ok(b), nft) => Ok((Some(b), nft.ok())),
        (Err(e), _) if means == Means::Ebpf => Err(e),
        (Err(e), Ok(nft)) => {
            info!("the network is locked by nftables alone, eBPF cannot be had: {e}");
            Ok((None, Some(nft)))
        }
        (Err(e), Err(n)) => Err(Error::Nothing(Box::new(e), Box::new(n))),
    }
}

fn means_of(bpf: &Option<ebpf::Net>, nft: &Option<nft::Net>) -> &'static str {
    match (bpf, nft) {
        (Some(_), Some(_)) => "ebpf and nftables",
        (Some(_), None) => "ebpf",
        _ => "nftables",
    }
}

/// Numbers of the devices of the namespace the caller is in.
fn devices() -> Result<Vec<u32>, Error> {
    const RTM_GETLINK: u16 = 18;
    let links = Netlink::route()?.dump("rtnetlink(RTM_GETLINK)", RTM_GETLINK, &[0; 16])?;
    Ok(Messages(&links)
        .flatten()
        .filter_map(|m| m.u32(4))
        .collect())
}

fn fresh_id() -> Result<u64, Error> {
    let mut b = [0; 8];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut b)?;
    Ok(u64::from_le_bytes(b))
}

/// What is known of a lock that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its number.
    pub id: String,
    /// Does it hold packets now?
    pub armed: bool,
    /// Does it outlive its owner on purpose?
    pub kept: bool,
    /// What it holds.
    pub scope: Scope,
    /// "ebpf", "nftables", or both.
    pub means: &'static str,
    /// Who made it.
    pub owner: Owner,
    /// Inode number of the network namespace.
    pub namespace: u64,
}

impl Lock {
    /// What `stasis netlock list` shows.
    pub fn report(&self) -> Report {
        Report {
            id: self.id(),
            armed: self.state.armed,
            kept: self.state.kept,
            scope: self.state.scope,
            means: means_of(&self.bpf, &self.nft),
            owner: self.state.owner,
            namespace: self.state.place.1,
        }
    }
    /// Is its owner gone without having kept it?
    pub fn orphaned(&self) -> bool {
        !self.state.kept && self.state.owner.lives() == Some(false)
    }
}

/// All locks of one namespace.
///
/// # Errors
/// The kernel cannot be asked.
pub fn all_in(place: BorrowedFd<'_>) -> Result<Vec<Lock>, Error> {
    let which = state::inode(&place)?;
    let here = place.try_clone_to_owned()?;
    // without the right to ask for programs there are none of ours
    let programs = ebpf::all().unwrap_or_default();
    let mine: Vec<_> = programs
        .into_iter()
        .filter(|(s, _)| s.place == which)
        .collect();
    ns::visit(&[(Ns::Net, place)], || {
        let devices = devices()?;
        let mut found: BTreeMap<u64, Lock> = BTreeMap::new();
        for (state, mut net) in mine {
            net.look(&devices);
            // KERNEL: programs live on for a moment when they were taken away (net/sched/cls_bpf.c, cls_bpf_delete_prog_work())
            if net.devices.is_empty() {
                continue;
            }
            found.insert(state.id, lock(state, &here, Some(net), None)?);
        }
        for (state, net) in nft::all()? {
            match found.get_mut(&state.id) {
                Some(l) => l.nft = Some(net),
                None => {
                    found.insert(state.id, lock(state, &here, None, Some(net))?);
                }
            }
        }
        Ok(found.into_values().collect())
    })?
}

fn lock(
    state: State,
    place: &OwnedFd,
    bpf: Option<ebpf::Net>,
    nft: Option<nft::Net>,
) -> Result<Lock, Error> {
    Ok(Lock {
        state,
        place: place.try_clone()?,
        bpf,
        nft,
        // what was found is not this process's to take away by accident
        released: true,
    })
}

/// All locks of the network namespaces that can be reached: those of tasks, and those that are mounted somewhere.
///
/// # Errors
/// /proc cannot be read.
pub fn all() -> Result<Vec<Lock>, Error> {
    let mut places: BTreeMap<u64, OwnedFd> = BTreeMap::new();
    let mut add = |fd: OwnedFd| {
        if let Ok((_, ino)) = state::inode(&fd) {
            places.entry(ino).or_insert(fd);
        }
    };
    add(Ns::Net.of(HostPid::own())?);
    for entry in std::fs::read_dir("/proc")?.flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok())
            && let Ok(fd) = Ns::Net.of(HostPid(pid))
        {
            add(fd);
        }
    }
    // namespaces without a task: `ip netns add`, netavark
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (root, point) = (words.nth(3), words.next());
        if let (Some(root), Some(point)) = (root, point)
            && root.starts_with("net:[")
            && let Ok(f) = File::open(point)
        {
            add(f.into());
        }
    }
    let mut found = Vec::new();
    for fd in places.values() {
        // a namespace of a user namespace that is not ours cannot be entered
        match all_in(fd.as_fd()) {
            Ok(more) => found.extend(more),
            Err(e) => debug!("a network namespace cannot be looked at: {e}"),
        }
    }
    Ok(found)
}

/// Releases the locks of a namespace whose owner died without keeping them; says how many. They hold nothing any more, but their
/// programs are still on the devices.
///
/// # Errors
/// The kernel cannot be asked.
pub fn sweep(place: BorrowedFd<'_>) -> Result<usize, Error> {
    let mut n = 0;
    for lock in all_in(place)? {
        if lock.orphaned() {
            lock.release()?;
            n += 1;
        }
    }
    Ok(n)
}
