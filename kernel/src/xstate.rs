//! Where the parts of an XSAVE area lie (Intel SDM vol. 1 ch. 13, CPUID leaf 0xD; standard, uncompacted form).
use std::sync::OnceLock;

/// Number of a state component, as its bit in XCR0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Component {
    /// Upper halves of the YMM registers.
    Ymm = 2,
    /// MPX bound registers.
    BndRegs = 3,
    /// MPX configuration.
    BndCsr = 4,
    /// AVX-512 mask registers.
    Opmask = 5,
    /// Upper halves of ZMM0-15.
    ZmmHi256 = 6,
    /// ZMM16-31.
    Hi16Zmm = 7,
    /// Protection keys.
    Pkru = 9,
}

/// Byte offset and length of a component in the standard form on this CPU; `None` if the CPU does not have it.
pub fn place(c: Component) -> Option<(usize, usize)> {
    place_of(c as u32)
}

/// The same for any component number below 64.
pub fn place_of(c: u32) -> Option<(usize, usize)> {
    // asked once for each: under a hypervisor every CPUID leaves the guest, which costs 1 to 70 us, and every thread of a tree
    // has a dozen components to be found. The answer is the machine's and does not change
    static KNOWN: [OnceLock<Option<(usize, usize)>>; 64] = [const { OnceLock::new() }; 64];
    *KNOWN.get(c as usize)?.get_or_init(|| ask(c))
}

fn ask(c: u32) -> Option<(usize, usize)> {
    #[allow(
        unused_unsafe,
        reason = "a safe function in newer toolchains where the target has cpuid"
    )]
    // SAFETY: every x86-64 CPU has CPUID; leaf 0xD answers zero where XSAVE is missing.
    let r = unsafe { std::arch::x86_64::__cpuid_count(0xd, c) };
    (r.eax != 0).then_some((r.ebx as usize, r.eax as usize))
}

/// Offset of the XSAVE header (XSTATE_BV) behind the 512 legacy bytes.
pub const HEADER: usize = 512;

/// Components every task may use without asking (arch_prctl(2), ARCH_REQ_XCOMP_PERM): all but AMX.
const DEFAULT: u64 = 0x2ff;

/// How much of an XSAVE area a signal frame must hold, and the components in it: those of every task, and of the others what
/// is in use.
///
/// KERNEL: `check_xstate_in_sigframe()` (arch/x86/kernel/fpu/signal.c) falls back to the legacy 512 bytes when the area is longer
/// than the task's own, which has room for AMX only once the task has asked for it.
pub fn in_frame(x: &[u8]) -> (usize, u64) {
    if x.len() < HEADER + 64 {
        return (x.len(), 3);
    }
    let word = |at: usize| u64::from_le_bytes(x[at..at + 8].try_into().expect("eight bytes"));
    let features = word(464) & (DEFAULT | word(HEADER));
    let ends = (2..63)
        .filter(|c| features & 1 << c != 0)
        .filter_map(place_of);
    let len = ends
        .map(|(at, n)| at + n)
        .max()
        .unwrap_or(HEADER + 64)
        .clamp(HEADER + 64, x.len());
    (len, features)
}
