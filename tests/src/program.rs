//! Real programs: their table, and the comparison of a disturbed run with an undisturbed one.

use crate::build;
use crate::case::{self, Report, Scenario, Spec};
use crate::engine::Engine;
use crate::working::{Ran, Round};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program of `programs/`, which works for some seconds and leaves the same results each time.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of the test.
    pub name: &'static str,
    /// What must be installed, in `/usr/bin` or `/bin`; the first one is started.
    pub needs: &'static [&'static str],
    /// Its parameters; `@FILE` is a file of `programs/`, `*N` is the amount of work for up to 6 rounds.
    pub args: &'static [&'static str],
    /// A command run in its folder beforehand, like `args`; empty for none.
    pub before: &'static [&'static str],
    /// Added to its environment.
    pub env: &'static [(&'static str, &'static str)],
    /// Options of the engine without which it cannot be frozen.
    pub options: &'static [&'static str],
    /// How it ends ("exit 0").
    pub end: &'static str,
    /// The command that tells its version.
    pub version: &'static [&'static str],
}

/// The programs.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "shell",
        needs: &["python3", "bash", "awk", "sort"],
        args: &["@shell.py", "*3"],
        before: &[],
        env: &[],
        options: &[],
        end: "exit 0",
        version: &["bash", "--version"],
    },
    Program {
        name: "python",
        needs: &["python3"],
        args: &["@work.py", "*150"],
        before: &[],
        env: &[],
        options: &["--file-locks"],
        end: "exit 0",
        version: &["python3", "--version"],
    },
    Program {
        name: "make",
        needs: &["bash", "make", "gcc"],
        args: &["@compile.sh", "*60"],
        before: &[],
        env: &[],
        options: &[],
        end: "exit 0",
        version: &["make", "--version"],
    },
    Program {
        name: "node",
        needs: &["node"],
        args: &["@work.js", "*400"],
        before: &[],
        env: &[("UV_USE_IO_URING", "0")],
        options: &[],
        end: "exit 5",
        version: &["node", "--version"],
    },
    Program {
        name: "java",
        needs: &["java", "javac"],
        args: &["-Xmx128m", "-cp", ".", "Work", "*250"],
        before: &["javac", "-d", ".", "@Work.java"],
        env: &[],
        options: &["--file-locks"],
        end: "exit 9",
        version: &["java", "--version"],
    },
    Program {
        name: "data",
        needs: &["bash", "perl", "awk", "sort"],
        args: &["@data.sh", "*1000"],
        before: &[],
        env: &[],
        options: &[],
        end: "exit 0",
        version: &["perl", "-e", "print \"perl $^V\""],
    },
    Program {
        name: "xz",
        needs: &["bash", "xz", "awk"],
        args: &["@pack.sh", "*30"],
        before: &[],
        env: &[],
        options: &[],
        end: "exit 4",
        version: &["xz", "--version"],
    },
];

/// The program of that name.
pub fn find(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|p| p.name == name)
}

/// How often a program is dumped and restored in one run: `STASIS_ROUNDS`, else 6.
///
/// # Errors
/// When the variable is no number.
pub fn rounds() -> Result<usize> {
    std::env::var("STASIS_ROUNDS").map_or(Ok(6), |v| v.parse().context("STASIS_ROUNDS"))
}

/// The first of the program's needs that is not installed.
pub fn missing(program: &Program) -> Option<&'static str> {
    program
        .needs
        .iter()
        .find(|n| installed(n).is_none())
        .copied()
}

fn installed(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|d| Path::new(d).join(name))
        .find(|p| p.exists())
}

/// Runs the program alone, then disturbed `rounds` times; gives the rounds when both runs came to the same end.
///
/// `seed` decides when it is dumped; a run with the same seed asks for the same moments.
///
/// # Errors
/// When the results differ, an engine fails, or the program cannot be run.
pub fn survive(boxer: &Path, program: &Program, rounds: usize, seed: u64) -> Result<Vec<Round>> {
    let factor = rounds.div_ceil(6).max(1);
    let alone = once(boxer, program, factor, &[], None).context("undisturbed")?;
    ensure!(
        alone.end == program.end,
        "undisturbed, it ends with {}, not {}\n{}",
        alone.end,
        program.end,
        alone.out
    );
    ensure!(!alone.out.is_empty(), "undisturbed, it leaves no results");
    let engine = Engine::under_test()?;
    // Rounds take up the first half of the work or so. A machine that was busy during the undisturbed run can still
    // make the program end before they are over: then again, closer together.
    let mut share = alone.worked_ms / 2;
    for _ in 0..3 {
        let gaps = moments(share, rounds, seed);
        let ran = once(boxer, program, factor, &gaps, Some(&engine))?;
        ensure!(
            ran.end == alone.end,
            "it ends with {}, not {}\n{}",
            ran.end,
            alone.end,
            ran.out
        );
        ensure!(
            ran.out == alone.out,
            "its results differ\n--- undisturbed\n{}--- disturbed {} times\n{}",
            alone.out,
            ran.rounds.len(),
            ran.out
        );
        if ran.rounds.len() == rounds {
            return Ok(ran.rounds);
        }
        share /= 2;
    }
    bail!("the program is always done before {rounds} rounds are")
}

/// Gaps in milliseconds, 0.2 to 1.8 times the even share.
fn moments(total_ms: u64, rounds: usize, seed: u64) -> Vec<u64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let each = total_ms / (rounds as u64).max(1);
    (0..rounds)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            each * (20 + x % 161) / 100
        })
        .collect()
}

fn once(
    boxer: &Path,
    program: &Program,
    factor: usize,
    gaps: &[u64],
    engine: Option<&Engine>,
) -> Result<Ran> {
    let tmp = tempfile::Builder::new()
        .prefix("stasis-program-")
        .tempdir()?;
    let dir = tmp.path();
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    let work = dir.join("work");
    fs::create_dir(&work)?;
    if let Some(engine) = engine {
        for name in ["bin-dump", "bin-restore"] {
            fs::create_dir(dir.join(name))?;
            symlink(&engine.path, dir.join(name).join("criu"))?;
        }
    }
    let _slot = case::slot()?;
    if let Some((name, args)) = program.before.split_first() {
        let out = Command::new(name)
            .args(args.iter().map(|a| place(a)))
            .current_dir(&work)
            .output()
            .with_context(|| format!("{name} beforehand"))?;
        ensure!(
            out.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let spec = Spec {
        guest: installed(program.needs[0])
            .with_context(|| format!("{} is not installed", program.needs[0]))?,
        args: program
            .args
            .iter()
            .map(
                |a| match a.strip_prefix('*').and_then(|n| n.parse::<usize>().ok()) {
                    Some(n) => (n * factor).to_string(),
                    None => place(a),
                },
            )
            .collect(),
        env: program
            .env
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect(),
        dir: dir.to_path_buf(),
        scenario: Scenario::Working {
            gaps_ms: gaps.to_vec(),
        },
        options: program.options.iter().map(ToString::to_string).collect(),
        terminal: false,
        container: None,
        patience: 2 * case::patience(),
    };
    let report = case::in_a_box(boxer, dir, &spec)?;
    case::keep(dir, program.name);
    if !report.trouble.is_empty() {
        let Report { trouble, logs, .. } = report;
        bail!("{trouble}\n{logs}");
    }
    Ok(report.ran)
}

fn place(arg: &str) -> String {
    match arg.strip_prefix('@') {
        Some(file) => build::source_dir()
            .with_file_name("programs")
            .join(file)
            .display()
            .to_string(),
        None => arg.to_string(),
    }
}

/// The first line that the program says about its version.
///
/// # Errors
/// When it cannot be started.
pub fn version(program: &Program) -> Result<String> {
    let out = Command::new(program.version[0])
        .args(&program.version[1..])
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    Ok(text.lines().next().unwrap_or_default().to_string())
}
