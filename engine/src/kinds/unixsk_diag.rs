//! What sock_diag(7) tells of all unix sockets of a network namespace, and in which one a socket is.
use super::Seen;
use super::common::ask;
use super::sockopts;
use crate::error::{Blame, Error, Result};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, Nla as _};
use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponse, nlas::Nla};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::ns::{Ns, visit};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What is told of one socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// TCP_ESTABLISHED, TCP_CLOSE or TCP_LISTEN.
    pub state: u32,
    /// Inode number of the peer; 0: of one that nobody has open (closed, or not accepted yet). `None`: no peer.
    pub peer: Option<u32>,
    /// Of a listening socket: inode numbers of the sockets that wait to be accepted, in order.
    pub waiting: Vec<u32>,
    /// RCV_SHUTDOWN 1, SEND_SHUTDOWN 2.
    pub shutdown: u8,
    /// Of a listening socket the backlog; else bytes of kernel memory that hold what it has sent and nobody has read.
    pub sent: u32,
    /// Device (in the kernel's own encoding) and inode number of what it is bound to.
    pub bound: Option<(u32, u32)>,
}

/// All sockets of a network namespace, by inode number.
pub type Table = BTreeMap<u32, Told>;

fn refused(call: &'static str, e: &std::io::Error) -> Error {
    let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
    SysError::new(call, errno, "NETLINK_SOCK_DIAG").into()
}

fn unclear(why: impl std::fmt::Display) -> Error {
    Error::new("E6500", Blame::Host, "the answer of sock_diag for AF_UNIX")
        .why(why)
        .advice("please report it, with the version of the kernel")
}

/// All unix sockets of the network namespace this thread is in.
///
/// # Errors
/// A kernel without CONFIG_UNIX_DIAG; answers that cannot be read.
pub fn table() -> Result<Table> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(|e| refused("socket", &e))?;
    socket.bind_auto().map_err(|e| refused("bind", &e))?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(|e| refused("connect", &e))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = UnixRequest {
        state_flags: StateFlags::from_bits_retain(u32::MAX),
        inode: 0,
        show_flags: ShowFlags::PEER | ShowFlags::ICONS | ShowFlags::RQLEN | ShowFlags::VFS,
        cookie: [0xff; 8],
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::UnixRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(|e| refused("send", &e))?;
    let mut all = Table::new();
    loop {
        let (answer, _) = socket.recv_from_full().map_err(|e| refused("recv", &e))?;
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let m = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(unclear)?;
            let len = (m.header.length as usize).next_multiple_of(4);
            rest = rest.get(len.max(4)..).unwrap_or(&[]);
            match m.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(r)) => {
                    all.insert(r.header.inode, told(&r));
                }
                NetlinkPayload::Done(_) => return Ok(all),
                NetlinkPayload::Error(e) => {
                    let code = e.code.map_or(0, |c| -c.get());
                    return Err(Error::new(
                        "E6500",
                        Blame::Host,
                        "the kernel does not list unix sockets",
                    )
                    .why(format!("sock_diag: {:?}", Errno::from_raw(code)))
                    .advice("use a kernel with CONFIG_UNIX_DIAG (module unix_diag)"));
                }
                _ => {}
            }
        }
    }
}

fn told(r: &UnixResponse) -> Told {
    let mut t = Told {
        state: r.header.state.into(),
        ..Told::default()
    };
    for n in &r.nlas {
        match n {
            Nla::Peer(ino) => t.peer = Some(*ino),
            Nla::PendingConnections(all) => t.waiting.clone_from(all),
            Nla::Shutdown(s) => t.shutdown = *s,
            Nla::ReceiveQueueLength(_, w) => t.sent = *w,
            // the crate keeps its fields to itself: inode number, device
            Nla::Vfs(_) if n.value_len() == 8 => {
                let mut b = [0; 8];
                n.emit_value(&mut b);
                t.bound = Some((sockopts::word(&b, 4), sockopts::word(&b, 0)));
            }
            _ => {}
        }
    }
    t
}

/// The network namespace a socket is in. `None`: we may not ask.
pub fn namespace(socket: impl AsFd) -> Option<OwnedFd> {
    // linux/sockios.h
    const SIOCGSKNS: u64 = 0x894c;
    let mut h = Host::default();
    let f = FdRef(1);
    let args = vec![
        Arg::Int(socket.as_fd().as_raw_fd() as u64),
        Arg::Named(SIOCGSKNS, "SIOCGSKNS".into()),
        Arg::Int(0),
    ];
    h.play(&Call::new(libc::SYS_ioctl, args).binds(f)).ok()?;
    h.take(f)
}

/// A number that only this socket's network namespace has (SO_NETNS_COOKIE).
///
/// # Errors
/// getsockopt(2).
pub fn cookie(socket: impl AsFd) -> Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let v = sockopts::get(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, 8)?.unwrap_or_default();
    Ok(v.try_into().map_or(0, u64::from_le_bytes))
}

/// The unix sockets of the network namespace a socket is in, which must be the one of the task that has it.
///
/// # Errors
/// E4501: it is another one.
pub fn table_of(seen: &Seen) -> Result<Table> {
    in_namespace_of(seen, table)
}

/// Asks in the network namespace a socket is in, which must be the one of the task that has it.
///
/// # Errors
/// E4501: it is another one.
pub fn in_namespace_of<R: Send>(seen: &Seen, f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let Some(ns) = namespace(seen.fd) else {
        // KERNEL: SIOCGSKNS wants CAP_NET_ADMIN; without it we are hardly in another namespace
        return f();
    };
    let own = |h: &OwnedFd| fds::fstat(h.as_fd()).map(|s| (s.st_dev, s.st_ino));
    let here = own(&ns)?;
    // what no task has open itself is looked at through whoever has the socket it travels in
    if here != own(&Ns::Net.of(seen.pid)?)? {
        return Err(seen.refuse(
            "E4501",
            "it is a socket of another network namespace than the task's",
            "close it before the dump",
        ));
    }
    if here == own(&Ns::Net.of(stasis_kernel::ids::HostPid::own())?)? {
        return f();
    }
    visit(&[(Ns::Net, ns.as_fd())], f)?
}

/// What sock_diag answers to a request for all sockets of a family that the library does not know: a message each, without
/// its header. Nothing if the kernel has no such diagnosis.
///
/// # Errors
/// netlink(7).
pub fn all_of(request: &[u8]) -> Result<Vec<Vec<u8>>> {
    /// linux/sock_diag.h
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const HEAD: usize = 16;
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(|e| refused("socket", &e))?;
    socket.bind_auto().map_err(|e| refused("bind", &e))?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(|e| refused("connect", &e))?;
    let mut m = ((HEAD + request.len()) as u32).to_le_bytes().to_vec();
    m.extend(SOCK_DIAG_BY_FAMILY.to_le_bytes());
    m.extend((NLM_F_DUMP | NLM_F_REQUEST).to_le_bytes());
    m.extend([0; 8]);
    m.extend_from_slice(request);
    socket.send(&m, 0).map_err(|e| refused("send", &e))?;
    let mut all = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full().map_err(|e| refused("recv", &e))?;
        let mut rest = &answer[..];
        while rest.len() >= HEAD {
            let len = (sockopts::word(rest, 0) as usize).clamp(HEAD, rest.len());
            match u16::from_le_bytes([rest[4], rest[5]]) {
                SOCK_DIAG_BY_FAMILY => all.push(rest[HEAD..len].to_vec()),
                // NLMSG_ERROR, NLMSG_DONE
                2 | 3 => return Ok(all),
                _ => {}
            }
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// An `int` that ioctl(2) tells of a socket.
pub(super) fn ask_size(socket: impl AsFd, request: u64, name: &'static str) -> Result<u32> {
    let args = vec![Arg::Named(request, name.into()), Arg::Out(4)];
    let a = ask(socket, libc::SYS_ioctl, args)?;
    Ok(sockopts::word(a.out(2), 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn peers_and_waiting_connections_are_told() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("s");
        let (a, b) = UnixStream::pair().unwrap();
        let l = UnixListener::bind(&path).unwrap();
        let c = UnixStream::connect(&path).unwrap();
        let ino = |f: &dyn AsRawFd| {
            let s = std::fs::read_link(format!("/proc/self/fd/{}", f.as_raw_fd())).unwrap();
            let s = s.to_str().unwrap();
            s[8..s.len() - 1].parse::<u32>().unwrap()
        };
        b.shutdown(std::net::Shutdown::Write).unwrap();
        let t = table().unwrap();
        assert_eq!(t[&ino(&a)].peer, Some(ino(&b)));
        assert_eq!((t[&ino(&a)].shutdown, t[&ino(&b)].shutdown), (1, 2));
        assert_eq!(t[&ino(&l)].waiting, [ino(&c)]);
        assert_eq!((t[&ino(&l)].state, t[&ino(&c)].peer), (10, Some(0)));
        assert!(t[&ino(&l)].bound.is_some());
        assert_ne!(cookie(&a).unwrap(), 0);
    }
}
