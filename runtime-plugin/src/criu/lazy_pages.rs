//! `criu lazy-pages`: brings memory to a tree that is being restored with `--lazy-pages`; and `--lazy-pages` of a dump, which keeps it.
use super::background::{tell_ready, wait_there};
use super::page_server::bind;
use super::settings::Settings;
use stasis_engine::far::Counter;
use stasis_engine::lazy_daemon;
use stasis_engine::remote::Server;
use stasis_engine::{Blame, Error, Moment, Options, Result, Watcher};
use stasis_proto::ImageDir;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::sync::Arc;

/// Waits for one restore, and ends when all memory is in its place.
///
/// # Errors
/// The socket cannot be made; those of [`lazy_daemon::run`].
pub fn run(s: &Settings, _: &[String]) -> Result<ExitCode> {
    let dir = ImageDir::open(&s.options.images)?;
    let dir = dir.with_parents(s.options.memory.parent.as_deref())?;
    let far = s.page_server.then(|| s.server()).transpose()?;
    let listener = lazy_daemon::listen(s.work_dir())?;
    wait_there(s)?;
    lazy_daemon::run(&dir, &listener, far.as_ref())?;
    tracing::info!("all memory is in its place");
    Ok(ExitCode::SUCCESS)
}

/// `--status-fd` of a dump that keeps memory: told when it may be asked for.
struct Ready(Settings);

impl Watcher for Ready {
    fn moment(&self, moment: Moment) -> Result<()> {
        match moment {
            Moment::StatusReady => tell_ready(&self.0),
            _ => Ok(()),
        }
    }
    fn orphan_pts_master(&self, _: BorrowedFd<'_>) -> Result<bool> {
        Ok(false)
    }
}

/// A dump with `--lazy-pages`: listens before anything is touched.
///
/// # Errors
/// The port is taken, or options contradict each other.
pub fn keep(s: &Settings, o: &mut Options) -> Result<()> {
    if !s.options.memory.lazy {
        return Ok(());
    }
    if s.page_server || s.options.after != stasis_engine::After::Default {
        let what =
            "option --lazy-pages: the pages stay with the tree, which must end when they are gone";
        return Err(Error::new("E2001", Blame::Caller, what)
            .advice("leave out --page-server, --leave-running and --leave-stopped"));
    }
    o.memory.lazy = false;
    o.memory.counter = Some(match s.ps_socket {
        Some(fd) => Counter::Connected(fd, s.tls()?),
        None => Counter::Listening(Arc::new(bind(s, "pages can be asked for")?), s.tls()?),
    });
    o.events.0.push(Arc::new(Ready(s.clone())));
    Ok(())
}

/// A restore with `--lazy-pages`: the daemon is found in the work folder.
pub fn by_daemon(s: &Settings, o: &mut Options) {
    if s.options.memory.lazy {
        o.memory.lazy_daemon = Some(s.work_dir().join(lazy_daemon::SOCKET));
    }
}

impl Settings {
    /// Where the page server is.
    ///
    /// # Errors
    /// As for [`Settings::tls`].
    pub fn server(&self) -> Result<Server> {
        Ok(Server {
            host: self.address.clone().unwrap_or("127.0.0.1".into()),
            port: self.port,
            connected: self.ps_socket,
            tls: self.tls()?,
        })
    }
}
