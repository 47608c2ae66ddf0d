//! Real services in containers, under load from outside: a database (redis) and a web server (nginx), from the files of the
//! machine's own Debian packages. They are checkpointed in the middle of the load, and nobody of the clients may notice more
//! than a pause.

use super::Scenario;
use super::podman::Podman;
use super::runc::Container;
use super::world::{Heard, World, wait};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// All of them.
#[rustfmt::skip] // one line per scenario
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "redis_runc", runtime: "runc", play: |w| with_runc(w, &REDIS) },
    Scenario { name: "redis_podman", runtime: "podman", play: |w| with_podman(w, &REDIS) },
    Scenario { name: "nginx_runc", runtime: "runc", play: |w| with_runc(w, &NGINX) },
    Scenario { name: "nginx_podman", runtime: "podman", play: |w| with_podman(w, &NGINX) },
];

/// A service and who burdens it.
struct Service {
    program: &'static str,
    port: u16,
    /// Fills the root file system beyond the program.
    prepare: fn(&Path) -> Result<()>,
    run: &'static str,
    load: fn(&str) -> Command,
    /// Was the load served without a fault?
    judge: fn(&str) -> Result<()>,
}

const REDIS: Service = Service {
    program: "redis-server",
    port: 6379,
    prepare: |_| Ok(()),
    run: "exec redis-server --protected-mode no --save '' --appendonly no --dir /tmp",
    load: |ip| {
        let mut c = Command::new("redis-benchmark");
        c.args([
            "-h",
            ip,
            "-c",
            "20",
            "-n",
            "120000",
            "-r",
            "1000",
            "-t",
            "set,get,incr",
            "--csv",
        ]);
        c
    },
    judge: |said| {
        for test in ["SET", "GET", "INCR"] {
            ensure!(
                said.contains(&format!("\"{test}\"")),
                "no result of {test}: {said}"
            );
        }
        ensure!(!said.contains("rror"), "{said}");
        Ok(())
    },
};

const NGINX: Service = Service {
    program: "nginx",
    port: 8080,
    prepare: |root| {
        for d in ["var/log/nginx", "var/lib/nginx", "run", "www"] {
            fs::create_dir_all(root.join(d))?;
        }
        fs::write(root.join("www/index.html"), "a page\n".repeat(400))?;
        fs::write(
            root.join("etc/nginx.conf"),
            "\
user root; worker_processes 2; daemon off; pid /run/nginx.pid; error_log /var/log/nginx/error.log;
events { worker_connections 256; }
http { access_log off; keepalive_requests 1000000; server { listen 8080; root /www; } }
",
        )?;
        fs::write(root.join("etc/group"), "root:x:0:\n")?;
        Ok(())
    },
    run: "exec nginx -c /etc/nginx.conf",
    load: |ip| {
        let mut c = Command::new("wrk");
        c.args(["-t", "1", "-c", "20", "-d", "8s", "--timeout", "30s"]);
        c.arg(format!("http://{ip}:8080/"));
        c
    },
    judge: |said| {
        ensure!(said.contains("requests in"), "no result: {said}");
        for word in ["Socket errors", "Non-2xx"] {
            ensure!(!said.contains(word), "{said}");
        }
        Ok(())
    },
};

/// A program with all the libraries it is linked with.
fn install(w: &World, root: &Path, program: &str) -> Result<()> {
    let dirs = ["/usr/bin", "/usr/sbin"].map(PathBuf::from);
    let at = dirs
        .iter()
        .map(|d| d.join(program))
        .find(|p| p.exists())
        .with_context(|| format!("{program} is not installed"))?;
    let put = |from: &Path, to: &Path| -> Result<()> {
        let to = root.join(to.strip_prefix("/")?);
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::copy(from, to)
            .map(drop)
            .with_context(|| from.display().to_string())
    };
    put(&at, &Path::new("/bin").join(program))?;
    let libraries = w.run(Command::new("ldd").arg(&at))?;
    for l in libraries.split_whitespace().filter(|l| l.starts_with('/')) {
        put(Path::new(l), Path::new(l))?;
    }
    Ok(())
}

/// The load, at work.
struct Load {
    child: Child,
    said: PathBuf,
}

impl Load {
    fn start(w: &World, s: &Service, ip: &str) -> Result<Self> {
        wait("the service", || Ok(TcpStream::connect((ip, s.port)).ok()))?;
        let said = w.dir.join("load");
        let file = fs::File::create(&said)?;
        let child = (s.load)(ip)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        // in the middle of it
        std::thread::sleep(std::time::Duration::from_millis(700));
        Ok(Self { child, said })
    }
    fn at_work(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "the load has ended: {ended:?}: {}",
            self.text()
        );
        Ok(())
    }
    fn text(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }
    fn end(mut self, s: &Service) -> Result<()> {
        let status = self.child.wait()?;
        let text = self.text();
        ensure!(status.success(), "{status}: {text}");
        (s.judge)(&text)
    }
}

/// In the network namespace of whoever starts it.
fn with_runc(w: &World, s: &Service) -> Result<()> {
    let c = Container::new(w, s.run, |config| {
        if let Some(all) = config["linux"]["namespaces"].as_array_mut() {
            all.retain(|n| n["type"] != "network");
        }
    })?;
    let root = c.rootfs();
    install(w, &root, s.program)?;
    (s.prepare)(&root)?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    let mut load = Load::start(w, s, "127.0.0.1").with_context(|| heard.text())?;
    let mut ends = vec![heard];
    for _ in 0..2 {
        load.at_work()?;
        c.checkpoint(&["--tcp-established"])?;
        let (out, heard) = Heard::pipe()?;
        c.restore(out, &["--tcp-established"])?;
        ends.push(heard);
    }
    load.end(s)?;
    c.delete()
}

/// On podman's bridge.
fn with_podman(w: &World, s: &Service) -> Result<()> {
    let p = Podman::new(w)?;
    let root = w.dir.join("service");
    w.rootfs(&root)?;
    install(w, &root, s.program)?;
    (s.prepare)(&root)?;
    p.import(&root, "service:1")?;
    p.run(&[
        "run",
        "-d",
        "--name",
        "c1",
        "service:1",
        "/bin/sh",
        "-c",
        s.run,
    ])?;
    let ip = p.address("c1")?;
    let mut load =
        Load::start(w, s, &ip).with_context(|| p.run(&["logs", "c1"]).unwrap_or_default())?;
    load.at_work()?;
    p.run(&["container", "checkpoint", "--tcp-established", "c1"])?;
    p.run(&["container", "restore", "--tcp-established", "c1"])?;
    load.end(s)?;
    p.no_locks()
}
