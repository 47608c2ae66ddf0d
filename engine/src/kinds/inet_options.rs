//! Options of internet sockets (ip(7), ipv6(7), tcp(7), udp(7)): which there are, and which field or extension has them.
//! Not a kind: part of [`super::inet`].
use super::PlanCx;
use super::sockopts::{self, Opt, get, get_int, set_int_row, set_row, word};
use crate::error::Result;
use stasis_kernel::call::FdRef;
use stasis_proto::pb;
use std::os::fd::BorrowedFd;

const IP: i32 = libc::SOL_IP;
const IPV6: i32 = libc::SOL_IPV6;
const TCP: i32 = libc::SOL_TCP;
const UDP: i32 = libc::SOL_UDP;

/// SOL_IP, of sockets of both families (one of AF_INET6 uses them for mapped addresses).
#[rustfmt::skip] // one line per option
static IPV4_OPTIONS: &[Opt] = &[
    Opt::int(IP, libc::IP_TRANSPARENT, "IP_TRANSPARENT", 0),
    Opt::int(IP, libc::IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT", 0),
    Opt::int(IP, 51, "IP_LOCAL_PORT_RANGE", 0),
    Opt::int(IP, libc::IP_RECVOPTS, "IP_RECVOPTS", 0),
    Opt::int(IP, 7, "IP_RETOPTS", 0),
    Opt::int(IP, libc::IP_MTU_DISCOVER, "IP_MTU_DISCOVER", 1),
    Opt::int(IP, libc::IP_RECVERR, "IP_RECVERR", 0),
    Opt::int(IP, libc::IP_RECVTTL, "IP_RECVTTL", 0),
    Opt::int(IP, libc::IP_RECVTOS, "IP_RECVTOS", 0),
    Opt::int(IP, 18, "IP_PASSSEC", 0),
    Opt::int(IP, libc::IP_RECVORIGDSTADDR, "IP_RECVORIGDSTADDR", 0),
    Opt::int(IP, libc::IP_MINTTL, "IP_MINTTL", 0),
    Opt::int(IP, 23, "IP_CHECKSUM", 0),
    Opt::int(IP, 25, "IP_RECVFRAGSIZE", 0),
    Opt::int(IP, 26, "IP_RECVERR_RFC4884", 0),
    Opt::int(IP, 50, "IP_UNICAST_IF", 0),
];

/// SOL_IP options of AF_INET6 sockets that AF_INET ones have fields for.
#[rustfmt::skip]
static MAPPED_OPTIONS: &[Opt] = &[
    Opt::int(IP, libc::IP_TOS, "IP_TOS", 0),
    Opt::int(IP, libc::IP_TTL, "IP_TTL", 64),
    Opt::int(IP, libc::IP_PKTINFO, "IP_PKTINFO", 0),
];

/// SOL_IPV6.
#[rustfmt::skip]
static IPV6_OPTIONS: &[Opt] = &[
    Opt::int(IPV6, 75, "IPV6_TRANSPARENT", 0),
    Opt::int(IPV6, 2, "IPV6_2292PKTINFO", 0),
    Opt::int(IPV6, 3, "IPV6_2292HOPOPTS", 0),
    Opt::int(IPV6, 4, "IPV6_2292DSTOPTS", 0),
    Opt::int(IPV6, 5, "IPV6_2292RTHDR", 0),
    Opt::int(IPV6, 8, "IPV6_2292HOPLIMIT", 0),
    Opt::int(IPV6, 11, "IPV6_FLOWINFO", 0),
    Opt::int(IPV6, libc::IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER", 1),
    Opt::int(IPV6, 25, "IPV6_RECVERR", 0),
    Opt::int(IPV6, 30, "IPV6_ROUTER_ALERT_ISOLATE", 0),
    Opt::int(IPV6, 31, "IPV6_RECVERR_RFC4884", 0),
    Opt::int(IPV6, 33, "IPV6_FLOWINFO_SEND", 0),
    Opt::int(IPV6, 51, "IPV6_RECVHOPLIMIT", 0),
    Opt::int(IPV6, 53, "IPV6_RECVHOPOPTS", 0),
    Opt::int(IPV6, 56, "IPV6_RECVRTHDR", 0),
    Opt::int(IPV6, 58, "IPV6_RECVDSTOPTS", 0),
    Opt::int(IPV6, 60, "IPV6_RECVPATHMTU", 0),
    Opt::int(IPV6, 62, "IPV6_DONTFRAG", 0),
    Opt::int(IPV6, 66, "IPV6_RECVTCLASS", 0),
    Opt::int(IPV6, 67, "IPV6_TCLASS", 0),
    Opt::int(IPV6, 70, "IPV6_AUTOFLOWLABEL", 1),
    // the default tells itself as PUBTMP_DEFAULT|HOME (linux/in6.h)
    Opt::int(IPV6, 72, "IPV6_ADDR_PREFERENCES", 0x500),
    Opt::int(IPV6, 73, "IPV6_MINHOPCOUNT", 0),
    Opt::int(IPV6, 74, "IPV6_RECVORIGDSTADDR", 0),
    Opt::int(IPV6, 76, "IPV6_UNICAST_IF", 0),
    Opt::int(IPV6, 77, "IPV6_RECVFRAGSIZE", 0),
];

/// SOL_IP of sockets that can send to groups.
#[rustfmt::skip]
static IPV4_MULTICAST: &[Opt] = &[
    Opt::int(IP, libc::IP_MULTICAST_TTL, "IP_MULTICAST_TTL", 1),
    Opt::int(IP, libc::IP_MULTICAST_LOOP, "IP_MULTICAST_LOOP", 1),
    Opt::int(IP, 49, "IP_MULTICAST_ALL", 1),
    Opt::int(IP, libc::IP_MULTICAST_IF, "IP_MULTICAST_IF", 0),
];

/// SOL_IPV6, with a default that depends on the route.
pub(super) static ROUTE_OPTIONS: &[Opt] = &[Opt::int(
    IPV6,
    libc::IPV6_UNICAST_HOPS,
    "IPV6_UNICAST_HOPS",
    64,
)];

/// SOL_IPV6 of sockets that can send to groups.
#[rustfmt::skip]
static IPV6_MULTICAST: &[Opt] = &[
    Opt::int(IPV6, libc::IPV6_MULTICAST_IF, "IPV6_MULTICAST_IF", 0),
    Opt::int(IPV6, libc::IPV6_MULTICAST_HOPS, "IPV6_MULTICAST_HOPS", 1),
    Opt::int(IPV6, libc::IPV6_MULTICAST_LOOP, "IPV6_MULTICAST_LOOP", 1),
    Opt::int(IPV6, 29, "IPV6_MULTICAST_ALL", 1),
];

/// SOL_IPV6 of raw sockets.
#[rustfmt::skip]
static IPV6_RAW_OPTIONS: &[Opt] = &[
    Opt::int(IPV6, libc::IPV6_CHECKSUM, "IPV6_CHECKSUM", -1),
];

/// SOL_TCP.
#[rustfmt::skip]
static TCP_OPTIONS: &[Opt] = &[
    Opt::int(TCP, libc::TCP_SYNCNT, "TCP_SYNCNT", 6),
    Opt::int(TCP, libc::TCP_LINGER2, "TCP_LINGER2", 60),
    Opt::int(TCP, libc::TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT", 0),
    Opt::int(TCP, 16, "TCP_THIN_LINEAR_TIMEOUTS", 0),
    Opt::int(TCP, 17, "TCP_THIN_DUPACK", 0),
    Opt::int(TCP, libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", 0),
    Opt::int(TCP, 25, "TCP_NOTSENT_LOWAT", 0),
    Opt::int(TCP, 27, "TCP_SAVE_SYN", 0),
    Opt::int(TCP, 30, "TCP_FASTOPEN_CONNECT", 0),
    Opt::int(TCP, 34, "TCP_FASTOPEN_NO_COOKIE", 0),
    Opt::int(TCP, 36, "TCP_INQ", 0),
    Opt::int(TCP, 37, "TCP_TX_DELAY", 0),
    Opt::int(TCP, 44, "TCP_RTO_MAX_MS", 120_000),
];

/// SOL_TCP of sockets that are not connected.
#[rustfmt::skip]
static TCP_IDLE_OPTIONS: &[Opt] = &[
    Opt::int(TCP, libc::TCP_MAXSEG, "TCP_MAXSEG", 536),
    Opt::int(TCP, libc::TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP", 0),
];

/// SOL_TCP of listening sockets.
#[rustfmt::skip]
static TCP_LISTEN_OPTIONS: &[Opt] = &[
    Opt::int(TCP, libc::TCP_FASTOPEN, "TCP_FASTOPEN", 0),
];

/// SOL_UDP.
#[rustfmt::skip]
static UDP_OPTIONS: &[Opt] = &[
    Opt::int(UDP, 1, "UDP_CORK", 0),
    Opt::int(UDP, 100, "UDP_ENCAP", 0),
    Opt::int(UDP, 101, "UDP_NO_CHECK6_TX", 0),
    Opt::int(UDP, 102, "UDP_NO_CHECK6_RX", 0),
    Opt::int(UDP, 103, "UDP_SEGMENT", 0),
    Opt::int(UDP, 104, "UDP_GRO", 0),
];

/// SOL_UDPLITE.
#[rustfmt::skip]
static UDPLITE_OPTIONS: &[Opt] = &[
    Opt::int(UDP, 1, "UDP_CORK", 0),
    Opt::int(libc::IPPROTO_UDPLITE, 10, "UDPLITE_SEND_CSCOV", 0),
    Opt::int(libc::IPPROTO_UDPLITE, 11, "UDPLITE_RECV_CSCOV", 0),
];

/// What decides which options a socket has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// SOCK_*.
    pub kind: i32,
    /// IPPROTO_*.
    pub protocol: i32,
}

/// States of TCP sockets, which UDP ones use two of (net/tcp_states.h).
#[allow(missing_docs, reason = "RFC 793 tells what they are")]
pub mod state {
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const SYN_RECV: u32 = 3;
    pub const FIN_WAIT1: u32 = 4;
    pub const FIN_WAIT2: u32 = 5;
    pub const TIME_WAIT: u32 = 6;
    pub const CLOSE: u32 = 7;
    pub const CLOSE_WAIT: u32 = 8;
    pub const LAST_ACK: u32 = 9;
    pub const LISTEN: u32 = 10;
    pub const CLOSING: u32 = 11;
}

/// The protocol of MPTCP, which libc does not have for all targets.
pub const IPPROTO_MPTCP: i32 = 262;

impl Sort {
    /// Speaks TCP itself (not raw).
    pub fn is_tcp(self) -> bool {
        self.kind == libc::SOCK_STREAM && matches!(self.protocol, libc::IPPROTO_TCP | IPPROTO_MPTCP)
    }
    /// Speaks UDP or UDP-Lite itself.
    pub fn is_udp(self) -> bool {
        self.kind == libc::SOCK_DGRAM
            && matches!(self.protocol, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE)
    }
    /// Takes packets of a protocol beside the kernel.
    pub fn is_raw(self) -> bool {
        self.kind == libc::SOCK_RAW
    }
    /// Options that are carried in the extension.
    pub fn options(self, state: u32) -> Vec<&'static [Opt]> {
        let mut all = Vec::new();
        if self.family == libc::AF_INET6 {
            all.extend([IPV6_OPTIONS, ROUTE_OPTIONS]);
            if !self.is_raw() {
                all.extend([MAPPED_OPTIONS, IPV4_OPTIONS]);
            } else if self.protocol != libc::IPPROTO_ICMPV6 {
                // the kernel does it alone for ICMPv6
                all.push(IPV6_RAW_OPTIONS);
            }
        } else {
            all.push(IPV4_OPTIONS);
        }
        if self.kind != libc::SOCK_STREAM {
            if self.family == libc::AF_INET6 {
                all.push(IPV6_MULTICAST);
            }
            if self.family == libc::AF_INET || !self.is_raw() {
                all.push(IPV4_MULTICAST);
            }
        }
        if self.is_tcp() {
            all.push(TCP_OPTIONS);
            if matches!(state, state::CLOSE | state::LISTEN) {
                all.push(TCP_IDLE_OPTIONS);
            }
            if state == state::LISTEN {
                all.push(TCP_LISTEN_OPTIONS);
            }
        } else if self.is_udp() && self.protocol == libc::IPPROTO_UDP {
            all.push(UDP_OPTIONS);
        } else if self.is_udp() {
            all.push(UDPLITE_OPTIONS);
        }
        all
    }
}

/// IPV6_FREEBIND, not in libc for all targets.
const IPV6_FREEBIND: i32 = 78;
const IPV6_RECVPKTINFO: i32 = 49;
const IP_NODEFRAG: i32 = 22;
const ICMP_FILTER: i32 = 1;

/// Level and number of the filter of an ICMP socket, and its length in words.
fn icmp_filter(s: Sort) -> Option<(i32, i32, usize)> {
    match (s.family, s.protocol) {
        _ if !s.is_raw() => None,
        (libc::AF_INET, libc::IPPROTO_ICMP) => Some((libc::SOL_RAW, ICMP_FILTER, 1)),
        (libc::AF_INET6, libc::IPPROTO_ICMPV6) => Some((libc::IPPROTO_ICMPV6, 1, 8)),
        _ => None,
    }
}

/// Reads `ip_opts_entry`.
///
/// # Errors
/// getsockopt(2).
pub fn read_ip(fd: BorrowedFd<'_>, s: Sort) -> Result<pb::IpOptsEntry> {
    let int = |level, name| get_int(fd, level, name);
    let some = |level, name| Ok::<_, crate::Error>(int(level, name)?.filter(|v| *v != 0));
    let v6 = s.family == libc::AF_INET6;
    let mut out = pb::IpOptsEntry::default();
    if v6 {
        out.freebind = some(IPV6, IPV6_FREEBIND)?.map(|_| true);
        out.pktinfo = some(IPV6, IPV6_RECVPKTINFO)?.map(|_| true);
    } else {
        out.freebind = some(IP, libc::IP_FREEBIND)?.map(|_| true);
        out.pktinfo = some(IP, libc::IP_PKTINFO)?.map(|_| true);
        out.tos = some(IP, libc::IP_TOS)?.map(|v| v as u32);
        out.ttl = some(IP, libc::IP_TTL)?.map(|v| v as u32);
    }
    if s.is_raw() {
        let hdrincl = if v6 {
            int(IPV6, libc::IPV6_HDRINCL)?
        } else {
            int(IP, libc::IP_HDRINCL)?
        };
        let mut raw = pb::IpOptsRawEntry {
            hdrincl: hdrincl.filter(|v| *v != 0).map(|_| true),
            ..Default::default()
        };
        if !v6 {
            raw.nodefrag = some(IP, IP_NODEFRAG)?.map(|_| true);
        }
        if let Some((level, name, words)) = icmp_filter(s)
            && let Some(v) = get(fd, level, name, words * 4)?
        {
            raw.icmpv_filter = (0..words).map(|i| word(&v, i * 4)).collect();
        }
        out.raw = Some(raw);
    }
    Ok(out)
}

/// Rows for `ip_opts_entry`. All of them may come before bind(2); IP_FREEBIND and IP_TRANSPARENT must.
///
/// # Errors
/// An ICMP filter of the wrong length.
pub fn plan_ip(cx: &mut PlanCx, file: FdRef, s: Sort, o: &pb::IpOptsEntry) -> Result<()> {
    let why = "option of an internet socket";
    let mut set = |level, name, text: &'static str, v: i32| {
        cx.host(set_int_row(file, level, name, text, v), why);
    };
    let v6 = s.family == libc::AF_INET6;
    match (o.freebind, v6) {
        (Some(true), true) => set(IPV6, IPV6_FREEBIND, "IPV6_FREEBIND", 1),
        (Some(true), false) => set(IP, libc::IP_FREEBIND, "IP_FREEBIND", 1),
        _ => {}
    }
    match (o.pktinfo, v6) {
        (Some(true), true) => set(IPV6, IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO", 1),
        (Some(true), false) => set(IP, libc::IP_PKTINFO, "IP_PKTINFO", 1),
        _ => {}
    }
    if let Some(v) = o.tos.filter(|_| !v6) {
        set(IP, libc::IP_TOS, "IP_TOS", v as i32);
    }
    if let Some(v) = o.ttl.filter(|_| !v6) {
        set(IP, libc::IP_TTL, "IP_TTL", v as i32);
    }
    let Some(raw) = o.raw.as_ref().filter(|_| s.is_raw()) else {
        return Ok(());
    };
    if raw.nodefrag == Some(true) && !v6 {
        set(IP, IP_NODEFRAG, "IP_NODEFRAG", 1);
    }
    if raw.hdrincl == Some(true) {
        match v6 {
            true => set(IPV6, libc::IPV6_HDRINCL, "IPV6_HDRINCL", 1),
            false => set(IP, libc::IP_HDRINCL, "IP_HDRINCL", 1),
        }
    }
    if let Some((level, name, words)) = icmp_filter(s)
        && !raw.icmpv_filter.is_empty()
    {
        if raw.icmpv_filter.len() != words {
            return Err(sockopts::bad(format!(
                "an ICMP filter of {} words",
                raw.icmpv_filter.len()
            )));
        }
        let v: Vec<u8> = raw
            .icmpv_filter
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        cx.host(set_row(file, level, name, "ICMP_FILTER", &v), why);
    }
    Ok(())
}

/// Reads `tcp_opts_entry`.
///
/// # Errors
/// getsockopt(2).
pub fn read_tcp(fd: BorrowedFd<'_>) -> Result<pb::TcpOptsEntry> {
    let some = |name| Ok::<_, crate::Error>(get_int(fd, TCP, name)?.filter(|v| *v != 0));
    Ok(pb::TcpOptsEntry {
        cork: some(libc::TCP_CORK)?.map(|_| true),
        nodelay: some(libc::TCP_NODELAY)?.map(|_| true),
        keepcnt: some(libc::TCP_KEEPCNT)?.map(|v| v as u32),
        keepidle: some(libc::TCP_KEEPIDLE)?.map(|v| v as u32),
        keepintvl: some(libc::TCP_KEEPINTVL)?.map(|v| v as u32),
    })
}

/// Rows for `tcp_opts_entry`.
pub fn plan_tcp(cx: &mut PlanCx, file: FdRef, o: &pb::TcpOptsEntry) {
    let all = [
        (o.cork.map(u32::from), libc::TCP_CORK, "TCP_CORK"),
        (o.nodelay.map(u32::from), libc::TCP_NODELAY, "TCP_NODELAY"),
        (o.keepcnt, libc::TCP_KEEPCNT, "TCP_KEEPCNT"),
        (o.keepidle, libc::TCP_KEEPIDLE, "TCP_KEEPIDLE"),
        (o.keepintvl, libc::TCP_KEEPINTVL, "TCP_KEEPINTVL"),
    ];
    for (v, name, text) in all {
        if let Some(v) = v.filter(|v| *v != 0) {
            cx.host(
                set_int_row(file, TCP, name, text, v as i32),
                "option of a TCP socket",
            );
        }
    }
}

/// A string option of TCP: TCP_CONGESTION or TCP_ULP; `None` when it is empty.
///
/// # Errors
/// getsockopt(2).
pub fn tcp_text(fd: BorrowedFd<'_>, name: i32) -> Result<Option<String>> {
    let v = get(fd, TCP, name, 16)?.unwrap_or_default();
    let text: Vec<u8> = v.into_iter().take_while(|b| *b != 0).collect();
    Ok((!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned()))
}
