//! A control group of a test's own, below the one the tests were started in.
use crate::wait::reap;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroup v2 is mounted for a test.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// A group that goes with its handle, and all processes in it.
pub struct Group(pub PathBuf);

impl Group {
    /// Mounts cgroup v2 alone (the caller has a mount namespace of its own), and makes a group there.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn of_test(name: &str) -> Self {
        // hybrid hosts have it elsewhere, and more than that
        while umount2(CGROUPS, MntFlags::MNT_DETACH).is_ok() {}
        let (fs, none) = (Some("cgroup2"), None::<&str>);
        mount(fs, CGROUPS, fs, MsFlags::empty(), none).expect("cgroup2");
        let own = fs::read_to_string("/proc/self/cgroup").expect("own groups");
        let own = own.lines().find_map(|l| l.strip_prefix("0::"));
        let own = own.expect("cgroup v2").trim_start_matches('/');
        // the pid is 1 for all of them: the inode number of the namespace is not
        let ns = fs::metadata("/proc/self/ns/pid")
            .expect("a namespace")
            .ino();
        let at = Path::new(CGROUPS)
            .join(own)
            .join(format!("stasis-{name}-{ns}"));
        fs::create_dir(&at).expect("a group");
        Group(at)
    }
    /// From the root of the hierarchy.
    ///
    /// # Panics
    /// It is not below the mount.
    pub fn path(&self) -> String {
        let path = self.0.strip_prefix(CGROUPS).expect("below");
        format!("/{}", path.display())
    }
    /// Removes it with all groups below it, when their processes have ended. It may be gone already.
    pub fn remove(&self) {
        fn all(at: &Path) {
            for e in fs::read_dir(at).into_iter().flatten().flatten() {
                if e.path().is_dir() {
                    all(&e.path());
                }
            }
            let _ = fs::remove_dir(at);
        }
        let begun = Instant::now();
        while self.0.exists() && begun.elapsed() < Duration::from_secs(5) {
            reap();
            all(&self.0);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        self.remove();
    }
}
