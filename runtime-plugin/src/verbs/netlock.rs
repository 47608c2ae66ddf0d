//! `stasis netlock`
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use stasis_engine::Result;
use stasis_engine::netlock::{self, Report, Scope, Which};
use std::process::ExitCode;

/// Look after network locks: those that a dump has left for its restore, and those left over
///
/// A dump that ends a tree with connections leaves a lock on their packets, so that nobody answers them with a reset until the
/// restore. If there will be no restore, release it here.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stasis netlock list
  stasis netlock release 00f3a1b2c3d4e5f6
  stasis netlock release --orphans")]
pub struct Netlock {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Tell all locks of this machine
    #[command(after_help = "Example:\n  stasis netlock list --json")]
    List,
    /// Hold all packets of a network namespace until somebody restores into it
    ///
    /// For whoever makes the namespace of a container that is restored: called before its devices go up, it keeps peers that send from
    /// being reset. A restore with --tcp-established takes it over; without one, release it.
    #[command(after_help = "Example:\n  stasis netlock hold /run/netns/web")]
    Hold {
        /// A file of the namespace
        #[arg(value_name = "FILE")]
        namespace: std::path::PathBuf,
    },
    /// Let packets flow again
    #[command(after_help = "Example:\n  stasis netlock release --all")]
    Release(Release),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Release {
    /// Number of the lock, as `stasis netlock list` tells it
    id: Option<String>,
    /// Those whose process died before it was done
    #[arg(long)]
    orphans: bool,
    /// All but those of a dump or restore at work
    #[arg(long)]
    all: bool,
}

impl Netlock {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let (word, locks) = match &self.verb {
            Verb::List => ("locks", netlock::list()?),
            Verb::Hold { namespace } => ("held", vec![netlock::hold(namespace)?]),
            Verb::Release(r) => {
                let which = match (&r.id, r.orphans) {
                    (Some(id), _) => Which::Id(id.clone()),
                    (None, true) => Which::Orphans,
                    (None, false) => Which::All,
                };
                ("released", netlock::release(&which)?)
            }
        };
        match json {
            true => sayln!(
                "{}",
                json!({ word: locks.iter().map(as_json).collect::<Vec<_>>() })
            ),
            false => locks.iter().for_each(|l| sayln!("{}", as_text(l))),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn scope(s: Scope) -> &'static str {
    match s {
        Scope::WholeNamespace => "the whole namespace",
        Scope::Connections => "single connections",
    }
}

/// What becomes of the lock.
fn fate(l: &Report) -> &'static str {
    match (l.kept, l.owner.lives()) {
        (true, _) => "waits for a restore",
        (false, Some(true)) => "in use",
        (false, Some(false)) => "left over",
        (false, None) => "of a process in another pid namespace",
    }
}

fn as_json(l: &Report) -> Value {
    json!({"id": l.id, "armed": l.armed, "kept": l.kept, "scope": scope(l.scope), "means": l.means,
        "owner": l.owner.pid, "namespace": l.namespace, "fate": fate(l)})
}

fn as_text(l: &Report) -> String {
    format!(
        "{}  net:[{}]  {}, by {}, made by process {}: {}{}",
        l.id,
        l.namespace,
        scope(l.scope),
        l.means,
        l.owner.pid,
        fate(l),
        if l.armed { "" } else { ", open" }
    )
}
