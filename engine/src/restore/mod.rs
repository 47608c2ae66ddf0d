//! The story of a restore: read, plan, perform.
mod ahead;
mod aio;
mod confine;
mod family;
mod fill;
mod grounds;
mod habits;
mod heirs;
mod homes;
pub(crate) use heirs::minus;
pub use homes::Homes;
pub(crate) mod images;
mod inner;
pub(crate) mod later;
mod memory;
mod numbers;
mod pager;
mod perform;
pub mod plan;
mod privileges;
mod regs;
pub(crate) mod rehearse;
pub(crate) mod spaces;
mod undo;
mod users;
pub(crate) use users::MOST as MOST_USER_SPACES;
mod vdso;

use crate::error::{Blame, Error, Result};
use crate::events::Moment;
use crate::namespaces::user::Maps;
use crate::options::Options;
use crate::phase::Phase;
use crate::plugins::bring;
use crate::report::RestoreReport;
use stasis_proto::{ImageDir, pb};
use std::collections::BTreeMap;
use std::time::Instant;

/// Whether a tree with several pid namespaces can be born again, as far as its numbers tell, and its tasks can become who they are.
///
/// `tasks`: the user namespaces of tasks, where those are below the tree's, and who they are. `maps`: of such a namespace.
///
/// # Errors
/// E4014: no sequence of calls is known that makes such a tree; E4016: a task would be born where it has no numbers.
pub(crate) fn can_be_born(
    nested: Vec<pb::StasisNamespaceEntry>,
    tree: &[pb::PstreeEntry],
    root: u32,
    tasks: &BTreeMap<u32, (u32, pb::CredsEntry)>,
    maps: impl Fn(u32) -> Result<Maps>,
) -> Result<()> {
    let planned = users::Users::of(nested.clone(), maps).and_then(|users| {
        let spaces = spaces::Spaces::from_entries(nested, tree, Some(root))?;
        let kin = tree.iter().map(|t| family::Kin {
            pid: t.pid,
            ppid: t.ppid,
            sid: t.sid,
            pgid: t.pgid,
            exit_signal: libc::SIGCHLD as u32,
            objects: (!t.threads.is_empty()).then_some([t.pid; 4]),
            space: spaces.space_of(t.pid),
            users: tasks.get(&t.pid).map(|t| t.0),
        });
        let family = family::plan(&kin.collect::<Vec<_>>(), &spaces)?;
        Ok((users, family))
    });
    let (users, family) = planned.map_err(|e| {
        Error::new("E4014", Blame::Container, e.what)
            .why(e.why)
            .advice("this place in a tree with several pid namespaces cannot be rebuilt: please report it")
    })?;
    let creds = |n: usize| tasks.get(&tree.get(n)?.pid).map(|t| &t.1);
    users.can_become(&family, creds).map_err(|(n, e)| {
        let pid = tree.get(n).map_or(0, |t| t.pid);
        Error::new("E4016", Blame::Container, e.what)
            .why(e.why)
            .advice("let it have the users and groups of the first one")
            .on(format!("task {pid}"))
    })
}

/// Brings the tree in `o.images` back.
///
/// On any error no process and no file of it is left.
pub fn restore(o: &Options) -> Result<RestoreReport> {
    let begun = Instant::now();
    stasis_kernel::limits::raise_nofile();
    let dir = open(o)?;
    let mut images = images::load(&dir).map_err(|e| e.at(Phase::Plan))?;
    // open until the tree has all it brings
    let brought = bring(o, &dir, &mut images, true).map_err(|e| e.at(Phase::Plan))?;
    let o = &brought.options;
    if let Some(filter) = &o.namespaces.seccomp {
        confine::by(&mut images, filter);
    }
    let plan = plan::make(o, &dir, &images).map_err(|e| e.at(Phase::Plan))?;
    images.forget_memory();
    let mut report = RestoreReport {
        warnings: plan.warnings.clone(),
        ..Default::default()
    };
    o.events
        .tell(Moment::PreRestore)
        .map_err(|e| e.at(Phase::Plan))?;
    report.pid = perform::perform(o, &dir, &images, &plan, &mut report)?;
    report.restore_us = begun.elapsed().as_micros() as u64;
    crate::report::tell_peak();
    if !o.detach {
        report.exit_status = Some(stasis_kernel::ptrace::wait_exit(report.pid)?);
    }
    Ok(report)
}

/// The folder alone, decrypted, wherever it lies.
///
/// # Errors
/// Those of opening; E5722, E5723.
pub fn folder(o: &Options) -> Result<ImageDir> {
    let mut dir = match &o.archive {
        Some(place) => place.open()?,
        None => ImageDir::open(&o.images)?,
    };
    crate::vault::unseal(&mut dir, o.identity.as_deref())?;
    Ok(dir)
}

/// The folder, and those of the dumps it builds on.
fn open(o: &Options) -> Result<ImageDir> {
    let dir = folder(o)?;
    Ok(dir.with_parents(o.memory.parent.as_deref())?)
}

/// Every tape and host call of a restore, for people; nothing is done.
pub fn show_plan(o: &Options) -> Result<String> {
    let dir = open(o)?;
    let mut images = images::load(&dir).map_err(|e| e.at(Phase::Plan))?;
    let brought = bring(o, &dir, &mut images, false).map_err(|e| e.at(Phase::Plan))?;
    if let Some(filter) = &o.namespaces.seccomp {
        confine::by(&mut images, filter);
    }
    let plan = plan::make(&brought.options, &dir, &images).map_err(|e| e.at(Phase::Plan))?;
    plan::show(&plan, &images, &dir).map_err(|e| e.at(Phase::Plan))
}
