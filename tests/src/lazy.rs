//! In the box: a restore that brings memory when the tree runs.

use crate::case::Report;
use crate::init::{Stage, processes, read};
use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

impl Stage {
    /// Dumps, restores by our own command line with `--lazy`, and waits until all memory is there.
    pub(crate) fn lazily(&mut self, root: Pid, report: &mut Report) -> Result<Pid> {
        self.dump(root, 1, false, report)?;
        if self.until(|s| s.finished(root)).is_none() {
            bail!("the dump said success but did not end the guest");
        }
        self.dead.remove(&root);
        let child = Command::new(self.spec.dir.join("bin-restore").join("criu"))
            .arg0("stasis")
            .args(["restore", "--lazy", "--detach", "-D"])
            .arg(self.images(1))
            .args(self.spec.options.iter())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.spec.dir.join("lazy.err"))?)
            .spawn()
            .context("starting the engine")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        if self.until(|s| s.finished(pid)).is_none() {
            bail!("timeout: the lazy restore hangs\n{}", processes());
        }
        let said = read(&self.spec.dir.join("lazy.err"));
        if !matches!(
            self.dead.remove(&pid),
            Some(nix::sys::wait::WaitStatus::Exited(_, 0))
        ) {
            bail!("the lazy restore failed: {said}");
        }
        // the guest is told to verify while memory may still be missing
        Ok(root)
    }
}
