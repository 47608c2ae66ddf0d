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
