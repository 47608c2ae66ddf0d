//! POSIX message queues that are open (mq_open(3)).
//!
//! **Dump.** Which queue, and how it is open; what is in the queue is dumped once ([`crate::namespaces::mqueues`]).
//!
//! **Restore.** A queue of an IPC namespace of the tree's own is made with that namespace; one of the machine's is opened by its
//! name, or made if it is gone; one that lost its name is made for those who have it. Then mq_open(3) for each open file, and
//! mq_notify(3) by the task that had asked to be told, last of all, when all of its slots are as they were: the kernel forgets the
//! request as soon as a process closes any descriptor of the queue.
//!
//! **What does not come back.** A request to be told by a process that has the queue open no more is refused (E4464).
//!
//! Guests: mqueue.
use super::act::Stagehand;
use super::common::{body, settle};
use super::{Act, DumpCx, FileKind, PlanCx, Seen, Stage, TaskStage};
use crate::error::Result;
use crate::namespaces::mqueues::{self, Queue};
use stasis_kernel::call::{Arg, Call, FdRef, Part};
use stasis_kernel::mqueue::{self, MQUEUE_MAGIC};
use stasis_kernel::ns::Ns;
use stasis_proto::pb;
use std::fmt;
use std::rc::Rc;

/// The kind.
pub struct Mqueue;

const QUEUES: &str = "mqueues.img";

impl FileKind for Mqueue {
    fn name(&self) -> &'static str {
        "mqueue"
    }
    fn about(&self) -> &'static str {
        "POSIX message queues with their messages, and who is told of new ones"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::StasisMqueue
    }
    fn claims(&self, seen: &Seen) -> bool {
        seen.fs_type == MQUEUE_MAGIC
            && seen.file_type() == libc::S_IFREG
            && seen.flags & libc::O_PATH as u32 == 0
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let queue = mqueues::of_file(cx, seen.fd, &seen.stat, seen.link, id)?;
        let entry = pb::StasisMqueueFileEntry {
            id,
            queue,
            flags: seen.flags,
            fown: seen.fown,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            stasis_mqueue: Some(Box::new(entry)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.stasis_mqueue, "stasis_mqueue")?;
        let queue = load(cx)?.iter().find(|q| q.id() == e.queue).cloned();
        let queue = queue.ok_or_else(|| {
            super::malformed(entry, &format!("{QUEUES} has no queue {}", e.queue))
        })?;
        let file = cx.file(entry.id);
        let holders = cx.holders.get(&entry.id).cloned().unwrap_or_default();
        if let Some(n) = queue.notice()
            && holders.contains(&(n.pid, n.fd as i32))
        {
            cx.task(n.pid, TaskStage::Arm, notify(n));
        }
        if let Some(space) = queue.space() {
            cx.home = cx.homes.with_id(cx.home, Ns::Ipc, space);
        }
        let key = ("mqueue", u64::from(e.queue));
        let known = cx.made.get(&key).map(|f| f[0]);
        let made = known.unwrap_or_else(|| cx.temp());
        if known.is_none() {
            cx.made.insert(key, vec![made]);
        }
        let (flags, fown) = (e.flags, e.fown);
        let open = Open {
            queue: known.is_none().then(|| queue.clone()),
            name: queue.name().to_vec(),
            unlinked: queue.is_unlinked(),
            made,
            flags,
            file,
        };
        cx.act_at(Stage::First, Act::Mqueue(Box::new(open)), "a message queue");
        settle(cx, file, flags, &fown);
        Ok(())
    }
}

/// The queues of the folder, read once.
fn load(cx: &mut PlanCx) -> Result<Rc<Vec<Queue>>> {
    if !cx.cache.contains_key(QUEUES) {
        cx.cache.insert(QUEUES, Rc::new(mqueues::load(cx.dir)?));
    }
    let known = cx.cache[QUEUES].clone().downcast();
    known.map_err(|_| crate::Error::bug("the queues were read as something else"))
}

/// struct sigevent: value, signal, sort; 64 bytes.
fn notify(n: &pb::StasisMqueueNotice) -> Call {
    let mut rest = Vec::new();
    rest.extend(n.signal.to_le_bytes());
    rest.extend(n.how.to_le_bytes());
    rest.resize(56, 0);
    let value = match &n.cookie {
        Some(c) => Part::Ptr(Arg::In(c.clone())),
        None => Part::Bytes(n.value.to_le_bytes().to_vec()),
    };
    let event = Arg::Struct(vec![value, Part::Bytes(rest)]);
    Call::new(libc::SYS_mq_notify, vec![Arg::Int(u64::from(n.fd)), event])
}

/// Opens a queue.
#[derive(Debug, Clone)]
pub struct Open {
    /// What is in it, if nobody has opened it before.
    queue: Option<Queue>,
    name: Vec<u8>,
    unlinked: bool,
    /// The queue itself, open for whoever opens it again.
    made: FdRef,
    flags: u32,
    file: FdRef,
}

impl Open {
    /// # Errors
    /// E6467: it can be neither opened nor made.
    pub fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        const KEEP: i32 = libc::O_ACCMODE | libc::O_NONBLOCK;
        if let Some(q) = &self.queue {
            let made = match self.unlinked {
                true => self.nameless(q)?,
                false => match mqueue::open(&self.name, libc::O_RDONLY, None) {
                    Ok(fd) => fd,
                    Err(e) if e.errno == nix::errno::Errno::ENOENT => {
                        let fd = q.make(&self.name)?;
                        on.host.made_queue(mqueue::Made::new(&self.name));
                        fd
                    }
                    Err(e) => return Err(e.into()),
                },
            };
            on.host.insert(self.made, made);
        }
        // not by its name: it may have none, and need not be the same by now
        let again = super::common::reopen_row(self.made, self.flags & KEEP as u32, self.file);
        on.host.play(&again)?;
        Ok(())
    }
    fn nameless(&self, q: &Queue) -> Result<std::os::fd::OwnedFd> {
        let name = format!("stasis-{}-{}", std::process::id(), self.made.0);
        let made = q.make(name.as_bytes())?;
        mqueue::unlink(name.as_bytes())?;
        Ok(made)
    }
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mqueue(/{}, flags {:#o}) -> file#{}",
            String::from_utf8_lossy(&self.name),
            self.flags,
            self.file.0
        )
    }
}
