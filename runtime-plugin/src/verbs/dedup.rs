//! `stasis dedup`
use super::bytes;
use clap::Args;
use serde_json::json;
use stasis_engine::Result;
use stasis_proto::ImageDir;
use std::path::PathBuf;
use std::process::ExitCode;

/// Free pages of older images that an incremental dump has again
///
/// Afterwards only the last dump can be restored, which needs the older folders still.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stasis dedup /var/tmp/frozen-3")]
pub struct Dedup {
    /// Folder of the last dump
    dir: PathBuf,
}

impl Dedup {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let freed = stasis_engine::dedup(&ImageDir::open(&self.dir)?.with_parents(None)?)?;
        match json {
            true => sayln!("{}", json!({ "bytes_freed": freed })),
            false => sayln!("freed {}", bytes(freed)),
        }
        Ok(ExitCode::SUCCESS)
    }
}
