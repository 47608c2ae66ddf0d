use super::*;
use std::io::{Read, Seek, Write};

fn me() -> HostPid {
    HostPid::own()
}

/// Root of the initial user namespace, whose id map is the identity.
fn initial_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    nix::unistd::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn remote(fd: &impl AsRawFd) -> RemoteFd {
    RemoteFd(fd.as_raw_fd())
}

#[test]
fn getfd_shares_the_open_file() {
    let mut f = tempfile::tempfile().unwrap();
    let pidfd = pidfd_open(me(), 0).unwrap();
    pidfd_send_signal(pidfd.as_fd(), 0).unwrap();
    let mut copy = std::fs::File::from(pidfd_getfd(pidfd.as_fd(), remote(&f)).unwrap());
    f.write_all(b"12345").unwrap();
    assert_eq!(copy.stream_position().unwrap(), 5);
    assert!(same_file(f.as_fd(), copy.as_fd()).unwrap());
    let other = tempfile::tempfile().unwrap();
    assert!(!same_file(f.as_fd(), other.as_fd()).unwrap());
    assert_eq!(
        kcmp(me(), me(), Kcmp::File(remote(&f), remote(&copy))).unwrap(),
        Ordering::Equal
    );
    let there = kcmp(me(), me(), Kcmp::File(remote(&f), remote(&other))).unwrap();
    let back = kcmp(me(), me(), Kcmp::File(remote(&other), remote(&f))).unwrap();
    assert_ne!(there, Ordering::Equal);
    assert_eq!(there, back.reverse());
    let e = pidfd_getfd(pidfd.as_fd(), RemoteFd(99999)).unwrap_err();
    assert_eq!(
        e.to_string(),
        "pidfd_getfd fd 99999: EBADF (Bad file number)"
    );
}

#[test]
fn kcmp_of_tasks() {
    let mut child = std::process::Command::new("/bin/sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let pid = HostPid(child.id() as i32);
    let answers: Vec<_> = [Kcmp::Vm, Kcmp::Files, Kcmp::Fs, Kcmp::Sighand]
        .map(|k| (kcmp(me(), pid, k), kcmp(me(), me(), k)))
        .into();
    // Neither has ever used semaphores or I/O contexts, so only the call itself can be checked.
    let others = [kcmp(me(), pid, Kcmp::Io), kcmp(me(), pid, Kcmp::Sysvsem)];
    child.kill().unwrap();
    child.wait().unwrap();
    for (other, own) in answers {
        assert_ne!(other.unwrap(), Ordering::Equal);
        assert_eq!(own.unwrap(), Ordering::Equal);
    }
    for o in others {
        o.unwrap();
    }
    assert_eq!(kcmp(me(), pid, Kcmp::Vm).unwrap_err().errno, Errno::ESRCH);
}

#[test]
fn kcmp_finds_epoll_targets() {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    let ep = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let (a, b) = seqpacket_pair().unwrap();
    ep.add(&a, EpollEvent::new(EpollFlags::EPOLLIN, 1)).unwrap();
    let ep_fd = RemoteFd(ep.0.as_raw_fd());
    let dup = dup(&a).unwrap();
    assert_eq!(
        kcmp_epoll(me(), remote(&dup), me(), ep_fd, a.as_raw_fd(), 0).unwrap(),
        Ordering::Equal
    );
    assert_ne!(
        kcmp_epoll(me(), remote(&b), me(), ep_fd, a.as_raw_fd(), 0).unwrap(),
        Ordering::Equal
    );
    assert_eq!(
        kcmp_epoll(me(), remote(&a), me(), ep_fd, a.as_raw_fd(), 1)
            .unwrap_err()
            .errno,
        Errno::ENOENT
    );
}

#[test]
fn descriptors_travel() {
    let (a, b) = seqpacket_pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"x").unwrap();
    let many = vec![file.as_fd(); SCM_MAX_FD];
    assert_eq!(send_fds(a.as_fd(), b"hello", &many).unwrap(), 5);
    let mut data = [0; 16];
    let (n, fds) = recv_fds(b.as_fd(), &mut data).unwrap();
    assert_eq!((&data[..n], fds.len()), (&b"hello"[..], SCM_MAX_FD));
    assert!(same_file(fds[252].as_fd(), file.as_fd()).unwrap());
    send_fds(a.as_fd(), b"bare", &[]).unwrap();
    let (n, fds) = recv_fds(b.as_fd(), &mut data).unwrap();
    assert_eq!((n, fds.len()), (4, 0));
    assert_eq!(
        send_fds(a.as_fd(), b"", &[]).unwrap_err().errno,
        Errno::EINVAL
    );
    assert_eq!(
        send_fds(a.as_fd(), b"x", &vec![file.as_fd(); 254])
            .unwrap_err()
            .errno,
        Errno::EINVAL
    );
    drop(a);
    assert_eq!(recv_fds(b.as_fd(), &mut data).unwrap().0, 0);
    assert_eq!(
        send_fds(b.as_fd(), b"x", &[]).unwrap_err().errno,
        Errno::EPIPE
    );
}

#[test]
fn memfd_and_stat() {
    let fd = memfd_create(c"a name", libc::MFD_ALLOW_SEALING).unwrap();
    std::fs::File::from(fd.try_clone().unwrap())
        .write_all(b"abc")
        .unwrap();
    let st = fstat(fd.as_fd()).unwrap();
    assert_eq!((st.st_size, st.st_mode & libc::S_IFMT), (3, libc::S_IFREG));
    let sx = statx(
        fd.as_fd(),
        c"",
        libc::AT_EMPTY_PATH,
        libc::STATX_BASIC_STATS,
    )
    .unwrap();
    assert_eq!((sx.stx_size, sx.stx_ino), (3, st.st_ino));
}

#[test]
fn handles_find_the_file_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), b"content").unwrap();
    let d = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
    let (h, _) = name_to_handle(d.as_fd(), c"f", 0).unwrap();
    match open_by_handle(d.as_fd(), &h, libc::O_RDONLY) {
        Ok(fd) => {
            let mut s = String::new();
            std::fs::File::from(fd).read_to_string(&mut s).unwrap();
            assert_eq!(s, "content");
        }
        // The call needs CAP_DAC_READ_SEARCH in the initial user namespace.
        Err(e) => assert!(e.is_denied() && !initial_root(), "{e}"),
    }
    let long = FileHandle {
        kind: 1,
        bytes: vec![0; 200],
    };
    assert_eq!(
        open_by_handle(d.as_fd(), &long, 0).unwrap_err().errno,
        Errno::EINVAL
    );
}

#[test]
fn close_range_marks() {
    let f = tempfile::tempfile().unwrap();
    let fd = f.as_raw_fd() as u32;
    // SAFETY: only sets FD_CLOEXEC.
    unsafe { close_range(fd, fd, libc::CLOSE_RANGE_CLOEXEC).unwrap() };
    // SAFETY: integers only; an inverted range closes nothing.
    let ret = unsafe { close_range(9, 8, 0) };
    assert_eq!(ret.unwrap_err().errno, Errno::EINVAL);
}

#[test]
fn mapped_writes_reach_the_file_and_stay_inside_their_block() {
    let f = std::fs::File::from(memfd_create(c"mapped", 0).unwrap());
    f.set_len(3 * 4096 - 8).unwrap();
    let put = |at: u64, b: &[u8], block: u64| write_mapped(f.as_fd(), at, b, block);
    put(4096 + 10, b"inside", 4096).unwrap();
    put(8192, &[1; 4088], 4096).unwrap();
    let mut b = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(&f, &mut b, 4106).unwrap();
    assert_eq!(&b, b"inside");
    // over the border of a block, behind the end, no block
    for (at, len, block) in [
        (4090, 7, 4096),
        (8192, 4089, 4096),
        (1 << 20, 1, 4096),
        (0, 1, 0),
    ] {
        let e = put(at, &vec![0; len], block).unwrap_err();
        assert_eq!(e.errno, Errno::EINVAL, "{at} {len}");
    }
}
