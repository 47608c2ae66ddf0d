use super::*;

const HEAD: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1057\n";

fn info(rest: &str) -> FdInfo {
    parse_fdinfo("/proc/42/fdinfo/7", format!("{HEAD}{rest}").as_bytes()).unwrap()
}

#[test]
fn common_lines() {
    let i = info("");
    assert_eq!(
        (i.pos, i.flags, i.mnt_id, i.ino, i.cloexec()),
        (0, 0o2000002, 16, Some(1057), true)
    );
    assert!(i.extra.is_empty());
    let e = parse_fdinfo("/proc/42/fdinfo/7", b"pos:\t0\nflags:\t0x\n").unwrap_err();
    assert_eq!(e.to_string(), "/proc/42/fdinfo/7 line 2: bad flags");
    assert!(parse_fdinfo("f", b"").is_err());
}

#[test]
fn epoll() {
    let i = info(
        "tfd:        5 events:       19 data: ffffffffffffffff  pos:-1 ino:61af sdev:7\ntfd:        8 events: 4000001d data:                8  pos:0 ino:1e sdev:10\n",
    );
    let t = i.epoll().unwrap();
    assert_eq!(
        t[0],
        EpollTarget {
            tfd: 5,
            events: 0x19,
            data: u64::MAX,
            pos: -1,
            ino: 0x61af,
            sdev: 7
        }
    );
    assert_eq!((t[1].events, t[1].data), (0x4000001d, 8));
}

#[test]
fn event_timer_signal() {
    let e = info("eventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 1\n")
        .eventfd()
        .unwrap();
    assert_eq!(
        e,
        EventFd {
            count: 0x1f,
            semaphore: Some(true),
            id: Some(3)
        }
    );
    assert_eq!(
        info("eventfd-count:                0\n").eventfd().unwrap(),
        EventFd {
            count: 0,
            semaphore: None,
            id: None
        }
    );
    let t = info(
        "clockid: 7\nticks: 2\nsettime flags: 03\nit_value: (49, 406829700)\nit_interval: (1, 0)\n",
    )
    .timerfd()
    .unwrap();
    assert_eq!(
        t,
        TimerFd {
            clock: 7,
            ticks: 2,
            settime_flags: 3,
            value: (49, 406829700),
            interval: (1, 0)
        }
    );
    assert_eq!(
        info("sigmask:\t0000000000000200\n").signalfd().unwrap(),
        0x200
    );
    let err = info("clockid: 0\n").timerfd().unwrap_err();
    assert_eq!(
        err.to_string(),
        "/proc/42/fdinfo/7 line 5: a timerfd line is missing"
    );
}

#[test]
fn watches() {
    let w = info("inotify wd:1a ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d\n").inotify().unwrap();
    let h = Handle {
        kind: 1,
        bytes: vec![0x7e, 0x9e, 0, 0, 0x64, 0x0d, 0x1b, 0x6d],
    };
    assert_eq!(
        w[0],
        InotifyWatch {
            wd: 26,
            ino: 0x9e7e,
            sdev: 0x800013,
            mask: 0x800afce,
            handle: Some(h.clone())
        }
    );
    let w = info("inotify wd:1 ino:1 sdev:2 mask:3 ignored_mask:0 \n")
        .inotify()
        .unwrap();
    assert_eq!(w[0].handle, None);
    let f = info(
        "fanotify flags:10 event-flags:0\nfanotify mnt_id:12 mflags:40 mask:38 ignored_mask:40000003\n\
         fanotify ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:40000000 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d\n\
         fanotify sdev:7 mflags:0 mask:1 ignored_mask:0\nfanotify mnt_ns:4026531832 mflags:0 mask:1000000 ignored_mask:0\n",
    )
    .fanotify()
    .unwrap();
    assert_eq!(
        f[0],
        FanotifyLine::Group {
            flags: 0x10,
            event_flags: 0
        }
    );
    assert_eq!(
        f[1],
        FanotifyLine::Mount {
            mnt_id: 0x12,
            mflags: 0x40,
            mask: 0x38,
            ignored: 0x40000003
        }
    );
    assert_eq!(
        f[2],
        FanotifyLine::Inode {
            ino: 0x4f969,
            sdev: 0x800013,
            mflags: 0,
            mask: 0x3b,
            ignored: 0x40000000,
            handle: Some(h)
        }
    );
    assert_eq!(
        f[3],
        FanotifyLine::FileSystem {
            sdev: 7,
            mflags: 0,
            mask: 1,
            ignored: 0
        }
    );
    assert_eq!(
        f[4],
        FanotifyLine::MountNs {
            mnt_ns: 4026531832,
            mflags: 0,
            mask: 0x1000000,
            ignored: 0
        }
    );
    assert!(info("inotify wd:1 ino:1 sdev:2 mask:3 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e\n").inotify().is_err());
}

#[test]
fn pidfd_and_locks() {
    assert_eq!(
        info("Pid:\t812\nNSpid:\t812\t3\n").pidfd().unwrap(),
        PidFd {
            pid: 812,
            ns_pid: vec![3]
        }
    );
    assert_eq!(
        info("Pid:\t-1\nNSpid:\t-1\n").pidfd().unwrap(),
        PidFd {
            pid: -1,
            ns_pid: vec![]
        }
    );
    let l = info("lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n")
        .locks()
        .unwrap();
    assert_eq!((l[0].pid, l[0].ino), (359, Some(((0, 0x13), 11691))));
}

proptest::proptest! {
    #[test]
    fn never_panics(text: Vec<u8>, line in "(tfd|eventfd-count|clockid|it_value|inotify|fanotify|lock|Pid|NSpid|sigmask)[: ].{0,60}") {
        let _ = parse_fdinfo("f", &text);
        if let Ok(i) = parse_fdinfo("f", format!("{HEAD}{line}\nticks: 1\nsettime flags: 0\n").as_bytes()) {
            let _ = (i.epoll(), i.eventfd(), i.timerfd(), i.signalfd(), i.inotify(), i.fanotify(), i.pidfd(), i.locks());
        }
    }
}
