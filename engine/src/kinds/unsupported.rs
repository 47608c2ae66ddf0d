//! Open files that no kind claims, by name: what it is, why it cannot be carried, what to do.
//!
//! A dump stops at the first of them; `stasis check` style walks ([`crate::preflight`]) name them all. The table is by the
//! link in /proc/PID/fd and by the magic number of the file system, in this order.
use super::Seen;
use super::common::{ask, is_anon};
use crate::error::Error;
use stasis_kernel::call::Arg;
use stasis_kernel::names;

/// How a row of [`TABLE`] knows a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// An anonymous inode of this name.
    Anon(&'static str),
    /// The link begins so.
    Link(&'static str),
    /// Magic number of the file system (`f_type` of statfs(2)).
    Fs(i64),
    /// A device of this major number.
    Major(u32),
}

/// One sort of open file that cannot be dumped.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// How it is known.
    pub sign: Sign,
    /// Its name.
    pub name: &'static str,
    /// Why it cannot be carried.
    pub why: &'static str,
    /// What to do about it.
    pub advice: &'static str,
}

const CLOSE: &str = "close it before the dump";

/// All that is known to exist and not supported.
#[rustfmt::skip] // one line per sort
pub static TABLE: &[Row] = &[
    Row { sign: Sign::Anon("io_uring"), name: "io_uring", why: "requests in flight live in the kernel only", advice: "let the program run without io_uring (many have an option), or close the ring before the dump" },
    Row { sign: Sign::Anon("userfaultfd"), name: "userfaultfd", why: "faults that wait for an answer cannot be carried", advice: CLOSE },
    Row { sign: Sign::Anon("bpf-prog"), name: "BPF program", why: "loading BPF objects is not supported yet", advice: CLOSE },
    Row { sign: Sign::Anon("bpf-link"), name: "BPF link", why: "attaching BPF programs is not supported", advice: CLOSE },
    Row { sign: Sign::Anon("bpf_link"), name: "BPF link", why: "attaching BPF programs is not supported", advice: CLOSE },
    Row { sign: Sign::Anon("bpf_iter"), name: "BPF iterator", why: "attaching BPF programs is not supported", advice: CLOSE },
    Row { sign: Sign::Anon("btf"), name: "BTF object", why: "loading BPF objects is not supported yet", advice: CLOSE },
    Row { sign: Sign::Anon("perf_event"), name: "performance counter", why: "the kernel does not tell what it counts", advice: "stop profiling before the dump" },
    Row { sign: Sign::Anon("seccomp notify"), name: "seccomp listener", why: "system calls that wait for its answer cannot be carried", advice: CLOSE },
    Row { sign: Sign::Anon("landlock-ruleset"), name: "Landlock ruleset", why: "the kernel does not tell its rules", advice: CLOSE },
    Row { sign: Sign::Anon("fscontext"), name: "file system being set up (fsopen)", why: "the kernel does not tell its parameters", advice: "let the mount finish before the dump" },
    Row { sign: Sign::Anon("kvm-vm"), name: "virtual machine (KVM)", why: "the state of virtual machines is not carried", advice: "use the virtual machine monitor's own snapshots" },
    Row { sign: Sign::Link("anon_inode:kvm-vcpu"), name: "virtual CPU (KVM)", why: "the state of virtual machines is not carried", advice: "use the virtual machine monitor's own snapshots" },
    Row { sign: Sign::Anon("dma-buf"), name: "DMA buffer", why: "memory of devices is not carried", advice: "close the device's users before the dump" },
    Row { sign: Sign::Link("/dmabuf:"), name: "DMA buffer", why: "memory of devices is not carried", advice: "close the device's users before the dump" },
    Row { sign: Sign::Anon("sync_file"), name: "fence of a device", why: "the state of devices is not carried", advice: "close the device's users before the dump" },
    Row { sign: Sign::Link("/secretmem"), name: "secret memory (memfd_secret)", why: "it cannot be read from outside", advice: CLOSE },
    Row { sign: Sign::Fs(0x5345_434d), name: "secret memory (memfd_secret)", why: "it cannot be read from outside", advice: CLOSE },
    Row { sign: Sign::Fs(0x1980_0202), name: "POSIX message queue", why: "message queues are not supported yet", advice: CLOSE },
    Row { sign: Sign::Fs(0x6275_7831), name: "binder device", why: "its transactions live in the kernel only", advice: CLOSE },
    Row { sign: Sign::Link("/dev/fuse"), name: "FUSE connection", why: "requests in flight live in the kernel only", advice: "unmount what the program serves before the dump" },
    Row { sign: Sign::Link("/dev/kvm"), name: "KVM", why: "the state of virtual machines is not carried", advice: "use the virtual machine monitor's own snapshots" },
    Row { sign: Sign::Link("/dev/vhost"), name: "vhost device", why: "the state of devices is not carried", advice: CLOSE },
    Row { sign: Sign::Link("/dev/vfio/"), name: "device given to user space (VFIO)", why: "the state of devices is not carried", advice: CLOSE },
    Row { sign: Sign::Link("/dev/nvidia"), name: "graphics processor", why: "the state of devices is not carried", advice: "checkpoint the device with its vendor's tool first" },
    Row { sign: Sign::Major(226), name: "graphics device", why: "the state of devices is not carried", advice: "close the device's users before the dump" },
    Row { sign: Sign::Major(116), name: "sound device", why: "the state of devices is not carried", advice: "stop playing before the dump" },
    Row { sign: Sign::Major(81), name: "video device", why: "the state of devices is not carried", advice: "stop capturing before the dump" },
    Row { sign: Sign::Major(13), name: "input device", why: "the state of devices is not carried", advice: CLOSE },
    Row { sign: Sign::Link("/dev/rtc"), name: "real-time clock", why: "its alarms are not carried", advice: CLOSE },
    Row { sign: Sign::Link("/dev/watchdog"), name: "watchdog", why: "a frozen program cannot feed it", advice: "stop the watchdog before the dump" },
];

impl Sign {
    fn fits(self, seen: &Seen) -> bool {
        match self {
            Sign::Anon(n) => is_anon(seen.link, n),
            Sign::Link(p) => seen.link.starts_with(p.as_bytes()),
            Sign::Fs(m) => seen.fs_type == m,
            Sign::Major(m) => {
                seen.file_type() == libc::S_IFCHR && libc::major(seen.stat.st_rdev) == m
            }
        }
    }
}

/// The error for an open file that no kind claims.
pub fn name(seen: &Seen) -> Error {
    if let Some(r) = TABLE.iter().find(|r| r.sign.fits(seen)) {
        return seen.unsupported(format!("{}: {}", r.name, r.why), r.advice);
    }
    match seen.file_type() {
        libc::S_IFSOCK => seen.unsupported(
            format!(
                "it is a socket ({}), and this sort is not carried",
                socket(seen)
            ),
            match socket(seen).starts_with("AF_VSOCK") {
                // its other end is a virtual machine or its host, and the kernel tells nothing of what is under way
                true => "close it before the dump; the other end must connect again",
                false => CLOSE,
            },
        ),
        libc::S_IFCHR | libc::S_IFBLK => seen.unsupported(
            format!(
                "it is the {} {}:{}, and the state of devices is not carried",
                names::file_type(seen.stat.st_mode),
                libc::major(seen.stat.st_rdev),
                libc::minor(seen.stat.st_rdev)
            ),
            CLOSE,
        ),
        _ => seen.unsupported(
            format!(
                "stasis does not know this sort of file (file system {:#x}, {})",
                seen.fs_type,
                names::file_type(seen.stat.st_mode)
            ),
            "close it before the dump, and please report it",
        ),
    }
}

/// Family and type, as far as the socket tells.
fn socket(seen: &Seen) -> String {
    let opt = |o: i32| {
        let args = vec![
            Arg::Named(libc::SOL_SOCKET as u64, "SOL_SOCKET".into()),
            Arg::Int(o as u64),
            Arg::Out(4),
            Arg::InOut(4u32.to_le_bytes().to_vec()),
        ];
        let a = ask(seen.fd, libc::SYS_getsockopt, args).ok()?;
        let b = a.out(3);
        Some(u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
    };
    match (opt(libc::SO_DOMAIN), opt(libc::SO_TYPE)) {
        (Some(f), Some(t)) => format!("{} {}", names::socket_family(f), names::socket_type(t)),
        _ => "of unknown family".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::see;
    use std::os::fd::{AsFd, OwnedFd};

    #[test]
    fn known_things_are_named() {
        let host = |nr, args| {
            let mut h = stasis_kernel::host::Host::default();
            let f = stasis_kernel::call::FdRef(1);
            h.play(&stasis_kernel::call::Call::new(nr, args).binds(f))
                .ok()?;
            h.take(f)
        };
        let ring = host(
            libc::SYS_io_uring_setup,
            vec![Arg::Int(1), Arg::InOut(vec![0; 120])],
        );
        let rules = host(
            libc::SYS_landlock_create_ruleset,
            vec![
                Arg::In(vec![1, 0, 0, 0, 0, 0, 0, 0]),
                Arg::Int(8),
                Arg::Int(0),
            ],
        );
        let udp = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut n = 0;
        for (f, what) in [
            (ring, "io_uring"),
            (rules, "andlock"),
            (Some(udp), "AF_INET SOCK_DGRAM"),
        ] {
            let Some(f) = f else { continue };
            let e = see(f.as_fd(), name);
            assert!(e.why.contains(what), "{e}");
            assert_eq!(e.code, "E4100");
            assert!(!e.advice.is_empty());
            n += 1;
        }
        assert!(n >= 1);
    }

    #[test]
    fn no_kind_claims_what_the_table_names() {
        let mut h = stasis_kernel::host::Host::default();
        let f = stasis_kernel::call::FdRef(1);
        let args = vec![
            Arg::In(vec![1, 0, 0, 0, 0, 0, 0, 0]),
            Arg::Int(8),
            Arg::Int(0),
        ];
        let make = stasis_kernel::call::Call::new(libc::SYS_landlock_create_ruleset, args);
        if h.play(&make.binds(f)).is_err() {
            return;
        }
        let rules = h.take(f).unwrap();
        see(rules.as_fd(), |s| {
            for k in super::super::FILE_KINDS {
                assert!(!k.claims(s), "{}", k.name());
            }
        });
    }
}
