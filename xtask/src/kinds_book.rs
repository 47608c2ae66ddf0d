//! The book's pages of kinds: the first comment of each kind's file is its page.
use crate::repo::{Repo, root};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

const KINDS: &str = "engine/src/kinds/";
const SUMMARY: &str = "docs/SUMMARY.md";
const INDEX: &str = "docs/kinds/README.md";
/// The line of the summary under which the pages are listed.
const ANCHOR: &str = "- [Kinds of open files](kinds/README.md)";

/// A file that implements a kind.
pub struct Kind<'a> {
    /// Module name.
    pub module: &'a str,
    /// Path of the file.
    pub file: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// All files that implement kinds, by name.
pub fn kinds(repo: &Repo) -> Vec<Kind<'_>> {
    repo.select(KINDS, ".rs")
        .filter(|(_, text)| text.lines().any(|l| l.starts_with("impl FileKind for ")))
        .filter_map(|(file, text)| {
            let module = file.strip_prefix(KINDS)?.strip_suffix(".rs")?;
            // pipe/mod.rs is the kind `pipe`
            let module = module.strip_suffix("/mod").unwrap_or(module);
            Some(Kind { module, file, text })
        })
        .collect()
}

/// The first comment of a file (`//!`), without its marks.
pub fn first_comment(text: &str) -> String {
    text.lines()
        .take_while(|l| l.starts_with("//!"))
        .map(|l| {
            l.trim_start_matches("//!")
                .strip_prefix(' ')
                .unwrap_or("")
                .trim_end()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Every generated file with its text; the summary as it must be.
///
/// # Errors
/// When the summary has lost its anchor.
pub fn pages(repo: &Repo) -> Result<BTreeMap<String, String>> {
    const NOTE: &str = "<!-- written by `cargo xtask kinds-book` from the code: do not edit -->\n";
    let mut pages = BTreeMap::new();
    let mut index = format!(
        "{NOTE}# Kinds of open files\n\nWhat a process can have open, and what of it comes back. `stasis kinds` prints the same list.\n\n"
    );
    let mut listed = String::new();
    for k in kinds(repo) {
        let Kind { module, file, text } = k;
        let words = first_comment(text);
        let title = module.replace('_', " ");
        let page = format!("{NOTE}# {title}\n\n{words}\n\nSource: `{file}`.\n");
        pages.insert(format!("docs/kinds/{module}.md"), page);
        let first = words
            .split("\n\n")
            .next()
            .unwrap_or_default()
            .replace('\n', " ");
        index += &format!("- [{title}]({module}.md): {first}\n");
        listed += &format!("  - [{title}](kinds/{module}.md)\n");
    }
    pages.insert(INDEX.into(), index);
    pages.insert(SUMMARY.into(), summary(repo.text(SUMMARY), &listed)?);
    Ok(pages)
}

fn summary(old: &str, listed: &str) -> Result<String> {
    let (before, after) = old
        .split_once(ANCHOR)
        .with_context(|| format!("{SUMMARY} has no line `{ANCHOR}`"))?;
    let rest: String = after
        .trim_start_matches('\n')
        .split_inclusive('\n')
        .skip_while(|l| l.starts_with("  - [") && l.contains("](kinds/"))
        .collect();
    Ok(format!("{before}{ANCHOR}\n{listed}{rest}"))
}

/// Runs the verb.
///
/// # Errors
/// When files cannot be read or written.
pub fn run() -> Result<()> {
    let repo = Repo::load()?;
    let pages = pages(&repo)?;
    let stale = repo
        .select("docs/kinds/", ".md")
        .filter(|(n, _)| !pages.contains_key(*n));
    for (name, _) in stale {
        std::fs::remove_file(root().join(name))?;
        println!("removed {name}");
    }
    for (name, text) in &pages {
        if repo.text(name) != text {
            let path = root().join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(&path, text)?;
            println!("wrote {name}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_becomes_a_page_and_a_line_and_old_lines_go() {
        let mut repo = Repo::default();
        let code = "//! Counters.\n//!\n//! More.\nuse x;\nimpl FileKind for EventFd {}\n";
        repo.files
            .insert("engine/src/kinds/eventfd.rs".into(), code.into());
        repo.files
            .insert("engine/src/kinds/common.rs".into(), "//! Helpers\n".into());
        let old = format!("# S\n{ANCHOR}\n  - [gone](kinds/gone.md)\n- [Next](n.md)\n");
        repo.files.insert(SUMMARY.into(), old);
        let p = pages(&repo).unwrap();
        assert_eq!(p.len(), 3);
        assert!(p["docs/kinds/eventfd.md"].contains("# eventfd\n\nCounters.\n\nMore.\n"));
        assert!(p[INDEX].contains("- [eventfd](eventfd.md): Counters.\n"));
        let want = format!("# S\n{ANCHOR}\n  - [eventfd](kinds/eventfd.md)\n- [Next](n.md)\n");
        assert_eq!(p[SUMMARY], want);
        repo.files.insert(SUMMARY.into(), want.clone());
        assert_eq!(
            pages(&repo).unwrap()[SUMMARY],
            want,
            "a second run changes nothing"
        );
    }
}
