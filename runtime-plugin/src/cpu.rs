//! What of a CPU matters to a restored process, and `cpuinfo.img`.
//!
//! Feature words are the raw answers of the CPUID instruction in the order the image format fixes. Words that only the
//! kernel makes up (its own synthetic bits) are left 0 and not compared: no program can see them.
use stasis_engine::{Blame, Error, Result};
use stasis_proto::{ImageDir, pb};
use std::arch::x86_64::__cpuid_count;

/// Name of the image.
pub const IMAGE: &str = "cpuinfo.img";

/// XSAVE parts that are named in the image: SSE is always there, AMX is not part of the format.
const XFEATURES: u64 = 0x2fd;

/// A register of a CPUID leaf.
#[derive(Clone, Copy)]
enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Reg::{Eax, Ebx, Ecx, Edx};

/// Feature words: CPUID leaf, register, name; `None` for words of the kernel's own.
const WORDS: [Option<(u32, u32, Reg)>; 19] = [
    Some((1, 0, Edx)),
    Some((0x8000_0001, 0, Edx)),
    None,
    None,
    Some((1, 0, Ecx)),
    None,
    Some((0x8000_0001, 0, Ecx)),
    None,
    None,
    Some((7, 0, Ebx)),
    Some((0xd, 1, Eax)),
    Some((7, 0, Ecx)),
    None,
    Some((0x8000_0008, 0, Ebx)),
    Some((6, 0, Eax)),
    None,
    None,
    None,
    Some((7, 0, Edx)),
];

fn leaf(leaf: u32, sub: u32, reg: Reg) -> u32 {
    let most = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    if leaf > most {
        return 0;
    }
    let r = __cpuid_count(leaf, sub);
    match reg {
        Eax => r.eax,
        Ebx => r.ebx,
        Ecx => r.ecx,
        Edx => r.edx,
    }
}

/// This machine's CPU.
pub fn here() -> pb::CpuinfoX86Entry {
    use pb::cpuinfo_x86_entry::Vendor;
    let v = __cpuid_count(0, 0);
    let name: Vec<u8> = [v.ebx, v.edx, v.ecx]
        .iter()
        .flat_map(|r| r.to_le_bytes())
        .collect();
    let vendor = match name.as_slice() {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" => Vendor::Amd,
        _ => Vendor::Unknown,
    };
    let id = leaf(1, 0, Eax);
    let base = (id >> 8) & 0xf;
    let family = if base == 0xf {
        base + ((id >> 20) & 0xff)
    } else {
        base
    };
    let mut model = (id >> 4) & 0xf;
    if base == 0xf || base == 6 {
        model |= ((id >> 16) & 0xf) << 4;
    }
    pb::CpuinfoX86Entry {
        vendor_id: vendor as i32,
        cpu_family: family,
        model,
        stepping: id & 0xf,
        capability_ver: 2,
        capability: WORDS
            .iter()
            .map(|w| w.map_or(0, |(l, s, r)| leaf(l, s, r)))
            .collect(),
        model_id: brand(),
        xfeatures_mask: Some(
            (u64::from(leaf(0xd, 0, Edx)) << 32 | u64::from(leaf(0xd, 0, Eax))) & XFEATURES,
        ),
        xsave_size: Some(leaf(0xd, 0, Ebx)),
        xsave_size_max: Some(leaf(0xd, 0, Ecx)),
    }
}

fn brand() -> Option<String> {
    if __cpuid_count(0x8000_0000, 0).eax < 0x8000_0004 {
        return None;
    }
    let bytes: Vec<u8> = (0x8000_0002..=0x8000_0004u32)
        .map(|l| __cpuid_count(l, 0))
        .flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|b| *b != 0)
        .collect();
    Some(String::from_utf8_lossy(&bytes).trim().to_string())
}

/// Writes the image.
pub fn dump(dir: &ImageDir) -> Result<()> {
    let entry = pb::CpuinfoEntry {
        x86_entry: vec![here()],
        ..Default::default()
    };
    Ok(dir.write_one(IMAGE, &entry)?)
}

/// Compares the image with this machine: `ins` the feature words, `fpu` the XSAVE parts.
pub fn check(dir: &ImageDir, ins: bool, fpu: bool) -> Result<()> {
    let image: pb::CpuinfoEntry = dir.read_one(IMAGE)?;
    let [then] = &image.x86_entry[..] else {
        return Err(
            Error::new("E5301", Blame::Image, "cpuinfo.img describes no x86 CPU")
                .why(format!("{} entries", image.x86_entry.len()))
                .advice("restore on a machine of the architecture of the dump"),
        );
    };
    let lacks = lacking(then, &here(), ins, fpu);
    if lacks.is_empty() {
        return Ok(());
    }
    Err(
        Error::new("E6301", Blame::Host, "this CPU lacks what the CPU of the dump had")
            .why(lacks.join(", "))
            .advice("restore on a CPU with these features, or say --cpu-cap=none if the programs do not use them"),
    )
}

/// What `now` lacks of `then`, in words.
fn lacking(
    then: &pb::CpuinfoX86Entry,
    now: &pb::CpuinfoX86Entry,
    ins: bool,
    fpu: bool,
) -> Vec<String> {
    let mut lacks = Vec::new();
    if (ins || fpu) && then.vendor_id != now.vendor_id {
        lacks.push(format!(
            "vendor {} (here {})",
            then.vendor_id().as_str_name(),
            now.vendor_id().as_str_name()
        ));
    }
    if ins {
        for (i, w) in WORDS.iter().enumerate() {
            let Some((leaf, sub, reg)) = w else { continue };
            let had = then.capability.get(i).copied().unwrap_or(0);
            let has = now.capability.get(i).copied().unwrap_or(0);
            for bit in (0..32).filter(|b| had & !has & (1 << b) != 0) {
                let reg = match reg {
                    Eax => "eax",
                    Ebx => "ebx",
                    Ecx => "ecx",
                    Edx => "edx",
                };
                lacks.push(format!("CPUID {leaf:#x}.{sub} {reg} bit {bit}"));
            }
        }
    }
    if fpu {
        let missing =
            then.xfeatures_mask.unwrap_or(0) & !now.xfeatures_mask.unwrap_or(0) & XFEATURES;
        if missing != 0 {
            lacks.push(format!("XSAVE parts {missing:#x}"));
        }
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_of_this_machine_passes_here() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::open(tmp.path()).unwrap();
        dump(&dir).unwrap();
        check(&dir, true, true).unwrap();
        let back: pb::CpuinfoEntry = dir.read_one(IMAGE).unwrap();
        assert_eq!(back.x86_entry, [here()]);
        // every x86-64 CPU has an FPU and SSE2 (CPUID 1 edx bits 0 and 26)
        assert_eq!(here().capability[0] & 0x400_0001, 0x400_0001);
    }

    #[test]
    fn a_cpu_with_more_is_refused_by_name_and_only_when_asked() {
        let now = here();
        let mut then = now.clone();
        let spare = (0..32).find(|b| now.capability[9] & (1 << b) == 0).unwrap();
        then.capability[9] |= 1 << spare;
        then.capability[3] = u32::MAX; // the kernel's own word does not count
        let name = format!("CPUID 0x7.0 ebx bit {spare}");
        assert_eq!(lacking(&then, &now, true, true), [name]);
        assert!(lacking(&then, &now, false, true).is_empty());
        let mut then = now.clone();
        then.xfeatures_mask = Some(XFEATURES);
        let mut bare = now.clone();
        bare.xfeatures_mask = Some(1);
        assert_eq!(lacking(&then, &bare, false, true), ["XSAVE parts 0x2fc"]);
        then.vendor_id = 0;
        assert!(lacking(&then, &now, true, false)[0].starts_with("vendor UNKNOWN"));
    }
}
