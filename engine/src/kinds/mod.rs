//! Kinds of open files: one file each, one line in [`FILE_KINDS`].
//!
//! A kind claims what it knows at dump ([`FileKind::claims`]), describes it ([`FileKind::dump`]), and plans how it comes
//! back ([`FileKind::plan`]). Kinds look and plan; they never act: at dump nothing may be read from, written to or moved in
//! a file (the duplicate the engine holds shares position, flags and queues with the target); at restore only rows of calls
//! are written down.
//!
//! Long because the table stands beside what all kinds are given to dump and to plan.
pub mod act;
pub mod bpfmap;
pub mod common;
mod detached;
pub mod epoll;
pub mod eventfd;
pub mod fanotify;
pub mod fifo;
pub mod fown;
pub mod ghost;
pub mod inet;
pub mod inet_address;
mod inet_diag;
pub mod inet_groups;
pub mod inet_options;
pub mod inherit;
pub mod inotify;
pub mod locks;
pub mod memfd;
pub mod mqueue;
mod nameless;
pub mod netlink;
pub mod nsfile;
pub mod outside;
pub mod packet;
mod paths;
pub mod pidfd;
pub mod pipe;
pub mod regular;
pub mod shmem;
pub mod signalfd;
pub mod sockopts;
pub mod sysv;
pub mod tcp;
pub mod tcp_acts;
pub mod tcp_packets;
pub mod tcp_queue;
#[cfg(test)]
pub mod testing;
pub mod timerfd;
pub mod tty;
pub mod tty_acts;
pub mod tty_plan;
pub mod tun;
mod twins;
pub mod udp_cork;
pub mod udp_queue;
pub mod unixsk;
mod unixsk_acts;
pub(crate) mod unixsk_diag;
mod unixsk_hidden;
mod unixsk_plan;
mod unixsk_waiting;
pub mod unsupported;
pub mod watched;

pub use act::{Act, Stagehand, Undo};

use crate::error::{Blame, Error, Result};
use crate::options::Options;
use stasis_kernel::call::{Call, FdRef};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::FdInfo;
use stasis_proto::prost::{Message, Name};
use stasis_proto::{ImageDir, ImageWriter, pb};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// [`Seen::slot`] of an open file that no task has: it travels in a socket's queue.
pub const IN_FLIGHT: i32 = -1;

/// One open file as the dump sees it from outside.
pub struct Seen<'a> {
    /// A task that has it open (the first one met).
    pub pid: HostPid,
    /// Its slot there.
    pub slot: i32,
    /// Our duplicate of the same open file (pidfd_getfd): shares position, status flags, queues and locks.
    pub fd: BorrowedFd<'a>,
    /// fstat of it.
    pub stat: libc::stat,
    /// Filesystem magic (fstatfs `f_type`), 0 if it has none.
    pub fs_type: i64,
    /// Target of /proc/PID/fd/SLOT.
    pub link: &'a [u8],
    /// /proc/PID/fdinfo/SLOT.
    pub info: &'a FdInfo,
    /// Open flags as fcntl(F_GETFL) has them (with O_LARGEFILE, without O_CLOEXEC).
    pub flags: u32,
    /// Owner and signal for SIGIO.
    pub fown: pb::FownEntry,
    /// What decides the options of a socket ([`stasis_kernel::census::Entry::options`]), if that is known.
    pub options: Option<&'a [u8]>,
}

impl Seen<'_> {
    /// "fd 7 of task 42 (anon_inode:[eventfd])".
    pub fn place(&self) -> String {
        if self.slot == IN_FLIGHT {
            return format!(
                "a file in the queue of a socket of task {} ({})",
                self.pid.0,
                String::from_utf8_lossy(self.link)
            );
        }
        format!(
            "fd {} of task {} ({})",
            self.slot,
            self.pid.0,
            String::from_utf8_lossy(self.link)
        )
    }
    /// File type bits of the mode (`S_IFMT`).
    pub fn file_type(&self) -> u32 {
        self.stat.st_mode & libc::S_IFMT
    }
    /// An error that names this file as something that cannot be dumped.
    pub fn unsupported(&self, why: impl std::fmt::Display, advice: impl Into<String>) -> Error {
        self.refuse("E4100", why, advice)
    }
    /// The same with a code of its own.
    pub fn refuse(
        &self,
        code: &'static str,
        why: impl std::fmt::Display,
        advice: impl Into<String>,
    ) -> Error {
        let what = format!("cannot dump {}", self.place());
        Error::new(code, Blame::Container, what)
            .why(why)
            .advice(advice)
    }
}

/// What kinds use while dumping: options, and images they write their own records to.
pub struct DumpCx<'a> {
    /// The caller's options.
    pub options: &'a Options,
    /// The image folder.
    pub dir: &'a ImageDir,
    /// pid (host view) of every task of the tree, with the pid it has in the namespace of the first one.
    pub pids: &'a BTreeMap<HostPid, u32>,
    /// Which of the numbers that /proc tells is that one.
    pub level: crate::dump::Level,
    /// Writers of images that many kinds or files share (pipes-data.img, ...), opened at the first record.
    pub writers: BTreeMap<String, ImageWriter>,
    /// (task, slot) to open file id, of every slot met so far; complete when [`FileKind::late`] entries are dumped.
    pub slots: BTreeMap<(HostPid, i32), u32>,
    /// Objects already met, by (kind, key): a pipe's contents, a pty's settings, a deleted file's ghost; with an id of the kind's choice.
    pub done: BTreeMap<(&'static str, u64), u32>,
    /// Namespaces the tree lives in, by inode number: sort, and number in the image.
    pub namespaces: BTreeMap<u64, (stasis_kernel::ns::Ns, u32)>,
    /// The last open file id given out; see [`DumpCx::new_id`].
    pub last_id: u32,
    /// Entries for files.img that no slot has (mapped files, executables, ghosts' stand-ins).
    pub entries: Vec<pb::FileEntry>,
    /// What will not come back as it was, one sentence each.
    pub warnings: Vec<String>,
    /// Duplicates (with [`Seen::place`]) that kinds keep for [`finish`], by (kind, key).
    pub keep: BTreeMap<(&'static str, u64), (std::os::fd::OwnedFd, String)>,
    /// Inodes already met, by (kind, device, inode number), with an id of the kind's choice.
    pub inodes: BTreeMap<(&'static str, u64, u64), u32>,
    /// Roots from which the paths of a task's files are looked up; under pid 0 the engine's own.
    pub roots: BTreeMap<HostPid, std::rc::Rc<std::os::fd::OwnedFd>>,
    /// Entries of files that no slot has, by (device, inode number, open flags, mount, path).
    pub described: BTreeMap<(u64, u64, u32, u32, Vec<u8>), u32>,
    /// Users and groups as the tree's user namespace has them: what goes into images.
    pub ids: crate::namespaces::user::Ids,
    /// Mount namespaces of the tree's own, by inode number.
    pub mount_namespaces: BTreeMap<u64, crate::namespaces::mnt::MntNs>,
    /// What the dump made in the target's file systems (names of link remaps). The driver plays it backwards when the dump
    /// fails, and also when it succeeds but the tree runs on: only a restore of a dead tree needs these names.
    pub undo: Vec<Undo>,
    /// Options of sockets that were asked already.
    pub(crate) twins: twins::Twins,
    /// Unix sockets, as far as they are known.
    pub unix: unixsk::World,
    /// The last pages image id given out; see [`DumpCx::new_pages_id`].
    pub last_pages_id: u32,
    /// The network locks, until they are closed; from then on they are in [`DumpCx::undo`].
    pub locks: crate::network::Locks,
    /// The numbers of the closed network locks: upon the tree's namespace, and upon the one that its connections cross.
    pub locked: [Option<String>; 2],
    /// POSIX message queues met so far.
    pub mqueues: crate::namespaces::mqueues::Queues,
    /// What UDP sockets hold back is read through this.
    pub corks: Option<stasis_kernel::cork::Reader>,
    /// Shared memory saved so far.
    pub shared: crate::dump::shared::Saved,
    /// What plugins saved.
    pub plugged: Vec<pb::StasisPluginEntry>,
}

impl<'a> DumpCx<'a> {
    /// The first process of the tree.
    pub fn root(&self) -> Option<HostPid> {
        let named = HostPid(self.options.pid);
        let known = self.pids.contains_key(&named).then_some(named);
        known.or_else(|| self.pids.keys().next().copied())
    }
    /// A dump of these tasks into this folder that has met nothing yet.
    pub fn new(options: &'a Options, dir: &'a ImageDir, pids: &'a BTreeMap<HostPid, u32>) -> Self {
        Self {
            options,
            dir,
            pids,
            level: Default::default(),
            writers: BTreeMap::new(),
            slots: BTreeMap::new(),
            done: BTreeMap::new(),
            last_id: 0,
            entries: Vec::new(),
            inodes: BTreeMap::new(),
            described: BTreeMap::new(),
            roots: BTreeMap::new(),
            ids: Default::default(),
            mount_namespaces: BTreeMap::new(),
            undo: Vec::new(),
            twins: Default::default(),
            unix: unixsk::World::default(),
            last_pages_id: 0,
            locks: Default::default(),
            locked: Default::default(),
            mqueues: Default::default(),
            corks: None,
            shared: Default::default(),
            plugged: Vec::new(),
            namespaces: BTreeMap::new(),
            warnings: Vec::new(),
            keep: BTreeMap::new(),
        }
    }
    /// Does the tree have a namespace of this sort of its own, which is dumped whole?
    pub fn has_own(&self, ns: stasis_kernel::ns::Ns) -> bool {
        let own = |(n, id): &(stasis_kernel::ns::Ns, u32)| *n == ns && crate::dump::is_own(*id);
        self.namespaces.values().any(own)
    }
    /// Is any task of the tree in the engine's namespace of this sort?
    pub fn has_engines(&self, ns: stasis_kernel::ns::Ns) -> bool {
        let engines =
            |(n, id): &(stasis_kernel::ns::Ns, u32)| *n == ns && !crate::dump::is_own(*id);
        self.namespaces.values().any(engines)
    }
    /// A fresh number for a `pages-N.img`, from 1 on.
    pub fn new_pages_id(&mut self) -> u32 {
        self.last_pages_id += 1;
        self.last_pages_id
    }
    /// Ends every image in [`DumpCx::writers`]; without it their last bytes may be lost.
    pub fn finish_writers(&mut self) -> Result<()> {
        for (_, w) in std::mem::take(&mut self.writers) {
            w.finish()?;
        }
        Ok(())
    }
    /// A fresh open file id.
    pub fn new_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }
    /// Appends a record, and raw bytes behind it, to an image.
    pub fn put<M: Message + Name>(
        &mut self,
        image: &str,
        record: &M,
        payload: &[u8],
    ) -> Result<()> {
        let w = self.writer(image)?;
        w.write(record)?;
        if !payload.is_empty() {
            w.raw(payload)?;
        }
        Ok(())
    }
    /// The open writer of an image; created at the first use.
    pub fn writer(&mut self, image: &str) -> Result<&mut ImageWriter> {
        if !self.writers.contains_key(image) {
            let w = self.dir.writer(image)?;
            self.writers.insert(image.to_string(), w);
        }
        Ok(self.writers.get_mut(image).expect("just inserted"))
    }
    /// The first time an object is met: true once per (kind, key).
    pub fn first(&mut self, kind: &'static str, key: u64) -> bool {
        self.done.insert((kind, key), 0).is_none()
    }
    /// Notes something that will not come back as it was.
    pub fn warn(&mut self, what: impl Into<String>) {
        self.warnings.push(what.into());
    }
}

/// When a planned file is opened: files that others refer to come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Needs no other file.
    First,
    /// Refers to other open files (epoll targets, locks, watches).
    Second,
    /// Refers to tasks, so it is opened when stubs exist with their pids (pidfds, files of /proc/PID).
    Tasks,
    /// All open files exist: queues of sockets are filled, with files in flight, and what would hinder that is set.
    Queues,
    /// Would hinder the making of mappings, so it is done when all of them exist and no task runs yet (seals of memfds).
    Mapped,
    /// Just before the commit point, when the tree is whole and packets flow again: connections wake up. Nothing that can be
    /// found out earlier may fail here.
    Commit,
    /// After the commit point, when nothing can fail any more: names that only the restore needed are removed. A failure
    /// here is a warning.
    Last,
}

/// Something the engine does.
#[derive(Debug, Clone)]
pub struct HostAct {
    /// When.
    pub stage: Stage,
    /// What.
    pub act: Act,
    /// Why, in a few words.
    pub why: Cow<'static, str>,
    /// In which set of namespaces: see [`crate::restore::Homes`].
    pub home: usize,
}

/// When rows that a task itself must play are played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskStage {
    /// After all descriptors are in their slots (record locks, controlling terminal).
    Placed,
    /// Last of all, just before credentials are dropped (arming what would fire).
    Arm,
}

/// What kinds use while planning a restore.
pub struct PlanCx<'a> {
    /// The caller's options.
    pub options: &'a Options,
    /// The image folder, to read further records or payloads.
    pub dir: &'a ImageDir,
    /// All file entries by id.
    pub files: &'a BTreeMap<u32, pb::FileEntry>,
    /// For every file id the (pid, slot) pairs that hold it, pids as the first task's pid namespace has them.
    pub holders: &'a BTreeMap<u32, Vec<(u32, i32)>>,
    /// Host acts planned so far. Played in order of the stages, inside a stage in the order of this list.
    pub host: Vec<HostAct>,
    /// Rows for tasks: (pid, stage, row).
    pub task: Vec<(u32, TaskStage, Call)>,
    /// Objects made already, by (kind, key): both ends of a pipe, a pty, a shared inode.
    pub made: BTreeMap<(&'static str, u64), Vec<FdRef>>,
    /// Whole images of records that kinds look up again and again, by (image name): read once, see [`PlanCx::image`].
    pub cache: BTreeMap<&'static str, std::rc::Rc<dyn std::any::Any>>,
    /// Files that a task gets only for a while, beside those of its holders: (pid, slot, file). The driver ships them like
    /// the others, into these slots, which are free in that task; rows of [`TaskStage::Placed`] close them again.
    pub lent: Vec<(u32, i32, FdRef)>,
    /// Descriptors of the engine's that stand for files of the tree: their names in the plan, and their numbers.
    pub given: Vec<(FdRef, std::os::fd::RawFd)>,
    /// Masters of terminals that nobody in the tree holds: for the runtime.
    pub orphans: Vec<FdRef>,
    /// How the tree's mount namespace is built, if it has one of its own.
    pub mounts: Option<std::rc::Rc<stasis_mounts::Plan>>,
    /// What will not come back as it was, one sentence each.
    pub warnings: Vec<String>,
    /// The sets of namespaces in which tasks live.
    pub homes: crate::restore::Homes,
    /// Pid namespaces, and the numbers of tasks in them.
    pub spaces: crate::restore::spaces::Spaces,
    /// Shared memory whose contents come when the tree runs.
    pub later: BTreeMap<crate::restore::later::Id, std::sync::Arc<crate::restore::later::Later>>,
    /// The one in which acts planned next are performed.
    pub home: usize,
    stage: Stage,
    temps: u32,
}

impl<'a> PlanCx<'a> {
    /// An empty plan over these images.
    pub fn new(
        options: &'a Options,
        dir: &'a ImageDir,
        files: &'a BTreeMap<u32, pb::FileEntry>,
        holders: &'a BTreeMap<u32, Vec<(u32, i32)>>,
    ) -> Self {
        Self {
            options,
            dir,
            files,
            holders,
            // most files are opened and compared
            host: Vec::with_capacity(2 * files.len()),
            task: Vec::new(),
            made: BTreeMap::new(),
            cache: BTreeMap::new(),
            lent: Vec::new(),
            given: Vec::new(),
            orphans: Vec::new(),
            mounts: None,
            warnings: Vec::new(),
            later: BTreeMap::new(),
            homes: Default::default(),
            spaces: Default::default(),
            home: 0,
            stage: Stage::First,
            temps: 0,
        }
    }
    /// The driver says which stage the kinds called next belong to.
    pub fn enter(&mut self, stage: Stage) {
        self.stage = stage;
    }
    /// Adds a host row at the present stage.
    pub fn host(&mut self, call: Call, why: impl Into<Cow<'static, str>>) {
        self.act_at(self.stage, Act::Call(call), why);
    }
    /// Adds a host row at another stage.
    pub fn host_at(&mut self, stage: Stage, call: Call, why: impl Into<Cow<'static, str>>) {
        self.act_at(stage, Act::Call(call), why);
    }
    /// Adds a host act at the given stage.
    pub fn act_at(&mut self, stage: Stage, act: Act, why: impl Into<Cow<'static, str>>) {
        let (home, why) = (self.home, why.into());
        self.host.push(HostAct {
            stage,
            act,
            why,
            home,
        });
    }
    /// What is planned next is about the mount of this number: it is done in the namespace where that is. Gives the home
    /// before, to come back to.
    pub fn go_to_mount(&mut self, mnt_id: Option<u32>) -> usize {
        let before = self.home;
        let Some(plan) = &self.mounts else {
            return before;
        };
        self.home = match mnt_id.and_then(|id| plan.space_of(id)) {
            Some(space) => self.homes.with_mounts(before, space),
            // of the machine's, if the first process lives there
            None if self.homes.mounts_of_first().is_none() => 0,
            None => before,
        };
        before
    }
    /// The present stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }
    /// Adds a row for a task.
    pub fn task(&mut self, pid: u32, stage: TaskStage, call: Call) {
        self.task.push((pid, stage, call));
    }
    /// The name under which the open file with this id is known to host rows and to tasks.
    pub fn file(&self, id: u32) -> FdRef {
        FdRef(id)
    }
    /// A name for a file the engine needs only while opening others; closed before the tree runs.
    pub fn temp(&mut self) -> FdRef {
        self.temps += 1;
        FdRef(0x8000_0000 | self.temps)
    }
    /// Lends a file to a task, in slot `want` or else in the lowest free one from 3 on; gives the slot. `None` when the task
    /// holds something else in slot `want`. The caller plans the task's close.
    pub fn lend(&mut self, pid: u32, file: FdRef, want: Option<i32>) -> Option<i32> {
        let held = |slot: i32, lent: &[(u32, i32, FdRef)]| {
            self.holders.values().flatten().any(|h| *h == (pid, slot))
                || lent.iter().any(|l| (l.0, l.1) == (pid, slot))
        };
        let slot = match want {
            Some(s) if held(s, &self.lent) => return None,
            Some(s) => s,
            None => (3..).find(|s| !held(*s, &self.lent))?,
        };
        self.lent.push((pid, slot, file));
        Some(slot)
    }
    /// All records of a plain image (no payloads), read once; empty if the folder does not have it.
    pub fn image<M: Message + Name + Default + 'static>(
        &mut self,
        name: &'static str,
    ) -> Result<std::rc::Rc<Vec<M>>> {
        if !self.cache.contains_key(name) {
            let all: Vec<M> = if self.dir.exists(name)? {
                self.dir.read_all(name)?
            } else {
                Vec::new()
            };
            self.cache.insert(name, std::rc::Rc::new(all));
        }
        self.cache[name]
            .clone()
            .downcast()
            .map_err(|_| Error::bug(format!("{name} was read as records of another type")))
    }
}

/// A kind of open file. No method has a default that quietly succeeds.
pub trait FileKind: Sync {
    /// The name in errors, in `stasis kinds` and in the book.
    fn name(&self) -> &'static str;
    /// One sentence: what comes back and what does not.
    fn about(&self) -> &'static str;
    /// The type number in fdinfo and files images.
    fn fd_type(&self) -> pb::FdTypes;
    /// Is this file mine? Cheap: looks at stat, fs type and link only.
    fn claims(&self, seen: &Seen) -> bool;
    /// Is it described only after all files of all tasks have an id, because its entry refers to others?
    fn late(&self) -> bool;
    /// Describes the open file under this id.
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry>;
    /// When it is opened at restore.
    fn stage(&self) -> Stage;
    /// Plans how the file with this entry comes back: host rows that bind `cx.file(entry.id)`.
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()>;
}

/// All kinds of open files; the first that claims a file has it.
#[rustfmt::skip] // one line per kind
pub static FILE_KINDS: &[&dyn FileKind] = &[
    &pipe::Pipe,
    &fifo::Fifo,
    &eventfd::EventFd,
    &signalfd::SignalFd,
    &timerfd::TimerFd,
    &epoll::Epoll,
    &inotify::Inotify,
    &fanotify::Fanotify,
    &pidfd::PidFd,
    &nsfile::NsFile,
    &unixsk::UnixSk,
    &netlink::Netlink,
    &packet::Packet,
    &tty::Tty,
    &tun::Tun,
    &memfd::Memfd,
    &mqueue::Mqueue,
    &bpfmap::BpfMap,
    &inet::Inet,
    &regular::Regular,
];

/// What kinds can judge only when all open files of all tasks were described; the driver calls it once, at the end.
pub fn finish(cx: &mut DumpCx) -> Result<()> {
    pipe::finish(cx)?;
    tcp::finish(cx)?;
    unixsk::finish(cx)?;
    // last: it takes data out of the terminals
    tty::finish(cx)
}

/// The kind for an image's type number.
pub fn by_type(t: i32) -> Option<&'static dyn FileKind> {
    FILE_KINDS.iter().copied().find(|k| k.fd_type() as i32 == t)
}

/// An image error: an entry that lacks what its type must have.
pub fn malformed(entry: &pb::FileEntry, why: &str) -> Error {
    Error::new(
        "E5100",
        Blame::Image,
        format!("file entry {} of files.img", entry.id),
    )
    .why(why)
    .advice("dump again: this image does not describe the file")
}
