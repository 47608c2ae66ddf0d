//! `stasis plan`
use clap::Args;
use serde_json::json;
use stasis_engine::{Options, Result};
use std::path::PathBuf;
use std::process::ExitCode;

/// Print every system call a restore would make, without making any
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stasis plan /var/tmp/frozen | less")]
pub struct Plan {
    /// Folder of the images
    dir: PathBuf,
}

impl Plan {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let text = stasis_engine::plan(&Options::new(&self.dir))?;
        match json {
            true => sayln!("{}", json!({"plan": text.lines().collect::<Vec<_>>()})),
            false => say!("{text}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}
