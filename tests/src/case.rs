//! One case: a guest, a scenario, the engines. Prepared here, run in a box, judged here.

use crate::build;
use crate::engine::Engine;
use crate::guests::Guest;
use crate::working::Ran;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What is done to the guest between "ready" and "verify".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scenario {
    /// Nothing: the guest alone must pass (the oracle).
    Native,
    /// Nothing, but the guest is told to spoil the named part of its state: it must fail.
    Sabotage(String),
    /// Dumped (which ends it), restored.
    DumpRestore,
    /// In a container: dumped and restored this many times over.
    Contained(crate::container::Sort, u32),
    /// Dumped twice, and each time left running: it must not notice.
    LeaveRunning,
    /// Dumped, and restored with memory that comes when it runs.
    Lazy,
    /// Dumped and restored once by our own command line, with these options.
    Ours {
        /// Of `stasis dump`, behind the pid.
        dump: Vec<String>,
        /// Of `stasis restore`.
        restore: Vec<String>,
    },
    /// This many pre-dumps and dumps that leave it running, each on the one before, then a dump on the last, and a restore.
    Incremental(u32),
    /// The same, and between them each time a pre-dump and a dump that are killed after random times.
    IncrementalKilled(u32),
    /// Dumped and restored this many times over.
    Generations(u32),
    /// A program that works ([`crate::program`]): dumped and restored after each of these times of work.
    Working {
        /// Milliseconds of work before each dump.
        gaps_ms: Vec<u64>,
    },
    /// Dumped only: its folder goes to another machine.
    Packed,
    /// Restored from a folder that came from another machine.
    Unpacked,
    /// The engine is killed or made to fail.
    Life(crate::life::Trial),
}

/// How long one wait may last (ready, dump, restore, verify), in seconds, on a machine that is not emulated.
const PATIENCE_SECS: u64 = 20;

/// How much longer than usual all waits are: `STASIS_PATIENCE`, for slow machines.
pub fn slowness() -> u32 {
    let said = std::env::var("STASIS_PATIENCE").ok();
    said.and_then(|s| s.parse().ok()).unwrap_or(1).max(1)
}

/// How long one wait may last here, in seconds.
pub fn patience() -> u64 {
    PATIENCE_SECS * u64::from(slowness())
}

/// What the box is told. Paths are absolute and seen alike inside and outside of the box.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The compiled guest.
    pub guest: PathBuf,
    /// Parameters of the guest behind folder and spoil.
    pub args: Vec<String>,
    /// Added to the environment of a program.
    pub env: Vec<(String, String)>,
    /// The folder of this case: `work` (the guest's), `img-N`, `bin-dump/criu`, `bin-restore/criu`.
    pub dir: PathBuf,
    /// What to do.
    pub scenario: Scenario,
    /// Options the guest needs from the engine, given to dump and restore alike.
    pub options: Vec<String>,
    /// Whether the guest is a job on a terminal of the box (for `--shell-job`); else stdin is `/dev/null`.
    pub terminal: bool,
    /// How long one wait may last, in seconds.
    pub patience: u64,
    /// The container it runs in, if any.
    pub container: Option<crate::container::Sort>,
}

/// What the box answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The guest's verdict as it stands in `result`, trimmed ("PASS", "FAIL: why", "SKIP: why"); empty when there is none.
    pub verdict: String,
    /// What went wrong besides the verdict: an engine's failure, a timeout, a lost guest. Empty when nothing did.
    pub trouble: String,
    /// The first `Error` line of the engine's log when the engine failed.
    pub first_error: String,
    /// Ends of the logs, for a person.
    pub logs: String,
    /// How a program's run went.
    pub ran: Ran,
    /// What a trial has to tell though it went well: how many points were tried.
    pub notes: String,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// This machine cannot build the state; the reason.
    Skipped(String),
    /// Not as it should be; what to show.
    Failed(Report),
}

/// Runs one case to its end. `boxer` is a binary that calls [`crate::init::main_if_box`] first.
///
/// `dump` and `restore` may be two different engines; scenarios without an engine ignore them.
///
/// # Errors
/// When the case could not be run at all (no gcc, no root, no space).
pub fn run(
    boxer: &Path,
    guest: &Guest,
    scenario: &Scenario,
    engines: Option<(&Engine, &Engine)>,
) -> Result<Outcome> {
    let tmp = folder()?;
    let outcome = run_in(tmp.path(), boxer, guest, scenario, engines)?;
    keep(tmp.path(), guest.name);
    Ok(outcome)
}

/// A new, empty folder for a case; it goes with its handle.
///
/// # Errors
/// When there is no space for it.
pub fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("stasis-case-").tempdir()?)
}

/// As [`run`], in a folder of the caller (see [`folder`]), where everything stays: images in `img-1`, `img-2` and so on.
///
/// # Errors
/// As [`run`].
pub fn run_in(
    dir: &Path,
    boxer: &Path,
    guest: &Guest,
    scenario: &Scenario,
    engines: Option<(&Engine, &Engine)>,
) -> Result<Outcome> {
    let spec = prepare(dir, guest, scenario, engines)?;
    let _slot = slot()?;
    Ok(judge(scenario, in_a_box(boxer, dir, &spec)?))
}

/// As [`run`], with parameters for the guest in place of those of the table.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    boxer: &Path,
    guest: &Guest,
    args: &[String],
    scenario: &Scenario,
    engines: Option<(&Engine, &Engine)>,
) -> Result<Outcome> {
    let tmp = folder()?;
    let mut spec = prepare(tmp.path(), guest, scenario, engines)?;
    spec.args = args.to_vec();
    let _slot = slot()?;
    let report = in_a_box(boxer, tmp.path(), &spec)?;
    keep(tmp.path(), guest.name);
    Ok(judge(scenario, report))
}

/// Copies the folder of a case to where `STASIS_KEEP` says, for a person.
pub(crate) fn keep(dir: &Path, name: &str) {
    if let Some(keep) = std::env::var_os("STASIS_KEEP") {
        let to = Path::new(&keep).join(format!("{name}-{}", std::process::id()));
        let _ = Command::new("cp").arg("-a").arg(dir).arg(to).status();
    }
}

fn prepare(
    dir: &Path,
    guest: &Guest,
    scenario: &Scenario,
    engines: Option<(&Engine, &Engine)>,
) -> Result<Spec> {
    // Guests that give up root must still reach their folder.
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    let work = dir.join("work");
    fs::create_dir(&work)?;
    fs::set_permissions(&work, Permissions::from_mode(0o777))?;
    if let Some((dump, restore)) = engines {
        for (name, engine) in [("bin-dump", dump), ("bin-restore", restore)] {
            fs::create_dir(dir.join(name))?;
            symlink(&engine.path, dir.join(name).join("criu"))?;
        }
    }
    Ok(Spec {
        guest: build::guest(guest.name)?,
        args: guest.args.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        dir: dir.to_path_buf(),
        scenario: scenario.clone(),
        options: guest.options.iter().map(ToString::to_string).collect(),
        terminal: guest.options.contains(&"--shell-job"),
        patience: patience(),
        container: match scenario {
            Scenario::Contained(sort, _) => {
                crate::container::build_init()?;
                Some(*sort)
            }
            _ => None,
        },
    })
}

/// At most two cases at a time on the whole machine, however the tests are run (cargo's threads, nextest's processes).
pub(crate) fn slot() -> Result<Flock<File>> {
    let dir = build::target_dir()?.join("guests");
    fs::create_dir_all(&dir)?;
    loop {
        for n in 0..2 {
            let file = File::create(dir.join(format!("slot-{n}.lock")))?;
            if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                return Ok(lock);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn in_a_box(boxer: &Path, dir: &Path, spec: &Spec) -> Result<Report> {
    let file = dir.join("spec.json");
    fs::write(&file, serde_json::to_vec(spec)?)?;
    let mut child = Command::new(boxer)
        .arg(crate::init::BOX_FLAG)
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(File::create(dir.join("box.log"))?)
        .stderr(File::options().append(true).open(dir.join("box.log"))?)
        .spawn()
        .with_context(|| format!("box {}", boxer.display()))?;
    // The box keeps its own, shorter deadlines; this one is for a box that hangs.
    let waits = match &spec.scenario {
        Scenario::Incremental(n) => u64::from(*n) + 6,
        Scenario::IncrementalKilled(n) => 3 * u64::from(*n) + 6,
        Scenario::Generations(n) | Scenario::Contained(_, n) => 2 * u64::from(*n) + 3,
        Scenario::Working { gaps_ms } => 3 * gaps_ms.len() as u64 + 3,
        Scenario::Life(trial) => trial.rounds(),
        _ => 6,
    };
    let deadline = Instant::now() + Duration::from_secs(waits * spec.patience);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("the box itself hung");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if std::env::var_os("STASIS_BOXLOG").is_some() {
        eprint!("{}", fs::read_to_string(dir.join("box.log"))?);
    }
    let answer = dir.join("report.json");
    if !answer.exists() {
        bail!(
            "the box gave no report ({status}):\n{}",
            fs::read_to_string(dir.join("box.log"))?
        );
    }
    Ok(serde_json::from_slice(&fs::read(answer)?)?)
}

fn judge(scenario: &Scenario, report: Report) -> Outcome {
    if let Some(why) = report.verdict.strip_prefix("SKIP: ") {
        return Outcome::Skipped(why.to_string());
    }
    let good = match scenario {
        Scenario::Sabotage(_) => report.verdict.starts_with("FAIL: "),
        _ => report.verdict == "PASS",
    };
    if good && report.trouble.is_empty() {
        if !report.notes.is_empty() {
            eprintln!("{}", report.notes);
        }
        Outcome::Passed
    } else {
        Outcome::Failed(report)
    }
}

/// Dumps a guest and copies its images into `to`.
///
/// # Errors
/// When it cannot be dumped.
pub fn dumped(boxer: &Path, guest: &Guest, to: &Path) -> Result<()> {
    let tmp = tempfile::Builder::new().prefix("stasis-case-").tempdir()?;
    let engine = Engine::under_test()?;
    let scenario = Scenario::Life(crate::life::Trial::Images);
    let spec = prepare(tmp.path(), guest, &scenario, Some((&engine, &engine)))?;
    let slot = slot()?;
    let report = in_a_box(boxer, tmp.path(), &spec)?;
    drop(slot);
    if !report.trouble.is_empty() {
        bail!("{}: {}", guest.name, report.trouble);
    }
    for e in fs::read_dir(tmp.path().join("img-1"))? {
        let e = e?;
        fs::copy(e.path(), to.join(e.file_name()))?;
    }
    Ok(())
}

/// Dumps a guest; everything it needs to go on elsewhere is in this folder of the caller's. See [`unpack`].
///
/// # Errors
/// As [`run`].
pub fn pack(boxer: &Path, guest: &Guest, dir: &Path) -> Result<Outcome> {
    let engine = Engine::under_test()?;
    fs::create_dir_all(dir)?;
    run_in(
        dir,
        boxer,
        guest,
        &Scenario::Packed,
        Some((&engine, &engine)),
    )
}

/// Restores a guest from such a folder, at the same path, and has it verify itself.
///
/// # Errors
/// As [`run`].
pub fn unpack(boxer: &Path, dir: &Path) -> Result<Outcome> {
    let mut spec: Spec = serde_json::from_slice(&fs::read(dir.join("spec.json"))?)?;
    spec.scenario = Scenario::Unpacked;
    let told: Report = serde_json::from_slice(&fs::read(dir.join("report.json"))?)?;
    if told.verdict.starts_with("SKIP") {
        return Ok(Outcome::Skipped("it was not dumped there".into()));
    }
    fs::remove_file(dir.join("report.json"))?;
    let _slot = slot()?;
    Ok(judge(&spec.scenario, in_a_box(boxer, dir, &spec)?))
}

/// Runs a case and panics with all that is known when it did not go as it should: the body of a `#[test]`.
///
/// # Panics
/// When the case fails or cannot be run.
pub fn expect(boxer: &Path, guest: &Guest, scenario: &Scenario) {
    let outcome = (|| {
        let engine = match scenario {
            Scenario::Native | Scenario::Sabotage(_) => None,
            _ => Some(Engine::under_test()?),
        };
        run(boxer, guest, scenario, engine.as_ref().map(|e| (e, e)))
    })();
    match outcome {
        Ok(Outcome::Passed) => {}
        Ok(Outcome::Skipped(why)) => eprintln!("skipped: {}: {why}", guest.name),
        Ok(Outcome::Failed(r)) => panic!(
            "guest {} under {scenario:?}\nverdict: {}\ntrouble: {}\n{}",
            guest.name,
            if r.verdict.is_empty() {
                "(none)"
            } else {
                &r.verdict
            },
            if r.trouble.is_empty() {
                "(none)"
            } else {
                &r.trouble
            },
            r.logs
        ),
        Err(e) => panic!(
            "guest {} under {scenario:?} could not be run: {e:#}",
            guest.name
        ),
    }
}
