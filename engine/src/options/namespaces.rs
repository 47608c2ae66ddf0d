//! What the caller says of namespaces and of things that come from outside.
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Lines of a map of users or groups: first inside, first outside, how many.
pub type IdMap = Vec<(u32, u32, u32)>;

/// Namespaces, inherited files and other external things.
#[derive(Debug, Clone, Default)]
pub struct NamespaceOptions {
    /// `--empty-ns net`: the network namespace is made, its contents are not.
    pub empty_net: bool,
    /// `--join-ns NAME:FILE`: namespaces the tree is restored into: name as in /proc/PID/ns, path of the namespace file (or a pid).
    pub join: Vec<(String, PathBuf)>,
    /// `--external net[INO]:KEY`, `pid[INO]:KEY`, ... at dump: (name of the kind, inode, key).
    pub external: Vec<(String, u64, String)>,
    /// `--inherit-fd fd[N]:KEY`, RPC `inherit_fd`: key and the descriptor of the engine's that stands for it. Keys: `pipe:[INO]`,
    /// `socket:[INO]`, `tty[RDEV:DEV]`, `file[MNT:INO]`, paths, and keys of external namespaces (`extRootNetNS`).
    pub inherit: Vec<(String, RawFd)>,
    /// All other `--external` values, as they are (`tty[...]`, `file[...]`, `dev[...]:...`).
    pub other: Vec<String>,
    /// Sorts of namespaces, as in /proc/PID/ns, that a restored tree must have of its own or by `join`.
    pub required: Vec<String>,
    /// Maps of users and of groups that the tree's user namespace must have (OCI `uidMappings`, `gidMappings`). `None`: those of the image, as far as the kernel lets the restorer give them.
    pub id_maps: Option<(IdMap, IdMap)>,
    /// What the runtime installs as the container's seccomp filter (raw `struct sock_filter`s). Used at dump where the kernel does
    /// not let the engine read the filters of tasks; at restore it is the first filter of every task, in place of the image's.
    pub seccomp: Option<Vec<u8>>,
    /// `--lsm-profile TYPE:NAME`.
    pub lsm_profile: Option<String>,
}
