//! Address spaces: mappings by tape, contents by the engine.
//!
//! Mappings are made straight at their final addresses, as the stub has nothing there. Contents are written by the
//! engine's threads with process_vm_writev from the mapped pages image, so mappings that will not be writable are made
//! writable first and get their protection at the end.
//!
//! Long because it is one table: what each sort of mapping becomes, and how it is handed on.
use super::aio::Ring;
use super::heirs::{self, Estate};
use super::images::{Images, TaskImages};
use super::later::{self, Id, View};
use super::vdso::{Foreign, Special};
use crate::dump::mm::status;
use crate::error::{Blame, Error, Result};
use crate::kinds::{Act, PlanCx, Stage, shmem};
use crate::pages::{Run, Source, split};
use stasis_kernel::call::{Arg, Call, FdRef, Part};
use stasis_kernel::names;
use stasis_proto::pb::{self, VmaEntry};
use std::collections::BTreeMap;

/// A mapping as it is while contents are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// PROT_*: writable if contents must be written.
    pub prot: u64,
    /// MAP_*, without how the address is meant.
    pub flags: u64,
    /// Offset in the file.
    pub offset: u64,
    /// The file.
    pub file: Option<FdRef>,
    /// Whether writes are the task's own.
    pub private: bool,
    /// How it is made.
    pub origin: Origin,
    /// MADV_HUGEPAGE or MADV_NOHUGEPAGE, if any.
    pub huge: Option<bool>,
}

/// How a mapping is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// mmap(2).
    Map,
    /// shmat(2) of the segment with this id.
    Segment(u32),
    /// io_setup(2): see [`super::aio`].
    Ring,
}

impl Mapping {
    /// First address behind it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
    fn call(&self, fd: Option<usize>) -> Option<Call> {
        match self.origin {
            Origin::Map => {}
            Origin::Segment(id) => {
                let (bits, name) = match self.prot & libc::PROT_WRITE as u64 {
                    0 => (libc::SHM_RDONLY, "SHM_RDONLY"),
                    _ => (0, "0"),
                };
                let flags = Arg::Named(bits as u64, name.into());
                let args = vec![Arg::Int(id.into()), Arg::Hex(self.start), flags];
                return Some(Call::new(libc::SYS_shmat, args).must_be(self.start));
            }
            Origin::Ring => return None,
        }
        let flags = self.flags | MAP_FIXED_NOREPLACE;
        let args = vec![
            Arg::Hex(self.start),
            Arg::Hex(self.len),
            prot_arg(self.prot),
            Arg::MapFlags(flags),
            Arg::Int(fd.map_or(u64::MAX, |f| f as u64)),
            Arg::Hex(self.offset),
        ];
        Some(Call::new(libc::SYS_mmap, args).must_be(self.start))
    }
}

/// The restore of one address space.
pub struct Plan {
    /// Files the mappings need, in the order in which the task receives them: they get the lowest free numbers.
    pub files: Vec<FdRef>,
    /// Mappings, sorted.
    pub maps: Vec<Mapping>,
    /// The task with whose memory it is born; `None`: with an empty one.
    pub base: Option<usize>,
    /// The task that bears it has its program's file already.
    exe_is_there: bool,
    /// What becomes of that.
    pub estate: Option<Estate>,
    /// Mappings that are inherited, by index.
    kept: Vec<bool>,
    /// prctl(PR_SET_MM_MAP): words, auxv.
    mm: (Vec<u64>, Vec<u8>),
    /// The program's file.
    exe: FdRef,
    /// vDSO and vvar; none if the image's is another than this kernel's.
    pub vdso: Vec<Special>,
    /// What is done then.
    pub foreign: Option<Foreign>,
    /// Rows when contents are in place and children are born: protections, advice, locks.
    pub late: Vec<Call>,
    /// AIO rings.
    pub rings: Vec<Ring>,
    /// What goes where.
    pub pages: Vec<Run>,
    /// The pages images.
    pub sources: Vec<Source>,
    /// Pages that come when the tree runs, and the mappings they lie in: start, length.
    pub lazy: Vec<Run>,
    /// See `lazy`.
    pub lazy_ranges: Vec<(u64, u64)>,
    /// Shared memory that does so, too.
    pub views: Vec<View>,
}

const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
/// KERNEL(>=6.10)
const SYS_MSEAL: i64 = 462;

/// The row that locks a mapping.
fn locked(v: &VmaEntry) -> Option<Call> {
    if v.flags & libc::MAP_LOCKED as u32 == 0 {
        return None;
    }
    let (start, len) = (Arg::Hex(v.start), Arg::Hex(v.end - v.start));
    let call = if v.stasis.as_ref().is_some_and(|s| s.lock_on_fault()) {
        let flag = Arg::Named(1, "MLOCK_ONFAULT".into());
        Call::new(libc::SYS_mlock2, vec![start, len, flag])
    } else {
        Call::new(libc::SYS_mlock, vec![start, len])
    };
    // KERNEL: mlockall(2) also locks what cannot be read; there mlock(2) sets the flag, then fails to fill it (mm/mlock.c)
    Some(if v.prot == 0 { call.any() } else { call })
}

/// A whole attached segment.
fn segment(v: &VmaEntry, segments: &BTreeMap<u64, u64>, p: &mut Plan) -> Result<()> {
    let len = v.end - v.start;
    let whole = segments.get(&v.shmid).map(|s| s.next_multiple_of(4096));
    let at = || format!("mapping {:#x}-{:#x} of segment {}", v.start, v.end, v.shmid);
    let Some(whole) = whole else {
        return Err(Error::new("E5009", Blame::Image, at())
            .why("the image has no such segment of System V shared memory")
            .advice("dump again"));
    };
    if whole != len || v.pgoff != 0 {
        return Err(Error::new("E4208", Blame::Container, at())
            .why("only a part of the segment is mapped, and shmat(2) attaches whole ones")
            .advice("the program has unmapped a part: this is not supported"));
    }
    let made = (libc::PROT_READ | v.prot as i32 & libc::PROT_WRITE) as u32;
    if made != v.prot {
        let args = vec![Arg::Hex(v.start), Arg::Hex(len), prot_arg(v.prot.into())];
        p.late.push(Call::new(libc::SYS_mprotect, args));
    }
    p.late.extend(locked(v));
    p.maps.push(Mapping {
        start: v.start,
        len,
        prot: made.into(),
        flags: v.flags.into(),
        offset: 0,
        file: None,
        private: false,
        origin: Origin::Segment(v.shmid as u32),
        huge: None,
    });
    Ok(())
}

/// Of a mapping in huge pages of the pool, the logarithm of their size.
fn huge_of(v: &VmaEntry) -> Result<Option<u32>> {
    if v.flags & libc::MAP_HUGETLB as u32 == 0 {
        return Ok(None);
    }
    match v.flags >> libc::MAP_HUGE_SHIFT & libc::MAP_HUGE_MASK as u32 {
        // the kernel's choice: that of x86-64
        0 => Ok(Some(21)),
        log if (12..48).contains(&log) => Ok(Some(log)),
        log => Err(Error::new(
            "E5013",
            Blame::Image,
            format!("mapping {:#x}-{:#x}", v.start, v.end),
        )
        .why(format!("no huge page has 2^{log} bytes"))
        .advice("dump again")),
    }
}

/// Rows: shared memory in huge pages of the pool. It comes back as a memfd, whose name is the only difference.
fn pool(cx: &mut PlanCx, file: FdRef, size: u64, log: u32) {
    const MFD_HUGETLB: u32 = 4;
    let flags = libc::MFD_CLOEXEC | MFD_HUGETLB | log << libc::MAP_HUGE_SHIFT;
    let args = vec![
        Arg::Str(b"anon_hugepage".to_vec()),
        Arg::Named(flags.into(), names::memfd_flags(flags.into()).into()),
    ];
    cx.host(
        Call::new(libc::SYS_memfd_create, args).binds(file),
        "shared memory in huge pages",
    );
    let c = Call::new(libc::SYS_ftruncate, vec![Arg::Fd(file), Arg::Int(size)]);
    cx.host(c, "its size");
}

/// Shared anonymous memory: the engine makes each object once, fills it, and every task maps it like a file.
pub fn shared(images: &Images, cx: &mut PlanCx) -> Result<BTreeMap<u64, FdRef>> {
    // bytes, and the logarithm of the size of its huge pages
    let mut sizes: BTreeMap<u64, (u64, Option<u32>)> = BTreeMap::new();
    for v in images
        .tasks
        .iter()
        .filter_map(|t| t.mm.as_ref())
        .flat_map(|m| &m.vmas)
    {
        if v.status & status::ANON_SHARED != 0 && v.status & status::SYSVIPC == 0 {
            let end = v
                .pgoff
                .checked_add(v.end - v.start)
                .filter(|e| *e < 1 << 46);
            let end = end.ok_or_else(|| {
                Error::new("E5013", Blame::Image, format!("shared memory {}", v.shmid))
                    .why("a mapping of it begins beyond all sizes")
                    .advice("dump again")
            })?;
            let (size, huge) = sizes.entry(v.shmid).or_default();
            *size = end.max(*size);
            *huge = huge_of(v)?;
        }
    }
    cx.enter(Stage::First);
    let mut made = BTreeMap::new();
    for (shmid, (size, huge)) in sizes {
        let f = cx.temp();
        match huge {
            None => {
                let act = Act::SharedMemory { file: f, size };
                cx.act_at(Stage::First, act, "make shared anonymous memory");
            }
            Some(log) => pool(cx, f, size.next_multiple_of(1 << log), log),
        }
        if !cx.later.contains_key(&Id::Anonymous(shmid)) {
            shmem::plan_fill(cx, f, shmid, size, huge.map(|log| 1 << log))?;
        }
        made.insert(shmid, f);
    }
    Ok(made)
}

fn listed<'a>(cx: &PlanCx<'a>, id: u32) -> Result<&'a pb::FileEntry> {
    cx.files.get(&id).ok_or_else(|| {
        Error::new("E5006", Blame::Image, format!("file {id}"))
            .why("a mapping names a file that files.img does not have")
            .advice("dump again")
    })
}

/// Mappings of something that is open.
const FILES: u32 = status::FILE_PRIVATE | status::FILE_SHARED | status::SOCKET;

const ACCESS: u32 = libc::O_ACCMODE as u32;

/// How the file behind a mapping must be open.
pub fn access(v: &VmaEntry) -> u32 {
    let shared = v.status & status::FILE_SHARED != 0;
    let writes = v.prot & libc::PROT_WRITE as u32 != 0;
    ACCESS
        & v.fdflags.unwrap_or(match shared && writes {
            true => libc::O_RDWR as u32,
            false => libc::O_RDONLY as u32,
        })
}

/// The file behind a mapping. The mapping says how it must be open, which may be more than its entry says (CRIU describes a
/// file once, whoever maps it and how); then it is opened once more.
fn mapped(v: &VmaEntry, cx: &mut PlanCx) -> Result<FdRef> {
    let id = u32::try_from(v.shmid)
        .map_err(|_| Error::new("E5006", Blame::Image, "a mapping's file id"))?;
    let e = listed(cx, id)?;
    if v.status & status::SOCKET != 0 {
        let what = format!("mapping {:#x}-{:#x}", v.start, v.end);
        return e.psk.as_ref().map(|_| FdRef(id)).ok_or_else(|| {
            Error::new("E5007", Blame::Image, what)
                .why(format!(
                    "it shows a socket, but file {id} is no packet socket"
                ))
                .advice("dump again")
        });
    }
    let need = access(v);
    let reg = e.reg.as_deref().map(|r| r.flags);
    let have = reg.or(e.memfd.as_deref().map(|m| m.flags));
    if have.is_some_and(|h| h & ACCESS == need && h & libc::O_PATH as u32 == 0) {
        return Ok(FdRef(id));
    }
    let key = ("mapped", u64::from(id) << 2 | u64::from(need));
    if let Some(f) = cx.made.get(&key) {
        return Ok(f[0]);
    }
    let file = cx.temp();
    cx.enter(Stage::First);
    crate::kinds::regular::plan_open(cx, id, need, file)?;
    cx.made.insert(key, vec![file]);
    Ok(file)
}

/// Plans one address space.
pub fn plan(
    t: &TaskImages,
    cx: &mut PlanCx,
    shared: &BTreeMap<u64, FdRef>,
    segments: &BTreeMap<u64, u64>,
    own_vdso: &[u8],
) -> Result<Plan> {
    let mm =
        t.mm.as_ref()
            .ok_or_else(|| Error::bug("a task without an address space"))?;
    let mut p = Plan {
        files: Vec::new(),
        maps: Vec::with_capacity(mm.vmas.len()),
        base: None,
        exe_is_there: false,
        estate: None,
        kept: Vec::new(),
        mm: (Vec::new(), Vec::new()),
        exe: FdRef(listed(cx, mm.exe_file_id)?.id),
        vdso: Vec::new(),
        foreign: None,
        late: Vec::new(),
        rings: Vec::new(),
        pages: Vec::new(),
        sources: Vec::new(),
        lazy: Vec::new(),
        lazy_ranges: Vec::new(),
        views: later::views(&mm.vmas, cx.files, &cx.later),
    };
    let pages = t
        .pages
        .as_ref()
        .ok_or_else(|| Error::bug("a task without a pagemap"))?;
    p.pages = pages.runs.clone();
    p.sources = pages.sources.clone();
    let mut sealed = Vec::new();
    for v in &mm.vmas {
        let len = v.end.checked_sub(v.start).ok_or_else(|| {
            Error::new("E5014", Blame::Image, format!("mapping at {:#x}", v.start))
                .why("it ends before it begins")
                .advice("dump again")
        })?;
        if v.status & (status::VSYSCALL | status::UPROBES) != 0 {
            continue;
        }
        if v.status & status::GUARD != 0 {
            p.late.push(Call::new(
                libc::SYS_madvise,
                vec![
                    Arg::Hex(v.start),
                    Arg::Hex(len),
                    Arg::Named(102, "MADV_GUARD_INSTALL".into()),
                ],
            ));
            continue;
        }
        if v.status & (status::VDSO | status::VVAR) != 0 {
            let foreign = match v.status & status::VDSO {
                0 => None,
                _ => Foreign::plan(t, v, cx, own_vdso, &p.sources, &p.pages)?,
            };
            if foreign.is_none() {
                p.vdso
                    .push((v.status & (status::VDSO | status::VVAR), v.start, len));
                // its pages are the kernel's own
                cut(&mut p.pages, v.start, v.end);
                continue;
            }
            // an ordinary mapping from now on
            p.foreign = foreign;
        }
        if v.status & status::AIORING != 0 {
            let own = cut(&mut p.pages, v.start, v.end);
            p.rings.push(Ring::plan(mm, v, cx, &p.sources, &own)?);
            p.maps.push(Mapping {
                start: v.start,
                len,
                prot: v.prot.into(),
                flags: v.flags.into(),
                offset: 0,
                file: None,
                private: false,
                origin: Origin::Ring,
                huge: None,
            });
            continue;
        }
        if v.status & status::SYSVIPC != 0 {
            segment(v, segments, &mut p)?;
            continue;
        }
        let mut prot = u64::from(v.prot);
        let mut mapped_runs = Vec::new();
        if cx.options.memory.map && may_be_mapped(v) {
            let all = cut(&mut p.pages, v.start, v.end);
            let (large, small): (Runs, Runs) = all.into_iter().partition(|r| r.1 >= MAPPED);
            mapped_runs = large;
            p.pages.extend(small);
            p.pages.sort_unstable();
        }
        if cx.options.memory.lazy && may_be_lazy(v) {
            let mut later = match cx.options.memory.lazy_daemon {
                None => cut(&mut p.pages, v.start, v.end),
                // a daemon brings what the image says, no more
                Some(_) => {
                    let first = pages.lazy.partition_point(|l| l.1 <= v.start);
                    let there = pages.lazy[first..].iter().take_while(|l| l.0 < v.end);
                    let all = there
                        .flat_map(|(a, b)| cut(&mut p.pages, (*a).max(v.start), (*b).min(v.end)));
                    all.collect()
                }
            };
            if !later.is_empty() {
                p.lazy.append(&mut later);
                p.lazy_ranges.push((v.start, len));
            }
        }
        // runs are sorted and apart: the first that ends behind its start tells
        let first = p.pages.partition_point(|(a, n, _)| a + n <= v.start);
        let filled = p.pages.get(first).is_some_and(|r| r.0 < v.end);
        let private = v.flags & libc::MAP_PRIVATE as u32 != 0 || v.flags & 0xf == 0x08;
        if filled && private && prot & libc::PROT_WRITE as u64 == 0 {
            prot |= (libc::PROT_WRITE | libc::PROT_READ) as u64;
            p.late.push(Call::new(
                libc::SYS_mprotect,
                vec![
                    Arg::Hex(v.start),
                    Arg::Hex(len),
                    prot_arg(u64::from(v.prot)),
                ],
            ));
        }
        let mut flags = u64::from(v.flags) & !(libc::MAP_LOCKED as u64);
        let object = (v.status & status::ANON_SHARED != 0)
            .then(|| shared.get(&v.shmid).copied())
            .flatten();
        let with_file = object.is_some() || v.status & FILES != 0;
        if p.views.iter().any(|w| (w.start..w.end).contains(&v.start)) {
            p.lazy_ranges.push((v.start, len));
        }
        let file = if object.is_some() {
            flags &= !(libc::MAP_ANONYMOUS as u64);
            object
        } else if with_file {
            Some(mapped(v, cx)?)
        } else {
            None
        };
        if let Some(f) = file {
            need(&mut p.files, f);
        }
        let advised = |advice: i32| v.madv.unwrap_or(0) & 1 << advice != 0;
        let whole = Mapping {
            start: v.start,
            len,
            prot,
            flags,
            offset: if with_file { v.pgoff } else { 0 },
            file,
            private,
            origin: Origin::Map,
            huge: advised(libc::MADV_HUGEPAGE)
                .then_some(true)
                .or(advised(libc::MADV_NOHUGEPAGE).then_some(false)),
        };
        p.pieces(whole, &mapped_runs, cx);
        for bit in (0..64).filter(|b| *b != libc::MADV_HUGEPAGE as u64) {
            if v.madv.unwrap_or(0) & 1 << bit != 0 {
                p.late.push(Call::new(
                    libc::SYS_madvise,
                    vec![
                        Arg::Hex(v.start),
                        Arg::Hex(len),
                        Arg::Named(bit, names::madvise(bit)),
                    ],
                ));
            }
        }
        p.late.extend(locked(v));
        if v.stasis.as_ref().is_some_and(|s| s.sealed()) {
            let args = vec![Arg::Hex(v.start), Arg::Hex(len), Arg::Int(0)];
            sealed.push(Call::new(SYS_MSEAL, args));
        }
    }
    let brought = cx.options.memory.lazy_daemon.is_some() || cx.options.memory.far.is_some();
    let late = p.lazy.iter().filter(|_| !brought);
    if let Some(r) = p.pages.iter().chain(late).find(|r| pages.is_far(r)) {
        return Err(
            Error::new("E5002", Blame::Image, format!("pages at {:#x}", r.0))
                .why("they were left with a page server (lazy pages), not written")
                .advice("restore with --lazy-pages while the page server runs"),
        );
    }
    if p.foreign.is_some() {
        p.vdso.clear();
    }
    if let Some(flags) = t.tc.stasis.as_ref().and_then(|s| s.mlock_future) {
        // of mappings to come, so it is said when all have come
        let name = if flags & 4 != 0 {
            "MCL_FUTURE|MCL_ONFAULT"
        } else {
            "MCL_FUTURE"
        };
        let args = vec![Arg::Named(u64::from(flags & 6), name.into())];
        p.late.push(Call::new(libc::SYS_mlockall, args));
    }
    // nothing can be done to a sealed mapping any more
    p.late.append(&mut sealed);
    need(&mut p.files, p.exe);
    let words = vec![
        mm.mm_start_code,
        mm.mm_end_code,
        mm.mm_start_data,
        mm.mm_end_data,
        mm.mm_start_brk,
        mm.mm_brk,
        mm.mm_start_stack,
        mm.mm_arg_start,
        mm.mm_arg_end,
        mm.mm_env_start,
        mm.mm_env_end,
    ];
    let mut auxv: Vec<u64> = mm.mm_saved_auxv.clone();
    while auxv.len() >= 2 && auxv[auxv.len() - 2..] == [0, 0] {
        auxv.truncate(auxv.len() - 2);
    }
    auxv.extend([0, 0]);
    p.mm = (words, auxv.iter().flat_map(|w| w.to_le_bytes()).collect());
    Ok(p)
}

/// Runs of at least so many bytes are mapped: each is a mapping of its own, of which a process may not have many.
const MAPPED: u64 = 128 * 1024;

/// Memory that may become private mappings of an image: nothing of what it is may need anonymous memory.
fn may_be_mapped(v: &VmaEntry) -> bool {
    let advised = |advice: i32| v.madv.unwrap_or(0) & 1 << advice != 0;
    may_be_lazy(v)
        && v.flags & libc::MAP_GROWSDOWN as u32 == 0
        && !advised(libc::MADV_WIPEONFORK)
        && !advised(libc::MADV_HUGEPAGE)
}

/// Private anonymous memory, unless it must never fault.
fn may_be_lazy(v: &VmaEntry) -> bool {
    const NOT: u32 = (libc::MAP_LOCKED | libc::MAP_HUGETLB | libc::MAP_SHARED) as u32;
    v.status & status::ANON_PRIVATE != 0
        && v.status & (status::VDSO | status::VVAR | status::AIORING) == 0
        && v.flags & NOT == 0
        && v.flags & libc::MAP_PRIVATE as u32 != 0
}

fn need(files: &mut Vec<FdRef>, f: FdRef) {
    if !files.contains(&f) {
        files.push(f);
    }
}

fn prot_arg(prot: u64) -> Arg {
    Arg::Prot(prot)
}

/// Runs of pages.
type Runs = Vec<Run>;

/// Takes what lies in `start..end` out of the runs. A run may go over the borders of mappings: neighbours are dumped as one.
fn cut(runs: &mut Runs, start: u64, end: u64) -> Runs {
    let mut inside = Runs::new();
    let mut outside = Runs::with_capacity(runs.len() + 1);
    for (a, n, at) in runs.drain(..) {
        let (from, to) = (a.clamp(start, end), (a + n).clamp(start, end));
        let put = |into: &mut Runs, b: u64, e: u64| {
            if b < e {
                into.push((b, e - b, at + (b - a)));
            }
        };
        put(&mut outside, a, (a + n).min(start));
        put(&mut inside, from, to);
        put(&mut outside, a.max(end), a + n);
    }
    *runs = outside;
    inside
}

impl Plan {
    /// Adds a mapping, runs of which are mapped from the pages images.
    fn pieces(&mut self, whole: Mapping, runs: &[Run], cx: &mut PlanCx) {
        let mut at = whole.start;
        let piece = |start: u64, len: u64| Mapping {
            start,
            len,
            ..whole.clone()
        };
        for (start, len, from) in runs {
            if *start > at {
                self.maps.push(piece(at, start - at));
            }
            let (source, offset) = split(*from);
            let source = self.sources[source];
            let key = ("pages", (source.level as u64) << 32 | u64::from(source.id));
            let file = match cx.made.get(&key) {
                Some(f) => f[0],
                None => {
                    let f = cx.temp();
                    cx.act_at(Stage::First, Act::Image(f, source), "pages to be mapped");
                    cx.made.insert(key, vec![f]);
                    f
                }
            };
            need(&mut self.files, file);
            self.maps.push(Mapping {
                flags: whole.flags & !(libc::MAP_ANONYMOUS as u64),
                offset,
                file: Some(file),
                ..piece(*start, *len)
            });
            at = start + len;
        }
        if at < whole.end() {
            self.maps.push(piece(at, whole.end() - at));
        }
    }
    /// Whether anything of it comes when the tree runs.
    pub fn comes_later(&self) -> bool {
        !self.lazy.is_empty() || !self.views.is_empty()
    }
    /// Whether a child of a task with the memory `parent` should be born with that.
    pub fn is_heir_of(&self, parent: &Plan) -> bool {
        self.exe == parent.exe
            && heirs::is_heir(&self.maps, &self.pages, &parent.maps, &parent.pages)
    }
    /// Plans that the task is born with the memory `parent` of task `base` in place; `keep`: some of it stays.
    pub fn inherit(&mut self, base: usize, parent: &Plan, keep: bool) {
        self.base = Some(base);
        self.exe_is_there = self.exe == parent.exe;
        let (mut estate, kept) = match keep {
            true => heirs::settle(&self.maps, &self.pages, &parent.maps, &parent.pages),
            false => heirs::settle(&[], &[], &parent.maps, &[]),
        };
        if keep {
            let maps = self.maps.iter().zip(&kept).filter(|(_, k)| !**k);
            let files: Vec<FdRef> = maps.filter_map(|(m, _)| m.file).collect();
            self.files.retain(|f| files.contains(f));
        }
        let place = |sources: &[Source], place: u64| {
            let (source, at) = split(place);
            Some((*sources.get(source)?, at))
        };
        estate.know(|own, theirs| {
            let own = place(&self.sources, own);
            own.is_some() && own == place(&parent.sources, theirs)
        });
        self.estate = Some(estate);
        self.kept = kept;
    }
    /// Fresh mappings that are filled by userfaultfd: large ones of small pages. `huge`: the kernel makes huge pages unless
    /// told not to.
    pub fn by_uffd(&self, huge: bool) -> Vec<(u64, u64)> {
        const LARGE: u64 = 1 << 20;
        let kept = self.kept.iter().chain(std::iter::repeat(&false));
        let maps = self.maps.iter().zip(kept).filter(|(m, kept)| {
            let first = self.pages.partition_point(|p| p.0 < m.start);
            let filled = self.pages[first..].iter().take_while(|p| p.0 < m.end());
            let small = match m.huge {
                Some(h) => !h,
                None => !huge,
            };
            !**kept
                && m.private
                && m.file.is_none()
                && m.origin == Origin::Map
                && m.flags & (libc::MAP_HUGETLB | 0x08) as u64 == 0
                && small
                && filled.map(|p| p.1).sum::<u64>() >= LARGE
        });
        maps.map(|(m, _)| (m.start, m.len)).collect()
    }
    /// The rows by which an heir gives up what only its parent has.
    pub fn settling(&self) -> Vec<Call> {
        let Some(e) = &self.estate else {
            return Vec::new();
        };
        let (at, n) = (Arg::Hex, Arg::Hex);
        let mut rows: Vec<Call> = Vec::new();
        for (s, len) in &e.unmap {
            rows.push(Call::new(libc::SYS_munmap, vec![at(*s), n(*len)]));
        }
        for (s, old, new) in &e.grow {
            let args = vec![at(*s), n(*old), n(*new), Arg::Int(0)];
            rows.push(Call::new(libc::SYS_mremap, args).must_be(*s));
        }
        for (s, len, prot) in &e.protect {
            let args = vec![at(*s), n(*len), prot_arg(*prot)];
            rows.push(Call::new(libc::SYS_mprotect, args));
        }
        for (s, len) in &e.forget {
            let advice = Arg::Named(4, "MADV_DONTNEED".into());
            rows.push(Call::new(libc::SYS_madvise, vec![at(*s), n(*len), advice]));
        }
        rows
    }
    /// The rows that make the mappings, once the files lie at the lowest numbers: receive, map, close.
    pub fn tape(&self, service: i32) -> impl Iterator<Item = Call> + '_ {
        let number: BTreeMap<FdRef, usize> = self.files.iter().copied().zip(0..).collect();
        // KERNEL: the program's file cannot be set anew while it is mapped (kernel/fork.c, replace_mm_exe_file): who was born
        // with the right one keeps it
        let exe = number.get(&self.exe).filter(|_| !self.exe_is_there);
        let exe = exe.map_or(u32::MAX, |n| *n as u32);
        let kept = self.kept.iter().chain(std::iter::repeat(&false));
        let fresh = self.maps.iter().zip(kept).filter(|(_, kept)| !**kept);
        let maps = fresh.flat_map(move |(m, _)| {
            // before contents come: they come in huge pages
            let huge = (m.huge == Some(true)).then(|| {
                let advice = Arg::Named(14, "MADV_HUGEPAGE".into());
                let args = vec![Arg::Hex(m.start), Arg::Hex(m.len), advice];
                Call::new(libc::SYS_madvise, args)
            });
            let map = m.call(m.file.and_then(|f| number.get(&f).copied()));
            map.into_iter().chain(huge)
        });
        let received = receive(service, self.files.len()).into_iter();
        received.chain(maps).chain(self.last(exe))
    }
    /// What follows when the mappings are there: what the kernel knows of them, and the files go. `exe`: the number of the program's.
    fn last(&self, exe: u32) -> Vec<Call> {
        let (words, auxv) = &self.mm;
        let mut rows = Vec::new();
        let tail: Vec<u8> = (auxv.len() as u32)
            .to_le_bytes()
            .into_iter()
            .chain(exe.to_le_bytes())
            .collect();
        let map = Arg::Struct(vec![
            Part::Bytes(words.iter().flat_map(|w| w.to_le_bytes()).collect()),
            Part::Ptr(Arg::In(auxv.clone())),
            Part::Bytes(tail),
        ]);
        rows.push(Call::new(
            libc::SYS_prctl,
            vec![
                Arg::Named(35, "PR_SET_MM".into()),
                Arg::Named(14, "PR_SET_MM_MAP".into()),
                map,
                Arg::Int(104),
                Arg::Int(0),
            ],
        ));
        if !self.files.is_empty() {
            rows.push(Call::new(
                libc::SYS_close_range,
                vec![
                    Arg::Int(0),
                    Arg::Int(self.files.len() as u64 - 1),
                    Arg::Int(0),
                ],
            ));
        }
        rows
    }
}

/// Files one message carries: SCM_MAX_FD (linux/net/scm.h).
pub const PER_MESSAGE: usize = 253;

/// Rows that receive `n` files from the service socket into the numbers 0 to n-1, which are free.
pub fn receive(service: i32, n: usize) -> Vec<Call> {
    let mut rows = Vec::new();
    let mut got = 0;
    while got < n {
        let k = PER_MESSAGE.min(n - got);
        let control = 16 + k * 4;
        let iov = Arg::Struct(vec![
            Part::Ptr(Arg::Out(8)),
            Part::Bytes(1u64.to_le_bytes().to_vec()),
        ]);
        let msg = Arg::Struct(vec![
            Part::Bytes(vec![0; 16]),
            Part::Ptr(iov),
            Part::Bytes(1u64.to_le_bytes().to_vec()),
            Part::Ptr(Arg::Out(control)),
            Part::Bytes((control as u64).to_le_bytes().to_vec()),
            Part::Bytes(vec![0; 8]),
        ]);
        rows.push(
            Call::new(
                libc::SYS_recvmsg,
                vec![Arg::Int(service as u64), msg, Arg::Int(0)],
            )
            .must_be(1),
        );
        got += k;
        // all of this message, and no more, have arrived where they must
        rows.push(Call::new(
            libc::SYS_fcntl,
            vec![Arg::Int(got as u64 - 1), Arg::Named(1, "F_GETFD".into())],
        ));
    }
    rows
}

/// Moves received files to their slots. `table` is sorted by slot; numbers 0 to n-1 hold them in this order.
pub fn place(table: &[(FdRef, i32, bool)]) -> impl Iterator<Item = Call> + '_ {
    // from the highest down: a slot is never below the number its file arrived at, so nothing unmoved is overwritten
    table
        .iter()
        .enumerate()
        .rev()
        .flat_map(|(i, f)| one_place(i, f.1, f.2))
}

/// Moves the file at the number `i` to its slot.
fn one_place(i: usize, slot: i32, cloexec: bool) -> Vec<Call> {
    let from = Arg::Int(i as u64);
    if slot != i as i32 {
        let flag = if cloexec { libc::O_CLOEXEC as u64 } else { 0 };
        let to = vec![from.clone(), Arg::Int(slot as u64), Arg::OpenFlags(flag)];
        return vec![
            Call::new(libc::SYS_dup3, to),
            Call::new(libc::SYS_close, vec![from]),
        ];
    }
    let set = vec![from, Arg::Named(2, "F_SETFD".into()), Arg::Int(1)];
    let set = cloexec.then(|| Call::new(libc::SYS_fcntl, set));
    set.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_run_over_the_border_of_a_mapping_is_cut_there() {
        let mut runs = vec![
            (0x1000, 0x2000, 0),
            (0x5000, 0x6000, 0x2000),
            (0xf000, 0x1000, 0x8000),
        ];
        assert_eq!(cut(&mut runs, 0x6000, 0x8000), [(0x6000, 0x2000, 0x3000)]);
        let rest = [
            (0x1000, 0x2000, 0),
            (0x5000, 0x1000, 0x2000),
            (0x8000, 0x3000, 0x5000),
            (0xf000, 0x1000, 0x8000),
        ];
        assert_eq!(runs, rest);
        // nothing there, all there
        assert_eq!(cut(&mut runs, 0x3000, 0x5000), []);
        assert_eq!(runs, rest);
        assert_eq!(cut(&mut runs, 0, 0x10000), rest);
        assert_eq!(runs, []);
    }
}
