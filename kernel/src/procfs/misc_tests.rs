use super::*;

#[test]
fn auxv() {
    let mut b = Vec::new();
    for n in [6u64, 4096, 33, 0x7fff0000, 0, 0, 9, 9] {
        b.extend(n.to_ne_bytes());
    }
    assert_eq!(parse_auxv(&b), [(6, 4096), (33, 0x7fff0000)]);
    assert_eq!(parse_auxv(&b[..17]), [(6, 4096)]);
    assert_eq!(
        parse_auxv32(&[6, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]),
        [(6, 4096)]
    );
}

const TIMERS: &[u8] = b"ID: 1234\nsignal: 34/00007ffd1c2f9a40\nnotify: signal/tid.2634\nClockID: 0\nID: 1\nsignal: 0/0000000000000000\nnotify: none/pid.2633\nClockID: -22\n";

#[test]
fn timers() {
    let t = parse_timers("timers", TIMERS).unwrap();
    assert_eq!(
        t[0],
        Timer {
            id: 1234,
            signal: 34,
            sigval: 0x7ffd1c2f9a40,
            notify: TimerNotify::Signal,
            to_thread: true,
            target: 2634,
            clock: 0
        }
    );
    assert_eq!(
        (t[1].notify, t[1].to_thread, t[1].clock),
        (TimerNotify::None, false, -22)
    );
    assert!(parse_timers("timers", b"").unwrap().is_empty());
    assert_eq!(
        parse_timers("timers", b"ID: 1\nsignal: 1/0\n")
            .unwrap_err()
            .to_string(),
        "timers line 2: the last timer is cut"
    );
    assert!(parse_timers("timers", b"signal: 1/0\n").is_err());
}

#[test]
fn cgroups() {
    let c = parse_cgroup(
        "cgroup",
        b"9:name=systemd:/\n2:cpu,cpuacct:/a:b\n0::/x y (deleted)\n",
    )
    .unwrap();
    assert_eq!(c[0].controllers, [b"name=systemd".to_vec()]);
    assert_eq!((c[1].controllers.len(), &c[1].path[..]), (2, &b"/a:b"[..]));
    assert_eq!(
        (
            c[2].hierarchy,
            c[2].controllers.len(),
            &c[2].path[..],
            c[2].deleted
        ),
        (0, 0, &b"/x y"[..], true)
    );
    assert!(parse_cgroup("cgroup", b"0::x\n").is_err());
}

#[test]
fn limits() {
    let t = b"Limit                     Soft Limit           Hard Limit           Units     \nMax cpu time              unlimited            unlimited            seconds   \nMax file size             unlimited            unlimited            bytes     \nMax data size             unlimited            unlimited            bytes     \nMax stack size            8388608              unlimited            bytes     \nMax core file size        0                    unlimited            bytes     \nMax resident set          unlimited            unlimited            bytes     \nMax processes             96365                96365                processes \nMax open files            1024                 1048576              files     \nMax locked memory         8388608              8388608              bytes     \nMax address space         unlimited            unlimited            bytes     \nMax file locks            unlimited            unlimited            locks     \nMax pending signals       96365                96365                signals   \nMax msgqueue size         819200               819200               bytes     \nMax nice priority         0                    0                    \nMax realtime priority     0                    0                    \nMax realtime timeout      unlimited            unlimited            us        \n";
    let l = parse_limits("limits", t).unwrap();
    assert_eq!(
        l[libc::RLIMIT_NOFILE as usize],
        Limit {
            soft: Some(1024),
            hard: Some(1048576)
        }
    );
    assert_eq!(
        l[libc::RLIMIT_STACK as usize],
        Limit {
            soft: Some(8388608),
            hard: None
        }
    );
    assert_eq!(
        l[libc::RLIMIT_NICE as usize],
        Limit {
            soft: Some(0),
            hard: Some(0)
        }
    );
    assert!(parse_limits("limits", &t[..t.len() - 90]).is_err());
}

const MOUNTS: &[u8] = b"36 35 98:0 /mnt1 /mnt2\\040b rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n22 27 0:21 / /proc rw,relatime - proc proc rw\n90 27 0:40 / /x rw unbindable - tmpfs  rw\n91 27 0:4 net:[4026531833] /n rw propagate_from:3 foo:1 - nsfs nsfs rw\n";

#[test]
fn mounts() {
    let m = parse_mountinfo("mountinfo", MOUNTS).unwrap();
    assert_eq!(
        (m[0].id, m[0].parent, m[0].dev, &m[0].mountpoint[..]),
        (36, 35, (98, 0), &b"/mnt2 b"[..])
    );
    assert_eq!(
        (
            m[0].master,
            m[0].shared,
            &m[0].fstype[..],
            &m[0].super_options[..]
        ),
        (Some(1), Some(7), &b"ext3"[..], &b"rw,errors=continue"[..])
    );
    assert_eq!(m[0].options, [b"rw".to_vec(), b"noatime".to_vec()]);
    assert_eq!(
        (m[2].unbindable, &m[2].source[..], &m[2].super_options[..]),
        (true, &b""[..], &b"rw"[..])
    );
    assert_eq!(
        (m[3].propagate_from, &m[3].root[..]),
        (Some(3), &b"net:[4026531833]"[..])
    );
    assert!(parse_mountinfo("mountinfo", b"36 35 98:0 / / rw ext3 x y\n").is_err());
}

#[test]
fn syscalls() {
    let p = |t: &[u8]| parse_syscall("syscall", t);
    assert_eq!(p(b"running\n").unwrap(), InSyscall::Running);
    assert_eq!(
        p(b"-1 0x7ffda5459e38 0x7f951263b2ad\n").unwrap(),
        InSyscall::Outside {
            sp: 0x7ffda5459e38,
            ip: 0x7f951263b2ad
        }
    );
    let inside = p(b"0 0x3 0x7f95124bf000 0x20000 0x7f9512552b60 0xffffffff 0x0 0x7ffda5459e38 0x7f951263b2ad\n").unwrap();
    assert!(matches!(
        inside,
        InSyscall::Inside {
            nr: 0,
            args: [3, ..],
            ip: 0x7f951263b2ad,
            ..
        }
    ));
    assert_eq!(inside.to_string(), "in read at 0x7f951263b2ad");
    assert!(p(b"0 0x3\n").is_err());
}

#[test]
fn ns_links() {
    assert_eq!(parse_ns_link(b"mnt:[4026531832]"), Some(4026531832));
    assert_eq!(parse_ns_link(b"/etc/passwd"), None);
}

proptest::proptest! {
    #[test]
    fn never_panics(text: Vec<u8>, cut in 0usize..400, byte: u8) {
        let mut near = [TIMERS, MOUNTS].concat();
        let at = cut % near.len();
        near[at] = byte;
        for t in [&text[..], &near[..], &near[at..]] {
            let _ = (parse_auxv(t), parse_auxv32(t), parse_timers("t", t), parse_cgroup("t", t));
            let _ = (parse_limits("t", t), parse_mountinfo("t", t), parse_syscall("t", t), parse_ns_link(t));
        }
    }
}
