//! Damaged and hostile image folders against the plan of a restore: an error or a plan, never a panic, never a hang.
//!
//! Real folders are dumped once each; then copies of them are cut at every byte, changed in random bits, and have their files
//! swapped. Planning needs no rights and touches nothing, so it runs in this process. `STASIS_LONG=1` takes ten times as many.
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use stasis_tests::case::dumped;
use stasis_tests::guests::find;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BOX: &str = env!("CARGO_BIN_EXE_stasis-box");
/// A plan of these small trees takes a millisecond; this is a hang.
const LIMIT: Duration = Duration::from_secs(10);

/// Guests whose images have most kinds of files between them.
const GUESTS: &[&str] = &[
    "tree",
    "threads",
    "sigpending",
    "posix_timers",
    "seccomp_filter",
    "epoll",
    "pipe",
    "ghost",
    "memfd",
    "creds",
    "pty",
    "inotify",
    "flock",
    "map_anon_shared",
];

struct Folder {
    dir: tempfile::TempDir,
    files: Vec<(String, Vec<u8>)>,
}

fn folder(guest: &str) -> Folder {
    let dir = tempfile::tempdir().expect("a folder");
    let guest = find(guest).expect("a guest of the table");
    dumped(Path::new(BOX), guest, dir.path()).expect("a dump");
    let mut files: Vec<_> = fs::read_dir(dir.path())
        .expect("the images")
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.ends_with(".img") && !n.starts_with("pages-"))
        .map(|n| (n.clone(), fs::read(dir.path().join(n)).expect("an image")))
        .collect();
    files.sort();
    assert!(files.len() > 5, "{files:?}");
    Folder { dir, files }
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// Plans; `true` when that gave a plan.
    fn plan(&self, what: &dyn Fn() -> String) -> bool {
        let begun = Instant::now();
        let o = stasis_engine::Options::new(self.dir.path());
        let r = catch_unwind(AssertUnwindSafe(|| stasis_engine::plan(&o)));
        assert!(
            begun.elapsed() < LIMIT,
            "it took {:?}: {}",
            begun.elapsed(),
            what()
        );
        match r {
            Ok(Ok(_)) => true,
            Ok(Err(e)) => {
                assert_ne!(
                    e.code,
                    "E9001",
                    "a fault of its own, not of the image: {e}: {}",
                    what()
                );
                false
            }
            Err(_) => panic!("it panicked: {}", what()),
        }
    }
    /// Plans with other contents of one file.
    fn with(&self, name: &str, bytes: &[u8], what: &dyn Fn() -> String) -> bool {
        fs::write(self.path(name), bytes).expect("writing the copy");
        self.plan(what)
    }
    fn mend(&self, name: &str, was: &[u8]) {
        fs::write(self.path(name), was).expect("writing it back");
    }
}

fn times(n: u32) -> u32 {
    if std::env::var_os("STASIS_LONG").is_some() {
        n * 10
    } else {
        n
    }
}

#[test]
fn files_cut_at_every_byte() {
    let (mut cuts, mut plans) = (0, 0);
    for guest in GUESTS {
        let f = folder(guest);
        assert!(
            f.plan(&|| format!("the whole folder of {guest}")),
            "the folder of {guest} has no plan"
        );
        // a folder of many files is planned slowly, and they are much alike
        let most = if f.files.len() > 40 { 3 } else { 40 };
        for (name, bytes) in &f.files {
            // every byte of small files, a sample of large ones
            let step = bytes.len().div_ceil(times(most) as usize).max(1);
            for len in (0..bytes.len()).step_by(step) {
                let what = || format!("{guest}: {name} cut to {len} of {} bytes", bytes.len());
                plans += u32::from(f.with(name, &bytes[..len], &what));
                cuts += 1;
            }
            f.mend(name, bytes);
        }
    }
    eprintln!("{cuts} cuts, {plans} of them still gave a plan");
}

#[test]
fn random_bits() {
    for guest in GUESTS {
        let f = folder(guest);
        let all: usize = f.files.len();
        let cases = (
            0..all,
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        );
        let config = Config {
            cases: times(150),
            failure_persistence: None,
            max_shrink_iters: 200,
            ..Config::default()
        };
        let r = TestRunner::new(config).run(&cases, |(at, changes)| {
            let (name, was) = &f.files[at];
            if was.is_empty() {
                return Ok(());
            }
            let mut bytes = was.clone();
            for (place, to) in &changes {
                // small numbers and single bits reach further than noise
                let i = place.index(bytes.len());
                bytes[i] = if to % 2 == 0 {
                    bytes[i] ^ (1 << (to / 2 % 8))
                } else {
                    *to
                };
            }
            let r = catch_unwind(AssertUnwindSafe(|| {
                f.with(name, &bytes, &|| format!("{guest}: {name}"))
            }));
            f.mend(name, was);
            prop_assert!(r.is_ok(), "{guest}: {name} with {changes:?}");
            Ok(())
        });
        if let Err(e) = r {
            panic!("{e}");
        }
    }
}

#[test]
fn files_swapped_or_missing() {
    let mut tried = 0;
    for guest in GUESTS {
        let f = folder(guest);
        for (a, was) in &f.files {
            let step = if std::env::var_os("STASIS_LONG").is_some() {
                1
            } else {
                f.files.len().div_ceil(8)
            };
            for (b, other) in f.files.iter().step_by(step) {
                if a != b {
                    f.with(a, other, &|| format!("{guest}: {b} in the place of {a}"));
                    tried += 1;
                }
            }
            fs::remove_file(f.path(a)).expect("removing it");
            f.plan(&|| format!("{guest}: without {a}"));
            f.mend(a, was);
        }
    }
    eprintln!("{tried} swaps");
}
