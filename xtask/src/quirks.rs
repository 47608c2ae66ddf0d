//! Every place that leans on odd behaviour of the kernel: comments that begin with `KERNEL`.
use crate::repo::Repo;
use anyhow::Result;

/// A quirk: where, and the words, continued lines joined.
pub fn find(repo: &Repo) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, text) in repo.select("", ".rs") {
        let mut lines = text.lines().enumerate().peekable();
        while let Some((n, line)) = lines.next() {
            let Some(words) = comment(line).filter(|w| w.starts_with("KERNEL")) else {
                continue;
            };
            let mut words = words.to_string();
            while let Some(more) = lines
                .peek()
                .and_then(|(_, l)| comment(l))
                .filter(|w| !w.is_empty() && !w.starts_with("KERNEL"))
            {
                words.push(' ');
                words.push_str(more);
                lines.next();
            }
            all.push((format!("{name}:{}", n + 1), words));
        }
    }
    all
}

/// The words of a line that is nothing but a comment.
fn comment(line: &str) -> Option<&str> {
    let t = line.trim_start();
    ["//!", "///", "//"]
        .iter()
        .find_map(|p| t.strip_prefix(p))
        .map(str::trim)
}

/// Runs the verb.
///
/// # Errors
/// When the work tree cannot be read.
pub fn run() -> Result<()> {
    let all = find(&Repo::load()?);
    for (place, words) in &all {
        println!("{place}\n    {words}");
    }
    println!("{} quirks", all.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quirks_are_found_with_their_continuation() {
        let mut repo = Repo::default();
        let text = "fn a() {\n    // KERNEL(>=6.13): one\n    // two\n    let x = \"KERNEL\";\n}\n//! KERNEL: three\n";
        repo.files.insert("k.rs".into(), text.into());
        let all = find(&repo);
        assert_eq!(all[0], ("k.rs:2".into(), "KERNEL(>=6.13): one two".into()));
        assert_eq!(all[1].1, "KERNEL: three");
        assert_eq!(all.len(), 2);
    }
}
