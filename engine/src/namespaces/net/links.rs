//! Devices: how each sort is made. Long, as each sort has its own way.
use super::{IFINFOMSG, Places, RTGENMSG, ifinfo, ifla, netnsa, rtm};
use crate::error::{Blame, Error, Result};
use crate::kinds::common::ioctl_row;
use crate::options::NetworkOptions;
use nix::errno::Errno;
use stasis_kernel::call::{Arg, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::host::Host;
use stasis_kernel::ids::HostPid;
use stasis_kernel::netlink::{Attrs, Body, Messages, NLM_F_CREATE, NLM_F_EXCL, Netlink};
use stasis_kernel::ns::{self, Ns};
use stasis_proto::{ImageDir, Kind, pb};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Flags a person can set (linux/if.h): UP, DEBUG, NOTRAILERS, NOARP, PROMISC, ALLMULTI, MULTICAST, PORTSEL, AUTOMEDIA, DYNAMIC.
const SETTABLE: u32 = 0x1 | 0x4 | 0x20 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x2000 | 0x4000 | 0x8000;
const IFF_UP: u32 = 1;
/// IFLA_BR_STP_STATE
const BR_STP_STATE: u16 = 5;
/// IFLA_IPTUN_* of sit devices (linux/if_tunnel.h), in the order of `sit_entry`.
mod iptun {
    pub const LINK: u16 = 1;
    pub const LOCAL: u16 = 2;
    pub const REMOTE: u16 = 3;
    pub const TTL: u16 = 4;
    pub const TOS: u16 = 5;
    pub const FLAGS: u16 = 8;
    pub const PROTO: u16 = 9;
    pub const PMTUDISC: u16 = 10;
    pub const SIXRD_PREFIX: u16 = 11;
    pub const SIXRD_RELAY_PREFIX: u16 = 12;
    pub const SIXRD_PREFIXLEN: u16 = 13;
    pub const SIXRD_RELAY_PREFIXLEN: u16 = 14;
    pub const ENCAP_TYPE: u16 = 15;
    pub const ENCAP_FLAGS: u16 = 16;
    pub const ENCAP_SPORT: u16 = 17;
    pub const ENCAP_DPORT: u16 = 18;
}
/// IFLA_TUN_* (linux/if_link.h).
mod tun {
    pub const OWNER: u16 = 1;
    pub const GROUP: u16 = 2;
    pub const TYPE: u16 = 3;
    pub const PI: u16 = 4;
    pub const VNET_HDR: u16 = 5;
    pub const PERSIST: u16 = 6;
    pub const MULTI_QUEUE: u16 = 7;
}
/// IFF_* of tun devices (linux/if_tun.h).
const IFF_NO_PI: u32 = 0x1000;
const IFF_VNET_HDR: u32 = 0x4000;
const IFF_MULTI_QUEUE: u32 = 0x100;
const IFF_PERSIST: u32 = 0x800;
const TUNSETOWNER: u64 = 0x4004_54cc;
const TUNSETGROUP: u64 = 0x4004_54ce;
const TUNSETIFINDEX: u64 = 0x4004_54da;
/// `sizeof(struct virtio_net_hdr)`: the size of that header unless somebody set another.
const VNET_HDR_SIZE: u32 = 10;

/// The words of an address, as CRIU's images have them.
fn words(v: Option<&[u8]>) -> Vec<u32> {
    let word = |w: &[u8]| w.try_into().map(u32::from_ne_bytes).ok();
    v.unwrap_or(&[]).chunks(4).filter_map(word).collect()
}

/// The settings of a tunnel for IPv6 in IPv4.
pub fn sit_entry(d: &Attrs<'_>) -> pb::SitEntry {
    pb::SitEntry {
        link: d.u32(iptun::LINK),
        local: words(d.get(iptun::LOCAL)),
        remote: words(d.get(iptun::REMOTE)),
        ttl: d.u8(iptun::TTL).map(u32::from),
        tos: d.u8(iptun::TOS).map(u32::from),
        pmtudisc: d.u8(iptun::PMTUDISC).map(|v| v != 0),
        proto: d.u8(iptun::PROTO).map(u32::from),
        flags: d.u16(iptun::FLAGS).map(u32::from),
        encap_type: d.u16(iptun::ENCAP_TYPE).map(u32::from),
        encap_flags: d.u16(iptun::ENCAP_FLAGS).map(u32::from),
        encap_sport: d.u16(iptun::ENCAP_SPORT).map(u32::from),
        encap_dport: d.u16(iptun::ENCAP_DPORT).map(u32::from),
        rd_prefixlen: d.u16(iptun::SIXRD_PREFIXLEN).map(u32::from),
        rd_prefix: words(d.get(iptun::SIXRD_PREFIX)),
        relay_prefixlen: d.u16(iptun::SIXRD_RELAY_PREFIXLEN).map(u32::from),
        relay_prefix: words(d.get(iptun::SIXRD_RELAY_PREFIX)),
    }
}

fn sit_data(s: &pb::SitEntry) -> Body {
    let mut b = Body::default();
    let bytes = |w: &[u32]| w.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
    let optional = |b: &mut Body, kind, value: Option<u32>, size: usize| {
        if let Some(v) = value {
            b.attr(kind, &v.to_ne_bytes()[..size]);
        }
    };
    optional(&mut b, iptun::LINK, s.link, 4);
    for (kind, w) in [
        (iptun::LOCAL, &s.local),
        (iptun::REMOTE, &s.remote),
        (iptun::SIXRD_PREFIX, &s.rd_prefix),
        (iptun::SIXRD_RELAY_PREFIX, &s.relay_prefix),
    ] {
        // no address has more than four words
        if !w.is_empty() && w.len() <= 4 {
            b.attr(kind, &bytes(w));
        }
    }
    optional(&mut b, iptun::TTL, s.ttl, 1);
    optional(&mut b, iptun::TOS, s.tos, 1);
    optional(&mut b, iptun::PMTUDISC, s.pmtudisc.map(u32::from), 1);
    optional(&mut b, iptun::PROTO, s.proto, 1);
    optional(&mut b, iptun::FLAGS, s.flags, 2);
    optional(&mut b, iptun::ENCAP_TYPE, s.encap_type, 2);
    optional(&mut b, iptun::ENCAP_FLAGS, s.encap_flags, 2);
    optional(&mut b, iptun::ENCAP_SPORT, s.encap_sport, 2);
    optional(&mut b, iptun::ENCAP_DPORT, s.encap_dport, 2);
    optional(&mut b, iptun::SIXRD_PREFIXLEN, s.rd_prefixlen, 2);
    optional(&mut b, iptun::SIXRD_RELAY_PREFIXLEN, s.relay_prefixlen, 2);
    b
}

/// The settings of a tun or tap device. What only its open files could tell has the kernel's defaults; the kind of those files
/// has the true values.
pub fn tun_entry(d: &Attrs<'_>) -> pb::TunLinkEntry {
    let on = |kind, flag| {
        if d.u8(kind).unwrap_or(0) != 0 {
            flag
        } else {
            0
        }
    };
    let no_pi = if d.u8(tun::PI).unwrap_or(0) == 0 {
        IFF_NO_PI
    } else {
        0
    };
    pb::TunLinkEntry {
        flags: u32::from(d.u8(tun::TYPE).unwrap_or(0))
            | no_pi
            | on(tun::VNET_HDR, IFF_VNET_HDR)
            | on(tun::PERSIST, IFF_PERSIST)
            | on(tun::MULTI_QUEUE, IFF_MULTI_QUEUE),
        owner: d.u32(tun::OWNER).map_or(-1, |v| v as i32),
        group: d.u32(tun::GROUP).map_or(-1, |v| v as i32),
        vnethdr: VNET_HDR_SIZE,
        sndbuf: i32::MAX as u32,
    }
}

/// What devices are made with.
pub struct Workshop<'a, 'n> {
    /// In the namespace.
    pub inside: &'a mut Netlink,
    /// The namespace.
    pub place: BorrowedFd<'a>,
    /// The caller's, once a device needed it: [`Workshop::outside`].
    pub caller: Option<Outside>,
    /// The caller's options.
    pub options: &'a NetworkOptions,
    /// Number of the namespace in the image.
    pub ns_id: u32,
    /// The image.
    pub dir: &'a ImageDir,
    /// All of the tree's, with those that are made by now.
    pub nets: Places<'n>,
}

/// The caller's network namespace, where the other ends of devices go.
pub struct Outside {
    handle: OwnedFd,
    nl: Netlink,
}

impl Outside {
    /// That of the engine, whose child this process is. Until mounts are made /proc is the host's.
    fn find(place: BorrowedFd<'_>) -> Result<Self> {
        let unreachable = |why: String| {
            Error::new(
                "E6606",
                Blame::Host,
                "cannot reach the caller's network namespace",
            )
            .why(why)
            .advice("restore as root of the user namespace that owns it")
        };
        // between this process and the engine there may be others of the restore, in the same namespace
        let mut pid = "self".to_string();
        let handle = loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
                .map_err(|e| unreachable(e.to_string()))?;
            let parent = status
                .lines()
                .find_map(|l| l.strip_prefix("PPid:")?.trim().parse().ok())
                .filter(|p| *p > 0)
                .ok_or_else(|| unreachable("no parent of this process is in another one".into()))?;
            let handle = Ns::Net
                .of(HostPid(parent))
                .map_err(|e| unreachable(e.to_string()))?;
            if !super::same_namespace(handle.as_fd(), place)? {
                break handle;
            }
            pid = parent.to_string();
        };
        let nl = ns::visit(&[(Ns::Net, handle.as_fd())], Netlink::route);
        let nl = nl.and_then(|n| n).map_err(|e| unreachable(e.to_string()))?;
        Ok(Self { handle, nl })
    }
}

/// How the making of a device went.
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    /// It is there.
    Done,
    /// Another device must be there first.
    Later,
}

impl Workshop<'_, '_> {
    fn outside(&mut self) -> Result<&mut Outside> {
        if self.caller.is_none() {
            self.caller = Some(Outside::find(self.place)?);
        }
        self.caller
            .as_mut()
            .ok_or_else(|| Error::bug("no namespace outside"))
    }
    /// Makes a device, unless it is there.
    ///
    /// # Errors
    /// It needs something outside that the caller did not name; or the kernel refuses.
    pub fn make(&mut self, e: &pb::NetDeviceEntry, all: &[pb::NetDeviceEntry]) -> Result<Made> {
        let kind = pb::NdType::try_from(e.r#type).map_err(|_| {
            Error::new(
                "E5601",
                Blame::Image,
                format!("network device {} has type {}", e.name, e.r#type),
            )
            .why("this version knows no such type")
            .advice("use a newer version of stasis")
        })?;
        match self.there(&e.name)? {
            Some(index) if index == e.ifindex => return Ok(Made::Done),
            Some(_) => {
                return Err(taken(
                    e,
                    "a device of this name is there with another number",
                ));
            }
            None => {}
        }
        let own = e.peer_nsid == Some(self.ns_id);
        // where it leads to: another namespace of the tree
        let other = e.peer_nsid.filter(|_| !own);
        let other = other.and_then(|id| Some((id, (self.nets)(id)?)));
        let mut b = Body::new(&ifinfo(e.ifindex, 0, 0));
        common(&mut b, e);
        match kind {
            pb::NdType::Loopback => {
                return Err(taken(
                    e,
                    "every namespace has exactly one loopback device, named lo",
                ));
            }
            pb::NdType::Veth if own => {
                let peer = peer_of(e, self.ns_id, all)?;
                pair(&mut b, peer, None);
            }
            pb::NdType::Veth if let Some((id, place)) = other => {
                let theirs: Vec<pb::NetDeviceEntry> =
                    self.dir.read_all(&Kind::Netdev.file_of(id))?;
                pair(&mut b, peer_of(e, self.ns_id, &theirs)?, Some(place));
            }
            pb::NdType::Veth => return self.veth_out(e, b),
            pb::NdType::Macvlan => {
                let m = e.macvlan.unwrap_or_default();
                let named = self.options.macvlans.iter().find(|(n, _)| *n == e.name);
                let named = named.map(|(_, outside)| outside.clone());
                if own && named.is_none() {
                    if !all_there(self, e, all)? {
                        return Ok(Made::Later);
                    }
                    b.u32(ifla::LINK, e.peer_ifindex.unwrap_or(0));
                }
                info(&mut b, "macvlan", |d| {
                    d.u32(ifla::MACVLAN_MODE, m.mode);
                    if let Some(f) = m.flags {
                        d.attr(ifla::MACVLAN_FLAGS, &(f as u16).to_ne_bytes());
                    }
                });
                if let Some(outside) = named {
                    return self.lower_out(e, b, &outside);
                }
                if let Some((_, place)) = other {
                    return self.lower_there(e, b, place);
                }
                if !own {
                    return Err(nameless(
                        e,
                        "its lower device",
                        &format!("--external macvlan[{}]:DEVICE", e.name),
                    ));
                }
            }
            pb::NdType::Sit => {
                let s = e.sit.clone().unwrap_or_default();
                b.nest(ifla::LINKINFO, |i| {
                    i.text(ifla::INFO_KIND, "sit");
                    i.nest(ifla::INFO_DATA, |d| d.0 = sit_data(&s).0);
                });
            }
            pb::NdType::Bridge => {
                info(&mut b, "bridge", |_| {});
                self.new_link(&b, &e.name)?;
                self.differing(e, ifla::INFO_KIND, ifla::INFO_DATA, |k| k != BR_STP_STATE)?;
                return Ok(Made::Done);
            }
            pb::NdType::Tun => return tun_device(e),
            pb::NdType::Extlink | pb::NdType::Venet => {
                let named = self.options.netdevs.iter().find(|(n, _)| *n == e.name);
                if let Some((_, outside)) = named {
                    return self.move_in(e, &outside.clone());
                }
                let raw = told(e);
                let Some(kind) = raw
                    .as_ref()
                    .and_then(|a| a.nest(ifla::LINKINFO).text(ifla::INFO_KIND))
                else {
                    return Err(nameless(
                        e,
                        "the device",
                        &format!("--external netdev[{}]:DEVICE", e.name),
                    ));
                };
                let lower = raw.as_ref().and_then(|a| a.u32(ifla::LINK));
                if let Some(lower) = lower.filter(|l| *l != e.ifindex && *l != 0) {
                    if let Some((_, place)) = other {
                        self.told(&mut b, e, &kind);
                        return self.lower_there(e, b, place);
                    }
                    if !own {
                        return Err(nameless(
                            e,
                            "its lower device",
                            &format!("--external netdev[{}]:DEVICE", e.name),
                        ));
                    }
                    if !all_there(self, e, all)? {
                        return Ok(Made::Later);
                    }
                    b.u32(ifla::LINK, lower);
                }
                self.told(&mut b, e, &kind);
            }
        }
        self.new_link(&b, &e.name)?;
        Ok(Made::Done)
    }
    /// Kind and settings as the kernel told them at dump.
    fn told(&self, b: &mut Body, e: &pb::NetDeviceEntry, kind: &str) {
        let raw = told(e);
        let data = raw
            .as_ref()
            .and_then(|a| a.nest(ifla::LINKINFO).get(ifla::INFO_DATA));
        b.nest(ifla::LINKINFO, |i| {
            i.text(ifla::INFO_KIND, kind);
            if let Some(d) = data {
                i.nest(ifla::INFO_DATA, |n| n.0 = d.to_vec());
            }
        });
    }
    fn new_link(&mut self, b: &Body, name: &str) -> Result<()> {
        let made = self.inside.act(
            "rtnetlink(RTM_NEWLINK)",
            rtm::NEWLINK,
            NLM_F_CREATE | NLM_F_EXCL,
            &b.0,
        );
        made.map_err(|e| refused(name, &e))
    }
    /// The number of a device in the namespace.
    pub fn there(&mut self, name: &str) -> Result<Option<u32>> {
        index_of(self.inside, name)
    }
    /// A pair whose other end the caller gets.
    fn veth_out(&mut self, e: &pb::NetDeviceEntry, mut b: Body) -> Result<Made> {
        let named = self
            .options
            .veths
            .iter()
            .find(|(inside, ..)| *inside == e.name);
        let Some((_, outside, bridge)) = named.cloned() else {
            return Err(nameless(
                e,
                "the name of its other end",
                &format!("--external veth[{}]:NAME", e.name),
            ));
        };
        let caller = self.outside()?;
        let handle = caller.handle.as_raw_fd();
        let master = match &bridge {
            Some(b) => Some(index_of(&mut caller.nl, b)?.ok_or_else(|| missing(e, b))?),
            None => None,
        };
        info(&mut b, "veth", |d| {
            let mut other = Body::new(&ifinfo(0, 0, 0));
            if !outside.is_empty() {
                other.text(ifla::IFNAME, &outside);
            }
            other.u32(ifla::NET_NS_FD, handle as u32);
            d.attr(ifla::VETH_INFO_PEER, &other.0);
        });
        self.new_link(&b, &e.name)?;
        if let Some(master) = master {
            let nl = &mut self.outside()?.nl;
            let peer = index_of(nl, &outside)?.ok_or_else(|| missing(e, &outside))?;
            let mut set = Body::new(&ifinfo(peer, IFF_UP, IFF_UP));
            set.u32(ifla::MASTER, master);
            nl.act("rtnetlink(RTM_SETLINK)", rtm::SETLINK, 0, &set.0)
                .map_err(|e| refused(&outside, &e))?;
        }
        Ok(Made::Done)
    }
    /// A device upon one of the caller's.
    fn lower_out(&mut self, e: &pb::NetDeviceEntry, b: Body, lower: &str) -> Result<Made> {
        let place = self.place;
        let nl = &mut self.outside()?.nl;
        let index = index_of(nl, lower)?.ok_or_else(|| missing(e, lower))?;
        born_in(place, e, b, nl, index)
    }
    /// A device upon one of another namespace of the tree.
    fn lower_there(
        &mut self,
        e: &pb::NetDeviceEntry,
        b: Body,
        there: BorrowedFd<'_>,
    ) -> Result<Made> {
        let mut nl = ns::visit(&[(Ns::Net, there)], Netlink::route).and_then(|n| n)?;
        let index = e.peer_ifindex.unwrap_or(0);
        match nl.get("rtnetlink(RTM_GETLINK)", rtm::GETLINK, &ifinfo(index, 0, 0)) {
            Ok(_) => born_in(self.place, e, b, &mut nl, index),
            Err(e) if e.errno == Errno::ENODEV => Ok(Made::Later),
            Err(err) => Err(refused(&e.name, &err)),
        }
    }
    /// Has the kernel number another namespace of the tree as it was numbered here.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn number(&mut self, n: &pb::NetnsId) -> Result<()> {
        let Some(place) = (self.nets)(n.target_ns_id) else {
            return Ok(());
        };
        let mut b = Body::new(&RTGENMSG);
        b.u32(netnsa::NSID, n.netnsid_value as u32)
            .u32(netnsa::FD, place.as_raw_fd() as u32);
        match self
            .inside
            .act("rtnetlink(RTM_NEWNSID)", rtm::NEWNSID, 0, &b.0)
        {
            // a pair that another namespace has made has been numbered
            Err(e) if e.errno == Errno::EEXIST => Ok(()),
            r => Ok(r?),
        }
    }
    /// A device of the caller's that moves in.
    fn move_in(&mut self, e: &pb::NetDeviceEntry, outside: &str) -> Result<Made> {
        let place = self.place.as_raw_fd() as u32;
        let nl = &mut self.outside()?.nl;
        let index = index_of(nl, outside)?.ok_or_else(|| missing(e, outside))?;
        let mut b = Body::new(&ifinfo(index, 0, 0));
        b.text(ifla::IFNAME, &e.name)
            .u32(ifla::NET_NS_FD, place)
            .u32(ifla::NEW_IFINDEX, e.ifindex);
        nl.act("rtnetlink(RTM_SETLINK)", rtm::SETLINK, 0, &b.0)
            .map_err(|err| refused(&e.name, &err))?;
        Ok(Made::Done)
    }
    /// Joins a device to its master, with the settings of a port.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join(&mut self, e: &pb::NetDeviceEntry) -> Result<()> {
        let Some(master) = e.master else {
            return Ok(());
        };
        let mut b = Body::new(&ifinfo(e.ifindex, 0, 0));
        b.u32(ifla::MASTER, master);
        self.inside
            .act("rtnetlink(RTM_SETLINK)", rtm::SETLINK, 0, &b.0)
            .map_err(|err| refused(&e.name, &err))?;
        self.differing(e, ifla::INFO_SLAVE_KIND, ifla::INFO_SLAVE_DATA, |_| true)
    }
    /// Sets what is not yet as it was. Only that: the kernel refuses some settings that it tells, although it has them so.
    fn differing(
        &mut self,
        e: &pb::NetDeviceEntry,
        kind: u16,
        data: u16,
        which: impl Fn(u16) -> bool,
    ) -> Result<()> {
        let Some(told) = told(e) else { return Ok(()) };
        let told = told.nest(ifla::LINKINFO);
        let (Some(name), wanted) = (told.text(kind), told.nest(data)) else {
            return Ok(());
        };
        let now = self.inside.get(
            "rtnetlink(RTM_GETLINK)",
            rtm::GETLINK,
            &ifinfo(e.ifindex, 0, 0),
        )?;
        let now = Messages(&now).flatten().next();
        let now = now.map(|m| m.attrs(IFINFOMSG).nest(ifla::LINKINFO));
        let now = now.as_ref().map_or(Attrs(&[]), |i| i.nest(data));
        let mut set = Body::default();
        for (k, v) in wanted {
            if which(k)
                && now.get(k) != Some(v)
                && !only_told(&name, kind == ifla::INFO_SLAVE_KIND, k)
            {
                set.attr(k, v);
            }
        }
        if set.0.is_empty() {
            return Ok(());
        }
        let mut b = Body::new(&ifinfo(e.ifindex, 0, 0));
        b.nest(ifla::LINKINFO, |i| {
            i.text(kind, &name);
            i.nest(data, |d| d.0 = set.0);
        });
        self.inside
            .act("rtnetlink(RTM_NEWLINK)", rtm::NEWLINK, 0, &b.0)
            .map_err(|err| refused(&e.name, &err))
    }
    /// What can be set only when the device and those upon it are up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn finish(&mut self, e: &pb::NetDeviceEntry) -> Result<()> {
        // a port that forwards when the spanning tree begins goes on forwarding; one that joins a tree listens for 15 s first
        match e.r#type == pb::NdType::Bridge as i32 {
            true => self.differing(e, ifla::INFO_KIND, ifla::INFO_DATA, |k| k == BR_STP_STATE),
            false => Ok(()),
        }
    }
    /// Flags, size and queue of a device that is there: last of all, so that nothing moves before everything is in place.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn raise(&mut self, e: &pb::NetDeviceEntry) -> Result<()> {
        let mut b = Body::new(&ifinfo(e.ifindex, e.flags, SETTABLE));
        b.u32(ifla::MTU, e.mtu);
        let raw = told(e);
        for kind in [ifla::TXQLEN, ifla::GROUP, ifla::LINKMODE, ifla::IFALIAS] {
            if let Some(v) = raw.as_ref().and_then(|a| a.get(kind)) {
                b.attr(kind, v);
            }
        }
        if let Some(a) = e.address.as_ref().filter(|a| !a.is_empty()) {
            let same = index_address(self.inside, e.ifindex)? == Some(a.clone());
            if !same && a.len() <= 32 {
                b.attr(ifla::ADDRESS, a);
            }
        }
        self.inside
            .act("rtnetlink(RTM_SETLINK)", rtm::SETLINK, 0, &b.0)
            .map_err(|err| refused(&e.name, &err))
    }
}

/// Makes a tun or tap device that stays without open files. Those that did not stay do so until the files of the tree
/// that are its queues are open.
fn tun_device(e: &pb::NetDeviceEntry) -> Result<Made> {
    use crate::kinds::tun as file;
    let cannot = |e: &pb::NetDeviceEntry, why: &dyn std::fmt::Display| {
        Error::new(
            "E6601",
            Blame::Host,
            format!("cannot make tun device {}", e.name),
        )
        .why(why)
        .advice("it takes /dev/net/tun (the module tun), and CAP_NET_ADMIN in the user namespace that owns the network namespace")
    };
    let Some(t) = &e.tun else {
        return Err(cannot(e, &"the image does not tell its settings"));
    };
    let f = FdRef(1);
    let mut rows = vec![
        file::open_row(f, libc::O_RDWR as u32),
        file::int_row(f, TUNSETIFINDEX, e.ifindex),
        file::ifreq_row(f, file::TUNSETIFF, &e.name, (t.flags & !IFF_PERSIST) as u16),
    ];
    let number = |nr, v: u64| ioctl_row(Arg::Fd(f), nr, Arg::Int(v));
    for (nr, id) in [(TUNSETOWNER, t.owner), (TUNSETGROUP, t.group)] {
        if id >= 0 {
            rows.push(number(nr, id as u64));
        }
    }
    if t.flags & IFF_VNET_HDR != 0 {
        rows.push(file::int_row(f, file::TUNSETVNETHDRSZ, t.vnethdr));
    }
    rows.push(file::int_row(f, file::TUNSETSNDBUF, t.sndbuf));
    rows.push(number(file::TUNSETPERSIST, 1));
    let mut host = Host::default();
    for row in &rows {
        host.play(row).map_err(|err| cannot(e, &err))?;
    }
    Ok(Made::Done)
}

/// Makes a device upon another one: where that is, but born elsewhere.
fn born_in(
    place: BorrowedFd<'_>,
    e: &pb::NetDeviceEntry,
    mut b: Body,
    nl: &mut Netlink,
    lower: u32,
) -> Result<Made> {
    b.u32(ifla::LINK, lower);
    b.u32(ifla::NET_NS_FD, place.as_raw_fd() as u32);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    nl.act("rtnetlink(RTM_NEWLINK)", rtm::NEWLINK, flags, &b.0)
        .map_err(|err| refused(&e.name, &err))?;
    Ok(Made::Done)
}

/// The other end of a pair, among the devices of its namespace.
fn peer_of<'d>(
    e: &pb::NetDeviceEntry,
    ns_id: u32,
    all: &'d [pb::NetDeviceEntry],
) -> Result<&'d pb::NetDeviceEntry> {
    let end = (Some(e.ifindex), Some(ns_id));
    let peer = all
        .iter()
        .find(|p| Some(p.ifindex) == e.peer_ifindex && (p.peer_ifindex, p.peer_nsid) == end);
    peer.ok_or_else(|| {
        Error::new(
            "E5602",
            Blame::Image,
            format!("veth {} has no other end", e.name),
        )
        .why("the image says in which namespace of the tree it is, and that does not have it")
        .advice("dump again; this image was changed or damaged")
    })
}

/// The settings of a pair: its other end, and where that is if it is elsewhere.
fn pair(b: &mut Body, peer: &pb::NetDeviceEntry, place: Option<BorrowedFd<'_>>) {
    info(b, "veth", |d| {
        let mut other = Body::new(&ifinfo(peer.ifindex, 0, 0));
        common(&mut other, peer);
        if let Some(place) = place {
            other.u32(ifla::NET_NS_FD, place.as_raw_fd() as u32);
        }
        d.attr(ifla::VETH_INFO_PEER, &other.0);
    });
}

/// Is the device that this one stands upon there already?
fn all_there(
    w: &mut Workshop<'_, '_>,
    e: &pb::NetDeviceEntry,
    all: &[pb::NetDeviceEntry],
) -> Result<bool> {
    match all.iter().find(|l| Some(l.ifindex) == e.peer_ifindex) {
        Some(lower) => Ok(w.there(&lower.name)?.is_some()),
        None => Err(Error::new(
            "E5602",
            Blame::Image,
            format!("network device {} stands upon none", e.name),
        )
        .why("the image says that its lower device is in the same namespace, and does not have it")
        .advice("dump again; this image was changed or damaged")),
    }
}

/// Name, address and size, which every device has.
fn common(b: &mut Body, e: &pb::NetDeviceEntry) {
    b.text(ifla::IFNAME, &e.name);
    b.u32(ifla::MTU, e.mtu);
    let raw = told(e);
    let is = |t: pb::NdType| e.r#type == t as i32;
    // tunnels have their own ends as addresses, which follow from their settings
    if let Some(a) = e
        .address
        .as_ref()
        .filter(|a| a.len() == 6 && !is(pb::NdType::Sit))
    {
        b.attr(ifla::ADDRESS, a);
        if let Some(v) = raw.as_ref().and_then(|r| r.get(ifla::BROADCAST)) {
            b.attr(ifla::BROADCAST, v);
        }
    }
    for kind in [ifla::NUM_TX_QUEUES, ifla::NUM_RX_QUEUES] {
        if let Some(n) = raw.as_ref().and_then(|r| r.u32(kind)).filter(|n| *n > 0) {
            b.u32(kind, n);
        }
    }
}

fn info(b: &mut Body, kind: &str, data: impl FnOnce(&mut Body)) {
    b.nest(ifla::LINKINFO, |i| {
        i.text(ifla::INFO_KIND, kind);
        i.nest(ifla::INFO_DATA, data);
    });
}

/// What the kernel told about the device when it was dumped by stasis.
fn told(e: &pb::NetDeviceEntry) -> Option<Attrs<'_>> {
    let raw = e.stasis.as_ref()?.link.as_deref()?;
    let m = Messages(raw).next()?.ok()?;
    Some(m.attrs(IFINFOMSG))
}

/// Does the kernel tell this, but not take it?
fn only_told(kind: &str, port: bool, attr: u16) -> bool {
    match (kind, port) {
        // IFLA_BR_*: ROOT_ID .. GC_TIMER, FDB_FLUSH, MCAST_QUERIER_STATE, FDB_N_LEARNED
        ("bridge", false) => matches!(attr, 10..=19 | 21 | 47 | 48),
        // IFLA_BRPORT_*: STATE (the kernel's own while the device is down), ROOT_ID .. FLUSH, MRP_*, MCAST_EHT_HOSTS_CNT,
        // MCAST_N_GROUPS
        ("bridge", true) => matches!(attr, 1 | 13..=24 | 35 | 36 | 38 | 41),
        _ => false,
    }
}

/// The number of a device.
pub fn index_of(nl: &mut Netlink, name: &str) -> Result<Option<u32>> {
    let mut b = Body::new(&[0; IFINFOMSG]);
    b.text(ifla::IFNAME, name);
    match nl.get("rtnetlink(RTM_GETLINK)", rtm::GETLINK, &b.0) {
        Ok(found) => Ok(Messages(&found).flatten().next().and_then(|m| m.u32(4))),
        Err(e) if e.errno == Errno::ENODEV => Ok(None),
        Err(e) => Err(refused(name, &e)),
    }
}

fn index_address(nl: &mut Netlink, index: u32) -> Result<Option<Vec<u8>>> {
    let found = nl.get("rtnetlink(RTM_GETLINK)", rtm::GETLINK, &ifinfo(index, 0, 0))?;
    let address = Messages(&found)
        .flatten()
        .next()
        .and_then(|m| m.attrs(IFINFOMSG).get(ifla::ADDRESS));
    Ok(address.map(<[u8]>::to_vec))
}

fn refused(name: &str, e: &SysError) -> Error {
    Error::new("E6602", Blame::Host, format!("cannot make network device {name}"))
        .why(e)
        .advice("the kernel must have the device's driver, as where it was dumped; `stasis show` tells the device's settings")
}

fn taken(e: &pb::NetDeviceEntry, why: &str) -> Error {
    Error::new(
        "E5603",
        Blame::Image,
        format!(
            "network device {} (number {}) cannot be made",
            e.name, e.ifindex
        ),
    )
    .why(why)
    .advice("restore into a fresh network namespace")
}

fn nameless(e: &pb::NetDeviceEntry, what: &str, option: &str) -> Error {
    Error::new(
        "E6603",
        Blame::Host,
        format!(
            "network device {} needs something outside of its namespace",
            e.name
        ),
    )
    .why(format!("{what} was not named"))
    .advice(format!("pass {option}"))
}

fn missing(e: &pb::NetDeviceEntry, name: &str) -> Error {
    Error::new(
        "E6604",
        Blame::Host,
        format!("network device {} needs device {name}", e.name),
    )
    .why("there is none of this name in the caller's network namespace")
    .advice("make it first, or name another")
}
