//! What is in a network namespace, written down.
use super::parts::Part;
use super::{
    ADDRESS_MAGIC, IFINFOMSG, ROUTE_MAGIC, RTGENMSG, RULE_MAGIC, filter, ifla, netnsa, rtm,
    sysctls, tracked,
};
use crate::error::{Blame, Error, Result};
use crate::kinds::DumpCx;
use stasis_kernel::error::SysError;
use stasis_kernel::ids::HostPid;
use stasis_kernel::netlink::{Body, Message, Messages, Netlink};
use stasis_kernel::ns::{self, Ns};
use stasis_proto::{Kind, pb};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use tracing::debug;

const ARPHRD_LOOPBACK: u16 = 772;
const NTF_PROXY: u8 = 0x8;
/// Bytes of `struct rtmsg`, `struct fib_rule_hdr`, `struct ndmsg`.
const LONG: usize = 12;
/// Of `struct ifaddrmsg` and `struct nhmsg`.
const SHORT: usize = 8;
/// Priorities of the rules every namespace is born with.
const BORN_WITH: [u32; 3] = [0, 32766, 32767];

/// What a namespace showed.
struct Seen {
    links: Vec<u8>,
    addresses: Vec<u8>,
    routes: Vec<u8>,
    routes6: Vec<u8>,
    rules: Vec<u8>,
    rules6: Vec<u8>,
    neighbours: Vec<u8>,
    next_hops: Vec<u8>,
    filter: Vec<u8>,
    tracked: (Vec<u8>, Vec<u8>),
    sysctls: Vec<pb::StasisSysctl>,
    entry: pb::NetnsEntry,
    devices: Vec<pb::NetDeviceEntry>,
}

/// Writes the images of the network namespace of a task. `ns_id` is its number in `ids-N.img`.
///
/// Nothing is asked of the task; a thread of the engine visits the namespace. `all` are the network namespaces of the tree.
///
/// # Errors
/// A device that cannot be carried is named before anything is written.
pub fn dump(cx: &mut DumpCx<'_>, task: HostPid, ns_id: u32, all: &[(u32, OwnedFd)]) -> Result<()> {
    let bare = cx.options.namespaces.empty_net;
    let plugged = match cx.options.plugins.0.is_empty() || bare {
        true => Vec::new(),
        false => {
            let all = ns::visit_task(task, &[Ns::Net], list)??;
            crate::plugins::links(cx, &all)?
        }
    };
    let mut named: Vec<String> = {
        let n = &cx.options.network;
        n.netdevs.iter().map(|(inside, _)| inside.clone()).collect()
    };
    named.extend(plugged);
    let seen = ns::visit_task(task, &[Ns::Net], || look(ns_id, bare, &named, all))??;
    debug!(
        "network namespace {ns_id}: {} devices, {} settings",
        seen.devices.len(),
        seen.sysctls.len()
    );
    write(cx, ns_id, seen, bare)
}

/// Number, name and kind of all devices but loopback.
fn list() -> Result<Vec<(u32, String, Option<String>)>> {
    let mut nl = Netlink::route()?;
    let links = nl.dump("rtnetlink(RTM_GETLINK)", rtm::GETLINK, &[0; IFINFOMSG])?;
    let devices = Messages(&links)
        .flatten()
        .filter(|m| m.kind() == rtm::NEWLINK && !is_loopback(m))
        .map(|m| {
            let a = m.attrs(IFINFOMSG);
            let name = a.text(ifla::IFNAME).unwrap_or_default();
            let kind = a.nest(ifla::LINKINFO).text(ifla::INFO_KIND);
            (m.u32(4).unwrap_or(0), name, kind)
        });
    Ok(devices.collect())
}

/// How the kernel numbers other namespaces of the tree in this one: it does so when a device leads there.
fn numbers(nl: &mut Netlink, ns_id: u32, all: &[(u32, OwnedFd)]) -> Result<Vec<pb::NetnsId>> {
    let mut known = Vec::new();
    for (id, handle) in all.iter().filter(|a| a.0 != ns_id) {
        let mut b = Body::new(&RTGENMSG);
        b.u32(netnsa::FD, handle.as_raw_fd() as u32);
        let told = or_none(nl.get("rtnetlink(RTM_GETNSID)", rtm::GETNSID, &b.0))?;
        let told = Messages(&told).flatten().next();
        let number = told.and_then(|m| m.attrs(RTGENMSG.len()).u32(netnsa::NSID));
        // -1: it has none
        if let Some(n) = number.map(|n| n as i32).filter(|n| *n >= 0) {
            known.push(pb::NetnsId {
                target_ns_id: *id,
                netnsid_value: n,
            });
        }
    }
    Ok(known)
}

/// Asks the kernel everything, in the namespace.
fn look(ns_id: u32, bare: bool, named: &[String], all: &[(u32, OwnedFd)]) -> Result<Seen> {
    let mut nl = Netlink::route()?;
    let links = nl.dump("rtnetlink(RTM_GETLINK)", rtm::GETLINK, &[0; IFINFOMSG])?;
    let nsids = numbers(&mut nl, ns_id, all)?;
    let devices = Messages(&links)
        .flatten()
        .filter(|m| m.kind() == rtm::NEWLINK)
        .filter(|m| !bare || is_loopback(m))
        .map(|m| device(&m, ns_id, named, &nsids))
        .collect::<Result<Vec<_>>>()?;
    let inside: Vec<u32> = devices.iter().map(|d| d.ifindex).collect();
    let on_these = |m: &Message<'_>| !bare || m.u32(4).is_some_and(|i| inside.contains(&i));
    let mut ask = |call, kind, fixed: usize, family: i32, flags: u8| {
        let mut body = [0; LONG];
        body[0] = family as u8;
        // only of a neighbour's: ndm_flags
        body[10] = flags;
        nl.dump(call, kind, &body[..fixed])
    };
    let any = libc::AF_UNSPEC;
    let addresses = ask("rtnetlink(RTM_GETADDR)", rtm::GETADDR, SHORT, any, 0)?;
    let mut seen = Seen {
        addresses: Part::Address.keep(&addresses, on_these),
        devices,
        links,
        routes: Vec::new(),
        routes6: Vec::new(),
        rules: Vec::new(),
        rules6: Vec::new(),
        neighbours: Vec::new(),
        next_hops: Vec::new(),
        filter: Vec::new(),
        tracked: Default::default(),
        sysctls: Vec::new(),
        entry: pb::NetnsEntry {
            def_conf4: sysctls::list("ipv4/conf/default", sysctls::CONF4),
            all_conf4: sysctls::list("ipv4/conf/all", sysctls::CONF4),
            def_conf6: sysctls::list("ipv6/conf/default", sysctls::CONF6),
            all_conf6: sysctls::list("ipv6/conf/all", sysctls::CONF6),
            unix_conf: sysctls::list("unix", sysctls::UNIX),
            ipv4_sysctl: sysctls::list("ipv4", sysctls::IPV4),
            nsids,
            ..Default::default()
        },
    };
    if bare {
        return Ok(seen);
    }
    let all = |_: &Message<'_>| true;
    let (v4, v6) = (libc::AF_INET, libc::AF_INET6);
    let route = "rtnetlink(RTM_GETROUTE)";
    seen.routes = Part::Route.keep(&ask(route, rtm::GETROUTE, LONG, v4, 0)?, all);
    seen.routes6 = Part::Route.keep(&ask(route, rtm::GETROUTE, LONG, v6, 0)?, all);
    let rule = "rtnetlink(RTM_GETRULE)";
    // a kernel without policy routing has no rules and says EOPNOTSUPP
    seen.rules = Part::Rule.keep(&or_none(ask(rule, rtm::GETRULE, LONG, v4, 0))?, all);
    seen.rules6 = Part::Rule.keep(&or_none(ask(rule, rtm::GETRULE, LONG, v6, 0))?, all);
    let neighbour = "rtnetlink(RTM_GETNEIGH)";
    for flags in [0, NTF_PROXY] {
        let told = ask(neighbour, rtm::GETNEIGH, LONG, any, flags)?;
        seen.neighbours.extend(Part::Neighbour.keep(&told, all));
    }
    let hop = "rtnetlink(RTM_GETNEXTHOP)";
    let hops = or_none(ask(hop, rtm::GETNEXTHOP, SHORT, any, 0))?;
    seen.next_hops = Part::NextHop.keep(&hops, all);
    seen.filter = filter::rules()?;
    seen.tracked = tracked::read()?;
    seen.sysctls = sysctls::all_others();
    Ok(seen)
}

/// A kernel built without the thing has none of it.
fn or_none(told: Result<Vec<u8>, SysError>) -> Result<Vec<u8>, SysError> {
    match told {
        Err(e) if e.errno == nix::errno::Errno::EOPNOTSUPP => Ok(Vec::new()),
        other => other,
    }
}

fn is_loopback(m: &Message<'_>) -> bool {
    u16::from_ne_bytes([m.u8(2), m.u8(3)]) == ARPHRD_LOOPBACK
}

/// Devices whose whole state is in what the kernel tells about the link, besides those CRIU's format has types for.
const TOLD_WHOLE: &[&str] = &[
    "dummy",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "ifb",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "ipvlan",
    "ipvtap",
    "macvtap",
    "netkit",
    "nlmon",
    "vcan",
    "vlan",
    "vrf",
    "vti",
    "vti6",
    "vxcan",
    "vxlan",
];

fn device(
    m: &Message<'_>,
    ns_id: u32,
    named: &[String],
    nsids: &[pb::NetnsId],
) -> Result<pb::NetDeviceEntry> {
    let a = m.attrs(IFINFOMSG);
    let index = m.u32(4).unwrap_or(0);
    let name = a.text(ifla::IFNAME).unwrap_or_default();
    let info = a.nest(ifla::LINKINFO);
    let kind = info.text(ifla::INFO_KIND);
    let is_type = if is_loopback(m) {
        pb::NdType::Loopback
    } else if named.contains(&name) {
        pb::NdType::Extlink
    } else {
        match kind.as_deref() {
            Some("veth") => pb::NdType::Veth,
            Some("tun") => pb::NdType::Tun,
            Some("bridge") => pb::NdType::Bridge,
            Some("macvlan") => pb::NdType::Macvlan,
            Some("sit") => pb::NdType::Sit,
            Some(k) if TOLD_WHOLE.contains(&k) => pb::NdType::Extlink,
            Some(k) => {
                return Err(unsupported(
                    &name,
                    &format!("a device of kind {k} has state that the kernel does not tell"),
                ));
            }
            None => {
                return Err(unsupported(
                    &name,
                    "it is no virtual device: it cannot be made again",
                ));
            }
        }
    };
    // without IFLA_LINK a device leads nowhere; without IFLA_LINK_NETNSID its other end is in the same namespace
    let place = match a.u32(ifla::LINK_NETNSID) {
        None => Some(ns_id),
        Some(n) => {
            let known = nsids.iter().find(|k| k.netnsid_value == n as i32);
            known.map(|k| k.target_ns_id)
        }
    };
    let mut e = pb::NetDeviceEntry {
        r#type: is_type as i32,
        ifindex: index,
        mtu: a.u32(ifla::MTU).unwrap_or(0),
        flags: m.u32(8).unwrap_or(0),
        address: (!is_loopback(m))
            .then(|| a.get(ifla::ADDRESS).map(<[u8]>::to_vec))
            .flatten(),
        conf4: sysctls::list(&format!("ipv4/conf/{name}"), sysctls::CONF4),
        conf6: sysctls::list(&format!("ipv6/conf/{name}"), sysctls::CONF6),
        peer_ifindex: Some(a.u32(ifla::LINK).unwrap_or(index)),
        peer_nsid: place,
        master: a.u32(ifla::MASTER),
        stasis: Some(pb::StasisLinkEntry {
            link: Some(m.bytes().to_vec()),
        }),
        name,
        ..Default::default()
    };
    let data = info.nest(ifla::INFO_DATA);
    match is_type {
        pb::NdType::Macvlan => {
            e.macvlan = Some(pb::MacvlanLinkEntry {
                mode: data.u32(ifla::MACVLAN_MODE).unwrap_or(0),
                flags: data.u16(ifla::MACVLAN_FLAGS).map(u32::from),
            });
        }
        pb::NdType::Sit => e.sit = Some(super::links::sit_entry(&data)),
        pb::NdType::Tun => e.tun = Some(super::links::tun_entry(&data)),
        _ => {}
    }
    Ok(e)
}

fn unsupported(name: &str, why: &str) -> Error {
    Error::new(
        "E4600",
        Blame::Container,
        format!("cannot dump network device {name}"),
    )
    .why(why)
    .advice(format!(
        "remove it, or name what stands for it at restore: --external netdev[{name}]:NAME"
    ))
}

fn write(cx: &DumpCx<'_>, ns_id: u32, seen: Seen, bare: bool) -> Result<()> {
    let mut entry = seen.entry;
    if !bare {
        entry.stasis = Some(pb::StasisNetnsEntry {
            rules6: Some(seen.rules6.clone()),
            neighbours: some(seen.neighbours),
            nexthops: some(seen.next_hops),
            sysctls: seen.sysctls,
            nftables: some(seen.filter.clone()),
        });
    }
    debug!("{} bytes about devices", seen.links.len());
    let dir = cx.dir;
    dir.write_one(&Kind::Netns.file_of(ns_id), &entry)?;
    dir.write_all(&Kind::Netdev.file_of(ns_id), &seen.devices)?;
    let bytes = |kind: Kind, bytes: &[u8]| -> Result<()> {
        let name = kind.file_of(ns_id);
        let mut file = dir.create_raw(&name)?;
        file.write_all(bytes).map_err(|e| {
            Error::from(SysError::new(
                "write",
                nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
                name.clone(),
            ))
        })
    };
    let raw = |kind: Kind, magic: u32, parts: &[&[u8]]| {
        bytes(
            kind,
            &[&[&magic.to_le_bytes()[..]], parts].concat().concat(),
        )
    };
    raw(Kind::Ifaddr, ADDRESS_MAGIC, &[&seen.addresses])?;
    if bare {
        return Ok(());
    }
    if !seen.filter.is_empty() {
        bytes(Kind::Nftables, filter::NOT_FOR_CRIU.as_bytes())?;
    }
    for (kind, all) in [
        (Kind::NetnfCt, &seen.tracked.0),
        (Kind::NetnfExp, &seen.tracked.1),
    ] {
        if !all.is_empty() {
            bytes(kind, all)?;
        }
    }
    raw(Kind::Route, ROUTE_MAGIC, &[&seen.routes])?;
    raw(Kind::Route6, ROUTE_MAGIC, &[&seen.routes6])?;
    // CRIU makes the IPv4 rules from nothing, but keeps those of IPv6 a namespace is born with
    let more = Part::Rule.keep(&seen.rules6, |m| {
        let priority = m.attrs(Part::Rule.fixed()).u32(6).unwrap_or(0);
        !BORN_WITH.contains(&priority)
    });
    raw(Kind::Rule, RULE_MAGIC, &[&seen.rules, &more])
}

fn some(v: Vec<u8>) -> Option<Vec<u8>> {
    (!v.is_empty()).then_some(v)
}
