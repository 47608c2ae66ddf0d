//! A case in a container: the guest runs below a first process of its own pid, mount, network, IPC and UTS namespaces (and user
//! namespace, if asked), in a root of its own, as a runtime would have it. The engine is outside, in the box.
//!
//! The root is a folder with binds of the system's programs (external mounts, which the engine is told of), and tmpfs, proc,
//! devpts and mqueue of its own. The folder of the case is bound at the same path inside and outside.

use crate::build;
use crate::case::Spec;
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// First argument that turns a binary into the founder of a container.
pub const FOUND_FLAG: &str = "--stasis-container";
const INIT_FLAG: &str = "--stasis-container-init";

/// What kind of container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sort {
    /// In the box's user namespace.
    Root,
    /// In a user namespace of its own, with ids 0 to 65535 mapped to 100000 and on.
    User,
}

/// System folders bound into the root, read-only.
const SYSTEM: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];
/// Device nodes.
const NODES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const MAPS: &str = "0 100000 65536\n";

fn externals(spec: &Spec, sort: Sort) -> Vec<PathBuf> {
    let system = SYSTEM.iter().map(PathBuf::from).filter(|p| {
        // a link into /usr stays one
        p.symlink_metadata().is_ok_and(|m| m.is_dir())
    });
    let mut all: Vec<PathBuf> = system.collect();
    all.push(spec.guest.parent().unwrap_or(Path::new("/")).into());
    all.push(spec.dir.join("work"));
    if sort == Sort::User {
        all.extend(NODES.iter().map(|n| Path::new("/dev").join(n.0)));
    }
    all
}

/// What the engine must be told at dump or at restore.
pub fn options(spec: &Spec, sort: Sort, restore: bool) -> Vec<String> {
    let mut all = vec!["--root".to_string(), root(spec).display().to_string()];
    for e in externals(spec, sort) {
        let (path, name) = (e.display().to_string(), key(&e));
        all.push("--external".into());
        all.push(match restore {
            false => format!("mnt[{path}]:{name}"),
            true => format!("mnt[{name}]:{path}"),
        });
    }
    all
}

fn key(path: &Path) -> String {
    path.display()
        .to_string()
        .trim_start_matches('/')
        .replace('/', "-")
}

fn root(spec: &Spec) -> PathBuf {
    spec.dir.join("rootfs")
}

/// Makes the folder that will be the root; the box does this once, before the first start.
pub fn prepare(spec: &Spec, sort: Sort) -> Result<()> {
    let root = root(spec);
    fs::create_dir(&root)?;
    for d in ["proc", "dev", "tmp", "etc", "sys"] {
        fs::create_dir(root.join(d))?;
    }
    for e in externals(spec, sort) {
        let rel = e.strip_prefix("/")?;
        if !rel.starts_with("dev") {
            fs::create_dir_all(root.join(rel))?;
        }
    }
    for s in SYSTEM {
        if let Ok(to) = fs::read_link(s) {
            symlink(to, root.join(&s[1..]))?;
        }
    }
    fs::write(root.join("etc/hostname"), "contained\n")?;
    let told = spec.dir.join("container.pid");
    fs::write(&told, "")?;
    fs::set_permissions(&told, fs::Permissions::from_mode(0o666))?;
    if sort == Sort::User {
        std::os::unix::fs::chown(&root, Some(100_000), Some(100_000))?;
    }
    // a mount of its own, as a runtime makes it: also what a restore is given
    let none: Option<&str> = None;
    mount(Some(&root), &root, none, MsFlags::MS_BIND, none)?;
    Ok(())
}

/// Starts the container; gives the pid of its first process, which becomes a child of the box's init.
pub fn start(spec: &Spec) -> Result<i32> {
    let file = spec.dir.join("spec.json");
    let mut founder = Command::new(std::env::current_exe()?)
        .args([FOUND_FLAG.as_ref(), file.as_os_str()])
        .stdin(Stdio::null())
        .spawn()?;
    let status = founder.wait()?;
    if !status.success() {
        bail!("the founder of the container: {status}");
    }
    let text = fs::read_to_string(spec.dir.join("container.pid"))?;
    text.trim().parse().context("pid of the container")
}

/// Plays founder or first process if the arguments say so; `None` if they do not.
pub fn main_if_container(args: &[String]) -> Option<Result<()>> {
    match (args.get(1).map(String::as_str), args.get(2)) {
        (Some(FOUND_FLAG), Some(spec)) => Some(found(Path::new(spec))),
        (Some(INIT_FLAG), Some(spec)) => Some(init(Path::new(spec))),
        _ => None,
    }
}

fn read(file: &Path) -> Result<(Spec, Sort)> {
    let spec: Spec = serde_json::from_slice(&fs::read(file)?)?;
    let sort = spec.container.context("not a container's case")?;
    Ok((spec, sort))
}

fn found(file: &Path) -> Result<()> {
    let (spec, sort) = read(file)?;
    if sort == Sort::User {
        users()?;
    }
    unshare(
        CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET,
    )?;
    // opened before: the first process takes the root away from all in this mount namespace (pivot_root)
    let mut told = File::options()
        .write(true)
        .open(spec.dir.join("container.pid"))?;
    let first = Command::new(std::env::current_exe()?)
        .args([INIT_FLAG.as_ref(), file.as_os_str()])
        .stdin(Stdio::null())
        .spawn()?;
    told.write_all(first.id().to_string().as_bytes())?;
    Ok(())
}

/// A user namespace with maps: written by a helper that stays outside.
fn users() -> Result<()> {
    let own = std::process::id();
    let (r, w) = nix::unistd::pipe()?;
    let mut mapper = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "read x; printf '{MAPS}' > /proc/{own}/uid_map && printf '{MAPS}' > /proc/{own}/gid_map"
        ))
        .stdin(r)
        .spawn()?;
    unshare(CloneFlags::CLONE_NEWUSER)?;
    nix::unistd::write(&w, b"\n")?;
    drop(w);
    if !mapper.wait()?.success() {
        bail!("the maps of the user namespace were refused");
    }
    nix::unistd::setgroups(&[])?;
    nix::unistd::setgid(0.into())?;
    nix::unistd::setuid(0.into())?;
    Ok(())
}

fn init(file: &Path) -> Result<()> {
    let (spec, sort) = read(file)?;
    let root = root(&spec);
    let none: Option<&str> = None;
    let slave = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, slave, none)?;
    mount(Some(&root), &root, none, MsFlags::MS_BIND, none)?;
    let at = |p: &str| root.join(p);
    let fs_at = |kind: &str, p: &str, flags: MsFlags, data: &str| {
        mount(Some(kind), &at(p), Some(kind), flags, Some(data))
            .with_context(|| format!("{kind} on /{p}"))
    };
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    fs_at("proc", "proc", quiet, "")?;
    fs_at("tmpfs", "dev", MsFlags::MS_NOSUID, "mode=755,size=65536k")?;
    fs_at(
        "tmpfs",
        "tmp",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        "mode=1777",
    )?;
    for d in ["pts", "shm", "mqueue"] {
        fs::create_dir(at("dev").join(d))?;
    }
    let pts = "newinstance,ptmxmode=0666,mode=0620";
    fs_at(
        "devpts",
        "dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        pts,
    )?;
    fs_at("tmpfs", "dev/shm", quiet, "mode=1777,size=65536k")?;
    fs_at("mqueue", "dev/mqueue", quiet, "")?;
    symlink("pts/ptmx", at("dev/ptmx"))?;
    symlink("/proc/self/fd", at("dev/fd"))?;
    for (name, major, minor) in NODES {
        let node = at("dev").join(name);
        match sort {
            Sort::Root => {
                let mode = Mode::from_bits_truncate(0o666);
                mknod(&node, SFlag::S_IFCHR, mode, makedev(major, minor))?;
                nix::sys::stat::fchmodat(
                    nix::fcntl::AT_FDCWD,
                    &node,
                    mode,
                    nix::sys::stat::FchmodatFlags::FollowSymlink,
                )?;
            }
            Sort::User => drop(File::create(&node)?),
        }
    }
    for e in externals(&spec, sort) {
        let to = root.join(e.strip_prefix("/")?);
        if !to.starts_with(root.join("dev")) {
            // below a tmpfs of the container's own
            fs::create_dir_all(&to)?;
        }
        mount(Some(&e), &to, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind of {}", e.display()))?;
        if SYSTEM.iter().any(|s| e == Path::new(s)) {
            let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            // a user namespace may not take these back
            let st = nix::sys::statvfs::statvfs(&to)?.flags();
            for (of, flag) in [
                (nix::sys::statvfs::FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
                (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
            ] {
                if st.contains(of) {
                    flags |= flag;
                }
            }
            mount(none, &to, none, flags, none)?;
        }
    }
    nix::unistd::sethostname("contained")?;
    nix::unistd::chdir(&root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir(&spec.dir.join("work"))?;
    nix::unistd::setsid()?;
    let log = File::options()
        .append(true)
        .create(true)
        .mode(0o666)
        .open(spec.dir.join("work/log"))?;
    let init = spec
        .guest
        .parent()
        .unwrap_or(Path::new("/"))
        .join("lib-init");
    let e = Command::new(init)
        .arg(&spec.guest)
        .arg(spec.dir.join("work"))
        .arg("-")
        .args(&spec.args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("GUEST", "stasis")
        .stdin(File::open("/dev/null")?)
        .stdout(log.try_clone()?)
        .stderr(log)
        .exec();
    Err(e).context("starting the container's first process")
}

/// Compiles the container's first process beside the guests.
///
/// # Errors
/// As for guests.
pub fn build_init() -> Result<()> {
    build::compile("lib-init", &build::source_dir().join("lib/init.c")).map(drop)
}
