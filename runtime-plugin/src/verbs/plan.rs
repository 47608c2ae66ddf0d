//! `stasis plan`
use super::Images;
use clap::Args;
use serde_json::json;
use stasis_engine::Result;
use std::process::ExitCode;

/// Print every system call a restore would make, without making any
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stasis plan /var/tmp/frozen | less")]
pub struct Plan {
    #[command(flatten)]
    images: Images,
    /// Plan it as a job of the calling shell
    #[arg(short = 'j', long)]
    shell_job: bool,
}

impl Plan {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let mut o = self.images.options()?;
        o.shell_job = self.shell_job;
        let text = stasis_engine::plan(&o)?;
        match json {
            true => sayln!("{}", json!({"plan": text.lines().collect::<Vec<_>>()})),
            false => say!("{text}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}
