//! What is done while the tree still runs, so that it is stopped for a shorter time: instruction sequences are looked for, and
//! room is made for pages.
//!
//! All of it is a guess. What is found is verified when the tree stands still, and room that was not needed is given back.
use super::process::GadgetCache;
use stasis_kernel::census::Census;
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::{ImageDir, Kind};
use std::collections::BTreeMap;
use std::fs::File;
use std::thread::JoinHandle;

/// Room is made for address spaces with at least so many bytes of their own.
const LARGE: u64 = 16 << 20;

/// What is ready.
#[derive(Default)]
pub struct Ready {
    /// Sequences of the root's text.
    pub gadgets: GadgetCache,
    /// The tree's tasks, but for those that were made meanwhile, or by another thread than the first of their parent.
    pub tasks: Vec<HostPid>,
    /// By task: number of its pages image, and the image.
    pub room: BTreeMap<HostPid, (u32, File)>,
    /// How many files the tasks have open.
    files: u64,
    /// What the kernel is asked all files of a task with at once, if there are many.
    pub census: Option<Census>,
    /// The network locks, which hold nothing yet, or will be there soon.
    pub locks: crate::network::Locks,
}

impl Ready {
    /// Looks at the running tree. Whatever fails is left to be done later, where it fails with a reason.
    ///
    /// `whole`: all memory will be written, so it is known how much room it needs.
    pub fn make(root: HostPid, dir: &ImageDir, whole: bool) -> Self {
        let mut r = Self::default();
        let mut found = vec![root];
        let mut at = 0;
        while let Some(pid) = found.get(at).copied() {
            at += 1;
            let Ok(proc) = ProcDir::open(pid) else {
                continue;
            };
            if pid == root
                && let Ok(maps) = proc.maps()
            {
                r.gadgets.find(pid, &maps);
            }
            // those of other threads are missed: a thousand of them would be asked for nothing
            found.extend(proc.children_of([pid]).unwrap_or_default());
            r.files += proc.count_of_fds().unwrap_or(0);
            let len = own_memory(&proc);
            let id = r.room.len() as u32 + 1;
            if whole
                && len >= LARGE
                && let Ok(file) = dir.create_raw(&Kind::Pages.file_of(id))
            {
                // KERNEL: tmpfs only takes the pages, it clears what nobody writes later: a quarter of a write's time
                let flags = nix::fcntl::FallocateFlags::empty();
                if nix::fcntl::fallocate(&file, flags, 0, len as i64).is_err() {
                    let _ = file.set_len(0);
                }
                r.room.insert(pid, (id, file));
            }
        }
        r.tasks = found;
        r
    }
    /// If there are many files, what asks for them at once is made, beside whatever else is to be done: [`Ready::counts`] waits for it.
    pub fn census(&self) -> Option<JoinHandle<Option<Census>>> {
        (self.files >= MANY_FILES).then(|| std::thread::spawn(census))
    }
    /// To be called before the tree stands still.
    pub fn counts(&mut self, census: Option<JoinHandle<Option<Census>>>) {
        // who panicked has said so
        self.census = census.and_then(|c| c.join().ok()).flatten();
    }
}

/// From so many open files on it is worth it: making one takes as long as the files of /proc of some hundred.
const MANY_FILES: u64 = 500;

/// `None`: without the rights, or on another kernel, /proc tells the same.
fn census() -> Option<Census> {
    let told = |e| tracing::debug!("open files are asked for one by one: {e}");
    Census::new().map_err(told).ok()
}

/// Bytes of a task's memory that are its own: resident, but not of files.
pub(crate) fn own_memory(proc: &ProcDir) -> u64 {
    let statm = proc.bytes("statm").unwrap_or_default();
    let text = String::from_utf8_lossy(&statm);
    let mut words = text
        .split_whitespace()
        .map(|w| w.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (words.nth(1).unwrap_or(0), words.next().unwrap_or(0));
    resident.saturating_sub(shared) * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_for_what_is_large() {
        let memory = vec![1u8; 2 * LARGE as usize];
        let own = own_memory(&ProcDir::open(HostPid::own()).unwrap());
        assert!(own >= LARGE, "{own}");
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let r = Ready::make(HostPid::own(), &dir, true);
        let (id, file) = &r.room[&HostPid::own()];
        assert_eq!(*id, 1);
        assert!(file.metadata().unwrap().len() >= LARGE);
        assert!(memory.iter().all(|b| *b == 1));
    }
}
