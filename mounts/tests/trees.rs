//! Trees of mounts are built in a mount namespace, described, planned, and built again in another; mountinfo must be the same.
//! Needs the rights to make mount namespaces; nothing outside of them changes. Long because every sort of mount has its case here.
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use stasis_kernel::host::Host;
use stasis_kernel::mnt;
use stasis_kernel::ns::{self, Ns};
use stasis_kernel::procfs::MountInfo;
use stasis_mounts::archive::Devices;
use stasis_mounts::look::{Described, Layers, View, Wishes, describe};
use stasis_mounts::{Caller, Ids, Performer, Plan, Tree, archive, overlay, plan, reach};
use stasis_proto::{ImageDir, Kind};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

const NONE: Option<&str> = None;

/// A folder that becomes the root of trees, and one for images.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for d in ["root", "images", "data", "data/sub"] {
            std::fs::create_dir(dir.path().join(d)).expect("a folder");
        }
        for d in PLACES {
            std::fs::create_dir_all(dir.path().join("root").join(d)).expect("a place");
        }
        std::fs::write(dir.path().join("root/file"), "x").expect("a file");
        Self { dir }
    }
    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
    fn data(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }
    fn images(&self) -> ImageDir {
        ImageDir::create(&self.dir.path().join("images")).expect("a folder of images")
    }
}

/// Places in the root where tests mount.
const PLACES: &[&str] = &["a", "a/x", "a/x/y", "b", "b/x", "c", "c/x", "d", "old"];

fn infos(proc: &File) -> Vec<MountInfo> {
    mnt::own_mountinfo(proc.as_fd()).expect("mountinfo")
}

/// Runs in a thread of its own with a private copy of the mount namespace.
fn apart<R: Send>(f: impl FnOnce(&File) -> R + Send) -> R {
    std::thread::scope(|s| {
        s.spawn(|| {
            let proc = File::open("/proc").expect("/proc");
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("private");
            f(&proc)
        })
        .join()
        .unwrap_or_else(|p| std::panic::resume_unwind(p))
    })
}

/// The root of the thread's namespace becomes the lab's, as a runtime does it.
fn enter_root(lab: &Lab) {
    let root = lab.root();
    mount(Some(&root), &root, NONE, MsFlags::MS_BIND, NONE).expect("bind the root");
    nix::unistd::chdir(&root).expect("chdir");
    nix::unistd::pivot_root(".", ".").expect("pivot_root");
    umount2(".", MntFlags::MNT_DETACH).expect("umount2");
    nix::unistd::chdir("/").expect("chdir");
}

/// Where the layers of overlays are, as the engine looks for them.
fn layers(seen: &[MountInfo], host: &[MountInfo], proc: &File) -> Layers {
    let own = |m: &&MountInfo| m.fstype == b"overlay" && !host.iter().any(|h| h.dev == m.dev);
    let find = |m: &MountInfo| (m.dev, overlay::find(m, proc.as_fd()));
    seen.iter().filter(own).map(find).collect()
}

/// What a dump says where a part of a file system cannot come back.
const GONE: &str = "no mount shows all of it";

/// Is there a part of a file system, other than the root's, that no mount shows all of?
fn shows_less(seen: &[MountInfo]) -> bool {
    let whole = |m: &MountInfo| seen.iter().any(|w| w.dev == m.dev && w.root == b"/");
    let of_root = |m: &MountInfo| seen.iter().any(|w| w.dev == m.dev && w.mountpoint == b"/");
    seen.iter().any(|m| !whole(m) && !of_root(m))
}

/// Builds a tree, describes it and archives its contents.
fn dump(
    lab: &Lab,
    external: &[(String, String)],
    build: impl FnOnce() + Send,
) -> (Described, Vec<MountInfo>) {
    let dir = lab.images();
    let home = File::open("/proc/thread-self/ns/mnt").expect("the namespace");
    apart(|proc| {
        let host = infos(proc);
        enter_root(lab);
        build();
        let seen = infos(proc);
        let layers = layers(&seen, &host, proc);
        let view = View {
            spaces: &[&seen],
            host: &host,
            devices: &BTreeMap::new(),
            ids: &Ids::default(),
            layers: &layers,
            automounts: &BTreeMap::new(),
        };
        let wishes = Wishes {
            external,
            ..Default::default()
        };
        let told = describe(&view, &wishes).unwrap_or_else(|e| {
            match e.code == "E4301" && shows_less(&seen) {
                true => panic!("{GONE}: {e}"),
                false => panic!("{e}"),
            }
        });
        for c in &told.contents {
            let own = nix::fcntl::openat(
                proc,
                "thread-self/ns/mnt",
                nix::fcntl::OFlag::O_RDONLY,
                nix::sys::stat::Mode::empty(),
            )
            .expect("the namespace");
            // both ways; unbindable mounts are reached in one only
            let bindable = !seen.iter().any(|m| m.unbindable);
            let copy = match c.dev % 2 == 0 && bindable {
                true => reach::copy_beside(own.as_fd(), proc.as_fd(), c).expect("a copy beside"),
                false => reach::copy(own.as_fd(), proc.as_fd(), c).expect("a copy"),
            };
            let out = dir
                .create_raw(&Kind::TmpfsDev.file_of(c.dev))
                .expect("an image");
            // as the engine does it: from where /proc is
            ns::visit(&[(Ns::Mnt, home.as_fd())], || {
                archive::pack(copy.as_fd(), out, &Ids::default())
            })
            .expect("a visit")
            .expect("an archive");
        }
        (told, seen)
    })
}

fn planned(
    lab: &Lab,
    told: &Described,
    external: &[(String, String)],
) -> stasis_mounts::Result<Plan> {
    let dir = lab.images();
    let root = lab.root();
    let archive = |dev: u32| {
        let name = Kind::TmpfsDev.file_of(dev);
        dir.exists(&name).expect("the folder").then_some(name)
    };
    let caller = Caller {
        root: Some(&root),
        external,
        external_sharing: false,
        enable_fs: &[],
        skip: &[],
        context: None,
        archive: &archive,
        automount: &|_| None,
        formats: None,
        cgroup: &str::to_owned,
    };
    plan(&Tree::from_entries(&told.entries[0])?, caller)
}

/// Builds the tree again, and looks at it.
fn restore<R: Send>(lab: &Lab, p: &Plan, look: impl FnOnce() -> R + Send) -> (Vec<MountInfo>, R) {
    let dir = lab.images();
    apart(|proc| {
        let mut host = Host::default();
        let mut performer = Performer {
            host: &mut host,
            dir: &dir,
            devices: &Devices::default(),
        };
        let last = p.sharing.iter().map(|s| &s.1);
        for rows in [&p.outside, &p.build].into_iter().chain(last) {
            if let Err(e) = performer.perform(rows) {
                panic!("{e}");
            }
        }
        (infos(proc), look())
    })
}

/// What must be the same: everything but numbers that the kernel gives, which become those of their first use.
fn normal(infos: &[MountInfo]) -> Vec<String> {
    let place = |id: i32| infos.iter().find(|m| m.id == id);
    // the way from the root tells mounts apart that are stacked
    let way = |m: &MountInfo| {
        let mut all = Vec::new();
        let mut at = Some(m);
        while let Some(x) = at {
            all.push(format!(
                "{}:{}",
                x.mountpoint.escape_ascii(),
                x.fstype.escape_ascii()
            ));
            at = place(x.parent).filter(|p| p.id != x.id);
        }
        all.reverse();
        all.join(" > ")
    };
    let mut sorted: Vec<(String, &MountInfo)> = infos.iter().map(|m| (way(m), m)).collect();
    sorted.sort_by(|a, b| (&a.0, &a.1.root).cmp(&(&b.0, &b.1.root)));
    let mut names: BTreeMap<(&str, u32), usize> = BTreeMap::new();
    let mut name = |sort: &'static str, n: u32| {
        let next = names.len();
        *names.entry((sort, n)).or_insert(next)
    };
    let in_tree = |g: u32| infos.iter().any(|m| m.shared == Some(g));
    sorted
        .iter()
        .map(|(way, m)| {
            let dev = match m.dev.0 {
                0 => format!("fs {}", name("dev", m.dev.1)),
                _ => format!("{:?}", m.dev),
            };
            let shared = m.shared.map(|g| name("group", g));
            let master = m.master.map(|g| match in_tree(g) {
                true => format!("{}", name("group", g)),
                false => "outside".into(),
            });
            let options: Vec<String> = m
                .options
                .iter()
                .map(|o| o.escape_ascii().to_string())
                .collect();
            format!(
                "{way} {} {dev} {options:?} {} {shared:?} {master:?} {} {}",
                m.root.escape_ascii(),
                m.super_options.escape_ascii(),
                m.unbindable,
                m.source.escape_ascii(),
            )
        })
        .collect()
}

fn tmpfs(at: &str) {
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=64k"),
    )
    .expect("a tmpfs");
}
fn bind(from: &str, to: &str) {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).expect("a bind mount");
}
fn change(at: &str, flags: MsFlags) {
    mount(NONE, at, NONE, flags, NONE).expect("a change");
}

/// Dumps, restores, compares; gives what `look` saw in the new tree.
fn round<R: Send>(build: impl FnOnce() + Send, look: impl FnOnce() -> R + Send) -> R {
    let lab = Lab::new();
    let (told, before) = dump(&lab, &[], build);
    let p = planned(&lab, &told, &[]).expect("a plan");
    let (after, seen) = restore(&lab, &p, look);
    pretty_assertions(&normal(&before), &normal(&after));
    seen
}

fn pretty_assertions(before: &[String], after: &[String]) {
    if before != after {
        let lines = |v: &[String]| v.join("\n");
        panic!("before\n{}\nafter\n{}", lines(before), lines(after));
    }
}

#[test]
fn all_sorts_come_back() {
    round(
        || {
            for (t, at) in [
                ("proc", "/a"),
                ("sysfs", "/b"),
                ("devpts", "/c"),
                ("mqueue", "/d"),
            ] {
                mount(
                    Some(t),
                    at,
                    Some(t),
                    MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
                    NONE,
                )
                .expect("a mount");
            }
            bind("/a/sys", "/a/sys");
            change(
                "/a/sys",
                MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME,
            );
            mount(
                Some("none"),
                "/old",
                Some("tmpfs"),
                MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_STRICTATIME,
                Some("mode=711,nr_inodes=9"),
            )
            .expect("a tmpfs");
        },
        || (),
    );
}

#[test]
fn overlays_come_back_with_the_names_of_their_layers() {
    let seen = round(
        || {
            tmpfs("/a");
            for d in [
                "low", "two", "up", "work", "merged", "again", "up2", "work2",
            ] {
                std::fs::create_dir(format!("/a/{d}")).expect("a folder");
            }
            std::fs::write("/a/low/one", "1").expect("a file");
            std::fs::write("/a/low/gone", "x").expect("a file");
            std::fs::write("/a/two/two", "2").expect("a file");
            std::os::unix::fs::symlink("/a/two", "/b/link").expect("a link");
            let overlay = |at: &str, options: &str| {
                mount(
                    Some("over"),
                    at,
                    Some("overlay"),
                    MsFlags::MS_NODEV,
                    Some(options),
                )
                .expect("an overlay");
            };
            overlay(
                "/a/merged",
                "lowerdir=/b/link:/a/low,upperdir=/a/up,workdir=/a/work",
            );
            std::fs::write("/a/merged/new", "3").expect("a file");
            std::fs::remove_file("/a/merged/gone").expect("a file that goes");
            // one on top of another, read-only, upon one of its own layers; and a part of it elsewhere
            overlay("/c", "lowerdir=/a/merged:/c");
            bind("/c", "/d");
            overlay(
                "/a/again",
                "lowerdir=/a/merged,upperdir=/a/up2,workdir=/a/work2",
            );
        },
        || {
            let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
            std::fs::write("/a/merged/later", "4").expect("it can be written");
            assert!(
                !Path::new("/a/merged/gone").exists(),
                "a deleted file is back"
            );
            assert_eq!(read("/a/low/gone"), "x");
            assert!(std::fs::write("/c/x", "").is_err(), "/c can be written");
            assert!(
                std::fs::write("/a/again/x", "").is_ok(),
                "/a/again cannot be written"
            );
            [
                "/a/merged/one",
                "/a/merged/two",
                "/a/up/new",
                "/a/up/later",
                "/c/two",
                "/d/new",
            ]
            .map(read)
        },
    );
    assert_eq!(seen, ["1", "2", "3", "4", "2", "3"]);
}

#[test]
fn what_others_hide_comes_back() {
    let seen = round(
        || {
            tmpfs("/a");
            std::fs::create_dir_all("/a/x/y").expect("a folder");
            std::fs::write("/a/x/y/deep", "1").expect("a file");
            tmpfs("/a/x");
            std::fs::write("/a/x/middle", "2").expect("a file");
            // hides all of it, and itself hides a mount at its own place
            tmpfs("/b");
            std::fs::write("/b/low", "3").expect("a file");
            tmpfs("/b");
            std::fs::write("/b/high", "4").expect("a file");
            tmpfs("/c/x");
            std::fs::write("/c/x/under", "5").expect("a file");
            bind("/d", "/c");
        },
        || {
            let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
            let mut all = vec![read("/a/x/middle"), read("/b/high")];
            for top in ["/a/x", "/b", "/c"] {
                umount2(top, MntFlags::MNT_DETACH).expect("take it off");
            }
            all.extend([read("/a/x/y/deep"), read("/b/low"), read("/c/x/under")]);
            all
        },
    );
    assert_eq!(seen, ["2", "4", "1", "3", "5"]);
}

#[test]
fn parts_come_back() {
    round(
        || {
            tmpfs("/a");
            std::fs::create_dir_all("/a/x/y").expect("a folder");
            std::fs::write("/a/x/file", "1").expect("a file");
            bind("/a/x", "/b");
            bind("/a/x/file", "/file");
            bind("/d", "/c");
            // the whole is gone, parts stay
            bind("/c", "/old");
        },
        || assert_eq!(std::fs::read_to_string("/file").expect("a file"), "1"),
    );
}

#[test]
fn groups_come_back() {
    let shared = MsFlags::MS_SHARED;
    round(
        || {
            change("/", shared);
            tmpfs("/a");
            change("/a", shared);
            std::fs::create_dir_all("/a/x/y").expect("folders");
            bind("/a", "/b");
            change("/b", MsFlags::MS_SLAVE);
            bind("/b", "/c");
            change("/c", shared);
            bind("/c", "/d");
            bind("/a/x", "/old");
            tmpfs("/a/x");
            tmpfs("/d/x");
            change("/d/x", MsFlags::MS_UNBINDABLE);
        },
        || (),
    );
}

#[test]
fn what_comes_from_outside() {
    let lab = Lab::new();
    let data = lab.data();
    let external = [("/a".to_string(), "data".to_string())];
    let (told, before) = apart_bind(&lab, &data, &external);
    let missing = planned(&lab, &told, &[]).expect_err("nothing was given");
    assert_eq!(missing.code, "E2300");
    let given = [("data".to_string(), data)];
    let p = planned(&lab, &told, &given).expect("a plan");
    let (after, ()) = restore(&lab, &p, || ());
    pretty_assertions(&normal(&before), &normal(&after));
}

/// A tree with a read-only bind of a folder outside of it, and a part of that.
fn apart_bind(lab: &Lab, data: &str, external: &[(String, String)]) -> (Described, Vec<MountInfo>) {
    let outer = lab.root().join("a");
    apart(|proc| {
        let host = infos(proc);
        let root = lab.root();
        mount(Some(&root), &root, NONE, MsFlags::MS_BIND, NONE).expect("bind the root");
        mount(Some(data), &outer, NONE, MsFlags::MS_BIND, NONE).expect("bind the data");
        change(
            &outer.display().to_string(),
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID,
        );
        nix::unistd::chdir(Path::new(&root)).expect("chdir");
        nix::unistd::pivot_root(".", ".").expect("pivot_root");
        umount2(".", MntFlags::MNT_DETACH).expect("umount2");
        bind("/a/sub", "/b");
        let seen = infos(proc);
        let layers = layers(&seen, &host, proc);
        let view = View {
            spaces: &[&seen],
            host: &host,
            devices: &BTreeMap::new(),
            ids: &Ids::default(),
            layers: &layers,
            automounts: &BTreeMap::new(),
        };
        let unnamed = describe(&view, &Wishes::default()).expect_err("it is not in the tree");
        assert_eq!(unnamed.code, "E4301");
        let wishes = Wishes {
            external,
            ..Default::default()
        };
        (describe(&view, &wishes).expect("a description"), seen)
    })
}

/// One step of a random tree.
#[derive(Debug, Clone)]
enum Op {
    Tmpfs(usize),
    Bind(usize, usize),
    Share(usize, u8),
    Unmount(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let n = 0..PLACES.len();
    let op = prop_oneof![
        3 => n.clone().prop_map(Op::Tmpfs),
        3 => (n.clone(), n.clone()).prop_map(|(a, b)| Op::Bind(a, b)),
        3 => (n.clone(), 0..4u8).prop_map(|(a, s)| Op::Share(a, s)),
        1 => n.prop_map(Op::Unmount),
    ];
    prop::collection::vec(op, 1..12)
}

/// Does what can be done; what the kernel refuses is left out.
fn build(ops: &[Op]) {
    let at = |i: usize| format!("/{}", PLACES[i]);
    for op in ops {
        let _ = match op {
            Op::Tmpfs(i) => mount(
                Some("tmpfs"),
                at(*i).as_str(),
                Some("tmpfs"),
                MsFlags::empty(),
                Some("size=64k"),
            )
            .map(|()| {
                for d in ["x", "x/y"] {
                    let _ = std::fs::create_dir(format!("{}/{d}", at(*i)));
                }
            }),
            Op::Bind(a, b) => mount(
                Some(at(*a).as_str()),
                at(*b).as_str(),
                NONE,
                MsFlags::MS_BIND,
                NONE,
            ),
            Op::Share(i, how) => {
                let how = [
                    MsFlags::MS_SHARED,
                    MsFlags::MS_SLAVE,
                    MsFlags::MS_PRIVATE,
                    MsFlags::MS_UNBINDABLE,
                ][*how as usize];
                mount(NONE, at(*i).as_str(), NONE, how, NONE)
            }
            Op::Unmount(i) => umount2(at(*i).as_str(), MntFlags::MNT_DETACH),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 60, failure_persistence: None, ..Default::default() })]
    #[test]
    fn random_trees_come_back(ops in ops()) {
        let lab = Lab::new();
        let described = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dump(&lab, &[], || build(&ops))));
        let (told, before) = described.map_err(|e| {
            let text = e.downcast_ref::<String>().cloned().unwrap_or_default();
            match text.starts_with(GONE) {
                true => TestCaseError::reject(text),
                false => TestCaseError::fail(text),
            }
        })?;
        let p = planned(&lab, &told, &[]).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let (after, ()) = restore(&lab, &p, || ());
        prop_assert_eq!(normal(&before), normal(&after));
    }
}
