use stasis_kernel::mnt::attr;

/// `MS_...` bits of a mount that images have, with the word that mountinfo shows for them and the attribute that sets them.
/// relatime is the rule that holds when no other is named.
static WORDS: &[(u64, &str, u64)] = &[
    (libc::MS_RDONLY, "ro", attr::RDONLY),
    (libc::MS_NOSUID, "nosuid", attr::NOSUID),
    (libc::MS_NODEV, "nodev", attr::NODEV),
    (libc::MS_NOEXEC, "noexec", attr::NOEXEC),
    (NOSYMFOLLOW, "nosymfollow", attr::NOSYMFOLLOW),
    (libc::MS_NOATIME, "noatime", attr::NOATIME),
    (libc::MS_NODIRATIME, "nodiratime", attr::NODIRATIME),
    (libc::MS_RELATIME, "relatime", 0),
];

/// Words of a file system's own options that are flags in images.
static SUPER: &[(u64, &str)] = &[
    (libc::MS_RDONLY, "ro"),
    (libc::MS_SYNCHRONOUS, "sync"),
    (libc::MS_DIRSYNC, "dirsync"),
    (libc::MS_MANDLOCK, "mand"),
    (LAZYTIME, "lazytime"),
];

/// linux/mount.h; the C library has no names for these.
const NOSYMFOLLOW: u64 = 256;
const LAZYTIME: u64 = 1 << 25;

/// The flags for the words of a mount in mountinfo.
pub fn of_words<'a>(words: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut flags = 0;
    for w in words {
        if let Some(row) = WORDS.iter().find(|r| r.1.as_bytes() == w) {
            flags |= row.0;
        }
    }
    if flags & (libc::MS_RELATIME | libc::MS_NOATIME) == 0 {
        flags |= libc::MS_STRICTATIME;
    }
    flags
}

/// The attributes that these flags mean, atime rule included.
pub fn attributes(flags: u64) -> u64 {
    let set: u64 = WORDS
        .iter()
        .filter(|r| flags & r.0 != 0)
        .fold(0, |all, r| all | r.2);
    if set & attr::NOATIME == 0 && flags & libc::MS_STRICTATIME != 0 {
        return set | attr::STRICTATIME;
    }
    set
}

/// Splits a file system's options into flags and the rest.
pub fn split_super(options: &str) -> (u64, Vec<&str>) {
    let mut flags = 0;
    let mut rest = Vec::new();
    for word in options.split(',').filter(|w| !w.is_empty() && *w != "rw") {
        match SUPER.iter().find(|r| r.1 == word) {
            Some(r) => flags |= r.0,
            None => rest.push(word),
        }
    }
    (flags, rest)
}

/// The words for flags of a file system, to set them.
pub fn super_words(flags: u64) -> impl Iterator<Item = &'static str> {
    SUPER.iter().filter(move |r| flags & r.0 != 0).map(|r| r.1)
}
