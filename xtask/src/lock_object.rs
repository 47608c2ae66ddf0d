//! Makes the network lock's object anew, for machines without clang.
use crate::repo;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// Compiles `netlock-bpf/src/lock.bpf.c` into `netlock-bpf/prebuilt`, and notes what it was made from and by.
///
/// # Errors
/// There is no clang, or the source does not compile.
pub fn run() -> Result<()> {
    let crate_dir = repo::root().join("netlock-bpf");
    let done = Command::new("clang")
        .args(include!("../../netlock-bpf/clang_args.in"))
        .args(["-o", "prebuilt/lock.o"])
        .arg(format!(
            "-I/usr/include/{}-linux-gnu",
            std::env::consts::ARCH
        ))
        .current_dir(&crate_dir)
        .status()
        .context("clang (Debian package clang)")?;
    if !done.success() {
        bail!("clang: {done}");
    }
    let version = Command::new("clang").arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout)
        .lines()
        .next()
        .unwrap_or("")
        .to_string();
    let source = std::fs::read_to_string(crate_dir.join("src/lock.bpf.c"))?;
    // FNV-1a, as in tests/prebuilt.rs of the crate
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    let sum = source.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    std::fs::write(
        crate_dir.join("prebuilt/lock.source"),
        format!("{sum:016x} lock.bpf.c\n{version}\n"),
    )?;
    println!("wrote netlock-bpf/prebuilt");
    Ok(())
}
