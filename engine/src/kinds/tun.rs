//! Open files of /dev/net/tun: the queues of tun and tap devices.
//!
//! **What it is.** A file of the character device 10:200. TUNGETIFF tells the device it is attached to, and whether this queue of it is
//! switched off; TUNGETDEVNETNS in which network namespace that is.
//!
//! **The device** itself is among the contents of its network namespace (`namespaces/net`), which makes it again, for the time
//! being as one that stays without open files. It must be a namespace of the tree's own: what a device of the host is for, nobody here knows.
//!
//! **Restore.** open(2), TUNSETIFF; what only an open file can tell or set (the length of the header before each packet, the room for
//! packets to send, byte order, NAPI), then whether the device stays without open files.
//!
//! **What does not come back.** Packets that wait to be read: as on any network they are lost. What TUNSETOFFLOAD allowed, filters
//! (TUNATTACHFILTER, TUNSETTXFILTER) and eBPF programs that choose a queue: the kernel does not tell them.
//!
//! Guest: tun.
use super::common::{SETTABLE, ask_int, ask_ioctl, at_cwd, body, ioctl_row, settle};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, malformed, regular};
use crate::error::Result;
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::ns::Ns;
use stasis_proto::{Kind, pb};

/// The kind.
pub struct Tun;

/// misc major, and the minor of tun (Documentation/admin-guide/devices.txt).
const DEVICE: (u32, u32) = (10, 200);
const PATH: &str = "/dev/net/tun";
/// `struct ifreq`: a name of 16 bytes, then flags.
const IFREQ: usize = 40;
const NAME: usize = 16;
/// linux/if_tun.h.
pub(crate) const TUNSETIFF: u64 = 0x4004_54ca;
pub(crate) const TUNSETPERSIST: u64 = 0x4004_54cb;
pub(crate) const TUNSETSNDBUF: u64 = 0x4004_54d4;
pub(crate) const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUNSETQUEUE: u64 = 0x4004_54d9;
const TUNSETVNETLE: u64 = 0x4004_54dc;
const TUNSETVNETBE: u64 = 0x4004_54de;
const TUNGETIFF: u64 = 0x8004_54d2;
const TUNGETSNDBUF: u64 = 0x8004_54d3;
const TUNGETVNETHDRSZ: u64 = 0x8004_54d7;
const TUNGETVNETLE: u64 = 0x8004_54dd;
const TUNGETVNETBE: u64 = 0x8004_54df;
const TUNGETDEVNETNS: u64 = 0x54e3;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_PERSIST: u32 = 0x0800;
/// IFF_NAPI, IFF_NAPI_FRAGS.
const NAPI: u16 = 0x0030;

/// An ioctl(2) that reads an int.
pub(crate) fn int_row(file: FdRef, nr: u64, v: u32) -> Call {
    ioctl_row(Arg::Fd(file), nr, Arg::In(v.to_ne_bytes().to_vec()))
}

/// TUNSETIFF, or another ioctl(2) that takes the name of a device and flags.
pub(crate) fn ifreq_row(file: FdRef, nr: u64, name: &str, flags: u16) -> Call {
    let mut r = vec![0; IFREQ];
    let n = name.len().min(NAME - 1);
    r[..n].copy_from_slice(&name.as_bytes()[..n]);
    r[NAME..NAME + 2].copy_from_slice(&flags.to_ne_bytes());
    ioctl_row(Arg::Fd(file), nr, Arg::InOut(r))
}

/// Row: opens the device in the network namespace of whoever plays it.
pub(crate) fn open_row(file: FdRef, flags: u32) -> Call {
    let flags = flags & (SETTABLE | libc::O_ACCMODE as u32) | libc::O_CLOEXEC as u32;
    Call::new(
        libc::SYS_openat,
        vec![
            at_cwd(),
            Arg::Str(PATH.into()),
            Arg::OpenFlags(flags.into()),
        ],
    )
    .binds(file)
}

/// Inode number of the network namespace of the device.
fn namespace(seen: &Seen) -> Result<u64> {
    let mut h = Host::default();
    let f = FdRef(1);
    let fd = Arg::Int(super::inet_address::raw_fd(seen.fd));
    h.play(&ioctl_row(fd, TUNGETDEVNETNS, Arg::Int(0)).binds(f))?;
    match h.fd(f) {
        Some(fd) => Ok(fds::fstat(std::os::fd::AsFd::as_fd(fd))?.st_ino),
        None => Ok(0),
    }
}

impl FileKind for Tun {
    fn name(&self) -> &'static str {
        "tun"
    }
    fn about(&self) -> &'static str {
        "queues of tun and tap devices in network namespaces of the tree's own; packets that wait do not come back"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Tunf
    }
    fn claims(&self, seen: &Seen) -> bool {
        let d = seen.stat.st_rdev;
        seen.file_type() == libc::S_IFCHR
            && seen.flags & libc::O_PATH as u32 == 0
            && (libc::major(d), libc::minor(d)) == DEVICE
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let mut e = pb::TunfileEntry {
            id,
            ..Default::default()
        };
        match ask_ioctl(seen.fd, TUNGETIFF, IFREQ) {
            // attached to nothing
            Err(err) if err.errno == Errno::EBADFD => {}
            Err(err) => return Err(err.into()),
            Ok(r) => {
                let end = r[..NAME].iter().position(|b| *b == 0).unwrap_or(NAME);
                let flags = u16::from_ne_bytes([r[NAME], r[NAME + 1]]);
                let Some((_, ns_id)) = cx.namespaces.get(&namespace(seen)?).copied() else {
                    return Err(seen.unsupported(
                        "its device is in a network namespace that is not the tree's",
                        "close it before the dump",
                    ));
                };
                if !cx.has_own(Ns::Net) {
                    return Err(seen.unsupported(
                        "its device is in the network namespace of whoever dumps, where it would come back without what the host set up for it",
                        "give the container a network namespace of its own, or close it before the dump",
                    ));
                }
                e.netdev = Some(String::from_utf8_lossy(&r[..end]).into_owned());
                e.ns_id = Some(ns_id);
                e.detached = (flags & IFF_DETACH_QUEUE != 0).then_some(true);
                let on = |nr| ask_int(seen.fd, nr).is_ok_and(|v| v != 0).then_some(true);
                e.stasis = Some(pb::StasisTunfileEntry {
                    sndbuf: ask_int(seen.fd, TUNGETSNDBUF)? as u32,
                    vnethdr: ask_int(seen.fd, TUNGETVNETHDRSZ)? as u32,
                    little_endian: on(TUNGETVNETLE),
                    big_endian: on(TUNGETVNETBE),
                    napi: (flags & NAPI != 0).then_some((flags & NAPI).into()),
                });
            }
        }
        // as CRIU has it: what was opened, under the same number
        let opened = regular::Regular.dump(seen, id, cx)?;
        cx.entries.push(opened);
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            tunf: Some(Box::new(e)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.tunf, "tunf")?;
        let opened = body(entry, &entry.reg, "reg")?;
        let file = cx.file(entry.id);
        cx.host(
            open_row(file, opened.flags),
            "a queue of a tun or tap device",
        );
        if let (Some(name), Some(ns)) = (&e.netdev, e.ns_id) {
            let devices: Vec<pb::NetDeviceEntry> = cx.dir.read_all(&Kind::Netdev.file_of(ns))?;
            let link = devices
                .iter()
                .find(|d| d.name == *name)
                .and_then(|d| d.tun.as_ref())
                .ok_or_else(|| malformed(entry, "its device is not among those of the image"))?;
            let ours = e.stasis.as_ref();
            let napi = ours.and_then(|s| s.napi).unwrap_or(0) as u16 & NAPI;
            let flags = link.flags as u16 & !(IFF_PERSIST as u16) | napi;
            cx.host(ifreq_row(file, TUNSETIFF, name, flags), name.clone());
            if let Some(s) = ours {
                cx.host(
                    int_row(file, TUNSETVNETHDRSZ, s.vnethdr),
                    "length of headers",
                );
                cx.host(
                    int_row(file, TUNSETSNDBUF, s.sndbuf),
                    "room for packets to send",
                );
                for (nr, on) in [
                    (TUNSETVNETLE, s.little_endian),
                    (TUNSETVNETBE, s.big_endian),
                ] {
                    if on == Some(true) {
                        cx.host(int_row(file, nr, 1), "byte order of headers");
                    }
                }
            }
            let stays = link.flags & IFF_PERSIST != 0;
            let persist = ioctl_row(Arg::Fd(file), TUNSETPERSIST, Arg::Int(stays.into()));
            cx.host(persist, "whether the device stays without open files");
            if e.detached == Some(true) {
                let off = ifreq_row(file, TUNSETQUEUE, name, IFF_DETACH_QUEUE);
                cx.host(off, "a queue that is switched off");
            }
        }
        settle(cx, file, opened.flags, &opened.fown);
        Ok(())
    }
}
