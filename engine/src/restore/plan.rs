//! From images to a plan: pure code. Everything a restore will do is written down before anything is done.
//!
//! Long because it is the whole of a plan that is not a kind's: one function per phase, in order.
use super::images::{Images, TASK_SIZE, TaskImages};
use super::{habits, memory, privileges};
use crate::error::{Blame, Error, Result};
use crate::kinds::{self, Act, PlanCx, Stage, TaskStage};
use crate::options::Options;
use crate::phase::Phase;
use stasis_kernel::call::{Arg, Call, FdRef, Part};
use stasis_proto::{ImageDir, pb};
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
    /// Index of the task that gives birth to it; `None` for the root.
    pub parent: Option<usize>,
    /// When it is born: wave 0 from the empty stub, the next when the memory of the waves before is in place.
    pub wave: usize,
    /// Its slot in the reel.
    pub slot: usize,
    /// The row its parent (or the first stub) plays.
    pub birth: Call,
    /// Played by itself right after birth: its session.
    pub session: Vec<Call>,
    /// Its process group, when all tasks are born.
    pub group: Vec<Call>,
    /// For a zombie: the rows that end it.
    pub end: Option<Vec<Call>>,
    /// Its address space; `None` if it shares one.
    pub memory: Option<memory::Plan>,
    /// Its threads other than the leader: tid, slot, birth.
    pub threads: Vec<(u32, usize, Call)>,
    /// Its descriptor table: file, slot, close-on-exec; `None` if it shares one.
    pub table: Option<Vec<(FdRef, i32, bool)>>,
    /// Rows when its descriptors are in place.
    pub placed: Vec<Call>,
    /// Per thread, leader first: signals, limits, registrations.
    pub habits: Vec<Vec<Call>>,
    /// Rows of the leader that arm timers.
    pub arm: Vec<Call>,
    /// Per thread: credentials, seccomp.
    pub privileges: Vec<Vec<Call>>,
    /// What the engine sets from outside.
    pub outside: Vec<habits::Outside>,
    /// The signal of its group stop.
    pub stopped_by: Option<i32>,
}

/// A whole restore.
pub struct Plan {
    /// Rows the engine plays, by stage.
    pub host: Vec<(Stage, Act, String)>,
    /// Tasks, parents before children.
    pub tasks: Vec<TaskPlan>,
    /// Start of the hole in which the reel goes.
    pub hole: u64,
    /// Lowest descriptor number no task uses: the engine's socket.
    pub service_fd: i32,
    /// Slots of the reel.
    pub slots: usize,
    /// What will not come back as it was.
    pub warnings: Vec<String>,
}

/// Makes the plan.
pub fn make(o: &Options, dir: &ImageDir, images: &Images) -> Result<Plan> {
    let holders = holders(images);
    let mut cx = PlanCx::new(o, dir, &images.files, &holders);
    files(images, &mut cx)?;
    kinds::locks::plan(&mut cx).map_err(|e| e.of("locks").at(Phase::Plan))?;
    let shared = memory::shared(images, &mut cx)?;
    let segments = kinds::sysv::plan(&mut cx).map_err(|e| e.of("sysv").at(Phase::Plan))?;
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
        hole,
        service_fd,
        slots: 1,
        warnings: Vec::new(),
    };
    let index: BTreeMap<u32, usize> = images
        .tasks
        .iter()
        .enumerate()
        .map(|(i, t)| (t.entry.pid, i))
        .collect();
    let mut tables = BTreeMap::new();
    let mut spaces = BTreeMap::new();
    let mut fs = BTreeMap::new();
    let mut hands = BTreeMap::new();
    for (i, t) in images.tasks.iter().enumerate() {
        let parent = (i > 0).then(|| index[&t.entry.ppid]);
        let slot = plan.slots;
        plan.slots += t.threads.len().max(1);
        let mut p = TaskPlan {
            pid: t.entry.pid,
            parent,
            wave: 0,
            slot,
            birth: birth(t, parent.map(|p| &images.tasks[p]), slot),
            session: Vec::new(),
            group: Vec::new(),
            end: None,
            memory: None,
            threads: Vec::new(),
            table: None,
            placed: Vec::new(),
            habits: Vec::new(),
            arm: Vec::new(),
            privileges: Vec::new(),
            outside: Vec::new(),
            stopped_by: None,
        };
        family(images, i, o, &mut p)?;
        if t.is_zombie() {
            p.end = Some(end(t));
            plan.tasks.push(p);
            continue;
        }
        let on = |e: Error| e.on(format!("task {}", t.entry.pid)).at(Phase::Plan);
        if let std::collections::btree_map::Entry::Vacant(v) = spaces.entry(t.ids.vm_id) {
            v.insert(i);
            p.memory = Some(memory::plan(t, &mut cx, &shared, &segments).map_err(on)?);
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
        let own_hands = *hands.entry(t.ids.sighand_id).or_insert(i) == i;
        for (k, (tid, _)) in t.threads.iter().enumerate().skip(1) {
            p.threads
                .push((*tid, slot + k, thread_birth(*tid, slot + k)));
        }
        habits::plan(t, own_hands, &mut p).map_err(on)?;
        privileges::plan(t, &images.seccomp, &mut p).map_err(on)?;
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
    waves(images, &spaces, &mut plan.tasks);
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

/// Heirs are born when their parents' memory is in place, and with them all that come after them. `spaces`: the first task
/// with each address space.
fn waves(images: &Images, spaces: &BTreeMap<u32, usize>, tasks: &mut [TaskPlan]) {
    // a child of a session its parent has left is born before its parent leaves, which cannot wait for any memory
    let family: Vec<bool> = (0..tasks.len())
        .map(|i| {
            let sid = images.tasks[i].entry.sid;
            let parents = tasks[i].parent.map(|p| images.tasks[p].entry.sid);
            sid == tasks[i].pid || parents.is_none_or(|p| p == sid)
        })
        .collect();
    let mut early = vec![false; tasks.len()];
    for i in (0..tasks.len()).rev() {
        early[i] |= !family[i];
        if let Some(p) = tasks[i].parent.filter(|_| early[i]) {
            early[p] = true;
        }
    }
    for i in 0..tasks.len() {
        let Some(p) = tasks[i].parent else { continue };
        let Some(mut own) = tasks[i].memory.take() else {
            tasks[i].wave = tasks[p].wave;
            continue;
        };
        let base = spaces[&images.tasks[p].ids.vm_id];
        if let Some(theirs) = &tasks[base].memory {
            let heir = !early[i] && own.is_heir_of(theirs);
            if heir || tasks[p].wave > 0 {
                own.inherit(base, theirs, heir);
                tasks[i].wave = tasks[p].wave.max(tasks[base].wave) + 1;
            }
        }
        tasks[i].memory = Some(own);
    }
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
    for stage in [Stage::First, Stage::Second, Stage::Tasks] {
        cx.enter(stage);
        for f in images.files.values() {
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
fn clone3(flags: u64, exit_signal: u64, pid: u32, slot: usize) -> Call {
    let mut words = [0u64; 8];
    words[0] = flags;
    words[4] = exit_signal;
    let head: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let args = Arg::Struct(vec![
        Part::Bytes(head),
        Part::Ptr(Arg::In(pid.to_le_bytes().to_vec())),
        Part::Bytes([1u64, 0].iter().flat_map(|w| w.to_le_bytes()).collect()),
    ]);
    let mut c = Call::new(libc::SYS_clone3, vec![args, Arg::Int(88)]).must_be(u64::from(pid));
    c.child_slot = Some(slot);
    c
}

fn birth(t: &TaskImages, parent: Option<&TaskImages>, slot: usize) -> Call {
    let Some(parent) = parent else {
        // the first stub's sibling: a child of the engine
        return clone3(libc::CLONE_PARENT as u64, 0, t.entry.pid, slot);
    };
    let mut flags = 0;
    if !t.is_zombie() {
        let same = |f: fn(&pb::TaskKobjIdsEntry) -> u32| f(&t.ids) == f(&parent.ids);
        for (shared, flag) in [
            (same(|i| i.vm_id), libc::CLONE_VM),
            (same(|i| i.files_id), libc::CLONE_FILES),
            (same(|i| i.fs_id), libc::CLONE_FS),
            (same(|i| i.sighand_id), libc::CLONE_SIGHAND),
        ] {
            if shared {
                flags |= flag as u64;
            }
        }
    }
    let exit_signal =
        t.tc.stasis
            .as_ref()
            .and_then(|s| s.exit_signal)
            .map_or(libc::SIGCHLD as u64, u64::from);
    clone3(flags, exit_signal, t.entry.pid, slot)
}

fn thread_birth(tid: u32, slot: usize) -> Call {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    clone3(flags as u64, 0, tid, slot)
}

/// Sessions and groups.
fn family(images: &Images, i: usize, o: &Options, p: &mut TaskPlan) -> Result<()> {
    let t = &images.tasks[i].entry;
    if t.sid == t.pid {
        p.session
            .push(Call::new(libc::SYS_setsid, vec![]).must_be(u64::from(t.pid)));
    } else if i == 0 && !o.shell_job {
        return Err(Error::new(
            "E2010",
            Blame::Caller,
            format!("task {} is not a session leader", t.pid),
        )
        .why(format!(
            "it was dumped from session {}, which is not in the image",
            t.sid
        ))
        .advice("pass --shell-job to restore it into the session of the caller"));
    }
    let member = |pid: u32| images.tasks.iter().any(|x| x.entry.pid == pid);
    if t.pgid != t.sid && member(t.pgid) || t.pgid == t.pid && t.sid != t.pid {
        // leaders before members: the driver plays groups twice, see perform
        p.group.push(Call::new(
            libc::SYS_setpgid,
            vec![Arg::Int(0), Arg::Int(u64::from(t.pgid))],
        ));
    }
    Ok(())
}

/// The row by which a task becomes the leader of a group of its own.
pub fn own_group(pid: u32) -> Vec<Call> {
    vec![Call::new(
        libc::SYS_setpgid,
        vec![Arg::Int(0), Arg::Int(u64::from(pid))],
    )]
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
        let sig_name = Arg::Named(
            u64::from(sig),
            stasis_kernel::names::signal(sig as i32).into_owned(),
        );
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
pub fn show(p: &Plan) -> String {
    let mut s = String::new();
    let _ = writeln!(
        s,
        "hole for the reel at {:#x}, {} slots, service descriptor {}",
        p.hole, p.slots, p.service_fd
    );
    for w in &p.warnings {
        let _ = writeln!(s, "warning: {w}");
    }
    for (stage, c, why) in &p.host {
        let _ = writeln!(s, "engine {stage:?}: {c}    # {why}");
    }
    for t in &p.tasks {
        let _ = writeln!(s, "task {} (slot {})", t.pid, t.slot);
        let _ = writeln!(s, "  birth in wave {}: {}", t.wave, t.birth);
        let mut tape = |name: &str, rows: &[Call]| {
            for r in rows {
                let _ = writeln!(s, "  {name}: {r}");
            }
        };
        tape("session", &t.session);
        tape("group", &t.group);
        if let Some(e) = &t.end {
            tape("end", e);
            continue;
        }
        if let Some(m) = &t.memory {
            tape("settle the estate", &m.settling());
            tape("map", &m.tape(p.service_fd));
        }
        for (tid, slot, birth) in &t.threads {
            tape(
                &format!("thread {tid} in slot {slot}"),
                std::slice::from_ref(birth),
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
        for (i, h) in t.habits.iter().enumerate() {
            tape(&format!("habits of thread {i}"), h);
        }
        tape("arm", &t.arm);
        for (i, h) in t.privileges.iter().enumerate() {
            tape(&format!("privileges of thread {i}"), h);
        }
        for x in &t.outside {
            let _ = writeln!(s, "  engine: {x}");
        }
    }
    s
}
