//! Whose a lock is: the record that both locks carry with them in the kernel.
use nix::sys::stat::fstat;
use stasis_kernel::error::SysError;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::ProcDir;
use std::os::fd::BorrowedFd;

/// Bytes of `struct state` in lock.bpf.c.
pub(crate) const SIZE: usize = 64;

/// What a lock holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All connections of a network namespace.
    WholeNamespace,
    /// Those that are named when it is armed.
    Connections,
}

/// The process that made a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Its pid in its pid namespace.
    pub pid: i32,
    /// When it began, in clock ticks after boot (/proc/PID/stat).
    pub start: u64,
    /// Inode number of its pid namespace.
    pub pid_ns: u64,
}

impl Owner {
    /// The calling process.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn own() -> Result<Self, stasis_kernel::error::Error> {
        let pid = HostPid::own();
        Ok(Self {
            pid: pid.0,
            start: ProcDir::open(pid)?.stat()?.starttime,
            pid_ns: inode(&Ns::Pid.of(pid)?)?.1,
        })
    }
    /// Does it live? `None`: it is in another pid namespace, from where nobody here can tell.
    pub fn lives(&self) -> Option<bool> {
        let own = Ns::Pid.of(HostPid::own()).ok()?;
        if inode(&own).ok()?.1 != self.pid_ns {
            return None;
        }
        let stat = ProcDir::open(HostPid(self.pid))
            .ok()
            .and_then(|p| p.stat().ok());
        Some(stat.is_some_and(|s| s.starttime == self.start))
    }
}

/// Device and inode number of a namespace.
pub(crate) fn inode(fd: &impl std::os::fd::AsFd) -> Result<(u64, u64), SysError> {
    let fd: BorrowedFd<'_> = fd.as_fd();
    let s = fstat(fd).map_err(|e| SysError::new("fstat", e, "a namespace"))?;
    Ok((s.st_dev, s.st_ino))
}

/// `struct state` of lock.bpf.c.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub armed: bool,
    pub scope: Scope,
    pub mark: u32,
    pub kept: bool,
    /// Kept for whoever restores into the namespace next.
    pub open_to_all: bool,
    pub id: u64,
    pub owner: Owner,
    /// Device and inode number of the network namespace.
    pub place: (u64, u64),
}

impl State {
    pub fn bytes(&self) -> [u8; SIZE] {
        let mut b = [0; SIZE];
        let words = [
            u32::from(self.armed),
            u32::from(self.scope == Scope::Connections),
            self.mark,
            u32::from(self.kept) << u32::from(self.open_to_all),
        ];
        for (i, w) in words.iter().enumerate() {
            b[i * 4..i * 4 + 4].copy_from_slice(&w.to_le_bytes());
        }
        let long = [
            self.id,
            self.owner.start,
            u64::from(self.owner.pid as u32),
            self.place.0,
            self.place.1,
            self.owner.pid_ns,
        ];
        for (i, w) in long.iter().enumerate() {
            b[16 + i * 8..24 + i * 8].copy_from_slice(&w.to_le_bytes());
        }
        b
    }
    pub fn parse(b: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?));
        Some(Self {
            armed: word(0)? != 0,
            scope: match word(4)? {
                0 => Scope::WholeNamespace,
                1 => Scope::Connections,
                _ => return None,
            },
            mark: word(8)?,
            kept: word(12)? != 0,
            open_to_all: word(12)? == 2,
            id: long(16)?,
            owner: Owner {
                start: long(24)?,
                pid: long(32)? as u32 as i32,
                pid_ns: long(56)?,
            },
            place: (long(40)?, long(48)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back() {
        let s = State {
            armed: true,
            scope: Scope::Connections,
            mark: 7,
            kept: false,
            open_to_all: false,
            id: u64::MAX - 1,
            owner: Owner {
                pid: 42,
                start: 1 << 40,
                pid_ns: 3,
            },
            place: (4, 5),
        };
        assert_eq!(State::parse(&s.bytes()), Some(s));
        assert_eq!(State::parse(&s.bytes()[..40]), None);
        let kept = State { kept: true, ..s };
        assert_eq!(State::parse(&kept.bytes()), Some(kept));
        let all = State {
            open_to_all: true,
            ..kept
        };
        assert_eq!(State::parse(&all.bytes()), Some(all));
    }

    #[test]
    fn the_own_process_lives_and_another_time_does_not() {
        let own = Owner::own().expect("proc");
        assert_eq!(own.lives(), Some(true));
        assert_eq!(
            Owner {
                start: own.start + 1,
                ..own
            }
            .lives(),
            Some(false)
        );
        assert_eq!(Owner { pid_ns: 1, ..own }.lives(), None);
    }
}
