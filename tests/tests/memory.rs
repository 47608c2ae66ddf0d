//! What the engine needs in memory, against the size of the tree.

use stasis_tests::build;
use stasis_tests::engine::Engine;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Starts a guest, dumps it, restores it, lets it check itself: in a pid namespace, where its numbers are free again. `$1` the
/// engine, `$2` the guest, `$3` a folder, `$4` a parameter.
const JOURNEY: &str = r#"
set -e
cd "$3"
setsid "$2" "$3" - "$4" </dev/null >/dev/null 2>&1 & pid=$!
until [ -e ready ]; do sleep 0.02; done
"$1" dump $pid -D "$3/images" -vv >/dev/null 2>dump.log
wait $pid || true
"$1" restore -d -D "$3/images" -vv >/dev/null 2>restore.log
kill -TERM $pid
until [ -e result ]; do sleep 0.02; done
cat result
"#;

/// The most memory a dump and a restore of a guest with this parameter had at once, in KiB.
fn peaks(guest: &str, parameter: u32) -> [u64; 2] {
    let guest = build::guest(guest).expect("the guest compiles");
    let engine = Engine::under_test().expect("an engine");
    let work = tempfile::tempdir().expect("a folder");
    let out = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
        .args(["sh", "-c", JOURNEY, "sh"])
        .args([&engine.path, &guest])
        .arg(work.path())
        .arg(parameter.to_string())
        .stdin(Stdio::null())
        .output()
        .expect("unshare starts");
    let log = |name: &str| fs::read_to_string(work.path().join(name)).unwrap_or_default();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    let logs = ["dump.log", "restore.log"].map(|name| end(&log(name)));
    assert_eq!(said.trim(), "PASS", "{errors}{}", logs.join("\n"));
    ["dump.log", "restore.log"].map(|name| told(work.path(), name))
}

/// The last lines of a log.
fn end(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// What the engine says at the end of its log that it needed.
fn told(dir: &Path, name: &str) -> u64 {
    let log = fs::read_to_string(dir.join(name)).expect("a log");
    let line = log.lines().find_map(|l| l.split_once("had at most "));
    let kib = line.and_then(|(_, l)| l.split_once(" KiB"));
    let kib = kib.unwrap_or_else(|| panic!("{name} says nothing of memory: {}", end(&log)));
    kib.0.parse().expect("a number")
}

/// Two thousand threads more: their registers alone would be 22 MiB, as rows and messages they were 40.
#[test]
fn threads_are_not_remembered_whole() {
    const MORE: u64 = 20 << 10;
    let (few, many) = (peaks("threads", 16), peaks("threads", 2016));
    for (what, few, many) in [("dump", few[0], many[0]), ("restore", few[1], many[1])] {
        assert!(many < few + MORE, "{what}: {few} KiB, then {many} KiB");
        println!("{what}: {few} KiB with 16 threads, {many} KiB with 2016");
    }
}
