//! What scenarios are made of: a root file system of busybox, commands, output that is read while it comes.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a wait for output may last.
const PATIENCE: Duration = Duration::from_secs(15);

/// The place of a scenario.
pub struct World {
    /// Its folder: everything is below it.
    pub dir: PathBuf,
}

impl World {
    /// In this folder.
    ///
    /// # Errors
    /// It cannot be filled.
    pub fn new(dir: &Path) -> Result<Self> {
        Ok(Self { dir: dir.into() })
    }
    /// A new root file system of busybox.
    ///
    /// # Errors
    /// As for files.
    pub fn rootfs(&self, at: &Path) -> Result<()> {
        for d in ["bin", "proc", "sys", "dev", "tmp", "etc", "root", "data"] {
            fs::create_dir_all(at.join(d))?;
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .find(|p| Path::new(p).exists())
            .context("busybox is not installed")?;
        fs::copy(busybox, at.join("bin/busybox"))?;
        let applets = "sh sleep echo cat ls stty nc httpd touch true id mount hostname head tail seq ps ip kill test tty";
        for a in applets.split(' ') {
            symlink("busybox", at.join("bin").join(a))?;
        }
        fs::write(at.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        Ok(())
    }
    /// Runs a command to its end; its output must be a success.
    ///
    /// # Errors
    /// It failed; with all it said.
    pub fn run(&self, c: &mut Command) -> Result<String> {
        let out = self.output(c)?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(
            out.status.success(),
            "{c:?}: {}\n{said}{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(said)
    }
    /// Runs a command to its end, whatever that is. What it says goes through files, which daemons may keep open.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, c: &mut Command) -> Result<Output> {
        let mut files = [
            tempfile::tempfile_in(&self.dir)?,
            tempfile::tempfile_in(&self.dir)?,
        ];
        let status = c
            .stdin(Stdio::null())
            .stdout(files[0].try_clone()?)
            .stderr(files[1].try_clone()?)
            .status()
            .with_context(|| format!("{c:?}"))?;
        let mut texts = [Vec::new(), Vec::new()];
        for (f, t) in files.iter_mut().zip(&mut texts) {
            std::io::Seek::rewind(f)?;
            f.read_to_end(t)?;
        }
        let [stdout, stderr] = texts;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
    /// All logs of the engine, for a person.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        logs(&self.dir, &mut all);
        all
    }
}

fn logs(dir: &Path, all: &mut String) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for e in entries.flatten() {
        let path = e.path();
        let is = |name: &str| path.file_name().is_some_and(|n| n == name);
        if is("rootfs") || is("overlay") || is("vfs") {
            continue;
        }
        if e.file_type().is_ok_and(|t| t.is_dir()) {
            logs(&path, all);
        } else if is("dump.log") || is("restore.log") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            all.push_str(&format!("--- {}\n", path.display()));
            let lines: Vec<&str> = text.lines().collect();
            for l in &lines[lines.len().saturating_sub(25)..] {
                all.push_str(l);
                all.push('\n');
            }
        }
    }
}

/// What comes out of a pipe, read while it comes.
#[derive(Clone)]
pub struct Heard {
    text: Arc<Mutex<String>>,
    /// Nobody can say more.
    over: Arc<AtomicBool>,
}

impl Heard {
    /// A pipe: its writing end, and what is heard at the other.
    ///
    /// # Errors
    /// No pipe.
    pub fn pipe() -> Result<(OwnedFd, Self)> {
        let (r, w) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        Ok((w, Self::of(File::from(r))))
    }
    /// What is heard from this file.
    pub fn of(mut from: File) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (to, ended) = (text.clone(), over.clone());
        std::thread::spawn(move || {
            let mut b = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut b) {
                if let Ok(mut t) = to.lock() {
                    t.push_str(&String::from_utf8_lossy(&b[..n]));
                }
            }
            ended.store(true, Ordering::Release);
        });
        Self { text, over }
    }
    /// All so far.
    pub fn text(&self) -> String {
        self.text.lock().map(|t| t.clone()).unwrap_or_default()
    }
    /// Whole lines that are numbers, so far.
    pub fn numbers(&self) -> Vec<u64> {
        numbers(&self.text())
    }
    /// All numbers of a container that is gone, once the last is read.
    ///
    /// # Errors
    /// Somebody still holds the pipe.
    pub fn last_numbers(&self) -> Result<Vec<u64>> {
        let over = || Ok(self.over.load(Ordering::Acquire).then_some(()));
        wait("the end of a pipe", over)?;
        Ok(self.numbers())
    }
    /// Waits until there are this many numbers; gives them all.
    ///
    /// # Errors
    /// They do not come.
    pub fn wait_numbers(&self, count: usize) -> Result<Vec<u64>> {
        wait(&format!("{count} numbers"), || {
            let n = self.numbers();
            if n.len() >= count {
                Ok(Some(n))
            } else {
                Ok(None)
            }
        })
        .with_context(|| format!("heard: {:?}", self.text()))
    }
    /// Waits until these words were said.
    ///
    /// # Errors
    /// They do not come.
    pub fn wait_text(&self, words: &str) -> Result<()> {
        wait(words, || Ok(self.text().contains(words).then_some(())))
            .with_context(|| format!("heard: {:?}", self.text()))
    }
}

/// Whole lines that are numbers.
pub fn numbers(text: &str) -> Vec<u64> {
    let whole = text.rfind('\n').map_or("", |n| &text[..n]);
    whole
        .lines()
        .filter_map(|l| l.trim().parse().ok())
        .collect()
}

/// Waits until `look` finds something.
///
/// # Errors
/// It does not within 15 seconds.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + PATIENCE * crate::case::slowness();
    loop {
        if let Some(t) = look()? {
            return Ok(t);
        }
        if Instant::now() > until {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until what counts has gone on from `last`; `numbers` may give the earlier ones, too.
///
/// # Errors
/// It does not within the time of [`wait`].
pub fn counts_on(last: u64, mut numbers: impl FnMut() -> Result<Vec<u64>>) -> Result<()> {
    let next = last + 1;
    wait(&format!("number {next}"), || {
        Ok(numbers()?.contains(&next).then_some(()))
    })
}

/// `after` must go on where `before` stopped: nothing twice, nothing left out.
///
/// # Errors
/// It does not.
pub fn goes_on(before: &[u64], after: &[u64]) -> Result<()> {
    let all: Vec<u64> = before.iter().chain(after).copied().collect();
    let gap = all.windows(2).find(|w| w[1] != w[0] + 1);
    ensure!(
        gap.is_none(),
        "the counter goes {gap:?}: {before:?}, then {after:?}"
    );
    Ok(())
}
