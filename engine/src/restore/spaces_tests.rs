use super::*;

/// Task: number, parent's, namespace, numbers below the first one.
fn task(pid: u32, ppid: u32, space: Option<u32>, inner: &[u32]) -> pb::PstreeEntry {
    let numbers = pb::StasisNumbers {
        number: pid,
        inner: inner.to_vec(),
    };
    pb::PstreeEntry {
        pid,
        ppid,
        pgid: 10,
        sid: 10,
        threads: vec![pid],
        stasis: space.map(|_| pb::StasisPstreeEntry {
            pid_ns: space,
            numbers: vec![numbers],
            ..Default::default()
        }),
    }
}

/// Namespaces: number, that above. The first one is 1.
fn spaces(nested: &[(u32, u32)], tree: &[pb::PstreeEntry]) -> Result<Spaces> {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::create(tmp.path()).unwrap();
    let entry = |(id, parent): &(u32, u32)| pb::StasisNamespaceEntry {
        id: *id,
        sort: libc::CLONE_NEWPID as u32,
        parent: *parent,
        ..Default::default()
    };
    let all: Vec<_> = nested.iter().map(entry).collect();
    dir.write_all(&Kind::Namespaces.file(), &all).unwrap();
    Spaces::of(&dir, tree, Some(1))
}

fn tree() -> Vec<pb::PstreeEntry> {
    vec![
        task(10, 0, None, &[]),
        task(11, 10, Some(20), &[1]),
        task(12, 11, Some(20), &[7]),
        task(13, 11, Some(21), &[8, 1]),
        task(14, 10, Some(22), &[1]),
    ]
}

/// The deepest stands first.
const NESTED: [(u32, u32); 3] = [(21, 20), (22, 1), (20, 1)];

#[test]
fn numbers_are_seen_from_above_and_not_from_beside() {
    let s = spaces(&NESTED, &tree()).unwrap();
    assert_eq!(s.name(13).numbers, [13, 8, 1]);
    assert_eq!((s.name(13).own(), s.name(13).key()), (1, 13));
    assert_eq!(
        [s.seen_by(10, 13), s.seen_by(12, 13), s.seen_by(13, 13)],
        [13, 8, 1]
    );
    // neither from beside nor upwards
    assert_eq!(
        [s.seen_by(14, 13), s.seen_by(13, 12), s.seen_by(11, 10)],
        [0; 3]
    );
    assert_eq!(s.first_of_id(21), Some(13));
    assert!(!s.are_one() && spaces(&[], &[task(10, 0, None, &[])]).unwrap().are_one());
}

#[test]
fn what_no_kernel_has_is_refused() {
    let refused = |nested: &[(u32, u32)], tree: &[pb::PstreeEntry]| {
        let e = spaces(nested, tree).unwrap_err();
        assert_eq!(e.code, "E5857", "{e}");
        e.why
    };
    let all = tree();
    assert!(refused(&[(20, 21), (21, 20), (22, 1)], &all).contains("below it"));
    assert!(refused(&[(20, 20)], &all).contains("below it"));
    assert!(refused(&[(20, 1), (20, 1)], &all).contains("twice"));
    assert!(refused(&[(20, 1), (22, 1)], &all).contains("does not have"));
    let deep: Vec<_> = (2..60).map(|n| (n, n - 1)).collect();
    assert!(refused(&deep, &all[..1]).contains("deeper"));
    let with = |at: usize, t: pb::PstreeEntry| {
        let mut all = tree();
        all[at] = t;
        all
    };
    let twice = with(2, task(12, 11, Some(20), &[1]));
    assert!(refused(&NESTED, &twice).contains("two first"));
    for inner in [&[][..], &[7, 7], &[0], &[u32::MAX]] {
        let t = with(2, task(12, 11, Some(20), inner));
        assert!(refused(&NESTED, &t).contains("do not fit"), "{inner:?}");
    }
    let same = with(3, task(13, 11, Some(21), &[7, 1]));
    assert!(refused(&NESTED, &same).contains("two tasks"));
    let beside = with(2, task(12, 14, Some(20), &[7]));
    assert!(refused(&NESTED, &beside).contains("its parent"));
    let upwards = with(2, task(12, 11, None, &[]));
    assert!(refused(&NESTED, &upwards).contains("its parent"));
    let nobody = with(4, task(14, 10, Some(22), &[5]));
    assert!(refused(&NESTED, &nobody).contains("no task"));
    let mut root = tree();
    root[0] = task(10, 0, Some(22), &[9]);
    assert!(refused(&NESTED, &root).contains("first task"));
}
