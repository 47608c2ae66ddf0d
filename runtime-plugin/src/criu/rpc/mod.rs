//! `criu swrk FD`: one request of a runtime over a socket it made, and the answer.
//!
//! The socket may have any number. Nothing is said before a request comes. Folders of a request are descriptors of the
//! process that made the socket (SO_PEERCRED). A worker serves one request; only questions may ask for more with `keep_open`.
//!
//! Long because every type of request is answered here.
mod connection;
mod request;
mod rights;
pub mod service;
#[cfg(test)]
mod tests;
mod watch;

use super::options::{Fate, by_long};
use super::page_server::{self, Manner};
use super::settings::Settings;
use super::verbs;
use crate::{cpu, figures};
use connection::Connection;
use request::Folders;
use stasis_engine::check::Report;
use stasis_engine::{Blame, Error};
use stasis_proto::ImageDir;
use stasis_proto::pb::{
    CriuDumpResp, CriuFeatures, CriuPageServerInfo, CriuReq, CriuReqType, CriuResp,
    CriuRestoreResp, CriuVersion,
};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use watch::Runtime;

/// Longest `cr_errmsg`, in bytes: go-criu reads whole responses into 8192.
const LONGEST: usize = 1000;

/// `criu swrk FD`
pub fn swrk(line: &super::parse::Line, fd: &str, start: Instant) -> ExitCode {
    let Ok(fd) = fd.parse() else {
        return super::usage(&format!(
            "swrk is followed by the number of a socket, not {fd}"
        ));
    };
    match Connection::take(fd) {
        Ok(c) => serve(line, c, false, start),
        Err(e) => super::complain(&e),
    }
}

/// What one request came to.
struct Done {
    response: CriuResp,
    /// Words to execute afterwards.
    exec: Vec<String>,
}

/// Requests over a connection until it is done with. `service`: the other end is a stranger.
fn serve(line: &super::parse::Line, c: Connection, service: bool, start: Instant) -> ExitCode {
    let c = Arc::new(Mutex::new(c));
    loop {
        let next = c.lock().unwrap_or_else(PoisonError::into_inner).request();
        let request = match next {
            Ok(Some(r)) => r,
            Ok(None) => return ExitCode::SUCCESS,
            Err(e) => return super::complain(&e),
        };
        let worker = Worker {
            line,
            connection: &c,
            service,
            start,
        };
        let done = worker.answer(&request);
        let sent = c
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .respond(&done.response, None);
        match sent {
            // done is done; who asked for its own dump has ended with it
            Err(e) if done.response.success => {
                tracing::info!("{e}");
                return ExitCode::SUCCESS;
            }
            Err(e) => {
                tracing::error!("{e}");
                return ExitCode::FAILURE;
            }
            Ok(()) if !done.response.success => return ExitCode::FAILURE,
            Ok(()) => {}
        }
        if let [program, words @ ..] = &done.exec[..] {
            let e = Command::new(program).args(words).exec();
            tracing::error!("the tree runs, but {program} cannot be executed: {e}");
            return ExitCode::FAILURE;
        }
        let question = matches!(
            request.r#type(),
            CriuReqType::Version
                | CriuReqType::FeatureCheck
                | CriuReqType::CpuinfoDump
                | CriuReqType::CpuinfoCheck
                | CriuReqType::PageServer
                | CriuReqType::PageServerChld
        );
        // after a pre-dump the next one, or the dump, may come over the same connection
        let goes_on = request.r#type() == CriuReqType::PreDump;
        if !(goes_on || question && request.keep_open()) {
            return ExitCode::SUCCESS;
        }
    }
}

/// One request's worker.
struct Worker<'a> {
    line: &'a super::parse::Line,
    connection: &'a Arc<Mutex<Connection>>,
    service: bool,
    start: Instant,
}

impl Worker<'_> {
    fn answer(&self, r: &CriuReq) -> Done {
        let mut exec = Vec::new();
        let answer = match CriuReqType::try_from(r.r#type) {
            Ok(CriuReqType::Version) => Ok(version()),
            Ok(CriuReqType::FeatureCheck) => Ok(features(r)),
            Ok(CriuReqType::WaitPid) => wait_pid(r),
            Ok(CriuReqType::Check) => {
                let settled = match &r.opts {
                    Some(_) => self.settle(r).map(drop),
                    None => Ok(()),
                };
                settled
                    .and_then(|()| crate::verbs::check::usable())
                    .map(|()| blank())
            }
            Ok(CriuReqType::CpuinfoDump) => self.settle(r).and_then(|(s, _held)| {
                cpu::dump(&ImageDir::open(&s.options.images)?)?;
                Ok(blank())
            }),
            Ok(CriuReqType::CpuinfoCheck) => self.settle(r).and_then(|(s, _held)| {
                let (ins, fpu) = match r.opts.as_ref().and_then(|o| o.cpu_cap) {
                    Some(_) => (s.cpu_cap.ins, s.cpu_cap.fpu),
                    None => (true, true),
                };
                cpu::check(&ImageDir::open(&s.options.images)?, ins, fpu)?;
                Ok(blank())
            }),
            Ok(CriuReqType::Dump) => self.dump(r),
            Ok(CriuReqType::Restore) => {
                exec = r
                    .opts
                    .as_ref()
                    .map(|o| o.exec_cmd.clone())
                    .unwrap_or_default();
                self.restore(r)
            }
            Ok(CriuReqType::PreDump | CriuReqType::SinglePreDump) => self.pre_dump(r),
            Ok(CriuReqType::PageServer) => self.page_server(r, Manner::Daemon),
            Ok(CriuReqType::PageServerChld) => self.page_server(r, Manner::Child),
            Ok(CriuReqType::Notify) => Err(odd("NOTIFY answers a notification, and none is open")),
            Ok(CriuReqType::Empty) => Err(odd("the request has no type")),
            Err(_) => Err(odd(&format!("there are no requests of type {}", r.r#type))),
        };
        let mut response = match answer {
            Ok(a) => a,
            Err(e) => failure(r, &e),
        };
        response.r#type = match CriuReqType::try_from(r.r#type) {
            // CRIU's answers have this type for both
            Ok(CriuReqType::PageServerChld) => CriuReqType::PageServer as i32,
            Ok(t) => t as i32,
            Err(_) => CriuReqType::Empty as i32,
        };
        Done { response, exec }
    }

    /// Files of options, then the request, then the request's own file; and the log.
    fn settle(&self, r: &CriuReq) -> stasis_engine::Result<(Settings, Folders)> {
        let caller = |why: String| {
            Error::new("E7011", Blame::Caller, "the request cannot be served")
                .why(why)
                .advice("change this field of the request")
        };
        let opts = r
            .opts
            .as_ref()
            .ok_or_else(|| caller("it has no opts".into()))?;
        let mut held = Folders::default();
        let mut s = Settings::default();
        let from_files = super::files(&mut s, self.line);
        let peer = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .peer;
        let own = s.clone();
        let folders = request::folders(&mut s, opts, peer, &mut held);
        if let Err(why) = folders {
            // nowhere to log to
            return Err(caller(why));
        }
        // a file may say where the log goes, but not silence the runtime's
        if opts.log_file.is_none() && own.log.is_some() {
            s.log.clone_from(&own.log);
        }
        let taken = from_files
            .and_then(|()| request::take(&mut s, opts))
            .and_then(|()| own_file(&mut s, opts.config_file.as_deref()))
            .and_then(|()| self.allowed(&s));
        let log = super::open_log(&s, self.start).map_err(caller);
        tracing::info!(
            "Version: {} (stasis {}), request {}",
            super::VERSION,
            env!("CARGO_PKG_VERSION"),
            r.r#type().as_str_name()
        );
        for note in &s.notes {
            tracing::info!("{note}");
        }
        log?;
        taken.map_err(caller)?;
        for (key, fd) in &s.options.namespaces.inherit {
            let open = stasis_engine::inherited::descriptor(*fd);
            open.map_err(|e| {
                caller(format!(
                    "inherit_fd {key}: descriptor {fd} is not open: {}",
                    e.what
                ))
            })?;
        }
        for script in std::mem::take(&mut s.scripts) {
            verbs::watch_script(&mut s, &script)?;
        }
        let (moments, masters) = (opts.notify_scripts(), opts.orphan_pts_master());
        if moments || masters {
            let w = Runtime::new(self.connection.clone(), moments, masters);
            s.options.events.0.push(Arc::new(w));
        }
        Ok((s, held))
    }

    /// What a stranger's request may not ask.
    fn allowed(&self, s: &Settings) -> Result<(), String> {
        if !self.service {
            return Ok(());
        }
        if s.options.sibling {
            return Err(
                "rst_sibling: a service cannot make siblings of its callers: use swrk".into(),
            );
        }
        if !s.options.namespaces.inherit.is_empty() {
            return Err(
                "inherit_fd: a service has not inherited its callers' files: use swrk".into(),
            );
        }
        if s.ps_socket.is_some() {
            return Err("ps.fd: a service has not inherited its callers' files: use swrk".into());
        }
        if !s.scripts.is_empty() {
            return Err("action-script: a service runs no scripts for its callers".into());
        }
        Ok(())
    }

    /// A request without a pid is for the caller itself.
    fn or_caller(&self, s: &mut Settings) -> stasis_engine::Result<()> {
        if s.options.pid != 0 {
            return Ok(());
        }
        let c = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let unknown = |why: String| {
            Error::new("E7012", Blame::Caller, "the caller cannot be dumped itself")
                .why(why)
                .advice("name the root of the tree in pid")
        };
        if c.peer.pid <= 0 {
            return Err(unknown("it lives in another pid namespace".into()));
        }
        s.options.pid = c.peer.pid;
        s.options.network.service_socket = Some(c.inode().map_err(unknown)?);
        Ok(())
    }

    fn pre_dump(&self, r: &CriuReq) -> stasis_engine::Result<CriuResp> {
        let (mut s, _held) = self.settle(r)?;
        self.or_caller(&mut s)?;
        let report = verbs::pre_dump_tree(&s)?;
        if s.display_stats {
            tracing::info!("{}", figures::dump_text(&report));
        }
        Ok(blank())
    }

    /// Starts a page server, which outlives this worker or is its child.
    fn page_server(&self, r: &CriuReq, manner: Manner) -> stasis_engine::Result<CriuResp> {
        let (s, _held) = self.settle(r)?;
        let (pid, port) = page_server::start(&s, manner)?;
        tracing::info!("page server {pid} waits at port {port}");
        Ok(CriuResp {
            ps: Some(CriuPageServerInfo {
                pid: Some(pid),
                port: Some(port.into()),
                ..Default::default()
            }),
            ..blank()
        })
    }

    fn dump(&self, r: &CriuReq) -> stasis_engine::Result<CriuResp> {
        let (mut s, _held) = self.settle(r)?;
        self.or_caller(&mut s)?;
        let report = verbs::dump_tree(&s)?;
        if s.display_stats {
            tracing::info!("{}", figures::dump_text(&report));
        }
        Ok(CriuResp {
            dump: Some(CriuDumpResp {
                restored: Some(false),
            }),
            ..blank()
        })
    }

    fn restore(&self, r: &CriuReq) -> stasis_engine::Result<CriuResp> {
        let (mut s, _held) = self.settle(r)?;
        // nobody is there to wait for the root but the runtime
        s.options.detach = true;
        let report = verbs::restore_tree(&s)?;
        if s.display_stats {
            tracing::info!("{}", figures::restore_text(&report));
        }
        Ok(CriuResp {
            restore: Some(CriuRestoreResp { pid: report.pid }),
            ..blank()
        })
    }
}

/// The request's own file of options: it wins over the request, and need not exist.
fn own_file(s: &mut Settings, file: Option<&str>) -> Result<(), String> {
    let Some(file) = file.filter(|f| !f.is_empty()) else {
        return Ok(());
    };
    super::one_file(s, file.as_ref(), false)
}

fn blank() -> CriuResp {
    CriuResp {
        success: true,
        ..Default::default()
    }
}

fn odd(what: &str) -> Error {
    Error::new("E7013", Blame::Caller, what)
        .advice("send a request of the schema rpc.proto of CRIU 4.2")
}

fn version() -> CriuResp {
    let mut numbers = super::VERSION.split('.').map(|n| n.parse().unwrap_or(0));
    CriuResp {
        version: Some(CriuVersion {
            major_number: numbers.next().unwrap_or(0),
            minor_number: numbers.next().unwrap_or(0),
            sublevel: Some(numbers.next().unwrap_or(0)),
            // no gitid: callers take it for an unreleased version and count one minor up
            ..Default::default()
        }),
        ..blank()
    }
}

/// Only what is asked is tried.
fn features(r: &CriuReq) -> CriuResp {
    let asked = r.features.unwrap_or_default();
    let probes = stasis_engine::check();
    CriuResp {
        features: Some(answers(&asked, &probes)),
        ..blank()
    }
}

fn answers(asked: &CriuFeatures, probes: &[Report]) -> CriuFeatures {
    let has = |name: &str| {
        probes
            .iter()
            .any(|r| r.probe.name == name && r.outcome.is_present())
    };
    let honoured = |option: &str| by_long(option).is_ok_and(|o| o.fate == Fate::Honoured);
    // what was not asked is answered with no, as CRIU does
    let if_asked = |asked: Option<bool>, yes: &dyn Fn() -> bool| Some(asked == Some(true) && yes());
    CriuFeatures {
        mem_track: if_asked(asked.mem_track, &|| {
            honoured("track-mem") && has("userfaultfd-wp-async") && has("pagemap-scan")
        }),
        lazy_pages: if_asked(asked.lazy_pages, &|| {
            honoured("lazy-pages") && has("userfaultfd")
        }),
        // the store keeps pidfds over several dumps; here start times tell tasks apart
        pidfd_store: if_asked(asked.pidfd_store, &|| false),
    }
}

/// Waits for a child of this process.
fn wait_pid(r: &CriuReq) -> stasis_engine::Result<CriuResp> {
    let pid = i32::try_from(r.pid()).ok().filter(|p| *p > 0);
    let pid = pid.ok_or_else(|| odd("WAIT_PID without a pid"))?;
    use nix::sys::wait::{WaitStatus, waitpid};
    let status = match waitpid(nix::unistd::Pid::from_raw(pid), None) {
        Ok(WaitStatus::Exited(_, code)) => code << 8,
        Ok(WaitStatus::Signaled(_, signal, _)) => signal as i32,
        Ok(other) => return Err(odd(&format!("process {pid} did not end: {other:?}"))),
        Err(e) => {
            return Err(Error::new("E7014", Blame::Caller, format!("process {pid}"))
                .why(format!("it is no child of this worker: {e}"))
                .advice("wait for it where it was started"));
        }
    };
    Ok(CriuResp {
        status: Some(status),
        ..blank()
    })
}

/// Tells a caller, whatever it wants, that it is not served.
fn refuse(why: &str) -> ExitCode {
    if let Ok(c) = Connection::take(0)
        && let Ok(Some(r)) = c.request()
    {
        let e = Error::new("E7015", Blame::Caller, "this caller is not served")
            .why(why)
            .advice("ask as a user of this machine, from its own namespaces");
        let mut response = failure(&r, &e);
        response.r#type = r.r#type;
        let _ = c.respond(&response, None);
    }
    ExitCode::FAILURE
}

/// What a caller is told of a failure.
fn failure(r: &CriuReq, e: &Error) -> CriuResp {
    tracing::error!("{e}");
    let (what, dump, restore) = match r.r#type() {
        CriuReqType::Dump => ("Dumping FAILED.", Some(CriuDumpResp::default()), None),
        CriuReqType::Restore => ("Restoring FAILED.", None, Some(CriuRestoreResp { pid: -1 })),
        _ => ("", None, None),
    };
    if !what.is_empty() {
        tracing::error!("{what}");
    }
    CriuResp {
        success: false,
        dump,
        restore,
        cr_errno: Some(errno(e)),
        cr_errmsg: Some(message(e)),
        ..Default::default()
    }
}

/// One line of at most [`LONGEST`] bytes: what, why, what to do.
fn message(e: &Error) -> String {
    let mut text = format!("error[{}]: {}", e.code, e.what);
    for (before, part) in [(": ", &e.why), (". Advice: ", &e.advice)] {
        if !part.is_empty() {
            text += before;
            text += part;
        }
    }
    let mut text = crate::log::one_line(&text);
    if text.len() > LONGEST {
        let cut = (0..=LONGEST - 3).rev().find(|n| text.is_char_boundary(*n));
        text.truncate(cut.unwrap_or(0));
        text += "...";
    }
    text
}

/// The error number that tells callers most; `EBADRQC` is CRIU's for requests it cannot take.
fn errno(e: &Error) -> i32 {
    const ESRCH: i32 = 3;
    const EEXIST: i32 = 17;
    const EPERM: i32 = 1;
    const ENOMEM: i32 = 12;
    const ENOSPC: i32 = 28;
    const EROFS: i32 = 30;
    const EMFILE: i32 = 24;
    const ENOSYS: i32 = 38;
    const EBADRQC: i32 = 56;
    const EBADMSG: i32 = 74;
    const EOPNOTSUPP: i32 = 95;
    const EIO: i32 = 5;
    match (e.code, e.blame) {
        ("E4001", _) => ESRCH,
        ("E6101", _) => EEXIST,
        ("E6001", _) => ENOSPC,
        ("E6002", _) => EROFS,
        ("E6003", _) => EPERM,
        ("E6004", _) => ENOMEM,
        ("E6005", _) => EMFILE,
        (_, Blame::Caller) => EBADRQC,
        (_, Blame::Kernel) => ENOSYS,
        (_, Blame::Container) => EOPNOTSUPP,
        (_, Blame::Image) => EBADMSG,
        (_, Blame::Host | Blame::Engine) => EIO,
    }
}
