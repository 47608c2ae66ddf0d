//! A TCP packet that is given to a socket as if it had come from the other end. Not a kind: part of [`super::inet`].
//!
//! It is sent by a raw socket to the own address, so it goes round the loopback device and reaches the socket without being
//! routed again.
use super::act::Stagehand;
use super::inet_address::sockaddr;
use super::tcp_acts::is_v4;
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::host::Host;
use std::net::{IpAddr, SocketAddr};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;

/// A packet without data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    /// Who seems to send it.
    pub from: SocketAddr,
    /// The socket.
    pub to: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    /// As in the packet: not scaled.
    pub window: u16,
    pub fin: bool,
}

/// The Internet checksum (RFC 1071).
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for p in parts {
        for w in p.chunks(2) {
            let low = w.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([w[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IP header, of the version of the addresses, for so many bytes of this protocol; and what goes into the checksum of
/// those.
pub(super) fn ip_header(from: IpAddr, to: IpAddr, protocol: u8, len: usize) -> (Vec<u8>, Vec<u8>) {
    const HOPS: u8 = 255;
    match (from.to_canonical(), to.to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (IPV4_HEADER + len) as u16;
            let mut h = vec![0x45, 0];
            h.extend(total.to_be_bytes());
            // identification, fragments: the kernel fills in the checksum
            h.extend([0, 0, 0, 0, HOPS, protocol, 0, 0]);
            h.extend(from.octets());
            h.extend(to.octets());
            let mut pseudo = [from.octets(), to.octets()].concat();
            pseudo.extend([0, protocol]);
            pseudo.extend((len as u16).to_be_bytes());
            (h, pseudo)
        }
        (from, to) => {
            let v6 = |a: IpAddr| match a {
                IpAddr::V6(a) => a.octets(),
                IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            };
            let mut h = vec![0x60, 0, 0, 0];
            h.extend((len as u16).to_be_bytes());
            h.extend([protocol, HOPS]);
            h.extend(v6(from));
            h.extend(v6(to));
            let mut pseudo = [v6(from), v6(to)].concat();
            pseudo.extend((len as u32).to_be_bytes());
            pseudo.extend([0, 0, 0, protocol]);
            (h, pseudo)
        }
    }
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        const FIN: u8 = 1;
        const ACK: u8 = 16;
        let mut t = Vec::with_capacity(IPV6_HEADER + TCP_HEADER);
        t.extend(self.from.port().to_be_bytes());
        t.extend(self.to.port().to_be_bytes());
        t.extend(self.seq.to_be_bytes());
        t.extend(self.ack.to_be_bytes());
        // length of the header in words, flags
        t.extend([
            (TCP_HEADER as u8 / 4) << 4,
            if self.fin { ACK | FIN } else { ACK },
        ]);
        t.extend(self.window.to_be_bytes());
        t.extend([0, 0, 0, 0]);
        let tcp = libc::IPPROTO_TCP as u8;
        let (mut packet, pseudo) = ip_header(self.from.ip(), self.to.ip(), tcp, t.len());
        let sum = checksum(&[&pseudo, &t]);
        t[16..18].copy_from_slice(&sum.to_be_bytes());
        packet.extend(t);
        packet
    }
}

/// Sends a packet to a socket of this host.
pub(super) fn give(_on: &mut Stagehand<'_>, p: &Packet) -> Result<()> {
    send_raw(&p.bytes(), p.to)
}

/// Sends an IP packet, header and all, to an own address.
pub(super) fn send_raw(packet: &[u8], to: SocketAddr) -> Result<()> {
    let cannot = |e| {
        Error::new(
            "E6552",
            Blame::Host,
            format!("cannot give a packet to the socket {to}"),
        )
        .why(e)
        .advice(
            "raw sockets need CAP_NET_RAW in the user namespace that owns the network namespace",
        )
    };
    let v4 = is_v4(&to);
    // no port, no scope but that of an address of a link
    let mut a = to;
    a.set_port(0);
    if v4 {
        a.set_ip(to.ip().to_canonical());
    }
    let (family, text) = match v4 {
        true => (libc::AF_INET, "AF_INET"),
        false => (libc::AF_INET6, "AF_INET6"),
    };
    let raw = FdRef(0);
    let mut host = Host::default();
    let kind = (libc::SOCK_RAW | libc::SOCK_CLOEXEC) as u64;
    // a protocol of RAW means that the header is ours
    let row = Call::new(
        libc::SYS_socket,
        vec![
            Arg::Named(family as u64, text.into()),
            Arg::Named(kind, "SOCK_RAW|SOCK_CLOEXEC".into()),
            Arg::Named(libc::IPPROTO_RAW as u64, "IPPROTO_RAW".into()),
        ],
    );
    host.play(&row.binds(raw)).map_err(cannot)?;
    let mark = super::sockopts::set_int_row(
        raw,
        libc::SOL_SOCKET,
        libc::SO_MARK,
        "SO_MARK",
        stasis_netlock::PASS_MARK as i32,
    );
    host.play(&mark).map_err(cannot)?;
    let b = sockaddr(&a);
    let len = Arg::Int(b.len() as u64);
    let row = Call::new(
        libc::SYS_sendto,
        vec![
            Arg::Fd(raw),
            Arg::In(packet.to_vec()),
            Arg::Int(packet.len() as u64),
            Arg::Int(0),
            Arg::In(b),
            len,
        ],
    );
    host.play(&row.must_be(packet.len() as u64))
        .map_err(cannot)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_rfc() {
        assert_eq!(
            checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
        assert_eq!(checksum(&[&[0xff]]), !0xff00);
    }

    #[test]
    fn a_packet_sums_to_nothing() {
        for (from, to) in [
            ("10.0.0.1:80", "10.0.0.2:4000"),
            ("[::1]:80", "[2001:db8::7]:9"),
        ] {
            let p = Packet {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                seq: 0x01020304,
                ack: 5,
                window: 77,
                fin: true,
            };
            let b = p.bytes();
            let head = b.len() - TCP_HEADER;
            assert_eq!(
                head,
                if p.to.is_ipv4() {
                    IPV4_HEADER
                } else {
                    IPV6_HEADER
                }
            );
            let (_, pseudo) = ip_header(p.from.ip(), p.to.ip(), 6, TCP_HEADER);
            assert_eq!(checksum(&[&pseudo, &b[head..]]), 0);
        }
    }
}
