//! Any image as JSON, without knowing its type at compile time: for `stasis show --json` and for people.
//!
//! ```json
//! {"file": "pipes-data.img", "magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 5, "payload": {"bytes": 5}}]}
//! ```
//! Fields have the names of the schema, enums the names of their values, `bytes` are base64, 64-bit numbers stay
//! numbers; names of tasks are text, though the schema says bytes. Payload is not shown, only measured. Raw files give
//! `{"file": ..., "bytes": N}`.

use crate::dir::ImageDir;
use crate::error::{ImageError, Problem};
use crate::images::{Framing, ImageType, Payload, by_magic, lookup};
use crate::reader::{ImageReader, Record};
use crate::wire::{self, WireError};
use prost_reflect::{
    DescriptorPool, DynamicMessage, ReflectMessage, SerializeOptions, Value as Field,
};
use serde_json::{Value, json};

/// The schema in a form that can be asked at run time. Make one and keep it.
#[derive(Debug, Clone)]
pub struct Schema {
    pool: DescriptorPool,
}

impl Default for Schema {
    fn default() -> Self {
        Self::new()
    }
}

impl Schema {
    /// Load the schema that was compiled in.
    pub fn new() -> Self {
        let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.fds"));
        let pool = DescriptorPool::decode(bytes).expect("build.rs wrote a valid descriptor set");
        Self { pool }
    }

    /// Descriptors of all messages, for tools.
    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }

    /// The file `name` of `dir` as JSON; the shape is told at the top of this module.
    ///
    /// # Errors
    /// Everything [`ImageDir::reader`] and [`ImageReader::read_record`] return; [`Problem::Message`] and
    /// [`Problem::Required`] for records that are not what they should be.
    pub fn show(&self, dir: &ImageDir, name: &str) -> Result<Value, ImageError> {
        if lookup(name).is_some_and(|(row, _)| row.framing == Framing::Raw) {
            let metadata = dir.open_raw(name)?.metadata();
            let len = metadata.map_err(|error| Problem::io("look at it", error).of(name))?;
            return Ok(json!({"file": name, "bytes": len.len()}));
        }
        let mut reader = dir.reader(name)?;
        let row = reader.image_type();
        let mut entries = Vec::new();
        while let Some(record) = reader.read_record()? {
            let (message, mut shown) = self.record(name, message_at(row, record.index), &record)?;
            if let Some(payload) = self.payload(&mut reader, name, &message)? {
                shown["payload"] = payload;
            }
            entries.push(shown);
        }
        // Twins share a magic; crit knows it by the first one's name.
        let magic = by_magic(row.magic).map(|first| first.label);
        Ok(json!({"file": name, "magic": magic, "entries": entries}))
    }

    fn record(
        &self,
        file: &str,
        message: &'static str,
        record: &Record,
    ) -> Result<(DynamicMessage, Value), ImageError> {
        let fail = |error: WireError| ImageError {
            file: file.to_owned(),
            record: Some(record.index),
            offset: Some(record.offset),
            problem: Problem::wire(message, error),
        };
        let (Some(descriptor), Some(shape)) = (
            self.pool.get_message_by_name(message),
            wire::shape_of(message),
        ) else {
            return Err(Problem::WrongMessage { asked: message }.of(file));
        };
        wire::check(shape, &record.bytes).map_err(fail)?;
        let decoded = DynamicMessage::decode(descriptor, record.bytes.as_slice())
            .map_err(|error| fail(error.into()))?;
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .stringify_64_bit_integers(false);
        let mut shown = decoded
            .serialize_with_options(serde_json::value::Serializer, &options)
            .map_err(|error| Problem::io("show it", std::io::Error::other(error)).of(file))?;
        readable(&decoded, &mut shown);
        // Written by a newer version of the format: say so instead of dropping them.
        let unknown: Vec<u32> = decoded
            .unknown_fields()
            .map(|field| field.number())
            .collect();
        if !unknown.is_empty() {
            shown["unknown_field_numbers"] = json!(unknown);
        }
        Ok((decoded, shown))
    }

    /// Pass over what follows the record `message`, and describe it.
    fn payload(
        &self,
        reader: &mut ImageReader,
        name: &str,
        message: &DynamicMessage,
    ) -> Result<Option<Value>, ImageError> {
        let number = |field: &str| number(message, field);
        let bytes = match reader.image_type().payload {
            Payload::None => return Ok(None),
            Payload::Bytes(fields) => fields
                .iter()
                .fold(0u64, |sum, field| sum.saturating_add(number(field))),
            Payload::IpcShm if number("in_pagemaps") != 0 => return Ok(None),
            Payload::IpcShm => padded(number("size"), 4),
            Payload::IpcSem => padded(number("nsems") * 2, 8),
            Payload::IpcMsg => {
                let mut messages = Vec::new();
                for _ in 0..number("qnum") {
                    let (head, shown) = self.inner(reader, name)?;
                    reader.skip(padded(self::number(&head, "msize"), 8))?;
                    messages.push(shown);
                }
                return Ok(Some(json!({ "messages": messages })));
            }
            Payload::Ghost if number("chunks") != 0 => {
                let mut chunks = Vec::new();
                while reader.remaining() > 0 {
                    let (head, shown) = self.inner(reader, name)?;
                    reader.skip(self::number(&head, "len"))?;
                    chunks.push(shown);
                }
                return Ok(Some(json!({ "chunks": chunks })));
            }
            Payload::Ghost => reader.remaining(),
        };
        reader.skip(bytes)?;
        Ok(Some(json!({ "bytes": bytes })))
    }

    /// A record inside the payload; one must be there.
    fn inner(
        &self,
        reader: &mut ImageReader,
        name: &str,
    ) -> Result<(DynamicMessage, Value), ImageError> {
        let offset = reader.position();
        let message = reader.image_type().then.unwrap_or_default();
        match reader.read_record()? {
            Some(record) => self.record(name, message, &record),
            None => Err(ImageError {
                offset: Some(offset),
                ..Problem::Truncated {
                    what: "a record inside the payload",
                    need: 4,
                    have: 0,
                }
                .of(name)
            }),
        }
    }
}

/// Fields that hold text in any encoding: shown as text, with U+FFFD for what is not UTF-8, instead of base64.
const TEXT: &[(&str, &str)] = &[
    ("fh_entry", "path"),
    ("ghost_file_entry", "symlnk_target"),
    ("memfd_inode_entry", "name"),
    ("reg_file_entry", "name"),
    ("task_core_entry", "comm"),
    ("thread_core_entry", "comm"),
];

/// Puts text where `shown` has base64 of a field of [`TEXT`].
fn readable(message: &DynamicMessage, shown: &mut Value) {
    let of = message.descriptor();
    for (field, value) in message.fields() {
        let Some(place) = shown.get_mut(field.name()) else {
            continue;
        };
        match value {
            Field::Message(inner) => readable(inner, place),
            Field::Bytes(bytes) if TEXT.contains(&(of.name(), field.name())) => {
                *place = json!(String::from_utf8_lossy(bytes));
            }
            _ => {}
        }
    }
}

/// The message of record `index`: pagemaps begin with a head, all else outside of payloads is of one type.
fn message_at(row: &'static ImageType, index: u64) -> &'static str {
    match (row.payload, row.then) {
        (Payload::None, Some(then)) if index > 0 => then,
        _ => row.message.unwrap_or_default(),
    }
}

fn number(message: &DynamicMessage, field: &str) -> u64 {
    match message.get_field_by_name(field).as_deref() {
        Some(Field::U32(value)) => u64::from(*value),
        Some(Field::U64(value)) => *value,
        Some(Field::Bool(value)) => u64::from(*value),
        _ => 0,
    }
}

/// `len` up to the next multiple; a length that has none is longer than any file and fails as such.
fn padded(len: u64, multiple: u64) -> u64 {
    len.checked_next_multiple_of(multiple).unwrap_or(u64::MAX)
}
