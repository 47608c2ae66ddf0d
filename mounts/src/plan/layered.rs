//! Overlays: file systems made of folders on other mounts of the tree.
use super::{Maker, Step};
use crate::error::{Blame, Error, Result};
use crate::fstype::Make;
use crate::overlay;
use crate::tree::{Mount, Tree, below, is_plain};
use stasis_kernel::mnt;
use std::collections::BTreeMap;

/// An overlay that is to be made.
pub(super) struct Layered {
    /// The mounts that show it, those of earlier namespaces first.
    members: Vec<usize>,
    /// Name of each layer, the mount it lies on, and where.
    layers: Vec<(String, usize, String)>,
    /// Index of the namespace in which it is made.
    pub(super) space: usize,
}

fn no_layers(m: &Mount, why: &str) -> Error {
    Error::new("E5302", Blame::Image, format!("cannot make {}", m.place()))
        .why(why)
        .advice("dump again, and name the mount with --external")
}

/// Where the layers of an overlay are: as the dump found them, or in an image that does not say so (CRIU's) where their names
/// lead in its namespace.
fn layers(tree: &Tree, m: &Mount) -> Result<Vec<(String, usize, String)>> {
    let mut all = Vec::new();
    for name in overlay::names(&m.options).map_err(|why| no_layers(m, &why))? {
        let known = m.layers.iter().find(|l| l.name == name);
        let found = match known {
            Some(l) => {
                let on = tree.mounts.iter().position(|o| o.id == l.mount);
                on.map(|on| (on, l.path.clone()))
            }
            None if is_plain(&name) => {
                let on = tree.at_path(m.space, &name);
                let path = below(&name, &tree.mounts[on].mountpoint);
                path.map(|p| (on, p.to_owned()))
            }
            None => None,
        };
        let Some((on, path)) = found else {
            return Err(no_layers(
                m,
                &format!("its layer {name} is nowhere in the tree"),
            ));
        };
        all.push((name, on, path));
    }
    Ok(all)
}

impl Maker<'_> {
    /// Takes the overlays out of the file systems that are to be made.
    pub(super) fn overlays(&self, groups: &mut BTreeMap<u32, Vec<usize>>) -> Result<Vec<Layered>> {
        let tree = self.tree;
        let layered = |i: &usize| {
            tree.mounts[*i]
                .fstype
                .is_some_and(|t| t.make == Make::Layered)
        };
        let mut all = Vec::new();
        for members in groups.extract_if(.., |_, m| layered(&m[0])).map(|g| g.1) {
            let m = &tree.mounts[members[0]];
            let layers = layers(tree, m)?;
            // before any of its layers is where it belongs, out of reach for those who come later
            let seen = members.iter().chain(layers.iter().map(|l| &l.1));
            let space = seen
                .map(|i| tree.mounts[*i].space)
                .min()
                .unwrap_or_default();
            all.push(Layered {
                members,
                layers,
                space,
            });
        }
        Ok(all)
    }
    /// Attaches a mount so that it can be copied, and once only: mounts of layers stay older than what is made of them, which a
    /// dump relies on. The folder for that goes when all are in their places.
    fn hold(&mut self, w: usize) {
        let here = self.tree.mounts[w].space == self.space;
        if w == self.tree.roots[self.space] || here && !self.held.insert(w) {
            return;
        }
        let why = "a folder to copy mounts in";
        let folder = match self.folders.get(&self.space) {
            Some(folder) => *folder,
            None => {
                let (context, folder) = (self.name(), self.name());
                self.call(mnt::fsopen("tmpfs").binds(context), why);
                self.call(mnt::create(context), why);
                self.call(mnt::fsmount(context, 0).binds(folder), why);
                self.call(mnt::attach_path(folder, b"/"), why);
                self.folders.insert(self.space, folder);
                folder
            }
        };
        let (at, place) = (self.name(), format!("{}", self.next));
        self.call(mnt::make_folder(folder, &place), why);
        self.call(mnt::beneath(folder, &place).binds(at), why);
        let (whole, place) = (self.mounts[&w], self.tree.mounts[w].place());
        self.call(mnt::attach(whole, at), place);
    }
    fn overlay(&mut self, o: &Layered) -> Result<()> {
        let lead = o.members[0];
        let m = self.tree.mounts[lead].clone();
        // all options are known
        self.options(&m)?;
        let mut recipe =
            overlay::recipe(&m.options, &o.layers).map_err(|why| no_layers(&m, &why))?;
        recipe.source.clone_from(&m.source);
        recipe.flags = m.sb_flags;
        if recipe.renamed {
            self.plan.warnings.push(format!(
                "{}: not all of its layers can have their old names, it cannot be dumped once more",
                m.place()
            ));
        }
        let mut mounts = Vec::with_capacity(recipe.mounts.len());
        for w in recipe.mounts.clone() {
            let place = self.tree.mounts[w].place();
            self.hold(w);
            let (whole, copy) = (self.mounts[&w], self.name());
            self.call(mnt::clone_of(whole).binds(copy), place.clone());
            mounts.push(copy);
            if self.tree.mounts[w].space != self.space {
                let theirs = self.name();
                self.call(mnt::clone_of(whole).binds(theirs), place);
                self.mounts.insert(w, theirs);
            }
        }
        let to = self.name();
        self.row(Step::Overlay { recipe, mounts, to }, m.place());
        self.shown_by(&o.members, to);
        Ok(())
    }
    /// Makes these, each when its layers are there: one may be a layer of another.
    pub(super) fn make_overlays(&mut self, mut overlays: Vec<Layered>) -> Result<()> {
        while !overlays.is_empty() {
            let ready = |o: &Layered| o.layers.iter().all(|l| self.mounts.contains_key(&l.1));
            let Some(next) = overlays.iter().position(ready) else {
                let lead = overlays[0].members[0];
                return Err(self.tangled(lead, "its layers are made after it"));
            };
            let o = overlays.swap_remove(next);
            self.overlay(&o)?;
        }
        Ok(())
    }
}
