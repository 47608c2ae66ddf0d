use std::os::fd::AsFd;

use super::*;
use crate::uffd;

struct Area(*mut u8, u64);

impl Area {
    fn new(pages: u64) -> Self {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (pages * PAGE_SIZE) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(p, libc::MAP_FAILED);
        let a = Area(p.cast(), pages);
        // Small pages, whatever the machine prefers: the tests count them.
        a.advise(0, pages, libc::MADV_NOHUGEPAGE);
        a
    }
    fn at(&self, page: u64) -> u64 {
        self.0 as u64 + page * PAGE_SIZE
    }
    fn ptr(&self, page: u64) -> RemotePtr {
        RemotePtr(self.at(page))
    }
    fn touch(&self, page: u64) {
        // SAFETY: inside our own writable mapping, to which there are no references.
        unsafe { self.0.add((page * PAGE_SIZE) as usize).write_volatile(1) };
    }
    fn look(&self, page: u64) {
        // SAFETY: inside our own readable mapping.
        unsafe { self.0.add((page * PAGE_SIZE) as usize).read_volatile() };
    }
    fn advise(&self, page: u64, pages: u64, advice: i32) -> bool {
        // SAFETY: inside our own mapping, to which there are no references.
        unsafe {
            libc::madvise(
                self.0.add((page * PAGE_SIZE) as usize).cast(),
                (pages * PAGE_SIZE) as usize,
                advice,
            ) == 0
        }
    }
    fn range(&self, from: u64, to: u64, categories: Categories) -> PageRange {
        PageRange {
            start: self.at(from),
            end: self.at(to),
            categories,
        }
    }
    fn scan(&self, s: &mut Scanner, q: &Query) -> Vec<PageRange> {
        let mut out = Vec::new();
        s.scan(self.ptr(0), self.ptr(self.1), q, &mut out).unwrap();
        out
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: our own mapping, no references into it remain.
        unsafe { libc::munmap(self.0.cast(), (self.1 * PAGE_SIZE) as usize) };
    }
}

fn scanner() -> Scanner {
    Scanner::open(HostPid::own()).unwrap()
}

/// The same scanner, made to believe that the kernel has no ioctl.
fn word_scanner() -> Scanner {
    let mut s = scanner();
    s.known = None;
    s
}

const P: Categories = Categories::PRESENT;

#[test]
fn holes_and_pages() {
    let a = Area::new(64);
    for p in [0, 1, 5, 63] {
        a.touch(p);
    }
    let want = [a.range(0, 2, P), a.range(5, 6, P), a.range(63, 64, P)];
    assert_eq!(a.scan(&mut scanner(), &Query::POPULATED), want);
    assert_eq!(a.scan(&mut word_scanner(), &Query::POPULATED), want);
    // The page of zeroes is told apart by the ioctl only.
    a.look(7);
    let mut s = scanner();
    if s.has_ioctl() {
        let got = a.scan(&mut s, &Query::POPULATED);
        assert!(
            got.contains(&a.range(7, 8, P | Categories::PFN_ZERO)),
            "{got:?}"
        );
    }
    // What is asked for from the outside in: pages that are not there.
    let absent = Query {
        all: P,
        inverted: P,
        ..Query::default()
    };
    let got = a.scan(&mut s, &absent);
    assert_eq!(got.iter().map(PageRange::len).sum::<u64>(), 59 * PAGE_SIZE);
    assert_eq!(got, a.scan(&mut word_scanner(), &absent));
}

#[test]
fn more_ranges_than_one_call_returns() {
    // Trap 1: exactly full results, results that end in the middle of a piece of 512, and wide holes behind.
    for ranges in [512, 2048, 2049, 4096, 5000] {
        let a = Area::new(200_000);
        for i in 0..ranges {
            a.touch(i * 2);
        }
        a.touch(199_999);
        let want: Vec<_> = (0..ranges)
            .map(|i| a.range(i * 2, i * 2 + 1, P))
            .chain([a.range(199_999, 200_000, P)])
            .collect();
        assert!(
            a.scan(&mut scanner(), &Query::POPULATED) == want,
            "{ranges}"
        );
        assert!(
            a.scan(&mut word_scanner(), &Query::POPULATED) == want,
            "{ranges}"
        );
    }
}

#[test]
fn sparse_ranges_over_gigabytes() {
    // Trap 1 as it was found: 2048 ranges spread over 4 GiB.
    let a = Area::new(1 << 20);
    let want: Vec<_> = (0..2048)
        .map(|i| {
            a.touch(i * 511);
            a.range(i * 511, i * 511 + 1, P)
        })
        .collect();
    assert!(a.scan(&mut scanner(), &Query::POPULATED) == want);
}

#[test]
fn bad_queries() {
    let a = Area::new(4);
    let mut out = Vec::new();
    let mut s = scanner();
    let e = s
        .scan(a.ptr(0) + 1, a.ptr(4), &Query::POPULATED, &mut out)
        .unwrap_err();
    assert_eq!(e.errno, Errno::EINVAL);
    let q = Query {
        all: Categories::HUGE,
        ..Query::default()
    };
    let e = word_scanner()
        .scan(a.ptr(0), a.ptr(4), &q, &mut out)
        .unwrap_err();
    assert_eq!(e.errno, Errno::EOPNOTSUPP);
    let e = word_scanner()
        .scan_and_protect(a.ptr(0), a.ptr(4), &Query::POPULATED, &mut out)
        .unwrap_err();
    assert_eq!(e.errno, Errno::EOPNOTSUPP);
    assert!(out.is_empty());
}

#[test]
fn guards() {
    let mut s = scanner();
    let a = Area::new(16);
    a.touch(0);
    if !a.advise(4, 2, 102) {
        // KERNEL(<6.13): no MADV_GUARD_INSTALL.
        assert_eq!(Errno::last(), Errno::EINVAL);
        return;
    }
    if s.supported().contains(Categories::GUARD) {
        assert_eq!(
            a.scan(&mut s, &Query::GUARDS),
            [a.range(4, 6, Categories::GUARD)]
        );
        assert_eq!(
            a.scan(&mut word_scanner(), &Query::GUARDS),
            [a.range(4, 6, Categories::GUARD)]
        );
    }
}

#[test]
fn written_pages() {
    let Ok(fd) = uffd::open(uffd::USER_MODE_ONLY) else {
        return;
    };
    let want = uffd::FEATURE_WP | uffd::FEATURE_WP_UNPOPULATED | uffd::FEATURE_WP_ASYNC;
    if uffd::api(fd.as_fd(), want).is_err() {
        return;
    }
    let a = Area::new(64);
    for p in 0..8 {
        a.touch(p);
    }
    let mut s = scanner();
    let dirty = Query {
        all: P | Categories::WRITTEN,
        report: Categories::WRITTEN,
        ..Query::default()
    };
    let mut out = Vec::new();
    // Trap 2: not registered must be an error, not "nothing was written".
    let e = s
        .scan_and_protect(a.ptr(0), a.ptr(64), &dirty, &mut out)
        .unwrap_err();
    assert_eq!((e.errno, out.len()), (Errno::EPERM, 0));
    uffd::register(fd.as_fd(), a.ptr(0), 64 * PAGE_SIZE, uffd::MODE_WP).unwrap();
    s.scan_and_protect(a.ptr(0), a.ptr(64), &dirty, &mut out)
        .unwrap();
    let w = Categories::WRITTEN;
    assert_eq!(out, [a.range(0, 8, w)]);
    assert_eq!(a.scan(&mut s, &dirty), []);
    a.touch(3);
    a.touch(40); // was never there
    let want = [a.range(3, 4, w), a.range(40, 41, w)];
    assert_eq!(a.scan(&mut s, &dirty), want);
    assert_eq!(a.scan(&mut word_scanner(), &dirty), want);
    uffd::unregister(fd.as_fd(), a.ptr(0), 64 * PAGE_SIZE).unwrap();
}

#[test]
fn frames() {
    let a = Area::new(2);
    // other tests fork, and for a moment their children would have the page, too
    assert!(a.advise(0, 2, libc::MADV_DONTFORK));
    a.touch(0);
    let mut words = Vec::new();
    scanner()
        .each_word(a.ptr(0), a.ptr(2), |at, w| words.push((at, w)))
        .unwrap();
    assert_eq!((words.len(), words[0].0), (2, a.at(0)));
    let (there, not) = (words[0].1, words[1].1);
    assert!(there.present() && there.exclusive());
    assert!(!not.present() && not.pfn().is_none());
    // Root of a user namespace sees no frame numbers, as others do not.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    if nix::unistd::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"]) {
        assert!(there.pfn().is_some());
    }
    assert_eq!((P | Categories::GUARD).to_string(), "present|guard");
}
