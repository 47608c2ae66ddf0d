//! Controllers of cgroup v2: every setting of a group is the same after a dump, the loss of the group, and a restore.
//!
//! Needs a machine whose memory, pids, cpu, io and cpuset controllers are cgroup v2's: `cargo xtask vm-test` has such; there
//! (`STASIS_LAB`) a missing controller is a failure, elsewhere the test says what is missing.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stasis_tests::build;
use stasis_tests::engine::Engine;
use stasis_tests::group::Group;
use stasis_tests::wait::until_reaping as until;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

const CONTROLLERS: [&str; 5] = ["memory", "pids", "cpu", "io", "cpuset"];

/// What is set, beside what everything has from the start.
const SETTINGS: &[(&str, &str)] = &[
    ("memory.max", "300M"),
    ("memory.high", "200M"),
    ("memory.low", "12M"),
    ("memory.min", "4M"),
    ("memory.swap.max", "64M"),
    ("memory.oom.group", "1"),
    ("pids.max", "77"),
    ("cpu.max", "50000 100000"),
    ("cpu.max.burst", "10000"),
    ("cpu.weight", "33"),
    ("cpuset.cpus", "0"),
    ("cpuset.mems", "0"),
    ("cgroup.max.depth", "5"),
];

/// Writable files that are orders and lists, no settings.
const NO_SETTINGS: &[&str] = &[
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "memory.reclaim",
    "memory.peak",
    "memory.swap.peak",
];

#[test]
fn every_setting_of_every_controller_comes_back() {
    let engine = Engine::under_test().expect("an engine");
    let out = Command::new("unshare")
        .args(["-m", "-p", "--fork", "--mount-proc", "--kill-child"])
        .args(["--propagation", "private", "--"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "inside", "--ignored", "--nocapture"])
        .env("STASIS_ENGINE", engine.path)
        .stdin(Stdio::null())
        .output()
        .expect("unshare of util-linux");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    for l in said.lines().filter(|l| l.starts_with("skipped: ")) {
        println!("{l}");
    }
}

/// Everything that can be set in a group, as it is.
fn settings(group: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for e in fs::read_dir(group).expect("a group").flatten() {
        let name = e.file_name().to_string_lossy().into_owned();
        let writable = e.metadata().expect("a file").permissions().mode() & 0o200 != 0;
        let setting = !NO_SETTINGS.contains(&name.as_str()) && !name.ends_with(".pressure");
        if writable && setting && e.path().is_file() {
            all.insert(name, fs::read_to_string(e.path()).unwrap_or_default());
        }
    }
    all
}

/// A block device with a queue of its own, as io.max wants it.
fn disk() -> Option<String> {
    let dev = fs::metadata("/").ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let at = format!("/sys/dev/block/{major}:{minor}");
    Path::new(&at)
        .join("queue")
        .exists()
        .then(|| format!("{major}:{minor}"))
}

#[test]
#[ignore = "runs in namespaces"]
fn inside() {
    let top = Group::of_test("controllers");
    let has = fs::read_to_string(top.0.join("cgroup.controllers")).expect("controllers");
    let missing: Vec<_> = CONTROLLERS
        .iter()
        .filter(|c| !has.split_whitespace().any(|h| h == **c))
        .collect();
    if !missing.is_empty() {
        assert!(
            std::env::var_os("STASIS_LAB").is_none(),
            "not of cgroup v2 here: {missing:?}"
        );
        println!("skipped: controllers: not of cgroup v2 here: {missing:?}");
        return;
    }
    let all = CONTROLLERS.map(|c| format!("+{c}")).join(" ");
    fs::write(top.0.join("cgroup.subtree_control"), all).expect("controllers are handed down");
    let leaf = top.0.join("leaf");
    fs::create_dir(&leaf).expect("a group");
    for (file, value) in SETTINGS {
        // swap may not be built in
        if leaf.join(file).exists() {
            fs::write(leaf.join(file), value).unwrap_or_else(|e| panic!("{file}: {e}"));
        }
    }
    let limit = disk().map(|d| format!("{d} rbps=10485760 wbps=max riops=5000 wiops=max"));
    match &limit {
        Some(l) => fs::write(leaf.join("io.max"), l).expect("io.max"),
        None => assert!(std::env::var_os("STASIS_LAB").is_none(), "no disk to limit"),
    }

    let work = tempfile::tempdir().expect("a folder");
    let program = build::guest("tree").expect("the guest compiles");
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", leaf.display());
    let child = Command::new("setsid")
        .args(["sh", "-c", &enter, "sh"])
        .arg(program)
        .arg(work.path())
        .arg("-")
        .current_dir(work.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the guest starts");
    let pid = Pid::from_raw(child.id() as i32);
    // reaped with all others
    std::mem::forget(child);
    until("ready", || work.path().join("ready").exists());
    let before = [settings(&top.0), settings(&leaf)];
    // what is only allowed would prove nothing
    assert!(before[1]["cpuset.cpus"].trim() == "0" && before[1]["pids.max"].trim() == "77");
    if let Some(l) = &limit {
        assert_eq!(before[1]["io.max"].trim(), l);
    }

    let images = tempfile::tempdir().expect("a folder");
    let engine = Engine::under_test().expect("an engine");
    let criu = |args: &[&str]| {
        let out = Command::new(&engine.path)
            .arg("criu")
            .args(args)
            .args(["--manage-cgroups=full", "-D"])
            .arg(images.path())
            .stdin(Stdio::null())
            .output()
            .expect("the engine starts");
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    };
    criu(&["dump", "-t", &pid.to_string()]);
    until("its end", || !Path::new(&format!("/proc/{pid}")).exists());
    top.remove();
    assert!(!top.0.exists(), "the group is still there");
    criu(&["restore", "-d"]);
    assert_eq!([settings(&top.0), settings(&leaf)], before);
    let members = fs::read_to_string(leaf.join("cgroup.procs")).expect("members");
    assert!(members.lines().count() > 1, "{members}");
    kill(pid, Signal::SIGTERM).expect("it is there");
    let result = work.path().join("result");
    until("the result", || result.exists());
    assert_eq!(
        fs::read_to_string(&result).expect("a result").trim(),
        "PASS"
    );
}
