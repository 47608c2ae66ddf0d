//! User namespaces below the tree's: how they are in each other, their maps, and what belongs to them.
//!
//! The tree's user namespace is that of its first process. If that one has no pid namespace of its own it is the engine's, and the
//! first process is in one below it like others: its number could not be chosen from inside.
//!
//! One that nobody is in may be there all the same: another was made in it, or a network belongs to it. It is looked at by a visitor.
use super::places::{Places, elsewhere, is_nested};
use crate::error::{Blame, Error, Result};
use crate::namespaces::user::{Ids, Maps, describe};
use crate::restore::MOST_USER_SPACES as MOST;
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_kernel::inner::{Way, start};
use stasis_kernel::ns::{self, Ns};
use stasis_kernel::users;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// One of them.
struct Found {
    id: u32,
    ino: u64,
    /// The number of the one it was made in.
    parent: u32,
    /// Its owner, as that one has it.
    maker: u32,
    /// Its numbers as the engine has them.
    ids: Ids,
    entry: pb::UsernsEntry,
}

/// All of a tree, each behind the one it was made in.
#[derive(Default)]
pub struct UserSpaces {
    all: Vec<Found>,
    /// Numbers as the tree's has them.
    tree: Ids,
    /// What belongs to one of them: sort and number in the image.
    owners: BTreeMap<(Ns, u32), u32>,
    /// Where tasks are, by pid, and who, as images have it.
    of_tasks: BTreeMap<u32, (u32, pb::CredsEntry)>,
}

impl UserSpaces {
    /// Those that tasks are in, and those above. `root`: the first process.
    ///
    /// # Errors
    /// E4011: one that was not made below the tree's, or owns what must be the tree's; E4015.
    pub fn look(places: &mut Places, root: HostPid) -> Result<Self> {
        let mut all = Self::default();
        if places.is_own(Ns::User) {
            all.tree = Ids::of(root)?;
        }
        for (_, task) in places.nested_users() {
            all.know(places, Ns::User.of(task)?, Some(task))
                .map_err(|e| e.on(format!("task {}", task.0)))?;
        }
        all.belongings(places)?;
        Ok(all)
    }
    /// The number of a user namespace that is the tree's or below it.
    fn know(&mut self, places: &mut Places, handle: OwnedFd, task: Option<HostPid>) -> Result<u32> {
        let ino = fds::fstat(handle.as_fd())?.st_ino;
        if places.is_roots(Ns::User, ino) {
            return Ok(places.id(Ns::User));
        }
        if let Some(f) = self.all.iter().find(|f| f.ino == ino) {
            return Ok(f.id);
        }
        let above = ns::parent(handle.as_fd()).map_err(|_| {
            elsewhere(Ns::User.name()).why("it is not that of the root of the tree, nor below it")
        })?;
        let parent = self.know(places, above, None)?;
        if self.all.len() >= MOST {
            let why = format!("there are more than {MOST} below the tree's");
            return Err(elsewhere(Ns::User.name()).why(why));
        }
        let visitor = match task {
            Some(_) => None,
            None => {
                let join = vec![(Ns::User, fds::dup(handle.as_fd())?)];
                let way = Way {
                    join,
                    ..Way::to(HostPid::own(), &[])
                };
                let stay = |channel| {
                    let _ = nix::unistd::read(&channel, &mut [0; 1]);
                    0
                };
                Some(start(&way, stay)?)
            }
        };
        let inside = match (task, &visitor) {
            (Some(t), _) => t,
            (None, v) => HostPid(v.as_ref().map_or(0, |v| v.worker)),
        };
        let above = self.all.iter().find(|f| f.id == parent);
        let above = above.map_or(&self.tree, |f| &f.ids);
        let ids = Ids::of(inside)?;
        let found = Found {
            id: places.user_space(ino),
            ino,
            parent,
            maker: above.uid(users::owner(handle.as_fd())?),
            entry: describe(inside, &ids, above),
            ids,
        };
        let id = found.id;
        self.all.push(found);
        Ok(id)
    }
    /// Which of the tree's namespaces known so far belong to one of these.
    ///
    /// # Errors
    /// E4011, E4015: such a namespace could not be made again.
    pub fn belongings(&mut self, places: &mut Places) -> Result<()> {
        for (ns, id, task) in places.others() {
            if self.owners.contains_key(&(ns, id)) {
                continue;
            }
            let on = |e: Error| e.on(format!("task {}", task.0));
            let Ok(owner) = ns::owner(ns.of(task)?.as_fd()) else {
                // above the engine's
                continue;
            };
            let ino = fds::fstat(owner.as_fd())?.st_ino;
            if places.is_engines(Ns::User, ino) {
                continue;
            }
            let owner = self.know(places, owner, None).map_err(on)?;
            if owner == places.id(Ns::User) {
                continue;
            }
            if !is_nested(id) {
                return Err(on(of_the_first(ns)));
            }
            if ns == Ns::Mnt {
                let why = "it belongs to a user namespace below the tree's: nothing tells which of its mounts the kernel has locked";
                return Err(on(elsewhere(ns.name()).why(why)));
            }
            self.owners.insert((ns, id), owner);
        }
        Ok(())
    }
    /// How they are in each other.
    pub fn entries(&self) -> impl Iterator<Item = pb::StasisNamespaceEntry> + '_ {
        self.all.iter().map(|f| pb::StasisNamespaceEntry {
            id: f.id,
            sort: Ns::User.flag().bits() as u32,
            parent: f.parent,
            maker: Some(f.maker),
            owner: None,
        })
    }
    /// To which of them a namespace belongs, if not to the tree's.
    pub fn owner(&self, ns: Ns, id: u32) -> Option<u32> {
        self.owners.get(&(ns, id)).copied()
    }
    /// Notes where a task is, and who.
    pub fn settle(&mut self, pid: u32, id: u32, creds: pb::CredsEntry) {
        self.of_tasks.insert(pid, (id, creds));
    }
    /// Where tasks are and who, by pid, if not in the tree's.
    pub fn of_tasks(&self) -> &BTreeMap<u32, (u32, pb::CredsEntry)> {
        &self.of_tasks
    }
    /// The maps of one, as its image has them.
    ///
    /// # Errors
    /// E5462: maps that a restore would not take.
    pub fn maps(&self, id: u32) -> Result<Maps> {
        let found = self.all.iter().find(|f| f.id == id);
        let found = found.ok_or_else(|| Error::bug("a user namespace that nobody has found"))?;
        Maps::inner(found.entry.clone())
    }
    /// Is this the number of one of them?
    pub fn has(&self, id: u32) -> bool {
        self.all.iter().any(|f| f.id == id)
    }
    /// Are there any?
    pub fn are_none(&self) -> bool {
        self.all.is_empty()
    }
    /// Writes down their maps; gives what namespaces.img says of them and of what belongs to them.
    ///
    /// # Errors
    /// Failures to write.
    pub fn write(&self, dir: &ImageDir) -> Result<Vec<pb::StasisNamespaceEntry>> {
        let mut entries = Vec::new();
        for f in &self.all {
            dir.write_one(&Kind::Userns.file_of(f.id), &f.entry)?;
        }
        entries.extend(self.entries());
        // those of pids say it themselves
        let owned = self.owners.iter().filter(|o| o.0.0 != Ns::Pid);
        entries.extend(owned.map(|((ns, id), owner)| pb::StasisNamespaceEntry {
            id: *id,
            sort: ns.flag().bits() as u32,
            parent: 0,
            maker: None,
            owner: Some(*owner),
        }));
        Ok(entries)
    }
}

/// The first process has a user namespace below the engine's, and another that belongs to it.
fn of_the_first(ns: Ns) -> Error {
    Error::new(
        "E4015",
        Blame::Container,
        format!("its {} namespace belongs to its user namespace, and its pid namespace does not", ns.name()),
    )
    .why("the first process of a tree enters such a user namespace last, and makes its other namespaces before")
    .advice("start it in a pid namespace of its own as well (unshare --user --pid --fork), or dump from a process above it")
}

fn inside(what: &str) -> Error {
    Error::new("E4016", Blame::Container, what)
}

/// A thread of a process in such a namespace has other users or groups than the first one.
///
/// # Errors
/// E4016.
pub fn threads_are_alike(same: bool) -> Result<()> {
    match same {
        true => Ok(()),
        false => Err(inside(
            "its threads have different users or groups in a user namespace below the tree's",
        )
        .why("a process enters such a namespace as who it is, before it has threads")
        .advice("let all threads have the same ones (setresuid(3) of the C library sees to it)")),
    }
}

/// Who shares directories cannot enter a user namespace.
pub fn shares_directories() -> Error {
    inside("it shares its directories (CLONE_FS) in a user namespace below the tree's")
        .why("the kernel lets nobody enter a user namespace who shares them")
        .advice("let one of the two end before the dump")
}
