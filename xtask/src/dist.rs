//! One static binary: musl if its target is installed, else glibc linked statically; which one is said.
use crate::run::{cargo, loud};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const MUSL: &str = "x86_64-unknown-linux-musl";
const GLIBC: &str = "x86_64-unknown-linux-gnu";

/// Runs the verb.
///
/// # Errors
/// When it does not build, or the result asks for a dynamic loader.
pub fn run() -> Result<()> {
    let mut build = cargo();
    let target = if has_target(MUSL)? {
        println!("dist: static, with musl");
        MUSL
    } else {
        println!(
            "dist: static-pie, with glibc (the target {MUSL} is not installed; `rustup target add {MUSL}` would change that)"
        );
        // --target keeps the flag away from build scripts and procedural macros
        build.env("RUSTFLAGS", "-C target-feature=+crt-static");
        GLIBC
    };
    let folder = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate::repo::root().join("target"), PathBuf::from);
    loud(build.args([
        "build",
        "--release",
        "--package",
        "stasis",
        "--target",
        target,
    ]))?;
    let built = folder.join(target).join("release/stasis");
    let bytes = std::fs::read(&built).with_context(|| built.display().to_string())?;
    if asks_for_loader(&bytes).context("the result is no 64-bit ELF file")? {
        bail!("{} asks for a dynamic loader", built.display());
    }
    let dist = folder.join("dist");
    std::fs::create_dir_all(&dist)?;
    std::fs::copy(&built, dist.join("stasis"))?;
    println!(
        "dist: {} ({} KiB)",
        dist.join("stasis").display(),
        bytes.len() / 1024
    );
    Ok(())
}

fn has_target(target: &str) -> Result<bool> {
    let out = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .context("rustc")?;
    Ok(out.status.success() && Path::new(String::from_utf8(out.stdout)?.trim()).exists())
}

/// Does an ELF file have a program header of type PT_INTERP? `None`: it is none (elf(5)).
fn asks_for_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        let b = elf.get(at..at.checked_add(len)?)?;
        Some(b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (table, size, count) = (
        number(32, 8)? as usize,
        number(54, 2)? as usize,
        number(56, 2)?,
    );
    for i in 0..count as usize {
        if number(table + i * size, 4)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_others() {
        let sh = std::fs::read("/bin/sh").unwrap();
        assert_eq!(asks_for_loader(&sh), Some(true));
        let mut cut = sh[..64].to_vec();
        cut[56..58].copy_from_slice(&[0, 0]);
        assert_eq!(asks_for_loader(&cut), Some(false));
        assert_eq!(asks_for_loader(b"#!/bin/sh\n"), None);
        assert_eq!(asks_for_loader(&sh[..40]), None);
    }
}
