//! `criu page-server`: takes the pages of one dump from a connection.
use super::background::{tell_ready, wait_there};
use super::settings::Settings;
use nix::sys::socket::{getsockopt, sockopt};
use stasis_engine::migrate::callers::Callers;
use stasis_engine::{Blame, Error, Result};
use stasis_proto::ImageDir;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// What happens where it listens.
const WAITING: &str = "waiting for pages";

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
    let dir = folder(s)?;
    match s.ps_socket {
        Some(fd) => receive(s, &dir, stasis_engine::inherited::descriptor(fd)?),
        None => {
            let socket = bind(s, WAITING)?;
            wait_there(s)?;
            serve(s, &dir, socket)
        }
    }
}

/// Takes one connection, and what goes with it.
fn serve(s: &Settings, dir: &ImageDir, listener: TcpListener) -> Result<ExitCode> {
    let tls = s.tls()?;
    let connection = accept(&listener)?;
    let link = stasis_engine::tls::accept(tls.as_deref(), connection.into())?;
    let more = Callers { listener, tls };
    told(stasis_engine::remote::receive(link, dir, Some(&more))?)
}

fn told(pages: u64) -> Result<ExitCode> {
    tracing::info!("received {pages} pages");
    Ok(ExitCode::SUCCESS)
}

fn receive(s: &Settings, dir: &ImageDir, connection: OwnedFd) -> Result<ExitCode> {
    let tls = s.tls()?;
    let link = stasis_engine::tls::accept(tls.as_deref(), connection.into())?;
    told(stasis_engine::remote::receive(link, dir, None)?)
}

/// The folder that the pages go to, with the folder before, if there is one.
fn folder(s: &Settings) -> Result<ImageDir> {
    let dir = ImageDir::open(&s.options.images)?;
    let Some(parent) = s.options.memory.parent.as_deref() else {
        return Ok(dir.with_parents(None)?);
    };
    let dir = dir.with_parents(Some(parent))?;
    dir.link_parent(parent)?;
    Ok(dir)
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

fn accept(socket: &TcpListener) -> Result<OwnedFd> {
    let (c, from) = socket
        .accept()
        .map_err(|e| host("cannot take the connection".into(), e))?;
    tracing::info!("pages come from {from}");
    Ok(c.into())
}

// ---- for a caller by RPC

/// How a page server that a request asks for lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// In a session of its own, after the worker.
    Daemon,
    /// As the worker's child, which a request WAIT_PID waits for.
    Child,
}

/// Starts a page server of a request: its process, and its port (0 for a connection that was handed over). It listens already.
///
/// # Errors
/// The port is taken, the folder does not exist, no process can be started.
pub fn start(s: &Settings, manner: Manner) -> Result<(i32, u16)> {
    // what is wrong with the folder or the certificates is said now
    folder(s)?;
    s.tls()?;
    let (socket, port) = match s.ps_socket {
        Some(fd) => (stasis_engine::inherited::descriptor(fd)?, 0),
        None => {
            let socket = bind(s, WAITING)?;
            let at = socket.local_addr();
            let port = at.map_err(|e| host("no port".into(), e))?.port();
            (socket.into(), port)
        }
    };
    let log = s
        .work_dir()
        .join(s.log.as_deref().unwrap_or(Path::new("-")));
    let log = match &s.log {
        None => Stdio::inherit(),
        Some(_) => std::fs::OpenOptions::new()
            .append(true)
            .open(&log)
            .map_err(|e| host(format!("log file {}", log.display()), e))?
            .into(),
    };
    let mut c = Command::new("/proc/self/exe");
    c.arg0("criu")
        .arg(match manner {
            Manner::Daemon => "page-server-daemon",
            Manner::Child => "page-server-child",
        })
        .args(["--no-default-config", "-D", "."])
        .arg(format!("-v{}", s.verbosity))
        .env_remove("CRIU_CONFIG_FILE")
        // a folder of the peer's is a descriptor of ours, and paths are relative to it
        .current_dir(&s.options.images)
        .stdin(socket)
        .stdout(Stdio::null())
        .stderr(log);
    if let Some(p) = &s.options.memory.parent {
        c.arg("--prev-images-dir").arg(p);
    }
    if s.tls {
        c.arg("--tls");
    }
    if s.tls_files.no_name {
        c.arg("--tls-no-cn-verify");
    }
    let f = &s.tls_files;
    let named = [
        ("--tls-cacert", &f.cacert),
        ("--tls-cacrl", &f.cacrl),
        ("--tls-cert", &f.cert),
        ("--tls-key", &f.key),
    ];
    for (name, file) in named {
        if let Some(file) = file {
            // it works in another folder
            let file = std::path::absolute(file).map_err(|e| host(name.into(), e))?;
            c.arg(name).arg(file);
        }
    }
    let child = c
        .spawn()
        .map_err(|e| host("cannot start a page server".into(), e))?;
    tell_ready(s)?;
    Ok((child.id() as i32, port))
}

/// `criu page-server-daemon`: only [`start`] starts it, with its socket as standard input.
///
/// # Errors
/// As for [`run`].
pub fn daemon(s: &Settings, words: &[String]) -> Result<ExitCode> {
    nix::unistd::setsid().map_err(|e| host("no session of its own".into(), e))?;
    child(s, words)
}

/// `criu page-server-child`: the same for one that is waited for.
///
/// # Errors
/// As for [`run`].
pub fn child(s: &Settings, _: &[String]) -> Result<ExitCode> {
    let dir = folder(s)?;
    let socket = stasis_engine::inherited::descriptor(0)?;
    let listens = getsockopt(&socket, sockopt::AcceptConn)
        .map_err(|e| host("standard input is no socket".into(), e))?;
    match listens {
        true => serve(s, &dir, socket.into()),
        false => receive(s, &dir, socket),
    }
}
