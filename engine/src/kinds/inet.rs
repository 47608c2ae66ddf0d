//! Internet sockets: TCP, UDP, UDP-Lite, raw and ping, of both versions. Long because the rows of a restore stand beside what the
//! dump reads.
//!
//! **What it is.** An open file of sockfs whose domain is AF_INET or AF_INET6. Everything about it is asked with
//! getsockopt(2) and friends from our duplicate; options that have no field in the image format are in an extension (see
//! `sockopts.rs` and `inet_options.rs`).
//!
//! **TCP.** Closed, bound and listening sockets come back with their options, backlog and fast open. Connections need
//! `--tcp-established`; their queues, sequence numbers, windows and negotiated options are in `tcp-stream-HEX.img`. See
//! `tcp.rs` for how they are read, `tcp_acts.rs` for how they are made again. With `--tcp-close` a connection comes back as
//! one that was shut down. Connections that nobody has accepted yet come back in
//! the queue of their listening socket (`tcp_queue.rs`); with `--skip-in-flight` they are left behind.
//!
//! **UDP.** Addresses, options, multicast groups, and a shutdown of the receiving side. Datagrams that wait come
//! back (`udp_queue.rs`), and part of a datagram that is held back by UDP_CORK or MSG_MORE (`udp_cork.rs`).
//!
//! **Restore.** All sockets are made and bound first, then those that listen do so, then connections are made, so that a port can
//! have a listener and its connections. With `--tcp-remap OLD=NEW` a socket gets another local address.
//!
//! **What does not come back.** MPTCP connections (listening MPTCP sockets do), SCTP, DCCP: refused by name. Errors that
//! wait to be told (SO_ERROR, MSG_ERRQUEUE). What waits in raw and ping sockets. The device of IP_MULTICAST_IF when it was
//! named by its index. TCP-MD5 and TCP-AO keys. eBPF programs that choose a socket of an SO_REUSEPORT group.
//!
//! Guests: tcp_listen, tcp_loop, tcp_v6, tcp_opts, tcp_states, tcp_reuseport, tcp_queued, tcp_unaccepted, udp, udp_queue, udp_cork,
//! udp_multicast, raw, ping.
use super::common::{ask_int, body, settle};
use super::inet_address::{self as address, Bind};
use super::inet_options::{self as options, IPPROTO_MPTCP, Sort, state};
use super::sockopts::Buffers;
use super::sockopts::{self, get, get_int, set_int_row, word};
use super::tcp_acts::{Connect, Wake};
use super::{
    Act, DumpCx, FileKind, PlanCx, Seen, Stage, inet_groups, malformed, tcp, tcp_queue, twins,
    udp_cork, udp_queue,
};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::host::Host;
use stasis_kernel::names;
use stasis_proto::{Kind, pb};
use std::net::SocketAddr;

/// The kind.
pub struct Inet;

/// ioctl(2): bytes that wait to be sent.
pub(super) const SIOCOUTQ: u64 = 0x5411;
/// ioctl(2): bytes that wait to be received; of a datagram socket, those of the first one.
pub(super) const SIOCINQ: u64 = 0x541b;

/// Family, type and protocol, if it is an internet socket.
pub(super) fn sort(seen: &Seen) -> Option<Sort> {
    let int = |name| get_int(seen.fd, libc::SOL_SOCKET, name).ok().flatten();
    let family = int(libc::SO_DOMAIN)?;
    matches!(family, libc::AF_INET | libc::AF_INET6).then_some(())?;
    Some(Sort {
        family,
        kind: int(libc::SO_TYPE)?,
        protocol: int(libc::SO_PROTOCOL)?,
    })
}

/// What TCP_INFO tells first (linux/tcp.h).
#[derive(Debug, Clone, Copy)]
pub(super) struct TcpInfo {
    pub state: u32,
    /// Of a listening socket: connections that wait to be accepted.
    pub waiting: u32,
    /// Of a listening socket: its backlog.
    pub backlog: u32,
}

pub(super) fn tcp_info(seen: &Seen) -> Result<TcpInfo> {
    /// Up to and with `tcpi_sacked`.
    const LEN: usize = 32;
    let v = get(seen.fd, libc::SOL_TCP, libc::TCP_INFO, LEN)?.unwrap_or_default();
    Ok(TcpInfo {
        state: v.first().map_or(state::CLOSE, |s| u32::from(*s)),
        waiting: word(&v, 24),
        backlog: word(&v, 28),
    })
}

/// All options of an internet socket.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) opts: pb::SkOptsEntry,
    ip: pb::IpOptsEntry,
    tcp: Option<pb::TcpOptsEntry>,
    v6only: Option<bool>,
    congestion: Option<String>,
    others: Vec<pb::StasisSockopt>,
}

impl Asked {
    /// Asks a socket in a state for all of them.
    pub(super) fn of(seen: &Seen, s: Sort, state: u32) -> Result<Self> {
        let tables = s.options(state).into_iter();
        let others = tables.map(|t| sockopts::read_extra(seen.fd, t));
        let v6only = match s.family == libc::AF_INET6 {
            true => get_int(seen.fd, libc::SOL_IPV6, libc::IPV6_V6ONLY)?,
            false => None,
        };
        Ok(Asked {
            opts: sockopts::read(seen)?,
            ip: options::read_ip(seen.fd, s)?,
            tcp: match s.is_tcp() {
                true => Some(options::read_tcp(seen.fd)?),
                false => None,
            },
            v6only: v6only.map(|v| v != 0),
            congestion: match s.is_tcp() {
                true => options::tcp_text(seen.fd, libc::TCP_CONGESTION)?,
                false => None,
            },
            others: others.collect::<Result<Vec<_>>>()?.concat(),
        })
    }
    /// Asks again what is each socket's own.
    pub(super) fn own(&mut self, seen: &Seen, s: Sort) -> Result<()> {
        sockopts::read_sizes(seen.fd, &mut self.opts)?;
        if s.family == libc::AF_INET6 {
            let own = options::ROUTE_OPTIONS;
            let is_own = |o: &pb::StasisSockopt| own.iter().any(|w| w.is(o));
            self.others.retain(|o| !is_own(o));
            self.others.extend(sockopts::read_extra(seen.fd, own)?);
        }
        Ok(())
    }
}

/// Which directions are shut down, as far as poll(2) tells: not a send direction alone.
fn shut_down(seen: &Seen, closed: bool) -> Result<pb::SkShutdown> {
    let asked = libc::POLLRDHUP;
    let mut pollfd = (address::raw_fd(seen.fd) as u32).to_le_bytes().to_vec();
    pollfd.extend_from_slice(&asked.to_le_bytes());
    pollfd.extend([0, 0]);
    let row = Call::new(
        libc::SYS_poll,
        vec![Arg::InOut(pollfd), Arg::Int(1), Arg::Int(0)],
    );
    let a = Host::default().play(&row)?;
    let told = (word(a.out(0), 4) >> 16) as i16;
    let has = |f: i16| told & f != 0;
    // KERNEL: a TCP socket that is closed always says POLLHUP (net/ipv4/tcp.c, tcp_poll())
    let both = has(libc::POLLHUP) && !closed;
    Ok(match has(libc::POLLRDHUP) {
        true if both => pb::SkShutdown::Both,
        true => pb::SkShutdown::Read,
        false => pb::SkShutdown::None,
    })
}

impl FileKind for Inet {
    fn name(&self) -> &'static str {
        "inet"
    }
    fn about(&self) -> &'static str {
        "internet sockets: TCP, UDP, UDP-Lite, raw, ping, with options; MPTCP connections and SCTP do not come back"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Inetsk
    }
    fn claims(&self, seen: &Seen) -> bool {
        seen.file_type() == libc::S_IFSOCK && sort(seen).is_some()
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let s = sort(seen).ok_or_else(|| Error::bug("claimed and not an internet socket"))?;
        named(seen, s)?;
        let local = address::local(seen.fd)?;
        let mut peer = address::peer(seen.fd, s.family)?;
        let info = match s.is_tcp() {
            true => Some(tcp_info(seen)?),
            false => None,
        };
        let state = match &info {
            Some(i) => i.state,
            None if peer.is_some() => state::ESTABLISHED,
            None => state::CLOSE,
        };
        let asked = match state {
            state::CLOSE | state::LISTEN => Asked::of(seen, s, state)?,
            _ => twins::tcp(seen, (s, state), cx)?,
        };
        let mut e = pb::InetSkEntry {
            id,
            ino: seen.stat.st_ino as u32,
            family: s.family as u32,
            r#type: s.kind as u32,
            proto: s.protocol as u32,
            state,
            flags: seen.flags,
            fown: seen.fown,
            opts: asked.opts,
            ip_opts: Some(asked.ip),
            tcp_opts: asked.tcp,
            v6only: asked.v6only,
            ..Default::default()
        };
        if let Some(SocketAddr::V6(a)) = local
            && a.scope_id() != 0
        {
            e.ifname = Some(address::device_name(seen.fd, a.scope_id())?);
        }
        let mut extra = pb::StasisInetSkEntry {
            congestion: asked.congestion,
            options: asked.others,
            ..Default::default()
        };
        if let Some(info) = info {
            if info.state == state::LISTEN {
                e.backlog = info.backlog;
                tcp_queue::meet(seen, id, info.waiting, cx)?;
            }
            if info.state == state::CLOSE {
                closed(seen, peer.is_some(), cx)?;
                peer = None;
            }
            if !matches!(info.state, state::CLOSE | state::LISTEN) {
                tcp::meet(seen, id, info.state, cx)?;
            }
            let how = shut_down(seen, info.state == state::CLOSE)?;
            if how != pb::SkShutdown::None {
                e.shutdown = Some(how as i32);
            }
        } else {
            if s.is_raw() {
                peer = raw_peer(seen, s.family)?;
            }
            if s.is_udp() {
                let how = shut_down(seen, false)?;
                e.shutdown = (how != pb::SkShutdown::None).then_some(how as i32);
                extra.corked = udp_cork::read(seen, cx)?;
                if !cx.options.network.skip_in_flight {
                    extra.datagrams = udp_queue::read(seen, cx)?;
                }
            } else {
                dropped(seen, cx);
            }
            extra.membership = inet_groups::read(seen, s)?;
        }
        if extra != Default::default() {
            e.stasis = Some(extra);
        }
        e.src_port = local.map_or(0, |a| a.port().into());
        e.dst_port = peer.map_or(0, |a| a.port().into());
        e.src_addr = address::words(local.as_ref(), s.family);
        e.dst_addr = address::words(peer.as_ref(), s.family);
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            isk: Some(Box::new(e)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.isk, "isk")?;
        let s = checked(entry, e)?;
        let map = &cx.options.network.addresses;
        let local = address::from_words(entry, s.family, &e.src_addr, e.src_port)?;
        let local = address::moved(map, local);
        let peer = address::from_words(entry, s.family, &e.dst_addr, e.dst_port)?;
        let peer = address::peer_moved(map, peer, cx.files);
        let file = cx.file(entry.id);
        cx.host(
            Call::new(
                libc::SYS_socket,
                vec![
                    Arg::Named(e.family.into(), names::socket_family(e.family.into())),
                    Arg::Named(
                        (s.kind | libc::SOCK_CLOEXEC) as u64,
                        format!("{}|SOCK_CLOEXEC", names::socket_type(s.kind as u64)).into(),
                    ),
                    Arg::Int(e.proto.into()),
                ],
            )
            .binds(file),
            format!("an internet socket, {local}"),
        );
        options_before_bind(cx, file, s, e)?;
        if s.is_tcp() && e.dst_port != 0 {
            connection(entry, e, (local, peer), cx)?;
            sockopts::plan_filter(cx, file, &e.opts)?;
            settle(cx, file, e.flags, &e.fown);
            return Ok(());
        }
        sockopts::plan_device(cx, file, &e.opts);
        let bind = Bind {
            file,
            address: local,
            device: e.ifname.clone(),
        };
        let bound = e.src_port != 0 && !s.is_raw() || !local.ip().is_unspecified();
        if bound {
            cx.act_at(
                Stage::First,
                Act::Bind(bind),
                format!("its address {local}"),
            );
        }
        if e.state == state::LISTEN {
            let row = Call::new(
                libc::SYS_listen,
                vec![Arg::Fd(file), Arg::Int(e.backlog.into())],
            );
            cx.host_at(Stage::Second, row, format!("{local} listens"));
            tcp_queue::plan(entry, e, cx)?;
        } else if !peer.ip().is_unspecified() {
            let b = address::sockaddr(&peer);
            let len = Arg::Int(b.len() as u64);
            let row = Call::new(libc::SYS_connect, vec![Arg::Fd(file), Arg::In(b), len]);
            cx.host_at(Stage::Second, row, format!("{local} talks to {peer}"));
        }
        if s.is_udp() {
            if !cx.options.network.skip_in_flight {
                udp_queue::plan(e, s, local, cx);
            }
            udp_cork::plan(entry, e, s, cx)?;
        }
        if let Some(extra) = &e.stasis {
            inet_groups::plan(cx, file, &extra.membership);
        }
        if let Some(how) = shutdown_row(file, e) {
            cx.host_at(Stage::Second, how, "a direction that was shut down");
        }
        sockopts::plan_filter(cx, file, &e.opts)?;
        settle(cx, file, e.flags, &e.fown);
        Ok(())
    }
}

/// Plans a TCP connection.
fn connection(
    entry: &pb::FileEntry,
    e: &pb::InetSkEntry,
    (local, peer): (SocketAddr, SocketAddr),
    cx: &mut PlanCx,
) -> Result<()> {
    let file = cx.file(entry.id);
    let o = &cx.options.network;
    let image = Kind::TcpStream.file_of(e.ino);
    if o.tcp_close || !cx.dir.exists(&image)? {
        // dumped with --tcp-close, or so wanted now
        let row = Call::new(
            libc::SYS_shutdown,
            vec![
                Arg::Fd(file),
                Arg::Named(libc::SHUT_RDWR as u64, "SHUT_RDWR".into()),
            ],
        );
        cx.host(
            row.any(),
            format!("the connection to {peer} comes back closed"),
        );
        sockopts::plan_buffers(cx, file, &e.opts);
        return Ok(());
    }
    if !o.tcp_established {
        return Err(Error::new(
            "E2550",
            Blame::Caller,
            format!("the connection of {local} to {peer}"),
        )
        .why("the image has a TCP connection, and nothing was said about those")
        .advice("restore with --tcp-established, or with --tcp-close to have it closed"));
    }
    if !tcp::carried(e.state) {
        return Err(malformed(entry, "a connection in a state that has none"));
    }
    let stream: pb::TcpStreamEntry = cx
        .dir
        .reader(&image)?
        .read()?
        .ok_or_else(|| malformed(entry, "its tcp-stream image is empty"))?;
    let buffers = Buffers::of(file, &e.opts);
    let connect = Connect {
        file,
        local,
        device: e.ifname.clone(),
        peer,
        state: e.state,
        stream,
        image,
        buffers,
        mark: e.opts.so_mark.unwrap_or(0),
    };
    let wake = Wake {
        of: connect.clone(),
        reuse: e.opts.reuseaddr == Some(true),
    };
    let what = format!("connection of {local} to {peer}");
    cx.act_at(Stage::Second, Act::Connect(Box::new(connect)), what.clone());
    // a packet that is given to it comes over the loopback device
    if let Some(row) = sockopts::device_row(file, &e.opts) {
        cx.host_at(Stage::Second, row, "the device it is bound to");
    }
    if e.shutdown == Some(pb::SkShutdown::Read as i32)
        && e.state == state::ESTABLISHED
        && let Some(row) = shutdown_row(file, e)
    {
        cx.host_at(Stage::Second, row, "a direction that was shut down");
    }
    cx.act_at(Stage::Commit, Act::Wake(Box::new(wake)), what);
    Ok(())
}

/// Row: shutdown(2). Of an unconnected socket it says ENOTCONN and does it nevertheless.
fn shutdown_row(file: FdRef, e: &pb::InetSkEntry) -> Option<Call> {
    let (how, text) = match pb::SkShutdown::try_from(e.shutdown?).ok()? {
        pb::SkShutdown::None => return None,
        pb::SkShutdown::Read => (libc::SHUT_RD, "SHUT_RD"),
        pb::SkShutdown::Write => (libc::SHUT_WR, "SHUT_WR"),
        pb::SkShutdown::Both => (libc::SHUT_RDWR, "SHUT_RDWR"),
    };
    let row = Call::new(
        libc::SYS_shutdown,
        vec![Arg::Fd(file), Arg::Named(how as u64, text.into())],
    );
    Some(row.any())
}

/// Everything that may be set on a socket that is neither bound nor connected.
fn options_before_bind(cx: &mut PlanCx, file: FdRef, s: Sort, e: &pb::InetSkEntry) -> Result<()> {
    let o = &e.opts;
    sockopts::known(&o.stasis, &[sockopts::SOCKET_OPTIONS, sockopts::LOCK])?;
    if s.family == libc::AF_INET6
        && let Some(only) = e.v6only
        && !s.is_raw()
    {
        let row = set_int_row(
            file,
            libc::SOL_IPV6,
            libc::IPV6_V6ONLY,
            "IPV6_V6ONLY",
            only.into(),
        );
        cx.host(row, "whether it takes IPv4 too");
    }
    let repaired = s.is_tcp() && e.dst_port != 0;
    let [addr, port] = sockopts::reuse_rows(
        file,
        o.reuseaddr == Some(true),
        o.so_reuseport == Some(true),
    );
    // repair mode has a rule of its own, and the end of it brings the real value
    let addr = (!repaired && o.reuseaddr == Some(true)).then_some(addr);
    let port = (o.so_reuseport == Some(true)).then_some(port);
    for row in addr.into_iter().chain(port) {
        cx.host(row, "whether others may have its address");
    }
    // before SO_PRIORITY, which IP_TOS changes
    if let Some(ip) = &e.ip_opts {
        options::plan_ip(cx, file, s, ip)?;
    }
    sockopts::plan(cx, file, o)?;
    if !repaired {
        sockopts::plan_buffers(cx, file, o);
    }
    if let Some(t) = e.tcp_opts.as_ref().filter(|_| s.is_tcp()) {
        options::plan_tcp(cx, file, t);
    }
    let Some(extra) = &e.stasis else {
        return Ok(());
    };
    let tables = s.options(e.state);
    sockopts::known(&extra.options, &tables)?;
    for t in tables {
        sockopts::plan_extra(cx, file, &extra.options, t)?;
    }
    if let Some(name) = extra.congestion.as_deref().filter(|_| s.is_tcp()) {
        let row = sockopts::set_row(
            file,
            libc::SOL_TCP,
            libc::TCP_CONGESTION,
            "TCP_CONGESTION",
            name.as_bytes(),
        );
        cx.host(row, format!("congestion control {name}"));
    }
    Ok(())
}

/// The socket's sort, if it is one that can be made.
fn checked(entry: &pb::FileEntry, e: &pb::InetSkEntry) -> Result<Sort> {
    let s = Sort {
        family: e.family as i32,
        kind: e.r#type as i32,
        protocol: e.proto as i32,
    };
    if !matches!(s.family, libc::AF_INET | libc::AF_INET6) {
        return Err(malformed(entry, "its family is not an internet one"));
    }
    if !matches!(
        s.kind,
        libc::SOCK_STREAM | libc::SOCK_DGRAM | libc::SOCK_RAW
    ) || e.proto > 0xffff
    {
        return Err(malformed(entry, "its type or protocol is not known"));
    }
    Ok(s)
}

/// Refuses what cannot be carried, by name.
fn named(seen: &Seen, s: Sort) -> Result<()> {
    let refuse = |what: &str, advice: &str| Err(seen.refuse("E4551", what, advice));
    if s.is_raw() || s.is_udp() {
        return Ok(());
    }
    match (s.kind, s.protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => {
            match options::tcp_text(seen.fd, libc::TCP_ULP)? {
                Some(ulp) => refuse(
                    &format!(
                        "its protocol on top of TCP ({ulp}) is in the kernel, with keys that it does not give out"
                    ),
                    "let the program do it itself (for kTLS: turn it off in the TLS library)",
                ),
                None => Ok(()),
            }
        }
        (libc::SOCK_STREAM, IPPROTO_MPTCP) => match tcp_info(seen)?.state {
            state::CLOSE | state::LISTEN => Ok(()),
            _ => refuse(
                "it is an MPTCP connection, which the kernel cannot repair",
                "let the program use TCP (for Go: GODEBUG=multipathtcp=0), or close the connection",
            ),
        },
        (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => Ok(()),
        (_, 132) => refuse(
            "it is an SCTP socket, whose associations cannot be carried",
            "close it before the dump",
        ),
        (kind, protocol) => refuse(
            &format!(
                "it is a {} of protocol {protocol}, which cannot be carried",
                names::socket_type(kind as u64)
            ),
            "close it before the dump",
        ),
    }
}

/// A socket without a connection: what is still in its queue would be lost.
fn closed(seen: &Seen, was_connected: bool, cx: &mut DumpCx) -> Result<()> {
    if !was_connected {
        return Ok(());
    }
    let unread = ask_int(seen.fd, SIOCINQ).unwrap_or(0);
    if unread > 0 {
        cx.warn(format!(
            "{}: {unread} bytes of a connection that has ended are dropped",
            seen.place()
        ));
    }
    Ok(())
}

/// What waits in raw and ping sockets is left behind: they have no peek offsets (SO_PEEK_OFF), so only the first packet could be
/// looked at without taking it out.
fn dropped(seen: &Seen, cx: &mut DumpCx) {
    // ping sockets do not tell
    if ask_int(seen.fd, SIOCINQ).unwrap_or(0) > 0 {
        cx.warn(format!("{}: packets that wait are dropped", seen.place()));
    }
}

fn raw_peer(seen: &Seen, family: i32) -> Result<Option<SocketAddr>> {
    let name = if family == libc::AF_INET6 {
        "net/raw6"
    } else {
        "net/raw"
    };
    let table = stasis_kernel::procfs::ProcDir::open(seen.pid)?.bytes(name)?;
    Ok(address::raw_peer(
        &String::from_utf8_lossy(&table),
        family,
        seen.stat.st_ino,
    ))
}
