//! What a bench measures: programs that build a state, and check it when they are asked.
use crate::run::loud;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program with a state.
#[derive(Clone, Copy)]
pub enum Load {
    /// Arguments of bench/load.c.
    Own([&'static str; 4]),
    /// redis-server with so many values of 1000 bytes, behind a Unix socket.
    Redis(&'static str),
    /// bench/heap.py: a heap of CPython, in MiB.
    Python(&'static str),
}

/// A load that runs.
pub struct Running {
    /// Its process.
    pub pid: Pid,
    load: Load,
    report: PathBuf,
    /// What redis says that it holds.
    digest: String,
}

/// bench/load.c, compiled.
///
/// # Errors
/// There is no gcc, or it fails.
pub fn compile() -> Result<PathBuf> {
    let source = bench_folder().join("load.c");
    let program = PathBuf::from("/mnt/load");
    let gcc = ["-std=gnu11", "-O1", "-Wall", "-Werror", "-pthread", "-o"];
    loud(Command::new("gcc").args(gcc).args([&program, &source]))?;
    Ok(program)
}

fn bench_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench")
}

impl Load {
    /// Starts it in `dir` and waits until its state stands.
    ///
    /// # Errors
    /// It does not start, or fails.
    pub fn start(self, program: &Path, dir: &Path) -> Result<Running> {
        let report = dir.join("report");
        let mut c = match self {
            Load::Own(args) => {
                let mut c = Command::new(program);
                c.args(args).arg(&report);
                c
            }
            Load::Python(mib) => {
                let mut c = Command::new("/usr/bin/python3");
                c.arg(bench_folder().join("heap.py")).arg(mib).arg(&report);
                c
            }
            Load::Redis(_) => {
                let mut c = Command::new("setsid");
                c.args(["redis-server", "--port", "0", "--save", "", "--unixsocket"]);
                c.arg(dir.join("redis"));
                c.args(["--enable-debug-command", "yes"]);
                c
            }
        };
        let child = c
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir(dir)
            .spawn()
            .with_context(|| format!("{c:?}"))?;
        let mut running = Running {
            pid: Pid::from_raw(child.id() as i32),
            load: self,
            report,
            digest: String::new(),
        };
        match self {
            Load::Own(_) | Load::Python(_) => running.wait("ready")?,
            Load::Redis(values) => {
                let until = Instant::now() + PATIENCE;
                while running.ask(&["PING"]).is_err() {
                    if Instant::now() > until {
                        bail!("redis-server does not answer");
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                running.ask(&["DEBUG", "POPULATE", values, "key", "1000"])?;
                running.digest = running.ask(&["DEBUG", "DIGEST"])?;
            }
        }
        Ok(running)
    }
}

/// A load that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

impl Running {
    /// Whether what it had is there; it ends.
    ///
    /// # Errors
    /// Something is lost, or it does not answer.
    pub fn check(&self) -> Result<()> {
        if let Load::Redis(_) = self.load {
            let now = self.ask(&["DEBUG", "DIGEST"])?;
            if now != self.digest {
                bail!("redis holds other values than before");
            }
            return kill(self.pid, Signal::SIGKILL).context("redis");
        }
        kill(self.pid, Signal::SIGTERM).context("the restored load")?;
        self.wait("ok")
    }
    /// What FILE.beat counts.
    ///
    /// # Errors
    /// The load has no such file.
    pub fn beat(&self) -> Result<u64> {
        let file = fs::File::open(self.report.with_extension("beat"))?;
        let mut b = [0; 8];
        file.read_exact_at(&mut b, 0)?;
        Ok(u64::from_ne_bytes(b))
    }
    fn wait(&self, want: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(&self.report).unwrap_or_default();
            match said.as_str() {
                s if s == want => return Ok(()),
                "" | "ready" => {}
                s => bail!("the load says: {s}"),
            }
            if Instant::now() > until {
                bail!("the load does not say {want}, only {said:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    fn ask(&self, words: &[&str]) -> Result<String> {
        let socket = self.report.with_file_name("redis");
        let out = Command::new("redis-cli")
            .args(["-e", "-s"])
            .arg(socket)
            .args(words)
            .output()
            .context("redis-cli")?;
        if !out.status.success() {
            bail!("redis: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }
}
