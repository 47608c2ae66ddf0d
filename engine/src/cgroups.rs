//! What the options say of control groups, and what dump and restore ask of the crate that knows them.
use crate::dump::task::Task;
use crate::error::Result;
use crate::options::{CgroupMode, CgroupOptions};
use crate::restore::images::Images;
use stasis_cgroups::{Collector, Freezer, Mode, Plan, Props, View, What};
use stasis_proto::{ImageDir, Kind, pb};

fn view(o: &CgroupOptions) -> Result<View> {
    Ok(match &o.yard {
        Some(yard) => View::yard(yard)?,
        None => View::own()?,
    })
}

fn props(o: &CgroupOptions) -> Result<Props> {
    let mut text = o.props.clone().unwrap_or_default();
    if let Some(file) = &o.props_file {
        let read = std::fs::read_to_string(file).map_err(|e| {
            crate::Error::new(
                "E2444",
                crate::Blame::Caller,
                format!("--cgroup-props-file {}", file.display()),
            )
            .why(e)
            .advice("name a text file that can be read")
        })?;
        text.push('\n');
        text.push_str(&read);
    }
    Ok(Props::new(Some(&text), &o.controllers)?)
}

/// What a dump collects groups with; nothing if groups are none of its business.
///
/// # Errors
/// E4444: a task is in a frozen group, so it could not be asked. Options that contradict themselves; failures to read /proc.
pub fn collector(
    o: &CgroupOptions,
    freezer: Option<&Freezer>,
    held: &[Task],
) -> Result<Option<Collector>> {
    let what = What {
        props: props(o)?,
        roots: o.roots.clone(),
    };
    let mut c = Collector::new(view(o)?, what)?;
    for t in held.iter().filter(|t| t.zombie.is_none()) {
        c.runs(&t.proc)?;
    }
    if let Some(f) = freezer {
        c.frozen_before(f);
    }
    Ok((o.mode != CgroupMode::Ignore).then_some(c))
}

/// Writes cgroup.img, unless all tasks are where the engine is.
///
/// # Errors
/// Failures to look at groups or to write.
pub fn write(c: &Collector, dir: &ImageDir) -> Result<()> {
    let entry = c.finish()?;
    match entry.sets.is_empty() {
        true => Ok(()),
        false => Ok(dir.write_one(&Kind::Cgroup.file(), &entry)?),
    }
}

/// The plan of a restore.
///
/// # Errors
/// A damaged or hostile image.
pub fn plan(o: &CgroupOptions, dir: &ImageDir, images: &Images) -> Result<Plan> {
    let mode = match o.mode {
        CgroupMode::Ignore => Mode::Ignore,
        CgroupMode::CgNone => Mode::None,
        CgroupMode::Props => Mode::Props,
        CgroupMode::Soft => Mode::Soft,
        CgroupMode::Full => Mode::Full,
        CgroupMode::Strict => Mode::Strict,
    };
    let name = Kind::Cgroup.file();
    let entry: pb::CgroupEntry = match dir.exists(&name)? {
        true => dir.read_all(&name)?.into_iter().next().unwrap_or_default(),
        false => pb::CgroupEntry::default(),
    };
    // an image of a tree that was where its dumper was has no sets
    let own = images.cgroups_of_dumper;
    let plan = Plan::new(entry, own, mode, &o.roots, &props(o)?)?;
    for t in &images.tasks {
        for th in &t.threads {
            plan.places(th.cg_set)?;
        }
    }
    Ok(plan)
}

/// Groups for the tasks of a plan.
///
/// # Errors
/// Groups that are missing or in the way.
pub fn make<'a>(o: &CgroupOptions, plan: &'a Plan) -> Result<stasis_cgroups::Groups<'a>> {
    let view = match o.mode {
        CgroupMode::Ignore => View::default(),
        _ => view(o)?,
    };
    Ok(stasis_cgroups::Groups::make(plan, view)?)
}
