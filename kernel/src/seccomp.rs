//! What a seccomp filter says to a call: the classic BPF program is run here, on a call that nobody makes.
//!
//! Why: a dump suspends the filters of a task while the task makes calls of a tape (`PTRACE_O_SUSPEND_SECCOMP`). If the
//! engine dies in between, the filters are back at once, and the calls still under way meet them. Whether that would harm
//! the task can be told beforehand, for the filters can be read.
use crate::call::Call;

/// `AUDIT_ARCH_X86_64`
const ARCH: u32 = 0xc000_003e;
const KILL_THREAD: u32 = 0;

/// The action (`SECCOMP_RET_*` without data) of one filter, raw `struct sock_filter`s, for a call made at `ip`. A program that
/// the kernel would not have taken kills.
pub fn action(filter: &[u8], nr: i64, ip: u64, args: &[u64; 6]) -> u32 {
    // struct seccomp_data
    let mut data = [0u32; 16];
    (data[0], data[1]) = (nr as u32, ARCH);
    let words = [ip].into_iter().chain(args.iter().copied());
    for (i, w) in words.enumerate() {
        (data[2 + 2 * i], data[3 + 2 * i]) = (w as u32, (w >> 32) as u32);
    }
    run(filter, &data).map_or(KILL_THREAD, |r| r & 0xffff_0000)
}

/// KERNEL: the instructions that seccomp_check_filter() (kernel/seccomp.c) lets in; see linux/filter.h for their meaning.
fn run(filter: &[u8], data: &[u32; 16]) -> Option<u32> {
    let (mut a, mut x, mut mem) = (0u32, 0u32, [0u32; 16]);
    let mut pc = 0usize;
    loop {
        let i = filter.get(pc * 8..pc * 8 + 8)?;
        pc += 1;
        let code = u16::from_le_bytes([i[0], i[1]]);
        let (jt, jf) = (usize::from(i[2]), usize::from(i[3]));
        let k = u32::from_le_bytes([i[4], i[5], i[6], i[7]]);
        let operand = if code & 8 != 0 { x } else { k };
        let mut jump = |yes: bool| pc += if yes { jt } else { jf };
        match code {
            // LD|W|ABS, LD|W|LEN, LD|IMM, LD|MEM, and the same for X
            0x20 if k % 4 == 0 => a = *data.get(k as usize / 4)?,
            0x80 => a = 64,
            0x00 => a = k,
            0x60 => a = *mem.get(k as usize)?,
            0x81 => x = 64,
            0x01 => x = k,
            0x61 => x = *mem.get(k as usize)?,
            0x02 => *mem.get_mut(k as usize)? = a,
            0x03 => *mem.get_mut(k as usize)? = x,
            0x06 => return Some(k),
            0x16 => return Some(a),
            0x07 => x = a,
            0x87 => a = x,
            0x84 => a = a.wrapping_neg(),
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            0x34 | 0x3c => a = a.checked_div(operand)?,
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0x64 | 0x6c => a = a.checked_shl(operand)?,
            0x74 | 0x7c => a = a.checked_shr(operand)?,
            0xa4 | 0xac => a ^= operand,
            0x05 => pc += k as usize,
            0x15 | 0x1d => jump(a == operand),
            0x25 | 0x2d => jump(a > operand),
            0x35 | 0x3d => jump(a >= operand),
            0x45 | 0x4d => jump(a & operand != 0),
            _ => return None,
        }
    }
}

/// Would a call at `ip` do no more to its caller than fail, under all of these filters? `pointer` stands for arguments that are
/// addresses.
pub fn is_harmless(filters: &[Vec<u8>], call: &Call, ip: u64, pointer: u64) -> bool {
    const ERRNO: u32 = 0x0005_0000;
    const TRACE: u32 = 0x7ff0_0000;
    const LOG: u32 = 0x7ffc_0000;
    const ALLOW: u32 = 0x7fff_0000;
    let mut args = [0u64; 6];
    for (w, arg) in args.iter_mut().zip(&call.args) {
        *w = arg.word().unwrap_or(pointer);
    }
    // TRACE without a tracer fails with ENOSYS
    filters
        .iter()
        .all(|f| matches!(action(f, call.nr, ip, &args), ERRNO | TRACE | LOG | ALLOW))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Arg;

    fn op(code: u16, jt: u8, jf: u8, k: u32) -> [u8; 8] {
        let (c, k) = (code.to_le_bytes(), k.to_le_bytes());
        [c[0], c[1], jt, jf, k[0], k[1], k[2], k[3]]
    }

    /// Kills on one number, lets all others pass.
    fn kills(nr: i64) -> Vec<u8> {
        [
            op(0x20, 0, 0, 0),
            op(0x15, 0, 1, nr as u32),
            op(6, 0, 0, 0x8000_0000),
            op(6, 0, 0, 0x7fff_0000),
        ]
        .concat()
    }

    #[test]
    fn a_killing_filter_is_told_from_a_harmless_one() {
        let brk = Call::new(libc::SYS_brk, vec![Arg::Int(0)]);
        let pid = Call::new(libc::SYS_getpid, vec![]);
        let f = [kills(libc::SYS_brk)];
        assert!(!is_harmless(&f, &brk, 0, 0));
        assert!(is_harmless(&f, &pid, 0, 0));
        assert!(is_harmless(&[], &brk, 0, 0));
        assert!(
            !is_harmless(&[Vec::new()], &pid, 0, 0),
            "a program without an end kills"
        );
    }

    #[test]
    fn arguments_and_the_arch_are_seen() {
        // ret ALLOW when the low word of the first argument is 7 and the arch is ours
        let f = [
            op(0x20, 0, 0, 4),
            op(0x15, 0, 3, ARCH),
            op(0x20, 0, 0, 16),
            op(0x15, 0, 1, 7),
            op(6, 0, 0, 0x7fff_0000),
            op(6, 0, 0, 0),
        ]
        .concat();
        let with = |v| action(&f, 1, 0, &[v, 0, 0, 0, 0, 0]);
        assert_eq!(with(7), 0x7fff_0000);
        assert_eq!(with(8), 0);
    }
}
