//! The last pass: peer groups and masters, across all namespaces.
use super::Maker;
use crate::error::{Blame, Error, Result};
use crate::tree::part_of;
use stasis_kernel::call::FdRef;
use stasis_kernel::mnt;
use std::collections::{BTreeMap, BTreeSet};

impl Maker<'_> {
    pub(super) fn share(&mut self) -> Result<()> {
        let tree = self.tree;
        let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (i, m) in tree.mounts.iter().enumerate() {
            let here = self.mounts.contains_key(&i);
            if let Some(g) = m.shared.filter(|_| here) {
                groups.entry(g).or_default().push(i);
            }
        }
        let mut done = BTreeSet::new();
        let mut left: Vec<u32> = groups.keys().copied().collect();
        while !left.is_empty() {
            let before = left.len();
            let mut again = Vec::new();
            for g in left {
                let members = &groups[&g];
                let master = tree.mounts[members[0]].master;
                if members.iter().any(|i| tree.mounts[*i].master != master) {
                    return Err(self.tangled(members[0], "its peers have other masters"));
                }
                if master.is_some_and(|m| groups.contains_key(&m) && !done.contains(&m)) {
                    again.push(g);
                    continue;
                }
                self.group(members, master.and_then(|m| groups.get(&m)))?;
                done.insert(g);
            }
            if again.len() == before {
                let first = groups[&again[0]][0];
                return Err(self.tangled(first, "masters go round in a circle"));
            }
            left = again;
        }
        for (i, m) in tree.mounts.iter().enumerate() {
            let Some(&me) = self.mounts.get(&i) else {
                continue;
            };
            self.space = m.space;
            if let (None, Some(masters)) = (m.shared, m.master.and_then(|g| groups.get(&g))) {
                let from = self.source_of_group(i, masters)?;
                self.last(
                    mnt::set_group(from, me),
                    format!("{}: its master", m.place()),
                );
                self.last(mnt::setattr(me, 0, 0, libc::MS_SLAVE), m.place());
            }
            if m.flags & libc::MS_UNBINDABLE != 0 {
                self.last(mnt::setattr(me, 0, 0, libc::MS_UNBINDABLE), m.place());
            }
        }
        Ok(())
    }
    pub(super) fn tangled(&self, i: usize, why: &str) -> Error {
        Error::new(
            "E5304",
            Blame::Image,
            format!("cannot share {}", self.tree.mounts[i].place()),
        )
        .why(why)
        .advice("dump again: this image does not describe a mount namespace")
    }
    /// KERNEL(>=5.15): a group is taken over only from a mount that shows at least as much of the same file system.
    fn source_of_group(&self, i: usize, members: &[usize]) -> Result<FdRef> {
        let m = &self.tree.mounts[i];
        let whole = |w: &&usize| part_of(m, &self.tree.mounts[**w]).is_some();
        let found = members.iter().find(whole).map(|w| self.mounts[w]);
        found.ok_or_else(|| self.tangled(i, "no mount of its group shows all of what it shows"))
    }
    fn group(&mut self, members: &[usize], masters: Option<&Vec<usize>>) -> Result<()> {
        let tree = self.tree;
        let shortest = members
            .iter()
            .copied()
            .min_by_key(|i| (tree.mounts[*i].root.len(), tree.mounts[*i].space));
        let lead = shortest.unwrap_or_default();
        self.space = tree.mounts[lead].space;
        let me = self.mounts[&lead];
        let place = tree.mounts[lead].place();
        if let Some(masters) = masters {
            let from = self.source_of_group(lead, masters)?;
            self.last(mnt::set_group(from, me), format!("{place}: its master"));
            self.last(mnt::setattr(me, 0, 0, libc::MS_SLAVE), place.clone());
        }
        if self.kept_sharing(lead) != libc::MS_SHARED || !self.comes_from_outside(lead) {
            self.last(
                mnt::setattr(me, 0, 0, libc::MS_SHARED),
                format!("{place}: first of its peers"),
            );
        }
        for &i in members.iter().filter(|i| **i != lead) {
            let m = &tree.mounts[i];
            self.space = m.space;
            if part_of(m, &tree.mounts[lead]).is_none() {
                return Err(self.tangled(i, "no peer shows all of what the others show"));
            }
            let to = self.mounts[&i];
            if self.comes_from_outside(i) {
                self.last(mnt::setattr(to, 0, 0, libc::MS_PRIVATE), m.place());
            }
            self.last(mnt::set_group(me, to), format!("{}: a peer", m.place()));
        }
        Ok(())
    }
}
