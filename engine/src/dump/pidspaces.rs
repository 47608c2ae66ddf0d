//! Pid namespaces below that of the first process, and the numbers that tasks have in them.
//!
//! In images a task is known by its number in the pid namespace of the first process, the only one in which all have a number that
//! is theirs alone. What they are further inside stands beside it: `pstree_entry.stasis`, and `namespaces.img`.
use super::places::{Places, elsewhere};
use super::task::Task;
use super::userspaces::UserSpaces;
use crate::error::Result;
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::{self, Ns};
use stasis_kernel::procfs::Status;
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

/// How many numbers /proc tells before the one in the pid namespace of the first process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level(usize);

impl Level {
    /// That of the first process.
    pub fn of(root: &Status) -> Self {
        Self(root.ns_pid.len().saturating_sub(1))
    }
    /// The number there, of all that /proc tells (`NSpid` and its kin, proc_pid_status(5)); 0 for none.
    pub fn number(self, all: &[i32]) -> u32 {
        all.get(self.0).copied().unwrap_or(0).max(0) as u32
    }
    /// The numbers below it, as far as there are any.
    fn inner(self, all: &[i32]) -> Vec<u32> {
        let below = all.iter().skip(self.0 + 1);
        below.take_while(|n| **n > 0).map(|n| *n as u32).collect()
    }
}

/// The inode number of the pid namespace that a task's children are born in, if that is another than its own; 0: nobody was born
/// there yet. `links`: of all its namespaces.
pub fn births(links: &[(&'static str, u64)]) -> Option<u64> {
    let of = |name: &str| links.iter().find(|n| n.0 == name).map(|n| n.1);
    let children = of("pid_for_children").unwrap_or(0);
    (of("pid") != Some(children)).then_some(children)
}

/// Which pid namespaces the tasks of a tree are in, if those are several.
#[derive(Default)]
pub struct PidSpaces {
    level: Level,
    /// Those below the first one: by inode number, with number in the image and that of the namespace above.
    nested: BTreeMap<u64, (u32, u32)>,
    /// Where each task is that is in one of those.
    of: BTreeMap<HostPid, u32>,
}

impl PidSpaces {
    /// Looks at all tasks, zombies too, the first process first.
    ///
    /// # Errors
    /// E4011: a namespace that cannot be made again, because its first process is not in the tree.
    pub fn look(held: &[Task], status: &[Status], places: &mut Places) -> Result<Self> {
        let mut all = Self::default();
        let mut root = None;
        let mut handles = BTreeMap::new();
        let mut founded = BTreeSet::new();
        for (t, st) in held.iter().zip(status) {
            let ino = match (t.proc.ns(Ns::Pid.name()), root) {
                // a zombie of another user, where the engine is not root: as deep as the first process, it is where that is
                (Err(_), Some(first)) if t.zombie.is_some() && all.level == Level::of(st) => first,
                (ino, _) => ino?,
            };
            let first = *root.get_or_insert_with(|| {
                all.level = Level::of(st);
                ino
            });
            let on = |e: crate::error::Error| e.on(format!("task {}", t.pid.0));
            let id = places.space(t.pid, Ns::Pid, ino).map_err(on)?;
            if ino == first {
                continue;
            }
            all.of.insert(t.pid, id);
            if st.ns_tgid.last() == Some(&1) {
                founded.insert(ino);
            }
            if let std::collections::btree_map::Entry::Vacant(v) = handles.entry(ino) {
                v.insert((id, Ns::Pid.of(t.pid)?, t.pid));
            }
        }
        let ids: BTreeMap<u64, u32> = handles.iter().map(|(ino, h)| (*ino, h.0)).collect();
        for (ino, (id, handle, task)) in handles {
            let above = fds::fstat(ns::parent(handle.as_fd())?.as_fd())?.st_ino;
            let above = match Some(above) == root {
                true => Some(places.id(Ns::Pid)),
                false => ids.get(&above).copied(),
            };
            match above.filter(|_| founded.contains(&ino)) {
                Some(above) => all.nested.insert(ino, (id, above)),
                None => {
                    return Err(elsewhere(Ns::Pid.name())
                        .on(format!("task {}", task.0))
                        .why("the first process of that namespace is not in the tree, or has ended: nobody else can make it"));
                }
            };
        }
        Ok(all)
    }
    /// Where the number is that a task is known by.
    pub fn level(&self) -> Level {
        self.level
    }
    /// The inode numbers of all of them.
    pub fn inodes(&self) -> impl Iterator<Item = u64> + '_ {
        self.nested.keys().copied()
    }
    /// What the tree entry of a task says more. `children`: the inode number of the namespace its children are born in, if that is
    /// another; 0 if nobody was born there yet.
    pub fn extension(
        &self,
        t: HostPid,
        threads: &[Vec<u32>],
        st: &Status,
        children: Option<u64>,
    ) -> Result<Option<pb::StasisPstreeEntry>> {
        let mut e = pb::StasisPstreeEntry {
            pid_ns: self.of.get(&t).copied(),
            ..Default::default()
        };
        match children {
            None => {}
            Some(0) => e.children_new = Some(true),
            Some(ino) => {
                let known = self.nested.get(&ino).map(|n| n.0);
                e.children_ns = Some(known.ok_or_else(|| {
                    elsewhere("pid_for_children").why("its children would be born in a pid namespace that nobody of the tree is in, or that has ended")
                })?);
            }
        }
        let mut numbers: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let level = self.level;
        for all in [&st.ns_pid, &st.ns_sid, &st.ns_pgid] {
            numbers.insert(level.number(all), level.inner(all));
        }
        for th in threads {
            if let Some((first, inner)) = th.split_first() {
                numbers.insert(*first, inner.to_vec());
            }
        }
        let numbers = numbers.into_iter().filter(|n| !n.1.is_empty());
        e.numbers = numbers
            .map(|(number, inner)| pb::StasisNumbers { number, inner })
            .collect();
        Ok((e != pb::StasisPstreeEntry::default()).then_some(e))
    }
    /// All numbers of a thread, from the one it is known by inwards.
    pub fn numbers(level: Level, st: &Status) -> Vec<u32> {
        let mut all = vec![level.number(&st.ns_pid)];
        all.extend(level.inner(&st.ns_pid));
        all
    }
    /// Which namespace is in which, if this tree can be born again. `root`: the number of the first process's.
    ///
    /// # Errors
    /// E4014: it cannot; E4016: a task could not become who it is.
    pub fn entries(
        &self,
        tree: &[pb::PstreeEntry],
        root: u32,
        users: &UserSpaces,
    ) -> Result<Vec<pb::StasisNamespaceEntry>> {
        if self.nested.is_empty() {
            return Ok(Vec::new());
        }
        let sort = Ns::Pid.flag().bits() as u32;
        let entry = |(id, parent): &(u32, u32)| pb::StasisNamespaceEntry {
            id: *id,
            sort,
            parent: *parent,
            owner: users.owner(Ns::Pid, *id),
            ..Default::default()
        };
        let all: Vec<_> = self.nested.values().map(entry).collect();
        let mut known = all.clone();
        known.extend(users.entries());
        crate::restore::can_be_born(known, tree, root, users.of_tasks(), |id| users.maps(id))?;
        Ok(all)
    }
}
