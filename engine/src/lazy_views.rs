//! Where the tasks show shared memory that is still being brought.
//!
//! A page of shared memory is missing for all who map it, and once it is there it may be written, or given back. So what is missing is
//! known by object, not by address space: the pager has a mapping of its own of each object, a window, which is one more
//! [`Space`], and pages come there, whatever the tasks do with their mappings meanwhile. A fault of a task is served in the
//! window; then the task is woken.
//!
//! The kernel does not tell of mappings that grow. So each view reaches to the end of its object: what it may grow by has no data.
//! Where a task changes that (it unmaps a part, or has mremap(2) move, cut or double a mapping), pages of the object could come to lie at
//! addresses that nobody knows, so the rest of the object is brought before any other fault of that task is served.
//! Where a task unmaps all of a view, that may be so for a child only: its objects are brought before a page of zeroes is given to it.
use crate::lazy::Space;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A range of addresses that shows shared memory.
#[derive(Clone)]
pub struct View {
    /// First address behind it.
    pub end: u64,
    /// Where the object is brought.
    pub object: Arc<Space>,
    /// The address there of what the view shows first.
    pub own: u64,
}

/// The views of an address space.
#[derive(Clone, Default)]
pub struct Views {
    /// By first address.
    known: BTreeMap<u64, View>,
    /// What the space has unmapped wholly.
    dropped: Vec<Arc<Space>>,
    /// What it may show at addresses that nobody knows.
    unknown: Vec<Arc<Space>>,
}

impl Extend<(u64, View)> for Views {
    fn extend<T: IntoIterator<Item = (u64, View)>>(&mut self, views: T) {
        self.known.extend(views);
    }
}

impl Views {
    /// What an address shows: the object, and the address there.
    pub fn at(&self, addr: u64) -> Option<(Arc<Space>, u64)> {
        let (start, v) = self.known.range(..=addr).next_back()?;
        (addr < v.end).then(|| (v.object.clone(), v.own + (addr - start)))
    }
    /// Where the view begins that an address lies in.
    pub fn start(&self, addr: u64) -> Option<u64> {
        let (start, v) = self.known.range(..=addr).next_back()?;
        (addr < v.end).then_some(*start)
    }
    /// A range was moved, or doubled: the objects that must be brought now.
    pub fn moved(&mut self, from: u64, len: u64) -> Vec<Arc<Space>> {
        // a length of 0 doubles the mapping
        let touched = self.take(from, from + len.max(1));
        touched.into_iter().map(|(_, v)| v.object).collect()
    }
    /// A range was unmapped: the objects that must be brought now.
    pub fn unmapped(&mut self, from: u64, to: u64) -> Vec<Arc<Space>> {
        let touched = self.take(from, to).into_iter();
        let (cut, whole): (Vec<_>, Vec<_>) =
            touched.partition(|(start, v)| *start < from || v.end > to);
        self.dropped
            .extend(whole.into_iter().map(|(_, v)| v.object));
        cut.into_iter().map(|(_, v)| v.object).collect()
    }
    /// Of a child. KERNEL: threads that fork and unmap at the same time are told of in any order, so a child may still have what was
    /// unmapped before its birth was told.
    pub fn of_child(&self) -> Self {
        let mut child = self.clone();
        child.unknown.append(&mut child.dropped);
        child
    }
    /// The objects that must be brought before an address that shows nothing known is said to be zeroes.
    pub fn unknown(&mut self) -> Vec<Arc<Space>> {
        std::mem::take(&mut self.unknown)
    }
    /// Addresses that show what is still missing: start, end.
    pub fn lacks(&self) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        for (start, v) in &self.known {
            let own_end = v.own + (v.end - start);
            for (a, b) in v.object.missing() {
                let (a, b) = (a.max(v.own), b.min(own_end));
                if a < b {
                    all.push((start + (a - v.own), start + (b - v.own)));
                }
            }
        }
        all
    }
    /// Takes the views out that reach into a range.
    fn take(&mut self, from: u64, to: u64) -> Vec<(u64, View)> {
        let there = self.known.range(..to).rev();
        let there: Vec<u64> = there
            .take_while(|(_, v)| v.end > from)
            .map(|(s, _)| *s)
            .collect();
        let taken = there.into_iter();
        taken.filter_map(|s| self.known.remove_entry(&s)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_kernel::ids::HostPid;

    fn object() -> Arc<Space> {
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        let runs = [(0x10_1000, 0x2000, 0), (0x10_7000, 0x1000, 0x2000)];
        Arc::new(Space::new(HostPid::own(), fd, 0, &runs))
    }

    fn views(o: &Arc<Space>) -> Views {
        let view = |end, own| View {
            end,
            own,
            object: o.clone(),
        };
        let mut v = Views::default();
        v.extend([
            (0x4000, view(0xc000, 0x10_0000)),
            (0x2_0000, view(0x2_4000, 0x10_4000)),
        ]);
        v
    }

    #[test]
    fn addresses_lead_to_the_window() {
        let o = object();
        let v = views(&o);
        assert!(v.at(0x3fff).is_none() && v.at(0xc000).is_none());
        assert_eq!(v.at(0x5000).unwrap().1, 0x10_1000);
        assert_eq!(v.at(0x2_3000).unwrap().1, 0x10_7000);
        let lacks = [(0x5000, 0x7000), (0xb000, 0xc000), (0x2_3000, 0x2_4000)];
        assert_eq!(v.lacks(), lacks);
    }

    #[test]
    fn who_may_come_upon_pages_elsewhere_has_them_brought_first() {
        let o = object();
        // a whole view that goes shows nothing any more
        let mut v = views(&o);
        assert!(v.unmapped(0x1000, 0xc000).is_empty());
        assert!(v.at(0x5000).is_none() && v.at(0x2_0000).is_some());
        // but a child may have been born before, and have it
        let mut child = v.of_child();
        assert_eq!((v.unknown().len(), child.unknown().len()), (0, 1));
        assert!(child.unknown().is_empty());
        // a part: what is left may grow again
        assert_eq!(views(&o).unmapped(0x8000, 0xc000).len(), 1);
        assert_eq!(views(&o).unmapped(0x4000, 0x5000).len(), 1);
        assert_eq!(views(&o).unmapped(0x5000, 0x2_1000).len(), 2);
        assert!(views(&o).unmapped(0xc000, 0x2_0000).is_empty());
        // moved, as a whole or not, or doubled
        for (from, len) in [(0x4000, 0x8000), (0x5000, 0x1000), (0x5000, 0)] {
            let mut v = views(&o);
            assert_eq!(v.moved(from, len).len(), 1);
            assert!(v.at(0x5000).is_none());
        }
        assert!(views(&o).moved(0x3000, 0x1000).is_empty());
    }
}
