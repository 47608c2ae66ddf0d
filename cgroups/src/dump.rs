//! What a dump writes down of control groups: `cgroup.img`.
//!
//! Tasks are in *sets*: one group per hierarchy. A set that is that of the engine itself is only numbered: at restore such a
//! task stays where it is restored. Of the others the groups are described, with all groups below them and what is set there.
use crate::error::{Error, Result, Side};
use crate::props::{BY_LINE, Props, WITHOUT_VALUE};
use crate::view::{self, Hierarchy, View, names};
use rustix::fs::{AtFlags, Dir, FileType};
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::{self, Ns};
use stasis_kernel::procfs::ProcDir;
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use tracing::debug;

/// Deepest tree of groups that is looked at, in levels.
pub(crate) const DEEPEST: usize = 64;

/// Which groups a task is in: controller and path, for the hierarchies we see.
type Groups = BTreeMap<String, String>;

/// What the collector is told by the caller's options.
#[derive(Debug, Clone, Default)]
pub struct What {
    /// Which settings.
    pub props: Props,
    /// Roots other than the tasks' own groups: controller ("" is cgroup v2; none: all) and path; also groups without tasks
    /// below them are dumped.
    pub roots: Vec<(Option<String>, String)>,
}

/// Collects the groups of a tree.
#[derive(Debug)]
pub struct Collector {
    view: View,
    what: What,
    /// The engine's groups; set number [`Collector::OWN`].
    own: Groups,
    /// Sets met so far (with the namespace they were seen from) and their numbers.
    sets: Vec<(Groups, u64, u32)>,
    /// Roots of cgroup namespaces, by inode number: per controller.
    roots: BTreeMap<u64, Groups>,
    /// Per group of cgroup v2 whether threads of a process can be in different ones.
    threaded: BTreeMap<String, bool>,
    /// Groups known to run: controller and path.
    running: BTreeSet<(String, String)>,
    /// Groups that were frozen before the dump froze or thawed anything, by device and inode number of the directory.
    frozen: Vec<(u64, u64)>,
}

impl Collector {
    /// The number of the engine's own set (`root_cg_set` of the inventory).
    pub const OWN: u32 = 1;

    /// Looks at nothing but the engine itself.
    ///
    /// # Errors
    /// Failures to read /proc.
    pub fn new(view: View, what: What) -> Result<Self> {
        let mut c = Self {
            view,
            what,
            own: Groups::new(),
            sets: Vec::new(),
            roots: BTreeMap::new(),
            threaded: BTreeMap::new(),
            running: BTreeSet::new(),
            frozen: Vec::new(),
        };
        c.own = c.groups(&ProcDir::open(HostPid::own())?)?;
        Ok(c)
    }
    /// Groups that were frozen before anybody touched them; else `cgroup.freeze` is described as it is read.
    pub fn frozen_before(&mut self, freezer: &crate::Freezer) {
        self.frozen = freezer.frozen_before().to_vec();
    }
    /// Is the group of this task one that runs? A seized task of a frozen one answers nothing.
    ///
    /// # Errors
    /// E4444: it is frozen.
    pub fn runs(&mut self, leader: &ProcDir) -> Result<()> {
        let groups = self.groups(leader)?;
        for (controller, file, frozen) in [
            ("", "cgroup.events", "frozen 1"),
            ("freezer", "freezer.state", "FROZEN"),
        ] {
            let (Some(group), Some(h)) = (groups.get(controller), self.view.of(controller)) else {
                continue;
            };
            let seen = (controller.to_string(), group.clone());
            if !self.running.insert(seen) {
                continue;
            }
            let text = view::read(h.open(group)?.as_fd(), file, group)?.unwrap_or_default();
            if text.lines().any(|l| l == frozen) {
                return Err(Error::new(
                    "E4444",
                    Side::Container,
                    format!(
                        "task {} is in control group {}",
                        leader.pid().0,
                        h.path(group)
                    ),
                    "that group is frozen (paused), so its tasks cannot be asked anything",
                    "name the frozen group with --freeze-cgroup: it is frozen again afterwards; or thaw it",
                ));
            }
        }
        Ok(())
    }
    /// The number of the set a thread is in. `thread` is its folder in /proc, `ns` the inode number of its cgroup namespace
    /// if that is not the engine's.
    ///
    /// # Errors
    /// E4440: its group is outside of what its namespace shows. Failures to read /proc.
    pub fn set_of(&mut self, thread: &ProcDir, ns: Option<u64>) -> Result<u32> {
        let groups = self.groups(thread)?;
        let at = ns.unwrap_or(0);
        if let Some((_, _, id)) = self.sets.iter().find(|(g, n, _)| *g == groups && *n == at) {
            return Ok(*id);
        }
        if groups == self.own && ns.is_none() {
            return Ok(Self::OWN);
        }
        if let Some(ns) = ns
            && !self.roots.contains_key(&ns)
        {
            let roots = self.roots_of(thread, &groups)?;
            self.roots.insert(ns, roots);
        }
        let id = self.sets.len() as u32 + 1 + Self::OWN;
        debug!("set {id} of control groups: {groups:?}");
        self.sets.push((groups, at, id));
        Ok(id)
    }
    /// May threads be in other groups than their process in any hierarchy, whatever group that is in (cgroup v1)?
    pub fn is_by_thread(&self) -> bool {
        self.view.hierarchies.iter().any(|h| !h.is_v2())
    }
    /// Can other threads of this process be in other groups? Else the leader's set is that of all.
    ///
    /// # Errors
    /// Failures to read /proc.
    pub fn may_differ(&mut self, leader: &ProcDir) -> Result<bool> {
        if self.is_by_thread() {
            return Ok(true);
        }
        let groups = self.groups(leader)?;
        let (Some(group), Some(h)) = (groups.get(""), self.view.of("")) else {
            return Ok(false);
        };
        if let Some(t) = self.threaded.get(group) {
            return Ok(*t);
        }
        let dir = h.open(group)?;
        let kind = view::read(dir.as_fd(), "cgroup.type", group)?.unwrap_or_default();
        // "domain threaded" or "threaded"
        let threaded = kind.contains("threaded");
        self.threaded.insert(group.clone(), threaded);
        Ok(threaded)
    }
    /// The groups of a thread in the hierarchies we see.
    fn groups(&self, thread: &ProcDir) -> Result<Groups> {
        let mut all = Groups::new();
        for line in thread.cgroup()? {
            let names = names(&line);
            let Some(h) = self.view.of(&names[0]) else {
                continue;
            };
            let path = String::from_utf8_lossy(&line.path).into_owned();
            if h.below(&path).is_none() {
                debug!("group {path} of {names:?} is not below what is mounted: left alone");
                continue;
            }
            if line.deleted {
                let pid = thread.pid().0;
                return Err(Error::new(
                    "E4441",
                    Side::Container,
                    format!("control group {path} of task {pid}"),
                    "it was removed while the task was still in it",
                    "move the task to a group that exists (write its pid to cgroup.procs there)",
                ));
            }
            for n in names {
                all.insert(n, path.clone());
            }
        }
        Ok(all)
    }
    /// The root of a thread's cgroup namespace in each hierarchy.
    fn roots_of(&self, thread: &ProcDir, groups: &Groups) -> Result<Groups> {
        let pid = thread.pid();
        let look = || {
            ProcDir::open(pid)
                .map_err(stasis_kernel::error::Error::from)?
                .cgroup()
        };
        let inside = ns::visit_task(pid, &[Ns::Cgroup], look)??;
        let mut roots = Groups::new();
        for line in inside {
            let path = String::from_utf8_lossy(&line.path);
            for n in names(&line) {
                let Some(full) = groups.get(&n) else { continue };
                let outside = || {
                    Error::new(
                        "E4440",
                        Side::Container,
                        format!("control group {full} of task {}", pid.0),
                        format!(
                            "it is outside of the task's cgroup namespace, which shows it as {path}"
                        ),
                        "move the task into a group below the root of its namespace",
                    )
                };
                let root = match path.as_ref() {
                    "/" => full.as_str(),
                    p => full.strip_suffix(p).ok_or_else(outside)?,
                };
                roots.insert(n, root.to_string());
            }
        }
        Ok(roots)
    }
    /// Describes everything met. An empty entry if all tasks are where the engine is.
    ///
    /// # Errors
    /// Failures to look at groups.
    pub fn finish(&self) -> Result<pb::CgroupEntry> {
        let mut entry = pb::CgroupEntry::default();
        for (groups, ns, id) in &self.sets {
            let roots = self.roots.get(ns);
            let wanted = groups.iter().filter(|(n, _)| self.wants(n));
            let ctls = wanted.map(|(name, path)| {
                let root = roots.and_then(|r| r.get(name)).map_or(0, String::len);
                pb::CgMemberEntry {
                    name: name.clone(),
                    path: path.clone(),
                    cgns_prefix: (root > 1).then_some(root as u32),
                }
            });
            entry.sets.push(pb::CgSetEntry {
                id: *id,
                ctls: ctls.collect(),
            });
        }
        for h in &self.view.hierarchies {
            if !self.sets.is_empty() && self.what.props.wants(h) {
                entry.controllers.push(self.controller(h)?);
            }
        }
        Ok(entry)
    }
    fn wants(&self, controller: &str) -> bool {
        let h = self.view.of(controller);
        h.is_some_and(|h| self.what.props.wants(h))
    }
    /// The groups of one hierarchy: those of the tasks, without such as are below another one.
    fn controller(&self, h: &Hierarchy) -> Result<pb::CgControllerEntry> {
        let of = |g: &Groups| g.get(&h.names[0]).cloned();
        let mut tops: Vec<String> = self.sets.iter().filter_map(|(g, _, _)| of(g)).collect();
        // the root of a namespace is needed to make the namespace, and may have groups beside those of the tasks
        tops.extend(self.roots.values().filter_map(of));
        for (controller, path) in &self.what.roots {
            if controller.as_ref().is_none_or(|c| h.has(c)) && h.try_open(path).is_ok() {
                tops.push(path.clone());
            }
        }
        tops.sort();
        tops.dedup();
        let all = tops.clone();
        tops.retain(|t| {
            let inside = |of: &String| {
                of != "/"
                    && t.strip_prefix(of.as_str())
                        .is_some_and(|r| r.starts_with('/'))
            };
            !all.iter().any(inside)
        });
        let mut threaded = !h.is_v2();
        let mut dirs = Vec::new();
        for top in &tops {
            let dir = h.open(top)?;
            let name = top.trim_matches('/').to_string();
            // the whole hierarchy is the machine's, not the tree's
            let deep = if top == "/" { 0 } else { DEEPEST };
            dirs.push(self.group(h, name, dir, &h.path(top), deep, &mut threaded)?);
        }
        Ok(pb::CgControllerEntry {
            cnames: h.names.clone(),
            dirs,
            is_threaded: Some(threaded),
        })
    }
    fn group(
        &self,
        h: &Hierarchy,
        name: String,
        dir: OwnedFd,
        shown: &str,
        deep: usize,
        threaded: &mut bool,
    ) -> Result<pb::CgroupDirEntry> {
        let told = |call, e| Error::call(call, e, shown);
        let stat = rustix::fs::fstat(&dir).map_err(|e| told("fstat", e))?;
        let (mut files, mut below) = (Vec::new(), Vec::new());
        for entry in Dir::read_from(&dir).map_err(|e| told("getdents64", e))? {
            let entry = entry.map_err(|e| told("getdents64", e))?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            match entry.file_type() {
                FileType::RegularFile => files.push(name.to_string()),
                FileType::Directory if name != "." && name != ".." => below.push(name.to_string()),
                _ => {}
            }
        }
        below.sort();
        let mut properties = Vec::new();
        for f in self.what.props.files(h, &files) {
            self.property(&dir, &f, &stat, shown, &mut properties)?;
        }
        let is_threaded =
            |p: &pb::CgroupPropEntry| p.name == "cgroup.type" && p.value == "threaded";
        *threaded |= properties.iter().any(is_threaded);
        let mut children = Vec::new();
        for name in below.into_iter().filter(|_| deep > 0) {
            let shown = format!("{shown}/{name}");
            let flags = rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::NOFOLLOW
                | rustix::fs::OFlags::CLOEXEC;
            match rustix::fs::openat(&dir, &name, flags, rustix::fs::Mode::empty()) {
                Ok(sub) => children.push(self.group(h, name, sub, &shown, deep - 1, threaded)?),
                // removed meanwhile: nobody of the tree is in it
                Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(Error::call("openat", e, shown)),
            }
        }
        Ok(pb::CgroupDirEntry {
            dir_name: name,
            children,
            properties,
            dir_perms: Some(perms(&stat)),
        })
    }
    fn property(
        &self,
        dir: &OwnedFd,
        file: &str,
        group: &rustix::fs::Stat,
        shown: &str,
        out: &mut Vec<pb::CgroupPropEntry>,
    ) -> Result<()> {
        let Ok(stat) = rustix::fs::statat(dir, file, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(());
        };
        let mut put = |value: String| {
            out.push(pb::CgroupPropEntry {
                name: file.to_string(),
                value,
                perms: Some(perms(&stat)),
            });
        };
        if WITHOUT_VALUE.contains(&file) {
            put(String::new());
            return Ok(());
        }
        if file == "cgroup.freeze" && self.frozen.contains(&(group.st_dev, group.st_ino)) {
            put("1".into());
            return Ok(());
        }
        let Some(text) = view::read(dir.as_fd(), file, shown)? else {
            return Ok(());
        };
        match file {
            // "oom_kill_disable 0", "under_oom 0": only the first can be set, and is set as a number
            "memory.oom_control" => {
                let first = text.lines().next().and_then(|l| l.split_once(' '));
                put(first.map_or(text.trim_end(), |(_, v)| v).to_string());
            }
            f if BY_LINE.contains(&f) => text.lines().for_each(|l| put(l.to_string())),
            _ => {
                let value = text.trim_end().to_string();
                // nothing can be written that says "nothing", but for what CRIU writes down too
                if !value.is_empty() || file.starts_with("cgroup.") || file == "devices.list" {
                    put(value);
                }
            }
        }
        Ok(())
    }
}

fn perms(s: &rustix::fs::Stat) -> pb::CgroupPerms {
    pb::CgroupPerms {
        mode: s.st_mode,
        uid: s.st_uid,
        gid: s.st_gid,
    }
}
