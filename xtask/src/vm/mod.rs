//! The lab: machines with other kernels, in which the tests run.
//!
//! A machine boots a kernel of Debian's (fetched, not installed) from images made here: a root file system of this machine's own
//! programs with our binary, the tests and the compiled guests at the paths they have here. It runs a job, writes what came of
//! it to a disk, and goes off. Machines that follow each other share a disk for images that move from kernel to kernel.
mod machine;
mod packages;
mod root;
mod suites;

use crate::run::{cargo, loud};
use anyhow::{Context, Result, ensure};
use clap::Args;
use machine::{Machines, Ran};
use packages::{Archive, Tools, run};
use root::{Kernel, Staging};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use suites::{Answers, Built};

/// Kernels when none is named: what Debian 12 has, and its backport.
const KERNELS: &[&str] = &["6.1", "6.12"];

/// Runs the tests under other kernels, in virtual machines
#[derive(Debug, Args)]
pub struct VmTest {
    /// Versions, or their beginnings (`6.1`, `6.12`, `6.18`): the newest of Debian's that fits
    kernels: Vec<String>,
    /// Only say which kernels there are
    #[arg(long)]
    list: bool,
    /// Fetch the lists of packages anew
    #[arg(long)]
    refresh: bool,
    /// Only these suites (`kinds`, `lifecycle`, ...; `moves` for images that move between the kernels)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only tests whose name has this in it
    #[arg(long)]
    filter: Vec<String>,
    /// Memory of a machine, MiB
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// How many times longer than natively a test may take
    #[arg(long, default_value_t = 8)]
    patience: u32,
    /// Minutes after which a machine is taken for hung
    #[arg(long, default_value_t = 120)]
    limit: u64,
    /// Put before the names of folders with results, so that runs side by side have their own
    #[arg(long, default_value = "")]
    tag: String,
    /// QEMU's accelerator; `kvm` is faster where it works
    #[arg(long, default_value = "tcg,thread=multi")]
    accel: String,
}

impl VmTest {
    /// Runs the verb; false if a test failed.
    ///
    /// # Errors
    /// No network, a program is missing, a machine does not boot.
    pub fn run(&self) -> Result<bool> {
        let lab = lab()?;
        let archive = Archive::open(&lab, self.refresh)?;
        let known = archive.kernels()?;
        if self.list {
            for k in &known {
                println!("{k}");
            }
            return Ok(true);
        }
        let words: Vec<&str> = match &self.kernels[..] {
            [] => KERNELS.to_vec(),
            some => some.iter().map(String::as_str).collect(),
        };
        let mut versions = Vec::new();
        for w in words {
            let v = packages::choose(&known, w)
                .with_context(|| format!("no kernel {w} in Debian (try --list or --refresh)"))?;
            versions.push(v.clone());
        }
        let moves = self.only.iter().any(|o| o == "moves");
        ensure!(
            !moves || versions.len() > 1,
            "images move between kernels: name two"
        );
        for o in self.only.iter().filter(|o| *o != "moves") {
            ensure!(suites::SUITES.iter().any(|s| s.0 == o), "no suite {o}");
        }
        let tools = Tools::open(&lab)?;
        let mut kernels = Vec::new();
        for v in &versions {
            kernels.push(Kernel::prepare(&tools, &archive.kernel(&lab, v)?, v)?);
        }
        let built = build()?;
        let root = image(&lab, &tools, &built)?;
        let machines = Machines {
            tools: &tools,
            lab: &lab,
            root,
            memory: self.memory,
            limit: Duration::from_secs(60 * self.limit),
            accel: self.accel.clone(),
            tag: self.tag.clone(),
        };
        let mut table = Table::default();
        let suites: Vec<String> = self
            .only
            .iter()
            .filter(|o| *o != "moves")
            .cloned()
            .collect();
        if self.only.is_empty() || !suites.is_empty() {
            for k in &kernels {
                self.tests(&machines, k, &built, &suites, &mut table)?;
            }
        }
        if self.only.is_empty() || suites.len() < self.only.len() {
            // every kernel's images to the next one's, and the last one's to the first
            for (n, from) in kernels.iter().enumerate() {
                let to = &kernels[(n + 1) % kernels.len()];
                if from.version != to.version {
                    self.moves(&machines, [from, to], &built, &mut table)?;
                }
            }
        }
        let good = table.print();
        println!("logs: {}", lab.join("runs").display());
        Ok(good)
    }

    fn tests(
        &self,
        machines: &Machines,
        k: &Kernel,
        built: &Built,
        only: &[String],
        table: &mut Table,
    ) -> Result<()> {
        println!("vm-test: {}", k.version);
        let job = suites::tests(built, self.patience, only, &self.filter)?;
        let ran = machines.boot(k, &k.version, &job, None)?;
        table.note(&k.version, &ran);
        for (name, _) in suites::SUITES {
            if only.is_empty() || only.iter().any(|o| o == name) {
                table.add(&k.version, name, suites::read(&ran.results, name));
            }
        }
        Ok(())
    }

    /// Guests are dumped under one kernel and restored under another.
    fn moves(
        &self,
        machines: &Machines,
        between: [&Kernel; 2],
        built: &Built,
        table: &mut Table,
    ) -> Result<()> {
        let [from, to] = between;
        let name = format!("{} to {}", short(&from.version), short(&to.version));
        println!("vm-test: images move from {name}");
        let luggage = machines.lab.join(format!("{}luggage.img", self.tag));
        let empty = machines.lab.join("empty");
        fs::create_dir_all(&empty)?;
        root::filled(&empty, &luggage, 2048)?;
        let guests: Vec<&str> = suites::MOVERS
            .iter()
            .filter(|g| self.filter.is_empty() || self.filter.iter().any(|f| g.contains(&**f)))
            .copied()
            .collect();
        for (kernel, verb) in [(from, "pack"), (to, "unpack")] {
            let job = suites::moves(built, self.patience, verb, &guests);
            let run = format!("{verb} {name}").replace(' ', "-");
            let ran = machines.boot(kernel, &run, &job, Some(&luggage))?;
            let row = format!("{name}: {verb}");
            table.note(&row, &ran);
            table.add(&row, "moves", suites::read(&ran.results, verb));
        }
        Ok(fs::remove_file(luggage)?)
    }
}

fn short(version: &str) -> String {
    let numbers: Vec<String> = packages::numbers(version)
        .iter()
        .take(2)
        .map(u64::to_string)
        .collect();
    numbers.join(".")
}

fn lab() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate::repo::root().join("target"), PathBuf::from);
    let lab = target.join("vm-lab");
    fs::create_dir_all(&lab)?;
    Ok(lab)
}

/// Builds the binary, the tests and the guests; gives where they are.
fn build() -> Result<Built> {
    loud(cargo().args(["build", "--quiet", "-p", "stasis", "-p", "stasis-tests"]))?;
    let out = run(cargo()
        .args([
            "test",
            "-p",
            "stasis-tests",
            "--no-run",
            "--quiet",
            "--message-format=json",
        ])
        .current_dir(crate::repo::root()))?;
    let mut tests = BTreeMap::new();
    let mut target = None;
    for line in out.lines() {
        let Ok(v) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let (Some(program), Some(name)) = (v["executable"].as_str(), v["target"]["name"].as_str())
        else {
            continue;
        };
        if v["target"]["kind"][0] == "test" {
            tests.insert(name.to_string(), PathBuf::from(program));
        } else if name == "stasis-box" && v["profile"]["test"] == false {
            target = PathBuf::from(program).parent().map(PathBuf::from);
        }
    }
    let target = target.context("cargo built no stasis-box")?;
    loud(std::process::Command::new(target.join("stasis-box")).arg("--build-guests"))?;
    Ok(Built {
        tests,
        target,
        root: crate::repo::root(),
    })
}

const INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -o remount,rw /
mount --make-rshared /
ln -sf /proc/self/fd /dev/fd
hostname lab
ip link set lo up
for c in cpuset cpu io memory hugetlb pids; do echo +$c > /sys/fs/cgroup/cgroup.subtree_control; done
echo "lab: $(uname -r): controllers $(cat /sys/fs/cgroup/cgroup.subtree_control)" > /dev/console
cd /root
setsid sh /lab/job/run < /dev/null > /lab/job/results/job.log 2>&1
dmesg > /lab/job/results/dmesg.log
sync
umount /lab/job
mountpoint -q /luggage && umount /luggage
echo "lab: done" > /dev/console
sync
busybox poweroff -f
"#;

/// The root's image, made anew: what is in it changes with every build.
fn image(lab: &std::path::Path, tools: &Tools, built: &Built) -> Result<PathBuf> {
    println!("vm-test: making the root file system");
    let mut s = Staging::new(lab.join("root"), tools)?;
    s.system()?;
    for name in ["stasis", "stasis-box", "embedder"] {
        s.stripped(&built.target.join(name))?;
    }
    for t in built.tests.values() {
        s.stripped(t)?;
    }
    // guests are not built there: sources and programs keep their times
    for dir in [
        built.target.join("guests"),
        built.root.join("tests/guests"),
        built.root.join("tests/network"),
    ] {
        let mut entries = vec![dir];
        while let Some(p) = entries.pop() {
            if p.is_dir() {
                for e in fs::read_dir(p)? {
                    entries.push(e?.path());
                }
            } else {
                s.add(&p)?;
            }
        }
    }
    ensure!(
        built.target.join("guests/plain").exists(),
        "the guests were not built"
    );
    s.script("lab/init", INIT)?;
    let to = lab.join("root.img");
    s.image(&to, 4096)?;
    fs::remove_dir_all(lab.join("root"))?;
    Ok(to)
}

/// What came of everything.
#[derive(Default)]
struct Table {
    rows: Vec<(String, String, String)>,
    notes: Vec<String>,
    bad: bool,
}

impl Table {
    fn note(&mut self, row: &str, ran: &Ran) {
        println!("vm-test: {row}: {} s", ran.took.as_secs());
        if !ran.ended {
            self.bad = true;
            let end: Vec<&str> = ran.console.lines().rev().take(15).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            self.notes.push(format!(
                "{row}: the machine did not come to its end:\n{}",
                end.join("\n")
            ));
        }
    }
    fn add(&mut self, row: &str, suite: &str, a: Result<Answers>) {
        let cell = match a {
            Err(e) => {
                self.bad = true;
                format!("did not run: {e:#}")
            }
            Ok(a) => {
                self.bad |= !a.failed.is_empty() || !a.whole || a.passed == 0;
                for f in &a.failed {
                    self.notes.push(format!("FAILED {row}: {suite}: {f}"));
                }
                for s in &a.skipped {
                    self.notes.push(format!("skipped {row}: {suite}: {s}"));
                }
                let whole = if a.whole { "" } else { ", and died" };
                format!(
                    "{} passed, {} failed, {} skipped{whole}",
                    a.passed,
                    a.failed.len(),
                    a.skipped.len()
                )
            }
        };
        self.rows.push((row.into(), suite.into(), cell));
    }
    /// Prints everything; true if all is well.
    fn print(&self) -> bool {
        for n in &self.notes {
            println!("{n}");
        }
        println!("\n| kernel | suite | |\n|---|---|---|");
        for (row, suite, cell) in &self.rows {
            println!("| {row} | {suite} | {cell} |");
        }
        !self.bad
    }
}
