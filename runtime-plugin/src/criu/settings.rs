//! Given options into one value that says what to do, with all contradictions and refusals found before anything starts.
use super::external;
use super::options::Fate;
use super::parse::Given;
use stasis_engine::options::{CgroupMode, NetworkLock};
use stasis_engine::tls::{Files, Tls};
use stasis_engine::{After, Error, Options};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Everything the verbs need.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the engine is asked for. `images` is the current folder and `pid` 0 as long as nothing is said; `pidfile` is as it
    /// was given: [`Settings::engine`] makes the options whole.
    pub options: Options,
    /// `-W`
    pub work: Option<PathBuf>,
    /// `-o`
    pub log: Option<PathBuf>,
    /// 0 nothing, 1 errors, 2 warnings, 3 information and times, 4 debug, 5 every call.
    pub verbosity: u32,
    /// `--exec-cmd`
    pub exec_cmd: bool,
    /// `--display-stats`
    pub display_stats: bool,
    /// `--cpu-cap`
    pub cpu_cap: CpuCap,
    /// `--feature`
    pub features: Vec<String>,
    /// `--action-script`, in order.
    pub scripts: Vec<PathBuf>,
    /// `--hooks-dir`
    pub hooks: Vec<PathBuf>,
    /// `--status-fd`
    pub status_fd: Option<i32>,
    /// `--address`
    pub address: Option<String>,
    /// `--page-server`
    pub page_server: bool,
    /// `--port`
    pub port: u16,
    /// `--ps-socket`
    pub ps_socket: Option<i32>,
    /// `--tls`
    pub tls: bool,
    /// `--tls-cacert` and its like.
    pub tls_files: Files,
    /// `--close`
    pub close: Vec<i32>,
    /// `-V`
    pub version: bool,
    /// `-h`
    pub help: bool,
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--no-default-config`
    pub no_default_config: bool,
    /// Options that make no difference here, and why: for the log.
    pub notes: Vec<String>,
}

/// What of the CPU is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuCap {
    /// Feature words.
    pub ins: bool,
    /// XSAVE features.
    pub fpu: bool,
    /// The caller said it: dump writes cpuinfo.img, restore compares with it.
    pub asked: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            options: Options::new("."),
            work: None,
            log: None,
            verbosity: 2,
            exec_cmd: false,
            display_stats: false,
            cpu_cap: CpuCap::default(),
            features: Vec::new(),
            scripts: Vec::new(),
            hooks: Vec::new(),
            status_fd: None,
            address: None,
            page_server: false,
            port: 0,
            ps_socket: None,
            tls: false,
            tls_files: Files::default(),
            close: Vec::new(),
            version: false,
            help: false,
            config: None,
            no_default_config: false,
            notes: Vec::new(),
        }
    }
}

impl Settings {
    /// Takes over options, in order; later ones win.
    ///
    /// # Errors
    /// A sentence that names the option and says what to do.
    pub fn take(&mut self, given: &[Given]) -> Result<(), String> {
        for g in given {
            match g.opt.fate {
                Fate::Refused(why) if !g.off => return Err(format!("option {}: {why}", g.spelt)),
                Fate::Refused(_) => {}
                Fate::Harmless(why) => {
                    let note = format!("option {} makes no difference: {why}", g.spelt);
                    if !self.notes.contains(&note) {
                        self.notes.push(note);
                    }
                }
                Fate::Honoured => self.one(g)?,
            }
        }
        Ok(())
    }

    /// Every option of the table that is not harmless has its row here, also those that are still refused.
    fn one(&mut self, g: &Given) -> Result<(), String> {
        let on = !g.off;
        let text = g.value.as_deref().unwrap_or_default();
        let bad = |why: &str| format!("invalid argument for {}: {text}: {why}", g.spelt);
        let number = |least: i32| {
            text.parse::<i32>()
                .ok()
                .filter(|n| *n >= least)
                .ok_or_else(|| bad(&format!("a whole number from {least} is needed")))
        };
        let o = &mut self.options;
        match g.opt.long {
            "tree" => o.pid = number(1)?,
            "leave-stopped" => o.after = if on { After::Stopped } else { After::Default },
            "leave-running" => o.after = if on { After::Running } else { After::Default },
            "restore-detached" | "daemon" => o.detach = on,
            "restore-sibling" => o.sibling = on,
            "images-dir" => o.images = text.into(),
            "work-dir" => self.work = Some(text.into()),
            "prev-images-dir" => o.memory.parent = Some(text.into()),
            "log-file" => self.log = Some(text.into()),
            "verbosity" => {
                self.verbosity = verbosity(self.verbosity, g.value.as_deref())
                    .ok_or_else(|| bad("0 to 4, or v repeated"))?
            }
            "display-stats" => self.display_stats = on,
            "version" => self.version = on,
            "help" => self.help = on,
            "pidfile" => o.pidfile = Some(text.into()),
            "status-fd" => self.status_fd = Some(number(0)?),
            "action-script" => self.scripts.push(text.into()),
            "hooks-dir" => self.hooks.push(text.into()),
            "exec-cmd" => self.exec_cmd = on,
            "shell-job" => o.shell_job = on,
            "tcp-established" => o.network.tcp_established = on,
            "tcp-close" => o.network.tcp_close = on,
            "skip-in-flight" => o.network.skip_in_flight = on,
            "ext-unix-sk" if text.is_empty() => o.network.external_unix = true,
            "ext-unix-sk" => {
                for ino in text.split(',') {
                    let ino = ino.parse().map_err(|_| bad("inode numbers are needed"))?;
                    o.network.external_unix_inodes.push(ino);
                }
            }
            "external" => external::take(o, text).map_err(|w| bad(&w))?,
            "ext-mount-map" => external::mount_map(o, text).map_err(|w| bad(&w))?,
            "veth-pair" => external::veth_pair(o, text).map_err(|w| bad(&w))?,
            "inherit-fd" => external::inherit(o, text).map_err(|w| bad(&w))?,
            "join-ns" => external::join(o, text).map_err(|w| bad(&w))?,
            "empty-ns" => match text {
                "net" => o.namespaces.empty_net = true,
                _ => return Err(bad("only net can be left empty")),
            },
            "root" => o.mounts.root = Some(text.into()),
            "skip-mnt" => o.mounts.skip.push(text.into()),
            "enable-fs" => {
                let names = text.split(',').filter(|n| !n.is_empty());
                o.mounts.enable_fs.extend(names.map(str::to_owned));
            }
            "enable-external-sharing" => o.mounts.external_sharing = on,
            "enable-external-masters" => o.mounts.external_masters = on,
            "manage-cgroups" => {
                let mode = match text {
                    _ if g.off => CgroupMode::Ignore,
                    "ignore" => CgroupMode::Ignore,
                    "none" => CgroupMode::CgNone,
                    "props" => CgroupMode::Props,
                    "" | "soft" => CgroupMode::Soft,
                    "full" => CgroupMode::Full,
                    "strict" => CgroupMode::Strict,
                    _ => return Err(bad("none, props, soft, full, strict or ignore")),
                };
                o.cgroups.mode = mode;
            }
            "cgroup-root" => {
                let root = match text.split_once(':') {
                    Some((ctrl, path)) if !text.starts_with('/') => {
                        (Some(ctrl.to_owned()), path.to_owned())
                    }
                    _ => (None, text.to_owned()),
                };
                if !root.1.starts_with('/') {
                    return Err(bad("a path that begins with / is needed"));
                }
                o.cgroups.roots.push(root);
            }
            "cgroup-props" => o.cgroups.props = Some(text.into()),
            "cgroup-props-file" => o.cgroups.props_file = Some(text.into()),
            "cgroup-dump-controller" => o.cgroups.controllers.push(text.into()),
            "cgroup-yard" => o.cgroups.yard = Some(text.into()),
            "freeze-cgroup" => o.cgroups.freeze = Some(text.into()),
            "cpu-cap" => self.cpu_cap = cpu_cap(text).map_err(|w| bad(&w))?,
            "lsm-profile" => {
                let known = ["apparmor:", "selinux:"];
                if !known.iter().any(|k| text.starts_with(k)) {
                    return Err(bad("apparmor:NAME or selinux:NAME"));
                }
                o.namespaces.lsm_profile = Some(text.into());
            }
            "lsm-mount-context" => o.mounts.context = Some(text.into()),
            "network-lock" => {
                o.network.lock = match text {
                    "auto" => NetworkLock::Auto,
                    "ebpf" => NetworkLock::Ebpf,
                    "iptables" | "nftables" => NetworkLock::Nftables,
                    "skip" => NetworkLock::Skip,
                    _ => return Err(bad("iptables, nftables, ebpf, auto or skip")),
                }
            }
            "evasive-devices" => o.evasive_devices = on,
            "file-locks" => o.file_locks = on,
            "file-validation" => match text {
                "filesize" => self
                    .notes
                    .push("files are compared by size and kind on restore".into()),
                "buildid" => {
                    return Err(format!(
                        "option {} buildid: build ids are not compared in this version; say filesize or leave it out",
                        g.spelt
                    ));
                }
                _ => return Err(bad("filesize or buildid")),
            },
            "skip-file-rwx-check" => o.skip_file_rwx_check = on,
            "ghost-limit" => {
                o.ghost_limit = Some(
                    size(text).ok_or_else(|| bad("a number of bytes, with K, M or G behind it"))?,
                )
            }
            "link-remap" => o.link_remap = on,
            "irmap-scan-path" => match text.starts_with('/') {
                true => o.scan_paths.push(text.into()),
                false => return Err(bad("an absolute path")),
            },
            "timeout" => o.timeout = Duration::from_secs(number(0)? as u64),
            "weak-sysctls" => o.network.weak_sysctls = on,
            "track-mem" => o.memory.track = on,
            "pre-dump-mode" => match text {
                "splice" | "read" => self
                    .notes
                    .push("pages of a pre-dump are read while the tree runs".into()),
                _ => return Err(bad("splice or read")),
            },
            "auto-dedup" => o.memory.auto_dedup = on,
            "lazy-pages" => o.memory.lazy = on,
            "page-server" => self.page_server = on,
            "port" => self.port = number(0)?.try_into().map_err(|_| bad("up to 65535"))?,
            "ps-socket" => self.ps_socket = Some(number(0)?),
            "address" => self.address = Some(text.into()),
            "tls" => self.tls = on,
            "tls-cacert" => self.tls_files.cacert = Some(text.into()),
            "tls-cacrl" => self.tls_files.cacrl = Some(text.into()),
            "tls-cert" => self.tls_files.cert = Some(text.into()),
            "tls-key" => self.tls_files.key = Some(text.into()),
            "tls-no-cn-verify" => self.tls_files.no_name = on,
            "config" => self.config = Some(text.into()),
            "no-default-config" => self.no_default_config = on,
            "feature" => self.features.push(text.into()),
            "all" | "extra" | "experimental" => {
                self.notes
                    .push(format!("option {}: every probe runs in any case", g.spelt));
            }
            "close" => self.close.push(number(3)?),
            other => {
                return Err(format!(
                    "option --{other} is in the table but nothing takes it: please report this"
                ));
            }
        }
        Ok(())
    }

    /// The folder that logs, the pidfile and statistics are relative to.
    pub fn work_dir(&self) -> &Path {
        self.work.as_deref().unwrap_or(&self.options.images)
    }

    /// How connections are secured.
    ///
    /// # Errors
    /// E2730.
    pub fn tls(&self) -> Result<Option<Arc<Tls>>, Error> {
        self.tls_files.load(self.tls)
    }

    /// What the engine is asked for.
    ///
    /// # Errors
    /// As for [`Settings::tls`].
    pub fn engine(&self) -> Result<Options, Error> {
        let mut o = self.options.clone();
        if self.page_server {
            o.memory.page_server = Some(self.server()?);
        }
        o.pidfile = o.pidfile.map(|f| self.work_dir().join(f));
        Ok(o)
    }
}
fn verbosity(now: u32, value: Option<&str>) -> Option<u32> {
    match value {
        None => Some(now + 1),
        Some(v) if v.chars().all(|c| c == 'v') => Some(now + 1 + v.len() as u32),
        Some(v) => v.parse().ok(),
    }
}

/// A size in bytes; K, M and G are powers of 1024.
pub fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn cpu_cap(list: &str) -> Result<CpuCap, String> {
    let mut c = CpuCap {
        asked: true,
        ..CpuCap::default()
    };
    if list.is_empty() {
        (c.ins, c.fpu) = (true, true);
    }
    for word in list.split(',').filter(|w| !w.is_empty()) {
        let (on, name) = match word.strip_prefix('^') {
            Some(name) => (false, name),
            None => (true, word),
        };
        match name {
            "fpu" => c.fpu = on,
            "ins" => c.ins = on,
            "cpu" | "all" => (c.ins, c.fpu) = (on, on),
            "none" => (c.ins, c.fpu) = (!on, !on),
            _ => return Err("none, fpu, ins, cpu or all, each with ^ to invert it".into()),
        }
    }
    Ok(c)
}
