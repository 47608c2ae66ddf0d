//! Rules about the book and about words anywhere.
use super::Complaints;
use crate::kinds_book;
use crate::repo::Repo;

/// Folders of whoever wrote it: nobody else has them.
pub fn no_workplace(repo: &Repo) -> Complaints {
    // put together here, or this file would break its own rule
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
    ];
    let mut all = Complaints::new();
    for (name, text) in &repo.files {
        for (n, line) in text.lines().enumerate() {
            for w in words.iter().filter(|w| line.contains(*w)) {
                // a path inside another (tmp/work/x) is none of a machine's
                let alone = line.match_indices(*w).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}".contains(c))
                });
                if alone {
                    all.push(format!("{name}:{}: names {w}: {}", n + 1, line.trim()));
                }
            }
        }
    }
    all
}

/// Generated pages that are not what the code says.
pub fn kinds_book(repo: &Repo) -> Complaints {
    let pages = match kinds_book::pages(repo) {
        Ok(p) => p,
        Err(e) => return vec![format!("{e:#}")],
    };
    let mut all = Complaints::new();
    for (name, text) in &pages {
        if repo.text(name) != text {
            all.push(format!(
                "{name}: not up to date: run `cargo xtask kinds-book`"
            ));
        }
    }
    for (name, _) in repo.select("docs/kinds/", ".md") {
        if !pages.contains_key(name) {
            all.push(format!(
                "{name}: no kind has this page: run `cargo xtask kinds-book`"
            ));
        }
    }
    all
}

/// Links of pages to files that are not there, and pages the summary does not list.
pub fn links(repo: &Repo) -> Complaints {
    let mut all = Complaints::new();
    let summary = targets("docs/SUMMARY.md", repo.text("docs/SUMMARY.md"));
    for (name, text) in repo.select("", ".md") {
        for target in targets(name, text) {
            if !repo.files.contains_key(&target) {
                all.push(format!("{name}: links to {target}, which is not there"));
            }
        }
        let listed = name == "docs/SUMMARY.md" || summary.iter().any(|t| t == name);
        if name.starts_with("docs/") && !listed {
            all.push(format!("docs/SUMMARY.md: does not list {name}"));
        }
    }
    all
}

/// Files of the repository that a page links to.
fn targets(page: &str, text: &str) -> Vec<String> {
    let folder = page.rsplit_once('/').map_or("", |(f, _)| f);
    let mut code = false;
    let mut out = Vec::new();
    for line in text.lines() {
        code ^= line.starts_with("```");
        if code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split(')').next().unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
            for p in target.split('/') {
                match p {
                    "." | "" => {}
                    ".." => drop(parts.pop()),
                    p => parts.push(p),
                }
            }
            out.push(parts.join("/"));
        }
    }
    out
}
