//! The images of two dumps of one tree, one restore apart: they must say the same.
use crate::case::Report;
use crate::init::Stage;
use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use serde_json::Value;
use stasis_proto::ImageDir;
use stasis_proto::show::Schema;
use std::collections::BTreeSet;
use std::path::Path;

/// What may differ between the dump of a tree and the dump of what was restored from it: the image (its name up to the
/// first `-` or `.`), the field, and why.
pub const MAY_DIFFER: &[(&str, &str, &str)] = &[
    ("pipes", "pipe_id", "a new pipe has a new inode number"),
    ("files", "pipe_id", "a new pipe has a new inode number"),
    ("files", "inode_id", "a memfd is a new inode"),
    (
        "files",
        "inode",
        "what an epoll file watches may be a new inode",
    ),
    ("core", "flags", "PF_* bits of the kernel's own making"),
    ("ghost", "tv_sec", "reading the contents is an access"),
    ("ghost", "tv_usec", "reading the contents is an access"),
    ("timens", "tv_sec", "the clocks go on"),
    ("timens", "tv_nsec", "the clocks go on"),
    ("core", "vsec", "timers go on"),
    ("core", "vusec", "timers go on"),
    ("core", "vnsec", "timers go on"),
    ("core", "fregs", "the last floating point instruction"),
    ("files", "timestamp", "access times of files move"),
    (
        "pages",
        "bytes",
        "the lowest stack pages, which the dump itself used, exist now",
    ),
    ("pagemap", "nr_pages", "the same"),
    ("pagemap", "vaddr", "the same"),
    ("pagemap", "compat_nr_pages", "the same"),
];

/// Everything in which two folders differ beyond [`MAY_DIFFER`], one line each.
///
/// # Errors
/// When an image cannot be read.
pub fn differences(a: &Path, b: &Path) -> Result<Vec<String>> {
    let schema = Schema::new();
    let (a, b) = (ImageDir::open(a)?, ImageDir::open(b)?);
    let images = |d: &ImageDir| -> Result<Vec<String>> {
        let all = d.list()?.into_iter();
        Ok(all.filter(|n| !n.starts_with("stats-")).collect())
    };
    let names: BTreeSet<String> = images(&a)?.into_iter().chain(images(&b)?).collect();
    let mut found = Vec::new();
    for name in names {
        if !a.exists(&name)? || !b.exists(&name)? {
            found.push(format!("{name} is in one folder only"));
            continue;
        }
        let (x, y) = (schema.show(&a, &name)?, schema.show(&b, &name)?);
        compare(&name, "", &x, &y, &mut found);
    }
    Ok(found)
}

/// Lists whose order means nothing: the image, the list, the field to sort by, and why.
pub const NO_ORDER: &[(&str, &str, &str, &str)] = &[
    (
        "files",
        "tfd",
        "tfd",
        "the kernel lists watched files by address",
    ),
    (
        "core",
        "posix",
        "it_id",
        "the kernel lists timers newest first",
    ),
];

fn sorted(kind: &str, field: &str, list: &[Value]) -> Vec<Value> {
    let mut all = list.to_vec();
    if let Some((_, _, key, _)) = NO_ORDER.iter().find(|(k, f, ..)| *k == kind && *f == field) {
        all.sort_by_key(|v| v.get(key).and_then(Value::as_i64));
    }
    all
}

fn compare(file: &str, at: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    let kind = file.split(['-', '.']).next().unwrap_or(file);
    let field = at
        .rsplit('/')
        .find(|p| p.parse::<usize>().is_err())
        .unwrap_or("");
    if a == b || MAY_DIFFER.iter().any(|(k, f, _)| *k == kind && *f == field) {
        return;
    }
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            for k in keys {
                let none = Value::Null;
                compare(
                    file,
                    &format!("{at}/{k}"),
                    x.get(k).unwrap_or(&none),
                    y.get(k).unwrap_or(&none),
                    found,
                );
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            let (x, y) = (sorted(kind, field, x), sorted(kind, field, y));
            for (i, (p, q)) in x.iter().zip(&y).enumerate() {
                compare(file, &format!("{at}/{i}"), p, q, found);
            }
        }
        // entries of a pagemap come and go with pages of dead stack
        (Value::Array(_), Value::Array(_)) if kind == "pagemap" => {}
        _ => {
            let short = |v: &Value| v.to_string().chars().take(120).collect::<String>();
            found.push(format!("{file}{at}: {} is {}", short(a), short(b)));
        }
    }
}

impl Stage {
    pub(crate) fn redump(&mut self, root: Pid, report: &mut Report) -> Result<Pid> {
        std::thread::sleep(std::time::Duration::from_millis(60));
        let first = self.dump_away(root)?;
        let kept = self.spec.dir.join("img-first");
        std::fs::rename(&first, &kept)?;
        self.restore_well(root, &kept)?;
        std::thread::sleep(std::time::Duration::from_millis(60));
        let second = self.dump_away(root)?;
        let found = differences(&kept, &second).context("comparing the images")?;
        if !found.is_empty() {
            bail!("the second dump differs:\n{}", found.join("\n"));
        }
        report.notes = format!("{}: the images of two dumps are equal", self.name());
        self.restore_well(root, &second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_is_found_and_a_declared_one_is_not() {
        let diff = |a: Value, b: Value, file: &str| {
            let mut v = Vec::new();
            compare(file, "", &a, &b, &mut v);
            v
        };
        assert_eq!(
            diff(
                json!({"x": [1, {"y": 2}]}),
                json!({"x": [1, {"y": 3}]}),
                "core-1.img"
            )
            .len(),
            1
        );
        assert!(
            diff(
                json!({"t": {"vsec": 2}}),
                json!({"t": {"vsec": 3}}),
                "core-1.img"
            )
            .is_empty()
        );
        assert_eq!(
            diff(json!({"vsec": 2}), json!({"vsec": 3}), "mm-1.img").len(),
            1
        );
        assert_eq!(diff(json!([1]), json!([1, 2]), "mm-1.img").len(), 1);
    }
}
