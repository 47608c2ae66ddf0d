//! The bench: dump and restore of a few typical loads, by wall clock, frozen time and peak memory of the engine.
//!
//! Each round starts every load afresh for each engine in turn (interleaved, so that a busy machine disturbs all alike),
//! dumps it onto a tmpfs (or a folder of the disk, whose page cache takes it), restores it, and lets it check itself: a run whose
//! load is not whole does not count, it fails the bench. What other engines have not is measured for ours alone.
//!
//! The table goes to standard output, its picture to target/bench/bench.svg.
use crate::bench_chart::{self, Bar};
use crate::run::{Cost, close_inherited, inside, measured, measured_as, release_binary};
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use stasis_proto::{ImageDir, pb};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Case {
    name: &'static str,
    /// Arguments of bench/load.c.
    load: [&'static str; 4],
    /// Images go to a folder of the disk.
    disk: bool,
    how: How,
}

/// How it is dumped and restored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// By the command line of criu.
    Plain,
    /// By our own, with these options of dump and restore.
    Own(&'static [&'static str], &'static [&'static str]),
}

/// Memory is made in /mnt, a tmpfs.
const fn case(name: &'static str, load: [&'static str; 4]) -> Case {
    Case {
        name,
        load,
        disk: false,
        how: How::Plain,
    }
}

const fn own(
    name: &'static str,
    load: [&'static str; 4],
    dump: &'static [&'static str],
    restore: &'static [&'static str],
) -> Case {
    Case {
        how: How::Own(dump, restore),
        ..case(name, load)
    }
}

const LARGE: [&str; 4] = ["dirty", "4096", "0", "0"];

const CASES: &[Case] = &[
    case("trivial process", ["trivial", "0", "0", "0"]),
    case("tree of 200 processes", ["tree", "200", "0", "0"]),
    case("500 threads", ["threads", "500", "0", "0"]),
    case(
        "1000 files + 500 pipes + 200 socket pairs",
        ["files", "1000", "500", "200"],
    ),
    case("1 GiB dirty anonymous", ["dirty", "1024", "0", "0"]),
    case("10000 threads", ["threads", "10000", "0", "0"]),
    case("1000 processes", ["tree", "1000", "0", "0"]),
    case("50000 mappings", ["maps", "50000", "0", "0"]),
    case("20000 files", ["files", "20000", "0", "0"]),
    case("4 GiB, tmpfs", LARGE),
    Case {
        disk: true,
        ..case("4 GiB, page cache", LARGE)
    },
    own("4 GiB, lazy", LARGE, &[], &["--lazy"]),
    own(
        "4 GiB, snapshot",
        LARGE,
        &["--leave-running", "--snapshot"],
        &[],
    ),
    own("4 GiB, lz4", LARGE, &["--compress", "lz4"], &[]),
    own("4 GiB, zstd", LARGE, &["--compress", "zstd"], &[]),
];

/// Measure dump and restore
#[derive(Debug, Args)]
pub struct Bench {
    /// Another engine with the criu command line, measured in turn with ours
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Measure only the other engine
    #[arg(long, requires = "against")]
    only_against: bool,
    /// Rounds; the first is not counted
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..))]
    rounds: u32,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    case: String,
    /// (internal) our binary; set when already inside the namespaces
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

impl Bench {
    /// Runs the verb.
    pub fn run(&self) -> Result<()> {
        let Some(ours) = &self.inside else {
            let ours = match &self.against {
                Some(a) if self.only_against => a.clone(),
                _ => release_binary()?,
            };
            let args = std::env::args_os().skip(1);
            return inside(args.chain(["--inside".into(), ours.into_os_string()]));
        };
        close_inherited()?;
        let mut engines = vec![("stasis", ours.clone())];
        if let Some(a) = &self.against {
            if self.only_against {
                engines.clear();
            }
            engines.push((
                "other",
                a.canonicalize().with_context(|| a.display().to_string())?,
            ));
        }
        for dir in ["/run", "/mnt"] {
            // /run too: an engine may keep what it learned about the kernel there
            mount(
                Some("bench"),
                dir,
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .with_context(|| format!("a tmpfs on {dir} of the private mount namespace"))?;
        }
        let load = compile()?;
        println!("{}", heading(&engines, self.rounds - 1));
        let mut bars = Vec::new();
        for case in CASES.iter().filter(|c| c.name.contains(&self.case)) {
            let mut runs: Vec<Vec<Run>> = engines.iter().map(|_| Vec::new()).collect();
            for round in 0..self.rounds {
                for (i, (name, path)) in engines.iter().enumerate() {
                    if case.how != How::Plain && *name != "stasis" {
                        continue;
                    }
                    let run = once(case, &load, path)
                        .with_context(|| format!("{}, engine {name}, round {round}", case.name))?;
                    if round > 0 {
                        runs[i].push(run);
                    }
                }
            }
            for ((name, _), runs) in engines.iter().zip(&runs).filter(|r| !r.1.is_empty()) {
                println!("{}", row(case.name, name, runs));
                let mut bar = |what: &str, us: fn(&Run) -> u64| {
                    let name = format!("{}: {what}, {name}", case.name);
                    bars.extend(Bar::of(name, runs.iter().map(us).collect()));
                };
                bar("dump", |r| r.dump.wall_us);
                bar("frozen", |r| r.frozen_us);
                bar("restore", |r| r.restore.wall_us);
            }
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("bench.svg"), bench_chart::svg(&bars))?;
        Ok(())
    }
}

/// One dump and restore.
struct Run {
    dump: Cost,
    frozen_us: u64,
    restore: Cost,
}

fn compile() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/load.c");
    let program = PathBuf::from("/mnt/load");
    let status = Command::new("gcc")
        .args(["-std=gnu11", "-O1", "-Wall", "-Werror", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .context("gcc")?;
    if !status.success() {
        bail!("gcc {}: {status}", source.display());
    }
    Ok(program)
}

fn once(case: &Case, load: &Path, engine: &Path) -> Result<Run> {
    let dir = Path::new("/mnt/run");
    fs::create_dir(dir)?;
    let report = dir.join("report");
    let disk = case
        .disk
        .then(|| tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")));
    let disk = disk.transpose()?;
    let images = disk
        .as_ref()
        .map_or(dir.join("images"), |d| d.path().join("images"));
    fs::create_dir(&images)?;
    let child = Command::new(load)
        .args(case.load)
        .arg(&report)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir(dir)
        .spawn()?;
    let pid = child.id().to_string();
    wait_report(&report, "ready")?;
    let at = images.to_string_lossy().into_owned();
    let common = ["-D", at.as_str(), "--no-default-config", "-o"];
    let dump = match case.how {
        How::Plain => measured(
            engine,
            &[&["dump", "-t", pid.as_str()], &common[..], &["dump.log"]].concat(),
        )?,
        How::Own(o, _) => measured_as(
            "stasis",
            engine,
            &[&["dump", pid.as_str(), "-D", at.as_str()], o].concat(),
        )?,
    };
    if !dump.ok {
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        bail!("dump failed:\n{}", log(&images.join("dump.log")));
    }
    if matches!(case.how, How::Own(o, _) if o.contains(&"--leave-running")) {
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL)?;
    }
    reap();
    let stats: pb::StatsEntry = ImageDir::open(&images)?.read_one("stats-dump")?;
    let frozen_us = stats
        .dump
        .context("stats-dump without a dump")?
        .frozen_time
        .into();
    let restore = match case.how {
        How::Plain => measured(
            engine,
            &[&["restore", "-d"], &common[..], &["restore.log"]].concat(),
        )?,
        How::Own(_, o) => measured_as(
            "stasis",
            engine,
            &[&["restore", "-d", "-D", at.as_str()], o].concat(),
        )?,
    };
    if !restore.ok {
        bail!("restore failed:\n{}", log(&images.join("restore.log")));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).context("the restored load")?;
    wait_report(&report, "ok")?;
    reap();
    fs::remove_dir_all(dir)?;
    Ok(Run {
        dump,
        frozen_us,
        restore,
    })
}

fn wait_report(report: &Path, want: &str) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let said = fs::read_to_string(report).unwrap_or_default();
        match said.as_str() {
            s if s == want => return Ok(()),
            "" | "ready" => {}
            s => bail!("the load says: {s}"),
        }
        if Instant::now() > until {
            bail!("the load does not say {want}, only {said:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn log(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn reap() {
    // a killed tree of 200 takes a moment to go
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Err(_) => return,
            Ok(s) if s.pid().is_some() => {}
            Ok(_) if Instant::now() > until => return,
            Ok(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn heading(engines: &[(&str, PathBuf)], rounds: u32) -> String {
    let which: Vec<_> = engines
        .iter()
        .map(|(n, p)| format!("{n} = `{}`", p.display()))
        .collect();
    format!(
        "{}; {rounds} rounds, interleaved; milliseconds: min / median / max\n\n\
         | case | engine | dump | frozen | restore | peak memory of the engine: dump, restore |\n\
         |---|---|---|---|---|---|",
        which.join(", ")
    )
}

fn row(case: &str, engine: &str, runs: &[Run]) -> String {
    let peak = |f: fn(&Run) -> i64| {
        let most = runs.iter().map(f).max().unwrap_or(0);
        format!("{:.1} MiB", most as f64 / 1024.0)
    };
    format!(
        "| {case} | {engine} | {} | {} | {} | {}, {} |",
        spread(runs.iter().map(|r| r.dump.wall_us).collect()),
        spread(runs.iter().map(|r| r.frozen_us).collect()),
        spread(runs.iter().map(|r| r.restore.wall_us).collect()),
        peak(|r| r.dump.peak_kib),
        peak(|r| r.restore.peak_kib),
    )
}

/// Least, middle and most, in milliseconds.
fn spread(mut us: Vec<u64>) -> String {
    us.sort_unstable();
    let (Some(min), Some(max)) = (us.first(), us.last()) else {
        return "-".into();
    };
    let ms = |n: u64| format!("{:.1}", n as f64 / 1e3);
    format!("{} / {} / {}", ms(*min), ms(us[us.len() / 2]), ms(*max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_min_median_max() {
        assert_eq!(spread(vec![3000, 1000, 90_500]), "1.0 / 3.0 / 90.5");
        assert_eq!(spread(vec![]), "-");
    }
}
