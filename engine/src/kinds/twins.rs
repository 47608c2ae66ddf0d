//! Options of sockets, asked once for all that answer the same. Not a kind: what kinds of sockets share.
//!
//! A TCP socket is asked a hundred options, and a server has thousands of sockets with the same ones. What decides them
//! all is read out of the kernel where that is possible ([`Seen::options`]); who has the same there is not asked again.
use super::inet::Asked;
use super::inet_options::Sort;
use super::{DumpCx, Seen, sockopts};
use crate::error::Result;
use stasis_proto::pb;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Answers, by what decides them.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    /// Of unix sockets.
    unix: HashMap<Vec<u8>, pb::SkOptsEntry>,
    /// Of TCP connections, by their state as well.
    tcp: HashMap<(Vec<u8>, u32), Asked>,
}

/// Options of a unix socket.
///
/// # Errors
/// getsockopt(2).
pub(super) fn unix(seen: &Seen, cx: &mut DumpCx) -> Result<pb::SkOptsEntry> {
    match seen.options {
        None => sockopts::read(seen),
        Some(key) => known(
            &mut cx.twins.unix,
            key.to_vec(),
            || sockopts::read(seen),
            |o| sockopts::read_sizes(seen.fd, o),
        ),
    }
}

/// Options of an internet socket of a sort that is connected, and in which state.
///
/// # Errors
/// getsockopt(2).
pub(super) fn tcp(seen: &Seen, (s, state): (Sort, u32), cx: &mut DumpCx) -> Result<Asked> {
    let ask = || Asked::of(seen, s, state);
    match seen.options {
        None => ask(),
        Some(key) => known(&mut cx.twins.tcp, (key.to_vec(), state), ask, |a| {
            a.own(seen, s)
        }),
    }
}

/// What is known under a key, with what is each socket's own asked again; or what is asked now.
fn known<K: Eq + std::hash::Hash, V: Clone>(
    all: &mut HashMap<K, V>,
    key: K,
    ask: impl FnOnce() -> Result<V>,
    own: impl FnOnce(&mut V) -> Result<()>,
) -> Result<V> {
    match all.entry(key) {
        Entry::Vacant(e) => Ok(e.insert(ask()?).clone()),
        Entry::Occupied(e) => {
            let mut v = e.get().clone();
            own(&mut v)?;
            Ok(v)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::common;
    use super::super::inet_options::state;
    use super::super::sockopts::{LOCK, Opt, SOCKET_OPTIONS, get};
    use super::*;
    use nix::errno::Errno;
    use stasis_kernel::call::Arg;
    use stasis_kernel::census::Census;
    use stasis_kernel::ids::HostPid;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    const SOL_SOCKET: i32 = libc::SOL_SOCKET;
    /// Those that have a field of their own in images.
    #[rustfmt::skip]
    const FIELDS: [Opt; 18] = [
        Opt::bytes(SOL_SOCKET, libc::SO_SNDTIMEO, "SO_SNDTIMEO", 16),
        Opt::bytes(SOL_SOCKET, libc::SO_RCVTIMEO, "SO_RCVTIMEO", 16),
        Opt::bytes(SOL_SOCKET, libc::SO_LINGER, "SO_LINGER", 8),
        Opt::bytes(SOL_SOCKET, libc::SO_BINDTODEVICE, "SO_BINDTODEVICE", libc::IFNAMSIZ),
        Opt::int(SOL_SOCKET, libc::SO_REUSEADDR, "SO_REUSEADDR", 0),
        Opt::int(SOL_SOCKET, libc::SO_PRIORITY, "SO_PRIORITY", 0),
        Opt::int(SOL_SOCKET, libc::SO_RCVLOWAT, "SO_RCVLOWAT", 0),
        Opt::int(SOL_SOCKET, libc::SO_MARK, "SO_MARK", 0),
        Opt::int(SOL_SOCKET, libc::SO_PASSCRED, "SO_PASSCRED", 0),
        Opt::int(SOL_SOCKET, libc::SO_PASSSEC, "SO_PASSSEC", 0),
        Opt::int(SOL_SOCKET, libc::SO_DONTROUTE, "SO_DONTROUTE", 0),
        Opt::int(SOL_SOCKET, libc::SO_NO_CHECK, "SO_NO_CHECK", 0),
        Opt::int(SOL_SOCKET, libc::SO_REUSEPORT, "SO_REUSEPORT", 0),
        Opt::int(SOL_SOCKET, libc::SO_BROADCAST, "SO_BROADCAST", 0),
        Opt::int(SOL_SOCKET, libc::SO_KEEPALIVE, "SO_KEEPALIVE", 0),
        Opt::int(SOL_SOCKET, libc::SO_OOBINLINE, "SO_OOBINLINE", 0),
        Opt::int(SOL_SOCKET, 72, "SO_BUF_LOCK", 0),
        Opt::int(SOL_SOCKET, 74, "SO_TXREHASH", 0),
    ];
    #[rustfmt::skip]
    const TCP_FIELDS: [Opt; 9] = [
        Opt::int(libc::SOL_IP, libc::IP_FREEBIND, "IP_FREEBIND", 0),
        Opt::int(libc::SOL_IP, libc::IP_PKTINFO, "IP_PKTINFO", 0),
        Opt::int(libc::SOL_IP, libc::IP_TOS, "IP_TOS", 0),
        Opt::int(libc::SOL_IP, libc::IP_TTL, "IP_TTL", 0),
        Opt::int(libc::SOL_TCP, libc::TCP_NODELAY, "TCP_NODELAY", 0),
        Opt::int(libc::SOL_TCP, libc::TCP_CORK, "TCP_CORK", 0),
        Opt::int(libc::SOL_TCP, libc::TCP_KEEPCNT, "TCP_KEEPCNT", 0),
        Opt::int(libc::SOL_TCP, libc::TCP_KEEPIDLE, "TCP_KEEPIDLE", 0),
        Opt::int(libc::SOL_TCP, libc::TCP_KEEPINTVL, "TCP_KEEPINTVL", 0),
    ];
    #[rustfmt::skip]
    const IPV6_FIELDS: [Opt; 2] = [
        Opt::int(libc::SOL_IPV6, 78, "IPV6_FREEBIND", 0),
        Opt::int(libc::SOL_IPV6, 49, "IPV6_RECVPKTINFO", 0),
    ];

    /// What decides the options of a socket of ours.
    fn decides(census: &Census, fd: &OwnedFd) -> Vec<u8> {
        let all = census.of(HostPid::own()).unwrap();
        let e = all.into_iter().find(|e| e.slot == fd.as_raw_fd());
        e.unwrap().options.unwrap()
    }

    /// Gives the option another value, if that can be done.
    fn change(fd: &OwnedFd, o: &Opt) -> bool {
        let ask = || get(fd, o.level, o.name, o.len).unwrap();
        let before = ask();
        let numbers = [1u64, 2, 3, 0, 7, 64, 1 << 32 | 1, 70_000].map(|v| {
            let mut bytes = v.to_le_bytes().to_vec();
            bytes.resize(o.len.max(4), 0);
            bytes.truncate(o.len.max(4));
            bytes
        });
        let texts = [b"lo".to_vec(), b"reno".to_vec()];
        numbers.into_iter().chain(texts).any(|v| {
            let n = v.len() as u64;
            let args = [o.level as u64, o.name as u64].map(Arg::Int).into_iter();
            let args = args.chain([Arg::In(v), Arg::Int(n)]).collect();
            common::ask(fd, libc::SYS_setsockopt, args).is_ok() && ask() != before
        })
    }

    /// `None` without the rights, and on kernels that do not have all fields of this socket.
    fn census(of: &OwnedFd) -> Option<Census> {
        let census = match Census::new() {
            Ok(c) => c,
            Err(e) if matches!(e.errno, Errno::EPERM | Errno::ENOSYS) => {
                eprintln!("skipped: {e}");
                return None;
            }
            Err(e) => panic!("{e}"),
        };
        let all = census.of(HostPid::own()).unwrap();
        let own = all.into_iter().find(|e| e.slot == of.as_raw_fd());
        own?.options.map(|_| census)
    }

    /// Of all options of a sort of socket, each changed in a new one.
    fn all_decide(make: impl Fn() -> [OwnedFd; 2], options: &[Opt], least: usize) {
        let Some(census) = census(&make()[0]) else {
            return;
        };
        let mut unseen = Vec::new();
        let mut changed = Vec::new();
        for o in options {
            let [fd, _peer] = make();
            let before = decides(&census, &fd);
            if !change(&fd, o) {
                continue;
            }
            changed.push(o.text);
            if decides(&census, &fd) == before {
                unseen.push(o.text);
            }
        }
        assert!(unseen.is_empty(), "{unseen:?}");
        assert!(changed.len() >= least, "only {changed:?}");
    }

    /// Two ends of a connection.
    fn connection(address: &str) -> [OwnedFd; 2] {
        let listener = TcpListener::bind(address).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        [near.into(), listener.accept().unwrap().0.into()]
    }

    fn tcp_options(family: i32) -> Vec<Opt> {
        let s = Sort {
            family,
            kind: libc::SOCK_STREAM,
            protocol: libc::IPPROTO_TCP,
        };
        let tables = s.options(state::ESTABLISHED).into_iter();
        let route = |t: &&[Opt]| std::ptr::eq(*t, super::super::inet_options::ROUTE_OPTIONS);
        let mut all = tables.filter(|t| !route(t)).collect::<Vec<_>>().concat();
        all.extend([SOCKET_OPTIONS, LOCK, &FIELDS, &TCP_FIELDS].concat());
        all.push(Opt::bytes(
            libc::SOL_TCP,
            libc::TCP_CONGESTION,
            "TCP_CONGESTION",
            16,
        ));
        all
    }

    #[test]
    fn who_was_not_asked_keeps_what_is_its_own() {
        let tmp = tempfile::tempdir().unwrap();
        let ([one, _peer], [other, _others]) = (connection("[::1]:0"), connection("[::1]:0"));
        let ends = [one, other];
        let Some(census) = census(&ends[0]) else {
            return;
        };
        let set = |fd: &OwnedFd, level, name, v: i32| {
            let args = [level as u64, name as u64].map(Arg::Int).into_iter();
            let value = [Arg::In(v.to_le_bytes().to_vec()), Arg::Int(4)];
            common::ask(fd, libc::SYS_setsockopt, args.chain(value).collect()).unwrap();
        };
        let hops = (libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS);
        for (fd, n) in ends.iter().zip([1, 2]) {
            set(fd, SOL_SOCKET, libc::SO_RCVBUF, 20_000 * n);
            set(fd, hops.0, hops.1, 70);
            set(fd, libc::SOL_TCP, libc::TCP_KEEPIDLE, 33);
        }
        let key = decides(&census, &ends[0]);
        assert_eq!(key, decides(&census, &ends[1]));
        let images = stasis_proto::ImageDir::open(tmp.path()).unwrap();
        let (options, pids) = (crate::Options::new(tmp.path()), Default::default());
        let mut cx = DumpCx::new(&options, &images, &pids);
        let s = Sort {
            family: libc::AF_INET6,
            kind: libc::SOCK_STREAM,
            protocol: libc::IPPROTO_TCP,
        };
        for (fd, n) in ends.iter().zip([1, 2]) {
            let told = super::super::testing::see(fd, |seen| {
                let seen = Seen {
                    options: Some(&key),
                    link: seen.link,
                    info: seen.info,
                    fown: seen.fown,
                    ..*seen
                };
                let by_twin = tcp(&seen, (s, state::ESTABLISHED), &mut cx).unwrap();
                let mut asked = Asked::of(&seen, s, state::ESTABLISHED).unwrap();
                asked.own(&seen, s).unwrap();
                assert_eq!(format!("{by_twin:?}"), format!("{asked:?}"));
                by_twin
            });
            assert_eq!(told.opts.so_rcvbuf, 40_000 * n);
            assert_eq!(cx.twins.tcp.len(), 1);
        }
    }

    #[test]
    fn what_decides_options_of_unix_sockets_changes_with_each() {
        let options = [SOCKET_OPTIONS, LOCK, &FIELDS].concat();
        all_decide(
            || {
                UnixStream::pair()
                    .map(|(a, b)| [a.into(), b.into()])
                    .unwrap()
            },
            &options,
            25,
        );
    }

    #[test]
    fn what_decides_options_of_tcp_sockets_changes_with_each() {
        let options = tcp_options(libc::AF_INET);
        all_decide(|| connection("127.0.0.1:0"), &options, 45);
    }

    #[test]
    fn what_decides_options_of_tcp_sockets_of_ipv6_changes_with_each() {
        let mut options = tcp_options(libc::AF_INET6);
        options.extend(IPV6_FIELDS);
        all_decide(|| connection("[::1]:0"), &options, 60);
    }
}
