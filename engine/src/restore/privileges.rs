//! Credentials, no_new_privs and seccomp, in that order and last of all.
//!
//! A thread of root that stays root with all capabilities plays no row. Otherwise: securebits that keep capabilities
//! over the change of ids, the bounding set, groups and ids, the final securebits, the capability sets, ambient ones.
use super::images::TaskImages;
use super::users::Users;
use crate::error::{Blame, Error, Result};
use crate::lsm;
use stasis_kernel::call::{Arg, Call, Part};
use stasis_kernel::names;
use stasis_proto::pb;

/// Highest capability number the format can hold.
const CAPS: u64 = 64;
/// The bit of CAP_SYS_ADMIN.
const SYS_ADMIN: u64 = 1 << 21;

fn prctl(op: u64, name: &'static str, args: &[u64]) -> Call {
    let mut a = vec![Arg::Named(op, name.into())];
    a.extend(args.iter().map(|v| Arg::Int(*v)));
    Call::new(libc::SYS_prctl, a)
}

/// Supplementary groups in the user namespace where the tree comes to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// They are set.
    Set,
    /// setgroups(2) is denied there for good (user_namespaces(7)): a thread keeps what it is born with.
    Born,
    /// As [`Groups::Born`], and they are these: the namespace is the engine's own.
    These(Vec<u32>),
}

/// What a tree's privileges depend on besides the images of its tasks.
pub struct Around {
    /// Supplementary groups.
    pub groups: Groups,
    /// The module where the tree was dumped.
    pub image: pb::Lsmtype,
    /// That of this machine.
    pub host: pb::Lsmtype,
    /// What the caller says (`--lsm-profile`).
    pub over: Option<String>,
    /// User namespaces below the tree's.
    pub users: Users,
}

/// The last rows of a thread.
#[derive(Debug, Default)]
pub struct Privileges {
    /// Credentials.
    pub credentials: Vec<Call>,
    /// What a change of credentials of any thread would undo, no_new_privs, seccomp.
    pub sealing: Vec<Call>,
}

/// Those of a thread, by its index in the task.
pub fn plan(
    t: &TaskImages,
    (k, core): (usize, &pb::CoreEntry),
    filters: &[pb::SeccompFilter],
    around: &Around,
) -> Result<Privileges> {
    let tc = core
        .thread_core
        .as_ref()
        .ok_or_else(|| Error::bug("a thread without its part passed the checks"))?;
    let leader = k == 0;
    // it is who it is since it is in its user namespace
    let inside = around.users.of_task(t.entry.pid).is_some();
    let mut rows = Vec::new();
    let (mode, filter) = t.threads[k].seccomp;
    // KERNEL: a filter is taken from a thread with no_new_privs or with CAP_SYS_ADMIN (seccomp_prepare_filter()); a
    // container's runtime gave it before it dropped that capability, and so do we
    let late = tc
        .creds
        .as_ref()
        .filter(|c| mode == 2 && c.no_new_privs != Some(1) && set(&c.cap_eff) & SYS_ADMIN == 0);
    if let Some(c) = &tc.creds {
        groups(c, &around.groups)?;
        if !inside {
            rows.extend(identity(c, around.groups == Groups::Set));
        }
        capabilities(c, late.map_or(0, |_| SYS_ADMIN), &mut rows);
    }
    // KERNEL: commit_creds() makes the whole address space undumpable when any thread changes its ids, so the rest waits
    // until all threads have
    let credentials = std::mem::take(&mut rows);
    if let Some(k) = tc.stasis.as_ref().and_then(|s| s.reqkey_keyring) {
        let name = "KEYCTL_SET_REQKEY_KEYRING";
        let args = vec![Arg::Named(14, name.into()), Arg::Int(k.into())];
        rows.push(Call::new(libc::SYS_keyctl, args));
    }
    if leader && let Some(d) = t.mm.as_ref().and_then(|m| m.dumpable) {
        // a change of ids has reset it; 2 (root only) cannot be asked for and is what such a change leaves
        if d != 2 {
            rows.push(prctl(4, "PR_SET_DUMPABLE", &[d as u64]));
        }
    }
    // threads are born without
    let signal = tc.pdeath_sig.unwrap_or(0);
    if leader || signal != 0 {
        rows.push(prctl(1, "PR_SET_PDEATHSIG", &[u64::from(signal)]));
    }
    let label = tc.creds.as_ref().and_then(|c| c.lsm_profile.as_deref());
    if let Some((lsm, name)) =
        lsm::decide(around.image, around.host, label, around.over.as_deref())?
    {
        // no_new_privs would forbid it
        rows.extend(lsm::rows(lsm, name, rows.len()));
    }
    if tc.creds.as_ref().is_some_and(|c| c.no_new_privs == Some(1)) {
        rows.push(prctl(38, "PR_SET_NO_NEW_PRIVS", &[1, 0, 0, 0]));
    }
    match mode {
        0 => {}
        1 => rows.push(prctl(22, "PR_SET_SECCOMP", &[1, 0, 0, 0])),
        2 => seccomp(filter, filters, &mut rows)?,
        _ => {
            return Err(Error::new("E5010", Blame::Image, "seccomp mode")
                .why("it is none of 0, 1, 2")
                .advice("dump again"));
        }
    }
    if let Some(c) = late {
        // the filter may forbid it, but filters of traced threads are suspended
        rows.push(capset(c, 0));
    }
    Ok(Privileges {
        credentials,
        sealing: rows,
    })
}

fn set(v: &[u32]) -> u64 {
    u64::from(v.first().copied().unwrap_or(0)) | u64::from(v.get(1).copied().unwrap_or(0)) << 32
}

/// Groups that nobody can set must be right.
fn groups(c: &pb::CredsEntry, there: &Groups) -> Result<()> {
    let sorted = |g: &[u32]| {
        let mut g = g.to_vec();
        g.sort_unstable();
        g
    };
    match there {
        Groups::These(own) if sorted(own) != sorted(&c.groups) => {
            Err(Error::new("E6466", Blame::Host, "supplementary groups cannot be set")
                .why(format!(
                    "this user namespace denies it; the task had {:?}, the engine has {own:?}",
                    c.groups
                ))
                .advice("restore as the same user, in a user namespace that allows it (`unshare --map-auto`), or as root"))
        }
        _ => Ok(()),
    }
}

/// Rows by which a thread has these users and groups, and keeps its capabilities. `set_groups`: supplementary ones are set.
pub fn identity(c: &pb::CredsEntry, set_groups: bool) -> Vec<Call> {
    const KEEP_CAPS_AND_NO_FIXUP: u64 = 1 << 4 | 1 << 2;
    let mut rows = vec![prctl(28, "PR_SET_SECUREBITS", &[KEEP_CAPS_AND_NO_FIXUP])];
    let ids: Vec<u8> = c.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    if set_groups {
        rows.push(Call::new(
            libc::SYS_setgroups,
            vec![Arg::Int(c.groups.len() as u64), Arg::In(ids)],
        ));
    }
    let id = |v: u32| Arg::Int(u64::from(v));
    rows.push(Call::new(
        libc::SYS_setresgid,
        vec![id(c.gid), id(c.egid), id(c.sgid)],
    ));
    rows.push(Call::new(libc::SYS_setfsgid, vec![id(c.fsgid)]).any());
    rows.push(Call::new(
        libc::SYS_setresuid,
        vec![id(c.uid), id(c.euid), id(c.suid)],
    ));
    rows.push(Call::new(libc::SYS_setfsuid, vec![id(c.fsuid)]).any());
    rows
}

/// `more`: capabilities kept for a while.
fn capabilities(c: &pb::CredsEntry, more: u64, rows: &mut Vec<Call>) {
    let (bnd, amb) = (set(&c.cap_bnd), set(&c.cap_amb));
    for cap in (0..CAPS).filter(|n| bnd & 1 << n == 0) {
        // capabilities this kernel does not know answer EINVAL
        rows.push(
            Call::new(
                libc::SYS_prctl,
                vec![
                    Arg::Named(24, "PR_CAPBSET_DROP".into()),
                    Arg::Named(cap, names::capability(cap as u32)),
                ],
            )
            .any(),
        );
    }
    rows.push(prctl(28, "PR_SET_SECUREBITS", &[u64::from(c.secbits)]));
    rows.push(capset(c, more));
    rows.push(prctl(47, "PR_CAP_AMBIENT(CLEAR_ALL)", &[4, 0, 0, 0]).any());
    for cap in (0..CAPS).filter(|n| amb & 1 << n != 0) {
        rows.push(prctl(47, "PR_CAP_AMBIENT(RAISE)", &[2, cap, 0, 0]));
    }
}

/// The capability sets of the image, and `more` in the effective and permitted ones.
fn capset(c: &pb::CredsEntry, more: u64) -> Call {
    let sets = [
        set(&c.cap_eff) | more,
        set(&c.cap_prm) | more,
        set(&c.cap_inh),
    ];
    let mut data = Vec::new();
    for half in [0, 32] {
        for s in sets {
            data.extend_from_slice(&((s >> half) as u32).to_le_bytes());
        }
    }
    // _LINUX_CAPABILITY_VERSION_3, of oneself
    let head = 0x2008_0522u32.to_le_bytes().into_iter().chain([0; 4]);
    Call::new(
        libc::SYS_capset,
        vec![Arg::In(head.collect()), Arg::In(data)],
    )
}

/// A filter and those before it, oldest first.
fn seccomp(last: Option<u32>, filters: &[pb::SeccompFilter], rows: &mut Vec<Call>) -> Result<()> {
    let bad = |why: &str| {
        Error::new("E5011", Blame::Image, "seccomp.img")
            .why(why)
            .advice("dump again")
    };
    let mut chain = Vec::new();
    let mut at = last;
    while let Some(i) = at {
        let f = filters
            .get(i as usize)
            .ok_or_else(|| bad("a thread names a filter that is not there"))?;
        if chain.len() > filters.len() {
            return Err(bad("filters name each other in a circle"));
        }
        if f.filter.is_empty() || f.filter.len() % 8 != 0 || f.filter.len() / 8 > 4096 {
            return Err(bad("a filter is not 1 to 4096 instructions"));
        }
        chain.push(f);
        at = f.prev;
    }
    for f in chain.iter().rev() {
        let n = (f.filter.len() / 8) as u16;
        let mut head = n.to_le_bytes().to_vec();
        head.resize(8, 0);
        let prog = Arg::Struct(vec![
            Part::Bytes(head),
            Part::Ptr(Arg::In(f.filter.clone())),
        ]);
        rows.push(Call::new(
            libc::SYS_seccomp,
            vec![
                Arg::Named(1, "SECCOMP_SET_MODE_FILTER".into()),
                Arg::Hex(u64::from(f.flags.unwrap_or(0))),
                prog,
            ],
        ));
    }
    Ok(())
}
