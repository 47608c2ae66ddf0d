//! The repository's files as text, as tidy and the generators see them.
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Path (relative, `/`) to text.
#[derive(Debug, Default, Clone)]
pub struct Repo {
    /// All text files git knows or would add.
    pub files: BTreeMap<String, String>,
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

impl Repo {
    /// Reads the work tree.
    ///
    /// # Errors
    /// When git is missing or this is no work tree.
    pub fn load() -> Result<Self> {
        let out = Command::new("git")
            .args(["ls-files", "-z", "-co", "--exclude-standard"])
            .current_dir(root())
            .output()
            .context("git")?;
        if !out.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&out.stderr));
        }
        let mut files = BTreeMap::new();
        for name in String::from_utf8(out.stdout)?
            .split('\0')
            .filter(|n| !n.is_empty())
        {
            // deleted in the work tree, or not text: neither can break a rule
            if let Ok(text) = std::fs::read_to_string(root().join(name)) {
                files.insert(name.to_string(), text);
            }
        }
        Ok(Self { files })
    }

    /// Files whose path begins with `under` and ends with `end`.
    pub fn select<'a>(
        &'a self,
        under: &'a str,
        end: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files
            .iter()
            .filter(move |(n, _)| n.starts_with(under) && n.ends_with(end))
            .map(|(n, t)| (n.as_str(), t.as_str()))
    }

    /// The text of a file; empty if there is none.
    pub fn text(&self, name: &str) -> &str {
        self.files.get(name).map_or("", String::as_str)
    }
}
