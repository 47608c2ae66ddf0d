//! The smaller files of /proc: auxv, timers, cgroup, limits, mountinfo, syscall.

use std::fmt;

use super::text::{Cur, Why, each, lines, number, unescape, words};
use crate::error::{ParseError, Result};

/// Parses `/proc/PID/auxv`: pairs of 64-bit words (32-bit programs have 32-bit words: see [`parse_auxv32`]), up to and
/// without AT_NULL. Zombies and kernel threads have none.
pub fn parse_auxv(bytes: &[u8]) -> Vec<(u64, u64)> {
    let word = |c: &[u8]| u64::from_ne_bytes(c.try_into().expect("eight bytes"));
    bytes
        .chunks_exact(16)
        .map(|c| (word(&c[..8]), word(&c[8..])))
        .take_while(|(key, _)| *key != 0)
        .collect()
}

/// The same for a 32-bit program.
pub fn parse_auxv32(bytes: &[u8]) -> Vec<(u64, u64)> {
    let word = |c: &[u8]| u64::from(u32::from_ne_bytes(c.try_into().expect("four bytes")));
    bytes
        .chunks_exact(8)
        .map(|c| (word(&c[..4]), word(&c[4..])))
        .take_while(|(key, _)| *key != 0)
        .collect()
}

/// Whom a POSIX timer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerNotify {
    /// SIGEV_SIGNAL to the process.
    Signal,
    /// SIGEV_NONE.
    None,
    /// SIGEV_THREAD, which the kernel treats as a signal.
    Thread,
}

/// One POSIX timer of `/proc/PID/timers`. Its times are not told; ask timer_gettime in the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// Id.
    pub id: i32,
    /// Signal, 0 for none.
    pub signal: i32,
    /// The pointer given as sigval.
    pub sigval: u64,
    /// Kind of notification.
    pub notify: TimerNotify,
    /// The target is a thread (SIGEV_THREAD_ID), else the process.
    pub to_thread: bool,
    /// Id of the target.
    pub target: i32,
    /// CLOCK_*.
    pub clock: i32,
}

/// Parses `/proc/PID/timers` (proc_pid_timers(5)): four lines each.
pub fn parse_timers(file: &str, text: &[u8]) -> Result<Vec<Timer>> {
    let mut out: Vec<Timer> = Vec::new();
    // Which of the four lines comes next.
    let mut step = 0;
    let mut last = 0;
    for (n, line) in lines(text) {
        last = n;
        timer_line(&mut out, step, line).map_err(|why| ParseError::new(file, n, why))?;
        step = (step + 1) % 4;
    }
    if step != 0 {
        return Err(ParseError::new(file, last, "the last timer is cut").into());
    }
    Ok(out)
}

fn timer_line(out: &mut Vec<Timer>, step: u32, line: &[u8]) -> Result<(), Why> {
    let mut c = Cur(line);
    if step == 0 {
        let id = c.keyed(b"ID:", 10, "bad timer id")?;
        out.push(Timer {
            id,
            signal: 0,
            sigval: 0,
            notify: TimerNotify::None,
            to_thread: false,
            target: 0,
            clock: 0,
        });
        return Ok(());
    }
    let t = out.last_mut().ok_or("no timer before")?;
    match step {
        1 => {
            c.lit(b"signal:", "no signal line")?;
            t.signal =
                number(c.skip().until(b'/', "no '/' in the signal")?, 10).ok_or("bad signal")?;
            // %px: hex without 0x, padded.
            t.sigval = c.num(16, "bad sigval")?;
        }
        2 => {
            c.lit(b"notify:", "no notify line")?;
            t.notify = match c.skip().until(b'/', "no '/' in notify")? {
                b"signal" => TimerNotify::Signal,
                b"none" => TimerNotify::None,
                b"thread" => TimerNotify::Thread,
                _ => return Err("unknown kind of notification"),
            };
            t.to_thread = match c.until(b'.', "no '.' in notify")? {
                b"tid" => true,
                b"pid" => false,
                _ => return Err("neither tid nor pid"),
            };
            t.target = c.num(10, "bad notify target")?;
        }
        _ => t.clock = c.keyed(b"ClockID:", 10, "bad ClockID")?,
    }
    Ok(())
}

/// One line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLine {
    /// Hierarchy number; 0 is cgroup v2.
    pub hierarchy: u32,
    /// Controllers, or `name=systemd`; empty for cgroup v2.
    pub controllers: Vec<Vec<u8>>,
    /// Path from the root of the reader's cgroup namespace; a newline in it is left as `\012`, as the kernel cannot
    /// tell it from those four characters.
    pub path: Vec<u8>,
    /// The path ended in ` (deleted)`: the directory was removed.
    pub deleted: bool,
}

/// Parses `/proc/PID/cgroup` (cgroups(7)).
pub fn parse_cgroup(file: &str, text: &[u8]) -> Result<Vec<CgroupLine>> {
    each(file, text, |line| {
        let mut c = Cur(line);
        let hierarchy =
            number(c.until(b':', "no ':' behind the hierarchy")?, 10).ok_or("bad hierarchy")?;
        let controllers = c.until(b':', "no ':' behind the controllers")?;
        let controllers = controllers
            .split(|b| *b == b',')
            .filter(|s| !s.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        let (path, deleted) = match c.0.strip_suffix(b" (deleted)") {
            Some(p) => (p, true),
            None => (c.0, false),
        };
        if !path.starts_with(b"/") {
            return Err("path without a slash");
        }
        Ok(CgroupLine {
            hierarchy,
            controllers,
            path: path.to_vec(),
            deleted,
        })
    })
}

/// One resource limit, `None` for unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Soft.
    pub soft: Option<u64>,
    /// Hard.
    pub hard: Option<u64>,
}

/// First column of `/proc/PID/limits`, in RLIMIT_* order.
const LIMITS: [&[u8]; 16] = [
    b"Max cpu time",
    b"Max file size",
    b"Max data size",
    b"Max stack size",
    b"Max core file size",
    b"Max resident set",
    b"Max processes",
    b"Max open files",
    b"Max locked memory",
    b"Max address space",
    b"Max file locks",
    b"Max pending signals",
    b"Max msgqueue size",
    b"Max nice priority",
    b"Max realtime priority",
    b"Max realtime timeout",
];

/// Parses `/proc/PID/limits` (proc_pid_limits(5)) into 16 limits, indexed by RLIMIT_*.
pub fn parse_limits(file: &str, text: &[u8]) -> Result<[Limit; 16]> {
    let mut out = [None; 16];
    let mut last = 1;
    for (n, line) in lines(text).skip(1) {
        last = n;
        for (i, name) in LIMITS.iter().enumerate() {
            let Some(rest) = line.strip_prefix(*name) else {
                continue;
            };
            let mut w = words(rest).map(|w| {
                if w == b"unlimited" {
                    Some(None)
                } else {
                    number(w, 10).map(Some)
                }
            });
            match (w.next().flatten(), w.next().flatten()) {
                (Some(soft), Some(hard)) => out[i] = Some(Limit { soft, hard }),
                _ => return Err(ParseError::new(file, n, "bad limit").into()),
            }
        }
    }
    let mut all = [Limit {
        soft: None,
        hard: None,
    }; 16];
    for (to, from) in all.iter_mut().zip(out) {
        *to = from.ok_or_else(|| ParseError::new(file, last, "a limit is missing"))?;
    }
    Ok(all)
}

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)). Paths and options are unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Mount id.
    pub id: i32,
    /// Id of the parent mount; its own for the root of the tree.
    pub parent: i32,
    /// Device as (major, minor).
    pub dev: (u32, u32),
    /// What of the file system is mounted; not always a path (`net:[4026531833]`), may end in `//deleted`.
    pub root: Vec<u8>,
    /// Where, seen from the root of the process.
    pub mountpoint: Vec<u8>,
    /// Per-mount options: `rw`, `nosuid`.
    pub options: Vec<Vec<u8>>,
    /// Peer group, when shared.
    pub shared: Option<u32>,
    /// Peer group of the master, when slave.
    pub master: Option<u32>,
    /// Nearest peer group under this root.
    pub propagate_from: Option<u32>,
    /// Cannot be bound elsewhere.
    pub unbindable: bool,
    /// Type, with its subtype: `fuse.sshfs`.
    pub fstype: Vec<u8>,
    /// Source, `none` when there is none.
    pub source: Vec<u8>,
    /// Options of the file system. The commas inside values are not told apart by the kernel; see statmount(2).
    pub super_options: Vec<u8>,
}

/// Parses `/proc/PID/mountinfo`.
pub fn parse_mountinfo(file: &str, text: &[u8]) -> Result<Vec<MountInfo>> {
    each(file, text, |line| {
        let path = |w: &[u8]| unescape(w, b" \t\n\\#");
        let mut c = Cur(line);
        let id = c.num(10, "bad mount id")?;
        let parent = c.num(10, "bad parent id")?;
        let mut d = Cur(c.word());
        let major = number(d.until(b':', "no ':' in the device")?, 10).ok_or("bad device major")?;
        let minor = number(d.0, 10).ok_or("bad device minor")?;
        let root = path(c.word());
        let mountpoint = path(c.word());
        let options = c.word().split(|b| *b == b',').map(<[u8]>::to_vec).collect();
        let mut m = MountInfo {
            id,
            parent,
            dev: (major, minor),
            root,
            mountpoint,
            options,
            shared: None,
            master: None,
            propagate_from: None,
            unbindable: false,
            fstype: Vec::new(),
            source: Vec::new(),
            super_options: Vec::new(),
        };
        loop {
            let tag = c.word();
            let group = |prefix: &[u8]| {
                tag.strip_prefix(prefix)
                    .map(|n| number(n, 10).ok_or("bad peer group"))
                    .transpose()
            };
            match tag {
                b"-" => break,
                b"" => return Err("no '-' behind the tags"),
                b"unbindable" => m.unbindable = true,
                // Tags this program does not know are for others.
                _ => {
                    m.shared = group(b"shared:")?.or(m.shared);
                    m.master = group(b"master:")?.or(m.master);
                    m.propagate_from = group(b"propagate_from:")?.or(m.propagate_from);
                }
            }
        }
        // A source may be the empty string, which leaves two blanks in a row: split at single blanks.
        let rest = c.0.strip_prefix(b" ").unwrap_or(c.0);
        let mut last = rest.splitn(3, |b| *b == b' ');
        m.fstype = path(
            last.next()
                .filter(|w| !w.is_empty())
                .ok_or("no file system type")?,
        );
        m.source = path(last.next().ok_or("no source")?);
        m.super_options = path(last.next().ok_or("no file system options")?);
        Ok(m)
    })
}

/// What a task is doing, from `/proc/PID/task/TID/syscall` (proc_pid_syscall(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InSyscall {
    /// On a CPU or about to be: nothing can be said.
    Running,
    /// Stopped or blocked outside a system call.
    Outside {
        /// Stack pointer.
        sp: u64,
        /// Instruction pointer.
        ip: u64,
    },
    /// Blocked inside one.
    Inside {
        /// Number.
        nr: i64,
        /// Arguments.
        args: [u64; 6],
        /// Stack pointer.
        sp: u64,
        /// Instruction pointer.
        ip: u64,
    },
}

impl fmt::Display for InSyscall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InSyscall::Running => f.write_str("running"),
            InSyscall::Outside { ip, .. } => write!(f, "outside system calls at {ip:#x}"),
            InSyscall::Inside { nr, ip, .. } => {
                write!(f, "in {} at {ip:#x}", crate::names::syscall(*nr as u64))
            }
        }
    }
}

/// Parses the text of a `syscall` file.
pub fn parse_syscall(file: &str, text: &[u8]) -> Result<InSyscall> {
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let hex = |w: &[u8]| w.strip_prefix(b"0x").and_then(|w| number::<u64>(w, 16));
    let parse = || -> Option<InSyscall> {
        let w: Vec<&[u8]> = words(line).collect();
        Some(match w[..] {
            [b"running"] => InSyscall::Running,
            [b"-1", sp, ip] => InSyscall::Outside {
                sp: hex(sp)?,
                ip: hex(ip)?,
            },
            [nr, a, b, c, d, e, f, sp, ip] => {
                let args = [hex(a)?, hex(b)?, hex(c)?, hex(d)?, hex(e)?, hex(f)?];
                InSyscall::Inside {
                    nr: number(nr, 10)?,
                    args,
                    sp: hex(sp)?,
                    ip: hex(ip)?,
                }
            }
            _ => return None,
        })
    };
    parse().ok_or_else(|| ParseError::new(file, 1, "neither running nor 3 or 9 numbers").into())
}

/// Parses the target of a namespace link: `mnt:[4026531832]` gives 4026531832.
pub fn parse_ns_link(link: &[u8]) -> Option<u64> {
    let at = link.windows(2).position(|w| w == b":[")?;
    number(link[at + 2..].strip_suffix(b"]")?, 10)
}

#[cfg(test)]
#[path = "misc_tests.rs"]
mod tests;
