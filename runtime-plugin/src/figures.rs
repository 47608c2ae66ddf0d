//! The numbers of a dump or restore: as the files `stats-dump` and `stats-restore`, and as text.
use stasis_engine::{DumpReport, RestoreReport};
use stasis_proto::{ImageDir, pb, stats};
use std::path::Path;

fn small(us: u64) -> u32 {
    u32::try_from(us).unwrap_or(u32::MAX)
}

/// The record of a dump.
pub fn dump_entry(r: &DumpReport) -> pb::StatsEntry {
    pb::StatsEntry {
        dump: Some(pb::DumpStatsEntry {
            freezing_time: small(r.freezing_us),
            frozen_time: small(r.frozen_us),
            memdump_time: small(r.memdump_us),
            memwrite_time: small(r.memwrite_us),
            pages_scanned: r.pages_scanned,
            pages_skipped_parent: r.pages_skipped_parent,
            pages_written: r.pages_written,
            irmap_resolve: Some(0),
            pages_lazy: r.pages_lazy,
            page_pipes: Some(0),
            page_pipe_bufs: Some(0),
            shpages_scanned: Some(r.shpages_scanned),
            shpages_skipped_parent: Some(r.shpages_skipped_parent),
            shpages_written: Some(r.shpages_written),
        }),
        restore: None,
    }
}

/// The record of a restore.
pub fn restore_entry(r: &RestoreReport) -> pb::StatsEntry {
    pb::StatsEntry {
        dump: None,
        restore: Some(pb::RestoreStatsEntry {
            pages_compared: r.pages_compared,
            pages_skipped_cow: r.pages_skipped_cow,
            forking_time: small(r.forking_us),
            restore_time: small(r.restore_us),
            pages_restored: Some(r.pages_restored),
        }),
    }
}

/// Writes `stats-dump`. The dump is done by then, so trouble is only a warning.
pub fn write_dump(work: &Path, r: &DumpReport) {
    write(work, "stats-dump", &dump_entry(r));
}

/// Writes `stats-restore`; trouble is only a warning, the tree runs.
pub fn write_restore(work: &Path, r: &RestoreReport) {
    write(work, "stats-restore", &restore_entry(r));
}

fn write(work: &Path, name: &str, entry: &pb::StatsEntry) {
    let done = ImageDir::open(work).and_then(|d| stats::write_stats(&d, name, entry));
    if let Err(e) = done {
        tracing::warn!("statistics were not written: {e}");
    }
}

/// A dump's numbers for people.
pub fn dump_text(r: &DumpReport) -> String {
    format!(
        "Displaying dump stats:\n\
         Freezing time: {} us\nFrozen time: {} us\nMemory dump time: {} us\nMemory write time: {} us\n\
         Memory pages scanned: {} ({:#x})\nMemory pages skipped from parent: {} ({:#x})\nMemory pages written: {} ({:#x})\n\
         Shared memory pages scanned: {} ({:#x})\nShared memory pages written: {} ({:#x})\n",
        r.freezing_us,
        r.frozen_us,
        r.memdump_us,
        r.memwrite_us,
        r.pages_scanned,
        r.pages_scanned,
        r.pages_skipped_parent,
        r.pages_skipped_parent,
        r.pages_written,
        r.pages_written,
        r.shpages_scanned,
        r.shpages_scanned,
        r.shpages_written,
        r.shpages_written,
    )
}

/// A restore's numbers for people.
pub fn restore_text(r: &RestoreReport) -> String {
    format!(
        "Displaying restore stats:\n\
         Pages compared: {} ({:#x})\nPages skipped COW: {} ({:#x})\nPages restored: {} ({:#x})\n\
         Restore time: {} us\nForking time: {} us\n",
        r.pages_compared,
        r.pages_compared,
        r.pages_skipped_cow,
        r.pages_skipped_cow,
        r.pages_restored,
        r.pages_restored,
        r.restore_us,
        r.forking_us,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_written_with_all_required_fields() {
        let tmp = tempfile::tempdir().unwrap();
        let dump = DumpReport {
            frozen_us: 1500,
            pages_written: 30,
            memdump_us: u64::MAX,
            ..Default::default()
        };
        write_dump(tmp.path(), &dump);
        write_restore(
            tmp.path(),
            &RestoreReport {
                restore_us: 7,
                ..Default::default()
            },
        );
        let bytes = std::fs::read(tmp.path().join("stats-dump")).unwrap();
        assert_eq!(bytes[..8], [0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57]);
        let dir = ImageDir::open(tmp.path()).unwrap();
        let back: pb::StatsEntry = dir.read_one("stats-dump").unwrap();
        let d = back.dump.unwrap();
        assert_eq!(
            (d.frozen_time, d.pages_written, d.memdump_time),
            (1500, 30, u32::MAX)
        );
        let back: pb::StatsEntry = dir.read_one("stats-restore").unwrap();
        assert_eq!(back.restore.unwrap().restore_time, 7);
        assert!(dump_text(&dump).contains("Frozen time: 1500 us"));
    }
}
