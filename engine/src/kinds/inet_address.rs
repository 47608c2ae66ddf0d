//! Internet addresses: as the kernel, the image and the caller write them. Not a kind: part of [`super::inet`].
use super::act::Stagehand;
use super::common::ask;
use super::malformed;
use super::sockopts::get;
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::netlink::{Messages, Netlink};
use stasis_proto::pb;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

const SOCKADDR_IN: usize = 16;
const SOCKADDR_IN6: usize = 28;

/// `sockaddr_in` or `sockaddr_in6`.
pub fn sockaddr(a: &SocketAddr) -> Vec<u8> {
    let mut b = Vec::with_capacity(SOCKADDR_IN6);
    match a {
        SocketAddr::V4(a) => {
            b.extend_from_slice(&(libc::AF_INET as u16).to_le_bytes());
            b.extend_from_slice(&a.port().to_be_bytes());
            b.extend_from_slice(&a.ip().octets());
            b.resize(SOCKADDR_IN, 0);
        }
        SocketAddr::V6(a) => {
            b.extend_from_slice(&(libc::AF_INET6 as u16).to_le_bytes());
            b.extend_from_slice(&a.port().to_be_bytes());
            b.extend_from_slice(&a.flowinfo().to_be_bytes());
            b.extend_from_slice(&a.ip().octets());
            b.extend_from_slice(&a.scope_id().to_le_bytes());
        }
    }
    b
}

/// Reads a `sockaddr_in` or `sockaddr_in6`.
pub fn parse_sockaddr(b: &[u8]) -> Option<SocketAddr> {
    let half = |at: usize| Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?));
    let family = i32::from(u16::from_le_bytes(b.get(..2)?.try_into().ok()?));
    let port = half(2)?;
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = b.get(4..8)?.try_into().ok()?;
            Some(SocketAddrV4::new(ip.into(), port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(b.get(4..8)?.try_into().ok()?);
            let ip: [u8; 16] = b.get(8..24)?.try_into().ok()?;
            let scope = u32::from_le_bytes(b.get(24..28)?.try_into().ok()?);
            Some(SocketAddrV6::new(ip.into(), port, flow, scope).into())
        }
        _ => None,
    }
}

/// The address a socket is bound to.
///
/// # Errors
/// getsockname(2).
pub fn local(fd: BorrowedFd<'_>) -> Result<Option<SocketAddr>> {
    let room = (SOCKADDR_IN6 as u32).to_le_bytes().to_vec();
    let args = vec![Arg::Out(SOCKADDR_IN6), Arg::InOut(room)];
    let a = ask(fd, libc::SYS_getsockname, args)?;
    Ok(parse_sockaddr(a.out(1)))
}

/// The other end, also while the connection is being made, and after it was lost.
///
/// # Errors
/// getsockopt(2).
pub fn peer(fd: BorrowedFd<'_>, family: i32) -> Result<Option<SocketAddr>> {
    const SO_PEERNAME: i32 = 28;
    // KERNEL: sk_getsockopt() refuses more room than the address has
    let len = match family {
        libc::AF_INET6 => SOCKADDR_IN6,
        _ => SOCKADDR_IN,
    };
    match get(fd, libc::SOL_SOCKET, SO_PEERNAME, len) {
        Ok(v) => Ok(v.and_then(|v| parse_sockaddr(&v))),
        Err(e) if e.errno == Errno::ENOTCONN => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The words of an image: the address as it is in memory.
pub fn words(a: Option<&SocketAddr>, family: i32) -> Vec<u32> {
    let octets = match a.map(SocketAddr::ip) {
        Some(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Some(IpAddr::V6(ip)) => ip.octets().to_vec(),
        None if family == libc::AF_INET6 => vec![0; 16],
        None => vec![0; 4],
    };
    octets
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// The address in the words of an image.
///
/// # Errors
/// Too few words, or a port beyond 65535.
pub fn from_words(entry: &pb::FileEntry, family: i32, w: &[u32], port: u32) -> Result<SocketAddr> {
    let port = u16::try_from(port).map_err(|_| malformed(entry, "a port above 65535"))?;
    let octets: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let short = || malformed(entry, "an address is too short");
    let ip: IpAddr = if family == libc::AF_INET6 {
        let b: [u8; 16] = octets.get(..16).ok_or_else(short)?.try_into().expect("16");
        Ipv6Addr::from(b).into()
    } else {
        let b: [u8; 4] = octets.get(..4).ok_or_else(short)?.try_into().expect("4");
        Ipv4Addr::from(b).into()
    };
    Ok(SocketAddr::new(ip, port))
}

/// [`moved`] for the other end of a connection: it moves only if its own socket is in the tree, too.
pub fn peer_moved(
    map: &[(IpAddr, IpAddr)],
    peer: SocketAddr,
    files: &std::collections::BTreeMap<u32, pb::FileEntry>,
) -> SocketAddr {
    let here = |f: &pb::FileEntry| {
        f.isk.as_deref().is_some_and(|e| {
            let local = from_words(f, e.family as i32, &e.src_addr, e.src_port);
            local.is_ok_and(|a| {
                (a.ip().to_canonical(), a.port()) == (peer.ip().to_canonical(), peer.port())
            })
        })
    };
    match moved(map, peer) {
        to if to != peer && files.values().any(here) => to,
        _ => peer,
    }
}

/// The address that takes the place of this one, as the caller says.
pub fn moved(map: &[(IpAddr, IpAddr)], a: SocketAddr) -> SocketAddr {
    let plain = a.ip().to_canonical();
    let Some((_, to)) = map.iter().find(|(from, _)| *from == plain) else {
        return a;
    };
    let ip = match (a.ip(), to) {
        // a mapped address stays one
        (IpAddr::V6(_), IpAddr::V4(to)) => to.to_ipv6_mapped().into(),
        (_, to) => *to,
    };
    SocketAddr::new(ip, a.port())
}

/// `struct ifreq`: name, then a union that begins with the index.
const IFREQ: usize = 40;
const SIOCGIFNAME: u64 = 0x8910;
const SIOCGIFINDEX: u64 = 0x8933;

/// The name of a device, in the network namespace of the socket.
///
/// # Errors
/// ioctl(2): there is none with this index.
pub fn device_name(socket: BorrowedFd<'_>, index: u32) -> Result<String> {
    let mut req = vec![0u8; IFREQ];
    req[16..20].copy_from_slice(&index.to_le_bytes());
    let name = Arg::Named(SIOCGIFNAME, "SIOCGIFNAME".into());
    let a = ask(socket, libc::SYS_ioctl, vec![name, Arg::InOut(req)])?;
    let text: Vec<u8> = a
        .out(2)
        .iter()
        .take(libc::IFNAMSIZ)
        .copied()
        .take_while(|b| *b != 0)
        .collect();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The index of a device, in the network namespace of the socket.
///
/// # Errors
/// ioctl(2): there is none with this name.
pub fn device_index(socket: BorrowedFd<'_>, name: &str) -> Result<u32> {
    let mut req = vec![0u8; IFREQ];
    let n = name.len().min(libc::IFNAMSIZ - 1);
    req[..n].copy_from_slice(&name.as_bytes()[..n]);
    let request = Arg::Named(SIOCGIFINDEX, "SIOCGIFINDEX".into());
    let a = ask(socket, libc::SYS_ioctl, vec![request, Arg::InOut(req)]).map_err(|e| {
        Error::new("E6551", Blame::Host, format!("no network device {name}"))
            .why(e)
            .advice("bring the device back, or restore in a network namespace that has it")
    })?;
    let index = a.out(2).get(16..20).map(|b| b.try_into().expect("four"));
    Ok(index.map_or(0, u32::from_le_bytes))
}

/// How long an address may be looked for on the link before it counts (duplicate address detection, RFC 4862: about two seconds).
const DETECTION: Duration = Duration::from_secs(5);

/// bind(2), again and again while a device of the namespace has the address, but not for use yet: who brings up a namespace for a
/// restore seldom waits for that.
pub(super) fn patiently<R>(
    address: &SocketAddr,
    mut bind: impl FnMut() -> std::result::Result<R, SysError>,
) -> std::result::Result<R, SysError> {
    let until = Instant::now() + DETECTION;
    loop {
        match bind() {
            Err(e) if e.errno == Errno::EADDRNOTAVAIL && Instant::now() < until => {
                if !tentative(address.ip()).unwrap_or(false) {
                    return Err(e);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            r => return r,
        }
    }
}

/// Is this an address of the caller's network namespace that is not for use yet?
fn tentative(ip: IpAddr) -> std::result::Result<bool, SysError> {
    const RTM_GETADDR: u16 = 22;
    /// Length of `struct ifaddrmsg`, whose third byte has flags.
    const IFADDRMSG: usize = 8;
    const IFA_ADDRESS: u16 = 1;
    const IFA_F_TENTATIVE: u8 = 0x40;
    let IpAddr::V6(ip) = ip else {
        return Ok(false);
    };
    let mut ask = [0; IFADDRMSG];
    ask[0] = libc::AF_INET6 as u8;
    let all = Netlink::route()?.dump("rtnetlink(RTM_GETADDR)", RTM_GETADDR, &ask)?;
    Ok(Messages(&all).flatten().any(|m| {
        m.u8(2) & IFA_F_TENTATIVE != 0
            && m.attrs(IFADDRMSG).get(IFA_ADDRESS) == Some(&ip.octets()[..])
    }))
}

/// Binds a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The socket.
    pub file: FdRef,
    /// The address.
    pub address: SocketAddr,
    /// The device of an address of a link.
    pub device: Option<String>,
}

impl Bind {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let address = scoped(on.fd(self.file)?, self.address, self.device.as_deref())?;
        let b = sockaddr(&address);
        let len = Arg::Int(b.len() as u64);
        let row = Call::new(libc::SYS_bind, vec![Arg::Fd(self.file), Arg::In(b), len]);
        patiently(&address, || on.host.play(&row).map(drop)).map_err(|e| {
            let advice = match e.errno {
                Errno::EADDRINUSE => "end the process that has the address (ss -anp tells); if only an ended connection has it (TIME-WAIT), wait a minute; or restore in a network namespace of its own",
                Errno::EADDRNOTAVAIL => "give the address to a device, or say which took its place (--tcp-remap OLD=NEW)",
                _ => "see the call",
            };
            Error::new("E6550", Blame::Host, format!("cannot bind a socket to {}", self.address))
                .why(e)
                .advice(advice)
        })?;
        Ok(())
    }
}

/// The address with the index of its device.
pub(super) fn scoped(
    socket: BorrowedFd<'_>,
    a: SocketAddr,
    device: Option<&str>,
) -> Result<SocketAddr> {
    match (a, device) {
        (SocketAddr::V6(mut a), Some(d)) => {
            a.set_scope_id(device_index(socket.as_fd(), d)?);
            Ok(a.into())
        }
        (a, _) => Ok(a),
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bind(file#{}, {}", self.file.0, self.address)?;
        match &self.device {
            Some(d) => write!(f, ", device {d})"),
            None => f.write_str(")"),
        }
    }
}

/// The address of the other end of a raw socket, which the kernel tells only in /proc/PID/net/raw: lines of `sl local
/// remote ... inode ...`, addresses in hexadecimal words.
pub fn raw_peer(table: &str, family: i32, ino: u64) -> Option<SocketAddr> {
    let ino = ino.to_string();
    let line = table
        .lines()
        .skip(1)
        .find(|l| l.split_whitespace().nth(9) == Some(ino.as_str()))?;
    let (ip, port) = line.split_whitespace().nth(2)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<u8>> = ip
        .as_bytes()
        .chunks(8)
        .map(|w| u32::from_str_radix(std::str::from_utf8(w).ok()?, 16).ok())
        .collect::<Option<Vec<u32>>>()
        .map(|w| w.iter().flat_map(|w| w.to_le_bytes()).collect());
    let octets = words?;
    let ip: IpAddr = if family == libc::AF_INET6 {
        Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into()
    } else {
        Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into()
    };
    (!ip.is_unspecified()).then(|| SocketAddr::new(ip, port))
}

/// Number of a socket in the caller's terms.
pub(super) fn raw_fd(fd: impl AsFd) -> u64 {
    fd.as_fd().as_raw_fd() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_all_their_forms() {
        for text in ["127.0.0.1:80", "0.0.0.0:0", "[::1]:65535", "[fe80::1%7]:9"] {
            let a: SocketAddr = text.parse().unwrap();
            assert_eq!(parse_sockaddr(&sockaddr(&a)), Some(a));
            let family = if a.is_ipv4() {
                libc::AF_INET
            } else {
                libc::AF_INET6
            };
            let w = words(Some(&a), family);
            let e = pb::FileEntry::default();
            let b = from_words(&e, family, &w, a.port().into()).unwrap();
            assert_eq!((b.ip(), b.port()), (a.ip(), a.port()));
            assert!(from_words(&e, family, &w[1..], 1).is_err());
            assert!(from_words(&e, family, &w, 65536).is_err());
        }
        assert_eq!(parse_sockaddr(&[2, 0, 0]), None);
    }

    #[test]
    fn a_mapped_address_moves_too() {
        let map = [("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap())];
        let at = |s: &str| moved(&map, s.parse().unwrap()).to_string();
        assert_eq!(at("10.0.0.1:5"), "10.0.0.9:5");
        assert_eq!(at("10.0.0.2:5"), "10.0.0.2:5");
        assert_eq!(at("[::ffff:10.0.0.1]:5"), "[::ffff:10.0.0.9]:5");
    }

    #[test]
    fn the_table_of_raw_sockets_tells_the_peer() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n   1: 00000000:0001 0100007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0\n";
        let a = raw_peer(table, libc::AF_INET, 4711).unwrap();
        assert_eq!(a.to_string(), "127.0.0.1:0");
        assert_eq!(raw_peer(table, libc::AF_INET, 4712), None);
    }
}
