//! Host and domain name: `utsns-N.img`.
use crate::error::{Blame, Error, Result};
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::{self, Ns};
use stasis_proto::{ImageDir, Kind, pb};

/// Longest name the kernel takes, in bytes (`__NEW_UTS_LEN`, linux/utsname.h).
const LONGEST: usize = 64;

/// Describes the UTS namespace of a task under this number.
///
/// # Errors
/// E4460: a name is no text. Failures to enter the namespace or to write.
pub fn dump(dir: &ImageDir, id: u32, pid: HostPid) -> Result<()> {
    let (host, domain) = ns::visit_task(pid, &[Ns::Uts], ns::names)??;
    let text = |name: Vec<u8>| {
        String::from_utf8(name).map_err(|e| {
            let shown = String::from_utf8_lossy(e.as_bytes()).into_owned();
            Error::new(
                "E4460",
                Blame::Container,
                format!("host or domain name {shown:?}"),
            )
            .why("the image format holds text only (UTF-8)")
            .advice("set another name in the container (hostname(1), domainname(1))")
        })
    };
    let entry = pb::UtsnsEntry {
        nodename: text(host)?,
        domainname: text(domain)?,
    };
    Ok(dir.write_one(&Kind::Utsns.file_of(id), &entry)?)
}

/// The names to be set, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(pb::UtsnsEntry);

/// Reads and checks the image of this number; `None` if the folder has none.
///
/// # Errors
/// E5460: a name is longer than the kernel takes. A damaged image.
pub fn load(dir: &ImageDir, id: u32) -> Result<Option<Names>> {
    let image = Kind::Utsns.file_of(id);
    if !dir.exists(&image)? {
        return Ok(None);
    }
    let e: pb::UtsnsEntry = dir.read_one(&image)?;
    for name in [&e.nodename, &e.domainname] {
        if name.len() > LONGEST {
            return Err(Error::new("E5460", Blame::Image, image.clone())
                .why(format!(
                    "a name of {} bytes; the kernel takes {LONGEST}",
                    name.len()
                ))
                .advice("dump again"));
        }
    }
    Ok(Some(Names(e)))
}

impl Names {
    /// Sets them in the UTS namespace of the caller, which must be a fresh one.
    ///
    /// # Errors
    /// As sethostname(2).
    pub fn set(&self) -> Result<()> {
        Ok(ns::set_names(
            self.0.nodename.as_bytes(),
            self.0.domainname.as_bytes(),
        )?)
    }
}
