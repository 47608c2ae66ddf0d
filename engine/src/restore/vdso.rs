//! The vDSO: code and data of the kernel in every address space.
//!
//! If the image's is byte for byte that of this kernel, the kernel's own is moved to its place. If not, programs still hold
//! addresses in the old one, so its text comes back from the image as an ordinary mapping, each of its functions begins with a
//! jump to the one of the same name in the kernel's vDSO, and that stays where the stub had it. The old data is not mapped: only
//! the old functions read it, and nobody gets into them any more.
use super::images::{TaskImages, ThreadImage};
use super::memory::Plan;
use crate::dump::mm::status;
use crate::error::{Blame, Error, Result};
use crate::kinds::PlanCx;
use crate::pages::{Run, Source, Store};
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::procfs::{MapName, ProcDir};
use stasis_kernel::vm;
use stasis_proto::pb;
use std::collections::BTreeMap;

/// A piece of the vDSO (status bit VDSO) or its data (VVAR): kind, start, length; sorted by start.
pub type Special = (u32, u64, u64);

/// Each piece with its new address: where it is, if the image's vDSO is another; where the image has its kind, if that is as
/// long there; else it is dropped.
fn moves(now: &[Special], m: &Plan) -> Vec<(Special, Option<u64>)> {
    let total =
        |v: &[Special], kind: u32| -> u64 { v.iter().filter(|x| x.0 == kind).map(|x| x.2).sum() };
    if m.foreign.is_some() {
        return now.iter().map(|x| (*x, Some(x.1))).collect();
    }
    let wanted = &m.vdso;
    let mut moves = Vec::new();
    for kind in [status::VVAR, status::VDSO] {
        let fits = total(now, kind) == total(wanted, kind);
        let first = wanted.iter().find(|x| x.0 == kind);
        let mut to = first.map(|x| x.1).filter(|_| fits);
        for x in now.iter().filter(|x| x.0 == kind) {
            moves.push((*x, to));
            to = to.map(|t| t + x.2);
        }
    }
    moves
}

/// Where the pieces are afterwards.
pub fn moved(now: &[Special], m: &Plan) -> Vec<Special> {
    let all = moves(now, m).into_iter();
    all.filter_map(|((kind, _, len), to)| Some((kind, to?, len)))
        .collect()
}

/// Brings the vDSO to where the image has it, or drops it.
pub fn rows(now: &[Special], m: &Plan) -> Vec<Call> {
    let all = moves(now, m).into_iter();
    let rows = all.filter_map(|((_, at, len), to)| match to {
        Some(to) if to == at => None,
        Some(to) => Some(move_to(at, len, to)),
        None => Some(Call::new(
            libc::SYS_munmap,
            vec![Arg::Hex(at), Arg::Hex(len)],
        )),
    });
    rows.collect()
}

/// Moves a whole mapping.
pub fn move_to(from: u64, len: u64, to: u64) -> Call {
    const MAYMOVE_FIXED: u64 = 3;
    Call::new(
        libc::SYS_mremap,
        vec![
            Arg::Hex(from),
            Arg::Hex(len),
            Arg::Hex(len),
            Arg::Named(MAYMOVE_FIXED, "MREMAP_MAYMOVE|MREMAP_FIXED".into()),
            Arg::Hex(to),
        ],
    )
    .must_be(to)
}

/// The text of this kernel's vDSO; empty where there is none.
pub fn own() -> Result<Vec<u8>> {
    let pid = HostPid::own();
    let maps = ProcDir::open(pid)?.maps()?;
    let Some(m) = maps.iter().find(|m| m.name() == MapName::Vdso) else {
        return Ok(Vec::new());
    };
    let mut b = vec![0u8; m.len() as usize];
    vm::read(pid, RemotePtr(m.start), &mut b)?;
    Ok(b)
}

/// `movabs $target,%rax; jmp *%rax`: its length.
const JUMP: u64 = 12;

/// A vDSO of another kernel: functions of it, by address, and those that replace them, by offset in this kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    jumps: Vec<(u64, u64)>,
}

impl Foreign {
    /// Compares the image's vDSO with the kernel's own; `None` if it is the same, or the image does not hold it.
    pub fn plan(
        t: &TaskImages,
        v: &pb::VmaEntry,
        cx: &PlanCx,
        own: &[u8],
        sources: &[Source],
        pages: &[Run],
    ) -> Result<Option<Self>> {
        let len = v.end - v.start;
        let run = pages
            .iter()
            .find(|(a, n, _)| *a <= v.start && v.end <= a + n);
        let Some(run) = run.filter(|_| len <= 1 << 20) else {
            return Ok(None);
        };
        let mut old = vec![0u8; len as usize];
        Store::open(cx.dir, sources)?.read(&mut old, run.2 + (v.start - run.0))?;
        if old == own {
            return Ok(None);
        }
        let refuse = |why: &str| {
            Error::new(
                "E6131",
                Blame::Host,
                format!("vDSO of task {}", t.entry.pid),
            )
            .why(format!("it was dumped on another kernel, and {why}"))
            .advice("restore on the kernel where it was dumped")
        };
        let inside = |th: &&ThreadImage| (v.start..v.end).contains(&th.ip);
        if let Some(th) = t.threads.iter().find(inside) {
            return Err(refuse(&format!(
                "thread {} was stopped inside of it",
                th.tid
            )));
        }
        let jumps = jumps(&functions(&old), &functions(own), len).map_err(|w| refuse(&w))?;
        let jumps = jumps.into_iter().map(|(o, n)| (v.start + o, n)).collect();
        Ok(Some(Self { jumps }))
    }
    /// Writes the jumps, once the old text is in place. `now`: where the kernel's vDSO is.
    pub fn connect(&self, pid: HostPid, now: &[Special]) -> Result<()> {
        let new = now.iter().find(|x| x.0 == status::VDSO);
        let new = new.ok_or_else(|| Error::bug("no vDSO to jump to"))?.1;
        for (from, to) in &self.jumps {
            let mut code = vec![0x48, 0xb8];
            code.extend((new + to).to_le_bytes());
            code.extend([0xff, 0xe0]);
            vm::write(pid, RemotePtr(*from), &code)?;
        }
        Ok(())
    }
}

/// Which offset of the old text jumps to which of the new one.
fn jumps(
    old: &BTreeMap<String, u64>,
    new: &BTreeMap<String, u64>,
    len: u64,
) -> std::result::Result<Vec<(u64, u64)>, String> {
    let mut out: BTreeMap<u64, u64> = BTreeMap::new();
    for (name, at) in old {
        match new.get(name) {
            Some(to) => drop(out.insert(*at, *to)),
            // only enclaves call it, and they do not survive a dump
            None if name.contains("sgx") => {}
            None => return Err(format!("this one has no {name}")),
        }
    }
    if out.is_empty() {
        return Err("it exports no function".into());
    }
    let ends = out.keys().skip(1).copied().chain([len]);
    for (at, end) in out.keys().zip(ends) {
        if at + JUMP > end {
            return Err(format!(
                "a function of it at {at:#x} is too short for a jump"
            ));
        }
    }
    Ok(out.into_iter().collect())
}

/// Exported functions of an ELF image, by name; nothing where it makes no sense. The bytes may be anybody's.
fn functions(b: &[u8]) -> BTreeMap<String, u64> {
    parse(b).unwrap_or_default()
}

fn parse(b: &[u8]) -> Option<BTreeMap<String, u64>> {
    let bytes = |at: u64, n: usize| b.get(at as usize..)?.get(..n);
    let word = |at: u64| Some(u64::from_le_bytes(bytes(at, 8)?.try_into().ok()?));
    let half = |at: u64| {
        Some(u64::from(u16::from_le_bytes(
            bytes(at, 2)?.try_into().ok()?,
        )))
    };
    if bytes(0, 5)? != b"\x7fELF\x02" {
        return None;
    }
    // elf(5): Elf64_Ehdr e_phoff at 32, e_phentsize 54, e_phnum 56; Elf64_Phdr p_type 0, p_offset 8, p_vaddr 16, p_filesz 32
    let (table, size, n) = (word(32)?, half(54)?, half(56)?);
    let (mut base, mut dynamic) = (None, None);
    for i in 0..n {
        let at = table.checked_add(i * size)?;
        match word(at)? as u32 {
            1 if base.is_none() => base = Some(word(at + 16)?.wrapping_sub(word(at + 8)?)),
            2 => dynamic = Some((word(at + 8)?, word(at + 32)?)),
            _ => {}
        }
    }
    let (base, (dynamic, len)) = (base?, dynamic?);
    let entry = |tag: u64| {
        (0..len / 16)
            .map(|i| dynamic + i * 16)
            .find(|at| word(*at) == Some(tag))
            .and_then(|at| Some(word(at + 8)?.wrapping_sub(base)))
    };
    let (strings, symbols) = (entry(5)?, entry(6)?);
    // DT_HASH knows how many there are; without it the names follow the symbols
    let n = match entry(4) {
        Some(hash) => word(hash)? >> 32,
        None => strings.checked_sub(symbols)? / 24,
    };
    let mut out = BTreeMap::new();
    for i in 0..n.min(4096) {
        // Elf64_Sym: st_name 0, st_info 4, st_shndx 6, st_value 8
        let at = symbols.checked_add(i * 24)?;
        let head = word(at)?;
        let (name, kind, section) = (head as u32, head >> 32 & 0xf, head >> 48);
        if kind != 2 || section == 0 {
            continue;
        }
        let text = b.get(strings.checked_add(name.into())? as usize..)?;
        let end = text.iter().position(|c| *c == 0)?;
        let name = String::from_utf8_lossy(&text[..end]).into_owned();
        out.insert(name, word(at + 8)?.wrapping_sub(base));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_this_kernels_vdso_are_found() {
        let own = own().unwrap();
        let f = functions(&own);
        for name in [
            "__vdso_clock_gettime",
            "__vdso_gettimeofday",
            "__vdso_getcpu",
        ] {
            assert!(
                f.get(name).is_some_and(|at| *at < own.len() as u64),
                "{f:?}"
            );
        }
        // aliases share an address, so there are fewer jumps than names
        let j = jumps(&f, &f, own.len() as u64).unwrap();
        assert!(!j.is_empty() && j.len() < f.len() && j.iter().all(|(a, b)| a == b));
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let own = own().unwrap();
        for n in (0..own.len()).step_by(61) {
            functions(&own[..n]);
            let mut b = own.clone();
            for x in b.iter_mut().skip(n).take(7) {
                *x = !*x;
            }
            functions(&b);
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        let f = |list: &[(&str, u64)]| {
            list.iter()
                .map(|(n, a)| (n.to_string(), *a))
                .collect::<BTreeMap<_, _>>()
        };
        let new = f(&[("a", 64), ("b", 128)]);
        assert_eq!(
            jumps(&f(&[("a", 32), ("b", 256)]), &new, 4096),
            Ok(vec![(32, 64), (256, 128)])
        );
        assert!(jumps(&f(&[("c", 32)]), &new, 4096).is_err_and(|e| e.contains("no c")));
        assert!(jumps(&f(&[("a", 32), ("b", 40)]), &new, 4096).is_err());
        assert!(jumps(&f(&[("a", 4090)]), &new, 4096).is_err());
        assert!(jumps(&f(&[]), &new, 4096).is_err());
    }
}
