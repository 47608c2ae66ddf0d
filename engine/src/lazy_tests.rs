use super::*;

fn space(runs: &[Run]) -> Space {
    let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    Space::new(HostPid::own(), fd, 0, runs)
}

fn left(s: &Space) -> Vec<Run> {
    let l = lock(&s.left);
    l.iter().map(|(a, (b, p))| (*a, b - a, *p)).collect()
}

#[test]
fn pages_are_taken_from_the_list_at_most_once() {
    let s = space(&[(0x1000, 0x4000, 0), (0x8000, 0x2000, 0x4000)]);
    assert_eq!(s.take(0x2000, 0x3000), Some((0x2000, 0x1000, 0x1000)));
    assert_eq!(s.take(0x2000, 0x3000), None);
    assert_eq!(
        left(&s),
        [
            (0x1000, 0x1000, 0),
            (0x3000, 0x2000, 0x2000),
            (0x8000, 0x2000, 0x4000)
        ]
    );
    // a window takes one run after another
    assert_eq!(s.take(0, 0x10000), Some((0x8000, 0x2000, 0x4000)));
    assert_eq!(s.take(0, 0x10000), Some((0x3000, 0x2000, 0x2000)));
    assert_eq!(s.next(), Some((0x1000, 0x1000, 0)));
    assert!(s.next().is_none() && s.is_done());
}

#[test]
fn pieces_end_where_page_tables_end() {
    let s = space(&[(PIECE - PAGE, 3 * PIECE, 0)]);
    assert_eq!(s.next(), Some((PIECE - PAGE, PAGE, 0)));
    assert_eq!(s.next(), Some((PIECE, PIECE, PAGE)));
}

#[test]
fn what_tasks_do_with_their_memory_is_followed() {
    let s = space(&[(0x1000, 0x4000, 0)]);
    s.forget(0x2000, 0x3000);
    assert_eq!(left(&s), [(0x1000, 0x1000, 0), (0x3000, 0x2000, 0x2000)]);
    s.moved(0x1000, 0x100000, 0x3000);
    assert_eq!(
        left(&s),
        [
            (0x4000, 0x1000, 0x3000),
            (0x100000, 0x1000, 0),
            (0x102000, 0x1000, 0x2000)
        ]
    );
    s.forget(0, u64::MAX);
    assert!(s.is_done());
}

/// Shared memory that is being brought, and a fault in a view of it by an address space that is no real one.
#[test]
fn shared_memory_is_brought_into_the_object_for_all() {
    use stasis_kernel::{fds, uffd::Window};
    use stasis_proto::{ImageDir, Kind};
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    const N: u64 = 64;
    let file = File::from(fds::memfd_create(c"object", 0).unwrap());
    file.set_len(N * PAGE).unwrap();
    // not for everybody
    let Ok(window) = Window::open(file.as_fd(), N * PAGE) else {
        return;
    };
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::create(tmp.path()).unwrap();
    let image = dir.create_raw(&Kind::Pages.file_of(1u32)).unwrap();
    image.write_all_at(&vec![7; 40 * PAGE as usize], 0).unwrap();
    let sources = [crate::pages::Source { level: 0, id: 1 }];
    let stores = [Store::open(&dir, &sources).unwrap()];
    let fd = fds::dup(window.fd()).unwrap();
    let runs = [(window.at() + 8 * PAGE, 40 * PAGE, 0)];
    let object = Arc::new(Space::new(HostPid::own(), fd, 0, &runs));
    let page = |n: u64| {
        let mut b = [9; 1];
        file.read_exact_at(&mut b, n * PAGE).unwrap();
        b[0]
    };
    let mut buf = vec![0u8; (STEP + PAGE) as usize];
    let view = View {
        end: 0x10_0000 + N * PAGE,
        object: object.clone(),
        own: window.at(),
    };
    let task = space(&[]).sharing([(0x10_0000, view)]);
    task.fault(0x10_0000 + 20 * PAGE, &stores, &mut buf)
        .unwrap();
    assert_eq!((page(20), page(47), page(2)), (7, 0, 0));
    assert_eq!(task.touched(), [0x11_0000]);
    // what somebody has written since is not overwritten, and what never held data is zeroes
    file.write_all_at(&[5], 47 * PAGE).unwrap();
    task.fault(0x10_0000 + 50 * PAGE, &stores, &mut buf)
        .unwrap();
    // the task unmaps it all, which is heard before the birth of a child that has it: no zeroes before all is there
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let objects = lock(&task.views).unmapped(0x10_0000, 0x10_0000 + N * PAGE);
    assert!(objects.is_empty() && lock(&task.views).at(0x10_0000).is_none());
    task.fault(0x10_0000, &stores, &mut buf).unwrap();
    assert!(!object.is_done());
    task.child(null())
        .fault(0x10_0000 + 9 * PAGE, &stores, &mut buf)
        .unwrap();
    assert!(object.is_done());
    assert_eq!((page(8), page(47), page(50)), (7, 5, 0));
}

#[test]
fn what_was_touched_first_comes_first() {
    let s = space(&[(0, 3 * WINDOW, 0)]).first([2 * WINDOW, WINDOW, 9 * WINDOW]);
    assert_eq!(s.next(), Some((2 * WINDOW, WINDOW, 2 * WINDOW)));
    assert_eq!(s.next(), Some((WINDOW, WINDOW, WINDOW)));
    assert_eq!(s.next(), Some((0, WINDOW, 0)));
    assert_eq!(s.next(), None);
}

#[test]
fn what_was_touched_first_of_shared_memory_comes_first_there() {
    let object = Arc::new(space(&[(0x50_0000, 8 * WINDOW, 0)]));
    let view = |end| View {
        end,
        object: object.clone(),
        own: 0x50_0000,
    };
    // the second view begins in the middle of a window
    let views = [
        (0x10_0000, view(0x10_0000 + 8 * WINDOW)),
        (0x80_1000, view(0x80_1000 + 8 * WINDOW)),
    ];
    let s = space(&[(0, 2 * WINDOW, 0)])
        .first([0x10_0000 + 3 * WINDOW, WINDOW, 0x80_1000])
        .sharing(views);
    let of_object = |n: u64| Some((0x50_0000 + n * WINDOW, WINDOW, n * WINDOW));
    assert_eq!(object.next(), of_object(3));
    assert_eq!(object.next(), of_object(0));
    assert_eq!(s.next(), Some((WINDOW, WINDOW, WINDOW)));
    s.note(0x80_2000);
    s.note(0x80_3000);
    s.note(0x10_0000 + WINDOW + PAGE);
    assert_eq!(s.touched(), [0x80_1000, 0x10_0000 + WINDOW]);
}

#[test]
fn shared_memory_is_given_up_with_the_last_who_shows_it() {
    let (one, other) = (Arc::new(space(&[])), Arc::new(space(&[])));
    let object = Arc::new(space(&[(0x1000, 0x4000, 0)]).for_others());
    let all = [one.clone(), other.clone(), object.clone()];
    one.gone.store(true, Ordering::Relaxed);
    abandon(&all);
    assert!(!object.is_done());
    other.gone.store(true, Ordering::Relaxed);
    abandon(&all);
    assert!(object.is_done());
    serve(all.to_vec(), &[], None).unwrap();
}
