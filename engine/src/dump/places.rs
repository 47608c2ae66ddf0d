//! Which namespaces the tree lives in: the engine's, or some of its own, which are dumped too.
use crate::error::{Blame, Error, Result};
use crate::kinds::DumpCx;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::{Kind, pb};
use std::collections::BTreeMap;

/// Numbers below are those of the engine's namespaces.
const FIRST_OWN: u32 = 10;

/// Namespaces met so far.
#[derive(Default)]
pub struct Places {
    engine: BTreeMap<Ns, u64>,
    root: BTreeMap<Ns, u64>,
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

impl Places {
    /// Notes where a task lives; the root of the tree comes first, and all others must live where it does.
    ///
    /// # Errors
    /// E4011: a task elsewhere. E4801: a pid namespace of which the root is not the first process.
    pub fn meet(&mut self, links: &[(&'static str, u64)], own_pid: u32) -> Result<()> {
        let of = |name: &str| links.iter().find(|(n, _)| *n == name).map(|l| l.1);
        let first = self.root.is_empty();
        if first {
            let own = ProcDir::open(HostPid::own())?.ns_links()?;
            let engine = |ns: Ns| Some((ns, own.iter().find(|(n, _)| *n == ns.name())?.1));
            self.engine = Ns::ALL.into_iter().filter_map(engine).collect();
            let root = |ns: Ns| Some((ns, of(ns.name())?));
            self.root = Ns::ALL.into_iter().filter_map(root).collect();
        }
        for (ns, must) in &self.root {
            let children = format!("{}_for_children", ns.name());
            for name in [ns.name(), &children] {
                if of(name).is_some_and(|ino| ino != *must) {
                    return Err(Error::new(
                        "E4011",
                        Blame::Container,
                        format!(
                            "its {name} namespace is another than that of the root of the tree"
                        ),
                    )
                    .why(
                        "trees with several namespaces of a sort are not supported by this version",
                    )
                    .advice("dump the processes that live there as a tree of their own"));
                }
            }
        }
        if first && self.is_own(Ns::Pid) && own_pid != 1 {
            return Err(Error::new(
                "E4801",
                Blame::Container,
                format!("it is process {own_pid} of a pid namespace that is not the engine's"),
            )
            .why("a pid namespace can only be made again with its first process")
            .advice("dump from process 1 of that namespace, or run stasis inside it (nsenter --pid --mount)"));
        }
        Ok(())
    }
    /// Is it another than the engine's?
    pub fn is_own(&self, ns: Ns) -> bool {
        self.root.get(&ns) != self.engine.get(&ns)
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
        let all = self.root.iter();
        all.map(|(ns, ino)| (*ino, (*ns, self.id(*ns)))).collect()
    }
    /// Ids for the image of a task.
    pub fn ids(&self) -> pb::TaskKobjIdsEntry {
        entry(|ns| self.id(ns))
    }
    /// Dumps what is in the namespaces of one sort, unless they are the engine's or left to the caller.
    ///
    /// # Errors
    /// Contents that cannot be carried.
    pub fn dump(&self, cx: &mut DumpCx, ns: Ns, root: HostPid) -> Result<()> {
        if !self.is_own(ns) {
            return Ok(());
        }
        let id = self.id(ns);
        let ino = self.root.get(&ns).copied().unwrap_or(0);
        let mut external = cx.options.namespaces.external.iter();
        match external.find(|(name, i, _)| name == ns.name() && *i == ino) {
            Some((_, _, key)) => left_to_caller(cx, ns, id, key),
            None => crate::namespaces::dump(cx, ns, id, root),
        }
    }
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
