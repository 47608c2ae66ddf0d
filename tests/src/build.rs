//! Compiling guests: gcc, into a folder beside the running test binary, only when the source is newer.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the C sources.
pub fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests")
}

/// The cargo profile folder (`target/debug`), found from the running binary.
///
/// # Errors
/// When the running binary's path cannot be read.
pub fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("path of the running binary")?;
    let dir = exe.parent().context("folder of the running binary")?;
    Ok(if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    }
    .to_path_buf())
}

/// The compiled guest `name`, built now if its source or a header changed since.
///
/// Safe when several test processes ask for the same guest: the binary appears by rename.
///
/// # Errors
/// When gcc is missing or refuses the source; the compiler's words are in the error.
pub fn guest(name: &str) -> Result<PathBuf> {
    compile(name, &source_dir().join(format!("{name}.c")))
}

/// The program `name` of this source, likewise.
///
/// # Errors
/// As [`guest`].
pub fn compile(name: &str, source: &Path) -> Result<PathBuf> {
    compile_with(name, source, &[])
}

/// The compiled guest `name` that needs nothing of the file system it runs in.
///
/// # Errors
/// As [`guest`].
pub fn static_guest(name: &str) -> Result<PathBuf> {
    let source = source_dir().join(format!("{name}.c"));
    compile_with(&format!("static-{name}"), &source, &["-static"])
}

fn compile_with(name: &str, source: &Path, flags: &[&str]) -> Result<PathBuf> {
    let dir = target_dir()?.join("guests");
    fs::create_dir_all(&dir)?;
    let binary = dir.join(name);
    let age = |p: &Path| fs::metadata(p).and_then(|m| m.modified());
    let mut newest = age(source).with_context(|| format!("guest source {}", source.display()))?;
    for entry in fs::read_dir(source_dir())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "h") {
            newest = newest.max(age(&path)?);
        }
    }
    if age(&binary).is_ok_and(|built| built > newest) {
        return Ok(binary);
    }
    // A lock per guest: two test processes must not exec a file the other is still writing (ETXTBSY).
    let lock = File::create(dir.join(format!("{name}.lock")))?;
    lock.lock()?;
    if age(&binary).is_ok_and(|built| built > newest) {
        return Ok(binary);
    }
    let fresh = dir.join(format!("{name}.new"));
    let out = Command::new("gcc")
        .args([
            "-std=gnu11",
            "-O1",
            "-g1",
            "-Wall",
            "-Werror",
            "-pthread",
            "-o",
        ])
        .arg(&fresh)
        .arg(source)
        .args(flags)
        .arg("-lrt")
        .output()
        .context("gcc (the guests are C programs)")?;
    if !out.status.success() {
        bail!(
            "gcc {}:\n{}",
            source.display(),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    fs::rename(&fresh, &binary)?;
    Ok(binary)
}

/// The names of the spoils in a guest's source: every `SPOIL("name")`, in order, once.
///
/// # Errors
/// When the source cannot be read.
pub fn spoils(name: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(source_dir().join(format!("{name}.c")))?;
    let mut names: Vec<String> = Vec::new();
    for rest in text.split("SPOIL(\"").skip(1) {
        let found = rest.split('"').next().unwrap_or_default().to_string();
        if !names.contains(&found) {
            names.push(found);
        }
    }
    Ok(names)
}

/// Is a program installed, in PATH or where Debian keeps administrators' programs?
pub fn program_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|d: PathBuf| d.join(name).is_file())
}
