//! `criu page-server`: takes the pages of one dump from a connection.
use super::background::wait_there;
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

/// Listens at `--address` and `--port`; `what` happens there, as the log says it.
///
/// # Errors
/// The port is taken, or the address is none of this host's.
pub fn bind(s: &Settings, what: &str) -> Result<TcpListener> {
    let address = s.address.as_deref().unwrap_or("0.0.0.0");
    let at = || format!("cannot listen at {address}, port {}", s.port);
    let socket = TcpListener::bind((address, s.port)).map_err(|e| host(at(), e))?;
    let port = socket.local_addr().map_err(|e| host(at(), e))?.port();
    tracing::info!("{what} at {address}, port {port}");
    Ok(socket)
}

fn listen(s: &Settings) -> Result<OwnedFd> {
    let socket = bind(s, "waiting for pages")?;
    wait_there(s)?;
    let (c, from) = socket
        .accept()
        .map_err(|e| host("cannot take the connection".into(), e))?;
    tracing::info!("pages come from {from}");
    Ok(c.into())
}
