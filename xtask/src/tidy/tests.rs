//! Each rule is shown a file that keeps it and one that breaks it.
use super::{Complaints, code, docs};
use crate::repo::Repo;

fn repo(files: &[(&str, &str)]) -> Repo {
    let own = |(n, t): &(&str, &str)| ((*n).to_string(), (*t).to_string());
    Repo {
        files: files.iter().map(own).collect(),
    }
}

/// The rule complains about the second, not about the first.
fn trips(rule: fn(&Repo) -> Complaints, good: &[(&str, &str)], bad: &[(&str, &str)], word: &str) {
    let fine = rule(&repo(good));
    assert!(fine.is_empty(), "{fine:?}");
    let said = rule(&repo(bad));
    assert!(
        said.iter().any(|c| c.contains(word)),
        "wanted {word}, got {said:?}"
    );
}

#[test]
fn unsafe_outside_of_kernel() {
    let good = [
        ("kernel/a.rs", "unsafe { x() }"),
        (
            "engine/a.rs",
            "// unsafe\nlet a = \"unsafe {\";\nlet not_unsafe = 1;",
        ),
    ];
    trips(
        code::unsafe_only_in_kernel,
        &good,
        &[("engine/a.rs", "\nlet a = unsafe { x() };")],
        "engine/a.rs:2",
    );
    let allowed = [("engine/a.rs", "#![allow(unsafe_code)]")];
    trips(
        code::unsafe_only_in_kernel,
        &good,
        &allowed,
        "engine/a.rs:1",
    );
}

#[test]
fn unsafe_without_a_reason() {
    let good = [(
        "kernel/a.rs",
        "// SAFETY: it is\nlet a =\n    unsafe { x() };",
    )];
    trips(
        code::safety_comments,
        &good,
        &[("kernel/a.rs", "unsafe impl Send for A {}")],
        "kernel/a.rs:1",
    );
}

#[test]
fn long_files_without_a_reason() {
    let lines = "x\n".repeat(501);
    let (told, not) = (
        format!("//! Data, so it is long.\n{lines}"),
        format!("//! Data.\n{lines}"),
    );
    trips(
        code::long_files,
        &[("a.rs", &told)],
        &[("a.rs", &not)],
        "502 lines",
    );
    let (told, not) = (
        format!("/* A long\n * list */\n{lines}"),
        format!("/* A list */\n/* long */\n{lines}"),
    );
    trips(code::long_files, &[("a.c", &told)], &[("a.c", &not)], "a.c");
    trips(
        code::long_files,
        &[("a.rs", &"x\n".repeat(500))],
        &[("a.h", &lines)],
        "a.h",
    );
}

#[test]
fn files_without_a_first_comment() {
    let good = [
        ("e/src/a.rs", "//! A.\n"),
        ("e/src/b.rs", "use x;\n"),
        ("e/src/lib.rs", "//! E.\n/// B.\npub mod b;\n"),
    ];
    let bad = [
        ("e/src/b.rs", "use x;\n"),
        ("e/src/lib.rs", "//! E.\npub mod b;\n"),
    ];
    trips(code::first_comments, &good, &bad, "e/src/b.rs:1");
}

#[test]
fn codes_and_the_book() {
    let source = "Error::new(\n \"E4100\",\n Blame::Container, x)\nfn f() {}\n#[cfg(test)]\nmod tests {\n \"E9999\" }";
    let book = ("docs/errors.md", "| code | x |\n| E4100 | y |\n");
    let good = [("engine/a.rs", source), book];
    trips(
        code::error_codes,
        &good,
        &[("engine/a.rs", source)],
        "E4100 is not in",
    );
    let wrong = source.replace("Container", "Image");
    trips(
        code::error_codes,
        &good,
        &[("engine/a.rs", &wrong), book],
        "engine/a.rs:2: E4100 is for Blame::Container",
    );
    trips(
        code::error_codes,
        &good,
        &[book],
        "nothing has the code E4100",
    );
    let twice = ("docs/errors.md", "| E4100 | y |\n| E4100 | z |\n");
    trips(
        code::error_codes,
        &good,
        &[("engine/a.rs", source), twice],
        "twice",
    );
}

#[test]
fn kinds_that_lack_something() {
    const KIND: &str = "//! Counters.\n//! They count.\nimpl FileKind for K {}\n";
    let kind = ("engine/src/kinds/eventfd.rs", KIND);
    let table = (
        "engine/src/kinds/mod.rs",
        "pub static FILE_KINDS: &[&dyn FileKind] = &[&eventfd::K];",
    );
    let guest = ("tests/guests/eventfd.c", "int main");
    let row = ("tests/src/guests.rs", "    eventfd: [] [];");
    let good = [kind, table, guest, row];
    let but = |n: usize, with: (&'static str, &'static str)| {
        let mut bad = good;
        bad[n] = with;
        bad
    };
    trips(
        code::kinds,
        &good,
        &but(0, (kind.0, "//! C.\nimpl FileKind for K {}\n")),
        "say more",
    );
    trips(
        code::kinds,
        &good,
        &but(1, (table.0, "FILE_KINDS: x = &[];")),
        "no line for eventfd",
    );
    trips(
        code::kinds,
        &good,
        &but(2, ("tests/guests/other.c", "")),
        "no guest",
    );
    trips(
        code::kinds,
        &good,
        &but(3, (row.0, "")),
        "no line for the guest",
    );
    let named = "//! C.\n//!\n//! Guests: eventfd, eventfd_sem.\nimpl FileKind for K {}\n";
    trips(
        code::kinds,
        &good,
        &but(0, (kind.0, named)),
        "eventfd_sem.c",
    );
}

#[test]
fn an_engine_that_prints() {
    let good = [
        (
            "engine/src/a.rs",
            "// println!(\nwriteln!(w)\n#[cfg(test)]\nmod tests {\nprintln!()",
        ),
        ("xtask/src/a.rs", "println!()"),
    ];
    trips(
        code::engine_is_silent,
        &good,
        &[("engine/src/a.rs", "    eprintln!(\"x\");")],
        "engine/src/a.rs:1",
    );
}

#[test]
fn schemas_that_lack_something() {
    const GOOD: &str = "// SPDX-License-Identifier: Apache-2.0 OR MIT\nsyntax = \"proto2\";\n";
    let good = [("proto/schema/a.proto", GOOD)];
    for (bad, word) in [
        (GOOD.replace("MIT", "GPL"), "licence"),
        (GOOD.replace("proto2", "proto3"), "proto2"),
        (format!("{GOOD}\tx"), ":3: a tab"),
    ] {
        trips(
            code::schemas,
            &good,
            &[("proto/schema/a.proto", &bad)],
            word,
        );
    }
}

#[test]
fn words_of_a_machine() {
    let good = [(
        "README.md",
        "tmp/work/x and work/ and {dir}/work/ and /workspace",
    )];
    let bad = format!("see {}shared/x", concat!("/wo", "rk/"));
    trips(docs::no_workplace, &good, &[("a.toml", &bad)], "a.toml:1");
}

#[test]
fn a_book_with_dead_ends() {
    let summary = (
        "docs/SUMMARY.md",
        "- [A](user/a.md)\n- [Out](https://example.org)\n",
    );
    let page = (
        "docs/user/a.md",
        "[up](../SUMMARY.md#x)\n```\n[no](link.md)\n```\n",
    );
    let good = [summary, page];
    trips(
        docs::links,
        &good,
        &[summary],
        "docs/user/a.md, which is not there",
    );
    trips(
        docs::links,
        &good,
        &[summary, page, ("docs/b.md", "")],
        "does not list docs/b.md",
    );
}

#[test]
fn a_book_that_is_out_of_date() {
    let anchor = "- [Kinds of open files](kinds/README.md)\n";
    let mut r = repo(&[
        ("docs/SUMMARY.md", anchor),
        (
            "engine/src/kinds/pipe.rs",
            "//! Pipes.\nimpl FileKind for Pipe {}\n",
        ),
    ]);
    assert!(
        docs::kinds_book(&r)
            .iter()
            .any(|c| c.contains("docs/kinds/pipe.md"))
    );
    r.files.extend(crate::kinds_book::pages(&r).unwrap());
    assert!(docs::kinds_book(&r).is_empty());
    r.files.insert("docs/kinds/old.md".into(), String::new());
    assert!(docs::kinds_book(&r)[0].contains("docs/kinds/old.md"));
    assert!(docs::kinds_book(&repo(&[]))[0].contains("has no line"));
}
