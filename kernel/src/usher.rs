//! Connections that a listening socket has and that nobody has accepted: how they are looked at, and how they get there. Long because
//! the program, the packet and the test of both stand together.
//!
//! They have no descriptor, so nobody can ask for what they hold. To look at one it is accepted, read in repair mode, closed without
//! a word, and put back at the end of the queue; when each had its turn the queue is as it was.
//!
//! **Putting one into the queue.** The kernel lets an eBPF program answer for a handshake that it has not seen
//! (`bpf_sk_assign_tcp_reqsk()`, made for SYN cookies of one's own): for an acknowledgement that arrives, the program names the
//! listener and what both ends agreed on, and the kernel makes the connection with the sequence numbers of that packet. So a
//! packet that holds the whole receive queue (and the FIN, if one came) is sent round the loopback device, and a program there
//! leads it to the listener. KERNEL(>=6.9)
use crate::bpf::{self, Insn, Side};
use crate::error::{SysError, SysResult};
use crate::repair::Connection;
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The loopback device has this number in every network namespace.
const LOOPBACK: u32 = 1;
/// A packet carries the whole queue, so it must not be longer than what is read of one connection here.
pub const MOST_BYTES: usize = 60_000;
const HEADERS: usize = 40 + 20;
/// `struct bpf_tcp_req_attrs` (net/tcp.h).
const ATTRS: usize = 20;
/// Of `struct bpf_sock_tuple`: its IPv4 and its IPv6 half.
const TUPLE: [usize; 2] = [12, 36];
const VALUE: usize = ATTRS + TUPLE[1];
/// TCPI_OPT_* (linux/tcp.h).
const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const WSCALE: u8 = 4;
const ECN: u8 = 8;
const USEC_TS: u8 = 64;
/// Where TCP_INFO of a listening socket has how many connections wait.
const WAITING: usize = 24;

/// What leads connections to their listeners, in the network namespace it was made in, for as long as it lives.
#[derive(Debug)]
pub struct Usher {
    ways: [Option<Way>; 2],
}

/// One version of IP.
#[derive(Debug)]
struct Way {
    raw: OwnedFd,
    attrs: OwnedFd,
    /// Holds the program on the loopback device.
    _link: OwnedFd,
}

fn usher_error(call: &'static str, errno: Errno, what: &str) -> SysError {
    SysError::new(call, errno, what.to_string())
}

fn six(a: &SocketAddr) -> usize {
    matches!(a.ip().to_canonical(), IpAddr::V6(_)).into()
}

/// How many connections of a listening socket nobody has accepted.
pub(crate) fn waiting(listener: BorrowedFd<'_>) -> Result<u32, i32> {
    let mut info = [0u8; WAITING + 4];
    let mut n = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most as many bytes as the array has.
    let r = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut n,
        )
    };
    if r != 0 {
        return Err(Errno::last_raw());
    }
    let [.., a, b, c, d] = info;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

impl Usher {
    /// For the versions of IP that are wanted (4, 6), in the caller's network namespace. Its packets carry this mark.
    ///
    /// # Errors
    /// ENOSYS: the kernel is too old; EPERM without CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW.
    pub fn new(versions: [bool; 2], mark: u32) -> SysResult<Self> {
        const FUNCTION: &str = "bpf_sk_assign_tcp_reqsk";
        let Some(function) = crate::btf::kernel_function(FUNCTION) else {
            return Err(usher_error("bpf(PROG_LOAD)", Errno::ENOSYS, FUNCTION));
        };
        let mut ways = [None, None];
        for i in (0..2).filter(|i| versions[*i]) {
            let attrs = bpf::word_map(VALUE as u32)?;
            let code = program(attrs.as_raw_fd(), i, mark, function);
            let program = bpf::load_classifier("stasis_usher", &code)?;
            ways[i] = Some(Way {
                raw: raw(i, mark)?,
                attrs,
                _link: bpf::link(program.as_fd(), LOOPBACK, Side::Ingress)?,
            });
        }
        Ok(Self { ways })
    }
    /// Puts a connection into the queue of a listening socket, behind those that are there. Nothing of it may exist any more.
    /// Makes system calls only: it also runs in the copy of a process that had threads.
    ///
    /// # Errors
    /// EMSGSIZE: its queue is longer than [`MOST_BYTES`]; ETIMEDOUT: the packet did not arrive.
    pub fn lead(
        &self,
        listener: BorrowedFd<'_>,
        c: &Guest<'_>,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Result<(), Errno> {
        let way = self.ways[six(&peer)].as_ref().ok_or(Errno::EAFNOSUPPORT)?;
        if c.receive.len() > MOST_BYTES {
            return Err(Errno::EMSGSIZE);
        }
        let before = waiting(listener).map_err(Errno::from_raw)?;
        let value = c.value(local, peer);
        bpf::set_word(way.attrs.as_fd(), &value).map_err(|e| e.errno)?;
        let mut packet = [0u8; HEADERS + MOST_BYTES];
        let n = c.packet(local, peer, &mut packet);
        // the loopback device may drop a packet when memory is short
        for _ in 0..3 {
            send(way.raw.as_raw_fd(), &packet[..n], local)?;
            for wait in 0..50 {
                if waiting(listener).map_err(Errno::from_raw)? > before {
                    return Ok(());
                }
                if wait > 0 {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            }
        }
        Err(Errno::ETIMEDOUT)
    }
}

/// A connection that has sent nothing yet, as far as an [`Usher`] needs to know it.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// TCPI_OPT_*: what both ends agreed on.
    pub options: u8,
    /// Window scales: what the other end's windows are multiplied by, and ours.
    pub scale: (u8, u8),
    /// Sequence number behind the last byte received, counting a FIN.
    pub inq_seq: u32,
    /// Sequence number of the first byte to send.
    pub outq_seq: u32,
    /// Largest segment the other end takes.
    pub mss: u32,
    /// TCP_TIMESTAMP.
    pub timestamp: u32,
    /// How many bytes the other end takes.
    pub window: u32,
    /// The other end's FIN has come.
    pub fin: bool,
    /// What waits to be read.
    pub receive: &'a [u8],
}

impl<'a> Guest<'a> {
    /// Of what was read of a connection.
    pub fn of(c: &'a Connection) -> Self {
        const CLOSE_WAIT: u8 = 8;
        Self {
            options: c.info[5],
            scale: (c.info[6] & 15, c.info[6] >> 4),
            inq_seq: c.inq_seq,
            outq_seq: c.outq_seq,
            mss: c.mss,
            timestamp: c.timestamp,
            window: c.window[1],
            fin: c.info[0] == CLOSE_WAIT,
            receive: &c.receive,
        }
    }
    fn has(&self, option: u8) -> u8 {
        u8::from(self.options & option != 0)
    }
    fn value(&self, local: SocketAddr, peer: SocketAddr) -> [u8; VALUE] {
        let mut v = [0; VALUE];
        // the kernel refuses smaller ones (net/core/filter.c)
        let least = [536, 1220][six(&peer)];
        let mss = self.mss.clamp(least, 0xffff) as u16;
        let (snd, rcv) = match self.has(WSCALE) {
            0 => (0, 0),
            _ => self.scale,
        };
        // the other end's last timestamp is not known: 0 lets the next one be taken
        v[4..8].copy_from_slice(&self.timestamp.to_ne_bytes());
        v[8..10].copy_from_slice(&mss.to_ne_bytes());
        v[10] = rcv;
        v[11] = snd;
        v[12] = self.has(ECN);
        v[13] = self.has(WSCALE);
        v[14] = self.has(SACK);
        v[15] = self.has(TIMESTAMPS);
        v[16] = self.has(USEC_TS);
        let t = &mut v[ATTRS..];
        let ports = match (peer.ip().to_canonical(), local.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                t[..4].copy_from_slice(&from.octets());
                t[4..8].copy_from_slice(&to.octets());
                8
            }
            (from, to) => {
                t[..16].copy_from_slice(&octets(from));
                t[16..32].copy_from_slice(&octets(to));
                32
            }
        };
        t[ports..ports + 2].copy_from_slice(&peer.port().to_be_bytes());
        t[ports + 2..ports + 4].copy_from_slice(&local.port().to_be_bytes());
        v
    }
    /// The packet, header and all.
    fn packet(&self, local: SocketAddr, peer: SocketAddr, to: &mut [u8]) -> usize {
        const TCP: u8 = libc::IPPROTO_TCP as u8;
        const HOPS: u8 = 64;
        const FIN: u8 = 1;
        const PUSH_ACK: u8 = 24;
        let len = 20 + self.receive.len();
        let (head, mut sum) = match (peer.ip().to_canonical(), local.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(own)) => {
                let total = (20 + len) as u16;
                to[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, HOPS, TCP, 0, 0]);
                to[2..4].copy_from_slice(&total.to_be_bytes());
                to[12..16].copy_from_slice(&from.octets());
                to[16..20].copy_from_slice(&own.octets());
                (20, words(&to[12..20]))
            }
            (from, own) => {
                to[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, TCP, HOPS]);
                to[4..6].copy_from_slice(&(len as u16).to_be_bytes());
                to[8..24].copy_from_slice(&octets(from));
                to[24..40].copy_from_slice(&octets(own));
                (40, words(&to[8..40]))
            }
        };
        let shift = if self.has(WSCALE) == 1 {
            self.scale.0.min(14)
        } else {
            0
        };
        let window = (self.window >> shift).min(0xffff) as u16;
        let start = self
            .inq_seq
            .wrapping_sub(u32::from(self.fin))
            .wrapping_sub(self.receive.len() as u32);
        let t = &mut to[head..head + len];
        t[..2].copy_from_slice(&peer.port().to_be_bytes());
        t[2..4].copy_from_slice(&local.port().to_be_bytes());
        t[4..8].copy_from_slice(&start.to_be_bytes());
        t[8..12].copy_from_slice(&self.outq_seq.to_be_bytes());
        t[12..14].copy_from_slice(&[5 << 4, PUSH_ACK | if self.fin { FIN } else { 0 }]);
        t[14..16].copy_from_slice(&window.to_be_bytes());
        t[16..20].fill(0);
        t[20..].copy_from_slice(self.receive);
        sum += words(t) + u64::from(TCP) + len as u64;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        t[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        head + len
    }
}

fn octets(a: IpAddr) -> [u8; 16] {
    match a {
        IpAddr::V6(a) => a.octets(),
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
    }
}

/// The sum of RFC 1071, not folded.
fn words(b: &[u8]) -> u64 {
    let pairs = b.chunks_exact(2);
    let last = pairs.remainder().first().map_or(0, |b| u64::from(*b) << 8);
    pairs.fold(last, |sum, w| {
        sum + u64::from(u16::from_be_bytes([w[0], w[1]]))
    })
}

/// A socket that sends packets with headers of our own.
fn raw(version: usize, mark: u32) -> SysResult<OwnedFd> {
    let family = [libc::AF_INET, libc::AF_INET6][version];
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(SysError::last("socket", "SOCK_RAW"));
    }
    // SAFETY: just made; nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: four bytes are read from `mark`, which lives through the call.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw const mark).cast(),
            4,
        )
    };
    match r {
        0 => Ok(fd),
        _ => Err(SysError::last("setsockopt", "SO_MARK")),
    }
}

fn send(raw: i32, packet: &[u8], to: SocketAddr) -> Result<(), Errno> {
    // sockaddr_in and sockaddr_in6, without a port, which raw sockets of IPv6 do not take
    let mut a = [0u8; 28];
    let len = match to.ip().to_canonical() {
        IpAddr::V4(ip) => {
            a[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            a[4..8].copy_from_slice(&ip.octets());
            16
        }
        IpAddr::V6(ip) => {
            a[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            a[8..24].copy_from_slice(&ip.octets());
            if let SocketAddr::V6(to) = to {
                a[24..28].copy_from_slice(&to.scope_id().to_ne_bytes());
            }
            28
        }
    };
    // SAFETY: packet and address are read, as many bytes as is told.
    let n = unsafe {
        libc::sendto(
            raw,
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_DONTWAIT,
            a.as_ptr().cast(),
            len,
        )
    };
    if n == packet.len() as isize {
        Ok(())
    } else {
        Err(Errno::last())
    }
}

/// The program on the loopback device: a packet with the mark, whose addresses have no socket but the listener, becomes the
/// connection that the map describes.
fn program(map: i32, version: usize, mark: u32, function: u32) -> Vec<Insn> {
    const LOAD: u8 = 0x61; // LDX|MEM|W
    const STORE: u8 = 0x62; // ST|MEM|W
    const MAP: u8 = 0x18; // LD|IMM|DW, two instructions
    const COPY: u8 = 0xbf; // ALU64|MOV|X
    const SET: u8 = 0xb7; // ALU64|MOV|K
    const ADD: u8 = 0x07; // ALU64|ADD|K
    const UNLESS: u8 = 0x55; // JMP|JNE|K
    const IF: u8 = 0x15; // JMP|JEQ|K
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const OF_MAP: u8 = 1; // BPF_PSEUDO_MAP_FD
    const OF_KERNEL: u8 = 2; // BPF_PSEUDO_KFUNC_CALL
    const MAP_LOOKUP: i32 = 1;
    const SK_RELEASE: i32 = 86;
    const SKC_LOOKUP_TCP: i32 = 99;
    const SKC_TO_TCP_SOCK: i32 = 137;
    const LISTEN: i32 = 10;
    const NEXT: i32 = -1; // TCX_NEXT
    /// `struct __sk_buff`.
    const SKB_MARK: i16 = 8;
    const SKB_PROTOCOL: i16 = 16;
    /// `struct bpf_sock`.
    const SOCK_STATE: i16 = 72;
    let protocol = [0x0800u16, 0x86dd][version].swap_bytes();
    let i = |code, to, from, off, imm| Insn {
        code,
        to,
        from,
        off,
        imm,
    };
    // distances are counted from the instruction behind a jump
    vec![
        i(COPY, 6, 1, 0, 0),
        i(LOAD, 1, 6, SKB_MARK, 0),
        i(UNLESS, 1, 0, 31, mark as i32),
        i(LOAD, 1, 6, SKB_PROTOCOL, 0),
        i(UNLESS, 1, 0, 29, protocol.into()),
        i(STORE, 10, 0, -4, 0),
        i(COPY, 2, 10, 0, 0),
        i(ADD, 2, 0, 0, -4),
        i(MAP, 1, OF_MAP, 0, map),
        i(0, 0, 0, 0, 0),
        i(CALL, 0, 0, 0, MAP_LOOKUP),
        i(IF, 0, 0, 22, 0),
        i(COPY, 7, 0, 0, 0),
        i(COPY, 1, 6, 0, 0),
        i(COPY, 2, 7, 0, 0),
        i(ADD, 2, 0, 0, ATTRS as i32),
        i(SET, 3, 0, 0, TUPLE[version] as i32),
        i(SET, 4, 0, 0, -1), // BPF_F_CURRENT_NETNS
        i(SET, 5, 0, 0, 0),
        i(CALL, 0, 0, 0, SKC_LOOKUP_TCP),
        i(IF, 0, 0, 13, 0),
        i(COPY, 8, 0, 0, 0),
        i(LOAD, 1, 8, SOCK_STATE, 0),
        i(UNLESS, 1, 0, 8, LISTEN),
        i(COPY, 1, 8, 0, 0),
        i(CALL, 0, 0, 0, SKC_TO_TCP_SOCK),
        i(IF, 0, 0, 5, 0),
        i(COPY, 1, 6, 0, 0),
        i(COPY, 2, 0, 0, 0),
        i(COPY, 3, 7, 0, 0),
        i(SET, 4, 0, 0, ATTRS as i32),
        i(CALL, 0, OF_KERNEL, 0, function as i32),
        i(COPY, 1, 8, 0, 0),
        i(CALL, 0, 0, 0, SK_RELEASE),
        i(SET, 0, 0, 0, NEXT),
        i(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repair;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    /// A network namespace of its own, with a loopback device that is up, for the rest of this thread.
    fn own_network() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let s = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut request = [0u8; 40];
        request[..2].copy_from_slice(b"lo");
        request[16] = (libc::IFF_UP | libc::IFF_RUNNING) as u8;
        // SAFETY: an ifreq of 40 bytes, which is only read.
        let r = unsafe { libc::ioctl(s.as_raw_fd(), libc::SIOCSIFFLAGS, request.as_ptr()) };
        assert_eq!(r, 0);
    }

    fn one(address: &str) {
        let l = TcpListener::bind(address).unwrap();
        let mut all = Vec::new();
        for n in 0..3u8 {
            let mut c = TcpStream::connect(l.local_addr().unwrap()).unwrap();
            c.write_all(&[n; 5]).unwrap();
            all.push(c);
        }
        // one with much to say, one that says no more
        all[1].write_all(&[7; 40_000]).unwrap();
        all[2].shutdown(std::net::Shutdown::Write).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(waiting(l.as_fd()), Ok(3));
        let usher = Usher::new([true, true], 0x5741_5353).unwrap();
        let read = repair::queued(l.as_fd(), &usher).unwrap();
        assert_eq!(waiting(l.as_fd()), Ok(3));
        let lengths: Vec<usize> = read.iter().map(|q| q.connection.receive.len()).collect();
        assert_eq!(lengths, [5, 40_005, 5]);
        drop(usher);
        for (n, c) in all.iter_mut().enumerate() {
            let (mut s, from) = l.accept().unwrap();
            assert_eq!(from, c.local_addr().unwrap());
            assert_eq!(from, read[n].peer);
            let mut b = vec![0; lengths[n]];
            s.read_exact(&mut b).unwrap();
            assert_eq!(b[..5], [n as u8; 5]);
            s.write_all(b"answer").unwrap();
            let mut b = [0; 6];
            c.read_exact(&mut b).unwrap();
            if n == 2 {
                assert_eq!(s.read(&mut b).unwrap(), 0);
            } else {
                c.write_all(b"more").unwrap();
                s.read_exact(&mut b[..4]).unwrap();
            }
        }
    }

    #[test]
    fn what_waits_is_read_and_waits_again() {
        own_network();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            one(address);
        }
    }

    #[test]
    fn a_packet_sums_to_nothing() {
        let g = Guest {
            options: 7,
            scale: (7, 7),
            inq_seq: 1000,
            outq_seq: 5,
            mss: 1460,
            timestamp: 9,
            window: 64000,
            fin: true,
            receive: b"odd",
        };
        for (own, peer) in [
            ("10.0.0.1:80", "10.0.0.2:4000"),
            ("[::1]:80", "[2001:db8::7]:9"),
        ] {
            let (own, peer) = (own.parse().unwrap(), peer.parse().unwrap());
            let mut b = [0; 128];
            let n = g.packet(own, peer, &mut b);
            let head = n - 23;
            let addresses = if head == 20 { 12 } else { 8 };
            let mut sum = words(&b[addresses..head]) + words(&b[head..n]) + 6 + 23;
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(sum, 0xffff);
        }
    }
}
