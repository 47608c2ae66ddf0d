//! What was found out about mounts before they are judged; the layers of an overlay, among the mounts of the tree.
use super::{One, View};
use crate::fstype::Make;
use crate::overlay;
use crate::tree::below;
use stasis_proto::pb;
use std::collections::BTreeMap;

/// What is known of the layers of overlays, by device number.
pub type Layers = BTreeMap<(u32, u32), std::result::Result<Vec<overlay::Found>, String>>;

/// What is known of mounts of autofs, by device number.
pub type Automounts = BTreeMap<(u32, u32), std::result::Result<pb::AutofsEntry, String>>;

/// Where in the tree the layers of an overlay are.
pub(super) fn layers(
    all: &[One],
    m: &One,
    view: &View,
) -> std::result::Result<Vec<pb::StasisLayer>, String> {
    let options = String::from_utf8_lossy(&m.info.super_options);
    let found = match view.layers.get(&m.info.dev) {
        Some(Ok(all)) => all,
        Some(Err(why)) => return Err(why.clone()),
        None => return Err("nobody has looked for its layers".into()),
    };
    let upper = overlay::upper(&options);
    let mut fresh = false;
    let mut layers = Vec::new();
    for l in found {
        let by_id = |id: i32| all.iter().find(|o| o.info.id == id && !o.rides);
        let mut on = by_id(l.mount as i32);
        // its own mount hides the layer it is mounted on
        while let Some(o) = on.filter(|o| o.dev == m.dev) {
            on = by_id(o.info.parent).filter(|_| o.mountpoint == l.path);
        }
        let part = on.and_then(|o| Some((o, below(&l.path, &o.mountpoint)?)));
        let Some((on, path)) = part else {
            return Err(format!(
                "its layer {} is on a mount that is not carried, or hidden by the overlay itself",
                l.name
            ));
        };
        let filled = on.fstype.is_some_and(|t| t.make == Make::Filled) && !on.outside();
        fresh |= filled && upper.as_deref() == Some(&l.name);
        layers.push(pb::StasisLayer {
            name: l.name.clone(),
            mnt_id: on.info.id as u32,
            path: path.to_owned(),
        });
    }
    overlay::carried(&options, fresh)?;
    Ok(layers)
}
