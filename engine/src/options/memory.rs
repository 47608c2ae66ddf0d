//! What the caller says of memory.
use crate::migrate::stream::Target;
use crate::packed::Compression;
use crate::remote::Server;
use std::path::PathBuf;

/// Memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryOptions {
    /// `--track-mem`: changes are tracked from this dump on.
    pub track: bool,
    /// `--prev-images-dir`: the parent folder, relative to the image folder.
    pub parent: Option<PathBuf>,
    /// `--auto-dedup`: pages are dropped from images once they are not needed there.
    pub auto_dedup: bool,
    /// `--lazy-pages`.
    pub lazy: bool,
    /// `--compress`: how pages of private memory are compressed.
    pub compress: Option<Compression>,
    /// `--snapshot` of a dump that lets the tree run on: memory is saved while it runs.
    pub snapshot: bool,
    /// `--page-server` of a dump: pages go there instead of into the folder.
    pub page_server: Option<Server>,
    /// A migration: pages images are made at the other host.
    pub stream: Option<Target>,
}
