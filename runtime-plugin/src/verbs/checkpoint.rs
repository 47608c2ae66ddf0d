//! `stasis checkpoint`
use crate::oci::{self, Bundle};
use crate::verbs::dump::Carry;
use crate::verbs::{bytes, time};
use clap::Args;
use serde_json::json;
use stasis_engine::{After, Options, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Freeze an OCI container into a folder, by its bundle
///
/// The bundle's config.json says what stays outside of the images: the root directory, bind mounts, devices, namespaces given
/// by path. The container's runtime is not asked and not told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  runc state web >web.json
  stasis checkpoint --bundle /srv/web --state web.json -D /var/tmp/web
  stasis checkpoint --bundle /srv/web --pid 4242 -D /var/tmp/web --leave-running
  stasis restore --bundle /srv/web -D /var/tmp/web --detach")]
pub struct Checkpoint {
    /// Folder with the container's config.json
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// First process of the container
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..), required_unless_present = "state")]
    pid: Option<i32>,
    /// What `runc state` says of the container
    #[arg(long, value_name = "FILE", conflicts_with = "pid")]
    state: Option<PathBuf>,
    /// Folder for the images; made if it does not exist
    #[arg(short = 'D', long = "images-dir", value_name = "DIR")]
    dir: PathBuf,
    /// Let the container run on
    #[arg(short = 'R', long)]
    leave_running: bool,
    /// Do not wait until the images are on the disk: if the machine stops soon after, they may be lost
    #[arg(long)]
    no_sync: bool,
    #[command(flatten)]
    carry: Carry,
    /// Folder of hooks, in place of /usr/share/stasis/hooks.d and /etc/stasis/hooks.d; may be given again
    #[arg(long, value_name = "DIR")]
    hooks_dir: Vec<PathBuf>,
    /// Give up if the container does not stop in time
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

impl Checkpoint {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let bundle = Bundle::open(&self.bundle)?;
        let (pid, id) = match (&self.state, self.pid) {
            (Some(f), _) => {
                let s = oci::state(f)?;
                (s.pid, s.id)
            }
            (None, pid) => (pid.unwrap_or(0), None),
        };
        let id = id.unwrap_or_else(|| pid.to_string());
        stasis_proto::ImageDir::create(&self.dir)?;
        let mut o = Options::new(&self.dir);
        o.pid = pid;
        o.no_sync = self.no_sync;
        o.after = match self.leave_running {
            true => After::Running,
            false => After::Default,
        };
        o.timeout = Duration::from_secs(self.timeout);
        self.carry.apply(&mut o);
        o.kill_at = crate::kill_at()?;
        bundle.dump(&mut o)?;
        oci::watch(&mut o, &bundle, &id, &self.hooks_dir)?;
        oci::write_descriptors(pid, &self.dir)?;
        let r = stasis_engine::dump(&o)?;
        for w in &r.warnings {
            tracing::warn!("{w}");
        }
        crate::figures::write_dump(&self.dir, &r);
        let written = (r.pages_written + r.shpages_written).saturating_mul(4096);
        match json {
            true => sayln!(
                "{}",
                json!({"id": id, "pid": pid, "tasks": r.tasks, "bytes_written": written,
                    "frozen_us": r.frozen_us, "warnings": r.warnings})
            ),
            false => sayln!(
                "container {id}: {} processes, {} of memory, frozen for {}: {}",
                r.tasks,
                bytes(written),
                time(r.frozen_us),
                self.dir.display()
            ),
        }
        Ok(ExitCode::SUCCESS)
    }
}
