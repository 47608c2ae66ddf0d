//! Where images lie that come from another host: pages in frames, over several connections at once, all else one after another.
use super::wire::{Frame, LONGEST_FRAME, Link, lost, odd};
use crate::error::{Blame, Error, Result};
use stasis_proto::{ImageDir, Kind};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// More folders than these have no migration.
const MOST_FOLDERS: u32 = 1024;
/// Longest file besides pages, in bytes.
const LONGEST_FILE: u64 = 1 << 40;

/// The folders, and what lies in them.
pub struct Staging {
    /// Where further folders are made; `None`: nowhere.
    path: Option<PathBuf>,
    dirs: Mutex<BTreeMap<u32, Arc<ImageDir>>>,
    images: Mutex<BTreeMap<(u32, u32), Arc<File>>>,
    /// Frames in place, bytes in them, and who failed.
    arrived: Mutex<(u64, u64, Option<Error>)>,
    more: Condvar,
}

impl Staging {
    /// Of folders that are made in this one.
    pub fn of_folders(path: &Path) -> Self {
        Self::of(Some(path.into()))
    }
    /// Of one folder, number 1, that is there; images are named before pages of them come.
    pub fn of_one(dir: ImageDir) -> Self {
        let s = Self::of(None);
        let mut dirs = s.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        dirs.insert(1, Arc::new(dir));
        drop(dirs);
        s
    }
    fn of(path: Option<PathBuf>) -> Self {
        Self {
            path,
            dirs: Mutex::default(),
            images: Mutex::default(),
            arrived: Mutex::default(),
            more: Condvar::new(),
        }
    }
    /// Names an image of folder 1 that is there.
    pub fn name(&self, image: u32, file: File) {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.insert((1, image), Arc::new(file));
    }
    /// Does something while pages come over these connections, which are ended then.
    pub fn while_pages_come<T>(&self, links: Vec<Box<dyn Link>>, act: impl FnOnce() -> T) -> T {
        let sockets: Vec<_> = links
            .iter()
            .filter_map(|l| l.socket().try_clone().ok())
            .collect();
        std::thread::scope(|s| {
            for mut link in links {
                s.spawn(move || {
                    if let Err(e) = self.pages(&mut *link) {
                        self.fail(e);
                    }
                });
            }
            let done = act();
            for s in sockets {
                let _ = s.shutdown(Shutdown::Both);
            }
            done
        })
    }
    /// A folder, which is made if it is not there.
    ///
    /// # Errors
    /// E6721; those of making it.
    pub fn dir(&self, number: u32) -> Result<Arc<ImageDir>> {
        if !(1..=MOST_FOLDERS).contains(&number) {
            return Err(odd(format!("folder {number}")));
        }
        let mut dirs = self.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(d) = dirs.get(&number) {
            return Ok(d.clone());
        }
        let path = self.path.as_ref().ok_or_else(|| odd("another folder"))?;
        let dir = ImageDir::create(&path.join(number.to_string()))?;
        if number > 1 {
            dir.link_parent(format!("../{}", number - 1).as_ref())?;
        }
        Ok(dirs.entry(number).or_insert(Arc::new(dir)).clone())
    }
    fn image(&self, f: &Frame) -> Result<Arc<File>> {
        let dir = self.dir(f.folder)?;
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = images.get(&(f.folder, f.image)) {
            return Ok(i.clone());
        }
        if images.len() > 1 << 20 {
            return Err(odd("more images of pages than any tree has"));
        }
        let file = Arc::new(dir.create_raw(&Kind::Pages.file_of(f.image))?);
        images.insert((f.folder, f.image), file.clone());
        Ok(file)
    }
    /// Takes pages from one connection until it ends.
    pub fn pages(&self, from: &mut dyn Link) -> Result<()> {
        let mut buf = vec![0u8; LONGEST_FRAME];
        let mut head = [0; Frame::LEN];
        loop {
            match from.read(&mut head[..1]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) => return Err(lost(e)),
            }
            from.read_exact(&mut head[1..]).map_err(lost)?;
            let f = Frame::parse(&head)?;
            let file = self.image(&f)?;
            let no_room = |e: std::io::Error| {
                Error::new("E6001", Blame::Host, "cannot write pages")
                    .why(e)
                    .advice("make room where they go: memory, or the folder named by -D")
            };
            let buf = &mut buf[..f.len as usize];
            from.read_exact(buf).map_err(lost)?;
            match buf.is_empty() {
                true => file.set_len(f.at).map_err(no_room)?,
                false => file.write_all_at(buf, f.at).map_err(no_room)?,
            }
            let mut a = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            a.0 += 1;
            a.1 += u64::from(f.len);
            self.more.notify_all();
        }
    }
    /// Whoever waits for pages gets this.
    pub fn fail(&self, e: Error) {
        let mut a = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        a.2.get_or_insert(e);
        self.more.notify_all();
    }
    /// Waits until so many frames are in place; gives the bytes in them.
    pub fn settled(&self, frames: u64) -> Result<u64> {
        let mut a = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(e) = a.2.clone() {
                return Err(e);
            }
            if a.0 >= frames {
                return Ok(a.1);
            }
            a = self.more.wait(a).unwrap_or_else(PoisonError::into_inner);
        }
    }
    /// Takes a file of so many bytes.
    ///
    /// # Errors
    /// E6720, E6721; those of making it.
    pub fn file(&self, dir: &ImageDir, name: &str, len: u64, from: &mut dyn Link) -> Result<()> {
        if len > LONGEST_FILE {
            return Err(odd(format!("a file of {len} bytes")));
        }
        let mut file = dir.create_raw(name)?;
        let n = std::io::copy(&mut from.take(len), &mut file).map_err(lost)?;
        if n < len {
            return Err(lost("in the middle of a file"));
        }
        file.flush().map_err(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn frames_lead_nowhere_but_into_images_of_pages() {
        let tmp = tempfile::tempdir().unwrap();
        let s = Staging::of_folders(tmp.path());
        assert_eq!(s.dir(0).unwrap_err().code, "E6721");
        assert_eq!(s.dir(MOST_FOLDERS + 1).unwrap_err().code, "E6721");
        let dir = s.dir(1).unwrap();
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut a = std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let mut b: Box<dyn Link> = Box::new(l.accept().unwrap().0);
        a.write_all(b"abc").unwrap();
        assert!(s.file(&dir, "../evil", 3, &mut *b).is_err());
        assert!(s.file(&dir, "inventory.img", 3, &mut *b).is_ok());
        assert_eq!(
            std::fs::read(tmp.path().join("1/inventory.img")).unwrap(),
            b"abc"
        );
    }
}
