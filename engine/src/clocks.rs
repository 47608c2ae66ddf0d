//! Time namespaces: a tree may have one, in which its monotonic and boot-time clocks are apart from the host's.
//!
//! CRIU restores every tree into one, so that these clocks go on from where they were, also on a machine that was started
//! later. Such a tree is dumped with its clocks (`timens-N.img`, N is the namespace's id) and gets a namespace of its own
//! again, the clocks going on from there; so do tasks below its root that have others. A tree in the engine's namespace is restored into the engine's; its clocks are
//! written all the same, under the number 0 as the format has it, for a restore that wants to go on with them.
use crate::error::{Blame, Error, Result};
use nix::time::ClockId;
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::pb;

const NANOS: i64 = 1_000_000_000;

/// Monotonic and boot-time clock, as seconds and nanoseconds (0 to 999,999,999).
type Pair = [(i64, i64); 2];

fn add(a: Pair, b: Pair, sign: i64) -> Pair {
    [0, 1].map(|i| {
        let sec = a[i].0.saturating_add(b[i].0.saturating_mul(sign));
        let nsec = a[i].1 + sign * b[i].1;
        (
            sec.saturating_add(nsec.div_euclid(NANOS)),
            nsec.rem_euclid(NANOS),
        )
    })
}

/// The engine's own clocks.
fn own() -> Pair {
    [ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_BOOTTIME].map(|c| {
        let t = c.now().expect("clocks all kernels have had since 2.6.39");
        (t.tv_sec(), t.tv_nsec())
    })
}

/// What a process's time namespace adds to the host's clocks; nothing where the kernel has no such namespaces.
fn offsets(pid: HostPid) -> Result<Pair> {
    match ProcDir::open(pid)?.bytes("timens_offsets") {
        Ok(text) => parse(&String::from_utf8_lossy(&text)).ok_or_else(|| {
            Error::bug(format!(
                "/proc/{}/timens_offsets cannot be understood",
                pid.0
            ))
        }),
        Err(e) if e.errno() == Some(nix::errno::Errno::ENOENT) => Ok(Pair::default()),
        Err(e) => Err(e.into()),
    }
}

fn parse(text: &str) -> Option<Pair> {
    let line = |name: &str| {
        let mut words = text
            .lines()
            .find_map(|l| l.strip_prefix(name))?
            .split_ascii_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    Some([line("monotonic")?, line("boottime")?])
}

/// The clocks as a process sees them now.
///
/// # Errors
/// When the process is gone.
pub fn seen_by(pid: HostPid) -> Result<pb::TimensEntry> {
    let host = add(own(), offsets(HostPid::own())?, -1);
    let [monotonic, boottime] = add(host, offsets(pid)?, 1).map(|(sec, nsec)| pb::Timespec {
        tv_sec: sec as u64,
        tv_nsec: nsec as u64,
    });
    Ok(pb::TimensEntry {
        monotonic,
        boottime,
    })
}

/// Refuses clocks no kernel would take.
///
/// # Errors
/// E5033.
pub fn check(e: &pb::TimensEntry) -> Result<()> {
    // KERNEL: proc_timens_set_offset() (kernel/time/namespace.c) takes up to half of what nanoseconds in 63 bits can hold
    let good = |t: &pb::Timespec| {
        t.tv_sec < i64::MAX as u64 / 2 / NANOS as u64 && t.tv_nsec < NANOS as u64
    };
    match good(&e.monotonic) && good(&e.boottime) {
        true => Ok(()),
        false => Err(
            Error::new("E5033", Blame::Image, "clocks of the time namespace")
                .why("they are beyond what the kernel counts to")
                .advice("dump again"),
        ),
    }
}

/// What is written into /proc/self/timens_offsets of a time namespace in which the clocks go on from `then`.
///
/// # Errors
/// When /proc does not tell the engine's own offsets.
pub fn text(then: &pb::TimensEntry) -> Result<Vec<u8>> {
    let host = add(own(), offsets(HostPid::own())?, -1);
    let then = [&then.monotonic, &then.boottime].map(|t| (t.tv_sec as i64, t.tv_nsec as i64));
    let [m, b] = add(then, host, -1);
    let (monotonic, boottime) = (ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_BOOTTIME);
    let text = format!("{monotonic} {} {}\n{boottime} {} {}\n", m.0, m.1, b.0, b.1);
    Ok(text.into_bytes())
}

/// Rows by which a process makes a time namespace for its children, in which the clocks go on from `then`.
///
/// # Errors
/// As for [`text`].
pub fn rows(then: &pb::TimensEntry) -> Result<Vec<Call>> {
    let text = text(then)?;
    let len = text.len() as u64;
    Ok(vec![
        Call::new(
            libc::SYS_unshare,
            vec![Arg::Named(0x80, "CLONE_NEWTIME".into())],
        ),
        Call::new(
            libc::SYS_openat,
            vec![
                Arg::Named(libc::AT_FDCWD as u64, "AT_FDCWD".into()),
                Arg::Str(b"/proc/self/timens_offsets".to_vec()),
                Arg::Named(libc::O_WRONLY as u64, "O_WRONLY".into()),
                Arg::Int(0),
            ],
        ),
        Call::new(
            libc::SYS_write,
            vec![Arg::Ret(1), Arg::In(text), Arg::Int(len)],
        )
        .must_be(len),
        Call::new(libc::SYS_close, vec![Arg::Ret(1)]),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_the_kernel_writes_them() {
        let text = "monotonic          -4 999999999\nboottime           10         0\n";
        assert_eq!(parse(text), Some([(-4, 999_999_999), (10, 0)]));
        assert_eq!(parse("monotonic 1 2\n"), None);
    }

    #[test]
    fn clocks_borrow_and_carry() {
        let a = [(5, 100), (5, NANOS - 1)];
        let b = [(2, 200), (1, 1)];
        assert_eq!(add(a, b, -1), [(2, NANOS - 100), (4, NANOS - 2)]);
        assert_eq!(add(a, b, 1), [(7, 300), (7, 0)]);
    }

    #[test]
    fn a_process_of_our_namespace_has_our_clocks() {
        let before = own()[0];
        let seen = seen_by(HostPid::own()).unwrap().monotonic;
        let seen = (seen.tv_sec as i64, seen.tv_nsec as i64);
        assert!(before <= seen && seen <= own()[0], "{seen:?}");
    }

    #[test]
    fn clocks_beyond_all_are_refused() {
        let at = |tv_sec, tv_nsec| pb::TimensEntry {
            monotonic: pb::Timespec { tv_sec, tv_nsec },
            boottime: pb::Timespec::default(),
        };
        assert!(check(&at(1 << 30, 5)).is_ok());
        assert!(check(&at(u64::MAX, 5)).is_err());
        assert!(check(&at(1, 1 << 30)).is_err());
    }
}
