//! From images to a plan: pure code. Everything a restore will do is written down before anything is done.
//!
//! Long because it is the whole of a plan that is not a kind's: one function per phase, in order.
use super::family::{self, Deed, Family, Kin, Node};
use super::grounds::Grounds;
use super::habits::{self, Habits};
use super::homes::{Homes, network_of};
use super::images::{Images, TASK_SIZE, TaskImages, id_of};
use super::privileges::{self, Privileges};
use super::spaces::{Children, Name, Spaces};
use super::{memory, undo};
use crate::error::{Blame, Error, Result};
use crate::kinds::{self, HostAct, PlanCx, Stage, TaskStage};
use crate::namespaces::ipc;
use crate::options::Options;
use crate::phase::Phase;
use stasis_kernel::call::{Arg, Call, FdRef, Part};
use stasis_kernel::ns::Ns;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Room for the reel in every address space. Sparse: only what is touched costs memory.
pub const REEL_ROOM: u64 = 1 << 30;
/// Distance from the start of the hole to the reel: the stub's page and the parked vDSO lie there.
pub const REEL_OFFSET: u64 = 16 << 20;

/// A task's whole restore.
pub struct TaskPlan {
    /// Its pid as it sees itself.
    pub pid: u32,
    /// When it is born: wave 0 from the empty stub, the next when the memory of the waves before is in place.
    pub wave: usize,
    /// Its slot in the reel.
    pub slot: usize,
    /// For a zombie: the rows that end it.
    pub end: Option<Vec<Call>>,
    /// Its address space; `None` if it shares one.
    pub memory: Option<memory::Plan>,
    /// Its descriptor table: file, slot, close-on-exec; `None` if it shares one.
    pub table: Option<Vec<(FdRef, i32, bool)>>,
    /// Rows when its descriptors are in place.
    pub placed: Vec<Call>,
    /// Whether no earlier task shares its signal actions.
    own_hands: bool,
    /// Rows of the leader when all have their habits.
    pub arm: Vec<Call>,
    /// The signal of its group stop.
    pub stopped_by: Option<i32>,
}

/// A whole restore.
pub struct Plan {
    /// What the engine does, by stage.
    pub host: Vec<HostAct>,
    /// Tasks, parents before children.
    pub tasks: Vec<TaskPlan>,
    /// The row of the first stub that bears the root.
    pub birth: Call,
    /// Births, sessions, groups.
    pub family: Family,
    /// Pid namespaces, and the numbers of tasks in them.
    pub spaces: Spaces,
    /// Namespaces made and joined.
    pub grounds: Grounds,
    /// How the tree's mount namespace is built, if it has one of its own.
    pub mounts: Option<std::rc::Rc<stasis_mounts::Plan>>,
    /// What the clocks of the tree's time namespace go on from, if it has one of its own.
    pub clocks: Option<pb::TimensEntry>,
    /// The same of time namespaces that only tasks below the root have, by their ids.
    pub nested_clocks: BTreeMap<u32, pb::TimensEntry>,
    /// Control groups.
    pub cgroups: stasis_cgroups::Plan,
    /// Working and root directories.
    pub directories: Vec<FdRef>,
    /// Descriptors of the engine's that stand for files: their names, and their numbers.
    pub given: Vec<(FdRef, std::os::fd::RawFd)>,
    /// Masters of terminals for the runtime.
    pub orphans: Vec<FdRef>,
    /// Slots of the family's helpers.
    pub helper_slots: Vec<usize>,
    /// Start of the hole in which the reel goes.
    pub hole: u64,
    /// Lowest descriptor number no task uses: the engine's socket.
    pub service_fd: i32,
    /// Slots of the reel.
    pub slots: usize,
    /// What will not come back as it was.
    pub warnings: Vec<String>,
    /// What privileges depend on.
    around: privileges::Around,
    /// The kernel takes the numbers of timers.
    timers_by_id: bool,
}

/// Root and working directories of all tasks.
fn directories(images: &Images) -> Result<Vec<FdRef>> {
    let alive = images.tasks.iter().filter(|t| !t.is_zombie());
    let ids = alive.flat_map(|t| [t.fs.root_id, t.fs.cwd_id]);
    ids.map(|id| match images.files.contains_key(&id) {
        true => Ok(FdRef(id)),
        false => Err(kinds::regular::no_entry(id)),
    })
    .collect()
}

/// Makes the plan.
pub fn make(o: &Options, dir: &ImageDir, images: &Images) -> Result<Plan> {
    let holders = holders(images);
    let mut cx = PlanCx::new(o, dir, &images.files, &holders);
    let grounds = Grounds::plan(o, dir, images)?;
    cx.homes = grounds.homes.clone();
    cx.spaces = images.spaces.clone();
    let built = grounds.homes.built();
    if !built.is_empty() {
        let mounts = crate::namespaces::mnt::plan(o, dir, &built, grounds.makes(Ns::User))?;
        cx.warnings.extend(mounts.warnings.iter().cloned());
        let unknown = |p: &&stasis_mounts::Proc| images.spaces.first_of_id(p.pid_ns).is_none();
        if let Some(p) = mounts.procs.iter().find(unknown) {
            let what = format!("pid namespace {} of a proc file system", p.pid_ns);
            return Err(super::spaces::bad(what, "nobody of the tree is in it"));
        }
        cx.mounts = Some(mounts.into());
    }
    cx.later = super::later::find(images, &mut cx).map_err(|e| e.at(Phase::Plan))?;
    files(images, &mut cx)?;
    crate::namespaces::autofs::plan(&mut cx)?;
    kinds::locks::plan(&mut cx).map_err(|e| e.of("locks").at(Phase::Plan))?;
    cx.home = 0;
    let shared = memory::shared(images, &mut cx)?;
    let around = privileges::Around {
        groups: grounds.groups(dir)?,
        image: images.lsm,
        host: crate::lsm::of_host("/".as_ref()),
        over: o.namespaces.lsm_profile.clone(),
        users: images.users.clone(),
    };
    let segments = segments(images, &mut cx).map_err(|e| e.of("sysv").at(Phase::Plan))?;
    let own_vdso = super::vdso::own()?;
    let hole = hole(images)?;
    let used: std::collections::BTreeSet<i32> = images
        .tables
        .values()
        .flatten()
        .map(|f| f.fd as i32)
        .chain(cx.lent.iter().map(|l| l.1))
        .collect();
    let service_fd = service_fd(&used)?;
    let mut plan = Plan {
        host: Vec::new(),
        tasks: Vec::new(),
        // the first stub's sibling: a child of the engine
        birth: root_birth(images, 0),
        spaces: images.spaces.clone(),
        family: family(images, o)?,
        clocks: images.clocks,
        nested_clocks: nested_clocks(dir, &grounds)?,
        grounds,
        cgroups: crate::cgroups::plan(&o.cgroups, dir, images)?,
        mounts: cx.mounts.clone(),
        directories: directories(images)?,
        given: Vec::new(),
        orphans: Vec::new(),
        helper_slots: Vec::new(),
        hole,
        service_fd,
        slots: 1,
        warnings: Vec::new(),
        around,
        timers_by_id: stasis_kernel::limits::timer_ids(),
    };
    if plan.grounds.has(Ns::Pid) {
        let new = if plan.grounds.makes(Ns::Pid) {
            libc::CLONE_NEWPID
        } else {
            0
        };
        // the answer is the number by which the stub, and so the engine, knows the root
        plan.birth = root_birth(images, new);
        plan.birth.expect = stasis_kernel::call::Expect::Ok;
    }
    let mut tables = BTreeMap::new();
    let mut spaces = BTreeMap::new();
    let mut fs = BTreeMap::new();
    let mut hands = BTreeMap::new();
    for (i, t) in images.tasks.iter().enumerate() {
        let slot = plan.slots;
        plan.slots += t.threads.len().max(1);
        let mut p = TaskPlan {
            pid: t.entry.pid,
            wave: 0,
            slot,
            end: None,
            memory: None,
            table: None,
            placed: Vec::new(),
            own_hands: false,
            arm: Vec::new(),
            stopped_by: None,
        };
        if t.is_zombie() {
            p.end = Some(end(t));
            plan.tasks.push(p);
            continue;
        }
        let on = |e: Error| e.on(format!("task {}", t.entry.pid)).at(Phase::Plan);
        if let std::collections::btree_map::Entry::Vacant(v) = spaces.entry(t.ids.vm_id) {
            v.insert(i);
            cx.home = cx.homes.of_task(t.entry.pid);
            let segments = &segments[&cx.home];
            p.memory = Some(memory::plan(t, &mut cx, &shared, segments, &own_vdso).map_err(on)?);
        }
        if let std::collections::btree_map::Entry::Vacant(v) = tables.entry(t.ids.files_id) {
            v.insert(i);
            let slots = images.tables[&t.ids.files_id]
                .iter()
                .map(|f| (FdRef(f.id), f.fd as i32, f.flags & 1 != 0));
            let lent = cx
                .lent
                .iter()
                .filter(|l| l.0 == t.entry.pid)
                .map(|l| (l.2, l.1, false));
            let mut table: Vec<_> = slots.chain(lent).collect();
            table.sort_by_key(|s| s.1);
            if table.windows(2).any(|w| w[0].1 == w[1].1) {
                return Err(Error::new(
                    "E5004",
                    Blame::Image,
                    format!("fdinfo-{}.img", t.ids.files_id),
                )
                .why("two entries have the same slot")
                .advice("dump again"));
            }
            p.table = Some(table);
        }
        fs.entry(t.ids.fs_id).or_insert(i);
        p.own_hands = *hands.entry(t.ids.sighand_id).or_insert(i) == i;
        for (k, th) in t.threads.iter().enumerate() {
            // written down when they are played: here it is found out whether they can be
            let core = th.core(dir).map_err(on)?;
            plan.habits(&p, t, (k, &core)).map_err(on)?;
            plan.privileges(images, t, (k, &core)).map_err(on)?;
        }
        p.arm.extend(undone(t, dir, &plan.grounds).map_err(on)?);
        for (_, stage, call) in cx.task.iter().filter(|r| r.0 == t.entry.pid) {
            match stage {
                TaskStage::Placed => p.placed.push(call.clone()),
                TaskStage::Arm => p.arm.push(call.clone()),
            }
        }
        if t.tc.task_state == 3 {
            p.stopped_by = Some(t.tc.stop_signo.map_or(libc::SIGSTOP, |s| s as i32));
        }
        plan.tasks.push(p);
    }
    waves(
        images,
        &spaces,
        &plan.grounds.homes,
        &plan.family,
        &mut plan.tasks,
    )?;
    plan.helper_slots = (plan.slots..).take(plan.family.helpers.len()).collect();
    plan.slots += plan.family.helpers.len();
    plan.given = cx.given;
    plan.orphans = cx.orphans;
    plan.host = cx.host;
    plan.warnings = cx.warnings;
    Ok(plan)
}

/// A descriptor number no task uses, out of the way of files that arrive at the lowest numbers.
fn service_fd(used: &std::collections::BTreeSet<i32>) -> Result<i32> {
    let limit = stasis_kernel::limits::nofile().min(1 << 20) as i32;
    let highest = used.last().copied().unwrap_or(2);
    let free = if highest + 1 < limit {
        Some((highest + 1).max(64).min(limit - 1))
    } else {
        (0..limit).rev().find(|n| !used.contains(n))
    };
    free.filter(|n| *n as usize >= used.len() && highest < limit)
        .ok_or_else(|| {
            Error::new("E6107", Blame::Host, format!("descriptor {highest}"))
                .why(format!("the engine may open {limit} files"))
                .advice("raise the hard limit of open files (ulimit -Hn)")
        })
}

/// Rows by which the kernel remembers what SEM_UNDO would undo.
fn undone(t: &TaskImages, dir: &ImageDir, grounds: &Grounds) -> Result<Vec<Call>> {
    if t.tc.stasis.as_ref().is_none_or(|s| s.undo.is_empty()) {
        return Ok(Vec::new());
    }
    let fresh = id_of(&t.ids, Ns::Ipc).filter(|id| grounds.makes_id(Ns::Ipc, *id));
    let values = fresh.map(|id| ipc::semaphores(dir, id)).transpose()?;
    undo::plan(t, values.as_ref())
}

/// Heirs are born when their parents' memory is in place, and with them all that come after them. So are tasks that share their
/// directories in a mount namespace below the root's: who shares cannot enter one, so their parents are there before. `spaces`: the
/// first task with each address space.
///
/// # Errors
/// E5851: such tasks that cannot be born by one another.
fn waves(
    images: &Images,
    spaces: &BTreeMap<u32, usize>,
    homes: &Homes,
    family: &Family,
    tasks: &mut [TaskPlan],
) -> Result<()> {
    let index: BTreeMap<u32, usize> = tasks.iter().enumerate().map(|(i, t)| (t.pid, i)).collect();
    let mut folders = BTreeMap::from([(images.tasks[0].ids.fs_id, 0)]);
    for i in 1..tasks.len() {
        let t = &images.tasks[i];
        let p = index[&t.entry.ppid];
        let sharer = (!t.is_zombie()).then(|| *folders.entry(t.ids.fs_id).or_insert(i));
        let shares = sharer.is_some_and(|s| s != i) && homes.moves_mounts(t.entry.pid);
        let late = shares && family.plain[i] && images.tasks[p].ids.fs_id == t.ids.fs_id;
        if shares && !late {
            return Err(sharing(&images.tasks[sharer.unwrap_or(i)], t));
        }
        if !family.plain[i] {
            continue;
        }
        let Some(mut own) = tasks[i].memory.take() else {
            tasks[i].wave = tasks[p].wave + usize::from(late);
            continue;
        };
        let base = spaces[&images.tasks[p].ids.vm_id];
        if let Some(theirs) = &tasks[base].memory {
            let heir = own.is_heir_of(theirs);
            if heir || late || tasks[p].wave > 0 {
                own.inherit(base, theirs, heir);
                tasks[i].wave = tasks[p].wave.max(tasks[base].wave) + 1;
            }
        }
        tasks[i].memory = Some(own);
    }
    Ok(())
}

fn sharing(one: &TaskImages, other: &TaskImages) -> Error {
    Error::new(
        "E5851",
        Blame::Image,
        format!(
            "tasks {} and {} share their directories",
            one.entry.pid, other.entry.pid
        ),
    )
    .why("they are in another mount namespace than the root of the tree, which who shares cannot enter, and neither is the other's parent")
    .advice("let the second end before the dump, or dump the tree from the first process in that namespace")
}

/// Clocks of the time namespaces that workers make.
fn nested_clocks(dir: &ImageDir, grounds: &Grounds) -> Result<BTreeMap<u32, pb::TimensEntry>> {
    let mut all = BTreeMap::new();
    for h in grounds
        .homes
        .all
        .iter()
        .filter(|h| h.makes.contains(&Ns::Time))
    {
        let id = h.ids[&Ns::Time];
        let e = dir.read_one(&Kind::Timens.file_of(id))?;
        crate::clocks::check(&e)?;
        all.insert(id, e);
    }
    Ok(all)
}

/// Segments of System V shared memory, as the tasks of each home see them: their sizes by id.
fn segments(images: &Images, cx: &mut PlanCx) -> Result<BTreeMap<usize, BTreeMap<u64, u64>>> {
    let own = |id: Option<&u32>| {
        let root = images.own_namespaces.iter().find(|n| n.0 == Ns::Ipc);
        let nested = |id: &&u32| cx.homes.all[0].ids.get(&Ns::Ipc) != Some(*id);
        id.filter(nested).copied().or(root.map(|r| r.1))
    };
    let ids: Vec<Option<u32>> = cx
        .homes
        .all
        .iter()
        .map(|h| own(h.ids.get(&Ns::Ipc)))
        .collect();
    let mut all = BTreeMap::new();
    let mut known: BTreeMap<Option<u32>, BTreeMap<u64, u64>> = BTreeMap::new();
    for (home, id) in ids.into_iter().enumerate() {
        cx.home = home;
        let sizes = match known.get(&id) {
            Some(s) => s.clone(),
            None => kinds::sysv::plan(cx, id)?,
        };
        known.insert(id, sizes.clone());
        all.insert(home, sizes);
    }
    cx.home = 0;
    Ok(all)
}

/// Which slots hold each open file.
fn holders(images: &Images) -> BTreeMap<u32, Vec<(u32, i32)>> {
    let mut h: BTreeMap<u32, Vec<(u32, i32)>> = BTreeMap::new();
    let mut done = std::collections::BTreeSet::new();
    for t in images.tasks.iter().filter(|t| !t.is_zombie()) {
        if done.insert(t.ids.files_id) {
            for f in &images.tables[&t.ids.files_id] {
                h.entry(f.id).or_default().push((t.entry.pid, f.fd as i32));
            }
        }
    }
    h
}

/// Every open file of the tree, those first that others need.
fn files(images: &Images, cx: &mut PlanCx) -> Result<()> {
    let mut brought = std::collections::BTreeSet::new();
    cx.enter(Stage::First);
    for f in images.files.values() {
        if kinds::inherit::plan(f, cx).map_err(|e| e.at(Phase::Plan))? {
            brought.insert(f.id);
        }
    }
    for stage in [Stage::First, Stage::Second, Stage::Tasks] {
        cx.enter(stage);
        for f in images.files.values().filter(|f| !brought.contains(&f.id)) {
            let Some(kind) = kinds::by_type(f.r#type) else {
                return Err(Error::new(
                    "E5012",
                    Blame::Image,
                    format!("file {} of files.img", f.id),
                )
                .why(format!(
                    "its type {} ({}) is not supported",
                    f.r#type,
                    pb::FdTypes::try_from(f.r#type).map_or("unknown", |t| t.as_str_name())
                ))
                .advice("see docs/not-supported"));
            };
            if kind.stage() == stage {
                // where one of those who have it lives, unless it is found through another namespace
                let holder = cx.holders.get(&f.id).and_then(|h| h.first());
                let home = holder.map_or(0, |h| cx.homes.of_task(h.0));
                cx.home = match network_of(f) {
                    Some(id) => cx.homes.with_id(home, Ns::Net, id),
                    None => home,
                };
                kind.plan(f, cx)
                    .map_err(|e| e.of(kind.name()).at(Phase::Plan))?;
            }
        }
    }
    Ok(())
}

/// Addresses that no task of the tree uses, enough for the reel and what goes with it.
fn hole(images: &Images) -> Result<u64> {
    const LOW: u64 = 0x1_0000_0000;
    let need = REEL_ROOM + 2 * REEL_OFFSET;
    let mut used: Vec<(u64, u64)> = images
        .tasks
        .iter()
        .filter_map(|t| t.mm.as_ref())
        .flat_map(|m| &m.vmas)
        // stacks grow: keep well away below them
        .map(|v| {
            (
                v.start
                    .saturating_sub(if v.flags & libc::MAP_GROWSDOWN as u32 != 0 {
                        64 << 20
                    } else {
                        0
                    }),
                v.end,
            )
        })
        .collect();
    used.sort_unstable();
    let mut at = LOW;
    for (s, e) in used {
        if s >= at && s - at >= need {
            break;
        }
        at = at.max(e);
    }
    let at = at.next_multiple_of(2 << 20);
    if at + need > TASK_SIZE {
        return Err(Error::new("E5005", Blame::Image, "no free addresses")
            .why("the tasks together use the whole address space")
            .advice("nothing can be done: please report it"));
    }
    Ok(at)
}

/// clone_args of clone3(2) (linux/sched.h).
///
/// `seen`: the number that the caller gets for it.
fn clone3(flags: u64, exit_signal: u64, name: &Name, seen: u32, slot: usize) -> Call {
    clone3_choosing(flags, exit_signal, &name.numbers, slot).must_be(u64::from(seen))
}

/// The same, with some numbers of it, from the outermost inwards: those further out may be any.
fn clone3_choosing(flags: u64, exit_signal: u64, chosen: &[u32], slot: usize) -> Call {
    let mut words = [0u64; 8];
    words[0] = flags;
    words[4] = exit_signal;
    let head: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    // the innermost first
    let inwards = chosen.iter().rev();
    let numbers: Vec<u8> = inwards.flat_map(|n| n.to_le_bytes()).collect();
    let count = chosen.len() as u64;
    let args = Arg::Struct(vec![
        Part::Bytes(head),
        match chosen {
            // KERNEL: a place for none must not be given (kernel/fork.c, copy_clone_args_from_user())
            [] => Part::Bytes(vec![0; 8]),
            _ => Part::Ptr(Arg::In(numbers)),
        },
        Part::Bytes([count, 0].iter().flat_map(|w| w.to_le_bytes()).collect()),
    ]);
    let mut c = Call::new(libc::SYS_clone3, vec![args, Arg::Int(88)]);
    c.child_slot = Some(slot);
    c
}

/// The row by which the first stub bears the root, its sibling.
fn root_birth(images: &Images, new: i32) -> Call {
    let root = images.tasks[0].entry.pid;
    let name = images.spaces.name(root);
    clone3((libc::CLONE_PARENT | new) as u64, 0, &name, root, 1)
}

/// The row that bears a thread.
pub fn thread_birth(name: &Name, slot: usize) -> Call {
    clone3(OF_THREAD, 0, name, name.own(), slot)
}

/// The same, with some of its numbers: those further out may be any.
pub fn thread_birth_inside(chosen: &[u32], slot: usize) -> Call {
    clone3_choosing(OF_THREAD, 0, chosen, slot)
}

/// Flags of clone(2) for a thread.
const OF_THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// Births, sessions and groups.
fn family(images: &Images, o: &Options) -> Result<Family> {
    let root = &images.tasks[0].entry;
    if root.sid != root.pid && !o.shell_job {
        return Err(Error::new(
            "E2010",
            Blame::Caller,
            format!("task {} is not a session leader", root.pid),
        )
        .why(format!(
            "it was dumped from session {}, which is not in the image",
            root.sid
        ))
        .advice("pass --shell-job to restore it into the session of the caller"));
    }
    let kin: Vec<Kin> = images
        .tasks
        .iter()
        .map(|t| Kin {
            pid: t.entry.pid,
            ppid: t.entry.ppid,
            sid: t.entry.sid,
            pgid: t.entry.pgid,
            exit_signal: t
                .tc
                .stasis
                .as_ref()
                .and_then(|s| s.exit_signal)
                .unwrap_or(libc::SIGCHLD as u32),
            objects: (!t.is_zombie()).then_some([
                t.ids.vm_id,
                t.ids.files_id,
                t.ids.fs_id,
                t.ids.sighand_id,
            ]),
            space: images.spaces.space_of(t.entry.pid),
            users: images.users.of_task(t.entry.pid),
        })
        .collect();
    family::plan(&kin, &images.spaces)
}

impl Plan {
    /// What a thread does when its files are in place, by its index in the task.
    pub fn habits(
        &self,
        p: &TaskPlan,
        t: &TaskImages,
        thread: (usize, &pb::CoreEntry),
    ) -> Result<Habits> {
        habits::plan(t, &self.spaces, thread, p.own_hands, self.timers_by_id)
    }
    /// What it does last of all.
    pub fn privileges(
        &self,
        images: &Images,
        t: &TaskImages,
        thread: (usize, &pb::CoreEntry),
    ) -> Result<Privileges> {
        privileges::plan(t, thread, &images.seccomp, &self.around)
    }
    /// Is a task, by its index, in a user namespace below the tree's?
    pub fn is_inside(&self, i: usize) -> bool {
        let pid = self.tasks[i].pid;
        self.grounds.users.of_task(pid).is_some()
    }
    /// Has the engine something to do for a deed?
    pub fn is_alone(&self, deed: &Deed) -> bool {
        let tasks = self.tasks.len();
        deed.is_alone(|n| {
            let task = self.tasks.get(n).map(|t| self.spaces.space_of(t.pid));
            let space = task.unwrap_or_else(|| self.family.helpers[n - tasks].1);
            self.spaces.levels(space)
        })
    }
    /// Are supplementary groups set?
    pub fn sets_groups(&self) -> bool {
        self.around.groups == privileges::Groups::Set
    }
    /// Does every worker get what others have opened?
    pub fn shares(&self) -> bool {
        let procs = self.mounts.as_ref().is_some_and(|m| !m.procs.is_empty());
        procs || !self.grounds.homes.are_one()
    }
    /// The acts of a stage, in runs that are performed in the same home.
    pub fn runs(&self, stage: Stage) -> Vec<Vec<&HostAct>> {
        let all: Vec<&HostAct> = self.host.iter().filter(|h| h.stage == stage).collect();
        let runs = all.chunk_by(|a, b| a.home == b.home);
        runs.map(<[_]>::to_vec).collect()
    }
    /// The home that each task of the image, by index, is born in: that of the root, or where its parent is by then.
    pub fn born_in(&self, parent: impl Fn(usize) -> usize) -> Vec<usize> {
        let homes = &self.grounds.homes;
        let mut all = Vec::with_capacity(self.tasks.len());
        for (i, t) in self.tasks.iter().enumerate() {
            let p = parent(i);
            let host = self.family.guests_of.get(i).copied().flatten();
            let before = match self.tasks.get(p) {
                _ if t.wave == 0 => host.map_or(0, |f| homes.of_task(self.tasks[f].pid)),
                Some(parent) if parent.wave < t.wave => homes.of_task(parent.pid),
                _ => all.get(p).copied().unwrap_or(0),
            };
            all.push(before);
        }
        all
    }
    /// Files that tasks are given, or that memory is mapped from.
    pub fn wanted(&self) -> std::collections::BTreeSet<FdRef> {
        let mut all: std::collections::BTreeSet<FdRef> = self
            .directories
            .iter()
            .chain(&self.orphans)
            .copied()
            .collect();
        for t in &self.tasks {
            all.extend(t.table.iter().flatten().map(|s| s.0));
            if let Some(m) = &t.memory {
                all.extend(m.files.iter().copied());
                all.extend(m.rings.iter().map(|r| r.file));
            }
        }
        all
    }
    /// The slot of a task or helper of the family.
    pub fn slot_of(&self, n: Node) -> usize {
        match self.tasks.get(n) {
            Some(t) => t.slot,
            None => self.helper_slots[n - self.tasks.len()],
        }
    }
    /// The births of a wave.
    pub fn births(&self, wave: usize) -> Vec<Vec<family::Tape>> {
        self.family
            .wave(wave, |n| self.tasks.get(n).map_or(0, |t| t.wave))
    }
    /// Numbers of tasks and helpers; `free` gives those that may be any.
    pub fn numbers(&self, free: impl FnMut() -> u32) -> Vec<Name> {
        let mut free = free;
        let tasks = self.tasks.iter().map(|t| self.spaces.name(t.pid));
        let helpers = self.family.helpers.iter().map(|(pid, space)| match pid {
            Some(p) => self.spaces.name(*p),
            None => self.spaces.any_name(*space, free()),
        });
        let helpers: Vec<Name> = helpers.collect();
        tasks.chain(helpers).collect()
    }
    /// The rows of a family's tape. `numbers` are those of [`Plan::numbers`].
    pub fn deeds(&self, by: Node, deeds: &[Deed], numbers: &[Name]) -> Vec<Call> {
        let seen = |n: Node| self.spaces.seen(numbers[by].space, &numbers[n]);
        const PDEATHSIG: fn(u64) -> Call = |sig| {
            let op = Arg::Named(1, "PR_SET_PDEATHSIG".into());
            Call::new(libc::SYS_prctl, vec![op, Arg::Int(sig)])
        };
        let mut rows = Vec::new();
        for d in deeds {
            match d {
                Deed::Birth {
                    child,
                    parent,
                    share,
                    exit_signal,
                    founds,
                    chosen,
                } => {
                    const SHARE: [i32; 4] = [
                        libc::CLONE_VM,
                        libc::CLONE_FILES,
                        libc::CLONE_FS,
                        libc::CLONE_SIGHAND,
                    ];
                    let shared = SHARE.iter().zip(share).filter(|s| *s.1);
                    let new = [0, libc::CLONE_NEWPID as u64][usize::from(*founds)];
                    let flags = shared.fold(new, |f, s| f | *s.0 as u64);
                    let (flags, signal) = if *parent == by {
                        (flags, u64::from(*exit_signal))
                    } else {
                        // KERNEL: a sibling's exit signal is the caller's, and may not be named
                        (flags | libc::CLONE_PARENT as u64, 0)
                    };
                    let slot = self.slot_of(*child);
                    let name = &numbers[*child];
                    let further_out = name.numbers.len().saturating_sub(*chosen);
                    rows.push(match further_out {
                        0 => clone3(flags, signal, name, seen(*child), slot),
                        n => clone3_choosing(flags, signal, &name.numbers[n..], slot),
                    });
                }
                // the engine has something to do for it
                Deed::Enter(_) => {}
                Deed::BearIn(n) => rows.extend(bear_in(seen(*n), rows.len())),
                Deed::Session => {
                    let own = u64::from(numbers[by].own());
                    rows.push(Call::new(libc::SYS_setsid, vec![]).must_be(own))
                }
                Deed::Group(g) => {
                    let own = numbers.iter().find(|n| n.key() == *g);
                    let group = match own {
                        Some(n) => self.spaces.seen(numbers[by].space, n),
                        None => self.spaces.seen(numbers[by].space, &self.spaces.name(*g)),
                    };
                    let args = vec![Arg::Int(0), Arg::Int(u64::from(group))];
                    rows.push(Call::new(libc::SYS_setpgid, args))
                }
                Deed::Adopt(on) => rows.push(Call::new(
                    libc::SYS_prctl,
                    vec![
                        Arg::Named(36, "PR_SET_CHILD_SUBREAPER".into()),
                        Arg::Int(u64::from(*on)),
                    ],
                )),
                Deed::Unbind => rows.push(PDEATHSIG(0)),
                Deed::Bind(p) => {
                    rows.push(PDEATHSIG(libc::SIGKILL as u64));
                    let parent = u64::from(seen(*p));
                    rows.push(Call::new(libc::SYS_getppid, vec![]).must_be(parent));
                }
                Deed::Exit => {
                    rows.push(Call::new(libc::SYS_exit_group, vec![Arg::Int(0)]).any());
                }
                Deed::Reap(h) => {
                    let pid = u64::from(seen(*h));
                    let wall = Arg::Named(libc::__WALL as u32 as u64, "__WALL".into());
                    rows.push(
                        Call::new(
                            libc::SYS_wait4,
                            vec![Arg::Int(pid), Arg::Null, wall, Arg::Null],
                        )
                        .must_be(pid),
                    );
                    rows.push(forget_child());
                }
            }
        }
        rows
    }
}

/// The row that takes a SIGCHLD away: it is not one of the tree's.
pub fn forget_child() -> Call {
    let set = 1u64 << (libc::SIGCHLD - 1);
    let set = Arg::In(set.to_le_bytes().to_vec());
    let now = Arg::In(vec![0; 16]);
    Call::new(
        libc::SYS_rt_sigtimedwait,
        vec![set, Arg::Null, now, Arg::Int(8)],
    )
    .any()
}

/// Rows: children are born in the pid namespace of the task of this number from now on. `from`: how many rows are before.
fn bear_in(pid: u32, from: usize) -> Vec<Call> {
    let new = Arg::Named(libc::CLONE_NEWPID as u64, "CLONE_NEWPID".into());
    vec![
        Call::new(
            libc::SYS_pidfd_open,
            vec![Arg::Int(u64::from(pid)), Arg::Int(0)],
        ),
        Call::new(libc::SYS_setns, vec![Arg::Ret(from), new]),
        Call::new(libc::SYS_close, vec![Arg::Ret(from)]),
    ]
}

/// The first rows of a task's last tapes, if its children are to be born in another pid namespace than its own: threads are born
/// at home, so they come late.
pub fn children(pid: u32, spaces: &Spaces) -> Vec<Call> {
    match spaces.children_of(pid) {
        None => Vec::new(),
        Some(Children::In(space)) => {
            let first = spaces.first_of(space).unwrap_or(pid);
            bear_in(spaces.seen_by(pid, first), 0)
        }
        Some(Children::New) => {
            let new = Arg::Named(libc::CLONE_NEWPID as u64, "CLONE_NEWPID".into());
            vec![Call::new(libc::SYS_unshare, vec![new])]
        }
    }
}

/// A zombie ends as it did: with its exit code, or by its signal.
fn end(t: &TaskImages) -> Vec<Call> {
    let code = t.tc.exit_code;
    let mut rows = vec![comm(&t.tc.comm)];
    let sig = code & 0x7f;
    if sig == 0 {
        rows.push(
            Call::new(
                libc::SYS_exit_group,
                vec![Arg::Int(u64::from(code >> 8 & 0xff))],
            )
            .any(),
        );
    } else {
        let limit: Vec<u8> = vec![0; 16];
        rows.push(
            Call::new(
                libc::SYS_prlimit64,
                vec![
                    Arg::Int(0),
                    Arg::Named(4, "RLIMIT_CORE".into()),
                    Arg::In(limit),
                    Arg::Null,
                ],
            )
            .any(),
        );
        let sig_name = Arg::Named(u64::from(sig), stasis_kernel::names::signal(sig as i32));
        rows.push(
            Call::new(
                libc::SYS_rt_sigaction,
                vec![
                    sig_name.clone(),
                    Arg::In(vec![0; 32]),
                    Arg::Null,
                    Arg::Int(8),
                ],
            )
            .any(),
        );
        rows.push(Call::new(libc::SYS_getpid, vec![]));
        rows.push(Call::new(libc::SYS_kill, vec![Arg::Ret(3), sig_name]));
        // delivered as soon as it is unblocked
        rows.push(
            Call::new(
                libc::SYS_rt_sigprocmask,
                vec![
                    Arg::Named(1, "SIG_UNBLOCK".into()),
                    Arg::In(vec![0xff; 8]),
                    Arg::Null,
                    Arg::Int(8),
                ],
            )
            .any(),
        );
    }
    rows
}

/// PR_SET_NAME.
pub fn comm(name: &[u8]) -> Call {
    let mut b: Vec<u8> = name.iter().copied().filter(|b| *b != 0).take(15).collect();
    b.resize(16, 0);
    Call::new(
        libc::SYS_prctl,
        vec![Arg::Named(15, "PR_SET_NAME".into()), Arg::In(b)],
    )
}

/// The plan for people: every tape and host call, run by nobody.
pub fn show(p: &Plan, images: &Images, dir: &ImageDir) -> Result<String> {
    let mut s = String::new();
    let _ = writeln!(
        s,
        "hole for the reel at {:#x}, {} slots, service descriptor {}",
        p.hole, p.slots, p.service_fd
    );
    for w in &p.warnings {
        let _ = writeln!(s, "warning: {w}");
    }
    for h in &p.host {
        let home = match h.home {
            0 => String::new(),
            n => format!(", home {n}"),
        };
        let _ = writeln!(s, "engine {:?}{home}: {}    # {}", h.stage, h.act, h.why);
    }
    if let Some(m) = &p.mounts {
        let mut show = |when: &str, rows: &[stasis_mounts::Row]| {
            for r in rows {
                let _ = writeln!(s, "mounts, {when}: {r}");
            }
        };
        show("outside", &m.outside);
        for p in &m.procs {
            show(&format!("in pid namespace {}", p.pid_ns), &p.rows);
        }
        for (space, rows) in m.inner.iter().enumerate() {
            show(&format!("inner of namespace {space}"), rows);
        }
        for space in 0..m.tree.roots.len() {
            let (build, late) = m.of_space(space);
            let of = match space {
                0 => String::new(),
                n => format!(" of namespace {n}"),
            };
            show(&format!("build{of}"), build);
            show(&format!("late{of}"), late);
        }
        for (space, rows) in &m.sharing {
            show(&format!("sharing, by namespace {space}"), rows);
        }
    }
    for (n, home) in p.grounds.homes.all.iter().enumerate().skip(1) {
        let _ = writeln!(
            s,
            "home {n}: {:?}, of which it makes {:?}",
            home.ids, home.makes
        );
    }
    let g = &p.grounds;
    for u in g.users.all() {
        let above = u
            .above
            .map_or("the tree's".to_string(), |id| id.to_string());
        let _ = writeln!(s, "user namespace {} of user {} in {above}", u.id, u.maker);
    }
    for r in g.joining().iter().chain(&g.users()).chain(&g.making()) {
        let _ = writeln!(s, "first stub: {r}");
    }
    if let Some(c) = &p.clocks {
        let (m, b) = (&c.monotonic, &c.boottime);
        let _ = writeln!(
            s,
            "first stub: a time namespace, monotonic clock from {}.{:09} s, boot-time clock from {}.{:09} s",
            m.tv_sec, m.tv_nsec, b.tv_sec, b.tv_nsec
        );
    }
    let _ = writeln!(s, "first stub: {}", p.birth);
    let numbers = p.numbers(|| 0);
    let last = p.tasks.iter().map(|t| t.wave).max().unwrap_or(0);
    let births = (0..=last).flat_map(|w| p.births(w).into_iter().map(move |s| (w, s)));
    let rest = p.family.rest.iter().map(|s| (last, s.clone()));
    for (i, (wave, stage)) in births.chain(rest).enumerate() {
        let _ = writeln!(s, "family, stage {i} (wave {wave})");
        for (by, deeds) in &stage {
            let who = ["helper", "task"][usize::from(*by < p.tasks.len())];
            for r in p.deeds(*by, deeds, &numbers) {
                let _ = writeln!(s, "  {who} {}: {r}", numbers[*by].key());
            }
            for n in deeds.iter().filter_map(|d| match d {
                Deed::Enter(n) => Some(n),
                _ => None,
            }) {
                let as_whom = numbers[*n].key();
                let _ = writeln!(
                    s,
                    "  {who} {}: enters where task {as_whom} is born",
                    numbers[*by].key()
                );
            }
        }
    }
    for (i, t) in p.tasks.iter().enumerate() {
        let _ = writeln!(s, "task {} (slot {}, wave {})", t.pid, t.slot, t.wave);
        let mut tape = |name: &str, rows: &[Call]| {
            for r in rows {
                let _ = writeln!(s, "  {name}: {r}");
            }
        };
        if let Some(e) = &t.end {
            tape("end", e);
            continue;
        }
        if let Some(m) = &t.memory {
            tape("settle the estate", &m.settling());
            tape("map", &m.tape(p.service_fd).collect::<Vec<_>>());
        }
        if let Some(id) = g.users.of_task(t.pid) {
            let core = images.tasks[i].threads[0].core(dir)?;
            let creds = core.thread_core.as_ref().and_then(|c| c.creds.as_ref());
            let rows = creds.map(|c| {
                let becoming = privileges::identity(c, p.sets_groups());
                super::users::entering(becoming, 0, true)
            });
            tape(
                &format!("enter user namespace {id}"),
                &rows.unwrap_or_default(),
            );
        }
        for (k, th) in images.tasks[i].threads.iter().enumerate().skip(1) {
            let slot = t.slot + k;
            tape(
                &format!("thread {} in slot {slot}", th.tid),
                &[thread_birth(&p.spaces.name(th.tid), slot)],
            );
        }
        if let Some(table) = &t.table {
            for (f, slot, cloexec) in table {
                let _ = writeln!(
                    s,
                    "  slot {slot}: file#{}{}",
                    f.0,
                    if *cloexec { " close-on-exec" } else { "" }
                );
            }
        }
        let mut tape = |name: &str, rows: &[Call]| {
            for r in rows {
                let _ = writeln!(s, "  {name}: {r}");
            }
        };
        tape("placed", &t.placed);
        if let Some(m) = &t.memory {
            tape("settle", &m.late);
        }
        let of = &images.tasks[i];
        let all = of.threads.iter().enumerate().map(|(k, th)| {
            let core = th.core(dir)?;
            let last = p.privileges(images, of, (k, &core))?;
            Ok((p.habits(t, of, (k, &core))?, last))
        });
        let mut all = all.collect::<Result<Vec<_>>>()?;
        for (k, (h, _)) in all.iter().enumerate() {
            tape(&format!("habits of thread {k}"), &h.rows);
        }
        if let Some((h, _)) = all.first_mut() {
            tape("children", &children(t.pid, &p.spaces));
            tape("arm", &h.arm);
            tape("arm", &t.arm);
            h.outside.extend(habits::of_process(&images.tasks[i]));
        }
        for (k, (_, last)) in all.iter().enumerate() {
            tape(&format!("privileges of thread {k}"), &last.credentials);
            tape(&format!("sealing of thread {k}"), &last.sealing);
        }
        for x in all.iter().flat_map(|(h, _)| &h.outside) {
            let _ = writeln!(s, "  engine: {x}");
        }
    }
    Ok(s)
}
