//! How much a running tree has written since the last round.
use crate::pages::PAGE;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::pagemap::{Categories, Query, Scanner};
use stasis_kernel::procfs::ProcDir;

/// Pages of private memory that the next round must send: written, or in mappings that are new. A guess: the tree runs.
pub fn pages(root: HostPid) -> u64 {
    let mut found = vec![root];
    let (mut at, mut sum) = (0, 0);
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        if let Ok(proc) = ProcDir::open(pid) {
            sum += of(&proc).unwrap_or(0);
            found.extend(proc.children().unwrap_or_default());
        }
    }
    sum
}

fn of(proc: &ProcDir) -> stasis_kernel::error::Result<u64> {
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
    for m in proc.maps()?.iter().filter(|m| !m.shared) {
        let query = if m.ino == 0 { &written } else { &own };
        // what cannot be scanned (vsyscall) has no pages
        let _ = scanner.scan(RemotePtr(m.start), RemotePtr(m.end), query, &mut all);
    }
    Ok(all.iter().map(|r| r.len() / PAGE).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untracked_memory_counts_as_written() {
        let before = pages(HostPid::own());
        let memory = vec![1u8; 64 << 20];
        let now = pages(HostPid::own());
        assert!(
            now >= before + (48 << 20) / PAGE,
            "{before} {now} {}",
            memory[0]
        );
    }
}
