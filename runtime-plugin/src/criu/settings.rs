//! Given options into one value that says what to do, with all contradictions and refusals found before anything starts.
use super::options::Fate;
use super::parse::Given;
use stasis_engine::{After, Options};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything the verbs need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `-t`
    pub tree: Option<i32>,
    /// `-D`; the current folder if it is not given.
    pub images: PathBuf,
    /// `-W`
    pub work: Option<PathBuf>,
    /// `-o`
    pub log: Option<PathBuf>,
    /// 0 nothing, 1 errors, 2 warnings, 3 information and times, 4 debug, 5 every call.
    pub verbosity: u32,
    /// `-R`, `-s`: the last one counts.
    pub after: After,
    /// `-d`
    pub detach: bool,
    /// `-S`
    pub sibling: bool,
    /// `--pidfile`
    pub pidfile: Option<PathBuf>,
    /// `-j`
    pub shell_job: bool,
    /// `-l`
    pub file_locks: bool,
    /// `--link-remap`
    pub link_remap: bool,
    /// `--ghost-limit`, bytes.
    pub ghost_limit: Option<u64>,
    /// `--timeout`
    pub timeout: Duration,
    /// `--evasive-devices`
    pub evasive_devices: bool,
    /// `--skip-file-rwx-check`
    pub skip_file_rwx_check: bool,
    /// `--exec-cmd`
    pub exec_cmd: bool,
    /// `--display-stats`
    pub display_stats: bool,
    /// `--cpu-cap`
    pub cpu_cap: CpuCap,
    /// `--feature`
    pub features: Vec<String>,
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
            tree: None,
            images: PathBuf::from("."),
            work: None,
            log: None,
            verbosity: 2,
            after: After::Default,
            detach: false,
            sibling: false,
            pidfile: None,
            shell_job: false,
            file_locks: false,
            link_remap: false,
            ghost_limit: None,
            timeout: Duration::from_secs(10),
            evasive_devices: false,
            skip_file_rwx_check: false,
            exec_cmd: false,
            display_stats: false,
            cpu_cap: CpuCap::default(),
            features: Vec::new(),
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
        match g.opt.long {
            "tree" => self.tree = Some(number(1)?),
            "leave-stopped" => self.after = if on { After::Stopped } else { After::Default },
            "leave-running" => self.after = if on { After::Running } else { After::Default },
            "restore-detached" | "daemon" => self.detach = on,
            "restore-sibling" => self.sibling = on,
            "images-dir" => self.images = text.into(),
            "work-dir" => self.work = Some(text.into()),
            "log-file" => self.log = Some(text.into()),
            "verbosity" => {
                self.verbosity = verbosity(self.verbosity, g.value.as_deref())
                    .ok_or_else(|| bad("0 to 4, or v repeated"))?
            }
            "display-stats" => self.display_stats = on,
            "version" => self.version = on,
            "help" => self.help = on,
            "pidfile" => self.pidfile = Some(text.into()),
            "exec-cmd" => self.exec_cmd = on,
            "shell-job" => self.shell_job = on,
            "manage-cgroups" => match g.value.as_deref() {
                Some("none" | "ignore") => self.notes.push("cgroups are left alone".into()),
                _ => {
                    return Err(format!(
                        "option {}: cgroups are not dumped or restored in this version; say --manage-cgroups=ignore and start the restore in the cgroup the tree shall live in",
                        g.spelt
                    ));
                }
            },
            "cpu-cap" => self.cpu_cap = cpu_cap(text).map_err(|w| bad(&w))?,
            "evasive-devices" => self.evasive_devices = on,
            "file-locks" => self.file_locks = on,
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
            "skip-file-rwx-check" => self.skip_file_rwx_check = on,
            "ghost-limit" => {
                self.ghost_limit = Some(
                    size(text).ok_or_else(|| bad("a number of bytes, with K, M or G behind it"))?,
                )
            }
            "link-remap" => self.link_remap = on,
            "timeout" => self.timeout = Duration::from_secs(number(0)? as u64),
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
        self.work.as_deref().unwrap_or(&self.images)
    }

    /// What the engine is asked for.
    pub fn engine(&self) -> Options {
        let mut o = Options::new(&self.images);
        o.pid = self.tree.unwrap_or(0);
        o.after = self.after;
        o.shell_job = self.shell_job;
        o.file_locks = self.file_locks;
        o.link_remap = self.link_remap;
        o.ghost_limit = self.ghost_limit;
        o.timeout = self.timeout;
        o.evasive_devices = self.evasive_devices;
        o.skip_file_rwx_check = self.skip_file_rwx_check;
        o.detach = self.detach;
        o.sibling = self.sibling;
        o.pidfile = self.pidfile.as_ref().map(|f| self.work_dir().join(f));
        o
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
