//! `criu service`: a socket that anybody may ask, and a worker for each who does.
//!
//! A worker is this program again, with the caller's rights and nothing else: see [`super::rights`].
use super::super::background::wait_there;
use super::super::settings::Settings;
use super::connection::Connection;
use super::rights;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use stasis_engine::{Blame, Error, Result};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Where callers look for a service.
const SOCKET: &str = "/var/run/criu_service.socket";

fn host(what: String, e: impl std::fmt::Display) -> Error {
    Error::new("E7020", Blame::Host, what)
        .why(e)
        .advice("choose another --address, or end the service that is there")
}

/// `criu service`
///
/// # Errors
/// The socket cannot be made. It does not return otherwise.
pub fn run(s: &Settings, _: &[String]) -> Result<ExitCode> {
    let path = s.address.as_deref().unwrap_or(SOCKET);
    let socket = open(Path::new(path))?;
    wait_there(s)?;
    tracing::info!("requests are taken at {path}");
    // the type fits every listening unix socket, also one of packets
    let socket = UnixListener::from(socket);
    loop {
        match socket.accept() {
            Ok((c, _)) => worker(s, c.into()),
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(host("cannot take connections".into(), e)),
        }
    }
}

/// A listening socket under this path; a dead one that is there is replaced.
fn open(path: &Path) -> Result<OwnedFd> {
    let fail = |e: nix::Error| host(format!("cannot listen at {}", path.display()), e);
    let make = || {
        socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
    };
    let address = UnixAddr::new(path).map_err(fail)?;
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type()));
    if is_socket {
        let probe = make().map_err(fail)?;
        match nix::sys::socket::connect(probe.as_raw_fd(), &address) {
            Err(nix::Error::ECONNREFUSED) => {
                std::fs::remove_file(path)
                    .map_err(|e| host(format!("cannot remove {}", path.display()), e))?;
            }
            _ => {
                return Err(host(
                    format!("cannot listen at {}", path.display()),
                    "somebody does",
                ));
            }
        }
    }
    let s = make().map_err(fail)?;
    bind(s.as_raw_fd(), &address).map_err(fail)?;
    // everybody may ask: a worker has no more rights than who asked
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .map_err(|e| host(format!("cannot open {} to all", path.display()), e))?;
    listen(&s, Backlog::new(16).unwrap_or(Backlog::MAXCONN)).map_err(fail)?;
    Ok(s)
}

/// Starts a worker for a connection, which it finds as standard input.
fn worker(s: &Settings, connection: OwnedFd) {
    let mut c = Command::new("/proc/self/exe");
    c.arg0("criu")
        .arg("service-worker")
        .stdin(Stdio::from(connection))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if s.no_default_config {
        c.arg("--no-default-config");
    }
    if let Some(f) = &s.config {
        c.arg("--config").arg(f);
    }
    match c.spawn() {
        Ok(mut child) => {
            std::thread::spawn(move || {
                if let Ok(status) = child.wait() {
                    tracing::debug!("worker {}: {status}", child.id());
                }
            });
        }
        Err(e) => tracing::error!("cannot start a worker: {e}"),
    }
}

/// `criu service-worker`: only a service starts it.
pub fn work(line: &super::super::parse::Line, start: Instant) -> ExitCode {
    let ready = Connection::take(0).and_then(|c| rights::become_peer(c.peer).map(|()| c));
    match ready {
        Ok(c) => super::serve(line, c, true, start),
        Err(e) => super::refuse(&e),
    }
}
