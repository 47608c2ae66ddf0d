//! What the caller says of mounts.
use std::path::PathBuf;

/// Mounts and files that come from outside of the tree.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// `--root`: at dump where the caller sees the tree's root, at restore what becomes it.
    pub root: Option<PathBuf>,
    /// External mounts (`--external mnt[KEY]:VAL`, RPC `ext_mnt`). Dump: mountpoint inside the container, and the name stored
    /// in the image. Restore: the stored name, and what the caller binds there. A disk's file system: `dev[MAJOR/MINOR]` and its
    /// name; at restore `dev[NAME]` and the disk's path.
    pub external: Vec<(String, String)>,
    /// `--external mnt[]{:ms}`: every mount that leads outside is external; with `m` masters, with `s` sharing too.
    pub auto_external: bool,
    /// `--enable-external-sharing`, or `s` in `mnt[]:s`.
    pub external_sharing: bool,
    /// `--enable-external-masters`, or `m` in `mnt[]:m`.
    pub external_masters: bool,
    /// `--skip-mnt`: these mountpoints are not dumped.
    pub skip: Vec<String>,
    /// `--enable-fs`: file system types that are dumped as if known.
    pub enable_fs: Vec<String>,
    /// `--lsm-mount-context`: replaces the SELinux context of mounts.
    pub context: Option<String>,
}
