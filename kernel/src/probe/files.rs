//! Probes of descriptors, mounts, cgroups and the network.

use std::cmp::Ordering;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::child::Child;
use super::{Outcome, Tried, failed, ok};
use crate::error::SysError;
use crate::fds::{self, Kcmp};
use crate::ids::{HostPid, RemoteFd};
use crate::procfs::ProcDir;

pub(super) fn io(call: &'static str, path: impl AsRef<Path>, e: &std::io::Error) -> Outcome {
    let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
    SysError::new(call, errno, path.as_ref().display().to_string()).into()
}

fn absent(why: &str) -> Tried {
    Ok(Outcome::Absent(why.into()))
}

pub(super) fn pidfd_getfd() -> Tried {
    let file = fds::memfd_create(c"probe", 0)?;
    let child = Child::sleeping()?;
    let pidfd = fds::pidfd_open(child.pid, 0)?;
    let copy = fds::pidfd_getfd(pidfd.as_fd(), RemoteFd(file.as_raw_fd()))?;
    match fds::fstat(copy.as_fd())?.st_ino == fds::fstat(file.as_fd())?.st_ino {
        true => Ok(Outcome::OK),
        false => absent("pidfd_getfd gave another file"),
    }
}

pub(super) fn kcmp() -> Tried {
    let (a, b) = fds::seqpacket_pair()?;
    let child = Child::sleeping()?;
    let me = HostPid::own();
    let file = |x: &OwnedFd, y: &OwnedFd| {
        fds::kcmp(
            me,
            child.pid,
            Kcmp::File(RemoteFd(x.as_raw_fd()), RemoteFd(y.as_raw_fd())),
        )
    };
    match (file(&a, &a)?, file(&a, &b)?) {
        (Ordering::Equal, Ordering::Less | Ordering::Greater) => Ok(Outcome::OK),
        _ => absent("kcmp cannot tell two open files apart"),
    }
}

pub(super) fn kcmp_epoll() -> Tried {
    let (a, _b) = fds::seqpacket_pair()?;
    // SAFETY: makes a descriptor.
    let ep = ok(
        unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }.into(),
        "epoll_create1",
    )?;
    // SAFETY: a fresh descriptor that nobody else knows.
    let ep = unsafe { OwnedFd::from_raw_fd(ep as i32) };
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: `event` lives through the call.
    let ret = unsafe {
        libc::epoll_ctl(
            ep.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            a.as_raw_fd(),
            &mut event,
        )
    };
    ok(ret.into(), "epoll_ctl")?;
    let me = HostPid::own();
    let (fd, ep) = (RemoteFd(a.as_raw_fd()), RemoteFd(ep.as_raw_fd()));
    match fds::kcmp_epoll(me, fd, me, ep, a.as_raw_fd(), 0)? {
        Ordering::Equal => Ok(Outcome::OK),
        _ => absent("kcmp does not find an epoll target"),
    }
}

pub(super) fn dupfd_query() -> Tried {
    let (a, b) = fds::seqpacket_pair()?;
    let same = fds::dup(&a)?;
    match (
        fds::same_file(a.as_fd(), same.as_fd())?,
        fds::same_file(a.as_fd(), b.as_fd())?,
    ) {
        (true, false) => Ok(Outcome::OK),
        _ => absent("fcntl(F_DUPFD_QUERY) cannot tell two open files apart"),
    }
}

pub(super) fn open_by_handle() -> Tried {
    let root = std::fs::File::open("/").map_err(|e| io("openat", "/", &e))?;
    let (handle, _) = fds::name_to_handle(root.as_fd(), c"", libc::AT_EMPTY_PATH)?;
    fds::open_by_handle(root.as_fd(), &handle, libc::O_PATH)?;
    Ok(Outcome::OK)
}

pub(super) fn pidfd_info() -> Tried {
    // struct pidfd_info, first version: 64 bytes, mask first. _IOWR(0xff, 11, 64).
    const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0bu32 as libc::Ioctl;
    let pidfd = fds::pidfd_open(HostPid::own(), 0)?;
    let mut info = [0u64; 8];
    info[0] = 1; // PIDFD_INFO_PID
    // SAFETY: `info` has the size that the number encodes.
    let ret = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, info.as_mut_ptr()) };
    ok(ret.into(), "ioctl(PIDFD_GET_INFO)")?;
    Ok(Outcome::OK)
}

pub(super) fn statmount() -> Tried {
    // struct mnt_id_req: size, spare, mnt_id, param. LSMT_ROOT lists the whole namespace.
    const SYS_LISTMOUNT: libc::c_long = 458;
    const LSMT_ROOT: u64 = u64::MAX;
    let request = [24u64, LSMT_ROOT, 0];
    let mut ids = [0u64; 1];
    // SAFETY: `request` has the size it says, `ids` has room for the one id asked for.
    let ret = unsafe { libc::syscall(SYS_LISTMOUNT, request.as_ptr(), ids.as_mut_ptr(), 1, 0) };
    ok(ret, "listmount")?;
    // struct statmount is 512 bytes and then strings, of which none are asked for (STATMOUNT_MNT_BASIC).
    const SYS_STATMOUNT: libc::c_long = 457;
    let request = [24u64, ids[0], 2];
    let mut answer = [0u64; 128];
    // SAFETY: as above; `answer` has the size that is passed.
    let ret = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            request.as_ptr(),
            answer.as_mut_ptr(),
            size_of_val(&answer),
            0,
        )
    };
    ok(ret, "statmount")?;
    Ok(Outcome::OK)
}

pub(super) fn tcp_repair() -> Tried {
    // SAFETY: makes a descriptor.
    let fd = ok(
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) }.into(),
        "socket(AF_INET)",
    )?;
    // SAFETY: a fresh descriptor that nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let on = 1i32;
    // SAFETY: `on` lives through the call.
    let ret = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            4,
        )
    };
    ok(ret.into(), "setsockopt(TCP_REPAIR)")?;
    Ok(Outcome::OK)
}

/// Where cgroup v2 is mounted in our view.
fn cgroup2_mount() -> Result<PathBuf, Outcome> {
    let mounts = ProcDir::open(HostPid::own())?.mountinfo()?;
    let m = mounts.into_iter().find(|m| m.fstype == b"cgroup2");
    let m = m.ok_or_else(|| Outcome::Absent("cgroup2 is not mounted".into()))?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(m.mountpoint)))
}

/// Our own cgroup v2 directory.
pub(super) fn own_cgroup2() -> Result<PathBuf, Outcome> {
    let mount = cgroup2_mount()?;
    let lines = ProcDir::open(HostPid::own())?.cgroup()?;
    let own = lines.into_iter().find(|c| c.hierarchy == 0);
    let own = own.ok_or_else(|| Outcome::Absent("this process has no cgroup v2 place".into()))?;
    let path = std::ffi::OsString::from_vec(own.path);
    Ok(mount.join(Path::new(&path).strip_prefix("/").unwrap_or(Path::new(""))))
}

pub(super) fn cgroup2() -> Tried {
    Ok(Outcome::Present(format!(
        "at {}",
        cgroup2_mount()?.display()
    )))
}

/// A directory that is removed when dropped.
struct TempCgroup(PathBuf);

impl Drop for TempCgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

pub(super) fn cgroup2_freeze() -> Tried {
    let parent = own_cgroup2()?;
    // The thread id keeps concurrent probes of one process apart; what a killed probe left behind is taken over.
    let dir = parent.join(format!("stasis-probe-{}", nix::unistd::gettid()));
    match std::fs::create_dir(&dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io("mkdirat", &dir, &e)),
        _ => {}
    }
    let dir = TempCgroup(dir);
    let freeze = dir.0.join("cgroup.freeze");
    std::fs::write(&freeze, "1").map_err(|e| io("write", &freeze, &e))?;
    let events = dir.0.join("cgroup.events");
    let text = std::fs::read_to_string(&events).map_err(|e| io("read", &events, &e))?;
    match text.lines().any(|l| l == "frozen 1") {
        true => Ok(Outcome::OK),
        false => absent("an empty cgroup did not freeze"),
    }
}

pub(super) fn bpf() -> Tried {
    // BPF_MAP_CREATE of a one-element array: map_type, key_size, value_size, max_entries, flags.
    let attr = [2u32, 4, 4, 1, 0, 0];
    // SAFETY: `attr` has the size that is passed; the kernel takes the rest as zero.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 0, attr.as_ptr(), size_of_val(&attr)) };
    if fd == -1 {
        return Ok(failed("bpf(BPF_MAP_CREATE)", Errno::last()));
    }
    // SAFETY: a fresh descriptor that nobody else knows.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(Outcome::OK)
}

/// A field of our own fdinfo of this descriptor.
fn fdinfo_has(fd: &impl AsRawFd, field: &str) -> Tried {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(&path).map_err(|e| io("read", &path, &e))?;
    match text.lines().any(|l| l.starts_with(field)) {
        true => Ok(Outcome::OK),
        false => Ok(Outcome::Absent(format!("{path} has no line {field}"))),
    }
}

pub(super) fn fdinfo_mount() -> Tried {
    fdinfo_has(&fds::memfd_create(c"probe", 0)?, "mnt_id:")
}

pub(super) fn fdinfo_lock() -> Tried {
    let file = fds::memfd_create(c"probe", 0)?;
    // SAFETY: integers only.
    let ret = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH) };
    ok(ret.into(), "flock")?;
    fdinfo_has(&file, "lock:")
}

pub(super) fn timerfd_ticks() -> Tried {
    // _IOW('T', 0, u64)
    const TFD_IOC_SET_TICKS: libc::Ioctl = 0x4008_5400;
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
    let fd = ok(fd.into(), "timerfd_create")?;
    // SAFETY: a fresh descriptor that nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let ticks = 1u64;
    // SAFETY: `ticks` has the size that the number encodes.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    ok(ret.into(), "ioctl(TFD_IOC_SET_TICKS)")?;
    Ok(Outcome::OK)
}

pub(super) fn memfd_hugetlb() -> Tried {
    fds::memfd_create(c"probe", libc::MFD_HUGETLB)?;
    Ok(Outcome::OK)
}

pub(super) fn openat2() -> Tried {
    const RESOLVE_IN_ROOT: u64 = 0x10;
    // struct open_how: flags, mode, resolve
    let how = [(libc::O_PATH | libc::O_CLOEXEC) as u64, 0, RESOLVE_IN_ROOT];
    // SAFETY: `how` has the size that is passed; the path ends with NUL.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            how.as_ptr(),
            size_of_val(&how),
        )
    };
    let fd = ok(fd, "openat2")?;
    // SAFETY: a fresh descriptor that nobody else knows.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(Outcome::OK)
}

/// Asked with descriptors that are no mounts: the kernel refuses them with EINVAL as well when it does not know the flag, but
/// then before it looks at the descriptors.
pub(super) fn set_group() -> Tried {
    const MOVE_MOUNT_SET_GROUP: u32 = 0x100;
    let empty = c"".as_ptr();
    // SAFETY: paths end with NUL; -1 is no descriptor.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            -1,
            empty,
            -1,
            empty,
            MOVE_MOUNT_SET_GROUP | 0x4 | 0x40, // MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH
        )
    };
    match (ret, Errno::last()) {
        (-1, Errno::EBADF) => Ok(Outcome::OK),
        (-1, e) => Ok(failed("move_mount(MOVE_MOUNT_SET_GROUP)", e)),
        _ => absent("move_mount took descriptors that do not exist"),
    }
}

pub(super) fn pid_in_namespace() -> Tried {
    // _IOR(0xb7, 6, int): NS_GET_PID_FROM_PIDNS
    const NS_GET_PID_FROM_PIDNS: libc::Ioctl = 0x8004_b706u32 as libc::Ioctl;
    let path = "/proc/self/ns/pid";
    let ns = std::fs::File::open(path).map_err(|e| io("openat", path, &e))?;
    // SAFETY: takes an integer.
    let ret = unsafe { libc::ioctl(ns.as_raw_fd(), NS_GET_PID_FROM_PIDNS, libc::getpid()) };
    ok(ret.into(), "ioctl(NS_GET_PID_FROM_PIDNS)")?;
    Ok(Outcome::OK)
}

/// In the child: an overlay in a mount namespace of its own, over its /proc, with a file mapped from it; then sleep.
fn overlaid() -> i32 {
    // SAFETY: all paths end with NUL and live through the calls; the mapping is never touched.
    unsafe {
        let none = c"none".as_ptr();
        let dir = |path: &std::ffi::CStr| libc::mkdir(path.as_ptr(), 0o700);
        if libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(
                none,
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) != 0
            || libc::mount(
                none,
                c"/proc".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                std::ptr::null(),
            ) != 0
            || [c"/proc/l", c"/proc/u", c"/proc/w", c"/proc/m"]
                .into_iter()
                .any(|p| dir(p) != 0)
        {
            return super::child::errno();
        }
        let file = libc::open(c"/proc/l/f".as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600);
        let options = c"lowerdir=/proc/l,upperdir=/proc/u,workdir=/proc/w";
        if file < 0
            || libc::ftruncate(file, 4096) != 0
            || libc::mount(
                none,
                c"/proc/m".as_ptr(),
                c"overlay".as_ptr(),
                0,
                options.as_ptr().cast(),
            ) != 0
        {
            return super::child::errno();
        }
        let file = libc::open(c"/proc/m/f".as_ptr(), libc::O_RDONLY);
        let map = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            file,
            0,
        );
        // the sign that all is ready: number 99
        if file < 0 || map == libc::MAP_FAILED || libc::dup2(file, 99) != 99 {
            return super::child::errno();
        }
    }
    super::child::sleep_forever()
}

pub(super) fn overlay_maps() -> Tried {
    let child = Child::spawn(super::child::CloneArgs::default(), overlaid)?;
    let dir = ProcDir::open(child.pid)?;
    let link = PathBuf::from(format!("/proc/{}/fd/99", child.pid));
    for _ in 0..2000 {
        if dir.stat()?.state == crate::procfs::TaskState::Zombie {
            let errno = child.wait()?;
            return Ok(failed("mount(overlay)", Errno::from_raw(errno)));
        }
        if let Ok(m) = std::fs::metadata(&link) {
            use std::os::unix::fs::MetadataExt;
            let (major, minor) = (libc::major(m.dev()), libc::minor(m.dev()));
            let here = |v: &crate::procfs::MapsLine| v.ino == m.ino() && v.dev == (major, minor);
            return match dir.maps()?.iter().any(here) {
                true => Ok(Outcome::OK),
                false => absent("/proc/PID/maps shows a file below the overlay"),
            };
        }
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    absent("the probe's child never mapped its file")
}
