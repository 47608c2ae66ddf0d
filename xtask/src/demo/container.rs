//! The second act: a container of runc's, frozen and brought back by runc's own commands, with stasis under the name `criu`.
use super::{last, numbers, size, wait_for};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where everything of the demo is: a tmpfs of the private mount namespace.
struct Place {
    dir: PathBuf,
    name: String,
}

/// Plays it in `dir`.
///
/// # Errors
/// Whatever goes wrong, and a count with a gap.
pub fn story(dir: &Path, stasis: &Path) -> Result<()> {
    let p = Place {
        dir: dir.join("container"),
        name: format!("stasis-demo-{}", std::process::id()),
    };
    p.build(stasis)?;
    let played = p.play();
    // its cgroup lives in the host's tree: it goes on every way out
    let _ = p.runc(&["delete", "--force", &p.name]).status();
    let _ = fs::remove_dir(p.cgroup()?);
    played
}

impl Place {
    fn runc(&self, args: &[&str]) -> Command {
        let mut c = Command::new("runc");
        let path = std::env::var("PATH").unwrap_or_default();
        c.env(
            "PATH",
            format!("{}:{path}:/usr/sbin:/sbin", self.dir.join("bin").display()),
        )
        .arg("--root")
        .arg(self.dir.join("state"))
        .args(args)
        .stdin(Stdio::null());
        c
    }
    /// The cgroup below the demo's own.
    fn cgroup_path() -> Result<String> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let v2 = own.lines().find_map(|l| l.strip_prefix("0::"));
        let at = v2.context("no cgroup v2 on this machine")?;
        Ok(at.trim_end_matches('/').to_string())
    }
    fn cgroup(&self) -> Result<PathBuf> {
        let rel = format!("{}/{}", Self::cgroup_path()?, self.name);
        Ok(Path::new("/sys/fs/cgroup").join(rel.trim_start_matches('/')))
    }
    fn build(&self, stasis: &Path) -> Result<()> {
        let none: Option<&str> = None;
        // runc wants one tree of cgroups; here, in the private mount namespace, it gets that
        while umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH).is_ok() {}
        mount(
            Some("cgroup2"),
            "/sys/fs/cgroup",
            Some("cgroup2"),
            MsFlags::empty(),
            none,
        )
        .context("cgroup2 on /sys/fs/cgroup")?;
        let root = self.dir.join("rootfs");
        for d in ["bin", "proc", "sys", "dev", "tmp", "data"] {
            fs::create_dir_all(root.join(d))?;
        }
        fs::create_dir_all(self.dir.join("data"))?;
        fs::create_dir_all(self.dir.join("bin"))?;
        fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static")?;
        for tool in ["sh", "sleep"] {
            symlink("busybox", root.join("bin").join(tool))?;
        }
        symlink(stasis, self.dir.join("bin/criu"))?;
        self.say("runc spec", self.runc(&["spec"]).current_dir(&self.dir))?;
        let file = self.dir.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let p = &mut spec["process"];
        p["terminal"] = json!(false);
        p["args"] = json!([
            "sh",
            "-c",
            "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done >> /data/count"
        ]);
        // raising limits needs a right that is not always there
        if let Some(p) = p.as_object_mut() {
            p.remove("rlimits");
        }
        let mounts = spec["mounts"]
            .as_array_mut()
            .context("mounts in config.json")?;
        mounts.push(json!({
            "destination": "/data", "type": "bind", "source": self.dir.join("data"), "options": ["bind", "rw"],
        }));
        spec["linux"]["cgroupsPath"] = json!(format!("{}/{}", Self::cgroup_path()?, self.name));
        fs::write(&file, serde_json::to_vec_pretty(&spec)?)?;
        Ok(())
    }
    /// Runs a command as a person would; gives how long it took.
    fn say(&self, shown: &str, c: &mut Command) -> Result<Duration> {
        println!("$ {shown}");
        let start = Instant::now();
        let out = c
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()
            .context("runc")?;
        if !out.success() {
            for log in ["dump.log", "restore.log"] {
                let text = fs::read_to_string(self.dir.join("work").join(log)).unwrap_or_default();
                for l in text.lines().filter(|l| l.contains("Error")).take(5) {
                    eprintln!("  {log}: {l}");
                }
            }
            bail!("{shown}: {out}");
        }
        Ok(start.elapsed())
    }
    fn pid(&self) -> Result<u64> {
        let out = self.runc(&["state", &self.name]).output()?;
        let state: Value = serde_json::from_slice(&out.stdout).context("runc state")?;
        state["pid"].as_u64().context("no pid in runc's state")
    }
    fn play(&self) -> Result<()> {
        let (name, count) = (&self.name, self.dir.join("data/count"));
        let (images, work) = (self.dir.join("images"), self.dir.join("work"));
        let (i, w) = (images.display().to_string(), work.display().to_string());
        self.say(
            "runc run -d counter",
            self.runc(&["run", "-d", name]).current_dir(&self.dir),
        )?;
        wait_for(&count, 10)?;
        println!(
            "container counter runs as process {}, count {}",
            self.pid()?,
            last(&count)?
        );
        let took = self.say(
            "runc checkpoint --image-path images counter",
            &mut self.runc(&["checkpoint", "--image-path", &i, "--work-path", &w, name]),
        )?;
        let at = last(&count)?;
        std::thread::sleep(Duration::from_millis(300));
        if last(&count)? != at {
            bail!("something still counts after the checkpoint");
        }
        println!(
            "  {:.0} ms in all, frozen for {:.1} ms, {} of images; the container is gone, the count stays at {at}",
            took.as_secs_f64() * 1e3,
            frozen(&work)?,
            size(&images)?
        );
        let took = self.say(
            "runc restore -d --image-path images counter",
            self.runc(&["restore", "-d", "--image-path", &i, "--work-path", &w, name])
                .current_dir(&self.dir),
        )?;
        wait_for(&count, at + 10)?;
        let tail: Vec<u64> = numbers(&count)?
            .into_iter()
            .filter(|n| *n + 3 > at)
            .take(6)
            .collect();
        println!(
            "  {:.0} ms in all; container counter runs as process {}, and counts on: {tail:?}",
            took.as_secs_f64() * 1e3,
            self.pid()?
        );
        if tail.windows(2).any(|w| w[1] != w[0] + 1) {
            bail!("the count has a gap or a double");
        }
        Ok(())
    }
}

/// Milliseconds, from the statistics that runtimes read.
fn frozen(work: &Path) -> Result<f64> {
    let dir = stasis_proto::ImageDir::open(work)?;
    let stats: stasis_proto::pb::StatsEntry =
        dir.read_one(&stasis_proto::Kind::StatsDump.file())?;
    let dump = stats.dump.context("stats-dump is of no dump")?;
    Ok(f64::from(dump.frozen_time) / 1e3)
}
