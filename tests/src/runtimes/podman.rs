//! Scenarios with podman, over runc (Debian's crun has no checkpoints), without a network of the host's.
//!
//! Long because it has one function per scenario.

use super::Scenario;
use super::world::{Heard, World, counts_on, goes_on, numbers, wait};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// All of them.
#[rustfmt::skip] // one line per scenario
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "podman_checkpoint", runtime: "podman", play: checkpoint },
    Scenario { name: "podman_leave_running", runtime: "podman", play: leave_running },
    Scenario { name: "podman_export", runtime: "podman", play: export },
    Scenario { name: "podman_volume", runtime: "podman", play: volume },
    Scenario { name: "podman_image", runtime: "podman", play: image },
    Scenario { name: "podman_user_namespace", runtime: "podman", play: user_namespace },
    Scenario { name: "podman_again", runtime: "podman", play: again },
    Scenario { name: "podman_ten_times", runtime: "podman", play: ten_times },
    Scenario { name: "podman_file_locks", runtime: "podman", play: file_locks },
    Scenario { name: "podman_terminal", runtime: "podman", play: terminal },
    Scenario { name: "podman_ignore", runtime: "podman", play: ignore },
    Scenario { name: "podman_addresses", runtime: "podman", play: addresses },
    Scenario { name: "podman_pod", runtime: "podman", play: pod },
    Scenario { name: "podman_pre_checkpoint", runtime: "podman", play: pre_checkpoint },
    Scenario { name: "podman_tcp_silent", runtime: "podman", play: tcp_silent },
    Scenario { name: "podman_tcp_busy", runtime: "podman", play: tcp_busy },
    Scenario { name: "podman_tcp_import", runtime: "podman", play: tcp_import },
    Scenario { name: "podman_tcp_neighbours", runtime: "podman", play: tcp_neighbours },
];

/// Counts, a number per line.
pub const COUNT: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";

/// What podman is told of this world: no systemd, no limits that only a full root can set.
pub const CONF: &str = "\
[containers]
pids_limit=0
default_ulimits=[\"nofile=4096:4096\",\"nproc=32768:32768\"]
log_driver=\"k8s-file\"
[engine]
cgroup_manager=\"cgroupfs\"
events_logger=\"file\"
runtime=\"runc\"
[network]
network_backend=\"netavark\"
";

/// A podman with an image of busybox.
pub struct Podman<'a> {
    world: &'a World,
    conf: PathBuf,
    storage: PathBuf,
}

impl<'a> Podman<'a> {
    /// In this world.
    ///
    /// # Errors
    /// podman does not work here.
    pub fn new(world: &'a World) -> Result<Self> {
        let conf = world.dir.join("containers.conf");
        fs::write(&conf, CONF)?;
        let storage = world.dir.join("storage.conf");
        let root = world.dir.join("storage/root").display().to_string();
        let text = format!(
            "[storage]\ndriver=\"overlay\"\nrunroot=\"/run/containers\"\ngraphroot={root:?}\n"
        );
        fs::write(&storage, text)?;
        let p = Self {
            world,
            conf,
            storage,
        };
        let rootfs = world.dir.join("rootfs");
        world.rootfs(&rootfs)?;
        p.import(&rootfs, "bb:1")?;
        Ok(p)
    }
    /// Makes an image of a root file system.
    ///
    /// # Errors
    /// As for files.
    pub fn import(&self, rootfs: &Path, image: &str) -> Result<()> {
        let tar = self.world.dir.join("image.tar");
        let mut c = Command::new("tar");
        c.arg("-C").arg(rootfs).arg("-cf").arg(&tar).arg(".");
        self.world.run(&mut c)?;
        self.run(&["import", &tar.display().to_string(), image])
            .map(drop)
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new("podman");
        c.env("CONTAINERS_CONF", &self.conf)
            .env("CONTAINERS_STORAGE_CONF", &self.storage)
            .args(args);
        c
    }
    /// `podman ARGS`.
    ///
    /// # Errors
    /// It failed.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.world.run(&mut self.command(args))
    }
    /// Starts a container of this shell script.
    fn start(&self, name: &str, options: &[&str], script: &str) -> Result<()> {
        let mut args = vec!["run", "-d", "--network", "none", "--name", name];
        args.extend(options);
        args.extend(["bb:1", "/bin/sh", "-c", script]);
        self.run(&args).map(drop)
    }
    /// What a container has counted so far.
    fn counted(&self, name: &str, least: usize) -> Result<Vec<u64>> {
        wait("the container to count", || {
            let n = numbers(&self.run(&["logs", name])?);
            Ok((n.len() >= least).then_some(n))
        })
        .with_context(|| self.run(&["logs", name]).unwrap_or_default())
    }
    fn counts_on(&self, name: &str, last: u64) -> Result<()> {
        counts_on(last, || Ok(numbers(&self.run(&["logs", name])?)))
            .with_context(|| self.run(&["logs", name]).unwrap_or_default())
    }
    /// The container's address on the bridge.
    ///
    /// # Errors
    /// There is no such container.
    pub fn address(&self, name: &str) -> Result<String> {
        let form = "{{.NetworkSettings.IPAddress}}";
        let ip = self.run(&["inspect", "--format", form, name])?;
        Ok(ip.trim().into())
    }
    /// No network lock is left behind.
    ///
    /// # Errors
    /// One is.
    pub fn no_locks(&self) -> Result<()> {
        if crate::engine::foreign() {
            return Ok(());
        }
        let mut c = Command::new("bash");
        c.args(["-c", "exec -a stasis \"$0\" netlock list"]);
        let left = self.world.run(c.arg(self.world.dir.join("bin/criu")))?;
        ensure!(left.is_empty(), "network locks are left: {left}");
        Ok(())
    }
    fn status(&self, name: &str) -> Result<String> {
        Ok(self
            .run(&["inspect", "--format", "{{.State.Status}}", name])?
            .trim()
            .into())
    }
}

fn checkpoint(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start("c1", &[], COUNT)?;
    p.counted("c1", 5)?;
    let told = p.run(&["container", "checkpoint", "--keep", "--print-stats", "c1"])?;
    ensure!(told.contains("frozen_time"), "no statistics: {told}");
    ensure!(p.status("c1")? == "exited", "it is {}", p.status("c1")?);
    let before = p.counted("c1", 5)?.len();
    let told = p.run(&["container", "restore", "--keep", "--print-stats", "c1"])?;
    ensure!(told.contains("restore_time"), "no statistics: {told}");
    goes_on(&p.counted("c1", before + 5)?, &[])
}

/// Images of restored containers are images like any other.
fn again(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start("c1", &[], COUNT)?;
    for round in 1..=3 {
        let before = p.counted("c1", 4 * round)?.len();
        p.run(&["container", "checkpoint", "c1"])?;
        p.run(&["container", "restore", "c1"])?;
        goes_on(&p.counted("c1", before + 3)?, &[])?;
    }
    Ok(())
}

fn leave_running(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start("c1", &[], COUNT)?;
    let before = p.counted("c1", 5)?.len();
    let tar = w.dir.join("a.tar");
    p.run(&[
        "container",
        "checkpoint",
        "--leave-running",
        "--export",
        &tar.display().to_string(),
        "c1",
    ])?;
    ensure!(p.status("c1")? == "running", "it is {}", p.status("c1")?);
    goes_on(&p.counted("c1", before + 5)?, &[])?;
    p.run(&[
        "container",
        "restore",
        "--import",
        &tar.display().to_string(),
        "--name",
        "c2",
    ])?;
    ensure!(
        p.status("c2")? == "running",
        "the copy is {}",
        p.status("c2")?
    );
    p.counted("c2", 3).map(drop)
}

/// All forms of archives; back under its own name and under another.
fn export(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    for (n, form) in ["zstd", "gzip", "none"].iter().enumerate() {
        let name = format!("c{n}");
        let tar = w.dir.join(format!("{name}.tar")).display().to_string();
        p.start(&name, &[], COUNT)?;
        p.counted(&name, 5)?;
        p.run(&[
            "container",
            "checkpoint",
            "--compress",
            form,
            "--export",
            &tar,
            &name,
        ])?;
        let last = *p.counted(&name, 5)?.last().context("numbers")?;
        p.run(&["rm", "-f", &name])?;
        p.run(&["container", "restore", "--import", &tar])?;
        ensure!(
            p.status(&name)? == "running",
            "{form}: it is {}",
            p.status(&name)?
        );
        p.counts_on(&name, last).context(form)?;
        p.run(&["container", "restore", "--import", &tar, "--name", "other"])?;
        p.counted("other", 3)?;
        p.run(&["rm", "-f", &name, "other"])?;
    }
    Ok(())
}

/// A bind mount and a named volume, with open files.
fn volume(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    let host = w.dir.join("volume");
    fs::create_dir(&host)?;
    let bind = format!("{}:/data", host.display());
    let script = "exec 5>>/data/log 6>>/vol/log; i=0; while :; do echo $i >&5; echo $i >&6; i=$((i+1)); sleep 0.05; done";
    p.start("c1", &["-v", &bind, "-v", "named:/vol"], script)?;
    let count = |least: usize| {
        wait("the log to grow", || {
            let n = numbers(&fs::read_to_string(host.join("log")).unwrap_or_default());
            Ok((n.len() >= least).then_some(n))
        })
    };
    let before = count(5)?.len();
    p.run(&["container", "checkpoint", "c1"])?;
    p.run(&["container", "restore", "c1"])?;
    goes_on(&count(before + 5)?, &[])?;
    let named = p.run(&["exec", "c1", "cat", "/vol/log"])?;
    goes_on(&numbers(&named), &[])
}

fn image(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start("c1", &[], COUNT)?;
    p.counted("c1", 5)?;
    p.run(&[
        "container",
        "checkpoint",
        "--create-image",
        "frozen:1",
        "c1",
    ])?;
    p.run(&["rm", "-f", "c1"])?;
    p.run(&["container", "restore", "frozen:1"])?;
    p.counted("c1", 3).map(drop)
}

fn user_namespace(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start(
        "c1",
        &["--uidmap", "0:300000:65536", "--gidmap", "0:300000:65536"],
        COUNT,
    )?;
    p.counted("c1", 5)?;
    p.run(&["container", "checkpoint", "c1"])?;
    let before = p.counted("c1", 5)?.len();
    p.run(&["container", "restore", "c1"])?;
    goes_on(&p.counted("c1", before + 5)?, &[])
}

fn ten_times(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start("c1", &[], COUNT)?;
    for round in 1..=10 {
        let before = p.counted("c1", 2 * round)?.len();
        p.run(&["container", "checkpoint", "c1"])?;
        p.run(&["container", "restore", "c1"])?;
        goes_on(&p.counted("c1", before + 1)?, &[])?;
    }
    Ok(())
}

/// Locks are refused without `--file-locks`, and held again with it: of open files, and of processes.
fn file_locks(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    for guest in ["flock", "lock_posix"] {
        let work = w.dir.join(guest);
        fs::create_dir(&work)?;
        let program = crate::build::static_guest(guest)?;
        let binds = [
            format!("{}:/guest", program.display()),
            format!("{}:/work", work.display()),
        ];
        p.start(
            guest,
            &["-v", &binds[0], "-v", &binds[1]],
            "exec /guest /work -",
        )?;
        let told = |f: &str| wait(f, || Ok(fs::read_to_string(work.join(f)).ok()));
        told("ready")?;
        let refused = p.run(&["container", "checkpoint", guest]);
        ensure!(refused.is_err(), "{guest}: it was dumped without its locks");
        let named = w.logs().contains("E4110") || crate::engine::foreign();
        ensure!(named, "another reason: {refused:?}");
        p.run(&["container", "checkpoint", "--file-locks", guest])?;
        p.run(&["container", "restore", "--file-locks", guest])?;
        p.run(&["kill", "-s", "TERM", guest])?;
        let result = told("result")?;
        ensure!(result.trim() == "PASS", "{guest}: {result}");
    }
    Ok(())
}

/// A shell on a terminal, talked to through `podman attach` before and after.
fn terminal(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.run(&[
        "run",
        "-d",
        "-t",
        "-i",
        "--network",
        "none",
        "--name",
        "c1",
        "bb:1",
        "/bin/sh",
    ])?;
    let mut before = Attached::to(&p, "c1")?;
    before.say("X=kept; echo rea''dy")?;
    before.heard.wait_text("ready")?;
    drop(before);
    p.run(&["container", "checkpoint", "c1"])?;
    p.run(&["container", "restore", "c1"])?;
    let mut after = Attached::to(&p, "c1")?;
    after.say("echo \"=$X=\"; tty")?;
    after.heard.wait_text("=kept=")?;
    after.heard.wait_text("/dev/pts/0")
}

/// `podman attach` on a terminal of ours; ended when it is dropped.
struct Attached {
    child: Child,
    master: File,
    heard: Heard,
}

impl Attached {
    fn to(p: &Podman, name: &str) -> Result<Self> {
        let pty = nix::pty::openpty(None, None)?;
        let master = File::from(pty.master);
        let end = || Ok::<_, anyhow::Error>(Stdio::from(pty.slave.try_clone()?));
        let mut c = p.command(&["attach", name]);
        let child = c.stdin(end()?).stdout(end()?).stderr(end()?).spawn()?;
        let heard = Heard::of(master.try_clone()?);
        Ok(Self {
            child,
            master,
            heard,
        })
    }
    fn say(&mut self, line: &str) -> Result<()> {
        use std::io::Write;
        Ok(writeln!(self.master, "{line}")?)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Archives without the changes of the root and without volumes, and restores that do not look at volumes in an archive.
fn ignore(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    let script = format!("echo changed >/etc/changed; echo kept >/vol/file; {COUNT}");
    let last =
        |name: &str| -> Result<u64> { p.counted(name, 3)?.last().copied().context("numbers") };
    for (n, (dump, restore, changed, volume)) in [
        (&[][..], &[][..], true, true),
        (&["--ignore-rootfs"], &[], false, true),
        (&["--ignore-volumes"], &["--ignore-volumes"], true, false),
        (&[], &["--ignore-rootfs"], false, true),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, vol) = (format!("c{n}"), format!("v{n}:/vol"));
        p.start(&name, &["-v", &vol], &script)?;
        last(&name)?;
        let tar = w.dir.join(format!("{name}.tar")).display().to_string();
        let mut args = vec!["container", "checkpoint", "--export", &tar];
        args.extend(dump);
        args.push(&name);
        p.run(&args)?;
        let then = last(&name)?;
        p.run(&["rm", "-f", "-v", &name])?;
        p.run(&["volume", "rm", "-f", &format!("v{n}")])?;
        let mut args = vec!["container", "restore", "--import", &tar];
        args.extend(restore);
        if !volume {
            p.run(&["volume", "create", &format!("v{n}")])?;
        }
        p.run(&args)
            .with_context(|| format!("{dump:?} {restore:?}"))?;
        wait("the container to count on", || {
            Ok((last(&name)? > then).then_some(()))
        })?;
        let has = |file: &str| p.run(&["exec", &name, "cat", file]).is_ok();
        ensure!(
            has("/etc/changed") == changed,
            "{dump:?} {restore:?}: the root's changes"
        );
        ensure!(
            has("/vol/file") == volume,
            "{dump:?} {restore:?}: the volume"
        );
        p.run(&["rm", "-f", "-t", "0", &name])?;
    }
    Ok(())
}

/// An address and a hardware address that were asked for come back with an archive, unless they are to be ignored.
fn addresses(w: &World) -> Result<()> {
    const ASKED: (&str, &str) = ("10.88.0.77", "92:d0:c6:0a:29:33");
    let p = Podman::new(w)?;
    let tar = w.dir.join("a.tar").display().to_string();
    let own = |name: &str| -> Result<(String, String)> {
        let form = "{{.NetworkSettings.MacAddress}}";
        let mac = p.run(&["inspect", "--format", form, name])?;
        let inside = p.run(&["exec", name, "cat", "/sys/class/net/eth0/address"])?;
        ensure!(mac == inside, "{name} has {inside}, podman says {mac}");
        Ok((p.address(name)?, mac.trim().into()))
    };
    let asked = (ASKED.0.to_owned(), ASKED.1.to_owned());
    p.run(&[
        "run",
        "-d",
        "--name",
        "c1",
        "--ip",
        ASKED.0,
        "--mac-address",
        ASKED.1,
        "bb:1",
        "/bin/sh",
        "-c",
        COUNT,
    ])?;
    p.counted("c1", 3)?;
    ensure!(own("c1")? == asked, "it has {:?}", own("c1")?);
    p.run(&[
        "container",
        "checkpoint",
        "--leave-running",
        "--export",
        &tar,
        "c1",
    ])?;
    // the first one still has both
    p.run(&[
        "container",
        "restore",
        "--import",
        &tar,
        "--name",
        "c2",
        "--ignore-static-ip",
        "--ignore-static-mac",
    ])?;
    p.counted("c2", 3)?;
    let other = own("c2")?;
    ensure!(other.0 != asked.0 && other.1 != asked.1, "it has {other:?}");
    p.run(&["rm", "-f", "-t", "0", "c1", "c2"])?;
    p.run(&["container", "restore", "--import", &tar])?;
    p.counted("c1", 3)?;
    ensure!(own("c1")? == asked, "restored, it has {:?}", own("c1")?);
    Ok(())
}

/// A container of a pod, which shares the network, IPC and UTS namespaces of the pod's first one: in place, and into another pod.
fn pod(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    let infra = [
        "--infra-image",
        "bb:1",
        "--infra-command",
        "/bin/sleep 1000000",
    ];
    let create = |pod: &str| -> Result<String> {
        // a group of the pod's own needs controllers, which not every machine has to give
        let mut args = vec!["pod", "create", "--share-parent=false", "--name", pod];
        args.extend(["--network", "none", "--hostname", pod]);
        args.extend(infra);
        Ok(p.run(&args)?.trim().to_owned())
    };
    let [_, second] = [create("p1")?, create("p2")?];
    p.run(&[
        "run", "-d", "--pod", "p1", "--name", "c1", "bb:1", "/bin/sh", "-c", COUNT,
    ])?;
    p.counted("c1", 5)?;
    p.run(&["container", "checkpoint", "c1"])?;
    let before = p.counted("c1", 5)?.len();
    p.run(&["container", "restore", "c1"])?;
    goes_on(&p.counted("c1", before + 3)?, &[])?;
    ensure!(
        p.run(&["exec", "c1", "hostname"])?.trim() == "p1",
        "another UTS namespace"
    );
    let tar = w.dir.join("a.tar").display().to_string();
    p.run(&["container", "checkpoint", "--export", &tar, "c1"])?;
    let last = *p.counted("c1", before + 3)?.last().context("numbers")?;
    p.run(&["rm", "-f", "c1"])?;
    p.run(&["pod", "start", "p2"])?;
    p.run(&[
        "container",
        "restore",
        "--import",
        &tar,
        "--name",
        "c2",
        "--pod",
        &second,
    ])?;
    p.counts_on("c2", last)?;
    ensure!(
        p.run(&["exec", "c2", "hostname"])?.trim() == "p2",
        "not the other pod's UTS namespace"
    );
    p.run(&["pod", "rm", "-f", "-t", "0", "p1", "p2"]).map(drop)
}

/// Memory first, while it runs; the rest builds on that.
fn pre_checkpoint(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start("c1", &[], COUNT)?;
    p.counted("c1", 5)?;
    let at = |n: &str| w.dir.join(n).display().to_string();
    let (pre, full) = (at("pre.tar"), at("full.tar"));
    p.run(&[
        "container",
        "checkpoint",
        "--pre-checkpoint",
        "--export",
        &pre,
        "c1",
    ])?;
    ensure!(p.status("c1")? == "running", "it is {}", p.status("c1")?);
    let now = p.counted("c1", 5)?.len();
    p.counted("c1", now + 3)?;
    p.run(&[
        "container",
        "checkpoint",
        "--with-previous",
        "--export",
        &full,
        "c1",
    ])?;
    let last = *p.counted("c1", 5)?.last().context("numbers")?;
    p.run(&["rm", "-f", "c1"])?;
    p.run(&[
        "container",
        "restore",
        "--import-previous",
        &pre,
        "--import",
        &full,
    ])?;
    p.counts_on("c1", last)?;
    Ok(())
}

/// Echoes what comes.
const ECHO: &str = "nc -l -p 7000 -e /bin/cat";

/// A container on podman's bridge that echoes, and a connection to it from the host.
fn echo(p: &Podman) -> Result<TcpStream> {
    p.run(&["run", "-d", "--name", "c1", "bb:1", "/bin/sh", "-c", ECHO])?;
    let ip = p.address("c1")?;
    let s = wait("the container to listen", || {
        Ok(TcpStream::connect((ip.as_str(), 7000)).ok())
    })?;
    s.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    round_trip(&s, "before")?;
    Ok(s)
}

fn round_trip(mut s: &TcpStream, word: &str) -> Result<()> {
    use std::io::Write;
    s.write_all(word.as_bytes())?;
    comes_back(s, word)
}

fn comes_back(mut s: &TcpStream, word: &str) -> Result<()> {
    use std::io::Read;
    let mut b = vec![0; word.len()];
    s.read_exact(&mut b)
        .with_context(|| format!("waiting for {word}"))?;
    ensure!(
        b == word.as_bytes(),
        "{:?} instead of {word}",
        String::from_utf8_lossy(&b)
    );
    Ok(())
}

/// The peer is silent while the container is away.
fn tcp_silent(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    let s = echo(&p)?;
    p.run(&["container", "checkpoint", "--tcp-established", "c1"])?;
    p.run(&["container", "restore", "--tcp-established", "c1"])?;
    round_trip(&s, "after")
}

/// The peer sends while the container is away: podman brings the new network up before there is a socket.
fn tcp_busy(w: &World) -> Result<()> {
    use std::io::Write;
    let p = Podman::new(w)?;
    let mut s = echo(&p)?;
    p.run(&["container", "checkpoint", "--tcp-established", "c1"])?;
    s.write_all(b"away")?;
    // its retransmissions meet the container at all stages
    let mut more = s.try_clone()?;
    let busy = std::thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..60 {
            more.write_all(b".")?;
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(())
    });
    p.run(&["container", "restore", "--tcp-established", "c1"])?;
    busy.join()
        .map_err(|_| anyhow::anyhow!("the peer panicked"))??;
    comes_back(&s, "away")?;
    comes_back(&s, &".".repeat(60))?;
    round_trip(&s, "after")?;
    p.no_locks()
}

/// Removed, and back from an archive with its address.
fn tcp_import(w: &World) -> Result<()> {
    use std::io::Write;
    let p = Podman::new(w)?;
    let mut s = echo(&p)?;
    let tar = w.dir.join("a.tar").display().to_string();
    p.run(&[
        "container",
        "checkpoint",
        "--tcp-established",
        "--export",
        &tar,
        "c1",
    ])?;
    p.run(&["rm", "-f", "c1"])?;
    s.write_all(b"away")?;
    p.run(&[
        "container",
        "restore",
        "--tcp-established",
        "--import",
        &tar,
    ])?;
    comes_back(&s, "away")?;
    round_trip(&s, "after")?;
    p.no_locks()
}

/// Two containers on one bridge: one is away while the other goes on sending.
fn tcp_neighbours(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.run(&["run", "-d", "--name", "c1", "bb:1", "/bin/sh", "-c", ECHO])?;
    let ip = p.address("c1")?;
    let script = format!(
        "sleep 0.5; (i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done) | nc {ip} 7000"
    );
    p.run(&[
        "run", "-d", "--name", "c2", "bb:1", "/bin/sh", "-c", &script,
    ])?;
    p.counted("c2", 5)?;
    p.run(&["container", "checkpoint", "--tcp-established", "c1"])?;
    let before = p.counted("c2", 5)?.len();
    p.run(&["container", "restore", "--tcp-established", "c1"])?;
    goes_on(&p.counted("c2", before + 10)?, &[])?;
    p.no_locks()
}
