//! User namespaces below the tree's: which there are, who lives in them, and what belongs to them.
//!
//! Tasks are born with the rights of the tree's user namespace, which lets the engine choose their numbers, and work there until
//! their files are in place. Then each becomes who it is, enters its own, and bears its threads: only a task alone may enter one.
//! Who is in there has no right to choose numbers outside, so threads get theirs by what the pid namespace gives out next.
use super::family::{Deed, Family, Node};
use super::images::TaskImages;
use super::privileges;
use super::spaces::bad;
use crate::error::{Blame, Error, Result};
use crate::namespaces::user::{Ids, Maps};
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::ns::Ns;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;

/// Levels that the kernel knows (kernel/user_namespace.c, create_user_ns()).
const DEEPEST: usize = 32;

/// How many there may be in a tree: far more than any has, and few enough to look through.
pub(crate) const MOST: usize = 4096;

/// One of them.
#[derive(Debug, Clone)]
pub struct UserSpace {
    /// Its number in the image.
    pub id: u32,
    /// The one it is made in; `None`: the tree's.
    pub above: Option<u32>,
    /// Its owner, as that has it.
    pub maker: u32,
    /// Its maps.
    pub maps: Maps,
}

/// All of a tree, each behind the one it is made in.
#[derive(Debug, Clone, Default)]
pub struct Users {
    all: Vec<UserSpace>,
    of_task: BTreeMap<u32, u32>,
    owners: BTreeMap<(Ns, u32), u32>,
}

impl Users {
    /// From `namespaces.img` and the images of maps.
    ///
    /// # Errors
    /// E5857: namespaces that no kernel has; E5462: maps that it would not take.
    pub fn read(dir: &ImageDir) -> Result<Self> {
        let image = Kind::Namespaces.file();
        let entries = match dir.exists(&image)? {
            true => dir.read_all::<pb::StasisNamespaceEntry>(&image)?,
            false => Vec::new(),
        };
        Self::of(entries, |id| {
            Maps::inner(dir.read_one(&Kind::Userns.file_of(id))?)
        })
    }
    /// The same of what those have.
    ///
    /// # Errors
    /// E5857; whatever `maps` says.
    pub(super) fn of(
        entries: Vec<pb::StasisNamespaceEntry>,
        maps: impl Fn(u32) -> Result<Maps>,
    ) -> Result<Self> {
        let mut all = Self::default();
        let sort = |e: &pb::StasisNamespaceEntry| {
            let mut sorts = Ns::ALL.into_iter();
            sorts.find(|n| n.flag().bits() as u32 == e.sort)
        };
        let (inner, others): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|e| sort(e) == Some(Ns::User));
        let what = |e: &pb::StasisNamespaceEntry| format!("namespace {} of namespaces.img", e.id);
        if inner.len() > MOST {
            let what = format!("{} user namespaces of namespaces.img", inner.len());
            return Err(bad(what, "they are more than a tree may have"));
        }
        let mut by_id = BTreeMap::new();
        for e in &inner {
            if by_id.insert(e.id, e).is_some() {
                return Err(bad(what(e), "it is there twice"));
            }
        }
        let mut placed = Vec::with_capacity(inner.len());
        for e in &inner {
            let above = |e: &&pb::StasisNamespaceEntry| by_id.get(&e.parent).copied();
            let depth = std::iter::successors(Some(e), above)
                .take(DEEPEST + 1)
                .count();
            if depth > DEEPEST {
                let why = "it is below itself, or deeper than the kernel lets any be";
                return Err(bad(what(e), why));
            }
            placed.push((depth, e));
        }
        placed.sort_by_key(|p| p.0);
        for (_, e) in placed {
            all.all.push(UserSpace {
                id: e.id,
                above: by_id.contains_key(&e.parent).then_some(e.parent),
                maker: e.maker.unwrap_or(0),
                maps: maps(e.id)?,
            });
        }
        for e in others {
            let (Some(ns), Some(owner)) = (sort(&e), e.owner) else {
                continue;
            };
            if !by_id.contains_key(&owner) || ns == Ns::Mnt {
                return Err(bad(what(&e), "it belongs to nobody it can belong to"));
            }
            all.owners.insert((ns, e.id), owner);
        }
        Ok(all)
    }
    /// Notes where a task lives.
    pub fn settle(&mut self, t: &TaskImages) {
        if let Some(id) = t.ids.user_ns_id.filter(|id| self.has(*id)) {
            self.of_task.insert(t.entry.pid, id);
        }
    }
    /// All, each behind the one it is made in.
    pub fn all(&self) -> &[UserSpace] {
        &self.all
    }
    fn get(&self, id: u32) -> Option<&UserSpace> {
        self.all.iter().find(|u| u.id == id)
    }
    /// The maps of one.
    pub fn maps(&self, id: u32) -> Option<&Maps> {
        self.get(id).map(|u| &u.maps)
    }
    /// Is this the number of one of them?
    pub fn has(&self, id: u32) -> bool {
        self.get(id).is_some()
    }
    /// Where a task lives, if not in the tree's.
    pub fn of_task(&self, pid: u32) -> Option<u32> {
        self.of_task.get(&pid).copied()
    }
    /// Credentials of the tree's as one of these has them; `None`: it does not have all.
    fn view(&self, id: u32, creds: &pb::CredsEntry) -> Option<pb::CredsEntry> {
        let own = self.get(id)?;
        let above = match own.above {
            Some(above) => self.view(above, creds)?,
            None => creds.clone(),
        };
        let ids = Ids::of_image(&own.maps);
        let groups = above.groups.is_empty() || !own.maps.denies_groups();
        (groups && ids.knows(&above)).then(|| ids.creds(above))
    }
    /// Rows by which a task becomes who it is. `born`: the user namespace it was born in, if that is one of these, and who it was then.
    ///
    /// # Errors
    /// E5858: it cannot become that in there.
    pub fn becoming(
        &self,
        creds: &pb::CredsEntry,
        born: Option<(u32, &pb::CredsEntry)>,
        groups: bool,
    ) -> Result<Vec<Call>> {
        let Some((id, was)) = born else {
            return Ok(privileges::identity(creds, groups));
        };
        if are_same(creds, was) {
            return Ok(Vec::new());
        }
        let there = self.view(id, creds).ok_or_else(|| {
            Error::new("E5858", Blame::Image, "users or groups of a task")
                .why("its user namespace has no numbers for them, and the first process of its pid namespace has others")
                .advice("this task cannot be brought back: dump a tree without it")
        })?;
        let denied = self.maps(id).is_some_and(Maps::denies_groups);
        Ok(privileges::identity(&there, !denied))
    }
    /// Can all who are born inside of one become who they are, by the rule of [`Users::becoming`]? `creds`: of tasks that live in one.
    ///
    /// # Errors
    /// Who cannot, and E5858.
    pub fn can_become<'a>(
        &self,
        family: &Family,
        creds: impl Fn(Node) -> Option<&'a pb::CredsEntry>,
    ) -> std::result::Result<(), (Node, Error)> {
        let entrances = family.births.iter().flatten().flat_map(|(by, deeds)| {
            let first = |d: &Deed| match d {
                Deed::Enter(first) => Some((*by, *first)),
                _ => None,
            };
            deeds.iter().filter_map(first)
        });
        let tasks = (0..family.inside.len()).map(|n| (n, n));
        for (who, like) in tasks.chain(entrances) {
            let Some(becomes) = creds(like) else {
                continue;
            };
            let born = family.inside.get(who).copied().flatten();
            let host = family.guests_of.get(who).copied().flatten();
            let was = host.map(|h| creds(h).ok_or_else(|| Error::bug("a host who lives nowhere")));
            let was = was.transpose().map_err(|e| (like, e))?;
            self.becoming(becomes, born.zip(was), true)
                .map_err(|e| (like, e))?;
        }
        Ok(())
    }
    /// To which of them a namespace belongs, if not to the tree's.
    pub fn owner(&self, ns: Ns, id: u32) -> Option<u32> {
        self.owners.get(&(ns, id)).copied()
    }
}

/// Have both the same users and groups?
fn are_same(a: &pb::CredsEntry, b: &pb::CredsEntry) -> bool {
    let who = |c: &pb::CredsEntry| {
        let ids = [
            c.uid, c.euid, c.suid, c.fsuid, c.gid, c.egid, c.sgid, c.fsgid,
        ];
        (ids, c.groups.clone())
    };
    who(a) == who(b)
}

/// Rows by which a task enters its user namespace, of which it has a handle, as who it has become; all capabilities there are its own
/// then.
pub fn entering(becoming: Vec<Call>, handle: u64, dumpable: bool) -> Vec<Call> {
    let mut rows = becoming;
    rows.push(super::grounds::entering(Arg::Int(handle), Ns::User));
    rows.push(Call::new(libc::SYS_close, vec![Arg::Int(handle)]));
    let mut kept = super::grounds::bound();
    // 2 (root only) cannot be asked for and is what such a change leaves
    kept.truncate(kept.len() - usize::from(!dumpable));
    rows.extend(kept);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sort: Ns, id: u32, parent: u32, owner: Option<u32>) -> pb::StasisNamespaceEntry {
        pb::StasisNamespaceEntry {
            id,
            sort: sort.flag().bits() as u32,
            parent,
            maker: Some(5),
            owner,
        }
    }

    fn read(entries: &[pb::StasisNamespaceEntry]) -> Result<Users> {
        Users::of(
            entries.to_vec(),
            |_| Maps::inner(pb::UsernsEntry::default()),
        )
    }

    #[test]
    fn those_above_come_first() {
        let user = |id, parent| entry(Ns::User, id, parent, None);
        let all = read(&[user(22, 21), user(21, 7), entry(Ns::Net, 23, 0, Some(22))]).unwrap();
        let order: Vec<_> = all.all().iter().map(|u| (u.id, u.above)).collect();
        assert_eq!(order, [(21, None), (22, Some(21))]);
        assert_eq!(all.owner(Ns::Net, 23), Some(22));
        assert_eq!(all.owner(Ns::Uts, 23), None);
    }

    #[test]
    fn what_no_kernel_has_is_refused() {
        let user = |id, parent| entry(Ns::User, id, parent, None);
        let deep: Vec<_> = (20..60).map(|n| user(n, n - 1)).collect();
        for bad in [
            &[user(21, 22), user(22, 21)][..],
            &[user(21, 21)],
            &[user(21, 7), user(21, 7)],
            &[user(21, 7), user(22, 21), user(21, 22)],
            &[user(21, 7), entry(Ns::Net, 23, 0, Some(24))],
            &[user(21, 7), entry(Ns::Mnt, 23, 0, Some(21))],
            &deep,
        ] {
            assert_eq!(read(bad).unwrap_err().code, "E5857", "{bad:?}");
        }
    }

    #[test]
    fn many_of_them_are_no_work() {
        let user = |id, parent| entry(Ns::User, id, parent, None);
        let most = MOST as u32;
        // children first, each with a parent of its own
        let pairs = |n: u32| (0..n).map(move |i| user(n + i, i + 1_000_000));
        let parents = |n: u32| (0..n).map(move |i| user(i + 1_000_000, 7));
        let half = most / 2;
        let fits: Vec<_> = pairs(half).chain(parents(half)).collect();
        let all = read(&fits).unwrap();
        assert_eq!(all.all().len(), MOST);
        assert_eq!(all.all()[MOST - 1].above, Some(1_000_000 + half - 1));
        let many: Vec<_> = pairs(5000).chain(parents(5000)).collect();
        let refused = read(&many).unwrap_err();
        assert_eq!((refused.code, refused.blame), ("E5857", Blame::Image));
    }

    #[test]
    fn who_is_born_inside_becomes_only_who_is_mapped_there() {
        let who = |uid| pb::CredsEntry {
            uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            ..Default::default()
        };
        let line = |lower_first| pb::UidGidExtent {
            first: 0,
            lower_first,
            count: 1,
        };
        let maps = |_| {
            Maps::inner(pb::UsernsEntry {
                uid_map: vec![line(1000)],
                gid_map: vec![line(0)],
                stasis_setgroups_denied: None,
            })
        };
        let users = Users::of(vec![entry(Ns::User, 21, 7, None)], maps).unwrap();
        // 2 is listed before its host; a helper (4) enters as the host of 3
        let family = Family {
            inside: vec![None, None, Some(21), Some(21), Some(21)],
            guests_of: vec![None, None, Some(3), None, Some(3)],
            births: vec![vec![(4, vec![Deed::Enter(1)])]],
            ..Family::default()
        };
        let check = |creds: [u32; 4]| {
            let all = creds.map(who);
            let r = users.can_become(&family, |n| all.get(n));
            r.map_err(|(n, e)| (n, e.code))
        };
        assert_eq!(check([5, 1000, 1000, 0]), Ok(()));
        assert_eq!(check([5, 7, 7, 7]), Ok(()), "all are the host");
        assert_eq!(check([5, 1000, 7, 0]), Err((2, "E5858")));
        assert_eq!(check([5, 7, 1000, 0]), Err((1, "E5858")));
    }

    #[test]
    fn who_enters_is_somebody_before() {
        let creds = pb::CredsEntry {
            uid: 1000,
            ..Default::default()
        };
        let rows: Vec<_> = entering(privileges::identity(&creds, true), 3, true)
            .iter()
            .map(|r| r.name())
            .collect();
        let at = |name: &str| rows.iter().position(|r| r.starts_with(name)).unwrap();
        assert!(at("setgroups") < at("setresgid") && at("setresgid") < at("setresuid"));
        assert!(
            at("setresuid") < at("setns") && at("setns") < rows.len() - 2,
            "{rows:?}"
        );
        let without = entering(privileges::identity(&creds, false), 3, false);
        assert_eq!(without.len(), rows.len() - 2);
    }
}
