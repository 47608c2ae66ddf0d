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

/// Names `criu check --feature` knows, and the probe that answers each. The others of criu's belong to what this version
/// does not use (sockets, namespaces, incremental dumps) and are unknown here.
const FEATURES: &[(&str, &str)] = &[
    ("can_map_vdso", "map-vdso"),
    ("clone3_set_tid", "clone3-set-tid"),
    ("get_rseq_conf", "ptrace-rseq"),
    ("kcmp_epoll", "kcmp-epoll"),
    ("mem_dirty_track", "userfaultfd-wp-async"),
    ("pagemap_scan", "pagemap-scan"),
    ("pagemap_scan_guard_pages", "guard-regions"),
    ("seccomp_filters", "seccomp-get-filter"),
    ("seccomp_suspend", "suspend-seccomp"),
    ("timens", "time-namespace"),
    ("timer_cr_ids", "timer-restore-ids"),
    ("uffd", "userfaultfd"),
];

/// `criu check [--feature NAME]...`
pub fn criu(features: &[String]) -> Result<ExitCode> {
    let all = stasis_engine::check();
    for f in features {
        let probe = FEATURES
            .iter()
            .find(|(c, _)| c == f)
            .map_or(f.as_str(), |(_, p)| p);
        match all.iter().find(|r| r.probe.name == probe) {
            Some(r) if r.outcome.is_present() => {}
            Some(r) => return Err(missing(r)),
            None => {
                let e = Error::new("E2004", Blame::Caller, format!("feature {f} is not known"));
                return Err(e
                    .why("this version has no probe for it, because it does not use it")
                    .advice("`stasis check` lists all probes; their names are taken here too"));
            }
        }
    }
    if features.is_empty() {
        judge(&all)?;
        sayln!("Looks good.");
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
        for (criu, ours) in FEATURES {
            let found = all.iter().any(|r| r.probe.name == *ours);
            assert!(found, "{criu}: no probe {ours}");
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
