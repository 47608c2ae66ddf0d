//! Datagrams that wait in a UDP or UDP-Lite socket. Not a kind of its own: part of [`super::inet`].
//!
//! They are read with MSG_PEEK at rising peek offsets, which takes nothing out and is set back also if the engine is killed. They come
//! back as packets with their senders' addresses, sent round the loopback device by a raw socket. Of a socket that is bound to no address
//! the kernel tells whom a datagram was sent to only if the program asked for that (IP_PKTINFO); otherwise it comes back
//! to an own address from which its sender can be reached.
//!
//! What stands beside the bytes is made anew: time of arrival, hop limit, traffic class, device. In a group of SO_REUSEPORT the kernel
//! chooses the member, as it did when the datagram came.
use super::act::Stagehand;
use super::inet_address::{self as address, parse_sockaddr, sockaddr};
use super::inet_options::Sort;
use super::sockopts::{self, Buffers, set_row};
use super::tcp_packets::{checksum, ip_header, send_raw};
use super::unixsk::readiness;
use super::{Act, DumpCx, PlanCx, Seen, Stage};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Call, FdRef};
use stasis_kernel::datagram::{self, Datagram};
use stasis_kernel::unix;
use stasis_proto::pb;
use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};

const UDP_HEADER: usize = 8;
/// The longest one: the length of a packet has 16 bits, and that of IPv4 counts its header.
pub(super) fn longest(family: i32) -> usize {
    let header = if family == libc::AF_INET { 20 } else { 0 };
    0xffff - header - UDP_HEADER
}
/// More than this is not looked at.
const LIMIT: usize = 32 << 20;
const SO_PEEK_OFF: i32 = 42;

/// The datagrams in a socket's queue, the first to be received first.
pub(super) fn read(seen: &Seen, cx: &mut DumpCx) -> Result<Vec<pb::StasisDatagram>> {
    let ready = readiness(seen.fd, libc::POLLIN)?;
    if ready & libc::POLLIN == 0 {
        return Ok(Vec::new());
    }
    if ready & libc::POLLERR != 0 {
        // looking would take the error away
        cx.warn(format!(
            "{}: an error waits to be told; it and the datagrams that wait are dropped",
            seen.place()
        ));
        return Ok(Vec::new());
    }
    let offset = sockopts::get_int(seen.fd, libc::SOL_SOCKET, SO_PEEK_OFF)?.unwrap_or(-1);
    let all = unix::with_peek_offsets(&[(seen.fd, offset)], || -> Result<Vec<Datagram>> {
        unix::set_peek_offset(seen.fd, 0)?;
        let (mut all, mut bytes) = (Vec::new(), 0);
        while bytes < LIMIT
            && let Some(d) = datagram::peek(seen.fd)?
        {
            bytes += d.bytes.len() + 1;
            all.push(d);
        }
        Ok(all)
    })??;
    Ok(all.into_iter().flat_map(entries).collect())
}

/// A datagram, or the several ones that were joined.
fn entries(d: Datagram) -> Vec<pb::StasisDatagram> {
    let one = |bytes: &[u8]| pb::StasisDatagram {
        from: d.from.clone(),
        to: d.to.map(|ip| sockaddr(&SocketAddr::new(ip, 0))),
        bytes: bytes.to_vec(),
    };
    match d.joined {
        Some(n) => d.bytes.chunks(n).map(one).collect(),
        None => vec![one(&d.bytes)],
    }
}

/// Datagrams that come into a socket.
#[derive(Debug, Clone)]
pub struct Deliver {
    /// The socket, bound.
    pub file: FdRef,
    /// UDP or UDP-Lite.
    pub protocol: u8,
    /// Its address.
    pub local: SocketAddr,
    /// Sender, receiver if known, bytes.
    pub all: Vec<(SocketAddr, Option<IpAddr>, Vec<u8>)>,
    /// What its buffers will be.
    pub buffers: Buffers,
    /// The device it is bound to.
    pub device: Option<Call>,
}

/// Plans what waits in a socket.
pub(super) fn plan(e: &pb::InetSkEntry, s: Sort, local: SocketAddr, cx: &mut PlanCx) {
    let file = cx.file(e.id);
    let all = e.stasis.as_ref().map_or(&[][..], |x| &x.datagrams);
    let map = &cx.options.network.addresses;
    let one = |d: &pb::StasisDatagram| {
        let from = address::moved(map, parse_sockaddr(&d.from)?);
        let to = d.to.as_deref().and_then(parse_sockaddr);
        let to = to.map(|a| address::moved(map, a).ip());
        let good = d.bytes.len() <= longest(s.family) && !to.is_some_and(|a| a.is_multicast());
        good.then(|| (from, to, d.bytes.clone()))
    };
    let good: Vec<_> = all.iter().filter_map(one).collect();
    let lost = match local.ip().is_multicast() {
        true => all.len(),
        false => all.len() - good.len(),
    };
    if lost > 0 {
        cx.warnings.push(format!(
            "{lost} datagrams that were sent to groups do not come back into the socket {local}"
        ));
    }
    if good.is_empty() || local.ip().is_multicast() {
        return;
    }
    let deliver = Deliver {
        file,
        protocol: s.protocol as u8,
        local,
        all: good,
        buffers: Buffers::of(file, &e.opts),
        device: sockopts::device_row(file, &e.opts),
    };
    cx.act_at(
        Stage::Queues,
        Act::Deliver(Box::new(deliver)),
        "datagrams that wait",
    );
}

impl Deliver {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let bytes: usize = self.all.iter().map(|d| d.2.len() + 2048).sum();
        let roomy = Buffers {
            receive: self.buffers.receive.max((4 * bytes) as u32),
            lock: None,
            ..self.buffers
        };
        roomy.perform(on)?;
        // they come over the loopback device
        if self.device.is_some() {
            let none = set_row(
                self.file,
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                "SO_BINDTODEVICE",
                b"",
            );
            on.host.play(&none)?;
        }
        for (from, to, bytes) in &self.all {
            let to = SocketAddr::new(self.receiver(*from, *to), self.local.port());
            send_raw(&packet(self.protocol, *from, to, bytes), to)?;
        }
        if let Some(row) = &self.device {
            on.host.play(row)?;
        }
        self.arrived(on)?;
        self.buffers.perform(on)
    }
    /// The address a datagram was sent to, or may have been.
    fn receiver(&self, from: SocketAddr, to: Option<IpAddr>) -> IpAddr {
        if let Some(to) = to {
            return to;
        }
        let own = self.local.ip();
        if !own.is_unspecified() {
            return own;
        }
        let any = match from.ip().to_canonical() {
            IpAddr::V4(_) => "0.0.0.0:0",
            IpAddr::V6(_) => "[::]:0",
        };
        let way = || -> std::io::Result<IpAddr> {
            let s = UdpSocket::bind(any)?;
            s.connect(SocketAddr::new(
                from.ip().to_canonical(),
                from.port().max(1),
            ))?;
            Ok(s.local_addr()?.ip())
        };
        way().unwrap_or(match from.ip().to_canonical() {
            IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        })
    }
    /// Something waits in the socket.
    fn arrived(&self, on: &mut Stagehand<'_>) -> Result<()> {
        // the loopback device may need a moment
        for wait in 0..100 {
            if readiness(on.fd(self.file)?, libc::POLLIN)? & libc::POLLIN != 0 {
                return Ok(());
            }
            if wait > 0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        Err(Error::new(
            "E6555",
            Blame::Host,
            format!("datagrams do not come back into the socket {}", self.local),
        )
        .why("they were sent round the loopback device, and nothing arrived")
        .advice("rules of a firewall may hold packets on the loopback device: let those from lo pass; --skip-in-flight restores without them"))
    }
}

/// A datagram as a packet.
fn packet(protocol: u8, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let len = UDP_HEADER + bytes.len();
    let mut t = Vec::with_capacity(len);
    t.extend(from.port().to_be_bytes());
    t.extend(to.port().to_be_bytes());
    // of UDP-Lite: how much the checksum covers
    t.extend((len as u16).to_be_bytes());
    t.extend([0, 0]);
    t.extend(bytes);
    let (mut packet, pseudo) = ip_header(from.ip(), to.ip(), protocol, len);
    let sum = match checksum(&[&pseudo, &t]) {
        // 0 says that there is none
        0 => 0xffff,
        s => s,
    };
    t[6..8].copy_from_slice(&sum.to_be_bytes());
    packet.extend(t);
    packet
}

impl fmt::Display for Deliver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.all.iter().map(|d| d.2.len()).sum();
        write!(
            f,
            "deliver(file#{}, {} datagrams of {bytes} bytes to {})",
            self.file.0,
            self.all.len(),
            self.local
        )
    }
}
