//! Births, sessions, groups and adoptions: who calls what, in which order, so that every task ends up with its parent,
//! session and group. Pure code: it plans deeds, `perform` has them done.
//!
//! What the kernel gives (kernel/fork.c, kernel/sys.c, kernel/exit.c):
//! - a child gets session and group of the task that *calls* clone, also with `CLONE_PARENT`, which makes it a sibling;
//! - the only way into a session is birth; `setsid` makes one's own, once, and not for group leaders;
//! - a group can be joined while it has a member in one's session; its number may be that of a task that is gone;
//! - children of a task that ends go to its nearest ancestor that is a subreaper.
//!
//! So a task whose session is not its parent's is born by, in this order of preference: its parent before that calls
//! `setsid`; a child of its parent in the right session, as a sibling; a helper in the right session below its parent,
//! which then ends while the parent is a subreaper. Leaders of sessions and groups that are gone are played by helpers
//! with their pids.
//!
//! A pid namespace is made by the birth of its first task; others are born in it by a task above that has said so before
//! (setns(2)). Who cannot see its own group, because that is led from above, must be born in it.
//!
//! Long because sessions, creators, adoptions and groups are decided over one set of people.
#[path = "family_inside.rs"]
mod inside;

use super::spaces::{Space, Spaces};
use crate::error::{Blame, Error, Result};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Index of a task of the image, in its order; helpers follow behind the last task.
pub type Node = usize;

/// What the plan must know of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kin {
    /// Its pid.
    pub pid: u32,
    /// Pid of its parent; of no meaning for the first.
    pub ppid: u32,
    /// Its session.
    pub sid: u32,
    /// Its process group.
    pub pgid: u32,
    /// The signal its parent gets when it ends.
    pub exit_signal: u32,
    /// Kernel objects: address space, descriptor table, directories, signal actions. `None` for zombies, which share nothing.
    pub objects: Option<[u32; 4]>,
    /// Its pid namespace.
    pub space: Space,
    /// Its user namespace, if that is one below the tree's.
    pub users: Option<u32>,
}

/// Something a task of the unfinished tree does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// clone3: a child of its own, or a sibling (`CLONE_PARENT`).
    Birth {
        /// Who is born.
        child: Node,
        /// Whose child it is.
        parent: Node,
        /// Whether it shares address space, descriptor table, directories, signal actions with the caller.
        share: [bool; 4],
        /// Its exit signal. With `CLONE_PARENT` it is inherited from the caller.
        exit_signal: u32,
        /// Whether it is the first of a pid namespace (`CLONE_NEWPID`).
        founds: bool,
        /// How many of its numbers the caller may choose, from the innermost on; the others are what comes next.
        chosen: usize,
    },
    /// Becomes who this task is, enters its namespaces and the user namespace that its pid namespace belongs to.
    Enter(Node),
    /// Its children are born in the pid namespace of this one from now on: a first process, or itself.
    BearIn(Node),
    /// setsid.
    Session,
    /// setpgid to this group.
    Group(u32),
    /// Is a subreaper from now on, or no more.
    Adopt(bool),
    /// Does not die with its parent any more: that is about to end.
    Unbind,
    /// Has this parent now, and dies with it.
    Bind(Node),
    /// Ends.
    Exit,
    /// Waits for a child that ends.
    Reap(Node),
}

impl Deed {
    /// Is it played by itself, because the engine has something to do for it? `depth`: levels of pid namespaces that a task is in.
    pub fn is_alone(&self, depth: impl Fn(Node) -> usize) -> bool {
        match self {
            Deed::Birth { child, chosen, .. } => *chosen < depth(*child),
            Deed::Enter(_) => true,
            _ => false,
        }
    }
}

/// One tape: who plays it, and its deeds.
pub type Tape = (Node, Vec<Deed>);

/// The whole story behind the birth of the first task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Family {
    /// Helpers: the pid each must have, where it is one of a task; `None`: any that nobody has or will have. And their pid namespaces.
    pub helpers: Vec<(Option<u32>, Space)>,
    /// Whether a task may be born late, by a parent that has its memory already. Not those whose birth has a part in
    /// another's session.
    pub plain: Vec<bool>,
    /// The user namespace each is born in, tasks and helpers, if that is one below the tree's.
    pub inside: Vec<Option<u32>>,
    /// The first process of a pid namespace whose users, groups and namespaces each was born with, if that is not how the tree begins.
    pub guests_of: Vec<Option<Node>>,
    /// Births and sessions: what is played at once, one tape a task, stage after stage.
    pub births: Vec<Vec<Tape>>,
    /// Adoptions and groups, when all are born.
    pub rest: Vec<Vec<Tape>>,
}

impl Family {
    /// The births of one wave: some tasks may have to wait until others have their memory. `wave` of helpers is 0.
    pub fn wave(&self, number: usize, wave: impl Fn(Node) -> usize) -> Vec<Vec<Tape>> {
        let now = |by: Node, d: &Deed| match d {
            Deed::Birth { child, .. } => wave(*child) == number,
            _ => wave(by) == number,
        };
        let tape = |(by, deeds): &Tape| {
            let deeds: Vec<Deed> = deeds.iter().filter(|d| now(*by, d)).cloned().collect();
            (!deeds.is_empty()).then_some((*by, deeds))
        };
        let stage = |s: &Vec<Tape>| s.iter().filter_map(tape).collect::<Vec<_>>();
        let stages = self.births.iter().map(stage);
        stages.filter(|s| !s.is_empty()).collect()
    }
}

/// SIGCHLD, the exit signal of orphans.
const CHLD: u32 = libc::SIGCHLD as u32;

/// The session of whoever restores.
const OUTER: u32 = 0;

/// A task or helper while the plan is made.
struct Person {
    kin: Kin,
    parent: Option<Node>,
    /// The session it must be born in; `None`: any.
    born: Option<u32>,
    creator: Option<Node>,
    /// The user namespace it is born in.
    inside: Option<u32>,
    /// The one it enters then, to bear the first process of a pid namespace there, and that one.
    enters: Option<u32>,
    leads_to: Option<Node>,
    /// Whose guest it is: see [`Family::guests_of`].
    guest_of: Option<Node>,
}

impl Person {
    fn new(kin: Kin, parent: Option<Node>, born: Option<u32>) -> Self {
        Self {
            kin,
            parent,
            born,
            creator: None,
            inside: None,
            enters: None,
            leads_to: None,
            guest_of: None,
        }
    }
}

impl Person {
    /// In which sessions it can give birth.
    fn serves(&self, session: u32) -> bool {
        self.kin.sid == session || self.born == Some(session)
    }
}

struct Planner<'a> {
    spaces: &'a Spaces,
    people: Vec<Person>,
    tasks: usize,
    helpers: Vec<(Option<u32>, Space)>,
    /// Helpers that enter a user namespace, by those whom they bear there.
    entrances: BTreeMap<Node, Node>,
    /// Groups that must be there while tasks are born, because some of those cannot see them.
    hidden: BTreeSet<u32>,
    /// A helper, whom it bears, who shall adopt that.
    adoptions: Vec<(Node, Node, Node)>,
    /// Objects that tasks with a creator have, by sort.
    made: [BTreeSet<u32>; 4],
    /// The group of the first task when that is outside.
    outer_group: Option<u32>,
}

/// Makes the plan. Parents come before their children.
///
/// # Errors
/// E5040 when no sequence of calls is known that makes such a tree.
pub fn plan(tasks: &[Kin], spaces: &Spaces) -> Result<Family> {
    // where a leader was born is a guess: a wrong one shows when somebody cannot be born, and is turned round
    let mut guesses: BTreeMap<Node, Option<u32>> = BTreeMap::new();
    let mut first = None;
    loop {
        let stuck = match guess(tasks, spaces, &guesses) {
            Ok(f) => return Ok(f),
            Err(s) => s,
        };
        let t = &tasks[stuck.at];
        let parent = tasks.iter().position(|p| p.pid == t.ppid).unwrap_or(0);
        let other = if t.sid == t.pid {
            (stuck.at, None)
        } else {
            (parent, Some(t.sid))
        };
        if first.is_some() && guesses.len() >= tasks.len().min(64)
            || other.0 == 0
            || guesses.insert(other.0, other.1).is_some()
        {
            return Err(first.unwrap_or(stuck).error(tasks));
        }
        first = first.or(Some(stuck));
    }
}

fn guess(
    tasks: &[Kin],
    spaces: &Spaces,
    guesses: &BTreeMap<Node, Option<u32>>,
) -> Result<Family, Stuck> {
    let index: BTreeMap<u32, Node> = tasks.iter().enumerate().map(|(i, t)| (t.pid, i)).collect();
    let Some(root) = tasks.first() else {
        return Ok(Family::default());
    };
    let outer = (root.sid != root.pid).then_some(root.sid);
    let mut p = Planner {
        spaces,
        entrances: BTreeMap::new(),
        hidden: BTreeSet::new(),
        people: Vec::new(),
        tasks: tasks.len(),
        helpers: Vec::new(),
        adoptions: Vec::new(),
        made: Default::default(),
        outer_group: (outer.is_some() && !index.contains_key(&root.pgid)).then_some(root.pgid),
    };
    for (i, t) in tasks.iter().enumerate() {
        let mut kin = t.clone();
        if Some(kin.sid) == outer {
            kin.sid = OUTER;
        }
        let parent = match index.get(&t.ppid) {
            _ if i == 0 => None,
            Some(p) if *p < i => Some(*p),
            _ => return Err(stuck(i, "its parent does not come before it")),
        };
        let born = (kin.sid != kin.pid).then_some(kin.sid);
        let born = if i == 0 { Some(OUTER) } else { born };
        p.people.push(Person::new(kin, parent, born));
    }
    p.check_groups(&index)?;
    p.early_births(&index, guesses);
    p.gone_leaders(&index)?;
    p.hidden_groups(&index)?;
    p.creators()?;
    let born = p.births();
    let (births, groups) = born.map_err(|s| p.of_task(s))?;
    let mut f = Family {
        plain: p.plain(),
        births,
        ..Family::default()
    };
    p.adopt(&mut f.rest);
    p.groups(&groups, &mut f.rest)?;
    f.inside = (0..p.people.len()).map(|n| p.born_as(n)).collect();
    f.guests_of = p.people.iter().map(|x| x.guest_of).collect();
    f.helpers = p.helpers;
    for stages in [&mut f.births, &mut f.rest] {
        stages
            .iter_mut()
            .for_each(|s| s.retain(|t| !t.1.is_empty()));
        stages.retain(|s| !s.is_empty());
    }
    Ok(f)
}

/// A task for which no way was found.
struct Stuck {
    at: Node,
    why: &'static str,
}

fn stuck(at: Node, why: &'static str) -> Stuck {
    Stuck { at, why }
}

impl Stuck {
    fn error(&self, tasks: &[Kin]) -> Error {
        let t = &tasks[self.at];
        let (pid, ppid, sid, pgid) = (t.pid, t.ppid, t.sid, t.pgid);
        Error::new(
            "E5040",
            Blame::Image,
            format!("task {pid} (parent {ppid}, session {sid}, group {pgid})"),
        )
        .why(self.why)
        .advice("this place in a tree cannot be rebuilt: please report it with pstree.img")
    }
}

impl Planner<'_> {
    fn check_groups(&self, index: &BTreeMap<u32, Node>) -> Result<(), Stuck> {
        for (i, x) in self.people.iter().enumerate() {
            let k = &x.kin;
            let of = |n: Option<&Node>| n.map(|n| &self.people[*n].kin);
            if k.sid == k.pid && k.pgid != k.pid {
                return Err(stuck(i, "the leader of a session leads its group"));
            }
            if of(index.get(&k.pgid)).is_some_and(|l| l.sid != k.sid) {
                return Err(stuck(i, "its group has another session"));
            }
            if let Some(l) = of(index.get(&k.sid))
                && l.sid != l.pid
            {
                return Err(stuck(i, "its session has no leader"));
            }
        }
        Ok(())
    }
    fn is_above(&self, above: Node, mut below: Node) -> bool {
        while let Some(p) = self.people[below].parent {
            if p == above {
                return true;
            }
            below = p;
        }
        false
    }
    /// Leaders of sessions that had children before: they must be born where those children are.
    fn early_births(&mut self, index: &BTreeMap<u32, Node>, guesses: &BTreeMap<Node, Option<u32>>) {
        let n = self.people.len();
        let is_leader = |p: &Person| p.kin.sid == p.kin.pid;
        let mut wants: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); n];
        for i in (1..n).rev() {
            let x = &self.people[i];
            let Some(p) = x.parent else { continue };
            let own = self.people[p].kin.pid;
            let up: Vec<u32> = if is_leader(x) {
                wants[i].iter().copied().filter(|s| *s != own).collect()
            } else if x.kin.sid != own {
                vec![x.kin.sid]
            } else {
                Vec::new()
            };
            wants[p].extend(up);
        }
        for (i, wants) in wants.iter().enumerate().skip(1) {
            let x = &self.people[i];
            let Some(p) = x.parent.filter(|_| is_leader(x)) else {
                continue;
            };
            let easy = wants.iter().find(|s| self.people[p].serves(**s));
            let early = |s: &&u32| match index.get(s) {
                // else it adopted the child from there
                Some(l) => !self.is_above(i, *l),
                None => {
                    (0..n).any(|m| m != i && self.people[m].kin.sid == **s && !self.is_above(i, m))
                }
            };
            let born = easy.or_else(|| wants.iter().find(early)).copied();
            let guess = guesses
                .get(&i)
                .filter(|g| g.is_none_or(|s| wants.contains(&s)));
            self.people[i].born = guess.copied().unwrap_or(born);
        }
    }
    /// Whether its parent can bear it in the right session.
    fn needs_other(&self, i: Node) -> bool {
        let x = &self.people[i];
        match (x.parent, x.born) {
            (Some(p), Some(s)) => !self.people[p].serves(s),
            _ => false,
        }
    }
    fn helper(
        &mut self,
        pid: Option<u32>,
        parent: Node,
        sid: u32,
        objects: Option<[u32; 4]>,
    ) -> Node {
        let above = self.people[parent].kin.space;
        let space = pid.map_or(above, |p| self.spaces.space_of(p));
        self.helpers.push((pid, space));
        let pid = pid.unwrap_or(0);
        let (ppid, at) = (self.people[parent].kin.pid, self.people.len());
        let kin = Kin {
            pid,
            ppid,
            sid,
            pgid: 0,
            exit_signal: 0,
            objects,
            space,
            users: self.people[parent].kin.users,
        };
        let born = (sid != pid).then_some(sid);
        self.people.push(Person::new(kin, Some(parent), born));
        at
    }
    /// The same of a task, where a helper is stuck: of whom it bears, or who bears it.
    fn of_task(&self, mut s: Stuck) -> Stuck {
        while s.at >= self.tasks {
            let mut children = self.entrances.iter();
            let child = children.find(|(child, helper)| **helper == s.at && **child < self.tasks);
            let parent = self.people[s.at].parent;
            s.at = child.map(|(c, _)| *c).or(parent).unwrap_or(0);
        }
        s
    }
    /// Helpers for leaders of sessions that are gone, below the deepest of those that need them.
    fn gone_leaders(&mut self, index: &BTreeMap<u32, Node>) -> Result<(), Stuck> {
        let mut gone: BTreeMap<u32, Vec<Node>> = BTreeMap::new();
        for i in 1..self.people.len() {
            let s = self.people[i].born.unwrap_or(OUTER);
            if s != OUTER && self.needs_other(i) && !index.contains_key(&s) {
                gone.entry(s).or_default().push(i);
            }
        }
        for (s, entries) in gone {
            let parents: BTreeSet<Node> = entries
                .iter()
                .filter_map(|i| self.people[*i].parent)
                .collect();
            let deepest = parents
                .iter()
                .copied()
                .find(|d| parents.iter().all(|p| p == d || self.is_above(*p, *d)));
            let at = deepest.ok_or_else(|| {
                stuck(entries[0], "the leader of its session is gone, and others of it are in another branch of the tree")
            })?;
            let objects = self.people[at].kin.objects;
            let h = self.helper(Some(s), at, s, objects);
            self.people[h].kin.exit_signal = CHLD;
        }
        Ok(())
    }
    /// Whether a child of `by` can have everything that it must share with tasks that exist.
    fn shares(&self, by: Node, child: Node) -> bool {
        let Some(want) = self.people[child].kin.objects else {
            return true;
        };
        let has = self.people[by].kin.objects;
        (0..4).all(|k| !self.made[k].contains(&want[k]) || has.is_some_and(|h| h[k] == want[k]))
    }
    /// Is it the first process of a pid namespace below the first one?
    fn founds(&self, i: Node) -> bool {
        let k = &self.people[i].kin;
        k.pid != 0 && self.spaces.first_of(k.space) == Some(k.pid)
    }
    /// Whether a child of `by` can be born in the pid namespace of `child`.
    fn reaches(&self, by: Node, child: Node) -> bool {
        let (from, to) = (self.people[by].kin.space, self.people[child].kin.space);
        self.admits(by, child)
            && match self.founds(child) {
                true => self.spaces.above(to) == from,
                false => self.spaces.is_within(to, from),
            }
    }
    /// The group in which it must be born, because it cannot see it.
    fn hidden_group(&self, i: Node) -> Option<u32> {
        let k = &self.people[i].kin;
        let seen = || self.spaces.seen(k.space, &self.spaces.name(k.pgid));
        (k.pgid != 0 && k.space != 0 && seen() == 0).then_some(k.pgid)
    }
    /// Groups of tasks that cannot see them: who leads one does so before others are born. Leaders that are gone are played by
    /// helpers, children of the first member that sees the group.
    fn hidden_groups(&mut self, index: &BTreeMap<u32, Node>) -> Result<(), Stuck> {
        let hidden: BTreeMap<u32, Node> = (0..self.tasks)
            .rev()
            .filter_map(|i| Some((self.hidden_group(i)?, i)))
            .collect();
        for (g, i) in hidden {
            self.hidden.insert(g);
            let known = |p: &Person| p.kin.pid == g;
            if Some(g) == self.outer_group
                || index.contains_key(&g)
                || self.people.iter().any(known)
            {
                continue;
            }
            let name = self.spaces.name(g);
            let sees = |m: &Node| {
                let k = &self.people[*m].kin;
                k.pgid == g && self.spaces.seen(k.space, &name) != 0
            };
            let first = (0..self.tasks).find(sees).ok_or_else(|| {
                stuck(
                    i,
                    "the leader of its group is gone, and nobody in the tree sees the group",
                )
            })?;
            let k = &self.people[first].kin;
            let (sid, objects) = (k.sid, k.objects);
            self.helper(Some(g), first, sid, objects);
        }
        Ok(())
    }
    fn bear(&mut self, child: Node, by: Node) {
        let (inside, guest) = (self.bears_as(by), self.people[by].guest_of);
        let own = &mut self.people[child];
        own.creator = Some(by);
        if child > 0 {
            own.inside = inside;
            own.guest_of = guest;
        }
        if self.entrances.contains_key(&child) {
            self.people[child].guest_of = Some(child);
        }
        for (k, o) in self.people[child].kin.objects.iter().flatten().enumerate() {
            self.made[k].insert(*o);
        }
    }
    /// Who bears whom.
    fn creators(&mut self) -> Result<(), Stuck> {
        self.bear(0, 0);
        loop {
            let mut moved = false;
            let mut left = None;
            for i in 1..self.people.len() {
                if self.people[i].creator.is_some() {
                    continue;
                }
                moved |= self.entrance(i)?;
                let by = self.people[i]
                    .parent
                    .filter(|p| self.people[*p].creator.is_some())
                    .and_then(|p| self.creator(i, p));
                match by {
                    Some(by) => {
                        self.bear(i, by);
                        moved = true;
                    }
                    None => left = left.or(Some(i)),
                }
            }
            match left {
                None => return Ok(()),
                // a way through a helper further down is taken only when no plain way is left
                Some(_) if moved => {}
                Some(_) => {
                    let way = (1..self.people.len())
                        .filter(|i| self.people[*i].creator.is_none())
                        .find_map(|i| self.bearer_below(i).map(|y| (i, y)));
                    let Some((i, y)) = way else {
                        let first = (1..self.tasks).find(|i| self.people[*i].creator.is_none());
                        let why = "no task can bear it in its session with what it shares";
                        return Err(stuck(first.unwrap_or(0), why));
                    };
                    let (s, objects) = (
                        self.people[i].born.unwrap_or(OUTER),
                        self.people[y].kin.objects,
                    );
                    let h = self.helper(None, y, s, objects);
                    self.bear(h, y);
                    self.bear(i, h);
                    let p = self.people[i].parent.unwrap_or(0);
                    self.adoptions.push((h, i, p));
                }
            }
        }
    }
    /// A plain way to bear `i`: its parent, or a sibling.
    fn creator(&self, i: Node, p: Node) -> Option<Node> {
        let x = &self.people[i];
        let fits = |y: Node| {
            x.born.is_none_or(|s| self.people[y].serves(s))
                && self.shares(y, i)
                && self.reaches(y, i)
        };
        if let Some(h) = self.entrances.get(&i) {
            // it must be a sibling already
            let there =
                self.people[*h].creator.is_some() && !self.adoptions.iter().any(|a| a.1 == *h);
            return (there && fits(*h)).then_some(*h);
        }
        if fits(p) {
            return Some(p);
        }
        (1..self.people.len()).find(|y| {
            let s = &self.people[*y];
            s.parent == Some(p)
                && s.creator.is_some()
                // a child still to be adopted has another parent until then
                && !self.adoptions.iter().any(|a| a.1 == *y)
                && x.born.is_some()
                && s.kin.exit_signal == x.kin.exit_signal
                && fits(*y)
        })
    }
    /// Someone below the parent who can bear a helper that bears `i`.
    fn bearer_below(&self, i: Node) -> Option<Node> {
        let x = &self.people[i];
        let (p, s) = (x.parent?, x.born?);
        self.people[p].creator?;
        if x.kin.exit_signal != CHLD {
            return None;
        }
        (1..self.people.len()).find(|y| {
            let z = &self.people[*y];
            z.creator.is_some()
                && z.serves(s)
                && self.is_above(p, *y)
                && self.shares(*y, i)
                && self.reaches(*y, i)
                // KERNEL: nobody is adopted out of a pid namespace (kernel/exit.c, find_new_reaper())
                && z.kin.space == self.people[p].kin.space
        })
    }
    fn birth(&self, by: Node, child: Node) -> Deed {
        let c = &self.people[child];
        // helpers that bear for another are children of whoever bore them
        let foster = self.adoptions.iter().any(|a| a.1 == child);
        let parent = if foster { by } else { c.parent.unwrap_or(by) };
        let (has, want) = (self.people[by].kin.objects, c.kin.objects);
        let share = std::array::from_fn(|k| match (has, want) {
            (Some(h), Some(w)) => h[k] == w[k],
            _ => false,
        });
        Deed::Birth {
            child,
            parent,
            share,
            exit_signal: c.kin.exit_signal,
            founds: self.founds(child),
            chosen: self.spaces.chosen(c.kin.space, self.bears_as(by)),
        }
    }
    /// Everybody whose birth is special, and all that must exist before, is not plain. Nor is who is born where somebody joins a group
    /// for it: the order counts there.
    fn plain(&self) -> Vec<bool> {
        if !self.hidden.is_empty() {
            return vec![false; self.tasks];
        }
        let mut plain = vec![true; self.people.len()];
        for (i, x) in self.people.iter().enumerate().skip(1) {
            let as_creator = |c: Node| {
                let k = &self.people[c].kin;
                x.born.is_none_or(|s| s == k.sid) && x.kin.space == k.space
            };
            let usual = x.creator == x.parent && x.creator.is_some_and(as_creator);
            if usual && i < self.tasks {
                continue;
            }
            let mut todo = vec![i];
            while let Some(n) = todo.pop() {
                if std::mem::take(&mut plain[n]) {
                    todo.extend(self.people[n].creator);
                    todo.extend(self.people[n].parent);
                }
            }
        }
        plain.truncate(self.tasks);
        plain
    }
    /// Every task plays its deeds in order: children of its first session, setsid, children of its own. Mostly that is one tape; it is
    /// cut where one waits for a pid namespace or a group that another one makes. Gives the group in which each is then, too.
    fn births(&self) -> Result<(Vec<Vec<Tape>>, Vec<u32>), Stuck> {
        let mut todo = self.wishes();
        let mut now = Births {
            stage: 0,
            group: vec![self.outer_group.unwrap_or(OUTER); self.people.len()],
            bears_in: self.people.iter().map(|p| p.kin.space).collect(),
            born: vec![None; self.people.len()],
            led: BTreeMap::new(),
        };
        let mut stages: Vec<Vec<Tape>> = Vec::new();
        let mut ready = vec![0];
        while !ready.is_empty() {
            let (mut stage, mut next) = (Vec::new(), Vec::new());
            let mut moved = false;
            for at in std::mem::take(&mut ready) {
                let mut deeds = Vec::new();
                while let Some(d) = self.next_of(at, &mut todo[at], &mut now, &mut deeds)? {
                    match &d {
                        Deed::Birth { child, .. } => {
                            now.born[*child] = Some((now.stage, at));
                            now.group[*child] = now.group[at];
                            next.push(*child);
                        }
                        Deed::Session => now.lead(at, self.people[at].kin.pid),
                        _ => {}
                    }
                    deeds.push(d);
                    moved = true;
                }
                if !todo[at].is_empty() {
                    next.push(at);
                }
                let own = self.people[at].kin.space;
                if todo[at].is_empty() && now.bears_in[at] != own {
                    // threads are born at home (kernel/fork.c, copy_process())
                    deeds.push(Deed::BearIn(at));
                    now.bears_in[at] = own;
                }
                stage.push((at, deeds));
            }
            if let Some(n) = next.first().filter(|_| !moved) {
                return Err(stuck(
                    *n,
                    "it waits for a pid namespace or a group that nobody makes before",
                ));
            }
            stages.push(stage);
            now.stage += 1;
            ready = next;
        }
        Ok((stages, now.group))
    }
    /// The next deed that `at` need not wait with, prepared: of several births that may be any.
    fn next_of(
        &self,
        at: Node,
        todo: &mut VecDeque<Deed>,
        now: &mut Births,
        deeds: &mut Vec<Deed>,
    ) -> Result<Option<Deed>, Stuck> {
        for i in 0..todo.len() {
            let birth = matches!(todo[i], Deed::Birth { .. });
            if i > 0 && !birth {
                break;
            }
            if self.prepare(at, &todo[i], now, deeds)? {
                return Ok(todo.remove(i));
            }
        }
        Ok(None)
    }
    /// What each would do if it had nobody to wait for.
    fn wishes(&self) -> Vec<VecDeque<Deed>> {
        let mut children: BTreeMap<Node, Vec<Node>> = BTreeMap::new();
        for (i, x) in self.people.iter().enumerate().skip(1) {
            children.entry(x.creator.unwrap_or(0)).or_default().push(i);
        }
        let wishes = |at: Node| {
            let x = &self.people[at].kin;
            let own = x.sid == x.pid && x.pid != 0;
            let born: &[Node] = children.get(&at).map_or(&[], |v| v);
            let early = |c: &&Node| own && self.people[**c].born.is_some_and(|s| s != x.sid);
            let enters = self.people[at].leads_to.map(Deed::Enter);
            let early_births = born.iter().filter(early).map(|c| self.birth(at, *c));
            let mut deeds: VecDeque<Deed> = enters.into_iter().chain(early_births).collect();
            if own {
                deeds.push_back(Deed::Session);
            }
            let leads = !own && self.hidden.contains(&x.pid);
            // a group that is left by the only one in it is no more
            let before = |c: &&Node| leads && self.hidden_group(**c).is_some_and(|g| g != x.pid);
            let (first, then): (Vec<&Node>, Vec<&Node>) =
                born.iter().filter(|c| !early(c)).partition(before);
            deeds.extend(first.into_iter().map(|c| self.birth(at, *c)));
            deeds.extend(leads.then_some(Deed::Group(x.pid)));
            deeds.extend(then.into_iter().map(|c| self.birth(at, *c)));
            deeds
        };
        (0..self.people.len()).map(wishes).collect()
    }
    /// What `at` must do first, so that a child is born in its pid namespace, and in its group if it cannot see that. False: it has to
    /// wait for others.
    fn prepare(
        &self,
        at: Node,
        deed: &Deed,
        now: &mut Births,
        deeds: &mut Vec<Deed>,
    ) -> Result<bool, Stuck> {
        let own = &self.people[at].kin;
        let child = match deed {
            Deed::Birth { child, .. } => *child,
            Deed::Group(g) => {
                now.lead(at, *g);
                return Ok(true);
            }
            _ => return Ok(true),
        };
        let space = self.people[child].kin.space;
        let wanted = if self.founds(child) { own.space } else { space };
        let guide = match self.spaces.first_of(wanted) {
            _ if wanted == own.space => at,
            first => {
                let first = first.and_then(|f| self.people.iter().position(|p| p.kin.pid == f));
                first.ok_or_else(|| {
                    stuck(child, "the first process of its pid namespace is not there")
                })?
            }
        };
        // it is seen once the tape it was born in has been played
        let there = now.born[guide].is_some_and(|(stage, by)| stage < now.stage || by == at);
        if now.bears_in[at] != wanted && guide != at && !there {
            return Ok(false);
        }
        if let Some(g) = self.hidden_group(child).filter(|g| *g != now.group[at]) {
            let led = now.led.get(&g);
            if !led.is_some_and(|(stage, by)| *stage < now.stage || *by == at) {
                return Ok(false);
            }
            // who cannot see its own group would not come back to it
            let may = own.sid != own.pid && self.hidden_group(at).is_none();
            if !may || self.spaces.seen(own.space, &self.spaces.name(g)) == 0 {
                return Err(stuck(
                    child,
                    "its group is one that it cannot see, and that its creator cannot join",
                ));
            }
            deeds.push(Deed::Group(g));
            now.group[at] = g;
        }
        if now.bears_in[at] != wanted {
            deeds.push(Deed::BearIn(guide));
            now.bears_in[at] = wanted;
        }
        Ok(true)
    }
    /// Helpers end, and whom they bore goes to the right parent: one parent at a time, so that no other adopts.
    fn adopt(&self, stages: &mut Vec<Vec<Tape>>) {
        let parents: BTreeSet<Node> = self.adoptions.iter().map(|a| a.2).collect();
        for p in parents {
            let here: Vec<_> = self.adoptions.iter().filter(|a| a.2 == p).collect();
            let mut before = Tapes::default();
            let mut end = Tapes::default();
            let mut after = Tapes::default();
            before.add(p, Deed::Adopt(true));
            for (h, child, _) in &here {
                before.add(*child, Deed::Unbind);
                end.add(*h, Deed::Exit);
                end.add(self.people[*h].parent.unwrap_or(0), Deed::Reap(*h));
                after.add(*child, Deed::Bind(p));
            }
            after.add(p, Deed::Adopt(false));
            stages.extend([before.0, end.0, after.0]);
        }
    }
    /// Groups, leaders first; then helpers that played leaders end. `now`: the group each is in.
    fn groups(&mut self, now: &[u32], stages: &mut Vec<Vec<Tape>>) -> Result<(), Stuck> {
        let mut births = Tapes::default();
        let mut lead = Tapes::default();
        let mut join = Tapes::default();
        let mut end = Tapes::default();
        for h in self.tasks..self.people.len() {
            // those of adoptions have ended
            if self.people[h].kin.pid != 0 || self.people[h].leads_to.is_some() {
                end.add(h, Deed::Exit);
                end.add(self.people[h].parent.unwrap_or(0), Deed::Reap(h));
            }
        }
        let outer_group = self.outer_group;
        let foreign = |k: &Kin| {
            let outer = k.sid == OUTER && (Some(k.pgid) == outer_group || k.pgid == 0);
            k.pgid != k.sid && !outer
        };
        // the first member of each group, in the order of tasks
        let mut members: BTreeMap<u32, Node> = BTreeMap::new();
        for i in (0..self.tasks).filter(|i| foreign(&self.people[*i].kin)) {
            members.entry(self.people[i].kin.pgid).or_insert(i);
        }
        let played: BTreeSet<u32> = self.people.iter().map(|p| p.kin.pid).collect();
        for (g, first) in members.iter().filter(|m| !played.contains(m.0)) {
            let k = &self.people[*first].kin;
            let (sid, objects) = (k.sid, k.objects);
            let h = self.helper(Some(*g), *first, sid, objects);
            births.add(*first, self.birth(*first, h));
            lead.add(h, Deed::Group(*g));
            end.add(h, Deed::Exit);
            end.add(*first, Deed::Reap(h));
        }
        let mut movers = Vec::new();
        for (i, group) in now.iter().copied().enumerate().take(self.tasks) {
            let k = self.people[i].kin.clone();
            let leads = k.sid != k.pid && members.contains_key(&k.pid);
            if leads {
                lead.add(i, Deed::Group(k.pid));
            }
            // who joined a hidden group for others, or was born by one who did, has to leave it
            let strayed = self.hidden.contains(&group) && group != k.pgid;
            match members.get(&k.pgid) {
                _ if k.pgid == group && !leads || k.pgid == k.pid => {}
                _ if strayed && !foreign(&k) && k.sid == OUTER => {
                    return Err(stuck(
                        i,
                        "it is in the group of who restores, and another one that it was born in is hidden from others",
                    ));
                }
                _ if strayed && !foreign(&k) && !leads => join.add(i, Deed::Group(k.pgid)),
                _ if leads => movers.push(i),
                _ if !foreign(&k) => {}
                Some(_) => join.add(i, Deed::Group(k.pgid)),
                None => {}
            }
        }
        // a task that left the group it made does so before the maker of the group it goes to leaves that
        let mut moves = Vec::new();
        while !movers.is_empty() {
            let goal = |m: Node| self.people[m].kin.pgid;
            let free = |m: &Node| {
                !movers
                    .iter()
                    .any(|o| o != m && goal(*o) == self.people[*m].kin.pid)
            };
            let at = movers.iter().position(free);
            let m = movers.remove(at.unwrap_or(0));
            let k = self.people[m].kin.clone();
            if at.is_none() {
                // they went round in a circle: somebody keeps the group until the last has come
                let h = self.helper(None, m, k.sid, k.objects);
                births.add(m, self.birth(m, h));
                join.add(h, Deed::Group(k.pid));
                end.add(h, Deed::Exit);
                end.add(m, Deed::Reap(h));
            }
            moves.push(vec![(m, vec![Deed::Group(k.pgid)])]);
        }
        stages.extend([births.0, lead.0, join.0]);
        stages.extend(moves);
        stages.push(end.0);
        Ok(())
    }
}

/// How far births are.
struct Births {
    stage: usize,
    /// The group of each.
    group: Vec<u32>,
    /// The pid namespace in which the children of each are born.
    bears_in: Vec<Space>,
    /// In which stage and by whom.
    born: Vec<Option<(usize, Node)>>,
    /// Groups: in which stage and by whom they were made.
    led: BTreeMap<u32, (usize, Node)>,
}

impl Births {
    fn lead(&mut self, who: Node, group: u32) {
        self.group[who] = group;
        self.led.entry(group).or_insert((self.stage, who));
    }
}

/// Tapes of one stage, one a task.
#[derive(Default)]
struct Tapes(Vec<Tape>);

impl Tapes {
    fn add(&mut self, who: Node, deed: Deed) {
        match self.0.iter_mut().find(|t| t.0 == who) {
            Some(t) => t.1.push(deed),
            None => self.0.push((who, vec![deed])),
        }
    }
}

#[cfg(test)]
#[path = "family_tests.rs"]
mod tests;
