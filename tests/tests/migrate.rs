//! Live migration between two hosts, which are namespaces here: a redis at work moves and loses nothing; and whatever breaks a
//! migration off, the tree runs on exactly one host.
//!
//! `tests/migrate/world.sh` and `abort.sh` set it up. By default a few rounds; `STASIS_LONG=1`: fifty with 500 MB, and every kill
//! point.
use stasis_tests::build;
use stasis_tests::engine::Engine;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

fn long() -> bool {
    std::env::var_os("STASIS_LONG").is_some()
}

/// Runs a script in namespaces of its own; gives what it said.
fn run(script: &str, tmp: &Path, args: &[&str]) -> String {
    let dir: PathBuf = build::source_dir().with_file_name("migrate");
    let engine = tmp.join("stasis");
    symlink(Engine::under_test().expect("an engine").path, &engine).expect("link");
    let out = Command::new("unshare")
        .args(["-n", "-p", "-m", "--fork", "--mount-proc", "--kill-child"])
        .args(["--propagation", "private", "sh"])
        .arg(dir.join(script))
        .arg(engine)
        .args(args)
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    format!("{said}{}", String::from_utf8_lossy(&out.stderr))
}

fn broken_off(side: &str, first: u32, step: u32, most: u32, extra: &[&str]) {
    let tmp = tempfile::tempdir().expect("a folder");
    let guest = build::guest("tree").expect("the guest");
    let work = tmp.path().join("case");
    std::fs::create_dir(&work).expect("a folder");
    let numbers = [first, step, most].map(|n| n.to_string());
    let (guest, work) = (guest.display().to_string(), work.display().to_string());
    let mut args = vec![&*guest, &*work, side, &numbers[0], &numbers[1], &numbers[2]];
    args.extend(extra);
    let said = run("abort.sh", tmp.path(), &args);
    eprintln!("{said}");
    assert!(said.contains(": PASS") && !said.contains("FAIL"), "{said}");
}

#[test]
fn a_redis_at_work_moves_there_and_back() {
    for program in ["redis-server", "redis-benchmark", "redis-cli", "python3"] {
        if !Path::new("/usr/bin").join(program).exists() {
            eprintln!("skipped: {program} is not installed");
            return;
        }
    }
    let tmp = tempfile::tempdir().expect("a folder");
    let tests = build::source_dir()
        .with_file_name("migrate")
        .display()
        .to_string();
    let work = tmp.path().join("world").display().to_string();
    let downtime = std::env::var("STASIS_DOWNTIME_MS").unwrap_or("2000".into());
    let (size, rounds) = if long() { ("500", "50") } else { ("40", "2") };
    let said = run(
        "world.sh",
        tmp.path(),
        &[&work, &tests, size, rounds, &downtime],
    );
    eprintln!("{said}");
    let good = said.contains("keys right")
        && said.contains("answers right")
        && said.contains(&format!("met {rounds} of {rounds}"))
        && !said.contains("FAIL");
    assert!(good, "{said}");
}

#[test]
fn a_source_that_is_killed_leaves_the_tree_on_one_host() {
    let (step, most) = if long() { (1, 1000) } else { (7, 12) };
    broken_off("source", 0, step, most, &[]);
}

#[test]
fn a_destination_that_is_killed_leaves_the_tree_at_the_source() {
    let (step, most) = if long() { (1, 1000) } else { (9, 12) };
    broken_off("target", 0, step, most, &[]);
}

#[test]
fn both_may_die() {
    let (step, most) = if long() { (1, 1000) } else { (11, 6) };
    broken_off("both", 3, step, most, &[]);
}

#[test]
fn the_caller_may_abort_at_any_time() {
    let (step, most) = if long() { (7, 200) } else { (60, 8) };
    broken_off("int", 0, step, most, &[]);
}

#[test]
fn a_lost_connection_leaves_the_tree_at_the_source() {
    let (step, most) = if long() { (7, 200) } else { (60, 8) };
    broken_off("cut", 0, step, most, &[]);
}
