use super::*;

fn line(start: u64, end: u64, path: &str) -> MapsLine {
    MapsLine {
        start,
        end,
        prot: 3,
        shared: false,
        offset: 0,
        dev: (0, 0),
        ino: 0,
        path: path.into(),
        deleted: false,
    }
}

fn entry(start: u64, end: u64, path: &str, flags: VmFlags) -> SmapsEntry {
    SmapsEntry {
        map: line(start, end, path),
        flags,
        rss: 0,
        shared: 0,
        anonymous: 0,
        swap: 0,
        locked: 0,
        anon_huge_pages: 0,
        shmem_pmd_mapped: 0,
        kernel_page_size: 4096,
        protection_key: 0,
    }
}

#[test]
fn a_mapping_is_known_by_its_parts() {
    let early = [
        entry(0x1000, 0x3000, "", VmFlags::LOCKED),
        entry(0x3000, 0x4000, "", VmFlags::LOCKED),
        entry(0x8000, 0x9000, "[heap]", VmFlags::NO_RESERVE),
    ];
    // joined; grown
    let now = [line(0x1000, 0x4000, ""), line(0x8000, 0xa000, "[heap]")];
    let k = known(&now, &early).unwrap();
    assert_eq!((k[0].flags, k[0].map.end), (VmFlags::LOCKED, 0x4000),);
    assert_eq!((k[1].flags, k[1].map.end), (VmFlags::NO_RESERVE, 0xa000));
    // split
    assert_eq!(known(&[line(0x2000, 0x3000, "")], &early).unwrap().len(), 1);
    // new, of another name, of parts that were different
    assert!(known(&[line(0x5000, 0x6000, "")], &early).is_none());
    assert!(known(&[line(0x8000, 0x9000, "")], &early).is_none());
    let mut other = early.clone();
    other[1].flags = VmFlags::NO_RESERVE;
    assert!(known(&now, &other).is_none());
}

#[test]
fn lists_are_united_within_a_mapping() {
    let a = [(0x2000, 0x4000), (0x8000, 0x9000)];
    let b = [(0x0, 0x1000), (0x3000, 0x5000), (0x7000, 0xc000)];
    let all = united(a.into_iter(), &b, (0x1000, 0xa000));
    assert_eq!(all, [(0x2000, 0x5000), (0x7000, 0xa000)]);
    assert_eq!(united([].into_iter(), &[], (0, 0x1000)), []);
}

#[test]
fn small_gaps_are_closed() {
    let r = |start, end| PageRange {
        start,
        end,
        categories: Categories::PRESENT,
    };
    let far = 0x3000 + GAP + 0x1000;
    let found = [
        r(0x1000, 0x2000),
        r(0x2000 + GAP, 0x3000 + GAP),
        r(far + GAP, far + GAP + 0x1000),
    ];
    assert_eq!(
        joined(&found),
        [(0x1000, 0x3000 + GAP), (far + GAP, far + GAP + 0x1000)]
    );
}
