//! The workers in the tree's namespaces, one in each home: they perform there what the plan has the engine do, and send the files
//! back.
//!
//! It is a copy of the engine (see `stasis_kernel::inner`), so it has the plan already; the engine only says what to do next.
//! Pids are as the tree sees them, paths as its mount namespace has them. What it opens crosses the channel as SCM_RIGHTS.
use super::perform::handle_name;
use super::plan::Plan;
use crate::error::{Blame, Error, Result};
use crate::kinds::Stage;
use crate::options::Options;
use stasis_kernel::call::FdRef;
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::inner::Inner;
use stasis_kernel::ns::Ns;
use stasis_proto::ImageDir;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// What the engine asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Devices of networks that lead from one of them to another.
    Devices,
    /// What is in the namespaces: names, IPC objects, devices, mounts.
    Contents,
    /// A run of acts of a stage: see [`Plan::runs`].
    Open(Stage, u32),
    /// A run of the rows by which mounts of all namespaces share, see [`stasis_mounts::Plan::sharing`].
    Share(u32),
    /// Mounts of terminals, which are open by now.
    Late,
    /// A proc file system of the pid namespace the worker is in: index in the plan of mounts.
    Proc(u32),
    /// Those file systems are mounted, and what belongs in them.
    Inner,
    /// What was made outside of the tree belongs to others from now on.
    Keep,
    /// The next process in its pid namespace has this number.
    Aim(u32),
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
    fn bytes(self) -> [u8; 6] {
        let (code, run) = match self {
            Task::Contents => (100, 0),
            Task::Keep => (101, 0),
            Task::Late => (102, 0),
            Task::Devices => (106, 0),
            Task::Aim(n) => (107, n),
            Task::Share(run) => (103, run),
            Task::Inner => (104, 0),
            Task::Proc(n) => (105, n),
            Task::Open(s, run) => {
                let code = STAGES.iter().position(|x| *x == s).unwrap_or(0) as u8;
                (code, run)
            }
        };
        let r = run.to_le_bytes();
        [b'T', code, r[0], r[1], r[2], r[3]]
    }
    fn of_bytes(b: &[u8]) -> Option<Task> {
        let [b'T', code, run @ ..] = b else {
            return None;
        };
        let run = u32::from_le_bytes(run.try_into().ok()?);
        match code {
            100 => Some(Task::Contents),
            101 => Some(Task::Keep),
            102 => Some(Task::Late),
            106 => Some(Task::Devices),
            107 => Some(Task::Aim(run)),
            103 => Some(Task::Share(run)),
            104 => Some(Task::Inner),
            105 => Some(Task::Proc(run)),
            n => STAGES.get(*n as usize).map(|s| Task::Open(*s, run)),
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

/// A worker, seen from the engine.
pub struct Worker {
    /// The process.
    pub inner: Inner,
    /// Files it has.
    known: BTreeSet<FdRef>,
}

impl Worker {
    /// A worker that was just made: it has what the engine has.
    pub fn new(inner: Inner, host: &Host) -> Self {
        let known = host.names().collect();
        Self { inner, known }
    }
    /// Has it do something; its files come into `host`. With `share`, what others have opened goes to it before. Gives its warnings.
    ///
    /// # Errors
    /// The worker's, or that it is gone.
    pub fn ask(&mut self, task: Task, host: &mut Host, share: bool) -> Result<Vec<String>> {
        let channel = &self.inner.channel;
        if share {
            send(channel, host, |_| true, &mut self.known)?;
        }
        nix::unistd::write(channel, &task.bytes()).map_err(|e| gone(e.to_string()))?;
        let mut buf = vec![0u8; LONGEST];
        loop {
            let (n, files) = fds::recv_fds(channel.as_fd(), &mut buf)?;
            match buf.get(..n) {
                Some([]) | None => return Err(gone("it closed its channel".into())),
                Some([b'F', refs @ ..]) => {
                    self.known.extend(receive(refs, files, host)?);
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
}

fn gone(e: String) -> Error {
    Error::new(
        "E6801",
        Blame::Host,
        "the worker in the tree's namespaces is gone",
    )
    .why(e)
    .advice("the kernel log may say who killed it (out of memory?)")
}

/// Files that came in one message, with their names; gives the names.
fn receive(refs: &[u8], files: Vec<OwnedFd>, host: &mut Host) -> Result<Vec<FdRef>> {
    if refs.len() != files.len() * 4 {
        return Err(Error::bug("files and names on the channel do not match"));
    }
    let names = refs.chunks_exact(4);
    let names: Vec<FdRef> = names
        .map(|r| FdRef(u32::from_le_bytes([r[0], r[1], r[2], r[3]])))
        .collect();
    for (name, file) in names.iter().zip(files) {
        host.insert(*name, file);
    }
    Ok(names)
}

/// Sends files that are not known at the other end and that are wanted there.
fn send(
    channel: &OwnedFd,
    host: &Host,
    wanted: impl Fn(FdRef) -> bool,
    known: &mut BTreeSet<FdRef>,
) -> Result<()> {
    let new = host.names().filter(|f| wanted(*f) && !known.contains(f));
    let new: Vec<FdRef> = new.collect();
    for part in new.chunks(PER_MESSAGE) {
        let mut message = vec![b'F'];
        let mut files: Vec<BorrowedFd> = Vec::with_capacity(part.len());
        for f in part {
            if let Some(fd) = host.fd(*f) {
                message.extend_from_slice(&f.0.to_le_bytes());
                files.push(fd.as_fd());
            }
        }
        fds::send_fds(channel.as_fd(), &message, &files)?;
    }
    known.extend(new);
    Ok(())
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
    /// Index of its home.
    pub home: usize,
}

/// The worker's life: one task after the other until the channel is closed.
pub fn serve(mut w: Work<'_>, channel: OwnedFd) -> i32 {
    let wanted = w.plan.wanted();
    let share = w.plan.shares();
    let mut known: BTreeSet<FdRef> = w.host.names().collect();
    let mut buf = vec![0u8; LONGEST];
    loop {
        let told = match fds::recv_fds(channel.as_fd(), &mut buf) {
            Ok((n, files)) => (n, files),
            Err(e) if e.errno == nix::errno::Errno::EINTR => continue,
            Err(_) => return 0,
        };
        let done = match (&buf[..told.0], told.1) {
            ([], _) => return 0,
            ([b'F', refs @ ..], files) => match receive(refs, files, &mut w.host) {
                Ok(names) => {
                    known.extend(names);
                    continue;
                }
                Err(e) => Err(e),
            },
            (task, _) => match Task::of_bytes(task) {
                Some(task) => w.perform(task),
                None => Err(Error::bug("an unknown task on the channel")),
            },
        };
        let end = done.and_then(|warnings| {
            let wanted = |f: FdRef| share || wanted.contains(&f);
            send(&channel, &w.host, wanted, &mut known)?;
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
            Task::Devices => self.devices().map(|()| Vec::new()),
            Task::Contents => self.contents().map(|()| Vec::new()),
            Task::Open(stage, run) => {
                let runs = self.plan.runs(stage);
                let run = runs.get(run as usize).into_iter().flatten();
                super::perform::act(&mut self.host, self.dir, run.copied())?;
                Ok(Vec::new())
            }
            Task::Share(run) => {
                if let Some((plan, _)) = self.mounts() {
                    let plan = plan.clone();
                    let run = run as usize;
                    crate::namespaces::mnt::share(self.dir, &plan, run, &mut self.host)?;
                }
                Ok(Vec::new())
            }
            Task::Late => {
                let (plan, space) = match self.mounts() {
                    Some((m, space)) => (m.clone(), space),
                    None => return Ok(Vec::new()),
                };
                crate::namespaces::mnt::finish(self.dir, &plan, space, &mut self.host)?;
                Ok(Vec::new())
            }
            Task::Proc(n) => {
                if let Some(m) = self.plan.mounts.clone() {
                    crate::namespaces::mnt::inside(self.dir, &m, n as usize, &mut self.host)?;
                }
                Ok(Vec::new())
            }
            Task::Inner => {
                if let Some((m, space)) = self.mounts() {
                    let m = m.clone();
                    crate::namespaces::mnt::inner(self.dir, &m, space, &mut self.host)?;
                }
                Ok(Vec::new())
            }
            Task::Aim(number) => {
                super::perform::inside::aim(&self.host, number).map(|()| Vec::new())
            }
            Task::Keep => {
                self.host.keep();
                Ok(Vec::new())
            }
        }
    }
    /// The mounts, if they are this worker's to make, and which of them.
    fn mounts(&self) -> Option<(&'_ Rc<stasis_mounts::Plan>, usize)> {
        let home = &self.plan.grounds.homes.all[self.home];
        let makes = match self.home {
            0 => self.plan.grounds.makes(Ns::Mnt),
            _ => home.makes.contains(&Ns::Mnt),
        };
        let plan = self.plan.mounts.as_ref();
        plan.zip(home.mounts.filter(|_| makes))
    }
    /// The namespaces that were made for this home.
    fn fresh(&self) -> Vec<(Ns, u32)> {
        match self.home {
            0 => self.plan.grounds.fresh.clone(),
            n => {
                let home = &self.plan.grounds.homes.all[n];
                home.makes.iter().map(|ns| (*ns, home.ids[ns])).collect()
            }
        }
    }
    fn devices(&mut self) -> Result<()> {
        let host = &self.host;
        let nets = |id| host.fd(handle_name(Ns::Net, id)).map(AsFd::as_fd);
        for (_, id) in self.fresh().into_iter().filter(|f| f.0 == Ns::Net) {
            crate::namespaces::net::devices(self.o, self.dir, id, &nets)?;
        }
        Ok(())
    }
    /// Fills the namespaces that were made.
    fn contents(&mut self) -> Result<()> {
        let host = &self.host;
        let nets = |id| host.fd(handle_name(Ns::Net, id)).map(AsFd::as_fd);
        for (ns, id) in self.fresh() {
            crate::namespaces::restore(self.o, self.dir, ns, id, &nets)?;
        }
        // mounts last: until then /proc is the host's
        let (plan, space) = match self.mounts() {
            Some((m, space)) => (m.clone(), space),
            None => return Ok(()),
        };
        crate::namespaces::mnt::build(self.o, self.dir, &plan, space, &mut self.host)
    }
}
