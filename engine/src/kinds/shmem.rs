//! Contents of shared memory files: memfds, anonymous shared memory, SysV segments.
//!
//! All of them are files of tmpfs or hugetlbfs and are carried alike: pagemap-shmem-ID.img lists the runs of pages that hold
//! data, by offset in the file, and names the pages image where they lie one behind another. The last page is carried whole,
//! zeroes behind the end. No pagemap at all stands for a file of size 0.
//!
//! Pages that were never touched are holes (SEEK_DATA). hugetlbfs knows no holes: there, huge pages full of zeroes are left
//! out, else a file that is mostly untouched would need all its huge pages at restore. It has no write(2) either, so it is
//! filled through a mapping.
use super::act::{Act, Fill, FillRun, STEP, sys};
use super::ghost::data_runs;
use super::{DumpCx, PlanCx};
use crate::dump::shared::{self, Object, Saved};
use crate::error::{Blame, Error, Result};
use crate::options::MemoryOptions;
use crate::pages::Pages;
use stasis_kernel::call::FdRef;
use stasis_proto::{ImageDir, Kind};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;

/// Writes the pages of a shared memory file: `size` bytes under the number `shmid`. `fd` may be any open file of it; it is
/// opened once more for reading. `huge` is the size of its pages if it lies on hugetlbfs.
///
/// # Errors
/// Failures to open, read or write.
pub fn dump_contents(
    cx: &mut DumpCx,
    fd: BorrowedFd<'_>,
    shmid: u64,
    size: u64,
    huge: Option<u64>,
) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    let this = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let file = File::open(&this).map_err(|e| sys("openat", &e, "shared memory"))?;
    let o = &cx.options.memory;
    let (dir, track) = (cx.dir, o.track);
    let pages_id = cx.new_pages_id();
    cx.shared += save(dir, &file, shmid, pages_id, (size, huge), o, track)?;
    Ok(())
}

/// Saves a file of shared memory of so many bytes, in pages of the size `huge` if it lies on hugetlbfs. With `track`, a later dump knows
/// what has changed.
///
/// # Errors
/// Failures to read or write.
pub fn save(
    dir: &ImageDir,
    file: &File,
    shmid: u64,
    pages_id: u32,
    (size, huge): (u64, Option<u64>),
    options: &MemoryOptions,
    track: bool,
) -> Result<Saved> {
    let runs = match huge {
        None => page_runs(&data_runs(file, size)?),
        Some(h) => huge_runs(file, size, h, &mut vec![0u8; STEP])?,
    };
    let object = Object {
        file,
        shmid,
        pages_id,
        runs: &runs,
    };
    shared::save(dir, &object, options, track)
}

/// What a reader that only knows the format's older, 32-bit count of pages is told; 0 if it does not fit.
pub fn compat_pages(pages: u64) -> u32 {
    u32::try_from(pages).unwrap_or(0)
}

/// Plans that a shared memory file, which has its size already, gets the contents saved under `shmid`.
///
/// # Errors
/// A missing or contradictory pagemap.
pub fn plan_fill(
    cx: &mut PlanCx,
    file: FdRef,
    shmid: u64,
    size: u64,
    huge: Option<u64>,
) -> Result<()> {
    if let Some(f) = fill(cx.dir, file, shmid, size, huge)? {
        let stage = cx.stage();
        cx.act_at(stage, Act::Fill(f), "its contents");
    }
    Ok(())
}

/// What would fill a shared memory file; nothing for one of size 0.
///
/// # Errors
/// As [`plan_fill`].
pub fn fill(
    dir: &ImageDir,
    file: FdRef,
    shmid: u64,
    size: u64,
    huge: Option<u64>,
) -> Result<Option<Fill>> {
    if size == 0 {
        return Ok(None);
    }
    let pages = pages(dir, shmid, size)?;
    let runs = pages.runs.iter().map(|(at, len, from)| FillRun {
        at: *at,
        from: *from,
        len: *len.min(&(size - at)),
    });
    Ok(Some(Fill {
        file,
        runs: runs.collect(),
        sources: pages.sources,
        size,
        huge,
    }))
}

/// The pages of a shared memory file of so many bytes, by offset.
///
/// # Errors
/// A missing or contradictory pagemap.
pub fn pages(dir: &ImageDir, shmid: u64, size: u64) -> Result<Pages> {
    let name = Kind::ShmemPagemap.file_of(shmid);
    let pages = Pages::load(dir, &name)?;
    let end = pages.runs.last().map_or(0, |r| r.0 + r.1);
    if end > size.next_multiple_of(PAGE) {
        return Err(Error::new("E5104", Blame::Image, name)
            .why("a run of pages ends beyond the file's size")
            .advice("dump again: the image is damaged"));
    }
    Ok(pages)
}

/// Runs of data as whole pages (start, end), neighbours joined.
fn page_runs(runs: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (at, len) in runs {
        let start = at / PAGE * PAGE;
        let end = (at + len).next_multiple_of(PAGE);
        match out.last_mut() {
            Some(l) if start <= l.1 => l.1 = l.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

/// The huge pages (start, end) that hold anything but zeroes. Read twice, because one may be larger than all our memory.
fn huge_runs(file: &File, size: u64, huge: u64, buf: &mut [u8]) -> Result<Vec<(u64, u64)>> {
    let mut out = Vec::new();
    let mut start = 0;
    while start < size {
        let end = size.min(start + huge).next_multiple_of(PAGE);
        let mut used = false;
        steps(start, end, |at, n| {
            read_padded(file, &mut buf[..n], at)?;
            used = buf[..n].iter().any(|b| *b != 0);
            Ok(!used)
        })?;
        if used {
            out.push((start, end));
        }
        start += huge;
    }
    Ok(out)
}

/// Calls `f` with (offset, length) of pieces not larger than the buffer, as long as it says so.
fn steps(start: u64, end: u64, mut f: impl FnMut(u64, usize) -> Result<bool>) -> Result<()> {
    let mut at = start;
    while at < end {
        let n = (end - at).min(STEP as u64) as usize;
        if !f(at, n)? {
            return Ok(());
        }
        at += n as u64;
    }
    Ok(())
}

/// Fills the buffer from the file; zeroes behind its end.
pub(crate) fn read_padded(file: &File, buf: &mut [u8], at: u64) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], at + done as u64) {
            Ok(0) => {
                buf[done..].fill(0);
                break;
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(sys("pread64", &e, "shared memory")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Stagehand;
    use stasis_kernel::fds;
    use stasis_kernel::host::Host;
    use stasis_kernel::ids::HostPid;
    use stasis_proto::ImageDir;
    use std::collections::BTreeMap;
    use std::os::fd::AsFd;

    #[test]
    fn runs_of_data_become_whole_pages_joined() {
        let runs = page_runs(&[(0, 1), (4096, 4096), (9000, 10), (20479, 2), (40960, 1)]);
        assert_eq!(runs, [(0, 12288), (16384, 24576), (40960, 45056)]);
    }

    /// The way of huge pages, on a file without them: blocks of 2 MiB, filled through a mapping.
    #[test]
    fn blocks_of_zeroes_are_left_out_and_the_rest_is_filled_through_mappings() {
        const H: u64 = 2 << 20;
        let make = || {
            let f = File::from(fds::memfd_create(c"", 0).unwrap());
            f.set_len(4 * H).unwrap();
            f
        };
        let (f, new) = (make(), make());
        f.write_all_at(&[5; 10], H + H - 5).unwrap();
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let options = crate::Options::new(tmp.path());
        let pids = BTreeMap::new();
        let mut cx = DumpCx::new(&options, &dir, &pids);
        dump_contents(&mut cx, f.as_fd(), 7, 4 * H, Some(H)).unwrap();
        let pages = std::fs::metadata(tmp.path().join("pages-1.img")).unwrap();
        assert_eq!(pages.len(), 2 * H);
        let (files, holders) = (BTreeMap::new(), BTreeMap::new());
        let mut plan = PlanCx::new(&options, &dir, &files, &holders);
        plan_fill(&mut plan, FdRef(1), 7, 4 * H, Some(H)).unwrap();
        let mut host = Host::default();
        host.insert(FdRef(1), new.try_clone().unwrap().into());
        let mut on = Stagehand {
            host: &mut host,
            dir: &dir,
            pid: &|p| Some(HostPid(p as i32)),
        };
        for crate::kinds::HostAct { act, .. } in &plan.host {
            act.perform(&mut on).unwrap();
        }
        let all = |f: &File| {
            let mut b = vec![0; 4 * H as usize];
            f.read_exact_at(&mut b, 0).unwrap();
            b
        };
        assert!(all(&f) == all(&new));
    }
}
