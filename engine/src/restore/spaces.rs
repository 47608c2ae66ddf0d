//! Pid namespaces of a tree: that of its first task, those below it, and the numbers that tasks have in them.
//!
//! In an image a task is known by its number in the first one, where all have one. What it says itself, in rows of its own, and what
//! the kernel is told at its birth (clone3(2), `set_tid`) are numbers further inside.
use crate::error::{Blame, Error, Result};
use stasis_kernel::ns::Ns;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::{BTreeMap, BTreeSet};

/// Levels below the first one that the kernel knows (linux/pid_namespace.h, MAX_PID_NS_LEVEL).
const DEEPEST: usize = 32;

/// Index of a pid namespace: 0 is that of the first task.
pub type Space = usize;

/// One of them.
#[derive(Debug, Clone)]
struct Place {
    above: Space,
    depth: usize,
    id: Option<u32>,
    /// Its first process.
    first: u32,
    /// The user namespace it belongs to, if that is one below the tree's.
    owner: Option<u32>,
}

/// Where a task's children are born, if not where it is itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Children {
    /// In this one.
    In(Space),
    /// In a new one, which nobody is in yet.
    New,
}

/// All of a tree.
#[derive(Debug, Clone)]
pub struct Spaces {
    all: Vec<Place>,
    /// Where a number below the first one is.
    of: BTreeMap<u32, Space>,
    inner: BTreeMap<u32, Vec<u32>>,
    children: BTreeMap<u32, Children>,
    /// User namespaces below the tree's: in which each was made.
    users: BTreeMap<u32, u32>,
}

impl Default for Spaces {
    /// One, as most trees have.
    fn default() -> Self {
        Self {
            all: vec![Place {
                above: 0,
                depth: 0,
                id: None,
                first: 0,
                owner: None,
            }],
            users: BTreeMap::new(),
            of: BTreeMap::new(),
            inner: BTreeMap::new(),
            children: BTreeMap::new(),
        }
    }
}

/// Somebody's numbers, from the first namespace inwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Where it is.
    pub space: Space,
    /// At least one.
    pub numbers: Vec<u32>,
}

impl Name {
    /// The one by which images and the engine know it.
    pub fn key(&self) -> u32 {
        self.numbers[0]
    }
    /// The one it sees itself.
    pub fn own(&self) -> u32 {
        self.numbers[self.numbers.len() - 1]
    }
}

pub(super) fn bad(what: impl Into<String>, why: &str) -> Error {
    Error::new("E5857", Blame::Image, what)
        .why(why)
        .advice("the image is damaged or was made by something else: dump again")
}

impl Spaces {
    /// From the tree and `namespaces.img`. `root`: the image's number of the first one.
    ///
    /// # Errors
    /// E5857: namespaces or numbers that no kernel has.
    pub fn of(dir: &ImageDir, tree: &[pb::PstreeEntry], root: Option<u32>) -> Result<Self> {
        let image = Kind::Namespaces.file();
        let nested = match dir.exists(&image)? {
            true => dir.read_all::<pb::StasisNamespaceEntry>(&image)?,
            false => Vec::new(),
        };
        Self::from_entries(nested, tree, root)
    }
    /// The same of what that image has.
    ///
    /// # Errors
    /// E5857.
    pub fn from_entries(
        nested: Vec<pb::StasisNamespaceEntry>,
        tree: &[pb::PstreeEntry],
        root: Option<u32>,
    ) -> Result<Self> {
        let mut all = Self::default();
        all.all[0].id = root;
        all.places(nested)?;
        for t in tree {
            all.task(t)?;
        }
        all.check(tree)?;
        Ok(all)
    }
    /// Those above before those below.
    fn places(&mut self, mut left: Vec<pb::StasisNamespaceEntry>) -> Result<()> {
        let users = Ns::User.flag().bits() as u32;
        let users = left.iter().filter(|e| e.sort == users);
        self.users = users.map(|e| (e.id, e.parent)).collect();
        left.retain(|e| e.sort == Ns::Pid.flag().bits() as u32);
        while !left.is_empty() {
            let before = left.len();
            let mut later = Vec::new();
            for e in left {
                let what = || format!("pid namespace {} of namespaces.img", e.id);
                if self.by_id(e.id).is_some() {
                    return Err(bad(what(), "it is there twice"));
                }
                let Some(above) = self.by_id(e.parent) else {
                    later.push(e);
                    continue;
                };
                let depth = self.all[above].depth + 1;
                if depth > DEEPEST {
                    return Err(bad(what(), "it is deeper than the kernel lets any be"));
                }
                self.all.push(Place {
                    above,
                    depth,
                    id: Some(e.id),
                    first: 0,
                    owner: e.owner,
                });
            }
            if later.len() == before {
                let what = format!("pid namespace {} of namespaces.img", later[0].id);
                return Err(bad(
                    what,
                    "what it was made in is not there, or is below it",
                ));
            }
            left = later;
        }
        Ok(())
    }
    fn by_id(&self, id: u32) -> Option<Space> {
        self.all.iter().position(|p| p.id == Some(id))
    }
    /// Where a task is, and its numbers there.
    fn task(&mut self, t: &pb::PstreeEntry) -> Result<()> {
        let what = || format!("task {} of pstree.img", t.pid);
        let Some(e) = &t.stasis else { return Ok(()) };
        let place = |id: u32| {
            let at = self.by_id(id);
            at.ok_or_else(|| {
                bad(
                    what(),
                    "it is in a pid namespace that namespaces.img does not have",
                )
            })
        };
        let space = e.pid_ns.map(place).transpose()?.unwrap_or(0);
        let children = match (e.children_ns, e.children_new) {
            (Some(id), _) => Some(Children::In(place(id)?)),
            (None, Some(true)) => Some(Children::New),
            (None, _) => None,
        };
        if let Some(c) = children {
            if matches!(c, Children::In(s) if !self.is_within(s, space)) {
                return Err(bad(
                    what(),
                    "its children would be born in a pid namespace that is not below its own",
                ));
            }
            self.children.insert(t.pid, c);
        }
        for n in &e.numbers {
            let depth = n.inner.len();
            let wrong = |n: &u32| *n == 0 || *n > i32::MAX as u32;
            if depth == 0 || depth > self.all[space].depth || n.inner.iter().any(wrong) {
                return Err(bad(
                    what(),
                    "its numbers do not fit the depth of its pid namespace",
                ));
            }
            let mut at = space;
            while self.all[at].depth > depth {
                at = self.all[at].above;
            }
            match self.inner.get(&n.number) {
                // a session or group is led from further inside than this member is
                Some(known) if known.starts_with(&n.inner) => continue,
                Some(known) if !n.inner.starts_with(known) => {
                    return Err(bad(
                        what(),
                        "a number is another one inside than elsewhere in the image",
                    ));
                }
                _ => {}
            }
            self.inner.insert(n.number, n.inner.clone());
            self.of.insert(n.number, at);
        }
        let depth = self.all[space].depth;
        let mut own = t.threads.iter().chain([&t.pid]);
        let fits = |n: &u32| self.inner.get(n).map_or(0, Vec::len) == depth;
        if !own.all(fits) {
            return Err(bad(
                what(),
                "its numbers do not fit the depth of its pid namespace",
            ));
        }
        if space > 0 && self.name(t.pid).own() == 1 {
            let first = &mut self.all[space].first;
            if *first != 0 {
                return Err(bad(what(), "its pid namespace has two first processes"));
            }
            *first = t.pid;
        }
        Ok(())
    }
    /// What can be said only when all are known.
    fn check(&self, tree: &[pb::PstreeEntry]) -> Result<()> {
        if self.are_one() && self.inner.is_empty() {
            return Ok(());
        }
        let mut taken = BTreeSet::new();
        for (key, inner) in &self.inner {
            let mut at = self.space_of(*key);
            for n in inner.iter().rev() {
                if !taken.insert((at, *n)) {
                    return Err(bad(
                        format!("number {n} of a pid namespace"),
                        "two tasks have it",
                    ));
                }
                at = self.all[at].above;
            }
        }
        let place = |t: &pb::PstreeEntry| self.by_id(t.stasis.as_ref()?.pid_ns?);
        let places: BTreeMap<u32, Space> = tree
            .iter()
            .map(|t| (t.pid, place(t).unwrap_or(0)))
            .collect();
        let of = |pid: u32| places.get(&pid).copied().unwrap_or(0);
        for t in tree {
            let what = || format!("task {} of pstree.img", t.pid);
            let own = of(t.pid);
            if self.space_of(t.pid) != own {
                return Err(bad(
                    what(),
                    "its numbers are of another pid namespace than its own",
                ));
            }
            if t.pid == tree[0].pid && own != 0 {
                return Err(bad(
                    what(),
                    "the first task is in a pid namespace below the first one",
                ));
            }
            if t.pid != tree[0].pid && !self.is_within(own, of(t.ppid)) {
                return Err(bad(
                    what(),
                    "its parent is not in its pid namespace, nor in one above it",
                ));
            }
        }
        match self.all.iter().skip(1).find(|p| p.first == 0) {
            Some(p) => Err(bad(
                format!("pid namespace {} of namespaces.img", p.id.unwrap_or(0)),
                "no task is its first process",
            )),
            None => Ok(()),
        }
    }
    /// Is there only that of the first task?
    pub fn are_one(&self) -> bool {
        self.all.len() < 2
    }
    /// Where a task, thread, session or group is.
    pub fn space_of(&self, key: u32) -> Space {
        self.of.get(&key).copied().unwrap_or(0)
    }
    /// Its numbers.
    pub fn name(&self, key: u32) -> Name {
        let inner = self.inner.get(&key).into_iter().flatten();
        Name {
            space: self.space_of(key),
            numbers: std::iter::once(key).chain(inner.copied()).collect(),
        }
    }
    /// A name for somebody who may have any: the same number everywhere.
    pub fn any_name(&self, space: Space, number: u32) -> Name {
        Name {
            space,
            numbers: vec![number; self.all[space].depth + 1],
        }
    }
    /// All numbers that are taken, wherever.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.inner.values().flatten().copied()
    }
    /// Is a namespace this one, or below it?
    pub fn is_within(&self, mut space: Space, above: Space) -> bool {
        while self.all[space].depth > self.all[above].depth {
            space = self.all[space].above;
        }
        space == above
    }
    /// Where it was made.
    pub fn above(&self, space: Space) -> Space {
        self.all[space].above
    }
    /// Its first process; nothing for that of the whole tree.
    pub fn first_of(&self, space: Space) -> Option<u32> {
        self.all.get(space).map(|p| p.first).filter(|_| space > 0)
    }
    /// The first process of the namespace with this number in the image, if it is below that of the first task.
    pub fn first_of_id(&self, id: u32) -> Option<u32> {
        self.by_id(id).and_then(|s| self.first_of(s))
    }
    /// The number of one task as another sees it; 0 if it has none there.
    pub fn seen(&self, from: Space, who: &Name) -> u32 {
        match self.is_within(who.space, from) {
            true => who.numbers.get(self.all[from].depth).copied().unwrap_or(0),
            false => 0,
        }
    }
    /// The same by the number that images have: as task `by` sees it.
    pub fn seen_by(&self, by: u32, who: u32) -> u32 {
        self.seen(self.space_of(by), &self.name(who))
    }
    /// The user namespace that it belongs to, if that is one below the tree's.
    pub fn owner(&self, space: Space) -> Option<u32> {
        self.all[space].owner
    }
    /// Is a user namespace this one, or below it? `None`: the tree's.
    pub fn users_within(&self, users: Option<u32>, above: Option<u32>) -> bool {
        let mut at = users;
        // an image may have them in a circle
        for _ in 0..=self.users.len() {
            if at == above {
                return true;
            }
            at = at.and_then(|id| self.users.get(&id)).copied();
        }
        above.is_none()
    }
    /// How many numbers somebody of a user namespace may choose for who is born here, from the innermost on.
    pub fn chosen(&self, space: Space, users: Option<u32>) -> usize {
        let mut at = space;
        for n in 0..=self.all[space].depth {
            if !self.users_within(self.owner(at), users) {
                return n;
            }
            at = self.above(at);
        }
        self.levels(space)
    }
    /// How many numbers tasks have there.
    pub fn levels(&self, space: Space) -> usize {
        self.all[space].depth + 1
    }
    /// Where a task's children are born, if not where it is itself.
    pub fn children_of(&self, key: u32) -> Option<Children> {
        self.children.get(&key).copied()
    }
}

#[cfg(test)]
#[path = "spaces_tests.rs"]
mod tests;
