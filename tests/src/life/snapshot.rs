//! What can be seen of a tree from outside, before and after something that must not have changed it.
//!
//! Every task and thread is a list of named facts. What moves by itself (times, counters, which of "running" and
//! "sleeping" a task is in) is left out; everything else that /proc tells is in.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Facts of all tasks and threads of a tree: "pid" or "pid/tid", the fact's name, its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, BTreeMap<String, String>>);

/// Lines of /proc/PID/status that do not move by themselves.
const STATUS: &[&str] = &[
    "Name",
    "Umask",
    "Tgid",
    "Pid",
    "PPid",
    "TracerPid",
    "Uid",
    "Gid",
    "FDSize",
    "Groups",
    "NSpid",
    "NSpgid",
    "NSsid",
    "VmLck",
    "VmPin",
    "Threads",
    "SigQ",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed",
    "Mems_allowed",
    "CoreDumping",
    "THP_enabled",
    "untag_mask",
    "x86_Thread_features",
    "x86_Thread_features_locked",
];
/// Lines of fdinfo that move by themselves: what a timer has left, and how often it rang.
const MOVING: &[&str] = &["it_value", "ticks"];

impl Snapshot {
    /// The tree under `root`, as it is now. Tasks that end meanwhile are left out.
    pub fn take(root: i32) -> Self {
        let mut all = BTreeMap::new();
        let mut todo = vec![root];
        while let Some(pid) = todo.pop() {
            let dir = Path::new("/proc").join(pid.to_string());
            let Some(mut facts) = task(&dir) else {
                continue;
            };
            let mut children = Vec::new();
            for tid in numbers(&dir.join("task")) {
                let of = dir.join("task").join(tid.to_string());
                children.extend(words(&of.join("children")));
                if let Some(f) = thread(&of) {
                    all.insert(format!("{pid}/{tid}"), f);
                }
            }
            children.sort_unstable();
            facts.insert("children".into(), format!("{children:?}"));
            all.insert(pid.to_string(), facts);
            todo.extend(children);
        }
        Self(all)
    }
    /// What differs, one line a fact ("" when nothing does).
    pub fn diff(&self, now: &Self) -> String {
        let empty = BTreeMap::new();
        let mut text = String::new();
        let mut keys: Vec<_> = self.0.keys().chain(now.0.keys()).collect();
        keys.sort();
        keys.dedup();
        for who in keys {
            let (a, b) = match (self.0.get(who), now.0.get(who)) {
                (Some(_), None) => {
                    text.push_str(&format!("task {who} is gone\n"));
                    continue;
                }
                (None, Some(_)) => {
                    text.push_str(&format!("task {who} is new\n"));
                    continue;
                }
                (a, b) => (a.unwrap_or(&empty), b.unwrap_or(&empty)),
            };
            let mut names: Vec<_> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for n in names.into_iter().filter(|n| a.get(*n) != b.get(*n)) {
                let none = "(none)".to_string();
                let (was, is) = (a.get(n).unwrap_or(&none), b.get(n).unwrap_or(&none));
                text.push_str(&format!("task {who}: {n}:\n{}", lines(was, is)));
            }
        }
        text
    }
    /// Threads that are traced or stopped, one line each: for trees that change by themselves all the time.
    pub fn held(&self) -> String {
        let mut text = String::new();
        for (who, f) in &self.0 {
            let is = |n: &str| f.get(n).map_or("", String::as_str);
            if !matches!(is("TracerPid"), "" | "0")
                || !matches!(is("state"), "" | "alive" | "zombie")
            {
                text.push_str(&format!(
                    "task {who}: {}, tracer {}\n",
                    is("state"),
                    is("TracerPid")
                ));
            }
        }
        text
    }
    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.0.keys().filter(|k| !k.contains('/')).count()
    }
}

/// The lines that are only in one of two texts.
fn lines(was: &str, is: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (was.lines().collect(), is.lines().collect());
    let mut text = String::new();
    for l in a.iter().filter(|l| !b.contains(l)) {
        text.push_str(&format!("  - {l}\n"));
    }
    for l in b.iter().filter(|l| !a.contains(l)) {
        text.push_str(&format!("  + {l}\n"));
    }
    if text.is_empty() {
        text = format!("  - {was}\n  + {is}\n");
    }
    text
}

fn task(dir: &Path) -> Option<BTreeMap<String, String>> {
    let stat = stat(dir)?;
    let mut f = BTreeMap::new();
    // of stat: ppid, pgrp, session, tty, foreground group, exit signal
    let fields = [
        (1, "ppid"),
        (2, "group"),
        (3, "session"),
        (4, "terminal"),
        (5, "foreground"),
        (35, "exit signal"),
    ];
    for (at, name) in fields {
        f.insert(name.into(), stat.get(at)?.clone());
    }
    for l in ["cwd", "root", "exe"] {
        let to = fs::read_link(dir.join(l))
            .map_or_else(|e| e.kind().to_string(), |p| p.display().to_string());
        f.insert(l.into(), to);
    }
    for name in [
        "maps",
        "limits",
        "oom_score_adj",
        "personality",
        "coredump_filter",
        "cgroup",
        "loginuid",
    ] {
        f.insert(
            name.into(),
            fs::read_to_string(dir.join(name)).unwrap_or_default(),
        );
    }
    // ids, signals and clocks of timers; what they have left moves
    let timers = fs::read_to_string(dir.join("timers")).unwrap_or_default();
    f.insert("timers".into(), timers);
    for fd in numbers(&dir.join("fd")) {
        let to = fs::read_link(dir.join("fd").join(fd.to_string()))
            .map_or_else(|e| e.to_string(), |p| p.display().to_string());
        let info = fs::read_to_string(dir.join("fdinfo").join(fd.to_string())).unwrap_or_default();
        let info: Vec<_> = info
            .lines()
            .filter(|l| !MOVING.iter().any(|m| l.starts_with(m)))
            .collect();
        f.insert(format!("fd {fd}"), format!("{to}\n{}", info.join("\n")));
    }
    Some(f)
}

fn thread(dir: &Path) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(dir.join("status")).ok()?;
    let mut f: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in text.lines().filter_map(|l| l.split_once(':')) {
        if STATUS.contains(&name) {
            f.insert(name.into(), value.trim().into());
        }
    }
    // running or sleeping is a matter of the moment; stopped, traced and dead are not
    let state = stat(dir)?.first()?.clone();
    let class = match state.as_str() {
        "R" | "S" | "D" => "alive",
        "T" => "stopped",
        "t" => "in a ptrace stop",
        "Z" => "zombie",
        other => other,
    };
    f.insert("state".into(), class.into());
    if class == "stopped" {
        // a task in a group stop that was away on an excursion when the engine died finds back when it is continued:
        // the frame that leads home is the next thing it runs
        f.retain(|n, _| !matches!(n.as_str(), "SigBlk" | "SigPnd"));
    }
    // the whole tree shares one count with all processes of the user: it moves with any of them
    f.remove("SigQ");
    Some(f)
}

/// Fields behind the name: state first.
fn stat(dir: &Path) -> Option<Vec<String>> {
    let text = fs::read(dir.join("stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn numbers(dir: &Path) -> Vec<i32> {
    let mut v: Vec<i32> = fs::read_dir(dir)
        .map(|d| {
            d.flatten()
                .filter_map(|e| e.file_name().to_str()?.parse().ok())
                .collect()
        })
        .unwrap_or_default();
    v.sort_unstable();
    v
}

fn words(file: &Path) -> Vec<i32> {
    fs::read_to_string(file)
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|w| w.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_and_named() {
        let own = std::process::id() as i32;
        let before = Snapshot::take(own);
        assert!(before.tasks() >= 1);
        let _file = fs::File::open("/proc/self/status").expect("a file");
        let diff = before.diff(&Snapshot::take(own));
        assert!(diff.contains("fd ") && diff.contains("status"), "{diff}");
        assert!(before.diff(&Snapshot::default()).contains("is gone"));
    }
}
