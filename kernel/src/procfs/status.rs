//! `/proc/PID/status` (proc_pid_status(5)): identity, credentials, signals of a task.

use super::stat::TaskState;
use super::text::{Cur, Why, lines, number, words};
use crate::error::{ParseError, Result};
use crate::ids::HostPid;

/// Four ids: real, effective, saved, file system; in the reader's user namespace (65534 where it has no name there).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved set.
    pub saved: u32,
    /// File system.
    pub fs: u32,
}

/// What status says. Masks have bit 0 for signal or capability number 1 and 0 respectively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Name, with the kernel's `\n` and `\\` undone.
    pub name: Vec<u8>,
    /// Umask; absent for a task without a file system context (zombies).
    pub umask: Option<u32>,
    /// State.
    pub state: TaskState,
    /// Id of the thread group.
    pub tgid: HostPid,
    /// Id of the thread.
    pub pid: HostPid,
    /// Parent; 0 when it is outside the reader's namespace.
    pub ppid: HostPid,
    /// Tracer, 0 for none.
    pub tracer: HostPid,
    /// User ids.
    pub uid: Ids,
    /// Group ids.
    pub gid: Ids,
    /// Supplementary groups, sorted by the kernel.
    pub groups: Vec<u32>,
    /// Thread group id in each pid namespace, from the reader's to the innermost.
    pub ns_tgid: Vec<i32>,
    /// Thread id in each.
    pub ns_pid: Vec<i32>,
    /// Process group id in each.
    pub ns_pgid: Vec<i32>,
    /// Session id in each.
    pub ns_sid: Vec<i32>,
    /// Threads of the process; 0 for a zombie that lost them.
    pub threads: u32,
    /// Queued signals and their limit, of the user.
    pub sig_q: (u64, u64),
    /// Pending for this thread.
    pub sig_pnd: u64,
    /// Pending for the process.
    pub shd_pnd: u64,
    /// Blocked.
    pub sig_blk: u64,
    /// Ignored.
    pub sig_ign: u64,
    /// Caught.
    pub sig_cgt: u64,
    /// Inheritable capabilities.
    pub cap_inh: u64,
    /// Permitted capabilities.
    pub cap_prm: u64,
    /// Effective capabilities.
    pub cap_eff: u64,
    /// Bounding set.
    pub cap_bnd: u64,
    /// Ambient capabilities.
    pub cap_amb: u64,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Filters installed. KERNEL(>=5.9)
    pub seccomp_filters: Option<u32>,
    /// Transparent huge pages allowed (PR_SET_THP_DISABLE not set); absent for a task without memory.
    pub thp_enabled: Option<bool>,
    /// Pointer bits that are not masked off (LAM); all ones normally.
    pub untag_mask: Option<u64>,
    /// `x86_Thread_features`: `shstk`, `wrss`.
    pub thread_features: Vec<Vec<u8>>,
    /// `x86_Thread_features_locked`.
    pub thread_features_locked: Vec<Vec<u8>>,
    /// Speculation_Store_Bypass, in the kernel's words (`thread vulnerable`).
    pub speculation_store_bypass: Vec<u8>,
    /// SpeculationIndirectBranch, in the kernel's words.
    pub speculation_indirect_branch: Vec<u8>,
    /// VmLck in bytes.
    pub vm_locked: u64,
}

fn list<T: super::text::Num>(v: &[u8], why: Why) -> Result<Vec<T>, Why> {
    words(v).map(|w| number(w, 10).ok_or(why)).collect()
}

fn ids(v: &[u8]) -> Result<Ids, Why> {
    match list::<u32>(v, "bad id")?[..] {
        [real, effective, saved, fs] => Ok(Ids {
            real,
            effective,
            saved,
            fs,
        }),
        _ => Err("not four ids"),
    }
}

/// Undoes `\n` and `\\`, the only escapes of the Name line (fs/proc/array.c proc_task_name).
fn unescape_name(v: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(v.len());
    let mut rest = v;
    loop {
        match rest {
            [b'\\', b'n', tail @ ..] => {
                out.push(b'\n');
                rest = tail;
            }
            [b'\\', b'\\', tail @ ..] => {
                out.push(b'\\');
                rest = tail;
            }
            [b, tail @ ..] => {
                out.push(*b);
                rest = tail;
            }
            [] => return out,
        }
    }
}

/// Parses the text of `/proc/PID/status`. Fields that every kernel since 4.12 has are required.
pub fn parse_status(file: &str, text: &[u8]) -> Result<Status> {
    let mut s = Status {
        name: Vec::new(),
        umask: None,
        state: TaskState::Dead,
        tgid: HostPid(0),
        pid: HostPid(0),
        ppid: HostPid(0),
        tracer: HostPid(0),
        uid: Ids::default(),
        gid: Ids::default(),
        groups: Vec::new(),
        ns_tgid: Vec::new(),
        ns_pid: Vec::new(),
        ns_pgid: Vec::new(),
        ns_sid: Vec::new(),
        threads: 0,
        sig_q: (0, 0),
        sig_pnd: 0,
        shd_pnd: 0,
        sig_blk: 0,
        sig_ign: 0,
        sig_cgt: 0,
        cap_inh: 0,
        cap_prm: 0,
        cap_eff: 0,
        cap_bnd: 0,
        cap_amb: 0,
        no_new_privs: false,
        seccomp: 0,
        seccomp_filters: None,
        thp_enabled: None,
        untag_mask: None,
        thread_features: Vec::new(),
        thread_features_locked: Vec::new(),
        speculation_store_bypass: Vec::new(),
        speculation_indirect_branch: Vec::new(),
        vm_locked: 0,
    };
    // One bit per required field; a field that is missing must not read as zero.
    let mut seen = 0u32;
    let mut last = 0;
    for (n, line) in lines(text) {
        last = n;
        field(&mut s, line, &mut seen).map_err(|why| ParseError::new(file, n, why))?;
    }
    if seen != (1 << REQUIRED.len()) - 1 {
        return Err(ParseError::new(file, last, "a required field is missing").into());
    }
    Ok(s)
}

const REQUIRED: [&[u8]; 21] = [
    b"Name",
    b"State",
    b"Tgid",
    b"Pid",
    b"PPid",
    b"TracerPid",
    b"Uid",
    b"Gid",
    b"Groups",
    b"Threads",
    b"SigQ",
    b"SigPnd",
    b"ShdPnd",
    b"SigBlk",
    b"SigIgn",
    b"SigCgt",
    b"CapInh",
    b"CapPrm",
    b"CapEff",
    b"CapBnd",
    b"CapAmb",
];

fn field(s: &mut Status, line: &[u8], seen: &mut u32) -> Result<(), Why> {
    let mut c = Cur(line);
    let key = c.until(b':', "no ':' behind the field name")?;
    let raw = c.0;
    let v = c.skip().0;
    if let Some(i) = REQUIRED.iter().position(|r| *r == key) {
        *seen |= 1 << i;
    }
    match key {
        // Exactly one tab stands before the name; more blanks are part of it.
        b"Name" => s.name = unescape_name(raw.strip_prefix(b"\t").unwrap_or(raw)),
        b"Umask" => s.umask = Some(number(v, 8).ok_or("bad umask")?),
        b"State" => {
            s.state = v
                .first()
                .and_then(|l| TaskState::from_letter(*l))
                .ok_or("unknown task state")?
        }
        b"Tgid" => s.tgid = HostPid(number(v, 10).ok_or("bad pid")?),
        b"Pid" => s.pid = HostPid(number(v, 10).ok_or("bad pid")?),
        b"PPid" => s.ppid = HostPid(number(v, 10).ok_or("bad pid")?),
        b"TracerPid" => s.tracer = HostPid(number(v, 10).ok_or("bad pid")?),
        b"Uid" => s.uid = ids(v)?,
        b"Gid" => s.gid = ids(v)?,
        b"Groups" => s.groups = list(v, "bad group id")?,
        b"NStgid" => s.ns_tgid = list(v, "bad pid")?,
        b"NSpid" => s.ns_pid = list(v, "bad pid")?,
        b"NSpgid" => s.ns_pgid = list(v, "bad pid")?,
        b"NSsid" => s.ns_sid = list(v, "bad pid")?,
        b"Threads" => s.threads = number(v, 10).ok_or("bad thread count")?,
        b"SigQ" => {
            let mut q = Cur(v);
            s.sig_q.0 = number(q.until(b'/', "no '/' in SigQ")?, 10).ok_or("bad SigQ")?;
            s.sig_q.1 = number(q.0, 10).ok_or("bad SigQ limit")?;
        }
        b"SigPnd" => s.sig_pnd = mask(v)?,
        b"ShdPnd" => s.shd_pnd = mask(v)?,
        b"SigBlk" => s.sig_blk = mask(v)?,
        b"SigIgn" => s.sig_ign = mask(v)?,
        b"SigCgt" => s.sig_cgt = mask(v)?,
        b"CapInh" => s.cap_inh = mask(v)?,
        b"CapPrm" => s.cap_prm = mask(v)?,
        b"CapEff" => s.cap_eff = mask(v)?,
        b"CapBnd" => s.cap_bnd = mask(v)?,
        b"CapAmb" => s.cap_amb = mask(v)?,
        b"NoNewPrivs" => s.no_new_privs = v != b"0",
        b"Seccomp" => s.seccomp = number(v, 10).ok_or("bad seccomp mode")?,
        b"Seccomp_filters" => s.seccomp_filters = Some(number(v, 10).ok_or("bad filter count")?),
        b"THP_enabled" => s.thp_enabled = Some(v != b"0"),
        b"untag_mask" => {
            s.untag_mask = Some(mask(v.strip_prefix(b"0x").ok_or("untag_mask without 0x")?)?)
        }
        b"x86_Thread_features" => s.thread_features = words(v).map(<[u8]>::to_vec).collect(),
        b"x86_Thread_features_locked" => {
            s.thread_features_locked = words(v).map(<[u8]>::to_vec).collect()
        }
        b"Speculation_Store_Bypass" => s.speculation_store_bypass = v.to_vec(),
        b"SpeculationIndirectBranch" => s.speculation_indirect_branch = v.to_vec(),
        b"VmLck" => {
            s.vm_locked = Cur(v)
                .num::<u64>(10, "bad size")?
                .checked_mul(1024)
                .ok_or("size too large")?;
        }
        _ => {}
    }
    Ok(())
}

fn mask(v: &[u8]) -> Result<u64, Why> {
    number(v, 16).ok_or("bad mask")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const STATUS: &[u8] = b"\
Name:\t a\\n\\\\n\\
Umask:\t0022
State:\tt (tracing stop)
Tgid:\t5245
Ngid:\t0
Pid:\t5246
PPid:\t5241
TracerPid:\t77
Uid:\t0\t1000\t0\t4294967295
Gid:\t1\t2\t3\t4
FDSize:\t256
Groups:\t4 24 1000 
NStgid:\t5245\t7
NSpid:\t5246\t8
NSpgid:\t5241\t0
NSsid:\t3862\t0
VmLck:\t      16 kB
THP_enabled:\t1
untag_mask:\t0xffffffffffffffff
Threads:\t2
SigQ:\t3/96365
SigPnd:\t0000000000000001
ShdPnd:\t8000000000000000
SigBlk:\t0000000000000002
SigIgn:\t0000000000001000
SigCgt:\t0000000180014a07
CapInh:\t0000000000000000
CapPrm:\t000001fffeffffff
CapEff:\t000001fffeffffff
CapBnd:\t000001fffeffffff
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t3
Speculation_Store_Bypass:\tthread vulnerable
x86_Thread_features:\tshstk wrss 
x86_Thread_features_locked:\t
";

    #[test]
    fn all_fields() {
        let s = parse_status("status", STATUS).unwrap();
        assert_eq!(s.name, b" a\n\\n\\");
        assert_eq!(
            (s.umask, s.state, s.tgid, s.pid),
            (
                Some(0o22),
                TaskState::TracingStop,
                HostPid(5245),
                HostPid(5246)
            )
        );
        assert_eq!((s.ppid, s.tracer), (HostPid(5241), HostPid(77)));
        assert_eq!(
            s.uid,
            Ids {
                real: 0,
                effective: 1000,
                saved: 0,
                fs: u32::MAX
            }
        );
        assert_eq!(s.groups, [4, 24, 1000]);
        assert_eq!(
            (&s.ns_pid[..], &s.ns_sid[..]),
            (&[5246, 8][..], &[3862, 0][..])
        );
        assert_eq!(
            (s.sig_q, s.sig_pnd, s.shd_pnd, s.sig_ign),
            ((3, 96365), 1, 1 << 63, 0x1000)
        );
        assert_eq!(
            (s.cap_prm, s.no_new_privs, s.seccomp, s.seccomp_filters),
            (0x1fffeffffff, true, 2, Some(3))
        );
        assert_eq!(
            (s.thp_enabled, s.untag_mask, s.threads, s.vm_locked),
            (Some(true), Some(u64::MAX), 2, 16384)
        );
        assert_eq!(s.thread_features, [b"shstk".to_vec(), b"wrss".to_vec()]);
        assert!(s.thread_features_locked.is_empty());
    }

    #[test]
    fn a_missing_field_is_an_error() {
        for r in REQUIRED {
            let without: Vec<u8> = STATUS
                .split_inclusive(|b| *b == b'\n')
                .filter(|l| !(l.starts_with(r) && l[r.len()] == b':'))
                .flatten()
                .copied()
                .collect();
            assert!(without.len() < STATUS.len());
            assert!(
                parse_status("status", &without).is_err(),
                "{}",
                r.escape_ascii()
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text: Vec<u8>, at in 0..STATUS.len(), byte: u8) {
            let _ = parse_status("status", &text);
            let mut t = STATUS.to_vec();
            t[at] = byte;
            let _ = parse_status("status", &t);
        }
    }
}
