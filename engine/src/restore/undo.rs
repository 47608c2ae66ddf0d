//! What SEM_UNDO (semop(2)) would undo at the end of a process.
//!
//! Only an operation that is to be undone makes the kernel remember one. In a namespace that is made anew, values are those of the
//! dump already, so each such operation goes together with its opposite, which nobody is to undo; the kernel performs both or none.
//! In one that was there all the time, the old processes' end has undone theirs, and the operation alone is right; where it cannot
//! be performed, others have taken what the process had.
use super::images::TaskImages;
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call};
use stasis_proto::pb;
use std::collections::BTreeMap;

/// Highest value of a semaphore, and most that is undone (linux/sem.h, SEMVMX, SEMAEM).
const MOST: i32 = 32767;

/// Values of all sets, by their ids.
pub type Values = BTreeMap<i32, Vec<u16>>;

/// The rows by which a task makes the kernel remember. `fresh`: values in a namespace that is made anew.
///
/// # Errors
/// E5465: what no kernel could have remembered.
pub fn plan(t: &TaskImages, fresh: Option<&Values>) -> Result<Vec<Call>> {
    let mut rows = Vec::new();
    for u in t.tc.stasis.iter().flat_map(|s| &s.undo) {
        let values = fresh.map(|all| all.get(&(u.set as i32)));
        of_set(u, values, &mut rows)?;
    }
    Ok(rows)
}

fn of_set(
    u: &pb::StasisSemUndo,
    values: Option<Option<&Vec<u16>>>,
    rows: &mut Vec<Call>,
) -> Result<()> {
    let damaged = |why: &str| {
        Error::new(
            "E5465",
            Blame::Image,
            format!("what would be undone in set {}", u.set),
        )
        .why(why)
        .advice("dump again")
    };
    for (n, adjust) in u.adjust.iter().enumerate().filter(|a| *a.1 != 0) {
        let number = u16::try_from(n)
            .map_err(|_| damaged("there are more semaphores than any kernel allows"))?;
        if adjust.unsigned_abs() > MOST as u32 {
            return Err(damaged("it is more than a semaphore can have"));
        }
        let Some(values) = values else {
            rows.push(semop(u.set, &[(number, -*adjust, true)]));
            continue;
        };
        let value = values.and_then(|v| v.get(n)).copied().map(i32::from);
        let value = value.ok_or_else(|| damaged("there is no such semaphore"))?;
        // what is added or taken for a moment must fit: in pieces, to the side with more room
        let mut left = -*adjust;
        while left != 0 {
            let (room_up, room_down) = (MOST - value, value);
            let up = room_up >= room_down;
            let piece = left.abs().min(room_up.max(room_down)) * left.signum();
            if piece == 0 {
                return Err(damaged("a semaphore's value is higher than any can have"));
            }
            let (undone, opposite) = ((number, piece, true), (number, -piece, false));
            let first_is_undone = (piece > 0) == up;
            rows.push(match first_is_undone {
                true => semop(u.set, &[undone, opposite]),
                false => semop(u.set, &[opposite, undone]),
            });
            left -= piece;
        }
    }
    Ok(())
}

/// semop(2): number, operation, whether it is to be undone.
fn semop(set: u32, operations: &[(u16, i32, bool)]) -> Call {
    let mut bytes = Vec::new();
    for (number, operation, undone) in operations {
        let undo = if *undone { libc::SEM_UNDO } else { 0 };
        let flags = (libc::IPC_NOWAIT | undo) as u16;
        bytes.extend(number.to_le_bytes());
        bytes.extend((*operation as i16).to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    let n = operations.len() as u64;
    Call::new(
        libc::SYS_semop,
        vec![Arg::Int(set.into()), Arg::In(bytes), Arg::Int(n)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(adjust: &[i32], values: Option<&[u16]>) -> Result<Vec<Vec<(u16, i16, bool)>>> {
        let u = pb::StasisSemUndo {
            set: 7,
            adjust: adjust.to_vec(),
        };
        let values = values.map(<[u16]>::to_vec);
        let mut rows = Vec::new();
        of_set(&u, values.as_ref().map(Some), &mut rows)?;
        let told = |c: &Call| {
            let Arg::In(b) = &c.args[1] else { panic!() };
            let op = |b: &[u8]| {
                let n = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
                (n(0), n(2) as i16, n(4) & libc::SEM_UNDO as u16 != 0)
            };
            b.chunks_exact(6).map(op).collect()
        };
        Ok(rows.iter().map(told).collect())
    }

    /// The kernel's rules: each operation in turn, within the bounds. Gives value and what would be undone.
    fn play(value: i32, rows: &[Vec<(u16, i16, bool)>]) -> (i32, i32) {
        let (mut v, mut undo) = (value, 0);
        for (_, op, undone) in rows.iter().flatten() {
            v += i32::from(*op);
            assert!((0..=MOST).contains(&v), "{rows:?}");
            if *undone {
                undo -= i32::from(*op);
            }
        }
        (v, undo)
    }

    #[test]
    fn values_stay_and_the_rest_is_remembered() {
        for value in [0u16, 1, 20000, 32766, 32767] {
            for adjust in [1, -1, 30000, -30000, MOST, -MOST] {
                let rows = rows(&[adjust], Some(&[value])).unwrap();
                assert_eq!(play(value.into(), &rows), (value.into(), adjust));
            }
        }
        assert_eq!(rows(&[0, 3], None).unwrap(), [[(1, -3, true)]]);
    }

    #[test]
    fn hostile_lists_are_refused() {
        for (adjust, values) in [
            (vec![40000], vec![1u16]),
            (vec![i32::MIN], vec![1]),
            (vec![0, 1], vec![1]),
        ] {
            assert!(rows(&adjust, Some(&values)).is_err(), "{adjust:?}");
        }
    }
}
