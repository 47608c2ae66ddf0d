//! The demo: a container is frozen into a folder, is gone, and goes on where it was; then a plain program, by stasis alone.
mod container;

use crate::run::{close_inherited, inside, release_binary};
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Counts in its memory only: whoever starts it afresh begins at 1.
const COUNTER: &str = "n=0; while :; do n=$((n + 1)); echo $n >> \"$1\"; sleep 0.05; done";

/// Freeze a running program and bring it back
#[derive(Debug, Args)]
pub struct Demo {
    /// (internal) the binary; set when already inside the namespaces
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

impl Demo {
    /// Runs the verb.
    pub fn run(&self) -> Result<()> {
        if let Some(stasis) = &self.inside {
            close_inherited()?;
            return story(stasis);
        }
        println!("building (release) ...");
        let stasis = release_binary()?;
        println!("in pid and mount namespaces of its own, so nothing of your system is touched:\n");
        inside(["demo".as_ref(), "--inside".as_ref(), stasis.as_os_str()])
    }
}

fn story(stasis: &Path) -> Result<()> {
    let dir = Path::new("/mnt");
    mount(
        Some("demo"),
        dir,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("a tmpfs on /mnt of the private mount namespace")?;
    println!("== a container, by the commands of runc\n");
    container::story(dir, stasis)?;
    println!("\n== a process, by those of stasis\n");
    let (log, images) = (dir.join("count"), dir.join("images"));
    let child = Command::new("setsid")
        .args(["sh", "-c", COUNTER, "counter"])
        .arg(&log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir(dir)
        .spawn()
        .context("setsid sh")?;
    let pid = child.id();
    println!("$ sh -c 'while :; do n=$((n + 1)); echo $n >> count; sleep 0.05; done' &");
    println!("process {pid} counts, in its memory");
    wait_for(&log, 10)?;
    println!("  count: ... {}", last(&log)?);

    verb(
        stasis,
        &["dump", &pid.to_string(), "-D", &images.to_string_lossy()],
    )?;
    reap();
    if Path::new(&format!("/proc/{pid}")).exists() {
        bail!("process {pid} is still there after the dump");
    }
    let frozen_at = last(&log)?;
    std::thread::sleep(Duration::from_millis(300));
    if last(&log)? != frozen_at {
        bail!("something still counts after the dump");
    }
    println!("process {pid} is gone; the count stays at {frozen_at}");
    println!("  {} of images", size(&images)?);

    verb(
        stasis,
        &["restore", "--detach", "-D", &images.to_string_lossy()],
    )?;
    wait_for(&log, frozen_at + 10)?;
    println!("process {pid} is back and counts on:");
    let tail: Vec<u64> = numbers(&log)?
        .into_iter()
        .filter(|n| *n + 3 > frozen_at)
        .take(6)
        .collect();
    println!("  count: ... {tail:?}");
    if tail.windows(2).any(|w| w[1] != w[0] + 1) {
        bail!("the count has a gap or a double");
    }
    println!("not one number is missing or there twice");
    Ok(())
}

/// Runs a verb of stasis as a person would, and says what it took.
fn verb(stasis: &Path, args: &[&str]) -> Result<()> {
    println!("\n$ stasis {}", args.join(" "));
    let start = Instant::now();
    let status = Command::new(stasis)
        .args(args)
        .stdin(Stdio::null())
        .status()?;
    let took = start.elapsed();
    if !status.success() {
        bail!("stasis {}: {status}", args[0]);
    }
    println!("  ({:.1} ms in all)", took.as_secs_f64() * 1e3);
    Ok(())
}

/// We are the first process of the namespace: what died is ours to reap, or its pid stays taken.
fn reap() {
    while waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s.pid().is_some()) {}
}

fn numbers(log: &Path) -> Result<Vec<u64>> {
    let text = fs::read_to_string(log).unwrap_or_default();
    // the last line may be half written
    let whole = text.rsplit_once('\n').map_or("", |(w, _)| w);
    whole
        .lines()
        .map(|l| l.parse().context("the counter's file"))
        .collect()
}

fn last(log: &Path) -> Result<u64> {
    Ok(numbers(log)?.last().copied().unwrap_or(0))
}

fn wait_for(log: &Path, count: u64) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    while last(log)? < count {
        if Instant::now() > until {
            bail!(
                "the counter stands at {} and does not reach {count}",
                last(log)?
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn size(dir: &Path) -> Result<String> {
    let mut bytes = 0;
    let mut files = 0;
    for e in fs::read_dir(dir)? {
        bytes += e?.metadata()?.len();
        files += 1;
    }
    Ok(format!("{} KiB in {files} files", bytes / 1024))
}
