//! signalfd(2): pending signals as something to read.
//!
//! **Dump.** fdinfo tells the mask. What can be read from it are the pending signals of whoever reads: they belong to the
//! tasks, not to this file.
//!
//! **Restore.** signalfd4(2) with the mask.
use super::common::{body, is_anon, settle};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage};
use crate::error::Result;
use stasis_kernel::call::{Arg, Call};
use stasis_proto::pb;

/// The kind.
pub struct SignalFd;

impl FileKind for SignalFd {
    fn name(&self) -> &'static str {
        "signalfd"
    }
    fn about(&self) -> &'static str {
        "signalfd with its mask; pending signals come back with the tasks"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Signalfd
    }
    fn claims(&self, seen: &Seen) -> bool {
        is_anon(seen.link, "signalfd")
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, _: &mut DumpCx) -> Result<pb::FileEntry> {
        let sgfd = pb::SignalfdEntry {
            id,
            flags: seen.flags,
            fown: seen.fown,
            sigmask: seen.info.signalfd()?,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            sgfd: Some(Box::new(sgfd)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.sgfd, "sgfd")?;
        let file = cx.file(entry.id);
        cx.host(
            Call::new(
                libc::SYS_signalfd4,
                vec![
                    Arg::Int(-1i64 as u64),
                    Arg::In(e.sigmask.to_le_bytes().to_vec()),
                    Arg::Int(8),
                    Arg::Named(libc::SFD_CLOEXEC as u64, "SFD_CLOEXEC".into()),
                ],
            )
            .binds(file),
            format!(
                "signalfd of {}",
                stasis_kernel::names::signal_set(e.sigmask)
            ),
        );
        settle(cx, file, e.flags, &e.fown);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::{SfdFlags, SignalFd as Sfd};
    use std::os::fd::AsFd;

    #[test]
    fn mask_and_flags_come_back() {
        let mut m = SigSet::empty();
        m.add(Signal::SIGHUP);
        m.add(Signal::SIGSYS);
        let s = Sfd::with_flags(&m, SfdFlags::SFD_NONBLOCK).unwrap();
        let d = testing::dump(&SignalFd, &[s.as_fd()]).unwrap();
        let f = d.files(&SignalFd);
        assert_eq!(testing::info(&f[0]).signalfd().unwrap(), 1 | 1 << 30);
        assert_eq!(testing::flags(&f[0]), testing::flags(&s));
    }
}
