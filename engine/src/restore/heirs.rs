//! Copy-on-write sharing between parent and child.
//!
//! A child that was forked and never called execve still shares pages with its parent: the same addresses, the same
//! contents. Written into both they would cost their memory twice, so such a child, an *heir*, is born when its parent's
//! memory is in place, keeps the mappings both have, drops what only the parent has, and gets only the pages whose
//! contents differ. All other children are born from the empty stub.
//!
//! Pure code: ranges in, ranges out. Which pages differ is seen only when the images are read, see `fill`.
use super::memory::{Mapping, Origin};

/// What an heir does with its parent's memory, in this order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Estate {
    /// Unmapped: start, length.
    pub unmap: Vec<(u64, u64)>,
    /// Longer than the parent's: start, length there, length here.
    pub grow: Vec<(u64, u64, u64)>,
    /// Protected otherwise while it is filled: start, length, protection.
    pub protect: Vec<(u64, u64, u64)>,
    /// Pages only the parent has: start, length.
    pub forget: Vec<(u64, u64)>,
    /// Pages both have: address, length, offset in the own image, offset in the parent's.
    pub compare: Vec<(u64, u64, u64, u64)>,
    /// Bytes of pages that both have in the same place of the same image: they stay as they are.
    pub same: u64,
    /// Pages only the child has, or in mappings of its own: address, length, offset in the own image.
    pub write: Vec<(u64, u64, u64)>,
}

impl Estate {
    /// Takes out of what is compared the pages of which it is known that they are the same: `same` is asked by both offsets.
    pub fn know(&mut self, same: impl Fn(u64, u64) -> bool) {
        self.compare.retain(|(_, len, own, theirs)| {
            let known = same(*own, *theirs);
            self.same += if known { *len } else { 0 };
            !known
        });
    }
    /// Whether pages of the parent stay, or are compared.
    pub fn keeps(&self) -> bool {
        !self.compare.is_empty() || self.same > 0
    }
}

/// Pages of an address space: address, length, offset in the pages image; sorted.
pub type Pages = [(u64, u64, u64)];

/// Whether anything is worth inheriting: a private mapping of both in which both have pages.
pub fn is_heir(own: &[Mapping], pages: &Pages, parents: &[Mapping], theirs: &Pages) -> bool {
    let has = |p: &Pages, (s, e): (u64, u64)| p.iter().any(|(a, n, _)| *a < e && a + n > s);
    own.iter().any(|m| {
        m.private && kept(m, parents).is_some_and(|k| has(pages, k.range) && has(theirs, k.range))
    })
}

/// A mapping that stays, and how.
struct Kept<'a> {
    of: &'a Mapping,
    /// The addresses both have.
    range: (u64, u64),
    grows: bool,
}

/// The parent's mapping that can become this one without being made anew: it covers it, or begins with it and can grow.
fn kept<'a>(m: &Mapping, parents: &'a [Mapping]) -> Option<Kept<'a>> {
    const HUGETLB: u64 = libc::MAP_HUGETLB as u64;
    let i = parents
        .partition_point(|p| p.start <= m.start)
        .checked_sub(1)?;
    let of = &parents[i];
    let same = m.start < of.end()
        && of.flags == m.flags
        && of.file == m.file
        && of.origin == m.origin
        && of.huge == m.huge
        && m.origin != Origin::Ring
        && (m.file.is_none() || m.offset.wrapping_sub(of.offset) == m.start - of.start)
        && m.flags & HUGETLB == 0;
    let grows = m.end() > of.end();
    // a neighbour in the parent may lie where it would grow; pieces of one mapping cannot all grow
    let free = parents.get(i + 1).is_none_or(|next| next.start >= m.end());
    if !same || grows && (of.start != m.start || !free) {
        return None;
    }
    let range = (m.start, m.end().min(of.end()));
    Some(Kept { of, range, grows })
}

/// What becomes of the parent's memory. Gives also which of the own mappings are kept, by index.
pub fn settle(
    own: &[Mapping],
    pages: &Pages,
    parents: &[Mapping],
    theirs: &Pages,
) -> (Estate, Vec<bool>) {
    let mut e = Estate::default();
    let mut keep = vec![false; own.len()];
    let mut common: Vec<(u64, u64)> = Vec::new();
    let mut stays: Vec<(u64, u64)> = Vec::new();
    for (i, m) in own.iter().enumerate() {
        let Some(k) = kept(m, parents) else { continue };
        keep[i] = true;
        stays.push(k.range);
        if m.private {
            common.push(k.range);
        }
        if k.grows {
            e.grow.push((m.start, k.of.len, m.len));
        }
        if m.prot != k.of.prot {
            e.protect.push((m.start, m.len, m.prot));
        }
    }
    let all: Vec<_> = parents.iter().map(|p| (p.start, p.end())).collect();
    e.unmap = minus(&all, &stays)
        .into_iter()
        .map(|(s, x)| (s, x - s))
        .collect();
    let ranges = |p: &Pages| -> Vec<(u64, u64)> { p.iter().map(|(a, n, _)| (*a, a + n)).collect() };
    let (own_pages, their_pages) = (ranges(pages), ranges(theirs));
    let inherited = both(&their_pages, &common);
    e.forget = minus(&inherited, &own_pages)
        .into_iter()
        .map(|(s, x)| (s, x - s))
        .collect();
    for (a, n, at) in pages {
        let mine = [(*a, a + n)];
        for (s, x) in both(&mine, &inherited) {
            let first = theirs.partition_point(|p| p.0 + p.1 <= s);
            for (pa, pn, pat) in theirs[first..].iter().take_while(|p| p.0 < x) {
                let (s, x) = (s.max(*pa), x.min(pa + pn));
                e.compare.push((s, x - s, at + (s - a), pat + (s - pa)));
            }
        }
        e.write.extend(
            minus(&mine, &inherited)
                .into_iter()
                .map(|(s, x)| (s, x - s, at + (s - a))),
        );
    }
    (e, keep)
}

/// The parts of sorted ranges `a` that lie in the sorted ranges `b`.
fn both(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut from = 0;
    for (s, e) in a {
        while from < b.len() && b[from].1 <= *s {
            from += 1;
        }
        for (bs, be) in &b[from..] {
            if bs >= e {
                break;
            }
            out.push((*s.max(bs), *e.min(be)));
        }
    }
    out
}

/// The parts of sorted ranges `a` that do not lie in the sorted ranges `b`.
pub(crate) fn minus(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut from = 0;
    for (s, e) in a {
        while from < b.len() && b[from].1 <= *s {
            from += 1;
        }
        let mut at = *s;
        for (bs, be) in &b[from..] {
            if bs >= e {
                break;
            }
            if *bs > at {
                out.push((at, *bs));
            }
            at = at.max(*be);
        }
        if at < *e {
            out.push((at, *e));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_kernel::call::FdRef;

    const P: u64 = 4096;

    /// A private anonymous mapping of `n` pages from page `at`.
    fn anon(at: u64, n: u64) -> Mapping {
        Mapping {
            start: at * P,
            len: n * P,
            prot: 3,
            flags: 0x22,
            offset: 0,
            file: None,
            private: true,
            origin: Origin::Map,
            huge: None,
        }
    }

    fn pages(list: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
        let mut at = 0;
        let mut out = Vec::new();
        for (a, n) in list {
            out.push((a * P, n * P, at));
            at += n * P;
        }
        out
    }

    #[test]
    fn only_common_pages_in_common_mappings_make_an_heir() {
        let one = [anon(10, 8)];
        let p = pages(&[(10, 2)]);
        assert!(is_heir(&one, &p, &one, &p));
        assert!(!is_heir(&one, &p, &one, &[]));
        assert!(!is_heir(&one, &p, &[anon(100, 8)], &pages(&[(100, 2)])));
        let shared = [Mapping {
            private: false,
            flags: 0x21,
            ..anon(10, 8)
        }];
        assert!(!is_heir(&shared, &p, &shared, &p));
        let file = |f| {
            [Mapping {
                file: Some(FdRef(f)),
                ..anon(10, 8)
            }]
        };
        assert!(is_heir(&file(1), &p, &file(1), &p));
        assert!(!is_heir(&file(1), &p, &file(2), &p));
    }

    #[test]
    fn pages_are_compared_forgotten_or_written() {
        let m = [anon(10, 10)];
        // parent: 10-14; child: 12-16
        let (e, keep) = settle(&m, &pages(&[(12, 4)]), &m, &pages(&[(10, 4)]));
        assert_eq!(keep, [true]);
        assert_eq!(e.unmap, []);
        assert_eq!(e.forget, [(10 * P, 2 * P)]);
        assert_eq!(e.compare, [(12 * P, 2 * P, 0, 2 * P)]);
        assert_eq!(e.write, [(14 * P, 2 * P, 2 * P)]);
    }

    #[test]
    fn what_the_child_has_not_is_unmapped_and_a_longer_heap_grows() {
        let parent = [anon(10, 4), anon(20, 4), anon(30, 4)];
        let own = [anon(10, 6), anon(21, 2), anon(50, 1)];
        let (e, keep) = settle(
            &own,
            &pages(&[(10, 6), (50, 1)]),
            &parent,
            &pages(&[(10, 4), (20, 4), (30, 1)]),
        );
        assert_eq!(keep, [true, true, false]);
        assert_eq!(e.grow, [(10 * P, 4 * P, 6 * P)]);
        assert_eq!(e.unmap, [(20 * P, P), (23 * P, P), (30 * P, 4 * P)]);
        assert_eq!(e.forget, [(21 * P, 2 * P)]);
        assert_eq!(e.compare, [(10 * P, 4 * P, 0, 0)]);
        assert_eq!(e.write, [(14 * P, 2 * P, 4 * P), (50 * P, P, 6 * P)]);
    }

    #[test]
    fn a_mapping_does_not_grow_over_a_neighbour() {
        let (e, keep) = settle(&[anon(10, 6)], &[], &[anon(10, 4), anon(15, 1)], &[]);
        assert_eq!(keep, [false]);
        assert_eq!(e.unmap, [(10 * P, 4 * P), (15 * P, P)]);
    }

    #[test]
    fn another_protection_is_set_for_the_child_alone() {
        let own = [Mapping {
            prot: 1,
            ..anon(10, 4)
        }];
        let (e, keep) = settle(&own, &[], &[anon(10, 4)], &[]);
        assert_eq!((keep[0], e.protect), (true, vec![(10 * P, 4 * P, 1)]));
    }
}
