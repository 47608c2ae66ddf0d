//! Descriptors this process was started with, by their numbers.
use crate::error::Result;
use stasis_kernel::fds;
use stasis_kernel::ids::{HostPid, RemoteFd};
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// A duplicate of descriptor `n` of this process, close-on-exec. The number itself stays as it is.
///
/// # Errors
/// It is not open.
pub fn descriptor(n: RawFd) -> Result<OwnedFd> {
    // by the way that foreign descriptors come: a number alone proves nothing about who owns it
    let own = fds::pidfd_open(HostPid::own(), 0)?;
    Ok(fds::pidfd_getfd(own.as_fd(), RemoteFd(n))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn an_open_number_gives_the_same_file_and_a_closed_one_none() {
        let file = tempfile::tempfile().unwrap();
        let again = descriptor(file.as_raw_fd()).unwrap();
        assert!(fds::same_file(file.as_fd(), again.as_fd()).unwrap());
        assert_ne!(again.as_raw_fd(), file.as_raw_fd());
        assert!(descriptor(1_000_000).is_err());
    }
}
