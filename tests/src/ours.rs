//! In the box: our own command line, with options that CRIU's has not.

use crate::case::Report;
use crate::init::{Stage, processes, read};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// An age identity for tests, and its recipient.
const IDENTITY: &str = "AGE-SECRET-KEY-1QYPQXPQ9QCRSSZG2PVXQ6RS0ZQG3YYC5Z5TPWXQERGD3C8G7RUSQGPQYEE";
const RECIPIENT: &str = "age1q73he0q5yzfu3d64msd3p6rvksnrwjk3d2598mgtmlqt9wrdr37q2vrn72";

impl Stage {
    /// Dumps and restores once with these options. Words `{dir}`, `{images}`, `{recipient}` in them stand for folders of this case and an age
    /// recipient; standard output of `-o -` becomes standard input of `-i -`. A tree
    /// that is left running is killed before it is restored.
    pub(crate) fn ours(
        &mut self,
        root: Pid,
        dump: &[String],
        restore: &[String],
        report: &mut Report,
    ) -> Result<Pid> {
        fs::write(self.spec.dir.join("identity"), IDENTITY)?;
        let pid = root.to_string();
        let mut words = vec!["dump", &pid];
        words.extend(dump.iter().map(String::as_str));
        let said = self.stasis("bin-dump", &words, report)?;
        // these give up memory all the time: there it may be, and must be right nevertheless
        let may = matches!(&*self.name(), "churn" | "instant");
        if said.contains("stopped for the whole dump") && !may {
            bail!("the memory of the instant was lost: {said}");
        }
        if dump.iter().any(|w| w == "--leave-running") {
            if self.finished(root) {
                bail!("the dump ended the guest: {:?}", self.dead.get(&root));
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            if self.finished(root) {
                bail!("the guest ended after the dump: {:?}", self.dead.get(&root));
            }
            for p in fs::read_dir("/proc")?.flatten() {
                let pid = p.file_name().to_string_lossy().parse::<i32>().unwrap_or(0);
                if pid > 1 {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        let gone = |s: &mut Self| {
            s.reap();
            let all = fs::read_dir("/proc").into_iter().flatten().flatten();
            let others = all
                .filter_map(|p| p.file_name().to_string_lossy().parse::<i32>().ok())
                .filter(|p| *p > 1);
            (others.count() == 0).then_some(())
        };
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while gone(self).is_none() {
            if std::time::Instant::now() > until {
                bail!("the tree is not gone\n{}", processes());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.dead.clear();
        self.look(restore, report)?;
        let mut words = vec!["restore", "--detach"];
        words.extend(restore.iter().map(String::as_str));
        self.stasis("bin-restore", &words, report)?;
        Ok(root)
    }

    /// The images can be shown and planned, wherever a restore finds them.
    fn look(&mut self, restore: &[String], report: &mut Report) -> Result<()> {
        let value = |o: &str| {
            let at = restore.iter().position(|w| w == o)?;
            restore.get(at + 1).map(String::as_str)
        };
        let Some(from) = value("-D").or(value("-i")).filter(|w| *w != "-") else {
            return Ok(());
        };
        let key = value("--identity").map_or(vec![], |k| vec!["--identity", k]);
        for (verb, must) in [("show", "tasks"), ("plan", "mmap")] {
            let said = self.stasis("bin-restore", &[&[verb, from], &key[..]].concat(), report)?;
            if !said.contains(must) {
                bail!("stasis {verb} {from} says nothing of {must}: {said}");
            }
        }
        Ok(())
    }

    fn stasis(&mut self, bin: &str, words: &[&str], report: &mut Report) -> Result<String> {
        let (dir, images) = (self.spec.dir.display().to_string(), self.images(1));
        let images = images.display().to_string();
        let words = words.iter().map(|w| {
            let w = w.replace("{dir}", &dir).replace("{images}", &images);
            w.replace("{recipient}", RECIPIENT)
        });
        let words: Vec<String> = words.collect();
        let piped = |o: &str| words.windows(2).any(|w| w[0] == o && w[1] == "-");
        let stream = self.spec.dir.join("stream");
        let out = self.spec.dir.join(format!("{bin}.out"));
        let file = fs::File::create(&out)?;
        let mut child = Command::new(self.spec.dir.join(bin).join("criu"))
            .arg0("stasis")
            .args(&words)
            .args(self.spec.options.iter())
            .current_dir(&self.spec.dir)
            .stdin(match piped("-i") {
                true => Stdio::piped(),
                false => Stdio::null(),
            })
            .stdout(match piped("-o") {
                true => Stdio::piped(),
                false => file.try_clone()?.into(),
            })
            .stderr(file)
            .spawn()
            .context("starting the engine")?;
        if let Some(mut from) = child.stdout.take() {
            let mut to = fs::File::create(&stream)?;
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
        if let Some(mut to) = child.stdin.take() {
            let mut from = fs::File::open(&stream)?;
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        if self.until(|s| s.finished(pid)).is_none() {
            bail!("timeout: {bin} hangs\n{}", processes());
        }
        let said = read(&out);
        match self.dead.remove(&pid) {
            Some(WaitStatus::Exited(_, 0)) => Ok(said),
            end => {
                report.first_error = said.lines().next().unwrap_or_default().to_string();
                bail!("{bin} ended with {end:?}: {said}")
            }
        }
    }
}
