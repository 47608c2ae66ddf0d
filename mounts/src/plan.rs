//! From trees to rows: how fresh mount namespaces become the tree's.
//!
//! Nothing is looked up by a path of the image except below a mount that was made for the tree, one mount at a time, without
//! following any link. The order:
//!
//! 1. `outside`, where the caller's paths mean something: detached copies of what comes from the caller, the root first.
//! 2. `build`, in the new namespace: everything becomes private; the root is put on top of the old one; file systems are made,
//!    filled, and copied for every mount that shows them. A file system of which several mounts show parts is attached to the
//!    new root for that moment, because detached mounts cannot be copied before Linux 6.15.
//! 3. Mounts are attached, parents first. The places of all children of a mount are opened before the first is attached, so
//!    no child can hide the place of another.
//! 4. The new root becomes the root; the old one goes. That must be before the next, because a root with peers cannot be exchanged.
//! 5. `sharing`: peer groups and masters, when everything is in place in all namespaces: nothing propagates while the trees are
//!    built, and a group may begin in any namespace. A group is taken over from a mount of any namespace, propagation is set in
//!    a mount's own: so these rows come in runs, each for the process of one namespace.
//! 6. `late`: mounts of a terminal's name exist only when the terminal does.
//! 7. `inner`: a proc file system of a pid namespace below that of the first task is made inside of that one (`procs`), which exists
//!    only when its first process is born. Until then one that shows the worker's own namespace holds its place. What is mounted
//!    in it follows, and then `sharing`.
//!
//! A tree may have several mount namespaces. They are built one after the other, each by a process of its own, and share one
//! set of names: a file system that several of them show is made by the first, which also copies it for the others (a mount
//! can be copied only where it is); the copies are attached where they belong.
//!
//! Long because the order is one story, told by one maker.
use crate::autofs;
use crate::binfmt::{self, Format};
use crate::error::{Blame, Error, Result};
use crate::flags;
use crate::fstype::{self, DISKS, Make};
use crate::look::DEVICES;
use crate::overlay;
use crate::tree::{Mount, Tree, below, from_root, part_of};
use stasis_kernel::call::{Call, FdRef};
use stasis_kernel::mnt::{self, attr};
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

mod layered;
mod sharing;

/// What the caller of a restore gives.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// What becomes the root; none: the machine's own root.
    pub root: Option<&'a Path>,
    /// The name in the image, and the path of what comes there; for a disk's file system `dev[NAME]`, and the disk's path.
    pub external: &'a [(String, String)],
    /// Mounts from outside may share with mounts outside.
    pub external_sharing: bool,
    /// File system types that show the whole machine and are made nevertheless; `all`.
    pub enable_fs: &'a [String],
    /// Mountpoints that are left out, with all below them.
    pub skip: &'a [String],
    /// The SELinux context of mounts that have one, in place of the image's.
    pub context: Option<&'a str>,
    /// Name of the image with the contents of the tmpfs with this number, if there is one.
    pub archive: &'a dyn Fn(u32) -> Option<String>,
    /// What the image says of an autofs with this number.
    pub automount: &'a dyn Fn(u32) -> Option<pb::AutofsEntry>,
    /// The tree has a user namespace of its own; these are its formats of binfmt_misc.
    pub formats: Option<&'a [Format]>,
    /// The part of a cgroup hierarchy that a mount shows now, for what it showed.
    pub cgroup: &'a dyn Fn(&str) -> String,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A system call.
    Call(Call),
    /// Fills a file system from an archive.
    Unpack {
        /// Name of the image.
        image: String,
        /// The mount.
        into: FdRef,
    },
    /// A detached copy of a device of the machine, which must be the one expected.
    Device {
        /// Its path.
        path: &'static str,
        /// Major and minor number.
        number: (u32, u32),
        /// The name of the copy.
        to: FdRef,
    },
    /// A device of the machine is opened, which must be the one expected.
    OpenDevice {
        /// Its path.
        path: &'static str,
        /// Major and minor number.
        number: (u32, u32),
        /// The open file.
        to: FdRef,
    },
    /// An overlay is mounted in a root of its own that holds these mounts.
    Overlay {
        /// How.
        recipe: overlay::Recipe,
        /// Copies of the mounts of its layers, which are gone afterwards.
        mounts: Vec<FdRef>,
        /// The name of the detached mount.
        to: FdRef,
    },
    /// An autofs mount, without its daemon.
    Automount(Automount),
    /// What hides a path that nobody provides: /dev/null over a file, an empty read-only tmpfs over a folder.
    Mask {
        /// The place.
        at: FdRef,
        /// A copy of /dev/null.
        null: FdRef,
    },
    /// A format is registered with binfmt_misc.
    Register {
        /// The mount.
        with: FdRef,
        /// The format.
        format: Format,
    },
    /// The working directory's mount becomes the root, and the old root goes.
    Pivot,
}

/// A step with its reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What is done.
    pub step: Step,
    /// For which mount, and why.
    pub why: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Step::Call(c) => write!(f, "{c}")?,
            Step::Unpack { image, into } => write!(f, "unpack({image}, file#{})", into.0)?,
            Step::Device { path, number, to } => {
                write!(
                    f,
                    "device({path:?}, {}:{}) -> file#{}",
                    number.0, number.1, to.0
                )?;
            }
            Step::OpenDevice { path, number, to } => write!(
                f,
                "open_device({path:?}, {}:{}) -> file#{}",
                number.0, number.1, to.0
            )?,
            Step::Overlay { recipe, mounts, to } => {
                let all: Vec<String> = mounts.iter().map(|f| format!("file#{}", f.0)).collect();
                write!(
                    f,
                    "overlay({}, {:?}, {:?}) -> file#{}",
                    all.join(", "),
                    recipe.links,
                    recipe.options,
                    to.0
                )?
            }
            Step::Mask { at, null } => {
                write!(f, "mask(file#{}, file#{} or an empty tmpfs)", at.0, null.0)?
            }
            Step::Automount(a) => write!(
                f,
                "autofs({:?}, {:?}, file#{}) -> file#{}, file#{}",
                a.entry, a.folders, a.device.0, a.mount.0, a.root.0
            )?,
            Step::Register { with, format } => write!(f, "register(file#{}, {format})", with.0)?,
            Step::Pivot => {
                f.write_str("pivot_root(\".\", \".\"), umount2(\".\", MNT_DETACH), chdir(\"/\")")?
            }
        }
        write!(f, "  # {}", self.why)
    }
}

/// A proc file system of a pid namespace below that of the first task.
#[derive(Debug, Clone, PartialEq)]
pub struct Proc {
    /// The pid namespace, by its number in the image.
    pub pid_ns: u32,
    /// Index of the mount namespace from which it is made.
    pub space: usize,
    /// What a process in both does.
    pub rows: Vec<Row>,
}

/// A mount of autofs.
#[derive(Debug, Clone, PartialEq)]
pub struct Automount {
    /// What the image says of it.
    pub entry: pb::AutofsEntry,
    /// A label.
    pub source: String,
    /// Folders for what is mounted in it.
    pub folders: Vec<String>,
    /// The device of autofs.
    pub device: FdRef,
    /// The detached mount.
    pub mount: FdRef,
    /// Its root, open so that it can be spoken of.
    pub root: FdRef,
}

/// How a tree is built.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Where the caller's paths mean something.
    pub outside: Vec<Row>,
    /// In the new mount namespace, with the tree's other namespaces.
    pub build: Vec<Row>,
    /// When all namespaces are built: runs of rows, each with the index of the namespace whose process performs it.
    pub sharing: Vec<(usize, Vec<Row>)>,
    /// When terminals are open.
    pub late: Vec<Row>,
    /// The same two for each further mount namespace.
    pub further: Vec<(Vec<Row>, Vec<Row>)>,
    /// When tasks are born: file systems that are made in their pid namespaces.
    pub procs: Vec<Proc>,
    /// After those, for each mount namespace. Empty if there are none.
    pub inner: Vec<Vec<Row>>,
    /// Mounts of autofs, each of which its daemon takes over when there is one.
    pub automounts: Vec<Automount>,
    /// What will not come back as it was.
    pub warnings: Vec<String>,
    /// The mount of the image with this number is held open under this name when all is built.
    pub mounts: BTreeMap<u32, FdRef>,
    /// What is built.
    pub tree: Tree,
}

impl Plan {
    /// For a path on a mount (of this number) that others hide: the mount, and the path below its root.
    ///
    /// Names of mountpoints are UTF-8, those of files in them need not be.
    pub fn hidden(&self, mnt_id: u32, path: &[u8]) -> Option<(FdRef, Vec<u8>)> {
        let i = self.tree.mounts.iter().position(|m| m.id == mnt_id)?;
        let text = String::from_utf8_lossy(path);
        let m = &self.tree.mounts[i];
        below(&text, &m.mountpoint)?;
        let rest = path.strip_prefix(m.mountpoint.as_bytes()).unwrap_or(path);
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        let mount = *self.mounts.get(&mnt_id)?;
        (self.tree.at_path(m.space, &text) != i).then(|| (mount, rest.to_vec()))
    }
    /// Index of the namespace of a mount.
    pub fn space_of(&self, mnt_id: u32) -> Option<usize> {
        let found = self.tree.mounts.iter().find(|m| m.id == mnt_id);
        found.map(|m| m.space)
    }
    /// Is everything mounted when the only namespace is built?
    pub fn shares_at_once(&self) -> bool {
        self.tree.roots.len() < 2 && self.procs.is_empty()
    }
    /// Is this mount there only when tasks are born?
    pub fn is_inner(&self, mnt_id: u32) -> bool {
        let found = self.tree.mounts.iter().position(|m| m.id == mnt_id);
        !self.procs.is_empty() && found.is_some_and(|i| self.tree.is_inner(i))
    }
    /// The rows that build a namespace, and those when terminals are open.
    pub fn of_space(&self, space: usize) -> (&[Row], &[Row]) {
        match space.checked_sub(1).and_then(|n| self.further.get(n)) {
            Some((build, late)) => (build, late),
            None => (&self.build, &self.late),
        }
    }
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Root,
    /// A path of the caller's.
    Path(PathBuf),
    /// The file system on a disk of the caller's.
    Disk(PathBuf),
    Device(usize),
    Mask,
    /// A new file system, or a part of it.
    Fresh,
    /// A part of another mount of the tree.
    Part(usize),
    /// A terminal's name.
    Late,
}

/// Names from here on are the mounts': files have numbers from 1, temporary ones from 2^31.
const FIRST_NAME: u32 = 0x4000_0000;

/// When rows are performed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Build,
    Inner,
    /// By a process in the pid namespace of the last of [`Plan::procs`].
    Proc,
}

struct Maker<'a> {
    tree: &'a Tree,
    caller: Caller<'a>,
    sources: Vec<Source>,
    plan: Plan,
    next: u32,
    /// The namespace whose process performs the next rows.
    space: usize,
    /// When it does.
    when: When,
    /// The detached mount of each, once there is one.
    mounts: BTreeMap<usize, FdRef>,
    /// A copy of /dev/null for each mount that is only a mask.
    masks: BTreeMap<usize, FdRef>,
    /// The device of autofs.
    autofs: FdRef,
    /// Where mounts are attached to be copied, by the namespace that is in.
    folders: BTreeMap<usize, FdRef>,
    /// Those that are attached there, or have been.
    held: BTreeSet<usize>,
}

/// Plans how the tree is built.
///
/// # Errors
/// E2300: the caller gave no mount for one that must come from outside; E5302 to E5307: an image that asks for what no dump
/// would write.
pub fn plan(tree: &Tree, caller: Caller) -> Result<Plan> {
    let skipped = skip(tree, caller.skip)?;
    let tree = &skipped;
    let sources: Vec<Source> = (0..tree.mounts.len())
        .map(|i| source(tree, i, &caller))
        .collect::<Result<_>>()?;
    // made in a pid namespace below that of the first task
    let nested = |(m, s): (&Mount, &Source)| *s == Source::Fresh && m.pid_ns.is_some();
    let inner = match tree.mounts.iter().zip(&sources).any(nested) {
        true => tree.roots.len(),
        false => 0,
    };
    let mut m = Maker {
        tree,
        caller,
        sources,
        plan: Plan {
            further: vec![Default::default(); tree.roots.len().saturating_sub(1)],
            inner: vec![Vec::new(); inner],
            ..Default::default()
        },
        next: FIRST_NAME,
        space: 0,
        when: When::Build,
        mounts: BTreeMap::new(),
        masks: BTreeMap::new(),
        autofs: FdRef(FIRST_NAME),
        held: BTreeSet::new(),
        folders: BTreeMap::new(),
    };
    m.outside()?;
    for space in 0..tree.roots.len() {
        m.space = space;
        m.make()?;
    }
    m.attach();
    for space in 0..tree.roots.len() {
        m.space = space;
        m.finish();
    }
    m.share()?;
    Ok(m.plan)
}

/// The tree without mountpoints the caller leaves out.
fn skip(tree: &Tree, paths: &[String]) -> Result<Tree> {
    let mut kept = Tree::default();
    let mut index = BTreeMap::new();
    for (i, m) in tree.mounts.iter().enumerate() {
        let named = paths
            .iter()
            .any(|p| p.trim_end_matches('/') == m.mountpoint);
        let me = kept.mounts.len();
        let root = tree.is_root(i);
        let Some(parent) = (match root {
            true => Some(me),
            false => index.get(&m.parent).copied(),
        }) else {
            continue;
        };
        if root {
            kept.roots.push(me);
        }
        if !named || root {
            index.insert(i, me);
            kept.mounts.push(Mount {
                parent,
                ..m.clone()
            });
        }
    }
    Ok(kept)
}

fn source(tree: &Tree, i: usize, caller: &Caller) -> Result<Source> {
    let m = &tree.mounts[i];
    if i == 0 {
        return Ok(Source::Root);
    }
    let bad = |code: &'static str, blame, why: String| {
        Error::new(code, blame, format!("cannot make {}", m.place())).why(why)
    };
    if let Some(name) = &m.external {
        // a disk is known by its source, all else by its name
        let (disk, name) = match name == fstype::EXTERNAL_DISK {
            true => (true, &m.source),
            false => (false, name),
        };
        if let Some((_, path)) = caller.external.iter().find(|(n, _)| n == name) {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(bad(
                    "E2301",
                    Blame::Caller,
                    format!("{path:?}, given for {name}, is not an absolute path"),
                )
                .advice("give the whole path of what is to be mounted there"));
            }
            return match (disk, &m.fsname) {
                (false, _) => Ok(Source::Path(path.into())),
                (true, Some(t)) if DISKS.contains(&t.as_str()) => Ok(Source::Disk(path.into())),
                (true, _) => Err(bad(
                    "E5300",
                    Blame::Image,
                    "it is said to be on a disk, and its type is none of a disk's".into(),
                )
                .advice("dump again, and name the mount itself with --external mnt[PLACE]:NAME")),
            };
        }
        if let Some(d) = DEVICES.iter().position(|d| d.2 == name)
            && (m.root != "/" || m.fstype.is_none())
        {
            return Ok(Source::Device(d));
        }
        if m.inherited && caller.root.is_none() {
            return Ok(Source::Path((&m.mountpoint).into()));
        }
        let system =
            |t: Option<&fstype::FsType>| t.is_some_and(|t| matches!(t.name, "proc" | "sysfs"));
        if system(tree.mounts[m.parent].fstype) {
            return Ok(Source::Mask);
        }
        return Err(bad(
            "E2300",
            Blame::Caller,
            format!("it came from outside, by the name {name}, and nothing was given for it"),
        )
        .advice(match disk {
            true => format!("pass --external {name}:PATH with the disk that has it"),
            false => format!("pass --external mnt[{name}]:PATH with what is to be mounted there"),
        }));
    }
    if part_of(m, tree.root()).is_some() && !fresh(m, caller) {
        return Ok(Source::Part(0));
    }
    // a part of something that comes from the caller
    let whole = |w: &Mount| w.id != m.id && w.external.is_some() && part_of(m, w).is_some();
    let whole = tree.mounts.iter().position(whole);
    if let Some(w) = whole
        && m.fstype.is_some_and(|t| t.make == Make::Filled)
    {
        return Ok(Source::Part(w));
    }
    if let Some(t) = m.fstype.filter(|t| t.name == "devpts") {
        let index = m.root.strip_prefix('/').and_then(|n| n.parse::<u32>().ok());
        let whole = tree
            .mounts
            .iter()
            .any(|w| (w.dev, w.space) == (m.dev, m.space) && w.root == "/" && w.fstype == Some(t));
        if index.is_some() && whole {
            return Ok(Source::Late);
        }
    }
    if fresh(m, caller) {
        if from_root(m).is_none() {
            return Err(bad(
                "E5307",
                Blame::Image,
                format!("what it shows, {:?}, is not a plain path", m.root),
            )
            .advice("unmount it before the dump"));
        }
        return Ok(Source::Fresh);
    }
    if let Some(w) = whole {
        return Ok(Source::Part(w));
    }
    Err(match m.fstype.map(|t| t.make) {
        Some(Make::HostWide) => bad(
            "E2302",
            Blame::Caller,
            format!(
                "a {} file system shows the whole machine, and an image alone cannot ask for that",
                m.type_name()
            ),
        )
        .advice(format!(
            "pass --enable-fs {} if the tree may have it, or --skip-mnt {}",
            m.type_name(),
            m.mountpoint
        )),
        _ => bad(
            "E5302",
            Blame::Image,
            format!(
                "it shows {} of {} file system that nothing else in the tree shows",
                m.root,
                m.type_name()
            ),
        )
        .advice("dump again, and name the mount with --external"),
    })
}

fn fresh(m: &Mount, caller: &Caller) -> bool {
    let enabled = |t: &str| caller.enable_fs.iter().any(|e| e == t || e == "all");
    match (m.fstype, &m.fsname) {
        (Some(t), _) => match t.make {
            Make::Fresh | Make::Filled | Make::Layered | Make::Automount => true,
            // each user namespace has one of its own
            Make::HostWide if t.name == binfmt::NAME && caller.formats.is_some() => true,
            Make::HostWide => enabled(t.name),
            Make::Never => false,
        },
        (None, Some(n)) => enabled(n),
        (None, None) => false,
    }
}

impl Maker<'_> {
    fn name(&mut self) -> FdRef {
        self.next += 1;
        FdRef(self.next)
    }
    fn row(&mut self, step: Step, why: impl Into<String>) {
        let proc = self
            .plan
            .procs
            .last_mut()
            .filter(|_| self.when == When::Proc);
        let rows = match (proc, self.when, self.space.checked_sub(1)) {
            (Some(p), ..) => &mut p.rows,
            (None, When::Inner, _) => &mut self.plan.inner[self.space],
            (None, _, Some(n)) => &mut self.plan.further[n].0,
            (None, _, None) => &mut self.plan.build,
        };
        rows.push(Row {
            step,
            why: why.into(),
        });
    }
    fn call(&mut self, call: Call, why: impl Into<String>) {
        self.row(Step::Call(call), why);
    }
    /// A row of the last pass, for the process of the present namespace.
    fn last(&mut self, call: Call, why: impl Into<String>) {
        let row = Row {
            step: Step::Call(call),
            why: why.into(),
        };
        match self.plan.sharing.last_mut() {
            Some((space, rows)) if *space == self.space => rows.push(row),
            _ => self.plan.sharing.push((self.space, vec![row])),
        }
    }
    fn out(&mut self, call: Call, why: impl Into<String>) {
        self.plan.outside.push(Row {
            step: Step::Call(call),
            why: why.into(),
        });
    }

    // ---- what comes from the caller

    fn outside(&mut self) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let root = self.caller.root.unwrap_or(Path::new("/"));
        let name = self.name();
        let call = mnt::clone_path(root.as_os_str().as_bytes(), false).binds(name);
        self.out(
            call,
            format!(
                "{}: the root comes from the caller",
                self.tree.root().place()
            ),
        );
        self.mounts.insert(0, name);
        let automount = |i: usize| {
            let t = self.tree.mounts[i].fstype;
            self.sources[i] == Source::Fresh && t.is_some_and(|t| t.make == Make::Automount)
        };
        if (0..self.tree.mounts.len()).any(automount) {
            let (path, number) = stasis_kernel::autofs::DEVICE;
            let to = self.autofs;
            let step = Step::OpenDevice { path, number, to };
            let why = "autofs: its device, of this machine".into();
            self.plan.outside.push(Row { step, why });
        }
        for i in 1..self.tree.mounts.len() {
            let place = self.tree.mounts[i].place();
            match self.sources[i].clone() {
                Source::Path(p) => {
                    let name = self.name();
                    let call =
                        mnt::clone_path(p.as_os_str().as_bytes(), self.tree.mounts[i].recursive)
                            .binds(name);
                    self.out(call, format!("{place}: it comes from the caller"));
                    self.mounts.insert(i, name);
                }
                Source::Disk(p) => {
                    let name = self.disk(i, &p)?;
                    self.mounts.insert(i, name);
                }
                Source::Device(d) => {
                    let name = self.device(d, &format!("{place}: a device of this machine"));
                    self.mounts.insert(i, name);
                }
                Source::Mask => {
                    let null = self.device(
                        0,
                        &format!("{place}: hides what nobody is to see, if that is a file"),
                    );
                    self.masks.insert(i, null);
                    let name = self.tree.mounts[i].external.clone().unwrap_or_default();
                    self.plan
                        .warnings
                        .push(format!("{place}: nobody gave {name} for it, it is masked"));
                }
                _ => {}
            }
        }
        Ok(())
    }
    /// The file system on a disk of the caller's: what kind it is the image tells, nothing else.
    fn disk(&mut self, i: usize, path: &Path) -> Result<FdRef> {
        let m = &self.tree.mounts[i];
        let why = format!("{}: the file system of the caller's disk", m.place());
        let words: Vec<&str> = flags::super_words(m.sb_flags).collect();
        let kind = m.type_name().to_owned();
        let (context, whole) = (self.name(), self.name());
        let source = path.display().to_string();
        self.out(mnt::fsopen(&kind).binds(context), &why);
        self.out(mnt::fsconfig(context, "source", Some(&source)), &why);
        for w in words {
            self.out(mnt::fsconfig(context, w, None), &why);
        }
        self.out(mnt::create(context), &why);
        self.out(mnt::fsmount(context, 0).binds(whole), &why);
        Ok(whole)
    }
    fn device(&mut self, d: usize, why: &str) -> FdRef {
        let to = self.name();
        let (major, minor, path) = DEVICES[d];
        let step = Step::Device {
            path,
            number: (major, minor),
            to,
        };
        self.plan.outside.push(Row {
            step,
            why: why.into(),
        });
        to
    }

    // ---- file systems, and a detached mount for each place

    /// What is made in the present namespace: the file systems of which it is the first to show something, and copies for all.
    fn make(&mut self) -> Result<()> {
        self.call(mnt::all_private(), "nothing done here is seen elsewhere");
        let root = self.tree.roots[self.space];
        let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (i, s) in self.sources.iter().enumerate() {
            if *s == Source::Fresh {
                groups.entry(self.tree.mounts[i].dev).or_default().push(i);
            }
        }
        let first = |i: &usize| self.tree.mounts[*i].space;
        let mut overlays = self.overlays(&mut groups)?;
        groups.retain(|_, members| members.iter().map(first).min() == Some(self.space));
        overlays.retain(|o| o.space == self.space);
        // what the root is made of comes before it
        if self.sources[root] == Source::Fresh
            && let Some(members) = groups.remove(&self.tree.mounts[root].dev)
        {
            self.filesystem(&members)?;
        }
        let Some(&top) = self.mounts.get(&root) else {
            return Err(self.tangled(root, "nothing that comes before it shows what it shows"));
        };
        if self.comes_from_outside(root) {
            self.call(
                mnt::setattr(top, 0, 0, self.kept_sharing(root)),
                "the root keeps its master only if the tree had one",
            );
        }
        self.call(
            mnt::attach_path(top, b"/"),
            "the new root lies on the old one",
        );
        for members in groups.into_values() {
            self.filesystem(&members)?;
        }
        for w in 0..self.tree.mounts.len() {
            let parts: Vec<usize> = (0..self.tree.mounts.len())
                .filter(|i| self.sources[*i] == Source::Part(w))
                .collect();
            let all = parts.iter().chain([&w]);
            if parts.is_empty() || all.map(first).min() != Some(self.space) {
                continue;
            }
            let whole = self.mounts[&w];
            if w == 0 {
                for i in parts {
                    self.part(i, whole, |m, t| {
                        part_of(m, &t.mounts[0]).unwrap_or_default().to_owned()
                    });
                }
                continue;
            }
            self.call(
                mnt::attach_path(whole, b"/"),
                "attached for the moment, to be copied",
            );
            let own = self.name();
            self.call(mnt::clone_of(whole).binds(own), self.tree.mounts[w].place());
            self.mounts.insert(w, own);
            for i in parts {
                self.part(i, whole, |m, t| {
                    part_of(m, &t.mounts[w]).unwrap_or_default().to_owned()
                });
            }
            self.detach(whole);
        }
        self.make_overlays(overlays)
    }
    fn detach(&mut self, whole: FdRef) {
        self.call(mnt::enter(whole), "to detach it again");
        self.call(mnt::detach_here(), "the copies are made");
        if self.when == When::Inner {
            self.call(mnt::chdir("/"), "back to the root");
        }
    }
    fn part(&mut self, i: usize, whole: FdRef, path: impl Fn(&Mount, &Tree) -> String) {
        let place = self.tree.mounts[i].place();
        let (at, copy) = (self.name(), self.name());
        let path = path(&self.tree.mounts[i], self.tree);
        self.call(
            mnt::beneath(whole, &path).binds(at),
            format!("{place}: the part it shows"),
        );
        self.call(mnt::clone_of(at).binds(copy), place);
        self.mounts.insert(i, copy);
    }
    /// Makes a file system and a detached mount for each that shows it.
    fn filesystem(&mut self, members: &[usize]) -> Result<()> {
        if let Some(pid_ns) = self.tree.mounts[members[0]].pid_ns {
            let (space, rows) = (self.space, Vec::new());
            self.plan.procs.push(Proc {
                pid_ns,
                space,
                rows,
            });
            self.when = When::Proc;
        }
        // the one that shows all of it tells most about it
        let lead = members
            .iter()
            .copied()
            .find(|i| self.tree.mounts[*i].root == "/")
            .unwrap_or(members[0]);
        let m = self.tree.mounts[lead].clone();
        if m.fstype.is_some_and(|t| t.make == Make::Automount) {
            return self.automount(&m, members);
        }
        let (context, whole) = (self.name(), self.name());
        self.call(mnt::fsopen(m.type_name()).binds(context), m.place());
        if !m.source.is_empty() {
            self.call(mnt::fsconfig(context, "source", Some(&m.source)), m.place());
        }
        let archive = match m.fstype.map(|t| t.make) {
            Some(Make::Filled) => (self.caller.archive)(m.dev),
            _ => None,
        };
        for (key, value) in self.options(&m)? {
            self.call(mnt::fsconfig(context, &key, value.as_deref()), m.place());
        }
        let words: Vec<&str> = flags::super_words(m.sb_flags).collect();
        for w in words.iter().filter(|w| archive.is_none() || **w != "ro") {
            self.call(mnt::fsconfig(context, w, None), m.place());
        }
        self.call(mnt::create(context), m.place());
        self.call(mnt::fsmount(context, 0).binds(whole), m.place());
        if let Some(image) = archive {
            self.row(Step::Unpack { image, into: whole }, m.place());
            if words.contains(&"ro") {
                let again = self.name();
                self.call(
                    mnt::fspick(whole).binds(again),
                    format!("{}: it is full, now it is read-only", m.place()),
                );
                self.call(mnt::fsconfig(again, "ro", None), m.place());
                self.call(mnt::reconfigure(again), m.place());
            }
        }
        if self.when == When::Proc {
            self.when = When::Inner;
        }
        self.shown_by(members, whole);
        self.when = When::Build;
        Ok(())
    }
    /// An autofs: what is mounted in it needs its folder, which only its daemon could make later.
    fn automount(&mut self, m: &Mount, members: &[usize]) -> Result<()> {
        let entry = (self.caller.automount)(m.dev);
        let entry =
            entry.ok_or_else(|| autofs::missing(&m.place(), "the image with it is missing"))?;
        autofs::check(&entry, &m.place())?;
        let tree = self.tree;
        let inside = |(i, c): &(usize, &Mount)| members.contains(&c.parent) && !tree.is_root(*i);
        let children = tree.mounts.iter().enumerate().filter(inside);
        let folders = children.map(|(_, c)| {
            let shown = self.shows(&tree.mounts[c.parent]);
            format!("{shown}/{}", c.at).trim_matches('/').to_owned()
        });
        let mut folders: Vec<String> = folders.filter(|f| !f.is_empty()).collect();
        folders.sort();
        folders.dedup();
        let automount = Automount {
            entry,
            source: m.source.clone(),
            folders,
            device: self.autofs,
            mount: self.name(),
            root: self.name(),
        };
        self.plan.automounts.push(automount.clone());
        let whole = automount.mount;
        self.row(Step::Automount(automount), m.place());
        self.shown_by(members, whole);
        Ok(())
    }
    /// A detached mount for each that shows a file system, from one that shows all of it.
    fn shown_by(&mut self, members: &[usize], whole: FdRef) {
        if let [one] = members
            && self.shows(&self.tree.mounts[*one]).is_empty()
        {
            self.mounts.insert(*one, whole);
            return;
        }
        self.call(
            mnt::attach_path(whole, b"/"),
            "attached for the moment, to be copied",
        );
        for &i in members {
            let path = self.shows(&self.tree.mounts[i]);
            self.part(i, whole, |_, _| path.clone());
        }
        self.detach(whole);
    }
    /// The part of its file system that a mount shows.
    fn shows(&self, m: &Mount) -> String {
        match m.fstype {
            Some(t) if t.name.starts_with("cgroup") => {
                (self.caller.cgroup)(&m.root).trim_matches('/').to_owned()
            }
            _ => from_root(m).unwrap_or_default().to_owned(),
        }
    }
    fn options(&self, m: &Mount) -> Result<Vec<(String, Option<String>)>> {
        let Some(t) = m.fstype else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for w in fstype::words(&m.options) {
            let (key, value) = match w.split_once('=') {
                Some((k, v)) => (k, Some(v.to_owned())),
                None => (w.as_str(), None),
            };
            if t.shown.contains(&key) {
                continue;
            }
            if key == fstype::CONTEXT {
                // the kernel's policy judges it, as it judges the labels of processes
                let own = value.as_deref().map(|v| v.trim_matches('"'));
                let label = self.caller.context.or(own).map(str::to_owned);
                all.push((key.to_owned(), label));
                continue;
            }
            if !t.options.contains(&key) {
                return Err(Error::new(
                    "E5303",
                    Blame::Image,
                    format!("cannot make {}", m.place()),
                )
                .why(format!(
                    "a {} file system with the option {key} is not made from an image",
                    t.name
                ))
                .advice("dump again, and name the mount with --external"));
            }
            all.push((key.to_owned(), value));
        }
        Ok(all)
    }

    // ---- places

    /// `MS_...` that decides what a copy of a mount from outside keeps of that mount's sharing.
    fn kept_sharing(&self, i: usize) -> u64 {
        let m = &self.tree.mounts[i];
        let peers = |g: Option<u32>| {
            g.is_some_and(|g| {
                self.tree
                    .mounts
                    .iter()
                    .enumerate()
                    .any(|(k, o)| k != i && o.shared == Some(g))
            })
        };
        match (m.shared, m.master) {
            // a peer of mounts outside stays one only if the caller wants that
            (Some(_), None) if self.caller.external_sharing && !peers(m.shared) => libc::MS_SHARED,
            (_, Some(_)) if !peers(m.master) => libc::MS_SLAVE,
            _ => libc::MS_PRIVATE,
        }
    }
    fn attach(&mut self) {
        let count = self.tree.mounts.len();
        let mut children = vec![Vec::new(); count];
        for i in (0..count).filter(|i| !self.tree.is_root(*i)) {
            children[self.tree.mounts[i].parent].push(i);
        }
        for (p, children) in children.into_iter().enumerate() {
            self.space = self.tree.mounts[p].space;
            let inner = |i: usize| !self.plan.inner.is_empty() && self.tree.is_inner(i);
            let (when, all): (_, Vec<_>) = (inner(p), children.iter().map(|c| inner(*c)).collect());
            let mut places = Vec::new();
            for (&c, inner) in children.iter().zip(all) {
                let at = self.name();
                let Some(&parent) = self.mounts.get(&p) else {
                    // below what is masked, or mounted later
                    continue;
                };
                let m = &self.tree.mounts[c];
                let (path, why) = (m.at.clone(), format!("{}: its place", m.place()));
                self.when = [When::Build, When::Inner][usize::from(when)];
                let automount = self.tree.mounts[p]
                    .fstype
                    .is_some_and(|t| t.make == Make::Automount);
                let call = match automount {
                    true => mnt::beneath_autofs(parent, &path),
                    false => mnt::beneath(parent, &path),
                };
                self.call(call.binds(at), why);
                places.push((c, at, inner));
            }
            for (c, at, inner) in places {
                self.when = [When::Build, When::Inner][usize::from(inner)];
                if inner && !when {
                    self.placeholder(c, at);
                }
                self.place(c, at);
            }
            self.when = When::Build;
        }
    }
    /// A proc file system of the worker's own pid namespace holds the place of one that is still to come: what is opened until then is
    /// found through it.
    fn placeholder(&mut self, c: usize, at: FdRef) {
        let why = format!("{}: held by one of our own", self.tree.mounts[c].place());
        let (context, mount) = (self.name(), self.name());
        self.when = When::Build;
        self.call(mnt::fsopen("proc").binds(context), &why);
        self.call(mnt::create(context), &why);
        self.call(mnt::fsmount(context, 0).binds(mount), &why);
        self.call(mnt::attach(mount, at), &why);
        self.when = When::Inner;
        self.call(mnt::enter(mount), &why);
        self.call(mnt::detach_here(), "its time is over");
        self.call(mnt::chdir("/"), "back to the root");
    }
    fn place(&mut self, c: usize, at: FdRef) {
        let m = self.tree.mounts[c].clone();
        let place = m.place();
        match self.sources[c] {
            Source::Mask => {
                let null = self.masks[&c];
                self.attributes(&m, null, true, |s, call, why| s.call(call, why));
                self.row(Step::Mask { at, null }, place);
            }
            Source::Late => self.late(c, at),
            _ => {
                let mount = self.mounts[&c];
                let outside = matches!(
                    self.sources[c],
                    Source::Path(_) | Source::Disk(_) | Source::Device(_)
                );
                self.attributes(&m, mount, outside, |s, call, why| s.call(call, why));
                if outside {
                    let kept = self.kept_sharing(c);
                    self.call(
                        match m.recursive {
                            true => mnt::spread(mount, kept),
                            false => mnt::setattr(mount, 0, 0, kept),
                        },
                        format!("{place}: what it keeps of its master"),
                    );
                }
                self.call(mnt::attach(mount, at), place);
            }
        }
    }
    /// What came from outside keeps every restriction it has there, and gets those it had in the tree.
    fn attributes(
        &mut self,
        m: &Mount,
        mount: FdRef,
        outside: bool,
        put: impl Fn(&mut Self, Call, String),
    ) {
        let all = flags::attributes(m.flags);
        let atime = attr::ATIME | attr::NODIRATIME;
        let why = format!("{}: flags", m.place());
        if outside {
            if all & !atime != 0 {
                put(self, mnt::setattr(mount, all & !atime, 0, 0), why.clone());
            }
            // in a user namespace these may be locked
            put(
                self,
                mnt::setattr(mount, all & atime, attr::ATIME, 0).any(),
                format!("{why} of access times, if they may be set"),
            );
        } else {
            put(self, mnt::setattr(mount, all, attr::ATIME, 0), why);
        }
    }
    fn late(&mut self, c: usize, at: FdRef) {
        let m = self.tree.mounts[c].clone();
        let whole = self
            .tree
            .mounts
            .iter()
            .position(|w| (w.dev, w.space) == (m.dev, m.space) && w.root == "/");
        let Some(&whole) = whole.and_then(|w| self.mounts.get(&w)) else {
            return;
        };
        let (file, copy) = (self.name(), self.name());
        let late = |s: &mut Self, call: Call, why: String| {
            let rows = match s.space.checked_sub(1) {
                Some(n) => &mut s.plan.further[n].1,
                None => &mut s.plan.late,
            };
            rows.push(Row {
                step: Step::Call(call),
                why,
            })
        };
        late(
            self,
            mnt::beneath(whole, m.root.trim_matches('/')).binds(file),
            format!("{}: a terminal's name", m.place()),
        );
        late(self, mnt::clone_of(file).binds(copy), m.place());
        self.attributes(&m, copy, false, late);
        late(self, mnt::attach(copy, at), m.place());
    }

    fn comes_from_outside(&self, i: usize) -> bool {
        matches!(
            self.sources[i],
            Source::Root | Source::Path(_) | Source::Disk(_) | Source::Device(_)
        )
    }

    // ---- the end

    /// Formats are registered by the first namespace that shows them, in its root: interpreters may be opened there.
    fn formats(&mut self) {
        let shows = |i: &usize| {
            let t = self.tree.mounts[*i].fstype;
            self.sources[*i] == Source::Fresh && t.is_some_and(|t| t.name == binfmt::NAME)
        };
        let first = (0..self.sources.len()).find(shows);
        let Some(i) = first.filter(|i| self.tree.mounts[*i].space == self.space) else {
            return;
        };
        let place = self.tree.mounts[i].place();
        let formats = self.caller.formats.unwrap_or_default();
        if formats.is_empty() {
            return;
        }
        // those of the tree may be read-only
        let (context, with) = (self.name(), self.name());
        self.call(mnt::fsopen(binfmt::NAME).binds(context), &place);
        self.call(mnt::create(context), &place);
        self.call(mnt::fsmount(context, 0).binds(with), &place);
        for format in formats.iter().cloned() {
            self.row(Step::Register { with, format }, &place);
        }
    }
    fn finish(&mut self) {
        let at = self.tree.roots[self.space];
        let root = self.tree.mounts[at].clone();
        let mount = self.mounts[&at];
        let outside = at == 0 || self.comes_from_outside(at);
        self.attributes(&root, mount, outside, |s, call, why| s.call(call, why));
        if let Some(folder) = self.folders.get(&self.space).copied() {
            self.detach(folder);
        }
        self.call(mnt::enter(mount), "the new root");
        self.row(
            Step::Pivot,
            "the new root becomes the root, the old one goes",
        );
        self.formats();
        self.plan.tree = self.tree.clone();
        self.plan.mounts = self
            .mounts
            .iter()
            .map(|(i, f)| (self.tree.mounts[*i].id, *f))
            .collect();
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
