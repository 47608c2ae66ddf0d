//! `stasis show`: a folder of images for people.
use super::{Images, bytes, plain};
use clap::Args;
use serde_json::{Value, json};
use stasis_engine::Result;
use stasis_proto::show::Schema;
use stasis_proto::{ImageDir, ImageError, pb};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::ExitCode;

/// Show what a folder of images holds: processes, open files, memory
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stasis show /var/tmp/frozen
  stasis show /var/tmp/all.stasis --identity key.txt
  stasis show /var/tmp/frozen --json | jq '.[] | select(.file == \"files.img\")'")]
pub struct Show {
    #[command(flatten)]
    images: Images,
}

impl Show {
    /// Runs the verb.
    pub fn run(&self, json: bool) -> Result<ExitCode> {
        let dir = stasis_engine::open_images(&self.images.options()?)?;
        match json {
            true => sayln!("{}", all_images(&dir)?),
            false => say!("{}", text(&dir)?),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Every image, in full. One that cannot be read is an entry with `problem`, so that the others can still be seen.
fn all_images(dir: &ImageDir) -> Result<Value> {
    let schema = Schema::new();
    let show = |name: String| match schema.show(dir, &name) {
        Ok(v) => v,
        Err(e) => json!({"file": name, "problem": e.to_string(), "code": e.code()}),
    };
    Ok(dir.list()?.into_iter().map(show).collect())
}

/// Tasks, files and memory on paper.
pub fn text(dir: &ImageDir) -> Result<String> {
    let mut t = String::new();
    if !dir.exists("inventory.img")? {
        t +=
            "incomplete: no inventory.img; a dump into this folder failed or is still going on\n\n";
    }
    let tasks: Vec<pb::PstreeEntry> = dir.read_all("pstree.img")?;
    let files = files_by_id(dir)?;
    let threads: usize = tasks.iter().map(|p| p.threads.len()).sum();
    let _ = writeln!(
        t,
        "{} processes, {threads} threads, {} open files",
        tasks.len(),
        files.len()
    );
    t += "\ntasks\n";
    for (depth, task) in in_tree_order(&tasks) {
        // a deep tree must not run off the page
        let _ = writeln!(
            t,
            "  {:indent$}{} {}  session {} group {} threads {}{}",
            "",
            task.pid,
            plain(&comm(dir, task.pid)?),
            task.sid,
            task.pgid,
            task.threads.len(),
            state(dir, task.pid)?,
            indent = 2 * depth.min(20),
        );
    }
    t += "\nfiles\n";
    let mut shown = BTreeMap::new();
    for task in &tasks {
        let Some(ids) = optional::<pb::TaskKobjIdsEntry>(dir, &format!("ids-{}.img", task.pid))?
        else {
            continue;
        };
        if let Some(other) = shown.insert(ids.files_id, task.pid) {
            let _ = writeln!(t, "  task {}: those of task {other}", task.pid);
            continue;
        }
        let name = format!("fdinfo-{}.img", ids.files_id);
        let slots: Vec<pb::FdinfoEntry> = match dir.exists(&name)? {
            true => dir.read_all(&name)?,
            false => Vec::new(),
        };
        let _ = writeln!(t, "  task {}", task.pid);
        for s in slots {
            let what = files.get(&s.id).map_or("not in files.img".into(), describe);
            let _ = writeln!(
                t,
                "    {:>4}  {:<10} {what}",
                s.fd,
                s.r#type().as_str_name()
            );
        }
    }
    t += "\nmemory\n";
    for task in &tasks {
        memory(dir, task.pid, &mut t)?;
    }
    Ok(t)
}

fn optional<M>(dir: &ImageDir, name: &str) -> Result<Option<M>, ImageError>
where
    M: stasis_proto::prost::Message + stasis_proto::prost::Name + Default,
{
    match dir.exists(name)? {
        true => dir.read_one(name).map(Some),
        false => Ok(None),
    }
}

fn core(dir: &ImageDir, pid: u32) -> Result<Option<pb::TaskCoreEntry>> {
    let core: Option<pb::CoreEntry> = optional(dir, &format!("core-{pid}.img"))?;
    Ok(core.and_then(|c| c.tc))
}

fn comm(dir: &ImageDir, pid: u32) -> Result<String> {
    Ok(core(dir, pid)?.map_or("?".into(), |c| {
        String::from_utf8_lossy(&c.comm).into_owned()
    }))
}

fn state(dir: &ImageDir, pid: u32) -> Result<&'static str> {
    Ok(match core(dir, pid)?.map(|c| c.task_state) {
        None | Some(1) => "",
        Some(2 | 6) => " (zombie)",
        Some(3) => " (stopped)",
        Some(4) => " (helper)",
        Some(_) => " (unknown state)",
    })
}

/// Children behind their parents, with their depth; tasks whose parent is not in the image are roots. Each task once,
/// however the parents are knotted.
fn in_tree_order(tasks: &[pb::PstreeEntry]) -> Vec<(usize, &pb::PstreeEntry)> {
    let pids: BTreeSet<u32> = tasks.iter().map(|t| t.pid).collect();
    let mut children: BTreeMap<u32, Vec<&pb::PstreeEntry>> = BTreeMap::new();
    for t in tasks {
        children.entry(t.ppid).or_default().push(t);
    }
    let roots = tasks.iter().filter(|t| !pids.contains(&t.ppid));
    let mut todo: Vec<_> = roots.rev().map(|t| (0, t)).collect();
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    while let Some((depth, t)) = todo.pop() {
        if !seen.insert(t.pid) {
            continue;
        }
        out.push((depth, t));
        let own = children.get(&t.pid).map_or(&[][..], Vec::as_slice);
        todo.extend(own.iter().rev().map(|c| (depth + 1, *c)));
    }
    // parents in a circle: no root leads to them
    out.extend(
        tasks
            .iter()
            .filter(|t| !seen.contains(&t.pid))
            .map(|t| (0, t)),
    );
    out
}

fn files_by_id(dir: &ImageDir) -> Result<BTreeMap<u32, pb::FileEntry>> {
    if !dir.exists("files.img")? {
        return Ok(BTreeMap::new());
    }
    let all: Vec<pb::FileEntry> = dir.read_all("files.img")?;
    Ok(all.into_iter().map(|f| (f.id, f)).collect())
}

/// What a file is, in a few words.
fn describe(f: &pb::FileEntry) -> String {
    let mut s = if let Some(r) = &f.reg {
        format!("{} at {}", plain(&String::from_utf8_lossy(&r.name)), r.pos)
    } else if let Some(p) = &f.pipe {
        format!("pipe {}, {}", p.pipe_id, end(p.flags))
    } else if let Some(p) = &f.fifo {
        format!("fifo {}", p.pipe_id)
    } else if let Some(e) = &f.efd {
        format!("counter {}", e.counter)
    } else if let Some(e) = &f.epfd {
        format!("watches {} files", e.tfd.len())
    } else if let Some(e) = &f.tty {
        format!("terminal {:#x}", e.tty_info_id)
    } else if let Some(e) = &f.ext {
        format!("external {:#x}", e.id)
    } else {
        String::new()
    };
    if s.is_empty() {
        let _ = write!(s, "id {}", f.id);
    }
    s
}

fn end(flags: u32) -> &'static str {
    // O_ACCMODE
    match flags & 3 {
        0 => "reading end",
        1 => "writing end",
        _ => "both ends",
    }
}

/// Kinds of mappings, by the bit of `vma_entry.status` (image format), the most telling first.
const MAPPINGS: &[(u32, &str)] = &[
    (2, "vsyscall"),
    (3, "vdso"),
    (12, "vvar"),
    (13, "aio ring"),
    (1, "stack"),
    (5, "heap"),
    (10, "SysV shared memory"),
    (14, "memfd"),
    (11, "socket"),
    (6, "file, private"),
    (7, "file, shared"),
    (8, "anonymous, shared"),
    (9, "anonymous, private"),
];

fn mapping(v: &pb::VmaEntry) -> &'static str {
    let named = MAPPINGS.iter().find(|(bit, _)| v.status & (1 << bit) != 0);
    named.map_or("other", |(_, name)| name)
}

#[derive(Default)]
struct Sum {
    mappings: u64,
    size: u64,
    stored: u64,
}

fn memory(dir: &ImageDir, pid: u32, t: &mut String) -> Result<()> {
    const PAGE: u64 = 4096;
    let Some(mm) = optional::<pb::MmEntry>(dir, &format!("mm-{pid}.img"))? else {
        return Ok(());
    };
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for v in &mm.vmas {
        let s = sums.entry(mapping(v)).or_default();
        s.mappings += 1;
        s.size = s.size.saturating_add(v.end.saturating_sub(v.start));
    }
    let name = format!("pagemap-{pid}.img");
    if dir.exists(&name)? {
        let mut r = dir.reader(&name)?;
        r.read::<pb::PagemapHead>()?;
        for e in r.read_rest::<pb::PagemapEntry>()? {
            let pages = e.nr_pages.unwrap_or(u64::from(e.compat_nr_pages));
            let end = e.vaddr.saturating_add(pages.saturating_mul(PAGE));
            // an entry may reach over neighbouring mappings
            for v in &mm.vmas {
                let (from, to) = (v.start.max(e.vaddr), v.end.min(end));
                if from < to {
                    let s = sums.entry(mapping(v)).or_default();
                    s.stored = s.stored.saturating_add(to - from);
                }
            }
        }
    }
    let total = |f: fn(&Sum) -> u64| sums.values().map(f).fold(0, u64::saturating_add);
    let _ = writeln!(
        t,
        "  task {pid}: {} mappings, {}, stored {}",
        mm.vmas.len(),
        bytes(total(|s| s.size)),
        bytes(total(|s| s.stored))
    );
    for (name, s) in &sums {
        let _ = writeln!(
            t,
            "    {name:<20} {:>5} mappings {:>12}, stored {:>12}",
            s.mappings,
            bytes(s.size),
            bytes(s.stored)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: u32, ppid: u32) -> pb::PstreeEntry {
        pb::PstreeEntry {
            pid,
            ppid,
            pgid: 1,
            sid: 1,
            threads: vec![pid],
            stasis: None,
        }
    }

    #[test]
    fn trees_are_shown_in_order_and_knots_do_not_hang() {
        let tasks = [
            task(1, 0),
            task(2, 1),
            task(3, 1),
            task(4, 2),
            task(9, 8),
            task(8, 9),
        ];
        let order: Vec<_> = in_tree_order(&tasks)
            .iter()
            .map(|(d, t)| (*d, t.pid))
            .collect();
        assert_eq!(order, [(0, 1), (1, 2), (2, 4), (1, 3), (0, 9), (0, 8)]);
    }

    #[test]
    fn a_folder_is_shown_with_tasks_files_and_memory() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::open(tmp.path()).unwrap();
        dir.write_all("pstree.img", &[task(7, 0)]).unwrap();
        let ids = pb::TaskKobjIdsEntry {
            files_id: 2,
            ..Default::default()
        };
        dir.write_one("ids-7.img", &ids).unwrap();
        let slot = pb::FdinfoEntry {
            id: 5,
            fd: 1,
            r#type: pb::FdTypes::Eventfd as i32,
            ..Default::default()
        };
        dir.write_one("fdinfo-2.img", &slot).unwrap();
        let file = pb::FileEntry {
            id: 5,
            r#type: pb::FdTypes::Eventfd as i32,
            efd: Some(
                pb::EventfdFileEntry {
                    id: 5,
                    counter: 42,
                    ..Default::default()
                }
                .into(),
            ),
            ..Default::default()
        };
        dir.write_one("files.img", &file).unwrap();
        let vma = |start, end, bit: u32| pb::VmaEntry {
            start,
            end,
            status: 1 | 1 << bit,
            ..Default::default()
        };
        let mm = pb::MmEntry {
            vmas: vec![vma(0x1000, 0x3000, 9), vma(0x3000, 0x5000, 6)],
            ..Default::default()
        };
        dir.write_one("mm-7.img", &mm).unwrap();
        let mut w = dir.writer("pagemap-7.img").unwrap();
        w.write(&pb::PagemapHead { pages_id: 1 }).unwrap();
        w.write(&pb::PagemapEntry {
            vaddr: 0x2000,
            nr_pages: Some(2),
            ..Default::default()
        })
        .unwrap();
        w.finish().unwrap();
        let shown = text(&dir).unwrap();
        assert!(shown.starts_with("incomplete"), "{shown}");
        assert!(
            shown.contains("1 processes, 1 threads, 1 open files"),
            "{shown}"
        );
        assert!(shown.contains("EVENTFD    counter 42"), "{shown}");
        assert!(
            shown.contains("2 mappings, 16.0 KiB, stored 8.0 KiB"),
            "{shown}"
        );
        let each = shown
            .lines()
            .filter(|l| l.contains("1 mappings      8.0 KiB, stored      4.0 KiB"));
        assert_eq!(each.count(), 2, "{shown}");
        let all = all_images(&dir).unwrap();
        assert_eq!(all.as_array().unwrap().len(), 6);
    }
}
