//! What of a running tree is still to be sent, and how much work it is to bring it back.
use super::wire::Work;
use crate::pages::PAGE;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::pagemap::{Categories, Query, Scanner};
use stasis_kernel::procfs::{MapsLine, ProcDir};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

/// What there is to bring back of the tree under a process. A guess: the tree runs.
pub fn work(root: HostPid) -> Work {
    let mut sum = Work::default();
    each(root, &mut |proc| {
        sum.tasks += 1;
        sum.mappings += proc.maps()?.len() as u32;
        sum.files += proc.fds()?.len() as u32;
        sum.resident += crate::dump::own_memory(proc);
        Ok(())
    });
    sum
}

/// Bytes that are still to be sent of the tree under a process: pages of private memory that were written since the last round, or
/// are in mappings that are new, and of shared memory as much as had `changed` in the last round; all of it after the first, which
/// tells nothing of that. A guess: the tree runs.
pub fn left(root: HostPid, changed: Option<u64>) -> u64 {
    let (mut sum, mut in_all, mut met) = (0, 0, BTreeSet::new());
    each(root, &mut |proc| {
        let maps = proc.maps()?;
        sum += written(proc, &maps)? * PAGE;
        in_all += shared(proc, &maps, &mut met)?;
        Ok(())
    });
    sum + changed.map_or(in_all, |c| c.min(in_all))
}

fn each(root: HostPid, look: &mut dyn FnMut(&ProcDir) -> stasis_kernel::error::Result<()>) {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        if let Ok(proc) = ProcDir::open(pid) {
            // one that ends meanwhile is not missed
            let _ = look(&proc);
            found.extend(proc.children().unwrap_or_default());
        }
    }
}

/// Bytes of shared memory that were not met before.
fn shared(
    proc: &ProcDir,
    maps: &[MapsLine],
    met: &mut BTreeSet<(u64, u64)>,
) -> stasis_kernel::error::Result<u64> {
    let folder = format!("/proc/{}", proc.pid().0);
    let mapped = maps.iter().filter(|m| m.shared && is_memory(&m.path));
    let mapped = mapped.map(|m| format!("{folder}/map_files/{:x}-{:x}", m.start, m.end));
    let open = proc.fds()?.into_iter();
    let open = open.filter(|fd| proc.fd_link(*fd).is_ok_and(|l| is_memory(&l)));
    let open = open.map(|fd| format!("{folder}/fd/{}", fd.0));
    let mut sum = 0;
    for path in mapped.chain(open) {
        // follows the link
        if let Ok(m) = std::fs::metadata(&path)
            && met.insert((m.dev(), m.ino()))
        {
            sum += m.blocks() * 512;
        }
    }
    Ok(sum)
}

/// Whether this is what the kernel says of files that live in memory and have no name.
pub fn is_memory(path: &[u8]) -> bool {
    let begins: [&[u8]; 5] = [
        b"/dev/zero",
        b"/memfd:",
        b"/SYSV",
        b"/anon_hugepage",
        b"[anon_shmem:",
    ];
    begins.iter().any(|b| path.starts_with(b))
}

fn written(proc: &ProcDir, maps: &[MapsLine]) -> stasis_kernel::error::Result<u64> {
    let mut scanner = Scanner::of(proc)?;
    let written = Query {
        all: Categories::WRITTEN,
        any: Categories::PRESENT | Categories::SWAPPED,
        inverted: Categories::NONE,
        report: Categories::NONE,
    };
    // pages that are still the file's are not sent; only there is that asked, which takes four times as long
    let own = Query {
        all: Categories::WRITTEN | Categories::FILE,
        inverted: Categories::FILE,
        ..written
    };
    let mut all = Vec::new();
    for m in maps.iter().filter(|m| !m.shared) {
        let query = if m.ino == 0 { &written } else { &own };
        // what cannot be scanned (vsyscall) has no pages
        let _ = scanner.scan(RemotePtr(m.start), RemotePtr(m.end), query, &mut all);
    }
    Ok(all.iter().map(|r| r.len() / PAGE).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn untracked_memory_counts_as_written_and_shared_memory_once() {
        let own = HostPid::own();
        let before = left(own, None);
        let memory = vec![1u8; 64 << 20];
        let file = stasis_kernel::fds::memfd_create(c"census", 0).unwrap();
        let mut file = std::fs::File::from(file);
        file.write_all(&memory[..8 << 20]).unwrap();
        let again = file.try_clone().unwrap();
        let now = left(own, None);
        assert!(now >= before + (48 << 20), "{before} {now}");
        let proc = ProcDir::open(own).unwrap();
        let mut met = BTreeSet::new();
        let all = shared(&proc, &[], &mut met).unwrap();
        // other tests have memory too
        assert!(all >= 8 << 20, "{all}");
        assert_eq!(shared(&proc, &[], &mut met).unwrap(), 0);
        let work = work(own);
        assert!(work.tasks >= 1 && work.mappings > 10 && work.files > 3);
        drop(again);
    }
}
