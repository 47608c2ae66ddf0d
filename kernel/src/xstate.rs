//! Where the parts of an XSAVE area lie (Intel SDM vol. 1 ch. 13, CPUID leaf 0xD; standard, uncompacted form).

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
    // AMX and later components are found the same way, but the image format has no field for them
    #[allow(
        unused_unsafe,
        reason = "a safe function in newer toolchains where the target has cpuid"
    )]
    // SAFETY: every x86-64 CPU has CPUID; leaf 0xD answers zero where XSAVE is missing.
    let r = unsafe { std::arch::x86_64::__cpuid_count(0xd, c as u32) };
    (r.eax != 0).then_some((r.ebx as usize, r.eax as usize))
}

/// Offset of the XSAVE header (XSTATE_BV) behind the 512 legacy bytes.
pub const HEADER: usize = 512;
