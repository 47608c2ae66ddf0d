use super::*;
use crate::kinds::testing;
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read, write};

fn size(fd: &OwnedFd) -> i32 {
    fcntl(fd, FcntlArg::F_GETPIPE_SZ).unwrap()
}

#[test]
fn contents_capacity_and_flags_come_back_and_the_original_keeps_its_bytes() {
    let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&w, FcntlArg::F_SETPIPE_SZ(1 << 18)).unwrap();
    fcntl(&w, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let bytes: Vec<u8> = (0..200_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    assert_eq!(write(&w, &bytes).unwrap(), bytes.len());
    // the writing end first: the contents must be found through it
    let d = testing::dump(&Pipe, &[w.as_fd(), r.as_fd()]).unwrap();
    assert_eq!(d.warnings, [""; 0]);
    let f = d.files(&Pipe);
    let (w2, r2) = (&f[0], &f[1]);
    assert_eq!(size(r2), 1 << 18);
    for (a, b) in [(&w, w2), (&r, r2)] {
        assert_eq!(testing::flags(a), testing::flags(b));
    }
    for end in [&r, r2] {
        let mut got = vec![0; 1 << 19];
        let mut n = 0;
        while n < bytes.len() {
            n += read(end, &mut got[n..]).unwrap();
        }
        assert!(got[..n] == bytes);
    }
    write(w2, b"x").unwrap();
    let mut b = [0; 9];
    assert_eq!(read(r2, &mut b).unwrap(), 1);
}

#[test]
fn packets_keep_their_borders() {
    let (r, w) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).unwrap();
    for p in [&b"one"[..], b"second", &[7; 4096]] {
        write(&w, p).unwrap();
    }
    let d = testing::dump(&Pipe, &[r.as_fd(), w.as_fd()]).unwrap();
    let f = d.files(&Pipe);
    assert_eq!(testing::flags(&f[1]), testing::flags(&w));
    let mut b = [0; 8192];
    for n in [3, 6, 4096] {
        assert_eq!(read(&f[0], &mut b).unwrap(), n);
    }
}

#[test]
fn the_next_packet_is_not_merged_into_a_single_one() {
    let (r, w) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).unwrap();
    write(&w, b"one").unwrap();
    let d = testing::dump(&Pipe, &[r.as_fd(), w.as_fd()]).unwrap();
    let f = d.files(&Pipe);
    write(&f[1], b"two").unwrap();
    assert_eq!(read(&f[0], &mut [0; 99]).unwrap(), 3);
}

#[test]
fn a_pipe_without_readers_is_one_again_and_nobody_is_warned() {
    let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    drop(r);
    let d = testing::dump(&Pipe, &[w.as_fd()]).unwrap();
    assert_eq!(d.warnings, [""; 0]);
    let f = d.files(&Pipe);
    assert_eq!(write(&f[0], b"x"), Err(nix::errno::Errno::EPIPE));
}

#[test]
fn the_end_of_file_comes_back_behind_the_contents() {
    let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    write(&w, b"last").unwrap();
    drop(w);
    let d = testing::dump(&Pipe, &[r.as_fd()]).unwrap();
    assert_eq!(d.warnings, [""; 0]);
    let f = d.files(&Pipe);
    let mut b = [0; 9];
    assert_eq!(read(&f[0], &mut b).unwrap(), 4);
    assert_eq!(read(&f[0], &mut b).unwrap(), 0);
}

#[test]
fn a_pipe_that_leads_out_of_the_tree_is_warned_of() {
    let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let d = testing::dump(&Pipe, &[w.as_fd()]).unwrap();
    assert_eq!(d.warnings.len(), 1);
    assert!(d.warnings[0].contains("its reading end is held outside"));
    let d = testing::dump(&Pipe, &[r.as_fd()]).unwrap();
    assert!(d.warnings[0].contains("its writing end is held outside"));
}

#[test]
fn several_open_files_of_one_end_and_one_of_both() {
    let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let again = |flags: OFlag| {
        let path = format!("/proc/self/fd/{}", r.as_raw_fd());
        nix::fcntl::open(
            &*path,
            flags | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .unwrap()
    };
    let slow = again(OFlag::O_RDONLY | OFlag::O_NONBLOCK);
    let both = again(OFlag::O_RDWR);
    write(&w, b"abc").unwrap();
    let all = [&slow, &r, &both, &w];
    let d = testing::dump(&Pipe, &all.map(|f| f.as_fd())).unwrap();
    let f = d.files(&Pipe);
    for (a, b) in all.iter().zip(&f) {
        assert_eq!(testing::flags(a), testing::flags(b));
    }
    let mut b = [0; 1];
    for (end, c) in [(&f[1], b'a'), (&f[0], b'b'), (&f[2], b'c')] {
        read(end, &mut b).unwrap();
        assert_eq!(b[0], c);
    }
    assert_eq!(read(&f[0], &mut b), Err(nix::errno::Errno::EAGAIN));
}

#[test]
fn an_image_whose_packets_do_not_add_up_gives_the_bytes() {
    let c = Contents {
        size: None,
        bytes: b"abc".to_vec(),
        packets: vec![u32::MAX, 1],
    };
    let (files, holders) = Default::default();
    let tmp = tempfile::tempdir().unwrap();
    let dir = stasis_proto::ImageDir::create(tmp.path()).unwrap();
    let options = crate::Options::new(tmp.path());
    let mut cx = PlanCx::new(&options, &dir, &files, &holders);
    fill(&mut cx, FdRef(1), &c);
    assert_eq!(cx.host.len(), 1);
}
