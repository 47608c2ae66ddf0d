//! A folder of images as one handle.
//!
//! The folder is named by a path once; afterwards everything goes through its descriptor, by plain names and without
//! following symlinks, so nothing that somebody puts into the folder leads out of it.
//!
//! Durability: files are written without waiting. [`ImageDir::commit_inventory`] then waits once for all of them and
//! moves the inventory into place last, so a folder with an inventory is whole.
//!
//! Long because all that opens, makes or removes a file of a folder stands here, and only here.

use crate::archive::{self, Archive, In, Out};
use crate::error::{ImageError, Problem};
use crate::images::{self, Framing, ImageType, Kind, Payload};
use crate::key::{self, Key};
use crate::pb::InventoryEntry;
use crate::reader::{ImageReader, Records};
use crate::writer::ImageWriter;
use prost::{Message, Name};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const INVENTORY: &str = "inventory.img";
/// The inventory before its folder is complete. Not a name of the format, so no reader takes it for an image.
const INVENTORY_TMP: &str = ".inventory.img.tmp";

/// An open folder of images.
#[derive(Debug)]
pub struct ImageDir {
    fd: OwnedFd,
    /// The folder in error messages.
    shown: String,
    /// The folder of the dump before, once it is opened.
    parent: Option<Box<ImageDir>>,
    /// Files that are open already, by name: see [`ImageDir::held`].
    held: BTreeMap<String, File>,
    /// Images that are not files of the folder.
    staged: Option<Arc<Staged>>,
    /// Nobody waits for the disk.
    volatile: bool,
}

/// Images in memory, on their way into a stream or to be encrypted, or out of such.
#[derive(Debug, Default)]
struct Staged {
    files: Mutex<BTreeMap<String, File>>,
    /// Those that lie in a file.
    pieces: BTreeMap<String, crate::archive::Pieces>,
    /// Where they go in the end, in place of a folder.
    archive: Option<Arc<Archive>>,
    /// There is no folder.
    alone: bool,
    key: Option<Key>,
}

impl Staged {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Opens one again: with a position of its own.
    fn open(&self, name: &str) -> Option<io::Result<File>> {
        use std::os::fd::AsRawFd;
        let files = self.files();
        let f = files.get(name)?;
        let path = format!("/proc/self/fd/{}", f.as_raw_fd());
        Some(File::options().read(true).write(true).open(path))
    }
}

/// The link of an incremental dump to the folder of the dump before it.
const PARENT: &str = "parent";
/// More dumps than these do not build on each other.
const GENERATIONS: usize = 1024;

impl AsFd for ImageDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl ImageDir {
    fn new(fd: OwnedFd, shown: String) -> Self {
        Self {
            fd,
            shown,
            parent: None,
            held: BTreeMap::new(),
            staged: None,
            volatile: false,
        }
    }

    /// The folder may be lost if the machine stops soon after: nothing waits for the disk.
    #[must_use]
    pub fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }

    /// A folder that is only in memory and goes into `to` as one stream when it is complete; pages go there at once.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn to_stream(to: File, shown: &str) -> Result<Self, ImageError> {
        let failed = |e| Problem::io("write it", e).of(shown);
        let mut dir = Self::nowhere(shown)?;
        dir.staged = Some(Arc::new(Staged {
            archive: Some(Arc::new(Archive::begin(to).map_err(failed)?)),
            alone: true,
            ..Staged::default()
        }));
        Ok(dir)
    }

    /// The folder that a stream holds. Of a regular file pages are read where they lie.
    ///
    /// # Errors
    /// [`Problem::Archive`], [`Problem::Io`].
    pub fn from_stream(from: File, shown: &str) -> Result<Self, ImageError> {
        let c = archive::read(from, pages)?;
        let mut dir = Self::nowhere(shown)?;
        dir.staged = Some(Arc::new(Staged {
            files: Mutex::new(c.held),
            pieces: c.pieces,
            alone: true,
            ..Staged::default()
        }));
        Ok(dir)
    }

    /// A folder of which nothing is used.
    fn nowhere(shown: &str) -> Result<Self, ImageError> {
        let mut dir = Self::open(Path::new("/"))?;
        dir.shown = shown.to_owned();
        Ok(dir)
    }

    /// Encrypts with this key: from now on images are in memory until the folder is complete; pages are encrypted by those
    /// who write them ([`ImageDir::key`]).
    pub fn seal(&mut self, key: Key) {
        let old = self.staged.take();
        self.staged = Some(Arc::new(Staged {
            key: Some(key),
            archive: old.as_ref().and_then(|s| s.archive.clone()),
            alone: old.is_some_and(|s| s.alone),
            ..Staged::default()
        }));
    }

    /// Decrypts all images but pages into memory.
    ///
    /// # Errors
    /// [`Problem::Sealed`]; those of reading.
    pub fn unseal(&mut self, key: Key) -> Result<(), ImageError> {
        let mut files = BTreeMap::new();
        for name in self.list()? {
            let packed =
                matches!(images::lookup(&name), Some((row, _)) if row.kind == Kind::Packed);
            if plain(&name) || packed {
                continue;
            }
            let failed = |e| Problem::io("read it", e).of(&name);
            let file = self.open_in(&name)?;
            let mut text = vec![0; file.size().map_err(failed)? as usize];
            file.read_exact_at(&mut text, 0).map_err(failed)?;
            let body = text.strip_prefix(key::MAGIC.as_slice());
            let opened = body.and_then(|b| key.of_file(&name).open(0, b));
            let opened = opened.ok_or_else(|| Problem::Sealed.of(&name))?;
            let held = in_memory(&name)?;
            held.write_all_at(&opened, 0)
                .map_err(|e| Problem::io("hold it", e).of(&name))?;
            files.insert(name, held);
        }
        let old = self.staged.take();
        let (mut pieces, mut alone) = (BTreeMap::new(), false);
        if let Some(old) = old {
            for (name, file) in old.files().iter() {
                if !files.contains_key(name) {
                    let again = file.try_clone();
                    let again = again.map_err(|e| Problem::io("hold it", e).of(name))?;
                    files.insert(name.clone(), again);
                }
            }
            (pieces, alone) = (old.pieces.clone(), old.alone);
        }
        self.staged = Some(Arc::new(Staged {
            files: Mutex::new(files),
            pieces,
            alone,
            key: Some(key),
            archive: None,
        }));
        Ok(())
    }

    /// The key for pages, if images are encrypted.
    pub fn key(&self) -> Option<&Key> {
        self.staged.as_ref()?.key.as_ref()
    }

    fn alone(&self) -> bool {
        self.staged.as_ref().is_some_and(|s| s.alone)
    }

    /// Begins an image of pages.
    ///
    /// # Errors
    /// As [`ImageDir::create_raw`].
    pub fn create_out(&self, name: &str) -> Result<Out, ImageError> {
        known(name)?;
        match self.staged.as_ref().and_then(|s| s.archive.clone()) {
            Some(a) => Ok(Out::Member(a, name.to_owned())),
            None => self.create_in_folder(name).map(Out::File),
        }
    }

    /// Opens an image of pages.
    ///
    /// # Errors
    /// As [`ImageDir::open_raw`].
    pub fn open_in(&self, name: &str) -> Result<In, ImageError> {
        if let Some(s) = &self.staged
            && !s.files().contains_key(name)
            && let Some((f, p)) = s.pieces.get(name)
        {
            return Ok(In::Pieces(f.clone(), p.clone()));
        }
        self.open_raw(name).map(In::File)
    }

    /// What is in memory goes where it belongs.
    fn unstage(&self) -> Result<(), ImageError> {
        let Some(s) = &self.staged else {
            return Ok(());
        };
        for (name, file) in s.files().iter() {
            let failed = |e| Problem::io("write it", e).of(name);
            let mut text = vec![0; file.metadata().map_err(failed)?.len() as usize];
            file.read_exact_at(&mut text, 0).map_err(failed)?;
            if let Some(key) = s.key.as_ref().filter(|_| !plain(name)) {
                let sealed = key.of_file(name).seal(0, &text);
                let sealed = sealed.ok_or_else(|| Problem::Sealed.of(name))?;
                text = [key::MAGIC.as_slice(), &sealed].concat();
            }
            match &s.archive {
                Some(a) => a.put(name, 0, &text).map_err(failed)?,
                None => {
                    let to = self.create_in_folder(name)?;
                    to.write_all_at(&text, 0).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Open an existing folder. The path is the caller's: symlinks on the way to the folder are followed.
    ///
    /// # Errors
    /// [`Problem::Missing`], or [`Problem::Io`] (also when it is not a folder).
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let shown = path.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self::new(fd, shown)),
            Err(errno) => Err(Problem::io("open the folder", errno).of(&shown)),
        }
    }

    /// Use a folder that is already open (RPC callers pass one). It must not be an `O_PATH` descriptor.
    ///
    /// # Errors
    /// [`Problem::Io`] with ENOTDIR when the descriptor is no folder.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ImageError> {
        let shown = "folder handed over as a descriptor".to_owned();
        let stat =
            rustix::fs::fstat(&fd).map_err(|errno| Problem::io("look at it", errno).of(&shown))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Problem::io("use it as a folder", Errno::NOTDIR).of(&shown));
        }
        Ok(Self::new(fd, shown))
    }

    /// Open a folder, making it with mode 0700 first when it is missing. Its parent must exist.
    ///
    /// # Errors
    /// As [`ImageDir::open`].
    pub fn create(path: &Path) -> Result<Self, ImageError> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Self::open(path),
            Err(errno) => {
                Err(Problem::io("make the folder", errno).of(&path.display().to_string()))
            }
        }
    }

    /// A second handle of the same folder, for another thread.
    ///
    /// # Errors
    /// [`Problem::Io`] when the process is out of descriptors.
    pub fn try_clone(&self) -> Result<Self, ImageError> {
        match self.fd.try_clone() {
            Ok(fd) => {
                let mut dir = Self::new(fd, self.shown.clone());
                dir.staged = self.staged.clone();
                dir.parent = match &self.parent {
                    Some(p) => Some(Box::new(p.try_clone()?)),
                    None => None,
                };
                Ok(dir)
            }
            Err(error) => Err(Problem::io("duplicate its descriptor", error).of(&self.shown)),
        }
    }

    /// The same folder for a process that will lose the right to open its files (one that enters a user namespace): they are
    /// open already. Of kinds that are not `wanted` none is. Each reader begins at the first byte, one at a time.
    ///
    /// # Errors
    /// As [`ImageDir::list`] and [`ImageDir::open_raw`].
    pub fn held(&self, wanted: impl Fn(Kind) -> bool) -> Result<Self, ImageError> {
        self.hold(&wanted)
    }

    fn hold(&self, wanted: &dyn Fn(Kind) -> bool) -> Result<Self, ImageError> {
        let mut dir = self.try_clone()?;
        for name in self.list()? {
            if images::lookup(&name).is_some_and(|(row, _)| wanted(row.kind)) {
                let file = self.open_file(&name)?;
                dir.held.insert(name, file);
            }
        }
        if let Some(p) = &self.parent {
            dir.parent = Some(Box::new(p.hold(wanted)?));
        }
        Ok(dir)
    }

    /// The same folder, with the folders of the dumps before it: those its link `parent` leads to, one after another.
    ///
    /// A link is part of an image, and images are not trusted: it may lead to a neighbour of the folder, or to a folder in
    /// it, of the same owner, and nowhere else. `named` is a folder the caller names instead, relative to this one.
    ///
    /// # Errors
    /// [`Problem::Parent`]: a link that leads elsewhere, or round in a circle. [`Problem::Missing`], [`Problem::Io`].
    pub fn with_parents(mut self, named: Option<&Path>) -> Result<Self, ImageError> {
        let mut chain = vec![match named {
            Some(path) => self.open_named(path)?,
            None => match self.open_linked()? {
                Some(d) => d,
                None => return Ok(self),
            },
        }];
        while let Some(next) = chain.last().map_or(Ok(None), Self::open_linked)? {
            if chain.len() == GENERATIONS {
                return Err(Problem::Parent("it leads round in a circle").of(&self.shown));
            }
            chain.push(next);
        }
        let mut below = None;
        while let Some(mut d) = chain.pop() {
            d.parent = below;
            below = Some(Box::new(d));
        }
        self.parent = below;
        Ok(self)
    }

    /// The folder of the dump before; there only after [`ImageDir::with_parents`].
    pub fn parent(&self) -> Option<&ImageDir> {
        self.parent.as_deref()
    }

    /// The folder so many dumps before: 0 is this one.
    pub fn ancestor(&self, level: usize) -> Option<&ImageDir> {
        (0..level).try_fold(self, |d, _| d.parent())
    }

    /// Makes the link to the folder of the dump before, in place of an older link. Nothing is opened.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn link_parent(&self, path: &Path) -> Result<(), ImageError> {
        if self.alone() {
            return Err(Problem::Archive("a stream cannot build on a dump before").of(&self.shown));
        }
        self.unlink(PARENT)?;
        rustix::fs::symlinkat(path, &self.fd, PARENT)
            .map_err(|errno| Problem::io("make the link", errno).of(PARENT))
    }

    /// Takes the link of an older dump away.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn unlink_parent(&self) -> Result<(), ImageError> {
        self.unlink(PARENT)
    }

    fn open_named(&self, path: &Path) -> Result<Self, ImageError> {
        let shown = format!("{} (from {})", path.display(), self.shown);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self::new(fd, shown)),
            Err(errno) => Err(Problem::io("open the folder", errno).of(&shown)),
        }
    }

    fn open_linked(&self) -> Result<Option<Self>, ImageError> {
        if self.alone() {
            return Ok(None);
        }
        let to = match rustix::fs::readlinkat(&self.fd, PARENT, Vec::new()) {
            Ok(to) => to.into_string(),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Problem::io("read the link", errno).of(PARENT)),
        };
        let strange = Problem::Parent("it leads neither to a neighbour of the folder nor into it");
        let Ok(to) = to else {
            return Err(strange.of(PARENT));
        };
        if to.starts_with('/') {
            return Err(strange.of(&to));
        }
        let steps: Vec<&str> = to
            .split('/')
            .filter(|s| !s.is_empty() && *s != ".")
            .collect();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |errno| Problem::io("open the folder before", errno).of(&to);
        let up;
        let (from, name) = match steps[..] {
            [name] if name != ".." => (self.fd.as_fd(), name),
            ["..", name] if name != ".." => {
                up = rustix::fs::openat(&self.fd, "..", flags, Mode::empty()).map_err(failed)?;
                (up.as_fd(), name)
            }
            _ => return Err(strange.of(&to)),
        };
        let fd = rustix::fs::openat(from, name, flags | OFlags::NOFOLLOW, Mode::empty())
            .map_err(failed)?;
        let owner = |fd| rustix::fs::fstat(fd).map(|s| s.st_uid);
        if owner(fd.as_fd()).map_err(failed)? != owner(self.fd.as_fd()).map_err(failed)? {
            return Err(Problem::Parent("its folder is another user's").of(&to));
        }
        let shown = format!("{to} (from {})", self.shown);
        Ok(Some(Self::new(fd, shown)))
    }

    /// Start writing the image `name`; an older file of that name is emptied. The magic is written at once.
    ///
    /// # Errors
    /// [`Problem::Name`], [`Problem::UnknownFile`], [`Problem::NotRecords`] for raw kinds (use
    /// [`ImageDir::create_raw`]), [`Problem::NotRegular`], [`Problem::Io`].
    pub fn writer(&self, name: &str) -> Result<ImageWriter, ImageError> {
        let row = framed(name)?;
        ImageWriter::start(self.create_file(name)?, name, row)
    }

    /// Write a whole image of messages.
    ///
    /// # Errors
    /// As [`ImageDir::writer`] and [`ImageWriter::write`].
    pub fn write_all<'a, M: Message + Name + 'a>(
        &self,
        name: &str,
        messages: impl IntoIterator<Item = &'a M>,
    ) -> Result<(), ImageError> {
        let mut writer = self.writer(name)?;
        for message in messages {
            writer.write(message)?;
        }
        writer.finish()
    }

    /// Write an image of exactly one message.
    ///
    /// # Errors
    /// As [`ImageDir::writer`] and [`ImageWriter::write`].
    pub fn write_one<M: Message + Name>(&self, name: &str, message: &M) -> Result<(), ImageError> {
        self.write_all(name, [message])
    }

    /// Create (or empty) a file that this crate does not frame: `pages-N.img`, netlink dumps. Readable and writable.
    ///
    /// # Errors
    /// [`Problem::Name`], [`Problem::UnknownFile`], [`Problem::NotRegular`], [`Problem::Io`].
    pub fn create_raw(&self, name: &str) -> Result<File, ImageError> {
        known(name)?;
        self.create_file(name)
    }

    /// Open a file for reading from its first byte, magic included where it has one.
    ///
    /// # Errors
    /// [`Problem::Name`], [`Problem::UnknownFile`], [`Problem::Missing`], [`Problem::NotRegular`], [`Problem::Io`].
    pub fn open_raw(&self, name: &str) -> Result<File, ImageError> {
        known(name)?;
        self.open_file(name)
    }

    /// Open a raw file that is there, to change bytes of it in place.
    ///
    /// # Errors
    /// As [`ImageDir::open_raw`].
    pub fn open_to_change(&self, name: &str) -> Result<File, ImageError> {
        known(name)?;
        self.open_at(name, OFlags::RDWR).map(|f| f.0)
    }

    /// Open an image for reading record by record; the magic has been checked. For files that mix records with
    /// payload this is the only way.
    ///
    /// # Errors
    /// As [`ImageDir::open_raw`]; also [`Problem::NotRecords`] for raw kinds, [`Problem::Truncated`] and
    /// [`Problem::Magic`].
    pub fn reader(&self, name: &str) -> Result<ImageReader, ImageError> {
        let row = framed(name)?;
        ImageReader::start(self.open_sized(name)?, name, row)
    }

    /// Read an image that holds exactly one record.
    ///
    /// # Errors
    /// As [`ImageDir::reader`] and [`ImageReader::read`]; [`Problem::Empty`]; [`Problem::Trailing`].
    pub fn read_one<T: Message + Name + Default>(&self, name: &str) -> Result<T, ImageError> {
        let mut reader = self.plain_reader(name)?;
        let message = reader.read()?.ok_or_else(|| Problem::Empty.of(name))?;
        reader.finish()?;
        Ok(message)
    }

    /// Read every record of an image. (Pagemaps begin with a record of another type: use [`ImageDir::reader`].)
    ///
    /// # Errors
    /// As [`ImageDir::reader`] and [`ImageReader::read`].
    pub fn read_all<T: Message + Name + Default>(&self, name: &str) -> Result<Vec<T>, ImageError> {
        self.plain_reader(name)?.read_rest()
    }

    /// Iterate over the undecoded records of an image without payload.
    ///
    /// # Errors
    /// As [`ImageDir::reader`]; each item as [`ImageReader::read_record`].
    pub fn records(&self, name: &str) -> Result<Records, ImageError> {
        Ok(self.plain_reader(name)?.into_records())
    }

    /// Whether the folder has something called `name`, be it a proper image or not.
    ///
    /// # Errors
    /// [`Problem::Name`], [`Problem::Io`].
    pub fn exists(&self, name: &str) -> Result<bool, ImageError> {
        plain_name(name)?;
        if self.held.contains_key(name) {
            return Ok(true);
        }
        if let Some(s) = &self.staged
            && (s.alone || s.files().contains_key(name))
        {
            return Ok(s.files().contains_key(name) || s.pieces.contains_key(name));
        }
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            // all that was there is held
            Err(Errno::ACCESS) if !self.held.is_empty() => Ok(false),
            Err(errno) => Err(Problem::io("look at it", errno).of(name)),
        }
    }

    /// The names in the folder that are names of the format ([`images::lookup`] tells which), sorted.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn list(&self) -> Result<Vec<String>, ImageError> {
        let fail = |errno: Errno| Problem::io("list the folder", errno).of(&self.shown);
        let mut names = Vec::new();
        if let Some(s) = &self.staged {
            names.extend(s.files().keys().chain(s.pieces.keys()).cloned());
            if s.alone {
                names.sort();
                return Ok(names);
            }
        }
        for entry in Dir::read_from(&self.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            // A name that is not UTF-8 is no name of the format.
            if let Ok(name) = entry.file_name().to_str()
                && images::lookup(name).is_some()
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Remove a file of the format if it is there.
    ///
    /// # Errors
    /// [`Problem::Name`], [`Problem::UnknownFile`], [`Problem::Io`].
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        known(name)?;
        self.unlink(name)
    }

    /// Make the folder look incomplete before a dump writes into it: an inventory of an older dump is removed, durably.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn invalidate(&self) -> Result<(), ImageError> {
        if self.alone() {
            return Ok(());
        }
        self.unlink(INVENTORY)?;
        self.sync_folder()
    }

    /// Wait until everything written to the folder so far is on the disk, unless it is [volatile](Self::volatile).
    ///
    /// One syncfs rather than an fsync per file: a dump of 200 processes has 1400 files, and each fsync would be a
    /// commit of the file system's journal. The price is that unrelated dirty data of the same file system is waited
    /// for as well. KERNEL(>=5.8): syncfs reports errors of writing back.
    ///
    /// # Errors
    /// [`Problem::Io`]: some data written since the folder was opened may be lost.
    pub fn sync_all(&self) -> Result<(), ImageError> {
        if self.volatile {
            return Ok(());
        }
        rustix::fs::syncfs(&self.fd)
            .map_err(|errno| Problem::io("sync the file system", errno).of(&self.shown))
    }

    /// The last act of a dump: make all files durable, then let the inventory appear, whole or not at all.
    ///
    /// # Errors
    /// [`Problem::Io`]; the folder then has no inventory, or still the one it had before.
    pub fn commit_inventory(&self, inventory: &InventoryEntry) -> Result<(), ImageError> {
        self.unstage()?;
        if let Some(a) = self.staged.as_ref().and_then(|s| s.archive.as_ref()) {
            let file = in_memory(INVENTORY)?;
            let failed = |e| Problem::io("write it", e).of(INVENTORY);
            let mut w = ImageWriter::start(
                file.try_clone().map_err(failed)?,
                INVENTORY,
                framed(INVENTORY)?,
            )?;
            w.write(inventory)?;
            w.finish()?;
            let mut text = vec![0; file.metadata().map_err(failed)?.len() as usize];
            file.read_exact_at(&mut text, 0).map_err(failed)?;
            return a
                .put(INVENTORY, 0, &text)
                .and_then(|()| a.end())
                .map_err(failed);
        }
        self.unlink(INVENTORY_TMP)?;
        let row = framed(INVENTORY)?;
        let mut writer = ImageWriter::start(self.create_in_folder(INVENTORY_TMP)?, INVENTORY, row)?;
        writer.write(inventory)?;
        writer.finish()?;
        self.sync_all()?;
        rustix::fs::renameat(&self.fd, INVENTORY_TMP, &self.fd, INVENTORY)
            .map_err(|errno| Problem::io("move it into place", errno).of(INVENTORY))?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), ImageError> {
        if self.volatile {
            return Ok(());
        }
        rustix::fs::fsync(&self.fd)
            .map_err(|errno| Problem::io("sync the folder", errno).of(&self.shown))
    }

    fn unlink(&self, name: &str) -> Result<(), ImageError> {
        if let Some(s) = &self.staged {
            s.files().remove(name);
            if s.alone {
                return Ok(());
            }
        }
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Problem::io("remove it", errno).of(name)),
        }
    }

    fn plain_reader(&self, name: &str) -> Result<ImageReader, ImageError> {
        match framed(name)?.payload {
            Payload::None => self.reader(name),
            _ => Err(Problem::NotRecords.of(name)),
        }
    }

    /// NONBLOCK: opening a fifo must not hang before it can be refused; regular files ignore the flag.
    fn open_at(&self, name: &str, flags: OFlags) -> Result<(File, u64), ImageError> {
        plain_name(name)?;
        if let Some(s) = &self.staged {
            match s.open(name) {
                Some(f) => {
                    let sized = f.and_then(|f| Ok((f.metadata()?.len(), f)));
                    let sized = sized.map(|(size, f)| (f, size));
                    return sized.map_err(|e| Problem::io("open it", e).of(name));
                }
                None if s.alone => return Err(Problem::Missing.of(name)),
                None => {}
            }
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => fd,
            // ELOOP: a symlink. EISDIR, ENXIO: a folder, a socket, a fifo without reader.
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                return Err(Problem::NotRegular.of(name));
            }
            Err(errno) => return Err(Problem::io("open it", errno).of(name)),
        };
        let stat =
            rustix::fs::fstat(&fd).map_err(|errno| Problem::io("look at it", errno).of(name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Problem::NotRegular.of(name));
        }
        Ok((File::from(fd), stat.st_size as u64))
    }

    fn open_file(&self, name: &str) -> Result<File, ImageError> {
        self.open_sized(name).map(|f| f.0)
    }

    /// A file for reading, and its size in bytes.
    fn open_sized(&self, name: &str) -> Result<(File, u64), ImageError> {
        let Some(file) = self.held.get(name) else {
            return self.open_at(name, OFlags::RDONLY);
        };
        let failed = |error| Problem::io("duplicate its descriptor", error).of(name);
        let mut again = file.try_clone().map_err(failed)?;
        again.rewind().map_err(failed)?;
        let len = again.metadata().map_err(failed)?.len();
        Ok((again, len))
    }

    /// A new file needs no look at what it is. An old one is emptied only after that look, hence no `O_TRUNC`.
    fn create_file(&self, name: &str) -> Result<File, ImageError> {
        plain_name(name)?;
        let Some(s) = &self.staged else {
            return self.create_in_folder(name);
        };
        let file = in_memory(name)?;
        let again = file.try_clone();
        s.files().insert(name.to_owned(), file);
        again.map_err(|e| Problem::io("hold it", e).of(name))
    }

    fn create_in_folder(&self, name: &str) -> Result<File, ImageError> {
        plain_name(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR) {
            return Ok(File::from(fd));
        }
        let (file, _) = self.open_at(name, OFlags::RDWR | OFlags::CREATE)?;
        let emptied = file.set_len(0);
        emptied.map_err(|error: io::Error| Problem::io("empty it", error).of(name))?;
        Ok(file)
    }
}

/// Not encrypted: what tells how the rest is, and pages, which are in blocks of their own.
fn plain(name: &str) -> bool {
    matches!(images::lookup(name), Some((row, _)) if matches!(row.kind, Kind::Key | Kind::Inventory | Kind::StatsDump | Kind::StatsRestore))
}

/// Images that are large.
fn pages(name: &str) -> bool {
    matches!(images::lookup(name), Some((row, _)) if matches!(row.kind, Kind::Pages | Kind::Packed))
}

fn in_memory(name: &str) -> Result<File, ImageError> {
    archive::memory("stasis-image").map_err(|e| Problem::io("hold it", e).of(name))
}

/// Names are single path components.
fn plain_name(name: &str) -> Result<(), ImageError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Problem::Name.of(name));
    }
    Ok(())
}

fn known(name: &str) -> Result<&'static ImageType, ImageError> {
    plain_name(name)?;
    match images::lookup(name) {
        Some((row, _)) => Ok(row),
        None => Err(Problem::UnknownFile.of(name)),
    }
}

fn framed(name: &str) -> Result<&'static ImageType, ImageError> {
    match known(name)? {
        row if row.framing == Framing::Raw => Err(Problem::NotRecords.of(name)),
        row => Ok(row),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    #[test]
    fn links_to_neighbours_are_followed_and_others_are_not() {
        let tmp = tempfile::tempdir().unwrap();
        let make = |n: &str| ImageDir::create(&tmp.path().join(n)).unwrap();
        let (a, b, c) = (make("a"), make("b"), make("c"));
        make("c/d");
        b.link_parent(Path::new("../a/")).unwrap();
        c.link_parent(Path::new("./../b")).unwrap();
        let c = c.with_parents(None).unwrap();
        let up = |d: &ImageDir| rustix::fs::fstat(d).unwrap().st_ino;
        assert_eq!(up(c.ancestor(2).unwrap()), up(&a));
        assert!(c.ancestor(3).is_none());
        assert_eq!(up(c.try_clone().unwrap().parent().unwrap()), up(&b));
        for elsewhere in ["/", "..", ".", "../..", "../../x", "a/../..", "../c/d"] {
            a.link_parent(Path::new(elsewhere)).unwrap();
            let e = a.try_clone().unwrap().with_parents(None).unwrap_err();
            assert!(matches!(e.problem, Problem::Parent(_)), "{elsewhere}: {e}");
        }
        // what the caller names may be anywhere
        let d = a.try_clone().unwrap();
        let d = d.with_parents(Some(&tmp.path().join("c/d"))).unwrap();
        assert!(d.parent().is_some());
        // a circle, and a link to a link
        a.link_parent(Path::new("../b")).unwrap();
        assert!(a.try_clone().unwrap().with_parents(None).is_err());
        std::os::unix::fs::symlink(tmp.path().join("c/d"), tmp.path().join("l")).unwrap();
        a.link_parent(Path::new("../l")).unwrap();
        assert!(a.try_clone().unwrap().with_parents(None).is_err());
    }

    #[test]
    fn a_written_folder_reads_back_and_only_then_has_an_inventory() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(&tmp.path().join("images")).unwrap();
        let fs = pb::FsEntry {
            cwd_id: 1,
            root_id: 2,
            umask: Some(0o22),
        };
        dir.write_one("fs-42.img", &fs).unwrap();
        let inventory = pb::InventoryEntry {
            img_version: 2,
            ..Default::default()
        };
        assert!(!dir.exists("inventory.img").unwrap());
        dir.commit_inventory(&inventory).unwrap();
        assert_eq!(dir.list().unwrap(), ["fs-42.img", "inventory.img"]);
        assert_eq!(
            dir.read_one::<pb::InventoryEntry>("inventory.img").unwrap(),
            inventory
        );
        assert_eq!(dir.read_all::<pb::FsEntry>("fs-42.img").unwrap(), [fs]);
        assert!(
            dir.read_one::<pb::FsEntry>("fs-43.img")
                .unwrap_err()
                .is_missing()
        );
        dir.invalidate().unwrap();
        assert!(!dir.exists("inventory.img").unwrap());
        let folder = std::fs::read_dir(tmp.path().join("images")).unwrap();
        assert_eq!(folder.count(), 1, "no temporary file stays behind");
    }
}
