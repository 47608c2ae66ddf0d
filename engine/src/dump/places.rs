//! Which namespaces the tree lives in: the engine's, or some of its own, which are dumped too.
//!
//! Of some sorts a tree may have several: those of the first process, and others that processes below it have made.
use crate::error::{Blame, Error, Result};
use crate::kinds::DumpCx;
use crate::namespaces::mnt;
use stasis_kernel::error::SysError;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::{Kind, pb};
use std::collections::BTreeMap;

/// Numbers below are those of the engine's namespaces.
const FIRST_OWN: u32 = 10;
/// Numbers below are those of the first process's namespaces.
const FIRST_NESTED: u32 = 20;

/// A namespace of the tree's own.
struct Space {
    ns: Ns,
    ino: u64,
    /// Its number in the image.
    id: u32,
    /// A task that is in it.
    task: HostPid,
}

/// Namespaces met so far.
pub struct Places {
    engine: BTreeMap<Ns, u64>,
    root: BTreeMap<Ns, u64>,
    own: Vec<Space>,
    /// How many numbers of nested ones are given.
    nested: u32,
}

/// The image's number of a namespace of the engine.
fn engines(ns: Ns) -> u32 {
    match ns {
        Ns::Pid => 1,
        Ns::Net => 2,
        Ns::Ipc => 3,
        Ns::Uts => 4,
        Ns::Time => 5,
        Ns::Mnt => 6,
        Ns::User => 7,
        Ns::Cgroup => 8,
    }
}

/// The ids of the engine's own namespaces, for the inventory.
pub fn of_engine() -> pb::TaskKobjIdsEntry {
    entry(engines)
}

fn entry(id: impl Fn(Ns) -> u32) -> pb::TaskKobjIdsEntry {
    pb::TaskKobjIdsEntry {
        pid_ns_id: Some(id(Ns::Pid)),
        net_ns_id: Some(id(Ns::Net)),
        ipc_ns_id: Some(id(Ns::Ipc)),
        uts_ns_id: Some(id(Ns::Uts)),
        time_ns_id: Some(id(Ns::Time)),
        mnt_ns_id: Some(id(Ns::Mnt)),
        user_ns_id: Some(id(Ns::User)),
        cgroup_ns_id: Some(id(Ns::Cgroup)),
        ..Default::default()
    }
}

/// Is this the number of a namespace of the tree's own?
pub fn is_own(id: u32) -> bool {
    id >= FIRST_OWN
}

/// Is this the number of a namespace that only tasks below the root have?
pub fn is_nested(id: u32) -> bool {
    id >= FIRST_NESTED
}

impl Places {
    /// None is met yet.
    ///
    /// # Errors
    /// /proc of the engine cannot be read.
    pub fn new() -> Result<Self> {
        let own = ProcDir::open(HostPid::own())?.ns_links()?;
        let engine = |ns: Ns| Some((ns, own.iter().find(|(n, _)| *n == ns.name())?.1));
        Ok(Self {
            engine: Ns::ALL.into_iter().filter_map(engine).collect(),
            root: BTreeMap::new(),
            own: Vec::new(),
            nested: 0,
        })
    }
    /// Notes where a task lives; the root of the tree comes first. Gives the ids for its image.
    ///
    /// # Errors
    /// E4011: it is where it cannot be brought back. E4801: a pid namespace of which the root is not the first process.
    pub fn meet(
        &mut self,
        task: HostPid,
        links: &[(&'static str, u64)],
        own_pid: u32,
    ) -> Result<pb::TaskKobjIdsEntry> {
        let of = |name: &str| links.iter().find(|(n, _)| *n == name).map(|l| l.1);
        let mut ids = BTreeMap::new();
        for ns in Ns::ALL {
            let Some(ino) = of(ns.name()) else { continue };
            ids.insert(ns, self.space(task, ns, ino)?);
            let children = of(&format!("{}_for_children", ns.name()));
            // pids: see `PidSpaces`
            if ns != Ns::Pid && children.is_some_and(|c| c != ino) {
                return Err(elsewhere(&format!("{}_for_children", ns.name()))
                    .why("its children would be born in a namespace that it is not in itself"));
            }
        }
        let of_root = |s: &Space| s.ns == Ns::Pid && s.task == task && !is_nested(s.id);
        if own_pid != 1 && self.own.iter().any(of_root) {
            return Err(Error::new(
                "E4801",
                Blame::Container,
                format!("it is process {own_pid} of a pid namespace that is not the engine's"),
            )
            .why("a pid namespace can only be made again with its first process")
            .advice("dump from process 1 of that namespace, or run stasis inside it (nsenter --pid --mount)"));
        }
        Ok(entry(|ns| {
            ids.get(&ns).copied().unwrap_or_else(|| engines(ns))
        }))
    }
    /// The image's number of a namespace that a task is in; the root of the tree comes first.
    ///
    /// # Errors
    /// E4011, as for [`Places::meet`].
    pub fn space(&mut self, task: HostPid, ns: Ns, ino: u64) -> Result<u32> {
        if let Some(s) = self.own.iter().find(|s| (s.ns, s.ino) == (ns, ino)) {
            return Ok(s.id);
        }
        let engines_own = self.engine.get(&ns) == Some(&ino);
        let first = match self.engine.get(&ns) {
            // pids are chosen outside of such a user namespace, so that is where the tree begins
            Some(engine) if ns == Ns::User && !self.is_own(Ns::Pid) => *engine,
            _ => ino,
        };
        let first = *self.root.entry(ns).or_insert(first) == ino;
        let id = match (engines_own, first) {
            (true, true) => return Ok(engines(ns)),
            (true, false) => {
                return Err(elsewhere(ns.name()).why(
                    "it is in the engine's namespace, and the root of the tree is in one of its own",
                ));
            }
            (false, true) => FIRST_OWN + engines(ns),
            // a tree may have several
            (false, false) => self.next(),
        };
        self.own.push(Space { ns, ino, id, task });
        Ok(id)
    }
    /// The next number of a namespace that only tasks below the root have.
    fn next(&mut self) -> u32 {
        self.nested += 1;
        FIRST_NESTED + self.nested - 1
    }
    /// Tasks in user namespaces below the tree's, one for each, with their numbers.
    pub fn nested_users(&self) -> Vec<(u32, HostPid)> {
        let all = self.own.iter().filter(|s| s.ns == Ns::User);
        let nested = all.filter(|s| is_nested(s.id));
        nested.map(|s| (s.id, s.task)).collect()
    }
    /// The number of a user namespace below the tree's, whether any task is in it or not.
    pub fn user_space(&mut self, ino: u64) -> u32 {
        let known = self.own.iter().find(|s| (s.ns, s.ino) == (Ns::User, ino));
        match known.map(|s| s.id) {
            Some(id) => id,
            None => self.next(),
        }
    }
    /// The tree's own namespaces of other sorts: number, and a task that is there.
    pub fn others(&self) -> Vec<(Ns, u32, HostPid)> {
        let all = self.own.iter().filter(|s| s.ns != Ns::User);
        all.map(|s| (s.ns, s.id, s.task)).collect()
    }
    /// Is it the first process's?
    pub fn is_roots(&self, ns: Ns, ino: u64) -> bool {
        self.root.get(&ns) == Some(&ino)
    }
    /// Is it the engine's?
    pub fn is_engines(&self, ns: Ns, ino: u64) -> bool {
        self.engine.get(&ns) == Some(&ino)
    }
    /// Is it another than the engine's?
    pub fn is_own(&self, ns: Ns) -> bool {
        self.root.get(&ns) != self.engine.get(&ns)
    }
    /// Is the namespace of this task another than the engine's?
    ///
    /// # Errors
    /// The task is gone.
    pub fn is_owned_by(&self, t: &ProcDir, ns: Ns) -> Result<bool> {
        Ok(self.engine.get(&ns) != Some(&t.ns(ns.name())?))
    }
    /// The image's number of the tree's.
    pub fn id(&self, ns: Ns) -> u32 {
        match self.is_own(ns) {
            true => FIRST_OWN + engines(ns),
            false => engines(ns),
        }
    }
    /// The tree's namespaces by inode number.
    pub fn by_inode(&self) -> BTreeMap<u64, (Ns, u32)> {
        let roots = self
            .root
            .iter()
            .map(|(ns, ino)| (*ino, (*ns, self.id(*ns))));
        let own = self.own.iter().map(|s| (s.ino, (s.ns, s.id)));
        roots.chain(own).collect()
    }
    /// The tree's own mount namespaces, the root's first.
    pub fn mounts(&self) -> Vec<mnt::Place> {
        let mounts = self.own.iter().filter(|s| s.ns == Ns::Mnt);
        let place = |s: &Space| mnt::Place {
            id: s.id,
            ino: s.ino,
            task: s.task,
        };
        mounts.map(place).collect()
    }
    /// The numbers of the tree's own time namespaces, each with a task that is in it.
    pub fn clocks(&self) -> Vec<(u32, HostPid)> {
        let all = self.own.iter().filter(|s| s.ns == Ns::Time);
        all.map(|s| (s.id, s.task)).collect()
    }
    /// Dumps what is in the namespaces of one sort, unless they are the engine's or left to the caller.
    ///
    /// # Errors
    /// Contents that cannot be carried.
    pub fn dump(&self, cx: &mut DumpCx, ns: Ns) -> Result<()> {
        let own = || self.own.iter().filter(|s| s.ns == ns);
        let all = match ns {
            Ns::Net => own().map(|s| Ok((s.id, ns.of(s.task)?))).collect(),
            _ => Ok(Vec::new()),
        };
        let all = all.map_err(|e: SysError| Error::from(e))?;
        // user namespaces below the tree's: see `UserSpaces`
        for s in own().filter(|s| ns != Ns::User || !is_nested(s.id)) {
            let mut external = cx.options.namespaces.external.iter();
            match external.find(|(name, i, _)| name == ns.name() && *i == s.ino) {
                // its first process is in the tree: nobody else can have made it
                Some(_) if ns == Ns::Pid && is_nested(s.id) => {
                    return Err(elsewhere(ns.name()).why("a pid namespace in which the tree begins none is not one for the caller to give"));
                }
                Some((_, _, key)) => left_to_caller(cx, ns, s.id, key)?,
                None => crate::namespaces::dump(cx, ns, (s.id, s.task), &all)?,
            }
        }
        Ok(())
    }
}

pub(super) fn elsewhere(name: &str) -> Error {
    Error::new(
        "E4011",
        Blame::Container,
        format!("its {name} namespace is another than that of the root of the tree"),
    )
    .advice("dump the processes that live there as a tree of their own")
}

fn left_to_caller(cx: &DumpCx, ns: Ns, id: u32, key: &str) -> Result<()> {
    let ext_key = Some(key.to_string());
    match ns {
        Ns::Net => {
            let e = pb::NetnsEntry {
                ext_key,
                ..Default::default()
            };
            Ok(cx.dir.write_one(&Kind::Netns.file_of(id), &e)?)
        }
        Ns::Pid => {
            let e = pb::PidnsEntry { ext_key };
            Ok(cx.dir.write_one(&Kind::Pidns.file_of(id), &e)?)
        }
        _ => Err(Error::new(
            "E2032",
            Blame::Caller,
            format!("--external {}[...]:{key}", ns.name()),
        )
        .why("the image format knows external namespaces of sort net and pid only")
        .advice("leave it out, and join the namespace at restore (--join-ns)")),
    }
}
