//! An engine: a binary with the `criu` command line. Ours, CRIU's, anybody's.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where an engine's binary is. Its name does not matter: it is always started under the name `criu`.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The binary.
    pub path: PathBuf,
}

impl Engine {
    /// The engine at `path`.
    ///
    /// # Errors
    /// When there is no file at `path`.
    pub fn at(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let path = path
            .canonicalize()
            .with_context(|| format!("engine {}", path.display()))?;
        Ok(Engine { path })
    }

    /// The engine under test: `STASIS_ENGINE`, or else our own binary, built first so that it is never a stale one.
    ///
    /// # Errors
    /// When the variable names nothing, or our binary does not build.
    pub fn under_test() -> Result<Self> {
        if let Some(path) = std::env::var_os("STASIS_ENGINE") {
            return Engine::at(path);
        }
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "-p", "stasis", "--bin", "stasis"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        let target = crate::build::target_dir()?;
        if target.ends_with("release") {
            build.arg("--release");
        }
        let out = build.output().context("cargo build of the engine")?;
        if !out.status.success() {
            bail!(
                "the engine does not build:\n{}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
        Engine::at(target.join("stasis"))
    }
}

/// `true` when `STASIS_ENGINE` names an engine: then the whole matrix is meant, not only what ours promises.
pub fn foreign() -> bool {
    std::env::var_os("STASIS_ENGINE").is_some()
}

/// The line of an engine's log that says why it failed: the first `Error` line, or "" when there is none.
///
/// CRIU also logs an Error when it cannot raise its own limits, and goes on: that one is passed over.
pub fn first_error(log: &str) -> String {
    log.lines()
        .find(|l| l.contains("Error") && !l.contains("rlimit: Can't setup"))
        .unwrap_or_default()
        .trim()
        .to_string()
}

/// The last `n` lines of a log.
pub fn tail(log: &str, n: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}
