//! What the caller says of memory.
use crate::far::{Counter, Far};
use crate::migrate::stream::Target;
use crate::packed::Compression;
use crate::remote::Server;
use std::path::PathBuf;
use std::sync::Arc;

/// Memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryOptions {
    /// `--track-mem`: changes are tracked from this dump on.
    pub track: bool,
    /// `--prev-images-dir`: the parent folder, relative to the image folder.
    pub parent: Option<PathBuf>,
    /// `--auto-dedup`: pages are dropped from images once they are not needed there.
    pub auto_dedup: bool,
    /// `--lazy` of a restore: private memory comes when the tree runs.
    pub lazy: bool,
    /// `--lazy=map` of a restore: private memory is mapped from the pages images, and read by the kernel when it is touched.
    pub map: bool,
    /// `--lazy-pages` of a restore: the socket of the daemon that brings it. `lazy` is said, too.
    pub lazy_daemon: Option<PathBuf>,
    /// Who has pages that are not in the folder.
    pub far: Option<Arc<Far>>,
    /// `--lazy-pages` of a dump: pages that may come later stay with the stopped tree until they are asked for here.
    pub counter: Option<Counter>,
    /// `--compress`: how pages of private memory are compressed.
    pub compress: Option<Compression>,
    /// `--once`: pages that tasks share copy-on-write are written once.
    pub once: bool,
    /// `--snapshot` of a dump that lets the tree run on: memory is saved while it runs.
    pub snapshot: bool,
    /// `--page-server` of a dump: pages go there instead of into the folder.
    pub page_server: Option<Server>,
    /// A migration: pages images are made at the other host.
    pub stream: Option<Target>,
}
