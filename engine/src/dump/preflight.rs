//! Preflight: everything that would stop a dump, found without stopping the tree.
//!
//! The tree runs on while it is looked at, so what is found may have changed by the time of the dump. Nothing is seized and
//! no tape is played; files are looked at through duplicates, and descriptions go to a folder that is removed again.
use super::Dumping;
use super::task::Task;
use crate::error::{Blame, Error, Result};
use crate::options::Options;
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_kernel::procfs::{ProcDir, TaskState};
use stasis_proto::ImageDir;
use std::collections::BTreeMap;
use std::os::fd::AsFd;

/// Walks the tree under `o.pid` without touching it and names everything that could not be dumped.
///
/// # Errors
/// E4001: no such task; failures to look at it at all.
pub fn preflight(o: &Options) -> Result<Vec<Error>> {
    let mut found = Vec::new();
    let mut tasks = Vec::new();
    let mut pids = BTreeMap::new();
    let mut level = None;
    let mut todo = vec![(HostPid(o.pid), None)];
    while let Some((pid, parent)) = todo.pop() {
        let Ok(proc) = ProcDir::open(pid) else {
            if parent.is_none() {
                return Err(
                    Error::new("E4001", Blame::Container, format!("no task {}", pid.0))
                        .why("it does not exist")
                        .advice("check the pid (as this pid namespace sees it)"),
                );
            }
            continue;
        };
        let Ok(status) = proc.status() else { continue };
        let level = *level.get_or_insert_with(|| super::Level::of(&status));
        pids.insert(pid, level.number(&status.ns_tgid));
        todo.extend(
            proc.children()
                .unwrap_or_default()
                .into_iter()
                .map(|c| (c, Some(pid))),
        );
        tasks.push(Task::new(pid, parent, proc));
    }
    // one that ended meanwhile is not compared, nor is anything then
    let status: Vec<_> = tasks.iter().map(|t| t.proc.status()).collect();
    let status = status
        .into_iter()
        .collect::<std::result::Result<Vec<_>, _>>()
        .unwrap_or_default();
    let family = super::session(o).and_then(|()| super::family::check(o, &tasks, &status));
    found.extend(family.err());
    stasis_kernel::limits::raise_nofile();
    let scratch = Scratch::new()?;
    let dir = ImageDir::open(&scratch.0)?;
    let mut tracking = super::tracking::Tracking::default();
    let ready = super::ready::Ready::default();
    let mut d = Dumping::new(o, &dir, &pids, ready, &mut tracking)?;
    found.extend(d.survey(&tasks, &status).err());
    for t in &tasks {
        let name = t.proc.comm().unwrap_or_default();
        let place = format!("task {} ({})", t.pid.0, String::from_utf8_lossy(&name));
        let before = found.len();
        // a task that ends meanwhile is none of the dump's troubles
        let _ = look(&mut d, t, &mut found);
        for e in &mut found[before..] {
            if !e.what.contains(&format!("task {}", t.pid.0)) {
                e.what = format!("{place}: {}", e.what);
            }
        }
    }
    found.extend(d.users.belongings(&mut d.places).err());
    for ns in Ns::ALL.into_iter().filter(|n| *n != Ns::Mnt) {
        found.extend(d.places.dump(&mut d.cx, ns).err());
    }
    if let Err(e) = d.late_files() {
        found.push(e);
    }
    for u in std::mem::take(&mut d.cx.undo).iter().rev() {
        u.perform()?;
    }
    Ok(found)
}

fn look(d: &mut Dumping, t: &Task, found: &mut Vec<Error>) -> Result<()> {
    let st = t.proc.status()?;
    let stat = t.proc.stat()?;
    let mut add = |r: Result<()>| found.extend(r.err());
    if stat.is_kernel_thread() {
        add(Err(Error::new(
            "E4002",
            Blame::Container,
            format!("task {} is a kernel thread", t.pid.0),
        )
        .advice("name a process")));
        return Ok(());
    }
    if stat.state.is_exited() {
        if st.threads > 1 {
            add(Err(Error::new(
                "E4003",
                Blame::Container,
                format!("task {}", t.pid.0),
            )
            .why("its main thread has exited while others run")
            .advice("let the main thread wait for the others")));
        }
        return Ok(());
    }
    if st.tracer.0 != 0 {
        add(Err(Error::new(
            "E4004",
            Blame::Container,
            format!("task {} is traced by process {}", t.pid.0, st.tracer.0),
        )
        .why("a task has one tracer at most")
        .advice("end the debugger or strace first")));
    }
    if stat.state == TaskState::DiskSleep {
        add(Err(Error::new(
            "E4005",
            Blame::Container,
            format!("task {} is in an uninterruptible sleep", t.pid.0),
        )
        .why("it waits for a vfork() child that has not called execve yet, or for a device")
        .advice("try again a little later")));
    }
    if st.thread_features.iter().any(|f| f == b"shstk") {
        add(Err(Error::new(
            "E4009",
            Blame::Container,
            format!("task {} uses shadow stacks", t.pid.0),
        )
        .advice(
            "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        )));
    }
    let mut class = [0; 5];
    if let Ok(exe) = t.proc.open_file("exe", libc::O_RDONLY)
        && nix::sys::uio::pread(&exe, &mut class, 0) == Ok(5)
        && class == *b"\x7fELF\x01"
    {
        add(Err(super::thread::compat(t.pid)));
    }
    let ns = t.proc.ns_links()?;
    let own = st.ns_tgid.last().copied().unwrap_or(0) as u32;
    add(d.places.meet(t.pid, &ns, own).map(drop));
    let births = super::pidspaces::births(&ns);
    add(d.spaces.extension(t.pid, &[], &st, births).map(drop));
    d.cx.namespaces = d.places.by_inode();
    for s in &t.proc.smaps()? {
        add(super::mm::entry(d, t, s, &stat).map(drop));
    }
    for which in ["cwd", "root"] {
        add(d.place(t, which).map(drop));
    }
    let pidfd = fds::pidfd_open(t.pid, 0)?;
    for slot in t.proc.fds()? {
        match d.slot(t, pidfd.as_fd(), slot, None) {
            Ok(_) => {}
            // closed between the listing and the look
            Err(e)
                if e.why.contains("EBADF")
                    || e.what.contains("EBADF")
                    || e.what.contains("ENOENT") => {}
            Err(e) => add(Err(e)),
        }
    }
    Ok(())
}

/// A folder for descriptions nobody reads, removed with what is in it.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let template = std::env::temp_dir().join("stasis-preflight-XXXXXX");
        let made = nix::unistd::mkdtemp(&template);
        made.map(Self).map_err(|e| {
            stasis_kernel::error::SysError::new("mkdtemp", e, template.display().to_string()).into()
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
