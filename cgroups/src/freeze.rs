//! Freezing a group at once (`--freeze-cgroup`), and never leaving it otherwise than it was.
//!
//! A frozen task of cgroup v2 that is seized stops in its tracer's hands at once, but does not run, so it can play no tape,
//! until its group is thawed. Then it stays in its tracer's hands. Hence the order: [`Freezer::freeze`], seize all,
//! [`Freezer::thaw`], look and write, [`Freezer::put_back`], let go.
//!
//! A caller may have paused the group before. It is thawed all the same, while every task is held, and frozen again before the
//! tasks are let go. Groups below it may be frozen on their own; they are treated alike.
//!
//! **The engine may be killed at any instruction.** Whenever a group is not as it was, a guardian
//! ([`stasis_kernel::guardian`]) stands by to put it back.
//!
//! **cgroup v1** (`freezer.state`): a frozen task reports its stop only when it is thawed. So a group that runs is not frozen
//! at all, its tasks are seized one by one; and one that is frozen is thawed just before.
use crate::error::{Error, Result, Side};
use crate::view::{self, View};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use stasis_kernel::guardian::{self, Guardian};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::ProcDir;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// A group that was frozen for a dump, or had been before.
#[derive(Debug)]
pub struct Freezer {
    shown: String,
    group: Group,
    /// Groups that were frozen before, the group itself first: what they are put back to.
    before: Vec<Group>,
    /// Device and inode number of the directories of those.
    frozen: Vec<(u64, u64)>,
    /// Stands by while something is otherwise than it was.
    guardian: Option<Guardian>,
    v1: bool,
    thawed: bool,
    done: bool,
}

/// A group's directory.
#[derive(Debug)]
struct Group(OwnedFd);

/// The file that freezes a group, and the words for it: frozen, running.
struct Switch(&'static str, &'static str, &'static str);

const V2: Switch = Switch("cgroup.freeze", "1", "0");
const V1: Switch = Switch("freezer.state", "FROZEN", "THAWED");

impl Freezer {
    /// Freezes `group` (a directory of cgroup v2, or of the v1 freezer), and waits until it is frozen. One that is frozen
    /// already stays so.
    ///
    /// # Errors
    /// E2442: no group that can be frozen, or one the engine itself is in. E4442: it did not freeze in time. E4443: a group
    /// around it is frozen.
    pub fn freeze(group: &Path, deadline: Instant) -> Result<Self> {
        let shown = group.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(group, flags, Mode::empty())
            .map_err(|e| no_group(&shown, e.to_string()))?;
        let has = |f: &str| {
            rustix::fs::accessat(
                &dir,
                f,
                rustix::fs::Access::EXISTS,
                rustix::fs::AtFlags::empty(),
            )
            .is_ok()
        };
        let v1 = match (has(V2.0), has(V1.0)) {
            (true, _) => false,
            (_, true) => true,
            _ => {
                return Err(no_group(
                    &shown,
                    "it has neither cgroup.freeze nor freezer.state",
                ));
            }
        };
        if holds_engine(&dir)? {
            return Err(no_group(
                &shown,
                "stasis itself runs in it, and would stop with it",
            ));
        }
        let mut f = Self {
            group: Group(dir),
            before: Vec::new(),
            frozen: Vec::new(),
            guardian: None,
            shown,
            v1,
            thawed: false,
            done: false,
        };
        f.look(duplicate(&f.group.0)?, &f.shown.clone(), 0)?;
        if f.was_frozen() || v1 {
            debug!(
                "{} is {}",
                f.shown,
                if f.was_frozen() {
                    "frozen already"
                } else {
                    "not frozen: v1"
                }
            );
            return Ok(f);
        }
        if f.is_frozen()? {
            return Err(Error::new(
                "E4443",
                Side::Container,
                format!("control group {}", f.shown),
                "it is not frozen itself, but a group around it is",
                "name the outermost frozen group with --freeze-cgroup, or thaw it",
            ));
        }
        f.guardian = Some(guardian::watch(vec![
            f.group.to_write(&V2, V2.2, &f.shown)?,
        ])?);
        view::write(f.group.0.as_fd(), V2.0, V2.1, &f.shown)?;
        let mut nap = Duration::from_micros(20);
        while !f.is_frozen()? {
            if Instant::now() > deadline {
                return Err(Error::new(
                    "E4442",
                    Side::Container,
                    format!("control group {} did not freeze in time", f.shown),
                    "a task in it is in an uninterruptible wait of the kernel",
                    "try again, or raise --timeout",
                ));
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(1));
        }
        Ok(f)
    }
    /// Notes what is frozen, in this group and below.
    fn look(&mut self, dir: OwnedFd, shown: &str, depth: usize) -> Result<()> {
        let switch = self.switch();
        let state = view::read(dir.as_fd(), switch.0, shown)?.unwrap_or_default();
        let below: Vec<String> = {
            let told = |e| Error::call("getdents64", e, shown);
            let mut names = Vec::new();
            for e in Dir::read_from(&dir).map_err(told)? {
                let e = e.map_err(told)?;
                if let Ok(name) = e.file_name().to_str()
                    && e.file_type() == FileType::Directory
                    && !matches!(name, "." | "..")
                {
                    names.push(name.to_string());
                }
            }
            names
        };
        // of v1 a group is said to be frozen also when one around it is; what it was told itself is another file
        let own = match self.v1 {
            true => view::read(dir.as_fd(), "freezer.self_freezing", shown)?
                .map_or(state.trim() != V1.2, |s| s.trim() == "1"),
            false => state.trim() == V2.1,
        };
        if own {
            let st = rustix::fs::fstat(&dir).map_err(|e| Error::call("fstat", e, shown))?;
            self.frozen.push((st.st_dev, st.st_ino));
            self.before.push(Group(duplicate(&dir)?));
        }
        for name in below {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if depth < crate::dump::DEEPEST
                && let Ok(sub) = rustix::fs::openat(&dir, &name, flags, Mode::empty())
            {
                self.look(sub, &format!("{shown}/{name}"), depth + 1)?;
            }
        }
        Ok(())
    }
    fn switch(&self) -> &'static Switch {
        if self.v1 { &V1 } else { &V2 }
    }
    /// Is the whole group at a standstill?
    fn is_frozen(&self) -> Result<bool> {
        let events = view::read(self.group.0.as_fd(), "cgroup.events", &self.shown)?;
        Ok(events.unwrap_or_default().lines().any(|l| l == "frozen 1"))
    }
    /// Was the group, or one below it, frozen before?
    pub fn was_frozen(&self) -> bool {
        !self.before.is_empty()
    }
    /// Is it of cgroup v1? Then nothing is frozen now, and [`Freezer::thaw`] must come before the tasks are seized.
    pub fn is_v1(&self) -> bool {
        self.v1
    }
    /// Device and inode number of the directories of groups that were frozen before, the group itself or below it.
    pub fn frozen_before(&self) -> &[(u64, u64)] {
        &self.frozen
    }
    /// Lets the group and those below it run, once all tasks are seized.
    ///
    /// # Errors
    /// As write(2).
    pub fn thaw(&mut self) -> Result<()> {
        if self.thawed {
            return Ok(());
        }
        let switch = self.switch();
        if self.was_frozen() {
            let back = self
                .before
                .iter()
                .map(|g| g.to_write(switch, switch.1, &self.shown));
            self.guardian = Some(guardian::watch(back.collect::<Result<_>>()?)?);
            // v1 wants the outer one first; to v2 it is all the same
            for g in &self.before {
                view::write(g.0.as_fd(), switch.0, switch.2, &self.shown)?;
            }
        } else if !self.v1 {
            view::write(self.group.0.as_fd(), switch.0, switch.2, &self.shown)?;
            self.release();
        }
        self.thawed = true;
        Ok(())
    }
    fn release(&mut self) {
        if let Some(g) = self.guardian.take() {
            g.release();
        }
    }
    /// Freezes again what was frozen before, while tasks are still seized: they do not run when they are let go. `killed`: the
    /// tasks will be killed, which those of a frozen v1 group cannot be; it is left thawed then.
    ///
    /// # Errors
    /// As write(2).
    pub fn put_back(mut self, killed: bool) -> Result<()> {
        self.done = true;
        if killed && self.v1 {
            self.release();
            return Ok(());
        }
        self.back()?;
        self.release();
        Ok(())
    }
    fn back(&self) -> Result<()> {
        let switch = self.switch();
        if !self.was_frozen() && !self.v1 && !self.thawed {
            return view::write(self.group.0.as_fd(), switch.0, switch.2, &self.shown);
        }
        if self.thawed {
            for g in &self.before {
                view::write(g.0.as_fd(), switch.0, switch.1, &self.shown)?;
            }
        }
        Ok(())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        match self.back() {
            Ok(()) => self.release(),
            // the guardian tries as well
            Err(e) => warn!("{} is not as it was: {e}", self.shown),
        }
    }
}

impl Group {
    /// The write that a guardian would make.
    fn to_write(&self, switch: &Switch, word: &str, shown: &str) -> Result<(OwnedFd, Vec<u8>)> {
        let f = view::open_to_write(self.0.as_fd(), switch.0)
            .map_err(|e| Error::call("openat2", e, format!("{shown}/{}", switch.0)))?;
        Ok((f.into(), word.as_bytes().to_vec()))
    }
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(|e| Error::call("fcntl(F_DUPFD_CLOEXEC)", e, ""))
}

fn no_group(shown: &str, why: impl std::fmt::Display) -> Error {
    Error::new(
        "E2442",
        Side::Caller,
        format!("--freeze-cgroup {shown}"),
        why,
        "name the directory of the container's control group, below which stasis itself does not run",
    )
}

/// Is the engine in this group, or in one below it?
fn holds_engine(dir: &OwnedFd) -> Result<bool> {
    let is = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino)).ok();
    let wanted = is(dir);
    let view = View::own()?;
    for line in ProcDir::open(HostPid::own())?.cgroup()? {
        let name = &view::names(&line)[0];
        let path = String::from_utf8_lossy(&line.path).into_owned();
        let Some(h) = view.of(name) else { continue };
        let mut at = path.as_str();
        while let Ok(fd) = h.try_open(at) {
            if is(&fd) == wanted {
                return Ok(true);
            }
            match at.rsplit_once('/') {
                Some((up, last)) if !last.is_empty() => at = if up.is_empty() { "/" } else { up },
                _ => break,
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(own: &str, below: &str) -> tempfile::TempDir {
        let t = tempfile::tempdir().unwrap();
        let put = |f: &str, s: &str| std::fs::write(t.path().join(f), s).unwrap();
        std::fs::create_dir(t.path().join("sub")).unwrap();
        put("cgroup.freeze", own);
        put("sub/cgroup.freeze", below);
        // what a kernel would say once it is frozen
        put("cgroup.events", "populated 1\nfrozen 1\n");
        t
    }

    fn states(t: &tempfile::TempDir) -> (String, String) {
        let get = |f: &str| std::fs::read_to_string(t.path().join(f)).unwrap();
        (get("cgroup.freeze"), get("sub/cgroup.freeze"))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn what_was_frozen_is_thawed_for_a_while() {
        let t = fake("1", "1");
        let mut f = Freezer::freeze(t.path(), soon()).unwrap();
        assert!(f.was_frozen() && f.frozen_before().len() == 2);
        assert_eq!(states(&t), ("1".into(), "1".into()));
        f.thaw().unwrap();
        assert_eq!(states(&t), ("0".into(), "0".into()));
        f.put_back(false).unwrap();
        assert_eq!(states(&t), ("1".into(), "1".into()));
    }

    #[test]
    fn an_error_puts_it_back_too() {
        let t = fake("0", "1");
        let mut f = Freezer::freeze(t.path(), soon()).unwrap();
        f.thaw().unwrap();
        assert_eq!(states(&t), ("0".into(), "0".into()));
        drop(f);
        assert_eq!(states(&t), ("0".into(), "1".into()));
    }

    #[test]
    fn a_folder_that_is_no_group_is_refused() {
        let t = tempfile::tempdir().unwrap();
        let e = Freezer::freeze(t.path(), soon()).unwrap_err();
        assert!(matches!(e, Error::Named(n) if n.code == "E2442"));
    }

    #[test]
    fn a_frozen_group_around_it_is_named() {
        let t = fake("0", "0");
        let e = Freezer::freeze(t.path(), soon()).unwrap_err();
        assert!(matches!(e, Error::Named(n) if n.code == "E4443"));
    }
}
