//! Probes of sockets and network namespaces.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::{Outcome, Tried, failed, ok};
use crate::netlink::{Body, Netlink};

/// A socket of our own network namespace.
fn socket(family: i32, kind: i32, protocol: i32, call: &'static str) -> Result<OwnedFd, Outcome> {
    // SAFETY: integers go in, a descriptor comes out.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    let fd = ok(fd.into(), call)?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets an option of one int.
fn set(fd: &OwnedFd, level: i32, name: i32, value: i32, call: &'static str) -> Tried {
    // SAFETY: `value` lives through the call.
    let ret =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    ok(ret.into(), call)?;
    Ok(Outcome::OK)
}

/// An ioctl without argument that answers with a descriptor, which is closed again.
fn ioctl_fd(fd: &OwnedFd, number: libc::Ioctl, call: &'static str) -> Tried {
    // SAFETY: these numbers read no argument.
    let got = ok(
        unsafe { libc::ioctl(fd.as_raw_fd(), number, 0) }.into(),
        call,
    )?;
    // SAFETY: a fresh descriptor that nobody else knows.
    drop(unsafe { OwnedFd::from_raw_fd(got as i32) });
    Ok(Outcome::OK)
}

const SIOCGSKNS: libc::Ioctl = 0x894c;

pub(super) fn namespace_of() -> Tried {
    let s = socket(
        libc::AF_INET,
        libc::SOCK_DGRAM,
        0,
        "socket(AF_INET, SOCK_DGRAM)",
    )?;
    ioctl_fd(&s, SIOCGSKNS, "ioctl(SIOCGSKNS)")
}

pub(super) fn unix_file() -> Tried {
    const SIOCUNIXFILE: libc::Ioctl = 0x89e0;
    let s = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0, "socket(AF_UNIX)")?;
    // SAFETY: takes no argument.
    match unsafe { libc::ioctl(s.as_raw_fd(), SIOCUNIXFILE, 0) } {
        // a socket that is bound to no file: the number is known
        -1 if matches!(Errno::last(), Errno::EINVAL | Errno::ENOENT) => Ok(Outcome::OK),
        -1 => Ok(failed("ioctl(SIOCUNIXFILE)", Errno::last())),
        fd => {
            // SAFETY: a fresh descriptor that nobody else knows.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(Outcome::OK)
        }
    }
}

pub(super) fn buffer_locks() -> Tried {
    const SO_BUF_LOCK: i32 = 72;
    let s = socket(
        libc::AF_INET,
        libc::SOCK_DGRAM,
        0,
        "socket(AF_INET, SOCK_DGRAM)",
    )?;
    set(
        &s,
        libc::SOL_SOCKET,
        SO_BUF_LOCK,
        0,
        "setsockopt(SO_BUF_LOCK)",
    )
}

pub(super) fn ipv6_freebind() -> Tried {
    const IPV6_FREEBIND: i32 = 78;
    let s = socket(
        libc::AF_INET6,
        libc::SOCK_DGRAM,
        0,
        "socket(AF_INET6, SOCK_DGRAM)",
    )?;
    set(
        &s,
        libc::IPPROTO_IPV6,
        IPV6_FREEBIND,
        1,
        "setsockopt(IPV6_FREEBIND)",
    )
}

/// RTM_GETNSID of our own namespace: answered, also where it has no number.
pub(super) fn nsid() -> Tried {
    const RTM_GETNSID: u16 = 90;
    const NETNSA_FD: u16 = 3;
    let own = std::fs::File::open("/proc/self/ns/net")
        .map_err(|e| super::files::io("openat", "/proc/self/ns/net", &e))?;
    // struct rtgenmsg, padded
    let mut body = Body::new(&[0; 4]);
    body.u32(NETNSA_FD, own.as_raw_fd() as u32);
    Netlink::route()?.get("RTM_GETNSID", RTM_GETNSID, &body.0)?;
    Ok(Outcome::OK)
}

/// A socket of nf_tables, and its answer to a question (NFT_MSG_GETGEN).
pub(super) fn nftables() -> Tried {
    const NFT_MSG_GETGEN: u16 = 10 << 8 | 16;
    // struct nfgenmsg: family, version, resource
    Netlink::netfilter()?.get("NFT_MSG_GETGEN", NFT_MSG_GETGEN, &[0; 4])?;
    Ok(Outcome::OK)
}

fn tun_device() -> Result<OwnedFd, Outcome> {
    let path = "/dev/net/tun";
    let file = std::fs::File::options().read(true).write(true).open(path);
    Ok(file
        .map_err(|e| super::files::io("openat", path, &e))?
        .into())
}

pub(super) fn tun() -> Tried {
    tun_device()?;
    Ok(Outcome::OK)
}

pub(super) fn tun_namespace() -> Tried {
    let tun = tun_device()?;
    // A descriptor without a device knows its namespace too; an old kernel answers EBADFD or EINVAL to the number.
    ioctl_fd(&tun, SIOCGSKNS, "ioctl(SIOCGSKNS) of a tun device")
}
