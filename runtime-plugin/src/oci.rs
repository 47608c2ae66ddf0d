//! OCI bundles: from `config.json` to the options of a dump or restore.
//!
//! What belongs to the container is in the image; what belongs to the caller comes from the bundle: the root directory, mounts
//! and devices from outside, namespaces given by path, control groups, the terminal, hooks.
use crate::hooks::{Container, Hooks};
use oci_spec::runtime::{Hook, LinuxIdMapping, LinuxNamespaceType, Spec};
use serde::Deserialize;
use stasis_engine::options::{CgroupMode, IdMap};
use stasis_engine::{Blame, Error, Options, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Links of the standard files, as runc writes them beside the images.
const DESCRIPTORS: &str = "descriptors.json";
/// Where the unified hierarchy of control groups is, or its part of a hybrid one.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A bundle.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    spec: Spec,
}

/// A state file: what a runtime says of a container (OCI `state`, and what runc and crun keep of it).
#[derive(Debug, Deserialize)]
pub struct StateFile {
    /// The container.
    pub id: Option<String>,
    /// Its first process.
    #[serde(alias = "init_process_pid")]
    pub pid: i32,
}

fn bad(file: &Path, why: impl std::fmt::Display) -> Error {
    Error::new("E7050", Blame::Caller, format!("{}", file.display()))
        .why(why)
        .advice("name a folder with the config.json of an OCI bundle for Linux")
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// There is no config.json, or it is not one of the OCI runtime specification for Linux.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().map_err(|e| bad(dir, e))?;
        let file = dir.join("config.json");
        let spec = Spec::load(&file).map_err(|e| bad(&file, e))?;
        if spec.linux().is_none() {
            return Err(bad(&file, "it has no section linux"));
        }
        Ok(Self { dir, spec })
    }
    /// The container's root directory, as the host sees it.
    fn root(&self) -> Result<PathBuf> {
        let root = self.spec.root().as_ref();
        let path = root.ok_or_else(|| bad(&self.dir.join("config.json"), "it has no root"))?;
        Ok(self.dir.join(path.path()))
    }
    /// What hooks are told.
    fn container(&self, id: &str) -> Container {
        Container {
            id: id.into(),
            bundle: self.dir.clone(),
            annotations: self.spec.annotations().clone().unwrap_or_default(),
        }
    }
    /// Hooks, with this id for the container.
    pub fn hooked(&self, id: &str) -> Container {
        self.container(id)
    }
    fn has_terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|p| p.terminal()) == Some(true)
    }
    /// Mounts that lead outside: where in the container, and what the host has for it.
    fn outside(&self) -> Vec<(String, PathBuf)> {
        let mut all = Vec::new();
        for m in self.spec.mounts().iter().flatten() {
            let options = m.options().as_deref().unwrap_or_default();
            let binds = options.iter().any(|o| o == "bind" || o == "rbind");
            if let Some(source) = m
                .source()
                .as_ref()
                .filter(|_| binds || m.typ().as_deref() == Some("bind"))
            {
                all.push((m.destination().display().to_string(), self.dir.join(source)));
            }
        }
        let linux = self.spec.linux().as_ref();
        for d in linux
            .and_then(|l| l.devices().as_ref())
            .into_iter()
            .flatten()
        {
            all.push((d.path().display().to_string(), d.path().clone()));
        }
        all
    }
    fn masked(&self) -> Vec<String> {
        let linux = self.spec.linux().as_ref();
        linux
            .and_then(|l| l.masked_paths().clone())
            .unwrap_or_default()
    }
    /// Namespaces that the bundle names by path.
    fn named(&self) -> Vec<(LinuxNamespaceType, PathBuf)> {
        let linux = self.spec.linux().as_ref();
        let all = linux
            .and_then(|l| l.namespaces().as_ref())
            .into_iter()
            .flatten();
        all.filter_map(|n| Some((n.typ(), n.path().clone()?)))
            .collect()
    }

    /// Namespaces that the container must have of its own. Clocks and views of control groups confine nobody, and older images
    /// do not have them.
    fn own(&self) -> Vec<String> {
        let linux = self.spec.linux().as_ref();
        let all = linux.and_then(|l| l.namespaces().as_ref());
        all.into_iter()
            .flatten()
            .filter(|n| n.path().is_none())
            .map(|n| ns_name(n.typ()))
            .filter(|n| !matches!(*n, "time" | "cgroup"))
            .map(Into::into)
            .collect()
    }
    /// Maps of users and groups, where the container has a user namespace of its own.
    fn id_maps(&self) -> Option<(IdMap, IdMap)> {
        let linux = self.spec.linux().as_ref()?;
        let rows = |map: &Option<Vec<LinuxIdMapping>>| -> IdMap {
            let row = |m: &LinuxIdMapping| (m.container_id(), m.host_id(), m.size());
            map.iter().flatten().map(row).collect()
        };
        let maps = (rows(linux.uid_mappings()), rows(linux.gid_mappings()));
        (self.own().iter().any(|n| n == "user") && !maps.0.is_empty()).then_some(maps)
    }

    /// Fills the options of a dump of this bundle's container.
    ///
    /// # Errors
    /// Namespace files that cannot be read, a container that is gone.
    pub fn dump(&self, o: &mut Options) -> Result<()> {
        o.mounts.root = Some(self.root()?);
        o.namespaces.seccomp = crate::profile::if_any(crate::profile::of(&self.spec));
        for (at, _) in self.outside() {
            o.mounts.external.push((at.clone(), at));
        }
        // a masked file is /dev/null in its place; a masked folder is an empty tmpfs, which is the container's own
        let root = format!("/proc/{}/root", o.pid);
        for at in self.masked() {
            let seen = std::fs::symlink_metadata(format!("{root}{at}"));
            if seen.is_ok_and(|m| !m.is_dir()) {
                o.mounts.external.push((at, "/dev/null".into()));
            }
        }
        for (sort, path) in self.named() {
            let name = ns_name(sort);
            if matches!(name, "net" | "pid") {
                let ino = std::fs::metadata(&path).map_err(|e| bad(&path, e))?.ino();
                o.namespaces
                    .external
                    .push((name.into(), ino, external_key(name)));
            }
        }
        o.orphan_pts_master = self.has_terminal();
        o.cgroups.mode = CgroupMode::Soft;
        o.cgroups.freeze = own_group(o.pid);
        Ok(())
    }

    /// Fills the options of a restore of this bundle's container under this id.
    ///
    /// # Errors
    /// What the bundle asks for cannot be given.
    pub fn restore(&self, o: &mut Options, id: &str) -> Result<()> {
        o.mounts.root = Some(self.root()?);
        for (at, source) in self.outside() {
            o.mounts.external.push((at, source.display().to_string()));
        }
        o.mounts
            .external
            .push(("/dev/null".into(), "/dev/null".into()));
        for (sort, path) in self.named() {
            o.namespaces.join.push((ns_name(sort).into(), path));
        }
        o.namespaces.required = self.own();
        o.namespaces.id_maps = self.id_maps();
        o.namespaces.seccomp = crate::profile::of(&self.spec)?;
        o.orphan_pts_master = self.has_terminal();
        o.cgroups.mode = CgroupMode::Soft;
        let linux = self.spec.linux().as_ref();
        let group = match linux.and_then(|l| l.cgroups_path().clone()) {
            Some(p) => match p.to_string_lossy().split(':').collect::<Vec<_>>()[..] {
                [slice, prefix, name] => scope(slice, prefix, name)?,
                _ => Path::new("/").join(p),
            },
            None => Path::new("/").join(id),
        };
        o.cgroups.roots.push((None, group.display().to_string()));
        o.namespaces.lsm_profile = self.label();
        Ok(())
    }

    /// The label of a security module that the container's processes shall have.
    fn label(&self) -> Option<String> {
        let p = self.spec.process().as_ref()?;
        let given = |l: &Option<String>| l.clone().filter(|l| !l.is_empty());
        let apparmor = given(p.apparmor_profile()).map(|l| format!("apparmor:{l}"));
        apparmor.or_else(|| given(p.selinux_label()).map(|l| format!("selinux:{l}")))
    }

    /// The bundle's own hooks for a restore: those that a runtime runs when it creates and starts a container.
    pub fn restore_hooks(&self, id: &str) -> Option<Hooks> {
        let hooks = self.spec.hooks().as_ref()?;
        let mut all: Vec<(String, Hook)> = Vec::new();
        let mut at = |stage: &str, list: &Option<Vec<Hook>>| {
            all.extend(
                list.iter()
                    .flatten()
                    .map(|h| (stage.to_string(), h.clone())),
            );
        };
        // `prestart` is what older bundles call createRuntime
        #[allow(deprecated)]
        at("setup-namespaces", hooks.prestart());
        at("setup-namespaces", hooks.create_runtime());
        at("post-resume", hooks.poststart());
        Some(Hooks::of_bundle(all, self.container(id), None))
    }
}

fn ns_name(sort: LinuxNamespaceType) -> &'static str {
    match sort {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

/// The control group of systemd's form `SLICE:PREFIX:NAME`, where systemd has it: a slice lies in the slice that its name
/// without the last dash names (systemd.slice(5)). Systemd is not asked: it does not know of the group.
fn scope(slice: &str, prefix: &str, name: &str) -> Result<PathBuf> {
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let unit = match prefix {
        _ if name.ends_with(".slice") => name.to_owned(),
        "" => format!("{name}.scope"),
        p => format!("{p}-{name}.scope"),
    };
    let bad = || {
        let what = format!("control group {slice}:{prefix}:{name} of the bundle");
        Error::new("E7051", Blame::Caller, what)
            .why("there is no unit of systemd's with such a name")
            .advice("write linux.cgroupsPath as SLICE.slice:PREFIX:NAME, or as a path")
    };
    let plain = |s: &str| !s.is_empty() && !s.contains('/') && !matches!(s, "." | "..");
    let stem = slice
        .strip_suffix(".slice")
        .filter(|s| plain(s) || *s == "-");
    let stem = stem
        .filter(|_| plain(name) && plain(&unit))
        .ok_or_else(bad)?;
    let mut group = PathBuf::from("/");
    let mut above = String::new();
    for part in stem.split('-').filter(|_| stem != "-") {
        if part.is_empty() {
            return Err(bad());
        }
        above = if above.is_empty() {
            part.to_owned()
        } else {
            format!("{above}-{part}")
        };
        group.push(format!("{above}.slice"));
    }
    Ok(group.join(unit))
}

/// The key under which runtimes leave a namespace outside.
fn external_key(name: &str) -> String {
    match name {
        "net" => "extRootNetNS".into(),
        _ => "extRootPidNS".into(),
    }
}

/// The control group of a container, if it has one that the engine is not in itself.
fn own_group(pid: i32) -> Option<PathBuf> {
    let of = |pid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        text.lines()
            .find_map(|l| l.strip_prefix("0::").map(str::to_owned))
    };
    let theirs = of(&pid.to_string())?;
    let own = of("self")?;
    if theirs == "/" || own == theirs || own.starts_with(&format!("{theirs}/")) {
        return None;
    }
    let at = |base: &&str| Path::new(base).join(theirs.trim_start_matches('/'));
    CGROUPS
        .iter()
        .map(at)
        .find(|p| p.join("cgroup.freeze").exists())
}

/// The links of the root's standard files, as [`inherit`] takes them; empty if it is gone.
pub fn descriptors(pid: i32) -> String {
    let link = |n| std::fs::read_link(format!("/proc/{pid}/fd/{n}"));
    let links = (0..3).map(|n| link(n).map(|l| l.display().to_string()).unwrap_or_default());
    serde_json::Value::from_iter(links).to_string()
}

/// Standard files that were pipes become the caller's. `links` is what [`descriptors`] said.
///
/// # Errors
/// A sentence: that is not what it says.
pub fn inherit(o: &mut Options, links: &[u8]) -> Result<(), serde_json::Error> {
    let links: Vec<String> = serde_json::from_slice(links)?;
    let pipes = links
        .into_iter()
        .zip(0..3)
        .filter(|(l, _)| l.starts_with("pipe:"));
    o.namespaces.inherit.extend(pipes);
    Ok(())
}

/// The same, by what lies beside the images, if anything does.
///
/// # Errors
/// It cannot be read.
pub fn inherit_of_folder(o: &mut Options) -> Result<()> {
    let file = o.images.join(DESCRIPTORS);
    match std::fs::read(&file) {
        Ok(text) => inherit(o, &text).map_err(|e| bad(&file, e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(bad(&file, e)),
    }
}

/// Writes the links of the root's standard files beside the images.
///
/// # Errors
/// The folder cannot be written.
pub fn write_descriptors(pid: i32, images: &Path) -> Result<()> {
    let file = images.join(DESCRIPTORS);
    std::fs::write(&file, descriptors(pid)).map_err(|e| {
        Error::new(
            "E7053",
            Blame::Host,
            format!("cannot write {}", file.display()),
        )
        .why(e)
        .advice("name a folder that can be written")
    })
}

/// Reads a state file.
///
/// # Errors
/// It cannot be read, or tells no process.
pub fn state(file: &Path) -> Result<StateFile> {
    let fail = |why: String| {
        Error::new(
            "E7054",
            Blame::Caller,
            format!("state file {}", file.display()),
        )
        .why(why)
        .advice("give what `runc state ID` or `crun state ID` says")
    };
    let text = std::fs::read(file).map_err(|e| fail(e.to_string()))?;
    let s: StateFile = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
    match s.pid {
        1.. => Ok(s),
        _ => Err(fail("the container does not run".into())),
    }
}

/// Hands the container's terminal to whoever listens at this socket, as runtimes do.
#[derive(Debug)]
pub struct Console(pub PathBuf);

impl stasis_engine::Watcher for Console {
    fn moment(&self, _: stasis_engine::Moment) -> Result<()> {
        Ok(())
    }
    fn orphan_pts_master(&self, master: std::os::fd::BorrowedFd<'_>) -> Result<bool> {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        use std::os::fd::AsRawFd;
        let fail = |e: String| {
            Error::new(
                "E7055",
                Blame::Caller,
                format!("console socket {}", self.0.display()),
            )
            .why(e)
            .advice("listen at it before the restore, as for `runc run --console-socket`")
        };
        let to =
            std::os::unix::net::UnixStream::connect(&self.0).map_err(|e| fail(e.to_string()))?;
        let fds = [master.as_raw_fd()];
        let name = [std::io::IoSlice::new(b"orphan-pts-master")];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(to.as_raw_fd(), &name, &rights, MsgFlags::empty(), None)
            .map_err(|e| fail(e.to_string()))?;
        Ok(true)
    }
}

/// Adds the hooks of a bundle and of folders to those who are told.
///
/// # Errors
/// As for [`crate::hooks::read`].
pub fn watch(o: &mut Options, bundle: &Bundle, id: &str, folders: &[PathBuf]) -> Result<()> {
    crate::hooks::watch(o, folders, Some(bundle.hooked(id)))?;
    if o.pid == 0
        && let Some(h) = bundle.restore_hooks(id)
    {
        o.events.0.push(Arc::new(h));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::HashMap;

    fn bundle(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let mut v = json!({
            "ociVersion": "1.0.2",
            "process": {"terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "annotations": {"role": "web"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "rw"]},
                {"destination": "/etc/hosts", "source": "hosts", "options": ["bind", "ro"]}
            ],
            "hooks": {"createRuntime": [{"path": "/bin/true"}], "poststart": [{"path": "/bin/true"}]},
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/proc/self/ns/net"}],
                "maskedPaths": ["/proc/uptime", "/proc/sys"],
                "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]
            }
        });
        change(&mut v);
        std::fs::write(dir.path().join("config.json"), v.to_string()).unwrap();
        let b = Bundle::open(dir.path()).unwrap();
        (dir, b)
    }

    #[test]
    fn a_bundle_says_what_stays_outside() {
        let (dir, b) = bundle(|_| {});
        let mut o = Options::new("/img");
        o.pid = std::process::id() as i32;
        b.dump(&mut o).unwrap();
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        let want = [
            pair("/data", "/data"),
            pair("/etc/hosts", "/etc/hosts"),
            pair("/dev/fuse", "/dev/fuse"),
            pair("/proc/uptime", "/dev/null"),
        ];
        assert_eq!(o.mounts.external, want);
        assert_eq!(
            o.mounts.root,
            Some(dir.path().canonicalize().unwrap().join("rootfs"))
        );
        let ino = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(
            o.namespaces.external,
            [("net".into(), ino, "extRootNetNS".into())]
        );
        assert!(o.orphan_pts_master);
        // our own group is not frozen
        assert_eq!(o.cgroups.freeze, None);
    }

    #[test]
    fn a_bundle_says_what_comes_from_outside() {
        let (dir, b) = bundle(|_| {});
        let mut o = Options::new(dir.path());
        std::fs::write(
            dir.path().join(DESCRIPTORS),
            r#"["/dev/null", "pipe:[7]", "pipe:[7]"]"#,
        )
        .unwrap();
        b.restore(&mut o, "c9").unwrap();
        assert_eq!(o.namespaces.inherit, []);
        inherit_of_folder(&mut o).unwrap();
        let hosts = dir
            .path()
            .canonicalize()
            .unwrap()
            .join("hosts")
            .display()
            .to_string();
        assert!(o.mounts.external.contains(&("/etc/hosts".into(), hosts)));
        assert!(
            o.mounts
                .external
                .contains(&("/dev/null".into(), "/dev/null".into()))
        );
        assert_eq!(
            o.namespaces.join,
            [("net".into(), "/proc/self/ns/net".into())]
        );
        assert_eq!(
            o.namespaces.inherit,
            [("pipe:[7]".into(), 1), ("pipe:[7]".into(), 2)]
        );
        assert_eq!(o.cgroups.roots, [(None, "/c9".into())]);
        assert!(b.restore_hooks("c9").is_some());
        let (dir, b) = bundle(|v| v["linux"]["cgroupsPath"] = json!("/pods/a"));
        let mut o = Options::new(dir.path());
        b.restore(&mut o, "c9").unwrap();
        assert_eq!(o.cgroups.roots, [(None, "/pods/a".into())]);
        for (path, group) in [
            ("system.slice:runc:c1", "/system.slice/runc-c1.scope"),
            (":crun:c1", "/system.slice/crun-c1.scope"),
            ("-.slice:cri:c1", "/cri-c1.scope"),
            (
                "kubepods-burstable-pod7.slice:cri-containerd:c1",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/cri-containerd-c1.scope",
            ),
        ] {
            let (dir, b) = bundle(|v| v["linux"]["cgroupsPath"] = json!(path));
            let mut o = Options::new(dir.path());
            b.restore(&mut o, "c9").unwrap();
            assert_eq!(o.cgroups.roots, [(None, group.into())], "{path}");
        }
    }

    #[test]
    fn what_cannot_be_given_is_refused_by_name() {
        for path in [
            "a.slice:..:",
            "../x.slice:runc:c1",
            "a--b.slice:runc:c1",
            "system:runc:c1",
        ] {
            let (dir, b) = bundle(|v| v["linux"]["cgroupsPath"] = json!(path));
            let e = b.restore(&mut Options::new(dir.path()), "c1").unwrap_err();
            assert_eq!(e.code, "E7051", "{path}");
        }
        let (dir, b) = bundle(|v| v["process"]["apparmorProfile"] = json!("docker-default"));
        let mut o = Options::new(dir.path());
        b.restore(&mut o, "c1").unwrap();
        assert_eq!(
            o.namespaces.lsm_profile.as_deref(),
            Some("apparmor:docker-default")
        );
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Bundle::open(empty.path()).unwrap_err().code, "E7050");
        let file = empty.path().join("state.json");
        std::fs::write(&file, r#"{"id": "c", "pid": 0}"#).unwrap();
        assert!(state(&file).unwrap_err().why.contains("does not run"));
        std::fs::write(&file, r#"{"id": "c", "init_process_pid": 12}"#).unwrap();
        assert_eq!(state(&file).unwrap().pid, 12);
    }

    #[test]
    fn annotations_reach_the_hooks() {
        let (_dir, b) = bundle(|_| {});
        let want: HashMap<String, String> = [("role".to_string(), "web".to_string())].into();
        assert_eq!(b.hooked("x").annotations, want);
    }
}
