//! The book's table of error codes: rows are written by hand, this adds what is missing and drops what is gone.
use crate::repo::{Repo, root};
use crate::tidy::codes;
use anyhow::Result;
use std::collections::BTreeMap;

/// The page.
pub const BOOK: &str = "docs/errors.md";

/// The code of a row of the table.
pub fn code_of_row(line: &str) -> Option<&str> {
    let code = line.strip_prefix("| ")?.get(..5)?;
    let digits = code.strip_prefix('E')?;
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(code)
}

/// The page with a row for each code of the code.
pub fn page(repo: &Repo) -> String {
    let old = repo.text(BOOK);
    let mut rows: BTreeMap<String, String> = BTreeMap::new();
    for (code, places) in codes(repo) {
        let words = places
            .iter()
            .find_map(|p| literal(&p.after))
            .unwrap_or_default();
        rows.insert(code.clone(), format!("| {code} | {words} |"));
    }
    for line in old.lines() {
        if let Some(row) = code_of_row(line).and_then(|c| rows.get_mut(c)) {
            *row = line.to_string();
        }
    }
    let table = rows.into_values().collect::<Vec<_>>().join("\n");
    let mut out = Vec::new();
    let mut placed = false;
    for line in old.lines() {
        if code_of_row(line).is_none() {
            out.push(line);
        }
        if line.starts_with("|---") && !placed {
            placed = true;
            out.push(&table);
        }
    }
    out.join("\n") + "\n"
}

/// The first string literal behind a code, which mostly says what happened; holes of format strings become dots.
fn literal(after: &str) -> Option<String> {
    let text = after.split_once('"')?.1.split_once('"')?.0;
    let mut out = String::new();
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => {
                depth += 1;
                if depth == 1 {
                    out.push('…');
                }
            }
            '}' => depth -= 1,
            '|' | '\n' => out.push(' '),
            c if depth == 0 => out.push(c),
            _ => {}
        }
    }
    (text.contains(' ')).then_some(out)
}

/// Runs the verb.
///
/// # Errors
/// When files cannot be read or written.
pub fn run() -> Result<()> {
    let repo = Repo::load()?;
    let page = page(&repo);
    if repo.text(BOOK) != page {
        std::fs::write(root().join(BOOK), page)?;
        println!("wrote {BOOK}: look at the new rows, they are only a beginning");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_kept_added_and_dropped() {
        let mut repo = Repo::default();
        let code = "Error::new(\"E4100\", Blame::Container, format!(\"cannot dump {}|x\", p)); \"E4101\" => 1";
        repo.files.insert("engine/a.rs".into(), code.into());
        let old = "# Errors\n\n| code | meaning |\n|---|---|\n| E4101 | by hand |\n| E4999 | gone |\n\nEnd\n";
        repo.files.insert(BOOK.into(), old.into());
        let want = "# Errors\n\n| code | meaning |\n|---|---|\n| E4100 | cannot dump … x |\n| E4101 | by hand |\n\nEnd\n";
        assert_eq!(page(&repo), want);
        repo.files.insert(BOOK.into(), want.into());
        assert_eq!(page(&repo), want);
    }
}
