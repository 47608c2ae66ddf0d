//! Protobuf bytes into messages, with proto2's `required` enforced.
//!
//! prost fills a missing required field with its default. In an image that would turn a damaged record into a wrong
//! one (a uid of 0, say), so the bytes are walked once before prost sees them. The walk needs no allocation and looks
//! only at tags and lengths; the table of required fields is generated from the schema by build.rs.

use prost::{Message, Name};

/// Nesting allowed in a record. prost stops at 100 as well; nothing in the format goes deeper than the directories of
/// a cgroup tree.
const MAX_DEPTH: u32 = 100;

/// What build.rs knows of one message: its required fields and the fields that hold messages.
pub(crate) struct Shape {
    name: &'static str,
    /// How many of `fields` are required.
    required: u32,
    /// Sorted by number.
    fields: &'static [Field],
}

struct Field {
    number: u32,
    name: &'static str,
    /// Bit of a required field in the mask of fields seen.
    required: Option<u32>,
    /// Index into `SHAPES` of the message this field holds.
    nested: Option<usize>,
}

include!(concat!(env!("OUT_DIR"), "/shapes.rs"));

/// Why bytes are not the message they should be. Offsets count bytes from the start of the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Tags or lengths do not fit together.
    #[error("{what} at byte {offset} of the message")]
    Malformed {
        /// Where in the bytes.
        offset: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A field the schema calls required is not there.
    #[error("required field {message}.{field} is missing")]
    MissingRequired {
        /// The message that lacks it (may be nested in the one decoded).
        message: &'static str,
        /// The name of the field.
        field: &'static str,
    },
    /// prost refused the bytes (a wrong wire type, a string that is not UTF-8).
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
}

/// Decode one message and insist on its required fields, nested ones included.
///
/// # Errors
/// [`WireError`]; never panics, whatever the bytes.
pub fn decode<T: Message + Name + Default>(bytes: &[u8]) -> Result<T, WireError> {
    if let Some(shape) = shape_of(T::NAME) {
        check(shape, bytes)?;
    }
    Ok(T::decode(bytes)?)
}

/// The shape of the message called `name` in the schema.
pub(crate) fn shape_of(name: &str) -> Option<&'static Shape> {
    SHAPES
        .binary_search_by(|shape| shape.name.cmp(name))
        .ok()
        .map(|at| &SHAPES[at])
}

/// Walk `bytes` as the message `shape`: well formed, and every required field there.
pub(crate) fn check(shape: &'static Shape, bytes: &[u8]) -> Result<(), WireError> {
    walk(shape, bytes, 0, MAX_DEPTH)
}

/// `base` is where `bytes` begins in the outermost message, for error texts.
///
/// A nested message that appears twice is judged piece by piece although protobuf would merge the pieces; no writer of
/// images splits one, and a stricter reader is the safer one.
fn walk(shape: &'static Shape, bytes: &[u8], base: usize, depth: u32) -> Result<(), WireError> {
    let malformed = |offset: usize, what: &'static str| WireError::Malformed {
        offset: base + offset,
        what,
    };
    if depth == 0 {
        return Err(malformed(0, "messages nested too deep"));
    }
    let mut seen: u64 = 0;
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let tag = varint(bytes, &mut at).ok_or_else(|| malformed(start, "broken field tag"))?;
        let number = u32::try_from(tag >> 3)
            .ok()
            .filter(|number| (1..1 << 29).contains(number))
            .ok_or_else(|| malformed(start, "impossible field number"))?;
        let body = at;
        let value: &[u8] = match tag & 7 {
            0 => {
                varint(bytes, &mut at).ok_or_else(|| malformed(body, "broken varint"))?;
                &[]
            }
            1 => take(bytes, &mut at, 8).ok_or_else(|| malformed(body, "cut 64-bit value"))?,
            2 => {
                let len = varint(bytes, &mut at).ok_or_else(|| malformed(body, "broken length"))?;
                take(bytes, &mut at, len)
                    .ok_or_else(|| malformed(body, "length beyond the end of the message"))?
            }
            5 => take(bytes, &mut at, 4).ok_or_else(|| malformed(body, "cut 32-bit value"))?,
            // Groups: no message of the format has them.
            _ => return Err(malformed(start, "wire type that the format does not use")),
        };
        let Ok(field) = shape
            .fields
            .binary_search_by_key(&number, |field| field.number)
        else {
            continue;
        };
        let field = &shape.fields[field];
        if let Some(bit) = field.required {
            seen |= 1 << bit;
        }
        // Another wire type is left to prost, which names the field in its refusal.
        if let (Some(nested), 2) = (field.nested, tag & 7) {
            walk(&SHAPES[nested], value, base + (at - value.len()), depth - 1)?;
        }
    }
    if seen.count_ones() == shape.required {
        return Ok(());
    }
    match shape
        .fields
        .iter()
        .find(|field| field.required.is_some_and(|bit| seen & (1 << bit) == 0))
    {
        Some(field) => Err(WireError::MissingRequired {
            message: shape.name,
            field: field.name,
        }),
        None => Ok(()),
    }
}

/// A base-128 number of at most ten bytes that fits 64 bits.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, len: u64) -> Option<&'a [u8]> {
    let end = at.checked_add(usize::try_from(len).ok()?)?;
    let value = bytes.get(*at..end)?;
    *at = end;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    #[test]
    fn a_missing_required_field_is_named_with_its_message() {
        let entry = pb::FsEntry {
            cwd_id: 1,
            root_id: 2,
            umask: None,
        };
        let whole = entry.encode_to_vec();
        assert_eq!(decode::<pb::FsEntry>(&whole).unwrap(), entry);
        let error = decode::<pb::FsEntry>(&whole[..2]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "required field fs_entry.root_id is missing"
        );
    }

    #[test]
    fn nested_messages_are_checked_too() {
        // file_entry { type = REG, id = 1, fifo = { id = 7 } }
        let error = decode::<pb::FileEntry>(&[8, 1, 16, 1, 0x8a, 1, 2, 8, 7]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "required field fifo_entry.pipe_id is missing"
        );
    }

    #[test]
    fn broken_bytes_are_refused() {
        for bytes in [
            &[0x80][..],
            &[8],
            &[8, 0x80],
            &[0x0b],
            &[0],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
            &[
                8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
            ],
        ] {
            assert!(
                matches!(
                    decode::<pb::CgroupEntry>(bytes),
                    Err(WireError::Malformed { .. })
                ),
                "{bytes:x?}"
            );
        }
    }

    #[test]
    fn depth_is_limited() {
        let mut bytes = vec![0x0a, 0];
        for _ in 0..200 {
            let mut outer = vec![0x12];
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.extend_from_slice(&bytes);
            outer.extend_from_slice(&[0x0a, 0]);
            bytes = outer;
        }
        assert!(matches!(
            decode::<pb::CgroupDirEntry>(&bytes),
            Err(WireError::Malformed {
                what: "messages nested too deep",
                ..
            })
        ));
    }
}
