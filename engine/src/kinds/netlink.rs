//! Netlink sockets: protocol, port, groups, peer, options.
//!
//! **What it is.** A socket that talks to a part of the kernel (its protocol says to which), or to another netlink socket. Its
//! address is a port number, unique per protocol and network namespace, often the pid of the program; it may be a member
//! of multicast groups, on which the kernel tells of events.
//!
//! **Dump.** All is asked of the duplicate with getsockopt(2), getsockname(2) and getpeername(2).
//!
//! **Restore.** socket(2), bind(2) to the same port, the groups, connect(2), options. A port that is taken by now is replaced
//! by one of the kernel's choice, with a warning: programs that do not ask for a port do not mind.
//!
//! **What does not come back.** Messages that wait to be read: the kernel cannot be made to say them again, so such a socket
//! is refused; `--skip-in-flight` leaves them behind, with a warning. They are not left behind without being asked: a program that waits
//! for an answer would wait forever, and one that follows events would not know that it has missed some. Nor are they sent again by the
//! engine: they would come from a port that is not the kernel's, and programs pass over such. Dumps that are half read (NLM_F_DUMP); whether an unconnected socket was connected to the kernel, which only shows in
//! that others may not send to it. Groups above 32 are in the image, but CRIU does not restore them.
use super::common::{ask, body, settle};
use super::sockopts::{self, Opt, get, get_int, set_int_row, word};
use super::unixsk::readiness;
use super::{Act, DumpCx, FileKind, PlanCx, Seen, Stage, Stagehand, malformed};
use crate::error::Result;
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::names;
use stasis_proto::pb;
use std::fmt;

/// The kind.
pub struct Netlink;

/// include/linux/socket.h, not in libc for all targets.
const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
/// linux/netlink.h: `state` of an entry.
const CONNECTED: u32 = 1;
/// Groups a protocol may have at most: far more than any has, in bits.
const GROUPS: usize = 1 << 16;

/// Options of level SOL_NETLINK that are on or off.
pub static NETLINK_OPTIONS: &[Opt] = &[
    Opt::int(SOL_NETLINK, 3, "NETLINK_PKTINFO", 0),
    Opt::int(SOL_NETLINK, 4, "NETLINK_BROADCAST_ERROR", 0),
    Opt::int(SOL_NETLINK, 5, "NETLINK_NO_ENOBUFS", 0),
    Opt::int(SOL_NETLINK, 8, "NETLINK_LISTEN_ALL_NSID", 0),
    Opt::int(SOL_NETLINK, 10, "NETLINK_CAP_ACK", 0),
    Opt::int(SOL_NETLINK, 11, "NETLINK_EXT_ACK", 0),
    Opt::int(SOL_NETLINK, 12, "NETLINK_GET_STRICT_CHK", 0),
];

/// The type has no field in the image; it makes no difference but to who asks.
static TYPE: &[Opt] = &[Opt::int(
    libc::SOL_SOCKET,
    libc::SO_TYPE,
    "SO_TYPE",
    libc::SOCK_RAW,
)];

/// Port and groups of an address (`struct sockaddr_nl`).
fn address(seen: &Seen, nr: i64) -> Result<(u32, u32)> {
    let args = vec![Arg::Out(12), Arg::InOut(12u32.to_le_bytes().to_vec())];
    let a = ask(seen.fd, nr, args)?;
    Ok((word(a.out(1), 4), word(a.out(1), 8)))
}

fn sockaddr(port: u32, groups: u32) -> Arg {
    let mut b = (libc::AF_NETLINK as u32).to_le_bytes().to_vec();
    b.extend(port.to_le_bytes());
    b.extend(groups.to_le_bytes());
    Arg::In(b)
}

impl FileKind for Netlink {
    fn name(&self) -> &'static str {
        "netlink"
    }
    fn about(&self) -> &'static str {
        "netlink sockets with port, groups and options; refused while messages wait in them"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Netlinksk
    }
    fn claims(&self, seen: &Seen) -> bool {
        let domain = || get_int(seen.fd, libc::SOL_SOCKET, libc::SO_DOMAIN);
        seen.file_type() == libc::S_IFSOCK && matches!(domain(), Ok(Some(libc::AF_NETLINK)))
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        if readiness(seen.fd, libc::POLLIN)? & (libc::POLLIN | libc::POLLERR) != 0 {
            if !cx.options.network.skip_in_flight {
                return Err(seen.refuse(
                    "E4510",
                    "messages of the kernel wait in it, and nobody can make the kernel say them again",
                    "try again when the program has read them, or pass --skip-in-flight to leave them behind",
                ));
            }
            cx.warn(format!(
                "{}: messages of the kernel that wait are dropped",
                seen.place()
            ));
        }
        let (portid, _) = address(seen, libc::SYS_getsockname)?;
        let (dst_portid, dst_groups) = address(seen, libc::SYS_getpeername)?;
        let member = get(seen.fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, GROUPS / 8)?;
        let member = member.unwrap_or_default();
        let mut groups: Vec<u32> = member.chunks_exact(4).map(|w| word(w, 0)).collect();
        while groups.last() == Some(&0) {
            groups.pop();
        }
        let mut opts = sockopts::read(seen)?;
        for table in [NETLINK_OPTIONS, TYPE] {
            opts.stasis.extend(sockopts::read_extra(seen.fd, table)?);
        }
        let protocol = get_int(seen.fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
        let nlsk = pb::NetlinkSkEntry {
            id,
            ino: seen.stat.st_ino as u32,
            protocol: protocol.unwrap_or(0) as u32,
            state: u32::from(dst_portid != 0 || dst_groups != 0),
            flags: seen.flags,
            portid,
            groups,
            dst_portid,
            dst_group: match dst_groups {
                0 => 0,
                g => g.trailing_zeros() + 1,
            },
            fown: seen.fown,
            opts,
            ns_id: None,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            nlsk: Some(Box::new(nlsk)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.nlsk, "nlsk")?;
        let file = cx.file(entry.id);
        let tables = [
            sockopts::SOCKET_OPTIONS,
            sockopts::LOCK,
            NETLINK_OPTIONS,
            TYPE,
        ];
        sockopts::known(&e.opts.stasis, &tables)?;
        let kind = e
            .opts
            .stasis
            .iter()
            .find(|o| (o.level, o.name) == (libc::SOL_SOCKET as u32, libc::SO_TYPE as u32));
        let kind = kind.map_or(libc::SOCK_RAW as u32, |o| word(&o.value, 0));
        if ![libc::SOCK_RAW as u32, libc::SOCK_DGRAM as u32].contains(&kind) {
            return Err(malformed(entry, "a netlink socket of an unknown type"));
        }
        let flags = kind as i32 | libc::SOCK_CLOEXEC;
        let args = vec![
            Arg::Named(libc::AF_NETLINK as u64, "AF_NETLINK".into()),
            Arg::Named(flags as u64, names::socket_type(kind.into())),
            Arg::Int(e.protocol.into()),
        ];
        cx.host(
            Call::new(libc::SYS_socket, args).binds(file),
            "netlink socket",
        );
        if e.portid != 0 {
            let port = Port {
                file,
                port: e.portid,
            };
            cx.act_at(cx.stage(), Act::NetlinkPort(port), "its port");
        }
        if e.groups.len() > GROUPS / 32 {
            return Err(malformed(entry, "too many groups"));
        }
        for (i, w) in e.groups.iter().enumerate() {
            for b in (0..32).filter(|b| w & 1 << b != 0) {
                let group = i as i32 * 32 + b + 1;
                let name = "NETLINK_ADD_MEMBERSHIP";
                let row = set_int_row(file, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, name, group);
                cx.host(row, "a group of the netlink socket");
            }
        }
        if e.state == CONNECTED {
            let mask = match e.dst_group {
                0 => 0,
                g @ 1..=32 => 1 << (g - 1),
                _ => return Err(malformed(entry, "it is connected to an unknown group")),
            };
            let to = sockaddr(e.dst_portid, mask);
            let row = Call::new(libc::SYS_connect, vec![Arg::Fd(file), to, Arg::Int(12)]);
            cx.host(row, "its peer");
        }
        sockopts::plan(cx, file, &e.opts)?;
        sockopts::plan_buffers(cx, file, &e.opts);
        sockopts::plan_extra(cx, file, &e.opts.stasis, NETLINK_OPTIONS)?;
        sockopts::plan_filter(cx, file, &e.opts)?;
        settle(cx, file, e.flags, &e.fown);
        Ok(())
    }
}

/// Binds a netlink socket to its port, or to another if that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The socket.
    pub file: FdRef,
    /// The port it had.
    pub port: u32,
}

impl Port {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let bind = |port| {
            let args = vec![Arg::Fd(self.file), sockaddr(port, 0), Arg::Int(12)];
            Call::new(libc::SYS_bind, args)
        };
        match on.host.play(&bind(self.port)) {
            Ok(_) => Ok(()),
            Err(e) if e.errno == Errno::EADDRINUSE => {
                tracing::warn!(
                    "netlink port {} of file#{} is taken; it gets another",
                    self.port,
                    self.file.0
                );
                on.host.play(&bind(0))?;
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bind(file#{}, netlink port {})", self.file.0, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{dump, dump_with, see};
    use nix::sys::socket::{
        AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
    };
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};

    fn route() -> OwnedFd {
        let p = SockProtocol::NetlinkRoute;
        let kind = SockType::Datagram;
        socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, p).unwrap()
    }

    #[test]
    fn port_groups_and_options_come_back() {
        let s = route();
        // RTNLGRP_DECnet_IFADDR and RTNLGRP_NOP2: no kernel says anything there any more, so
        // what others do to this machine's network meanwhile does not wait in the socket
        bind(s.as_raw_fd(), &NetlinkAddr::new(0x7001_0203, 0x3000)).unwrap();
        let set = |name, v| {
            let mut h = stasis_kernel::host::Host::default();
            let fd = Arg::Int(s.as_raw_fd() as u64);
            let v = i32::to_le_bytes(v);
            h.play(&sockopts::set_arg(fd, SOL_NETLINK, name, "", &v))
                .unwrap();
        };
        set(11, 1);
        // a group above those that an address has room for (RTNLGRP_BRVLAN)
        set(NETLINK_ADD_MEMBERSHIP, 33);
        let d = dump(&Netlink, &[s.as_fd()]).unwrap();
        let e = d.files[&1].nlsk.clone().unwrap();
        assert_eq!((e.portid, &e.groups[..]), (0x7001_0203, &[0x3000, 1][..]));
        // the port is taken: it gets another one
        let twin = d.files(&Netlink);
        let port = see(&twin[0], |s| address(s, libc::SYS_getsockname)).unwrap();
        assert!(port.0 != 0 && port.0 != 0x7001_0203);
        drop(s);
        let new = d.files(&Netlink);
        let again = dump(&Netlink, &[new[0].as_fd()]).unwrap();
        let mut back = again.files[&1].nlsk.clone().unwrap();
        (back.ino, back.flags) = (e.ino, e.flags);
        assert_eq!(back, e);
    }

    #[test]
    fn a_message_that_waits_is_an_error() {
        let s = route();
        // an answer to a request that asks for nothing it knows
        let mut m = [0u8; 16];
        m[0] = 16;
        m[4] = 0xff;
        m[6] = 5;
        nix::unistd::write(&s, &m).unwrap();
        let e = dump(&Netlink, &[s.as_fd()]).err().unwrap();
        assert_eq!(e.code, "E4510");
        let skip = |o: &mut crate::options::Options| o.network.skip_in_flight = true;
        let d = dump_with(&Netlink, &[s.as_fd()], &[], skip).unwrap();
        assert!(d.warnings[0].contains("dropped"), "{:?}", d.warnings);
        let new = d.files(&Netlink);
        assert_eq!(readiness(new[0].as_fd(), libc::POLLIN).unwrap(), 0);
    }
}
