//! Acts of terminals that no row can do: they loop, or need another process for a moment.
use super::common::{ask_int, ask_ioctl, ioctl_row};
use super::{Stagehand, act::sys};
use crate::error::{Blame, Error, Result};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use stasis_kernel::call::{Arg, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

pub(super) const TCGETS: u64 = 0x5401;
pub(super) const TCSETS: u64 = 0x5402;
pub(super) const TIOCGPTN: u64 = 0x8004_5430;
pub(super) const FIONREAD: u64 = 0x541b;
const TIOCSPTLCK: u64 = 0x4004_5431;
/// `struct termios` of the kernel: four words of flags, line discipline, 19 control characters.
pub(super) const TERMIOS_LEN: usize = 36;
const ICANON: u32 = libc::ICANON;
const LFLAG: usize = 12;

/// Makes a terminal pair with a wanted number and opens its master; the pair is unlocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pty {
    /// /dev/ptmx, or ptmx in a devpts.
    pub path: String,
    /// N of /dev/pts/N.
    pub index: u32,
    /// O_*.
    pub flags: u32,
    /// The master.
    pub file: FdRef,
}

impl Pty {
    /// A devpts gives the lowest free number: those below are held for a moment.
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let cannot = |why: String| {
            Error::new(
                "E6130",
                Blame::Host,
                format!("cannot make the terminal /dev/pts/{}", self.index),
            )
            .why(why)
        };
        let at = |p: &str, f: OFlag| open(p, f | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty());
        // Looked at before it is opened: the path comes from the image.
        let place = at(&self.path, OFlag::O_PATH)
            .map_err(|e| cannot(format!("cannot open {}: {e}", self.path)))?;
        let st = fds::fstat(place.as_fd())?;
        if st.st_mode & libc::S_IFMT != libc::S_IFCHR || st.st_rdev != libc::makedev(5, 2) {
            return Err(cannot(format!("{} is not the device 5:2", self.path)));
        }
        let again = format!("/proc/self/fd/{}", place.as_raw_fd());
        let flags = self.flags & super::common::OPENABLE;
        let mut spare = Vec::new();
        loop {
            let master = at(&again, OFlag::from_bits_truncate(flags as i32))
                .map_err(|e| cannot(format!("cannot open {}: {e}", self.path)))?;
            let n = ask_int(&master, TIOCGPTN)? as u32;
            if n < self.index {
                spare.push(master);
                continue;
            }
            if n > self.index {
                return Err(cannot("this number is in use".into()).advice(
                    "restore where the number is free, for example with a devpts of its own",
                ));
            }
            let unlock = ioctl_row(
                Arg::Int(master.as_raw_fd() as u64),
                TIOCSPTLCK,
                Arg::In(vec![0; 4]),
            );
            on.host.play(&unlock)?;
            on.host.insert(self.file, master);
            return Ok(());
        }
    }
}

impl fmt::Display for Pty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pty({:?}, number {}) -> file#{}",
            self.path, self.index, self.file.0
        )
    }
}

/// Opens /dev/tty as the controlling terminal of a session that exists only for that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentTty {
    /// A slave of the terminal.
    pub via: FdRef,
    /// O_*.
    pub flags: u32,
    /// The new open file.
    pub file: FdRef,
}

impl CurrentTty {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let flags = self.flags & super::common::OPENABLE;
        let fd = fds::open_current_tty(on.fd(self.via)?, flags as i32)?;
        on.host.insert(self.file, fd);
        Ok(())
    }
}

impl fmt::Display for CurrentTty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "open(\"/dev/tty\") in a session of file#{} -> file#{}",
            self.via.0, self.file.0
        )
    }
}

/// Puts queued data back into a terminal pair, and then its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Master.
    pub master: FdRef,
    /// Slave.
    pub slave: FdRef,
    /// What the slave has not read yet.
    pub input: Vec<u8>,
    /// What the master has not read yet.
    pub output: Vec<u8>,
    /// `struct termios` to end with.
    pub termios: Vec<u8>,
}

impl Queue {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        put_back(
            on.fd(self.master)?,
            on.fd(self.slave)?,
            &self.input,
            &self.output,
            &self.termios,
        )
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "queue(master file#{}, slave file#{}, {} bytes of input, {} bytes of output)",
            self.master.0,
            self.slave.0,
            self.input.len(),
            self.output.len()
        )
    }
}

/// The queues of a pair whose data a dump took out.
#[derive(Debug)]
pub struct Taken {
    /// Master.
    pub master: OwnedFd,
    /// Slave.
    pub slave: OwnedFd,
    /// What the slave had not read yet.
    pub input: Vec<u8>,
    /// What the master had not read yet.
    pub output: Vec<u8>,
}

impl Taken {
    /// Empties both queues. Never waits: no more is read than FIONREAD tells.
    pub fn take(master: OwnedFd, slave: OwnedFd) -> Result<Self> {
        let input = take(slave.as_fd())?;
        let output = take(master.as_fd())?;
        Ok(Self {
            master,
            slave,
            input,
            output,
        })
    }
    /// Puts the data back as it was.
    pub fn put_back(&self) -> Result<()> {
        let termios = ask_ioctl(&self.slave, TCGETS, TERMIOS_LEN)?;
        put_back(
            self.master.as_fd(),
            self.slave.as_fd(),
            &self.input,
            &self.output,
            &termios,
        )
    }
}

/// What a read would give; a terminal that was hung up has nothing.
pub(super) fn waiting(fd: BorrowedFd) -> usize {
    // KERNEL: what was just written is on its way through a work queue, and FIONREAD does not tell of it; poll(2) waits for that
    // (drivers/tty/n_tty.c, n_tty_poll(), tty_buffer_flush_work())
    let mut asked = [PollFd::new(fd, PollFlags::POLLIN)];
    let _ = poll(&mut asked, PollTimeout::ZERO);
    ask_int(fd, FIONREAD).map_or(0, |n| n.max(0) as usize)
}

fn take(fd: BorrowedFd) -> Result<Vec<u8>> {
    let mut f = File::from(fds::dup(fd)?);
    let mut all = Vec::new();
    loop {
        // Also in raw mode with a large VMIN a read of what is there returns.
        let n = waiting(fd);
        if n == 0 {
            return Ok(all);
        }
        let mut b = vec![0; n];
        let got = f.read(&mut b).map_err(|e| sys("read", &e, "a terminal"))?;
        if got == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&b[..got]);
    }
}

/// Writes into both directions of a pair so that nothing is interpreted on the way, then sets `termios`.
///
/// Whole lines for a slave that reads lines are written in line mode with every special character off, so each keeps its
/// end; anything else in raw mode, where it becomes one piece.
fn put_back(
    master: BorrowedFd,
    slave: BorrowedFd,
    input: &[u8],
    output: &[u8],
    termios: &[u8],
) -> Result<()> {
    let set = |t: &[u8]| -> Result<()> {
        let fd = Arg::Int(slave.as_raw_fd() as u64);
        Host::default().play(&ioctl_row(fd, TCSETS, Arg::In(t.to_vec())))?;
        Ok(())
    };
    if input.is_empty() && output.is_empty() {
        return set(termios);
    }
    let mut plain = termios.to_vec();
    let lflag = u32::from_le_bytes([plain[12], plain[13], plain[14], plain[15]]);
    let lines = lflag & ICANON != 0 && input.last() == Some(&b'\n');
    // no translation in and out, no echo, no signals; control modes stay
    plain[..8].fill(0);
    plain[LFLAG..].fill(0);
    if lines {
        plain[LFLAG..LFLAG + 4].copy_from_slice(&ICANON.to_le_bytes());
    } else {
        // VMIN 1: a poll must tell of a single byte
        plain[17 + libc::VMIN] = 1;
    }
    set(&plain)?;
    for (to, data) in [(slave, output), (master, input)] {
        let mut f = File::from(fds::dup(to)?);
        f.write_all(data)
            .map_err(|e| sys("write", &e, format!("{} bytes into a terminal", data.len())))?;
    }
    // A worker of the kernel moves the bytes; a change of settings meanwhile would concern them. Its buffer holds 4095.
    let want = input.len().min(4095);
    let until = Instant::now() + Duration::from_secs(2);
    while waiting(slave) < want {
        if Instant::now() > until {
            set(termios)?;
            return Err(SysError::new(
                "ioctl(FIONREAD)",
                nix::errno::Errno::ETIMEDOUT,
                format!("{} of {want} bytes arrived in a terminal", waiting(slave)),
            )
            .into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    set(termios)
}
