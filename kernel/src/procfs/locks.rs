//! File locks: lines of /proc/locks (proc_locks(5)) and of fdinfo.

use super::text::{Cur, Why, each, number};
use crate::error::Result;

/// Kind of a file lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockKind {
    /// flock(2)
    Flock,
    /// fcntl F_SETLK
    Posix,
    /// fcntl F_OFD_SETLK
    Ofd,
    /// fcntl F_SETLEASE
    Lease,
    /// Delegation (NFS server; F_SETDELEG since 6.19)
    Delegation,
}

/// Mode of a file lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// None: a lease on its way to nothing.
    Unlock,
}

/// State of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// Held.
    Active,
    /// Somebody else opened the file; the holder was signalled.
    Breaking,
    /// The one who waits.
    Breaker,
}

/// One line of `/proc/locks` or of a `lock:` line in fdinfo (proc_locks(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockLine {
    /// Number of the line; in fdinfo always 1.
    pub id: i64,
    /// Behind `->`: waits for the lock above. Never in fdinfo.
    pub blocked: bool,
    /// Kind.
    pub kind: LockKind,
    /// For leases and delegations.
    pub lease: Option<LeaseState>,
    /// Mode; of a breaking lease the mode it goes to.
    pub mode: LockMode,
    /// Owner in the namespace of the procfs; -1 for OFD locks, 0 for a process outside.
    pub pid: i32,
    /// ((major, minor), inode); `None` when the kernel says `<none>`.
    pub ino: Option<((u32, u32), u64)>,
    /// First byte.
    pub start: i64,
    /// Last byte, `None` for EOF.
    pub end: Option<i64>,
}

/// Parses one lock: `1: POSIX  ADVISORY  WRITE 359 00:13:11691 0 EOF`.
pub(super) fn lock_line(line: &[u8]) -> Result<LockLine, Why> {
    let mut c = Cur(line);
    let id = number(c.skip().until(b':', "no ':' behind the lock's number")?, 10)
        .ok_or("bad lock number")?;
    let mut word = c.word();
    let blocked = word == b"->";
    if blocked {
        word = c.word();
    }
    let kind = match word {
        b"FLOCK" => LockKind::Flock,
        b"POSIX" => LockKind::Posix,
        b"OFDLCK" => LockKind::Ofd,
        b"LEASE" => LockKind::Lease,
        b"DELEG" => LockKind::Delegation,
        _ => return Err("unknown kind of lock"),
    };
    let lease = match c.word() {
        b"ADVISORY" | b"MANDATORY" | b"*NOINODE*" => None,
        b"ACTIVE" => Some(LeaseState::Active),
        b"BREAKING" => Some(LeaseState::Breaking),
        b"BREAKER" => Some(LeaseState::Breaker),
        _ => return Err("unknown lock state"),
    };
    let mode = match c.word() {
        b"READ" => LockMode::Read,
        b"WRITE" => LockMode::Write,
        b"UNLCK" => LockMode::Unlock,
        _ => return Err("unknown lock mode"),
    };
    let pid = c.num(10, "bad lock owner")?;
    let place = c.word();
    let ino = if place.starts_with(b"<none>") {
        None
    } else {
        let mut p = Cur(place);
        let major = number(p.until(b':', "no device")?, 16).ok_or("bad device major")?;
        let minor = number(p.until(b':', "no inode")?, 16).ok_or("bad device minor")?;
        Some(((major, minor), number(p.0, 10).ok_or("bad inode number")?))
    };
    let start = c.num(10, "bad lock start")?;
    let end = match c.word() {
        b"EOF" => None,
        n => Some(number(n, 10).ok_or("bad lock end")?),
    };
    Ok(LockLine {
        id,
        blocked,
        kind,
        lease,
        mode,
        pid,
        ino,
        start,
        end,
    })
}

/// Parses `/proc/locks`.
pub fn parse_locks(file: &str, text: &[u8]) -> Result<Vec<LockLine>> {
    each(file, text, lock_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks() {
        let t = b"1: POSIX  ADVISORY  READ  5433 08:01:7864448 128 128\n2: FLOCK  ADVISORY  WRITE 2001 08:01:7864554 0 EOF\n\
    2: -> FLOCK  ADVISORY  WRITE 2002 08:01:7864554 0 EOF\n3: OFDLCK ADVISORY  WRITE -1 fe:00:8713209 0 9223372036854775806\n4: LEASE  BREAKING  UNLCK 77 fe:00:12 0 EOF\n5: LEASE  ACTIVE    READ 77 <none>:0 0 EOF\n";
        let l = parse_locks("locks", t).unwrap();
        assert_eq!(
            (l[0].kind, l[0].mode, l[0].pid, l[0].start, l[0].end),
            (LockKind::Posix, LockMode::Read, 5433, 128, Some(128))
        );
        assert_eq!((l[1].ino, l[1].end), (Some(((8, 1), 7864554)), None));
        assert!(l[2].blocked && !l[1].blocked);
        assert_eq!(
            (l[3].kind, l[3].pid, l[3].end),
            (LockKind::Ofd, -1, Some(i64::MAX - 1))
        );
        assert_eq!(
            (l[4].lease, l[4].mode),
            (Some(LeaseState::Breaking), LockMode::Unlock)
        );
        assert_eq!((l[5].lease, l[5].ino), (Some(LeaseState::Active), None));
        assert_eq!(
            parse_locks("locks", b"1: FOO  ADVISORY  READ 1 0:0:1 0 EOF\n")
                .unwrap_err()
                .to_string(),
            "locks line 1: unknown kind of lock"
        );
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text: Vec<u8>, line in "[0-9]{1,3}: (-> )?(FLOCK|POSIX|LEASE) .{0,40}") {
            let _ = (parse_locks("t", &text), parse_locks("t", line.as_bytes()));
        }
    }
}
