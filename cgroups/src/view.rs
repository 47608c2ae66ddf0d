//! The hierarchies of control groups that are mounted where we can see them.
use crate::error::{Error, Result, Side};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use stasis_kernel::ids::{HostPid, RemoteFd};
use stasis_kernel::procfs::{CgroupLine, MountInfo, ProcDir};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Longest file of a group that is read, in bytes. Lists of devices are the longest and stay far below.
const LONGEST: u64 = 1 << 20;

/// One mounted hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    /// Its controllers as /proc/PID/cgroup names them: `cpu`, `cpuacct`, or `name=systemd`; one empty name is cgroup v2.
    pub names: Vec<String>,
    /// Where it is mounted, for messages.
    pub shown: PathBuf,
    /// The group at the root of the mount: `/` unless only a part is mounted.
    pub root: String,
    dir: OwnedFd,
}

/// All of them.
#[derive(Debug, Default)]
pub struct View {
    /// In the order of /proc/self/cgroup.
    pub hierarchies: Vec<Hierarchy>,
}

/// A directory or file of a group, opened.
fn open_at(dir: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            // openat2(2): a rename elsewhere may have been in the way
            Err(Errno::AGAIN) => {}
            done => return done,
        }
    }
}

impl Hierarchy {
    /// Is it cgroup v2?
    pub fn is_v2(&self) -> bool {
        self.names.iter().any(String::is_empty)
    }
    /// Does it have this controller?
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }
    /// A group's place below the mount, without a slash in front; `None` if it is outside of what is mounted.
    pub fn below<'a>(&self, group: &'a str) -> Option<&'a str> {
        let rest = match self.root.as_str() {
            "/" => group,
            root => group.strip_prefix(root)?,
        };
        match rest {
            "" | "/" => Some("."),
            r => r
                .strip_prefix('/')
                .filter(|r| !r.split('/').any(|c| c == "..")),
        }
    }
    /// The directory of a group.
    ///
    /// # Errors
    /// ENOENT if it is not there, or not below the mount.
    pub fn open(&self, group: &str) -> Result<OwnedFd> {
        self.try_open(group)
            .map_err(|e| Error::call("openat2", e, self.path(group)))
    }
    pub(crate) fn try_open(&self, group: &str) -> Result<OwnedFd, Errno> {
        let rel = self.below(group).ok_or(Errno::NOENT)?;
        open_at(self.dir.as_fd(), rel, OFlags::RDONLY | OFlags::DIRECTORY)
    }
    /// Where a group is, for messages.
    pub fn path(&self, group: &str) -> String {
        let rel = self.below(group).unwrap_or(group);
        self.shown.join(rel).display().to_string()
    }
    /// Makes a group; false if it was there.
    ///
    /// # Errors
    /// As mkdir(2), its parent must exist.
    pub fn make(&self, group: &str) -> Result<bool> {
        let (parent, name) = split(group);
        let parent = self.open(parent)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(Error::call("mkdirat", e, self.path(group))),
        }
    }
    /// Removes a group, which must be empty.
    ///
    /// # Errors
    /// As rmdir(2): EBUSY while somebody is in it.
    pub fn remove(&self, group: &str) -> Result<()> {
        let (parent, name) = split(group);
        let parent = self.open(parent)?;
        rustix::fs::unlinkat(&parent, name, rustix::fs::AtFlags::REMOVEDIR)
            .map_err(|e| Error::call("unlinkat", e, self.path(group)))
    }
}

/// A group's parent and its name there.
fn split(group: &str) -> (&str, &str) {
    match group.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None => ("/", group),
    }
}

/// What a file of a group says; `None` if the group has no such file, or it cannot be read.
///
/// # Errors
/// As read(2).
pub(crate) fn read(group: BorrowedFd<'_>, file: &str, shown: &str) -> Result<Option<String>> {
    let fd = match open_at(group, file, OFlags::RDONLY | OFlags::NOFOLLOW) {
        Ok(fd) => fd,
        // cgroup v1 has files that only take
        Err(Errno::NOENT | Errno::ACCESS) => return Ok(None),
        Err(e) => return Err(Error::call("openat2", e, format!("{shown}/{file}"))),
    };
    let mut text = String::new();
    match File::from(fd).take(LONGEST).read_to_string(&mut text) {
        Ok(_) => Ok(Some(text)),
        // a controller that is there and not in use: freezer.state of the root, memory.* of a group that is gone
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc_like::EOPNOTSUPP | libc_like::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(Error::call(
            "read",
            Errno::from_io_error(&e).unwrap_or(Errno::IO),
            format!("{shown}/{file}"),
        )),
    }
}

/// Numbers of errors that reading a file of a group gives for "not here".
mod libc_like {
    pub const EINVAL: i32 = nix::errno::Errno::EINVAL as i32;
    pub const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;
}

/// Opens a file of a group for one write after another.
pub(crate) fn open_to_write(group: BorrowedFd<'_>, file: &str) -> Result<File, Errno> {
    open_at(group, file, OFlags::WRONLY | OFlags::NOFOLLOW).map(File::from)
}

/// Opens a file of a group for its owner and permissions, or to see whether it is there.
pub(crate) fn open_to_read(group: BorrowedFd<'_>, file: &str) -> Result<OwnedFd, Errno> {
    match open_at(group, file, OFlags::RDONLY | OFlags::NOFOLLOW) {
        Err(Errno::ACCESS) => open_at(group, file, OFlags::WRONLY | OFlags::NOFOLLOW),
        done => done,
    }
}

/// Writes a file of a group in one call, as the kernel wants it.
pub(crate) fn write(group: BorrowedFd<'_>, file: &str, text: &str, shown: &str) -> Result<()> {
    let what = || format!("{text:?} to {shown}/{file}");
    let mut f = open_to_write(group, file).map_err(|e| Error::call("openat2", e, what()))?;
    // the kernel takes all of it or nothing
    f.write_all(text.as_bytes()).map_err(|e| {
        let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
        Error::call("write", errno, what())
    })
}

impl View {
    /// What is mounted in our mount namespace. A hierarchy that is mounted several times is used where most of it is seen.
    ///
    /// # Errors
    /// Failures to read /proc.
    pub fn own() -> Result<Self> {
        let me = ProcDir::open(HostPid::own())?;
        let (mounts, lines) = (me.mountinfo()?, me.cgroup()?);
        let hierarchies = lines.iter().filter_map(|l| mounted(&me, l, &mounts));
        Ok(Self {
            hierarchies: hierarchies.collect(),
        })
    }
    /// What a caller has mounted for us: a folder with one directory per hierarchy, `unified` for cgroup v2, else the name of
    /// its controllers or what stands behind `name=` (`--cgroup-yard`).
    ///
    /// # Errors
    /// E2440: none of our hierarchies is there.
    pub fn yard(yard: &Path) -> Result<Self> {
        let mut hierarchies = Vec::new();
        for line in ProcDir::open(HostPid::own())?.cgroup()? {
            let names = names(&line);
            let dirs = [names.join(","), names[0].clone()];
            let dirs = dirs.iter().map(|d| match d.strip_prefix("name=") {
                Some(n) => n,
                None if d.is_empty() => "unified",
                None => d,
            });
            for shown in dirs.map(|d| yard.join(d)) {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                if let Ok(dir) = rustix::fs::open(&shown, flags, Mode::empty()) {
                    hierarchies.push(Hierarchy {
                        names: names.clone(),
                        shown,
                        root: "/".into(),
                        dir,
                    });
                    break;
                }
            }
        }
        if hierarchies.is_empty() {
            return Err(Error::new(
                "E2440",
                Side::Caller,
                format!("--cgroup-yard {}", yard.display()),
                "it has no directory for any hierarchy of control groups",
                "mount them there: unified for cgroup v2, else each under the name of its controllers",
            ));
        }
        Ok(Self { hierarchies })
    }
    /// A view of plain directories, for tests.
    #[cfg(test)]
    pub(crate) fn fake(dirs: &[(&[&str], &Path)]) -> Self {
        let hierarchies = dirs.iter().map(|(names, dir)| Hierarchy {
            names: names.iter().map(|n| n.to_string()).collect(),
            shown: dir.to_path_buf(),
            root: "/".into(),
            dir: File::open(dir).unwrap().into(),
        });
        Self {
            hierarchies: hierarchies.collect(),
        }
    }
    /// The hierarchy with this controller ("" is cgroup v2).
    pub fn of(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.has(controller))
    }
}

/// Names of the controllers of a line of /proc/PID/cgroup; one empty name for cgroup v2.
pub(crate) fn names(line: &CgroupLine) -> Vec<String> {
    if line.controllers.is_empty() {
        return vec![String::new()];
    }
    let text = |n: &Vec<u8>| String::from_utf8_lossy(n).into_owned();
    line.controllers.iter().map(text).collect()
}

/// The mount that shows most of a hierarchy, opened.
fn mounted(me: &ProcDir, line: &CgroupLine, mounts: &[MountInfo]) -> Option<Hierarchy> {
    let names = names(line);
    let is = |m: &&MountInfo| {
        let options: Vec<_> = m.super_options.split(|b| *b == b',').collect();
        match line.controllers.is_empty() {
            true => m.fstype == b"cgroup2",
            false => {
                m.fstype == b"cgroup" && line.controllers.iter().all(|c| options.contains(&&c[..]))
            }
        }
    };
    let mut found: Vec<_> = mounts.iter().filter(is).collect();
    found.sort_by_key(|m| m.root.len());
    for m in found {
        let shown = PathBuf::from(String::from_utf8(m.mountpoint.clone()).ok()?);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::open(&shown, flags, Mode::empty()) else {
            continue;
        };
        // something else may be mounted over it
        let there = me.fdinfo(RemoteFd(dir.as_raw_fd()));
        if there.is_ok_and(|i| i.mnt_id == m.id) {
            return Some(Hierarchy {
                names,
                shown,
                root: String::from_utf8(m.root.clone()).ok()?,
                dir,
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_looked_for_below_the_mount_only() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/etc", tmp.path().join("link")).unwrap();
        let v = View::fake(&[(&[""], tmp.path())]);
        let h = v.of("").unwrap();
        assert!(h.open("/").is_ok() && h.open("/a/b").is_ok());
        assert!(h.open("/a/../../etc").is_err() && h.open("/..").is_err());
        assert!(h.open("/link").is_err(), "a link leads out");
        assert!(h.open("/a/c").is_err());
        assert!(h.make("/a/c").unwrap() && !h.make("/a/c").unwrap());
        h.remove("/a/c").unwrap();
        assert!(v.of("cpu").is_none());
    }

    #[test]
    fn of_a_part_that_is_mounted_the_rest_is_not_seen() {
        let tmp = tempfile::tempdir().unwrap();
        let h = Hierarchy {
            names: vec![String::new()],
            shown: tmp.path().into(),
            root: "/docker/x".into(),
            dir: File::open(tmp.path()).unwrap().into(),
        };
        assert_eq!(h.below("/docker/x"), Some("."));
        assert_eq!(h.below("/docker/x/y"), Some("y"));
        assert_eq!(h.below("/docker/xy"), None);
        assert_eq!(h.below("/"), None);
    }
}
