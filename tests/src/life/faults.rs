//! Dumps and restores that fail: the reason is named, and nothing is left.
use super::kills::listing;
use super::snapshot::Snapshot;
use crate::case::Report;
use crate::init::Stage;
use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Why a dump fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpFault {
    /// The folder is a tmpfs with room for this many KiB.
    FullDisk(u32),
    /// The folder is on a read-only mount.
    ReadOnly,
    /// The folder is a file.
    NotAFolder,
    /// The engine runs as nobody.
    Nobody,
    /// Somebody else traces the tree.
    Traced,
    /// No such process.
    NoTask,
    /// The guest holds what this version cannot carry, in the middle of its tree.
    Unsupported,
    /// The engine may open few files.
    FewFiles(u32),
}

impl DumpFault {
    /// What must be found in the engine's words: the stable code.
    fn code(self) -> &'static str {
        match self {
            DumpFault::FullDisk(_) => "error[E6001]",
            DumpFault::ReadOnly => "error[E6002]",
            DumpFault::NotAFolder => "error[E",
            DumpFault::Nobody => "error[E6003]",
            DumpFault::Traced => "error[E4004]",
            DumpFault::NoTask => "error[E4001]",
            DumpFault::Unsupported => "error[E4",
            DumpFault::FewFiles(_) => "error[E6005]",
        }
    }
}

/// Why a restore fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreFault {
    /// A file the tree had open is gone.
    FileGone,
    /// It has another size.
    WrongSize,
    /// The root's pid is taken.
    PidTaken,
    /// An image is missing.
    ImageGone,
    /// The pages image is cut in half.
    PagesCut,
    /// The engine may open few files.
    FewFiles(u32),
    /// The pidfile cannot be written.
    NoPidfile,
}

impl RestoreFault {
    fn code(self) -> &'static str {
        match self {
            RestoreFault::FileGone => "error[E6",
            RestoreFault::WrongSize => "error[E",
            RestoreFault::PidTaken => "error[E6101]",
            RestoreFault::ImageGone => "error[E0204]",
            RestoreFault::PagesCut => "error[E5021]",
            RestoreFault::FewFiles(_) => "error[E6",
            RestoreFault::NoPidfile => "error[E6123]",
        }
    }
}

impl Stage {
    /// Runs the engine with few rights or files, expecting that it fails with `code`.
    fn refused(&mut self, mut c: Command, code: &str) -> Result<()> {
        let end = c.spawn()?.wait()?;
        let said = self.said();
        if end.success() {
            bail!("it succeeded, though it should have failed with {code}\n{said}");
        }
        if end.code() != Some(1) {
            bail!("it ended with {end}\n{said}");
        }
        let advice = said.contains("advice: ");
        if !said.contains(code) || !advice {
            bail!("it did not fail with {code} and advice:\n{said}");
        }
        Ok(())
    }
    /// The same command line, run by a shell that gives up something first.
    fn after(&self, first: &str, args: &[String]) -> Result<Command> {
        let plain = self.command(args, false)?;
        let mut c = Command::new("sh");
        c.arg("-c").arg(format!("{first} exec \"$0\" \"$@\""));
        c.arg(plain.get_program()).args(args);
        let out = fs::File::options()
            .append(true)
            .open(self.spec.dir.join("engine.out"))?;
        c.current_dir(&self.spec.dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        Ok(c)
    }
    pub(crate) fn fail_dump(&mut self, root: Pid, f: DumpFault, report: &mut Report) -> Result<()> {
        std::thread::sleep(std::time::Duration::from_millis(60));
        let before = Snapshot::take(root.as_raw());
        let dir = self.fresh_images()?;
        let mut args = self.dump_args(root, &dir);
        // a dump for good: it must not kill what it could not save
        args.retain(|a| a != "-R");
        match f {
            DumpFault::FullDisk(kib) => {
                let size = format!("size={kib}k");
                mount(
                    Some("tmpfs"),
                    &dir,
                    Some("tmpfs"),
                    MsFlags::empty(),
                    Some(size.as_str()),
                )?;
            }
            DumpFault::ReadOnly => {
                mount(
                    Some("tmpfs"),
                    &dir,
                    Some("tmpfs"),
                    MsFlags::MS_RDONLY,
                    None::<&str>,
                )?;
            }
            DumpFault::NotAFolder => {
                fs::remove_dir(&dir)?;
                fs::write(&dir, "")?;
            }
            DumpFault::NoTask => {
                let at = args
                    .iter()
                    .position(|a| *a == root.to_string())
                    .context("the pid")?;
                args[at] = "4000000".into();
            }
            DumpFault::Traced => {
                let last = super::kills::pids().into_iter().max().context("a task")?;
                ptrace::seize(Pid::from_raw(last), ptrace::Options::empty())?;
            }
            DumpFault::Nobody => fs::set_permissions(&dir, Permissions::from_mode(0o777))?,
            DumpFault::Unsupported | DumpFault::FewFiles(_) => {}
        }
        let c = match f {
            DumpFault::Nobody => {
                use std::os::unix::process::CommandExt;
                let mut c = self.command(&args, false)?;
                c.uid(65534).gid(65534).env("HOME", "/");
                c
            }
            DumpFault::FewFiles(n) => self.after(&format!("ulimit -n {n} && "), &args)?,
            _ => self.command(&args, false)?,
        };
        self.refused(c, f.code())?;
        if let DumpFault::Traced = f {
            let last = super::kills::pids().into_iter().max().context("a task")?;
            let seen = fs::read_to_string(format!("/proc/{last}/status"))?;
            if !seen.contains("TracerPid:\t1\n") {
                bail!("the tracer lost its task");
            }
            let_go(Pid::from_raw(last))?;
        }
        self.unharmed(root, &before)?;
        if dir.join("inventory.img").exists() {
            bail!("the folder looks complete");
        }
        report.notes = format!(
            "{}: dump refused: {f:?}: {}",
            self.name(),
            first_line(&self.said())
        );
        Ok(())
    }
    pub(crate) fn fail_restore(
        &mut self,
        root: Pid,
        f: RestoreFault,
        report: &mut Report,
    ) -> Result<Pid> {
        let dir = self.dump_away(root)?;
        let victim = self.work("at");
        let mut args = self.restore_args(&dir);
        let mut undo: Vec<(PathBuf, PathBuf)> = Vec::new();
        let mut hide = |p: PathBuf| -> Result<PathBuf> {
            let to = self.spec.dir.join("hidden");
            fs::rename(&p, &to).with_context(|| p.display().to_string())?;
            undo.push((to.clone(), p));
            Ok(to)
        };
        let mut sleeper = None;
        match f {
            RestoreFault::FileGone => drop(hide(victim)?),
            RestoreFault::WrongSize => {
                let to = hide(victim.clone())?;
                fs::copy(&to, &victim)?;
                fs::OpenOptions::new()
                    .write(true)
                    .open(&victim)?
                    .set_len(1)?;
            }
            RestoreFault::ImageGone => drop(hide(dir.join(format!("core-{root}.img")))?),
            RestoreFault::PagesCut => {
                let pages = dir.join("pages-1.img");
                let to = hide(pages.clone())?;
                fs::copy(&to, &pages)?;
                let len = fs::metadata(&pages)?.len();
                fs::OpenOptions::new()
                    .write(true)
                    .open(&pages)?
                    .set_len(len / 2)?;
            }
            RestoreFault::PidTaken => {
                fs::write(
                    "/proc/sys/kernel/ns_last_pid",
                    (root.as_raw() - 1).to_string(),
                )?;
                let child = Command::new("sleep").arg("1000").spawn()?;
                if child.id() != root.as_raw() as u32 {
                    bail!("pid {root} was not to be had");
                }
                sleeper = Some(child);
            }
            RestoreFault::NoPidfile => {
                let at = args
                    .iter()
                    .position(|a| a == "--pidfile")
                    .context("the pidfile")?;
                args[at + 1] = self
                    .spec
                    .dir
                    .join("no/such/folder/pid")
                    .display()
                    .to_string();
            }
            RestoreFault::FewFiles(_) => {}
        }
        let files = listing(&self.work(""));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let c = match f {
            RestoreFault::FewFiles(n) => self.after(&format!("ulimit -n {n} && "), &args)?,
            _ => self.command(&args, false)?,
        };
        self.refused(c, f.code())?;
        let said = self.said();
        if let Some(mut s) = sleeper {
            s.kill()?;
            s.wait()?;
        }
        self.nothing_left(&files, &mounts)?;
        for (from, to) in undo {
            fs::rename(from, to)?;
        }
        report.notes = format!(
            "{}: restore refused: {f:?}: {}",
            self.name(),
            first_line(&said)
        );
        self.restore_well(root, &dir)
    }
    pub(crate) fn only_dump(&mut self, root: Pid, _: &mut Report) -> Result<()> {
        self.dump_away(root).map(|_| ())
    }
}

/// Ends our own tracing: a task must be stopped to be let go.
fn let_go(pid: Pid) -> Result<()> {
    ptrace::interrupt(pid)?;
    waitpid(pid, Some(WaitPidFlag::__WALL))?;
    Ok(ptrace::detach(pid, None)?)
}

fn first_line(text: &str) -> String {
    let line = text
        .lines()
        .find(|l| l.contains("error["))
        .unwrap_or_default();
    line.split_once("error[")
        .map_or(String::new(), |(_, l)| format!("error[{l}"))
}
