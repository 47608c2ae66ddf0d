use super::*;
use crate::kinds::testing::{dump, dump_with};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

fn pair(t: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, t, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

#[test]
fn pairs_of_all_types_talk_again() {
    for t in [SockType::Stream, SockType::Datagram, SockType::SeqPacket] {
        let (a, b) = pair(t);
        let d = dump(&UnixSk, &[a.as_fd(), b.as_fd()]).unwrap();
        let new = d.files(&UnixSk);
        unix::send(new[0].as_fd(), None, b"hi", &[], None, 0).unwrap();
        let m = unix::peek(new[1].as_fd(), 10, 0).unwrap().unwrap();
        assert_eq!(m.bytes, b"hi", "{t:?}");
    }
}

#[test]
fn a_peer_outside_is_refused_with_the_ways_out_and_comes_back_closed_if_allowed() {
    let (a, _b) = pair(SockType::Stream);
    let e = dump(&UnixSk, &[a.as_fd()]).err().unwrap();
    assert_eq!(e.code, "E4502");
    for way in ["--external unix[", "--ext-unix-sk", "--inherit-fd"] {
        assert!(e.advice.contains(way), "{e}");
    }
    let mut d = dump_with(&UnixSk, &[a.as_fd()], &[], |o| {
        o.network.external_unix = true;
    })
    .unwrap();
    // one entry stands for the peer
    assert_eq!(d.files.len(), 2);
    let mut new = UnixStream::from(d.files(&UnixSk).remove(0));
    assert_eq!(new.read(&mut [0; 4]).unwrap(), 0);
    d.options.network.external_unix = false;
    assert_eq!(d.restore(&UnixSk).err().unwrap().code, "E2500");
}

#[test]
fn a_socket_that_the_caller_hands_over_takes_the_place() {
    let (a, _b) = pair(SockType::Stream);
    let mut d = dump_with(&UnixSk, &[a.as_fd()], &[], |o| {
        o.network.external_unix = true;
    })
    .unwrap();
    let ino = d.files[&1].usk.as_ref().unwrap().ino;
    let (given, mut other) = UnixStream::pair().unwrap();
    let inherit = &mut d.options.namespaces.inherit;
    inherit.push((format!("socket:[{ino}]"), given.as_raw_fd()));
    let mut new = UnixStream::from(d.files(&UnixSk).remove(0));
    new.write_all(b"x").unwrap();
    let mut b = [0];
    other.read_exact(&mut b).unwrap();
    assert_eq!(&b, b"x");
}

#[test]
fn what_was_sent_before_the_accept_comes_back_but_for_files() {
    if let Err(e) = stasis_kernel::unix_inside::Reader::new() {
        return eprintln!("skipped: {e}");
    }
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("s");
    let l = UnixListener::bind(&path).unwrap();
    let mut c = UnixStream::connect(&path).unwrap();
    c.write_all(b"early").unwrap();
    let d = dump(&UnixSk, &[l.as_fd(), c.as_fd()]).unwrap();
    drop(l);
    let new = d.files(&UnixSk);
    let (mut s, _) = UnixListener::from(new[0].try_clone().unwrap())
        .accept()
        .unwrap();
    let mut b = [0; 5];
    s.read_exact(&mut b).unwrap();
    assert_eq!(&b, b"early");
    drop((new, s));
    let l = UnixListener::bind(tmp.path().join("t")).unwrap();
    let c = UnixStream::connect(tmp.path().join("t")).unwrap();
    let file = std::fs::File::open(tmp.path()).unwrap();
    unix::send(c.as_fd(), None, b"f", &[file.as_fd()], None, 0).unwrap();
    let fds = [l.as_fd(), c.as_fd()];
    assert_eq!(dump(&UnixSk, &fds).err().unwrap().code, "E4504");
    let skip = |o: &mut crate::options::Options| o.network.skip_in_flight = true;
    let d = dump_with(&UnixSk, &fds, &[], skip).unwrap();
    drop((l, c));
    let new = d.files(&UnixSk);
    let l = UnixListener::from(new[0].try_clone().unwrap());
    l.set_nonblocking(true).unwrap();
    assert!(l.accept().is_err());
    let mut c = UnixStream::from(new[1].try_clone().unwrap());
    assert_eq!(c.read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_out_of_band_byte_is_parted_from_the_others() {
    let m = |b: &[u8]| Message {
        bytes: b.to_vec(),
        ..Message::default()
    };
    let apart = |at, shown| {
        let all = vec![m(b"ab"), m(b"!cd")];
        let all = unixsk_hidden::apart(all, (at, b'!'), shown);
        let told = |m: Message| (m.bytes, m.urgent);
        all.into_iter().map(told).collect::<Vec<_>>()
    };
    let some = |b: &[u8], urgent| (b.to_vec(), urgent);
    let middle = [some(b"ab", false), some(b"!", true), some(b"cd", false)];
    assert_eq!(apart(2, true), middle);
    let head = [some(b"!", true), some(b"ab", false), some(b"!cd", false)];
    assert_eq!(apart(0, false), head);
}

#[test]
fn a_live_socket_under_the_name_is_not_replaced() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("s");
    let l = UnixListener::bind(&path).unwrap();
    let d = dump(&UnixSk, &[l.as_fd()]).unwrap();
    assert_eq!(d.restore(&UnixSk).err().unwrap().code, "E6503");
    drop(l);
    // nobody has it any more: what is left under the name goes, and is back only for as long as the restore
    drop(d.restore(&UnixSk).unwrap());
    assert!(!path.exists());
    std::fs::write(&path, "a file").unwrap();
    assert_eq!(d.restore(&UnixSk).err().unwrap().code, "E6503");
}

#[test]
fn services_are_known_by_their_names() {
    for (name, yes) in [
        (&b"/dev/log\0"[..], true),
        (b"/run/systemd/journal/socket", true),
        (b"/run/systemd/journal/a/b", false),
        (b"/run/systemd/notify\0", true),
        (b"/dev/logs", false),
        (b"\0/dev/log", false),
        (b"", false),
    ] {
        assert_eq!(is_service(name), yes, "{}", shown(name));
    }
}

#[test]
fn hostile_images_are_errors() {
    let (a, b) = pair(SockType::Stream);
    let d = || dump(&UnixSk, &[a.as_fd(), b.as_fd()]).unwrap();
    let broken: [fn(&mut pb::UnixSkEntry); 8] = [
        |u| u.state = 3,
        |u| u.r#type = 77,
        |u| u.peer = 12,
        |u| u.name = vec![b'x'; 300],
        |u| u.uflags = 4,
        |u| (u.state, u.name) = (LISTEN, Vec::new()),
        |u| {
            u.opts.stasis.push(pb::StasisSockopt {
                level: 9,
                name: 9,
                value: vec![],
            })
        },
        |u| u.opts.so_filter = vec![0; 70_000],
    ];
    for (i, spoil) in broken.into_iter().enumerate() {
        let mut d = d();
        spoil(d.files.get_mut(&1).unwrap().usk.as_mut().unwrap());
        let e = d
            .restore(&UnixSk)
            .err()
            .unwrap_or_else(|| panic!("number {i}"));
        assert_eq!(e.blame, Blame::Image, "number {i}: {e}");
    }
}
