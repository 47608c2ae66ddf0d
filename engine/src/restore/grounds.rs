//! The namespaces a tree is restored into: which are made, which are joined, and the rows by which the first stub goes there.
//!
//! Namespaces that only tasks below the root have are made by workers: see [`super::homes`].
//!
//! The stub goes alone: first into namespaces the caller gave, then into a user namespace of its own, then it makes the
//! others, which belong to that one. All tasks are born of it and inherit them. A pid namespace is made by the birth of its
//! first task, whose number in it is 1.
use super::homes::Homes;
use super::images::Images;
use super::privileges::Groups;
use super::users::Users;
use crate::error::{Blame, Error, Result};
use crate::options::Options;
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::ns::Ns;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a tree comes to live.
#[derive(Debug, Clone, Default)]
pub struct Grounds {
    /// Namespaces made anew, with their ids in the image.
    pub fresh: Vec<(Ns, u32)>,
    /// Namespaces the caller gave, each by a path that leads to its handle.
    pub joined: Vec<(Ns, PathBuf)>,
    /// Pids, in the tree's pid namespace, of the engine's workers there: one for each home. Empty if they may have any.
    pub workers: Vec<i32>,
    /// Where tasks live.
    pub homes: Homes,
    /// User namespaces below the tree's.
    pub users: Users,
}

impl Grounds {
    /// From the images and what the caller says.
    ///
    /// # Errors
    /// Namespaces that cannot be made, or external ones that the caller did not give.
    pub fn plan(o: &Options, dir: &ImageDir, images: &Images) -> Result<Self> {
        let mut g = Grounds {
            users: images.users.clone(),
            ..Grounds::default()
        };
        for (name, path) in &o.namespaces.join {
            let Some(ns) = Ns::by_name(name) else {
                return Err(Error::new(
                    "E2030",
                    Blame::Caller,
                    format!("--join-ns {name}:{}", path.display()),
                )
                .why("there is no such sort of namespace")
                .advice("name one of user, pid, mnt, net, ipc, uts, cgroup, time"));
            };
            g.joined.push((ns, handle(ns, path)));
        }
        for (ns, id) in &images.own_namespaces {
            if g.joined.iter().any(|j| j.0 == *ns) {
                continue;
            }
            match external(dir, *ns, *id)? {
                Some(key) => {
                    let fd = o.namespaces.inherit.iter().find(|i| i.0 == key);
                    let Some((_, fd)) = fd else {
                        return Err(Error::new(
                            "E2031",
                            Blame::Caller,
                            format!("the tree's {} namespace is external: {key}", ns.name()),
                        )
                        .why("it was left to the caller at the dump, who gives none now")
                        .advice(format!("pass --inherit-fd 'fd[N]:{key}' with an open namespace file, or --join-ns {}:PATH", ns.name())));
                    };
                    let own = std::process::id();
                    g.joined.push((*ns, format!("/proc/{own}/fd/{fd}").into()));
                }
                None => g.fresh.push((*ns, *id)),
            }
        }
        g.confine(o)?;
        let root = &images.tasks[0].entry;
        if g.makes(Ns::Pid) && root.pid != 1 {
            return Err(Error::new(
                "E5850",
                Blame::Image,
                format!("task {} is the first of a pid namespace", root.pid),
            )
            .why("the kernel gives number 1 to that task")
            .advice("dump the tree from the first process of its pid namespace"));
        }
        // users first: rights over the others come from there
        g.joined.sort_by_key(|j| j.0);
        g.fresh.sort_by_key(|f| f.0);
        g.homes = Homes::of(images, g.makes(Ns::Mnt));
        if g.makes(Ns::Pid) {
            let used: std::collections::BTreeSet<u32> = images
                .tasks
                .iter()
                .flat_map(|t| {
                    let e = &t.entry;
                    [e.pid, e.sid, e.pgid].into_iter().chain(e.threads.clone())
                })
                .collect();
            // high ones: sockets tell of processes that have ended, whose numbers are taken for a moment to say so
            g.workers = (2..highest_pid())
                .rev()
                .filter(|n| !used.contains(n))
                .map(|n| n as i32)
                .take(g.homes.all.len())
                .collect();
        }
        Ok(g)
    }
    /// An image does not choose to live outside of the namespaces that the caller has for it: a tree for which a root is given has
    /// mounts of its own, or it would run on the machine's.
    fn confine(&self, o: &Options) -> Result<()> {
        let asked = o.namespaces.required.iter().filter_map(|n| Ns::by_name(n));
        let rooted = o.mounts.root.as_ref().filter(|r| r.as_os_str() != "/");
        for ns in asked.chain(rooted.map(|_| Ns::Mnt)) {
            if !self.has(ns) {
                return Err(Error::new(
                    "E5855",
                    Blame::Image,
                    format!("the tree has no {} namespace of its own", ns.name()),
                )
                .why("the caller has one for it: it would run in the machine's instead")
                .advice("restore what was dumped from such a container, or leave --root out for a tree that is none"));
            }
        }
        if o.namespaces.id_maps.is_some() && !self.has(Ns::User) {
            return Err(Error::new(
                "E5855",
                Blame::Image,
                "the maps of the container's user namespace",
            )
            .why("the caller gives some, and the tree of the image has no user namespace: its users would be the machine's")
            .advice("restore with the bundle the container was made from"));
        }
        Ok(())
    }
    /// What becomes of supplementary groups there.
    ///
    /// # Errors
    /// A damaged image, or /proc cannot be read.
    pub fn groups(&self, dir: &ImageDir) -> Result<Groups> {
        let denied = match self.made(Ns::User) {
            Some(id) => crate::namespaces::user::load(dir, id)?.denies_groups(),
            None if self.has(Ns::User) => false,
            // a kernel without user namespaces has no such file
            None => std::fs::read("/proc/self/setgroups").is_ok_and(|t| t.starts_with(b"deny")),
        };
        Ok(match (denied, self.has(Ns::User)) {
            (false, _) => Groups::Set,
            (true, true) => Groups::Born,
            (true, false) => {
                let own = nix::unistd::getgroups().unwrap_or_default();
                Groups::These(own.into_iter().map(|g| g.as_raw()).collect())
            }
        })
    }
    /// Is this sort made anew?
    pub fn makes(&self, ns: Ns) -> bool {
        self.fresh.iter().any(|f| f.0 == ns)
    }
    /// The image's id of one that is made anew.
    pub fn made(&self, ns: Ns) -> Option<u32> {
        self.fresh.iter().find(|f| f.0 == ns).map(|f| f.1)
    }
    /// Is the namespace of this id made anew, for the root or for tasks below it?
    pub fn makes_id(&self, ns: Ns, id: u32) -> bool {
        let mut nested = self.homes.all.iter().filter(|h| h.makes.contains(&ns));
        self.made(ns) == Some(id) || nested.any(|h| h.ids.get(&ns) == Some(&id))
    }
    /// Is this sort another than the engine's?
    pub fn has(&self, ns: Ns) -> bool {
        self.makes(ns) || self.joined.iter().any(|j| j.0 == ns)
    }
    /// Does the tree live where the engine does? A time namespace does not count: nothing is opened there.
    pub fn are_ours(&self) -> bool {
        !Ns::ALL.iter().any(|n| *n != Ns::Time && self.has(*n))
    }
    /// Are all files opened where the engine is?
    pub fn are_simple(&self) -> bool {
        self.are_ours() && self.homes.are_one()
    }
    /// Namespaces that a home is the first to have and that belong to user namespaces below the tree's, by those.
    pub fn of_others(&self, home: usize) -> BTreeMap<u32, Vec<Ns>> {
        let home = &self.homes.all[home];
        let mut all: BTreeMap<u32, Vec<Ns>> = BTreeMap::new();
        for ns in home.makes.iter().filter(|ns| **ns != Ns::Cgroup) {
            if let Some(owner) = self.users.owner(*ns, home.ids[ns]) {
                all.entry(owner).or_default().push(*ns);
            }
        }
        all
    }
    /// What the worker of a home does to come there, one after the other: first it enters what a task of the root's home is in,
    /// then what others have made, then it makes the rest. Cgroup namespaces, and those of [`Grounds::of_others`], are made before.
    pub fn way_to(&self, home: usize) -> (Vec<Ns>, Vec<(Ns, u32)>, Vec<Ns>) {
        let way = self.homes.way(0, home);
        let mut makes = self.homes.all[home].makes.clone();
        let ids = &self.homes.all[home].ids;
        makes.retain(|ns| *ns != Ns::Cgroup && self.users.owner(*ns, ids[ns]).is_none());
        let stay = |ns: &Ns| !way.iter().any(|w| w.0 == *ns);
        let enter = self.for_worker().into_iter().filter(stay).collect();
        let join = way.iter().copied().filter(|w| !makes.contains(&w.0));
        (enter, join.collect(), makes)
    }
    /// What the worker enters: all but the clocks, which nothing it does depends on.
    pub fn for_worker(&self) -> Vec<Ns> {
        Ns::ALL
            .into_iter()
            .filter(|n| *n != Ns::Time && self.has(*n))
            .collect()
    }
    /// Rows by which the stub joins what the caller gave.
    pub fn joining(&self) -> Vec<Call> {
        let mut rows = Vec::new();
        for (ns, path) in &self.joined {
            let n = rows.len();
            use std::os::unix::ffi::OsStrExt;
            rows.push(Call::new(
                libc::SYS_openat,
                vec![
                    Arg::Named(libc::AT_FDCWD as u64, "AT_FDCWD".into()),
                    Arg::Str(path.as_os_str().as_bytes().to_vec()),
                    Arg::Named(
                        (libc::O_RDONLY | libc::O_CLOEXEC) as u64,
                        "O_RDONLY|O_CLOEXEC".into(),
                    ),
                    Arg::Int(0),
                ],
            ));
            rows.push(entering(Arg::Ret(n), *ns));
            rows.push(Call::new(libc::SYS_close, vec![Arg::Ret(n)]));
        }
        if self.joined.iter().any(|j| j.0 == Ns::User) {
            rows.extend(become_root());
        }
        rows
    }
    /// The row by which the stub makes a user namespace; the engine writes its maps then, and [`become_root`] follows.
    pub fn users(&self) -> Option<Call> {
        self.makes(Ns::User)
            .then(|| Call::new(libc::SYS_unshare, vec![flags(std::iter::once(Ns::User))]))
    }
    /// The row by which the stub makes the others, but for pids (made by the birth of the root) and clocks.
    pub fn making(&self) -> Option<Call> {
        let all: Vec<Ns> = self
            .fresh
            .iter()
            .map(|f| f.0)
            .filter(|n| !matches!(n, Ns::User | Ns::Pid | Ns::Time))
            .collect();
        (!all.is_empty()).then(|| Call::new(libc::SYS_unshare, vec![flags(all.into_iter())]))
    }
}

/// A number of a process may stand for its namespace.
fn handle(ns: Ns, path: &std::path::Path) -> PathBuf {
    match path.to_str().and_then(|p| p.parse::<u32>().ok()) {
        Some(pid) => format!("/proc/{pid}/ns/{}", ns.name()).into(),
        None => path.to_owned(),
    }
}

fn flags(of: impl Iterator<Item = Ns>) -> Arg {
    let all: Vec<Ns> = of.collect();
    let bits = all.iter().fold(0, |f, n| f | n.flag().bits() as u64);
    let names: Vec<_> = all
        .iter()
        .map(|n| {
            let upper = match n {
                Ns::Mnt => "NS".to_string(),
                n => n.name().to_uppercase(),
            };
            format!("CLONE_NEW{upper}")
        })
        .collect();
    Arg::Named(bits, names.join("|").into())
}

/// The row that enters a namespace of which the player has a handle.
pub fn entering(handle: Arg, ns: Ns) -> Call {
    Call::new(libc::SYS_setns, vec![handle, flags(std::iter::once(ns))])
}

/// Rows: uid and gid 0 of the user namespace the player is in.
pub fn become_root() -> Vec<Call> {
    let zero = || Arg::Int(0);
    let mut rows = vec![
        // a namespace that forbids it has none to give away
        Call::new(libc::SYS_setgroups, vec![zero(), Arg::Null]).any(),
        Call::new(libc::SYS_setresgid, vec![zero(), zero(), zero()]),
        Call::new(libc::SYS_setresuid, vec![zero(), zero(), zero()]),
    ];
    rows.extend(bound());
    rows
}

/// Rows: the player dies with its parent, and may be looked at.
///
/// KERNEL: a change of credentials takes both away (kernel/cred.c, commit_creds()).
pub fn bound() -> Vec<Call> {
    vec![
        Call::new(
            libc::SYS_prctl,
            vec![
                Arg::Named(1, "PR_SET_PDEATHSIG".into()),
                Arg::Named(libc::SIGKILL as u64, "SIGKILL".into()),
            ],
        ),
        Call::new(
            libc::SYS_prctl,
            vec![Arg::Named(4, "PR_SET_DUMPABLE".into()), Arg::Int(1)],
        ),
    ]
}

/// The key under which the caller keeps an external namespace, if it is one.
fn external(dir: &ImageDir, ns: Ns, id: u32) -> Result<Option<String>> {
    let key = match ns {
        Ns::Net => {
            let name = Kind::Netns.file_of(id);
            if !dir.exists(&name)? {
                return Ok(None);
            }
            dir.read_one::<pb::NetnsEntry>(&name)?.ext_key
        }
        Ns::Pid => {
            let name = Kind::Pidns.file_of(id);
            if !dir.exists(&name)? {
                return Ok(None);
            }
            dir.read_one::<pb::PidnsEntry>(&name)?.ext_key
        }
        _ => None,
    };
    Ok(key)
}

/// Numbers of processes are below this.
fn highest_pid() -> u32 {
    const DEFAULT: u32 = 32768;
    std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(DEFAULT)
}
