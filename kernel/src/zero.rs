//! Frames of zeroes: what the kernel maps where memory is read before it was ever written.
//!
//! Without PAGEMAP_SCAN nothing but the frame's number tells such a page from one with contents, and nothing but such a page of
//! our own tells the number. KERNEL: the huge one may be freed when nobody maps it, and be another one later; so it stays mapped
//! here for as long as the number is used.

use crate::error::{SysError, SysResult};
use crate::ids::{HostPid, RemotePtr};
use crate::pagemap::{PAGE_SIZE, Scanner};

/// Frames in a huge page.
const HUGE: u64 = 512;

/// The frames of zeroes, held.
#[derive(Debug)]
pub struct Zeroes {
    at: *mut u8,
    small: u64,
    /// The first of 512.
    huge: Option<u64>,
}

/// Bytes that are mapped: enough for one aligned huge page, and for a small one outside of it.
const LEN: usize = (3 * HUGE * PAGE_SIZE) as usize;

impl Zeroes {
    /// Finds them; `None` when the kernel hides frame numbers from this user (they want CAP_SYS_ADMIN).
    ///
    /// # Errors
    /// No memory, no /proc.
    pub fn find() -> SysResult<Option<Self>> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(SysError::last("mmap", format!("{LEN} bytes")));
        }
        let at: *mut u8 = at.cast();
        let mut z = Self {
            at,
            small: 0,
            huge: None,
        };
        let size = HUGE * PAGE_SIZE;
        let aligned = (at as u64).next_multiple_of(size) - at as u64;
        // SAFETY: inside our own readable mapping of three huge pages, to which there are no references; reading leaves it as it
        // is. Advice that the kernel does not take changes nothing.
        unsafe {
            libc::madvise(at.cast(), LEN, libc::MADV_NOHUGEPAGE);
            libc::madvise(
                at.add(aligned as usize).cast(),
                size as usize,
                libc::MADV_HUGEPAGE,
            );
            at.add(aligned as usize).read_volatile();
            at.add((aligned + size) as usize).read_volatile();
        }
        let mut frames = Vec::new();
        let mut own = Scanner::words(HostPid::own())?;
        let from = at as u64 + aligned;
        for start in [from, from + size] {
            let mut found = Vec::new();
            own.each_word(RemotePtr(start), RemotePtr(start + size), |_, w| {
                found.push(w.pfn())
            })?;
            frames.push(found);
        }
        let Some(small) = frames[1].first().copied().flatten() else {
            return Ok(None);
        };
        z.small = small;
        let first = frames[0].first().copied().flatten();
        let whole = |f: u64| (0..HUGE).all(|n| frames[0].get(n as usize) == Some(&Some(f + n)));
        z.huge = first.filter(|f| f % HUGE == 0 && whole(*f));
        Ok(Some(z))
    }

    /// Is it one of them?
    pub fn has(&self, frame: u64) -> bool {
        frame == self.small || self.huge.is_some_and(|h| (h..h + HUGE).contains(&frame))
    }
}

// SAFETY: the mapping is only held, never read or written after `find`.
unsafe impl Send for Zeroes {}

impl Drop for Zeroes {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which there are no references.
        unsafe { libc::munmap(self.at.cast(), LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_only_read_is_zeroes_and_what_was_written_is_not() {
        // hidden from users who are not root
        let Some(z) = Zeroes::find().unwrap() else {
            return;
        };
        let other = Zeroes::find().unwrap().unwrap();
        assert!(z.has(other.small));
        assert_eq!(z.huge.is_some(), other.huge.is_some());
        let frame = |at: *mut u8| {
            let page = at as u64 / PAGE_SIZE * PAGE_SIZE;
            let mut found = None;
            let mut own = Scanner::words(HostPid::own()).unwrap();
            let end = RemotePtr(page + PAGE_SIZE);
            own.each_word(RemotePtr(page), end, |_, w| found = w.pfn())
                .unwrap();
            found.unwrap()
        };
        let mut written = vec![0u8; 3 * PAGE_SIZE as usize];
        written[PAGE_SIZE as usize] = 1;
        assert!(!z.has(frame(&raw mut written[PAGE_SIZE as usize])));
    }
}
