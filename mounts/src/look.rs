//! What a dump sees in mountinfo becomes entries of an image; what could not be brought back is refused by name.
//!
//! A mount comes back in one of these ways, and the first that fits is taken: the caller knows it by a name (external); it is
//! the machine's own, at the same place (a tree whose mount namespace is a copy of the machine's); its file system can be made
//! anew; it shows a part of another mount of the tree; it is one of the devices every machine has.
use crate::error::{Blame, Error, Result};
use crate::flags;
use crate::fstype::{self, FsType, Make};
use crate::ids::Ids;
use crate::tree::{below, is_plain};
use stasis_kernel::procfs::MountInfo;
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};

mod layers;
use layers::layers;
pub use layers::{Automounts, Layers};

/// What the caller said of mounts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes<'a> {
    /// Mountpoint in the tree, or `dev[MAJOR/MINOR]` of a disk, and the name by which the caller will know it.
    pub external: &'a [(String, String)],
    /// Mounts that come from elsewhere are external, known by their mountpoint.
    pub auto_external: bool,
    /// Mounts may share with mounts outside of the tree.
    pub external_sharing: bool,
    /// Mountpoints that are left out, with all below them.
    pub skip: &'a [String],
    /// File system types that are made anew though they show the whole machine, or are not known; `all`.
    pub enable_fs: &'a [String],
}

/// What there is to see.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The mounts of each namespace, from its root; that of the first process first.
    pub spaces: &'a [&'a [MountInfo]],
    /// The machine's, from the engine's root.
    pub host: &'a [MountInfo],
    /// Device numbers (`st_rdev`) of mounts whose root is a character device, by mount id.
    pub devices: &'a BTreeMap<i32, u64>,
    /// Owners as the tree knows them.
    pub ids: &'a Ids,
    /// The layers of overlays, by device number; or why they cannot be found.
    pub layers: &'a Layers,
    /// Mounts of autofs that can be carried, by device number; or why they cannot.
    pub automounts: &'a Automounts,
}

/// A tmpfs whose contents go into the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Index of the namespace through which it is reached.
    pub space: usize,
    /// Number of the file system: of its archive.
    pub dev: u32,
    /// The mount that shows all of it.
    pub mnt_id: u32,
    /// Where.
    pub mountpoint: String,
}

/// The entries and what else the image needs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Described {
    /// For each namespace, in the order of images: the newest mount first.
    pub entries: Vec<Vec<pb::MntEntry>>,
    /// What is to be archived.
    pub contents: Vec<Contents>,
    /// Where the formats of the tree's own binfmt_misc are to be read.
    pub formats: Option<Contents>,
    /// What will not come back as it was.
    pub warnings: Vec<String>,
}

/// Devices that are the same on every machine and keep no state: (major, minor) and name.
pub static DEVICES: &[(u32, u32, &str)] = &[
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
    (5, 0, "/dev/tty"),
];

/// A mount while it is judged.
struct One<'a> {
    space: usize,
    info: &'a MountInfo,
    mountpoint: String,
    root: String,
    dev: u32,
    fstype: Option<&'static FsType>,
    external: Option<String>,
    /// It is the file system of a disk that the caller knows by this name.
    disk: Option<String>,
    inherited: bool,
    /// What is mounted below it outside comes with it.
    recursive: bool,
    /// It comes with the one it is mounted on, or with the one that is mounted on.
    rides: bool,
    /// Of an overlay that is made again: where its layers are.
    layers: Vec<pb::StasisLayer>,
}

impl One<'_> {
    fn refuse(&self, code: &'static str, why: impl std::fmt::Display) -> Error {
        let what = format!("cannot dump mount {} ({})", self.info.id, self.mountpoint);
        Error::new(code, Blame::Container, what).why(why)
    }
    fn type_name(&self) -> String {
        String::from_utf8_lossy(&self.info.fstype).into_owned()
    }
    /// It comes from outside, one way or other.
    fn outside(&self) -> bool {
        self.external.is_some()
    }
}

/// Device number as images have it: the kernel's own, with 20 bits of minor.
fn kernel_dev((major, minor): (u32, u32)) -> u32 {
    major << 20 | minor & 0xf_ffff
}

/// Judges the mounts of all namespaces of a tree.
///
/// # Errors
/// E4300 to E4307, for the first mount that could not be brought back.
pub fn describe(view: &View, wishes: &Wishes) -> Result<Described> {
    let mut all = Vec::new();
    let mut roots = Vec::new();
    for (space, infos) in view.spaces.iter().enumerate() {
        let first = all.len();
        all.extend(collect(space, infos, wishes)?);
        let Some(root) = all[first..].iter().position(|m| is_root(m.info, infos)) else {
            return Err(Error::new(
                "E4300",
                Blame::Container,
                "a mount namespace of the tree has no root mount",
            )
            .why("the task's root is not the root of a mount")
            .advice("let the runtime pivot_root(2) into a mount"));
        };
        roots.push(first + root);
    }
    let Some(&root) = roots.first() else {
        return Ok(Described::default());
    };
    let copies: Vec<bool> = roots
        .iter()
        .map(|r| {
            let same = |h: &&MountInfo| {
                h.mountpoint == b"/" && h.dev == all[*r].info.dev && h.root == all[*r].info.root
            };
            view.host.iter().any(|h| same(&h))
        })
        .collect();
    for (i, m) in all.iter_mut().enumerate() {
        if i == root {
            continue;
        }
        m.external = wishes
            .external
            .iter()
            .find(|(at, _)| m.space == 0 && trimmed(at) == m.mountpoint)
            .map(|(_, name)| name.clone());
        if m.external.is_none() && m.root == "/" && m.fstype.is_none() {
            let key = format!("dev[{}/{}]", m.info.dev.0, m.info.dev.1);
            let named = wishes.external.iter().find(|(dev, _)| *dev == key);
            if named.is_some() && !fstype::DISKS.contains(&m.type_name().as_str()) {
                return Err(m
                    .refuse(
                        "E4302",
                        format!(
                            "file systems of type {} are not mounted from images",
                            m.type_name()
                        ),
                    )
                    .advice(format!("pass --external mnt[{}]:NAME", m.mountpoint)));
            }
            m.disk = named.map(|(_, name)| format!("dev[{name}]"));
            m.external = named.map(|_| fstype::EXTERNAL_DISK.to_owned());
        }
        if m.external.is_none() && copies[m.space] && in_host(m, view.host) {
            m.external = Some(m.mountpoint.clone());
            m.inherited = true;
        }
    }
    riders(&mut all, view);
    let mut out = Described::default();
    let mut archived = BTreeSet::new();
    for i in 0..all.len() {
        if i == root {
            continue;
        }
        if !all[i].outside() && !all[i].rides {
            let external = judge(&all, i, root, view, wishes)?;
            let layered = all[i].fstype.is_some_and(|t| t.make == Make::Layered);
            if layered && external.is_none() {
                all[i].layers = layers(&all, &all[i], view).unwrap_or_default();
            }
            all[i].external = external;
        }
    }
    all.retain(|m| !m.rides);
    let root = all
        .iter()
        .position(|m| m.space == 0 && is_root(m.info, view.spaces[0]))
        .unwrap_or(root);
    for (i, m) in all.iter().enumerate() {
        sharing(&all, i, root, view, wishes)?;
        let filled = m.fstype.is_some_and(|t| t.make == Make::Filled);
        let shown = |w: &One| w.outside() && w.dev == m.dev && below(&m.root, &w.root).is_some();
        let from_outside = all.iter().any(shown);
        let place = Contents {
            space: m.space,
            dev: m.dev,
            mnt_id: m.info.id as u32,
            mountpoint: m.mountpoint.clone(),
        };
        let hosts = view.host.iter().any(|h| h.dev == m.info.dev);
        if m.root == "/" && m.type_name() == crate::binfmt::NAME && !m.outside() && !hosts {
            out.formats.get_or_insert(place.clone());
        }
        if filled && i != root && !from_outside && m.root == "/" && archived.insert(m.dev) {
            out.contents.push(place);
        }
    }
    let of = |space| all.iter().rev().filter(move |m| m.space == space);
    out.entries = (0..view.spaces.len())
        .map(|space| of(space).map(|m| entry(m, view)).collect())
        .collect();
    Ok(out)
}

/// A recursive bind of a folder of the caller's (`rbind` of OCI runtimes): mounts on it that are the machine's own come with it
/// again, and are no business of the image's.
fn riders(all: &mut [One], view: &View) {
    let hosts = |m: &MountInfo| {
        // KERNEL: the root of a cgroup hierarchy is told as the reader's cgroup namespace has it
        let groups = m.fstype.starts_with(b"cgroup");
        let same = |h: &MountInfo| h.dev == m.dev && (h.root == m.root || groups);
        view.host.iter().any(same)
    };
    loop {
        // mounts have no order that one could rely on
        let new = (0..all.len()).find_map(|i| {
            let m = &all[i];
            let on = all.iter().position(|p| p.info.id == m.info.parent)?;
            let carries = all[on].rides || all[on].outside() && !all[on].inherited;
            (!m.rides && !m.outside() && carries && on != i && hosts(m.info)).then_some((i, on))
        });
        let Some((i, on)) = new else { break };
        all[i].rides = true;
        all[on].recursive = true;
    }
}

fn is_root(m: &MountInfo, all: &[MountInfo]) -> bool {
    m.parent == m.id || !all.iter().any(|p| p.id == m.parent)
}

fn trimmed(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => "/",
        p => p,
    }
}

/// All mounts of a namespace but those left out.
fn collect<'a>(space: usize, infos: &'a [MountInfo], wishes: &Wishes) -> Result<Vec<One<'a>>> {
    let mut all = Vec::new();
    let mut skipped = BTreeSet::new();
    for info in infos {
        let text = |bytes: &[u8], what: &str| {
            std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| {
                let place = String::from_utf8_lossy(&info.mountpoint);
                Error::new(
                    "E4307",
                    Blame::Container,
                    format!("cannot dump mount {} ({place})", info.id),
                )
                .why(format!(
                    "its {what} is not UTF-8, which the image format needs"
                ))
                .advice("rename it")
            })
        };
        let mountpoint = text(&info.mountpoint, "place")?;
        if skipped.contains(&info.parent) || wishes.skip.iter().any(|s| trimmed(s) == mountpoint) {
            skipped.insert(info.id);
            continue;
        }
        text(&info.source, "source")?;
        text(&info.super_options, "list of options")?;
        let name = text(&info.fstype, "type")?;
        all.push(One {
            space,
            info,
            mountpoint,
            root: text(&info.root, "root")?,
            dev: kernel_dev(info.dev),
            fstype: fstype::by_name(&name),
            external: None,
            disk: None,
            inherited: false,
            recursive: false,
            rides: false,
            layers: Vec::new(),
        });
    }
    Ok(all)
}

fn in_host(m: &One, host: &[MountInfo]) -> bool {
    host.iter()
        .any(|h| h.mountpoint == m.info.mountpoint && h.dev == m.info.dev && h.root == m.info.root)
}

/// How will it come back? A name, if it has to come from the caller.
fn judge(
    all: &[One],
    i: usize,
    root: usize,
    view: &View,
    wishes: &Wishes,
) -> Result<Option<String>> {
    let m = &all[i];
    if m.root.ends_with("//deleted") {
        return Err(m
            .refuse("E4305", "what it shows was deleted")
            .advice("unmount it before the dump"));
    }
    if m.info.options.iter().any(|o| o == b"idmapped") {
        return Err(m
            .refuse("E4304", "its owners are mapped (idmapped mount)")
            .advice("unmount it before the dump, or leave it out with --skip-mnt"));
    }
    if let Some(rdev) = view.devices.get(&m.info.id) {
        let (major, minor) = (libc::major(*rdev), libc::minor(*rdev));
        if let Some(d) = DEVICES.iter().find(|d| (d.0, d.1) == (major, minor)) {
            return Ok(Some(d.2.to_owned()));
        }
    }
    let enabled = |t: &str| wishes.enable_fs.iter().any(|e| e == t || e == "all");
    // the machine's own devpts or tmpfs, with all that is in it, is not the tree's
    let hosts = view.host.iter().any(|h| h.dev == m.info.dev);
    let whole = all
        .iter()
        .any(|w| w.dev == m.dev && w.root == "/" && !w.outside());
    let layered = m.fstype.filter(|t| t.make == Make::Layered && !hosts);
    let layered = layered.map(|_| layers(all, m, view));
    let fresh = match m.fstype {
        // of a cgroup file system it may be above the root of the reader's namespace: /../..
        _ if !is_plain(&m.root) => false,
        Some(t) if t.name == "devpts" => !hosts && whole,
        Some(t) => match t.make {
            Make::Fresh | Make::HostWide => true,
            Make::Filled => !hosts && whole,
            Make::Layered => layered.as_ref().is_some_and(Result::is_ok),
            Make::Automount => matches!(view.automounts.get(&m.info.dev), Some(Ok(_))),
            Make::Never => false,
        },
        None => enabled(&m.type_name()) && whole,
    };
    let part =
        |w: &One| w.dev == m.dev && w.info.id != m.info.id && below(&m.root, &w.root).is_some();
    // two that each show what the other shows need one that comes from somewhere
    let shown = part(&all[root]) || all.iter().any(|w| w.outside() && part(w));
    if fresh || shown {
        return Ok(None);
    }
    if wishes.auto_external {
        return Ok(Some(m.mountpoint.clone()));
    }
    let never = m.fstype.filter(|t| t.make == Make::Never && m.root == "/");
    if let Some(Err(why)) = layered {
        return Err(m.refuse("E4312", why).advice(format!(
            "pass --external mnt[{}]:NAME, or unmount it before the dump",
            m.mountpoint
        )));
    }
    if let Some(Err(why)) = view.automounts.get(&m.info.dev) {
        return Err(m
            .refuse("E4314", why)
            .advice("dump it with its daemon, or unmount it before the dump"));
    }
    let advice = format!(
        "pass --external mnt[{}]:NAME, and at restore --external mnt[NAME]:PATH",
        m.mountpoint
    );
    Err(match never {
        Some(t) => m.refuse(
            "E4302",
            format!("file systems of type {} are not made from images", t.name),
        ),
        None => m.refuse(
            "E4301",
            format!(
                "it shows {} of a {} file system that nothing else in the tree shows",
                m.root,
                m.type_name()
            ),
        ),
    }
    .advice(advice))
}

/// Peers and masters must come back, too, or come from outside with the mount.
fn sharing(all: &[One], i: usize, root: usize, view: &View, wishes: &Wishes) -> Result<()> {
    let m = &all[i];
    let outside = i == root || m.outside();
    let in_tree = |g: u32| all.iter().any(|o| o.info.shared == Some(g));
    let in_host = |g: u32| view.host.iter().any(|o| o.shared == Some(g));
    if let Some(g) = m.info.shared.filter(|g| in_host(*g) && !m.inherited)
        && !(outside && wishes.external_sharing)
    {
        return Err(m
            .refuse(
                "E4306",
                format!("it shares with mounts outside of the tree (group {g})"),
            )
            .advice(match outside {
                true => "pass --enable-external-sharing, or make it private",
                false => "make it private (mount --make-private) before the dump",
            }));
    }
    if let Some(g) = m.info.master.filter(|g| !in_tree(*g))
        && !outside
    {
        return Err(m
            .refuse(
                "E4306",
                format!("it gets its mounts from outside of the tree (group {g})"),
            )
            .advice("make it private (mount --make-private), or name it with --external"));
    }
    Ok(())
}

fn entry(m: &One, view: &View) -> pb::MntEntry {
    let i = m.info;
    let shown = String::from_utf8_lossy(&i.super_options);
    let (sb_flags, rest) = flags::split_super(&shown);
    let mut options: Vec<String> = rest
        .into_iter()
        .filter_map(|o| match o.split_once('=') {
            Some((key @ ("uid" | "gid"), v)) => match v.parse() {
                Ok(v) => Some(format!("{key}={}", view.ids.in_option(key, v)?)),
                Err(_) => Some(o.to_owned()),
            },
            _ => Some(o.to_owned()),
        })
        .collect();
    if m.fstype.is_some_and(|t| t.name == "devpts") && !view.host.iter().any(|h| h.dev == i.dev) {
        // KERNEL: not shown; each has been an instance of its own since 4.7
        options.push("newinstance".into());
    }
    let mut bits = flags::of_words(i.options.iter().map(Vec::as_slice));
    if i.shared.is_some() {
        bits |= libc::MS_SHARED;
    }
    if i.master.is_some() {
        bits |= libc::MS_SLAVE;
    }
    if i.unbindable {
        bits |= libc::MS_UNBINDABLE;
    }
    // a disk's file system has no number; what comes from outside needs none
    let unnumbered = !m.outside() && i.dev.0 == 0 || m.disk.is_some();
    let auto = m.fstype.is_none() && m.root == "/" && m.mountpoint != "/" && unnumbered;
    pb::MntEntry {
        fstype: match m.fstype {
            Some(t) => t.code as u32,
            None if auto => pb::Fstype::Auto as u32,
            None => pb::Fstype::Unsupported as u32,
        },
        mnt_id: i.id as u32,
        root_dev: m.dev,
        parent_mnt_id: i.parent as u32,
        flags: bits as u32,
        root: m.root.clone(),
        mountpoint: m.mountpoint.clone(),
        source: match &m.disk {
            Some(name) => name.clone(),
            None => String::from_utf8_lossy(&i.source).into_owned(),
        },
        options: options.join(","),
        shared_id: Some(i.shared.unwrap_or(0)),
        master_id: Some(i.master.unwrap_or(0)),
        fsname: auto.then(|| m.type_name()),
        sb_flags: Some(sb_flags as u32),
        ext_key: m.external.clone(),
        stasis_inherited: m.inherited.then_some(true),
        stasis_recursive: m.recursive.then_some(true),
        stasis_layers: m.layers.clone(),
        ..Default::default()
    }
}
