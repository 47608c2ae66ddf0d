//! Damaged and malicious folders: always an answer, never a panic, never a way out of the folder.

mod common;

use common::{framed, read_everything, write_sample};
use proptest::prelude::*;
use stasis_proto::images::{IMAGES, Payload};
use stasis_proto::show::Schema;
use stasis_proto::{ImageDir, Problem, pb};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::LazyLock;

/// Loading it takes milliseconds, too long for each of thousands of cases.
static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::new);

#[test]
fn a_file_cut_anywhere_is_refused_unless_the_cut_is_between_records() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    let schema = Schema::new();
    for row in framed() {
        let (name, whole) = write_sample(&schema, &dir, row);
        let path = tmp.path().join(&name);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let size = file.metadata().unwrap().len();
        for len in (0..=size).rev() {
            file.set_len(len).unwrap();
            let result = read_everything(&schema, &dir, row, &name);
            if row.payload == Payload::Ghost {
                // Chunks of a ghost may end at either of their parts; the head and its magic must be there.
                if len < whole[1] && len != whole[0] {
                    assert!(result.is_err(), "{name} cut to {len} of {size} bytes");
                }
                continue;
            }
            assert_eq!(
                result.is_ok(),
                whole.contains(&len),
                "{name} cut to {len} of {size} bytes: {result:?}"
            );
            if let Err(error) = result {
                let code = error.code();
                assert!(code == "E0206", "{name} cut to {len}: {code} {error}");
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Set(usize, u8),
    Word(usize, u32),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let words = prop_oneof![
        any::<u32>(),
        Just(u32::MAX),
        Just(i32::MAX as u32),
        Just(0),
        0..64u32
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, to)| Damage::Set(at, to)),
        (any::<usize>(), words).prop_map(|(at, to)| Damage::Word(at, to)),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<usize>(), 1..9usize).prop_map(|(at, len)| Damage::Remove(at, len)),
    ]
}

fn apply(damage: &Damage, bytes: &mut Vec<u8>) {
    // Half of the damage goes behind the magics, else most of it would only meet the check of the magic.
    let place = |at: usize, len: usize| match at % 2 {
        0 => at % len,
        _ => (at % len).max(8).min(len - 1),
    };
    if bytes.is_empty() {
        return;
    }
    match damage {
        Damage::Set(at, to) => {
            let at = place(*at, bytes.len());
            bytes[at] = *to;
        }
        Damage::Word(at, to) => {
            let at = place(*at, bytes.len());
            for (byte, to) in bytes[at..].iter_mut().zip(to.to_le_bytes()) {
                *byte = to;
            }
        }
        Damage::Insert(at, new) => {
            let at = place(*at, bytes.len());
            bytes.splice(at..at, new.iter().copied());
        }
        Damage::Remove(at, len) => {
            let at = place(*at, bytes.len());
            let end = bytes.len().min(at + len);
            bytes.drain(at..end);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_read_without_panic(
        kind in 0..IMAGES.len(),
        damages in prop::collection::vec(damage(), 1..5),
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::open(tmp.path()).unwrap();
        let row = framed().nth(kind % framed().count()).unwrap();
        let (name, _) = write_sample(&SCHEMA, &dir, row);
        let path = tmp.path().join(&name);
        let mut bytes = fs::read(&path).unwrap();
        for damage in &damages {
            apply(damage, &mut bytes);
        }
        fs::write(&path, &bytes).unwrap();
        let _ = read_everything(&SCHEMA, &dir, row, &name);
    }

    #[test]
    fn random_bytes_are_read_without_panic(
        kind in 0..IMAGES.len(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::open(tmp.path()).unwrap();
        let row = framed().nth(kind % framed().count()).unwrap();
        let name = row.file_name(1);
        let writer = dir.writer(&name).unwrap();
        writer.finish().unwrap();
        let path = tmp.path().join(&name);
        let mut all = fs::read(&path).unwrap();
        all.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        all.extend_from_slice(&bytes);
        fs::write(&path, &all).unwrap();
        let _ = read_everything(&SCHEMA, &dir, row, &name);
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir(tmp.path().join("images")).unwrap();
    fs::write(tmp.path().join("fs-1.img"), b"precious").unwrap();
    let dir = ImageDir::open(&tmp.path().join("images")).unwrap();
    for name in [
        "../fs-1.img",
        "/etc/passwd",
        "a/fs-1.img",
        "..",
        ".",
        "",
        "fs-1.img\0",
        "fs-1.img/",
    ] {
        for error in [
            dir.writer(name).unwrap_err(),
            dir.create_raw(name).unwrap_err(),
            dir.open_raw(name).unwrap_err(),
            dir.reader(name).unwrap_err(),
            dir.remove(name).unwrap_err(),
            dir.exists(name).unwrap_err(),
        ] {
            assert_eq!(error.code(), "E0201", "{name:?}: {error}");
        }
    }
    assert_eq!(dir.writer("passwd").unwrap_err().code(), "E0202");
    assert_eq!(fs::read(tmp.path().join("fs-1.img")).unwrap(), b"precious");
}

#[test]
fn only_regular_files_are_opened() {
    let tmp = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), b"precious").unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    let at = |name: &str| tmp.path().join(name);
    symlink(outside.path(), at("fs-1.img")).unwrap();
    symlink("fs-1.img", at("inventory.img")).unwrap();
    fs::create_dir(at("pstree.img")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("pages-1.img"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    for name in ["fs-1.img", "pstree.img", "pages-1.img"] {
        for error in [
            dir.open_raw(name).unwrap_err(),
            dir.create_raw(name).unwrap_err(),
        ] {
            assert_eq!(error.code(), "E0205", "{name}: {error}");
        }
    }
    let fs_entry = pb::FsEntry::default();
    assert_eq!(
        dir.write_one("fs-1.img", &fs_entry).unwrap_err().code(),
        "E0205"
    );
    // The commit replaces the link, it does not follow it.
    dir.commit_inventory(&pb::InventoryEntry::default())
        .unwrap();
    assert!(at("inventory.img").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(outside.path()).unwrap(), b"precious");
}

#[test]
fn what_is_created_is_private() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("images");
    let dir = ImageDir::create(&path).unwrap();
    dir.write_one("fs-1.img", &pb::FsEntry::default()).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("fs-1.img")), 0o600);
}

#[test]
fn errors_name_the_place_and_the_thing() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    let entry = pb::FsEntry {
        cwd_id: 1,
        root_id: 2,
        umask: None,
    };
    dir.write_all("fs-1.img", [&entry, &entry]).unwrap();
    let one = dir.read_one::<pb::FsEntry>("fs-1.img").unwrap_err();
    assert_eq!(
        format!("{} {one}", one.code()),
        "E0210 image fs-1.img, record 1 at byte 16: 8 bytes follow after the end of the data"
    );

    fs::copy(tmp.path().join("fs-1.img"), tmp.path().join("pstree.img")).unwrap();
    let magic = dir.read_all::<pb::PstreeEntry>("pstree.img").unwrap_err();
    assert_eq!(
        format!("{} {magic}", magic.code()),
        "E0207 image pstree.img at byte 4: wrong magic: expected PSTREE (0x50273030), found FS (0x51403912)"
    );

    let wrong = dir.read_all::<pb::PstreeEntry>("fs-1.img").unwrap_err();
    assert_eq!(wrong.code(), "E0213");
    assert_eq!(
        dir.write_one("fs-2.img", &pb::PstreeEntry::default())
            .unwrap_err()
            .code(),
        "E0213"
    );

    let path = tmp.path().join("fs-1.img");
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(16);
    bytes.extend_from_slice(&[2, 0, 0, 0, 8, 1]);
    fs::write(&path, &bytes).unwrap();
    let missing = dir.read_all::<pb::FsEntry>("fs-1.img").unwrap_err();
    assert_eq!(
        format!("{} {missing}", missing.code()),
        "E0209 image fs-1.img, record 1 at byte 16: required field fs_entry.root_id is missing"
    );
}

/// A sparse file claims any size for free; that must not become memory.
#[test]
fn the_size_of_a_sparse_file_is_not_believed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    dir.writer("fs-1.img").unwrap().finish().unwrap();
    let path = tmp.path().join("fs-1.img");
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = dir.read_all::<pb::FsEntry>("fs-1.img").unwrap_err();
    assert_eq!(error.code(), "E0211", "{error}");
    let mut reader = dir.reader("fs-1.img").unwrap();
    assert!(matches!(
        reader.rest().unwrap_err().problem,
        Problem::TooLong { .. }
    ));
}
