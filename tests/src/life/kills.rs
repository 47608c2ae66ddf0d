//! Dumps and restores that are killed at every step and at random moments. Long because the bookkeeping of both sorts of kills
//! is one.
use super::Trial;
use super::snapshot::Snapshot;
use super::stepper::{self, Step};
use crate::case::{Report, Scenario};
use crate::init::{Stage, processes};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a tree may take to find its way back.
const SETTLING: Duration = Duration::from_secs(5);
/// File whose presence says that a folder is complete.
const MARK: &str = "inventory.img";

/// Random numbers for moments (xorshift64*); the seed is told, so that a round can be looked at again.
pub struct Dice(u64);

impl Dice {
    /// Seeded by the clock.
    pub fn new() -> Self {
        let t = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(t.map_or(1, |d| d.as_nanos() as u64) | 1)
    }
    /// 0 to `below` - 1.
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % below.max(1)
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

fn empty(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(fs::create_dir(dir)?)
}

impl Stage {
    /// The folder for images of trials, empty.
    pub(crate) fn fresh_images(&self) -> Result<PathBuf> {
        let dir = self.images(1);
        empty(&dir)?;
        Ok(dir)
    }
    /// Another folder beside it, empty.
    pub(crate) fn fresh_images_in(&self, name: &str) -> Result<PathBuf> {
        let dir = self.spec.dir.join(name);
        empty(&dir)?;
        Ok(dir)
    }
    pub(crate) fn dump_args(&self, root: Pid, dir: &Path) -> Vec<String> {
        let mut args: Vec<String> = ["dump", "-t"].map(String::from).into();
        args.extend([
            root.to_string(),
            "-R".into(),
            "-D".into(),
            dir.display().to_string(),
        ]);
        args.extend(self.spec.options.iter().cloned());
        let snapshot =
            |t: &Trial| matches!(t, Trial::KillSnapshot { .. } | Trial::KillSnapshotRandom(_));
        if matches!(&self.spec.scenario, Scenario::Life(t) if snapshot(t)) {
            // not an option of criu: the command line is our own
            args[0] = "stasis".into();
            args[1] = "dump".into();
            args.push("--snapshot".into());
        }
        args
    }
    pub(crate) fn restore_args(&self, dir: &Path) -> Vec<String> {
        let mut args: Vec<String> = ["restore", "-d", "-D"].map(String::from).into();
        args.push(dir.display().to_string());
        args.extend([
            "--pidfile".into(),
            self.spec.dir.join("pid").display().to_string(),
        ]);
        args.extend(self.spec.options.iter().cloned());
        args
    }
    /// A command line of the engine; traced when asked.
    pub(crate) fn command(&self, args: &[String], traced: bool) -> Result<Command> {
        let bin = self.spec.dir.join("bin-dump").join("criu");
        let mut c = if traced {
            let mut c = Command::new(std::env::current_exe()?);
            c.arg(stepper::TRACED_FLAG).arg(bin);
            c
        } else {
            Command::new(bin)
        };
        let out = File::create(self.spec.dir.join("engine.out"))?;
        let args = match !traced && args.first().is_some_and(|a| a == "stasis") {
            true => {
                c.arg0("stasis");
                &args[1..]
            }
            false => args,
        };
        c.args(args)
            .current_dir(&self.spec.dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        Ok(c)
    }
    /// Waits until the tree is as it was; the last difference is the error.
    pub(crate) fn unharmed(&mut self, root: Pid, before: &Snapshot) -> Result<()> {
        let deadline = Instant::now() + SETTLING;
        loop {
            self.reap();
            if self.finished(root) {
                bail!("the guest died: {:?}", self.dead.get(&root));
            }
            let now = Snapshot::take(root.as_raw());
            // it forks all the time: no two looks are equal, and it checks itself
            let diff = if ["forker", "instant"].contains(&self.name().as_str()) {
                now.held()
            } else {
                before.diff(&now)
            };
            if diff.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the tree is not as before:\n{diff}");
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    }
    pub(crate) fn kill_dump(
        &mut self,
        root: Pid,
        stride: usize,
        report: &mut Report,
    ) -> Result<()> {
        std::thread::sleep(Duration::from_millis(60));
        let before = Snapshot::take(root.as_raw());
        let dir = self.fresh_images()?;
        let args = self.dump_args(root, &dir);
        let whole = stepper::run(&mut self.command(&args, true)?, None, stepper::none)?;
        self.dead.extend(whole.others);
        if !matches!(whole.end, WaitStatus::Exited(_, 0)) {
            bail!("the dump itself failed: {:?}\n{}", whole.end, self.said());
        }
        self.unharmed(root, &before)
            .context("after a dump with --leave-running that was not killed")?;
        let mut tried: BTreeMap<String, u32> = BTreeMap::new();
        let spare = if self.name() == "seccomp_strict" {
            stepper::guarded
        } else {
            stepper::none
        };
        let mut points = 0;
        // for looking closer at one step: from this one, this often
        let only = |name| {
            std::env::var(name)
                .ok()
                .and_then(|n| n.parse::<usize>().ok())
        };
        let mut at = only("STASIS_KILL_FROM").unwrap_or(0);
        let most = only("STASIS_KILL_COUNT").unwrap_or(usize::MAX);
        while points < most {
            let dir = self.fresh_images()?;
            let run = stepper::run(&mut self.command(&args, true)?, Some(at), spare)?;
            self.dead.extend(run.others);
            let killed = matches!(run.end, WaitStatus::Signaled(_, Signal::SIGKILL, _));
            let Some(last) = run.steps.last().filter(|_| killed) else {
                if !matches!(run.end, WaitStatus::Exited(_, 0)) {
                    bail!(
                        "the dump of step {at} ended by itself: {:?}\n{}",
                        run.end,
                        self.said()
                    );
                }
                break;
            };
            at = run.steps.len() - 1;
            let place = || {
                format!(
                    "engine killed before step {at}, {last} ({})",
                    around(&run.steps, at)
                )
            };
            self.unharmed(root, &before).with_context(place)?;
            // the mark comes by one rename; what follows it is a complete folder
            let renamed = run.steps[..at].iter().any(|s| {
                matches!(
                    s.nr,
                    libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2
                )
            });
            if dir.join(MARK).exists() != renamed {
                bail!("{}: the folder looks complete", place());
            }
            let word = last.to_string();
            *tried
                .entry(word.split('(').next().unwrap_or_default().to_string())
                .or_default() += 1;
            points += 1;
            if most < 10 {
                eprintln!("{}", place());
            }
            at += stride;
        }
        report.notes = format!(
            "{}: dump of {} tasks killed at {points} of {} points (stride {stride}): {tried:?}",
            self.name(),
            before.tasks(),
            whole.steps.len()
        );
        Ok(())
    }
    pub(crate) fn kill_dump_random(
        &mut self,
        root: Pid,
        rounds: u32,
        report: &mut Report,
    ) -> Result<()> {
        std::thread::sleep(Duration::from_millis(60));
        let before = Snapshot::take(root.as_raw());
        let mut dice = Dice::new();
        let seed = dice.0;
        let mut length = Duration::ZERO;
        for _ in 0..3 {
            let dir = self.fresh_images()?;
            let begun = Instant::now();
            let mut child = self.command(&self.dump_args(root, &dir), false)?.spawn()?;
            let end = child.wait()?;
            length = length.max(begun.elapsed());
            if !end.success() {
                bail!("the dump itself failed: {end}\n{}", self.said());
            }
        }
        self.unharmed(root, &before)
            .context("after a dump with --leave-running that was not killed")?;
        let (mut killed, mut complete) = (0, 0);
        for n in 0..rounds {
            let dir = self.fresh_images()?;
            let wait = Duration::from_micros(dice.roll(length.as_micros() as u64));
            let begun = Instant::now();
            let mut child = self.command(&self.dump_args(root, &dir), false)?.spawn()?;
            // spinning: a sleep would always end on the same side of a tick
            while begun.elapsed() < wait {
                std::hint::spin_loop();
            }
            let _ = child.kill();
            let end = child.wait()?;
            killed += u32::from(!end.success());
            complete += u32::from(dir.join(MARK).exists());
            let place = || format!("round {n} of seed {seed}: engine killed after {wait:?}");
            self.unharmed(root, &before).with_context(place)?;
            if end.success() && !dir.join(MARK).exists() {
                bail!("{}: success without a mark", place());
            }
        }
        report.notes = format!(
            "{}: dump of {} tasks killed at random times: {rounds} rounds within {length:?}, {killed} killed in time, {complete} folders complete",
            self.name(),
            before.tasks()
        );
        Ok(())
    }
    /// Dumps for good, so that there is something to restore; the tree is gone after.
    pub(crate) fn dump_away(&mut self, root: Pid) -> Result<PathBuf> {
        // Connections that a killed restore had woken up end as all do whose program is killed: for a minute their port is in
        // TIME_WAIT, and no next restore can have it. Not in this network namespace, which is the box's own.
        fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0")?;
        let dir = self.fresh_images()?;
        let mut args = self.dump_args(root, &dir);
        args.retain(|a| a != "-R");
        let end = self.command(&args, false)?.spawn()?.wait()?;
        if !end.success() {
            bail!("the dump failed: {end}\n{}", self.said());
        }
        if self.until(|s| s.finished(root)).is_none() {
            bail!(
                "the dump said success but did not end the guest\n{}",
                processes()
            );
        }
        self.dead.remove(&root);
        Ok(dir)
    }
    /// Nothing of a restore is left: no process but ours, no new file in the guest's folder, no pidfile.
    pub(crate) fn nothing_left(
        &mut self,
        files: &BTreeMap<PathBuf, u64>,
        mounts: &str,
    ) -> Result<()> {
        let deadline = Instant::now() + SETTLING;
        loop {
            self.reap();
            let others: Vec<_> = pids().into_iter().filter(|p| *p != 1).collect();
            if others.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                bail!("processes are left: {others:?}\n{}", processes());
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        self.dead.clear();
        if self.spec.dir.join("pid").exists() {
            bail!("the pidfile is left");
        }
        let now = listing(&self.work(""));
        if now != *files {
            let new: Vec<_> = now
                .iter()
                .filter(|(k, v)| files.get(*k) != Some(v))
                .collect();
            let lost: Vec<_> = files.keys().filter(|k| !now.contains_key(*k)).collect();
            bail!("files of the guest differ: new or changed {new:?}, lost {lost:?}");
        }
        if fs::read_to_string("/proc/self/mountinfo")? != mounts {
            bail!("mounts differ");
        }
        Ok(())
    }
    /// The restore that is not disturbed; gives the root.
    pub(crate) fn restore_well(&mut self, root: Pid, dir: &Path) -> Result<Pid> {
        self.reap();
        self.dead.clear();
        let end = self
            .command(&self.restore_args(dir), false)?
            .spawn()?
            .wait()?;
        if !end.success() {
            bail!("the restore failed: {end}\n{}", self.said());
        }
        let text =
            fs::read_to_string(self.spec.dir.join("pid")).context("no pidfile after a restore")?;
        fs::remove_file(self.spec.dir.join("pid"))?;
        if text != root.to_string() {
            bail!("the pidfile says {text:?}, not {root}");
        }
        Ok(root)
    }
    pub(crate) fn kill_restore(
        &mut self,
        root: Pid,
        stride: usize,
        report: &mut Report,
    ) -> Result<Pid> {
        let tasks = Snapshot::take(root.as_raw()).tasks();
        let dir = self.dump_away(root)?;
        let files = listing(&self.work(""));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let args = self.restore_args(&dir);
        let whole = stepper::run(&mut self.command(&args, true)?, None, stepper::none)?;
        if !matches!(whole.end, WaitStatus::Exited(_, 0)) {
            bail!(
                "the restore itself failed: {:?}\n{}",
                whole.end,
                self.said()
            );
        }
        let commits = count(&whole.steps, is_commit);
        self.end_all()?;
        let mut tried: BTreeMap<String, u32> = BTreeMap::new();
        let (mut points, mut at, mut naming, mut committing) = (0, 0, 0, 0);
        loop {
            let run = stepper::run(&mut self.command(&args, true)?, Some(at), stepper::none)?;
            self.dead.extend(run.others);
            let Some(last) = run.steps.get(at) else {
                if !matches!(run.end, WaitStatus::Exited(_, 0)) {
                    bail!(
                        "the restore of step {at} ended by itself: {:?}\n{}",
                        run.end,
                        self.said()
                    );
                }
                self.end_all()?;
                break;
            };
            let place = format!(
                "engine killed before step {at}, {last} ({})",
                around(&run.steps, at)
            );
            let done = &run.steps[..at];
            // the commit is a loop over the threads; killed within, the tree may be in parts; killed behind, it is whole
            let committed = count(done, is_commit);
            if committed > 0 {
                if committed == commits {
                    std::thread::sleep(Duration::from_millis(3));
                    let now = Snapshot::take(root.as_raw()).tasks();
                    if now != tasks {
                        bail!("{place}: {now} of {tasks} tasks run, though the tree was let go");
                    }
                } else {
                    committing += 1;
                }
                self.end_all()?;
            }
            // a deleted file has its old name for the few calls in which it is opened (see kinds/ghost.rs)
            if count(done, is_link) > count(done, is_unlink) && committed == 0 {
                let now = listing(&self.work("")).into_keys();
                for new in now.rev().filter(|f| !files.contains_key(f)) {
                    fs::remove_file(&new).with_context(|| place.clone())?;
                    naming += 1;
                }
            }
            self.nothing_left(&files, &mounts)
                .with_context(|| place.clone())?;
            let word = last.to_string();
            *tried
                .entry(word.split('(').next().unwrap_or_default().to_string())
                .or_default() += 1;
            points += 1;
            at += stride;
        }
        report.notes = format!(
            "{}: restore of {tasks} tasks killed at {points} of {} points (stride {stride}), of them {naming} while a deleted file \
             had a name, {committing} within the commit: {tried:?}",
            self.name(),
            whole.steps.len()
        );
        self.restore_well(root, &dir)
    }
    /// Ends the restored tree and removes its pidfile.
    fn end_all(&mut self) -> Result<()> {
        let deadline = Instant::now() + SETTLING;
        loop {
            self.reap();
            let others: Vec<_> = pids().into_iter().filter(|p| *p != 1).collect();
            if others.is_empty() || Instant::now() > deadline {
                break;
            }
            for p in others {
                let _ = kill(Pid::from_raw(p), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        if self.spec.dir.join("pid").exists() {
            fs::remove_file(self.spec.dir.join("pid"))?;
        }
        Ok(())
    }
    pub(crate) fn kill_restore_random(
        &mut self,
        root: Pid,
        rounds: u32,
        report: &mut Report,
    ) -> Result<Pid> {
        let tasks = Snapshot::take(root.as_raw()).tasks();
        let dir = self.dump_away(root)?;
        let files = listing(&self.work(""));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut dice = Dice::new();
        let seed = dice.0;
        let begun = Instant::now();
        self.restore_well(root, &dir)?;
        let length = begun.elapsed();
        self.end_all()?;
        self.nothing_left(&files, &mounts)
            .context("after the first restore")?;
        let (mut killed, mut naming, mut behind) = (0, 0, 0);
        for n in 0..rounds {
            let wait = Duration::from_micros(dice.roll(length.as_micros() as u64));
            let begun = Instant::now();
            let mut child = self.command(&self.restore_args(&dir), false)?.spawn()?;
            while begun.elapsed() < wait {
                std::hint::spin_loop();
            }
            let _ = child.kill();
            let end = child.wait()?;
            let place = || format!("round {n} of seed {seed}: engine killed after {wait:?}");
            if end.success() {
                fs::metadata(self.spec.dir.join("pid")).with_context(place)?;
            } else {
                killed += 1;
                let named = listing(&self.work("")).into_keys();
                for new in named.rev().filter(|f| !files.contains_key(f)) {
                    fs::remove_file(&new)?;
                    naming += 1;
                }
            }
            // killed behind the commit: the tree was let go, all of it
            let deadline = Instant::now() + SETTLING;
            let now = loop {
                std::thread::sleep(Duration::from_millis(1));
                self.reap();
                let now = pids().len() - 1;
                if now == 0 || now == tasks {
                    break now;
                }
                if Instant::now() > deadline {
                    bail!("{}: {now} of {tasks} tasks are left", place());
                }
            };
            if now == tasks {
                behind += 1;
                self.end_all()?;
            }
            self.nothing_left(&files, &mounts).with_context(place)?;
        }
        report.notes = format!(
            "{}: restore of {tasks} tasks killed at random times: {rounds} rounds within {length:?}, {killed} killed in time, \
             {naming} while a deleted file had a name, {behind} trees were let go",
            self.name()
        );
        self.restore_well(root, &dir)
    }
    /// What the engine said last.
    pub(crate) fn said(&self) -> String {
        crate::init::read(&self.spec.dir.join("engine.out"))
    }
    pub(crate) fn name(&self) -> String {
        self.spec
            .guest
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }
}

fn count(steps: &[Step], what: fn(&Step) -> bool) -> usize {
    steps.iter().filter(|s| what(s)).count()
}

/// PTRACE_SETOPTIONS: a restore uses it for nothing but letting go.
fn is_commit(s: &Step) -> bool {
    s.nr == libc::SYS_ptrace && s.a as u32 == libc::PTRACE_SETOPTIONS
}

fn is_link(s: &Step) -> bool {
    matches!(s.nr, libc::SYS_link | libc::SYS_linkat)
}

fn is_unlink(s: &Step) -> bool {
    matches!(s.nr, libc::SYS_unlink | libc::SYS_unlinkat)
}

/// The steps before one, for a person.
fn around(steps: &[Step], at: usize) -> String {
    let from = at.saturating_sub(6);
    let words: Vec<_> = steps[from..at].iter().map(Step::to_string).collect();
    format!("after {}", words.join(", "))
}

/// All processes of the box.
pub(crate) fn pids() -> Vec<i32> {
    fs::read_dir("/proc")
        .map(|d| {
            d.flatten()
                .filter_map(|e| e.file_name().to_str()?.parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

/// Files under a folder with their sizes.
pub(crate) fn listing(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(d) = todo.pop() {
        for e in fs::read_dir(&d).into_iter().flatten().flatten() {
            let Ok(m) = e.path().symlink_metadata() else {
                continue;
            };
            if m.is_dir() {
                todo.push(e.path());
            }
            all.insert(e.path(), if m.is_dir() { 0 } else { m.len() });
        }
    }
    all
}
