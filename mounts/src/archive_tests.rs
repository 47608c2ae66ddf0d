use super::*;
use flate2::read::GzDecoder;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn open_dir(p: &Path) -> File {
    File::open(p).expect("a folder")
}

/// Something of everything that a tmpfs can hold.
fn fill(at: &Path) {
    let long = "n".repeat(180);
    fs::create_dir_all(at.join("d/e/f")).expect("folders");
    fs::create_dir_all(at.join(&long).join(&long)).expect("folders");
    fs::write(at.join("empty"), "").expect("a file");
    fs::write(at.join("d/text"), "hello\n").expect("a file");
    fs::write(at.join(&long).join(&long).join("deep"), vec![7; 1500]).expect("a file");
    fs::set_permissions(at.join("d/text"), fs::Permissions::from_mode(0o4751)).expect("chmod");
    fs::hard_link(at.join("d/text"), at.join("again")).expect("a link");
    symlink("/nowhere/else", at.join("d/link")).expect("a link");
    symlink("t".repeat(160), at.join("longlink")).expect("a link");
    let sparse = File::create(at.join("sparse")).expect("a file");
    for i in 0..60u64 {
        sparse
            .write_all_at(&[i as u8 + 1; 4096], i * 40960)
            .expect("a write");
    }
    sparse.set_len(60 * 40960 + 5).expect("a size");
    let hole = File::create(at.join("hole")).expect("a file");
    hole.set_len(10 << 30).expect("a size");
    let mode = Mode::from_bits_truncate(0o640);
    nix::unistd::mkfifo(&at.join("fifo"), mode).expect("a fifo");
    nix::sys::stat::mknod(&at.join("null"), SFlag::S_IFCHR, mode, libc::makedev(1, 3))
        .expect("a device");
    rustix::fs::setxattr(
        at.join("d/text"),
        "user.note",
        b"\0binary\n",
        XattrFlags::empty(),
    )
    .expect("an attribute");
    rustix::fs::setxattr(
        at.join("d"),
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .expect("an attribute");
    nix::unistd::chown(
        &at.join("d/e"),
        Some(Uid::from_raw(70000)),
        Some(Gid::from_raw(33)),
    )
    .expect("chown");
    let old = TimeSpec::new(-3, 250_000_000);
    for name in ["d/text", "longlink", "d/e"] {
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            &at.join(name),
            &old,
            &old,
            UtimensatFlags::NoFollowSymlink,
        )
        .expect("times");
    }
    fs::set_permissions(at, fs::Permissions::from_mode(0o1777)).expect("chmod");
}

/// Everything below a folder, one line each; `exact`: with what GNU tar leaves out unless told.
fn list(at: &Path, exact: bool) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![at.to_path_buf()];
    let mut inodes = Vec::new();
    while let Some(p) = todo.pop() {
        let m = fs::symlink_metadata(&p).expect("metadata");
        let name = p.strip_prefix(at).expect("below").display().to_string();
        let mut line = format!("{name} {:o} {}:{} {}", m.mode(), m.uid(), m.gid(), m.rdev());
        if exact {
            line += &format!(" {}.{:09}", m.mtime(), m.mtime_nsec());
            let path = p.as_os_str().as_bytes();
            for (k, v) in xattrs(path).expect("attributes") {
                line += &format!(" {k}={}", v.escape_ascii());
            }
        }
        if m.is_file() && m.nlink() > 1 {
            inodes.push((m.ino(), name.clone()));
        }
        if m.is_dir() {
            todo.extend(
                fs::read_dir(&p)
                    .expect("a folder")
                    .map(|e| e.expect("an entry").path()),
            );
        } else if m.is_symlink() {
            line += &format!(" -> {}", fs::read_link(&p).expect("a link").display());
        } else if m.is_file() && m.len() < 1 << 30 {
            let b = fs::read(&p).expect("a file");
            let sum = b
                .iter()
                .fold(0u64, |s, b| s.wrapping_mul(31).wrapping_add((*b).into()));
            line += &format!(" {} {sum}", b.len());
        } else if m.is_file() {
            line += &format!(" {} with {} blocks", m.len(), m.blocks());
        } else {
            let t = m.file_type();
            assert!(t.is_fifo() || t.is_char_device() || t.is_socket());
        }
        all.push(line);
    }
    inodes.sort();
    all.extend(
        inodes
            .chunks(2)
            .map(|c| format!("{} is {}", c[0].1, c[1].1)),
    );
    all.sort();
    all
}

fn packed(at: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    pack(open_dir(at).as_fd(), &mut out, &Ids::default()).expect("an archive");
    out
}

fn unpacked(archive: &[u8]) -> (tempfile::TempDir, Result<()>) {
    let to = folder();
    let done = unpack(
        open_dir(to.path()).as_fd(),
        archive,
        "t",
        &Devices::default(),
    );
    (to, done)
}

fn tar(args: &[&str]) {
    let done = Command::new("tar").args(args).output().expect("GNU tar");
    assert!(
        done.status.success(),
        "tar {args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn all_comes_back() {
    let from = folder();
    fill(from.path());
    let (to, done) = unpacked(&packed(from.path()));
    done.expect("unpacked");
    let was = list(from.path(), true);
    assert!(
        was.iter().any(|l| l.contains("user.note=\\x00binary\\n")),
        "{was:?}"
    );
    assert_eq!(was, list(to.path(), true));
}

#[test]
fn gnu_tar_reads_what_we_write() {
    let (from, to, at) = (folder(), folder(), folder());
    fill(from.path());
    let image = at.path().join("a.tar.gz");
    fs::write(&image, packed(from.path())).expect("a file");
    let (image, to_dir) = (image.display().to_string(), to.path().display().to_string());
    tar(&[
        "--extract",
        "--gzip",
        "--no-unquote",
        "--no-wildcards",
        "--directory",
        &to_dir,
        "--file",
        &image,
    ]);
    assert_eq!(list(from.path(), false), list(to.path(), false));
}

#[test]
fn we_read_what_gnu_tar_writes() {
    let from = folder();
    fill(from.path());
    for format in ["gnu", "posix"] {
        let at = folder();
        let image = at.path().join("a.tar.gz");
        let (f, dir) = (
            image.display().to_string(),
            from.path().display().to_string(),
        );
        let xattrs: &[&str] = match format {
            "posix" => &["--xattrs", "--xattrs-include=*"],
            _ => &[],
        };
        let common = [
            "--create",
            "--gzip",
            "--sparse",
            "--numeric-owner",
            "--format",
            format,
        ];
        let rest = ["--file", &f, "--directory", &dir, "."];
        tar(&[&common, xattrs, &rest].concat());
        let (to, done) = unpacked(&fs::read(&image).expect("an archive"));
        done.unwrap_or_else(|e| panic!("{format}: {e}"));
        assert_eq!(
            list(from.path(), format == "posix"),
            list(to.path(), format == "posix"),
            "{format}"
        );
    }
}

/// An archive of these entries: type, path, link, and a change to the header.
fn archive_of(entries: &[(EntryType, &str, &str)], change: impl Fn(&mut Header)) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    for (kind, path, link) in entries {
        let mut h = Header::new_gnu();
        h.set_entry_type(*kind);
        h.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        h.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        h.set_mode(0o755);
        h.set_uid(0);
        h.set_gid(0);
        h.set_mtime(0);
        h.set_size(0);
        change(&mut h);
        h.set_cksum();
        out.write_all(h.as_bytes()).expect("a header");
    }
    out.write_all(&[0; 1024]).expect("the end");
    out.finish().expect("an archive")
}

#[test]
fn hostile_archives_stay_inside() {
    use EntryType::{Block, Char, Directory, Link, Regular, Symlink};
    let outside = folder();
    fs::write(outside.path().join("secret"), "x").expect("a file");
    let out = outside.path().display().to_string();
    let up = format!(
        "../{}/new",
        outside
            .path()
            .file_name()
            .expect("a name")
            .to_string_lossy()
    );
    let secret = format!("{out}/secret");
    let cases: &[&[(EntryType, &str, &str)]] = &[
        &[(Regular, "../new", "")],
        &[(Regular, &up, "")],
        &[(Regular, &format!("{out}/new"), "")],
        &[(Directory, "a/../../new", "")],
        &[(Symlink, "a", &out), (Regular, "a/new", "")],
        &[
            (Directory, "a", ""),
            (Symlink, "a/b", ".."),
            (Regular, "a/b/../new", ""),
        ],
        &[(Symlink, "a", "."), (Regular, "a/new", "")],
        &[(Link, "new", &secret)],
        &[(Symlink, "s", &out), (Link, "new", "s/secret")],
        &[(Link, "new", "../secret")],
    ];
    for c in cases {
        let (to, done) = unpacked(&archive_of(c, |_| ()));
        let e = done.expect_err("it leads outside");
        assert_eq!(e.code, "E5306", "{c:?}: {e}");
        assert!(!to.path().join("new").exists());
        assert_eq!(
            fs::read_dir(outside.path()).expect("a folder").count(),
            1,
            "{c:?}"
        );
    }
    for kind in [Char, Block] {
        let disk = archive_of(&[(kind, "disk", "")], |h| {
            h.set_device_major(8)
                .and_then(|()| h.set_device_minor(0))
                .expect("a number");
        });
        let (to, done) = unpacked(&disk);
        assert_eq!(done.expect_err("a disk").code, "E5306");
        assert!(!to.path().join("disk").exists());
    }
    // over a name that is there already, nothing is written through
    let twice = archive_of(&[(Symlink, "a", &secret), (Regular, "a", "")], |_| ());
    assert_eq!(
        unpacked(&twice).1.expect_err("the name is taken").code,
        "E6311"
    );
    assert_eq!(fs::read_to_string(&secret).expect("a file"), "x");
}

#[test]
fn only_known_attributes_are_set() {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    let mut pax = Vec::new();
    record(
        &mut pax,
        "SCHILY.xattr.security.selinux",
        b"system_u:object_r:unconfined_t:s0",
    );
    let mut h = Header::new_ustar();
    h.set_entry_type(EntryType::XHeader);
    h.set_size(pax.len() as u64);
    h.set_cksum();
    out.write_all(h.as_bytes()).expect("a header");
    pax.resize(BLOCK, 0);
    out.write_all(&pax).expect("a record");
    let rest = archive_of(&[(EntryType::Regular, "f", "")], |_| ());
    std::io::copy(&mut GzDecoder::new(rest.as_slice()), &mut out).expect("the rest");
    let (_to, done) = unpacked(&out.finish().expect("an archive"));
    assert_eq!(done.expect_err("a label").code, "E5306");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]
    #[test]
    fn damaged_archives_are_refused_or_read(changes in prop::collection::vec((0..8192usize, any::<u8>()), 1..4), cut in 0..8192usize) {
        let from = folder();
        fs::write(from.path().join("f"), "text").expect("a file");
        let sparse = File::create(from.path().join("s")).expect("a file");
        sparse.write_all_at(b"x", 1 << 20).expect("a write");
        symlink("x", from.path().join("l")).expect("a link");
        let mut plain = Vec::new();
        GzDecoder::new(packed(from.path()).as_slice()).read_to_end(&mut plain).expect("a tar");
        for (at, b) in changes {
            let n = plain.len();
            plain[at % n] = b;
        }
        // headers with the right sum get further
        for block in plain.chunks_exact_mut(BLOCK) {
            let mut h = Header::new_old();
            h.as_mut_bytes().copy_from_slice(block);
            if h.cksum().is_ok_and(|c| c > 0) {
                h.set_cksum();
                block.copy_from_slice(h.as_bytes());
            }
        }
        plain.truncate(plain.len().min(4096 + cut));
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(&plain).expect("a tar");
        let (to, done) = unpacked(&out.finish().expect("an archive"));
        if let Err(e) = done {
            prop_assert!(["E5305", "E5306", "E6311"].contains(&e.code), "{}", e);
        }
        drop(to);
    }
}

#[test]
fn times_before_1970() {
    for (s, ns) in [
        (0, 5),
        (-1, 0),
        (-1, 750_000_000),
        (-3, 1),
        (12, 999_999_999),
    ] {
        let text = seconds(s, ns);
        let back = time(text.as_bytes()).expect("a time");
        assert_eq!((back.tv_sec(), back.tv_nsec()), (s, ns), "{text}");
    }
}

#[test]
fn names_of_sockets_come_back() {
    let from = folder();
    let (d, s) = (from.path().join("d"), from.path().join("d/a socket"));
    fs::create_dir(&d).expect("a folder");
    drop(std::os::unix::net::UnixListener::bind(&s).expect("a socket"));
    fs::set_permissions(&s, fs::Permissions::from_mode(0o4751)).expect("chmod");
    let old = TimeSpec::new(12345, 250_000_000);
    for p in [&s, &d] {
        let flags = UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, p, &old, &old, flags).expect("times");
    }
    let archive = packed(from.path());
    let (to, done) = unpacked(&archive);
    done.expect("unpacked");
    let (was, is) = (
        fs::symlink_metadata(&s).expect("metadata"),
        fs::symlink_metadata(to.path().join("d/a socket")).expect("metadata"),
    );
    assert!(is.file_type().is_socket());
    let about = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
    assert_eq!(about(&is), about(&was));
    assert_eq!(list(&to.path().join("d"), true), list(&d, true));
    // others skip it
    let file = folder();
    fs::write(file.path().join("a.tgz"), &archive).expect("a file");
    fs::create_dir(file.path().join("out")).expect("a folder");
    let at = |n: &str| file.path().join(n).display().to_string();
    tar(&["-xzf", &at("a.tgz"), "-C", &at("out")]);
    assert!(file.path().join("out/d").is_dir());
}

#[test]
fn names_of_sockets_stay_inside() {
    for (about, code) in [
        ("755 0 0 0.000000000 ../x", "E5306"),
        ("755 0 0 0.000000000 /x", "E5306"),
        ("755 0 0 x", "E5305"),
        ("", "E5305"),
    ] {
        let mut record_of = Vec::new();
        record(&mut record_of, SOCKET_KEY, about.as_bytes());
        let mut p = Packer {
            out: GzEncoder::new(Vec::new(), Compression::fast()),
            ids: &Ids::default(),
            links: BTreeMap::new(),
            buffer: Vec::new(),
        };
        let mut h = Header::new_ustar();
        h.set_entry_type(EntryType::XGlobalHeader);
        h.set_mode(0o600);
        p.block(&mut h, b"./GlobalHead", &record_of)
            .expect("a header");
        let archive = p.out.finish().expect("an archive");
        let (to, done) = unpacked(&archive);
        assert_eq!(done.expect_err(about).code, code, "{about}");
        assert_eq!(fs::read_dir(to.path()).expect("a folder").count(), 0);
    }
}
