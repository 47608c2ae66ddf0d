//! Others read our images: every file of a folder our engine made is decoded by Debian's `crit` (package criu), to the same
//! records as by our own reader, and `crit x` finds its way through the folder.
//!
//! Debian's crit (3.17) is older than the format's newest fields and passes over those it does not know, as any reader
//! must; so only the number of records, their magic and a few fields that readers live on are compared. Without crit the
//! tests say that they were skipped; in CI (`CI` is set) it must be there (`cargo xtask setup` installs it).

use serde_json::Value;
use stasis_proto::images::{Framing, lookup};
use stasis_proto::show::Schema;
use stasis_proto::{ImageDir, images};
use stasis_tests::case::{Outcome, Scenario, folder, run_in};
use stasis_tests::engine::Engine;
use stasis_tests::guests::find;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const BOX: &str = env!("CARGO_BIN_EXE_stasis-box");
const CRIT: &str = "/usr/bin/crit";

/// Whether crit is there; panics in CI when it is not.
fn present() -> bool {
    let there = Path::new(CRIT).exists();
    assert!(
        there || std::env::var_os("CI").is_none(),
        "{CRIT} is missing: `cargo xtask setup` installs it (Debian package criu)"
    );
    if !there {
        eprintln!("skipped: {CRIT} is not installed (Debian package criu)");
    }
    there
}

fn crit(args: &[&str]) -> String {
    let out = Command::new(CRIT).args(args).output().expect("crit starts");
    assert!(
        out.status.success(),
        "crit {args:?}: {}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).expect("crit prints UTF-8")
}

/// Freezes the guest (it lives on), and has every image decoded.
///
/// `walks`: what `crit x` is asked.
fn decoded(guest: &str, walks: &[&str]) {
    if !present() {
        return;
    }
    let guest = find(guest).expect("a guest of the table");
    let engine = Engine::under_test().expect("our engine");
    let tmp = folder().expect("a folder");
    let boxer = Path::new(BOX);
    let how = Scenario::LeaveRunning;
    match run_in(tmp.path(), boxer, guest, &how, Some((&engine, &engine))) {
        Ok(Outcome::Passed) => {}
        Ok(Outcome::Skipped(why)) => return eprintln!("skipped: {}: {why}", guest.name),
        other => panic!("guest {} was not dumped: {other:?}", guest.name),
    }
    let path = tmp.path().join("img-1");
    let dir = ImageDir::open(&path).expect("the images");
    let schema = Schema::new();
    let mut kinds = BTreeSet::new();
    for name in dir.list().expect("names of the images") {
        let Some((row, _)) = lookup(&name) else {
            assert!(
                !name.ends_with(".img"),
                "{name} is of no kind of the format"
            );
            continue;
        };
        if row.framing == Framing::Raw {
            continue;
        }
        let file = path.join(&name).display().to_string();
        let theirs: Value = serde_json::from_str(&crit(&["decode", "-i", &file])).expect("JSON");
        let ours = schema.show(&dir, &name).expect("our own reader");
        compare(&name, &theirs, &ours);
        kinds.insert(row.kind);
    }
    for must in [
        images::Kind::Inventory,
        images::Kind::Pstree,
        images::Kind::Core,
        images::Kind::Ids,
        images::Kind::Mm,
        images::Kind::Pagemap,
        images::Kind::Files,
        images::Kind::Fdinfo,
        images::Kind::Fs,
    ] {
        assert!(kinds.contains(&must), "no image of kind {must:?}");
    }
    through(&path.display().to_string(), guest.name, walks);
}

fn compare(name: &str, theirs: &Value, ours: &Value) {
    // twins share a magic, and either name of it is right
    let framed = |v: &Value| v["magic"].as_str().map(str::to_owned);
    assert!(framed(theirs).is_some(), "{name}: crit names no magic");
    let count = |v: &Value| v["entries"].as_array().map_or(0, Vec::len);
    // crit lists the chunks of a deleted file's contents among the records
    let chunks = ours["entries"][0]["payload"]["chunks"].as_array();
    let records = count(ours) + chunks.map_or(0, Vec::len);
    assert_eq!(count(theirs), records, "{name}: records");
    for (i, (t, o)) in theirs["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .zip(ours["entries"].as_array().into_iter().flatten())
        .enumerate()
    {
        for field in [
            "pid",
            "ppid",
            "pgid",
            "sid",
            "id",
            "fd",
            "vaddr",
            "vm_id",
            "task_state",
        ] {
            if let (Some(t), Some(o)) = (t[field].as_u64(), o[field].as_u64()) {
                assert_eq!(t, o, "{name}, record {i}: {field}");
            }
        }
        if name.starts_with("pagemap-") && i > 0 {
            // a reader of before 2024 finds the count of pages where it always was
            assert!(o["nr_pages"].as_u64().is_some_and(|n| n > 0), "{name}: {o}");
            assert_eq!(t["nr_pages"], o["nr_pages"], "{name}, record {i}: pages");
        }
    }
}

/// crit's own walks through a folder, which read several images together.
fn through(dir: &str, guest: &str, walks: &[&str]) {
    // the kernel keeps 15 bytes of a name
    let comm = &guest[..guest.len().min(15)];
    let tasks = crit(&["x", dir, "ps"]);
    assert!(tasks.contains(comm), "crit x ps:\n{tasks}");
    for what in walks {
        let text = crit(&["x", dir, what]);
        assert!(text.lines().count() > 3, "crit x {what}:\n{text}");
    }
}

macro_rules! guests {
    ($walks:expr => $($name:ident)*) => {
        $(#[test] fn $name() { decoded(stringify!($name), $walks); })*
    };
}

// Together they make every kind of image our engine writes.
guests! { &["fds", "mems", "rss"] =>
    plain tree threads creds sigpending posix_timers seccomp_filter prctls
    map_anon_shared map_file_shared shmem_family memfd guard clone_files
    file_reg ghost ghost_sparse link_remap devices opath fown flock lease
    pipe fifo eventfd epoll signalfd timerfd inotify fanotify pty_data ctty
}
// crit looks for files and memory of zombies, which have none in CRIU's images either
guests! { &[] => zombies pidfd }

/// crit's answer is worth something: it refuses what is cut short.
#[test]
fn crit_refuses_a_broken_image() {
    if !present() {
        return;
    }
    let tmp = folder().expect("a folder");
    let dir = ImageDir::open(tmp.path()).expect("an image folder");
    let one = stasis_proto::pb::FsEntry::default();
    dir.write_one("fs-1.img", &one).expect("an image");
    let file = tmp.path().join("fs-1.img");
    let good = crit(&["decode", "-i", &file.display().to_string()]);
    assert!(good.contains("cwd_id"), "{good}");
    let bytes = std::fs::read(&file).expect("its bytes");
    std::fs::write(&file, &bytes[..bytes.len() - 1]).expect("one byte less");
    let out = Command::new(CRIT)
        .args(["decode", "-i"])
        .arg(&file)
        .output()
        .expect("crit starts");
    assert!(
        !out.status.success(),
        "crit took an image that is cut short"
    );
}
