//! A container moves from one host to another, by its bundles and without its runtime.
use super::Scenario;
use super::runc::Container;
use super::world::{Heard, World, goes_on, wait};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// All of them.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "bundle_migrates",
    runtime: "runc",
    play: bundle_migrates,
}];

/// Counts, and has some memory whose loss it would tell.
const HEAVY: &str = "x=$(seq 1 100000); l=${#x}; i=0; while :; do \
    [ ${#x} = $l ] || echo lost; echo $i; i=$((i+1)); sleep 0.05; done";

/// Another host: network and mounts of its own, joined to this one by a pair of devices. It ends with the scenario.
struct Other(Child);

impl Other {
    fn new(w: &World) -> Result<Self> {
        let words = ["-n", "-m", "--propagation", "private", "sleep", "1000"];
        let child = Command::new("unshare").args(words).spawn()?;
        let other = Self(child);
        let ours = fs::read_link("/proc/self/ns/mnt")?;
        let theirs = format!("/proc/{}/ns/mnt", other.0.id());
        wait("another host", || {
            Ok(fs::read_link(&theirs)
                .is_ok_and(|n| n != ours)
                .then_some(()))
        })?;
        let pid = other.0.id().to_string();
        let ip = |words: &str| w.run(Command::new("ip").args(words.split(' '))).map(drop);
        ip(&format!("link add va type veth peer name vb netns {pid}"))?;
        ip("addr add 10.79.1.1/24 dev va")?;
        ip("link set va up")?;
        for words in [
            "addr add 10.79.1.2/24 dev vb",
            "link set vb up",
            "link set lo up",
        ] {
            w.run(other.on("ip").args(words.split(' ')))?;
        }
        Ok(other)
    }
    /// A command there.
    fn on(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut c = Command::new("nsenter");
        c.args(["-t", &self.0.id().to_string(), "-n", "-m"])
            .arg(program);
        c
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bundle_migrates(w: &World) -> Result<()> {
    let c = Container::new(w, HEAVY, |_| {})?;
    let other = Other::new(w)?;
    // the other host has a bundle of its own, elsewhere, and not this one
    let bundle = w.dir.join("other");
    w.run(Command::new("cp").arg("-a").arg(c.bundle()).arg(&bundle))?;
    let hide = ["-t", "tmpfs", "none"];
    w.run(other.on("mount").args(hide).arg(c.bundle()))?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    heard.wait_numbers(5)?;
    let state = w.dir.join("state.json");
    fs::write(&state, c.state()?)?;
    let stasis = fs::canonicalize(w.dir.join("bin/criu"))?;
    let none = w.dir.join("none");
    fs::create_dir(&none)?;
    let (out, next) = Heard::pipe()?;
    let mut receive = other.on(&stasis);
    receive.args([
        "receive",
        "--listen",
        "10.79.1.2:7766",
        "--id",
        "c2",
        "--hooks-dir",
    ]);
    let pidfile = w.dir.join("pid");
    let mut receive = receive
        .arg(&none)
        .arg("--bundle")
        .arg(&bundle)
        .arg("--pidfile")
        .arg(&pidfile)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(File::create(w.dir.join("receive.txt"))?)
        .spawn()?;
    let said = || fs::read_to_string(w.dir.join("receive.txt")).unwrap_or_default();
    next.wait_text("listening").with_context(said)?;
    let mut migrate = Command::new(&stasis);
    migrate.args([
        "migrate",
        "--to",
        "10.79.1.2:7766",
        "--max-downtime",
        "10000",
    ]);
    migrate
        .arg("--bundle")
        .arg(c.bundle())
        .arg("--state")
        .arg(&state);
    migrate.arg("--hooks-dir").arg(&none);
    let told = w.run(&mut migrate).with_context(said)?;
    ensure!(told.contains("runs at 10.79.1.2:7766"), "{told}");
    let status = receive.wait()?;
    ensure!(status.success(), "receive: {status}: {}", said());
    let before = heard.last_numbers()?;
    goes_on(&before, &next.wait_numbers(3)?)?;
    ensure!(!next.text().contains("lost"), "it lost memory");
    let pid = fs::read_to_string(&pidfile)?.trim().to_string();
    let root = fs::read_link(format!("/proc/{pid}/root"))?;
    ensure!(root == Path::new("/"), "its root is {}", root.display());
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(
        group.trim().ends_with("/c2"),
        "its control group is {group}"
    );
    let pid = nix::unistd::Pid::from_raw(pid.parse()?);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL)?;
    c.delete()
}
