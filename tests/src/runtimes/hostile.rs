//! A container's images that claim what no dump writes: each is refused by name, and nothing outside of the root is touched.
//!
//! A container of runc is dumped once. Then one thing is changed in a copy of its images, and `stasis restore --bundle` must fail
//! with an error of ours; whatever is beside the container (a folder of the host's that links in the container's volume lead to,
//! its root, control groups, mounts, processes) must be as it was. In the end the images as they were bring the container back.
//!
//! Long because there is a line for each lie.

use super::Scenario;
use super::runc::{COUNT, Container};
use super::world::{Heard, World, goes_on};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use stasis_proto::prost::{Message, Name};
use stasis_proto::{ImageDir, pb};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "hostile_tasks",
        runtime: "runc",
        play: |w| hostile(w, TASKS),
    },
    Scenario {
        name: "hostile_files",
        runtime: "runc",
        play: |w| hostile(w, FILES),
    },
    Scenario {
        name: "hostile_mounts",
        runtime: "runc",
        play: |w| hostile(w, MOUNTS),
    },
];

/// What a lie is told to.
struct Target<'a> {
    /// The images.
    dir: ImageDir,
    /// The same folder.
    path: &'a Path,
    /// A folder of the host's, outside of the container's root.
    canary: &'a Path,
    /// The bundle's config.json.
    config: &'a Path,
    scratch: &'a Path,
}

/// A claim in an image that no dump makes.
struct Lie {
    name: &'static str,
    tell: fn(&Target) -> Result<()>,
}

impl Target<'_> {
    /// Changes the records of all images whose names begin so.
    fn change<M>(&self, prefix: &str, mut f: impl FnMut(&mut Vec<M>)) -> Result<()>
    where
        M: Message + Name + Default,
    {
        let named = |n: &String| n.starts_with(prefix) && n.ends_with(".img");
        let names: Vec<String> = self.dir.list()?.into_iter().filter(named).collect();
        ensure!(!names.is_empty(), "there is no image {prefix}");
        for name in names {
            let mut all: Vec<M> = self.dir.read_all(&name)?;
            f(&mut all);
            self.dir.write_all(&name, &all)?;
        }
        Ok(())
    }
    fn tree(&self, f: impl Fn(&mut Vec<pb::PstreeEntry>)) -> Result<()> {
        self.change("pstree", f)
    }
    /// The first process's own slots.
    fn slots(&self, f: impl Fn(&mut Vec<pb::FdinfoEntry>)) -> Result<()> {
        self.change("fdinfo-", f)
    }
    fn memory(&self, f: impl Fn(&mut pb::MmEntry)) -> Result<()> {
        self.change("mm-", |all: &mut Vec<pb::MmEntry>| f(&mut all[0]))
    }
    /// The file that the container appends to, in its volume.
    fn log(&self, f: impl Fn(&mut pb::RegFileEntry)) -> Result<()> {
        let mut met = false;
        self.change("files", |all: &mut Vec<pb::FileEntry>| {
            for r in all.iter_mut().filter_map(|e| e.reg.as_mut()) {
                if r.name.ends_with(b"/data/log") {
                    met = true;
                    f(r);
                }
            }
        })?;
        ensure!(met, "nobody has /data/log");
        Ok(())
    }
    fn mounts(&self, f: impl Fn(&mut Vec<pb::MntEntry>)) -> Result<()> {
        self.change("mountpoints-", f)
    }
    /// The mount at this place of the container.
    fn mount(&self, at: &str, f: impl Fn(&mut pb::MntEntry)) -> Result<()> {
        self.mounts(|all| {
            let m = all.iter_mut().find(|m| m.mountpoint == at);
            f(m.unwrap_or_else(|| panic!("nothing is mounted at {at}")));
        })
    }
    fn groups(&self, f: impl Fn(&mut pb::CgroupEntry)) -> Result<()> {
        self.change("cgroup", |all: &mut Vec<pb::CgroupEntry>| f(&mut all[0]))
    }
    /// The deleted file.
    fn ghost(&self, f: impl Fn(&mut pb::GhostFileEntry)) -> Result<()> {
        let names = self.dir.list()?;
        let name = names.iter().find(|n| n.starts_with("ghost-file-"));
        let path = self.path.join(name.context("no deleted file")?);
        // two magic numbers, the length of the record, the record; the contents behind it
        let bytes = fs::read(&path)?;
        let end = 12 + u32::from_le_bytes(bytes[8..12].try_into()?) as usize;
        let mut e = pb::GhostFileEntry::decode(&bytes[12..end])?;
        f(&mut e);
        let record = e.encode_to_vec();
        let mut new = bytes[..8].to_vec();
        new.extend((record.len() as u32).to_le_bytes());
        new.extend(record);
        new.extend(&bytes[end..]);
        Ok(fs::write(path, new)?)
    }
    /// The contents of every tmpfs become an archive that this line of a shell writes to standard output.
    fn archive(&self, line: &str) -> Result<()> {
        let mut c = Command::new("sh");
        c.args(["-e", "-c", line]).current_dir(self.scratch);
        c.env("CANARY", self.canary);
        let out = c.stderr(Stdio::inherit()).output()?;
        ensure!(
            out.status.success() && !out.stdout.is_empty(),
            "{line}: {}",
            out.status
        );
        let names = self.dir.list()?;
        let all: Vec<_> = names
            .iter()
            .filter(|n| n.starts_with("tmpfs-dev-"))
            .collect();
        ensure!(!all.is_empty(), "no tmpfs");
        all.iter()
            .try_for_each(|n| Ok(fs::write(self.path.join(n), &out.stdout)?))
    }
    /// The bundle says something else than it said when the images were made.
    fn bundle(&self, f: impl Fn(&mut Value)) -> Result<()> {
        let mut v: Value = serde_json::from_slice(&fs::read(self.config)?)?;
        f(&mut v);
        Ok(fs::write(self.config, v.to_string())?)
    }
    /// The tree says that it lives in the machine's namespace of this sort.
    fn of_the_machine(
        &self,
        copy: impl Fn(&pb::TaskKobjIdsEntry, &mut pb::TaskKobjIdsEntry),
    ) -> Result<()> {
        let root: Vec<pb::PstreeEntry> = self.dir.read_all("pstree.img")?;
        let ids = self.dir.read_one(&format!("ids-{}.img", root[0].pid))?;
        self.change("inventory", |all: &mut Vec<pb::InventoryEntry>| {
            copy(&ids, all[0].root_ids.get_or_insert_default());
        })
    }
}

/// Who there is, and where.
#[rustfmt::skip] // a lie per line
const TASKS: &[Lie] = &[
    Lie { name: "parents in a circle", tell: |t| t.tree(|p| { let (a, b) = (p[1].pid, p[2].pid); p[1].ppid = b; p[2].ppid = a; }) },
    Lie { name: "its own parent", tell: |t| t.tree(|p| p[1].ppid = p[1].pid) },
    Lie { name: "a parent that is not there", tell: |t| t.tree(|p| p[1].ppid = 77_777) },
    Lie { name: "a root that is not the first", tell: |t| t.tree(|p| p[0].pid = 7) },
    Lie { name: "pid 0", tell: |t| t.tree(|p| p[1].pid = 0) },
    Lie { name: "a pid beyond all", tell: |t| t.tree(|p| p[1].pid = u32::MAX) },
    Lie { name: "two tasks with one pid", tell: |t| t.tree(|p| p[1].pid = p[2].pid) },
    Lie { name: "a hundred thousand threads", tell: |t| t.tree(|p| p[0].threads = (1..100_000).collect()) },
    Lie { name: "the machine's mounts", tell: |t| t.of_the_machine(|own, root| root.mnt_ns_id = own.mnt_ns_id) },
    Lie { name: "the machine's processes", tell: |t| t.of_the_machine(|own, root| root.pid_ns_id = own.pid_ns_id) },
    Lie { name: "the machine's network", tell: |t| t.of_the_machine(|own, root| root.net_ns_id = own.net_ns_id) },
    Lie { name: "no users of its own", tell: |t| t.bundle(|v| { v["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"})); let map = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]); v["linux"]["uidMappings"] = map.clone(); v["linux"]["gidMappings"] = map; }) },
    Lie { name: "a control group above its own", tell: |t| t.groups(|g| { for d in g.controllers.iter_mut().flat_map(|c| &mut c.dirs) { d.dir_name = "../../evil".into(); } }) },
    Lie { name: "a control group's file elsewhere", tell: |t| { let to = format!("../../../../../../../..{}/secret", t.canary.display()); t.groups(|g| { for d in g.controllers.iter_mut().flat_map(|c| &mut c.dirs) { d.properties.push(pb::CgroupPropEntry { name: to.clone(), value: "bad".into(), perms: None }); } }) } },
    Lie { name: "a member of a group above", tell: |t| t.groups(|g| { for m in g.sets.iter_mut().flat_map(|s| &mut s.ctls) { m.path = "/../../evil".into(); } }) },
];

/// What is open and mapped.
#[rustfmt::skip] // a lie per line
const FILES: &[Lie] = &[
    Lie { name: "a descriptor beyond all", tell: |t| t.slots(|f| f[0].fd = u32::MAX) },
    Lie { name: "a file nobody described", tell: |t| t.slots(|f| f[0].id = 99_999) },
    Lie { name: "a slot used twice", tell: |t| t.slots(|f| { let first = f[0].clone(); f.push(first); }) },
    Lie { name: "a mapping of the kernel's", tell: |t| t.memory(|m| { m.vmas[0].start = 0xffff_8000_0000_0000; m.vmas[0].end = 0xffff_8000_0000_1000; }) },
    Lie { name: "a mapping upside down", tell: |t| t.memory(|m| { let v = &mut m.vmas[0]; std::mem::swap(&mut v.start, &mut v.end); }) },
    Lie { name: "mappings on one another", tell: |t| t.memory(|m| { let first = m.vmas[0]; m.vmas.insert(1, first); }) },
    Lie { name: "a program that is not there", tell: |t| t.memory(|m| m.exe_file_id = 99_999) },
    Lie { name: "a path that climbs", tell: |t| { let to = format!("../../../../../../../..{}/secret", t.canary.display()); t.log(|r| r.name = to.clone().into()) } },
    Lie { name: "a path through a link", tell: |t| t.log(|r| r.name = b"/data/out/secret".to_vec()) },
    Lie { name: "a path through the first process", tell: |t| { let to = format!("/proc/1/root{}/secret", t.canary.display()); t.log(|r| r.name = to.clone().into()) } },
    Lie { name: "a path with a NUL", tell: |t| t.log(|r| r.name = b"/data/log\0.txt".to_vec()) },
    Lie { name: "a file without a name", tell: |t| t.log(|r| r.name = Vec::new()) },
    Lie { name: "a file to be made", tell: |t| t.log(|r| { r.name = b"/data/out/new".to_vec(); r.flags |= libc::O_CREAT as u32; r.size = None; }) },
    Lie { name: "an external file nobody gives", tell: |t| t.log(|r| { r.name = b"file[7:7]".to_vec(); r.ext = Some(true); }) },
    Lie { name: "a deleted file that is a disk", tell: |t| t.ghost(|g| { g.mode = libc::S_IFBLK | 0o666; g.rdev = Some(8 << 8); }) },
    Lie { name: "a deleted file that is the machine's memory", tell: |t| t.ghost(|g| { g.mode = libc::S_IFCHR | 0o666; g.rdev = Some(1 << 8 | 1); }) },
    Lie { name: "a deleted file that is a socket", tell: |t| t.ghost(|g| g.mode = libc::S_IFSOCK | 0o666) },
    Lie { name: "a deleted file as large as the sky", tell: |t| t.ghost(|g| { g.chunks = Some(true); g.size = Some(u64::MAX); }) },
    Lie { name: "a deleted file that is not there", tell: |t| t.change("remap-fpath", |r: &mut Vec<pb::RemapFilePathEntry>| r[0].remap_id = 4_000_000) },
    Lie { name: "a folder that is a file", tell: |t| { let log = t.id_of_log()?; t.change("fs-", |f: &mut Vec<pb::FsEntry>| f[0].cwd_id = log) } },
    Lie { name: "another root directory that is not there", tell: |t| t.change("fs-", |f: &mut Vec<pb::FsEntry>| f[0].root_id = 99_999) },
];

/// Mounts and what is in them.
#[rustfmt::skip] // a lie per line
const MOUNTS: &[Lie] = &[
    Lie { name: "a mount above the root", tell: |t| t.mount("/dev/shm", |m| m.mountpoint = "/../../shm".into()) },
    Lie { name: "a mount on a link", tell: |t| t.mount("/dev/shm", |m| m.mountpoint = "/data/out".into()) },
    Lie { name: "a mount on nothing", tell: |t| t.mount("/dev/shm", |m| m.mountpoint = "/no/such/place".into()) },
    Lie { name: "a mount of what climbs", tell: |t| t.mount("/dev/shm", |m| m.root = "/../../..".into()) },
    Lie { name: "a mount below itself", tell: |t| t.mount("/dev/shm", |m| m.parent_mnt_id = m.mnt_id) },
    Lie { name: "mounts in a circle", tell: |t| t.mounts(|all| { let n = all.len(); let (a, b) = (all[n - 1].mnt_id, all[n - 2].mnt_id); all[n - 1].parent_mnt_id = b; all[n - 2].parent_mnt_id = a; }) },
    Lie { name: "two mounts of one number", tell: |t| t.mounts(|all| { let first = all[0].mnt_id; let n = all.len(); all[n - 1].mnt_id = first; }) },
    Lie { name: "a mount from outside that nobody gives", tell: |t| t.mount("/dev/shm", |m| m.ext_key = Some("mystery".into())) },
    Lie { name: "a mount from outside, by its path", tell: |t| { let to = t.canary.display().to_string(); t.mount("/dev/shm", |m| m.ext_key = Some(to.clone())) } },
    Lie { name: "a disk nobody gives", tell: |t| t.mount("/dev/shm", |m| { m.fstype = pb::Fstype::Auto as u32; m.fsname = Some("ext4".into()); m.ext_key = Some("CRIU:EXTERNAL_DEV".into()); m.source = "/dev/vda".into(); }) },
    Lie { name: "the machine's devices", tell: |t| t.mount("/dev", |m| m.fstype = pb::Fstype::Devtmpfs as u32) },
    Lie { name: "an overlay of the machine's folders", tell: |t| { let to = format!("lowerdir={0},upperdir={0},workdir={0}", t.canary.display()); t.mount("/dev/shm", |m| { m.fstype = pb::Fstype::Overlayfs as u32; m.options = to.clone(); }) } },
    Lie { name: "a file system by name", tell: |t| t.mount("/dev/shm", |m| { m.fstype = pb::Fstype::Auto as u32; m.fsname = Some("debugfs".into()); }) },
    Lie { name: "a tmpfs with an option of another", tell: |t| t.mount("/dev/shm", |m| m.options = "lowerdir=/".into()) },
    Lie { name: "an archive that climbs", tell: |t| t.archive("echo bad >evil; tar -P -cz --transform \"s,^,../../../../../../../..$CANARY/,\" evil") },
    Lie { name: "an archive through a link", tell: |t| t.archive("mkdir -p a/l; echo bad >a/l/evil; ln -sfn $CANARY l; tar -cf x.tar l; tar -rf x.tar -C a l/evil; gzip -c x.tar") },
    Lie { name: "an archive that is none", tell: |t| t.archive("head -c 5000 /dev/zero") },
];

impl Target<'_> {
    fn id_of_log(&self) -> Result<u32> {
        let all: Vec<pb::FileEntry> = self.dir.read_all("files.img")?;
        let is = |e: &&pb::FileEntry| {
            e.reg
                .as_ref()
                .is_some_and(|r| r.name.ends_with(b"/data/log"))
        };
        Ok(all.iter().find(is).context("nobody has /data/log")?.id)
    }
}

/// What can be seen from outside: names, owners, contents and times of files, control groups, mounts, processes.
fn outside(folders: &[&Path]) -> Result<BTreeMap<String, String>> {
    fn walk(at: &Path, all: &mut BTreeMap<String, String>) -> Result<()> {
        let st = at.symlink_metadata()?;
        // whoever writes to a large one changes its times
        let contents = match st.is_file() && st.len() < 4096 {
            true => fs::read(at)?,
            false => Vec::new(),
        };
        let contents = String::from_utf8_lossy(&contents);
        let times = match st.is_file() {
            true => format!("{} at {}.{}", st.len(), st.mtime(), st.mtime_nsec()),
            false => String::new(),
        };
        let seen = format!(
            "{:o} {} {} {times} {contents}",
            st.mode(),
            st.uid(),
            st.gid()
        );
        all.insert(at.display().to_string(), seen);
        if st.is_dir() {
            for e in fs::read_dir(at)? {
                walk(&e?.path(), all)?;
            }
        }
        Ok(())
    }
    let mut all = BTreeMap::new();
    for f in folders {
        walk(f, &mut all)?;
    }
    for e in fs::read_dir("/sys/fs/cgroup")? {
        let e = e?;
        if e.file_type()?.is_dir() {
            all.insert(e.path().display().to_string(), String::new());
        }
    }
    all.insert("mounts".into(), fs::read_to_string("/proc/self/mountinfo")?);
    for e in fs::read_dir("/proc")? {
        let e = e?;
        if e.file_name().to_string_lossy().parse::<i32>().is_ok() {
            all.insert(e.path().display().to_string(), String::new());
        }
    }
    Ok(all)
}

fn hostile(w: &World, lies: &[Lie]) -> Result<()> {
    let [canary, volume, scratch] = ["canary", "volume", "scratch"].map(|n| w.dir.join(n));
    for d in [&canary, &volume, &scratch] {
        fs::create_dir(d)?;
    }
    fs::write(canary.join("secret"), "secret")?;
    symlink(&canary, volume.join("out"))?;
    let script = format!(
        "exec 5>>/data/log; exec 7>/tmp/gone; echo kept >&7; rm /tmp/gone; sleep 1000 & sleep 1000 & {COUNT}"
    );
    let c = Container::new(w, &script, |v| {
        let mounts = v["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rw"]}));
    })?;
    let (out, heard) = Heard::pipe()?;
    c.start(out)?;
    heard.wait_numbers(3)?;
    c.checkpoint(&[])?;
    let before = heard.last_numbers()?;
    let (good, bundle) = (c.images(), c.bundle());
    let config = fs::read(bundle.join("config.json"))?;
    let binary = fs::canonicalize(w.dir.join("bin/criu"))?;
    let images = w.dir.join("lies");
    let pidfile = w.dir.join("pid");
    let restore = || {
        let mut v = Command::new(&binary);
        v.arg("restore")
            .arg("--bundle")
            .arg(&bundle)
            .arg("-D")
            .arg(&images);
        v.args(["--id", "c2", "--detach", "--pidfile"])
            .arg(&pidfile);
        v
    };
    let fresh = || -> Result<()> {
        let _ = fs::remove_dir_all(&images);
        fs::create_dir(&images)?;
        for e in fs::read_dir(&good)? {
            let e = e?;
            fs::copy(e.path(), images.join(e.file_name()))?;
        }
        Ok(fs::write(bundle.join("config.json"), &config)?)
    };
    let rootfs = c.rootfs();
    let watched: [&Path; 3] = [&canary, &volume, &rootfs];
    let mut wrong = Vec::new();
    let was = outside(&watched)?;
    for lie in lies {
        fresh()?;
        let target = Target {
            dir: ImageDir::open(&images)?,
            path: &images,
            canary: &canary,
            config: &bundle.join("config.json"),
            scratch: &scratch,
        };
        (lie.tell)(&target).with_context(|| lie.name)?;
        eprintln!("{}", lie.name);
        let told = w.output(&mut restore())?;
        let (status, text) = (told.status, String::from_utf8_lossy(&told.stderr));
        let named =
            text.contains("error[E") && !text.contains("error[E9") && !text.contains("panicked");
        if status.success() {
            wrong.push(format!("{}: believed", lie.name));
            end(&pidfile)?;
        } else if !named {
            wrong.push(format!(
                "{}: {status}, not refused by name: {text}",
                lie.name
            ));
        } else {
            let first = text
                .lines()
                .find(|l| l.contains("error[E"))
                .unwrap_or_default();
            eprintln!("  {first}");
        }
        let now = super::world::wait("what was to end", || {
            let now = outside(&watched)?;
            Ok((now.len() <= was.len()).then_some(now))
        });
        let now = now.or_else(|_| outside(&watched))?;
        for (k, v) in now.iter().filter(|(k, v)| was.get(*k) != Some(v)) {
            wrong.push(format!("{}: {k} is now {v}", lie.name));
        }
        for k in was.keys().filter(|k| !now.contains_key(*k)) {
            wrong.push(format!("{}: {k} is gone", lie.name));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    fresh()?;
    let (out, next) = Heard::pipe()?;
    // what the engine has to say must not come between a number and the end of its line
    let said = w.dir.join("said");
    let status = restore()
        .stdin(Stdio::null())
        .stderr(fs::File::create(&said)?)
        .stdout(out)
        .status()?;
    let said = fs::read_to_string(&said)?;
    ensure!(status.success(), "the images as they were: {said}");
    goes_on(&before, &next.wait_numbers(3)?)?;
    end(&pidfile)
}

/// Ends the container that was restored.
fn end(pidfile: &PathBuf) -> Result<()> {
    let pid: i32 = fs::read_to_string(pidfile)?.trim().parse()?;
    fs::remove_file(pidfile)?;
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL)?;
    super::world::wait("the container to end", || {
        Ok(nix::sys::signal::kill(pid, None).is_err().then_some(()))
    })?;
    let _ = fs::remove_dir("/sys/fs/cgroup/c2");
    Ok(())
}
