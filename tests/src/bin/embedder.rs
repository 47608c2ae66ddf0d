//! An example of a program that has the engine as a library, with a plugin of its own: it carries /dev/fuse, connections to
//! a server by its name, mappings of /dev/mem, a mount and a network device that are called `claimed`.
//!
//! It takes as much of criu's command line as the tests use, and leaves beside the images what its plugin was told
//! (`plugin-claimed-told`).
use nix::fcntl::OFlag;
use stasis_engine::plugins::{Link, Mapping, Mount, OpenFile, Saved, UnixSocket};
use stasis_engine::{Blame, Error, Options, Plugin, Result};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

const FUSE: (u64, u64) = (10, 229);
const MEM: (u64, u64) = (1, 1);

/// The plugin.
struct Claimed {
    images: PathBuf,
    told: Mutex<File>,
}

fn failed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new("E2602", Blame::Host, what.to_string())
        .why(why)
        .advice("see the reason")
}

fn device(rdev: u64) -> (u64, u64) {
    (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev))
}

impl Claimed {
    fn new(images: &Path) -> std::io::Result<Self> {
        let told = images.join("plugin-claimed-told");
        Ok(Self {
            images: images.into(),
            told: Mutex::new(File::options().create(true).append(true).open(told)?),
        })
    }
    fn tell(&self, what: &str) -> Result<()> {
        let mut f = self.told.lock().map_err(|e| failed("the log", e))?;
        writeln!(f, "{what}").map_err(|e| failed("the log", e))
    }
    fn text(saved: Saved<'_>) -> String {
        String::from_utf8_lossy(saved.data).into_owned()
    }
}

impl Plugin for Claimed {
    fn name(&self) -> &str {
        "claimed"
    }
    fn pause_devices(&self, _pid: i32) -> Result<()> {
        self.tell("paused")
    }
    fn checkpoint_devices(&self, _pid: i32, images: &Path) -> Result<Option<Vec<u8>>> {
        assert_eq!(images, self.images);
        self.tell("saved")?;
        Ok(Some(b"registers of the device".to_vec()))
    }
    fn resume_devices(&self, _pid: i32, saved: Option<Saved<'_>>) -> Result<()> {
        match saved {
            Some(s) if s.data == b"registers of the device" => self.tell("given back"),
            Some(_) => Err(failed("devices", "they were saved otherwise")),
            None => self.tell("resumed"),
        }
    }
    fn post_forking(&self, pid: i32) -> Result<()> {
        match Path::new(&format!("/proc/{pid}")).exists() {
            true => self.tell("forked"),
            false => Err(failed("post_forking", format!("there is no process {pid}"))),
        }
    }
    fn dump_file(&self, f: &OpenFile<'_>) -> Result<Option<Vec<u8>>> {
        if device(f.rdev) != FUSE {
            return Ok(None);
        }
        Ok(Some(f.flags.to_le_bytes().to_vec()))
    }
    fn restore_file(&self, saved: Saved<'_>) -> Result<OwnedFd> {
        let b = saved.data.try_into().map_err(|e| failed("/dev/fuse", e))?;
        let flags = OFlag::from_bits_truncate(u32::from_le_bytes(b) as i32);
        File::options()
            .read(true)
            .write(true)
            .custom_flags((flags & OFlag::O_NONBLOCK).bits())
            .open("/dev/fuse")
            .map(OwnedFd::from)
            .map_err(|e| failed("/dev/fuse", e))
    }
    fn dump_unix_socket(&self, s: &UnixSocket<'_>) -> Result<Option<Vec<u8>>> {
        let name = s.peer_name.strip_suffix(b"\0").unwrap_or(s.peer_name);
        Ok(name.ends_with(b"/server").then(|| name.to_vec()))
    }
    fn restore_unix_socket(&self, saved: Saved<'_>) -> Result<OwnedFd> {
        let name = Self::text(saved);
        let s = UnixStream::connect(&name).map_err(|e| failed(&name, e))?;
        Ok(s.into())
    }
    fn dump_mount(&self, m: &Mount<'_>) -> Result<Option<Vec<u8>>> {
        let ours = m.source == "claimed" && m.fstype == "tmpfs";
        Ok(ours.then(|| m.mountpoint.as_os_str().as_bytes().to_vec()))
    }
    fn restore_mount(&self, saved: Saved<'_>) -> Result<PathBuf> {
        Ok(Path::new(&Self::text(saved)).with_file_name("outside"))
    }
    fn dump_link(&self, l: &Link<'_>) -> Result<Option<Vec<u8>>> {
        Ok((l.name == "claimed0" && l.kind == Some("dummy")).then(Vec::new))
    }
    fn restore_link(&self, _: Saved<'_>) -> Result<String> {
        let made = Command::new("ip")
            .args(["link", "add", "brought0", "type", "dummy"])
            .status();
        match made {
            Ok(s) if s.success() => Ok("brought0".into()),
            other => Err(failed("ip link add", format!("{other:?}"))),
        }
    }
    fn dump_mapping(&self, m: &Mapping<'_>) -> Result<Option<Vec<u8>>> {
        Ok((device(m.rdev) == MEM && !m.path.is_empty()).then(Vec::new))
    }
    fn restore_mapping(&self, _: Saved<'_>, offset: u64) -> Result<(OwnedFd, u64)> {
        let mem = File::open("/dev/mem").map_err(|e| failed("/dev/mem", e))?;
        Ok((mem.into(), offset))
    }
}

fn run(args: &[String]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let after = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1)
    };
    let images = after("-D").ok_or("-D DIR")?;
    let mut o = Options::new(images);
    o.plugins.0.push(Arc::new(Claimed::new(Path::new(images))?));
    match args.get(1).map(String::as_str) {
        Some("dump") => {
            o.pid = after("-t").ok_or("-t PID")?.parse()?;
            stasis_engine::dump(&o)?;
        }
        Some("restore") => {
            o.detach = true;
            o.pidfile = after("--pidfile").map(PathBuf::from);
            stasis_engine::restore(&o)?;
        }
        _ => return Err("dump or restore".into()),
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("Error: {e}");
            ExitCode::FAILURE
        }
    }
}
