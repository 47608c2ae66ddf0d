/// Lines of a map: first id inside, first outside, how many.
pub type Extents = Vec<(u32, u32, u32)>;

/// How a user namespace numbers owners: rows of (number inside, number outside, how many), as /proc/PID/uid_map and gid_map show
/// them to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Users.
    pub users: Extents,
    /// Groups.
    pub groups: Extents,
    /// The engine's own user namespace, as it shows itself: rows of users, and of groups.
    pub engine: (Extents, Extents),
}

/// The number of those who have none (/proc/sys/kernel/overflowuid).
const NOBODY: u32 = 65534;

impl Default for Ids {
    /// The engine's own user namespace.
    fn default() -> Self {
        let all = vec![(0, 0, u32::MAX)];
        Self {
            users: all.clone(),
            groups: all.clone(),
            engine: (all.clone(), all),
        }
    }
}

impl Ids {
    /// The owner that an option of a file system tells (`uid=`, `gid=`): the kernel shows it as the machine's first user
    /// namespace has it, which need not be the engine's. `None`: one whom the tree does not know.
    pub fn in_option(&self, key: &str, id: u32) -> Option<u32> {
        let known = |id: &u32| *id != NOBODY;
        Some(match key {
            "uid" => self.user(Some(inside(&self.engine.0, id)).filter(known)?),
            _ => self.group(Some(inside(&self.engine.1, id)).filter(known)?),
        })
        .filter(known)
    }
    /// A user of the machine, as the tree knows it.
    pub fn user(&self, id: u32) -> u32 {
        inside(&self.users, id)
    }
    /// A group of the machine, as the tree knows it.
    pub fn group(&self, id: u32) -> u32 {
        inside(&self.groups, id)
    }
    /// The rows of a map of /proc.
    pub fn rows(text: &[u8]) -> Option<Extents> {
        let text = std::str::from_utf8(text).ok()?;
        let row = |line: &str| {
            let mut n = line.split_ascii_whitespace().map(|w| w.parse().ok());
            Some((n.next()??, n.next()??, n.next()??))
        };
        text.lines().map(row).collect()
    }
}

fn inside(rows: &[(u32, u32, u32)], id: u32) -> u32 {
    rows.iter()
        .find_map(|(inside, outside, count)| {
            let n = id.checked_sub(*outside).filter(|n| n < count)?;
            inside.checked_add(n)
        })
        .unwrap_or(NOBODY)
}

#[test]
fn numbers_are_those_of_the_tree() {
    let rows = Ids::rows(b"         0     100000      65536\n     70000          7          1\n")
        .expect("rows");
    let ids = Ids {
        users: rows.clone(),
        groups: rows,
        ..Default::default()
    };
    assert_eq!((ids.user(100_000), ids.group(100_033)), (0, 33));
    assert_eq!((ids.user(7), ids.user(0)), (70_000, NOBODY));
    assert_eq!(Ids::default().user(4_000_000_000), 4_000_000_000);
    assert_eq!(Ids::rows(b"0 x 1"), None);
    let engine = vec![(100_000, 5, 1)];
    let rootless = Ids {
        engine: (engine.clone(), engine),
        ..ids
    };
    assert_eq!(rootless.in_option("uid", 5), Some(0));
    assert_eq!(rootless.in_option("gid", 100_000), None);
}
