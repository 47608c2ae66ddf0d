//! Running other programs: loudly, measured, and inside private namespaces.
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a command in the workspace's folder with the caller's terminal.
///
/// # Errors
/// When it cannot be started or fails.
pub fn loud(c: &mut Command) -> Result<()> {
    let status = c
        .current_dir(crate::repo::root())
        .status()
        .with_context(|| format!("{}", Path::new(c.get_program()).display()))?;
    if !status.success() {
        bail!("{c:?}: {status}");
    }
    Ok(())
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Our release binary, built now if it is not up to date.
///
/// # Errors
/// When it does not build.
pub fn release_binary() -> Result<PathBuf> {
    loud(cargo().args(["build", "--release", "--quiet", "--package", "stasis"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate::repo::root().join("target"), PathBuf::from);
    Ok(target.join("release/stasis"))
}

/// This program again as the first process of fresh pid, mount and network namespaces, which end with it.
///
/// # Errors
/// When unshare(1) is missing, not allowed, or the inner run fails.
pub fn inside(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--net",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ])
        .arg(std::env::current_exe()?)
        .args(args)
        .status()
        .context("unshare(1) of util-linux")?;
    if !status.success() {
        match nix::unistd::geteuid().is_root() {
            true => bail!("the run inside private namespaces: {status}"),
            false => bail!("private namespaces need root"),
        }
    }
    Ok(())
}

/// Closes every descriptor past standard error that a build tool left open: what is started from here would inherit it,
/// and it would become part of what is dumped. Only for the very beginning of a process.
///
/// # Errors
/// When /proc is not there.
pub fn close_inherited() -> Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // one of them was the listing itself, closed by now
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// A measured command that takes longer hangs, and is killed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one command cost.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Cost {
    /// From start to exit, microseconds.
    pub wall_us: u64,
    /// Largest resident set of the command and the children it waited for, KiB.
    pub peak_kib: i64,
    /// Processor time of the command and the children it waited for, microseconds.
    pub cpu_us: u64,
    /// Did it end with status 0?
    pub ok: bool,
}

/// Runs one command and prints its [`Cost`] as JSON. A process of its own, because getrusage(2) tells the peak of all
/// children a process ever had.
#[derive(Debug, Args)]
pub struct Measure {
    /// The name the command is started under
    #[arg(long)]
    arg0: String,
    /// The command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Measure {
    /// Runs the verb.
    pub fn run(&self) -> Result<()> {
        use std::os::unix::process::CommandExt;
        let (program, args) = self.command.split_first().context("no command")?;
        let mut c = Command::new(program);
        c.arg0(&self.arg0)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let start = Instant::now();
        let mut child = c.spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        // ends with this process
        std::thread::spawn(move || {
            std::thread::sleep(PATIENCE);
            let _ = kill(pid, Signal::SIGKILL);
        });
        let status = child.wait()?;
        let wall_us = start.elapsed().as_micros() as u64;
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let us = |t: TimeVal| t.num_microseconds() as u64;
        let cost = Cost {
            wall_us,
            peak_kib: usage.max_rss(),
            cpu_us: us(usage.user_time()) + us(usage.system_time()),
            ok: status.success(),
        };
        println!("{}", serde_json::to_string(&cost)?);
        Ok(())
    }
}

/// Runs an engine under the name `criu`, measured.
///
/// # Errors
/// When it could not be run at all; an engine that fails is `ok: false`, with its words on our standard error.
pub fn measured(engine: &Path, args: &[&str]) -> Result<Cost> {
    measured_as("criu", engine, args)
}

/// The same under another name.
///
/// # Errors
/// As [`measured`].
pub fn measured_as(name: &str, engine: &Path, args: &[&str]) -> Result<Cost> {
    let out = Command::new(std::env::current_exe()?)
        .args(["measure", "--arg0", name, "--"])
        .arg(engine)
        .args(args)
        .stderr(Stdio::inherit())
        .output()?;
    serde_json::from_slice(&out.stdout)
        .with_context(|| format!("measuring {}: {}", engine.display(), out.status))
}
