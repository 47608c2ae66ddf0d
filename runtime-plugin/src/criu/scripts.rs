//! `--action-script`: programs of the caller's, run at each moment.
//!
//! A script finds the moment in `CRTOOLS_SCRIPT_ACTION`, the image folder in `CRTOOLS_IMAGE_DIR` and, once it is known, the
//! root's pid in `CRTOOLS_INIT_PID`. Its working directory is the work folder. If it ends with anything but 0, the dump or
//! restore is undone.
use stasis_engine::{Blame, Error, Moment, Result, Watcher};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A script.
#[derive(Debug)]
pub struct Script {
    /// Its path, or a line for sh(1).
    line: PathBuf,
    images: PathBuf,
    work: PathBuf,
    /// The root of a tree that is dumped.
    root: Option<i32>,
}

impl Script {
    /// A script for a dump of the tree under `root`, or a restore.
    ///
    /// # Errors
    /// A folder does not exist.
    pub fn new(line: &Path, images: &Path, work: &Path, root: Option<i32>) -> Result<Self> {
        let real = |p: &Path| {
            p.canonicalize().map_err(|e| {
                Error::new("E2001", Blame::Caller, format!("folder {}", p.display()))
                    .why(e)
                    .advice("name folders that exist")
            })
        };
        Ok(Self {
            // a path is meant from where the caller stands
            line: line.canonicalize().unwrap_or_else(|_| line.into()),
            images: real(images)?,
            work: real(work)?,
            root,
        })
    }
    fn command(&self) -> Command {
        if self.line.is_file() {
            return Command::new(&self.line);
        }
        let mut sh = Command::new("/bin/sh");
        sh.arg("-c").arg(&self.line);
        sh
    }
}

impl Watcher for Script {
    fn moment(&self, moment: Moment) -> Result<()> {
        let mut c = self.command();
        c.env("CRTOOLS_SCRIPT_ACTION", moment.name())
            .env("CRTOOLS_IMAGE_DIR", &self.images)
            .current_dir(&self.work)
            .stdin(Stdio::null());
        if let Some(pid) = moment.pid().or(self.root) {
            c.env("CRTOOLS_INIT_PID", pid.to_string());
        }
        tracing::debug!("script {} at {}", self.line.display(), moment.name());
        let failed = |why: String| {
            Error::new(
                "E7003",
                Blame::Caller,
                format!(
                    "action script {} failed at {}",
                    self.line.display(),
                    moment.name()
                ),
            )
            .why(why)
            .advice("mend the script, or leave --action-script out")
        };
        let status = c
            .status()
            .map_err(|e| failed(format!("it cannot be run: {e}")))?;
        match status.success() {
            true => Ok(()),
            false => Err(failed(status.to_string())),
        }
    }
    fn orphan_pts_master(&self, _: BorrowedFd<'_>) -> Result<bool> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_script_is_told_and_may_object() {
        let tmp = tempfile::tempdir().unwrap();
        let script = tmp.path().join("s.sh");
        let text = "#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR $CRTOOLS_INIT_PID >>told\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ]\n";
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let s = Script::new(&script, tmp.path(), tmp.path(), Some(7)).unwrap();
        s.moment(Moment::PreDump).unwrap();
        s.moment(Moment::PreResume(9)).unwrap();
        let e = s.moment(Moment::PostDump).unwrap_err();
        assert_eq!((e.code, e.why.as_str()), ("E7003", "exit status: 1"));
        let dir = tmp.path().display();
        let told = std::fs::read_to_string(tmp.path().join("told")).unwrap();
        let want = format!("pre-dump {dir} 7\npre-resume {dir} 9\npost-dump {dir} 7\n");
        assert_eq!(told, want);
        let line = Script::new(Path::new("exit 3"), tmp.path(), tmp.path(), None).unwrap();
        let e = line.moment(Moment::PreRestore).unwrap_err();
        assert_eq!(e.why, "exit status: 3");
    }
}
