//! Options that all sockets have (socket(7)): into `sk_opts_entry` and out of it. Not a kind: what kinds of sockets share.
//! Long because it is a list: what is read stands beside how it is set again.
//!
//! **Dump.** [`read`] asks a duplicate with getsockopt(2). SO_ERROR is not asked: reading takes it away.
//!
//! **Restore.** [`plan`] gives rows for all but SO_REUSEADDR and SO_REUSEPORT, which the caller of bind(2) must play with
//! ([`reuse_rows`]), and the filter, which would judge what the caller puts into the queue ([`plan_filter`], last of all).
//! The kernel doubles what SO_SNDBUF and SO_RCVBUF are set to, so half of what was read is set: buffers do not grow from
//! one restore to the next. SO_BUF_LOCK comes behind them, so that a buffer that the kernel tuned is tuned again.
//!
//! Options that the image format has no field for are in an extension: a list of level, number and bytes. Only what
//! differs from the default is listed, and only options of our tables are taken from an image.
//!
//! **What does not come back.** A program loaded by bpf(2) as filter (SO_ATTACH_BPF) is refused by name. Buffers above
//! net.core.{w,r}mem_max need CAP_NET_ADMIN in the initial user namespace, else they are cut to that and a warning tells.
use super::act::Stagehand;
use super::common::ask;
use super::{Act, PlanCx, Seen};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef, Part};
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_proto::pb;
use std::borrow::Cow;
use std::fmt;
use std::os::fd::AsFd;

/// An option that is carried as level, number and bytes.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// SOL_SOCKET, IPPROTO_IP, ...
    pub level: i32,
    /// Its number there.
    pub name: i32,
    /// Its name for people.
    pub text: &'static str,
    /// Length of its value in bytes.
    pub len: usize,
    /// Its value in a new socket, as a little-endian number; not in the image.
    pub default: u64,
    /// It may be refused at restore for lack of privileges, because it only concerns speed or debugging.
    pub soft: bool,
}

impl Opt {
    /// An `int`.
    pub const fn int(level: i32, name: i32, text: &'static str, default: i32) -> Self {
        Self {
            level,
            name,
            text,
            len: 4,
            default: default as u32 as u64,
            soft: false,
        }
    }
    /// So many bytes that are 0 in a new socket.
    pub const fn bytes(level: i32, name: i32, text: &'static str, len: usize) -> Self {
        Self {
            level,
            name,
            text,
            len,
            default: 0,
            soft: false,
        }
    }
    /// The same, may be refused.
    pub const fn soft(mut self) -> Self {
        self.soft = true;
        self
    }
    /// Does an image mean this one?
    pub fn is(&self, o: &pb::StasisSockopt) -> bool {
        (self.level as u32, self.name as u32) == (o.level, o.name)
    }
    fn is_default(&self, value: &[u8]) -> bool {
        let d = self.default.to_le_bytes();
        let want = (0..self.len).map(|i| d.get(i).copied().unwrap_or(0));
        value.iter().copied().eq(want)
    }
}

const SOCKET: i32 = libc::SOL_SOCKET;
/// Since Linux 5.14 (asm-generic/socket.h), like those below not in libc for all targets.
const SO_BUF_LOCK: i32 = 72;
const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;

/// Options of level SOL_SOCKET that the image format has no field for. In the order in which they are set.
pub static SOCKET_OPTIONS: &[Opt] = &[
    Opt::int(SOCKET, libc::SO_DEBUG, "SO_DEBUG", 0).soft(),
    Opt::int(SOCKET, libc::SO_TIMESTAMP, "SO_TIMESTAMP", 0),
    Opt::int(SOCKET, libc::SO_TIMESTAMPNS, "SO_TIMESTAMPNS", 0),
    // struct so_timestamping: flags, and the clock they are of (KERNEL(>=5.13))
    Opt::bytes(SOCKET, libc::SO_TIMESTAMPING, "SO_TIMESTAMPING", 8),
    Opt::int(SOCKET, 63, "SO_TIMESTAMP_NEW", 0),
    Opt::int(SOCKET, 64, "SO_TIMESTAMPNS_NEW", 0),
    Opt::bytes(SOCKET, 65, "SO_TIMESTAMPING_NEW", 8),
    Opt::int(SOCKET, libc::SO_RXQ_OVFL, "SO_RXQ_OVFL", 0),
    Opt::int(SOCKET, 41, "SO_WIFI_STATUS", 0),
    Opt::int(SOCKET, 42, "SO_PEEK_OFF", -1),
    Opt::int(SOCKET, 43, "SO_NOFCS", 0),
    Opt::int(SOCKET, 45, "SO_SELECT_ERR_QUEUE", 0),
    Opt::int(SOCKET, 46, "SO_BUSY_POLL", 0).soft(),
    Opt {
        level: SOCKET,
        name: 47,
        text: "SO_MAX_PACING_RATE",
        len: 8,
        default: u64::MAX,
        soft: false,
    },
    Opt::int(SOCKET, 60, "SO_ZEROCOPY", 0),
    // struct sock_txtime: clock and flags
    Opt::bytes(SOCKET, 61, "SO_TXTIME", 8).soft(),
    Opt::int(SOCKET, 69, "SO_PREFER_BUSY_POLL", 0).soft(),
    Opt::int(SOCKET, 75, "SO_RCVMARK", 0),
    Opt::int(SOCKET, 76, "SO_PASSPIDFD", 0),
    Opt::int(SOCKET, 82, "SO_RCVPRIORITY", 0),
    // KERNEL(>=6.16): on in a new socket, and only sockets that can be sent descriptors know it
    Opt::int(SOCKET, 83, "SO_PASSRIGHTS", 1),
    Opt::int(SOCKET, 84, "SO_INQ", 0),
];

/// getsockopt(2). `None`: the socket or the kernel does not have this option.
///
/// # Errors
/// Any other answer than a value, EOPNOTSUPP, ENOPROTOOPT or EINVAL.
pub fn get(
    fd: impl AsFd,
    level: i32,
    name: i32,
    len: usize,
) -> std::result::Result<Option<Vec<u8>>, SysError> {
    let mut value = vec![0; len];
    // fifty options of each socket are asked: no rows
    match fds::getsockopt(fd.as_fd(), level, name, &mut value) {
        Ok(n) => {
            value.truncate(n);
            Ok(Some(value))
        }
        Err(e) => absent(e),
    }
}

/// The kernel's ways to say that it does not know an option.
fn absent<T>(e: SysError) -> std::result::Result<Option<T>, SysError> {
    match e.errno {
        Errno::EOPNOTSUPP | Errno::ENOPROTOOPT | Errno::EINVAL => Ok(None),
        _ => Err(e),
    }
}

/// [`get`] of an `int`.
///
/// # Errors
/// As [`get`].
pub fn get_int(fd: impl AsFd, level: i32, name: i32) -> std::result::Result<Option<i32>, SysError> {
    let v = get(fd, level, name, 4)?;
    Ok(v.filter(|v| v.len() == 4).map(|v| word(&v, 0) as i32))
}

/// The 32-bit word at this offset; 0 beyond the end.
pub fn word(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn level_arg(level: i32) -> Arg {
    Arg::Named(level as u64, level_name(level))
}

/// `SOL_SOCKET`, `SOL_IP`, ...
pub fn level_name(level: i32) -> Cow<'static, str> {
    Cow::Borrowed(match level {
        libc::SOL_SOCKET => "SOL_SOCKET",
        libc::SOL_IP => "SOL_IP",
        libc::SOL_TCP => "SOL_TCP",
        libc::SOL_UDP => "SOL_UDP",
        libc::SOL_IPV6 => "SOL_IPV6",
        libc::SOL_RAW => "SOL_RAW",
        libc::IPPROTO_ICMPV6 => "SOL_ICMPV6",
        libc::IPPROTO_UDPLITE => "SOL_UDPLITE",
        libc::SOL_PACKET => "SOL_PACKET",
        libc::SOL_NETLINK => "SOL_NETLINK",
        n => return Cow::Owned(format!("level {n}")),
    })
}

/// Row: setsockopt(2).
pub fn set_row(file: FdRef, level: i32, name: i32, text: &'static str, value: &[u8]) -> Call {
    set_arg(Arg::Fd(file), level, name, text, value)
}

/// Row: setsockopt(2) of an `int`.
pub fn set_int_row(file: FdRef, level: i32, name: i32, text: &'static str, value: i32) -> Call {
    set_row(file, level, name, text, &value.to_le_bytes())
}

/// Row: setsockopt(2) on a descriptor given in any form.
pub fn set_arg(fd: Arg, level: i32, name: i32, text: &'static str, value: &[u8]) -> Call {
    Call::new(
        libc::SYS_setsockopt,
        vec![
            fd,
            level_arg(level),
            Arg::Named(name as u64, text.into()),
            Arg::In(value.to_vec()),
            Arg::Int(value.len() as u64),
        ],
    )
}

/// Reads all options of a socket that are common to all families.
///
/// # Errors
/// A filter that is an eBPF program; getsockopt(2).
pub fn read(seen: &Seen) -> Result<pb::SkOptsEntry> {
    let fd = seen.fd;
    let int = |name| get_int(fd, SOCKET, name);
    let some = |name| Ok::<_, Error>(int(name)?.map(|v| v as u32));
    let flag = |name| Ok::<_, Error>(int(name)?.map(|v| v != 0));
    let time = |name| -> Result<(u64, u64)> {
        let v = get(fd, SOCKET, name, 16)?.unwrap_or_default();
        let part = |at: usize| {
            let b = v
                .get(at..at + 8)
                .map(|b| b.try_into().expect("eight bytes"));
            b.map_or(0, u64::from_le_bytes)
        };
        Ok((part(0), part(8)))
    };
    let (snd, rcv) = (time(libc::SO_SNDTIMEO)?, time(libc::SO_RCVTIMEO)?);
    let linger = get(fd, SOCKET, libc::SO_LINGER, 8)?.unwrap_or_default();
    let device = get(fd, SOCKET, libc::SO_BINDTODEVICE, libc::IFNAMSIZ)?.unwrap_or_default();
    let device: Vec<u8> = device.into_iter().take_while(|b| *b != 0).collect();
    Ok(pb::SkOptsEntry {
        so_sndbuf: some(libc::SO_SNDBUF)?.unwrap_or(0),
        so_rcvbuf: some(libc::SO_RCVBUF)?.unwrap_or(0),
        so_snd_tmo_sec: snd.0,
        so_snd_tmo_usec: snd.1,
        so_rcv_tmo_sec: rcv.0,
        so_rcv_tmo_usec: rcv.1,
        reuseaddr: flag(libc::SO_REUSEADDR)?,
        so_priority: some(libc::SO_PRIORITY)?,
        so_rcvlowat: some(libc::SO_RCVLOWAT)?,
        // setting it takes a privilege, so the default is left out
        so_mark: some(libc::SO_MARK)?.filter(|m| *m != 0),
        so_passcred: flag(libc::SO_PASSCRED)?,
        so_passsec: flag(libc::SO_PASSSEC)?,
        so_dontroute: flag(libc::SO_DONTROUTE)?,
        so_no_check: flag(libc::SO_NO_CHECK)?,
        so_bound_dev: (!device.is_empty()).then(|| String::from_utf8_lossy(&device).into_owned()),
        so_filter: filter(seen)?,
        so_reuseport: flag(libc::SO_REUSEPORT)?,
        so_broadcast: flag(libc::SO_BROADCAST)?,
        so_keepalive: flag(libc::SO_KEEPALIVE)?,
        so_oobinline: some(libc::SO_OOBINLINE)?,
        so_linger: (word(&linger, 0) != 0).then(|| word(&linger, 4)),
        so_buf_lock: some(SO_BUF_LOCK)?,
        stasis: [SOCKET_OPTIONS, LOCK]
            .into_iter()
            .map(|t| read_extra(fd, t))
            .collect::<Result<Vec<_>>>()?
            .concat(),
        ..Default::default()
    })
}

/// Reads the sizes of a socket's buffers again.
///
/// # Errors
/// getsockopt(2).
pub fn read_sizes(fd: impl AsFd, o: &mut pb::SkOptsEntry) -> Result<()> {
    let size = |name| get_int(fd.as_fd(), SOCKET, name).map(|v| v.unwrap_or(0) as u32);
    (o.so_sndbuf, o.so_rcvbuf) = (size(libc::SO_SNDBUF)?, size(libc::SO_RCVBUF)?);
    Ok(())
}

/// Reads options of a table; those that have their default, or do not exist, are left out.
///
/// # Errors
/// getsockopt(2).
pub fn read_extra(fd: impl AsFd, table: &[Opt]) -> Result<Vec<pb::StasisSockopt>> {
    let mut all = Vec::new();
    for o in table {
        let v = get(fd.as_fd(), o.level, o.name, o.len)?;
        if let Some(value) = v.filter(|v| v.len() == o.len && !o.is_default(v)) {
            all.push(pb::StasisSockopt {
                level: o.level as u32,
                name: o.name as u32,
                value,
            });
        }
    }
    Ok(all)
}

/// The attached filter, one word per instruction: code << 48, jt << 40, jf << 32, k.
fn filter(seen: &Seen) -> Result<Vec<u64>> {
    const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;
    /// `struct sock_filter`; the length of this option is counted in these.
    const INSTRUCTION: usize = 8;
    let ask_for = |room: usize| {
        let args = vec![
            level_arg(SOCKET),
            Arg::Named(SO_GET_FILTER as u64, "SO_GET_FILTER".into()),
            Arg::Out(room * INSTRUCTION),
            Arg::InOut((room as u32).to_le_bytes().to_vec()),
        ];
        let a = match ask(seen.fd, libc::SYS_getsockopt, args) {
            Ok(a) => a,
            // KERNEL: sk_get_filter() (net/core/filter.c): a program from bpf(2) has no text to give
            Err(e) if e.errno == Errno::EACCES => {
                return Err(seen.refuse("E4550", "its filter is an eBPF program (SO_ATTACH_BPF), which the kernel does not give out", "detach it before the dump (SO_DETACH_FILTER)"));
            }
            Err(e) => return Ok(absent(e)?.unwrap_or((0, Vec::new()))),
        };
        Ok((word(a.out(4), 0) as usize, a.out(3).to_vec()))
    };
    let (n, _) = ask_for(0)?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let (got, text) = ask_for(n)?;
    let encode = |b: &[u8]| {
        let code = u64::from(u16::from_le_bytes([b[0], b[1]]));
        code << 48 | u64::from(b[2]) << 40 | u64::from(b[3]) << 32 | u64::from(word(b, 4))
    };
    Ok(text
        .chunks_exact(INSTRUCTION)
        .take(got)
        .map(encode)
        .collect())
}

/// Rows that give a socket its options, but for those of [`reuse_rows`], [`plan_buffers`], [`plan_device`] and [`plan_filter`].
///
/// # Errors
/// An image that lists an option no table has, or with another length.
pub fn plan(cx: &mut PlanCx, file: FdRef, o: &pb::SkOptsEntry) -> Result<()> {
    if let Some(n) = o.so_rcvlowat.filter(|n| *n != 1) {
        set(cx, file, libc::SO_RCVLOWAT, "SO_RCVLOWAT", n);
    }
    if let Some(n) = o.so_priority.filter(|n| *n != 0) {
        set(cx, file, libc::SO_PRIORITY, "SO_PRIORITY", n);
    }
    if let Some(n) = o.so_mark.filter(|n| *n != 0) {
        set(cx, file, libc::SO_MARK, "SO_MARK", n);
    }
    let flags = [
        (o.so_passcred, libc::SO_PASSCRED, "SO_PASSCRED"),
        (o.so_passsec, libc::SO_PASSSEC, "SO_PASSSEC"),
        (o.so_dontroute, libc::SO_DONTROUTE, "SO_DONTROUTE"),
        (o.so_no_check, libc::SO_NO_CHECK, "SO_NO_CHECK"),
        (o.so_broadcast, libc::SO_BROADCAST, "SO_BROADCAST"),
        (o.so_keepalive, libc::SO_KEEPALIVE, "SO_KEEPALIVE"),
        (
            o.so_oobinline.map(|n| n != 0),
            libc::SO_OOBINLINE,
            "SO_OOBINLINE",
        ),
    ];
    for (on, name, text) in flags {
        if on == Some(true) {
            set(cx, file, name, text, 1);
        }
    }
    if let Some(seconds) = o.so_linger {
        let v = [1u32.to_le_bytes(), seconds.to_le_bytes()].concat();
        cx.host(
            set_row(file, SOCKET, libc::SO_LINGER, "SO_LINGER", &v),
            "option of a socket",
        );
    }
    for (sec, usec, name, text) in [
        (
            o.so_snd_tmo_sec,
            o.so_snd_tmo_usec,
            libc::SO_SNDTIMEO,
            "SO_SNDTIMEO",
        ),
        (
            o.so_rcv_tmo_sec,
            o.so_rcv_tmo_usec,
            libc::SO_RCVTIMEO,
            "SO_RCVTIMEO",
        ),
    ] {
        if (sec, usec) != (0, 0) {
            let v = [sec.to_le_bytes(), usec.to_le_bytes()].concat();
            cx.host(set_row(file, SOCKET, name, text, &v), "timeout of a socket");
        }
    }
    plan_extra(cx, file, &o.stasis, SOCKET_OPTIONS)
}

/// Row that binds a socket to its device. Part of binding it to an address: addresses of a link need it.
pub fn plan_device(cx: &mut PlanCx, file: FdRef, o: &pb::SkOptsEntry) {
    if let Some(row) = device_row(file, o) {
        cx.host(row, "the device it is bound to");
    }
}

/// The row of [`plan_device`].
pub fn device_row(file: FdRef, o: &pb::SkOptsEntry) -> Option<Call> {
    let name = o.so_bound_dev.as_deref().filter(|n| !n.is_empty())?;
    Some(set_row(
        file,
        SOCKET,
        libc::SO_BINDTODEVICE,
        "SO_BINDTODEVICE",
        name.as_bytes(),
    ))
}

/// The sizes of a socket's buffers. Behind SO_RCVLOWAT of [`plan`]: the kernel makes a buffer larger when it could not hold so much.
pub fn plan_buffers(cx: &mut PlanCx, file: FdRef, o: &pb::SkOptsEntry) {
    let buffers = Buffers::of(file, o);
    cx.act_at(cx.stage(), Act::Buffers(buffers), "buffers of a socket");
}

fn set(cx: &mut PlanCx, file: FdRef, name: i32, text: &'static str, value: u32) {
    let row = set_int_row(file, SOCKET, name, text, value as i32);
    cx.host(row, "option of a socket");
}

/// Rows for those options of a list that this table has. The caller says with [`known`] that no others are in it.
///
/// # Errors
/// A value of another length than the table says.
pub fn plan_extra(
    cx: &mut PlanCx,
    file: FdRef,
    all: &[pb::StasisSockopt],
    table: &[Opt],
) -> Result<()> {
    for o in table {
        let is = |s: &&pb::StasisSockopt| (s.level, s.name) == (o.level as u32, o.name as u32);
        let Some(s) = all.iter().find(is) else {
            continue;
        };
        if s.value.len() != o.len {
            return Err(bad(format!(
                "{} has {} bytes, not {}",
                o.text,
                s.value.len(),
                o.len
            )));
        }
        let row = set_row(file, o.level, o.name, o.text, &s.value);
        let row = if o.soft { row.any() } else { row };
        cx.host(row, "option of a socket");
    }
    Ok(())
}

/// Does every option of the list stand in one of these tables?
///
/// # Errors
/// One does not: the image is of a later version, or damaged.
pub fn known(all: &[pb::StasisSockopt], tables: &[&[Opt]]) -> Result<()> {
    let has = |s: &pb::StasisSockopt| {
        let mut rows = tables.iter().copied().flatten();
        rows.any(|o| (s.level, s.name) == (o.level as u32, o.name as u32))
    };
    match all.iter().find(|s| !has(s)) {
        None => Ok(()),
        Some(s) => Err(bad(format!(
            "option {} of level {} is not known",
            s.name,
            level_name(s.level as i32)
        ))),
    }
}

pub(super) fn bad(why: String) -> Error {
    Error::new("E5550", Blame::Image, "options of a socket")
        .why(why)
        .advice("dump again, or restore with the version that dumped")
}

/// Rows that allow or forbid others to use the same address.
pub fn reuse_rows(file: FdRef, addr: bool, port: bool) -> [Call; 2] {
    let row = |name, text, on| set_int_row(file, SOCKET, name, text, i32::from(on));
    [
        row(libc::SO_REUSEADDR, "SO_REUSEADDR", addr),
        row(libc::SO_REUSEPORT, "SO_REUSEPORT", port),
    ]
}

/// The filter and its lock: when the socket has what it had in its queue.
pub fn plan_filter(cx: &mut PlanCx, file: FdRef, o: &pb::SkOptsEntry) -> Result<()> {
    if o.so_filter.is_empty() {
        return Ok(());
    }
    let len = u16::try_from(o.so_filter.len())
        .map_err(|_| bad(format!("a filter of {} instructions", o.so_filter.len())))?;
    let mut text = Vec::with_capacity(o.so_filter.len() * 8);
    for w in &o.so_filter {
        text.extend_from_slice(&((w >> 48) as u16).to_le_bytes());
        text.extend([(w >> 40) as u8, (w >> 32) as u8]);
        text.extend_from_slice(&(*w as u32).to_le_bytes());
    }
    // struct sock_fprog: a length, padding, a pointer
    let program = Arg::Struct(vec![
        Part::Bytes(u64::from(len).to_le_bytes().to_vec()),
        Part::Ptr(Arg::In(text)),
    ]);
    let row = Call::new(
        libc::SYS_setsockopt,
        vec![
            Arg::Fd(file),
            level_arg(SOCKET),
            Arg::Named(libc::SO_ATTACH_FILTER as u64, "SO_ATTACH_FILTER".into()),
            program,
            Arg::Int(16),
        ],
    );
    cx.host(row, "filter of a socket");
    plan_extra(cx, file, &o.stasis, LOCK)
}

/// What makes the filter unchangeable.
pub static LOCK: &[Opt] = &[Opt::int(SOCKET, 44, "SO_LOCK_FILTER", 0)];

/// Gives a socket buffers of these sizes, as far as the host allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// The socket.
    pub file: FdRef,
    /// What SO_SNDBUF told, in bytes.
    pub send: u32,
    /// What SO_RCVBUF told, in bytes.
    pub receive: u32,
    /// SO_BUF_LOCK: which of them the program set itself.
    pub lock: Option<u32>,
}

impl Buffers {
    /// Those of an image.
    pub fn of(file: FdRef, o: &pb::SkOptsEntry) -> Self {
        Buffers {
            file,
            send: o.so_sndbuf,
            receive: o.so_rcvbuf,
            lock: o.so_buf_lock,
        }
    }
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let two = [
            (
                self.send,
                (SO_SNDBUFFORCE, "SO_SNDBUFFORCE"),
                (libc::SO_SNDBUF, "SO_SNDBUF"),
            ),
            (
                self.receive,
                (SO_RCVBUFFORCE, "SO_RCVBUFFORCE"),
                (libc::SO_RCVBUF, "SO_RCVBUF"),
            ),
        ];
        for (bytes, force, (plain, text)) in two {
            // KERNEL: sock_setsockopt() (net/core/sock.c) doubles what it is given
            let half = (bytes / 2).min(i32::MAX as u32 / 2) as i32;
            if half == 0 {
                continue;
            }
            let forced = set_int_row(self.file, SOCKET, force.0, force.1, half);
            match on.host.play(&forced) {
                Ok(_) => continue,
                Err(e) if e.is_denied() => {
                    on.host
                        .play(&set_int_row(self.file, SOCKET, plain, text, half))?;
                }
                Err(e) => return Err(e.into()),
            }
            let now = get_int(on.fd(self.file)?, SOCKET, plain)?.unwrap_or(0);
            if (now as u32) < bytes & !1 {
                tracing::warn!(
                    "{text} of file#{} is {now} bytes and was {bytes}: raise net.core.{} or restore with CAP_NET_ADMIN",
                    self.file.0,
                    if plain == libc::SO_SNDBUF {
                        "wmem_max"
                    } else {
                        "rmem_max"
                    },
                );
            }
        }
        if let Some(lock) = self.lock {
            // KERNEL(>=5.14): before it, the sizes stay as they are now
            on.host.play(
                &set_int_row(self.file, SOCKET, SO_BUF_LOCK, "SO_BUF_LOCK", lock as i32).any(),
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "buffers(file#{}, send {}, receive {}",
            self.file.0, self.send, self.receive
        )?;
        match self.lock {
            Some(l) => write!(f, ", lock {l})"),
            None => f.write_str(")"),
        }
    }
}

#[cfg(test)]
#[path = "sockopts_tests.rs"]
mod tests;
