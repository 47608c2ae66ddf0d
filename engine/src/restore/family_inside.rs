//! Births inside of user namespaces below the tree's.
//!
//! A pid namespace belongs to the user namespace of who bears its first process. So that one is born by a helper, as its sibling, which
//! has entered the user namespace before; all below are born inside by themselves. Everybody else is born outside and enters late.
use super::{Node, Planner, Stuck, stuck};

impl Planner<'_> {
    /// The user namespace of those that it bears.
    pub(super) fn bears_as(&self, by: Node) -> Option<u32> {
        let x = &self.people[by];
        x.enters.or(x.inside)
    }
    /// The user namespace it is born in: helpers of groups, which nobody chose, are born by their parents.
    pub(super) fn born_as(&self, n: Node) -> Option<u32> {
        let x = &self.people[n];
        match (x.creator, x.parent) {
            (None, Some(p)) => self.bears_as(p),
            _ => x.inside,
        }
    }
    /// Can a child of `by` come to be in the user namespace of `child`, and its pid namespace belong to the right one?
    pub(super) fn admits(&self, by: Node, child: Node) -> bool {
        let (c, there) = (&self.people[child], self.bears_as(by));
        let owner = self.spaces.owner(c.kin.space);
        // zombies and most helpers are what they are nowhere
        let anywhere = c.kin.objects.is_none() && c.enters.is_none();
        let goal = c.enters.or(c.kin.users);
        if !anywhere && !self.spaces.users_within(goal, there) {
            return false;
        }
        match self.founds(child) {
            true => owner == there,
            false => {
                c.kin.space == self.people[by].kin.space || self.spaces.users_within(owner, there)
            }
        }
    }
    /// A helper for the first process of a pid namespace, if none of its parent's user namespace could bear it. True: there is a new one.
    pub(super) fn entrance(&mut self, i: Node) -> Result<bool, Stuck> {
        let Some(p) = self.people[i]
            .parent
            .filter(|p| self.people[*p].creator.is_some())
        else {
            return Ok(false);
        };
        let owner = self.spaces.owner(self.people[i].kin.space);
        if !self.founds(i) || owner == self.bears_as(p) || self.entrances.contains_key(&i) {
            return Ok(false);
        }
        if !self.spaces.users_within(owner, self.bears_as(p)) {
            return Err(stuck(
                i,
                "its pid namespace belongs to a user namespace that its parent is further inside than",
            ));
        }
        let session = self.people[i].born.unwrap_or(self.people[p].kin.sid);
        let h = self.helper(None, p, session, None);
        let signal = self.people[i].kin.exit_signal;
        let helper = &mut self.people[h];
        helper.born = Some(session);
        helper.enters = owner;
        helper.kin.exit_signal = signal;
        helper.leads_to = Some(i);
        self.entrances.insert(i, h);
        Ok(true)
    }
}
