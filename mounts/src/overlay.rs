//! Overlay file systems inside of a tree: which folders they are made of, and how they are mounted again.
//!
//! **Dump.** The kernel shows the folders (layers) by the names they had for whoever mounted the overlay. Those are looked up
//! in the overlay's own mount namespace, then in the earlier ones of the tree (a container in a container has an overlay as
//! its root, and the layers are its runtime's). What counts in an image is on which mount of the tree they lie.
//!
//! **Restore.** Layers come from mounts that were made for the tree, without following any link. So that mountinfo shows
//! the names of before, the overlay is mounted in a root of its own, a tmpfs that holds nothing but these mounts and links with
//! the names; it goes when the overlay is there, which has private copies of its layers' mounts.
use crate::fstype;
use crate::perform::Performer;
use crate::tree::{below, is_plain};
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{fchdir, symlinkat};
use stasis_kernel::call::{Call, FdRef};
use stasis_kernel::procfs::MountInfo;
use stasis_kernel::{fds, mnt};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

type Why<T> = std::result::Result<T, String>;

/// The longest list of options mount(2) takes, with its NUL: a page.
const MAX_OPTIONS: usize = 4096;
/// Where the overlay is mounted in its scaffold.
const MERGED: &str = ".merged";

/// A layer as a dump found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The name in the options.
    pub name: String,
    /// The mount it lies on.
    pub mount: u32,
    /// Where, from the root of that mount's namespace.
    pub path: String,
}

/// A layer in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The name in the options.
    pub name: String,
    /// Number of the mount it lies on.
    pub mount: u32,
    /// Where, below the root of that mount: without a slash at either end.
    pub path: String,
}

/// How an overlay is mounted in its scaffold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// What mount(2) is given.
    pub options: String,
    /// Absolute names in the scaffold, and where they lead there.
    pub links: Vec<(String, String)>,
    /// The mounts in the scaffold: number N is at `/.N`.
    pub mounts: Vec<usize>,
    /// For each mount, the folders of it that are layers: none may lie behind a link.
    pub folders: Vec<(usize, String)>,
    /// Some names could not be given again.
    pub renamed: bool,
    /// Source, a label.
    pub source: String,
    /// `MS_...` flags of the file system.
    pub flags: u64,
}

impl Recipe {
    fn mount(&self) -> Call {
        let words: Vec<&str> = crate::flags::super_words(self.flags).collect();
        let flags = (self.flags, &*words.join(","));
        let at = format!("/{MERGED}");
        mnt::mount("overlay", &self.source, &at, flags, &self.options)
    }
}

/// An option, taken apart.
enum Word {
    /// One that names no layer.
    Other(String),
    /// One that names layers; an empty name stands for the second colon before layers that have only data.
    Layers(&'static str, Vec<String>),
}

fn words(options: &str) -> Why<Vec<Word>> {
    let mut all = Vec::new();
    let mut lower: Option<usize> = None;
    for w in fstype::words(options) {
        let Some((key, value)) = w.split_once('=') else {
            all.push(Word::Other(w));
            continue;
        };
        let (key, names): (&'static str, Vec<&str>) = match key {
            "lowerdir" => ("lowerdir", value.split(':').collect()),
            "lowerdir+" => ("lowerdir", vec![value]),
            "datadir+" => ("lowerdir", vec!["", value]),
            "upperdir" => ("upperdir", vec![value]),
            "workdir" => ("workdir", vec![value]),
            _ => {
                all.push(Word::Other(w));
                continue;
            }
        };
        let odd = |n: &&str| n.contains(['\\', '"']) || key == "lowerdir" && n.contains(':');
        if let Some(n) = names.iter().find(|n| odd(n)) {
            return Err(format!(
                "the name of its layer {n} has a comma, a colon or a backslash"
            ));
        }
        let names = names.into_iter().map(str::to_owned);
        match (key, lower) {
            // layers that were given one by one
            ("lowerdir", Some(at)) => {
                if let Word::Layers(_, before) = &mut all[at] {
                    before.extend(names);
                }
            }
            _ => {
                if key == "lowerdir" {
                    lower = Some(all.len());
                }
                all.push(Word::Layers(key, names.collect()));
            }
        }
    }
    match lower {
        Some(_) => Ok(all),
        None => Err("it has no layers".into()),
    }
}

/// The names of an overlay's layers, each once.
///
/// # Errors
/// Options of no overlay, or names that cannot be told apart.
pub fn names(options: &str) -> Why<BTreeSet<String>> {
    let all = words(options)?.into_iter().filter_map(|w| match w {
        Word::Layers(_, names) => Some(names),
        Word::Other(_) => None,
    });
    Ok(all.flatten().filter(|n| !n.is_empty()).collect())
}

/// Can one with these options be mounted again? `fresh`: its upper layer gets new files at a restore.
pub(crate) fn carried(options: &str, fresh: bool) -> Why<()> {
    if options.len() >= MAX_OPTIONS {
        return Err("its options are longer than mount(2) takes".into());
    }
    let has = |word: &str| fstype::words(options).iter().any(|w| w == word);
    if has("volatile") {
        // KERNEL: it leaves a mark in its work folder, and whoever finds that does not mount it (fs/overlayfs/super.c)
        return Err("it is volatile, and is not mounted twice with the same layers".into());
    }
    if fresh && (has("index=on") || has("nfs_export=on")) {
        return Err(
            "it has an index, which tells files by numbers they will not have again".into(),
        );
    }
    Ok(())
}

/// The upper layer's name.
pub(crate) fn upper(options: &str) -> Option<String> {
    let all = fstype::words(options);
    let upper = all.iter().find_map(|w| w.strip_prefix("upperdir="));
    upper.map(str::to_owned)
}

/// Looks the layers of an overlay up, from the root of the mount namespace the calling thread is in; `proc` is a /proc that sees
/// the thread.
///
/// # Errors
/// One is not there, or what is there came later than the overlay.
pub fn find(m: &MountInfo, proc: BorrowedFd<'_>) -> Why<Vec<Found>> {
    let mut all = Vec::new();
    let options = &*String::from_utf8_lossy(&m.super_options);
    let marked = |name: &str| fstype::words(options).contains(&format!("workdir={name}"));
    let age = age_of(m);
    for name in names(options)? {
        if !name.starts_with('/') {
            return Err(format!(
                "its layer {name} has a name that only who mounted it could follow"
            ));
        }
        // the target's links may lead where they want, but not out of the namespace
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = openat2(AT_FDCWD, name.as_str(), how)
            .map_err(|e| format!("its layer {name} is not there ({e})"))?;
        let mount = mnt::id_of(file.as_fd()).map_err(|e| e.to_string())?;
        let link = format!("thread-self/fd/{}", file.as_raw_fd());
        let path = nix::fcntl::readlinkat(proc, link.as_str())
            .map_err(|e| format!("its layer {name}: readlinkat: {e}"))?;
        let Ok(path) = path.into_string() else {
            return Err(format!("the path of its layer {name} is not UTF-8"));
        };
        let st = fds::fstat(file.as_fd()).map_err(|e| e.to_string())?;
        let itself = (libc::major(st.st_dev), libc::minor(st.st_dev)) == m.dev;
        if !itself
            && age
                .zip(mnt::age_of(file.as_fd()))
                .is_some_and(|(own, its)| its > own)
        {
            return Err(format!("a mount that came later may hide its layer {name}"));
        }
        // KERNEL: every writable overlay makes this one (fs/overlayfs/super.c, ovl_make_workdir())
        if marked(&name) && !itself && openat(&file, "work", OFlag::O_PATH, Mode::empty()).is_err()
        {
            return Err(format!("{name} is another folder than the one it works in"));
        }
        all.push(Found { name, mount, path });
    }
    Ok(all)
}

/// The age of a mount, if its place leads to it.
fn age_of(m: &MountInfo) -> Option<u64> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = openat2(AT_FDCWD, Path::new(OsStr::from_bytes(&m.mountpoint)), how).ok()?;
    let is_it = mnt::id_of(file.as_fd()).is_ok_and(|id| id as i32 == m.id);
    mnt::age_of(file.as_fd()).filter(|_| is_it)
}

/// Plans the scaffold: layers are (name, index of a mount, path on it).
///
/// # Errors
/// Options of no overlay, or a layer that is not among `layers`.
pub(crate) fn recipe(options: &str, layers: &[(String, usize, String)]) -> Why<Recipe> {
    let mut mounts: Vec<usize> = Vec::new();
    let mut targets: BTreeMap<&str, (String, &str)> = BTreeMap::new();
    let mut folders = Vec::new();
    for (name, mount, path) in layers {
        let n = mounts.iter().position(|m| m == mount);
        let n = n.unwrap_or_else(|| {
            mounts.push(*mount);
            mounts.len() - 1
        });
        let target = match path.as_str() {
            "" => format!("/.{n}"),
            p => format!("/.{n}/{p}"),
        };
        folders.push((n, path.clone()));
        targets.insert(name, (target, path));
    }
    let mut links: Vec<(String, String)> = Vec::new();
    let mut given: BTreeMap<&str, String> = BTreeMap::new();
    // shorter names first: the longer ones may lead through them
    for (name, (target, _)) in &targets {
        let through = links.iter().find_map(|(n, t)| {
            let rest = below(name, n).filter(|r| !r.is_empty())?;
            Some(format!("{}/{rest}", t.trim_end_matches('/')))
        });
        let own = match through {
            Some(way) => way == *target,
            None => is_plain(name) && *name != "/" && !name.starts_with("/."),
        };
        let linked = links.iter().any(|(n, _)| below(name, n).is_some());
        if own && !linked {
            links.push(((*name).to_owned(), target.clone()));
        }
        given.insert(
            name,
            if own {
                (*name).to_owned()
            } else {
                target.clone()
            },
        );
    }
    let mut all = Vec::new();
    for w in words(options)? {
        all.push(match w {
            Word::Other(w) => w,
            Word::Layers(key, names) => {
                let mut list = Vec::with_capacity(names.len());
                for n in &names {
                    list.push(match (n.is_empty(), given.get(n.as_str())) {
                        (true, _) => "",
                        (false, Some(g)) => g,
                        (false, None) => {
                            return Err(format!("its layer {n} is nowhere in the tree"));
                        }
                    });
                }
                format!("{key}={}", list.join(":"))
            }
        });
    }
    Ok(Recipe {
        options: all.join(","),
        renamed: given.iter().any(|(name, given)| name != given),
        links,
        mounts,
        folders,
        source: String::new(),
        flags: 0,
    })
}

/// Mounts an overlay in a scaffold; the detached mount gets the name `to`. `mounts` are detached, and are gone afterwards.
pub(crate) fn perform(
    p: &mut Performer<'_>,
    r: &Recipe,
    mounts: &[FdRef],
    to: FdRef,
    own: u32,
) -> Why<()> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (context, scaffold, at) = (FdRef(own), FdRef(own + 1), FdRef(own + 2));
    let play = |p: &mut Performer<'_>, c: Call| p.host.play(&c).map(drop).map_err(|e| text(&e));
    play(p, mnt::fsopen("tmpfs").binds(context))?;
    play(p, mnt::create(context))?;
    play(p, mnt::fsmount(context, 0).binds(scaffold))?;
    play(p, mnt::attach_path(scaffold, b"/"))?;
    let folder = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let outer = nix::fcntl::open("/", folder, Mode::empty()).map_err(|e| text(&e))?;
    let top = dup(p, scaffold)?;
    for (n, m) in mounts.iter().enumerate() {
        mkdir(&top, &format!(".{n}"))?;
        play(p, mnt::beneath(scaffold, &format!(".{n}")).binds(at))?;
        // no layer lies behind a link: the names may be followed later
        for (_, path) in r.folders.iter().filter(|f| f.0 == n) {
            let layer = FdRef(own + 3);
            play(p, mnt::beneath(*m, path).binds(layer))?;
            p.host.take(layer);
        }
        play(p, mnt::attach(*m, at))?;
        p.host.take(at);
    }
    for (name, target) in &r.links {
        let name = Path::new(name.trim_start_matches('/'));
        let parents: Vec<&Path> = name.ancestors().skip(1).collect();
        for up in parents.iter().rev().filter(|u| !u.as_os_str().is_empty()) {
            mkdir(&top, &up.to_string_lossy())?;
        }
        symlinkat(target.as_str(), &top, name).map_err(|e| format!("symlinkat: {e}"))?;
    }
    mkdir(&top, MERGED)?;
    fchdir(&top).map_err(|e| text(&e))?;
    nix::unistd::chroot(".").map_err(|e| format!("chroot: {e}"))?;
    let mounted = play(p, r.mount()).and_then(|()| {
        play(
            p,
            mnt::clone_path(format!("/{MERGED}").as_bytes(), false).binds(to),
        )
    });
    fchdir(&outer).map_err(|e| text(&e))?;
    nix::unistd::chroot(".").map_err(|e| format!("chroot: {e}"))?;
    mounted?;
    // whether the file system is read-only and whether the mount is are two things
    play(p, mnt::setattr(to, 0, mnt::attr::RDONLY, 0))?;
    play(p, mnt::enter(scaffold))?;
    play(p, mnt::detach_here())?;
    for f in mounts.iter().chain([&context, &scaffold]) {
        p.host.take(*f);
    }
    Ok(())
}

fn dup(p: &Performer<'_>, f: FdRef) -> Why<OwnedFd> {
    let fd = p.host.fd(f).ok_or("the scaffold is not open")?;
    fds::dup(fd.as_fd()).map_err(|e| e.to_string())
}

fn mkdir(top: &OwnedFd, name: &str) -> Why<()> {
    match nix::sys::stat::mkdirat(top, name, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(e) => Err(format!("mkdirat of {name}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(all: &[(&str, usize, &str)]) -> Vec<(String, usize, String)> {
        let own = |l: &(&str, usize, &str)| (l.0.to_owned(), l.1, l.2.to_owned());
        all.iter().map(own).collect()
    }

    #[test]
    fn layers_are_named() {
        let all = names("lowerdir=/a:/b::/d,upperdir=/u:x,workdir=/w,index=off").expect("names");
        assert_eq!(
            all.into_iter().collect::<Vec<_>>(),
            ["/a", "/b", "/d", "/u:x", "/w"]
        );
        let all = names("lowerdir+=/a,lowerdir+=/b,datadir+=/d").expect("names");
        assert_eq!(all.len(), 3);
        for bad in [
            "",
            "index=on",
            "upperdir=/a",
            "lowerdir=/a\\054b",
            "lowerdir+=/a:b",
            "lowerdir=/\"a",
        ] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_before_are_given_again() {
        let l = layers(&[
            ("/o/low", 3, "low"),
            ("/o/up", 3, "up"),
            ("/o/work", 3, "work"),
            ("/else", 5, ""),
        ]);
        let o = "lowerdir=/else:/o/low,upperdir=/o/up,workdir=/o/work,xino=off";
        let r = recipe(o, &l).expect("a recipe");
        assert_eq!(r.options, o);
        assert!(!r.renamed);
        assert_eq!(r.mounts, [3, 5]);
        assert!(
            r.links.contains(&("/o/up".into(), "/.0/up".into())),
            "{r:?}"
        );
        assert!(r.links.contains(&("/else".into(), "/.1".into())), "{r:?}");
        // given one by one they come as a list
        let l = layers(&[("/a", 1, "a"), ("/b", 1, "b"), ("/d", 1, "d")]);
        let r = recipe("lowerdir+=/a,lowerdir+=/b,datadir+=/d", &l).expect("a recipe");
        assert_eq!(r.options, "lowerdir=/a:/b::/d");
        assert!(recipe("lowerdir=/a:/c", &l).is_err());
    }

    #[test]
    fn names_within_names_lead_through_them_or_are_replaced() {
        let l = layers(&[("/a", 1, "x"), ("/a/b", 1, "x/b"), ("/a/c", 2, "")]);
        let r = recipe("lowerdir=/a:/a/b:/a/c", &l).expect("a recipe");
        assert_eq!(r.links, [("/a".to_string(), "/.0/x".to_string())]);
        assert_eq!(r.options, "lowerdir=/a:/a/b:/.1");
        assert!(r.renamed);
        let l = layers(&[("/", 0, ""), ("/x/../y", 0, "y"), ("/.0", 0, "z")]);
        let r = recipe("lowerdir=/:/x/../y:/.0", &l).expect("a recipe");
        assert_eq!(r.options, "lowerdir=/.0:/.0/y:/.0/z");
        assert!(r.links.is_empty());
    }

    #[test]
    fn what_cannot_be_mounted_twice_is_told() {
        assert!(carried("lowerdir=/a,volatile", false).is_err());
        assert!(carried("lowerdir=/a,index=on", false).is_ok());
        assert!(carried("lowerdir=/a,index=on", true).is_err());
        assert!(carried(&format!("lowerdir=/{}", "a".repeat(MAX_OPTIONS)), false).is_err());
    }
}
