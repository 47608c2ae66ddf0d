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
//! Long because sessions, creators, adoptions and groups are decided over one set of people.
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
    },
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

/// One tape: who plays it, and its deeds.
pub type Tape = (Node, Vec<Deed>);

/// The whole story behind the birth of the first task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Family {
    /// Helpers: the pid each must have; `None`: any that nobody has or will have.
    pub helpers: Vec<Option<u32>>,
    /// Whether a task may be born late, by a parent that has its memory already. Not those whose birth has a part in
    /// another's session.
    pub plain: Vec<bool>,
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
}

impl Person {
    /// In which sessions it can give birth.
    fn serves(&self, session: u32) -> bool {
        self.kin.sid == session || self.born == Some(session)
    }
}

struct Planner {
    people: Vec<Person>,
    tasks: usize,
    helpers: Vec<Option<u32>>,
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
pub fn plan(tasks: &[Kin]) -> Result<Family> {
    // where a leader was born is a guess: a wrong one shows when somebody cannot be born, and is turned round
    let mut guesses: BTreeMap<Node, Option<u32>> = BTreeMap::new();
    let mut first = None;
    loop {
        let stuck = match guess(tasks, &guesses) {
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

fn guess(tasks: &[Kin], guesses: &BTreeMap<Node, Option<u32>>) -> Result<Family, Stuck> {
    let index: BTreeMap<u32, Node> = tasks.iter().enumerate().map(|(i, t)| (t.pid, i)).collect();
    let Some(root) = tasks.first() else {
        return Ok(Family::default());
    };
    let outer = (root.sid != root.pid).then_some(root.sid);
    let mut p = Planner {
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
        p.people.push(Person {
            kin,
            parent,
            born: if i == 0 { Some(OUTER) } else { born },
            creator: None,
        });
    }
    p.check_groups(&index)?;
    p.early_births(&index, guesses);
    p.gone_leaders(&index)?;
    p.creators()?;
    let mut f = Family {
        plain: p.plain(),
        births: p.births(),
        ..Family::default()
    };
    p.adopt(&mut f.rest);
    p.groups(&index, &mut f.rest);
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

impl Planner {
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
        self.helpers.push(pid);
        let pid = pid.unwrap_or(0);
        let (ppid, at) = (self.people[parent].kin.pid, self.people.len());
        self.people.push(Person {
            kin: Kin {
                pid,
                ppid,
                sid,
                pgid: 0,
                exit_signal: 0,
                objects,
            },
            parent: Some(parent),
            born: (sid != pid).then_some(sid),
            creator: None,
        });
        at
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
    fn bear(&mut self, child: Node, by: Node) {
        self.people[child].creator = Some(by);
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
        let fits = |y: Node| x.born.is_none_or(|s| self.people[y].serves(s)) && self.shares(y, i);
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
            z.creator.is_some() && z.serves(s) && self.is_above(p, *y) && self.shares(*y, i)
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
        }
    }
    /// Everybody whose birth is special, and all that must exist before, is not plain.
    fn plain(&self) -> Vec<bool> {
        let mut plain = vec![true; self.people.len()];
        for (i, x) in self.people.iter().enumerate().skip(1) {
            let usual = x.creator == x.parent
                && x.creator
                    .is_some_and(|c| x.born.is_none_or(|s| s == self.people[c].kin.sid));
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
    /// Every task plays one tape: children of its first session, setsid, children of its own.
    fn births(&self) -> Vec<Vec<Tape>> {
        let mut stages: Vec<Vec<Tape>> = Vec::new();
        let mut children: BTreeMap<Node, Vec<Node>> = BTreeMap::new();
        for (i, x) in self.people.iter().enumerate().skip(1) {
            children.entry(x.creator.unwrap_or(0)).or_default().push(i);
        }
        let mut queue = VecDeque::from([(0, 0)]);
        while let Some((at, level)) = queue.pop_front() {
            let x = &self.people[at].kin;
            let own = x.sid == x.pid;
            let born: &[Node] = children.get(&at).map_or(&[], |v| v);
            let early = |c: &&Node| own && self.people[**c].born.is_some_and(|s| s != x.sid);
            let mut deeds: Vec<Deed> = born
                .iter()
                .filter(early)
                .map(|c| self.birth(at, *c))
                .collect();
            if own {
                deeds.push(Deed::Session);
            }
            deeds.extend(
                born.iter()
                    .filter(|c| !early(c))
                    .map(|c| self.birth(at, *c)),
            );
            queue.extend(born.iter().map(|c| (*c, level + 1)));
            if stages.len() <= level {
                stages.push(Vec::new());
            }
            stages[level].push((at, deeds));
        }
        stages
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
    /// Groups, leaders first; then helpers that played leaders end.
    fn groups(&mut self, index: &BTreeMap<u32, Node>, stages: &mut Vec<Vec<Tape>>) {
        let mut births = Tapes::default();
        let mut lead = Tapes::default();
        let mut join = Tapes::default();
        let mut end = Tapes::default();
        for h in self.tasks..self.people.len() {
            // those of adoptions have ended
            if self.people[h].kin.pid != 0 {
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
        for (g, first) in members.iter().filter(|m| !index.contains_key(m.0)) {
            let k = &self.people[*first].kin;
            let (sid, objects) = (k.sid, k.objects);
            let h = self.helper(Some(*g), *first, sid, objects);
            births.add(*first, self.birth(*first, h));
            lead.add(h, Deed::Group(*g));
            end.add(h, Deed::Exit);
            end.add(*first, Deed::Reap(h));
        }
        let mut movers = Vec::new();
        for i in 0..self.tasks {
            let k = self.people[i].kin.clone();
            let leads = k.sid != k.pid && members.contains_key(&k.pid);
            if leads {
                lead.add(i, Deed::Group(k.pid));
            }
            match members.get(&k.pgid) {
                _ if !foreign(&k) && !leads || k.pgid == k.pid => {}
                _ if leads => movers.push(i),
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
