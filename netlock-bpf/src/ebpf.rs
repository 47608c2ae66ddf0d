//! The lock of eBPF programs on devices. Attached while nothing is frozen; armed and opened by one word in a map.
use crate::Error;
use crate::clsact;
use crate::state::{SIZE, State};
use crate::tuple::Tuple;
use aya_obj::Object;
use nix::errno::Errno;
use stasis_kernel::bpf::{self, Insn, MapShape, Side};
use stasis_kernel::error::SysError;
use stasis_kernel::netlink::Netlink;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lock.o"));

const STATE: &str = "stasis_state";
const TUPLES: &str = "stasis_tuples";
/// The dead man's switch.
const ALIVE: &str = "stasis_alive";
const ENTRY_IN: &str = "stasis_lock_in";
const ENTRY_OUT: &str = "stasis_lock_out";
/// Both entries and what they jump to, in the order of the dead man's switch.
const HOLD: [&str; 2] = ["stasis_hold_in", "stasis_hold_out"];

/// The programs of one lock.
#[derive(Debug)]
pub struct Net {
    /// The connections to be held, and the dead man's switch, which holds as long as this process has it open; `None` if another
    /// process loaded it.
    loaded: Option<(OwnedFd, OwnedFd)>,
    state: OwnedFd,
    entries: [(OwnedFd, Side); 2],
    ids: [u32; 2],
    /// Devices the programs were put on.
    pub devices: Vec<u32>,
}

impl Net {
    /// Loads the programs and puts them on devices of the namespace the caller is in. Not armed.
    pub fn prepare(state: &State, devices: &[u32]) -> Result<Self, Error> {
        let (mut maps, mut programs) = load()?;
        let mut program = |name: &str| programs.remove(name).ok_or(Error::Object);
        let entries = [
            (program(ENTRY_IN)?, Side::Ingress),
            (program(ENTRY_OUT)?, Side::Egress),
        ];
        let ids = [
            bpf::program_info(entries[0].0.as_fd())?.id,
            bpf::program_info(entries[1].0.as_fd())?.id,
        ];
        let mut map = |name: &str| maps.remove(name).ok_or(Error::Object);
        let (tuples, switch) = (map(TUPLES)?, map(ALIVE)?);
        for (i, name) in HOLD.iter().enumerate() {
            let held = program(name)?;
            let (key, value) = (i as u32, held.as_raw_fd() as u32);
            bpf::update(switch.as_fd(), &key.to_ne_bytes(), &value.to_ne_bytes())?;
        }
        let mut net = Self {
            loaded: Some((tuples, switch)),
            state: map(STATE)?,
            entries,
            ids,
            devices: Vec::new(),
        };
        net.write(&State {
            armed: false,
            ..*state
        })?;
        let mut route = Netlink::route()?;
        for device in devices {
            match net.attach(&mut route, *device) {
                Ok(()) => net.devices.push(*device),
                // it went meanwhile
                Err(e) if e.errno == Errno::ENODEV => {}
                Err(e) => {
                    net.detach();
                    return Err(e.into());
                }
            }
        }
        Ok(net)
    }
    /// Both programs upon one device; by tcx, which takes the kernel 10 ms for each, where the quick way is not free.
    fn attach(&self, route: &mut Netlink, device: u32) -> Result<(), SysError> {
        let name = [ENTRY_IN, ENTRY_OUT];
        let programs: Vec<_> = self
            .entries
            .iter()
            .zip(name)
            .map(|((p, side), name)| (p.as_fd(), *side, name))
            .collect();
        match clsact::attach(route, device, &programs) {
            Err(e) if e.errno != Errno::ENODEV => {
                for (program, side, _) in &programs {
                    if let Err(e) = bpf::attach(*program, device, *side) {
                        self.detach_tcx(device);
                        return Err(e);
                    }
                }
                Ok(())
            }
            r => r,
        }
    }
    fn detach_tcx(&self, device: u32) {
        for (program, side) in &self.entries {
            let _ = bpf::detach(program.as_fd(), device, *side);
        }
    }
    /// Names the connections of a lock with that scope.
    pub fn add(&mut self, tuples: &[Tuple]) -> Result<(), Error> {
        let Some((map, _)) = &self.loaded else {
            return Err(Error::Object);
        };
        let keys: Vec<_> = tuples.iter().flat_map(Tuple::key).collect();
        let values = 1u32.to_ne_bytes().repeat(tuples.len());
        Ok(bpf::update(map.as_fd(), &keys, &values)?)
    }
    /// Replaces the record, and with it the word that locks.
    pub fn write(&mut self, state: &State) -> Result<(), Error> {
        Ok(bpf::write_word::<SIZE>(self.state.as_fd(), &state.bytes())?)
    }
    /// Takes the programs away from all devices of the namespace the caller is in. What is gone already is no error.
    pub fn detach(&mut self) {
        let mut route = Netlink::route().ok();
        for device in std::mem::take(&mut self.devices) {
            let quick = route
                .as_mut()
                .and_then(|r| clsact::detach(r, device, &self.ids).ok());
            if quick != Some(true) {
                self.detach_tcx(device);
            }
        }
    }
    /// On which of these devices of the namespace the caller is in are the programs?
    pub fn look(&mut self, devices: &[u32]) {
        let mut route = Netlink::route().ok();
        let mut on = |device: &&u32| {
            let quick = route
                .as_mut()
                .is_some_and(|r| clsact::attached(r, **device, &self.ids));
            quick
                || [Side::Ingress, Side::Egress].into_iter().any(|side| {
                    let ids = bpf::attached(**device, side).unwrap_or_default();
                    ids.iter().any(|id| self.ids.contains(id))
                })
        };
        self.devices = devices.iter().filter(|d| on(d)).copied().collect();
    }
}

/// Maps or programs by name.
type Loaded = BTreeMap<String, OwnedFd>;

/// Makes the object's maps and loads its programs. They need no relocation against the kernel's own types, so those are not read,
/// which takes 30 ms and cannot be left out with aya's own loader.
fn load() -> Result<(Loaded, Loaded), Error> {
    let bad = |e: &dyn std::error::Error| Error::Load(chain(e));
    let mut object = Object::parse(OBJECT).map_err(|e| bad(&e))?;
    let mut maps = Loaded::new();
    for (name, m) in &object.maps {
        let shape = MapShape {
            kind: m.map_type(),
            key_size: m.key_size(),
            value_size: m.value_size(),
            entries: m.max_entries(),
            flags: m.map_flags(),
        };
        maps.insert(name.clone(), bpf::create_map(name, shape)?);
    }
    let sections: HashSet<usize> = object.functions.keys().map(|k| k.0).collect();
    let known = std::mem::take(&mut object.maps);
    let places = known
        .iter()
        .filter_map(|(name, m)| Some((name.as_str(), maps.get(name)?.as_raw_fd(), m)));
    object
        .relocate_maps(places, &sections)
        .map_err(|e| bad(&e))?;
    object.relocate_calls(&sections).map_err(|e| bad(&e))?;
    let mut programs = Loaded::new();
    for (name, p) in &object.programs {
        let f = object
            .functions
            .get(&p.function_key())
            .ok_or(Error::Object)?;
        let text: Vec<Insn> = f
            .instructions
            .iter()
            .map(|i| Insn {
                code: i.code,
                to: i.dst_reg(),
                from: i.src_reg(),
                off: i.off,
                imm: i.imm,
            })
            .collect();
        programs.insert(name.clone(), bpf::load_classifier(name, &text)?);
    }
    Ok((maps, programs))
}

/// All locks of this sort that the system has, in whatever namespace.
pub fn all() -> Result<Vec<(State, Net)>, Error> {
    /// A state map by its number, with the programs of both directions and their numbers.
    type Found = (
        u32,
        State,
        OwnedFd,
        Option<OwnedFd>,
        Option<OwnedFd>,
        [u32; 2],
    );
    let mut found: Vec<Found> = Vec::new();
    let mut last = 0;
    while let Some(id) = bpf::next_program(last)? {
        last = id;
        // it may be gone
        let Ok(program) = bpf::program(id) else {
            continue;
        };
        let Ok(info) = bpf::program_info(program.as_fd()) else {
            continue;
        };
        let side = match info.name.as_str() {
            ENTRY_IN => 0,
            ENTRY_OUT => 1,
            _ => continue,
        };
        for map_id in info.maps {
            let Ok(map) = bpf::map(map_id) else { continue };
            if bpf::map_info(map.as_fd()).is_ok_and(|i| i.name == STATE) {
                let Ok(bytes) = bpf::read_word::<SIZE>(map.as_fd()) else {
                    continue;
                };
                let Some(state) = State::parse(&bytes) else {
                    continue;
                };
                let at = match found.iter().position(|f| f.0 == map_id) {
                    Some(at) => at,
                    None => {
                        found.push((map_id, state, map, None, None, [0; 2]));
                        found.len() - 1
                    }
                };
                let f = &mut found[at];
                f.5[side] = id;
                let slot = if side == 0 { &mut f.3 } else { &mut f.4 };
                *slot = Some(program);
                break;
            }
        }
    }
    let whole = found.into_iter().filter_map(|(_, state, map, a, b, ids)| {
        let net = Net {
            loaded: None,
            state: map,
            entries: [(a?, Side::Ingress), (b?, Side::Egress)],
            ids,
            devices: Vec::new(),
        };
        Some((state, net))
    });
    Ok(whole.collect())
}

/// An error with its causes.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}
