use super::*;
use stasis_kernel::seccomp::action as judge;

const EPERM: u32 = action::ERRNO | 1;
const ENOSYS: u32 = action::ERRNO | 38;

fn rule(name: &str, action: u32, args: &[(u32, Compare, u64, u64)]) -> Rule {
    let args = args.iter().map(|a| Condition {
        index: a.0,
        op: a.1,
        value: a.2,
        value_two: a.3,
    });
    Rule {
        names: vec![name.into()],
        action,
        args: args.collect(),
    }
}

fn made(rules: Vec<Rule>) -> Vec<u8> {
    let p = Profile {
        default: EPERM,
        other_archs: true,
        rules,
    };
    p.compile().unwrap()
}

/// What it says of a call with these first arguments, without the data of the action.
fn says(filter: &[u8], nr: i64, a: u64, b: u64) -> u32 {
    judge(filter, nr, 0, &[a, b, 0, 0, 0, 0])
}

#[test]
fn calls_are_let_through_by_name_and_new_ones_are_unknown() {
    let f = made(vec![
        rule("read", action::ALLOW, &[]),
        rule("no_such_call_anywhere", action::ALLOW, &[]),
        rule("openat2", ENOSYS, &[]),
    ]);
    assert_eq!(says(&f, libc::SYS_read, 0, 0), action::ALLOW);
    assert_eq!(says(&f, libc::SYS_write, 0, 0), action::ERRNO);
    for (nr, errno) in [(libc::SYS_write, 1), (libc::SYS_openat2, 38), (9999, 38)] {
        assert_eq!(last(&f, nr), action::ERRNO | errno, "{nr}");
    }
    assert_eq!(last(&f, libc::SYS_read | i64::from(X32)), ENOSYS);
}

/// The whole answer: the filter is run by a rule of its own, as the judge drops the data.
fn last(f: &[u8], nr: i64) -> u32 {
    // all answers are at the end of a RET; the one taken is found by cutting the others off
    let all: std::collections::BTreeSet<u32> = f
        .chunks(8)
        .filter(|i| i[0] == 6)
        .map(|i| u32::from_le_bytes([i[4], i[5], i[6], i[7]]))
        .collect();
    let taken = |answer: u32| {
        let mut g = f.to_vec();
        for i in g.chunks_mut(8).filter(|i| i[0] == 6) {
            let same = i[4..8] == answer.to_le_bytes();
            i[4..8].copy_from_slice(&if same { action::ALLOW } else { 0 }.to_le_bytes());
        }
        judge(&g, nr, 0, &[0; 6]) == action::ALLOW
    };
    all.into_iter().find(|a| taken(*a)).unwrap()
}

#[test]
fn conditions_compare_all_64_bits() {
    use Compare::*;
    const BIG: u64 = 5 << 32 | 7;
    let near = [
        0,
        7,
        5 << 32,
        BIG - 1,
        BIG,
        BIG + 1,
        5 << 32 | 8,
        6 << 32,
        u64::MAX,
    ];
    for (op, holds) in [
        (Equal, (|a, b| a == b) as fn(u64, u64) -> bool),
        (NotEqual, |a, b| a != b),
        (Less, |a, b| a < b),
        (LessOrEqual, |a, b| a <= b),
        (Greater, |a, b| a > b),
        (GreaterOrEqual, |a, b| a >= b),
    ] {
        let f = made(vec![
            rule("ioctl", action::ALLOW, &[(1, op, BIG, 0)]),
            rule("read", action::ALLOW, &[]),
        ]);
        for v in near {
            let allowed = says(&f, libc::SYS_ioctl, 0, v) == action::ALLOW;
            assert_eq!(allowed, holds(v, BIG), "{op:?} {v:#x}");
        }
        assert_eq!(says(&f, libc::SYS_read, 0, 0), action::ALLOW);
    }
    let f = made(vec![rule(
        "clone",
        action::ALLOW,
        &[(0, Masked, 0x7e02_0000, 0)],
    )]);
    assert_eq!(says(&f, libc::SYS_clone, 0x11, 0), action::ALLOW);
    assert_eq!(says(&f, libc::SYS_clone, 0x1000_0011, 0), action::ERRNO);
}

#[test]
fn conditions_belong_together_unless_they_are_about_one_argument() {
    use Compare::Equal;
    let both = made(vec![rule(
        "socket",
        action::ALLOW,
        &[(0, Equal, 1, 0), (1, Equal, 2, 0)],
    )]);
    assert_eq!(says(&both, libc::SYS_socket, 1, 2), action::ALLOW);
    assert_eq!(says(&both, libc::SYS_socket, 1, 3), action::ERRNO);
    assert_eq!(says(&both, libc::SYS_socket, 3, 2), action::ERRNO);
    let either = made(vec![rule(
        "socket",
        action::ALLOW,
        &[(0, Equal, 1, 0), (0, Equal, 2, 0)],
    )]);
    assert_eq!(says(&either, libc::SYS_socket, 2, 9), action::ALLOW);
    assert_eq!(says(&either, libc::SYS_socket, 3, 9), action::ERRNO);
}

#[test]
fn a_profile_that_allows_has_no_unknown_calls_and_one_that_is_too_long_is_refused() {
    let open = Profile {
        default: action::ALLOW,
        other_archs: false,
        rules: vec![rule("reboot", EPERM, &[])],
    };
    let f = open.compile().unwrap();
    assert_eq!(last(&f, 9999), action::ALLOW);
    assert_eq!(last(&f, libc::SYS_reboot), EPERM);
    let long = Profile {
        rules: vec![rule("reboot", EPERM, &[]); 3000],
        ..open
    };
    assert_eq!(long.compile().unwrap_err().code, "E7054");
}
