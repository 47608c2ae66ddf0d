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
    s.forget(0x2000, 0x3000, true);
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
    s.forget(0, u64::MAX, false);
    assert!(s.is_done());
}

#[test]
fn shared_memory_that_is_given_back_is_still_wanted() {
    let shared = 1 << 47;
    let s = space(&[(0x1000, 0x2000, 0), (0x4000, 0x2000, shared)]).sharing(1);
    s.forget(0x1000, 0x5000, true);
    assert_eq!(left(&s), [(0x4000, 0x2000, shared)]);
    s.forget(0x4000, 0x5000, false);
    assert_eq!(left(&s), [(0x5000, 0x1000, shared + 0x1000)]);
}

#[test]
fn what_was_touched_first_comes_first() {
    let s = space(&[(0, 3 * WINDOW, 0)]).first([2 * WINDOW, WINDOW, 9 * WINDOW]);
    assert_eq!(s.next(), Some((2 * WINDOW, WINDOW, 2 * WINDOW)));
    assert_eq!(s.next(), Some((WINDOW, WINDOW, WINDOW)));
    assert_eq!(s.next(), Some((0, WINDOW, 0)));
    assert_eq!(s.next(), None);
}
