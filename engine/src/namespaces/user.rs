//! User namespaces: their maps (`userns-N.img`), and users and groups as tasks see them.
//!
//! In an image users and groups are those of the tree's user namespace. The engine sees them as its own namespace has them, so
//! what it reads from outside goes through [`Ids`].
use crate::error::{Blame, Error, Result};
use stasis_kernel::error::SysError;
use stasis_kernel::ids::HostPid;
use stasis_proto::{ImageDir, Kind, pb};

/// Who has no number in a user namespace is seen as this (/proc/sys/kernel/overflowuid, a default nobody changes).
pub const OVERFLOW: u32 = 65534;
/// Most lines of a map (linux/user_namespace.h, UID_GID_MAP_MAX_EXTENTS).
const MOST_LINES: usize = 340;

/// Users and groups as the tree's user namespace has them. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    uid: Vec<pb::UidGidExtent>,
    gid: Vec<pb::UidGidExtent>,
    own: bool,
}

impl Ids {
    /// Of a task whose user namespace is another than the engine's.
    ///
    /// # Errors
    /// Failures to read /proc.
    pub fn of(task: HostPid) -> Result<Self> {
        Ok(Self {
            uid: read(task, "uid_map")?,
            gid: read(task, "gid_map")?,
            own: true,
        })
    }
    /// The user inside for one the engine sees.
    pub fn uid(&self, seen: u32) -> u32 {
        self.inside(&self.uid, seen)
    }
    /// The group inside.
    pub fn gid(&self, seen: u32) -> u32 {
        self.inside(&self.gid, seen)
    }
    /// As the maps of an image have them.
    pub fn of_image(maps: &Maps) -> Self {
        Self {
            uid: maps.0.uid_map.clone(),
            gid: maps.0.gid_map.clone(),
            own: true,
        }
    }
    /// The user that the engine sees for one inside; `None` if there is none.
    pub fn uid_outside(&self, inside: u32) -> Option<u32> {
        let at = |e: &pb::UidGidExtent| {
            let n = inside.checked_sub(e.first).filter(|n| *n < e.count)?;
            e.lower_first.checked_add(n)
        };
        match self.own {
            true => self.uid.iter().find_map(at),
            false => Some(inside),
        }
    }
    /// Have all users and groups of these credentials a number inside? The number may be any, that of nobody ([`OVERFLOW`]) too.
    pub fn knows(&self, c: &pb::CredsEntry) -> bool {
        let users = [c.uid, c.euid, c.suid, c.fsuid];
        let groups = [c.gid, c.egid, c.sgid, c.fsgid];
        let known = |map, n: &u32| self.find(map, *n).is_some();
        let mut groups = groups.iter().chain(&c.groups);
        users.iter().all(|n| known(&self.uid, n)) && groups.all(|n| known(&self.gid, n))
    }
    /// Credentials as the task itself sees them.
    pub fn creds(&self, c: pb::CredsEntry) -> pb::CredsEntry {
        pb::CredsEntry {
            uid: self.uid(c.uid),
            euid: self.uid(c.euid),
            suid: self.uid(c.suid),
            fsuid: self.uid(c.fsuid),
            gid: self.gid(c.gid),
            egid: self.gid(c.egid),
            sgid: self.gid(c.sgid),
            fsgid: self.gid(c.fsgid),
            groups: c.groups.iter().map(|g| self.gid(*g)).collect(),
            ..c
        }
    }
    fn inside(&self, map: &[pb::UidGidExtent], seen: u32) -> u32 {
        self.find(map, seen).unwrap_or(OVERFLOW)
    }
    fn find(&self, map: &[pb::UidGidExtent], seen: u32) -> Option<u32> {
        if !self.own || seen == u32::MAX {
            return Some(seen);
        }
        let at = |e: &pb::UidGidExtent| {
            let n = seen.checked_sub(e.lower_first).filter(|n| *n < e.count)?;
            e.first.checked_add(n)
        };
        map.iter().find_map(at)
    }
}

/// A user namespace below the tree's, by a process in it. `own`, `above`: numbers of this one, and of the one it was made in.
pub fn describe(task: HostPid, own: &Ids, above: &Ids) -> pb::UsernsEntry {
    let as_above = |map: &[pb::UidGidExtent], lower: &dyn Fn(u32) -> u32| {
        let line = |e: &pb::UidGidExtent| pb::UidGidExtent {
            lower_first: lower(e.lower_first),
            ..*e
        };
        map.iter().map(line).collect()
    };
    pb::UsernsEntry {
        uid_map: as_above(&own.uid, &|l| above.uid(l)),
        gid_map: as_above(&own.gid, &|l| above.gid(l)),
        stasis_setgroups_denied: denies_groups(task),
    }
}

/// Is setgroups(2) denied where this task is?
fn denies_groups(task: HostPid) -> Option<bool> {
    let groups = std::fs::read_to_string(format!("/proc/{}/setgroups", task.0));
    groups.is_ok_and(|g| g.trim() == "deny").then_some(true)
}

fn read(task: HostPid, name: &str) -> Result<Vec<pb::UidGidExtent>> {
    let path = format!("/proc/{}/{name}", task.0);
    let text = std::fs::read_to_string(&path).map_err(|e| {
        let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
        SysError::new("openat", errno, path.clone())
    })?;
    parse(&text).ok_or_else(|| {
        Error::new("E3060", Blame::Kernel, path)
            .why("its lines are not three numbers each")
            .advice("this kernel writes /proc in a form stasis does not know: please report it")
    })
}

/// Lines of user_namespaces(7): first inside, first outside, how many.
fn parse(text: &str) -> Option<Vec<pb::UidGidExtent>> {
    let line = |l: &str| {
        let n: Vec<u32> = l
            .split_whitespace()
            .map(|w| w.parse().ok())
            .collect::<Option<_>>()?;
        let [first, lower_first, count] = n[..] else {
            return None;
        };
        Some(pb::UidGidExtent {
            first,
            lower_first,
            count,
        })
    };
    text.lines().map(line).collect()
}

/// Describes the user namespace of a task under this number.
///
/// # Errors
/// Failures to read /proc or to write.
pub fn dump(dir: &ImageDir, id: u32, task: HostPid) -> Result<()> {
    let entry = pb::UsernsEntry {
        uid_map: read(task, "uid_map")?,
        gid_map: read(task, "gid_map")?,
        stasis_setgroups_denied: denies_groups(task),
    };
    Ok(dir.write_one(&Kind::Userns.file_of(id), &entry)?)
}

fn bad(of: &str, why: &str) -> Error {
    Error::new(
        "E5462",
        Blame::Image,
        format!("the map of {of} of a user namespace"),
    )
    .why(why)
    .advice("dump again")
}

/// A line of a map: first inside, first outside, how many.
type Line = (u32, u32, u32);

fn sorted(mut lines: Vec<Line>) -> Vec<Line> {
    lines.sort_unstable();
    lines
}

/// Maps that passed the checks.
#[derive(Debug, Clone, PartialEq)]
pub struct Maps(pb::UsernsEntry);

/// Reads and checks the image of this number.
///
/// # Errors
/// E5462: maps that no kernel would take.
pub fn load(dir: &ImageDir, id: u32) -> Result<Maps> {
    Maps::new(dir.read_one(&Kind::Userns.file_of(id))?)
}

impl Maps {
    /// Checks maps as the kernel would.
    ///
    /// # Errors
    /// E5462.
    pub fn new(entry: pb::UsernsEntry) -> Result<Self> {
        if entry.uid_map.is_empty() || entry.gid_map.is_empty() {
            return Err(bad("user namespace", "it maps nobody"));
        }
        Self::inner(entry)
    }
    /// The same of one below the tree's, which need not map anybody.
    ///
    /// # Errors
    /// E5462.
    pub fn inner(entry: pb::UsernsEntry) -> Result<Self> {
        for (name, map) in [("users", &entry.uid_map), ("groups", &entry.gid_map)] {
            let bad = |why| bad(name, why);
            if map.len() > MOST_LINES {
                return Err(bad("it has more lines than the kernel takes"));
            }
            let range = |from: u32, count: u32| (from, from.checked_add(count));
            for (i, e) in map.iter().enumerate() {
                let (a, b) = (range(e.first, e.count), range(e.lower_first, e.count));
                if e.count == 0 || a.1.is_none() || b.1.is_none() {
                    return Err(bad(
                        "a line stands for nobody, or goes beyond the last number",
                    ));
                }
                let meets = |x: u32, y: u32, o: &pb::UidGidExtent| {
                    u64::from(x) < u64::from(y) + u64::from(o.count)
                        && u64::from(y) < u64::from(x) + u64::from(e.count)
                };
                if map[..i]
                    .iter()
                    .any(|o| meets(e.first, o.first, o) || meets(e.lower_first, o.lower_first, o))
                {
                    return Err(bad("lines overlap"));
                }
            }
        }
        Ok(Self(entry))
    }
    /// Is setgroups(2) denied for good?
    pub fn denies_groups(&self) -> bool {
        self.0.stasis_setgroups_denied == Some(true)
    }
    /// Are these the maps the caller's spec gives (OCI `uidMappings`, `gidMappings`)? The order of lines does not matter.
    ///
    /// # Errors
    /// E6462: they differ.
    pub fn must_be(&self, users: &[Line], groups: &[Line]) -> Result<()> {
        let own = |m: &[pb::UidGidExtent]| {
            let all = m.iter().map(|e| (e.first, e.lower_first, e.count));
            sorted(all.collect())
        };
        let same = own(&self.0.uid_map) == sorted(users.to_vec())
            && own(&self.0.gid_map) == sorted(groups.to_vec());
        match same {
            true => Ok(()),
            false => Err(Error::new("E6462", Blame::Host, "the maps of the container's user namespace")
                .why("those of the image are not those of the bundle's config.json")
                .advice("restore with the bundle the container was made from, or change its uidMappings and gidMappings")),
        }
    }
    /// What makes such a namespace for this owner, below one of these maps.
    pub fn users(&self, owner: u32, above: Option<&Maps>) -> stasis_kernel::users::Users {
        stasis_kernel::users::Users {
            owner,
            group: above.and_then(|m| m.0.gid_map.first()).map(|e| e.first),
            denied: self.denies_groups(),
            uid_map: text(&self.0.uid_map),
            gid_map: text(&self.0.gid_map),
        }
    }
    /// Writes them for a process that has just made the namespace. The kernel lets the engine give away only what it has.
    ///
    /// # Errors
    /// E6463: the kernel refuses.
    pub fn write(&self, process: HostPid) -> Result<()> {
        let put = |name: &str, text: &str| {
            let path = format!("/proc/{}/{name}", process.0);
            std::fs::write(&path, text).map_err(|e| {
                Error::new("E6463", Blame::Host, format!("cannot map users or groups ({path})"))
                    .why(format!("{e}; it is {:?}", text.trim_end()))
                    .advice("users and groups outside must be the restorer's own: restore as root, or as who dumped")
            })
        };
        if self.0.stasis_setgroups_denied == Some(true) {
            put("setgroups", "deny")?;
        }
        put("gid_map", &text(&self.0.gid_map))?;
        put("uid_map", &text(&self.0.uid_map))
    }
}

/// Lines as the kernel takes them.
fn text(map: &[pb::UidGidExtent]) -> String {
    let line = |e: &pb::UidGidExtent| format!("{} {} {}\n", e.first, e.lower_first, e.count);
    map.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(u32, u32, u32)]) -> Vec<pb::UidGidExtent> {
        let e = |l: &(u32, u32, u32)| pb::UidGidExtent {
            first: l.0,
            lower_first: l.1,
            count: l.2,
        };
        lines.iter().map(e).collect()
    }

    fn maps(uid: &[(u32, u32, u32)], gid: &[(u32, u32, u32)]) -> Result<Maps> {
        Maps::new(pb::UsernsEntry {
            uid_map: map(uid),
            gid_map: map(gid),
            stasis_setgroups_denied: None,
        })
    }

    #[test]
    fn users_are_told_as_inside() {
        let ids = Ids {
            uid: map(&[(0, 300_000, 1000), (5000, 7, 1)]),
            gid: map(&[(0, 100, 10)]),
            own: true,
        };
        assert_eq!(
            (ids.uid(300_000), ids.uid(300_999), ids.uid(7)),
            (0, 999, 5000)
        );
        assert_eq!((ids.uid(0), ids.uid(301_000)), (OVERFLOW, OVERFLOW));
        assert_eq!(
            (ids.uid_outside(5), ids.uid_outside(1000)),
            (Some(300_005), None)
        );
        assert_eq!((ids.gid(105), ids.gid(110)), (5, OVERFLOW));
        assert_eq!(ids.uid(u32::MAX), u32::MAX, "nobody at all stays so");
        assert_eq!(Ids::default().uid(77), 77);
    }

    #[test]
    fn nobody_is_somebody_where_he_is_mapped() {
        let ids = Ids {
            uid: map(&[(0, 100_000, 65_536)]),
            gid: map(&[(0, 200_000, 65_536)]),
            own: true,
        };
        let of = |user: u32, group: u32| pb::CredsEntry {
            uid: user,
            euid: user,
            suid: user,
            fsuid: user,
            gid: 200_000,
            egid: 200_000,
            sgid: 200_000,
            fsgid: 200_000,
            groups: vec![group],
            ..Default::default()
        };
        let nobody = of(165_534, 265_534);
        assert_eq!(ids.creds(nobody.clone()).uid, OVERFLOW);
        assert!(ids.knows(&nobody));
        assert!(!ids.knows(&of(65_534, 265_534)) && !ids.knows(&of(165_534, 65_534)));
        assert!(Ids::default().knows(&of(7, 7)));
    }

    #[test]
    fn hostile_maps_are_refused() {
        let good = [(0, 1000, 1)];
        assert!(maps(&good, &good).is_ok());
        let many: Vec<_> = (0..=MOST_LINES as u32).map(|n| (n, n, 1)).collect();
        for bad in [
            &[][..],
            &[(0, 0, 0)],
            &[(u32::MAX, 0, 2)],
            &[(0, u32::MAX, 2)],
            &[(0, 0, 10), (5, 100, 1)],
            &[(0, 0, 10), (50, 3, 1)],
            &many,
        ] {
            assert_eq!(maps(bad, &good).unwrap_err().code, "E5462", "{bad:?}");
            assert_eq!(maps(&good, bad).unwrap_err().code, "E5462", "{bad:?}");
        }
    }

    #[test]
    fn maps_are_compared_with_the_bundles() {
        let a = maps(&[(0, 1000, 1), (1, 5000, 9)], &[(0, 0, 1)]).unwrap();
        a.must_be(&[(1, 5000, 9), (0, 1000, 1)], &[(0, 0, 1)])
            .unwrap();
        let other = a.must_be(&[(0, 0, 1), (1, 5000, 9)], &[(0, 0, 1)]);
        assert_eq!(other.unwrap_err().code, "E6462");
        assert!(a.must_be(&[(1, 5000, 9), (0, 1000, 1)], &[]).is_err());
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let text = "         0     300000      65536\n     65536          0          1\n";
        assert_eq!(
            parse(text),
            Some(map(&[(0, 300_000, 65536), (65536, 0, 1)]))
        );
        assert_eq!(parse("0 1\n"), None);
    }
}
