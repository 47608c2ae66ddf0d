//! `stasis check`, and `criu check`.
use super::{error_fields, plain};
use clap::Args;
use serde_json::{Value, json};
use stasis_engine::check::{Outcome, Report};
use stasis_engine::{Blame, Error, Options, Result};
use std::fmt::Write;
use std::process::ExitCode;

/// Try what this kernel can do for this user, or look whether a process could be dumped
///
/// Each line is a real attempt, not a version number. With --pid the tree is looked at, not touched, and everything that
/// could not be dumped is listed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stasis check
  stasis check --pid 4242
  stasis check --json")]
pub struct Check {
    /// Look at this process and its children instead
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
}

impl Check {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        match self.pid {
            Some(pid) => preflight(pid, json),
            None => kernel(json),
        }
    }
}

fn word(o: &Outcome) -> &'static str {
    match o {
        Outcome::Present(_) => "yes",
        Outcome::Absent(_) => "no",
        Outcome::Denied(_) => "denied",
    }
}

fn kernel(json: bool) -> Result<ExitCode> {
    let all = stasis_engine::check();
    match json {
        true => sayln!("{}", as_json(&all)),
        false => say!("{}", as_text(&all)),
    }
    Ok(match all.iter().any(Report::is_fatal) {
        true => ExitCode::from(Blame::Kernel.exit_code()),
        false => ExitCode::SUCCESS,
    })
}

fn as_json(all: &[Report]) -> Value {
    let rows: Vec<Value> = all
        .iter()
        .map(|r| {
            json!({"name": r.probe.name, "found": word(&r.outcome), "detail": r.outcome.text(),
                "purpose": r.probe.purpose, "required": r.probe.required, "without": r.probe.without})
        })
        .collect();
    json!({"usable": !all.iter().any(Report::is_fatal), "probes": rows})
}

fn as_text(all: &[Report]) -> String {
    let mut t = String::new();
    for r in all {
        let p = &r.probe;
        let found = word(&r.outcome);
        let _ = writeln!(t, "{found:<7} {:<22} {}", p.name, p.purpose);
        if !r.outcome.is_present() {
            let _ = writeln!(t, "{:8}why: {}", "", plain(r.outcome.text()));
            let _ = writeln!(t, "{:8}without it: {}", "", p.without);
        }
    }
    let fatal = all.iter().filter(|r| r.is_fatal()).count();
    let _ = match fatal {
        0 => writeln!(t, "this kernel will do"),
        n => writeln!(t, "{n} required features are missing"),
    };
    t
}

fn preflight(pid: i32, json: bool) -> Result<ExitCode> {
    let mut o = Options::new(".");
    o.pid = pid;
    let found = stasis_engine::preflight(&o)?;
    if json {
        let all: Vec<Value> = found.iter().map(error_fields).collect();
        sayln!(
            "{}",
            json!({"pid": pid, "dumpable": all.is_empty(), "obstacles": all})
        );
    } else if found.is_empty() {
        sayln!("nothing stands in the way of dumping process {pid} and its children");
    } else {
        for e in &found {
            sayln!("{e}");
        }
    }
    Ok(match found.first() {
        None => ExitCode::SUCCESS,
        Some(e) => ExitCode::from(e.blame.exit_code()),
    })
}

/// Who answers for a name of `criu check --feature`.
enum Answer {
    /// A probe.
    Probe(&'static str),
    /// Nobody: stasis lacks what it stands for.
    Lacking(&'static str),
}

use Answer::{Lacking, Probe as P};

/// All names that criu 4.2 knows. A caller who asks wants to know whether the thing can be carried here.
const FEATURES: &[(&str, Answer)] = &[
    ("aio_remap", P("aio-remap")),
    ("apparmor_stacking", P("apparmor-stacking")),
    ("autofs", Lacking("mounts of autofs are not carried")),
    ("breakpoints", P("breakpoints")),
    ("can_map_vdso", P("map-vdso")),
    ("cgroupns", P("cgroup-namespace")),
    ("clone3_set_tid", P("clone3-set-tid")),
    ("compat_cr", Lacking("32-bit programs are not carried")),
    ("external_net_ns", P("net-nsid")),
    ("fdinfo_lock", P("fdinfo-lock")),
    ("get_rseq_conf", P("ptrace-rseq")),
    (
        "has_ipt_legacy",
        Lacking("rules of the old iptables are not carried"),
    ),
    ("ipv6_freebind", P("socket-ipv6-freebind")),
    ("kcmp_epoll", P("kcmp-epoll")),
    ("link_nsid", P("net-nsid")),
    ("loginuid", P("loginuid")),
    ("mem_dirty_track", P("userfaultfd-wp-async")),
    ("memfd_hugetlb", P("memfd-hugetlb")),
    ("mnt_id", P("fdinfo-mount")),
    ("move_mount_set_group", P("mount-set-group")),
    // raw sockets are asked by duplicates of their descriptors
    ("net_diag_raw", P("pidfd-getfd")),
    ("network_lock_nftables", P("nftables")),
    ("newifindex", P("net-nsid")),
    ("nftables", P("nftables")),
    ("ns_pid", P("pid-in-namespace")),
    ("nsid", P("net-nsid")),
    ("openat2", P("openat2")),
    ("overlayfs_maps", P("overlay-maps")),
    ("pagemap_scan", P("pagemap-scan")),
    ("pagemap_scan_guard_pages", P("guard-regions")),
    ("pidfd_store", P("pidfd-getfd")),
    ("seccomp_filters", P("seccomp-get-filter")),
    ("seccomp_suspend", P("suspend-seccomp")),
    ("sk_ns", P("socket-namespace")),
    ("sk_unix_file", P("socket-unix-file")),
    ("sockopt_buf_lock", P("socket-buffer-lock")),
    ("tcp_half_closed", P("tcp-repair")),
    ("timens", P("time-namespace")),
    ("timer_cr_ids", P("timer-restore-ids")),
    ("timerfd", P("timerfd-ticks")),
    ("tun", P("tun")),
    ("tun_ns", P("tun-namespace")),
    ("uffd", P("userfaultfd")),
    ("uffd-noncoop", P("userfaultfd-events")),
    ("userns", P("user-namespace")),
];

/// `criu check [--feature NAME]...`
pub fn criu(features: &[String]) -> Result<ExitCode> {
    if features.is_empty() {
        judge(&stasis_engine::check())?;
        sayln!("Looks good.");
        return Ok(ExitCode::SUCCESS);
    }
    let probes = stasis_engine::probes();
    for f in features {
        let name = match FEATURES.iter().find(|(name, _)| name == f) {
            Some((_, Lacking(why))) => {
                let e = Error::new("E3100", Blame::Kernel, format!("{f}: not supported"));
                return Err(e
                    .why(*why)
                    .advice("docs/not-supported.md lists what this version lacks"));
            }
            Some((_, P(name))) => name,
            None => f.as_str(),
        };
        let Some(probe) = probes.iter().find(|p| p.name == name) else {
            let e = Error::new("E2004", Blame::Caller, format!("feature {f} is not known"));
            return Err(e
                .why("neither criu 4.2 nor stasis has a probe of this name")
                .advice("`stasis check` lists all probes; criu's names are taken here too"));
        };
        let report = Report {
            probe: *probe,
            outcome: probe.run(),
        };
        if !report.outcome.is_present() {
            return Err(missing(&report));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Can anything be dumped and restored here at all?
///
/// # Errors
/// The first feature that nothing works without.
pub fn usable() -> Result<()> {
    judge(&stasis_engine::check())
}

fn judge(all: &[Report]) -> Result<()> {
    for r in all.iter().filter(|r| !r.outcome.is_present()) {
        match r.is_fatal() {
            true => return Err(missing(r)),
            false => tracing::warn!("{}: {}", r.probe.name, plain(r.outcome.text())),
        }
    }
    Ok(())
}

fn missing(r: &Report) -> Error {
    let what = format!("{}: {}", r.probe.name, word(&r.outcome));
    Error::new("E3100", Blame::Kernel, what)
        .why(plain(r.outcome.text()))
        .advice(format!("without it: {}", r.probe.without))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_name_of_criu_leads_to_a_probe_that_exists() {
        let all = stasis_engine::check();
        for (name, answer) in FEATURES {
            match answer {
                P(ours) => assert!(all.iter().any(|r| r.probe.name == *ours), "{name}: {ours}"),
                Lacking(why) => {
                    let e = criu(&[name.to_string()]).unwrap_err();
                    assert!(e.to_string().contains(why), "{e}");
                }
            }
        }
        let unknown = criu(&["no_such_thing".into()]).unwrap_err();
        assert!(unknown.to_string().contains("no_such_thing"));
    }

    #[test]
    fn the_table_has_a_row_per_probe_and_a_verdict() {
        let all = stasis_engine::check();
        assert!(all.len() > 10);
        let text = as_text(&all);
        for r in &all {
            assert!(text.contains(r.probe.name));
        }
        let rows = as_json(&all);
        assert_eq!(rows["probes"].as_array().unwrap().len(), all.len());
        let said = text.contains("this kernel will do");
        assert_eq!(said, rows["usable"] == true);
    }
}
