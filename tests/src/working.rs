//! In the box: a program that works, and is frozen and restored meanwhile.
//!
//! Unlike a guest, a program is not asked anything. It says that it has begun (the file `ready` in its folder, which is
//! also its working directory), works until it is done, and leaves its results in `out`.

use crate::case::Report;
use crate::engine;
use crate::init::Stage;
use anyhow::{Context, Result, bail};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use stasis_proto::{ImageDir, pb};
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one round of dump and restore took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// From the start of the engine's process to its end, microseconds.
    pub dump_us: u64,
    /// How long the tree was frozen, by the engine's own statistics, microseconds.
    pub frozen_us: u32,
    /// From the start of the restoring process to its end, microseconds.
    pub restore_us: u64,
    /// Pages written.
    pub pages: u64,
}

/// How a program's run went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// How it ended ("exit 3", "signal SIGSEGV"); empty when it did not.
    pub end: String,
    /// What it left in `out`.
    pub out: String,
    /// Milliseconds between its `ready` and its end, without those in which it was frozen or gone.
    pub worked_ms: u64,
    /// The rounds that it was there for.
    pub rounds: Vec<Round>,
}

impl Stage {
    /// Starts the program, lets it work for each of the `gaps` (milliseconds) and dumps and restores it after each,
    /// then waits for its end.
    pub(crate) fn disturb(&mut self, gaps: &[u64], report: &mut Report) -> Result<()> {
        let mut root = self.start_program()?;
        if self
            .until(|s| s.work("ready").exists() || s.finished(root))
            .is_none()
        {
            bail!("timeout: the program did not begin");
        }
        let mut ran = Ran::default();
        let mut worked = Duration::ZERO;
        for (n, gap) in (1..).zip(gaps) {
            let since = Instant::now();
            let gap = Duration::from_millis(*gap);
            self.until(|s| s.finished(root) || since.elapsed() >= gap);
            worked += since.elapsed();
            if self.finished(root) {
                break;
            }
            match self.round(root, n, report) {
                Ok((pid, round)) => {
                    root = pid;
                    ran.rounds.push(round);
                }
                // It may have come to its end just when it was to be dumped.
                Err(_) if self.finished(root) && !self.images(n).join("inventory.img").exists() => {
                    report.first_error.clear();
                    break;
                }
                Err(e) => return Err(e.context(format!("round {n}"))),
            }
        }
        let since = Instant::now();
        let waited = self.until(|s| s.finished(root));
        ran.worked_ms = u64::try_from((worked + since.elapsed()).as_millis())?;
        ran.out = fs::read_to_string(self.work("out")).unwrap_or_default();
        ran.end = match self.dead.get(&root) {
            Some(WaitStatus::Exited(_, code)) => format!("exit {code}"),
            Some(WaitStatus::Signaled(_, signal, _)) => format!("signal {signal}"),
            other => format!("{other:?}"),
        };
        report.ran = ran;
        if waited.is_none() {
            bail!(
                "timeout: the program does not come to an end\n{}",
                crate::init::processes()
            );
        }
        report.logs = engine::tail(
            &fs::read_to_string(self.work("log")).unwrap_or_default(),
            20,
        );
        Ok(())
    }

    fn round(&mut self, root: Pid, n: u32, report: &mut Report) -> Result<(Pid, Round)> {
        let start = Instant::now();
        self.dump(root, n, false, report)?;
        let dump_us = u64::try_from(start.elapsed().as_micros())?;
        if self.until(|s| s.finished(root)).is_none() {
            bail!("the dump said success but did not end the program");
        }
        // What the program still writes must not come from whoever should be dead.
        let start = Instant::now();
        let root = self.restore(root, n, report)?;
        let restore_us = u64::try_from(start.elapsed().as_micros())?;
        let stats: Option<pb::StatsEntry> = ImageDir::open(&self.images(n))
            .and_then(|d| d.read_one("stats-dump"))
            .ok();
        let stats = stats.and_then(|s| s.dump).unwrap_or_default();
        // A heap per round fills a disk.
        if n > 1 {
            fs::remove_dir_all(self.images(n - 1))?;
            fs::create_dir(self.images(n - 1))?;
        }
        let round = Round {
            dump_us,
            frozen_us: stats.frozen_time,
            restore_us,
            pages: stats.pages_written,
        };
        Ok((root, round))
    }

    fn start_program(&mut self) -> Result<Pid> {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.work("log"))?;
        // A session of its own, as everything has that is dumped without --shell-job.
        let child = Command::new("/usr/bin/setsid")
            .arg(&self.spec.guest)
            .args(&self.spec.args)
            .current_dir(self.work(""))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.work(""))
            .env("LC_ALL", "C")
            .envs(self.spec.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the program")?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }
}
