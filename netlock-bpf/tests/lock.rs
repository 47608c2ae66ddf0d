//! Two network namespaces and a pair of devices between them. What one sends is seen by AF_PACKET sockets on the other's device.
//! Needs root; changes nothing outside of namespaces it makes.
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, connect, recv, setsockopt,
    socket, sockopt,
};
use stasis_kernel::netlink::{Body, NLM_F_CREATE, NLM_F_EXCL, Netlink};
use stasis_kernel::ns::{self, Ns};
use stasis_netlock::{Lock, Means, PASS_MARK, Scope, Tuple, all_in, sweep};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const SERVER: [&str; 2] = ["10.66.0.1", "fd66::1"];
const CLIENT: [&str; 2] = ["10.66.0.2", "fd66::2"];
/// Long enough for an answer to come, and for the first two retransmissions.
const SILENCE: Duration = Duration::from_millis(700);

/// A fresh network namespace: a thread makes it, its handle keeps it.
fn fresh() -> OwnedFd {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        std::fs::File::open("/proc/thread-self/ns/net")
            .expect("proc")
            .into()
    })
    .join()
    .expect("thread")
}

fn at<R: Send>(place: &OwnedFd, f: impl FnOnce() -> R + Send) -> R {
    ns::visit(&[(Ns::Net, place.as_fd())], f).expect("visit")
}

fn ifinfo(index: u32, flags: u32) -> [u8; 16] {
    let mut b = [0; 16];
    b[4..8].copy_from_slice(&index.to_ne_bytes());
    b[8..12].copy_from_slice(&flags.to_ne_bytes());
    b[12..16].copy_from_slice(&flags.to_ne_bytes());
    b
}

/// A pair with these numbers, one end in each namespace; addresses as given.
fn pair(server: &OwnedFd, client: &OwnedFd, index: u32, addresses: [[&str; 2]; 2]) {
    at(server, || {
        let mut nl = Netlink::route().expect("netlink");
        let mut b = Body::new(&ifinfo(index, 0));
        b.text(3, &format!("s{index}")).nest(18, |i| {
            i.text(1, "veth").nest(2, |d| {
                let mut peer = Body::new(&ifinfo(index, 0));
                peer.text(3, &format!("c{index}"))
                    .u32(28, client.as_raw_fd() as u32);
                d.attr(1, &peer.0);
            });
        });
        nl.act("newlink", 16, NLM_F_CREATE | NLM_F_EXCL, &b.0)
            .expect("veth");
    });
    for (place, own) in [(server, addresses[0]), (client, addresses[1])] {
        at(place, || {
            let mut nl = Netlink::route().expect("netlink");
            for i in [1, index] {
                nl.act("setlink", 19, 0, &ifinfo(i, 1)).expect("up");
            }
            for a in own {
                let ip: std::net::IpAddr = a.parse().expect("address");
                let (family, len, bytes) = match ip {
                    std::net::IpAddr::V4(v) => (2u8, 24u8, v.octets().to_vec()),
                    std::net::IpAddr::V6(v) => (10, 64, v.octets().to_vec()),
                };
                // IFA_F_NODAD
                let mut b = Body::new(&[family, len, 2, 0, index as u8, 0, 0, 0]);
                b.attr(1, &bytes).attr(2, &bytes);
                nl.act("newaddr", 20, NLM_F_CREATE, &b.0).expect("address");
            }
        });
    }
}

/// Frames of connections that a device's other end sent: true if one of them is a reset.
struct Watch(OwnedFd);

impl Watch {
    fn on(place: &OwnedFd) -> Self {
        at(place, || {
            let fd = socket(
                nix::sys::socket::AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
            .expect("packet socket");
            Self(fd)
        })
    }
    /// Frames with ports `port` as source: (all, resets).
    fn seen(&self, port: u16) -> (usize, usize) {
        let (mut n, mut resets) = (0, 0);
        let mut b = [0u8; 2048];
        while let Ok(len) = recv(self.0.as_raw_fd(), &mut b, MsgFlags::empty()) {
            let f = &b[..len];
            let kind = u16::from_be_bytes([f[12], f[13]]);
            let (protocol, at) = match kind {
                0x0800 => (f[23], 14 + usize::from(f[14] & 15) * 4),
                0x86dd => (f[20], 54),
                _ => continue,
            };
            if !matches!(protocol, 6 | 17) || f.len() < at + 14 {
                continue;
            }
            if u16::from_be_bytes([f[at], f[at + 1]]) != port {
                continue;
            }
            n += 1;
            if protocol == 6 && f[at + 13] & 4 != 0 {
                resets += 1;
            }
        }
        (n, resets)
    }
}

struct Scene {
    server: OwnedFd,
    client: OwnedFd,
}

impl Scene {
    fn new() -> Self {
        let (server, client) = (fresh(), fresh());
        pair(&server, &client, 2, [SERVER, CLIENT]);
        Self { server, client }
    }
    fn listen(&self, ip: &str) -> TcpListener {
        let addr = SocketAddr::new(ip.parse().expect("ip"), 0);
        at(&self.server, || TcpListener::bind(addr).expect("bind"))
    }
    fn connect(&self, to: SocketAddr) -> TcpStream {
        at(&self.client, || {
            TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("connect")
        })
    }
}

fn libc_linger() -> nix::libc::linger {
    nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    }
}

/// No answer within [`SILENCE`]; what was sent is not refused either.
fn silent(s: &mut TcpStream) {
    s.set_read_timeout(Some(SILENCE)).expect("timeout");
    let mut b = [0];
    match s.read(&mut b) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
        other => panic!("something came through: {other:?}"),
    }
}

/// A connection whose server goes away, as between a dump and a restore, with nobody told.
fn server_dies_unnoticed(means: Means, family: usize, scope: Scope) {
    let scene = Scene::new();
    let listener = scene.listen(SERVER[family]);
    let address = listener.local_addr().expect("address");
    let mut client = scene.connect(address);
    let (mut server, peer) = listener.accept().expect("accept");
    client.write_all(b"before").expect("send");
    let mut b = [0; 6];
    server.read_exact(&mut b).expect("receive");

    let mut lock = Lock::prepare(scene.server.as_fd(), scope, means).expect("lock");
    // prepared is not armed
    client.write_all(b"still!").expect("send");
    server.read_exact(&mut b).expect("receive");
    let watch = Watch::on(&scene.client);
    lock.arm(&[Tuple::tcp(address, peer)]).expect("arm");
    client.write_all(b"during").expect("send");
    server.set_nonblocking(true).expect("flag");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(
        server.read(&mut b).expect_err("not delivered").kind(),
        ErrorKind::WouldBlock
    );
    // as a closed socket in repair: no FIN is left that would be sent again, and nothing is there that answers but resets
    setsockopt(&server, sockopt::Linger, &libc_linger()).expect("linger");
    drop(server);
    drop(listener);
    silent(&mut client);
    assert_eq!(watch.seen(address.port()), (0, 0), "nothing leaves");
    lock.release().expect("release");
    // without the lock the truth comes out: the control of this test
    let over = Instant::now() + Duration::from_secs(10);
    while watch.seen(address.port()).1 == 0 {
        assert!(Instant::now() < over, "no reset came even without the lock");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(all_in(scene.server.as_fd()).expect("list").is_empty());
}

#[test]
fn ebpf_holds_a_namespace_v4() {
    server_dies_unnoticed(Means::Ebpf, 0, Scope::WholeNamespace);
}
#[test]
fn ebpf_holds_a_namespace_v6() {
    server_dies_unnoticed(Means::Ebpf, 1, Scope::WholeNamespace);
}
#[test]
fn ebpf_holds_a_connection_v4() {
    server_dies_unnoticed(Means::Ebpf, 0, Scope::Connections);
}
#[test]
fn ebpf_holds_a_connection_v6() {
    server_dies_unnoticed(Means::Ebpf, 1, Scope::Connections);
}
#[test]
fn nftables_holds_a_namespace_v4() {
    server_dies_unnoticed(Means::Nftables, 0, Scope::WholeNamespace);
}
#[test]
fn nftables_holds_a_namespace_v6() {
    server_dies_unnoticed(Means::Nftables, 1, Scope::WholeNamespace);
}
#[test]
fn nftables_holds_a_connection_v4() {
    server_dies_unnoticed(Means::Nftables, 0, Scope::Connections);
}
#[test]
fn nftables_holds_a_connection_v6() {
    server_dies_unnoticed(Means::Nftables, 1, Scope::Connections);
}

/// A port nobody listens on is silent; marked sockets are let through, also a handshake with a marked listener (eBPF); a device
/// that appears during the lock is held, too.
fn ports(means: Means, family: usize) {
    let scene = Scene::new();
    let mut lock = Lock::prepare(scene.server.as_fd(), Scope::WholeNamespace, means).expect("lock");
    lock.arm(&[]).expect("arm");
    let watch = Watch::on(&scene.client);
    let closed = SocketAddr::new(SERVER[family].parse().expect("ip"), 9);
    let refused = at(&scene.client, || {
        TcpStream::connect_timeout(&closed, SILENCE)
            .expect_err("nobody listens")
            .kind()
    });
    assert_eq!(refused, ErrorKind::TimedOut, "a closed port answers");
    // a datagram to a closed port would be answered by ICMP, which a connected socket gets as an error
    at(&scene.client, || {
        let any = SocketAddr::new(CLIENT[family].parse().expect("ip"), 0);
        let u = UdpSocket::bind(any).expect("bind");
        u.connect(closed).expect("connect");
        u.set_read_timeout(Some(SILENCE)).expect("timeout");
        u.send(b"x").expect("send");
        assert_eq!(
            u.recv(&mut [0]).expect_err("no answer").kind(),
            ErrorKind::WouldBlock
        );
    });
    assert_eq!(watch.seen(closed.port()).0, 0);
    // marked: out, to the other namespace, and its answers in
    let outer = SocketAddr::new(CLIENT[family].parse().expect("ip"), 0);
    let there = at(&scene.client, || TcpListener::bind(outer).expect("bind"));
    let to = there.local_addr().expect("address");
    at(&scene.server, || {
        let domain = if family == 0 {
            nix::sys::socket::AddressFamily::Inet
        } else {
            nix::sys::socket::AddressFamily::Inet6
        };
        let s = socket(domain, SockType::Stream, SockFlag::empty(), None).expect("socket");
        setsockopt(&s, sockopt::Mark, &lock.pass_mark()).expect("mark");
        let _ = setsockopt(
            &s,
            sockopt::SendTimeout,
            &nix::sys::time::TimeVal::new(3, 0),
        );
        let done = match to {
            SocketAddr::V4(a) => connect(s.as_raw_fd(), &SockaddrIn::from(a)),
            SocketAddr::V6(a) => connect(s.as_raw_fd(), &SockaddrIn6::from(a)),
        };
        done.expect("a marked socket is let through");
    });
    if means == Means::Ebpf {
        let l = scene.listen(SERVER[family]);
        setsockopt(&l, sockopt::Mark, &PASS_MARK).expect("mark");
        // the second net is for devices that come later, so it does not stand in the way
        scene.connect(l.local_addr().expect("address"));
    }
    // a device that comes later
    let l = scene.listen(["0.0.0.0", "::"][family]);
    let late = [["10.67.0.1", "fd67::1"], ["10.67.0.2", "fd67::2"]];
    pair(&scene.server, &scene.client, 7, late);
    let to = SocketAddr::new(
        late[0][family].parse().expect("ip"),
        l.local_addr().expect("address").port(),
    );
    let kind = at(&scene.client, || {
        TcpStream::connect_timeout(&to, SILENCE)
            .expect_err("it is held")
            .kind()
    });
    assert_eq!(kind, ErrorKind::TimedOut);
    lock.open().expect("open");
    at(&scene.client, || {
        TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("it is open")
    });
    lock.release().expect("release");
}

#[test]
fn ebpf_ports_v4() {
    ports(Means::Ebpf, 0);
}
#[test]
fn ebpf_ports_v6() {
    ports(Means::Ebpf, 1);
}
#[test]
fn nftables_ports_v4() {
    ports(Means::Nftables, 0);
}
#[test]
fn nftables_ports_v6() {
    ports(Means::Nftables, 1);
}

/// Over lo, within one namespace.
fn loopback(means: Means) {
    let place = fresh();
    at(&place, || {
        let mut nl = Netlink::route().expect("netlink");
        nl.act("setlink", 19, 0, &ifinfo(1, 1)).expect("up");
    });
    let l = at(&place, || TcpListener::bind("127.0.0.1:0").expect("bind"));
    let to = l.local_addr().expect("address");
    let mut a = at(&place, || TcpStream::connect(to).expect("connect"));
    let (mut b, _) = l.accept().expect("accept");
    let mut lock = Lock::prepare(place.as_fd(), Scope::WholeNamespace, means).expect("lock");
    lock.arm(&[]).expect("arm");
    a.write_all(b"x").expect("send");
    silent(&mut b);
    lock.open().expect("open");
    b.set_read_timeout(Some(Duration::from_secs(5)))
        .expect("timeout");
    b.read_exact(&mut [0]).expect("sent again");
    lock.release().expect("release");
}

#[test]
fn ebpf_loopback() {
    loopback(Means::Ebpf);
}
#[test]
fn nftables_loopback() {
    loopback(Means::Nftables);
}

/// A child makes a lock and dies: unkept, it holds nothing from then on and can be swept; kept, it holds until somebody releases
/// it.
fn owner_dies(means: Means, kept: bool) {
    let scene = Scene::new();
    let l = scene.listen(SERVER[0]);
    let to = l.local_addr().expect("address");
    let helper = std::env::current_exe().expect("exe");
    let mut child = std::process::Command::new(helper)
        .args([
            "--exact",
            "a_lock_for_another_test",
            "--ignored",
            "--nocapture",
        ])
        .env("LOCK_MEANS", format!("{means:?}"))
        .env("LOCK_KEPT", if kept { "1" } else { "0" })
        .stdin(scene.server.try_clone().expect("dup"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("child");
    let mut out = std::io::BufReader::new(child.stdout.take().expect("pipe"));
    let mut line = String::new();
    while !line.contains("armed") {
        line.clear();
        assert_ne!(
            std::io::BufRead::read_line(&mut out, &mut line).expect("read"),
            0,
            "the child failed"
        );
    }
    let held = || {
        at(&scene.client, || {
            TcpStream::connect_timeout(&to, SILENCE).is_err()
        })
    };
    assert!(held());
    let seen: Vec<_> = all_in(scene.server.as_fd())
        .expect("list")
        .iter()
        .map(Lock::report)
        .collect();
    assert_eq!(
        (seen.len(), seen[0].armed, seen[0].kept),
        (1, true, kept),
        "{seen:?}"
    );
    assert_eq!(seen[0].owner.pid, child.id() as i32);
    child.kill().expect("kill");
    child.wait().expect("wait");
    if !kept {
        // the kernel empties the switch in a work item
        let over = Instant::now() + Duration::from_secs(5);
        while held() {
            assert!(Instant::now() < over, "the lock outlived its owner");
        }
        sweep(scene.server.as_fd()).expect("sweep");
        assert!(all_in(scene.server.as_fd()).expect("list").is_empty());
        return;
    }
    assert!(held(), "a kept lock went with its owner");
    assert_eq!(sweep(scene.server.as_fd()).expect("sweep"), 0);
    let lock = Lock::adopt(&seen[0].id, scene.server.as_fd())
        .expect("adopt")
        .expect("it is there");
    lock.release().expect("release");
    assert!(!held());
    assert!(all_in(scene.server.as_fd()).expect("list").is_empty());
}

#[test]
#[ignore = "a part of other tests"]
fn a_lock_for_another_test() {
    let means = match std::env::var("LOCK_MEANS").as_deref() {
        Ok("Ebpf") => Means::Ebpf,
        _ => Means::Nftables,
    };
    let mut lock =
        Lock::prepare(std::io::stdin().as_fd(), Scope::WholeNamespace, means).expect("lock");
    lock.arm(&[]).expect("arm");
    if std::env::var("LOCK_KEPT").as_deref() == Ok("1") {
        lock.keep().expect("keep");
    }
    println!("armed");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn ebpf_goes_with_its_owner() {
    owner_dies(Means::Ebpf, false);
}
#[test]
fn ebpf_kept_outlives_its_owner() {
    owner_dies(Means::Ebpf, true);
}
#[test]
fn nftables_goes_with_its_owner() {
    owner_dies(Means::Nftables, false);
}
#[test]
fn nftables_kept_outlives_its_owner() {
    owner_dies(Means::Nftables, true);
}
