//! Compiles the lock's programs with clang where there is one; elsewhere takes the object that is checked in. Never fails for
//! want of clang.
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=src/lock.bpf.c");
    println!("cargo:rerun-if-changed=clang_args.in");
    println!("cargo:rerun-if-changed=prebuilt/lock.o");
    println!("cargo:rerun-if-env-changed=STASIS_CLANG");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("lock.o");
    let clang = std::env::var("STASIS_CLANG").unwrap_or_else(|_| "clang".to_string());
    let built = clang != "no" && compile(&clang, &out);
    if !built {
        std::fs::copy("prebuilt/lock.o", &out).expect("prebuilt/lock.o is in the repository");
    }
    let how = if built { "clang" } else { "prebuilt" };
    println!("cargo:rustc-env=STASIS_LOCK_OBJECT={how}");
}

fn compile(clang: &str, out: &Path) -> bool {
    let mut c = Command::new(clang);
    c.args(include!("clang_args.in")).arg("-o").arg(out);
    // where Debian has asm/types.h
    c.arg(format!(
        "-I/usr/include/{}-linux-gnu",
        std::env::consts::ARCH
    ));
    c.output().is_ok_and(|o| o.status.success())
}
