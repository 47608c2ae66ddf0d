use super::*;
use crate::kinds::common::ioctl_row;
use crate::kinds::testing::{self, Dumped};
use crate::kinds::tty_plan::{TIOCEXCL, TIOCSPTLCK};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices as C, cfmakeraw, tcgetattr, tcsetattr,
};
use stasis_kernel::call::Arg;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

/// The numbers of pairs are free again when the originals are closed: only one test at a time may count on that.
static NUMBERS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    NUMBERS.lock().unwrap_or_else(|e| e.into_inner())
}

fn open(raw: bool) -> OpenptyResult {
    let size = Winsize {
        ws_row: 33,
        ws_col: 77,
        ws_xpixel: 1,
        ws_ypixel: 2,
    };
    let p = openpty(Some(&size), None).unwrap();
    let mut t = tcgetattr(&p.slave).unwrap();
    if raw {
        cfmakeraw(&mut t);
    }
    t.local_flags.remove(LocalFlags::ECHO);
    t.control_chars[C::VINTR as usize] = 7;
    tcsetattr(&p.slave, SetArg::TCSANOW, &t).unwrap();
    p
}

fn write(to: &OwnedFd, data: &[u8], at: &OwnedFd, arrive: usize) {
    assert_eq!(nix::unistd::write(to, data).unwrap(), data.len());
    for _ in 0..2000 {
        if waiting(at.as_fd()) >= arrive {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{} of {arrive} bytes", waiting(at.as_fd()));
}

fn read(from: &OwnedFd) -> Vec<u8> {
    assert!(waiting(from.as_fd()) > 0, "nothing to read");
    let mut b = vec![0; 9999];
    let n = nix::unistd::read(from, &mut b).unwrap();
    b.truncate(n);
    b
}

fn state(f: &OwnedFd) -> (Vec<u8>, Vec<u8>) {
    (
        ask_ioctl(f, TCGETS, TERMIOS_LEN).unwrap(),
        ask_ioctl(f, TIOCGWINSZ, 8).unwrap(),
    )
}

/// Dumps a pair, closes it, and gives it back restored.
fn trip(p: OpenptyResult) -> (Dumped, OwnedFd, OwnedFd) {
    let d = testing::dump(&Tty, &[p.master.as_fd(), p.slave.as_fd()]).unwrap();
    assert_eq!(d.warnings, [""; 0]);
    drop(p);
    // the undo list has duplicates
    let mut d = d;
    d.undo.clear();
    let mut f = d.files(&Tty);
    let slave = f.pop().unwrap();
    (d, f.pop().unwrap(), slave)
}

#[test]
fn a_pair_comes_back_with_number_settings_window_and_flags() {
    let _one = alone();
    // holds the lowest number, so that the pair's is not the first
    let other = open(true);
    let p = open(true);
    nix::fcntl::fcntl(
        &p.master,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
    )
    .unwrap();
    let (number, was) = (ask_int(&p.master, TIOCGPTN).unwrap(), state(&p.slave));
    let flags = (testing::flags(&p.master), testing::flags(&p.slave));
    let on = |f: &OwnedFd| {
        ioctl_row(
            Arg::Int(std::os::fd::AsRawFd::as_raw_fd(f) as u64),
            TIOCEXCL,
            Arg::Int(0),
        )
    };
    stasis_kernel::host::Host::default()
        .play(&on(&p.slave))
        .unwrap();
    let lock = ioctl_row(
        Arg::Int(std::os::fd::AsRawFd::as_raw_fd(&p.master) as u64),
        TIOCSPTLCK,
        Arg::In(vec![1, 0, 0, 0]),
    );
    stasis_kernel::host::Host::default().play(&lock).unwrap();
    let d = testing::dump(&Tty, &[p.master.as_fd(), p.slave.as_fd()]).unwrap();
    drop((p, other));
    let mut d = d;
    d.undo.clear();
    let f = d.files(&Tty);
    assert_eq!(ask_int(&f[0], TIOCGPTN).unwrap(), number);
    assert_eq!(state(&f[1]), was);
    assert_eq!((testing::flags(&f[0]), testing::flags(&f[1])), flags);
    assert_eq!(ask_int(&f[0], TIOCGPTLCK).unwrap(), 1);
    assert_eq!(ask_int(&f[1], TIOCGEXCL).unwrap(), 1);
    write(&f[0], b"live", &f[1], 4);
    assert_eq!(read(&f[1]), b"live");
}

#[test]
fn queued_data_comes_back_both_ways_in_raw_mode() {
    let _one = alone();
    let p = open(true);
    write(&p.master, b"to\x03 slave\r\n\x04", &p.slave, 12);
    write(&p.slave, b"to master\n", &p.master, 10);
    let (_d, master, slave) = trip(p);
    assert_eq!(read(&slave), b"to\x03 slave\r\n\x04");
    assert_eq!(read(&master), b"to master\n");
}

#[test]
fn lines_come_back_as_lines_and_output_is_not_translated_twice() {
    let _one = alone();
    let p = open(false);
    write(&p.master, b"one\rtwo\n", &p.slave, 8);
    write(&p.slave, b"out\n", &p.master, 5);
    let was = state(&p.slave);
    let (_d, master, slave) = trip(p);
    assert_eq!(state(&slave), was);
    assert_eq!(read(&slave), b"one\n");
    assert_eq!(read(&slave), b"two\n");
    assert_eq!(read(&master), b"out\r\n");
    write(&master, b"x\x7fthree\n", &slave, 6);
    assert_eq!(read(&slave), b"three\n", "line editing works");
}

#[test]
fn what_a_dump_took_can_be_put_back() {
    let _one = alone();
    let p = open(false);
    write(&p.master, b"a line\n", &p.slave, 7);
    write(&p.slave, b"out\n", &p.master, 5);
    let was = state(&p.slave);
    let d = testing::dump(&Tty, &[p.slave.as_fd(), p.master.as_fd()]).unwrap();
    assert_eq!(waiting(p.slave.as_fd()), 0);
    for u in d.undo {
        u.perform().unwrap();
    }
    assert_eq!(state(&p.slave), was);
    assert_eq!(read(&p.slave), b"a line\n");
    assert_eq!(read(&p.master), b"out\r\n");
}

#[test]
fn a_terminal_from_outside_needs_shell_job() {
    let _one = alone();
    let p = open(true);
    let e = testing::dump(&Tty, &[p.slave.as_fd()]).err().unwrap();
    assert_eq!(e.code, "E4130");
    let d = testing::dump_with(&Tty, &[p.slave.as_fd()], &[], |o| o.shell_job = true);
    let mut d = d.unwrap();
    d.options.shell_job = false;
    assert_eq!(d.restore(&Tty).err().unwrap().code, "E2130");
}

#[test]
fn a_slave_that_was_hung_up_is_so_again() {
    let _one = alone();
    let p = open(true);
    let slave = p.slave;
    drop(p.master);
    let d = testing::dump(&Tty, &[slave.as_fd()]).unwrap();
    drop(slave);
    let f = d.files(&Tty);
    let mut b = [0; 4];
    assert_eq!(nix::unistd::read(&f[0], &mut b), Ok(0));
    assert!(ask_ioctl(&f[0], TCGETS, TERMIOS_LEN).is_err());
}

#[test]
fn the_session_leader_takes_the_terminal_in_a_lent_slot() {
    let _one = alone();
    let p = open(true);
    let d = testing::dump(&Tty, &[p.master.as_fd(), p.slave.as_fd()]).unwrap();
    drop(p);
    let mut d = d;
    d.undo.clear();
    // as if task 5 had led a session of it, with group 6 in the foreground
    let dir = stasis_proto::ImageDir::open(d.tmp.path()).unwrap();
    let mut infos: Vec<pb::TtyInfoEntry> = dir.read_all("tty-info.img").unwrap();
    (infos[0].sid, infos[0].pgrp) = (5, 6);
    dir.write_all("tty-info.img", &infos).unwrap();
    let task = |pid, pgid| pb::PstreeEntry {
        pid,
        ppid: 0,
        pgid,
        sid: 5,
        threads: vec![pid],
        stasis: None,
    };
    dir.write_all("pstree.img", &[task(5, 5), task(6, 6)])
        .unwrap();
    d.holders.insert(99, vec![(5, 3)]);
    let plan = d.restore(&Tty).unwrap();
    assert_eq!(plan.lent.len(), 1);
    assert_eq!((plan.lent[0].0, plan.lent[0].1), (5, 4), "slot 3 is taken");
    let rows: Vec<_> = plan.task.iter().map(|t| t.2.to_string()).collect();
    assert_eq!(
        rows,
        [
            "ioctl(4, TIOCSCTTY, 0)",
            "ioctl(4, TIOCSPGRP, &[6])",
            "close(4)"
        ]
    );
}

#[test]
fn dev_tty_is_opened_by_a_helper_and_refers_to_the_terminal() {
    let _one = alone();
    let p = open(true);
    let current = fds::open_current_tty(p.slave.as_fd(), libc::O_RDWR).unwrap();
    let link = std::fs::read_link(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&current)
    ));
    assert_eq!(link.unwrap().to_str(), Some("/dev/tty"));
    write(&p.master, b"hi", &current, 2);
    assert_eq!(read(&current), b"hi");
    // nobody has the terminal now
    assert!(ask_int(&p.master, TIOCGSID).is_err());
}

#[test]
fn what_was_just_written_is_seen() {
    let _one = alone();
    let p = open(true);
    for round in 0..2000 {
        for (from, to) in [(&p.slave, &p.master), (&p.master, &p.slave)] {
            assert_eq!(nix::unistd::write(from, b"abc").unwrap(), 3);
            // the work queue that moves the bytes may not have run yet
            assert_eq!(waiting(to.as_fd()), 3, "round {round}");
            assert_eq!(read(to), b"abc");
        }
    }
}
