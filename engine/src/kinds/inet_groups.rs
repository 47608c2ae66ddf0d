//! Multicast groups that a socket has joined. Not a kind: part of [`super::inet`].
//!
//! The kernel has no list of them for a socket, but it has one of all groups of a device (/proc/PID/net/igmp, igmp6), and it tells
//! whether a socket is in a group it is asked about, and which sources it wants to hear (MCAST_MSFILTER).
use super::act::Stagehand;
use super::inet_address::{device_index, parse_sockaddr, raw_fd, sockaddr};
use super::inet_options::Sort;
use super::sockopts::{set_row, word};
use super::{Act, PlanCx, Seen, Stage};
use crate::error::Result;
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::host::Host;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::pb;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Options of ip(7) and ipv6(7), with `struct group_req`, `group_source_req`, `group_filter` (linux/in.h).
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_BLOCK_SOURCE: i32 = 43;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;
/// Length of a `sockaddr_storage`.
const STORAGE: usize = 128;
/// `group_filter` without sources: interface, padding, group, mode, number of sources.
const FILTER: usize = 8 + STORAGE + 8;
/// More sources than this are not asked for (igmp_max_msf is 10).
const SOURCES: usize = 64;

/// A group of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    index: u32,
    device: String,
    ip: IpAddr,
}

/// Reads /proc/PID/net/igmp: a line for each device, then one for each of its groups, a word in hexadecimal.
fn igmp(text: &str) -> Vec<Group> {
    let mut all = Vec::new();
    let mut device: Option<(u32, String)> = None;
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if !line.starts_with(['\t', ' ']) {
            device = first
                .parse()
                .ok()
                .zip(words.next().map(|n| n.trim_end_matches(':').to_string()));
        } else if let (Some((index, name)), Ok(w)) = (&device, u32::from_str_radix(first, 16)) {
            all.push(Group {
                index: *index,
                device: name.clone(),
                ip: Ipv4Addr::from(w.to_le_bytes()).into(),
            });
        }
    }
    all
}

/// Reads /proc/PID/net/igmp6: index, device, address, ...
fn igmp6(text: &str) -> Vec<Group> {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        let index = words.next()?.parse().ok()?;
        let device = words.next()?.to_string();
        let ip = u128::from_str_radix(words.next()?, 16).ok()?;
        Some(Group {
            index,
            device,
            ip: Ipv6Addr::from(ip).into(),
        })
    };
    text.lines().filter_map(one).collect()
}

fn storage(a: &SocketAddr) -> Vec<u8> {
    let mut b = sockaddr(a);
    b.resize(STORAGE, 0);
    b
}

fn level(a: IpAddr) -> i32 {
    match a {
        IpAddr::V4(_) => libc::SOL_IP,
        IpAddr::V6(_) => libc::SOL_IPV6,
    }
}

/// The groups a socket is in.
pub(super) fn read(seen: &Seen, s: Sort) -> Result<Vec<pb::StasisMembership>> {
    let proc = ProcDir::open(seen.pid)?;
    let text = |name| proc.bytes(name).unwrap_or_default();
    let mut groups = Vec::new();
    if s.family == libc::AF_INET || !s.is_raw() {
        groups.extend(igmp(&String::from_utf8_lossy(&text("net/igmp"))));
    }
    if s.family == libc::AF_INET6 {
        groups.extend(igmp6(&String::from_utf8_lossy(&text("net/igmp6"))));
    }
    let mut all = Vec::new();
    for g in groups {
        let address = SocketAddr::new(g.ip, 0);
        let mut filter = u64::from(g.index).to_le_bytes().to_vec();
        filter.extend(storage(&address));
        filter.extend(0u32.to_le_bytes());
        filter.extend((SOURCES as u32).to_le_bytes());
        filter.resize(FILTER + SOURCES * STORAGE, 0);
        let len = (filter.len() as u32).to_le_bytes().to_vec();
        let row = Call::new(
            libc::SYS_getsockopt,
            vec![
                Arg::Int(raw_fd(seen.fd)),
                Arg::Int(level(g.ip) as u64),
                Arg::Named(MCAST_MSFILTER as u64, "MCAST_MSFILTER".into()),
                Arg::InOut(filter),
                Arg::InOut(len),
            ],
        );
        let told = match Host::default().play(&row) {
            Ok(a) => a.out(3).to_vec(),
            Err(e)
                if matches!(
                    e.errno,
                    Errno::EADDRNOTAVAIL | Errno::EINVAL | Errno::ENODEV
                ) =>
            {
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let n = (word(&told, FILTER - 4) as usize).min(SOURCES);
        let sources = told[FILTER..].chunks_exact(STORAGE).take(n);
        all.push(pb::StasisMembership {
            group: sockaddr(&address),
            device: g.device,
            mode: word(&told, FILTER - 8),
            sources: sources
                .filter_map(parse_sockaddr)
                .map(|a| sockaddr(&a))
                .collect(),
        });
    }
    Ok(all)
}

/// Plans that a socket joins its groups again.
pub(super) fn plan(cx: &mut PlanCx, file: FdRef, all: &[pb::StasisMembership]) {
    for m in all {
        let Some(group) = parse_sockaddr(&m.group) else {
            cx.warnings
                .push("a multicast group without an address".into());
            continue;
        };
        let join = Join {
            file,
            group,
            device: m.device.clone(),
            exclude: m.mode == MCAST_EXCLUDE,
            sources: m.sources.iter().filter_map(|s| parse_sockaddr(s)).collect(),
        };
        cx.act_at(Stage::Second, Act::Join(join), "a multicast group");
    }
}

/// Joins a multicast group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The socket.
    pub file: FdRef,
    /// The group.
    pub group: SocketAddr,
    /// On which device.
    pub device: String,
    /// All sources are heard but those in the list; otherwise only those.
    pub exclude: bool,
    /// Sources.
    pub sources: Vec<SocketAddr>,
}

impl Join {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let index = device_index(on.fd(self.file)?, &self.device)?;
        let mut whole = u64::from(index).to_le_bytes().to_vec();
        whole.extend(storage(&self.group));
        let level = level(self.group.ip());
        if self.exclude {
            on.host.play(&set_row(
                self.file,
                level,
                MCAST_JOIN_GROUP,
                "MCAST_JOIN_GROUP",
                &whole,
            ))?;
        }
        let (name, text) = match self.exclude {
            true => (MCAST_BLOCK_SOURCE, "MCAST_BLOCK_SOURCE"),
            false => (MCAST_JOIN_SOURCE_GROUP, "MCAST_JOIN_SOURCE_GROUP"),
        };
        for s in &self.sources {
            let v = [whole.clone(), storage(s)].concat();
            on.host.play(&set_row(self.file, level, name, text, &v))?;
        }
        Ok(())
    }
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "join(file#{}, {} on {}",
            self.file.0,
            self.group.ip(),
            self.device
        )?;
        match (self.exclude, self.sources.len()) {
            (true, 0) => f.write_str(")"),
            (true, n) => write!(f, ", but {n} sources)"),
            (false, n) => write!(f, ", only {n} sources)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_the_kernel_are_read() {
        let four = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n2\teth0      :     2      V3\n\t\t\t\t030201EF     1 0:00000000\t\t0\n";
        let g = igmp(four);
        assert_eq!(g.len(), 2);
        assert_eq!((g[1].index, g[1].device.as_str()), (2, "eth0"));
        assert_eq!(g[1].ip.to_string(), "239.1.2.3");
        let six = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        let g = igmp6(six);
        assert_eq!(g[0].ip.to_string(), "ff02::1");
        assert_eq!(igmp("garbage\n\tzz\n"), vec![]);
    }
}
