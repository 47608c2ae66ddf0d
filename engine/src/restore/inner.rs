//! The worker in the tree's namespaces: it performs there what the plan has the engine do, and sends the files back.
//!
//! It is a copy of the engine (see `stasis_kernel::inner`), so it has the plan already; the engine only says what to do next.
//! Pids are as the tree sees them, paths as its mount namespace has them. What it opens crosses the channel as SCM_RIGHTS.
use super::plan::Plan;
use crate::error::{Blame, Error, Result};
use crate::kinds::{Stage, Stagehand};
use crate::options::Options;
use stasis_kernel::call::FdRef;
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::ids::HostPid;
use stasis_kernel::inner::Inner;
use stasis_proto::ImageDir;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the engine asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// What is in the namespaces: names, IPC objects, devices, mounts.
    Contents,
    /// Acts of a stage.
    Open(Stage),
    /// What was made outside of the tree belongs to others from now on.
    Keep,
}

/// Stages in the order of their numbers on the channel.
const STAGES: [Stage; 7] = [
    Stage::First,
    Stage::Second,
    Stage::Tasks,
    Stage::Queues,
    Stage::Mapped,
    Stage::Commit,
    Stage::Last,
];

impl Task {
    fn code(self) -> u8 {
        match self {
            Task::Contents => 100,
            Task::Keep => 101,
            Task::Open(s) => STAGES.iter().position(|x| *x == s).unwrap_or(0) as u8,
        }
    }
    fn by_code(c: u8) -> Option<Task> {
        match c {
            100 => Some(Task::Contents),
            101 => Some(Task::Keep),
            n => STAGES.get(n as usize).map(|s| Task::Open(*s)),
        }
    }
}

/// An error on its way through the channel.
#[derive(serde::Serialize, serde::Deserialize)]
struct Refusal {
    code: String,
    blame: u8,
    what: String,
    why: String,
    advice: String,
    kind: Option<String>,
}

const BLAMES: [Blame; 6] = [
    Blame::Kernel,
    Blame::Container,
    Blame::Image,
    Blame::Host,
    Blame::Caller,
    Blame::Engine,
];

/// How a message ends: with the list of warnings, or with a refusal.
#[derive(serde::Serialize, serde::Deserialize)]
enum End {
    Done(Vec<String>),
    Refused(Refusal),
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        Refusal {
            code: e.code.into(),
            blame: BLAMES.iter().position(|b| *b == e.blame).unwrap_or(5) as u8,
            what: e.what,
            why: e.why,
            advice: e.advice,
            kind: e.kind.map(str::to_string),
        }
    }
}

impl Refusal {
    fn error(self) -> Error {
        // once per failed restore
        let fixed = |s: String| -> &'static str { Box::leak(s.into_boxed_str()) };
        let blame = BLAMES
            .get(self.blame as usize)
            .copied()
            .unwrap_or(Blame::Engine);
        let mut e = Error::new(fixed(self.code), blame, self.what).advice(self.advice);
        e.why = self.why;
        e.kind = self.kind.map(fixed);
        e
    }
}

/// Descriptors in one message: at most 253 (SCM_MAX_FD).
const PER_MESSAGE: usize = 250;
/// Longest message: the end with its words.
const LONGEST: usize = 60_000;

/// Has the worker do something; its files come into `host`. Gives its warnings.
///
/// # Errors
/// The worker's, or that it is gone.
pub fn ask(worker: &Inner, task: Task, host: &mut Host) -> Result<Vec<String>> {
    let gone = |e: String| {
        Error::new(
            "E6801",
            Blame::Host,
            "the worker in the tree's namespaces is gone",
        )
        .why(e)
        .advice("the kernel log may say who killed it (out of memory?)")
    };
    nix::unistd::write(&worker.channel, &[task.code()]).map_err(|e| gone(e.to_string()))?;
    let mut buf = vec![0u8; LONGEST];
    loop {
        let (n, files) = fds::recv_fds(worker.channel.as_fd(), &mut buf)?;
        match buf.get(..n) {
            Some([]) | None => return Err(gone("it closed its channel".into())),
            Some([b'F', refs @ ..]) => {
                if refs.len() != files.len() * 4 {
                    return Err(Error::bug("files and names on the channel do not match"));
                }
                for (r, f) in refs.chunks_exact(4).zip(files) {
                    let r = u32::from_le_bytes([r[0], r[1], r[2], r[3]]);
                    host.insert(FdRef(r), f);
                }
            }
            Some([_, json @ ..]) => {
                return match serde_json::from_slice(json) {
                    Ok(End::Done(warnings)) => Ok(warnings),
                    Ok(End::Refused(r)) => Err(r.error()),
                    Err(e) => Err(gone(e.to_string())),
                };
            }
        }
    }
}

/// What the worker works with.
pub struct Work<'a> {
    /// The caller's options.
    pub o: &'a Options,
    /// The image folder.
    pub dir: &'a ImageDir,
    /// The plan.
    pub plan: &'a Plan,
    /// Files the engine has opened before the worker was made.
    pub host: Host,
}

/// The worker's life: one task after the other until the channel is closed.
pub fn serve(mut w: Work<'_>, channel: OwnedFd) -> i32 {
    let wanted = w.plan.wanted();
    let mut sent: BTreeSet<FdRef> = BTreeSet::new();
    loop {
        let mut code = [0u8];
        match nix::unistd::read(&channel, &mut code) {
            Ok(1) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            _ => return 0,
        }
        let done = match Task::by_code(code[0]) {
            Some(task) => w.perform(task),
            None => Err(Error::bug("an unknown task on the channel")),
        };
        let end = done.and_then(|warnings| {
            w.send(&channel, &wanted, &mut sent)?;
            Ok(warnings)
        });
        let end = match end {
            Ok(warnings) => End::Done(warnings),
            Err(e) => End::Refused(e.into()),
        };
        let mut message = vec![b'E'];
        if serde_json::to_writer(&mut message, &end).is_err() || message.len() > LONGEST {
            message = b"E{\"Done\":[]}".to_vec();
        }
        if nix::unistd::write(&channel, &message).is_err() {
            return 1;
        }
    }
}

impl Work<'_> {
    fn perform(&mut self, task: Task) -> Result<Vec<String>> {
        match task {
            Task::Contents => self.contents().map(|()| Vec::new()),
            Task::Open(stage) => {
                let known = |pid: u32| Some(HostPid(pid as i32));
                for (_, act, why) in self.plan.host.iter().filter(|h| h.0 == stage) {
                    crate::kill_point();
                    let mut on = Stagehand {
                        host: &mut self.host,
                        dir: self.dir,
                        pid: &known,
                    };
                    act.perform(&mut on)
                        .map_err(|e| super::perform::opening(act, why, e))?;
                }
                if let (Stage::First, Some(m)) = (stage, &self.plan.mounts) {
                    crate::namespaces::mnt::finish(self.dir, m, &mut self.host)?;
                }
                Ok(Vec::new())
            }
            Task::Keep => {
                self.host.keep();
                Ok(Vec::new())
            }
        }
    }
    /// Fills the namespaces that were made.
    fn contents(&mut self) -> Result<()> {
        for (ns, id) in &self.plan.grounds.fresh {
            crate::namespaces::restore(self.o, self.dir, *ns, *id)?;
        }
        // mounts last: until then /proc is the host's
        match &self.plan.mounts {
            Some(m) => crate::namespaces::mnt::build(self.o, self.dir, m, &mut self.host),
            None => Ok(()),
        }
    }
    /// Sends files that are new since the last time and that others need.
    fn send(
        &self,
        channel: &OwnedFd,
        wanted: &BTreeSet<FdRef>,
        sent: &mut BTreeSet<FdRef>,
    ) -> Result<()> {
        let new: Vec<FdRef> = self
            .host
            .names()
            .filter(|f| wanted.contains(f) && !sent.contains(f))
            .collect();
        for part in new.chunks(PER_MESSAGE) {
            let mut message = vec![b'F'];
            let mut files: Vec<BorrowedFd> = Vec::with_capacity(part.len());
            for f in part {
                if let Some(fd) = self.host.fd(*f) {
                    message.extend_from_slice(&f.0.to_le_bytes());
                    files.push(fd.as_fd());
                }
            }
            fds::send_fds(channel.as_fd(), &message, &files)?;
        }
        sent.extend(new);
        Ok(())
    }
}
