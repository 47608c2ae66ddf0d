//! `/proc/PID/stat` (proc_pid_stat(5), fs/proc/array.c do_task_stat): the numbers of a task.

use std::fmt;

use super::text::{Cur, Why};
use crate::error::{ParseError, Result};
use crate::ids::HostPid;

/// State letter of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// `R` running or ready to run
    Running,
    /// `S` sleeping, a signal wakes it
    Sleeping,
    /// `D` sleeping, no signal wakes it
    DiskSleep,
    /// `T` stopped by a job-control signal
    Stopped,
    /// `t` stopped by its tracer
    TracingStop,
    /// `X` dead, about to vanish
    Dead,
    /// `Z` exited, not yet waited for
    Zombie,
    /// `P` parked kernel thread
    Parked,
    /// `I` idle kernel thread
    Idle,
}

impl TaskState {
    /// From the kernel's letter.
    pub fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'R' => Self::Running,
            b'S' => Self::Sleeping,
            b'D' => Self::DiskSleep,
            b'T' => Self::Stopped,
            b't' => Self::TracingStop,
            b'X' | b'x' => Self::Dead,
            b'Z' => Self::Zombie,
            b'P' => Self::Parked,
            b'I' => Self::Idle,
            _ => return None,
        })
    }

    /// Has exited: no memory and no files left to look at.
    pub fn is_exited(self) -> bool {
        matches!(self, Self::Dead | Self::Zombie)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::DiskSleep => "uninterruptible sleep",
            Self::Stopped => "stopped",
            Self::TracingStop => "stopped by its tracer",
            Self::Dead => "dead",
            Self::Zombie => "zombie",
            Self::Parked => "parked",
            Self::Idle => "idle",
        })
    }
}

/// All fields of stat. Pids are those of the reader's namespace; addresses, `exit_code` and the like read as 0 for a
/// caller without PTRACE_MODE_READ.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of proc_pid_stat(5); what is not plain has its comment
pub struct Stat {
    pub pid: HostPid,
    /// Up to 15 bytes of anything but NUL, also newlines and parentheses (kernel threads: up to 63).
    pub comm: Vec<u8>,
    pub state: TaskState,
    pub ppid: HostPid,
    pub pgrp: HostPid,
    pub session: HostPid,
    /// Controlling terminal in the old device encoding, 0 for none; see [`Stat::tty`].
    pub tty_nr: i32,
    /// Foreground group of the terminal, -1 for none.
    pub tpgid: i32,
    /// PF_* of the kernel: see [`Stat::PF_KTHREAD`] and friends.
    pub flags: u32,
    pub minflt: u64,
    pub cminflt: u64,
    pub majflt: u64,
    pub cmajflt: u64,
    /// CPU time in clock ticks (100 per second).
    pub utime: u64,
    pub stime: u64,
    pub cutime: i64,
    pub cstime: i64,
    pub priority: i64,
    pub nice: i64,
    pub num_threads: u32,
    /// Clock ticks since boot, shifted by the reader's time namespace.
    pub starttime: u64,
    pub vsize: u64,
    /// Pages.
    pub rss: i64,
    pub rsslim: u64,
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    /// Stack and instruction pointer: 0 unless the task is exiting, or dumping core.
    pub kstkesp: u64,
    pub kstkeip: u64,
    pub wchan: u64,
    /// Signal sent to the parent at exit; -1 for a thread that is not the leader.
    pub exit_signal: i32,
    pub processor: i32,
    pub rt_priority: u32,
    pub policy: u32,
    pub blkio_ticks: u64,
    pub guest_time: u64,
    pub cguest_time: i64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// As waitpid(2) would give it.
    pub exit_code: i32,
}

impl Stat {
    /// The task is exiting.
    pub const PF_EXITING: u32 = 0x4;
    /// Forked but has not called execve since.
    pub const PF_FORKNOEXEC: u32 = 0x40;
    /// Kernel thread.
    pub const PF_KTHREAD: u32 = 0x0020_0000;

    /// Controlling terminal as (major, minor).
    pub fn tty(&self) -> Option<(u32, u32)> {
        // KERNEL: include/linux/kdev_t.h new_encode_dev.
        let n = self.tty_nr as u32;
        (n != 0).then_some((n >> 8 & 0xfff, n & 0xff | n >> 12 & 0xfff00))
    }

    /// Whether this is a thread of the kernel.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & Self::PF_KTHREAD != 0
    }
}

fn stat(text: &[u8]) -> Result<Stat, Why> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut c = Cur(text);
    let pid = HostPid(c.num(10, "bad pid")?);
    c.lit(b"(", "no '(' before the name")?;
    // The name may hold anything, also ") R 1"; no later field can hold a parenthesis.
    let close =
        c.0.iter()
            .rposition(|b| *b == b')')
            .ok_or("no ')' behind the name")?;
    let comm = c.0[..close].to_vec();
    c.0 = &c.0[close + 1..];
    let state = match c.word() {
        [letter] => TaskState::from_letter(*letter).ok_or("unknown task state")?,
        _ => return Err("no task state"),
    };
    // One macro per column keeps the fields in the order of the text: a struct expression is evaluated as written.
    macro_rules! n {
        ($why:literal) => {
            c.num(10, concat!("bad ", $why))?
        };
    }
    macro_rules! skip {
        () => {
            if c.word().is_empty() {
                return Err("line too short");
            }
        };
    }
    let ppid = HostPid(n!("ppid"));
    let pgrp = HostPid(n!("pgrp"));
    let session = HostPid(n!("session"));
    let tty_nr = n!("tty_nr");
    let tpgid = n!("tpgid");
    let flags = n!("flags");
    let (minflt, cminflt, majflt, cmajflt) =
        (n!("minflt"), n!("cminflt"), n!("majflt"), n!("cmajflt"));
    let (utime, stime, cutime, cstime) = (n!("utime"), n!("stime"), n!("cutime"), n!("cstime"));
    let (priority, nice, num_threads) = (n!("priority"), n!("nice"), n!("num_threads"));
    skip!(); // itrealvalue, always 0
    let (starttime, vsize, rss, rsslim) = (n!("starttime"), n!("vsize"), n!("rss"), n!("rsslim"));
    let (start_code, end_code, start_stack) = (n!("start_code"), n!("end_code"), n!("start_stack"));
    let (kstkesp, kstkeip) = (n!("kstkesp"), n!("kstkeip"));
    // The four signal masks are cut to 31 bits here; status has them whole.
    for _ in 0..4 {
        skip!();
    }
    let wchan = n!("wchan");
    skip!(); // nswap
    skip!(); // cnswap
    let (exit_signal, processor, rt_priority, policy) = (
        n!("exit_signal"),
        n!("processor"),
        n!("rt_priority"),
        n!("policy"),
    );
    let (blkio_ticks, guest_time, cguest_time) =
        (n!("blkio_ticks"), n!("guest_time"), n!("cguest_time"));
    let (start_data, end_data, start_brk) = (n!("start_data"), n!("end_data"), n!("start_brk"));
    let (arg_start, arg_end, env_start, env_end) = (
        n!("arg_start"),
        n!("arg_end"),
        n!("env_start"),
        n!("env_end"),
    );
    let exit_code = n!("exit_code");
    Ok(Stat {
        pid,
        comm,
        state,
        ppid,
        pgrp,
        session,
        tty_nr,
        tpgid,
        flags,
        minflt,
        cminflt,
        majflt,
        cmajflt,
        utime,
        stime,
        cutime,
        cstime,
        priority,
        nice,
        num_threads,
        starttime,
        vsize,
        rss,
        rsslim,
        start_code,
        end_code,
        start_stack,
        kstkesp,
        kstkeip,
        wchan,
        exit_signal,
        processor,
        rt_priority,
        policy,
        blkio_ticks,
        guest_time,
        cguest_time,
        start_data,
        end_data,
        start_brk,
        arg_start,
        arg_end,
        env_start,
        env_end,
        exit_code,
    })
}

/// Parses the text of `/proc/PID/stat`, which is one record even when the name holds newlines.
pub fn parse_stat(file: &str, text: &[u8]) -> Result<Stat> {
    stat(text).map_err(|why| ParseError::new(file, 1, why).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &[u8] = b"5245 (a) R 1 (\n) T 5241 5240 3862 34816 -1 4194304 103 0 0 0 0 0 -1 0 20 -5 3 0 94119 3133440 413 \
18446744073709551615 94419009966080 94419009985961 140732130315776 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 94419010001968 94419010003584 \
94419019993088 140732130323151 140732130323189 140732130323189 140732130324459 256\n";

    #[test]
    fn hostile_name() {
        let s = parse_stat("stat", STAT).unwrap();
        assert_eq!(s.comm, b"a) R 1 (\n");
        assert_eq!(s.state, TaskState::Stopped);
        assert_eq!(
            (s.ppid, s.pgrp, s.session),
            (HostPid(5241), HostPid(5240), HostPid(3862))
        );
        assert_eq!(s.tty(), Some((136, 0)));
        assert_eq!(
            (s.cutime, s.nice, s.num_threads, s.starttime),
            (-1, -5, 3, 94119)
        );
        assert_eq!((s.rsslim, s.start_code), (u64::MAX, 94419009966080));
        assert_eq!((s.exit_signal, s.processor), (17, 1));
        assert_eq!(
            (s.start_data, s.start_brk, s.env_end, s.exit_code),
            (94419010001968, 94419019993088, 140732130324459, 256)
        );
    }

    #[test]
    fn truncated_at_every_byte() {
        // Up to the last field's first digit, nothing but an error.
        for n in 0..STAT.len() - 4 {
            assert!(parse_stat("stat", &STAT[..n]).is_err(), "{n}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text: Vec<u8>, at in 0..STAT.len(), byte: u8) {
            let _ = parse_stat("stat", &text);
            let mut t = STAT.to_vec();
            t[at] = byte;
            let _ = parse_stat("stat", &t);
        }
    }
}
