//! What two engines say to each other: a connection for words, several for pages.
//!
//! Every connection begins with 32 bytes: eight that name this protocol and its version, one that says what the connection is
//! for, seven of nothing, and the sixteen of the migration's token. Words are messages of JSON behind four bytes of length;
//! some are followed by the bytes of a file. Pages come in frames: a header of 24 bytes (folder, number of the pages image,
//! length, nothing: four bytes each; offset: eight; all little endian), and the bytes. A frame of no bytes says how long
//! the image is. Everything that arrives is checked: the other end may be anybody.
use crate::error::{Blame, Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const MAGIC: [u8; 8] = *b"stasis\x00\x02";
/// Longest message of words, in bytes.
const LONGEST: usize = 1 << 20;
/// Longest frame of pages, in bytes.
pub const LONGEST_FRAME: usize = 1 << 20;
/// A peer that answers nothing for so long is gone, in seconds.
const SILENCE_SECS: u32 = 10;

/// Sixteen random bytes that name a migration.
pub type Token = [u8; 16];

/// A new one.
///
/// # Errors
/// E6700.
pub fn new_token() -> Result<Token> {
    let mut token = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut token))
        .map_err(|e| Error::new("E6700", Blame::Host, "/dev/urandom").why(e))?;
    Ok(token)
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Words of a new migration.
    Words,
    /// Pages of one that is under way.
    Pages,
    /// What has become of one whose connection for words was lost.
    Question,
    /// Pages that the destination asks for when the tree runs there.
    Later,
}

/// What there is to bring back of a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Processes.
    pub tasks: u32,
    /// Mappings of all of them.
    pub mappings: u32,
    /// Open files of all of them.
    pub files: u32,
    /// Bytes of private memory.
    pub resident: u64,
}

/// Words.
#[derive(Debug, Serialize, Deserialize)]
pub enum Say {
    /// Source: so many connections for pages come.
    Begin {
        /// How many.
        connections: u32,
    },
    /// Destination: they are there, or what was asked for is done.
    Done,
    /// Source: a folder of images begins, on the one before.
    Folder {
        /// From 1.
        number: u32,
    },
    /// Source: a file of that folder; its bytes follow.
    File {
        /// A name of the format.
        name: String,
        /// Bytes.
        len: u64,
    },
    /// Source: so many frames were sent in all; answer when they are in place.
    Settle {
        /// Since the beginning.
        frames: u64,
        /// The tree stands.
        last: bool,
    },
    /// Source: how long would it take to bring this back?
    Rehearse {
        /// What is to be done.
        work: Work,
    },
    /// Destination: so long, in microseconds, as it was tried just now.
    Rehearsed {
        /// Besides memory.
        took_us: u64,
        /// Memory that must be there before the tree runs.
        filling_us: u64,
        /// All that was tried took so long.
        busy_us: u64,
        /// How much of the last ten seconds tasks waited for a processor, in percent.
        pressure: u32,
    },
    /// Source: pages will stay here until they are asked for, over so many connections, which come now.
    Keep {
        /// How many.
        connections: u32,
    },
    /// Source: this folder is the last one; bring the tree back, but do not let it run.
    Restore {
        /// Its number.
        number: u32,
        /// What the caller at the source tells the one here.
        word: String,
    },
    /// Destination: the tree stands; it runs when it is told to.
    Ready,
    /// Source: let it run.
    Go,
    /// Destination: it runs.
    Runs {
        /// Its root, as the destination sees it.
        pid: i32,
    },
    /// Source: our tree is dead.
    Dead,
    /// Destination: that did not go well, and nothing is left of it.
    Failed {
        /// Of the error.
        code: String,
        /// Of the error.
        text: String,
    },
    /// Destination, to a question: the tree does not run, and never will.
    Never,
}

/// The connection between the hosts does not carry any more.
pub fn lost(e: impl std::fmt::Display) -> Error {
    Error::new(
        "E6720",
        Blame::Host,
        "the connection to the other host is lost",
    )
    .why(e)
    .advice("look at the log there, and at the network between; the tree at the source runs on")
}

/// What came makes no sense.
pub fn odd(why: impl Into<String>) -> Error {
    Error::new(
        "E6721",
        Blame::Host,
        "the other host does not speak as expected",
    )
    .why(why.into())
    .advice("both must be stasis of the same version, and the port that of `stasis receive`")
}

/// Where bytes go and come from: TCP, or TLS over it.
pub trait Link: Read + Write + Send {
    /// The socket.
    fn socket(&self) -> &TcpStream;
    /// Says that nothing more comes, where the end of the connection alone does not tell that nothing was cut off.
    ///
    /// # Errors
    /// The connection does not carry any more.
    fn bye(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Link for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// Sets up a socket so that a peer that is gone is noticed.
///
/// # Errors
/// E6720.
pub fn prepare(s: &TcpStream) -> Result<()> {
    s.set_nodelay(true).map_err(lost)?;
    stasis_kernel::fds::watch_peer(s, SILENCE_SECS).map_err(lost)
}

/// Says what a connection is for.
///
/// # Errors
/// E6720.
pub fn introduce(to: &mut dyn Link, role: Role, token: &Token) -> Result<()> {
    let mut b = [0; 32];
    b[..8].copy_from_slice(&MAGIC);
    b[8] = role as u8;
    b[16..].copy_from_slice(token);
    to.write_all(&b).and_then(|()| to.flush()).map_err(lost)
}

/// Reads what a connection is for; a peer that does not say it soon is sent away.
///
/// # Errors
/// E6720, E6721.
pub fn meet(from: &mut dyn Link) -> Result<(Role, Token)> {
    let mut b = [0; 32];
    let soon = Some(Duration::from_secs(u64::from(SILENCE_SECS)));
    from.socket().set_read_timeout(soon).map_err(lost)?;
    from.read_exact(&mut b).map_err(lost)?;
    from.socket().set_read_timeout(None).map_err(lost)?;
    if b[..8] != MAGIC {
        return Err(odd(
            "its first bytes are not those of this protocol's version",
        ));
    }
    let role = match b[8] {
        0 => Role::Words,
        1 => Role::Pages,
        2 => Role::Question,
        3 => Role::Later,
        n => return Err(odd(format!("there are no connections of sort {n}"))),
    };
    let mut token = [0; 16];
    token.copy_from_slice(&b[16..]);
    Ok((role, token))
}

/// Says something.
///
/// # Errors
/// E6720.
pub fn say(to: &mut dyn Link, what: &Say) -> Result<()> {
    let text = serde_json::to_vec(what).map_err(|e| Error::bug(e.to_string()))?;
    let mut b = (text.len() as u32).to_le_bytes().to_vec();
    b.extend(text);
    to.write_all(&b).and_then(|()| to.flush()).map_err(lost)
}

/// Hears something.
///
/// # Errors
/// E6720, E6721.
pub fn hear(from: &mut dyn Link) -> Result<Say> {
    let mut len = [0; 4];
    from.read_exact(&mut len).map_err(lost)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > LONGEST {
        return Err(odd(format!("a message of {len} bytes")));
    }
    let mut text = vec![0; len];
    from.read_exact(&mut text).map_err(lost)?;
    serde_json::from_slice(&text).map_err(|e| odd(e.to_string()))
}

/// The header of a frame of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Number of the folder.
    pub folder: u32,
    /// N of pages-N.img.
    pub image: u32,
    /// Bytes that follow.
    pub len: u32,
    /// Where in the image; if no bytes follow, the length of the image.
    pub at: u64,
}

impl Frame {
    /// Bytes of a header.
    pub const LEN: usize = 24;
    /// As it is sent.
    pub fn bytes(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..4].copy_from_slice(&self.folder.to_le_bytes());
        b[4..8].copy_from_slice(&self.image.to_le_bytes());
        b[8..12].copy_from_slice(&self.len.to_le_bytes());
        b[16..].copy_from_slice(&self.at.to_le_bytes());
        b
    }
    /// As it came.
    ///
    /// # Errors
    /// E6721.
    pub fn parse(b: &[u8; Self::LEN]) -> Result<Self> {
        let word = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let f = Self {
            folder: word(0),
            image: word(4),
            len: word(8),
            at: u64::from(word(16)) | u64::from(word(20)) << 32,
        };
        let end = f.at.checked_add(u64::from(f.len));
        match end {
            Some(end) if end < 1 << 46 && f.len as usize <= LONGEST_FRAME => Ok(f),
            _ => Err(odd("a frame of pages that is longer than any")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
        (a, l.accept().unwrap().0)
    }

    #[test]
    fn what_is_said_is_heard() {
        let (mut a, mut b) = pair();
        prepare(&a).unwrap();
        introduce(&mut a, Role::Pages, &[7; 16]).unwrap();
        let settle = Say::Settle {
            frames: 9,
            last: true,
        };
        say(&mut a, &settle).unwrap();
        assert_eq!(meet(&mut b).unwrap(), (Role::Pages, [7; 16]));
        assert!(matches!(
            hear(&mut b).unwrap(),
            Say::Settle { frames: 9, .. }
        ));
        drop(a);
        assert_eq!(hear(&mut b).unwrap_err().code, "E6720");
        let f = Frame {
            folder: 1,
            image: 2,
            len: 3,
            at: 1 << 40 | 4,
        };
        assert_eq!(Frame::parse(&f.bytes()).unwrap(), f);
    }

    #[test]
    fn nonsense_is_refused() {
        let heard = |bytes: &[u8]| {
            let (mut a, mut b) = pair();
            a.write_all(bytes).unwrap();
            drop(a);
            (
                meet(&mut b).err().map(|e| e.code),
                hear(&mut b).err().map(|e| e.code),
            )
        };
        assert_eq!(heard(&[0; 40]).0, Some("E6721"));
        let mut good = [0; 32].to_vec();
        good[..8].copy_from_slice(&MAGIC);
        assert_eq!(
            heard(&[&good[..], &[255; 4]].concat()),
            (None, Some("E6721"))
        );
        assert_eq!(
            heard(&[&good[..], &[2, 0, 0, 0], b"{}"].concat()),
            (None, Some("E6721"))
        );
        good[8] = 9;
        assert_eq!(heard(&good).0, Some("E6721"));
        let f = Frame {
            folder: 1,
            image: 1,
            len: 8,
            at: u64::MAX - 7,
        };
        assert_eq!(Frame::parse(&f.bytes()).unwrap_err().code, "E6721");
    }
}
