use super::*;
use std::path::Path;

fn map(dir: &ImageDir, id: u32, all: &[(u64, u64, u32)]) {
    let mut w = dir.writer("pagemap-1.img").unwrap();
    w.write(&pb::PagemapHead { pages_id: id }).unwrap();
    for (vaddr, nr, flags) in all {
        w.write(&pb::PagemapEntry {
            vaddr: *vaddr,
            compat_nr_pages: *nr as u32,
            flags: Some(*flags),
            ..Default::default()
        })
        .unwrap();
    }
    w.finish().unwrap();
}

fn pages(dir: &ImageDir, id: u32, bytes: &[u8]) {
    use std::io::Write;
    let mut f = dir.create_raw(&Kind::Pages.file_of(id)).unwrap();
    for b in bytes {
        f.write_all(&[*b; PAGE as usize]).unwrap();
    }
}

/// Three dumps, each on the one before; the second has one page of its own, the third another.
#[test]
fn pages_are_found_through_all_dumps_before() {
    let tmp = tempfile::tempdir().unwrap();
    let make = |n: &str| ImageDir::create(&tmp.path().join(n)).unwrap();
    let (a, b, c) = (make("a"), make("b"), make("c"));
    map(&a, 7, &[(0x1000, 2, 4), (0x3000, 3, 4 | 2)]);
    pages(&a, 7, &[1, 2, 3, 4, 5]);
    map(&b, 1, &[(0x2000, 1, 4), (0x3000, 2, 1)]);
    pages(&b, 1, &[22]);
    map(&c, 1, &[(0x2000, 2, 1), (0x4000, 1, 4)]);
    pages(&c, 1, &[44]);
    b.link_parent(Path::new("../a")).unwrap();
    c.link_parent(Path::new("../b")).unwrap();
    let c = c.with_parents(None).unwrap();
    let p = Pages::load(&c, "pagemap-1.img").unwrap();
    let s = p.open(&c).unwrap();
    let mut seen = Vec::new();
    for (addr, len, at) in &p.runs {
        for i in 0..len / PAGE {
            let mut one = [0; 1];
            s.read(&mut one, at + i * PAGE).unwrap();
            seen.push((addr + i * PAGE, one[0]));
        }
    }
    assert_eq!(seen, [(0x2000, 22), (0x3000, 3), (0x4000, 44)]);
    // a page that the dump before does not have
    map(&c, 1, &[(0x2000, 4, 1)]);
    let e = Pages::load(&c, "pagemap-1.img").unwrap_err();
    assert_eq!(e.code, "E5701");
    // no folder before
    let alone = ImageDir::open(&tmp.path().join("c")).unwrap();
    let e = Pages::load(&alone, "pagemap-1.img").unwrap_err();
    assert_eq!(e.code, "E5701");
    // an image of a dump before is cut
    map(&c, 1, &[(0x2000, 2, 1)]);
    pages(&a, 7, &[1, 2]);
    let e = Pages::load(&c, "pagemap-1.img").unwrap_err();
    assert_eq!(e.code, "E5021");
}

#[test]
fn old_images_have_no_flags_and_lazy_pages_lie_elsewhere() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    pages(&dir, 7, &[1, 2]);
    let go = |flags, in_parent| {
        let mut w = dir.writer("pagemap-1.img").unwrap();
        w.write(&pb::PagemapHead { pages_id: 7 }).unwrap();
        let e = pb::PagemapEntry {
            vaddr: 0x1000,
            compat_nr_pages: 2,
            flags,
            in_parent,
            ..Default::default()
        };
        w.write(&e).unwrap();
        w.finish().unwrap();
        Pages::load(&dir, "pagemap-1.img")
            .map(|p| p.runs)
            .map_err(|e| e.code)
    };
    assert_eq!(go(Some(6), None), Ok(vec![(0x1000, 0x2000, 0)]));
    assert_eq!(go(None, None), Ok(vec![(0x1000, 0x2000, 0)]));
    assert_eq!(go(None, Some(true)), Err("E5701"));
    assert_eq!(go(Some(1), None), Err("E5701"));
    // left with who dumped it: known, but not to be had from here
    assert_eq!(
        go(Some(2), None),
        Ok(vec![(0x1000, 0x2000, place(1, 0x1000))])
    );
    let left = Pages::load(&dir, "pagemap-1.img").unwrap();
    assert!(left.is_far(&left.runs[0]) && left.only_lazy() == left.runs);
    let store = left.open(&dir).unwrap();
    let e = store.read(&mut [0; 4096], left.runs[0].2).unwrap_err();
    assert_eq!(e.code, "E5002");
    assert_eq!(go(Some(0), None), Err("E5002"));
}

#[test]
fn pages_of_another_task_lie_in_its_image() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    let write = |name: &str, id: u32, all: &[(u64, u32, u32, u64)]| {
        let mut w = dir.writer(name).unwrap();
        w.write(&pb::PagemapHead { pages_id: id }).unwrap();
        for (vaddr, flags, same_pid, same_vaddr) in all {
            w.write(&pb::PagemapEntry {
                vaddr: *vaddr,
                compat_nr_pages: 2,
                flags: Some(*flags),
                stasis: Some(pb::StasisPagemapEntry {
                    same_pid: Some(*same_pid),
                    same_vaddr: Some(*same_vaddr),
                }),
                ..Default::default()
            })
            .unwrap();
        }
        w.finish().unwrap();
    };
    pages(&dir, 1, &[1, 2, 3, 4]);
    pages(&dir, 2, &[5, 6]);
    write(
        "pagemap-1.img",
        1,
        &[(0x1000, PRESENT, 0, 0), (0x9000, PRESENT, 0, 0)],
    );
    let two = |same: &[(u64, u32, u32, u64)]| {
        let mut all = vec![(0x1000, PRESENT, 0, 0)];
        all.extend(same);
        write("pagemap-2.img", 2, &all);
        Pages::load(&dir, "pagemap-2.img").map_err(|e| e.code)
    };
    let p = two(&[(0x5000, SAME, 1, 0x9000), (0x9000, SAME, 1, 0x1000)]).unwrap();
    let store = p.open(&dir).unwrap();
    let byte = |run: usize| {
        let mut b = [0];
        store.read(&mut b, p.runs[run].2).unwrap();
        (p.runs[run].0, b[0])
    };
    assert_eq!(
        [byte(0), byte(1), byte(2)],
        [(0x1000, 5), (0x5000, 3), (0x9000, 1)]
    );
    assert_eq!(p.sources.len(), 2);
    // none such, not all of them, pages that are a third task's themselves, no such task
    for at in [0x3000, 0x2000, u64::MAX - 0xfff] {
        assert_eq!(two(&[(0x5000, SAME, 1, at)]).unwrap_err(), "E5001");
    }
    assert_eq!(two(&[(0x5000, SAME, 2, 0x5000)]).unwrap_err(), "E5001");
    assert!(two(&[(0x5000, SAME, 3, 0x1000)]).is_err());
}
