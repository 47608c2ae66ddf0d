//! What is in namespaces: dumped from outside, made again from inside.
//!
//! A dump visits each namespace of the tree that is not the engine's own ([`dump`]). A restore has a worker in the fresh ones
//! ([`restore`]), which fills them before any file of the tree is opened.
pub mod autofs;
pub mod ipc;
pub mod mnt;
pub mod mqueues;
pub mod net;
pub mod user;
pub mod uts;

use crate::error::Result;
use crate::kinds::DumpCx;
use crate::options::Options;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_proto::ImageDir;
use std::os::fd::OwnedFd;

/// Describes what is in a namespace of the tree's own. `task` is in it; `id` is its number in the image; `all` are the tree's own of
/// this sort.
///
/// # Errors
/// Contents that cannot be carried.
pub fn dump(
    cx: &mut DumpCx,
    ns: Ns,
    (id, task): (u32, HostPid),
    all: &[(u32, OwnedFd)],
) -> Result<()> {
    match ns {
        Ns::Uts => uts::dump(cx.dir, id, task),
        // nothing is in them but what tasks show; clocks are dumped always; mounts are dumped before all files
        Ns::Pid | Ns::Time | Ns::Cgroup | Ns::Mnt => Ok(()),
        Ns::Net => net::dump(cx, task, id, all),
        Ns::Ipc => ipc::dump(cx, id, task),
        Ns::User => user::dump(cx.dir, id, task),
    }
}

/// Fills a namespace that was made for the tree; the caller is in it. `nets` are the tree's network namespaces.
///
/// # Errors
/// Contents that cannot be made.
pub fn restore(o: &Options, dir: &ImageDir, ns: Ns, id: u32, nets: net::Places<'_>) -> Result<()> {
    match ns {
        Ns::Uts => match uts::load(dir, id)? {
            Some(names) => names.set(),
            None => Ok(()),
        },
        // mounts are built by their plan
        Ns::Pid | Ns::Time | Ns::Cgroup | Ns::User | Ns::Mnt => Ok(()),
        Ns::Net => net::restore(o, dir, id, nets),
        Ns::Ipc => ipc::restore(dir, id),
    }
}

/// Writes the maps of the user namespace that the process has just made.
///
/// # Errors
/// Maps the kernel or the caller's rights refuse.
pub fn map_users(o: &Options, dir: &ImageDir, id: u32, process: HostPid) -> Result<()> {
    let maps = user::load(dir, id)?;
    if let Some((users, groups)) = &o.namespaces.id_maps {
        maps.must_be(users, groups)?;
    }
    maps.write(process)
}
