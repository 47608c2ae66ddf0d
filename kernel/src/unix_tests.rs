use super::*;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt};

fn pair(t: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, t, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

#[test]
fn messages_are_seen_one_after_the_other_and_stay() {
    let (a, b) = pair(SockType::Datagram);
    let file = std::fs::File::open("/dev/null").unwrap();
    send(a.as_fd(), None, b"one", &[], None, 0).unwrap();
    send(a.as_fd(), None, b"", &[], None, 0).unwrap();
    send(a.as_fd(), None, b"three", &[file.as_fd()], None, 0).unwrap();
    let look = || {
        with_peek_offsets(&[(b.as_fd(), -1)], || {
            let mut all = Vec::new();
            let mut at = 0;
            loop {
                set_peek_offset(b.as_fd(), at).unwrap();
                match peek(b.as_fd(), 4, 0).unwrap() {
                    Some(m) => {
                        at += m.cut.unwrap_or(m.bytes.len()) as i32;
                        all.push((m.bytes, m.files.len(), m.cut));
                    }
                    None => break all,
                }
            }
        })
        .unwrap()
    };
    assert_eq!(
        look(),
        [
            (b"one".to_vec(), 0, None),
            (vec![], 0, None),
            (b"thre".to_vec(), 1, Some(5))
        ]
    );
    // the offset is gone: a peek tells the first one, again and again
    peek(b.as_fd(), 10, 0).unwrap();
    let first = peek(b.as_fd(), 10, 0).unwrap().unwrap();
    assert_eq!(first.bytes, b"one");
}

#[test]
fn a_socket_made_as_another_process_tells_its_number() {
    let who = Ucred {
        pid: 31_337,
        uid: 4321,
        gid: 1234,
    };
    let made = as_process(who, || pair(SockType::Stream));
    let (a, _b) = match made {
        Ok(p) => p,
        Err(e) if e.is_denied() || e.errno == Errno::EINVAL => return,
        Err(e) => panic!("{e}"),
    };
    let c = getsockopt(&a, sockopt::PeerCredentials).unwrap();
    assert_eq!((c.pid(), c.uid(), c.gid()), (31_337, 4321, 1234));
    assert!(nix::unistd::geteuid().is_root());
    assert_eq!(nix::sys::prctl::get_dumpable(), Ok(true));
    // one that exists
    let own = Ucred {
        pid: std::process::id() as i32,
        ..who
    };
    assert_eq!(as_process(own, || ()).unwrap_err().errno, Errno::EEXIST);
}

#[test]
fn a_name_in_the_void_is_a_name_of_old() {
    let (a, b) = pair(SockType::Stream);
    let dir = std::path::PathBuf::from("/somewhere/deep");
    in_void(&[dir], || bind(a.as_fd(), b"/somewhere/deep/sock\0"))
        .unwrap()
        .unwrap();
    assert!(!std::path::Path::new("/somewhere").exists());
    let n = name(b.as_fd(), true).unwrap().unwrap();
    assert_eq!(n, b"/somewhere/deep/sock\0");
    assert!(inode(a.as_fd()).unwrap().is_some());
    assert!(inode(b.as_fd()).unwrap().is_none());
}
