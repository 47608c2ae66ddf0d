//! The unwinder is linked into the binary: libgcc_s asks CPUID twenty times whenever it is loaded, and each of those takes a guest of
//! a hypervisor 36 us, a tenth of what a small dump takes.
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v.contains(value));
    if !is("CARGO_CFG_TARGET_ENV", "gnu") || is("CARGO_CFG_TARGET_FEATURE", "crt-static") {
        return;
    }
    // where gcc has none, libgcc_s is as good
    let told = Command::new("gcc")
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    let path = told.ok().and_then(|o| String::from_utf8(o.stdout).ok());
    let Some(folder) = path.as_deref().and_then(|p| Path::new(p.trim()).parent()) else {
        return;
    };
    if folder.join("libgcc_eh.a").is_file() {
        println!("cargo:rustc-link-search=native={}", folder.display());
        println!("cargo:rustc-link-lib=static=gcc_eh");
    }
}
