//! Connections, as both locks name them.
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// One connection, or one listener, from its end here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE, IPPROTO_SCTP or IPPROTO_DCCP.
    pub protocol: u8,
    /// The address here. An unspecified one with `remote: None`: whatever comes to the port.
    pub local: SocketAddr,
    /// The other end; `None`: any (a listener).
    pub remote: Option<SocketAddr>,
}

/// Bytes of `struct tuple` in lock.bpf.c.
pub(crate) const KEY: usize = 40;

impl Tuple {
    /// A connection of TCP.
    pub fn tcp(local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            protocol: 6,
            local,
            remote: Some(remote),
        }
    }
    /// `struct tuple` of lock.bpf.c.
    pub(crate) fn key(&self) -> [u8; KEY] {
        let mut k = [0; KEY];
        k[..16].copy_from_slice(&wide(self.local.ip()));
        k[32..34].copy_from_slice(&self.local.port().to_be_bytes());
        if let Some(r) = self.remote {
            k[16..32].copy_from_slice(&wide(r.ip()));
            k[34..36].copy_from_slice(&r.port().to_be_bytes());
        }
        k[36] = self.protocol;
        k
    }
    /// Addresses as packets have them: an IPv4 address mapped into IPv6 is one of IPv4 there.
    pub(crate) fn local(&self) -> IpAddr {
        self.local.ip().to_canonical()
    }
    /// The other end's address, as packets have it.
    pub(crate) fn remote(&self) -> Option<(IpAddr, u16)> {
        self.remote.map(|r| (r.ip().to_canonical(), r.port()))
    }
}

/// Sixteen bytes: IPv4 mapped, unspecified as zero.
fn wide(ip: IpAddr) -> [u8; 16] {
    let ip = ip.to_canonical();
    if ip.is_unspecified() {
        return Ipv6Addr::UNSPECIFIED.octets();
    }
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
