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

/// Runs a script in namespaces of its own, with further options of the source; gives what it said.
fn run(script: &str, tmp: &Path, args: &[&str], options: &str) -> String {
    let dir: PathBuf = build::source_dir().with_file_name("migrate");
    let engine = tmp.join("stasis");
    symlink(Engine::under_test().expect("an engine").path, &engine).expect("link");
    let out = Command::new("unshare")
        .args(["-n", "-p", "-m", "--fork", "--mount-proc", "--kill-child"])
        .args(["--propagation", "private", "sh"])
        .arg(dir.join(script))
        .arg(engine)
        .args(args)
        .env("MIGRATE", options)
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
    let said = run("abort.sh", tmp.path(), &args, "");
    eprintln!("{said}");
    assert!(said.contains(": PASS") && !said.contains("FAIL"), "{said}");
}

/// Post-copy with the command line of criu; `None`: our engine, else the path of a binary that is CRIU's own.
fn later(guest: &str, way: &str, binaries: [Option<&str>; 3]) {
    let tmp = tempfile::tempdir().expect("a folder");
    let own = tmp.path().join("criu");
    symlink(Engine::under_test().expect("an engine").path, &own).expect("link");
    let own = own.display().to_string();
    let guest = build::guest(guest)
        .expect("the guest")
        .display()
        .to_string();
    let work = tmp.path().join("case").display().to_string();
    let [dump, daemon, restore] = binaries.map(|b| b.unwrap_or(&own).to_string());
    let args = [&*daemon, &*restore, &*guest, &*work, way];
    // the first word is the dump's binary
    let script = build::source_dir()
        .with_file_name("migrate")
        .join("lazy.sh");
    let out = Command::new("unshare")
        .args(["-n", "-p", "-m", "--fork", "--mount-proc", "--kill-child"])
        .args(["--propagation", "private", "sh"])
        .arg(script)
        .arg(dump)
        .args(args)
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        said.contains("PASS") && !said.contains("FAIL"),
        "{guest} {way}: {said}"
    );
}

#[test]
fn a_daemon_brings_memory_from_the_images() {
    for guest in ["map_anon", "threads", "tree", "churn"] {
        later(guest, "local", [None; 3]);
    }
}

#[test]
fn a_dump_keeps_memory_until_a_daemon_asks_for_it() {
    for guest in ["map_anon", "threads", "churn", "zombies"] {
        later(guest, "remote", [None; 3]);
    }
}

#[test]
fn a_lost_source_is_a_clear_failure_and_harms_nothing() {
    later("map_anon", "lost", [None; 3]);
}

/// `STASIS_CRIU` names a binary of CRIU 4.2.
#[test]
fn roles_can_be_shared_with_criu() {
    let Ok(criu) = std::env::var("STASIS_CRIU") else {
        eprintln!("skipped: STASIS_CRIU does not name a binary of CRIU 4.2");
        return;
    };
    let c = Some(&*criu);
    let roles = [
        [None, c, None],
        [None, None, c],
        [c, None, None],
        [None, c, c],
        [c, None, c],
        [c, c, None],
    ];
    for r in roles {
        later("map_anon", "local", r);
        // CRIU 4.2 cannot keep pages on kernels where tee(2) of them is refused: it fails with itself too
        if r[0].is_none() {
            later("map_anon", "remote", r);
        }
    }
}

/// A redis at work moves `rounds` times; `None`: something it needs is not installed.
fn redis(size: &str, rounds: &str, downtime: &str, options: &str) -> Option<String> {
    for program in ["redis-server", "redis-benchmark", "redis-cli", "python3"] {
        if !Path::new("/usr/bin").join(program).exists() {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
    }
    let tmp = tempfile::tempdir().expect("a folder");
    let tests = build::source_dir()
        .with_file_name("migrate")
        .display()
        .to_string();
    let work = tmp.path().join("world").display().to_string();
    let args = [&*work, &*tests, size, rounds, downtime];
    let said = run("world.sh", tmp.path(), &args, options);
    eprintln!("{said}");
    let good =
        said.contains("keys right") && said.contains("answers right") && !said.contains("FAIL");
    assert!(good, "{said}");
    Some(said)
}

#[test]
fn a_redis_at_work_moves_there_and_back() {
    let downtime = std::env::var("STASIS_DOWNTIME_MS").unwrap_or("2000".into());
    let (size, rounds) = if long() { ("500", "50") } else { ("40", "2") };
    // whether the downtime can be met depends on what else runs; the fewer rounds are about the keys
    let force = if long() { "" } else { "--force" };
    let said = redis(size, rounds, &downtime, force);
    // how long it stands still is measured where nothing else runs
    if let Some(said) = said.filter(|_| long()) {
        assert!(
            said.contains(&format!("met {rounds} of {rounds}")),
            "{said}"
        );
    }
}

#[test]
fn a_redis_that_writes_too_fast_moves_before_its_memory() {
    // no tree stands still for so short, so all rounds are futile in the end
    if let Some(said) = redis("40", "2", "1", "--post-copy") {
        let later = said.matches("\"bytes_later\":").count();
        assert_eq!(later, 2, "{said}");
        assert!(!said.contains("\"bytes_later\":0,"), "{said}");
    }
}

#[test]
fn shared_memory_goes_in_rounds() {
    /// What the guest never writes after its beginning, in bytes.
    const STILL: u64 = 8 << 20;
    let tmp = tempfile::tempdir().expect("a folder");
    let guest = build::guest("shared_rounds").expect("the guest");
    let work = tmp.path().join("case").display().to_string();
    let said = run(
        "shared.sh",
        tmp.path(),
        &[&guest.display().to_string(), &work],
        "",
    );
    assert!(
        said.contains("over: PASS") && !said.contains("FAIL"),
        "{said}"
    );
    let number = |name: &str| -> u64 {
        let (_, rest) = said.rsplit_once(&format!("\"{name}\":")).expect("a result");
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits.and_then(|d| d.parse().ok()).expect("a number")
    };
    assert!(number("bytes_sent") > STILL, "{said}");
    // pages of the program itself are fewer than these
    assert!(number("bytes_sent_frozen") < STILL, "{said}");
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
