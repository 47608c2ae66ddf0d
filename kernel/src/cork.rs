//! The part of a datagram that a UDP or UDP-Lite socket holds back (UDP_CORK, MSG_MORE). No call shows it: it is read out of the
//! kernel's memory ([`crate::inside`]), and stays there.
use crate::btf;
use crate::error::{SysError, SysResult};
use crate::skb::Packets;
use nix::errno::Errno;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

btf::places! {
    family: "udp_sock" "pending",
    length: "udp_sock" "len",
    cork: "inet_sock" "cork",
    flow: "inet_cork_full" "fl",
    device: "flowi_common" "flowic_oif",
    to4: "flowi4" "daddr",
    ports4: "flowi4" "uli",
    to6: "flowi6" "daddr",
    ports6: "flowi6" "uli",
}

/// Bytes of the header of a datagram.
const HEADER: usize = 8;

/// What is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corked {
    /// Whom it will be sent to.
    pub to: SocketAddr,
    /// Its bytes, as far as the program has given them.
    pub bytes: Vec<u8>,
}

/// A way to read it.
#[derive(Debug)]
pub struct Reader {
    packets: Packets,
    at: Places,
}

impl Reader {
    /// One for many sockets.
    ///
    /// # Errors
    /// EPERM without the rights to read the kernel's memory.
    pub fn new() -> SysResult<Self> {
        Ok(Reader {
            packets: Packets::new()?,
            at: Places::new()?,
        })
    }
    /// What a UDP or UDP-Lite socket holds back. `None`: nothing.
    ///
    /// # Errors
    /// EAGAIN: it changes meanwhile.
    pub fn read(&self, socket: BorrowedFd<'_>) -> SysResult<Option<Corked>> {
        let (inside, at) = (&self.packets.inside, &self.at);
        let sk = inside.socket(socket)?;
        let flow = sk + at.cork + at.flow;
        // struct flowi is a union of those of both versions
        let (ip, ports, device): (IpAddr, _, _) = match inside.int(sk + at.family)? as i32 {
            0 => return Ok(None),
            libc::AF_INET => {
                let a = inside.int(flow + at.to4)?;
                (a.to_ne_bytes().into(), at.ports4, 0)
            }
            _ => {
                let a = inside.bytes(flow + at.to6, 16)?;
                let a: [u8; 16] = a.try_into().unwrap_or_default();
                let link = Ipv6Addr::from(a).is_unicast_link_local();
                let device = inside.int(flow + at.device)?;
                (a.into(), at.ports6, if link { device } else { 0 })
            }
        };
        // that of the other end comes first (net/flow.h, union flowi_uli)
        let port = u16::from_be(inside.int(flow + ports)? as u16);
        let mut bytes = Vec::new();
        for p in self.packets.unsent(sk)? {
            bytes.extend(self.packets.payload(p)?);
        }
        let length = inside.int(sk + at.length)? as usize & 0xffff;
        if bytes.len() < HEADER || bytes.len() != length {
            let what = format!("{} bytes, and {length} are counted", bytes.len());
            return Err(SysError::new("bpf(BTF)", Errno::EAGAIN, what));
        }
        let to = match ip {
            IpAddr::V6(a) => SocketAddrV6::new(a, port, 0, device).into(),
            a => SocketAddr::new(a, port),
        };
        bytes.drain(..HEADER);
        Ok(Some(Corked { to, bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::{AsFd, AsRawFd};

    /// Gives a socket a part of a datagram.
    fn more(s: &UdpSocket, bytes: &[u8]) {
        // SAFETY: pointer and length of a slice, which is only read.
        let n = unsafe {
            libc::send(
                s.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_MORE,
            )
        };
        assert_eq!(n, bytes.len() as isize);
    }

    #[test]
    fn what_is_held_back_is_read_and_stays() {
        let reader = match Reader::new() {
            Ok(r) => r,
            Err(e) if e.errno == Errno::EPERM => return eprintln!("skipped: {e}"),
            Err(e) => panic!("{e}"),
        };
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            a.connect(b.local_addr().unwrap()).unwrap();
            assert_eq!(reader.read(a.as_fd()).unwrap(), None);
            let mut all = Vec::new();
            // some behind the header, others in pages
            for (n, len) in [3, 0, 5000, 1, 30_000].into_iter().enumerate() {
                let piece: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256 + n) as u8).collect();
                more(&a, &piece);
                all.extend(piece);
                let seen = reader.read(a.as_fd()).unwrap().unwrap();
                assert_eq!(seen.to, b.local_addr().unwrap());
                assert_eq!(seen.bytes.len(), all.len());
                assert!(seen.bytes == all, "other bytes after {len}");
            }
            a.send(b"!").unwrap();
            assert_eq!(reader.read(a.as_fd()).unwrap(), None);
            let mut got = vec![0; 1 << 16];
            let n = b.recv(&mut got).unwrap();
            all.push(b'!');
            assert!(got[..n] == all, "{n} bytes arrived");
        }
    }
}
