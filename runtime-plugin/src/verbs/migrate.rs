//! `stasis migrate`
use super::dump::Carry;
use super::secure::Secure;
use super::{bytes, time};
use crate::hooks;
use crate::oci::{self, Bundle};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;
use stasis_engine::migrate::{Brake, Goal, Migration, Progress, Report, Way};
use stasis_engine::{Options, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

/// Move a running tree to another host
///
/// Memory is sent while the processes run, again and again what they have written since, until the rest can be sent within
/// --max-downtime; then they stand still, the rest is sent, and they run there. Until they run there nothing is lost here: an
/// error, Ctrl-C, a lost connection or a killed `stasis` leaves them running.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stasis receive --listen 0.0.0.0:7766                         on the other host, first
  stasis migrate 4242 --to other:7766
  stasis migrate 4242 --to other:7766 --max-downtime 100 --tcp-established
  stasis migrate --bundle /srv/web --state web.json --to other:7766")]
pub struct Migrate {
    /// Root of the tree
    #[arg(value_parser = clap::value_parser!(i32).range(1..), required_unless_present = "state")]
    pid: Option<i32>,
    /// Where `stasis receive` listens
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// The processes may stand still for so long
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 300)]
    max_downtime: u64,
    /// Stop the processes though --max-downtime cannot be met
    #[arg(long)]
    force: bool,
    /// If --max-downtime cannot be met: let the processes run there before all memory is there
    #[arg(long, conflicts_with = "force")]
    post_copy: bool,
    /// Connections that memory goes over
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    connections: u32,
    /// Folder with the config.json of the OCI container
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// What `runc state` says of the container
    #[arg(long, value_name = "FILE", requires = "bundle", conflicts_with = "pid")]
    state: Option<PathBuf>,
    /// Folder of hooks, in place of /usr/share/stasis/hooks.d and /etc/stasis/hooks.d; may be given again
    #[arg(long, value_name = "DIR")]
    hooks_dir: Vec<PathBuf>,
    #[command(flatten)]
    secure: Secure,
    #[command(flatten)]
    carry: Carry,
    /// Give up if the tree does not stop in time, or the other host does not bring it back in time
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

impl Migrate {
    /// What the engine is asked for, and what the caller at the other end must know.
    fn options(&self) -> Result<(Options, String)> {
        let mut o = Options::new(".");
        o.pid = self.pid.unwrap_or(0);
        o.timeout = Duration::from_secs(self.timeout);
        o.kill_at = crate::kill_at()?;
        self.carry.apply(&mut o);
        let Some(dir) = &self.bundle else {
            hooks::watch(&mut o, &self.hooks_dir, None)?;
            return Ok((o, String::new()));
        };
        let bundle = Bundle::open(dir)?;
        let mut id = o.pid.to_string();
        if let Some(f) = &self.state {
            let s = oci::state(f)?;
            o.pid = s.pid;
            id = s.id.unwrap_or_else(|| o.pid.to_string());
        }
        bundle.dump(&mut o)?;
        oci::watch(&mut o, &bundle, &id, &self.hooks_dir)?;
        let word = oci::descriptors(o.pid);
        Ok((o, word))
    }
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        // before there are threads: all of them leave these to the one that waits for them
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        let _ = signals.thread_block();
        let (o, word) = self.options()?;
        let m = Migration::connect(Way {
            to: self.to.clone(),
            connections: self.connections,
            tls: self.secure.load()?,
        })?;
        abort_on(signals, m.brake());
        let goal = Goal {
            downtime: Duration::from_millis(self.max_downtime),
            force: self.force,
            post_copy: self.post_copy,
            patience: Duration::from_secs(self.timeout),
        };
        let teller = Teller::default();
        let r = m.run(&o, &goal, word, &|p| teller.tell(p, json))?;
        for w in &r.dump.warnings {
            tracing::warn!("{w}");
        }
        let met = r.downtime_us <= self.max_downtime * 1000;
        if !met {
            tracing::warn!(
                "the processes stood for {}, longer than --max-downtime: {} were expected; {} took the restore there",
                time(r.downtime_us),
                time(r.expected_us),
                time(r.stood.restore_us)
            );
        }
        match json {
            true => sayln!("{}", result(&r, met)),
            false => sayln!(
                "process {} runs at {} as {}: it stood still for {}; {} of memory in {} rounds, {} of them in the last, in {}",
                o.pid,
                self.to,
                r.pid,
                time(r.downtime_us),
                bytes(r.sent),
                r.rounds,
                bytes(r.sent_frozen),
                time(r.total_us)
            ),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn result(r: &Report, met: bool) -> serde_json::Value {
    let s = &r.stood;
    json!({"pid": r.pid, "downtime_us": r.downtime_us, "downtime_met": met,
        "expected_us": r.expected_us,
        "stood": {"freezing_us": s.freezing_us, "dump_us": s.dump_us, "images_us": s.images_us,
            "restore_us": s.restore_us, "running_us": s.running_us},
        "rounds": r.rounds,
        "bytes_sent": r.sent, "bytes_sent_frozen": r.sent_frozen, "bytes_later": r.later, "total_us": r.total_us,
        "warnings": r.dump.warnings})
}

fn abort_on(signals: SigSet, brake: Brake) {
    std::thread::spawn(move || {
        while let Ok(s) = signals.wait() {
            match brake.pull() {
                true => eprintln!("{s}: aborting"),
                false => eprintln!("{s}: too late: the processes run at the other host"),
            }
        }
    });
}

/// Shows progress: a line for each round, and one each second.
#[derive(Default)]
struct Teller {
    last: Mutex<String>,
}

impl Teller {
    fn tell(&self, p: &Progress, json: bool) {
        let downtime = p.downtime.map(|d| d.as_millis() as u64);
        if json {
            eprintln!(
                "{}",
                json!({"progress": {"round": p.round, "bytes_sent": p.sent, "bytes_per_second": p.rate,
                    "bytes_left": p.left, "downtime_ms": downtime, "frozen": p.frozen}})
            );
            return;
        }
        let line = line(p, downtime);
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last != line {
            eprintln!("{line}");
            *last = line;
        }
    }
}

fn line(p: &Progress, downtime: Option<u64>) -> String {
    let mut text = format!("round {}: {} sent", p.round, bytes(p.sent));
    if p.rate > 0 {
        text += &format!(", {}/s", bytes(p.rate));
    }
    if let Some(ms) = downtime {
        text += &format!(
            ", {} left: the processes would stand for {ms} ms",
            bytes(p.left)
        );
    }
    if p.frozen {
        text += "; they stand now";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_line() {
        let mut p = Progress {
            round: 2,
            sent: 3 << 20,
            ..Progress::default()
        };
        assert_eq!(line(&p, None), "round 2: 3.0 MiB sent");
        (p.rate, p.left, p.frozen) = (1 << 20, 4096, true);
        assert_eq!(
            line(&p, Some(7)),
            "round 2: 3.0 MiB sent, 1.0 MiB/s, 4.0 KiB left: the processes would stand for 7 ms; they stand now"
        );
    }
}
