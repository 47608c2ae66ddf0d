//! Debian packages that are fetched and unpacked into the lab's folder; nothing is installed, the system stays as it is.
//!
//! Kernels come from the archives of all suites, through lists of the lab's own (apt checks the archive's signatures as ever).
//! Programs this machine lacks come from its own sources: installing QEMU beside a backport of its tools would remove those.
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Suites that are asked for kernels, with their archive's path.
const SUITES: &[(&str, &str)] = &[
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
    ("debian", "bookworm-backports"),
    ("debian", "trixie"),
    ("debian-security", "trixie-security"),
    ("debian", "trixie-backports"),
    ("debian", "sid"),
];
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org";

/// The lists of the lab.
pub struct Archive {
    at: PathBuf,
}

impl Archive {
    /// Opens the lists below this folder; they are fetched if there are none, or on demand.
    ///
    /// # Errors
    /// No apt, no network.
    pub fn open(lab: &Path, refresh: bool) -> Result<Self> {
        let at = lab.join("apt");
        for d in [
            "etc/preferences.d",
            "state/lists/partial",
            "cache/archives/partial",
        ] {
            fs::create_dir_all(at.join(d))?;
        }
        let mut sources = String::new();
        for (archive, suite) in SUITES {
            sources += &format!("deb [signed-by={KEYS}] {MIRROR}/{archive} {suite} main\n");
        }
        fs::write(at.join("etc/sources.list"), sources)?;
        let archive = Self { at };
        let done = archive.at.join("fetched");
        if refresh || !done.exists() {
            println!("vm-test: fetching the lists of {} suites", SUITES.len());
            run(archive.apt("apt-get").args(["update", "--quiet=2"]))?;
            fs::write(done, "")?;
        }
        Ok(archive)
    }
    fn apt(&self, program: &str) -> Command {
        let mut c = Command::new(program);
        for (key, value) in [
            ("Dir::Etc", "etc"),
            ("Dir::State", "state"),
            ("Dir::Cache", "cache"),
        ] {
            c.arg("-o")
                .arg(format!("{key}={}", self.at.join(value).display()));
        }
        // what this machine has installed plays no part; the lab's folder is the caller's
        c.args([
            "-o",
            "Dir::State::status=/dev/null",
            "-o",
            "APT::Sandbox::User=",
        ]);
        c
    }
    /// All versions of kernels for virtual machines, oldest first.
    ///
    /// # Errors
    /// No apt.
    pub fn kernels(&self) -> Result<Vec<String>> {
        let pattern = "^linux-image-[0-9.]+[-+].*cloud-amd64$";
        let text = run(self
            .apt("apt-cache")
            .args(["search", "--names-only", pattern]))?;
        let mut all: Vec<String> = text
            .lines()
            .filter_map(|l| {
                l.split(' ')
                    .next()?
                    .strip_prefix("linux-image-")
                    .map(String::from)
            })
            .filter(|v| numbers(v).len() > 2)
            .collect();
        all.sort_by_key(|v| numbers(v));
        all.dedup();
        Ok(all)
    }
    /// Fetches and unpacks the kernel of this full version into a folder; gives the folder.
    ///
    /// # Errors
    /// It is not to be had.
    pub fn kernel(&self, lab: &Path, version: &str) -> Result<PathBuf> {
        let to = lab.join("kernels").join(version);
        if to.join("complete").exists() {
            return Ok(to);
        }
        let image = format!("linux-image-{version}");
        println!("vm-test: fetching {image}");
        let shown = run(self
            .apt("apt-cache")
            .args(["show", "--no-all-versions", &image]))?;
        let depends = shown
            .lines()
            .find_map(|l| l.strip_prefix("Depends: "))
            .unwrap_or_default();
        // newer packages come in parts
        let mut names = vec![image];
        for part in ["linux-binary-", "linux-modules-"] {
            let part = format!("{part}{version}");
            if depends
                .split([',', '|', ' '])
                .any(|d| d.trim() == part.as_str())
            {
                names.push(part);
            }
        }
        self.unpack(&names, &to)?;
        fs::write(to.join("complete"), "")?;
        Ok(to)
    }
    fn unpack(&self, names: &[String], to: &Path) -> Result<()> {
        unpack(self.apt("apt-get"), names, to)
    }
}

/// Downloads packages with this apt, and unpacks them.
fn unpack(mut apt: Command, names: &[String], to: &Path) -> Result<()> {
    let debs = to.with_extension("debs");
    fs::create_dir_all(&debs)?;
    fs::create_dir_all(to)?;
    run(apt
        .args(["download", "--quiet=2"])
        .args(names)
        .current_dir(&debs))?;
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(to))?;
    }
    fs::remove_dir_all(&debs)?;
    Ok(())
}

/// Numbers in a version: what it is compared by.
pub fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
}

/// The newest of these versions that a word means: the whole version, or its first numbers (`6.12`).
pub fn choose<'a>(all: &'a [String], word: &str) -> Option<&'a String> {
    let wanted = numbers(word);
    let fits = |v: &&String| *v == word || (!wanted.is_empty() && numbers(v).starts_with(&wanted));
    all.iter().rev().find(fits)
}

/// Programs for the lab that are not installed: unpacked beside it.
pub struct Tools {
    at: PathBuf,
}

impl Tools {
    /// Finds or fetches QEMU and kmod.
    ///
    /// # Errors
    /// They are not to be had.
    pub fn open(lab: &Path) -> Result<Self> {
        let at = lab.join("tools");
        let tools = Self { at };
        let wanted = [("qemu-system-x86_64", "qemu-system-x86"), ("kmod", "kmod")];
        let missing: Vec<&str> = wanted
            .iter()
            .filter(|(program, _)| tools.find(program).is_none())
            .map(|w| w.1)
            .collect();
        if missing.is_empty() {
            return Ok(tools);
        }
        println!(
            "vm-test: {} not installed: unpacking into {}",
            missing.join(", "),
            tools.at.display()
        );
        // what apt would install, itself included
        let plan = run(Command::new("apt-get")
            .args([
                "install",
                "--simulate",
                "--quiet",
                "--no-install-recommends",
            ])
            .args(&missing))?;
        let names: Vec<String> = plan
            .lines()
            .filter_map(|l| l.strip_prefix("Inst ")?.split(' ').next().map(String::from))
            .collect();
        unpack(Command::new("apt-get"), &names, &tools.at)?;
        for (program, package) in wanted {
            ensure!(tools.find(program).is_some(), "{package} has no {program}");
        }
        Ok(tools)
    }
    /// The program, from the system or from here.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(
                ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
                    .iter()
                    .map(PathBuf::from),
            )
            .chain(["usr/bin", "usr/sbin", "bin", "sbin"].map(|d| self.at.join(d)))
            .map(|d| d.join(name))
            .find(|p| p.is_file())
    }
    /// It as a command, with the libraries that were unpacked with it.
    ///
    /// # Errors
    /// There is none.
    pub fn command(&self, name: &str) -> Result<Command> {
        let program = self
            .find(name)
            .with_context(|| format!("{name} is not installed"))?;
        let mut c = Command::new(&program);
        if program.starts_with(&self.at) {
            c.env("LD_LIBRARY_PATH", self.libraries());
        }
        Ok(c)
    }
    /// Folders of unpacked libraries.
    pub fn libraries(&self) -> String {
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|d| self.at.join(d).display().to_string())
            .join(":")
    }
    /// Folder of firmware that was unpacked, if QEMU was.
    pub fn firmware(&self) -> Vec<PathBuf> {
        ["usr/share/qemu", "usr/share/seabios"]
            .map(|d| self.at.join(d))
            .into_iter()
            .filter(|d| d.is_dir())
            .collect()
    }
}

/// Runs a command quietly; gives its output.
///
/// # Errors
/// It failed; with what it said.
pub fn run(c: &mut Command) -> Result<String> {
    let out = c
        .output()
        .with_context(|| format!("{}", Path::new(c.get_program()).display()))?;
    if !out.status.success() {
        bail!(
            "{c:?}: {}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_means_the_newest_kernel_it_fits() {
        let all: Vec<String> = ["6.1.0-9-x", "6.1.0-56-x", "6.12.9+deb12-x", "6.16.1-x"]
            .map(String::from)
            .into();
        assert_eq!(choose(&all, "6.1").map(String::as_str), Some("6.1.0-56-x"));
        assert_eq!(
            choose(&all, "6.12").map(String::as_str),
            Some("6.12.9+deb12-x")
        );
        assert_eq!(
            choose(&all, "6.1.0-9-x").map(String::as_str),
            Some("6.1.0-9-x")
        );
        assert_eq!(choose(&all, "5.10"), None);
        assert_eq!(choose(&all, "newest"), None);
    }
}
