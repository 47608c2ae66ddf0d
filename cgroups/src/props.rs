//! Which files of a group are settings: what a dump reads and a restore writes.
use crate::error::{Error, Result, Side};
use crate::view::Hierarchy;

/// Of every group of cgroup v2, in the order in which a restore writes them. The names CRIU knows come first.
const V2: &[&str] = &[
    "cgroup.subtree_control",
    "cgroup.max.descendants",
    "cgroup.max.depth",
    "cgroup.freeze",
    "cgroup.type",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpus.exclusive",
    "cpuset.cpus.partition",
    "cpu.weight",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.uclamp.min",
    "cpu.uclamp.max",
    "io.weight",
    "io.bfq.weight",
    "io.max",
    "io.latency",
    "io.prio.class",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.high",
    "memory.swap.max",
    "memory.zswap.max",
    "memory.oom.group",
    "pids.max",
    "misc.max",
    "rdma.max",
    "dmem.min",
    "dmem.low",
    "dmem.max",
];

/// Files of which the kernel takes one line (device, size of page, resource) per write: one property each.
pub(crate) const BY_LINE: &[&str] = &[
    "io.weight",
    "io.bfq.weight",
    "io.max",
    "io.latency",
    "misc.max",
    "rdma.max",
    "dmem.min",
    "dmem.low",
    "dmem.max",
];

/// Of every group of a v1 hierarchy.
const V1: &[&str] = &[
    "cgroup.clone_children",
    "notify_on_release",
    "cgroup.procs",
    "tasks",
];

/// Of v1 controllers.
const V1_OF: &[(&str, &[&str])] = &[
    (
        "cpu",
        &[
            "cpu.shares",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "cpu.rt_period_us",
            "cpu.rt_runtime_us",
        ],
    ),
    (
        "memory",
        &[
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.swappiness",
            "memory.soft_limit_in_bytes",
            "memory.move_charge_at_immigrate",
            "memory.oom_control",
            "memory.use_hierarchy",
            "memory.kmem.limit_in_bytes",
            "memory.kmem.tcp.limit_in_bytes",
        ],
    ),
    (
        "cpuset",
        &[
            "cpuset.cpus",
            "cpuset.mems",
            "cpuset.memory_migrate",
            "cpuset.cpu_exclusive",
            "cpuset.mem_exclusive",
            "cpuset.mem_hardwall",
            "cpuset.memory_spread_page",
            "cpuset.memory_spread_slab",
            "cpuset.sched_load_balance",
            "cpuset.sched_relax_domain_level",
        ],
    ),
    ("blkio", &["blkio.weight"]),
    ("net_cls", &["net_cls.classid"]),
    ("net_prio", &["net_prio.ifpriomap"]),
    ("pids", &["pids.max"]),
    ("devices", &["devices.list"]),
];

/// Names whose value is of no use in another place; only owner and permissions come back.
pub(crate) const WITHOUT_VALUE: &[&str] = &["cgroup.procs", "tasks"];

/// One controller of `--cgroup-props`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extra {
    controller: String,
    replace: bool,
    files: Vec<String>,
}

/// The settings a dump looks at.
#[derive(Debug, Clone, Default)]
pub struct Props {
    only: Vec<String>,
    extra: Vec<Extra>,
}

impl Props {
    /// What a caller asked for: text of `--cgroup-props` or of its file, and `--cgroup-dump-controller`s.
    ///
    /// # Errors
    /// E2441: the text is not of that form.
    pub fn new(text: Option<&str>, only: &[String]) -> Result<Self> {
        Ok(Self {
            only: only.to_vec(),
            extra: text.map(parse).transpose()?.unwrap_or_default(),
        })
    }
    /// May an image set this? What is in the table, what the caller named, sizes of huge pages, the state of the v1 freezer.
    /// Other files of a group run programs or kill (`release_agent`, `cgroup.kill`).
    pub(crate) fn knows(&self, file: &str) -> bool {
        let v1 = || V1.iter().chain(V1_OF.iter().flat_map(|(_, f)| *f));
        let huge = file
            .strip_prefix("hugetlb.")
            .and_then(|f| f.strip_suffix(".max"));
        let plain = |f: &str| f.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
        V2.iter().chain(v1()).any(|f| *f == file)
            || file == "freezer.state"
            || huge.is_some_and(plain)
            || self.extra.iter().any(|e| e.files.iter().any(|f| f == file))
    }
    /// Is this hierarchy looked at?
    pub(crate) fn wants(&self, h: &Hierarchy) -> bool {
        self.only.is_empty() || h.names.iter().any(|n| self.only.contains(n))
    }
    /// Names of files that are settings, if they are there. `present`: all files of the group.
    pub(crate) fn files(&self, h: &Hierarchy, present: &[String]) -> Vec<String> {
        let mut files: Vec<&str> = Vec::new();
        let mut add = |names: &mut dyn Iterator<Item = &'_ str>| {
            for n in names {
                if let Some(p) = present.iter().find(|p| *p == n)
                    && !files.contains(&p.as_str())
                {
                    files.push(p);
                }
            }
        };
        let of = |file: &str| file.split('.').next().unwrap_or_default().to_string();
        let replaced = |c: &str| self.extra.iter().any(|e| e.replace && e.controller == c);
        if h.is_v2() {
            add(&mut V2.iter().copied().filter(|f| !replaced(&of(f))));
            let huge = |f: &&str| f.starts_with("hugetlb.") && f.ends_with(".max");
            add(&mut present.iter().map(String::as_str).filter(huge));
        } else {
            for (c, names) in V1_OF.iter().filter(|(c, _)| h.has(c) && !replaced(c)) {
                tracing::trace!("settings of {c}");
                add(&mut names.iter().copied());
            }
        }
        for e in &self.extra {
            if h.is_v2() || h.has(&e.controller) {
                add(&mut e.files.iter().map(String::as_str));
            }
        }
        if !h.is_v2() {
            add(&mut V1.iter().copied());
        }
        files.into_iter().map(String::from).collect()
    }
}

fn malformed(line: usize, why: &str) -> Error {
    Error::new(
        "E2441",
        Side::Caller,
        format!("line {line} of --cgroup-props"),
        why,
        "write it as the manual shows: \"controller\":, then - \"strategy\": \"merge\" or \"replace\", and - \"properties\": [\"a\", \"b\"]",
    )
}

/// Reads the little YAML of `--cgroup-props`.
fn parse(text: &str) -> Result<Vec<Extra>> {
    let mut all: Vec<Extra> = Vec::new();
    let bare = |s: &str| s.trim().trim_matches('"').to_string();
    for (n, line) in text.lines().enumerate().map(|(n, l)| (n + 1, l.trim())) {
        if line.is_empty() || line.starts_with('#') || line == "---" {
            continue;
        }
        let Some(item) = line.strip_prefix('-') else {
            let name = line
                .strip_suffix(':')
                .ok_or_else(|| malformed(n, "a controller ends with a colon"))?;
            all.push(Extra {
                controller: bare(name),
                replace: false,
                files: Vec::new(),
            });
            continue;
        };
        let last = all
            .last_mut()
            .ok_or_else(|| malformed(n, "no controller stands before it"))?;
        let (key, value) = item
            .split_once(':')
            .ok_or_else(|| malformed(n, "an item has a colon"))?;
        match (bare(key).as_str(), value.trim()) {
            ("strategy", v) => {
                last.replace = match bare(v).as_str() {
                    "merge" => false,
                    "replace" => true,
                    _ => return Err(malformed(n, "the strategy is neither merge nor replace")),
                }
            }
            ("properties", v) => {
                let list = v.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
                let list =
                    list.ok_or_else(|| malformed(n, "the properties are not a list in brackets"))?;
                let names: Vec<_> = list
                    .split(',')
                    .map(bare)
                    .filter(|f| !f.is_empty())
                    .collect();
                if names
                    .iter()
                    .any(|f| f.contains('/') || f == "." || f == "..")
                {
                    return Err(malformed(
                        n,
                        "a property is the name of a file, without a path",
                    ));
                }
                last.files.extend(names);
            }
            _ => return Err(malformed(n, "an item is neither strategy nor properties")),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_manual_is_read() {
        let text = "\"c1\":\n - \"strategy\": \"merge\"\n - \"properties\": [\"a\", \"b\"]\n \"c2\":\n - \"strategy\": \"replace\"\n - \"properties\": [\"c\", \"d\"]\n";
        let all = parse(text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].controller.as_str(), all[0].replace), ("c1", false));
        assert_eq!(all[1].files, ["c", "d"]);
        assert!(all[1].replace);
    }

    #[test]
    fn what_is_not_of_that_form_is_named_by_its_line() {
        for bad in [
            " - \"strategy\": \"merge\"",
            "\"c\":\n - \"strategy\": \"both\"",
            "\"c\":\n - \"properties\": a",
            "\"c\":\n - \"properties\": [\"../a\"]",
            "\"c\"",
            "\"c\":\n - \"other\": [\"a\"]",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
