//! `/proc/PID/fdinfo/N` (proc_pid_fdinfo(5)): what the kernel tells of an open file.
//!
//! Four lines are common to all; the rest depends on the kind of file and is kept in order as key and value, with a
//! typed parser for each kind. Whether a line belongs to the kind is the caller's knowledge: `pos` of a regular file
//! and `Pid` of a pidfd are told by the same mechanism.

use super::locks::{LockLine, lock_line};
use super::text::{Cur, Why, lines, number, words};
use crate::census::Entry;
use crate::error::{ParseError, Result};

/// The text of one fdinfo file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdInfo {
    /// File position.
    pub pos: i64,
    /// O_* of the open file, and O_CLOEXEC of the slot.
    pub flags: u32,
    /// Id of the mount in mountinfo.
    pub mnt_id: i32,
    /// Inode number. KERNEL(>=5.14)
    pub ino: Option<u64>,
    /// All further lines in order: what stands before the first `:` (for `inotify wd:1` and `fanotify flags:0` the
    /// first word), and what follows, trimmed.
    pub extra: Vec<(Vec<u8>, Vec<u8>)>,
    /// The file's name in /proc, for errors.
    file: String,
}

/// A file watched by an epoll instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollTarget {
    /// Number under which it was added; the slot may be closed or reused since (find it by kcmp EPOLL_TFD).
    pub tfd: i32,
    /// EPOLLIN and so on; 0 when disarmed by EPOLLONESHOT apart from its flag bits.
    pub events: u32,
    /// The user's data.
    pub data: u64,
    /// Position of the file.
    pub pos: i64,
    /// Inode of the file.
    pub ino: u64,
    /// Device of the inode, in the kernel's encoding (major << 20 | minor).
    pub sdev: u32,
}

/// State of an eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFd {
    /// Counter.
    pub count: u64,
    /// EFD_SEMAPHORE; `None` where the kernel does not tell. KERNEL(>=6.5)
    pub semaphore: Option<bool>,
    /// The kernel's number of the object, -1 where there is none. KERNEL(>=5.2)
    pub id: Option<i32>,
}

/// State of a timerfd. Times are (seconds, nanoseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerFd {
    /// CLOCK_*.
    pub clock: i32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET of timerfd_settime(2).
    pub settime_flags: u32,
    /// Time to the next expiration, also for an absolute timer; zero when disarmed.
    pub value: (u64, u64),
    /// Interval.
    pub interval: (u64, u64),
}

/// A file handle as name_to_handle_at(2) gives it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handle {
    /// Type, which the file system defines.
    pub kind: i32,
    /// Bytes.
    pub bytes: Vec<u8>,
}

/// One watch of an inotify instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode.
    pub ino: u64,
    /// Device, in the kernel's encoding (major << 20 | minor).
    pub sdev: u32,
    /// IN_*; also kernel-internal bits (IN_UNMOUNT is among what a user may not pass).
    pub mask: u32,
    /// The inode's handle, where its file system can make one.
    pub handle: Option<Handle>,
}

/// One line of a fanotify group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FanotifyLine {
    /// Flags of fanotify_init(2): the group's, and those of the files in its events.
    Group {
        /// FAN_*.
        flags: u32,
        /// O_*.
        event_flags: u32,
    },
    /// A mark on an inode.
    Inode {
        /// Inode.
        ino: u64,
        /// Device, in the kernel's encoding.
        sdev: u32,
        /// FAN_MARK_*.
        mflags: u32,
        /// FAN_*.
        mask: u32,
        /// Ignored events.
        ignored: u32,
        /// The inode's handle, where its file system can make one.
        handle: Option<Handle>,
    },
    /// A mark on a mount.
    Mount {
        /// Mount id.
        mnt_id: i32,
        /// FAN_MARK_*.
        mflags: u32,
        /// FAN_*.
        mask: u32,
        /// Ignored events.
        ignored: u32,
    },
    /// A mark on a file system.
    FileSystem {
        /// Device, in the kernel's encoding.
        sdev: u32,
        /// FAN_MARK_*.
        mflags: u32,
        /// FAN_*.
        mask: u32,
        /// Ignored events.
        ignored: u32,
    },
    /// A mark on a mount namespace. KERNEL(>=6.15)
    MountNs {
        /// Inode number of the namespace.
        mnt_ns: u32,
        /// FAN_MARK_*.
        mflags: u32,
        /// FAN_*.
        mask: u32,
        /// Ignored events.
        ignored: u32,
    },
}

/// What a pidfd points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFd {
    /// Process in the namespace of the procfs; -1 when it was reaped, 0 when it has no number there.
    pub pid: i32,
    /// Its number in each nested namespace, outermost first.
    pub ns_pid: Vec<i32>,
}

impl FdInfo {
    /// Of a file of which [`crate::census`] has told everything.
    pub fn of(e: &Entry) -> Self {
        let cloexec = if e.cloexec { libc::O_CLOEXEC } else { 0 };
        FdInfo {
            pos: e.pos,
            flags: e.flags | cloexec as u32,
            mnt_id: e.mnt_id,
            ino: Some(e.ino),
            extra: Vec::new(),
            file: String::new(),
        }
    }

    /// The first value under `key`.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.extra
            .iter()
            .find(|(k, _)| k == key.as_bytes())
            .map(|(_, v)| &v[..])
    }

    /// All values under `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.extra
            .iter()
            .filter(move |(k, _)| k == key.as_bytes())
            .map(|(_, v)| &v[..])
    }

    /// O_CLOEXEC of the slot.
    pub fn cloexec(&self) -> bool {
        self.flags & libc::O_CLOEXEC as u32 != 0
    }

    fn err(&self, why: Why) -> crate::error::Error {
        // The line number is that of the kind's text, which a person finds by its key anyway.
        ParseError::new(&self.file, 5, why).into()
    }

    fn need(&self, key: &str, why: Why) -> Result<&[u8]> {
        self.get(key).ok_or_else(|| self.err(why))
    }

    fn each<'a, T>(
        &'a self,
        key: &'a str,
        f: impl Fn(Cur<'a>) -> Result<T, Why>,
    ) -> Result<Vec<T>> {
        self.all(key)
            .map(|v| f(Cur(v)).map_err(|why| self.err(why)))
            .collect()
    }

    /// Locks held through this open file.
    pub fn locks(&self) -> Result<Vec<LockLine>> {
        self.each("lock", |c| lock_line(c.0))
    }

    /// Files watched by an epoll instance, in the kernel's order (by file address).
    pub fn epoll(&self) -> Result<Vec<EpollTarget>> {
        self.each("tfd", |mut c| {
            Ok(EpollTarget {
                tfd: c.num(10, "bad tfd")?,
                events: c.keyed(b"events:", 16, "bad events")?,
                data: c.keyed(b"data:", 16, "bad data")?,
                pos: c.keyed(b"pos:", 10, "bad pos")?,
                ino: c.keyed(b"ino:", 16, "bad ino")?,
                sdev: c.keyed(b"sdev:", 16, "bad sdev")?,
            })
        })
    }

    /// State of an eventfd.
    pub fn eventfd(&self) -> Result<EventFd> {
        let count = number(self.need("eventfd-count", "no eventfd-count")?, 16)
            .ok_or_else(|| self.err("bad eventfd-count"))?;
        let id = self
            .get("eventfd-id")
            .map(|v| number(v, 10).ok_or_else(|| self.err("bad eventfd-id")))
            .transpose()?;
        let semaphore = match self.get("eventfd-semaphore") {
            None => None,
            Some(b"0") => Some(false),
            Some(b"1") => Some(true),
            Some(_) => return Err(self.err("bad eventfd-semaphore")),
        };
        Ok(EventFd {
            count,
            semaphore,
            id,
        })
    }

    /// State of a timerfd.
    pub fn timerfd(&self) -> Result<TimerFd> {
        let n = |key, radix| -> Result<u64> {
            number(self.need(key, "a timerfd line is missing")?, radix)
                .ok_or_else(|| self.err("bad timerfd number"))
        };
        let pair = |key| -> Result<(u64, u64)> {
            let v = self.need(key, "a timerfd time is missing")?;
            let inner = v
                .strip_prefix(b"(")
                .and_then(|v| v.strip_suffix(b")"))
                .ok_or_else(|| self.err("timerfd time without parentheses"))?;
            let mut c = Cur(inner);
            let mut one = || -> Result<(u64, u64), Why> {
                let s = number(c.until(b',', "no ',' in the timerfd time")?, 10)
                    .ok_or("bad seconds")?;
                Ok((s, c.num(10, "bad nanoseconds")?))
            };
            one().map_err(|why| self.err(why))
        };
        Ok(TimerFd {
            clock: number(self.need("clockid", "no clockid")?, 10)
                .ok_or_else(|| self.err("bad clockid"))?,
            ticks: n("ticks", 10)?,
            settime_flags: n("settime flags", 8)? as u32,
            value: pair("it_value")?,
            interval: pair("it_interval")?,
        })
    }

    /// Mask of a signalfd, bit 0 being signal 1.
    pub fn signalfd(&self) -> Result<u64> {
        number(self.need("sigmask", "no sigmask")?, 16).ok_or_else(|| self.err("bad sigmask"))
    }

    /// Watches of an inotify instance, in the kernel's order (newest first).
    pub fn inotify(&self) -> Result<Vec<InotifyWatch>> {
        self.each("inotify", |mut c| {
            Ok(InotifyWatch {
                wd: c.keyed(b"wd:", 16, "bad wd")?,
                ino: c.keyed(b"ino:", 16, "bad ino")?,
                sdev: c.keyed(b"sdev:", 16, "bad sdev")?,
                mask: c.keyed(b"mask:", 16, "bad mask")?,
                handle: {
                    let _: u32 = c.keyed(b"ignored_mask:", 16, "bad ignored_mask")?;
                    handle(&mut c)?
                },
            })
        })
    }

    /// Group flags and marks of a fanotify group.
    pub fn fanotify(&self) -> Result<Vec<FanotifyLine>> {
        self.each("fanotify", |mut c| {
            c.skip();
            let marks = |c: &mut Cur<'_>| -> Result<(u32, u32, u32), Why> {
                Ok((
                    c.keyed(b"mflags:", 16, "bad mflags")?,
                    c.keyed(b"mask:", 16, "bad mask")?,
                    c.keyed(b"ignored_mask:", 16, "bad ignored_mask")?,
                ))
            };
            if c.0.starts_with(b"flags:") {
                return Ok(FanotifyLine::Group {
                    flags: c.keyed(b"flags:", 16, "bad flags")?,
                    event_flags: c.keyed(b"event-flags:", 16, "bad event-flags")?,
                });
            }
            if c.0.starts_with(b"mnt_id:") {
                let mnt_id = c.keyed(b"mnt_id:", 16, "bad mnt_id")?;
                let (mflags, mask, ignored) = marks(&mut c)?;
                return Ok(FanotifyLine::Mount {
                    mnt_id,
                    mflags,
                    mask,
                    ignored,
                });
            }
            if c.0.starts_with(b"mnt_ns:") {
                let mnt_ns = c.keyed(b"mnt_ns:", 10, "bad mnt_ns")?;
                let (mflags, mask, ignored) = marks(&mut c)?;
                return Ok(FanotifyLine::MountNs {
                    mnt_ns,
                    mflags,
                    mask,
                    ignored,
                });
            }
            if c.0.starts_with(b"sdev:") {
                let sdev = c.keyed(b"sdev:", 16, "bad sdev")?;
                let (mflags, mask, ignored) = marks(&mut c)?;
                return Ok(FanotifyLine::FileSystem {
                    sdev,
                    mflags,
                    mask,
                    ignored,
                });
            }
            let ino = c.keyed(b"ino:", 16, "unknown fanotify line")?;
            let sdev = c.keyed(b"sdev:", 16, "bad sdev")?;
            let (mflags, mask, ignored) = marks(&mut c)?;
            Ok(FanotifyLine::Inode {
                ino,
                sdev,
                mflags,
                mask,
                ignored,
                handle: handle(&mut c)?,
            })
        })
    }

    /// What a pidfd points to.
    pub fn pidfd(&self) -> Result<PidFd> {
        let pid = number(self.need("Pid", "no Pid")?, 10).ok_or_else(|| self.err("bad Pid"))?;
        // The first number repeats Pid; a reaped process has the first only.
        let ns_pid: Option<Vec<i32>> = words(self.get("NSpid").unwrap_or_default())
            .skip(1)
            .map(|w| number(w, 10))
            .collect();
        Ok(PidFd {
            pid,
            ns_pid: ns_pid.ok_or_else(|| self.err("bad NSpid"))?,
        })
    }
}

/// `fhandle-bytes:8 fhandle-type:1 f_handle:0011...`; absent where the file system cannot make handles.
fn handle(c: &mut Cur<'_>) -> Result<Option<Handle>, Why> {
    if c.skip().0.is_empty() {
        return Ok(None);
    }
    let len: usize = c.keyed(b"fhandle-bytes:", 16, "bad fhandle-bytes")?;
    let kind = c.keyed(b"fhandle-type:", 16, "bad fhandle-type")?;
    c.lit(b"f_handle:", "no f_handle")?;
    let hex = c.word();
    if Some(hex.len()) != len.checked_mul(2) {
        return Err("f_handle length differs from fhandle-bytes");
    }
    let bytes: Option<Vec<u8>> = hex.chunks(2).map(|b| number(b, 16)).collect();
    Ok(Some(Handle {
        kind,
        bytes: bytes.ok_or("bad f_handle")?,
    }))
}

/// Parses the text of an fdinfo file. `file` names it in errors.
pub fn parse_fdinfo(file: &str, text: &[u8]) -> Result<FdInfo> {
    let (mut pos, mut flags, mut mnt_id) = (None, None, None);
    let mut info = FdInfo {
        pos: 0,
        flags: 0,
        mnt_id: 0,
        ino: None,
        extra: Vec::new(),
        file: file.to_owned(),
    };
    let mut last = 1;
    for (n, line) in lines(text) {
        last = n;
        let at = |why| ParseError::new(file, n, why);
        let (key, value) = split_key(line).ok_or_else(|| at("no ':' behind the field name"))?;
        match key {
            // The kernel prints pos as a signed number; files with unsigned offsets (/proc/PID/mem) show negative ones.
            b"pos" if pos.is_none() => pos = Some(number(value, 10).ok_or_else(|| at("bad pos"))?),
            b"flags" if flags.is_none() => {
                flags = Some(number(value, 8).ok_or_else(|| at("bad flags"))?)
            }
            b"mnt_id" if mnt_id.is_none() => {
                mnt_id = Some(number(value, 10).ok_or_else(|| at("bad mnt_id"))?)
            }
            b"ino" if info.ino.is_none() => {
                info.ino = Some(number(value, 10).ok_or_else(|| at("bad ino"))?)
            }
            _ => info.extra.push((key.to_vec(), value.to_vec())),
        }
    }
    match (pos, flags, mnt_id) {
        (Some(p), Some(f), Some(m)) => (info.pos, info.flags, info.mnt_id) = (p, f, m),
        _ => return Err(ParseError::new(file, last, "pos, flags or mnt_id is missing").into()),
    }
    Ok(info)
}

fn split_key(line: &[u8]) -> Option<(&[u8], &[u8])> {
    for prefix in [&b"inotify "[..], b"fanotify "] {
        if let Some(rest) = line.strip_prefix(prefix) {
            return Some((&prefix[..prefix.len() - 1], rest.trim_ascii()));
        }
    }
    let at = line.iter().position(|b| *b == b':')?;
    Some((line[..at].trim_ascii(), line[at + 1..].trim_ascii()))
}

#[cfg(test)]
#[path = "fdinfo_tests.rs"]
mod tests;
