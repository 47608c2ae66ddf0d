//! Reading TCP connections in repair mode, by a process that outlives the engine.
//!
//! Repair mode (TCP_REPAIR) belongs to the socket, not to who asks: while it is on, the program that owns the connection gets
//! EPERM from recv(2) and EINVAL from send(2). An engine that is killed there would leave it so. Therefore a copy of the
//! engine in a session of its own does the reading, one connection at a time: on, about ten questions, off. When the engine is
//! killed the copy finishes the connection it is at and ends; when the copy is killed the engine turns repair mode off, while
//! the program is still stopped.
use crate::error::{SysError, SysResult, check};
use crate::usher::{self, Guest, MOST_BYTES, Usher};
use nix::errno::Errno;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Bytes that may come in between the question how many there are and the reading.
const SLACK: usize = 128 << 10;
/// Connections are read in portions of so many bytes of room, unless a single one needs more.
const PORTION: usize = 64 << 20;

const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const TCP_REPAIR_ON: i32 = 1;
/// Off, without a window probe. KERNEL(>=4.19)
const TCP_REPAIR_OFF_NO_WP: i32 = -1;
const RECV_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
const NO_QUEUE: i32 = 0;
const SO_PEEK_OFF: i32 = 42;
const SIOCINQ: libc::c_ulong = 0x541b;
const SIOCOUTQ: libc::c_ulong = 0x5411;
const SIOCOUTQNSD: libc::c_ulong = 0x894b;

/// Length of what is kept of TCP_INFO.
pub const INFO: usize = 32;

/// What one connection is, as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// The first bytes of `struct tcp_info`: state, options, window scales, sizes of segments.
    pub info: [u8; INFO],
    /// Bytes that wait to be read, without a FIN (SIOCINQ).
    pub inq_len: u32,
    /// Sequence number behind the last byte received, counting a FIN.
    pub inq_seq: u32,
    /// Bytes that are not acknowledged, counting a FIN (SIOCOUTQ).
    pub outq_len: u32,
    /// Of these, bytes that were never sent (SIOCOUTQNSD).
    pub unsq_len: u32,
    /// Sequence number behind the last byte to send, counting a FIN.
    pub outq_seq: u32,
    /// Largest segment the other end takes.
    pub mss: u32,
    /// TCP_TIMESTAMP.
    pub timestamp: u32,
    /// `struct tcp_repair_window`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    pub window: [u32; 5],
    /// The receive queue.
    pub receive: Vec<u8>,
    /// The send queue. May begin with bytes that are acknowledged already: the last ones count.
    pub send: Vec<u8>,
}

/// Which step of reading a connection failed; for messages.
const STEPS: [&str; 12] = [
    "setsockopt(TCP_REPAIR)",
    "getsockopt(TCP_INFO)",
    "ioctl(SIOCINQ)",
    "ioctl(SIOCOUTQ)",
    "ioctl(SIOCOUTQNSD)",
    "getsockopt(TCP_REPAIR_WINDOW)",
    "getsockopt(TCP_MAXSEG)",
    "setsockopt(TCP_REPAIR_QUEUE)",
    "getsockopt(TCP_QUEUE_SEQ)",
    "recv(MSG_PEEK)",
    "setsockopt(TCP_REPAIR, off)",
    "setsockopt(SO_REUSEADDR)",
];

/// What the copy writes down of one connection, in memory it shares with the engine.
#[repr(C)]
#[derive(Clone, Copy)]
struct Record {
    fd: RawFd,
    /// SO_REUSEADDR and SO_PEEK_OFF as they were: repair mode and reading change them.
    reuse: i32,
    peek: i32,
    /// Where the bytes go, those of the receive queue first, and for how many there is room.
    at: usize,
    receive_room: usize,
    send_room: usize,
    /// Repair mode may be on.
    entered: u32,
    /// It is certainly off again.
    left: u32,
    step: u32,
    errno: i32,
    received: usize,
    sent: usize,
    info: [u8; INFO],
    inq_len: i32,
    inq_seq: u32,
    outq_len: i32,
    unsq_len: i32,
    outq_seq: u32,
    mss: u32,
    timestamp: u32,
    window: [u32; 5],
}

fn get(fd: RawFd, level: i32, name: i32, to: *mut u8, len: usize) -> Result<(), i32> {
    let mut n = len as libc::socklen_t;
    // SAFETY: `to` points to `len` bytes that are ours alone; the kernel writes at most `n` of them.
    let r = unsafe { libc::getsockopt(fd, level, name, to.cast(), &mut n) };
    if r == 0 { Ok(()) } else { Err(last()) }
}

fn get_int(fd: RawFd, level: i32, name: i32) -> Result<i32, i32> {
    let mut v = 0i32;
    get(fd, level, name, (&raw mut v).cast(), 4)?;
    Ok(v)
}

fn set_int(fd: RawFd, level: i32, name: i32, v: i32) -> Result<(), i32> {
    // SAFETY: four bytes are read from `v`, which lives through the call.
    let r = unsafe { libc::setsockopt(fd, level, name, (&raw const v).cast(), 4) };
    if r == 0 { Ok(()) } else { Err(last()) }
}

fn ask(fd: RawFd, request: libc::c_ulong) -> Result<i32, i32> {
    let mut v = 0i32;
    // SAFETY: these requests write one int.
    let r = unsafe { libc::ioctl(fd, request, &raw mut v) };
    if r == 0 { Ok(v) } else { Err(last()) }
}

fn last() -> i32 {
    Errno::last_raw()
}

/// Leaves repair mode and gives back what it changed; best effort.
fn leave(fd: RawFd, reuse: i32, peek: i32) -> Result<(), (u32, i32)> {
    let _ = set_int(fd, libc::SOL_TCP, TCP_REPAIR_QUEUE, NO_QUEUE);
    set_int(fd, libc::SOL_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
        .or_else(|_| set_int(fd, libc::SOL_TCP, TCP_REPAIR, 0))
        .map_err(|e| (10, e))?;
    // KERNEL: leaving repair mode sets sk_reuse to 0 (net/ipv4/tcp.c, do_tcp_setsockopt())
    set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse).map_err(|e| (11, e))?;
    if peek >= 0 {
        let _ = set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, peek);
    }
    Ok(())
}

/// Reads one connection. Makes system calls only: it runs in the copy of a process that had threads.
///
/// # Safety
/// `data` must have room for `at` and both rooms of the record.
unsafe fn read_one(r: &mut Record, data: *mut u8) {
    let fd = r.fd;
    r.entered = 1;
    if let Err(e) = set_int(fd, libc::SOL_TCP, TCP_REPAIR, TCP_REPAIR_ON) {
        (r.left, r.errno) = (1, e);
        return;
    }
    if r.peek >= 0 {
        let _ = set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, -1);
    }
    let done = (|| {
        get(fd, libc::SOL_TCP, libc::TCP_INFO, r.info.as_mut_ptr(), INFO).map_err(|e| (1, e))?;
        r.inq_len = ask(fd, SIOCINQ).map_err(|e| (2, e))?;
        r.outq_len = ask(fd, SIOCOUTQ).map_err(|e| (3, e))?;
        r.unsq_len = ask(fd, SIOCOUTQNSD).map_err(|e| (4, e))?;
        get(
            fd,
            libc::SOL_TCP,
            TCP_REPAIR_WINDOW,
            r.window.as_mut_ptr().cast(),
            20,
        )
        .map_err(|e| (5, e))?;
        r.mss = get_int(fd, libc::SOL_TCP, libc::TCP_MAXSEG).map_err(|e| (6, e))? as u32;
        r.timestamp = get_int(fd, libc::SOL_TCP, TCP_TIMESTAMP).unwrap_or(0) as u32;
        let queue = |which: i32, at: usize, room: usize, some: bool| -> Result<_, (u32, i32)> {
            set_int(fd, libc::SOL_TCP, TCP_REPAIR_QUEUE, which).map_err(|e| (7, e))?;
            let seq = get_int(fd, libc::SOL_TCP, TCP_QUEUE_SEQ).map_err(|e| (8, e))?;
            if !some {
                return Ok((seq as u32, 0));
            }
            // SAFETY: the caller promises the room; the memory is shared with the engine, which waits.
            let n = unsafe {
                libc::recv(
                    fd,
                    data.add(at).cast(),
                    room,
                    libc::MSG_PEEK | libc::MSG_DONTWAIT,
                )
            };
            match n {
                n if n >= 0 => Ok((seq as u32, n as usize)),
                _ => Err((9, last())),
            }
        };
        (r.inq_seq, r.received) = queue(RECV_QUEUE, r.at, r.receive_room, r.inq_len > 0)?;
        let at = r.at + r.received;
        (r.outq_seq, r.sent) = queue(SEND_QUEUE, at, r.send_room, r.outq_len > 0)?;
        Ok(())
    })();
    let out = leave(fd, r.reuse, r.peek);
    r.left = u32::from(out.is_ok());
    if let Err((step, errno)) = done.and(out) {
        (r.step, r.errno) = (step, errno);
    }
}

/// Memory that a copy of this process shares with it.
struct Shared {
    at: *mut u8,
    len: usize,
}

impl Shared {
    fn new(len: usize) -> SysResult<Self> {
        // SAFETY: a fresh anonymous mapping; nothing else is there.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(SysError::last("mmap", format!("{len} shared bytes")));
        }
        Ok(Self { at: at.cast(), len })
    }
    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len, "inside the mapping");
        // SAFETY: inside the mapping, and whoever wrote to it has ended.
        unsafe { std::slice::from_raw_parts(self.at.add(at), len).to_vec() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used after this.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// Reads connections of stopped programs through duplicates of their sockets. Afterwards no socket is in repair mode.
///
/// # Errors
/// The outer one: there is no memory or no process for it. The inner ones are of one connection each; EPERM of TCP_REPAIR
/// means that CAP_NET_ADMIN is missing in the user namespace of the socket's network namespace.
pub fn read(sockets: &[BorrowedFd<'_>]) -> SysResult<Vec<SysResult<Connection>>> {
    let mut out = Vec::with_capacity(sockets.len());
    let mut rest = sockets;
    while !rest.is_empty() {
        let mut room = 0;
        let mut records = Vec::new();
        for s in rest {
            let r = record(s.as_raw_fd(), room);
            let need = r.receive_room + r.send_room;
            if room > 0 && room + need > PORTION {
                break;
            }
            room += need;
            records.push(r);
        }
        rest = &rest[records.len()..];
        portion(records, room, &mut out)?;
    }
    Ok(out)
}

fn record(fd: RawFd, at: usize) -> Record {
    let bytes = |request| ask(fd, request).unwrap_or(0).max(0) as usize;
    let room = |request| match bytes(request) {
        0 => SLACK,
        n => n + SLACK,
    };
    Record {
        fd,
        reuse: get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap_or(0),
        peek: get_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF).unwrap_or(-1),
        at,
        receive_room: room(SIOCINQ),
        send_room: room(SIOCOUTQ),
        entered: 0,
        left: 0,
        step: 0,
        errno: 0,
        received: 0,
        sent: 0,
        info: [0; INFO],
        inq_len: 0,
        inq_seq: 0,
        outq_len: 0,
        unsq_len: 0,
        outq_seq: 0,
        mss: 0,
        timestamp: 0,
        window: [0; 5],
    }
}

fn portion(
    records: Vec<Record>,
    room: usize,
    out: &mut Vec<SysResult<Connection>>,
) -> SysResult<()> {
    let n = records.len();
    let table = n * size_of::<Record>();
    let shared = Shared::new(table + room)?;
    let list = shared.at.cast::<Record>();
    for (i, r) in records.iter().enumerate() {
        // SAFETY: the mapping is page-aligned and holds `n` records before anything else; nobody else has it yet.
        unsafe { list.add(i).write(*r) };
    }
    let clean = by_copy(|engine| {
        // what was read lies close together: a page that is touched costs more than what is in it
        let mut end = 0;
        for i in 0..n {
            // SAFETY: no pointers.
            if unsafe { libc::getppid() } != engine {
                break;
            }
            // SAFETY: `list` is in the mapping that both have, and only the copy writes now.
            let r = unsafe { &mut *list.add(i) };
            r.at = end;
            // SAFETY: the data lies behind the list; those before it have not taken more than the rooms they had.
            unsafe { read_one(r, shared.at.add(table)) };
            end += r.received + r.sent;
        }
    })?;
    for i in 0..n {
        // SAFETY: the child has ended, so the records are ours again.
        let r = unsafe { list.add(i).read() };
        if r.entered == 1 && r.left == 0 {
            // the copy was killed, or the kernel refused: the program is still stopped and must not find it so
            let _ = leave(r.fd, r.reuse, r.peek);
        }
        out.push(connection(&r, &shared, table, clean));
    }
    Ok(())
}

/// Runs what makes system calls only in a copy of this process, which outlives it, and waits for it; tells whether it came to
/// its end. It is given the number of this process.
fn by_copy(f: impl FnOnce(i32)) -> SysResult<bool> {
    let engine = std::process::id() as i32;
    // SAFETY: the child makes system calls only and ends by _exit(2).
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: no pointers. Who kills the engine's process group does not mean the copy.
        unsafe { libc::setsid() };
        f(engine);
        // SAFETY: ends this process.
        unsafe { libc::_exit(0) }
    }
    check(pid.into(), "fork", || "a reader of connections")?;
    let mut status = 0;
    let ret = loop {
        // SAFETY: `status` is a place for an int; the child is ours and was not reaped.
        let r = unsafe { libc::waitpid(pid, &mut status, libc::__WALL) };
        if r != -1 || Errno::last() != Errno::EINTR {
            break r;
        }
    };
    Ok(ret == pid && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0)
}

/// A connection that nobody has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its own address.
    pub local: SocketAddr,
    /// The other end's.
    pub peer: SocketAddr,
    /// What it holds.
    pub connection: Connection,
}

/// What the copy writes down of a connection it has accepted.
#[repr(C)]
#[derive(Clone, Copy)]
struct Visit {
    record: Record,
    addresses: [[u8; ADDRESS]; 2],
    /// 1: accepted; 2: back in the queue; 3: it had ended, and is gone.
    stage: u32,
    errno: i32,
}

/// Room for an internet address.
const ADDRESS: usize = 28;
const ACCEPTED: u32 = 1;
const BACK: u32 = 2;
const ENDED: u32 = 3;

/// Reads the connections that wait to be accepted at a listening socket, whose program is stopped, while a lock holds their packets. Each
/// is accepted, read, and put back, by a copy that outlives the engine.
///
/// # Errors
/// One of them could not be read, or not be put back: then it is lost, which the error says.
pub fn queued(listener: BorrowedFd<'_>, usher: &Usher) -> SysResult<Vec<Queued>> {
    let failed = |call, e| SysError::new(call, Errno::from_raw(e), "a listening socket");
    let n = usher::waiting(listener).map_err(|e| failed("getsockopt(TCP_INFO)", e))? as usize;
    let blank = Visit {
        record: record(listener.as_raw_fd(), 0),
        addresses: [[0; ADDRESS]; 2],
        stage: 0,
        errno: 0,
    };
    let table = n * size_of::<Visit>();
    let shared = Shared::new(table.max(1) + n * (MOST_BYTES + SLACK))?;
    let list = shared.at.cast::<Visit>();
    let room = |i| i * (MOST_BYTES + SLACK);
    for i in 0..n {
        let mut v = blank;
        v.record.at = room(i);
        (v.record.receive_room, v.record.send_room) = (MOST_BYTES, SLACK);
        // SAFETY: the mapping is page-aligned and holds `n` of them before anything else; nobody else has it yet.
        unsafe { list.add(i).write(v) };
    }
    let fd = listener.as_raw_fd();
    by_copy(|engine| {
        for i in 0..n {
            // SAFETY: no pointers.
            if unsafe { libc::getppid() } != engine {
                break;
            }
            // SAFETY: as for [`portion`].
            let v = unsafe { &mut *list.add(i) };
            // SAFETY: the room of this one was given out above.
            if let Err(e) = unsafe { visit(fd, v, shared.at.add(table), usher) } {
                v.errno = e;
                break;
            }
        }
    })?;
    let mut all = Vec::with_capacity(n);
    for i in 0..n {
        // SAFETY: the child has ended, so they are ours again.
        let v = unsafe { list.add(i).read() };
        match (v.stage, v.errno) {
            (ENDED, _) => continue,
            (BACK, _) => {}
            (ACCEPTED, e) => return Err(failed("a connection is lost: to put it back", e)),
            (_, 0) => return Err(failed("waitpid", Errno::ECHILD as i32)),
            (_, e) => return Err(failed("accept4", e)),
        }
        let (Some(local), Some(peer)) = (address(&v.addresses[0]), address(&v.addresses[1])) else {
            return Err(failed("getsockname", Errno::EAFNOSUPPORT as i32));
        };
        all.push(Queued {
            local,
            peer,
            connection: connection(&v.record, &shared, table, true)?,
        });
    }
    Ok(all)
}

/// Accepts one connection, reads it and puts it back.
///
/// # Safety
/// `data` must have room for `at` and both rooms of the record.
unsafe fn visit(listener: RawFd, v: &mut Visit, data: *mut u8, usher: &Usher) -> Result<(), i32> {
    let mut p = libc::pollfd {
        fd: listener,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives through the call. Somebody else may have the listener, too, and accept(2) must not wait.
    if unsafe { libc::poll(&mut p, 1, 0) } != 1 {
        return Err(Errno::EAGAIN as i32);
    }
    let mut len = ADDRESS as libc::socklen_t;
    // SAFETY: the kernel writes at most as many bytes of the address as is told.
    let fd = unsafe {
        libc::accept4(
            listener,
            v.addresses[1].as_mut_ptr().cast(),
            &mut len,
            libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(last());
    }
    v.stage = ACCEPTED;
    let mut len = ADDRESS as libc::socklen_t;
    // SAFETY: as above.
    if unsafe { libc::getsockname(fd, v.addresses[0].as_mut_ptr().cast(), &mut len) } != 0 {
        return Err(last());
    }
    v.record.fd = fd;
    // SAFETY: the caller promises the room.
    unsafe { read_one(&mut v.record, data) };
    let r = &v.record;
    if r.errno != 0 {
        return Err(r.errno);
    }
    let state = r.info[0];
    const ESTABLISHED: u8 = 1;
    const CLOSE_WAIT: u8 = 8;
    if !matches!(state, ESTABLISHED | CLOSE_WAIT) {
        v.stage = ENDED;
        // SAFETY: ours.
        unsafe { libc::close(fd) };
        return Ok(());
    }
    // closes without a word
    set_int(fd, libc::SOL_TCP, TCP_REPAIR, TCP_REPAIR_ON)?;
    // SAFETY: ours.
    unsafe { libc::close(fd) };
    let (Some(local), Some(peer)) = (address(&v.addresses[0]), address(&v.addresses[1])) else {
        return Err(Errno::EAFNOSUPPORT as i32);
    };
    let guest = Guest {
        options: r.info[5],
        scale: (r.info[6] & 15, r.info[6] >> 4),
        inq_seq: r.inq_seq,
        outq_seq: r.outq_seq,
        mss: r.mss,
        timestamp: r.timestamp,
        window: r.window[1],
        fin: state == CLOSE_WAIT,
        // SAFETY: so many bytes were received there.
        receive: unsafe { std::slice::from_raw_parts(data.add(r.at), r.received) },
    };
    // SAFETY: the descriptor is open as long as the engine holds it, and in this copy.
    let listener = unsafe { BorrowedFd::borrow_raw(listener) };
    usher
        .lead(listener, &guest, local, peer)
        .map_err(|e| e as i32)?;
    v.stage = BACK;
    Ok(())
}

/// Reads a `sockaddr_in` or `sockaddr_in6`.
fn address(b: &[u8; ADDRESS]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([b[2], b[3]]);
    match i32::from(u16::from_ne_bytes([b[0], b[1]])) {
        libc::AF_INET => {
            let ip: [u8; 4] = b[4..8].try_into().ok()?;
            Some(SocketAddrV4::new(ip.into(), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = b[8..24].try_into().ok()?;
            let scope = u32::from_ne_bytes(b[24..28].try_into().ok()?);
            Some(SocketAddrV6::new(ip.into(), port, 0, scope).into())
        }
        _ => None,
    }
}

fn connection(r: &Record, shared: &Shared, table: usize, clean: bool) -> SysResult<Connection> {
    if r.errno != 0 {
        let call = STEPS.get(r.step as usize).copied().unwrap_or("a question");
        return Err(SysError::new(
            call,
            Errno::from_raw(r.errno),
            "a connection",
        ));
    }
    if r.left == 0 || !clean && r.entered == 0 {
        return Err(SysError::new(
            "waitpid",
            Errno::ECHILD,
            "the reader of connections was killed",
        ));
    }
    let positive = |n: i32| n.max(0) as u32;
    Ok(Connection {
        info: r.info,
        inq_len: positive(r.inq_len),
        inq_seq: r.inq_seq,
        outq_len: positive(r.outq_len),
        unsq_len: positive(r.unsq_len),
        outq_seq: r.outq_seq,
        mss: r.mss,
        timestamp: r.timestamp,
        window: r.window,
        receive: shared.bytes(table + r.at, r.received.min(r.receive_room)),
        send: shared.bytes(table + r.at + r.received, r.sent.min(r.send_room)),
    })
}

/// From now on the last close of this connection is silent: no FIN, no RST, nothing is left of it. For sockets whose program
/// is dead.
///
/// # Errors
/// setsockopt(2): EPERM without CAP_NET_ADMIN.
pub fn silence(socket: BorrowedFd<'_>) -> SysResult<()> {
    set_int(socket.as_raw_fd(), libc::SOL_TCP, TCP_REPAIR, TCP_REPAIR_ON)
        .map_err(|e| SysError::new("setsockopt(TCP_REPAIR)", Errno::from_raw(e), "a connection"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn a_connection_is_read_and_goes_on() {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let (mut b, _) = l.accept().unwrap();
        b.write_all(b"to a").unwrap();
        while ask(a.as_raw_fd(), SIOCINQ) != Ok(4) {}
        set_int(a.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        let got = read(&[a.as_fd(), b.as_fd()]).unwrap();
        let (x, y) = match &got[..] {
            [Ok(x), Ok(y)] => (x, y),
            // without the right nothing must have changed either
            other => panic!("{other:?}"),
        };
        assert_eq!(x.receive, b"to a");
        assert_eq!(x.info[0], 1);
        assert_eq!((x.inq_seq, x.outq_seq), (y.outq_seq, y.inq_seq));
        assert!(x.mss > 500 && x.window[3] > 1000, "{x:?}");
        assert_eq!(
            get_int(a.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR),
            Ok(1)
        );
        let mut buf = [0; 4];
        a.read_exact(&mut buf).unwrap();
        a.write_all(b"from a").unwrap();
        let mut buf = [0; 6];
        b.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"from a");
    }

    #[test]
    fn what_is_no_connection_is_an_error_of_its_own() {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let got = read(&[l.as_fd(), a.as_fd()]).unwrap();
        let e = got[0].as_ref().unwrap_err();
        assert_eq!(e.call, STEPS[0]);
        assert!(got[1].is_ok());
    }
}
