//! Tasks enter user namespaces below the tree's, and bear their threads there: see [`super::super::users`].
use super::super::family::{Deed, Node};
use super::super::plan::thread_birth_inside;
use super::super::users::entering;
use super::{Performance, Phase, handle_name, inner, memory};
use crate::error::{Blame, Error, Result};
use crate::restore::spaces::{Name, Space};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_kernel::ids::{HostPid, RemoteFd};
use stasis_kernel::inner::{Way, start};
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::{ProcDir, Status};
use stasis_kernel::users;
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

/// The name of the file that tells a pid namespace which number comes next: above those of handles.
pub(in crate::restore) const LAST_NUMBER: FdRef = FdRef(0x6800_0000);

/// How often a thread is born anew, because somebody else in the pid namespace was quicker.
const TRIES: usize = 200;

/// How often it is tried again while a number is not free yet that was given up; each takes a tenth of a second.
const WAITS: usize = 30;

impl Performance<'_> {
    /// Makes the user namespaces below the tree's. `task` is in that.
    pub(super) fn user_namespaces(&mut self, task: HostPid) -> Result<()> {
        let below = &self.plan.grounds.users;
        for u in below.all() {
            let way = self.way_to_users(task, u.above)?;
            let above = u.above.and_then(|id| below.maps(id));
            let made = users::make(&way, &u.maps.users(u.maker, above)).map_err(|e| {
                Error::new("E6463", Blame::Host, "cannot make a user namespace of the tree")
                    .why(e)
                    .advice("users and groups outside must be the restorer's own: restore as root, or as who dumped; user.max_user_namespaces (sysctl) may be too low")
            })?;
            self.host.insert(handle_name(Ns::User, u.id), made);
        }
        if self.anybody_counts() {
            let last = users::last_number().map_err(|e| {
                Error::new("E6465", Blame::Host, "cannot say which number a process or thread has next")
                    .why(e)
                    .advice("threads and pid namespaces inside of user namespaces of the tree need ns_last_pid: restore where /proc/sys is mounted writable")
            })?;
            self.host.insert(LAST_NUMBER, last.into());
        }
        Ok(())
    }
    /// Is anybody born by somebody who may not choose all numbers? Those come by `ns_last_pid`: see [`Self::bear`].
    fn anybody_counts(&self) -> bool {
        let plan = self.plan;
        let threads = |i: &usize| self.images.tasks[*i].threads.len() > 1;
        let live = |i: &usize| plan.tasks[*i].end.is_none() && plan.is_inside(*i);
        let mut deeds = plan.family.births.iter().flatten().flat_map(|t| &t.1);
        (0..plan.tasks.len()).filter(live).any(|i| threads(&i))
            || deeds.any(|d| matches!(d, Deed::Birth { .. }) && plan.is_alone(d))
    }
    /// The way into one of them, or into the tree's.
    pub(super) fn way_to_users(&self, task: HostPid, id: Option<u32>) -> Result<Way<'static>> {
        let which: &[Ns] = match self.plan.grounds.has(Ns::User) {
            true => &[Ns::User],
            false => &[],
        };
        let join = id.map(|id| (Ns::User, id)).into_iter().collect();
        Ok(Way {
            join: self.handles(join)?,
            ..Way::to(task, which)
        })
    }
    /// Namespaces of a home that belong to one of them: made by a process in there.
    pub(super) fn belongings(&mut self, home: usize, root: HostPid) -> Result<()> {
        let g = &self.plan.grounds;
        for (owner, sorts) in g.of_others(home) {
            let ids = &g.homes.all[home].ids;
            let way = Way {
                make: &sorts,
                clocks: self.nested_clocks(home, &sorts)?,
                ..self.way_to_users(root, Some(owner))?
            };
            let stay = |channel| {
                let _ = nix::unistd::read(&channel, &mut [0; 1]);
                0
            };
            let maker = start(&way, stay)?;
            for ns in &sorts {
                let handle = ns.of(HostPid(maker.worker))?;
                self.host.insert(handle_name(*ns, ids[ns]), handle);
            }
        }
        Ok(())
    }
    /// Each task that is in one of them enters it, when all that needs the rights of the tree's is done, and bears its threads.
    pub(super) fn enter_users(&mut self) -> Result<()> {
        let (plan, images) = (self.plan, self.images);
        let live = |i: &usize| plan.tasks[*i].end.is_none() && plan.is_inside(*i);
        let inside: Vec<usize> = (0..plan.tasks.len()).filter(live).collect();
        if inside.is_empty() {
            return Ok(());
        }
        let before = inside.iter().map(|i| {
            let t = &plan.tasks[*i];
            let late = t.memory.iter().flat_map(|m| &m.late);
            Ok(vec![(
                t.slot,
                t.placed.iter().chain(late).cloned().collect(),
            )])
        });
        self.play_in_parts(before, Phase::Habits)?;
        let mut tapes = BTreeMap::new();
        let mut going = Vec::new();
        for i in &inside {
            let of = &images.tasks[*i];
            let own = plan.grounds.users.of_task(of.entry.pid);
            let (born, rows) = self.becoming(*i, *i)?;
            let dumpable = of.mm.as_ref().and_then(|m| m.dumpable) != Some(2);
            if born == own {
                tapes.insert(*i, rows);
                continue;
            }
            let mut tape = memory::receive(plan.service_fd, 1);
            tape.extend(entering(rows, self.free_number(*i), dumpable));
            tapes.insert(*i, tape);
            going.push(*i);
        }
        let there = tapes.iter().filter(|t| !going.contains(t.0));
        let there = there.map(|(i, rows)| Ok(vec![(plan.tasks[*i].slot, rows.clone())]));
        self.play_in_parts(there, Phase::Privileges)?;
        self.deliver(&going, Phase::Privileges, |_, i| {
            let id = plan.grounds.users.of_task(plan.tasks[i].pid);
            let handle = id.map(|id| handle_name(Ns::User, id));
            let rows = tapes.get(&i).cloned().unwrap_or_default();
            (
                vec![handle.into_iter().collect()],
                Box::new(rows.into_iter()),
            )
        })?;
        for i in inside {
            for k in 1..images.tasks[i].threads.len() {
                self.bear_thread(i, k)?;
            }
        }
        Ok(())
    }
    /// Rows by which a task or helper becomes who a task of the image is, and the user namespace it was born in.
    fn becoming(&self, who: Node, like: Node) -> Result<(Option<u32>, Vec<Call>)> {
        let plan = self.plan;
        let born = plan.family.inside.get(who).copied().flatten();
        let host = plan.family.guests_of.get(who).copied().flatten();
        let creds = self.creds(like)?;
        let was = host.map(|h| self.creds(h)).transpose()?;
        let was = born.zip(was.as_ref());
        let users = &plan.grounds.users;
        let rows = users.becoming(&creds, was, plan.sets_groups())?;
        Ok((born, rows))
    }
    /// Credentials of a task.
    fn creds(&self, i: usize) -> Result<pb::CredsEntry> {
        let of = &self.images.tasks[i];
        let core = of.threads.first().map(|th| th.core(self.dir)).transpose()?;
        let creds = core.and_then(|c| c.thread_core.as_ref()?.creds.clone());
        creds.ok_or_else(|| {
            Error::new("E5001", Blame::Image, format!("task {}", of.entry.pid))
                .why("it is in a user namespace, and has no credentials")
                .advice("the image is damaged or was made by something else: dump again")
        })
    }
    /// Plays deeds of a stage for which the engine has something to do, and others between them.
    pub(super) fn alone(&mut self, by: Node, deeds: &[Deed]) -> Result<()> {
        let plan = self.plan;
        let alone = |d: &Deed| plan.is_alone(d);
        for part in deeds.chunk_by(|a, b| !alone(a) && !alone(b)) {
            let rows = plan.deeds(by, part, &self.numbers);
            match part {
                [Deed::Enter(first)] => self.enter(by, *first)?,
                [
                    Deed::Birth {
                        child,
                        parent,
                        chosen,
                        ..
                    },
                ] if alone(&part[0]) => {
                    let name = self.numbers[*child].clone();
                    let seen = plan.spaces.seen(self.numbers[by].space, &name);
                    let (from, to) = (plan.slot_of(by), plan.slot_of(*child));
                    let birth = Inside {
                        name,
                        seen,
                        bearer: self.numbers[by].key(),
                        from,
                        to,
                        chosen: *chosen,
                    };
                    self.bear(&birth, &rows, Some(*parent))?;
                }
                _ => self
                    .play(&[(plan.slot_of(by), &rows)], Phase::Birth)
                    .map_err(super::taken)
                    .map(drop)?,
            }
        }
        Ok(())
    }
    /// A helper goes where the first process of a pid namespace is born: into its namespaces, as who it is, and into the user
    /// namespace that the pid namespace belongs to.
    fn enter(&mut self, by: Node, first: Node) -> Result<()> {
        let plan = self.plan;
        let slot = plan.slot_of(by);
        let helper = self.pids.known(self.numbers[by].key())?;
        let owner = plan.spaces.owner(self.numbers[first].space);
        let owner = owner.ok_or_else(|| Error::bug("a helper enters the tree's user namespace"))?;
        let homes = &plan.grounds.homes;
        let host = plan.family.guests_of.get(by).copied().flatten();
        let from = host.map_or(0, |h| homes.of_task(plan.tasks[h].pid));
        let way = homes.way(from, homes.of_task(plan.tasks[first].pid));
        let (_, becoming) = self.becoming(by, first)?;
        self.play(&[(slot, &self.pair())], Phase::Birth)?;
        let pidfd = fds::pidfd_open(helper, 0)?;
        let channel = fds::pidfd_getfd(pidfd.as_fd(), RemoteFd(1))?;
        let mut handles = self.handles(way.clone())?;
        handles.extend(self.handles(vec![(Ns::User, owner)])?);
        let sent: Vec<_> = handles.iter().map(|h| h.1.as_fd()).collect();
        fds::send_fds(channel.as_fd(), &[0], &sent)?;
        let mut rows = vec![Call::new(libc::SYS_close, vec![Arg::Int(1)])];
        rows.extend(memory::receive(plan.service_fd, handles.len()));
        for (n, (ns, _)) in (0..).zip(&way) {
            rows.push(super::grounds::entering(Arg::Int(n), *ns));
            rows.push(Call::new(libc::SYS_close, vec![Arg::Int(n)]));
        }
        rows.extend(entering(becoming, way.len() as u64, true));
        self.play(&[(slot, &rows)], Phase::Birth).map(drop)
    }
    /// The lowest number that a task's descriptors leave free.
    fn free_number(&self, i: usize) -> u64 {
        let table = self.table_of(self.images.tasks[i].ids.files_id);
        let mut held: BTreeSet<i32> = table.into_iter().collect();
        held.insert(self.plan.service_fd);
        (0..).find(|n| !held.contains(n)).unwrap_or(0) as u64
    }
    /// Bears a thread of a task that may not choose all its numbers.
    fn bear_thread(&mut self, i: usize, k: usize) -> Result<()> {
        let plan = self.plan;
        let task = &plan.tasks[i];
        let name = plan.spaces.name(self.images.tasks[i].threads[k].tid);
        let chosen = plan
            .spaces
            .chosen(name.space, plan.grounds.users.of_task(task.pid));
        let (from, to) = (task.slot, task.slot + k);
        let row = thread_birth_inside(&name.numbers[name.numbers.len() - chosen..], to);
        let birth = Inside {
            seen: name.own(),
            bearer: task.pid,
            name,
            from,
            to,
            chosen,
        };
        self.bear(&birth, &[row], None)
    }
    /// Bears a task or thread by somebody who may not choose all its numbers. `parent`: of a task.
    fn bear(&mut self, b: &Inside, row: &[Call], parent: Option<Node>) -> Result<()> {
        let tells = [Call::new(libc::SYS_gettid, vec![])];
        let mut waits = 0;
        for _ in 0..TRIES {
            self.aim(&b.name, b.chosen)?;
            let played = self.play(&[(b.to, &tells[..]), (b.from, row)], Phase::Birth);
            let played = match played {
                // KERNEL(>=6.16): the number of a thread is free a moment after nobody sees it (kernel/exit.c, release_task())
                Err(e) if waits > 0 && e.why.contains("EEXIST") => {
                    waits -= 1;
                    continue;
                }
                played => played?,
            };
            let told: Vec<u64> = played.iter().map(|p| p.rets[0]).collect();
            if told == [b.name.own(), b.seen].map(u64::from) && self.has_outermost(&b.name) {
                return Ok(());
            }
            if self.pids.are_foreign() {
                break;
            }
            let exit = [Call::new(libc::SYS_exit, vec![Arg::Int(0)]).any()];
            let slot = b.to;
            let by = parent.map_or(b.bearer, |p| self.numbers[p].key());
            let by = ProcDir::open(self.pids.known(by)?)?;
            let threads = by.tasks()?.len();
            let ended = |c: &HostPid| {
                let stat = ProcDir::open(*c).ok().and_then(|p| p.stat().ok());
                stat.is_some_and(|s| s.state.is_exited())
            };
            // nobody else ends meanwhile: zombies are still to come
            let mut gone = |_| match parent {
                Some(_) => by.children().is_ok_and(|all| all.iter().any(ended)),
                None => by.tasks().is_ok_and(|t| t.len() < threads),
            };
            self.reel
                .play_last(&[(slot, &exit)], &mut gone)
                .map_err(|e| super::played(&e, &self.owner(slot)).at(Phase::Birth))?;
            waits = WAITS;
            std::thread::sleep(std::time::Duration::from_millis(1));
            if let Some(p) = parent {
                let rows = reaping();
                self.play(&[(self.plan.slot_of(p), &rows)], Phase::Birth)?;
            }
        }
        let what = format!("process or thread {}", b.name.key());
        Err(Error::new("E6101", Blame::Host, what)
            .why("another one has its number, or took it each time before it was born")
            .advice("restore in a pid namespace of its own, or end the other one"))
    }
    /// Is the number the right one that a newborn has where the tree begins? A pid namespace of the tree's own has nobody else in it who
    /// could have been born instead.
    fn has_outermost(&self, name: &Name) -> bool {
        let status = || {
            ProcDir::open(HostPid(name.key() as i32))
                .ok()?
                .status()
                .ok()
        };
        let numbers = |st: Status| {
            st.ns_pid
                .iter()
                .map(|n| *n as u32)
                .eq(name.numbers.iter().copied())
        };
        self.pids.are_foreign() || status().is_some_and(numbers)
    }
    /// The next process or thread to be born has these numbers.
    ///
    /// `chosen`: how many the birth chooses, from the innermost on.
    fn aim(&mut self, name: &Name, chosen: usize) -> Result<()> {
        let plan = self.plan;
        let mut space: Space = name.space;
        // the innermost first: who goes there takes numbers further out
        let levels = name.numbers.len();
        for (depth, number) in name.numbers.iter().enumerate().skip(1).rev() {
            if depth >= levels - chosen {
                space = plan.spaces.above(space);
                continue;
            }
            let first = plan.spaces.first_of(space).unwrap_or(0);
            let root = self.pids.known(plan.tasks[0].pid)?;
            let there = self.pids.known(first)?;
            let way = Way {
                join: vec![(Ns::Pid, Ns::Pid.of(there)?)],
                ..self.way_to_users(root, None)?
            };
            self.aim_from(&way, *number)?;
            space = plan.spaces.above(space);
        }
        let number = name.key();
        match self.workers.first_mut() {
            Some(Some(w)) if self.pids.are_foreign() => w
                .ask(inner::Task::Aim(number), &mut self.host, false)
                .map(drop),
            _ => aim(&self.host, number),
        }
    }
    /// The same of one number, by a process that goes this way.
    fn aim_from(&self, way: &Way<'_>, number: u32) -> Result<()> {
        let host = &self.host;
        let mut there = start(way, |channel| {
            let done = aim(host, number).is_ok();
            i32::from(nix::unistd::write(&channel, &[u8::from(done)]).is_err())
        })?;
        let mut done = [0; 1];
        let told = nix::unistd::read(&there.channel, &mut done);
        there.end();
        match (told, done) {
            (Ok(1), [1]) => Ok(()),
            _ => Err(SysError::new("pwrite", nix::errno::Errno::EPERM, "ns_last_pid").into()),
        }
    }
}

/// A birth by somebody who may not choose all numbers.
struct Inside {
    /// Who is born.
    name: Name,
    /// Its number as who bears it is told.
    seen: u32,
    /// Who bears it.
    bearer: u32,
    /// Slots of who bears it, and its own.
    from: usize,
    to: usize,
    /// How many numbers are chosen, from the innermost on.
    chosen: usize,
}

/// Rows: waits for a child that ends, of whatever number.
fn reaping() -> Vec<Call> {
    let any = Arg::Int(u64::MAX);
    let wall = Arg::Named(libc::__WALL as u32 as u64, "__WALL".into());
    let wait = Call::new(libc::SYS_wait4, vec![any, Arg::Null, wall, Arg::Null]);
    vec![wait, super::super::plan::forget_child()]
}

/// The next process or thread of the caller's pid namespace has this number.
pub(in crate::restore) fn aim(host: &stasis_kernel::host::Host, number: u32) -> Result<()> {
    let file = host.fd(LAST_NUMBER);
    let file = file.ok_or_else(|| Error::bug("nobody has opened ns_last_pid"))?;
    Ok(users::aim(file.as_fd(), number)?)
}
