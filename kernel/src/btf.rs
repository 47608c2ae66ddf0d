//! The list of the kernel's own types (BTF, Documentation/bpf/btf.rst): numbers of functions, places of fields.
//!
//! A header, types one after the other, and their names. Of 150,000 types a handful is wanted, so the list is walked once for each
//! question, and nothing is kept.
use crate::bpf;
use crate::error::{SysError, SysResult};
use nix::errno::Errno;
use std::collections::HashSet;

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNC: u32 = 12;

/// A type in the list.
#[derive(Clone, Copy)]
struct Type {
    id: u32,
    at: usize,
    kind: u32,
    /// Members are told with their width in bits.
    bits: bool,
    members: usize,
}

struct Types<'a> {
    btf: &'a [u8],
    next: usize,
    end: usize,
    names: usize,
    id: u32,
}

impl<'a> Types<'a> {
    fn of(btf: &'a [u8]) -> Option<Self> {
        let mut all = Types {
            btf,
            next: 0,
            end: 0,
            names: 0,
            id: 1,
        };
        let header = all.word(4)? as usize;
        all.next = header + all.word(8)? as usize;
        all.end = all.next + all.word(12)? as usize;
        all.names = header + all.word(16)? as usize;
        Some(all)
    }
    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.btf.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }
    /// The name whose place is told at `at`.
    fn name(&self, at: usize) -> Option<&'a [u8]> {
        let from = self.btf.get(self.names + self.word(at)? as usize..)?;
        from.split(|b| *b == 0).next()
    }
    /// Has the type at this place this name?
    fn is_named(&self, at: usize, name: &str) -> bool {
        let from = self
            .word(at)
            .map_or(usize::MAX, |n| self.names.saturating_add(n as usize));
        let text = self.btf.get(from..).unwrap_or_default();
        text.strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }
    fn step(&mut self) -> Option<Type> {
        if self.next >= self.end {
            return None;
        }
        let t = self.at(self.next, self.id)?;
        let n = t.members;
        self.next += 12
            + match t.kind {
                // INT, VAR, DECL_TAG
                1 | 14 | 17 => 4,
                // ARRAY
                3 => 12,
                // STRUCT, UNION, DATASEC, ENUM64
                STRUCT | UNION | 15 | 19 => 12 * n,
                // ENUM, FUNC_PROTO
                6 | 13 => 8 * n,
                _ => 0,
            };
        self.id += 1;
        Some(t)
    }
    /// The type at a place of the list.
    fn at(&self, at: usize, id: u32) -> Option<Type> {
        let info = self.word(at + 4)?;
        Some(Type {
            id,
            at,
            kind: info >> 24 & 31,
            bits: info >> 31 == 1,
            members: (info & 0xffff) as usize,
        })
    }
    /// Bytes from the start of a structure to a field, also one of a structure without a name inside; `all` are all types.
    fn offset(&self, t: Type, field: &[u8], all: &[u32]) -> Option<u64> {
        for m in 0..t.members {
            let at = t.at + 12 + 12 * m;
            let mut bit = self.word(at + 8)?;
            if t.bits {
                bit &= 0xff_ffff;
            }
            let name = self.name(at)?;
            if name == field {
                return Some(u64::from(bit / 8));
            }
            if !name.is_empty() {
                continue;
            }
            // 0 is no type; the first in the list is 1
            let id = self.word(at + 4)?;
            let inner = self.at(*all.get(id.checked_sub(1)? as usize)? as usize, id)?;
            let known = matches!(inner.kind, STRUCT | UNION) && inner.id != t.id;
            if let Some(more) = known.then(|| self.offset(inner, field, all)).flatten() {
                return Some(u64::from(bit / 8) + more);
            }
        }
        None
    }
}

/// The number of a function of the kernel that programs may call. `None`: the kernel has no such function, or no list.
pub fn kernel_function(name: &str) -> Option<u32> {
    look(&bpf::kernel_types().ok()?, &[], Some(name)).ok()?.1
}

/// Makes a structure `Places` with bytes from the start of structures to fields of theirs, and how it is found: `ours: "struct" "field"`
/// ([`offsets`]).
macro_rules! places {
    ($($ours:ident: $of:literal $field:literal,)+) => {
        /// Where the fields lie that are read.
        #[derive(Debug)]
        struct Places {
            $($ours: u64,)+
        }

        impl Places {
            fn new() -> $crate::error::SysResult<Self> {
                let [$($ours),+] = $crate::btf::offsets([$(($of, $field)),+])?;
                Ok(Self { $($ours),+ })
            }
        }
    };
}
pub(crate) use places;

/// Bytes from the start of structures to fields of theirs, in the order in which they are asked for; of a field "" the size of the
/// whole structure.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENOENT: the kernel has no list; ENOSYS: it has no such structure or field.
pub fn offsets<const N: usize>(wanted: [(&str, &str); N]) -> SysResult<[u64; N]> {
    let found = look(&bpf::kernel_types()?, &wanted, None)?.0;
    let mut sure = [0; N];
    for ((found, what), sure) in found.into_iter().zip(wanted).zip(&mut sure) {
        *sure = found.ok_or_else(|| no_field(what))?;
    }
    Ok(sure)
}

/// That the kernel has no such structure or field.
pub(crate) fn no_field((of, field): (&str, &str)) -> SysError {
    let what = format!("struct {of}, {field}");
    SysError::new("bpf(BTF)", Errno::ENOSYS, what)
}

/// As [`offsets`], with `None` for what the kernel does not have, and the number of a function. The list is walked once.
///
/// # Errors
/// ENOSYS: it is no list.
pub(crate) fn look(
    btf: &[u8],
    wanted: &[(&str, &str)],
    function: Option<&str>,
) -> SysResult<(Vec<Option<u64>>, Option<u32>)> {
    let mut list = Types::of(btf).ok_or_else(|| no_field(("its header", "")))?;
    let mut all = Vec::new();
    let names: HashSet<&[u8]> = wanted.iter().map(|(of, _)| of.as_bytes()).collect();
    let mut structs = Vec::new();
    let mut number = None;
    while let Some(t) = list.step() {
        all.push(t.at as u32);
        match t.kind {
            // there are tens of thousands: names are not looked for their ends
            FUNC if number.is_none() && function.is_some_and(|f| list.is_named(t.at, f)) => {
                number = Some(t.id);
            }
            STRUCT => {
                let name = list.name(t.at).filter(|n| names.contains(n));
                structs.extend(name.map(|n| (n, t)));
            }
            _ => {}
        }
    }
    let find = |(of, field): &(&str, &str)| {
        let mut named = structs.iter().filter(|(name, _)| *name == of.as_bytes());
        named.find_map(|(_, t)| match *field {
            "" => list.word(t.at + 8).map(u64::from),
            f => list.offset(*t, f.as_bytes(), &all),
        })
    };
    Ok((wanted.iter().map(find).collect(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list with `struct one { u32 a; struct { u64 b; }; }`, whose inner structure comes behind it.
    fn sample() -> Vec<u8> {
        let names = b"\0one\0a\0b\0";
        let mut types = Vec::new();
        let word = |v: u32, to: &mut Vec<u8>| to.extend(v.to_le_bytes());
        for v in [1, STRUCT << 24 | 2, 16, 5, 9, 0, 0, 2, 64] {
            word(v, &mut types);
        }
        for v in [0, STRUCT << 24 | 1, 8, 7, 9, 0] {
            word(v, &mut types);
        }
        let mut all = vec![0x9f, 0xeb, 1, 0];
        for v in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            names.len() as u32,
        ] {
            word(v, &mut all);
        }
        all.extend(types);
        all.extend(names);
        all
    }

    #[test]
    fn fields_are_found_also_in_nameless_structures() {
        let wanted = [("one", "b"), ("one", "a"), ("one", "")];
        let found = look(&sample(), &wanted, None).unwrap().0;
        assert_eq!(found, [Some(8), Some(0), Some(16)]);
        let found = look(&sample(), &[("one", "c")], None).unwrap().0;
        assert_eq!(found, [None]);
    }

    #[test]
    fn a_damaged_list_is_no_panic() {
        let all = sample();
        for n in 0..all.len() {
            let _ = look(&all[..n], &[("one", "b")], Some("a"));
        }
    }
}
