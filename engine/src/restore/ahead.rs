//! Images of tasks and threads, read a little ahead of whoever checks them.
use super::images::one;
use crate::error::{Error, Result};
use crate::pages::Pages;
use crate::workers;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::VecDeque;
use std::sync::Mutex;

/// Images of single tasks and threads, some ahead of whoever asks for them, read by several threads where they are many. They are
/// asked for in their order; what went wrong is told to whoever asks for the image, as nobody may.
pub struct Ahead<'a> {
    dir: &'a ImageDir,
    entries: &'a [pb::PstreeEntry],
    /// What is still to be read.
    rest: Box<dyn Iterator<Item = Which> + 'a>,
    read: VecDeque<(Which, Image)>,
}

/// A task's number in the tree; a thread of it, or `None`: what the process has of its own.
type Which = (usize, Option<usize>);

/// Images of a process.
pub struct Own {
    /// See [`super::images::TaskImages`].
    pub ids: Result<pb::TaskKobjIdsEntry>,
    /// See [`super::images::TaskImages`].
    pub fs: Result<pb::FsEntry>,
    /// See [`super::images::TaskImages`].
    pub mm: Result<pb::MmEntry>,
    /// See [`super::images::TaskImages`].
    pub pages: Result<Pages>,
}

impl Own {
    fn read(dir: &ImageDir, pid: u32) -> Self {
        Self {
            ids: one(dir, Kind::Ids, pid),
            fs: one(dir, Kind::Fs, pid),
            mm: space(dir, pid),
            pages: Pages::load(dir, &Kind::Pagemap.file_of(pid)),
        }
    }
}

/// An address space; old images have its mappings in a file of their own.
fn space(dir: &ImageDir, pid: u32) -> Result<pb::MmEntry> {
    let mut mm: pb::MmEntry = one(dir, Kind::Mm, pid)?;
    if mm.vmas.is_empty() && dir.exists(&Kind::Vmas.file_of(pid))? {
        mm.vmas = dir.read_all(&Kind::Vmas.file_of(pid))?;
    }
    Ok(mm)
}

enum Image {
    Core(Result<Box<pb::CoreEntry>>),
    Own(Box<Own>),
}

impl<'a> Ahead<'a> {
    /// Nothing is read yet.
    pub fn new(dir: &'a ImageDir, entries: &'a [pb::PstreeEntry]) -> Self {
        let of = |(i, e): (usize, &pb::PstreeEntry)| {
            // a pstree may say nothing of threads
            let others = (1..e.threads.len()).map(move |k| (i, Some(k)));
            [(i, Some(0)), (i, None)].into_iter().chain(others)
        };
        Self {
            dir,
            entries,
            rest: Box::new(entries.iter().enumerate().flat_map(of)),
            read: VecDeque::new(),
        }
    }
    /// Reads some more.
    fn some(&mut self) {
        /// Images in memory at once.
        const AT_ONCE: usize = 128;
        // a guess, for the decision how many threads are worth it
        const BYTES_WORTH: u64 = 256 << 10;
        let (dir, entries) = (self.dir, self.entries);
        let items: Vec<(usize, Which)> = self.rest.by_ref().take(AT_ONCE).enumerate().collect();
        let done = Mutex::new(Vec::with_capacity(items.len()));
        let read = |(n, which): &(usize, Which), _: &mut ()| {
            let e = &entries[which.0];
            let image = match which.1 {
                Some(0) => Image::Core(one(dir, Kind::Core, e.pid).map(Box::new)),
                Some(k) => Image::Core(one(dir, Kind::Core, e.threads[k]).map(Box::new)),
                None => Image::Own(Box::new(Own::read(dir, e.pid))),
            };
            let mut done = done.lock().expect("no panic while held");
            done.push((*n, *which, image));
            Ok(())
        };
        // none of them fails
        let _ = workers::each(items.len() as u64 * BYTES_WORTH, &items, || (), read);
        let mut done = done.into_inner().expect("workers have ended");
        done.sort_unstable_by_key(|d| d.0);
        self.read = done.into_iter().map(|(_, w, image)| (w, image)).collect();
    }
    /// The next that is wanted; those of zombies in between are not.
    fn next(&mut self, which: Which) -> Result<Image> {
        loop {
            if self.read.is_empty() {
                self.some();
            }
            match self.read.pop_front() {
                Some((w, image)) if w == which => return Ok(image),
                Some(_) => {}
                None => return Err(Error::bug("images are asked for out of their order")),
            }
        }
    }
    /// That of a thread, by the numbers of its task in the tree and in the task.
    pub fn core(&mut self, task: usize, thread: usize) -> Result<pb::CoreEntry> {
        match self.next((task, Some(thread)))? {
            Image::Core(core) => core.map(|c| *c),
            Image::Own(_) => Err(Error::bug("another image than was asked for")),
        }
    }
    /// What a process has of its own.
    pub fn own(&mut self, task: usize) -> Result<Own> {
        match self.next((task, None))? {
            Image::Own(own) => Ok(*own),
            Image::Core(_) => Err(Error::bug("another image than was asked for")),
        }
    }
}
