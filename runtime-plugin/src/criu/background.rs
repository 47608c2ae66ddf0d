//! What the verbs of criu that wait for others share: the way to the background, and who hears that they wait.
use super::settings::Settings;
use stasis_engine::{Blame, Error, Result};
use std::fs::File;
use std::io::Write;

fn host(what: String, e: impl std::fmt::Display) -> Error {
    Error::new("E7023", Blame::Host, what)
        .why(e)
        .advice("leave out --daemon, or name another --pidfile")
}

/// `--daemon`, then `--pidfile` with the pid that this has led to, then [`tell_ready`].
///
/// # Errors
/// The pidfile exists or cannot be written; no other process can be started; those of [`tell_ready`].
pub fn wait_there(s: &Settings) -> Result<()> {
    let options = s.engine()?;
    crate::verbs::restore::free_pidfile(&options)?;
    if s.options.detach {
        nix::unistd::daemon(true, s.log.is_none())
            .map_err(|e| host("cannot go to the background".into(), e))?;
    }
    if let Some(f) = options.pidfile {
        std::fs::write(&f, std::process::id().to_string())
            .map_err(|e| host(format!("pidfile {}", f.display()), e))?;
    }
    tell_ready(s)
}

/// `--status-fd`: one NUL byte when requests are taken.
pub fn tell_ready(s: &Settings) -> Result<()> {
    let Some(n) = s.status_fd else { return Ok(()) };
    let fd = stasis_engine::inherited::descriptor(n)?;
    File::from(fd).write_all(&[0]).map_err(|e| {
        Error::new(
            "E7021",
            Blame::Caller,
            format!("--status-fd {n} cannot be written"),
        )
        .why(e)
        .advice("give a descriptor that is open for writing")
    })
}
