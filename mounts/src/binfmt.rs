//! binfmt_misc of a user namespace of the tree's own: which interpreters run which programs.
//!
//! KERNEL(>=6.7): each user namespace in which it is mounted has formats of its own; others see those of the nearest one above. The
//! machine's are never changed: without a user namespace of its own a tree gets none.
use crate::error::{Blame, Error, Result};
use nix::dir::Dir;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use stasis_proto::pb;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// The name of the file system type.
pub const NAME: &str = "binfmt_misc";
/// What may stand between the fields of a format; the first that no field has is taken.
static BETWEEN: &[char] = &[':', '|', ';', ',', '!', '%', '@', '#'];

/// A format, ready to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    name: String,
    line: String,
    enabled: bool,
    /// The interpreter, if it is opened at once.
    opened: Option<String>,
}

fn unreadable(name: &str, why: impl std::fmt::Display) -> Error {
    let what = format!("cannot dump the format {name:?} of binfmt_misc");
    Error::new("E4313", Blame::Container, what)
        .why(why)
        .advice("remove it before the dump: write -1 to its file")
}

/// The formats below the root of a mount.
///
/// # Errors
/// E4313: one cannot be read.
pub fn read(root: BorrowedFd<'_>) -> Result<Vec<pb::BinfmtMiscEntry>> {
    let own = openat(
        root,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY,
        Mode::empty(),
    );
    let dir = own.and_then(Dir::from_fd).map_err(|e| unreadable(".", e))?;
    let mut all = Vec::new();
    for e in dir {
        let e = e.map_err(|e| unreadable(".", e))?;
        let name = e.file_name().to_string_lossy().into_owned();
        if matches!(&*name, "." | ".." | "register" | "status") {
            continue;
        }
        let mut text = String::new();
        openat(root, e.file_name(), OFlag::O_RDONLY, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|fd| File::from(fd).read_to_string(&mut text))
            .map_err(|e| unreadable(&name, e))?;
        all.push(parse(&name, &text)?);
    }
    // the kernel asks the newest first, and lists them so
    all.reverse();
    Ok(all)
}

fn parse(name: &str, text: &str) -> Result<pb::BinfmtMiscEntry> {
    let mut e = pb::BinfmtMiscEntry {
        name: name.to_owned(),
        ..Default::default()
    };
    for line in text.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let own = || Some(value.to_owned());
        match key {
            "enabled" => e.enabled = true,
            "disabled" => {}
            "interpreter" => e.interpreter = value.to_owned(),
            "flags:" => e.flags = own(),
            "extension" => e.extension = Some(value.trim_start_matches('.').to_owned()),
            "magic" => e.magic = own(),
            "mask" => e.mask = own(),
            "offset" => {
                let n = value.parse().map_err(|e| unreadable(name, e))?;
                e.offset = Some(n);
            }
            _ => return Err(unreadable(name, format!("it has a line {line:?}"))),
        }
    }
    Ok(e)
}

impl Format {
    /// What is written for an entry of an image.
    ///
    /// # Errors
    /// E5308: an entry that is no format.
    pub fn new(e: &pb::BinfmtMiscEntry) -> Result<Self> {
        let bad = |why: &str| {
            let what = format!("the format {:?} of binfmt_misc in the image", e.name);
            Error::new("E5308", Blame::Image, what)
                .why(why)
                .advice("dump again: this entry does not describe a format")
        };
        let flags = e.flags.as_deref().unwrap_or_default();
        let fields = [&e.name, &e.interpreter, flags, e.extension()];
        if fields.iter().any(|f| f.contains(['\n', '\0']))
            || e.name.is_empty()
            || e.name.contains('/')
            || !e.interpreter.starts_with('/')
        {
            return Err(bad("its name or interpreter is none"));
        }
        let free = |d: &&char| fields.iter().all(|f| !f.contains(**d));
        let Some(d) = BETWEEN.iter().find(free) else {
            return Err(bad("its fields have all that could stand between them"));
        };
        let bytes = |hex: &str| {
            let is_hex = hex.len().is_multiple_of(2) && hex.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| {
                let pairs = hex.as_bytes().chunks(2);
                pairs
                    .map(|p| format!("\\x{}", String::from_utf8_lossy(p)))
                    .collect::<String>()
            })
        };
        let (sort, offset, magic, mask) = match (&e.magic, &e.extension) {
            (Some(m), _) => {
                let magic = bytes(m).ok_or_else(|| bad("its magic is no bytes"))?;
                let mask = bytes(e.mask()).ok_or_else(|| bad("its mask is no bytes"))?;
                ('M', e.offset().to_string(), magic, mask)
            }
            (None, Some(x)) => ('E', String::new(), x.clone(), String::new()),
            (None, None) => return Err(bad("it has neither a magic nor an extension")),
        };
        let (name, interpreter) = (&e.name, &e.interpreter);
        Ok(Self {
            line: format!(
                "{d}{name}{d}{sort}{d}{offset}{d}{magic}{d}{mask}{d}{interpreter}{d}{flags}"
            ),
            name: name.clone(),
            enabled: e.enabled,
            opened: flags.contains('F').then(|| interpreter.clone()),
        })
    }
    /// Registers it, in the tree's own root.
    ///
    /// # Errors
    /// What the kernel does not like.
    pub(crate) fn register(&self, root: BorrowedFd<'_>) -> std::result::Result<(), String> {
        if let Some(path) = &self.opened {
            // the kernel opens it in our name: no link may lead to a file of ours
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
            openat2(AT_FDCWD, path.as_str(), how).map_err(|e| format!("{path}: {e}"))?;
        }
        write(root, "register", self.line.as_bytes())?;
        match self.enabled {
            true => Ok(()),
            false => write(root, &self.name, b"0"),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.line)
    }
}

fn write(root: BorrowedFd<'_>, name: &str, text: &[u8]) -> std::result::Result<(), String> {
    let fd = openat(
        root.as_fd(),
        name,
        OFlag::O_WRONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    fd.map_err(std::io::Error::from)
        .and_then(|fd| File::from(fd).write_all(text))
        .map_err(|e| format!("write to {name}: {e}"))
}

#[test]
fn formats_are_told_as_they_were_made() {
    let text = "enabled\ninterpreter /usr/bin/a b\nflags: OC\noffset 4\nmagic 7f45\nmask fffe\n";
    let e = parse("elf", text).expect("an entry");
    let f = Format::new(&e).expect("a format");
    assert_eq!(f.line, r":elf:M:4:\x7f\x45:\xff\xfe:/usr/bin/a b:OC");
    assert!(f.enabled && f.opened.is_none());
    let text = "disabled\ninterpreter /a:b\nflags: F\nextension .x,y\n";
    let f = Format::new(&parse("e", text).expect("an entry")).expect("a format");
    assert_eq!(f.line, "|e|E||x,y||/a:b|F");
    assert!(!f.enabled && f.opened.is_some());
    assert_eq!(
        parse("e", "wonder 5\n").expect_err("a new line").code,
        "E4313"
    );
    let refused = |change: &dyn Fn(&mut pb::BinfmtMiscEntry)| {
        let mut bad = e.clone();
        change(&mut bad);
        Format::new(&bad).expect_err("no format").code
    };
    assert_eq!(refused(&|e| e.name = "../x".into()), "E5308");
    assert_eq!(refused(&|e| e.interpreter = "x".into()), "E5308");
    assert_eq!(refused(&|e| e.magic = Some("7".into())), "E5308");
    assert_eq!(refused(&|e| e.magic = None), "E5308");
    assert_eq!(
        refused(&|e| e.flags = Some(BETWEEN.iter().collect())),
        "E5308"
    );
}
