//! The engine's own memory.

/// Has the allocator (mimalloc) give freed memory back to the kernel within 10 ms, in place of a second: by then a dump or restore is
/// over, and what each phase needed would stand beside what the next one does. Whoever says otherwise in the environment
/// (`MIMALLOC_PURGE_DELAY`) is obeyed.
pub fn give_back_soon() {
    /// Number of `mi_option_purge_delay` (mimalloc.h of version 3), in milliseconds.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets a number that the allocator reads when it frees.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, 10) }
}
