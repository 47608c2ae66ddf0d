//! The contents of a network namespace, made again in a fresh one.
use super::links::{Made, Workshop};
use super::parts::Part;
use super::{ADDRESS_MAGIC, Places, ROUTE_MAGIC, RULE_MAGIC, filter, rtm, sysctls, tracked};
use crate::error::{Blame, Error, Result};
use crate::options::Options;
use stasis_kernel::error::SysError;
use stasis_kernel::netlink::{Message, Messages, NLM_F_APPEND, NLM_F_CREATE, Netlink};
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsFd;
use tracing::{debug, warn};

/// Longest raw image, in bytes. A million routes take about 60 MB.
const LONGEST: u64 = 256 << 20;
/// Most devices of a namespace.
const MOST_DEVICES: usize = 65536;
const IFF_UP: u32 = 1;

/// The images of a namespace.
#[derive(Default)]
struct Images {
    entry: pb::NetnsEntry,
    devices: Vec<pb::NetDeviceEntry>,
    addresses: Vec<u8>,
    routes: Vec<u8>,
    rules: Vec<u8>,
    tracked: Vec<u8>,
    expected: Vec<u8>,
}

/// Makes the contents of the network namespace the calling thread is in, which is fresh. That of the parent process is where the
/// other ends of devices go, and /proc is still the one this process was born with.
///
/// With `--empty-ns net` only the loopback device is made as it was: the rest is the caller's.
///
/// # Errors
/// An image is damaged, a device needs something outside that was not named, or the kernel refuses.
pub fn restore(o: &Options, dir: &ImageDir, ns_id: u32, nets: Places<'_>) -> Result<()> {
    let bare = o.namespaces.empty_net;
    // CRIU writes nothing of a network namespace that was dumped as an empty one
    if bare && !dir.exists(&Kind::Netns.file_of(ns_id))? {
        return Ok(());
    }
    let images = read(dir, ns_id, bare)?;
    if images.entry.ext_key.is_some() {
        return Ok(());
    }
    in_workshop((o, dir, ns_id, nets), |w| make(w, &images, bare))
}

/// Makes the devices of the network namespace the calling thread is in as far as that can be done: those that lead from one namespace
/// of the tree to another must be there before any of these is finished by [`restore`].
///
/// # Errors
/// As for [`restore`].
pub fn devices(o: &Options, dir: &ImageDir, ns_id: u32, nets: Places<'_>) -> Result<()> {
    if o.namespaces.empty_net {
        return Ok(());
    }
    let images = read(dir, ns_id, false)?;
    if images.entry.ext_key.is_some() {
        return Ok(());
    }
    in_workshop((o, dir, ns_id, nets), |w| {
        set(&common_settings(&images.entry), w.options.weak_sysctls)?;
        for n in &images.entry.nsids {
            w.number(n)?;
        }
        make_devices(w, &images.devices, false)
    })
}

fn in_workshop<T>(
    (o, dir, ns_id, nets): (&Options, &ImageDir, u32, Places<'_>),
    f: impl FnOnce(&mut Workshop<'_, '_>) -> Result<T>,
) -> Result<T> {
    let own = "/proc/thread-self/ns/net";
    let place = std::fs::File::open(own).map_err(|e| {
        let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
        SysError::new("openat", errno, own)
    })?;
    f(&mut Workshop {
        inside: &mut Netlink::route()?,
        place: place.as_fd(),
        caller: None,
        options: &o.network,
        ns_id,
        dir,
        nets,
    })
}

fn read(dir: &ImageDir, ns_id: u32, bare: bool) -> Result<Images> {
    let netns = Kind::Netns.file_of(ns_id);
    let mut images = Images {
        entry: dir.read_one(&netns)?,
        ..Default::default()
    };
    if images.entry.ext_key.is_some() {
        return Ok(images);
    }
    let name = Kind::Netdev.file_of(ns_id);
    if dir.exists(&name)? {
        images.devices = dir.read_all(&name)?;
    }
    if images.devices.len() > MOST_DEVICES {
        return Err(damaged(&name, format!("{} devices", images.devices.len())));
    }
    images.addresses = raw(
        dir,
        &Kind::Ifaddr.file_of(ns_id),
        ADDRESS_MAGIC,
        Part::Address,
    )?;
    if bare {
        return Ok(images);
    }
    for kind in [Kind::Route, Kind::Route6] {
        let more = raw(dir, &kind.file_of(ns_id), ROUTE_MAGIC, Part::Route)?;
        images.routes.extend(more);
    }
    images.rules = raw(dir, &Kind::Rule.file_of(ns_id), RULE_MAGIC, Part::Rule)?;
    images.tracked = bytes(dir, &Kind::NetnfCt.file_of(ns_id))?;
    images.expected = bytes(dir, &Kind::NetnfExp.file_of(ns_id))?;
    let ours = images.entry.stasis.as_ref();
    if ours.is_none_or(|s| s.nftables.is_none()) {
        for kind in [Kind::Nftables, Kind::Iptables, Kind::Ip6tables] {
            let name = kind.file_of(ns_id);
            if !filter::only_locks(&String::from_utf8_lossy(&bytes(dir, &name)?)) {
                return Err(filter::text(&name));
            }
        }
    }
    if let Some(s) = &images.entry.stasis {
        let mut n = s.sysctls.len();
        n += images.entry.all_conf6.len();
        sysctls::bounded(n)?;
    }
    Ok(images)
}

/// A raw image as it is; one that is missing is empty.
fn bytes(dir: &ImageDir, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if !dir.exists(name)? {
        return Ok(bytes);
    }
    let file = dir.open_raw(name)?;
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| damaged(name, e))?;
    if bytes.len() as u64 > LONGEST {
        return Err(damaged(name, format!("it is longer than {LONGEST} bytes")));
    }
    Ok(bytes)
}

/// A raw image without its magic, every message checked. An image that is missing or empty has none.
fn raw(dir: &ImageDir, name: &str, magic: u32, part: Part) -> Result<Vec<u8>> {
    let mut bytes = bytes(dir, name)?;
    if bytes.is_empty() {
        return Ok(bytes);
    }
    if !bytes.starts_with(&magic.to_le_bytes()) {
        return Err(damaged(name, "its first word is not that of such an image"));
    }
    let bytes = bytes.split_off(4);
    for m in Messages(&bytes) {
        let m = m.map_err(|e| damaged(name, e))?;
        if m.kind() != part.kind() || m.body().len() < part.fixed() {
            return Err(damaged(
                name,
                format!("a message is about no {}", part.word()),
            ));
        }
    }
    Ok(bytes)
}

fn damaged(name: &str, why: impl std::fmt::Display) -> Error {
    Error::new("E5604", Blame::Image, format!("{name} cannot be used"))
        .why(why)
        .advice("dump again, or copy the folder again if it was copied")
}

fn make(w: &mut Workshop<'_, '_>, images: &Images, bare: bool) -> Result<()> {
    let lo = pb::NdType::Loopback as i32;
    let devices: Vec<pb::NetDeviceEntry> = images
        .devices
        .iter()
        .filter(|d| !bare || d.r#type == lo)
        .cloned()
        .collect();
    if bare && devices.is_empty() {
        // an image of CRIU's, which does not say; a runtime's namespace without loopback serves nobody
        return loopback_up(w);
    }
    let weak = w.options.weak_sysctls;
    set(&common_settings(&images.entry), weak)?;
    make_devices(w, &devices, true)?;
    for d in &devices {
        w.join(d)?;
    }
    for d in &devices {
        let settings = device_settings(d);
        // addresses are used at once: their uniqueness was seen to before the dump
        let quiet = settings
            .iter()
            .filter(|(name, _)| name.ends_with("/accept_dad"))
            .map(|(name, _)| (name.clone(), "0".to_string()));
        let mut settings: Vec<_> = settings
            .iter()
            .filter(|(name, _)| !late(name))
            .cloned()
            .collect();
        settings.extend(quiet);
        set(&settings, weak)?;
        w.raise(d)?;
    }
    for d in &devices {
        w.finish(d)?;
    }
    let stasis = images.entry.stasis.clone().unwrap_or_default();
    let index: BTreeSet<u32> = devices.iter().map(|d| d.ifindex).collect();
    let ours = |m: &Message<'_>| !bare || m.u32(4).is_some_and(|i| index.contains(&i));
    let addresses = Part::Address.keep(&images.addresses, ours);
    let known = !bare || !images.addresses.is_empty();
    if known {
        same(
            w.inside,
            Part::Address,
            rtm::GETADDR,
            Some(rtm::DELADDR),
            &[0; 8],
            &addresses,
            ours,
        )?;
    }
    if !bare {
        let all = |_: &Message<'_>| true;
        let hops = stasis.nexthops.as_deref().unwrap_or(&[]);
        if !hops.is_empty() {
            same(
                w.inside,
                Part::NextHop,
                rtm::GETNEXTHOP,
                None,
                &[0; 8],
                hops,
                all,
            )?;
        }
        same(
            w.inside,
            Part::Route,
            rtm::GETROUTE,
            Some(rtm::DELROUTE),
            &[0; 12],
            &images.routes,
            all,
        )?;
        rules(w.inside, images, &stasis)?;
        let neighbours = stasis.neighbours.as_deref().unwrap_or(&[]);
        if !neighbours.is_empty() {
            same(
                w.inside,
                Part::Neighbour,
                rtm::GETNEIGH,
                None,
                &[0; 12],
                neighbours,
                all,
            )?;
        }
        filter::make_rules(stasis.nftables.as_deref().unwrap_or(&[]))?;
        tracked::make(&images.tracked)?;
        tracked::make(&images.expected)?;
        let others: Vec<_> = stasis
            .sysctls
            .into_iter()
            .map(|s| (s.name, s.value))
            .collect();
        set(&others, weak)?;
    }
    for d in &devices {
        let last: Vec<_> = device_settings(d)
            .into_iter()
            .filter(|(n, _)| late(n))
            .collect();
        set(&last, weak)?;
    }
    debug!("network namespace {}: {} devices", w.ns_id, devices.len());
    Ok(())
}

/// Settings that hold only once the device is up and has its addresses.
fn late(name: &str) -> bool {
    name.starts_with("ipv6/") && (name.ends_with("/accept_dad") || name.ends_with("/mtu"))
}

fn loopback_up(w: &mut Workshop<'_, '_>) -> Result<()> {
    let Some(index) = w.there("lo")? else {
        return Ok(());
    };
    let b = super::ifinfo(index, IFF_UP, IFF_UP);
    Ok(w.inside
        .act("rtnetlink(RTM_SETLINK)", rtm::SETLINK, 0, &b)?)
}

fn set(settings: &[(String, String)], weak: bool) -> Result<()> {
    for (name, value) in settings {
        if !sysctls::write(name, value, weak)? {
            warn!("/proc/sys/net/{name} stays as it is here: {value:?} was refused");
        }
    }
    Ok(())
}

/// Settings of the namespace, and those new devices get.
fn common_settings(e: &pb::NetnsEntry) -> Vec<(String, String)> {
    let of = sysctls::of_list;
    of("ipv4/conf/all", sysctls::CONF4, &e.all_conf4)
        .chain(of("ipv4/conf/default", sysctls::CONF4, &e.def_conf4))
        .chain(of("ipv6/conf/all", sysctls::CONF6, &e.all_conf6))
        .chain(of("ipv6/conf/default", sysctls::CONF6, &e.def_conf6))
        .chain(of("unix", sysctls::UNIX, &e.unix_conf))
        .chain(of("ipv4", sysctls::IPV4, &e.ipv4_sysctl))
        .collect()
}

fn device_settings(d: &pb::NetDeviceEntry) -> Vec<(String, String)> {
    let (four, six) = (
        format!("ipv4/conf/{}", d.name),
        format!("ipv6/conf/{}", d.name),
    );
    let four = sysctls::of_list(&four, sysctls::CONF4, &d.conf4);
    let six = sysctls::of_list(&six, sysctls::CONF6, &d.conf6);
    four.chain(six).collect()
}

/// Makes all devices, lower ones before those upon them; or all that can be made by now.
fn make_devices(w: &mut Workshop<'_, '_>, all: &[pb::NetDeviceEntry], each: bool) -> Result<()> {
    let mut rest: Vec<&pb::NetDeviceEntry> = all.iter().collect();
    rest.sort_by_key(|d| d.ifindex);
    while !rest.is_empty() {
        let before = rest.len();
        let mut waiting = Vec::new();
        for d in rest {
            if w.make(d, all)? == Made::Later {
                waiting.push(d);
            }
        }
        if waiting.len() == before && !each {
            return Ok(());
        }
        if waiting.len() == before {
            let name = &waiting[0].name;
            return Err(Error::new(
                "E5605",
                Blame::Image,
                format!("network device {name} stands upon itself"),
            )
            .why("devices wait for each other in a ring")
            .advice("dump again; this image was changed or damaged"));
        }
        rest = waiting;
    }
    Ok(())
}

/// Makes the namespace have exactly these messages' things: adds what is missing, takes away what is too much (if `delete` says
/// how). Things that need others are tried again after them.
fn same(
    nl: &mut Netlink,
    part: Part,
    get: u16,
    delete: Option<u16>,
    ask: &[u8],
    wanted: &[u8],
    ours: impl Fn(&Message<'_>) -> bool,
) -> Result<()> {
    let there = |nl: &mut Netlink| -> Result<Vec<u8>> {
        Ok(part.keep(&nl.dump("rtnetlink(dump)", get, ask)?, &ours))
    };
    let now = there(nl)?;
    let have: BTreeSet<Vec<u8>> = Messages(&now)
        .flatten()
        .filter_map(|m| part.key(&m))
        .collect();
    let mut missing: Vec<Message<'_>> = Messages(wanted)
        .flatten()
        .filter(|m| part.key(m).is_some_and(|k| !have.contains(&k)))
        .collect();
    // an IPv6 address that is there already is put right rather than made twice
    let flags = match part {
        Part::Route => NLM_F_CREATE | NLM_F_APPEND,
        _ => NLM_F_CREATE,
    };
    while !missing.is_empty() {
        let before = missing.len();
        let (mut waiting, mut first) = (Vec::new(), None);
        for m in missing {
            let Some(body) = part.said_again(&m) else {
                continue;
            };
            match nl.act("rtnetlink(new)", part.kind(), flags, &body) {
                Ok(())
                | Err(SysError {
                    errno: nix::errno::Errno::EEXIST,
                    ..
                }) => {}
                Err(e) => {
                    first.get_or_insert_with(|| refused(part, &m, &e));
                    waiting.push(m);
                }
            }
        }
        if waiting.len() == before {
            return Err(first.unwrap_or_else(|| Error::bug("nothing was refused")));
        }
        missing = waiting;
    }
    let Some(delete) = delete else { return Ok(()) };
    let wanted: BTreeSet<Vec<u8>> = Messages(wanted)
        .flatten()
        .filter_map(|m| part.key(&m))
        .collect();
    let now = there(nl)?;
    for m in Messages(&now).flatten() {
        if part.key(&m).is_some_and(|k| !wanted.contains(&k)) {
            debug!("taking away {} {}", part.word(), part.shown(&m));
            let body = part.said_again(&m).unwrap_or_default();
            match nl.act("rtnetlink(delete)", delete, 0, &body) {
                Ok(()) => {}
                // it went with another
                Err(e)
                    if matches!(
                        e.errno,
                        nix::errno::Errno::ESRCH
                            | nix::errno::Errno::ENOENT
                            | nix::errno::Errno::EADDRNOTAVAIL
                    ) => {}
                Err(e) => return Err(refused(part, &m, &e)),
            }
        }
    }
    Ok(())
}

/// Rules of both families; those of IPv6 exactly only if stasis dumped them.
fn rules(nl: &mut Netlink, images: &Images, stasis: &pb::StasisNetnsEntry) -> Result<()> {
    let family = |f: i32| move |m: &Message<'_>| i32::from(m.u8(0)) == f;
    let ask = |f: i32| {
        let mut b = [0; 12];
        b[0] = f as u8;
        b
    };
    let v4 = Part::Rule.keep(&images.rules, family(libc::AF_INET));
    if !v4.is_empty() {
        let f = libc::AF_INET;
        same(
            nl,
            Part::Rule,
            rtm::GETRULE,
            Some(rtm::DELRULE),
            &ask(f),
            &v4,
            family(f),
        )?;
    }
    let f = libc::AF_INET6;
    match &stasis.rules6 {
        Some(v6) => same(
            nl,
            Part::Rule,
            rtm::GETRULE,
            Some(rtm::DELRULE),
            &ask(f),
            v6,
            family(f),
        ),
        None => {
            let v6 = Part::Rule.keep(&images.rules, family(f));
            same(nl, Part::Rule, rtm::GETRULE, None, &ask(f), &v6, family(f))
        }
    }
}

fn refused(part: Part, m: &Message<'_>, e: &SysError) -> Error {
    Error::new(
        "E6605",
        Blame::Host,
        format!("cannot make {} {}", part.word(), part.shown(m)),
    )
    .why(e)
    .advice("compare this kernel's network features with those where it was dumped")
}
