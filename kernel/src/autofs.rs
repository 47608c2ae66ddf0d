//! The device of autofs: what a daemon asks of its mounts (linux/auto_dev-ioctl.h).
use crate::call::{Arg, Call};

/// Its path and number.
pub const DEVICE: (&str, (u32, u32)) = ("/dev/autofs", (10, 235));

/// A command. All take `struct autofs_dev_ioctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The caller's process group is the daemon's from now on; the value is the descriptor of the pipe to it.
    SetPipe,
    /// Nobody is asked any more.
    Catatonic,
    /// Seconds after which what is not used expires.
    Timeout,
}

/// Row: a command about the mount whose root is open as `mount`, a number of the player's.
pub fn ask(device: Arg, command: Command, mount: i32, value: u64) -> Call {
    const SIZE: u32 = 24;
    let (number, name) = match command {
        Command::SetPipe => (0xc018_9378, "AUTOFS_DEV_IOCTL_SETPIPEFD"),
        Command::Catatonic => (0xc018_9379, "AUTOFS_DEV_IOCTL_CATATONIC"),
        Command::Timeout => (0xc018_937a, "AUTOFS_DEV_IOCTL_TIMEOUT"),
    };
    let mut block = Vec::with_capacity(SIZE as usize);
    // version 1.0
    for word in [1, 0, SIZE, mount as u32] {
        block.extend(word.to_le_bytes());
    }
    block.extend(value.to_le_bytes());
    let number = Arg::Named(number, name.into());
    Call::new(libc::SYS_ioctl, vec![device, number, Arg::InOut(block)])
}
