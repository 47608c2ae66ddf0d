//! `criu page-server`: takes the pages of one dump from a connection.
use super::rpc::service::tell_ready;
use super::settings::Settings;
use stasis_engine::{Blame, Error, Result};
use stasis_proto::ImageDir;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

fn host(what: String, e: impl std::fmt::Display) -> Error {
    Error::new("E7022", Blame::Host, what)
        .why(e)
        .advice("choose another --address or --port")
}

/// Takes one connection, and the pages that come over it.
///
/// # Errors
/// The port is taken; the connection is lost; the folder cannot be written.
pub fn run(s: &Settings, _: &[String]) -> Result<ExitCode> {
    let dir = ImageDir::open(&s.options.images)?;
    let parent = s.options.memory.parent.as_deref();
    let dir = match parent {
        Some(p) => {
            let dir = dir.with_parents(Some(p))?;
            dir.link_parent(p)?;
            dir
        }
        None => dir.with_parents(None)?,
    };
    let connection = match s.ps_socket {
        Some(fd) => stasis_engine::inherited::descriptor(fd)?,
        None => listen(s)?,
    };
    let pages = stasis_engine::remote::receive(connection, &dir)?;
    tracing::info!("received {pages} pages");
    Ok(ExitCode::SUCCESS)
}

fn listen(s: &Settings) -> Result<OwnedFd> {
    let address = s.address.as_deref().unwrap_or("0.0.0.0");
    let at = || format!("cannot listen at {address}, port {}", s.port);
    let socket = TcpListener::bind((address, s.port)).map_err(|e| host(at(), e))?;
    let port = socket.local_addr().map_err(|e| host(at(), e))?.port();
    let pidfile = s.engine().pidfile;
    crate::verbs::restore::free_pidfile(&s.engine())?;
    if s.options.detach {
        nix::unistd::daemon(true, s.log.is_none())
            .map_err(|e| host("cannot go to the background".into(), e))?;
    }
    if let Some(f) = pidfile {
        std::fs::write(&f, std::process::id().to_string())
            .map_err(|e| host(format!("pidfile {}", f.display()), e))?;
    }
    tracing::info!("waiting for pages at {address}, port {port}");
    tell_ready(s)?;
    let (c, from) = socket.accept().map_err(|e| host(at(), e))?;
    tracing::info!("pages come from {from}");
    Ok(c.into())
}
