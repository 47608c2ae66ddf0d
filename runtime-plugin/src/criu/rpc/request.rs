//! What a request says, as options of the command line: so one table tells what becomes of each, whoever asks.
use super::super::external;
use super::super::options::{Fate, by_long};
use super::super::parse::Given;
use super::super::settings::{CpuCap, Settings};
use super::connection::Peer;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use stasis_proto::pb::{CriuCgMode, CriuNetworkLockMethod, CriuOpts, CriuPreDumpMode};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// Log file when the request names none.
const LOG: &str = "criu.log";
/// `CLONE_NEWNET`, the only namespace that may be left empty.
const NEWNET: u32 = 0x4000_0000;

/// Bits of `cpu_cap`.
mod cap {
    pub const FPU: u32 = 1;
    pub const CPU: u32 = 2;
    pub const INS: u32 = 4;
    /// cpuinfo.img is written by a dump and compared by a restore.
    pub const IMAGE: u32 = 8;
}

/// What the peer has open, held open here: paths and numbers in [`Settings`] are of these descriptors.
#[derive(Debug, Default)]
pub struct Folders(Vec<OwnedFd>);

impl Folders {
    /// The peer's descriptor `n` as a path that is good for as long as this lives.
    fn of_peer(&mut self, peer: Peer, n: i32, what: &str) -> Result<PathBuf, String> {
        let fd = self.open(peer, n, OFlag::O_PATH | OFlag::O_DIRECTORY, what)?;
        Ok(PathBuf::from(format!("/proc/self/fd/{fd}")))
    }
    /// The number here of what the peer has as descriptor `n`.
    fn open(&mut self, peer: Peer, n: i32, flags: OFlag, what: &str) -> Result<i32, String> {
        let path = format!("/proc/{}/fd/{n}", peer.pid);
        let fd = open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|e| format!("{what} {n}: cannot open {path}: {e}"))?;
        let number = fd.as_raw_fd();
        self.0.push(fd);
        Ok(number)
    }
}

/// Takes the folders, the log and what else is a descriptor of the peer's from a request: first of all, so that whatever is wrong with the rest can be logged.
///
/// # Errors
/// A folder cannot be opened, or none is named.
pub fn folders(
    s: &mut Settings,
    o: &CriuOpts,
    peer: Peer,
    held: &mut Folders,
) -> Result<(), String> {
    s.verbosity = u32::try_from(o.log_level()).unwrap_or(0);
    s.log = Some(LOG.into());
    s.options.images = match (o.images_dir_fd, &o.images_dir) {
        (n, _) if n >= 0 => held.of_peer(peer, n, "images_dir_fd")?,
        (_, Some(path)) => path.into(),
        _ => return Err("neither images_dir_fd nor images_dir is given".into()),
    };
    if let Some(n) = o.work_dir_fd.filter(|n| *n >= 0) {
        s.work = Some(held.of_peer(peer, n, "work_dir_fd")?);
    }
    if let Some(n) = o.status_fd.filter(|n| *n >= 0) {
        s.status_fd = Some(held.open(peer, n, OFlag::O_WRONLY, "status_fd")?);
    }
    match o.log_file.as_deref() {
        _ if o.log_to_stderr() => s.log = None,
        Some(name) if name.contains('/') || name.is_empty() => {
            return Err(format!(
                "log_file {name:?}: a name in the work folder is needed, not a path"
            ));
        }
        Some(name) => s.log = Some(name.into()),
        None => {}
    }
    Ok(())
}

/// Takes everything else.
///
/// # Errors
/// A sentence that names the field: it makes no sense, or what it asks for is not in this version.
pub fn take(s: &mut Settings, o: &CriuOpts) -> Result<(), String> {
    s.take(&given(o)?)?;
    if let Some(bits) = o.cpu_cap {
        s.cpu_cap = CpuCap {
            ins: bits & (cap::INS | cap::CPU) != 0,
            fpu: bits & (cap::FPU | cap::CPU) != 0,
            asked: bits & cap::IMAGE != 0,
        };
    }
    s.options.orphan_pts_master = o.orphan_pts_master();
    for m in &o.ext_mnt {
        external::mount(&mut s.options, &m.key, &m.val);
    }
    for i in &o.inherit_fd {
        allowed("inherit-fd").map_err(|w| format!("inherit_fd {}: {w}", i.key))?;
        external::inherited(&mut s.options, &i.key, i.fd)
            .map_err(|w| format!("inherit_fd {}: {w}", i.key))?;
    }
    for j in &o.join_ns {
        allowed("join-ns").map_err(|w| format!("join_ns {}: {w}", j.ns))?;
        external::joined(&mut s.options, &j.ns, &j.ns_file, j.extra_opt.as_deref())
            .map_err(|w| format!("join_ns {}: {w}", j.ns))?;
    }
    for g in &o.cg_root {
        allowed("cgroup-root").map_err(|w| format!("cg_root {}: {w}", g.path))?;
        if !g.path.starts_with('/') {
            return Err(format!(
                "cg_root {}: a path that begins with / is needed",
                g.path
            ));
        }
        s.options
            .cgroups
            .roots
            .push((g.ctrl.clone(), g.path.clone()));
    }
    Ok(())
}

/// What the table says of an option.
fn allowed(name: &str) -> Result<(), String> {
    match by_long(name)?.fate {
        Fate::Refused(why) => Err(why.into()),
        _ => Ok(()),
    }
}

/// The fields that are options with at most one word, in the order of their numbers.
fn given(o: &CriuOpts) -> Result<Vec<Given>, String> {
    let mut all = Vec::new();
    let mut say = |field: &str, name: &str, value: Option<String>| -> Result<(), String> {
        all.push(Given {
            opt: by_long(name)?,
            value,
            off: false,
            spelt: field.to_string(),
        });
        Ok(())
    };
    if let Some(pid) = o.pid {
        say("pid", "tree", Some(pid.to_string()))?;
    }
    let switches = [
        ("leave_running", "leave-running", o.leave_running),
        ("ext_unix_sk", "ext-unix-sk", o.ext_unix_sk),
        ("tcp_established", "tcp-established", o.tcp_established),
        ("evasive_devices", "evasive-devices", o.evasive_devices),
        ("shell_job", "shell-job", o.shell_job),
        ("file_locks", "file-locks", o.file_locks),
        ("track_mem", "track-mem", o.track_mem),
        ("auto_dedup", "auto-dedup", o.auto_dedup),
        ("link_remap", "link-remap", o.link_remap),
        ("force_irmap", "force-irmap", o.force_irmap),
        ("rst_sibling", "restore-sibling", o.rst_sibling),
        ("ext_sharing", "enable-external-sharing", o.ext_sharing),
        ("ext_masters", "enable-external-masters", o.ext_masters),
        ("tcp_skip_in_flight", "skip-in-flight", o.tcp_skip_in_flight),
        ("weak_sysctls", "weak-sysctls", o.weak_sysctls),
        ("lazy_pages", "lazy-pages", o.lazy_pages),
        ("tcp_close", "tcp-close", o.tcp_close),
        ("tls", "tls", o.tls),
        ("tls_no_cn_verify", "tls-no-cn-verify", o.tls_no_cn_verify),
        (
            "mntns_compat_mode",
            "mntns-compat-mode",
            o.mntns_compat_mode,
        ),
        (
            "skip_file_rwx_check",
            "skip-file-rwx-check",
            o.skip_file_rwx_check,
        ),
        ("unprivileged", "unprivileged", o.unprivileged),
        ("leave_stopped", "leave-stopped", o.leave_stopped),
        ("display_stats", "display-stats", o.display_stats),
    ];
    for (field, name, on) in switches {
        if on == Some(true) {
            say(field, name, None)?;
        }
    }
    let words = [
        ("root", "root", &o.root),
        ("parent_img", "prev-images-dir", &o.parent_img),
        ("cgroup_props", "cgroup-props", &o.cgroup_props),
        (
            "cgroup_props_file",
            "cgroup-props-file",
            &o.cgroup_props_file,
        ),
        ("freeze_cgroup", "freeze-cgroup", &o.freeze_cgroup),
        ("lsm_profile", "lsm-profile", &o.lsm_profile),
        ("tls_cacert", "tls-cacert", &o.tls_cacert),
        ("tls_cacrl", "tls-cacrl", &o.tls_cacrl),
        ("tls_cert", "tls-cert", &o.tls_cert),
        ("tls_key", "tls-key", &o.tls_key),
        ("cgroup_yard", "cgroup-yard", &o.cgroup_yard),
        (
            "lsm_mount_context",
            "lsm-mount-context",
            &o.lsm_mount_context,
        ),
    ];
    for (field, name, word) in words {
        if let Some(w) = word.as_ref().filter(|w| !w.is_empty()) {
            say(field, name, Some(w.clone()))?;
        }
    }
    let lists = [
        ("skip_mnt", "skip-mnt", &o.skip_mnt),
        ("enable_fs", "enable-fs", &o.enable_fs),
        ("irmap_scan_paths", "irmap-scan-path", &o.irmap_scan_paths),
        ("external", "external", &o.external),
        (
            "cgroup_dump_controller",
            "cgroup-dump-controller",
            &o.cgroup_dump_controller,
        ),
    ];
    for (field, name, list) in lists {
        for w in list {
            say(field, name, Some(w.clone()))?;
        }
    }
    for v in &o.veths {
        say(
            "veths",
            "veth-pair",
            Some(format!("{}={}", v.if_in, v.if_out)),
        )?;
    }
    for u in &o.unix_sk_ino {
        say("unix_sk_ino", "ext-unix-sk", Some(u.inode.to_string()))?;
    }
    if o.auto_ext_mnt() {
        say("auto_ext_mnt", "ext-mount-map", Some("auto".into()))?;
    }
    // the mode is the newer field and wins
    let mode = match o.manage_cgroups_mode {
        Some(m) => match CriuCgMode::try_from(m) {
            Ok(CriuCgMode::Ignore) => Some("ignore"),
            Ok(CriuCgMode::CgNone) => Some("none"),
            Ok(CriuCgMode::Props) => Some("props"),
            Ok(CriuCgMode::Soft | CriuCgMode::Default) => Some("soft"),
            Ok(CriuCgMode::Full) => Some("full"),
            Ok(CriuCgMode::Strict) => Some("strict"),
            Err(_) => return Err(format!("manage_cgroups_mode {m}: there is no such mode")),
        },
        None => o.manage_cgroups().then_some("soft"),
    };
    if let Some(m) = mode {
        say("manage_cgroups", "manage-cgroups", Some(m.into()))?;
    }
    if let Some(n) = o.ghost_limit {
        say("ghost_limit", "ghost-limit", Some(n.to_string()))?;
    }
    match o.empty_ns {
        None | Some(0) => {}
        Some(NEWNET) => say("empty_ns", "empty-ns", Some("net".into()))?,
        Some(bits) => {
            return Err(format!(
                "empty_ns {bits:#x}: only the network namespace ({NEWNET:#x}) can be left empty"
            ));
        }
    }
    if let Some(n) = o.timeout {
        say("timeout", "timeout", Some(n.to_string()))?;
    }
    if let Some(m) = o.pre_dump_mode {
        let word = match CriuPreDumpMode::try_from(m) {
            Ok(CriuPreDumpMode::Splice) => "splice",
            Ok(CriuPreDumpMode::VmRead) => "read",
            Err(_) => return Err(format!("pre_dump_mode {m}: there is no such mode")),
        };
        say("pre_dump_mode", "pre-dump-mode", Some(word.into()))?;
    }
    if let Some(m) = o.network_lock {
        let word = match CriuNetworkLockMethod::try_from(m) {
            Ok(CriuNetworkLockMethod::Iptables) => "iptables",
            Ok(CriuNetworkLockMethod::Nftables) => "nftables",
            Ok(CriuNetworkLockMethod::Skip) => "skip",
            Err(_) => return Err(format!("network_lock {m}: there is no such method")),
        };
        say("network_lock", "network-lock", Some(word.into()))?;
    }
    if let Some(ps) = &o.ps {
        // of a dump that keeps its pages it says where they may be asked for
        if o.lazy_pages != Some(true) {
            say("ps", "page-server", None)?;
        }
        if let Some(a) = ps.address.as_ref().filter(|a| !a.is_empty()) {
            say("ps.address", "address", Some(a.clone()))?;
        }
        if let Some(p) = ps.port.filter(|p| *p != 0) {
            say("ps.port", "port", Some(p.to_string()))?;
        }
        if let Some(fd) = ps.fd {
            say("ps.fd", "ps-socket", Some(fd.to_string()))?;
        }
    }
    if o.pidfd_store_sk.is_some_and(|n| n >= 0) {
        return Err("pidfd_store_sk: pidfds are not kept between dumps, tasks are told apart by their start times; leave it out".into());
    }
    Ok(all)
}
