//! A machine: QEMU, emulating every instruction, so that it needs nothing of the host but time.
use super::packages::{Tools, run};
use super::root::{Kernel, filled};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What every machine has.
pub struct Machines<'a> {
    /// QEMU.
    pub tools: &'a Tools,
    /// The lab's folder.
    pub lab: &'a Path,
    /// The root's image.
    pub root: PathBuf,
    /// Memory of a machine, MiB.
    pub memory: u32,
    /// A machine that runs longer hangs.
    pub limit: Duration,
    /// Begins the names of folders with results.
    pub tag: String,
    /// `tcg`, or `kvm` where that works.
    pub accel: String,
}

/// What a machine left.
pub struct Ran {
    /// The folder `results` of its job.
    pub results: PathBuf,
    /// Its console.
    pub console: String,
    /// The job came to its end.
    pub ended: bool,
    /// From start to end.
    pub took: Duration,
}

impl Machines<'_> {
    /// Boots a kernel, has it run a job, and waits until it is off. Lines of its console that begin with `lab:` are shown.
    ///
    /// `luggage`: an ext4 image that is mounted at /luggage and keeps what is written there.
    ///
    /// # Errors
    /// QEMU does not start, or the job's disk cannot be read.
    pub fn boot(
        &self,
        kernel: &Kernel,
        name: &str,
        job: &str,
        luggage: Option<&Path>,
    ) -> Result<Ran> {
        let at = self.lab.join("runs").join(format!("{}{name}", self.tag));
        if at.exists() {
            fs::remove_dir_all(&at)?;
        }
        let disk = at.join("job");
        fs::create_dir_all(disk.join("results"))?;
        fs::write(disk.join("run"), job)?;
        let image = at.join("job.img");
        filled(&disk, &image, 2048)?;
        let console = at.join("console.log");
        let mut q = self.tools.command("qemu-system-x86_64")?;
        for d in self.tools.firmware() {
            q.arg("-L").arg(d);
        }
        q.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-machine", "pc,hpet=off", "-accel", &self.accel])
        .args(["-cpu", "max", "-smp", "2", "-m", &self.memory.to_string()])
        .arg("-kernel")
        .arg(&kernel.vmlinuz)
        .arg("-initrd")
        .arg(&kernel.initramfs)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 oops=panic mitigations=off",
        ])
        .arg("-serial")
        .arg(format!("file:{}", console.display()));
        let mut drive = |path: &Path, more: &str| {
            q.arg("-drive").arg(format!(
                "if=virtio,format=raw,file={}{more}",
                path.display()
            ));
        };
        drive(&self.root, ",snapshot=on");
        drive(&kernel.modules, ",snapshot=on");
        drive(&image, ",cache=unsafe");
        if let Some(l) = luggage {
            drive(l, ",cache=unsafe");
        }
        q.env("TMPDIR", &at)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        q.stderr(File::create(at.join("qemu.log"))?);
        let begun = Instant::now();
        let mut child = q.spawn().context("qemu")?;
        let mut shown = 0;
        loop {
            let done = child.try_wait()?;
            shown = show(&console, shown)?;
            if done.is_some() {
                break;
            }
            if begun.elapsed() > self.limit {
                println!("vm-test: {name}: no end after {:?}: killed", self.limit);
                child.kill()?;
                child.wait()?;
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let took = begun.elapsed();
        let out = at.join("results");
        // a machine that was killed left a journal that nobody played
        let _ = Command::new("e2fsck").args(["-fy"]).arg(&image).output();
        let dump = format!("rdump /results {}", at.display());
        run(Command::new("debugfs").args(["-R", &dump]).arg(&image))?;
        fs::remove_file(&image)?;
        let console = String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
        Ok(Ran {
            ended: console.contains("lab: done"),
            results: out,
            console,
            took,
        })
    }
}

/// Prints what is new in a console and meant for people; gives how far it was read.
fn show(console: &Path, from: u64) -> Result<u64> {
    let Ok(mut f) = File::open(console) else {
        return Ok(from);
    };
    f.seek(SeekFrom::Start(from))?;
    let mut new = Vec::new();
    f.read_to_end(&mut new)?;
    let Some(end) = new.iter().rposition(|b| *b == b'\n') else {
        return Ok(from);
    };
    for line in String::from_utf8_lossy(&new[..=end]).lines() {
        if let Some(at) = line.find("lab: ") {
            println!("  {}", line[at + 5..].trim_end());
        }
    }
    Ok(from + end as u64 + 1)
}
