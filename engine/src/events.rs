//! Moments of a dump or restore at which others have a say: runtimes by RPC, action scripts, hooks.
use crate::error::Result;
use crate::options::Options;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A moment, with CRIU's name for it. Those that carry a pid name the root of the tree as the engine's pid namespace sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Dump: nothing is touched yet.
    PreDump,
    /// Dump: the tree is frozen, its packets are about to be held. Restore: the same before sockets are made.
    NetworkLock,
    /// The tree's packets may flow again.
    NetworkUnlock,
    /// Dump: images are complete; the tree is still frozen.
    PostDump,
    /// Dump: pages that stayed with the frozen tree may be asked for.
    StatusReady,
    /// Restore: nothing is made yet.
    PreRestore,
    /// Restore: namespaces exist, and the root in them; nothing else does.
    SetupNamespaces(i32),
    /// Restore: what is in the namespaces (mounts, devices) is there.
    PostSetupNamespaces(i32),
    /// Restore: the tree is complete; it does not run yet. An error still undoes all.
    PostRestore(i32),
    /// Restore: the last moment before it runs.
    PreResume(i32),
    /// Restore: it runs. An error changes nothing.
    PostResume(i32),
}

impl Moment {
    /// CRIU's name (`CRTOOLS_SCRIPT_ACTION`, `criu_notify.script`).
    pub fn name(self) -> &'static str {
        match self {
            Moment::PreDump => "pre-dump",
            Moment::NetworkLock => "network-lock",
            Moment::NetworkUnlock => "network-unlock",
            Moment::PostDump => "post-dump",
            Moment::StatusReady => "status-ready",
            Moment::PreRestore => "pre-restore",
            Moment::SetupNamespaces(_) => "setup-namespaces",
            Moment::PostSetupNamespaces(_) => "post-setup-namespaces",
            Moment::PostRestore(_) => "post-restore",
            Moment::PreResume(_) => "pre-resume",
            Moment::PostResume(_) => "post-resume",
        }
    }
    /// The root's pid, where the moment has one.
    pub fn pid(self) -> Option<i32> {
        match self {
            Moment::SetupNamespaces(p)
            | Moment::PostSetupNamespaces(p)
            | Moment::PostRestore(p)
            | Moment::PreResume(p)
            | Moment::PostResume(p) => Some(p),
            _ => None,
        }
    }
}

/// Somebody who is told of moments, and may stop the operation by an error.
pub trait Watcher: Send + Sync {
    /// A moment has come.
    ///
    /// # Errors
    /// Stops the operation, which is undone, at every moment before the commit point.
    fn moment(&self, moment: Moment) -> Result<()>;
    /// The master of a terminal whose other side is the tree's, and which nobody in the tree holds. False: not wanted.
    ///
    /// # Errors
    /// As for [`Watcher::moment`].
    fn orphan_pts_master(&self, master: BorrowedFd<'_>) -> Result<bool>;
    /// Dump: the tree is frozen, and more may be named that lies outside of it. Most watchers have nothing to name.
    ///
    /// # Errors
    /// As for [`Watcher::moment`].
    fn name_external(&self, _: &mut Options) -> Result<()> {
        Ok(())
    }
}

/// All watchers, in order.
#[derive(Clone, Default)]
pub struct EventSink(pub Vec<Arc<dyn Watcher>>);

impl EventSink {
    /// Tells all, in order, until one objects.
    ///
    /// # Errors
    /// The first objection.
    pub fn tell(&self, moment: Moment) -> Result<()> {
        self.0.iter().try_for_each(|w| w.moment(moment))
    }
    /// The options, with what all of them name besides.
    ///
    /// # Errors
    /// The first objection.
    pub fn with_external(&self, o: &Options) -> Result<Options> {
        let mut o = o.clone();
        self.0.iter().try_for_each(|w| w.name_external(&mut o))?;
        Ok(o)
    }
    /// Hands the master of a terminal to the first who wants it; false if nobody does.
    ///
    /// # Errors
    /// As for [`Watcher::orphan_pts_master`].
    pub fn orphan_pts_master(&self, master: BorrowedFd<'_>) -> Result<bool> {
        for w in &self.0 {
            if w.orphan_pts_master(master)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} watchers", self.0.len())
    }
}
