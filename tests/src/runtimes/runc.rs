//! Scenarios with runc. Long because they are all here: a function each, and a line each in the table.

use super::Scenario;
use super::world::{Heard, World, goes_on, numbers, wait};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "runc_pipe",
        runtime: "runc",
        play: pipe,
    },
    Scenario {
        name: "runc_again_and_again",
        runtime: "runc",
        play: again,
    },
    Scenario {
        name: "runc_leave_running",
        runtime: "runc",
        play: leave_running,
    },
    Scenario {
        name: "runc_paused",
        runtime: "runc",
        play: paused,
    },
    Scenario {
        name: "runc_readonly",
        runtime: "runc",
        play: readonly,
    },
    Scenario {
        name: "runc_shared_cgroup_namespace",
        runtime: "runc",
        play: shared_cgroup_namespace,
    },
    Scenario {
        name: "runc_volume",
        runtime: "runc",
        play: volume,
    },
    Scenario {
        name: "runc_many",
        runtime: "runc",
        play: many,
    },
    Scenario {
        name: "runc_host_file",
        runtime: "runc",
        play: host_file,
    },
    Scenario {
        name: "runc_user_namespace",
        runtime: "runc",
        play: user_namespace,
    },
    Scenario {
        name: "runc_loopback",
        runtime: "runc",
        play: loopback,
    },
    Scenario {
        name: "runc_terminal",
        runtime: "runc",
        play: terminal,
    },
    Scenario {
        name: "runc_lazy",
        runtime: "runc",
        play: lazy,
    },
    Scenario {
        name: "runc_cgroup_modes",
        runtime: "runc",
        play: cgroup_modes,
    },
    Scenario {
        name: "bundle_alone",
        runtime: "runc",
        play: bundle_alone,
    },
    Scenario {
        name: "bundle_seccomp",
        runtime: "runc",
        play: bundle_seccomp,
    },
    Scenario {
        name: "crun_requests",
        runtime: "runc",
        play: crun_requests,
    },
    Scenario {
        name: "crun_image_under_runc",
        runtime: "runc",
        play: crun_image_under_runc,
    },
];

/// Counts, a number per line.
pub const COUNT: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";

/// A bundle and what is done with it.
pub struct Container<'a> {
    world: &'a World,
    bundle: PathBuf,
    id: String,
    rounds: std::cell::Cell<u32>,
}

impl<'a> Container<'a> {
    /// A bundle that runs this shell script; `change` may change its configuration.
    /// Writes the bundle.
    ///
    /// # Errors
    /// As for files, or runc refuses.
    pub fn new(world: &'a World, script: &str, change: impl FnOnce(&mut Value)) -> Result<Self> {
        let bundle = world.dir.join("bundle");
        fs::create_dir(&bundle)?;
        world.rootfs(&bundle.join("rootfs"))?;
        let c = Self {
            world,
            bundle,
            id: "c1".into(),
            rounds: std::cell::Cell::new(0),
        };
        world.run(Command::new("runc").arg("spec").current_dir(&c.bundle))?;
        let file = c.bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let process = &mut config["process"];
        process["terminal"] = json!(false);
        process["args"] = json!(["/bin/sh", "-c", script]);
        // raising limits takes a capability that not every machine gives its root
        process
            .as_object_mut()
            .context("process")?
            .remove("rlimits");
        config["root"]["readonly"] = json!(false);
        change(&mut config);
        fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
        Ok(c)
    }
    fn runc(&self) -> Command {
        let mut c = Command::new("runc");
        c.arg("--root").arg(self.world.dir.join("runc"));
        c.current_dir(&self.bundle);
        c
    }
    /// Starts it with this standard output.
    ///
    /// # Errors
    /// As for files, or runc refuses.
    pub fn start(&self, out: OwnedFd) -> Result<()> {
        let err = self.errors(&out)?;
        let mut c = self.runc();
        let status = c
            .args(["run", "-d", &self.id])
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .status()?;
        ensure!(status.success(), "{c:?}: {status}");
        Ok(())
    }
    /// Where errors go: to the same pipe; for a file as standard output, to nothing.
    fn errors(&self, out: &OwnedFd) -> Result<Stdio> {
        let is_file = File::from(out.try_clone()?).metadata()?.is_file();
        Ok(match is_file {
            true => Stdio::null(),
            false => out.try_clone()?.into(),
        })
    }
    /// Its root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }
    /// The bundle's folder.
    pub fn bundle(&self) -> PathBuf {
        self.bundle.clone()
    }
    /// The folder of the last checkpoint.
    pub fn images(&self) -> PathBuf {
        self.world.dir.join(format!("img-{}", self.rounds.get()))
    }
    /// Checkpoints it into a new folder.
    ///
    /// # Errors
    /// As for files, or runc refuses.
    pub fn checkpoint(&self, options: &[&str]) -> Result<()> {
        self.rounds.set(self.rounds.get() + 1);
        let img = self.images();
        let mut c = self.runc();
        c.arg("checkpoint").args(options);
        c.arg("--image-path")
            .arg(&img)
            .arg("--work-path")
            .arg(&img)
            .arg(&self.id);
        self.world.run(&mut c)?;
        for f in ["inventory.img", "stats-dump", "descriptors.json"] {
            ensure!(img.join(f).exists(), "{f} is not there");
        }
        Ok(())
    }
    /// Restores it from the last folder, with this standard output.
    ///
    /// # Errors
    /// As for files, or runc refuses.
    pub fn restore(&self, out: OwnedFd, options: &[&str]) -> Result<()> {
        let err = self.errors(&out)?;
        let img = self.images();
        let mut c = self.runc();
        c.args(["restore", "-d"]).args(options);
        c.arg("--image-path")
            .arg(&img)
            .arg("--work-path")
            .arg(&img)
            .arg(&self.id);
        let status = c.stdin(Stdio::null()).stdout(out).stderr(err).status()?;
        ensure!(status.success(), "{c:?}: {status}");
        ensure!(img.join("stats-restore").exists(), "no stats-restore");
        Ok(())
    }
    /// What runc says of it.
    ///
    /// # Errors
    /// As for files, or runc refuses.
    pub fn state(&self) -> Result<String> {
        self.world.run(self.runc().args(["state", &self.id]))
    }
    fn status(&self) -> Result<String> {
        let v: Value = serde_json::from_str(&self.state()?)?;
        Ok(v["status"].as_str().unwrap_or_default().into())
    }
    /// Runs something inside.
    fn exec(&self, script: &str) -> Result<String> {
        self.world.run(
            self.runc()
                .args(["exec", &self.id, "/bin/sh", "-c", script]),
        )
    }
    /// Ends and removes it.
    ///
    /// # Errors
    /// As for files, or runc refuses.
    pub fn delete(&self) -> Result<()> {
        self.world
            .run(self.runc().args(["delete", "-f", &self.id]))
            .map(drop)
    }
    /// Counts in a pipe, is frozen, and goes on counting in another, as often as asked.
    fn counts_on(&self, rounds: usize, dump: &[&str], restore: &[&str]) -> Result<()> {
        let (out, mut heard) = Heard::pipe()?;
        self.start(out)?;
        for _ in 0..rounds {
            heard.wait_numbers(5)?;
            self.checkpoint(dump)?;
            let before = heard.last_numbers()?;
            let (out, next) = Heard::pipe()?;
            self.restore(out, restore)?;
            let after = next.wait_numbers(3)?;
            goes_on(&before, &after)?;
            ensure!(self.status()? == "running", "it does not run");
            heard = next;
        }
        self.delete()
    }
}

fn pipe(w: &World) -> Result<()> {
    Container::new(w, COUNT, |_| {})?.counts_on(1, &[], &[])
}

/// Images of restored containers are images like any other.
fn again(w: &World) -> Result<()> {
    Container::new(w, COUNT, |_| {})?.counts_on(4, &[], &[])
}

fn leave_running(w: &World) -> Result<()> {
    let c = Container::new(w, COUNT, |_| {})?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    heard.wait_numbers(5)?;
    c.checkpoint(&["--leave-running"])?;
    ensure!(c.status()? == "running", "it does not run");
    let now = heard.numbers().len();
    goes_on(&heard.wait_numbers(now + 5)?, &[])?;
    c.delete()?;
    let (out, heard) = Heard::pipe()?;
    c.restore(out, &[])?;
    goes_on(&heard.wait_numbers(3)?, &[])?;
    c.delete()
}

/// A container that was frozen before stays frozen.
fn paused(w: &World) -> Result<()> {
    let c = Container::new(w, COUNT, |_| {})?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    heard.wait_numbers(5)?;
    w.run(c.runc().args(["pause", &c.id]))?;
    c.checkpoint(&["--leave-running"])?;
    ensure!(c.status()? == "paused", "it is {}", c.status()?);
    let then = heard.numbers();
    std::thread::sleep(std::time::Duration::from_millis(300));
    ensure!(heard.numbers() == then, "it went on counting");
    w.run(c.runc().args(["resume", &c.id]))?;
    goes_on(&heard.wait_numbers(then.len() + 3)?, &[])?;
    c.delete()?;
    let (out, next) = Heard::pipe()?;
    c.restore(out, &[])?;
    goes_on(&then, &next.wait_numbers(3)?)?;
    c.delete()
}

fn readonly(w: &World) -> Result<()> {
    let c = Container::new(w, COUNT, |config| config["root"]["readonly"] = json!(true))?;
    c.counts_on(1, &[], &[])
}

/// In the control group namespace of whoever starts it; the others have one of their own.
fn shared_cgroup_namespace(w: &World) -> Result<()> {
    let c = Container::new(w, COUNT, |config| {
        if let Some(all) = config["linux"]["namespaces"].as_array_mut() {
            all.retain(|n| n["type"] != "cgroup");
        }
    })?;
    c.counts_on(2, &[], &[])
}

/// A bind mount of the host with a file that stays open for appending.
fn volume(w: &World) -> Result<()> {
    let host = w.dir.join("volume");
    fs::create_dir(&host)?;
    let script = "exec 5>>/data/log; i=0; while :; do echo $i >&5; i=$((i+1)); sleep 0.05; done";
    let c = Container::new(w, script, |config| {
        if let Some(all) = config["mounts"].as_array_mut() {
            all.push(json!({"destination": "/data", "type": "bind", "source": host, "options": ["bind", "rw"]}));
        }
    })?;
    let log = host.join("log");
    let count = |least: usize| {
        wait("the log to grow", || {
            let n = numbers(&fs::read_to_string(&log).unwrap_or_default());
            Ok((n.len() >= least).then_some(n))
        })
    };
    let (out, _heard) = Heard::pipe()?;
    c.start(out)?;
    let before = count(5)?.len();
    c.checkpoint(&[])?;
    let (out, _heard) = Heard::pipe()?;
    c.restore(out, &[])?;
    goes_on(&count(before + 5)?, &[])?;
    c.delete()
}

/// Sixty processes, some of them in pipelines.
fn many(w: &World) -> Result<()> {
    let script = "for n in $(seq 30); do (while :; do sleep 0.2; done | cat) & done; i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let c = Container::new(w, script, |_| {})?;
    c.counts_on(1, &[], &[])
}

/// Standard output is a file of the host, which the container cannot reach by a path.
fn host_file(w: &World) -> Result<()> {
    let c = Container::new(w, COUNT, |_| {})?;
    let at = |name: &str| w.dir.join(name);
    let count = |name: &str, least: usize| {
        wait("the file to grow", || {
            let n = numbers(&fs::read_to_string(at(name)).unwrap_or_default());
            Ok((n.len() >= least).then_some(n))
        })
    };
    c.start(File::create(at("out-1"))?.into())?;
    count("out-1", 5)?;
    c.checkpoint(&[])?;
    let before = numbers(&fs::read_to_string(at("out-1"))?);
    c.restore(File::create(at("out-2"))?.into(), &[])?;
    goes_on(&before, &count("out-2", 3)?)?;
    c.delete()
}

/// Root inside is nobody outside.
fn user_namespace(w: &World) -> Result<()> {
    let c = Container::new(w, COUNT, |config| {
        let map = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        if let Some(all) = config["linux"]["namespaces"].as_array_mut() {
            all.push(json!({"type": "user"}));
        }
    })?;
    // the container's root must reach its root directory
    w.run(
        Command::new("chown")
            .args(["-R", "300000:300000"])
            .arg(c.bundle.join("rootfs")),
    )?;
    for dir in [&w.dir, &c.bundle] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    c.counts_on(1, &[], &[])?;
    Ok(())
}

/// A connection over the loopback device of a network namespace that runc made.
fn loopback(w: &World) -> Result<()> {
    let script = "(while :; do nc -l -p 7000 -e /bin/cat; done) & sleep 0.3; \
                  (i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done) | nc 127.0.0.1 7000";
    let c = Container::new(w, script, |_| {})?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    heard.wait_numbers(5)?;
    c.checkpoint(&["--tcp-established"])?;
    let before = heard.last_numbers()?;
    let (out, next) = Heard::pipe()?;
    c.restore(out, &["--tcp-established"])?;
    let after = next.wait_numbers(5)?;
    goes_on(&before, &after)?;
    let lo = c.exec("ip addr show lo")?;
    ensure!(
        lo.contains("UP") && lo.contains("127.0.0.1"),
        "lo is not up: {lo}"
    );
    c.delete()
}

/// A shell on a terminal of its own: window size and variables are as they were, and it answers on the new terminal.
fn terminal(w: &World) -> Result<()> {
    use std::io::Write;
    let c = Container::new(w, "exec sh", |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 33, "width": 99});
    })?;
    let socket = w.dir.join("console");
    let run = |c: &mut Command| -> Result<File> {
        let _ = fs::remove_file(&socket);
        let listener = std::os::unix::net::UnixListener::bind(&socket)?;
        c.arg("--console-socket").arg(&socket).arg("c1");
        w.run(c)?;
        received(&listener.accept()?.0)
    };
    let mut one = run(c.runc().args(["run", "-d"]))?;
    let heard = Heard::of(one.try_clone()?);
    one.write_all(b"X=kept; stty rows 33 cols 99; echo rea''dy\n")?;
    heard.wait_text("ready")?;
    c.checkpoint(&[])?;
    let img = c.images();
    let mut restore = c.runc();
    restore
        .args(["restore", "-d", "--image-path"])
        .arg(&img)
        .arg("--work-path")
        .arg(&img);
    let mut two = run(&mut restore)?;
    let heard = Heard::of(two.try_clone()?);
    two.write_all(b"echo \"=$X=\"; stty size\n")?;
    heard.wait_text("=kept=")?;
    heard.wait_text("33 99")?;
    c.delete()
}

/// A file that came over a socket.
fn received(from: &std::os::unix::net::UnixStream) -> Result<File> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::AsRawFd;
    let mut b = [0; 4096];
    let mut room = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut slices = [std::io::IoSliceMut::new(&mut b)];
    let got = recvmsg::<()>(
        from.as_raw_fd(),
        &mut slices,
        Some(&mut room),
        MsgFlags::empty(),
    )?;
    for m in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = m
            && let [fd] = fds[..]
        {
            // a duplicate: a received number cannot be owned without unsafe code
            let file =
                stasis_engine::inherited::descriptor(fd).map_err(|e| anyhow::anyhow!("{e}"))?;
            nix::unistd::close(fd)?;
            return Ok(file.into());
        }
    }
    anyhow::bail!("no descriptor came")
}

/// By its bundle, without its runtime: `stasis checkpoint` and `stasis restore`, with hooks.
fn bundle_alone(w: &World) -> Result<()> {
    let c = Container::new(w, COUNT, |_| {})?;
    let hooks = w.dir.join("hooks.d");
    fs::create_dir(&hooks)?;
    let told = w.dir.join("told");
    let script = format!("cat >>{0}; echo >>{0}", told.display());
    let hook = json!({"version": "1.0.0", "hook": {"path": "/bin/sh", "args": ["sh", "-c", script]},
        "when": {"always": true}, "stages": ["post-dump", "setup-namespaces", "post-resume"]});
    fs::write(hooks.join("tell.json"), hook.to_string())?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    heard.wait_numbers(5)?;
    let state = w.dir.join("state.json");
    fs::write(&state, w.run(c.runc().args(["state", "c1"]))?)?;
    let stasis = fs::canonicalize(w.dir.join("bin/criu"))?;
    let verb = |name: &str| {
        let mut v = Command::new(&stasis);
        v.arg(name)
            .arg("--bundle")
            .arg(&c.bundle)
            .arg("-D")
            .arg(w.dir.join("img"));
        v.arg("--hooks-dir").arg(&hooks);
        v
    };
    w.run(verb("checkpoint").arg("--state").arg(&state))?;
    let before = heard.last_numbers()?;
    c.delete()?;
    let (out, next) = Heard::pipe()?;
    let pidfile = w.dir.join("pid");
    let status = verb("restore")
        .args(["--id", "c2", "--detach", "--pidfile"])
        .arg(&pidfile)
        .stdin(Stdio::null())
        .stderr(File::create(w.dir.join("said"))?)
        .stdout(out)
        .status()?;
    // beside the numbers, as it could come between one and the end of its line
    let said = fs::read_to_string(w.dir.join("said"))?;
    ensure!(status.success(), "restore: {status}: {said}");
    goes_on(&before, &next.wait_numbers(3)?)?;
    let stages: Vec<String> = fs::read_to_string(&told)?
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .map(|v| format!("{} {}", v["annotations"]["org.stasis.stage"], v["id"]))
        .collect();
    let want = [
        "post-dump\" \"c1",
        "setup-namespaces\" \"c2",
        "post-resume\" \"c2",
    ]
    .map(|s| format!("\"{s}\""));
    ensure!(stages == want, "{stages:?}");
    let pid: i32 = fs::read_to_string(&pidfile)?.trim().parse()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)?;
    Ok(())
}

/// The filter of a restored container is its bundle's: here another one than at the dump, which forbids what that allowed and
/// allows what that forbade.
fn bundle_seccomp(w: &World) -> Result<()> {
    let forbid = |calls: &[&str]| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]})
    };
    // 1: only the second may be done; 2: only the first
    let script = "while :; do n=0; busybox chmod 1777 /dev/shm 2>/dev/null && n=$((n+2)); \
                  busybox mkdir /dev/shm/d 2>/dev/null && busybox rmdir /dev/shm/d && n=$((n+1)); echo $n; sleep 0.05; done";
    let (modes, folders) = (["chmod", "fchmodat", "fchmodat2"], ["mkdir", "mkdirat"]);
    let c = Container::new(w, script, |v| {
        v["linux"]["seccomp"] = forbid(&modes);
    })?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    let before = heard.wait_numbers(5)?;
    ensure!(before.iter().all(|n| *n == 1), "before: {before:?}");
    let state = w.dir.join("state.json");
    fs::write(&state, w.run(c.runc().args(["state", "c1"]))?)?;
    let stasis = fs::canonicalize(w.dir.join("bin/criu"))?;
    let verb = |name: &str| {
        let mut v = Command::new(&stasis);
        v.arg(name).arg("--bundle").arg(&c.bundle);
        v.arg("-D").arg(w.dir.join("img"));
        v
    };
    w.run(verb("checkpoint").arg("--state").arg(&state))?;
    c.delete()?;
    let config = c.bundle.join("config.json");
    let mut v: Value = serde_json::from_slice(&fs::read(&config)?)?;
    v["linux"]["seccomp"] = forbid(&folders);
    fs::write(&config, v.to_string())?;
    let (out, next) = Heard::pipe()?;
    let pidfile = w.dir.join("pid");
    let status = verb("restore")
        .args(["--id", "c2", "--detach", "--pidfile"])
        .arg(&pidfile)
        .stdin(Stdio::null())
        .stderr(File::create(w.dir.join("said"))?)
        .stdout(out)
        .status()?;
    // beside the numbers, as it could come between one and the end of its line
    let said = fs::read_to_string(w.dir.join("said"))?;
    ensure!(status.success(), "restore: {status}: {said}");
    // the round that was under way when it was frozen may have a foot in both
    let after = next.wait_numbers(6)?;
    ensure!(after[1..].iter().all(|n| *n == 2), "after: {after:?}");
    let pid = fs::read_to_string(&pidfile)?.trim().to_string();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(
        status.lines().any(|l| l == "Seccomp_filters:\t1"),
        "its filters: {status}"
    );
    let pid = nix::unistd::Pid::from_raw(pid.parse()?);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL)?;
    Ok(())
}

/// Memory stays with the frozen container until the other one asks for it; only then does `runc checkpoint` end.
fn lazy(w: &World) -> Result<()> {
    const PORT: &str = "27000";
    let c = Container::new(w, COUNT, |_| {})?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    heard.wait_numbers(5)?;
    let (img, work) = (w.dir.join("img"), w.dir.join("work"));
    fs::create_dir(&work)?;
    let folders = |c: &mut Command| {
        c.arg("--image-path")
            .arg(&img)
            .arg("--work-path")
            .arg(&work);
    };
    let mut dump = c.runc();
    dump.args(["checkpoint", "--lazy-pages", "--status-fd", "1"])
        .args(["--page-server", &format!("127.0.0.1:{PORT}")]);
    folders(&mut dump);
    let (ready, told) = Heard::pipe()?;
    let mut dump = dump
        .arg("c1")
        .stdin(Stdio::null())
        .stdout(ready)
        .stderr(File::create(w.dir.join("checkpoint.txt"))?)
        .spawn()?;
    told.wait_text("\0")
        .with_context(|| fs::read_to_string(w.dir.join("checkpoint.txt")).unwrap_or_default())?;
    let mut daemon = Command::new("criu");
    daemon
        .args(["lazy-pages", "--page-server", "--address", "127.0.0.1"])
        .args(["--port", PORT, "-o", "restore.log", "-v4", "-D"])
        .arg(&img)
        .arg("-W")
        .arg(&work);
    let mut daemon = daemon.stdin(Stdio::null()).spawn()?;
    wait("the daemon", || {
        Ok(work.join("lazy-pages.socket").exists().then_some(()))
    })?;
    let (out, next) = Heard::pipe()?;
    let mut restore = c.runc();
    restore.args(["restore", "-d", "--lazy-pages"]);
    folders(&mut restore);
    let status = restore
        .arg("c2")
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .status()?;
    ensure!(status.success(), "restore: {status}: {}", next.text());
    let after = next.wait_numbers(3)?;
    for (what, child) in [("the daemon", &mut daemon), ("runc checkpoint", &mut dump)] {
        let status = wait(what, || Ok(child.try_wait()?))?;
        ensure!(status.success(), "{what}: {status}");
    }
    goes_on(&heard.last_numbers()?, &after)?;
    w.run(c.runc().args(["delete", "-f", "c2"])).map(drop)
}

/// Whatever the mode: the container is where runc put it, and no group is left when it is gone.
fn cgroup_modes(w: &World) -> Result<()> {
    for mode in ["soft", "full", "strict"] {
        let place = w.dir.join(mode);
        fs::create_dir(&place)?;
        let w = World::new(&place)?;
        let c = Container::new(&w, COUNT, |_| {})?;
        let (out, heard) = Heard::pipe()?;
        c.start(out)?;
        heard.wait_numbers(3)?;
        let dump = ["--manage-cgroups-mode", mode];
        c.checkpoint(&dump).with_context(|| mode.to_owned())?;
        let before = heard.last_numbers()?;
        let (out, next) = Heard::pipe()?;
        c.restore(out, &dump)
            .with_context(|| format!("{mode}: {}", next.text()))?;
        goes_on(&before, &next.wait_numbers(3)?)?;
        let state: Value = serde_json::from_str(&w.run(c.runc().args(["state", "c1"]))?)?;
        let group = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"]))?;
        ensure!(group.trim().ends_with("/c1"), "{mode}: it is in {group}");
        c.delete()?;
        ensure!(
            !PathBuf::from("/sys/fs/cgroup/c1").exists(),
            "{mode}: a group is left"
        );
    }
    Ok(())
}

/// Files that crun hides, which are external mounts to it.
const MASKED: [&str; 4] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
];

/// Dumps a container as crun asks for it, and removes it. Gives the folder, what its standard files were, and what it counted.
fn dumped_as_crun_does(w: &World, c: &Container) -> Result<(PathBuf, Vec<String>, Vec<u64>)> {
    use crate::engine::Engine;
    use crate::rpc::{Manner, Worker, crun_dump, ext, request};
    use stasis_proto::pb::CriuReqType;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    heard.wait_numbers(5)?;
    let state: Value = serde_json::from_str(&w.run(c.runc().args(["state", "c1"]))?)?;
    let pid = state["pid"].as_i64().context("pid")? as i32;
    let stdio: Vec<String> = (0..3)
        .map(|n| {
            Ok(fs::read_link(format!("/proc/{pid}/fd/{n}"))?
                .display()
                .to_string())
        })
        .collect::<Result<_>>()?;
    let folder = w.dir.join("img");
    fs::create_dir(&folder)?;
    let dir = File::open(&folder)?;
    let engine = Engine::at(w.dir.join("bin/criu"))?;
    let mut worker = Worker::start(&engine, Manner::GoCriu, None)?;
    // below podman crun names a root that does not exist
    let mut opts = crun_dump(&dir, pid, "/no/such/root", Some("/sys/fs/cgroup/c1"));
    opts.ext_mnt = MASKED.map(|m| ext(m, m)).to_vec();
    let r = worker.ask(&request(CriuReqType::Dump, Some(opts)))?;
    ensure!(r.success, "dump: {r:?}");
    ensure!(
        worker.told.is_empty(),
        "told without being asked: {:?}",
        worker.told
    );
    ensure!(worker.end()? == 0, "the worker failed");
    let before = heard.last_numbers()?;
    c.delete()?;
    Ok((folder, stdio, before))
}

/// What crun asks of libcriu, sent to a container that runc made: Debian's crun cannot ask itself.
fn crun_requests(w: &World) -> Result<()> {
    use crate::engine::Engine;
    use crate::rpc::{Manner, Worker, crun_restore, ext, request};
    use stasis_proto::pb::CriuReqType;
    let c = Container::new(w, COUNT, |_| {})?;
    let (folder, stdio, before) = dumped_as_crun_does(w, &c)?;
    let dir = File::open(&folder)?;
    let engine = Engine::at(w.dir.join("bin/criu"))?;
    let root = c.bundle.join("criu-root");
    fs::create_dir(&root)?;
    let none: Option<&str> = None;
    nix::mount::mount(
        Some(&c.bundle.join("rootfs")),
        &root,
        none,
        nix::mount::MsFlags::MS_BIND | nix::mount::MsFlags::MS_REC,
        none,
    )?;
    fs::create_dir_all("/sys/fs/cgroup/c2")?;
    let (out, next) = Heard::pipe()?;
    let files = [Stdio::null(), out.try_clone()?.into(), out.into()];
    let mut worker = Worker::start(&engine, Manner::GoCriu, Some(files))?;
    let mut opts = crun_restore(&dir, &root, &stdio);
    // crun asks by the names its dump gave: of masked files that is now /dev/null
    opts.ext_mnt = MASKED.map(|m| ext(m, "/dev/null")).to_vec();
    opts.cg_root = vec![stasis_proto::pb::CgroupRoot {
        ctrl: None,
        path: "/c2".into(),
    }];
    let r = worker.ask(&request(CriuReqType::Restore, Some(opts)))?;
    ensure!(r.success, "restore: {r:?}");
    let pid = r.restore.context("no pid")?.pid;
    goes_on(&before, &next.wait_numbers(3)?)?;
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(group.trim().ends_with("/c2"), "it is in {group}");
    let parent = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let own = format!("PPid:\t{}\n", std::process::id());
    ensure!(parent.contains(&own), "it is no child of who asked");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)?;
    Ok(())
}

/// An image that crun has made knows masked files by names which runc never gives.
fn crun_image_under_runc(w: &World) -> Result<()> {
    let c = Container::new(w, COUNT, |_| {})?;
    let (folder, stdio, before) = dumped_as_crun_does(w, &c)?;
    // both runtimes write it
    fs::write(folder.join("descriptors.json"), serde_json::to_vec(&stdio)?)?;
    fs::rename(folder, c.images())?;
    let (out, next) = Heard::pipe()?;
    c.restore(out, &[])
        .with_context(|| format!("restore: {}", next.text()))?;
    goes_on(&before, &next.wait_numbers(3)?)?;
    let seen = c.exec("cat /proc/keys /proc/timer_list; ls -l /proc/keys")?;
    ensure!(seen.contains("1,   3"), "it is not masked: {seen}");
    c.delete()
}
