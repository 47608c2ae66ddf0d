//! What is run in a machine, and how its answers are read.
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Test programs that run in a machine, in this order, with what they are given.
pub const SUITES: &[(&str, &[&str])] = &[
    ("controllers", &[]),
    ("cgroups", &[]),
    ("kinds", &["works::", "native::"]),
    ("refused", &[]),
    ("meanwhile", &[]),
    ("plugins", &[]),
    ("network", &[]),
    ("runtimes", &[]),
    ("lifecycle", &[]),
];

/// The guests that move from one kernel to another: no terminal, no network.
pub const MOVERS: &[&str] = &[
    "plain",
    "tree",
    "threads",
    "registers",
    "creds",
    "sigactions",
    "sigpending",
    "itimers",
    "posix_timers",
    "sched",
    "rseq",
    "robust",
    "seccomp_filter",
    "prctls",
    "timens",
    "utsns",
    "ipc_shm",
    "map_anon",
    "map_file_private",
    "shmem_family",
    "memfd",
    "vdso",
    "madvise",
    "cow",
    "churn",
    "file_reg",
    "ghost",
    "lock_posix",
    "pipe",
    "eventfd",
    "epoll",
    "signalfd",
    "timerfd",
    "inotify",
    "unix_pair",
    "unix_queue",
    "tcp_listen",
    "udp",
];

/// What a machine needs to know of the work tree.
pub struct Built {
    /// Test program by name.
    pub tests: BTreeMap<String, PathBuf>,
    /// Folder of our binary and of the guests.
    pub target: PathBuf,
    /// The workspace's folder.
    pub root: PathBuf,
}

/// What is told to the machine before anything else. A machine that is emulated is slow, so tests wait longer; all is built, so
/// nothing is built again.
fn head(b: &Built, patience: u32) -> String {
    format!(
        "cd {}/tests || exit 1\nexport CARGO=/bin/true CI=1 STASIS_PATIENCE={patience} STASIS_LAB=1 HOME=/root\n",
        b.root.display()
    )
}

/// The job that runs these suites.
///
/// # Errors
/// One that was not built.
pub fn tests(b: &Built, patience: u32, only: &[String], filters: &[String]) -> Result<String> {
    let mut job = head(b, patience);
    for (name, args) in SUITES {
        if !only.is_empty() && !only.iter().any(|o| o == name) {
            continue;
        }
        let program = b
            .tests
            .get(*name)
            .with_context(|| format!("no test program {name}"))?;
        let args = match filters {
            [] => args.join(" "),
            some => some.join(" "),
        };
        let _ = write!(
            job,
            "echo 'lab: {name}' > /dev/console\n{} {args} --test-threads=2 --show-output > /lab/job/results/{name}.log 2>&1\n\
             echo \"lab: {name} ended with $?\" > /dev/console\n",
            program.display()
        );
    }
    Ok(job)
}

/// The job that dumps guests for another machine, or restores those of another one.
pub fn moves(b: &Built, patience: u32, verb: &str, guests: &[&str]) -> String {
    let mut job = head(b, patience);
    let _ = writeln!(
        job,
        "{}/stasis-box --{verb} /luggage {} > /lab/job/results/{verb}.log 2>&1",
        b.target.display(),
        guests.join(" ")
    );
    job
}

/// Answers of one suite.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// It passed.
    pub passed: usize,
    /// It could not be tried, and why.
    pub skipped: Vec<String>,
    /// Names of those that failed.
    pub failed: Vec<String>,
    /// The program told how it ended.
    pub whole: bool,
}

/// Reads what a test program printed.
pub fn answers(log: &str) -> Answers {
    let mut a = Answers::default();
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix("test ") {
            if rest.starts_with("result: ") {
                a.whole = true;
            } else if rest.ends_with(" ... ok") {
                a.passed += 1;
            } else if let Some(name) = rest.strip_suffix(" ... FAILED") {
                a.failed.push(name.into());
            }
        } else if let Some(why) = line.strip_prefix("skipped: ") {
            a.skipped.push(why.into());
        }
    }
    a.passed = a.passed.saturating_sub(a.skipped.len());
    a
}

/// Reads a suite's log; a suite without one did not run.
///
/// # Errors
/// It is not there.
pub fn read(results: &Path, name: &str) -> Result<Answers> {
    let log = results.join(format!("{name}.log"));
    let text = std::fs::read(&log).with_context(|| format!("{name} left no {}", log.display()))?;
    ensure!(!text.is_empty(), "{name} said nothing");
    Ok(answers(&String::from_utf8_lossy(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let log = "running 4 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... ok\ntest e ... ignored, why\n\
                   skipped: d: no such controller\ntest result: FAILED. 2 passed; 1 failed\n";
        let a = answers(log);
        assert_eq!(
            (a.passed, a.failed, a.skipped.len(), a.whole),
            (1, vec!["c".to_string()], 1, true)
        );
        assert!(
            !answers("test a ... ok\n").whole,
            "a program that died is seen"
        );
    }
}
