use super::*;
use crate::kinds::testing::{self, dump, dump_with, flags};
use nix::fcntl::{AT_FDCWD, openat};
use nix::sys::stat::Mode;
use stasis_kernel::host::Host;
use stasis_proto::ImageDir;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

fn link_of(fd: impl AsFd) -> String {
    let l = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap();
    l.into_os_string().into_string().unwrap()
}

fn open(path: impl AsRef<Path>, flags: i32) -> OwnedFd {
    let f = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
    openat(AT_FDCWD, path.as_ref(), f, Mode::from_bits_retain(0o640)).unwrap()
}

type Sides = (String, u32, i64, u32, u32, i64, (i64, i64));

/// What must be alike before and after: name, flags, position, type, permissions, owner, size, times.
fn sides(fd: impl AsFd) -> Sides {
    let st = fds::fstat(fd.as_fd()).unwrap();
    let pos = testing::info(fd.as_fd()).pos;
    let us = |s: i64, ns: i64| s * 1_000_000 + ns / 1000;
    (
        link_of(fd.as_fd()),
        flags(fd.as_fd()),
        pos,
        st.st_mode,
        st.st_uid,
        st.st_size,
        (
            us(st.st_atime, st.st_atime_nsec),
            us(st.st_mtime, st.st_mtime_nsec),
        ),
    )
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut n: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    n.sort();
    n
}

#[test]
fn files_folders_devices_links_and_proc_come_back() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("a"), b"hello world").unwrap();
    std::os::unix::fs::symlink("a", tmp.path().join("l")).unwrap();
    let a = tmp.path().join("a");
    let mut f = File::from(open(&a, libc::O_RDWR | libc::O_SYNC));
    f.seek(SeekFrom::Start(6)).unwrap();
    let mut maps = File::from(open("/proc/self/maps", libc::O_RDONLY));
    maps.read_exact(&mut [0; 5]).unwrap();
    let all: Vec<OwnedFd> = vec![
        f.into(),
        open(&a, libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK),
        open(&a, libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_DIRECT),
        open(&a, libc::O_PATH),
        open(tmp.path(), libc::O_RDONLY | libc::O_DIRECTORY),
        open(tmp.path().join("l"), libc::O_PATH | libc::O_NOFOLLOW),
        open("/dev/null", libc::O_RDWR),
        open("/dev/urandom", libc::O_RDONLY),
        maps.into(),
    ];
    let fds: Vec<_> = all.iter().map(|f| f.as_fd()).collect();
    let before: Vec<_> = all.iter().map(sides).collect();
    let d = dump(&Regular, &fds).unwrap();
    assert_eq!(all.iter().map(sides).collect::<Vec<_>>(), before);
    // as CRIU writes them: no size for an append-only log, for devices, for folders; but for regular files of /proc
    let size = |id: u32| d.files[&id].reg.as_ref().unwrap().size;
    assert_eq!(
        (size(1), size(2), size(5), size(7)),
        (Some(11), None, None, None)
    );
    let after: Vec<_> = d.files(&Regular).iter().map(sides).collect();
    assert_eq!(after, before);
}

#[test]
fn a_file_that_changed_is_refused_with_both_values() {
    let tmp = tempfile::tempdir().unwrap();
    let a = tmp.path().join("a");
    std::fs::write(&a, b"1234").unwrap();
    let (r, log) = (
        open(&a, libc::O_RDONLY),
        open(&a, libc::O_WRONLY | libc::O_APPEND),
    );
    let mut d = dump(&Regular, &[r.as_fd()]).unwrap();
    let l = dump(&Regular, &[log.as_fd()]).unwrap();
    std::fs::write(&a, b"12345").unwrap();
    l.files(&Regular);
    let e = d.restore(&Regular).err().unwrap().to_string();
    assert!(
        e.contains("5 bytes and had 4") && e.contains("E6121"),
        "{e}"
    );
    std::fs::write(&a, b"1234").unwrap();
    let mode = |m| std::fs::set_permissions(&a, std::os::unix::fs::PermissionsExt::from_mode(m));
    mode(0o600).unwrap();
    let e = d.restore(&Regular).err().unwrap().to_string();
    assert!(
        e.contains("0600") && e.contains("--skip-file-rwx-check"),
        "{e}"
    );
    d.options.skip_file_rwx_check = true;
    d.files(&Regular);
    std::fs::remove_file(&a).unwrap();
    std::fs::create_dir(&a).unwrap();
    let e = d.restore(&Regular).err().unwrap().to_string();
    assert!(e.contains("bytes and had"), "{e}");
}

#[test]
fn a_fifo_under_the_name_does_not_hold_the_restore_up() {
    let tmp = tempfile::tempdir().unwrap();
    let a = tmp.path().join("a");
    std::fs::write(&a, b"").unwrap();
    let f = open(&a, libc::O_RDONLY);
    let d = dump(&Regular, &[f.as_fd()]).unwrap();
    std::fs::remove_file(&a).unwrap();
    nix::unistd::mkfifo(&a, Mode::from_bits_retain(0o640)).unwrap();
    let e = d.restore(&Regular).err().unwrap().to_string();
    assert!(e.contains("it is a fifo and was a regular file"), "{e}");
}

#[test]
fn what_has_state_elsewhere_is_not_claimed() {
    let claims = |fd: OwnedFd| testing::see(&fd, |s| Regular.claims(s));
    assert!(!claims(open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)));
    assert!(claims(open("/dev/ptmx", libc::O_PATH)));
    let m = fds::memfd_create(c"x", 0).unwrap();
    assert!(!testing::see(&m, |s| Regular.claims(s)));
    // but a file that only looks like one is
    let tmp = tempfile::tempdir().unwrap();
    assert!(claims(open(tmp.path(), libc::O_TMPFILE | libc::O_RDWR)));
}

/// All sorts of deleted files, several opens of one inode under two names, sparse contents, a missing parent.
#[test]
fn deleted_files_come_back_under_their_old_names_and_leave_none() {
    let tmp = tempfile::tempdir().unwrap();
    let p = |n: &str| tmp.path().join(n);
    let new = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let mut small = File::from(open(p("small"), new));
    small.write_all(b"tiny").unwrap();
    std::fs::hard_link(p("small"), p("second")).unwrap();
    let second = open(p("second"), libc::O_RDONLY | libc::O_NOFOLLOW);
    let by_path = open(p("small"), libc::O_PATH);
    let big = File::from(open(p("big"), new));
    big.set_len(50 << 20).unwrap();
    big.write_all_at(&vec![7u8; 3 << 20], 10 << 20).unwrap();
    big.write_all_at(b"end", (50 << 20) - 3).unwrap();
    std::fs::create_dir(p("gone")).unwrap();
    let folder = open(p("gone"), libc::O_RDONLY | libc::O_DIRECTORY);
    let within = open(p("gone/within"), new | libc::O_APPEND);
    std::os::unix::fs::symlink("nowhere", p("sym")).unwrap();
    let sym = open(p("sym"), libc::O_PATH | libc::O_NOFOLLOW);
    nix::unistd::mkfifo(&p("fifo"), Mode::S_IRUSR).unwrap();
    let fifo = open(p("fifo"), libc::O_PATH);
    let tmpfile = open(tmp.path(), libc::O_TMPFILE | libc::O_RDWR);
    nix::unistd::fchown(&small, Some(nix::unistd::Uid::from_raw(1234)), None).unwrap();
    nix::sys::stat::fchmod(&small, Mode::from_bits_retain(0o4751)).unwrap();
    for n in ["small", "second", "big", "gone/within", "sym", "fifo"] {
        std::fs::remove_file(p(n)).unwrap();
    }
    std::fs::remove_dir(p("gone")).unwrap();
    assert_eq!(names_in(tmp.path()), [""; 0]);
    let all: Vec<OwnedFd> = vec![
        small.into(),
        second,
        by_path,
        big.into(),
        folder,
        within,
        sym,
        fifo,
    ];
    let fds: Vec<_> = all.iter().map(|f| f.as_fd()).collect();
    let before: Vec<_> = all.iter().map(sides).collect();
    let d = dump(&Regular, &fds).unwrap();
    let mut since: Vec<_> = all.iter().map(sides).collect();
    // reading the symbolic link's target was an access
    since[6].6.0 = before[6].6.0;
    assert_eq!(since, before);
    let dir = ImageDir::open(d.tmp.path()).unwrap();
    let ghosts = dir.list().unwrap();
    let ghosts: Vec<_> = ghosts.iter().filter(|n| n.starts_with("ghost")).collect();
    assert_eq!(ghosts.len(), 6, "one image per inode: {ghosts:?}");
    // only the data of the sparse file was carried
    let carried = std::fs::metadata(d.tmp.path().join("ghost-file-2.img")).unwrap();
    assert!((3 << 20..4 << 20).contains(&carried.len()));
    drop(all);

    let again = d.files(&Regular);
    assert_eq!(names_in(tmp.path()), [""; 0]);
    let after: Vec<_> = again.iter().map(sides).collect();
    assert_eq!(after, before);
    let ino = |i: usize| fds::fstat(again[i].as_fd()).unwrap().st_ino;
    assert!(ino(0) == ino(1) && ino(1) == ino(2) && ino(2) != ino(3));
    let mut text = String::new();
    File::from(again[1].try_clone().unwrap())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "tiny");
    let big = File::from(again[3].try_clone().unwrap());
    let mut buf = vec![0; 5 << 20];
    big.read_exact_at(&mut buf, 9 << 20).unwrap();
    assert!(buf[..1 << 20].iter().all(|b| *b == 0));
    assert!(buf[1 << 20..4 << 20].iter().all(|b| *b == 7));
    assert!(buf[4 << 20..].iter().all(|b| *b == 0));
    big.read_exact_at(&mut buf[..3], (50 << 20) - 3).unwrap();
    assert_eq!(&buf[..3], b"end");
    assert!(
        big.metadata().unwrap().blocks() * 512 < 4 << 20,
        "holes stay holes"
    );
    assert_eq!(nix::fcntl::readlinkat(&again[6], "").unwrap(), "nowhere");

    // a file made by O_TMPFILE loses only that flag
    let mut want = sides(&tmpfile);
    want.1 &= !(libc::O_TMPFILE as u32);
    let d = dump(&Regular, &[tmpfile.as_fd()]).unwrap();
    assert_eq!(sides(&d.files(&Regular)[0]), want);
}

#[test]
fn a_taken_name_is_not_touched_and_a_failure_leaves_no_name() {
    let tmp = tempfile::tempdir().unwrap();
    let a = tmp.path().join("a");
    let f = open(&a, libc::O_RDWR | libc::O_CREAT);
    nix::unistd::write(&f, b"old").unwrap();
    std::fs::remove_file(&a).unwrap();
    let mut d = dump(&Regular, &[f.as_fd()]).unwrap();
    drop(f);
    std::fs::write(&a, b"somebody else's").unwrap();
    let got = d.files(&Regular);
    assert_eq!(
        link_of(&got[0]),
        format!("{}.cr_link (deleted)", a.display())
    );
    assert_eq!(std::fs::read(&a).unwrap(), b"somebody else's");
    assert_eq!(names_in(tmp.path()), ["a"]);
    // flags that cannot be opened: the act fails when its name is there already
    std::fs::remove_file(&a).unwrap();
    let reg = d.files.get_mut(&1).unwrap().reg.as_mut().unwrap();
    reg.flags = libc::O_DIRECTORY as u32;
    let e = d.restore(&Regular).err().unwrap().to_string();
    assert!(e.contains("ENOTDIR") && e.contains("E6122"), "{e}");
    assert_eq!(names_in(tmp.path()), [""; 0]);
}

#[test]
fn the_ghost_limit_names_both_sizes() {
    let tmp = tempfile::tempdir().unwrap();
    let a = tmp.path().join("a");
    let f = File::from(open(&a, libc::O_RDWR | libc::O_CREAT));
    f.write_all_at(&[1; 40960], 0).unwrap();
    std::fs::remove_file(&a).unwrap();
    let go = |limit| dump_with(&Regular, &[f.as_fd()], &[], |o| o.ghost_limit = Some(limit));
    let e = go(40959).err().unwrap().to_string();
    assert!(
        e.contains("40960 bytes") && e.contains("40959 bytes"),
        "{e}"
    );
    go(40960).unwrap();
}

#[test]
fn a_deleted_name_of_a_file_with_others_is_linked_and_the_link_goes() {
    let tmp = tempfile::tempdir().unwrap();
    let p = |n: &str| tmp.path().join(n);
    let f = open(p("a"), libc::O_RDWR | libc::O_CREAT);
    nix::unistd::write(&f, b"linked").unwrap();
    std::fs::hard_link(p("a"), p("b")).unwrap();
    std::fs::remove_file(p("a")).unwrap();
    let e = dump(&Regular, &[f.as_fd()]).err().unwrap().to_string();
    assert!(
        e.contains("--link-remap") && e.contains("1 other name "),
        "{e}"
    );
    assert_eq!(names_in(tmp.path()), ["b"]);
    let go = || dump_with(&Regular, &[f.as_fd()], &[], |o| o.link_remap = true).unwrap();
    let failed = go();
    assert_eq!(names_in(tmp.path()), ["b", "link_remap.2"]);
    failed.undo.iter().for_each(|u| u.perform().unwrap());
    assert_eq!(names_in(tmp.path()), ["b"]);
    let mut d = go();
    let before = sides(&f);
    let mut p1 = d.restore(&Regular).unwrap();
    let new = p1.host.take(FdRef(1)).unwrap();
    assert_eq!(sides(&new), before);
    assert_eq!(
        fds::fstat(new.as_fd()).unwrap().st_ino,
        fds::fstat(f.as_fd()).unwrap().st_ino
    );
    // the link is there until nothing can fail any more
    assert_eq!(names_in(tmp.path()), ["b", "link_remap.2"]);
    assert_eq!(p1.last.len(), 1);
    Host::default().play(p1.last[0].call().unwrap()).unwrap();
    assert_eq!(names_in(tmp.path()), ["b"]);
    // an image cannot have just any file removed
    d.files.get_mut(&2).unwrap().reg.as_mut().unwrap().name =
        p("b").into_os_string().into_encoded_bytes();
    let e = d.restore(&Regular).err().unwrap().to_string();
    assert!(e.contains("not called link_remap"), "{e}");
}

#[test]
fn a_hidden_file_is_an_error_that_names_it() {
    let tmp = tempfile::tempdir().unwrap();
    let a = tmp.path().join("a");
    let f = open(&a, libc::O_RDWR | libc::O_CREAT);
    let images = ImageDir::open(tmp.path()).unwrap();
    let (options, pids) = (crate::Options::new(tmp.path()), BTreeMap::new());
    // as a mount over it would look: the same path, another inode
    let shown = testing::see(&f, |s| {
        let other = testing::see(open("/dev/null", libc::O_RDWR), |o| o.stat);
        let mut cx = DumpCx::new(&options, &images, &pids);
        let s = Seen {
            stat: other,
            link: s.link,
            info: s.info,
            fown: s.fown,
            ..*s
        };
        Regular.dump(&s, 1, &mut cx).err().unwrap().to_string()
    });
    assert!(
        shown.contains("E4113") && shown.contains(a.to_str().unwrap()),
        "{shown}"
    );
}

#[test]
fn a_mapped_file_gets_one_entry_however_often_it_is_described() {
    let tmp = tempfile::tempdir().unwrap();
    let images = ImageDir::create(&tmp.path().join("images")).unwrap();
    let options = crate::Options::new(tmp.path());
    let me = HostPid::own();
    let pids = BTreeMap::from([(me, me.0 as u32)]);
    let a = tmp.path().join("a");
    let f = open(&a, libc::O_RDWR | libc::O_CREAT);
    nix::unistd::write(&f, b"mapped").unwrap();
    let link = link_of(&f);
    std::fs::remove_file(&a).unwrap();
    let m = fds::memfd_create(c"m", 0).unwrap();
    let mut cx = DumpCx::new(&options, &images, &pids);
    let mut tell = |fd: BorrowedFd, link: &str, flags: i32| {
        let link = format!("{link} (deleted)");
        describe(&mut cx, me, fd, link.as_bytes(), flags as u32, "a mapping").unwrap()
    };
    let ids = [
        tell(f.as_fd(), &link, libc::O_RDONLY),
        tell(f.as_fd(), &link, libc::O_RDONLY),
        tell(f.as_fd(), &link, libc::O_RDWR),
        tell(m.as_fd(), "/memfd:m", libc::O_RDWR),
    ];
    assert_eq!(ids, [1, 1, 2, 3]);
    cx.finish_writers().unwrap();
    drop(f);
    let files: BTreeMap<_, _> = std::mem::take(&mut cx.entries)
        .into_iter()
        .map(|e| (e.id, e))
        .collect();
    let none = BTreeMap::new();
    let mut plan = PlanCx::new(&options, &images, &files, &none);
    let (x, y) = (FdRef(1000), FdRef(1001));
    plan_open(&mut plan, 1, libc::O_RDWR as u32, x).unwrap();
    plan_open(&mut plan, 3, libc::O_RDONLY as u32, y).unwrap();
    assert!(plan_open(&mut plan, 9, 0, y).is_err());
    let mut host = Host::default();
    let mut on = crate::kinds::Stagehand {
        host: &mut host,
        dir: &images,
        pid: &|p| Some(HostPid(p as i32)),
    };
    for crate::kinds::HostAct { act, .. } in &plan.host {
        act.perform(&mut on).unwrap();
    }
    let x = File::from(host.take(x).unwrap());
    let mut b = [0; 6];
    x.read_exact_at(&mut b, 0).unwrap();
    assert_eq!(&b, b"mapped");
    assert_eq!(link_of(&x), format!("{link} (deleted)"));
    assert_eq!(link_of(host.fd(y).unwrap()), "/memfd:m (deleted)");
}
