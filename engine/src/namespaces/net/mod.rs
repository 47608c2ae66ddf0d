//! The contents of a network namespace: devices, addresses, routes, rules, neighbours, settings.
//!
//! Images hold the kernel's own rtnetlink messages where CRIU's format has them (`ifaddr`, `route`, `route6`, `rule`: what `ip
//! ... save` of iproute2 writes), so nothing is lost that this version has no name for. A restore plays them back, and afterwards
//! takes away what the kernel made by itself and the image does not have: the two namespaces are then equal, also where an
//! address or a route that the kernel makes had been removed.
//!
//! What does not come back: learned neighbours and bridge entries (they are learned again), counters, queueing disciplines,
//! tunnels whose keys the kernel does not tell (wireguard, macsec, xfrm).
mod dump;
mod filter;
mod links;
mod parts;
mod restore;
mod sysctls;
mod tracked;

use stasis_kernel::error::SysError;
use std::os::fd::BorrowedFd;

pub use dump::dump;
pub use restore::{devices, restore};

/// First word of `ifaddr-N.img` (iproute2, ip/ipaddress.c: IPADDR_DUMP_MAGIC).
const ADDRESS_MAGIC: u32 = 0x4736_1222;
/// First word of `route-N.img` and `route6-N.img` (iproute2, ip/iproute.c: IPROUTE_DUMP_MAGIC).
const ROUTE_MAGIC: u32 = 0x4531_1224;
/// First word of `rule-N.img` (iproute2, ip/iprule.c: IPRULE_DUMP_MAGIC).
const RULE_MAGIC: u32 = 0x7170_6986;

/// Message types (linux/rtnetlink.h).
mod rtm {
    pub const NEWLINK: u16 = 16;
    pub const GETLINK: u16 = 18;
    pub const SETLINK: u16 = 19;
    pub const NEWADDR: u16 = 20;
    pub const DELADDR: u16 = 21;
    pub const GETADDR: u16 = 22;
    pub const NEWROUTE: u16 = 24;
    pub const DELROUTE: u16 = 25;
    pub const GETROUTE: u16 = 26;
    pub const NEWNEIGH: u16 = 28;
    pub const GETNEIGH: u16 = 30;
    pub const NEWRULE: u16 = 32;
    pub const DELRULE: u16 = 33;
    pub const GETRULE: u16 = 34;
    pub const NEWNSID: u16 = 88;
    pub const GETNSID: u16 = 90;
    pub const NEWNEXTHOP: u16 = 104;
    pub const GETNEXTHOP: u16 = 106;
}

/// Attributes of links (linux/if_link.h).
mod ifla {
    pub const ADDRESS: u16 = 1;
    pub const BROADCAST: u16 = 2;
    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const TXQLEN: u16 = 13;
    pub const LINKMODE: u16 = 17;
    pub const LINKINFO: u16 = 18;
    pub const IFALIAS: u16 = 20;
    pub const GROUP: u16 = 27;
    pub const NET_NS_FD: u16 = 28;
    pub const NUM_TX_QUEUES: u16 = 31;
    pub const NUM_RX_QUEUES: u16 = 32;
    pub const LINK_NETNSID: u16 = 37;
    pub const NEW_IFINDEX: u16 = 49;
    pub const INFO_KIND: u16 = 1;
    pub const INFO_DATA: u16 = 2;
    pub const INFO_SLAVE_KIND: u16 = 4;
    pub const INFO_SLAVE_DATA: u16 = 5;
    pub const VETH_INFO_PEER: u16 = 1;
    pub const MACVLAN_MODE: u16 = 1;
    pub const MACVLAN_FLAGS: u16 = 2;
}

/// Attributes of numbers of namespaces (linux/net_namespace.h).
mod netnsa {
    pub const NSID: u16 = 1;
    pub const FD: u16 = 3;
}

/// `struct rtgenmsg` of no family, with its padding.
const RTGENMSG: [u8; 4] = [0; 4];

/// Handles of the tree's network namespaces, by their numbers in the image.
pub type Places<'a> = &'a dyn Fn(u32) -> Option<BorrowedFd<'a>>;

/// Are these handles of one namespace?
fn same_namespace(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> Result<bool, SysError> {
    let which = |fd| {
        nix::sys::stat::fstat(fd)
            .map(|s| (s.st_dev, s.st_ino))
            .map_err(|e| SysError::new("fstat", e, "a network namespace"))
    };
    Ok(which(a)? == which(b)?)
}

/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

/// `struct ifinfomsg` of no family: index, flags, and which flags count.
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; IFINFOMSG] {
    let mut b = [0; IFINFOMSG];
    b[4..8].copy_from_slice(&index.to_ne_bytes());
    b[8..12].copy_from_slice(&flags.to_ne_bytes());
    b[12..16].copy_from_slice(&change.to_ne_bytes());
    b
}
