//! The bench: dump and restore of a few typical loads, by wall clock, frozen time and peak memory of the engine.
//!
//! Each round starts every load afresh for each engine in turn (interleaved, so that a busy machine disturbs all alike),
//! dumps it onto a tmpfs (or a folder of the disk, whose page cache takes it), restores it, and lets it check itself: a run whose
//! load is not whole does not count, it fails the bench. What other engines have not is measured for ours alone.
//!
//! Two tables go to standard output: times that every case has, and what only some have (when the first instruction ran, how much
//! a writer was slowed down, how small compressed images are). The picture goes to target/bench/bench.svg.
use crate::bench_chart::{self, Bar};
use crate::bench_load::{self, Load};
use crate::bench_once::{How, Run, once};
use crate::run::{close_inherited, inside, loud, release_binary};
use anyhow::{Context, Result};
use clap::Args;
use nix::mount::{MsFlags, mount};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A row of the table.
pub struct Case {
    name: &'static str,
    /// What is dumped.
    pub load: Load,
    /// Images go to a folder of the disk.
    pub disk: bool,
    /// How it is dumped and restored.
    pub how: How,
}

/// Memory is made in /mnt, a tmpfs.
const fn case(name: &'static str, load: Load) -> Case {
    Case {
        name,
        load,
        disk: false,
        how: How::Plain,
    }
}

const fn how(name: &'static str, load: Load, how: How) -> Case {
    Case {
        how,
        ..case(name, load)
    }
}

const LARGE: Load = Load::Own(["dirty", "4096", "0", "0"]);
const HEAP: Load = Load::Python("600");

const CASES: &[Case] = &[
    case("trivial process", Load::Own(["trivial", "0", "0", "0"])),
    case(
        "tree of 200 processes",
        Load::Own(["tree", "200", "0", "0"]),
    ),
    case("500 threads", Load::Own(["threads", "500", "0", "0"])),
    case(
        "1000 files + 500 pipes",
        Load::Own(["files", "1000", "500", "0"]),
    ),
    case(
        "1000 files + 500 pipes + 200 socket pairs",
        Load::Own(["files", "1000", "500", "200"]),
    ),
    how(
        "1000 connections",
        Load::Own(["connections", "1000", "0", "0"]),
        How::Connected,
    ),
    case(
        "1 GiB dirty anonymous",
        Load::Own(["dirty", "1024", "0", "0"]),
    ),
    case("10000 threads", Load::Own(["threads", "10000", "0", "0"])),
    case("1000 processes", Load::Own(["tree", "1000", "0", "0"])),
    case("50000 mappings", Load::Own(["maps", "50000", "0", "0"])),
    // below the usual limit of open files
    case("19000 files", Load::Own(["files", "19000", "0", "0"])),
    Case {
        disk: true,
        ..case("4 GiB, page cache", LARGE)
    },
    case("4 GiB, tmpfs", LARGE),
    Case {
        disk: true,
        ..case("redis with 500 MB", Load::Redis("450000"))
    },
    how(
        "4 GiB, lazy",
        Load::Own(["beat", "4096", "0", "0"]),
        How::Lazy,
    ),
    how(
        "4 GiB, snapshot, writes to 256 MiB",
        Load::Own(["writer", "4096", "256", "0"]),
        How::Snapshot,
    ),
    how(
        "4 GiB, snapshot, writes everywhere",
        Load::Own(["writer", "4096", "4096", "0"]),
        How::Snapshot,
    ),
    how("heap of CPython, as it is", HEAP, How::Packed(None)),
    how("heap of CPython, lz4", HEAP, How::Packed(Some("lz4"))),
    how("heap of CPython, zstd", HEAP, How::Packed(Some("zstd"))),
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
        // CRIU looks at the kernel over it
        loud(Command::new("ip").args(["link", "set", "lo", "up"]))?;
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
        let program = bench_load::compile()?;
        println!("{}", heading(&engines, self.rounds - 1));
        let (mut bars, mut more) = (Vec::new(), Vec::new());
        for case in CASES.iter().filter(|c| c.name.contains(&self.case)) {
            let mut runs: Vec<Vec<Run>> = engines.iter().map(|_| Vec::new()).collect();
            for round in 0..self.rounds {
                for (i, (name, path)) in engines.iter().enumerate() {
                    if *name != "stasis" && case.how.is_own() {
                        continue;
                    }
                    let run = once(case, &program, path, *name == "stasis")
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
                more.extend(further(case.name, name, runs));
            }
        }
        if !more.is_empty() {
            println!("\n| case | engine | what | min / median / max |\n|---|---|---|---|");
            println!("{}", more.join("\n"));
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("bench.svg"), bench_chart::svg(&bars))?;
        Ok(())
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

/// Rows of what only this case has.
fn further(case: &str, engine: &str, runs: &[Run]) -> Vec<String> {
    let Some(first) = runs.first() else {
        return Vec::new();
    };
    let row = |(i, f): (usize, &(&str, f64))| {
        let all = runs.iter().filter_map(|r| Some(r.more.get(i)?.1));
        format!(
            "| {case} | {engine} | {} | {} |",
            f.0,
            least_to_most(all.collect())
        )
    };
    first.more.iter().enumerate().map(row).collect()
}

/// Least, middle and most of microseconds, in milliseconds.
fn spread(us: Vec<u64>) -> String {
    least_to_most(us.into_iter().map(|n| n as f64 / 1e3).collect())
}

fn least_to_most(mut all: Vec<f64>) -> String {
    all.sort_unstable_by(f64::total_cmp);
    let (Some(min), Some(max)) = (all.first(), all.last()) else {
        return "-".into();
    };
    format!("{min:.1} / {:.1} / {max:.1}", all[all.len() / 2])
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
