use super::*;

#[test]
fn tables_are_sorted_or_free_of_duplicates() {
    assert!(syscalls::SYSCALLS.windows(2).all(|w| w[0].0 < w[1].0));
    assert!(ioctls::IOCTLS.windows(2).all(|w| w[0].0 < w[1].0));
    for table in [
        PRCTLS, FCNTLS, MADVISES, CLOCKS, CAPS, AUXVS, PTRACES, SIGNALS,
    ] {
        assert!(table.windows(2).all(|w| w[0].0 < w[1].0), "{:?}", table[0]);
    }
}

#[test]
fn numbers_agree_with_the_c_library() {
    for (nr, name) in [
        (libc::SYS_read, "read"),
        (libc::SYS_rt_sigreturn, "rt_sigreturn"),
        (libc::SYS_pidfd_getfd, "pidfd_getfd"),
        (libc::SYS_clone3, "clone3"),
        (libc::SYS_mseal, "mseal"),
    ] {
        assert_eq!(syscall(nr as u64), name);
        assert_eq!(syscall_nr(name), Some(nr as u64));
    }
    assert_eq!(syscall(335), "uretprobe");
    assert_eq!(syscall(470), "listns");
    assert_eq!(syscall(400), "syscall 400");
    assert_eq!(syscall(u64::MAX), "no syscall");
    assert_eq!(ioctl(libc::TCGETS), "TCGETS");
    assert_eq!(ioctl(libc::TIOCGWINSZ), "TIOCGWINSZ");
    assert_eq!(ioctl(libc::FIONREAD), "FIONREAD");
    assert_eq!(prctl(libc::PR_SET_SECCOMP as u64), "PR_SET_SECCOMP");
    assert_eq!(prctl(libc::PR_SET_VMA as u64), "PR_SET_VMA");
    assert_eq!(fcntl(15), "F_SETOWN_EX");
    assert_eq!(socket_family(libc::AF_XDP as u64), "AF_XDP");
    assert_eq!(socket_family(libc::AF_VSOCK as u64), "AF_VSOCK");
    assert_eq!(rlimit(u64::from(libc::RLIMIT_NOFILE)), "RLIMIT_NOFILE");
    assert_eq!(madvise(libc::MADV_COLLAPSE as u64), "MADV_COLLAPSE");
    assert_eq!(auxv(libc::AT_PHDR), "AT_PHDR");
    assert_eq!(capability(40), "CAP_CHECKPOINT_RESTORE");
    assert_eq!(signal(libc::SIGSYS), "SIGSYS");
}

#[test]
fn unknown_numbers_still_say_what_they_are() {
    assert_eq!(prctl(4_000_000_000), "prctl option 0xee6b2800");
    assert_eq!(signal(65), "signal 65");
    assert_eq!(errno(513), "ERESTARTNOINTR");
    assert_eq!(errno(2), "ENOENT");
    assert_eq!(errno(999), "errno 999");
    assert_eq!(
        ioctl(0x8004_54ff),
        "ioctl 0x800454ff (read, type 'T', nr 255, 4 bytes)"
    );
    assert_eq!(syscall_result(-22), "-EINVAL");
    assert_eq!(syscall_result(3), "3");
    assert_eq!(syscall_result(0x7f00_0000_0000), "0x7f0000000000");
}

#[test]
fn bit_sets() {
    assert_eq!(open_flags(0o2000002), "O_RDWR|O_CLOEXEC");
    assert_eq!(open_flags(0), "O_RDONLY");
    assert_eq!(open_flags(0o4010001), "O_WRONLY|O_SYNC");
    assert_eq!(open_flags(0o10000000), "O_PATH");
    assert_eq!(open_flags(0o20200002), "O_RDWR|O_TMPFILE");
    assert_eq!(open_flags(0x8000_0000), "O_RDONLY|0x80000000");
    assert_eq!(mmap_prot(0), "PROT_NONE");
    assert_eq!(mmap_prot(7), "PROT_READ|PROT_WRITE|PROT_EXEC");
    assert_eq!(mmap_flags(0x22), "MAP_PRIVATE|MAP_ANONYMOUS");
    assert_eq!(
        mmap_flags(0x22 | 0x40000 | 21 << 26),
        "MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|MAP_HUGE_2MB"
    );
    assert_eq!(clone_flags(0x100 | 0x2000_0000), "CLONE_VM|CLONE_NEWPID");
    assert_eq!(signal_set(0b11), "SIGHUP|SIGINT");
    assert_eq!(signal_set(1 << 34), "SIGRTMIN+3");
    assert_eq!(seals(0), "no seals");
    assert_eq!(capability_set(1 << 21 | 1), "CAP_CHOWN|CAP_SYS_ADMIN");
}

#[test]
fn cpu_clocks_name_their_task() {
    let mut id = 0;
    // SAFETY: `id` is a place for one clockid_t.
    let ret = unsafe { libc::clock_getcpuclockid(std::process::id() as i32, &mut id) };
    assert_eq!(ret, 0);
    assert_eq!(
        clock(id),
        format!("CPU clock of process {}", std::process::id())
    );
    assert_eq!(clock(libc::CLOCK_MONOTONIC), "CLOCK_MONOTONIC");
}

proptest::proptest! {
    #[test]
    fn never_panic(n: u64, i: i32) {
        let _ = (syscall(n), ioctl(n), prctl(n), fcntl(n), open_flags(n), mmap_flags(n), mmap_prot(n), clone_flags(n));
        let _ = (signal(i), errno(i), clock(i), signal_set(n), capability_set(n), syscall_result(n as i64));
    }
}
