//! Datagrams that wait in an internet socket, looked at without taking them out.
use crate::error::{SysError, SysResult};
use nix::errno::Errno;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A datagram of UDP or UDP-Lite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Who sent it: sockaddr_in or sockaddr_in6.
    pub from: Vec<u8>,
    /// Whom it was sent to, if the socket asks to be told (IP_PKTINFO, IPV6_RECVPKTINFO).
    pub to: Option<IpAddr>,
    /// Several datagrams of this length were joined into one (UDP_GRO).
    pub joined: Option<usize>,
}

/// The longest datagram there is.
const LONGEST: usize = 1 << 16;
/// linux/udp.h, linux/in.h, linux/in6.h.
const UDP_GRO: i32 = 104;
const SOL_UDP: i32 = 17;

/// Reads the datagram at the peek offset of a socket (SO_PEEK_OFF), which moves behind it. `None`: there is none.
///
/// # Errors
/// As recvmsg(2). A pending error of the socket is *taken* by this call: ask poll(2) for POLLERR before.
pub fn peek(socket: BorrowedFd<'_>) -> SysResult<Option<Datagram>> {
    let mut bytes = vec![0; LONGEST];
    let mut from = [0u8; 28];
    // `cmsghdr` wants 8-byte alignment, which `u64` gives
    let mut control = [0u64; 128];
    // SAFETY: all zeroes is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: LONGEST,
    };
    msg.msg_name = from.as_mut_ptr().cast();
    msg.msg_namelen = from.len() as u32;
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = size_of_val(&control) as _;
    let n = loop {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: `msg` points to memory of ours with its true lengths.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut msg, flags) };
        if n >= 0 {
            break n as usize;
        }
        match Errno::last() {
            Errno::EINTR => {}
            Errno::EAGAIN => return Ok(None),
            e => return Err(SysError::new("recvmsg(MSG_PEEK)", e, "a datagram")),
        }
    };
    bytes.truncate(n);
    let mut d = Datagram {
        bytes,
        from: from[..(msg.msg_namelen as usize).min(from.len())].to_vec(),
        to: None,
        joined: None,
    };
    // SAFETY: the kernel filled `control` with well-formed headers of `msg_controllen` bytes, which the CMSG macros walk.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(&msg);
        while !c.is_null() {
            let len = ((*c).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let data = std::slice::from_raw_parts(libc::CMSG_DATA(c), len);
            match ((*c).cmsg_level, (*c).cmsg_type) {
                // struct in_pktinfo: index, own address, address in the header
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if len >= 12 => {
                    d.to = Some(IpAddr::from([data[8], data[9], data[10], data[11]]));
                }
                // struct in6_pktinfo: address, index
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if len >= 16 => {
                    let a: Option<[u8; 16]> = data[..16].try_into().ok();
                    d.to = a.map(IpAddr::from);
                }
                (SOL_UDP, UDP_GRO) if len >= 4 => {
                    let n = i32::from_ne_bytes([data[0], data[1], data[2], data[3]]);
                    d.joined = usize::try_from(n).ok().filter(|n| *n > 0);
                }
                _ => {}
            }
            c = libc::CMSG_NXTHDR(&msg, c);
        }
    }
    Ok(Some(d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unix;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_queue_is_seen_and_stays() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        for text in ["", "one", "", "four"] {
            b.send_to(text.as_bytes(), a.local_addr().unwrap()).unwrap();
        }
        let seen = unix::with_peek_offsets(&[(a.as_fd(), -1)], || {
            unix::set_peek_offset(a.as_fd(), 0).unwrap();
            let mut seen = Vec::new();
            while let Some(d) = peek(a.as_fd()).unwrap() {
                seen.push(d.bytes.len());
            }
            seen
        });
        assert_eq!(seen.unwrap(), [0, 3, 0, 4]);
        let mut buf = [0; 9];
        for len in [0, 3, 0, 4] {
            assert_eq!(
                a.recv_from(&mut buf).unwrap(),
                (len, b.local_addr().unwrap())
            );
        }
    }
}
