//! How groups come back: what is to be made ([`Plan`], pure), and the making ([`Groups`]).
//!
//! Nothing an image says is believed: names are single plain components, settings are those of the table in `props` or named by
//! the caller, the root of a hierarchy is never changed, and every file is opened beneath the mount without following links.
//!
//! Order matters to the kernel:
//! - a group is made *threaded* before anybody is in it;
//! - cpus and memory nodes of a v1 cpuset come before its first task;
//! - the root of a cgroup namespace is the group its maker was in, so the first task goes there, makes it, and goes on;
//! - controllers are enabled for groups below when no task is in the group any more (cgroup v2, "no internal processes"), and
//!   before their settings exist in those groups;
//! - a group is frozen when all is done.
//!
//! The file is long because plan and making stand side by side: what the one promises the other relies on.
use crate::dump::DEEPEST;
use crate::error::{Error, Result, Side};
use crate::props::{BY_LINE, Props, WITHOUT_VALUE};
use crate::view::{self, Hierarchy, View};
use rustix::fs::{Gid, Mode as FileMode, Uid};
use rustix::io::Errno;
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::pb;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Longest path of a group, in bytes.
const LONGEST_PATH: usize = 4096;
/// Longest value of a setting, in bytes: a write(2) of kernfs takes no more than a page; lists are written line by line.
const LONGEST_VALUE: usize = 1 << 16;
/// How long a group may stay busy with tasks that were killed.
const EMPTYING: Duration = Duration::from_millis(500);

/// What is done about groups (`--manage-cgroups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing is made or set, nobody is moved.
    Ignore,
    /// Groups must be there; nothing is set.
    None,
    /// Groups must be there; properties are set.
    Props,
    /// Missing groups are made, and properties set on those; the rule if nothing is said.
    #[default]
    Soft,
    /// Missing groups are made, and all properties set.
    Full,
    /// Groups must not be there.
    Strict,
}

/// New roots (`--cgroup-root`): controller ("" is cgroup v2; none: all hierarchies that no other root names) and path.
pub type Roots = [(Option<String>, String)];

/// One group to be found or made.
#[derive(Debug, Clone)]
struct Dir {
    /// From the root of the hierarchy: `/a/b`.
    path: String,
    perms: Option<pb::CgroupPerms>,
    props: Vec<pb::CgroupPropEntry>,
}

/// Groups of one hierarchy, parents before children.
#[derive(Debug, Clone)]
struct Controller {
    names: Vec<String>,
    dirs: Vec<Dir>,
}

/// Where a set is in one hierarchy.
#[derive(Debug, Clone)]
struct Member {
    name: String,
    path: String,
    /// The root of its cgroup namespace, if that is not the root of the hierarchy.
    ns_root: Option<String>,
}

/// What is to be made, checked.
#[derive(Debug)]
pub struct Plan {
    mode: Mode,
    own: u32,
    sets: BTreeMap<u32, Vec<Member>>,
    controllers: Vec<Controller>,
}

fn bad(what: impl Into<String>, why: impl fmt::Display) -> Error {
    Error::new("E5440", Side::Image, what, why, "dump again")
}

/// A path of plain names from the root of a hierarchy.
fn plain(path: &str, what: &str) -> Result<()> {
    let fine = |c: &str| !matches!(c, "" | "." | "..") && !c.contains('\0') && c.len() <= 255;
    let inner = path.strip_prefix('/');
    let ok = inner.is_some_and(|p| p.is_empty() || p.split('/').all(fine));
    if !ok || path.len() > LONGEST_PATH {
        let shown: String = path.chars().take(200).collect();
        return Err(bad(
            format!("cgroup.img: {what} {shown:?}"),
            "not a path of plain names from the root of a hierarchy",
        ));
    }
    Ok(())
}

fn join(parent: &str, name: &str) -> String {
    match parent {
        "/" => format!("/{name}"),
        p => format!("{p}/{name}"),
    }
}

/// Is `path` the group `of` or below it?
fn within(path: &str, of: &str) -> bool {
    of == "/"
        || path
            .strip_prefix(of)
            .is_some_and(|r| r.is_empty() || r.starts_with('/'))
}

impl Plan {
    /// Checks an image and puts it under new roots. `own` is the set of the engine at dump (`root_cg_set` of the inventory):
    /// tasks of that set stay where they are born. `props`: settings the caller allows beside the known ones.
    ///
    /// # Errors
    /// E5440: the image is damaged, or names what leads elsewhere. E2443: a root that is no path of a group.
    pub fn new(
        entry: pb::CgroupEntry,
        own: u32,
        mode: Mode,
        roots: &Roots,
        props: &Props,
    ) -> Result<Self> {
        let mut plan = Self {
            mode,
            own,
            sets: BTreeMap::new(),
            controllers: Vec::new(),
        };
        for c in entry.controllers {
            if c.cnames.is_empty() || c.cnames.iter().any(|n| n.contains(['/', '\0'])) {
                return Err(bad(
                    "cgroup.img",
                    "a hierarchy without a name, or with a path for one",
                ));
            }
            let mut dirs = Vec::new();
            for d in c.dirs {
                let path = format!("/{}", d.dir_name.trim_start_matches('/'));
                plain(&path, "group")?;
                flatten(d, path, props, DEEPEST, &mut dirs)?;
            }
            plan.controllers.push(Controller {
                names: c.cnames,
                dirs,
            });
        }
        for s in entry.sets {
            let mut members = Vec::new();
            for m in s.ctls {
                plain(&m.path, "group")?;
                let ns_root = match m.cgns_prefix.unwrap_or(0) as usize {
                    0 | 1 => None,
                    n => match m.path.get(..n) {
                        Some(root) if within(&m.path, root) => Some(root.to_string()),
                        _ => {
                            let what = format!("cgroup.img: set {}", s.id);
                            return Err(bad(
                                what,
                                "the root of its namespace is not around its group",
                            ));
                        }
                    },
                };
                members.push(Member {
                    name: m.name,
                    path: m.path,
                    ns_root,
                });
            }
            if plan.sets.insert(s.id, members).is_some() {
                return Err(bad("cgroup.img", format!("there are two sets {}", s.id)));
            }
        }
        plan.move_to(roots)?;
        Ok(plan)
    }
    /// Puts hierarchies under new roots.
    fn move_to(&mut self, roots: &Roots) -> Result<()> {
        for (_, to) in roots {
            let told = |_| {
                Error::new(
                    "E2443",
                    Side::Caller,
                    format!("--cgroup-root {to}"),
                    "it is not the path of a group",
                    "name it from the root of the hierarchy: [CONTROLLER:]/PATH, without .. in it",
                )
            };
            let clean = to.trim_end_matches('/');
            plain(if clean.is_empty() { "/" } else { clean }, "root").map_err(told)?;
        }
        for c in &mut self.controllers {
            let named = roots
                .iter()
                .find(|(n, _)| n.as_ref().is_some_and(|n| c.names.contains(n)));
            let Some((_, to)) = named.or(roots.iter().find(|(n, _)| n.is_none())) else {
                continue;
            };
            let mut members: Vec<&mut Member> = self
                .sets
                .values_mut()
                .flatten()
                .filter(|m| c.names.contains(&m.name))
                .collect();
            let from = match members.iter().find_map(|m| m.ns_root.clone()) {
                Some(ns) => ns,
                None => common(members.iter().map(|m| m.path.as_str())),
            };
            let moved = |path: &str| -> Option<String> {
                let rest = match from.as_str() {
                    "/" => path,
                    f => path.strip_prefix(f).filter(|_| within(path, f))?,
                };
                let new = format!("{}{}", to.trim_end_matches('/'), rest);
                let new = new.trim_end_matches('/');
                Some(if new.is_empty() {
                    "/".into()
                } else {
                    new.into()
                })
            };
            for m in &mut members {
                if let Some(p) = moved(&m.path) {
                    m.path = p;
                }
                let root = m.ns_root.as_deref().and_then(moved);
                m.ns_root = root.filter(|r| r != "/");
            }
            c.dirs.retain_mut(|d| match moved(&d.path) {
                Some(p) => {
                    d.path = p;
                    true
                }
                // around what is moved: it stays behind
                None => false,
            });
        }
        Ok(())
    }
    /// Does a task of this set have a place of its own? If not, it stays where it is born.
    ///
    /// # Errors
    /// E5441: the image does not have that set.
    pub fn places(&self, set: u32) -> Result<bool> {
        if self.mode == Mode::Ignore || set == 0 || set == self.own {
            return Ok(false);
        }
        match self.sets.contains_key(&set) {
            true => Ok(true),
            false => Err(Error::new(
                "E5441",
                Side::Image,
                format!("a task is in set {set} of control groups"),
                "cgroup.img does not have that set",
                "dump again",
            )),
        }
    }
    fn members(&self, set: u32) -> &[Member] {
        match self.mode == Mode::Ignore || set == self.own {
            true => &[],
            false => self.sets.get(&set).map_or(&[], |m| m),
        }
    }
}

impl fmt::Display for Plan {
    /// One line per group.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in &self.controllers {
            for d in &c.dirs {
                let of = c.names.join(",");
                let of = if of.is_empty() { "v2" } else { &of };
                let what = match (self.mode, d.path.as_str()) {
                    (Mode::Ignore, _) => continue,
                    (Mode::None | Mode::Props, _) | (_, "/") => "find",
                    (Mode::Strict, _) => "make",
                    (Mode::Soft | Mode::Full, _) => "find or make",
                };
                writeln!(
                    f,
                    "{what} group {} of {of}, {} settings",
                    d.path,
                    d.props.len()
                )?;
            }
        }
        Ok(())
    }
}

/// The innermost group around all of these.
fn common<'a>(mut paths: impl Iterator<Item = &'a str>) -> String {
    let Some(first) = paths.next() else {
        return "/".into();
    };
    let mut at = first.to_string();
    for p in paths {
        while !within(p, &at) {
            match at.rfind('/') {
                Some(0) | None => at = "/".into(),
                Some(n) => at.truncate(n),
            }
        }
    }
    at
}

fn flatten(
    d: pb::CgroupDirEntry,
    path: String,
    known: &Props,
    deep: usize,
    out: &mut Vec<Dir>,
) -> Result<()> {
    if deep == 0 {
        return Err(bad(
            "cgroup.img",
            format!("groups lie more than {DEEPEST} deep"),
        ));
    }
    for p in &d.properties {
        let shown: String = p.name.chars().take(100).collect();
        if !known.knows(&p.name) {
            return Err(Error::new(
                "E5442",
                Side::Image,
                format!("cgroup.img: setting {shown:?} of group {path}"),
                "it is none of those that are carried",
                "leave it out at the dump, or name it with --cgroup-props if you know what it does",
            ));
        }
        if p.value.len() > LONGEST_VALUE || p.value.contains('\0') {
            return Err(bad(
                format!("cgroup.img: setting {shown:?} of group {path}"),
                "no such value is possible",
            ));
        }
    }
    out.push(Dir {
        path: path.clone(),
        perms: d.dir_perms,
        props: d.properties,
    });
    for child in d.children {
        if child.dir_name.contains('/') {
            return Err(bad(
                format!("cgroup.img: group {:?}", child.dir_name),
                "the name of a group below another has no slash",
            ));
        }
        let path = join(&path, &child.dir_name);
        plain(&path, "group")?;
        flatten(child, path, known, deep - 1, out)?;
    }
    Ok(())
}

/// Groups being made: what was made is removed again when this is dropped before [`Groups::keep`].
///
/// Order: [`Groups::make`]; for a root with a cgroup namespace of its own [`Groups::place_ns_root`], then its
/// unshare(CLONE_NEWCGROUP); [`Groups::place`] of the root; [`Groups::set_properties`]; other tasks are born, and placed if their
/// set is not that of who bore them; when all rows are played and nobody is let go yet, [`Groups::freeze`], and when nothing can
/// fail any more [`Groups::keep`].
#[derive(Debug)]
pub struct Groups<'a> {
    plan: &'a Plan,
    view: View,
    /// What this restore made, in order: number of the hierarchy in the view, path.
    made: Vec<(usize, String)>,
    /// Controllers enabled in groups that were there: group's hierarchy, path, controller.
    enabled: Vec<(usize, String, String)>,
    v2: BTreeMap<u32, OwnedFd>,
    kept: bool,
}

impl<'a> Groups<'a> {
    /// Finds or makes the groups, as the mode says. Hierarchies that are not in the view are left alone.
    ///
    /// # Errors
    /// E6440: a group is missing and must be there, or is there and must not be. E6443: one is frozen. Failures to make one.
    pub fn make(plan: &'a Plan, view: View) -> Result<Self> {
        let mut g = Self {
            plan,
            view,
            made: Vec::new(),
            enabled: Vec::new(),
            v2: BTreeMap::new(),
            kept: false,
        };
        if plan.mode == Mode::Ignore {
            return Ok(g);
        }
        for c in &plan.controllers {
            let Some(at) = g.number(&c.names) else {
                debug!("hierarchy {:?} is not mounted here: left alone", c.names);
                continue;
            };
            for d in &c.dirs {
                g.group(at, d)?;
            }
        }
        let mut homes: Vec<(usize, String)> = Vec::new();
        for m in plan
            .sets
            .iter()
            .filter(|s| *s.0 != plan.own)
            .flat_map(|s| s.1)
        {
            if let Some(at) = g.number(std::slice::from_ref(&m.name)) {
                homes.extend(m.ns_root.iter().chain([&m.path]).map(|p| (at, p.clone())));
            }
        }
        for (at, path) in homes {
            if g.view.hierarchies[at].try_open(&path).is_err() {
                let plain = Dir {
                    path,
                    perms: None,
                    props: Vec::new(),
                };
                g.group(at, &plain)?;
            }
        }
        g.must_run()?;
        for set in plan.sets.keys() {
            let m = plan.members(*set).iter().find(|m| m.name.is_empty());
            if let (Some(m), Some(h)) = (m, g.view.of("")) {
                g.v2.insert(*set, h.open(&m.path)?);
            }
        }
        Ok(g)
    }
    /// Nothing can be made of a task in a frozen group.
    fn must_run(&self) -> Result<()> {
        let sets = self.plan.sets.iter().filter(|s| *s.0 != self.plan.own);
        for m in sets.flat_map(|s| s.1) {
            let (file, frozen) = match m.name.as_str() {
                "" => ("cgroup.events", "frozen 1"),
                "freezer" => ("freezer.state", "FROZEN"),
                _ => continue,
            };
            let Some(h) = self.view.of(&m.name) else {
                continue;
            };
            let shown = h.path(&m.path);
            let text = view::read(h.open(&m.path)?.as_fd(), file, &shown)?.unwrap_or_default();
            if text.lines().any(|l| l == frozen) {
                return Err(Error::new(
                    "E6443",
                    Side::Host,
                    format!("control group {shown}"),
                    "it is frozen, so no task can be brought back in it",
                    "thaw it (write 0 to cgroup.freeze), or say where the groups shall be with --cgroup-root",
                ));
            }
        }
        Ok(())
    }
    fn number(&self, names: &[String]) -> Option<usize> {
        let has = |h: &Hierarchy| names.iter().any(|n| h.has(n));
        self.view.hierarchies.iter().position(has)
    }
    /// Finds or makes one group.
    fn group(&mut self, at: usize, d: &Dir) -> Result<()> {
        let h = &self.view.hierarchies[at];
        let shown = h.path(&d.path);
        let there = match h.try_open(&d.path) {
            Ok(_) => true,
            Err(Errno::NOENT) => false,
            Err(e) => return Err(Error::call("openat2", e, shown)),
        };
        let wrong = |why: &str, advice| {
            Err(Error::new(
                "E6440",
                Side::Host,
                format!("control group {shown}"),
                why,
                advice,
            ))
        };
        match (self.plan.mode, there) {
            (Mode::None | Mode::Props, false) => wrong(
                "it does not exist",
                "make it before the restore, or let it be made with --manage-cgroups=soft",
            ),
            (Mode::Strict, true) if d.path != "/" && !self.is_made(at, &d.path) => wrong(
                "it exists already",
                "remove it, or use it with --manage-cgroups=soft",
            ),
            (_, true) => Ok(()),
            (_, false) => self.make_path(at, d),
        }
    }
    fn is_made(&self, at: usize, path: &str) -> bool {
        self.made.iter().any(|(a, p)| *a == at && p == path)
    }
    /// Makes a group, and those around it that are missing.
    fn make_path(&mut self, at: usize, d: &Dir) -> Result<()> {
        if self.view.hierarchies[at].below(&d.path).is_none() {
            return Err(Error::new(
                "E6440",
                Side::Host,
                format!("control group {}", d.path),
                format!(
                    "only {} of its hierarchy is mounted here",
                    self.view.hierarchies[at].root
                ),
                "say where the groups shall be with --cgroup-root, or leave them alone with --manage-cgroups=ignore",
            ));
        }
        let mut ends: Vec<usize> = d.path.match_indices('/').map(|(n, _)| n).skip(1).collect();
        ends.push(d.path.len());
        for end in ends {
            let path = &d.path[..end];
            let h = &self.view.hierarchies[at];
            if h.below(path).is_none() || h.try_open(path).is_ok() || !h.make(path)? {
                continue;
            }
            debug!("made group {}", h.path(path));
            self.made.push((at, path.to_string()));
            let dir = h.open(path)?;
            let last = end == d.path.len();
            if h.has("cpuset") && !h.is_v2() {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let own = d.props.iter().find(|p| last && p.name == file);
                    let value = match own {
                        Some(p) if !p.value.is_empty() => p.value.clone(),
                        _ => self.of_parent(h, path, file)?,
                    };
                    self.set(h, path, &dir, file, &value)?;
                }
            }
            if !last {
                continue;
            }
            if let Some(p) = &d.perms {
                give(&dir, p, &h.path(path))?;
            }
            if d.props
                .iter()
                .any(|p| p.name == "cgroup.type" && p.value == "threaded")
            {
                self.set(h, path, &dir, "cgroup.type", "threaded")?;
            }
        }
        Ok(())
    }
    fn of_parent(&self, h: &Hierarchy, path: &str, file: &str) -> Result<String> {
        let parent = path
            .rsplit_once('/')
            .map_or("/", |(p, _)| if p.is_empty() { "/" } else { p });
        let dir = h.open(parent)?;
        Ok(view::read(dir.as_fd(), file, &h.path(parent))?
            .unwrap_or_default()
            .trim()
            .to_string())
    }
    /// Writes one setting, unless it is so already.
    fn set(&self, h: &Hierarchy, path: &str, dir: &OwnedFd, file: &str, value: &str) -> Result<()> {
        let shown = h.path(path);
        let now = view::read(dir.as_fd(), file, &shown)?;
        if now
            .as_ref()
            .is_some_and(|n| n.trim_end() == value || n.lines().any(|l| l == value))
        {
            return Ok(());
        }
        view::write(dir.as_fd(), file, value, &shown).map_err(|e| {
            Error::new(
                "E6441",
                Side::Host,
                format!("setting {file} of control group {shown} to {value:?}"),
                e,
                "give this machine what the setting needs (a controller, a device, processors), or restore without settings: --manage-cgroups=none, or ignore",
            )
        })
    }
    /// Are settings of this group written?
    fn sets(&self, at: usize, path: &str) -> bool {
        match self.plan.mode {
            Mode::Ignore | Mode::None => false,
            // what is set on the root of a hierarchy is the machine's
            _ if path == "/" => false,
            Mode::Soft => self.is_made(at, path),
            Mode::Props | Mode::Full | Mode::Strict => true,
        }
    }
    /// Sets properties, parents before children. Nobody is in a group that has others below it by now.
    ///
    /// # Errors
    /// E6441: the kernel refuses one.
    pub fn set_properties(&mut self) -> Result<()> {
        for c in &self.plan.controllers {
            let Some(at) = self.number(&c.names) else {
                continue;
            };
            for d in &c.dirs {
                if self.sets(at, &d.path) {
                    self.properties(at, c, d)?;
                }
            }
        }
        Ok(())
    }
    fn properties(&mut self, at: usize, c: &Controller, d: &Dir) -> Result<()> {
        let dir = self.view.hierarchies[at].open(&d.path)?;
        if let Some(p) = &d.perms {
            give(&dir, p, &d.path)?;
        }
        for p in &d.props {
            if self.view.hierarchies[at].is_v2() {
                self.enable(at, c, d, &dir, p)?;
            }
            let h = &self.view.hierarchies[at];
            let shown = h.path(&d.path);
            if let Some(perms) = &p.perms
                && p.name != "devices.list"
                && let Ok(f) = view::open_to_read(dir.as_fd(), &p.name)
            {
                give(&f, perms, &format!("{shown}/{}", p.name))?;
            }
            match (p.name.as_str(), p.value.as_str()) {
                (n, _) if WITHOUT_VALUE.contains(&n) => {}
                // what a fresh group has; and last of all
                ("cgroup.type" | "cgroup.freeze" | "freezer.state", _) => {}
                ("memory.swappiness", "60") | ("memory.oom_control", "0") => {}
                ("memory.use_hierarchy", _) => {
                    // gone from newer kernels, where it is always so
                    let _ = self.set(h, &d.path, &dir, &p.name, &p.value);
                }
                ("memory.kmem.limit_in_bytes" | "memory.kmem.tcp.limit_in_bytes", _) => {
                    // KERNEL(>=5.16): the first answers EOPNOTSUPP whatever is written
                    if let Err(e) = self.set(h, &d.path, &dir, &p.name, &p.value) {
                        debug!("{e}");
                    }
                }
                ("cgroup.subtree_control", v) => {
                    for name in v.split_whitespace() {
                        self.control(h, &d.path, &dir, name)?;
                    }
                }
                ("devices.list", v) => {
                    view::write(dir.as_fd(), "devices.deny", "a", &shown)?;
                    for line in v.lines() {
                        view::write(dir.as_fd(), "devices.allow", line, &shown)?;
                    }
                }
                ("net_prio.ifpriomap", v) => {
                    // other interfaces than at the dump are no error
                    for line in v.lines() {
                        let _ = view::write(dir.as_fd(), "net_prio.ifpriomap", line, &shown);
                    }
                }
                (_, "") => {}
                (n, v) if BY_LINE.contains(&n) || h.is_v2() => {
                    for line in v.lines() {
                        self.set(h, &d.path, &dir, n, line)?;
                    }
                }
                (n, v) => self.set(h, &d.path, &dir, n, v)?,
            }
        }
        Ok(())
    }
    /// Enables one controller for the groups below.
    fn control(&self, h: &Hierarchy, path: &str, dir: &OwnedFd, name: &str) -> Result<()> {
        let now = view::read(dir.as_fd(), "cgroup.subtree_control", path)?.unwrap_or_default();
        if now.split_whitespace().any(|n| n == name) {
            return Ok(());
        }
        self.set(h, path, dir, "cgroup.subtree_control", &format!("+{name}"))
    }
    /// Sees to it that the controller of a setting is enabled, if the group around is one of the tree's.
    fn enable(
        &mut self,
        at: usize,
        c: &Controller,
        d: &Dir,
        dir: &OwnedFd,
        p: &pb::CgroupPropEntry,
    ) -> Result<()> {
        let name = p.name.split('.').next().unwrap_or_default().to_string();
        if name == "cgroup" || view::open_to_read(dir.as_fd(), &p.name).is_ok() {
            return Ok(());
        }
        let parent = d
            .path
            .rsplit_once('/')
            .map_or("/", |(up, _)| if up.is_empty() { "/" } else { up });
        let ours = self.is_made(at, parent) || c.dirs.iter().any(|d| d.path == parent);
        if parent == "/" || !ours {
            return Ok(());
        }
        let h = &self.view.hierarchies[at];
        let up = h.open(parent)?;
        self.control(h, parent, &up, &name)?;
        if !self.is_made(at, parent) {
            self.enabled.push((at, parent.to_string(), name));
        }
        Ok(())
    }
    /// Moves a process (as the engine sees it) to the group that is the root of the cgroup namespace of this set, in every
    /// hierarchy. False: the set has no such root, no namespace is needed.
    ///
    /// # Errors
    /// E6442: the kernel refuses, for instance because that group has controllers enabled for groups below it.
    pub fn place_ns_root(&self, pid: HostPid, set: u32) -> Result<bool> {
        let members = self.plan.members(set);
        if members.iter().all(|m| m.ns_root.is_none()) {
            return Ok(false);
        }
        for m in members {
            let root = m.ns_root.as_deref().unwrap_or("/");
            self.move_to(pid, &m.name, root, "cgroup.procs")?;
        }
        Ok(true)
    }
    /// Moves into one group of one hierarchy, if it is mounted here and they are not there already.
    fn move_to(&self, pid: HostPid, controller: &str, group: &str, file: &str) -> Result<()> {
        let Some(h) = self.view.of(controller) else {
            return Ok(());
        };
        let lines = ProcDir::open(pid)?.cgroup()?;
        let is =
            |l: &&stasis_kernel::procfs::CgroupLine| view::names(l).iter().any(|n| n == controller);
        if lines
            .iter()
            .find(is)
            .is_some_and(|l| l.path == group.as_bytes() && !l.deleted)
        {
            return Ok(());
        }
        let dir = h.open(group)?;
        view::write(dir.as_fd(), file, &pid.0.to_string(), &h.path(group)).map_err(|e| {
            Error::new(
                "E6442",
                Side::Host,
                format!("control group {} takes no task", h.path(group)),
                e,
                "a group with controllers enabled for groups below it takes none (cgroup.subtree_control); else name another place with --cgroup-root, or leave groups alone with --manage-cgroups=ignore",
            )
        })
    }
    /// The directory of this set's group of cgroup v2, for `CLONE_INTO_CGROUP`.
    pub fn v2_dir(&self, set: u32) -> Option<BorrowedFd<'_>> {
        self.v2.get(&set).map(AsFd::as_fd)
    }
    /// Moves a process (as the engine sees it), with all its threads, to the groups of this set, in every hierarchy.
    ///
    /// # Errors
    /// E6442: the kernel refuses.
    pub fn place(&self, pid: HostPid, set: u32) -> Result<()> {
        for m in self.plan.members(set) {
            self.move_to(pid, &m.name, &m.path, "cgroup.procs")?;
        }
        Ok(())
    }
    /// Moves one thread, in hierarchies where threads of a process can be in different groups.
    ///
    /// # Errors
    /// E6442: the kernel refuses.
    pub fn place_thread(&self, tid: HostPid, set: u32) -> Result<()> {
        for m in self.plan.members(set) {
            let file = if m.name.is_empty() {
                "cgroup.threads"
            } else {
                "tasks"
            };
            self.move_to(tid, &m.name, &m.path, file)?;
        }
        Ok(())
    }
    /// Freezes what was frozen. Every task is held by now, and plays nothing any more.
    ///
    /// # Errors
    /// E6441: the kernel refuses.
    pub fn freeze(&self) -> Result<()> {
        for c in &self.plan.controllers {
            let Some(at) = self.number(&c.names) else {
                continue;
            };
            let h = &self.view.hierarchies[at];
            for d in c.dirs.iter().filter(|d| self.sets(at, &d.path)) {
                for p in &d.props {
                    let frozen = matches!(
                        (p.name.as_str(), p.value.as_str()),
                        ("cgroup.freeze", "1") | ("freezer.state", "FROZEN")
                    );
                    if frozen {
                        self.set(h, &d.path, &h.open(&d.path)?, &p.name, &p.value)?;
                    }
                }
            }
        }
        Ok(())
    }
    /// The groups stay.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Groups<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let until = Instant::now() + EMPTYING;
        for (at, path) in self.made.iter().rev() {
            let h = &self.view.hierarchies[*at];
            loop {
                match h.remove(path) {
                    Ok(()) => break,
                    // those who were killed may still be on their way out
                    Err(_) if Instant::now() < until && h.try_open(path).is_ok() => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(e) => {
                        warn!("a group this restore made is left: {e}");
                        break;
                    }
                }
            }
        }
        for (at, path, name) in self.enabled.iter().rev() {
            let h = &self.view.hierarchies[*at];
            if let Ok(dir) = h.open(path) {
                let _ = view::write(
                    dir.as_fd(),
                    "cgroup.subtree_control",
                    &format!("-{name}"),
                    path,
                );
            }
        }
    }
}

/// Owner and permissions, unless they are so already.
fn give(fd: &OwnedFd, p: &pb::CgroupPerms, shown: &str) -> Result<()> {
    let st = rustix::fs::fstat(fd).map_err(|e| Error::call("fstat", e, shown))?;
    if (st.st_uid, st.st_gid) != (p.uid, p.gid) {
        let (uid, gid) = (Uid::from_raw(p.uid), Gid::from_raw(p.gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid))
            .map_err(|e| Error::call("fchown", e, shown))?;
    }
    if (st.st_mode ^ p.mode) & 0o777 != 0 {
        let mode = FileMode::from_raw_mode(p.mode & 0o777);
        rustix::fs::fchmod(fd, mode).map_err(|e| Error::call("fchmod", e, shown))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
