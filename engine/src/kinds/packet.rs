//! Packet sockets (AF_PACKET): protocol, device, memberships, rings, fanout, options.
//!
//! **What it is.** A socket that sees packets of a device, or of all, as the driver has them. It may have rings of memory shared with the
//! program instead of a queue, and belong to a fanout group that shares packets out among its sockets. Sockets of the old type SOCK_PACKET
//! are bound to a device by its name, and have none of this.
//!
//! **Dump.** getsockname(2), getsockopt(2), and for memberships, rings and groups sock_diag(7).
//!
//! **Restore.** The socket is made without a protocol, so that it sees nothing yet; then memberships, rings, and bind(2) to
//! protocol and device; then the group, which wants a bound socket; its filter last. Tasks map rings as they map files.
//! SOCK_PACKET takes its protocol only from socket(2): it sees packets of all devices for a moment.
//!
//! **What does not come back.** Packets that wait (the dump warns): packet sockets may lose some at any time. Statistics. In a mapped ring
//! the kernel begins at the first frame again, whichever the program looks at next: what it writes before it comes there is seen a
//! round later. A mapping whose socket the task has closed, or of which a part was unmapped, is refused. Groups that choose by a BPF
//! program are refused; which socket of a group is which may change. Devices are known by number, as CRIU has it.
//!
//! Guests: packet, packet_ring.
use super::act::{Act, Stagehand};
use super::common::{body, settle};
use super::inet_address::device_name;
use super::sockopts::{self, Opt, get_int, set_int_row, set_row, word};
use super::unixsk::readiness;
use super::unixsk_diag::{all_of, in_namespace_of};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, malformed};
use crate::error::{Blame, Error, Result};
use netlink_packet_core::NlasIterator;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::names;
use stasis_proto::pb;
use std::fmt;

/// The kind.
pub struct Packet;

const PACKET: i32 = libc::SOL_PACKET;
/// linux/if_packet.h; not all are in libc.
mod opt {
    pub const ADD_MEMBERSHIP: i32 = 1;
    pub const RX_RING: i32 = 5;
    pub const COPY_THRESH: i32 = 7;
    pub const AUXDATA: i32 = 8;
    pub const ORIGDEV: i32 = 9;
    pub const VERSION: i32 = 10;
    pub const RESERVE: i32 = 12;
    pub const TX_RING: i32 = 13;
    pub const LOSS: i32 = 14;
    pub const VNET_HDR: i32 = 15;
    pub const TIMESTAMP: i32 = 17;
    pub const FANOUT: i32 = 18;
}
/// The type of socket that Linux had first (linux/net.h).
const SOCK_PACKET: u32 = 10;
/// No group.
const NO_FANOUT: u32 = u32::MAX;
/// Groups that choose by a program: PACKET_FANOUT_CBPF, PACKET_FANOUT_EBPF.
const BY_PROGRAM: [u32; 2] = [6, 7];
/// Version of ring headers with timeouts and private room.
const TPACKET_V3: u32 = 2;

/// Options of level SOL_PACKET that the image format has no field for.
static PACKET_OPTIONS: &[Opt] = &[
    Opt::int(PACKET, 20, "PACKET_QDISC_BYPASS", 0),
    Opt::int(PACKET, 23, "PACKET_IGNORE_OUTGOING", 0),
];

/// What packet_diag tells (linux/packet_diag.h).
#[derive(Debug, Default)]
struct Told {
    /// As socket(2) was given it: in network order.
    protocol: u32,
    /// Device, version, reserve, copy threshold, timestamp, flags.
    info: [u32; 6],
    mclist: Vec<pb::PacketMclist>,
    rx: Option<pb::PacketRing>,
    tx: Option<pb::PacketRing>,
    fanout: Option<u32>,
}

/// `pdi_flags`.
const AUXDATA: u32 = 2;
const ORIGDEV: u32 = 4;
const VNETHDR: u32 = 8;
const LOSS: u32 = 16;

fn ring(b: &[u8]) -> pb::PacketRing {
    pb::PacketRing {
        block_size: word(b, 0),
        block_nr: word(b, 4),
        frame_size: word(b, 8),
        frame_nr: word(b, 12),
        retire_tmo: word(b, 16),
        sizeof_priv: word(b, 20),
        features: word(b, 24),
    }
}

/// The answer about the socket with this inode number.
fn told(answers: &[Vec<u8>], ino: u32) -> Result<Option<Told>> {
    /// `struct packet_diag_msg`.
    const HEAD: usize = 16;
    let Some(m) = answers
        .iter()
        .find(|m| m.len() >= HEAD && word(m, 4) == ino)
    else {
        return Ok(None);
    };
    let mut t = Told {
        protocol: u32::from(u16::from_le_bytes([m[2], m[3]]).to_be()),
        ..Told::default()
    };
    for a in NlasIterator::new(&m[HEAD..]) {
        let a = a.map_err(|e| {
            Error::new(
                "E6510",
                Blame::Host,
                "the answer of sock_diag for AF_PACKET",
            )
            .why(e)
            .advice("please report it, with the version of the kernel")
        })?;
        let v = a.value();
        match a.kind() {
            0 => t.info = std::array::from_fn(|i| word(v, i * 4)),
            // struct packet_diag_mclist: device, count, type, length, 32 bytes
            1 => {
                for m in v.chunks_exact(44) {
                    let len = usize::from(u16::from_le_bytes([m[10], m[11]])).min(32);
                    let kind = u32::from(u16::from_le_bytes([m[8], m[9]]));
                    let one = pb::PacketMclist {
                        index: word(m, 0),
                        r#type: kind,
                        addr: m[12..12 + len].to_vec(),
                    };
                    t.mclist
                        .extend(std::iter::repeat_n(one, word(m, 4) as usize));
                }
            }
            2 => t.rx = Some(ring(v)),
            3 => t.tx = Some(ring(v)),
            4 => t.fanout = Some(word(v, 0)),
            _ => {}
        }
    }
    Ok(Some(t))
}

impl FileKind for Packet {
    fn name(&self) -> &'static str {
        "packet"
    }
    fn about(&self) -> &'static str {
        "packet sockets with memberships, rings, fanout groups and options; packets that wait are lost"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Packetsk
    }
    fn claims(&self, seen: &Seen) -> bool {
        let domain = || get_int(seen.fd, libc::SOL_SOCKET, libc::SO_DOMAIN);
        seen.file_type() == libc::S_IFSOCK && matches!(domain(), Ok(Some(libc::AF_PACKET)))
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        // struct packet_diag_req: family, protocol, padding, inode, what to show (all but memory and filter), cookie
        let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0];
        for w in [0u32, 0xf, u32::MAX, u32::MAX] {
            request.extend(w.to_le_bytes());
        }
        let answers = in_namespace_of(seen, || all_of(&request))?;
        let Some(t) = told(&answers, seen.stat.st_ino as u32)? else {
            return Err(seen.refuse(
                "E4511",
                "the kernel does not list it among the packet sockets of its network namespace",
                "use a kernel with CONFIG_PACKET_DIAG (module af_packet_diag)",
            ));
        };
        let kind = get_int(seen.fd, libc::SOL_SOCKET, libc::SO_TYPE)?.unwrap_or(0);
        if t.fanout
            .is_some_and(|f| BY_PROGRAM.contains(&(f >> 16 & 0xff)))
        {
            return Err(seen.refuse(
                "E4513",
                "its fanout group chooses by a BPF program, which the kernel does not give out",
                "close it before the dump",
            ));
        }
        if readiness(seen.fd, libc::POLLIN)? & libc::POLLIN != 0 {
            cx.warn(format!(
                "{}: packets that wait in it are lost",
                seen.place()
            ));
        }
        let [ifindex, version, reserve, copy_thresh, timestamp, flags] = t.info;
        let mut opts = sockopts::read(seen)?;
        opts.stasis
            .extend(sockopts::read_extra(seen.fd, PACKET_OPTIONS)?);
        let psk = pb::PacketSockEntry {
            id,
            r#type: kind as u32,
            protocol: t.protocol,
            flags: seen.flags,
            ifindex,
            fown: seen.fown,
            opts,
            version,
            reserve,
            aux_data: flags & AUXDATA != 0,
            orig_dev: flags & ORIGDEV != 0,
            vnet_hdr: flags & VNETHDR != 0,
            loss: flags & LOSS != 0,
            timestamp,
            copy_thresh,
            mclist: t.mclist,
            fanout: t.fanout,
            rx_ring: t.rx,
            tx_ring: t.tx,
            ns_id: None,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            psk: Some(Box::new(psk)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.psk, "psk")?;
        let file = cx.file(entry.id);
        let tables = [sockopts::SOCKET_OPTIONS, sockopts::LOCK, PACKET_OPTIONS];
        sockopts::known(&e.opts.stasis, &tables)?;
        let old = e.r#type == SOCK_PACKET;
        if !old && ![libc::SOCK_RAW as u32, libc::SOCK_DGRAM as u32].contains(&e.r#type) {
            return Err(malformed(entry, "a packet socket of an unknown type"));
        }
        let flags = e.r#type as i32 | libc::SOCK_CLOEXEC;
        let args = vec![
            Arg::Named(libc::AF_PACKET as u64, "AF_PACKET".into()),
            Arg::Named(flags as u64, names::socket_type(e.r#type.into())),
            Arg::Int(if old { e.protocol.into() } else { 0 }),
        ];
        cx.host(
            Call::new(libc::SYS_socket, args).binds(file),
            "packet socket",
        );
        let numbers = [
            (opt::VERSION, "PACKET_VERSION", e.version),
            (opt::RESERVE, "PACKET_RESERVE", e.reserve),
            (opt::COPY_THRESH, "PACKET_COPY_THRESH", e.copy_thresh),
            (opt::TIMESTAMP, "PACKET_TIMESTAMP", e.timestamp),
            (opt::AUXDATA, "PACKET_AUXDATA", e.aux_data.into()),
            (opt::ORIGDEV, "PACKET_ORIGDEV", e.orig_dev.into()),
            (opt::VNET_HDR, "PACKET_VNET_HDR", e.vnet_hdr.into()),
            (opt::LOSS, "PACKET_LOSS", e.loss.into()),
        ];
        for (name, text, v) in numbers.into_iter().filter(|n| n.2 != 0) {
            let row = set_int_row(file, PACKET, name, text, v as i32);
            cx.host(row, "option of a packet socket");
        }
        for m in &e.mclist {
            // struct packet_mreq, whose address may be longer
            let mut b = m.index.to_le_bytes().to_vec();
            b.extend((m.r#type as u16).to_le_bytes());
            b.extend((m.addr.len() as u16).to_le_bytes());
            b.extend_from_slice(&m.addr);
            b.resize(b.len().max(16), 0);
            if m.addr.len() > 32 {
                return Err(malformed(entry, "an address of more than 32 bytes"));
            }
            let name = "PACKET_ADD_MEMBERSHIP";
            let row = set_row(file, PACKET, opt::ADD_MEMBERSHIP, name, &b);
            cx.host(row, "a membership of a packet socket");
        }
        for (name, text, r) in [
            (opt::RX_RING, "PACKET_RX_RING", &e.rx_ring),
            (opt::TX_RING, "PACKET_TX_RING", &e.tx_ring),
        ] {
            if let Some(r) = r {
                cx.host(ring_row(file, name, text, r, e.version), "a ring");
            }
        }
        sockopts::plan(cx, file, &e.opts)?;
        sockopts::plan_buffers(cx, file, &e.opts);
        sockopts::plan_extra(cx, file, &e.opts.stasis, PACKET_OPTIONS)?;
        if old && e.ifindex != 0 {
            let bind = ByName {
                file,
                device: e.ifindex,
            };
            cx.act_at(cx.stage(), Act::BindByName(bind), "its device");
        } else if !old && (e.protocol != 0 || e.ifindex != 0) {
            // struct sockaddr_ll: family, protocol, device, and what bind(2) does not look at
            let mut b = (libc::AF_PACKET as u16).to_le_bytes().to_vec();
            b.extend((e.protocol as u16).to_le_bytes());
            b.extend(e.ifindex.to_le_bytes());
            b.resize(20, 0);
            let args = vec![Arg::Fd(file), Arg::In(b), Arg::Int(20)];
            cx.host(Call::new(libc::SYS_bind, args), "its protocol and device");
        }
        if let Some(f) = e.fanout.filter(|f| *f != NO_FANOUT) {
            let row = set_int_row(file, PACKET, opt::FANOUT, "PACKET_FANOUT", f as i32);
            cx.host(row, "its fanout group");
        }
        sockopts::plan_filter(cx, file, &e.opts)?;
        settle(cx, file, e.flags, &e.fown);
        Ok(())
    }
}

/// bind(2) of a SOCK_PACKET socket: it wants the name that a device has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByName {
    /// The socket.
    pub file: FdRef,
    /// Number of the device.
    pub device: u32,
}

impl ByName {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        // struct sockaddr_pkt: family, device, protocol (KERNEL: which packet_bind_spkt() does not look at)
        let mut address = (libc::AF_PACKET as u16).to_le_bytes().to_vec();
        let name = device_name(on.fd(self.file)?, self.device)?;
        address.extend(name.as_bytes().iter().take(13));
        address.resize(16, 0);
        let args = vec![Arg::Fd(self.file), Arg::In(address), Arg::Int(16)];
        on.host.play(&Call::new(libc::SYS_bind, args))?;
        Ok(())
    }
}

impl fmt::Display for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bind(file#{}, name of device {})",
            self.file.0, self.device
        )
    }
}

/// Bytes that a mapping of a socket's rings has.
pub fn rings(e: &pb::PacketSockEntry) -> u64 {
    let both = [&e.rx_ring, &e.tx_ring];
    let size = |r: &pb::PacketRing| u64::from(r.block_size) * u64::from(r.block_nr);
    both.into_iter().flatten().map(size).sum()
}

/// `struct tpacket_req3`, or the shorter one of older versions.
fn ring_row(file: FdRef, name: i32, text: &'static str, r: &pb::PacketRing, version: u32) -> Call {
    let all = [
        r.block_size,
        r.block_nr,
        r.frame_size,
        r.frame_nr,
        r.retire_tmo,
        r.sizeof_priv,
        r.features,
    ];
    let n = if version == TPACKET_V3 { 7 } else { 4 };
    let b: Vec<u8> = all[..n].iter().flat_map(|w| w.to_le_bytes()).collect();
    set_row(file, PACKET, name, text, &b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::dump;
    use stasis_kernel::host::Host;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};

    fn packet() -> OwnedFd {
        let mut h = Host::default();
        let protocol = Arg::Int(u64::from(0x88b5u16.to_be()));
        let args = vec![
            Arg::Int(libc::AF_PACKET as u64),
            Arg::Int(libc::SOCK_RAW as u64),
            protocol,
        ];
        h.play(&Call::new(libc::SYS_socket, args).binds(FdRef(1)))
            .unwrap();
        h.take(FdRef(1)).unwrap()
    }

    #[test]
    fn options_memberships_rings_and_groups_come_back() {
        let s = packet();
        let set = |name, v: &[u8]| {
            let fd = Arg::Int(s.as_raw_fd() as u64);
            let row = sockopts::set_arg(fd, PACKET, name, "", v);
            Host::default().play(&row).unwrap();
        };
        let words = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
        set(opt::VERSION, &words(&[1]));
        set(opt::RESERVE, &words(&[64]));
        set(opt::AUXDATA, &words(&[1]));
        // device 1 (lo), PACKET_MR_PROMISC, twice
        for _ in 0..2 {
            set(opt::ADD_MEMBERSHIP, &words(&[1, 1, 0, 0]));
        }
        set(opt::RX_RING, &words(&[4096, 2, 2048, 4]));
        set(opt::FANOUT, &words(&[4242]));
        set(23, &words(&[1]));
        let d = dump(&Packet, &[s.as_fd()]).unwrap();
        let e = d.files[&1].psk.clone().unwrap();
        assert_eq!((e.version, e.reserve, e.aux_data), (1, 64, true));
        assert_eq!((e.mclist.len(), e.fanout), (2, Some(4242)));
        assert_eq!(e.rx_ring.map(|r| r.frame_nr), Some(4));
        drop(s);
        let new = d.files(&Packet);
        let again = dump(&Packet, &[new[0].as_fd()]).unwrap();
        let mut back = again.files[&1].psk.clone().unwrap();
        back.flags = e.flags;
        assert_eq!(back, e);
    }
}
