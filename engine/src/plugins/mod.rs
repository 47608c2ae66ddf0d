//! Plugins: what carries things the engine does not know.
//!
//! A program that uses the engine as a library registers plugins in [`Options::plugins`](crate::Options). Nothing is loaded at run
//! time: a plugin is Rust code of that program.
//!
//! **At dump** a plugin is asked about everything the engine would refuse: an open file that no kind claims, a unix socket whose
//! peer is outside of the tree, a mount, a network device, a mapping of a device. It answers with what it wants to
//! find again (bytes, which the image keeps), or that the thing is none of its own. Devices can be paused before the tree is stopped,
//! and saved while it is.
//!
//! **At restore** a plugin is asked for everything it claimed, before anything of the tree exists, in the caller's namespaces: it
//! gives open files, paths, names of devices. From there they go the way of what a caller brings himself (`--inherit-fd`,
//! `--external`), which wins where both are there. Devices are told when the tasks exist, and just before they run.
//!
//! The image says which plugins it needs; a restore without one of them is refused by its name, before anything is done.
//! docs/decisions/0030-plugins.md says why it is so.
mod dump;
mod restore;

pub(crate) use dump::{devices, file, links, mapping, mapping_status, mounts, pause, socket, used};
pub(crate) use restore::{bring, forked, resume};

use crate::error::{Blame, Error, Result};
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file that no kind claims.
#[derive(Debug, Clone, Copy)]
pub struct OpenFile<'a> {
    /// A task that has it open, as the engine sees it.
    pub pid: i32,
    /// Its number there.
    pub slot: i32,
    /// A duplicate: position, flags and queues are shared with the task.
    pub fd: BorrowedFd<'a>,
    /// What /proc/PID/fd shows.
    pub link: &'a [u8],
    /// `st_mode` of stat(2).
    pub mode: u32,
    /// `st_rdev` of stat(2).
    pub rdev: u64,
    /// Status flags (`F_GETFL`).
    pub flags: u32,
    /// The folder of the images. A plugin's own files there begin with `plugin-NAME-`.
    pub images: &'a Path,
}

/// A unix socket whose peer no task of the tree has.
#[derive(Debug, Clone, Copy)]
pub struct UnixSocket<'a> {
    /// Its inode number.
    pub inode: u32,
    /// That of its peer.
    pub peer: u32,
    /// The peer's name as in `sun_path`; empty if it has none.
    pub peer_name: &'a [u8],
    /// The folder of the images.
    pub images: &'a Path,
}

/// A mount of the tree.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'a> {
    /// Where, seen from the root of the tree.
    pub mountpoint: &'a Path,
    /// What of its file system is mounted.
    pub root: &'a Path,
    /// Type of the file system.
    pub fstype: &'a str,
    /// Its source as mountinfo tells it.
    pub source: &'a str,
    /// Major and minor number.
    pub dev: (u32, u32),
    /// The folder of the images.
    pub images: &'a Path,
}

/// A network device of the tree.
#[derive(Debug, Clone, Copy)]
pub struct Link<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its kind (`IFLA_INFO_KIND`); none for hardware.
    pub kind: Option<&'a str>,
    /// Its number.
    pub index: u32,
    /// The folder of the images.
    pub images: &'a Path,
}

/// A mapping of a device.
#[derive(Debug, Clone, Copy)]
pub struct Mapping<'a> {
    /// A task that has it, as the engine sees it.
    pub pid: i32,
    /// First address.
    pub start: u64,
    /// The address behind it.
    pub end: u64,
    /// Offset in the device, in bytes.
    pub offset: u64,
    /// Written through to the device (`MAP_SHARED`).
    pub shared: bool,
    /// Path of the device, as /proc/PID/maps shows it.
    pub path: &'a [u8],
    /// `st_rdev` of stat(2).
    pub rdev: u64,
    /// The folder of the images.
    pub images: &'a Path,
}

/// What a plugin gets back at restore.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// What it answered at dump.
    pub data: &'a [u8],
    /// The folder of the images.
    pub images: &'a Path,
}

/// A plugin. What a method does not handle it need not have: by default nothing is claimed, and there is nothing to pause.
///
/// Calls come from one thread at a time. An error stops the operation, which is undone, except where a method says otherwise.
pub trait Plugin: Send + Sync {
    /// Its name in images: lower-case letters, digits, `-` and `_`, at most 64.
    fn name(&self) -> &str;

    /// Dump: the task (as the engine sees it) is about to be stopped, and still runs. Called once for each task that is known by
    /// then; the last moment for what needs a running process.
    ///
    /// # Errors
    /// Devices that cannot be paused.
    fn pause_devices(&self, _pid: i32) -> Result<()> {
        Ok(())
    }
    /// Dump: the task is stopped; what is saved now is given back by [`Plugin::resume_devices`] at restore.
    ///
    /// # Errors
    /// Devices that cannot be saved.
    fn checkpoint_devices(&self, _pid: i32, _images: &Path) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Dump: the task runs on, after a success or a failure (`saved` is none), for each that was paused. Restore: the
    /// task is complete and about to run, for each that something was saved of.
    ///
    /// # Errors
    /// At dump only a warning: the task runs already.
    fn resume_devices(&self, _pid: i32, _saved: Option<Saved<'_>>) -> Result<()> {
        Ok(())
    }
    /// Restore: the process exists, without memory and files as yet.
    ///
    /// # Errors
    /// Whatever makes the restore impossible.
    fn post_forking(&self, _pid: i32) -> Result<()> {
        Ok(())
    }

    /// Dump: an open file nobody else can carry. None: not this plugin's.
    ///
    /// # Errors
    /// It is this plugin's, and cannot be carried.
    fn dump_file(&self, _file: &OpenFile<'_>) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Restore: the open file, as the tasks shall have it.
    ///
    /// # Errors
    /// It cannot be made.
    fn restore_file(&self, _saved: Saved<'_>) -> Result<OwnedFd> {
        Err(unwilling(self.name(), "open files"))
    }
    /// Dump: a unix socket with a peer outside. None: not this plugin's.
    ///
    /// # Errors
    /// As for files.
    fn dump_unix_socket(&self, _socket: &UnixSocket<'_>) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Restore: the socket, connected.
    ///
    /// # Errors
    /// It cannot be made.
    fn restore_unix_socket(&self, _saved: Saved<'_>) -> Result<OwnedFd> {
        Err(unwilling(self.name(), "unix sockets"))
    }
    /// Dump: a mount in a mount namespace of the tree's own. None: not this plugin's.
    ///
    /// # Errors
    /// As for files.
    fn dump_mount(&self, _mount: &Mount<'_>) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Restore: what is bound there, as a path of the caller's.
    ///
    /// # Errors
    /// There is nothing.
    fn restore_mount(&self, _saved: Saved<'_>) -> Result<PathBuf> {
        Err(unwilling(self.name(), "mounts"))
    }
    /// Dump: a device in a network namespace of the tree's own. None: not this plugin's.
    ///
    /// # Errors
    /// As for files.
    fn dump_link(&self, _link: &Link<'_>) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Restore: the name of a device in the caller's network namespace; it is moved into the tree's and gets the name of old.
    ///
    /// # Errors
    /// There is none.
    fn restore_link(&self, _saved: Saved<'_>) -> Result<String> {
        Err(unwilling(self.name(), "network devices"))
    }
    /// Dump: a mapping of a device. None: not this plugin's. Its pages are not in the image.
    ///
    /// # Errors
    /// As for files.
    fn dump_mapping(&self, _mapping: &Mapping<'_>) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Restore: the device, open as the mapping needs it, and the offset to map from (in bytes, of whole pages).
    ///
    /// # Errors
    /// It cannot be opened.
    fn restore_mapping(&self, _saved: Saved<'_>, _offset: u64) -> Result<(OwnedFd, u64)> {
        Err(unwilling(self.name(), "mappings of devices"))
    }
}

/// All plugins, in the order in which they are asked.
#[derive(Clone, Default)]
pub struct Plugins(pub Vec<Arc<dyn Plugin>>);

impl Plugins {
    fn find(&self, name: &str) -> Option<&dyn Plugin> {
        self.0.iter().find(|p| p.name() == name).map(AsRef::as_ref)
    }
    /// Names can be told apart, and in images.
    ///
    /// # Errors
    /// E2601.
    pub(crate) fn check(&self) -> Result<()> {
        for (n, p) in self.0.iter().enumerate() {
            let name = p.name();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
            let good = (1..=64).contains(&name.len()) && name.chars().all(plain);
            if !good || self.0[..n].iter().any(|q| q.name() == name) {
                return Err(
                    Error::new("E2601", Blame::Caller, format!("plugin {name:?}"))
                        .why("its name is not a name, or another has it too")
                        .advice(
                            "use lower-case letters, digits, - and _, at most 64, once for each",
                        ),
                );
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|p| p.name()))
            .finish()
    }
}

/// The key under which a plugin's file is brought.
pub(crate) fn key(id: u32) -> String {
    format!("plugin[{id}]")
}

/// An entry that says a plugin brings its file, and no plugin has it.
pub(crate) fn not_brought(id: u32) -> Error {
    Error::new(
        "E5630",
        Blame::Image,
        format!("file entry {id} of files.img"),
    )
    .why("it says that a plugin brings the file, and plugins.img does not name it")
    .advice("dump again: the image is not complete")
}

fn unwilling(name: &str, what: &str) -> Error {
    Error::new("E2602", Blame::Caller, format!("plugin {name}"))
        .why(format!("the image has {what} of its, and it restores none"))
        .advice("restore with the version of the plugin that was there at the dump")
}
