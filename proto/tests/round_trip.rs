//! What was written is what is read, for every kind of file.

mod common;

use common::{encoded, framed, write_sample};
use stasis_proto::images::Payload;
use stasis_proto::prost::{Message, Name};
use stasis_proto::show::Schema;
use stasis_proto::{ImageDir, images, pb, wire};

/// Records of `message`, all fields set, through the typed writer and the typed reader.
fn round_trip<T: Message + Name + Default + PartialEq + std::fmt::Debug>(
    schema: &Schema,
    dir: &ImageDir,
    name: &str,
    count: u32,
) {
    let mut messages = Vec::new();
    for seed in 0..count {
        let bytes = encoded(schema, T::NAME, seed).encode_to_vec();
        let message: T = wire::decode(&bytes).unwrap();
        // No field was lost on the way into the Rust type.
        assert_eq!(message.encode_to_vec(), bytes, "{}", T::NAME);
        messages.push(message);
    }
    dir.write_all(name, &messages).unwrap();
    assert_eq!(dir.read_all::<T>(name).unwrap(), messages, "{name}");
    let records: Vec<_> = dir.records(name).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len(), messages.len());
    for (at, (record, message)) in records.iter().zip(&messages).enumerate() {
        assert_eq!(record.index, at as u64);
        assert_eq!(record.bytes, message.encode_to_vec());
    }
}

#[test]
fn every_kind_of_records() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    let schema = Schema::new();
    let mut kinds = 0;
    for row in framed().filter(|row| row.payload == Payload::None) {
        let name = row.file_name(42);
        for message in row.message.iter().chain(&row.then) {
            macro_rules! visit {
                ($type:ty) => {
                    round_trip::<$type>(&schema, &dir, &name, 4)
                };
            }
            for_message!(*message, visit);
        }
        kinds += 1;
    }
    assert!(kinds > 50, "only {kinds} kinds were tried");
}

#[test]
fn every_kind_with_its_payload_is_shown_whole() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    let schema = Schema::new();
    for row in framed() {
        let (name, _) = write_sample(&schema, &dir, row);
        let shown = schema.show(&dir, &name).unwrap();
        let label = images::by_magic(row.magic).unwrap().label;
        assert_eq!(shown["magic"], label);
        let entries = shown["entries"].as_array().unwrap();
        let expected = if row.payload == Payload::Ghost { 1 } else { 3 };
        assert_eq!(entries.len(), expected, "{name}");
        assert_eq!(
            entries[0].get("payload").is_some(),
            row.payload != Payload::None,
            "{name}"
        );
    }
}

#[test]
fn records_and_payload_take_turns() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    let mut writer = dir.writer("pipes-data.img").unwrap();
    for (pipe_id, data) in [(1, &b"first"[..]), (2, b""), (3, b"third pipe")] {
        let entry = pb::PipeDataEntry {
            pipe_id,
            bytes: data.len() as u32,
            size: None,
            ..Default::default()
        };
        writer.write(&entry).unwrap();
        writer.raw(data).unwrap();
    }
    writer.finish().unwrap();

    let mut reader = dir.reader("pipes-data.img").unwrap();
    let mut read = Vec::new();
    while let Some(entry) = reader.read::<pb::PipeDataEntry>().unwrap() {
        read.push((entry.pipe_id, reader.payload(entry.bytes.into()).unwrap()));
    }
    reader.finish().unwrap();
    assert_eq!(
        read,
        [
            (1, b"first".to_vec()),
            (2, vec![]),
            (3, b"third pipe".to_vec())
        ]
    );
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::open(tmp.path()).unwrap();
    let fs = pb::FsEntry {
        cwd_id: 1,
        root_id: 2,
        umask: Some(0o22),
    };
    dir.write_one("fs-1.img", &fs).unwrap();
    dir.commit_inventory(&pb::InventoryEntry {
        img_version: 2,
        ..Default::default()
    })
    .unwrap();
    stasis_proto::stats::write_stats(&dir, "stats-dump", &pb::StatsEntry::default()).unwrap();
    let bytes = |name| std::fs::read(tmp.path().join(name)).unwrap();
    assert_eq!(
        bytes("fs-1.img"),
        b"\x19\x43\x56\x54\x12\x39\x40\x51\x06\0\0\0\x08\x01\x10\x02\x18\x12"
    );
    assert_eq!(
        bytes("inventory.img"),
        b"\x16\x31\x31\x58\x02\0\0\0\x08\x02"
    );
    assert_eq!(
        bytes("stats-dump"),
        b"\x40\x59\x10\x55\x06\x33\x09\x57\0\0\0\0"
    );
}

#[test]
fn defaults_of_the_schema_are_kept() {
    assert_eq!(pb::CriuOpts::default().images_dir_fd, -1);
    assert_eq!(pb::CriuOpts::default().log_level(), 2);
    assert_eq!(pb::RegFileEntry::default().mnt_id(), -1);
    assert!(pb::UserDescT::default().seg_not_present);
}
