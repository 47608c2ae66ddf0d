//! POSIX message queues (mq_overview(7)): `mqueues.img`, an extension.
//!
//! **Dump.** Messages and who waits for them are read out of the kernel's memory ([`stasis_kernel::mqueue`]): taking them out and
//! putting them back would lose them with an engine that dies in between. So it needs CAP_BPF and CAP_PERFMON, and a kernel that
//! tells of its types (CONFIG_DEBUG_INFO_BTF). Of an IPC namespace of the tree's own all queues are described; of the machine's those
//! that the tree has open.
//!
//! **Restore.** A queue is made with its sizes, and the messages are sent in the order in which they would have been received. One of
//! the machine's that still has its name is left to those who use it. One without a name is made under another and unlinked.
//!
//! **What does not come back.** Times. The kernel counts the room of queues against the user who restores (RLIMIT_MSGQUEUE).
use crate::error::{Blame, Error, Result};
use crate::kinds::DumpCx;
use crate::kinds::common::opened;
use nix::sys::stat::Mode;
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_kernel::ids::{HostPid, RemoteFd};
use stasis_kernel::mqueue::{self, Notice, Reader, Sizes};
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most messages of a queue (linux/ipc_namespace.h, HARD_MSGMAX).
const MOST_MESSAGES: u64 = 65536;
/// Longest message (HARD_MSGSIZEMAX).
const LONGEST: u64 = 16 << 20;

/// The queues met so far.
#[derive(Default)]
pub struct Queues {
    /// By device and inode number.
    all: BTreeMap<(u64, u64), Met>,
    reader: Option<Reader>,
}

struct Met {
    entry: pb::StasisMqueueEntry,
    notice: Option<Notice>,
    /// Open files of it, by their ids.
    files: Vec<u32>,
}

/// Name and whether it is gone, from the link of an open queue in /proc.
fn name_of(link: &[u8]) -> (&[u8], bool) {
    let name = match link.iter().rposition(|b| *b == b'/') {
        Some(at) => &link[at + 1..],
        None => link,
    };
    match name.strip_suffix(b" (deleted)") {
        Some(n) => (n, true),
        None => (name, false),
    }
}

fn shown(name: &[u8]) -> String {
    format!("POSIX message queue /{}", String::from_utf8_lossy(name))
}

fn unreadable(name: &[u8], e: SysError) -> Error {
    Error::new("E4463", Blame::Container, format!("the contents of {}", shown(name)))
        .why(e)
        .advice("to read them takes CAP_BPF and CAP_PERFMON and a kernel with BTF: dump as root, or remove the queue (mq_unlink) and close it")
}

/// Describes a queue that a task has open, once; gives its number. `id` is that of the open file.
///
/// # Errors
/// E4463: its contents cannot be read.
pub fn of_file(
    cx: &mut DumpCx,
    fd: BorrowedFd<'_>,
    stat: &libc::stat,
    link: &[u8],
    id: u32,
) -> Result<u32> {
    let (name, unlinked) = name_of(link);
    // a mount that hides the queue's own shows no name at all
    describe(cx, fd, stat, name, unlinked || stat.st_nlink == 0)?;
    let met = cx.mqueues.all.get_mut(&(stat.st_dev, stat.st_ino));
    let met = met.ok_or_else(|| Error::bug("a queue was described and is not there"))?;
    met.files.push(id);
    Ok(met.entry.id)
}

/// Describes a queue, once.
fn describe(
    cx: &mut DumpCx,
    fd: BorrowedFd<'_>,
    stat: &libc::stat,
    name: &[u8],
    unlinked: bool,
) -> Result<()> {
    let key = (stat.st_dev, stat.st_ino);
    if cx.mqueues.all.contains_key(&key) {
        return Ok(());
    }
    let (sizes, _) = mqueue::sizes(fd)?;
    let reader = opened(&mut cx.mqueues.reader, Reader::new);
    let seen = reader
        .and_then(|r| r.read(fd))
        .map_err(|e| unreadable(name, e))?;
    let message = |(priority, bytes)| pb::StasisMqueueMessage { priority, bytes };
    let entry = pb::StasisMqueueEntry {
        id: cx.mqueues.all.len() as u32 + 1,
        ns_id: None,
        name: name.to_vec(),
        unlinked: unlinked.then_some(true),
        mode: stat.st_mode & 0o7777,
        uid: cx.ids.uid(stat.st_uid),
        gid: cx.ids.gid(stat.st_gid),
        most: sizes.messages,
        longest: sizes.bytes,
        messages: seen.messages.into_iter().map(message).collect(),
        notice: None,
    };
    let met = Met {
        entry,
        notice: seen.notice,
        files: Vec::new(),
    };
    cx.mqueues.all.insert(key, met);
    Ok(())
}

/// Describes all queues of an IPC namespace of the tree's own, given by name and open.
///
/// # Errors
/// E4463.
pub fn of_namespace(cx: &mut DumpCx, id: u32, queues: &[(Vec<u8>, OwnedFd)]) -> Result<()> {
    for (name, fd) in queues {
        let stat = fds::fstat(fd.as_fd())?;
        describe(cx, fd.as_fd(), &stat, name, false)?;
        // also those without a name are of this namespace
        let there = cx.mqueues.all.iter_mut().filter(|q| q.0.0 == stat.st_dev);
        there.for_each(|q| q.1.entry.ns_id = Some(id));
    }
    Ok(())
}

/// Writes them all, when all files and namespaces are described.
///
/// # Errors
/// E4464: somebody waits to be told of a message in a way that cannot be brought back.
pub fn finish(cx: &mut DumpCx) -> Result<()> {
    let image = Kind::Mqueues.file();
    let mut all = std::mem::take(&mut cx.mqueues.all);
    for met in all.values_mut() {
        if let Some(n) = met.notice.take() {
            met.entry.notice = notice(cx, met, n)?;
        }
    }
    match all.is_empty() {
        true => Ok(cx.dir.remove(&image)?),
        false => {
            let entries: Vec<_> = all.into_values().map(|m| m.entry).collect();
            Ok(cx.dir.write_all(&image, &entries)?)
        }
    }
}

fn notice(cx: &mut DumpCx, met: &Met, n: Notice) -> Result<Option<pb::StasisMqueueNotice>> {
    let task = HostPid(n.pid);
    let Some(pid) = cx.pids.get(&task).copied() else {
        // of the machine's, it stays with whoever it is
        return Ok(None);
    };
    let refused = |why: &str| {
        Error::new(
            "E4464",
            Blame::Container,
            format!(
                "task {pid} waits to be told of a message in {}",
                shown(&met.entry.name)
            ),
        )
        .why(why)
        .advice("let it take the request back (mq_notify with NULL) before the dump")
    };
    let mut slots = cx.slots.iter().filter(|s| s.0.0 == task);
    let fd = slots.find(|s| met.files.contains(s.1)).map(|s| s.0.1);
    let fd = fd.ok_or_else(|| refused("it has the queue open no more"))?;
    let mut entry = pb::StasisMqueueNotice {
        pid,
        fd: fd as u32,
        how: n.how as u32,
        signal: n.signal as u32,
        value: n.value,
        cookie: None,
    };
    if let Some((socket, cookie)) = n.socket {
        let slot = slot_of(cx, task, socket)?;
        entry.signal =
            slot.ok_or_else(|| refused("it has no socket of those through which it is told"))?;
        entry.cookie = Some(cookie);
    }
    Ok(Some(entry))
}

/// The slot in which a task has a socket, by the kernel's address of it.
fn slot_of(cx: &DumpCx, task: HostPid, socket: u64) -> Result<Option<u32>> {
    let pidfd = fds::pidfd_open(task, 0)?;
    let netlink = |id: &u32| {
        let entry = cx.entries.iter().find(|e| e.id == *id);
        entry.is_some_and(|e| e.nlsk.is_some())
    };
    for ((_, slot), _) in cx.slots.iter().filter(|s| s.0.0 == task && netlink(s.1)) {
        let fd = fds::pidfd_getfd(pidfd.as_fd(), RemoteFd(*slot))?;
        if let Some(reader) = &cx.mqueues.reader
            && reader.socket_of(fd.as_fd())? == socket
        {
            return Ok(Some(*slot as u32));
        }
    }
    Ok(None)
}

fn damaged(why: impl Into<String>) -> Error {
    Error::new("E5464", Blame::Image, Kind::Mqueues.file())
        .why(why.into())
        .advice("dump again")
}

/// A queue of an image, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue(pb::StasisMqueueEntry);

/// All queues of a folder.
///
/// # Errors
/// E5464: one that no kernel could have had.
pub fn load(dir: &ImageDir) -> Result<Vec<Queue>> {
    let image = Kind::Mqueues.file();
    if !dir.exists(&image)? {
        return Ok(Vec::new());
    }
    let all: Vec<pb::StasisMqueueEntry> = dir.read_all(&image)?;
    all.into_iter().map(Queue::new).collect()
}

impl Queue {
    fn new(e: pb::StasisMqueueEntry) -> Result<Self> {
        if e.name.is_empty() || e.name.len() > 255 || e.name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(damaged("the name of a queue is no file name"));
        }
        let sizes = (1..=MOST_MESSAGES).contains(&e.most) && (1..=LONGEST).contains(&e.longest);
        let fits = |m: &pb::StasisMqueueMessage| m.bytes.len() as u64 <= e.longest;
        if !sizes || e.messages.len() as u64 > e.most || !e.messages.iter().all(fits) {
            return Err(damaged(format!(
                "{} is larger than any kernel allows",
                shown(&e.name)
            )));
        }
        Ok(Queue(e))
    }
    /// Its number in the image.
    pub fn id(&self) -> u32 {
        self.0.id
    }
    /// Its name, without slash.
    pub fn name(&self) -> &[u8] {
        &self.0.name
    }
    /// Has it lost its name?
    pub fn is_unlinked(&self) -> bool {
        self.0.unlinked == Some(true)
    }
    /// The IPC namespace of the tree's own that it is in; `None`: the machine's.
    pub fn space(&self) -> Option<u32> {
        self.0.ns_id
    }
    /// Who is told when a message comes.
    pub fn notice(&self) -> Option<&pb::StasisMqueueNotice> {
        self.0.notice.as_ref()
    }
    /// Makes it in the caller's IPC namespace under a name that must be free, with all that is in it.
    ///
    /// # Errors
    /// E6467: the kernel refuses.
    pub fn make(&self, name: &[u8]) -> Result<OwnedFd> {
        let e = &self.0;
        let failed = |why: SysError| {
            Error::new("E6467", Blame::Host, format!("cannot make {}", shown(&e.name)))
                .why(why)
                .advice("a name that is taken, or a limit that is too low (fs.mqueue, RLIMIT_MSGQUEUE): restore with the rights the container had")
        };
        let sizes = Sizes {
            messages: e.most,
            bytes: e.longest,
        };
        let queue =
            mqueue::open(name, libc::O_WRONLY | libc::O_NONBLOCK, Some(sizes)).map_err(failed)?;
        for m in &e.messages {
            mqueue::send(queue.as_fd(), m.priority, &m.bytes).map_err(failed)?;
        }
        // owner first: it takes bits from the mode
        let sys = |call| move |errno| SysError::new(call, errno, shown(&e.name));
        nix::unistd::fchown(&queue, Some(e.uid.into()), Some(e.gid.into()))
            .map_err(|errno| failed(sys("fchown")(errno)))?;
        nix::sys::stat::fchmod(&queue, Mode::from_bits_truncate(e.mode))
            .map_err(|errno| failed(sys("fchmod")(errno)))?;
        Ok(queue)
    }
}

/// Makes the queues of a fresh IPC namespace that have names; the caller is in it.
///
/// # Errors
/// E5464, E6467.
pub fn restore(dir: &ImageDir, id: u32) -> Result<()> {
    let here = |q: &&Queue| q.space() == Some(id) && !q.is_unlinked();
    for q in load(dir)?.iter().filter(here) {
        q.make(q.name())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> pb::StasisMqueueEntry {
        pb::StasisMqueueEntry {
            id: 1,
            name: b"q".to_vec(),
            mode: 0o600,
            most: 2,
            longest: 4,
            messages: vec![pb::StasisMqueueMessage {
                priority: 1,
                bytes: vec![0; 4],
            }],
            ..Default::default()
        }
    }

    #[test]
    fn hostile_queues_are_refused() {
        assert!(Queue::new(entry()).is_ok());
        let spoils: [fn(&mut pb::StasisMqueueEntry); 7] = [
            |e| e.name = b"../q".to_vec(),
            |e| e.name.clear(),
            |e| e.name = vec![b'a'; 256],
            |e| e.name = b"a\0b".to_vec(),
            |e| e.longest = 3,
            |e| e.most = 0,
            |e| e.most = u64::MAX,
        ];
        for spoil in spoils {
            let mut e = entry();
            spoil(&mut e);
            assert_eq!(
                Queue::new(e.clone()).map(drop).unwrap_err().code,
                "E5464",
                "{e:?}"
            );
        }
    }

    #[test]
    fn names_are_found_in_links() {
        assert_eq!(name_of(b"/q"), (&b"q"[..], false));
        assert_eq!(name_of(b"/dev/mqueue/q"), (&b"q"[..], false));
        assert_eq!(name_of(b"/q (deleted)"), (&b"q"[..], true));
    }
}
