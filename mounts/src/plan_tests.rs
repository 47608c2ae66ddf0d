use super::*;
use proptest::prelude::*;
use stasis_kernel::call::Arg;
use stasis_proto::pb;

fn entry(id: u32, parent: u32, fstype: pb::Fstype, at: &str) -> pb::MntEntry {
    pb::MntEntry {
        fstype: fstype as u32,
        mnt_id: id,
        root_dev: id,
        parent_mnt_id: parent,
        flags: 0,
        root: "/".into(),
        mountpoint: at.into(),
        source: "none".into(),
        ..Default::default()
    }
}

fn root() -> pb::MntEntry {
    entry(1, 0, pb::Fstype::Unsupported, "/")
}

/// A caller who gives nothing.
fn bare() -> Caller<'static> {
    Caller {
        root: None,
        external: &[],
        external_sharing: false,
        enable_fs: &[],
        skip: &[],
        context: None,
        archive: &|_| None,
        automount: &|_| None,
        formats: None,
        cgroup: &str::to_owned,
    }
}

fn made(entries: &[pb::MntEntry], external: &[(String, String)]) -> Result<Plan> {
    let caller = Caller {
        root: Some(Path::new("/given/root")),
        external,
        archive: &|_| Some("a".into()),
        ..bare()
    };
    plan(&Tree::from_entries(entries)?, caller)
}

/// The code of the error for a tree of a root and these.
fn code(entries: &[pb::MntEntry]) -> &'static str {
    let all: Vec<_> = std::iter::once(root())
        .chain(entries.iter().cloned())
        .collect();
    match made(&all, &[]) {
        Ok(p) => panic!("it was planned:\n{}", text(&p)),
        Err(e) => e.code,
    }
}

fn all_rows(p: &Plan) -> impl Iterator<Item = &Row> {
    let last = p.sharing.iter().flat_map(|s| &s.1);
    p.outside.iter().chain(&p.build).chain(last).chain(&p.late)
}

fn text(p: &Plan) -> String {
    all_rows(p).map(|r| format!("{r}\n")).collect()
}

#[test]
fn a_nested_proc_is_made_inside_and_mounted_when_tasks_are_there() {
    use pb::Fstype::{Proc, Tmpfs};
    let mut proc = entry(2, 1, Proc, "/proc");
    proc.stasis_pid_ns = Some(20);
    let all = [root(), proc, entry(3, 2, Tmpfs, "/proc/tty")];
    let p = made(&all, &[]).unwrap();
    let shown = |rows: &[Row]| rows.iter().map(|r| format!("{r}\n")).collect::<String>();
    assert_eq!(
        (p.procs.len(), p.procs[0].pid_ns, p.inner.len()),
        (1, 20, 1)
    );
    assert!(shown(&p.procs[0].rows).contains("\"proc\""));
    // one of the worker's own holds the place
    let build = shown(&p.build);
    assert!(build.contains("held by one of our own"), "{build}");
    assert!(!build.contains("mount 3 (/proc/tty): its place"), "{build}");
    let inner = shown(&p.inner[0]);
    let at = |what: &str| {
        inner
            .find(what)
            .unwrap_or_else(|| panic!("{what}: {inner}"))
    };
    assert!(at("its time is over") < at("mount 2 (/proc)\n"));
    assert!(at("mount 2 (/proc)\n") < at("mount 3 (/proc/tty): its place"));
    assert!(p.is_inner(2) && p.is_inner(3) && !p.is_inner(1));
}

#[test]
fn hostile_trees_are_refused() {
    use pb::Fstype::{Proc, Tmpfs, Unsupported};
    let at = |p: &str| entry(2, 1, Tmpfs, p);
    for path in ["/a/../b", "a", "", "/a//b", "/a/./b", "/a/", "/a\0b", "/.."] {
        assert_eq!(code(&[at(path)]), "E5300", "{path:?}");
    }
    assert_eq!(code(&[at(&format!("/{}", "x".repeat(4096)))]), "E5300");
    // a number twice, an own parent, a circle, a second root, a place that is not below the parent's
    assert_eq!(code(&[at("/a"), at("/b")]), "E5300");
    assert_eq!(code(&[entry(2, 2, Tmpfs, "/a")]), "E5300");
    assert_eq!(
        code(&[entry(2, 3, Tmpfs, "/a"), entry(3, 2, Tmpfs, "/a/b")]),
        "E5300"
    );
    assert_eq!(code(&[entry(2, 9, Tmpfs, "/")]), "E5300");
    assert_eq!(code(&[at("/a"), entry(3, 2, Tmpfs, "/ab")]), "E5300");
    assert_eq!(code(&[at("/a"), entry(3, 1, Tmpfs, "/a")]), "E5300");
    let other = |f: &dyn Fn(&mut pb::MntEntry)| {
        let mut e = at("/a");
        f(&mut e);
        code(&[e])
    };
    assert_eq!(other(&|e| e.fstype = 99), "E5300");
    assert_eq!(other(&|e| e.stasis_pid_ns = Some(20)), "E5300");
    let mut two = [entry(2, 1, Proc, "/a"), entry(3, 1, Proc, "/b")];
    (two[1].root_dev, two[1].stasis_pid_ns) = (2, Some(20));
    assert_eq!(code(&two), "E5300");
    assert_eq!(other(&|e| e.source = "a\0b".into()), "E5300");
    assert_eq!(other(&|e| e.fstype = Unsupported as u32), "E5302");
    assert_eq!(other(&|e| e.root = "/../../etc".into()), "E5307");
    assert_eq!(other(&|e| e.options = "fscontext=x".into()), "E5303");
    // an overlay of nothing
    assert_eq!(other(&|e| e.fstype = pb::Fstype::Overlayfs as u32), "E5302");
    let release = |e: &mut pb::MntEntry| {
        e.fstype = pb::Fstype::Cgroup as u32;
        e.options = "memory,release_agent=/evil".into();
    };
    assert_eq!(other(&release), "E5303");
    // what shows the whole machine
    assert_eq!(other(&|e| e.fstype = pb::Fstype::Debugfs as u32), "E2302");
    assert_eq!(other(&|e| e.fstype = pb::Fstype::Devtmpfs as u32), "E2302");
    // by names nobody gave
    assert_eq!(other(&|e| e.ext_key = Some("/etc".into())), "E2300");
    assert_eq!(
        other(&|e| e.ext_key = Some("CRIU:AUTOGENERATED".into())),
        "E2300"
    );
    let inherited = |e: &mut pb::MntEntry| {
        e.ext_key = Some("/etc".into());
        e.stasis_inherited = Some(true);
    };
    assert_eq!(other(&inherited), "E2300");
    // masters in a circle
    let mut a = at("/a");
    let mut b = entry(3, 1, Proc, "/b");
    (a.shared_id, a.master_id, b.shared_id, b.master_id) = (Some(5), Some(6), Some(6), Some(5));
    assert_eq!(code(&[a, b]), "E5304");
    assert_eq!(made(&[], &[]).expect_err("nothing").code, "E5300");
}

#[test]
fn only_what_the_caller_gave_is_opened_by_path() {
    let mut data = entry(2, 1, pb::Fstype::Unsupported, "/data");
    data.ext_key = Some("key".into());
    data.root = "/somewhere/else".into();
    data.source = "/dev/disk".into();
    let mut masked = entry(4, 3, pb::Fstype::Tmpfs, "/proc/keys");
    masked.ext_key = Some("/run/x/.empty".into());
    let all = [root(), data, entry(3, 1, pb::Fstype::Proc, "/proc"), masked];
    let given = [("key".to_string(), "/given/data".to_string())];
    let p = made(&all, &given).expect("a plan");
    let paths: Vec<String> = p
        .outside
        .iter()
        .map(|r| match &r.step {
            Step::Call(c) => c.args[1].to_string(),
            Step::Device { path, .. } => (*path).to_string(),
            s => panic!("{s:?}"),
        })
        .collect();
    assert_eq!(paths, ["\"/given/root\"", "\"/given/data\"", "/dev/null"]);
    // in the new namespace only the old root is named
    for r in &p.build {
        let Step::Call(c) = &r.step else { continue };
        for a in &c.args {
            if let Arg::Str(s) = a {
                assert!(!s.starts_with(b"/") || s == b"/", "{r}");
            }
        }
    }
    assert_eq!(p.warnings.len(), 1, "{:?}", p.warnings);
    let relative = [("key".to_string(), "data".to_string())];
    assert_eq!(
        made(&all, &relative).expect_err("a relative path").code,
        "E2301"
    );
}

fn is_set_group(r: &Row) -> bool {
    r.to_string().contains("MOVE_MOUNT_SET_GROUP")
}

#[test]
fn a_file_system_of_two_namespaces_is_made_once_and_shared_last() {
    use pb::Fstype::Tmpfs;
    let (mut here, mut there) = (entry(2, 1, Tmpfs, "/a"), entry(12, 11, Tmpfs, "/b"));
    there.root_dev = here.root_dev;
    (here.shared_id, there.shared_id) = (Some(7), Some(7));
    let mut top = entry(11, 10, pb::Fstype::Unsupported, "/");
    top.root_dev = 1;
    let caller = bare();
    let (first, second) = ([root(), here], [top, there]);
    let tree = Tree::from_spaces(&[&first, &second]).expect("two trees");
    let p = plan(&tree, caller).expect("a plan");
    let made = |rows: &[Row]| {
        rows.iter()
            .filter(|r| r.to_string().contains("fsopen"))
            .count()
    };
    let (one, two) = (p.of_space(0).0, p.of_space(1).0);
    assert_eq!((made(one), made(two)), (1, 0));
    assert_eq!((p.space_of(2), p.space_of(12)), (Some(0), Some(1)));
    // the second joins the group of the first, when both are built
    assert!(!one.iter().chain(two).any(is_set_group));
    let [(0, first_run), (1, joins)] = &p.sharing[..] else {
        panic!("{:?}", p.sharing);
    };
    assert!(!first_run.iter().any(is_set_group));
    assert!(joins.iter().any(is_set_group));
    // numbers are those of all namespaces
    assert_eq!(
        Tree::from_spaces(&[&first, &first])
            .expect_err("twice")
            .code,
        "E5300"
    );
}

#[test]
fn a_master_may_be_in_a_later_namespace() {
    use pb::Fstype::Tmpfs;
    let (mut here, mut there) = (entry(2, 1, Tmpfs, "/a"), entry(12, 11, Tmpfs, "/b"));
    there.root_dev = here.root_dev;
    (here.master_id, there.shared_id) = (Some(7), Some(7));
    let mut top = entry(11, 10, pb::Fstype::Unsupported, "/");
    top.root_dev = 1;
    let caller = bare();
    let tree = Tree::from_spaces(&[&[root(), here], &[top, there]]).expect("two trees");
    let p = plan(&tree, caller).expect("a plan");
    let spaces: Vec<usize> = p.sharing.iter().map(|s| s.0).collect();
    assert_eq!(spaces, [1, 0], "{:?}", p.sharing);
    assert!(p.sharing[1].1.iter().any(is_set_group));
}

#[test]
fn layers_of_overlays_lie_on_mounts_of_the_tree() {
    use pb::Fstype::{Overlayfs, Tmpfs};
    let over = |options: &str| {
        let mut e = entry(3, 1, Overlayfs, "/m");
        e.options = options.into();
        e
    };
    let all = |e: pb::MntEntry| [root(), entry(2, 1, Tmpfs, "/a"), e];
    let refused = |e: pb::MntEntry| made(&all(e), &[]).expect_err("no overlay").code;
    assert_eq!(refused(over("")), "E5302");
    assert_eq!(refused(over("lowerdir=../etc")), "E5302");
    assert_eq!(refused(over("lowerdir=/a/x,volatile")), "E5303");
    let mut e = over("lowerdir=/a/x");
    e.stasis_layers = vec![pb::StasisLayer {
        name: "/a/x".into(),
        mnt_id: 9,
        path: "x".into(),
    }];
    assert_eq!(refused(e.clone()), "E5302");
    e.stasis_layers[0].mnt_id = 2;
    e.stasis_layers[0].path = "../x".into();
    assert_eq!(refused(e), "E5300");
    // on itself
    assert_eq!(refused(over("lowerdir=/m/x:/a")), "E5304");
    // of an image that does not say where they are
    let p = made(&all(over("lowerdir=/a/x:/b,xino=off")), &[]).expect("a plan");
    let recipe = p.build.iter().find_map(|r| match &r.step {
        Step::Overlay { recipe, .. } => Some(recipe),
        _ => None,
    });
    let recipe = recipe.expect("an overlay");
    assert_eq!(recipe.mounts, [1, 0], "{recipe:?}");
    assert_eq!(recipe.options, "lowerdir=/a/x:/b,xino=off");
}

#[test]
fn formats_belong_to_user_namespaces_and_come_last() {
    let all = [root(), entry(2, 1, pb::Fstype::BinfmtMisc, "/a")];
    assert_eq!(code(&all[1..]), "E2302");
    let e = pb::BinfmtMiscEntry {
        name: "x".into(),
        interpreter: "/bin/x".into(),
        extension: Some("y".into()),
        ..Default::default()
    };
    let formats = [Format::new(&e).expect("a format")];
    let caller = Caller {
        formats: Some(&formats),
        ..bare()
    };
    let p = plan(&Tree::from_entries(&all).expect("a tree"), caller).expect("a plan");
    let is = |f: &dyn Fn(&Step) -> bool| p.build.iter().position(|r| f(&r.step)).expect("a row");
    let pivot = is(&|s| *s == Step::Pivot);
    assert!(pivot < is(&|s| matches!(s, Step::Register { .. })));
}

#[test]
fn parents_come_before_children_and_hidden_places_are_opened_first() {
    use pb::Fstype::Tmpfs;
    let all = [
        entry(5, 3, Tmpfs, "/a/b/c"),
        entry(4, 1, Tmpfs, "/a/b"),
        entry(3, 1, Tmpfs, "/a/b/x"),
        root(),
    ];
    assert_eq!(made(&all, &[]).expect_err("5 is not below 3").code, "E5300");
    let all = [
        entry(4, 1, Tmpfs, "/a"),
        entry(3, 1, Tmpfs, "/a/b"),
        entry(5, 3, Tmpfs, "/a/b/c"),
        root(),
    ];
    let shown = text(&made(&all, &[]).expect("a plan"));
    let at = |what: &str| {
        shown
            .find(what)
            .unwrap_or_else(|| panic!("{what} is not in\n{shown}"))
    };
    let attached = shown
        .find("move_mount")
        .map(|first| shown[first + 1..].find("move_mount").expect("a second") + first + 1);
    assert!(Some(at("mount 3 (/a/b): its place")) < attached, "{shown}");
    assert!(Some(at("mount 4 (/a): its place")) < attached, "{shown}");
    assert!(
        at("mount 5 (/a/b/c): its place") > at("# mount 3 (/a/b)\n"),
        "{shown}"
    );
}

prop_compose! {
    fn any_entry()(
        id in 0..6u32, parent in 0..6u32, fstype in 0..24u32, dev in 0..4u32,
        at in "(/|/[ab.]{0,2}|/a/[ab]|/a/b/[ab])", root in "(/|/[ab.]{1,2}|/a/b|x)",
        options in "(|ro|size=1k|gid=5,newinstance|name=a)", flags in any::<u32>(),
        shared in prop::option::of(0..4u32), master in prop::option::of(0..4u32),
        key in prop::option::of("(key|/dev/null|/a)"), inherited in prop::option::of(any::<bool>()),
    ) -> pb::MntEntry {
        pb::MntEntry {
            fstype, mnt_id: id, root_dev: dev, parent_mnt_id: parent, flags, root, mountpoint: at,
            source: "s".into(), options, shared_id: shared, master_id: master, ext_key: key,
            stasis_inherited: inherited, fsname: Some("x".into()), ..Default::default()
        }
    }
}

proptest! {
    #[test]
    fn no_entries_make_it_panic(all in prop::collection::vec(any_entry(), 0..8)) {
        if let Ok(p) = made(&all, &[("key".into(), "/k".into())]) {
            // every name is bound before it is used
            let mut known = std::collections::BTreeSet::new();
            for r in all_rows(&p) {
                match &r.step {
                    Step::Call(c) => {
                        for a in &c.args {
                            if let Arg::Fd(f) = a {
                                prop_assert!(known.contains(f), "{} before it is there\n{}", r, text(&p));
                            }
                        }
                        known.extend(c.binds.iter().map(|b| b.0));
                    }
                    Step::Unpack { into, .. } => prop_assert!(known.contains(into)),
                    Step::Device { to, .. } => drop(known.insert(*to)),
                    Step::Mask { at, null } => prop_assert!(known.contains(at) && known.contains(null)),
                    Step::Overlay { mounts, to, .. } => {
                        prop_assert!(mounts.iter().all(|m| known.contains(m)));
                        known.insert(*to);
                    }
                    Step::OpenDevice { to, .. } => drop(known.insert(*to)),
                    Step::Automount(a) => {
                        prop_assert!(known.contains(&a.device));
                        known.extend([a.mount, a.root]);
                    }
                    Step::Register { with, .. } => prop_assert!(known.contains(with)),
                    Step::Pivot => {}
                }
            }
        }
    }
}

#[test]
fn more_mounts_than_a_namespace_may_have_are_refused() {
    let many = (2..100_003).map(|id| entry(id, 1, pb::Fstype::Tmpfs, "/a"));
    let all: Vec<_> = std::iter::once(root()).chain(many).collect();
    assert_eq!(made(&all, &[]).expect_err("so many").code, "E5300");
}

#[test]
fn a_disk_is_the_callers_and_only_its_type_is_the_images() {
    let disk = |kind: &str| pb::MntEntry {
        fsname: Some(kind.into()),
        source: "dev[data]".into(),
        ext_key: Some(fstype::EXTERNAL_DISK.into()),
        options: "errors=remount-ro,journal_path=/etc/passwd".into(),
        sb_flags: Some(libc::MS_RDONLY as u32),
        ..entry(2, 1, pb::Fstype::Auto, "/data")
    };
    let given = [("dev[data]".to_owned(), "/dev/vdz".to_owned())];
    let p = made(&[root(), disk("ext4")], &given).expect("a plan");
    let out: String = p.outside.iter().map(|r| format!("{r}\n")).collect();
    assert!(
        out.contains("ext4") && out.contains("/dev/vdz") && out.contains("\"ro\""),
        "{out}"
    );
    assert!(!text(&p).contains("passwd"), "{}", text(&p));
    let e = made(&[root(), disk("ext4")], &[]).expect_err("no disk is given");
    assert_eq!(e.code, "E2300");
    assert!(
        e.advice.contains("--external dev[data]:PATH"),
        "{}",
        e.advice
    );
    for hostile in ["overlay", "nfs", "fuse", "../x", ""] {
        let e = made(&[root(), disk(hostile)], &given).expect_err(hostile);
        assert_eq!(e.code, "E5300", "{hostile}");
    }
}

#[test]
fn a_context_with_commas_is_one_option_and_the_callers_wins() {
    let m = pb::MntEntry {
        options: "size=64k,context=\"system_u:object_r:container_file_t:s0:c82,c137\",mode=755"
            .into(),
        ..entry(2, 1, pb::Fstype::Tmpfs, "/dev")
    };
    let all = [root(), m];
    let planned = |context| {
        let caller = Caller { context, ..bare() };
        let tree = Tree::from_entries(&all).expect("a tree");
        text(&plan(&tree, caller).expect("a plan"))
    };
    let own = planned(None);
    assert!(
        own.contains("container_file_t:s0:c82,c137") && own.contains("755"),
        "{own}"
    );
    let given = planned(Some("u:r:t:s0:c1,c2"));
    assert!(
        given.contains("u:r:t:s0:c1,c2") && !given.contains("container_file_t"),
        "{given}"
    );
}
