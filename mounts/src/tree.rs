//! Entries of an image, checked: one tree for each mount namespace, no cycle, no path that leaves it.
use crate::error::{Blame, Error, Result};
use crate::fstype::{self, FsType};
use crate::overlay::Layer;
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};

/// The kernel's own limit on mounts of a namespace (fs.mount-max); what has more was not dumped from one.
const MAX_MOUNTS: usize = 100_000;
/// Longest path, with its NUL, as the kernel takes it.
const MAX_PATH: usize = libc::PATH_MAX as usize;

/// A mount of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number in the image.
    pub id: u32,
    /// Index of its namespace.
    pub space: usize,
    /// Index of the parent in [`Tree::mounts`]; its own for a root.
    pub parent: usize,
    /// Where it is mounted, below the parent's mountpoint: without a slash at either end, empty for the same place.
    pub at: String,
    /// Where it is mounted, from the root on: for messages.
    pub mountpoint: String,
    /// What part of its file system it shows: absolute path.
    pub root: String,
    /// The file system: mounts with the same number show the same one.
    pub dev: u32,
    /// Its type; none for a disk's.
    pub fstype: Option<&'static FsType>,
    /// A type without number, by name (`--enable-fs`).
    pub fsname: Option<String>,
    /// `MS_...` flags of the mount.
    pub flags: u64,
    /// `MS_...` flags of the file system.
    pub sb_flags: u64,
    /// Source, a label for most types.
    pub source: String,
    /// Options of the file system.
    pub options: String,
    /// Peer group.
    pub shared: Option<u32>,
    /// Peer group it gets mounts from.
    pub master: Option<u32>,
    /// It comes from the caller, who knows it by this name.
    pub external: Option<String>,
    /// It was the machine's when it was dumped, at the same place.
    pub inherited: bool,
    /// What is mounted below it where it comes from comes with it.
    pub recursive: bool,
    /// Of an overlay: where its layers are.
    pub layers: Vec<Layer>,
    /// Of a proc file system: the pid namespace below that of the first task which it shows.
    pub pid_ns: Option<u32>,
}

impl Mount {
    /// "mount 57 (/sys/firmware)".
    pub fn place(&self) -> String {
        format!("mount {} ({})", self.id, self.mountpoint)
    }
    /// The name of its type for fsopen(2) and for people.
    pub fn type_name(&self) -> &str {
        match (self.fstype, &self.fsname) {
            (Some(t), _) => t.name,
            (None, Some(n)) => n,
            (None, None) => "a disk's",
        }
    }
}

/// Checked trees, one after the other: in each, parents stand before their children, the root first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// All mounts of all namespaces.
    pub mounts: Vec<Mount>,
    /// Index of the root of each namespace.
    pub roots: Vec<usize>,
}

fn hostile(e: &pb::MntEntry, why: impl std::fmt::Display) -> Error {
    Error::new(
        "E5300",
        Blame::Image,
        format!("mount {} ({:?}) of the image", e.mnt_id, e.mountpoint),
    )
    .why(why)
    .advice("dump again: this entry does not describe a mount")
}

/// An absolute path without `.`, `..`, empty parts and NUL.
pub(crate) fn is_plain(path: &str) -> bool {
    path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            path.len() < MAX_PATH
                && rest
                    .split('/')
                    .all(|p| !matches!(p, "" | "." | "..") && !p.contains('\0'))
        })
}

/// What is left of `path` below `base`, without slashes at the ends; both plain absolute paths.
pub(crate) fn below<'a>(path: &'a str, base: &str) -> Option<&'a str> {
    if base == "/" {
        return path.strip_prefix('/');
    }
    let rest = path.strip_prefix(base)?;
    if rest.is_empty() {
        return Some(rest);
    }
    rest.strip_prefix('/')
}

impl Tree {
    /// Checks the entries of a mountpoints image.
    ///
    /// # Errors
    /// E5300: what cannot be a tree of mounts.
    pub fn from_entries(entries: &[pb::MntEntry]) -> Result<Self> {
        Self::from_spaces(&[entries])
    }
    /// Checks the entries of the images of several namespaces, that of the first process first.
    ///
    /// # Errors
    /// E5300: what cannot be trees of mounts.
    pub fn from_spaces(spaces: &[&[pb::MntEntry]]) -> Result<Self> {
        let (mut ids, mut types, mut tree) = (BTreeSet::new(), BTreeMap::new(), Self::default());
        let mut shows = BTreeMap::new();
        for entries in spaces {
            for e in *entries {
                if !ids.insert(e.mnt_id) {
                    return Err(hostile(e, "two mounts have this number"));
                }
                // a type without number is 0 or 16, as its mount is a part or the whole
                let code = match e.fstype {
                    t if t == pb::Fstype::Auto as u32 => 0,
                    t => t,
                };
                if *types.entry(e.root_dev).or_insert(code) != code {
                    return Err(hostile(
                        e,
                        "another mount of the same file system has another type",
                    ));
                }
                if *shows.entry(e.root_dev).or_insert(e.stasis_pid_ns) != e.stasis_pid_ns {
                    return Err(hostile(
                        e,
                        "another mount of the same file system shows another pid namespace",
                    ));
                }
                check(e)?;
            }
            tree.add(entries)?;
        }
        if tree.roots.is_empty() {
            return Err(broken("there is no namespace".into()));
        }
        Ok(tree)
    }
    /// Adds the mounts of a namespace, which are checked each for itself.
    fn add(&mut self, entries: &[pb::MntEntry]) -> Result<()> {
        if entries.is_empty() || entries.len() > MAX_MOUNTS {
            return Err(broken(format!("there are {}", entries.len())));
        }
        let numbered = entries.iter().enumerate().map(|(i, e)| (e.mnt_id, i));
        let by_id: BTreeMap<u32, usize> = numbered.collect();
        let mut children: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut root = None;
        for (i, e) in entries.iter().enumerate() {
            match by_id.get(&e.parent_mnt_id) {
                Some(&p) if p != i => children.entry(p).or_default().push(i),
                _ => {
                    if let Some(first) = root.replace(i) {
                        let first: &pb::MntEntry = &entries[first];
                        return Err(hostile(
                            e,
                            format!(
                                "its parent {} is not there, and mount {} is the root already",
                                e.parent_mnt_id, first.mnt_id
                            ),
                        ));
                    }
                }
            }
        }
        let Some(root) = root else {
            return Err(broken(
                "none is the root: parents go round in a circle".into(),
            ));
        };
        if entries[root].mountpoint != "/" {
            return Err(hostile(
                &entries[root],
                "it is the root of the tree and not mounted at /",
            ));
        }
        let (space, first) = (self.roots.len(), self.mounts.len());
        self.roots.push(first);
        let mut queue = std::collections::VecDeque::from([(root, first)]);
        while let Some((i, parent)) = queue.pop_front() {
            let e = &entries[i];
            let at = match i == root {
                true => "",
                false => {
                    let up = &self.mounts[parent].mountpoint;
                    below(&e.mountpoint, up).ok_or_else(|| {
                        hostile(e, format!("it is not below its parent's place {up}"))
                    })?
                }
            };
            let me = self.mounts.len();
            self.mounts.push(mount(e, space, parent, at));
            let mut places = BTreeSet::new();
            for &c in children.get(&i).into_iter().flatten() {
                if !places.insert(&entries[c].mountpoint) {
                    return Err(hostile(
                        &entries[c],
                        "another mount with the same parent has this place",
                    ));
                }
                queue.push_back((c, me));
            }
        }
        let reached = self.mounts.len() - first;
        if reached != entries.len() {
            return Err(broken(format!(
                "{} of {} cannot be reached from the root",
                entries.len() - reached,
                entries.len()
            )));
        }
        Ok(())
    }
    /// The root of the first namespace.
    pub fn root(&self) -> &Mount {
        &self.mounts[0]
    }
    /// Is it a proc file system of a pid namespace below that of the first task, or mounted in one?
    pub fn is_inner(&self, mut i: usize) -> bool {
        loop {
            if self.mounts[i].pid_ns.is_some() {
                return true;
            }
            if self.is_root(i) {
                return false;
            }
            i = self.mounts[i].parent;
        }
    }
    /// Is this the root of a namespace?
    pub fn is_root(&self, i: usize) -> bool {
        self.roots.contains(&i)
    }
    /// Index of the mount on which the way along a plain absolute path ends in a namespace.
    pub fn at_path(&self, space: usize, path: &str) -> usize {
        let mut at = self.roots[space];
        loop {
            // the way meets the child nearest to the root first; one at the very place of its parent hides all of it
            let next = (at + 1..self.mounts.len())
                .filter(|i| self.mounts[*i].parent == at && self.mounts[*i].space == space)
                .filter(|i| below(path, &self.mounts[*i].mountpoint).is_some())
                .min_by_key(|i| self.mounts[*i].mountpoint.len());
            match next {
                Some(n) => at = n,
                None => return at,
            }
        }
    }
}

fn broken(why: String) -> Error {
    Error::new("E5300", Blame::Image, "the mounts of the image are no tree")
        .why(why)
        .advice("dump again: this image does not describe a mount namespace")
}

fn check(e: &pb::MntEntry) -> Result<()> {
    if !is_plain(&e.mountpoint) {
        return Err(hostile(e, "its place is not a plain absolute path"));
    }
    for (name, text) in [
        ("source", Some(&e.source)),
        ("options", Some(&e.options)),
        ("root", Some(&e.root)),
        ("type", e.fsname.as_ref()),
        ("name", e.ext_key.as_ref()),
    ] {
        if text.is_some_and(|t| t.len() >= MAX_PATH || t.contains('\0')) {
            return Err(hostile(
                e,
                format!("its {name} is not a text the kernel takes"),
            ));
        }
    }
    for l in &e.stasis_layers {
        if !l.path.is_empty() && !is_plain(&format!("/{}", l.path)) {
            return Err(hostile(
                e,
                format!("its layer {:?} is not on a plain path", l.name),
            ));
        }
    }
    let known = fstype::by_code(e.fstype).is_some()
        || e.fstype == pb::Fstype::Unsupported as u32
        || e.fstype == pb::Fstype::Auto as u32 && e.fsname.is_some();
    if !known {
        return Err(hostile(
            e,
            format!("file system type {} is not known", e.fstype),
        ));
    }
    if e.stasis_pid_ns.is_some() && e.fstype != pb::Fstype::Proc as u32 {
        return Err(hostile(e, "only a proc file system shows a pid namespace"));
    }
    Ok(())
}

fn layer(l: &pb::StasisLayer) -> Layer {
    Layer {
        name: l.name.clone(),
        mount: l.mnt_id,
        path: l.path.clone(),
    }
}

fn mount(e: &pb::MntEntry, space: usize, parent: usize, at: &str) -> Mount {
    let group = |g: Option<u32>| g.filter(|g| *g != 0);
    // images of before CRIU 2 say so in the root
    let old = e.ext_mount().then(|| e.root.clone());
    Mount {
        id: e.mnt_id,
        space,
        parent,
        at: at.to_owned(),
        mountpoint: e.mountpoint.clone(),
        root: e.root.clone(),
        dev: e.root_dev,
        fstype: fstype::by_code(e.fstype),
        fsname: e
            .fsname
            .clone()
            .filter(|_| e.fstype == pb::Fstype::Auto as u32),
        flags: e.flags.into(),
        sb_flags: e.sb_flags().into(),
        source: e.source.clone(),
        options: e.options.clone(),
        shared: group(e.shared_id),
        master: group(e.master_id),
        external: e.ext_key.clone().or(old),
        inherited: e.stasis_inherited(),
        recursive: e.stasis_recursive(),
        layers: e.stasis_layers.iter().map(layer).collect(),
        pid_ns: e.stasis_pid_ns,
    }
}

/// Is this the part of a file system that `part` shows, seen from one that shows `whole`? Gives the path between them.
pub(crate) fn part_of<'a>(part: &'a Mount, whole: &Mount) -> Option<&'a str> {
    (part.dev == whole.dev && is_plain(&part.root) && is_plain(&whole.root))
        .then(|| below(&part.root, &whole.root))
        .flatten()
}

/// Can this be shown from the root of its file system?
pub(crate) fn from_root(m: &Mount) -> Option<&str> {
    is_plain(&m.root).then(|| below(&m.root, "/")).flatten()
}
