//! Tasks enter user namespaces below the tree's, and bear their threads there: see [`super::super::users`].
use super::super::plan::thread_birth_inside;
use super::super::users::entering;
use super::{Performance, Phase, handle_name, inner, memory};
use crate::error::{Blame, Error, Result};
use crate::restore::spaces::{Name, Space};
use stasis_kernel::call::{Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::ids::HostPid;
use stasis_kernel::inner::{Way, start};
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::ProcDir;
use stasis_kernel::users;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

/// The name of the file that tells a pid namespace which number comes next: above those of handles.
pub(in crate::restore) const LAST_NUMBER: FdRef = FdRef(0x6800_0000);

/// How often a thread is born anew, because somebody else in the pid namespace was quicker.
const TRIES: usize = 200;

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
        if !below.all().is_empty() {
            self.host.insert(LAST_NUMBER, users::last_number()?.into());
        }
        Ok(())
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
        let (plan, images, dir) = (self.plan, self.images, self.dir);
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
        let groups = plan.sets_groups();
        let mut tapes = BTreeMap::new();
        for i in &inside {
            let of = &images.tasks[*i];
            let core = of.threads[0].core(dir)?;
            let creds = core.thread_core.as_ref().and_then(|c| c.creds.as_ref());
            let creds = creds.ok_or_else(|| {
                Error::new("E5001", Blame::Image, format!("task {}", of.entry.pid))
                    .why("it is in a user namespace, and has no credentials")
                    .advice("the image is damaged or was made by something else: dump again")
            })?;
            let dumpable = of.mm.as_ref().and_then(|m| m.dumpable) != Some(2);
            let mut rows = memory::receive(plan.service_fd, 1);
            rows.extend(entering(creds, groups, self.free_number(*i), dumpable));
            tapes.insert(*i, rows);
        }
        self.deliver(&inside, Phase::Privileges, |_, i| {
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
                self.bear_inside(i, k)?;
            }
        }
        Ok(())
    }
    /// The lowest number that a task's descriptors leave free.
    fn free_number(&self, i: usize) -> u64 {
        let table = self.table_of(self.images.tasks[i].ids.files_id);
        let mut held: BTreeSet<i32> = table.into_iter().collect();
        held.insert(self.plan.service_fd);
        (0..).find(|n| !held.contains(n)).unwrap_or(0) as u64
    }
    /// Bears a thread of a task that may not choose its numbers.
    fn bear_inside(&mut self, i: usize, k: usize) -> Result<()> {
        let plan = self.plan;
        let (task, slot) = (&plan.tasks[i], plan.tasks[i].slot + k);
        let name = plan.spaces.name(self.images.tasks[i].threads[k].tid);
        let birth = [thread_birth_inside(slot)];
        let tells = [Call::new(libc::SYS_gettid, vec![])];
        for _ in 0..TRIES {
            self.aim(&name)?;
            let tapes = [(slot, &tells[..]), (task.slot, &birth[..])];
            let played = self.play(&tapes, Phase::Habits)?;
            let proc = ProcDir::open(self.pids.known(task.pid)?)?;
            // a pid namespace of the tree's own has nobody else in it who could be born
            let there =
                self.pids.are_foreign() || proc.task_status(HostPid(name.key() as i32)).is_ok();
            if there && played.first().map(|p| p.rets[0]) == Some(u64::from(name.own())) {
                return Ok(());
            }
            let others = proc.tasks()?.len() - 1;
            let exit = [Call::new(libc::SYS_exit, vec![stasis_kernel::call::Arg::Int(0)]).any()];
            let mut gone = |_| proc.tasks().is_ok_and(|t| t.len() == others);
            self.reel
                .play_last(&[(slot, &exit)], &mut gone)
                .map_err(|e| super::played(&e, &self.owner(slot)).at(Phase::Habits))?;
        }
        let what = format!("thread {} of task {}", name.key(), task.pid);
        Err(Error::new("E6101", Blame::Host, what)
            .why(
                "another process or thread has its number, or took it each time before it was born",
            )
            .advice("restore in a pid namespace of its own, or end the other one"))
    }
    /// The next process or thread to be born has these numbers.
    fn aim(&mut self, name: &Name) -> Result<()> {
        let plan = self.plan;
        let mut space: Space = name.space;
        // the innermost first: who goes there takes numbers further out
        for number in name.numbers.iter().skip(1).rev() {
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

/// The next process or thread of the caller's pid namespace has this number.
pub(in crate::restore) fn aim(host: &stasis_kernel::host::Host, number: u32) -> Result<()> {
    let file = host.fd(LAST_NUMBER);
    let file = file.ok_or_else(|| Error::bug("nobody has opened ns_last_pid"))?;
    Ok(users::aim(file.as_fd(), number)?)
}
