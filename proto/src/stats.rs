//! The files of numbers that a dump or a restore leaves beside its images.

use crate::dir::ImageDir;
use crate::error::{ImageError, Problem};
use crate::images::{Kind, lookup};
use crate::pb::StatsEntry;

/// Write `stats-dump` or `stats-restore`. Times in it are microseconds. The file is service data: it is written after
/// the images and not waited for.
///
/// # Errors
/// [`Problem::UnknownFile`] for any other name, else as [`ImageDir::write_one`].
pub fn write_stats(dir: &ImageDir, name: &str, stats: &StatsEntry) -> Result<(), ImageError> {
    match lookup(name).map(|(row, _)| row.kind) {
        Some(Kind::StatsDump | Kind::StatsRestore) => dir.write_one(name, stats),
        _ => Err(Problem::UnknownFile.of(name)),
    }
}
