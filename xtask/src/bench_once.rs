//! One round of one case of the bench: a load is started, dumped, restored, and asked whether it is whole.
use crate::bench::Case;
use crate::bench_load::Running;
use crate::run::{Cost, measured, measured_as};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use stasis_proto::{ImageDir, pb};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a load is dumped and restored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By the command line of criu.
    Plain,
    /// The same, with connections whose other ends live on.
    Connected,
    /// The same, but memory comes when the tree runs.
    Lazy,
    /// The tree runs on; ours saves its memory meanwhile.
    Snapshot,
    /// By our own command line, compressed like this.
    Packed(Option<&'static str>),
}

impl How {
    /// What other engines have not.
    pub fn is_own(self) -> bool {
        matches!(self, How::Packed(_))
    }
}

/// One dump and restore.
pub struct Run {
    /// What the dump cost.
    pub dump: Cost,
    /// How long the load stood still for it.
    pub frozen_us: u64,
    /// What the restore cost.
    pub restore: Cost,
    /// What else is told: each has its unit in its name.
    pub more: Vec<(&'static str, f64)>,
}

/// How fast a writer writes before the dump is asked of this long.
const BASE: Duration = Duration::from_millis(500);

/// One round.
///
/// # Errors
/// Anything that fails, and a load that is not whole in the end.
pub fn once(case: &Case, program: &Path, engine: &Path, own: bool) -> Result<Run> {
    let dir = Path::new("/mnt/run");
    fs::create_dir(dir)?;
    let disk = case
        .disk
        .then(|| tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")));
    let disk = disk.transpose()?;
    let images = disk
        .as_ref()
        .map_or(dir.join("images"), |d| d.path().join("images"));
    fs::create_dir(&images)?;
    let load = case.load.start(program, dir)?;
    let mut more = Vec::new();
    let dump = dump(case, engine, own, &load, &images, &mut more)?;
    let all = match case.how {
        // its own group
        How::Connected => Pid::from_raw(-load.pid.as_raw()),
        _ => Pid::from_raw(-1),
    };
    reap(all);
    let stats: pb::StatsEntry = ImageDir::open(&images)?.read_one("stats-dump")?;
    let stats = stats.dump.context("stats-dump without a dump")?;
    let frozen_us = stats.frozen_time.into();
    if case.how.is_own() {
        more.extend(sizes(&images, &stats, &dump)?);
    }
    let restore = restore(case, engine, own, &load, &images, &mut more)?;
    load.check()?;
    reap(all);
    fs::remove_dir_all(dir)?;
    Ok(Run {
        dump,
        frozen_us,
        restore,
        more,
    })
}

fn dump(
    case: &Case,
    engine: &Path,
    own: bool,
    load: &Running,
    images: &Path,
    more: &mut Vec<(&'static str, f64)>,
) -> Result<Cost> {
    let (pid, at) = (load.pid.to_string(), images.to_string_lossy());
    let (pid, at) = (pid.as_str(), at.as_ref());
    let criu = ["dump", "-t", pid, "-D", at, "--no-default-config", "-o"];
    let before = match case.how {
        How::Snapshot => Some(speed(load, || {
            std::thread::sleep(BASE);
            Ok(())
        })?),
        _ => None,
    };
    let mut cost = None;
    let mut act = || {
        cost = Some(match case.how {
            How::Snapshot if own => measured_as(
                "stasis",
                engine,
                &["dump", pid, "-D", at, "--leave-running", "--snapshot"],
            )?,
            How::Snapshot => measured(engine, &[&criu[..], &["dump.log", "-R"]].concat())?,
            How::Packed(how) => {
                let how = how.map_or(vec![], |h| vec!["--compress", h]);
                measured_as(
                    "stasis",
                    engine,
                    &[&["dump", pid, "-D", at], &how[..]].concat(),
                )?
            }
            // the other engine does not wait for the disk
            How::Plain if own && case.disk => {
                measured_as("stasis", engine, &["dump", pid, "-D", at, "--no-sync"])?
            }
            How::Plain | How::Lazy => measured(engine, &[&criu[..], &["dump.log"]].concat())?,
            How::Connected => {
                measured(engine, &[&criu[..], &["dump.log"], connected(own)].concat())?
            }
        });
        Ok(())
    };
    match before {
        None => act()?,
        Some(before) => {
            let during = speed(load, act)?;
            more.push(("writes per second before, millions", before / 1e6));
            more.push((
                "slower while it is dumped, per cent",
                100.0 * (1.0 - during / before),
            ));
        }
    }
    let cost = cost.context("not dumped")?;
    if !cost.ok {
        let _ = kill(load.pid, Signal::SIGKILL);
        bail!("dump failed:\n{}", log(&images.join("dump.log")));
    }
    if case.how == How::Snapshot {
        kill(load.pid, Signal::SIGKILL)?;
    }
    Ok(cost)
}

/// Writes per second of a writer while something is done.
fn speed(load: &Running, act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (begun, from) = (Instant::now(), load.beat()?);
    act()?;
    Ok((load.beat()? - from) as f64 / begun.elapsed().as_secs_f64())
}

/// How small images became, and how fast: the bytes of pages for each second of all processors in the dump.
fn sizes(
    images: &Path,
    stats: &pb::DumpStatsEntry,
    dump: &Cost,
) -> Result<Vec<(&'static str, f64)>> {
    let mut stored = 0;
    for e in fs::read_dir(images)? {
        let e = e?;
        let name = e.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("pages-") || name.starts_with("packed-") {
            stored += e.metadata()?.len();
        }
    }
    let bytes = stats.pages_written as f64 * 4096.0;
    Ok(vec![
        ("times smaller", bytes / stored as f64),
        (
            "GB per second and processor, the whole dump",
            bytes / 1e3 / dump.cpu_us as f64,
        ),
    ])
}

fn restore(
    case: &Case,
    engine: &Path,
    own: bool,
    load: &Running,
    images: &Path,
    more: &mut Vec<(&'static str, f64)>,
) -> Result<Cost> {
    let at = images.to_string_lossy();
    let at = at.as_ref();
    let criu = [
        "restore",
        "-d",
        "-D",
        at,
        "--no-default-config",
        "-o",
        "restore.log",
    ];
    let lazy = case.how == How::Lazy;
    if lazy && !own {
        Command::new(engine)
            .args(["lazy-pages", "-D", at, "-W", at, "--no-default-config"])
            .args(["-o", "lazy.log"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let until = Instant::now() + Duration::from_secs(10);
        while !images.join("lazy-pages.socket").exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let start = Instant::now();
    let act = || match case.how {
        How::Lazy if own => measured_as("stasis", engine, &["restore", "-d", "--lazy", "-D", at]),
        How::Lazy => measured(engine, &[&criu[..], &["--lazy-pages", "-W", at]].concat()),
        How::Packed(_) => measured_as("stasis", engine, &["restore", "-d", "-D", at]),
        How::Plain | How::Snapshot => measured(engine, &criu),
        How::Connected => measured(engine, &[&criu[..], connected(own)].concat()),
    };
    let (cost, first) = match lazy {
        true => first_beat(load, act)?,
        false => (act()?, None),
    };
    if !cost.ok {
        bail!("restore failed:\n{}", log(&images.join("restore.log")));
    }
    if let Some(first) = first {
        while brings()? {
            std::thread::sleep(Duration::from_micros(500));
        }
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        more.push(("first instruction after ms", ms(first)));
        more.push(("all memory is there after ms", ms(start.elapsed())));
    }
    Ok(cost)
}

/// Does something, and tells when the load counted on.
fn first_beat(
    load: &Running,
    act: impl FnOnce() -> Result<Cost>,
) -> Result<(Cost, Option<Duration>)> {
    let (start, from) = (Instant::now(), load.beat()?);
    let until = start + Duration::from_secs(60);
    std::thread::scope(|s| {
        let watcher = s.spawn(|| -> Result<Duration> {
            while load.beat()? == from {
                if Instant::now() > until {
                    bail!("the restored load does not run");
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            Ok(start.elapsed())
        });
        let cost = act()?;
        if !cost.ok {
            return Ok((cost, None));
        }
        let first = watcher.join().expect("it does not panic")?;
        Ok((cost, Some(first)))
    })
}

/// Whether somebody still brings memory: our pager, or the daemon of criu.
fn brings() -> Result<bool> {
    for e in fs::read_dir("/proc")? {
        let path = e?.path();
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        // one that has ended may wait for us
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        if matches!(comm.trim(), "stasis-pager" | "criu") && !stat.contains(") Z ") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Options with which connections are kept. CRIU takes longer than its own limit to lock so many, one after the other, by iptables(8) or
/// nftables: it goes without a lock here, as nobody speaks meanwhile.
fn connected(own: bool) -> &'static [&'static str] {
    match own {
        true => &["--tcp-established"],
        false => &["--tcp-established", "--network-lock", "skip"],
    }
}

fn log(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Waits until these children are gone.
fn reap(which: Pid) {
    // a killed tree takes a moment to go, and seconds where much else runs
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match waitpid(which, Some(WaitPidFlag::WNOHANG)) {
            Err(_) => return,
            Ok(WaitStatus::StillAlive) if Instant::now() > until => return,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            Ok(_) => {}
        }
    }
}
