//! Mount namespaces: `mountpoints-N.img`, and `tmpfs-dev-N.tar.gz.img` for the contents of each tmpfs.
//!
//! **Dump.** mountinfo is read by a visitor in the namespace, so a task's chroot(2) does not matter. What cannot come back is
//! refused by name (`stasis_mounts::look`). Contents are read through a detached copy of the mount.
//!
//! **Restore.** The plan (`stasis_mounts::plan`) is performed by the worker in the tree's namespaces, so whatever is made there
//! belongs to them; until its last step /proc is the machine's.
use crate::error::{Blame, Error, Result};
use crate::kinds::DumpCx;
use crate::options::Options;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fstatat, lstat};
use stasis_kernel::error::SysError;
use stasis_kernel::host::Host;
use stasis_kernel::ids::HostPid;
use stasis_kernel::mnt;
use stasis_kernel::ns::{self, Ns};
use stasis_kernel::procfs::{MountInfo, ProcDir};
use stasis_mounts::look::{self, View, Wishes};
use stasis_mounts::{Caller, Ids, Performer, Plan, Row, Tree, archive, binfmt, overlay, reach};
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

/// The formats of binfmt_misc.
const FORMATS: &str = "binfmt-misc.img";

/// A mount namespace that is in the image.
#[derive(Debug, Clone)]
pub struct MntNs {
    /// Its root.
    pub root: Rc<OwnedFd>,
    /// Its mounts, by the numbers that fdinfo and the image have.
    pub mounts: BTreeSet<u32>,
    /// Those and the ones that are not in the image.
    pub all: BTreeSet<u32>,
}

/// What a visitor saw.
struct Visit {
    infos: Vec<MountInfo>,
    devices: BTreeMap<i32, u64>,
    /// By device of a proc file system: the inode number of the pid namespace that it shows.
    procs: BTreeMap<(u32, u32), u64>,
    root: OwnedFd,
}

/// A mount namespace that is to be described.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its number in the image.
    pub id: u32,
    /// Its inode number.
    pub ino: u64,
    /// A task that is in it.
    pub task: HostPid,
}

/// Describes all mount namespaces of the tree, that of the first process first, contents included.
///
/// # Errors
/// E4300 to E4310: mounts that would not come back, each by name.
pub fn dump(cx: &mut DumpCx, places: &[Place]) -> Result<()> {
    let Some(first) = places.first() else {
        return Ok(());
    };
    let proc = File::open("/proc").map_err(|e| io("openat", &e, "/proc"))?;
    let mut all = Vec::with_capacity(places.len());
    for p in places {
        let handle = Ns::Mnt.of(p.task)?;
        // KERNEL: mountinfo shows the part of a cgroup hierarchy that is mounted as the reader's cgroup namespace has it
        let groups = Ns::Cgroup.of(p.task)?;
        let there = [(Ns::Cgroup, groups.as_fd()), (Ns::Mnt, handle.as_fd())];
        let seen = ns::visit(&there, || visit(&proc))??;
        all.push((handle, seen));
    }
    let host = ProcDir::open(HostPid::own())?.mountinfo()?;
    let ids = ids_of(first.task)?;
    let mut external = cx.options.mounts.external.clone();
    external.extend(crate::plugins::mounts(cx, &all[0].1.infos)?);
    let o = &cx.options.mounts;
    let wishes = Wishes {
        external: &external,
        auto_external: o.auto_external,
        external_sharing: o.external_sharing,
        skip: &o.skip,
        enable_fs: &o.enable_fs,
    };
    let spaces: Vec<&[MountInfo]> = all.iter().map(|a| &a.1.infos[..]).collect();
    let devices = all.iter().flat_map(|a| a.1.devices.clone()).collect();
    let layers = layers_of(&all, &host, &proc)?;
    let own = |m: &&MountInfo| m.fstype == b"autofs" && !host.iter().any(|h| h.dev == m.dev);
    let of_autofs = all.iter().flat_map(|a| a.1.infos.iter().filter(own));
    let automounts = of_autofs.map(|m| Ok((m.dev, super::autofs::look(cx, m)?)));
    let automounts: look::Automounts = automounts.collect::<Result<_>>()?;
    let view = View {
        spaces: &spaces,
        host: &host,
        devices: &devices,
        ids: &ids,
        layers: &layers,
        automounts: &automounts,
    };
    let procs = nested_procs(cx, &host, &all)?;
    let mut told = look::describe(&view, &wishes)?;
    for ((_, seen), entries) in all.iter().zip(&mut told.entries) {
        for e in entries {
            let info = seen.infos.iter().find(|m| m.id as u32 == e.mnt_id);
            e.stasis_pid_ns = info.and_then(|m| procs.get(&m.dev)).copied();
        }
    }
    for c in &told.contents {
        let copy = reach::copy(all[c.space].0.as_fd(), proc.as_fd(), c)?;
        let image = Kind::TmpfsDev.file_of(c.dev);
        let out = std::io::BufWriter::new(cx.dir.create_raw(&image)?);
        archive::pack(copy.as_fd(), out, &ids)
            .map_err(|e| Error::from(e).on(format!("mount {} ({})", c.mnt_id, c.mountpoint)))?;
    }
    super::autofs::write(cx, &automounts, &told.entries)?;
    // others are the machine's
    let own_users = own_users(first.task)?;
    if let Some(c) = told.formats.as_ref().filter(|_| own_users) {
        let copy = reach::copy(all[c.space].0.as_fd(), proc.as_fd(), c)?;
        let formats = binfmt::read(copy.as_fd())?;
        if !formats.is_empty() {
            cx.dir.write_all(FORMATS, &formats)?;
        }
    }
    cx.warnings.extend(told.warnings);
    for ((p, (_, seen)), entries) in places.iter().zip(all).zip(&told.entries) {
        cx.dir.write_all(&Kind::Mnts.file_of(p.id), entries)?;
        let here = MntNs {
            all: seen.infos.iter().map(|m| m.id as u32).collect(),
            root: Rc::new(seen.root),
            mounts: entries.iter().map(|e| e.mnt_id).collect(),
        };
        cx.mount_namespaces.insert(p.ino, here);
    }
    Ok(())
}

fn visit(proc: &File) -> Result<Visit> {
    let infos = mnt::own_mountinfo(proc.as_fd())?;
    let mut devices = BTreeMap::new();
    for m in infos.iter().filter(|m| m.root != b"/") {
        // one that is hidden leads to what hides it, which is no device then
        if let Ok(st) = lstat(Path::new(std::ffi::OsStr::from_bytes(&m.mountpoint)))
            && st.st_mode & libc::S_IFMT == libc::S_IFCHR
        {
            devices.insert(m.id, st.st_rdev);
        }
    }
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| SysError::new("openat", e, "/"))?;
    let proc = |m: &&MountInfo| m.fstype == b"proc" && m.root == b"/";
    let shown = |m: &MountInfo| {
        // process 1 of a proc file system is the first of the pid namespace that it shows
        let path = Path::new(std::ffi::OsStr::from_bytes(&m.mountpoint));
        let at = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        // another one may lie on it
        mnt::id_of(at.as_fd())
            .ok()
            .filter(|id| *id as i32 == m.id)?;
        let st = fstatat(&at, "1/ns/pid", AtFlags::empty()).ok()?;
        Some((m.dev, st.st_ino))
    };
    let procs = infos.iter().filter(proc).filter_map(shown).collect();
    Ok(Visit {
        infos,
        devices,
        procs,
        root,
    })
}

/// Proc file systems that show a pid namespace below that of the first process: that one, by the device of the file system.
///
/// # Errors
/// E4311: one that cannot be seen, in a tree with several pid namespaces.
fn nested_procs(
    cx: &DumpCx,
    host: &[MountInfo],
    all: &[(OwnedFd, Visit)],
) -> Result<BTreeMap<(u32, u32), u32>> {
    let nested = |ino: &u64| match cx.namespaces.get(ino) {
        Some((Ns::Pid, id)) if crate::dump::is_nested(*id) => Some(*id),
        _ => None,
    };
    if !cx.namespaces.keys().any(|ino| nested(ino).is_some()) {
        return Ok(BTreeMap::new());
    }
    let shown: BTreeMap<(u32, u32), u64> = all.iter().flat_map(|a| a.1.procs.clone()).collect();
    for m in all.iter().flat_map(|a| &a.1.infos) {
        let machines = || host.iter().any(|h| h.dev == m.dev);
        if m.fstype == b"proc" && !shown.contains_key(&m.dev) && !machines() {
            let at = String::from_utf8_lossy(&m.mountpoint);
            let what = format!("cannot dump mount {} ({at})", m.id);
            return Err(Error::new("E4311", Blame::Container, what)
                .why("another mount hides it, so nothing tells which of the tree's pid namespaces it shows")
                .advice("unmount it before the dump"));
        }
    }
    let ids = shown
        .into_iter()
        .filter_map(|(dev, ino)| Some((dev, nested(&ino)?)));
    Ok(ids.collect())
}

/// Looks for the layers of the tree's own overlays, in the namespace of each and in those before.
fn layers_of(all: &[(OwnedFd, Visit)], host: &[MountInfo], proc: &File) -> Result<look::Layers> {
    let mut layers = look::Layers::new();
    for (i, (_, seen)) in all.iter().enumerate() {
        let own = |m: &&MountInfo| m.fstype == b"overlay" && !host.iter().any(|h| h.dev == m.dev);
        for m in seen.infos.iter().filter(own) {
            if layers.contains_key(&m.dev) {
                continue;
            }
            let mut found = None;
            for (handle, _) in std::iter::once(&all[i]).chain(&all[..i]) {
                let there = [(Ns::Mnt, handle.as_fd())];
                let got = ns::visit(&there, || overlay::find(m, proc.as_fd()))?;
                // what the overlay's own namespace says counts, unless another has them
                if found.is_none() || got.is_ok() {
                    found = Some(got);
                }
                if let Some(Ok(_)) = found {
                    break;
                }
            }
            layers.extend(found.map(|f| (m.dev, f)));
        }
    }
    Ok(layers)
}

/// Is the task's user namespace another than the engine's?
fn own_users(task: HostPid) -> Result<bool> {
    let (theirs, ours) = (ProcDir::open(task)?, ProcDir::open(HostPid::own())?);
    Ok(theirs.ns("user")? != ours.ns("user")?)
}

/// Owners as the task's user namespace numbers them.
fn ids_of(task: HostPid) -> Result<Ids> {
    let (theirs, ours) = (ProcDir::open(task)?, ProcDir::open(HostPid::own())?);
    let rows = |of: &ProcDir, name: &str| -> Result<Vec<(u32, u32, u32)>> {
        Ids::rows(&of.bytes(name)?)
            .ok_or_else(|| Error::bug(format!("/proc/{}/{name} cannot be read", of.pid().0)))
    };
    let engine = (rows(&ours, "uid_map")?, rows(&ours, "gid_map")?);
    if !own_users(task)? {
        return Ok(Ids {
            engine,
            ..Default::default()
        });
    }
    Ok(Ids {
        users: rows(&theirs, "uid_map")?,
        groups: rows(&theirs, "gid_map")?,
        engine,
    })
}

fn io(call: &'static str, e: &std::io::Error, what: &str) -> Error {
    let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
    SysError::new(call, errno, what).into()
}

/// Plans how the mount namespaces with these numbers are built, that of the first process first. `own_users`: in a user
/// namespace that is made for them.
///
/// # Errors
/// E5300 to E5304: hostile or damaged entries; E2300 to E2302: the caller did not give what must come from outside.
pub fn plan(o: &Options, dir: &ImageDir, ids: &[u32], own_users: bool) -> Result<Plan> {
    let all = ids.iter().map(|id| dir.read_all(&Kind::Mnts.file_of(*id)));
    let all: Vec<Vec<pb::MntEntry>> = all.collect::<std::result::Result<_, _>>()?;
    let spaces: Vec<&[pb::MntEntry]> = all.iter().map(|e| &e[..]).collect();
    let tree = Tree::from_spaces(&spaces)?;
    let archive = |dev: u32| {
        let image = Kind::TmpfsDev.file_of(dev);
        dir.exists(&image).unwrap_or(false).then_some(image)
    };
    let automount = |dev: u32| {
        let image = Kind::Autofs.file_of(dev);
        let there = dir.exists(&image).unwrap_or(false);
        there
            .then(|| dir.read_one::<pb::AutofsEntry>(&image).ok())
            .flatten()
    };
    let mut formats = Vec::new();
    if own_users && dir.exists(FORMATS)? {
        for e in dir.read_all::<pb::BinfmtMiscEntry>(FORMATS)? {
            formats.push(binfmt::Format::new(&e)?);
        }
    }
    let caller = Caller {
        root: o.mounts.root.as_deref(),
        external: &o.mounts.external,
        external_sharing: o.mounts.external_sharing,
        enable_fs: &o.mounts.enable_fs,
        skip: &o.mounts.skip,
        context: o.mounts.context.as_deref(),
        archive: &archive,
        automount: &automount,
        formats: own_users.then_some(&formats),
        cgroup: &str::to_owned,
    };
    Ok(stasis_mounts::plan(&tree, caller)?)
}

/// The devices that may be made because an image says so.
pub fn devices(o: &Options) -> archive::Devices {
    // whoever gives the file system on a disk does not give the disk
    let given = o
        .mounts
        .external
        .iter()
        .filter(|e| !e.0.starts_with("dev["));
    archive::Devices::of(given.map(|e| e.1.as_str()))
}

/// Opens what the caller gave, where the caller's paths mean something. The rest of the plan needs it in `host`.
///
/// # Errors
/// E6300 to E6303: the machine refused a step.
pub fn fetch(dir: &ImageDir, plan: &Plan, host: &mut Host) -> Result<()> {
    perform(dir, &plan.outside, host, &archive::Devices::default())
}

/// Builds the namespace the caller is in, the one of this index, but for what needs terminals. Afterwards the caller's root is
/// the tree's.
///
/// # Errors
/// E6300 to E6311: the machine refused a step; E5305, E5306: an archive that cannot be unpacked.
pub fn build(
    o: &Options,
    dir: &ImageDir,
    plan: &Plan,
    space: usize,
    host: &mut Host,
) -> Result<()> {
    let devices = devices(o);
    perform(dir, plan.of_space(space).0, host, &devices)?;
    // one that is alone waits for nobody
    let alone = plan.shares_at_once();
    (0..plan.sharing.len())
        .filter(|_| alone)
        .try_for_each(|run| share(dir, plan, run, host))
}

/// Performs a run of the rows that set up who shares with whom, in the namespace it is for, when all are built.
///
/// # Errors
/// E6300 to E6302.
pub fn share(dir: &ImageDir, plan: &Plan, run: usize, host: &mut Host) -> Result<()> {
    let rows = plan.sharing.get(run).map_or(&[][..], |r| &r.1);
    perform(dir, rows, host, &archive::Devices::default())
}

/// Makes one of the proc file systems of pid namespaces below that of the first task: the caller is in it.
///
/// # Errors
/// E6300 to E6302.
pub fn inside(dir: &ImageDir, plan: &Plan, number: usize, host: &mut Host) -> Result<()> {
    let rows = plan.procs.get(number).map_or(&[][..], |p| &p.rows);
    perform(dir, rows, host, &archive::Devices::default())
}

/// Mounts those, and what belongs in them.
///
/// # Errors
/// E6300 to E6304.
pub fn inner(dir: &ImageDir, plan: &Plan, space: usize, host: &mut Host) -> Result<()> {
    let rows = plan.inner.get(space).map_or(&[][..], |r| r);
    perform(dir, rows, host, &archive::Devices::default())
}

/// Mounts the names of terminals, which are open by now.
///
/// # Errors
/// E6300 to E6302.
pub fn finish(dir: &ImageDir, plan: &Plan, space: usize, host: &mut Host) -> Result<()> {
    let rows = plan.of_space(space).1;
    perform(dir, rows, host, &archive::Devices::default())
}

fn perform(
    dir: &ImageDir,
    rows: &[Row],
    host: &mut Host,
    devices: &archive::Devices,
) -> Result<()> {
    Ok(Performer { host, dir, devices }.perform(rows)?)
}

impl From<stasis_mounts::Error> for Error {
    fn from(e: stasis_mounts::Error) -> Self {
        let blame = match e.blame {
            stasis_mounts::Blame::Kernel => Blame::Kernel,
            stasis_mounts::Blame::Container => Blame::Container,
            stasis_mounts::Blame::Image => Blame::Image,
            stasis_mounts::Blame::Host => Blame::Host,
            stasis_mounts::Blame::Caller => Blame::Caller,
        };
        Error::new(e.code, blame, e.what)
            .why(e.why)
            .advice(e.advice)
    }
}
