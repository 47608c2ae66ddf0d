use stasis_proto::pb;

/// What a restore makes of a file system type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A new one, which shows what the namespaces of the tree hold.
    Fresh,
    /// A new one, filled from an archive in the image.
    Filled,
    /// A new one, of folders on other mounts of the tree.
    Layered,
    /// A new one, which a daemon of the tree fills.
    Automount,
    /// One that shows the whole machine: only where the caller says so.
    HostWide,
    /// It is never made from an image: it must come from the caller.
    Never,
}

/// A file system type with its number in images.
#[derive(Debug, PartialEq, Eq)]
pub struct FsType {
    /// Name in mountinfo, and for fsopen(2).
    pub name: &'static str,
    /// Number in images.
    pub code: pb::Fstype,
    /// What a restore makes of it.
    pub make: Make,
    /// Options that are given to it again; what others stand for is an error in an image.
    pub options: &'static [&'static str],
    /// Options that the kernel shows and that are not to be given again.
    pub shown: &'static [&'static str],
}

/// All types that are not simply a disk's.
#[rustfmt::skip] // one line per type
pub static TYPES: &[FsType] = &[
    FsType { name: "proc", code: pb::Fstype::Proc, make: Make::Fresh, options: &["hidepid", "gid", "subset"], shown: &[] },
    FsType { name: "sysfs", code: pb::Fstype::Sysfs, make: Make::Fresh, options: &[], shown: &["seclabel"] },
    FsType { name: "devtmpfs", code: pb::Fstype::Devtmpfs, make: Make::HostWide, options: &[], shown: &["size", "nr_inodes", "mode", "inode64", "inode32", "huge", "seclabel"] },
    FsType { name: "binfmt_misc", code: pb::Fstype::BinfmtMisc, make: Make::HostWide, options: &[], shown: &[] },
    FsType { name: "tmpfs", code: pb::Fstype::Tmpfs, make: Make::Filled, options: &["size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol", "inode32", "inode64", "noswap"], shown: &["seclabel"] },
    FsType { name: "devpts", code: pb::Fstype::Devpts, make: Make::Fresh, options: &["gid", "uid", "mode", "ptmxmode", "max"], shown: &["newinstance", "seclabel"] },
    FsType { name: "simfs", code: pb::Fstype::Simfs, make: Make::Never, options: &[], shown: &[] },
    FsType { name: "pstore", code: pb::Fstype::Pstore, make: Make::HostWide, options: &[], shown: &["seclabel"] },
    FsType { name: "securityfs", code: pb::Fstype::Securityfs, make: Make::HostWide, options: &[], shown: &[] },
    FsType { name: "fusectl", code: pb::Fstype::Fusectl, make: Make::HostWide, options: &[], shown: &[] },
    FsType { name: "debugfs", code: pb::Fstype::Debugfs, make: Make::HostWide, options: &["uid", "gid", "mode"], shown: &["seclabel"] },
    FsType { name: "cgroup", code: pb::Fstype::Cgroup, make: Make::Fresh, options: CONTROLLERS, shown: &["seclabel"] },
    FsType { name: "aufs", code: pb::Fstype::Aufs, make: Make::Never, options: &[], shown: &[] },
    FsType { name: "mqueue", code: pb::Fstype::Mqueue, make: Make::Fresh, options: &[], shown: &["seclabel"] },
    FsType { name: "fuse", code: pb::Fstype::Fuse, make: Make::Never, options: &[], shown: &[] },
    FsType { name: "overlay", code: pb::Fstype::Overlayfs, make: Make::Layered, options: &["lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir", "default_permissions", "redirect_dir", "index", "uuid", "nfs_export", "userxattr", "xino", "metacopy", "verity"], shown: &["seclabel", "fsync"] },
    FsType { name: "autofs", code: pb::Fstype::Autofs, make: Make::Automount, options: &[], shown: &[] },
    FsType { name: "tracefs", code: pb::Fstype::Tracefs, make: Make::HostWide, options: &["uid", "gid", "mode"], shown: &["seclabel"] },
    // options of cgroup2 belong to the machine's one hierarchy: giving them again could change it
    FsType { name: "cgroup2", code: pb::Fstype::Cgroup2, make: Make::Fresh, options: &[], shown: &["nsdelegate", "favordynmods", "memory_localevents", "memory_recursiveprot", "memory_hugetlb_accounting", "pids_localevents", "seclabel"] },
];

/// Controllers and options of cgroup v1 that a mount may name; not release_agent, which names a program the kernel runs.
static CONTROLLERS: &[&str] = &[
    "name",
    "none",
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "cpuset",
    "cpu",
    "cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
    "debug",
    "dmem",
];

/// An option of any type: how SELinux labels its files. A caller may replace it.
pub const CONTEXT: &str = "context";
/// File systems on disks that are mounted again where the caller gives the disk.
pub static DISKS: &[&str] = &[
    "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs", "ntfs3",
    "squashfs", "udf", "vfat", "xfs",
];
/// What stands for a name in images whose mount is a disk of the caller's: that is named by the source.
pub const EXTERNAL_DISK: &str = "CRIU:EXTERNAL_DEV";

/// Options of a mount, split where a comma is none of a value's: values may be in quotes, and a list of memory nodes has commas.
pub fn words(options: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut quoted = false;
    for w in options.split(',') {
        let nodes =
            |last: &str| last.starts_with("mpol=") && w.starts_with(|c: char| c.is_ascii_digit());
        match words.last_mut() {
            Some(last) if quoted || nodes(last) => {
                last.push(',');
                last.push_str(w);
            }
            _ => words.push(w.to_owned()),
        }
        quoted ^= w.matches('"').count() % 2 == 1;
    }
    words.retain(|w| !w.is_empty());
    words
}

/// A type by the name of it in mountinfo.
pub fn by_name(name: &str) -> Option<&'static FsType> {
    // fuse.sshfs and the like are fuse
    let name = name.split('.').next().unwrap_or(name);
    let name = if name == "fuseblk" { "fuse" } else { name };
    TYPES.iter().find(|t| t.name == name)
}

/// A type by its number in images.
pub fn by_code(code: u32) -> Option<&'static FsType> {
    TYPES.iter().find(|t| t.code as u32 == code)
}
