//! Sessions and groups of the tree must be its own: what a process outside leads or shares cannot be brought back.
use super::task::Task;
use crate::error::{Blame, Error, Result};
use crate::options::Options;
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{ProcDir, Status, all_pids};
use std::collections::{BTreeMap, BTreeSet};

/// Session and group of a task, as our pid namespace numbers them; 0: of no number here.
fn numbers(st: &Status) -> (i32, i32) {
    let first = |v: &[i32]| v.first().copied().unwrap_or(0);
    (first(&st.ns_sid), first(&st.ns_pgid))
}

/// Every session and group is led by a task of the tree, or by nobody and has members only here. With `--shell-job` those
/// of the root may be outside.
pub fn check(o: &Options, held: &[Task], status: &[Status]) -> Result<()> {
    let tree: BTreeSet<i32> = held.iter().map(|t| t.pid.0).collect();
    let Some(root) = held.first().zip(status.first()) else {
        return Ok(());
    };
    let (root_sid, root_pgid) = numbers(root.1);
    let outer = o.shell_job && root_sid != root.0.pid.0;
    // numbers nobody of the tree has: whose and what
    let mut gone: BTreeMap<i32, (HostPid, &str)> = BTreeMap::new();
    for (t, st) in held.iter().zip(status) {
        let (sid, pgid) = numbers(st);
        let ours = outer && sid == root_sid;
        if !ours && !tree.contains(&sid) {
            gone.entry(sid).or_insert((t.pid, "session"));
        }
        if !(ours && pgid == root_pgid || tree.contains(&pgid) || pgid == sid) {
            gone.entry(pgid).or_insert((t.pid, "group"));
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    for (n, (pid, what)) in &gone {
        if *n == 0 || ProcDir::open(HostPid(*n)).is_ok() {
            return Err(outside(*pid, what, *n, "whose leader is not in the tree"));
        }
    }
    for pid in all_pids()?.into_iter().filter(|p| !tree.contains(&p.0)) {
        let Ok(st) = ProcDir::open(pid)
            .map_err(Into::into)
            .and_then(|p| p.stat())
        else {
            continue;
        };
        for n in [st.session.0, st.pgrp.0] {
            if let Some((task, what)) = gone.get(&n) {
                let why = format!(
                    "to which process {} belongs too, which is not in the tree",
                    pid.0
                );
                return Err(outside(*task, what, n, &why));
            }
        }
    }
    Ok(())
}

fn outside(pid: HostPid, what: &str, number: i32, why: &str) -> Error {
    Error::new(
        "E4012",
        Blame::Container,
        format!("task {} cannot be taken out of its {what}", pid.0),
    )
    .why(format!("its {what} is {number}, {why}"))
    .advice("dump a tree that holds whole sessions: from a session's leader or above it")
}
