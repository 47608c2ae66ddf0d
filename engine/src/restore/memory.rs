//! Address spaces: mappings by tape, contents by the engine.
//!
//! Mappings are made straight at their final addresses, as the stub has nothing there. Contents are written by the
//! engine's threads with process_vm_writev from the mapped pages image, so mappings that will not be writable are made
//! writable first and get their protection at the end.
use super::images::{Images, TaskImages};
use crate::dump::mm::status;
use crate::error::{Blame, Error, Result};
use crate::kinds::{Act, PlanCx, Stage, shmem};
use stasis_kernel::call::{Arg, Call, FdRef, Part};
use stasis_kernel::names;
use std::collections::BTreeMap;

/// The restore of one address space.
pub struct Plan {
    /// Files the mappings need, in the order in which the task receives them: they get the lowest free numbers.
    pub files: Vec<FdRef>,
    /// Mappings; descriptor arguments are indices into `files`.
    maps: Vec<(Call, Option<usize>)>,
    /// prctl(PR_SET_MM_MAP): words, auxv, index of the program's file.
    mm: (Vec<u64>, Vec<u8>, usize),
    /// vDSO and vvar: (kind, start, length).
    pub vdso: Vec<(u32, u64, u64)>,
    /// Rows when contents are in place and children are born: protections, advice, locks.
    pub late: Vec<Call>,
    /// The pages image and what goes where: address, length, offset in the image.
    pub pages_id: u32,
    /// See `pages_id`.
    pub pages: Vec<(u64, u64, u64)>,
}

const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// Shared anonymous memory: the engine makes each object once, fills it, and every task maps it like a file.
pub fn shared(images: &Images, cx: &mut PlanCx) -> Result<BTreeMap<u64, FdRef>> {
    let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
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
            let size = sizes.entry(v.shmid).or_default();
            *size = end.max(*size);
        }
    }
    cx.enter(Stage::First);
    let mut made = BTreeMap::new();
    for (shmid, size) in sizes {
        let f = cx.temp();
        cx.act_at(
            Stage::First,
            Act::SharedMemory { file: f, size },
            "make shared anonymous memory",
        );
        shmem::plan_fill(cx, f, shmid, size, None)?;
        made.insert(shmid, f);
    }
    Ok(made)
}

fn listed<'a>(cx: &PlanCx<'a>, id: u32) -> Result<&'a stasis_proto::pb::FileEntry> {
    cx.files.get(&id).ok_or_else(|| {
        Error::new("E5006", Blame::Image, format!("file {id}"))
            .why("a mapping names a file that files.img does not have")
            .advice("dump again")
    })
}

/// The file behind a mapping. The mapping says how it must be open, which may be more than its entry says (CRIU describes a
/// file once, whoever maps it and how); then it is opened once more.
fn mapped(v: &stasis_proto::pb::VmaEntry, cx: &mut PlanCx) -> Result<FdRef> {
    const ACCESS: u32 = libc::O_ACCMODE as u32;
    let id = u32::try_from(v.shmid)
        .map_err(|_| Error::new("E5006", Blame::Image, "a mapping's file id"))?;
    let e = listed(cx, id)?;
    let shared = v.status & status::FILE_SHARED != 0;
    let writes = v.prot & libc::PROT_WRITE as u32 != 0;
    let need = ACCESS
        & v.fdflags.unwrap_or(match shared && writes {
            true => libc::O_RDWR as u32,
            false => libc::O_RDONLY as u32,
        });
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
pub fn plan(t: &TaskImages, cx: &mut PlanCx, shared: &BTreeMap<u64, FdRef>) -> Result<Plan> {
    let mm =
        t.mm.as_ref()
            .ok_or_else(|| Error::bug("a task without an address space"))?;
    let mut p = Plan {
        files: Vec::new(),
        maps: Vec::new(),
        mm: (Vec::new(), Vec::new(), 0),
        vdso: Vec::new(),
        late: Vec::new(),
        pages_id: 0,
        pages: Vec::new(),
    };
    let (pages_id, map) = t
        .pages
        .as_ref()
        .ok_or_else(|| Error::bug("a task without a pagemap"))?;
    p.pages_id = *pages_id;
    let mut at = 0;
    for e in map {
        let len = e.nr_pages.unwrap_or(0) * 4096;
        p.pages.push((e.vaddr, len, at));
        at += len;
    }
    for v in &mm.vmas {
        let len = v.end - v.start;
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
            p.vdso
                .push((v.status & (status::VDSO | status::VVAR), v.start, len));
            // its pages are the kernel's own
            p.pages.retain(|(a, _, _)| !(v.start..v.end).contains(a));
            continue;
        }
        if v.status & (status::AIORING | status::SYSVIPC | status::SOCKET) != 0 {
            return Err(Error::new(
                "E5007",
                Blame::Image,
                format!("mapping {:#x}-{:#x}", v.start, v.end),
            )
            .why(format!("its kind ({:#x}) is not supported", v.status)));
        }
        let mut prot = u64::from(v.prot);
        let filled = p
            .pages
            .iter()
            .any(|(a, n, _)| *a < v.end && a + n > v.start);
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
        let mut flags = u64::from(v.flags) & !(libc::MAP_LOCKED as u64) | MAP_FIXED_NOREPLACE;
        let object = (v.status & status::ANON_SHARED != 0)
            .then(|| shared.get(&v.shmid))
            .flatten();
        let with_file =
            object.is_some() || v.status & (status::FILE_PRIVATE | status::FILE_SHARED) != 0;
        let index = if let Some(f) = object {
            flags &= !(libc::MAP_ANONYMOUS as u64);
            Some(index_of(&mut p, *f))
        } else if with_file {
            Some(index_of(&mut p, mapped(v, cx)?))
        } else {
            None
        };
        let args = vec![
            Arg::Hex(v.start),
            Arg::Hex(len),
            prot_arg(prot),
            Arg::Named(flags, names::mmap_flags(flags)),
            Arg::Int(u64::MAX),
            Arg::Hex(if with_file { v.pgoff } else { 0 }),
        ];
        p.maps
            .push((Call::new(libc::SYS_mmap, args).must_be(v.start), index));
        for bit in 0..64 {
            if v.madv.unwrap_or(0) & 1 << bit != 0 {
                p.late.push(Call::new(
                    libc::SYS_madvise,
                    vec![
                        Arg::Hex(v.start),
                        Arg::Hex(len),
                        Arg::Named(bit, names::madvise(bit).into_owned()),
                    ],
                ));
            }
        }
        if v.flags & libc::MAP_LOCKED as u32 != 0 {
            p.late.push(Call::new(
                libc::SYS_mlock,
                vec![Arg::Hex(v.start), Arg::Hex(len)],
            ));
        }
    }
    let exe = index_of(&mut p, FdRef(listed(cx, mm.exe_file_id)?.id));
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
    p.mm = (
        words,
        auxv.iter().flat_map(|w| w.to_le_bytes()).collect(),
        exe,
    );
    Ok(p)
}

fn index_of(p: &mut Plan, f: FdRef) -> usize {
    p.files.iter().position(|x| *x == f).unwrap_or_else(|| {
        p.files.push(f);
        p.files.len() - 1
    })
}

fn prot_arg(prot: u64) -> Arg {
    Arg::Named(prot, names::mmap_prot(prot))
}

impl Plan {
    /// The rows that make the mappings, once the files lie at the lowest numbers: receive, map, close.
    pub fn tape(&self, service: i32) -> Vec<Call> {
        let mut rows = receive(service, self.files.len());
        for (c, file) in &self.maps {
            let mut c = c.clone();
            if let Some(i) = file {
                c.args[4] = Arg::Int(*i as u64);
            }
            rows.push(c);
        }
        let (words, auxv, exe) = &self.mm;
        let tail: Vec<u8> = (auxv.len() as u32)
            .to_le_bytes()
            .into_iter()
            .chain((*exe as u32).to_le_bytes())
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
pub fn place(table: &[(FdRef, i32, bool)]) -> Vec<Call> {
    let mut rows = Vec::new();
    // from the highest down: a slot is never below the number its file arrived at, so nothing unmoved is overwritten
    for (i, (_, slot, cloexec)) in table.iter().enumerate().rev() {
        let flag = if *cloexec { libc::O_CLOEXEC as u64 } else { 0 };
        if *slot != i as i32 {
            rows.push(Call::new(
                libc::SYS_dup3,
                vec![
                    Arg::Int(i as u64),
                    Arg::Int(*slot as u64),
                    Arg::Named(flag, names::open_flags(flag)),
                ],
            ));
            rows.push(Call::new(libc::SYS_close, vec![Arg::Int(i as u64)]));
        } else if *cloexec {
            rows.push(Call::new(
                libc::SYS_fcntl,
                vec![
                    Arg::Int(i as u64),
                    Arg::Named(2, "F_SETFD".into()),
                    Arg::Int(1),
                ],
            ));
        }
    }
    rows
}
