use super::*;
use proptest::prelude::*;

fn dir(
    name: &str,
    props: &[(&str, &str)],
    children: Vec<pb::CgroupDirEntry>,
) -> pb::CgroupDirEntry {
    pb::CgroupDirEntry {
        dir_name: name.into(),
        children,
        properties: props
            .iter()
            .map(|(n, v)| pb::CgroupPropEntry {
                name: n.to_string(),
                value: v.to_string(),
                perms: None,
            })
            .collect(),
        dir_perms: None,
    }
}

fn entry(dirs: Vec<pb::CgroupDirEntry>, path: &str, ns: Option<u32>) -> pb::CgroupEntry {
    pb::CgroupEntry {
        sets: vec![pb::CgSetEntry {
            id: 2,
            ctls: vec![pb::CgMemberEntry {
                name: String::new(),
                path: path.into(),
                cgns_prefix: ns,
            }],
        }],
        controllers: vec![pb::CgControllerEntry {
            cnames: vec![String::new()],
            dirs,
            is_threaded: Some(false),
        }],
    }
}

fn plan(e: pb::CgroupEntry, mode: Mode, roots: &Roots) -> Result<Plan> {
    Plan::new(e, 1, mode, roots, &Props::default())
}

fn code(e: Error) -> &'static str {
    match e {
        Error::Named(n) => n.code,
        Error::Kernel(e) => panic!("{e}"),
    }
}

/// A folder that has the files the kernel would make.
fn fs(groups: &[&str]) -> tempfile::TempDir {
    let t = tempfile::tempdir().unwrap();
    for g in groups {
        std::fs::create_dir_all(t.path().join(g)).unwrap();
    }
    t
}

#[test]
fn a_new_root_moves_groups_and_sets() {
    let dirs = || vec![dir("a/b", &[], vec![dir("c", &[], vec![])])];
    let to = |root: &str| [(None, root.to_string())];
    let p = plan(entry(dirs(), "/a/b/c", None), Mode::Soft, &to("/new")).unwrap();
    // without a namespace the set's own group becomes the root
    assert_eq!(p.sets[&2][0].path, "/new");
    let p = plan(entry(dirs(), "/a/b/c", Some(4)), Mode::Soft, &to("/new/")).unwrap();
    assert_eq!(p.sets[&2][0].path, "/new/c");
    assert_eq!(p.sets[&2][0].ns_root.as_deref(), Some("/new"));
    let paths: Vec<_> = p.controllers[0]
        .dirs
        .iter()
        .map(|d| d.path.as_str())
        .collect();
    assert_eq!(paths, ["/new", "/new/c"]);
    // a root for another hierarchy says nothing of this one
    let other = [(Some("cpu".to_string()), "/x".to_string())];
    let p = plan(entry(dirs(), "/a/b", None), Mode::Soft, &other).unwrap();
    assert_eq!(p.sets[&2][0].path, "/a/b");
    let v2 = [(Some(String::new()), "/x".to_string())];
    let p = plan(entry(dirs(), "/a/b", None), Mode::Soft, &v2).unwrap();
    assert_eq!(p.sets[&2][0].path, "/x");
    for wrong in ["x", "/a/../b", "/a//b"] {
        let e = plan(entry(dirs(), "/a/b", None), Mode::Soft, &to(wrong)).unwrap_err();
        assert_eq!(code(e), "E2443", "{wrong}");
    }
}

#[test]
fn hostile_images_are_refused_by_name() {
    let deep = |n: usize| (0..n).fold(dir("x", &[], vec![]), |d, _| dir("x", &[], vec![d]));
    let cases: Vec<(pb::CgroupEntry, &str)> = vec![
        (entry(vec![dir("../etc", &[], vec![])], "/a", None), "E5440"),
        (
            entry(
                vec![dir("a", &[], vec![dir("b/c", &[], vec![])])],
                "/a",
                None,
            ),
            "E5440",
        ),
        (
            entry(
                vec![dir("a", &[], vec![dir("..", &[], vec![])])],
                "/a",
                None,
            ),
            "E5440",
        ),
        (
            entry(vec![dir("a", &[], vec![dir("", &[], vec![])])], "/a", None),
            "E5440",
        ),
        (entry(vec![dir("a", &[], vec![])], "a", None), "E5440"),
        (
            entry(vec![dir("a", &[], vec![])], "/a/../../b", None),
            "E5440",
        ),
        (entry(vec![dir("a", &[], vec![])], "/a", Some(7)), "E5440"),
        (
            entry(vec![dir("a", &[], vec![])], "/ab/c", Some(2)),
            "E5440",
        ),
        (entry(vec![deep(DEEPEST + 1)], "/a", None), "E5440"),
        (
            entry(
                vec![dir("a", &[("release_agent", "/bin/sh")], vec![])],
                "/a",
                None,
            ),
            "E5442",
        ),
        (
            entry(vec![dir("a", &[("cgroup.kill", "1")], vec![])], "/a", None),
            "E5442",
        ),
        (
            entry(vec![dir("a", &[("../x", "1")], vec![])], "/a", None),
            "E5442",
        ),
        (
            entry(vec![dir("a", &[("pids.max", "1\0")], vec![])], "/a", None),
            "E5440",
        ),
    ];
    for (n, (e, expected)) in cases.into_iter().enumerate() {
        assert_eq!(
            code(plan(e, Mode::Full, &[]).unwrap_err()),
            expected,
            "case {n}"
        );
    }
    let p = plan(entry(vec![], "/a", None), Mode::Soft, &[]).unwrap();
    assert_eq!(code(p.places(7).unwrap_err()), "E5441");
    assert!(!p.places(1).unwrap() && p.places(2).unwrap());
}

#[test]
fn groups_are_made_and_removed_again() {
    let t = fs(&["a"]);
    let dirs = vec![dir("a/b", &[], vec![dir("c", &[], vec![])])];
    let p = plan(entry(dirs, "/a/b/c", None), Mode::Soft, &[]).unwrap();
    let view = || View::fake(&[(&[""], t.path())]);
    let g = Groups::make(&p, view()).unwrap();
    assert!(t.path().join("a/b/c").is_dir() && g.v2_dir(2).is_some());
    drop(g);
    assert!(t.path().join("a").is_dir() && !t.path().join("a/b").exists());
    let g = Groups::make(&p, view()).unwrap();
    g.freeze().unwrap();
    g.keep();
    assert!(t.path().join("a/b/c").is_dir());
}

#[test]
fn modes_say_what_must_be_there() {
    let dirs = || vec![dir("a", &[], vec![])];
    for (mode, there, fails) in [
        (Mode::None, false, true),
        (Mode::None, true, false),
        (Mode::Props, false, true),
        (Mode::Soft, false, false),
        (Mode::Full, true, false),
        (Mode::Strict, true, true),
        (Mode::Strict, false, false),
    ] {
        let t = fs(if there { &["a"] } else { &[] });
        let p = plan(entry(dirs(), "/a", None), mode, &[]).unwrap();
        let made = Groups::make(&p, View::fake(&[(&[""], t.path())]));
        assert_eq!(made.is_err(), fails, "{mode:?}, there: {there}");
        if let Err(e) = made {
            assert_eq!(code(e), "E6440");
        }
    }
    // nothing at all
    let t = fs(&[]);
    let p = plan(entry(dirs(), "/a", None), Mode::Ignore, &[]).unwrap();
    let g = Groups::make(&p, View::fake(&[(&[""], t.path())])).unwrap();
    assert!(!t.path().join("a").exists() && g.v2_dir(2).is_none());
}

#[test]
fn settings_are_written_where_the_mode_says() {
    let props = [("pids.max", "7"), ("cgroup.freeze", "1")];
    let dirs = || vec![dir("a", &props, vec![])];
    for (mode, written) in [(Mode::Soft, false), (Mode::Full, true), (Mode::Props, true)] {
        let t = fs(&["a"]);
        let put = |f: &str, s: &str| std::fs::write(t.path().join(f), s).unwrap();
        put("a/pids.max", "");
        put("a/cgroup.freeze", "0");
        let p = plan(entry(dirs(), "/a", None), mode, &[]).unwrap();
        let mut g = Groups::make(&p, View::fake(&[(&[""], t.path())])).unwrap();
        g.set_properties().unwrap();
        let get = |f: &str| std::fs::read_to_string(t.path().join(f)).unwrap();
        assert_eq!(get("a/pids.max") == "7", written, "{mode:?}");
        assert_eq!(get("a/cgroup.freeze"), "0", "frozen last of all");
        g.freeze().unwrap();
        assert_eq!(get("a/cgroup.freeze") == "1", written);
    }
    // never on the root of a hierarchy
    let t = fs(&[]);
    std::fs::write(t.path().join("pids.max"), "").unwrap();
    let p = plan(
        entry(vec![dir("", &props, vec![])], "/", None),
        Mode::Full,
        &[],
    )
    .unwrap();
    let mut g = Groups::make(&p, View::fake(&[(&[""], t.path())])).unwrap();
    g.set_properties().unwrap();
    assert_eq!(
        std::fs::read_to_string(t.path().join("pids.max")).unwrap(),
        ""
    );
}

#[test]
fn a_setting_that_cannot_be_is_an_error_that_names_it() {
    let t = fs(&["a"]);
    let dirs = vec![dir("a", &[("memory.max", "4096")], vec![])];
    let p = plan(entry(dirs, "/a", None), Mode::Full, &[]).unwrap();
    let mut g = Groups::make(&p, View::fake(&[(&[""], t.path())])).unwrap();
    let e = g.set_properties().unwrap_err();
    assert!(e.to_string().contains("memory.max"), "{e}");
    assert_eq!(code(e), "E6441");
}

#[test]
fn hierarchies_that_are_not_mounted_are_left_alone() {
    let mut e = entry(vec![dir("a", &[], vec![])], "/a", None);
    e.controllers[0].cnames = vec!["cpu".into()];
    e.sets[0].ctls[0].name = "cpu".into();
    let t = fs(&[]);
    let p = plan(e, Mode::Strict, &[]).unwrap();
    let g = Groups::make(&p, View::fake(&[(&[""], t.path())])).unwrap();
    g.place(HostPid(1), 2).unwrap();
    assert!(!t.path().join("a").exists());
}

proptest! {
    /// No image makes the plan panic, and no path it accepts leads out.
    #[test]
    fn paths_of_a_plan_are_plain(name in "[a./\0]{0,12}", path in "[a./]{0,12}", ns in 0u32..14, root in "[/a.]{0,6}") {
        let e = entry(vec![dir(&name, &[], vec![])], &path, Some(ns));
        if let Ok(p) = plan(e, Mode::Soft, &[(None, root)]) {
            let members = p.sets.values().flatten();
            let all = p.controllers[0].dirs.iter().map(|d| &d.path).chain(members.map(|m| &m.path));
            for path in all {
                prop_assert!(path.starts_with('/'));
                prop_assert!(!path.split('/').any(|c| c == ".." || c == "."), "{}", path);
            }
        }
    }
}
