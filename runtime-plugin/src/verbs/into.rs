//! What a tree is restored into, as `stasis restore` and `stasis receive` take it: an OCI bundle, or nothing.
use crate::hooks;
use crate::oci::{self, Bundle};
use clap::Args;
use stasis_engine::{Options, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// The bundle that is restored into, and whose hooks are run.
#[derive(Debug, Args)]
pub struct Into {
    /// The bundle of the OCI container that was frozen by `stasis checkpoint`, or by its runtime
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Id of the container: for hooks, and its control group if the bundle names none [default: the bundle's folder]
    #[arg(long, requires = "bundle")]
    id: Option<String>,
    /// Socket that gets the container's terminal
    #[arg(long, value_name = "PATH", requires = "bundle")]
    console_socket: Option<PathBuf>,
    /// Folder of hooks, in place of /usr/share/stasis/hooks.d and /etc/stasis/hooks.d; may be given again
    #[arg(long, value_name = "DIR")]
    hooks_dir: Vec<PathBuf>,
}

impl Into {
    /// Whether there is one.
    pub fn is_bundle(&self) -> bool {
        self.bundle.is_some()
    }
    /// Fills in what the bundle says of a restore, and who is told of its moments.
    ///
    /// # Errors
    /// Those of [`Bundle::open`], [`Bundle::restore`] and [`hooks::watch`].
    pub fn apply(&self, o: &mut Options) -> Result<()> {
        let Some(dir) = &self.bundle else {
            return hooks::watch(o, &self.hooks_dir, None);
        };
        let bundle = Bundle::open(dir)?;
        let folder = dir.canonicalize().unwrap_or_default();
        let id = self.id.clone().unwrap_or_else(|| {
            let name = folder.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        });
        bundle.restore(o, &id)?;
        oci::watch(o, &bundle, &id, &self.hooks_dir)?;
        if let Some(s) = &self.console_socket {
            o.events.0.push(Arc::new(oci::Console(s.clone())));
        }
        Ok(())
    }
}
