//! What a machine of the lab boots: a root file system of this machine's own programs, the modules of its kernel, and a first
//! file system that finds both. The root is one image for all kernels; machines write to throw-away layers above it.
use super::packages::{Tools, run};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Installed packages whose programs and libraries are in the root.
const PACKAGES: &[&str] = &[
    "coreutils",
    "dash",
    "bash",
    "util-linux",
    "mount",
    "tar",
    "iproute2",
    "procps",
    "sed",
    "grep",
    "findutils",
    "libc-bin",
    "base-files",
    "busybox-static",
    "runc",
    "podman",
    "conmon",
    "netavark",
    "golang-github-containers-common",
    "golang-github-containers-image",
];
/// Files no package owns.
const FILES: &[&str] = &["/etc/passwd", "/etc/group", "/etc/ld.so.conf"];
/// Folders of packages that are left out.
const UNREAD: &[&str] = &[
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/bash-completion",
    "/usr/share/info",
    "/usr/share/lintian",
    "/usr/share/fish",
    "/usr/share/zsh",
];
/// Modules without which the root is not found.
const FIRST_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

/// Gathers files below a folder that will be a root.
pub struct Staging<'a> {
    at: PathBuf,
    tools: &'a Tools,
    seen: BTreeSet<PathBuf>,
}

impl<'a> Staging<'a> {
    /// A new one, with the folders every root has.
    ///
    /// # Errors
    /// As for files.
    pub fn new(at: PathBuf, tools: &'a Tools) -> Result<Self> {
        if at.exists() {
            fs::remove_dir_all(&at)?;
        }
        for d in [
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
            "etc",
            "proc",
            "sys",
            "dev",
            "run",
            "mnt",
            "root",
            "var/lib",
            "var/tmp",
            "var/run",
            "lab/job",
            "lab/modules",
            "luggage",
        ] {
            fs::create_dir_all(at.join(d))?;
        }
        for d in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{d}"), at.join(d))?;
        }
        // no mount below /usr: who may not look under a mount may not bind what is around it either
        symlink("/lab/modules", at.join("usr/lib/modules"))?;
        fs::create_dir(at.join("tmp"))?;
        fs::set_permissions(at.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        Ok(Self {
            at,
            tools,
            seen: BTreeSet::new(),
        })
    }
    /// The system: programs, their libraries, a few files.
    ///
    /// # Errors
    /// A package is not installed.
    pub fn system(&mut self) -> Result<()> {
        for p in PACKAGES {
            let list = run(Command::new("dpkg").args(["-L", p]))
                .with_context(|| format!("{p} is not installed: cargo xtask setup"))?;
            for line in list.lines().map(Path::new) {
                if !UNREAD.iter().any(|u| line.starts_with(u)) && !line.is_dir() {
                    self.add(line)?;
                }
            }
        }
        for f in FILES {
            self.add(Path::new(f))?;
        }
        fs::write(self.at.join("etc/hostname"), "lab\n")?;
        // kmod may be unpacked beside the lab instead of installed; the kernel calls it by this name
        let kmod = self.tools.find("kmod").context("kmod")?;
        self.program(&kmod, Path::new("/usr/bin/kmod"))?;
        for name in ["modprobe", "insmod", "lsmod"] {
            let at = self.at.join("usr/sbin").join(name);
            if !at.exists() {
                symlink("../bin/kmod", at)?;
            }
        }
        Ok(())
    }
    /// A file at the same path in the root, with links on the way to it, and the libraries it wants.
    ///
    /// # Errors
    /// As for files; one that is not here is passed over.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        let Ok(real) = path.canonicalize() else {
            return Ok(());
        };
        let place = match (
            path.parent().and_then(|p| p.canonicalize().ok()),
            path.file_name(),
        ) {
            (Some(dir), Some(name)) => dir.join(name),
            _ => return Ok(()),
        };
        if place != real && self.seen.insert(place.clone()) {
            let to = self.place(&place)?;
            symlink(&real, to)?;
        }
        if self.seen.insert(real.clone()) && real.is_file() {
            self.program(&real, &real.clone())?;
        }
        Ok(())
    }
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let to = self.at.join(path.strip_prefix("/")?);
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        Ok(to)
    }
    fn program(&mut self, from: &Path, at: &Path) -> Result<()> {
        let to = self.place(at)?;
        run(Command::new("cp").args(["-p", "--"]).arg(from).arg(&to))?;
        if is_elf(from)? {
            for lib in libraries(from, self.tools)? {
                self.library(&lib)?;
            }
        }
        Ok(())
    }
    fn library(&mut self, lib: &Path) -> Result<()> {
        if lib.starts_with("/usr") || lib.starts_with("/lib") || lib.starts_with("/lib64") {
            return self.add(lib);
        }
        // unpacked beside the lab: at home in the root
        let name = lib.file_name().context("a library")?;
        let at = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
        if self.seen.insert(at.clone()) {
            self.program(&lib.canonicalize()?, &at)?;
        }
        Ok(())
    }
    /// A program of our own at its own path, without debug information (it is most of the size).
    ///
    /// # Errors
    /// As for files.
    pub fn stripped(&mut self, path: &Path) -> Result<()> {
        self.add(path)?;
        let to = self.at.join(path.canonicalize()?.strip_prefix("/")?);
        run(Command::new("strip").args(["--strip-debug", "-p"]).arg(to)).map(drop)
    }
    /// A text of the lab's.
    ///
    /// # Errors
    /// As for files.
    pub fn script(&self, name: &str, text: &str) -> Result<()> {
        let to = self.at.join(name);
        fs::write(&to, text)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
    /// The folder as an image with room for this many MiB in all.
    ///
    /// # Errors
    /// As for files.
    pub fn image(&self, to: &Path, mib: u64) -> Result<()> {
        run(Command::new("chown").args(["-R", "0:0"]).arg(&self.at))?;
        filled(&self.at, to, mib)
    }
}

/// An ext4 image with what is in a folder.
///
/// # Errors
/// No mkfs.ext4, or not enough room.
pub fn filled(from: &Path, to: &Path, mib: u64) -> Result<()> {
    let _ = fs::remove_file(to);
    fs::File::create(to)?.set_len(mib << 20)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "root_owner=0:0,lazy_itable_init=1", "-d"])
        .arg(from)
        .arg(to))
    .map(drop)
}

fn is_elf(path: &Path) -> Result<bool> {
    let mut b = [0; 4];
    Ok(fs::File::open(path)?.read_exact(&mut b).is_ok() && b == *b"\x7fELF")
}

/// What ldd(1) says that a program loads; nothing of a static one.
fn libraries(program: &Path, tools: &Tools) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd")
        .arg(program)
        .env("LD_LIBRARY_PATH", tools.libraries())
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text
        .lines()
        .filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

/// What is made of a kernel.
pub struct Kernel {
    /// Its version, as `uname -r` says it.
    pub version: String,
    /// Its image.
    pub vmlinuz: PathBuf,
    /// An ext4 image for /lib/modules.
    pub modules: PathBuf,
    /// The first file system.
    pub initramfs: PathBuf,
}

impl Kernel {
    /// Prepares an unpacked kernel.
    ///
    /// # Errors
    /// It lacks what it must have.
    pub fn prepare(tools: &Tools, at: &Path, version: &str) -> Result<Self> {
        let find = |name: &str| -> Result<PathBuf> {
            ["", "usr/"]
                .iter()
                .map(|p| at.join(format!("{p}{name}")))
                .find(|p| p.exists())
                .with_context(|| format!("the package of {version} has no {name}"))
        };
        let kernel = Self {
            version: version.into(),
            vmlinuz: find(&format!("boot/vmlinuz-{version}"))
                .or_else(|_| find(&format!("lib/modules/{version}/vmlinuz")))?,
            modules: at.join("modules.img"),
            initramfs: at.join("initramfs.cpio"),
        };
        let modules = find("lib/modules")?;
        if kernel.modules.exists() {
            // that one is quickly made, and its script may have changed
            first(&modules.join(version), at, &kernel.initramfs)?;
            return Ok(kernel);
        }
        let base = modules
            .parent()
            .and_then(Path::parent)
            .context("a folder")?;
        // kmod tells what it should do by the name it is called by
        let depmod = at.join("depmod");
        let _ = fs::remove_file(&depmod);
        symlink(tools.find("kmod").context("kmod")?, &depmod)?;
        run(Command::new(&depmod)
            .env("LD_LIBRARY_PATH", tools.libraries())
            .arg("-b")
            .arg(base)
            .arg(version))?;
        let partial = at.join("modules.partial");
        filled(&modules, &partial, 400)?;
        fs::rename(partial, &kernel.modules)?;
        first(&modules.join(version), at, &kernel.initramfs)?;
        Ok(kernel)
    }
}

/// Modules in the order in which they can be loaded.
fn ordered(deps: &str, wanted: &[&str]) -> Vec<String> {
    let name = |path: &str| -> String {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split('.').next().unwrap_or(file).replace('-', "_")
    };
    let mut list: Vec<String> = Vec::new();
    for w in wanted {
        let Some(line) = deps
            .lines()
            .find(|l| name(l.split(':').next().unwrap_or_default()) == *w)
        else {
            // built into the kernel
            continue;
        };
        let (own, needs) = line.split_once(':').unwrap_or((line, ""));
        for path in needs.split_whitespace().rev().chain([own]) {
            if !list.iter().any(|l| l == path) {
                list.push(path.to_string());
            }
        }
    }
    list
}

const FIRST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
while read m; do insmod /m/$m || echo "lab: $m is not loaded"; done < /m/order
n=0; while [ ! -b /dev/vdc ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
mount -t ext4 /dev/vda /new && mount -t ext4 -o ro /dev/vdb /new/lab/modules && mount -t ext4 /dev/vdc /new/lab/job || {
  echo "lab: no disks"; poweroff -f; }
[ -b /dev/vdd ] && mount -t ext4 /dev/vdd /new/luggage
umount /proc; umount /dev
exec switch_root /new /lab/init
"#;

/// Writes the first file system: busybox, a few modules, a script.
fn first(modules: &Path, scratch: &Path, to: &Path) -> Result<()> {
    let dir = scratch.join("first");
    for d in ["bin", "dev", "proc", "new", "m"] {
        fs::create_dir_all(dir.join(d))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find(|p| Path::new(p).exists())
        .context("busybox-static is not installed: cargo xtask setup")?;
    run(Command::new("cp").arg(busybox).arg(dir.join("bin/busybox")))?;
    let mut order = String::new();
    let deps = fs::read_to_string(modules.join("modules.dep"))?;
    for path in ordered(&deps, FIRST_MODULES) {
        let name = path.rsplit('/').next().unwrap_or(&path);
        let to = dir.join("m").join(name.trim_end_matches(".xz"));
        match name.ends_with(".xz") {
            true => fs::write(
                &to,
                Command::new("xz")
                    .arg("-dc")
                    .arg(modules.join(&path))
                    .output()?
                    .stdout,
            )?,
            false => drop(fs::copy(modules.join(&path), &to)?),
        }
        order += &format!("{}\n", name.trim_end_matches(".xz"));
    }
    ensure!(!order.is_empty(), "no modules in {}", modules.display());
    fs::write(dir.join("m/order"), order)?;
    fs::write(dir.join("init"), FIRST)?;
    fs::set_permissions(dir.join("init"), fs::Permissions::from_mode(0o755))?;
    let script = "find . | busybox cpio -o -H newc -R 0:0 > \"$1\"";
    let partial = to.with_extension("partial");
    run(Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(&partial)
        .current_dir(&dir))?;
    fs::remove_dir_all(&dir)?;
    Ok(fs::rename(partial, to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let deps = "k/a/ext4.ko: k/j/jbd2.ko k/c/crc-16.ko\nk/j/jbd2.ko: k/c/crc-16.ko\nk/c/crc-16.ko:\nk/v/virtio-pci.ko.xz: k/v/ring.ko.xz\n";
        let all = ordered(deps, &["virtio_pci", "ext4", "built_in"]);
        assert_eq!(
            all,
            [
                "k/v/ring.ko.xz",
                "k/v/virtio-pci.ko.xz",
                "k/c/crc-16.ko",
                "k/j/jbd2.ko",
                "k/a/ext4.ko"
            ]
        );
    }
}
