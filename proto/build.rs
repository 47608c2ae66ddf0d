//! Compiles `schema/*.proto` without protoc: Rust types, the descriptor set for generic decoding, and the table of
//! required fields that prost itself does not enforce.

use prost::Message;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

/// `FieldDescriptorProto.Label.LABEL_REQUIRED` of descriptor.proto.
const LABEL_REQUIRED: i32 = 2;
/// `FieldDescriptorProto.Type.TYPE_MESSAGE` of descriptor.proto.
const TYPE_MESSAGE: i32 = 11;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=schema");
    let mut files: Vec<PathBuf> = std::fs::read_dir("schema")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();
    let set = protox::compile(&files, ["schema"])?;

    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    std::fs::write(out.join("schema.fds"), set.encode_to_vec())?;

    // (number, name, required, type name of a nested message), by message
    type Fields = Vec<(i32, String, bool, Option<String>)>;
    let mut messages: BTreeMap<String, Fields> = BTreeMap::new();
    for message in set.file.iter().flat_map(|file| &file.message_type) {
        let mut fields: Fields = message
            .field
            .iter()
            .map(|field| {
                let nested = (field.r#type == Some(TYPE_MESSAGE))
                    .then(|| field.type_name().trim_start_matches('.').to_owned());
                (
                    field.number(),
                    field.name().to_owned(),
                    field.label == Some(LABEL_REQUIRED),
                    nested,
                )
            })
            .filter(|(_, _, required, nested)| *required || nested.is_some())
            .collect();
        fields.sort();
        messages.insert(message.name().to_owned(), fields);
    }
    let index: BTreeMap<&str, usize> = messages.keys().map(String::as_str).zip(0..).collect();
    let mut code = String::from("pub(crate) static SHAPES: &[Shape] = &[\n");
    for (name, fields) in &messages {
        let required = fields.iter().filter(|field| field.2).count();
        assert!(
            required <= 64,
            "{name} has {required} required fields, the seen-mask holds 64"
        );
        writeln!(
            code,
            "    Shape {{ name: {name:?}, required: {required}, fields: &["
        )?;
        let mut bit = 0;
        for (number, field, required, nested) in fields {
            let nested = match nested {
                Some(nested) => format!(
                    "Some({})",
                    index
                        .get(nested.as_str())
                        .ok_or_else(|| format!("{nested} is not a top-level message"))?
                ),
                None => "None".to_owned(),
            };
            let required = if *required {
                bit += 1;
                format!("Some({})", bit - 1)
            } else {
                "None".to_owned()
            };
            writeln!(
                code,
                "        Field {{ number: {number}, name: {field:?}, required: {required}, nested: {nested} }},"
            )?;
        }
        code.push_str("    ] },\n");
    }
    code.push_str("];\n");
    std::fs::write(out.join("shapes.rs"), code)?;

    // An open file is one of twenty kinds and a task of one architecture. Held inline, the other nineteen made each
    // file_entry 2.2 KiB, and a list of 100,000 (or a hostile image of 8-byte records) hundreds of MiB.
    let boxed = ["file_entry", "core_entry"].into_iter().flat_map(|name| {
        let fields = messages.get(name).into_iter().flatten();
        fields
            .filter(|(_, _, _, nested)| nested.is_some())
            .map(move |(_, field, _, _)| format!(".{name}.{field}"))
            .filter(|path| path.starts_with(".file_entry.") || path.contains(".ti_"))
    });
    let mut config = prost_build::Config::new();
    for path in boxed {
        config.boxed(path);
    }
    config
        .out_dir(&out)
        .default_package_filename("pb")
        .enable_type_names()
        .compile_fds(set)?;
    Ok(())
}
