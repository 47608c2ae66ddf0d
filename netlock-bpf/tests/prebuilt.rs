//! The object that is checked in is that of the source that is checked in.
use std::process::Command;

const SOURCE: &str = include_str!("../src/lock.bpf.c");
const MADE_FROM: &str = include_str!("../prebuilt/lock.source");

/// FNV-1a, 64 bits: enough to notice a change that nobody made on purpose against us.
fn sum(text: &str) -> String {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

#[test]
fn it_was_made_from_this_source() {
    let told = MADE_FROM.split_whitespace().next().unwrap_or("");
    assert_eq!(
        told,
        sum(SOURCE),
        "lock.bpf.c has changed: run `cargo xtask lock-object` where there is Debian's clang"
    );
}

#[test]
fn the_same_compiler_makes_the_same_object() {
    let version = Command::new("clang").arg("--version").output();
    let version = version
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    let version = version.lines().next().unwrap_or("");
    let told = MADE_FROM.lines().nth(1).unwrap_or("");
    if version != told {
        eprintln!("not compared: this is {version:?}, the object was made by {told:?}");
        return;
    }
    let built = include_bytes!(concat!(env!("OUT_DIR"), "/lock.o"));
    assert!(
        built == include_bytes!("../prebuilt/lock.o"),
        "run `cargo xtask lock-object`"
    );
}
