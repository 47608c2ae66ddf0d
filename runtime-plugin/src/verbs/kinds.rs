//! `stasis kinds`
use clap::Args;
use serde_json::{Value, json};
use stasis_engine::Result;
use stasis_engine::kinds::FILE_KINDS;
use std::process::ExitCode;

/// List the kinds of open files that can be carried, and what of them comes back
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stasis kinds --json")]
pub struct Kinds {}

impl Kinds {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        if json {
            let all: Vec<Value> = FILE_KINDS
                .iter()
                .map(|k| {
                    json!({"name": k.name(), "about": k.about(), "fd_type": k.fd_type().as_str_name()})
                })
                .collect();
            sayln!("{}", Value::from(all));
        } else {
            for k in FILE_KINDS {
                sayln!("{:<14} {}", k.name(), k.about());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
