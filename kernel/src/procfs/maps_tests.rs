use super::*;

const MAPS: &[u8] = b"\
5575475cc000-5575475ce000 r--p 00000000 fe:00 247030                     /usr/bin/cat
557571f1e000-557571f3f000 rw-p 00000000 00:00 0                          [heap]
7f4cbc14e000-7f4cbc170000 rw-p 00000000 00:00 0 
7f4cbc3bd000-7f4cbc3be000 r--s 0001f000 103:10 316535                    /tmp/a b \\040\\012 (deleted)
7f4cbc3be000-7f4cbc3bf000 rw-p 00000000 00:00 0                          [anon:a (deleted) b]
7f4cbc3bf000-7f4cbc3c0000 rw-s 00000000 00:01 12                         [anon_shmem:x]
7f4cbc3c0000-7f4cbc3c4000 r--p 00000000 00:00 0                          [vvar]
7f4cbc3c4000-7f4cbc3c6000 r--p 00000000 00:00 0                          [vvar_vclock]
7f4cbc3c6000-7f4cbc3c8000 r-xp 00000000 00:00 0                          [vdso]
7f4cbc3c8000-7f4cbc3c9000 --xp 00000000 00:00 0                          [uprobes]
7f4cbc3c9000-7f4cbc3ca000 rw-s 00000000 00:0d 1029                       anon_inode:[io_uring]
7ffc14bee000-7ffc14c0f000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

#[test]
fn every_kind_of_line() {
    let m = parse_maps("maps", MAPS).unwrap();
    let names: Vec<_> = m.iter().map(MapsLine::name).collect();
    use MapName::*;
    assert_eq!(
        names,
        [
            File(b"/usr/bin/cat"),
            Heap,
            Anonymous,
            File(b"/tmp/a b \\040\n"),
            AnonNamed(b"a (deleted) b"),
            ShmemNamed(b"x"),
            Vvar,
            VvarVclock,
            Vdso,
            Uprobes,
            File(b"anon_inode:[io_uring]"),
            Stack,
            Vsyscall,
        ]
    );
    let odd = &m[3];
    assert!(odd.deleted && odd.shared);
    assert_eq!(
        (odd.offset, odd.dev, odd.ino),
        (0x1f000, (0x103, 0x10), 316535)
    );
    assert_eq!(m[0].prot, 1);
    assert_eq!(
        (m[12].start, m[12].prot, m[12].len()),
        (0xffffffffff600000, 4, 4096)
    );
    assert_eq!(
        odd.to_string(),
        "7f4cbc3bd000-7f4cbc3be000 r--s /tmp/a b \\\\040\\n (deleted)"
    );
}

#[test]
fn errors_name_the_line() {
    let e = parse_maps("/proc/42/maps", b"1000-2000 rw-p 0 0:0 0 \n1000 rw_p\n").unwrap_err();
    assert_eq!(
        e.to_string(),
        "/proc/42/maps line 2: no '-' between the addresses"
    );
    for bad in [
        "2000-1000 rw-p 0 0:0 0",
        "1000-2000 rwzp 0 0:0 0",
        "1000-2000 rw-q 0 0:0 0",
        "1000-2000 rw-p 0 0 0",
        "1000-2000 rw-p 0 0:0",
    ] {
        assert!(parse_maps("maps", bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn smaps_entry() {
    let t = b"\
7ffde2dda000-7ffde2dfb000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
KernelPageSize:        4 kB
Rss:                   8 kB
Anonymous:             8 kB
Swap:                  0 kB
SwapPss:               0 kB
Locked:                4 kB
THPeligible:           0
ProtectionKey:         3
VmFlags: rd wr mr mw me gd ac zz 
";
    let e = &parse_smaps("smaps", t).unwrap()[0];
    assert_eq!(
        (e.rss, e.locked, e.kernel_page_size, e.protection_key),
        (8192, 4096, 4096, 3)
    );
    assert!(
        e.flags
            .contains(VmFlags::GROWS_DOWN | VmFlags::ACCOUNT | VmFlags::UNKNOWN)
    );
    assert!(!e.flags.intersects(VmFlags::EXEC | VmFlags::SEALED));
    assert_eq!(e.flags.to_string(), "rd wr mr mw me gd ac ??");
    let cut = &t[..t.windows(7).position(|w| w == b"VmFlags").unwrap()];
    assert_eq!(
        parse_smaps("smaps", cut).unwrap_err().to_string(),
        "smaps line 10: an entry without VmFlags"
    );
    assert!(parse_smaps("smaps", b"Rss: 8 kB\n").is_err());
}

#[test]
fn mnemonics_are_distinct() {
    for (i, (m, f)) in VM_FLAGS.iter().enumerate() {
        assert!(VM_FLAGS[..i].iter().all(|(n, g)| n != m && g != f));
        assert_eq!(VmFlags::parse(&m[..]), *f);
    }
}

proptest::proptest! {
    #[test]
    fn never_panics(text: Vec<u8>) {
        let _ = parse_maps("maps", &text);
        let _ = parse_smaps("smaps", &text);
    }

    #[test]
    fn never_panics_near_the_truth(cut in 0..MAPS.len(), at in 0..MAPS.len(), byte: u8) {
        let mut t = MAPS.to_vec();
        t[at] = byte;
        let _ = parse_maps("maps", &t[..cut]);
        let _ = parse_smaps("smaps", &t[..cut]);
    }
}
