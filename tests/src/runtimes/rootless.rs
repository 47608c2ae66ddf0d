//! Scenarios without root: a user who has nothing but ranges of subordinate ids and a control group of its own.
//!
//! The user exists in the scenario's mount namespace only. It reaches the engine through a copy: a build folder need not be open to
//! strangers.

use super::Scenario;
use super::podman::{CONF, COUNT};
use super::world::{World, counts_on, goes_on, numbers, wait};
use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// All of them.
#[rustfmt::skip] // one line per scenario
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "rootless_process", runtime: "setpriv", play: process },
    Scenario { name: "rootless_runc", runtime: "runc", play: runc },
    Scenario { name: "rootless_runc_plain_dump", runtime: "runc", play: runc_plain },
    Scenario { name: "rootless_podman", runtime: "podman", play: podman },
    Scenario { name: "rootless_podman_shared_memory", runtime: "podman", play: shared_memory },
    Scenario { name: "rootless_podman_import", runtime: "podman", play: import },
    Scenario { name: "rootless_unknown_filter", runtime: "podman", play: unknown_filter },
];

const UID: u32 = 7777;
const GROUPS: &str = "/sys/fs/cgroup/user";

/// The user's world.
struct User<'a> {
    world: &'a World,
    home: PathBuf,
    /// XDG_RUNTIME_DIR.
    run: PathBuf,
    engine: PathBuf,
}

impl<'a> User<'a> {
    fn new(world: &'a World) -> Result<Self> {
        let dir = &world.dir;
        let own = |p: &Path, mode: u32| -> Result<()> {
            fs::create_dir_all(p)?;
            fs::set_permissions(p, fs::Permissions::from_mode(mode))?;
            Ok(chown(p, Some(UID), Some(UID))?)
        };
        let (home, run) = (dir.join("home"), PathBuf::from(format!("/run/user/{UID}")));
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        own(&home, 0o755)?;
        own(&run, 0o700)?;
        let passwd = format!(
            "root:x:0:0::/root:/bin/sh\nck:x:{UID}:{UID}::{}:/bin/sh\n",
            home.display()
        );
        let ids = "ck:700000:65536\n";
        for (name, text) in [
            ("passwd", passwd.as_str()),
            ("subuid", ids),
            ("subgid", ids),
        ] {
            let (file, at) = (dir.join(name), Path::new("/etc").join(name));
            fs::write(&file, text)?;
            if !at.exists() {
                // only in sight of this scenario it is filled
                fs::File::create(&at)?;
            }
            let none: Option<&str> = None;
            mount(Some(&file), &at, none, MsFlags::MS_BIND, none)?;
        }
        // a group of its own, as systemd gives one to each user
        let leaf = Path::new(GROUPS).join("init");
        fs::create_dir_all(&leaf)?;
        for d in [Path::new(GROUPS), &leaf] {
            chown(d, Some(UID), Some(UID))?;
            for f in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                chown(d.join(f), Some(UID), Some(UID))?;
            }
        }
        fs::write(leaf.join("cgroup.procs"), std::process::id().to_string())?;
        let bin = dir.join("user-bin");
        fs::create_dir(&bin)?;
        let engine = bin.join("criu");
        fs::copy(dir.join("bin/criu"), &engine)?;
        Ok(Self {
            world,
            home,
            run,
            engine,
        })
    }
    /// A command as this user, without any capability.
    fn command(&self, program: &str) -> Command {
        let mut c = Command::new("setpriv");
        let id = UID.to_string();
        c.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        c.args(["--inh-caps=-all", program]);
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.engine.parent().unwrap_or(Path::new("/"));
        c.env_clear()
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("HOME", &self.home)
            .env("USER", "ck")
            .env("XDG_RUNTIME_DIR", &self.run)
            .current_dir(&self.home);
        c
    }
    fn run(&self, args: &[&str]) -> Result<String> {
        self.world.run(self.command(args[0]).args(&args[1..]))
    }
    fn counted(&self, file: &str, least: usize) -> Result<Vec<u64>> {
        wait("the file to grow", || {
            let n = numbers(&fs::read_to_string(self.home.join(file)).unwrap_or_default());
            Ok((n.len() >= least).then_some(n))
        })
    }
}

/// A process of the user's. It comes back in a user and a pid namespace of its own, where its pid is free and its owner may
/// give it.
fn process(w: &World) -> Result<()> {
    let u = User::new(w)?;
    let script = format!("exec >>out; {COUNT}");
    let mut child = u
        .command("setsid")
        .args(["/bin/sh", "-c", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    u.counted("out", 5)?;
    let (engine, pid) = (u.engine.display().to_string(), child.id().to_string());
    let stasis = |verb: &[&str]| {
        let mut all = vec!["bash", "-c", "exec -a stasis \"$0\" \"$@\"", &engine];
        all.extend(verb);
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let words = stasis(&["dump", &pid, "-D", "img"]);
    w.run(u.command(&words[0]).args(&words[1..]))?;
    child.wait()?;
    let before = u.counted("out", 5)?;
    let words = stasis(&["restore", "-D", "img"]);
    let mut back = Background(
        u.command("unshare")
            .args([
                "--map-current-user",
                "--pid",
                "--fork",
                "--kill-child",
                "--keep-caps",
                "--mount-proc",
            ])
            .args(&words)
            .stdin(Stdio::null())
            .spawn()?,
    );
    let after = u.counted("out", before.len() + 5);
    let ended = back.0.try_wait()?;
    ensure!(ended.is_none(), "the restore has ended: {ended:?}");
    goes_on(&after?, &[])
}

/// Ended when it is dropped.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bundle as `runc spec --rootless` makes it.
fn bundle(u: &User) -> Result<()> {
    let bundle = u.home.join("bundle");
    u.world.rootfs(&bundle.join("rootfs"))?;
    u.world.run(
        Command::new("chown")
            .args(["-R", &UID.to_string()])
            .arg(&bundle),
    )?;
    u.run(&["sh", "-c", "cd bundle && runc spec --rootless"])?;
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/sh", "-c", COUNT]);
    config["process"]
        .as_object_mut()
        .context("process")?
        .remove("rlimits");
    config["root"]["readonly"] = json!(false);
    fs::write(&file, config.to_string())?;
    Ok(())
}

/// Everything inside `unshare --map-root-user --map-auto`, as rootless runc needs it to restore.
fn runc(w: &World) -> Result<()> {
    let u = User::new(w)?;
    bundle(&u)?;
    let script = "set -e; cd bundle; R=\"runc --root $XDG_RUNTIME_DIR/rt\"
        later() { for i in $(seq 300); do [ $(wc -l <../$1) -ge $2 ] && return; sleep 0.05; done; echo \"$1 stops at $(wc -l <../$1)\"; exit 1; }
        : >../a; : >../b; : >../c
        $R run -d c1 </dev/null 2>&1 | cat >../a & later a 5
        for n in 1 2; do
            mkdir -m 700 ../img$n
            $R checkpoint --image-path ../img$n --work-path ../img$n c1
            [ $n = 1 ] && out=b || out=c
            $R restore -d --image-path ../img$n --work-path ../img$n c1 </dev/null 2>&1 | cat >../$out &
            later $out 5
        done
        $R delete -f c1";
    u.run(&["unshare", "-Urm", "--map-auto", "bash", "-c", script])?;
    let of = |f: &str| Ok::<_, anyhow::Error>(numbers(&fs::read_to_string(u.home.join(f))?));
    goes_on(&[of("a")?, of("b")?].concat(), &of("c")?)
}

/// As a user with no capability in any namespace: runc can dump so; its restore mounts, so the bundle alone restores.
fn runc_plain(w: &World) -> Result<()> {
    let u = User::new(w)?;
    bundle(&u)?;
    let script =
        "set -e; cd bundle; R=\"runc --root $XDG_RUNTIME_DIR/rt\"; : >../a; mkdir -m 700 ../img
        $R run -d c1 </dev/null 2>&1 | cat >../a &
        for i in $(seq 300); do [ $(wc -l <../a) -ge 5 ] && break; sleep 0.05; done
        $R checkpoint --image-path ../img --work-path ../img c1";
    u.run(&["bash", "-c", script])?;
    ensure!(u.home.join("img/inventory.img").exists(), "no images");
    Ok(())
}

/// podman's service, as the user, and commands to it: the command line refuses users, its service does not.
struct Podman<'a> {
    user: User<'a>,
    service: Background,
    url: String,
}

impl<'a> Podman<'a> {
    fn new(w: &'a World) -> Result<Self> {
        let user = User::new(w)?;
        let conf = user.home.join(".config/containers");
        fs::create_dir_all(&conf)?;
        fs::write(conf.join("containers.conf"), CONF)?;
        let rootfs = user.home.join("rootfs");
        w.rootfs(&rootfs)?;
        w.run(
            Command::new("chown")
                .args(["-R", &format!("{UID}:{UID}")])
                .arg(&user.home),
        )?;
        user.run(&["tar", "-C", "rootfs", "-cf", "bb.tar", "."])?;
        user.run(&["podman", "import", "bb.tar", "bb:1"])?;
        let socket = user.run.join("podman.sock");
        let url = format!("unix://{}", socket.display());
        let log = fs::File::create(w.dir.join("service.log"))?;
        let service = user
            .command("podman")
            .args(["system", "service", "--time", "0", &url])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let service = Background(service);
        wait("podman's service", || Ok(socket.exists().then_some(())))?;
        Ok(Self { user, service, url })
    }
    fn start(&self, options: &[&str], script: &str) -> Result<()> {
        let mut args = vec!["podman", "run", "-d", "--name", "c1", "--network", "none"];
        args.extend(options);
        args.extend(["bb:1", "/bin/sh", "-c", script]);
        self.user.run(&args).map(drop)
    }
    /// `podman container ARGS`, asked of the service.
    fn container(&self, args: &[&str]) -> Result<String> {
        let mut all = vec![
            "unshare",
            "-Ur",
            "podman",
            "--remote",
            "--url",
            &self.url,
            "container",
        ];
        all.extend(args);
        self.user.run(&all)
    }
    fn counted(&self, name: &str, least: usize) -> Result<Vec<u64>> {
        wait("the container to count", || {
            let n = numbers(&self.user.run(&["podman", "logs", name])?);
            Ok((n.len() >= least).then_some(n))
        })
    }
    fn end(mut self) -> Result<()> {
        self.user.run(&["podman", "rm", "-af", "-t", "0"])?;
        self.service.0.kill()?;
        Ok(())
    }
}

/// With podman's default seccomp profile, twice in a row.
fn podman(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start(&[], COUNT)?;
    p.counted("c1", 5)?;
    for _ in 0..2 {
        let told = p.container(&["checkpoint", "--keep", "--print-stats", "c1"])?;
        ensure!(told.contains("frozen_time"), "no statistics: {told}");
        let before = p.counted("c1", 5)?.len();
        p.container(&["restore", "--keep", "c1"])?;
        goes_on(&p.counted("c1", before + 5)?, &[])?;
    }
    // its filter is on again: a call that the profile forbids fails
    let status = p
        .user
        .run(&["podman", "exec", "c1", "cat", "/proc/1/status"])?;
    ensure!(status.contains("Seccomp:\t2"), "no filter: {status}");
    p.end()
}

/// Memory that is shared between processes and has no name, which only root can open.
fn shared_memory(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    let g = Guest::start(&p, "shmem_family", &[])?;
    p.container(&["checkpoint", "c1"])?;
    p.container(&["restore", "c1"])?;
    g.verify()?;
    p.end()
}

/// A guest program in a container of podman's.
struct Guest<'p, 'w> {
    podman: &'p Podman<'w>,
    work: PathBuf,
}

impl<'p, 'w> Guest<'p, 'w> {
    fn start(podman: &'p Podman<'w>, name: &str, options: &[&str]) -> Result<Self> {
        let home = &podman.user.home;
        let (at, work) = (home.join("guest"), home.join("work"));
        fs::copy(crate::build::static_guest(name)?, &at)?;
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(&work)?;
        chown(&work, Some(UID), Some(UID))?;
        let binds = [
            format!("{}:/guest", at.display()),
            format!("{}:/work", work.display()),
        ];
        let mut all = vec!["-v", &binds[0], "-v", &binds[1]];
        all.extend(options);
        podman.start(&all, "exec /guest /work -")?;
        wait("the guest", || {
            Ok(work.join("ready").exists().then_some(()))
        })
        .with_context(|| {
            podman
                .user
                .run(&["podman", "logs", "c1"])
                .unwrap_or_default()
        })?;
        Ok(Self { podman, work })
    }
    /// Lets it check itself.
    fn verify(&self) -> Result<()> {
        self.podman
            .user
            .run(&["podman", "kill", "-s", "TERM", "c1"])?;
        let told = wait("the guest's word", || {
            Ok(fs::read_to_string(self.work.join("result")).ok())
        })?;
        ensure!(told.trim() == "PASS", "{told}");
        Ok(())
    }
}

/// Exported, removed, and back under another name.
fn import(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    p.start(&[], COUNT)?;
    p.counted("c1", 5)?;
    p.container(&["checkpoint", "--export", "a.tar", "c1"])?;
    let last = *p.counted("c1", 5)?.last().context("numbers")?;
    p.user.run(&["podman", "rm", "-f", "c1"])?;
    p.container(&["restore", "--import", "a.tar", "--name", "c2"])?;
    counts_on(last, || p.counted("c2", 0))?;
    p.end()
}

/// A filter that the container's program has added itself cannot be known: it is refused by name, and runs on.
fn unknown_filter(w: &World) -> Result<()> {
    let p = Podman::new(w)?;
    let own = [
        "--cap-add",
        "sys_admin",
        "--security-opt",
        "seccomp=unconfined",
    ];
    let g = Guest::start(&p, "seccomp_filter", &own)?;
    ensure!(
        p.container(&["checkpoint", "c1"]).is_err(),
        "it was dumped without its filters"
    );
    let logs = w.logs();
    ensure!(logs.contains("E4013"), "another reason: {logs}");
    g.verify()?;
    p.end()
}
