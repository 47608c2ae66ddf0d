//! The house rules, checked. Each rule is a function from the files to complaints, so that the tests can show each of
//! them a file that breaks it.
mod code;
mod docs;
#[cfg(test)]
mod tests;

pub use code::codes;

use crate::repo::Repo;
use anyhow::Result;

/// A broken rule: `place: what`.
pub type Complaints = Vec<String>;

type Rule = (&'static str, fn(&Repo) -> Complaints);

/// All rules.
const RULES: &[Rule] = &[
    (
        "unsafe code only in crate kernel",
        code::unsafe_only_in_kernel,
    ),
    ("unsafe code says why it is sound", code::safety_comments),
    ("long files say why", code::long_files),
    ("public modules begin with a comment", code::first_comments),
    (
        "error codes: right digit, listed in the book",
        code::error_codes,
    ),
    ("kinds are complete", code::kinds),
    ("the engine prints nothing", code::engine_is_silent),
    ("schemas are whole", code::schemas),
    ("nothing names a machine", docs::no_workplace),
    ("the book's kinds are up to date", docs::kinds_book),
    ("the book has no dead ends", docs::links),
];

/// Runs the verb; false if a rule is broken.
///
/// # Errors
/// When the work tree cannot be read.
pub fn run() -> Result<bool> {
    let repo = Repo::load()?;
    let mut broken = 0;
    for (rule, check) in RULES {
        let complaints = check(&repo);
        for c in &complaints {
            println!("{c}\n    rule: {rule}");
        }
        broken += complaints.len();
    }
    match broken {
        0 => println!(
            "tidy: {} files, {} rules kept",
            repo.files.len(),
            RULES.len()
        ),
        n => println!("tidy: {n} complaints"),
    }
    Ok(broken == 0)
}
