//! Plugins at dump: who claims what, and what they save.
use super::{Link, Mapping, Mount, OpenFile, UnixSocket};
use crate::dump::mm::status;
use crate::error::{Error, Result};
use crate::kinds::{DumpCx, FileKind, PlanCx, Seen, Stage};
use crate::options::Options;
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::{MapsLine, MountInfo, ProcDir};
use stasis_proto::pb;
use stasis_proto::pb::stasis_plugin_entry::StasisPluginWhat as What;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tracing::{info, warn};

/// Asks all plugins until one claims; gives its name and its data.
fn claim(
    o: &Options,
    mut ask: impl FnMut(&dyn super::Plugin) -> Result<Option<Vec<u8>>>,
) -> Result<Option<(String, Vec<u8>)>> {
    for p in &o.plugins.0 {
        let data = ask(p.as_ref()).map_err(|e| e.on(format!("plugin {}", p.name())))?;
        if let Some(data) = data {
            return Ok(Some((p.name().to_owned(), data)));
        }
    }
    Ok(None)
}

fn put(cx: &mut DumpCx, what: What, id: Option<u64>, name: Option<String>, by: (String, Vec<u8>)) {
    cx.plugged.push(pb::StasisPluginEntry {
        plugin: by.0,
        what: what as i32,
        id,
        name,
        data: by.1,
    });
}

/// The names of all plugins that claimed something, once each.
pub(crate) fn used(cx: &DumpCx) -> Vec<String> {
    let mut names: Vec<String> = cx.plugged.iter().map(|e| e.plugin.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// Files that plugins carry. Not in the table of kinds: claiming needs the caller's options.
struct Plugged;

impl FileKind for Plugged {
    fn name(&self) -> &'static str {
        "plugin"
    }
    fn about(&self) -> &'static str {
        "files that a plugin carries"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Ext
    }
    fn claims(&self, _: &Seen) -> bool {
        false
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, _: &mut DumpCx) -> Result<pb::FileEntry> {
        Ok(entry(id, seen.fown))
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, _: &mut PlanCx) -> Result<()> {
        Err(super::not_brought(entry.id))
    }
}

fn entry(id: u32, fown: pb::FownEntry) -> pb::FileEntry {
    pb::FileEntry {
        r#type: pb::FdTypes::Ext as i32,
        id,
        ext: Some(Box::new(pb::ExtFileEntry { id, fown })),
        ..Default::default()
    }
}

/// An open file that no kind claims.
///
/// # Errors
/// The plugin's.
pub(crate) fn file(seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<Option<&'static dyn FileKind>> {
    let f = OpenFile {
        pid: seen.pid.0,
        slot: seen.slot,
        fd: seen.fd,
        link: seen.link,
        mode: seen.stat.st_mode,
        rdev: seen.stat.st_rdev,
        flags: seen.flags,
        images: &cx.options.images,
    };
    let Some(by) = claim(cx.options, |p| p.dump_file(&f))? else {
        return Ok(None);
    };
    info!("plugin {} carries {}", by.0, seen.place());
    put(cx, What::File, Some(id.into()), None, by);
    Ok(Some(&Plugged))
}

/// A unix socket with a peer outside; true if a plugin has it.
///
/// # Errors
/// The plugin's.
pub(crate) fn socket(cx: &mut DumpCx, inode: u32, peer: u32, peer_name: &[u8]) -> Result<bool> {
    let s = UnixSocket {
        inode,
        peer,
        peer_name,
        images: &cx.options.images,
    };
    let Some(by) = claim(cx.options, |p| p.dump_unix_socket(&s))? else {
        return Ok(false);
    };
    put(cx, What::UnixSocket, Some(inode.into()), None, by);
    Ok(true)
}

/// Mounts that plugins have, as `--external` would name them: mountpoint and key.
///
/// # Errors
/// The plugins'.
pub(crate) fn mounts(cx: &mut DumpCx, all: &[MountInfo]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for m in all.iter().filter(|m| m.mountpoint != b"/") {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let at = text(&m.mountpoint);
        if cx.options.mounts.external.iter().any(|e| e.0 == at) {
            continue;
        }
        let (fstype, source) = (text(&m.fstype), text(&m.source));
        let seen = Mount {
            mountpoint: Path::new(std::ffi::OsStr::from_bytes(&m.mountpoint)),
            root: Path::new(std::ffi::OsStr::from_bytes(&m.root)),
            fstype: &fstype,
            source: &source,
            dev: m.dev,
            images: &cx.options.images,
        };
        if let Some(by) = claim(cx.options, |p| p.dump_mount(&seen))? {
            let key = format!("plugin:{}:{at}", by.0);
            put(cx, What::Mount, None, Some(key.clone()), by);
            found.push((at, key));
        }
    }
    Ok(found)
}

/// Network devices that plugins have.
///
/// # Errors
/// The plugins'.
pub(crate) fn links(cx: &mut DumpCx, all: &[(u32, String, Option<String>)]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (index, name, kind) in all {
        let l = Link {
            name,
            kind: kind.as_deref(),
            index: *index,
            images: &cx.options.images,
        };
        if let Some(by) = claim(cx.options, |p| p.dump_link(&l))? {
            put(cx, What::Link, None, Some(name.clone()), by);
            found.push(name.clone());
        }
    }
    Ok(found)
}

/// Which status bits a mapping has that a plugin carries.
pub(crate) fn mapping_status(shared: bool) -> u32 {
    let sort = match shared {
        true => status::FILE_SHARED,
        false => status::FILE_PRIVATE,
    };
    status::REGULAR | status::EXT_PLUGIN | sort
}

/// A mapping of a character device: the id of a plugin's file, if one claims it.
///
/// # Errors
/// The plugin's.
pub(crate) fn mapping(cx: &mut DumpCx, proc: &ProcDir, m: &MapsLine) -> Result<Option<u32>> {
    if cx.options.plugins.0.is_empty() || m.ino == 0 || !m.path.starts_with(b"/") {
        return Ok(None);
    }
    let fd: OwnedFd = proc.open_map_file(m, libc::O_PATH)?;
    let stat = fds::fstat(fd.as_fd())?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFCHR {
        return Ok(None);
    }
    let seen = Mapping {
        pid: proc.pid().0,
        start: m.start,
        end: m.end,
        offset: m.offset,
        shared: m.shared,
        path: &m.path,
        rdev: stat.st_rdev,
        images: &cx.options.images,
    };
    let Some(by) = claim(cx.options, |p| p.dump_mapping(&seen))? else {
        return Ok(None);
    };
    let id = cx.new_id();
    cx.entries.push(entry(id, pb::FownEntry::default()));
    put(cx, What::Mapping, Some(id.into()), None, by);
    Ok(Some(id))
}

/// Devices of a stopped task. `own`: its pid as it sees it.
///
/// # Errors
/// The plugins'.
pub(crate) fn devices(cx: &mut DumpCx, pid: HostPid, own: u32) -> Result<()> {
    for p in &cx.options.plugins.0 {
        let data = p
            .checkpoint_devices(pid.0, &cx.options.images)
            .map_err(|e| e.on(format!("plugin {}", p.name())))?;
        if let Some(data) = data {
            let by = (p.name().to_owned(), data);
            put(cx, What::Devices, Some(own.into()), None, by);
        }
    }
    Ok(())
}

/// Tasks whose devices are paused. They are resumed when this goes.
pub(crate) struct Paused<'a> {
    o: &'a Options,
    pids: Vec<HostPid>,
    /// The tree was killed: there is nothing to resume.
    pub(crate) over: bool,
}

/// Pauses the devices of all tasks below the root that are there now.
///
/// # Errors
/// The plugins'; then none is paused any more.
pub(crate) fn pause(o: &Options) -> Result<Paused<'_>> {
    o.plugins.check()?;
    let mut paused = Paused {
        o,
        pids: Vec::new(),
        over: false,
    };
    if o.plugins.0.is_empty() {
        return Ok(paused);
    }
    let mut waiting = vec![HostPid(o.pid)];
    while let Some(pid) = waiting.pop() {
        // a task that ends meanwhile has no devices
        let Ok(children) = ProcDir::open(pid)
            .map_err(Error::from)
            .and_then(|p| Ok(p.children()?))
        else {
            continue;
        };
        waiting.extend(children);
        paused.pids.push(pid);
        for p in &o.plugins.0 {
            p.pause_devices(pid.0)
                .map_err(|e| e.on(format!("plugin {}", p.name())))?;
        }
    }
    Ok(paused)
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        for pid in &self.pids {
            for p in &self.o.plugins.0 {
                if let Err(e) = p.resume_devices(pid.0, None) {
                    warn!("plugin {}: {e}", p.name());
                }
            }
        }
    }
}
