//! Images as one stream: a file, or standard output and input.
//!
//! A file is written under another name and gets its own when it is complete.
use crate::error::{Blame, Error, Result};
use stasis_proto::ImageDir;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a stream is.
#[derive(Debug, Clone)]
pub enum Place {
    /// A file with this name.
    File(PathBuf),
    /// An open file of the caller's: a pipe, a socket.
    Open(Arc<File>),
}

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::new("E6731", Blame::Host, path.display().to_string())
        .why(e)
        .advice("name a file that can be made and read there")
}

/// The name while it is written.
fn part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

impl Place {
    fn shown(&self) -> String {
        match self {
            Place::File(p) => p.display().to_string(),
            Place::Open(_) => "the stream".into(),
        }
    }
    /// Begins a dump.
    pub(crate) fn begin(&self) -> Result<ImageDir> {
        let file = match self {
            Place::File(p) => {
                let part = part(p);
                // a leftover; a link is not followed
                let _ = std::fs::remove_file(&part);
                use std::os::unix::fs::OpenOptionsExt;
                let mut how = File::options();
                how.write(true).read(true).create_new(true).mode(0o600);
                how.open(&part).map_err(|e| failed(&part, e))?
            }
            Place::Open(f) => f
                .try_clone()
                .map_err(|e| failed(Path::new("standard output"), e))?,
        };
        Ok(ImageDir::to_stream(file, &self.shown())?)
    }
    /// The dump is complete.
    pub(crate) fn end(&self) -> Result<()> {
        let Place::File(p) = self else {
            return Ok(());
        };
        std::fs::rename(part(p), p).map_err(|e| failed(p, e))?;
        let folder = match p.parent() {
            Some(f) if !f.as_os_str().is_empty() => f,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|f| f.sync_all())
            .map_err(|e| failed(folder, e))
    }
    /// It has failed.
    pub(crate) fn give_up(&self) {
        if let Place::File(p) = self {
            let _ = std::fs::remove_file(part(p));
        }
    }
    /// Reads a stream.
    pub(crate) fn open(&self) -> Result<ImageDir> {
        let file = match self {
            Place::File(p) => File::open(p).map_err(|e| failed(p, e))?,
            Place::Open(f) => f
                .try_clone()
                .map_err(|e| failed(Path::new("standard input"), e))?,
        };
        Ok(ImageDir::from_stream(file, &self.shown())?)
    }
}
