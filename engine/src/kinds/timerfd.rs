//! timerfd_create(2): timers that are read.
//!
//! **Dump.** fdinfo tells everything: clock, flags of the last timerfd_settime(2), time left, interval, expirations not yet
//! read. One trap: a periodic timer that has expired stands still until somebody reads or asks it, and shows no time left.
//! It is asked (timerfd_gettime(2)), which sets it going again and counts the missed expirations, exactly as its owner's
//! read would; then fdinfo is read once more.
//!
//! **Restore.** Relative timers are armed by a holder as its last act, so the time a restore takes does not count. Absolute
//! ones are armed by the engine: the image has only the time left, which is added to the clock as it is when the plan is
//! made. Expirations not yet read are put back with TFD_IOC_SET_TICKS.
//!
//! **Image.** CRIU does not ask, so in its images such a timer is disarmed, and CRIU's restore leaves it so. It can be told by
//! its unread expirations, which setting or disarming a timer clears: it goes on with one whole interval.
//!
//! **What does not come back.** The absolute time itself: a timer for noon with an hour left at dump has an hour left at
//! restore (as in CRIU).
//!
//! KERNEL: timerfd_settime(2) clears the ticks, so they are set behind it. TFD_IOC_SET_TICKS needs
//! CONFIG_CHECKPOINT_RESTORE.
use super::common::{ask, body, ioctl_row, is_anon, settle};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, TaskStage, malformed};
use crate::error::{Error, Result};
use nix::time::{ClockId, clock_gettime};
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::names;
use stasis_kernel::procfs::{TimerFd as Info, parse_fdinfo};
use stasis_proto::pb;
use std::os::fd::AsRawFd;

/// The kind.
pub struct TimerFd;

const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
const TFD_TIMER_ABSTIME: u32 = 1;
const SETTIME_FLAGS: u32 = 3;
const NANOS: u64 = 1_000_000_000;

/// What fdinfo tells, of a timer that does not stand still.
fn look(seen: &Seen) -> Result<Info> {
    let t = seen.info.timerfd()?;
    if t.ticks == 0 || t.interval == (0, 0) || t.value != (0, 0) {
        return Ok(t);
    }
    ask(seen.fd, libc::SYS_timerfd_gettime, vec![Arg::Out(32)])?;
    let path = format!("/proc/self/fdinfo/{}", seen.fd.as_raw_fd());
    let text = std::fs::read(&path).map_err(|e| Error::bug(format!("cannot read {path}: {e}")))?;
    Ok(parse_fdinfo(&path, &text)?.timerfd()?)
}

impl FileKind for TimerFd {
    fn name(&self) -> &'static str {
        "timerfd"
    }
    fn about(&self) -> &'static str {
        "timerfd with the time left, interval and unread expirations"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Timerfd
    }
    fn claims(&self, seen: &Seen) -> bool {
        is_anon(seen.link, "timerfd")
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, _: &mut DumpCx) -> Result<pb::FileEntry> {
        let t = look(seen)?;
        let tfd = pb::TimerfdEntry {
            id,
            flags: seen.flags,
            fown: seen.fown,
            clockid: t.clock as u32,
            ticks: t.ticks,
            settime_flags: t.settime_flags,
            vsec: t.value.0,
            vnsec: t.value.1,
            isec: t.interval.0,
            insec: t.interval.1,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            tfd: Some(Box::new(tfd)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.tfd, "tfd")?;
        if e.vnsec >= NANOS || e.insec >= NANOS || e.settime_flags & !SETTIME_FLAGS != 0 {
            return Err(malformed(entry, "no kernel has such a timer"));
        }
        let file = cx.file(entry.id);
        let clock = names::clock(e.clockid as i32).into_owned();
        cx.host(
            Call::new(
                libc::SYS_timerfd_create,
                vec![
                    Arg::Named(e.clockid.into(), clock.clone().into()),
                    Arg::Named(libc::TFD_CLOEXEC as u64, "TFD_CLOEXEC".into()),
                ],
            )
            .binds(file),
            "timerfd",
        );
        settle(cx, file, e.flags, &e.fown);
        let (mut sec, mut nsec) = (e.vsec, e.vnsec);
        if e.ticks != 0 && (sec, nsec) == (0, 0) {
            // CRIU's image of a periodic timer that had expired: when it would have expired next is not known.
            (sec, nsec) = (e.isec, e.insec);
        }
        let armed = (sec, nsec) != (0, 0);
        let absolute = e.settime_flags & TFD_TIMER_ABSTIME != 0;
        if absolute && armed {
            let now = clock_gettime(ClockId::from_raw(base_clock(e.clockid as i32)))
                .map_err(|_| malformed(entry, "this machine does not have its clock"))?;
            nsec += now.tv_nsec() as u64;
            sec = sec.saturating_add(now.tv_sec() as u64 + nsec / NANOS);
            nsec %= NANOS;
        }
        let spec = [e.isec, e.insec, sec, nsec];
        let rows = |fd: Arg| {
            let set = Call::new(
                libc::SYS_timerfd_settime,
                vec![
                    fd.clone(),
                    Arg::Named(
                        e.settime_flags.into(),
                        settime_flags(e.settime_flags).into(),
                    ),
                    Arg::In(spec.iter().flat_map(|v| v.to_le_bytes()).collect()),
                    Arg::Null,
                ],
            );
            let ticks = ioctl_row(
                fd,
                TFD_IOC_SET_TICKS,
                Arg::In(e.ticks.to_le_bytes().to_vec()),
            );
            let set = (armed || e.settime_flags != 0 || e.isec | e.insec != 0).then_some(set);
            set.into_iter().chain((e.ticks != 0).then_some(ticks))
        };
        match cx.holders.get(&entry.id).and_then(|h| h.first()) {
            Some((pid, slot)) if !absolute => {
                for r in rows(Arg::Int(*slot as u64)) {
                    cx.task(*pid, TaskStage::Arm, r);
                }
            }
            _ => {
                for r in rows(Arg::Fd(file)) {
                    cx.host(r, format!("arms a timer of {clock}"));
                }
            }
        }
        Ok(())
    }
}

/// The clock that an alarm clock goes by: reading an alarm clock itself needs a real-time clock device.
fn base_clock(id: i32) -> i32 {
    match id {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        id => id,
    }
}

fn settime_flags(f: u32) -> String {
    match f {
        0 => "0",
        1 => "TFD_TIMER_ABSTIME",
        2 => "TFD_TIMER_CANCEL_ON_SET",
        _ => "TFD_TIMER_ABSTIME|TFD_TIMER_CANCEL_ON_SET",
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use nix::sys::time::TimeSpec;
    use nix::sys::timerfd::{
        ClockId as Clock, Expiration, TimerFd as T, TimerFlags, TimerSetTimeFlags as Set,
    };
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn timer(clock: Clock, e: Expiration, set: Set) -> T {
        let t = T::new(clock, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC).unwrap();
        t.set(e, set).unwrap();
        t
    }
    fn s(n: i64) -> TimeSpec {
        TimeSpec::new(n, 0)
    }

    #[test]
    fn timers_of_all_sorts_come_back() {
        let ms = TimeSpec::from_duration(Duration::from_millis(1));
        let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap().tv_sec();
        let all = [
            timer(
                Clock::CLOCK_MONOTONIC,
                Expiration::OneShot(s(900)),
                Set::empty(),
            ),
            timer(
                Clock::CLOCK_BOOTTIME,
                Expiration::IntervalDelayed(s(800), s(50)),
                Set::empty(),
            ),
            timer(
                Clock::CLOCK_REALTIME,
                Expiration::OneShot(s(now + 700)),
                Set::TFD_TIMER_ABSTIME,
            ),
            timer(
                Clock::CLOCK_MONOTONIC,
                Expiration::OneShot(ms),
                Set::empty(),
            ),
            T::new(Clock::CLOCK_REALTIME, TimerFlags::empty()).unwrap(),
        ];
        std::thread::sleep(Duration::from_millis(3));
        let fds = all.each_ref().map(|t| t.as_fd());
        let d = testing::dump(&TimerFd, &fds).unwrap();
        let was = fds.map(|f| testing::info(f).timerfd().unwrap());
        let flags = fds.map(testing::flags);
        // all disarmed, so that nothing of the originals can be mistaken for a restore
        for t in &all {
            t.unset().unwrap();
        }
        d.in_place(&TimerFd);
        let near = |a: u64, b: u64| a.abs_diff(b) <= 1;
        for ((fd, was), flags) in fds.iter().zip(was).zip(flags) {
            let now = testing::info(fd).timerfd().unwrap();
            assert_eq!(testing::flags(fd), flags);
            assert_eq!(
                (now.clock, now.ticks, now.settime_flags, now.interval),
                (was.clock, was.ticks, was.settime_flags, was.interval)
            );
            assert!(near(now.value.0, was.value.0), "{now:?} was {was:?}");
        }
        assert_eq!(testing::info(fds[3]).timerfd().unwrap().ticks, 1);
    }

    #[test]
    fn a_periodic_timer_that_expired_goes_on() {
        let p = TimeSpec::from_duration(Duration::from_millis(20));
        let t = timer(
            Clock::CLOCK_MONOTONIC,
            Expiration::Interval(p),
            Set::empty(),
        );
        std::thread::sleep(Duration::from_millis(50));
        // this is the trap: it stands still
        assert_eq!(testing::info(&t).timerfd().unwrap().value, (0, 0));
        let d = testing::dump(&TimerFd, &[t.as_fd()]).unwrap();
        let e = d.files[&1].tfd.as_ref().unwrap();
        assert!(e.ticks >= 2 && e.vnsec > 0, "{e:?}");
        t.unset().unwrap();
        d.in_place(&TimerFd);
        std::thread::sleep(Duration::from_millis(50));
        let mut b = [0; 8];
        nix::unistd::read(&t, &mut b).unwrap();
        assert!(u64::from_le_bytes(b) >= 4, "{b:?}");
    }

    #[test]
    fn a_periodic_timer_that_criu_shows_as_disarmed_goes_on() {
        let p = TimeSpec::from_duration(Duration::from_millis(10));
        let t = timer(
            Clock::CLOCK_MONOTONIC,
            Expiration::Interval(p),
            Set::empty(),
        );
        std::thread::sleep(Duration::from_millis(15));
        let mut d = testing::dump(&TimerFd, &[t.as_fd()]).unwrap();
        let e = d.files.get_mut(&1).unwrap().tfd.as_mut().unwrap();
        (e.vsec, e.vnsec, e.ticks) = (0, 0, 1);
        t.unset().unwrap();
        d.in_place(&TimerFd);
        std::thread::sleep(Duration::from_millis(35));
        let mut b = [0; 8];
        nix::unistd::read(&t, &mut b).unwrap();
        assert!(u64::from_le_bytes(b) >= 3, "{b:?}");
    }

    #[test]
    fn an_impossible_timer_is_refused() {
        let t = T::new(Clock::CLOCK_REALTIME, TimerFlags::empty()).unwrap();
        let mut d = testing::dump(&TimerFd, &[t.as_fd()]).unwrap();
        d.files.get_mut(&1).unwrap().tfd.as_mut().unwrap().vnsec = u64::MAX;
        let e = d.restore(&TimerFd).err().unwrap();
        assert_eq!(e.code, "E5100");
    }
}
