use super::*;
use crate::kinds::testing::see;
use crate::options::Options;
use stasis_kernel::host::Host;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

fn udp() -> OwnedFd {
    OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
}

fn set_now(fd: &OwnedFd, name: i32, value: &[u8]) {
    let row = set_arg(
        Arg::Int(fd.as_raw_fd() as u64),
        SOCKET,
        name,
        "a test's",
        value,
    );
    Host::default().play(&row).unwrap();
}

/// Plans and plays the options of an entry on a fresh socket.
fn onto_fresh(o: &pb::SkOptsEntry) -> OwnedFd {
    let tmp = tempfile::tempdir().unwrap();
    let options = Options::new(tmp.path());
    let dir = stasis_proto::ImageDir::create(tmp.path()).unwrap();
    let (files, holders) = (BTreeMap::new(), BTreeMap::new());
    let mut cx = PlanCx::new(&options, &dir, &files, &holders);
    known(&o.stasis, &[SOCKET_OPTIONS, LOCK]).unwrap();
    plan(&mut cx, FdRef(1), o).unwrap();
    plan_buffers(&mut cx, FdRef(1), o);
    plan_device(&mut cx, FdRef(1), o);
    plan_filter(&mut cx, FdRef(1), o).unwrap();
    let mut host = Host::default();
    host.insert(FdRef(1), udp());
    for row in reuse_rows(
        FdRef(1),
        o.reuseaddr == Some(true),
        o.so_reuseport == Some(true),
    ) {
        host.play(&row).unwrap();
    }
    for crate::kinds::HostAct { act, why, .. } in &cx.host {
        let mut on = Stagehand {
            host: &mut host,
            dir: &dir,
            pid: &|_| None,
        };
        act.perform(&mut on)
            .unwrap_or_else(|e| panic!("{why}: {act}: {e}"));
    }
    host.take(FdRef(1)).unwrap()
}

#[test]
fn everything_set_comes_back_and_nothing_grows() {
    let s = udp();
    let int = |v: i32| v.to_le_bytes();
    set_now(&s, libc::SO_SNDBUF, &int(10_000));
    set_now(&s, libc::SO_RCVLOWAT, &int(7));
    for (name, v) in [
        (libc::SO_REUSEADDR, 1),
        (libc::SO_REUSEPORT, 1),
        (libc::SO_PRIORITY, 5),
        (libc::SO_DONTROUTE, 1),
        (libc::SO_NO_CHECK, 1),
        (libc::SO_BROADCAST, 1),
        (libc::SO_KEEPALIVE, 1),
        (libc::SO_OOBINLINE, 1),
        (libc::SO_TIMESTAMPNS, 1),
        (libc::SO_RXQ_OVFL, 1),
        (42, 12),
        (75, 1),
    ] {
        set_now(&s, name, &int(v));
    }
    set_now(&s, libc::SO_LINGER, &[int(1), int(9)].concat());
    let time = |s: u64, u: u64| [s.to_le_bytes(), u.to_le_bytes()].concat();
    set_now(&s, libc::SO_RCVTIMEO, &time(3, 500_000));
    set_now(&s, libc::SO_SNDTIMEO, &time(0, 120_000));
    set_now(&s, 47, &123_456u64.to_le_bytes());
    let was = see(&s, read).unwrap();
    assert_eq!(was.so_sndbuf, 20_000);
    assert_eq!((was.so_rcv_tmo_sec, was.so_rcv_tmo_usec), (3, 500_000));
    assert_eq!(was.so_linger, Some(9));
    assert_eq!(was.so_buf_lock, Some(1));
    assert_eq!(was.stasis.len(), 5, "{:?}", was.stasis);
    let mut now = was.clone();
    for _ in 0..3 {
        let fresh = onto_fresh(&now);
        now = see(&fresh, read).unwrap();
        assert_eq!(now, was);
    }
}

#[test]
fn a_filter_comes_back() {
    let s = udp();
    // accept everything, after a jump that is never taken
    let o = pb::SkOptsEntry {
        so_filter: vec![
            0x0015_0100_0000_0001,
            0x0006_0000_0000_ffff,
            0x0006_0000_0000_0000,
        ],
        stasis: vec![pb::StasisSockopt {
            level: SOCKET as u32,
            name: 44,
            value: 1u32.to_le_bytes().to_vec(),
        }],
        ..see(&s, read).unwrap()
    };
    let fresh = onto_fresh(&o);
    let now = see(&fresh, read).unwrap();
    assert_eq!(now.so_filter, o.so_filter);
    assert_eq!(get_int(&fresh, SOCKET, 44).unwrap(), Some(1));
}

#[test]
fn an_image_cannot_name_other_options() {
    let one = |level: i32, name, len| pb::StasisSockopt {
        level: level as u32,
        name,
        value: vec![0; len],
    };
    let e = known(&[one(SOCKET, 26, 4)], &[SOCKET_OPTIONS]).unwrap_err();
    assert_eq!(e.code, "E5550");
    let tmp = tempfile::tempdir().unwrap();
    let options = Options::new(tmp.path());
    let dir = stasis_proto::ImageDir::create(tmp.path()).unwrap();
    let (files, holders) = (BTreeMap::new(), BTreeMap::new());
    let mut cx = PlanCx::new(&options, &dir, &files, &holders);
    let long = [one(SOCKET, 42, 400)];
    assert!(plan_extra(&mut cx, FdRef(1), &long, SOCKET_OPTIONS).is_err());
}
