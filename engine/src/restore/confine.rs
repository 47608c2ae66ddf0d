//! The container's seccomp filter comes from its bundle, not from the image.
//!
//! A runtime installs the profile's filter before it starts the container, so every task has it as its oldest one. That one is
//! replaced; what tasks added themselves stays above it. Where the tasks have no oldest filter in common (there was no profile,
//! or the image was tampered with), the bundle's goes below everything, and all the rest stays: so no image makes a task of this
//! container freer than its bundle allows.
use super::images::{Images, TaskImages};
use stasis_proto::pb;

const FILTER_MODE: i32 = 2;
const STRICT_MODE: i32 = 1;

/// Mode and last filter of each thread of a task, as the plan of its privileges reads them.
fn threads(t: &TaskImages) -> impl Iterator<Item = (i32, Option<u32>)> {
    t.threads.iter().map(|th| th.seccomp)
}

/// The oldest filter of a chain; none for a chain that is damaged (its own check names it).
fn oldest(filters: &[pb::SeccompFilter], last: u32) -> Option<u32> {
    let mut at = last;
    for _ in 0..=filters.len() {
        match filters.get(at as usize)?.prev {
            Some(before) => at = before,
            None => return Some(at),
        }
    }
    None
}

/// Makes this the first filter of all tasks. Tasks in strict mode stay so: nothing is stricter, and it takes no filters.
pub(super) fn by(images: &mut Images, filter: &[u8]) {
    let mut common = None;
    let mut shared = true;
    for (mode, last) in images.tasks.iter().flat_map(threads) {
        let first = last
            .filter(|_| mode == FILTER_MODE)
            .and_then(|l| oldest(&images.seccomp, l));
        match (first, common) {
            _ if mode == STRICT_MODE => {}
            (Some(f), None) => common = Some(f),
            (Some(f), Some(c)) if f == c => {}
            _ => shared = false,
        }
    }
    if let Some(c) = common.filter(|_| shared) {
        let old = &mut images.seccomp[c as usize].filter;
        if old != filter {
            tracing::info!("the bundle's seccomp filter takes the place of that of the image");
            *old = filter.to_vec();
        }
        return;
    }
    tracing::info!("the bundle's seccomp filter goes below those of the image");
    let new = images.seccomp.len() as u32;
    for f in images.seccomp.iter_mut().filter(|f| f.prev.is_none()) {
        f.prev = Some(new);
    }
    images.seccomp.push(pb::SeccompFilter {
        filter: filter.to_vec(),
        ..Default::default()
    });
    let all = images.tasks.iter_mut().flat_map(|t| &mut t.threads);
    for th in all.filter(|th| th.seccomp.0 == 0) {
        th.seccomp = (FILTER_MODE, Some(new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::images::ThreadImage;
    use std::collections::BTreeMap;

    fn filter(byte: u8, prev: Option<u32>) -> pb::SeccompFilter {
        pb::SeccompFilter {
            filter: vec![byte; 8],
            prev,
            flags: None,
        }
    }

    /// A task with a thread for each of these modes and filters.
    fn task(threads: &[(i32, Option<u32>)]) -> TaskImages {
        let core = |(mode, last): &(i32, Option<u32>)| pb::CoreEntry {
            thread_core: Some(pb::ThreadCoreEntry {
                seccomp_mode: Some(*mode),
                seccomp_filter: *last,
                ..Default::default()
            }),
            ..Default::default()
        };
        TaskImages {
            entry: Default::default(),
            tc: Default::default(),
            threads: (1..)
                .zip(threads)
                .map(|(tid, t)| ThreadImage::new(tid, core(t), &Default::default(), tid == 1))
                .collect(),
            ids: Default::default(),
            mm: None,
            pages: None,
            fs: Default::default(),
        }
    }

    fn confined(tasks: Vec<TaskImages>, seccomp: Vec<pb::SeccompFilter>) -> Vec<Vec<u8>> {
        let mut images = Images {
            tasks,
            files: BTreeMap::new(),
            tables: BTreeMap::new(),
            seccomp,
            lsm: pb::Lsmtype::NoLsm,
            cgroups_of_dumper: 0,
            clocks: None,
            plugins: Vec::new(),
            devices: Vec::new(),
            own_namespaces: Vec::new(),
            spaces: Default::default(),
            users: Default::default(),
        };
        by(&mut images, &[9; 8]);
        let chain = |(mode, last): (i32, Option<u32>)| {
            let mut chain = Vec::new();
            let mut at = last.filter(|_| mode == FILTER_MODE);
            while let Some(i) = at {
                let f = &images.seccomp[i as usize];
                chain.insert(0, f.filter[0]);
                at = f.prev;
            }
            chain
        };
        images.tasks.iter().flat_map(threads).map(chain).collect()
    }

    #[test]
    fn the_runtimes_filter_is_replaced_and_the_programs_stay() {
        let filters = vec![filter(1, None), filter(2, Some(0))];
        let tasks = vec![task(&[(2, Some(0)), (2, Some(1))]), task(&[(2, Some(1))])];
        assert_eq!(confined(tasks, filters), [vec![9], vec![9, 2], vec![9, 2]]);
    }

    #[test]
    fn what_is_not_common_to_all_stays_above_the_bundles() {
        // one without any, one with its own: neither came from a runtime
        let filters = vec![filter(1, None), filter(2, None)];
        let tasks = vec![task(&[(0, None), (2, Some(0))]), task(&[(2, Some(1))])];
        assert_eq!(confined(tasks, filters), [vec![9], vec![9, 1], vec![9, 2]]);
        // strict mode takes no filters, and says nothing of the others
        let tasks = vec![task(&[(1, None), (2, Some(0))])];
        assert_eq!(confined(tasks, vec![filter(1, None)]), [vec![], vec![9]]);
        assert_eq!(confined(vec![task(&[(0, None)])], vec![]), [vec![9]]);
    }

    #[test]
    fn damaged_chains_do_no_harm() {
        // filters that name each other, and one that is not there
        for last in [0, 7] {
            let filters = vec![filter(1, Some(1)), filter(2, Some(0))];

            assert_eq!(oldest(&filters, last), None);
        }
    }
}
