//! A plugin of a program that embeds the engine carries what the engine alone refuses.

use stasis_tests::case::{Outcome, Scenario, folder, pack, run_in};
use stasis_tests::engine::Engine;
use stasis_tests::guests::find;
use std::fs;
use std::path::Path;
use std::process::Command;

const BOX: &str = env!("CARGO_BIN_EXE_stasis-box");
const EMBEDDER: &str = env!("CARGO_BIN_EXE_embedder");

#[test]
fn what_a_plugin_claims_comes_back_and_it_is_told() {
    let guest = find("plugged").expect("in the table");
    let dir = folder().expect("a folder");
    let e = Engine::at(EMBEDDER).expect("the example");
    let scenario = Scenario::DumpRestore;
    match run_in(dir.path(), Path::new(BOX), guest, &scenario, Some((&e, &e))).expect("a run") {
        Outcome::Passed => {}
        Outcome::Skipped(why) => {
            println!("skipped: plugged: {why}");
            return;
        }
        Outcome::Failed(r) => panic!("{} {}\n{}", r.verdict, r.trouble, r.logs),
    }
    let told = fs::read_to_string(dir.path().join("img-1/plugin-claimed-told")).expect("a log");
    // what was killed is not resumed
    assert_eq!(told, "paused\nsaved\nforked\ngiven back\n");
}

#[test]
fn without_the_plugin_the_dump_and_the_restore_are_refused_by_name() {
    let guest = find("plugged").expect("in the table");
    let dir = folder().expect("a folder");
    let ours = Engine::under_test().expect("an engine");
    match pack(Path::new(BOX), guest, dir.path()).expect("a run") {
        Outcome::Skipped(why) => {
            println!("skipped: plugged: {why}");
            return;
        }
        Outcome::Failed(r) => assert!(r.trouble.contains("/dev/fuse"), "{}", r.trouble),
        Outcome::Passed => panic!("nobody could carry it"),
    }
    let dir = folder().expect("a folder");
    let e = Engine::at(EMBEDDER).expect("the example");
    let packed = run_in(
        dir.path(),
        Path::new(BOX),
        guest,
        &Scenario::Packed,
        Some((&e, &e)),
    );
    assert_eq!(packed.expect("a run"), Outcome::Passed);
    for verb in ["restore", "plan"] {
        let out = Command::new(&ours.path)
            .arg(verb)
            .args(if verb == "restore" { &["-D"][..] } else { &[] })
            .arg(dir.path().join("img-1"))
            .output()
            .expect("the engine starts");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{verb}");
        assert!(
            said.contains("E2600") && said.contains("plugin claimed"),
            "{verb}: {said}"
        );
    }
}
