//! A kernel of tasks, sessions, groups and pid namespaces, small enough to read: it makes random trees and plays plans.
//!
//! Long because the model and what is tried with it are one story.
use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct T {
    ppid: u32,
    sid: u32,
    pgid: u32,
    dead: bool,
    subreaper: bool,
    exit_signal: u32,
    objects: [u32; 4],
    dies_with: Option<u32>,
    /// Its pid namespace, and that of its children.
    space: usize,
    bears_in: usize,
    /// Its user namespace; `None`: the tree's.
    users: Option<u32>,
}

/// Tasks by pid. Task 1 is init, whose session is outside of every tree.
/// And pid namespaces: the one above, the first task, the user namespace it belongs to. And user namespaces: the one above.
#[derive(Debug, Clone, Default)]
struct World(
    BTreeMap<u32, T>,
    Vec<(usize, u32, Option<u32>)>,
    BTreeMap<u32, Option<u32>>,
);

const OUT: u32 = 900;

impl World {
    fn new() -> Self {
        let tasks = BTreeMap::from([(
            1,
            T {
                ppid: 0,
                sid: OUT,
                pgid: OUT,
                dead: false,
                subreaper: true,
                exit_signal: CHLD,
                objects: [1; 4],
                dies_with: None,
                space: 0,
                bears_in: 0,
                users: None,
            },
        )]);
        Self(tasks, vec![(0, 1, None)], BTreeMap::new())
    }
    /// unshare of users.
    fn users(&mut self, who: u32) {
        let new = 200 + self.2.len() as u32;
        let t = self.0.get_mut(&who).expect("caller");
        self.2.insert(new, t.users.replace(new));
    }
    fn has_rights(&self, who: u32, over: Option<u32>) -> bool {
        let (own, mut at) = (self.0[&who].users, over);
        while at != own && at.is_some() {
            at = at.and_then(|u| self.2[&u]);
        }
        at == own
    }
    fn is_within(&self, mut space: usize, above: usize) -> bool {
        while space != above && space != 0 {
            space = self.1[space].0;
        }
        space == above
    }
    /// clone3 with CLONE_NEWPID.
    fn found(&mut self, by: u32, pid: u32, sibling: bool, signal: u32) -> Result<(), String> {
        let c = &self.0[&by];
        if c.space != c.bears_in {
            return Err(format!("{by} bears elsewhere"));
        }
        self.1.push((c.space, pid, c.users));
        let new = self.1.len() - 1;
        self.born(by, pid, sibling, signal)?;
        let t = self.0.get_mut(&pid).expect("just born");
        (t.space, t.bears_in) = (new, new);
        Ok(())
    }
    /// setns with a pidfd.
    fn bear_in(&mut self, who: u32, of: u32) -> Result<(), String> {
        let space = self.0.get(&of).ok_or(format!("no task {of}"))?.space;
        if !self.is_within(space, self.0[&who].space) {
            return Err(format!("{who} does not see {of}"));
        }
        if space != self.0[&who].space
            && !self.2.is_empty()
            && !self.has_rights(who, self.1[space].2)
        {
            return Err(format!("{who} has no rights where {of} is"));
        }
        self.0.get_mut(&who).expect("caller").bears_in = space;
        Ok(())
    }
    /// Can it see the number of a group, which is that of its leader?
    fn sees(&self, who: u32, group: u32) -> bool {
        let member = self.0.get(&group).map(|l| l.space);
        // of one that is gone, a member tells
        let all = self.0.values().filter(|t| t.pgid == group);
        let led = all.map(|t| t.space).min_by_key(|s| self.depth(*s));
        self.is_within(member.or(led).unwrap_or(0), self.0[&who].space)
    }
    fn depth(&self, mut space: usize) -> usize {
        let mut n = 0;
        while space != 0 {
            space = self.1[space].0;
            n += 1;
        }
        n
    }
    fn born(&mut self, by: u32, pid: u32, sibling: bool, exit_signal: u32) -> Result<(), String> {
        let c = self.0.get(&by).ok_or(format!("no caller {by}"))?.clone();
        // a number lives on as that of a session or group
        if self
            .0
            .iter()
            .any(|(p, t)| [*p, t.sid, t.pgid].contains(&pid))
        {
            return Err(format!("pid {pid} is taken"));
        }
        let t = T {
            ppid: if sibling { c.ppid } else { by },
            subreaper: false,
            exit_signal: if sibling { c.exit_signal } else { exit_signal },
            objects: [pid; 4],
            dies_with: None,
            space: c.bears_in,
            ..c
        };
        self.0.insert(pid, t);
        Ok(())
    }
    fn setsid(&mut self, who: u32) -> Result<(), String> {
        if self.0.values().any(|t| t.pgid == who) {
            return Err(format!("{who} leads a group"));
        }
        let t = self.0.get_mut(&who).ok_or("no task")?;
        (t.sid, t.pgid) = (who, who);
        Ok(())
    }
    fn setpgid(&mut self, who: u32, to: u32) -> Result<(), String> {
        let sid = self.0[&who].sid;
        let there = || self.0.values().any(|t| t.pgid == to && t.sid == sid);
        if sid == who || to != who && !(there() && self.sees(who, to)) {
            return Err(format!("{who} may not join {to}"));
        }
        self.0.get_mut(&who).expect("caller").pgid = to;
        Ok(())
    }
    fn exit(&mut self, who: u32) -> Result<(), String> {
        // a subreaper above in the same pid namespace, or the first task there
        let space = self.0[&who].space;
        let mut to = self.0[&who].ppid;
        while !self.0[&to].subreaper && self.0[&to].space == space {
            to = self.0[&to].ppid;
        }
        if self.0[&to].space != space {
            to = self.1[space].1;
        }
        for (p, t) in &mut self.0 {
            if t.ppid == who {
                if t.dies_with == Some(who) {
                    return Err(format!("{p} dies with {who}"));
                }
                t.ppid = to;
                t.exit_signal = CHLD;
            }
        }
        self.0.get_mut(&who).expect("caller").dead = true;
        Ok(())
    }
    fn reap(&mut self, by: u32, who: u32) -> Result<(), String> {
        match self.0.get(&who) {
            Some(t) if t.dead && t.ppid == by => {
                self.0.remove(&who);
                Ok(())
            }
            t => Err(format!("{by} waits for {who}: {t:?}")),
        }
    }
    /// The tree below `root` as an image has it, parents first; `None` if it hangs on tasks outside.
    fn tree(&self, root: u32) -> Option<Vec<Kin>> {
        let mut all = vec![root];
        let mut i = 0;
        while i < all.len() {
            let at = all[i];
            all.extend(self.0.iter().filter(|(_, t)| t.ppid == at).map(|(p, _)| *p));
            i += 1;
        }
        let r = &self.0[&root];
        let fine = |n: u32| all.contains(&n) || !self.0.contains_key(&n) && n != OUT;
        let outer = r.sid != root;
        let tree: Vec<Kin> = all
            .iter()
            .map(|p| {
                let t = &self.0[p];
                Kin {
                    pid: *p,
                    ppid: t.ppid,
                    sid: t.sid,
                    pgid: t.pgid,
                    exit_signal: t.exit_signal,
                    objects: (!t.dead).then_some(t.objects),
                    space: t.space,
                    users: t.users,
                }
            })
            .collect();
        let closed = tree.iter().all(|k| {
            (fine(k.sid) || outer && k.sid == OUT)
                && (fine(k.pgid) || outer && k.pgid == OUT && r.pgid == OUT)
        });
        // a gone group that the root joined is taken for one outside
        let known = r.pgid == OUT || all.contains(&r.pgid);
        (closed && known).then_some(tree)
    }
}

/// The pid namespaces of a tree, numbered as the world has them: inside, the first task is 1, others have the numbers they have outside.
fn spaces(w: &World, tree: &[Kin]) -> Result<Spaces> {
    use stasis_proto::pb;
    let id = |space: usize| space as u32 + 100;
    let used = |space: &usize| tree.iter().any(|k| k.space == *space);
    let nested = (1..w.1.len())
        .filter(used)
        .map(|s| pb::StasisNamespaceEntry {
            id: id(s),
            sort: libc::CLONE_NEWPID as u32,
            parent: id(w.1[s].0),
            owner: w.1[s].2,
            ..Default::default()
        });
    let users = w.2.iter().map(|(id, above)| pb::StasisNamespaceEntry {
        id: *id,
        sort: libc::CLONE_NEWUSER as u32,
        parent: above.unwrap_or(7),
        ..Default::default()
    });
    let nested = nested.chain(users);
    let number = |number: u32, space: usize| {
        let mut inner = Vec::new();
        let mut at = space;
        while at != 0 {
            inner.insert(0, if w.1[at].1 == number { 1 } else { number });
            at = w.1[at].0;
        }
        pb::StasisNumbers { number, inner }
    };
    let led = |g: u32, k: &Kin| {
        let own = w.0.get(&g).map(|l| l.space);
        let mut all: Vec<usize> =
            w.0.values()
                .filter(|t| t.pgid == g || t.sid == g)
                .map(|t| t.space)
                .collect();
        all.sort_by_key(|s| w.depth(*s));
        let mut at = own.or(all.first().copied()).unwrap_or(0);
        if !w.is_within(k.space, at) {
            at = 0;
        }
        number(g, at)
    };
    let entry = |k: &Kin| {
        let all = [number(k.pid, k.space), led(k.sid, k), led(k.pgid, k)];
        let mut numbers: Vec<_> = all.into_iter().filter(|n| !n.inner.is_empty()).collect();
        numbers.dedup_by_key(|n| n.number);
        pb::PstreeEntry {
            pid: k.pid,
            ppid: k.ppid,
            pgid: k.pgid,
            sid: k.sid,
            threads: vec![k.pid],
            stasis: (k.space != 0).then(|| pb::StasisPstreeEntry {
                pid_ns: Some(id(k.space)),
                numbers,
                ..Default::default()
            }),
        }
    };
    let entries: Vec<_> = tree.iter().map(entry).collect();
    Spaces::from_entries(nested.collect(), &entries, Some(id(0)))
}

/// Plays a plan as the engine does and gives the tree.
fn play(tasks: &[Kin], f: &Family, waves: &[usize], s: &Spaces) -> Result<Vec<Kin>, String> {
    let mut w = World::new();
    let mut free = 5000;
    let pids: Vec<u32> = tasks
        .iter()
        .map(|t| t.pid)
        .chain(f.helpers.iter().map(|h| {
            h.0.unwrap_or_else(|| {
                free += 1;
                free
            })
        }))
        .collect();
    w.born(1, pids[0], false, tasks[0].exit_signal)?;
    let late = |n: Node| waves.get(n).copied().unwrap_or(0);
    let last = waves.iter().max().copied().unwrap_or(0);
    let births = (0..=last).flat_map(|w| f.wave(w, late));
    for stage in births.chain(f.rest.iter().cloned()) {
        let mut actors = BTreeSet::new();
        let mut reaps = Vec::new();
        for (who, deeds) in &stage {
            assert!(actors.insert(*who), "one tape a task");
            let me = pids[*who];
            if !w.0.contains_key(&me) {
                return Err(format!("{me} is not born yet"));
            }
            for d in deeds {
                match d {
                    Deed::Birth {
                        child,
                        parent,
                        exit_signal,
                        share,
                        founds,
                        chosen,
                    } => {
                        let helper = || f.helpers[*child - tasks.len()].1;
                        let space = tasks.get(*child).map_or_else(helper, |t| t.space);
                        let users = w.0[&me].users;
                        if s.chosen(space, users) != *chosen || f.inside[*child] != users {
                            return Err(format!("{me} cannot choose {chosen} numbers"));
                        }
                        if *founds && s.owner(space) != users {
                            return Err(format!("{me} founds for another"));
                        }
                        let old = w.0[&me].objects;
                        let c = pids[*child];
                        let sibling = pids[*parent] != me;
                        match founds {
                            true => w.found(me, c, sibling, *exit_signal)?,
                            false => w.born(me, c, sibling, *exit_signal)?,
                        }
                        let t = w.0.get_mut(&c).expect("just born");
                        for k in 0..4 {
                            if share[k] {
                                t.objects[k] = old[k];
                            } else if let Some(o) = tasks.get(*child).and_then(|t| t.objects) {
                                t.objects[k] = o[k];
                            }
                        }
                        if t.ppid != pids[*parent] {
                            return Err(format!("{c} is not a child of {}", pids[*parent]));
                        }
                        t.dies_with = Some(t.ppid);
                    }
                    Deed::BearIn(n) => {
                        w.bear_in(me, pids[*n])?;
                        let there = w.0[&me].bears_in;
                        let rights = s.users_within(w.1[there].2, w.0[&me].users);
                        if there != w.0[&me].space && !rights {
                            return Err(format!("{me} has no rights there"));
                        }
                    }
                    Deed::Enter(n) => {
                        let owner = s.owner(tasks[*n].space);
                        if !s.users_within(owner, w.0[&me].users) {
                            return Err(format!("{me} cannot enter"));
                        }
                        w.0.get_mut(&me).expect("caller").users = owner;
                    }
                    Deed::Session => w.setsid(me)?,
                    Deed::Group(g) => w.setpgid(me, *g)?,
                    Deed::Adopt(on) => w.0.get_mut(&me).expect("caller").subreaper = *on,
                    Deed::Unbind => w.0.get_mut(&me).expect("caller").dies_with = None,
                    Deed::Bind(p) => {
                        let t = w.0.get_mut(&me).expect("caller");
                        if t.ppid != pids[*p] {
                            return Err(format!("{me} is a child of {}", t.ppid));
                        }
                        t.dies_with = Some(t.ppid);
                    }
                    Deed::Exit => w.exit(me)?,
                    Deed::Reap(h) => reaps.push((me, pids[*h])),
                }
            }
        }
        for (by, h) in reaps {
            w.reap(by, h)?;
        }
    }
    for p in w.0.values() {
        if p.subreaper != (p.ppid == 0) {
            return Err("a subreaper is left".into());
        }
    }
    // who lives enters its own
    for t in tasks.iter().filter(|t| t.objects.is_some()) {
        let own = w.0.get_mut(&t.pid).ok_or("not born")?;
        if !s.users_within(t.users, own.users) {
            return Err(format!("{} cannot enter its user namespace", t.pid));
        }
        own.users = t.users;
    }
    // zombies end last
    let dead: Vec<u32> = tasks
        .iter()
        .filter(|t| t.objects.is_none())
        .map(|t| t.pid)
        .collect();
    for d in dead {
        w.exit(d)?;
    }
    w.tree(tasks[0].pid).ok_or("hangs on tasks outside".into())
}

fn same(tasks: &[Kin]) {
    let f = plan(tasks).unwrap_or_else(|e| panic!("{e}\n{tasks:#?}"));
    let got = play(tasks, &f, &[], &Spaces::default())
        .unwrap_or_else(|e| panic!("{e}\n{tasks:?}\n{f:#?}"));
    let by = |v: &[Kin]| {
        v.iter()
            .map(|k| (k.pid, k.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let (mut a, b) = (by(tasks), by(&got));
    for (p, k) in &mut a {
        // what the root's parent is does not matter
        if *p == tasks[0].pid {
            k.ppid = 1;
        }
    }
    assert_eq!(a, b, "{f:#?}");
}

fn kin(pid: u32, ppid: u32, sid: u32, pgid: u32) -> Kin {
    Kin {
        pid,
        ppid,
        sid,
        pgid,
        exit_signal: CHLD,
        objects: Some([pid; 4]),
        space: 0,
        users: None,
    }
}

/// [`super::plan`] of a tree in one pid namespace.
fn plan(tasks: &[Kin]) -> Result<Family> {
    super::plan(tasks, &Spaces::default())
}

#[test]
fn leaders_that_are_gone() {
    // a group, and a session with two groups
    same(&[kin(10, 1, 10, 10), kin(12, 10, 10, 11)]);
    same(&[
        kin(10, 1, 10, 10),
        kin(21, 10, 20, 20),
        kin(22, 10, 20, 22),
        kin(23, 22, 20, 24),
    ]);
}

#[test]
fn born_before_setsid() {
    same(&[kin(10, 1, 10, 10), kin(11, 10, 11, 11), kin(12, 11, 10, 10)]);
    // through two leaders
    same(&[
        kin(10, 1, 10, 10),
        kin(11, 10, 11, 11),
        kin(12, 11, 12, 12),
        kin(13, 12, 10, 10),
    ]);
    // of a session from outside
    same(&[
        kin(10, 1, OUT, OUT),
        kin(11, 10, 11, 11),
        kin(12, 11, OUT, OUT),
    ]);
}

#[test]
fn adopted_out_of_a_session() {
    // 13 was a grandchild of 11
    same(&[kin(10, 1, 10, 10), kin(11, 10, 11, 11), kin(13, 10, 11, 11)]);
    // 14 was below 12, whose session is two levels below the subreaper
    same(&[
        kin(10, 1, 10, 10),
        kin(11, 10, 11, 11),
        kin(12, 11, 12, 12),
        kin(14, 10, 12, 12),
    ]);
}

#[test]
fn who_left_its_own_group() {
    same(&[
        kin(10, 1, 10, 10),
        kin(11, 10, 10, 10),
        kin(12, 11, 10, 11),
        kin(13, 10, 10, 13),
        kin(14, 13, 10, 11),
    ]);
    // two changed places
    same(&[kin(10, 1, 10, 10), kin(11, 10, 10, 12), kin(12, 10, 10, 11)]);
}

#[test]
fn shared_objects_choose_the_creator() {
    // 12 shares memory with 11, with which it has the parent in common
    let mut t = [kin(10, 1, 10, 10), kin(11, 10, 10, 10), kin(12, 10, 10, 10)];
    t[2].objects = Some([11, 12, 12, 12]);
    let f = plan(&t).unwrap();
    let born = |n: Node| {
        f.births.iter().flatten().find_map(|(by, deeds)| {
            deeds.iter().find_map(|d| match d {
                Deed::Birth { child, share, .. } if *child == n => Some((*by, *share)),
                _ => None,
            })
        })
    };
    assert_eq!(born(2), Some((1, [true, false, false, false])));
    same(&t);
}

#[test]
fn two_hundred_children_take_one_tape() {
    let mut t = vec![kin(10, 1, 10, 10)];
    t.extend((0..200).map(|i| kin(100 + i, 10, 10, 10)));
    let f = plan(&t).unwrap();
    assert_eq!((f.births.len(), f.rest.len()), (1, 0), "{f:?}");
    assert_eq!(f.helpers, []);
}

#[test]
fn what_cannot_be() {
    let e = plan(&[kin(10, 1, 10, 10), kin(12, 11, 10, 10)]).unwrap_err();
    assert_eq!(e.code, "E5040");
    let e = plan(&[kin(10, 1, 10, 10), kin(12, 10, 10, 12), kin(13, 10, 13, 12)]).unwrap_err();
    assert_eq!(e.code, "E5040");
    // two branches, a session in both, and nobody who could have brought it there
    let e = plan(&[
        kin(10, 1, 10, 10),
        kin(11, 10, 10, 10),
        kin(12, 10, 10, 10),
        kin(21, 11, 20, 20),
        kin(22, 12, 20, 20),
    ])
    .unwrap_err();
    assert_eq!(e.code, "E5040");
}

/// One step of a random life.
#[derive(Debug, Clone)]
enum Op {
    Fork(usize),
    Sibling(usize),
    Setsid(usize),
    Setpgid(usize, usize),
    Exit(usize),
    Reap(usize),
    Subreaper(usize, bool),
    Found(usize),
    /// CLONE_NEWUSER, unshared or at the birth of the first of a pid namespace.
    Users(usize),
    FoundInside(usize),
    BearIn(usize, usize),
}

/// `nested`: with pid namespaces.
fn op(nested: bool) -> impl Strategy<Value = Op> {
    let n = 0..64usize;
    let rare = u32::from(nested);
    prop_oneof![
        8 => n.clone().prop_map(Op::Fork),
        1 => n.clone().prop_map(Op::Sibling),
        3 => n.clone().prop_map(Op::Setsid),
        4 => (n.clone(), n.clone()).prop_map(|(a, b)| Op::Setpgid(a, b)),
        4 => n.clone().prop_map(Op::Exit),
        4 => n.clone().prop_map(Op::Reap),
        1 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Op::Subreaper(a, b)),
        2 * rare => (n.clone(), 0..4u8).prop_map(|(a, how)| match how {
            0 => Op::Users(a),
            1 => Op::FoundInside(a),
            _ => Op::Found(a),
        }),
        rare => (n.clone(), n).prop_map(|(a, b)| Op::BearIn(a, b)),
    ]
}

/// A tree that such a life led to; refusals of the kernel are part of life.
fn lived(ops: &[Op], root_leads: bool) -> Option<(Vec<Kin>, World)> {
    let mut w = World::new();
    let mut next = 10;
    w.born(1, next, false, CHLD).expect("root");
    let root = next;
    if root_leads {
        w.setsid(root).expect("root leads");
    }
    w.0.get_mut(&root).expect("root").subreaper = true;
    for o in ops {
        let alive: Vec<u32> =
            w.0.iter()
                .filter(|(p, t)| **p != 1 && !t.dead)
                .map(|(p, _)| *p)
                .collect();
        let at = |n: &usize| alive[n % alive.len()];
        match o {
            Op::Fork(n) => {
                next += 1;
                w.born(at(n), next, false, CHLD).expect("fork");
            }
            Op::Sibling(n) if at(n) != root => {
                next += 1;
                w.born(at(n), next, true, 0).expect("clone");
            }
            Op::Setsid(n) => drop(w.setsid(at(n))),
            Op::Setpgid(n, m) => {
                let to = if m % 2 == 0 { at(n) } else { w.0[&at(m)].pgid };
                drop(w.setpgid(at(n), to));
            }
            Op::Found(n) => {
                next += 1;
                drop(w.found(at(n), next, false, CHLD));
            }
            Op::Users(n) => w.users(at(n)),
            Op::FoundInside(n) => {
                next += 1;
                let by = at(n);
                let before = w.0[&by].users;
                w.users(by);
                drop(w.found(by, next, false, CHLD));
                w.0.get_mut(&by).expect("caller").users = before;
            }
            Op::BearIn(n, m) => drop(w.bear_in(at(n), at(m))),
            // the first of a pid namespace takes all others with it
            Op::Exit(n) if w.1.iter().any(|s| s.1 == at(n)) => {}
            Op::Exit(n) if at(n) != root => w.exit(at(n)).expect("exit"),
            Op::Reap(n) => {
                let dead: Vec<u32> =
                    w.0.iter()
                        .filter(|(_, t)| t.dead)
                        .map(|(p, _)| *p)
                        .collect();
                if let Some(d) = dead.get(n % dead.len().max(1)) {
                    let by = w.0[d].ppid;
                    w.reap(by, *d).expect("reap");
                }
            }
            Op::Subreaper(n, on) if at(n) != root => {
                w.0.get_mut(&at(n)).expect("task").subreaper = *on
            }
            Op::Sibling(_) | Op::Exit(_) | Op::Subreaper(..) => {}
        }
    }
    w.tree(root).map(|t| (t, w))
}

/// Plans and plays a tree, and compares. False: there is no plan.
fn told_again(tasks: &[Kin], spaces: &Spaces, late: usize) -> Result<bool, String> {
    let f = match super::plan(tasks, spaces) {
        Ok(f) => f,
        Err(e) if spaces.are_one() => return Err(e.to_string()),
        Err(_) => return Ok(false),
    };
    // whoever may be late is, one wave behind its parent
    let mut waves = vec![0; tasks.len()];
    for (i, t) in tasks.iter().enumerate().skip(1) {
        let p = tasks.iter().position(|p| p.pid == t.ppid).expect("parent");
        waves[i] = if f.plain[i] {
            waves[p] + (late + i) % 2
        } else {
            0
        };
    }
    let got = play(tasks, &f, &waves, spaces).map_err(|e| format!("{e}\n{f:#?}"))?;
    // namespaces have other numbers: who is where the same first task is
    let first = |v: &[Kin], k: &Kin| v.iter().filter(|o| o.space == k.space).map(|o| o.pid).min();
    let key = |v: &[Kin]| {
        let users = |k: &Kin| k.users.filter(|_| k.objects.is_some());
        let of = |k: &Kin| {
            let rest = (k.exit_signal, first(v, k), users(k));
            (k.pid, (k.ppid, k.sid, k.pgid, rest))
        };
        v.iter().map(of).collect::<BTreeMap<_, _>>()
    };
    match key(&got) == key(tasks) {
        true => Ok(true),
        false => Err(format!("{got:#?}\n{f:#?}")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_life_can_be_told_again(ops in prop::collection::vec(op(false), 0..60), leads: bool) {
        let Some((tasks, _)) = lived(&ops, leads) else { return Ok(()) };
        let told = told_again(&tasks, &Spaces::default(), ops.len());
        prop_assert_eq!(told, Ok(true));
    }
    #[test]
    fn a_plan_with_pid_namespaces_makes_the_same_tree(ops in prop::collection::vec(op(true), 0..60), leads: bool) {
        let Some((tasks, world)) = lived(&ops, leads) else { return Ok(()) };
        let spaces = spaces(&world, &tasks).map_err(|e| TestCaseError::fail(format!("{e} {tasks:?}")))?;
        let told = told_again(&tasks, &spaces, ops.len());
        prop_assert!(told.is_ok(), "{}\n{tasks:#?}", told.unwrap_err());
    }
}

#[test]
fn sandboxes() {
    let run = |helpers: usize, f: &dyn Fn(&mut World)| {
        let mut w = World::new();
        w.born(1, 10, false, CHLD).unwrap();
        w.setsid(10).unwrap();
        w.0.get_mut(&10).unwrap().subreaper = true;
        f(&mut w);
        let tree = w.tree(10).unwrap();
        let spaces = spaces(&w, &tree).unwrap();
        assert_eq!(told_again(&tree, &spaces, 0), Ok(true));
        let plan = super::plan(&tree, &spaces).unwrap();
        assert_eq!(plan.helpers.len(), helpers, "{plan:#?}");
        let guests = plan.guests_of.iter().flatten().count();
        assert_eq!(guests > 0, helpers > 0, "{plan:#?}");
    };
    // unshare -Ur
    run(0, &|w| {
        w.born(10, 11, false, CHLD).unwrap();
        w.users(11);
        w.born(11, 12, false, CHLD).unwrap();
    });
    // unshare -Urpf, with a shell there
    run(1, &|w| {
        w.born(10, 11, false, CHLD).unwrap();
        w.users(11);
        w.found(11, 12, false, CHLD).unwrap();
        w.born(12, 13, false, CHLD).unwrap();
        w.setsid(13).unwrap();
        w.born(13, 14, false, CHLD).unwrap();
        w.setpgid(14, 14).unwrap();
    });
    // made together, by a leader of a session; one more inside of its user namespace, and one in a further one
    run(2, &|w| {
        w.users(10);
        w.found(10, 11, false, CHLD).unwrap();
        w.0.get_mut(&10).unwrap().users = None;
        w.found(11, 12, false, CHLD).unwrap();
        w.users(11);
        w.found(11, 13, false, CHLD).unwrap();
        w.setsid(13).unwrap();
    });
}

#[test]
fn jobs_whose_group_is_hidden() {
    // a shell, a job of two of which one bears in a new pid namespace, where nobody sees the group
    let run = |f: &dyn Fn(&mut World)| {
        let mut w = World::new();
        w.born(1, 10, false, CHLD).unwrap();
        w.setsid(10).unwrap();
        w.0.get_mut(&10).unwrap().subreaper = true;
        f(&mut w);
        let tree = w.tree(10).unwrap();
        let spaces = spaces(&w, &tree).unwrap();
        assert_eq!(told_again(&tree, &spaces, 0), Ok(true));
    };
    run(&|w| {
        w.born(10, 11, false, CHLD).unwrap();
        w.setpgid(11, 11).unwrap();
        w.born(10, 12, false, CHLD).unwrap();
        w.setpgid(12, 11).unwrap();
        w.found(12, 13, false, CHLD).unwrap();
        w.born(13, 14, false, CHLD).unwrap();
        w.setpgid(14, 14).unwrap();
    });
    // the leader is gone
    run(&|w| {
        w.born(10, 11, false, CHLD).unwrap();
        w.setpgid(11, 11).unwrap();
        w.born(10, 12, false, CHLD).unwrap();
        w.setpgid(12, 11).unwrap();
        w.found(12, 13, false, CHLD).unwrap();
        w.exit(11).unwrap();
        w.reap(10, 11).unwrap();
    });
    // injected from above, and one more namespace below
    run(&|w| {
        w.found(10, 11, false, CHLD).unwrap();
        w.setsid(11).unwrap();
        w.born(11, 12, false, CHLD).unwrap();
        w.found(11, 13, false, CHLD).unwrap();
        w.born(10, 14, false, CHLD).unwrap();
        w.bear_in(14, 13).unwrap();
        w.born(14, 15, false, CHLD).unwrap();
    });
}
