//! Container runtimes as Debian packages them, driven through an engine in their PATH, in namespaces of their own.
//!
//! Every scenario runs below the first process of fresh pid, mount, network, IPC and cgroup namespaces, in a control group of
//! its own below which the runtimes make theirs. Nothing outside of the scenario's folder is changed, and everything ends with
//! the pid namespace. The engine is ours, or what `STASIS_ENGINE` names: the same scenarios then tell what CRIU does.

pub mod hostile;
pub mod migrate;
pub mod podman;
pub mod rootless;
pub mod runc;
pub mod services;
pub mod world;

use crate::build;
use crate::engine::Engine;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use world::World;

const GATE: &str = "--stasis-runtimes";
const INIT: &str = "--stasis-runtimes-init";
const PLAY: &str = "--stasis-runtimes-play";
/// A scenario that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// The same on this machine.
fn limit() -> Duration {
    LIMIT * crate::case::slowness()
}
const CGROUPS: &str = "/sys/fs/cgroup";

/// What is done with a container, and what must hold afterwards.
pub struct Scenario {
    /// Its name in tests and tables.
    pub name: &'static str,
    /// The program that must be there: `runc`, `podman`, ...
    pub runtime: &'static str,
    /// Plays it.
    pub play: fn(&World) -> Result<()>,
}

/// All scenarios, in the order of the table in the book.
pub fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    runc::SCENARIOS
        .iter()
        .chain(migrate::SCENARIOS)
        .chain(podman::SCENARIOS)
        .chain(rootless::SCENARIOS)
        .chain(services::SCENARIOS)
        .chain(hostile::SCENARIOS)
}

/// What came of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// The runtime is not installed.
    Skipped(String),
    /// The reason, and the logs.
    Failed(String),
}

/// Runs a scenario. `boxer` is a binary that calls [`main_if_runtimes`] first.
///
/// # Errors
/// It could not be run at all.
pub fn run(boxer: &Path, s: &Scenario, engine: &Engine) -> Result<Outcome> {
    for need in [s.runtime, "busybox"] {
        if !build::program_exists(need) {
            return Ok(Outcome::Skipped(format!("{need} is not installed")));
        }
    }
    let tmp = tempfile::Builder::new()
        .prefix("stasis-runtime-")
        .tempdir()?;
    let dir = tmp.path();
    fs::create_dir(dir.join("bin"))?;
    symlink(&engine.path, dir.join("bin/criu"))?;
    let _slot = crate::case::slot()?;
    let log = fs::File::create(dir.join("play.log"))?;
    let mut child = Command::new(boxer)
        .arg(GATE)
        .arg(s.name)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    // the gate has its own limit, and cleans up; this one is for a gate that hangs
    let status = patiently(&mut child, limit() + limit() / 2)?;
    crate::case::keep(dir, s.name);
    let mut told = fs::read_to_string(dir.join("play.log"))?;
    Ok(match status {
        Some(s) if s.success() => Outcome::Passed,
        Some(_) => Outcome::Failed(told),
        None => {
            told += "it hung";
            Outcome::Failed(told)
        }
    })
}

/// Waits for a child, and kills it when it takes too long.
fn patiently(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Becomes a part of a scenario when the arguments say so, and then never returns.
pub fn main_if_runtimes() {
    let args: Vec<String> = std::env::args().collect();
    let [_, part, name, dir] = &args[..] else {
        return;
    };
    let dir = PathBuf::from(dir);
    let done = match part.as_str() {
        GATE => gate(name, &dir),
        INIT => init(name, &dir),
        PLAY => play(name, &dir),
        _ => return,
    };
    match done {
        Ok(()) => std::process::exit(0),
        Err(e) => {
            eprintln!("{e:#}");
            std::process::exit(1);
        }
    }
}

/// Makes the namespaces and the control group, and removes the latter afterwards.
fn gate(name: &str, dir: &Path) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace (the tests need root)")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let view = dir.join("cgroups");
    fs::create_dir(&view)?;
    mount(
        Some("cgroup2"),
        &view,
        Some("cgroup2"),
        MsFlags::empty(),
        none,
    )?;
    let unique = dir.file_name().context("a folder")?;
    let own = view.join(unique);
    fs::create_dir(&own)?;
    let done = (|| {
        fs::write(own.join("cgroup.procs"), "0")?;
        unshare(
            CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP,
        )?;
        let mut init = Command::new(std::env::current_exe()?)
            .arg(INIT)
            .arg(name)
            .arg(dir)
            .spawn()?;
        match patiently(&mut init, limit())? {
            Some(status) => ensure!(status.success(), "the scenario failed"),
            None => bail!("it hung"),
        }
        Ok(())
    })();
    fs::write(view.join("cgroup.procs"), "0")?;
    remove_groups(&own)?;
    done
}

/// Removes a control group and all below it. What was in them died with the pid namespace, but may still be on its way.
fn remove_groups(group: &Path) -> Result<()> {
    for e in fs::read_dir(group)? {
        let e = e?;
        if e.file_type()?.is_dir() {
            remove_groups(&e.path())?;
        }
    }
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > until => {
                return Err(e).with_context(|| format!("rmdir {}", group.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The first process: mounts what belongs to the namespaces, plays, and reaps whoever loses its parent.
fn init(name: &str, dir: &Path) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let none: Option<&str> = None;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // the gate keeps its own view, to clean up in the end
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    umount2(&dir.join("cgroups"), MntFlags::MNT_DETACH)?;
    mount(Some("proc"), "/proc", Some("proc"), quiet, none)?;
    let _ = umount2(CGROUPS, MntFlags::MNT_DETACH);
    mount(Some("cgroup2"), CGROUPS, Some("cgroup2"), quiet, none)?;
    // no process may be in a group that hands controllers down
    let leaf = Path::new(CGROUPS).join("harness");
    fs::create_dir(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), "0")?;
    // podman's containers must not come to lie beside the host's, and overlayfs wants no overlayfs below it
    let storage = dir.join("storage");
    fs::create_dir(&storage)?;
    for at in [Path::new("/run"), Path::new("/var/lib"), &storage] {
        mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755"),
        )?;
    }
    let _ = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    let mut c = Command::new(std::env::current_exe()?);
    c.arg(PLAY).arg(name).arg(dir);
    let path = std::env::var("PATH").unwrap_or_default();
    c.env(
        "PATH",
        format!("{}:{path}:/usr/sbin:/sbin", dir.join("bin").display()),
    );
    for (k, _) in std::env::vars() {
        // what a build tool sets is none of a container's business
        if k.starts_with("CARGO") || k.starts_with("RUST") || k.starts_with("LD_") {
            c.env_remove(k);
        }
    }
    let player = c.spawn()?.id() as i32;
    loop {
        match waitpid(None::<Pid>, None) {
            Ok(WaitStatus::Exited(p, code)) if p.as_raw() == player => {
                ensure!(code == 0, "it ended with {code}");
                return Ok(());
            }
            Ok(WaitStatus::Signaled(p, s, _)) if p.as_raw() == player => bail!("it died of {s}"),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => bail!("waitpid: {e}"),
        }
    }
}

fn play(name: &str, dir: &Path) -> Result<()> {
    let s = scenarios()
        .find(|s| s.name == name)
        .with_context(|| format!("no scenario {name}"))?;
    let world = World::new(dir)?;
    (s.play)(&world).map_err(|e| e.context(world.logs()))
}
