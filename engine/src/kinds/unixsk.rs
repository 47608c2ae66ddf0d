//! Unix sockets: stream, datagram and seqpacket.
//!
//! **What it is.** A socket has a type, perhaps a name (a path, an abstract name), perhaps a peer, options, and a queue of
//! what was sent to it. Messages carry bytes, open files (SCM_RIGHTS), credentials of the sender. A listening socket's
//! queue holds connections that are not accepted yet: their other ends are sockets that no descriptor leads to.
//!
//! **Dump.** Peers, shutdowns and waiting connections are told by sock_diag(7) in the socket's network namespace, the rest
//! by the duplicate. Queues are read with MSG_PEEK; where that needs a peek offset (SO_PEEK_OFF), which belongs to the
//! target's socket, a guardian process sets it back even if the engine is killed. Files in flight are identified with those
//! in slots, or described as further open files, whose queues are looked into as well.
//!
//! **Restore.** Unnamed pairs by socketpair(2), all others by bind(2), listen(2), connect(2) and accept(2), so names are as
//! before on both ends. A listener that is gone is made for the moment. Names that were deleted are bound in a private file
//! system that nobody sees. Who is told by SO_PEERCRED is decided by who calls: a short-lived process that has the pid, user
//! and group of old makes the calls, before the tree is born. Queues are filled when all files exist.
//!
//! **A peer outside the tree.** A refusal, unless the caller allows it (`--external unix[INODE]`, `--ext-unix-sk`), or the
//! peer is a known service that takes a connection at any time (/dev/log, journald, sd_notify, the system bus). At restore the
//! caller may hand over a socket (`--inherit-fd fd[N]:socket:[INODE]`); else it is connected again by the peer's
//! name; else it is closed for the program to see.
//!
//! **What no call shows** is read out of the kernel's memory (`unixsk_hidden.rs`): what was sent on a connection that is not accepted
//! yet, and where an out-of-band byte stands.
//!
//! **What does not come back.** Files that travel on a connection that is not accepted yet cannot be had: such a dump is refused
//! (`--skip-in-flight` leaves the connection behind). SO_PEERPIDFD of a socket tells of a process that ended. A datagram
//! of no bytes that an earlier dump has looked at is skipped by the next one if nothing but such stand before it. Where an
//! out-of-band byte stood that was read (SIOCATMARK). Credentials of messages whose sender
//! has ended, in a tree with a pid namespace of its own. Inode numbers; borders between writes to a stream: files in
//! flight there come with the first byte that is unread before them.
//!
//! KERNEL: setting SO_PASSCRED makes the next send bind the socket to an abstract name, so options come after queues.
//!
//! Long because a queue has many shapes to be looked at.
//!
//! Guests: unix_pair, unix_stream_listen, unix_dgram, unix_seqpacket, unix_queue, unix_scm_rights, unix_scm_cycle, unix_creds,
//! unix_abstract, unix_path, unix_deleted, unix_halfclosed, unix_family, unix_early, unix_oob, socket_inside.
use super::unixsk_diag::{Table, ask_size, cookie, table_of};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, sockopts, twins, unixsk_hidden, unixsk_plan};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::ids::HostPid;
use stasis_kernel::inner::Way;
use stasis_kernel::ns::Ns;
use stasis_kernel::unix::{self, Message, Ucred};
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// The kind.
pub struct UnixSk;

/// TCP states, which unix sockets use too (net/tcp_states.h).
pub(super) const ESTABLISHED: u32 = 1;
pub(super) const CLOSED: u32 = 7;
pub(super) const LISTEN: u32 = 10;
/// `uflags`: the entry stands for a socket outside of the tree.
pub(super) const EXTERN: u32 = 1;
/// `uflags`: its peer was the service that made the dump; restored, it finds that service's answer.
pub(super) const SERVICE: u32 = 2;

const IMAGE: &str = "sk-queues.img";

/// What is known of sockets while a dump goes on.
#[derive(Default)]
pub struct World {
    /// By cookie of the network namespace.
    tables: BTreeMap<u64, Table>,
    /// By inode number of ours: the peer's name, and the place of ours.
    peers: BTreeMap<u32, (Vec<u8>, String)>,
    /// By inode number: bytes before the out-of-band one that waits, and that one.
    urgent: BTreeMap<u64, (usize, u8)>,
    /// What no call shows is read through this.
    pub(super) reader: Option<stasis_kernel::unix_inside::Reader>,
}

impl World {
    /// Of a socket with this inode number: bytes before the out-of-band one in its queue, and that one.
    pub fn urgent(&self, ino: u64) -> Option<(usize, u8)> {
        self.urgent.get(&ino).copied()
    }
}

/// Is this a unix socket?
pub fn is(seen: &Seen) -> bool {
    seen.file_type() == libc::S_IFSOCK
        && seen.flags & libc::O_PATH as u32 == 0
        && matches!(
            sockopts::get_int(seen.fd, libc::SOL_SOCKET, libc::SO_DOMAIN),
            Ok(Some(libc::AF_UNIX))
        )
}

/// poll(2) without waiting: which of these POLL bits, and of POLLERR and POLLHUP, are set.
pub(super) fn readiness(fd: BorrowedFd<'_>, what: i16) -> Result<i16> {
    // struct pollfd
    let mut p = fd.as_raw_fd().to_le_bytes().to_vec();
    p.extend(what.to_le_bytes());
    p.extend([0, 0]);
    let row = Call::new(
        libc::SYS_poll,
        vec![Arg::InOut(p), Arg::Int(1), Arg::Int(0)],
    );
    let a = Host::default().play(&row)?;
    let b = a.out(0);
    Ok(i16::from_le_bytes([b[6], b[7]]))
}

/// A name for people: `@` stands for the zero of abstract ones.
pub(super) fn shown(name: &[u8]) -> String {
    let end = name.strip_suffix(b"\0").unwrap_or(name);
    String::from_utf8_lossy(end).replace('\0', "@")
}

/// Where the inode behind a name is.
#[derive(Default)]
struct Place {
    perms: Option<pb::FilePermsEntry>,
    name_dir: Option<String>,
    root: Option<String>,
    deleted: bool,
}

fn place(seen: &Seen, name: &[u8], cx: &DumpCx) -> Result<Place> {
    let mut p = Place::default();
    if name.first().is_none_or(|c| *c == 0) {
        return Ok(p);
    }
    let Some(node) = unix::inode(seen.fd)? else {
        p.deleted = true;
        return Ok(p);
    };
    let st = fds::fstat(node.as_fd())?;
    p.perms = Some(pb::FilePermsEntry {
        mode: st.st_mode,
        uid: cx.ids.uid(st.st_uid),
        gid: cx.ids.gid(st.st_gid),
    });
    let link = std::fs::read_link(format!("/proc/self/fd/{}", node.as_raw_fd()))
        .map_err(|e| super::act::sys("readlink", &e, shown(name)))?;
    let link = link.as_os_str().as_bytes();
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    let path = match link.strip_suffix(b" (deleted)") {
        Some(path) => {
            p.deleted = true;
            path
        }
        None => link,
    };
    // what stands before the name: the working directory or the root of whoever bound it
    let Some(before) = path.strip_suffix(name) else {
        // it was moved: nobody finds it by its name any more
        p.deleted = true;
        return Ok(p);
    };
    let text = |b: &[u8]| {
        String::from_utf8(b.to_vec()).map_err(|_| {
            seen.refuse(
                "E4503",
                "the folder of its name is not UTF-8, which the image format needs",
                "close it before the dump",
            )
        })
    };
    if name[0] != b'/' {
        let dir = before.strip_suffix(b"/").unwrap_or(before);
        p.name_dir = Some(text(if dir.is_empty() { b"/" } else { dir })?);
    } else if !before.is_empty() {
        p.root = Some(text(before)?);
    }
    Ok(p)
}

/// Sockets whose peer is known only in the tree's pid namespace, in [`DumpCx::keep`].
const UNCLEAR: &str = "unix peer";

/// Fills in the pids that only the tree's pid namespace knows.
fn clear_up(cx: &mut DumpCx) -> Result<()> {
    let mut sockets = Vec::new();
    cx.keep.retain(|key, (fd, _)| {
        let mine = key.0 == UNCLEAR;
        if mine && let Ok(fd) = fds::dup(&*fd) {
            sockets.push((key.1, fd));
        }
        !mine
    });
    let Some(root) = cx.root().filter(|_| !sockets.is_empty()) else {
        return Ok(());
    };
    let mut answer = vec![0u8; sockets.len() * 4];
    let way = Way::to(root, &[Ns::Pid]);
    let mut there = stasis_kernel::inner::start(&way, |channel| {
        for ((_, fd), to) in sockets.iter().zip(answer.chunks_exact_mut(4)) {
            let c = sockopts::get(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, 12);
            if let Ok(Some(c)) = c {
                to.copy_from_slice(&c[..4]);
            }
        }
        i32::from(nix::unistd::write(&channel, &answer).is_err())
    })?;
    let mut told = vec![0u8; sockets.len() * 4];
    let n = nix::unistd::read(&there.channel, &mut told)
        .map_err(|e| stasis_kernel::error::SysError::new("read", e, "peers of unix sockets"))?;
    there.end();
    for ((ino, _), pid) in sockets.iter().zip(told[..n].chunks_exact(4)) {
        let mut all = cx.entries.iter_mut().filter_map(|e| e.usk.as_deref_mut());
        let ext = all
            .find(|u| u64::from(u.ino) == *ino)
            .and_then(|u| u.stasis.as_mut());
        if let Some(c) = ext.and_then(|e| e.peer_cred.as_mut()) {
            c.pid = sockopts::word(pid, 0);
        }
    }
    Ok(())
}

/// SO_PEERCRED as the tree sees it; nothing for sockets that have none.
fn peer_cred(seen: &Seen, cx: &mut DumpCx) -> Result<Option<pb::StasisUcred>> {
    let v = sockopts::get(seen.fd, libc::SOL_SOCKET, libc::SO_PEERCRED, 12)?.unwrap_or_default();
    let Some(c) = Ucred::parse(&v).filter(|c| (c.pid, c.uid) != (0, u32::MAX)) else {
        return Ok(None);
    };
    let told = inside(c, cx);
    if told.pid == 0 {
        // a process that has ended: only somebody in the tree's pid namespace can tell which number it had there
        let key = (UNCLEAR, seen.stat.st_ino);
        cx.keep.insert(key, (fds::dup(seen.fd)?, seen.place()));
    }
    Ok(Some(told))
}

/// Credentials as the tree sees them; pid 0 if the tree cannot see that process.
pub(super) fn inside(c: Ucred, cx: &DumpCx) -> pb::StasisUcred {
    let pid = match cx.pids.get(&HostPid(c.pid)) {
        Some(p) => *p,
        // somebody outside or gone: the same number if there is only one namespace
        None if cx.pids.iter().all(|(h, n)| h.0 as u32 == *n) => c.pid as u32,
        None => 0,
    };
    pb::StasisUcred {
        pid,
        uid: cx.ids.uid(c.uid),
        gid: cx.ids.gid(c.gid),
    }
}

fn told<'c>(seen: &Seen, cx: &'c mut DumpCx) -> Result<&'c Table> {
    let key = cookie(seen.fd)?;
    if let std::collections::btree_map::Entry::Vacant(e) = cx.unix.tables.entry(key) {
        let t = table_of(seen)?;
        e.insert(t);
    }
    Ok(&cx.unix.tables[&key])
}

/// The listener that has not accepted the connection of this socket yet.
fn not_accepted(ino: u32, all: &Table) -> Option<u32> {
    let listener = all.iter().find(|(_, l)| l.waiting.contains(&ino));
    listener.map(|(ino, _)| *ino)
}

impl FileKind for UnixSk {
    fn name(&self) -> &'static str {
        "unixsk"
    }
    fn about(&self) -> &'static str {
        "unix sockets with names, peers, queues, files and credentials in flight; peers outside the tree by the caller's leave"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Unixsk
    }
    fn claims(&self, seen: &Seen) -> bool {
        is(seen)
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let ino = seen.stat.st_ino as u32;
        let leave = cx.options.network.skip_in_flight;
        let service = cx.options.network.service_socket;
        let kind = sockopts::get_int(seen.fd, libc::SOL_SOCKET, libc::SO_TYPE)?.unwrap_or(0);
        let stream = kind != libc::SOCK_DGRAM;
        let all = told(seen, cx)?;
        let Some(t) = all.get(&ino).cloned() else {
            return Err(seen.refuse(
                "E4500",
                "the kernel does not list it among the unix sockets of its network namespace",
                "try again: it may have been closed meanwhile",
            ));
        };
        let mut ext = pb::StasisUnixEntry::default();
        let mut peer = t.peer.unwrap_or(0);
        let mut gone = t.peer == Some(0);
        let asks = peer != 0 && service == Some(peer);
        if stream
            && gone
            && t.shutdown != 3
            && !leave
            && let Some(listener) = not_accepted(ino, all)
        {
            peer = listener;
            gone = false;
            if t.sent != 0 {
                ext.sent = unixsk_hidden::sent(seen, cx)?;
            }
        }
        if t.state == LISTEN && !leave {
            let closed = t.waiting.iter().filter(|i| **i == 0).count();
            if closed > 0 {
                ext.left = unixsk_hidden::left(seen, closed, cx)?;
            }
            ext.waiting = t.waiting.clone();
        }
        if peer != 0 && stream && t.peer == Some(0) {
            let st = stasis_kernel::procfs::ProcDir::open(seen.pid)?.status()?;
            let c = Ucred {
                pid: seen.pid.0,
                uid: st.uid.effective,
                gid: st.gid.effective,
            };
            ext.own_cred = Some(inside(c, cx));
        }
        if gone {
            ext.gone = Some(unix::name(seen.fd, true)?.unwrap_or_default());
        }
        if asks {
            peer = 0;
        }
        let ready = readiness(seen.fd, libc::POLLPRI)?;
        ext.reset = (ready & libc::POLLERR != 0).then_some(true);
        if ready & libc::POLLPRI != 0
            && let Some(urgent) = unixsk_hidden::urgent(seen, cx)?
        {
            cx.unix.urgent.insert(seen.stat.st_ino, urgent);
        }
        ext.peer_cred = peer_cred(seen, cx)?;
        let name = unix::name(seen.fd, false)?.unwrap_or_default();
        let p = place(seen, &name, cx)?;
        ext.root = p.root;
        let usk = pb::UnixSkEntry {
            id,
            ino,
            r#type: kind as u32,
            state: if asks { CLOSED } else { t.state },
            flags: seen.flags,
            uflags: if asks { SERVICE } else { 0 },
            backlog: if t.state == LISTEN { t.sent } else { 0 },
            peer,
            fown: seen.fown,
            opts: twins::unix(seen, cx)?,
            name,
            shutdown: match t.shutdown {
                0 => None,
                s => Some(i32::from(s)),
            },
            file_perms: p.perms,
            name_dir: p.name_dir,
            deleted: p.deleted.then_some(true),
            stasis: (ext != pb::StasisUnixEntry::default()).then_some(ext),
            ..Default::default()
        };
        if peer != 0 {
            let name = unix::name(seen.fd, true)?.unwrap_or_default();
            cx.unix.peers.insert(ino, (name, seen.place()));
        }
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            usk: Some(Box::new(usk)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        unixsk_plan::plan(entry, cx)
    }
}

// ---- queues

/// SIOCINQ.
const FIONREAD: u64 = libc::FIONREAD;
/// First guess at the length of a message, in bytes.
const ROOM: usize = 64 << 10;
/// No queue holds more: far beyond what any buffer of a socket may be.
const LIMIT: usize = 1 << 30;

/// A socket whose queue is looked into.
pub struct Queued<'a> {
    /// Our duplicate.
    pub fd: BorrowedFd<'a>,
    /// Where it is, for errors.
    pub place: String,
    /// Bytes before the out-of-band one in its queue, and that one.
    pub urgent: Option<(usize, u8)>,
}

struct Look<'a> {
    fd: BorrowedFd<'a>,
    place: &'a str,
    kind: i32,
    /// Its own peek offset.
    offset: i32,
    /// Bytes the kernel tells of: all, but only those of the first message for datagrams.
    bytes: usize,
    /// As in [`Queued`].
    urgent: Option<(usize, u8)>,
}

/// Looks into queues, and gives what is in them, in order. Nothing is taken out.
///
/// # Errors
/// E4507: a pending error stands before the queue; refused calls.
pub fn look(sockets: &[Queued<'_>]) -> Result<Vec<Vec<Message>>> {
    let mut all: Vec<Vec<Message>> = sockets.iter().map(|_| Vec::new()).collect();
    let mut hard = Vec::new();
    for (i, s) in sockets.iter().enumerate() {
        let ready = readiness(s.fd, libc::POLLIN)?;
        if ready & libc::POLLIN == 0 {
            continue;
        }
        let int = |name| sockopts::get_int(s.fd, libc::SOL_SOCKET, name);
        if int(libc::SO_ACCEPTCONN)? == Some(1) {
            continue;
        }
        let look = Look {
            fd: s.fd,
            place: &s.place,
            kind: int(libc::SO_TYPE)?.unwrap_or(0),
            offset: int(42)?.unwrap_or(-1),
            bytes: ask_size(s.fd, FIONREAD, "SIOCINQ")? as usize,
            urgent: s.urgent,
        };
        if look.kind != libc::SOCK_STREAM && ready & libc::POLLERR != 0 {
            // peeking would take the error away
            if look.bytes == 0 {
                continue;
            }
            return Err(Error::new(
                "E4507",
                Blame::Container,
                format!("cannot dump {}", s.place),
            )
            .why("an error waits to be told before what is in its queue, and looking there would take it")
            .advice("try again when the program has read from it"));
        }
        if look.kind == libc::SOCK_STREAM && look.bytes == 0 {
            continue;
        }
        match look.whole()? {
            Some(m) => all[i].push(m),
            None => hard.push((i, look)),
        }
    }
    if hard.is_empty() {
        return Ok(all);
    }
    let guarded: Vec<_> = hard.iter().map(|(_, l)| (l.fd, l.offset)).collect();
    let found = unix::with_peek_offsets(&guarded, || {
        hard.iter()
            .map(|(i, l)| Ok((*i, l.one_by_one()?)))
            .collect::<Result<Vec<_>>>()
    })??;
    for (i, messages) in found {
        all[i] = messages;
    }
    Ok(all)
}

impl Look<'_> {
    /// A stream whose queue one peek shows. `None`: files or credentials split it, or peeks do not begin at its head.
    fn whole(&self) -> Result<Option<Message>> {
        if self.kind != libc::SOCK_STREAM || self.offset >= 0 || self.urgent.is_some() {
            return Ok(None);
        }
        let m = unix::peek(self.fd, self.bytes, 0).map_err(|e| self.failed(e))?;
        Ok(m.filter(|m| m.bytes.len() == self.bytes))
    }
    fn failed(&self, e: stasis_kernel::error::SysError) -> Error {
        Error::from(e).on(format!("the queue of {}", self.place))
    }
    /// Peeks at this offset.
    fn at(&self, offset: usize, room: usize) -> Result<Option<Message>> {
        unix::set_peek_offset(self.fd, offset as i32).map_err(|e| self.failed(e))?;
        unix::peek(self.fd, room, 0).map_err(|e| self.failed(e))
    }
    /// Every message by itself. The caller sets the peek offset back.
    fn one_by_one(&self) -> Result<Vec<Message>> {
        if self.kind == libc::SOCK_STREAM {
            return self.stream();
        }
        let mut all = Vec::new();
        let mut at = 0;
        let mut room = ROOM;
        let over = readiness(self.fd, libc::POLLRDHUP)? & libc::POLLRDHUP != 0;
        while at < LIMIT {
            let Some(m) = self.at(at, room)? else {
                break;
            };
            if let Some(n) = m.cut {
                // the next look brings its files once more
                room = n;
                continue;
            }
            let n = m.bytes.len();
            // no bytes: the end of what was shut down, or a message of its own
            if self.kind == libc::SOCK_SEQPACKET && n == 0 && over && at >= self.bytes {
                break;
            }
            at += n;
            all.push(m);
        }
        Ok(all)
    }
    /// Pieces of a stream: each ends behind a write that brought files.
    ///
    /// KERNEL: unix_stream_read_generic() peeks at the files of the next write also when no byte of it fits, so where that write
    /// begins cannot be found out.
    fn stream(&self) -> Result<Vec<Message>> {
        let mut all = Vec::new();
        let mut at = 0;
        // KERNEL: manage_oob() (net/unix/af_unix.c) steps over an out-of-band byte at the head
        let inline = || sockopts::get_int(self.fd, libc::SOL_SOCKET, libc::SO_OOBINLINE);
        let shown = !matches!(self.urgent, Some((0, _))) || inline()? == Some(1);
        let end = self.bytes - usize::from(!shown);
        if !shown && !unixsk_hidden::steps_over() {
            return Err(unixsk_hidden::unclear(self.place));
        }
        // a look behind the end would take a pending error
        while at < end {
            let Some(m) = self.at(at, end - at)? else {
                break;
            };
            if m.bytes.is_empty() {
                break;
            }
            at += m.bytes.len();
            all.push(m);
        }
        if self.urgent.is_some() && at != end {
            return Err(unixsk_hidden::unclear(self.place));
        }
        Ok(match self.urgent {
            Some(urgent) => unixsk_hidden::apart(all, urgent, shown),
            None => all,
        })
    }
}

/// The pids beside the messages that were found in these queues, one behind the other, as the tree's pid namespace knows them; nothing
/// if the engine can tell them all. Senders that have ended are known only there.
///
/// # Errors
/// The namespace cannot be entered; those of [`look`].
pub fn senders(
    cx: &DumpCx,
    sockets: &[Queued<'_>],
    found: &[Vec<Message>],
) -> Result<Option<Vec<u32>>> {
    let unclear = |m: &Message| m.cred.is_some_and(|c| c.pid != 0 && inside(c, cx).pid == 0);
    let Some(root) = cx.root() else {
        return Ok(None);
    };
    let all: Vec<&Message> = found.iter().flatten().collect();
    if !all.iter().any(|m| unclear(m)) {
        return Ok(None);
    }
    let way = Way::to(root, &[Ns::Pid]);
    let mut there = stasis_kernel::inner::start(&way, |channel| {
        let Ok(found) = look(sockets) else { return 1 };
        let pid = |m: &Message| m.cred.map_or(0, |c| c.pid).to_le_bytes();
        let told: Vec<u8> = found.iter().flatten().flat_map(pid).collect();
        i32::from(nix::unistd::write(&channel, &told).is_err())
    })?;
    let mut told = vec![0u8; all.len() * 4];
    let n = nix::unistd::read(&there.channel, &mut told)
        .map_err(|e| stasis_kernel::error::SysError::new("read", e, "senders of messages"))?;
    there.end();
    if n != told.len() {
        return Ok(None);
    }
    let words = (0..all.len()).map(|i| sockopts::word(&told, i * 4));
    Ok(Some(words.collect()))
}

/// Writes a message of the socket with this id; `files` are the ids of what travels with it, `sender` is its pid as the tree
/// knows it, if that was asked.
///
/// # Errors
/// Failures to write.
pub fn put(
    cx: &mut DumpCx,
    id: u32,
    m: &Message,
    files: Vec<u32>,
    sender: Option<u32>,
) -> Result<()> {
    let cred = |c| {
        let mut told = inside(c, cx);
        told.pid = sender.unwrap_or(told.pid);
        told
    };
    let ext = pb::StasisPacketEntry {
        from: (!m.from.is_empty()).then(|| m.from.clone()),
        cred: m.cred.map(cred),
        oob: m.urgent.then_some(true),
    };
    let scm = pb::ScmEntry {
        r#type: libc::SCM_RIGHTS as u32,
        rights: files,
    };
    let record = pb::SkPacketEntry {
        id_for: id,
        length: m.bytes.len() as u32,
        scm: if scm.rights.is_empty() {
            Vec::new()
        } else {
            vec![scm]
        },
        stasis: (ext != pb::StasisPacketEntry::default()).then_some(ext),
    };
    cx.put(IMAGE, &record, &m.bytes)
}

// ---- peers outside of the tree

/// Services that take a connection at any time, by the names of their sockets. Those that end in `/` stand for all below.
const SERVICES: [&str; 8] = [
    "/dev/log",
    "/run/systemd/journal/",
    "/run/systemd/notify",
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/var/run/dbus/system_bus_socket",
    "/run/nscd/socket",
    "/var/run/nscd/socket",
];

/// May a socket be connected again to this name without the caller's leave?
pub(super) fn is_service(name: &[u8]) -> bool {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    SERVICES.iter().any(|s| match s.strip_suffix('/') {
        Some(_) => name.starts_with(s.as_bytes()) && !name[s.len()..].contains(&b'/'),
        None => name == s.as_bytes(),
    })
}

/// Has the caller given leave for the socket with this number, or for its peer?
pub(super) fn allowed(cx: &crate::options::Options, inos: [u32; 2]) -> bool {
    let n = &cx.network;
    n.external_unix
        || inos
            .iter()
            .any(|i| *i != 0 && n.external_unix_inodes.contains(&u64::from(*i)))
}

/// Judges peers that no task of the tree has, now that all sockets are known; those that are allowed get an entry.
pub(super) fn finish(cx: &mut DumpCx) -> Result<()> {
    clear_up(cx)?;
    let sockets = || cx.entries.iter().filter_map(|e| e.usk.as_deref());
    let ours: BTreeSet<u32> = sockets().map(|u| u.ino).collect();
    let outside: Vec<(u32, u32)> = sockets()
        .filter(|u| u.peer != 0 && !ours.contains(&u.peer))
        .map(|u| (u.ino, u.peer))
        .collect();
    for (ino, peer) in outside {
        let (name, place) = cx.unix.peers.remove(&ino).unwrap_or_default();
        let lost = |u: &pb::UnixSkEntry| u.stasis.as_ref().is_some_and(|x| !x.sent.is_empty());
        let mut sockets = cx.entries.iter().filter_map(|e| e.usk.as_deref());
        if sockets.any(|u| u.ino == ino && lost(u)) {
            return Err(Error::new("E4504", Blame::Container, format!("cannot dump {place}"))
                .why(format!("it has sent something to {}, which no task of the tree has, and which has not accepted it yet", shown(&name)))
                .advice("try again when the server has accepted it, or pass --skip-in-flight to leave the connection behind"));
        }
        let plugged =
            !allowed(cx.options, [ino, peer]) && crate::plugins::socket(cx, ino, peer, &name)?;
        if !plugged && !allowed(cx.options, [ino, peer]) && !is_service(&name) {
            let who = match name.is_empty() {
                true => format!("a socket without name (inode {peer})"),
                false => format!("{} (inode {peer})", shown(&name)),
            };
            return Err(Error::new(
                "E4502",
                Blame::Container,
                format!("cannot dump {place}"),
            )
            .why(format!("it is connected to {who}, which no task of the tree has"))
            .advice(format!(
                "pass --external unix[{ino}] (or --ext-unix-sk={ino}); at restore hand over a socket with --inherit-fd 'fd[N]:socket:[{ino}]', or it is connected again by name, or closed"
            )));
        }
        if ours_has(cx, peer) {
            continue;
        }
        let id = cx.new_id();
        let usk = pb::UnixSkEntry {
            id,
            ino: peer,
            r#type: libc::SOCK_DGRAM as u32,
            state: LISTEN,
            uflags: EXTERN,
            name,
            ..Default::default()
        };
        cx.entries.push(pb::FileEntry {
            r#type: pb::FdTypes::Unixsk as i32,
            id,
            usk: Some(Box::new(usk)),
            ..Default::default()
        });
    }
    Ok(())
}

fn ours_has(cx: &DumpCx, ino: u32) -> bool {
    let mut all = cx.entries.iter().filter_map(|e| e.usk.as_deref());
    all.any(|u| u.ino == ino)
}

#[cfg(test)]
#[path = "unixsk_tests.rs"]
mod tests;
