//! Memory that several tasks of the tree share copy-on-write: written once, by the first of them that is described.
//!
//! The tasks stand still, so two pages in the same frame are the same page. But the kernel may move pages meanwhile (compaction),
//! and a frame that is free again gets another page: so after a task's frames are read those of the first one are read again, and
//! what does not stand where it did is written as if it were the task's own.
use super::mm::Run;
use crate::error::Result;
use crate::pages::PAGE;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::pagemap::Scanner;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Whose page it is: host's and own number of the task, address there.
type Owner = (HostPid, u32, u64);

/// Pages written so far that others may share.
#[derive(Default)]
pub struct Once {
    frames: HashMap<u64, Owner>,
}

/// A run of pages of another task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Same {
    /// The task's number in the image.
    pub pid: u32,
    /// Where the first page is there.
    pub addr: u64,
}

impl Same {
    /// The same so many bytes further on.
    pub fn behind(self, bytes: u64) -> Self {
        Self {
            addr: self.addr + bytes,
            ..self
        }
    }
}

impl Once {
    /// Names what others have written already among the runs of a stopped task, and remembers the rest of what it shares.
    ///
    /// # Errors
    /// The kernel tells no frames of this task.
    pub fn sort(&mut self, pid: HostPid, own: u32, runs: Vec<Run>) -> Result<Vec<Run>> {
        if !runs.iter().any(may_be) {
            return Ok(runs);
        }
        let mut scanner = Scanner::words(pid)?;
        let mut out = Vec::with_capacity(runs.len());
        for r in runs {
            match may_be(&r) {
                true => self.one(&mut scanner, (pid, own), r, &mut out)?,
                false => r.join(&mut out),
            }
        }
        Ok(out)
    }
    fn one(
        &mut self,
        scanner: &mut Scanner,
        (pid, own): (HostPid, u32),
        r: Run,
        out: &mut Vec<Run>,
    ) -> Result<()> {
        let mut found: Vec<(u64, Option<u64>, Option<Owner>)> = Vec::new();
        let (start, end) = (RemotePtr(r.start), RemotePtr(r.start + r.len));
        scanner.each_word(start, end, |at, w| {
            let frame = w.pfn().filter(|_| !w.exclusive());
            let owner = frame.and_then(|f| self.frames.get(&f)).copied();
            found.push((at, frame, owner));
        })?;
        let mut owners: HashMap<HostPid, Scanner> = HashMap::new();
        for (at, frame, owner) in found {
            let mut same = None;
            if let (Some(frame), Some((host, theirs, addr))) = (frame, owner)
                && host != pid
            {
                let of = match owners.entry(host) {
                    Entry::Occupied(e) => e.into_mut(),
                    Entry::Vacant(e) => e.insert(Scanner::words(host)?),
                };
                of.each_word(RemotePtr(addr), RemotePtr(addr + PAGE), |_, w| {
                    if w.pfn() == Some(frame) {
                        same = Some(Same { pid: theirs, addr });
                    }
                })?;
            }
            if let (Some(frame), None) = (frame, same) {
                self.frames.insert(frame, (pid, own, at));
            }
            Run {
                start: at,
                len: PAGE,
                same,
                ..r
            }
            .join(out);
        }
        Ok(())
    }
}

/// Whether some of these pages may be shared, and are written at once.
fn may_be(r: &Run) -> bool {
    r.shared && !r.unwritten && !r.late
}
