//! Homes: the sets of namespaces in which tasks of the tree live.
//!
//! Most trees have one. Others have more, because tasks below the root have made namespaces of their own. Each home has a worker
//! in it, which makes the namespaces that no home before it has, and opens there what is found through them: files through
//! mounts, sockets through networks. Tasks are born in the first home, that of the root, and go to theirs when they are there.
use super::images::{Images, id_of};
use stasis_kernel::ns::Ns;
use stasis_proto::pb;
use std::collections::BTreeMap;

/// Sorts of which a tree may have several, in the order in which they are entered.
pub const SORTS: [Ns; 6] = [Ns::Mnt, Ns::Net, Ns::Ipc, Ns::Uts, Ns::Cgroup, Ns::Time];

/// One set of namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Home {
    /// Ids in the image.
    pub ids: BTreeMap<Ns, u32>,
    /// Those that no home before this one has.
    pub makes: Vec<Ns>,
    /// Index of its mount namespace among those that are built.
    pub mounts: Option<usize>,
}

/// All of a tree.
#[derive(Debug, Clone, Default)]
pub struct Homes {
    /// The root's first.
    pub all: Vec<Home>,
    of_task: BTreeMap<u32, usize>,
}

impl Homes {
    /// From the ids of the tasks. `mounts`: the root's mount namespace is built, too.
    pub fn of(images: &Images, mounts: bool) -> Self {
        let mut homes = Self::default();
        let mut built = u32::from(mounts) as usize;
        for t in images.tasks.iter().filter(|t| !t.is_zombie()) {
            let id = |ns: &Ns| Some((*ns, id_of(&t.ids, *ns)?));
            let ids: BTreeMap<Ns, u32> = SORTS.iter().filter_map(id).collect();
            let at = homes.all.iter().position(|h| h.ids == ids);
            let at = at.unwrap_or_else(|| {
                let new = |ns: &Ns| homes.all.iter().all(|h| h.ids.get(ns) != ids.get(ns));
                // those of the first are made by the first stub
                let root = homes.all.is_empty();
                let makes: Vec<Ns> = ids.keys().copied().filter(|ns| !root && new(ns)).collect();
                let known = |h: &&Home| h.ids.get(&Ns::Mnt) == ids.get(&Ns::Mnt);
                let mounts = match (root, homes.all.iter().find(known)) {
                    (true, _) => mounts.then_some(0),
                    (false, Some(h)) => h.mounts,
                    (false, None) => {
                        built += 1;
                        Some(built - 1)
                    }
                };
                homes.all.push(Home { ids, makes, mounts });
                homes.all.len() - 1
            });
            homes.of_task.insert(t.entry.pid, at);
        }
        homes
    }
    /// Is there only that of the root?
    pub fn are_one(&self) -> bool {
        self.all.len() < 2
    }
    /// Are there networks besides that of the root?
    pub fn several_networks(&self) -> bool {
        self.all.iter().any(|h| h.makes.contains(&Ns::Net))
    }
    /// The home of a task, by its pid; a zombie has that of the root.
    pub fn of_task(&self, pid: u32) -> usize {
        self.of_task.get(&pid).copied().unwrap_or(0)
    }
    /// A task that lives in this namespace, if it is of a sort of which there may be several.
    pub fn who_is_in(&self, ns: Ns, id: u32) -> Option<u32> {
        let there = |h: &usize| self.all[*h].ids.get(&ns) == Some(&id);
        let mut tasks = self.of_task.iter();
        tasks.find(|t| there(t.1)).map(|t| *t.0)
    }
    /// Ids of the mount namespaces that are built, in the order of their indexes.
    pub fn built(&self) -> Vec<u32> {
        let mut all: BTreeMap<usize, u32> = BTreeMap::new();
        for h in &self.all {
            if let (Some(n), Some(id)) = (h.mounts, h.ids.get(&Ns::Mnt)) {
                all.insert(n, *id);
            }
        }
        all.into_values().collect()
    }
    /// Which of the mount namespaces that are built is the root's.
    pub fn mounts_of_first(&self) -> Option<usize> {
        self.all.first().and_then(|h| h.mounts)
    }
    /// The home whose worker builds this mount namespace: the first that has it.
    pub fn maker_of_mounts(&self, space: usize) -> Option<usize> {
        self.all.iter().position(|h| h.mounts == Some(space))
    }
    fn with(&self, wish: usize, fits: impl Fn(&Home) -> bool) -> usize {
        let first = || self.all.iter().position(&fits);
        match self.all.get(wish) {
            Some(h) if !fits(h) => first().unwrap_or(wish),
            _ => wish,
        }
    }
    /// A home with this mount namespace: this one, if it has it.
    pub fn with_mounts(&self, wish: usize, space: usize) -> usize {
        self.with(wish, |h| h.mounts == Some(space))
    }
    /// A home with the namespace of this id: this one, if it has it.
    pub fn with_id(&self, wish: usize, ns: Ns, id: u32) -> usize {
        self.with(wish, |h| h.ids.get(&ns) == Some(&id))
    }
    /// What a task must enter to come from one home to another.
    pub fn way(&self, from: usize, to: usize) -> Vec<(Ns, u32)> {
        let (from, to) = (&self.all[from].ids, &self.all[to].ids);
        let differs = |(ns, id): (&Ns, &u32)| (from.get(ns) != Some(id)).then_some((*ns, *id));
        to.iter().filter_map(differs).collect()
    }
    /// Does a task go to another mount namespace than that of the root?
    pub fn moves_mounts(&self, pid: u32) -> bool {
        let way = self.way(0, self.of_task(pid));
        way.iter().any(|w| w.0 == Ns::Mnt)
    }
}

/// The network namespace of a socket, if the image says which.
pub fn network_of(f: &pb::FileEntry) -> Option<u32> {
    let unix = f.usk.as_ref().and_then(|e| e.ns_id);
    let inet = f.isk.as_ref().and_then(|e| e.ns_id);
    let netlink = f.nlsk.as_ref().and_then(|e| e.ns_id);
    let packet = f.psk.as_ref().and_then(|e| e.ns_id);
    unix.or(inet).or(netlink).or(packet)
}
