//! Any bytes as any kind of image, through every reader: `cargo +nightly fuzz run readers` in `proto/`.
//!
//! The first byte picks the kind; the rest stands behind a correct magic, so the fuzzer does not spend its time on it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use stasis_proto::ImageDir;
use stasis_proto::show::Schema;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

#[path = "../../tests/common/mod.rs"]
mod common;

struct Bench {
    schema: Schema,
    dir: ImageDir,
    _tmp: tempfile::TempDir,
}

thread_local! {
    static BENCH: Bench = {
        let tmp = tempfile::tempdir_in(Path::new("/dev/shm")).unwrap();
        Bench { schema: Schema::new(), dir: ImageDir::open(tmp.path()).unwrap(), _tmp: tmp }
    };
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    BENCH.with(|bench| {
        let rows = common::framed().count();
        let row = common::framed().nth(usize::from(*kind) % rows).unwrap();
        let name = row.file_name(1);
        bench.dir.writer(&name).unwrap().finish().unwrap();
        let magic = bench.dir.open_raw(&name).unwrap().metadata().unwrap().len();
        let mut start = vec![0; magic as usize];
        std::io::Read::read_exact(&mut bench.dir.open_raw(&name).unwrap(), &mut start).unwrap();
        let mut file = bench.dir.create_raw(&name).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&start).unwrap();
        file.write_all(bytes).unwrap();
        let _ = common::read_everything(&bench.schema, &bench.dir, row, &name);
    });
});
