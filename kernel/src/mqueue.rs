//! POSIX message queues (mq_overview(7)): what is in them, and how they are made.
//!
//! Messages are read out of the kernel's memory ([`crate::inside`]): to receive one is to take it out, and who takes it out and dies
//! has lost it.
//!
//! Long because what is read and how it is made again stand side by side.
use crate::btf;
use crate::error::{SysError, SysResult, check};
use crate::inside::{At, Inside, MOST};
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// File system of queues (linux/magic.h).
pub const MQUEUE_MAGIC: i64 = 0x1980_0202;
/// Bytes of a page, in which the kernel cuts messages.
const PAGE: usize = 4096;
/// How often a queue is read that others use meanwhile, until two looks agree.
const LOOKS: usize = 16;

/// Sizes of a queue (`struct mq_attr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Most messages.
    pub messages: u64,
    /// Most bytes of a message.
    pub bytes: u64,
}

/// Who is told when a message comes (mq_notify(3)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The process, as the caller sees it; 0: it is in a pid namespace that the caller does not see.
    pub pid: i32,
    /// `sigev_notify`.
    pub how: i32,
    /// `sigev_signo`.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// SIGEV_THREAD: the socket (`struct sock`) through which it is told, and the 32 bytes that come.
    pub socket: Option<(u64, Vec<u8>)>,
}

/// What is in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Priority and bytes, in the order in which they are received.
    pub messages: Vec<(u32, Vec<u8>)>,
    /// Who waits to be told.
    pub notice: Option<Notice>,
}

btf::places! {
    file_inode: "file" "f_inode",
    inode: "mqueue_inode_info" "vfs_inode",
    tree: "mqueue_inode_info" "msg_tree",
    bytes: "mqueue_inode_info" "qsize",
    notify: "mqueue_inode_info" "notify",
    owner: "mqueue_inode_info" "notify_owner",
    socket: "mqueue_inode_info" "notify_sock",
    cookie: "mqueue_inode_info" "notify_cookie",
    data: "sk_buff" "data",
    right: "rb_node" "rb_right",
    left: "rb_node" "rb_left",
    node: "posix_msg_tree_node" "rb_node",
    list: "posix_msg_tree_node" "msg_list",
    priority: "posix_msg_tree_node" "priority",
    of_list: "msg_msg" "m_list",
    length: "msg_msg" "m_ts",
    next: "msg_msg" "next",
    head: "msg_msg" "",
    part: "msg_msgseg" "",
}

/// A way to read queues.
#[derive(Debug)]
pub struct Reader {
    inside: Inside,
    at: Places,
}

impl Reader {
    /// One for many queues: to find out where the kernel's fields lie takes milliseconds.
    ///
    /// # Errors
    /// EPERM without the rights to read the kernel's memory.
    pub fn new() -> SysResult<Self> {
        Ok(Reader {
            inside: Inside::open()?,
            at: Places::new()?,
        })
    }
    /// What is in a queue; it stays there.
    ///
    /// # Errors
    /// EAGAIN: it changes all the time.
    pub fn read(&self, fd: BorrowedFd<'_>) -> SysResult<Contents> {
        let file = self.inside.file(fd)?;
        let queue = self.inside.word(file + self.at.file_inode)? - self.at.inode;
        // who else has it may use it: a look that met a change is as good as none
        let mut before = None;
        for _ in 0..LOOKS {
            let now = look(&self.inside, &self.at, queue).ok();
            if let (Some(n), true) = (&now, now == before) {
                return Ok(n.clone());
            }
            before = now;
        }
        Err(SysError::new(
            "mq_receive",
            Errno::EAGAIN,
            "the queue changes while it is read",
        ))
    }
    /// The socket (`struct sock`) behind one of the caller's descriptors, as [`Notice::socket`] names it.
    ///
    /// # Errors
    /// EFAULT: it is no socket.
    pub fn socket_of(&self, fd: BorrowedFd<'_>) -> SysResult<u64> {
        self.inside.socket(fd)
    }
}

fn look(inside: &Inside, at: &Places, queue: At) -> SysResult<Contents> {
    let mut nodes = Vec::new();
    walk(inside, at, inside.word(queue + at.tree)?, &mut nodes)?;
    let mut messages = Vec::new();
    let mut sum = 0;
    // lowest priority first
    for node in nodes.into_iter().rev() {
        let priority = inside.int(node + at.priority)?;
        for m in inside.list(node + at.list)? {
            let bytes = message(inside, at, m - at.of_list)?;
            sum += bytes.len() as u64;
            messages.push((priority, bytes));
        }
    }
    if inside.word(queue + at.bytes)? != sum {
        return Err(SysError::new("mq_receive", Errno::EAGAIN, ""));
    }
    let notice = match inside.word(queue + at.owner)? {
        0 => None,
        owner => Some(notice(inside, at, queue, owner)?),
    };
    Ok(Contents { messages, notice })
}

/// Nodes of a tree from the left to the right.
fn walk(inside: &Inside, at: &Places, root: At, nodes: &mut Vec<At>) -> SysResult<()> {
    let mut above = Vec::new();
    let mut node = root;
    while node != 0 || !above.is_empty() {
        while node != 0 {
            if above.len() + nodes.len() > MOST {
                return Err(SysError::new("mq_receive", Errno::ELOOP, ""));
            }
            above.push(node);
            node = inside.word(node + at.left)?;
        }
        if let Some(n) = above.pop() {
            nodes.push(n - at.node);
            node = inside.word(n + at.right)?;
        }
    }
    Ok(())
}

/// A message: its first bytes lie behind its head, the others behind the heads of further pages.
fn message(inside: &Inside, at: &Places, message: At) -> SysResult<Vec<u8>> {
    let length = inside.word(message + at.length)? as usize;
    let mut bytes = Vec::new();
    let (mut part, mut next, mut head) = (message, message + at.next, at.head);
    while part != 0 && bytes.len() < length {
        let n = (PAGE - head as usize).min(length - bytes.len());
        bytes.extend(inside.bytes(part + head, n)?);
        // a page begins with the address of the next one
        (part, head) = (inside.word(next)?, at.part);
        next = part;
    }
    match bytes.len() == length {
        true => Ok(bytes),
        false => Err(SysError::new("mq_receive", Errno::EAGAIN, "")),
    }
}

fn notice(inside: &Inside, at: &Places, queue: At, owner: At) -> SysResult<Notice> {
    // struct sigevent: value, signal, sort
    let event = inside.bytes(queue + at.notify, 16)?;
    let int = |n: usize| i32::from_ne_bytes([event[n], event[n + 1], event[n + 2], event[n + 3]]);
    let how = int(12);
    let socket = match how == libc::SIGEV_THREAD {
        false => None,
        true => {
            let data = inside.follow(queue, &[at.cookie, at.data])?;
            let cookie = inside.bytes(data, COOKIE)?;
            Some((inside.word(queue + at.socket)?, cookie))
        }
    };
    Ok(Notice {
        pid: inside.number(owner)?,
        how,
        signal: int(8),
        value: u64::from(int(0) as u32) | u64::from(int(4) as u32) << 32,
        socket,
    })
}

/// Bytes that come through a socket (linux/mqueue.h, NOTIFY_COOKIE_LEN).
const COOKIE: usize = 32;

/// Sizes of a queue, and the number of messages in it.
///
/// # Errors
/// EBADF: it is no queue.
pub fn sizes(fd: BorrowedFd<'_>) -> SysResult<(Sizes, u64)> {
    let mut attr = [0i64; 8];
    // SAFETY: the kernel fills a struct mq_attr of eight longs.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mq_getsetattr,
            fd.as_raw_fd(),
            0usize,
            attr.as_mut_ptr(),
        )
    };
    check(r, "mq_getsetattr", || {
        format!("descriptor {}", fd.as_raw_fd())
    })?;
    let sizes = Sizes {
        messages: attr[1] as u64,
        bytes: attr[2] as u64,
    };
    Ok((sizes, attr[3] as u64))
}

fn named(name: &[u8]) -> SysResult<CString> {
    CString::new(name).map_err(|_| SysError::new("mq_open", Errno::EINVAL, "a NUL in a name"))
}

/// Opens a queue of the caller's IPC namespace by its name (without slash), close-on-exec. `make`: it must not exist yet.
///
/// # Errors
/// As mq_open(3).
pub fn open(name: &[u8], flags: i32, make: Option<Sizes>) -> SysResult<OwnedFd> {
    let path = named(name)?;
    let mut attr = [0i64; 8];
    let (mut flags, mut at) = (flags | libc::O_CLOEXEC, std::ptr::null());
    if let Some(s) = make {
        (attr[1], attr[2]) = (s.messages as i64, s.bytes as i64);
        flags |= libc::O_CREAT | libc::O_EXCL;
        at = attr.as_ptr();
    }
    let _limit = make.map(|_| Limit::raise());
    // SAFETY: a NUL-terminated name, and a struct mq_attr of eight longs or none.
    let r = unsafe { libc::syscall(libc::SYS_mq_open, path.as_ptr(), flags, 0o600, at) };
    let fd = check(r, "mq_open", || shown(name))?;
    // SAFETY: a fresh descriptor of ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn shown(name: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(name))
}

/// The name of a queue that was just made: removed again when dropped, unless it is to be kept.
#[derive(Debug)]
pub struct Made {
    name: Vec<u8>,
    keep: bool,
}

impl Made {
    /// Of a queue of the caller's IPC namespace.
    pub fn new(name: &[u8]) -> Self {
        Made {
            name: name.to_vec(),
            keep: false,
        }
    }
    /// Leaves the name to its users.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.keep {
            let _ = unlink(&self.name);
        }
    }
}

/// Takes away the name of a queue.
///
/// # Errors
/// As mq_unlink(3).
pub fn unlink(name: &[u8]) -> SysResult<()> {
    let path = named(name)?;
    // SAFETY: a NUL-terminated name.
    let r = unsafe { libc::syscall(libc::SYS_mq_unlink, path.as_ptr()) };
    check(r, "mq_unlink", || shown(name)).map(drop)
}

/// Puts a message into a queue that is open for writing and does not make the caller wait.
///
/// # Errors
/// EAGAIN: it is full. EMSGSIZE.
pub fn send(fd: BorrowedFd<'_>, priority: u32, bytes: &[u8]) -> SysResult<()> {
    // SAFETY: pointer and length of a slice, which the call only reads; no time limit.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            fd.as_raw_fd(),
            bytes.as_ptr(),
            bytes.len(),
            priority,
            0usize,
        )
    };
    check(r, "mq_timedsend", || format!("{} bytes", bytes.len())).map(drop)
}

/// The limit of what a user's queues take in all (RLIMIT_MSGQUEUE), lifted as far as the caller may, for a while.
struct Limit(libc::rlimit);

impl Limit {
    fn raise() -> Self {
        // SAFETY: plain structures the kernel reads and writes; what fails leaves the limit as it was.
        unsafe {
            let mut was: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(libc::RLIMIT_MSGQUEUE, &mut was);
            let most = libc::rlimit {
                rlim_cur: libc::RLIM_INFINITY,
                rlim_max: libc::RLIM_INFINITY,
            };
            if libc::setrlimit(libc::RLIMIT_MSGQUEUE, &most) != 0 {
                let most = libc::rlimit {
                    rlim_cur: was.rlim_max,
                    ..was
                };
                libc::setrlimit(libc::RLIMIT_MSGQUEUE, &most);
            }
            Limit(was)
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_MSGQUEUE, &self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_are_read_in_the_order_of_their_priorities_and_stay() {
        let name = format!("stasis-test-{}", std::process::id());
        let s = Sizes {
            messages: 8,
            bytes: 8192,
        };
        let q = match open(name.as_bytes(), libc::O_WRONLY | libc::O_NONBLOCK, Some(s)) {
            Ok(q) => q,
            Err(e) => return eprintln!("skipped: {e}"),
        };
        unlink(name.as_bytes()).unwrap();
        let long: Vec<u8> = (0..8192u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        let all: [(u32, &[u8]); 5] = [
            (3, b"three"),
            (0, b""),
            (9, &long),
            (3, b"again"),
            (1, b"one"),
        ];
        for (p, b) in all {
            send(q.as_fd(), p, b).unwrap();
        }
        let seen = match Reader::new().and_then(|r| r.read(q.as_fd())) {
            Ok(s) => s,
            Err(e) if e.errno == Errno::EPERM => return eprintln!("skipped: {e}"),
            Err(e) => panic!("{e}"),
        };
        let want = [2, 0, 3, 4, 1].map(|i: usize| (all[i].0, all[i].1.to_vec()));
        assert_eq!(seen.messages, want);
        assert_eq!(seen.notice, None);
        assert_eq!(sizes(q.as_fd()).unwrap(), (s, 5));
    }

    #[test]
    fn who_waits_for_a_message_is_known() {
        let name = format!("stasis-notice-{}", std::process::id());
        let s = Sizes {
            messages: 1,
            bytes: 1,
        };
        let Ok(q) = open(name.as_bytes(), libc::O_RDONLY, Some(s)) else {
            return;
        };
        unlink(name.as_bytes()).unwrap();
        // struct sigevent: value, signal, sort
        let event = [
            0x1234_5678_9abcu64,
            u64::from(libc::SIGUSR2 as u32),
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        // SAFETY: a struct sigevent of 64 bytes, which is only read.
        let r = unsafe { libc::syscall(libc::SYS_mq_notify, q.as_raw_fd(), event.as_ptr()) };
        assert_eq!(r, 0);
        let n = match Reader::new().and_then(|r| r.read(q.as_fd())) {
            Ok(s) => s.notice.unwrap(),
            Err(e) if e.errno == Errno::EPERM => return eprintln!("skipped: {e}"),
            Err(e) => panic!("{e}"),
        };
        assert_eq!(n.pid as u32, std::process::id());
        assert_eq!((n.how, n.signal), (libc::SIGEV_SIGNAL, libc::SIGUSR2));
        assert_eq!(n.value, 0x1234_5678_9abc);
    }
}
