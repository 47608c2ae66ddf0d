//! Plugins at restore: what they bring goes the way of what a caller brings.
use super::{Plugin, Saved, key};
use crate::dump::mm::status;
use crate::error::{Blame, Error, Result};
use crate::options::Options;
use crate::restore::images::Images;
use stasis_proto::pb::stasis_plugin_entry::StasisPluginWhat as What;
use stasis_proto::{ImageDir, Kind, pb};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Stands for a descriptor that is not made because nothing is done.
const NONE: RawFd = -1;

/// What plugins brought, held until the tree has it.
pub(crate) struct Brought {
    /// The caller's options, and what plugins add to them.
    pub(crate) options: Options,
    _files: Vec<OwnedFd>,
}

/// Asks plugins for all they claimed at dump; only asks whether they are there if nothing is to be done (`really` is false).
///
/// # Errors
/// E2600: a plugin is missing; E5631: plugins.img is damaged; the plugins' own.
pub(crate) fn bring(
    o: &Options,
    dir: &ImageDir,
    images: &mut Images,
    really: bool,
) -> Result<Brought> {
    o.plugins.check()?;
    let mut options = o.clone();
    let mut files = Vec::new();
    let missing = |name: &str| {
        Error::new("E2600", Blame::Caller, format!("plugin {name}"))
            .why("the images need it, and it is not there")
            .advice("restore with the program that made the dump, or one that has this plugin")
    };
    if let Some(name) = images.plugins.iter().find(|n| o.plugins.find(n).is_none()) {
        return Err(missing(name));
    }
    let image = Kind::Plugins.file();
    if images.plugins.is_empty() || !dir.exists(&image)? {
        return Ok(Brought {
            options,
            _files: files,
        });
    }
    let entries: Vec<pb::StasisPluginEntry> = dir.read_all(&image)?;
    let bad = |n: usize, why: &str| {
        Error::new("E5631", Blame::Image, format!("record {n} of plugins.img"))
            .why(why)
            .advice("dump again: the image is damaged")
    };
    for (n, e) in entries.iter().enumerate() {
        let p = o
            .plugins
            .find(&e.plugin)
            .ok_or_else(|| missing(&e.plugin))?;
        let on = |err: Error| err.on(format!("plugin {}", e.plugin));
        let what = What::try_from(e.what).map_err(|_| bad(n, "it is about nothing known"))?;
        let id = || {
            let id = e.id.and_then(|i| u32::try_from(i).ok());
            id.ok_or_else(|| bad(n, "it has no id"))
        };
        let name = || e.name.clone().ok_or_else(|| bad(n, "it has no name"));
        let saved = Saved {
            data: &e.data,
            images: &o.images,
        };
        let mut keep = |fd: OwnedFd| {
            let number = fd.as_raw_fd();
            files.push(fd);
            number
        };
        match what {
            What::File | What::UnixSocket => {
                let as_key = match what {
                    What::File => key(id()?),
                    _ => format!("socket:[{}]", id()?),
                };
                let number = match (really, what) {
                    (false, _) => NONE,
                    (_, What::File) => keep(p.restore_file(saved).map_err(on)?),
                    _ => keep(p.restore_unix_socket(saved).map_err(on)?),
                };
                options.namespaces.inherit.push((as_key, number));
            }
            What::Mapping => {
                let file = id()?;
                let mut all = images.tasks.iter_mut().filter_map(|t| t.mm.as_mut());
                let vma = all
                    .find_map(|mm| {
                        let ours = |v: &&mut pb::VmaEntry| {
                            v.status & status::EXT_PLUGIN != 0 && v.shmid == u64::from(file)
                        };
                        mm.vmas.iter_mut().find(ours)
                    })
                    .ok_or_else(|| bad(n, "no mapping has its file"))?;
                let number = match really {
                    false => NONE,
                    true => {
                        let (fd, offset) = p.restore_mapping(saved, vma.pgoff).map_err(on)?;
                        vma.pgoff = offset;
                        keep(fd)
                    }
                };
                options.namespaces.inherit.push((key(file), number));
            }
            What::Mount => {
                let path = match really {
                    false => "/".into(),
                    true => p.restore_mount(saved).map_err(on)?,
                };
                let path = path.display().to_string();
                options.mounts.external.push((name()?, path));
            }
            What::Link => {
                let link = match really {
                    false => name()?,
                    true => p.restore_link(saved).map_err(on)?,
                };
                options.network.netdevs.push((name()?, link));
            }
            What::Devices => images
                .devices
                .push((id()?, e.plugin.clone(), e.data.clone())),
        }
    }
    Ok(Brought {
        options,
        _files: files,
    })
}

/// Tells all plugins that this process exists.
///
/// # Errors
/// The plugins'.
pub(crate) fn forked(o: &Options, pid: i32) -> Result<()> {
    let mut all = o.plugins.0.iter();
    all.try_for_each(|p: &Arc<dyn Plugin>| {
        p.post_forking(pid)
            .map_err(|e| e.on(format!("plugin {}", p.name())))
    })
}

/// Gives the devices of a task back what was saved of them. `own`: its pid as it sees it.
///
/// # Errors
/// The plugins'.
pub(crate) fn resume(o: &Options, images: &Images, own: u32, pid: i32) -> Result<()> {
    for (_, name, data) in images.devices.iter().filter(|d| d.0 == own) {
        let saved = Saved {
            data,
            images: &o.images,
        };
        if let Some(p) = o.plugins.find(name) {
            p.resume_devices(pid, Some(saved))
                .map_err(|e| e.on(format!("plugin {name}")))?;
        }
    }
    Ok(())
}
