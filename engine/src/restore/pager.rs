//! Lazy restore: memory comes when the tree runs, from a process that stays until all of it is there.
use super::later::{Id, Later, View};
use super::memory;
use crate::error::{Blame, Error, Result};
use crate::far::Far;
use crate::lazy::{self, Space, Start};
use crate::lazy_daemon;
use crate::lazy_views;
use crate::pages::{Run, Store};
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::procfs::ProcDir;
use stasis_kernel::uffd::Window;
use stasis_kernel::{fds, offspring, uffd};
use stasis_proto::ImageDir;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the pager says why it could not go on, in the folder of the images.
const LOG: &str = "lazy-pages.log";

/// Tasks whose memory comes later.
#[derive(Default)]
pub struct Pager {
    spaces: Vec<Space>,
    stores: Vec<Store>,
    far: Option<Arc<Far>>,
    /// The tasks' own numbers.
    own: Vec<u32>,
    /// Shared memory.
    objects: BTreeMap<Id, Object>,
    /// What each space shows of it.
    views: Vec<Vec<View>>,
    /// By a task's own number, what it touched first the last time.
    order: Order,
}

/// Shared memory that comes later.
struct Object {
    file: OwnedFd,
    /// The index of its store.
    source: usize,
    later: Arc<Later>,
}

impl Object {
    /// Finds it where a task shows it.
    fn open(dir: &ImageDir, pid: HostPid, v: &View, source: usize) -> Result<(Self, Store)> {
        let proc = ProcDir::open(pid)?;
        let maps = proc.maps()?;
        let line = maps.iter().find(|m| (m.start..m.end).contains(&v.start));
        let line = line.ok_or_else(|| Error::bug("a mapping of shared memory is not there"))?;
        let later = v.object.clone();
        let this = Self {
            file: proc.open_map_file(line, libc::O_RDWR)?,
            source,
            later: later.clone(),
        };
        Ok((this, Store::open(dir, &later.pages.sources)?))
    }
    /// Where its pages are brought, in this process.
    fn window(&self) -> Result<(Window, Arc<Space>)> {
        let window = Window::open(self.file.as_fd(), self.later.size)?;
        let runs = self.later.pages.runs.iter();
        let runs: Vec<Run> = runs.map(|r| (window.at() + r.0, r.1, r.2)).collect();
        let fd = fds::dup(window.fd())?;
        let space = Space::new(HostPid::own(), fd, self.source, &runs);
        Ok((window, Arc::new(space.for_others())))
    }
}

/// By a task's own number: addresses of windows, in the order in which they were touched.
type Order = BTreeMap<u32, Vec<u64>>;

/// Where that is recorded, in the folder of the images: lines of a number in decimal and an address in hexadecimal.
const ORDER: &str = "working-set.txt";
/// More is not read of it, in bytes.
const MOST_ORDER: u64 = 64 << 20;

/// Reads what was recorded. It is only a hint, so whatever makes no sense is passed over.
fn recorded(images: &Path) -> Order {
    let mut order = Order::new();
    let Ok(file) = File::open(images.join(ORDER)) else {
        return order;
    };
    let lines = BufReader::new(file.take(MOST_ORDER)).lines();
    for line in lines.map_while(std::result::Result::ok) {
        let both = line.split_once(' ').and_then(|(pid, at)| {
            let at = u64::from_str_radix(at, 16).ok().filter(|a| *a < 1 << 47)?;
            Some((pid.parse().ok()?, at))
        });
        if let Some((pid, at)) = both {
            order.entry(pid).or_default().push(at);
        }
    }
    order
}

/// Writes what was touched, unless something is recorded already.
fn record(folder: &OwnedFd, own: &[u32], spaces: &[Arc<Space>]) -> std::io::Result<()> {
    use nix::fcntl::{OFlag, openat};
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(
        folder,
        ORDER,
        flags,
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )?;
    let mut out = BufWriter::new(File::from(file));
    for (pid, s) in own.iter().zip(spaces) {
        for at in s.touched() {
            writeln!(out, "{pid} {at:x}")?;
        }
    }
    out.flush()
}

/// The connection to a daemon `lazy-pages`. It is told each task of the tree, in any order: four bytes with its number, then its
/// userfaultfd with one byte; of one that lacks nothing only the number, negative. When the tree runs, [`Start::OVER`].
pub struct Daemon(UnixStream);

impl Daemon {
    /// Connects.
    ///
    /// # Errors
    /// E6708.
    pub fn connect(path: &Path) -> Result<Self> {
        let no = |e: std::io::Error| gone(e).on(path.display());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(no)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        UnixStream::connect(lazy_daemon::near(&folder, &name))
            .map(Self)
            .map_err(no)
    }
    /// Hands a task over.
    ///
    /// # Errors
    /// E6702, E6708.
    pub fn add(
        &mut self,
        pid: HostPid,
        own: i32,
        fd: &OwnedFd,
        ranges: &[(u64, u64)],
    ) -> Result<()> {
        register(pid, fd, ranges)?;
        self.0.write_all(&own.to_le_bytes()).map_err(gone)?;
        fds::send_fds(self.0.as_fd(), &[0], &[fd.as_fd()])?;
        Ok(())
    }
    /// Says that there is nothing to bring to a task.
    ///
    /// # Errors
    /// E6708.
    pub fn skip(&mut self, own: i32) -> Result<()> {
        self.0.write_all(&(-own).to_le_bytes()).map_err(gone)
    }
    /// Says that the tree runs.
    ///
    /// # Errors
    /// E6708.
    pub fn over(&mut self) -> Result<()> {
        self.0.write_all(&Start::OVER.to_le_bytes()).map_err(gone)
    }
}

fn gone(e: std::io::Error) -> Error {
    Error::new(
        "E6708",
        Blame::Host,
        "the daemon that brings memory is not there",
    )
    .why(e)
    .advice("start `criu lazy-pages` first, with the same work folder (-W, or -D)")
}

fn register(pid: HostPid, fd: &OwnedFd, ranges: &[(u64, u64)]) -> Result<()> {
    uffd::api(fd.as_fd(), lazy::FEATURES).map_err(|e| no_uffd(pid, &e.to_string()))?;
    for (start, len) in ranges {
        uffd::register(fd.as_fd(), RemotePtr(*start), *len, uffd::MODE_MISSING)
            .map_err(|e| no_uffd(pid, &e.to_string()))?;
    }
    Ok(())
}

impl Pager {
    /// Without tasks; `far` reaches those who kept pages.
    pub fn new(images: &Path, far: Option<&Arc<Far>>) -> Self {
        Self {
            far: far.cloned(),
            order: recorded(images),
            ..Self::default()
        }
    }
    /// Takes a task: `fd` is its userfaultfd.
    ///
    /// # Errors
    /// E6702: the kernel does not let us.
    pub fn add(
        &mut self,
        dir: &ImageDir,
        (pid, own): (HostPid, u32),
        fd: OwnedFd,
        m: &memory::Plan,
    ) -> Result<()> {
        register(pid, &fd, &m.lazy_ranges)?;
        self.stores
            .push(Store::reaching(dir, &m.sources, self.far.as_ref())?);
        let source = self.stores.len() - 1;
        for v in &m.views {
            if self.objects.is_empty() {
                // the process to come needs one of its own
                uffd::open(0).map_err(|e| no_uffd(pid, &e.to_string()))?;
            }
            if let Entry::Vacant(slot) = self.objects.entry(v.object.id) {
                let (object, store) = Object::open(dir, pid, v, self.stores.len())?;
                slot.insert(object);
                self.stores.push(store);
            }
        }
        self.views.push(m.views.clone());
        let space = Space::new(pid, fd, source, &m.lazy);
        let windows = self.order.get(&own).cloned().unwrap_or_default();
        self.spaces.push(space.first(windows));
        self.own.push(own);
        Ok(())
    }
    /// Starts the process that brings the pages.
    ///
    /// # Errors
    /// fork.
    pub fn start(self, images: &Path) -> Result<()> {
        if self.spaces.is_empty() {
            return self.far.map_or(Ok(()), |f| f.close());
        }
        let log: PathBuf = std::path::absolute(images)
            .unwrap_or_else(|_| images.into())
            .join(LOG);
        let _ = std::fs::remove_file(&log);
        let wards: Vec<HostPid> = self.spaces.iter().map(|s| s.pid).collect();
        let mut keep: Vec<RawFd> = self.spaces.iter().map(|s| s.fd().as_raw_fd()).collect();
        keep.extend(self.stores.iter().flat_map(Store::descriptors));
        keep.extend(self.objects.values().map(|o| o.file.as_raw_fd()));
        let folder = File::open(images).ok().map(OwnedFd::from);
        keep.extend(folder.as_ref().map(AsRawFd::as_raw_fd));
        keep.sort_unstable();
        keep.dedup();
        let Pager {
            spaces,
            stores,
            far,
            own,
            objects,
            views,
            ..
        } = self;
        // workers of earlier phases have ended, no other thread of the engine runs now
        offspring::start(&keep, &wards, move || {
            let shared = windows(&objects, spaces, &views);
            let served = shared.and_then(|(spaces, _windows)| {
                lazy::serve(spaces.clone(), &stores, None)?;
                Ok(spaces)
            });
            if let (Ok(spaces), Some(f)) = (&served, &folder) {
                // a folder that cannot be written, or has it already, is none the worse
                let _ = record(f, &own, spaces);
            }
            // who kept the pages may let its tree go
            let served = served.and_then(|_| far.map_or(Ok(()), |f| f.close()));
            match served {
                Ok(()) => 0,
                Err(e) => {
                    let _ = std::fs::write(&log, format!("{e}\n"));
                    1
                }
            }
        })?;
        Ok(())
    }
}

/// Opens the windows of all objects, in the process that brings them: the spaces with what they show, those of the tasks first.
fn windows(
    objects: &BTreeMap<Id, Object>,
    spaces: Vec<Space>,
    views: &[Vec<View>],
) -> Result<(Vec<Arc<Space>>, Vec<Window>)> {
    let (mut open, mut windows) = (BTreeMap::new(), Vec::new());
    for (id, o) in objects {
        let (window, space) = o.window()?;
        open.insert(*id, (window.at(), space));
        windows.push(window);
    }
    let of = |v: &View| {
        let (at, object) = open.get(&v.object.id)?;
        let view = lazy_views::View {
            end: v.end,
            object: object.clone(),
            own: at + v.offset,
        };
        Some((v.start, view))
    };
    let spaces = spaces.into_iter().zip(views);
    let spaces = spaces.map(|(s, v)| Arc::new(s.sharing(v.iter().filter_map(of))));
    let mut all: Vec<Arc<Space>> = spaces.collect();
    all.extend(open.values().map(|o| o.1.clone()));
    Ok((all, windows))
}

/// What a task without a userfaultfd of the full kind means.
pub fn no_uffd(pid: HostPid, why: &str) -> Error {
    Error::new(
        "E6702",
        Blame::Host,
        format!("memory of task {pid} cannot be restored lazily"),
    )
    .why(format!(
        "faults of system calls need a userfaultfd with CAP_SYS_PTRACE: {why}"
    ))
    .advice("restore as root, or without --lazy")
}
