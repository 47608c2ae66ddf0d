//! eventfd(2): a counter.
//!
//! **Dump.** fdinfo tells the counter and, from Linux 6.5 on, whether it is a semaphore; on older kernels that is asked
//! for nowhere, and the dump warns.
//!
//! **Restore.** eventfd2(2) with the counter; what does not fit into its 32-bit argument is written.
//!
//! **Image.** CRIU's entry has no place for EFD_SEMAPHORE, and CRIU restores a semaphore as a plain counter. We set bit 0
//! of `flags`: the access mode there is always O_RDWR (2), CRIU ignores it, and 3 is none. So what CRIU dumped comes back
//! as CRIU would bring it back, and what we dumped comes back whole.
//!
//! **What does not come back.** The overflow value 2^64-1, which only the kernel itself can reach, becomes 2^64-2.
//!
//! Guests: eventfd, eventfd_sem, eventfd_full.
use super::common::{body, is_anon, settle};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage};
use crate::error::Result;
use stasis_kernel::call::{Arg, Call};
use stasis_proto::pb;

/// The kind.
pub struct EventFd;

const EFD_SEMAPHORE: u32 = 1;

impl FileKind for EventFd {
    fn name(&self) -> &'static str {
        "eventfd"
    }
    fn about(&self) -> &'static str {
        "eventfd counters and semaphores"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Eventfd
    }
    fn claims(&self, seen: &Seen) -> bool {
        is_anon(seen.link, "eventfd")
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let e = seen.info.eventfd()?;
        if e.semaphore.is_none() {
            cx.warn(format!(
                "{}: this kernel does not tell whether it is a semaphore; it comes back as a plain counter",
                seen.place()
            ));
        }
        if e.count == u64::MAX {
            cx.warn(format!(
                "{}: its overflow comes back as 2^64-2",
                seen.place()
            ));
        }
        let semaphore = if e.semaphore == Some(true) {
            EFD_SEMAPHORE
        } else {
            0
        };
        let efd = pb::EventfdFileEntry {
            id,
            flags: seen.flags | semaphore,
            fown: seen.fown,
            counter: e.count,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            efd: Some(Box::new(efd)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.efd, "efd")?;
        let file = cx.file(entry.id);
        let semaphore = e.flags & libc::O_ACCMODE as u32 == 3;
        let flags = libc::EFD_CLOEXEC as u32 | if semaphore { EFD_SEMAPHORE } else { 0 };
        let first = u32::try_from(e.counter).unwrap_or(0);
        cx.host(
            Call::new(
                libc::SYS_eventfd2,
                vec![
                    Arg::Int(first.into()),
                    Arg::Named(
                        flags.into(),
                        if semaphore {
                            "EFD_CLOEXEC|EFD_SEMAPHORE"
                        } else {
                            "EFD_CLOEXEC"
                        }
                        .into(),
                    ),
                ],
            )
            .binds(file),
            "eventfd",
        );
        if u64::from(first) != e.counter {
            let n = e.counter.min(u64::MAX - 1);
            cx.host(
                Call::new(
                    libc::SYS_write,
                    vec![
                        Arg::Fd(file),
                        Arg::In(n.to_le_bytes().to_vec()),
                        Arg::Int(8),
                    ],
                )
                .must_be(8),
                "a counter beyond 32 bits",
            );
        }
        settle(cx, file, e.flags, &e.fown);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use nix::sys::eventfd::{EfdFlags, EventFd as Efd};
    use std::os::fd::AsFd;

    #[test]
    fn counters_and_semaphores_come_back() {
        let plain = Efd::from_value_and_flags(3, EfdFlags::EFD_NONBLOCK).unwrap();
        let sem = Efd::from_value_and_flags(0, EfdFlags::EFD_SEMAPHORE).unwrap();
        sem.write(0x1_2345_6789_abcd).unwrap();
        let full = Efd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        full.write(u64::MAX - 1).unwrap();
        let all = [plain.as_fd(), sem.as_fd(), full.as_fd()];
        let d = testing::dump(&EventFd, &all).unwrap();
        assert_eq!(d.warnings, [""; 0]);
        for (was, now) in all.iter().zip(d.files(&EventFd)) {
            assert_eq!(testing::flags(was), testing::flags(&now));
            let (mut was, mut now) = (
                testing::info(was).eventfd().unwrap(),
                testing::info(&now).eventfd().unwrap(),
            );
            (was.id, now.id) = (None, None);
            assert_eq!(was, now);
        }
    }
    #[test]
    fn what_criu_wrote_is_a_plain_counter() {
        let e = Efd::from_value_and_flags(7, EfdFlags::EFD_SEMAPHORE).unwrap();
        let mut d = testing::dump(&EventFd, &[e.as_fd()]).unwrap();
        d.files.get_mut(&1).unwrap().efd.as_mut().unwrap().flags = libc::O_RDWR as u32;
        let f = d.files(&EventFd);
        let i = testing::info(&f[0]).eventfd().unwrap();
        assert_eq!((i.count, i.semaphore), (7, Some(false)));
    }
}
