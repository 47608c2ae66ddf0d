//! Rows are performed, in the process whose mount namespace is built.
use crate::archive;
use crate::error::{Blame, Error, Result};
use crate::plan::{Row, Step};
use crate::{autofs, overlay};
use nix::errno::Errno;
use stasis_kernel::call::{Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_kernel::host::Host;
use stasis_kernel::mnt::{self, attr};
use stasis_kernel::{fds, names};
use stasis_proto::ImageDir;
use std::os::fd::{AsFd, BorrowedFd};

/// What rows are performed with.
pub struct Performer<'a> {
    /// The mounts made so far. Rows of one plan must all be performed with the same.
    pub host: &'a mut Host,
    /// The image folder, for archives.
    pub dir: &'a ImageDir,
    /// Devices that archives may hold.
    pub devices: &'a archive::Devices,
}

/// Names the performer itself uses: above the plan's.
const OWN: u32 = 0x7fff_0000;

impl Performer<'_> {
    /// Performs all rows in order.
    ///
    /// # Errors
    /// E6300 to E6304: the first row that failed. What was built until then goes with the mount namespace.
    pub fn perform(&mut self, rows: &[Row]) -> Result<()> {
        for row in rows {
            tracing::trace!("{row}");
            self.row(row)?;
        }
        Ok(())
    }
    fn row(&mut self, row: &Row) -> Result<()> {
        match &row.step {
            Step::Call(c) => self.play(c, &row.why),
            Step::Unpack { image, into } => self.unpack(image, *into, &row.why),
            Step::Device { path, number, to } => {
                self.play(
                    &mnt::clone_path(path.as_bytes(), false).binds(*to),
                    &row.why,
                )?;
                self.is_device(*to, path, *number, &row.why)
            }
            Step::OpenDevice { path, number, to } => {
                self.play(&mnt::open_path(path).binds(*to), &row.why)?;
                self.is_device(*to, path, *number, &row.why)
            }
            Step::Automount(a) => autofs::perform(self, a, OWN).map_err(|why| {
                Error::new(
                    "E6300",
                    Blame::Host,
                    format!("mounting failed: {}", row.why),
                )
                .why(why)
                .advice("restore as root of the first user namespace, on a kernel with autofs")
            }),
            Step::Overlay { recipe, mounts, to } => {
                overlay::perform(self, recipe, mounts, *to, OWN).map_err(|why| {
                    Error::new(
                        "E6300",
                        Blame::Host,
                        format!("mounting failed: {}", row.why),
                    )
                    .why(why)
                    .advice("the kernel log says what overlayfs did not like")
                })
            }
            Step::Register { with, format } => format.register(self.fd(*with)?).map_err(|why| {
                let what = format!("cannot register a format: {}", row.why);
                Error::new("E6300", Blame::Host, what)
                    .why(why)
                    .advice("its interpreter must be there if it has the flag F")
            }),
            Step::Mask { at, null } => self.mask(*at, *null, &row.why),
            Step::Pivot => self.pivot(&row.why),
        }
    }
    fn is_device(&self, f: FdRef, path: &str, number: (u32, u32), why: &str) -> Result<()> {
        let st = fds::fstat(self.fd(f)?).map_err(|e| failed(&e, why))?;
        let is = (libc::major(st.st_rdev), libc::minor(st.st_rdev));
        if st.st_mode & libc::S_IFMT == libc::S_IFCHR && is == number {
            return Ok(());
        }
        let what = format!("{path} is not the device it should be");
        Err(Error::new("E6303", Blame::Host, what)
            .why(format!(
                "it is a {} with number {}:{}",
                names::file_type(st.st_mode),
                is.0,
                is.1
            ))
            .advice("restore where /dev is as usual, or give the mount with --external"))
    }
    fn fd(&self, f: FdRef) -> Result<BorrowedFd<'_>> {
        self.host.fd(f).map(AsFd::as_fd).ok_or_else(|| {
            Error::new("E6300", Blame::Host, format!("file#{} is not open", f.0))
                .advice("please report this with the log")
        })
    }
    fn play(&mut self, call: &Call, why: &str) -> Result<()> {
        self.host.play(call).map(drop).map_err(|e| failed(&e, why))
    }
    fn unpack(&mut self, image: &str, into: FdRef, why: &str) -> Result<()> {
        let file = self.dir.open_raw(image).map_err(|e| {
            Error::new("E5305", Blame::Image, format!("cannot fill {why}"))
                .why(&e)
                .advice("dump again, or copy the folder again if it was copied")
        })?;
        archive::unpack(
            self.fd(into)?,
            std::io::BufReader::new(file),
            image,
            self.devices,
        )
    }
    fn mask(&mut self, at: FdRef, null: FdRef, why: &str) -> Result<()> {
        let st = fds::fstat(self.fd(at)?).map_err(|e| failed(&e, why))?;
        if st.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return self.play(&mnt::attach(null, at), why);
        }
        let (context, mount) = (FdRef(OWN), FdRef(OWN + 1));
        self.play(&mnt::fsopen("tmpfs").binds(context), why)?;
        {
            let key = "ro";
            self.play(&mnt::fsconfig(context, key, None), why)?;
        }
        self.play(&mnt::fsconfig(context, "mode", Some("755")), why)?;
        self.play(&mnt::create(context), why)?;
        let attrs = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
        self.play(&mnt::fsmount(context, attrs).binds(mount), why)?;
        self.play(&mnt::attach(mount, at), why)?;
        self.host.take(context);
        self.host.take(mount);
        Ok(())
    }
    fn pivot(&mut self, why: &str) -> Result<()> {
        match self.host.play(&mnt::pivot_here()) {
            Ok(_) => self.play(&mnt::detach_here(), why)?,
            // KERNEL: the first root (an initramfs) cannot be moved; the new one covers it already
            Err(e) if e.errno == Errno::EINVAL => {
                nix::unistd::chroot(".")
                    .map_err(|e| failed(&SysError::new("chroot", e, "."), why))?;
            }
            Err(e) => return Err(failed(&e, why)),
        }
        self.play(&mnt::chdir("/"), why)
    }
}

fn failed(e: &SysError, why: &str) -> Error {
    let (error, advice) = match e.errno {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV => (
            Error::new("E6304", Blame::Host, format!("cannot mount: {why}")),
            "the root and what is mounted must have the place of every mount, and no link may lead there",
        ),
        Errno::EPERM | Errno::EACCES => (
            Error::new("E6302", Blame::Host, format!("may not mount: {why}")),
            "run as root, or in a user namespace that owns the mount namespace",
        ),
        _ => (
            Error::new("E6300", Blame::Host, format!("mounting failed: {why}")),
            "run `stasis check`; the log has the rows before this one",
        ),
    };
    error.why(e).advice(advice)
}
