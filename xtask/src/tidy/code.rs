//! Rules about code.
use super::Complaints;
use crate::errors_book::{BOOK, code_of_row};
use crate::kinds_book;
use crate::repo::Repo;
use std::collections::BTreeMap;

/// Lines a file may have before it must say why.
const LONG: usize = 500;

/// The code of a line: without its comment, and without what stands in string literals.
fn code_of(line: &str) -> String {
    let mut out = String::new();
    let mut text = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if text => {
                chars.next();
            }
            '"' => text = !text,
            '/' if !text && chars.peek() == Some(&'/') => break,
            c if !text => out.push(c),
            _ => {}
        }
    }
    out
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|w| w == word)
}

/// `unsafe`, and permission for it, outside of the kernel crate.
pub fn unsafe_only_in_kernel(repo: &Repo) -> Complaints {
    let mut all = Complaints::new();
    for (name, text) in repo
        .select("", ".rs")
        .filter(|(n, _)| !n.starts_with("kernel/"))
    {
        for (n, line) in text.lines().enumerate() {
            let code = code_of(line);
            if has_word(&code, "unsafe") || has_word(&code, "unsafe_code") {
                all.push(format!("{name}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    all
}

/// `unsafe` blocks and impls without the fact they rest on. Clippy knows the blocks better; this also sees impls and macros.
pub fn safety_comments(repo: &Repo) -> Complaints {
    // a block may stand inside a statement that began some lines above
    const NEAR: usize = 8;
    let mut all = Complaints::new();
    for (name, text) in repo.select("kernel/", ".rs") {
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let code = code_of(line);
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            if !lines[n.saturating_sub(NEAR)..=n]
                .iter()
                .any(|l| l.contains("SAFETY:"))
            {
                all.push(format!(
                    "{name}:{}: no SAFETY comment: {}",
                    n + 1,
                    line.trim()
                ));
            }
        }
    }
    all
}

/// Files past the limit whose first comment does not say why they are long.
pub fn long_files(repo: &Repo) -> Complaints {
    let code = |n: &str| n.ends_with(".rs") || n.ends_with(".c") || n.ends_with(".h");
    repo.files
        .iter()
        .filter(|(n, t)| code(n) && t.lines().count() > LONG)
        .filter(|(_, t)| !head(t).to_lowercase().contains("long"))
        .map(|(n, t)| {
            let lines = t.lines().count();
            format!("{n}: {lines} lines, and its first comment does not say why it is long")
        })
        .collect()
}

/// The comment at the very top of a Rust or C file.
fn head(text: &str) -> String {
    match text.strip_prefix("/*") {
        Some(c) => c.split("*/").next().unwrap_or_default().to_string(),
        None => text
            .lines()
            .take_while(|l| l.starts_with("//") || l.trim().is_empty())
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

/// Source files that do not begin with a word on what they are for. Modules may be told in their parent instead.
pub fn first_comments(repo: &Repo) -> Complaints {
    let mut all = Complaints::new();
    for (name, text) in repo.select("", ".rs") {
        // modules of tests say it by their tests' names
        if text.starts_with("//!") || name.ends_with("tests.rs") {
            continue;
        }
        let module = name
            .rsplit('/')
            .next()
            .unwrap_or(name)
            .trim_end_matches(".rs");
        let parent = name.rsplit_once('/').map_or("", |(p, _)| p);
        let told = ["lib.rs", "main.rs", "mod.rs"].iter().any(|p| {
            let lines: Vec<&str> = repo.text(&format!("{parent}/{p}")).lines().collect();
            lines.windows(2).any(|w| {
                w[0].starts_with("///")
                    && w[1]
                        .trim_end_matches(';')
                        .ends_with(&format!("mod {module}"))
            })
        });
        if !told {
            all.push(format!(
                "{name}:1: begins without a comment on what it is for"
            ));
        }
    }
    all
}

/// Whose fault the first digit of a code means; `E02xx` are the image reader's.
fn blame(code: &str) -> &'static str {
    match code.as_bytes()[1] {
        b'2' => "Caller",
        b'3' => "Kernel",
        b'4' => "Container",
        b'5' => "Image",
        b'6' => "Host",
        b'9' => "Engine",
        _ => "",
    }
}

/// A place where a code stands.
pub struct Place {
    /// `file:line`
    pub at: String,
    /// Some text behind it.
    pub after: String,
}

/// Codes of the form `"E1234"` in code, with where they stand; tests do not count.
pub fn codes(repo: &Repo) -> BTreeMap<String, Vec<Place>> {
    let mut all: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    let own = |n: &str| !n.starts_with("xtask/") && !n.contains("test");
    for (name, text) in repo.select("", ".rs").filter(|(n, _)| own(n)) {
        let text = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        for (at, _) in text.match_indices("\"E") {
            let Some(code) = text.get(at + 1..at + 6) else {
                continue;
            };
            let closed = text.as_bytes().get(at + 6) == Some(&b'"');
            if closed && code[1..].bytes().all(|b| b.is_ascii_digit()) {
                let line = text[..at].matches('\n').count() + 1;
                all.entry(code.into()).or_default().push(Place {
                    at: format!("{name}:{line}"),
                    after: text[at + 7..].chars().take(250).collect(),
                });
            }
        }
    }
    all
}

/// Codes with the wrong first digit, codes the book does not list, and codes only the book knows.
pub fn error_codes(repo: &Repo) -> Complaints {
    let mut all = Complaints::new();
    let used = codes(repo);
    let rows = repo.text(BOOK).lines();
    let listed: Vec<&str> = rows.filter_map(code_of_row).collect();
    for (code, places) in &used {
        let want = blame(code);
        for p in places {
            // `Blame::X` is the next argument
            let said = p
                .after
                .trim_start_matches(|c: char| c == ',' || c.is_whitespace())
                .strip_prefix("Blame::")
                .and_then(|b| b.split(|c: char| !c.is_alphanumeric()).next());
            if let Some(said) = said
                && !want.is_empty()
                && said != want
            {
                all.push(format!(
                    "{}: {code} is for Blame::{want}, not Blame::{said}",
                    p.at
                ));
            }
        }
        match listed.iter().filter(|l| *l == code).count() {
            0 => all.push(format!(
                "{}: {code} is not in {BOOK}: run `cargo xtask errors-book`",
                places[0].at
            )),
            1 => {}
            _ => all.push(format!("{BOOK}: {code} is listed twice")),
        }
    }
    for code in listed.iter().filter(|l| !used.contains_key(**l)) {
        all.push(format!(
            "{BOOK}: nothing has the code {code}: run `cargo xtask errors-book`"
        ));
    }
    all
}

/// Kinds that lack their line in the table, their comment, or their guest.
pub fn kinds(repo: &Repo) -> Complaints {
    const TABLE: &str = "engine/src/kinds/mod.rs";
    let table = repo
        .text(TABLE)
        .split_once("FILE_KINDS:")
        .and_then(|(_, t)| t.split_once("];"))
        .map_or("", |(t, _)| t);
    let mut all = Complaints::new();
    for k in kinds_book::kinds(repo) {
        let words = kinds_book::first_comment(k.text);
        if words.lines().filter(|l| !l.is_empty()).count() < 2 {
            all.push(format!(
                "{}:1: its first comment is its page in the book: say more",
                k.file
            ));
        }
        if !table.contains(&format!("{}::", k.module)) {
            all.push(format!("{TABLE}: FILE_KINDS has no line for {}", k.module));
        }
        let guests: Vec<String> = match words.lines().find_map(|l| l.strip_prefix("Guests: ")) {
            Some(names) => names
                .split([',', ' ', '.'])
                .filter(|n| !n.is_empty())
                .map(str::to_string)
                .collect(),
            None => vec![k.module.to_string()],
        };
        for g in guests {
            if repo.text(&format!("tests/guests/{g}.c")).is_empty() {
                all.push(format!(
                    "{}: no guest tests/guests/{g}.c (a line `Guests: a, b.` in the first comment names others)",
                    k.file
                ));
            } else if !repo
                .text("tests/src/guests.rs")
                .contains(&format!(" {g}: ["))
            {
                all.push(format!("tests/src/guests.rs: no line for the guest {g}"));
            }
        }
    }
    all
}

/// The engine and the crates below print nothing: what they have to say goes into results and the log.
pub fn engine_is_silent(repo: &Repo) -> Complaints {
    let mut all = Complaints::new();
    for crate_ in ["engine/src/", "kernel/src/", "proto/src/"] {
        for (name, text) in repo
            .select(crate_, ".rs")
            .filter(|(n, _)| !n.contains("test"))
        {
            let text = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default();
            for (n, line) in text.lines().enumerate() {
                let code = code_of(line);
                if ["print!", "println!", "eprint!", "eprintln!", "dbg!"]
                    .iter()
                    .any(|m| has_word(&code, m.trim_end_matches('!')) && code.contains(m))
                {
                    all.push(format!("{name}:{}: {}", n + 1, line.trim()));
                }
            }
        }
    }
    all
}

/// Schemas without their heading, or with tabs.
pub fn schemas(repo: &Repo) -> Complaints {
    let mut all = Complaints::new();
    for (name, text) in repo.select("proto/schema/", ".proto") {
        if !text.starts_with("// SPDX-License-Identifier: Apache-2.0 OR MIT\n") {
            all.push(format!("{name}:1: no licence line"));
        }
        if !text.contains("syntax = \"proto2\";") {
            all.push(format!("{name}: not proto2"));
        }
        for (n, line) in text.lines().enumerate() {
            if line.contains('\t') {
                all.push(format!("{name}:{}: a tab", n + 1));
            }
        }
    }
    all
}
