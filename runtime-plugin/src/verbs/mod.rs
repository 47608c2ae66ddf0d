//! The verbs of `stasis`: one file each.
pub mod check;
pub mod checkpoint;
pub mod dedup;
pub mod dump;
mod into;
pub mod kinds;
pub mod migrate;
pub mod netlock;
pub mod plan;
pub mod receive;
pub mod restore;
mod secure;
pub mod show;

use serde_json::{Value, json};
use stasis_engine::archive::Place;
use stasis_engine::{Blame, Error, Options, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error as JSON: `{"error": {"code", "blame", "what", "why", "advice", "phase", "kind"}}`.
pub fn error_json(e: &Error) -> Value {
    json!({"error": error_fields(e)})
}

/// The fields of an error; absent ones are null.
pub fn error_fields(e: &Error) -> Value {
    let some = |s: &str| (!s.is_empty()).then(|| s.to_string());
    json!({
        "code": e.code,
        "blame": e.blame.word(),
        "what": e.what,
        "why": some(&e.why),
        "advice": some(&e.advice),
        "phase": e.phase.map(|p| format!("{p:?}")),
        "kind": e.kind,
    })
}

/// A byte count for people: `12.3 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut shown = n as f64;
    let mut unit = 0;
    while shown >= 1024.0 && unit + 1 < UNITS.len() {
        shown /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ => format!("{shown:.1} {}", UNITS[unit]),
    }
}

/// Microseconds for people.
pub fn time(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// Text from an image or a process on one line, without control characters: it may be hostile to terminals.
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

/// The stream that stands for a folder: FILE of `-o` or `-i`, or what -D names if it is a file.
fn place(dir: Option<&Path>, stream: Option<&Path>, writing: bool) -> Result<Option<Place>> {
    use std::os::fd::AsFd;
    if let Some(file) = stream {
        if file != Path::new("-") {
            return Ok(Some(Place::File(file.into())));
        }
        let own = match writing {
            true => std::io::stdout().as_fd().try_clone_to_owned(),
            false => std::io::stdin().as_fd().try_clone_to_owned(),
        };
        let own = own.map_err(|e| {
            Error::new("E2721", Blame::Caller, "the stream `-`")
                .why(e)
                .advice("leave standard output and input open")
        })?;
        return Ok(Some(Place::Open(Arc::new(own.into()))));
    }
    let is_file = |d: &Path| match writing {
        true => d.extension().is_some_and(|e| e == "stasis") && !d.is_dir(),
        false => d.is_file(),
    };
    Ok(dir.filter(|d| is_file(d)).map(|d| Place::File(d.into())))
}

/// Images that are looked at.
#[derive(Debug, clap::Args)]
pub struct Images {
    /// Folder of the images, or the file that holds them; `-`: standard input
    dir: PathBuf,
    /// File with the age identity that opens encrypted images
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

impl Images {
    fn options(&self) -> Result<Options> {
        let dir = self.dir.as_path();
        let mut o = Options::new(dir);
        o.archive = place(Some(dir), Some(dir).filter(|d| *d == Path::new("-")), false)?;
        o.identity = self.identity.clone();
        Ok(o)
    }
}

/// The folder for what is said beside the images.
fn folder(dir: Option<&Path>, place: Option<&Place>) -> PathBuf {
    match (dir, place) {
        (Some(d), None) => d.into(),
        (_, Some(Place::File(f))) => match f.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.into(),
            _ => ".".into(),
        },
        _ => ".".into(),
    }
}

/// Where the images went, for people.
fn shown(dir: Option<&Path>, stream: Option<&Path>) -> String {
    dir.or(stream)
        .unwrap_or(Path::new("-"))
        .display()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_engine::Blame;

    #[test]
    fn numbers_and_hostile_text_are_made_readable() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(time(1234), "1.23 ms");
        assert_eq!(time(12_345), "12 ms");
        assert_eq!(time(1_230_000), "1.23 s");
        assert_eq!(plain("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
    }

    #[test]
    fn an_error_has_all_its_fields_in_json() {
        let e = Error::new("E4100", Blame::Container, "cannot dump fd 7").why("a socket");
        let v = error_json(&e);
        assert_eq!(v["error"]["code"], "E4100");
        assert_eq!(v["error"]["blame"], "container");
        assert_eq!(v["error"]["why"], "a socket");
        assert!(v["error"]["advice"].is_null());
    }
}
