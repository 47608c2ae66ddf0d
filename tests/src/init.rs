//! The box: a case runs below the first process of fresh pid, mount, IPC and network namespaces. Long because the scenarios
//! and what they share stand together.
//!
//! Three processes: the harness, the *gate* (enters the namespaces, waits), and the *init* (pid 1 inside: mounts /proc
//! and /dev/pts, reaps orphans, plays the scenario, writes `report.json`). When init ends, for whatever reason, the
//! kernel kills everything else in there; when the gate or the harness dies, a parent-death signal ends init.

use crate::case::{Report, Scenario, Spec};
use crate::engine;
use crate::life::stepper;
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// First argument that turns a binary into the gate.
pub const BOX_FLAG: &str = "--stasis-box";
const INIT_FLAG: &str = "--stasis-box-init";

/// Becomes the gate or the init when the arguments say so, and then never returns. Call it first in `main`.
pub fn main_if_box() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(done) = crate::container::main_if_container(&args) {
        if let Err(e) = done {
            eprintln!("container: {e:#}");
            std::process::exit(1);
        }
        std::process::exit(0);
    }
    let done = match (args.get(1).map(String::as_str), args.get(2)) {
        (Some(BOX_FLAG), Some(spec)) => gate(spec),
        (Some(INIT_FLAG), Some(spec)) => init(Path::new(spec)),
        (Some(stepper::TRACED_FLAG), Some(_)) => stepper::become_traced(&args[2..]),
        _ => return,
    };
    if let Err(e) = done {
        eprintln!("box: {e:#}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn gate(spec: &str) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    unshare(
        CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET,
    )
    .context("new namespaces (the tests need root)")?;
    let status = Command::new(std::env::current_exe()?)
        .args([INIT_FLAG, spec])
        .status()?;
    if !status.success() {
        bail!("init of the box: {status}");
    }
    Ok(())
}

/// Packets of a box reach itself; engines may want to see that, too. A sysfs shows the network namespace it was mounted in.
fn loopback() -> Result<()> {
    let none: Option<&str> = None;
    mount(Some("sysfs"), "/mnt", Some("sysfs"), MsFlags::empty(), none)?;
    // IFF_UP | IFF_LOOPBACK
    fs::write("/mnt/class/net/lo/flags", "0x9")?;
    Ok(nix::mount::umount("/mnt")?)
}

fn init(file: &Path) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // Descriptors that a build tool left open (a jobserver, say) must not become part of the guest's state.
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The listing's own descriptor is closed already.
        let _ = nix::unistd::close(fd);
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), quiet, none)?;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    mount(
        Some("devpts"),
        "/dev/pts",
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        options,
    )?;
    mount(
        Some("/dev/pts/ptmx"),
        "/dev/ptmx",
        none,
        MsFlags::MS_BIND,
        none,
    )?;
    loopback().context("the loopback device of the box")?;

    let spec: Spec = serde_json::from_slice(&fs::read(file)?)?;
    let mut stage = Stage {
        spec,
        dead: HashMap::new(),
        terminal: None,
    };
    let mut report = Report::default();
    if let Err(e) = stage.play(&mut report) {
        report.trouble = format!("{e:#}");
        report.logs.push_str(&stage.logs());
    }
    let answer = stage.spec.dir.join("report.json");
    fs::write(answer.with_extension("tmp"), serde_json::to_vec(&report)?)?;
    fs::rename(answer.with_extension("tmp"), answer)?;
    Ok(())
}

/// The running case.
pub(crate) struct Stage {
    pub(crate) spec: Spec,
    /// Ends of all processes reaped so far (our children and orphans).
    pub(crate) dead: HashMap<Pid, WaitStatus>,
    /// The terminal on which the guest is a job: its master, kept open, and its slave, also the engine's stdin.
    terminal: Option<(PtyMaster, File)>,
}

impl Stage {
    fn play(&mut self, report: &mut Report) -> Result<()> {
        if let Scenario::Working { gaps_ms } = self.spec.scenario.clone() {
            return self.disturb(&gaps_ms, report);
        }
        if let Some(sort) = self.spec.container {
            crate::container::prepare(&self.spec, sort)?;
        }
        if self.spec.scenario == Scenario::Unpacked {
            let root = self.unpack(report)?;
            return self.verify(root, report);
        }
        let mut root = self.start()?;
        if self
            .until(|s| s.work("ready").exists() || s.finished(root))
            .is_none()
        {
            bail!("timeout: the guest is not ready\n{}", processes());
        }
        if !self.work("ready").exists() {
            report.verdict = self.verdict();
            if report.verdict.starts_with("SKIP") {
                return Ok(());
            }
            bail!(
                "the guest ended before it was ready ({:?})",
                self.dead.get(&root)
            );
        }
        match self.spec.scenario.clone() {
            Scenario::Native
            | Scenario::Sabotage(_)
            | Scenario::Working { .. }
            | Scenario::Unpacked => {}
            Scenario::Packed => {
                self.dump(root, 1, false, report)?;
                report.verdict = "PASS".into();
                return Ok(());
            }
            Scenario::Life(trial) => match self.live(&trial, root, report)? {
                Some(now) => root = now,
                None => {
                    report.verdict = "PASS".into();
                    return Ok(());
                }
            },
            Scenario::DumpRestore => root = self.generation(root, 1, report)?,
            Scenario::LeaveRunning => {
                for n in 1..=2 {
                    self.dump(root, n, true, report)?;
                    if self.finished(root) {
                        bail!(
                            "the dump with --leave-running ended the guest: {:?}",
                            self.dead.get(&root)
                        );
                    }
                }
            }
            Scenario::Lazy => root = self.lazily(root, report)?,
            Scenario::Ours { dump, restore } => root = self.ours(root, &dump, &restore, report)?,
            Scenario::Incremental(rounds) => {
                root = self.incremental(root, rounds, false, report)?;
            }
            Scenario::IncrementalKilled(rounds) => {
                root = self.incremental(root, rounds, true, report)?;
            }
            Scenario::Generations(count) | Scenario::Contained(_, count) => {
                for n in 1..=count {
                    root = self
                        .generation(root, n, report)
                        .with_context(|| format!("generation {n}"))?;
                }
            }
        }
        self.verify(root, report)
    }

    /// Restores what another machine dumped.
    fn unpack(&mut self, report: &mut Report) -> Result<Pid> {
        // the numbers of its processes are free here, and shall stay so
        fs::write("/proc/sys/kernel/ns_last_pid", "20000")?;
        let was: i32 = read(&self.work("ready")).trim().parse()?;
        self.restore(Pid::from_raw(was), 1, report)
    }

    /// Has the guest check itself.
    fn verify(&mut self, root: Pid, report: &mut Report) -> Result<()> {
        kill(root, Signal::SIGTERM).context("telling the guest to verify")?;
        if self.until(|s| s.finished(root)).is_none() {
            report.verdict = self.verdict();
            bail!(
                "timeout: the guest does not come to an end\n{}",
                processes()
            );
        }
        report.verdict = self.verdict();
        let end = self.dead[&root];
        let wanted = if report.verdict.starts_with("FAIL") {
            1
        } else {
            0
        };
        if report.verdict.is_empty() {
            bail!("the guest ended without a verdict ({end:?})");
        }
        if !matches!(end, WaitStatus::Exited(_, code) if code == wanted) {
            bail!("the guest said {:?} and ended with {end:?}", report.verdict);
        }
        Ok(())
    }

    pub(crate) fn generation(&mut self, root: Pid, n: u32, report: &mut Report) -> Result<Pid> {
        self.dump(root, n, false, report)?;
        if self.until(|s| s.finished(root)).is_none() {
            bail!(
                "the dump said success but did not end the guest\n{}",
                processes()
            );
        }
        self.restore(root, n, report)
    }

    pub(crate) fn start(&mut self) -> Result<Pid> {
        if self.spec.container.is_some() {
            return Ok(Pid::from_raw(crate::container::start(&self.spec)?));
        }
        let spoil = match &self.spec.scenario {
            Scenario::Sabotage(name) => name,
            _ => "-",
        };
        let mut command = Command::new(&self.spec.guest);
        command.arg(self.work("")).arg(spoil).args(&self.spec.args);
        command
            .current_dir(self.work(""))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("GUEST", "stasis");
        if self.spec.terminal {
            // Init plays the shell: a session with a terminal, in which the guest is a job of its own.
            setsid()?;
            let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
            grantpt(&master)?;
            unlockpt(&master)?;
            let name = ptsname_r(&master)?;
            // A session leader without a terminal that opens one gets it as its controlling terminal.
            let slave = File::options().read(true).write(true).open(name)?;
            command
                .process_group(0)
                .stdin(slave.try_clone()?)
                .stdout(slave.try_clone()?)
                .stderr(slave.try_clone()?);
            self.terminal = Some((master, slave));
        } else {
            let log = File::options()
                .append(true)
                .create(true)
                .open(self.work("log"))?;
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
        }
        let child = command.spawn().context("starting the guest")?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }

    pub(crate) fn dump(
        &mut self,
        root: Pid,
        n: u32,
        leave: bool,
        report: &mut Report,
    ) -> Result<()> {
        let mut args = vec![
            "dump".to_string(),
            "-t".into(),
            root.to_string(),
            "-o".into(),
            "dump.log".into(),
        ];
        if leave {
            args.push("--leave-running".into());
        }
        fs::create_dir(self.images(n))?;
        self.engine("bin-dump", n, args, report)
    }

    pub(crate) fn restore(&mut self, was: Pid, n: u32, report: &mut Report) -> Result<Pid> {
        let pidfile = self.spec.dir.join(format!("pid-{n}"));
        let mut args = vec![
            "restore".to_string(),
            "-d".into(),
            "-o".into(),
            "restore.log".into(),
        ];
        args.extend(["--pidfile".into(), pidfile.display().to_string()]);
        // The number is used again now.
        self.dead.remove(&was);
        self.engine("bin-restore", n, args, report)?;
        let text =
            fs::read_to_string(&pidfile).context("the restore said success but left no pidfile")?;
        let root: i32 = text
            .trim()
            .parse()
            .with_context(|| format!("pidfile holds {text:?}"))?;
        // in a pid namespace of its own it is 1, and has any number here
        if root != was.as_raw() && self.spec.container.is_none() {
            bail!("the restored root has pid {root}, not {was}");
        }
        Ok(Pid::from_raw(root))
    }

    /// Runs one engine command to its end; its output goes to files in the case's folder.
    pub(crate) fn engine(
        &mut self,
        bin: &str,
        n: u32,
        mut args: Vec<String>,
        report: &mut Report,
    ) -> Result<()> {
        let verb = args[0].clone();
        args.extend([
            "-D".into(),
            self.images(n).display().to_string(),
            "-v4".into(),
        ]);
        args.extend(self.spec.options.iter().cloned());
        if let Some(sort) = self.spec.container {
            args.extend(crate::container::options(
                &self.spec,
                sort,
                verb == "restore",
            ));
        }
        let out = File::create(self.spec.dir.join(format!("{verb}-{n}.out")))?;
        let stdin = match &self.terminal {
            Some((_, slave)) => slave.try_clone()?.into(),
            None => Stdio::null(),
        };
        let child = Command::new(self.spec.dir.join(bin).join("criu"))
            .args(&args)
            .current_dir(&self.spec.dir)
            .stdin(stdin)
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting the engine for {verb}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let ended = self.until(|s| s.finished(pid));
        let status = self.dead.remove(&pid);
        if matches!(status, Some(WaitStatus::Exited(_, 0))) {
            return Ok(());
        }
        let log = read(&self.images(n).join(format!("{verb}.log")));
        let out = read(&self.spec.dir.join(format!("{verb}-{n}.out")));
        report.first_error = engine::first_error(&log);
        if report.first_error.is_empty() {
            report.first_error = out.lines().next().unwrap_or("no words").to_string();
        }
        if ended.is_none() {
            report.first_error = format!("timeout; {}", report.first_error);
            bail!("timeout: {verb} hangs\n{}", processes());
        }
        Err(anyhow!(
            "{verb} failed ({status:?}): {}",
            report.first_error
        ))
    }

    /// Waits until `done` holds, reaping meanwhile; `None` when patience ends first.
    pub(crate) fn until(&mut self, done: impl Fn(&Self) -> bool) -> Option<()> {
        let deadline = Instant::now() + Duration::from_secs(self.spec.patience);
        loop {
            self.reap();
            if done(self) {
                return Some(());
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.dead.insert(pid, status);
                    }
                }
                Err(_) => {}
            }
        }
    }

    pub(crate) fn finished(&self, pid: Pid) -> bool {
        self.dead.contains_key(&pid)
    }

    pub(crate) fn work(&self, name: &str) -> PathBuf {
        let work = self.spec.dir.join("work");
        if name.is_empty() {
            work
        } else {
            work.join(name)
        }
    }

    pub(crate) fn images(&self, n: u32) -> PathBuf {
        self.spec.dir.join(format!("img-{n}"))
    }

    pub(crate) fn verdict(&self) -> String {
        read(&self.work("result")).trim().to_string()
    }

    /// The ends of everything that was logged, newest images last.
    fn logs(&self) -> String {
        let mut text = String::new();
        let mut show = |path: PathBuf, lines: usize| {
            let log = read(&path);
            if !log.is_empty() {
                text.push_str(&format!(
                    "--- {}\n{}\n",
                    path.display(),
                    engine::tail(&log, lines)
                ));
            }
        };
        show(self.work("log"), 20);
        let last = (1..1000).take_while(|n| self.images(*n).exists()).last();
        if let Some(n) = last {
            for verb in ["dump", "restore"] {
                show(self.spec.dir.join(format!("{verb}-{n}.out")), 10);
                show(self.images(n).join(format!("{verb}.log")), 40);
            }
        }
        text
    }
}

pub(crate) fn read(path: &Path) -> String {
    fs::read(path)
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .unwrap_or_default()
}

/// What lives in the box now: pid, name, state, where in the kernel it sleeps.
pub(crate) fn processes() -> String {
    let mut text = String::new();
    let Ok(dir) = fs::read_dir("/proc") else {
        return text;
    };
    for entry in dir.flatten().take(2000) {
        let path = entry.path();
        if entry.file_name().to_string_lossy().parse::<u32>().is_err() || text.lines().count() >= 30
        {
            continue;
        }
        let stat = read(&path.join("stat"));
        let short: String = stat.chars().take(60).collect();
        text.push_str(&format!("  {short} [{}]\n", read(&path.join("wchan"))));
    }
    text
}
