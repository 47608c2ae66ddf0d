//! In the box: dumps that build on each other, of a guest that runs on between them.

use crate::case::Report;
use crate::init::{Stage, read};
use crate::life::kills::Dice;
use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use stasis_proto::{ImageDir, pb};
use std::fs;
use std::time::Duration;

/// How long the guest runs between two dumps.
const PAUSE: Duration = Duration::from_millis(30);

impl Stage {
    /// Pre-dumps and dumps in turn, then a dump and a restore. Nothing of the tracking may be seen in the guest, and it must
    /// have spared something.
    pub(crate) fn incremental(
        &mut self,
        root: Pid,
        rounds: u32,
        killed: bool,
        report: &mut Report,
    ) -> Result<Pid> {
        let mut dice = Dice::new();
        for n in 1..=rounds + 1 {
            if killed && n > 1 {
                self.killed_rounds(root, n - 1, &mut dice)?;
            }
            let last = n > rounds;
            let verb = if n % 2 == 1 && !last {
                "pre-dump"
            } else {
                "dump"
            };
            let mut args: Vec<String> = vec![verb.into(), "-t".into(), root.to_string()];
            args.extend(["-o".into(), format!("{verb}.log"), "--track-mem".into()]);
            if n > 1 {
                args.extend(["--prev-images-dir".into(), format!("../img-{}", n - 1)]);
            }
            if verb == "dump" && !last {
                args.push("--leave-running".into());
            }
            fs::create_dir(self.images(n))?;
            self.engine("bin-dump", n, args, report)?;
            // a round that was killed has broken the chain, unless it was killed early
            if !killed {
                self.spared(n)?;
            }
            if !last {
                if self.finished(root) {
                    bail!("{verb} {n} ended the guest: {:?}", self.dead.get(&root));
                }
                leaked()?;
                std::thread::sleep(PAUSE);
            }
        }
        if self.until(|s| s.finished(root)).is_none() {
            bail!("the dump said success but did not end the guest");
        }
        if self.until(|_| keepers() == 0).is_none() {
            bail!("the tree is gone, and something still tracks it");
        }
        self.restore(root, rounds + 1, report)
    }

    /// Rounds on dump `before` that are killed; what they leave is used by nobody.
    fn killed_rounds(&mut self, root: Pid, before: u32, dice: &mut Dice) -> Result<()> {
        for verb in ["pre-dump", "dump"] {
            let dir = self.fresh_images_in("spare")?;
            let mut args: Vec<String> = vec![verb.into(), "-t".into(), root.to_string()];
            args.extend(["-D".into(), dir.display().to_string()]);
            args.extend(["--track-mem".into(), "--prev-images-dir".into()]);
            args.push(format!("../img-{before}"));
            if verb == "dump" {
                args.push("--leave-running".into());
            }
            let wait = Duration::from_micros(dice.roll(40_000));
            let mut child = self.command(&args, false)?.spawn()?;
            std::thread::sleep(wait);
            let _ = child.kill();
            let end = child.wait()?;
            std::thread::sleep(Duration::from_millis(5));
            if self.finished(root) {
                bail!(
                    "a {verb} killed after {wait:?} ({end}) ended the guest: {:?}",
                    self.dead.get(&root)
                );
            }
            // a task closes by itself what it was lent, as soon as it gets a processor
            if self.until(|_| leaked().is_ok()).is_none() {
                leaked().with_context(|| format!("{verb} killed after {wait:?}"))?;
            }
        }
        Ok(())
    }

    /// Later dumps leave pages to those before.
    fn spared(&self, n: u32) -> Result<()> {
        let stats: pb::StatsEntry = ImageDir::open(&self.images(n))?.read_one("stats-dump")?;
        let d = stats.dump.unwrap_or_default();
        if n > 1 && d.pages_skipped_parent == 0 {
            bail!("dump {n} wrote all {} pages again", d.pages_written);
        }
        Ok(())
    }
}

/// Processes that hold descriptors between dumps.
fn keepers() -> usize {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names
        .filter(|e| read(&e.path().join("comm")).trim() == "stasis-keeper")
        .count()
}

/// No process but the keeper has a userfaultfd.
fn leaked() -> Result<()> {
    for task in fs::read_dir("/proc")?.flatten() {
        if read(&task.path().join("comm")).trim() == "stasis-keeper" {
            continue;
        }
        let fds = fs::read_dir(task.path().join("fd"));
        for fd in fds.into_iter().flatten().flatten() {
            let link = fs::read_link(fd.path()).unwrap_or_default();
            if link.to_string_lossy().contains("userfaultfd") {
                bail!("{} is left in a task", fd.path().display());
            }
        }
    }
    Ok(())
}
